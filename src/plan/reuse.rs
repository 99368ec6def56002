//! What goes to units of the image where the free units of the host are too few.

use crate::error::{Error, Result};
use crate::extent::{LayerId, Map, What};
use crate::fs::Form;
use crate::fs::host::{Estimate, Host, HostImage, Job, NewKind, NewTree};
use crate::plan::{GuestVolume, Reused, verdict};
use crate::txn::Staging;
use crate::txn::reuse::{Place, Range, Reuse, Want};

/// The new state of a host, what it needs, and what of it goes to units of the image.
pub struct Found {
    pub staging: Staging,
    pub estimate: Estimate,
    pub reused: Reused,
}

/// The new state of `host` with units of the image that nobody has; `tree` then says so. None where it does not fit like that either,
/// or there are none.
pub fn with_image(
    guests: &[GuestVolume],
    host: &dyn Host,
    layer: Option<LayerId>,
    image: &HostImage,
    tree: &mut NewTree,
    (left, zero_slack): (Vec<Range>, bool),
) -> Result<Option<Found>> {
    let rules = host.rules();
    let reuse = Reuse { unit: rules.unit, units_at: rules.units_at, left, wants: wants(guests, layer, tree) };
    if reuse.unit == 0 || reuse.units() == 0 {
        return Ok(None);
    }
    tree.reuse = Some(reuse.clone());
    let job = Job { tree, image, zero_slack };
    let mut staging = match host.new_state(&job) {
        Ok(staging) => staging,
        Err(Error::Refused(_) | Error::Unsupported(_)) => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut estimate = host.needs(&job, Some(&staging));
    staging.divide(&reuse);
    if staging.moves.is_empty() {
        return Ok(None);
    }
    let kept = staging.moves.iter().filter(|m| m.from.is_none()).map(|m| m.len).fold(0, u64::saturating_add);
    let described = |m: &crate::txn::reuse::Move| {
        80u64.saturating_add((m.from.as_ref().map_or(0, Vec::len) as u64).saturating_mul(16))
    };
    let described = staging.moves.iter().map(described).fold(0, u64::saturating_add);
    // Frames, and two records of progress.
    let frames = (kept / 16384).saturating_add(16 << 10);
    estimate.journal_bytes = [kept, described, frames].into_iter().fold(estimate.journal_bytes, u64::saturating_add);
    let units = staging.reused.iter().map(|(_, len)| len.checked_div(rules.unit).unwrap_or(0));
    let reused = Reused {
        units: units.fold(0, u64::saturating_add),
        batches: staging.moves.last().map_or(0, |m| u64::from(m.batch).saturating_add(1)),
        kept_bytes: kept,
    };
    Ok(Some(Found { staging, estimate, reused }))
}

/// What is copied, and where its bytes are.
fn wants(guests: &[GuestVolume], layer: Option<LayerId>, tree: &NewTree) -> Vec<Want> {
    let mut map = Map::new();
    let mut all = Vec::new();
    for position in tree.copies() {
        let Some(entry) = tree.entries.get(position) else { continue };
        let (NewKind::File { size, .. } | NewKind::Stream { size, .. }) = &entry.kind else { continue };
        let mut want = Want { entry: position, size: *size, from: Vec::new() };
        let origin = entry.origin.and_then(|o| Some((guests.get(o.volume)?, o.stream?)));
        // Any other form may read as something else than what is stored.
        if let Some((guest, stream)) = origin.filter(|(g, s)| g.tree.stream(*s).form == Form::Plain)
            && verdict::resolve(guest, stream, &mut map).is_ok()
        {
            want.from = map.extents().iter().map(|e| (e.len, place(e.what, layer))).collect();
        }
        all.push(want);
    }
    all
}

fn place(what: What<crate::extent::Volume>, layer: Option<LayerId>) -> Place {
    match what {
        What::Stored(p) if Some(p.layer) == layer => Place::At(p.offset.get()),
        What::Zero => Place::Zeros,
        _ => Place::Decoded,
    }
}

//! What a stream's extents allow.

use crate::extent::{Encoding, Extent, LayerId, Map, Stream, Volume, What};
use crate::fs::host::{Content, Rules};
use crate::fs::{Form, StreamId};
use crate::plan::claims::into_unit;
use crate::plan::{GuestVolume, Reason, Verdict};

/// The stream's extents in the host volume, into `out`; or why they can't be told.
pub fn resolve(guest: &GuestVolume, stream: StreamId, out: &mut Map<Stream, Volume>) -> Result<(), Reason> {
    out.clear();
    for e in guest.tree.extents(stream) {
        let p = match e.what {
            What::Stored(p) => p,
            other => {
                out.push(e.len, other);
                continue;
            }
        };
        if p.layer != guest.layer {
            return Err(Reason::OtherVolume);
        }
        let end = p.offset.checked_add(e.len).filter(|end| end.get() <= guest.map.len()).ok_or(Reason::Unreadable)?;
        for piece in guest.map.slice(p.offset..end) {
            out.push(piece.len, piece.what);
        }
    }
    Ok(())
}

/// The compressed form of a stream in the host volume, where the host can take it over: it has the same units and clusters, and every
/// cluster of the guest is one of the host. Holes between stored clusters are part of the form: none may become one.
pub fn packed(guest: &GuestVolume, stream: StreamId, rules: Rules, host: Option<LayerId>) -> Option<Content> {
    let unit = match guest.tree.stream(stream).form {
        Form::Compressed(unit) if rules.packed > 0 => u64::from(unit),
        _ => return None,
    };
    let form = guest.fs.as_ref()?.packed(&guest.tree, stream)?;
    if (form.unit, unit, form.cluster) != (rules.packed, rules.packed, rules.unit) {
        return None;
    }
    let mut out: Map<Stream, Volume> = Map::new();
    for e in form.map.extents() {
        let What::Stored(p) = e.what else {
            out.push(e.len, e.what);
            continue;
        };
        let end = p.offset.checked_add(e.len).filter(|end| end.get() <= guest.map.len() && p.layer == guest.layer)?;
        for piece in guest.map.slice(p.offset..end) {
            match piece.what {
                What::Stored(place) if Some(place.layer) == host => out.push(piece.len, piece.what),
                _ => return None,
            }
        }
    }
    let whole = |e: &Extent<Stream, Volume>| match e.what {
        What::Stored(p) => into_unit(rules, p.offset.get()) == 0 && into_unit_of_file(rules, e.len) == 0,
        What::Zero => into_unit_of_file(rules, e.len) == 0,
        What::Encoded(_) => false,
    };
    let valid = guest.tree.stream(stream).valid;
    out.extents().iter().all(whole).then(|| Content::Packed { valid, extents: out.extents().to_vec() })
}

/// Why a stream of some bytes that resolves to these extents can't be linked on the host volume `volume`; none where
/// only another claim can be in the way. Of several reasons the one that weighs most: first those that leave no way to
/// the bytes, then how they are kept, then where.
pub fn obstacle(
    extents: &[Extent<Stream, Volume>],
    form: Form,
    rules: Rules,
    volume: Option<LayerId>,
) -> Option<Reason> {
    let mut worst = (form == Form::Encrypted).then_some(Reason::FsEncrypted);
    let last = extents.len().saturating_sub(1);
    // From here on all is zeros, and may begin anywhere.
    let zeros = match extents.iter().rposition(|e| e.what != What::Zero) {
        Some(before) if rules.valid => before.saturating_add(1),
        _ => extents.len(),
    };
    for (i, e) in extents.iter().enumerate() {
        let ends = i < last && i.saturating_add(1) != zeros;
        let ragged =
            i < zeros && (into_unit_of_file(rules, e.start.get()) != 0 || ends && into_unit_of_file(rules, e.len) != 0);
        let reason = match e.what {
            What::Encoded(how) => Some(encoded(how)),
            What::Zero if !rules.holes => Some(Reason::HoleUnsupported),
            What::Stored(p) if Some(p.layer) != volume => Some(Reason::OtherVolume),
            What::Stored(p) if ragged || into_unit(rules, p.offset.get()) != 0 => Some(Reason::Misaligned),
            What::Zero if ragged => Some(Reason::Misaligned),
            _ => None,
        };
        if weight(reason) > weight(worst) {
            worst = reason;
        }
    }
    worst
}

/// What is done with a stream for this reason.
pub fn verdict(reason: Reason) -> Verdict {
    match reason {
        Reason::Empty => Verdict::Link,
        Reason::Special
        | Reason::Unreadable
        | Reason::FsEncrypted
        | Reason::ContainerEncrypted
        | Reason::TooLarge
        | Reason::OutOfRange => Verdict::Skip,
        _ => Verdict::Copy,
    }
}

fn encoded(how: Encoding) -> Reason {
    match how {
        Encoding::Inline => Reason::Resident,
        Encoding::ContainerCompressed => Reason::ContainerCompressed,
        Encoding::ContainerEncrypted => Reason::ContainerEncrypted,
        Encoding::FsCompressed => Reason::FsCompressed,
        Encoding::FsEncrypted => Reason::FsEncrypted,
        Encoding::Unreadable => Reason::Unreadable,
    }
}

fn weight(reason: Option<Reason>) -> u8 {
    match reason {
        None => 0,
        Some(Reason::Misaligned) => 1,
        Some(Reason::HoleUnsupported) => 2,
        Some(Reason::OtherVolume) => 3,
        Some(Reason::ContainerCompressed) => 4,
        Some(Reason::Resident) => 5,
        Some(Reason::FsCompressed) => 6,
        Some(Reason::Unreadable) => 8,
        Some(_) => 7,
    }
}

/// Bytes that a place in a file lies behind a unit's edge.
fn into_unit_of_file(rules: Rules, at: u64) -> u64 {
    at.checked_rem(rules.unit.max(1)).unwrap_or_default()
}

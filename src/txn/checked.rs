//! A staging that was audited: only such a one can be committed.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::extent::{Offset, ReadAt, Volume};
use crate::txn::{Fresh, Overlay, SECTOR, Staging, reuse};

/// A staging that does not contradict itself, and whose new state an audit has read back and found right. There is no
/// other way to make one, and [`super::commit`] takes nothing else.
#[derive(Clone)]
pub struct Checked {
    staging: Arc<Staging>,
    volume_len: u64,
}

impl Checked {
    /// Checks the form of `staging`: ranges within the volume, whole sectors in groups, nothing written twice, free
    /// ranges apart from blocks in use. Then `audit` reads the new state through an [`Overlay`] of `volume`
    /// (that is what [`crate::fs::host::Host::audit`] is for).
    ///
    /// # Errors
    /// [`Error::Corrupt`] where the form is wrong; whatever `audit` finds. Nothing was written.
    pub fn new(
        staging: impl Into<Arc<Staging>>,
        volume: Arc<dyn ReadAt<Volume>>,
        audit: impl FnOnce(Arc<dyn ReadAt<Volume>>, &Staging) -> Result<()>,
    ) -> Result<Self> {
        let volume_len = volume.len();
        let staging = staging.into();
        form(&staging, volume_len)?;
        audit(Arc::new(Overlay::new(volume, Arc::clone(&staging))?), &staging)?;
        Ok(Self { staging, volume_len })
    }
    /// What will be written.
    pub fn staging(&self) -> &Staging {
        &self.staging
    }
    /// Bytes of the volume that it was checked for.
    pub(super) fn volume_len(&self) -> u64 {
        self.volume_len
    }
    pub(super) fn shared(&self) -> Arc<Staging> {
        Arc::clone(&self.staging)
    }
}

fn wrong(at: u64, expected: impl Into<String>) -> Error {
    Error::corrupt("staging", Offset::<Volume>::new(at), expected)
}

/// A range of the volume: start and end.
type Range = (u64, u64);

fn range(at: Offset<Volume>, len: u64, volume: u64) -> Result<Range> {
    let end = at.get().checked_add(len).filter(|end| *end <= volume);
    Ok((at.get(), end.ok_or_else(|| wrong(at.get(), format!("{len} bytes within the volume's {volume}")))?))
}

fn whole_sectors(write: &Fresh, volume: u64) -> Result<Range> {
    let len = write.bytes.len() as u64;
    if len == 0 || !len.is_multiple_of(SECTOR) || !write.at.get().is_multiple_of(SECTOR) {
        return Err(wrong(write.at.get(), format!("whole sectors of {SECTOR} bytes")));
    }
    range(write.at, len, volume)
}

/// Sorts, and refuses what overlaps.
fn apart(mut ranges: Vec<Range>, what: &str) -> Result<Vec<Range>> {
    ranges.retain(|(start, end)| start < end);
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        if let [a, b] = pair
            && b.0 < a.1
        {
            return Err(wrong(b.0, what));
        }
    }
    Ok(ranges)
}

/// Joins neighbours.
fn joined(ranges: Vec<Range>) -> Vec<Range> {
    let mut out: Vec<Range> = Vec::new();
    for (start, end) in ranges {
        match out.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => out.push((start, end)),
        }
    }
    out
}

/// Whether the range lies within one of `outer`, which are sorted and apart.
fn within(outer: &[Range], (start, end): Range) -> bool {
    let at = outer.partition_point(|(_, outer_end)| *outer_end <= start);
    outer.get(at).is_some_and(|(outer_start, outer_end)| *outer_start <= start && end <= *outer_end)
}

/// The moves fill just these units, and none overwrites what it or a later one reads.
fn moves(s: &Staging, reused: &[Range], volume: u64) -> Result<()> {
    let mut targets = Vec::new();
    for m in &s.moves {
        targets.push(range(m.to, m.len, volume)?);
        for (len, at) in m.from.iter().flatten() {
            if let Some(at) = at {
                range(Offset::new(*at), *len, volume)?;
            }
        }
    }
    if let Err(at) = reuse::sound(s.moves.iter()) {
        return Err(wrong(at, "moves that overwrite nothing that they or later ones read"));
    }
    let targets = joined(apart(targets, "units of the image that are filled once")?);
    if targets != reused {
        let at = reused.iter().zip(&targets).find(|(a, b)| a != b).map_or(0, |(a, _)| a.0);
        return Err(wrong(at, "moves that fill the units of the image that are listed, and no others"));
    }
    Ok(())
}

fn form(s: &Staging, volume: u64) -> Result<()> {
    let mut in_use = Vec::new();
    // Of each group, its sectors with the group's position, to find those of interim contents.
    let mut grouped: Vec<(Range, usize)> = Vec::new();
    for (g, group) in s.groups.iter().enumerate() {
        let mut last = 0;
        for write in &group.writes {
            let range = whole_sectors(write, volume)?;
            if range.0 < last {
                return Err(wrong(range.0, format!("writes of the group {} in order, each once", group.name)));
            }
            last = range.1;
            in_use.push(range);
            grouped.push((range, g));
        }
    }
    grouped.sort_unstable();
    let mut interim = Vec::new();
    for (before, write) in &s.interim {
        let whole = whole_sectors(write, volume)?;
        interim.push(whole);
        let mut at = whole.0;
        while at < whole.1 {
            let found = grouped.partition_point(|((_, end), _)| *end <= at);
            match grouped.get(found) {
                Some(((start, end), g)) if *start <= at && before <= g => at = *end,
                _ => return Err(wrong(at, "an interim sector that a group as late or later writes")),
            }
        }
    }
    apart(interim, "one interim contents for a sector")?;

    let q = &s.quarantine;
    if q.closed.len() != q.open.len() || q.closed == q.open {
        return Err(wrong(q.at.get(), "a quarantine with two different contents of one length"));
    }
    in_use.push(whole_sectors(&Fresh { at: q.at, bytes: q.closed.clone() }, volume)?);
    for also in &q.also {
        in_use.push(whole_sectors(also, volume)?);
    }
    for (at, len) in &s.slack {
        let (start, end) = range(*at, (*len).into(), volume)?;
        // Also slack is written by the sector.
        let start = start.checked_div(SECTOR).unwrap_or_default().saturating_mul(SECTOR);
        in_use.push((start, end.div_ceil(SECTOR).saturating_mul(SECTOR)));
    }

    let mut filled = Vec::new();
    for (at, len) in &s.filled {
        filled.push(range(*at, *len, volume)?);
    }
    in_use.extend_from_slice(&filled);
    let mut reused = Vec::new();
    for (at, len) in &s.reused {
        reused.push(range(*at, *len, volume)?);
    }
    in_use.extend_from_slice(&reused);
    apart(in_use, "free units apart from blocks in use, and every byte written once")?;
    let filled = joined(apart(filled, "free units that are filled once")?);
    let reused = joined(apart(reused, "units of the image that are filled once")?);
    moves(s, &reused, volume)?;

    let mut into_free = Vec::new();
    for fresh in &s.fresh {
        into_free.push(range(fresh.at, fresh.bytes.len() as u64, volume)?);
    }
    for copy in &s.copies {
        let mut room = 0u64;
        for (at, len) in &copy.to {
            into_free.push(range(*at, *len, volume)?);
            room = room.saturating_add(*len);
        }
        if room < copy.size {
            let at = copy.to.first().map_or(0, |(at, _)| at.get());
            return Err(wrong(at, format!("units for a copy of {} bytes, not {room}", copy.size)));
        }
    }
    for r in apart(into_free, "free units that are written once")? {
        if !within(&filled, r) && !within(&reused, r) {
            return Err(wrong(r.0, "new bytes within units that are listed as filled"));
        }
    }
    for (at, len) in &s.witnesses {
        range(*at, *len, volume)?;
    }
    Ok(())
}

//! Which units of the image are taken: the first claimant wins.

use std::collections::BTreeMap;

use crate::extent::{Extent, LayerId, Map, Stream, Volume, What};
use crate::fs::host::Rules;
use crate::txn::reuse::{Range, subtract};

/// The units of the image on the host, and those of them that are taken. Cost follows extents, not units.
#[derive(Debug)]
pub struct Claims {
    rules: Rules,
    /// What the image's units cover: start and end in the host volume, ordered, apart.
    own: Vec<(u64, u64)>,
    /// Taken: start to end, whole units, apart.
    taken: BTreeMap<u64, u64>,
    /// The units of the stream at hand.
    wanted: Vec<(u64, u64)>,
}

impl Claims {
    /// Nothing taken yet of an image whose files lie on its host by these maps. What of it lies elsewhere than in the volume
    /// `host` is none of the host's units.
    pub fn new<'m>(
        rules: Rules,
        maps: impl IntoIterator<Item = &'m Map<Stream, Volume>>,
        host: Option<LayerId>,
    ) -> Self {
        let mut own: Vec<(u64, u64)> = Vec::new();
        for map in maps {
            let size = map.len();
            for e in map.extents() {
                let What::Stored(p) = e.what else { continue };
                if Some(p.layer) != host {
                    continue;
                }
                // A file owns its last unit as a whole; of any other, only what it covers from edge to edge.
                let (start, end) = (p.offset.get(), p.offset.get().saturating_add(e.len));
                let start = edge(rules, start, true);
                let end = edge(rules, end, e.end().get() == size);
                if start < end {
                    own.push((start, end));
                }
            }
        }
        own.sort_unstable();
        own.dedup_by(|next, last| {
            let touch = next.0 <= last.1;
            if touch {
                last.1 = last.1.max(next.1);
            }
            touch
        });
        Self { rules, own, taken: BTreeMap::new(), wanted: Vec::new() }
    }
    /// Takes all units of a stream whose stored extents start on units, or none: where one is taken already, comes
    /// twice, or is no unit of the image.
    pub fn take(&mut self, extents: &[Extent<Stream, Volume>]) -> bool {
        self.wanted.clear();
        for e in extents {
            if let What::Stored(p) = e.what {
                let end = p.offset.get().saturating_add(e.len);
                self.wanted.push((p.offset.get(), edge(self.rules, end, true)));
            }
        }
        self.wanted.sort_unstable();
        let twice = self.wanted.iter().zip(self.wanted.iter().skip(1)).any(|(a, b)| b.0 < a.1);
        if twice || !self.wanted.iter().all(|w| self.is_free(*w)) {
            return false;
        }
        for i in 0..self.wanted.len() {
            if let Some(w) = self.wanted.get(i).copied() {
                self.insert(w);
            }
        }
        true
    }
    /// The units of the image that nobody has taken: place and bytes, ordered, apart.
    pub fn left(&self) -> Vec<Range> {
        let ranges = |(start, end): (u64, u64)| (start, end.saturating_sub(start));
        let own: Vec<Range> = self.own.iter().copied().map(ranges).collect();
        let taken: Vec<Range> = self.taken.iter().map(|(start, end)| ranges((*start, *end))).collect();
        subtract(&own, &taken)
    }
    fn is_free(&self, (start, end): (u64, u64)) -> bool {
        let owner = self.own.partition_point(|o| o.0 <= start).checked_sub(1).and_then(|i| self.own.get(i));
        owner.is_some_and(|o| end <= o.1)
            && self.taken.range(..end).next_back().is_none_or(|(_, taken_end)| *taken_end <= start)
    }
    /// Adds a range that touches no other but at its edges, merged with its neighbours.
    fn insert(&mut self, (mut start, mut end): (u64, u64)) {
        if let Some(after) = self.taken.remove(&end) {
            end = after;
        }
        if let Some((&before, &before_end)) = self.taken.range(..start).next_back()
            && before_end == start
        {
            start = before;
        }
        self.taken.insert(start, end);
    }
}

/// Bytes from the unit's edge below `at`.
pub fn into_unit(rules: Rules, at: u64) -> u64 {
    let unit = rules.unit.max(1);
    let shift = rules.units_at.checked_rem(unit).unwrap_or_default();
    let at = at.checked_rem(unit).unwrap_or_default();
    at.saturating_add(unit.saturating_sub(shift)).checked_rem(unit).unwrap_or_default()
}

/// The unit's edge at `at`, or the next one above or below.
fn edge(rules: Rules, at: u64, up: bool) -> u64 {
    match into_unit(rules, at) {
        0 => at,
        over if up => at.saturating_add(rules.unit.saturating_sub(over)),
        over => at.saturating_sub(over),
    }
}

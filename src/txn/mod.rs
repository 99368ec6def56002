//! Changing a host without losing anything: the new state is gathered in a [`Staging`], read back through an
//! [`Overlay`], sealed into a [`Journal`], and only then written. See `docs/safety.md`.
//!
//! This room knows bytes of a volume and of a journal, and nothing of file systems.

use std::sync::Arc;

use crate::error::Result;
use crate::extent::{Offset, ReadAt, Stream, Volume};

mod apply;
mod body;
mod checked;
mod codec;
mod commit;
mod fill;
mod frames;
mod host;
mod io;
mod journal;
mod moves;
mod overlay;
mod recover;
pub mod reuse;
mod undo;

pub use checked::Checked;
pub use commit::{Committed, Progress, Step, commit};
pub use frames::Manifest;
pub use host::HostVolume;
pub use journal::{About, Journal, State};
pub use overlay::Overlay;
pub use recover::{Recovered, holds_the_other_state, recover, stands};
pub use undo::undo;

/// The journal's unit of old and new contents, whatever the medium's sectors: 512 bytes.
pub const SECTOR: u64 = 512;

/// Bytes for units that were free: no old contents are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fresh {
    /// Where.
    pub at: Offset<Volume>,
    /// What.
    pub bytes: Vec<u8>,
}

/// A stream to be copied into units that were free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Which stream: a number that [`Sources`] knows. Hosts take the new entry's position in the tree that they are handed.
    pub entry: usize,
    /// Bytes of it.
    pub size: u64,
    /// Where to, in order: place and bytes, whole units. What is left of the last unit is filled with zeros.
    pub to: Vec<(Offset<Volume>, u64)>,
}

/// Changes of blocks in use that are written and made durable together, before the next group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// What they are, for messages.
    pub name: &'static str,
    /// New contents: whole [`SECTOR`]s, aligned, ordered by place, not overlapping.
    pub writes: Vec<Fresh>,
}

/// Everything that a commit writes to a host volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Staging {
    /// New structures into free units.
    pub fresh: Vec<Fresh>,
    /// Copies into free units.
    pub copies: Vec<Copy>,
    /// Blocks in use, in the order in which they are written. No sector is in two groups, but see `interim`.
    pub groups: Vec<Group>,
    /// Sectors that have a third content for a while: written before the group of this position. Their final
    /// content is in that or a later group (a union bitmap).
    pub interim: Vec<(usize, Fresh)>,
    /// Bytes behind the ends of linked files that are to be zeroed: place and length. They are kept in the journal.
    pub slack: Vec<(Offset<Volume>, u32)>,
    /// The sector that keeps everybody out while it stands, and what is there before and after; with sectors that
    /// repair tools would restore it from, which are blanked before it and restored before it is lifted.
    pub quarantine: Quarantine,
    /// Allocation tables and whatever else tells, as a whole, that nobody wrote since: checksummed in the new state.
    pub witnesses: Vec<(Offset<Volume>, u64)>,
    /// All units that the commit fills though they were free: place and bytes. Outside of them, `undo` gives back
    /// every byte.
    pub filled: Vec<(Offset<Volume>, u64)>,
    /// Units of the image that the commit fills: place and bytes, in order. Where there are any, nothing can be undone, and what is
    /// there is written by `moves` alone, under the quarantine.
    pub reused: Vec<(Offset<Volume>, u64)>,
    /// How these are filled: by batch. Each byte of them is written once.
    pub moves: Vec<reuse::Move>,
}

impl Staging {
    /// Where the copies go: place and bytes.
    pub(crate) fn copied_to(&self) -> impl Iterator<Item = (u64, u64)> {
        self.copies.iter().flat_map(|c| c.to.iter().map(|(at, len)| (at.get(), *len)))
    }
    /// Where new structures go: place and bytes.
    pub(crate) fn fresh_at(&self) -> impl Iterator<Item = (u64, u64)> {
        self.fresh.iter().map(|f| (f.at.get(), f.bytes.len() as u64))
    }
    /// So many bytes of a new structure, from one of its bytes on.
    fn part(&self, fresh: usize, from: u64, len: u64) -> &[u8] {
        let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let bytes = self.fresh.get(fresh).map(|f| f.bytes.as_slice()).unwrap_or_default();
        bytes.get(size(from)..size(from.saturating_add(len))).unwrap_or_default()
    }
    /// Says that what new structures and copies take was free.
    pub(crate) fn fill(&mut self) {
        self.filled = merged(self.fresh_at().chain(self.copied_to()));
    }
    /// Says what tells that nobody wrote since: these places, and the new structures.
    pub(crate) fn witness(&mut self, places: impl IntoIterator<Item = (u64, u64)>) {
        self.witnesses = merged(self.fresh_at().chain(places));
    }
}

/// Places in order, neighbours and what overlaps together.
pub(crate) fn merged(places: impl IntoIterator<Item = (u64, u64)>) -> Vec<(Offset<Volume>, u64)> {
    let mut places: Vec<(u64, u64)> = places.into_iter().collect();
    places.sort_unstable();
    let mut out: Vec<(Offset<Volume>, u64)> = Vec::new();
    for (at, len) in places {
        let end = at.saturating_add(len);
        match out.last_mut() {
            Some((start, len)) if start.get().saturating_add(*len) >= at => {
                *len = end.max(start.get().saturating_add(*len)).saturating_sub(start.get());
            }
            _ => out.push((Offset::new(at), len)),
        }
    }
    out
}

/// See host-writers 8.1: the first write and the last one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quarantine {
    /// The switch: place of the sector.
    pub at: Offset<Volume>,
    /// Its contents while the volume is between two states.
    pub closed: Vec<u8>,
    /// Its contents afterwards.
    pub open: Vec<u8>,
    /// Sectors that would give the switch away: place, and contents while it stands. Their contents afterwards are those of before.
    pub also: Vec<Fresh>,
}

/// Opens the streams that are copied.
pub trait Sources: Sync {
    /// The decoded bytes of the stream of this number ([`Copy::entry`]).
    ///
    /// # Errors
    /// Where it can't be read.
    fn open(&self, entry: usize) -> Result<Arc<dyn ReadAt<Stream>>>;
}

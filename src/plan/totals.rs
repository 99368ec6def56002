//! The sums of a plan.

use std::collections::BTreeMap;

use crate::fs::host::{Estimate, NewKind};
use crate::plan::{GuestVolume, Plan, Reason, Verdict};

/// How many, and how much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Streams; for special files, objects.
    pub files: u64,
    /// Their bytes, as they read.
    pub bytes: u64,
}

/// What goes to units of the image where the free units are too few.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reused {
    /// Units of the image that are filled.
    pub units: u64,
    /// Batches, each of which is made durable before the next one.
    pub batches: u64,
    /// Bytes that the journal keeps meanwhile.
    pub kept_bytes: u64,
}

/// The space that a plan takes on its host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Bytes of a host unit.
    pub unit: u64,
    /// Units that are free now.
    pub free_units: u64,
    /// What is needed.
    pub estimate: Estimate,
    /// Units of the image that no linked file has.
    pub image_units: u64,
    /// Where the free units are too few: what would go to the image's, if it then fits.
    pub reused: Option<Reused>,
    /// Whether units of the image may be filled.
    pub may_reuse: bool,
}

impl Space {
    /// Units that must be free.
    pub fn needed_units(&self) -> u64 {
        self.estimate.metadata_units.saturating_add(self.estimate.copy_units)
    }
    /// Bytes that must be free.
    pub fn needed(&self) -> u64 {
        self.needed_units().saturating_mul(self.unit)
    }
    /// Bytes that are free now.
    pub fn free(&self) -> u64 {
        self.free_units.saturating_mul(self.unit)
    }
    /// Whether there is enough.
    pub fn fits(&self) -> bool {
        self.free_suffice() || (self.may_reuse && self.reused.is_some())
    }
    /// Whether the free units are enough.
    pub fn free_suffice(&self) -> bool {
        self.reused.is_none() && self.needed_units() <= self.free_units
    }
    /// What will go to units of the image, if anything.
    pub fn reusing(&self) -> Option<Reused> {
        self.reused.filter(|_| self.may_reuse)
    }
}

/// The sums of a plan. Streams are counted by each of their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Streams that are linked, empty ones among them.
    pub linked: Tally,
    /// Streams that are copied.
    pub copied: Tally,
    /// What is left out.
    pub skipped: Tally,
    /// The last two, and empty files, by reason.
    pub reasons: BTreeMap<Reason, Tally>,
    /// New directories, those of volumes among them.
    pub directories: u64,
    /// Symbolic links and further names of a file.
    pub links: u64,
    /// Entries whose name had to be changed.
    pub renamed: u64,
    /// Space.
    pub space: Space,
}

impl Totals {
    /// The sums of a plan's rows.
    pub(super) fn of(guests: &[GuestVolume], plan: &Plan, space: Space) -> Self {
        let mut totals = Self { space, ..Self::default() };
        for row in &plan.rows {
            let Some(guest) = guests.get(row.volume) else { continue };
            let size = row.stream.map_or(0, |s| guest.tree.stream(s).size);
            let new = row.written.and_then(|at| plan.tree.entries.get(at)).map(|e| &e.kind);
            let renamed = u64::from(row.renamed);
            totals.renamed = totals.renamed.saturating_add(renamed);
            match new {
                Some(NewKind::Symlink(_) | NewKind::HardLink(_) | NewKind::Special(_)) => {
                    totals.links = totals.links.saturating_add(1)
                }
                Some(NewKind::Dir) => {}
                Some(NewKind::File { .. } | NewKind::Stream { .. }) | None => {
                    match row.verdict {
                        Verdict::Link => totals.linked.add(size),
                        Verdict::Copy => totals.copied.add(size),
                        Verdict::Skip => totals.skipped.add(size),
                    }
                    if let Some(reason) = row.reason {
                        totals.reasons.entry(reason).or_default().add(size);
                    }
                }
            }
        }
        let dirs = plan.tree.entries.iter().filter(|e| matches!(e.kind, NewKind::Dir)).count();
        totals.directories = dirs as u64;
        totals
    }
}

impl Tally {
    fn add(&mut self, bytes: u64) {
        self.files = self.files.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

//! The sums of a plan.

use std::collections::BTreeMap;

use crate::fs::host::Estimate;
use crate::plan::Reason;

/// How many, and how much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Streams; for special files, objects.
    pub files: u64,
    /// Their bytes, as they read.
    pub bytes: u64,
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
        self.needed_units() <= self.free_units
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

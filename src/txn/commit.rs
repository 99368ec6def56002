//! A commit, step by step: see "Commit" in `docs/safety.md`.

use crate::error::{Error, Result};
use crate::source::medium::JournalFile;
use crate::txn::{About, Checked, HostVolume, Sources};

/// What a commit, recovery or undo is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Copying, and writing new structures into free units: bytes.
    Filling,
    /// Reading the old contents of blocks in use and of slack: bytes.
    ReadingOld,
    /// Writing and syncing the journal: bytes.
    Sealing,
    /// Comparing free units with their checksums, or blocks with what is expected: bytes.
    Checking,
    /// Writing blocks in use: bytes.
    Switching,
}

/// How far a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The step.
    pub step: Step,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// What a commit has written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Bytes of new structures written into free units.
    pub fresh_bytes: u64,
    /// Bytes of copies, with the zeros behind their ends.
    pub copied_bytes: u64,
    /// Bytes written to blocks in use: both contents of a sector that had an interim one, and the quarantine.
    pub switched_bytes: u64,
    /// Bytes of slack that were not zero and now are.
    pub slack_bytes: u64,
    /// Bytes written to the journal.
    pub journal_bytes: u64,
}

/// Carries `checked` out on `host`, step by step, each durable before the next. `journal` is new and empty
/// ([`crate::source::medium::create_journal`]). `manifest` is sealed into the journal.
///
/// # Errors
/// Before anything in use was touched, the error of what failed to be read, or [`Error::Refused`] where somebody else wrote to the
/// host meanwhile: the journal says that it was taken back. For any write or sync that fails, [`Error::Interrupted`].
pub fn commit(
    checked: Checked,
    host: &HostVolume,
    journal: JournalFile,
    about: About,
    manifest: &[u8],
    sources: &dyn Sources,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Committed> {
    let _ = (checked, host, journal, about, manifest, sources, progress);
    Err(Error::Unsupported("commit".into()))
}

//! Carries a plan out on an unmounted host: from an opened address to a committed journal, and back.

use std::path::Path;

use crate::error::{Error, Result};
use crate::fs::host::HostName;
use crate::plan::{GuestVolume, Plan};
use crate::stack::Stack;

/// What a relink is told beside the address.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The directory of the host to write into, by its names from the root.
    pub into: Vec<HostName>,
    /// `--slack`: whether bytes behind the ends of linked files are zeroed; none for what the host needs.
    pub zero_slack: Option<bool>,
    /// `--discard-rest`: what the address does not name, or the host can't hold, may go with the image.
    pub discard_rest: bool,
    /// `--discard-unreadable`: what can't be read or decoded may go with the image.
    pub discard_unreadable: bool,
}

/// What goes with the image and is written nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Where: the volume's name, empty for the image as a whole.
    pub volume: String,
    /// What, in words.
    pub what: String,
    /// Bytes, where they are known.
    pub bytes: Option<u64>,
}

/// A relink that was planned; nothing is written yet.
pub struct Prepared {
    /// The plan.
    pub plan: Plan,
    /// The guests that its rows speak of.
    pub guests: Vec<GuestVolume>,
    /// Kind of the host's file system (`fat32`), and its volume's name on the disk (`p1`, empty without a table).
    pub host: (&'static str, String),
    /// Path of the image on the host, from its root, `/` between names.
    pub image: Vec<u8>,
    /// What goes with the image and is written nowhere.
    pub lost: Vec<Lost>,
    /// Why [`commit`](Self::commit) would be refused, one sentence each; empty where it would not.
    pub refusals: Vec<String>,
}

/// A relink that is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Bytes written to the host, without those copied or zeroed.
    pub metadata_bytes: u64,
    /// Bytes of files copied.
    pub copied_bytes: u64,
    /// Bytes zeroed.
    pub zeroed_bytes: u64,
    /// Bytes of the journal.
    pub journal_bytes: u64,
}

/// What [`recover`] or [`undo`] found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The relink is finished now.
    Finished,
    /// The host is now as it was before.
    TakenBack,
    /// It was finished already, and nothing was written.
    AlreadyFinished,
    /// It was taken back already, and nothing was written.
    AlreadyTakenBack,
}

/// Told how far a long step is: its name, bytes done, bytes in all.
pub type Progress<'a> = &'a (dyn Fn(&'static str, u64, u64) + Sync);

/// Plans the relink of what `stack` names. Refusals are gathered, not returned as an error: `plan` shows them,
/// `relink` ends with them.
///
/// # Errors
/// [`Error::Usage`] where the image does not lie on a host (`HOST//PATH`), and what reading host and guests meets.
pub fn prepare(stack: &Stack, options: &Options) -> Result<Prepared> {
    let _ = (stack, options);
    Err(Error::Unsupported("relink".into()))
}

impl Prepared {
    /// Carries it out. `journal` must not exist; with `manifest` the manifest is also written there.
    ///
    /// # Errors
    /// [`Error::Refused`] with the first of the refusals, nothing written; [`Error::Interrupted`] where writing failed.
    pub fn commit(&self, journal: &Path, manifest: Option<&Path>, progress: Progress<'_>) -> Result<Done> {
        let _ = (journal, manifest, progress);
        Err(Error::Unsupported("relink".into()))
    }
}

/// After a crash: finishes or takes back, by the journal alone.
///
/// # Errors
/// [`Error::Refused`] where the host is another, is in use, or was changed since.
pub fn recover(journal: &Path, host: Option<&Path>, progress: Progress<'_>) -> Result<Outcome> {
    let _ = (journal, host, progress);
    Err(Error::Unsupported("relink".into()))
}

/// Takes a finished relink back.
///
/// # Errors
/// [`Error::Refused`] where the host is another, is in use, or was changed since.
pub fn undo(journal: &Path, host: Option<&Path>, progress: Progress<'_>) -> Result<Outcome> {
    let _ = (journal, host, progress);
    Err(Error::Unsupported("relink".into()))
}

//! After a crash: forward or back, from the journal alone.

use crate::error::{Error, Result};
use crate::txn::{HostVolume, Journal, Progress};

/// Which way a recovery or an undo went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Recovered {
    /// The commit was finished: the host is in the new state.
    Forward,
    /// The commit was given up: the host is as before, outside of units that were free.
    Back,
    /// An undo was finished: the host is as before, outside of units that were free.
    Undone,
    /// The host was in the new state already, and the journal said so: nothing was written.
    AlreadyDone,
    /// The host was as before already, and the journal said so: nothing was written.
    AlreadyBack,
}

/// Brings a commit or an undo that was interrupted to an end. It reads neither host nor guest as file systems.
///
/// # Errors
/// [`Error::Refused`] with the list where a sector is neither old nor new nor the recorded intermediate: nothing was written.
/// [`Error::Interrupted`] where a write or sync fails. [`Error::Corrupt`] where the journal contradicts the host.
pub fn recover(journal: &mut Journal, host: &HostVolume, progress: &(dyn Fn(Progress) + Sync)) -> Result<Recovered> {
    let _ = (journal, host, progress);
    Err(Error::Unsupported("recover".into()))
}

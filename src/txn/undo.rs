//! Takes a finished commit back.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::extent::{ReadAt, Volume};
use crate::txn::{HostVolume, Journal, Progress, Recovered};

/// Takes a finished commit back. `digest` is handed the host volume with the old blocks laid over it, and gives the digest of the
/// walk of the image that is then there: it must be [`super::About::digest`].
///
/// Gives [`Recovered::Undone`], or [`Recovered::AlreadyBack`] where there was nothing to do.
///
/// # Errors
/// [`Error::Refused`] where the host was changed since, or the commit is not finished (then `recover` comes first):
/// nothing was written. [`Error::Interrupted`] where a write or sync fails: `recover` then finishes the undo.
pub fn undo(
    journal: &mut Journal,
    host: &HostVolume,
    digest: &dyn Fn(Arc<dyn ReadAt<Volume>>) -> Result<[u8; 32]>,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Recovered> {
    let _ = (journal, host, digest, progress);
    Err(Error::Unsupported("undo".into()))
}

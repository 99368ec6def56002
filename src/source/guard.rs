//! Whether it is safe to write to a host, and to keep a journal at a path: who else has them.

use std::path::Path;

use crate::error::{Error, Result};

/// Every reason why the volume of `volume_len` bytes at byte `volume_at` of the file or block device `host` must not be written now: it is
/// mounted, swap, or held by a loop device or process, by whatever name and through whatever device node. Empty where it may. What overlaps
/// only other parts of the disk does not matter.
///
/// # Errors
/// Where it can't be told.
pub fn host(host: &Path, volume_at: u64, volume_len: u64) -> Result<Vec<String>> {
    let _ = (host, volume_at, volume_len);
    Err(Error::Unsupported("guard".into()))
}

/// Every reason why a new journal must not be made at `journal` for that host volume: something is there, it would be lost with the
/// memory, or it would lie on the volume that is written. Empty where it may.
///
/// # Errors
/// Where it can't be told.
pub fn journal(journal: &Path, host: &Path, volume_at: u64, volume_len: u64) -> Result<Vec<String>> {
    let _ = (journal, host, volume_at, volume_len);
    Err(Error::Unsupported("guard".into()))
}

//! The media that are written: a host that is a file or a block device, and the journal.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::source::Medium;

/// A host that was opened for writing, and where the volume begins in it. That is another place than was asked for where
/// a partition of a block device is written through its own device node.
pub struct HostMedium {
    /// The file or device.
    pub medium: Arc<dyn Medium>,
    /// The byte of it at which the volume begins.
    pub volume_at: u64,
}

/// A journal: the file, and its path for messages.
#[derive(Clone)]
pub struct JournalFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its bytes.
    pub medium: Arc<dyn Medium>,
}

/// Opens the file or block device at `path` for writing the volume of `volume_len` bytes at its byte `volume_at`. A regular file is
/// locked; a block device is opened exclusively, by the node of the partition where the kernel knows one, so that
/// other partitions of the disk may be in use and this one may not.
///
/// # Errors
/// [`Error::Refused`] where somebody else has it, [`Error::Io`] where it can't be opened.
pub fn open_host(path: &Path, volume_at: u64, volume_len: u64) -> Result<HostMedium> {
    let _ = (path, volume_at, volume_len);
    Err(Error::Unsupported("medium".into()))
}

/// Makes a new, empty journal at `path`. It and its name are durable after the first [`Medium::sync`].
///
/// # Errors
/// [`Error::Refused`] where something is at that path, [`Error::Io`] where it can't be made.
pub fn create_journal(path: &Path) -> Result<JournalFile> {
    let _ = path;
    Err(Error::Unsupported("medium".into()))
}

/// Opens the journal at `path` to read it and to go on with it.
///
/// # Errors
/// [`Error::NotFound`] where there is none, [`Error::Io`] where it can't be opened, [`Error::Refused`] where another
/// process works with it.
pub fn open_journal(path: &Path) -> Result<JournalFile> {
    let _ = path;
    Err(Error::Unsupported("medium".into()))
}

//! Where bytes come from, and, for hosts, where they go: regular files by a map, block devices and failing media by
//! positioned reads, hosts through [`Medium`].

pub mod guard;
pub mod medium;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use crate::error::Result;
use crate::extent::{Device, ReadAt};

mod file;
mod map;
mod storage;

/// How a source is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct SourceOptions {
    /// Positioned reads also for regular files.
    pub no_mmap: bool,
}

/// Opens a file or block device for reading.
///
/// # Errors
/// Where it can't be opened, or is neither.
pub fn open(path: &Path, options: SourceOptions) -> Result<Arc<dyn ReadAt<Device>>> {
    file::open(path, options)
}

/// A file that was opened beneath a folder.
pub struct Found {
    /// Its bytes.
    pub source: Arc<dyn ReadAt<Device>>,
    /// The number of its file system.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
}

/// Opens the regular file `name` beneath the open folder `dir`, without following a link out of it; `path` is what messages
/// call it.
///
/// # Errors
/// [`crate::error::Error::Io`] with what the system says, `EXDEV` where the name leads out of the folder;
/// [`crate::error::Error::Refused`] for what is no regular file.
pub fn open_beneath(dir: &OwnedFd, name: &Path, path: &Path, options: SourceOptions) -> Result<Found> {
    file::open_beneath(dir, name, path, options)
}

/// A file or device that is written: a host, or a journal. The tests put one in its place that fails, tears, drops or
/// reorders writes.
pub trait Medium: Send + Sync {
    /// Bytes that it has.
    fn len(&self) -> u64;
    /// Whether it has none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Fills `buf` from byte `at` on.
    ///
    /// # Errors
    /// What the system says.
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Fills `buf` from byte `at` on where that needs no wait for a device. False where it would, or where that can't be told; what
    /// `buf` then holds is nothing.
    fn read_at_once(&self, _at: u64, _buf: &mut [u8]) -> bool {
        false
    }
    /// Writes all of `bytes` from byte `at` on; a journal grows by it. Durable only after [`sync`](Self::sync).
    ///
    /// # Errors
    /// What the system says; some of it may have been written.
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes all that was written durable.
    ///
    /// # Errors
    /// What the system says; it is never called again in the hope that it then succeeds.
    fn sync(&self) -> io::Result<()>;
    /// Makes sure that writing this range can't fail for want of space (a host that is a sparse or shared file).
    ///
    /// # Errors
    /// No space.
    fn reserve(&self, at: u64, len: u64) -> io::Result<()> {
        let _ = (at, len);
        Ok(())
    }
}

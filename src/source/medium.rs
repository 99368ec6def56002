//! The media that are written: a host that is a file or a block device, and the journal.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::{Errno, ReadWriteFlags};

use crate::error::{Error, Result};
use crate::source::Medium;
use crate::source::guard::folder_of;
use crate::source::storage::{number, partition, partitions};

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

/// A host that is a regular file or a block device: its length does not change.
struct Host {
    file: File,
    len: u64,
    regular: bool,
}

impl Medium for Host {
    fn len(&self) -> u64 {
        self.len
    }
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, at)
    }
    fn read_at_once(&self, at: u64, buf: &mut [u8]) -> bool {
        let all = buf.len();
        let bufs = &mut [io::IoSliceMut::new(buf)];
        rustix::io::preadv2(&self.file, bufs, at, ReadWriteFlags::NOWAIT) == Ok(all)
    }
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }
    fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
    fn reserve(&self, at: u64, len: u64) -> io::Result<()> {
        if !self.regular || len == 0 {
            return Ok(());
        }
        // Unsharing also allocates. Where a file system knows neither, nothing can be promised, and a write that fails for want
        // of space is one more that recovery brings to an end.
        for flags in [FallocateFlags::UNSHARE_RANGE, FallocateFlags::empty()] {
            match rustix::io::retry_on_intr(|| {
                rustix::fs::fallocate(&self.file, flags | FallocateFlags::KEEP_SIZE, at, len)
            }) {
                Ok(()) => return Ok(()),
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

/// A journal's file.
struct Journal {
    file: File,
    /// Its folder, until its name is durable.
    folder: PathBuf,
    named: AtomicBool,
}

impl Medium for Journal {
    fn len(&self) -> u64 {
        self.file.metadata().map_or(0, |m| m.len())
    }
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, at)
    }
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }
    fn sync(&self) -> io::Result<()> {
        self.file.sync_all()?;
        if !self.named.load(Ordering::Relaxed) {
            File::open(&self.folder)?.sync_all()?;
            self.named.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Opens the file or block device at `path` for writing the volume of `volume_len` bytes at its byte `volume_at`. A
/// regular file is locked; a block device is opened exclusively, by the node of the partition where the kernel knows one,
/// so that other partitions of the disk may be in use and this one may not.
///
/// What was read through the node of the whole disk may be out of date after a commit: read it anew through another open.
///
/// # Errors
/// [`Error::Refused`] where somebody else has it, [`Error::Io`] where it can't be opened.
pub fn open_host(path: &Path, volume_at: u64, volume_len: u64) -> Result<HostMedium> {
    let failed = |path: &Path, e: io::Error| Error::io(format!("opening {} for writing", path.display()), e);
    let metadata = std::fs::metadata(path).map_err(|e| failed(path, e))?;
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    if metadata.is_file() {
        let file = options.open(path).map_err(|e| failed(path, e))?;
        lock(&file, path)?;
        let len = file.metadata().map_err(|e| failed(path, e))?.len();
        return Ok(HostMedium { medium: Arc::new(Host { file, len, regular: true }), volume_at });
    }
    if !metadata.file_type().is_block_device() {
        return Err(Error::Refused(format!("{} is neither a regular file nor a block device", path.display())));
    }
    let (node, volume_at) = node_of(number(metadata.rdev()), path, volume_at, volume_len);
    // Without O_CREAT, the kernel takes O_EXCL on a block device for: nobody else has claimed it, and nobody may.
    options.custom_flags(rustix::fs::OFlags::EXCL.bits().cast_signed());
    let opened = options.open(&node).and_then(|mut file| {
        let len = file.seek(SeekFrom::End(0))?;
        Ok(Host { file, len, regular: false })
    });
    match opened {
        Ok(host) => Ok(HostMedium { medium: Arc::new(host), volume_at }),
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => Err(Error::Refused(format!(
            "{} is in use: it, or a partition that the kernel can't tell from the volume, is mounted or held",
            node.display()
        ))),
        Err(e) => Err(failed(&node, e)),
    }
}

/// The device node by which a volume is written, and the place of the volume in it.
fn node_of(device: (u32, u32), path: &Path, volume_at: u64, volume_len: u64) -> (PathBuf, u64) {
    for (part, name) in partitions(device) {
        let node = Path::new("/dev").join(name);
        let is_node =
            std::fs::metadata(&node).is_ok_and(|m| m.file_type().is_block_device() && number(m.rdev()) == part);
        if is_node
            && let Some(place) = partition(part)
            && place.start == volume_at
            && place.len >= volume_len
        {
            return (node, 0);
        }
    }
    (path.into(), volume_at)
}

fn lock(file: &File, path: &Path) -> Result<()> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => {
            Err(Error::Refused(format!("{} is locked by another process that works with it", path.display())))
        }
        // File systems without locks have none to respect.
        _ => Ok(()),
    }
}

/// Makes a new, empty journal at `path`. It and its name are durable after the first [`Medium::sync`].
///
/// # Errors
/// [`Error::Refused`] where something is at that path, [`Error::Io`] where it can't be made.
pub fn create_journal(path: &Path) -> Result<JournalFile> {
    // The old contents of blocks are as private as the host is.
    let made = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
    let file = made.map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => Error::Refused(format!("the journal's path {} exists already", path.display())),
        _ => Error::io(format!("making the journal {}", path.display()), e),
    })?;
    lock(&file, path)?;
    let journal = Journal { file, folder: folder_of(path).into(), named: AtomicBool::new(false) };
    Ok(JournalFile { path: path.into(), medium: Arc::new(journal) })
}

/// Opens the journal at `path` to read it and to go on with it.
///
/// # Errors
/// [`Error::NotFound`] where there is none, [`Error::Io`] where it can't be opened, [`Error::Refused`] where another
/// process works with it.
pub fn open_journal(path: &Path) -> Result<JournalFile> {
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Error::NotFound(format!("no journal at {}", path.display())),
        _ => Error::io(format!("opening the journal {}", path.display()), e),
    })?;
    if !file.metadata().is_ok_and(|m| m.is_file()) {
        return Err(Error::Unsupported(format!("{}: expected a journal, which is a regular file", path.display())));
    }
    lock(&file, path)?;
    let journal = Journal { file, folder: folder_of(path).into(), named: AtomicBool::new(true) };
    Ok(JournalFile { path: path.into(), medium: Arc::new(journal) })
}

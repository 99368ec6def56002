//! The destination: one directory, and nothing outside of it. Directories are opened beneath it without following a link,
//! names are single names below an open directory, and new files are made only where nothing is.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::ground::Ground;
use super::select::{DirAt, Selection};
use super::sys;
use crate::error::{Error, Result};
use crate::fs::host::NameRules;

/// Directories that are held open.
const OPEN: usize = 512;

/// An open directory. The destination keeps it open for as long as anybody has it.
pub(super) type DirFd = Arc<OwnedFd>;

/// The directory that is written to, and what its file system can hold.
pub(super) struct Dest {
    root: DirFd,
    /// Whether this run made it.
    pub made: bool,
    /// Which names it can hold.
    pub names: NameRules,
    /// Bytes of a block.
    pub block: u64,
    /// Whether it has extended attributes of users.
    pub user_xattrs: bool,
    /// Whether it keeps times to the nanosecond.
    pub fine_times: bool,
    /// Whether a write that can't be kept is only said when the file is synced (network file systems).
    pub sync_each: bool,
    /// Whether a default access list of the directory changes the permissions of new files.
    pub default_acl: bool,
    /// The kind of its file system, as `statfs` has it.
    pub magic: i64,
    dev: u64,
    cache: Mutex<HashMap<DirAt, DirFd>>,
}

/// `f_type` of file systems that hold any name but those with NUL or `/`: ext, XFS, btrfs, tmpfs, F2FS, OpenZFS, overlay, NFS, bcachefs.
const ANY_NAME: [i64; 9] =
    [0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994, 0xF2F5_2010, 0x2FC1_2FC1, 0x794C_7630, 0x6969, 0xCA45_1A4E];
/// `f_type` of those that are asked to sync each file: NFS, CIFS, SMB2, FUSE.
const REMOTE: [i64; 4] = [0x6969, 0xFF53_4D42, 0xFE53_4D42, 0x6573_5546];
/// `f_type` of XFS.
pub(super) const XFS: i64 = 0x5846_5342;

impl Dest {
    /// Opens `path`, and makes it where it is absent.
    ///
    /// # Errors
    /// [`Error::Io`] where it can't be made or is no directory.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |doing: &str, e: std::io::Error| Error::io(format!("{doing} {}", path.display()), e);
        let made = match std::fs::symlink_metadata(path) {
            Ok(_) => false,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                std::fs::create_dir_all(path).map_err(|e| failed("making", e))?;
                true
            }
            Err(e) => return Err(failed("opening", e)),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root =
            rustix::fs::open(path, flags, Mode::empty()).map_err(|e| failed("opening the directory", e.into()))?;
        let stat = rustix::fs::fstat(&root).map_err(|e| failed("opening", e.into()))?;
        let system = rustix::fs::fstatfs(&root).map_err(|e| failed("opening", e.into()))?;
        #[expect(clippy::useless_conversion, reason = "its type differs between machines")]
        let magic = i64::from(system.f_type);
        let mut dest = Self {
            root: Arc::new(root),
            made,
            names: NameRules::Posix,
            block: u64::try_from(system.f_bsize).unwrap_or(4096).max(1),
            user_xattrs: false,
            fine_times: true,
            sync_each: REMOTE.contains(&magic),
            default_acl: false,
            magic,
            dev: stat.st_dev,
            cache: Mutex::default(),
        };
        dest.probe();
        Ok(dest)
    }
    /// Finds out what the file system holds, by a file without a name, or one that is removed at once.
    fn probe(&mut self) {
        let mut acl = [0u8; 1];
        let acl = rustix::fs::fgetxattr(&self.root, "system.posix_acl_default", &mut acl[..]);
        self.default_acl = matches!(acl, Ok(_) | Err(Errno::RANGE));
        if !ANY_NAME.contains(&self.magic) {
            let name = format!(".unimage {}:?\u{1}", std::process::id());
            match self.create(&self.root, name.as_bytes(), Mode::RUSR | Mode::WUSR) {
                Ok(_) => drop(rustix::fs::unlinkat(&self.root, name.as_str(), AtFlags::empty())),
                Err(_) => self.names = NameRules::Win32,
            }
        }
        let Ok(file) = self.nameless() else { return };
        self.user_xattrs = rustix::fs::fsetxattr(&file, "user.unimage", b"1", XattrFlags::empty()).is_ok();
        let time = Timespec { tv_sec: 1_000_000_000, tv_nsec: 123_456_789 };
        let times = Timestamps { last_access: time, last_modification: time };
        self.fine_times = rustix::fs::futimens(&file, &times).is_ok()
            && rustix::fs::fstat(&file).is_ok_and(|s| s.st_mtime_nsec == 123_456_789);
    }
    /// A file for a probe, which goes when it is closed.
    fn nameless(&self) -> Result<File, Errno> {
        let mode = Mode::RUSR | Mode::WUSR;
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        if let Ok(fd) = rustix::fs::openat(&self.root, ".", flags | OFlags::TMPFILE, mode) {
            return Ok(File::from(fd));
        }
        let name = format!(".unimage {}", std::process::id());
        let fd = rustix::fs::openat(&self.root, name.as_str(), flags | OFlags::CREATE | OFlags::EXCL, mode)?;
        rustix::fs::unlinkat(&self.root, name.as_str(), AtFlags::empty())?;
        Ok(File::from(fd))
    }
    /// Why blocks of `ground` can't be shared with files here; none where they can. Tried with one block.
    pub fn cannot_share(&self, ground: &Ground) -> Option<String> {
        if !ground.regular {
            return Some("the image lies on a device, not in a file whose blocks could be shared".into());
        }
        if ground.len < self.block {
            return Some("the image is shorter than a block".into());
        }
        let shared = self.nameless().and_then(|file| sys::clone_range(&ground.file, 0, self.block, &file, 0));
        let errno = shared.err()?;
        let same = rustix::fs::fstat(&ground.file).is_ok_and(|s| s.st_dev == self.dev);
        Some(match errno {
            Errno::XDEV if same => "image and destination are on different mounts of one file system".into(),
            Errno::XDEV => "image and destination are on different file systems".into(),
            Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS if same => {
                "the destination's file system can't share blocks between files".into()
            }
            Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS => {
                "image and destination are on different file systems".into()
            }
            Errno::INVAL if same => {
                "the image file can't be shared from (on btrfs: it is marked `nodatacow` and the destination is not)"
                    .into()
            }
            other => format!("sharing a block with the destination failed: {other}"),
        })
    }
    /// An open directory of the selection.
    ///
    /// # Errors
    /// What the system says: it is not there, or something on the way is no directory.
    pub fn dir(&self, selection: &Selection, at: DirAt) -> Result<DirFd, Errno> {
        let mut missing = Vec::new();
        let mut fd = None;
        let mut up = at;
        {
            let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            while up != DirAt::ROOT {
                if let Some(known) = cache.get(&up) {
                    fd = Some(Arc::clone(known));
                    break;
                }
                missing.push(up);
                up = selection.dir_above(up);
            }
        }
        let mut fd = fd.unwrap_or_else(|| Arc::clone(&self.root));
        for at in missing.into_iter().rev() {
            fd = Arc::new(open_below(&fd, selection.dir_name(at))?);
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            if cache.len() >= OPEN {
                cache.clear();
            }
            cache.insert(at, Arc::clone(&fd));
        }
        Ok(fd)
    }
    /// Makes a file that is not there.
    pub fn create(&self, dir: impl AsFd, name: &[u8], mode: Mode) -> Result<File, Errno> {
        // Exclusive: a link of that name is not followed, it is what is there already.
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(dir, name, flags, mode).map(File::from)
    }
}

/// Opens a directory by one name below another, no link followed.
pub(super) fn open_below(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    loop {
        match rustix::fs::openat2(&dir, name, flags, Mode::empty(), how) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

/// When something was made, where its file system keeps that; else when it was changed last. Seconds and nanoseconds.
pub(super) fn made_at(dir: impl AsFd, name: &[u8]) -> Result<(i64, u32), Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    let seen = rustix::fs::statx(dir, &name, flags, StatxFlags::BTIME | StatxFlags::CTIME)?;
    let time = if seen.stx_mask & StatxFlags::BTIME.bits() != 0 { seen.stx_btime } else { seen.stx_ctime };
    Ok((time.tv_sec, time.tv_nsec))
}

/// What is there at a name, no link followed; none where nothing is.
pub(super) fn kind_of(dir: impl AsFd, name: &[u8]) -> Option<FileType> {
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    Some(FileType::from_raw_mode(stat.st_mode))
}

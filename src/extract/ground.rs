//! The files and devices of this machine that an image lies in, to be read and shared from by position.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{Advice, FileType, Mode, OFlags};

use crate::error::{Error, Result};
use crate::extent::LayerId;
use crate::stack::Stack;

/// One of them.
#[derive(Debug)]
pub(super) struct Ground {
    layer: LayerId,
    /// Open for reading.
    pub file: File,
    path: PathBuf,
    /// Bytes.
    pub len: u64,
    /// Whether it is a regular file: only these have blocks that can be shared, and bytes that the kernel copies by itself.
    pub regular: bool,
}

/// All of them. A stored extent's file is found by its layer.
#[derive(Debug)]
pub(super) struct Grounds(Vec<Ground>);

impl Grounds {
    /// Those of an opened address.
    pub fn open(stack: &Stack) -> Result<Self> {
        let level = stack.levels.first().ok_or_else(|| Error::NotFound("nothing was opened".into()))?;
        let path = stack.address.source.clone();
        let opening = |e: rustix::io::Errno| Error::io(format!("opening {}", path.display()), e.into());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd: OwnedFd = rustix::fs::open(&path, flags, Mode::empty()).map_err(opening)?;
        let stat = rustix::fs::fstat(&fd).map_err(opening)?;
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        let ground = Ground { layer: level.device.id(), file: File::from(fd), path, len: level.device.len(), regular };
        Ok(Self(vec![ground]))
    }
    /// The position of a layer's file; none for a layer that lies in no file of its own.
    pub fn find(&self, layer: LayerId) -> Option<usize> {
        self.0.iter().position(|g| g.layer == layer)
    }
    /// The file at a position.
    pub fn get(&self, at: usize) -> Option<&Ground> {
        self.0.get(at)
    }
    /// All.
    pub fn iter(&self) -> impl Iterator<Item = &Ground> {
        self.0.iter()
    }
}

impl Ground {
    /// Fills `buf` from `at` on by positioned reads.
    pub fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let mut at = at;
        let mut rest = buf;
        while !rest.is_empty() {
            match rustix::io::pread(&self.file, &mut *rest, at) {
                Ok(0) => return Err(self.failed(at, io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => {
                    at = at.saturating_add(n as u64);
                    rest = rest.get_mut(n..).unwrap_or_default();
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(self.failed(at, e.into())),
            }
        }
        Ok(())
    }
    fn failed(&self, at: u64, cause: io::Error) -> Error {
        Error::io(format!("{}: reading at {at:#x}", self.path.display()), cause)
    }
    /// Says that these bytes will be wanted soon. It is only a hint.
    pub fn soon(&self, at: u64, len: u64) {
        if let Some(len) = std::num::NonZeroU64::new(len) {
            let _ = rustix::fs::fadvise(&self.file, at, Some(len), Advice::WillNeed);
        }
    }
}

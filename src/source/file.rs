//! A regular file or block device of this machine, opened for reading.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, SeekFrom};

use super::SourceOptions;
use crate::error::{Error, Result};
use crate::extent::{Device, LayerId, Offset, ReadAt};

/// A file or block device.
pub(super) struct FileSource {
    id: LayerId,
    file: File,
    path: PathBuf,
    len: u64,
}

/// Opens `path` read-only; refuses what is neither a regular file nor a block device.
pub(super) fn open(path: &Path, options: SourceOptions) -> Result<Arc<dyn ReadAt<Device>>> {
    let _ = options;
    let opening = || format!("opening {}", path.display());
    // Without NONBLOCK, opening a pipe would wait for a writer.
    let fd: OwnedFd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
        .map_err(|e| Error::io(opening(), e.into()))?;
    let stat = rustix::fs::fstat(&fd).map_err(|e| Error::io(opening(), e.into()))?;
    let len = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => u64::try_from(stat.st_size).unwrap_or_default(),
        FileType::BlockDevice => rustix::fs::seek(&fd, SeekFrom::End(0)).map_err(|e| Error::io(opening(), e.into()))?,
        other => {
            let what = match other {
                FileType::Directory => "a directory",
                FileType::Fifo => "a pipe",
                FileType::CharacterDevice => "a character device",
                FileType::Socket => "a socket",
                _ => "something else",
            };
            return Err(Error::Unsupported(format!(
                "{}: expected an image file or a block device, it is {what}",
                path.display()
            )));
        }
    };
    Ok(Arc::new(FileSource { id: LayerId::fresh(), file: File::from(fd), path: path.to_owned(), len }))
}

impl FileSource {
    fn failed(&self, at: u64, len: usize, cause: io::Error) -> Error {
        let at = Offset::<Device>::new(at);
        Error::io(format!("{}: reading {len} bytes at {at}", self.path.display()), cause)
    }
    /// Positioned reads until `buf` is full. An error names the place up to which it went well.
    fn pread(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let mut at = at;
        let mut rest = buf;
        while !rest.is_empty() {
            let want = rest.len();
            match rustix::io::pread(&self.file, &mut *rest, at) {
                Ok(0) => return Err(self.failed(at, want, io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => {
                    at = at.saturating_add(n as u64);
                    rest = rest.get_mut(n..).unwrap_or_default();
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(self.failed(at, want, e.into())),
            }
        }
        Ok(())
    }
}

impl ReadAt<Device> for FileSource {
    fn id(&self) -> LayerId {
        self.id
    }
    fn len(&self) -> u64 {
        self.len
    }
    fn read_at(&self, at: Offset<Device>, buf: &mut [u8]) -> Result<()> {
        if at.checked_add(buf.len() as u64).is_none_or(|end| end.get() > self.len) {
            return Err(Error::past_end(at, buf.len() as u64, self.len));
        }
        self.pread(at.get(), buf)
    }
}

//! A regular file or block device of this machine, opened for reading.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, SeekFrom};

use super::map::FileMap;
use super::{Found, SourceOptions};
use crate::error::{Error, Result};
use crate::extent::{Device, LayerId, Offset, ReadAt};

/// A file or block device.
pub(super) struct FileSource {
    id: LayerId,
    file: File,
    path: PathBuf,
    len: u64,
    /// Of a regular file, where it could be mapped and may be.
    map: Option<FileMap>,
}

/// Reads of more bytes than this don't go through the map: copying them by a system call costs less than a fault for every
/// few pages.
const MAX_MAPPED: usize = 64 << 10;

/// Opens `path` read-only; refuses what is neither a regular file nor a block device.
pub(super) fn open(path: &Path, options: SourceOptions) -> Result<Arc<dyn ReadAt<Device>>> {
    let opening = || format!("opening {}", path.display());
    // Without NONBLOCK, opening a pipe would wait for a writer.
    let fd: OwnedFd = rustix::fs::open(path, FLAGS, Mode::empty()).map_err(|e| Error::io(opening(), e.into()))?;
    let stat = rustix::fs::fstat(&fd).map_err(|e| Error::io(opening(), e.into()))?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let len = match kind {
        FileType::RegularFile => u64::try_from(stat.st_size).unwrap_or_default(),
        FileType::BlockDevice => rustix::fs::seek(&fd, SeekFrom::End(0)).map_err(|e| Error::io(opening(), e.into()))?,
        other => {
            return Err(Error::Unsupported(format!(
                "{}: expected an image file or a block device, it is {}",
                path.display(),
                word(other)
            )));
        }
    };
    Ok(source(fd, path, len, kind == FileType::RegularFile && !options.no_mmap))
}

/// How files are opened.
const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// Opens `name` beneath the folder `dir` without leaving it by any link; `path` is what messages call it. The device and inode
/// number come with it.
///
/// # Errors
/// [`Error::Io`] with what the system says (`EXDEV` where it leads out of the folder), [`Error::Refused`] for what is no
/// regular file.
pub(super) fn open_beneath(dir: &OwnedFd, name: &Path, path: &Path, options: SourceOptions) -> Result<Found> {
    let opening = |e: rustix::io::Errno| Error::io(format!("opening {}", path.display()), e.into());
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let fd = loop {
        match rustix::fs::openat2(dir, name, FLAGS, Mode::empty(), how) {
            // Somebody renamed something on the way meanwhile.
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            other => break other.map_err(opening)?,
        }
    };
    let stat = rustix::fs::fstat(&fd).map_err(opening)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind != FileType::RegularFile {
        return Err(Error::Refused(format!("{}: expected a regular file, it is {}", path.display(), word(kind))));
    }
    let len = u64::try_from(stat.st_size).unwrap_or_default();
    let source = source(fd, path, len, !options.no_mmap);
    Ok(Found { source, device: stat.st_dev, inode: stat.st_ino })
}

fn word(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "a directory",
        FileType::Fifo => "a pipe",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        FileType::Socket => "a socket",
        _ => "something else",
    }
}

fn source(fd: OwnedFd, path: &Path, len: u64, mapped: bool) -> Arc<dyn ReadAt<Device>> {
    let file = File::from(fd);
    let map = if mapped { FileMap::new(&file, len) } else { None };
    Arc::new(FileSource { id: LayerId::fresh(), file, path: path.to_owned(), len, map })
}

impl FileSource {
    fn failed(&self, at: u64, len: usize, cause: io::Error) -> Error {
        let at = Offset::<Device>::new(at);
        Error::io(format!("{}: reading {len} bytes at {at}", self.path.display()), cause)
    }
    /// Copies out of the map where there is one and it can be believed.
    ///
    /// A page that holds the end of a file reads as zeros behind it, without a fault. So where a file was cut since it
    /// was opened, bytes that are no longer there could pass for zeros. Where a read ends with zeros, the next page tells
    /// by a fault whether the file still goes on, and at the end of the map the system does.
    fn copy(&self, at: u64, buf: &mut [u8]) -> bool {
        let end = at.saturating_add(buf.len() as u64);
        let there = |map: &FileMap| {
            map.goes_on_behind(end).unwrap_or_else(|| self.file.metadata().is_ok_and(|m| m.len() >= end))
        };
        self.map.as_ref().is_some_and(|map| map.copy(at, buf) && (buf.last() != Some(&0) || there(map)))
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
    fn file(&self) -> Option<&File> {
        Some(&self.file)
    }
    fn read_at(&self, at: Offset<Device>, buf: &mut [u8]) -> Result<()> {
        if at.checked_add(buf.len() as u64).is_none_or(|end| end.get() > self.len) {
            return Err(Error::past_end(at, buf.len() as u64, self.len));
        }
        if buf.len() <= MAX_MAPPED && self.copy(at.get(), buf) {
            return Ok(());
        }
        self.pread(at.get(), buf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::atomic::{AtomicBool, Ordering};

    const MAPPED: SourceOptions = SourceOptions { no_mmap: false };
    const POSITIONED: SourceOptions = SourceOptions { no_mmap: true };

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }
    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    #[test]
    fn both_ways_read_the_same() {
        let bytes = pattern(200_001);
        let file = file(&bytes);
        for options in [MAPPED, POSITIONED] {
            let source = open(file.path(), options).unwrap();
            assert_eq!(source.len(), 200_001);
            for (at, len) in [(0, 1), (4095, 2), (199_999, 2), (0, 200_001), (200_001, 0), (1000, 70_000)] {
                assert_eq!(source.read_vec(Offset::new(at as u64), len).unwrap(), &bytes[at..at + len]);
            }
            for (at, len) in [(200_001, 1), (200_000, 2), (u64::MAX, 1), (u64::MAX, 200)] {
                let error = source.read_vec(Offset::new(at), len).unwrap_err();
                assert!(matches!(error, Error::Io { .. }), "{error}");
                let error = source.read_at(Offset::new(at), &mut vec![0; len]).unwrap_err();
                assert!(error.to_string().contains(&format!("{at:#x}")), "{error}");
            }
        }
    }

    /// Without the handler this test's process would end by a signal.
    #[test]
    fn a_file_cut_under_the_map_is_an_error_with_its_offset() {
        let bytes = pattern(1 << 20);
        let file = file(&bytes);
        let source = open(file.path(), MAPPED).unwrap();
        let other = open(file.path(), MAPPED).unwrap();
        file.as_file().set_len(10_000).unwrap();
        for _ in 0..2 {
            let error = source.read_vec(Offset::new(0x80000), 100).unwrap_err();
            assert!(error.to_string().contains("0x80000"), "{error}");
            assert!(matches!(error, Error::Io { .. }));
            // The page was cut in its middle: the map has zeros there, the file has nothing.
            assert!(source.read_vec(Offset::new(9_990), 100).is_err());
            assert_eq!(source.read_vec(Offset::new(9_000), 1000).unwrap(), &bytes[9000..10_000]);
        }
        assert_eq!(other.read_vec(Offset::new(8_000), 500).unwrap(), &bytes[8000..8500]);
        let zeros_of_the_cut_page = other.read_vec(Offset::new(9_990), 100);
        assert!(zeros_of_the_cut_page.is_err(), "bytes beyond the end of the file that it now is");
    }

    #[test]
    fn readers_in_many_threads_never_take_zeros_for_bytes() {
        let bytes = vec![0xA5; 8 << 20];
        let file = file(&bytes);
        let source = open(file.path(), MAPPED).unwrap();
        let cut = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let (source, cut) = (&source, &cut);
                scope.spawn(move || {
                    for round in 0.. {
                        let done = cut.load(Ordering::SeqCst);
                        for page in 0..512u64 {
                            let mut buf = [0; 4096];
                            let at = (page * 37 + thread) % 2048 * 4096;
                            if source.read_at(Offset::new(at), &mut buf).is_ok() {
                                assert!(buf.iter().all(|b| *b == 0xA5), "zeros at {at}, round {round}");
                            }
                        }
                        if done {
                            break;
                        }
                    }
                });
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
            file.as_file().set_len(1 << 20).unwrap();
            cut.store(true, Ordering::SeqCst);
        });
        assert!(source.read_vec(Offset::new(4 << 20), 1).is_err());
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).unwrap();
        for (path, word) in
            [(dir.path(), "a directory"), (&pipe, "a pipe"), (Path::new("/dev/null"), "character device")]
        {
            let error = open(path, MAPPED).err().unwrap();
            assert!(error.to_string().contains(word), "{error}");
        }
        let gone = open(&dir.path().join("gone"), MAPPED).err().unwrap();
        assert!(gone.to_string().contains("gone") && gone.exit_code() == 3, "{gone}");
    }
}

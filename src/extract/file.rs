//! Writing one file: its stretches in order, shared, copied or decoded, each byte read once.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::io::Errno;

use super::ground::Ground;
use super::hash::Hashes;
use super::outcome::{Lost, Method, Outcome, Why};
use super::recipe::{How, Part};
use super::run::Run;
use super::select::Source;
use super::sys;
use crate::extent::{Layer, Offset, Stream};
use crate::fs::StreamId;

/// Bytes that are read and written at a time.
pub(super) const CHUNK: usize = 256 << 10;
/// Bytes that are written out of the page cache at a time; what is shorter than the least of them is read and written.
const MAPPED: usize = 1 << 20;
const MAPPED_LEAST: u64 = 64 << 10;
/// Bytes behind those at work that are asked to be read ahead.
const AHEAD: u64 = 4 << 20;
/// The smallest piece that is tried on its own where a larger one can't be read: a sector.
const SECTOR: usize = 512;
/// The same where bytes have to be decoded: each try decodes a whole unit.
const DECODED: usize = 4096;
/// Unreadable stretches that are listed of one file; the last one then covers the rest.
const LISTED: usize = 1000;
/// Bytes of holes that are hashed of one file: what has more would take longer than anybody waits.
const HASHED_HOLES: u64 = 64 << 30;

/// Why a file is not there.
#[derive(Debug)]
pub(super) enum Stop {
    /// The destination said no.
    Write(Errno),
    /// `--link always`, and sharing failed.
    NotShareable(String),
    /// The run is to end.
    Interrupted,
}

impl From<Errno> for Stop {
    fn from(e: Errno) -> Self {
        Self::Write(e)
    }
}

impl Stop {
    /// What it means for the file.
    pub fn outcome(&self) -> (Outcome, String) {
        let (method, why, text) = match self {
            Self::Write(e) => {
                let why = match *e {
                    Errno::NOSPC | Errno::DQUOT => Why::NoSpace,
                    Errno::FBIG => Why::TooLarge,
                    Errno::EXIST => {
                        return (Outcome::of(Method::Skipped, Some(Why::Exists)), "it is there already".into());
                    }
                    _ => Why::WriteFailed,
                };
                (Method::Failed, why, e.to_string())
            }
            Self::NotShareable(text) => (Method::Skipped, Why::NotShareable, text.clone()),
            Self::Interrupted => (Method::Pending, Why::Interrupted, String::new()),
        };
        (Outcome::of(method, Some(why)), text)
    }
}

/// Bytes of several ground files that were read ahead: for each, where they begin, and where in the buffer they are; sorted.
#[derive(Default)]
pub(super) struct Window {
    /// Ground file, its byte, bytes, place in the buffer; and whether it could be read.
    pub reads: Vec<(usize, u64, usize, usize, bool)>,
    /// The bytes.
    pub buf: Vec<u8>,
}

impl Window {
    /// The bytes of a stretch; none where it was not read.
    fn get(&self, ground: usize, at: u64, len: usize) -> Option<&[u8]> {
        let n = self.reads.partition_point(|(g, start, ..)| (*g, *start) <= (ground, at)).checked_sub(1)?;
        let (g, start, have, place, good) = *self.reads.get(n)?;
        let skip = usize::try_from(at.checked_sub(start)?).ok()?;
        if g != ground || !good || skip.checked_add(len)? > have {
            return None;
        }
        let from = place.checked_add(skip)?;
        self.buf.get(from..from.checked_add(len)?)
    }
}

/// Reads a piece: given the place of a buffer in the file, bytes from there on, and the piece.
type ReadPiece<'a> = &'a dyn Fn(u64, u64, &mut [u8]) -> crate::error::Result<()>;

/// One stream on its way into a file.
pub(super) struct Copy<'r> {
    pub run: &'r Run<'r>,
    pub source: &'r Source,
    pub stream: StreamId,
    pub size: u64,
    /// Opened when bytes are needed that lie nowhere as they are; none after that failed.
    reader: Option<Option<Arc<dyn Layer<Stream>>>>,
    hashes: Option<Hashes>,
    /// What becomes of it.
    pub outcome: Outcome,
    /// Stretches that could not be read.
    pub bad: Vec<(u64, u64)>,
    /// What was said of the first of them, and of the first sharing that failed.
    pub message: String,
    no_share: bool,
}

impl<'r> Copy<'r> {
    pub fn new(run: &'r Run<'r>, source: &'r Source, stream: StreamId, parts: &[Part]) -> Self {
        let size = source.tree.stream(stream).size;
        let holes = parts.iter().filter(|p| p.how == How::Hole).fold(0u64, |n, p| n.saturating_add(p.len));
        let mut outcome = Outcome::of(Method::Copy, None);
        let mut hashes = None;
        if !run.options.hashes.is_empty() {
            if holes <= HASHED_HOLES {
                hashes = Some(Hashes::new(&run.options.hashes));
            } else {
                outcome.lost.add(Lost::HASH);
            }
        }
        let (reader, bad, message, no_share) = (None, Vec::new(), String::new(), false);
        Self { run, source, stream, size, reader, hashes, outcome, bad, message, no_share }
    }

    /// Writes all parts into `file`, which is empty. Stretches that can't be read become zeros and are noted.
    pub fn write(
        &mut self,
        file: &File,
        parts: &[Part],
        window: Option<&Window>,
        scratch: &mut Vec<u8>,
    ) -> Result<(), Stop> {
        // Bytes that the file has so far.
        let mut reached = 0u64;
        for part in parts {
            let end = part.at.saturating_add(part.len).min(self.size);
            match part.how {
                How::Hole => {
                    if let Some(hashes) = &mut self.hashes {
                        hashes.zeros(end.saturating_sub(part.at));
                    }
                    continue;
                }
                How::Share(ground, at) if !self.no_share && self.share(file, *part, ground, at)? => {
                    reached = part.at.saturating_add(part.len);
                    if self.hashes.is_some() {
                        self.bytes(None, *part, end, window, scratch)?;
                    }
                    continue;
                }
                _ => {}
            }
            self.outcome.extents = self.outcome.extents.saturating_add(1);
            self.bytes(Some(file), *part, end, window, scratch)?;
            reached = end;
        }
        if reached != self.size {
            rustix::fs::ftruncate(file, self.size)?;
        }
        self.end(parts);
        Ok(())
    }

    /// Shares one part; false where that failed and it is to be copied.
    fn share(&mut self, file: &File, part: Part, ground: usize, at: u64) -> Result<bool, Stop> {
        let Some(ground) = self.run.grounds.get(ground) else { return Ok(false) };
        let shared = loop {
            match sys::clone_range(&ground.file, at, part.len, file, part.at) {
                Err(Errno::INTR) => {}
                other => break other,
            }
        };
        match shared {
            Ok(()) => {
                let bytes = part.len.min(self.size.saturating_sub(part.at));
                self.outcome.shared = self.outcome.shared.saturating_add(bytes);
                self.outcome.extents = self.outcome.extents.saturating_add(1);
                Ok(true)
            }
            Err(e @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => Err(e.into()),
            Err(e) if self.run.options.link == super::Link::Always => Err(Stop::NotShareable(format!("sharing: {e}"))),
            Err(_) => {
                self.no_share = true;
                Ok(false)
            }
        }
    }

    /// The bytes of a part up to `end`, hashed, and written where there is a file to write to.
    fn bytes(
        &mut self,
        file: Option<&File>,
        part: Part,
        end: u64,
        window: Option<&Window>,
        scratch: &mut Vec<u8>,
    ) -> Result<(), Stop> {
        let mut at = part.at;
        while at < end {
            let len = usize::try_from(end.saturating_sub(at)).map_or(CHUNK, |n| n.min(CHUNK));
            let skip = at.saturating_sub(part.at);
            let ready = match part.how {
                How::Share(g, from) | How::Copy(g, from) => {
                    window.and_then(|w| w.get(g, from.saturating_add(skip), len))
                }
                _ => None,
            };
            let ready = match ready {
                Some(ready) => ready,
                None => {
                    if self.run.stopped() {
                        return Err(Stop::Interrupted);
                    }
                    if let (None, Some(file), How::Copy(g, from)) = (&self.hashes, file, part.how)
                        && let Some(ground) = self.run.grounds.get(g)
                        && let Some(done) = self.directly(ground, from.saturating_add(skip), file, at, end)
                    {
                        at = at.saturating_add(done);
                        self.outcome.copied = self.outcome.copied.saturating_add(done);
                        continue;
                    }
                    if scratch.len() < len {
                        scratch.resize(len, 0);
                    }
                    let Some(room) = scratch.get_mut(..len) else { break };
                    self.read(part, at, room);
                    room
                }
            };
            if let Some(hashes) = &mut self.hashes {
                hashes.update(ready);
            }
            if let Some(file) = file {
                write_at(file, ready, at)?;
                self.outcome.copied = self.outcome.copied.saturating_add(len as u64);
            }
            self.run.done_bytes(len as u64);
            at = at.saturating_add(len as u64);
        }
        Ok(())
    }

    /// Copies bytes that lie as they are in a file, without taking them into memory of ours; none where that can't be, and they are
    /// to be read and written: reading tells which bytes are bad, writing why it can't be done.
    fn directly(&self, ground: &Ground, from: u64, file: &File, at: u64, end: u64) -> Option<u64> {
        let left = end.saturating_sub(at);
        if !ground.regular || left < MAPPED_LEAST {
            return None;
        }
        let done = match self.by_kernel(ground, from, file, at, left) {
            Some(done) => done,
            None => {
                let len = usize::try_from(left).map_or(MAPPED, |n| n.min(MAPPED));
                let behind = left.saturating_sub(len as u64);
                if behind > 0 {
                    ground.soon(from.saturating_add(len as u64), behind.min(AHEAD));
                }
                sys::write_from(&ground.file, from, len, file, at).ok().filter(|n| *n > 0)? as u64
            }
        };
        self.run.done_bytes(done);
        Some(done)
    }
    /// Lets the kernel copy; none where it can't, or has no better way than ours.
    fn by_kernel(&self, ground: &Ground, from: u64, file: &File, at: u64, left: u64) -> Option<u64> {
        // On file systems that can, the kernel's own copy shares blocks.
        if self.run.options.link == super::Link::Never || !self.run.kernel_copies() {
            return None;
        }
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(16 << 20);
        let (mut from, mut to) = (from, at);
        match rustix::fs::copy_file_range(&ground.file, Some(&mut from), file, Some(&mut to), want) {
            Ok(n) => Some(n as u64).filter(|n| *n > 0),
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                self.run.no_kernel_copies();
                None
            }
            Err(_) => None,
        }
    }

    /// Fills `buf` with the bytes of `part` from `at` of the file on. What can't be read becomes zeros, and is noted.
    fn read(&mut self, part: Part, at: u64, buf: &mut [u8]) {
        let skip = at.saturating_sub(part.at);
        match part.how {
            How::Share(g, from) | How::Copy(g, from) => {
                let run = self.run;
                let Some(ground) = run.grounds.get(g) else { return self.note(at, buf.len() as u64, "no such file") };
                let from = from.saturating_add(skip);
                let have = usize::try_from(ground.len.saturating_sub(from)).unwrap_or(usize::MAX).min(buf.len());
                let (there, beyond) = buf.split_at_mut(have);
                self.salvage(at, there, SECTOR, &|_, skip, buf| ground.read(from.saturating_add(skip), buf));
                if !beyond.is_empty() {
                    beyond.fill(0);
                    self.note(at.saturating_add(have as u64), beyond.len() as u64, "the image ends before");
                }
            }
            How::Decode => {
                if self.reader.is_none() {
                    match self.source.fs.open(&self.source.tree, self.stream) {
                        Ok(layer) => self.reader = Some(Some(layer)),
                        Err(e) => {
                            self.reader = Some(None);
                            self.message = e.to_string();
                        }
                    }
                }
                match self.reader.clone().flatten() {
                    Some(layer) => self.salvage(at, buf, DECODED, &|start, skip, buf| {
                        layer.read_at(Offset::new(start.saturating_add(skip)), buf)
                    }),
                    None => {
                        buf.fill(0);
                        self.note(at, buf.len() as u64, "");
                    }
                }
            }
            How::Hole => buf.fill(0),
        }
    }

    /// Reads `buf` in pieces that are halved where they fail, down to `smallest`. `read` is given the place of the buffer in
    /// the file, bytes from there on, and the piece.
    fn salvage(&mut self, at: u64, buf: &mut [u8], smallest: usize, read: ReadPiece<'_>) {
        let mut todo = vec![(0usize, buf.len())];
        while let Some((skip, len)) = todo.pop() {
            let Some(piece) = buf.get_mut(skip..skip.saturating_add(len)) else { continue };
            let Err(error) = read(at, skip as u64, piece) else { continue };
            if len <= smallest {
                piece.fill(0);
                self.note(at.saturating_add(skip as u64), len as u64, &error.to_string());
                continue;
            }
            // At a multiple of the smallest piece, counted from the file's start.
            let half = (len / 2).next_multiple_of(smallest).min(len.saturating_sub(1)).max(1);
            todo.push((skip.saturating_add(half), len.saturating_sub(half)));
            todo.push((skip, half));
        }
    }

    /// Notes that `len` bytes from `at` on could not be read.
    fn note(&mut self, at: u64, len: u64, why: &str) {
        if self.message.is_empty() {
            self.message = why.to_owned();
        }
        let full = self.bad.len() >= LISTED;
        match self.bad.last_mut() {
            Some((start, have)) if full || start.saturating_add(*have) == at => {
                *have = at.saturating_add(len).saturating_sub(*start);
            }
            _ => self.bad.push((at, len)),
        }
    }

    /// What it has become, when all its parts are written.
    fn end(&mut self, parts: &[Part]) {
        let run = self.run;
        let no_sharing = self.no_share || !run.shares();
        let why = why(self.source, self.stream, parts, run.options.link == super::Link::Never, no_sharing);
        let outcome = &mut self.outcome;
        (outcome.method, outcome.why) = if self.size == 0 {
            (Method::Made, Some(Why::Empty))
        } else if !self.bad.is_empty() {
            (Method::Partial, Some(Why::Unreadable))
        } else if outcome.shared > 0 {
            (Method::Reflink, if outcome.copied > 0 { why } else { None })
        } else if outcome.copied > 0 {
            (Method::Copy, why)
        } else {
            (Method::Made, None)
        };
    }
    /// Whether not one byte of it could be read.
    pub fn nothing_read(&self) -> bool {
        let bad = self.bad.iter().fold(0u64, |n, (_, len)| n.saturating_add(*len));
        self.size > 0 && bad >= self.size
    }
    /// Its hashes, where they were asked for and all of it could be read.
    pub fn hashes(&mut self) -> Option<Vec<u8>> {
        let hashes = self.hashes.take()?;
        self.bad.is_empty().then(|| hashes.end())
    }
}

/// Why some of a file is copied and not shared: of several reasons the one that is not about its place.
pub(super) fn why(source: &Source, stream: StreamId, parts: &[Part], never: bool, no_sharing: bool) -> Option<Why> {
    use crate::extent::{Encoding, What};
    let encoded = source.tree.extents(stream).iter().find_map(|e| match e.what {
        What::Encoded(Encoding::Inline) => Some(Why::Resident),
        What::Encoded(Encoding::FsCompressed) => Some(Why::FsCompressed),
        What::Encoded(Encoding::FsEncrypted) => Some(Why::FsEncrypted),
        What::Encoded(_) => Some(Why::Unreadable),
        _ => None,
    });
    if encoded.is_some() || never {
        return encoded;
    }
    if parts.iter().any(|p| p.how == How::Decode) {
        return Some(Why::Container);
    }
    Some(if no_sharing { Why::NoSharing } else { Why::Misaligned })
}

/// Writes all of `bytes`.
pub(super) fn write_at(file: &File, bytes: &[u8], at: u64) -> Result<(), Errno> {
    file.write_all_at(bytes, at).map_err(|e| match e.raw_os_error() {
        Some(code) => Errno::from_raw_os_error(code),
        None => Errno::IO,
    })
}

/// The whole of a short stream, such as is kept in an attribute; none where some of it can't be read.
pub(super) fn short(source: &Source, stream: StreamId, most: u64) -> Option<Vec<u8>> {
    let len = source.tree.stream(stream).size;
    let len = usize::try_from(len).ok().filter(|_| len <= most)?;
    source.fs.open(&source.tree, stream).ok()?.read_vec(Offset::new(0), len).ok()
}

//! The journal's file: its head, the slots of its state records, and the chain of its frames. Drawn in `docs/safety.md`.

use std::borrow::Cow;
use std::io;
use std::path::Path;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::source::medium::JournalFile;
use crate::txn::State;
use crate::txn::codec::{Decoder, Encoder};

const MAGIC: &[u8; 8] = b"UNIMGJNL";
const STATE_MAGIC: &[u8; 8] = b"UNIMGSTA";
const VERSION: u32 = 1;
/// The same with moves into units of the image: what does not know these must not touch the host.
const WITH_MOVES: u32 = 2;
const PROGRESS_MAGIC: &[u8; 8] = b"UNIMGPRG";
const PROGRESS_LEN: usize = 64;
/// Bytes of the file's head.
const HEAD_LEN: usize = 64;
/// What is written on its own lies in a block of its own, so that a torn write can't hurt what was there before, also
/// where the medium's sectors have 4096 bytes.
const BLOCK: u64 = 4096;
/// A commit has at most Sealed, Done, Undoing, Undone; a slot more than that for a torn one.
const SLOTS: u64 = 6;
/// Where the frames begin.
const FRAMES_AT: u64 = BLOCK.saturating_mul(SLOTS.saturating_add(1));
const FRAME_HEAD: usize = 48;
const RECORD_LEN: usize = 104;
/// The most bytes of a section that one frame may hold.
const CHUNK: usize = 8 << 20;
/// As many bytes of a section go to one frame here: more would not be packed better, and take more memory.
pub(super) const WRITTEN: usize = 1 << 20;
/// Frames that are packed beside each other.
const AT_ONCE: usize = 8;

/// A frame's bytes are packed by zstd.
const PACKED: u32 = 1;
/// Before packing, each 32-bit word of a sector was replaced by its difference to the word before: chains and bitmaps of
/// contiguous files become constant.
const DIFFERENCES: u32 = 2;

/// What the bytes of a frame are.
pub(super) type Tag = [u8; 4];

/// How the frames that were written or read so far are summed: each sum covers the one before.
pub(super) type Chain = [u8; 32];

/// The frames of a journal from its start to a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) at: u64,
    pub(super) chain: Chain,
}

/// A manifest as a journal has it: packed while it is made, so that its rows need no room of their own.
#[derive(Debug, Default)]
pub struct Manifest {
    /// Frames: flags, bytes, and how many they are unpacked.
    frames: Vec<(u32, Vec<u8>, usize)>,
}

impl Manifest {
    /// Of these bytes.
    ///
    /// # Errors
    /// Those of packing.
    pub fn of(bytes: &[u8]) -> io::Result<Self> {
        let mut zstd = zstd::bulk::Compressor::new(1);
        let frames = bytes.chunks(WRITTEN).map(|chunk| {
            let (flags, bytes, raw) = shortest(&mut zstd, chunk, false)?;
            Ok((flags, bytes.into_owned(), raw))
        });
        Ok(Self { frames: frames.collect::<io::Result<_>>()? })
    }
    /// Adds what comes behind it.
    pub fn push(&mut self, behind: Self) {
        self.frames.extend(behind.frames);
    }
}

/// The journal's file while it is written and read. Its errors are the system's own: what they mean for the host, the caller knows.
pub(super) struct Frames {
    pub(super) file: JournalFile,
    id: [u8; 16],
    /// Bytes that were written.
    pub(super) written: u64,
}

fn sum(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

fn round_up(at: u64) -> u64 {
    at.div_ceil(BLOCK).saturating_mul(BLOCK)
}

/// The shortest form of a chunk: its flags, its bytes, and how many they are unpacked. `words`: whether it may be of words that differ
/// little from each other.
fn shortest<'c>(
    zstd: &mut io::Result<zstd::bulk::Compressor<'_>>,
    chunk: &'c [u8],
    words: bool,
) -> io::Result<(u32, Cow<'c, [u8]>, usize)> {
    let zstd = zstd.as_mut().map_err(|e| io::Error::new(e.kind(), e.to_string()))?;
    let mut best = (0, Cow::Borrowed(chunk));
    let mut attempt = |flags: u32, bytes: &[u8]| -> io::Result<()> {
        let packed = zstd.compress(bytes)?;
        if packed.len() < best.1.len() {
            best = (flags, packed.into());
        }
        Ok(())
    };
    attempt(PACKED, chunk)?;
    if words && chunk.len().is_multiple_of(512) {
        attempt(PACKED | DIFFERENCES, &differences(chunk))?;
    }
    Ok((best.0, best.1, chunk.len()))
}

impl Frames {
    /// Writes the head of a new journal and the empty slots. `id` tells it from every other journal.
    /// `moves`: whether units of the image will be filled.
    pub(super) fn create(file: JournalFile, id: [u8; 16], moves: bool) -> io::Result<(Self, Position)> {
        let mut head = Vec::with_capacity(HEAD_LEN);
        head.extend_from_slice(MAGIC);
        head.extend_from_slice(&if moves { WITH_MOVES } else { VERSION }.to_le_bytes());
        head.extend_from_slice(&0u32.to_le_bytes());
        head.extend_from_slice(&id);
        let chain = sum(&[&head]);
        head.extend_from_slice(&chain);
        // The slots are written, not left as a hole: marking the end must not fail for want of space.
        head.resize(usize::try_from(FRAMES_AT).unwrap_or(usize::MAX), 0);
        let mut this = Self { file, id, written: 0 };
        this.write(0, &head)?;
        Ok((this, Position { at: FRAMES_AT, chain }))
    }

    /// Opens a journal that is there. Gives where its frames begin.
    pub(super) fn open(file: JournalFile) -> Result<(Self, Position)> {
        let wrong = |expected: &str| damaged(&file.path, "journal's head", 0, expected);
        if file.medium.len() < HEAD_LEN as u64 {
            return Err(wrong("64 bytes; an empty journal belongs to a run that stopped before it touched the host"));
        }
        let mut head = [0; HEAD_LEN];
        file.medium.read_at(0, &mut head).map_err(|e| read_failed(&file.path, e))?;
        let mut d = Decoder::new(&head);
        let short = || wrong("64 bytes");
        if d.array::<8>() != Some(*MAGIC) {
            return Err(wrong("the signature UNIMGJNL: this is no journal, or one whose making was interrupted"));
        }
        let version = u32::from_le_bytes(d.array().ok_or_else(short)?);
        if version != VERSION && version != WITH_MOVES {
            return Err(Error::Unsupported(format!(
                "journal {}: version {version}, this program knows versions {VERSION} and {WITH_MOVES}",
                file.path.display()
            )));
        }
        d.raw(4).ok_or_else(short)?;
        let id = d.array().ok_or_else(short)?;
        let chain = d.array().ok_or_else(short)?;
        if head.get(..32).map(|bytes| sum(&[bytes])) != Some(chain) {
            return Err(wrong("a head that matches its checksum"));
        }
        Ok((Self { file, id, written: 0 }, Position { at: FRAMES_AT, chain }))
    }

    /// Appends a section as one or more frames.
    pub(super) fn append(&mut self, from: Position, tag: Tag, bytes: &[u8]) -> io::Result<Position> {
        if bytes.is_empty() {
            return self.append_frame(from, tag, 0, bytes, 0);
        }
        bytes.chunks(WRITTEN.saturating_mul(AT_ONCE)).try_fold(from, |at, some| {
            let packed: Vec<_> = some
                .par_chunks(WRITTEN)
                .map_init(|| zstd::bulk::Compressor::new(1), |zstd, chunk| shortest(zstd, chunk, true))
                .collect::<io::Result<_>>()?;
            packed.into_iter().try_fold(at, |at, (flags, stored, raw)| self.append_frame(at, tag, flags, &stored, raw))
        })
    }

    /// Appends a manifest.
    pub(super) fn append_manifest(&mut self, from: Position, tag: Tag, manifest: &Manifest) -> io::Result<Position> {
        let mut frames = manifest.frames.iter();
        frames.try_fold(from, |at, (flags, stored, raw)| self.append_frame(at, tag, *flags, stored, *raw))
    }

    /// Appends a frame of `stored` bytes, which are `raw` ones unpacked.
    fn append_frame(
        &mut self,
        from: Position,
        tag: Tag,
        flags: u32,
        stored: &[u8],
        raw: usize,
    ) -> io::Result<Position> {
        let mut frame = Vec::with_capacity(stored.len().saturating_add(FRAME_HEAD));
        frame.extend_from_slice(&tag);
        frame.extend_from_slice(&flags.to_le_bytes());
        for len in [stored.len(), raw] {
            frame.extend_from_slice(&u32::try_from(len).map_err(io::Error::other)?.to_le_bytes());
        }
        let chain = sum(&[&from.chain, &frame, stored]);
        frame.extend_from_slice(&chain);
        frame.extend_from_slice(stored);
        self.write(from.at, &frame)?;
        Ok(Position { at: from.at.saturating_add(frame.len() as u64), chain })
    }

    /// The frame at a position, and the position behind it. None where there is none that its checksum confirms.
    pub(super) fn frame(&self, at: Position) -> Result<Option<(Tag, Packed, Position)>> {
        let have = self.file.medium.len();
        let mut head = [0; FRAME_HEAD];
        let Some(body_at) = at.at.checked_add(FRAME_HEAD as u64).filter(|end| *end <= have) else { return Ok(None) };
        self.read(at.at, &mut head)?;
        let mut d = Decoder::new(&head);
        let fields = (d.array(), d.array(), d.array(), d.array(), d.array());
        let (Some(tag), Some(flags), Some(stored), Some(raw), Some(chain)) = fields else { return Ok(None) };
        let (stored, raw) = (u32::from_le_bytes(stored) as usize, u32::from_le_bytes(raw) as usize);
        let end = body_at.saturating_add(stored as u64);
        if raw > CHUNK || stored > CHUNK || end > have {
            return Ok(None);
        }
        let mut bytes = vec![0; stored];
        self.read(body_at, &mut bytes)?;
        if head.get(..16).map(|h| sum(&[&at.chain, h, &bytes])) != Some(chain) {
            return Ok(None);
        }
        Ok(Some((tag, Packed { flags: u32::from_le_bytes(flags), raw, bytes, at: at.at }, Position { at: end, chain })))
    }

    /// The last state that was recorded, with the frames that it vouches for. None for a journal that has no record yet.
    /// A record that was torn is as good as none.
    pub(super) fn last_state(&self) -> Result<Option<(u64, State, Position)>> {
        let mut last = None;
        for slot in 0..SLOTS {
            let mut record = [0; RECORD_LEN];
            let at = slot.saturating_add(1).saturating_mul(BLOCK);
            // What can't be read was torn, unless a later one can.
            if self.file.medium.read_at(at, &mut record).is_err() {
                continue;
            }
            if let Some((state, position)) = self.decode_record(slot, &record) {
                last = Some((slot, state, position));
            }
        }
        Ok(last)
    }

    fn decode_record(&self, slot: u64, record: &[u8; RECORD_LEN]) -> Option<(State, Position)> {
        let (covered, check) = record.split_at_checked(RECORD_LEN.saturating_sub(32))?;
        let mut d = Decoder::new(covered);
        if d.array() != Some(*STATE_MAGIC) || d.array() != Some(self.id) || check != sum(&[covered]) {
            return None;
        }
        if u64::from(u32::from_le_bytes(d.array()?)) != slot {
            return None;
        }
        let state = State::from_number(u32::from_le_bytes(d.array()?))?;
        let at = u64::from_le_bytes(d.array()?);
        Some((state, Position { at, chain: d.array()? }))
    }

    /// Writes the record of a state into a slot: durable after [`sync`](Self::sync).
    pub(super) fn write_state(&mut self, slot: u64, state: State, vouched: Position) -> io::Result<()> {
        if slot >= SLOTS {
            return Err(io::Error::other("the journal has no room for another state"));
        }
        let mut e = Encoder::default();
        e.raw(STATE_MAGIC);
        e.raw(&self.id);
        e.raw(&u32::try_from(slot).map_err(io::Error::other)?.to_le_bytes());
        e.raw(&state.number().to_le_bytes());
        e.raw(&vouched.at.to_le_bytes());
        e.raw(&vouched.chain);
        let mut record = e.into_bytes();
        let check = sum(&[&record]);
        record.extend_from_slice(&check);
        record.resize(512, 0);
        self.write(slot.saturating_add(1).saturating_mul(BLOCK), &record)
    }

    /// Writes two empty records of progress, so that later ones can't fail for want of space.
    pub(super) fn reserve_progress(&mut self, at: u64) -> io::Result<()> {
        self.write(at, &vec![0; usize::try_from(BLOCK.saturating_mul(2)).unwrap_or(0)])
    }

    /// Records that so many batches are durable on the host: in the block that does not have the last record. Durable after
    /// [`sync`](Self::sync).
    pub(super) fn write_progress(&mut self, at: u64, batches: u32) -> io::Result<()> {
        let mut e = Encoder::default();
        e.raw(PROGRESS_MAGIC);
        e.raw(&self.id);
        e.raw(&batches.to_le_bytes());
        e.raw(&[0; 4]);
        let mut record = e.into_bytes();
        let check = sum(&[&record]);
        record.extend_from_slice(&check);
        record.resize(512, 0);
        self.write(at.saturating_add(u64::from(batches % 2).saturating_mul(BLOCK)), &record)
    }

    /// How many batches are durable by the records at `at`: a torn one is as good as none.
    pub(super) fn progress(&self, at: u64) -> u32 {
        let one = |at: u64| {
            let mut record = [0; PROGRESS_LEN];
            self.file.medium.read_at(at, &mut record).ok()?;
            let (covered, check) = record.split_at_checked(PROGRESS_LEN.saturating_sub(32))?;
            let mut d = Decoder::new(covered);
            let right = d.array() == Some(*PROGRESS_MAGIC) && d.array() == Some(self.id) && check == sum(&[covered]);
            right.then(|| d.array().map(u32::from_le_bytes)).flatten()
        };
        [at, at.saturating_add(BLOCK)].into_iter().filter_map(one).max().unwrap_or(0)
    }

    /// Where frames that are written after `at` begin: in a block of their own.
    pub(super) fn next_block(at: Position) -> Position {
        Position { at: round_up(at.at), chain: at.chain }
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.medium.sync()
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.file.medium.read_at(at, buf).map_err(|e| read_failed(&self.file.path, e))
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.medium.write_at(at, bytes)?;
        self.written = self.written.saturating_add(bytes.len() as u64);
        Ok(())
    }
}

/// A frame as it is stored; its checksum was right.
pub(super) struct Packed {
    flags: u32,
    /// Bytes when unpacked.
    pub(super) raw: usize,
    bytes: Vec<u8>,
    at: u64,
}

impl Packed {
    /// Appends its bytes to `out`.
    pub(super) fn unpack(self, path: &Path, out: &mut Vec<u8>) -> Result<()> {
        let wrong = |expected: String| damaged(path, "journal's frame", self.at, &expected);
        let mut raw = match self.flags & PACKED {
            0 => self.bytes,
            _ => zstd::bulk::decompress(&self.bytes, self.raw).map_err(|e| wrong(format!("zstd data ({e})")))?,
        };
        if raw.len() != self.raw {
            return Err(wrong(format!("{} bytes when unpacked, not {}", self.raw, raw.len())));
        }
        if self.flags & DIFFERENCES != 0 {
            add_up(&mut raw);
        }
        out.append(&mut raw);
        Ok(())
    }
}

/// An error that names the journal and the place in it.
pub(super) fn damaged(path: &Path, structure: &str, at: u64, expected: &str) -> Error {
    Error::Corrupt {
        structure: structure.into(),
        at: format!("byte {at} of {}", path.display()),
        expected: expected.into(),
    }
}

fn read_failed(path: &Path, cause: io::Error) -> Error {
    Error::io(format!("reading the journal {}", path.display()), cause)
}

fn words(sector: &mut [u8], mut change: impl FnMut(u32, u32) -> (u32, u32)) {
    let mut before = 0;
    for word in sector.chunks_exact_mut(4) {
        let Ok(bytes) = <[u8; 4]>::try_from(&*word) else { continue };
        let (put, next) = change(u32::from_le_bytes(bytes), before);
        word.copy_from_slice(&put.to_le_bytes());
        before = next;
    }
}

fn differences(raw: &[u8]) -> Vec<u8> {
    let mut out = raw.to_vec();
    for sector in out.chunks_mut(512) {
        words(sector, |word, before| (word.wrapping_sub(before), word));
    }
    out
}

fn add_up(raw: &mut [u8]) {
    for sector in raw.chunks_mut(512) {
        words(sector, |word, before| {
            let word = word.wrapping_add(before);
            (word, word)
        });
    }
}

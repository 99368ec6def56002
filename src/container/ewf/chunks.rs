//! Reading chunks: each is decoded whole and checked, many of them at the same time where much is wanted.

use std::borrow::Cow;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use super::second::Codec;
use super::section::adler32;
use super::tables::{Form, Stored};
use crate::container::inflate::inflate;
use crate::error::{Error, Result};
use crate::extent::{Device, Offset, ReadAt};

/// Bytes of decoded chunks that are kept, for those who read in small pieces.
const KEPT: usize = 8 << 20;

/// Bytes of a file that were read in one go for many chunks at once.
#[derive(Default)]
pub struct Ahead {
    file: usize,
    at: u64,
    bytes: Vec<u8>,
}

/// Fewer bytes than these are not read ahead.
const MIN_AHEAD: u64 = 64 << 10;
/// Bytes of decoded chunks that one thread does at once.
const BATCH: usize = 1 << 20;

impl Ahead {
    /// What these chunks have in the file of the first, if they lie close together there. What can't be read so is read chunk
    /// by chunk, and then it is said what is wrong.
    pub fn read(files: &[Arc<dyn ReadAt<Device>>], stored: &[Stored], most: u64) -> Self {
        let Some(file) = stored.first().map(|s| s.file) else { return Self::default() };
        let here = || stored.iter().filter(|s| s.file == file && !matches!(s.form, Form::Pattern(_)));
        let start = here().map(|s| s.at).min().unwrap_or_default();
        let end = here().map(|s| s.at.saturating_add(s.len)).max().unwrap_or_default();
        let len = end.saturating_sub(start);
        let bytes = match files.get(file) {
            Some(from) if (MIN_AHEAD..=most).contains(&len) && end <= from.len() => {
                from.read_vec(Offset::new(start), usize::try_from(len).unwrap_or_default()).unwrap_or_default()
            }
            _ => Vec::new(),
        };
        Self { file, at: start, bytes }
    }
    fn get(&self, stored: &Stored, len: usize) -> Option<&[u8]> {
        let from = usize::try_from(stored.at.checked_sub(self.at)?).ok()?;
        self.bytes.get(from..from.checked_add(len)?).filter(|_| self.file == stored.file)
    }
}

/// Decodes a chunk of `want` bytes into `out`. The last chunk of a disk may have been packed with zeros behind it, up to the
/// `most` bytes of any other.
///
/// # Errors
/// [`Error::Corrupt`] where its checksum is wrong or it has another length.
pub fn decode(
    file: &dyn ReadAt<Device>,
    stored: Stored,
    ahead: &Ahead,
    (want, most): (usize, usize),
    out: &mut Vec<u8>,
) -> Result<()> {
    let at = Offset::<Device>::new(stored.at);
    let read = |len: usize| match ahead.get(&stored, len) {
        Some(bytes) => Ok(Cow::Borrowed(bytes)),
        None => file.read_vec(at, len).map(Cow::Owned),
    };
    let wrong = |expected: String| Error::corrupt("EWF chunk", at, expected);
    match stored.form {
        Form::Plain { sum } => {
            let whole = want.saturating_add(if sum { 4 } else { 0 });
            if stored.len < whole as u64 {
                return Err(wrong(format!("{whole} bytes, there is room for {}", stored.len)));
            }
            let read = read(whole)?;
            let (bytes, tail) = read.split_at_checked(want).ok_or_else(|| wrong("its checksum".into()))?;
            if sum && tail.first_chunk().map(|b| u32::from_le_bytes(*b)) != Some(adler32(bytes)) {
                return Err(wrong("the checksum that is stored behind it".into()));
            }
            out.extend_from_slice(bytes);
        }
        Form::Packed(codec) => {
            let packed = read(usize::try_from(stored.len).unwrap_or_default())?;
            let stream = |e: String| wrong(format!("a compressed stream: {e}"));
            let ended = match codec {
                Codec::Zlib => inflate(true, &packed, most, out).map_err(stream)?,
                Codec::Bzip2 => {
                    let limit = (most as u64).saturating_add(1);
                    let read = bzip2::read::BzDecoder::new(&*packed).take(limit).read_to_end(out);
                    read.map_err(|e| stream(e.to_string()))? <= most
                }
            };
            // The end of a stream comes after its checksum: that it is reached means that the checksum was right.
            if !ended || !(out.len() == want || out.len() == most) {
                return Err(wrong(format!("a compressed stream of {want} bytes")));
            }
            out.truncate(want);
        }
        Form::Pattern(pattern) => {
            out.extend(pattern.to_le_bytes().into_iter().cycle().take(want));
        }
    }
    Ok(())
}

/// Where chunks come from.
pub trait Source {
    /// Reads what so many chunks from this one on need, as far as it is worth it.
    fn ahead(&self, number: u64, count: usize) -> Ahead;
    /// Decodes a chunk, and checks it.
    ///
    /// # Errors
    /// As [`decode`].
    fn decode(&self, number: u64, ahead: &Ahead, out: &mut Vec<u8>) -> Result<()>;
}

/// A decoded chunk with its number.
type Kept = (u64, Arc<Vec<u8>>);

/// The chunks that were decoded last.
#[derive(Default)]
pub struct Chunks {
    kept: Mutex<Vec<Kept>>,
}

impl Chunks {
    /// Fills `buf` from byte `skip` of the chunk `number` on. Chunks have `len` bytes.
    pub fn fill(
        &self,
        number: u64,
        skip: usize,
        len: usize,
        buf: &mut [u8],
        source: &(impl Source + Sync),
    ) -> Result<()> {
        let head = len.saturating_sub(skip).min(buf.len());
        let (first, rest) = buf.split_at_mut(head);
        let mut parts: Vec<(u64, usize, &mut [u8])> = vec![(number, skip, first)];
        let numbers = number.saturating_add(1)..;
        parts.extend(numbers.zip(rest.chunks_mut(len.max(1))).map(|(n, part)| (n, 0, part)));
        let one = |(number, skip, part): (u64, usize, &mut [u8]), ahead: &Ahead| {
            if part.len() == len {
                let mut bytes = Vec::new();
                source.decode(number, ahead, &mut bytes)?;
                return copy(&bytes, 0, part);
            }
            copy(&self.chunk(number, len, source)?, skip, part)
        };
        match parts.len() {
            1 => parts.into_iter().try_for_each(|part| one(part, &Ahead::default())),
            _ => {
                let batch = BATCH.checked_div(len).unwrap_or_default().max(1);
                parts.par_chunks_mut(batch).try_for_each(|batch| {
                    let first = batch.first().map_or(number, |(n, ..)| *n);
                    let ahead = source.ahead(first, batch.len());
                    batch.iter_mut().try_for_each(|(n, skip, part)| one((*n, *skip, part), &ahead))
                })
            }
        }
    }

    /// A chunk of which a part is wanted: the rest of it may be wanted next.
    fn chunk(&self, number: u64, len: usize, source: &impl Source) -> Result<Arc<Vec<u8>>> {
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = kept().iter().find(|(n, _)| *n == number) {
            return Ok(Arc::clone(bytes));
        }
        let mut bytes = Vec::new();
        source.decode(number, &Ahead::default(), &mut bytes)?;
        let bytes = Arc::new(bytes);
        let mut kept = kept();
        if kept.len() >= KEPT.checked_div(len).unwrap_or_default().max(1) {
            kept.remove(0);
        }
        kept.push((number, Arc::clone(&bytes)));
        Ok(bytes)
    }
}

fn copy(bytes: &[u8], skip: usize, part: &mut [u8]) -> Result<()> {
    let have = skip.checked_add(part.len()).and_then(|end| bytes.get(skip..end));
    let have = have.ok_or_else(|| Error::Unsupported("a chunk that is shorter than the disk needs".into()))?;
    part.copy_from_slice(have);
    Ok(())
}

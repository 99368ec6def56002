//! The log, replayed in memory: \[MS-VHDX\] 2.3.
//!
//! The log is a ring of entries. Each is whole or void: its checksum covers all of it, and every part of it repeats its
//! sequence number, so a torn write makes no entry. The entries that count are the *active sequence*: of the runs of valid
//! entries with rising numbers whose last one says that its tail is among them, the one with the highest number.
//!
//! ```text
//! entry       "loge" checksum length tail  sequence u64  descriptors u32 0  log GUID  flushed u64  last u64
//! descriptor  "desc" trailing u32  leading u64     place u64  sequence u64
//!             "zero" 0             bytes u64       place u64  sequence u64
//! data        "data" sequence's high half, 4084 bytes, low half: the bytes 8 to 4092 of a sector
//! ```

use std::borrow::Cow;

use super::layout::sum;
use super::overlay::Overlay;
use crate::bytes::Fields;
use crate::error::{Error, Result};
use crate::extent::{Device, Offset};
use crate::guid::Guid;

/// Bytes of a sector of the log.
pub(super) const SECTOR: usize = 4096;
/// Bytes of an entry's header, and of a descriptor.
const HEADER: usize = 64;
const DESCRIPTOR: usize = 32;
/// Most bytes of a log: Hyper-V and qemu make one of 1 MiB.
pub(super) const MAX_LOG: u32 = 64 << 20;
/// Checksums are made of at most so many times the bytes of the log: entries don't overlap in one that was not crafted.
const WORK: usize = 16;

/// A valid entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    /// Where it lies in the log.
    at: usize,
    len: usize,
    /// Where the oldest entry lies that was still needed when it was written.
    tail: usize,
    sequence: u64,
    count: usize,
    /// Bytes that the file had, at least, and must have.
    flushed: u64,
    /// Bytes that the file must have after the entry was replayed.
    last: u64,
}

/// A ring of entries.
struct Ring<'a> {
    bytes: &'a [u8],
    guid: Guid,
    /// Bytes that may still be summed up.
    work: usize,
    /// What is known of each sector: the entry that begins there.
    known: Vec<Option<Option<Entry>>>,
}

/// What is to be done with the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Need {
    /// Bytes that it must have.
    pub(super) flushed: u64,
    /// Bytes that it has afterwards, at least.
    pub(super) last: u64,
    /// Entries that were replayed.
    pub(super) entries: usize,
}

/// Replays the log whose bytes these are, and whose entries bear this GUID, onto `overlay`; none where no entry bears it.
/// A writer that sets the GUID before its first entry and is cut off in between (qemu does) leaves a file like that.
///
/// # Errors
/// [`Error::Corrupt`] where there is no active sequence: then nobody can say what the file should be.
pub(super) fn replay(at: u64, bytes: &[u8], guid: Guid, overlay: &mut Overlay) -> Result<Option<Need>> {
    let work = bytes.len().saturating_mul(WORK);
    let sectors = bytes.as_chunks::<SECTOR>().0;
    let mut ring = Ring { bytes, guid, work, known: vec![None; sectors.len()] };
    let place = Offset::<Device>::new(at);
    let Some(active) = ring.active()? else {
        if !sectors.iter().any(|s| s.starts_with(b"loge") && s.get(32..48) == Some(&guid.0)) {
            return Ok(None);
        }
        return Err(Error::corrupt(
            "VHDX log",
            place,
            "valid entries: the file was not closed, and what it needs is damaged",
        ));
    };
    for entry in &active {
        ring.apply(entry, overlay)?;
    }
    let last = active.last().ok_or_else(|| Error::corrupt("VHDX log", place, "an entry"))?;
    Ok(Some(Need { flushed: last.flushed, last: last.last, entries: active.len() }))
}

impl<'a> Ring<'a> {
    /// `len` bytes from `at` on, around the end.
    fn slice(&self, at: usize, len: usize) -> Option<Cow<'a, [u8]>> {
        let end = at.checked_add(len)?;
        if let Some(all) = self.bytes.get(at..end) {
            return Some(Cow::Borrowed(all));
        }
        let mut all = self.bytes.get(at..)?.to_vec();
        all.extend_from_slice(self.bytes.get(..end.checked_sub(self.bytes.len())?)?);
        Some(Cow::Owned(all))
    }

    fn after(&self, entry: &Entry) -> usize {
        entry.at.saturating_add(entry.len).checked_rem(self.bytes.len()).unwrap_or_default()
    }

    /// The valid entry at `at`.
    fn entry(&mut self, at: usize) -> Result<Option<Entry>> {
        let slot = at / SECTOR;
        if let Some(Some(known)) = self.known.get(slot) {
            return Ok(*known);
        }
        let found = self.decode(at)?;
        if let Some(known) = self.known.get_mut(slot) {
            *known = Some(found);
        }
        Ok(found)
    }

    fn decode(&mut self, at: usize) -> Result<Option<Entry>> {
        let Some(head) = self.slice(at, HEADER) else { return Ok(None) };
        let f = Fields::<Device>::new("VHDX log entry", Offset::new(at as u64), &head);
        let (len, tail, count) = (f.u32(8)? as usize, f.u32(12)? as usize, f.u32(24)? as usize);
        let sequence = f.u64(16)?;
        let aligned = |n: usize| n.is_multiple_of(SECTOR);
        let fits =
            (SECTOR..=self.bytes.len()).contains(&len) && aligned(len) && aligned(tail) && tail < self.bytes.len();
        if f.slice(0, 4)? != b"loge" || Guid(f.array(32)?) != self.guid || sequence == 0 || !fits {
            return Ok(None);
        }
        if described(count).is_none_or(|d| d > len) {
            return Ok(None);
        }
        self.work = self.work.checked_sub(len).ok_or_else(|| {
            Error::corrupt("VHDX log", Offset::<Device>::new(at as u64), "entries that do not overlap")
        })?;
        let Some(all) = self.slice(at, len) else { return Ok(None) };
        let entry = Entry { at, len, tail, sequence, count, flushed: f.u64(48)?, last: f.u64(56)? };
        let valid = sum(&all) == f.u32(4)? && parts(&all, &entry).is_some();
        Ok(valid.then_some(entry))
    }

    /// The entries to be replayed, the oldest first.
    fn active(&mut self) -> Result<Option<Vec<Entry>>> {
        let mut best: Option<Vec<Entry>> = None;
        let mut tail = 0usize;
        while tail < self.bytes.len() {
            let mut run: Vec<Entry> = Vec::new();
            let (mut head, mut len) = (tail, 0usize);
            while let Some(entry) = self.entry(head)? {
                let follows = run.last().is_none_or(|last| last.sequence.checked_add(1) == Some(entry.sequence));
                len = len.saturating_add(entry.len);
                if !follows || len > self.bytes.len() {
                    break;
                }
                run.push(entry);
                head = self.after(&entry);
            }
            let first = run.last().and_then(|last| run.iter().position(|e| e.at == last.tail));
            let Some(first) = first else {
                tail = tail.saturating_add(SECTOR);
                continue;
            };
            let number = |run: &[Entry]| run.last().map(|e| e.sequence);
            if best.as_deref().and_then(number) < number(&run) {
                best = run.get(first..).map(<[Entry]>::to_vec);
            }
            if head <= tail {
                break;
            }
            tail = head;
        }
        Ok(best)
    }

    fn apply(&self, entry: &Entry, overlay: &mut Overlay) -> Result<()> {
        let all = self.slice(entry.at, entry.len);
        let parts = all.as_deref().and_then(|all| parts(all, entry));
        let damaged = || Error::corrupt("VHDX log entry", Offset::<Device>::new(entry.at as u64), "what it was before");
        for part in parts.ok_or_else(damaged)? {
            match part {
                Part::Zero { at, len } => overlay.zero(at, len),
                Part::Data { at, leading, middle, trailing } => {
                    overlay.write(at, &[&leading, middle, &trailing].concat());
                }
            }
        }
        Ok(())
    }
}

/// Bytes of the header and so many descriptors, in whole sectors.
fn described(count: usize) -> Option<usize> {
    count.checked_mul(DESCRIPTOR)?.checked_add(HEADER)?.checked_next_multiple_of(SECTOR)
}

/// What an entry writes.
enum Part<'a> {
    Zero { at: u64, len: u64 },
    Data { at: u64, leading: [u8; 8], middle: &'a [u8], trailing: [u8; 4] },
}

/// What the entry of these bytes writes; none where a part of it is not one of this entry.
fn parts<'a>(all: &'a [u8], entry: &Entry) -> Option<Vec<Part<'a>>> {
    let mut data = all.get(described(entry.count)?..)?;
    let mut out = Vec::new();
    for descriptor in all.get(HEADER..)?.as_chunks::<DESCRIPTOR>().0.iter().take(entry.count) {
        let f = Fields::<Device>::new("VHDX log descriptor", Offset::new(0), descriptor);
        let (at, sequence) = (f.u64(16).ok()?, f.u64(24).ok()?);
        if sequence != entry.sequence || !at.is_multiple_of(SECTOR as u64) {
            return None;
        }
        match f.slice(0, 4).ok()? {
            b"zero" => {
                let len = f.u64(8).ok()?;
                if !len.is_multiple_of(SECTOR as u64) {
                    return None;
                }
                out.push(Part::Zero { at, len });
            }
            b"desc" => {
                let (sector, rest) = data.split_at_checked(SECTOR)?;
                data = rest;
                let d = Fields::<Device>::new("VHDX log data", Offset::new(0), sector);
                let torn = u64::from(d.u32(4).ok()?) << 32 | u64::from(d.u32(4092).ok()?);
                if d.slice(0, 4).ok()? != b"data" || torn != entry.sequence {
                    return None;
                }
                let (leading, trailing) = (f.array(8).ok()?, f.array(4).ok()?);
                out.push(Part::Data { at, leading, middle: d.slice(8, 4084).ok()?, trailing });
            }
            _ => return None,
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests;

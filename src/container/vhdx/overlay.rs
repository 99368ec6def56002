//! A file with what its log writes over it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::log::SECTOR;
use crate::error::{Error, Result};
use crate::extent::{Device, LayerId, Offset, ReadAt};

/// A file as it is after its log was replayed. Nothing is written anywhere.
pub(super) struct Overlay {
    base: Arc<dyn ReadAt<Device>>,
    len: u64,
    /// What is written over the file: from, to. Data patches have one sector of the log each.
    patches: BTreeMap<u64, Patch>,
    data: Vec<u8>,
}

/// What is written over a range of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Patch {
    end: u64,
    /// Where the bytes are in [`Overlay::data`]; none for zeros.
    data: Option<usize>,
}

/// What a range of the file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Now {
    /// What the file has.
    File,
    /// Zeros.
    Zero,
    /// A part of the patch at this place.
    Patched(u64),
    /// Behind the end.
    Past,
}

impl Overlay {
    pub(super) fn new(base: Arc<dyn ReadAt<Device>>) -> Self {
        let len = base.len();
        Self { base, len, patches: BTreeMap::new(), data: Vec::new() }
    }
    /// Makes the file `len` bytes long where it is shorter.
    pub(super) fn extend(&mut self, len: u64) {
        self.len = self.len.max(len);
    }
    /// Writes zeros.
    pub(super) fn zero(&mut self, at: u64, len: u64) {
        self.put(at..at.saturating_add(len), None);
    }
    /// Writes a sector of the log.
    pub(super) fn write(&mut self, at: u64, sector: &[u8]) {
        let data = self.data.len();
        self.data.extend_from_slice(sector);
        self.put(at..at.saturating_add(sector.len() as u64), Some(data));
    }
    fn put(&mut self, range: Range<u64>, data: Option<usize>) {
        if range.is_empty() {
            return;
        }
        // What was there before keeps what lies before and behind. All places are multiples of a sector, so data, of one
        // sector each, is either covered or not touched.
        let before = self.patches.range(..range.start).next_back().map(|(at, p)| (*at, *p));
        if let Some((at, patch)) = before.filter(|(_, p)| p.end > range.start) {
            self.patches.insert(at, Patch { end: range.start, ..patch });
            if patch.end > range.end {
                self.patches.insert(range.end, patch);
            }
        }
        let inside: Vec<(u64, Patch)> = self.patches.range(range.clone()).map(|(at, p)| (*at, *p)).collect();
        for (at, patch) in inside {
            self.patches.remove(&at);
            if patch.end > range.end {
                self.patches.insert(range.end, patch);
            }
        }
        self.patches.insert(range.start, Patch { end: range.end, data });
    }
    /// What the file has from `at` on, and for how many of `len` bytes. Never 0 for a `len` that is not.
    pub(super) fn now(&self, at: u64, len: u64) -> (u64, Now) {
        let have = self.base.len();
        let patch = self.patches.range(..=at).next_back().filter(|(_, p)| p.end > at);
        let (end, now) = match patch {
            _ if at >= self.len => (u64::MAX, Now::Past),
            Some((_, Patch { end, data: None })) => (*end, Now::Zero),
            Some((start, Patch { end, .. })) => (*end, Now::Patched(*start)),
            None => {
                let next = self.patches.range(at..).next().map_or(u64::MAX, |(at, _)| *at);
                if at < have { (next.min(have), Now::File) } else { (next, Now::Zero) }
            }
        };
        let end = if now == Now::Past { end } else { end.min(self.len) };
        (end.saturating_sub(at).min(len), now)
    }
    /// The bytes of the patch at this place.
    pub(super) fn patch(&self, at: u64) -> Option<&[u8]> {
        let from = self.patches.get(&at)?.data?;
        self.data.get(from..from.checked_add(SECTOR)?)
    }
}

impl ReadAt<Device> for Overlay {
    fn id(&self) -> LayerId {
        self.base.id()
    }
    fn len(&self) -> u64 {
        self.len
    }
    fn read_at(&self, at: Offset<Device>, buf: &mut [u8]) -> Result<()> {
        let mut at = at.get();
        let mut rest = buf;
        while !rest.is_empty() {
            let want = rest.len() as u64;
            let (len, now) = self.now(at, want);
            let len = usize::try_from(len).unwrap_or(rest.len()).min(rest.len());
            let (part, after) = rest.split_at_mut(len);
            match now {
                Now::File => self.base.read_at(Offset::new(at), part)?,
                Now::Zero => part.fill(0),
                Now::Patched(start) => {
                    let from = usize::try_from(at.saturating_sub(start)).unwrap_or(usize::MAX);
                    let bytes = self.patch(start).and_then(|p| p.get(from..)?.get(..len));
                    let bytes = bytes.ok_or_else(|| Error::past_end(Offset::<Device>::new(at), want, self.len))?;
                    part.copy_from_slice(bytes);
                }
                Now::Past => return Err(Error::past_end(Offset::<Device>::new(at), want, self.len)),
            }
            at = at.saturating_add(len as u64);
            rest = after;
        }
        Ok(())
    }
}

//! Payload blocks and sector bitmap blocks.

use std::ops::Range;
use std::sync::Arc;

use super::super::blocks::{Entries, past, runs, touched};
use super::super::table::{Fault, Pieces, Table};
use super::layout::{MIB, Metadata, Payload, bitmap};
use super::overlay::{Now, Overlay};
use crate::error::{Error, Result};
use crate::extent::{Device, Offset, ReadAt};

pub(super) const ENTRY: &str = "VHDX block allocation table entry";

/// A VHDX.
pub(super) struct Blocks {
    pub(super) files: [Arc<dyn ReadAt<Device>>; 1],
    /// The file with its log replayed.
    pub(super) now: Overlay,
    pub(super) metadata: Metadata,
    /// Where the block allocation table lies.
    pub(super) bat: u64,
    /// Entries of blocks that lead to where an earlier one leads.
    pub(super) repeated: Vec<u64>,
    pub(super) identity: String,
    pub(super) name: String,
}

impl Blocks {
    /// Appends `len` bytes of the file from `at` on, as they are after the log was replayed.
    fn here(&self, len: u64, at: u64, entry: u64, out: &mut Pieces) {
        let (mut at, mut left) = (at, len);
        while left > 0 {
            let (len, now) = self.now.now(at, left);
            match now {
                Now::File => out.stored(len, self.now.id(), at),
                Now::Zero => out.zero(len),
                Now::Patched(patch) => {
                    out.packed(len, patch, u32::try_from(at.saturating_sub(patch)).unwrap_or(u32::MAX));
                }
                Now::Past => return out.unreadable(left, Fault::new(ENTRY, entry, past(self.now.len(), at))),
            }
            at = at.saturating_add(len);
            left = left.saturating_sub(len);
        }
    }

    /// The part of block `number`, at `data`, that its own sectors and the parent's make up.
    fn partly(&self, number: u64, from: u64, len: u64, data: u64, entry: u64, out: &mut Pieces) {
        let m = &self.metadata;
        let which = m.bitmap_entry(number);
        let entries = Entries::<8>::read(ENTRY, &self.now, self.bat, which..which.saturating_add(1));
        let found = entries.get(which).map(|e| bitmap(u64::from_le_bytes(e)));
        let Some(bits_at) = found.flatten() else {
            return out.unreadable(len, entries.wrong(which, "a sector bitmap block: a block is partly present"));
        };
        let sectors = m.block.checked_div(m.sector).unwrap_or_default();
        let before = number.checked_rem(m.ratio()).unwrap_or_default().saturating_mul(sectors);
        let at = bits_at.saturating_add(before / 8);
        let bytes = usize::try_from((sectors / 8).min(MIB)).unwrap_or_default();
        let bits = match self.now.read_vec(Offset::new(at), bytes) {
            Ok(bits) => bits,
            Err(e) => return out.unreadable(len, Fault::failed("VHDX sector bitmap block", at, &e)),
        };
        // The least significant bit of each byte first.
        let here = |n: u64| {
            let byte = usize::try_from(n / 8).ok().and_then(|at| bits.get(at)).copied().unwrap_or_default();
            byte.wrapping_shr(u32::try_from(n % 8).unwrap_or_default()) & 1 != 0
        };
        let covered = touched(&(from..from.saturating_add(len)), m.sector);
        let (mut at, end) = (from, from.saturating_add(len));
        let mut next = covered.start;
        for (run, here) in runs(covered.start, covered.end.saturating_sub(covered.start), here) {
            next = next.saturating_add(run);
            let stop = next.saturating_mul(m.sector).min(end);
            let len = stop.saturating_sub(at);
            if here {
                self.here(len, data.saturating_add(at), entry, out);
            } else {
                out.parent(len);
            }
            at = stop;
        }
    }
}

impl Table for Blocks {
    fn len(&self) -> u64 {
        self.metadata.size
    }
    fn span(&self) -> u64 {
        // 16 KiB of entries.
        self.metadata.block.saturating_mul(2048)
    }
    fn pieces(&self, range: Range<u64>, out: &mut Pieces) -> Result<()> {
        let m = &self.metadata;
        let blocks = touched(&range, m.block);
        let last = blocks.end.saturating_sub(1);
        let entries =
            Entries::<8>::read(ENTRY, &self.now, self.bat, m.entry(blocks.start)..m.entry(last).saturating_add(1));
        for part in super::super::blocks::parts(range.clone(), m.block) {
            let number = m.entry(part.number);
            let Some(entry) = entries.get(number) else { break };
            let place = entries.place(number);
            match Payload::decode(u64::from_le_bytes(entry)) {
                Payload::Absent if m.parent.is_some() => out.parent(part.len),
                Payload::Absent | Payload::Zero => out.zero(part.len),
                Payload::Here(at) => self.here(part.len, at.saturating_add(part.from), place, out),
                Payload::Partly(_) if m.parent.is_none() => {
                    out.unreadable(part.len, entries.wrong(number, "a state of a disk without a parent"));
                }
                Payload::Partly(_) if self.repeated.binary_search(&number).is_ok() => {
                    out.unreadable(part.len, entries.wrong(number, "a block that no earlier entry leads to"));
                }
                Payload::Partly(at) if at >= self.now.len() => {
                    out.unreadable(part.len, entries.wrong(number, past(self.now.len(), at)));
                }
                Payload::Partly(at) => self.partly(part.number, part.from, part.len, at, place, out),
                Payload::Unknown(state) => {
                    out.unreadable(part.len, entries.wrong(number, format!("a state that there is, not {state}")));
                }
            }
        }
        out.unreadable(range.end.saturating_sub(out.at()), entries.ends().clone());
        Ok(())
    }
    fn unpack(&self, unit: u64, out: &mut Vec<u8>) -> Result<()> {
        let place = Offset::<Device>::new(unit);
        out.extend_from_slice(self.now.patch(unit).ok_or_else(|| Error::corrupt("VHDX log", place, "a sector of it"))?);
        Ok(())
    }
    fn files(&self) -> &[Arc<dyn ReadAt<Device>>] {
        &self.files
    }
    fn name(&self) -> &str {
        &self.name
    }
    fn identity(&self) -> &str {
        &self.identity
    }
}

//! Blocks of dynamic and differencing disks.

use std::ops::Range;
use std::sync::Arc;

use super::super::blocks::{Entries, past, stored, touched};
use super::super::table::{Fault, Pieces, Table};
use super::layout::{ABSENT, Header, SECTOR, bit_runs};
use crate::error::Result;
use crate::extent::{Device, Offset, ReadAt};

pub(super) const ENTRY: &str = "VHD block allocation table entry";

/// A dynamic or differencing disk.
pub(super) struct Blocks {
    pub(super) files: [Arc<dyn ReadAt<Device>>; 1],
    /// Bytes of the disk.
    pub(super) size: u64,
    pub(super) header: Header,
    /// Whether sector bitmaps decide between this file and a parent. In a dynamic disk they say nothing that counts.
    pub(super) differencing: bool,
    /// Of a differencing disk, the entries that lead to where an earlier one leads.
    pub(super) repeated: Vec<u64>,
    pub(super) identity: String,
    /// For messages.
    pub(super) name: String,
}

impl Blocks {
    fn file(&self) -> &dyn ReadAt<Device> {
        let [file] = &self.files;
        &**file
    }
    fn absent(&self, len: u64, out: &mut Pieces) {
        if self.differencing {
            out.parent(len);
        } else {
            out.zero(len);
        }
    }
    /// The part of a block, whose bitmap lies at `bitmap`, that its own sectors and the parent's make up.
    fn mixed(&self, bitmap: u64, from: u64, len: u64, entry: u64, out: &mut Pieces) {
        let bytes = usize::try_from(self.header.bitmap()).unwrap_or_default();
        let bits = match self.file().read_vec(Offset::new(bitmap), bytes) {
            Ok(bits) => bits,
            Err(e) => return out.unreadable(len, Fault::failed("VHD sector bitmap", bitmap, &e)),
        };
        let data = bitmap.saturating_add(self.header.bitmap());
        let first = from / SECTOR;
        let count = from.saturating_add(len).div_ceil(SECTOR).saturating_sub(first);
        let (mut at, end) = (from, from.saturating_add(len));
        let mut next = first;
        for (sectors, here) in bit_runs(&bits, first, count) {
            next = next.saturating_add(sectors);
            let stop = next.saturating_mul(SECTOR).min(end);
            let run = stop.saturating_sub(at);
            if here {
                stored(out, run, self.file(), data.saturating_add(at), ENTRY, entry);
            } else {
                out.parent(run);
            }
            at = stop;
        }
    }
}

impl Table for Blocks {
    fn len(&self) -> u64 {
        self.size
    }
    fn span(&self) -> u64 {
        // 16 KiB of entries.
        self.header.block.saturating_mul(4096)
    }
    fn pieces(&self, range: Range<u64>, out: &mut Pieces) -> Result<()> {
        let block = self.header.block;
        let numbers = touched(&range, block);
        let have = self.file().len();
        let last = u64::from(self.header.entries);
        let entries =
            Entries::<4>::read(ENTRY, self.file(), self.header.table, numbers.start.min(last)..numbers.end.min(last));
        let end = range.end.min(last.saturating_mul(block)).max(range.start);
        entries.each(range.start..end, block, out, |part, entry, out| {
            let place = entries.place(part.number);
            let sector = u32::from_be_bytes(entry);
            let bitmap = u64::from(sector).saturating_mul(SECTOR);
            if sector == ABSENT {
                self.absent(part.len, out);
            } else if bitmap >= have {
                out.unreadable(part.len, entries.wrong(part.number, past(have, bitmap)));
            } else if !self.differencing {
                let at = bitmap.saturating_add(self.header.bitmap()).saturating_add(part.from);
                stored(out, part.len, self.file(), at, ENTRY, place);
            } else if self.repeated.binary_search(&part.number).is_ok() {
                out.unreadable(part.len, entries.wrong(part.number, "a block that no earlier entry leads to"));
            } else {
                self.mixed(bitmap, part.from, part.len, place, out);
            }
        });
        let expected = format!("an entry for each block, there are {last}");
        out.unreadable(range.end.saturating_sub(end), entries.wrong(last, expected));
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

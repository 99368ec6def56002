//! A sparse extent: grain directory, grain tables, grains.

use std::ops::Range;
use std::sync::Arc;

use super::super::blocks::{Entries, Part, parts, past, repeated, stored, touched};
use super::super::inflate::inflate;
use super::super::table::{Fault, Pieces};
use super::descriptor::SECTOR;
use super::header::{Grain, Header};
use crate::bytes::Fields;
use crate::error::{Error, Result};
use crate::extent::{Device, Offset, ReadAt};

const DIRECTORY: &str = "VMDK grain directory entry";
const TABLE: &str = "VMDK grain table entry";
const GRAIN: &str = "VMDK compressed grain";
/// Bytes of grain tables that lie behind each other and are read in one go.
const BULK: u64 = 256 << 10;
/// Bytes of a grain's marker: its first sector on the extent, and the bytes that follow.
const MARKER: usize = 12;

/// Most grain tables: those of 128 TiB where a grain has 64 KiB, of 64 TiB in the format of ESX.
const MAX_TABLES: u64 = 1 << 22;

/// What an entry of the grain directory says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lead {
    /// All grains of the table are absent.
    Absent,
    /// The table is at this byte.
    To(u64),
    /// The table would be at this byte, which is past the end.
    Past(u64),
    /// An earlier entry leads there too.
    Again,
    /// The entry makes no sense.
    Odd(&'static str),
}

impl Lead {
    fn is_bad(self) -> bool {
        !matches!(self, Self::Absent | Self::To(_))
    }
}

/// A sparse extent.
pub(super) struct Grains {
    file: Arc<dyn ReadAt<Device>>,
    header: Header,
    /// The grain directory, as far as it is within the file.
    directory: Vec<Lead>,
    /// Whether grains that are not here are a parent's.
    has_parent: bool,
}

impl Grains {
    /// Reads the grain directory. What is damaged in it is taken from the second, where there is one and it is sound.
    ///
    /// Gives remarks.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for more tables than any disk has.
    pub(super) fn open(file: Arc<dyn ReadAt<Device>>, header: Header, has_parent: bool) -> Result<(Self, Vec<String>)> {
        let mut remarks: Vec<String> = header.remarks.iter().map(|r| (*r).to_owned()).collect();
        if header.tables() > MAX_TABLES {
            let expected = format!("at most {MAX_TABLES} grain tables, there would be {}", header.tables());
            return Err(Error::corrupt("VMDK header", Offset::<Device>::new(0), expected));
        }
        let mut directory = Self::directory(&*file, &header, header.directory);
        if let Some(second) = header.second
            && (directory.iter().any(|e| e.is_bad()) || (directory.len() as u64) < header.tables())
        {
            let other = Self::directory(&*file, &header, second);
            let mut taken = 0usize;
            for (mine, other) in directory.iter_mut().zip(&other).filter(|(m, o)| m.is_bad() && !o.is_bad()) {
                *mine = *other;
                taken = taken.saturating_add(1);
            }
            let more = other.get(directory.len()..).unwrap_or_default();
            taken = taken.saturating_add(more.len());
            directory.extend_from_slice(more);
            if taken > 0 {
                remarks
                    .push(format!("{taken} entries of the VMDK grain directory are damaged: the second one has them"));
            }
        }
        // A table that two entries lead to: the later of them leads wrong.
        let places = (0u64..).zip(&directory).filter_map(|(n, e)| match e {
            Lead::To(at) => Some((n, *at)),
            _ => None,
        });
        for number in repeated(places.collect()) {
            if let Some(entry) = usize::try_from(number).ok().and_then(|n| directory.get_mut(n)) {
                *entry = Lead::Again;
            }
        }
        Ok((Self { file, header, directory, has_parent }, remarks))
    }

    /// The directory at `at`, as far as the file goes.
    fn directory(file: &dyn ReadAt<Device>, header: &Header, at: u64) -> Vec<Lead> {
        let table_bytes = header.per_table.saturating_mul(header.width() as u64);
        let one = |entry: u64| match header.table(entry) {
            Ok(None) => Lead::Absent,
            Ok(Some(table)) if table.saturating_add(table_bytes) > file.len() => Lead::Past(table),
            Ok(Some(table)) => Lead::To(table),
            Err(expected) => Lead::Odd(expected),
        };
        let numbers = 0..header.tables();
        if header.width() == 8 {
            let entries = Entries::<8>::read(DIRECTORY, file, at, numbers.clone());
            numbers.map_while(|n| Some(one(u64::from_le_bytes(entries.get(n)?)))).collect()
        } else {
            let entries = Entries::<4>::read(DIRECTORY, file, at, numbers.clone());
            numbers.map_while(|n| Some(one(u32::from_le_bytes(entries.get(n)?).into()))).collect()
        }
    }

    /// The fault of an entry of the directory, or of one that is not there.
    fn fault(&self, number: u64, lead: Option<Lead>) -> Fault {
        let at = self.header.directory.saturating_add(number.saturating_mul(self.header.width() as u64));
        let have = self.file.len();
        match lead {
            Some(Lead::Past(table)) => {
                Fault::new(DIRECTORY, at, format!("a grain table within the file's {have} bytes, it is at {table:#x}"))
            }
            Some(Lead::Again) => Fault::new(DIRECTORY, at, "a grain table that no earlier entry leads to"),
            Some(Lead::Odd(expected)) => Fault::new(DIRECTORY, at, expected),
            _ => Fault::new(DIRECTORY, at, format!("an entry within the file's {have} bytes")),
        }
    }

    /// Appends what is not here.
    fn absent(&self, len: u64, out: &mut Pieces) {
        if self.has_parent {
            out.parent(len);
        } else {
            out.zero(len);
        }
    }

    /// Bytes of a grain table.
    fn table_bytes(&self) -> u64 {
        self.header.per_table.saturating_mul(self.header.width() as u64)
    }

    /// Bytes of the disk whose tables are read in one go where they lie behind each other.
    pub(super) fn span(&self) -> u64 {
        let tables = BULK.checked_div(self.table_bytes()).unwrap_or_default().max(1);
        self.header.table_covers().saturating_mul(tables)
    }

    fn lead(&self, number: u64) -> Option<Lead> {
        self.directory.get(usize::try_from(number).ok()?).copied()
    }

    /// Appends the pieces of `range` of the extent. `extent` is its number in the disk, for the tokens of compressed grains.
    pub(super) fn pieces(&self, range: Range<u64>, extent: u32, out: &mut Pieces) {
        let end = range.end.min(self.header.len).max(range.start);
        let covers = self.header.table_covers();
        let size = self.table_bytes();
        let mut at = range.start;
        while at < end {
            let Some(Part { number, len, .. }) = parts(at..end, covers).next() else { break };
            let next = match self.lead(number) {
                // All that is left to tables that the directory does not have.
                None => {
                    out.unreadable(end.saturating_sub(at), self.fault(number, None));
                    end
                }
                Some(Lead::Absent) => {
                    self.absent(len, out);
                    at.saturating_add(len)
                }
                Some(lead @ (Lead::Past(_) | Lead::Again | Lead::Odd(_))) => {
                    out.unreadable(len, self.fault(number, Some(lead)));
                    at.saturating_add(len)
                }
                Some(Lead::To(table)) => {
                    // As many tables as lie behind each other, up to the bulk.
                    let most = BULK.checked_div(size).unwrap_or_default().max(1);
                    let last = touched(&(at..end), covers).end;
                    let follows = |n: &u64| {
                        let want = table.saturating_add(n.saturating_mul(size));
                        self.lead(number.saturating_add(*n)) == Some(Lead::To(want))
                    };
                    let more = last.saturating_sub(number).min(most);
                    let tables = (1..more).take_while(follows).count() as u64;
                    let after = number.saturating_add(tables).saturating_add(1);
                    let stop = after.saturating_mul(covers).min(end);
                    self.tables(table, number, at..stop, extent, out);
                    stop
                }
            };
            at = next;
        }
        let expected = format!("an extent of {} bytes, it has {}", range.end, self.header.len);
        out.unreadable(range.end.saturating_sub(end), Fault::new("VMDK header", 0, expected));
    }

    /// Appends the pieces of `range`, whose tables lie behind each other from `table` on, which is that of number `number`.
    fn tables(&self, table: u64, number: u64, range: Range<u64>, extent: u32, out: &mut Pieces) {
        let first = number.saturating_mul(self.header.per_table);
        let numbers = first..touched(&range, self.header.grain).end;
        let file = &*self.file;
        if self.header.width() == 8 {
            let entries = Entries::<8>::read_at(TABLE, file, table, numbers);
            entries.each(range, self.header.grain, out, |part, entry, out| {
                self.grain(part, u64::from_le_bytes(entry), entries.place(part.number), extent, out);
            });
        } else {
            let entries = Entries::<4>::read_at(TABLE, file, table, numbers);
            entries.each(range, self.header.grain, out, |part, entry, out| {
                self.grain(part, u32::from_le_bytes(entry).into(), entries.place(part.number), extent, out);
            });
        }
    }

    /// Appends a part of a grain by its entry, which lies at `place`.
    fn grain(&self, part: Part, entry: u64, place: u64, extent: u32, out: &mut Pieces) {
        match self.header.entry(entry) {
            Ok(Grain::Absent) => self.absent(part.len, out),
            Ok(Grain::Zero) => out.zero(part.len),
            Ok(Grain::At(at)) if self.header.packed => {
                if at >= self.file.len() {
                    return out.unreadable(part.len, Fault::new(TABLE, place, past(self.file.len(), at)));
                }
                let unit = u64::from(extent) << 32 | entry;
                out.packed(part.len, unit, u32::try_from(part.from).unwrap_or(u32::MAX));
            }
            Ok(Grain::At(at)) => stored(out, part.len, &*self.file, at.saturating_add(part.from), TABLE, place),
            Err(expected) => out.unreadable(part.len, Fault::new(TABLE, place, expected)),
        }
    }

    /// Decodes the compressed grain at this sector into `out`, at most the bytes of a grain.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where it can't be decoded.
    pub(super) fn unpack(&self, sector: u64, out: &mut Vec<u8>) -> Result<()> {
        let at = sector.saturating_mul(SECTOR);
        let file = &*self.file;
        let place = Offset::<Device>::new(at);
        // Deflate makes what it can't compress longer by a few bytes for each 16 KiB.
        let most = self.header.grain.saturating_add(self.header.grain / 8).saturating_add(1024);
        let (from, len) = if self.header.markers {
            let bytes = file.read_vec(place, MARKER)?;
            let len = u64::from(Fields::new("VMDK grain marker", place, &bytes).u32(8)?);
            if len == 0 || len > most {
                return Err(Error::corrupt(
                    "VMDK grain marker",
                    place,
                    format!("1 to {most} bytes of data, not {len}"),
                ));
            }
            (at.saturating_add(MARKER as u64), len)
        } else {
            (at, most.min(file.len().saturating_sub(at)))
        };
        let packed = file.read_vec(Offset::new(from), usize::try_from(len).unwrap_or(usize::MAX))?;
        let wrong = |e: String| Error::corrupt(GRAIN, place, format!("a deflated grain ({e})"));
        // One byte more than a grain, to see whether it goes on.
        let limit = usize::try_from(self.header.grain).unwrap_or(usize::MAX).saturating_add(1);
        let ended = inflate(true, &packed, limit, out).map_err(wrong)?;
        if out.len() >= limit {
            return Err(Error::corrupt(GRAIN, place, format!("at most {} bytes", self.header.grain)));
        }
        if !ended {
            return Err(wrong("it ends too early".into()));
        }
        Ok(())
    }
}

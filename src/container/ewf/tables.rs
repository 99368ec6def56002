//! Where each chunk is. Of every table only the header is read when the image is opened, and its entries when a chunk is first asked
//! for, once.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::data;
use super::second::{self, Codec, ENTRY, Entry};
use super::section::{DEFLATED, Kind, Section, Shape, TABLE_HEADER, TableHeader, adler32, past_border};
use super::segments::Segment;
use crate::bytes::Fields;
use crate::container::table::Fault;
use crate::error::{Error, Result};
use crate::extent::{Device, Offset, ReadAt};

const INSIDE: &str = "an offset within a section that holds chunks";

/// How the bytes of a chunk are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As they are, a checksum behind them or none.
    Plain {
        /// Whether there is one.
        sum: bool,
    },
    /// Compressed, with the codec's own checksum.
    Packed(Codec),
    /// Not at all: 8 bytes over and over, from the lowest on.
    Pattern(u64),
}

/// Where a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Position of the segment file.
    pub file: usize,
    /// Byte there.
    pub at: u64,
    /// Bytes there, checksum included.
    pub len: u64,
    /// How.
    pub form: Form,
}

/// The entries of a table, as they are in the file.
enum Entries {
    /// Of E01. The highest bit says whether a chunk is deflated, up to `border`.
    First { base: u64, raw: Vec<u32>, border: usize },
    /// Of Ex01.
    Second(Vec<[u8; ENTRY]>),
}

/// One table.
struct Set {
    /// The first chunk that it tells of.
    first: u64,
    count: u32,
    /// What the offsets of E01 count from.
    base: u64,
    file: usize,
    /// Where the entries are: those of the table, and of its copy.
    at: Vec<u64>,
    entries: OnceLock<std::result::Result<Entries, Fault>>,
}

/// All tables, in the order of their chunks.
pub struct Tables {
    sets: Vec<Set>,
    /// For each segment file, where chunks may lie.
    data: Vec<Vec<Range<u64>>>,
    /// Why the chunks behind the last table are not known.
    end: Fault,
    /// The most bytes that a chunk takes in its file.
    most: u64,
    /// Whether a checksum lies behind the entries: not in SMART's tables.
    sum: bool,
    /// How Ex01 compresses; none for E01.
    second: Option<Codec>,
    /// What is wrong, one sentence each.
    pub remarks: Vec<String>,
}

impl Tables {
    /// Reads the headers of all tables. Which chunks a table tells of follows from those before it: where one is lost for good,
    /// so is what comes behind it.
    pub fn gather(all: &[Segment], shape: &Shape, smart: bool) -> Self {
        let mut tables = Self::new(all, shape, !smart, None);
        let wanted = shape.len.div_ceil(shape.chunk.into());
        let mut first = 0u64;
        let done = tables.add_all(all, &mut first);
        tables.judge(all, shape, first, done);
        if first >= wanted && u64::from(shape.chunks) != wanted {
            tables.remarks.push(format!("the volume section says {} chunks, the disk has {wanted}", shape.chunks));
        }
        tables
    }

    /// The same of Ex01, whose tables say which chunks they tell of: one that is lost takes no other with it.
    pub fn gather_second(all: &[Segment], shape: &Shape, codec: Codec) -> Self {
        let mut tables = Self::new(all, shape, true, Some(codec));
        let mut done = Ok(());
        for (file, segment) in all.iter().enumerate() {
            for section in segment.sections.iter().filter(|s| s.kind == Kind::Table) {
                let at = Offset::new(section.body);
                let header = segment
                    .device
                    .read_vec(at, second::TABLE_HEADER)
                    .and_then(|b| second::TableHeader::decode(Fields::new("EWF table", at, &b)));
                match header {
                    Ok(second::TableHeader { first, count }) => {
                        let at = vec![section.body.saturating_add(second::TABLE_HEADER as u64)];
                        tables.sets.push(Set { first, count, base: 0, file, at, entries: OnceLock::new() });
                    }
                    Err(e) => done = Err((Fault::failed("EWF table", section.body, &e), file)),
                }
            }
            if let Some(e) = &segment.broken {
                done = Err((Fault::failed("EWF section", segment.sections.first().map_or(0, |s| s.next), e), file));
            }
        }
        tables.sets.sort_by_key(|s| s.first);
        let told = tables.sets.iter().fold(0u64, |sum, s| sum.saturating_add(s.count.into()));
        tables.judge(all, shape, told, done);
        tables
    }

    fn new(all: &[Segment], shape: &Shape, sum: bool, second: Option<Codec>) -> Self {
        Self {
            sets: Vec::new(),
            data: all.iter().map(|s| data(&s.sections)).collect(),
            end: Fault::new("EWF image", 0, "a table that tells of this chunk"),
            // Deflating can make a chunk longer, by little.
            most: u64::from(shape.chunk).saturating_add(u64::from(shape.chunk) / 8).saturating_add(1024),
            sum,
            second,
            remarks: Vec::new(),
        }
    }

    /// Says what is lost of a disk of whose chunks the tables tell of `told`.
    fn judge(&mut self, all: &[Segment], shape: &Shape, told: u64, done: std::result::Result<(), (Fault, usize)>) {
        let wanted = shape.len.div_ceil(shape.chunk.into());
        let lost = wanted.saturating_sub(told);
        if let Err((fault, file)) = done {
            let name = all.get(file).map_or("", |s| s.name.as_str());
            let within = if name.is_empty() { String::new() } else { format!("{name}: ") };
            self.remarks.push(format!("{within}{}: {lost} chunks are lost", fault.error()));
            self.end = fault;
        } else if lost > 0 {
            self.remarks.push(format!("the tables tell of {told} chunks, the disk has {wanted}: {lost} are lost"));
        }
    }

    fn add_all(&mut self, all: &[Segment], first: &mut u64) -> std::result::Result<(), (Fault, usize)> {
        for (file, segment) in all.iter().enumerate() {
            let mut sections =
                segment.sections.iter().filter(|s| matches!(s.kind, Kind::Table | Kind::Table2)).peekable();
            while let Some(section) = sections.next() {
                let copy = sections.next_if(|next| section.kind == Kind::Table && next.kind == Kind::Table2);
                let set = self.set(segment, file, *first, section, copy).map_err(|f| (f, file))?;
                *first = first.saturating_add(set.count.into());
                self.sets.push(set);
            }
            if let Some(e) = &segment.broken {
                return Err((Fault::failed("EWF section", segment.sections.last().map_or(0, |s| s.next), e), file));
            }
        }
        Ok(())
    }

    /// A table with its copy: the header of the first of them that is right.
    fn set(
        &mut self,
        segment: &Segment,
        file: usize,
        first: u64,
        table: &Section,
        copy: Option<&Section>,
    ) -> std::result::Result<Set, Fault> {
        let mut header: Option<TableHeader> = None;
        let mut why = None;
        let mut at = Vec::with_capacity(2);
        for section in [Some(table), copy].into_iter().flatten() {
            let body = Offset::new(section.body);
            let read = segment.device.read_vec(body, TABLE_HEADER);
            match read.and_then(|b| TableHeader::decode(Fields::new("EWF table", body, &b))) {
                Ok(found) if header.is_none_or(|h| h == found) => {
                    let entries = section.body.saturating_add(TABLE_HEADER as u64);
                    let end = entries.saturating_add(u64::from(found.count).saturating_mul(4));
                    if end > section.end.min(segment.device.len()) {
                        why = Some(Fault::new("EWF table", section.body, "a section that holds all of its entries"));
                        continue;
                    }
                    header = Some(found);
                    at.push(entries);
                }
                Ok(_) => why = Some(Fault::new("EWF table", section.body, "the same header as its copy has")),
                Err(e) => why = Some(Fault::failed("EWF table", section.body, &e)),
            }
        }
        let fault = || Fault::new("EWF table", table.body, "a header");
        let Some(header) = header else { return Err(why.unwrap_or_else(fault)) };
        if let Some(why) = why {
            self.remarks.push(format!("{}: the other copy of the table is used", why.error()));
        }
        Ok(Set { first, count: header.count, base: header.base, file, at, entries: OnceLock::new() })
    }

    /// Where a chunk is.
    ///
    /// # Errors
    /// What of the tables is wrong.
    pub fn chunk(&self, files: &[Arc<dyn ReadAt<Device>>], number: u64) -> std::result::Result<Stored, Fault> {
        let set = self.sets.partition_point(|s| s.first <= number).checked_sub(1).and_then(|at| self.sets.get(at));
        let set = set.ok_or_else(|| self.end.clone())?;
        let at = usize::try_from(number.saturating_sub(set.first)).unwrap_or(usize::MAX);
        if at >= set.count as usize {
            return Err(self.end.clone());
        }
        let entries = set.entries.get_or_init(|| self.load(files, set)).as_ref().map_err(Clone::clone)?;
        let width = if self.second.is_some() { ENTRY as u64 } else { 4 };
        let entry = set.at.first().copied().unwrap_or_default().saturating_add((at as u64).saturating_mul(width));
        let wrong = |expected: &'static str| Fault::new("EWF table entry", entry, expected);
        match entries {
            Entries::First { base, raw, border } => {
                let place = |at: usize| {
                    let raw = *raw.get(at)?;
                    let offset = if at < *border { raw & !DEFLATED } else { raw };
                    Some((base.checked_add(offset.into())?, at < *border && raw & DEFLATED != 0))
                };
                let (start, deflated) = place(at).ok_or_else(|| wrong("an offset within the file"))?;
                let holds = self.holds(set.file, start).ok_or_else(|| wrong(INSIDE))?;
                // The last chunk of a section ends with it, any other where the next one begins.
                let end = match at.checked_add(1).and_then(place) {
                    Some((next, _)) if next <= holds.end => next,
                    _ => holds.end,
                };
                if end <= start {
                    return Err(wrong("an offset before that of the next chunk"));
                }
                let form = if deflated { Form::Packed(Codec::Zlib) } else { Form::Plain { sum: true } };
                Ok(Stored { file: set.file, at: start, len: end.saturating_sub(start).min(self.most), form })
            }
            Entries::Second(raw) => {
                let Entry { at, len, packed, sum, pattern } =
                    raw.get(at).map(Entry::decode).ok_or_else(|| wrong("an entry"))?;
                let stored = |form| Stored { file: set.file, at, len: u64::from(len).min(self.most), form };
                if pattern {
                    return Ok(stored(Form::Pattern(at)));
                }
                let holds = self.holds(set.file, at).ok_or_else(|| wrong(INSIDE))?;
                if at.checked_add(len.into()).is_none_or(|end| end > holds.end) {
                    return Err(wrong("a chunk that ends within its section"));
                }
                Ok(stored(if packed { Form::Packed(self.second.unwrap_or(Codec::Zlib)) } else { Form::Plain { sum } }))
            }
        }
    }

    /// Where nothing tells of a chunk: why, and the number of the first chunk behind it of which that need not be so. A disk may
    /// be said to have any number of chunks; the work is bounded by the tables.
    pub fn lost(&self, files: &[Arc<dyn ReadAt<Device>>], number: u64) -> Option<(Fault, u64)> {
        let behind = self.sets.partition_point(|s| s.first <= number);
        let next = self.sets.get(behind).map_or(u64::MAX, |s| s.first);
        let Some(set) = behind.checked_sub(1).and_then(|at| self.sets.get(at)) else {
            return Some((self.end.clone(), next));
        };
        let end = set.first.saturating_add(set.count.into());
        if number >= end {
            return Some((self.end.clone(), next));
        }
        let entries = set.entries.get_or_init(|| self.load(files, set));
        entries.as_ref().err().map(|fault| (fault.clone(), next.min(end)))
    }

    /// The section with chunks that a byte of a segment file lies in.
    fn holds(&self, file: usize, at: u64) -> Option<&Range<u64>> {
        self.data.get(file)?.iter().find(|r| r.contains(&at))
    }

    /// Reads the entries of a table: those of the first copy whose checksum is right.
    fn load(&self, files: &[Arc<dyn ReadAt<Device>>], set: &Set) -> std::result::Result<Entries, Fault> {
        let mut fault = Fault::new("EWF table", 0, "entries");
        let width = if self.second.is_some() { ENTRY } else { 4 };
        let len = (set.count as usize).saturating_mul(width);
        for at in &set.at {
            let read = || -> Result<Entries> {
                let file = files.get(set.file).ok_or_else(|| Error::NotFound("a segment file".into()))?;
                let place = Offset::new(*at);
                let with_sum = if self.sum { len.saturating_add(4) } else { len };
                let bytes = file.read_vec(place, with_sum)?;
                let f = Fields::new("EWF table", place, &bytes);
                let entries = f.slice(0, len)?;
                if self.sum && f.u32(len)? != adler32(entries) {
                    return Err(f.wrong(len, "the checksum of the table's entries"));
                }
                if self.second.is_some() {
                    return Ok(Entries::Second(entries.as_chunks().0.to_vec()));
                }
                let raw: Vec<u32> = entries.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
                Ok(Entries::First { base: set.base, border: past_border(&raw), raw })
            };
            match read() {
                Ok(entries) => return Ok(entries),
                Err(e) => fault = Fault::failed("EWF table", *at, &e),
            }
        }
        Err(fault)
    }
}

//! One flat index over a chain of any depth.
//!
//! The virtual disk is cut into spans. What a span is made of is found once, when it is first asked for, by going down the
//! chain as far as anything is left to the parents; from then on it is one sorted list, and a look-up is a binary search
//! that knows nothing of the chain.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rayon::prelude::*;

use super::table::{Fault, Piece, Pieces, Table};
use crate::error::{Error, Result};
use crate::extent::{Device, Encoding, Extent, Image, Layer, LayerId, Map, Offset, Place, ReadAt, What};

/// Bytes of the smallest span: of images with tiny clusters, many tables are read in one go.
const MIN_SPAN: u64 = 64 << 20;
/// Spans at most.
const MAX_SPANS: u64 = 1 << 16;
/// Decoded units that are kept, and their bytes.
const KEPT_UNITS: usize = 64;
const KEPT_BYTES: usize = 32 << 20;

/// A run of a span: where it begins on the virtual disk, and what it is. It ends where the next begins.
#[derive(Clone, Copy, Debug)]
struct Run {
    start: u64,
    what: Source,
}

/// What a run is, of the whole chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Stored {
        file: LayerId,
        at: u64,
    },
    Zero,
    Packed {
        table: u16,
        skip: u32,
        unit: u64,
    },
    Encrypted,
    Unreadable {
        table: u16,
        fault: u32,
    },
    /// Only while a span is being resolved.
    Parent,
}

impl Source {
    fn skip(self, bytes: u64) -> Self {
        match self {
            Self::Stored { file, at } => Self::Stored { file, at: at.saturating_add(bytes) },
            Self::Packed { table, skip, unit } => {
                Self::Packed { table, skip: skip.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX)), unit }
            }
            other => other,
        }
    }
    fn below(self) -> What<Device> {
        match self {
            Self::Stored { file, at } => What::Stored(Place { layer: file, offset: Offset::new(at) }),
            Self::Zero | Self::Parent => What::Zero,
            Self::Packed { .. } => What::Encoded(Encoding::ContainerCompressed),
            Self::Encrypted => What::Encoded(Encoding::ContainerEncrypted),
            Self::Unreadable { .. } => What::Encoded(Encoding::Unreadable),
        }
    }
}

/// A span that was resolved.
#[derive(Debug, Default)]
struct Flat {
    runs: Vec<Run>,
    faults: Vec<Fault>,
    end: u64,
}

impl Flat {
    fn push(&mut self, len: u64, what: Source) {
        let continues = self.runs.last().is_some_and(|last| {
            let before = self.end.saturating_sub(last.start);
            let fits = !matches!(last.what, Source::Packed { .. }) || u32::try_from(before).is_ok();
            fits && last.what.skip(before) == what
        });
        if len > 0 && !continues {
            self.runs.push(Run { start: self.end, what });
        }
        self.end = self.end.saturating_add(len);
    }
    /// Appends bytes that can't be had, one with those before where only the place of the entry differs.
    fn fault(&mut self, len: u64, table: u16, fault: Fault) {
        if let (Some(Run { what: Source::Unreadable { table: of, .. }, .. }), Some(last)) =
            (self.runs.last(), self.faults.last())
            && *of == table
            && last.structure == fault.structure
            && last.expected == fault.expected
        {
            self.end = self.end.saturating_add(len);
            return;
        }
        if len == 0 {
            return;
        }
        let number = u32::try_from(self.faults.len()).unwrap_or(u32::MAX);
        self.faults.push(fault);
        self.push(len, Source::Unreadable { table, fault: number });
    }
    /// The runs from the one that holds `at` on: start, end, what.
    fn from(&self, at: u64) -> impl Iterator<Item = (u64, u64, Source)> + '_ {
        let first = self.runs.partition_point(|r| r.start <= at).saturating_sub(1);
        let runs = self.runs.get(first..).unwrap_or_default();
        let ends = runs.iter().skip(1).map(|r| r.start).chain([self.end]);
        runs.iter().zip(ends).map(|(r, end)| (r.start, end, r.what))
    }
}

/// The virtual disk of a chain.
pub struct Chain {
    id: LayerId,
    len: u64,
    span: u64,
    /// The top first.
    tables: Vec<Arc<dyn Table>>,
    /// The files of all tables, by their identity.
    files: Vec<Arc<dyn ReadAt<Device>>>,
    spans: Vec<OnceLock<Result<Flat>>>,
    kept: Mutex<VecDeque<(Unit, Arc<Vec<u8>>)>>,
}

/// A packed unit: position of its table, and the table's own token.
type Unit = (u16, u64);

impl Chain {
    /// The disk that these tables make up, the top first. It has the length of the top; where a parent is shorter, what it
    /// does not have reads as zeros.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for no table, or too many.
    pub fn new(tables: Vec<Arc<dyn Table>>) -> Result<Self> {
        let top = tables.first().ok_or_else(|| Error::Unsupported("a chain of no image".into()))?;
        u16::try_from(tables.len()).map_err(|_| Error::Unsupported("a chain of too many images".into()))?;
        let len = top.len();
        let own = tables.iter().map(|t| t.span()).max().unwrap_or_default();
        let span = own.max(MIN_SPAN).max(len.div_ceil(MAX_SPANS).checked_next_power_of_two().unwrap_or(len));
        let spans = usize::try_from(len.div_ceil(span)).unwrap_or_default();
        let mut files: Vec<_> = tables.iter().flat_map(|t| t.files().iter().cloned()).collect();
        files.sort_by_key(|f| f.id());
        files.dedup_by_key(|f| f.id());
        let spans = std::iter::repeat_with(OnceLock::new).take(spans).collect();
        Ok(Self { id: LayerId::fresh(), len, span, tables, files, spans, kept: Mutex::default() })
    }
    /// Its tables, the top first.
    pub fn tables(&self) -> &[Arc<dyn Table>] {
        &self.tables
    }
    fn file(&self, id: LayerId) -> Option<&Arc<dyn ReadAt<Device>>> {
        self.files.binary_search_by_key(&id, |f| f.id()).ok().and_then(|at| self.files.get(at))
    }
    /// The span of this number, resolved.
    fn flat(&self, number: u64) -> Result<&Flat> {
        let slot = usize::try_from(number).ok().and_then(|n| self.spans.get(n));
        let slot = slot.ok_or_else(|| Error::past_end(Offset::<Image>::new(self.len), 1, self.len))?;
        slot.get_or_init(|| {
            let start = number.saturating_mul(self.span);
            self.resolve(start..start.saturating_add(self.span).min(self.len))
        })
        .as_ref()
        .map_err(Error::again)
    }
    /// Goes down the chain with what is left to the parents.
    fn resolve(&self, range: Range<u64>) -> Result<Flat> {
        let mut flat = Flat { end: range.start, ..Flat::default() };
        flat.push(range.end.saturating_sub(range.start), Source::Parent);
        for (number, table) in (0u16..).zip(&self.tables) {
            let mut left = flat.from(range.start).filter(|(.., what)| *what == Source::Parent);
            let Some((start, mut end, _)) = left.next() else { break };
            end = left.last().map_or(end, |(_, end, _)| end);
            let named = |e: Error| match table.name() {
                "" => e,
                name => e.within(name),
            };
            let mut pieces = Pieces::new(start);
            let stop = end.min(table.len());
            if start < stop {
                table.pieces(start..stop, &mut pieces).map_err(named)?;
            }
            flat = self.merged(flat, &pieces, number, stop);
        }
        flat.runs.shrink_to_fit();
        for run in &mut flat.runs {
            if run.what == Source::Parent {
                run.what = Source::Zero;
            }
        }
        Ok(flat)
    }
    /// `upper`, with what it leaves to the parents filled from `pieces`, which go to `stop`: zeros from there on.
    fn merged(&self, upper: Flat, pieces: &Pieces, table: u16, stop: u64) -> Flat {
        let start = upper.runs.first().map_or(upper.end, |r| r.start);
        let mut out = Flat { end: start, runs: Vec::with_capacity(upper.runs.len()), faults: upper.faults };
        let ends: Vec<u64> = upper.runs.iter().skip(1).map(|r| r.start).chain([upper.end]).collect();
        for (run, end) in upper.runs.iter().zip(ends) {
            if run.what != Source::Parent {
                out.push(end.saturating_sub(run.start), run.what);
                continue;
            }
            for (_, len, piece) in pieces.slice(run.start..end.min(stop)) {
                match piece {
                    Piece::Stored { file, at } => self.stored(&mut out, len, table, file, at),
                    Piece::Zero => out.push(len, Source::Zero),
                    Piece::Packed { unit, skip } => out.push(len, Source::Packed { table, skip, unit }),
                    Piece::Parent => out.push(len, Source::Parent),
                    Piece::Encrypted => out.push(len, Source::Encrypted),
                    Piece::Unreadable(number) => {
                        let fault = pieces.fault(number).cloned();
                        out.fault(len, table, fault.unwrap_or_else(|| Fault::new("extent", 0, "a reason")));
                    }
                }
            }
            // A table that says less than it was asked for is a defect; its silence is not zeros.
            let said = pieces.at().max(pieces.start()).min(stop);
            if out.end < end.min(stop) {
                let gap = end.min(stop).saturating_sub(out.end);
                out.fault(gap, table, Fault::new("extent", said, "an entry for every byte of the disk"));
            }
            out.push(end.saturating_sub(out.end), Source::Zero);
        }
        out
    }
    /// Appends a stored stretch as far as its file goes.
    fn stored(&self, out: &mut Flat, len: u64, table: u16, file: LayerId, at: u64) {
        let have = self.file(file).map_or(0, |f| f.len());
        let inside = have.saturating_sub(at).min(len);
        out.push(inside, Source::Stored { file, at });
        let over = len.saturating_sub(inside);
        if over > 0 {
            let place = at.saturating_add(inside);
            out.fault(over, table, Fault::new("extent", place, "bytes before the end of the file"));
        }
    }
    /// A decoded unit.
    fn unit(&self, unit: Unit) -> Result<Arc<Vec<u8>>> {
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut kept = kept();
            if let Some(at) = kept.iter().position(|(u, _)| *u == unit)
                && let Some(found) = kept.remove(at)
            {
                let bytes = Arc::clone(&found.1);
                kept.push_back(found);
                return Ok(bytes);
            }
        }
        let table = self.table(unit.0)?;
        let mut bytes = Vec::new();
        table.unpack(unit.1, &mut bytes).map_err(|e| within(&**table, e))?;
        let bytes = Arc::new(bytes);
        let mut kept = kept();
        kept.push_back((unit, Arc::clone(&bytes)));
        let mut sum: usize = kept.iter().fold(0, |sum, (_, b)| sum.saturating_add(b.len()));
        while kept.len() > KEPT_UNITS || (sum > KEPT_BYTES && kept.len() > 1) {
            sum = sum.saturating_sub(kept.pop_front().map_or(0, |(_, b)| b.len()));
        }
        Ok(bytes)
    }
    fn table(&self, number: u16) -> Result<&Arc<dyn Table>> {
        self.tables.get(usize::from(number)).ok_or_else(|| Error::Unsupported("no such image of the chain".into()))
    }
    /// Fills `buf` from `at` on, out of one run.
    fn read_run(&self, flat: &Flat, what: Source, at: u64, buf: &mut [u8]) -> Result<()> {
        match what {
            Source::Zero | Source::Parent => buf.fill(0),
            Source::Stored { file, at: place } => {
                let file = self.file(file).ok_or_else(|| {
                    Error::corrupt("extent", Offset::<Image>::new(at), "a file that belongs to the chain")
                })?;
                file.read_at(Offset::new(place), buf)?;
            }
            Source::Packed { table, skip, unit } => {
                let bytes = self.unit((table, unit))?;
                let from = skip as usize;
                let have = from.checked_add(buf.len()).and_then(|end| bytes.get(from..end)).ok_or_else(|| {
                    Error::corrupt(
                        "compressed unit",
                        Offset::<Image>::new(at),
                        format!("{} bytes from {from} on, it has {}", buf.len(), bytes.len()),
                    )
                })?;
                buf.copy_from_slice(have);
            }
            Source::Encrypted => {
                return Err(Error::Unsupported(format!("{} is encrypted by the container", Offset::<Image>::new(at))));
            }
            Source::Unreadable { table, fault } => {
                let fault = flat.faults.get(fault as usize);
                let error = fault.map_or_else(|| Fault::new("extent", at, "a reason").error(), Fault::error);
                return Err(within(&**self.table(table)?, error));
            }
        }
        Ok(())
    }
}

fn within(table: &dyn Table, error: Error) -> Error {
    match table.name() {
        "" => error,
        name => error.within(name),
    }
}

impl ReadAt<Image> for Chain {
    fn id(&self) -> LayerId {
        self.id
    }
    fn len(&self) -> u64 {
        self.len
    }
    fn read_at(&self, at: Offset<Image>, buf: &mut [u8]) -> Result<()> {
        let len = buf.len() as u64;
        if at.checked_add(len).is_none_or(|end| end.get() > self.len) {
            return Err(Error::past_end(at, len, self.len));
        }
        let mut at = at.get();
        let mut rest = buf;
        while !rest.is_empty() {
            let flat = self.flat(at.checked_div(self.span).unwrap_or_default())?;
            let before = rest.len();
            for (start, end, what) in flat.from(at) {
                let skipped = at.saturating_sub(start);
                let have = usize::try_from(end.saturating_sub(at)).map_or(rest.len(), |n| n.min(rest.len()));
                let (part, after) = rest.split_at_mut(have);
                self.read_run(flat, what.skip(skipped), at, part)?;
                at = at.saturating_add(have as u64);
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            if rest.len() == before {
                return Err(Error::past_end(Offset::<Image>::new(at), rest.len() as u64, self.len));
            }
        }
        Ok(())
    }
}

impl Layer<Image> for Chain {
    fn extents(&self, range: Range<Offset<Image>>) -> Result<Vec<Extent<Image>>> {
        let (start, end) = (range.start.get(), range.end.get().min(self.len));
        let mut out = Vec::<Extent<Image>>::new();
        let mut at = start;
        while at < end {
            let flat = self.flat(at.checked_div(self.span).unwrap_or_default())?;
            let before = at;
            for (from, to, what) in flat.from(at) {
                if from >= end {
                    break;
                }
                let len = to.min(end).saturating_sub(at);
                let what = what.skip(at.saturating_sub(from)).below();
                match out.last_mut() {
                    Some(last) if last.what.continued_by(last.len, &what) => last.len = last.len.saturating_add(len),
                    _ => out.push(Extent { start: Offset::new(at), len, what }),
                }
                at = at.saturating_add(len);
            }
            if at == before {
                break;
            }
        }
        Ok(out)
    }
    fn map(&self) -> Result<Map<Image>> {
        let numbers = 0..self.spans.len() as u64;
        numbers.into_par_iter().try_for_each(|n| self.flat(n).map(drop))?;
        let all = self.extents(Offset::new(0)..Offset::new(self.len))?;
        Ok(all.into_iter().map(|e| (e.len, e.what)).collect())
    }
}

#[cfg(test)]
mod tests;

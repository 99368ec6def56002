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
use crate::extent::{Device, Extent, Image, Layer, LayerId, Map, Offset, ReadAt};

/// Bytes of the smallest span: of images with tiny clusters, many tables are read in one go.
const MIN_SPAN: u64 = 64 << 20;
/// Spans at most.
const MAX_SPANS: u64 = 1 << 16;
/// Decoded units that are kept, and their bytes.
const KEPT_UNITS: usize = 64;
const KEPT_BYTES: usize = 32 << 20;

/// The virtual disk of a chain.
pub struct Chain {
    id: LayerId,
    len: u64,
    span: u64,
    /// The top first.
    tables: Vec<Arc<dyn Table>>,
    /// The files of all tables, by their identity.
    files: Vec<Arc<dyn ReadAt<Device>>>,
    spans: Vec<OnceLock<Result<Pieces>>>,
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
    fn flat(&self, number: u64) -> Result<&Pieces> {
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
    fn resolve(&self, range: Range<u64>) -> Result<Pieces> {
        let mut all = Pieces::new(range.start);
        for (number, table) in (0u16..).zip(&self.tables) {
            // The first table is asked for all of it, and what it says is the result but for what it leaves to others.
            let mut asked = range.clone();
            if number > 0 {
                let mut left = all.iter().filter(|(.., what)| *what == Piece::Parent);
                let Some((start, len, _)) = left.next() else { break };
                let end = left.last().map_or(start.saturating_add(len), |(start, len, _)| start.saturating_add(len));
                asked = start..end;
            }
            let stop = asked.end.min(table.len());
            let mut pieces = Pieces::of(number, asked.start);
            if asked.start < stop {
                table.pieces(asked.start..stop, &mut pieces).map_err(|e| within(&**table, e))?;
            }
            if number == 0 && pieces.at() == range.end && self.inside(&pieces) {
                all = pieces;
                continue;
            }
            if number == 0 {
                all.parent(range.end.saturating_sub(range.start));
            }
            all = self.merged(all, &pieces, number, stop);
        }
        Ok(all.resolved())
    }
    /// Whether all that is stored lies within its file.
    fn inside(&self, pieces: &Pieces) -> bool {
        let mut last = None;
        pieces.iter().all(|(_, len, piece)| {
            let Piece::Stored { file, at } = piece else { return true };
            let have = match last {
                Some((id, have)) if id == file => have,
                _ => self.file(file).map_or(0, |f| f.len()),
            };
            last = Some((file, have));
            at.checked_add(len).is_some_and(|end| end <= have)
        })
    }
    /// `upper`, with what it leaves to the parents filled from `pieces`, which go to `stop`: zeros from there on.
    fn merged(&self, mut upper: Pieces, pieces: &Pieces, table: u16, stop: u64) -> Pieces {
        let mut out = upper.afresh();
        for (start, len, what) in upper.iter() {
            if what != Piece::Parent {
                out.push(len, what);
                continue;
            }
            let end = start.saturating_add(len);
            for (_, len, piece) in pieces.slice(start..end.min(stop)) {
                match piece {
                    Piece::Stored { file, at } => self.stored(&mut out, len, table, file, at),
                    Piece::Unreadable { fault, .. } => {
                        let fault = pieces.fault(fault).cloned();
                        out.unreadable_by(table, len, fault.unwrap_or_else(|| Fault::new("extent", 0, "a reason")));
                    }
                    other => out.push(len, other),
                }
            }
            // A table that says less than it was asked for is a defect; its silence is not zeros.
            let said = pieces.at().max(pieces.start()).min(stop);
            if out.at() < end.min(stop) {
                let gap = end.min(stop).saturating_sub(out.at());
                out.unreadable_by(table, gap, Fault::new("extent", said, "an entry for every byte of the disk"));
            }
            out.push(end.saturating_sub(out.at()), Piece::Zero);
        }
        out
    }
    /// Appends a stored stretch as far as its file goes.
    fn stored(&self, out: &mut Pieces, len: u64, table: u16, file: LayerId, at: u64) {
        let have = self.file(file).map_or(0, |f| f.len());
        let inside = have.saturating_sub(at).min(len);
        out.stored(inside, file, at);
        let over = len.saturating_sub(inside);
        if over > 0 {
            let place = at.saturating_add(inside);
            out.unreadable_by(table, over, Fault::new("extent", place, "bytes before the end of the file"));
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
    fn read_run(&self, flat: &Pieces, what: Piece, at: u64, buf: &mut [u8]) -> Result<()> {
        match what {
            Piece::Zero | Piece::Parent => buf.fill(0),
            Piece::Stored { file, at: place } => {
                let file = self.file(file).ok_or_else(|| {
                    Error::corrupt("extent", Offset::<Image>::new(at), "a file that belongs to the chain")
                })?;
                file.read_at(Offset::new(place), buf)?;
            }
            Piece::Packed { table, skip, unit } => {
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
            Piece::Encrypted => {
                return Err(Error::Unsupported(format!("{} is encrypted by the container", Offset::<Image>::new(at))));
            }
            Piece::Unreadable { table, fault } => {
                let fault = flat.fault(fault);
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
            for (start, len, what) in flat.slice(at..at.saturating_add(before as u64)) {
                let (part, after) = rest.split_at_mut(usize::try_from(len).map_or(rest.len(), |n| n.min(rest.len())));
                self.read_run(flat, what, start, part)?;
                at = start.saturating_add(len);
                rest = after;
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
            for (from, len, what) in flat.slice(at..end) {
                let what = what.below();
                match out.last_mut() {
                    Some(last) if last.what.continued_by(last.len, &what) => last.len = last.len.saturating_add(len),
                    _ => out.push(Extent { start: Offset::new(from), len, what }),
                }
            }
            if flat.at() <= at {
                break;
            }
            at = flat.at();
        }
        Ok(out)
    }
    fn map(&self) -> Result<Map<Image>> {
        let numbers = 0..self.spans.len() as u64;
        let count = |n| self.flat(n).map(Pieces::count);
        let counts = numbers.clone().into_par_iter().map(count).collect::<Result<Vec<usize>>>()?;
        let mut map = Map::with_capacity(counts.iter().fold(0, |sum, n| sum.saturating_add(*n)));
        for number in numbers {
            self.flat(number)?.iter().for_each(|(_, len, what)| map.push(len, what.below()));
        }
        Ok(map)
    }
}

#[cfg(test)]
mod tests;

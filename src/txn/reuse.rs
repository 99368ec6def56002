//! Where copies go when the free units are too few: into units of the image that nobody needs, in an order in which nothing is
//! overwritten before it was read. Pure: ranges in, ranges out; its cost follows extents and pieces of 1 MiB, not bytes.

use std::collections::{BTreeMap, VecDeque};

use crate::extent::{Offset, Volume};
use crate::txn::Staging;
use crate::txn::io::PIECE;

/// A range of the volume: place and bytes.
pub type Range = (u64, u64);

/// Where some bytes of a stream are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Stored as they are, from this byte of the volume on.
    At(u64),
    /// Nowhere: they are zeros.
    Zeros,
    /// Somewhere that only a reader of the guest knows: compressed, inline, in another file.
    Decoded,
}

/// A stream that is to be copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// Which one, as [`crate::txn::Copy::entry`].
    pub entry: usize,
    /// Its bytes.
    pub size: u64,
    /// What it is made of, in order; what is missing at its end is [`Place::Decoded`].
    pub from: Vec<(u64, Place)>,
}

/// What a host's writer is told when free units are too few.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reuse {
    /// Bytes of a unit.
    pub unit: u64,
    /// The byte of the volume at which a unit begins.
    pub units_at: u64,
    /// The image's units that no linked file has: ordered, apart, whole units.
    pub left: Vec<Range>,
    /// What is copied, in the order in which it lies on the volume.
    pub wants: Vec<Want>,
}

/// Bytes that are put into units of the image, at a time when nobody needs what was there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// The batch that it belongs to; each is durable before the next one begins. From 0 on.
    pub batch: u32,
    /// Where to: whole units.
    pub to: Offset<Volume>,
    /// Bytes.
    pub len: u64,
    /// What the bytes are, in order: so many from this byte of the volume on, or zeros. None where they are what a copy or a new
    /// structure of the staging has there, which is kept in the journal.
    pub from: Option<Vec<(u64, Option<u64>)>>,
}

/// Who gets which units.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Of each copy where it goes, in the order of [`Reuse::wants`]: first of its units first. No range is both in free units and
    /// in units of the image.
    pub copies: Vec<(usize, Vec<Range>)>,
    /// What goes to units of the image, by batch, then by place.
    pub moves: Vec<Move>,
    /// Units of the image that are left when all is copied: new structures may go there.
    pub rest: Vec<Range>,
    /// What is left of the free units.
    pub free: Vec<Range>,
}

/// Units that can be given out: start to end, in units.
#[derive(Clone, Debug, Default)]
struct Pool {
    ranges: BTreeMap<u64, u64>,
    units: u64,
}

impl Pool {
    /// Adds units that are not in it.
    fn put(&mut self, mut start: u64, mut end: u64) {
        if start >= end {
            return;
        }
        self.units = self.units.saturating_add(end.saturating_sub(start));
        if let Some(after) = self.ranges.remove(&end) {
            end = after;
        }
        if let Some((&before, &before_end)) = self.ranges.range(..start).next_back()
            && before_end == start
        {
            start = before;
        }
        self.ranges.insert(start, end);
    }
    /// The first units of it, at most so many, as runs.
    fn take(&mut self, count: u64) -> Vec<(u64, u64)> {
        let mut out = Vec::new();
        let mut need = count;
        while need > 0
            && let Some((start, end)) = self.ranges.pop_first()
        {
            let part = end.saturating_sub(start).min(need);
            out.push((start, part));
            need = need.saturating_sub(part);
            self.units = self.units.saturating_sub(part);
            if start.saturating_add(part) < end {
                self.ranges.insert(start.saturating_add(part), end);
            }
        }
        out
    }
}

/// How many copies that are not done yet read each unit of the image: start to end and number.
#[derive(Debug, Default)]
struct Readers(BTreeMap<u64, (u64, u64)>);

impl Readers {
    /// Makes `at` the start of a segment where it lies within one.
    fn cut(&mut self, at: u64) {
        if let Some((start, (end, count))) = self.0.range(..at).next_back().map(|(s, v)| (*s, *v))
            && end > at
        {
            self.0.insert(start, (at, count));
            self.0.insert(at, (end, count));
        }
    }
    fn add(&mut self, start: u64, end: u64) {
        self.cut(start);
        self.cut(end);
        for (_, (_, count)) in self.0.range_mut(start..end) {
            *count = count.saturating_add(1);
        }
    }
    /// One reader fewer; what then has none goes to `into`.
    fn done(&mut self, start: u64, end: u64, into: &mut Pool) {
        self.cut(start);
        self.cut(end);
        let mut free = Vec::new();
        for (at, (_, count)) in self.0.range_mut(start..end) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                free.push(*at);
            }
        }
        for at in free {
            if let Some((end, _)) = self.0.remove(&at) {
                into.put(at, end);
            }
        }
    }
    /// What nobody reads.
    fn unread(&mut self, into: &mut Pool) {
        self.0.retain(|start, (end, count)| {
            if *count == 0 {
                into.put(*start, *end);
            }
            *count > 0
        });
    }
}

/// Some units of a stream.
#[derive(Clone, Copy, Debug)]
struct Part {
    want: usize,
    first: u64,
    units: u64,
}

/// Where some units of a stream go.
struct Given {
    want: usize,
    first: u64,
    start: u64,
    units: u64,
    /// None: to units that were free.
    batch: Option<u32>,
    /// Through the journal.
    kept: bool,
}

/// The most bytes that the journal keeps so that there is room to begin with, beside what it has to keep.
const ROOM: u64 = 256 << 20;
/// A batch has at least this part of all that goes to the image.
const BATCHES: u64 = 64;

impl Reuse {
    fn floor(&self, at: u64) -> u64 {
        at.saturating_sub(self.units_at).checked_div(self.unit).unwrap_or(0)
    }
    fn ceil(&self, at: u64) -> u64 {
        at.saturating_sub(self.units_at).div_ceil(self.unit.max(1))
    }
    fn place(&self, unit: u64) -> u64 {
        unit.saturating_mul(self.unit).saturating_add(self.units_at)
    }
    /// Units of the image that may be filled.
    pub fn units(&self) -> u64 {
        self.left.iter().map(|(_, len)| len.checked_div(self.unit).unwrap_or(0)).fold(0, u64::saturating_add)
    }
    /// Units that the copies need.
    pub fn needed(&self) -> u64 {
        self.wants.iter().map(|w| w.size.div_ceil(self.unit.max(1))).fold(0, u64::saturating_add)
    }

    /// What bytes `first` on of a stream are, as many as these units have; zeros behind its end.
    fn pieces(&self, index: &Index, part: Part) -> Vec<(u64, Place)> {
        let Some(want) = self.wants.get(part.want) else { return Vec::new() };
        let from = part.first.saturating_mul(self.unit);
        let len = part.units.saturating_mul(self.unit);
        let end = from.saturating_add(len).min(want.size);
        let mut out = Vec::new();
        let starts = index.0.get(part.want).map(Vec::as_slice).unwrap_or_default();
        let mut at = from;
        let mut i = starts.partition_point(|s| *s <= from).saturating_sub(1);
        while at < end {
            let start = starts.get(i).copied().unwrap_or(at);
            let (piece_end, place) = match want.from.get(i) {
                Some((len, place)) => (start.saturating_add(*len), *place),
                None => (end, Place::Decoded),
            };
            i = i.saturating_add(1);
            let upto = piece_end.min(end);
            if upto <= at {
                continue;
            }
            let place = match place {
                Place::At(p) => Place::At(p.saturating_add(at.saturating_sub(start))),
                other => other,
            };
            out.push((upto.saturating_sub(at), place));
            at = upto;
        }
        let zeros = len.saturating_sub(end.saturating_sub(from.min(end)));
        if zeros > 0 {
            out.push((zeros, Place::Zeros));
        }
        out
    }
    /// The units that a part of a stream reads, each as often as it is read by one unit of it: so the parts of a part read together
    /// what it reads. A unit is read twice where an edge of the stream's units lies within it.
    fn reads(&self, pieces: &[(u64, Place)]) -> Vec<(u64, u64)> {
        let unit = self.unit.max(1);
        let mut out = Vec::new();
        let mut into = 0u64;
        for (len, place) in pieces {
            if let Place::At(at) = place {
                let end = at.saturating_add(*len);
                out.push((self.floor(*at), self.ceil(end)));
                let edge = at.saturating_add(unit.saturating_sub(into));
                if edge < end && self.floor(edge) != self.ceil(edge) {
                    let edges = end.saturating_sub(1).saturating_sub(edge).checked_div(unit).unwrap_or(0);
                    let first = self.floor(edge);
                    out.push((first, first.saturating_add(edges).saturating_add(1)));
                }
            }
            into = into.saturating_add(*len).checked_rem(unit).unwrap_or(0);
        }
        out.retain(|(start, end)| start < end);
        out
    }

    /// Gives units to all copies: those of `free` first, then units of the image, in batches such that what a batch overwrites is read
    /// neither by it nor by a later one. What can't wait for room is kept in the journal. None where there are too few units.
    pub fn lay_out(&self, free: &[Range]) -> Option<Layout> {
        let index = Index::of(&self.wants);
        let most = PIECE.checked_div(self.unit).unwrap_or(0).max(1);
        let mut room = Pool::default();
        for (at, len) in free {
            room.put(self.floor(*at), self.floor(at.saturating_add(*len)));
        }
        // First of all: a guest may claim any size.
        if self.needed() > room.units.saturating_add(self.units()) {
            return None;
        }
        let mut readers = Readers::default();
        for (at, len) in &self.left {
            readers.0.insert(self.floor(*at), (self.floor(at.saturating_add(*len)), 0));
        }
        // What has to be decoded comes first, as it can't be moved later; then the order of the volume.
        let (mut decoded, mut plain) = (VecDeque::new(), VecDeque::new());
        for (want, one) in self.wants.iter().enumerate() {
            let all = one.size.div_ceil(self.unit.max(1));
            let mut first = 0u64;
            while first < all {
                let part = Part { want, first, units: all.saturating_sub(first).min(most) };
                let pieces = self.pieces(&index, part);
                self.reads(&pieces).iter().for_each(|(start, end)| readers.add(*start, *end));
                let encoded = pieces.iter().any(|(_, place)| *place == Place::Decoded);
                if encoded { &mut decoded } else { &mut plain }.push_back(part);
                first = first.saturating_add(part.units);
            }
        }
        let units = |parts: &VecDeque<Part>| parts.iter().map(|p| p.units).fold(0, u64::saturating_add);
        let mut now = Pool::default();
        readers.unread(&mut now);
        let mut work = Work { reuse: self, index: &index, readers, given: Vec::new(), kept: Vec::new() };
        for queue in [&mut decoded, &mut plain] {
            while room.units > 0
                && let Some(part) = queue.pop_front()
            {
                let (part, rest) = part.split(room.units);
                queue.again(rest);
                work.give(part, room.take(part.units), None, &mut now);
            }
        }
        decoded.into_iter().for_each(|part| work.keep(part, &mut now));

        let mut left = units(&plain);
        let least = left.div_ceil(BATCHES).min(ROOM.checked_div(self.unit).unwrap_or(0)).max(1);
        let mut next = Pool::default();
        let mut batch = 0u32;
        let mut begin = true;
        while let Some(part) = plain.pop_front() {
            plain.push_front(part);
            if begin || now.units == 0 {
                if !begin {
                    std::mem::swap(&mut now, &mut next);
                    batch = batch.saturating_add(1);
                }
                begin = false;
                while now.units < least.min(left)
                    && let Some(part) = plain.pop_front()
                {
                    let (part, rest) = part.split(least.min(left).saturating_sub(now.units));
                    plain.again(rest);
                    left = left.saturating_sub(part.units);
                    work.keep(part, &mut now);
                }
            }
            let Some(part) = plain.pop_front() else { break };
            let (part, rest) = part.split(now.units);
            plain.again(rest);
            left = left.saturating_sub(part.units);
            work.give(part, now.take(part.units), Some(batch), &mut next);
        }
        // All is read now.
        for (start, end) in next.ranges {
            now.put(start, end);
        }
        batch = batch.saturating_add(1);
        for part in std::mem::take(&mut work.kept) {
            let runs = now.take(part.units);
            if runs.iter().map(|(_, units)| *units).fold(0, u64::saturating_add) < part.units {
                return None;
            }
            work.enter(part, &runs, Some(batch), true);
        }
        let given = work.given;
        let ranges = |pool: Pool| -> Vec<Range> {
            let range = |(start, end)| (self.place(start), self.place(end).saturating_sub(self.place(start)));
            pool.ranges.into_iter().map(range).collect()
        };
        Some(Layout { rest: ranges(now), free: ranges(room), ..self.finish(&index, given) })
    }

    fn finish(&self, index: &Index, mut given: Vec<Given>) -> Layout {
        given.sort_unstable_by_key(|g| (g.batch, g.start));
        let mut moves: Vec<Move> = Vec::new();
        let mut last = None;
        let mut batch = 0;
        for g in &given {
            let Some(of) = g.batch else { continue };
            // Numbers without a gap.
            batch = match last {
                Some(before) if before != of => u32::saturating_add(batch, 1),
                _ => batch,
            };
            last = Some(of);
            let from = if g.kept {
                None
            } else {
                let pieces = self.pieces(index, Part { want: g.want, first: g.first, units: g.units });
                let at = |place: &Place| match place {
                    Place::At(at) => Some(*at),
                    _ => None,
                };
                Some(pieces.iter().map(|(len, place)| (*len, at(place))).collect::<Vec<_>>())
            };
            let (to, len) = (self.place(g.start), g.units.saturating_mul(self.unit));
            // Many small ones become one write.
            if let Some(before) = moves.last_mut()
                && before.batch == batch
                && before.to.get().saturating_add(before.len) == to
                && before.len.saturating_add(len) <= PIECE
            {
                match (&mut before.from, &from) {
                    (Some(all), Some(more)) => {
                        before.len = before.len.saturating_add(len);
                        all.extend_from_slice(more);
                        continue;
                    }
                    (None, None) => {
                        before.len = before.len.saturating_add(len);
                        continue;
                    }
                    _ => {}
                }
            }
            moves.push(Move { batch, to: Offset::new(to), len, from });
        }
        given.sort_unstable_by_key(|g| (g.want, g.first));
        let mut copies: Vec<(usize, Vec<Range>)> = self.wants.iter().map(|w| (w.entry, Vec::new())).collect();
        let mut last = (usize::MAX, false);
        for g in &given {
            let Some((_, to)) = copies.get_mut(g.want) else { continue };
            let (at, len) = (self.place(g.start), g.units.saturating_mul(self.unit));
            let like = (g.want, g.batch.is_some());
            match to.last_mut() {
                Some((start, have)) if last == like && start.saturating_add(*have) == at => {
                    *have = have.saturating_add(len);
                }
                _ => to.push((at, len)),
            }
            last = like;
        }
        Layout { copies, moves, ..Layout::default() }
    }
}

/// The byte of its stream at which each piece begins.
struct Index(Vec<Vec<u64>>);

impl Index {
    fn of(wants: &[Want]) -> Self {
        let starts = |want: &Want| {
            let mut at = 0u64;
            let mut all = Vec::with_capacity(want.from.len());
            for (len, _) in &want.from {
                all.push(at);
                at = at.saturating_add(*len);
            }
            all.push(at);
            all
        };
        Self(wants.iter().map(starts).collect())
    }
}

impl Part {
    /// The first units of it, and the rest.
    fn split(self, units: u64) -> (Self, Option<Self>) {
        if units >= self.units {
            return (self, None);
        }
        let rest =
            Self { first: self.first.saturating_add(units), units: self.units.saturating_sub(units), want: self.want };
        (Self { units, ..self }, Some(rest))
    }
}

trait Front {
    fn again(&mut self, part: Option<Part>);
}

impl Front for VecDeque<Part> {
    fn again(&mut self, part: Option<Part>) {
        part.into_iter().for_each(|part| self.push_front(part));
    }
}

#[cfg(test)]
mod tests;

struct Work<'a> {
    reuse: &'a Reuse,
    index: &'a Index,
    readers: Readers,
    given: Vec<Given>,
    /// What the journal keeps.
    kept: Vec<Part>,
}

impl Work<'_> {
    fn read(&mut self, part: Part, freed: &mut Pool) {
        let pieces = self.reuse.pieces(self.index, part);
        for (start, end) in self.reuse.reads(&pieces) {
            self.readers.done(start, end, freed);
        }
    }
    fn give(&mut self, part: Part, runs: Vec<(u64, u64)>, batch: Option<u32>, freed: &mut Pool) {
        self.read(part, freed);
        self.enter(part, &runs, batch, false);
    }
    fn keep(&mut self, part: Part, freed: &mut Pool) {
        self.read(part, freed);
        self.kept.push(part);
    }
    fn enter(&mut self, part: Part, runs: &[(u64, u64)], batch: Option<u32>, kept: bool) {
        let mut first = part.first;
        for (start, units) in runs {
            self.given.push(Given { want: part.want, first, start: *start, units: *units, batch, kept });
            first = first.saturating_add(*units);
        }
    }
}

/// Checks an order of moves, whoever made it: batches in order, targets apart, and no source that this or an earlier batch overwrites.
///
/// # Errors
/// The place at which it is not so.
pub(super) fn sound<'m>(moves: impl Iterator<Item = &'m Move> + Clone) -> Result<(), u64> {
    let end = |m: &Move| m.to.get().saturating_add(m.len);
    let mut targets: Vec<(u64, u64, u32)> = Vec::new();
    let mut batch = 0u32;
    for m in moves.clone() {
        let from: Option<u64> =
            m.from.as_ref().map(|from| from.iter().map(|(len, _)| *len).fold(0, u64::saturating_add));
        if m.batch < batch || m.batch > batch.saturating_add(1) || m.len == 0 || from.is_some_and(|len| len != m.len) {
            return Err(m.to.get());
        }
        batch = m.batch;
        targets.push((m.to.get(), end(m), m.batch));
    }
    targets.sort_unstable();
    let twice = targets.iter().zip(targets.iter().skip(1)).find(|(a, b)| b.0 < a.1);
    if let Some((_, again)) = twice {
        return Err(again.0);
    }
    for m in moves {
        for (len, at) in m.from.iter().flatten() {
            let Some(at) = at else { continue };
            let upto = at.saturating_add(*len);
            let first = targets.partition_point(|t| t.1 <= *at);
            let met = targets.get(first..).unwrap_or_default().iter().take_while(|t| t.0 < upto);
            if met.into_iter().any(|t| t.2 <= m.batch) {
                return Err(*at);
            }
        }
    }
    Ok(())
}

/// Ranges in order and apart without those of `without`, which are in order and apart too.
pub(crate) fn subtract(from: &[Range], without: &[Range]) -> Vec<Range> {
    let mut out = Vec::new();
    let mut i = 0usize;
    for (at, len) in from {
        let (mut at, end) = (*at, at.saturating_add(*len));
        while at < end {
            let Some((start, len)) = without.get(i).copied() else { break };
            let stop = start.saturating_add(len);
            if stop <= at {
                i = i.saturating_add(1);
                continue;
            }
            if start >= end {
                break;
            }
            if at < start {
                out.push((at, start.saturating_sub(at)));
            }
            at = stop;
        }
        if at < end {
            out.push((at, end.saturating_sub(at)));
        }
    }
    out
}

impl Staging {
    /// Tells what was free from what is the image's, in a staging whose writer filled both ([`Self::filled`]), and adds the moves that
    /// new structures need: they come last, through the journal.
    pub(crate) fn divide(&mut self, reuse: &Reuse) {
        let all: Vec<Range> = self.filled.iter().map(|(at, len)| (at.get(), *len)).collect();
        let free = subtract(&all, &reuse.left);
        let typed = |ranges: Vec<Range>| ranges.into_iter().map(|(at, len)| (Offset::new(at), len)).collect::<Vec<_>>();
        let reused = subtract(&all, &free);
        self.filled = typed(free);
        let mut moved: Vec<Range> = self.moves.iter().map(|m| (m.to.get(), m.len)).collect();
        moved.sort_unstable();
        let last = self.moves.last().map_or(0, |m| m.batch);
        let kept = self.moves.last().is_none_or(|m| m.from.is_none());
        let batch = if kept { last } else { last.saturating_add(1) };
        for (at, len) in subtract(&reused, &moved) {
            let mut done = 0u64;
            while done < len {
                let part = len.saturating_sub(done).min(PIECE.max(reuse.unit));
                let to = Offset::new(at.saturating_add(done));
                self.moves.push(Move { batch, to, len: part, from: None });
                done = done.saturating_add(part);
            }
        }
        self.reused = typed(reused);
    }
    /// All that is filled, whether it was free or the image's: in order.
    pub(crate) fn room(&self) -> Vec<Range> {
        let mut all: Vec<Range> = self.filled.iter().chain(&self.reused).map(|(at, len)| (at.get(), *len)).collect();
        all.sort_unstable();
        let mut out: Vec<Range> = Vec::new();
        for (at, len) in all {
            match out.last_mut() {
                Some((start, have)) if start.saturating_add(*have) == at => *have = have.saturating_add(len),
                _ => out.push((at, len)),
            }
        }
        out
    }
    /// Whether all of a range is filled, whether it was free or the image's.
    pub(crate) fn fills(room: &[Range], at: u64, len: u64) -> bool {
        let next = room.partition_point(|(from, have)| from.saturating_add(*have) <= at);
        room.get(next).is_some_and(|(from, have)| *from <= at && at.saturating_add(len) <= from.saturating_add(*have))
    }
}

//! The way of bytes down through every level of a nest of images: file, volume, image, the file that the image is, the
//! volume that this file lies in, and so on to the ground.

use std::collections::HashMap;
use std::ops::Range;

use rayon::prelude::*;

use crate::container::Part;
use crate::error::{Error, Result};
use crate::extent::{Encoding, Extent, LayerId, Offset, Place, Space, What};
use crate::stack::{Stack, Target};

/// Bytes of what is mapped that are followed down in one go, at least, and into how many parts it is cut at most.
const WINDOW: u64 = 64 << 20;
const WINDOWS: u64 = 1 << 11;
/// Windows that are worked on before their rows are written, at most; and bytes of rows from which on there are fewer.
const MOST_WINDOWS: u64 = 256;
const MUCH: usize = 8 << 20;
/// Bytes of a row, about.
const ROW: usize = 100;

/// One address space on the way down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// The level of the nest: 0 is the ground.
    pub level: usize,
    /// `volume`, `image` or `device`.
    pub space: &'static str,
    /// Its name there: `p1`, the container's kind, or the path of the file that the image is.
    pub name: String,
}

/// Where a stretch ends on its way down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is there as plain bytes down to the ground.
    Stored,
    /// Below its last place it is zeros.
    Zero,
    /// Below its last place it must be decoded.
    Encoded(Encoding),
    /// Below its last place it is in a layer that is not on this way, such as a backing file.
    Elsewhere,
}

impl End {
    /// The word in JSON lines.
    pub fn word(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Zero => "zero",
            Self::Encoded(Encoding::Inline) => "resident",
            Self::Encoded(Encoding::ContainerCompressed) => "container-compressed",
            Self::Encoded(Encoding::ContainerEncrypted) => "container-encrypted",
            Self::Encoded(Encoding::FsCompressed) => "fs-compressed",
            Self::Encoded(Encoding::FsEncrypted) => "fs-encrypted",
            Self::Encoded(Encoding::Unreadable) => "unreadable",
            Self::Elsewhere => "elsewhere",
        }
    }
}

/// A stretch of bytes that is in one piece on every level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'p> {
    /// Its first byte in what is mapped.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Its offset in each column, as far as it goes down.
    pub at: &'p [u64],
    /// How it ends.
    pub end: End,
    /// The file of the last image on its way that it is stored in, where that is not the one that was named: a backing file,
    /// an extent.
    pub file: Option<&'p str>,
}

/// A stretch, with its offsets elsewhere.
#[derive(Clone, Copy, Debug)]
struct Stretch<'s> {
    start: u64,
    len: u64,
    /// First and last of its offsets in the list of all.
    at: (usize, usize),
    end: End,
    file: Option<&'s str>,
    below: Option<LayerId>,
}

/// Stretches in order, gapless.
#[derive(Default)]
struct Stretches<'s> {
    list: Vec<Stretch<'s>>,
    at: Vec<u64>,
}

impl<'s> Stretches<'s> {
    fn start<S: Space, B: Space>(extents: impl IntoIterator<Item = Extent<S, B>>) -> Self {
        let mut out = Self::default();
        for e in extents {
            out.lowered(e.start.get(), e.len, &[], None, e.what);
        }
        out
    }
    fn places(&self, of: &Stretch<'s>) -> &[u64] {
        self.at.get(of.at.0..of.at.1).unwrap_or_default()
    }
    /// Appends a stretch whose offsets are `above`, with one more step down.
    #[inline]
    fn lowered<B: Space>(&mut self, start: u64, len: u64, above: &[u64], file: Option<&'s str>, what: What<B>) {
        let first = self.at.len();
        self.at.extend_from_slice(above);
        let (end, below) = match what {
            What::Stored(Place { layer, offset }) => {
                self.at.push(offset.get());
                (End::Stored, Some(layer))
            }
            What::Zero => (End::Zero, None),
            What::Encoded(how) => (End::Encoded(how), None),
        };
        self.list.push(Stretch { start, len, at: (first, self.at.len()), end, file, below });
    }
    /// One step down: every stored stretch is cut up by the extents of its range in the layer that it is stored in, which
    /// `cut` puts into a list that is empty; false where it does not know the layer.
    fn descend<S: Space, B: Space>(
        &mut self,
        cut: impl Fn(LayerId, Range<Offset<S>>, &mut Vec<Extent<S, B>>) -> Result<bool>,
    ) -> Result<()> {
        let mut out = Self::default();
        let mut extents = Vec::new();
        for piece in &self.list {
            let places = self.places(piece);
            let (above, at) = match places.split_last() {
                Some((at, above)) if piece.end == End::Stored => (above, *at),
                _ => {
                    out.keep(*piece, places);
                    continue;
                }
            };
            extents.clear();
            let end = at.saturating_add(piece.len);
            let known = match piece.below {
                Some(id) => cut(id, Offset::new(at)..Offset::new(end), &mut extents)?,
                None => false,
            };
            if !known {
                out.keep(Stretch { end: End::Elsewhere, ..*piece }, places);
                continue;
            }
            if extents.last().is_none_or(|e| e.end().get() < end) {
                let expected = format!("{} bytes within its layer", piece.len);
                return Err(Error::corrupt("extent", Offset::<S>::new(at), expected));
            }
            // Mostly the offsets above are few, and one more is what differs.
            let mut places = above.to_vec();
            for e in &extents {
                let start = piece.start.saturating_add(e.start.get().saturating_sub(at));
                places.push(e.start.get());
                out.lowered(start, e.len, &places, piece.file, e.what);
                places.pop();
            }
        }
        *self = out;
        Ok(())
    }
    fn keep(&mut self, piece: Stretch<'s>, places: &[u64]) {
        let first = self.at.len();
        self.at.extend_from_slice(places);
        self.list.push(Stretch { at: (first, self.at.len()), ..piece });
    }
    /// Notes in which of an image's further files stretches are stored.
    fn name_files(&mut self, names: &HashMap<LayerId, &'s str>) {
        for piece in self.list.iter_mut().filter(|piece| piece.end == End::Stored) {
            piece.file = match names.is_empty() {
                true => None,
                false => piece.below.and_then(|id| names.get(&id).copied()),
            };
        }
    }
    fn pieces(&self) -> impl DoubleEndedIterator<Item = Piece<'_>> + '_ {
        self.list.iter().map(|s| Piece { start: s.start, len: s.len, at: self.places(s), end: s.end, file: s.file })
    }
}

/// What all stretches are together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// How many there are.
    pub extents: u64,
    /// Bytes of those that are stored, zero, encoded, elsewhere.
    pub bytes: [u64; 4],
}

impl Totals {
    fn count(&mut self, piece: &Piece<'_>) {
        let which = match piece.end {
            End::Stored => 0,
            End::Zero => 1,
            End::Encoded(_) => 2,
            End::Elsewhere => 3,
        };
        self.extents = self.extents.saturating_add(1);
        if let Some(sum) = self.bytes.get_mut(which) {
            *sum = sum.saturating_add(piece.len);
        }
    }
    fn add(&mut self, more: &Self) {
        self.extents = self.extents.saturating_add(more.extents);
        for (sum, n) in self.bytes.iter_mut().zip(more.bytes) {
            *sum = sum.saturating_add(n);
        }
    }
}

type Step<'s> = Box<dyn Fn(&mut Stretches<'s>) -> Result<()> + Send + Sync + 's>;
type Begin<'s> = Box<dyn Fn(Range<u64>) -> Stretches<'s> + Send + Sync + 's>;

/// The levels of what is mapped, and the steps from one to the next.
pub struct Levels<'s> {
    /// The address spaces, from the highest to the ground.
    pub columns: Vec<Column>,
    /// Bytes of what is mapped.
    pub len: u64,
    begin: Begin<'s>,
    steps: Vec<Step<'s>>,
}

/// The rows of a window. The stretches at its edges may go on beside it.
struct Window {
    first: Option<Owned>,
    rows: Vec<u8>,
    totals: Totals,
    last: Option<Owned>,
}

/// A stretch by itself.
#[derive(PartialEq, Eq)]
struct Owned {
    start: u64,
    len: u64,
    at: Vec<u64>,
    end: End,
    file: Option<String>,
}

impl Owned {
    fn of(piece: Piece<'_>) -> Self {
        let Piece { start, len, at, end, file } = piece;
        Self { start, len, at: at.to_vec(), end, file: file.map(str::to_owned) }
    }
    fn piece(&self) -> Piece<'_> {
        Piece { start: self.start, len: self.len, at: &self.at, end: self.end, file: self.file.as_deref() }
    }
    /// Whether `next` continues it on every level: it was cut by a window only.
    fn continued_by(&self, next: &Self) -> bool {
        self.end == next.end
            && self.file == next.file
            && self.at.len() == next.at.len()
            && self.at.iter().zip(&next.at).all(|(a, b)| a.checked_add(self.len) == Some(*b))
    }
}

impl<'s> Levels<'s> {
    fn column(&mut self, level: usize, space: &'static str, name: impl Into<String>) {
        self.columns.push(Column { level, space, name: name.into() });
    }
    fn step(&mut self, step: impl Fn(&mut Stretches<'s>) -> Result<()> + Send + Sync + 's) {
        self.steps.push(Box::new(step));
    }
    /// All the way down for a part of what is mapped.
    fn follow(&self, range: Range<u64>) -> Result<Stretches<'s>> {
        let mut all = (self.begin)(range);
        self.steps.iter().try_for_each(|step| step(&mut all))?;
        Ok(all)
    }
    /// What of `range` lies as it is in the ground source itself: first byte, bytes, and where there; in order.
    ///
    /// # Errors
    /// What reading the layers' tables meets.
    pub fn on_ground(&self, range: Range<u64>) -> Result<Vec<(u64, u64, u64)>> {
        let all = self.follow(range)?;
        let there = |p: &Piece<'_>| p.end == End::Stored && p.file.is_none() && p.at.len() == self.columns.len();
        Ok(all.pieces().filter(there).filter_map(|p| Some((p.start, p.len, *p.at.last()?))).collect())
    }
    fn window(&self, range: Range<u64>, row: &(impl Fn(&Piece<'_>, &mut Vec<u8>) + Sync)) -> Result<Window> {
        let all = self.follow(range)?;
        let mut pieces = all.pieces();
        let (first, last) = (pieces.next().map(Owned::of), pieces.next_back().map(Owned::of));
        let mut out = Window {
            first,
            rows: Vec::with_capacity(all.list.len().saturating_mul(ROW)),
            totals: Totals::default(),
            last,
        };
        for piece in pieces {
            out.totals.count(&piece);
            row(&piece, &mut out.rows);
        }
        Ok(out)
    }
    /// Makes a row of every piece, in order; `write` is given many of them at once.
    ///
    /// # Errors
    /// What reading the layers' tables meets, and what `write` says.
    pub fn rows<E: From<Error>>(
        &self,
        row: impl Fn(&Piece<'_>, &mut Vec<u8>) + Sync,
        write: impl FnMut(&[u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<Totals, E> {
        let size = WINDOW.max(self.len.div_ceil(WINDOWS).checked_next_power_of_two().unwrap_or(self.len));
        self.rows_by(size, row, write)
    }
    fn rows_by<E: From<Error>>(
        &self,
        size: u64,
        row: impl Fn(&Piece<'_>, &mut Vec<u8>) + Sync,
        mut write: impl FnMut(&[u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<Totals, E> {
        let (mut at, count, mut batch) = (0, self.len.div_ceil(size), 1);
        let mut totals = Totals::default();
        let mut waiting: Option<Owned> = None;
        let mut text = Vec::new();
        while at < count {
            let end = count.min(at.saturating_add(batch));
            let start = |n: u64| n.saturating_mul(size);
            let window = |n: u64| self.window(start(n)..start(n.saturating_add(1)).min(self.len), &row);
            let done: Vec<Window> = (at..end).into_par_iter().map(window).collect::<Result<_>>()?;
            let mut made = 0usize;
            for window in done {
                for (piece, before) in [(window.first, true), (window.last, false)] {
                    if let Some(piece) = piece {
                        waiting = Some(match waiting.take() {
                            Some(last) if before && last.continued_by(&piece) => {
                                Owned { len: last.len.saturating_add(piece.len), ..last }
                            }
                            last => {
                                if let Some(last) = last {
                                    totals.count(&last.piece());
                                    row(&last.piece(), &mut text);
                                }
                                piece
                            }
                        });
                    }
                    if before && !window.rows.is_empty() {
                        // What comes behind the first piece ends it.
                        if let Some(last) = waiting.take() {
                            totals.count(&last.piece());
                            row(&last.piece(), &mut text);
                        }
                        write(&text)?;
                        write(&window.rows)?;
                        text.clear();
                    }
                }
                totals.add(&window.totals);
                made = made.saturating_add(window.rows.len());
            }
            at = end;
            batch = match made {
                0..MUCH => batch.saturating_mul(2).min(MOST_WINDOWS),
                _ => batch.div_ceil(2),
            };
        }
        if let Some(last) = waiting {
            totals.count(&last.piece());
            row(&last.piece(), &mut text);
        }
        write(&text)?;
        Ok(totals)
    }
}

/// The levels of what `stack` names; `names` are those of the ground source and of each file that was opened in it.
///
/// # Errors
/// A directory or a link, which have no bytes of their own.
pub fn trace<'s>(stack: &'s Stack, names: &[String]) -> Result<Levels<'s>> {
    let nowhere = || Error::NotFound("the address opens no image".into());
    let last = stack.levels.len().checked_sub(1).ok_or_else(nowhere)?;
    let level = stack.levels.get(last).ok_or_else(nowhere)?;
    let mut all;
    // The volume that is passed next; none where it begins with an image.
    let mut volume;
    match &stack.target {
        Target::Object(v, _, id) => {
            let tree = level.guests.get(*v).ok_or_else(nowhere)?.tree()?;
            let stream = tree.data(*id).ok_or_else(|| {
                Error::Usage(
                    "a directory, link or special file has no bytes to be mapped: name a file or a stream".into(),
                )
            })?;
            all = begin(tree.extents(stream).to_vec());
            volume = Some(*v);
        }
        Target::Stream(v, _, stream) => {
            let tree = level.guests.get(*v).ok_or_else(nowhere)?.tree()?;
            all = begin(tree.extents(*stream).to_vec());
            volume = Some(*v);
        }
        Target::Volume(v) => {
            let slot = level.table.slots.get(*v).ok_or_else(nowhere)?;
            all = begin(slot.layer.map()?.extents().to_vec());
            volume = None;
        }
        Target::Disk => {
            let image = &level.disk.image;
            all = begin(vec![Extent::<crate::extent::Volume>::stored(0, image.len(), image.id(), 0)]);
            volume = None;
        }
    }
    for (depth, level) in stack.levels.iter().enumerate().rev() {
        if let Some(v) = volume {
            let slot = level.table.slots.get(v).ok_or_else(nowhere)?;
            all.column(depth, "volume", slot.name.as_str());
            all.step(|s| {
                s.descend(|id, range, out| {
                    let known = id == slot.layer.id();
                    if known {
                        *out = slot.layer.extents(range)?;
                    }
                    Ok(known)
                })
            });
        }
        all.column(depth, "image", level.disk.kind);
        let files: HashMap<LayerId, &str> = parts(&level.disk.parts);
        all.step(move |s| {
            s.descend(|id, range, out| {
                let known = id == level.disk.image.id();
                if known {
                    *out = level.disk.image.extents(range)?;
                }
                Ok(known)
            })?;
            s.name_files(&files);
            Ok(())
        });
        all.column(depth, "device", names.get(depth).cloned().unwrap_or_default());
        let Some(within) = &level.within else { break };
        // A device is its file's stream, byte for byte.
        let mut maps = HashMap::from([(level.device.id(), &within.map)]);
        let beside = level.disk.parts.iter().zip(&level.beside);
        maps.extend(beside.filter_map(|(part, within)| Some((part.device.id(), &within.as_ref()?.map))));
        all.step(move |s| {
            s.descend(|id, range, out| {
                let map = maps.get(&id);
                out.extend(map.iter().flat_map(|map| map.slice(range.clone())));
                Ok(map.is_some())
            })
        });
        volume = Some(within.volume);
    }
    Ok(all)
}

/// The levels below these extents, without a step so far.
fn begin<'s, S: Space, B: Space>(list: Vec<Extent<S, B>>) -> Levels<'s> {
    let len = list.last().map_or(0, |e| e.end().get());
    let cut = move |range: Range<u64>| {
        let range = Offset::new(range.start)..Offset::new(range.end);
        let first = list.partition_point(|e| e.end() <= range.start);
        let inside = list.get(first..).unwrap_or_default().iter().take_while(|e| e.start < range.end);
        Stretches::start(inside.filter_map(|e| e.clip(&range)))
    };
    Levels { columns: Vec::new(), len, begin: Box::new(cut), steps: Vec::new() }
}

fn parts(parts: &[Part]) -> HashMap<LayerId, &str> {
    parts.iter().map(|part| (part.device.id(), part.name.as_str())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::{Image, Map, Stream, Volume};

    /// The layers of a file: a volume and an image.
    fn levels(pieces: u64) -> (Levels<'static>, LayerId) {
        let (volume, image) = (LayerId::fresh(), LayerId::fresh());
        let mut file = Map::<Stream, Volume>::new();
        for n in 0..pieces {
            file.push_stored(8, volume, n * 1000 + 100);
            file.push(4, What::Zero);
            file.push_stored(4, volume, n * 1000 + 300);
        }
        let mut below = Map::<Volume, Image>::new();
        for n in 0..pieces {
            below.push_stored(104, image, n * 5000 + 1000);
            below.push(196, What::Encoded(Encoding::ContainerCompressed));
            below.push_stored(700, LayerId::fresh(), 0);
        }
        let mut all = begin(file.extents().to_vec());
        let step = move |s: &mut Stretches<'static>, id: LayerId, map: &Map<_, _>| {
            s.descend::<Volume, Image>(|known, range, out| {
                out.extend(map.slice(range));
                Ok(known == id)
            })
        };
        all.step(move |s| step(s, volume, &below));
        let mut disk = Map::<Image>::new();
        disk.push_stored(pieces * 5000, LayerId::fresh(), 0);
        all.step(move |s| {
            s.descend(|known, range, out| {
                out.extend(disk.slice(range));
                Ok(known == image)
            })
        });
        (all, image)
    }

    #[test]
    fn a_piece_is_cut_where_any_level_is_cut() {
        let all = levels(1).0.follow(0..16).unwrap();
        let got: Vec<_> = all.pieces().map(|p| (p.start, p.len, p.at.to_vec(), p.end.word())).collect();
        assert_eq!(
            got,
            [
                (0, 4, vec![100, 1100, 1100], "stored"),
                (4, 4, vec![104], "container-compressed"),
                (8, 4, vec![], "zero"),
                (12, 4, vec![300, 0], "elsewhere"),
            ]
        );
    }

    #[test]
    fn windows_cut_nothing() {
        let (all, _) = levels(50);
        let row = |p: &Piece<'_>, out: &mut Vec<u8>| {
            out.extend_from_slice(format!("{} {} {:?} {}\n", p.start, p.len, p.at, p.end.word()).as_bytes());
        };
        let mut want = Vec::new();
        all.follow(0..all.len).unwrap().pieces().for_each(|p| row(&p, &mut want));
        for size in [1, 3, 7, 16, 100, 800, 5000] {
            let mut got = Vec::new();
            let totals = all
                .rows_by(size, row, |bytes| {
                    got.extend_from_slice(bytes);
                    Ok::<_, Error>(())
                })
                .unwrap();
            assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(&want), "{size}");
            assert_eq!(totals, Totals { extents: 200, bytes: [200, 200, 200, 200] });
        }
    }
}

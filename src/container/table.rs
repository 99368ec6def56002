//! What one file of a chain, or one set of files that belong together, says of its virtual disk.
//!
//! A format gives a [`Table`]; what lies below it in a chain is none of its business. [`super::flat`] joins the tables of
//! a chain into one index.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::extent::{Device, Encoding, LayerId, Map, Offset, Place, ReadAt, What};

/// What a stretch of the virtual disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// The bytes of a file from `at` on. A part that passes the end of that file is made unreadable by the chain.
    Stored {
        /// One of [`Table::files`].
        file: LayerId,
        /// Bytes from that file's start.
        at: u64,
    },
    /// Zeros, whatever the parent has.
    Zero,
    /// Bytes of a unit that has to be decoded (a compressed cluster, grain or chunk).
    Packed {
        /// Position of the table in its chain.
        table: u16,
        /// Bytes of the decoded unit before these.
        skip: u32,
        /// Which unit: the table's own token, from which [`Table::unpack`] finds and decodes it.
        unit: u64,
    },
    /// Nothing is said here: what the parent has, zeros where there is none.
    Parent,
    /// Encrypted by the container.
    Encrypted,
    /// What says where the bytes are is damaged. Made by [`Pieces::unreadable`].
    Unreadable {
        /// Position of the table in its chain.
        table: u16,
        /// Which fault it is, of [`Pieces::fault`].
        fault: u32,
    },
}

impl Piece {
    /// The piece that lies `bytes` further on.
    #[inline]
    pub(super) fn skip(self, bytes: u64) -> Self {
        match self {
            Self::Stored { file, at } => Self::Stored { file, at: at.saturating_add(bytes) },
            Self::Packed { table, skip, unit } => {
                Self::Packed { table, skip: skip.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX)), unit }
            }
            other => other,
        }
    }
    /// What it is to those above the container.
    pub(super) fn below(self) -> What<Device> {
        match self {
            Self::Stored { file, at } => What::Stored(Place { layer: file, offset: Offset::new(at) }),
            Self::Zero | Self::Parent => What::Zero,
            Self::Packed { .. } => What::Encoded(Encoding::ContainerCompressed),
            Self::Encrypted => What::Encoded(Encoding::ContainerEncrypted),
            Self::Unreadable { .. } => What::Encoded(Encoding::Unreadable),
        }
    }
}

/// Why a stretch can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The structure by its format's own name, such as `qcow2 L2 entry`.
    pub structure: &'static str,
    /// Where it lies in its file.
    pub at: u64,
    /// What was expected there.
    pub expected: Cow<'static, str>,
}

impl Fault {
    /// A structure at a place of its file that is not as expected.
    pub fn new(structure: &'static str, at: u64, expected: impl Into<Cow<'static, str>>) -> Self {
        Self { structure, at, expected: expected.into() }
    }
    /// A structure that could not be read.
    pub fn failed(structure: &'static str, at: u64, error: &Error) -> Self {
        Self::new(structure, at, format!("that it can be read: {error}"))
    }
    /// The error that reading such a stretch is.
    pub fn error(&self) -> Error {
        Error::corrupt(self.structure, Offset::<Device>::new(self.at), self.expected.as_ref())
    }
}

/// The pieces of a range: in order, gapless, neighbours merged. Of one table while it says what it has, of a whole chain
/// when it was resolved.
#[derive(Debug, Default)]
pub struct Pieces {
    table: u16,
    start: u64,
    end: u64,
    /// Where each begins, and what it is. It ends where the next begins.
    list: Vec<(u64, Piece)>,
    faults: Vec<Fault>,
}

impl Pieces {
    /// No piece yet of a range that begins at `start`.
    pub fn new(start: u64) -> Self {
        Self::of(0, start)
    }
    /// The same, by the table that has this position in its chain.
    pub(super) fn of(table: u16, start: u64) -> Self {
        Self { table, start, end: start, ..Self::default() }
    }
    /// Where the next piece begins on the virtual disk.
    pub fn at(&self) -> u64 {
        self.end
    }
    /// Appends `len` bytes, merged with those before where they continue them. Nothing for 0 bytes.
    #[inline]
    pub fn push(&mut self, len: u64, piece: Piece) {
        if len == 0 {
            return;
        }
        let continues = self.list.last().is_some_and(|(start, last)| {
            let before = self.end.saturating_sub(*start);
            // A skip beyond 32 bits stands for no place.
            let fits = !matches!(last, Piece::Packed { .. }) || u32::try_from(before).is_ok();
            fits && last.skip(before) == piece
        });
        if !continues {
            self.list.push((self.end, piece));
        }
        self.end = self.end.saturating_add(len);
    }
    /// How many there are.
    pub fn count(&self) -> usize {
        self.list.len()
    }
    /// Appends bytes stored in a file.
    #[inline]
    pub fn stored(&mut self, len: u64, file: LayerId, at: u64) {
        self.push(len, Piece::Stored { file, at });
    }
    /// Appends zeros.
    pub fn zero(&mut self, len: u64) {
        self.push(len, Piece::Zero);
    }
    /// Appends what the parent has.
    pub fn parent(&mut self, len: u64) {
        self.push(len, Piece::Parent);
    }
    /// Appends bytes of a unit that has to be decoded.
    pub fn packed(&mut self, len: u64, unit: u64, skip: u32) {
        self.push(len, Piece::Packed { table: self.table, skip, unit });
    }
    /// Appends bytes that can't be had. Neighbours that differ only in the place of their entries become one, with the first
    /// place.
    pub fn unreadable(&mut self, len: u64, fault: Fault) {
        self.unreadable_by(self.table, len, fault);
    }
    /// The same, by another table of the chain.
    pub(super) fn unreadable_by(&mut self, table: u16, len: u64, fault: Fault) {
        if let (Some((_, Piece::Unreadable { table: of, .. })), Some(last)) = (self.list.last(), self.faults.last())
            && *of == table
            && last.structure == fault.structure
            && last.expected == fault.expected
        {
            self.end = self.end.saturating_add(len);
            return;
        }
        if len > 0 {
            let number = u32::try_from(self.faults.len()).unwrap_or(u32::MAX);
            self.faults.push(fault);
            self.push(len, Piece::Unreadable { table, fault: number });
        }
    }
    /// Where the range begins.
    pub(super) fn start(&self) -> u64 {
        self.start
    }
    /// Every piece with its first byte and its length.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64, Piece)> + '_ {
        self.onward(0)
    }
    /// The fault of an unreadable piece.
    pub fn fault(&self, number: u32) -> Option<&Fault> {
        self.faults.get(number as usize)
    }
    /// The pieces in `range`, clipped to it. O(log n) to the first.
    pub(super) fn slice(&self, range: Range<u64>) -> impl Iterator<Item = (u64, u64, Piece)> + '_ {
        let first = self.list.partition_point(|(start, _)| *start <= range.start).saturating_sub(1);
        self.onward(first).take_while(move |(start, ..)| *start < range.end).filter_map(move |(start, len, piece)| {
            let from = range.start.max(start);
            let len = start.saturating_add(len).min(range.end).saturating_sub(from);
            (len > 0).then(|| (from, len, piece.skip(from.saturating_sub(start))))
        })
    }
    fn onward(&self, first: usize) -> impl Iterator<Item = (u64, u64, Piece)> + '_ {
        let list = self.list.get(first..).unwrap_or_default();
        let ends = list.iter().skip(1).map(|(start, _)| *start).chain([self.end]);
        list.iter().zip(ends).map(|((start, piece), end)| (*start, end.saturating_sub(*start), *piece))
    }
    /// Says zeros of what is left to a parent that there is not, and gives back room that is not needed.
    pub(super) fn resolved(mut self) -> Self {
        for (_, piece) in &mut self.list {
            if *piece == Piece::Parent {
                *piece = Piece::Zero;
            }
        }
        self.list.shrink_to_fit();
        self
    }
    /// No piece yet of the same range, with the same faults and room for as many pieces.
    pub(super) fn afresh(&mut self) -> Self {
        let (list, faults) = (Vec::with_capacity(self.list.len()), std::mem::take(&mut self.faults));
        Self { table: self.table, start: self.start, end: self.start, list, faults }
    }
}

/// What a container says of its virtual disk, without its parents.
///
/// Opening has read headers and whatever is small; [`pieces`](Self::pieces) reads the tables of the range that it is asked
/// for, in bulk. It is called once for each span of the chain, by any thread.
pub trait Table: Send + Sync {
    /// Bytes of the virtual disk.
    fn len(&self) -> u64;
    /// Whether the virtual disk has no byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Bytes of the virtual disk that are best resolved in one go: what one table of the second level covers, or more. A
    /// hint; [`pieces`](Self::pieces) takes any range.
    fn span(&self) -> u64;
    /// Appends the pieces of `range`, which lies within the length, to `out`, whose [`Pieces::at`] is the start of the
    /// range: in order, gapless, to the end of the range. Entries that are wrong become [`Pieces::unreadable`], tables that
    /// can't be read as well: an error is for what leaves nothing to be said of the whole range.
    ///
    /// # Errors
    /// As said.
    fn pieces(&self, range: Range<u64>, out: &mut Pieces) -> Result<()>;
    /// Decodes one packed unit into `out`, which is empty. What it allocates is bounded by the format's largest unit,
    /// whatever the bytes say.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where it can't be decoded.
    fn unpack(&self, unit: u64, out: &mut Vec<u8>) -> Result<()> {
        let _ = out;
        Err(Error::Unsupported(format!("nothing is compressed here, unit {unit:#x}")))
    }
    /// The files that pieces may be stored in.
    fn files(&self) -> &[Arc<dyn ReadAt<Device>>];
    /// The name of the file, for messages; empty for the one that the address names.
    fn name(&self) -> &str {
        ""
    }
    /// The bytes of the file that each snapshot has alone, in the order of [`super::Disk::snapshots`]. Reads all tables.
    ///
    /// # Errors
    /// Where they can't be read, or are too many.
    fn alone(&self) -> Result<Vec<u64>> {
        Ok(Vec::new())
    }
    /// What a child has on record of its parent to know it again: a CID, a UUID. Empty where the format has none.
    fn identity(&self) -> &str {
        ""
    }
}

/// A table that is a map: a raw image, a fixed VHD, flat extents.
pub struct Plain {
    map: Map<crate::extent::Image>,
    files: Vec<Arc<dyn ReadAt<Device>>>,
    identity: String,
}

impl Plain {
    /// The disk that `map` describes, stored in `files`. What the map has as encoded can't be read.
    pub fn new(map: Map<crate::extent::Image>, files: Vec<Arc<dyn ReadAt<Device>>>) -> Self {
        Self { map, files, identity: String::new() }
    }
    /// The same, with what children have on record of it.
    #[must_use]
    pub fn identified(self, identity: String) -> Self {
        Self { identity, ..self }
    }
    /// The map.
    pub fn map(&self) -> &Map<crate::extent::Image> {
        &self.map
    }
}

impl Table for Plain {
    fn len(&self) -> u64 {
        self.map.len()
    }
    fn span(&self) -> u64 {
        self.map.len()
    }
    fn pieces(&self, range: Range<u64>, out: &mut Pieces) -> Result<()> {
        for e in self.map.slice(Offset::new(range.start)..Offset::new(range.end)) {
            match e.what {
                What::Stored(p) => out.stored(e.len, p.layer, p.offset.get()),
                What::Zero => out.zero(e.len),
                What::Encoded(_) => out.unreadable(e.len, Fault::new("extent", e.start.get(), "bytes as they are")),
            }
        }
        Ok(())
    }
    fn identity(&self) -> &str {
        &self.identity
    }
    fn files(&self) -> &[Arc<dyn ReadAt<Device>>] {
        &self.files
    }
}

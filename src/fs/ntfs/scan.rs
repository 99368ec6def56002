//! MFT records into flat arenas: nothing is allocated for a record, names and runs go behind those of the one before.

use crate::bytes::Fields;
use crate::error::Error;
use crate::extent::{Offset, Volume};
use crate::fs::ntfs::layout::{self, Attribute, Body, FileName, IN_USE, Record, Reference, kind};
use crate::fs::ntfs::runs::{self, Run};
use crate::fs::utf16;

/// Damage of one chunk that is told one by one; the rest is counted.
const MAX_PROBLEMS: usize = 200;

/// A stretch of one of a chunk's arenas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    at: u32,
    len: u32,
}

impl Span {
    fn from(start: usize, end: usize) -> Self {
        let at = u32::try_from(start).unwrap_or(u32::MAX);
        Self { at, len: u32::try_from(end).unwrap_or(u32::MAX).saturating_sub(at) }
    }
    /// The stretch of `arena`.
    pub fn of<T>(self, arena: &[T]) -> &[T] {
        let at = self.at as usize;
        arena.get(at..at.saturating_add(self.len as usize)).unwrap_or_default()
    }
    /// Whether it is empty.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }
}

/// A record in use.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rec {
    /// Its number.
    pub number: u64,
    /// Its sequence number.
    pub sequence: u16,
    /// [`layout::DIRECTORY`].
    pub flags: u16,
    /// Its base record, 0 for a base record.
    pub base: Reference,
    /// Times and attributes, where it has them.
    pub info: Option<([i64; 4], u32)>,
    /// In [`Chunk::names`].
    pub names: Span,
    /// In [`Chunk::pieces`].
    pub pieces: Span,
    /// Whether it has an attribute list.
    pub listed: bool,
}

/// A `$FILE_NAME`.
#[derive(Clone, Copy, Debug)]
pub struct Name {
    /// The directory.
    pub parent: Reference,
    /// Namespace.
    pub space: u8,
    /// Size of the data as the name's copy has it.
    pub size: u64,
    /// In [`Chunk::text`].
    pub text: Span,
}

/// A value, or a piece of one: of `$DATA`, `$ATTRIBUTE_LIST`, `$REPARSE_POINT`, `$EA`, or of what one asks for.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Type of the attribute.
    pub kind: u32,
    /// Its name, in [`Chunk::text`].
    pub name: Span,
    /// Flags of the attribute.
    pub flags: u16,
    /// A compression unit is 2^this clusters.
    pub unit: u8,
    /// Length in bytes.
    pub size: u64,
    /// Initialized length in bytes.
    pub valid: u64,
    /// First VCN.
    pub lowest: u64,
    /// In [`Chunk::runs`]; none for a resident value.
    pub runs: Option<Span>,
    /// The resident value in [`Chunk::text`], but for `$DATA`.
    pub value: Span,
    /// The record's number in the high 48 bits, the attribute's place in it in the low 16.
    pub locator: u64,
}

/// What was found in some records.
#[derive(Debug, Default)]
pub struct Chunk {
    /// Records in use, by number.
    pub recs: Vec<Rec>,
    /// Their names.
    pub names: Vec<Name>,
    /// Their values.
    pub pieces: Vec<Piece>,
    /// The runs of these.
    pub runs: Vec<Run>,
    /// Names in WTF-8, and resident values.
    pub text: Vec<u8>,
    /// Damage: record and what is wrong.
    pub problems: Vec<(u64, Error)>,
    /// Damage beyond [`MAX_PROBLEMS`].
    pub more_problems: u64,
}

/// What the records of one volume are to be understood with.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// Clusters of the volume.
    pub clusters: u64,
    /// One more type of attribute that is of interest, 0 for none.
    pub extra: u32,
}

impl Chunk {
    /// Makes it empty, keeping the room that it has.
    pub fn clear(&mut self) {
        self.recs.clear();
        self.names.clear();
        self.pieces.clear();
        self.runs.clear();
        self.text.clear();
        self.problems.clear();
        self.more_problems = 0;
    }
    /// Adds a record of another chunk with all that belongs to it.
    pub fn copy(&mut self, from: &Self, rec: &Rec) {
        let (names, pieces) = (self.names.len(), self.pieces.len());
        for name in rec.names.of(&from.names) {
            let text = push(&mut self.text, name.text.of(&from.text));
            self.names.push(Name { text, ..*name });
        }
        for piece in rec.pieces.of(&from.pieces) {
            let name = push(&mut self.text, piece.name.of(&from.text));
            let value = push(&mut self.text, piece.value.of(&from.text));
            let runs = piece.runs.map(|runs| push(&mut self.runs, runs.of(&from.runs)));
            self.pieces.push(Piece { name, value, runs, ..*piece });
        }
        let (names, pieces) = (Span::from(names, self.names.len()), Span::from(pieces, self.pieces.len()));
        self.recs.push(Rec { names, pieces, ..*rec });
    }
    /// Notes damage.
    pub fn problem(&mut self, number: u64, error: Error) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push((number, error));
        } else {
            self.more_problems = self.more_problems.saturating_add(1);
        }
    }
    /// Adds the record `number`, which lies at `at`, from its bytes as they are on the disk; they are changed by undoing
    /// the fix-ups. `expected` says whether `$MFT`'s bitmap has it in use: then its absence is damage.
    pub fn record(&mut self, bytes: &mut [u8], number: u64, at: Offset<Volume>, expected: bool, context: Context) {
        let structure = || format!("MFT record {number}");
        if !bytes.starts_with(b"FILE") {
            if expected {
                self.problem(number, Error::corrupt(structure(), at, "a record in use with the signature `FILE`"));
            }
            return;
        }
        let in_use = bytes.get(0x16).is_some_and(|flags| flags & IN_USE as u8 != 0);
        if !in_use {
            return;
        }
        if let Err(what) = layout::fix_up(bytes) {
            return self.problem(number, Error::corrupt(structure(), at, what));
        }
        let record = match Record::decode(Fields::new("MFT record", at, bytes), number) {
            Ok(record) => record,
            Err(e) => return self.problem(number, named(e, number)),
        };
        let mut rec =
            Rec { number, sequence: record.sequence, flags: record.flags, base: record.base, ..Rec::default() };
        let (names, pieces) = (self.names.len(), self.pieces.len());
        for attribute in record.attributes() {
            match attribute {
                Ok(a) => self.attribute(&a, &mut rec, at, context),
                Err(e) => self.problem(number, named(e, number)),
            }
        }
        rec.names = Span::from(names, self.names.len());
        rec.pieces = Span::from(pieces, self.pieces.len());
        self.recs.push(rec);
    }
    #[inline(always)]
    fn attribute(&mut self, a: &Attribute<'_>, rec: &mut Rec, at: Offset<Volume>, context: Context) {
        let place = at.saturating_add(a.at as u64);
        match (a.kind, a.body) {
            (kind::STANDARD_INFORMATION, Body::Resident(value)) => match layout::standard_information(value) {
                Some(info) => rec.info = Some(info),
                None => self.wrong(rec.number, place, "$STANDARD_INFORMATION of 48 bytes"),
            },
            (kind::FILE_NAME, Body::Resident(value)) => match FileName::decode(value).filter(|n| !n.name.is_empty()) {
                Some(name) => {
                    let text = self.wtf8(name.name);
                    self.names.push(Name { parent: name.parent, space: name.space, size: name.size, text });
                }
                None => self.wrong(rec.number, place, "$FILE_NAME with a name"),
            },
            (kind::DATA | kind::ATTRIBUTE_LIST | kind::REPARSE_POINT | kind::EA, _) => {
                self.piece(a, rec, place, context)
            }
            (other, _) if other == context.extra => self.piece(a, rec, place, context),
            _ => {}
        }
    }
    fn piece(&mut self, a: &Attribute<'_>, rec: &mut Rec, at: Offset<Volume>, context: Context) {
        rec.listed |= a.kind == kind::ATTRIBUTE_LIST;
        let mut piece = Piece {
            kind: a.kind,
            name: self.wtf8(a.name),
            flags: a.flags,
            unit: 0,
            size: 0,
            valid: 0,
            lowest: 0,
            runs: None,
            value: Span::default(),
            locator: rec.number.wrapping_shl(16) | a.at as u64 & 0xFFFF,
        };
        match a.body {
            Body::Resident(value) => {
                piece.size = value.len() as u64;
                piece.valid = piece.size;
                if a.kind != kind::DATA {
                    piece.value = push(&mut self.text, value);
                }
            }
            Body::NonResident { lowest, end, pairs, unit, size, valid } => {
                let start = self.runs.len();
                if let Err(what) = runs::decode(pairs, end.saturating_sub(lowest), context.clusters, &mut self.runs) {
                    self.wrong(rec.number, at, what);
                }
                piece.runs = Some(Span::from(start, self.runs.len()));
                (piece.unit, piece.size, piece.valid, piece.lowest) = (unit, size, valid, lowest);
            }
        }
        self.pieces.push(piece);
    }
    fn wrong(&mut self, number: u64, at: Offset<Volume>, expected: &str) {
        self.problem(number, Error::corrupt(format!("attribute of MFT record {number}"), at, expected));
    }
    fn wtf8(&mut self, utf16: &[u8]) -> Span {
        let start = self.text.len();
        utf16::push_wtf8(&mut self.text, utf16);
        Span::from(start, self.text.len())
    }
}

/// Adds `items` to an arena.
fn push<T: Copy>(arena: &mut Vec<T>, items: &[T]) -> Span {
    let start = arena.len();
    arena.extend_from_slice(items);
    Span::from(start, arena.len())
}

/// The error with the number of the record in it.
fn named(error: Error, number: u64) -> Error {
    match error {
        Error::Corrupt { structure, at, expected } => {
            let structure = if structure == "MFT record" {
                format!("MFT record {number}")
            } else {
                format!("{structure} of MFT record {number}")
            };
            Error::Corrupt { structure, at, expected }
        }
        other => other,
    }
}

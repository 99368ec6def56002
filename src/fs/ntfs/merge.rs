//! What the sweep found, joined: extension records to their bases, names to their directories, pieces to streams.

use std::collections::BTreeSet;

use crate::error::Error;
use crate::extent::{Encoding, Volume, What};
use crate::fs::ntfs::layout::{
    self, DIRECTORY, DIRECTORY_BIT, DOS, EXTEND, FIRST_USER, MAX_VALUE, ROOT, Reference, WIN32, kind,
};
use crate::fs::ntfs::pieces::{self, Part, Value};
use crate::fs::ntfs::reader::Reader;
use crate::fs::ntfs::reparse::{self, Reparse};
use crate::fs::ntfs::scan::{Chunk, Rec};
use crate::fs::{EA, Form, Kind, NameId, NewStream, Object, ObjectId, REPARSE, Times, Tree, TreeBuilder};

/// Damage that is told one by one; the rest is counted.
const MAX_PROBLEMS: usize = 2000;
/// Files for which there is room from the start; `$MFT`'s bitmap may be wrong by any number.
const MAX_RESERVED: usize = 1 << 20;
const NOTHING: u32 = u32::MAX;

/// Makes the tree of the chunks, which come in order of the records. A file of one record, as nearly all are, is done
/// with when its chunk was added; those of more wait for all of theirs.
pub struct Merge<'a> {
    reader: &'a Reader,
    builder: TreeBuilder,
    /// By record number: object + 1 in the low 32 bits, sequence number above, and whether it is a directory.
    slots: Vec<u64>,
    links: Vec<Link>,
    /// Records with an attribute list, and extension records.
    waiting: Chunk,
    /// Damage that the sweep found: record and what is wrong.
    damage: Vec<(u64, Error)>,
    /// Bytes of lists and buffers that may still be read: no honest volume has more than it has clusters.
    budget: u64,
    problems: usize,
    unreported: u64,
    strays: u64,
    whats: Vec<(u64, What<Volume>)>,
}

/// A name that waits for its directory.
struct Link {
    parent: Reference,
    object: ObjectId,
    /// The directory's object, [`NOTHING`] where it is gone.
    dir: u32,
    is_dir: bool,
    name: NameId,
}

const DIR_BIT: u64 = 1 << 63;

impl<'a> Merge<'a> {
    /// A merge of nothing yet, of the volume of `reader`, which says that it has so many files.
    pub fn new(reader: &'a Reader, files: usize) -> Self {
        let files = files.min(MAX_RESERVED);
        let mut builder = TreeBuilder::new();
        builder.reserve(files);
        Self {
            reader,
            builder,
            slots: vec![0; (ROOT as usize).saturating_add(1)],
            links: Vec::with_capacity(files),
            waiting: Chunk::default(),
            damage: Vec::new(),
            budget: reader.volume.len(),
            problems: 0,
            unreported: 0,
            strays: 0,
            whats: Vec::new(),
        }
    }
    /// Adds the records of a chunk; those of a later one have higher numbers.
    pub fn add(&mut self, chunk: &mut Chunk) {
        for (number, error) in chunk.problems.drain(..) {
            if self.damage.len() < MAX_PROBLEMS {
                self.damage.push((number, error));
            } else {
                self.unreported = self.unreported.saturating_add(1);
            }
        }
        self.unreported = self.unreported.saturating_add(chunk.more_problems);
        for rec in &chunk.recs {
            if rec.base.0 == 0 {
                let object = self.object(rec);
                if !rec.listed {
                    self.fill(object, rec, &[(chunk, rec)]);
                    continue;
                }
            }
            self.waiting.copy(chunk, rec);
        }
    }
    /// The tree.
    pub fn finish(mut self) -> Tree {
        self.join();
        for (number, error) in std::mem::take(&mut self.damage) {
            let object = self.slot(number).map(|s| s.0);
            self.problem(object, &error);
        }
        let root = self.root();
        self.connect(root);
        self.builder.finish(root)
    }
    /// Joins the records that waited: extensions to their bases.
    fn join(&mut self) {
        let chunk = std::mem::take(&mut self.waiting);
        let mut extensions: Vec<&Rec> = chunk.recs.iter().filter(|r| r.base.0 != 0).collect();
        extensions.sort_by_key(|r| r.base.number());
        let mut joined = 0u64;
        for rec in chunk.recs.iter().filter(|r| r.base.0 == 0) {
            let Some((object, ..)) = self.slot(rec.number) else { continue };
            let first = extensions.partition_point(|e| e.base.number() < rec.number);
            let mine = extensions.get(first..).unwrap_or_default();
            let mine = mine.iter().take_while(|e| e.base.number() == rec.number);
            joined = self.records(object, &chunk, rec, mine.copied()).saturating_add(joined);
        }
        self.strays = (extensions.len() as u64).saturating_sub(joined);
    }
    fn problem(&mut self, object: Option<ObjectId>, error: &Error) {
        if self.problems < MAX_PROBLEMS {
            self.problems = self.problems.saturating_add(1);
            self.builder.problem(object, error);
        } else {
            self.unreported = self.unreported.saturating_add(1);
        }
    }
    /// Object, sequence number, and whether it is a directory.
    fn slot(&self, number: u64) -> Option<(ObjectId, u16, bool)> {
        let slot = *self.slots.get(usize::try_from(number).ok()?)?;
        let object = ObjectId::from_index((slot as u32).checked_sub(1)?);
        Some((object, (slot >> 32) as u16, slot & DIR_BIT != 0))
    }
    fn object(&mut self, rec: &Rec) -> ObjectId {
        let is_dir = rec.flags & DIRECTORY != 0;
        let object = self.builder.object(Object {
            kind: if is_dir { Kind::Dir } else { Kind::File },
            number: rec.number,
            times: Times::default(),
            attributes: 0,
            mode: None,
            owner: None,
            system: false,
        });
        let at = usize::try_from(rec.number).unwrap_or(usize::MAX);
        self.slots.resize(self.slots.len().max(at.saturating_add(1)), 0);
        if let Some(slot) = self.slots.get_mut(at) {
            let id = u64::from(object.as_u32().saturating_add(1));
            *slot = id | u64::from(rec.sequence) << 32 | if is_dir { DIR_BIT } else { 0 };
        }
        object
    }
    /// Fills an object that is in several records, of which `mine` say that they belong to it; gives how many of these do.
    fn records<'c>(
        &mut self,
        object: ObjectId,
        chunk: &'c Chunk,
        rec: &'c Rec,
        mine: impl Iterator<Item = &'c Rec>,
    ) -> u64 {
        let mut records = vec![(chunk, rec)];
        let own = |rec: &Rec| Reference(rec.number | u64::from(rec.sequence) << 48);
        let mut listed = self.listed(object, chunk, rec);
        if let Some(list) = &mut listed {
            list.remove(&own(rec));
        }
        for ext in mine {
            // Without a list that can be read, whatever says so belongs to it.
            let wanted = listed.as_mut().is_none_or(|list| list.remove(&own(ext)));
            if wanted && ext.base.sequence() == rec.sequence {
                records.push((chunk, ext));
            }
        }
        for reference in listed.into_iter().flatten() {
            let what = format!("MFT record {}, as its $ATTRIBUTE_LIST says", reference.number());
            self.problem(Some(object), &expected(rec.number, what));
        }
        self.fill(object, rec, &records);
        (records.len() as u64).saturating_sub(1)
    }
    /// The records that the attribute list names, none where it has no list or that can't be read.
    fn listed(&mut self, object: ObjectId, chunk: &Chunk, rec: &Rec) -> Option<BTreeSet<Reference>> {
        let list = rec.pieces.of(&chunk.pieces).iter().find(|p| p.kind == kind::ATTRIBUTE_LIST)?;
        let bytes = self.value(object, rec.number, &[Part { chunk, piece: list }])?;
        let mut set = BTreeSet::new();
        for entry in layout::attribute_list(&bytes) {
            match entry {
                Some(entry) => set.insert(entry.record),
                None => {
                    self.problem(Some(object), &expected(rec.number, "$ATTRIBUTE_LIST entries to its end"));
                    return None;
                }
            };
        }
        Some(set)
    }
    /// The bytes of a small value, none with a problem noted.
    fn value(&mut self, object: ObjectId, number: u64, parts: &[Part<'_>]) -> Option<Vec<u8>> {
        let first = parts.first()?;
        if first.piece.runs.is_none() {
            return Some(first.piece.value.of(&first.chunk.text).to_vec());
        }
        let size = first.piece.size;
        if size > MAX_VALUE || size > self.budget {
            self.problem(Some(object), &expected(number, "an attribute list or reparse buffer of at most 256 KiB"));
            return None;
        }
        self.budget = self.budget.saturating_sub(size);
        match self.reader.bytes(parts) {
            Ok(bytes) => Some(bytes),
            Err(e) => {
                self.problem(Some(object), &e);
                None
            }
        }
    }
    /// Names and streams of an object that is in `records`, the base first.
    fn fill(&mut self, object: ObjectId, rec: &Rec, records: &[(&Chunk, &Rec)]) {
        self.names(object, rec, records);
        let info = records.iter().find_map(|(_, r)| r.info);
        if let (Some((times, attributes)), Some(o)) = (info, self.builder.object_mut(object)) {
            let [created, modified, changed, accessed] = times.map(|t| Some(layout::timestamp(t)));
            o.times = Times { modified, accessed, changed, created };
            o.attributes = attributes;
        }
        if let [(chunk, rec)] = records
            && let [piece] = rec.pieces.of(&chunk.pieces)
            && piece.kind == kind::DATA
        {
            self.stream(object, rec.number, &[Part { chunk, piece }], None);
            return;
        }
        let mut parts: Vec<Part<'_>> = records
            .iter()
            .flat_map(|(chunk, rec)| rec.pieces.of(&chunk.pieces).iter().map(|piece| Part { chunk, piece }))
            .collect();
        parts.sort_by(|a, b| (a.value(), a.piece.lowest).cmp(&(b.value(), b.piece.lowest)));
        let of = |kind: u32| {
            let start = parts.partition_point(|p| p.piece.kind < kind);
            parts.get(start..parts.partition_point(|p| p.piece.kind <= kind)).unwrap_or_default()
        };
        let mut link = None;
        let buffer = of(kind::REPARSE_POINT);
        if !buffer.is_empty()
            && let Some(bytes) = self.value(object, rec.number, buffer)
        {
            link = Reparse::decode(&bytes);
            if link.is_none() {
                self.problem(Some(object), &expected(rec.number, "a reparse buffer that is whole"));
            }
            self.builder.xattr(object, REPARSE.to_vec(), bytes);
        }
        let list = of(kind::EA);
        let mut device = None;
        if !list.is_empty()
            && let Some(bytes) = self.value(object, rec.number, list)
        {
            device = reparse::device_number(&bytes);
            self.builder.xattr(object, EA.to_vec(), bytes);
        }
        let mut size = 0;
        for parts in of(kind::DATA).chunk_by(|a, b| a.value() == b.value()) {
            let unnamed = self.stream(object, rec.number, parts, link.as_ref());
            size = size.max(unnamed);
        }
        if let Some(link) = link {
            self.reparse(object, link, size, device);
        }
        // A file always has data; where its record is gone, the name may still know how much there was.
        if rec.listed && rec.flags & DIRECTORY == 0 && !of(kind::DATA).iter().any(|p| p.piece.name.is_empty()) {
            self.lost(object, rec, records);
        }
    }
    /// A file whose attribute list names data that no record has.
    fn lost(&mut self, object: ObjectId, rec: &Rec, records: &[(&Chunk, &Rec)]) {
        let size = records.iter().flat_map(|(c, r)| r.names.of(&c.names)).map(|n| n.size).max().unwrap_or(0);
        let size = size.min(i64::MAX as u64);
        let locator = rec.number.wrapping_shl(16);
        let new = NewStream { name: None, size, valid: size, form: Form::Plain, locator };
        self.builder.stream(object, new, [(size, What::Encoded(Encoding::Unreadable))]);
        self.problem(Some(object), &expected(rec.number, "$DATA"));
    }
    /// Adds a stream; gives its size where it is the data.
    fn stream(&mut self, object: ObjectId, number: u64, parts: &[Part<'_>], link: Option<&Reparse>) -> u64 {
        let mut whats = std::mem::take(&mut self.whats);
        let Some(Value { size, valid, mut form, locator, wrong }) =
            pieces::assemble(parts, self.reader.boot.cluster, self.reader.volume.id(), &mut whats)
        else {
            return 0;
        };
        let (_, name) = parts.first().map(Part::value).unwrap_or_default();
        if let Some(what) = wrong {
            self.problem(Some(object), &expected(number, format!("$DATA to have {what}")));
        }
        if name.is_empty() && form != Form::Inline && link.is_some_and(Reparse::redirects_data) {
            for (_, what) in &mut whats {
                if *what == What::Zero {
                    *what = What::Encoded(Encoding::Unreadable);
                }
            }
            if link == Some(&Reparse::Other(reparse::WOF)) {
                form = Form::Wof;
            }
        }
        let named = (!name.is_empty()).then_some(name);
        self.builder.stream(object, NewStream { name: named, size, valid, form, locator }, whats.iter().copied());
        self.whats = whats;
        if named.is_none() { size } else { 0 }
    }
    fn reparse(&mut self, object: ObjectId, link: Reparse, size: u64, device: Option<(u32, u32)>) {
        let (kind, target) = match link {
            Reparse::Symlink(target) => (Kind::Symlink, Some(target)),
            Reparse::Junction(target) => (Kind::Junction, Some(target)),
            Reparse::Socket => (Kind::Socket, None),
            Reparse::Fifo => (Kind::Fifo, None),
            Reparse::Device(block) => {
                let (major, minor) = device.unwrap_or_default();
                (if block { Kind::BlockDevice(major, minor) } else { Kind::CharDevice(major, minor) }, None)
            }
            // Cloud files, Compact OS, deduplicated files: to their user these are files, with these contents.
            Reparse::Other(_) if size > 0 => return,
            Reparse::Other(tag) => (Kind::Reparse(tag), None),
        };
        if let Some(o) = self.builder.object_mut(object) {
            // Folders of cloud storage have entries as any other.
            if o.kind != Kind::Dir || target.is_some() {
                if o.kind == Kind::Dir {
                    o.attributes |= DIRECTORY_BIT;
                }
                o.kind = kind;
            }
        }
        if let Some(target) = target {
            self.builder.target(object, target);
        }
    }
    fn names(&mut self, object: ObjectId, rec: &Rec, records: &[(&Chunk, &Rec)]) {
        let is_dir = rec.flags & DIRECTORY != 0;
        let all = || records.iter().flat_map(|(c, r)| r.names.of(&c.names).iter().map(move |n| (*c, n)));
        let mut some = false;
        // The short twin of a long name of the same directory is no name of its own.
        let mut long: Vec<Reference> = Vec::new();
        if all().any(|(_, n)| n.space == DOS) {
            long = all().filter(|(_, n)| n.space == WIN32).map(|(_, n)| n.parent).collect();
            long.sort_unstable();
        }
        for (c, n) in all() {
            some = true;
            if n.space != DOS || long.binary_search(&n.parent).is_err() {
                self.link(object, is_dir, n.parent, n.text.of(&c.text));
            }
        }
        if !some && rec.number >= FIRST_USER {
            self.link(object, is_dir, Reference(u64::MAX), b"");
        }
    }
    fn link(&mut self, object: ObjectId, is_dir: bool, parent: Reference, name: &[u8]) {
        let name = self.builder.name(name);
        self.links.push(Link { parent, object, dir: NOTHING, is_dir, name });
    }
    fn root(&mut self) -> ObjectId {
        if let Some((root, ..)) = self.slot(ROOT) {
            if let Some(o) = self.builder.object_mut(root) {
                o.kind = Kind::Dir;
            }
            return root;
        }
        self.problem(None, &Error::NotFound("the root directory's MFT record 5 can't be read".into()));
        let root = self.extra_dir(ROOT);
        if let Some(slot) = self.slots.get_mut(ROOT as usize) {
            // Sequence number 5, which every root has had since it was made.
            *slot = u64::from(root.as_u32().saturating_add(1)) | ROOT << 32 | DIR_BIT;
        }
        root
    }
    fn extra_dir(&mut self, number: u64) -> ObjectId {
        let (times, attributes, mode, owner, system) = (Times::default(), 0, None, None, false);
        self.builder.object(Object { kind: Kind::Dir, number, times, attributes, mode, owner, system })
    }
    /// Adds the entries: below their directories, or, where these are gone, below a directory of their own.
    fn connect(&mut self, root: ObjectId) {
        let mut links = std::mem::take(&mut self.links);
        let count = self.builder.object_count();
        // The directory above each directory.
        let mut up = vec![NOTHING; count];
        for link in &mut links {
            if link.object == root {
                link.dir = root.as_u32();
                continue;
            }
            let Some((dir, sequence, true)) = self.slot(link.parent.number()) else { continue };
            if sequence != link.parent.sequence() {
                continue;
            }
            link.dir = dir.as_u32();
            if let Some(o) = self.builder.object_mut(dir)
                && o.kind != Kind::Dir
            {
                let number = o.number;
                o.kind = Kind::Dir;
                self.problem(Some(dir), &expected(number, "no entries in a directory that is a link"));
            }
            if link.is_dir
                && let Some(up) = up.get_mut(link.object.index())
                && *up == NOTHING
            {
                *up = link.dir;
            }
        }
        let state = self.colour(root, &up);
        let mut orphans = None;
        let mut orphaned = 0u64;
        for link in &links {
            if link.object == root {
                continue;
            }
            let cut = link.is_dir && state.get(link.object.index()) == Some(&State::Cycle);
            let number = self.builder.object_mut(link.object).map_or(0, |o| o.number);
            if link.dir == NOTHING || cut {
                if number < FIRST_USER {
                    continue;
                }
                orphaned = orphaned.saturating_add(1);
                let dir = *orphans.get_or_insert_with(|| self.extra_dir(u64::MAX));
                // Two that had the same name in different directories must not meet.
                let name = [b"record-", number.to_string().as_bytes(), b" ", self.builder.text(link.name)].concat();
                self.builder.entry(dir, name.trim_ascii_end(), link.object);
                continue;
            }
            let dir = ObjectId::from_index(link.dir);
            self.builder.link(dir, link.name, link.object);
            let system = (number < FIRST_USER && dir == root)
                || state.get(dir.index()) == Some(&State::System)
                || state.get(link.object.index()) == Some(&State::System);
            if system && let Some(o) = self.builder.object_mut(link.object) {
                o.system = true;
            }
        }
        if let Some(dir) = orphans {
            self.builder.entry(root, b"$OrphanFiles", dir);
            let what = format!("{orphaned} names whose directory is gone are listed in $OrphanFiles");
            self.builder.note(None, &Error::NotFound(what));
        }
        if self.strays > 0 {
            let what = format!("{} extension records in use belong to no file and were left out", self.strays);
            self.builder.problem(None, &Error::NotFound(what));
        }
        if self.unreported > 0 {
            let what = format!("{} more problems of this kind", self.unreported);
            self.builder.problem(None, &Error::NotFound(what));
        }
    }
    /// Of each directory: whether it is the file system's own (`$Extend` and what is below), and whether the way up from
    /// it comes back to it. Of a cycle, one directory is marked.
    fn colour(&self, root: ObjectId, up: &[u32]) -> Vec<State> {
        let mut state = vec![State::Unknown; up.len()];
        let mut set = |i: usize, s: State| {
            if let Some(slot) = state.get_mut(i) {
                *slot = s;
            }
        };
        set(root.index(), State::Plain);
        if let Some((extend, ..)) = self.slot(EXTEND) {
            set(extend.index(), State::System);
        }
        let mut way = Vec::new();
        for start in 0..up.len() {
            if up.get(start).is_none_or(|u| *u == NOTHING) {
                continue;
            }
            let mut at = start;
            let end = loop {
                match state.get(at).copied().unwrap_or(State::Plain) {
                    State::Unknown => {}
                    State::Open => {
                        break State::Cycle;
                    }
                    State::Cycle => break State::Plain,
                    known => break known,
                }
                if let Some(slot) = state.get_mut(at) {
                    *slot = State::Open;
                }
                way.push(at);
                match up.get(at) {
                    Some(&next) if next != NOTHING => at = next as usize,
                    _ => break State::Plain,
                }
            };
            let close = if end == State::Cycle { State::Plain } else { end };
            for i in way.drain(..) {
                if let Some(slot) = state.get_mut(i) {
                    *slot = if end == State::Cycle && i == at { State::Cycle } else { close };
                }
            }
        }
        state
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unknown,
    Open,
    Plain,
    System,
    Cycle,
}

fn expected(number: u64, what: impl Into<String>) -> Error {
    Error::Corrupt {
        structure: format!("file of MFT record {number}"),
        at: "its records".into(),
        expected: what.into(),
    }
}

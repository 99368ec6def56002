//! The second and third pass: names directory by directory, and the new tree.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use rayon::prelude::*;

use crate::fs::host::{Content, Host, HostName, NameRules, NewEntry, NewKind, Origin};
use crate::fs::{EntryId, Kind, ObjectId, Times};
use crate::plan::names::{self, Namer};
use crate::plan::{GuestVolume, Part, Reason, Row};

/// What a row becomes; a [`HardLink`](Shape::HardLink) names the draft that has the first name.
#[derive(Clone, Debug)]
pub enum Shape {
    Dir,
    File(u64, Content),
    Symlink(Vec<u8>),
    HardLink(usize),
    Special(Kind),
}

/// A row, and what it becomes; or why nothing.
#[derive(Clone, Debug)]
pub struct Draft {
    pub row: Row,
    pub shape: Result<Shape, Reason>,
    /// The security descriptor of the object, where the host has such.
    pub security: Option<Arc<[u8]>>,
    /// Of what is copied, where its bytes begin on the host volume, where they are stored there.
    pub source: Option<u64>,
}

/// The directory that a new entry is in: that of a guest's object, a volume's uppermost one, or none for `--into`.
type Dir = Option<(usize, Option<ObjectId>)>;

/// How a host compares names.
type Fold<'h> = dyn Fn(&[u8]) -> Vec<u8> + Sync + 'h;

/// Gives every draft its name; the rows, the new entries, and where those that are copied lie.
pub fn assemble(
    guests: &[GuestVolume],
    host: &dyn Host,
    there: &[HostName],
    drafts: Vec<Draft>,
) -> (Vec<Row>, Vec<NewEntry>, BTreeMap<usize, u64>) {
    let (rules, xattrs) = (host.rules().names, host.rules().xattrs);
    let mut entries = Vec::with_capacity(drafts.len().saturating_add(guests.len()));
    let fold: &Fold<'_> = &|name: &[u8]| host.fold(name);
    let mut top = Namer::new(rules, fold, there);
    let folders: Vec<Option<usize>> = guests
        .iter()
        .map(|guest| {
            let name = top.take(&names::escaped(rules, guest.folder.as_deref()?), true);
            entries.push(folder(name));
            entries.len().checked_sub(1)
        })
        .collect();
    let names = name_all(guests, rules, fold, top, &drafts);
    let mut rows: Vec<Row> = Vec::with_capacity(drafts.len());
    let mut dirs: HashMap<(usize, ObjectId), usize> = HashMap::new();
    let mut file = LastFile::default();
    let mut sources = BTreeMap::new();
    for (mut draft, mut name) in drafts.into_iter().zip(names) {
        let stream = guests.get(draft.row.volume).zip(draft.row.stream).and_then(|(g, s)| g.tree.stream_name(s));
        let of = stream.and_then(|stream| file.takes(host, &draft.row, stream));
        let kind = match draft.shape {
            Err(_) => None,
            Ok(Shape::Dir) => Some(NewKind::Dir),
            Ok(Shape::File(size, content)) => Some(match of {
                Some(of) => NewKind::Stream { of, size, content },
                None => NewKind::File { size, content },
            }),
            Ok(Shape::Symlink(target)) => Some(NewKind::Symlink(target)),
            Ok(Shape::Special(kind)) => Some(NewKind::Special(kind)),
            Ok(Shape::HardLink(first)) => rows.get(first).and_then(|r| r.written).map(NewKind::HardLink),
        };
        if let (Some(kind), Some(guest)) = (kind, guests.get(draft.row.volume)) {
            let parent = match dir_of(guest, &draft.row) {
                Some((volume, Some(dir))) => dirs.get(&(volume, dir)).copied(),
                Some((volume, None)) => folders.get(volume).copied().flatten(),
                None => None,
            };
            let object = object_of(guest, &draft.row);
            if let (NewKind::Dir, Some(object)) = (&kind, object) {
                dirs.insert((draft.row.volume, object), entries.len());
            }
            draft.row.written = Some(entries.len());
            draft.row.renamed = *name != *raw_name(guest, &draft.row);
            if let (NewKind::Stream { .. }, Some(stream)) = (&kind, stream) {
                name = stream.to_vec();
                draft.row.renamed = false;
            } else if stream.is_none() && matches!(kind, NewKind::File { .. } | NewKind::Dir) {
                file = LastFile {
                    of: draft.row.entry.map(|e| (draft.row.volume, e, entries.len())),
                    names: HashSet::new(),
                };
            }
            let mut entry = new_entry(guest, &draft.row, parent, name, kind, object);
            // A hard link's are those of the first name; a stream that becomes a file has none.
            if let (true, Some(object)) = (xattrs && !matches!(entry.kind, NewKind::HardLink(_)), object)
                && draft.row.stream.is_none_or(|s| guest.tree.stream_name(s).is_none())
            {
                entry.xattrs = guest.tree.xattrs(object).to_vec();
                entry.security = draft.security;
            }
            if let Some(source) = draft.source {
                sources.insert(entries.len(), source);
            }
            entries.push(entry);
        }
        rows.push(draft.row);
    }
    (rows, entries, sources)
}

/// The file that was written last: streams with names come right behind theirs.
#[derive(Default)]
struct LastFile {
    /// Volume, entry, and position among the new entries.
    of: Option<(usize, EntryId, usize)>,
    /// Its streams, as the host compares them.
    names: HashSet<Vec<u8>>,
}

impl LastFile {
    /// The position of the file where it can have this stream; a stream that it can't have becomes a file of its own.
    fn takes(&mut self, host: &dyn Host, row: &Row, stream: &[u8]) -> Option<usize> {
        let (volume, entry, at) = self.of.filter(|_| host.rules().streams)?;
        let text = std::str::from_utf8(stream).ok()?;
        let bad = |c: char| matches!(c, '\0' | '/' | ':' | '\\');
        let legal = !text.contains(bad) && (1..=255).contains(&text.encode_utf16().count());
        let own = row.volume == volume && row.entry == Some(entry);
        (own && legal && self.names.insert(host.fold(stream))).then_some(at)
    }
}

/// A name for every draft that is written, an empty one for the others.
fn name_all<'h>(
    guests: &[GuestVolume],
    rules: NameRules,
    fold: &'h Fold<'h>,
    mut top: Namer<'h>,
    drafts: &[Draft],
) -> Vec<HostName> {
    let mut written: Vec<(Dir, usize)> = drafts
        .iter()
        .enumerate()
        .filter(|(_, d)| d.shape.is_ok())
        .filter_map(|(at, d)| Some((dir_of(guests.get(d.row.volume)?, &d.row), at)))
        .collect();
    written.sort_unstable();
    let groups: Vec<&[(Dir, usize)]> = written.chunk_by(|a, b| a.0 == b.0).collect();
    let (uppermost, below) =
        groups.split_at(groups.first().is_some_and(|g| matches!(g.first(), Some((None, _)))).into());
    let name = |namer: &mut Namer<'h>, group: &[(Dir, usize)]| {
        let group = group.iter().filter_map(|(_, at)| Some((*at, drafts.get(*at)?)));
        name_group(guests, rules, &group.collect::<Vec<_>>(), namer)
    };
    let mut names = vec![HostName::new(); drafts.len()];
    let mut put = |named: Vec<(usize, HostName)>| {
        for (at, name) in named {
            if let Some(slot) = names.get_mut(at) {
                *slot = name;
            }
        }
    };
    uppermost.iter().for_each(|group| put(name(&mut top, group)));
    let inner = || Namer::new(rules, fold, &[]);
    let all: Vec<_> = below
        .par_iter()
        .map_init(inner, |namer, group| {
            namer.clear();
            name(namer, group)
        })
        .collect();
    all.into_iter().for_each(put);
    names
}

/// Names one directory: first what can keep its name, then what can't, then streams that become files, so that none of
/// these takes a name from a file that has it.
fn name_group(
    guests: &[GuestVolume],
    rules: NameRules,
    group: &[(usize, &Draft)],
    namer: &mut Namer<'_>,
) -> Vec<(usize, HostName)> {
    let mut named: Vec<(usize, HostName)> = Vec::with_capacity(group.len());
    // The first draft of an entry names its file; its position in `named`.
    let mut file_of: HashMap<(usize, EntryId), usize> = HashMap::new();
    for pass in 0..3 {
        for (at, draft) in group {
            let Some(guest) = guests.get(draft.row.volume) else { continue };
            let stream = draft.row.stream.and_then(|s| guest.tree.stream_name(s));
            let name = match (pass, stream) {
                (0 | 1, None) => {
                    let wanted = names::escaped(rules, raw_name(guest, &draft.row));
                    if (pass == 0) != matches!(wanted, Cow::Borrowed(_)) {
                        continue;
                    }
                    if let Some(entry) = draft.row.entry.filter(|e| has_streams(guest, *e)) {
                        file_of.insert((draft.row.volume, entry), named.len());
                    }
                    namer.take(&wanted, matches!(draft.shape, Ok(Shape::Dir)))
                }
                (2, Some(stream)) => {
                    let file = draft.row.entry.and_then(|e| file_of.get(&(draft.row.volume, e)));
                    let file = match (file.and_then(|at| named.get(*at)), draft.row.entry) {
                        (Some((_, name)), _) => Cow::Borrowed(name.as_slice()),
                        (None, Some(entry)) => names::escaped(rules, guest.tree.name(entry)),
                        (None, None) => Cow::Borrowed(b"".as_slice()),
                    };
                    namer.take(&names::of_stream(rules, &file, stream), false)
                }
                _ => continue,
            };
            named.push((*at, name));
        }
    }
    named
}

/// Whether what the entry leads to has streams with names.
fn has_streams(guest: &GuestVolume, entry: EntryId) -> bool {
    let tree = &guest.tree;
    tree.streams(tree.entry(entry).object).any(|s| tree.stream_name(s).is_some())
}

/// The directory that a row's entry is written in.
fn dir_of(guest: &GuestVolume, row: &Row) -> Dir {
    let tree = &guest.tree;
    let uppermost = match guest.part {
        Part::All => Some(tree.root()),
        Part::Entry(top) => Some(tree.entry(top).object).filter(|o| tree.object(*o).kind == Kind::Dir),
        Part::Stream(..) => None,
    };
    let parent = row.entry.map(|e| tree.entry(e).parent).filter(|p| uppermost.is_some_and(|top| top != *p));
    match (parent, &guest.folder) {
        (Some(dir), _) => Some((row.volume, Some(dir))),
        (None, Some(_)) => Some((row.volume, None)),
        (None, None) => None,
    }
}

fn object_of(guest: &GuestVolume, row: &Row) -> Option<ObjectId> {
    row.entry.map(|e| guest.tree.entry(e).object).or(row.stream.map(|s| guest.tree.stream(s).object))
}

/// The name that the guest has for it. A stream that becomes a file has none that fits.
fn raw_name<'g>(guest: &'g GuestVolume, row: &Row) -> &'g [u8] {
    match (row.entry, row.stream.and_then(|s| guest.tree.stream_name(s))) {
        (Some(entry), None) => guest.tree.name(entry),
        _ => b"",
    }
}

/// The new directory that a volume's contents go to.
fn folder(name: HostName) -> NewEntry {
    let (times, kind) = (Times::default(), NewKind::Dir);
    NewEntry {
        parent: None,
        name,
        kind,
        times,
        attributes: 0,
        posix: None,
        xattrs: Vec::new(),
        security: None,
        origin: None,
    }
}

fn new_entry(
    guest: &GuestVolume,
    row: &Row,
    parent: Option<usize>,
    name: HostName,
    kind: NewKind,
    object: Option<ObjectId>,
) -> NewEntry {
    let about = object.map(|o| guest.tree.object(o));
    NewEntry {
        parent,
        name,
        kind,
        times: about.map(|o| o.times).unwrap_or_default(),
        attributes: about.map_or(0, |o| o.attributes),
        posix: about.and_then(|o| o.mode.zip(o.owner)).map(|(mode, (user, group))| (mode, user, group)),
        xattrs: Vec::new(),
        security: None,
        origin: object.map(|object| Origin { volume: row.volume, stream: row.stream, object }),
    }
}

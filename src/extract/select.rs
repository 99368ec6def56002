//! What an address and the filters select, as a flat list in the order of the walk, and the directories that it goes to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::outcome::Why;
use crate::error::{Error, Result};
use crate::extent::{Device, LayerId, Map, Volume, What};
use crate::fs::host::{HostName, NameRules};
use crate::fs::{EntryId, FileSystem, Form, Kind, ObjectId, StreamId, Tree};
use crate::plan::names::{self, Namer};
use crate::plan::{Part, selected};
use crate::relink::part::part_of;
use crate::stack::Stack;

/// Bytes of a path below the destination: nothing longer is written, as hardly a program could open it.
const LONGEST_PATH: usize = 8192;

/// Which paths are wanted.
#[derive(Debug, Default)]
pub struct Filter {
    /// Only what one of these matches, and what lies in a directory that one of them matches; all where none is given.
    pub include: Vec<globset::GlobMatcher>,
    /// Not what one of these matches, nor what lies in such a directory.
    pub exclude: Vec<globset::GlobMatcher>,
}

impl Filter {
    /// A pattern with a `/` is one of the whole path below the address, another one of the last name.
    ///
    /// # Errors
    /// [`Error::Usage`] for what is no pattern.
    pub fn pattern(text: &str) -> Result<globset::GlobMatcher> {
        let whole = text.contains('/');
        let text = text.trim_matches('/');
        let pattern = if whole { text.to_owned() } else { format!("{{{text},**/{text}}}") };
        let glob = globset::GlobBuilder::new(&pattern).literal_separator(true).backslash_escape(true).build();
        Ok(glob.map_err(|e| Error::Usage(format!("{text}: {}", e.kind())))?.compile_matcher())
    }
    fn is_empty(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }
    fn test(all: &[globset::GlobMatcher], path: &[u8]) -> bool {
        use std::os::unix::ffi::OsStrExt;
        let path = std::path::Path::new(std::ffi::OsStr::from_bytes(path));
        all.iter().any(|g| g.is_match(path))
    }
}

/// A directory that is written to, by its position; [`ROOT`](Self::ROOT) is the destination itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DirAt(u32);

impl DirAt {
    /// The destination.
    pub const ROOT: Self = Self(0);
    /// The position as a number.
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// What an item becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// This directory.
    Dir(DirAt),
    /// A file with its stream's bytes.
    File,
    /// A further name of the item at this position.
    HardLink(u32),
    /// A symbolic link.
    Symlink,
    /// A device, socket or pipe.
    Special,
    /// An extended attribute of the item at this position.
    Xattr(u32),
    /// Nothing.
    Left(Why),
}

/// A name, directory or stream that was selected.
#[derive(Clone, Copy, Debug)]
pub struct Item {
    /// Position of its volume; none for the directory above several volumes.
    pub volume: Option<u16>,
    /// The object.
    pub object: ObjectId,
    /// The name by which it is reached; none for the uppermost directory of a volume.
    pub entry: Option<EntryId>,
    /// The stream whose bytes it has.
    pub stream: Option<StreamId>,
    /// The directory that it goes to. For the destination itself, that.
    pub dir: DirAt,
    /// What it becomes.
    pub shape: Shape,
}

/// A volume that something is selected of.
pub struct Source {
    /// The name of the directory that its contents go to, none where that is the destination itself.
    pub folder: Option<HostName>,
    /// Which part of it.
    pub part: Part,
    /// Its walk.
    pub tree: Arc<Tree>,
    /// Its file system.
    pub fs: Arc<dyn FileSystem>,
    /// The volume as runs of the ground.
    pub map: Map<Volume, Device>,
    /// The layer that its extents are stored in.
    pub layer: LayerId,
    /// Position in the image's table.
    pub slot: usize,
    /// Objects that the walk found damaged, and how.
    pub damaged: BTreeMap<ObjectId, String>,
}

struct Dir {
    above: DirAt,
    item: u32,
}

/// Everything that is to be written.
#[derive(Default)]
pub struct Selection {
    /// The volumes.
    pub volumes: Vec<Source>,
    /// In the order of the walk: a directory before what is in it, a file before its streams.
    pub items: Vec<Item>,
    dirs: Vec<Dir>,
    /// Names that differ from the guest's.
    changed: BTreeMap<u32, HostName>,
    /// Damage that belongs to no object, and volumes that can't be listed: in words.
    pub problems: Vec<String>,
}

impl Selection {
    /// What `stack` names, with names that the destination can hold.
    ///
    /// # Errors
    /// Where nothing can be listed.
    pub fn new(stack: &Stack, filter: &Filter, rules: NameRules, stream_files: bool) -> Result<Self> {
        let level = stack.last()?;
        let mut this = Self::default();
        let whole = matches!(stack.target, crate::stack::Target::Disk);
        let mut failure = None;
        for guest in &level.guests {
            let name = level.table.slots.get(guest.slot).map_or("", |s| s.name.as_str());
            let Some((folder, part)) = part_of(stack, level, guest)? else {
                let error = if whole { guest.tree().err() } else { None };
                if let Some(error) = error {
                    // Bytes that no file system is recognised in are no failure of a disk that has others.
                    if guest.fs.is_some() || guest.failed.is_some() {
                        this.problems.push(if name.is_empty() {
                            error.to_string()
                        } else {
                            format!("{name}: {error}")
                        });
                    }
                    failure.get_or_insert(error);
                }
                continue;
            };
            let tree = guest.tree()?;
            let mut damaged = BTreeMap::new();
            for problem in tree.problems() {
                match problem.object {
                    Some(object) => drop(damaged.entry(object).or_insert_with(|| problem.what.clone())),
                    None => this.problems.push(problem.what.clone()),
                }
            }
            this.volumes.push(Source {
                folder,
                part,
                tree,
                fs: Arc::clone(guest.fs()?),
                map: stack.volume_on_ground(stack.levels.len().saturating_sub(1), guest.slot)?,
                layer: guest.volume().id(),
                slot: guest.slot,
                damaged,
            });
        }
        if this.volumes.is_empty() {
            return Err(failure.unwrap_or_else(|| Error::Unsupported("the image has no volume".into())));
        }
        this.problems.extend(level.table.problems.iter().cloned());
        this.fill(filter, rules, stream_files);
        Ok(this)
    }

    fn fill(&mut self, filter: &Filter, rules: NameRules, stream_files: bool) {
        let volumes = std::mem::take(&mut self.volumes);
        self.dirs.push(Dir { above: DirAt::ROOT, item: 0 });
        if let Some(first) = volumes.first().filter(|v| v.folder.is_some()) {
            // The directory above several volumes is of none of them.
            let object = first.tree.root();
            let shape = Shape::Dir(DirAt::ROOT);
            self.items.push(Item { volume: None, object, entry: None, stream: None, dir: DirAt::ROOT, shape });
        }
        let mut stream_files_of = Vec::new();
        for (at, source) in volumes.iter().enumerate() {
            let Ok(volume) = u16::try_from(at) else { break };
            Walk { all: self, source, volume, filter, stream_files, stream_files_of: &mut stream_files_of }.go();
        }
        self.volumes = volumes;
        self.name(rules, &stream_files_of);
    }

    fn push_dir(&mut self, item: Item) -> DirAt {
        let at = DirAt(u32::try_from(self.dirs.len()).unwrap_or(u32::MAX));
        self.dirs.push(Dir { above: item.dir, item: next(self.items.len()) });
        self.items.push(Item { shape: Shape::Dir(at), ..item });
        at
    }
    /// How many directories are written to, the destination among them.
    pub(super) fn dir_count(&self) -> u32 {
        next(self.dirs.len())
    }
    /// The directory that a directory is in.
    pub fn dir_above(&self, at: DirAt) -> DirAt {
        self.dirs.get(at.index()).map_or(DirAt::ROOT, |d| d.above)
    }
    /// The name of a directory in the one above.
    pub fn dir_name(&self, at: DirAt) -> &[u8] {
        self.dirs.get(at.index()).map_or(b"".as_slice(), |d| self.name_of(d.item))
    }
    /// The name that an item is written by.
    pub fn name_of(&self, at: u32) -> &[u8] {
        if let Some(name) = self.changed.get(&at) {
            return name;
        }
        let Some(item) = self.items.get(at as usize) else { return b"" };
        match (item.volume.and_then(|v| self.volumes.get(usize::from(v))), item.entry) {
            (Some(source), Some(entry)) => source.tree.name(entry),
            (Some(source), None) if item.dir == DirAt::ROOT && item.shape != Shape::Dir(DirAt::ROOT) => {
                source.folder.as_deref().unwrap_or_default()
            }
            _ => b"",
        }
    }
    /// Whether it is written by another name than the guest's.
    pub fn renamed(&self, at: u32) -> bool {
        self.changed.contains_key(&at)
    }
    /// The path below the destination; none for what is not written.
    pub fn written(&self, at: u32) -> Option<Vec<u8>> {
        let item = self.items.get(at as usize)?;
        match item.shape {
            Shape::Left(_) => None,
            Shape::Xattr(of) => self.written(of),
            _ => {
                let mut names = Vec::new();
                if item.shape != Shape::Dir(DirAt::ROOT) {
                    names.push(self.name_of(at));
                    let mut dir = item.dir;
                    while dir != DirAt::ROOT {
                        names.push(self.dir_name(dir));
                        dir = self.dir_above(dir);
                    }
                }
                names.reverse();
                Some(names.join(&b'/'))
            }
        }
    }
    /// The volume of an item.
    pub fn source(&self, item: &Item) -> Option<&Source> {
        self.volumes.get(usize::from(item.volume?))
    }
    /// The path of an item below the address, raw names; a named stream's is `PATH:STREAM`.
    pub fn path(&self, item: &Item) -> Vec<u8> {
        let Some(source) = self.source(item) else { return Vec::new() };
        crate::report::manifest::path_below(
            source.folder.as_deref(),
            source.part,
            &source.tree,
            item.entry,
            item.stream,
        )
    }

    /// Gives every item a name that the destination can hold, and no two of a directory the same one.
    fn name(&mut self, rules: NameRules, stream_files: &[(u32, u32)]) {
        let fold: &dyn Fn(&[u8]) -> Vec<u8> = match rules {
            NameRules::Posix => &<[u8]>::to_vec,
            NameRules::Win32 => &crate::stack::upper_case,
        };
        let of_file: BTreeMap<u32, u32> = stream_files.iter().copied().collect();
        let mut by_dir: Vec<(DirAt, u32)> = (0..)
            .zip(&self.items)
            .filter(|(_, i)| !matches!(i.shape, Shape::Xattr(_) | Shape::Left(_) | Shape::Dir(DirAt::ROOT)))
            .map(|(at, i)| (i.dir, at))
            .collect();
        by_dir.sort_unstable();
        let mut changed = BTreeMap::new();
        for group in by_dir.chunk_by(|a, b| a.0 == b.0) {
            // Nearly all directories have only names that stay; then there is nothing to compare.
            let names = || group.iter().map(|(_, at)| self.name_of(*at));
            let fine = |name: &[u8]| names::legal(rules, name);
            let exact = rules == NameRules::Posix && names().zip(names().skip(1)).all(|(a, b)| a < b);
            if exact && names().all(fine) && !group.iter().any(|(_, at)| of_file.contains_key(at)) {
                continue;
            }
            let mut namer = Namer::new(rules, fold, &[]);
            for pass in 0..3 {
                for (_, at) in group {
                    let raw = self.name_of(*at);
                    let (pass_of, wanted) = match of_file.get(at) {
                        Some(file) => {
                            let file = changed.get(file).map_or_else(|| self.name_of(*file), HostName::as_slice);
                            (2, names::of_stream(rules, file, self.stream_name(*at)))
                        }
                        None if fine(raw) => (0, raw.to_vec()),
                        None => (1, names::escaped(rules, raw).into_owned()),
                    };
                    if pass_of != pass {
                        continue;
                    }
                    let dir = matches!(self.items.get(*at as usize).map(|i| i.shape), Some(Shape::Dir(_)));
                    let name = namer.take(&wanted, dir);
                    if name != raw || pass == 2 {
                        changed.insert(*at, name);
                    }
                }
            }
        }
        self.changed = changed;
    }
    fn stream_name(&self, at: u32) -> &[u8] {
        let Some(item) = self.items.get(at as usize) else { return b"" };
        let source = self.source(item);
        source.zip(item.stream).and_then(|(s, id)| s.tree.stream_name(id)).unwrap_or_default()
    }
}

fn next(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// One volume on its way into the list.
struct Walk<'a> {
    all: &'a mut Selection,
    source: &'a Source,
    volume: u16,
    filter: &'a Filter,
    stream_files: bool,
    /// Items that are streams written beside their files: theirs, and that of the file.
    stream_files_of: &'a mut Vec<(u32, u32)>,
}

impl Walk<'_> {
    fn item(&self, object: ObjectId, dir: DirAt) -> Item {
        Item { volume: Some(self.volume), object, entry: None, stream: None, dir, shape: Shape::File }
    }
    fn go(mut self) {
        let tree = Arc::clone(&self.source.tree);
        let part = self.source.part;
        let top = match part {
            Part::All => tree.root(),
            Part::Entry(e) | Part::Stream(e, _) => tree.entry(e).object,
        };
        if let Part::Stream(entry, stream) = part {
            let at = next(self.all.items.len());
            let item = self.item(top, DirAt::ROOT);
            let shape = self.data_shape(Some(stream));
            self.all.items.push(Item { entry: Some(entry), stream: Some(stream), shape, ..item });
            self.stream_files_of.push((at, at));
            return;
        }
        let mut dirs: Vec<Option<DirAt>> = vec![None; tree.objects().count()];
        let mut first: Vec<Option<u32>> = vec![None; dirs.len()];
        if tree.object(top).kind == Kind::Dir {
            let item = self.item(top, DirAt::ROOT);
            let at = next(self.all.items.len());
            let dir = match self.source.folder {
                Some(_) => self.all.push_dir(item),
                None => {
                    self.all.items.push(Item { shape: Shape::Dir(DirAt::ROOT), ..item });
                    DirAt::ROOT
                }
            };
            if let Some(slot) = dirs.get_mut(top.index()) {
                *slot = Some(dir);
            }
            self.streams(at, top, None, DirAt::ROOT);
        }
        let (wanted, too_deep) = self.wanted(&tree, &selected(&tree, part));
        for entry in wanted {
            let object = tree.entry(entry).object;
            let parent = tree.entry(entry).parent;
            let dir = dirs.get(parent.index()).copied().flatten().unwrap_or(DirAt::ROOT);
            let at = next(self.all.items.len());
            let item = Item { entry: Some(entry), ..self.item(object, dir) };
            if too_deep.contains(&entry) {
                self.all.items.push(Item { shape: Shape::Left(Why::TooDeep), ..item });
                continue;
            }
            let before = first.get(object.index()).copied().flatten();
            if let Some(slot) = first.get_mut(object.index()) {
                slot.get_or_insert(at);
            }
            let kind = tree.object(object).kind;
            if kind == Kind::Dir {
                let new = self.all.push_dir(item);
                if let Some(slot) = dirs.get_mut(object.index()) {
                    *slot = Some(new);
                }
            } else {
                let (stream, shape) = self.shape(object, kind);
                let shape = match (before, shape) {
                    (_, Shape::Left(why)) => Shape::Left(why),
                    (Some(before), _) => Shape::HardLink(before),
                    (None, shape) => shape,
                };
                self.all.items.push(Item { stream, shape, ..item });
            }
            if before.is_none() {
                self.streams(at, object, Some(entry), dir);
            }
        }
    }

    /// What is neither a directory nor a further name becomes.
    fn shape(&self, object: ObjectId, kind: Kind) -> (Option<StreamId>, Shape) {
        let tree = &self.source.tree;
        let data = tree.data(object);
        match kind {
            Kind::File => match data {
                None if self.source.damaged.contains_key(&object) => (None, Shape::Left(Why::Unreadable)),
                data => (data, self.data_shape(data)),
            },
            // Where all of it reads as zeros the data are elsewhere, and zeros would be wrong.
            Kind::Reparse(_) if data.is_some_and(|s| tree.extents(s).iter().any(|e| e.what != What::Zero)) => {
                (data, self.data_shape(data))
            }
            Kind::Symlink | Kind::Junction if tree.target(object).is_some_and(|t| !t.is_empty() && !t.contains(&0)) => {
                (None, Shape::Symlink)
            }
            Kind::Symlink | Kind::Junction => (None, Shape::Left(Why::Unreadable)),
            Kind::Fifo | Kind::Socket | Kind::CharDevice(..) | Kind::BlockDevice(..) => (None, Shape::Special),
            _ => (None, Shape::Left(Why::Special)),
        }
    }
    fn data_shape(&self, stream: Option<StreamId>) -> Shape {
        match stream.map(|s| self.source.tree.stream(s).form) {
            Some(Form::Encrypted) => Shape::Left(Why::FsEncrypted),
            _ => Shape::File,
        }
    }

    /// The named streams of the item at `of`.
    fn streams(&mut self, of: u32, object: ObjectId, entry: Option<EntryId>, dir: DirAt) {
        let tree = Arc::clone(&self.source.tree);
        for stream in tree.streams(object).filter(|s| tree.stream_name(*s).is_some()) {
            let at = next(self.all.items.len());
            let mut shape = match self.data_shape(Some(stream)) {
                Shape::File if !self.stream_files => Shape::Xattr(of),
                other => other,
            };
            // There is nothing beside the destination itself.
            if entry.is_none() && self.source.folder.is_none() && shape == Shape::File {
                shape = Shape::Xattr(of);
            }
            if shape == Shape::File {
                self.stream_files_of.push((at, of));
            }
            let item = Item { entry, stream: Some(stream), shape, ..self.item(object, dir) };
            self.all.items.push(item);
        }
    }

    /// The entries that the filters want, with the directories that they are in; and those whose path is too long, of
    /// which only the uppermost are there.
    fn wanted(&self, tree: &Tree, all: &[EntryId]) -> (Vec<EntryId>, BTreeSet<EntryId>) {
        let mut too_deep = BTreeSet::new();
        let mut out: Vec<(EntryId, bool)> = Vec::new();
        // Of each directory on the way: its object, where it is in `out`, bytes of its path, whether it was included.
        let mut way: Vec<(ObjectId, usize, usize, bool)> = Vec::new();
        let mut path = self.source.folder.clone().unwrap_or_default();
        let base = path.len();
        let everything = self.filter.include.is_empty();
        // A directory whose contents are left out.
        let mut hidden: BTreeSet<ObjectId> = BTreeSet::new();
        for &entry in all {
            let (parent, object) = (tree.entry(entry).parent, tree.entry(entry).object);
            let is_dir = tree.object(object).kind == Kind::Dir;
            if hidden.contains(&parent) {
                if is_dir {
                    hidden.insert(object);
                }
                continue;
            }
            while way.last().is_some_and(|(dir, ..)| *dir != parent) {
                way.pop();
            }
            let (_, _, above, inherited) = way.last().copied().unwrap_or((parent, 0, base, everything));
            path.truncate(above);
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(tree.name(entry));
            let mut wanted = inherited;
            if !self.filter.is_empty() {
                if Filter::test(&self.filter.exclude, &path) {
                    if is_dir {
                        hidden.insert(object);
                    }
                    continue;
                }
                wanted = inherited || Filter::test(&self.filter.include, &path);
            }
            if path.len() > LONGEST_PATH {
                too_deep.insert(entry);
                if is_dir {
                    hidden.insert(object);
                }
            }
            if wanted {
                for (_, at, ..) in way.iter().rev() {
                    match out.get_mut(*at) {
                        Some((_, kept)) if !*kept => *kept = true,
                        _ => break,
                    }
                }
            }
            if is_dir {
                way.push((object, out.len(), path.len(), wanted));
            }
            out.push((entry, wanted));
        }
        (out.into_iter().filter(|(_, kept)| *kept).map(|(e, _)| e).collect(), too_deep)
    }
}

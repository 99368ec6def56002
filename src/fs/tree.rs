//! The result of a walk: entries, objects, streams and extents in arenas.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::error::Error;
use crate::extent::{Extent, Map, Offset, Stream, Volume};

mod sort;
#[cfg(test)]
mod tests;

use sort::{sort_entries, sort_streams};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u32);
        impl $name {
            /// The position in its arena.
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }
    };
}
id! {
    /// An object (file, directory, ...) of one [`Tree`]: an MFT record, an inode.
    ObjectId
}
id! {
    /// A directory entry of one [`Tree`]: a name that leads to an object.
    EntryId
}
id! {
    /// A stream of an object of one [`Tree`].
    StreamId
}

/// A name in the arena of a [`TreeBuilder`] and of its [`Tree`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NameId {
    at: u32,
    len: u16,
}

impl NameId {
    fn of(self, names: &[u8]) -> &[u8] {
        let start = self.at as usize;
        names.get(start..start.saturating_add(self.len.into())).unwrap_or_default()
    }
}

impl ObjectId {
    /// The identity at a position of its arena.
    pub(crate) fn from_index(index: u32) -> Self {
        Self(index)
    }
    /// The position as it is kept.
    pub(crate) fn as_u32(self) -> u32 {
        self.0
    }
}

/// A point in time, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub secs: i64,
    /// Nanoseconds beyond, below 10^9.
    pub nanos: u32,
    /// What the file system counts them in.
    pub unit: TimeUnit,
}

/// The smallest difference of two times that a file system can tell, or the next lower power of ten. (An enumeration, so
/// that an optional time takes no more memory than a time.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum TimeUnit {
    /// 1 s.
    #[default]
    Second,
    /// 10 ms.
    Hundredth,
    /// 100 ns.
    Tick,
    /// 1 ns.
    Nano,
}

impl TimeUnit {
    /// Decimal digits of a second.
    pub fn digits(self) -> u8 {
        match self {
            Self::Second => 0,
            Self::Hundredth => 2,
            Self::Tick => 7,
            Self::Nano => 9,
        }
    }
}

/// The times of an object, each where its file system has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Times {
    /// Contents changed.
    pub modified: Option<Timestamp>,
    /// Contents read.
    pub accessed: Option<Timestamp>,
    /// Metadata changed.
    pub changed: Option<Timestamp>,
    /// Made.
    pub created: Option<Timestamp>,
}

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link; its target is [`Tree::target`].
    Symlink,
    /// An NTFS junction or volume mount point; its target is [`Tree::target`].
    Junction,
    /// Another NTFS reparse point, by its tag.
    Reparse(u32),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device: major, minor.
    CharDevice(u32, u32),
    /// A block device: major, minor.
    BlockDevice(u32, u32),
}

impl Kind {
    /// The word in JSON lines.
    pub fn word(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Dir => "dir",
            Self::Symlink => "symlink",
            Self::Junction => "junction",
            Self::Reparse(_) => "reparse",
            Self::Fifo => "fifo",
            Self::Socket => "socket",
            Self::CharDevice(..) | Self::BlockDevice(..) => "device",
        }
    }
}

/// A file, directory or other object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    /// What it is.
    pub kind: Kind,
    /// Its number in its file system: MFT record, inode, place of the directory entry.
    pub number: u64,
    /// Times.
    pub times: Times,
    /// DOS and NTFS attribute bits (1 read-only, 2 hidden, 4 system, 0x20 archive, ...); 0 where there are none.
    pub attributes: u32,
    /// POSIX permission bits, none where the file system has none.
    pub mode: Option<u16>,
    /// Owner and group, none where the file system has none.
    pub owner: Option<(u32, u32)>,
    /// Whether it is the file system's own (`$MFT`, `$Bitmap`, a journal), not a user's: left out unless asked for.
    pub system: bool,
}

/// A name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The directory that it is in; the root's own entry names itself here.
    pub parent: ObjectId,
    /// What it leads to.
    pub object: ObjectId,
    name: NameId,
}

/// How a stream's bytes are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As they are, in its extents; or no byte at all.
    Plain,
    /// Inline in a metadata record.
    Inline,
    /// Compressed in units of so many bytes.
    Compressed(u32),
    /// Compressed as a whole by Windows, and kept in another stream of the file (WOF, "Compact OS").
    Wof,
    /// Encrypted.
    Encrypted,
}

/// A stream of an object: its data, or one that has a name of its own.
#[derive(Clone, Copy, Debug)]
pub struct StreamInfo {
    /// Whose stream it is.
    pub object: ObjectId,
    /// Length in bytes.
    pub size: u64,
    /// Bytes from the start that were ever written; the rest reads as zeros. `size` where the file system has no such limit.
    pub valid: u64,
    /// How its bytes are kept.
    pub form: Form,
    /// The file system's own note of where the stream is described.
    pub locator: u64,
    name: Option<NameId>,
    extents: (u32, u32),
}

/// A damaged structure, and what was left out for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The object that it belongs to, where that is known.
    pub object: Option<ObjectId>,
    /// Which structure, where, what was expected: the error's own words.
    pub what: String,
    /// Whether it hides data or names: something may be there that the tree does not have. False for what is only noted, as
    /// everything that there is can be read all the same.
    pub hides: bool,
}

/// An extended attribute: its name with its prefix (`user.x`), and its value.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// The extended attribute that is a reparse buffer (\[MS-FSCC\] 2.1.2), by the name that ntfs-3g has for it.
pub const REPARSE: &[u8] = b"system.ntfs_reparse_data";
/// What a security descriptor is called among extended attributes (self-relative, \[MS-DTYP\] 2.4.6), by the name that ntfs-3g has for it.
pub const SECURITY: &[u8] = b"system.ntfs_acl";
/// The extended attribute that is a list of NTFS's own extended attributes (`FILE_FULL_EA_INFORMATION`, \[MS-FSCC\] 2.4.15).
pub const EA: &[u8] = b"system.ntfs_ea";

/// Everything that a file system holds, as one walk found it.
///
/// Entries that can be reached from the root are listed in [`order`](Self::order): parents before children, siblings by
/// the bytes of their names, whatever the order on the disk.
#[derive(Debug)]
pub struct Tree {
    root: ObjectId,
    objects: Vec<Object>,
    entries: Vec<Entry>,
    streams: Vec<StreamInfo>,
    extents: Vec<Extent<Stream>>,
    names: Vec<u8>,
    targets: BTreeMap<ObjectId, Vec<u8>>,
    xattrs: BTreeMap<ObjectId, Vec<Xattr>>,
    problems: Vec<Problem>,
    /// First stream of each object; one more at the end.
    first_stream: Vec<u32>,
    /// Entries in walk order.
    order: Vec<EntryId>,
    /// Each entry's depth below the root, in `order`.
    depth: Vec<u32>,
    /// Of each directory object, the entry that leads to it.
    entry_of_dir: Vec<Option<EntryId>>,
    /// Of each directory object, its entries as a range of `by_parent`.
    children: Vec<(u32, u32)>,
    by_parent: Vec<EntryId>,
}

impl Tree {
    /// The root directory.
    pub fn root(&self) -> ObjectId {
        self.root
    }
    /// The object of an identity of this tree.
    pub fn object(&self, id: ObjectId) -> &Object {
        #[expect(clippy::indexing_slicing, reason = "only this tree's builder makes its identities")]
        &self.objects[id.index()]
    }
    /// All objects, also those that no entry leads to.
    pub fn objects(&self) -> impl Iterator<Item = (ObjectId, &Object)> {
        (0..).map(ObjectId).zip(&self.objects)
    }
    /// The entry of an identity of this tree.
    pub fn entry(&self, id: EntryId) -> &Entry {
        #[expect(clippy::indexing_slicing, reason = "only this tree's builder makes its identities")]
        &self.entries[id.index()]
    }
    /// Every entry below the root with its depth (1 for the root's own entries): parents before children.
    pub fn order(&self) -> impl ExactSizeIterator<Item = (EntryId, u32)> {
        self.order_in(0..self.order.len())
    }
    /// A stretch of [`order`](Self::order).
    pub fn order_in(&self, range: Range<usize>) -> impl ExactSizeIterator<Item = (EntryId, u32)> {
        let order = self.order.get(range.clone()).unwrap_or_default();
        order.iter().copied().zip(self.depth.get(range).unwrap_or_default().iter().copied())
    }
    /// The entry that leads to a directory below the root; none for others.
    pub fn entry_of(&self, dir: ObjectId) -> Option<EntryId> {
        self.entry_of_dir.get(dir.index()).copied().flatten()
    }
    /// The name of an entry: UTF-8 where it can be, WTF-8 for lone surrogates, raw bytes where the file system has these.
    pub fn name(&self, id: EntryId) -> &[u8] {
        self.entry(id).name.of(&self.names)
    }
    /// The streams of an object: the data first (also of a file without a byte), then those with names, by their names.
    pub fn streams(&self, id: ObjectId) -> impl Iterator<Item = StreamId> + use<> {
        let at = |i: usize| self.first_stream.get(i).copied().unwrap_or_default();
        (at(id.index())..at(id.index().saturating_add(1))).map(StreamId)
    }
    /// The unnamed data stream of an object.
    pub fn data(&self, id: ObjectId) -> Option<StreamId> {
        self.streams(id).find(|s| self.stream(*s).name.is_none())
    }
    /// How many streams there are.
    pub fn stream_count(&self) -> usize {
        self.streams.len()
    }
    /// The stream of an identity of this tree.
    pub fn stream(&self, id: StreamId) -> &StreamInfo {
        #[expect(clippy::indexing_slicing, reason = "only this tree's builder makes its identities")]
        &self.streams[id.index()]
    }
    /// The name of a stream, none for the unnamed data.
    pub fn stream_name(&self, id: StreamId) -> Option<&[u8]> {
        self.stream(id).name.map(|n| n.of(&self.names))
    }
    /// The extents of a stream: ordered, gapless from 0 to its size, merged.
    pub fn extents(&self, id: StreamId) -> &[Extent<Stream>] {
        let (start, end) = self.stream(id).extents;
        self.extents.get(start as usize..end as usize).unwrap_or_default()
    }
    /// The extents of a stream as a map.
    pub fn map(&self, id: StreamId) -> Map<Stream, Volume> {
        self.extents(id).iter().map(|e| (e.len, e.what)).collect()
    }
    /// The target of a symbolic link or junction, as the file system has it.
    pub fn target(&self, id: ObjectId) -> Option<&[u8]> {
        self.targets.get(&id).map(Vec::as_slice)
    }
    /// The extended attributes of an object.
    pub fn xattrs(&self, id: ObjectId) -> &[Xattr] {
        self.xattrs.get(&id).map(Vec::as_slice).unwrap_or_default()
    }
    /// What was damaged.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
    /// The entries of a directory, by name; none for what is no directory.
    pub fn children(&self, dir: ObjectId) -> &[EntryId] {
        let (start, end) = self.children.get(dir.index()).copied().unwrap_or_default();
        self.by_parent.get(start as usize..end as usize).unwrap_or_default()
    }
    /// The path of an entry below the root: raw names, `/` between them, none before the first.
    pub fn path(&self, id: EntryId) -> Vec<u8> {
        let mut names = vec![self.name(id)];
        let mut dir = self.entry(id).parent;
        // Ends at the root: `finish` gives each directory one entry, and these form a tree.
        while let Some(up) = self.entry_of(dir) {
            names.push(self.name(up));
            dir = self.entry(up).parent;
        }
        names.reverse();
        names.join(&b'/')
    }
    /// The entry with this raw name in a directory.
    pub fn child(&self, dir: ObjectId, name: &[u8]) -> Option<EntryId> {
        let all = self.children(dir);
        let at = all.partition_point(|e| self.name(*e) < name);
        all.get(at).copied().filter(|e| self.name(*e) == name)
    }
    /// The entry with this name by `same` (case folding, say), where no name is the same to the letter.
    pub fn child_by(&self, dir: ObjectId, name: &[u8], same: impl Fn(&[u8], &[u8]) -> bool) -> Option<EntryId> {
        self.child(dir, name).or_else(|| self.children(dir).iter().copied().find(|e| same(self.name(*e), name)))
    }
    /// The object at a path of raw names, the root for none.
    pub fn lookup<'n>(&self, path: impl IntoIterator<Item = &'n [u8]>) -> Option<ObjectId> {
        path.into_iter().try_fold(self.root, |dir, name| self.child(dir, name).map(|e| self.entry(e).object))
    }
}

/// What a file system's reader says of one stream.
#[derive(Clone, Copy, Debug)]
pub struct NewStream<'a> {
    /// Its name, none for the data.
    pub name: Option<&'a [u8]>,
    /// Length in bytes.
    pub size: u64,
    /// Bytes from the start that were ever written.
    pub valid: u64,
    /// How its bytes are kept.
    pub form: Form,
    /// The reader's own note of where it is described.
    pub locator: u64,
}

/// Gathers a [`Tree`]. Objects, entries and streams may come in any order.
#[derive(Debug, Default)]
pub struct TreeBuilder {
    objects: Vec<Object>,
    entries: Vec<Entry>,
    streams: Vec<StreamInfo>,
    extents: Vec<Extent<Stream>>,
    names: Vec<u8>,
    targets: BTreeMap<ObjectId, Vec<u8>>,
    xattrs: BTreeMap<ObjectId, Vec<Xattr>>,
    problems: Vec<Problem>,
}

/// The longest path of an entry that is listed, in bytes with `/` before each name. Windows knows paths of 32,767 UTF-16 units, other
/// systems shorter ones. Without a limit, directories in directories would cost the square of their number.
const MAX_PATH: usize = 64 << 10;

/// The next position of an arena; a volume that fills four thousand million of them is refused by the caller's bounds.
fn next(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

impl TreeBuilder {
    /// With nothing in it.
    pub fn new() -> Self {
        Self::default()
    }
    /// Makes room for so many more objects of one name and one stream each.
    pub fn reserve(&mut self, objects: usize) {
        self.objects.reserve(objects);
        self.entries.reserve(objects);
        self.streams.reserve(objects);
        self.extents.reserve(objects);
        self.names.reserve(objects.saturating_mul(16));
    }
    /// Objects that were added.
    pub fn object_count(&self) -> usize {
        self.objects.len()
    }
    /// Adds an object.
    pub fn object(&mut self, object: Object) -> ObjectId {
        let id = ObjectId(next(self.objects.len()));
        self.objects.push(object);
        id
    }
    /// Changes an object that was added.
    pub fn object_mut(&mut self, id: ObjectId) -> Option<&mut Object> {
        self.objects.get_mut(id.index())
    }
    /// Adds a name of `object` in the directory `parent`. Names longer than 65,535 bytes are cut: no format has them.
    pub fn entry(&mut self, parent: ObjectId, name: &[u8], object: ObjectId) -> EntryId {
        let name = self.name(name);
        self.link(parent, name, object)
    }
    /// Adds a name whose directory is not known yet. Names longer than 65,535 bytes are cut.
    pub fn name(&mut self, name: &[u8]) -> NameId {
        let name = name.get(..usize::from(u16::MAX)).unwrap_or(name);
        let at = next(self.names.len());
        self.names.extend_from_slice(name);
        NameId { at, len: u16::try_from(name.len()).unwrap_or(u16::MAX) }
    }
    /// The bytes of a name that was added.
    pub fn text(&self, name: NameId) -> &[u8] {
        name.of(&self.names)
    }
    /// Makes a name that was added one of `object` in the directory `parent`.
    pub fn link(&mut self, parent: ObjectId, name: NameId, object: ObjectId) -> EntryId {
        let id = EntryId(next(self.entries.len()));
        self.entries.push(Entry { parent, object, name });
        id
    }
    /// Adds a stream of `object` from its pieces in order, merged, and cut or extended with zeros to its size.
    pub fn stream(
        &mut self,
        object: ObjectId,
        new: NewStream<'_>,
        pieces: impl IntoIterator<Item = (u64, crate::extent::What<Volume>)>,
    ) -> StreamId {
        let id = StreamId(next(self.streams.len()));
        let name = new.name.map(|n| self.name(n));
        let first = self.extents.len();
        let mut at = 0u64;
        for (len, what) in pieces.into_iter().chain([(u64::MAX, crate::extent::What::Zero)]) {
            let len = len.min(new.size.saturating_sub(at));
            if len == 0 {
                continue;
            }
            match self.extents.get_mut(first..).and_then(<[_]>::last_mut) {
                Some(last) if last.what.continued_by(last.len, &what) => last.len = last.len.saturating_add(len),
                _ => self.extents.push(Extent { start: Offset::new(at), len, what }),
            }
            at = at.saturating_add(len);
        }
        self.streams.push(StreamInfo {
            object,
            size: new.size,
            valid: new.valid.min(new.size),
            form: new.form,
            locator: new.locator,
            name,
            extents: (next(first), next(self.extents.len())),
        });
        id
    }
    /// Sets the target of a link.
    pub fn target(&mut self, object: ObjectId, target: Vec<u8>) {
        self.targets.insert(object, target);
    }
    /// Adds an extended attribute.
    pub fn xattr(&mut self, object: ObjectId, name: Vec<u8>, value: Vec<u8>) {
        self.xattrs.entry(object).or_default().push((name, value));
    }
    /// Notes damage.
    pub fn problem(&mut self, object: Option<ObjectId>, error: &Error) {
        self.problems.push(Problem { object, what: error.to_string(), hides: true });
    }
    /// Notes what is not as it should be, but hides nothing.
    pub fn note(&mut self, object: Option<ObjectId>, error: &Error) {
        self.problems.push(Problem { object, what: error.to_string(), hides: false });
    }
    /// The tree below `root`. A second name of a directory and whatever is in a cycle of directories is left out and
    /// noted as a problem, and so is an entry whose path is longer than any system can use: what the order lists is a tree,
    /// and all of its paths together are no more than a multiple of its entries. Linear but for sorting siblings by name.
    pub fn finish(mut self, root: ObjectId) -> Tree {
        let count = self.objects.len();
        let (first_stream, (by_parent, children)) = rayon::join(
            || sort_streams(&mut self.streams, &self.names, count),
            || sort_entries(&self.entries, &self.names, count),
        );
        let mut entry_of_dir: Vec<Option<EntryId>> = vec![None; count];
        let mut seen = vec![false; count];
        if let Some(seen) = seen.get_mut(root.index()) {
            *seen = true;
        }
        let mut order = Vec::with_capacity(self.entries.len());
        let mut depth = Vec::with_capacity(self.entries.len());
        let of = |dir: ObjectId| -> &[EntryId] {
            let (start, end) = children.get(dir.index()).copied().unwrap_or_default();
            by_parent.get(start as usize..end as usize).unwrap_or_default()
        };
        // Of each directory on the way, the entries that are yet to come, and the length of its path.
        let mut stack = vec![(of(root).iter(), 0usize)];
        let mut too_long: (u64, Option<ObjectId>) = (0, None);
        while let Some((top, above)) = stack.last_mut() {
            let Some(&id) = top.next() else {
                stack.pop();
                continue;
            };
            let Some(entry) = self.entries.get(id.index()) else { continue };
            let object = entry.object;
            let len = above.saturating_add(1).saturating_add(entry.name.len.into());
            if len > MAX_PATH {
                too_long = (too_long.0.saturating_add(1), too_long.1.or(Some(object)));
                continue;
            }
            if self.objects.get(object.index()).is_some_and(|o| o.kind == Kind::Dir) {
                match seen.get_mut(object.index()) {
                    Some(seen) if !*seen => *seen = true,
                    _ => {
                        let number = self.objects.get(object.index()).map_or(0, |o| o.number);
                        self.problems.push(Problem {
                            object: Some(object),
                            what: format!("directory {number}: expected one name, left out a second one"),
                            hides: true,
                        });
                        continue;
                    }
                }
                if let Some(slot) = entry_of_dir.get_mut(object.index()) {
                    *slot = Some(id);
                }
                order.push(id);
                depth.push(next(stack.len()));
                stack.push((of(object).iter(), len));
            } else {
                order.push(id);
                depth.push(next(stack.len()));
            }
        }
        if too_long.0 > 0 {
            self.problems.push(Problem {
                hides: true,
                object: too_long.1,
                what: format!(
                    "{} entries: expected paths of at most {MAX_PATH} bytes, left out with what lies in them",
                    too_long.0
                ),
            });
        }
        Tree {
            root,
            objects: self.objects,
            entries: self.entries,
            streams: self.streams,
            extents: self.extents,
            names: self.names,
            targets: self.targets,
            xattrs: self.xattrs,
            problems: self.problems,
            first_stream,
            order,
            depth,
            entry_of_dir,
            children,
            by_parent,
        }
    }
}

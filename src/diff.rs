//! What two states of a disk differ in, file by file: found from the places that differ, without reading the rest.
//!
//! Both volumes are resolved down to the files that hold their bytes. Where both have the same bytes of the same file, or
//! zeros, nothing can differ; only what a stream has elsewhere is read and compared.

use std::collections::{BTreeMap, HashMap};

use crate::error::{Error, Result};
use crate::extent::{Device, LayerId, Map, Offset, Volume, What};
use crate::fs::{EntryId, Kind, ObjectId, StreamId, Tree};
use crate::stack::{Guest, Level, Stack, Target};

/// Bytes compared at a time.
const CHUNK: u64 = 1 << 20;

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Became {
    /// It is only in the second state.
    Added,
    /// It is only in the first.
    Removed,
    /// Its bytes differ.
    Changed,
    /// Only what is said about it differs: times, owner, mode, attributes, the target of a link.
    Metadata,
    /// It can't be told: its bytes can't be read in one of them.
    Unreadable,
}

impl Became {
    /// The word in JSON lines.
    pub fn word(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Changed => "changed",
            Self::Metadata => "metadata",
            Self::Unreadable => "unreadable",
        }
    }
}

/// A file, folder or stream that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its path below the address: volume, names, `:` and the name of a stream.
    pub path: Vec<u8>,
    /// The kind, of the second state where it is there.
    pub kind: &'static str,
    /// What became of it.
    pub became: Became,
    /// Bytes before and after.
    pub size: [Option<u64>; 2],
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// In the order of volumes and paths.
    pub differences: Vec<Difference>,
    /// Bytes of streams that were read, of each state.
    pub read: u64,
}

/// Compares what two addresses name: disks, volumes, folders or files.
///
/// # Errors
/// [`Error::Usage`] for addresses of unlike things, and what walking the file systems meets.
pub fn between(a: &Stack, b: &Stack) -> Result<Found> {
    let mut found = Found::default();
    let keys = Keys::of(a, b)?;
    let (la, lb) = (a.last()?, b.last()?);
    let one = |stack: &Stack| match &stack.target {
        Target::Disk => None,
        Target::Volume(v) | Target::Object(v, ..) | Target::Stream(v, ..) => Some(*v),
    };
    match (one(a), one(b)) {
        (None, None) => {
            let names: Vec<&str> = la.table.slots.iter().chain(&lb.table.slots).map(|s| s.name.as_str()).collect();
            let mut seen = Vec::new();
            for name in names {
                if seen.contains(&name) {
                    continue;
                }
                seen.push(name);
                let slot = |level: &Level| level.table.slots.iter().position(|s| s.name == name);
                volumes(&mut found, &keys, [(la, slot(la)), (lb, slot(lb))], name.as_bytes(), [b"", b""])?;
            }
        }
        (Some(va), Some(vb)) => {
            let below = |stack: &Stack| match &stack.target {
                Target::Object(_, path, _) | Target::Stream(_, path, _) => path.clone(),
                _ => Vec::new(),
            };
            volumes(&mut found, &keys, [(la, Some(va)), (lb, Some(vb))], b"", [&below(a), &below(b)])?;
        }
        _ => return Err(Error::Usage("expected two disks, or two volumes, folders or files".into())),
    }
    Ok(found)
}

/// The files that bytes are in, by numbers that are the same for the same file of both.
struct Keys([HashMap<LayerId, usize>; 2]);

impl Keys {
    fn of(a: &Stack, b: &Stack) -> Result<Self> {
        let whole = |stack: &Stack| stack.address.source.canonicalize().ok();
        let (la, lb) = (a.last()?, b.last()?);
        // The way to the last image is the same, file by file and snapshot by snapshot.
        let mut same = whole(a).is_some() && whole(a) == whole(b) && a.levels.len() == b.levels.len();
        for (x, y) in a.levels.iter().zip(&b.levels) {
            let place = |l: &Level| l.within.as_ref().map(|w| (w.volume, w.object, w.stream));
            same &= place(x) == place(y);
        }
        let above = a.levels.len().saturating_sub(1);
        same &= a.levels.iter().zip(&b.levels).take(above).all(|(x, y)| x.disk.snapshot == y.disk.snapshot);
        let number = |level: &Level, first: usize| -> HashMap<LayerId, usize> {
            let mut of = HashMap::from([(level.device.id(), first)]);
            for (i, part) in level.disk.parts.iter().enumerate() {
                of.insert(part.device.id(), first.saturating_add(i).saturating_add(1));
            }
            of
        };
        let names: Vec<&str> = la.disk.parts.iter().map(|p| p.name.as_str()).collect();
        let first = number(la, 0);
        let apart = names.len().saturating_add(1);
        let mut second = number(lb, apart);
        if same {
            second.insert(lb.device.id(), 0);
            for part in &lb.disk.parts {
                if let Some(at) = names.iter().position(|n| *n == part.name) {
                    second.insert(part.device.id(), at.saturating_add(1));
                }
            }
        }
        Ok(Self([first, second]))
    }
    /// What a stretch is, as something that can be compared; none for what has to be decoded.
    fn place(&self, which: usize, what: What<Device>) -> Option<Option<(usize, u64)>> {
        match what {
            What::Zero => Some(None),
            What::Stored(p) => Some(Some((*self.0.get(which)?.get(&p.layer)?, p.offset.get()))),
            What::Encoded(_) => None,
        }
    }
    /// The ranges of two volumes in which they are not the same bytes of the same files.
    fn apart(&self, a: &Map<Volume, Device>, b: &Map<Volume, Device>) -> Vec<(u64, u64)> {
        let mut out: Vec<(u64, u64)> = Vec::new();
        let (mut x, mut y) = (a.extents().iter().peekable(), b.extents().iter().peekable());
        let mut at = 0u64;
        while let (Some(ex), Some(ey)) = (x.peek(), y.peek()) {
            let end = ex.end().min(ey.end()).get();
            let shifted = |which: usize, what: What<Device>, start: u64| {
                let place = self.place(which, what)?;
                Some(place.map(|(file, offset)| (file, offset.saturating_add(at.saturating_sub(start)))))
            };
            let (px, py) = (shifted(0, ex.what, ex.start.get()), shifted(1, ey.what, ey.start.get()));
            if px.is_none() || px != py {
                match out.last_mut() {
                    Some(last) if last.1 == at => last.1 = end,
                    _ => out.push((at, end)),
                }
            }
            if ex.end().get() == end {
                x.next();
            }
            if y.peek().is_some_and(|e| e.end().get() == end) {
                y.next();
            }
            if end <= at {
                break;
            }
            at = end;
        }
        let rest = a.len().max(b.len());
        if at < rest {
            out.push((at, rest));
        }
        out
    }
}

/// One of two states of a volume.
struct State<'a> {
    guest: &'a Guest,
    tree: std::sync::Arc<Tree>,
    paths: BTreeMap<Vec<u8>, EntryId>,
}

impl<'a> State<'a> {
    fn of(level: &'a Level, slot: usize, below: &[u8]) -> Result<Self> {
        let guest = level.guest(slot)?;
        let tree = guest.tree()?;
        let mut paths = BTreeMap::new();
        for (entry, _) in tree.order() {
            if tree.object(tree.entry(entry).object).system {
                continue;
            }
            let path = tree.path(entry);
            let rest = match path.strip_prefix(below) {
                _ if below.is_empty() => Some(path.as_slice()),
                Some(b"") => Some(path.rsplit(|b| *b == b'/').next().unwrap_or_default()),
                Some(rest) => rest.strip_prefix(b"/"),
                None => None,
            };
            if let Some(rest) = rest {
                paths.insert(rest.to_vec(), entry);
            }
        }
        Ok(Self { guest, tree, paths })
    }
    fn object(&self, entry: EntryId) -> ObjectId {
        self.tree.entry(entry).object
    }
}

type Side<'a> = (&'a Level, Option<usize>);

fn volumes(found: &mut Found, keys: &Keys, sides: [Side<'_>; 2], name: &[u8], below: [&[u8]; 2]) -> Result<()> {
    let [(la, sa), (lb, sb)] = sides;
    let known = |level: &Level, slot: Option<usize>| slot.filter(|s| level.guest(*s).is_ok_and(|g| g.fs.is_some()));
    let (a, b) = match (known(la, sa), known(lb, sb)) {
        (Some(a), Some(b)) => (a, b),
        (None, None) if sa.is_some() == sb.is_some() => return Ok(()),
        (a, b) => {
            let became = if b.is_some() || a.is_none() && sb.is_some() { Became::Added } else { Became::Removed };
            let path = name.to_vec();
            found.differences.push(Difference { path, kind: "volume", became, size: [None, None] });
            return Ok(());
        }
    };
    let apart = keys.apart(&la.volume_in_device(a)?, &lb.volume_in_device(b)?);
    if apart.is_empty() && below[0] == below[1] {
        return Ok(());
    }
    let [before, after] = [State::of(la, a, below[0])?, State::of(lb, b, below[1])?];
    let mut pair = Pair { before, after, apart, found, name };
    let paths: Vec<Vec<u8>> = {
        let all = pair.before.paths.keys().chain(pair.after.paths.keys());
        all.cloned().collect::<std::collections::BTreeSet<_>>().into_iter().collect()
    };
    paths.iter().for_each(|path| pair.entry(path));
    Ok(())
}

struct Pair<'a> {
    before: State<'a>,
    after: State<'a>,
    /// Ranges of the volume that may differ.
    apart: Vec<(u64, u64)>,
    found: &'a mut Found,
    name: &'a [u8],
}

impl Pair<'_> {
    fn tell(&mut self, path: &[u8], kind: &'static str, became: Became, size: [Option<u64>; 2]) {
        let whole = if self.name.is_empty() { path.to_vec() } else { [self.name, b"/", path].concat() };
        self.found.differences.push(Difference { path: whole, kind, became, size });
    }
    fn entry(&mut self, path: &[u8]) {
        let old = self.before.paths.get(path).map(|e| self.before.object(*e));
        let new = self.after.paths.get(path).map(|e| self.after.object(*e));
        let size = |state: &State<'_>, object: Option<ObjectId>| {
            object.and_then(|o| state.tree.data(o)).map(|s| state.tree.stream(s).size)
        };
        let sizes = [size(&self.before, old), size(&self.after, new)];
        let word = |state: &State<'_>, o: ObjectId| state.tree.object(o).kind.word();
        match (old, new) {
            (Some(old), None) => self.tell(path, word(&self.before, old), Became::Removed, sizes),
            (None, Some(new)) => self.tell(path, word(&self.after, new), Became::Added, sizes),
            (None, None) => {}
            (Some(old), Some(new)) => {
                let kind = word(&self.after, new);
                let streams = self.streams(old, new);
                let data = match (self.before.tree.data(old), self.after.tree.data(new)) {
                    _ if self.before.tree.object(old).kind != self.after.tree.object(new).kind => Some(Became::Changed),
                    (Some(a), Some(b)) if self.before.tree.object(old).kind == Kind::File => self.stream(a, b),
                    (a, b) if a.is_some() != b.is_some() => Some(Became::Changed),
                    _ => None,
                };
                match data {
                    Some(became) => self.tell(path, kind, became, sizes),
                    None if said(&self.before.tree, old) != said(&self.after.tree, new) => {
                        self.tell(path, kind, Became::Metadata, sizes);
                    }
                    None => {}
                }
                for (name, became, size) in streams {
                    self.tell(&[path, b":", &name].concat(), "stream", became, size);
                }
            }
        }
    }
    /// The named streams that differ.
    fn streams(&mut self, old: ObjectId, new: ObjectId) -> Vec<(Vec<u8>, Became, [Option<u64>; 2])> {
        let named = |tree: &Tree, o: ObjectId| -> BTreeMap<Vec<u8>, StreamId> {
            tree.streams(o).filter_map(|s| Some((tree.stream_name(s)?.to_vec(), s))).collect()
        };
        let (a, b) = (named(&self.before.tree, old), named(&self.after.tree, new));
        let mut out = Vec::new();
        for (name, stream) in &a {
            let size = Some(self.before.tree.stream(*stream).size);
            match b.get(name) {
                None => out.push((name.clone(), Became::Removed, [size, None])),
                Some(other) => {
                    let after = Some(self.after.tree.stream(*other).size);
                    if let Some(became) = self.stream(*stream, *other) {
                        out.push((name.clone(), became, [size, after]));
                    }
                }
            }
        }
        for (name, stream) in b.iter().filter(|(name, _)| !a.contains_key(*name)) {
            out.push((name.clone(), Became::Added, [None, Some(self.after.tree.stream(*stream).size)]));
        }
        out
    }
    /// What became of a stream's bytes, none where they are the same.
    fn stream(&mut self, a: StreamId, b: StreamId) -> Option<Became> {
        let size = self.before.tree.stream(a).size;
        if size != self.after.tree.stream(b).size {
            return Some(Became::Changed);
        }
        let (x, y) = (self.before.tree.extents(a), self.after.tree.extents(b));
        let alike = x.len() == y.len()
            && x.iter().zip(y).all(|(x, y)| {
                x.len == y.len
                    && match (x.what, y.what) {
                        (What::Stored(p), What::Stored(q)) => p.offset == q.offset,
                        (p, q) => {
                            p == What::Zero && q == What::Zero
                                || matches!((p, q), (What::Encoded(m), What::Encoded(n)) if m == n)
                        }
                    }
            });
        let mut ranges = Vec::new();
        for e in x {
            let whole = (e.start.get(), e.end().get());
            match e.what {
                _ if !alike => ranges.push(whole),
                What::Zero => {}
                What::Encoded(_) => ranges.push(whole),
                What::Stored(p) => {
                    let (from, to) = (p.offset.get(), p.offset.get().saturating_add(e.len));
                    let first = self.apart.partition_point(|r| r.1 <= from);
                    let over = self.apart.get(first..).unwrap_or_default().iter().take_while(|r| r.0 < to);
                    ranges.extend(over.map(|r| {
                        let start = r.0.max(from).saturating_sub(from).saturating_add(e.start.get());
                        (start, r.1.min(to).saturating_sub(from).saturating_add(e.start.get()))
                    }));
                }
            }
        }
        if ranges.is_empty() {
            return None;
        }
        match self.compare(a, b, &ranges) {
            Ok(true) => None,
            Ok(false) => Some(Became::Changed),
            Err(_) => Some(Became::Unreadable),
        }
    }
    /// Whether two streams have the same bytes in these ranges.
    fn compare(&mut self, a: StreamId, b: StreamId, ranges: &[(u64, u64)]) -> Result<bool> {
        let x = self.before.guest.fs()?.open(&self.before.tree, a)?;
        let y = self.after.guest.fs()?.open(&self.after.tree, b)?;
        for (start, end) in ranges {
            let mut at = *start;
            while at < *end {
                let len = usize::try_from(end.saturating_sub(at).min(CHUNK)).unwrap_or_default();
                self.found.read = self.found.read.saturating_add(len as u64);
                if x.read_vec(Offset::new(at), len)? != y.read_vec(Offset::new(at), len)? {
                    return Ok(false);
                }
                at = at.saturating_add(len as u64);
            }
        }
        Ok(true)
    }
}

/// What is said about an object, without the time of the last access.
fn said(tree: &Tree, o: ObjectId) -> impl PartialEq + use<> {
    let object = *tree.object(o);
    let times = (object.times.created, object.times.modified, object.times.changed);
    (times, object.attributes, object.mode, object.owner, tree.target(o).map(<[u8]>::to_vec), tree.xattrs(o).to_vec())
}

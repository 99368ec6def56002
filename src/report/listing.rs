//! A walk over a tree, or a part of it, with the path of every entry, and how one entry is put into each format.

use std::ops::Range;

use rayon::prelude::*;

use super::json::{Row, base64, number};
use super::text::{left, right};
use super::{path, time};
use crate::fs::{EntryId, Kind, Object, ObjectId, StreamId, Times, Tree};

/// Which entries of a tree are listed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scope {
    /// The directory whose contents are listed; the root where none is given.
    pub below: Option<ObjectId>,
    /// Also what is in its directories, and in theirs.
    pub recursive: bool,
    /// Also the file system's own metadata files.
    pub system: bool,
}

/// One entry on the way of a walk.
#[derive(Debug)]
pub struct Visit<'a> {
    /// The tree that it is in.
    pub tree: &'a Tree,
    /// Its object.
    pub id: ObjectId,
    /// Its path, escaped as [`path::escape`] does.
    pub shown: &'a str,
    /// Whether `shown` are the bytes of the path themselves.
    plain: bool,
    bytes: Bytes<'a>,
}

/// Where the bytes of a path are to be had, where they are not those that are shown.
#[derive(Debug)]
enum Bytes<'a> {
    /// What stands before the path of the tree, the entry, and how much of its path is above what is listed.
    Entry(&'a str, EntryId, usize),
    /// These.
    Name(&'a [u8]),
}

impl Visit<'_> {
    /// The object.
    pub fn object(&self) -> &Object {
        self.tree.object(self.id)
    }
    /// The path as the bytes of its names.
    pub fn raw(&self) -> Vec<u8> {
        match self.bytes {
            _ if self.plain => self.shown.into(),
            Bytes::Name(name) => name.into(),
            Bytes::Entry(prefix, entry, above) => {
                let full = self.tree.path(entry);
                let mut raw = prefix.as_bytes().to_vec();
                raw.extend_from_slice(full.get(above..).unwrap_or(&full));
                raw
            }
        }
    }
    /// Bytes of its unnamed data; 0 for what has none.
    pub fn size(&self) -> u64 {
        self.tree.data(self.id).map_or(0, |s| self.tree.stream(s).size)
    }
    /// The streams that have a name.
    pub fn named(&self) -> impl Iterator<Item = (StreamId, &[u8])> {
        self.tree.streams(self.id).filter_map(|s| Some((s, self.tree.stream_name(s)?)))
    }
}

/// Entries that one thread goes over at a time, and how many threads' worth of them are held.
const BLOCK: usize = 2048;
const BLOCKS: usize = 8;

/// Calls `put` for every entry in `scope`: parents before children, siblings by name. `prefix` stands before each path.
/// What `put` makes of a stretch of entries goes to one `B`, several at a time in parallel; `take` is given them in
/// order, and has to empty each. A walk costs what the tree costs, whatever part of it is in scope.
///
/// # Errors
/// The first that `take` gives, which ends the walk.
pub fn walk<B: Default + Send, E>(
    tree: &Tree,
    scope: Scope,
    prefix: &str,
    put: impl Fn(&mut B, &Visit<'_>) + Sync,
    mut take: impl FnMut(&mut B) -> Result<(), E>,
) -> Result<(), E> {
    let Some((range, base, above)) = range(tree, scope) else { return Ok(()) };
    let start = Way { tree, scope, prefix, base, above, shown: prefix.into(), dirs: Vec::new(), hidden: None };
    let (mut full, mut next): (Vec<B>, Vec<B>) = (Vec::new(), Vec::new());
    let mut at = range.start;
    loop {
        next.resize_with(range.end.saturating_sub(at).div_ceil(BLOCK).min(BLOCKS), B::default);
        let end = at.saturating_add(next.len().saturating_mul(BLOCK)).min(range.end);
        rayon::in_place_scope(|threads| {
            threads.spawn(|_| {
                next.par_iter_mut().zip((at..end).into_par_iter().step_by(BLOCK)).for_each(|(block, from)| {
                    start.clone().go(from..from.saturating_add(BLOCK).min(end), |visit| put(block, visit));
                });
            });
            full.iter_mut().try_for_each(&mut take)
        })?;
        if at == end {
            return Ok(());
        }
        at = end;
        std::mem::swap(&mut full, &mut next);
    }
}

/// The entries below the directory of a scope by their positions, its depth, and the length of its path with a `/`.
fn range(tree: &Tree, scope: Scope) -> Option<(Range<usize>, u32, usize)> {
    let all = tree.order().len();
    let Some(dir) = scope.below.filter(|dir| *dir != tree.root()) else { return Some((0..all, 0, 0)) };
    let entry = tree.entry_of(dir)?;
    let at = tree.order().position(|(id, _)| id == entry)?;
    let (_, base) = tree.order_in(at..all).next()?;
    let start = at.saturating_add(1);
    let below = tree.order_in(start..all).take_while(|(_, depth)| *depth > base).count();
    Some((start..start.saturating_add(below), base, tree.path(entry).len().saturating_add(1)))
}

/// A walk on its way.
#[derive(Clone)]
struct Way<'a> {
    tree: &'a Tree,
    scope: Scope,
    prefix: &'a str,
    base: u32,
    above: usize,
    /// The path so far.
    shown: String,
    /// For each depth of it, how much of it there is, and whether that needed no escape.
    dirs: Vec<(usize, bool)>,
    /// The depth of a directory whose contents are left out.
    hidden: Option<u32>,
}

impl Way<'_> {
    /// Calls `each` for what is in scope of the entries at these positions.
    fn go(mut self, range: Range<usize>, mut each: impl FnMut(&Visit<'_>)) {
        let mut order = self.tree.order_in(range).peekable();
        // The directories that the first one is in.
        let mut above = Vec::new();
        if let Some(&(first, depth)) = order.peek() {
            let mut entry = first;
            for depth in (self.base.saturating_add(1)..depth).rev() {
                let Some(up) = self.tree.entry_of(self.tree.entry(entry).parent) else { break };
                above.push((up, depth));
                entry = up;
            }
        }
        for (entry, depth) in above.into_iter().rev() {
            self.step(entry, depth);
        }
        for (entry, depth) in order {
            self.step(entry, depth).iter().for_each(&mut each);
        }
    }
    /// The next entry in the order of the tree, none where it is out of scope.
    fn step(&mut self, entry: EntryId, depth: u32) -> Option<Visit<'_>> {
        let Self { tree, scope, prefix, base, above, .. } = *self;
        let level = depth.saturating_sub(base) as usize;
        if self.hidden.is_some_and(|of| depth > of) || (!scope.recursive && level > 1) {
            return None;
        }
        let id = tree.entry(entry).object;
        let object = tree.object(id);
        self.hidden = (!scope.system && object.system).then_some(depth);
        if self.hidden.is_some() {
            return None;
        }
        self.dirs.truncate(level.saturating_sub(1));
        let (len, plain) = self.dirs.last().copied().unwrap_or((prefix.len(), true));
        self.shown.truncate(len);
        if !self.dirs.is_empty() {
            self.shown.push('/');
        }
        let name = tree.name(entry);
        let escaped = path::escape_name(name);
        self.shown.push_str(&escaped);
        let plain = plain && escaped.len() == name.len();
        if object.kind == Kind::Dir {
            self.dirs.push((self.shown.len(), plain));
        }
        Some(Visit { tree, id, shown: &self.shown, plain, bytes: Bytes::Entry(prefix, entry, above) })
    }
}

/// Calls `each` once for one object that an address names, as `name` (raw bytes).
///
/// # Errors
/// What `each` gives.
pub fn single<E>(
    tree: &Tree,
    id: ObjectId,
    name: &[u8],
    each: impl FnOnce(&Visit<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let shown = path::escape_name(name);
    let plain = shown.as_bytes() == name;
    each(&Visit { tree, id, shown: &shown, plain, bytes: Bytes::Name(name) })
}

/// The fields of an object that do not depend on the name or stream by which it is listed: times, number, attributes,
/// permissions, owner, target, device numbers, extended attributes; each where there is one.
pub fn object_fields(row: &mut Row<'_>, tree: &Tree, id: ObjectId) {
    let object = tree.object(id);
    row.time("mtime", object.times.modified)
        .time("atime", object.times.accessed)
        .time("ctime", object.times.changed)
        .time("btime", object.times.created)
        .number("number", object.number);
    if object.attributes != 0 {
        row.number("attributes", object.attributes.into());
    }
    row.some("mode", object.mode.map(|m| format!("{m:04o}")));
    if let Some((uid, gid)) = object.owner {
        row.number("uid", uid.into()).number("gid", gid.into());
    }
    if let Some(target) = tree.target(id) {
        row.path("target", "target_raw", target);
    }
    match object.kind {
        Kind::Reparse(tag) => {
            row.number("tag", tag.into());
        }
        Kind::CharDevice(major, minor) => {
            row.word("device", "char").number("major", major.into()).number("minor", minor.into());
        }
        Kind::BlockDevice(major, minor) => {
            row.word("device", "block").number("major", major.into()).number("minor", minor.into());
        }
        _ => {}
    }
    if object.system {
        row.value("system", &true);
    }
    let xattrs = tree.xattrs(id);
    if !xattrs.is_empty() {
        let shown: Vec<_> = xattrs.iter().map(|(name, value)| (path::escape_name(name), base64(value))).collect();
        row.value("xattrs", &shown);
    }
}

/// One JSON line for an entry, and one for each of its named streams.
pub fn json(out: &mut Vec<u8>, visit: &Visit<'_>) {
    json_object(out, visit);
    for (stream, name) in visit.named() {
        json_stream(out, visit, stream, name);
    }
}

/// One JSON line for an entry.
pub fn json_object(out: &mut Vec<u8>, visit: &Visit<'_>) {
    let mut row = Row::new(out, "entry");
    row.value("path", visit.shown);
    if !visit.plain {
        row.value("path_raw", &base64(&visit.raw()));
    }
    row.word("kind", visit.object().kind.word()).number("size", visit.size());
    object_fields(&mut row, visit.tree, visit.id);
    row.end();
}

/// One JSON line for a named stream of an entry.
pub fn json_stream(out: &mut Vec<u8>, visit: &Visit<'_>, stream: StreamId, name: &[u8]) {
    let mut raw = visit.raw();
    raw.push(b':');
    raw.extend_from_slice(name);
    let mut row = Row::new(out, "entry");
    row.path("path", "path_raw", &raw).word("kind", "stream").number("size", visit.tree.stream(stream).size);
    object_fields(&mut row, visit.tree, visit.id);
    row.path("stream", "stream_raw", name).end();
}

/// One line for an entry: its path, and with `long` its kind, size and time of modification before it, the target of a
/// link behind it, and lines for its named streams.
pub fn human(out: &mut Vec<u8>, visit: &Visit<'_>, long: bool) {
    if !long {
        out.extend_from_slice(visit.shown.as_bytes());
        out.push(b'\n');
        return;
    }
    let object = visit.object();
    columns(out, object.kind.word(), visit.size(), &object.times);
    out.extend_from_slice(visit.shown.as_bytes());
    if let Some(target) = visit.tree.target(visit.id) {
        out.extend_from_slice(b" -> ");
        out.extend_from_slice(path::escape(target).as_bytes());
    }
    out.push(b'\n');
    for (stream, name) in visit.named() {
        human_stream(out, visit, stream, name, true);
    }
}

/// One line for a named stream of an entry.
pub fn human_stream(out: &mut Vec<u8>, visit: &Visit<'_>, stream: StreamId, name: &[u8], long: bool) {
    if long {
        columns(out, "stream", visit.tree.stream(stream).size, &visit.object().times);
    }
    out.extend_from_slice(visit.shown.as_bytes());
    out.push(b':');
    out.extend_from_slice(path::escape_name(name).as_bytes());
    out.push(b'\n');
}

/// Kind, size and time of modification, in columns.
fn columns(out: &mut Vec<u8>, kind: &str, size: u64, times: &Times) {
    left(out, 9, |out| out.extend_from_slice(kind.as_bytes()));
    right(out, 14, |out| number(out, size));
    out.extend_from_slice(b"  ");
    left(out, 32, |out| match times.modified {
        Some(t) => time::rfc3339(out, t),
        None => out.push(b'-'),
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{Form, NewStream, TimeUnit, Times, Timestamp, TreeBuilder};

    fn object(kind: Kind, number: u64) -> Object {
        let modified = Some(Timestamp { secs: 86_400, nanos: 500_000_000, unit: TimeUnit::Hundredth });
        let times = Times { modified, ..Times::default() };
        Object { kind, number, times, attributes: 0, mode: None, owner: None, system: false }
    }

    fn stream(b: &mut TreeBuilder, of: ObjectId, name: Option<&[u8]>, size: u64) {
        b.stream(of, NewStream { name, size, valid: size, form: Form::Plain, locator: 0 }, []);
    }

    /// `a/` with `x\x1b` and the link `y`; `b` with a stream; `$S/` of the system with `in`.
    fn tree() -> Tree {
        let mut b = TreeBuilder::new();
        let root = b.object(object(Kind::Dir, 5));
        let a = b.object(object(Kind::Dir, 30));
        let x = b.object(object(Kind::File, 31));
        let y = b.object(object(Kind::Symlink, 32));
        let f = b.object(Object { mode: Some(0o4750), owner: Some((7, 8)), ..object(Kind::File, 33) });
        let s = b.object(Object { system: true, ..object(Kind::Dir, 11) });
        let inner = b.object(object(Kind::File, 12));
        b.entry(root, b"a", a);
        b.entry(a, b"x\x1b", x);
        b.entry(a, b"y", y);
        b.entry(root, b"b|", f);
        b.entry(root, b"$S", s);
        b.entry(s, b"in", inner);
        b.target(y, b"../\xff".to_vec());
        stream(&mut b, x, None, 10);
        stream(&mut b, f, None, 20);
        stream(&mut b, f, Some(b"s\n"), 3);
        b.finish(root)
    }

    fn all(scope: Scope, prefix: &str, put: impl Fn(&mut Vec<u8>, &Visit<'_>) + Sync) -> Vec<String> {
        all_of(&tree(), scope, prefix, put)
    }
    fn all_of(tree: &Tree, scope: Scope, prefix: &str, put: impl Fn(&mut Vec<u8>, &Visit<'_>) + Sync) -> Vec<String> {
        let mut out = Vec::new();
        let take = |block: &mut Vec<u8>| {
            out.append(block);
            Ok::<_, ()>(())
        };
        walk(tree, scope, prefix, put, take).unwrap();
        String::from_utf8(out).unwrap().lines().map(str::to_owned).collect()
    }
    fn find(tree: &Tree, path: &[&str]) -> ObjectId {
        tree.lookup(path.iter().map(|n| n.as_bytes())).unwrap()
    }

    #[test]
    fn the_scope_says_what_is_listed() {
        let short = |out: &mut Vec<u8>, v: &Visit<'_>| human(out, v, false);
        let scope = Scope::default();
        assert_eq!(all(scope, "", short), ["a", "b|"]);
        assert_eq!(all(Scope { system: true, ..scope }, "", short), ["$S", "a", "b|"]);
        let deep = Scope { recursive: true, ..scope };
        assert_eq!(all(deep, "p1/", short), ["p1/a", "p1/a/x%1B", "p1/a/y", "p1/b|"]);
        assert_eq!(all(Scope { system: true, ..deep }, "", short), ["$S", "$S/in", "a", "a/x%1B", "a/y", "b|"]);
        let tree = tree();
        let below = Some(find(&tree, &["a"]));
        assert_eq!(all(Scope { below, ..scope }, "", short), ["x%1B", "y"]);
        assert_eq!(all(Scope { below: Some(find(&tree, &["$S"])), ..deep }, "", short), ["in"]);
    }

    #[test]
    fn a_walk_of_many_blocks_is_one_walk() {
        let mut b = TreeBuilder::new();
        let root = b.object(object(Kind::Dir, 5));
        let mut deep = root;
        for n in 0..40 * BLOCK as u64 {
            // Directories in directories, some of the system, with many files and none.
            let system = n % 7001 == 7000;
            let kind = if n % 500 == 0 { Kind::Dir } else { Kind::File };
            let new = b.object(Object { system, ..object(kind, n) });
            b.entry(if n % 6000 == 0 { root } else { deep }, format!("n%{n:x}").as_bytes(), new);
            if kind == Kind::Dir {
                deep = new;
            }
        }
        let tree = b.finish(root);
        let is_system = |path: &str| {
            let mut names = path.split('/').map(|n| u64::from_str_radix(&n[2..], 16).unwrap());
            names.any(|n| n % 7001 == 7000)
        };
        let paths: Vec<String> = tree.order().map(|(e, _)| String::from_utf8(tree.path(e)).unwrap()).collect();
        let short = |out: &mut Vec<u8>, v: &Visit<'_>| {
            out.extend_from_slice(&v.raw());
            out.push(b'\n');
        };
        let deep = Scope { recursive: true, ..Scope::default() };
        assert!(all_of(&tree, Scope { system: true, ..deep }, "", short) == paths);
        let users: Vec<String> = paths.iter().filter(|p| !is_system(p)).map(|p| format!("p1/{p}")).collect();
        assert!(users.len() < paths.len() && all_of(&tree, deep, "p1/", short) == users);
        let below = paths.iter().find(|p| p.split('/').count() == 4).unwrap();
        let below = below.rsplit_once('/').unwrap().0;
        let inner: Vec<_> = users.iter().filter_map(|p| p[3..].strip_prefix(below)?.strip_prefix('/')).collect();
        let dir = find(&tree, &below.split('/').collect::<Vec<_>>());
        assert!(all_of(&tree, Scope { below: Some(dir), ..deep }, "", short) == inner);
    }

    #[test]
    fn json_rows_have_the_raw_path_where_it_was_escaped() {
        let rows = all(Scope { recursive: true, ..Scope::default() }, "p1/", json);
        let rows: Vec<serde_json::Value> = rows.iter().map(|r| serde_json::from_str(r).unwrap()).collect();
        assert_eq!(rows[0]["path"], "p1/a");
        assert!(rows[0].get("path_raw").is_none());
        assert_eq!(rows[1]["path"], "p1/a/x%1B");
        assert_eq!(rows[1]["path_raw"], base64(b"p1/a/x\x1b"));
        assert_eq!(rows[1]["mtime"], "1970-01-02T00:00:00.50Z");
        assert_eq!(
            (rows[2]["target"].clone(), rows[2]["target_raw"].clone()),
            ("../%FF".into(), base64(b"../\xff").into())
        );
        assert_eq!((rows[3]["mode"].clone(), rows[3]["uid"].clone()), ("4750".into(), 7.into()));
        assert_eq!((rows[4]["path"].clone(), rows[4]["kind"].clone()), ("p1/b|:s%0A".into(), "stream".into()));
        assert_eq!((rows[4]["stream"].clone(), rows[4]["size"].clone()), ("s%0A".into(), 3.into()));
    }

    #[test]
    fn bodyfiles_keep_their_fields_apart() {
        let rows = all(Scope { recursive: true, ..Scope::default() }, "", super::super::bodyfile::lines);
        assert_eq!(rows[1], "0|a/x%1B|31|r/rrwxrwxrwx|0|0|10|0|86400|0|0");
        assert_eq!(rows[2], "0|a/y -> ../%FF|32|l/lrwxrwxrwx|0|0|0|0|86400|0|0");
        assert_eq!(rows[3], "0|b%7C|33|r/rrwsr-x---|7|8|20|0|86400|0|0");
        assert_eq!(rows[4], "0|b%7C:s%0A|33|r/rrwsr-x---|7|8|3|0|86400|0|0");
        assert!(rows.iter().all(|r| r.split('|').count() == 11));
    }
}

//! A walk over a tree, or a part of it, with the path of every entry, and how one entry is put into each format.

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

/// Calls `each` for every entry in `scope`: parents before children, siblings by name. `prefix` stands before each path.
/// A walk costs what the tree costs, whatever part of it is in scope.
///
/// # Errors
/// The first that `each` gives, which ends the walk.
pub fn walk<E>(
    tree: &Tree,
    scope: Scope,
    prefix: &str,
    mut each: impl FnMut(&Visit<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let below = scope.below.filter(|dir| *dir != tree.root());
    let mut order = tree.order().peekable();
    let mut base = 0;
    let mut above = 0;
    if let Some(dir) = below {
        let Some((entry, depth)) = order.by_ref().find(|(id, _)| tree.entry(*id).object == dir) else { return Ok(()) };
        base = depth;
        above = tree.path(entry).len().saturating_add(1);
    }
    // The path so far, and for each depth how much of it is the directory's, and whether that needed no escape.
    let mut shown = String::from(prefix);
    let mut dirs: Vec<(usize, bool)> = vec![(shown.len(), true)];
    let mut hidden: Option<u32> = None;
    for (entry, depth) in order {
        if depth <= base {
            break;
        }
        if hidden.is_some_and(|of| depth > of) || (!scope.recursive && depth > base.saturating_add(1)) {
            continue;
        }
        hidden = None;
        let id = tree.entry(entry).object;
        let object = tree.object(id);
        if !scope.system && object.system {
            hidden = Some(depth);
            continue;
        }
        let level = depth.saturating_sub(base) as usize;
        dirs.truncate(level);
        let (len, plain) = dirs.last().copied().unwrap_or_default();
        shown.truncate(len);
        let name = tree.name(entry);
        let escaped = path::escape_name(name);
        shown.push_str(&escaped);
        let plain = plain && escaped.len() == name.len();
        each(&Visit { tree, id, shown: &shown, plain, bytes: Bytes::Entry(prefix, entry, above) })?;
        if object.kind == Kind::Dir {
            shown.push('/');
            dirs.push((shown.len(), plain));
        }
    }
    Ok(())
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
    use crate::fs::{Form, NewStream, Times, Timestamp, TreeBuilder};

    fn object(kind: Kind, number: u64) -> Object {
        let modified = Some(Timestamp { secs: 86_400, nanos: 500_000_000, digits: 1 });
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

    fn all(scope: Scope, prefix: &str, put: impl Fn(&mut Vec<u8>, &Visit<'_>)) -> Vec<String> {
        let mut out = Vec::new();
        walk(&tree(), scope, prefix, |v| {
            put(&mut out, v);
            Ok::<_, ()>(())
        })
        .unwrap();
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
    fn json_rows_have_the_raw_path_where_it_was_escaped() {
        let rows = all(Scope { recursive: true, ..Scope::default() }, "p1/", json);
        let rows: Vec<serde_json::Value> = rows.iter().map(|r| serde_json::from_str(r).unwrap()).collect();
        assert_eq!(rows[0]["path"], "p1/a");
        assert!(rows[0].get("path_raw").is_none());
        assert_eq!(rows[1]["path"], "p1/a/x%1B");
        assert_eq!(rows[1]["path_raw"], base64(b"p1/a/x\x1b"));
        assert_eq!(rows[1]["mtime"], "1970-01-02T00:00:00.5Z");
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

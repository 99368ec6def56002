//! Finds what a path of an address names in a level.

use super::{Guest, Level, Target};
use crate::error::{Error, Result};
use crate::fs::{Kind, ObjectId, StreamId, Tree};
use crate::report::path::{escape, unescape};

/// Names that an error lists.
const SHOWN: usize = 12;

/// What the path `hop` (escaped) names in `level`: a name that is there as it is spelled, else a file and the snapshot behind an
/// `@`.
pub(super) fn target(level: &Level, hop: &str) -> Result<(Target, Option<String>)> {
    let hop = hop.trim_matches('/');
    with_snapshot(hop, |hop| {
        let target = spelled(level, hop)?;
        let file = matches!(target, Target::Object(..) | Target::Stream(..));
        Ok((target, file))
    })
    .map(|(target, snapshot)| (target, snapshot.map(str::to_owned)))
}

/// What a path (escaped) leads to, and the snapshot behind its last `@` where there is nothing by the whole of it.
pub(super) fn find_file<'p>(tree: &Tree, path: &'p str, folds: bool) -> Result<(Found, Option<&'p str>)> {
    with_snapshot(path, |path| find(tree, path, folds).map(|found| (found, true)))
}

/// Looks for a path as it is spelled, then for what stands before an `@` in its last name. `look` says whether what it found may
/// have snapshots.
fn with_snapshot<T>(path: &str, look: impl Fn(&str) -> Result<(T, bool)>) -> Result<(T, Option<&str>)> {
    let missing = match look(path) {
        Ok((found, _)) => return Ok((found, None)),
        Err(e @ Error::NotFound(_)) => e,
        Err(e) => return Err(e),
    };
    let last = path.rfind('/').map_or(0, |at| at.saturating_add(1));
    for (at, _) in path.match_indices('@').filter(|(at, _)| *at > last) {
        if let (Some(file), Some(snapshot)) = (path.get(..at), path.get(at.saturating_add(1)..))
            && let Ok((found, true)) = look(file)
        {
            return Ok((found, Some(snapshot)));
        }
    }
    Err(missing)
}

/// What a path (escaped) names in `level`, as it is spelled.
fn spelled(level: &Level, hop: &str) -> Result<Target> {
    if hop.is_empty() {
        return Ok(Target::Disk);
    }
    if level.table.kind == "none" {
        let guest = level.guests.first().ok_or_else(|| Error::NotFound("the disk has no volume".into()))?;
        return in_guest(guest, hop).map_err(|e| match e {
            Error::NotFound(why) if hop.starts_with('p') => Error::NotFound(format!(
                "{why}; the disk has no partition table: a path begins at the file system's root"
            )),
            other => other,
        });
    }
    let (volume, path) = hop.split_once('/').unwrap_or((hop, ""));
    let slot = level.table.slots.iter().position(|s| s.name == volume).ok_or_else(|| {
        let there = level.table.slots.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", ");
        let there = if there.is_empty() { "none".to_owned() } else { there };
        Error::NotFound(format!("no volume {volume}: the {} table has {there}", level.table.kind))
    })?;
    if path.is_empty() {
        return Ok(Target::Volume(slot));
    }
    let guest =
        level.guests.iter().find(|g| g.slot == slot).ok_or_else(|| Error::NotFound(format!("no volume {volume}")))?;
    in_guest(guest, path)
}

fn in_guest(guest: &Guest, path: &str) -> Result<Target> {
    let tree = guest.tree()?;
    match find(&tree, path, guest.folds_case())? {
        Found::Object(object) if object == tree.root() => Ok(Target::Volume(guest.slot)),
        Found::Object(object) => Ok(Target::Object(guest.slot, raw(path), object)),
        Found::Stream(stream) => Ok(Target::Stream(guest.slot, raw(path), stream)),
    }
}

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Object(ObjectId),
    Stream(StreamId),
}

fn raw(path: &str) -> Vec<u8> {
    path.split('/').map(unescape).collect::<Vec<_>>().join(&b'/')
}

/// Follows `path` (escaped) from the root. A name that is there as it is spelled wins over one that differs in case, and
/// that over a stream behind a `:`.
pub(super) fn find(tree: &Tree, path: &str, folds: bool) -> Result<Found> {
    let mut dir = tree.root();
    let mut names = path.split('/').filter(|n| !n.is_empty()).peekable();
    let mut done = String::new();
    while let Some(name) = names.next() {
        if let Some(object) = child(tree, dir, &unescape(name), folds) {
            dir = object;
        } else if let (None, Some(stream)) = (names.peek(), stream(tree, dir, name, folds)) {
            return Ok(Found::Stream(stream));
        } else {
            return Err(missing(tree, dir, &done, name));
        }
        if !done.is_empty() {
            done.push('/');
        }
        done.push_str(name);
    }
    Ok(Found::Object(dir))
}

pub(super) fn child(tree: &Tree, dir: ObjectId, name: &[u8], folds: bool) -> Option<ObjectId> {
    let entry = if folds { tree.child_by(dir, name, same_but_case) } else { tree.child(dir, name) };
    entry.map(|e| tree.entry(e).object)
}

/// The stream that `NAME:STREAM` names in `dir`; without a NAME a stream of `dir` itself.
fn stream(tree: &Tree, dir: ObjectId, name: &str, folds: bool) -> Option<StreamId> {
    let (file, stream) = name.rsplit_once(':')?;
    let object = if file.is_empty() { dir } else { child(tree, dir, &unescape(file), folds)? };
    let stream = unescape(stream);
    let named = |same: &dyn Fn(&[u8], &[u8]) -> bool| {
        tree.streams(object).find(|s| tree.stream_name(*s).is_some_and(|n| same(n, &stream)))
    };
    named(&|a, b| a == b).or_else(|| if folds { named(&same_but_case) } else { None })
}

/// Whether two names differ in case only, by Unicode's one-to-one upper-case letters.
fn same_but_case(a: &[u8], b: &[u8]) -> bool {
    match (std::str::from_utf8(a), std::str::from_utf8(b)) {
        (Ok(a), Ok(b)) => a.chars().map(upper).eq(b.chars().map(upper)),
        _ => a.eq_ignore_ascii_case(b),
    }
}

/// A name by which two that differ in case only are the same.
pub(crate) fn upper_case(name: &[u8]) -> Vec<u8> {
    match std::str::from_utf8(name) {
        Ok(text) => text.chars().map(upper).collect::<String>().into_bytes(),
        Err(_) => name.to_ascii_uppercase(),
    }
}

fn upper(c: char) -> char {
    let mut all = c.to_uppercase();
    match (all.next(), all.next()) {
        (Some(one), None) => one,
        _ => c,
    }
}

fn missing(tree: &Tree, dir: ObjectId, done: &str, name: &str) -> Error {
    let shown = if done.is_empty() { "the root" } else { done };
    let kind = tree.object(dir).kind;
    if kind != Kind::Dir {
        let hint = if matches!(kind, Kind::Symlink | Kind::Junction) { ", which is not followed" } else { "" };
        return Error::NotFound(format!("no {name} in {shown}: {shown} is a {}{hint}", kind.word()));
    }
    let all = tree.children(dir);
    let mut there = all.iter().take(SHOWN).map(|e| escape(tree.name(*e)).into_owned()).collect::<Vec<_>>().join(", ");
    if all.len() > SHOWN {
        there.push_str(&format!(", ... ({} names)", all.len()));
    }
    if there.is_empty() {
        there.push_str("nothing");
    }
    Error::NotFound(format!("no {name} in {shown}, which has {there}"))
}

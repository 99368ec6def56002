//! What the audits of the hosts look at alike: the new state, by the tree that the reader makes of it, against what was asked for.

use std::collections::{HashMap, HashSet};

use crate::error::{Error, Result};
use crate::extent::{Map, Offset, Stream, Volume, What};
use crate::fs::host::{Content, HostName, Job, NewEntry, NewKind};
use crate::fs::{EntryId, Kind, ObjectId, Tree};
use crate::txn::Staging;

/// Places in the volume, and bytes there.
pub(in crate::fs) type Places = Vec<(u64, u64)>;

/// What is not so.
pub(in crate::fs) fn wrong(at: u64, what: &'static str, expected: impl Into<String>) -> Error {
    Error::corrupt(format!("new state: {what}"), Offset::<Volume>::new(at), expected)
}

/// What a new entry lacks.
pub(in crate::fs) fn not(entry: &NewEntry, expected: &str) -> Error {
    wrong(0, "directory entry", format!("{expected} for {}", printable(&entry.name)))
}

/// A name for a message.
pub(in crate::fs) fn printable(name: &[u8]) -> String {
    String::from_utf8_lossy(name).escape_debug().to_string()
}

/// The first `size` bytes of these places, neighbours together.
pub(in crate::fs) fn cut(all: impl IntoIterator<Item = (u64, u64)>, size: u64) -> Places {
    let mut out = Places::new();
    let mut left = size;
    for (at, len) in all {
        let len = len.min(left);
        left = left.saturating_sub(len);
        match out.last_mut() {
            _ if len == 0 => {}
            Some((start, have)) if start.saturating_add(*have) == at => *have = have.saturating_add(len),
            _ => out.push((at, len)),
        }
    }
    out
}

/// Length of an object's data and where each part is: none for zeros and what can't be read.
type Placed = Option<(u64, Vec<(Option<u64>, u64)>)>;

fn placed(tree: &Tree, object: ObjectId) -> Placed {
    let stream = tree.data(object)?;
    let parts = tree.extents(stream).iter().map(|e| match e.what {
        What::Stored(place) => (Some(place.offset.get()), e.len),
        _ => (None, e.len),
    });
    Some((tree.stream(stream).size, parts.collect()))
}

/// The directory that is written into. `find` gives the entry of a name, `pass` is told each directory on the way.
pub(in crate::fs) fn target(
    tree: &Tree,
    job: &Job<'_>,
    find: impl Fn(ObjectId, &HostName) -> Option<EntryId>,
    mut pass: impl FnMut(ObjectId),
) -> Result<ObjectId> {
    let mut top = tree.root();
    for name in &job.tree.into {
        let object = find(top, name).map(|e| tree.entry(e).object).filter(|o| tree.object(*o).kind == Kind::Dir);
        top = object.ok_or_else(|| wrong(0, "directory entry", format!("the directory {}", printable(name))))?;
        pass(top);
    }
    Ok(top)
}

/// Finds each new entry by its name below `top`. `check` is given it, its object, the objects of the entries before it, and where a
/// copy of its data was to go.
pub(in crate::fs) fn each_entry(
    tree: &Tree,
    top: ObjectId,
    job: &Job<'_>,
    staging: &Staging,
    mut check: impl FnMut(&NewEntry, ObjectId, &[Option<ObjectId>], Option<Places>) -> Result<()>,
) -> Result<()> {
    let mut copies: HashMap<usize, Places> = HashMap::new();
    for copy in &staging.copies {
        let to = cut(copy.to.iter().map(|(at, len)| (at.get(), *len)), copy.size);
        if copies.insert(copy.entry, to).is_some() {
            return Err(wrong(0, "copies", "one for each file"));
        }
    }
    let mut objects: Vec<Option<ObjectId>> = Vec::with_capacity(job.tree.entries.len());
    for (position, entry) in job.tree.entries.iter().enumerate() {
        let parent = match entry.parent {
            None => Some(top),
            Some(p) => objects.get(p).copied().flatten(),
        };
        let found = parent.and_then(|p| tree.child(p, &entry.name)).map(|e| tree.entry(e).object);
        let object = found.ok_or_else(|| not(entry, "an entry"))?;
        let copied = if entry.is_copied() { copies.remove(&position) } else { None };
        check(entry, object, &objects, copied)?;
        objects.push(Some(object));
    }
    match copies.len() {
        0 => Ok(()),
        n => Err(wrong(0, "copies", format!("a file for each of them, {n} have none"))),
    }
}

/// A file of a host without holes has the planned size, in the planned places, all of it stored.
pub(in crate::fs) fn stored_as_planned(
    tree: &Tree,
    entry: &NewEntry,
    object: ObjectId,
    (size, content): (u64, &Content),
    copied: Option<Places>,
) -> Result<()> {
    let (have, parts) = placed(tree, object).ok_or_else(|| not(entry, "data"))?;
    if have != size {
        return Err(not(entry, "the planned size"));
    }
    let stored: Option<Places> = parts.into_iter().map(|(at, len)| Some((at?, len))).collect();
    let at = cut(stored.ok_or_else(|| not(entry, "stored and valid bytes"))?, size);
    let right = match content {
        _ if size == 0 => at.is_empty(),
        Content::Empty | Content::Packed { .. } | Content::Bytes(_) => false,
        Content::Linked(extents) => {
            let map: Map<Stream, Volume> = extents.iter().map(|e| (e.len, e.what)).collect();
            let planned = map.extents().iter().map(|e| match e.what {
                What::Stored(place) => (place.offset.get(), e.len),
                _ => (0, 0),
            });
            at == cut(planned, size)
        }
        Content::Copied => copied == Some(at),
    };
    if right { Ok(()) } else { Err(not(entry, "the planned extents")) }
}

/// All older entries are as they were, the image is gone, and there is nothing else. For hosts where an object's number is the place
/// of its one entry: by paths, a deep tree, and names that many have, would cost their square.
pub(in crate::fs) fn older(old: &Tree, new: &Tree, job: &Job<'_>, added: &HashSet<ObjectId>) -> Result<()> {
    let mut left: HashMap<u64, EntryId> = new
        .order()
        .map(|(e, _)| (new.object(new.entry(e).object), e))
        .filter(|(_, e)| !added.contains(&new.entry(*e).object))
        .map(|(object, e)| (object.number, e))
        .collect();
    for (e, _) in old.order().filter(|(e, _)| !job.image.has_entry(*e)) {
        let entry = old.entry(e);
        let same = |other: &EntryId| {
            let now = new.entry(*other);
            old.name(e) == new.name(*other)
                && old.object(entry.parent).number == new.object(now.parent).number
                && old.object(entry.object) == new.object(now.object)
                && placed(old, entry.object) == placed(new, now.object)
        };
        if left.remove(&old.object(entry.object).number).filter(same).is_none() {
            return Err(wrong(0, "older entry", format!("{} as it was", printable(&old.path(e)))));
        }
    }
    match left.into_values().next() {
        Some(e) => Err(wrong(0, "older entry", format!("no {}", printable(&new.path(e))))),
        None => Ok(()),
    }
}

/// Tells `take` each cluster of what is filled, which says whether it was free. New structures and copies lie in them, or in units of
/// the image that are written anew. `cluster_of` gives the cluster that begins at a byte.
pub(in crate::fs) fn filled(
    staging: &Staging,
    unit: u64,
    cluster_of: impl Fn(u64) -> Option<u32>,
    mut take: impl FnMut(u32) -> bool,
) -> Result<()> {
    for (at, len) in &staging.filled {
        let mut from = at.get();
        let end = from.saturating_add(*len);
        while from < end {
            let n = cluster_of(from).ok_or_else(|| wrong(from, "filled range", "whole clusters"))?;
            if !take(n) {
                return Err(wrong(from, "filled range", "a cluster that was free"));
            }
            from = from.saturating_add(unit.max(1));
        }
    }
    let room = staging.room();
    for (at, len) in staging.fresh_at().chain(staging.copied_to()) {
        if !Staging::fills(&room, at, len) {
            return Err(wrong(at, "new structure", "a place within the filled ranges"));
        }
    }
    Ok(())
}

/// Only bytes behind the ends of linked files are zeroed, and all of them where that was asked for.
pub(in crate::fs) fn slack(job: &Job<'_>, staging: &Staging, unit: u64) -> Result<()> {
    let unit = unit.max(1);
    let mut tails = HashSet::new();
    for entry in &job.tree.entries {
        let NewKind::File { size, content: Content::Linked(extents) } = &entry.kind else { continue };
        let used = size.checked_rem(unit).unwrap_or(0);
        let Some(What::Stored(place)) = extents.last().map(|e| e.what).filter(|_| used != 0) else { continue };
        let start = extents.last().map_or(0, |e| e.start.get());
        let end = place.offset.get().saturating_add(size.saturating_sub(start));
        tails.insert((end, unit.saturating_sub(used)));
    }
    if !job.zero_slack {
        tails.clear();
    }
    let staged: HashSet<(u64, u64)> = staging.slack.iter().map(|(at, len)| (at.get(), u64::from(*len))).collect();
    if staged != tails || staged.len() != staging.slack.len() {
        return Err(wrong(0, "slack", "the bytes behind the ends of the linked files, and no others"));
    }
    Ok(())
}

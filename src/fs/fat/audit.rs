//! The audit: the new state, read back by the reader, against what was asked for. It takes nothing from the writer but
//! where copies and new structures went.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::extent::{Map, Offset, ReadAt, Stream, Volume, What};
use crate::fs::fat::dirent::{self, Listing, SLOT};
use crate::fs::fat::grow::entry_of;
use crate::fs::fat::layout::HEAD;
use crate::fs::fat::names::fold;
use crate::fs::fat::read::{Fat, Scan};
use crate::fs::fat::stamp;
use crate::fs::fat::table::{Bits, Table};
use crate::fs::host::{Content, Job, NewEntry, NewKind};
use crate::fs::{EntryId, Kind, ObjectId, TimeUnit, Times, Tree};
use crate::txn::Staging;

/// Bytes that are compared at once.
const CHUNK: usize = 1 << 20;

/// What is not so.
pub(in crate::fs) fn wrong(at: u64, what: &'static str, expected: impl Into<String>) -> Error {
    Error::corrupt(format!("new state: {what}"), Offset::<Volume>::new(at), expected)
}

fn printable(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

/// Where bytes are, as place and length, neighbours together; none where some are not stored.
fn places(tree: &Tree, object: ObjectId) -> Option<(u64, Vec<(u64, u64)>)> {
    let stream = tree.data(object)?;
    let all = tree.extents(stream).iter().map(|e| match e.what {
        What::Stored(place) => Some((place.offset.get(), e.len)),
        _ => None,
    });
    Some((tree.stream(stream).size, all.collect::<Option<Vec<_>>>()?))
}

/// The first `size` bytes of these places, neighbours together.
pub(in crate::fs) fn cut(all: impl IntoIterator<Item = (u64, u64)>, size: u64) -> Vec<(u64, u64)> {
    let mut out: Vec<(u64, u64)> = Vec::new();
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

struct Audit<'a> {
    old: &'a Fat,
    before: &'a Scan,
    new: Fat,
    now: Scan,
    job: &'a Job<'a>,
    staging: &'a Staging,
    /// First clusters of all directories: of the old ones, and of the new ones by object.
    firsts_before: HashSet<u32>,
    first_now: HashMap<ObjectId, u32>,
}

pub(super) fn audit(old: &Fat, after: Arc<dyn ReadAt<Volume>>, job: &Job<'_>, staging: &Staging) -> Result<()> {
    let new = Fat::open(after, old.options)?.ok_or_else(|| wrong(0, "boot sector", "a FAT volume"))?;
    if new.boot != old.boot || !new.primary {
        return Err(wrong(0, "boot sector", "the one of before"));
    }
    let now = new.scan()?;
    let before = old.scanned()?;
    let firsts_before = before.dirs.iter().map(|d| d.first).collect();
    let first_now = now.dirs.iter().map(|d| (d.object, d.first)).collect();
    let audit = Audit { old, before, new, now, job, staging, firsts_before, first_now };
    audit.tables()?;
    audit.owners()?;
    audit.fsinfo()?;
    audit.free_before()?;
    let added = audit.entries()?;
    audit.older(&added)?;
    audit.directories(&added)?;
    slack(job, staging, audit.new.boot.cluster_bytes())
}

impl Audit<'_> {
    /// All tables are equal; entries 0 and 1, bad clusters and bits that don't count are as before.
    fn tables(&self) -> Result<()> {
        let bytes = self.new.table.bytes();
        let mut found = Vec::new();
        for fat in 0..self.new.boot.fats {
            let mut at = self.new.boot.fat_at(fat);
            for chunk in bytes.chunks(CHUNK) {
                found.resize(chunk.len(), 0);
                self.new.volume.read_at(Offset::new(at), &mut found)?;
                if found != chunk {
                    return Err(wrong(at, "table", "the same in all tables"));
                }
                at = at.saturating_add(chunk.len() as u64);
            }
        }
        let (old, new) = (&self.old.table, &self.new.table);
        let bad = |table: &Table, value| value != 0 && table.is_unused(value);
        let mut both = old.entries().zip(new.entries());
        if old.get(0) != new.get(0)
            || old.get(1) != new.get(1)
            || both.any(|((_, before), (_, now))| bad(old, before) != bad(new, now))
        {
            return Err(wrong(self.new.boot.fat_at(0), "table", "entries 0, 1 and of bad clusters as before"));
        }
        if self.new.wide() {
            let same = |(a, b): (&[u8], &[u8])| a.last().map(|b| b & 0xF0) == b.last().map(|b| b & 0xF0);
            if !old.bytes().chunks_exact(4).zip(bytes.chunks_exact(4)).all(same) {
                return Err(wrong(self.new.boot.fat_at(0), "table", "the upper four bits of all entries as before"));
            }
        }
        Ok(())
    }
    /// Every cluster has exactly one owner, or is free or bad.
    fn owners(&self) -> Result<()> {
        if let Some(problem) = self.now.tree.problems().first() {
            return Err(wrong(0, "walk", format!("no damage, but: {}", problem.what)));
        }
        if self.now.oddities != self.before.oddities {
            let other = self.now.oddities.iter().find(|o| !self.before.oddities.contains(o));
            return Err(wrong(
                0,
                "walk",
                format!("nothing that was not so before, but {}", other.map_or("less", |o| o)),
            ));
        }
        let table = &self.new.table;
        let wrongly = |(n, value): &(u32, u32)| table.is_unused(*value) == self.now.claims.owned.has(*n);
        match table.entries().find(wrongly) {
            Some((n, _)) => Err(wrong(self.new.boot.cluster_at(n), "cluster", "an owner, or to be free")),
            None => Ok(()),
        }
    }
    fn fsinfo(&self) -> Result<()> {
        let info = self.new.fsinfo();
        // Nothing else before the tables may change, but for the same values in the copy of FSInfo.
        let len = usize::try_from(self.new.boot.fat_at(0)).unwrap_or(0);
        let (before, now) =
            (self.old.volume.read_vec(Offset::new(0), len)?, self.new.volume.read_vec(Offset::new(0), len)?);
        for (i, (a, b)) in before.chunks(HEAD).zip(now.chunks(HEAD)).enumerate() {
            if a != b && info.is_none_or(|info| info.encode(a.to_vec()) != b) {
                return Err(wrong(i.saturating_mul(HEAD) as u64, "reserved sectors", "only FSInfo to change"));
            }
        }
        let Some(info) = info else { return Ok(()) };
        let at = self.new.boot.sector_at(self.new.boot.fsinfo.unwrap_or(0));
        let free = self.new.table.free();
        if info.free != free {
            return Err(wrong(at, "FSInfo", format!("{free} free clusters, not {}", info.free)));
        }
        if info.next != u32::MAX && (!self.new.boot.has(info.next) || self.new.table.get(info.next) != 0) {
            return Err(wrong(at, "FSInfo", "a free cluster as the next one"));
        }
        Ok(())
    }
    /// Whatever is filled was free, and is all that newly belongs to somebody; blocks in use that change are tables,
    /// FSInfo and old directories.
    fn free_before(&self) -> Result<()> {
        let boot = &self.new.boot;
        let mut filled = Bits::new(boot.clusters.saturating_add(2));
        for (at, len) in &self.staging.filled {
            let mut from = at.get();
            let end = from.saturating_add(*len);
            while from < end {
                let n = boot.cluster_of(from).ok_or_else(|| wrong(from, "filled range", "whole clusters"))?;
                if self.old.table.get(n) != 0 {
                    return Err(wrong(from, "filled range", "a cluster that was free"));
                }
                filled.set(n);
                from = from.saturating_add(boot.cluster_bytes());
            }
        }
        let mut both = self.old.table.entries().zip(self.new.table.entries());
        if both.any(|((n, before), (_, now))| (before == 0 && now != 0) != filled.has(n)) {
            return Err(wrong(0, "filled ranges", "exactly the clusters that were free and no longer are"));
        }
        let fresh = self.staging.fresh.iter().map(|f| (f.at.get(), f.bytes.len() as u64));
        let copies = self.staging.copies.iter().flat_map(|c| c.to.iter().map(|(at, len)| (at.get(), *len)));
        let room = self.staging.room();
        for (at, len) in fresh.chain(copies) {
            if !Staging::fills(&room, at, len) {
                return Err(wrong(at, "new structure", "a place within the filled ranges"));
            }
        }
        let tables = boot.fat_at(0)..boot.root_at();
        let before_tables = boot.sector_at(1)..tables.start;
        let old_dirs: BTreeMap<u64, u64> = self.before.dirs.iter().flat_map(|d| d.places.iter().copied()).collect();
        for write in self.staging.groups.iter().flat_map(|g| &g.writes) {
            let (at, end) = (write.at.get(), write.at.get().saturating_add(write.bytes.len() as u64));
            let meta = [&tables, &before_tables].iter().any(|r| r.start <= at && end <= r.end);
            // Neighbouring directories may be written in one piece.
            let mut covered = at;
            while !meta && covered < end {
                let next =
                    old_dirs.range(..=covered).next_back().filter(|(from, len)| covered < from.saturating_add(**len));
                let next = next.map(|(from, len)| from.saturating_add(*len).next_multiple_of(512));
                covered =
                    next.ok_or_else(|| wrong(covered, "changed sector", "a table, FSInfo or an old directory"))?;
            }
        }
        Ok(())
    }
    /// Each new entry is there, and is what was asked for. The objects that are new.
    fn entries(&self) -> Result<HashSet<ObjectId>> {
        let tree = &self.now.tree;
        let mut added = HashSet::new();
        let mut top = tree.root();
        for name in &self.job.tree.into {
            let wanted = fold(name);
            let entry = tree.child_by(top, name, |a, _| fold(a) == wanted).or_else(|| self.by_short(top, &wanted));
            let object = entry.map(|e| tree.entry(e).object).filter(|o| tree.object(*o).kind == Kind::Dir);
            top = object.ok_or_else(|| wrong(0, "directory entry", format!("the directory {}", printable(name))))?;
            if !self.was_there(top) {
                added.insert(top);
            }
        }
        let mut copies: HashMap<usize, Vec<(u64, u64)>> = HashMap::new();
        for copy in &self.staging.copies {
            let to = cut(copy.to.iter().map(|(at, len)| (at.get(), *len)), copy.size);
            if copies.insert(copy.entry, to).is_some() {
                return Err(wrong(0, "copies", "one for each file"));
            }
        }
        let mut objects: Vec<Option<ObjectId>> = Vec::with_capacity(self.job.tree.entries.len());
        for (position, entry) in self.job.tree.entries.iter().enumerate() {
            let parent = match entry.parent {
                None => Some(top),
                Some(p) => objects.get(p).copied().flatten(),
            };
            let found = parent.and_then(|p| tree.child(p, &entry.name)).map(|e| tree.entry(e).object);
            let object = found.filter(|o| !self.was_there(*o)).ok_or_else(|| self.not(entry, "an entry"))?;
            if !added.insert(object) {
                return Err(self.not(entry, "an entry of its own"));
            }
            let copied = if entry.is_copied() { copies.remove(&position) } else { None };
            self.entry(entry, object, copied)?;
            objects.push(Some(object));
        }
        match copies.len() {
            0 => Ok(added),
            n => Err(wrong(0, "copies", format!("a file for each of them, {n} have none"))),
        }
    }
    fn not(&self, entry: &NewEntry, expected: &str) -> Error {
        wrong(0, "directory entry", format!("{expected} for {}", printable(&entry.name)))
    }
    fn entry(&self, entry: &NewEntry, object: ObjectId, copied: Option<Vec<(u64, u64)>>) -> Result<()> {
        let tree = &self.now.tree;
        let found = tree.object(object);
        let made = self.before.tree.object(self.job.image.named.object).times;
        let (times, attributes) = self.meant(entry, made);
        if found.times != times || found.attributes != attributes {
            return Err(self.not(entry, "times and attributes as planned"));
        }
        let (size, content) = match &entry.kind {
            NewKind::Dir if found.kind == Kind::Dir => return Ok(()),
            NewKind::File { size, content } if found.kind == Kind::File => (*size, content),
            _ => return Err(self.not(entry, "the planned kind")),
        };
        let (have, at) = places(tree, object).ok_or_else(|| self.not(entry, "stored bytes"))?;
        if have != size {
            return Err(self.not(entry, "the planned size"));
        }
        let at = cut(at, size);
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
        if right { Ok(()) } else { Err(self.not(entry, "the planned extents")) }
    }
    /// Times and attributes as FAT can hold them.
    fn meant(&self, entry: &NewEntry, made: Times) -> (Times, u32) {
        let zone = self.old.options.utc_offset;
        let short = entry_of(entry.times, entry.attributes, made, zone);
        let times = Times {
            modified: stamp::decode(short.modified_date, short.modified_time, 0, TimeUnit::Second, zone),
            accessed: stamp::decode(short.accessed_date, 0, 0, TimeUnit::Second, zone),
            changed: None,
            created: stamp::decode(
                short.created_date,
                short.created_time,
                short.created_fine,
                TimeUnit::Hundredth,
                zone,
            ),
        };
        (times, short.attr.into())
    }
    /// Whether an object of the new state was there before: one and the same slot led to the same clusters.
    fn was_there(&self, object: ObjectId) -> bool {
        let tree = &self.now.tree;
        tree.object(object).kind == Kind::Dir
            && self.first_now.get(&object).is_some_and(|first| self.firsts_before.contains(first))
    }
    fn by_short(&self, dir: ObjectId, wanted: &[u8]) -> Option<EntryId> {
        let tree = &self.now.tree;
        let at = self.now.dirs.iter().find(|d| d.object == dir)?;
        let listing = dirent::list(&self.new.slots_of(at).ok()?, self.new.wide());
        let found = listing.found.iter().find(|f| super::grow::names_of(f).iter().any(|n| fold(n) == wanted))?;
        let number = self.new.number(Fat::slot_at(&at.places, found.slot));
        tree.children(dir).iter().copied().find(|e| tree.object(tree.entry(*e).object).number == number)
    }
    /// All older entries are as they were, the image is gone, and there is nothing else.
    fn older(&self, added: &HashSet<ObjectId>) -> Result<()> {
        let (old, new) = (&self.before.tree, &self.now.tree);
        // By the number, which is the place of the slot: paths of a deep tree, and names that many have, would cost their square.
        let mut left: HashMap<u64, EntryId> = new
            .order()
            .map(|(e, _)| (new.object(new.entry(e).object), e))
            .filter(|(_, e)| !added.contains(&new.entry(*e).object))
            .map(|(object, e)| (object.number, e))
            .collect();
        for (e, _) in old.order().filter(|(e, _)| !self.job.image.has_entry(*e)) {
            let entry = old.entry(e);
            let same = |other: &EntryId| {
                let now = new.entry(*other);
                old.name(e) == new.name(*other)
                    && old.object(entry.parent).number == new.object(now.parent).number
                    && old.object(entry.object) == new.object(now.object)
                    && places(old, entry.object) == places(new, now.object)
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
    /// 8.3 and long names are unique in new directories and where entries were added; long names are whole; new
    /// directories begin with `.` and `..` and end with zeros.
    fn directories(&self, added: &HashSet<ObjectId>) -> Result<()> {
        if self.now.orphans != self.before.orphans {
            return Err(wrong(0, "directory slots", "long names that belong to their entries"));
        }
        let tree = &self.now.tree;
        for dir in &self.now.dirs {
            let new = added.contains(&dir.object);
            if !new && !tree.children(dir.object).iter().any(|e| added.contains(&tree.entry(*e).object)) {
                continue;
            }
            let at = dir.places.first().map_or(0, |(at, _)| *at);
            let bytes = self.new.slots_of(dir)?;
            let listing = dirent::list(&bytes, self.new.wide());
            if new {
                if listing.found.len() < 2
                    || !listing
                        .found
                        .iter()
                        .zip([".", ".."])
                        .all(|(f, n)| f.slot < 2 && super::names::shown(&f.short) == n)
                {
                    return Err(wrong(at, "directory", "the entries . and .. first"));
                }
                let rest = bytes.get(listing.used.saturating_mul(SLOT)..).unwrap_or_default();
                if rest.iter().any(|b| *b != 0) {
                    return Err(wrong(at, "directory", "zeros after the last entry"));
                }
            }
            self.unique(dir.object, new, at, &listing)?;
        }
        Ok(())
    }
    fn unique(&self, dir: ObjectId, new: bool, at: u64, listing: &Listing) -> Result<()> {
        let twice = |listing: &Listing| {
            let (mut short, mut long) = (HashSet::new(), HashSet::new());
            let shorts = listing.found.iter().filter(|f| !short.insert(f.short.name)).count();
            let name = |f: &dirent::Found| f.long.as_ref().map(|l| fold(&crate::fs::utf16::to_wtf8(l)));
            shorts.saturating_add(listing.found.iter().filter_map(name).filter(|n| !long.insert(n.clone())).count())
        };
        // What was double before is not for us to judge.
        let mut allowed = 0;
        if !new {
            let number = self.now.tree.object(dir).number;
            let before = self.before.dirs.iter().find(|d| self.before.tree.object(d.object).number == number);
            let before = before.ok_or_else(|| wrong(at, "directory", "the directory of before"))?;
            allowed = twice(&dirent::list(&self.old.slots_of(before)?, self.old.wide()));
        }
        if twice(listing) > allowed {
            Err(wrong(at, "directory", "names of which no two are the same"))
        } else {
            Ok(())
        }
    }
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

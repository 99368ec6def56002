//! The audit: the new state, read back by the reader, against what was asked for. It takes nothing from the writer but
//! where copies and new structures went.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::error::Result;
use crate::extent::{Offset, ReadAt, Volume};
use crate::fs::asked::{self, Places, not, wrong};
use crate::fs::fat::dirent::{self, Listing, SLOT};
use crate::fs::fat::grow::entry_of;
use crate::fs::fat::layout::HEAD;
use crate::fs::fat::names::fold;
use crate::fs::fat::read::{Fat, Scan};
use crate::fs::fat::stamp;
use crate::fs::fat::table::{Bits, Table};
use crate::fs::host::{HostName, Job, NewEntry, NewKind};
use crate::fs::{EntryId, Kind, ObjectId, TimeUnit, Times};
use crate::txn::Staging;

/// Bytes that are compared at once.
const CHUNK: usize = 1 << 20;

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
    asked::older(&before.tree, &audit.now.tree, job, &added)?;
    audit.directories(&added)?;
    asked::slack(job, staging, audit.new.boot.cluster_bytes())
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
        asked::filled(
            self.staging,
            boot.cluster_bytes(),
            |at| boot.cluster_of(at),
            |n| {
                filled.set(n);
                self.old.table.get(n) == 0
            },
        )?;
        let mut both = self.old.table.entries().zip(self.new.table.entries());
        if both.any(|((n, before), (_, now))| (before == 0 && now != 0) != filled.has(n)) {
            return Err(wrong(0, "filled ranges", "exactly the clusters that were free and no longer are"));
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
        let find = |top, name: &HostName| {
            let wanted = fold(name);
            tree.child_by(top, name, |a, _| fold(a) == wanted).or_else(|| self.by_short(top, &wanted))
        };
        let top = asked::target(tree, self.job, find, |dir| {
            if !self.was_there(dir) {
                added.insert(dir);
            }
        })?;
        asked::each_entry(tree, top, self.job, self.staging, |entry, object, _, copied| {
            if self.was_there(object) || !added.insert(object) {
                return Err(not(entry, "an entry of its own"));
            }
            self.entry(entry, object, copied)
        })?;
        Ok(added)
    }
    fn entry(&self, entry: &NewEntry, object: ObjectId, copied: Option<Places>) -> Result<()> {
        let tree = &self.now.tree;
        let found = tree.object(object);
        let made = self.before.tree.object(self.job.image.named.object).times;
        let (times, attributes) = self.meant(entry, made);
        if found.times != times || found.attributes != attributes {
            return Err(not(entry, "times and attributes as planned"));
        }
        match &entry.kind {
            NewKind::Dir if found.kind == Kind::Dir => Ok(()),
            NewKind::File { size, content } if found.kind == Kind::File => {
                asked::stored_as_planned(tree, entry, object, (*size, content), copied)
            }
            _ => Err(not(entry, "the planned kind")),
        }
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

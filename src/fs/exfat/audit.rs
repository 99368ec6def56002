//! The audit: the new state, read back by the reader, against what was asked for. It takes nothing from the writer but
//! where copies and new structures went.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::error::Result;
use crate::extent::{Offset, ReadAt, Volume};
use crate::fs::asked::{self, Places, not, wrong};
use crate::fs::exfat::dirent::{self, ENTRY};
use crate::fs::exfat::grow::{file_of, name_of};
use crate::fs::exfat::layout::{Boot, HEAD, PERCENT_AT, percent};
use crate::fs::exfat::probe;
use crate::fs::exfat::read::{ExFat, Scan};
use crate::fs::fat::table::Bits;
use crate::fs::host::{HostName, Job, NewEntry, NewKind};
use crate::fs::{Kind, ObjectId, Times};
use crate::txn::Staging;

struct Audit<'a> {
    old: &'a ExFat,
    before: &'a Scan,
    new: ExFat,
    now: Scan,
    job: &'a Job<'a>,
    staging: &'a Staging,
    /// First clusters of all directories: of the old ones, and of the new ones by object.
    firsts_before: HashSet<u32>,
    first_now: HashMap<ObjectId, u32>,
}

pub(super) fn audit(old: &ExFat, after: Arc<dyn ReadAt<Volume>>, job: &Job<'_>, staging: &Staging) -> Result<()> {
    let found = probe::primary(&*after).ok_or_else(|| wrong(0, "boot sector", "an exFAT volume"))?;
    if !found.sound || (Boot { percent: old.boot.percent, ..found.boot.clone() }) != old.boot {
        return Err(wrong(0, "boot sector", "the one of before but for the part in use"));
    }
    let new = ExFat::new(after, found, old.options);
    let now = new.scan()?;
    let before = old.scanned()?;
    let firsts_before = before.dirs.iter().map(|d| d.alloc.first).collect();
    let first_now = now.dirs.iter().map(|d| (d.object, d.alloc.first)).collect();
    let audit = Audit { old, before, new, now, job, staging, firsts_before, first_now };
    audit.boot()?;
    audit.owners()?;
    audit.free_before()?;
    let added = audit.entries()?;
    asked::older(&before.tree, &audit.now.tree, job, &added)?;
    audit.unchanged()?;
    audit.directories(&added)?;
    asked::slack(job, staging, audit.new.boot.cluster_bytes())
}

impl Audit<'_> {
    /// Nothing before the table changes but the part in use, which is right.
    fn boot(&self) -> Result<()> {
        let boot = &self.new.boot;
        let len = usize::try_from(boot.fat_at(0)).unwrap_or(0);
        let region = |fs: &ExFat| fs.volume.read_vec(Offset::new(0), len);
        let (before, now) = (region(self.old)?, region(&self.new)?);
        let other = before.iter().zip(&now).enumerate().find(|(i, (a, b))| a != b && *i != PERCENT_AT);
        if let Some((at, _)) = other {
            return Err(wrong(at as u64, "boot region", "only the part in use to change"));
        }
        let used = boot.clusters.saturating_sub(self.new.free_in(self.new.bitmap()?));
        let expected = if self.old.boot.percent == 0xFF { 0xFF } else { percent(used.into(), boot.clusters) };
        if boot.percent != expected {
            return Err(wrong(PERCENT_AT as u64, "boot sector", format!("{expected} percent in use")));
        }
        Ok(())
    }
    /// Every cluster has exactly one owner and is in use by the bitmap, or is free.
    fn owners(&self) -> Result<()> {
        if let Some(problem) = self.now.tree.problems().first() {
            return Err(wrong(0, "walk", format!("no damage, but: {}", problem.what)));
        }
        if let Some(other) = self.now.oddities.first() {
            return Err(wrong(0, "walk", format!("nothing odd, but {other}")));
        }
        let (bitmap, boot) = (self.new.bitmap()?, &self.new.boot);
        let wrongly = |n: &u32| ExFat::in_use(bitmap, *n) != self.now.claims.owned.has(*n);
        if let Some(n) = (2..boot.clusters.saturating_add(2)).find(wrongly) {
            return Err(wrong(boot.cluster_at(n), "cluster", "an owner, or to be free"));
        }
        // Bits behind the last cluster stay what they were.
        let behind = |bitmap: &[u8]| -> Vec<bool> {
            (boot.clusters.saturating_add(2)..).take(7).map(|n| ExFat::in_use(bitmap, n)).collect()
        };
        if behind(bitmap) != behind(self.old.bitmap()?) {
            return Err(wrong(0, "bitmap", "bits behind the last cluster as before"));
        }
        Ok(())
    }
    /// Whatever is filled was free, and is all that newly belongs to somebody; blocks in use that change are table, bitmap and
    /// old directories.
    fn free_before(&self) -> Result<()> {
        let boot = &self.new.boot;
        let (old, new) = (self.old.bitmap()?, self.new.bitmap()?);
        let mut filled = Bits::new(boot.clusters.saturating_add(2));
        asked::filled(
            self.staging,
            boot.cluster_bytes(),
            |at| boot.cluster_of(at),
            |n| {
                filled.set(n);
                !ExFat::in_use(old, n)
            },
        )?;
        let taken = |n: u32| !ExFat::in_use(old, n) && ExFat::in_use(new, n);
        if (2..boot.clusters.saturating_add(2)).any(|n| taken(n) != filled.has(n)) {
            return Err(wrong(0, "filled ranges", "exactly the clusters that were free and no longer are"));
        }
        let table = boot.fat_at(0)..boot.fat_at(0).saturating_add(boot.fat_bytes());
        let mut others: BTreeMap<u64, u64> = self.before.dirs.iter().flat_map(|d| d.places.iter().copied()).collect();
        others.extend(self.old.root().bitmap_places.iter().copied());
        let interim = self.staging.interim.iter().map(|(_, write)| write);
        for write in self.staging.groups.iter().flat_map(|g| &g.writes).chain(interim) {
            let (at, end) = (write.at.get(), write.at.get().saturating_add(write.bytes.len() as u64));
            let meta = table.start <= at && end <= table.end;
            // Neighbours may be written in one piece.
            let mut covered = at;
            while !meta && covered < end {
                let next = others.range(..=covered).next_back();
                let next = next.map(|(from, len)| from.saturating_add(*len).next_multiple_of(HEAD as u64));
                covered = next
                    .filter(|next| *next > covered)
                    .ok_or_else(|| wrong(covered, "changed sector", "the table, the bitmap or an old directory"))?;
            }
        }
        Ok(())
    }
    /// Each new entry is there, and is what was asked for. The objects that are new.
    fn entries(&self) -> Result<HashSet<ObjectId>> {
        let tree = &self.now.tree;
        let fold = |name: &[u8]| self.new.root().up_case.fold(name);
        let mut added = HashSet::new();
        let find = |top, name: &HostName| {
            let wanted = fold(name);
            tree.child_by(top, name, |a, _| fold(a) == wanted)
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
    /// Times and attributes as exFAT can hold them.
    fn meant(&self, entry: &NewEntry, made: Times) -> (Times, u32) {
        let file = file_of(entry.times, entry.attributes, made);
        (self.new.times(&file), file.attributes.into())
    }
    /// Whether an object of the new state was there before: a directory that begins where one began.
    fn was_there(&self, object: ObjectId) -> bool {
        self.now.tree.object(object).kind == Kind::Dir
            && self.first_now.get(&object).is_some_and(|first| self.firsts_before.contains(first))
    }
    /// In directories that were there before, every entry in use is as it was to the bit, but for those of the image, and for what
    /// says where a directory is that has grown.
    fn unchanged(&self) -> Result<()> {
        let mut gone: HashSet<(usize, usize)> = HashSet::new();
        for file in self.job.image.files() {
            let (dir, set) = self.old.image_set(self.before, file)?;
            gone.extend((set.at..set.at.saturating_add(set.entries)).map(|at| (dir, at)));
        }
        for (i, dir) in self.before.dirs.iter().enumerate() {
            let (before, now) = (self.old.entries_of(dir)?, self.new.entries_of(dir)?);
            if before == now {
                continue;
            }
            // The root, which is its own parent here, has no entry set.
            let below = self.before.dirs.iter().filter(|d| d.parent == i && d.object != dir.object);
            let grown: HashSet<usize> = below.map(|d| d.set_at).collect();
            let used = dirent::list(&before).used;
            let both = before.as_chunks::<ENTRY>().0.iter().zip(now.as_chunks::<ENTRY>().0).take(used).enumerate();
            for (at, (old, new)) in both {
                let [kind, ..] = *old;
                let of_image = gone.contains(&(i, at));
                // A file entry has the checksum, the stream extension behind it the clusters.
                let of_grown = grown.contains(&at) || at.checked_sub(1).is_some_and(|at| grown.contains(&at));
                if old != new && kind & dirent::IN_USE != 0 && !of_image && !of_grown {
                    let at = ExFat::entry_at(&dir.places, at);
                    return Err(wrong(at, "directory entry", "what was there before"));
                }
            }
        }
        Ok(())
    }
    /// Names are unique in new directories and where entries were added; new directories end with zeros; old ones are as long as
    /// their clusters.
    fn directories(&self, added: &HashSet<ObjectId>) -> Result<()> {
        let tree = &self.now.tree;
        for dir in &self.now.dirs {
            let new = added.contains(&dir.object);
            if !new && !tree.children(dir.object).iter().any(|e| added.contains(&tree.entry(*e).object)) {
                continue;
            }
            let at = dir.places.first().map_or(0, |(at, _)| *at);
            let bytes = self.new.entries_of(dir)?;
            let clusters: u64 = dir.runs.iter().map(|(_, count)| u64::from(*count)).sum();
            if bytes.len() as u64 != clusters.saturating_mul(self.new.boot.cluster_bytes()) {
                return Err(wrong(at, "directory", "whole clusters"));
            }
            let listing = dirent::list(&bytes);
            let rest = bytes.get(listing.used.saturating_mul(ENTRY)..).unwrap_or_default();
            if new && rest.iter().any(|b| *b != 0) {
                return Err(wrong(at, "directory", "zeros after the last entry"));
            }
            // What was double before is not for us to judge.
            let mut allowed = 0;
            if !new {
                let number = tree.object(dir.object).number;
                let before = self.before.dirs.iter().find(|d| self.before.tree.object(d.object).number == number);
                let before = before.ok_or_else(|| wrong(at, "directory", "the directory of before"))?;
                allowed = self.twice(&self.old.entries_of(before)?);
            }
            if self.twice(&bytes) > allowed {
                return Err(wrong(at, "directory", "names of which no two are the same"));
            }
        }
        Ok(())
    }
    /// Names of a directory that are the same as one before.
    fn twice(&self, bytes: &[u8]) -> usize {
        let mut seen = HashSet::new();
        let fold = |name: &[u8]| self.new.root().up_case.fold(name);
        dirent::list(bytes).sets.iter().filter(|set| !seen.insert(fold(&name_of(set)))).count()
    }
}

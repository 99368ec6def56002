//! FAT as host: a new table and new directories that lead to clusters where the data already is.

use std::sync::Arc;

use crate::error::{Result, refused};
use crate::extent::{Extent, LayerId, Offset, ReadAt, Stream, Volume, What};
use crate::fs::fat::dirent::{self, SLOT};
use crate::fs::fat::grow::{Growth, Leads, copied, dots, names_of};
use crate::fs::fat::layout::{FsInfo, HEAD, closed, fields};
use crate::fs::fat::names;
use crate::fs::fat::read::{Fat, Scan};
use crate::fs::fat::space::{Space, runs_of};
use crate::fs::fat::table::{Bits, Next, Run, Table};
use crate::fs::host::{Content, Estimate, Host, HostFile, HostImage, HostName, Job, NewKind, Rules};
use crate::txn::reuse::{Layout, Range};
use crate::txn::{Copy, Fresh, Group, Quarantine, Staging};

/// The new state while it is put together.
struct Build<'a> {
    fat: &'a Fat,
    table: Table,
    /// Clusters of the image that no new file has taken yet.
    image: Bits,
    space: Space,
    /// Where copies go, where clusters of the image are filled.
    given: Option<std::vec::IntoIter<(usize, Vec<Range>)>>,
    staging: Staging,
}

impl Fat {
    fn build(&self, scan: &Scan, job: &Job<'_>) -> Result<Staging> {
        let mut growth = self.growth(scan, job)?;
        let need = growth.clusters().saturating_add(self.copy_clusters(job));
        let (space, given) = match &job.tree.reuse {
            None => (Space::choose(self.table.free_clusters(), need), None),
            Some(reuse) => {
                let boot = (|n| self.boot.cluster_at(n), |at| self.boot.cluster_of(at));
                Space::with_image(reuse, self.table.free_clusters(), growth.clusters(), boot).unzip()
            }
        };
        let space = space.ok_or_else(|| {
            let unit = self.boot.cluster_bytes();
            refused(format!(
                "too little space: {need} clusters of {unit} bytes are needed for directories and copies, {} are free",
                self.table.free()
            ))
        })?;
        let Layout { copies, moves, .. } = given.unwrap_or_default();
        let mut build = Build {
            fat: self,
            table: self.table.clone(),
            image: Bits::new(self.boot.clusters.saturating_add(2)),
            space,
            given: job.tree.reuse.as_ref().map(|_| copies.into_iter()),
            staging: Staging { moves, ..Staging::default() },
        };
        for file in job.image.files() {
            build.free_image(scan, file)?;
        }
        let dirs = build.chain_dirs(scan, &growth)?;
        let firsts = build.files(job)?;
        build.directories(scan, &mut growth, &dirs, &firsts)?;
        let mut groups = build.table_groups()?;
        groups.push(Group { name: "directories", writes: build.changed_slots(scan, &growth)? });
        groups.push(Group { name: "FSInfo", writes: build.fsinfo()? });
        groups.retain(|g| !g.writes.is_empty());
        build.staging.groups = groups;
        build.finish(scan, &growth)
    }
    fn copy_clusters(&self, job: &Job<'_>) -> u64 {
        let unit = self.boot.cluster_bytes().max(1);
        job.tree.entries.iter().filter_map(copied).map(|size| size.div_ceil(unit)).fold(0, u64::saturating_add)
    }
    /// The sector of 512 bytes at this place, as it is.
    fn sector(&self, at: u64) -> Result<Vec<u8>> {
        self.volume.read_vec(Offset::new(at), HEAD)
    }
}

/// The clusters that these extents of a volume are in, in order; none where one is not whole clusters from a cluster's start on.
/// `cluster_of`: the cluster that begins at a byte of the volume; `has`: whether there is such a cluster.
pub(in crate::fs) fn clusters_of(
    extents: &[Extent<Stream, Volume>],
    volume: LayerId,
    unit: u64,
    cluster_of: impl Fn(u64) -> Option<u32>,
    has: impl Fn(u32) -> bool,
) -> Option<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    let mut done = 0u64;
    for (i, e) in extents.iter().enumerate() {
        let What::Stored(place) = e.what else { return None };
        let last = i.checked_add(1)? == extents.len();
        if place.layer != volume || e.start.get() != done || (!last && e.len.checked_rem(unit)? != 0) {
            return None;
        }
        done = done.checked_add(e.len)?;
        let first = cluster_of(place.offset.get())?;
        let count = u32::try_from(e.len.div_ceil(unit)).ok()?;
        if !has(first.checked_add(count.checked_sub(1)?)?) {
            return None;
        }
        match runs.last_mut() {
            Some((f, c)) if f.checked_add(*c) == Some(first) => *c = c.checked_add(count)?,
            _ => runs.push((first, count)),
        }
    }
    Some(runs)
}

/// Every cluster of these runs.
pub(in crate::fs) fn clusters(runs: &[Run]) -> impl Iterator<Item = u32> + '_ {
    runs.iter().flat_map(|(first, count)| *first..first.saturating_add(*count))
}

/// The sectors in which `new` differs from `old`, as bytes from `0` on; neighbours together. Both have the same length.
pub(in crate::fs) fn differing(old: &[u8], new: &[u8]) -> Vec<(usize, Vec<u8>)> {
    let mut out: Vec<(usize, Vec<u8>)> = Vec::new();
    for (i, (a, b)) in old.chunks(HEAD).zip(new.chunks(HEAD)).enumerate() {
        if a == b {
            continue;
        }
        let at = i.saturating_mul(HEAD);
        match out.last_mut() {
            Some((start, bytes)) if start.saturating_add(bytes.len()) == at => bytes.extend_from_slice(b),
            _ => out.push((at, b.to_vec())),
        }
    }
    out
}

/// Appends bytes at a place; in one piece with the last ones where they continue them.
pub(in crate::fs) fn push_fresh(all: &mut Vec<Fresh>, at: u64, bytes: &[u8]) {
    match all.last_mut() {
        Some(last) if last.at.get().saturating_add(last.bytes.len() as u64) == at => {
            last.bytes.extend_from_slice(bytes)
        }
        _ => all.push(Fresh { at: Offset::new(at), bytes: bytes.to_vec() }),
    }
}

impl Build<'_> {
    fn set(&mut self, cluster: u32, value: u32) -> Result<()> {
        if self.table.set(cluster, value) {
            return Ok(());
        }
        Err(refused(format!("the table has no entry for cluster {cluster}")))
    }
    fn chain(&mut self, runs: &[Run]) -> Result<()> {
        let mut before: Option<u32> = None;
        for n in clusters(runs) {
            if let Some(before) = before {
                self.set(before, n)?;
            }
            before = Some(n);
        }
        match before {
            Some(last) => self.set(last, self.fat.boot.width.end()),
            None => Ok(()),
        }
    }
    /// Frees the chain of a file of the image; new files then take from it what is theirs.
    fn free_image(&mut self, scan: &Scan, file: &HostFile) -> Result<()> {
        let stream = scan.tree.data(file.object).ok_or_else(|| refused("the image is no file"))?;
        let first = u32::try_from(scan.tree.stream(stream).locator).unwrap_or(0);
        // An image without a byte has no cluster.
        let mut next = if self.fat.boot.has(first) { Next::Cluster(first) } else { Next::End };
        while let Next::Cluster(n) = next {
            next = self.fat.table.next(n);
            if !self.image.set(n) {
                return Err(refused("the image's chain comes back to itself"));
            }
            self.set(n, 0)?;
        }
        Ok(())
    }
    /// Takes clusters for all directories, one after the other.
    fn chain_dirs(&mut self, scan: &Scan, growth: &Growth) -> Result<Vec<Vec<Run>>> {
        let mut all = Vec::with_capacity(growth.dirs.len());
        for (i, dir) in growth.dirs.iter().enumerate() {
            let runs = self.space.take(dir.clusters).ok_or_else(|| refused("too little space for directories"))?;
            self.fill(&runs)?;
            self.chain(&runs)?;
            if let (0, Some((first, _))) = (i, runs.first()) {
                let old = scan.dirs.get(growth.host_dir).and_then(|d| d.places.last().copied());
                let last = old.and_then(|(at, len)| {
                    self.fat.boot.cluster_of(at.saturating_add(len).saturating_sub(self.fat.boot.cluster_bytes()))
                });
                let last = last.ok_or_else(|| refused("the host directory has no clusters to continue"))?;
                self.set(last, *first)?;
            }
            all.push(runs);
        }
        Ok(all)
    }
    /// Chains all files; gives the first cluster of each.
    fn files(&mut self, job: &Job<'_>) -> Result<Vec<u32>> {
        let unit = self.fat.boot.cluster_bytes().max(1);
        let mut firsts = Vec::with_capacity(job.tree.entries.len());
        for entry in &job.tree.entries {
            let name = || String::from_utf8_lossy(&entry.name).into_owned();
            let runs = match &entry.kind {
                NewKind::File { size, content: Content::Linked(extents) } if *size > 0 => {
                    let fat = self.fat;
                    let (cluster, has) = (|at| fat.boot.cluster_of(at), |n| fat.boot.has(n));
                    let runs = clusters_of(extents, fat.volume.id(), unit, cluster, has)
                        .ok_or_else(|| refused(format!("{}: its extents are no clusters of the host", name())))?;
                    let count: u64 = runs.iter().map(|(_, count)| u64::from(*count)).sum();
                    let len: u64 = extents.iter().map(|e| e.len).sum();
                    if count != size.div_ceil(unit) || len < *size {
                        return Err(refused(format!("{}: {count} clusters for {size} bytes", name())));
                    }
                    self.claim(&runs).map_err(|n| {
                        refused(format!("{}: cluster {n} is not the image's, or another file's too", name()))
                    })?;
                    self.slack(job, &runs, *size);
                    runs
                }
                _ => Vec::new(),
            };
            self.chain(&runs)?;
            firsts.push(runs.first().map_or(0, |(first, _)| *first));
        }
        for at in job.tree.copies() {
            let (Some(entry), Some(first)) = (job.tree.entries.get(at), firsts.get_mut(at)) else { continue };
            let Some(size) = copied(entry) else { continue };
            let count = u32::try_from(size.div_ceil(unit)).unwrap_or(u32::MAX);
            let (runs, to) = match &mut self.given {
                Some(given) => {
                    let to = given.find(|(entry, _)| *entry == at).map(|(_, to)| to).unwrap_or_default();
                    (runs_of(&to, unit, |at| self.fat.boot.cluster_of(at)), to)
                }
                None => {
                    let runs = self.space.take(count);
                    let to = runs.as_deref().map(|runs| self.fat.places(runs)).unwrap_or_default();
                    (runs, to)
                }
            };
            let runs = runs.ok_or_else(|| refused("too little space for copies"))?;
            self.fill(&runs)?;
            let to = to.into_iter().map(|(at, len)| (Offset::new(at), len)).collect();
            self.staging.copies.push(Copy { entry: at, size, to });
            self.chain(&runs)?;
            *first = runs.first().map_or(0, |(first, _)| *first);
        }
        Ok(firsts)
    }
    /// Takes clusters out of the image; the first one that it can't give is the error.
    fn claim(&mut self, runs: &[Run]) -> Result<(), u32> {
        match clusters(runs).find(|n| !self.image.clear(*n)) {
            Some(other) => Err(other),
            None => Ok(()),
        }
    }
    /// What is filled was free, or is the image's and nobody else's.
    fn fill(&mut self, runs: &[Run]) -> Result<()> {
        let wrong = clusters(runs).find(|n| self.fat.table.get(*n) != 0 && !self.image.clear(*n));
        wrong.map_or(Ok(()), |n| Err(refused(format!("cluster {n} is not free, nor the image's alone"))))
    }
    fn slack(&mut self, job: &Job<'_>, runs: &[Run], size: u64) {
        let unit = self.fat.boot.cluster_bytes().max(1);
        let used = size.checked_rem(unit).unwrap_or(0);
        let last = runs.last().and_then(|(first, count)| first.checked_add(*count)?.checked_sub(1));
        if let (true, Some(last), 1..) = (job.zero_slack, last, used) {
            let at = self.fat.boot.cluster_at(last).saturating_add(used);
            let len = u32::try_from(unit.saturating_sub(used)).unwrap_or(0);
            self.staging.slack.push((Offset::new(at), len));
        }
    }
    /// Writes the new directories, and the clusters by which the first one grows.
    fn directories(&mut self, scan: &Scan, growth: &mut Growth, dirs: &[Vec<Run>], firsts: &[u32]) -> Result<()> {
        let root = scan.dirs.get(growth.host_dir).map_or(0, |d| if growth.host_dir == 0 { 0 } else { d.first });
        let first_of = |at: usize| match at {
            0 => root,
            _ => dirs.get(at).and_then(|runs| runs.first()).map_or(0, |(first, _)| *first),
        };
        let mut edited: Vec<u8> = Vec::new();
        for (i, (dir, runs)) in growth.dirs.iter().zip(dirs).enumerate() {
            let room = u64::from(dir.clusters).saturating_mul(self.fat.boot.cluster_bytes());
            let room = usize::try_from(room).unwrap_or(0);
            let mut bytes = match growth.edits.get(&growth.host_dir) {
                Some((_, new)) if i == 0 => new.clone(),
                _ => Vec::new(),
            };
            let kept = bytes.len();
            bytes.resize(kept.saturating_add(room), 0);
            if let Some(parent) = dir.parent {
                let entry =
                    growth.dirs.get(parent).and_then(|p| p.items.iter().find(|item| item.leads == Leads::Dir(i)));
                let entry = entry.map(|item| item.short).unwrap_or_default();
                put(&mut bytes, 0, &dots(&entry, first_of(i), first_of(parent)))?;
            }
            let mut end = 0usize;
            for item in &dir.items {
                let cluster = match item.leads {
                    Leads::Dir(at) => first_of(at),
                    Leads::File(at) => firsts.get(at).copied().unwrap_or(0),
                };
                let slots = item.encode(cluster);
                put(&mut bytes, item.slot, &slots)?;
                end = end.max(item.slot.saturating_add(slots.len() / SLOT));
            }
            if i == 0 {
                // Whatever lies behind the old end mark must stay behind an end mark.
                let marked =
                    dirent::list(growth.edits.get(&growth.host_dir).map_or(&[][..], |e| &e.1), self.fat.wide()).used;
                let behind = bytes.as_chunks_mut::<SLOT>().0.get_mut(end).filter(|_| end > marked);
                behind.into_iter().for_each(|slot| *slot = [0; SLOT]);
                edited = bytes.get(..kept).unwrap_or_default().to_vec();
            }
            let mut from = kept;
            for (at, len) in self.fat.places(runs) {
                let to = from.saturating_add(usize::try_from(len).unwrap_or(0));
                push_fresh(&mut self.staging.fresh, at, bytes.get(from..to).unwrap_or_default());
                from = to;
            }
        }
        if let Some((_, new)) = growth.edits.get_mut(&growth.host_dir) {
            *new = edited;
        }
        Ok(())
    }
    /// The changed sectors of all tables. The first table is written last: until then the volume is as it was.
    fn table_groups(&self) -> Result<Vec<Group>> {
        const NAMES: [&str; 4] = ["FAT 1", "FAT 2", "FAT 3", "FAT 4"];
        let changed = differing(self.fat.table.bytes(), self.table.bytes());
        let mut groups = Vec::new();
        for (fat, name) in (0..self.fat.boot.fats).zip(NAMES).rev() {
            let mut writes = Vec::with_capacity(changed.len());
            for (from, bytes) in &changed {
                let at = self.fat.boot.fat_at(fat).saturating_add(*from as u64);
                let mut bytes = bytes.clone();
                // The last sector goes on behind the last entry.
                let over = bytes.len().checked_rem(HEAD).unwrap_or(0);
                if over != 0 {
                    let tail = self.fat.sector(at.saturating_add(bytes.len().saturating_sub(over) as u64))?;
                    bytes.extend_from_slice(tail.get(over..).unwrap_or_default());
                }
                writes.push(Fresh { at: Offset::new(at), bytes });
            }
            groups.push(Group { name, writes });
        }
        Ok(groups)
    }
    /// The changed sectors of directories that were there before.
    fn changed_slots(&self, scan: &Scan, growth: &Growth) -> Result<Vec<Fresh>> {
        let mut sectors: Vec<(u64, &[u8])> = Vec::new();
        for (at, (old, new)) in &growth.edits {
            let dir = scan.dirs.get(*at).ok_or_else(|| refused("a directory is missing"))?;
            for (i, (a, b)) in old.chunks(HEAD).zip(new.chunks(HEAD)).enumerate() {
                if a != b {
                    sectors.push((Fat::slot_at(&dir.places, i.saturating_mul(HEAD / SLOT)), b));
                }
            }
        }
        sectors.sort_unstable_by_key(|(at, _)| *at);
        let mut writes = Vec::new();
        for (at, bytes) in sectors {
            let mut bytes = bytes.to_vec();
            if bytes.len() < HEAD {
                // A fixed root directory may end within a sector.
                let tail = self.fat.sector(at)?;
                bytes.extend_from_slice(tail.get(bytes.len()..).unwrap_or_default());
            }
            push_fresh(&mut writes, at, &bytes);
        }
        Ok(writes)
    }
    /// FSInfo and its copy, where they are whole.
    fn fsinfo(&self) -> Result<Vec<Fresh>> {
        let boot = &self.fat.boot;
        let Some(sector) = boot.fsinfo else { return Ok(Vec::new()) };
        let next = self.table.entries().find(|(_, value)| *value == 0).map_or(u32::MAX, |(n, _)| n);
        let new = FsInfo { free: self.table.free(), next };
        let copy =
            boot.backup.and_then(|backup| backup.checked_add(sector)).filter(|n| *n < boot.reserved && *n != sector);
        let mut writes: Vec<Fresh> = Vec::new();
        for sector in std::iter::once(sector).chain(copy) {
            let at = boot.sector_at(sector);
            let old = self.fat.sector(at)?;
            if FsInfo::decode(fields("FSInfo", at, &old)).is_ok() {
                let bytes = new.encode(old.clone());
                if bytes != old {
                    writes.push(Fresh { at: Offset::new(at), bytes });
                }
            }
        }
        writes.sort_by_key(|w| w.at);
        Ok(writes)
    }
    /// What is left to say of the new state.
    fn finish(mut self, scan: &Scan, growth: &Growth) -> Result<Staging> {
        let boot = &self.fat.boot;
        let old = self.fat.sector(0)?;
        self.staging.quarantine = Quarantine {
            at: Offset::new(0),
            closed: closed(boot.with_state(old.clone(), true)),
            open: old,
            also: Vec::new(),
        };
        self.staging.fill();
        self.staging.slack.sort_unstable();
        let changed = growth.edits.keys().chain(std::iter::once(&0)).filter_map(|at| scan.dirs.get(*at));
        let changed = changed.flat_map(|dir| dir.places.iter().copied());
        self.staging.witness((0..boot.fats).map(|fat| (boot.fat_at(fat), boot.fat_bytes())).chain(changed));
        Ok(self.staging)
    }
}

/// Puts slots at their place.
fn put(bytes: &mut [u8], slot: usize, slots: &[u8]) -> Result<()> {
    if crate::bytes::put(bytes, slot.saturating_mul(SLOT), slots) {
        return Ok(());
    }
    Err(refused(format!("a directory has no slot {slot}")))
}

impl Host for Fat {
    fn rules(&self) -> Rules {
        Rules::plain(self.boot.cluster_bytes(), self.boot.data_at(), u32::MAX.into())
    }
    fn refusals(&self, image: &HostImage) -> Result<Vec<String>> {
        super::refuse::refusals(self, image)
    }
    fn fold(&self, name: &[u8]) -> Vec<u8> {
        names::fold(name)
    }
    fn names_in(&self, dir: &[HostName]) -> Result<Option<Vec<HostName>>> {
        let scan = self.scanned()?;
        let (at, depth) = self.descend(scan, dir)?;
        if depth < dir.len() {
            return Ok(None);
        }
        let Some(found) = scan.dirs.get(at) else { return Ok(None) };
        let listing = dirent::list(&self.slots_of(found)?, self.wide());
        let entries = listing.found.iter().filter(|f| !f.short.is_dot() && !f.short.is_dot_dot());
        Ok(Some(entries.flat_map(names_of).collect()))
    }
    fn free_units(&self) -> u64 {
        self.table.free().into()
    }
    fn needs(&self, job: &Job<'_>, staging: Option<&Staging>) -> Estimate {
        let copy_units = self.copy_clusters(job);
        let unit = self.boot.cluster_bytes();
        let (metadata_units, groups, slack) = match staging {
            Some(staging) => {
                let fresh: u64 = staging.fresh.iter().map(|f| f.bytes.len() as u64).sum();
                let writes = staging.groups.iter().flat_map(|g| &g.writes);
                let changed = writes.map(|w| w.bytes.len() as u64).sum::<u64>();
                (fresh.div_ceil(unit.max(1)), changed, staging.slack.as_slice())
            }
            // Where there is too little space, every sector of the tables may change.
            None => {
                let growth = self.scanned().and_then(|scan| self.growth(scan, job));
                let tables = self.table_len().saturating_mul(self.boot.fats.into());
                (growth.map_or(0, |growth| growth.clusters()), tables, &[][..])
            }
        };
        Estimate::of(unit, metadata_units, copy_units, groups, slack)
    }
    fn new_state(&self, job: &Job<'_>) -> Result<Staging> {
        self.build(self.scanned()?, job)
    }
    fn audit(&self, after: Arc<dyn ReadAt<Volume>>, job: &Job<'_>, staging: &Staging) -> Result<()> {
        super::audit::audit(self, after, job, staging)
    }
}

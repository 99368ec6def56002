//! FAT as host: a new table and new directories that lead to clusters where the data already is.

use std::sync::Arc;

use crate::error::{Result, refused};
use crate::extent::{LayerId, Offset, ReadAt, Volume};
use crate::fs::fat::dirent::{self, SLOT};
use crate::fs::fat::grow::{Growth, Leads, dots, names_of};
use crate::fs::fat::layout::{FsInfo, HEAD, closed, fields};
use crate::fs::fat::names;
use crate::fs::fat::read::{Fat, Scan};
use crate::fs::fat::supply::{Clustered, Supply, clusters, differing, in_order};
use crate::fs::fat::table::{Next, Run, Table};
use crate::fs::host::{Estimate, Host, HostFile, HostImage, HostName, Job, Rules};
use crate::txn::{Fresh, Group, Quarantine, Staging};

/// The new state while it is put together.
struct Build<'a> {
    fat: &'a Fat,
    table: Table,
    supply: Supply<'a, Fat>,
}

impl Fat {
    fn build(&self, scan: &Scan, job: &Job<'_>) -> Result<Staging> {
        let mut growth = self.growth(scan, job)?;
        let supply = Supply::new(self, job, growth.clusters())?;
        let mut build = Build { fat: self, table: self.table.clone(), supply };
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
        build.supply.staging.groups = groups;
        build.finish(scan, &growth)
    }
}

impl Clustered for Fat {
    fn layer(&self) -> LayerId {
        self.volume.id()
    }
    fn unit(&self) -> u64 {
        self.boot.cluster_bytes().max(1)
    }
    fn place(&self, cluster: u32) -> u64 {
        self.boot.cluster_at(cluster)
    }
    fn cluster(&self, at: u64) -> Option<u32> {
        self.boot.cluster_of(at)
    }
    fn end(&self) -> u32 {
        self.boot.clusters.saturating_add(2)
    }
    fn is_free(&self, cluster: u32) -> bool {
        self.table.get(cluster) == 0
    }
    fn sector(&self, at: u64) -> Result<Vec<u8>> {
        self.volume.read_vec(Offset::new(at), HEAD)
    }
}

impl Build<'_> {
    fn set(&mut self, cluster: u32, value: u32) -> Result<()> {
        set(&mut self.table, cluster, value)
    }
    /// Frees the chain of a file of the image; new files then take from it what is theirs.
    fn free_image(&mut self, scan: &Scan, file: &HostFile) -> Result<()> {
        let stream = scan.tree.data(file.object).ok_or_else(|| refused("the image is no file"))?;
        let first = u32::try_from(scan.tree.stream(stream).locator).unwrap_or(0);
        // An image without a byte has no cluster.
        let mut next = if self.fat.boot.has(first) { Next::Cluster(first) } else { Next::End };
        while let Next::Cluster(n) = next {
            next = self.fat.table.next(n);
            if !self.supply.of_image(n) {
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
            let runs = self.supply.take(dir.clusters)?;
            self.supply.fill(&runs)?;
            chain(&mut self.table, &runs, self.fat.boot.width.end())?;
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
        let (table, end) = (&mut self.table, self.fat.boot.width.end());
        let mut firsts = vec![0; job.tree.entries.len()];
        self.supply.files(job, |at, runs, _| {
            if let (Some(first), Some((n, _))) = (firsts.get_mut(at), runs.first()) {
                *first = *n;
            }
            chain(table, runs, end)
        })?;
        Ok(firsts)
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
            self.supply.write(runs, bytes.get(kept..).unwrap_or_default());
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
                // The last sector goes on behind the last entry.
                let bytes = self.fat.filled_up(at, bytes.clone())?;
                writes.push(Fresh { at: Offset::new(at), bytes });
            }
            groups.push(Group { name, writes });
        }
        Ok(groups)
    }
    /// The changed sectors of directories that were there before.
    fn changed_slots(&self, scan: &Scan, growth: &Growth) -> Result<Vec<Fresh>> {
        let mut writes = Vec::new();
        for (at, (old, new)) in &growth.edits {
            let dir = scan.dirs.get(*at).ok_or_else(|| refused("a directory is missing"))?;
            // A fixed root directory may end within a sector.
            writes.extend(self.fat.changed(&dir.places, old, new)?);
        }
        Ok(in_order(writes))
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
    fn finish(self, scan: &Scan, growth: &Growth) -> Result<Staging> {
        let boot = &self.fat.boot;
        let mut staging = self.supply.staging;
        let old = self.fat.sector(0)?;
        staging.quarantine = Quarantine {
            at: Offset::new(0),
            closed: closed(boot.with_state(old.clone(), true)),
            open: old,
            also: Vec::new(),
        };
        staging.fill();
        staging.slack.sort_unstable();
        let changed = growth.edits.keys().chain(std::iter::once(&0)).filter_map(|at| scan.dirs.get(*at));
        let changed = changed.flat_map(|dir| dir.places.iter().copied());
        staging.witness((0..boot.fats).map(|fat| (boot.fat_at(fat), boot.fat_bytes())).chain(changed));
        Ok(staging)
    }
}

fn set(table: &mut Table, cluster: u32, value: u32) -> Result<()> {
    if table.set(cluster, value) {
        return Ok(());
    }
    Err(refused(format!("the table has no entry for cluster {cluster}")))
}

/// Makes runs one chain; `end`: what its last entry says.
fn chain(table: &mut Table, runs: &[Run], end: u32) -> Result<()> {
    let mut before: Option<u32> = None;
    for n in clusters(runs) {
        if let Some(before) = before {
            set(table, before, n)?;
        }
        before = Some(n);
    }
    before.map_or(Ok(()), |last| set(table, last, end))
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

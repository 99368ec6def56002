//! exFAT as host: new entry sets that lead to clusters where the data already is, a new bitmap, and chains for what is in
//! fragments.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::{Result, refused};
use crate::extent::{LayerId, Offset, ReadAt, Volume};
use crate::fs::exfat::dirent::{self, Alloc, ENTRY, NO_CHAIN, POSSIBLE};
use crate::fs::exfat::grow::{Growth, Leads, name_of, resize};
use crate::fs::exfat::layout::{HEAD, closed, percent, with_percent};
use crate::fs::exfat::read::{ExFat, Scan};
use crate::fs::exfat::table::END;
use crate::fs::fat::supply::{Clustered, Supply, clusters, in_order, push_fresh};
use crate::fs::fat::table::{Claims, Run, push_cluster};
use crate::fs::host::{Estimate, Host, HostFile, HostImage, HostName, Job, Rules};
use crate::txn::{Fresh, Group, Quarantine, SECTOR, Staging};

/// The new state while it is put together.
struct Build<'a> {
    fs: &'a ExFat,
    owned: Owned,
    /// Whether a file of the image has a chain.
    chained: bool,
    supply: Supply<'a, ExFat>,
}

/// Which clusters belong to somebody, and what follows each.
struct Owned {
    /// The bitmap as it will be.
    bitmap: Vec<u8>,
    /// Entries of the table that change.
    table: BTreeMap<u32, u32>,
}

fn set(bitmap: &mut [u8], cluster: u32, used: bool) -> Result<()> {
    let bit = cluster.saturating_sub(2);
    let byte = bitmap.get_mut((bit / 8) as usize);
    let byte = byte.ok_or_else(|| refused(format!("the bitmap has no bit for cluster {cluster}")))?;
    if used {
        *byte |= 1 << (bit % 8);
    } else {
        *byte &= !(1 << (bit % 8));
    }
    Ok(())
}

impl ExFat {
    fn build(&self, scan: &Scan, job: &Job<'_>) -> Result<Staging> {
        let growth = self.growth(scan, job)?;
        let owned = Owned { bitmap: self.bitmap()?.to_vec(), table: BTreeMap::new() };
        let supply = Supply::new(self, job, growth.clusters())?;
        let mut build = Build { fs: self, owned, chained: false, supply };
        for file in job.image.files() {
            build.free_image(scan, file)?;
        }
        build.finish(scan, job, growth)
    }
    /// The bitmap in use.
    pub(super) fn bitmap(&self) -> Result<&[u8]> {
        self.root().bitmap.as_deref().ok_or_else(|| refused("the host's bitmap can't be read"))
    }
}

impl Clustered for ExFat {
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
        self.root().bitmap.as_deref().is_some_and(|bitmap| !Self::in_use(bitmap, cluster))
    }
    fn sector(&self, at: u64) -> Result<Vec<u8>> {
        self.volume.read_vec(Offset::new(at), HEAD)
    }
}

impl Owned {
    /// Clusters that from now on belong to somebody, and how an entry set leads to them: without a chain where they are
    /// neighbours.
    fn claim(&mut self, runs: &[Run], len: u64) -> Result<Alloc> {
        for n in clusters(runs) {
            set(&mut self.bitmap, n, true)?;
        }
        let flags = match runs {
            [_] => POSSIBLE | NO_CHAIN,
            _ => {
                self.chain(runs);
                POSSIBLE
            }
        };
        Ok(Alloc { flags, first: runs.first().map_or(0, |(first, _)| *first), len })
    }
    fn chain(&mut self, runs: &[Run]) {
        let mut before: Option<u32> = None;
        for n in clusters(runs) {
            if let Some(before) = before {
                self.table.insert(before, n);
            }
            before = Some(n);
        }
        if let Some(last) = before {
            self.table.insert(last, END);
        }
    }
}

impl Build<'_> {
    /// Frees the clusters of the image; new files then take from it what is theirs.
    fn free_image(&mut self, scan: &Scan, file: &HostFile) -> Result<()> {
        let (_, set_of) = self.fs.image_set(scan, file)?;
        let alloc = set_of.file.alloc;
        let mut claims = Claims::new(&self.fs.table);
        let count = self.fs.boot.clusters_for(alloc.len);
        let chain = match alloc.first {
            // An image without a byte has no cluster.
            0 => return Ok(()),
            first if alloc.no_chain() => claims.neighbours(&self.fs.table, first, count, false),
            first => claims.follow(&self.fs.table, first, u32::MAX, false),
        };
        if chain.fault.is_some() || chain.clusters != count {
            return Err(refused("the image's clusters are not those that its bytes need"));
        }
        self.chained |= !alloc.no_chain();
        for n in clusters(&chain.runs) {
            self.supply.of_image(n);
            set(&mut self.owned.bitmap, n, false)?;
        }
        Ok(())
    }
    fn finish(mut self, scan: &Scan, job: &Job<'_>, mut growth: Growth) -> Result<Staging> {
        let mut dirs = Vec::with_capacity(growth.dirs.len());
        for dir in &growth.dirs {
            dirs.push(self.supply.take(dir.clusters)?);
        }
        let files = self.files(job)?;
        dirs.iter().try_for_each(|runs| self.supply.fill(runs))?;
        self.directories(scan, &mut growth, &dirs, &files)?;
        let table = Group { name: "FAT", writes: self.table_writes()? };
        let switch = Group { name: "directories", writes: self.changed_entries(scan, &growth)? };
        // A cluster can be in one chain only. Where the image has one, what is in fragments is seen before its chains are right,
        // which loses less than the image cut in pieces; where it has none, the chains disturb nobody.
        let mut groups = if self.chained { vec![switch, table] } else { vec![table, switch] };
        let old = self.fs.bitmap()?.to_vec();
        let union: Vec<u8> = old.iter().zip(&self.owned.bitmap).map(|(old, new)| old | new).collect();
        let interim = self.bitmap_writes(&old, &union)?;
        let bitmap = self.owned.bitmap.clone();
        groups.push(Group { name: "bitmap", writes: self.bitmap_writes(&old, &bitmap)? });
        groups.retain(|g| !g.writes.is_empty());
        self.supply.staging.groups = groups;
        self.supply.staging.interim = interim.into_iter().map(|write| (0, write)).collect();
        self.rest(scan, &growth)
    }
    /// How the entry sets of all files lead to their clusters.
    fn files(&mut self, job: &Job<'_>) -> Result<Vec<Alloc>> {
        let empty = Alloc { flags: POSSIBLE, ..Alloc::default() };
        let mut files = vec![empty; job.tree.entries.len()];
        let owned = &mut self.owned;
        self.supply.files(job, |at, runs, size| {
            let alloc = owned.claim(runs, size)?;
            files.get_mut(at).into_iter().for_each(|file| *file = alloc);
            Ok(())
        })?;
        Ok(files)
    }
    /// Makes the first directory longer, where it has to be: its new runs, after the old ones.
    fn lengthen(&mut self, scan: &Scan, growth: &mut Growth, more: &[Run]) -> Result<()> {
        let dir = scan.dirs.get(growth.host_dir).ok_or_else(|| refused("the host has no such directory"))?;
        if more.is_empty() {
            return Ok(());
        }
        let had: u64 = dir.runs.iter().map(|(_, count)| u64::from(*count)).sum();
        let unit = self.fs.boot.cluster_bytes();
        if had.saturating_mul(unit) != dir.alloc.len || dir.runs.is_empty() {
            return Err(refused(
                "the host directory does not fill its clusters: check the host with `fsck.exfat` first",
            ));
        }
        for n in clusters(more) {
            set(&mut self.owned.bitmap, n, true)?;
        }
        let mut runs: Vec<Run> = dir.runs.clone();
        for n in clusters(more) {
            push_cluster(&mut runs, n);
        }
        let new: u64 = more.iter().map(|(_, count)| u64::from(*count)).sum();
        let len = had.saturating_add(new).saturating_mul(unit);
        let mut alloc = Alloc { len, ..dir.alloc };
        if dir.alloc.no_chain() && runs.len() > 1 {
            // It had no chain: now all of it needs one.
            alloc.flags = POSSIBLE;
            self.owned.chain(&runs);
        } else if !dir.alloc.no_chain() {
            let last = dir.runs.last().and_then(|(first, count)| first.checked_add(*count)?.checked_sub(1));
            let (Some(last), Some((first, _))) = (last, more.first()) else {
                return Err(refused("the host directory has no clusters to continue"));
            };
            self.owned.chain(more);
            self.owned.table.insert(last, *first);
        }
        if growth.host_dir == 0 {
            return Ok(());
        }
        let (_, parent) = growth.edits.get_mut(&dir.parent).ok_or_else(|| refused("a directory is missing"))?;
        resize(parent, dir, alloc)
    }
    /// Writes the new directories, and the clusters by which the first one grows.
    fn directories(&mut self, scan: &Scan, growth: &mut Growth, runs: &[Vec<Run>], files: &[Alloc]) -> Result<()> {
        let unit = self.fs.boot.cluster_bytes();
        let mut allocs = vec![Alloc::default()];
        for (dir, runs) in growth.dirs.iter().zip(runs).skip(1) {
            allocs.push(self.owned.claim(runs, u64::from(dir.clusters).saturating_mul(unit))?);
        }
        self.lengthen(scan, growth, runs.first().map(Vec::as_slice).unwrap_or_default())?;
        let mut edited = Vec::new();
        for (i, (dir, runs)) in growth.dirs.iter().zip(runs).enumerate() {
            let mut bytes = match growth.edits.get(&growth.host_dir) {
                Some((_, new)) if i == 0 => new.clone(),
                _ => Vec::new(),
            };
            let kept = bytes.len();
            let used = dirent::list(&bytes).used;
            let room = usize::try_from(u64::from(dir.clusters).saturating_mul(unit)).unwrap_or(0);
            bytes.resize(kept.saturating_add(room), 0);
            let mut end = 0usize;
            for item in &dir.items {
                let alloc = match item.leads {
                    Leads::Dir(at) => allocs.get(at),
                    Leads::File(at) => files.get(at),
                };
                let set = item.encode(self.fs, alloc.copied().unwrap_or_default());
                if !crate::bytes::put(&mut bytes, item.at.saturating_mul(ENTRY), set.as_flattened()) {
                    return Err(refused(format!("a directory has no entry {}", item.at)));
                }
                end = end.max(item.at.saturating_add(set.len()));
            }
            if i == 0 && end > used {
                // Whatever lies behind the old end mark must stay behind one.
                let behind = bytes.as_chunks_mut::<ENTRY>().0.get_mut(end);
                behind.into_iter().for_each(|entry| *entry = [0; ENTRY]);
            }
            self.supply.write(runs, bytes.get(kept..).unwrap_or_default());
            if i == 0 {
                bytes.truncate(kept);
                edited = bytes;
            }
        }
        if let Some((_, new)) = growth.edits.get_mut(&growth.host_dir) {
            *new = edited;
        }
        Ok(())
    }
    /// The sectors of the table that change.
    fn table_writes(&self) -> Result<Vec<Fresh>> {
        let mut writes: Vec<Fresh> = Vec::new();
        let mut rest = self.owned.table.iter().peekable();
        while let Some((first, _)) = rest.peek() {
            let at = self.fs.boot.fat_at(0).saturating_add(u64::from(**first).saturating_mul(4));
            let sector = at.saturating_sub(at.checked_rem(SECTOR).unwrap_or(0));
            let old = self.fs.sector(sector)?;
            let mut new = old.clone();
            while let Some((cluster, value)) = rest.peek() {
                let at = self.fs.boot.fat_at(0).saturating_add(u64::from(**cluster).saturating_mul(4));
                let within = usize::try_from(at.saturating_sub(sector)).unwrap_or(usize::MAX);
                if !crate::bytes::put(&mut new, within, &value.to_le_bytes()) {
                    break;
                }
                rest.next();
            }
            if new != old {
                push_fresh(&mut writes, sector, &new);
            }
        }
        Ok(writes)
    }
    /// The sectors in which a bitmap differs from the old one. In pieces it may lie in any order.
    fn bitmap_writes(&self, old: &[u8], new: &[u8]) -> Result<Vec<Fresh>> {
        Ok(in_order(self.fs.changed(&self.fs.root().bitmap_places, old, new)?))
    }
    /// The changed sectors of directories that were there before.
    fn changed_entries(&self, scan: &Scan, growth: &Growth) -> Result<Vec<Fresh>> {
        let mut writes = Vec::new();
        for (at, (old, new)) in &growth.edits {
            let dir = scan.dirs.get(*at).ok_or_else(|| refused("a directory is missing"))?;
            writes.extend(self.fs.changed(&dir.places, old, new)?);
        }
        Ok(in_order(writes))
    }
    /// What is left to say of the new state.
    fn rest(self, scan: &Scan, growth: &Growth) -> Result<Staging> {
        let boot = &self.fs.boot;
        let mut staging = self.supply.staging;
        let old = self.fs.sector(0)?;
        let used = u64::from(boot.clusters.saturating_sub(self.fs.free_in(&self.owned.bitmap)));
        let open = match boot.percent {
            // Unknown it stays.
            0xFF => old.clone(),
            _ => with_percent(old.clone(), percent(used, boot.clusters)),
        };
        staging.quarantine = Quarantine { at: Offset::new(0), closed: closed(old), open, also: Vec::new() };
        staging.fill();
        staging.slack.sort_unstable();
        let changed = growth.edits.keys().chain(std::iter::once(&0)).filter_map(|at| scan.dirs.get(*at));
        let changed = changed.flat_map(|dir| dir.places.iter().copied());
        staging.witness(self.fs.root().bitmap_places.iter().copied().chain(changed));
        Ok(staging)
    }
}

impl Host for ExFat {
    fn rules(&self) -> Rules {
        let unit = self.boot.cluster_bytes();
        Rules::plain(unit, self.boot.heap_at(), u64::from(self.boot.clusters).saturating_mul(unit))
    }
    fn refusals(&self, image: &HostImage) -> Result<Vec<String>> {
        super::refuse::refusals(self, image)
    }
    fn fold(&self, name: &[u8]) -> Vec<u8> {
        self.root().up_case.fold(name)
    }
    fn names_in(&self, dir: &[HostName]) -> Result<Option<Vec<HostName>>> {
        let scan = self.scanned()?;
        let (at, depth) = self.descend(scan, dir)?;
        if depth < dir.len() {
            return Ok(None);
        }
        let Some(found) = scan.dirs.get(at) else { return Ok(None) };
        Ok(Some(dirent::list(&self.entries_of(found)?).sets.iter().map(name_of).collect()))
    }
    fn free_units(&self) -> u64 {
        self.root().bitmap.as_deref().map_or(0, |bitmap| self.free_in(bitmap).into())
    }
    fn needs(&self, job: &Job<'_>, staging: Option<&Staging>) -> Estimate {
        let copy_units = self.copy_clusters(job);
        let unit = self.boot.cluster_bytes();
        let Ok(scan) = self.scanned() else { return Estimate { copy_units, ..Estimate::default() } };
        let metadata_units = self.growth(scan, job).map_or(0, |growth| growth.clusters());
        // Where there is too little space, every sector of bitmap and table may change.
        let (groups, slack) = match staging {
            Some(staging) => {
                let interim = staging.interim.iter().map(|(_, write)| write);
                let writes = staging.groups.iter().flat_map(|g| &g.writes).chain(interim);
                (writes.map(|w| w.bytes.len() as u64).sum(), staging.slack.as_slice())
            }
            None => (self.boot.fat_bytes().saturating_add(self.boot.bitmap_bytes().saturating_mul(2)), &[][..]),
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

//! What the writers of FAT and exFAT have alike: which clusters directories, linked files and copies get, and which sectors change.

use crate::error::{Result, refused};
use crate::extent::{Extent, LayerId, Offset, Stream, Volume, What};
use crate::fs::fat::grow::copied;
use crate::fs::fat::layout::HEAD;
use crate::fs::fat::space::{Space, runs_of};
use crate::fs::fat::table::{Bits, Run};
use crate::fs::host::{Content, Job, NewKind};
use crate::txn::reuse::{Layout, Range};
use crate::txn::{Copy, Fresh, Staging};

/// A volume whose files lie in clusters.
pub(in crate::fs) trait Clustered {
    /// Which layer it is.
    fn layer(&self) -> LayerId;
    /// Bytes of a cluster, never 0.
    fn unit(&self) -> u64;
    /// The volume's byte at which a cluster begins.
    fn place(&self, cluster: u32) -> u64;
    /// The cluster that begins at this byte; none where none does.
    fn cluster(&self, at: u64) -> Option<u32>;
    /// The number behind the last cluster. The first one is 2.
    fn end(&self) -> u32;
    /// Whether a cluster is nobody's.
    fn is_free(&self, cluster: u32) -> bool;
    /// The sector of 512 bytes at this place, as it is.
    fn sector(&self, at: u64) -> Result<Vec<u8>>;

    /// Whether there is such a cluster.
    fn has(&self, cluster: u32) -> bool {
        (2..self.end()).contains(&cluster)
    }
    /// Places and bytes of runs of clusters.
    fn places(&self, runs: &[Run]) -> Vec<Range> {
        let bytes = |count: u32| u64::from(count).saturating_mul(self.unit());
        runs.iter().map(|(first, count)| (self.place(*first), bytes(*count))).collect()
    }
    /// Clusters that the copies of a job need.
    fn copy_clusters(&self, job: &Job<'_>) -> u64 {
        let sizes = job.tree.entries.iter().filter_map(copied);
        sizes.map(|size| size.div_ceil(self.unit())).fold(0, u64::saturating_add)
    }
    /// Whole sectors: the bytes at this place, and what follows them in the last sector.
    fn filled_up(&self, at: u64, mut bytes: Vec<u8>) -> Result<Vec<u8>> {
        let over = bytes.len().checked_rem(HEAD).unwrap_or(0);
        if over != 0 {
            let last = at.saturating_add(bytes.len().saturating_sub(over) as u64);
            bytes.extend_from_slice(self.sector(last)?.get(over..).unwrap_or_default());
        }
        Ok(bytes)
    }
    /// The sectors in which `new` differs from `old`, of bytes that lie in these places.
    fn changed(&self, places: &[Range], old: &[u8], new: &[u8]) -> Result<Vec<Fresh>> {
        let mut writes: Vec<Fresh> = Vec::new();
        for (from, bytes) in differing(old, new) {
            for (i, sector) in bytes.chunks(HEAD).enumerate() {
                let byte = from.saturating_add(i.saturating_mul(HEAD)) as u64;
                let at = place_of(places, byte).ok_or_else(|| refused("what changes is shorter than it says"))?;
                push_fresh(&mut writes, at, &self.filled_up(at, sector.to_vec())?);
            }
        }
        Ok(writes)
    }
}

/// Clusters for what a relink writes, and what becomes of them.
pub(in crate::fs) struct Supply<'a, F> {
    fs: &'a F,
    /// Clusters of the image that no new file has taken yet.
    image: Bits,
    space: Space,
    /// Where copies go, where clusters of the image are filled.
    given: Option<std::vec::IntoIter<(usize, Vec<Range>)>>,
    /// The new state as far as it is known.
    pub staging: Staging,
}

impl<'a, F: Clustered> Supply<'a, F> {
    /// For so many clusters of directories, and the copies of a job.
    ///
    /// # Errors
    /// [`crate::error::Error::Refused`] where too few are free.
    pub fn new(fs: &'a F, job: &Job<'_>, dirs: u64) -> Result<Self> {
        let free = || (2..fs.end()).filter(|n| fs.is_free(*n));
        let need = dirs.saturating_add(fs.copy_clusters(job));
        let (space, given) = match &job.tree.reuse {
            None => (Space::choose(free(), need), None),
            Some(reuse) => Space::with_image(reuse, free(), dirs, (|n| fs.place(n), |at| fs.cluster(at))).unzip(),
        };
        let space = space.ok_or_else(|| {
            refused(format!(
                "too little space: {need} clusters of {} bytes are needed for directories and copies, {} are free",
                fs.unit(),
                free().count()
            ))
        })?;
        let Layout { copies, moves, .. } = given.unwrap_or_default();
        Ok(Self {
            fs,
            image: Bits::new(fs.end()),
            space,
            given: job.tree.reuse.as_ref().map(|_| copies.into_iter()),
            staging: Staging { moves, ..Staging::default() },
        })
    }
    /// A cluster of the image, which new files may have; false where it was said already.
    pub fn of_image(&mut self, cluster: u32) -> bool {
        self.image.set(cluster)
    }
    /// Clusters for a directory.
    pub fn take(&mut self, count: u32) -> Result<Vec<Run>> {
        self.space.take(count).ok_or_else(|| refused("too little space for directories"))
    }
    /// What is filled was free, or is the image's and nobody else's.
    pub fn fill(&mut self, runs: &[Run]) -> Result<()> {
        let wrong = clusters(runs).find(|n| !self.fs.is_free(*n) && !self.image.clear(*n));
        wrong.map_or(Ok(()), |n| Err(refused(format!("cluster {n} is not free, nor the image's alone"))))
    }
    /// Tells `claim` the clusters and the size of each new file that has bytes, by its position: first those that are linked, then
    /// the copies, which the staging gets.
    pub fn files(&mut self, job: &Job<'_>, mut claim: impl FnMut(usize, &[Run], u64) -> Result<()>) -> Result<()> {
        let unit = self.fs.unit();
        for (at, entry) in job.tree.entries.iter().enumerate() {
            let NewKind::File { size: size @ 1.., content: Content::Linked(extents) } = &entry.kind else { continue };
            let name = || String::from_utf8_lossy(&entry.name).into_owned();
            let runs = clusters_of(self.fs, extents)
                .ok_or_else(|| refused(format!("{}: its extents are no clusters of the host", name())))?;
            let count: u64 = runs.iter().map(|(_, count)| u64::from(*count)).sum();
            let len: u64 = extents.iter().map(|e| e.len).sum();
            if count != size.div_ceil(unit) || len < *size {
                return Err(refused(format!("{}: {count} clusters for {size} bytes", name())));
            }
            if let Some(n) = clusters(&runs).find(|n| !self.image.clear(*n)) {
                let name = name();
                return Err(refused(format!("{name}: cluster {n} is not the image's, or another file's too")));
            }
            claim(at, &runs, *size)?;
            if job.zero_slack {
                self.slack(&runs, *size);
            }
        }
        for at in job.tree.copies() {
            let Some(size) = job.tree.entries.get(at).and_then(copied) else { continue };
            let (runs, to) = match &mut self.given {
                Some(given) => {
                    let to = given.find(|(entry, _)| *entry == at).map(|(_, to)| to).unwrap_or_default();
                    (runs_of(&to, unit, |at| self.fs.cluster(at)), to)
                }
                None => {
                    let runs = self.space.take(u32::try_from(size.div_ceil(unit)).unwrap_or(u32::MAX));
                    let to = runs.as_deref().map(|runs| self.fs.places(runs)).unwrap_or_default();
                    (runs, to)
                }
            };
            let runs = runs.ok_or_else(|| refused("too little space for copies"))?;
            self.fill(&runs)?;
            let to = to.into_iter().map(|(at, len)| (Offset::new(at), len)).collect();
            self.staging.copies.push(Copy { entry: at, size, to });
            claim(at, &runs, size)?;
        }
        Ok(())
    }
    /// The bytes behind the end of a linked file.
    fn slack(&mut self, runs: &[Run], size: u64) {
        let unit = self.fs.unit();
        let last = runs.last().and_then(|(first, count)| first.checked_add(*count)?.checked_sub(1));
        if let (Some(last), Some(used @ 1..)) = (last, size.checked_rem(unit)) {
            let at = self.fs.place(last).saturating_add(used);
            let len = u32::try_from(unit.saturating_sub(used)).unwrap_or(0);
            self.staging.slack.push((Offset::new(at), len));
        }
    }
    /// The bytes of a directory that go to these clusters.
    pub fn write(&mut self, runs: &[Run], bytes: &[u8]) {
        let mut rest = bytes;
        for (at, len) in self.fs.places(runs) {
            let (part, more) = rest.split_at_checked(usize::try_from(len).unwrap_or(usize::MAX)).unwrap_or((rest, &[]));
            push_fresh(&mut self.staging.fresh, at, part);
            rest = more;
        }
    }
}

/// The volume's byte of a byte of something in these places.
fn place_of(places: &[Range], byte: u64) -> Option<u64> {
    let mut rest = byte;
    for (at, len) in places {
        match rest.checked_sub(*len) {
            None => return at.checked_add(rest),
            Some(left) => rest = left,
        }
    }
    None
}

/// Writes in the order of the disk, neighbours in one piece.
pub(in crate::fs) fn in_order(mut writes: Vec<Fresh>) -> Vec<Fresh> {
    writes.sort_by_key(|write| write.at);
    let mut out = Vec::with_capacity(writes.len());
    writes.iter().for_each(|write| push_fresh(&mut out, write.at.get(), &write.bytes));
    out
}

/// The clusters that these extents are in, in order; none where one is not whole clusters from a cluster's start on.
fn clusters_of(fs: &impl Clustered, extents: &[Extent<Stream, Volume>]) -> Option<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    let mut done = 0u64;
    for (i, e) in extents.iter().enumerate() {
        let What::Stored(place) = e.what else { return None };
        let last = i.checked_add(1)? == extents.len();
        if place.layer != fs.layer() || e.start.get() != done || (!last && e.len.checked_rem(fs.unit())? != 0) {
            return None;
        }
        done = done.checked_add(e.len)?;
        let first = fs.cluster(place.offset.get())?;
        let count = u32::try_from(e.len.div_ceil(fs.unit())).ok()?;
        if !fs.has(first.checked_add(count.checked_sub(1)?)?) {
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

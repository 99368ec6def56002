//! The directories of a relink: which are made, which one is added to, what each holds, and how much room that takes.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Result, refused};
use crate::fs::Times;
use crate::fs::asked::printable;
use crate::fs::fat::dirent::{self, DELETED, Found, MAX_SLOTS, SLOT, SLOT_BYTES, Short, UNITS};
use crate::fs::fat::layout::Width;
use crate::fs::fat::names::{Taken, fold, legal, shown};
use crate::fs::fat::read::{Dir, Fat, Scan};
use crate::fs::fat::stamp;
use crate::fs::host::{Content, HostFile, HostName, Job, NewEntry, NewKind};
use crate::fs::utf16;

/// Attributes that a new entry takes over.
const KEPT: u32 = (dirent::READ_ONLY | dirent::HIDDEN | dirent::SYSTEM | dirent::ARCHIVE) as u32;

/// What a new entry leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leads {
    /// A directory, by its position in [`Growth::dirs`].
    Dir(usize),
    /// A file, by its position among the new entries.
    File(usize),
}

/// An entry to be added.
#[derive(Debug)]
pub(super) struct Item {
    /// Its long name.
    pub units: Vec<u16>,
    /// Its entry, but for the first cluster.
    pub short: Short,
    pub leads: Leads,
    /// Slot in its directory at which its long name begins.
    pub slot: usize,
}

impl Item {
    fn slots(&self) -> usize {
        self.units.len().div_ceil(UNITS).saturating_add(1)
    }
    /// Its slots, for an entry that begins at this cluster.
    pub fn encode(&self, cluster: u32) -> Vec<u8> {
        let mut out = dirent::long_slots(&self.units, dirent::checksum(&self.short.name)).concat();
        out.extend_from_slice(&Short { cluster, ..self.short }.encode());
        out
    }
}

/// A directory that is made or added to.
#[derive(Debug, Default)]
pub(super) struct NewDir {
    /// The one that it is in; none for the one that is there already.
    pub parent: Option<usize>,
    pub items: Vec<Item>,
    /// Clusters that it needs beyond those it has.
    pub clusters: u32,
    names: Taken,
    times: Times,
}

/// All of them. The first one is there already.
#[derive(Debug)]
pub(super) struct Growth {
    pub dirs: Vec<NewDir>,
    /// Position of the first one among the directories of the volume.
    pub host_dir: usize,
    /// Old bytes of the directories that change in place, and what becomes of them, by their positions. New clusters of the first
    /// directory are at the end of the new bytes.
    pub edits: BTreeMap<usize, (Vec<u8>, Vec<u8>)>,
}

/// Names of an entry as others see it: the long one, and the 8.3 one.
pub(super) fn names_of(found: &Found) -> Vec<HostName> {
    let plain = shown(&Short { nt: 0, ..found.short }).into_bytes();
    let long = match &found.long {
        Some(units) => utf16::to_wtf8(units),
        None => shown(&found.short).into_bytes(),
    };
    vec![long, plain]
}

impl Fat {
    /// The slots of a directory of this volume.
    pub(super) fn slots_of(&self, dir: &Dir) -> Result<Vec<u8>> {
        let mut faults = Vec::new();
        let bytes = self.dir_bytes(&dir.places, &mut faults);
        faults.into_iter().next().map_or(Ok(bytes), Err)
    }
    pub(super) fn wide(&self) -> bool {
        self.boot.width == Width::Fat32
    }
    /// The deepest directory of a path that is there: its position, and how many names lead to it.
    ///
    /// # Errors
    /// [`Error::Refused`] where a name on the way is a file's.
    pub(super) fn descend(&self, scan: &Scan, path: &[HostName]) -> Result<(usize, usize)> {
        let mut at = 0usize;
        for (depth, name) in path.iter().enumerate() {
            let Some(dir) = scan.dirs.get(at) else { return Err(refused("the host has no root directory")) };
            let listing = dirent::list(&self.slots_of(dir)?, self.wide());
            let wanted = fold(name);
            let is_it = |f: &&Found| names_of(f).iter().any(|n| fold(n) == wanted);
            let Some(found) = listing.found.iter().filter(|f| !f.short.is_dot() && !f.short.is_dot_dot()).find(is_it)
            else {
                return Ok((at, depth));
            };
            let child = scan.dirs.iter().position(|d| d.parent == at && d.first == found.short.cluster && d.first != 0);
            at = child.filter(|_| found.short.is_dir()).ok_or_else(|| {
                refused(format!(
                    "{} on the host is no directory that can be read",
                    printable(&path.get(..=depth).unwrap_or_default().join(&b'/'))
                ))
            })?;
        }
        Ok((at, path.len()))
    }
    /// The slots of the entry set of a file of the image: the position of its directory, the first slot and the one of its 8.3
    /// name.
    pub(super) fn image_slots(&self, scan: &Scan, file: &HostFile) -> Result<(usize, usize, usize)> {
        let entry = scan.tree.entry(file.entry);
        let number = scan.tree.object(entry.object).number;
        let dir = scan.dirs.iter().position(|d| d.object == entry.parent);
        let (at, dir) = dir
            .and_then(|at| scan.dirs.get(at).map(|d| (at, d)))
            .ok_or_else(|| refused("the image has no directory"))?;
        let listing = dirent::list(&self.slots_of(dir)?, self.wide());
        let found = listing.found.iter().find(|f| self.number(Self::slot_at(&dir.places, f.slot)) == number);
        found.map(|f| (at, f.first, f.slot)).ok_or_else(|| refused("the image's directory entry is not where it was"))
    }
    /// The directories that the job makes and adds to, with everything in them but first clusters.
    ///
    /// # Errors
    /// [`Error::Refused`] for what FAT can't hold.
    pub(super) fn growth(&self, scan: &Scan, job: &Job<'_>) -> Result<Growth> {
        let (host_dir, depth) = self.descend(scan, &job.tree.into)?;
        let gone = job.image.files().map(|file| self.image_slots(scan, file)).collect::<Result<Vec<_>>>()?;
        let mut edits = BTreeMap::new();
        for at in gone.iter().map(|(dir, ..)| *dir).chain([host_dir]).collect::<BTreeSet<_>>() {
            let dir = scan.dirs.get(at).ok_or_else(|| refused("the host has no such directory"))?;
            let bytes = self.slots_of(dir)?;
            edits.insert(at, (bytes.clone(), bytes));
        }
        for (dir, first, last) in gone {
            if let Some((_, bytes)) = edits.get_mut(&dir) {
                let set = bytes.as_chunks_mut::<SLOT>().0.get_mut(first..=last).unwrap_or_default();
                for slot in set {
                    let [mark, ..] = slot;
                    *mark = DELETED;
                }
            }
        }
        let mut growth = Growth { dirs: vec![NewDir::default()], host_dir, edits };
        // Directories that only the relink has get the image's times: they were made from it.
        let times = scan.tree.object(job.image.named.object).times;
        growth.dirs.first_mut().into_iter().for_each(|d| d.times = times);
        let mut top = 0usize;
        for name in job.tree.into.get(depth..).unwrap_or_default() {
            top = growth.add_dir(top, name, times, 0, times, self.options.utc_offset)?;
        }
        self.add_entries(&mut growth, job, top, times)?;
        self.place(&mut growth)?;
        Ok(growth)
    }
    fn add_entries(&self, growth: &mut Growth, job: &Job<'_>, top: usize, times: Times) -> Result<()> {
        let zone = self.options.utc_offset;
        // Position among the directories of each new entry that is one.
        let mut dir_of: Vec<Option<usize>> = vec![None; job.tree.entries.len()];
        for (i, entry) in job.tree.entries.iter().enumerate() {
            let parent = match entry.parent {
                None => top,
                Some(p) => dir_of
                    .get(p)
                    .copied()
                    .flatten()
                    .filter(|_| p < i)
                    .ok_or_else(|| refused(format!("{} stands in what is no directory", printable(&entry.name))))?,
            };
            match &entry.kind {
                NewKind::Dir => {
                    let made = growth.add_dir(parent, &entry.name, entry.times, entry.attributes, times, zone)?;
                    dir_of.get_mut(i).into_iter().for_each(|slot| *slot = Some(made));
                }
                NewKind::File { size, .. } => growth.add_file(parent, i, entry, *size, times, zone)?,
                NewKind::Symlink(_) | NewKind::HardLink(_) | NewKind::Special(_) | NewKind::Stream { .. } => {
                    return Err(refused(format!("{}: FAT has no links or special files", printable(&entry.name))));
                }
            }
        }
        Ok(())
    }
    /// Names and places of all entries, and the clusters that their directories need.
    fn place(&self, growth: &mut Growth) -> Result<()> {
        let cluster = self.boot.cluster_bytes().max(1);
        let (_, old) = growth.edits.get(&growth.host_dir).ok_or_else(|| refused("the host has no such directory"))?;
        let fixed = growth.host_dir == 0 && !self.wide();
        let (slots, _) = old.as_chunks::<SLOT>();
        let free = free_runs(slots.iter().map(|[mark, ..]| match *mark {
            0 => Mark::End,
            DELETED => Mark::Free,
            _ => Mark::Used,
        }));
        let listing = dirent::list(old, self.wide());
        for (i, dir) in growth.dirs.iter_mut().enumerate() {
            // Long names first: no 8.3 name may be one of them.
            if i == 0 {
                for found in &listing.found {
                    dir.names.add_short(found.short.name);
                    for name in names_of(found) {
                        dir.names.add_long(&name);
                    }
                }
            }
            for item in &dir.items {
                let name = utf16::to_wtf8(&item.units.iter().flat_map(|u| u.to_le_bytes()).collect::<Vec<_>>());
                if !dir.names.add_long(&name) {
                    return Err(refused(format!(
                        "two entries of one directory would have the name {}",
                        printable(&name)
                    )));
                }
            }
            for item in &mut dir.items {
                let name = utf16::to_wtf8(&item.units.iter().flat_map(|u| u.to_le_bytes()).collect::<Vec<_>>());
                item.short.name = dir
                    .names
                    .make_short(&name)
                    .ok_or_else(|| refused(format!("no 8.3 name is left for {}", printable(&name))))?;
            }
            let needs: Vec<usize> = dir.items.iter().map(Item::slots).collect();
            // In a new directory `.` and `..` come first.
            let (free, have) = if i == 0 { (&free[..], old.len() / SLOT) } else { (&[(2, usize::MAX)][..], 2) };
            let (places, slots) = put_into(&needs, free, have);
            for (item, slot) in dir.items.iter_mut().zip(places) {
                item.slot = slot;
            }
            if slots > MAX_SLOTS {
                return Err(refused(format!("a directory would have {slots} slots, of which FAT has {MAX_SLOTS}")));
            }
            let have = if i == 0 { old.len() as u64 } else { 0 };
            let bytes = (slots as u64).saturating_mul(SLOT_BYTES);
            if i == 0 && fixed && bytes > have {
                return Err(refused(format!(
                    "too little space: the root directory has {} slots, {slots} are needed; choose a directory below it",
                    have / SLOT_BYTES
                )));
            }
            dir.clusters = u32::try_from(bytes.saturating_sub(have).div_ceil(cluster)).unwrap_or(u32::MAX);
        }
        Ok(())
    }
}

/// What is in a slot of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fs) enum Mark {
    /// An entry, or a part of one.
    Used,
    /// Nothing any more.
    Free,
    /// The end: nothing from here on.
    End,
}

/// Free slots of a directory: first and how many; the last run goes on beyond its end.
pub(in crate::fs) fn free_runs(slots: impl ExactSizeIterator<Item = Mark>) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    let mut end = slots.len();
    for (i, mark) in slots.enumerate() {
        match mark {
            Mark::End => {
                end = i;
                break;
            }
            Mark::Free => match runs.last_mut() {
                Some((first, count)) if first.saturating_add(*count) == i => *count = count.saturating_add(1),
                _ => runs.push((i, 1)),
            },
            Mark::Used => {}
        }
    }
    match runs.last_mut() {
        Some((first, count)) if first.saturating_add(*count) == end => *count = usize::MAX,
        _ => runs.push((end, usize::MAX)),
    }
    runs
}

/// Of entries that need so many slots, the first slots: of each the next free ones that are together; and the slots that the
/// directory then has, of which `have` are there.
pub(in crate::fs) fn put_into(needs: &[usize], free: &[(usize, usize)], have: usize) -> (Vec<usize>, usize) {
    let mut runs = free.iter().copied();
    let mut run = runs.next().unwrap_or((have, usize::MAX));
    let mut end = have;
    let mut places = Vec::with_capacity(needs.len());
    for need in needs {
        while run.1 < *need {
            // The last run has no end.
            run = runs.next().unwrap_or((end, usize::MAX));
        }
        places.push(run.0);
        run = (run.0.saturating_add(*need), run.1.saturating_sub(*need));
        end = end.max(run.0);
    }
    (places, end)
}

impl Growth {
    fn add_dir(
        &mut self,
        parent: usize,
        name: &[u8],
        times: Times,
        attributes: u32,
        made: Times,
        zone: i32,
    ) -> Result<usize> {
        let at = self.dirs.len();
        let mut short = entry_of(times, attributes, made, zone);
        short.attr |= dirent::DIRECTORY;
        self.push(parent, name, short, Leads::Dir(at))?;
        self.dirs.push(NewDir { parent: Some(parent), times, ..NewDir::default() });
        Ok(at)
    }
    fn add_file(
        &mut self,
        parent: usize,
        at: usize,
        entry: &NewEntry,
        size: u64,
        made: Times,
        zone: i32,
    ) -> Result<()> {
        let mut short = entry_of(entry.times, entry.attributes, made, zone);
        short.size = u32::try_from(size).map_err(|_| {
            refused(format!("{} has {size} bytes: FAT has files up to 4 GiB - 1", printable(&entry.name)))
        })?;
        self.push(parent, &entry.name, short, Leads::File(at))
    }
    fn push(&mut self, parent: usize, name: &[u8], short: Short, leads: Leads) -> Result<()> {
        let units =
            legal(name).ok_or_else(|| refused(format!("\"{}\" is no name that FAT can have", printable(name))))?;
        let dir = self.dirs.get_mut(parent).ok_or_else(|| refused("a directory is missing"))?;
        dir.items.push(Item { units, short, leads, slot: 0 });
        Ok(())
    }
    /// Clusters for new and longer directories.
    pub fn clusters(&self) -> u64 {
        self.dirs.iter().map(|d| u64::from(d.clusters)).sum()
    }
}

/// `.` and `..` of a new directory, with its own times.
pub(super) fn dots(entry: &Short, own: u32, parent: u32) -> Vec<u8> {
    let like = |dot: Short| Short { name: dot.name, attr: dot.attr, cluster: dot.cluster, nt: 0, size: 0, ..*entry };
    [like(Short::dot(own)).encode(), like(Short::dot_dot(parent)).encode()].concat()
}

/// An entry with these times (`made` where it has none) and attributes.
pub(super) fn entry_of(times: Times, attributes: u32, made: Times, zone: i32) -> Short {
    let or = |first: Option<_>, second: Option<_>| first.or(second).or(made.modified).unwrap_or_default();
    let (modified_date, modified_time, _) = stamp::encode(or(times.modified, times.created), zone);
    let (created_date, created_time, created_fine) = stamp::encode(or(times.created, times.modified), zone);
    let (accessed_date, ..) = stamp::encode(or(times.accessed, times.modified), zone);
    Short {
        attr: u8::try_from(attributes & KEPT).unwrap_or(0),
        created_fine,
        created_time,
        created_date,
        accessed_date,
        modified_time,
        modified_date,
        ..Short::default()
    }
}

/// Bytes of a file, and whether they are to be copied.
pub(in crate::fs) fn copied(entry: &NewEntry) -> Option<u64> {
    match entry.kind {
        NewKind::File { size, content: Content::Copied } if size > 0 => Some(size),
        _ => None,
    }
}

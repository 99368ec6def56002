//! The directories of a relink: which are made, which one is added to, what each holds, and how much room that takes.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::error::{Result, refused};
use crate::fs::Times;
use crate::fs::asked::printable;
use crate::fs::exfat::dirent::{self, Alloc, ENTRY, ENTRY_BYTES, Entry, File, IN_USE, MAX_DIR, Set, Stamp, UNITS};
use crate::fs::exfat::read::{Dir, ExFat, Scan};
use crate::fs::fat::grow::{Mark, free_runs, put_into};
use crate::fs::fat::names::legal;
use crate::fs::host::{HostFile, HostName, Job, NewKind};
use crate::fs::utf16;

/// Attributes that a new entry takes over.
const KEPT: u16 = dirent::READ_ONLY | dirent::HIDDEN | dirent::SYSTEM | dirent::ARCHIVE;

/// What a new entry leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leads {
    /// A directory, by its position in [`Growth::dirs`].
    Dir(usize),
    /// A file, by its position among the new entries.
    File(usize),
}

/// An entry set to be added.
#[derive(Debug)]
pub(super) struct Item {
    /// Its name.
    pub units: Vec<u16>,
    /// What it says, but for its clusters.
    pub file: File,
    pub leads: Leads,
    /// Position of its first entry in its directory.
    pub at: usize,
}

impl Item {
    /// Entries of its set.
    pub fn entries(&self) -> usize {
        self.units.len().div_ceil(UNITS).saturating_add(2)
    }
    /// Its set, for clusters that are there.
    pub fn encode(&self, fs: &ExFat, alloc: Alloc) -> Vec<Entry> {
        let hash = fs.root().up_case.hash(self.units.iter().copied());
        File { alloc, valid: alloc.len, ..self.file }.encode(&self.units, hash)
    }
}

/// A directory that is made or added to.
#[derive(Debug, Default)]
pub(super) struct NewDir {
    pub items: Vec<Item>,
    /// Clusters that it needs beyond those it has.
    pub clusters: u32,
}

/// All of them. The first one is there already.
#[derive(Debug)]
pub(super) struct Growth {
    pub dirs: Vec<NewDir>,
    /// Position of the first one among the directories of the volume.
    pub host_dir: usize,
    /// Old bytes of the directories that change in place, and what becomes of them, by their positions.
    pub edits: BTreeMap<usize, (Vec<u8>, Vec<u8>)>,
}

/// The name of an entry set.
pub(super) fn name_of(set: &Set) -> HostName {
    wtf8(&set.units)
}

fn wtf8(units: &[u16]) -> Vec<u8> {
    utf16::to_wtf8(&units.iter().flat_map(|unit| unit.to_le_bytes()).collect::<Vec<_>>())
}

impl ExFat {
    /// The deepest directory of a path that is there: its position, and how many names lead to it.
    ///
    /// # Errors
    /// [`Error::Refused`] where a name on the way is a file's.
    pub(super) fn descend(&self, scan: &Scan, path: &[HostName]) -> Result<(usize, usize)> {
        let mut at = 0usize;
        let up_case = &self.root().up_case;
        for (depth, name) in path.iter().enumerate() {
            let Some(dir) = scan.dirs.get(at) else { return Err(refused("the host has no root directory")) };
            let listing = dirent::list(&self.entries_of(dir)?);
            let wanted = up_case.fold(name);
            let Some(set) = listing.sets.iter().find(|set| up_case.fold(&name_of(set)) == wanted) else {
                return Ok((at, depth));
            };
            let child = scan.dirs.iter().position(|d| d.parent == at && d.set_at == set.at && d.object != dir.object);
            at = child.filter(|_| set.file.is_dir()).ok_or_else(|| {
                refused(format!(
                    "{} on the host is no directory that can be read",
                    printable(&path.get(..=depth).unwrap_or_default().join(&b'/'))
                ))
            })?;
        }
        Ok((at, path.len()))
    }
    /// The entry set of a file of the image, and the position of its directory.
    pub(super) fn image_set(&self, scan: &Scan, file: &HostFile) -> Result<(usize, Set)> {
        let entry = scan.tree.entry(file.entry);
        let number = scan.tree.object(entry.object).number;
        let at = scan.dirs.iter().position(|d| d.object == entry.parent);
        let (at, dir) = at
            .and_then(|at| scan.dirs.get(at).map(|d| (at, d)))
            .ok_or_else(|| refused("the image has no directory"))?;
        let listing = dirent::list(&self.entries_of(dir)?);
        let found = listing.sets.into_iter().find(|s| self.number(Self::entry_at(&dir.places, s.at)) == number);
        found.map(|set| (at, set)).ok_or_else(|| refused("the image's entry set is not where it was"))
    }
    /// The directories that the job makes and adds to, with everything in them but clusters.
    ///
    /// # Errors
    /// [`Error::Refused`] for what exFAT can't hold.
    pub(super) fn growth(&self, scan: &Scan, job: &Job<'_>) -> Result<Growth> {
        let (host_dir, depth) = self.descend(scan, &job.tree.into)?;
        let gone = job.image.files().map(|file| self.image_set(scan, file)).collect::<Result<Vec<_>>>()?;
        let mut edits = BTreeMap::new();
        for at in gone.iter().map(|(dir, _)| *dir).chain([host_dir]).collect::<BTreeSet<_>>() {
            edits.insert(at, self.unchanged(scan, at)?);
        }
        for (dir, set) in &gone {
            if let Some((_, bytes)) = edits.get_mut(dir) {
                let end = set.at.saturating_add(set.entries);
                let entries = bytes.as_chunks_mut::<ENTRY>().0.get_mut(set.at..end).unwrap_or_default();
                for [kind, ..] in entries {
                    *kind &= !IN_USE;
                }
            }
        }
        let mut growth = Growth { dirs: vec![NewDir::default()], host_dir, edits };
        // Directories that only the relink has get the image's times: they were made from it.
        let times = scan.tree.object(job.image.named.object).times;
        let mut top = 0usize;
        for name in job.tree.into.get(depth..).unwrap_or_default() {
            top = growth.add_dir(top, name, times, 0, times)?;
        }
        add_entries(&mut growth, job, top, times)?;
        self.place(scan, &mut growth)?;
        Ok(growth)
    }
    fn unchanged(&self, scan: &Scan, at: usize) -> Result<(Vec<u8>, Vec<u8>)> {
        let dir = scan.dirs.get(at).ok_or_else(|| refused("the host has no such directory"))?;
        let bytes = self.entries_of(dir)?;
        Ok((bytes.clone(), bytes))
    }
    /// Places of all entry sets, and the clusters that their directories need.
    fn place(&self, scan: &Scan, growth: &mut Growth) -> Result<()> {
        let cluster = self.boot.cluster_bytes().max(1);
        let (_, there) = growth.edits.get(&growth.host_dir).ok_or_else(|| refused("the host has no such directory"))?;
        let (entries, _) = there.as_chunks::<ENTRY>();
        let free = free_runs(entries.iter().map(|[kind, ..]| match kind {
            0 => Mark::End,
            kind if kind & IN_USE == 0 => Mark::Free,
            _ => Mark::Used,
        }));
        let have = entries.len();
        let up_case = &self.root().up_case;
        let mut names: HashSet<Vec<u8>> =
            dirent::list(there).sets.iter().map(|set| up_case.fold(&name_of(set))).collect();
        for (i, dir) in growth.dirs.iter_mut().enumerate() {
            for item in &dir.items {
                let name = wtf8(&item.units);
                if !names.insert(up_case.fold(&name)) {
                    let name = printable(&name);
                    return Err(refused(format!("two entries of one directory would have the name {name}")));
                }
            }
            names.clear();
            let need: Vec<usize> = dir.items.iter().map(Item::entries).collect();
            let (free, have) = if i == 0 { (&free[..], have) } else { (&[(0, usize::MAX)][..], 0) };
            let (places, entries) = put_into(&need, free, have);
            for (item, at) in dir.items.iter_mut().zip(places) {
                item.at = at;
            }
            let bytes = (entries as u64).saturating_mul(ENTRY_BYTES);
            if bytes > MAX_DIR {
                return Err(refused(format!("a directory would have {bytes} bytes, of which exFAT has {MAX_DIR}")));
            }
            let more = bytes.saturating_sub((have as u64).saturating_mul(ENTRY_BYTES)).div_ceil(cluster);
            // A new directory has a cluster even where nothing is in it.
            dir.clusters = u32::try_from(more.max(u64::from(i > 0))).unwrap_or(u32::MAX);
        }
        let grown = growth.dirs.first().is_some_and(|d| d.clusters > 0);
        let dir = scan.dirs.get(growth.host_dir).ok_or_else(|| refused("the host has no such directory"))?;
        if grown && growth.host_dir != 0 && !growth.edits.contains_key(&dir.parent) {
            // Its own entry set says how long it is.
            let parent = self.unchanged(scan, dir.parent)?;
            growth.edits.insert(dir.parent, parent);
        }
        Ok(())
    }
}

/// Says in the parent's bytes how long a directory is now, and where.
pub(super) fn resize(parent: &mut [u8], dir: &Dir, alloc: Alloc) -> Result<()> {
    let listing = dirent::list(parent);
    let set = listing.sets.iter().find(|set| set.at == dir.set_at).filter(|set| set.file.alloc == dir.alloc);
    let set = set.ok_or_else(|| refused("a directory's entry set is not where it was"))?;
    let end = set.at.saturating_add(set.entries);
    let entries = parent.as_chunks_mut::<ENTRY>().0.get_mut(set.at..end).unwrap_or_default();
    dirent::set_alloc(entries, alloc);
    Ok(())
}

fn add_entries(growth: &mut Growth, job: &Job<'_>, top: usize, times: Times) -> Result<()> {
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
                let made = growth.add_dir(parent, &entry.name, entry.times, entry.attributes, times)?;
                dir_of.get_mut(i).into_iter().for_each(|slot| *slot = Some(made));
            }
            NewKind::File { .. } => {
                let file = file_of(entry.times, entry.attributes, times);
                growth.push(parent, &entry.name, file, Leads::File(i))?;
            }
            NewKind::Symlink(_) | NewKind::HardLink(_) | NewKind::Special(_) | NewKind::Stream { .. } => {
                return Err(refused(format!("{}: exFAT has no links or special files", printable(&entry.name))));
            }
        }
    }
    Ok(())
}

impl Growth {
    fn add_dir(&mut self, parent: usize, name: &[u8], times: Times, attributes: u32, made: Times) -> Result<usize> {
        let at = self.dirs.len();
        let mut file = file_of(times, attributes, made);
        file.attributes |= dirent::DIRECTORY;
        self.push(parent, name, file, Leads::Dir(at))?;
        self.dirs.push(NewDir::default());
        Ok(at)
    }
    fn push(&mut self, parent: usize, name: &[u8], file: File, leads: Leads) -> Result<()> {
        let units =
            legal(name).ok_or_else(|| refused(format!("\"{}\" is no name that exFAT can have", printable(name))))?;
        let dir = self.dirs.get_mut(parent).ok_or_else(|| refused("a directory is missing"))?;
        dir.items.push(Item { units, file, leads, at: 0 });
        Ok(())
    }
    /// Clusters for new and longer directories.
    pub fn clusters(&self) -> u64 {
        self.dirs.iter().map(|d| u64::from(d.clusters)).sum()
    }
}

/// What the entry set of something with these times (`made` where it has none) and attributes says.
pub(super) fn file_of(times: Times, attributes: u32, made: Times) -> File {
    let or =
        |first: Option<_>, second: Option<_>| Stamp::encode(first.or(second).or(made.modified).unwrap_or_default());
    let accessed = or(times.accessed, times.modified);
    File {
        attributes: u16::try_from(attributes & u32::from(KEPT)).unwrap_or(0),
        created: or(times.created, times.modified),
        modified: or(times.modified, times.created),
        accessed: Stamp { fine: 0, ..accessed },
        ..File::default()
    }
}

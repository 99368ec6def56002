//! NTFS as a host: what it can hold, what is known of it, and the way to the rooms that do the work.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::extent::{ReadAt, Volume};
use crate::fs::asked::printable;
use crate::fs::host::{Content, Estimate, Host, HostImage, HostName, Job, NameRules, NewKind, Rules};
use crate::fs::ntfs::census::Census;
use crate::fs::ntfs::encode::capacity;
use crate::fs::ntfs::extras::Keeper;
use crate::fs::ntfs::layout::{EXTEND, FIRST_USER, ROOT};
use crate::fs::ntfs::old_dir::OldDir;
use crate::fs::ntfs::read::Ntfs;
use crate::fs::ntfs::upcase::UpCase;
use crate::fs::ntfs::wanted::MAX_PACKED;
use crate::fs::ntfs::{audit, link, refuse};
use crate::fs::{FileSystem, Kind, SECURITY, Tree, utf16};
use crate::txn::{SECTOR, Staging};

/// Bytes of a record that are kept from streams: times, a name of usual length, security.
const INLINE_BESIDE: u64 = 0xF0;

/// What a host is known to be, read once.
pub struct State {
    /// Everything in it.
    pub tree: Tree,
    /// Records and clusters.
    pub census: Census,
    /// Its table of upper case.
    pub up: UpCase,
}

impl State {
    /// Reads it.
    ///
    /// # Errors
    /// Where that can't be.
    pub fn read(ntfs: &Ntfs) -> Result<Self> {
        let (tree, census) = rayon::join(|| ntfs.walk(), || Census::take(&ntfs.reader));
        Ok(Self { tree: tree?, census: census?, up: UpCase::load(&ntfs.reader)? })
    }
    /// The record of `$Extend\$Reparse`, where there is one.
    pub fn reparse_index(&self) -> Option<u64> {
        let extend = self.tree.objects().find(|(_, o)| o.number == EXTEND)?.0;
        let entry = self.tree.child(extend, b"$Reparse")?;
        Some(self.tree.object(self.tree.entry(entry).object).number)
    }
    /// The record of the last directory on the way that is there, and how many names lead to it.
    ///
    /// # Errors
    /// Where something on the way is no directory, or the file system's own.
    pub fn descend(&self, names: &[HostName]) -> Result<(u64, usize)> {
        let tree = &self.tree;
        let mut at = tree.root();
        for (depth, name) in names.iter().enumerate() {
            let wanted = self.folded(name);
            let Some(entry) = tree.child_by(at, name, |a, _| self.folded(a) == wanted) else {
                return Ok((tree.object(at).number, depth));
            };
            let object = tree.entry(entry).object;
            let about = tree.object(object);
            if about.kind != Kind::Dir || (about.number < FIRST_USER && about.number != ROOT) || about.system {
                return Err(Error::Refused(format!(
                    "{} is no directory of the host that may be written",
                    printable(name)
                )));
            }
            at = object;
        }
        Ok((tree.object(at).number, names.len()))
    }
    fn folded(&self, name: &[u8]) -> Vec<u16> {
        self.up.fold(&utf16::from_wtf8(name).unwrap_or_default())
    }
}

impl Ntfs {
    /// What the host is known to be.
    pub(super) fn state(&self) -> Result<&State> {
        self.state.get_or_init(|| State::read(self)).as_ref().map_err(Error::again)
    }
    fn copy_units(&self, job: &Job<'_>) -> u64 {
        let size = |kind: &NewKind| match kind {
            NewKind::File { size, content: Content::Copied }
            | NewKind::Stream { size, content: Content::Copied, .. } => size.div_ceil(self.reader.boot.cluster),
            _ => 0,
        };
        job.tree.entries.iter().map(|e| size(&e.kind)).fold(0, u64::saturating_add)
    }
    /// What a tree needs at most, where it can't be built for lack of space.
    fn worst(&self, job: &Job<'_>) -> (u64, u64) {
        let boot = &self.reader.boot;
        let record = boot.record as u64;
        let mut bytes = 0u64;
        let mut dirs = 2u64;
        for entry in &job.tree.entries {
            let runs = match &entry.kind {
                NewKind::File { content: Content::Linked(extents) | Content::Packed { extents, .. }, .. }
                | NewKind::Stream { content: Content::Linked(extents) | Content::Packed { extents, .. }, .. } => {
                    extents.len() as u64
                }
                NewKind::Dir => {
                    dirs = dirs.saturating_add(1);
                    0
                }
                _ => 0,
            };
            // Two records for any file; 40 pieces of up to 20 bytes in each further one, and its share of a list.
            let records = runs.div_ceil(40).saturating_add(2);
            bytes = bytes.saturating_add(records.saturating_mul(record.saturating_add(64)));
            bytes = bytes.saturating_add((entry.name.len() as u64).saturating_mul(4).saturating_add(0xC0));
        }
        let block = (boot.index_block as u64).max(boot.cluster);
        let units = bytes
            .div_ceil(boot.cluster)
            .saturating_add(dirs.saturating_mul(block.div_ceil(boot.cluster)).saturating_mul(2));
        (units.saturating_add(16), bytes.saturating_mul(2).saturating_add(boot.clusters() / 8))
    }
}

impl Host for Ntfs {
    fn rules(&self) -> Rules {
        let cluster = self.reader.boot.cluster;
        Rules {
            unit: cluster,
            units_at: 0,
            max_file: 1 << 44,
            holes: true,
            streams: true,
            hard_links: true,
            symlinks: true,
            special: true,
            xattrs: true,
            // The rest of a record is for the name, times and security.
            inline: (capacity(self.reader.boot.record) as u64).saturating_sub(INLINE_BESIDE),
            valid: true,
            packed: if cluster <= MAX_PACKED { cluster.saturating_mul(16) } else { 0 },
            reparse: true,
            security: true,
            slack_shows: false,
            names: NameRules::Win32,
        }
    }
    fn refusals(&self, image: &HostImage) -> Result<Vec<String>> {
        refuse::refusals(self, image)
    }
    fn fold(&self, name: &[u8]) -> Vec<u8> {
        match self.state() {
            Ok(state) => state.folded(name).iter().flat_map(|u| u.to_le_bytes()).collect(),
            // Such a host is refused.
            Err(_) => name.to_ascii_uppercase(),
        }
    }
    fn names_in(&self, dir: &[HostName]) -> Result<Option<Vec<HostName>>> {
        let (number, depth) = self.state()?.descend(dir)?;
        if depth < dir.len() {
            return Ok(None);
        }
        // The index also has the short twins of names.
        let keys = OldDir::read(&self.reader, number)?.keys;
        Ok(Some(keys.iter().map(|k| utf16::to_wtf8(k.value.get(0x42..).unwrap_or_default())).collect()))
    }
    fn free_units(&self) -> u64 {
        let clusters = self.reader.context(0).clusters;
        self.state().map_or(0, |s| s.census.clusters.clear_runs(clusters).iter().map(|r| r.len).sum())
    }
    fn needs(&self, job: &Job<'_>, staging: Option<&Staging>) -> Estimate {
        let copy_units = self.copy_units(job);
        let unit = self.reader.boot.cluster;
        let (metadata_units, changed, kept) = match staging {
            Some(staging) => {
                let filled: u64 = staging.filled.iter().map(|(_, len)| len.div_ceil(unit)).sum();
                let writes = staging.groups.iter().flat_map(|g| &g.writes).chain(staging.interim.iter().map(|i| &i.1));
                let changed: u64 = writes.map(|w| w.bytes.len() as u64).sum();
                let kept: u64 = staging.slack.iter().map(|(_, len)| u64::from(*len).saturating_add(1088)).sum();
                (filled.saturating_sub(copy_units), changed, kept)
            }
            None => {
                let (units, changed) = self.worst(job);
                (units, changed, 0)
            }
        };
        let units = metadata_units.saturating_add(copy_units);
        Estimate {
            metadata_units,
            copy_units,
            metadata_bytes: metadata_units.saturating_mul(unit).saturating_add(changed),
            // Old and new contents, and what says where they belong.
            journal_bytes: changed
                .saturating_mul(2)
                .saturating_add((changed / SECTOR).saturating_mul(64))
                .saturating_add(kept)
                .saturating_add(units.saturating_mul(32))
                .saturating_add(64 << 10),
        }
    }
    fn left_out(&self, job: &Job<'_>) -> Vec<(usize, Vec<u8>)> {
        let Ok(mut keeper) = self.state().and_then(|state| link::keeper(self, state, job)) else { return Vec::new() };
        let mut out = Vec::new();
        for (at, entry) in job.tree.entries.iter().enumerate() {
            for (name, value) in &entry.xattrs {
                if !Keeper::keeps(name, value) {
                    out.push((at, name.clone()));
                }
            }
            if entry.security.as_ref().is_some_and(|d| keeper.security(d).is_none()) {
                out.push((at, SECURITY.to_vec()));
            }
        }
        out
    }
    fn new_state(&self, job: &Job<'_>) -> Result<Staging> {
        link::build(self, self.state()?, job)
    }
    fn audit(&self, after: Arc<dyn ReadAt<Volume>>, job: &Job<'_>, staging: &Staging) -> Result<()> {
        audit::audit(self, after, job, staging)
    }
}

//! The reader: the table as a whole, directories level by level in the order of the disk, then every chain.

use std::sync::{Arc, OnceLock};

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::extent::{Encoding, Layer, Map, MapLayer, Offset, ReadAt, Stream, Volume, What};
use crate::fs::fat::dirent::{self, Found, Listing, MAX_SLOTS, SLOT, SLOT_BYTES, Short};
use crate::fs::fat::layout::{Boot, FsInfo, STATE_DIRTY, STATE_ERRORS, Width, fields};
use crate::fs::fat::supply::Clustered;
use crate::fs::fat::table::{Chain, Claims, Table};
use crate::fs::fat::{names, probe, stamp};
use crate::fs::host::Host;
use crate::fs::utf16;
use crate::fs::{Facts, FileSystem, Form, Kind, NewStream, Object, ObjectId, ReadOptions, StreamId, Times};
use crate::fs::{TimeUnit, Tree, TreeBuilder};

/// Bytes that are read at once when a table is loaded.
const CHUNK: u64 = 4 << 20;
/// Bytes that are read at once where a chunk can't be.
const PIECE: u64 = 4096;
/// Number of the root directory, as The Sleuth Kit numbers FAT's entries: 2, and from 3 on slot by slot from the start
/// of the root directory (FAT12, FAT16) or of the data (FAT32).
const ROOT_NUMBER: u64 = 2;

/// A FAT volume.
pub struct Fat {
    pub(super) volume: Arc<dyn ReadAt<Volume>>,
    pub(super) boot: Boot,
    /// Whether the boot sector at the start of the volume is the one that was used.
    pub(super) primary: bool,
    pub(super) table: Table,
    /// Parts of the tables that could not be read.
    pub(super) table_faults: Vec<String>,
    pub(super) options: ReadOptions,
    scan: OnceLock<Result<Scan, String>>,
}

/// Where a directory lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dir {
    /// Its object.
    pub object: ObjectId,
    /// Position of its parent among the directories; its own for the root.
    pub parent: usize,
    /// First cluster; 0 for the fixed root of FAT12 and FAT16.
    pub first: u32,
    /// Places and bytes on the volume.
    pub places: Vec<(u64, u64)>,
}

/// A walk, with what only a host needs to know.
#[derive(Debug)]
pub(super) struct Scan {
    pub tree: Tree,
    /// Directories; the root is the first one.
    pub dirs: Vec<Dir>,
    /// Clusters that have an owner.
    pub claims: Claims,
    /// What is not as it must be though no byte is lost by it.
    pub oddities: Vec<String>,
    /// Slots of long names without an entry.
    pub orphans: usize,
}

/// A file whose chain is yet to be followed.
struct File {
    object: ObjectId,
    first: u32,
    size: u32,
    at: u64,
}

/// The walk in the making.
struct Walk<'f> {
    fat: &'f Fat,
    tree: TreeBuilder,
    dirs: Vec<Dir>,
    claims: Claims,
    files: Vec<File>,
    oddities: Vec<String>,
    orphans: usize,
}

impl Fat {
    /// Opens the volume where it is FAT; none where it is not.
    ///
    /// # Errors
    /// None beyond those of the probe: a table that can't be read is a problem of the walk.
    pub fn open(volume: Arc<dyn ReadAt<Volume>>, options: ReadOptions) -> Result<Option<Self>> {
        let Some(found) = probe::probe(&*volume)? else { return Ok(None) };
        let boot = found.boot;
        let mut faults = Vec::new();
        let active = boot.active_fat();
        let order = std::iter::once(active).chain((0..boot.fats).filter(|n| *n != active && boot.mirrored()));
        let table = load(&*volume, &boot, &order.collect::<Vec<_>>(), &mut faults);
        let table = Table::new(table, boot.width, boot.clusters);
        let primary = found.at == 0;
        Ok(Some(Self { volume, boot, primary, table, table_faults: faults, options, scan: OnceLock::new() }))
    }
    /// Bytes of a table that hold entries.
    pub(super) fn table_len(&self) -> u64 {
        self.boot.width.bytes_for(u64::from(self.boot.clusters).saturating_add(2))
    }
    /// The walk, kept.
    pub(super) fn scanned(&self) -> Result<&Scan> {
        self.scan
            .get_or_init(|| self.scan().map_err(|e| e.to_string()))
            .as_ref()
            .map_err(|e| Error::Unsupported(e.clone()))
    }
    /// Walks the volume.
    pub(super) fn scan(&self) -> Result<Scan> {
        let mut walk = Walk {
            fat: self,
            tree: TreeBuilder::new(),
            dirs: Vec::new(),
            claims: Claims::new(&self.table),
            files: Vec::new(),
            oddities: Vec::new(),
            orphans: 0,
        };
        for fault in &self.table_faults {
            walk.tree.problem(None, &Error::Unsupported(fault.clone()));
        }
        if self.boot.end() > self.volume.len() {
            let expected = format!("{} bytes of the volume, which has {}", self.boot.end(), self.volume.len());
            walk.tree.problem(None, &Error::corrupt("FAT boot sector", Offset::<Volume>::new(0x20), expected));
        }
        let root = walk.tree.object(Object {
            kind: Kind::Dir,
            number: ROOT_NUMBER,
            times: Times::default(),
            attributes: 0,
            mode: None,
            owner: None,
            system: false,
        });
        if self.boot.width == Width::Fat32 {
            walk.directory(root, 0, self.boot.root_cluster, Offset::new(0x2C));
        } else {
            walk.dirs.push(Dir {
                object: root,
                parent: 0,
                first: 0,
                places: vec![(self.boot.root_at(), self.boot.root_bytes())],
            });
        }
        let mut done = 0usize;
        while done < walk.dirs.len() {
            done = walk.level(done);
        }
        walk.streams();
        Ok(Scan {
            tree: walk.tree.finish(root),
            dirs: walk.dirs,
            claims: walk.claims,
            oddities: walk.oddities,
            orphans: walk.orphans,
        })
    }
    /// Clusters at which a directory's chain is given up: twice what its 65,536 slots need.
    fn dir_limit(&self) -> u32 {
        let most = ((MAX_SLOTS * SLOT) as u64).div_ceil(self.boot.cluster_bytes().max(1)).saturating_mul(2);
        u32::try_from(most).unwrap_or(u32::MAX)
    }
    /// The bytes of a directory. What can't be read is taken as free slots, and noted.
    pub(super) fn dir_bytes(&self, places: &[(u64, u64)], faults: &mut Vec<Error>) -> Vec<u8> {
        let mut out = Vec::new();
        for (at, len) in places {
            let whole = usize::try_from(*len).map_err(|_| Error::past_end(Offset::<Volume>::new(*at), *len, 0));
            match whole.and_then(|len| self.volume.read_vec(Offset::new(*at), len)) {
                Ok(bytes) => out.extend_from_slice(&bytes),
                Err(first) => {
                    faults.push(first);
                    let mut from = *at;
                    let end = at.saturating_add(*len);
                    while from < end {
                        let part = self.volume.read_vec(Offset::new(from), 512);
                        out.extend_from_slice(&part.unwrap_or_else(|_| vec![dirent::DELETED; 512]));
                        from = from.saturating_add(512);
                    }
                }
            }
        }
        out
    }
    /// The volume's byte of a slot of a directory.
    pub(super) fn slot_at(places: &[(u64, u64)], slot: usize) -> u64 {
        let mut rest = (slot as u64).saturating_mul(SLOT_BYTES);
        for (at, len) in places {
            match rest.checked_sub(*len) {
                None => return at.saturating_add(rest),
                Some(left) => rest = left,
            }
        }
        0
    }
    /// The number of the entry in the slot at this byte.
    pub(super) fn number(&self, at: u64) -> u64 {
        (at.saturating_sub(self.boot.root_at()) / SLOT_BYTES).saturating_add(3)
    }
    /// Whether the volume was closed cleanly, and whether the medium had no errors.
    pub(super) fn state(&self) -> (bool, bool) {
        let (clean, whole) = self.boot.width.good_bits();
        let entry = self.table.get(1);
        (
            self.boot.state & STATE_DIRTY == 0 && entry & clean == clean,
            self.boot.state & STATE_ERRORS == 0 && entry & whole == whole,
        )
    }
    /// FSInfo, where there is one and it is whole.
    pub(super) fn fsinfo(&self) -> Option<FsInfo> {
        let at = self.boot.sector_at(self.boot.fsinfo?);
        let sector = self.volume.read_vec(Offset::new(at), 512).ok()?;
        FsInfo::decode(fields("FSInfo", at, &sector)).ok()
    }
    fn times(&self, short: &Short) -> Times {
        let zone = self.options.utc_offset;
        Times {
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
        }
    }
}

/// The bytes of a table that hold entries, each chunk from the first of these tables that it can be read of. What none
/// gives is taken as free, and noted.
fn load(volume: &dyn ReadAt<Volume>, boot: &Boot, order: &[u32], faults: &mut Vec<String>) -> Vec<u8> {
    let len = boot.width.bytes_for(u64::from(boot.clusters).saturating_add(2)).min(boot.fat_bytes());
    // To the end of `out`, which has room for it; whether it could be read.
    let read = |from: u64, part: u64, out: &mut Vec<u8>| {
        let start = out.len();
        let Some(end) = usize::try_from(part).ok().and_then(|size| start.checked_add(size)) else { return false };
        out.resize(end, 0);
        let room = out.get_mut(start..).unwrap_or_default();
        let mut places = order.iter().map(|fat| Offset::new(boot.fat_at(*fat).saturating_add(from)));
        places.any(|at| volume.read_at(at, room).is_ok()) || {
            out.truncate(start);
            false
        }
    };
    let mut from = 0u64;
    // Nothing is kept for what lies beyond the end of a volume that was cut off.
    let len = len.min(volume.len().saturating_sub(boot.fat_at(0)));
    let mut out = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
    while from < len {
        let chunk = len.saturating_sub(from).min(CHUNK);
        let end = from.saturating_add(chunk);
        if !read(from, chunk, &mut out) {
            let mut at = from;
            while at < end {
                let part = end.saturating_sub(at).min(PIECE);
                if !read(at, part, &mut out) {
                    if faults.len() < 100 {
                        faults.push(format!("FAT: {part} bytes from its byte {at:#x} on can't be read"));
                    }
                    out.resize(out.len().saturating_add(usize::try_from(part).unwrap_or(0)), 0);
                }
                at = at.saturating_add(part);
            }
        }
        from = end;
    }
    out
}

impl Walk<'_> {
    /// Follows the chain of a directory, and notes where it lies.
    fn directory(&mut self, object: ObjectId, parent: usize, first: u32, at: Offset<Volume>) {
        let chain = self.claims.follow(&self.fat.table, first, self.fat.dir_limit(), false);
        if let Some(fault) = &chain.fault {
            self.tree.problem(Some(object), &Error::corrupt("directory entry", at, fault.to_string()));
        }
        let places = self.fat.places(&chain.runs);
        self.dirs.push(Dir { object, parent, first, places });
    }
    /// Lists the directories from `from` on that are known so far, in the order of the disk; gives the first one that is not.
    fn level(&mut self, from: usize) -> usize {
        let to = self.dirs.len();
        if let Some(level) = self.dirs.get_mut(from..to) {
            // The root is alone in its level and stays the first; no directory of a later one has children yet.
            level.sort_by_key(|dir| dir.places.first().map(|(at, _)| *at));
        }
        let wide = self.fat.boot.width == Width::Fat32;
        let fat = self.fat;
        let listed: Vec<(Listing, Vec<Error>)> = self
            .dirs
            .get(from..to)
            .unwrap_or_default()
            .par_iter()
            .map(|dir| {
                let mut faults = Vec::new();
                let bytes = fat.dir_bytes(&dir.places, &mut faults);
                (dirent::list(&bytes, wide), faults)
            })
            .collect();
        for (at, (listing, faults)) in (from..to).zip(listed) {
            let Some(dir) = self.dirs.get(at).cloned() else { continue };
            for fault in &faults {
                self.tree.problem(Some(dir.object), fault);
            }
            self.orphans = self.orphans.saturating_add(listing.orphans);
            for found in &listing.found {
                self.entry(at, &dir, found);
            }
        }
        to
    }
    fn entry(&mut self, dir_at: usize, dir: &Dir, found: &Found) {
        let short = &found.short;
        let at = Fat::slot_at(&dir.places, found.slot);
        if short.is_dot() || short.is_dot_dot() {
            self.dots(dir, short, at);
            return;
        }
        let mut name = match &found.long {
            Some(units) => utf16::to_wtf8(units),
            None => names::shown(short).into_bytes(),
        };
        if found.long.is_some() && (name.contains(&b'/') || name == b"." || name == b"..") {
            let expected = "a long name without a slash that is neither . nor .., took the 8.3 name";
            self.tree.note(None, &Error::corrupt("directory entry", Offset::<Volume>::new(at), expected));
            name = names::shown(short).into_bytes();
        }
        if name.is_empty() {
            let error = Error::corrupt("directory entry", Offset::<Volume>::new(at), "a name");
            self.tree.note(None, &error);
            name = format!("unnamed-{at:x}").into_bytes();
        }
        let kind = if short.is_dir() { Kind::Dir } else { Kind::File };
        let object = self.tree.object(Object {
            kind,
            number: self.fat.number(at),
            times: self.fat.times(short),
            attributes: u32::from(short.attr & !dirent::DIRECTORY),
            mode: None,
            owner: None,
            system: false,
        });
        self.tree.entry(dir.object, &name, object);
        if short.is_dir() {
            if short.size != 0 || short.attr & dirent::LABEL != 0 {
                self.oddities.push(format!("the directory entry at {at:#x} has a size or is a label"));
            }
            self.directory(object, dir_at, short.cluster, Offset::new(at));
        } else {
            self.files.push(File { object, first: short.cluster, size: short.size, at });
        }
    }
    /// Checks `.` and `..`; nothing is lost where they are wrong.
    fn dots(&mut self, dir: &Dir, short: &Short, at: u64) {
        let parent = self.dirs.get(dir.parent).filter(|_| dir.parent != 0).map_or(0, |p| p.first);
        let (name, expected) = if short.is_dot() { (".", dir.first) } else { ("..", parent) };
        if short.cluster != expected || !short.is_dir() {
            self.oddities
                .push(format!("the entry {name} at {at:#x} leads to cluster {}, not {expected}", short.cluster));
        }
    }
    /// Follows the chains of all files.
    fn streams(&mut self) {
        let cluster = self.fat.boot.cluster_bytes();
        let layer = self.fat.volume.id();
        for file in std::mem::take(&mut self.files) {
            let size = u64::from(file.size);
            let mut chain = Chain::default();
            if file.first != 0 {
                chain = self.claims.follow(&self.fat.table, file.first, u32::MAX, true);
            }
            let need = size.div_ceil(cluster.max(1));
            let have = u64::from(chain.clusters);
            if file.first != 0 && file.size == 0 {
                self.oddities.push(format!("the empty file at {:#x} has clusters", file.at));
            }
            if chain.fault.is_some() || have < need {
                let expected = match &chain.fault {
                    Some(fault) => fault.to_string(),
                    None => format!("a chain of {need} clusters for {size} bytes, not {have}"),
                };
                let error = Error::corrupt("directory entry", Offset::<Volume>::new(file.at), expected);
                self.tree.problem(Some(file.object), &error);
            }
            let mut map = Map::<Stream>::new();
            for (at, len) in self.fat.places(&chain.runs) {
                // A volume that was cut off has no bytes for its last clusters.
                let there = self.fat.volume.len().saturating_sub(at).min(len);
                map.push_stored(there, layer, at);
                map.push(len.saturating_sub(there), What::Encoded(Encoding::Unreadable));
            }
            map.push(size.saturating_sub(map.len()), What::Encoded(Encoding::Unreadable));
            let new = NewStream { name: None, size, valid: size, form: Form::Plain, locator: file.first.into() };
            self.tree.stream(file.object, new, map.extents().iter().map(|e| (e.len, e.what)));
        }
    }
}

impl FileSystem for Fat {
    fn facts(&self) -> Facts {
        let boot = &self.boot;
        let label = match self.root_label().or(boot.label) {
            Some(label) if &label != b"NO NAME    " => {
                let short = Short { name: label, ..Short::default() };
                let (mut base, ext) = short.parts();
                if !ext.is_empty() {
                    base.resize(8, b' ');
                    base.extend_from_slice(&ext);
                }
                names::from_oem(&base)
            }
            _ => String::new(),
        };
        let mut remarks = Vec::new();
        if !self.primary {
            remarks.push("the boot sector is damaged: its copy was used".into());
        }
        if boot.short_table {
            remarks.push(format!("the table has room for {} clusters only, fewer than the volume has", boot.clusters));
        }
        if boot.width == Width::Fat32 && Width::of(boot.clusters.into()) != Width::Fat32 {
            remarks.push("it has the form of FAT32 with fewer clusters than FAT32 has".into());
        }
        let (clean, whole) = self.state();
        if !whole {
            remarks.push("a driver noted errors of the medium".into());
        }
        Facts {
            kind: boot.width.kind(),
            label,
            serial: boot.serial.map_or_else(String::new, |n| format!("{:04X}-{:04X}", n >> 16, n & 0xFFFF)),
            unit: boot.cluster_bytes(),
            units: boot.clusters.into(),
            free_units: self.table_faults.is_empty().then(|| self.table.free().into()),
            clean: Some(clean && self.primary),
            remarks,
        }
    }
    fn walk(&self) -> Result<Tree> {
        Ok(self.scan()?.tree)
    }
    fn open(&self, tree: &Tree, stream: StreamId) -> Result<Arc<dyn Layer<Stream>>> {
        Ok(Arc::new(MapLayer::new(tree.map(stream), vec![Arc::clone(&self.volume)])?))
    }
    fn as_host(&self) -> Option<&dyn Host> {
        Some(self)
    }
}

impl Fat {
    /// The label in the root directory.
    fn root_label(&self) -> Option<[u8; 11]> {
        let places = if self.boot.width == Width::Fat32 {
            let chain = Claims::new(&self.table).follow(&self.table, self.boot.root_cluster, self.dir_limit(), false);
            self.places(&chain.runs)
        } else {
            vec![(self.boot.root_at(), self.boot.root_bytes())]
        };
        let bytes = self.dir_bytes(&places, &mut Vec::new());
        dirent::list(&bytes, self.boot.width == Width::Fat32).labels.first().copied()
    }
}

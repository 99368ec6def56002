//! The reader: the root with bitmap and up-case table, directories level by level in the order of the disk, then every
//! file's clusters.

use std::sync::{Arc, OnceLock};

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::extent::{Encoding, Layer, Map, MapLayer, Offset, ReadAt, Stream, Volume, What};
use crate::fs::exfat::dirent::{self, Alloc, ENTRY, ENTRY_BYTES, Listing, MAX_DIR, POSSIBLE, Set};
use crate::fs::exfat::layout::{Boot, DIRTY, MEDIA_FAILURE, table_checksum};
use crate::fs::exfat::probe::Probed;
use crate::fs::exfat::table::Table;
use crate::fs::exfat::upcase::UpCase;
use crate::fs::fat::supply::Clustered;
use crate::fs::fat::table::{Chain, Claims, Fault, Links, Next, Run};
use crate::fs::host::Host;
use crate::fs::utf16;
use crate::fs::{Facts, FileSystem, Form, Kind, NewStream, Object, ObjectId, ReadOptions, StreamId, Times};
use crate::fs::{TimeUnit, Tree, TreeBuilder};

/// Bytes of the longest up-case table: one that is not compressed.
const MAX_UP_CASE: u64 = 128 << 10;
/// Bytes of a directory that are read at once.
const PIECE: u64 = 1 << 20;
/// Number of the root directory, as The Sleuth Kit numbers the entries: 2, and from 3 on entry by entry from the start of
/// the clusters.
const ROOT_NUMBER: u64 = 2;
/// Byte of the boot sector where the root's first cluster stands.
const ROOT_AT: u64 = 0x60;

/// An exFAT volume.
pub struct ExFat {
    pub(super) volume: Arc<dyn ReadAt<Volume>>,
    pub(super) boot: Boot,
    /// Whether the boot sector at the start of the volume is the one that was used.
    pub(super) primary: bool,
    /// Whether the checksum of the boot region is right.
    pub(super) sound: bool,
    pub(super) table: Table,
    pub(super) options: ReadOptions,
    root: OnceLock<Root>,
    scan: OnceLock<Result<Scan, String>>,
}

/// Where a directory lies, and where its own entry set is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dir {
    /// Its object.
    pub object: ObjectId,
    /// Position of its parent among the directories; its own for the root.
    pub parent: usize,
    /// Position of its entry set in the parent; 0 for the root.
    pub set_at: usize,
    /// Where its clusters are by its entry set; for the root, its first cluster with the bytes of its chain.
    pub alloc: Alloc,
    /// Its clusters.
    pub runs: Vec<Run>,
    /// Places and bytes on the volume.
    pub places: Vec<(u64, u64)>,
}

/// What the root directory says of the volume.
pub(super) struct Root {
    pub listing: Listing,
    pub up_case: UpCase,
    /// The bitmap in use; none where it can't be read.
    pub bitmap: Option<Vec<u8>>,
    /// Where its clusters are.
    pub bitmap_places: Vec<(u64, u64)>,
    /// What is wrong with these.
    pub faults: Vec<String>,
}

/// A walk, with what only a host needs to know.
#[derive(Debug)]
pub(super) struct Scan {
    pub tree: Tree,
    /// Directories; the root is the first one.
    pub dirs: Vec<Dir>,
    /// Clusters that have an owner: bitmap, up-case table, directories, files.
    pub claims: Claims,
    /// What is not as it must be though no byte is lost by it.
    pub oddities: Vec<String>,
}

/// A file whose clusters are yet to be found.
struct File {
    object: ObjectId,
    file: dirent::File,
    at: u64,
}

/// The walk in the making.
struct Walk<'f> {
    fs: &'f ExFat,
    root: &'f Root,
    tree: TreeBuilder,
    dirs: Vec<Dir>,
    claims: Claims,
    files: Vec<File>,
    oddities: Vec<String>,
}

impl ExFat {
    /// The volume with this boot sector. Nothing else is read yet.
    pub(super) fn new(volume: Arc<dyn ReadAt<Volume>>, found: Probed, options: ReadOptions) -> Self {
        let boot = found.boot;
        // Nothing is kept for clusters beyond the end of a volume that was cut off.
        let there = volume.len().saturating_sub(boot.heap_at()).div_ceil(boot.cluster_bytes().max(1));
        let there = u32::try_from(there).unwrap_or(u32::MAX).min(boot.clusters);
        let table = Table::new(Arc::clone(&volume), boot.fat_at(boot.active()), there);
        let (root, scan) = (OnceLock::new(), OnceLock::new());
        Self { volume, boot, primary: found.at == 0, sound: found.sound, table, options, root, scan }
    }
    /// The walk, kept.
    pub(super) fn scanned(&self) -> Result<&Scan> {
        self.scan
            .get_or_init(|| self.scan().map_err(|e| e.to_string()))
            .as_ref()
            .map_err(|e| Error::Unsupported(e.clone()))
    }
    /// What the root says of the volume, kept.
    pub(super) fn root(&self) -> &Root {
        self.root.get_or_init(|| self.read_root())
    }
    /// The clusters of a table or bitmap, which have a chain; where there is none they are neighbours, as most drivers take it.
    fn of_table(&self, claims: &mut Claims, alloc: Alloc) -> Chain {
        let count = self.boot.clusters_for(alloc.len);
        if self.table.next(alloc.first) == Next::Free {
            return claims.neighbours(&self.table, alloc.first, count, false);
        }
        claims.follow(&self.table, alloc.first, count, false)
    }
    fn read_root(&self) -> Root {
        let chain = Claims::new(&self.table).follow(&self.table, self.boot.root, self.dir_limit(), false);
        let mut faults = Vec::new();
        let bytes = self.dir_bytes(&self.places(&chain.runs), &mut faults);
        let listing = dirent::list(&bytes);
        let mut root = Root {
            listing,
            up_case: UpCase::ascii(),
            bitmap: None,
            bitmap_places: Vec::new(),
            faults: faults.iter().map(Error::to_string).collect(),
        };
        let bytes_of = |alloc: Alloc| {
            let chain = self.of_table(&mut Claims::new(&self.table), alloc);
            let places = clip(&self.places(&chain.runs), alloc.len);
            let mut bytes = Vec::new();
            for (at, len) in &places {
                bytes.extend(self.volume.read_vec(Offset::new(*at), usize::try_from(*len).unwrap_or(0)).ok()?);
            }
            (bytes.len() as u64 == alloc.len).then_some((bytes, places))
        };
        match &root.listing.up_case[..] {
            [table] if table.alloc.len <= MAX_UP_CASE => match bytes_of(table.alloc) {
                Some((bytes, _)) if table_checksum(&bytes) == table.checksum => root.up_case = UpCase::decode(&bytes),
                Some(_) => root.faults.push("up-case table: expected another checksum, took ASCII's".into()),
                None => root.faults.push("up-case table: expected a chain that can be read, took ASCII's".into()),
            },
            [_] => root.faults.push("up-case table: expected at most 65536 units, took ASCII's".into()),
            all => {
                root.faults.push(format!("root directory: expected one up-case table, not {}, took ASCII's", all.len()))
            }
        }
        let active = self.boot.active() == 1;
        match root.listing.bitmaps.iter().find(|b| b.second == active).map(|b| b.alloc) {
            // A few bytes too many are harmless; they are not read.
            Some(alloc) if alloc.len >= self.boot.bitmap_bytes() => {
                match bytes_of(Alloc { len: self.boot.bitmap_bytes(), ..alloc }) {
                    Some((bytes, places)) => (root.bitmap, root.bitmap_places) = (Some(bytes), places),
                    None => root.faults.push("allocation bitmap: expected a chain that can be read".into()),
                }
            }
            Some(alloc) => root.faults.push(format!(
                "allocation bitmap: expected {} bytes for all clusters, not {}",
                self.boot.bitmap_bytes(),
                alloc.len
            )),
            None => root.faults.push("root directory: expected an allocation bitmap".into()),
        }
        root
    }
    /// Whether the bitmap has a cluster in use.
    pub(super) fn in_use(bitmap: &[u8], cluster: u32) -> bool {
        let bit = cluster.saturating_sub(2);
        bitmap.get((bit / 8) as usize).is_some_and(|byte| byte >> (bit % 8) & 1 == 1)
    }
    /// Clusters that are free by a bitmap.
    pub(super) fn free_in(&self, bitmap: &[u8]) -> u32 {
        let used: u64 = bitmap.iter().map(|byte| u64::from(byte.count_ones())).sum();
        // Bits behind the last cluster count for nothing.
        let behind = (2u32.saturating_add(self.boot.clusters)..).take(7).filter(|n| Self::in_use(bitmap, *n)).count();
        let used = used.saturating_sub(behind as u64);
        self.boot.clusters.saturating_sub(u32::try_from(used).unwrap_or(u32::MAX))
    }
    pub(super) fn scan(&self) -> Result<Scan> {
        let root = self.root();
        let mut walk = Walk {
            fs: self,
            root,
            tree: TreeBuilder::new(),
            dirs: Vec::new(),
            claims: Claims::new(&self.table),
            files: Vec::new(),
            oddities: Vec::new(),
        };
        walk.begin();
        let mut done = 0usize;
        while done < walk.dirs.len() {
            done = walk.level(done);
        }
        walk.streams();
        let object = walk.dirs.first().map(|d| d.object).ok_or_else(|| Error::NotFound("no root directory".into()))?;
        Ok(Scan { tree: walk.tree.finish(object), dirs: walk.dirs, claims: walk.claims, oddities: walk.oddities })
    }
    /// Clusters of the largest directory.
    fn dir_limit(&self) -> u32 {
        self.boot.clusters_for(MAX_DIR).max(1)
    }
    /// The bytes of a directory, up to its end mark and some behind it. What can't be read is taken as deleted entries, and noted.
    fn dir_bytes(&self, places: &[(u64, u64)], faults: &mut Vec<Error>) -> Vec<u8> {
        let mut out = Vec::new();
        for (at, len) in places {
            let end = at.saturating_add(*len);
            let mut from = *at;
            while from < end {
                let part = end.saturating_sub(from).min(PIECE);
                let begin = out.len();
                match self.volume.read_vec(Offset::new(from), usize::try_from(part).unwrap_or(0)) {
                    Ok(bytes) => out.extend_from_slice(&bytes),
                    Err(first) => {
                        faults.push(first);
                        for sector in (from..end.min(from.saturating_add(part))).step_by(512) {
                            let part = self.volume.read_vec(Offset::new(sector), 512);
                            out.extend_from_slice(&part.unwrap_or_else(|_| vec![1; 512]));
                        }
                    }
                }
                // Nothing counts behind the end mark, and a directory may be of any size.
                let entries = out.get(begin..).unwrap_or_default().as_chunks::<ENTRY>().0;
                if entries.iter().any(|[kind, ..]| *kind == 0) {
                    return out;
                }
                from = from.saturating_add(part);
            }
        }
        out
    }
    /// All bytes of a directory of this volume.
    pub(super) fn entries_of(&self, dir: &Dir) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        for (at, len) in &dir.places {
            out.extend(self.volume.read_vec(Offset::new(*at), usize::try_from(*len).unwrap_or(0))?);
        }
        Ok(out)
    }
    /// The volume's byte of an entry of a directory.
    pub(super) fn entry_at(places: &[(u64, u64)], entry: usize) -> u64 {
        let mut rest = (entry as u64).saturating_mul(ENTRY_BYTES);
        for (at, len) in places {
            match rest.checked_sub(*len) {
                None => return at.saturating_add(rest),
                Some(left) => rest = left,
            }
        }
        0
    }
    /// The number of the file entry at this byte.
    pub(super) fn number(&self, at: u64) -> u64 {
        (at.saturating_sub(self.boot.heap_at()) / ENTRY_BYTES).saturating_add(3)
    }
    pub(super) fn times(&self, file: &dirent::File) -> Times {
        let zone = self.options.utc_offset;
        Times {
            modified: file.modified.decode(TimeUnit::Hundredth, zone),
            accessed: file.accessed.decode(TimeUnit::Second, zone),
            changed: None,
            created: file.created.decode(TimeUnit::Hundredth, zone),
        }
    }
}

/// The first `len` bytes of places.
pub(super) fn clip(places: &[(u64, u64)], len: u64) -> Vec<(u64, u64)> {
    let mut left = len;
    let mut out = Vec::with_capacity(places.len());
    for (at, have) in places {
        let part = left.min(*have);
        if part == 0 {
            break;
        }
        out.push((*at, part));
        left = left.saturating_sub(part);
    }
    out
}

impl Walk<'_> {
    /// The root, and what the volume's own tables have.
    fn begin(&mut self) {
        let root = self.tree.object(Object {
            kind: Kind::Dir,
            number: ROOT_NUMBER,
            times: Times::default(),
            attributes: 0,
            mode: None,
            owner: None,
            system: false,
        });
        for fault in &self.root.faults {
            self.tree.problem(None, &Error::Unsupported(fault.clone()));
        }
        let fs = self.fs;
        let chain = self.claims.follow(&fs.table, fs.boot.root, fs.dir_limit(), false);
        if let Some(fault) = &chain.fault {
            let error = Error::corrupt("boot sector", Offset::<Volume>::new(ROOT_AT), fault.to_string());
            self.tree.problem(Some(root), &error);
        }
        let places = fs.places(&chain.runs);
        let len = u64::from(chain.clusters).saturating_mul(fs.boot.cluster_bytes());
        let alloc = Alloc { flags: POSSIBLE, first: fs.boot.root, len };
        let at = |entry: usize| ExFat::entry_at(&places, entry);
        let tables = self.root.listing.bitmaps.iter().chain(&self.root.listing.up_case);
        for table in tables {
            let count = fs.boot.clusters_for(table.alloc.len);
            let chain = fs.of_table(&mut self.claims, table.alloc);
            if chain.fault.is_some() || chain.clusters < count {
                let expected = chain.fault.map_or_else(|| format!("a chain of {count} clusters"), |f| f.to_string());
                let error = Error::corrupt("entry of a table", Offset::<Volume>::new(at(table.at)), expected);
                self.tree.problem(None, &error);
            }
        }
        self.dirs.push(Dir { object: root, parent: 0, set_at: 0, alloc, runs: chain.runs, places });
    }
    /// Finds the clusters of something, and claims them. `limit`: the most that are followed.
    fn clusters(&mut self, alloc: Alloc, limit: u32, share: bool) -> Chain {
        let need = self.fs.boot.clusters_for(alloc.len);
        if alloc.first == 0 {
            let fault = (need > 0).then_some(Fault::Leads(None, Next::Wrong(0)));
            return Chain { fault, ..Chain::default() };
        }
        if alloc.no_chain() {
            return self.claims.neighbours(&self.fs.table, alloc.first, need.min(limit), share);
        }
        self.claims.follow(&self.fs.table, alloc.first, limit, share)
    }
    /// Lists the directories from `from` on that are known so far, in the order of the disk; gives the first one that is not.
    fn level(&mut self, from: usize) -> usize {
        let to = self.dirs.len();
        if let Some(level) = self.dirs.get_mut(from..to) {
            // The root is alone in its level and stays the first; no directory of a later one has children yet.
            level.sort_by_key(|dir| dir.places.first().map(|(at, _)| *at));
        }
        let fs = self.fs;
        let listed: Vec<(Listing, Vec<Error>)> = self
            .dirs
            .get(from..to)
            .unwrap_or_default()
            .par_iter()
            .map(|dir| {
                let mut faults = Vec::new();
                let bytes = fs.dir_bytes(&dir.places, &mut faults);
                (dirent::list(&bytes), faults)
            })
            .collect();
        for (at, (listing, faults)) in (from..to).zip(listed) {
            let Some(dir) = self.dirs.get(at).cloned() else { continue };
            for fault in &faults {
                self.tree.problem(Some(dir.object), fault);
            }
            let place = |entry: usize| Offset::<Volume>::new(ExFat::entry_at(&dir.places, entry));
            for (entry, expected) in &listing.faults {
                self.tree.problem(None, &Error::corrupt("directory entry", place(*entry), *expected));
            }
            if at != 0 {
                for table in listing.bitmaps.iter().chain(&listing.up_case) {
                    self.tree.problem(None, &Error::corrupt("directory entry", place(table.at), "tables in the root"));
                }
            }
            for alloc in &listing.others {
                // Nobody but who wrote it knows what it is for; its clusters are its own.
                if let Some(fault) = self.clusters(*alloc, u32::MAX, false).fault {
                    self.tree.problem(None, &Error::corrupt("entry of an unknown kind", place(0), fault.to_string()));
                }
            }
            for set in &listing.sets {
                self.set(at, &dir, set);
            }
        }
        to
    }
    fn set(&mut self, dir_at: usize, dir: &Dir, set: &Set) {
        let at = ExFat::entry_at(&dir.places, set.at);
        let place = Offset::<Volume>::new(at);
        let mut wrong = |expected: &str| self.tree.problem(None, &Error::corrupt("directory entry", place, expected));
        if !set.sound {
            wrong("an entry set with its checksum: took what it says");
        }
        if self.root.up_case.hash(set.units.iter().copied()) != set.hash {
            wrong("a name with its hash: took what it says");
        }
        if set.unknown {
            wrong("entries of kinds that are known");
        }
        if set.vendors > 0 {
            wrong("no entries of vendors: left them out");
        }
        let bytes: Vec<u8> = set.units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        let mut name = utf16::to_wtf8(&bytes);
        if name.is_empty() || name.contains(&b'/') || name.contains(&0) || name == b"." || name == b".." {
            wrong("a name without a slash that is neither . nor .., gave it another one");
            name = format!("unnamed-{at:x}").into_bytes();
        }
        let file = &set.file;
        let object = self.tree.object(Object {
            kind: if file.is_dir() { Kind::Dir } else { Kind::File },
            number: self.fs.number(at),
            times: self.fs.times(file),
            attributes: u32::from(file.attributes & !dirent::DIRECTORY),
            mode: None,
            owner: None,
            system: false,
        });
        self.tree.entry(dir.object, &name, object);
        for vendor in &set.vendor {
            if let Some(fault) = self.clusters(*vendor, u32::MAX, false).fault {
                self.tree.problem(None, &Error::corrupt("entry of a vendor", place, fault.to_string()));
            }
        }
        if file.is_dir() {
            self.directory(object, dir_at, set, place);
        } else {
            self.files.push(File { object, file: *file, at });
        }
    }
    /// Finds the clusters of a directory, and notes where it lies.
    fn directory(&mut self, object: ObjectId, parent: usize, set: &Set, at: Offset<Volume>) {
        let file = &set.file;
        let limit = self.fs.dir_limit();
        let chain = self.clusters(file.alloc, limit, false);
        let need = self.fs.boot.clusters_for(file.alloc.len);
        let expected = match &chain.fault {
            Some(fault) => Some(fault.to_string()),
            None if chain.clusters < need => Some(format!("{need} clusters for {} bytes", file.alloc.len)),
            None => None,
        };
        if let Some(expected) = expected {
            self.tree.problem(Some(object), &Error::corrupt("directory entry", at, expected));
        }
        if chain.clusters > need || file.valid != file.alloc.len || file.alloc.flags & POSSIBLE == 0 {
            self.oddities.push(format!("the directory at {at} has other bytes or clusters than it says"));
        }
        let places = clip(&self.fs.places(&chain.runs), file.alloc.len);
        self.dirs.push(Dir { object, parent, set_at: set.at, alloc: file.alloc, runs: chain.runs, places });
    }
    /// Finds the clusters of all files.
    fn streams(&mut self) {
        let layer = self.fs.volume.id();
        let (unit, end) = (self.fs.boot.cluster_bytes(), self.fs.volume.len());
        for File { object, file, at } in std::mem::take(&mut self.files) {
            let size = file.alloc.len;
            let chain = self.clusters(file.alloc, u32::MAX, true);
            let need = size.div_ceil(unit.max(1));
            let have = u64::from(chain.clusters);
            if have > need || size == 0 && file.alloc.first != 0 || file.alloc.flags & POSSIBLE == 0 {
                self.oddities.push(format!("the file at {at:#x} has other clusters than its bytes need"));
            }
            let expected = match &chain.fault {
                Some(fault) => Some(fault.to_string()),
                None if have < need => Some(format!("a chain of {need} clusters for {size} bytes, not {have}")),
                None if file.valid > size => Some(format!("at most {size} bytes that are valid, not {}", file.valid)),
                None => None,
            };
            if let Some(expected) = expected {
                let error = Error::corrupt("directory entry", Offset::<Volume>::new(at), expected);
                self.tree.problem(Some(object), &error);
            }
            let valid = file.valid.min(size);
            let mut map = Map::<Stream>::new();
            for (at, len) in clip(&self.fs.places(&chain.runs), valid) {
                // A volume that was cut off has no bytes for its last clusters.
                let there = end.saturating_sub(at).min(len);
                map.push_stored(there, layer, at);
                map.push(len.saturating_sub(there), What::Encoded(Encoding::Unreadable));
            }
            map.push(valid.saturating_sub(map.len()), What::Encoded(Encoding::Unreadable));
            let new = NewStream { name: None, size, valid, form: Form::Plain, locator: file.alloc.first.into() };
            self.tree.stream(object, new, map.extents().iter().map(|e| (e.len, e.what)));
        }
    }
}

impl FileSystem for ExFat {
    fn facts(&self) -> Facts {
        let (boot, root) = (&self.boot, self.root());
        let mut remarks = Vec::new();
        if !self.primary {
            remarks.push("the boot sector is damaged: its backup was used".into());
        }
        if !self.sound {
            remarks.push("the checksum of the boot region is wrong".into());
        }
        if boot.revision >> 8 != 1 {
            remarks.push(format!("it is of revision {}.{:02}", boot.revision >> 8, boot.revision & 0xFF));
        }
        if boot.fats == 2 {
            remarks.push(format!("it has two tables (TexFAT), of which number {} is in use", boot.active()));
        }
        if boot.flags & MEDIA_FAILURE != 0 {
            remarks.push("a driver noted errors of the medium".into());
        }
        let label: Vec<u8> = root.listing.label.iter().flatten().flat_map(|unit| unit.to_le_bytes()).collect();
        Facts {
            kind: "exfat",
            label: String::from_utf8_lossy(&utf16::to_wtf8(&label)).into_owned(),
            serial: format!("{:04X}-{:04X}", boot.serial >> 16, boot.serial & 0xFFFF),
            unit: boot.cluster_bytes(),
            units: boot.clusters.into(),
            free_units: root.bitmap.as_deref().map(|bitmap| self.free_in(bitmap).into()),
            clean: Some(boot.flags & DIRTY == 0 && self.primary),
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

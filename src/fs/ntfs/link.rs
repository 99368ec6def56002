//! NTFS as host: new records and indexes that lead to clusters where the data already is.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, Result};
use crate::extent::Offset;
use crate::fs::host::Job;
use crate::fs::ntfs::bits::Bits;
use crate::fs::ntfs::encode::{Head, Mapped, capacity, file_name, mapped, record, resident};
use crate::fs::ntfs::host::State;
use crate::fs::ntfs::index::{self, Form, Key, NAME};
use crate::fs::ntfs::layout::{BITMAP, DIRECTORY, IN_USE, LOG_FILE, MFT, MIRROR, ROOT, Reference, kind};
use crate::fs::ntfs::mft_grow::{self, Grown};
use crate::fs::ntfs::old_dir::{self, BESIDE, LEAST, OldDir};
use crate::fs::ntfs::pack::{self, Packed, Piece, Value};
use crate::fs::ntfs::raw::{Places, RawRecord, stored};
use crate::fs::ntfs::read::Ntfs;
use crate::fs::ntfs::runs::Run;
use crate::fs::ntfs::space::Space;
use crate::fs::ntfs::wanted::{From, Node, Security, Wanted, shown};
use crate::fs::utf16;
use crate::txn::{Fresh, Group, Quarantine, SECTOR, Staging};

/// Bytes of a sector, as the journal has them.
const SECTOR_BYTES: usize = SECTOR as usize;

fn refused(what: impl Into<String>) -> Error {
    Error::Refused(what.into())
}

/// Sectors by their place.
type Sectors = BTreeMap<u64, Vec<u8>>;

/// The new state while it is put together.
struct Build<'a> {
    ntfs: &'a Ntfs,
    state: &'a State,
    space: Space,
    /// `$Bitmap` as it will be.
    bitmap: Bits,
    staging: Staging,
    /// New records that take the place of free ones, and those that are new altogether.
    records: BTreeMap<u64, Vec<u8>>,
    /// Records that are changed.
    changed: BTreeMap<u64, Vec<u8>>,
    /// References of the directories of the wanted tree.
    dir_refs: Vec<u64>,
    form: Form,
}

/// The records of an image, and everything that it has.
struct Image {
    records: Vec<RawRecord>,
    clusters: Vec<Run>,
    parents: BTreeSet<u64>,
}

fn image(ntfs: &Ntfs, number: u64) -> Result<Image> {
    let chunk = ntfs.reader.file(number, 0)?;
    let numbers: BTreeSet<u64> = chunk.recs.iter().map(|r| r.number).collect();
    let records = numbers.iter().map(|n| RawRecord::read(&ntfs.reader, *n)).collect::<Result<Vec<_>>>()?;
    let clusters =
        records.iter().flat_map(|r| &r.attributes).flat_map(|a| stored(&a.runs).collect::<Vec<_>>()).collect();
    let parents = chunk.names.iter().map(|n| n.parent.number()).collect();
    Ok(Image { records, clusters, parents })
}

/// What new files get from the image, new directories from the directory that they are in.
fn security(record: &RawRecord) -> Security {
    let info = record.get(kind::STANDARD_INFORMATION).and_then(|a| a.value.as_deref());
    let id = info.and_then(|v| v.get(0x34..)?.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b));
    let descriptor = record.get(kind::SECURITY_DESCRIPTOR).and_then(|a| a.value.clone());
    // A long one would not leave room for a name; $Secure then has the better ones.
    let descriptor = descriptor.filter(|d| id == 0 && d.len() <= 224);
    Security { id, descriptor }
}

/// The new state of a volume for a job; `job.image` and `--into` are looked up in `state`.
///
/// # Errors
/// [`Error::Refused`] where it can't be done.
pub(super) fn build(ntfs: &Ntfs, state: &State, job: &Job<'_>) -> Result<Staging> {
    let reader = &ntfs.reader;
    let (host_dir, depth) = state.descend(&job.tree.into)?;
    let number = state.tree.object(job.image.object).number;
    let image = image(ntfs, number)?;
    let clusters = reader.context(0).clusters;
    let mut left = Bits::new(clusters);
    let mut bitmap = state.census.clusters.clone();
    for run in &image.clusters {
        let twice = left.put_run(*run, true).is_err() || bitmap.put_run(*run, false).is_err();
        if twice {
            return Err(refused("the image has clusters that are free, or has them twice"));
        }
    }
    let all = left.clone();
    let mut space = Space::new(&state.census.clusters, clusters);
    let made = state.tree.object(job.image.object).times;
    let mut from = From { reader, image: &mut left, space: &mut space, made, up: &state.up };
    let wanted = Wanted::new(job, depth, &mut from)?;
    // What was taken of the image is in use again.
    for (n, (a, b)) in all.bytes().iter().zip(left.bytes()).enumerate() {
        let first = (n as u64).saturating_mul(8);
        let now_used = (0..8u64).filter(|bit| (a & !b) >> bit & 1 != 0);
        now_used.for_each(|bit| _ = bitmap.put(first.saturating_add(bit), true));
    }
    let parent = OldDir::read(reader, host_dir)?;
    let mut build = Build {
        ntfs,
        state,
        space,
        bitmap,
        staging: Staging { copies: wanted.copies.clone(), slack: wanted.tails.clone(), ..Staging::default() },
        records: BTreeMap::new(),
        changed: BTreeMap::new(),
        dir_refs: Vec::new(),
        form: parent.form,
    };
    let base = image.records.iter().find(|r| r.number == number).ok_or_else(|| refused("the image has no record"))?;
    let securities = [security(base), security(&parent.record)];
    let grown = build.nodes(&wanted, &parent, &securities)?;
    let mut grown = build.directories(&wanted, parent, &image, grown)?;
    for record in &image.records {
        grown.bits.put(record.number, false);
    }
    build.finish(&image, &grown)
}

/// A new record in the making.
struct Draft {
    /// Its references, the base first.
    references: Vec<u64>,
}

impl Build<'_> {
    fn cluster(&self) -> u64 {
        self.ntfs.reader.boot.cluster
    }
    fn capacity(&self) -> usize {
        capacity(self.ntfs.reader.boot.record)
    }
    fn security<'s>(&self, node: &Node, securities: &'s [Security; 2]) -> &'s Security {
        let [file, dir] = securities;
        if node.dir.is_some() { dir } else { file }
    }
    fn too_many(node: &Node) -> Error {
        let name = node.names.first().map(|n| String::from_utf16_lossy(&n.1)).unwrap_or_default();
        refused(format!("{}: so many pieces or names that NTFS can't describe them", shown(name.as_bytes())))
    }
    /// Values of a directory that stand beside its index, and the bytes that its entries take.
    fn pack_dir(&self, values: &[Value], entries: usize) -> Option<(Packed, usize)> {
        let capacity = self.capacity();
        let packed = pack::pack(values, usize::MAX >> 1, self.cluster())?;
        let used: usize = packed.records.iter().flatten().map(|p| p.bytes.len()).sum();
        let here = capacity.saturating_sub(used);
        if entries.saturating_add(0x20) <= here || LEAST <= here {
            return Some((packed, here));
        }
        // The index goes into a record of its own, with what stands behind the name.
        let mut base = packed.records.into_iter().next()?;
        let at = base.iter().position(|p| p.kind > kind::FILE_NAME).unwrap_or(base.len());
        let moved = base.split_off(at);
        let here = capacity.saturating_sub(moved.iter().map(|p| p.bytes.len()).sum());
        Some((Packed { records: vec![base, moved], list: 1 }, here))
    }
    /// Takes records for all nodes and writes those of files.
    fn nodes(&mut self, wanted: &Wanted, parent: &OldDir, securities: &[Security; 2]) -> Result<(Grown, Vec<Draft>)> {
        let (cluster, capacity) = (self.cluster(), self.capacity());
        let mut counts = Vec::with_capacity(wanted.nodes.len());
        for node in &wanted.nodes {
            let values = node.values(self.security(node, securities), cluster, |_| 0);
            let count = match node.dir.and_then(|d| wanted.dirs.get(d)) {
                None => pack::pack(&values, capacity, cluster).map(|p| p.records.len()),
                Some(dir) => self.pack_dir(&values, root_bytes(wanted, dir)).map(|(p, _)| p.records.len()),
            };
            counts.push(count.ok_or_else(|| Self::too_many(node))?);
        }
        let need = counts.iter().map(|c| *c as u64).sum();
        let grown = mft_grow::grow(&self.ntfs.reader, &self.state.census, need, &mut self.space)?;
        let mut taken = grown.taken.iter().map(|(n, sequence)| n | u64::from(*sequence) << 48);
        let drafts: Vec<Draft> =
            counts.iter().map(|c| Draft { references: taken.by_ref().take(*c).collect() }).collect();
        let base = |node: usize| drafts.get(node).and_then(|d| d.references.first()).copied().unwrap_or(0);
        self.dir_refs = wanted.dirs.iter().map(|d| d.node.map_or_else(|| parent.record.reference(), base)).collect();
        for (node, draft) in wanted.nodes.iter().zip(&drafts).filter(|(n, _)| n.dir.is_none()) {
            let refs = &self.dir_refs;
            let values = node.values(self.security(node, securities), cluster, |d| refs.get(d).copied().unwrap_or(0));
            let packed = pack::pack(&values, capacity, cluster).ok_or_else(|| Self::too_many(node))?;
            self.write(node, draft, packed)?;
        }
        Ok((grown, drafts))
    }
    /// Writes the records of a node.
    fn write(&mut self, node: &Node, draft: &Draft, mut packed: Packed) -> Result<()> {
        let fail = || Self::too_many(node);
        if packed.list > 0 {
            let list = packed.list(&draft.references);
            let room = self
                .capacity()
                .saturating_sub(packed.records.first().into_iter().flatten().map(|p| p.bytes.len()).sum());
            let outside = resident(kind::ATTRIBUTE_LIST, &[], &list, false).len() > room;
            if outside {
                let len = list.len() as u64;
                let runs = self.fresh(&list)?;
                packed.with_list(&list, Some((&runs, len)), self.cluster()).ok_or_else(fail)?;
            } else {
                packed.with_list(&list, None, self.cluster()).ok_or_else(fail)?;
            }
        }
        let base = draft.references.first().copied().unwrap_or(0);
        for (i, (pieces, reference)) in packed.records.iter().zip(&draft.references).enumerate() {
            let r = Reference(*reference);
            let directory = if node.dir.is_some() && i == 0 { DIRECTORY } else { 0 };
            let head = Head {
                size: self.ntfs.reader.boot.record,
                number: r.number(),
                sequence: r.sequence(),
                links: if i == 0 { u16::try_from(node.names.len()).map_err(|_| fail())? } else { 0 },
                flags: IN_USE | directory,
                base: if i == 0 { 0 } else { base },
                usn: mft_grow::usn_of(&self.state.census, r.number()),
            };
            let bytes = record(&head, pieces.iter().map(|p| p.bytes.as_slice())).ok_or_else(fail)?;
            self.records.insert(r.number(), bytes);
        }
        Ok(())
    }
    /// Writes bytes into clusters that were free.
    fn fresh(&mut self, bytes: &[u8]) -> Result<Vec<Run>> {
        let cluster = self.cluster();
        let runs = self.space.take((bytes.len() as u64).div_ceil(cluster), 1);
        let runs = runs.ok_or_else(|| refused("too little space for directories and attribute lists"))?;
        let places = Places::new(&runs, cluster);
        let mut whole = bytes.to_vec();
        whole.resize(usize::try_from(places.len()).unwrap_or(0), 0);
        for (at, part) in places.put(0, &whole).unwrap_or_default() {
            self.staging.fresh.push(Fresh { at: Offset::new(at), bytes: part.to_vec() });
        }
        Ok(runs)
    }
    /// The attributes of an index of these keys, in `room` bytes.
    fn index(&mut self, keys: &[Key], room: usize) -> Result<Vec<(u32, Vec<u8>)>> {
        let cluster = self.cluster();
        let built = old_dir::build(keys, self.form, cluster, room);
        let built = built.ok_or_else(|| refused("a directory's record has no room for an index"))?;
        let mut out = vec![(kind::INDEX_ROOT, resident(kind::INDEX_ROOT, &NAME, &built.root, false))];
        if built.blocks.is_empty() {
            return Ok(out);
        }
        let size = (built.blocks.len() as u64).saturating_mul(self.form.block as u64);
        let runs = self.fresh(&built.blocks.concat())?;
        let small = || refused("the free space is in too small pieces for a directory's index");
        out.push((kind::INDEX_ALLOCATION, self.mapped(kind::INDEX_ALLOCATION, &runs, size).ok_or_else(small)?));
        let mut bits = Bits::new(0);
        bits.resize((built.blocks.len() as u64).div_ceil(64).saturating_mul(8));
        (0..built.blocks.len() as u64).for_each(|n| _ = bits.put(n, true));
        let inside = resident(kind::BITMAP, &NAME, bits.bytes(), false);
        if inside.len() <= BESIDE / 2 {
            out.push((kind::BITMAP, inside));
        } else {
            let runs = self.fresh(bits.bytes())?;
            let size = bits.bytes().len() as u64;
            out.push((kind::BITMAP, self.mapped(kind::BITMAP, &runs, size).ok_or_else(small)?));
        }
        Ok(out)
    }
    fn mapped(&self, kind: u32, runs: &[Run], size: u64) -> Option<Vec<u8>> {
        let all: u64 = runs.iter().map(|r| r.len).sum();
        let m = Mapped { flags: 0, unit: 0, sizes: [all.saturating_mul(self.cluster()), size, size, 0] };
        let (bytes, used) = mapped(kind, &NAME, &m, 0, runs, BESIDE / 2)?;
        (used == runs.len()).then_some(bytes)
    }
    /// Keys of the new entries of a directory.
    fn keys(&self, wanted: &Wanted, drafts: &[Draft], at: usize) -> Vec<Key> {
        let parent = self.dir_refs.get(at).copied().unwrap_or(0);
        let entries = wanted.dirs.get(at).map(|d| d.entries.as_slice()).unwrap_or_default();
        let key = |(node, name): &(usize, usize)| {
            let n = wanted.nodes.get(*node)?;
            let value = file_name(parent, &n.duplicated(self.cluster()), &n.names.get(*name)?.1);
            Some(Key { reference: Reference(*drafts.get(*node)?.references.first()?), value })
        };
        entries.iter().filter_map(key).collect()
    }
    /// In order, no two of which the later is new the same.
    fn sorted(&self, old: Vec<Key>, new: Vec<Key>) -> Result<Vec<Key>> {
        let added: BTreeSet<u64> = new.iter().map(|k| k.reference.0).collect();
        let all = index::sort(old.into_iter().chain(new).collect(), &self.state.up);
        for pair in all.windows(2) {
            if let [a, b] = pair
                && (added.contains(&a.reference.0) || added.contains(&b.reference.0))
                && self.state.up.fold(&a.name()) == self.state.up.fold(&b.name())
            {
                let name = String::from_utf16_lossy(&b.name());
                return Err(refused(format!(
                    "two entries of one directory would have the name {}",
                    shown(name.as_bytes())
                )));
            }
        }
        Ok(all)
    }
    /// Writes the indexes of all directories, new and old.
    fn directories(
        &mut self,
        wanted: &Wanted,
        parent: OldDir,
        image: &Image,
        (grown, drafts): (Grown, Vec<Draft>),
    ) -> Result<Grown> {
        let securities = [Security::default(), security(&parent.record)];
        let cluster = self.cluster();
        for (at, dir) in wanted.dirs.iter().enumerate() {
            let Some((node, draft)) = dir.node.and_then(|n| Some((wanted.nodes.get(n)?, drafts.get(n)?))) else {
                continue;
            };
            let keys = self.sorted(Vec::new(), self.keys(wanted, &drafts, at))?;
            let refs = &self.dir_refs;
            let values = node.values(self.security(node, &securities), cluster, |d| refs.get(d).copied().unwrap_or(0));
            let (mut packed, room) =
                self.pack_dir(&values, root_bytes(wanted, dir)).ok_or_else(|| Self::too_many(node))?;
            let index = self.index(&keys, room)?;
            if let Some(last) = packed.records.last_mut() {
                last.extend(index.into_iter().map(|(kind, bytes)| Piece {
                    kind,
                    name: NAME.to_vec(),
                    lowest: 0,
                    bytes,
                }));
            }
            self.write(node, draft, packed)?;
        }
        let gone: BTreeSet<u64> = image.records.iter().map(|r| r.number).collect();
        let mut old: BTreeSet<u64> = image.parents.clone();
        let into = parent.record.number;
        if !wanted.dirs.first().is_some_and(|d| d.entries.is_empty()) {
            old.insert(into);
        }
        for number in old {
            let dir = OldDir::read(&self.ntfs.reader, number)?;
            self.trusted(&dir)?;
            let new = if number == into { self.keys(wanted, &drafts, 0) } else { Vec::new() };
            let mut kept: Vec<Key> =
                dir.keys.iter().filter(|k| !gone.contains(&k.reference.number())).cloned().collect();
            if number == ROOT {
                sized_mft(&mut kept, &grown);
            }
            let keys = self.sorted(kept, new)?;
            for run in dir.clusters() {
                self.bitmap.put_run(run, false).map_err(|n| refused(format!("cluster {n} of a directory is free")))?;
            }
            self.form = dir.form;
            let index = self.index(&keys, dir.room())?;
            let record =
                dir.with(index).ok_or_else(|| refused("a directory's record has no room for its new index"))?;
            self.changed.insert(number, record);
        }
        Ok(grown)
    }
    /// Refuses a directory whose index is not what the records say.
    fn trusted(&self, dir: &OldDir) -> Result<()> {
        let bad = |what: &str| {
            Err(refused(format!(
                "the index of the directory of MFT record {} {what}: check the host first",
                dir.record.number
            )))
        };
        if index::out_of_order(&dir.keys, &self.state.up).is_some() {
            return bad("is out of order");
        }
        let census = &self.state.census;
        let live = |k: &Key| {
            let n = k.reference.number();
            let sequence = usize::try_from(n).ok().and_then(|n| census.slots.get(n)).map(|s| s.0);
            census.in_use.get(n) && sequence == Some(k.reference.sequence())
        };
        if !dir.keys.iter().all(live) {
            return bad("has entries that lead to no file");
        }
        let object = self.state.tree.objects().find(|(_, o)| o.number == dir.record.number).map(|o| o.0);
        let names: BTreeSet<Vec<u8>> =
            dir.keys.iter().map(|k| utf16::to_wtf8(k.value.get(0x42..).unwrap_or_default())).collect();
        let missing = object
            .is_none_or(|o| self.state.tree.children(o).iter().any(|e| !names.contains(self.state.tree.name(*e))));
        if missing { bad("lacks entries") } else { Ok(()) }
    }
    /// Puts the bytes of a value at their places, by the sector.
    fn put(&self, sectors: &mut Sectors, places: &Places, at: u64, bytes: &[u8]) -> Result<()> {
        let parts = places.put(at, bytes).ok_or_else(|| refused("a structure ends before its place"))?;
        for (at, part) in parts {
            for (i, sector) in part.chunks(SECTOR_BYTES).enumerate() {
                let here = at.saturating_add((i as u64).saturating_mul(SECTOR));
                let mut whole = sector.to_vec();
                if whole.len() < SECTOR_BYTES {
                    let old = self.ntfs.reader.volume.read_vec(Offset::new(here), SECTOR_BYTES)?;
                    whole.extend_from_slice(old.get(sector.len()..).unwrap_or_default());
                }
                sectors.insert(here, whole);
            }
        }
        Ok(())
    }
    /// The sectors in which a bitmap differs from `old`.
    fn bits(&self, places: &Places, old: &Bits, new: &Bits, fresh_from: u64) -> Result<Sectors> {
        let mut sectors = Sectors::new();
        for (i, now) in new.bytes().chunks(SECTOR_BYTES).enumerate() {
            let at = i.saturating_mul(SECTOR_BYTES);
            let same = old.bytes().get(at..at.saturating_add(now.len())) == Some(now);
            if !same && (at as u64) < fresh_from {
                self.put(&mut sectors, places, at as u64, now)?;
            }
        }
        Ok(sectors)
    }
    /// Groups, in the order of host-writers 7, and all the rest.
    fn finish(mut self, image: &Image, grown: &Grown) -> Result<Staging> {
        let cluster = self.cluster();
        let mirror = RawRecord::read(&self.ntfs.reader, MIRROR)?;
        let mirror = mirror.get(kind::DATA).ok_or_else(|| refused("$MFTMirr has no data"))?;
        let mirrored = mirror.sizes.iter().min().copied().unwrap_or(0);
        let mirror = Places::new(&mirror.runs, cluster);
        let old_places = Places::new(&data_runs(self.ntfs, MFT, kind::DATA)?, cluster);
        let old_bits = data_runs(self.ntfs, MFT, kind::BITMAP)?;
        let size = self.ntfs.reader.boot.record as u64;

        let both = |sectors: &mut Sectors, n: u64, bytes: &[u8]| -> Result<()> {
            let at = n.saturating_mul(size);
            self.put(sectors, &grown.places, at, bytes)?;
            if at.saturating_add(size) <= mirrored {
                self.put(sectors, &mirror, at, bytes)?;
            }
            Ok(())
        };
        let mut new_records = Sectors::new();
        let mut region: Vec<u8> = Vec::new();
        let new_from = old_places.len();
        for n in grown.records.0..grown.records.1 {
            let free;
            let bytes = match self.records.get(&n) {
                Some(bytes) => bytes,
                None => {
                    free = mft_grow::free_record(self.ntfs.reader.boot.record, n).unwrap_or_default();
                    &free
                }
            };
            let at = n.saturating_mul(size);
            if at < new_from {
                both(&mut new_records, n, bytes)?;
            } else if at.saturating_add(size) <= mirrored {
                return Err(refused("$MFTMirr is longer than $MFT: such a host is not written"));
            } else {
                region.extend_from_slice(bytes);
            }
        }
        let parts = grown.places.put(new_from, &region).ok_or_else(|| refused("$MFT ends before its place"))?;
        let parts: Vec<Fresh> =
            parts.into_iter().map(|(at, part)| Fresh { at: Offset::new(at), bytes: part.to_vec() }).collect();
        for (n, bytes) in self.records.range(..grown.records.0) {
            both(&mut new_records, *n, bytes)?;
        }
        let (mut mft, mut freed, mut dirs) = (Sectors::new(), Sectors::new(), Sectors::new());
        if RawRecord::read(&self.ntfs.reader, MFT)?.bytes_with_usn() != grown.record {
            both(&mut mft, MFT, &grown.record)?;
        }
        for record in &image.records {
            let bytes = record.freed().ok_or_else(|| refused("the image's record can't be written"))?;
            both(&mut freed, record.number, &bytes)?;
        }
        for (n, bytes) in &self.changed {
            both(&mut dirs, *n, bytes)?;
        }

        self.staging.fresh.extend(parts);
        self.records.clear();
        // The bits of records: what is in clusters of before by the sector, first both old and new.
        let before = &self.state.census.records;
        let old_end = old_bits.iter().map(|r| r.len).sum::<u64>().saturating_mul(cluster);
        let bits_union = self.bits(&grown.bit_places, before, &grown.bits.or(before), old_end)?;
        freed.append(&mut self.bits(&grown.bit_places, before, &grown.bits, old_end)?);
        let len = grown.bit_places.len();
        if len > old_end {
            let mut all = grown.bits.clone();
            all.resize(len);
            let new = all.bytes().get(usize::try_from(old_end).unwrap_or(usize::MAX)..).unwrap_or_default();
            for (at, part) in grown.bit_places.put(old_end, new).unwrap_or_default() {
                self.staging.fresh.push(Fresh { at: Offset::new(at), bytes: part.to_vec() });
            }
        }

        let fresh = self.staging.fresh.iter().map(|f| (f.at.get(), f.bytes.len() as u64));
        let copies = self.staging.copies.iter().flat_map(|c| c.to.iter().map(|(at, len)| (at.get(), *len)));
        let mut filled: Vec<(u64, u64)> = fresh.chain(copies).collect();
        self.staging.filled = merged(&mut filled);
        for (at, len) in &self.staging.filled {
            let run = Run { lcn: at.get().checked_div(cluster).unwrap_or(0), len: len.div_ceil(cluster) };
            self.bitmap.put_run(run, true).map_err(|n| refused(format!("cluster {n} would be filled twice")))?;
        }
        let bitmap_runs = data_runs(self.ntfs, BITMAP, kind::DATA)?;
        let places = Places::new(&bitmap_runs, cluster);
        let old = &self.state.census.clusters;
        let union = self.bits(&places, old, &self.bitmap.or(old), u64::MAX)?;
        let last = self.bits(&places, old, &self.bitmap, u64::MAX)?;

        let groups = [
            ("new MFT records", new_records),
            ("$MFT", mft),
            ("the image's record", freed),
            ("directories", dirs),
            ("$Bitmap", last),
        ];
        let groups = groups.map(|(name, sectors)| Group { name, writes: writes(sectors) });
        self.staging.groups = groups.into_iter().filter(|g| !g.writes.is_empty()).collect();
        let at = self.staging.groups.iter().position(|g| g.name != "new MFT records").unwrap_or(0);
        let interim = writes(bits_union).into_iter().chain(writes(union));
        self.staging.interim = interim.map(|w| (at, w)).collect();
        self.staging.slack.sort_unstable();

        let mut witnesses: Vec<(u64, u64)> = places.all().chain(Places::new(&old_bits, cluster).all()).collect();
        witnesses.extend(self.staging.fresh.iter().map(|f| (f.at.get(), f.bytes.len() as u64)));
        let of_records = self.staging.groups.iter().filter(|g| g.name != "$Bitmap").flat_map(|g| &g.writes);
        witnesses.extend(of_records.map(|w| (w.at.get(), w.bytes.len() as u64)));
        let log = data_runs(self.ntfs, LOG_FILE, kind::DATA)?;
        witnesses.extend(Places::new(&log, cluster).all().take(1).map(|(at, len)| (at, len.min(8192))));
        self.staging.witnesses = merged(&mut witnesses);
        self.staging.quarantine = quarantine(self.ntfs)?;
        Ok(self.staging)
    }
}

/// Bytes of an index root with all new entries of a directory.
fn root_bytes(wanted: &Wanted, dir: &super::wanted::Dir) -> usize {
    let name = |(node, name): &(usize, usize)| {
        wanted.nodes.get(*node).and_then(|n| n.names.get(*name)).map_or(0, |n| n.1.len())
    };
    let key = |units: usize| 0x52usize.saturating_add(units.saturating_mul(2)).next_multiple_of(8);
    index::small(dir.entries.iter().map(name).map(key))
}

/// The runs of a value that is in one piece, without holes.
fn data_runs(ntfs: &Ntfs, number: u64, kind: u32) -> Result<Vec<Run>> {
    let record = RawRecord::read(&ntfs.reader, number)?;
    let found =
        record.get(kind).filter(|a| a.value.is_none() && stored(&a.runs).count() == a.runs.len() && !record.has_list());
    let found = found.ok_or_else(|| refused(format!("MFT record {number} is not of a form that is written")))?;
    Ok(found.runs.clone())
}

/// Sets the sizes in the entry of `$MFT` itself.
fn sized_mft(keys: &mut [Key], grown: &Grown) {
    let sizes = [grown.places.len(), grown.places.len()].map(u64::to_le_bytes).concat();
    for key in keys.iter_mut().filter(|k| k.reference.number() == MFT) {
        let _ = crate::bytes::put(&mut key.value, 0x28, &sizes);
    }
}

/// Sectors as writes, neighbours together.
fn writes(sectors: Sectors) -> Vec<Fresh> {
    let mut out: Vec<Fresh> = Vec::new();
    for (at, bytes) in sectors {
        match out.last_mut() {
            Some(last) if last.at.get().saturating_add(last.bytes.len() as u64) == at => {
                last.bytes.extend_from_slice(&bytes)
            }
            _ => out.push(Fresh { at: Offset::new(at), bytes }),
        }
    }
    out
}

/// Places in order, neighbours and what overlaps together.
fn merged(places: &mut [(u64, u64)]) -> Vec<(Offset<crate::extent::Volume>, u64)> {
    places.sort_unstable();
    let mut out: Vec<(Offset<crate::extent::Volume>, u64)> = Vec::new();
    for (at, len) in places {
        let end = at.saturating_add(*len);
        match out.last_mut() {
            Some((start, len)) if start.get().saturating_add(*len) >= *at => {
                *len = end.max(start.get().saturating_add(*len)).saturating_sub(start.get());
            }
            _ => out.push((Offset::new(*at), *len)),
        }
    }
    out
}

/// The OEM name in the boot sector is the switch; the backup boot sector, from which repair tools would restore it, is
/// blanked while it is off (host-writers 8.1).
fn quarantine(ntfs: &Ntfs) -> Result<Quarantine> {
    let reader = &ntfs.reader;
    let open = reader.volume.read_vec(Offset::new(0), SECTOR_BYTES)?;
    let mut closed = open.clone();
    if let Some(name) = closed.get_mut(3..11) {
        name.copy_from_slice(b"UNIMAGE ");
    }
    let mut also = Vec::new();
    let mut places = vec![reader.boot.sectors.saturating_mul(reader.boot.sector)];
    places.push(reader.volume.len().saturating_sub(reader.boot.sector));
    places.dedup();
    for at in places {
        let Some(end) = at.checked_add(SECTOR) else { continue };
        if at >= reader.boot.clusters().saturating_mul(reader.boot.cluster)
            && end <= reader.volume.len()
            && crate::fs::ntfs::layout::Boot::is_ntfs(&reader.volume.read_vec(Offset::new(at), SECTOR_BYTES)?)
        {
            also.push(Fresh { at: Offset::new(at), bytes: vec![0; SECTOR_BYTES] });
        }
    }
    Ok(Quarantine { at: Offset::new(0), closed, open, also })
}

//! The audit: the new state, read back by the reader, against what was asked for. It takes nothing from the writer but
//! where copies and new structures went. It also looks at what no checker of Linux sees: order of indexes, initialized
//! sizes, link counts, names that Win32 can use, both bitmaps bit by bit.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::extent::{Extent, Map, Offset, ReadAt, Stream, Volume, What};
use crate::fs::asked::{not, printable, wrong};
use crate::fs::host::{Content, Job, NewEntry, NewKind};
use crate::fs::ntfs::audit_form;
use crate::fs::ntfs::encode::filetime;
use crate::fs::ntfs::extras::Keeper;
use crate::fs::ntfs::host::State;
use crate::fs::ntfs::index::{self, Key};
use crate::fs::ntfs::layout::{BITMAP, DIRECTORY_BIT, FileName, MFT, MIRROR, Reference, kind};
use crate::fs::ntfs::old_dir::{NAMES, OldDir, REPARSE};
use crate::fs::ntfs::raw::{Raw, RawRecord, stored};
use crate::fs::ntfs::read::Ntfs;
use crate::fs::ntfs::reader::Reader;
use crate::fs::ntfs::refuse;
use crate::fs::ntfs::runs::Run;
use crate::fs::ntfs::upcase;
use crate::fs::ntfs::wanted::tail;
use crate::fs::{EntryId, Kind, ObjectId, Tree, utf16};
use crate::txn::Staging;

/// In the copies of attributes: has an index of names.
const HAS_INDEX: u32 = 0x1000_0000;

/// Where copies went, by the positions of their new entries: places in order.
type Copies = HashMap<usize, Places>;
/// Bytes and, where they are stored, their place.
pub(super) type Places = Vec<(u64, Option<u64>)>;

/// Bytes of `$MFT` that are compared at a time.
const SWEEP: u64 = 1 << 20;

/// The objects that are new, in the order of the new entries.
#[derive(Debug, Default)]
pub(super) struct Added {
    all: Vec<ObjectId>,
    /// Of each object of the new state, its position in `all`.
    places: Vec<Option<u32>>,
}

impl Added {
    fn new(tree: &Tree) -> Self {
        Self { all: Vec::new(), places: vec![None; tree.objects().count()] }
    }
    /// Whether it was not there yet.
    fn insert(&mut self, object: ObjectId) -> bool {
        let at = u32::try_from(self.all.len()).ok();
        match self.places.get_mut(object.index()) {
            Some(place @ None) => {
                *place = at;
                self.all.push(object);
                true
            }
            _ => false,
        }
    }
    fn place(&self, object: ObjectId) -> Option<usize> {
        self.places.get(object.index()).copied().flatten().map(|n| n as usize)
    }
    fn has(&self, object: ObjectId) -> bool {
        self.place(object).is_some()
    }
    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &ObjectId> {
        self.all.iter()
    }
}

/// Of each new object its names, with all that stands beside them.
type Names = Vec<Vec<Vec<u8>>>;

/// What was asked for of a new object, and where its copy went.
type Asked<'j> = Option<(&'j NewEntry, Option<Places>)>;

pub(super) struct Audit<'a> {
    old: &'a Ntfs,
    pub(super) before: &'a State,
    pub(super) new: &'a Ntfs,
    pub(super) now: &'a State,
    pub(super) job: &'a Job<'a>,
    staging: &'a Staging,
    /// Objects of the new state by record.
    by_number: Vec<Option<ObjectId>>,
    /// What the host keeps of extended attributes.
    keeper: Keeper<'a>,
}

pub(super) fn audit(old: &Ntfs, after: Arc<dyn ReadAt<Volume>>, job: &Job<'_>, staging: &Staging) -> Result<()> {
    let reader = Reader::open(after, old.reader.boot)?;
    if let Some(first) = reader.remarks.first() {
        return Err(wrong(0, "volume", format!("nothing odd, but: {first}")));
    }
    let new = Ntfs::new(reader);
    let first = |ntfs: &Ntfs| ntfs.reader.volume.read_vec(Offset::new(0), 512);
    if first(&new)? != first(old)? {
        return Err(wrong(0, "boot sector", "the one of before"));
    }
    let now = new.state()?;
    let mut by_number = vec![None; now.census.slots.len()];
    for (id, object) in now.tree.objects() {
        if let Some(place) = usize::try_from(object.number).ok().and_then(|n| by_number.get_mut(n)) {
            *place = Some(id);
        }
    }
    let before = old.state()?;
    let keeper = super::link::keeper(old, before, job)?;
    let audit = Audit { old, before, new: &new, now, job, staging, by_number, keeper };
    audit.whole()?;
    audit.places()?;
    let (added, names) = audit.entries()?;
    audit.older(&added)?;
    audit.records(&added)?;
    audit.directories(&added, &names)?;
    audit.slack()
}

fn set(runs: &[Run], cluster: u64) -> Vec<(u64, u64)> {
    let mut all: Vec<(u64, u64)> = stored(runs)
        .map(|r| (r.lcn.saturating_mul(cluster), r.lcn.saturating_add(r.len).saturating_mul(cluster)))
        .collect();
    all.sort_unstable();
    all
}

/// Extents without the identity of the layer, neighbours together.
pub(super) fn plain<'e>(extents: impl IntoIterator<Item = &'e Extent<Stream>>) -> Option<Places> {
    let mut map: Map<Stream> = Map::new();
    for e in extents {
        map.push(e.len, e.what);
    }
    let one = |e: &Extent<Stream>| match e.what {
        What::Stored(p) => Some((e.len, Some(p.offset.get()))),
        What::Zero => Some((e.len, None)),
        What::Encoded(_) => None,
    };
    map.extents().iter().map(one).collect()
}

impl Audit<'_> {
    /// No damage; both bitmaps are exact; the mirror is; bits past the last cluster are as they were.
    fn whole(&self) -> Result<()> {
        if let Some(problem) = self.now.tree.problems().first() {
            return Err(wrong(0, "walk", format!("no damage, but: {}", problem.what)));
        }
        if let Some(fault) = self.now.census.faults.first() {
            return Err(wrong(0, "records and clusters", format!("that they agree, but: {fault}")));
        }
        if let Some(why) = refuse::mirror(self.new)? {
            return Err(wrong(0, "$MFTMirr", format!("the same as $MFT, but: {why}")));
        }
        let (old, new) = (&self.before.census.clusters, &self.now.census.clusters);
        let clusters = self.old.reader.context(0).clusters;
        let bits = (new.bytes().len() as u64).saturating_mul(8);
        if old.bytes().len() != new.bytes().len() || (clusters..bits).any(|n| old.get(n) != new.get(n)) {
            return Err(wrong(0, "$Bitmap", "the length, and the bits past the last cluster, of before"));
        }
        Ok(())
    }
    /// What is filled was free and now has owners, and nothing else newly has; what is changed in place is `$MFT`, its
    /// mirror, or a bitmap.
    fn places(&self) -> Result<()> {
        let cluster = self.old.reader.boot.cluster;
        let (old, new) = (&self.before.census.clusters, &self.now.census.clusters);
        let mut filled = super::bits::Bits::new(self.old.reader.context(0).clusters);
        for (at, len) in &self.staging.filled {
            let run =
                Run { lcn: at.get().checked_div(cluster).unwrap_or(0), len: len.checked_div(cluster).unwrap_or(0) };
            let whole = at.get().checked_rem(cluster) == Some(0) && len.checked_rem(cluster) == Some(0);
            if !whole || filled.put_run(run, true).is_err() {
                return Err(wrong(at.get(), "filled range", "whole clusters, each once"));
            }
        }
        let pairs = old.bytes().iter().zip(new.bytes());
        let odd = pairs.zip(filled.bytes()).position(|((old, new), filled)| new & !old != *filled || old & filled != 0);
        if let Some(byte) = odd {
            let at = (byte as u64).saturating_mul(8).saturating_mul(cluster);
            return Err(wrong(at, "filled ranges", "exactly the clusters that were free and no longer are"));
        }
        let mut allowed = Vec::new();
        for (number, kind) in [(MFT, kind::DATA), (MFT, kind::BITMAP), (MIRROR, kind::DATA), (BITMAP, kind::DATA)] {
            let record = RawRecord::read(&self.old.reader, number)?;
            allowed.extend(record.get(kind).map(|a| set(&a.runs, cluster)).unwrap_or_default());
        }
        allowed.sort_unstable();
        for write in self.staging.groups.iter().flat_map(|g| &g.writes) {
            let (mut at, end) = (write.at.get(), write.at.get().saturating_add(write.bytes.len() as u64));
            while at < end {
                let i = allowed.partition_point(|(_, to)| *to <= at);
                let next = allowed.get(i).filter(|(from, _)| *from <= at);
                at = next.ok_or_else(|| wrong(at, "changed sector", "one of $MFT, its mirror or a bitmap"))?.1;
            }
        }
        Ok(())
    }
    /// Whether a record was in use before, and is not the image's.
    fn was_there(&self, object: ObjectId) -> bool {
        self.before.census.in_use.get(self.now.tree.object(object).number)
    }
    /// Each new entry is there, and is what was asked for. The objects that are new, and the names of each, with all that stands
    /// beside them.
    fn entries(&self) -> Result<(Added, Names)> {
        let tree = &self.now.tree;
        let mut added = Added::new(tree);
        let mut asked: Vec<Asked<'_>> = Vec::new();
        let mut top = tree.root();
        let fold = |name: &[u8]| self.now.up.fold(&utf16::from_wtf8(name).unwrap_or_default());
        for name in &self.job.tree.into {
            let wanted = fold(name);
            let entry = tree.child_by(top, name, |a, _| fold(a) == wanted);
            let object = entry.map(|e| tree.entry(e).object).filter(|o| tree.object(*o).kind == Kind::Dir);
            top = object.ok_or_else(|| wrong(0, "directory entry", format!("the directory {}", printable(name))))?;
            if !self.was_there(top) && added.insert(top) {
                asked.push(None);
            }
        }
        let mut copies = Copies::new();
        for copy in &self.staging.copies {
            let mut map: Map<Stream> = Map::new();
            copy.to.iter().for_each(|(at, len)| map.push_stored(*len, self.new.reader.volume.id(), at.get()));
            let to = plain(map.resized(copy.size).extents()).unwrap_or_default();
            if copies.insert(copy.entry, to).is_some() {
                return Err(wrong(0, "copies", "one for each stream"));
            }
        }
        let found = self.found(top);
        let mut streams: HashMap<ObjectId, usize> = HashMap::new();
        let mut objects: Vec<Option<ObjectId>> = Vec::with_capacity(self.job.tree.entries.len());
        for (position, entry) in self.job.tree.entries.iter().enumerate() {
            let copied = if entry.is_copied() { copies.remove(&position) } else { None };
            if let NewKind::Stream { of, size, content } = &entry.kind {
                let object = objects.get(*of).copied().flatten().ok_or_else(|| not(entry, "a file"))?;
                let mut all = tree.streams(object);
                let stream = all.find(|s| tree.stream_name(*s) == Some(&entry.name));
                self.stream(entry, stream, *size, content, copied, None)?;
                let count = streams.entry(object).or_default();
                *count = count.saturating_add(1);
                objects.push(None);
                continue;
            }
            let object = found.get(position).copied().flatten();
            let object = object.filter(|o| !self.was_there(*o)).ok_or_else(|| not(entry, "an entry"))?;
            if let NewKind::HardLink(first) = entry.kind {
                if objects.get(first).copied().flatten() != Some(object) {
                    return Err(not(entry, "the same file as the first name"));
                }
            } else {
                if !added.insert(object) {
                    return Err(not(entry, "a record of its own"));
                }
                asked.push(Some((entry, copied)));
            }
            objects.push(Some(object));
        }
        for id in &added.all {
            let named = tree.streams(*id).filter(|s| tree.stream_name(*s).is_some()).count();
            if streams.get(id).copied().unwrap_or(0) != named {
                return Err(wrong(0, "streams", format!("no others in record {}", tree.object(*id).number)));
            }
        }
        if !copies.is_empty() {
            return Err(wrong(0, "copies", format!("a file for each of them, {} have none", copies.len())));
        }
        let one = |keeper: &mut Keeper<'_>, (id, asked): (&ObjectId, Asked<'_>)| {
            let record = RawRecord::read(&self.new.reader, self.now.tree.object(*id).number)?;
            if let Some((entry, copied)) = asked {
                self.entry(entry, *id, &record, copied, keeper)?;
            }
            self.record(*id, record)
        };
        let names =
            added.all.par_iter().zip(asked).map_init(|| self.keeper.clone(), one).collect::<Result<Vec<_>>>()?;
        Ok((added, names))
    }
    /// Of each new entry the object that its name leads to; of a stream none. `top` is the directory of `--into`.
    fn found(&self, top: ObjectId) -> Vec<Option<ObjectId>> {
        let (tree, entries) = (&self.now.tree, &self.job.tree.entries);
        let look = |all: &[Option<ObjectId>], entry: &NewEntry| {
            let parent = match entry.parent {
                None => Some(top),
                Some(p) => all.get(p).copied().flatten(),
            };
            parent.and_then(|p| tree.child(p, &entry.name)).map(|e| tree.entry(e).object)
        };
        // Directories first, one after the other: each is found in the one before. All others then at once.
        let mut all = vec![None; entries.len()];
        for (position, entry) in entries.iter().enumerate().filter(|(_, e)| matches!(e.kind, NewKind::Dir)) {
            let object = look(&all, entry);
            all.get_mut(position).into_iter().for_each(|slot| *slot = object);
        }
        let at_once = |(position, entry): (usize, &NewEntry)| match entry.kind {
            NewKind::Dir => all.get(position).copied().flatten(),
            NewKind::Stream { .. } => None,
            _ => look(&all, entry),
        };
        entries.par_iter().enumerate().map(at_once).collect()
    }
    /// All older entries are as they were, the image is gone, and there is nothing else.
    fn older(&self, added: &Added) -> Result<()> {
        let (old, new) = (&self.before.tree, &self.now.tree);
        let mut left: HashMap<Vec<u8>, Vec<EntryId>> = HashMap::new();
        for (e, _) in new.order().filter(|(e, _)| !added.has(new.entry(*e).object)) {
            left.entry(new.path(e)).or_default().push(e);
        }
        let streams = |tree: &Tree, object: ObjectId| -> Vec<_> {
            let one =
                |s| (tree.stream(s).size, tree.stream(s).valid, tree.stream_name(s).map(<[u8]>::to_vec), tree.map(s));
            tree.streams(object).map(one).collect()
        };
        let own = [MFT, BITMAP];
        for (e, _) in old.order() {
            let object = old.entry(e).object;
            if self.job.image.has(object) {
                continue;
            }
            let same = |other: &EntryId| {
                let now = new.entry(*other).object;
                let about = old.object(object);
                about == new.object(now) && (own.contains(&about.number) || streams(old, object) == streams(new, now))
            };
            let path = old.path(e);
            let found = left.get_mut(&path).and_then(|all| all.iter().position(same).map(|i| all.swap_remove(i)));
            if found.is_none() {
                return Err(wrong(0, "older entry", format!("{} as it was", printable(&path))));
            }
        }
        match left.iter().find(|(_, all)| !all.is_empty()) {
            Some((path, _)) => {
                Err(wrong(0, "entry", format!("nothing that was not asked for, but {}", printable(path))))
            }
            None => Ok(()),
        }
    }
    pub(super) fn old_reader(&self) -> &Reader {
        &self.old.reader
    }
    fn image_records(&self) -> Result<BTreeSet<u64>> {
        let mut all = BTreeSet::new();
        for file in self.job.image.files() {
            let number = self.before.tree.object(file.object).number;
            all.extend(self.old.reader.file(number, 0)?.recs.iter().map(|r| r.number));
        }
        Ok(all)
    }
    /// Records in use before are the same byte by byte, but for `$MFT`'s own and the directories that changed; those of
    /// the image are free.
    fn records(&self, added: &Added) -> Result<()> {
        let gone = self.image_records()?;
        let reparse = self.before.reparse_index().filter(|_| self.points(added).next().is_some());
        let (size, count) = (self.old.reader.boot.record, self.old.reader.records());
        let parents: BTreeSet<u64> = self.changed_dirs()?;
        let sequence =
            |s: &State, n: u64| usize::try_from(n).ok().and_then(|n| s.census.slots.get(n)).map_or(0, |s| s.0);
        for n in &gone {
            if self.now.census.in_use.get(*n) || sequence(self.before, *n) == sequence(self.now, *n) {
                let place = self.old.reader.place(*n).get();
                return Err(wrong(place, "the image's record", "free, with another sequence number"));
            }
            let old = RawRecord::read(&self.old.reader, *n)?;
            let freed = audit_form::freed(&old, self.new.reader.record(*n)?);
            freed.map_err(|what| wrong(self.old.reader.place(*n).get(), "the image's record", what))?;
        }
        let step = SWEEP.checked_div(size as u64).unwrap_or(0).max(1);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        let mut first = 0u64;
        while first < count {
            let records = count.saturating_sub(first).min(step);
            let len = usize::try_from(records).unwrap_or(0).saturating_mul(size);
            let at = Offset::new(first.saturating_mul(size as u64));
            a.resize(len, 0);
            b.resize(len, 0);
            self.old.reader.read_mft(at, &mut a)?;
            self.new.reader.read_mft(at, &mut b)?;
            for (n, (a, b)) in (first..).zip(a.chunks_exact(size).zip(b.chunks_exact(size))) {
                let free = a == b || !self.before.census.in_use.get(n) || gone.contains(&n);
                if !free && n != MFT && !parents.contains(&n) && reparse != Some(n) {
                    return Err(wrong(self.old.reader.place(n).get(), "MFT record", format!("record {n} as it was")));
                }
            }
            first = first.saturating_add(records);
        }
        self.reparse_index(added)?;
        for number in &parents {
            self.changed(*number, |r, a| NAMES.has(a.kind, r.name(a)))?;
        }
        if let Some(number) = reparse {
            self.changed(number, |r, a| REPARSE.has(a.kind, r.name(a)))?;
        }
        self.changed(MFT, |r, a| matches!(a.kind, kind::DATA | kind::BITMAP) && r.name(a).is_empty())
    }
    /// Directories of before that have other entries now.
    fn changed_dirs(&self) -> Result<BTreeSet<u64>> {
        let (into, _) = self.before.descend(&self.job.tree.into)?;
        let mut all = BTreeSet::from([into]);
        for file in self.job.image.files() {
            let number = self.before.tree.object(file.object).number;
            all.extend(self.old.reader.file(number, 0)?.names.iter().map(|n| n.parent.number()));
        }
        Ok(all)
    }
    /// The index of each new or changed directory has exactly the names that the records have, in order, with the right
    /// copies of sizes and attributes in new entries; new names are of use to Win32.
    fn directories(&self, added: &Added, values: &[Vec<Vec<u8>>]) -> Result<()> {
        let tree = &self.now.tree;
        let mut all: BTreeSet<u64> = self.changed_dirs()?;
        all.extend(added.all.iter().filter(|o| self.is_dir(**o)).map(|o| tree.object(*o).number));
        let all: Vec<u64> = all.into_iter().collect();
        all.par_iter().try_for_each(|number| self.directory(*number, added, values))
    }
    fn directory(&self, number: u64, added: &Added, values: &[Vec<Vec<u8>>]) -> Result<()> {
        let tree = &self.now.tree;
        let place = self.new.reader.place(number).get();
        let dir = OldDir::read(&self.new.reader, number).or_else(|e| match e {
            // A new directory may have its index in a second record.
            Error::Refused(_) => OldDir::read_listed(&self.new.reader, number),
            e => Err(e),
        })?;
        if index::out_of_order(&dir.keys, &self.now.up).is_some() {
            return Err(wrong(place, "directory index", "entries in order"));
        }
        dir.form(&self.new.reader)?.map_err(|what| wrong(place, "directory index", what))?;
        if self.before.census.in_use.get(number) {
            self.older_keys(&dir, added)?;
        }
        let object = |n: u64| usize::try_from(n).ok().and_then(|n| self.by_number.get(n)).copied().flatten();
        let here = object(number).ok_or_else(|| wrong(place, "directory index", "a directory"))?;
        let sequence = |n: u64| usize::try_from(n).ok().and_then(|n| self.now.census.slots.get(n)).map_or(0, |s| s.0);
        let mut known = 0usize;
        for key in &dir.keys {
            let n = key.reference.number();
            let name = utf16::to_wtf8(key.value.get(0x42..).unwrap_or_default());
            let found = tree.child(here, &name).is_some_and(|e| tree.object(tree.entry(e).object).number == n);
            // Keys are in order, so no name is met twice.
            known = known.saturating_add(found.into());
            let right = found || self.other_name(number, key)?;
            if !right || key.reference.sequence() != sequence(n) || !self.now.census.in_use.get(n) {
                return Err(wrong(
                    place,
                    "directory index",
                    format!("no entry without a file, but one for record {n}"),
                ));
            }
            if let Some(id) = object(n)
                && let Some(at) = added.place(id)
            {
                // The record has the same copies.
                if !values.get(at).is_some_and(|all| all.contains(&key.value)) {
                    return Err(wrong(place, "directory index", format!("the name that record {n} has")));
                }
                self.copies(key, id, Reference(number | u64::from(sequence(number)) << 48), place)?;
            }
        }
        let names = tree.children(here).len();
        if known != names {
            return Err(wrong(place, "directory index", format!("{names} entries for files, not {known}")));
        }
        Ok(())
    }
    /// The entries that an index had are in it as they were, but for those of the image, and for the size of `$MFT`.
    fn older_keys(&self, dir: &OldDir, added: &Added) -> Result<()> {
        let gone = self.image_records()?;
        let new: BTreeSet<u64> = added.iter().map(|id| self.now.tree.object(*id).number).collect();
        let plain = |k: &&Key| k.reference.number() != MFT;
        let old = OldDir::read(&self.old.reader, dir.record.number)?;
        let before = old.keys.iter().filter(|k| !gone.contains(&k.reference.number())).filter(plain);
        let now = dir.keys.iter().filter(|k| !new.contains(&k.reference.number())).filter(plain);
        if before.ne(now) {
            let place = self.new.reader.place(dir.record.number).get();
            return Err(wrong(place, "directory index", "the older entries as they were"));
        }
        Ok(())
    }
    /// Whether a key is a name that the tree leaves out: the root's own, and short twins.
    fn other_name(&self, dir: u64, key: &Key) -> Result<bool> {
        let own = key.reference.number() == dir;
        let record = RawRecord::read(&self.new.reader, key.reference.number())?;
        let name = |v: &[u8]| v.get(0x40..).map(<[u8]>::to_vec);
        let same = |a: &Raw| a.kind == kind::FILE_NAME && record.value_of(a).and_then(name) == name(&key.value);
        let short = FileName::decode(&key.value).is_some_and(|n| n.space == super::layout::DOS);
        Ok((own || short) && record.attributes.iter().any(same))
    }
    /// What a new entry says of its file.
    fn copies(&self, key: &Key, id: ObjectId, parent: Reference, place: u64) -> Result<()> {
        let tree = &self.now.tree;
        let u64_at =
            |at: usize| key.value.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b));
        let object = tree.object(id);
        let t = object.times;
        let times = [t.created, t.modified, t.changed, t.accessed].map(|t| t.map_or(0, filetime));
        let (mut size, mut allocated, mut flags) = (0, 0, u64::from(object.attributes));
        if self.is_dir(id) {
            flags = (flags & !u64::from(DIRECTORY_BIT)) | u64::from(HAS_INDEX);
        } else if let Some(stream) = tree.data(id) {
            size = tree.stream(stream).size;
            allocated = self.allocated(stream);
        }
        let word = self.word(id);
        let name = key.name();
        let right = FileName::decode(&key.value).is_some_and(|n| n.parent == parent)
            && [u64_at(8), u64_at(16), u64_at(24), u64_at(32)] == times
            && [u64_at(0x28), u64_at(0x30), u64_at(0x38)] == [allocated, size, flags | u64::from(word) << 32]
            && upcase::legal(&name);
        if right {
            return Ok(());
        }
        Err(wrong(place, "directory index", format!("what record {} says of itself, in its entry", object.number)))
    }
    /// Only bytes behind the ends of linked files are zeroed, and all of them where that was asked for.
    fn slack(&self) -> Result<()> {
        let cluster = self.old.reader.boot.cluster;
        let mut tails = HashSet::new();
        for entry in self.job.tree.entries.iter().filter(|_| self.job.zero_slack) {
            if let NewKind::File { content: Content::Linked(extents), .. }
            | NewKind::Stream { content: Content::Linked(extents), .. } = &entry.kind
            {
                tails.extend(tail(extents, cluster));
            }
        }
        let staged: HashSet<_> = self.staging.slack.iter().copied().collect();
        if staged != tails || staged.len() != self.staging.slack.len() {
            return Err(wrong(0, "slack", "the bytes behind the ends of the linked files, and no others"));
        }
        Ok(())
    }
}

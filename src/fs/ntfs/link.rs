//! NTFS as host: new records and indexes that lead to clusters where the data already is.
//!
//! `wanted` has the new tree as NTFS sees it, `dirs` the indexes, `finish` what is written in which order.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

use crate::error::{Error, Result, refused};
use crate::fs::asked::printable;
use crate::fs::host::{Job, NewKind};
use crate::fs::ntfs::bits::Bits;
use crate::fs::ntfs::dirs::NewDir;
use crate::fs::ntfs::encode::{Head, capacity, record, record_into, resident_len};
use crate::fs::ntfs::extras::Keeper;
use crate::fs::ntfs::host::State;
use crate::fs::ntfs::index::Form;
use crate::fs::ntfs::layout::{DIRECTORY, IN_USE, Reference};
use crate::fs::ntfs::mft_grow::{self, Grown, NewRecords};
use crate::fs::ntfs::old_dir::OldDir;
use crate::fs::ntfs::pack::{self, Packed, Value};
use crate::fs::ntfs::raw::{Places, RawRecord, stored};
use crate::fs::ntfs::read::Ntfs;
use crate::fs::ntfs::runs::Run;
use crate::fs::ntfs::space::Space;
use crate::fs::ntfs::wanted::{From, Node, Wanted, take_for_copies, take_with_image};
use crate::txn::Staging;

/// The new state while it is put together.
pub(super) struct Build<'a> {
    pub(super) ntfs: &'a Ntfs,
    pub(super) state: &'a State,
    pub(super) space: Space,
    /// `$Bitmap` as it will be.
    pub(super) bitmap: Bits,
    pub(super) staging: Staging,
    /// New records that take the place of free ones, and those that are new altogether.
    pub(super) records: NewRecords,
    /// Records that are changed.
    pub(super) changed: BTreeMap<u64, Vec<u8>>,
    /// References of the directories of the wanted tree.
    pub(super) dir_refs: Vec<u64>,
    pub(super) form: Form,
}

/// The records of an image's files, and everything that they have.
pub(super) struct Image {
    pub(super) records: Vec<RawRecord>,
    clusters: Vec<Run>,
    pub(super) parents: BTreeSet<u64>,
}

fn of_file(ntfs: &Ntfs, number: u64) -> Result<Image> {
    let chunk = ntfs.reader.file(number, 0)?;
    let numbers: BTreeSet<u64> = chunk.recs.iter().map(|r| r.number).collect();
    let records = numbers.iter().map(|n| RawRecord::read(&ntfs.reader, *n)).collect::<Result<Vec<_>>>()?;
    let clusters =
        records.iter().flat_map(|r| &r.attributes).flat_map(|a| stored(&a.runs).collect::<Vec<_>>()).collect();
    let parents = chunk.names.iter().map(|n| n.parent.number()).collect();
    Ok(Image { records, clusters, parents })
}

/// What becomes of the extended attributes of new entries; new ones without are secured as the image, or as the directory of
/// `--into`.
pub(super) fn keeper<'s>(ntfs: &'s Ntfs, state: &State, job: &Job<'_>) -> Result<Keeper<'s>> {
    let (into, _) = state.descend(&job.tree.into)?;
    let number = state.tree.object(job.image.named.object).number;
    let of = |number| RawRecord::read(&ntfs.reader, number).map(|r| ntfs.security_of(&r));
    Ok(Keeper::new(ntfs.secure(), [of(number)?, of(into)?], ntfs.reader.boot.record))
}

/// Clusters for records and indexes of a job, about.
fn metadata(ntfs: &Ntfs, job: &Job<'_>) -> u64 {
    let boot = &ntfs.reader.boot;
    let one = |e: &crate::fs::host::NewEntry| {
        let name = (e.name.len() as u64).saturating_mul(3).saturating_add(0x60);
        let own = match e.kind {
            NewKind::Dir => (boot.index_block as u64).max(boot.cluster).saturating_mul(2),
            _ => 0,
        };
        name.saturating_add(boot.record as u64).saturating_add(own)
    };
    job.tree.entries.iter().map(one).fold(0u64, u64::saturating_add).div_ceil(boot.cluster)
}

/// The new state of a volume for a job; `job.image` and `--into` are looked up in `state`.
///
/// # Errors
/// [`Error::Refused`] where it can't be done.
pub(super) fn build(ntfs: &Ntfs, state: &State, job: &Job<'_>) -> Result<Staging> {
    let reader = &ntfs.reader;
    let (host_dir, depth) = state.descend(&job.tree.into)?;
    let number = state.tree.object(job.image.named.object).number;
    let mut image = Image { records: Vec::new(), clusters: Vec::new(), parents: BTreeSet::new() };
    for file in job.image.files() {
        let file = of_file(ntfs, state.tree.object(file.object).number)?;
        image.records.extend(file.records);
        image.clusters.extend(file.clusters);
        image.parents.extend(file.parents);
    }
    let image = image;
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
    space.keep(metadata(ntfs, job));
    let made = state.tree.object(job.image.named.object).times;
    let keeper = keeper(ntfs, state, job)?;
    let cluster = reader.boot.cluster;
    let (staged, copies, moves) = match &job.tree.reuse {
        Some(reuse) => take_with_image(reuse, &mut space, cluster)?,
        None => {
            let (staged, copies) = take_for_copies(job, &mut space, cluster)?;
            (staged, copies, Vec::new())
        }
    };
    let mut from = From { reader, image: &mut left, space: &mut space, made, up: &state.up, keeper, copies };
    let mut wanted = Wanted::new(job, depth, &mut from)?;
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
        staging: Staging {
            copies: staged,
            moves,
            slack: std::mem::take(&mut wanted.tails),
            fresh: std::mem::take(&mut wanted.fresh),
            ..Staging::default()
        },
        records: NewRecords::default(),
        changed: BTreeMap::new(),
        dir_refs: Vec::new(),
        form: parent.form,
    };
    if !image.records.iter().any(|r| r.number == number) {
        return Err(refused("the image has no record"));
    }
    let (mut grown, drafts, dirs) = build.nodes(&wanted, &parent)?;
    build.directories(&wanted, dirs, &drafts)?;
    build.old_indexes(&wanted, parent, &image, &grown, &drafts)?;
    for record in &image.records {
        grown.bits.put(record.number, false);
    }
    build.finish(&image, &grown)
}

/// A new record in the making.
pub(super) struct Draft {
    /// Its references, the base first.
    pub(super) references: Vec<u64>,
}

impl Draft {
    /// The reference of the base.
    pub(super) fn base(&self) -> u64 {
        self.references.first().copied().unwrap_or(0)
    }
}

impl Build<'_> {
    pub(super) fn cluster(&self) -> u64 {
        self.ntfs.reader.boot.cluster
    }
    pub(super) fn capacity(&self) -> usize {
        capacity(self.ntfs.reader.boot.record)
    }
    pub(super) fn too_many(node: &Node) -> Error {
        let name = node.names.first().map(|n| String::from_utf16_lossy(&n.1)).unwrap_or_default();
        refused(format!("{}: so many pieces or names that NTFS can't describe them", printable(name.as_bytes())))
    }
    /// Packs the attributes of a node; those of an index come in behind the others of their type.
    pub(super) fn pack(&self, node: &Node, index: &[Value<'_>]) -> Result<Packed> {
        let values = self.values(node, index);
        pack::pack(&values, self.capacity(), self.cluster()).ok_or_else(|| Self::too_many(node))
    }
    fn values<'v>(&self, node: &'v Node, index: &'v [Value<'_>]) -> Vec<Value<'v>> {
        let refs = &self.dir_refs;
        let mut values = node.values(self.cluster(), |d| refs.get(d).copied().unwrap_or(0));
        values.extend(index.iter().map(Value::borrowed));
        values.sort_by_key(|v| v.kind);
        values
    }
    /// How many records a node needs.
    fn count(&self, node: &Node, index: &[Value<'_>]) -> Result<usize> {
        let len = index.iter().map(Value::len).fold(node.sum(|v| v.len()), usize::saturating_add);
        if len <= self.capacity() { Ok(1) } else { Ok(self.pack(node, index)?.records.len()) }
    }
    /// Takes records for all nodes and writes those of files.
    fn nodes(&mut self, wanted: &Wanted, parent: &OldDir) -> Result<(Grown, Vec<Draft>, Vec<NewDir>)> {
        let dirs = self.new_dirs(wanted)?;
        let form = self.form;
        let counts: Vec<usize> = wanted
            .nodes
            .par_iter()
            .map(|node| match node.dir.and_then(|at| dirs.get(at)) {
                Some(dir) => self.count(node, &dir.values(form)),
                None => self.count(node, &[]),
            })
            .collect::<Result<_>>()?;
        let need = counts.iter().map(|c| *c as u64).sum();
        let grown = mft_grow::grow(&self.ntfs.reader, &self.state.census, need, &mut self.space)?;
        let mut taken = grown.taken.iter().map(|(n, sequence)| n | u64::from(*sequence) << 48);
        let drafts: Vec<Draft> =
            counts.iter().map(|c| Draft { references: taken.by_ref().take(*c).collect() }).collect();
        let base = |node: usize| drafts.get(node).map_or(0, Draft::base);
        self.dir_refs = wanted.dirs.iter().map(|d| d.node.map_or_else(|| parent.record.reference(), base)).collect();
        let mut records = NewRecords::new(&grown, self.ntfs.reader.boot.record);
        // Files of one record, which most are, by the place that theirs has in the part of `$MFT` that is new.
        let mut here: Vec<Option<(&Node, u64)>> = vec![None; records.count()];
        let mut others = Vec::new();
        for (node, draft) in wanted.nodes.iter().zip(&drafts).filter(|(n, _)| n.dir.is_none()) {
            let reference = draft.base();
            let place = records.place(Reference(reference).number()).and_then(|at| here.get_mut(at));
            match place.filter(|_| draft.references.len() == 1) {
                Some(place) => *place = Some((node, reference)),
                None => others.push((node, draft)),
            }
        }
        records.fill(&here, |place, (node, reference)| self.one(place, node, reference))?;
        self.records = records;
        for (node, draft) in others {
            let packed = self.pack(node, &[])?;
            self.write(node, draft, packed)?;
        }
        Ok((grown, drafts, dirs))
    }
    /// The head of a node's record; of one that is not the base, with the reference of that.
    fn head(&self, node: &Node, reference: u64, base: Option<u64>) -> Result<Head> {
        let r = Reference(reference);
        let links = u16::try_from(node.names.len()).map_err(|_| Self::too_many(node))?;
        let directory = if node.dir.is_some() && base.is_none() { DIRECTORY } else { 0 };
        Ok(Head {
            size: self.ntfs.reader.boot.record,
            number: r.number(),
            sequence: r.sequence(),
            links: if base.is_none() { links } else { 0 },
            flags: IN_USE | directory,
            base: base.unwrap_or(0),
            usn: mft_grow::usn_of(&self.state.census, r.number()),
        })
    }
    /// Writes the only record of a file.
    fn one(&self, place: &mut [u8], node: &Node, reference: u64) -> Result<()> {
        let pieces: Option<Vec<Vec<u8>>> =
            self.values(node, &[]).iter().map(|v| pack::whole(v, self.cluster(), self.capacity())).collect();
        let pieces = pieces.ok_or_else(|| Self::too_many(node))?;
        let head = self.head(node, reference, None)?;
        record_into(place, &head, pieces.iter().map(Vec::as_slice)).ok_or_else(|| Self::too_many(node))
    }
    /// Writes the records of a node.
    pub(super) fn write(&mut self, node: &Node, draft: &Draft, mut packed: Packed) -> Result<()> {
        let fail = || Self::too_many(node);
        if packed.records.len() != draft.references.len() {
            return Err(fail());
        }
        if packed.list > 0 {
            let list = packed.list(&draft.references);
            let room = self
                .capacity()
                .saturating_sub(packed.records.first().into_iter().flatten().map(|p| p.bytes.len()).sum());
            let outside = resident_len(0, list.len()) > room;
            if outside {
                let len = list.len() as u64;
                let runs = self.fresh(list.clone())?;
                packed.with_list(&list, Some((&runs, len)), self.cluster()).ok_or_else(fail)?;
            } else {
                packed.with_list(&list, None, self.cluster()).ok_or_else(fail)?;
            }
        }
        for (i, (pieces, reference)) in packed.records.iter().zip(&draft.references).enumerate() {
            let head = self.head(node, *reference, if i == 0 { None } else { Some(draft.base()) })?;
            let bytes = record(&head, pieces.iter().map(|p| p.bytes.as_slice())).ok_or_else(fail)?;
            self.records.put(head.number, bytes);
        }
        Ok(())
    }
    /// Takes clusters that were free for metadata.
    pub(super) fn take(&mut self, bytes: u64) -> Result<Vec<Run>> {
        let runs = self.space.take(bytes.div_ceil(self.cluster()), 1);
        runs.ok_or_else(|| refused("too little space for directories and attribute lists"))
    }
    /// Writes bytes into clusters that were free.
    pub(super) fn fresh(&mut self, bytes: Vec<u8>) -> Result<Vec<Run>> {
        let runs = self.take(bytes.len() as u64)?;
        self.fill(&runs, bytes);
        Ok(runs)
    }
    /// Writes bytes into these clusters.
    pub(super) fn fill(&mut self, runs: &[Run], mut bytes: Vec<u8>) {
        let places = Places::new(runs, self.cluster());
        bytes.resize(usize::try_from(places.len()).unwrap_or(0), 0);
        self.staging.fresh.extend(places.fresh(0, bytes).unwrap_or_default());
    }
}

//! The new tree as NTFS has it: a record for each file and directory, an index for each directory.

use std::borrow::Cow;
use std::collections::HashMap;

use rayon::prelude::*;

use crate::error::{Result, refused};
use crate::extent::{Extent, Offset, Stream, Volume, What};
use crate::fs::Times;
use crate::fs::asked::printable;
use crate::fs::host::{Content, Job, NewKind};
use crate::fs::ntfs::bits::Bits;
use crate::fs::ntfs::dirs::LEAST;
use crate::fs::ntfs::encode::{Duplicated, Out, capacity, file_name, file_name_len, filetime, resident_len};
use crate::fs::ntfs::extras::{Extras, Keeper, Security};
use crate::fs::ntfs::layout::kind;
use crate::fs::ntfs::pack::{self, Body, Value};
use crate::fs::ntfs::reader::Reader;
use crate::fs::ntfs::reparse;
use crate::fs::ntfs::runs::{HOLE, Run};
use crate::fs::ntfs::space::Space;
use crate::fs::ntfs::upcase;
use crate::fs::utf16;
use crate::txn::reuse::{Move, Range, Reuse};
use crate::txn::{Copy, Fresh};

/// Attribute bits that are kept: read-only, hidden, system, archive, not indexed by content.
pub const KEPT: u32 = 0x2027;
/// Attribute bit of a sparse file.
const SPARSE_FILE: u32 = 0x200;
/// Attribute bit of a file that is compressed.
const PACKED_FILE: u32 = 0x800;
/// Attribute bit of a reparse point.
const REPARSE_FILE: u32 = 0x400;
/// Clusters of a compression unit.
const UNIT: u64 = 16;
/// The largest cluster of which compression units are made, in bytes.
pub const MAX_PACKED: u64 = 4096;
/// Bytes of `$STANDARD_INFORMATION` with the identity of a descriptor.
const INFORMATION: usize = 72;
/// Bytes that the runs of a value in clusters take in its record, about.
const RUNS: usize = 48;
/// Attribute bit that devices, sockets and pipes of WSL have.
const SPECIAL_FILE: u32 = 0x4_0000;
/// In copies of attributes: has an index of names.
const HAS_INDEX: u32 = 0x1000_0000;

/// A new record with its names.
#[derive(Debug, Default)]
pub struct Node {
    /// Directory (position in [`Wanted::dirs`]) and name.
    pub names: Vec<(usize, Vec<u16>)>,
    /// Made, changed, record changed, read.
    pub times: [u64; 4],
    /// Attribute bits.
    pub attributes: u32,
    /// Its streams.
    pub data: Vec<Value<'static>>,
    /// Security, reparse buffer, extended attributes.
    pub extras: Extras,
    /// Position of its directory, for one.
    pub dir: Option<usize>,
}

/// A directory that gets new entries.
#[derive(Debug, Default)]
pub struct Dir {
    /// Its node, none for the one that is there.
    pub node: Option<usize>,
    /// Its new entries: node, and which of its names.
    pub entries: Vec<(usize, usize)>,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Wanted {
    /// New records.
    pub nodes: Vec<Node>,
    /// The directory that is there, then new ones.
    pub dirs: Vec<Dir>,
    /// Bytes behind the ends of linked files.
    pub tails: Vec<(Offset<Volume>, u32)>,
    /// Bytes that did not fit into records.
    pub fresh: Vec<Fresh>,
}

/// A name as the plan has it, and as NTFS does; none where it can't.
type Name<'n> = (&'n [u8], Option<Vec<u16>>);

fn units(name: &[u8]) -> Option<Vec<u16>> {
    utf16::from_wtf8(name).filter(|n| upcase::legal(n))
}

/// Times as NTFS has them; what is missing is taken from the others, or from the image.
pub fn times(times: Times, made: Times) -> [u64; 4] {
    let some = times.modified.or(times.changed).or(times.created).or(made.modified).unwrap_or_default();
    [times.created, times.modified, times.changed, times.accessed].map(|t| filetime(t.unwrap_or(some)))
}

/// What the tree is made from.
pub struct From<'a> {
    /// The volume.
    pub reader: &'a Reader,
    /// Clusters of the image that no new file has taken yet.
    pub image: &'a mut Bits,
    /// Free clusters, for copies.
    pub space: &'a mut Space,
    /// Times of the image.
    pub made: Times,
    /// The volume's table of upper case.
    pub up: &'a upcase::UpCase,
    /// What becomes of extended attributes.
    pub keeper: Keeper<'a>,
    /// Clusters of what is copied: see [`take_for_copies`].
    pub copies: Taken,
}

/// Clusters by the positions of the entries that are copied into them.
pub type Taken = HashMap<usize, Vec<Run>>;

/// Takes clusters for all that is copied, in the order in which it lies on the host: the copies are then one pass.
///
/// # Errors
/// [`Error::Refused`] where there is too little space.
pub fn take_for_copies(job: &Job<'_>, space: &mut Space, cluster: u64) -> Result<(Vec<Copy>, Taken)> {
    let (mut copies, mut places) = (Vec::new(), HashMap::new());
    for position in job.tree.copies() {
        let size = match job.tree.entries.get(position).map(|e| &e.kind) {
            Some(NewKind::File { size, .. } | NewKind::Stream { size, .. }) => *size,
            _ => continue,
        };
        let runs = space.take_for_data(size.div_ceil(cluster));
        let runs = runs.ok_or_else(|| refused("too little space for copies"))?;
        let place = |r: &Run| (Offset::new(r.lcn.saturating_mul(cluster)), r.len.saturating_mul(cluster));
        copies.push(Copy { entry: position, size, to: runs.iter().map(place).collect() });
        places.insert(position, runs);
    }
    Ok((copies, places))
}

/// The same where clusters of the image may be filled, with how they are. What is left of these is for metadata when no others are.
///
/// # Errors
/// [`Error::Refused`] where there is too little space.
pub fn take_with_image(reuse: &Reuse, space: &mut Space, cluster: u64) -> Result<(Vec<Copy>, Taken, Vec<Move>)> {
    let range = |r: &Run| (r.lcn.saturating_mul(cluster), r.len.saturating_mul(cluster));
    let run = |(at, len): &Range| Run {
        lcn: at.checked_div(cluster).unwrap_or(0),
        len: len.checked_div(cluster).unwrap_or(0),
    };
    let free: Vec<Range> = space.all_free().iter().map(range).collect();
    let layout = reuse.lay_out(&free).ok_or_else(|| refused("too little space for copies"))?;
    space.with_image(layout.free.iter().map(run), layout.rest.iter().map(run));
    let (mut copies, mut places) = (Vec::new(), HashMap::new());
    for ((entry, to), want) in layout.copies.into_iter().zip(&reuse.wants) {
        let mut runs: Vec<Run> = Vec::with_capacity(to.len());
        for Run { lcn, len } in to.iter().map(run) {
            match runs.last_mut() {
                Some(last) if last.lcn.saturating_add(last.len) == lcn => last.len = last.len.saturating_add(len),
                _ => runs.push(Run { lcn, len }),
            }
        }
        let to = to.into_iter().map(|(at, len)| (Offset::new(at), len)).collect();
        copies.push(Copy { entry, size: want.size, to });
        places.insert(entry, runs);
    }
    Ok((copies, places, layout.moves))
}

impl Wanted {
    /// The tree of a job, whose names of `--into` from `depth` on are not there.
    ///
    /// # Errors
    /// [`Error::Refused`] where NTFS can't hold it, or there is too little space.
    pub fn new(job: &Job<'_>, depth: usize, from: &mut From<'_>) -> Result<Self> {
        // Growing it step by step would move everything some twenty times.
        let nodes = Vec::with_capacity(job.tree.entries.len().saturating_add(job.tree.into.len()));
        let mut all = Self { nodes, dirs: vec![Dir::default()], ..Self::default() };
        let mut top = 0;
        for name in job.tree.into.iter().skip(depth) {
            let node = all.node(top, (name, units(name)), times(Times::default(), from.made), 0)?;
            all.extras(node, from.keeper.none(true));
            top = all.dir(node);
        }
        let mut names: Vec<Option<Vec<u16>>> = job.tree.entries.par_iter().map(|e| units(&e.name)).collect();
        // Of each entry, its node, and its directory where it is one.
        let mut made: Vec<(usize, Option<usize>)> = Vec::with_capacity(job.tree.entries.len());
        for (position, entry) in job.tree.entries.iter().enumerate() {
            let parent = match entry.parent {
                None => Some(top),
                Some(p) => made.get(p).and_then(|m| m.1),
            };
            let parent = parent.ok_or_else(|| refused(format!("{} is in no directory", printable(&entry.name))))?;
            let times = times(entry.times, from.made);
            let attributes = entry.attributes & KEPT;
            let name = (entry.name.as_slice(), names.get_mut(position).and_then(Option::take));
            let one = match &entry.kind {
                NewKind::Dir => {
                    // What is made in a directory with this bit is compressed.
                    let attributes = attributes | entry.attributes & PACKED_FILE;
                    let node = all.node(parent, name, times, attributes)?;
                    all.extras(node, from.keeper.of(entry));
                    (node, Some(all.dir(node)))
                }
                NewKind::File { size, content } => {
                    let body = all.content(job, position, *size, content, from)?;
                    let node = all.node(parent, name, times, attributes)?;
                    all.extras(node, from.keeper.of(entry));
                    if let Some(n) = all.nodes.get_mut(node) {
                        // Most files have one stream, and there may be many files: not more room than that.
                        n.data = vec![Value { kind: kind::DATA, name: Cow::default(), body }];
                    }
                    (node, None)
                }
                NewKind::Symlink(_) | NewKind::Special(_) => {
                    let node = all.node(parent, name, times, attributes)?;
                    let extras = from.keeper.special(entry);
                    all.extras(node, extras.ok_or_else(|| refused(format!("{} is too long", printable(&entry.name))))?);
                    if let Some(n) = all.nodes.get_mut(node) {
                        let body = Body::Resident(Cow::default(), false);
                        n.data.push(Value { kind: kind::DATA, name: Cow::default(), body });
                    }
                    (node, None)
                }
                NewKind::HardLink(first) => {
                    let node = made.get(*first).filter(|m| m.1.is_none()).map(|m| m.0);
                    let node =
                        node.ok_or_else(|| refused(format!("{} is a name of nothing", printable(&entry.name))))?;
                    all.name(node, parent, name)?;
                    (node, None)
                }
                NewKind::Stream { of, size, content } => {
                    let body = all.content(job, position, *size, content, from)?;
                    let node = made.get(*of).map(|m| m.0);
                    let name = utf16::from_wtf8(&entry.name).filter(|n| (1..=255).contains(&n.len()));
                    let name = name.filter(|n| !n.iter().any(|u| [0, 0x2F, 0x3A, 0x5C].contains(u)));
                    let (Some(node), Some(name)) = (node, name) else {
                        return Err(refused(format!("{} is no stream that NTFS can have", printable(&entry.name))));
                    };
                    let up = from.up;
                    if let Some(n) = all.nodes.get_mut(node) {
                        if n.data.iter().any(|v| up.fold(&v.name) == up.fold(&name)) {
                            return Err(refused(format!("two streams would have the name {}", printable(&entry.name))));
                        }
                        let at = n.data.partition_point(|v| up.compare(&v.name, &name).is_lt());
                        n.data.insert(at, Value { kind: kind::DATA, name: name.into(), body });
                    }
                    (node, None)
                }
            };
            made.push(one);
        }
        let mut nodes = std::mem::take(&mut all.nodes);
        let room = capacity(from.reader.boot.record);
        let fits: Vec<bool> = nodes.par_iter().map(|node| node.fits(room)).collect();
        for (node, _) in nodes.iter_mut().zip(fits).filter(|(_, fits)| !fits) {
            all.fit(node, from)?;
        }
        all.nodes = nodes;
        Ok(all)
    }
    /// Leaves only so many bytes in a node's record that it has room for them; the others go to clusters, the most first.
    fn fit(&mut self, node: &mut Node, from: &mut From<'_>) -> Result<()> {
        let cluster = from.reader.boot.cluster;
        let room = capacity(from.reader.boot.record);
        loop {
            if node.fits(room) {
                return Ok(());
            }
            let len = |v: &Value<'_>| match &v.body {
                Body::Resident(bytes, _) => bytes.len(),
                Body::Runs { .. } => 0,
            };
            let (ea, point) = (node.extras.ea.as_deref_mut(), node.extras.point.as_deref_mut());
            let all = node.data.iter_mut().chain(ea).chain(point);
            let Some(largest) = all.max_by_key(|v| len(v)).filter(|v| len(v) > RUNS) else {
                return Ok(());
            };
            let Body::Resident(bytes, _) = &mut largest.body else { return Ok(()) };
            let bytes = std::mem::take(bytes);
            let size = bytes.len() as u64;
            let runs = from.space.take_for_data(size.div_ceil(cluster));
            let runs = runs.ok_or_else(|| refused("too little space for copies"))?;
            let mut rest: &[u8] = &bytes;
            for run in &runs {
                let whole = usize::try_from(run.len.saturating_mul(cluster)).unwrap_or(0);
                let (now, later) = rest.split_at_checked(whole).unwrap_or((rest, &[]));
                let mut bytes = now.to_vec();
                bytes.resize(whole, 0);
                self.fresh.push(Fresh { at: Offset::new(run.lcn.saturating_mul(cluster)), bytes });
                rest = later;
            }
            largest.body = Body::Runs { runs: runs.into(), size, valid: size, packed: false };
        }
    }
    fn extras(&mut self, node: usize, extras: Extras) {
        if let Some(n) = self.nodes.get_mut(node) {
            n.extras = extras;
        }
    }
    fn dir(&mut self, node: usize) -> usize {
        let at = self.dirs.len();
        self.dirs.push(Dir { node: Some(node), entries: Vec::new() });
        if let Some(n) = self.nodes.get_mut(node) {
            n.dir = Some(at);
        }
        at
    }
    fn node(&mut self, parent: usize, name: Name<'_>, times: [u64; 4], attributes: u32) -> Result<usize> {
        let at = self.nodes.len();
        self.nodes.push(Node { times, attributes, ..Node::default() });
        self.name(at, parent, name)?;
        Ok(at)
    }
    fn name(&mut self, node: usize, parent: usize, (name, units): Name<'_>) -> Result<()> {
        let units = units.ok_or_else(|| refused(format!("{} is no name that NTFS can have", printable(name))))?;
        let (Some(n), Some(dir)) = (self.nodes.get_mut(node), self.dirs.get_mut(parent)) else {
            return Err(refused("a directory is missing"));
        };
        dir.entries.push((node, n.names.len()));
        n.names.reserve_exact(1);
        n.names.push((parent, units));
        Ok(())
    }
    fn content(
        &mut self,
        job: &Job<'_>,
        position: usize,
        size: u64,
        content: &Content,
        from: &mut From<'_>,
    ) -> Result<Body<'static>> {
        let cluster = from.reader.boot.cluster;
        let name = || job.tree.entries.get(position).map(|e| printable(&e.name)).unwrap_or_default();
        if size == 0 {
            return Ok(Body::Resident(Cow::default(), false));
        }
        match content {
            Content::Empty => Err(refused(format!("{} has bytes that are nowhere", name()))),
            Content::Bytes(bytes) if bytes.len() as u64 == size => Ok(Body::Resident(bytes.clone().into(), false)),
            Content::Bytes(_) => Err(refused(format!("{} has other bytes than its size says", name()))),
            Content::Linked(extents) => {
                let (runs, valid, clusters) = linked(extents, from, &name)?;
                if clusters != size.div_ceil(cluster) || extents.iter().map(|e| e.len).sum::<u64>() != size {
                    return Err(refused(format!("{}: extents of other bytes than {size}", name())));
                }
                self.tail(job, extents, cluster);
                Ok(Body::Runs { runs: runs.into(), size, valid: valid.min(size), packed: false })
            }
            Content::Packed { valid, extents } => {
                let (runs, _, clusters) = linked(extents, from, &name)?;
                let whole = clusters.is_multiple_of(UNIT) && extents.iter().all(|e| e.len.is_multiple_of(cluster));
                if !whole || cluster > MAX_PACKED || clusters.saturating_mul(cluster) < size {
                    return Err(refused(format!("{}: its extents are no compression units", name())));
                }
                Ok(Body::Runs { runs: runs.into(), size, valid: (*valid).min(size), packed: true })
            }
            Content::Copied => {
                let runs = from.copies.remove(&position);
                let runs = runs.ok_or_else(|| refused(format!("{} is to be copied, and has no place", name())))?;
                Ok(Body::Runs { runs: runs.into(), size, valid: size, packed: false })
            }
        }
    }
    fn tail(&mut self, job: &Job<'_>, extents: &[Extent<Stream, Volume>], cluster: u64) {
        self.tails.extend(tail(extents, cluster).filter(|_| job.zero_slack));
    }
}

/// Bytes behind the last stored byte of a linked file, in its cluster.
pub fn tail(extents: &[Extent<Stream, Volume>], cluster: u64) -> Option<(Offset<Volume>, u32)> {
    let (place, len) = extents.iter().rev().find_map(|e| match e.what {
        What::Stored(p) => Some((p, e.len)),
        _ => None,
    })?;
    let used = len.checked_rem(cluster).filter(|used| *used > 0)?;
    let rest = u32::try_from(cluster.saturating_sub(used)).ok()?;
    Some((place.offset.saturating_add(len), rest))
}

/// Runs of extents over clusters of the image, which are then no longer the image's; the last stored byte where only zeros follow
/// (the end where none do), and how many clusters these are.
fn linked(
    extents: &[Extent<Stream, Volume>],
    from: &mut From<'_>,
    name: &dyn Fn() -> String,
) -> Result<(Vec<Run>, u64, u64)> {
    let cluster = from.reader.boot.cluster;
    let mut runs: Vec<Run> = Vec::new();
    let (mut at, mut clusters, mut valid) = (0u64, 0u64, u64::MAX);
    let zeros = extents.iter().rposition(|e| e.what != What::Zero).map_or(0, |n| n.saturating_add(1));
    for (i, e) in extents.iter().enumerate() {
        let end = e.start.get().saturating_add(e.len);
        // Only the last, or the last before zeros to the end, may end within a cluster.
        let last = i.saturating_add(1) == extents.len();
        let ragged = end.checked_rem(cluster) != Some(0);
        let before_zeros = i.saturating_add(1) == zeros && i.saturating_add(2) == extents.len();
        let lcn = match e.what {
            What::Zero => Some(HOLE),
            What::Stored(p) if p.layer == from.reader.volume.id() => {
                Some(p.offset.get()).filter(|p| p.checked_rem(cluster) == Some(0)).and_then(|p| p.checked_div(cluster))
            }
            _ => None,
        };
        let lcn = lcn.filter(|_| (last || before_zeros || !ragged) && e.start.get() == at);
        let lcn = lcn.ok_or_else(|| refused(format!("{}: its extents are no clusters of the host", name())))?;
        if before_zeros && ragged {
            valid = end;
        }
        at = end;
        let len = end.div_ceil(cluster).saturating_sub(clusters);
        clusters = clusters.saturating_add(len);
        if len == 0 {
            continue;
        }
        let run = Run { len, lcn };
        if lcn != HOLE {
            from.image
                .put_run(run, false)
                .map_err(|n| refused(format!("{}: cluster {n} is not the image's, or another file's too", name())))?;
        }
        match runs.last_mut() {
            Some(r) if r.lcn == HOLE && lcn == HOLE => r.len = r.len.saturating_add(run.len),
            Some(r) if lcn != HOLE && r.lcn != HOLE && r.skip(r.len).lcn == lcn => {
                r.len = r.len.saturating_add(run.len);
            }
            _ => runs.push(run),
        }
    }
    Ok((runs, valid, clusters))
}

impl Node {
    /// Whether so many bytes of a record are enough for what can't be elsewhere.
    fn fits(&self, room: usize) -> bool {
        let index = if self.dir.is_some() { LEAST } else { 0 };
        self.sum(pack::least).saturating_add(index) <= room
    }
    /// Whether its data has holes.
    fn sparse(&self) -> bool {
        self.data.iter().any(Value::sparse)
    }
    /// What its names and index entries say of it.
    pub fn duplicated(&self, cluster: u64) -> Duplicated {
        let mut sizes = [0; 2];
        if let Some(data) = self.data.iter().find(|v| v.kind == kind::DATA && v.name.is_empty()) {
            let [_, there, size] = data.sizes(cluster);
            sizes = [there, size];
        }
        let mut flags = self.info_flags();
        if self.dir.is_some() {
            flags |= HAS_INDEX;
        }
        Duplicated { times: self.times, sizes, flags, reparse: self.extras.word() }
    }
    fn info_flags(&self) -> u32 {
        let form = [
            (self.sparse(), SPARSE_FILE),
            (self.data.iter().any(Value::packed), PACKED_FILE),
            (self.extras.reparse.is_some(), REPARSE_FILE),
            (self.extras.reparse.as_deref().and_then(reparse::tag).is_some_and(reparse::is_special), SPECIAL_FILE),
        ];
        form.iter().filter(|(is, _)| *is).fold(self.attributes, |all, (_, bit)| all | bit)
    }
    /// `$STANDARD_INFORMATION`.
    fn information(&self) -> Vec<u8> {
        let mut out = Out::with_room(INFORMATION);
        for time in self.times {
            out.u64(time);
        }
        out.u32(self.info_flags()).to(48);
        let security: &Security = &self.extras.security;
        if security.descriptor.is_none() && security.id != 0 {
            out.u32(0).u32(security.id).u64(0).u64(0);
        }
        out.0
    }
    /// All attributes but those of an index, in order. `parent` gives the reference of a directory.
    pub fn values(&self, cluster: u64, parent: impl Fn(usize) -> u64) -> Vec<Value<'_>> {
        let value = |kind, v, indexed| Value { kind, name: Cow::default(), body: Body::Resident(v, indexed) };
        let mut out = Vec::with_capacity(self.names.len().saturating_add(self.data.len()).saturating_add(5));
        out.push(value(kind::STANDARD_INFORMATION, self.information().into(), false));
        let about = self.duplicated(cluster);
        for (dir, name) in &self.names {
            out.push(value(kind::FILE_NAME, file_name(parent(*dir), &about, name).into(), true));
        }
        if let Some(descriptor) = &self.extras.security.descriptor {
            out.push(value(kind::SECURITY_DESCRIPTOR, Cow::Borrowed(descriptor), false));
        }
        out.extend(self.data.iter().map(Value::borrowed));
        out.extend(self.extras.point.as_deref().map(Value::borrowed));
        if let Some(ea) = &self.extras.ea {
            out.push(value(kind::EA_INFORMATION, Cow::Borrowed(&self.extras.ea_information), false));
            out.push(ea.borrowed());
        }
        out
    }
    /// The sum of what `of` says of all [`values`](Self::values), of those that are always resident their lengths.
    pub fn sum(&self, of: impl Fn(&Value<'_>) -> usize) -> usize {
        let security = &self.extras.security;
        let information = if security.descriptor.is_none() && security.id != 0 { INFORMATION } else { 48 };
        let names = self.names.iter().map(|(_, name)| file_name_len(name));
        let mut all = resident_len(0, information);
        for len in names.chain(security.descriptor.as_ref().map(|d| d.len())) {
            all = all.saturating_add(resident_len(0, len));
        }
        if self.extras.ea.is_some() {
            all = all.saturating_add(resident_len(0, self.extras.ea_information.len()));
        }
        let others = self.data.iter().chain(self.extras.point.as_deref()).chain(self.extras.ea.as_deref());
        others.map(of).fold(all, usize::saturating_add)
    }
}

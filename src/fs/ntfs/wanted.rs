//! The new tree as NTFS has it: a record for each file and directory, an index for each directory.

use crate::error::{Error, Result};
use crate::extent::{Offset, What};
use crate::fs::Times;
use crate::fs::host::{Content, Job, NewKind};
use crate::fs::ntfs::bits::Bits;
use crate::fs::ntfs::encode::{Duplicated, Out, file_name, filetime};
use crate::fs::ntfs::layout::kind;
use crate::fs::ntfs::pack::{Body, Value};
use crate::fs::ntfs::reader::Reader;
use crate::fs::ntfs::runs::{HOLE, Run};
use crate::fs::ntfs::space::Space;
use crate::fs::ntfs::upcase;
use crate::fs::utf16;
use crate::txn::Copy;

/// Attribute bits that are kept: read-only, hidden, system, archive, not indexed by content.
pub const KEPT: u32 = 0x2027;
/// Attribute bit of a sparse file.
const SPARSE_FILE: u32 = 0x200;
/// In copies of attributes: has an index of names.
const HAS_INDEX: u32 = 0x1000_0000;

/// Who may do what with new files.
#[derive(Clone, Debug, Default)]
pub struct Security {
    /// Identity of a descriptor in `$Secure`, 0 for none.
    pub id: u32,
    /// Or a descriptor of its own.
    pub descriptor: Option<Vec<u8>>,
}

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
    pub data: Vec<Value>,
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
    /// What is to be copied.
    pub copies: Vec<Copy>,
    /// Bytes behind the ends of linked files.
    pub tails: Vec<(Offset<crate::extent::Volume>, u32)>,
}

fn refused(what: impl Into<String>) -> Error {
    Error::Refused(what.into())
}

/// A name for a message.
pub fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).escape_debug().to_string()
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
}

impl Wanted {
    /// The tree of a job, whose names of `--into` from `depth` on are not there.
    ///
    /// # Errors
    /// [`Error::Refused`] where NTFS can't hold it, or there is too little space.
    pub fn new(job: &Job<'_>, depth: usize, from: &mut From<'_>) -> Result<Self> {
        let mut all = Self { dirs: vec![Dir::default()], ..Self::default() };
        let mut top = 0;
        for name in job.tree.into.iter().skip(depth) {
            let node = all.node(top, name, times(Times::default(), from.made), 0)?;
            top = all.dir(node);
        }
        // Of each entry, its node, and its directory where it is one.
        let mut made: Vec<(usize, Option<usize>)> = Vec::with_capacity(job.tree.entries.len());
        for (position, entry) in job.tree.entries.iter().enumerate() {
            let parent = match entry.parent {
                None => Some(top),
                Some(p) => made.get(p).and_then(|m| m.1),
            };
            let parent = parent.ok_or_else(|| refused(format!("{} is in no directory", shown(&entry.name))))?;
            let times = times(entry.times, from.made);
            let attributes = entry.attributes & KEPT;
            let one = match &entry.kind {
                NewKind::Dir => {
                    let node = all.node(parent, &entry.name, times, attributes)?;
                    (node, Some(all.dir(node)))
                }
                NewKind::File { size, content } => {
                    let body = all.content(job, position, *size, content, from)?;
                    let node = all.node(parent, &entry.name, times, attributes)?;
                    if let Some(n) = all.nodes.get_mut(node) {
                        n.data.push(Value { kind: kind::DATA, name: Vec::new(), body });
                    }
                    (node, None)
                }
                NewKind::HardLink(first) => {
                    let node = made.get(*first).filter(|m| m.1.is_none()).map(|m| m.0);
                    let node = node.ok_or_else(|| refused(format!("{} is a name of nothing", shown(&entry.name))))?;
                    all.name(node, parent, &entry.name)?;
                    (node, None)
                }
                NewKind::Stream { of, size, content } => {
                    let body = all.content(job, position, *size, content, from)?;
                    let node = made.get(*of).filter(|m| m.1.is_none()).map(|m| m.0);
                    let name = utf16::from_wtf8(&entry.name).filter(|n| (1..=255).contains(&n.len()));
                    let name = name.filter(|n| !n.iter().any(|u| [0, 0x2F, 0x3A, 0x5C].contains(u)));
                    let (Some(node), Some(name)) = (node, name) else {
                        return Err(refused(format!("{} is no stream that NTFS can have", shown(&entry.name))));
                    };
                    let up = from.up;
                    if let Some(n) = all.nodes.get_mut(node) {
                        if n.data.iter().any(|v| up.fold(&v.name) == up.fold(&name)) {
                            return Err(refused(format!("two streams would have the name {}", shown(&entry.name))));
                        }
                        let at = n.data.partition_point(|v| up.compare(&v.name, &name).is_lt());
                        n.data.insert(at, Value { kind: kind::DATA, name, body });
                    }
                    (node, None)
                }
                NewKind::Symlink(_) | NewKind::Special(_) => {
                    return Err(refused("links and special files can't be written to NTFS yet"));
                }
            };
            made.push(one);
        }
        Ok(all)
    }
    fn dir(&mut self, node: usize) -> usize {
        let at = self.dirs.len();
        self.dirs.push(Dir { node: Some(node), entries: Vec::new() });
        if let Some(n) = self.nodes.get_mut(node) {
            n.dir = Some(at);
        }
        at
    }
    fn node(&mut self, parent: usize, name: &[u8], times: [u64; 4], attributes: u32) -> Result<usize> {
        let at = self.nodes.len();
        self.nodes.push(Node { times, attributes, ..Node::default() });
        self.name(at, parent, name)?;
        Ok(at)
    }
    fn name(&mut self, node: usize, parent: usize, name: &[u8]) -> Result<()> {
        let units = utf16::from_wtf8(name).filter(|n| upcase::legal(n));
        let units = units.ok_or_else(|| refused(format!("{} is no name that NTFS can have", shown(name))))?;
        let (Some(n), Some(dir)) = (self.nodes.get_mut(node), self.dirs.get_mut(parent)) else {
            return Err(refused("a directory is missing"));
        };
        dir.entries.push((node, n.names.len()));
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
    ) -> Result<Body> {
        let cluster = from.reader.boot.cluster;
        let name = || job.tree.entries.get(position).map(|e| shown(&e.name)).unwrap_or_default();
        if size == 0 {
            return Ok(Body::Resident(Vec::new(), false));
        }
        let runs = match content {
            Content::Empty => return Err(refused(format!("{} has bytes that are nowhere", name()))),
            Content::Linked(extents) => {
                let mut runs: Vec<Run> = Vec::new();
                let mut at = 0u64;
                for (i, e) in extents.iter().enumerate() {
                    let last = i.saturating_add(1) == extents.len();
                    let whole = last || e.len.checked_rem(cluster) == Some(0);
                    let lcn = match e.what {
                        What::Zero => Some(HOLE),
                        What::Stored(p) if p.layer == from.reader.volume.id() => Some(p.offset.get())
                            .filter(|p| p.checked_rem(cluster) == Some(0))
                            .and_then(|p| p.checked_div(cluster)),
                        _ => None,
                    };
                    let lcn = lcn.filter(|_| whole && e.start.get() == at);
                    let lcn =
                        lcn.ok_or_else(|| refused(format!("{}: its extents are no clusters of the host", name())))?;
                    let run = Run { len: e.len.div_ceil(cluster), lcn };
                    at = at.saturating_add(e.len);
                    if lcn != HOLE {
                        from.image.put_run(run, false).map_err(|n| {
                            refused(format!("{}: cluster {n} is not the image's, or another file's too", name()))
                        })?;
                    }
                    match runs.last_mut() {
                        Some(r) if r.lcn == HOLE && lcn == HOLE => r.len = r.len.saturating_add(run.len),
                        Some(r) if lcn != HOLE && r.lcn != HOLE && r.skip(r.len).lcn == lcn => {
                            r.len = r.len.saturating_add(run.len);
                        }
                        _ => runs.push(run),
                    }
                }
                if at != size {
                    return Err(refused(format!("{}: extents of {at} bytes for {size}", name())));
                }
                self.tail(job, &runs, size, cluster);
                runs
            }
            Content::Copied => {
                let runs = from.space.take(size.div_ceil(cluster), 1);
                let runs = runs.ok_or_else(|| refused("too little space for copies"))?;
                let place = |r: &Run| (Offset::new(r.lcn.saturating_mul(cluster)), r.len.saturating_mul(cluster));
                self.copies.push(Copy { entry: position, size, to: runs.iter().map(place).collect() });
                runs
            }
        };
        Ok(Body::Runs { runs, size, valid: size })
    }
    fn tail(&mut self, job: &Job<'_>, runs: &[Run], size: u64, cluster: u64) {
        let used = size.checked_rem(cluster).unwrap_or(0);
        if let Some(last) = runs.last().filter(|r| r.lcn != HOLE && job.zero_slack && used > 0) {
            let end = last.lcn.saturating_add(last.len).saturating_mul(cluster);
            let len = cluster.saturating_sub(used);
            self.tails.push((Offset::new(end.saturating_sub(len)), u32::try_from(len).unwrap_or(0)));
        }
    }
}

impl Node {
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
        Duplicated { times: self.times, sizes, flags, reparse: 0 }
    }
    fn info_flags(&self) -> u32 {
        self.attributes | if self.sparse() { SPARSE_FILE } else { 0 }
    }
    /// `$STANDARD_INFORMATION`.
    fn information(&self, security: &Security) -> Vec<u8> {
        let mut out = Out::default();
        for time in self.times {
            out.u64(time);
        }
        out.u32(self.info_flags()).to(48);
        if security.descriptor.is_none() && security.id != 0 {
            out.u32(0).u32(security.id).u64(0).u64(0);
        }
        out.0
    }
    /// All attributes but those of an index, in order. `parent` gives the reference of a directory.
    pub fn values(&self, security: &Security, cluster: u64, parent: impl Fn(usize) -> u64) -> Vec<Value> {
        let value = |kind, v, indexed| Value { kind, name: Vec::new(), body: Body::Resident(v, indexed) };
        let mut out = vec![value(kind::STANDARD_INFORMATION, self.information(security), false)];
        let about = self.duplicated(cluster);
        for (dir, name) in &self.names {
            out.push(value(kind::FILE_NAME, file_name(parent(*dir), &about, name), true));
        }
        if let Some(descriptor) = &security.descriptor {
            out.push(value(kind::SECURITY_DESCRIPTOR, descriptor.clone(), false));
        }
        out.extend_from_slice(&self.data);
        out
    }
}

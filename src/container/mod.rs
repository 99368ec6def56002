//! Containers: what presents the bytes of a virtual disk. Each is one more layer; nothing above it may notice which.
//!
//! A format recognises its signature, reads its headers, and gives a [`Table`] of its own file or files; a
//! parent is opened by [`OpenWith::parent`], through the [gate]. [`Disk::chained`] joins both into one flat index.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::extent::{Device, Image, Layer, Map, MapLayer, Offset, ReadAt};

mod blocks;
pub mod check;
mod ewf;
pub mod flat;
pub mod gate;
mod inflate;
mod known;
mod machine;
mod paths;
mod qcow2;
mod raw;
mod split;
pub mod table;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;

use gate::{Allow, Closed, Gate, Identity, Opened, Wanted};
use table::{Plain, Table};

/// Images that a chain may have.
pub const MAX_CHAIN: usize = 256;

/// What a further file is to an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It belongs to the image, as an extent, a split part, a segment or its data file: it is removed with it.
    Own,
    /// A parent or backing file, or a file that belongs to one, so many steps below the image: it stays.
    Parent(usize),
}

/// A file of a chain, beside the one that the address names.
#[derive(Clone)]
pub struct Part {
    /// What it is to the image.
    pub role: Role,
    /// Its container's kind; `data` for what has none of its own.
    pub kind: &'static str,
    /// Its path, for reports.
    pub name: String,
    /// Its bytes.
    pub device: Arc<dyn ReadAt<Device>>,
}

/// A snapshot that an image keeps in its own file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Its identity in the image: what `@` takes first.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was made: seconds and nanoseconds since 1970, UTC.
    pub made: Option<(i64, u32)>,
    /// Bytes of the virtual disk then.
    pub len: u64,
    /// Bytes of the state of the machine's memory that is kept with it.
    pub memory: u64,
}

/// A virtual disk.
pub struct Disk {
    /// `raw`, `vhd`, ...
    pub kind: &'static str,
    /// Its bytes.
    pub image: Arc<dyn Layer<Image>>,
    /// What each file of the chain says, the top first.
    pub tables: Vec<Arc<dyn Table>>,
    /// Whatever else a reader should know, one sentence each.
    pub remarks: Vec<String>,
    /// Every file that was opened beside the device itself.
    pub parts: Vec<Part>,
    /// The snapshots in the image's own file, in its order.
    pub snapshots: Vec<Snapshot>,
    /// Which of them this is; none for the state of today.
    pub snapshot: Option<usize>,
    /// What was noted in the image about it, by names of the format `case_number`.
    pub facts: Vec<(&'static str, String)>,
    /// Hashes of the whole disk that the image has stored.
    pub hashes: Vec<StoredHash>,
    /// Why no host may be changed by what was named: it leads to a disk, and is none.
    pub only_read: Option<String>,
}

/// A hash of the whole disk that an image has stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredHash {
    /// `md5` or `sha1`.
    pub algorithm: &'static str,
    /// Its bytes.
    pub value: Vec<u8>,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("kind", &self.kind).field("remarks", &self.remarks).finish_non_exhaustive()
    }
}

impl Disk {
    fn new(kind: &'static str, image: Arc<dyn Layer<Image>>, tables: Vec<Arc<dyn Table>>) -> Self {
        let (remarks, parts, snapshots) = (Vec::new(), Vec::new(), Vec::new());
        let (facts, hashes) = (Vec::new(), Vec::new());
        Self { kind, image, tables, remarks, parts, snapshots, snapshot: None, facts, hashes, only_read: None }
    }
    /// A disk that is a map of its files, without parents.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where the map is stored in none of the files, or beyond the end of one.
    pub fn plain(kind: &'static str, map: Map<Image>, files: Vec<Arc<dyn ReadAt<Device>>>) -> Result<Self> {
        let image = MapLayer::new(map.clone(), files.clone())?;
        Ok(Self::new(kind, Arc::new(image), vec![Arc::new(Plain::new(map, files))]))
    }
    /// A disk of one table over its parent. The parent's files become parts of this one. `own` are the files that belong to
    /// the image itself, beside the one it was opened from.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a chain that is too long.
    pub fn chained(kind: &'static str, table: Arc<dyn Table>, own: Vec<Part>, parent: Option<Parent>) -> Result<Self> {
        let mut tables = vec![table];
        let mut parts = own;
        let mut remarks = Vec::new();
        if let Some(Parent { opened, disk }) = parent {
            tables.extend(disk.tables);
            remarks.extend(opened.remark);
            remarks.extend(disk.remarks.into_iter().map(|r| format!("{}: {r}", opened.name)));
            parts.push(Part { role: Role::Parent(1), kind: disk.kind, name: opened.name, device: opened.device });
            parts.extend(disk.parts.into_iter().map(|part| {
                let depth = match part.role {
                    Role::Own => 1,
                    Role::Parent(n) => n.saturating_add(1),
                };
                Part { role: Role::Parent(depth), ..part }
            }));
        }
        let image = flat::Chain::new(tables.clone())?;
        let mut disk = Self::new(kind, Arc::new(image), tables);
        disk.parts = parts;
        disk.remarks = remarks;
        Ok(disk)
    }
}

/// A parent that was opened.
#[derive(Debug)]
pub struct Parent {
    /// The file.
    pub opened: Opened,
    /// Its disk.
    pub disk: Disk,
}

impl Parent {
    /// What children have on record of it.
    pub fn identity(&self) -> &str {
        self.disk.tables.first().map_or("", |t| t.identity())
    }
}

/// What a child says of its parent's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// It is raw: its bytes are taken as they are, whatever they look like.
    Raw,
    /// It is of this kind ([`Disk::kind`]).
    Kind(&'static str),
    /// Nothing: it is probed, and must not be raw.
    Unsaid,
    /// Nothing, and whatever it is will do: a disk that a person or a machine's description named.
    Any,
}

/// How a container is opened.
#[derive(Clone, Copy)]
pub struct OpenWith<'a> {
    /// The gate to what it names.
    pub gate: &'a dyn Gate,
    /// What the user allowed.
    pub allow: &'a Allow,
    /// The snapshot that is wanted, by its identity or name.
    pub snapshot: Option<&'a str>,
    /// The files that led here: its children.
    above: Option<&'a Above<'a>>,
    /// Files that a description of a machine lists.
    media: Option<&'a machine::Media<'a>>,
}

/// The children of an image, the nearest first.
struct Above<'a> {
    identity: Identity,
    depth: usize,
    next: Option<&'a Above<'a>>,
}

impl OpenWith<'static> {
    /// Bytes that lie in no folder.
    pub fn alone() -> Self {
        static ALLOW: Allow = Allow { dirs: Vec::new(), raw_parent: false, other_parent: false };
        Self::new(&Closed, &ALLOW, None)
    }
}

impl<'a> OpenWith<'a> {
    /// The container that an address names.
    pub fn new(gate: &'a dyn Gate, allow: &'a Allow, snapshot: Option<&'a str>) -> Self {
        Self { gate, allow, snapshot, above: None, media: None }
    }
    /// Opens a file that belongs to the image itself: an extent, a data file.
    ///
    /// # Errors
    /// As [`Gate::open`]; [`Error::Refused`] for the image itself and its children.
    pub fn part(&self, wanted: &Wanted<'_>) -> Result<Opened> {
        self.part_by(self.gate, wanted)
    }
    /// The same, through another gate.
    fn part_by(&self, gate: &dyn Gate, wanted: &Wanted<'_>) -> Result<Opened> {
        let opened = gate.open(wanted)?;
        let identity = opened.gate.identity();
        let children = std::iter::successors(self.above, |a| a.next).map(|a| &a.identity);
        if identity != Identity::None && children.chain([&self.gate.identity()]).any(|i| *i == identity) {
            return Err(Error::Refused(format!(
                "the {} {} is the image itself or one of its children",
                wanted.what, opened.name
            )));
        }
        Ok(opened)
    }
    /// Opens a parent.
    ///
    /// # Errors
    /// As [`part`](Self::part), whatever opening its container meets, and [`Error::Refused`] where it is not of the format
    /// that it should be.
    pub fn parent(&self, wanted: &Wanted<'_>, format: Format) -> Result<Parent> {
        self.parent_by(self.gate, wanted, format)
    }
    /// The same, through another gate.
    fn parent_by(&self, gate: &dyn Gate, wanted: &Wanted<'_>, format: Format) -> Result<Parent> {
        self.below(gate, wanted, format, None)
    }
    /// Opens the disk that a description leads to, as it opens a parent, with the snapshot that is wanted.
    fn disk(&self, wanted: &Wanted<'_>, format: Format) -> Result<(Opened, Disk)> {
        let format = if format == Format::Unsaid { Format::Any } else { format };
        self.below(self.gate, wanted, format, self.snapshot).map(|p| (p.opened, p.disk))
    }
    fn below(&self, gate: &dyn Gate, wanted: &Wanted<'_>, format: Format, snapshot: Option<&str>) -> Result<Parent> {
        let depth = self.above.map_or(1, |a| a.depth.saturating_add(1));
        if depth >= MAX_CHAIN {
            return Err(Error::Refused(format!("a chain of more than {MAX_CHAIN} images")));
        }
        let opened = self.part_by(gate, wanted)?;
        let above = Above { identity: self.gate.identity(), depth, next: self.above };
        let with = OpenWith { gate: &*opened.gate, snapshot, above: Some(&above), ..*self };
        let device = Arc::clone(&opened.device);
        let what = wanted.what;
        let disk = match format {
            Format::Raw => raw::open(device),
            _ => probe(device, &with),
        }
        .map_err(|e| e.within(&opened.name))?;
        match format {
            Format::Kind(kind) if disk.kind != kind => Err(Error::Refused(format!(
                "the {what} {} is declared to be of the format {kind}, and looks like {}",
                opened.name, disk.kind
            ))),
            Format::Unsaid if disk.kind == "raw" && !self.allow.raw_parent => Err(Error::Refused(format!(
                "the {what} {} is of no format that is known, and its child does not declare it raw: --allow-raw-parent takes it for raw",
                opened.name
            ))),
            _ => Ok(Parent { opened, disk }),
        }
    }
    /// Opens the parent that one of `names` leads to: the first that is there and may be opened.
    ///
    /// # Errors
    /// As [`parent`](Self::parent), for the first name.
    pub fn first_parent(&self, names: &[Vec<u8>], format: Format) -> Result<Parent> {
        let mut first = None;
        for name in names {
            match self.parent(&Wanted { name, what: "parent", moved: true }, format) {
                Err(e @ (Error::NotFound(_) | Error::Refused(_))) => first = first.or(Some(e)),
                other => return other,
            }
        }
        Err(first.unwrap_or_else(|| Error::NotFound("the image has a parent and does not name it".into())))
    }
    /// The name of the file for messages; empty for the one that the address names.
    pub fn name(&self) -> String {
        if self.above.is_none() { String::new() } else { String::from_utf8_lossy(self.gate.own()).into_owned() }
    }
    /// What to do about a parent or extent whose identity is not the expected one: the remark that it was taken all the same.
    ///
    /// # Errors
    /// [`Error::Refused`] unless `--allow-other-parent` was given.
    pub fn other(&self, why: String) -> Result<String> {
        if self.allow.other_parent {
            return Ok(why);
        }
        Err(Error::Refused(format!("{why}: --allow-other-parent takes it all the same")))
    }
}

/// Recognises the container in `device` by its content. What has no container's signature is a raw image here; whether
/// its bytes mean anything, the volume and file system probes tell (bytes that none of them knows are *unknown*).
///
/// # Errors
/// A container that is recognised but damaged or not supported; [`Error::NotFound`] for a snapshot that it does not have;
/// what the gate refuses or does not find.
pub fn probe(device: Arc<dyn ReadAt<Device>>, with: &OpenWith<'_>) -> Result<Disk> {
    if let Some(disk) = machine(&device, with)? {
        return Ok(disk);
    }
    let disk = recognise(device, with)?;
    match (with.snapshot, disk.snapshot) {
        (Some(wanted), None) => Err(no_snapshot(wanted, disk.kind, disk.snapshots.iter())),
        _ => Ok(disk),
    }
}

/// The error that there is no such snapshot.
fn no_snapshot<'s>(wanted: &str, kind: &str, there: impl Iterator<Item = &'s Snapshot>) -> Error {
    let there: Vec<String> = there.map(|s| format!("{} ({})", s.id, s.name)).collect();
    Error::NotFound(match there.as_slice() {
        [] => format!("no snapshot {wanted}: this {kind} image has none"),
        _ => format!("no snapshot {wanted}: the image has {}", there.join(", ")),
    })
}

/// The disk of the machine that a file describes.
fn machine(device: &Arc<dyn ReadAt<Device>>, with: &OpenWith<'_>) -> Result<Option<Disk>> {
    // A description leads to disks, and no disk to a description.
    if with.above.is_some() {
        return Ok(None);
    }
    let have = usize::try_from(device.len()).map_or(known::HEAD, |n| n.min(known::HEAD));
    match device.read_vec(Offset::new(0), have) {
        Ok(head) if machine::recognised(&head) => machine::open(device, &head, with),
        _ => Ok(None),
    }
}

type Recognised = fn(&[u8]) -> bool;
type Open = fn(&Arc<dyn ReadAt<Device>>, &OpenWith<'_>) -> Result<Disk>;

/// The formats that are told by their first bytes.
const FORMATS: &[(Recognised, Open)] = &[
    (qcow2::recognised, qcow2::open),
    (vmdk::recognised, vmdk::open),
    (vhdx::recognised, vhdx::open),
    (vdi::recognised, vdi::open),
    (ewf::recognised, ewf::open),
];

fn recognise(device: Arc<dyn ReadAt<Device>>, with: &OpenWith<'_>) -> Result<Disk> {
    let mut remarks = Vec::new();
    // A bad sector where a signature could be is no reason to give up a disk, but it is said.
    let mut unless_unreadable = |e: Error| match e {
        Error::Io { .. } => {
            remarks.push(format!("whether it is a container could not be made sure of: {e}"));
            Ok(())
        }
        other => Err(other),
    };
    // What has a signature is opened, and then every error is one: a container that can't be read is no raw disk.
    let have = usize::try_from(device.len()).map_or(known::HEAD, |n| n.min(known::HEAD));
    let head = device.read_vec(Offset::new(0), have).or_else(|e| unless_unreadable(e).map(|()| Vec::new()))?;
    for (recognised, open) in FORMATS {
        if recognised(&head) {
            return open(&device, with);
        }
    }
    match vhd::footer(&*device) {
        Ok(Some(footer)) => return vhd::open(&device, footer, with),
        Ok(None) => {}
        Err(e) => unless_unreadable(e)?,
    }
    if let Some(name) = known::by_head(&head) {
        return Err(Error::Unsupported(format!("{name}: such containers can't be read so far")));
    }
    let mut disk = match split::open(&device, with)? {
        Some(disk) => disk,
        None => raw::open(device)?,
    };
    disk.remarks.extend(remarks);
    Ok(disk)
}

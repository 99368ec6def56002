//! Opens an address: probes layer upon layer. Nesting to any depth is one loop here and nowhere else.
//!
//! ```text
//! source ── Level 0: container ── table ── file systems ── a file ── Level 1: container ── table ── ...
//! ```

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use crate::container::gate::{Allow, Closed, Gate};
use crate::container::{self, Disk, OpenWith};
use crate::error::{Error, Result};
use crate::extent::{Device, LayerId, Map, Offset, ReadAt, Stream, Volume, compose};
use crate::fs::{self, FileSystem, Kind, ObjectId, ReadOptions, StreamId, Tree};
use crate::source::{self, SourceOptions};
use crate::volume::{self, Table};

mod address;
mod folder;
mod inside;
mod lookup;

pub use address::Address;
pub(crate) use lookup::upper_case;

/// Images in images that are opened.
const MAX_LEVELS: usize = 16;

/// How an address is opened.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// For the source.
    pub source: SourceOptions,
    /// For every file system on the way.
    pub read: ReadOptions,
    /// For files that containers name.
    pub allow: Arc<Allow>,
}

/// A volume of a level, with its file system where one was recognised.
pub struct Guest {
    /// Position in [`Level::table`]'s slots.
    pub slot: usize,
    /// The file system; none where the bytes are unknown.
    pub fs: Option<Arc<dyn FileSystem>>,
    /// Why the file system that was recognised could not be opened.
    pub failed: Option<String>,
    volume: Arc<dyn ReadAt<Volume>>,
    tree: OnceLock<std::result::Result<Arc<Tree>, Error>>,
}

/// One image of the nest: what it lies in, its virtual disk, its table, its file systems.
pub struct Level {
    /// What it lies in: the ground source, or a file of the level above.
    pub device: Arc<dyn ReadAt<Device>>,
    /// Where it lies in the level above: the position of the volume there, the file's stream and the extents of it in
    /// that volume. None for the ground source.
    pub within: Option<Within>,
    /// Where each further file of the image lies, in the order of [`Disk::parts`]: none for what lies elsewhere than in the
    /// volume that the image lies on.
    pub beside: Vec<Option<Within>>,
    /// The container.
    pub disk: Disk,
    /// The partition table.
    pub table: Table,
    /// One for each slot of the table, in the same order.
    pub guests: Vec<Guest>,
}

/// Where a nested image lies in the level above it.
pub struct Within {
    /// Position of the volume in that level.
    pub volume: usize,
    /// The object of the image file in that volume's tree.
    pub object: ObjectId,
    /// Its stream.
    pub stream: StreamId,
    /// The stream's extents in that volume.
    pub map: Map<Stream, Volume>,
    /// The stream that the device is: where the map of `device` points.
    pub layer: LayerId,
    device: Map<Device, Stream>,
    /// The device.
    id: LayerId,
}

/// What an address names, in the last level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The image as a whole: all its volumes.
    Disk,
    /// One volume as a whole (the same as `Disk` for a disk without a table).
    Volume(usize),
    /// An object of a volume that is not its root: position of the volume, raw path below it, the object.
    Object(usize, Vec<u8>, ObjectId),
    /// A named stream of an object.
    Stream(usize, Vec<u8>, StreamId),
}

/// An opened address.
pub struct Stack {
    /// The address, as it was given.
    pub address: Address,
    /// The levels, the ground first; never empty.
    pub levels: Vec<Level>,
    /// What is named in the last one.
    pub target: Target,
    /// The snapshot of the target that is named, where it is a file to be opened as an image: [`Stack::descend`] opens it.
    pub snapshot: Option<String>,
}

impl Guest {
    /// Probes the bytes of a volume. Bytes that no probe knows, and a file system that is too damaged to be opened, are
    /// no error here: the volume is still one that can be shown.
    ///
    /// `volume` may be an overlay: a host as it was, or as it will be.
    pub fn probe(slot: usize, volume: Arc<dyn ReadAt<Volume>>, options: ReadOptions) -> Self {
        let (fs, failed) = match fs::probe(Arc::clone(&volume), options) {
            Ok(fs) => (fs, None),
            Err(e) => (None, Some(e.to_string())),
        };
        Self { slot, fs, failed, volume, tree: OnceLock::new() }
    }
    /// The file system.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where none was recognised, or it could not be opened.
    pub fn fs(&self) -> Result<&Arc<dyn FileSystem>> {
        if let Some(fs) = &self.fs {
            return Ok(fs);
        }
        if let Some(why) = &self.failed {
            return Err(Error::Unsupported(why.clone()));
        }
        let mut first = [0; 16];
        let have = usize::try_from(self.volume.len()).map_or(first.len(), |n| n.min(first.len()));
        let bytes = first.get_mut(..have).unwrap_or_default();
        let seen = match self.volume.read_at(Offset::new(0), bytes) {
            Ok(()) => bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" "),
            Err(e) => e.to_string(),
        };
        Err(Error::Unsupported(format!("no file system was recognised (first bytes: {seen})")))
    }
    /// The walk of its file system, made once.
    ///
    /// # Errors
    /// Where there is no file system, or nothing of it can be listed.
    pub fn tree(&self) -> Result<Arc<Tree>> {
        let walked = self.tree.get_or_init(|| self.fs()?.walk().map(Arc::new));
        walked.as_ref().map(Arc::clone).map_err(Error::again)
    }
    /// The bytes of the volume.
    pub fn volume(&self) -> &Arc<dyn ReadAt<Volume>> {
        &self.volume
    }
    /// Whether names of this file system differ by more than case.
    pub(crate) fn folds_case(&self) -> bool {
        let kind = self.fs.as_ref().map_or("", |fs| fs.facts().kind);
        ["fat", "exfat", "ntfs"].iter().any(|k| kind.starts_with(k))
    }
    /// Opens the file at `path` (escaped, from the root; `PATH:STREAM` for a named stream, `@SNAPSHOT` behind it)
    /// as an image in its turn.
    ///
    /// # Errors
    /// [`Error::NotFound`] where it is not there, [`Error::Unsupported`] where it is no file, and whatever opening meets.
    pub fn open_image(&self, path: &str, options: OpenOptions) -> Result<Level> {
        let tree = self.tree()?;
        let (found, snapshot) = lookup::find_file(&tree, path, self.folds_case())?;
        match found {
            lookup::Found::Object(object) => self.open_object(object, snapshot, options),
            lookup::Found::Stream(stream) => self.open_stream(stream, snapshot, options),
        }
        .map_err(|e| e.within(path))
    }
    fn open_object(&self, object: ObjectId, snapshot: Option<&str>, options: OpenOptions) -> Result<Level> {
        let tree = self.tree()?;
        match (tree.object(object).kind, tree.data(object)) {
            (Kind::File, Some(stream)) => self.open_stream(stream, snapshot, options),
            (kind, _) => {
                Err(Error::Unsupported(format!("expected a file to be opened as an image, it is a {}", kind.word())))
            }
        }
    }
    fn open_stream(&self, stream: StreamId, snapshot: Option<&str>, options: OpenOptions) -> Result<Level> {
        let volume = inside::Volume::of(self, &options)?;
        let (device, within) = volume.device(stream)?;
        let gate = volume.gate(stream);
        let mut level = Level::open(Arc::new(device), Some(within), &gate, snapshot, &options)?;
        let mut opened = volume.opened();
        level.beside = level
            .disk
            .parts
            .iter()
            .map(|part| {
                let at = opened.iter().position(|w| w.id == part.device.id())?;
                Some(opened.swap_remove(at))
            })
            .collect();
        Ok(level)
    }
}

impl Level {
    /// Probes what lies in `device`: container, table, file systems. What the container names is opened through `gate`.
    ///
    /// # Errors
    /// A container that is not supported, a snapshot that it does not have, or a device that can't be read.
    pub fn open(
        device: Arc<dyn ReadAt<Device>>,
        within: Option<Within>,
        gate: &dyn Gate,
        snapshot: Option<&str>,
        options: &OpenOptions,
    ) -> Result<Self> {
        let disk = container::probe(Arc::clone(&device), &OpenWith::new(gate, &options.allow, snapshot))?;
        let table = volume::probe(Arc::clone(&disk.image) as _)?;
        let guests = table
            .slots
            .iter()
            .enumerate()
            .map(|(slot, s)| Guest::probe(slot, Arc::clone(&s.layer) as _, options.read))
            .collect();
        Ok(Self { device, within, beside: Vec::new(), disk, table, guests })
    }
    /// The guest of a slot.
    ///
    /// # Errors
    /// [`Error::NotFound`] where there is no such slot.
    pub fn guest(&self, slot: usize) -> Result<&Guest> {
        self.guests.get(slot).ok_or_else(|| Error::NotFound(format!("no volume at position {slot}")))
    }
    /// The volume of `slot` as runs of the device that this level lies in.
    ///
    /// # Errors
    /// Whatever reading the container's tables meets.
    pub fn volume_in_device(&self, slot: usize) -> Result<Map<Volume, Device>> {
        let slot =
            self.table.slots.get(slot).ok_or_else(|| Error::NotFound(format!("no volume at position {slot}")))?;
        let image = self.disk.image.map()?;
        let id = self.disk.image.id();
        compose(slot.layer.map()?.extents().iter().copied(), |l| (l == id).then_some(&image))
    }
    /// The volume of `slot` as runs of the volume that this level's file lies in; none for the ground. What is stored in a
    /// file elsewhere is stored in a layer of its own there.
    ///
    /// # Errors
    /// Whatever reading the container's tables meets.
    pub fn volume_in_host(&self, slot: usize) -> Result<Option<Map<Volume, Volume>>> {
        if self.within.is_none() {
            return Ok(None);
        }
        let down = self.volume_in_device(slot)?;
        let files = Files::of(self);
        let down = compose(down.extents().iter().copied(), |l| files.streams.get(&l).map(AsRef::as_ref))?;
        let down = compose(down.extents().iter().copied(), |l| files.volumes.get(&l).map(AsRef::as_ref))?;
        Ok(Some(down))
    }
}

/// Where the files of an image lie, by the identity of each device and each stream.
#[derive(Default)]
struct Files<'l> {
    streams: HashMap<LayerId, Cow<'l, Map<Device, Stream>>>,
    volumes: HashMap<LayerId, Cow<'l, Map<Stream, Volume>>>,
}

impl<'l> Files<'l> {
    fn of(level: &'l Level) -> Self {
        let mut files = Self::default();
        let parts = level.disk.parts.iter().enumerate();
        let beside = parts.map(|(i, part)| (&part.device, level.beside.get(i).and_then(Option::as_ref)));
        for (device, within) in beside.chain([(&level.device, level.within.as_ref())]) {
            match within {
                Some(within) => {
                    files.streams.insert(device.id(), Cow::Borrowed(&within.device));
                    files.volumes.insert(within.layer, Cow::Borrowed(&within.map));
                }
                // A stream and a volume that nobody else has.
                None => {
                    let stream = LayerId::fresh();
                    files.streams.insert(device.id(), Cow::Owned(Map::run(device.len(), stream, 0)));
                    files.volumes.insert(stream, Cow::Owned(Map::run(device.len(), LayerId::fresh(), 0)));
                }
            }
        }
        files
    }
}

impl Stack {
    /// The level that the address names something of.
    ///
    /// # Errors
    /// None: a stack has a level.
    pub fn last(&self) -> Result<&Level> {
        self.levels.last().ok_or_else(|| Error::NotFound("nothing was opened".into()))
    }
    /// The volume that the last image lies on: position of the level, and of the volume there. None where it lies in
    /// no volume that was opened.
    pub fn host(&self) -> Option<(usize, usize)> {
        let within = self.levels.last()?.within.as_ref()?;
        Some((self.levels.len().checked_sub(2)?, within.volume))
    }
    /// A volume of the last level as runs of the host volume, [`host`](Self::host).
    ///
    /// # Errors
    /// [`Error::Usage`] where there is no host, and whatever reading the container's tables meets.
    pub fn volume_in_host(&self, slot: usize) -> Result<Map<Volume, Volume>> {
        self.last()?
            .volume_in_host(slot)?
            .ok_or_else(|| Error::Usage("the image lies in no volume: expected an address like HOST//PATH".into()))
    }
    /// A volume of any level as runs of the ground source.
    ///
    /// # Errors
    /// Whatever reading the containers' tables meets.
    pub fn volume_on_ground(&self, level: usize, slot: usize) -> Result<Map<Volume, Device>> {
        let none = || Error::NotFound(format!("no level {level}"));
        let mut at = self.levels.get(level).ok_or_else(none)?;
        let mut down: Option<Map<Volume, Volume>> = None;
        let mut slot = slot;
        let mut above = level;
        while let Some(within) = &at.within {
            let Some(step) = at.volume_in_host(slot)? else { break };
            let id = at.table.slots.get(slot).map(|s| s.layer.id());
            down = Some(match down {
                None => step,
                Some(so_far) => compose(so_far.extents().iter().copied(), |l| (Some(l) == id).then_some(&step))?,
            });
            slot = within.volume;
            above = above.checked_sub(1).ok_or_else(none)?;
            at = self.levels.get(above).ok_or_else(none)?;
        }
        let ground = at.volume_in_device(slot)?;
        let id = at.table.slots.get(slot).map(|s| s.layer.id());
        match down {
            None => Ok(ground),
            Some(down) => compose(down.extents().iter().copied(), |l| (Some(l) == id).then_some(&ground)),
        }
    }
    /// Opens the file that the target names as an image in its turn, as a further `//` would.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the target is no file, and whatever opening meets.
    pub fn descend(&mut self, options: OpenOptions) -> Result<()> {
        if self.levels.len() >= MAX_LEVELS {
            return Err(Error::Unsupported(format!("more than {MAX_LEVELS} images in images")));
        }
        let snapshot = self.snapshot.as_deref();
        let level = match &self.target {
            Target::Object(slot, path, object) => self
                .last()?
                .guest(*slot)?
                .open_object(*object, snapshot, options)
                .map_err(|e| e.within(&shown(path)))?,
            Target::Stream(slot, path, stream) => self
                .last()?
                .guest(*slot)?
                .open_stream(*stream, snapshot, options)
                .map_err(|e| e.within(&shown(path)))?,
            Target::Disk | Target::Volume(_) => {
                return Err(Error::Unsupported("expected a file to be opened as an image, it is a volume".into()));
            }
        };
        self.levels.push(level);
        self.target = Target::Disk;
        self.snapshot = None;
        Ok(())
    }
}

fn shown(path: &[u8]) -> String {
    crate::report::path::escape(path).into_owned()
}

/// Opens an address.
///
/// # Errors
/// [`Error::NotFound`] for a volume or path that is not there, [`Error::Unsupported`] for bytes that no probe knows where
/// a path leads into them, and whatever reading meets.
pub fn open(address: &Address, options: OpenOptions) -> Result<Stack> {
    let name = address.source.display().to_string();
    open_source(address, options).map_err(|e| e.within(&name))
}

fn open_source(address: &Address, options: OpenOptions) -> Result<Stack> {
    let machine = if address.source.is_dir() { Some(folder::machine_in(&address.source)?) } else { None };
    let source = machine.as_deref().unwrap_or(&address.source);
    let device = source::open(source, options.source)?;
    let folder = folder::Folder::of(source, options.source, &options.allow);
    let gate: &dyn Gate = folder.as_ref().map_or(&Closed, |folder| folder);
    let ground = Level::open(device, None, gate, address.snapshot.as_deref(), &options)?;
    let mut stack = Stack { address: address.clone(), levels: vec![ground], target: Target::Disk, snapshot: None };
    for (position, hop) in address.hops.iter().enumerate() {
        if position > 0 {
            stack.descend(options.clone())?;
        }
        (stack.target, stack.snapshot) = lookup::target(stack.last()?, hop)?;
    }
    Ok(stack)
}

//! Opens an address: probes layer upon layer. Nesting to any depth is one loop here and nowhere else.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use crate::container::Disk;
use crate::error::Result;
use crate::extent::{Device, Map, ReadAt, Stream, Volume};
use crate::fs::{FileSystem, ObjectId, ReadOptions, StreamId, Tree};
use crate::source::SourceOptions;
use crate::volume::Table;

/// `SOURCE[@SNAPSHOT][//PATH[//PATH...]]`, split: see `docs/addresses.md`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The file, folder or block device.
    pub source: PathBuf,
    /// The snapshot of it.
    pub snapshot: Option<String>,
    /// The paths between `//`: each but the last leads to a file that is opened as an image. May be empty.
    pub hops: Vec<String>,
}

/// How an address is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// For the source.
    pub source: SourceOptions,
    /// For every file system on the way.
    pub read: ReadOptions,
}

/// A volume of a level, with its file system where one was recognised.
pub struct Guest {
    /// Position in [`Level::table`]'s slots.
    pub slot: usize,
    /// The file system; none where the bytes are unknown.
    pub fs: Option<Arc<dyn FileSystem>>,
    /// Why the file system that was recognised could not be opened.
    pub failed: Option<String>,
    tree: OnceLock<std::result::Result<Arc<Tree>, String>>,
}

/// One image of the nest: what it lies in, its virtual disk, its table, its file systems.
pub struct Level {
    /// What it lies in: the ground source, or a file of the level above.
    pub device: Arc<dyn ReadAt<Device>>,
    /// Where it lies in the level above: the position of the volume there, the file's stream and the extents of it in
    /// that volume. None for the ground source.
    pub within: Option<Within>,
    /// The container.
    pub disk: Disk,
    /// The partition table.
    pub table: Table,
    /// One for each slot of the table.
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
    /// The levels, the ground first.
    pub levels: Vec<Level>,
    /// What is named in the last one.
    pub target: Target,
}

impl Guest {
    /// The walk of its file system, made once.
    ///
    /// # Errors
    /// Where there is no file system, or nothing of it can be listed.
    pub fn tree(&self) -> Result<Arc<Tree>> {
        let _ = &self.tree;
        Err(crate::error::Error::Unsupported("stack".into()))
    }
}

/// Opens an address.
///
/// # Errors
/// [`crate::error::Error::NotFound`] for a volume or path that is not there, [`crate::error::Error::Unsupported`] for
/// bytes that no probe knows, and whatever reading meets.
pub fn open(address: &Address, options: OpenOptions) -> Result<Stack> {
    let _ = (address, options);
    Err(crate::error::Error::Unsupported("stack".into()))
}

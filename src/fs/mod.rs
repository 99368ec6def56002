//! File systems: read as guest or as host, and written as host. One folder each:
//!
//! - `layout`: the on-disk structures, decoded and encoded by pure functions over slices;
//! - `read`: the [`FileSystem`] on top of them;
//! - `link`: the [`host::Host`], for those that can be written.
//!
//! A file system takes the bytes of a volume ([`ReadAt<Volume>`]) and gives a [`Tree`]: every entry, object, stream and
//! extent of it, swept from the metadata in disk order.

use std::sync::Arc;

use crate::error::Result;
use crate::extent::{Layer, Map, Offset, ReadAt, Stream, Volume};

mod asked;
pub mod exfat;
pub mod ext;
pub mod fat;
pub mod host;
pub mod iso9660;
pub mod ntfs;
mod tree;
pub mod utf16;

pub use tree::{
    EA, Entry, EntryId, Form, Kind, NameId, NewStream, Object, ObjectId, Problem, REPARSE, SECURITY, StreamId,
    StreamInfo, TimeUnit, Times, Timestamp, Tree, TreeBuilder, Xattr,
};

/// What the reader is told beside the bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadOptions {
    /// Seconds east of UTC that times without a zone (FAT) are taken to be in.
    pub utc_offset: i32,
}

/// What a file system says of itself.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// `fat12`, `fat16`, `fat32`, `exfat`, `ntfs`, `ext4`, ...
    pub kind: &'static str,
    /// The volume's label, empty where it has none.
    pub label: String,
    /// Serial number or UUID, as its own tools print it.
    pub serial: String,
    /// Bytes of an allocation unit (cluster, block).
    pub unit: u64,
    /// Allocation units that the file system has.
    pub units: u64,
    /// Units that are free, where it says so.
    pub free_units: Option<u64>,
    /// Whether it was closed cleanly, where it can be told.
    pub clean: Option<bool>,
    /// Whatever else a reader should know, one sentence each (hibernated, journal to be replayed, ...).
    pub remarks: Vec<String>,
}

/// A compressed stream (LZNT1) as it is stored.
#[derive(Clone, Debug)]
pub struct Packed {
    /// Bytes of a compression unit.
    pub unit: u64,
    /// Bytes of a cluster.
    pub cluster: u64,
    /// The compressed form: clusters that are stored, and holes, up to a whole number of units.
    pub map: Map<Stream, Volume>,
}

/// What [`FileSystem::details`] gives: a security descriptor, and the bytes of a stream.
pub type Details = (Option<Arc<[u8]>>, Option<Vec<u8>>);

/// All bytes of a stream that is known to be small.
fn whole(layer: &dyn Layer<Stream>) -> Option<Vec<u8>> {
    layer.read_vec(Offset::new(0), usize::try_from(layer.len()).ok()?).ok()
}

/// A file system that was recognised in a volume. Opening has read its superblock or boot sector and what is needed to
/// find the rest; [`walk`](Self::walk) reads the rest.
pub trait FileSystem: Send + Sync {
    /// What it says of itself.
    fn facts(&self) -> Facts;
    /// Every entry, object, stream and extent: metadata in bulk and in disk order, in parallel where that pays.
    /// Damage is listed in [`Tree::problems`], and whatever else can be read is still there.
    ///
    /// # Errors
    /// Only where nothing at all can be listed.
    fn walk(&self) -> Result<Tree>;
    /// The decoded bytes of one stream of a tree that [`walk`](Self::walk) of this same file system gave; its extents
    /// are [`Tree::extents`] of that stream.
    ///
    /// # Errors
    /// [`crate::error::Error::Unsupported`] for what can't be decoded (encrypted).
    fn open(&self, tree: &Tree, stream: StreamId) -> Result<Arc<dyn Layer<Stream>>>;
    /// The compressed form of a stream that [`walk`](Self::walk) gave; none where it has none that could be taken over.
    fn packed(&self, tree: &Tree, stream: StreamId) -> Option<Packed> {
        let _ = (tree, stream);
        None
    }
    /// The security descriptor of an object (self-relative, \[MS-DTYP\] 2.4.6), where the file system has such and it can be read; and
    /// the bytes of `stream`, a small one of it, where one is asked for and it can be read. Both at once, as they may be in one place.
    fn details(&self, tree: &Tree, object: ObjectId, stream: Option<StreamId>) -> Details {
        let _ = object;
        (None, stream.and_then(|stream| whole(self.open(tree, stream).ok()?.as_ref())))
    }
    /// This file system as a host to be written, where there is a writer for it.
    fn as_host(&self) -> Option<&dyn host::Host> {
        None
    }
}

/// Opens the file system in `volume`: none where no probe recognises one.
///
/// # Errors
/// Where a file system is recognised but can't be read at all.
pub fn probe(volume: Arc<dyn ReadAt<Volume>>, options: ReadOptions) -> Result<Option<Arc<dyn FileSystem>>> {
    if let Some(fs) = ntfs::open(Arc::clone(&volume), options)? {
        return Ok(Some(fs));
    }
    if let Some(fs) = exfat::open(Arc::clone(&volume), options)? {
        return Ok(Some(fs));
    }
    if let Some(fs) = fat::open(Arc::clone(&volume), options)? {
        return Ok(Some(fs));
    }
    if let Some(fs) = ext::open(Arc::clone(&volume), options)? {
        return Ok(Some(fs));
    }
    if let Some(fs) = iso9660::open(Arc::clone(&volume))? {
        return Ok(Some(fs));
    }
    // Last: what was formatted anew may still have the backup of the old boot sector.
    if let Some(fs) = exfat::open_by_backup(Arc::clone(&volume), options)? {
        return Ok(Some(fs));
    }
    ntfs::open_by_backup(volume)
}

//! What would be linked, copied or left out, and why: a pure function of guests, host and options.
//!
//! A stream is *linked* when, resolved down to the host volume, every extent is stored there, starts and ends on a host
//! unit (the end of the stream excepted), and nobody else has claimed these units.

use std::sync::Arc;

use crate::extent::{Map, Volume};
use crate::fs::host::{HostName, NewTree};
use crate::fs::{EntryId, StreamId, Tree};

/// What happens to a stream, or to an object without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// New metadata points at the units where the bytes are; also directories and links, which need only metadata.
    Link,
    /// Its bytes are copied into free units.
    Copy,
    /// It is left out, and the manifest says so.
    Skip,
}

/// Why something is not linked (or, for [`Reason::Empty`], why it needs nothing to be linked to).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// Inline in a metadata record.
    Resident,
    /// An extent does not start or end on a host unit.
    Misaligned,
    /// Compressed by a container.
    ContainerCompressed,
    /// Encrypted by a container.
    ContainerEncrypted,
    /// Compressed by the guest's file system.
    FsCompressed,
    /// Encrypted by the guest's file system.
    FsEncrypted,
    /// Zeros that the host can express only as units of zeros.
    HoleUnsupported,
    /// A unit is claimed by another stream, or needed by an image that remains.
    Shared,
    /// Stored in another volume than the host's.
    OtherVolume,
    /// Larger than the host's largest file.
    TooLarge,
    /// Beyond what the host's tables can address.
    OutOfRange,
    /// No byte: only a record is needed.
    Empty,
    /// A device, socket, pipe or link that the host has no form for.
    Special,
    /// Its bytes can't be read.
    Unreadable,
}

/// One volume of the image, as the plan sees it.
#[derive(Clone)]
pub struct GuestVolume {
    /// The folder below `--into` that its contents go to (`p1`), none where they go to `--into` itself.
    pub folder: Option<HostName>,
    /// Its walk.
    pub tree: Arc<Tree>,
    /// The guest volume resolved down to the host volume.
    pub map: Map<Volume, Volume>,
}

/// One row: a stream, or an object without one.
#[derive(Clone, Debug)]
pub struct Row {
    /// Position of the guest volume.
    pub volume: usize,
    /// The entry by which it is reached; for a hard link, each name has a row.
    pub entry: EntryId,
    /// The stream; none for directories, links and special files.
    pub stream: Option<StreamId>,
    /// What happens to it.
    pub verdict: Verdict,
    /// Why.
    pub reason: Option<Reason>,
    /// Position in [`NewTree::entries`]; none where it is skipped.
    pub written: Option<usize>,
}

/// A plan: the rows, and the tree of new entries that a host's writer is handed.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// In the order of the walk, volume by volume.
    pub rows: Vec<Row>,
    /// What is to be written.
    pub tree: NewTree,
}

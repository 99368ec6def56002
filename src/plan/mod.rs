//! What would be linked, copied or left out, and why: a pure function of guests, host and options.
//!
//! A stream is *linked* when, resolved down to the host volume, every extent is stored there, starts and ends on a host
//! unit (the end of the stream excepted), and nobody else has claimed these units.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::extent::{LayerId, Map, Volume};
use crate::fs::host::{Content, HostName, NewKind, NewTree};
use crate::fs::{EntryId, FileSystem, StreamId, Tree};

mod build;
mod claims;
mod details;
#[cfg(test)]
mod mock;
pub(crate) mod names;
mod reuse;
#[cfg(test)]
mod tests;
mod totals;
mod tree;
mod verdict;

pub use build::build;
pub(crate) use build::selected;
pub use totals::{Reused, Space, Tally, Totals};

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

impl Verdict {
    /// The word in JSON lines.
    pub fn word(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::Copy => "copy",
            Self::Skip => "skip",
        }
    }
}

impl Reason {
    /// The word in JSON lines.
    pub fn word(self) -> &'static str {
        match self {
            Self::Resident => "resident",
            Self::Misaligned => "misaligned",
            Self::ContainerCompressed => "container-compressed",
            Self::ContainerEncrypted => "container-encrypted",
            Self::FsCompressed => "fs-compressed",
            Self::FsEncrypted => "fs-encrypted",
            Self::HoleUnsupported => "hole-unsupported",
            Self::Shared => "shared",
            Self::OtherVolume => "other-volume",
            Self::TooLarge => "too-large",
            Self::OutOfRange => "out-of-range",
            Self::Empty => "empty",
            Self::Special => "special",
            Self::Unreadable => "unreadable",
        }
    }
}

/// Which part of a volume is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    All,
    /// What this entry leads to: the contents of a directory, or a file with its streams.
    Entry(EntryId),
    /// One stream of what this entry leads to, as a file.
    Stream(EntryId, StreamId),
}

/// One volume of the image, as the plan sees it.
#[derive(Clone)]
pub struct GuestVolume {
    /// The folder below `--into` that its contents go to (`p1`), none where they go to `--into` itself.
    pub folder: Option<HostName>,
    /// What of it is written.
    pub part: Part,
    /// Its walk.
    pub tree: Arc<Tree>,
    /// The layer that the tree's extents are stored in.
    pub layer: LayerId,
    /// The guest volume resolved down to the host volume.
    pub map: Map<Volume, Volume>,
    /// Its file system, for what the tree does not have: bytes of small streams, compressed forms, security descriptors. Without
    /// it these streams are copied, and descriptors left out.
    pub fs: Option<Arc<dyn FileSystem>>,
}

/// What the plan is told beside guests and host.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether the bytes behind the ends of linked files are zeroed; none for what the host's rules say.
    pub zero_slack: Option<bool>,
    /// Whether units of the image may be filled where the free ones are too few.
    pub reuse: bool,
    /// Streams of which it is known already that they can't be read: position of the volume, and the stream.
    pub unreadable: BTreeSet<(usize, StreamId)>,
}

/// One row: a stream, or an object without one.
#[derive(Clone, Debug)]
pub struct Row {
    /// Position of the guest volume.
    pub volume: usize,
    /// The entry by which it is reached; for a hard link, each name has a row. None for the root's own streams.
    pub entry: Option<EntryId>,
    /// The stream; none for directories, links and special files.
    pub stream: Option<StreamId>,
    /// What happens to it.
    pub verdict: Verdict,
    /// Why.
    pub reason: Option<Reason>,
    /// Position in [`NewTree::entries`]; none where it is skipped.
    pub written: Option<usize>,
    /// Whether it is written by another name than the guest's (a stream that becomes a file always is).
    pub renamed: bool,
}

/// A plan: the rows, and the tree of new entries that a host's writer is handed.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// In the order of the walk, volume by volume.
    pub rows: Vec<Row>,
    /// What is to be written.
    pub tree: NewTree,
    /// Whether the bytes behind the ends of linked files are zeroed.
    pub zero_slack: bool,
    /// The sums of it.
    pub totals: Totals,
}

impl Plan {
    /// Whether the bytes of what a row writes are in the plan.
    pub fn has_bytes(&self, row: &Row) -> bool {
        let entry = row.written.and_then(|at| self.tree.entries.get(at));
        entry.is_some_and(|entry| match &entry.kind {
            NewKind::File { content, .. } | NewKind::Stream { content, .. } => matches!(content, Content::Bytes(_)),
            _ => false,
        })
    }
    /// Path below `--into` of the new entry at a position: host names, `/` between them, `:` before the name of a stream.
    pub fn written_path(&self, position: usize) -> Vec<u8> {
        if let Some(entry) = self.tree.entries.get(position)
            && let NewKind::Stream { of, .. } = entry.kind
            && of < position
        {
            return [self.written_path(of).as_slice(), b":", &entry.name].concat();
        }
        let mut names = Vec::new();
        let mut at = Some(position);
        // Ends: a parent stands before its children.
        while let Some(entry) = at.and_then(|at| self.tree.entries.get(at)) {
            names.push(entry.name.as_slice());
            at = entry.parent.filter(|up| at.is_some_and(|at| *up < at));
        }
        names.reverse();
        names.join(&b'/')
    }
}

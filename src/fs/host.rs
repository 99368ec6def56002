//! What a file system has to provide to be a host: the trait that the plan and the relink see, and the plain tree of
//! new entries that they hand to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::extent::{Extent, Map, Offset, ReadAt, Stream, Volume};
use crate::fs::{EntryId, Kind, ObjectId, StreamId, Times, Tree, Xattr};
use crate::report::path::escape;
use crate::txn::reuse::Reuse;
use crate::txn::{SECTOR, Staging};

/// What a host can express.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Bytes of an allocation unit.
    pub unit: u64,
    /// The volume's byte at which unit 0 of the data area begins; only differences to it matter for alignment.
    pub units_at: u64,
    /// The largest file in bytes.
    pub max_file: u64,
    /// Whether a file may have holes. Where not, a stream with zero extents is copied (`hole-unsupported`).
    pub holes: bool,
    /// Whether a file may have more than one stream.
    pub streams: bool,
    /// Whether a file may have more than one name.
    pub hard_links: bool,
    /// Whether it has symbolic links.
    pub symlinks: bool,
    /// Whether it has devices, sockets and pipes.
    pub special: bool,
    /// Whether a file may have extended attributes.
    pub xattrs: bool,
    /// Bytes up to which a stream that would be copied is handed over with its bytes ([`Content::Bytes`]), as the metadata may
    /// have room for it; 0 where it never has.
    pub inline: u64,
    /// Whether a file may be zeros to its end from a byte within a unit on, whatever is in the rest of that unit.
    pub valid: bool,
    /// Bytes of a compression unit (LZNT1), where compressed streams of as large units and clusters are linked as they are
    /// ([`Content::Packed`]); 0 where they are not.
    pub packed: u64,
    /// Whether it has reparse points: an extended attribute [`REPARSE`](crate::fs::REPARSE) makes one of a file or directory.
    pub reparse: bool,
    /// Whether it has security descriptors ([`NewEntry::security`]).
    pub security: bool,
    /// Whether bytes behind the end of a file may be shown later, so that they are zeroed by default.
    pub slack_shows: bool,
    /// How names are limited.
    pub names: NameRules,
}

impl Rules {
    /// Of a host that has nothing but names, as Win32 has them, and clusters.
    pub fn plain(unit: u64, units_at: u64, max_file: u64) -> Self {
        Self {
            unit,
            units_at,
            max_file,
            holes: false,
            streams: false,
            hard_links: false,
            symlinks: false,
            special: false,
            xattrs: false,
            inline: 0,
            valid: false,
            packed: 0,
            reparse: false,
            security: false,
            slack_shows: true,
            names: NameRules::Win32,
        }
    }
}

/// Which names a host can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRules {
    /// As Win32 has them: 255 UTF-16 units, no `" * / : < > ? \ |` nor control characters, no trailing dot or space, no
    /// device names, no lone surrogates. `FAT`, `exFAT`, and `NTFS` as seen from Windows.
    Win32,
    /// 255 bytes, any but NUL and `/`.
    Posix,
}

/// The image as it lies on the host: the files that make it up, all of which will be removed. No two are one object.
#[derive(Clone, Debug)]
pub struct HostImage {
    /// The file that the address names. What only the relink has takes its times and owner from it.
    pub named: HostFile,
    /// The others: extents, split parts, segments, a data file, and a chain's parents where these go, too.
    pub others: Vec<HostFile>,
}

/// A file of the host that will be removed.
#[derive(Clone, Debug)]
pub struct HostFile {
    /// Its entry in the host's tree.
    pub entry: EntryId,
    /// Its object.
    pub object: ObjectId,
    /// Its data in the host volume.
    pub map: Map<Stream, Volume>,
}

impl HostImage {
    /// An image of one file.
    pub fn of(named: HostFile) -> Self {
        Self { named, others: Vec::new() }
    }
    /// All of its files, the named one first.
    pub fn files(&self) -> impl Iterator<Item = &HostFile> + Clone {
        std::iter::once(&self.named).chain(&self.others)
    }
    /// All of its files, and what a reason calls each: `the image`, or `the image's file PATH`.
    pub fn called<'s>(&'s self, tree: &'s Tree) -> impl Iterator<Item = (&'s HostFile, String)> {
        self.files().enumerate().map(|(n, file)| {
            let there = n > 0 && tree.order().any(|(e, _)| e == file.entry);
            let what = match (n, there) {
                (0, _) => "the image".to_owned(),
                (_, true) => format!("the image's file {}", escape(&tree.path(file.entry))),
                (n, false) => format!("file {n} of the image"),
            };
            (file, what)
        })
    }
    /// Whether an object is one of its files.
    pub fn has(&self, object: ObjectId) -> bool {
        self.files().any(|f| f.object == object)
    }
    /// Whether an entry leads to one of its files.
    pub fn has_entry(&self, entry: EntryId) -> bool {
        self.files().any(|f| f.entry == entry)
    }
}

/// A name that plan and host agree on. UTF-8 on hosts with [`NameRules::Win32`].
pub type HostName = Vec<u8>;

/// Where the contents of a new file are.
#[derive(Clone, Debug)]
pub enum Content {
    /// No byte, no unit.
    Empty,
    /// In these units of the image, in order: extents of the new file in the host volume, each starting on a unit and,
    /// but for the last, a whole number of units long; no other file has them. Zero extents only where [`Rules::holes`]. Where
    /// [`Rules::valid`], the last stored extent may also end within a unit when only zeros follow.
    Linked(Vec<Extent<Stream, Volume>>),
    /// In these units of the image, as LZNT1 has them: extents of the compressed form, stored or holes, all of whole units, up to
    /// a whole number of compression units. Only where [`Rules::packed`].
    Packed {
        /// Bytes from the start that were ever written.
        valid: u64,
        /// The compressed form.
        extents: Vec<Extent<Stream, Volume>>,
    },
    /// These bytes, in the metadata or in units that are free: at most [`Rules::inline`] of them.
    Bytes(Vec<u8>),
    /// To be copied from this stream of the guest into units that are free.
    Copied,
}

/// What a new entry is.
#[derive(Clone, Debug)]
pub enum NewKind {
    /// A directory.
    Dir,
    /// A file of `size` bytes.
    File {
        /// Bytes.
        size: u64,
        /// Where they are.
        content: Content,
    },
    /// A symbolic link to these bytes, where [`Rules::symlinks`].
    Symlink(Vec<u8>),
    /// Another name of the new entry at this position, where [`Rules::hard_links`].
    HardLink(usize),
    /// A device, socket or pipe, where [`Rules::special`].
    Special(Kind),
    /// A stream with a name of its own of the new file at this position, where [`Rules::streams`]. The entry's name is that of
    /// the stream: up to 255 UTF-16 units, no NUL, `/`, `:` or `\`; no other stream of the file is the same to the host.
    Stream {
        /// The file, which stands before.
        of: usize,
        /// Bytes.
        size: u64,
        /// Where they are.
        content: Content,
    },
}

/// Names a stream of one of the guest's volumes: position of the volume in the job, and the stream in its tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// Position of the guest volume.
    pub volume: usize,
    /// The stream, none for what has no contents.
    pub stream: Option<StreamId>,
    /// The guest's object.
    pub object: ObjectId,
}

/// One new entry.
#[derive(Clone, Debug)]
pub struct NewEntry {
    /// Position of its directory among the new entries; none for the directory given by `--into`.
    pub parent: Option<usize>,
    /// Its name on the host: legal there, and no other in its directory is the same to the host.
    pub name: HostName,
    /// What it is.
    pub kind: NewKind,
    /// Times, as the guest has them.
    pub times: Times,
    /// DOS attribute bits; 0 where the guest has none.
    pub attributes: u32,
    /// Permission bits and owner, where the guest has them.
    pub posix: Option<(u16, u32, u32)>,
    /// Extended attributes, where [`Rules::xattrs`] and the guest has any: whole names, and values as `getxattr` gives them.
    pub xattrs: Vec<Xattr>,
    /// Its security descriptor, where [`Rules::security`] and the guest has one. Most files share a few.
    pub security: Option<Arc<[u8]>>,
    /// Where it comes from; none for directories that only the plan has (`p1`).
    pub origin: Option<Origin>,
}

impl NewEntry {
    /// Whether it has bytes that are copied.
    pub fn is_copied(&self) -> bool {
        match &self.kind {
            NewKind::File { size, content } | NewKind::Stream { size, content, .. } => {
                *size > 0 && matches!(content, Content::Copied)
            }
            _ => false,
        }
    }
}

/// What is to be written: parents before children.
#[derive(Clone, Debug, Default)]
pub struct NewTree {
    /// The directory to write into, by its names from the root; those that are not there are made.
    pub into: Vec<HostName>,
    /// The new entries. A parent stands before its children.
    pub entries: Vec<NewEntry>,
    /// Of each entry that is copied, the byte of the host volume at which its bytes begin, where they are stored there; by the
    /// entry's position. What is not in it begins nowhere.
    pub sources: BTreeMap<usize, u64>,
    /// Where the free units are too few and units of the image may be filled: what the host then lays out. A writer fills them like free
    /// ones, and lists them in [`Staging::filled`]; what is copied goes where [`Reuse::lay_out`] says, in the order of
    /// [`copies`](Self::copies).
    pub reuse: Option<Reuse>,
}

impl NewTree {
    /// Positions of the entries that are copied, in the order of their bytes on the host volume: with units given out in this
    /// order, the copies are one pass over the image and one over what was free. What is not stored comes last.
    pub fn copies(&self) -> Vec<usize> {
        let copied = |entry: &NewEntry| match &entry.kind {
            NewKind::File { size, content } | NewKind::Stream { size, content, .. } => {
                *size > 0 && matches!(content, Content::Copied)
            }
            _ => false,
        };
        let all = self.entries.iter().enumerate().filter(|(_, entry)| copied(entry));
        let mut all: Vec<(u64, usize)> =
            all.map(|(i, _)| (self.sources.get(&i).copied().unwrap_or(u64::MAX), i)).collect();
        all.sort_unstable();
        all.into_iter().map(|(_, i)| i).collect()
    }
}

/// What a relink would need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Units for new directories and tables.
    pub metadata_units: u64,
    /// Units for copies.
    pub copy_units: u64,
    /// Bytes of metadata to be written, in free units and in place.
    pub metadata_bytes: u64,
    /// Bytes that the journal will have, at most.
    pub journal_bytes: u64,
}

impl Estimate {
    /// Of so many units of `unit` bytes, so many bytes of blocks in use that change, and this slack.
    pub fn of(unit: u64, metadata_units: u64, copy_units: u64, changed: u64, slack: &[(Offset<Volume>, u32)]) -> Self {
        // Old and new contents, and what says where they belong.
        let records = changed / SECTOR;
        let kept: u64 = slack.iter().map(|(_, len)| u64::from(*len).saturating_add(64)).sum();
        let units = metadata_units.saturating_add(copy_units);
        Self {
            metadata_units,
            copy_units,
            metadata_bytes: metadata_units.saturating_mul(unit).saturating_add(changed),
            journal_bytes: changed
                .saturating_mul(2)
                .saturating_add(records.saturating_mul(64))
                .saturating_add(kept)
                .saturating_add(units.saturating_mul(32))
                .saturating_add(64 << 10),
        }
    }
}

/// One relink, as a host sees it.
#[derive(Debug)]
pub struct Job<'a> {
    /// What to write.
    pub tree: &'a NewTree,
    /// What to remove.
    pub image: &'a HostImage,
    /// Whether the bytes behind the ends of linked files are zeroed.
    pub zero_slack: bool,
}

/// A file system that can be written while it is not mounted.
pub trait Host: Send + Sync {
    /// What it can express.
    fn rules(&self) -> Rules;
    /// Every reason why this host, or this image on it, must not be written: dirty, tables that differ, flags, ... Reads
    /// whatever it needs for certainty. Empty where it may.
    ///
    /// # Errors
    /// Where it can't be told.
    fn refusals(&self, image: &HostImage) -> Result<Vec<String>>;
    /// The name as this host compares it: two names of one directory are the same to it when this is equal.
    fn fold(&self, name: &[u8]) -> Vec<u8>;
    /// The names that the directory at this path has, none where there is no such directory.
    ///
    /// # Errors
    /// Where something on the way is no directory, or can't be read.
    fn names_in(&self, dir: &[HostName]) -> Result<Option<Vec<HostName>>>;
    /// Units that are free and may be filled.
    fn free_units(&self) -> u64;
    /// What writing this tree would need, by what [`new_state`](Self::new_state) made of the same job; at least that. Without
    /// one (too little space, say), what can be told of the job alone.
    fn needs(&self, job: &Job<'_>, staging: Option<&Staging>) -> Estimate;
    /// What writing this tree would need.
    fn estimate(&self, job: &Job<'_>) -> Estimate {
        self.needs(job, self.new_state(job).ok().as_ref())
    }
    /// Extended attributes of this job that the host can't hold: the new entry's position, and the attribute's name. The
    /// manifest has them.
    fn left_out(&self, job: &Job<'_>) -> Vec<(usize, Vec<u8>)> {
        let _ = job;
        Vec::new()
    }
    /// The new state: everything that has to be written to get there, and in which order. Nothing is written. It must not be
    /// written where [`refusals`](Self::refusals) are not empty.
    ///
    /// # Errors
    /// [`Error::Refused`] where it can't be done, such as for too little space.
    fn new_state(&self, job: &Job<'_>) -> Result<Staging>;
    /// The new state of a host that there is nothing against.
    ///
    /// # Errors
    /// [`Error::Refused`] with the refusals, or as [`new_state`](Self::new_state).
    fn link(&self, job: &Job<'_>) -> Result<Staging> {
        let reasons = self.refusals(job.image)?;
        if reasons.is_empty() { self.new_state(job) } else { Err(Error::Refused(reasons.join("; "))) }
    }
    /// Reads the new state back through `after` (this volume with the staging laid over it) and compares it with what was
    /// asked for: each new file resolves to the planned extents, every unit has exactly one owner or is free, the tables
    /// agree, older files are untouched.
    ///
    /// # Errors
    /// [`crate::error::Error::Corrupt`] with what is not so: a defect of this program, and nothing was written.
    fn audit(&self, after: Arc<dyn ReadAt<Volume>>, job: &Job<'_>, staging: &Staging) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_in_the_order_of_the_disk() {
        let entry = |size, content| NewEntry {
            parent: None,
            name: b"name".to_vec(),
            kind: NewKind::File { size, content },
            times: Times::default(),
            attributes: 0,
            posix: None,
            xattrs: Vec::new(),
            security: None,
            origin: None,
        };
        let contents = [
            (5, Content::Copied),
            (9, Content::Linked(vec![])),
            (7, Content::Copied),
            (0, Content::Copied),
            (1, Content::Copied),
            (2, Content::Copied),
        ];
        let tree = NewTree {
            into: Vec::new(),
            entries: contents.into_iter().map(|(size, content)| entry(size, content)).collect(),
            sources: [(0, 900), (2, 4096), (5, 12)].into(),
            reuse: None,
        };
        assert_eq!(tree.copies(), [5, 0, 2, 4]);
    }
}

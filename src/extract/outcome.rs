//! What became of a file.

use std::collections::BTreeMap;

use crate::plan::Reason;

/// How it was written, or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// Nothing was done with it so far: the run was interrupted before.
    #[default]
    Pending,
    /// Without contents: a directory, a symbolic link, a device, a file of no bytes or only holes.
    Made,
    /// Some of its bytes share the blocks of the image.
    Reflink,
    /// All its bytes were copied.
    Copy,
    /// It is a further name of a file that was written.
    HardLink,
    /// A named stream: it is an extended attribute of its file.
    Xattr,
    /// It was written, but some of its bytes could not be read: they are zeros.
    Partial,
    /// It should have been written and could not be: it is not there.
    Failed,
    /// It was left out.
    Skipped,
}

/// Every method, in the order of their words in a log.
const METHODS: [Method; 9] = [
    Method::Pending,
    Method::Made,
    Method::Reflink,
    Method::Copy,
    Method::HardLink,
    Method::Xattr,
    Method::Partial,
    Method::Failed,
    Method::Skipped,
];

impl Method {
    /// The word in JSON lines.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pending | Self::Skipped => "skipped",
            Self::Made => "made",
            Self::Reflink => "reflink",
            Self::Copy => "copy",
            Self::HardLink => "hardlink",
            Self::Xattr => "xattr",
            Self::Partial => "partial",
            Self::Failed => "failed",
        }
    }
    /// Whether it is there, all of it.
    pub fn is_whole(self) -> bool {
        !matches!(self, Self::Pending | Self::Partial | Self::Failed | Self::Skipped)
    }
    pub(super) fn number(self) -> u8 {
        METHODS.iter().position(|m| *m == self).and_then(|n| u8::try_from(n).ok()).unwrap_or(0)
    }
    pub(super) fn from_number(n: u8) -> Option<Self> {
        METHODS.get(usize::from(n)).copied()
    }
}

macro_rules! whys {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)*) => {
        /// Why something was copied and not shared, is not whole, or was left out.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Why {
            $($(#[$doc])* $name,)*
        }
        impl Why {
            /// The word in JSON lines.
            pub fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }
            pub(super) fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$name),)* _ => None }
            }
        }
    };
}

whys! {
    /// No byte.
    Empty = "empty",
    /// Inline in a metadata record.
    Resident = "resident",
    /// An extent does not begin on a block of the destination.
    Misaligned = "misaligned",
    /// Compressed or encrypted by a container, or in a file that is not on the way.
    Container = "container-encoded",
    /// Compressed by the guest's file system.
    FsCompressed = "fs-compressed",
    /// Encrypted by the guest's file system.
    FsEncrypted = "fs-encrypted",
    /// A named stream, which becomes an extended attribute.
    Attribute = "attribute",
    /// Image and destination can't share blocks at all; the summary says why.
    NoSharing = "no-sharing",
    /// `--link always`, and not all of it can be shared.
    NotShareable = "not-shareable",
    /// It can't be read, or its structures are damaged.
    Unreadable = "unreadable",
    /// What says where its bytes are is damaged: they may be the wrong ones.
    Damaged = "damaged",
    /// A kind of object that the destination has no form for.
    Special = "special",
    /// Making a device needs a privilege.
    Privilege = "privilege",
    /// Something of that name is there.
    Exists = "exists",
    /// The directory that it belongs in could not be made.
    NoDirectory = "no-directory",
    /// No space is left.
    NoSpace = "no-space",
    /// Larger than the destination's largest file.
    TooLarge = "too-large",
    /// Its path is too long.
    TooDeep = "too-deep",
    /// A named stream that does not fit into an extended attribute.
    StreamTooLarge = "stream-too-large",
    /// The destination has no extended attributes for streams.
    NoXattrs = "no-xattrs",
    /// The file that it belongs to was not written.
    FileMissing = "file-missing",
    /// The destination refused a write.
    WriteFailed = "write-failed",
    /// The run was interrupted before.
    Interrupted = "interrupted",
}

impl From<Reason> for Why {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Resident => Self::Resident,
            Reason::FsCompressed => Self::FsCompressed,
            Reason::FsEncrypted => Self::FsEncrypted,
            Reason::Empty => Self::Empty,
            Reason::Special => Self::Special,
            Reason::TooLarge | Reason::OutOfRange => Self::TooLarge,
            Reason::Unreadable => Self::Unreadable,
            Reason::ContainerCompressed | Reason::ContainerEncrypted | Reason::OtherVolume => Self::Container,
            Reason::Misaligned | Reason::HoleUnsupported | Reason::Shared => Self::Misaligned,
        }
    }
}

/// What could not be kept of something that was written, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost(pub(super) u8);

impl Lost {
    /// Its owner or group.
    pub const OWNER: Self = Self(1);
    /// Its permissions.
    pub const MODE: Self = Self(2);
    /// Some of its extended attributes.
    pub const XATTRS: Self = Self(4);
    /// Its times, or their last digits.
    pub const TIMES: Self = Self(8);
    /// That it is another name of a file: it is a copy.
    pub const HARD_LINK: Self = Self(16);
    /// Its hash: it has more zeros in holes than anybody waits for.
    pub const HASH: Self = Self(32);

    /// With these too.
    pub fn add(&mut self, more: Self) {
        self.0 |= more.0;
    }
    /// The words in JSON lines.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        ["owner", "mode", "xattrs", "times", "hard-link", "hash"]
            .into_iter()
            .enumerate()
            .filter(move |(bit, _)| self.0 >> bit & 1 == 1)
            .map(|(_, word)| word)
    }
    /// Whether nothing was lost.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// What became of one item.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// How it was written.
    pub method: Method,
    /// Why so.
    pub why: Option<Why>,
    /// What was not kept.
    pub lost: Lost,
    /// Bytes of it that share the image's blocks.
    pub shared: u64,
    /// Bytes of it that were written.
    pub copied: u64,
    /// Stretches of it that were shared or copied each on their own.
    pub extents: u32,
}

impl Outcome {
    /// Of this method, and nothing else.
    pub fn of(method: Method, why: Option<Why>) -> Self {
        Self { method, why, ..Self::default() }
    }
}

/// What few items have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    /// What went wrong, in words.
    pub message: String,
    /// Stretches of the file that could not be read: first byte and length.
    pub bad: Vec<(u64, u64)>,
}

/// What became of all items.
#[derive(Debug, Default)]
pub struct Results {
    /// One for each item.
    pub outcomes: Vec<Outcome>,
    /// Of those that something went wrong with.
    pub details: BTreeMap<u32, Detail>,
    /// The hashes of all items behind each other, as many bytes for each; empty where none were asked for.
    pub hashes: Vec<u8>,
    /// One for each item, where hashes were asked for: whether it has them.
    pub hashed: Vec<bool>,
}

//! What can go wrong, and the exit code that it ends with.

use std::path::PathBuf;

use crate::extent::{Offset, Space};

/// This crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error says what, where and what was expected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing failed.
    #[error("{doing}: {cause}")]
    Io {
        /// What was being done, with the place.
        doing: String,
        /// What the system said.
        #[source]
        cause: std::io::Error,
    },
    /// An on-disk structure is not what its format says.
    #[error("{structure} at {at}: expected {expected}")]
    Corrupt {
        /// The structure by its field's own name, such as `MFT record 17`.
        structure: String,
        /// Where it lies: space and offset.
        at: String,
        /// What was expected there.
        expected: String,
    },
    /// The format, or a feature of it, is one that can't be read.
    #[error("{0}")]
    Unsupported(String),
    /// There is no such file, path, volume or stream.
    #[error("{0}")]
    NotFound(String),
    /// The command line asks for something that makes no sense.
    #[error("{0}")]
    Usage(String),
    /// Refused because it would not be safe: nothing was written.
    #[error("{0}")]
    Refused(String),
    /// A host write or sync failed in the middle: the journal brings it to an end.
    #[error("{doing}: {cause}; the host is between two states: run `unimage recover {}`", journal.display())]
    Interrupted {
        /// What was being done.
        doing: String,
        /// The journal that knows what to do.
        journal: PathBuf,
        /// What the system said.
        cause: String,
    },
}

/// What would not be safe ([`Error::Refused`]).
pub(crate) fn refused(what: impl Into<String>) -> Error {
    Error::Refused(what.into())
}

impl Error {
    /// A [`Corrupt`](Error::Corrupt) structure at an offset of a space.
    pub fn corrupt<S: Space>(structure: impl Into<String>, at: Offset<S>, expected: impl Into<String>) -> Self {
        Self::Corrupt { structure: structure.into(), at: at.to_string(), expected: expected.into() }
    }
    /// An [`Io`](Error::Io) error while `doing`.
    pub fn io(doing: impl Into<String>, cause: std::io::Error) -> Self {
        Self::Io { doing: doing.into(), cause }
    }
    /// A read of `len` bytes at `at` that passes the end of a layer of `have` bytes.
    pub fn past_end<S: Space>(at: Offset<S>, len: u64, have: u64) -> Self {
        Self::Io {
            doing: format!("reading {len} bytes at {at}, which has {have} bytes"),
            cause: std::io::ErrorKind::UnexpectedEof.into(),
        }
    }
    /// The same error once more, for what is asked twice and was tried once.
    #[must_use]
    pub fn again(&self) -> Self {
        match self {
            Self::Io { doing, cause } => {
                let same = cause.raw_os_error().map(std::io::Error::from_raw_os_error);
                let cause = same.unwrap_or_else(|| std::io::Error::new(cause.kind(), cause.to_string()));
                Self::Io { doing: doing.clone(), cause }
            }
            Self::Corrupt { structure, at, expected } => {
                Self::Corrupt { structure: structure.clone(), at: at.clone(), expected: expected.clone() }
            }
            Self::Unsupported(what) => Self::Unsupported(what.clone()),
            Self::NotFound(what) => Self::NotFound(what.clone()),
            Self::Usage(what) => Self::Usage(what.clone()),
            Self::Refused(what) => Self::Refused(what.clone()),
            Self::Interrupted { doing, journal, cause } => {
                Self::Interrupted { doing: doing.clone(), journal: journal.clone(), cause: cause.clone() }
            }
        }
    }
    /// The same error, saying that it is about something in `what` (a file of this machine or of an image).
    #[must_use]
    pub fn within(self, what: &str) -> Self {
        match self {
            Self::Corrupt { structure, at, expected } => {
                Self::Corrupt { structure: format!("{what}: {structure}"), at, expected }
            }
            Self::Unsupported(why) => Self::Unsupported(format!("{what}: {why}")),
            Self::NotFound(why) => Self::NotFound(format!("{what}: {why}")),
            other => other,
        }
    }
    /// The process exit code: 2 usage, 3 unreadable, corrupt or missing, 4 refused.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Refused(_) => 4,
            _ => 3,
        }
    }
}

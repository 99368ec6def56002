//! The journal: what a host was, what it becomes, and how far that is. Its format is drawn in `docs/safety.md`.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::source::medium::JournalFile;

/// What a journal says of the commit that it belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// Where the host was: file or device, the first place to look.
    pub host: PathBuf,
    /// The medium's byte at which the host volume begins.
    pub volume_at: u64,
    /// Bytes of the host volume.
    pub volume_len: u64,
    /// The host's file system, as [`crate::fs::Facts::kind`].
    pub kind: String,
    /// Its serial number or UUID, as [`crate::fs::Facts::serial`].
    pub serial: String,
    /// The address of the guest, as it was given.
    pub address: String,
    /// The image in the host volume: its path below the root, raw names with `/` between them.
    pub image: Vec<u8>,
    /// Digest of the walk of the image's volumes before the commit: what `undo` compares with.
    pub digest: [u8; 32],
}

/// How far a commit is. Each state but the first has a record of its own in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Free units are being filled; nothing in use was touched.
    Filling,
    /// Everything that is needed to go either way is in the journal.
    Sealed,
    /// The host is in the new state.
    Done,
    /// The host is as before: the commit was given up.
    TakenBack,
    /// `undo` has begun.
    Undoing,
    /// The host is as before: a finished commit was undone.
    Undone,
}

/// A journal that was opened.
pub struct Journal {
    file: JournalFile,
}

impl Journal {
    /// Reads a journal and checks all of it.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where it is cut off or damaged, [`Error::Unsupported`] for another version.
    pub fn open(file: JournalFile) -> Result<Self> {
        let _ = Self { file };
        Err(Error::Unsupported("journal".into()))
    }
    /// Its path, for messages.
    pub fn path(&self) -> &Path {
        &self.file.path
    }
    /// How far the commit was.
    pub fn state(&self) -> State {
        State::Filling
    }
    /// Which commit it belongs to.
    pub fn about(&self) -> &About {
        const NONE: &About = &About {
            host: PathBuf::new(),
            volume_at: 0,
            volume_len: 0,
            kind: String::new(),
            serial: String::new(),
            address: String::new(),
            image: Vec::new(),
            digest: [0; 32],
        };
        NONE
    }
    /// The manifest that was sealed with it; empty where it was given a file of its own, or was not sealed.
    pub fn manifest(&self) -> &[u8] {
        &[]
    }
}

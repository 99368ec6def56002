//! The gate: the only way to a file that a container names.
//!
//! A name inside an image is whatever somebody wrote there. A gate belongs to one file, and opens what that file names only
//! beneath that file's own folder and without following a link out of it, or beneath a folder that the user allowed.
//! `stack` gives the implementations: a folder of this machine, and a folder inside a file system.

use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::extent::{Device, LayerId, ReadAt};

/// A file that a container names.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The name, as a path with `/`, relative to the folder of the file that names it, or absolute. A format whose paths
    /// have `\` or a drive has turned them into `/` before.
    pub name: &'a [u8],
    /// What it is to the container, for messages: `backing file`, `extent`, `parent`.
    pub what: &'static str,
    /// Whether a file of the same base name in the folder itself may be taken where the path leads nowhere or out of it: for
    /// formats that then compare an identity (a CID, a UUID, a size).
    pub moved: bool,
}

/// A file that was opened through a gate.
pub struct Opened {
    /// Its bytes.
    pub device: Arc<dyn ReadAt<Device>>,
    /// The gate for what it names in its turn.
    pub gate: Arc<dyn Gate>,
    /// Its path, for messages and reports.
    pub name: String,
    /// What should be said about how it was found.
    pub remark: Option<String>,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Which file something is, whatever it is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A file of this machine.
    File {
        /// Its file system.
        device: u64,
        /// Its inode.
        inode: u64,
    },
    /// A file in a file system that was opened.
    Inner {
        /// The volume.
        volume: LayerId,
        /// The stream's position in the volume's tree.
        stream: usize,
    },
    /// Bytes of no file.
    None,
}

/// What may be opened for a file that names others.
pub trait Gate: Send + Sync {
    /// The name of that file in its folder; empty where it has none.
    fn own(&self) -> &[u8];
    /// Which file it is.
    fn identity(&self) -> Identity;
    /// Opens a file that it names.
    ///
    /// # Errors
    /// [`Error::Refused`] for what lies outside, is a link or no regular file, with the flag that would allow it;
    /// [`Error::NotFound`] for what is not there.
    fn open(&self, wanted: &Wanted<'_>) -> Result<Opened>;
    /// The names of the files in its folder, itself among them, in no order; for segments and split parts.
    ///
    /// # Errors
    /// Where the folder can't be listed.
    fn siblings(&self) -> Result<Vec<Vec<u8>>>;
}

/// The gate of bytes that lie in no folder: nothing can be opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Closed;

impl Gate for Closed {
    fn own(&self) -> &[u8] {
        b""
    }
    fn identity(&self) -> Identity {
        Identity::None
    }
    fn open(&self, wanted: &Wanted<'_>) -> Result<Opened> {
        let name = String::from_utf8_lossy(wanted.name).into_owned();
        Err(Error::NotFound(format!("the {} {name:?}: the image lies in no folder", wanted.what)))
    }
    fn siblings(&self) -> Result<Vec<Vec<u8>>> {
        Ok(Vec::new())
    }
}

/// What the user allowed beyond what is allowed anyway.
#[derive(Clone, Debug, Default)]
pub struct Allow {
    /// `--allow-dir`: folders beneath which files that an image names may be opened: by their whole path, or, where that is
    /// not beneath, by their base name in the folder itself. One that begins with `//` is a folder of the volume that the
    /// image lies on.
    pub dirs: Vec<PathBuf>,
    /// `--allow-raw-parent`: a parent of unknown format whose format the child does not declare is taken for raw.
    pub raw_parent: bool,
    /// `--allow-other-parent`: a parent or extent whose identity is not the one that the child has on record is taken.
    pub other_parent: bool,
}

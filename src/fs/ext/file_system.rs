//! The [`FileSystem`] and what it remembers.

use std::sync::{Arc, OnceLock};

use super::census::Census;
use super::volume::Ext;
use crate::error::{Error, Result};
use crate::extent::{Layer, Stream};
use crate::fs::host::Host;
use crate::fs::{Facts, FileSystem, StreamId, Tree};

/// An ext file system, as guest and as host.
pub(super) struct ExtFs {
    /// The volume.
    pub(super) ext: Ext,
    census: OnceLock<std::result::Result<Census, String>>,
}

impl ExtFs {
    pub(super) fn new(ext: Ext) -> Self {
        Self { ext, census: OnceLock::new() }
    }
    /// Who owns what: counted once.
    ///
    /// # Errors
    /// What the walk meets.
    pub(super) fn census(&self) -> Result<&Census> {
        let made = self.census.get_or_init(|| self.ext.census().map_err(|e| e.to_string()));
        made.as_ref().map_err(|e| Error::Unsupported(e.clone()))
    }
}

impl FileSystem for ExtFs {
    fn facts(&self) -> Facts {
        self.ext.facts()
    }
    fn walk(&self) -> Result<Tree> {
        self.ext.walk()
    }
    fn as_host(&self) -> Option<&dyn Host> {
        Some(self)
    }
    fn open(&self, tree: &Tree, stream: StreamId) -> Result<Arc<dyn Layer<Stream>>> {
        self.ext.open(tree, stream)
    }
}

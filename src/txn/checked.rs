//! A staging that was audited: only such a one can be committed.

use std::sync::Arc;

use crate::error::Result;
use crate::extent::{ReadAt, Volume};
use crate::txn::{Overlay, Staging};

/// A staging that does not contradict itself, and whose new state an audit has read back and found right. There is no
/// other way to make one, and [`super::commit`] takes nothing else.
#[derive(Clone)]
pub struct Checked {
    staging: Arc<Staging>,
}

impl Checked {
    /// Checks the form of `staging`: ranges within the volume, whole sectors in groups, nothing written twice, free
    /// ranges apart from blocks in use. Then `audit` reads the new state through an [`Overlay`] of `volume`
    /// (that is what [`crate::fs::host::Host::audit`] is for).
    ///
    /// # Errors
    /// [`crate::error::Error::Corrupt`] where the form is wrong; whatever `audit` finds. Nothing was written.
    pub fn new(
        staging: Staging,
        volume: Arc<dyn ReadAt<Volume>>,
        audit: impl FnOnce(Arc<dyn ReadAt<Volume>>, &Staging) -> Result<()>,
    ) -> Result<Self> {
        let staging = Arc::new(staging);
        audit(Arc::new(Overlay::new(volume, Arc::clone(&staging))?), &staging)?;
        Ok(Self { staging })
    }
    /// What will be written.
    pub fn staging(&self) -> &Staging {
        &self.staging
    }
}

//! ntfs.

use std::sync::Arc;

use crate::error::Result;
use crate::extent::{ReadAt, Volume};
use crate::fs::{FileSystem, ReadOptions};

/// Opens the volume where it is one; none where it is not.
///
/// # Errors
/// Where it is one but can't be read at all.
pub fn open(volume: Arc<dyn ReadAt<Volume>>, options: ReadOptions) -> Result<Option<Arc<dyn FileSystem>>> {
    let _ = (volume, options);
    Ok(None)
}

//! ISO 9660: optical disks, with the names of Joliet or Rock Ridge where they are there. Read only.
//!
//! ECMA-119 (the standard's free text), the Joliet specification of 1995, and the System Use Sharing Protocol (IEEE P1281) with the
//! Rock Ridge Interchange Protocol (IEEE P1282), versions 1.12.

use std::sync::Arc;

use crate::error::Result;
use crate::extent::{ReadAt, Volume};
use crate::fs::FileSystem;

mod layout;
mod read;
mod rock;

/// Opens the volume where it has a primary descriptor.
pub(super) fn open(volume: Arc<dyn ReadAt<Volume>>) -> Result<Option<Arc<dyn FileSystem>>> {
    Ok(read::Iso::open(volume)?.map(|iso| Arc::new(iso) as _))
}

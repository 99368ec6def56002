//! exFAT, as guest and as host.
//!
//! - [`layout`]: boot sector and checksums; [`table`]: the file allocation table, page by page; [`dirent`]: entry sets;
//!   [`upcase`]: which names are the same. Chains and bits of clusters are FAT's ([`crate::fs::fat::table`]).
//! - `probe`: finds the boot region, or its backup; [`read`]: the walk.
//! - `refuse`: why a host must not be written; `grow`: its new and longer directories; `link`: bitmap, chains and everything as
//!   one staging; `audit`: the new state read back by the reader.

use std::sync::Arc;

use crate::error::Result;
use crate::extent::{ReadAt, Volume};
use crate::fs::{FileSystem, ReadOptions};

mod audit;
pub mod dirent;
mod grow;
pub mod layout;
mod link;
mod probe;
pub mod read;
mod refuse;
pub mod table;
pub mod upcase;

/// Opens the volume where it is one by its first sector; none where it is not.
///
/// # Errors
/// Where it is one but can't be read at all.
pub fn open(volume: Arc<dyn ReadAt<Volume>>, options: ReadOptions) -> Result<Option<Arc<dyn FileSystem>>> {
    let found = probe::primary(&*volume);
    Ok(found.map(|found| Arc::new(read::ExFat::new(volume, found, options)) as Arc<dyn FileSystem>))
}

/// Opens the volume by the backup of its boot region. For where nothing else was recognised.
///
/// # Errors
/// Where it is one but can't be read at all.
pub fn open_by_backup(volume: Arc<dyn ReadAt<Volume>>, options: ReadOptions) -> Result<Option<Arc<dyn FileSystem>>> {
    let found = probe::backup(&*volume)?;
    Ok(found.map(|found| Arc::new(read::ExFat::new(volume, found, options)) as Arc<dyn FileSystem>))
}

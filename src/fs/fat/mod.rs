//! FAT12, FAT16 and FAT32, as guest and as host.
//!
//! - [`layout`]: boot sector and FSInfo; [`table`]: the file allocation table and its chains; [`dirent`]: directory slots and
//!   long names; `stamp`: dates; `names`: code page, 8.3 names, which names are the same. Pure, decoded and encoded.
//! - `probe`: finds the boot sector, or its copy; [`read`]: the walk.
//! - `refuse`: why a host must not be written; `grow`: its new and longer directories; `space`: free clusters for them and for
//!   copies; `link`: the new table, and everything as one staging; `audit`: the new state read back by the reader.

use std::sync::Arc;

use crate::error::Result;
use crate::extent::{ReadAt, Volume};
use crate::fs::{FileSystem, ReadOptions};

pub(in crate::fs) mod audit;
pub mod dirent;
pub(in crate::fs) mod grow;
pub mod layout;
pub(in crate::fs) mod link;
pub(in crate::fs) mod names;
pub(in crate::fs) mod probe;
pub mod read;
mod refuse;
pub(in crate::fs) mod space;
pub(in crate::fs) mod stamp;
pub(in crate::fs) mod supply;
pub mod table;

/// Opens the volume where it is one; none where it is not.
///
/// # Errors
/// Where it is one but can't be read at all.
pub fn open(volume: Arc<dyn ReadAt<Volume>>, options: ReadOptions) -> Result<Option<Arc<dyn FileSystem>>> {
    Ok(read::Fat::open(volume, options)?.map(|fat| Arc::new(fat) as Arc<dyn FileSystem>))
}

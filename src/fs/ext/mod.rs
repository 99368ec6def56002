//! ext2, ext3 and ext4.
//!
//! One file for each structure decodes it and checks it: [`superblock`], [`group`], [`inode`], [`extent_tree`],
//! [`block_map`], [`dir`], [`xattr`]. The walk is [`read`], which sweeps the inode tables ([`scan`]), then the block
//! maps ([`resolve`]), the directories ([`names`]), attributes and links ([`attrs`]), each in the order in which the
//! blocks lie ([`sweep`]).

use std::sync::Arc;

use crate::error::Result;
use crate::extent::{Offset, ReadAt, Volume};
use crate::fs::{FileSystem, ReadOptions};

mod attrs;
pub mod block_map;
pub mod checksum;
pub mod dir;
pub mod extent_tree;
pub mod group;
pub mod inode;
mod names;
pub mod read;
mod resolve;
mod scan;
pub mod superblock;
mod sweep;
pub mod xattr;

use read::Ext;
use superblock::{MAGIC, SUPERBLOCK, Superblock};

/// Opens the volume where it is one; none where it is not.
///
/// # Errors
/// Where it is one but can't be read at all.
pub fn open(volume: Arc<dyn ReadAt<Volume>>, _options: ReadOptions) -> Result<Option<Arc<dyn FileSystem>>> {
    let at = Offset::new(1024);
    let Ok(bytes) = volume.read_vec(at, SUPERBLOCK) else { return Ok(None) };
    if bytes.get(0x38..0x3a) != Some(&MAGIC.to_le_bytes()) {
        return Ok(None);
    }
    let superblock = Superblock::decode(at, &bytes)?;
    superblock.readable()?;
    let mut problems = Vec::new();
    let groups = Ext::read_groups(&superblock, &*volume, &mut problems);
    let fs = Ext { raw: Arc::clone(&volume), volume, replay: None, superblock, groups, problems, remarks: Vec::new() };
    Ok(Some(Arc::new(fs)))
}

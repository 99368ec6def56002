//! ext2, ext3 and ext4.
//!
//! One file for each structure decodes it and checks it: `superblock`, `group`, `inode`, `extent_tree`,
//! `block_map`, `dir`, `xattr`. A `volume` is opened by superblock and groups; a `journal` that was not replayed is laid
//! over it (`replay`). The walk is `read`, which sweeps the inode tables (`scan`), then the block maps (`resolve`),
//! attributes and links (`attrs`), the directories (`names`), each in the order in which the blocks lie (`sweep`), and
//! each knowing only those before it. `stream` reads contents. As host, `census` counts who owns what, `link` and the
//! files that it uses write, `audit` reads that back. `file_system` is what others see of all this.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::extent::{Offset, ReadAt, Volume};
use crate::fs::{FileSystem, ReadOptions};

mod attrs;
mod audit;
mod bits;
pub mod block_map;
mod census;
pub mod checksum;
pub mod dir;
pub mod extent_tree;
mod file_system;
mod find;
pub mod group;
mod grow;
pub mod htree;
pub mod inode;
pub mod journal;
mod link;
mod make;
mod names;
mod read;
mod refuse;
pub mod replay;
mod resolve;
mod retire;
mod scan;
mod space;
mod stream;
pub mod superblock;
mod sweep;
mod tables;
pub mod volume;
pub mod xattr;

use file_system::ExtFs;
use find::Found;
use replay::{Replay, Replayed};
use resolve::Visited;
use scan::Node;
use superblock::{Superblock, compat, incompat};
use volume::Ext;

/// Opens the volume where it is one; none where it is not.
///
/// # Errors
/// Where it is one but can't be read at all.
pub fn open(volume: Arc<dyn ReadAt<Volume>>, _options: ReadOptions) -> Result<Option<Arc<dyn FileSystem>>> {
    Ok(open_ext(volume)?.map(|fs| -> Arc<dyn FileSystem> { Arc::new(ExtFs::new(fs)) }))
}

/// As [`open`], but for this room.
pub(crate) fn open_ext(volume: Arc<dyn ReadAt<Volume>>) -> Result<Option<Ext>> {
    let Some(Found { superblock, copy, wiped }) = find::superblock(&*volume)? else { return Ok(None) };
    superblock.readable()?;
    let mut fs = plain(volume, superblock);
    if let Some(block) = copy {
        // A stale copy of another file system's remains is none: its root must be where it says.
        let root = fs.node(inode::ROOT).ok().filter(|n| n.inode.mode & 0xf000 == 0x4000);
        if root.is_none() {
            return Ok(None);
        }
        fs.remarks.push(format!("The superblock is damaged: its copy in block {block} was used."));
        let at = Offset::<Volume>::new(1024);
        fs.problems.push(Error::corrupt("ext superblock", at, "a superblock and its checksum"));
    } else if wiped {
        fs.remarks.push("The superblock's magic number is gone; the rest of it is right.".into());
        let at = Offset::<Volume>::new(1024);
        fs.problems.push(Error::corrupt("ext superblock", at, "the magic number 0xEF53"));
    } else if !fs.superblock.intact {
        let at = Offset::<Volume>::new(1024);
        fs.problems.push(Error::corrupt("ext superblock", at, "a checksum that is right"));
    }
    let dirty = fs.superblock.has(incompat::RECOVER);
    if dirty || copy.is_some() {
        fs = replayed(fs, dirty);
    }
    let s = &fs.superblock;
    if s.state & 2 != 0 || s.errors != 0 {
        fs.remarks.push("Errors were recorded when it was last in use.".into());
    }
    Ok(Some(fs))
}

/// Without a look at the journal.
fn plain(volume: Arc<dyn ReadAt<Volume>>, superblock: Superblock) -> Ext {
    let mut problems = Vec::new();
    let groups = Ext::read_groups(&superblock, &*volume, &mut problems);
    Ext { raw: Arc::clone(&volume), volume, replay: None, superblock, groups, problems, remarks: Vec::new() }
}

/// With the journal replayed in memory. `dirty`: the superblock says that it has to be.
fn replayed(mut fs: Ext, dirty: bool) -> Ext {
    let replay = match fs.journal() {
        Ok(None) if dirty => Err(Error::Unsupported("its journal lies on another device".into())),
        Ok(None) => return fs,
        Ok(Some(replay)) => Ok(replay),
        Err(e) => Err(e),
    };
    let mut replay = match replay {
        Ok(replay) => replay,
        Err(e) => {
            fs.remarks.push(format!("The journal could not be replayed: the newest changes are not seen ({e})."));
            fs.problems.push(e);
            return fs;
        }
    };
    if replay.blocks.is_empty() && !replay.fast_commits && replay.problems.is_empty() {
        return fs;
    }
    let mut remarks = std::mem::take(&mut fs.remarks);
    let mut problems = std::mem::take(&mut replay.problems);
    if replay.transactions != 0 {
        remarks.push(format!(
            "It was not unmounted: the journal's {} transactions are replayed in memory, nothing is written.",
            replay.transactions
        ));
    }
    if replay.fast_commits {
        let what = "fast commits in the journal are not replayed: the newest changes are not seen";
        remarks.push(format!(
            "{}{}.",
            what.get(..1).unwrap_or_default().to_uppercase(),
            what.get(1..).unwrap_or_default()
        ));
        problems.push(Error::Unsupported(what.into()));
    }
    let over: Arc<dyn ReadAt<Volume>> = Arc::new(Replayed::new(Arc::clone(&fs.raw), fs.superblock.block, &replay));
    // The journal has the superblock and the descriptors too.
    let again = find::superblock(&*over).ok().flatten().filter(|f| f.superblock.readable().is_ok());
    let superblock = again.map_or(fs.superblock, |f| f.superblock);
    let mut new = plain(over, superblock);
    new.raw = fs.raw;
    new.replay = Some(replay);
    new.remarks = remarks;
    new.problems.append(&mut problems);
    new
}

impl Ext {
    /// What the journal says; none where there is no journal in this volume.
    fn journal(&self) -> Result<Option<Replay>> {
        let s = &self.superblock;
        if !s.has_compat(compat::HAS_JOURNAL) || s.journal_inode == 0 {
            return Ok(None);
        }
        let regular = |n: &Node| n.inode.mode & 0xf000 == 0x8000 && n.inode.links != 0;
        let node = match self.node(s.journal_inode) {
            Ok(node) if regular(&node) => Ok(node),
            bad => {
                let wrong = bad.err().unwrap_or_else(|| {
                    let at = self.inode_at(s.journal_inode).unwrap_or_default();
                    Error::corrupt("ext journal inode", at, "a file in use")
                });
                // The superblock keeps a copy of its map.
                s.journal_backup.map(|copy| Node::journal(s, &copy)).ok_or(wrong)
            }
        }?;
        let mut problems = Vec::new();
        let maps = self.resolve(std::slice::from_ref(&node), &mut Visited::default(), &mut problems);
        let runs = maps.first().map(|m| &*m.runs).unwrap_or_default();
        replay::replay(&*self.raw, s, runs).map(Some)
    }
}

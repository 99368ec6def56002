//! An ext volume as it is opened: its superblock, its groups, and where its inodes are.

use std::sync::Arc;

use super::group::Group;
use super::replay::Replay;
use super::superblock::Superblock;
use crate::error::{Error, Result};
use crate::extent::{Offset, ReadAt, Volume};

/// An ext2, ext3 or ext4 file system: where its structures are. What reads and writes them is in the files of these.
pub struct Ext {
    /// The volume as it is.
    pub raw: Arc<dyn ReadAt<Volume>>,
    /// The volume as it would be once the journal was replayed.
    pub volume: Arc<dyn ReadAt<Volume>>,
    /// What the journal replaces.
    pub replay: Option<Replay>,
    /// Its superblock.
    pub superblock: Superblock,
    /// Its groups, and whether the descriptor can be relied on; none for one that can't be read.
    pub groups: Vec<Option<(Group, bool)>>,
    /// What was damaged at opening.
    pub problems: Vec<Error>,
    /// For the facts.
    pub remarks: Vec<String>,
}

impl Ext {
    /// Reads the group descriptors, and takes copies for those that are damaged.
    pub fn read_groups(
        s: &Superblock,
        volume: &dyn ReadAt<Volume>,
        problems: &mut Vec<Error>,
    ) -> Vec<Option<(Group, bool)>> {
        let mut groups = Vec::new();
        let per = s.descriptors_per_block();
        let size = usize::from(s.descriptor);
        for index in 0..s.groups().div_ceil(per) {
            let (block, copy) = s.descriptor_block(index);
            if s.byte(block).get() >= volume.len() {
                problems.push(Error::past_end(s.byte(block), s.block.into(), volume.len()));
                break;
            }
            let table = volume.read_vec(s.byte(block), s.block as usize);
            let mut second: Option<Result<Vec<u8>>> = None;
            let first = index.saturating_mul(per);
            for (n, group) in (0usize..).zip(first..first.saturating_add(per).min(s.groups())) {
                let from = n.saturating_mul(size);
                let one = |block: u64, table: &Result<Vec<u8>>| -> Result<(Group, bool)> {
                    let at = s.byte(block).saturating_add(from as u64);
                    let bytes = table.as_ref().ok().and_then(|t| t.get(from..from.saturating_add(size)));
                    Group::decode(s, group, at, bytes.ok_or_else(|| Error::past_end(at, size as u64, volume.len()))?)
                };
                let found = match one(block, &table) {
                    Ok((g, true)) => Some((g, true)),
                    bad => {
                        problems.push(match &bad {
                            Err(_) => Error::corrupt(
                                format!("descriptor of ext group {group}"),
                                s.byte(block).saturating_add(from as u64),
                                "places of its tables within the volume",
                            ),
                            Ok(_) => Error::corrupt(
                                format!("descriptor of ext group {group}"),
                                s.byte(block).saturating_add(from as u64),
                                "a checksum that is right",
                            ),
                        });
                        // A copy tells where tables are, but its counts and flags are of long ago.
                        let other = copy.and_then(|copy| {
                            let table = second.get_or_insert_with(|| volume.read_vec(s.byte(copy), s.block as usize));
                            one(copy, table).ok().filter(|c| c.1)
                        });
                        other.or(bad.ok()).map(|(g, _)| (g, false))
                    }
                };
                groups.push(found);
            }
        }
        groups
    }

    /// The place of an inode in its table.
    pub fn inode_at(&self, number: u32) -> Result<Offset<Volume>> {
        let s = &self.superblock;
        let index = number.checked_sub(1).filter(|_| number <= s.inodes);
        let place = index.and_then(|i| {
            let group = i.checked_div(s.inodes_per_group)?;
            let rest = u64::from(i.checked_rem(s.inodes_per_group)?);
            let table = self.groups.get(group as usize)?.as_ref()?.0.inode_table;
            s.byte(table).checked_add(rest.checked_mul(s.inode_size.into())?)
        });
        place.ok_or_else(|| {
            Error::corrupt(format!("ext inode {number}"), Offset::<Volume>::new(0), "a number that the groups have")
        })
    }
}

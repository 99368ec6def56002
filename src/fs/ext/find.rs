//! Finding the superblock: the one at byte 1,024, or a copy where that one is damaged.

use super::superblock::{MAGIC, SUPERBLOCK, Superblock};
use crate::bytes::put;
use crate::error::Result;
use crate::extent::{Offset, ReadAt, Volume};

/// A superblock that was found.
#[derive(Debug)]
pub struct Found {
    /// It.
    pub superblock: Superblock,
    /// The block that holds it, where it is a copy.
    pub copy: Option<u64>,
    /// Whether it is the first one, and only its magic number is gone.
    pub wiped: bool,
}

/// The superblock of `volume`; none where it is no ext volume.
///
/// # Errors
/// Where there is one that makes no sense, and no copy.
pub fn superblock(volume: &dyn ReadAt<Volume>) -> Result<Option<Found>> {
    let Ok(bytes) = volume.read_vec(Offset::new(0), 1024 + SUPERBLOCK) else { return Ok(None) };
    let primary = bytes.get(1024..).unwrap_or_default();
    if primary.get(0x38..0x3a) == Some(&MAGIC.to_le_bytes()) {
        return match Superblock::decode(Offset::new(1024), primary) {
            Ok(superblock) if superblock.intact => Ok(Some(Found { superblock, copy: None, wiped: false })),
            Ok(superblock) => {
                let copy = copies(volume).find(|c| c.superblock.uuid == superblock.uuid);
                Ok(Some(copy.unwrap_or(Found { superblock, copy: None, wiped: false })))
            }
            Err(e) => copies(volume).next().map(Some).ok_or(e),
        };
    }
    if bytes.iter().all(|b| *b == 0) {
        // Whatever else would be here has something in these bytes, but for btrfs.
        let btrfs = volume.read_vec(Offset::new(0x1_0040), 8).is_ok_and(|b| b == b"_BHRfS_M");
        return Ok(if btrfs { None } else { copies(volume).next() });
    }
    // Only the magic number is gone (a signature that was wiped): either its checksum shows that all else is right, or a
    // copy is of the same file system.
    let mut mended = primary.to_vec();
    let _fits = put(&mut mended, 0x38, &MAGIC.to_le_bytes());
    if let Ok(superblock) = Superblock::decode(Offset::new(1024), &mended)
        && superblock.metadata_csum()
        && superblock.intact
    {
        return Ok(Some(Found { superblock, copy: None, wiped: true }));
    }
    let revision = primary.get(0x4c..0x50) == Some(&[1, 0, 0, 0]);
    let uuid = primary.get(0x68..0x78).filter(|u| u.iter().any(|b| *b != 0));
    Ok(uuid.filter(|_| revision).and_then(|uuid| copies(volume).find(|c| c.superblock.uuid == *uuid)))
}

/// The copies that lie where groups of the usual size begin, and that say so themselves.
fn copies(volume: &dyn ReadAt<Volume>) -> impl Iterator<Item = Found> + '_ {
    (0..=6u32).flat_map(move |log| {
        [1u32, 3, 5, 7, 9].into_iter().filter_map(move |group| {
            let block = 1024u64 << log;
            let number = block.checked_mul(8)?.checked_mul(group.into())?.checked_add(u64::from(log == 0))?;
            let at = Offset::new(number.checked_mul(block)?);
            let bytes = volume.read_vec(at, SUPERBLOCK).ok()?;
            let superblock = Superblock::decode(at, &bytes).ok()?;
            let sound = superblock.intact
                && u64::from(superblock.block) == block
                && u32::from(superblock.group) == group
                && superblock.group_start(group) == number
                && superblock.bytes() <= volume.len();
            sound.then_some(Found { superblock, copy: Some(number), wiped: false })
        })
    })
}

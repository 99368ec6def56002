//! Whether a volume is exFAT: its boot region, or where that is damaged the backup of it.

use crate::error::Result;
use crate::extent::{Offset, ReadAt, Volume};
use crate::fs::exfat::layout::{BACKUP_SECTOR, Boot, HEAD, SUMMED_SECTORS, boot_checksum, fields};
use crate::fs::fat::probe::belongs_to_another;

/// A boot sector, and where it was found.
pub struct Probed {
    /// What it says.
    pub boot: Boot,
    /// The volume's byte at which it stands: 0, or where the backup is.
    pub at: u64,
    /// Whether the checksum of its region is right.
    pub sound: bool,
}

/// The boot sector at the start of the volume, where it is one.
pub fn primary(volume: &dyn ReadAt<Volume>) -> Option<Probed> {
    let first = volume.read_vec(Offset::new(0), HEAD).ok()?;
    let found = Boot::decode(fields("exFAT boot sector", 0, &first));
    found.ok().map(|boot| Probed { sound: summed(volume, &boot, 0), boot, at: 0 })
}

/// The backup of the boot sector, where it is one, its checksum is right, and the first sector is not of another kind beneath
/// which an old backup may have survived.
///
/// # Errors
/// None for sectors that can't be read.
pub fn backup(volume: &dyn ReadAt<Volume>) -> Result<Option<Probed>> {
    let first = volume.read_vec(Offset::new(0), HEAD);
    // An exFAT boot sector of which a field is damaged is not another's.
    let own = |head: &[u8]| head.get(3..8) == Some(b"EXFAT");
    if first.is_ok_and(|head| !own(&head) && belongs_to_another(volume, &head)) {
        return Ok(None);
    }
    for shift in 9..=12_u32 {
        let at = BACKUP_SECTOR.checked_shl(shift).unwrap_or(0);
        let Ok(head) = volume.read_vec(Offset::new(at), HEAD) else { continue };
        if let Ok(boot) = Boot::decode(fields("backup of the exFAT boot sector", at, &head))
            && boot.sector_shift == shift
            && summed(volume, &boot, at)
        {
            return Ok(Some(Probed { boot, at, sound: true }));
        }
    }
    Ok(None)
}

/// Whether the region at this byte has the checksum that its last sector repeats.
fn summed(volume: &dyn ReadAt<Volume>, boot: &Boot, at: u64) -> bool {
    let sector = usize::try_from(boot.sector_bytes()).unwrap_or(0);
    let len = sector.saturating_mul(SUMMED_SECTORS);
    let Ok(region) = volume.read_vec(Offset::new(at), len.saturating_add(sector)) else { return false };
    let (summed, sums) = region.split_at_checked(len).unwrap_or_default();
    let sum = boot_checksum(summed).to_le_bytes();
    sums.as_chunks::<4>().0.iter().all(|four| *four == sum)
}

//! Which clusters belong to one snapshot alone.

use super::layout::{self, Cluster, Header, OFFSET};
use super::table::read_l1;
use crate::error::{Error, Result};
use crate::extent::{Device, Offset, ReadAt};

/// Clusters of a file, at most: two bytes are kept for each.
const MAX_CLUSTERS: u64 = 1 << 27;
/// Nobody's, and more than one's.
const NOBODY: u16 = 0;
const SHARED: u16 = u16::MAX;

/// Who has each cluster of a file.
struct Owners {
    bits: u32,
    of: Vec<u16>,
}

impl Owners {
    /// Notes an owner; gives who had the cluster before.
    fn note(&mut self, at: u64, owner: u16) -> u16 {
        let slot = usize::try_from(at >> self.bits).ok().and_then(|n| self.of.get_mut(n));
        slot.map_or(SHARED, |slot| {
            let before = *slot;
            *slot = if before == NOBODY || before == owner { owner } else { SHARED };
            before
        })
    }
}

/// The bytes that only each of the snapshots has, of an image whose level 1 tables these are, that of today first.
///
/// # Errors
/// [`Error::Unsupported`] for a file that is too large, and what reading the tables meets.
pub fn alone(file: &dyn ReadAt<Device>, head: &Header, tables: &[(u32, u64)]) -> Result<Vec<u64>> {
    let clusters = file.len().div_ceil(head.cluster());
    if clusters > MAX_CLUSTERS || tables.len() >= usize::from(SHARED) {
        return Err(Error::Unsupported("an image of so many clusters that it is not counted whose they are".into()));
    }
    let of = vec![NOBODY; usize::try_from(clusters).unwrap_or_default()];
    let mut owners = Owners { bits: head.cluster_bits, of };
    for (owner, table) in (1u16..).zip(tables) {
        for entry in read_l1(file, *table)? {
            let at = entry & OFFSET;
            if at == 0 || at & head.cluster().wrapping_sub(1) != 0 {
                continue;
            }
            // A table that is already known to be shared has nothing new to say.
            let before = owners.note(at, owner);
            if before == SHARED || before == owner {
                continue;
            }
            let Ok(bytes) = file.read_vec(Offset::new(at), usize::try_from(head.cluster()).unwrap_or_default()) else {
                continue;
            };
            for raw in bytes.chunks_exact(usize::try_from(head.entry()).unwrap_or(8)) {
                let entry = raw.first_chunk().map_or(0, |b| u64::from_be_bytes(*b));
                match layout::cluster(entry, head) {
                    Cluster::At(at) if !head.data_file => _ = owners.note(at, owner),
                    Cluster::Packed(at, len) => {
                        let last = at.saturating_add(len).saturating_sub(1).min(file.len().saturating_sub(1));
                        for n in at >> head.cluster_bits..=last >> head.cluster_bits {
                            owners.note(n << head.cluster_bits, owner);
                        }
                    }
                    // A cluster of zeros may keep the place of its bytes.
                    Cluster::Zero if entry & OFFSET != 0 && !head.data_file => _ = owners.note(entry & OFFSET, owner),
                    _ => {}
                }
            }
        }
    }
    let mut count = vec![0u64; tables.len()];
    for owner in owners.of.iter().filter(|o| !matches!(**o, NOBODY | SHARED)) {
        if let Some(n) = count.get_mut(usize::from(*owner).saturating_sub(1)) {
            *n = n.saturating_add(head.cluster());
        }
    }
    Ok(count.split_off(1.min(count.len())))
}

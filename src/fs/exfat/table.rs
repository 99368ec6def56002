//! The file allocation table. Only what is fragmented has a chain in it, so it is read page by page where it is needed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::extent::{Offset, ReadAt, Volume};
use crate::fs::fat::table::{Links, Next};

/// The mark of a chain's end.
pub const END: u32 = 0xFFFF_FFFF;
/// The mark of a bad cluster.
pub const BAD: u32 = 0xFFFF_FFF7;
/// Bytes of a page.
const PAGE: u64 = 64 << 10;
/// Entries of a page.
const PER_PAGE: u32 = 16 << 10;

/// The table in use.
pub struct Table {
    volume: Arc<dyn ReadAt<Volume>>,
    at: u64,
    clusters: u32,
    /// Pages that were asked for; none for one that can't be read as a whole.
    pages: Mutex<HashMap<u32, Option<Vec<u8>>>>,
}

impl Table {
    /// The table of so many clusters that begins at byte `at` of the volume.
    pub fn new(volume: Arc<dyn ReadAt<Volume>>, at: u64, clusters: u32) -> Self {
        Self { volume, at, clusters, pages: Mutex::default() }
    }
    /// The entry of a cluster; none where it can't be read.
    pub fn get(&self, cluster: u32) -> Option<u32> {
        let page = cluster.checked_div(PER_PAGE)?;
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(bytes) = pages.entry(page).or_insert_with(|| self.read(page)) else {
            // Of a page that can't be read some sectors may be.
            let at = self.at.saturating_add(u64::from(cluster).saturating_mul(4));
            let entry = self.volume.read_vec(Offset::new(at), 4).ok()?;
            return entry.first_chunk().copied().map(u32::from_le_bytes);
        };
        let at = (cluster.checked_rem(PER_PAGE)? as usize).saturating_mul(4);
        bytes.get(at..)?.first_chunk().copied().map(u32::from_le_bytes)
    }
    fn read(&self, page: u32) -> Option<Vec<u8>> {
        let from = u64::from(page).saturating_mul(PAGE);
        let end = u64::from(self.clusters).saturating_add(2).saturating_mul(4);
        let at = self.at.saturating_add(from);
        let len = end.saturating_sub(from).min(PAGE).min(self.volume.len().saturating_sub(at));
        self.volume.read_vec(Offset::new(at), usize::try_from(len).ok()?).ok()
    }
}

impl Links for Table {
    fn clusters(&self) -> u32 {
        self.clusters
    }
    fn next(&self, cluster: u32) -> Next {
        match self.get(cluster) {
            None => Next::Unreadable,
            Some(0) => Next::Free,
            Some(END) => Next::End,
            Some(BAD) => Next::Bad,
            Some(v) if v >= 2 && v.wrapping_sub(2) < self.clusters => Next::Cluster(v),
            Some(v) => Next::Wrong(v),
        }
    }
}

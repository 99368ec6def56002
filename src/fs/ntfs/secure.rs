//! Security descriptors (self-relative, \[MS-DTYP\] 2.4.6), and `$Secure:$SDS`, which has those that files share.
//!
//! `$SDS` has entries at multiples of 16 bytes: hash (u32), identity (u32), place of the entry (u64), its length with these 20 bytes
//! (u32), the descriptor. Each stretch of 256 KiB is there a second time behind itself.

use std::collections::HashMap;
use std::sync::Arc;

use crate::extent::{Layer, Offset, Stream};
use crate::fs::ntfs::layout::kind;
use crate::fs::ntfs::reader::Reader;

/// Number of the record of `$Secure`.
const SECURE: u64 = 9;
/// Bytes of a stretch.
const BLOCK: usize = 256 << 10;
/// Bytes of an entry before the descriptor.
const HEAD: usize = 20;
/// More than any honest volume has, in bytes.
const MAX: u64 = 256 << 20;
/// The largest descriptor, in bytes.
pub const MAX_DESCRIPTOR: usize = 64 << 10;

/// The descriptors of `$Secure`.
#[derive(Debug, Default)]
pub struct Secure {
    by_id: HashMap<u32, Arc<[u8]>>,
    by_value: HashMap<Arc<[u8]>, u32>,
}

impl Secure {
    /// Reads them. Whatever is damaged is left out.
    pub fn load(reader: &Reader) -> Self {
        let mut all = Self::default();
        let read = |layer: Arc<dyn Layer<Stream>>| {
            let len = layer.len().min(MAX).min(reader.volume.len());
            layer.read_vec(Offset::new(0), usize::try_from(len).ok()?).ok()
        };
        let bytes = reader.open_value(SECURE, kind::DATA, b"$SDS").ok().and_then(read).unwrap_or_default();
        for (n, block) in bytes.chunks(BLOCK).enumerate().step_by(2) {
            all.block(n.saturating_mul(BLOCK) as u64, block);
        }
        all
    }
    fn block(&mut self, start: u64, block: &[u8]) {
        let mut at = 0usize;
        while let Some(rest) = block.get(at..).filter(|r| r.len() > HEAD) {
            let u32_at = |at: usize| rest.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b));
            let place = u64::from(u32_at(8)) | u64::from(u32_at(12)) << 32;
            let len = u32_at(16) as usize;
            let descriptor = rest.get(HEAD..len);
            // An entry says where it is: what does not is no entry.
            let Some(descriptor) = descriptor.filter(|_| place == start.saturating_add(at as u64)) else { return };
            if sound(descriptor) {
                let value: Arc<[u8]> = descriptor.into();
                self.by_value.entry(Arc::clone(&value)).or_insert(u32_at(4));
                self.by_id.entry(u32_at(4)).or_insert(value);
            }
            at = at.saturating_add(len).next_multiple_of(16);
        }
    }
    /// The descriptor of an identity.
    pub fn get(&self, id: u32) -> Option<&Arc<[u8]>> {
        self.by_id.get(&id)
    }
    /// The smallest identity, 0 where there is none.
    pub fn first(&self) -> u32 {
        self.by_id.keys().copied().min().unwrap_or(0)
    }
    /// The identity of a descriptor.
    pub fn find(&self, descriptor: &[u8]) -> Option<u32> {
        self.by_value.get(descriptor).copied()
    }
}

/// Whether a descriptor is whole: revision, form, and its parts within its bytes.
pub fn sound(d: &[u8]) -> bool {
    let u16_at = |at: usize| d.get(at..).and_then(|b| b.first_chunk()).map(|b| u16::from_le_bytes(*b));
    let u32_at = |at: usize| d.get(at..).and_then(|b| b.first_chunk()).map(|b| u32::from_le_bytes(*b) as usize);
    let (Some(1), Some(control)) = (d.first(), u16_at(2)) else { return false };
    // Self-relative; not larger than Windows makes them.
    if control & 0x8000 == 0 || d.len() > MAX_DESCRIPTOR {
        return false;
    }
    let sid = |at: usize| {
        let head = d.get(at..).and_then(|b| b.first_chunk::<8>());
        head.is_some_and(|h| {
            let len = usize::from(h[1]).saturating_mul(4).saturating_add(8);
            h[0] == 1 && h[1] <= 15 && d.len().saturating_sub(at) >= len
        })
    };
    let acl = |at: usize| {
        let Some(len) = u16_at(at.saturating_add(2)).map(usize::from) else { return false };
        let Some(count) = u16_at(at.saturating_add(4)) else { return false };
        if !(2..=4).contains(&d.get(at).copied().unwrap_or(0)) || len < 8 || d.len().saturating_sub(at) < len {
            return false;
        }
        let end = at.saturating_add(len);
        let mut ace = at.saturating_add(8);
        for _ in 0..count {
            let size = u16_at(ace.saturating_add(2)).map_or(0, usize::from);
            ace = ace.saturating_add(size);
            if size < 8 || ace > end {
                return false;
            }
        }
        true
    };
    let part = |at: usize, right: &dyn Fn(usize) -> bool| match u32_at(at) {
        Some(0) => true,
        Some(at) => at >= HEAD && right(at),
        None => false,
    };
    part(4, &sid) && part(8, &sid) && part(12, &acl) && part(16, &acl)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Owner S-1-5-32-544, everybody may do everything.
    fn descriptor() -> Vec<u8> {
        let mut d = vec![1, 0, 4, 0x80, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 36, 0, 0, 0];
        d.extend([1, 2, 0, 0, 0, 0, 0, 5, 32, 0, 0, 0, 32, 2, 0, 0]);
        d.extend([2, 0, 28, 0, 1, 0, 0, 0]);
        d.extend([0, 3, 20, 0, 0xFF, 1, 0x1F, 0, 1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
        d
    }

    #[test]
    fn whole_descriptors_only() {
        let d = descriptor();
        assert!(sound(&d));
        for cut in 0..d.len() {
            assert!(!sound(&d[..cut]), "cut to {cut}");
        }
        for (at, byte) in [(0, 2), (3, 0), (4, 60), (21, 16), (36, 9), (38, 200), (40, 2), (46, 0)] {
            let mut bad = d.clone();
            bad[at] = byte;
            assert!(!sound(&bad), "{at}");
        }
    }

    #[test]
    fn entries_know_their_place() {
        let d = descriptor();
        let entry = |id: u32, at: u64| {
            let mut e = vec![0; 4];
            e.extend(id.to_le_bytes());
            e.extend(at.to_le_bytes());
            e.extend((HEAD as u32 + d.len() as u32).to_le_bytes());
            e.extend(&d);
            e.resize(e.len().next_multiple_of(16), 0);
            e
        };
        let first = entry(0x100, 0);
        let mut all = Secure::default();
        all.block(0, &[&first[..], &entry(0x101, first.len() as u64), &entry(0x102, 5)].concat());
        assert_eq!((all.find(&d), all.get(0x101).map(|d| d.len()), all.get(0x102)), (Some(0x100), Some(d.len()), None));
    }
}

//! Carries a staging out on bytes in memory.

use std::collections::{BTreeMap, BTreeSet};

use unimage::txn::{SECTOR, Staging};

/// Carries a staging out, without a journal, and checks what it must keep to.
pub fn apply(before: &[u8], staging: &Staging, sources: &BTreeMap<usize, Vec<u8>>) -> Vec<u8> {
    let mut bytes = before.to_vec();
    let mut put = |at: u64, new: &[u8]| bytes[at as usize..][..new.len()].copy_from_slice(new);
    let filled =
        |at: u64, len: u64| staging.filled.iter().any(|(from, have)| from.get() <= at && at + len <= from.get() + have);
    for fresh in &staging.fresh {
        assert!(filled(fresh.at.get(), fresh.bytes.len() as u64));
        put(fresh.at.get(), &fresh.bytes);
    }
    for copy in &staging.copies {
        let mut source = sources[&copy.entry].clone();
        assert_eq!(source.len() as u64, copy.size);
        let room: u64 = copy.to.iter().map(|(_, len)| len).sum();
        assert!(room >= copy.size);
        source.resize(room as usize, 0);
        let mut rest = &source[..];
        for (at, len) in &copy.to {
            assert!(filled(at.get(), *len));
            put(at.get(), &rest[..*len as usize]);
            rest = &rest[*len as usize..];
        }
    }
    let mut sectors = BTreeSet::new();
    for group in &staging.groups {
        let mut last = 0;
        for write in &group.writes {
            let (at, len) = (write.at.get(), write.bytes.len() as u64);
            assert!(at % SECTOR == 0 && len % SECTOR == 0 && len > 0 && at >= last, "{}", group.name);
            last = at + len;
            assert!((at..last).step_by(512).all(|s| sectors.insert(s)), "{}", group.name);
            put(at, &write.bytes);
        }
    }
    for (at, len) in &staging.slack {
        put(at.get(), &vec![0; *len as usize]);
    }
    let quarantine = &staging.quarantine;
    assert_eq!(quarantine.closed.len(), quarantine.open.len());
    put(quarantine.at.get(), &quarantine.open);
    for also in &quarantine.also {
        assert!(also.at.get() % SECTOR == 0 && also.bytes.len() as u64 == SECTOR);
    }
    bytes
}

//! Records for new files: free ones of `$MFT`, then new ones at its end, with its bitmap.

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::error::{Result, refused};
use crate::fs::ntfs::bits::Bits;
use crate::fs::ntfs::census::Census;
use crate::fs::ntfs::encode::{Head, Mapped, mapped, next_usn, record, record_into};
use crate::fs::ntfs::layout::{MFT, kind};
use crate::fs::ntfs::raw::{Places, Raw, RawRecord};
use crate::fs::ntfs::reader::Reader;
use crate::fs::ntfs::runs::{HOLE, LOST, Run};
use crate::fs::ntfs::space::Space;

/// Records below are left to the system, as ntfs-3g does.
const FIRST_FREE: u64 = 64;

/// `$MFT` with the records that were taken.
#[derive(Debug)]
pub struct Grown {
    /// The records that were taken, in order: number and sequence number.
    pub taken: Vec<(u64, u16)>,
    /// Records before and after.
    pub records: (u64, u64),
    /// Where records are, with the new clusters.
    pub places: Places,
    /// Where the bits are.
    pub bit_places: Places,
    /// Records in use.
    pub bits: Bits,
    /// Bytes of the clusters that `$MFT` had before.
    pub old_len: u64,
    /// Record 0 with its new runs.
    pub record: Vec<u8>,
}

/// The value of record 0 that lies in clusters without holes.
fn value(record: &RawRecord, kind: u32) -> Result<&Raw> {
    let found = record.get(kind).filter(|a| !a.is_resident() && a.runs.iter().all(|r| r.lcn != HOLE && r.lcn != LOST));
    found.ok_or_else(|| refused("$MFT has no clusters of its own: this form is not known"))
}

fn add(runs: &mut Vec<Run>, more: &[Run]) {
    for run in more {
        match runs.last_mut() {
            Some(last) if last.lcn.saturating_add(last.len) == run.lcn => last.len = last.len.saturating_add(run.len),
            _ => runs.push(*run),
        }
    }
}

fn clusters(runs: &[Run]) -> u64 {
    runs.iter().map(|r| r.len).sum()
}

/// Takes `count` records, and what clusters they need of `space`.
///
/// # Errors
/// [`Error::Refused`] where there is too little space, or `$MFT` would be in too many pieces.
pub fn grow(reader: &Reader, census: &Census, count: u64, space: &mut Space) -> Result<Grown> {
    let zero = RawRecord::read(reader, MFT)?;
    if zero.has_list() {
        return Err(refused("$MFT is in so many pieces that it has an attribute list: such a host is not written yet"));
    }
    let (data, bitmap) = (value(&zero, kind::DATA)?, value(&zero, kind::BITMAP)?);
    let (size, cluster) = (reader.boot.record as u64, reader.boot.cluster);
    let (mut data_runs, mut bit_runs) = (data.runs.clone(), bitmap.runs.clone());
    let before = data.sizes.iter().min().copied().unwrap_or(0).checked_div(size).unwrap_or(0);
    let mut taken: Vec<(u64, u16)> = Vec::new();
    let free = (FIRST_FREE..before).filter(|n| !census.in_use.get(*n) && !census.records.get(*n));
    for n in free.take(usize::try_from(count).unwrap_or(usize::MAX)) {
        let sequence = usize::try_from(n).ok().and_then(|n| census.slots.get(n)).map_or(0, |s| s.0);
        taken.push((n, sequence.max(1)));
    }
    let more = count.saturating_sub(taken.len() as u64);
    let mut after = before;
    let mut bytes = data.sizes;
    if more > 0 {
        let first = before.max(FIRST_FREE);
        let end = first.saturating_add(more);
        taken.extend((first..end).map(|n| (n, 1)));
        let step = size.checked_div(cluster).unwrap_or(1).max(1);
        let have = clusters(&data_runs);
        if have.checked_rem(step) != Some(0) {
            return Err(refused("$MFT ends within a record: such a host is not written"));
        }
        let need = end.saturating_mul(size).div_ceil(cluster).next_multiple_of(step).saturating_sub(have);
        let got = space.take(need, step).ok_or_else(|| refused("too little space for MFT records"))?;
        add(&mut data_runs, &got);
        let all = clusters(&data_runs).saturating_mul(cluster);
        after = all.checked_div(size).unwrap_or(0);
        bytes = [after.saturating_mul(size); 2];
    }
    let mut bits = census.records.clone();
    let len = after.div_ceil(64).saturating_mul(8).max(bits.bytes().len() as u64);
    bits.resize(len);
    let need = len.div_ceil(cluster).saturating_sub(clusters(&bit_runs));
    let got = space.take(need, 1).ok_or_else(|| refused("too little space for the bitmap of $MFT"))?;
    add(&mut bit_runs, &got);
    for (n, _) in &taken {
        if !bits.put(*n, true) {
            return Err(refused(format!("the bitmap of $MFT has no free bit for record {n}")));
        }
    }
    let mut attributes = Vec::new();
    for a in &zero.attributes {
        let bytes = match a.kind {
            kind::DATA if !a.has_name() => again(&zero, a, &data_runs, bytes, cluster),
            kind::BITMAP if !a.has_name() => again(&zero, a, &bit_runs, [len; 2], cluster),
            _ => Some(zero.bytes(a).to_vec()),
        };
        let bytes = bytes.ok_or_else(|| refused("the free space is in too small pieces for $MFT to grow"))?;
        attributes.push((bytes, false));
    }
    let record =
        zero.with(attributes).ok_or_else(|| refused("the free space is in too small pieces for $MFT to grow"))?;
    let old_len = clusters(&data.runs).saturating_mul(cluster);
    let places = Places::new(&data_runs, cluster);
    let bit_places = Places::new(&bit_runs, cluster);
    Ok(Grown { taken, records: (before, after), places, bit_places, bits, old_len, record })
}

/// The attribute with other runs and sizes, keeping its instance.
fn again(record: &RawRecord, a: &Raw, runs: &[Run], sizes: [u64; 2], cluster: u64) -> Option<Vec<u8>> {
    if a.has_name() || a.flags != 0 {
        return None;
    }
    let [size, valid] = sizes;
    let m = Mapped { flags: 0, unit: 0, sizes: [clusters(runs).saturating_mul(cluster), size, valid, 0] };
    let (mut bytes, used) = mapped(a.kind, &[], &m, 0, runs, usize::from(u16::MAX))?;
    bytes.get_mut(0x0E..0x10)?.copy_from_slice(record.bytes(a).get(0x0E..0x10)?);
    (used == runs.len()).then_some(bytes)
}

/// New records: those that take the place of free ones, and the part of `$MFT` that is new, which is written as a whole.
#[derive(Debug, Default)]
pub struct NewRecords {
    /// In clusters that `$MFT` had before.
    pub replaced: BTreeMap<u64, Vec<u8>>,
    /// The first record in clusters that are new, and all of these.
    pub from: u64,
    /// Their bytes.
    pub region: Vec<u8>,
    size: usize,
}

impl NewRecords {
    /// For `$MFT` as it was grown; records of `size` bytes, all formatted and free.
    pub fn new(grown: &Grown, size: usize) -> Self {
        let (before, after) = grown.records;
        let old = grown.old_len.checked_div(size as u64).unwrap_or(0);
        let from = old.max(before).min(after);
        let count = usize::try_from(after.saturating_sub(from)).unwrap_or(0);
        let replaced = (before..from).filter_map(|n| Some((n, free_record(size, n)?))).collect();
        Self { replaced, from, region: vec![0; count.saturating_mul(size)], size }
    }
    /// How many are in the new part.
    pub fn count(&self) -> usize {
        self.region.len().checked_div(self.size).unwrap_or(0)
    }
    /// The position of a record in the new part.
    pub fn place(&self, number: u64) -> Option<usize> {
        number.checked_sub(self.from).and_then(|n| usize::try_from(n).ok()).filter(|n| *n < self.count())
    }
    /// Formats the new part: `write` does it for records that something is for, the others are free.
    pub fn fill<T: Copy + Sync>(
        &mut self,
        what: &[Option<T>],
        write: impl Fn(&mut [u8], T) -> Result<()> + Sync,
    ) -> Result<()> {
        let (size, from) = (self.size.max(1), self.from);
        self.region.par_chunks_exact_mut(size).zip(what).enumerate().try_for_each(|(i, (place, what))| match what {
            Some(what) => write(place, *what),
            None => {
                let head = free_head(size, from.saturating_add(i as u64));
                record_into(place, &head, []).ok_or_else(|| refused("records are too small"))
            }
        })
    }
    /// Writes one.
    pub fn put(&mut self, number: u64, bytes: Vec<u8>) {
        let place = self.place(number).and_then(|n| {
            let at = n.checked_mul(self.size)?;
            self.region.get_mut(at..at.checked_add(self.size)?)
        });
        match place {
            Some(place) if place.len() == bytes.len() => place.copy_from_slice(&bytes),
            _ => _ = self.replaced.insert(number, bytes),
        }
    }
}

fn free_head(size: usize, number: u64) -> Head {
    Head { size, number, sequence: 1, links: 0, flags: 0, base: 0, usn: 1 }
}

/// A record that is formatted and free.
pub fn free_record(size: usize, number: u64) -> Option<Vec<u8>> {
    record(&free_head(size, number), [])
}

/// The update sequence number for a record that is written anew.
pub fn usn_of(census: &Census, number: u64) -> u16 {
    let before = usize::try_from(number).ok().and_then(|n| census.slots.get(n)).map_or(0, |s| s.1);
    next_usn(before)
}

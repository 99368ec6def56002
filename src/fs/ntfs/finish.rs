//! The last step of a new state: what is changed in place, by the sector and in the order in which it is written
//! (host-writers 7), both bitmaps, the quarantine.

use std::collections::BTreeMap;

use crate::error::{Result, refused};
use crate::extent::Offset;
use crate::fs::ntfs::bits::Bits;
use crate::fs::ntfs::layout::{BITMAP, LOG_FILE, MFT, MIRROR, kind};
use crate::fs::ntfs::link::{Build, Image};
use crate::fs::ntfs::mft_grow::{Grown, NewRecords};
use crate::fs::ntfs::raw::{Places, RawRecord, stored};
use crate::fs::ntfs::read::Ntfs;
use crate::fs::ntfs::runs::Run;
use crate::txn::{Fresh, Group, Quarantine, SECTOR, Staging};

/// Bytes of a sector, as the journal has them.
const SECTOR_BYTES: usize = SECTOR as usize;

/// Sectors by their place.
type Sectors = BTreeMap<u64, Vec<u8>>;

impl Build<'_> {
    /// Puts the bytes of a value at their places, by the sector.
    fn put(&self, sectors: &mut Sectors, places: &Places, at: u64, bytes: &[u8]) -> Result<()> {
        let parts = places.put(at, bytes).ok_or_else(|| refused("a structure ends before its place"))?;
        for (at, part) in parts {
            for (i, sector) in part.chunks(SECTOR_BYTES).enumerate() {
                let here = at.saturating_add((i as u64).saturating_mul(SECTOR));
                let mut whole = sector.to_vec();
                if whole.len() < SECTOR_BYTES {
                    let old = self.ntfs.reader.volume.read_vec(Offset::new(here), SECTOR_BYTES)?;
                    whole.extend_from_slice(old.get(sector.len()..).unwrap_or_default());
                }
                sectors.insert(here, whole);
            }
        }
        Ok(())
    }
    /// The sectors in which a bitmap differs from `old`.
    fn bits(&self, places: &Places, old: &Bits, new: &Bits, fresh_from: u64) -> Result<Sectors> {
        let mut sectors = Sectors::new();
        for (i, now) in new.bytes().chunks(SECTOR_BYTES).enumerate() {
            let at = i.saturating_mul(SECTOR_BYTES);
            let same = old.bytes().get(at..at.saturating_add(now.len())) == Some(now);
            if !same && (at as u64) < fresh_from {
                self.put(&mut sectors, places, at as u64, now)?;
            }
        }
        Ok(sectors)
    }
    /// Groups, in the order of host-writers 7, and all the rest.
    pub(super) fn finish(mut self, image: &Image, grown: &Grown) -> Result<Staging> {
        let cluster = self.cluster();
        let mirror = RawRecord::read(&self.ntfs.reader, MIRROR)?;
        let mirror = mirror.get(kind::DATA).ok_or_else(|| refused("$MFTMirr has no data"))?;
        let mirrored = mirror.sizes.iter().min().copied().unwrap_or(0);
        let mirror = Places::new(&mirror.runs, cluster);
        let old_bits = data_runs(self.ntfs, MFT, kind::BITMAP)?;
        let size = self.ntfs.reader.boot.record as u64;

        let NewRecords { replaced, from, region, .. } = std::mem::take(&mut self.records);
        let both = |sectors: &mut Sectors, n: u64, bytes: &[u8]| -> Result<()> {
            let at = n.saturating_mul(size);
            self.put(sectors, &grown.places, at, bytes)?;
            if at.saturating_add(size) <= mirrored {
                self.put(sectors, &mirror, at, bytes)?;
            }
            Ok(())
        };
        let mut new_records = Sectors::new();
        if !region.is_empty() && from.saturating_mul(size) < mirrored {
            return Err(refused("$MFTMirr is longer than $MFT: such a host is not written"));
        }
        let parts = grown.places.fresh(from.saturating_mul(size), region);
        let parts = parts.ok_or_else(|| refused("$MFT ends before its place"))?;
        for (n, bytes) in &replaced {
            both(&mut new_records, *n, bytes)?;
        }
        let (mut mft, mut freed, mut dirs) = (Sectors::new(), Sectors::new(), Sectors::new());
        if RawRecord::read(&self.ntfs.reader, MFT)?.bytes_with_usn() != grown.record {
            both(&mut mft, MFT, &grown.record)?;
        }
        for record in &image.records {
            let bytes = record.freed().ok_or_else(|| refused("the image's record can't be written"))?;
            both(&mut freed, record.number, &bytes)?;
        }
        for (n, bytes) in &self.changed {
            both(&mut dirs, *n, bytes)?;
        }

        self.staging.fresh.extend(parts);
        // The bits of records: what is in clusters of before by the sector, first both old and new.
        let before = &self.state.census.records;
        let old_end = old_bits.iter().map(|r| r.len).sum::<u64>().saturating_mul(cluster);
        let bits_union = self.bits(&grown.bit_places, before, &grown.bits.or(before), old_end)?;
        freed.append(&mut self.bits(&grown.bit_places, before, &grown.bits, old_end)?);
        let len = grown.bit_places.len();
        if len > old_end {
            let mut all = grown.bits.clone();
            all.resize(len);
            let new = all.bytes().get(usize::try_from(old_end).unwrap_or(usize::MAX)..).unwrap_or_default();
            self.staging.fresh.extend(grown.bit_places.fresh(old_end, new.to_vec()).unwrap_or_default());
        }

        self.staging.fill();
        for (at, len) in &self.staging.filled {
            let run = Run { lcn: at.get().checked_div(cluster).unwrap_or(0), len: len.div_ceil(cluster) };
            self.bitmap.put_run(run, true).map_err(|n| refused(format!("cluster {n} would be filled twice")))?;
        }
        let bitmap_runs = data_runs(self.ntfs, BITMAP, kind::DATA)?;
        let places = Places::new(&bitmap_runs, cluster);
        let old = &self.state.census.clusters;
        let union = self.bits(&places, old, &self.bitmap.or(old), u64::MAX)?;
        let last = self.bits(&places, old, &self.bitmap, u64::MAX)?;

        let groups = [
            ("new MFT records", new_records),
            ("$MFT", mft),
            ("the image's record", freed),
            ("directories", dirs),
            ("$Bitmap", last),
        ];
        let groups = groups.map(|(name, sectors)| Group { name, writes: writes(sectors) });
        self.staging.groups = groups.into_iter().filter(|g| !g.writes.is_empty()).collect();
        let at = self.staging.groups.iter().position(|g| g.name != "new MFT records").unwrap_or(0);
        let interim = writes(bits_union).into_iter().chain(writes(union));
        self.staging.interim = interim.map(|w| (at, w)).collect();
        self.staging.slack.sort_unstable();

        let mut witnesses: Vec<(u64, u64)> = places.all().chain(Places::new(&old_bits, cluster).all()).collect();
        let of_records = self.staging.groups.iter().filter(|g| g.name != "$Bitmap").flat_map(|g| &g.writes);
        witnesses.extend(of_records.map(|w| (w.at.get(), w.bytes.len() as u64)));
        let log = data_runs(self.ntfs, LOG_FILE, kind::DATA)?;
        witnesses.extend(Places::new(&log, cluster).all().take(1).map(|(at, len)| (at, len.min(8192))));
        self.staging.witness(witnesses);
        self.staging.quarantine = quarantine(self.ntfs)?;
        Ok(self.staging)
    }
}

/// The runs of a value that is in one piece, without holes.
fn data_runs(ntfs: &Ntfs, number: u64, kind: u32) -> Result<Vec<Run>> {
    let record = RawRecord::read(&ntfs.reader, number)?;
    let found =
        record.get(kind).filter(|a| !a.is_resident() && stored(&a.runs).count() == a.runs.len() && !record.has_list());
    let found = found.ok_or_else(|| refused(format!("MFT record {number} is not of a form that is written")))?;
    Ok(found.runs.clone())
}

/// Sectors as writes, neighbours together.
fn writes(sectors: Sectors) -> Vec<Fresh> {
    let mut out: Vec<Fresh> = Vec::new();
    for (at, bytes) in sectors {
        match out.last_mut() {
            Some(last) if last.at.get().saturating_add(last.bytes.len() as u64) == at => {
                last.bytes.extend_from_slice(&bytes)
            }
            _ => out.push(Fresh { at: Offset::new(at), bytes }),
        }
    }
    out
}

/// The OEM name in the boot sector is the switch; the backup boot sector, from which repair tools would restore it, is
/// blanked while it is off (host-writers 8.1).
fn quarantine(ntfs: &Ntfs) -> Result<Quarantine> {
    let reader = &ntfs.reader;
    let open = reader.volume.read_vec(Offset::new(0), SECTOR_BYTES)?;
    let mut closed = open.clone();
    if let Some(name) = closed.get_mut(3..11) {
        name.copy_from_slice(b"UNIMAGE ");
    }
    let mut also = Vec::new();
    let mut places = vec![reader.boot.sectors.saturating_mul(reader.boot.sector)];
    places.push(reader.volume.len().saturating_sub(reader.boot.sector));
    places.dedup();
    for at in places {
        let Some(end) = at.checked_add(SECTOR) else { continue };
        if at >= reader.boot.clusters().saturating_mul(reader.boot.cluster)
            && end <= reader.volume.len()
            && crate::fs::ntfs::layout::Boot::is_ntfs(&reader.volume.read_vec(Offset::new(at), SECTOR_BYTES)?)
        {
            also.push(Fresh { at: Offset::new(at), bytes: vec![0; SECTOR_BYTES] });
        }
    }
    Ok(Quarantine { at: Offset::new(0), closed, open, also })
}

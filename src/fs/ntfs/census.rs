//! What a host must be sure of: which records are in use, which clusters have an owner, and whether the volume's own
//! bitmaps say the same.

use crate::bytes::Fields;
use crate::error::Result;
use crate::extent::Offset;
use crate::fs::ntfs::bits::Bits;
use crate::fs::ntfs::layout::{self, BITMAP, Body, FIRST_USER, IN_USE, MFT, Record, kind};
use crate::fs::ntfs::reader::Reader;
use crate::fs::ntfs::runs::{self, HOLE, LOST};

/// Bytes of `$MFT` that are read at a time.
const SWEEP: u64 = 1 << 20;
/// Faults that are told.
const MAX_FAULTS: usize = 20;

/// The state of all records and clusters.
#[derive(Debug, Default)]
pub struct Census {
    /// Of each record, its sequence number and its update sequence number; 0 where it was never formatted.
    pub slots: Vec<(u16, u16)>,
    /// Records in use by their own flags.
    pub in_use: Bits,
    /// Clusters with an owner.
    pub owned: Bits,
    /// `$Bitmap`.
    pub clusters: Bits,
    /// The bitmap of `$MFT`.
    pub records: Bits,
    /// What does not agree, one sentence each.
    pub faults: Vec<String>,
}

impl Census {
    /// Reads all records and both bitmaps.
    ///
    /// # Errors
    /// Where they can't be read.
    pub fn take(reader: &Reader) -> Result<Self> {
        let count = reader.records();
        let clusters = reader.context(0).clusters;
        let mut census = Self { in_use: Bits::new(count), owned: Bits::new(clusters), ..Self::default() };
        let size = reader.boot.record as u64;
        let step = SWEEP.saturating_sub(SWEEP.checked_rem(size).unwrap_or(0)).max(size);
        let mut at = 0u64;
        let mut buffer = Vec::new();
        while at < reader.mft.len() {
            let now = step.min(reader.mft.len().saturating_sub(at));
            buffer.resize(usize::try_from(now).unwrap_or(0), 0);
            reader.read_mft(Offset::new(at), &mut buffer)?;
            for bytes in buffer.chunks_exact_mut(reader.boot.record) {
                census.record(bytes, reader, clusters);
            }
            at = at.saturating_add(now);
        }
        census.clusters = whole(reader, BITMAP, kind::DATA, clusters)?;
        census.records = whole(reader, MFT, kind::BITMAP, count)?;
        census.compare(count, clusters);
        Ok(census)
    }
    fn fault(&mut self, what: impl FnOnce() -> String) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(what());
        }
    }
    fn record(&mut self, bytes: &mut [u8], reader: &Reader, clusters: u64) {
        let number = self.slots.len() as u64;
        let u16_at =
            |b: &[u8], at: usize| b.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u16::from_le_bytes(*b));
        if !bytes.starts_with(b"FILE") {
            self.slots.push((0, 0));
            return;
        }
        self.slots.push((u16_at(bytes, 0x10), super::encode::usn(bytes)));
        if u16_at(bytes, 0x16) & IN_USE == 0 {
            return;
        }
        self.in_use.put(number, true);
        if let Err(what) = layout::fix_up(bytes) {
            return self.fault(|| format!("MFT record {number}: expected {what}"));
        }
        let record = match Record::decode(Fields::new("MFT record", reader.place(number), bytes), number) {
            Ok(record) => record,
            Err(e) => return self.fault(|| e.to_string()),
        };
        let mut all = Vec::new();
        for attribute in record.attributes() {
            let (lowest, end, pairs) = match attribute.map(|a| a.body) {
                Ok(Body::NonResident { lowest, end, pairs, .. }) => (lowest, end, pairs),
                Ok(Body::Resident(_)) => continue,
                Err(e) => return self.fault(|| e.to_string()),
            };
            if let Err(what) = runs::decode(pairs, end.saturating_sub(lowest), clusters, &mut all) {
                self.fault(|| format!("MFT record {number}: expected {what}"));
            }
        }
        for run in all {
            if run.lcn != HOLE
                && run.lcn != LOST
                && let Err(n) = self.owned.put_run(run, true)
            {
                self.fault(|| format!("cluster {n} has two owners, one is MFT record {number}"));
            }
        }
    }
    fn compare(&mut self, count: u64, clusters: u64) {
        let differ = |a: &Bits, b: &Bits, end: u64, spare: std::ops::Range<u64>| {
            let pairs = a.bytes().iter().zip(b.bytes()).enumerate().filter(|(_, (a, b))| a != b);
            let bits =
                pairs.flat_map(|(i, _)| (0..8u64).map(move |bit| (i as u64).saturating_mul(8).saturating_add(bit)));
            let mut odd = bits.filter(|n| *n < end && !spare.contains(n) && a.get(*n) != b.get(*n)).peekable();
            odd.peek().copied().map(|first| (first, odd.count()))
        };
        if let Some((first, n)) = differ(&self.owned, &self.clusters, clusters, 0..0) {
            self.fault(|| format!("$Bitmap is wrong for {n} clusters, the first is {first}"));
        }
        // Records 12 to 23 are kept back: some have them in use, some only marked.
        if let Some((first, n)) = differ(&self.in_use, &self.records, count, 12..FIRST_USER) {
            self.fault(|| format!("the bitmap of $MFT is wrong for {n} records, the first is {first}"));
        }
    }
}

/// A whole bitmap of at least `count` bits.
fn whole(reader: &Reader, number: u64, kind: u32, count: u64) -> Result<Bits> {
    let layer = reader.open_value(number, kind, b"")?;
    if layer.len() < count.div_ceil(8) || layer.len() > reader.volume.len() {
        return Err(layout::wrong("bitmap", reader.place(number).get(), format!("{count} bits")));
    }
    Ok(Bits::of(layer.read_vec(Offset::new(0), usize::try_from(layer.len()).unwrap_or(0))?))
}

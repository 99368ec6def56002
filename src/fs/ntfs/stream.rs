//! The bytes of one stream.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::extent::{Encoding, Extent, Layer, LayerId, Map, Offset, ReadAt, Stream, Volume, What};
use crate::fs::ntfs::lznt1;
use crate::fs::ntfs::runs::{LOST, Run};

/// A value in an MFT record.
#[derive(Debug)]
pub struct Resident {
    id: LayerId,
    bytes: Vec<u8>,
}

impl Resident {
    /// Of these bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { id: LayerId::fresh(), bytes }
    }
}

impl ReadAt<Stream> for Resident {
    fn id(&self) -> LayerId {
        self.id
    }
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn read_at(&self, at: Offset<Stream>, buf: &mut [u8]) -> Result<()> {
        let start = usize::try_from(at.get()).unwrap_or(usize::MAX);
        let from = self.bytes.get(start..start.saturating_add(buf.len()));
        let from = from.ok_or_else(|| Error::past_end(at, buf.len() as u64, self.len()))?;
        buf.copy_from_slice(from);
        Ok(())
    }
}

impl Layer<Stream> for Resident {
    fn extents(&self, range: Range<Offset<Stream>>) -> Result<Vec<Extent<Stream>>> {
        Ok(Extent::encoded(0, self.len(), Encoding::Inline).clip(&range).into_iter().collect())
    }
}

/// A stream with compressed units. The rest of it is read through its map.
pub struct Compressed {
    id: LayerId,
    volume: Arc<dyn ReadAt<Volume>>,
    map: Map<Stream, Volume>,
    /// Bytes of a cluster, and of a unit.
    cluster: u64,
    unit: u64,
    valid: u64,
    /// Runs with their first byte in the stream, in order.
    runs: Vec<(u64, Run)>,
    /// The unit that was decoded last, and where it begins.
    last: Mutex<(u64, Vec<u8>)>,
}

impl Compressed {
    /// `map` are the stream's extents, `runs` its runs from VCN 0 on.
    pub fn new(
        volume: Arc<dyn ReadAt<Volume>>,
        map: Map<Stream, Volume>,
        runs: impl IntoIterator<Item = Run>,
        cluster: u64,
        unit: u64,
        valid: u64,
    ) -> Self {
        let mut at = 0u64;
        let place = |run: Run| {
            let here = at;
            at = at.saturating_add(run.len.saturating_mul(cluster));
            (here, run)
        };
        let runs = runs.into_iter().map(place).collect();
        Self { id: LayerId::fresh(), volume, map, cluster, unit, valid, runs, last: Mutex::default() }
    }
    /// Copies from the unit that begins at `start`, from its byte `skip` on.
    fn unit(&self, start: u64, skip: usize, buf: &mut [u8]) -> Result<()> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.1.is_empty() || last.0 != start {
            last.1.clear();
            let plain = self.decode(start)?;
            *last = (start, plain);
        }
        let from = last.1.get(skip..skip.saturating_add(buf.len()));
        buf.copy_from_slice(from.ok_or_else(|| Error::past_end(Offset::<Stream>::new(start), self.unit, self.len()))?);
        Ok(())
    }
    fn decode(&self, start: u64) -> Result<Vec<u8>> {
        let size = usize::try_from(self.unit).unwrap_or(0);
        let end = start.saturating_add(self.unit);
        let mut packed = Vec::with_capacity(size);
        let first =
            self.runs.partition_point(|(at, run)| at.saturating_add(run.len.saturating_mul(self.cluster)) <= start);
        for &(at, run) in self.runs.get(first..).unwrap_or_default().iter().take_while(|(at, _)| *at < end) {
            if run.lcn >= LOST {
                continue;
            }
            let run_end = at.saturating_add(run.len.saturating_mul(self.cluster)).min(end);
            let from = at.max(start);
            let place = run.lcn.saturating_mul(self.cluster).saturating_add(from.saturating_sub(at));
            let len = usize::try_from(run_end.saturating_sub(from)).unwrap_or(0);
            let have = packed.len();
            packed.resize(have.saturating_add(len).min(size), 0);
            if let Some(room) = packed.get_mut(have..) {
                self.volume.read_at(Offset::new(place), room)?;
            }
        }
        let mut plain = vec![0; size];
        lznt1::decode(&packed, &mut plain)
            .map_err(|what| Error::corrupt("LZNT1 compression unit", Offset::<Stream>::new(start), what))?;
        if let Some(beyond) = self.valid.checked_sub(start).and_then(|n| plain.get_mut(usize::try_from(n).ok()?..)) {
            beyond.fill(0);
        }
        Ok(plain)
    }
}

impl ReadAt<Stream> for Compressed {
    fn id(&self) -> LayerId {
        self.id
    }
    fn len(&self) -> u64 {
        self.map.len()
    }
    fn read_at(&self, at: Offset<Stream>, buf: &mut [u8]) -> Result<()> {
        let end = at.saturating_add(buf.len() as u64);
        if end.get() > self.len() || end.since(at) != buf.len() as u64 {
            return Err(Error::past_end(at, buf.len() as u64, self.len()));
        }
        let mut rest = buf;
        for extent in self.map.slice(at..end) {
            let (mut part, after) =
                rest.split_at_mut(usize::try_from(extent.len).unwrap_or(usize::MAX).min(rest.len()));
            rest = after;
            match extent.what {
                What::Zero => part.fill(0),
                What::Stored(place) => self.volume.read_at(place.offset, part)?,
                What::Encoded(Encoding::FsCompressed) => {
                    let mut at = extent.start.get();
                    while !part.is_empty() {
                        let skip = at.checked_rem(self.unit).unwrap_or(0);
                        let now = usize::try_from(self.unit.saturating_sub(skip)).unwrap_or(0).min(part.len());
                        let (head, tail) = std::mem::take(&mut part).split_at_mut(now);
                        self.unit(at.saturating_sub(skip), usize::try_from(skip).unwrap_or(0), head)?;
                        part = tail;
                        at = at.saturating_add(now as u64);
                    }
                }
                What::Encoded(_) => return Err(unreadable(extent.start)),
            }
        }
        Ok(())
    }
}

impl Layer<Stream> for Compressed {
    fn extents(&self, range: Range<Offset<Stream>>) -> Result<Vec<Extent<Stream>>> {
        Ok(self.map.slice(range).collect())
    }
}

fn unreadable(at: Offset<Stream>) -> Error {
    Error::corrupt("runs", at, "clusters within the volume for these bytes")
}

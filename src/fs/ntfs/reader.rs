//! A volume whose boot sector and `$MFT` have been found: records and values by their numbers.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::bytes::Fields;
use crate::error::{Error, Result};
use crate::extent::{Encoding, Layer, Map, MapLayer, Offset, ReadAt, Stream, Volume, What};
use crate::fs::Form;
use crate::fs::ntfs::layout::{self, Body, Boot, MAX_VALUE, MFT, Record, Reference, kind};
use crate::fs::ntfs::pieces::{self, Part};
use crate::fs::ntfs::scan::{Chunk, Context};
use crate::fs::ntfs::stream::{Compressed, Resident};

/// The volume, and where its records are.
pub struct Reader {
    /// The volume's bytes.
    pub volume: Arc<dyn ReadAt<Volume>>,
    /// Its boot sector.
    pub boot: Boot,
    /// `$MFT`, cut to whole records.
    pub mft: Map<Stream, Volume>,
    /// What was out of order on the way, one sentence each.
    pub remarks: Vec<String>,
}

impl Reader {
    /// Finds `$MFT`: by its own record, or by the copy of that in `$MFTMirr`.
    ///
    /// # Errors
    /// Where neither can be read.
    pub fn open(volume: Arc<dyn ReadAt<Volume>>, boot: Boot) -> Result<Self> {
        let mut reader = Self { volume, boot, mft: Map::new(), remarks: Vec::new() };
        if boot.sectors.saturating_mul(boot.sector) > reader.volume.len() {
            reader.remarks.push(format!(
                "the volume is cut off: {} bytes of {}",
                reader.volume.len(),
                boot.sectors.saturating_mul(boot.sector)
            ));
        }
        match reader.bootstrap(boot.mft) {
            Ok(map) => reader.mft = map,
            Err(first) => {
                reader.mft = reader.bootstrap(boot.mirror).map_err(|_| {
                    Error::corrupt(
                        "$MFT and $MFTMirr",
                        Offset::<Volume>::new(boot.mft.saturating_mul(boot.cluster)),
                        format!("record 0 in one of them ({first})"),
                    )
                })?;
                reader.remarks.push(format!("$MFT was found by $MFTMirr: {first}"));
            }
        }
        Ok(reader)
    }
    /// Records that `$MFT` has room for.
    pub fn records(&self) -> u64 {
        self.mft.len().checked_div(self.boot.record as u64).unwrap_or(0)
    }
    /// How records are to be understood.
    pub fn context(&self, extra: u32) -> Context {
        let have = self.volume.len().checked_div(self.boot.cluster).unwrap_or(0);
        Context { clusters: self.boot.clusters().min(have), extra }
    }
    fn bootstrap(&mut self, cluster: u64) -> Result<Map<Stream, Volume>> {
        // One record is in place at first, which is enough to read the others of $MFT, if it has more.
        let at = cluster.saturating_mul(self.boot.cluster);
        self.mft = Map::run(self.boot.record as u64, self.volume.id(), at);
        let mut chunk = Chunk::default();
        self.add(&mut chunk, MFT, 0)?;
        let base = chunk.recs.first().copied().unwrap_or_default();
        let mut have = BTreeSet::from([Reference(u64::from(base.sequence) << 48)]);
        // The pieces of $MFT's data that are known lead to the records of the next ones.
        loop {
            let (map, _, wrong) = self.value(&chunk, kind::DATA, b"")?;
            self.mft = self.whole_records(map);
            let mut more = false;
            for reference in self.list(&chunk)? {
                let known = reference.number().checked_add(1).is_some_and(|n| n <= self.records());
                if known && have.insert(reference) {
                    more = true;
                    if let Err(e) = self.extension(&mut chunk, MFT, reference, 0) {
                        self.remarks.push(format!("a part of $MFT is missing: {e}"));
                    }
                }
            }
            if !more {
                if let Some(what) = wrong {
                    self.remarks.push(format!("a part of $MFT is missing: expected {what}"));
                }
                return Ok(self.mft.clone());
            }
        }
    }
    /// No more than whole records, and no more bytes than the volume has.
    fn whole_records(&self, map: Map<Stream, Volume>) -> Map<Stream, Volume> {
        let len = map.len().min(self.volume.len());
        let record = self.boot.record as u64;
        map.resized(len.saturating_sub(len.checked_rem(record).unwrap_or(0)))
    }
    /// Where a record begins in the volume, for messages.
    pub fn place(&self, number: u64) -> Offset<Volume> {
        let at = Offset::new(number.saturating_mul(self.boot.record as u64));
        match self.mft.slice(at..at.saturating_add(1)).next().map(|e| e.what) {
            Some(What::Stored(place)) => place.offset,
            _ => Offset::default(),
        }
    }
    /// Reads stretches of `$MFT`, put together through its runs.
    ///
    /// # Errors
    /// What reading meets, or that this part of `$MFT` is not known.
    pub fn read_mft(&self, at: Offset<Stream>, buf: &mut [u8]) -> Result<()> {
        let end = at.saturating_add(buf.len() as u64);
        let mut rest = buf;
        for e in self.mft.slice(at..end) {
            let (part, after) = rest.split_at_mut(usize::try_from(e.len).unwrap_or(usize::MAX).min(rest.len()));
            rest = after;
            match e.what {
                What::Stored(place) => self.volume.read_at(place.offset, part)?,
                What::Zero => part.fill(0),
                What::Encoded(_) => {
                    return Err(Error::corrupt("$MFT", e.start, "a run for this part of it, within the volume"));
                }
            }
        }
        if rest.is_empty() { Ok(()) } else { Err(Error::past_end(at, end.since(at), self.mft.len())) }
    }
    /// The bytes of a record, as they are on the disk.
    ///
    /// # Errors
    /// As [`read_mft`](Self::read_mft).
    pub fn record(&self, number: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.boot.record];
        self.read_mft(Offset::new(number.saturating_mul(self.boot.record as u64)), &mut bytes)?;
        Ok(bytes)
    }
    /// Adds a record to a chunk.
    fn add(&self, chunk: &mut Chunk, number: u64, extra: u32) -> Result<()> {
        let mut bytes = self.record(number)?;
        let before = chunk.recs.len();
        chunk.record(&mut bytes, number, self.place(number), true, self.context(extra));
        if chunk.recs.len() > before {
            return Ok(());
        }
        Err(match chunk.problems.pop() {
            Some((_, e)) => e,
            None => Error::corrupt(format!("MFT record {number}"), self.place(number), "a record in use"),
        })
    }
    fn extension(&self, chunk: &mut Chunk, base: u64, reference: Reference, extra: u32) -> Result<()> {
        let mut one = Chunk::default();
        self.add(&mut one, reference.number(), 0)?;
        let fits = one.recs.iter().any(|r| r.sequence == reference.sequence() && r.base.number() == base);
        if !fits || reference.number() == base {
            let place = self.place(reference.number());
            let structure = format!("MFT record {}", reference.number());
            return Err(Error::corrupt(structure, place, format!("an extension of record {base}")));
        }
        self.add(chunk, reference.number(), extra)
    }
    /// The records that the attribute list of the first record in `chunk` names.
    fn list(&self, chunk: &Chunk) -> Result<BTreeSet<Reference>> {
        let Some(piece) = chunk.pieces.iter().find(|p| p.kind == kind::ATTRIBUTE_LIST) else {
            return Ok(BTreeSet::new());
        };
        if piece.size > MAX_VALUE {
            let at = Offset::<Volume>::default();
            return Err(Error::corrupt("$ATTRIBUTE_LIST", at, "at most 256 KiB"));
        }
        let bytes = self.bytes(&[Part { chunk, piece }])?;
        Ok(layout::attribute_list(&bytes).flatten().map(|e| e.record).collect())
    }
    /// A file's records: the base, and those that its attribute list names.
    ///
    /// # Errors
    /// Where one of them can't be read.
    pub fn file(&self, number: u64, extra: u32) -> Result<Chunk> {
        let mut chunk = Chunk::default();
        self.add(&mut chunk, number, extra)?;
        let own = chunk.recs.first().map_or(0, |r| r.number | u64::from(r.sequence) << 48);
        for reference in self.list(&chunk)? {
            if reference.0 != own {
                self.extension(&mut chunk, number, reference, extra)?;
            }
        }
        Ok(chunk)
    }
    /// Extents of a value of a file, its initialized size, and what is wrong with it.
    fn value(
        &self,
        chunk: &Chunk,
        kind: u32,
        name: &[u8],
    ) -> Result<(Map<Stream, Volume>, pieces::Value, Option<&'static str>)> {
        let parts = Self::parts(chunk, kind, name);
        let mut whats = Vec::new();
        let value = pieces::assemble(&parts, self.boot.cluster, self.volume.id(), &mut whats).ok_or_else(|| {
            let number = chunk.recs.first().map_or(0, |r| r.number);
            Error::corrupt(
                format!("MFT record {number}"),
                self.place(number),
                format!("an attribute of type {kind:#x}"),
            )
        })?;
        let wrong = value.wrong;
        Ok((whats.into_iter().collect(), value, wrong))
    }
    /// The pieces of a value of a file, in order of VCN.
    pub fn parts<'c>(chunk: &'c Chunk, kind: u32, name: &[u8]) -> Vec<Part<'c>> {
        let all = chunk.pieces.iter().map(|piece| Part { chunk, piece });
        let mut parts: Vec<_> = all.filter(|p| p.value() == (kind, name)).collect();
        parts.sort_by_key(|p| p.piece.lowest);
        parts
    }
    /// The bytes of a value that is known to be small.
    ///
    /// # Errors
    /// Where it is larger than 256 KiB, or can't be read.
    pub fn bytes(&self, parts: &[Part<'_>]) -> Result<Vec<u8>> {
        let mut whats = Vec::new();
        let value = pieces::assemble(parts, self.boot.cluster, self.volume.id(), &mut whats);
        let size = value.map_or(0, |v| v.size.min(MAX_VALUE));
        let layer = self.layer(parts, whats.into_iter().collect())?;
        layer.read_vec(Offset::new(0), usize::try_from(size.min(layer.len())).unwrap_or(0))
    }
    /// A whole value of a file as a layer.
    ///
    /// # Errors
    /// Where the file has none, or its records can't be read.
    pub fn open_value(&self, number: u64, kind: u32, name: &[u8]) -> Result<Arc<dyn Layer<Stream>>> {
        let chunk = self.file(number, kind)?;
        let (map, ..) = self.value(&chunk, kind, name)?;
        self.layer(&Self::parts(&chunk, kind, name), map)
    }
    /// The layer of a value whose extents are `map`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where it is encrypted.
    pub fn layer(&self, parts: &[Part<'_>], map: Map<Stream, Volume>) -> Result<Arc<dyn Layer<Stream>>> {
        let (Some(first), volume) = (parts.first(), Arc::clone(&self.volume)) else {
            return Ok(Arc::new(MapLayer::new(map, vec![Arc::clone(&self.volume)])?));
        };
        if first.piece.runs.is_none() {
            return Ok(Arc::new(Resident::new(self.resident(first.piece.locator)?)));
        }
        let mut whats = Vec::new();
        let value = pieces::assemble(parts, self.boot.cluster, volume.id(), &mut whats);
        if let Some(value) = value
            && let Form::Compressed(unit) = value.form
        {
            let mut runs = Vec::new();
            pieces::runs(parts, &mut None, |run| runs.push(run));
            let unit = u64::from(unit);
            return Ok(Arc::new(Compressed::new(volume, map, runs, self.boot.cluster, unit, value.valid)));
        }
        if map.extents().iter().any(|e| e.what == What::Encoded(Encoding::FsEncrypted)) {
            return Err(Error::Unsupported("a stream that is encrypted by EFS can't be read".into()));
        }
        Ok(Arc::new(MapLayer::new(map, vec![volume])?))
    }
    /// The resident value that a locator names.
    ///
    /// # Errors
    /// Where it is not there any more.
    pub fn resident(&self, locator: u64) -> Result<Vec<u8>> {
        let (number, at) = (locator >> 16, (locator & 0xFFFF) as usize);
        self.decoded(number, |record| match record.attribute(at)?.body {
            Body::Resident(value) => Ok(value.to_vec()),
            Body::NonResident { .. } => {
                let place = self.place(number);
                Err(Error::corrupt(format!("MFT record {number}"), place, format!("a resident value at {at:#x}")))
            }
        })
    }
    /// What `look` makes of one record, which is not kept.
    ///
    /// # Errors
    /// Where it can't be read, and those of `look`.
    pub fn decoded<T>(&self, number: u64, look: impl FnOnce(&Record<'_>) -> Result<T>) -> Result<T> {
        // Many are looked at one after the other: mostly nothing is allocated for that.
        let (mut short, mut long) = ([0; 1024], Vec::new());
        let bytes = match short.get_mut(..self.boot.record) {
            Some(short) => short,
            None => {
                long.resize(self.boot.record, 0);
                long.as_mut_slice()
            }
        };
        self.read_mft(Offset::new(number.saturating_mul(self.boot.record as u64)), bytes)?;
        let place = self.place(number);
        if !bytes.starts_with(b"FILE") {
            return Err(Error::corrupt(format!("MFT record {number}"), place, "the signature `FILE`"));
        }
        layout::fix_up(bytes).map_err(|what| Error::corrupt(format!("MFT record {number}"), place, what))?;
        look(&Record::decode(Fields::new("MFT record", place, bytes), number)?)
    }
}

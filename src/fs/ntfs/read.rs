//! NTFS as guest or as host, for reading: facts, walk, streams.

use std::sync::{Arc, Mutex, OnceLock};

use rayon::prelude::*;

use crate::bytes::Fields;
use crate::error::{Error, Result};
use crate::extent::{Encoding, Layer, Map, MapLayer, Offset, ReadAt, Stream, Volume, What};
use crate::fs::host::Host;
use crate::fs::ntfs::host::State;
use crate::fs::ntfs::layout::{self, BITMAP, Body, Boot, COMPRESSION_MASK, LOG_FILE, MFT, Record, VOLUME, kind};
use crate::fs::ntfs::merge::Merge;
use crate::fs::ntfs::pieces;
use crate::fs::ntfs::raw::RawRecord;
use crate::fs::ntfs::reader::Reader;
use crate::fs::ntfs::runs::{HOLE, LOST};
use crate::fs::ntfs::scan::Chunk;
use crate::fs::ntfs::secure::{MAX_DESCRIPTOR, Secure};
use crate::fs::ntfs::stream::Resident;
use crate::fs::{Details, Facts, FileSystem, Form, ObjectId, Packed, ReadOptions, StreamId, Tree, utf16};

/// Bytes of `$MFT` that are read at a time: few enough to be still in a core's cache when they are decoded.
const SWEEP: u64 = 128 << 10;
/// Stretches of `$MFT` that are swept while those before them are merged.
const BATCH: usize = 16;
/// Bytes of other metadata that are read at a time.
const PIECE: u64 = 1 << 20;

/// An NTFS volume.
pub struct Ntfs {
    pub(super) reader: Reader,
    clusters: u64,
    /// What is known of it as a host.
    pub(super) state: OnceLock<Result<State>>,
    secure: OnceLock<Secure>,
}

/// Opens the volume where its boot sector says that it is NTFS; a damaged one is replaced by its backup at the end of
/// the volume. See also [`open_by_backup`].
///
/// # Errors
/// [`Error::Unsupported`] for BitLocker; [`Error::Corrupt`] where neither boot sector nor neither `$MFT` can be used.
pub fn open(volume: Arc<dyn ReadAt<Volume>>, _options: ReadOptions) -> Result<Option<Arc<dyn FileSystem>>> {
    if volume.len() < layout::STRIDE as u64 {
        return Ok(None);
    }
    let sector = volume.read_vec(Offset::new(0), layout::STRIDE)?;
    if Boot::is_bitlocker(&sector) {
        return Err(Error::Unsupported("the volume is encrypted by BitLocker".into()));
    }
    if !Boot::is_ntfs(&sector) {
        return Ok(None);
    }
    let first = Boot::decode(Fields::new("boot sector", Offset::new(0), &sector))
        .and_then(|boot| Reader::open(Arc::clone(&volume), boot));
    match first {
        Ok(reader) => Ok(Some(Arc::new(Ntfs::new(reader)))),
        Err(e) => backup(volume, &e.to_string()).map_or(Err(e), |fs| Ok(Some(fs))),
    }
}

/// Opens the volume by the backup boot sector at its end: the last thing to try, for a volume that no probe recognises.
/// A volume that was formatted anew may still end with it.
///
/// # Errors
/// Where the volume can't be read.
pub fn open_by_backup(volume: Arc<dyn ReadAt<Volume>>) -> Result<Option<Arc<dyn FileSystem>>> {
    Ok(backup(volume, "the boot sector is not that of an NTFS volume"))
}

fn backup(volume: Arc<dyn ReadAt<Volume>>, why: &str) -> Option<Arc<dyn FileSystem>> {
    // It is the last sector of the partition, which has one sector more than the volume counts.
    for size in [512, 4096, 1024, 2048] {
        let at = Offset::new(volume.len().checked_sub(size)?);
        let Ok(sector) = volume.read_vec(at, layout::STRIDE) else { continue };
        let Ok(boot) = Boot::decode(Fields::new("backup boot sector", at, &sector)) else { continue };
        if boot.sector != size || boot.sectors.saturating_mul(size) > at.get() {
            continue;
        }
        let Ok(mut reader) = Reader::open(Arc::clone(&volume), boot) else { continue };
        reader.remarks.insert(0, format!("opened by the backup boot sector: {why}"));
        return Some(Arc::new(Ntfs::new(reader)));
    }
    None
}

impl Ntfs {
    pub(super) fn new(reader: Reader) -> Self {
        Self { clusters: reader.boot.clusters(), reader, state: OnceLock::new(), secure: OnceLock::new() }
    }
    /// The security descriptors that files share.
    pub(super) fn secure(&self) -> &Secure {
        self.secure.get_or_init(|| Secure::load(&self.reader))
    }
    /// The security descriptor of a file by its base record.
    pub(super) fn security_of(&self, record: &RawRecord) -> Option<Arc<[u8]>> {
        let own = record.value(kind::SECURITY_DESCRIPTOR).map(Arc::from);
        let far = record.has_list() || own.is_none() && record.get(kind::SECURITY_DESCRIPTOR).is_some();
        self.descriptor(record.number, own, record.value(kind::STANDARD_INFORMATION).map(security_id), far)
    }
    /// The same by what the record says: a descriptor of its own, an identity, whether a descriptor may be in another record or in
    /// clusters.
    fn descriptor(&self, number: u64, own: Option<Arc<[u8]>>, id: Option<u32>, far: bool) -> Option<Arc<[u8]>> {
        if own.is_some() {
            return own;
        }
        match id? {
            0 if far => {
                let far = self.reader.open_value(number, kind::SECURITY_DESCRIPTOR, b"").ok()?;
                let len = usize::try_from(far.len()).ok().filter(|n| *n <= MAX_DESCRIPTOR)?;
                far.read_vec(Offset::new(0), len).ok().map(Arc::from)
            }
            0 => None,
            id => self.secure().get(id).cloned(),
        }
    }
    pub(super) fn small(&self, number: u64, kind: u32) -> Option<Vec<u8>> {
        let layer = self.reader.open_value(number, kind, b"").ok()?;
        layer.read_vec(Offset::new(0), usize::try_from(layer.len()).ok().filter(|n| *n <= 4096)?).ok()
    }
    /// Free clusters by `$Bitmap`.
    fn free(&self) -> Option<u64> {
        let bitmap = self.reader.open_value(BITMAP, kind::DATA, b"").ok()?;
        let mut left = self.clusters;
        let mut free = 0u64;
        let mut at = 0u64;
        while left > 0 {
            let now = left.div_ceil(8).min(PIECE);
            let bytes = bitmap.read_vec(Offset::new(at), usize::try_from(now).ok()?).ok()?;
            for word in bytes.chunks(8) {
                let mut wide = [0u8; 8];
                wide.iter_mut().zip(word).for_each(|(to, from)| *to = *from);
                let bits = left.min((word.len() as u64).saturating_mul(8));
                let mask = u64::MAX.checked_shr(64u32.saturating_sub(bits as u32)).unwrap_or(0);
                free = free.saturating_add((!u64::from_le_bytes(wide) & mask).count_ones().into());
                left = left.saturating_sub(bits);
            }
            at = at.saturating_add(now);
        }
        Some(free)
    }
    /// Whether the log leaves nothing to be replayed.
    pub(super) fn log_is_clean(&self) -> Option<bool> {
        let log = self.reader.open_value(LOG_FILE, kind::DATA, b"").ok()?;
        let head = log.read_vec(Offset::new(0), usize::try_from(log.len().min(8192)).ok()?).ok()?;
        layout::log_is_clean(&head)
    }
    /// Bits of the records in use, as far as they can be read.
    fn in_use(&self) -> Vec<u8> {
        let bits = self.reader.open_value(MFT, kind::BITMAP, b"");
        let want = self.reader.records().div_ceil(8);
        bits.and_then(|b| b.read_vec(Offset::new(0), usize::try_from(want.min(b.len())).unwrap_or(0)))
            .unwrap_or_default()
    }
    /// Sweeps the stretch of `$MFT` that begins at `at`; its bytes go to `buffer`, whatever is in that.
    fn sweep(&self, at: u64, in_use: &[u8], chunk: &mut Chunk, buffer: &mut Vec<u8>) {
        let record = self.reader.boot.record;
        let len = usize::try_from(self.reader.mft.len().saturating_sub(at).min(SWEEP)).unwrap_or(0);
        buffer.resize(len, 0);
        chunk.clear();
        let whole = self.reader.read_mft(Offset::new(at), buffer);
        let context = self.reader.context(0);
        let first = at.checked_div(record as u64).unwrap_or(0);
        // The volume's offset of each record, without looking each one up: a cursor over the extents.
        let range = Offset::new(at)..Offset::new(at.saturating_add(len as u64));
        let mut extents = self.reader.mft.slice(range).peekable();
        for (i, bytes) in (0u64..).zip(buffer.chunks_exact_mut(record)) {
            let number = first.saturating_add(i);
            let start = at.saturating_add(i.saturating_mul(record as u64));
            while extents.peek().is_some_and(|e| e.end().get() <= start) {
                extents.next();
            }
            let place = match extents.peek().map(|e| (e.start.get(), e.what)) {
                Some((from, What::Stored(p))) => p.offset.saturating_add(start.saturating_sub(from)),
                _ => Offset::default(),
            };
            let bit = usize::try_from(number >> 3).ok().and_then(|n| in_use.get(n));
            let expected = bit.map_or(!in_use.is_empty(), |b| b >> (number & 7) & 1 != 0);
            if whole.is_err()
                && let Err(e) = self.reader.read_mft(Offset::new(start), bytes)
            {
                // One bad sector costs its record, not all of those that were read with it.
                if expected {
                    chunk.problem(number, e);
                }
                continue;
            }
            chunk.record(bytes, number, place, expected, context);
        }
    }
}

/// The identity of a descriptor in `$STANDARD_INFORMATION`, 0 for none.
fn security_id(information: &[u8]) -> u32 {
    information.get(0x34..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}

impl FileSystem for Ntfs {
    fn facts(&self) -> Facts {
        let boot = &self.reader.boot;
        let mut remarks = self.reader.remarks.clone();
        let label = self.small(VOLUME, kind::VOLUME_NAME).map(|name| utf16::to_wtf8(&name)).unwrap_or_default();
        let information = self.small(VOLUME, kind::VOLUME_INFORMATION);
        let information = information.as_deref().and_then(layout::volume_information);
        if let Some((major, minor, flags)) = information {
            if flags != 0 {
                remarks.push(format!(
                    "the volume's flags are {flags:#06x}: it was not closed cleanly, or is to be checked"
                ));
            }
            remarks.push(format!("NTFS version {major}.{minor}"));
        } else {
            remarks.push("$VOLUME_INFORMATION can't be read".into());
        }
        let log = self.log_is_clean();
        match log {
            Some(true) => {}
            Some(false) => remarks.push("the journal $LogFile has changes that are to be replayed".into()),
            None => remarks.push("the journal $LogFile can't be read".into()),
        }
        Facts {
            kind: "ntfs",
            label: String::from_utf8_lossy(&label).into_owned(),
            serial: format!("{:016X}", boot.serial),
            unit: boot.cluster,
            units: self.clusters,
            free_units: self.free(),
            clean: information.map(|i| i.2 == 0 && log == Some(true)),
            remarks,
        }
    }
    fn walk(&self) -> Result<Tree> {
        let in_use = self.in_use();
        let files = in_use.iter().map(|bits| bits.count_ones() as usize).fold(0, usize::saturating_add);
        let mut merge = Merge::new(&self.reader, files);
        // One buffer for each thread, that stays in its core's cache.
        let buffers: Vec<Mutex<Vec<u8>>> = (0..=rayon::current_num_threads()).map(|_| Mutex::default()).collect();
        let (mut swept, mut next) = (Vec::new(), Vec::new());
        let mut at = 0u64;
        let len = self.reader.mft.len();
        while at < len || !swept.is_empty() {
            let count = usize::try_from(len.saturating_sub(at).div_ceil(SWEEP)).unwrap_or(BATCH).min(BATCH);
            next.resize_with(count, Chunk::default);
            rayon::join(
                || swept.iter_mut().for_each(|chunk| merge.add(chunk)),
                || {
                    next.par_iter_mut().enumerate().for_each(|(i, chunk)| {
                        let at = at.saturating_add((i as u64).saturating_mul(SWEEP));
                        let own = buffers.get(rayon::current_thread_index().map_or(0, |n| n.saturating_add(1)));
                        match own.and_then(|own| own.try_lock().ok()) {
                            Some(mut buffer) => self.sweep(at, &in_use, chunk, &mut buffer),
                            None => self.sweep(at, &in_use, chunk, &mut Vec::new()),
                        }
                    });
                },
            );
            at = at.saturating_add((count as u64).saturating_mul(SWEEP));
            std::mem::swap(&mut swept, &mut next);
        }
        Ok(merge.finish())
    }
    fn open(&self, tree: &Tree, stream: StreamId) -> Result<Arc<dyn Layer<Stream>>> {
        let info = tree.stream(stream);
        match info.form {
            Form::Encrypted => Err(Error::Unsupported("a stream that is encrypted by EFS can't be read".into())),
            Form::Inline => {
                let bytes = self.reader.resident(info.locator)?;
                if bytes.len() as u64 != info.size {
                    let what = format!("a resident value of {} bytes", info.size);
                    return Err(Error::corrupt("MFT record", self.reader.place(info.locator >> 16), what));
                }
                Ok(Arc::new(Resident::new(bytes)))
            }
            Form::Wof => Err(Error::Unsupported(
                "a file that is compressed as a whole by WOF (Compact OS) can't be decoded; its stream WofCompressedData can be read"
                    .into(),
            )),
            Form::Compressed(_) => {
                let chunk = self.reader.file(tree.object(info.object).number, 0)?;
                let name = tree.stream_name(stream).unwrap_or_default();
                self.reader.layer(&Reader::parts(&chunk, kind::DATA, name), tree.map(stream))
            }
            Form::Plain => {
                let map = tree.map(stream);
                if let [only] = map.extents()
                    && only.what == What::Encoded(Encoding::Unreadable)
                {
                    let number = tree.object(info.object).number;
                    return Err(Error::corrupt(
                        format!("file of MFT record {number}"),
                        self.reader.place(number),
                        "data that is described within the volume",
                    ));
                }
                Ok(Arc::new(MapLayer::new(map, vec![Arc::clone(&self.reader.volume)])?))
            }
        }
    }
    fn packed(&self, tree: &Tree, stream: StreamId) -> Option<Packed> {
        let info = tree.stream(stream);
        let chunk = self.reader.file(tree.object(info.object).number, 0).ok()?;
        let name = tree.stream_name(stream).unwrap_or_default();
        let parts = Reader::parts(&chunk, kind::DATA, name);
        let first = parts.first().map(|p| *p.piece).filter(|p| p.lowest == 0 && p.flags & COMPRESSION_MASK == 1)?;
        let cluster = self.reader.boot.cluster;
        let unit = 1u64.checked_shl(first.unit.into())?.checked_mul(cluster)?;
        let (mut map, mut wrong, mut lost) = (Map::new(), None, false);
        pieces::runs(&parts, &mut wrong, |run| {
            let len = run.len.saturating_mul(cluster);
            match run.lcn {
                HOLE => map.push(len, What::Zero),
                LOST => lost = true,
                lcn => map.push_stored(len, self.reader.volume.id(), lcn.saturating_mul(cluster)),
            }
        });
        let whole = map.len() >= info.size && map.len().checked_rem(unit) == Some(0);
        (whole && !lost && wrong.is_none()).then_some(Packed { unit, cluster, map })
    }
    fn details(&self, tree: &Tree, object: ObjectId, stream: Option<StreamId>) -> Details {
        let number = tree.object(object).number;
        // Mostly the bytes are in the same record.
        let info = stream.map(|stream| tree.stream(stream));
        let here = info.filter(|info| info.form == Form::Inline && info.locator >> 16 == number);
        let (mut own, mut id, mut far, mut bytes) = (None, None, false, None);
        let look = |record: &Record<'_>| {
            for attribute in record.attributes() {
                let a = attribute?;
                match (a.kind, a.body) {
                    (kind::SECURITY_DESCRIPTOR, Body::Resident(value)) => own = Some(Arc::from(value)),
                    (kind::STANDARD_INFORMATION, Body::Resident(value)) => id = Some(security_id(value)),
                    (kind::ATTRIBUTE_LIST | kind::SECURITY_DESCRIPTOR, _) => far = true,
                    _ => {}
                }
            }
            if let Some(info) = here
                && let Ok(attribute) = record.attribute((info.locator & 0xFFFF) as usize)
                && let Body::Resident(value) = attribute.body
                && value.len() as u64 == info.size
            {
                bytes = Some(value.to_vec());
            }
            Ok(())
        };
        let security = match self.reader.decoded(number, look) {
            Ok(()) => self.descriptor(number, own, id, far),
            Err(_) => None,
        };
        if let (None, None, Some(stream)) = (here, &bytes, stream) {
            bytes = self.open(tree, stream).ok().and_then(|layer| crate::fs::whole(&*layer));
        }
        (security, bytes)
    }
    fn as_host(&self) -> Option<&dyn Host> {
        Some(self)
    }
}

//! What the targets do with the fuzzer's bytes, and what must hold of it. `tests/mutations.rs` does the same with mutated fixtures.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use unimage::container::gate::{Allow, Gate, Identity, Opened, Wanted};
use unimage::container::{OpenWith, probe};
use unimage::error::{Error, Result};
use unimage::extent::{Device, Layer, LayerId, Offset, ReadAt, Space, Stream, Volume, What};
use unimage::fs::host::{HostFile, HostImage, Job};
use unimage::fs::{FileSystem, Kind, ReadOptions};
use unimage::plan::{self, GuestVolume, Part};
use unimage::source::Medium;
use unimage::source::medium::JournalFile;
use unimage::stack::{Guest, OpenOptions};
use unimage::txn::{self, Checked, HostVolume, Journal};

/// Streams of a tree that are read.
const STREAMS: usize = 64;
/// Bytes of a stream that are read: a sparse one may say that it has 2^60.
const BYTES: u64 = 1 << 16;
/// Files of a host that are tried as images.
const IMAGES: usize = 3;

struct Memory(LayerId, Vec<u8>);

impl<S: Space> ReadAt<S> for Memory {
    fn id(&self) -> LayerId {
        self.0
    }
    fn len(&self) -> u64 {
        self.1.len() as u64
    }
    fn read_at(&self, at: Offset<S>, buf: &mut [u8]) -> Result<()> {
        let have = self.1.len() as u64;
        let past = || Error::past_end(at, buf.len() as u64, have);
        let end = at.checked_add(buf.len() as u64).filter(|e| e.get() <= have).ok_or_else(past)?;
        buf.copy_from_slice(&self.1[at.get() as usize..end.get() as usize]);
        Ok(())
    }
}

/// Bytes as a layer of any space.
fn layer<S: Space>(bytes: &[u8]) -> Arc<dyn ReadAt<S>> {
    Arc::new(Memory(LayerId::fresh(), bytes.to_vec()))
}

/// Any bytes as a container: its disk can be read as far as it goes.
pub fn container(data: &[u8]) {
    let Ok(disk) = probe(layer(data), &OpenWith::alone()) else { return };
    let _ = disk.image.read_vec(Offset::new(0), disk.image.len().min(BYTES) as usize);
    if let Ok(map) = disk.image.map() {
        assert_eq!(map.len(), disk.image.len());
    }
}

/// Bytes of a file made of records, at most: the largest file whose headers, log and tables all have their places.
const SPARSE: usize = 64 << 20;
const SECTOR: usize = 512;
/// The names of the files of a set, so that segments find each other.
const NAMES: [&str; 3] = ["d.E01", "d.E02", "d.E03"];

/// Some files that name each other: whatever the name, the next one is opened.
struct Set {
    files: Arc<Vec<Arc<dyn ReadAt<Device>>>>,
    own: usize,
}

impl Gate for Set {
    fn own(&self) -> &[u8] {
        NAMES[self.own].as_bytes()
    }
    fn identity(&self) -> Identity {
        Identity::File { device: 1, inode: self.own as u64 }
    }
    fn open(&self, wanted: &Wanted<'_>) -> Result<Opened> {
        let named = NAMES.iter().position(|name| wanted.name == name.as_bytes());
        let number = named.unwrap_or(self.own + 1);
        let device = self.files.get(number).ok_or_else(|| Error::NotFound("no such file".into()))?;
        let gate = Self { files: Arc::clone(&self.files), own: number };
        Ok(Opened { device: Arc::clone(device), gate: Arc::new(gate), name: NAMES[number].into(), remark: None })
    }
    fn siblings(&self) -> Result<Vec<Vec<u8>>> {
        Ok(NAMES.iter().take(self.files.len()).map(|name| name.as_bytes().to_vec()).collect())
    }
}

/// The files that the data are records of. A file: its sectors (4 bytes), then records: the sector (3 bytes), the length (2
/// bytes), bytes; a record for sector 0xffffff begins the next file. Numbers are little-endian.
fn sparse(mut data: &[u8]) -> Vec<Vec<u8>> {
    let mut files = Vec::new();
    while let Some((sectors, mut rest)) = data.split_first_chunk() {
        let mut file = vec![0; (u32::from_le_bytes(*sectors) as usize % (SPARSE / SECTOR + 1)) * SECTOR];
        while let Some((&[a, b, c, low, high], more)) = rest.split_first_chunk() {
            rest = more;
            let sector = u32::from_le_bytes([a, b, c, 0]) as usize;
            if sector == 0xff_ffff {
                break;
            }
            let (bytes, more) = rest.split_at(rest.len().min(u16::from_le_bytes([low, high]).into()));
            rest = more;
            if let Some(to) = file.get_mut(sector * SECTOR..) {
                let len = bytes.len().min(to.len());
                to[..len].copy_from_slice(&bytes[..len]);
            }
        }
        mend(&mut file);
        files.push(file);
        data = if files.len() < NAMES.len() { rest } else { &[] };
    }
    files
}

fn number(file: &[u8], at: usize) -> usize {
    file.get(at..at + 4).map_or(0, |b| u32::from_le_bytes(b.try_into().expect("four bytes")) as usize)
}

/// Puts checksums right, so that what they protect is tried, too.
fn mend(file: &mut [u8]) {
    let have = file.len();
    // VHD: footer, its copy, dynamic header.
    for (word, at, len, sum) in
        [(b"conectix", 0, 512, 64), (b"conectix", have.saturating_sub(512), 512, 64), (b"cxsparse", 512, 1024, 36)]
    {
        let Some(part) = file.get_mut(at..at + len).filter(|part| part.starts_with(word)) else { continue };
        part[sum..sum + 4].fill(0);
        let total = !part.iter().fold(0u32, |total, b| total.wrapping_add((*b).into()));
        part[sum..sum + 4].copy_from_slice(&total.to_be_bytes());
    }
    // VHDX: headers, region tables, entries of the log.
    if file.starts_with(b"vhdxfile") {
        const KIB: usize = 1 << 10;
        let mut sums = vec![(64 * KIB, 4 * KIB), (128 * KIB, 4 * KIB), (192 * KIB, 64 * KIB), (256 * KIB, 64 * KIB)];
        let log = (1 << 20..have.min(4 << 20)).step_by(4 * KIB).filter(|at| file[*at..].starts_with(b"loge"));
        sums.extend(log.map(|at| (at, number(file, at + 8).clamp(8, 1 << 20))));
        for (at, len) in sums {
            let Some(part) = file.get_mut(at..at + len) else { continue };
            part[4..8].fill(0);
            let sum = crc32c::crc32c(part);
            part[4..8].copy_from_slice(&sum.to_le_bytes());
        }
    }
    // EWF: descriptors of sections, headers of tables, volume sections.
    if file.starts_with(b"EVF\x09") {
        let mut at = 13;
        for _ in 0..64 {
            let Some(section) = file.get_mut(at..).filter(|rest| rest.len() >= 76) else { break };
            let kind = section[..6].to_vec();
            let next = u64::from_le_bytes(section[16..24].try_into().expect("eight bytes"));
            let body = &mut section[76..];
            let sum = match kind.as_slice() {
                b"volume" | b"disk\0\0" => 1048,
                b"table\0" | b"table2" => 20,
                _ => usize::MAX - 4,
            };
            if body.len() >= sum + 4 {
                let total = simd_adler32::adler32(&&body[..sum]);
                body[sum..sum + 4].copy_from_slice(&total.to_le_bytes());
            }
            let total = simd_adler32::adler32(&&section[..72]);
            section[72..76].copy_from_slice(&total.to_le_bytes());
            match usize::try_from(next) {
                Ok(next) if next > at => at = next,
                _ => break,
            }
        }
    }
}

/// Records as files of a disk: it opens or does not, and each extent lies within its file.
pub fn disk(data: &[u8]) {
    let files: Vec<_> = sparse(data).into_iter().map(|f| Arc::new(Memory(LayerId::fresh(), f)) as _).collect();
    let Some(first) = files.first().map(Arc::clone) else { return };
    let gate = Set { files: Arc::new(files), own: 0 };
    let allow = Allow { other_parent: true, raw_parent: true, ..Allow::default() };
    let tried = |snapshot: Option<&str>| {
        let Ok(disk) = probe(Arc::clone(&first), &OpenWith::new(&gate, &allow, snapshot)) else { return Vec::new() };
        let len = disk.image.len();
        for at in [0, len / 2, len.saturating_sub(BYTES)] {
            let _ = disk.image.read_vec(Offset::new(at), len.saturating_sub(at).min(BYTES) as usize);
        }
        let _ = disk.tables.iter().map(|t| t.alone()).collect::<Vec<_>>();
        // Of a disk that is very large and holds nothing, the first part and the last.
        const PART: u64 = 64 << 30;
        for range in [0..len.min(PART), len.saturating_sub(PART)..len] {
            let Ok(all) = disk.image.extents(Offset::new(range.start)..Offset::new(range.end)) else { continue };
            let mut at = range.start;
            for e in all {
                assert_eq!(e.start.get(), at, "gapless");
                at += e.len;
                if let What::Stored(place) = e.what {
                    let file = disk.tables.iter().flat_map(|t| t.files()).find(|f| f.id() == place.layer);
                    let have = file.expect("a file of the disk").len();
                    assert!(place.offset.get() + e.len <= have, "{e:?} in a file of {have} bytes");
                }
            }
            assert_eq!(at, range.end);
        }
        disk.snapshots.iter().take(2).map(|s| s.id.clone()).collect()
    };
    for snapshot in tried(None) {
        tried(Some(&snapshot));
    }
}

/// Any bytes as a disk: each volume lies on it.
pub fn volume(data: &[u8]) {
    let table = unimage::volume::probe(layer(data)).expect("memory can be read");
    for slot in &table.slots {
        let len = slot.layer.len();
        assert!(len <= data.len() as u64);
        slot.layer.read_vec(Offset::new(len.saturating_sub(1)), len.min(1) as usize).expect("bytes that are there");
    }
}

/// Any bytes as a volume of FAT.
pub fn fat(data: &[u8]) {
    walk(unimage::fs::fat::open(layer(data), ReadOptions::default()));
}

/// Any bytes as a volume of exFAT, by its first sector or by the backup.
pub fn exfat(data: &[u8]) {
    walk(unimage::fs::exfat::open(layer(data), ReadOptions::default()));
    walk(unimage::fs::exfat::open_by_backup(layer(data), ReadOptions::default()));
}

/// Any bytes as a volume of NTFS.
pub fn ntfs(data: &[u8]) {
    walk(unimage::fs::ntfs::open(layer(data), ReadOptions::default()));
}

/// Any bytes as a volume of ext2, ext3 or ext4.
pub fn ext(data: &[u8]) {
    walk(unimage::fs::ext::open(layer(data), ReadOptions::default()));
}

/// Walks a file system, and checks of each stream what every reader promises.
fn walk(fs: Result<Option<Arc<dyn FileSystem>>>) {
    let Ok(Some(fs)) = fs else { return };
    let _ = fs.facts();
    let Ok(tree) = fs.walk() else { return };
    for (entry, _) in tree.order() {
        let _ = tree.path(entry);
        let object = tree.entry(entry).object;
        let small = tree.streams(object).find(|s| tree.stream(*s).size <= 4096);
        let _ = fs.details(&tree, object, small);
    }
    let streams = tree.objects().flat_map(|(id, _)| tree.streams(id)).take(STREAMS);
    for id in streams {
        let size = tree.stream(id).size;
        assert_eq!(tree.map(id).len(), size, "extents are gapless from 0 to the size");
        let Ok(layer) = fs.open(&tree, id) else { continue };
        assert_eq!(layer.len(), size);
        read(layer.as_ref());
    }
}

fn read(layer: &dyn Layer<Stream>) {
    let len = layer.len().min(BYTES);
    let _ = layer.read_vec(Offset::new(0), len as usize);
    let _ = layer.read_vec(Offset::new(layer.len() - len), len as usize);
}

/// Any bytes as a host: its first files as images. What the host does not refuse, and can link, its audit finds right.
pub fn relink(data: &[u8]) {
    let volume: Arc<dyn ReadAt<Volume>> = layer(data);
    let host = Guest::probe(0, Arc::clone(&volume), ReadOptions::default());
    let (Ok(fs), Ok(tree)) = (host.fs(), host.tree()) else { return };
    let Some(writer) = fs.as_host() else { return };
    let files = tree.order().filter(|(e, _)| {
        let object = tree.entry(*e).object;
        tree.object(object).kind == Kind::File && tree.data(object).is_some_and(|s| tree.stream(s).size >= 4096)
    });
    for (entry, _) in files.take(IMAGES) {
        let path = unimage::report::path::escape(&tree.path(entry)).into_owned();
        let Ok(level) = host.open_image(&path, OpenOptions::default()) else { continue };
        let Some(within) = &level.within else { continue };
        let image = HostImage::of(HostFile { entry, object: within.object, map: within.map.clone() });
        let mut guests = Vec::new();
        for guest in &level.guests {
            let (Ok(tree), Ok(Some(map))) = (guest.tree(), level.volume_in_host(guest.slot)) else { continue };
            let folder = Some(format!("p{}", guest.slot).into_bytes());
            let fs = guest.fs().ok().map(Arc::clone);
            guests.push(GuestVolume { folder, part: Part::All, tree, layer: guest.volume().id(), map, fs });
        }
        let into = [b"out".to_vec()];
        let Ok((plan, staging)) = plan::build(&guests, writer, &image, &into, &plan::Options::default()) else {
            continue;
        };
        if !writer.refusals(&image).is_ok_and(|refusals| refusals.is_empty()) {
            continue;
        }
        let job = Job { tree: &plan.tree, image: &image, zero_slack: plan.zero_slack };
        let Ok(staging) = staging else { continue };
        let checked = Checked::new(staging, Arc::clone(&volume), |after, staging| writer.audit(after, &job, staging));
        if let Err(e) = checked {
            panic!("a host that was not refused, and its new state is wrong: {e}");
        }
    }
}

/// A host or a journal in memory that counts its writes.
struct Disk(Mutex<(Vec<u8>, u64)>);

impl Disk {
    fn new(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self(Mutex::new((bytes, 0))))
    }
    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }
    fn writes(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}

impl Medium for Disk {
    fn len(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.len() as u64
    }
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let from = usize::try_from(at).ok().and_then(|at| inner.0.get(at..at.checked_add(buf.len())?));
        buf.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.1 += 1;
        let to = usize::try_from(at).ok().and_then(|at| inner.0.get_mut(at..at.checked_add(bytes.len())?));
        to.ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(bytes);
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

const BLOCK: usize = 4096;

fn sum(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    parts.iter().for_each(|part| _ = hasher.update(part));
    *hasher.finalize().as_bytes()
}

/// A journal whose checksums are right, whatever is in it, and what is left of the data: else no mutation would get past them. The
/// data: number of the state (0 to 7, and 8 where units of the image are filled, and 16 for each batch that is durable), number of
/// frames, the frames (head without its sum, stored bytes).
fn summed(data: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let (&[state, frames], mut rest) = data.split_first_chunk::<2>()?;
    let (moves, batches) = (state & 8 != 0, u32::from(state >> 4));
    let id = [7; 16];
    let mut out = [b"UNIMGJNL".as_slice(), &(1 + u32::from(moves)).to_le_bytes(), &[0; 4], &id].concat();
    let mut chain = sum(&[&out]);
    out.extend_from_slice(&chain);
    out.resize(7 * BLOCK, 0);
    for _ in 0..frames {
        let (head, more) = rest.split_first_chunk::<16>()?;
        let stored = u32::from_le_bytes(head[8..12].try_into().ok()?) as usize;
        let (stored, more) = more.split_at_checked(stored)?;
        chain = sum(&[&chain, head, stored]);
        for part in [head.as_slice(), &chain, stored] {
            out.extend_from_slice(part);
        }
        if &head[..4] == b"HEND" {
            out.resize(out.len().next_multiple_of(BLOCK), 0);
        }
        rest = more;
    }
    if state % 8 != 0 {
        let mut record =
            [b"UNIMGSTA".as_slice(), &id, &0u32.to_le_bytes(), &u32::from(state % 8).to_le_bytes()].concat();
        record.extend_from_slice(&(out.len() as u64).to_le_bytes());
        record.extend_from_slice(&chain);
        record.extend_from_slice(&sum(&[&record]));
        out[BLOCK..BLOCK + record.len()].copy_from_slice(&record);
    }
    if moves {
        let mut record = [b"UNIMGPRG".as_slice(), &id, &batches.to_le_bytes(), &[0; 4]].concat();
        record.extend_from_slice(&sum(&[&record]));
        out.resize(out.len().next_multiple_of(BLOCK), 0);
        // One of the two records; the other is empty.
        out.extend_from_slice(&record);
        out.resize(out.len().next_multiple_of(BLOCK) + BLOCK, 0);
    }
    Some((out, rest))
}

/// Any bytes as a journal with a host: what recovery and undo refuse, they don't write to. Where units of the image are filled, a batch
/// may be what can't be copied, when others are already: then the quarantine stays.
pub fn journal(data: &[u8]) {
    let raw = Disk::new(data.to_vec());
    let _ = Journal::open(JournalFile { path: PathBuf::from("raw"), medium: raw });
    let Some((bytes, host)) = summed(data) else { return };
    for undo in [false, true] {
        let _ = tried(&bytes, host, undo);
    }
}

/// The host that a recovery ends with; none where it is refused.
pub fn recovered(data: &[u8]) -> Option<Vec<u8>> {
    let (bytes, host) = summed(data)?;
    tried(&bytes, host, false)
}

fn tried(journal: &[u8], host: &[u8], undo: bool) -> Option<Vec<u8>> {
    let file = JournalFile { path: PathBuf::from("summed"), medium: Disk::new(journal.to_vec()) };
    let mut journal = Journal::open(file).ok()?;
    let _ = journal.manifest();
    let disk = Disk::new(host.to_vec());
    let (medium, len) = (Arc::clone(&disk) as Arc<dyn Medium>, host.len() as u64);
    let about = journal.about().clone();
    let place = if about.volume_len == len { (0, len) } else { (about.volume_at, about.volume_len) };
    let volume = HostVolume::new(medium, place.0, place.1).ok()?;
    let done = if undo {
        txn::undo(&mut journal, &volume, &|_| Ok(about.digest), &|_| ())
    } else {
        txn::recover(&mut journal, &volume, &|_| ())
    };
    let refused = matches!(done, Err(Error::Refused(_) | Error::Corrupt { .. }));
    let stuck = matches!(done, Err(Error::Corrupt { .. })) && journal.reuses() && txn::stands(&volume, &journal);
    if refused && (undo || !stuck) {
        assert_eq!(disk.writes(), 0, "refused after it had written: {done:?}");
    }
    done.is_ok().then(|| disk.bytes())
}

//! A simulated machine with two disks, a host and a journal, and one clock. Each write and each sync is a tick. A disk keeps what is
//! durable apart from what was only written: a power cut may lose, keep, tear (at 512 bytes) or reorder any of the latter, and a
//! sector that was being written may come back unreadable until it is written anew.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use unimage::source::Medium;
use unimage::source::medium::JournalFile;

/// The unit in which writes are torn.
const SECTOR: usize = 512;

/// What happens at a tick.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The power is cut right after the write was issued, or before the sync did anything.
    PowerCut,
    /// The write or sync fails with this error number. Half of a write may be there; what a failed sync did not make durable is lost for
    /// good, though reads still see it, and the next sync succeeds.
    Error(i32),
}

/// What is left of the writes that were not synced, after a power cut.
#[derive(Clone, Copy, Debug)]
pub enum Surviving {
    /// None.
    Nothing,
    /// All.
    All,
    /// All but the last one.
    AllButLast,
    /// Only the last one.
    OnlyLast,
    /// All, but of the last one only some of its sectors.
    LastTorn,
    /// Of each sector any of the contents that it was to get, or what it had.
    AnySectors,
    /// The same, and one of the sectors that were written last can't be read.
    OneUnreadable,
}

/// Every way in which a power cut is survived.
pub const SURVIVING: [Surviving; 7] = [
    Surviving::Nothing,
    Surviving::All,
    Surviving::AllButLast,
    Surviving::OnlyLast,
    Surviving::LastTorn,
    Surviving::AnySectors,
    Surviving::OneUnreadable,
];

/// Bytes of which copies are made by the thousand: pages that were written, over bytes that all copies share.
#[derive(Clone, Default)]
pub struct Bytes {
    base: Arc<Vec<u8>>,
    pages: BTreeMap<usize, Arc<[u8; PAGE]>>,
    len: usize,
}

/// The unit in which copies differ.
const PAGE: usize = 4096;

/// Each page that a range touches: its number, and the bytes of it.
fn pages(range: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
    (range.start / PAGE..range.end.div_ceil(PAGE)).map(move |n| {
        let start = n * PAGE;
        (n, range.start.max(start) - start..range.end.min(start + PAGE) - start)
    })
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self { len: bytes.len(), base: Arc::new(bytes), pages: BTreeMap::new() }
    }
}

impl Bytes {
    /// How many.
    pub fn len(&self) -> usize {
        self.len
    }
    /// A page of the base; zeros behind its end.
    fn old(&self, page: usize) -> [u8; PAGE] {
        let mut bytes = [0; PAGE];
        let there = self.base.get(page * PAGE..).unwrap_or_default();
        let len = there.len().min(PAGE);
        bytes[..len].copy_from_slice(&there[..len]);
        bytes
    }
    fn page(&self, page: usize) -> [u8; PAGE] {
        self.pages.get(&page).map_or_else(|| self.old(page), |p| **p)
    }
    /// Longer, with zeros.
    fn grow(&mut self, len: usize) {
        self.len = self.len.max(len);
    }
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.grow(at + bytes.len());
        let mut rest = bytes;
        for (n, part) in pages(at..at + bytes.len()) {
            let (piece, more) = rest.split_at(part.len());
            let mut page = self.page(n);
            if page[part.clone()] != *piece {
                page[part].copy_from_slice(piece);
                self.pages.insert(n, Arc::new(page));
            }
            rest = more;
        }
    }
    fn get(&self, at: usize, buf: &mut [u8]) -> io::Result<()> {
        let end = at + buf.len();
        if end > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut rest = buf;
        for (n, part) in pages(at..end) {
            let (piece, more) = rest.split_at_mut(part.len());
            match (self.pages.get(&n), self.base.get(n * PAGE + part.start..n * PAGE + part.end)) {
                (Some(page), _) => piece.copy_from_slice(&page[part]),
                (None, Some(base)) => piece.copy_from_slice(base),
                (None, None) => piece.copy_from_slice(&self.old(n)[part]),
            }
            rest = more;
        }
        Ok(())
    }
    /// All of them.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut all = vec![0; self.len];
        self.get(0, &mut all).unwrap();
        all
    }
    /// Places of the bytes that are not as in another copy.
    pub fn differing(&self, other: &Self) -> Vec<usize> {
        assert!(Arc::ptr_eq(&self.base, &other.base) && self.len == other.len, "copies of the same bytes");
        let numbers: BTreeSet<usize> = self.pages.keys().chain(other.pages.keys()).copied().collect();
        let mut all = Vec::new();
        for n in numbers {
            let same = matches!((self.pages.get(&n), other.pages.get(&n)), (Some(a), Some(b)) if Arc::ptr_eq(a, b));
            if same {
                continue;
            }
            let (a, b) = (self.page(n), other.page(n));
            if a != b {
                all.extend((0..PAGE).filter(|i| a[*i] != b[*i]).map(|i| n * PAGE + i));
            }
        }
        all
    }
    /// Of two copies, equal bytes have equal digests.
    fn hash(&self, hasher: &mut blake3::Hasher) {
        hasher.update(&self.len.to_le_bytes());
        for (n, page) in self.pages.iter().filter(|(n, page)| self.old(**n) != ***page) {
            hasher.update(&n.to_le_bytes()).update(&page[..]);
        }
        // So that what follows is not taken for a page.
        hasher.update(&usize::MAX.to_le_bytes());
    }
    /// Tells copies apart.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        self.hash(&mut hasher);
        *hasher.finalize().as_bytes()
    }
}

#[derive(Clone, Default)]
struct Disk {
    durable: Bytes,
    /// What reads see.
    live: Bytes,
    /// Writes since the last sync.
    pending: Vec<(usize, Arc<[u8]>)>,
    /// Numbers of sectors that can't be read until they are written.
    unreadable: BTreeSet<usize>,
}

#[derive(Clone)]
struct Inner {
    disks: [Disk; 2],
    ticks: u64,
    fault: Option<(u64, Fault)>,
    off: bool,
    dice: u64,
}

/// See the file.
pub struct Machine(Arc<Mutex<Inner>>);

struct Port(Arc<Mutex<Inner>>, usize);

/// A write, cut at the sectors of the disk.
fn sectors(at: usize, bytes: &[u8]) -> Vec<(usize, &[u8])> {
    let mut out = Vec::new();
    let (mut at, mut rest) = (at, bytes);
    while !rest.is_empty() {
        let (piece, more) = rest.split_at(rest.len().min(SECTOR - at % SECTOR));
        out.push((at, piece));
        at += piece.len();
        rest = more;
    }
    out
}

impl Inner {
    fn roll(&mut self, sides: u64) -> u64 {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.dice >> 33) % sides
    }

    fn tick(&mut self) -> io::Result<Option<Fault>> {
        if self.off {
            return Err(io::Error::other("the power is off"));
        }
        let now = self.ticks;
        self.ticks += 1;
        Ok(self.fault.filter(|(at, _)| *at == now).map(|(_, fault)| fault))
    }

    fn restart(&mut self, surviving: Surviving) {
        for d in 0..self.disks.len() {
            let pending = std::mem::take(&mut self.disks[d].pending);
            let last = pending.len().saturating_sub(1);
            for (i, (at, bytes)) in pending.iter().enumerate() {
                for (at, bytes) in sectors(*at, bytes) {
                    let keep = match surviving {
                        Surviving::Nothing => false,
                        Surviving::All => true,
                        Surviving::AllButLast => i < last,
                        Surviving::OnlyLast => i == last,
                        Surviving::LastTorn => i < last || self.roll(2) == 0,
                        Surviving::AnySectors | Surviving::OneUnreadable => self.roll(2) == 0,
                    };
                    if keep {
                        self.disks[d].durable.put(at, bytes);
                    } else if self.roll(2) == 0 {
                        // A file may have grown without its bytes.
                        self.disks[d].durable.grow(at + bytes.len());
                    }
                }
            }
            if let (Surviving::OneUnreadable, Some((at, bytes))) = (surviving, pending.last()) {
                let count = sectors(*at, bytes).len() as u64;
                let bad = at / SECTOR + self.roll(count.max(1)) as usize;
                self.disks[d].unreadable.insert(bad);
            }
            self.disks[d].live = self.disks[d].durable.clone();
        }
        self.off = false;
        self.fault = None;
        self.ticks = 0;
    }
}

impl Machine {
    /// A machine whose host disk holds these bytes, and whose journal is empty.
    pub fn new(host: impl Into<Bytes>, seed: u64) -> Self {
        let host: Bytes = host.into();
        let host = Disk { durable: host.clone(), live: host, ..Disk::default() };
        let inner = Inner { disks: [host, Disk::default()], ticks: 0, fault: None, off: false, dice: seed };
        Self(Arc::new(Mutex::new(inner)))
    }
    /// Another machine that is in the same state.
    pub fn fork(&self, seed: u64) -> Self {
        let mut inner = self.0.lock().unwrap().clone();
        inner.dice = inner.dice.wrapping_add(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self(Arc::new(Mutex::new(inner)))
    }
    /// The host's disk.
    pub fn host(&self) -> Arc<dyn Medium> {
        Arc::new(Port(Arc::clone(&self.0), 0))
    }
    /// The journal's disk.
    pub fn journal(&self) -> JournalFile {
        JournalFile { path: PathBuf::from("simulated.journal"), medium: Arc::new(Port(Arc::clone(&self.0), 1)) }
    }
    /// Starts the clock anew; at the given tick, the fault happens.
    pub fn arm(&self, fault: Option<(u64, Fault)>) {
        let mut inner = self.0.lock().unwrap();
        inner.ticks = 0;
        inner.fault = fault;
    }
    /// Ticks since the clock was started.
    pub fn ticks(&self) -> u64 {
        self.0.lock().unwrap().ticks
    }
    /// Power back on: what was not synced survives in this way.
    pub fn restart(&self, surviving: Surviving) {
        self.0.lock().unwrap().restart(surviving);
    }
    /// What reads of the host see; sectors that can't be read as they were.
    pub fn host_bytes(&self) -> Vec<u8> {
        self.host_disk().to_vec()
    }
    /// The same, to be compared with those of machines that share its first bytes.
    pub fn host_disk(&self) -> Bytes {
        self.0.lock().unwrap().disks[0].live.clone()
    }
    /// Tells states of machines that share their first bytes apart: equal states have equal digests.
    pub fn digest(&self) -> [u8; 32] {
        let inner = self.0.lock().unwrap();
        let mut hasher = blake3::Hasher::new();
        for disk in &inner.disks {
            assert!(disk.pending.is_empty(), "of a machine that was restarted");
            disk.live.hash(&mut hasher);
            for bad in &disk.unreadable {
                hasher.update(&bad.to_le_bytes());
            }
        }
        *hasher.finalize().as_bytes()
    }
}

impl Medium for Port {
    fn len(&self) -> u64 {
        self.0.lock().unwrap().disks[self.1].live.len() as u64
    }
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let inner = self.0.lock().unwrap();
        if inner.off {
            return Err(io::Error::other("the power is off"));
        }
        let disk = &inner.disks[self.1];
        let at = at as usize;
        let end = at + buf.len();
        if disk.unreadable.range(at / SECTOR..end.div_ceil(SECTOR)).next().is_some() {
            return Err(io::Error::from_raw_os_error(5));
        }
        disk.live.get(at, buf)
    }
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        let fault = inner.tick()?;
        let at = at as usize;
        assert!(self.1 == 1 || at + bytes.len() <= inner.disks[0].live.len(), "a write beyond the host's end");
        let half = match fault {
            Some(Fault::Error(28)) => 0,
            Some(Fault::Error(_)) => bytes.len() / 2 / SECTOR * SECTOR,
            _ => bytes.len(),
        };
        let disk = &mut inner.disks[self.1];
        disk.live.put(at, &bytes[..half]);
        for (at, piece) in sectors(at, &bytes[..half]) {
            if piece.len() == SECTOR {
                disk.unreadable.remove(&(at / SECTOR));
            }
        }
        disk.pending.push((at, bytes[..half].into()));
        match fault {
            None => Ok(()),
            Some(Fault::Error(number)) => Err(io::Error::from_raw_os_error(number)),
            Some(Fault::PowerCut) => {
                inner.off = true;
                Err(io::Error::other("the power is cut"))
            }
        }
    }
    fn sync(&self) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        match inner.tick()? {
            Some(Fault::PowerCut) => {
                inner.off = true;
                return Err(io::Error::other("the power is cut"));
            }
            Some(Fault::Error(number)) => {
                inner.disks[self.1].pending.clear();
                return Err(io::Error::from_raw_os_error(number));
            }
            None => {}
        }
        for (at, bytes) in std::mem::take(&mut inner.disks[self.1].pending) {
            inner.disks[self.1].durable.put(at, &bytes);
        }
        Ok(())
    }
}

//! A simulated machine with two disks, a host and a journal, and one clock. Each write and each sync is a tick. A disk keeps what is
//! durable apart from what was only written: a power cut may lose, keep, tear (at 512 bytes) or reorder any of the latter, and a
//! sector that was being written may come back unreadable until it is written anew.

use std::collections::BTreeSet;
use std::io;
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

#[derive(Clone, Default)]
struct Disk {
    durable: Vec<u8>,
    /// What reads see.
    live: Vec<u8>,
    /// Writes since the last sync.
    pending: Vec<(usize, Vec<u8>)>,
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

fn put(disk: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = at + bytes.len();
    if disk.len() < end {
        disk.resize(end, 0);
    }
    disk[at..end].copy_from_slice(bytes);
}

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
                        put(&mut self.disks[d].durable, at, bytes);
                    } else if self.roll(2) == 0 {
                        // A file may have grown without its bytes.
                        let len = self.disks[d].durable.len().max(at + bytes.len());
                        self.disks[d].durable.resize(len, 0);
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
    pub fn new(host: Vec<u8>, seed: u64) -> Self {
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
        self.0.lock().unwrap().disks[0].live.clone()
    }
    /// Tells states of the machine apart: equal states have equal digests.
    pub fn digest(&self) -> [u8; 32] {
        let inner = self.0.lock().unwrap();
        let mut hasher = blake3::Hasher::new();
        for disk in &inner.disks {
            assert!(disk.pending.is_empty(), "of a machine that was restarted");
            hasher.update(&disk.live.len().to_le_bytes()).update(&disk.live);
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
        let bytes = disk.live.get(at..end).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(bytes);
        Ok(())
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
        put(&mut disk.live, at, &bytes[..half]);
        for (at, piece) in sectors(at, &bytes[..half]) {
            if piece.len() == SECTOR {
                disk.unreadable.remove(&(at / SECTOR));
            }
        }
        disk.pending.push((at, bytes[..half].to_vec()));
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
            put(&mut inner.disks[self.1].durable, at, &bytes);
        }
        Ok(())
    }
}

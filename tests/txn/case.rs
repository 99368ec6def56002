//! Commits to be made on a host that is no file system: bytes, and stagings that use all that a staging can have.

use std::sync::Arc;

use unimage::error::{Error, Result};
use unimage::extent::{LayerId, Offset, ReadAt, Stream, Volume};
use unimage::txn::{
    About, Checked, Committed, Copy, Fresh, Group, HostVolume, Journal, Manifest, Quarantine, Recovered, Sources,
    Staging, commit, recover, undo,
};

use crate::machine::{Machine, Surviving};

/// Sectors of the host volume.
pub const SECTORS: u64 = 160;
/// Bytes of the disk before the volume.
pub const BEFORE: u64 = 1024;

/// Numbers that only depend on the seed.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
    pub fn bytes(&mut self, len: u64) -> Vec<u8> {
        (0..len).map(|_| self.roll(256) as u8).collect()
    }
}

/// A commit to be made: the disk before it, and what is wanted.
pub struct Case {
    pub disk: Vec<u8>,
    pub staging: Staging,
    pub streams: Vec<Vec<u8>>,
    pub manifest: Vec<u8>,
}

struct Bytes(Vec<u8>, LayerId);

impl ReadAt<Stream> for Bytes {
    fn id(&self) -> LayerId {
        self.1
    }
    fn len(&self) -> u64 {
        self.0.len() as u64
    }
    fn read_at(&self, at: Offset<Stream>, buf: &mut [u8]) -> Result<()> {
        let start = at.get() as usize;
        let bytes =
            self.0.get(start..start + buf.len()).ok_or_else(|| Error::past_end(at, buf.len() as u64, self.len()))?;
        buf.copy_from_slice(bytes);
        Ok(())
    }
}

pub struct Streams<'a>(pub &'a Case);

impl Sources for Streams<'_> {
    fn open(&self, entry: usize) -> Result<Arc<dyn ReadAt<Stream>>> {
        let bytes = self.0.streams.get(entry).ok_or_else(|| Error::NotFound("a stream".into()))?;
        Ok(Arc::new(Bytes(bytes.clone(), LayerId::fresh())))
    }
}

impl Case {
    pub fn random(seed: u64) -> Self {
        let mut dice = Dice(seed ^ 0x5eed);
        let disk = dice.bytes(BEFORE + SECTORS * 512 + 512);
        let mut case =
            Self { disk, staging: Staging::default(), streams: Vec::new(), manifest: dice.bytes(seed % 3 * 700) };
        // Each sector gets one role.
        let mut free: Vec<u64> = (0..SECTORS).collect();
        let mut take = |dice: &mut Dice, run: u64| -> u64 {
            loop {
                let at = dice.roll(SECTORS - run + 1);
                let wanted: Vec<u64> = (at..at + run).collect();
                if wanted.iter().all(|n| free.contains(n)) {
                    free.retain(|n| !wanted.contains(n));
                    return at;
                }
            }
        };
        let at = |sector: u64| Offset::<Volume>::new(sector * 512);
        let sector = take(&mut dice, 1);
        let old = case.volume()[(sector * 512) as usize..][..512].to_vec();
        let open = if dice.roll(2) == 0 { old } else { dice.bytes(512) };
        let also = (0..dice.roll(3)).map(|_| Fresh { at: at(take(&mut dice, 1)), bytes: vec![0; 512] }).collect();
        case.staging.quarantine = Quarantine { at: at(sector), closed: dice.bytes(512), open, also };

        let groups = 1 + dice.roll(4);
        for g in 0..groups {
            let mut writes: Vec<Fresh> = Vec::new();
            for _ in 0..dice.roll(4) {
                let run = 1 + dice.roll(5);
                let sector = take(&mut dice, run);
                let mut bytes = dice.bytes(run * 512);
                if dice.roll(4) == 0 {
                    // A sector that stays as it is.
                    bytes[..512].copy_from_slice(&case.volume()[(sector * 512) as usize..][..512]);
                }
                if dice.roll(2) == 0 {
                    let within = dice.roll(run);
                    let interim = Fresh { at: at(sector + within), bytes: dice.bytes(512) };
                    case.staging.interim.push((dice.roll(g + 1) as usize, interim));
                }
                writes.push(Fresh { at: at(sector), bytes });
            }
            writes.sort_by_key(|w| w.at);
            case.staging
                .groups
                .push(Group { name: ["the table", "the directory", "the rest"][g as usize % 3], writes });
        }
        for _ in 0..dice.roll(4) {
            let run = 1 + dice.roll(2);
            let (sector, skip) = (take(&mut dice, run), dice.roll(512));
            let len = run * 512 - skip;
            if dice.roll(2) == 0 {
                let start = (BEFORE + sector * 512 + skip) as usize;
                case.disk[start..start + len as usize].fill(0);
            }
            case.staging.slack.push((Offset::new(sector * 512 + skip), len as u32));
        }
        for _ in 0..dice.roll(4) {
            let run = 2 + dice.roll(4);
            let sector = take(&mut dice, run);
            case.staging.filled.push((at(sector), run * 512));
            let half = run / 2 * 512;
            let len = half - dice.roll(3);
            case.staging.fresh.push(Fresh { at: at(sector), bytes: dice.bytes(len) });
            let size = dice.roll(run * 512 - half + 1);
            let to = vec![(Offset::new(sector * 512 + half), run * 512 - half)];
            case.staging.copies.push(Copy { entry: case.streams.len(), size, to });
            case.streams.push(dice.bytes(size));
        }
        // A table of which the commit changes a part, and one of which it changes nothing.
        case.staging.witnesses = case.staging.groups.iter().flat_map(|g| &g.writes).map(|w| (w.at, 512)).collect();
        case.staging.witnesses.push((at(take(&mut dice, 1)), 512));
        case
    }

    pub fn volume(&self) -> &[u8] {
        &self.disk[BEFORE as usize..][..SECTORS as usize * 512]
    }

    /// The disk as it has to become, by writing everything where it belongs.
    pub fn after(&self) -> Vec<u8> {
        let mut disk = self.disk.clone();
        let mut put = |at: Offset<Volume>, bytes: &[u8]| {
            let start = (BEFORE + at.get()) as usize;
            disk[start..start + bytes.len()].copy_from_slice(bytes);
        };
        let s = &self.staging;
        s.fresh.iter().chain(s.groups.iter().flat_map(|g| &g.writes)).for_each(|f| put(f.at, &f.bytes));
        for (copy, stream) in s.copies.iter().zip(&self.streams) {
            let mut rest = stream.clone();
            for (at, len) in &copy.to {
                rest.resize(rest.len().max(*len as usize), 0);
                put(*at, &rest.drain(..*len as usize).collect::<Vec<_>>());
            }
        }
        s.slack.iter().for_each(|(at, len)| put(*at, &vec![0; *len as usize]));
        put(s.quarantine.at, &s.quarantine.open);
        disk
    }

    /// The disk without what was free before.
    pub fn outside_filled(&self, disk: &[u8]) -> Vec<u8> {
        let mut disk = disk.to_vec();
        for (at, len) in &self.staging.filled {
            disk[(BEFORE + at.get()) as usize..][..*len as usize].fill(0);
        }
        disk
    }

    pub fn is_before(&self, disk: &[u8]) -> bool {
        self.outside_filled(disk) == self.outside_filled(&self.disk)
    }

    /// The bytes of a quarantine's sectors made equal.
    pub fn without_quarantine(&self, disk: &[u8]) -> Vec<u8> {
        let mut disk = disk.to_vec();
        let q = &self.staging.quarantine;
        for at in q.also.iter().map(|a| a.at).chain([q.at]) {
            disk[(BEFORE + at.get()) as usize..][..512].fill(0);
        }
        disk
    }

    pub fn checked(&self) -> Checked {
        let volume = Arc::new(volume(&Machine::new(self.disk.clone(), 0)).unwrap());
        Checked::new(self.staging.clone(), volume, |after, _| {
            self.audit(&*after);
            Ok(())
        })
        .unwrap()
    }

    /// The overlay shows what will be, but for what is to be copied.
    fn audit(&self, overlay: &dyn ReadAt<Volume>) {
        let mut expected = self.after()[BEFORE as usize..][..SECTORS as usize * 512].to_vec();
        for (at, len) in self.staging.copies.iter().flat_map(|c| &c.to) {
            let range = at.get() as usize..(at.get() + len) as usize;
            expected[range.clone()].copy_from_slice(&self.volume()[range]);
        }
        let mut dice = Dice(self.disk[0].into());
        assert!(overlay.read_vec(Offset::new(0), expected.len()).unwrap() == expected);
        for _ in 0..50 {
            let start = dice.roll(SECTORS * 512);
            let len = dice.roll(SECTORS * 512 - start + 1).min(dice.roll(3000)) as usize;
            let part = overlay.read_vec(Offset::new(start), len).unwrap();
            assert!(part == expected[start as usize..][..len], "{len} bytes at {start}");
        }
        assert!(overlay.read_at(Offset::new(SECTORS * 512 - 1), &mut [0; 2]).is_err());
    }

    pub fn commit(&self, machine: &Machine) -> Result<Committed> {
        self.commit_from(machine, &Streams(self))
    }

    pub fn commit_from(&self, machine: &Machine, sources: &dyn Sources) -> Result<Committed> {
        let about = About {
            host: "/dev/simulated".into(),
            volume_at: BEFORE,
            kind: "bytes".into(),
            digest: self.image_digest(),
            ..About::default()
        };
        let host = volume(machine)?;
        let checked = self.checked();
        commit(checked, &host, machine.journal(), about, &|| Manifest::of(&self.manifest), sources, &|_| ())
    }

    /// What stands for the walk of an image: all that was there before.
    pub fn image_digest(&self) -> [u8; 32] {
        *blake3::hash(&self.outside_filled(&self.disk)).as_bytes()
    }

    pub fn undo(&self, machine: &Machine) -> Result<Recovered> {
        let mut journal = Journal::open(machine.journal())?;
        let digest = |old: Arc<dyn ReadAt<Volume>>| {
            let mut disk = machine.host_bytes();
            old.read_at(Offset::new(0), &mut disk[BEFORE as usize..][..SECTORS as usize * 512])?;
            Ok(*blake3::hash(&self.outside_filled(&disk)).as_bytes())
        };
        undo(&mut journal, &volume(machine)?, &digest, &|_| ())
    }

    /// While the host is neither as before nor as afterwards, nobody may get in: neither by the switch nor by what repair tools
    /// would restore it from.
    pub fn check_locked(&self, machine: &Machine, what: &str) {
        let disk = self.without_quarantine(&machine.host_bytes());
        if disk == self.without_quarantine(&self.after())
            || self.outside_filled(&disk) == self.outside_filled(&self.without_quarantine(&self.disk))
        {
            return;
        }
        let (disk, q) = (machine.host_bytes(), &self.staging.quarantine);
        let closed = q.also.iter().map(|a| (a.at, &a.bytes)).chain([(q.at, &q.closed)]);
        for (at, bytes) in closed {
            assert_eq!(
                &disk[(BEFORE + at.get()) as usize..][..512],
                bytes,
                "{what}: between two states, and open at {at}"
            );
        }
    }

    /// Recovers, and checks that the host is where the outcome says that it is. Then once more: nothing is written.
    pub fn recover_and_check(&self, machine: &Machine, what: &str) -> Recovered {
        let outcome = run_recover(machine).unwrap_or_else(|e| panic!("{what}: {e}"));
        let disk = machine.host_bytes();
        match outcome {
            Recovered::Forward | Recovered::AlreadyDone => {
                assert!(disk == self.after(), "{what}: not exactly as afterwards");
            }
            _ => assert!(self.is_before(&disk), "{what}: not exactly as before"),
        }
        // What the recovery relied on is durable: after a power cut, too, the host comes to that state.
        let cut = machine.fork(9);
        cut.restart(Surviving::Nothing);
        if Journal::open(cut.journal()).is_err() {
            assert!(cut.host_bytes() == self.disk, "{what}: no journal after a power cut, and the host was touched");
        } else {
            run_recover(&cut).unwrap_or_else(|e| panic!("{what}, after a power cut: {e}"));
            let disk = cut.host_bytes();
            match outcome {
                Recovered::Forward | Recovered::AlreadyDone => {
                    assert!(disk == self.after(), "{what}: after a power cut not as afterwards");
                }
                _ => assert!(self.is_before(&disk), "{what}: after a power cut not as before"),
            }
        }
        machine.arm(None);
        let again = run_recover(machine).unwrap_or_else(|e| panic!("{what}, again: {e}"));
        assert!(matches!(again, Recovered::AlreadyDone | Recovered::AlreadyBack), "{what}: {again:?}");
        assert_eq!(machine.ticks(), 0, "{what}: a second recovery writes nothing");
        outcome
    }
}

pub fn volume(machine: &Machine) -> Result<HostVolume> {
    HostVolume::new(machine.host(), BEFORE, SECTORS * 512)
}

pub fn run_recover(machine: &Machine) -> Result<Recovered> {
    let mut journal = Journal::open(machine.journal())?;
    let host = HostVolume::find(&machine.host(), &journal)?;
    recover(&mut journal, &host, &|_| ())
}

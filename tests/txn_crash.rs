//! Nothing is lost: a commit, a recovery and an undo are stopped at each of their writes and syncs, in every way that a power cut or a
//! failing disk has, and the host is afterwards exactly as before (outside of units that were free) or exactly as
//! it should become. The host here is no file system: bytes, and a staging that uses all that a staging can have.

#[path = "common/machine.rs"]
mod machine;

use std::collections::HashSet;
use std::sync::Arc;

use machine::{Fault, Machine, SURVIVING, Surviving};
use unimage::error::{Error, Result};
use unimage::extent::{LayerId, Offset, ReadAt, Stream, Volume};
use unimage::fs::host::Origin;
use unimage::txn::{
    About, Checked, Committed, Copy, Fresh, Group, HostVolume, Journal, Quarantine, Recovered, Sources, Staging, State,
    commit, recover, undo,
};

/// Sectors of the host volume.
const SECTORS: u64 = 160;
/// Bytes of the disk before the volume.
const BEFORE: u64 = 1024;

/// Numbers that only depend on the seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
    fn bytes(&mut self, len: u64) -> Vec<u8> {
        (0..len).map(|_| self.roll(256) as u8).collect()
    }
}

/// A commit to be made: the disk before it, and what is wanted.
struct Case {
    disk: Vec<u8>,
    staging: Staging,
    streams: Vec<Vec<u8>>,
    manifest: Vec<u8>,
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

struct Streams<'a>(&'a Case);

impl Sources for Streams<'_> {
    fn open(&self, origin: Origin) -> Result<Arc<dyn ReadAt<Stream>>> {
        let bytes = self.0.streams.get(origin.volume).ok_or_else(|| Error::NotFound("a stream".into()))?;
        Ok(Arc::new(Bytes(bytes.clone(), LayerId::fresh())))
    }
}

fn origin(position: usize) -> Origin {
    // Identities of a tree can only be had from one; the position of the volume is enough here.
    let mut builder = unimage::fs::TreeBuilder::new();
    let object = builder.object(unimage::fs::Object {
        kind: unimage::fs::Kind::Dir,
        number: 0,
        times: unimage::fs::Times::default(),
        attributes: 0,
        mode: None,
        owner: None,
        system: false,
    });
    Origin { volume: position, stream: None, object }
}

impl Case {
    fn random(seed: u64) -> Self {
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
            case.staging.copies.push(Copy { origin: origin(case.streams.len()), size, to });
            case.streams.push(dice.bytes(size));
        }
        case.staging.witnesses = case.staging.groups.iter().flat_map(|g| &g.writes).map(|w| (w.at, 512)).collect();
        case
    }

    fn volume(&self) -> &[u8] {
        &self.disk[BEFORE as usize..][..SECTORS as usize * 512]
    }

    /// The disk as it has to become, by writing everything where it belongs.
    fn after(&self) -> Vec<u8> {
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
    fn outside_filled(&self, disk: &[u8]) -> Vec<u8> {
        let mut disk = disk.to_vec();
        for (at, len) in &self.staging.filled {
            disk[(BEFORE + at.get()) as usize..][..*len as usize].fill(0);
        }
        disk
    }

    fn is_before(&self, disk: &[u8]) -> bool {
        self.outside_filled(disk) == self.outside_filled(&self.disk)
    }

    /// The bytes of a quarantine's sectors made equal.
    fn without_quarantine(&self, disk: &[u8]) -> Vec<u8> {
        let mut disk = disk.to_vec();
        let q = &self.staging.quarantine;
        for at in q.also.iter().map(|a| a.at).chain([q.at]) {
            disk[(BEFORE + at.get()) as usize..][..512].fill(0);
        }
        disk
    }

    fn checked(&self, machine: &Machine) -> Checked {
        let volume = Arc::new(volume(machine).unwrap());
        Checked::new(self.staging.clone(), volume, |_, _| Ok(())).unwrap()
    }

    fn commit(&self, machine: &Machine) -> Result<Committed> {
        let about = About {
            host: "/dev/simulated".into(),
            volume_at: BEFORE,
            kind: "bytes".into(),
            digest: self.image_digest(),
            ..About::default()
        };
        let host = volume(machine)?;
        let checked = self.checked(machine);
        commit(checked, &host, machine.journal(), about, &self.manifest, &Streams(self), &|_| ())
    }

    /// What stands for the walk of an image: all that was there before.
    fn image_digest(&self) -> [u8; 32] {
        *blake3::hash(&self.outside_filled(&self.disk)).as_bytes()
    }

    fn undo(&self, machine: &Machine) -> Result<Recovered> {
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
    fn check_locked(&self, machine: &Machine, what: &str) {
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
    fn recover_and_check(&self, machine: &Machine, what: &str) -> Recovered {
        let outcome = run_recover(machine).unwrap_or_else(|e| panic!("{what}: {e}"));
        let disk = machine.host_bytes();
        match outcome {
            Recovered::Forward | Recovered::AlreadyDone => {
                assert!(disk == self.after(), "{what}: not exactly as afterwards");
            }
            _ => assert!(self.is_before(&disk), "{what}: not exactly as before"),
        }
        machine.arm(None);
        let again = run_recover(machine).unwrap_or_else(|e| panic!("{what}, again: {e}"));
        assert!(matches!(again, Recovered::AlreadyDone | Recovered::AlreadyBack), "{what}: {again:?}");
        assert_eq!(machine.ticks(), 0, "{what}: a second recovery writes nothing");
        outcome
    }
}

fn volume(machine: &Machine) -> Result<HostVolume> {
    HostVolume::new(machine.host(), BEFORE, SECTORS * 512)
}

fn run_recover(machine: &Machine) -> Result<Recovered> {
    let mut journal = Journal::open(machine.journal())?;
    let host = HostVolume::find(&machine.host(), &journal)?;
    recover(&mut journal, &host, &|_| ())
}

/// Whether the journal was never begun: then there is nothing to recover, and opening it says so.
fn never_begun(case: &Case, machine: &Machine) -> bool {
    match Journal::open(machine.journal()) {
        Ok(_) => false,
        Err(e) => {
            assert!(matches!(e, Error::Corrupt { .. } | Error::Io { .. }), "{e}");
            assert!(machine.host_bytes() == case.disk, "no journal, and the host was touched");
            true
        }
    }
}

/// Every state in which the machine can come up when the power is cut during `act`: no state twice.
fn crashes(
    start: &Machine,
    seed: u64,
    act: &dyn Fn(&Machine),
    seen: &mut HashSet<[u8; 32]>,
    each: &mut dyn FnMut(Machine, String),
) {
    let whole = start.fork(0);
    whole.arm(None);
    act(&whole);
    for tick in 0..whole.ticks() {
        for surviving in SURVIVING {
            let machine = start.fork(seed.wrapping_add(tick));
            machine.arm(Some((tick, Fault::PowerCut)));
            act(&machine);
            machine.restart(surviving);
            if seen.insert(machine.digest()) {
                each(machine, format!("tick {tick}, {surviving:?}"));
            }
        }
    }
}

/// Kills `act` everywhere, recovers, and kills that recovery everywhere.
fn kill_everywhere(case: &Case, start: &Machine, seed: u64, act: &dyn Fn(&Machine), what: &str) -> HashSet<Recovered> {
    let mut outcomes = HashSet::new();
    let mut seen = HashSet::new();
    let mut states = Vec::new();
    crashes(start, seed, act, &mut seen, &mut |machine, when| states.push((machine, format!("{what}, {when}"))));
    let recovering = |m: &Machine| {
        let _ = run_recover(m);
    };
    let mut again = HashSet::new();
    for (machine, when) in states {
        case.check_locked(&machine, &when);
        if never_begun(case, &machine) {
            continue;
        }
        outcomes.insert(case.recover_and_check(&machine.fork(1), &when));
        crashes(&machine, seed ^ 77, &recovering, &mut again, &mut |machine, second| {
            let when = format!("{when}; recovery, {second}");
            case.check_locked(&machine, &when);
            outcomes.insert(case.recover_and_check(&machine, &when));
        });
    }
    outcomes
}

/// Every write and sync of `act` fails once, and recovery then works without a restart.
fn fail_everywhere(case: &Case, start: &Machine, act: &dyn Fn(&Machine) -> Result<()>, what: &str) {
    let whole = start.fork(0);
    whole.arm(None);
    act(&whole).unwrap();
    for tick in 0..whole.ticks() {
        for number in [5, 28] {
            for restart in [None, Some(Surviving::Nothing), Some(Surviving::All), Some(Surviving::AnySectors)] {
                let machine = start.fork(tick);
                machine.arm(Some((tick, Fault::Error(number))));
                let when = format!("{what}: error {number} at tick {tick}, {restart:?}");
                let error = act(&machine).expect_err(&when);
                assert_eq!(error.exit_code(), 3, "{when}: {error}");
                if let Some(surviving) = restart {
                    machine.restart(surviving);
                }
                machine.arm(None);
                if never_begun(case, &machine) {
                    continue;
                }
                let words = ["unimage recover simulated.journal", "the host was not touched"];
                assert!(words.iter().any(|w| error.to_string().contains(w)), "{when}: {error}");
                case.recover_and_check(&machine, &when);
            }
        }
    }
}

const SEEDS: std::ops::Range<u64> = 0..6;

#[test]
fn a_commit_becomes_what_was_staged_and_undo_gives_back_every_byte() {
    for seed in 0..200 {
        let case = Case::random(seed);
        let machine = Machine::new(case.disk.clone(), seed);
        let committed = case.commit(&machine).unwrap();
        machine.restart(Surviving::Nothing);
        assert!(machine.host_bytes() == case.after(), "seed {seed}");
        let journal = Journal::open(machine.journal()).unwrap();
        assert_eq!(journal.state(), State::Done);
        assert_eq!(journal.manifest().unwrap(), case.manifest, "seed {seed}");
        assert_eq!(journal.about().host.to_str(), Some("/dev/simulated"));
        assert_eq!(journal.about().volume_len, SECTORS * 512);
        assert_eq!(committed.fresh_bytes, case.staging.fresh.iter().map(|f| f.bytes.len() as u64).sum::<u64>());
        assert_eq!(case.undo(&machine).unwrap(), Recovered::Undone);
        machine.restart(Surviving::Nothing);
        assert!(case.is_before(&machine.host_bytes()), "seed {seed}");
        machine.arm(None);
        assert_eq!(case.undo(&machine).unwrap(), Recovered::AlreadyBack);
        assert_eq!(run_recover(&machine).unwrap(), Recovered::AlreadyBack);
        assert_eq!(machine.ticks(), 0, "a second undo writes nothing");
    }
}

#[test]
fn killed_at_every_write_of_a_commit_and_again_of_the_recovery() {
    let mut outcomes = HashSet::new();
    for seed in SEEDS {
        let case = Case::random(seed);
        let start = Machine::new(case.disk.clone(), seed);
        let act = |m: &Machine| {
            let _ = case.commit(m);
        };
        outcomes.extend(kill_everywhere(&case, &start, seed, &act, &format!("seed {seed}, commit")));
    }
    for outcome in [Recovered::Forward, Recovered::Back, Recovered::AlreadyDone] {
        assert!(outcomes.contains(&outcome), "{outcome:?} was never seen");
    }
}

#[test]
fn killed_at_every_write_of_an_undo_and_again_of_the_recovery() {
    let mut outcomes = HashSet::new();
    for seed in SEEDS {
        let case = Case::random(seed);
        let start = Machine::new(case.disk.clone(), seed);
        case.commit(&start).unwrap();
        let act = |m: &Machine| {
            let _ = case.undo(m);
        };
        outcomes.extend(kill_everywhere(&case, &start, seed, &act, &format!("seed {seed}, undo")));
    }
    for outcome in [Recovered::Undone, Recovered::AlreadyBack] {
        assert!(outcomes.contains(&outcome), "{outcome:?} was never seen");
    }
}

#[test]
fn every_failing_write_and_sync_stops_and_recovery_works() {
    for seed in SEEDS {
        let case = Case::random(seed);
        let start = Machine::new(case.disk.clone(), seed);
        fail_everywhere(&case, &start, &|m| case.commit(m).map(drop), &format!("seed {seed}, commit"));
        case.commit(&start).unwrap();
        fail_everywhere(&case, &start, &|m| case.undo(m).map(drop), &format!("seed {seed}, undo"));
    }
}

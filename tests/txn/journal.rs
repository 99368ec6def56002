//! Journals that are cut off or damaged, and how large they are.

use std::sync::Arc;

use unimage::error::Error;
use unimage::extent::{Offset, ReadAt, Stream, Volume};
use unimage::txn::{
    About, Checked, Fresh, Group, HostVolume, Journal, Manifest, Quarantine, Recovered, Sources, Staging, State,
    commit, holds_the_other_state, stands, undo,
};

use crate::case::{Case, Dice, run_recover, volume};
use crate::machine::{Fault, Machine, Surviving};

pub fn journal_bytes(machine: &Machine) -> Vec<u8> {
    let medium = machine.journal().medium;
    let mut bytes = vec![0; medium.len() as usize];
    medium.read_at(0, &mut bytes).unwrap();
    bytes
}

/// The same host, with another journal.
pub fn with_journal(host: Vec<u8>, journal: &[u8]) -> Machine {
    let machine = Machine::new(host, 1);
    machine.journal().medium.write_at(0, journal).unwrap();
    machine.journal().medium.sync().unwrap();
    machine
}

/// One state of a commit after each write of it, and of the finished one's undo.
pub fn states(case: &Case) -> Vec<Machine> {
    let start = Machine::new(case.disk.clone(), 1);
    let mut out = Vec::new();
    let mut kill = |start: &Machine, act: &dyn Fn(&Machine)| {
        for tick in 0.. {
            let machine = start.fork(0);
            machine.arm(Some((tick, Fault::PowerCut)));
            act(&machine);
            let whole = machine.ticks() <= tick;
            machine.restart(Surviving::All);
            out.push(machine);
            if whole {
                break;
            }
        }
    };
    kill(&start, &|m| drop(case.commit(m)));
    case.commit(&start).unwrap();
    kill(&start, &|m| drop(case.undo(m)));
    out
}

/// Whatever a damaged journal leads to: the host stays as it is, or comes to one of its two ends.
pub fn check_damaged(case: &Case, host: &[u8], journal: &[u8], what: &str) {
    let machine = with_journal(host.to_vec(), journal);
    match run_recover(&machine) {
        Err(error) => {
            assert!(matches!(error.exit_code(), 3 | 4), "{what}: {error}");
            assert!(machine.host_bytes() == host, "{what}: {error}, and the host was written to");
        }
        Ok(Recovered::Forward | Recovered::AlreadyDone) => assert!(machine.host_bytes() == case.after(), "{what}"),
        Ok(_) => assert!(case.is_before(&machine.host_bytes()), "{what}"),
    }
}

#[test]
fn a_damaged_journal_never_harms_the_host() {
    let mut dice = Dice(4);
    for seed in 0..4 {
        let case = Case::random(seed);
        for (i, machine) in states(&case).iter().enumerate() {
            let (host, good) = (machine.host_bytes(), journal_bytes(machine));
            if good.is_empty() {
                continue;
            }
            for round in 0..24 {
                let mut journal = good.clone();
                let at = dice.roll(journal.len() as u64) as usize;
                match round % 4 {
                    0 => journal[at] ^= 1 << dice.roll(8),
                    1 => journal.truncate(at),
                    2 => {
                        let end = journal.len().min(at + 4096);
                        journal[at..end].fill(0);
                    }
                    // In the slots and the head, where most of the file is zeros.
                    _ => journal[(at % 7) * 4096 + at % 104] ^= 1 << dice.roll(8),
                }
                check_damaged(&case, &host, &journal, &format!("seed {seed}, state {i}, round {round}, byte {at}"));
            }
        }
    }
}

/// The host of one moment of a commit or an undo, and the journal of another, as copies of them may be.
#[test]
fn a_host_and_a_journal_of_different_moments_never_harm_the_host() {
    for seed in 0..3 {
        let mut case = Case::random(seed);
        // The switch tells the new state from the old one, as counts of free units there do: by nothing else can a journal that was never
        // sealed be told from one that lost what it had.
        case.staging.quarantine.open[100] ^= 1;
        let all: Vec<_> = states(&case).iter().map(|m| (m.host_bytes(), journal_bytes(m))).collect();
        for (i, (host, _)) in all.iter().enumerate() {
            for (j, (_, journal)) in all.iter().enumerate().filter(|(_, (_, journal))| !journal.is_empty()) {
                // What `recover` asks of a finished journal first, and then refuses.
                let machine = with_journal(host.clone(), journal);
                let other = |j: &Journal| {
                    let volume = volume(&machine).unwrap();
                    !stands(&volume, j) && holds_the_other_state(j, &volume)
                };
                if !Journal::open(machine.journal()).is_ok_and(|j| other(&j)) {
                    check_damaged(&case, host, journal, &format!("seed {seed}, host {i}, journal {j}"));
                }
            }
        }
    }
}

#[test]
fn damage_of_a_sealed_journal_is_found_wherever_it_is() {
    let case = Case::random(3);
    let machine = Machine::new(case.disk.clone(), 1);
    case.commit(&machine).unwrap();
    let good = journal_bytes(&machine);
    let body = 7 * 4096;
    assert!(good.len() > body);
    for at in body..good.len() {
        let mut journal = good.clone();
        journal[at] ^= 0x40;
        // The rest of a block that follows the header is nothing.
        if good[at] == 0 && Journal::open(with_journal(case.disk.clone(), &journal).journal()).is_ok() {
            continue;
        }
        let error = Journal::open(with_journal(case.disk.clone(), &journal).journal()).map(drop).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "byte {at}: {error}");
        assert!(error.to_string().contains("simulated.journal"), "{error}");
    }
    for len in 0..good.len() - 1 {
        if len % 97 == 0 {
            let cut = with_journal(case.disk.clone(), &good[..len]);
            let error = Journal::open(cut.journal()).map(drop).unwrap_err();
            assert_eq!(error.exit_code(), 3, "cut to {len}: {error}");
        }
    }
}

#[test]
fn another_version_and_another_file_are_told_apart() {
    let case = Case::random(3);
    let machine = Machine::new(case.disk.clone(), 1);
    case.commit(&machine).unwrap();
    let mut journal = journal_bytes(&machine);
    journal[8] = 9;
    let error = Journal::open(with_journal(Vec::new(), &journal).journal()).map(drop).unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)), "{error}");
    let error = Journal::open(with_journal(Vec::new(), &[7; 100_000]).journal()).map(drop).unwrap_err();
    assert!(error.to_string().contains("this is no journal"), "{error}");
}

struct NoSources;

impl Sources for NoSources {
    fn open(&self, _: usize) -> unimage::error::Result<Arc<dyn ReadAt<Stream>>> {
        Err(Error::NotFound("a stream".into()))
    }
}

/// Two copies of an allocation table in which an image of 64 MiB, contiguous in clusters of 4 KiB, becomes files of 5 clusters, and
/// 3,276 directory entries: the journal is a small part of the tables, and far below 2 KiB a file.
#[test]
fn the_journal_of_a_large_table_is_small() {
    let entries = 16_384u32;
    let table = |ends: u32| -> Vec<u8> {
        let entry = |i: u32| if (i + 1).is_multiple_of(ends) { 0x0fff_ffff } else { i + 1 };
        (0..entries).flat_map(|i| entry(i).to_le_bytes()).collect()
    };
    let files = entries / 5;
    let (old, new) = (table(entries), table(5));
    let len = old.len() as u64;
    let mut disk = vec![0; 512 * 1024];
    for copy in 0..2 {
        disk[(4096 + copy * len) as usize..][..old.len()].copy_from_slice(&old);
    }
    let at = Offset::<Volume>::new;
    let group = |name, place| Group { name, writes: vec![Fresh { at: at(place), bytes: new.clone() }] };
    let staging = Staging {
        groups: vec![group("the second table", 4096 + len), group("the first table", 4096)],
        quarantine: Quarantine { at: at(0), closed: vec![1; 512], open: vec![0; 512], also: Vec::new() },
        witnesses: vec![(at(4096), 2 * len)],
        ..Staging::default()
    };
    let machine = Machine::new(disk.clone(), 1);
    let host = HostVolume::new(machine.host(), 0, disk.len() as u64).unwrap();
    let checked = Checked::new(staging, Arc::new(host.clone()), |_, _| Ok(())).unwrap();
    let written =
        commit(checked, &host, machine.journal(), About::default(), &|| Ok(Manifest::default()), &NoSources, &|_| ())
            .unwrap();
    assert_eq!(written.switched_bytes, 2 * len + 2 * 512);
    // Of 256 KiB of old and new contents; the fixed part of a journal has 28 KiB.
    assert!(written.journal_bytes < 28 * 1024 + len / 3, "{written:?}");
    assert!(written.journal_bytes < u64::from(files) * 16, "{written:?}");
    let mut journal = Journal::open(machine.journal()).unwrap();
    assert_eq!(journal.state(), State::Done);
    undo(&mut journal, &host, &|_| Ok([0; 32]), &|_| ()).unwrap();
    assert!(machine.host_bytes() == disk);
}

//! Units of the image as targets: drives that lose what they promised to keep, copies of the host, journals that say otherwise.

use std::collections::HashSet;

use unimage::error::Error;
use unimage::extent::Offset;
use unimage::txn::reuse::Move;
use unimage::txn::{Copy, Fresh, Group, Journal, Quarantine, Recovered, State};

use crate::case::{BEFORE, Case, Dice, SECTORS, run_recover};
use crate::crash::{fail_everywhere, kill_everywhere};
use crate::journal::{check_damaged, journal_bytes, states, with_journal};
use crate::machine::{Fault, Machine, Surviving};

/// Three batches: sectors 20 to 10, 30 to 20, and what was kept to 30; sector 40 to one that was free.
fn case() -> Case {
    let mut dice = Dice(11);
    let disk = dice.bytes(BEFORE + SECTORS * 512 + 512);
    let at = |sector: u64| Offset::new(sector * 512);
    let stored = |sector: u64, count: u64| disk[(BEFORE + sector * 512) as usize..][..count as usize * 512].to_vec();
    let copy = |entry: usize, to: u64| Copy { entry, size: 1024, to: vec![(at(to), 1024)] };
    let to = |batch, to: u64, from: Option<u64>| Move {
        batch,
        to: at(to),
        len: 1024,
        from: from.map(|from| vec![(1024, Some(from * 512))]),
    };
    let mut case = Case {
        streams: vec![stored(20, 2), stored(30, 2), stored(40, 2)],
        staging: Default::default(),
        manifest: Vec::new(),
        disk: disk.clone(),
    };
    case.staging.copies = vec![copy(0, 10), copy(1, 20), copy(2, 50)];
    case.staging.fresh = vec![Fresh { at: at(30), bytes: dice.bytes(1024) }];
    case.staging.groups = vec![Group { name: "tables", writes: vec![Fresh { at: at(60), bytes: dice.bytes(512) }] }];
    // A backup of the switch, as NTFS and FAT32 have one.
    let also = vec![Fresh { at: at(159), bytes: dice.bytes(512) }];
    case.staging.quarantine = Quarantine { at: at(0), closed: dice.bytes(512), open: stored(0, 1), also };
    case.staging.filled = vec![(at(50), 1024)];
    case.staging.reused = vec![(at(10), 1024), (at(20), 1024), (at(30), 1024)];
    case.staging.moves = vec![to(0, 10, Some(20)), to(1, 20, Some(30)), to(2, 30, None)];
    case
}

/// The commit stopped right before the metadata is written: all batches are durable, and the journal says so.
fn stopped(case: &Case) -> Machine {
    let meta = (BEFORE + 60 * 512) as usize;
    for tick in 0.. {
        let machine = Machine::new(case.disk.clone(), 1);
        machine.arm(Some((tick, Fault::PowerCut)));
        case.commit(&machine).unwrap_err();
        machine.restart(Surviving::All);
        if machine.host_bytes()[meta..meta + 512] != case.disk[meta..meta + 512] {
            let machine = Machine::new(case.disk.clone(), 1);
            machine.arm(Some((tick - 1, Fault::PowerCut)));
            case.commit(&machine).unwrap_err();
            machine.restart(Surviving::All);
            assert_eq!(Journal::open(machine.journal()).unwrap().state(), State::Reusing);
            return machine;
        }
    }
    unreachable!()
}

/// The same machine with another byte on its host.
fn with_wrong(machine: &Machine, sector: u64) -> Machine {
    let mut disk = machine.host_bytes();
    disk[(BEFORE + sector * 512 + 7) as usize] ^= 0xff;
    with_journal(disk, &journal_bytes(machine))
}

#[test]
fn what_is_moved_arrives_and_cannot_be_taken_back() {
    let case = case();
    let machine = Machine::new(case.disk.clone(), 1);
    case.commit(&machine).unwrap();
    machine.restart(Surviving::Nothing);
    assert!(machine.host_bytes() == case.after());
    machine.arm(None);
    let error = case.undo(&machine).unwrap_err();
    assert!(error.exit_code() == 4 && error.to_string().contains("undo is off"), "{error}");
    assert_eq!(run_recover(&machine).unwrap(), Recovered::AlreadyDone);
    assert_eq!(machine.ticks(), 0);
}

#[test]
fn a_batch_that_the_drive_lost_is_copied_anew_or_named() {
    let case = case();
    let machine = stopped(&case);
    assert_eq!(case.recover_and_check(&machine.fork(1), "as it is"), Recovered::Forward);
    // The last batch is kept in the journal.
    assert_eq!(case.recover_and_check(&with_wrong(&machine, 30), "kept"), Recovered::Forward);
    // The sources of the first are gone, and those of what was copied to a free unit don't count any more.
    for sector in [10, 20, 50] {
        let lost = with_wrong(&machine, sector);
        let before = lost.host_bytes();
        let error = run_recover(&lost).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }) && error.exit_code() == 3, "{sector}: {error}");
        assert_eq!(Journal::open(lost.journal()).unwrap().state(), State::Reusing);
        let closed = &case.staging.quarantine.closed;
        assert!(lost.host_bytes() == before, "{sector}: nothing was written");
        assert!(before[BEFORE as usize..][..512] == closed[..], "the quarantine stays");
    }
}

#[test]
fn a_copy_of_the_host_of_before_is_refused() {
    let case = case();
    let machine = stopped(&case);
    let copy = with_journal(case.disk.clone(), &journal_bytes(&machine));
    copy.arm(None);
    let error = run_recover(&copy).unwrap_err();
    assert!(matches!(error, Error::Refused(_)), "{error}");
    assert_eq!(copy.ticks(), 0);
}

/// A host that is further than its journal says: it is finished, never taken back.
#[test]
fn a_journal_that_lost_its_last_records_goes_forward() {
    let case = case();
    let machine = stopped(&case);
    let mut journal = journal_bytes(&machine);
    // The record of the second state.
    journal[8192..8192 + 512].fill(0);
    let earlier = with_journal(machine.host_bytes(), &journal);
    assert_eq!(Journal::open(earlier.journal()).unwrap().state(), State::Sealed);
    assert_eq!(case.recover_and_check(&earlier, "sealed"), Recovered::Forward);
    // And where what was copied to a free unit is lost, too, it can't be taken back.
    let lost = with_wrong(&with_journal(machine.host_bytes(), &journal), 50);
    let error = run_recover(&lost).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
}

#[test]
fn killed_at_every_write_of_a_commit_with_moves_and_again_of_the_recovery() {
    let case = case();
    let start = Machine::new(case.disk.clone(), 5);
    let act = |m: &Machine| {
        let _ = case.commit(m);
    };
    // What is left of a sector that was being written is up to the seed: also one that can't be read, and then has either contents.
    let outcomes: HashSet<_> = (5..9)
        .flat_map(|seed| kill_everywhere(&case, &start, seed, &act, &format!("commit with moves, {seed}")))
        .collect();
    for outcome in [Recovered::Forward, Recovered::Back, Recovered::AlreadyDone] {
        assert!(outcomes.contains(&outcome), "{outcome:?} was never seen");
    }
    fail_everywhere(&case, &start, &|m| case.commit(m).map(drop), "commit with moves");
}

/// `undo` of such a journal never writes to the host.
fn check_no_undo(case: &Case, host: &[u8], journal: &[u8], what: &str) {
    let machine = with_journal(host.to_vec(), journal);
    match case.undo(&machine) {
        Err(error) => assert!(matches!(error.exit_code(), 3 | 4), "{what}: {error}"),
        Ok(outcome) => assert_eq!(outcome, Recovered::AlreadyBack, "{what}"),
    }
    assert!(machine.host_bytes() == host, "{what}: an undo wrote");
}

/// With `tests/run.sh --long` so many times as many rounds.
fn rounds(few: u32) -> u32 {
    if std::env::var_os("UNIMAGE_LONG").is_some_and(|v| v == "1") { few * 20 } else { few }
}

/// Stopped at each write of the commit, with a journal that is then damaged anywhere: what its checksums don't confirm is never
/// written, and whatever is not refused comes to one of the two ends.
#[test]
fn a_damaged_journal_with_moves_never_harms_the_host() {
    let case = case();
    let mut dice = Dice(21);
    let (mut reusing, mut refused) = (0, 0);
    for (i, machine) in states(&case).iter().enumerate() {
        let (host, good) = (machine.host_bytes(), journal_bytes(machine));
        if good.is_empty() {
            continue;
        }
        let state = Journal::open(machine.journal()).map(|j| j.state()).ok();
        for round in 0..rounds(96) {
            let mut journal = good.clone();
            let at = dice.roll(journal.len() as u64) as usize;
            match round % 8 {
                0 | 1 => journal[at] ^= 1 << dice.roll(8),
                2 => journal[at] = dice.roll(256) as u8,
                3 => journal.truncate(at),
                4 => {
                    let end = journal.len().min(at + 4096);
                    journal[at..end].fill(0);
                }
                // A part of it from elsewhere in it.
                5 => {
                    let (from, len) = (dice.roll(good.len() as u64) as usize, 1 + dice.roll(700) as usize);
                    let len = len.min(good.len() - from).min(good.len() - at);
                    journal[at..at + len].copy_from_slice(&good[from..from + len]);
                }
                // In the slots and the head, where most of the file is zeros.
                6 => journal[(at % 7) * 4096 + at % 104] ^= 1 << dice.roll(8),
                // In the records of how many batches are durable.
                _ => {
                    let end = good.len().saturating_sub((at % 2) * 4096 + 4096);
                    journal[(end + at % 64).min(good.len() - 1)] ^= 1 << dice.roll(8);
                }
            }
            let what = format!("state {i} ({state:?}), round {round}, byte {at}");
            check_damaged(&case, &host, &journal, &what);
            check_no_undo(&case, &host, &journal, &what);
            reusing += u32::from(state == Some(State::Reusing));
            refused += u32::from(run_recover(&with_journal(host.clone(), &journal)).is_err());
        }
    }
    // Both were seen, and often.
    assert!(reusing > 500 && refused > 500, "{reusing} {refused}");
}

/// The host of one moment and the journal of another, as copies of them may be: never a wrong end, never an `undo`. The switch tells the
/// new state from the old one, as counts of free units there do.
#[test]
fn a_host_and_a_journal_of_different_moments_never_harm_the_host() {
    let mut case = case();
    case.staging.quarantine.open[100] ^= 1;
    let all: Vec<_> = states(&case).iter().map(|m| (m.host_bytes(), journal_bytes(m))).collect();
    let mut finished = 0;
    for (i, (host, _)) in all.iter().enumerate() {
        for (j, (_, journal)) in all.iter().enumerate().filter(|(_, (_, journal))| !journal.is_empty()) {
            let what = format!("host {i}, journal {j}");
            check_damaged(&case, host, journal, &what);
            check_no_undo(&case, host, journal, &what);
            let machine = with_journal(host.clone(), journal);
            finished += u32::from(i != j && matches!(run_recover(&machine), Ok(Recovered::Forward)));
        }
    }
    assert!(finished > 50, "{finished}");
}

/// Wherever one byte of a journal is wrong while units of the image are being filled.
#[test]
fn damage_of_a_journal_in_the_midst_of_moves_is_found_wherever_it_is() {
    let case = case();
    let machine = stopped(&case);
    let (host, good) = (machine.host_bytes(), journal_bytes(&machine));
    for at in 0..good.len() {
        let mut journal = good.clone();
        journal[at] ^= 0x40;
        check_damaged(&case, &host, &journal, &format!("byte {at}"));
    }
    for len in (0..good.len()).step_by(31) {
        check_damaged(&case, &host, &good[..len], &format!("cut to {len}"));
    }
}

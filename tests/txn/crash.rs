//! Killed and failing at each write and sync, in every way that a power cut or a failing disk has.

use std::collections::HashSet;

use unimage::error::{Error, Result};
use unimage::txn::{Journal, Recovered, State};

use crate::case::{Case, SECTORS, run_recover};
use crate::machine::{Fault, Machine, SURVIVING, Surviving};

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
pub fn kill_everywhere(
    case: &Case,
    start: &Machine,
    seed: u64,
    act: &dyn Fn(&Machine),
    what: &str,
) -> HashSet<Recovered> {
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
pub fn fail_everywhere(case: &Case, start: &Machine, act: &dyn Fn(&Machine) -> Result<()>, what: &str) {
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

const SEEDS: std::ops::Range<u64> = 0..4;

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

//! What is refused, with nothing written: a host that somebody else wrote to, another host, a staging that contradicts itself.

use std::sync::Arc;

use unimage::error::{Error, Result};
use unimage::extent::{Offset, ReadAt, Stream, Volume};
use unimage::txn::{Checked, Fresh, Group, Journal, Quarantine, Recovered, Sources, Staging, State};

use crate::case::{BEFORE, Case, SECTORS, Streams, run_recover, volume};
use crate::machine::{Fault, Machine, Surviving};

/// A case in which something of every kind is there.
fn rich() -> Case {
    (0..)
        .map(Case::random)
        .find(|c| {
            let s = &c.staging;
            let slack = s.slack.iter().any(|(at, _)| c.volume()[at.get() as usize] != 0);
            let copies = s.copies.iter().any(|copy| copy.size > 0);
            let changed = s.groups.iter().map(|g| g.writes.len()).sum::<usize>() > 2;
            slack && copies && changed && !s.interim.is_empty() && !s.quarantine.also.is_empty()
        })
        .unwrap()
}

fn write_byte(machine: &Machine, at: Offset<Volume>, change: u8) {
    let at = BEFORE + at.get();
    let mut byte = [0];
    machine.host().read_at(at, &mut byte).unwrap();
    machine.host().write_at(at, &[byte[0] ^ change]).unwrap();
    machine.host().sync().unwrap();
}

/// A sector that the commit changes: one with other contents before and afterwards.
fn changed_sector(case: &Case) -> Offset<Volume> {
    let after = case.after();
    let differs = |at: &u64| {
        let at = (BEFORE + at) as usize;
        case.disk[at..at + 512] != after[at..at + 512]
    };
    let sectors = case.staging.groups.iter().flat_map(|g| &g.writes).map(|w| w.at.get() + w.bytes.len() as u64 - 512);
    Offset::new(sectors.into_iter().find(differs).unwrap())
}

fn assert_refused<T>(machine: &Machine, act: impl FnOnce() -> Result<T>, words: &str) {
    let before = machine.host_bytes();
    machine.arm(None);
    let error = act().map(drop).unwrap_err();
    assert_eq!(error.exit_code(), 4, "{error}");
    assert!(error.to_string().contains(words), "{words:?} in {error}");
    assert_eq!(machine.ticks(), 0, "nothing is written: {error}");
    assert!(machine.host_bytes() == before);
}

/// A machine on which the commit was cut off while the quarantine stands.
fn interrupted(case: &Case) -> Machine {
    let start = Machine::new(case.disk.clone(), 1);
    for tick in 0.. {
        let machine = start.fork(0);
        machine.arm(Some((tick, Fault::PowerCut)));
        let _ = case.commit(&machine);
        machine.restart(Surviving::All);
        let q = &case.staging.quarantine;
        let at = (BEFORE + q.at.get()) as usize;
        let changed = (BEFORE + changed_sector(case).get()) as usize;
        let disk = machine.host_bytes();
        if disk[at..at + 512] == q.closed && disk[changed..changed + 512] != case.disk[changed..changed + 512] {
            return machine;
        }
    }
    unreachable!()
}

#[test]
fn recovery_refuses_and_lists_what_somebody_else_wrote() {
    let case = rich();
    let machine = interrupted(&case);
    let at = changed_sector(&case);
    write_byte(&machine, at, 1);
    assert_refused(&machine, || run_recover(&machine), &format!("volume offset {:#x}", at.get()));
    write_byte(&machine, at, 1);
    assert_eq!(case.recover_and_check(&machine, "put right again"), Recovered::Forward);
}

#[test]
fn recovery_goes_back_when_a_filled_unit_is_lost() {
    let case = rich();
    let machine = interrupted(&case);
    write_byte(&machine, case.staging.fresh[0].at, 1);
    assert_eq!(case.recover_and_check(&machine, "a fresh structure is lost"), Recovered::Back);
    assert_eq!(Journal::open(machine.journal()).unwrap().state(), State::TakenBack);

    let machine = interrupted(&case);
    let copy = case.staging.copies.iter().find(|c| c.size > 0).unwrap();
    write_byte(&machine, copy.to[0].0, 1);
    assert_eq!(case.recover_and_check(&machine, "a copy is lost"), Recovered::Back);
}

#[test]
fn sealed_without_quarantine_and_in_between_is_refused() {
    let case = rich();
    let machine = interrupted(&case);
    // Somebody "repaired" the switch.
    let at = (BEFORE + case.staging.quarantine.at.get()) as usize;
    machine.host().write_at(at as u64, &case.disk[at..at + 512]).unwrap();
    assert_refused(&machine, || run_recover(&machine), "not in quarantine");
}

#[test]
fn undo_is_refused_where_the_host_was_changed() {
    let case = rich();
    let start = Machine::new(case.disk.clone(), 1);
    case.commit(&start).unwrap();
    let s = &case.staging;
    let slack = s.slack.iter().find(|(at, _)| case.volume()[at.get() as usize] != 0).unwrap().0;
    let copy = s.copies.iter().find(|c| c.size > 0).unwrap().to[0].0;
    let table = s.witnesses.last().unwrap().0;
    for (what, at) in [
        ("a block in use", changed_sector(&case)),
        ("a new structure", s.fresh[0].at),
        ("a copy", copy),
        ("a table", table),
        ("slack", slack),
        ("the sector beside the switch", s.quarantine.also[0].at),
    ] {
        let machine = start.fork(0);
        write_byte(&machine, at, 0x10);
        assert_refused(&machine, || case.undo(&machine), "changed since");
        write_byte(&machine, at, 0x10);
        assert_eq!(case.undo(&machine).unwrap(), Recovered::Undone, "{what}");
        assert!(case.is_before(&machine.host_bytes()));
    }
    // What the walk of the image finds, and no block of the host tells.
    let machine = start.fork(0);
    machine.host().write_at(0, b"something else").unwrap();
    machine.host().sync().unwrap();
    assert_refused(&machine, || case.undo(&machine), "would not come back");
}

#[test]
fn undo_of_what_is_not_finished_asks_for_recovery() {
    let case = rich();
    let machine = interrupted(&case);
    assert_refused(&machine, || case.undo(&machine), "unimage recover simulated.journal");
    run_recover(&machine).unwrap();
    // An undo that was interrupted, too.
    machine.arm(Some((2, Fault::PowerCut)));
    let _ = case.undo(&machine);
    machine.restart(Surviving::All);
    assert_eq!(Journal::open(machine.journal()).unwrap().state(), State::Undoing);
    assert_refused(&machine, || case.undo(&machine), "unimage recover simulated.journal");
    assert_eq!(case.recover_and_check(&machine, "an undo"), Recovered::Undone);
}

#[test]
fn an_undo_that_had_only_been_announced_is_refused_after_a_change() {
    let case = rich();
    let machine = Machine::new(case.disk.clone(), 1);
    case.commit(&machine).unwrap();
    machine.arm(Some((2, Fault::PowerCut)));
    let _ = case.undo(&machine);
    machine.restart(Surviving::Nothing);
    assert_eq!(Journal::open(machine.journal()).unwrap().state(), State::Undoing);
    write_byte(&machine, case.staging.witnesses.last().unwrap().0, 1);
    assert_refused(&machine, || run_recover(&machine), "changed since");
}

#[test]
fn a_journal_of_another_host_is_refused() {
    let case = rich();
    let machine = interrupted(&case);
    write_byte(&machine, case.staging.quarantine.at, 1);
    assert_refused(&machine, || run_recover(&machine), "not the host of the journal");
    let shorter = Machine::new(case.disk[..5000].to_vec(), 1);
    let journal = Journal::open(machine.journal()).unwrap();
    let error = unimage::txn::HostVolume::find(&shorter.host(), &journal).map(drop).unwrap_err();
    assert_eq!(error.exit_code(), 4, "{error}");
    // The volume alone, without the disk before it, is the host all the same.
    write_byte(&machine, case.staging.quarantine.at, 1);
    let alone = Machine::new(machine.host_bytes()[BEFORE as usize..][..SECTORS as usize * 512].to_vec(), 1);
    assert_eq!(unimage::txn::HostVolume::find(&alone.host(), &journal).unwrap().at(), 0);
}

#[test]
fn a_host_in_quarantine_is_not_committed_to() {
    let case = rich();
    let machine = interrupted(&case);
    assert_refused(&machine, || case.commit(&machine), "quarantine");
}

/// Does something when the first stream is opened: in the middle of a commit.
struct Meanwhile<'a>(Streams<'a>, &'a (dyn Fn() -> Result<()> + Sync));

impl Sources for Meanwhile<'_> {
    fn open(&self, entry: usize) -> Result<Arc<dyn ReadAt<Stream>>> {
        (self.1)()?;
        self.0.open(entry)
    }
}

#[test]
fn a_stream_that_cannot_be_read_gives_the_commit_up() {
    let case = rich();
    let machine = Machine::new(case.disk.clone(), 1);
    let unreadable = || Err(Error::Unsupported("a stream that can't be decoded".into()));
    let error = case.commit_from(&machine, &Meanwhile(Streams(&case), &unreadable)).unwrap_err();
    assert!(error.to_string().contains("can't be decoded"), "{error}");
    assert!(case.is_before(&machine.host_bytes()));
    assert_eq!(Journal::open(machine.journal()).unwrap().state(), State::TakenBack);
    assert_eq!(run_recover(&machine).unwrap(), Recovered::AlreadyBack);
}

#[test]
fn a_switch_that_changes_during_the_commit_gives_it_up() {
    let case = rich();
    let machine = Machine::new(case.disk.clone(), 1);
    let at = case.staging.quarantine.at;
    let once = std::sync::Once::new();
    let meanwhile = || {
        once.call_once(|| write_byte(&machine, at, 1));
        Ok(())
    };
    let error = case.commit_from(&machine, &Meanwhile(Streams(&case), &meanwhile)).unwrap_err();
    assert_eq!(error.exit_code(), 4, "{error}");
    write_byte(&machine, at, 1);
    assert!(case.is_before(&machine.host_bytes()));
    assert_eq!(Journal::open(machine.journal()).unwrap().state(), State::TakenBack);
}

#[test]
fn a_staging_that_contradicts_itself_is_not_checked() {
    let at = Offset::<Volume>::new;
    let write = |place: u64, len: usize| Fresh { at: at(place), bytes: vec![1; len] };
    let good = || Staging {
        groups: vec![Group { name: "one", writes: vec![write(1024, 512), write(2048, 1024)] }],
        interim: vec![(0, write(2048, 512))],
        fresh: vec![write(8192, 700)],
        filled: vec![(at(8192), 512), (at(8704), 512)],
        slack: vec![(at(4096), 100)],
        quarantine: Quarantine { at: at(0), closed: vec![1; 512], open: vec![2; 512], also: vec![write(512, 512)] },
        ..Staging::default()
    };
    let machine = Machine::new(vec![0; BEFORE as usize + SECTORS as usize * 512], 1);
    let check = |staging: Staging| Checked::new(staging, Arc::new(volume(&machine).unwrap()), |_, _| Ok(()));
    check(good()).unwrap();
    type Change = (&'static str, fn(&mut Staging));
    let changes: [Change; 14] = [
        ("half a sector", |s| s.groups[0].writes[0].bytes.truncate(500)),
        ("between sectors", |s| s.groups[0].writes[0].at = Offset::new(1000)),
        ("out of order", |s| s.groups[0].writes.reverse()),
        ("a sector in two groups", |s| s.groups.push(s.groups[0].clone())),
        ("beyond the end", |s| s.groups[0].writes[1].at = Offset::new(SECTORS * 512 - 512)),
        ("an interim that no group ends", |s| s.interim[0].1.at = Offset::new(5120)),
        ("an interim after its group", |s| s.interim[0].0 = 1),
        ("two interims", |s| s.interim.push(s.interim[0].clone())),
        ("new bytes outside of what is filled", |s| s.fresh[0].bytes.resize(1025, 0)),
        ("new bytes twice", |s| s.fresh.push(s.fresh[0].clone())),
        ("slack in a group's sector", |s| s.slack[0].0 = Offset::new(1500)),
        ("filled units that are in use", |s| s.filled.push((Offset::new(2048), 512))),
        ("no quarantine", |s| s.quarantine.closed = s.quarantine.open.clone()),
        ("the switch in a group", |s| s.quarantine.at = Offset::new(1024)),
    ];
    for (what, change) in changes {
        let mut staging = good();
        change(&mut staging);
        let error = check(staging).map(drop).expect_err(what);
        assert!(matches!(error, Error::Corrupt { .. }), "{what}: {error}");
    }
    let refusing = |_, _: &Staging| Err(Error::Refused("the audit found something".into()));
    assert!(Checked::new(good(), Arc::new(volume(&machine).unwrap()), refusing).is_err());
}

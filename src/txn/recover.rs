//! After a crash: forward or back, from the journal alone.

use crate::error::{Error, Result};
use crate::extent::{Offset, ReadAt, Volume};
use crate::txn::apply::{Found, Hand, Survey};
use crate::txn::commit::{counting, mark};
use crate::txn::io::first_difference;
use crate::txn::journal::Sealed;
use crate::txn::moves::{begun, carry_out};
use crate::txn::{HostVolume, Journal, Progress, State, Step};

/// Which way a recovery or an undo went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Recovered {
    /// The commit was finished: the host is in the new state.
    Forward,
    /// The commit was given up: the host is as before, outside of units that were free.
    Back,
    /// An undo was finished: the host is as before, outside of units that were free.
    Undone,
    /// The host was in the new state already, and the journal said so: nothing was written.
    AlreadyDone,
    /// The host was as before already, and the journal said so: nothing was written.
    AlreadyBack,
}

/// Brings a commit or an undo that was interrupted to an end. It reads neither host nor guest as file systems.
///
/// # Errors
/// [`Error::Refused`] with the list where a sector is neither old nor new nor the recorded intermediate: nothing was written.
/// [`Error::Interrupted`] where a write or sync fails. [`Error::Corrupt`] where the journal contradicts the host.
pub fn recover(journal: &mut Journal, host: &HostVolume, progress: &(dyn Fn(Progress) + Sync)) -> Result<Recovered> {
    check_len(journal, host)?;
    let found = journal.switch().find(host).ok_or_else(|| foreign(journal))?;
    let (end, outcome) = match journal.state() {
        State::Filling => return take_back_unsealed(journal, host, found, progress),
        // The quarantine was being set or lifted on a copy of this host that the journal's last record is not of.
        state @ (State::Done | State::TakenBack | State::Undone)
            if !stands(host, journal) && journal.switch().any_blank(host) =>
        {
            if state == State::Done {
                not_undone(journal, host, progress)?;
            }
            Hand::new(host, journal.sealed()?, progress).put_also_back()?;
            let outcome = match state {
                State::Done => Recovered::Forward,
                State::Undone => Recovered::Undone,
                _ => Recovered::Back,
            };
            (state, outcome)
        }
        State::Done | State::TakenBack | State::Undone if !stands(host, journal) => {
            if journal.state() != State::Done {
                return Ok(Recovered::AlreadyBack);
            }
            not_undone(journal, host, progress)?;
            return Ok(Recovered::AlreadyDone);
        }
        State::Sealed => settle(journal, host, found, progress)?,
        State::Reusing => finish_reuse(journal, host, found, progress)?,
        // The journal was marked on another copy of this host, and this one was left in quarantine.
        State::Done => forward_or_back(journal, host, progress)?,
        State::TakenBack => back_from(journal, host, progress)?,
        State::Undone => back(journal.sealed()?, host, progress, (State::Undone, Recovered::Undone))?,
        State::Undoing => finish_undo(journal.sealed()?, host, found, progress)?,
    };
    if journal.state() != end {
        mark(journal, end)?;
    }
    Ok(outcome)
}

/// The state that the journal is in afterwards, and what is said of it.
type End = (State, Recovered);

/// Whether the host holds, to the letter, the other state than the one that a finished journal is in: then the journal went on
/// with another copy of this host, or is another copy of itself. Writes nothing.
pub fn holds_the_other_state(journal: &Journal, host: &HostVolume) -> bool {
    let Some(body) = journal.unsealed_body() else { return false };
    let survey = Survey::of(host, Sealed { body, switch: journal.switch(), path: journal.path() }, &|_| ());
    match journal.state() {
        State::Done => survey.all_old() && !survey.all_new(),
        State::TakenBack | State::Undone => survey.all_new() && !survey.all_old(),
        State::Filling | State::Sealed | State::Undoing | State::Reusing => false,
    }
}

/// Whether the quarantine is there to the letter: what can't be read is no reason to touch a host that is in order.
pub fn stands(host: &HostVolume, journal: &Journal) -> bool {
    let switch = journal.switch();
    host.read_vec(Offset::new(switch.at), switch.closed.len()).is_ok_and(|have| have == switch.closed)
}

pub(super) fn check_len(journal: &Journal, host: &HostVolume) -> Result<()> {
    if host.len() == journal.about().volume_len { Ok(()) } else { Err(foreign(journal)) }
}

pub(super) fn foreign(journal: &Journal) -> Error {
    let about = journal.about();
    Error::Refused(format!(
        "this is not the host of the journal {} ({} volume {} of {} bytes), or its first sectors were changed since; nothing was written",
        journal.path().display(),
        about.kind,
        about.serial,
        about.volume_len
    ))
}

/// The host shows that a later record was there.
fn contradicts(journal: &Journal, record: &str, what: &str) -> Error {
    Error::Corrupt {
        structure: "journal's state records".into(),
        at: journal.path().display().to_string(),
        expected: format!("a record {record}, as {what}; nothing was written"),
    }
}

/// That the host of a finished commit is not as before it.
fn not_undone(journal: &Journal, host: &HostVolume, progress: &(dyn Fn(Progress) + Sync)) -> Result<()> {
    let survey = Survey::of(host, journal.sealed()?, progress);
    if survey.all_old() && !survey.all_new() {
        return Err(contradicts(journal, "that it was undone", "the host is as before the commit"));
    }
    Ok(())
}

const WRONG: &str =
    "these places hold neither what they held before nor what the commit writes, so somebody else wrote to the host";

/// Not sealed: nothing in use was touched, and nothing has to be written.
fn take_back_unsealed(
    journal: &mut Journal,
    host: &HostVolume,
    found: Found,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Recovered> {
    let contradicts = |what: &str| contradicts(journal, "that it was sealed", what);
    if stands(host, journal) {
        return Err(contradicts("the host is in quarantine"));
    }
    if found.open && !found.old {
        return Err(contradicts("the host is as a finished commit leaves it"));
    }
    if journal.switch().any_blank(host) {
        return Err(contradicts("the sectors of the host's quarantine are blank"));
    }
    if let Some(body) = journal.unsealed_body() {
        let sealed = Sealed { body, switch: journal.switch(), path: journal.path() };
        let survey = Survey::of(host, sealed, progress);
        if survey.wrong.is_empty() && survey.not_old > survey.unreadable.len() as u64 {
            return Err(contradicts("the host has contents that only a sealed commit writes"));
        }
    }
    mark(journal, State::TakenBack)?;
    Ok(Recovered::Back)
}

/// Sealed, not done.
fn settle(journal: &mut Journal, host: &HostVolume, found: Found, progress: &(dyn Fn(Progress) + Sync)) -> Result<End> {
    if found.closed {
        return forward_or_back(journal, host, progress);
    }
    let sealed = journal.sealed()?;
    let survey = Survey::of(host, sealed, progress);
    survey.refuse_wrong(WRONG)?;
    let end = if survey.all_old() && found.old {
        (State::TakenBack, Recovered::Back)
    } else if survey.all_new() && found.open {
        (State::Done, Recovered::Forward)
    } else {
        return Err(between(&survey));
    };
    if survey.blanked > 0 {
        Hand::new(host, sealed, progress).put_also_back()?;
    }
    Ok(end)
}

fn between(survey: &Survey) -> Error {
    Error::Refused(format!(
        "the host is not in quarantine, yet {} places are not as before and {} are not as after the commit ({} can't be read): \
         somebody else wrote to it; nothing was written",
        survey.not_old,
        survey.not_new,
        survey.unreadable.len()
    ))
}

/// The first place of what was written to free units that does not hold it.
fn lost(journal: &Journal, host: &HostVolume, progress: &(dyn Fn(Progress) + Sync)) -> Result<Option<Offset<Volume>>> {
    let filled = &journal.sealed()?.body.filled;
    let total = filled.iter().map(|s| s.len).fold(0, u64::saturating_add);
    Ok(first_difference(host, filled, &counting(Step::Checking, total, progress)))
}

/// The quarantine stands: forward where everything that was written to free units is there, else back.
fn forward_or_back(journal: &mut Journal, host: &HostVolume, progress: &(dyn Fn(Progress) + Sync)) -> Result<End> {
    match lost(journal, host, progress)? {
        None => forward(journal, host, progress),
        Some(_) => back_from(journal, host, progress),
    }
}

/// Units of the image are being filled, or were.
fn finish_reuse(
    journal: &mut Journal,
    host: &HostVolume,
    found: Found,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<End> {
    if !found.closed {
        let survey = Survey::of(host, journal.sealed()?, progress);
        survey.refuse_wrong(WRONG)?;
        if !(survey.all_new() && found.open) {
            return Err(between(&survey));
        }
        // An earlier recovery found the switch unreadable, and was cut before it stood again.
        if survey.blanked > 0 {
            Hand::new(host, journal.sealed()?, progress).put_also_back()?;
        }
        return Ok((State::Done, Recovered::Forward));
    }
    match lost(journal, host, progress)? {
        None => forward(journal, host, progress),
        Some(at) => {
            Err(no_way_back(journal, &format!("what the relink wrote to free units at {at} is not there any more")))
        }
    }
}

/// Forward was not possible, and back isn't either.
fn no_way_back(journal: &Journal, what: &str) -> Error {
    Error::Corrupt {
        structure: "host".into(),
        at: format!("the journal {}", journal.path().display()),
        expected: format!(
            "what the relink wrote, or the image: {what}, and units of the image were overwritten already; nothing was written"
        ),
    }
}

/// To the new state. The quarantine stands.
fn forward(journal: &mut Journal, host: &HostVolume, progress: &(dyn Fn(Progress) + Sync)) -> Result<End> {
    let sealed = journal.sealed()?;
    Survey::of(host, sealed, progress).refuse_wrong(WRONG)?;
    Hand::new(host, sealed, progress).close()?;
    carry_out(journal, host, progress)?;
    let sealed = journal.sealed()?;
    let mut hand = Hand::new(host, sealed, progress);
    hand.forward()?;
    hand.lift(&sealed.switch.open)?;
    Ok((State::Done, Recovered::Forward))
}

/// To the state before, of a commit that was not finished.
fn back_from(journal: &Journal, host: &HostVolume, progress: &(dyn Fn(Progress) + Sync)) -> Result<End> {
    if journal.reuses() && begun(journal, host)? {
        return Err(no_way_back(journal, "it can't be finished"));
    }
    back(journal.sealed()?, host, progress, (State::TakenBack, Recovered::Back))
}

/// To the state before, whatever the host is in.
pub(super) fn back(
    sealed: Sealed<'_>,
    host: &HostVolume,
    progress: &(dyn Fn(Progress) + Sync),
    end: End,
) -> Result<End> {
    Survey::of(host, sealed, progress).refuse_wrong(WRONG)?;
    let mut hand = Hand::new(host, sealed, progress);
    hand.close()?;
    hand.back()?;
    hand.lift(&sealed.switch.old)?;
    Ok(end)
}

/// An undo had begun.
fn finish_undo(
    sealed: Sealed<'_>,
    host: &HostVolume,
    found: Found,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<End> {
    let end = (State::Undone, Recovered::Undone);
    if found.closed {
        return back(sealed, host, progress, end);
    }
    let survey = Survey::of(host, sealed, progress);
    survey.refuse_wrong(WRONG)?;
    if survey.all_old() && found.old {
        if survey.blanked > 0 {
            Hand::new(host, sealed, progress).put_also_back()?;
        }
        return Ok(end);
    }
    if !(survey.all_new() && found.open) {
        return Err(between(&survey));
    }
    // Nothing was taken back yet, and nothing kept others out: they may have used the new state.
    unchanged(sealed, host, progress)?;
    back(sealed, host, progress, end)
}

/// That what was free and is filled, and the allocation tables as a whole, are as the commit left them.
pub(super) fn unchanged(sealed: Sealed<'_>, host: &HostVolume, progress: &(dyn Fn(Progress) + Sync)) -> Result<()> {
    let (filled, witnesses) = (&sealed.body.filled, &sealed.body.witnesses);
    let total = filled.iter().chain(witnesses).map(|s| s.len).fold(0, u64::saturating_add);
    let step = counting(Step::Checking, total, progress);
    for (list, what) in [(witnesses, "the allocation tables"), (filled, "what the commit wrote to free units")] {
        if let Some(at) = first_difference(host, list, &step) {
            return Err(Error::Refused(format!(
                "the host was changed since the commit: {what} at {at} can't be read or differ; nothing was written"
            )));
        }
    }
    Ok(())
}

//! Takes a finished commit back.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::extent::{ReadAt, Volume};
use crate::txn::apply::{Survey, refuse_listed};
use crate::txn::commit::mark;
use crate::txn::recover::{back, check_len, foreign, unchanged};
use crate::txn::{HostVolume, Journal, Overlay, Progress, Recovered, State};

/// That a commit which filled units of the image can't be taken back.
pub(super) fn no_way_back(journal: &Journal) -> Error {
    Error::Refused(format!(
        "the relink of {} wrote to units of the image (--reuse): what was there is gone, and undo is off; nothing was written",
        journal.path().display()
    ))
}

/// Takes a finished commit back. `digest` is handed the host volume with the old blocks laid over it, and gives the digest of the
/// walk of the image that is then there: it must be [`super::About::digest`].
///
/// Gives [`Recovered::Undone`], or [`Recovered::AlreadyBack`] where there was nothing to do.
///
/// # Errors
/// [`Error::Refused`] where the host was changed since, or the commit is not finished (then `recover` comes first):
/// nothing was written. [`Error::Interrupted`] where a write or sync fails: `recover` then finishes the undo.
pub fn undo(
    journal: &mut Journal,
    host: &HostVolume,
    digest: &dyn Fn(Arc<dyn ReadAt<Volume>>) -> Result<[u8; 32]>,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Recovered> {
    check_len(journal, host)?;
    let recover_first = |why: &str| {
        Error::Refused(format!("{why}: run `unimage recover {}` first; nothing was written", journal.path().display()))
    };
    let found = journal.switch().find(host).ok_or_else(|| foreign(journal))?;
    if found.closed {
        return Err(recover_first("the host is in quarantine"));
    }
    match journal.state() {
        State::Done if journal.reuses() => return Err(no_way_back(journal)),
        State::Done => {}
        State::TakenBack | State::Undone => return Ok(Recovered::AlreadyBack),
        State::Filling | State::Sealed | State::Reusing => return Err(recover_first("the commit is not finished")),
        State::Undoing => return Err(recover_first("an undo was interrupted")),
    }
    let sealed = journal.sealed()?;
    let changed = "the host was changed since the commit, or can't be read";
    let survey = Survey::of(host, sealed, progress);
    refuse_listed(changed, &survey.unreadable)?;
    survey.refuse_wrong(changed)?;
    if !survey.all_new() || !found.open || survey.blanked > 0 {
        return Err(Error::Refused(format!(
            "{changed}: {} places do not hold what the commit wrote; nothing was written",
            survey.not_new
        )));
    }
    unchanged(sealed, host, progress)?;
    let before = Overlay::before(Arc::new(host.clone()), sealed)?;
    if digest(Arc::new(before))? != journal.about().digest {
        return Err(Error::Refused(
            "the host was changed since the commit: the image would not come back as it was; nothing was written"
                .into(),
        ));
    }
    mark(journal, State::Undoing)?;
    let (end, outcome) = back(journal.sealed()?, host, progress, (State::Undone, Recovered::Undone))?;
    mark(journal, end)?;
    Ok(outcome)
}

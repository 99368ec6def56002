//! After a crash, and back.

use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::extent::{Offset, ReadAt, Volume};
use crate::relink::commit::refuse;
use crate::relink::{Outcome, Progress, digest, step};
use crate::report::path::escape;
use crate::source::{self, SourceOptions, guard, medium};
use crate::stack::{Guest, OpenOptions};
use crate::txn::{self, About, HostVolume, Journal, Recovered, State};

/// After a crash: finishes or takes back, by the journal alone. `host` is where the host is now, if not where it was.
///
/// # Errors
/// [`Error::Refused`] where the host is another, is in use, or was changed since.
pub fn recover(journal: &Path, host: Option<&Path>, progress: Progress<'_>) -> Result<Outcome> {
    let mut journal = Journal::open(medium::open_journal(journal)?)?;
    // What is finished needs no host, which may be mounted by now.
    match journal.state() {
        State::Filling | State::Sealed | State::Undoing => {}
        _ if in_quarantine(&journal, host) => {}
        State::Done => return Ok(Outcome::AlreadyFinished),
        State::TakenBack | State::Undone => return Ok(Outcome::AlreadyTakenBack),
    }
    let volume = open_host(journal.about(), host)?;
    Ok(outcome(txn::recover(&mut journal, &volume, &step(progress))?))
}

/// Takes a finished relink back. `host` is where the host is now, if not where it was.
///
/// # Errors
/// [`Error::Refused`] where the host is another, is in use, or was changed since.
pub fn undo(journal: &Path, host: Option<&Path>, progress: Progress<'_>) -> Result<Outcome> {
    let mut journal = Journal::open(medium::open_journal(journal)?)?;
    if matches!(journal.state(), State::TakenBack | State::Undone) && !in_quarantine(&journal, host) {
        return Ok(Outcome::AlreadyTakenBack);
    }
    let volume = open_host(journal.about(), host)?;
    let image = journal.about().image.clone();
    let digest = |before: Arc<dyn ReadAt<Volume>>| {
        let options = OpenOptions::default();
        let level = Guest::probe(0, before, options.read).open_image(&escape(&image), options)?;
        digest::of_image(&level)
    };
    Ok(outcome(txn::undo(&mut journal, &volume, &digest, &step(progress))?))
}

fn outcome(way: Recovered) -> Outcome {
    match way {
        Recovered::Forward => Outcome::Finished,
        Recovered::Back | Recovered::Undone => Outcome::TakenBack,
        Recovered::AlreadyDone => Outcome::AlreadyFinished,
        Recovered::AlreadyBack => Outcome::AlreadyTakenBack,
    }
}

/// Whether the host is there and shut by this journal's quarantine, whatever the journal says: it may have been marked for another
/// copy of the host, or be an older copy of itself.
fn in_quarantine(journal: &Journal, host: Option<&Path>) -> bool {
    let about = journal.about();
    let Ok(source) = source::open(host.unwrap_or(&about.host), SourceOptions::default()) else { return false };
    let at = if source.len() == about.volume_len { 0 } else { about.volume_at };
    journal.quarantine_is(|place, buf| source.read_at(Offset::new(at).saturating_add(place), buf).is_ok())
}

/// The host volume of a journal, for writing.
fn open_host(about: &About, host: Option<&Path>) -> Result<HostVolume> {
    let path = host.unwrap_or(&about.host);
    if !path.exists() {
        return Err(Error::NotFound(format!("no host at {}: --host FILE says where it is now", path.display())));
    }
    let len = about.volume_len;
    // What is as long as the volume is the volume, by the device of its partition or in an image of its own.
    let at = if source::open(path, SourceOptions::default())?.len() == len { 0 } else { about.volume_at };
    refuse(guard::host(path, at, len)?.iter().map(|reason| format!("{}: {reason}", path.display())).collect())?;
    let opened = medium::open_host(path, at, len)?;
    HostVolume::new(opened.medium, opened.volume_at, len)
}

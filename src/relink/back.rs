//! After a crash, and back.

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::extent::{Device, Offset, ReadAt, Volume};
use crate::relink::commit::refuse;
use crate::relink::{Outcome, Progress, digest, step};
use crate::report::path::escape;
use crate::source::{self, Medium, SourceOptions, guard, medium};
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
        State::Filling | State::Sealed | State::Undoing | State::Reusing => {}
        _ if !is_as_it_says(&journal, host)? => {}
        State::Done => return Ok(Outcome::AlreadyFinished),
        State::TakenBack | State::Undone => return Ok(Outcome::AlreadyTakenBack),
    }
    let volume = open_host(journal.about(), host)?;
    Ok(outcome(txn::recover(&mut journal, &volume, &step(progress))?))
}

/// Takes a finished relink back. `host` is where the host is now, if not where it was; `options` are those that the
/// image is opened with once more.
///
/// # Errors
/// [`Error::Refused`] where the host is another, is in use, or was changed since.
pub fn undo(journal: &Path, host: Option<&Path>, options: &OpenOptions, progress: Progress<'_>) -> Result<Outcome> {
    let mut journal = Journal::open(medium::open_journal(journal)?)?;
    if matches!(journal.state(), State::TakenBack | State::Undone) && is_as_it_says(&journal, host)? {
        return Ok(Outcome::AlreadyTakenBack);
    }
    let volume = open_host(journal.about(), host)?;
    undo_on(&mut journal, &volume, options, progress)
}

/// The same on a journal and a volume that are open already, without asking who else has them.
///
/// # Errors
/// As [`undo`].
pub fn undo_on(
    journal: &mut Journal,
    volume: &HostVolume,
    options: &OpenOptions,
    progress: Progress<'_>,
) -> Result<Outcome> {
    let image = journal.about().image.clone();
    let digest = |before: Arc<dyn ReadAt<Volume>>| {
        let level = Guest::probe(0, before, options.read).open_image(&escape(&image), options.clone())?;
        digest::of_image(&level)
    };
    Ok(outcome(txn::undo(journal, volume, &digest, &step(progress))?))
}

fn outcome(way: Recovered) -> Outcome {
    match way {
        Recovered::Forward => Outcome::Finished,
        Recovered::Back | Recovered::Undone => Outcome::TakenBack,
        Recovered::AlreadyDone => Outcome::AlreadyFinished,
        Recovered::AlreadyBack => Outcome::AlreadyTakenBack,
    }
}

/// A host that is only read.
struct Reading(Arc<dyn ReadAt<Device>>);

impl Medium for Reading {
    fn len(&self) -> u64 {
        self.0.len()
    }
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(Offset::new(at), buf).map_err(io::Error::other)
    }
    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a finished journal may be believed: false where its quarantine stands on the host. A host that is not there, or is
/// another one, is no reason not to; it may be mounted, too.
fn is_as_it_says(journal: &Journal, host: Option<&Path>) -> Result<bool> {
    let about = journal.about();
    let path = host.unwrap_or(&about.host);
    let Ok(source) = source::open(path, SourceOptions::default()) else { return Ok(true) };
    let at = if source.len() == about.volume_len { 0 } else { about.volume_at };
    let Ok(volume) = HostVolume::new(Arc::new(Reading(source)), at, about.volume_len) else { return Ok(true) };
    if txn::stands(&volume, journal) {
        return Ok(false);
    }
    if txn::holds_the_other_state(journal, &volume) {
        let (says, holds) = match journal.state() {
            State::Done => ("complete", "as it was before"),
            _ => ("taken back", "as the relink left it"),
        };
        return Err(Error::Refused(format!(
            "the journal says that the relink was {says}, but {} is {holds}: this is another copy of that host, or it was changed with another journal; \
             nothing was written",
            path.display()
        )));
    }
    Ok(true)
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

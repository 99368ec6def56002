//! `relink`: in place.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::progress::Steps;
use super::{End, PARTLY, REFUSED, Session, plan, signals};
use crate::error::Error;
use crate::fs::host::HostName;
use crate::relink::{Done, Options, Prepared};
use crate::report::text;

/// Turn an image into its files, in place, on its unmounted host, and remove it
///
/// The host is the volume that the image lies on. Where the data can stay, only metadata is written that points at it;
/// the rest is copied into free space. Prints the plan; writes only with --commit. The journal takes it back
/// (`unimage undo`), and brings a commit to its end that was interrupted (`unimage recover`).
#[derive(Args)]
#[command(after_help = "Examples:
  unimage relink /dev/sdb//p2/vm/win.raw --into /win                     the plan, and why it would be refused
  unimage relink /dev/sdb//p2/vm/win.raw --into /win --journal /mnt/safe/win.journal --commit
  unimage relink host.raw//win.raw//p2 --into /win --journal win.journal --commit --discard-rest")]
pub struct Relink {
    /// The image, as a file of its host: HOST//PATH
    #[arg(value_name = "ADDR")]
    address: OsString,
    /// The directory of the host to write into; made when it is not there
    #[arg(long, value_name = "DIR")]
    into: OsString,
    /// The journal: a new file, not on the host volume. Keep it for as long as you may want to take this back
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    /// Write. Without it nothing is written
    #[arg(long, requires = "journal")]
    commit: bool,
    /// Also write the manifest (a row for every file, with what the host can't hold) to this new file
    ///
    /// It is in the journal in any case.
    #[arg(long, value_name = "FILE", requires = "commit")]
    manifest: Option<PathBuf>,
    /// Let go with the image what ADDR does not name: other volumes, other folders, unallocated space
    #[arg(long)]
    discard_rest: bool,
    /// Remove the image's parents and backing files with it
    ///
    /// Without it they stay, and what lies in them is copied. Nothing else on the host may need them.
    #[arg(long)]
    remove_chain: bool,
    /// Let go with the image what can't be read or decoded
    #[arg(long)]
    discard_unreadable: bool,
    /// Where the free space is too small for copies, fill what is left of the image with them, too
    ///
    /// What was there is gone: there is no undo then, and an interrupted relink can only be finished. Where the free space is enough,
    /// nothing changes.
    #[arg(long)]
    reuse: bool,
    /// What becomes of the bytes behind the end of a linked file in its last unit
    ///
    /// They are the guest's slack: evidence. By default they are zeroed on hosts whose drivers may show them later, and
    /// kept on the others. Zeroed bytes are kept in the journal.
    #[arg(long, value_enum)]
    slack: Option<Slack>,
    /// Show a line for every file and stream
    #[arg(short = 'v', long = "files")]
    files: bool,
    /// Print JSON lines
    #[arg(long)]
    json: bool,
}

/// Files from which on much memory is taken in any case: asking for it in small pages then takes longer than clearing large ones.
const MANY: usize = 50_000;

#[derive(Clone, Copy, ValueEnum)]
enum Slack {
    Keep,
    Zero,
}

impl Relink {
    pub(super) fn run(&self, s: &mut Session<'_>) -> Result<u8, End> {
        if self.commit {
            s.out.never_stop();
        }
        if let (Some(journal), Some(manifest)) = (&self.journal, &self.manifest)
            && same_path(journal, manifest)
        {
            let what =
                format!("--journal and --manifest are the same file, {}: each has to be a new one", journal.display());
            return Err(Error::Usage(what).into());
        }
        let options = Options {
            into: names_of(&self.into)?,
            zero_slack: self.slack.map(|slack| matches!(slack, Slack::Zero)),
            discard_rest: self.discard_rest,
            discard_unreadable: self.discard_unreadable,
            remove_chain: self.remove_chain,
            reuse: self.reuse,
            decode_first: self.commit,
        };
        let stack = s.open_image(&self.address)?;
        if self.commit {
            // A volume that can't be walked is complained of where it is planned.
            let trees = stack.last()?.guests.iter().filter_map(|guest| guest.tree().ok());
            if trees.map(|tree| tree.objects().count()).fold(0, usize::saturating_add) < MANY {
                super::small_pages();
            }
        }
        let prepared = plan::prepare(&stack, &options)?;
        plan::print(s, &prepared, "unimage/relink/1", self.json, self.files)?;
        if !prepared.refusals.is_empty() {
            if self.json {
                plan::summary(s, &prepared, |row| {
                    row.value("committed", &false);
                });
            }
            s.out.flush()?;
            for refusal in &prepared.refusals {
                s.out.complain(&format!("refused: {refusal}"));
            }
            return Ok(REFUSED);
        }
        match &self.journal {
            Some(journal) if self.commit => self.commit(s, &prepared, journal),
            _ => {
                if self.json {
                    plan::summary(s, &prepared, |row| {
                        row.value("committed", &false);
                    });
                } else {
                    s.out.line("Nothing was written: add --journal FILE --commit to do it.")?;
                }
                Ok(0)
            }
        }
    }

    fn commit(&self, s: &mut Session<'_>, prepared: &Prepared, journal: &std::path::Path) -> Result<u8, End> {
        s.out.flush()?;
        let done = {
            let _guard = signals::finish_first(journal);
            let steps = Steps::new();
            prepared.commit(journal, self.manifest.as_deref(), &|step, at, of| steps.at(step, at, of))?
        };
        let shown = journal.display();
        if self.json {
            let Done { metadata_bytes, copied_bytes, zeroed_bytes, journal_bytes, all, copying, zeroing } = done;
            plan::summary(s, prepared, |row| {
                row.value("committed", &true)
                    .number("written_metadata_bytes", metadata_bytes)
                    .number("written_copied_bytes", copied_bytes)
                    .number("written_zeroed_bytes", zeroed_bytes)
                    .number("written_journal_bytes", journal_bytes)
                    .value("commit_seconds", &all.as_secs_f64())
                    .value("copied_seconds", &copying.as_secs_f64())
                    .value("zeroed_seconds", &zeroing.as_secs_f64());
            });
        } else {
            s.out.line(&text::clean(&format!(
                "Done in {:.2} s: {} of metadata, {} copied in {:.2} s, {} zeroed in {:.2} s; journal {shown}: {}.",
                done.all.as_secs_f64(),
                text::size(done.metadata_bytes),
                text::size(done.copied_bytes),
                done.copying.as_secs_f64(),
                text::size(done.zeroed_bytes),
                done.zeroing.as_secs_f64(),
                text::size(done.journal_bytes),
            )))?;
            if prepared.plan.totals.space.reusing().is_some() {
                s.out.line("Units of the image were filled: it can't be taken back.")?;
                return Ok(if prepared.plan.totals.skipped.files == 0 { 0 } else { PARTLY });
            }
            s.out.line(&text::clean(&format!(
                "`unimage undo {shown}` takes it back, as long as nothing else writes to the host: mount it read-only \
                 (mount -o ro) until you are sure."
            )))?;
        }
        Ok(if prepared.plan.totals.skipped.files == 0 { 0 } else { PARTLY })
    }
}

/// The names of a directory given by its path from the host's root.
/// Whether two paths that may not exist yet are one: the same name in the same folder.
fn same_path(a: &Path, b: &Path) -> bool {
    let place = |path: &Path| {
        let full = std::path::absolute(path).ok()?;
        let folder = full.parent()?.canonicalize().ok()?;
        Some((folder, full.file_name()?.to_owned()))
    };
    a == b || place(a).is_some_and(|at| place(b) == Some(at))
}

fn names_of(path: &OsStr) -> Result<Vec<HostName>, Error> {
    let names: Vec<HostName> =
        path.as_bytes().split(|b| *b == b'/').filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect();
    if path.is_empty() {
        return Err(Error::Usage("--into: expected a directory of the host, `/` for its root".into()));
    }
    if names.iter().any(|n| n == b"." || n == b"..") {
        return Err(Error::Usage("--into: expected the names of directories, without . and ..".into()));
    }
    Ok(names)
}

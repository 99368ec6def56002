//! Carries a prepared relink out.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::extent::{Layer, LayerId, Offset, ReadAt, Stream};
use crate::fs::host::Job;
use crate::relink::{Done, Prepared, Progress, digest, step};
use crate::report::manifest;
use crate::report::path::escape;
use crate::source::medium::JournalFile;
use crate::source::{guard, medium};
use crate::txn::{self, Checked, HostVolume, Sources};

impl Prepared {
    /// Carries it out. `journal` must not exist; with `manifest` the manifest is also written there, a new file too.
    ///
    /// # Errors
    /// [`Error::Refused`] with all of the refusals, nothing written; [`Error::Interrupted`] where writing failed.
    pub fn commit(&self, journal: &Path, manifest: Option<&Path>, progress: Progress<'_>) -> Result<Done> {
        let start = Instant::now();
        let about = &self.job.about;
        let (ground, at, len) = (&self.job.ground, about.volume_at, about.volume_len);
        refuse(self.refusals.clone())?;
        let mut reasons = guard::host(ground, at, len)?;
        reasons.iter_mut().for_each(|reason| *reason = format!("{}: {reason}", ground.display()));
        reasons.extend(guard::journal(journal, ground, at, len)?);
        if let Some(path) = manifest.filter(|path| path.symlink_metadata().is_ok()) {
            reasons.push(format!("the manifest's path {} exists already", path.display()));
        }
        refuse(reasons)?;
        let opened = medium::open_host(ground, at, len)?;
        let volume = HostVolume::new(opened.medium, opened.volume_at, len)?;
        let checked = self.checked(&volume)?;
        if let Some(path) = manifest {
            write_new(path, self).map_err(|e| Error::io(format!("writing the manifest {}", path.display()), e))?;
        }
        let done = medium::create_journal(journal).and_then(|file| self.carry_out(checked, &volume, file, progress));
        match done {
            Ok(done) => Ok(Done { all: start.elapsed(), ..done }),
            Err(e) => {
                // A manifest of what did not happen would mislead; of what may still happen, it stays.
                if let (Some(path), false) = (manifest, matches!(e, Error::Interrupted { .. })) {
                    let _ = std::fs::remove_file(path);
                }
                Err(e)
            }
        }
    }

    /// The same on a volume and a journal that are open already, without asking who else has them: what remains is the
    /// check that the volume is what was planned for, the audit, and the steps of the transaction.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub fn commit_on(&self, volume: &HostVolume, journal: JournalFile, progress: Progress<'_>) -> Result<Done> {
        refuse(self.refusals.clone())?;
        self.carry_out(self.checked(volume)?, volume, journal, progress)
    }

    /// The new state of the host, audited.
    fn checked(&self, volume: &HostVolume) -> Result<Checked> {
        self.same_host(volume)?;
        let host = self.job.host.as_host().ok_or_else(|| Error::Unsupported("the host can't be written".into()))?;
        let job = Job { tree: &self.plan.tree, image: &self.job.image, zero_slack: self.plan.zero_slack };
        // Asked again, now that nobody else can write: it reads what it needs anew.
        refuse(host.refusals(&self.job.image)?)?;
        let Some((_, staging)) = self.job.new_state.clone() else {
            return Err(Error::Refused("the plan has no new state of the host".into()));
        };
        Checked::new(staging, Arc::clone(&self.job.volume), |after, staging| host.audit(after, &job, staging))
    }

    fn carry_out(
        &self,
        checked: Checked,
        volume: &HostVolume,
        journal: JournalFile,
        progress: Progress<'_>,
    ) -> Result<Done> {
        let start = Instant::now();
        let (about, manifest) = (self.job.about.clone(), || manifest::packed(self));
        let done = txn::commit(checked, volume, journal, about, &manifest, self, &step(progress))?;
        Ok(Done {
            metadata_bytes: done.fresh_bytes.saturating_add(done.switched_bytes),
            copied_bytes: done.copied_bytes,
            zeroed_bytes: done.slack_bytes,
            journal_bytes: done.journal_bytes,
            all: start.elapsed(),
            copying: done.copying,
            zeroing: done.zeroing,
        })
    }

    /// Whether the host, now that nobody else can write it, is what the plan was made for: the same files in the same places,
    /// as much free space, and the same bytes wherever blocks in use are replaced.
    fn same_host(&self, volume: &HostVolume) -> Result<()> {
        let now = crate::fs::probe(Arc::new(volume.clone()), crate::fs::ReadOptions::default())?;
        let tree = now.as_ref().map(|fs| fs.walk()).transpose()?;
        let same = tree.as_ref().is_some_and(|tree| digest::of_tree(tree) == digest::of_tree(&self.job.tree));
        let same = match &self.job.new_state {
            // What can't be read any more is an error of its own, not a change.
            Some((planned, staging)) if same => digest::of_replaced(volume, staging)? == *planned,
            _ => same,
        };
        if same && now.is_some_and(|fs| fs.facts().free_units == self.job.host.facts().free_units) {
            return Ok(());
        }
        let new = |p: &&crate::fs::Problem| !self.job.tree.problems().contains(p);
        let Some(tree) = &tree else {
            let what =
                "the host's file system is not recognised any more: it was changed, or its first sectors can't be read";
            return Err(Error::Refused(what.into()));
        };
        Err(Error::Refused(match tree.problems().iter().find(new) {
            Some(problem) => format!("the host does not read as it did when the plan was made: {}", problem.what),
            None => "the host was changed while the plan was made: plan again".into(),
        }))
    }
}

/// Refuses for all of these reasons.
pub fn refuse(reasons: Vec<String>) -> Result<()> {
    if reasons.is_empty() { Ok(()) } else { Err(Error::Refused(reasons.join("; "))) }
}

impl Sources for Prepared {
    fn open(&self, entry: usize) -> Result<Arc<dyn ReadAt<Stream>>> {
        let none = || Error::NotFound("a stream of the plan".into());
        let origin = self.plan.tree.entries.get(entry).and_then(|e| e.origin).ok_or_else(none)?;
        let (guest, fs) = self.guests.get(origin.volume).zip(self.job.guests.get(origin.volume)).ok_or_else(none)?;
        let stream = fs.open(&guest.tree, origin.stream.ok_or_else(none)?)?;
        let entry = self.plan.written_path(entry);
        Ok(Arc::new(Copied { stream, written: escape(&entry).into_owned() }))
    }
}

/// A stream that is copied: an error says of which file, and that nothing is lost by it.
struct Copied {
    stream: Arc<dyn Layer<Stream>>,
    written: String,
}

impl ReadAt<Stream> for Copied {
    fn id(&self) -> LayerId {
        self.stream.id()
    }
    fn len(&self) -> u64 {
        self.stream.len()
    }
    fn read_at(&self, at: Offset<Stream>, buf: &mut [u8]) -> Result<()> {
        self.stream.read_at(at, buf).map_err(|e| {
            let what = format!(
                "copying {} ({} bytes at {at} of it; nothing of the host that is in use was touched; --discard-unreadable \
                 leaves such files out)",
                self.written,
                buf.len()
            );
            match e {
                Error::Io { doing, cause } => Error::Io { doing: format!("{what}: {doing}"), cause },
                other => other.within(&what),
            }
        })
    }
}

/// A new file with the manifest, durable with its name.
fn write_new(path: &Path, prepared: &Prepared) -> std::io::Result<()> {
    let mut file = File::create_new(path)?;
    let written = manifest::write(prepared, &mut |rows| file.write_all(rows));
    let written = written.and_then(|()| file.sync_all()).and_then(|()| {
        let folder = std::path::absolute(path)?;
        File::open(folder.parent().unwrap_or(Path::new("/")))?.sync_all()
    });
    if written.is_err() {
        let _ = std::fs::remove_file(path);
    }
    written
}

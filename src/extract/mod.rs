//! Extraction on a mounted file system: files share the image's blocks where they can, and are copied where they can't.
//!
//! 1. `select` makes a flat list of what the address and the filters name, with names that the destination can hold.
//! 2. `dest` opens the destination; nothing is ever written outside of it, and no link on the way is followed.
//! 3. `run` makes the directories, then the files in the order of their place on the medium, many at once, then links and
//!    special files; the directories' own times and permissions last.
//! 4. What became of each item is in [`Results`], in the order of the list, whatever the order of the work.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use crate::error::Result;
use crate::stack::Stack;

mod dest;
mod dirs;
mod file;
mod foresee;
mod ground;
mod hash;
mod jobs;
mod keep;
mod log;
mod outcome;
mod recipe;
mod run;
mod select;
mod sys;
mod tail;
mod turns;
mod verify;
mod work;
mod write;

pub use foresee::{Foreseen, foresee};
pub use hash::{Algorithm, Hashes, hex, unhex};
pub use log::beside as log_beside;
pub use outcome::{Detail, Lost, Method, Outcome, Results, Why};
pub use select::{DirAt, Filter, Item, Selection, Shape, Source};
pub use verify::{Compared, Difference, verify};

/// Bytes of a manifest's row that room is reserved for.
const ROW: u64 = 768;

/// Whether files share the blocks of the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Link {
    /// What can; the rest is copied.
    #[default]
    Auto,
    /// What can; the rest is left out.
    Always,
    /// Nothing.
    Never,
}

impl Link {
    /// The word on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Always => "always",
            Self::Never => "never",
        }
    }
}

/// What is asked for.
#[derive(Debug, Default)]
pub struct Options {
    /// Whether blocks are shared.
    pub link: Link,
    /// Files that are worked on at once; 0 for what suits this machine.
    pub jobs: usize,
    /// Hashes of every file.
    pub hashes: Vec<Algorithm>,
    /// Which paths.
    pub filter: Filter,
    /// Whether files that are there already are replaced.
    pub overwrite: bool,
    /// Whether named streams become files beside theirs.
    pub stream_files: bool,
    /// The manifest, open for writing: room for it is reserved before anything else is written.
    pub manifest: Option<std::fs::File>,
    /// The log that a later run can go on from, and whether this one goes on from it.
    pub log: Option<(PathBuf, bool)>,
}

/// An extraction that is done, or was interrupted.
pub struct Extracted {
    /// What was selected.
    pub selection: Selection,
    /// What became of it.
    pub results: Results,
    /// Why nothing could be shared; none where it could, or was not asked for.
    pub not_shared: Option<String>,
    /// Whether it was interrupted.
    pub interrupted: bool,
    /// The log, which is there until somebody says that it is not needed any more.
    log: Option<log::Log>,
}

impl Extracted {
    /// Sums of what became of the items.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for (item, outcome) in self.selection.items.iter().zip(&self.results.outcomes) {
            totals.add(item, outcome);
        }
        totals
    }
    /// Removes the log where nothing is left that a later run could do. Called when the manifest is on the disk.
    pub fn finish(&mut self) {
        let left = |o: &Outcome| matches!(o.method, Method::Failed | Method::Pending);
        if !self.results.outcomes.iter().any(left)
            && let Some(log) = self.log.take()
        {
            log.remove();
        }
    }
    /// The log, where there is still one.
    pub fn log_path(&self) -> Option<&Path> {
        self.log.as_ref().map(log::Log::path)
    }
    /// Whether the log has everything: without a log there is nothing that could lack.
    pub fn log_is_whole(&self) -> bool {
        self.log.as_ref().is_none_or(log::Log::is_whole)
    }
}

/// Sums over all items.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Files and streams that were written whole.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links, further names, devices.
    pub links: u64,
    /// Files of which some share blocks.
    pub reflinked: u64,
    /// Bytes that share the image's blocks.
    pub shared: u64,
    /// Bytes that were written.
    pub copied: u64,
    /// Files some of which could not be read.
    pub partial: u64,
    /// What could not be written.
    pub failed: u64,
    /// What was left out.
    pub skipped: u64,
    /// What was written and lacks something (owner, times, ...).
    pub lossy: u64,
}

impl Totals {
    fn add(&mut self, item: &Item, outcome: &Outcome) {
        let up = |n: &mut u64| *n = n.saturating_add(1);
        match (outcome.method, item.shape) {
            (Method::Failed, _) => up(&mut self.failed),
            (Method::Pending | Method::Skipped, _) => up(&mut self.skipped),
            (Method::Partial, _) => up(&mut self.partial),
            (_, Shape::Dir(_)) => up(&mut self.directories),
            (Method::HardLink, _) | (_, Shape::Symlink | Shape::Special) => up(&mut self.links),
            _ => up(&mut self.files),
        }
        if outcome.method == Method::Reflink {
            up(&mut self.reflinked);
        }
        if !outcome.lost.is_empty() {
            up(&mut self.lossy);
        }
        self.shared = self.shared.saturating_add(outcome.shared);
        self.copied = self.copied.saturating_add(outcome.copied);
    }
    /// Whether everything that was asked for is there.
    pub fn is_complete(&self) -> bool {
        self.partial == 0 && self.failed == 0 && self.skipped == 0
    }
}

/// Told how far it is: files done, files in all, bytes done, bytes in all.
pub type Progress<'a> = &'a (dyn Fn(u64, u64, u64, u64) + Sync);

/// Extracts what `stack` names into the directory `dest`, which is made when absent. When `stop` becomes true, what was begun is
/// finished or taken back, and the run ends.
///
/// # Errors
/// [`crate::error::Error::Refused`] where nothing can be shared and [`Link::Always`] asks for it, and where the log is another one's;
/// whatever opening meets. What becomes of single files is no error: it is in the results.
pub fn extract(
    stack: &Stack,
    dest: &Path,
    options: &Options,
    stop: &AtomicBool,
    progress: Progress<'_>,
) -> Result<Extracted> {
    run::run(stack, dest, options, stop, progress)
}

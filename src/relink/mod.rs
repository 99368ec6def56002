//! Carries a plan out on an unmounted host: from an opened address to a committed journal, and back.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::fs::host::{HostImage, HostName};
use crate::fs::{FileSystem, Tree};
use crate::plan::{GuestVolume, Plan};
use crate::txn;

mod back;
mod commit;
pub(crate) mod digest;
pub(crate) mod part;
mod prepare;
mod rest;
#[cfg(test)]
mod tests;

pub use back::{recover, undo, undo_on};
pub use prepare::prepare;
pub use rest::{WOF, is_wof};

/// What a relink is told beside the address.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The directory of the host to write into, by its names from the root.
    pub into: Vec<HostName>,
    /// `--slack`: whether bytes behind the ends of linked files are zeroed; none for what the host needs.
    pub zero_slack: Option<bool>,
    /// `--discard-rest`: what the address does not name, or the host can't hold, may go with the image.
    pub discard_rest: bool,
    /// `--discard-unreadable`: what can't be read or decoded may go with the image.
    pub discard_unreadable: bool,
    /// `--remove-chain`: the parents of the image go with it.
    pub remove_chain: bool,
    /// `--reuse`: copies may go to units of the image where the free ones are too few.
    pub reuse: bool,
    /// Whether what is to be copied is decoded once to see that it can be, before anything is written: for `--commit`.
    pub decode_first: bool,
}

/// What goes with the image and is written nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Where: the volume's name, empty for the image as a whole.
    pub volume: String,
    /// What, in words.
    pub what: String,
    /// Bytes, where they are known.
    pub bytes: Option<u64>,
}

/// A relink that was planned; nothing is written yet.
pub struct Prepared {
    /// The plan.
    pub plan: Plan,
    /// The guests that its rows speak of.
    pub guests: Vec<GuestVolume>,
    /// Kind of the host's file system (`fat32`), and its volume's name on the disk (`p1`, empty without a table).
    pub host: (&'static str, String),
    /// Path of the image on the host, from its root, `/` between names.
    pub image: Vec<u8>,
    /// Paths of the other files that are removed with it.
    pub removed: Vec<Vec<u8>>,
    /// Names of the files of its chain that stay.
    pub stay: Vec<String>,
    /// What goes with the image and is written nowhere.
    pub lost: Vec<Lost>,
    /// Why [`commit`](Self::commit) would be refused, one sentence each; empty where it would not.
    pub refusals: Vec<String>,
    job: JobParts,
}

/// What a commit needs beside the plan.
struct JobParts {
    host: Arc<dyn FileSystem>,
    /// The host's bytes, as the plan was made from them.
    volume: Arc<dyn crate::extent::ReadAt<crate::extent::Volume>>,
    tree: Arc<Tree>,
    image: HostImage,
    /// The file systems of `guests`, one for each.
    guests: Vec<Arc<dyn FileSystem>>,
    /// The file or device that the host is in.
    ground: PathBuf,
    about: txn::About,
    /// The host's new state by the plan, and the digest of what lay on the host where it will be written. None where there are
    /// refusals.
    new_state: Option<([u8; 32], Arc<txn::Staging>)>,
}

/// A relink that is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Bytes written to the host, without those copied or zeroed.
    pub metadata_bytes: u64,
    /// Bytes of files copied.
    pub copied_bytes: u64,
    /// Bytes zeroed.
    pub zeroed_bytes: u64,
    /// Bytes of the journal.
    pub journal_bytes: u64,
    /// Time on the clock that the whole of it took.
    pub all: Duration,
    /// What of it the copies took.
    pub copying: Duration,
    /// What of it the zeroing took.
    pub zeroing: Duration,
}

/// What [`recover`] or [`undo`] found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The relink is finished now.
    Finished,
    /// The host is now as it was before.
    TakenBack,
    /// It was finished already, and nothing was written.
    AlreadyFinished,
    /// It was taken back already, and nothing was written.
    AlreadyTakenBack,
}

/// Told how far a long step is: its name, bytes done, bytes in all.
pub type Progress<'a> = &'a (dyn Fn(&'static str, u64, u64) + Sync);

/// What [`crate::txn`] tells, in these words.
fn step(progress: Progress<'_>) -> impl Fn(txn::Progress) + Sync + '_ {
    move |p| {
        let name = match p.step {
            txn::Step::Filling => "copying",
            txn::Step::ReadingOld => "reading what is replaced",
            txn::Step::Sealing => "writing the journal",
            txn::Step::ReadingMoved => "reading what is copied",
            txn::Step::Moving => "copying into the image",
            txn::Step::Checking => "checking",
            txn::Step::Switching => "writing metadata",
        };
        progress(name, p.done, p.total);
    }
}

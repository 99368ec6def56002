//! `undo`: takes a finished relink back.

use std::path::PathBuf;

use clap::Args;

use super::progress::Steps;
use super::{End, Session, recover, signals};
use crate::relink;

/// Take a finished relink back: the host as it was, with the image
///
/// Refused where anything was written to the host since. Should it be interrupted, `unimage recover` finishes it.
#[derive(Args)]
#[command(after_help = "Examples:
  unimage undo /mnt/safe/win.journal
  unimage undo /mnt/safe/win.journal --host /dev/sdc      the host has another name now")]
pub struct Undo {
    /// The journal of the relink
    #[arg(value_name = "JOURNAL")]
    journal: PathBuf,
    /// The host: a device or file. By default the one that the journal names; it is known by its content
    #[arg(long, value_name = "ADDR")]
    host: Option<PathBuf>,
    /// Print JSON lines
    #[arg(long)]
    json: bool,
}

impl Undo {
    pub(super) fn run(&self, s: &mut Session<'_>) -> Result<u8, End> {
        s.out.never_stop();
        super::small_pages();
        let outcome = {
            let _guard = signals::finish_first(&self.journal);
            let steps = Steps::new();
            relink::undo(&self.journal, self.host.as_deref(), &s.options(), &|step, at, of| steps.at(step, at, of))?
        };
        recover::say(s, "unimage/undo/1", self.json, &outcome)
    }
}

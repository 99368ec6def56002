//! `recover`: after a crash.

use std::path::PathBuf;

use clap::Args;

use super::progress::Steps;
use super::{End, Session, signals};
use crate::relink::{self, Outcome};
use crate::report::json::Row;

/// After a crash or an interruption: finish a relink or take it back, and say which
///
/// It works from the journal alone. Where nothing is to be done, it says so and writes nothing.
#[derive(Args)]
#[command(after_help = "Examples:
  unimage recover /mnt/safe/win.journal
  unimage recover /mnt/safe/win.journal --host /dev/sdc      the host has another name now")]
pub struct Recover {
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

impl Recover {
    pub(super) fn run(&self, s: &mut Session<'_>) -> Result<u8, End> {
        s.out.never_stop();
        super::small_pages();
        let outcome = {
            let _guard = signals::finish_first(&self.journal);
            let steps = Steps::new();
            relink::recover(&self.journal, self.host.as_deref(), &|step, at, of| steps.at(step, at, of))?
        };
        say(s, "unimage/recover/1", self.json, &outcome)
    }
}

/// Says what was found and done.
pub(super) fn say(s: &mut Session<'_>, schema: &'static str, json: bool, outcome: &Outcome) -> Result<u8, End> {
    let (word, wrote, text) = match outcome {
        Outcome::Finished => ("finished", true, "Finished: the relink is complete."),
        Outcome::TakenBack => ("taken-back", true, "Taken back: the host is as it was before the relink."),
        Outcome::AlreadyFinished => ("finished", false, "The relink was complete already: nothing was written."),
        Outcome::AlreadyTakenBack => {
            ("taken-back", false, "The host was as before the relink already: nothing was written.")
        }
    };
    if json {
        s.header(schema);
        Row::new(s.out.buffer(), "summary").word("outcome", word).value("wrote", &wrote).end();
    } else {
        s.out.line(text)?;
    }
    Ok(0)
}

//! `verify`: whether a tree is still what its manifest says.

use std::path::PathBuf;

use clap::Args;

use super::{End, PARTLY, Progress, Session};
use crate::extract;
use crate::report::json::Row;
use crate::report::{path, text};

/// Compare files with the manifest that was written with them
///
/// The manifest of `extract` or `relink`, or lines of checksums (.sha256, .md5, ...). A file that is missing, longer,
/// shorter or changed is shown, and the exit code is 1. Contents are compared where the manifest has hashes; what is there
/// and not in the manifest is no difference.
#[derive(Args)]
#[command(after_help = "Examples:
  unimage verify out.jsonl out
  unimage verify out.sha256 out")]
pub struct Verify {
    /// The manifest
    #[arg(value_name = "MANIFEST")]
    manifest: PathBuf,
    /// The directory that the files were written into
    #[arg(value_name = "ROOT")]
    root: PathBuf,
    /// Print JSON lines
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(super) fn run(&self, s: &mut Session<'_>) -> Result<u8, End> {
        if self.json {
            s.header("unimage/verify/1");
        }
        let progress = Progress::new("reading", None);
        let mut differences = 0u64;
        let compared = extract::verify(
            &self.manifest,
            &self.root,
            |found| {
                differences = differences.saturating_add(1);
                let out = s.out.buffer();
                if self.json {
                    let mut row = Row::new(out, "difference");
                    row.path("path", "path_raw", &found.path).word("what", found.what);
                    if !found.message.is_empty() {
                        row.value("message", &found.message);
                    }
                    row.end();
                } else {
                    text::left(out, 11, |out| out.extend_from_slice(found.what.as_bytes()));
                    out.extend_from_slice(path::escape(&found.path).as_bytes());
                    if !found.message.is_empty() {
                        out.extend_from_slice(format!(" ({})", text::clean(&found.message)).as_bytes());
                    }
                    out.push(b'\n');
                }
                // A reader that left does not stop the comparison: its exit code is still asked for.
                let _ = s.out.row();
            },
            &|bytes| progress.add(bytes),
        )?;
        if self.json {
            Row::new(s.out.buffer(), "summary")
                .number("entries", compared.entries)
                .number("hashed", compared.hashed)
                .number("lengths", compared.lengths)
                .number("bytes", compared.bytes)
                .number("differences", differences)
                .end();
        } else {
            let only = match compared.lengths {
                0 => String::new(),
                n => format!("; of {} only the length, as the manifest has no hash", text::counted(n, "file", "files")),
            };
            s.out.line(&format!(
                "{} compared, {} by hashes ({}){only}: {}.",
                text::counted(compared.entries, "entry", "entries"),
                text::counted(compared.hashed, "file", "files"),
                text::size(compared.bytes),
                text::counted(differences, "difference", "differences"),
            ))?;
        }
        Ok(if differences == 0 { 0 } else { PARTLY })
    }
}

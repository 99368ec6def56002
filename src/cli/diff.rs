//! `diff`: what two states differ in.

use std::ffi::OsString;

use clap::Args;

use super::{End, PARTLY, Progress, Session};
use crate::diff::{self, Became};
use crate::report::json::Row;
use crate::report::{path, text};

/// Show which files differ between two states of a disk, a volume or a folder
///
/// Made for two snapshots of one image: what lies at the same place of the same file in both is the same and is not read. The
/// exit code is 1 where anything differs.
#[derive(Args)]
#[command(after_help = "Examples:
  unimage diff disk.qcow2@before disk.qcow2@after
  unimage diff --json disk.qcow2@before//p2/etc disk.qcow2//p2/etc")]
pub struct Diff {
    /// The state before
    #[arg(value_name = "ADDR")]
    before: OsString,
    /// The state after
    #[arg(value_name = "ADDR")]
    after: OsString,
    /// Print JSON lines
    #[arg(long)]
    json: bool,
}

impl Diff {
    pub(super) fn run(&self, s: &mut Session<'_>) -> Result<u8, End> {
        let (before, after) = (s.open(&self.before)?, s.open(&self.after)?);
        let found = {
            let _progress = Progress::new("comparing", None);
            diff::between(&before, &after)?
        };
        if self.json {
            s.header("unimage/diff/1");
        }
        for d in &found.differences {
            let out = s.out.buffer();
            if self.json {
                Row::new(out, "entry")
                    .path("path", "path_raw", &d.path)
                    .word("kind", d.kind)
                    .some("size", d.size[1])
                    .some("size_before", d.size[0])
                    .word("change", d.became.word())
                    .end();
            } else {
                text::left(out, 11, |out| out.extend_from_slice(d.became.word().as_bytes()));
                out.extend_from_slice(path::escape(&d.path).as_bytes());
                out.push(b'\n');
            }
            s.out.row()?;
        }
        if self.json {
            let count = |became| found.differences.iter().filter(|d| d.became == became).count() as u64;
            Row::new(s.out.buffer(), "summary")
                .number("added", count(Became::Added))
                .number("removed", count(Became::Removed))
                .number("changed", count(Became::Changed))
                .number("metadata", count(Became::Metadata))
                .number("unreadable", count(Became::Unreadable))
                .number("read", found.read)
                .end();
        }
        Ok(if found.differences.is_empty() { 0 } else { PARTLY })
    }
}

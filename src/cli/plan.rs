//! `plan`: what a relink, or on a mounted file system an extraction, would do.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use clap::Args;

use super::{End, PARTLY, Progress, Session};
use crate::error::Error;
use crate::extract::{Foreseen, foresee};
use crate::relink::{self, Options, Prepared};
use crate::report::html::PlanRow;
use crate::report::json::Row;
use crate::report::{foreseen, html, manifest};
use crate::stack::Stack;

/// Show what a relink would link, copy and leave out, and why; nothing is written
///
/// ADDR names an image that lies on a host: HOST//PATH. The exit code is 0 also where a relink would be refused: the
/// reasons are listed. Of an image file that is given by itself, DISK.RAW, it shows what `extract` onto the mounted file
/// system that it lies on would share, copy and leave out.
#[derive(Args)]
#[command(after_help = "Examples:
  unimage plan /dev/sdb//p2/vm/win.raw
  unimage plan -v host.raw//vm/win.raw                    with a line for every file
  unimage plan /srv/vm/win.raw                            of an image on a mounted file system
  unimage plan --html plan.html host.raw//vm/win.raw      as a page with all rows
  unimage plan --json host.raw//vm/win.raw | jq -c 'select(.verdict == \"copy\")'")]
pub struct Plan {
    /// The image, as a file of its host
    #[arg(value_name = "ADDR")]
    address: OsString,
    /// Show a line for every file and stream: verdict, reason, size, path, and its new path where that differs
    #[arg(short = 'v', long = "files")]
    files: bool,
    /// Print JSON lines: a row for every file and stream, and the totals last
    #[arg(long)]
    json: bool,
    /// Plan as `relink --reuse`: where the free space is too small for copies, they may go to what is left of the image
    #[arg(long)]
    reuse: bool,
    /// Also write the plan with all rows to this new file, as a page for a browser
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

impl Plan {
    pub(super) fn run(&self, s: &mut Session<'_>) -> Result<u8, End> {
        if let Some(path) = self.html.as_ref().filter(|path| path.symlink_metadata().is_ok()) {
            return Err(Error::Refused(format!("the page's path {} exists already", path.display())).into());
        }
        let stack = s.open_image(&self.address)?;
        if stack.host().is_none() {
            return self.mounted(s, &stack);
        }
        let prepared = prepare(&stack, &Options { reuse: self.reuse, ..Options::default() })?;
        let mut summary_of_page = Vec::new();
        manifest::summary(&mut summary_of_page, &prepared);
        self.page(&summary_of_page, html::rows(&prepared))?;
        print(s, &prepared, "unimage/plan/1", self.json, self.files)?;
        if self.json {
            summary(s, &prepared, |_| {});
        }
        Ok(0)
    }

    /// The page, where one is asked for.
    fn page<'p>(&self, summary: &[u8], rows: impl Iterator<Item = PlanRow<'p>>) -> Result<(), Error> {
        let Some(path) = &self.html else { return Ok(()) };
        let written = File::create_new(path).and_then(|file| {
            let mut file = BufWriter::new(file);
            html::plan(&mut file, summary, rows)?;
            file.flush()
        });
        written.map_err(|e| Error::io(format!("writing the page {}", path.display()), e))
    }

    /// Of an image on a mounted file system.
    fn mounted(&self, s: &mut Session<'_>, stack: &Stack) -> Result<u8, End> {
        let all: Foreseen = {
            let _progress = Progress::new("planning", None);
            foresee(stack)?
        };
        let mut sums = Vec::new();
        foreseen::summary(&mut sums, &all, &stack.address.to_string());
        self.page(&sums, foreseen::rows(&all))?;
        if self.json {
            s.header("unimage/plan/1");
            let mut row = Row::new(s.out.buffer(), "place");
            foreseen::place(&mut row, &all);
            row.end();
        }
        if self.json || self.files {
            for line in foreseen::lines(&all) {
                if self.json {
                    line.json(s.out.buffer())
                } else {
                    line.human(s.out.buffer())
                }
                s.out.row()?;
            }
        }
        if self.json {
            let out = s.out.buffer();
            foreseen::problems(out, &all);
            let mut row = Row::new(out, "summary");
            foreseen::totals(&mut row, &all);
            row.end();
        } else {
            s.out.buffer().extend_from_slice(&sums);
        }
        s.out.row()?;
        Ok(if all.selection.problems.is_empty() { 0 } else { PARTLY })
    }
}

/// Plans the relink of an image on its host.
pub(super) fn prepare(stack: &Stack, options: &Options) -> Result<Prepared, Error> {
    let _progress = Progress::new("planning", None);
    relink::prepare(stack, options)
}

/// A plan: all rows but the summary.
pub(super) fn print(
    s: &mut Session<'_>,
    prepared: &Prepared,
    schema: &'static str,
    json: bool,
    files: bool,
) -> Result<(), End> {
    if json {
        s.header(schema);
        let mut row = Row::new(s.out.buffer(), "place");
        manifest::place(&mut row, prepared);
        row.end();
    }
    if json || files {
        let line: manifest::Line = if json { manifest::json } else { manifest::human };
        manifest::lines(prepared, line, &mut |lines| s.out.write(lines))?;
    }
    if json {
        for lost in &prepared.lost {
            manifest::json_lost(s.out.buffer(), lost);
        }
        for refusal in &prepared.refusals {
            Row::new(s.out.buffer(), "refusal").value("what", refusal).end();
        }
    } else {
        manifest::summary(s.out.buffer(), prepared);
    }
    Ok(s.out.row()?)
}

/// The last JSON line, with what the verb adds.
pub(super) fn summary(s: &mut Session<'_>, prepared: &Prepared, more: impl FnOnce(&mut Row<'_>)) {
    let mut row = Row::new(s.out.buffer(), "summary");
    manifest::totals(&mut row, &prepared.plan.totals);
    more(&mut row);
    row.end();
}

//! The command line: one file a verb; parsing, progress, printing, no logic.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};

use crate::container::gate::Allow;
use crate::error::Error;
use crate::fs::ReadOptions;
use crate::report::{json, path};
use crate::source::SourceOptions;
use crate::stack::{self, Address, OpenOptions, Stack, Target};

mod cat;
mod diff;
mod extract;
mod info;
mod ls;
mod map;
pub mod output;
mod plan;
mod progress;
mod recover;
mod relink;
mod signals;
mod undo;
mod verify;

use output::{Output, Stopped};
use progress::Progress;

/// Done, but some files failed or were skipped.
const PARTLY: u8 = 1;
const INPUT: u8 = 3;
const REFUSED: u8 = 4;

/// Turn a disk image back into the files that are in it, in place.
///
/// unimage reads a disk image where it lies. It lists, prints and extracts what is in it, and it can relink it: on an
/// unmounted host it writes metadata that points at the data where it already is, and removes the image. No image or host
/// is written but by `relink --commit`, `recover` and `undo`.
#[derive(Parser)]
#[command(name = "unimage", version, max_term_width = 100, after_help = ADDRESS_HELP, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    verb: Verb,
}

const ADDRESS_HELP: &str = "\
An ADDR is SOURCE[@SNAPSHOT][//PATH[//PATH...]]: a file or block device, then a path inside it. The path begins with the volume
(p1, p2, ... by partition number) where the disk has a partition table. Another // opens the file named so far as an
image in its turn. PATH:STREAM names an alternate data stream.

  disk.raw                        the whole disk
  disk.raw//p1/etc                a folder of its first partition
  /dev/sdb//p2/vm/win.raw         an image that lies on /dev/sdb2, as an image
  host.raw//vm/win.raw//p1/x.txt  a file in it

Exit codes: 0 done; 1 done, but some files failed or were skipped; 2 usage; 3 unreadable, corrupt, unsupported or not
there; 4 refused because it would not be safe.";

#[derive(Args, Clone)]
#[command(next_help_heading = "Options of every verb")]
struct Globals {
    /// Take times that have no zone (FAT) as local to this offset from UTC, such as +02:00.
    ///
    /// FAT keeps the wall clock's time and no zone. Without this they are taken to be UTC.
    #[arg(long, global = true, value_name = "OFFSET", default_value = "UTC", value_parser = utc_offset, allow_hyphen_values = true)]
    timezone: i32,
    /// Read files by positioned reads, never through a memory map.
    ///
    /// Use it for a file on failing media: a bad sector is then an error with its offset, and never ends the program.
    /// Block devices are always read so.
    #[arg(long, global = true)]
    no_mmap: bool,
    /// Also open files that an image names (backing files, parents, extents) in this folder; may be given several times.
    ///
    /// What an image names is opened only beneath the image's own folder. With this, also beneath DIR: by its whole path,
    /// or, where that does not lead there, by its base name in DIR itself. //DIR is a folder of the volume that the image
    /// lies on.
    #[arg(long, global = true, value_name = "DIR")]
    allow_dir: Vec<PathBuf>,
    /// Take a parent of unknown format for raw although its child does not declare it so.
    #[arg(long, global = true)]
    allow_raw_parent: bool,
    /// Take a parent or extent although it is not the one that the image has on record.
    #[arg(long, global = true)]
    allow_other_parent: bool,
}

#[derive(Subcommand)]
enum Verb {
    Info(info::Info),
    Ls(ls::Ls),
    Cat(cat::Cat),
    Diff(diff::Diff),
    Map(map::Map),
    Plan(plan::Plan),
    Extract(extract::Extract),
    Relink(relink::Relink),
    Recover(recover::Recover),
    Undo(undo::Undo),
    Verify(verify::Verify),
}

/// Why a verb ended early.
enum End {
    /// An error, to be said.
    Error(Error),
    /// Standard output takes no more.
    Stopped,
}

impl End {
    /// The same, saying that it is about what this address names.
    fn within(self, address: &OsStr) -> Self {
        match self {
            Self::Error(error) => Self::Error(error.within(&path::escape(address.as_bytes()))),
            Self::Stopped => Self::Stopped,
        }
    }
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<Stopped> for End {
    fn from(Stopped: Stopped) -> Self {
        Self::Stopped
    }
}

/// What every verb is handed.
struct Session<'a> {
    args: &'a [OsString],
    globals: Globals,
    out: &'a mut Output,
}

impl Session<'_> {
    /// The parts of an address.
    fn address(&self, address: &OsStr) -> Result<Address, Error> {
        Address::parse(address)
    }
    fn options(&self) -> OpenOptions {
        OpenOptions {
            source: SourceOptions { no_mmap: self.globals.no_mmap },
            read: ReadOptions { utc_offset: self.globals.timezone },
            allow: Arc::new(Allow {
                dirs: self.globals.allow_dir.clone(),
                raw_parent: self.globals.allow_raw_parent,
                other_parent: self.globals.allow_other_parent,
            }),
        }
    }
    /// Opens an address.
    fn open(&self, address: &OsStr) -> Result<Stack, Error> {
        let stack = self.stack(address)?;
        if let Some(snapshot) = &stack.snapshot {
            return Err(Error::Usage(format!(
                "expected // behind @{snapshot}: it names a snapshot of an image, not a file"
            )));
        }
        Ok(stack)
    }
    fn stack(&self, address: &OsStr) -> Result<Stack, Error> {
        let _progress = Progress::new("reading", None);
        stack::open(&self.address(address)?, self.options())
    }
    /// Opens an address that names an image or a part of one. `HOST//PATH` names the image at PATH; a file of an image
    /// that was opened by `//` is a part of that one.
    fn open_image(&self, address: &OsStr) -> Result<Stack, Error> {
        let mut stack = self.stack(address)?;
        let file = matches!(stack.target, Target::Object(..) | Target::Stream(..));
        if file && (stack.levels.len() == 1 || stack.snapshot.is_some()) {
            stack.descend(self.options())?;
        }
        Ok(stack)
    }
    /// The first JSON line.
    fn header(&mut self, schema: &'static str) {
        json::header(self.out.buffer(), schema, self.args);
    }
}

/// For a verb that writes: much is put together in small pieces, and many threads work with a little memory each. Huge pages, which are
/// good for the tree of a walk, would make that much, all of it to be cleared first.
fn small_pages() {
    // Where the kernel has no such switch, more memory is taken, and that is all.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

/// The names of the ground source and of each file that is opened as an image in its turn.
fn names(address: &Address) -> Vec<String> {
    let mut names = vec![path::escape(address.source.as_os_str().as_bytes()).into_owned()];
    names.extend(address.hops.iter().cloned());
    names
}

/// Runs the command line `args` (the program's name first), and gives the process's exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let mut out = Output::standard();
    ExitCode::from(session(&args, &mut out))
}

fn session(args: &[OsString], out: &mut Output) -> u8 {
    let code = match Cli::try_parse_from(args) {
        Ok(cli) => {
            let mut session = Session { args, globals: cli.globals, out: &mut *out };
            let ended = match cli.verb {
                Verb::Info(verb) => verb.run(&mut session),
                Verb::Ls(verb) => verb.run(&mut session),
                Verb::Cat(verb) => verb.run(&mut session),
                Verb::Diff(verb) => verb.run(&mut session),
                Verb::Map(verb) => verb.run(&mut session),
                Verb::Plan(verb) => verb.run(&mut session),
                Verb::Extract(verb) => verb.run(&mut session),
                Verb::Relink(verb) => verb.run(&mut session),
                Verb::Recover(verb) => verb.run(&mut session),
                Verb::Undo(verb) => verb.run(&mut session),
                Verb::Verify(verb) => verb.run(&mut session),
            };
            match ended {
                Ok(code) => code,
                Err(End::Stopped) => 0,
                Err(End::Error(error)) => {
                    // What was printed before comes first.
                    let _ = out.flush();
                    out.complain(&error.to_string());
                    error.exit_code()
                }
            }
        }
        Err(said) => {
            let text = said.render().to_string();
            if said.use_stderr() {
                out.complain_raw(text.as_bytes());
            } else {
                let _ = out.write(text.as_bytes());
            }
            u8::try_from(said.exit_code()).unwrap_or(2)
        }
    };
    let _ = out.flush();
    let lost = out.failure().map(|cause| format!("standard output: {cause}: what was printed is not complete"));
    match lost {
        None => code,
        Some(what) => {
            out.complain(&what);
            // A verb that wrote to a host has done so, whatever became of its report.
            match (code, out.stops()) {
                (0, true) | (PARTLY, true) => INPUT,
                (0, false) => PARTLY,
                (code, _) => code,
            }
        }
    }
}

/// `UTC`, `Z`, or `+HH:MM` with hours up to 14, as seconds east of UTC.
fn utc_offset(text: &str) -> Result<i32, String> {
    let wrong = || "expected UTC, or an offset such as +02:00 or -05:30".to_owned();
    if matches!(text, "UTC" | "utc" | "Z" | "z") {
        return Ok(0);
    }
    let (sign, rest) = match text.split_at_checked(1) {
        Some(("+", rest)) => (1, rest),
        Some(("-", rest)) => (-1, rest),
        _ => return Err(wrong()),
    };
    let (hours, minutes) = match rest.split_once(':') {
        Some(both) => both,
        None if rest.len() == 4 => rest.split_at_checked(2).ok_or_else(wrong)?,
        None => (rest, "0"),
    };
    let part = |text: &str, max: i32| {
        let digits = (1..=2).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<i32>().ok().filter(|n| digits && *n <= max).ok_or_else(wrong)
    };
    let seconds = part(hours, 14)?.saturating_mul(3600).saturating_add(part(minutes, 59)?.saturating_mul(60));
    Ok(seconds.saturating_mul(sign))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn offsets_from_utc() {
        assert_eq!(utc_offset("UTC"), Ok(0));
        assert_eq!(utc_offset("+02:00"), Ok(7200));
        assert_eq!(utc_offset("-0530"), Ok(-19_800));
        assert_eq!(utc_offset("+2"), Ok(7200));
        for wrong in ["", "2", "+", "+15:00", "+02:60", "+2:0:0", "+ 2", "--2", "Europe/Berlin", "+é"] {
            assert!(utc_offset(wrong).is_err(), "{wrong:?}");
        }
    }
}

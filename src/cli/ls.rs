//! `ls`: what is in it.

use std::ffi::OsString;

use clap::Args;

use super::{End, PARTLY, Progress, Session};
use crate::error::Error;
use crate::fs::{Kind, ObjectId, Tree};
use crate::report::json::Row;
use crate::report::listing::{self, Scope, Visit};
use crate::report::{bodyfile, path, text};
use crate::stack::{self, Address, Guest, Level, Stack, Target};

/// List the files of a directory, or the volumes of a disk
///
/// Paths are those below ADDR. Bytes of a name that are no text, and control characters, are shown as %XX.
#[derive(Args)]
#[command(after_help = "Examples:
  unimage ls disk.raw                      the volumes of a disk
  unimage ls -l disk.raw//p1/Users         a folder, with kinds, sizes, times and alternate data streams
  unimage ls -R --json disk.raw//p1        everything in a volume, as JSON lines
  unimage ls -R --bodyfile disk.raw//p1 | mactime -d -b -")]
pub struct Ls {
    /// What to list: a disk, a volume, a directory or a file
    #[arg(value_name = "ADDR")]
    address: OsString,
    /// Show kind, size and time of modification, and list alternate data streams
    #[arg(short = 'l')]
    long: bool,
    /// Go down into all directories
    #[arg(short = 'R')]
    recursive: bool,
    /// List the file system's own files ($MFT, ...) too
    #[arg(long)]
    all: bool,
    /// Show it in every snapshot of the image, and as it is today
    #[arg(long, conflicts_with_all = ["bodyfile", "recursive"])]
    all_snapshots: bool,
    /// Print JSON lines, with all times and attributes
    #[arg(long, conflicts_with = "bodyfile")]
    json: bool,
    /// Print a bodyfile for The Sleuth Kit's mactime
    #[arg(long)]
    bodyfile: bool,
}

/// What was listed.
#[derive(Default)]
struct Count {
    entries: u64,
    streams: u64,
    bytes: u64,
    problems: u64,
}

impl Count {
    fn add(&mut self, more: Self) {
        self.entries = self.entries.saturating_add(more.entries);
        self.streams = self.streams.saturating_add(more.streams);
        self.bytes = self.bytes.saturating_add(more.bytes);
        self.problems = self.problems.saturating_add(more.problems);
    }
}

/// What a stretch of the entries is listed as.
#[derive(Default)]
struct Block {
    text: Vec<u8>,
    count: Count,
}

impl Ls {
    pub(super) fn run(&self, s: &mut Session<'_>) -> Result<u8, End> {
        if self.all_snapshots {
            return self.all_snapshots(s);
        }
        let stack = s.open(&self.address)?;
        if self.json {
            s.header("unimage/ls/1");
        }
        let mut count = Count::default();
        self.list(s, &stack, &mut count).map_err(|end| end.within(&self.address))?;
        if self.json {
            Row::new(s.out.buffer(), "summary")
                .number("entries", count.entries)
                .number("streams", count.streams)
                .number("bytes", count.bytes)
                .number("problems", count.problems)
                .end();
        }
        Ok(if count.problems == 0 { 0 } else { PARTLY })
    }

    /// What the address names, in every snapshot of the last image, and last as it is today.
    fn all_snapshots(&self, s: &mut Session<'_>) -> Result<u8, End> {
        let address = s.address(&self.address)?;
        if address.snapshot.is_some() {
            return Err(Error::Usage("--all-snapshots takes an address without a snapshot".into()).into());
        }
        // The image is there today, whatever is in it.
        let level = address.hops.len().saturating_sub(1);
        let hops = match level {
            0 => Vec::new(),
            _ => address.hops.iter().take(level).cloned().chain([String::new()]).collect(),
        };
        let image = stack::open(&Address { hops, ..address.clone() }, s.options())?;
        let snapshots = image.last()?.disk.snapshots.clone();
        if self.json {
            s.header("unimage/ls/1");
        }
        let mut count = Count::default();
        for snapshot in snapshots.iter().map(Some).chain([None]) {
            let of = address.at_snapshot(level, snapshot.map(|s| s.id.as_str()));
            let out = s.out.buffer();
            if self.json {
                let mut row = Row::new(out, "snapshot");
                row.some("id", snapshot.map(|s| &s.id)).some("name", snapshot.map(|s| &s.name));
                row.some("made", snapshot.and_then(super::info::made)).end();
            } else {
                let made = snapshot.and_then(super::info::made).unwrap_or_default();
                let title = snapshot.map_or("today".to_owned(), |s| format!("{} \"{}\" {made}", s.id, s.name));
                out.extend_from_slice(text::clean(&title).as_bytes());
                out.extend_from_slice(b":\n");
            }
            let listed =
                stack::open(&of, s.options()).map_err(End::from).and_then(|stack| self.list(s, &stack, &mut count));
            match listed {
                Err(End::Error(Error::NotFound(_))) if self.json => {}
                Err(End::Error(Error::NotFound(_))) => s.out.buffer().extend_from_slice(b"(not there)\n"),
                Err(End::Error(error)) => self.problem(s, &error.to_string(), &mut count)?,
                other => other?,
            }
            s.out.row()?;
        }
        if self.json {
            Row::new(s.out.buffer(), "summary")
                .number("entries", count.entries)
                .number("problems", count.problems)
                .end();
        }
        Ok(if count.problems == 0 { 0 } else { PARTLY })
    }

    fn list(&self, s: &mut Session<'_>, stack: &Stack, count: &mut Count) -> Result<(), End> {
        let level = stack.last()?;
        let guest = |v: usize| level.guest(v);
        match &stack.target {
            Target::Disk if level.table.kind == "none" => self.tree(s, guest(0)?, None, "", count),
            Target::Disk => {
                for guest in &level.guests {
                    self.volume(s, level, guest, count)?;
                }
                for problem in &level.table.problems {
                    self.problem(s, problem, count)?;
                }
                Ok(())
            }
            Target::Volume(v) => self.tree(s, guest(*v)?, None, "", count),
            Target::Object(v, path, id) => {
                let guest = guest(*v)?;
                let tree = walk(guest)?;
                if tree.object(*id).kind == Kind::Dir {
                    return self.tree(s, guest, Some(*id), "", count);
                }
                listing::single(&tree, *id, last(path), |visit| {
                    self.entry(s.out.buffer(), visit, count);
                    Ok(s.out.row()?)
                })
            }
            Target::Stream(v, path, stream) => {
                let tree = walk(guest(*v)?)?;
                let object = tree.stream(*stream).object;
                let name = tree.stream_name(*stream).unwrap_or_default();
                listing::single(&tree, object, last(file_of(path, name)), |visit| {
                    count.streams = count.streams.saturating_add(1);
                    count.bytes = count.bytes.saturating_add(tree.stream(*stream).size);
                    let out = s.out.buffer();
                    if self.json {
                        listing::json_stream(out, visit, *stream, name);
                    } else if self.bodyfile {
                        bodyfile::stream(out, visit, *stream, name);
                    } else {
                        listing::human_stream(out, visit, *stream, name, self.long);
                    }
                    Ok(s.out.row()?)
                })
            }
        }
    }

    /// A volume of a disk, and with `-R` what is in it.
    fn volume(&self, s: &mut Session<'_>, level: &Level, guest: &Guest, count: &mut Count) -> Result<(), End> {
        let Some(slot) = level.table.slots.get(guest.slot) else { return Ok(()) };
        let size = slot.layer.len();
        let fs = guest.fs.as_ref().map(|fs| fs.facts().kind);
        count.entries = count.entries.saturating_add(1);
        let out = s.out.buffer();
        if self.json {
            let mut row = Row::new(out, "entry");
            row.value("path", &slot.name).word("kind", "volume").number("size", size);
            row.some("offset", super::info::stored_at(slot));
            row.some("fs", fs).value("about", &slot.about).end();
        } else if !self.bodyfile {
            if self.long {
                text::left(out, 9, |out| out.extend_from_slice(b"volume"));
                text::right(out, 14, |out| crate::report::json::number(out, size));
                out.extend_from_slice(b"  ");
                text::left(out, 32, |out| out.extend_from_slice(fs.unwrap_or("-").as_bytes()));
            }
            out.extend_from_slice(path::escape_name(slot.name.as_bytes()).as_bytes());
            out.push(b'\n');
        }
        s.out.row()?;
        if let Some(failed) = &guest.failed {
            self.problem(s, &format!("{}: {failed}", slot.name), count)?;
        }
        if self.recursive && guest.fs.is_some() {
            match self.tree(s, guest, None, &format!("{}/", slot.name), count) {
                // One volume that can't be listed keeps nobody from the next.
                Err(End::Error(error)) => self.problem(s, &format!("{}: {error}", slot.name), count)?,
                other => other?,
            }
        }
        Ok(())
    }

    /// The contents of a volume or of a directory in it.
    fn tree(
        &self,
        s: &mut Session<'_>,
        guest: &Guest,
        below: Option<ObjectId>,
        prefix: &str,
        count: &mut Count,
    ) -> Result<(), End> {
        let tree = walk(guest)?;
        let scope = Scope { below, recursive: self.recursive, system: self.all };
        let put = |block: &mut Block, visit: &Visit<'_>| self.entry(&mut block.text, visit, &mut block.count);
        listing::walk(&tree, scope, prefix, put, |block| {
            count.add(std::mem::take(&mut block.count));
            s.out.write(&block.text)?;
            block.text.clear();
            Ok::<_, End>(())
        })?;
        for problem in tree.problems() {
            if problem.hides {
                self.problem(s, &problem.what, count)?;
            } else {
                self.note(s, &problem.what)?;
            }
        }
        Ok(())
    }

    fn entry(&self, out: &mut Vec<u8>, visit: &Visit<'_>, count: &mut Count) {
        if self.json {
            listing::json(out, visit);
        } else if self.bodyfile {
            bodyfile::lines(out, visit);
        } else {
            listing::human(out, visit, self.long);
        }
        if self.json {
            count.entries = count.entries.saturating_add(1);
            for stream in visit.tree.streams(visit.id) {
                let info = visit.tree.stream(stream);
                count.bytes = count.bytes.saturating_add(info.size);
                if visit.tree.stream_name(stream).is_some() {
                    count.streams = count.streams.saturating_add(1);
                }
            }
        }
    }

    /// Something that is odd and hides nothing.
    fn note(&self, s: &mut Session<'_>, what: &str) -> Result<(), End> {
        if self.json {
            Row::new(s.out.buffer(), "note").value("what", what).end();
            return Ok(s.out.row()?);
        }
        s.out.flush()?;
        s.out.complain(&format!("note: {what}"));
        Ok(())
    }

    /// Something that could not be read: a row, or a line on standard error.
    fn problem(&self, s: &mut Session<'_>, what: &str, count: &mut Count) -> Result<(), End> {
        count.problems = count.problems.saturating_add(1);
        if self.json {
            Row::new(s.out.buffer(), "problem").value("what", what).end();
            return Ok(s.out.row()?);
        }
        s.out.flush()?;
        s.out.complain(what);
        Ok(())
    }
}

/// The walk of a volume.
pub(super) fn walk(guest: &Guest) -> Result<std::sync::Arc<Tree>, Error> {
    let _progress = Progress::new("reading metadata", None);
    guest.tree()
}

/// The path of a file, of the path of a stream of it.
pub(super) fn file_of<'p>(path: &'p [u8], stream: &[u8]) -> &'p [u8] {
    path.strip_suffix(stream).and_then(|path| path.strip_suffix(b":")).unwrap_or(path)
}

/// The last name of a raw path.
pub(super) fn last(path: &[u8]) -> &[u8] {
    path.rsplit(|b| *b == b'/').next().unwrap_or(path)
}

//! `extract`: files out of an image, onto a mounted file system.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{Args, ValueEnum};

use super::{End, PARTLY, Session, progress, signals, small_pages};
use crate::error::Error;
use crate::extract::{self, Algorithm, Filter, Link, Options, log_beside};
use crate::report::extracted::{Format, Report};

/// Write the files of an image into a directory
///
/// What ADDR names is what comes out: a whole image gives DEST/p1/..., a volume or folder gives its contents in DEST, a
/// file gives DEST/NAME. Where DEST lies on the file system that the image lies on, and that can share blocks between files
/// (XFS, btrfs, ...), files share the blocks of the image and take no space. The image is only read.
#[derive(Args)]
#[command(after_help = "Examples:
  unimage extract disk.raw out
  unimage extract disk.raw//p2/Users/x out --manifest out.jsonl --hash sha256
  unimage extract disk.raw//p1 out --include '*.docx' --exclude 'Windows/**'
  unimage verify out.jsonl out")]
pub struct Extract {
    /// What to extract: a disk, a volume, a directory, a file or a stream
    #[arg(value_name = "ADDR")]
    address: OsString,
    /// The directory to write into; made when it is not there
    #[arg(value_name = "DEST")]
    dest: PathBuf,
    /// Whether files share the blocks of the image
    #[arg(long, value_enum, default_value = "auto")]
    link: LinkArg,
    /// Files that are worked on at once
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    jobs: usize,
    /// Hash every file: sha256, md5, sha1, blake3, several with commas between them
    #[arg(long, value_name = "ALGO", value_delimiter = ',', value_parser = algorithm)]
    hash: Vec<Algorithm>,
    /// Write what became of every file to this new file, outside of DEST
    ///
    /// JSON lines; by the end of its name also .csv, .dfxml, or lines of checksums (.sha256, .md5, ...).
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// Only what matches; a pattern with a / is one of the whole path below ADDR, another one of a name
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// Not what matches, nor what is in such a directory
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// Replace files that are there already, and the manifest
    #[arg(long)]
    overwrite: bool,
    /// What becomes of alternate data streams: attributes of their files, or files beside them
    #[arg(long, value_enum, default_value = "xattrs")]
    streams: Streams,
    /// Go on after an interruption, with the same arguments
    #[arg(long, requires = "manifest")]
    resume: bool,
    /// Print what became of every file, as JSON lines
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum LinkArg {
    /// What can; the rest is copied
    Auto,
    /// What can; the rest is left out
    Always,
    /// Nothing
    Never,
}

#[derive(Clone, Copy, ValueEnum)]
enum Streams {
    /// Extended attributes `user.NAME`, where they fit
    Xattrs,
    /// Files `FILE.stream.NAME`
    Files,
}

fn algorithm(text: &str) -> Result<Algorithm, String> {
    Algorithm::from_word(text).ok_or_else(|| "expected sha256, md5, sha1 or blake3".to_owned())
}

/// The exit code of the run whose manifest ends with this line. Only a summary tells it.
fn ended_as(last: &str) -> u8 {
    let summary: serde_json::Value = serde_json::from_str(last).unwrap_or_default();
    let some = |field: &str| summary.get(field).and_then(serde_json::Value::as_u64).is_some_and(|n| n > 0);
    if ["partial", "failed", "skipped", "problems"].into_iter().any(some) { PARTLY } else { 0 }
}

impl Extract {
    pub(super) fn run(&self, s: &mut Session<'_>) -> Result<u8, End> {
        let options = self.options()?;
        if self.resume
            && let Some(last) = self.complete()?
        {
            s.out.line("Nothing is left to do: the manifest is complete.")?;
            return Ok(ended_as(&last));
        }
        small_pages();
        let stack = s.open(&self.address)?;
        let mut options = options;
        let manifest = self.manifest.as_deref().map(|path| self.open_manifest(path)).transpose()?;
        options.manifest =
            manifest.as_ref().map(File::try_clone).transpose().map_err(|e| Error::io("the manifest", e))?;
        let stop = Arc::new(AtomicBool::new(false));
        let done = {
            let _guard = signals::stop_soon(&stop);
            let bar = progress::Files::new();
            extract::extract(&stack, &self.dest, &options, &stop, &|f, of_f, b, of_b| bar.at(f, of_f, b, of_b))
        };
        let mut done = match done {
            Ok(done) => done,
            Err(error) => {
                // Nothing was written, and so there is nothing to be told in a manifest.
                if let (Some(path), false) = (&self.manifest, self.resume || self.overwrite) {
                    let _ = std::fs::remove_file(path);
                }
                return Err(End::from(error).within(&self.address));
            }
        };
        // What is on the disk now stays there, whoever reads the report of it.
        s.out.never_stop();
        let mut code = 0;
        if let Some(file) = manifest {
            let report = Report { stack: &stack, options: &options, done: &done };
            match write_manifest(file, &report, self.format(), s.args) {
                Ok(()) => done.finish(),
                Err(e) => {
                    s.out.complain(&format!("the manifest is not complete: {e}"));
                    code = PARTLY;
                }
            }
        }
        self.report(s, &Report { stack: &stack, options: &options, done: &done })?;
        if let Some(log) = done.log_path() {
            s.out.complain(&format!("--resume goes on from {}", log.display()));
        }
        let totals = done.totals();
        let whole = totals.is_complete() && !done.interrupted && done.selection.problems.is_empty();
        Ok(if whole { code } else { PARTLY })
    }

    fn options(&self) -> Result<Options, Error> {
        let patterns = |all: &[String]| all.iter().map(|p| Filter::pattern(p)).collect::<Result<Vec<_>, _>>();
        let mut hashes = Vec::new();
        for algorithm in &self.hash {
            if !hashes.contains(algorithm) {
                hashes.push(*algorithm);
            }
        }
        // Lines of checksums need their checksum.
        if let Format::Sums(algorithm) = self.format()
            && !hashes.contains(&algorithm)
        {
            hashes.push(algorithm);
        }
        Ok(Options {
            link: match self.link {
                LinkArg::Auto => Link::Auto,
                LinkArg::Always => Link::Always,
                LinkArg::Never => Link::Never,
            },
            jobs: self.jobs.min(256),
            hashes,
            filter: Filter { include: patterns(&self.include)?, exclude: patterns(&self.exclude)? },
            overwrite: self.overwrite,
            stream_files: matches!(self.streams, Streams::Files),
            manifest: None,
            log: self.manifest.as_deref().map(|m| (log_beside(m), self.resume)),
        })
    }
    fn format(&self) -> Format {
        self.manifest.as_deref().map_or(Format::Json, Format::of)
    }

    /// The last line of a whole manifest; none where there is no such, or a log of something that is left to do.
    fn complete(&self) -> Result<Option<String>, Error> {
        let Some(path) = &self.manifest else { return Ok(None) };
        if log_beside(path).exists() {
            return Ok(None);
        }
        let Ok(file) = File::open(path) else { return Ok(None) };
        let lines = BufReader::new(file).lines();
        let last = lines.map_while(Result::ok).last().unwrap_or_default();
        let whole = match self.format() {
            Format::Json => last.starts_with("{\"type\":\"summary\""),
            Format::Dfxml => last == "</dfxml>",
            Format::Csv | Format::Sums(_) => !last.is_empty(),
        };
        if !whole && !last.is_empty() {
            return Err(Error::Refused(format!("{}: it is no manifest that could be gone on from", path.display())));
        }
        Ok(Some(last).filter(|_| whole))
    }

    /// A new file, or the one of the run that is gone on from.
    fn open_manifest(&self, path: &Path) -> Result<File, Error> {
        let mut options = File::options();
        options.write(true).custom_flags(libc::O_NOFOLLOW);
        if self.resume || self.overwrite {
            options.create(true);
        } else {
            options.create_new(true);
        }
        let file = options.open(path).map_err(|e| {
            if e.kind() == std::io::ErrorKind::AlreadyExists {
                let path = path.display();
                return Error::Refused(format!(
                    "{path} is there already: --resume goes on from it, --overwrite replaces it"
                ));
            }
            Error::io(format!("making the manifest {}", path.display()), e)
        })?;
        if self.overwrite && !self.resume {
            let failed = |e| Error::io(format!("emptying the manifest {}", path.display()), e);
            file.set_len(0).map_err(failed)?;
            let _ = std::fs::remove_file(log_beside(path));
        }
        Ok(file)
    }

    fn report(&self, s: &mut Session<'_>, report: &Report<'_>) -> Result<(), End> {
        if self.json {
            report.begin(s.out.buffer(), Format::Json, s.args);
            report.rows(Format::Json, |block| {
                s.out.buffer().append(block);
                s.out.row()
            })?;
            report.end(s.out.buffer(), Format::Json);
        } else {
            report.human(s.out.buffer());
        }
        s.out.flush()?;
        report.complaints(|what| s.out.complain(what));
        Ok(())
    }
}

/// Writes a manifest from its beginning, and makes it durable.
fn write_manifest(file: File, report: &Report<'_>, format: Format, command: &[OsString]) -> std::io::Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, file);
    file.seek(SeekFrom::Start(0))?;
    let mut text = Vec::new();
    report.begin(&mut text, format, command);
    file.write_all(&text)?;
    report.rows(format, |block| {
        let written = file.write_all(block);
        block.clear();
        written
    })?;
    text.clear();
    report.end(&mut text, format);
    file.write_all(&text)?;
    let len = file.stream_position()?;
    let file = file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    // What an earlier run wrote, and room that was not needed.
    file.set_len(len)?;
    file.sync_all()
}

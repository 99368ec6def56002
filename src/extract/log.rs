//! The log of a run, beside its manifest: which jobs were begun and which are done, so that a run that was killed can go on.
//!
//! It is a file of JSON lines. The first says of what it is the log; a job is written down before the first of its files is made, and
//! once more, with what became of its items, when the last one is closed. A line that is not complete counts as none. What belongs to
//! a job that was begun and not done may be half a file; it is removed before it is made anew.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::hash::{hex, unhex};
use super::outcome::{Detail, Lost, Method, Outcome, Why};
use crate::error::{Error, Result};

/// Bytes that an item takes in the log, more or less: reserved, so that a full file system can't stop it.
const ITEM: u64 = 96;

#[derive(Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Line {
    Header {
        schema: String,
        /// Of what is extracted, and how.
        digest: String,
        /// When it began, seconds and nanoseconds: what is older is not this run's.
        began: (i64, u32),
    },
    Begun {
        job: u32,
    },
    Done {
        job: u32,
        items: Vec<Entry>,
    },
}

/// Item, method, reason, lost, shared, copied, extents; hash, message, bad stretches.
#[derive(Serialize, Deserialize)]
struct Entry(u32, u8, Option<String>, u8, u64, u64, u32, String, String, Vec<(u64, u64)>);

const SCHEMA: &str = "unimage/extract-log/1";

/// What became of an item, with everything that few have.
#[derive(Debug)]
pub(super) struct Record {
    pub item: u32,
    pub outcome: Outcome,
    pub hash: Option<Vec<u8>>,
    pub detail: Option<Detail>,
}

/// The log of this run: its file, or why it ended.
pub(super) struct Log {
    file: Mutex<std::result::Result<File, Errno>>,
    path: PathBuf,
}

/// What the log of an earlier run says.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    /// When the first run began.
    pub began: (i64, u32),
    /// Jobs that were begun; of some of them everything is done.
    pub begun: std::collections::BTreeSet<u32>,
    /// What is done.
    pub records: Vec<Record>,
}

/// The log that belongs to a manifest.
pub fn beside(manifest: &Path) -> PathBuf {
    let mut name = manifest.as_os_str().to_owned();
    name.push(".log");
    name.into()
}

impl Log {
    /// Begins the log of a run of so many items. It must not exist.
    pub fn create(path: PathBuf, digest: &str, began: (i64, u32), items: usize) -> Result<Self> {
        let failed = |e: std::io::Error| Error::io(format!("making the log {}", path.display()), e);
        let mut file = File::options().append(true).create_new(true).open(&path).map_err(failed)?;
        reserve(&file, 0, (items as u64).saturating_mul(ITEM).saturating_add(4096)).map_err(failed)?;
        let header = Line::Header { schema: SCHEMA.into(), digest: digest.into(), began };
        file.write_all(&line(&header)).map_err(failed)?;
        Ok(Self { file: Mutex::new(Ok(file)), path })
    }
    /// Reads the log of an earlier run and goes on with it. None where there is none.
    ///
    /// # Errors
    /// [`Error::Refused`] where it is the log of something else.
    pub fn resume(path: PathBuf, digest: &str) -> Result<Option<(Self, Earlier)>> {
        let failed = |e: std::io::Error| Error::io(format!("reading the log {}", path.display()), e);
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd: OwnedFd = match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(failed(e.into())),
        };
        let file = File::from(fd);
        let mut earlier = None;
        let mut good = 0u64;
        let mut text = Vec::new();
        let mut reader = BufReader::new(&file);
        loop {
            text.clear();
            let n = reader.read_until(b'\n', &mut text).map_err(failed)?;
            if n == 0 || text.last() != Some(&b'\n') {
                break;
            }
            let Ok(line) = serde_json::from_slice::<Line>(&text) else { break };
            match (line, &mut earlier) {
                (Line::Header { schema, digest: of, began }, None) => {
                    if schema != SCHEMA || of != digest {
                        return Err(Error::Refused(format!(
                            "{} is the log of another extraction: of another image, part of it or destination, or with other \
                             options; give the same ones, or a new manifest",
                            path.display()
                        )));
                    }
                    earlier = Some(Earlier { began, ..Earlier::default() });
                }
                (Line::Begun { job }, Some(earlier)) => drop(earlier.begun.insert(job)),
                (Line::Done { items, .. }, Some(earlier)) => {
                    earlier.records.extend(items.into_iter().filter_map(record))
                }
                _ => break,
            }
            good = good.saturating_add(n as u64);
        }
        let Some(earlier) = earlier else {
            if good == 0 && !text.ends_with(b"\n") {
                // It was killed before it had a first line, and so before anything was made.
                std::fs::remove_file(&path).map_err(failed)?;
                return Ok(None);
            }
            return Err(Error::Refused(format!(
                "{} is no log of an extraction: remove it to begin anew",
                path.display()
            )));
        };
        // What was torn is cut off, so that the next line begins a line.
        file.set_len(good).map_err(failed)?;
        Ok(Some((Self { file: Mutex::new(Ok(file)), path }, earlier)))
    }
    fn put(&self, what: &Line) -> std::result::Result<(), Errno> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // A log that can't be kept any more ends here, so that nothing stands behind a line that is torn.
        if let Err(e) = file.as_mut().map_err(|e| *e)?.write_all(&line(what)) {
            *file = Err(Errno::from_io_error(&e).unwrap_or(Errno::IO));
        }
        file.as_ref().map_or_else(|e| Err(*e), |_| Ok(()))
    }
    /// Whether everything is in it.
    pub fn is_whole(&self) -> bool {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).is_ok()
    }
    /// A job is about to make its first file.
    ///
    /// # Errors
    /// Why that can't be written down: then the job must not begin, as a resumed run would take its files for somebody else's.
    pub fn begun(&self, job: u32) -> std::result::Result<(), Errno> {
        self.put(&Line::Begun { job })
    }
    /// A job is done. Where that can't be written down, a resumed run does it again.
    pub fn done(&self, job: u32, records: &[Record]) {
        let items = records.iter().map(entry).collect();
        let _ = self.put(&Line::Done { job, items });
    }
    /// Everything is done, and in the manifest.
    pub fn remove(self) {
        let _ = std::fs::remove_file(&self.path);
    }
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Reserves room in a file behind `at` without making it longer. Only "no space" counts as a failure: not every file system can.
pub(super) fn reserve(file: &File, at: u64, len: u64) -> std::io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, at, len) {
        Err(e @ (Errno::NOSPC | Errno::DQUOT)) => Err(e.into()),
        _ => Ok(()),
    }
}

fn line(line: &Line) -> Vec<u8> {
    // There is no key that is no string; a log line that could not be made is one that is not there.
    let mut text = serde_json::to_vec(line).unwrap_or_default();
    text.push(b'\n');
    text
}

fn entry(record: &Record) -> Entry {
    let Outcome { method, why, lost, shared, copied, extents } = record.outcome;
    let detail = record.detail.clone().unwrap_or_default();
    Entry(
        record.item,
        method.number(),
        why.map(|w| w.word().to_owned()),
        lost.0,
        shared,
        copied,
        extents,
        record.hash.as_deref().map(hex).unwrap_or_default(),
        detail.message,
        detail.bad,
    )
}

fn record(entry: Entry) -> Option<Record> {
    let Entry(item, method, why, lost, shared, copied, extents, hash, message, bad) = entry;
    let outcome = Outcome {
        method: Method::from_number(method)?,
        why: why.and_then(|w| Why::from_word(&w)),
        lost: Lost(lost),
        shared,
        copied,
        extents,
    };
    let detail = (!message.is_empty() || !bad.is_empty()).then_some(Detail { message, bad });
    let hash = if hash.is_empty() { None } else { Some(unhex(&hash)?) };
    Some(Record { item, outcome, hash, detail })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_was_torn_anywhere_is_read_up_to_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.log");
        let log = Log::create(path.clone(), "d", (7, 8), 10).unwrap();
        let outcome = Outcome { shared: 5, ..Outcome::of(Method::Reflink, Some(Why::Misaligned)) };
        let detail = Some(Detail { message: "bad".into(), bad: vec![(1, 2)] });
        for job in 0..3 {
            log.begun(job).unwrap();
            log.done(job, &[Record { item: job, outcome, hash: Some(vec![1, 255]), detail: detail.clone() }]);
        }
        assert!(log.is_whole());
        drop(log);
        let all = std::fs::read(&path).unwrap();
        for len in 0..=all.len() {
            std::fs::write(&path, &all[..len]).unwrap();
            let lines = all[..len].iter().filter(|b| **b == b'\n').count();
            match Log::resume(path.clone(), "d") {
                Ok(Some((_, earlier))) => {
                    assert_eq!((earlier.began, earlier.begun.len()), ((7, 8), lines / 2));
                    assert_eq!(earlier.records.len(), (lines - 1) / 2);
                    assert!(earlier.records.iter().all(|r| r.outcome == outcome && r.detail == detail));
                    assert!(earlier.records.iter().all(|r| r.hash == Some(vec![1, 255])));
                    assert!(std::fs::read(&path).unwrap().iter().filter(|b| **b == b'\n').count() == lines);
                }
                Ok(None) => assert!(lines == 0 && !path.exists()),
                Err(e) => panic!("{len}: {e}"),
            }
        }
        std::fs::write(&path, b"something else\n").unwrap();
        assert_eq!(Log::resume(path.clone(), "d").err().unwrap().exit_code(), 4);
        std::fs::write(&path, &all).unwrap();
        assert_eq!(Log::resume(path.clone(), "other").err().unwrap().exit_code(), 4);
        assert!(Log::resume(dir.path().join("gone"), "d").unwrap().is_none());
    }
}

//! One extraction from its beginning to its end.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::Mode;

use super::dest::{self, Dest};
use super::ground::Grounds;
use super::jobs::{self, Jobs, SMALL};
use super::keep::Who;
use super::log::{self, Earlier, Log, Record};
use super::outcome::{Detail, Method, Outcome, Results, Why};
use super::recipe::{How, Site};
use super::select::{DirAt, Item, Selection, Shape, Source};
use super::{Extracted, Link, Options, Progress};
use crate::error::{Error, Result};
use crate::extent::{LayerId, Map};
use crate::stack::Stack;

/// What all threads of a run share.
pub(super) struct Run<'r> {
    pub options: &'r Options,
    pub selection: &'r Selection,
    pub dest: &'r Dest,
    pub grounds: &'r Grounds,
    pub who: Who,
    pub jobs: &'r Jobs,
    pub log: Option<&'r Log>,
    /// Bytes of a block by which ground files can be shared, one for each; none where they can't.
    shares: Vec<Option<u64>>,
    stop: &'r AtomicBool,
    /// What was begun by an earlier run, and since when; what it left of these is removed.
    pub began: (i64, u32),
    pub begun: BTreeSet<u32>,
    /// Directories that were there before: they keep what they have.
    pub there: Mutex<BTreeSet<DirAt>>,
    /// Directories that could not be made.
    pub absent: Mutex<BTreeSet<DirAt>>,
    pub results: Mutex<Results>,
    no_kernel_copies: AtomicBool,
    pub files_done: AtomicU64,
    pub bytes_done: AtomicU64,
    pub files: u64,
    pub progress: Progress<'r>,
}

/// Puts the umask back.
struct Umask(Mode);

impl Drop for Umask {
    fn drop(&mut self) {
        rustix::process::umask(self.0);
    }
}

/// See [`super::extract`].
pub(super) fn run(
    stack: &Stack,
    path: &Path,
    options: &Options,
    stop: &AtomicBool,
    progress: Progress<'_>,
) -> Result<Extracted> {
    let grounds = Grounds::open(stack)?;
    let dest = Dest::open(path)?;
    let mut not_shared = None;
    let shares: Vec<Option<u64>> = match options.link {
        Link::Never => grounds.iter().map(|_| None).collect(),
        _ => grounds
            .iter()
            .map(|ground| match dest.cannot_share(ground) {
                None => Some(dest.block),
                Some(why) => {
                    not_shared.get_or_insert(why);
                    None
                }
            })
            .collect(),
    };
    if shares.is_empty() && options.link != Link::Never {
        not_shared = Some("the image lies in no single file".into());
    }
    if shares.iter().any(Option::is_some) {
        not_shared = None;
    }
    if options.link == Link::Always
        && let Some(why) = &not_shared
    {
        return Err(Error::Refused(format!("--link always: nothing can be shared: {why}")));
    }
    let selection = Selection::new(stack, &options.filter, dest.names, options.stream_files)?;
    let jobs = Jobs::new(&selection, &grounds);
    if let Some(manifest) = &options.manifest {
        let room = (selection.items.len() as u64).saturating_mul(super::ROW).saturating_add(1 << 16);
        log::reserve(manifest, 0, room).map_err(|e| Error::io("reserving room for the manifest", e))?;
    }
    let umask = Umask(rustix::process::umask(Mode::empty()));
    let (log, earlier) = open_log(path, options, &selection)?;
    let width: usize = options.hashes.iter().map(|a| a.bytes()).sum();
    let mut results = Results { outcomes: vec![Outcome::default(); selection.items.len()], ..Results::default() };
    if width > 0 {
        results.hashes = vec![0; width.saturating_mul(selection.items.len())];
        results.hashed = vec![false; selection.items.len()];
    }
    let Earlier { began, begun, records } = earlier;
    for record in records {
        // What failed is tried again.
        if !matches!(record.outcome.method, Method::Failed | Method::Pending) {
            keep_record(&mut results, record);
        }
    }
    let run = Run {
        options,
        selection: &selection,
        dest: &dest,
        grounds: &grounds,
        who: Who::new(umask.0),
        jobs: &jobs,
        log: log.as_ref(),
        shares,
        stop,
        began,
        begun,
        there: Mutex::default(),
        absent: Mutex::default(),
        results: Mutex::new(results),
        no_kernel_copies: AtomicBool::new(false),
        files_done: AtomicU64::new(0),
        bytes_done: AtomicU64::new(0),
        files: jobs.order.len() as u64,
        progress,
    };
    if options.link == Link::Always && run.nothing_shareable() {
        if dest.made {
            // It is empty: we made it.
            let _ = std::fs::remove_dir(path);
        }
        if let Some(log) = log {
            log.remove();
        }
        let why = "not one file lies so in the image that all of it can be shared";
        return Err(Error::Refused(format!("--link always: nothing can be shared: {why}")));
    }
    let locks = run.directories();
    run.work(0..jobs.files, &locks);
    run.work(jobs.files..jobs.jobs.len(), &locks);
    let interrupted = run.stopped();
    if !interrupted {
        run.finish_directories();
    }
    run.leave_out();
    let results = run.results.into_inner().unwrap_or_else(PoisonError::into_inner);
    drop(umask);
    Ok(Extracted { selection, results, not_shared, interrupted, log })
}

/// The log, new or gone on with.
fn open_log(dest: &Path, options: &Options, selection: &Selection) -> Result<(Option<Log>, Earlier)> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    let began = (now.tv_sec, u32::try_from(now.tv_nsec).unwrap_or(0));
    let fresh = Earlier { began, ..Earlier::default() };
    let Some((path, resume)) = &options.log else { return Ok((None, fresh)) };
    let digest = digest(dest, options, selection);
    if *resume && let Some((log, earlier)) = Log::resume(path.clone(), &digest)? {
        return Ok((Some(log), earlier));
    }
    Ok((Some(Log::create(path.clone(), &digest, began, selection.items.len())?), fresh))
}

/// What a log belongs to: the walks, the names, the destination and the options.
fn digest(dest: &Path, options: &Options, selection: &Selection) -> String {
    let mut hash = blake3::Hasher::new();
    let dest = std::path::absolute(dest).unwrap_or_else(|_| dest.to_owned());
    let hashes: Vec<_> = options.hashes.iter().map(|a| a.word()).collect();
    let about = format!("{dest:?} {:?} {hashes:?} {} {}", options.link, options.stream_files, selection.items.len());
    hash.update(about.as_bytes());
    for source in &selection.volumes {
        hash.update(&crate::relink::digest::of_tree(&source.tree));
    }
    for item in &selection.items {
        let entry = item.entry.map_or(u32::MAX, |e| u32::try_from(e.index()).unwrap_or(u32::MAX));
        hash.update(&entry.to_le_bytes());
    }
    hash.finalize().to_hex().to_string()
}

fn keep_record(results: &mut Results, record: Record) {
    let at = record.item as usize;
    if let Some(slot) = results.outcomes.get_mut(at) {
        *slot = record.outcome;
    }
    if let Some(detail) = record.detail {
        results.details.insert(record.item, detail);
    }
    if let (Some(hash), Some(slot)) = (record.hash, results.hashed.get_mut(at)) {
        let from = at.saturating_mul(hash.len());
        if let Some(room) = results.hashes.get_mut(from..from.saturating_add(hash.len())) {
            room.copy_from_slice(&hash);
            *slot = true;
        }
    }
}

impl Run<'_> {
    /// Whether the run is to end.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
    /// Whether any ground file can be shared.
    pub fn shares(&self) -> bool {
        self.shares.iter().any(Option::is_some)
    }
    /// Whether the kernel may have a way of its own to copy: network file systems let the server do it.
    pub fn kernel_copies(&self) -> bool {
        self.dest.sync_each && !self.no_kernel_copies.load(Ordering::Relaxed)
    }
    pub fn no_kernel_copies(&self) {
        self.no_kernel_copies.store(true, Ordering::Relaxed);
    }
    pub fn done_bytes(&self, bytes: u64) {
        let done = self.bytes_done.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if bytes >= SMALL {
            (self.progress)(self.files_done.load(Ordering::Relaxed), self.files, done, self.jobs.bytes);
        }
    }
    pub fn site(&self, layer: LayerId) -> Option<Site> {
        let ground = self.grounds.find(layer)?;
        let block = self.shares.get(ground).copied().flatten();
        // XFS gives the end of a file that is cut a block of its own: then copying it is less work.
        let round_up = self.options.link == Link::Always || self.dest.magic != dest::XFS;
        Some(Site { ground, len: self.grounds.get(ground)?.len, block, round_up })
    }
    /// Whether this run goes on from an earlier one.
    pub fn is_resumed(&self) -> bool {
        self.options.log.as_ref().is_some_and(|(_, resume)| *resume)
    }
    pub fn item(&self, at: u32) -> Option<(&Item, &Source)> {
        let item = self.selection.items.get(at as usize)?;
        Some((item, self.selection.source(item)?))
    }
    /// Whether an item was done by an earlier run.
    pub fn is_done(&self, at: u32) -> bool {
        if !self.is_resumed() {
            return false;
        }
        let results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        results.outcomes.get(at as usize).is_some_and(|o| o.method != Method::Pending)
    }
    /// What became of an item so far.
    pub fn outcome(&self, at: u32) -> Outcome {
        let results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        results.outcomes.get(at as usize).copied().unwrap_or_default()
    }
    pub fn keep(&self, records: impl IntoIterator<Item = Record>) {
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        records.into_iter().for_each(|r| keep_record(&mut results, r));
    }

    /// Whether there are files with bytes, and none of them can be shared as a whole.
    fn nothing_shareable(&self) -> bool {
        let mut parts = Vec::new();
        let mut map = Map::new();
        let mut bytes = false;
        for item in self.selection.items.iter().filter(|i| i.shape == Shape::File) {
            let Some(source) = self.selection.source(item) else { continue };
            parts.clear();
            jobs::parts(source, item, |l| self.site(l), &mut map, &mut parts);
            if parts.iter().any(|p| matches!(p.how, How::Share(..)))
                && !parts.iter().any(|p| matches!(p.how, How::Copy(..) | How::Decode))
            {
                return false;
            }
            bytes |= !parts.is_empty();
        }
        bytes
    }

    /// Says of everything that is not written why.
    fn leave_out(&self) {
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let results = &mut *results;
        for (at, item) in (0u32..).zip(&self.selection.items) {
            let of = match item.shape {
                Shape::Xattr(of) => results.outcomes.get(of as usize).map(|o| o.method),
                _ => None,
            };
            let Some(outcome) = results.outcomes.get_mut(at as usize) else { continue };
            if let Shape::Left(why) = item.shape {
                *outcome = Outcome::of(Method::Skipped, Some(why));
                if let Some(what) = self.selection.source(item).and_then(|s| s.damaged.get(&item.object)) {
                    results.details.insert(at, Detail { message: what.clone(), bad: Vec::new() });
                }
            } else if outcome.method == Method::Pending {
                *outcome = match of {
                    Some(Method::Failed | Method::Skipped) => Outcome::of(Method::Skipped, Some(Why::FileMissing)),
                    _ => Outcome::of(Method::Pending, Some(Why::Interrupted)),
                };
            }
        }
    }
}

//! One extraction from its beginning to its end.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;

use super::dest::{self, Dest, DirFd};
use super::file::{Copy, Stop, Window};
use super::ground::Grounds;
use super::jobs::{self, Job, Jobs, SMALL};
use super::keep::{self, Who};
use super::log::{self, Earlier, Log, Record};
use super::outcome::{Detail, Method, Outcome, Results, Why};
use super::recipe::{How, Part, Site};
use super::select::{DirAt, Item, Selection, Shape, Source};
use super::{Extracted, Link, Options, Progress};
use crate::error::{Error, Result};
use crate::extent::{LayerId, Map};
use crate::stack::Stack;

/// Bytes between two pieces of a window that are read with them, each and in all.
const GAP: u64 = 16 << 10;
const GAPS: u64 = 1 << 20;

/// What all threads of a run share.
pub(super) struct Run<'r> {
    pub options: &'r Options,
    pub selection: &'r Selection,
    pub dest: &'r Dest,
    pub grounds: &'r Grounds,
    pub who: Who,
    jobs: &'r Jobs,
    log: Option<&'r Log>,
    /// Bytes of a block by which ground files can be shared, one for each; none where they can't.
    shares: Vec<Option<u64>>,
    stop: &'r AtomicBool,
    /// What was begun by an earlier run, and since when; what it left of these is removed.
    began: (i64, u32),
    begun: BTreeSet<u32>,
    /// Directories that were there before: they keep what they have.
    there: Mutex<BTreeSet<DirAt>>,
    /// Directories that could not be made.
    absent: Mutex<BTreeSet<DirAt>>,
    results: Mutex<Results>,
    no_kernel_copies: AtomicBool,
    next: AtomicUsize,
    files_done: AtomicU64,
    bytes_done: AtomicU64,
    files: u64,
    progress: Progress<'r>,
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
        next: AtomicUsize::new(0),
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
    run.directories();
    run.work(0..jobs.files);
    run.work(jobs.files..jobs.jobs.len());
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

/// What a thread uses again and again.
#[derive(Default)]
struct Scratch {
    map: Map<crate::extent::Stream, crate::extent::Device>,
    parts: Vec<Part>,
    window: Window,
    buf: Vec<u8>,
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
    pub fn kernel_copies(&self) -> bool {
        !self.no_kernel_copies.load(Ordering::Relaxed)
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
    fn site(&self, layer: LayerId) -> Option<Site> {
        let ground = self.grounds.find(layer)?;
        let block = self.shares.get(ground).copied().flatten();
        // XFS gives the end of a file that is cut a block of its own: then copying it is less work.
        let round_up = self.options.link == Link::Always || self.dest.magic != dest::XFS;
        Some(Site { ground, len: self.grounds.get(ground)?.len, block, round_up })
    }
    pub fn item(&self, at: u32) -> Option<(&Item, &Source)> {
        let item = self.selection.items.get(at as usize)?;
        Some((item, self.selection.source(item)?))
    }
    /// Whether an item was done by an earlier run.
    pub fn is_done(&self, at: u32) -> bool {
        let results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        results.outcomes.get(at as usize).is_some_and(|o| o.method != Method::Pending)
    }
    /// What became of an item so far.
    pub fn outcome(&self, at: u32) -> Outcome {
        let results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        results.outcomes.get(at as usize).copied().unwrap_or_default()
    }
    fn keep(&self, records: impl IntoIterator<Item = Record>) {
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

    /// Makes all directories, parents first.
    fn directories(&self) {
        for (at, item) in (0u32..).zip(&self.selection.items) {
            let Shape::Dir(dir) = item.shape else { continue };
            if dir == DirAt::ROOT {
                if !self.dest.made && !self.is_ours_root() {
                    self.set_there(dir);
                }
                continue;
            }
            if let Err((why, text)) = self.directory(at, item, dir) {
                self.absent.lock().unwrap_or_else(PoisonError::into_inner).insert(dir);
                let detail = Some(Detail { message: text, bad: Vec::new() });
                self.keep([Record { item: at, outcome: Outcome::of(Method::Failed, Some(why)), hash: None, detail }]);
            }
        }
    }
    /// Whether an earlier run that this one goes on from made the destination.
    fn is_ours_root(&self) -> bool {
        let root = self.dest.dir(self.selection, DirAt::ROOT);
        !self.begun.is_empty() && root.is_ok_and(|fd| dest::made_at(&fd, b".").is_ok_and(|t| t >= self.began))
    }
    fn set_there(&self, dir: DirAt) {
        self.there.lock().unwrap_or_else(PoisonError::into_inner).insert(dir);
    }
    fn is_in(set: &Mutex<BTreeSet<DirAt>>, dir: DirAt) -> bool {
        let set = set.lock().unwrap_or_else(PoisonError::into_inner);
        !set.is_empty() && set.contains(&dir)
    }
    fn directory(&self, at: u32, item: &Item, dir: DirAt) -> Result<(), (Why, String)> {
        let above = self.dir_for(item)?;
        let name = self.selection.name_of(at);
        let mode = Mode::RWXU;
        let failed = |e: Errno| {
            let (outcome, text) = Stop::Write(e).outcome();
            (outcome.why.unwrap_or(Why::WriteFailed), text)
        };
        match rustix::fs::mkdirat(&above, name, mode) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => {
                let is_dir = dest::kind_of(&above, name) == Some(FileType::Directory);
                if is_dir {
                    if !(self.is_resumed() && dest::made_at(&above, name).is_ok_and(|t| t >= self.began)) {
                        self.set_there(dir);
                    }
                    return Ok(());
                }
                if !self.options.overwrite {
                    return Err((Why::Exists, "something that is no directory is there".into()));
                }
                rustix::fs::unlinkat(&above, name, AtFlags::empty()).map_err(failed)?;
                rustix::fs::mkdirat(&above, name, mode).map_err(failed)
            }
            Err(e) => Err(failed(e)),
        }
    }
    fn is_resumed(&self) -> bool {
        self.options.log.as_ref().is_some_and(|(_, resume)| *resume)
    }
    /// The open directory that an item goes to.
    pub fn dir_for(&self, item: &Item) -> Result<DirFd, (Why, String)> {
        if Self::is_in(&self.absent, item.dir) {
            return Err((Why::NoDirectory, "its directory could not be made".into()));
        }
        self.dest.dir(self.selection, item.dir).map_err(|e| (Why::NoDirectory, format!("its directory: {e}")))
    }

    /// Does these jobs, several at once.
    fn work(&self, range: std::ops::Range<usize>) {
        self.next.store(range.start, Ordering::SeqCst);
        let threads = match self.options.jobs {
            0 => std::thread::available_parallelism().map_or(4, |n| n.get().saturating_mul(2).clamp(2, 16)),
            n => n,
        };
        let threads = threads.min(range.len()).max(1);
        std::thread::scope(|scope| {
            for _ in 1..threads {
                // Where no thread is to be had, those that are there do it all.
                let _ = std::thread::Builder::new().spawn_scoped(scope, || self.worker(range.end, threads));
            }
            self.worker(range.end, threads);
        });
    }
    fn worker(&self, end: usize, threads: usize) {
        let mut scratch = Scratch::default();
        let mut records = Vec::new();
        loop {
            let at = self.next.fetch_add(1, Ordering::SeqCst);
            let (Some(job), false) = (self.jobs.jobs.get(at).filter(|_| at < end), self.stopped()) else { return };
            let soon = self.jobs.jobs.get(at.saturating_add(threads)).and_then(|j| j.place);
            if let Some((ground, from, len)) = soon
                && let Some(ground) = self.grounds.get(ground as usize)
            {
                ground.soon(from, len);
            }
            let number = u32::try_from(at).unwrap_or(u32::MAX);
            let items = self.jobs.items(*job);
            let todo: Vec<u32> = items.iter().copied().filter(|at| !self.is_done(*at)).collect();
            if !todo.is_empty() {
                let again = self.begun.contains(&number);
                records.clear();
                if let Some(Err(e)) = self.log.map(|log| log.begun(number)) {
                    let (outcome, why) = Stop::from(e).outcome();
                    let detail = Some(Detail { message: format!("the log of the run: {why}"), bad: Vec::new() });
                    let failed = |at: &u32| Record { item: *at, outcome, hash: None, detail: detail.clone() };
                    records.extend(todo.iter().map(failed));
                } else if at < self.jobs.files {
                    self.files(*job, &todo, again, &mut scratch, &mut records);
                } else {
                    todo.iter().for_each(|at| records.push(self.tail(*at, again)));
                }
                // What was not done for the end of the run is no news.
                records.retain(|r| r.outcome.method != Method::Pending);
                if let Some(log) = self.log {
                    log.done(number, &records);
                }
                self.keep(records.drain(..));
            }
            let files =
                self.files_done.fetch_add(items.len() as u64, Ordering::Relaxed).saturating_add(items.len() as u64);
            (self.progress)(files, self.files, self.bytes_done.load(Ordering::Relaxed), self.jobs.bytes);
        }
    }

    /// The files of one job.
    fn files(&self, job: Job, todo: &[u32], again: bool, scratch: &mut Scratch, records: &mut Vec<Record>) {
        scratch.parts.clear();
        let mut ranges = Vec::with_capacity(todo.len());
        for at in todo {
            let from = scratch.parts.len();
            if let Some((item, source)) = self.item(*at) {
                jobs::parts(source, item, |l| self.site(l), &mut scratch.map, &mut scratch.parts);
            }
            ranges.push(from..scratch.parts.len());
        }
        let small = job.to.saturating_sub(job.from) > 1
            || todo.iter().all(|at| {
                self.item(*at).is_some_and(|(i, s)| i.stream.is_none_or(|id| s.tree.stream(id).size <= SMALL))
            });
        let mut window = std::mem::take(&mut scratch.window);
        window.reads.clear();
        if small {
            self.read_window(&scratch.parts, &mut window);
        }
        for (at, range) in todo.iter().zip(ranges) {
            if self.stopped() {
                break;
            }
            let parts = scratch.parts.get(range).unwrap_or_default();
            self.file(*at, parts, small.then_some(&window), again, &mut scratch.buf, records);
        }
        scratch.window = window;
    }

    /// Reads the bytes of all parts that are to be had as they are, in the order of their places, in as few reads as can be.
    fn read_window(&self, parts: &[Part], window: &mut Window) {
        let hashed = !self.options.hashes.is_empty();
        let mut wanted: Vec<(usize, u64, u64)> = parts
            .iter()
            .filter_map(|p| match p.how {
                How::Copy(g, at) => Some((g, at, p.len)),
                How::Share(g, at) if hashed => Some((g, at, p.len)),
                _ => None,
            })
            .collect();
        wanted.sort_unstable();
        let (mut place, mut gaps) = (0usize, 0u64);
        for (ground, at, len) in wanted {
            let end = at.saturating_add(len);
            if let Some((g, start, have, ..)) = window.reads.last_mut()
                && *g == ground
                && let reached = start.saturating_add(*have as u64)
                && let gap = at.saturating_sub(reached)
                && gap <= GAP
                && gaps.saturating_add(gap) <= GAPS
            {
                let more = usize::try_from(end.saturating_sub(reached)).unwrap_or(0);
                gaps = gaps.saturating_add(gap);
                *have = have.saturating_add(more);
                place = place.saturating_add(more);
                continue;
            }
            let len = usize::try_from(len).unwrap_or(0);
            window.reads.push((ground, at, len, place, false));
            place = place.saturating_add(len);
        }
        if window.buf.len() < place {
            window.buf.resize(place, 0);
        }
        for (ground, at, len, place, good) in &mut window.reads {
            let room = window.buf.get_mut(*place..place.saturating_add(*len));
            *good = match (self.grounds.get(*ground), room) {
                (Some(ground), Some(room)) => ground.read(*at, room).is_ok(),
                _ => false,
            };
        }
    }

    /// The parts of one file.
    pub fn parts_of(&self, source: &Source, item: &Item) -> Vec<Part> {
        let mut parts = Vec::new();
        jobs::parts(source, item, |l| self.site(l), &mut Map::new(), &mut parts);
        parts
    }

    /// One file, and the streams that are attributes of it.
    pub fn file(
        &self,
        at: u32,
        parts: &[Part],
        window: Option<&Window>,
        again: bool,
        buf: &mut Vec<u8>,
        records: &mut Vec<Record>,
    ) {
        let Some((item, source)) = self.item(at) else { return };
        let record = |outcome, message: String| {
            let detail = (!message.is_empty()).then_some(Detail { message, bad: Vec::new() });
            Record { item: at, outcome, hash: None, detail }
        };
        if self.options.link == Link::Always && parts.iter().any(|p| matches!(p.how, How::Copy(..) | How::Decode)) {
            let outcome = Outcome::of(Method::Skipped, Some(Why::NotShareable));
            records.push(record(outcome, "not all of it can be shared".into()));
            return;
        }
        let name = self.selection.name_of(at);
        let dir = match self.dir_for(item) {
            Ok(dir) => dir,
            Err((why, text)) => return records.push(record(Outcome::of(Method::Failed, Some(why)), text)),
        };
        let object = source.tree.object(item.object);
        let (mode, later) = keep::first_mode(self, source, item);
        let later = later.then(|| keep::mode_of(self.who, object, keep::FILE));
        let made = self.make(&dir, name, again, || self.dest.create(&dir, name, mode));
        let file = match made {
            Ok(file) => file,
            Err(e) => {
                let (outcome, text) = Stop::Write(e).outcome();
                return records.push(record(outcome, text));
            }
        };
        let mut hash = None;
        let mut bad = Vec::new();
        let mut message = String::new();
        let written = match item.stream {
            None => Ok(Outcome::of(Method::Made, Some(Why::Empty))),
            Some(stream) => {
                let mut copy = Copy::new(self, source, stream, parts);
                let written = copy.write(&file, parts, window, buf);
                hash = copy.hashes();
                let nothing = copy.nothing_read();
                (bad, message) = (std::mem::take(&mut copy.bad), std::mem::take(&mut copy.message));
                match written {
                    Ok(()) if nothing => Err((Outcome::of(Method::Failed, Some(Why::Unreadable)), message.clone())),
                    Ok(()) => Ok(copy.outcome),
                    Err(stop) => Err(stop.outcome()),
                }
            }
        };
        let synced = |outcome| match self.dest.sync_each.then(|| rustix::fs::fsync(&file)) {
            Some(Err(e)) => Err(Stop::Write(e).outcome()),
            _ => Ok(outcome),
        };
        let mut outcome = match written.and_then(synced) {
            Ok(outcome) => outcome,
            Err((outcome, text)) => {
                // No half file: it was made by us, a moment ago.
                drop(file);
                let _ = rustix::fs::unlinkat(&dir, name, AtFlags::empty());
                return records.push(record(outcome, text));
            }
        };
        let fd = file.as_fd();
        keep::attributes(self, fd, source, item, &mut outcome.lost);
        for (stream, next) in (at.saturating_add(1)..).map_while(|n| Some((n, self.selection.items.get(n as usize)?))) {
            if next.shape != Shape::Xattr(at) {
                if next.entry != item.entry || next.stream.is_none() {
                    break;
                }
                continue;
            }
            let (outcome, message) = keep::stream(self, fd, source, next);
            let detail = (!message.is_empty()).then_some(Detail { message, bad: Vec::new() });
            records.push(Record { item: stream, outcome, hash: None, detail });
        }
        keep::set_mode(fd, later, &mut outcome.lost);
        keep::set_times(self, fd, object, &mut outcome.lost);
        if outcome.method != Method::Partial
            && let Some(what) = source.damaged.get(&item.object)
        {
            (outcome.method, outcome.why) = (Method::Partial, Some(Why::Damaged));
            message.clone_from(what);
        }
        if outcome.method != Method::Partial {
            message.clear();
        }
        let detail = (!message.is_empty() || !bad.is_empty()).then_some(Detail { message, bad });
        records.push(Record { item: at, outcome, hash, detail });
    }

    /// Makes something by its name. What is there already is removed where that was asked for, or where an earlier run was
    /// about to make it and it is not older than that run.
    pub fn make<T>(
        &self,
        dir: &DirFd,
        name: &[u8],
        again: bool,
        make: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match make() {
            Err(Errno::EXIST) => {
                let left_over = again && dest::made_at(dir, name).is_ok_and(|t| t >= self.began);
                if !left_over && !self.options.overwrite {
                    return Err(Errno::EXIST);
                }
                match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
                    // A directory is not removed for a file.
                    Err(Errno::ISDIR | Errno::PERM) => return Err(Errno::EXIST),
                    other => other?,
                }
                make()
            }
            other => other,
        }
    }

    /// Gives the directories that this run made what they are to keep: those that lie deepest first.
    fn finish_directories(&self) {
        let mut records = Vec::new();
        for (at, item) in self.selection.items.iter().enumerate().rev() {
            let (Shape::Dir(dir), Ok(at)) = (item.shape, u32::try_from(at)) else { continue };
            if Self::is_in(&self.absent, dir) {
                continue;
            }
            let mut outcome = Outcome::of(Method::Made, None);
            let mut text = String::new();
            if let (Some(source), false) = (self.selection.source(item), Self::is_in(&self.there, dir)) {
                match self.dest.dir(self.selection, dir) {
                    Ok(fd) => {
                        let object = source.tree.object(item.object);
                        let mode = keep::mode_of(self.who, object, keep::DIR);
                        keep::attributes(self, fd.as_fd(), source, item, &mut outcome.lost);
                        records.extend(self.streams_of(at, fd.as_fd(), source));
                        keep::set_mode(fd.as_fd(), Some(mode), &mut outcome.lost);
                        keep::set_times(self, fd.as_fd(), object, &mut outcome.lost);
                    }
                    Err(e) => (outcome, text) = (Outcome::of(Method::Failed, Some(Why::NoDirectory)), e.to_string()),
                }
            } else if let Some(source) = self.selection.source(item)
                && let Ok(fd) = self.dest.dir(self.selection, dir)
            {
                records.extend(self.streams_of(at, fd.as_fd(), source));
            }
            let detail = (!text.is_empty()).then_some(Detail { message: text, bad: Vec::new() });
            records.push(Record { item: at, outcome, hash: None, detail });
        }
        self.keep(records);
    }
    /// The streams of a directory, as attributes of it.
    fn streams_of(&self, of: u32, fd: std::os::fd::BorrowedFd<'_>, source: &Source) -> Vec<Record> {
        let mut records = Vec::new();
        let mut at = of.saturating_add(1);
        while let Some(item) = self.selection.items.get(at as usize).filter(|i| i.shape == Shape::Xattr(of)) {
            let (outcome, message) = keep::stream(self, fd, source, item);
            let detail = (!message.is_empty()).then_some(Detail { message, bad: Vec::new() });
            records.push(Record { item: at, outcome, hash: None, detail });
            at = at.saturating_add(1);
        }
        records
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

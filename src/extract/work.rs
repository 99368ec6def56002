//! The work on many files at once: who takes which job, and the bytes of small files, read together.

use std::sync::atomic::Ordering;

use super::file::{Stop, Window};
use super::jobs::{self, Job, SMALL};
use super::log::Record;
use super::outcome::{Detail, Method};
use super::recipe::{How, Part};
use super::run::Run;
use super::turns::Turns;
use crate::extent::Map;

/// Bytes between two pieces of a window that are read with them, each and in all.
const GAP: u64 = 16 << 10;
const GAPS: u64 = 1 << 20;

/// What a thread uses again and again.
#[derive(Default)]
struct Scratch {
    map: Map<crate::extent::Stream, crate::extent::Device>,
    parts: Vec<Part>,
    window: Window,
    buf: Vec<u8>,
}

impl Run<'_> {
    /// Files that are worked on at once.
    pub fn threads(&self) -> usize {
        match self.options.jobs {
            0 => std::thread::available_parallelism().map_or(4, |n| n.get().saturating_mul(2).clamp(2, 16)),
            n => n,
        }
    }
    /// Does these jobs, several at once. `locks`: what making files in each directory locks.
    pub fn work(&self, range: std::ops::Range<usize>, locks: &[u32]) {
        let of_job = |job: &Job| {
            let first = self.jobs.items(*job).first().and_then(|at| self.item(*at));
            first.and_then(|(item, _)| locks.get(item.dir.index())).copied().unwrap_or(0)
        };
        let locks: Vec<u32> = self.jobs.jobs.iter().map(of_job).collect();
        let threads = self.threads().min(range.len()).max(1);
        let turns = Turns::new(range, &locks);
        std::thread::scope(|scope| {
            for _ in 1..threads {
                // Where no thread is to be had, those that are there do it all.
                let _ = std::thread::Builder::new().spawn_scoped(scope, || self.worker(&turns, threads));
            }
            self.worker(&turns, threads);
        });
    }
    fn worker(&self, turns: &Turns<'_>, threads: usize) {
        let mut scratch = Scratch::default();
        let mut records = Vec::new();
        let mut last = None;
        while !self.stopped()
            && let Some(at) = turns.take(last.take())
            && let Some(job) = self.jobs.jobs.get(at)
        {
            last = Some(at);
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
}

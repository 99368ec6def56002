//! Step b: copies and new structures into units that were free; and what will be in units of the image.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::extent::{Offset, ReadAt, Stream};
use crate::txn::body::Sum;
use crate::txn::io::{PIECE, in_order};
use crate::txn::reuse::Range;
use crate::txn::{HostVolume, Sources, Staging};

/// A part of what is written, at most [`PIECE`] bytes.
struct Part {
    at: u64,
    len: u64,
    from: From,
}

enum From {
    /// This one of the fresh structures, from this byte of it on.
    Fresh(usize, u64),
    /// This one of the copies, from this byte of its stream on; zeros behind its end.
    Copy(usize, u64),
}

/// Of each copy, how many of its parts are still to be read, and its stream while more than one is.
type Left = HashMap<usize, (u64, Option<Arc<dyn ReadAt<Stream>>>)>;

/// Streams that more than one part needs, while they are open.
struct Open<'a> {
    staging: &'a Staging,
    sources: &'a dyn Sources,
    left: Mutex<Left>,
}

impl Open<'_> {
    fn stream(&self, copy: usize) -> Result<Arc<dyn ReadAt<Stream>>> {
        let entry = self.staging.copies.get(copy).map(|c| c.entry);
        let entry = entry.ok_or_else(|| Error::NotFound("a stream to be copied".into()))?;
        if let Some((_, Some(stream))) = self.lock().get(&copy) {
            return Ok(Arc::clone(stream));
        }
        let stream = self.sources.open(entry)?;
        if let Some((left, slot)) = self.lock().get_mut(&copy)
            && *left > 1
        {
            *slot = Some(Arc::clone(&stream));
        }
        Ok(stream)
    }
    fn finished(&self, copy: usize) {
        let mut all = self.lock();
        if let Some((left, _)) = all.get_mut(&copy) {
            *left = left.saturating_sub(1);
            if *left == 0 {
                all.remove(&copy);
            }
        }
    }
    fn lock(&self) -> std::sync::MutexGuard<'_, Left> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn size(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

/// All parts, by place.
fn parts(staging: &Staging) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut cut = |at: u64, len: u64, from: &dyn Fn(u64) -> From| {
        let mut done = 0;
        while done < len {
            let part = len.saturating_sub(done).min(PIECE);
            parts.push(Part { at: at.saturating_add(done), len: part, from: from(done) });
            done = done.saturating_add(part);
        }
    };
    for (i, fresh) in staging.fresh.iter().enumerate() {
        cut(fresh.at.get(), fresh.bytes.len() as u64, &|skip| From::Fresh(i, skip));
    }
    for (i, copy) in staging.copies.iter().enumerate() {
        let mut stream_at = 0u64;
        for (at, len) in &copy.to {
            cut(at.get(), *len, &|skip| From::Copy(i, stream_at.saturating_add(skip)));
            stream_at = stream_at.saturating_add(*len);
        }
    }
    parts.sort_unstable_by_key(|p| p.at);
    parts
}

/// Joins parts that follow each other to writes of at most [`PIECE`] bytes: many small copies become one large write.
fn batches(parts: &[Part]) -> Vec<&[Part]> {
    let mut out = Vec::new();
    let mut rest = parts;
    while let Some(first) = rest.first() {
        let mut end = first.at;
        let fits = |p: &&Part| {
            let joins = p.at == end && p.at.saturating_add(p.len).saturating_sub(first.at) <= PIECE;
            end = p.at.saturating_add(p.len);
            joins
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (batch, more) = rest.split_at_checked(count).unwrap_or((rest, &[]));
        out.push(batch);
        rest = more;
    }
    out
}

/// What filling took, in time of threads: several work at once.
#[derive(Default)]
pub(super) struct Effort {
    copies: AtomicU64,
    all: AtomicU64,
}

impl Effort {
    /// `spent` on `len` bytes, `copied` of which are of copies.
    fn add(&self, spent: Duration, copied: u64, len: u64) {
        let spent = u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX);
        let copies = u128::from(spent).saturating_mul(copied.into()).checked_div(len.into()).unwrap_or_default();
        self.copies.fetch_add(u64::try_from(copies).unwrap_or(spent), Ordering::Relaxed);
        self.all.fetch_add(spent, Ordering::Relaxed);
    }
    /// What of `time` went into copies.
    pub(super) fn copies_of(&self, time: Duration) -> Duration {
        let all = self.all.load(Ordering::Relaxed);
        if all == 0 { Duration::ZERO } else { time.mul_f64(self.copies.load(Ordering::Relaxed) as f64 / all as f64) }
    }
}

/// Fills the free units; durable after the host is synced. Gives the checksums of what was written. `failed` makes the error of
/// a write that failed.
pub(super) fn fill(
    staging: &Staging,
    host: &HostVolume,
    sources: &dyn Sources,
    failed: &(dyn Fn(String, std::io::Error) -> Error + Sync),
    step: &(dyn Fn(u64) + Sync),
    effort: &Effort,
) -> Result<Vec<Sum>> {
    let image = reused(staging);
    let mut parts = parts(staging);
    parts.retain(|p| !Staging::fills(&image, p.at, p.len));
    let open = Open::of(staging, sources, &parts);
    in_order(&batches(&parts), |batch, buf| {
        let at = batch.first().map_or(0, |p| p.at);
        let len: u64 = batch.iter().map(|p| p.len).fold(0, u64::saturating_add);
        let mut copied = 0u64;
        let mut start = Instant::now();
        let bytes = match *batch {
            // Most of what is new lies together: it is written from where it is.
            [Part { from: From::Fresh(i, from), .. }] => staging.part(*i, *from, len),
            _ => {
                buf.clear();
                buf.resize(size(len), 0);
                for part in *batch {
                    let from = size(part.at.saturating_sub(at));
                    let Some(room) = buf.get_mut(from..from.saturating_add(size(part.len))) else { continue };
                    open.read(part, 0, room)?;
                    // Decoding one copy can take longer than writing a thousand new structures: reading is timed for each part.
                    let is_copy = if matches!(part.from, From::Copy(..)) { part.len } else { 0 };
                    copied = copied.saturating_add(is_copy);
                    let now = Instant::now();
                    effort.add(now.duration_since(start), is_copy, part.len);
                    start = now;
                }
                buf.as_slice()
            }
        };
        let place = Offset::new(at);
        host.write_at(place, bytes).map_err(|e| failed(format!("writing {len} bytes of the host at {place}"), e))?;
        step(len);
        let sum = *blake3::hash(bytes).as_bytes();
        effort.add(start.elapsed(), copied, len);
        Ok(Sum { at, len, sum })
    })
}

fn reused(staging: &Staging) -> Vec<Range> {
    staging.reused.iter().map(|(at, len)| (at.get(), *len)).collect()
}

/// What units of the image will hold.
pub(super) struct InImage<'a> {
    parts: Vec<Part>,
    open: Open<'a>,
}

impl<'a> InImage<'a> {
    pub(super) fn of(staging: &'a Staging, sources: &'a dyn Sources) -> Self {
        let image = reused(staging);
        let mut parts = parts(staging);
        parts.retain(|p| Staging::fills(&image, p.at, p.len));
        let open = Open::of(staging, sources, &parts);
        Self { parts, open }
    }
    /// What will be at byte `at` of the volume.
    pub(super) fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let end = at.saturating_add(buf.len() as u64);
        buf.fill(0);
        let first = self.parts.partition_point(|p| p.at.saturating_add(p.len) <= at);
        for part in self.parts.get(first..).unwrap_or_default().iter().take_while(|p| p.at < end) {
            let from = part.at.max(at);
            let upto = part.at.saturating_add(part.len).min(end);
            let room = buf.get_mut(size(from.saturating_sub(at))..size(upto.saturating_sub(at)));
            if let Some(room) = room {
                self.open.read(part, from.saturating_sub(part.at), room)?;
            }
        }
        Ok(())
    }
}

impl<'a> Open<'a> {
    fn of(staging: &'a Staging, sources: &'a dyn Sources, parts: &[Part]) -> Self {
        let mut left = Left::new();
        for part in parts {
            if let From::Copy(i, _) = part.from {
                let entry = left.entry(i).or_default();
                entry.0 = entry.0.saturating_add(1);
            }
        }
        Self { staging, sources, left: Mutex::new(left) }
    }
    /// The bytes of a part, from this one of it on.
    fn read(&self, part: &Part, skip: u64, room: &mut [u8]) -> Result<()> {
        let len = room.len() as u64;
        match part.from {
            From::Fresh(i, from) => {
                let bytes = self.staging.part(i, from.saturating_add(skip), len);
                if bytes.len() == room.len() {
                    room.copy_from_slice(bytes);
                }
            }
            From::Copy(i, from) => {
                let from = from.saturating_add(skip);
                let total = self.staging.copies.get(i).map_or(0, |c| c.size);
                let wanted = total.saturating_sub(from).min(len);
                if wanted > 0 {
                    let stream = self.stream(i)?;
                    if let Some(room) = room.get_mut(..size(wanted)) {
                        stream.read_at(Offset::new(from), room)?;
                    }
                }
                self.finished(i);
            }
        }
        Ok(())
    }
}

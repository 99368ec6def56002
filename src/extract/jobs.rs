//! What is worked on in which order: files by the place of their first byte on the medium, small ones many at a time.

use super::ground::Grounds;
use super::recipe::{Part, Site, recipe};
use super::select::{Item, Selection, Shape, Source};
use crate::extent::{Device, Encoding, Extent, LayerId, Map, Offset, Stream, What};

/// Files of at most so many bytes are read together with their neighbours.
pub(super) const SMALL: u64 = 128 << 10;
/// Bytes of files that one job has, at most, and how many of them.
const JOB_BYTES: u64 = 1 << 20;
const JOB_FILES: u32 = 128;
/// Files of a job from which on it ends with their directory: two jobs that make files in one directory wait for each other.
const JOB_ENDS: u32 = 32;
/// Files that follow each other on the medium and are done directory by directory, at most; they lie within [`AHEAD`] bytes.
const WINDOW: usize = 2048;
/// Bytes behind the place of a job's first file that are asked to be read ahead, at most.
const AHEAD: u64 = 8 << 20;

/// Items `from..to` of the order, done by one thread one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Job {
    pub from: u32,
    pub to: u32,
    /// Where its bytes are, more or less: ground file, first byte, bytes.
    pub place: Option<(u32, u64, u64)>,
}

/// All jobs of a run, and the items in the order in which they are done.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    pub order: Vec<u32>,
    /// First those of files, then those of what needs the files: links and special files.
    pub jobs: Vec<Job>,
    /// How many of them are of files.
    pub files: usize,
    /// Bytes of all files.
    pub bytes: u64,
}

/// The extents of a stream in the ground. What is not to be resolved has to be read through the layers.
pub(super) fn on_ground(source: &Source, item: &Item, out: &mut Map<Stream, Device>) {
    out.clear();
    let Some(stream) = item.stream else { return };
    for e in source.tree.extents(stream) {
        match e.what {
            What::Zero => out.push(e.len, What::Zero),
            What::Encoded(how) => out.push(e.len, What::Encoded(how)),
            What::Stored(p) => {
                // Of an extent that passes the volume's end, the beginning is there all the same.
                let have = if p.layer == source.layer {
                    source.map.len().saturating_sub(p.offset.get()).min(e.len)
                } else {
                    0
                };
                let end = p.offset.saturating_add(have);
                source.map.slice(p.offset..end).for_each(|piece| out.push(piece.len, piece.what));
                out.push(e.len.saturating_sub(have), What::Encoded(Encoding::Unreadable));
            }
        }
    }
}

/// The parts of an item's file, appended to `out`. `room` is only there to be used again.
pub(super) fn parts(
    source: &Source,
    item: &Item,
    site: impl Fn(LayerId) -> Option<Site>,
    room: &mut Map<Stream, Device>,
    out: &mut Vec<Part>,
) {
    on_ground(source, item, room);
    let size = item.stream.map_or(0, |s| source.tree.stream(s).size);
    recipe(room.extents(), size, site, out);
}

/// Where the first stored byte of a stream is; none where it has none that lies in a ground file.
fn first(source: &Source, item: &Item, grounds: &Grounds) -> Option<(u32, u64)> {
    let stored = source.tree.extents(item.stream?).iter().find_map(|e| match e.what {
        What::Stored(p) if p.layer == source.layer => Some(p.offset),
        _ => None,
    })?;
    let piece: Extent<crate::extent::Volume, Device> =
        source.map.slice(stored..Offset::new(stored.get().saturating_add(1))).next()?;
    match piece.what {
        What::Stored(p) => Some((u32::try_from(grounds.find(p.layer)?).ok()?, p.offset.get())),
        _ => None,
    }
}

impl Jobs {
    /// For everything that was selected.
    pub fn new(selection: &Selection, grounds: &Grounds) -> Self {
        let mut this = Self::default();
        // Ground file + 1 and place; what has no place comes first, in the order of the list.
        let mut placed: Vec<(u32, u64, u32)> = Vec::new();
        let mut tail = Vec::new();
        for (at, item) in (0u32..).zip(&selection.items) {
            match item.shape {
                Shape::File => {
                    let place = selection.source(item).and_then(|s| first(s, item, grounds));
                    placed.push(place.map_or((0, 0, at), |(ground, byte)| (ground.saturating_add(1), byte, at)));
                }
                Shape::HardLink(_) | Shape::Symlink | Shape::Special => tail.push(at),
                Shape::Dir(_) | Shape::Xattr(_) | Shape::Left(_) => {}
            }
        }
        placed.sort_unstable();
        let dir = |at: u32| selection.items.get(at as usize).map(|i| i.dir);
        let mut left = placed.as_mut_slice();
        while let Some((ground, start, _)) = left.first().copied() {
            let near = |(g, byte, _): &(u32, u64, u32)| *g == ground && byte.saturating_sub(start) < AHEAD;
            let len = left.partition_point(near).clamp(1, WINDOW.min(left.len()));
            let (window, rest) = left.split_at_mut(len);
            window.sort_by_key(|(.., at)| dir(*at));
            left = rest;
        }
        let mut before = None;
        let mut job: Option<(Job, u64)> = None;
        for (ground, byte, at) in placed {
            let size = selection.items.get(at as usize).map_or(0, |item| {
                let source = selection.source(item);
                source.zip(item.stream).map_or(0, |(s, stream)| s.tree.stream(stream).size)
            });
            this.bytes = this.bytes.saturating_add(size);
            let index = u32::try_from(this.order.len()).unwrap_or(u32::MAX);
            this.order.push(at);
            let full = |(job, bytes): &(Job, u64)| {
                size > SMALL
                    || bytes.saturating_add(size) > JOB_BYTES
                    || index.saturating_sub(job.from) >= if dir(at) == before { JOB_FILES } else { JOB_ENDS }
                    || job.place.map(|p| p.0) != ground.checked_sub(1)
            };
            if job.as_ref().is_some_and(full)
                && let Some((done, _)) = job.take()
            {
                this.jobs.push(done);
            }
            before = dir(at);
            let place = ground.checked_sub(1).map(|g| (g, byte, 0));
            let (now, bytes) = job.get_or_insert((Job { from: index, to: index, place }, 0));
            now.to = index.saturating_add(1);
            *bytes = bytes.saturating_add(size);
            if let Some((_, start, len)) = &mut now.place {
                let end = start.saturating_add(*len).max(byte.saturating_add(size));
                *start = byte.min(*start);
                *len = end.saturating_sub(*start).min(AHEAD);
            }
            if size > SMALL
                && let Some((done, _)) = job.take()
            {
                this.jobs.push(done);
            }
        }
        this.jobs.extend(job.map(|(job, _)| job));
        this.files = this.jobs.len();
        for group in tail.chunks(JOB_FILES as usize) {
            let from = u32::try_from(this.order.len()).unwrap_or(u32::MAX);
            this.order.extend_from_slice(group);
            let to = u32::try_from(this.order.len()).unwrap_or(u32::MAX);
            this.jobs.push(Job { from, to, place: None });
        }
        this
    }
    /// The items of a job.
    pub fn items(&self, job: Job) -> &[u32] {
        self.order.get(job.from as usize..job.to as usize).unwrap_or_default()
    }
}

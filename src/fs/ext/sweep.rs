//! Reading scattered blocks in the order in which they lie, in few large reads.

use rayon::prelude::*;

use crate::error::Result;
use crate::extent::{Offset, ReadAt, Volume};

/// Bytes that are read over rather than skipped: a disk passes them in less time than a new request takes.
const GAP: u64 = 64 << 10;
/// The largest single read.
const READ: u64 = 1 << 20;
/// Reads that are under way at once.
const BATCH: usize = 32;

/// Reads `blocks` (ascending, no number twice) of `size` bytes each and gives each to `work` with its position in
/// `blocks`. A block that can't be read costs only itself. The results are in the order of `blocks`.
pub fn sweep<R: Send>(
    volume: &dyn ReadAt<Volume>,
    size: u32,
    blocks: &[u64],
    work: impl Fn(usize, Result<&[u8]>) -> R + Sync,
) -> Vec<R> {
    let size = u64::from(size);
    let mut reads: Vec<(usize, &[u64])> = Vec::new();
    let mut rest = blocks;
    let mut first = 0usize;
    while let Some(start) = rest.first() {
        let mut last = *start;
        let mut count = 1usize;
        for next in rest.iter().skip(1) {
            let gap = next.saturating_sub(last).saturating_sub(1).saturating_mul(size);
            let whole = next.saturating_sub(*start).saturating_add(1).saturating_mul(size);
            if gap > GAP || whole > READ {
                break;
            }
            last = *next;
            count = count.saturating_add(1);
        }
        let (now, later) = rest.split_at(count);
        reads.push((first, now));
        first = first.saturating_add(count);
        rest = later;
    }
    let mut out = Vec::with_capacity(blocks.len());
    for batch in reads.chunks(BATCH) {
        let done: Vec<Vec<R>> = batch.par_iter().map(|(first, now)| one(volume, size, *first, now, &work)).collect();
        out.extend(done.into_iter().flatten());
    }
    out
}

fn one<R>(
    volume: &dyn ReadAt<Volume>,
    size: u64,
    first: usize,
    blocks: &[u64],
    work: &(impl Fn(usize, Result<&[u8]>) -> R + Sync),
) -> Vec<R> {
    let start = blocks.first().copied().unwrap_or(0);
    let end = blocks.last().copied().unwrap_or(0).saturating_add(1);
    let len = usize::try_from(end.saturating_sub(start).saturating_mul(size)).unwrap_or(usize::MAX);
    let whole = volume.read_vec(Offset::new(start.saturating_mul(size)), len);
    let width = usize::try_from(size).unwrap_or(usize::MAX);
    (first..)
        .zip(blocks)
        .map(|(n, block)| {
            if let Ok(bytes) = &whole {
                let at = usize::try_from(block.saturating_sub(start).saturating_mul(size)).unwrap_or(usize::MAX);
                if let Some(part) = bytes.get(at..at.saturating_add(width)) {
                    return work(n, Ok(part));
                }
            }
            match volume.read_vec(Offset::new(block.saturating_mul(size)), width) {
                Ok(bytes) => work(n, Ok(&bytes)),
                Err(e) => work(n, Err(e)),
            }
        })
        .collect()
}

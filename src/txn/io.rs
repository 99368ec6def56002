//! Many reads and writes in flight, in disk order.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::error::Result;
use crate::extent::{Offset, ReadAt, Volume};
use crate::txn::HostVolume;
use crate::txn::body::Sum;

/// The most bytes that are read or written at once, and that one checksum covers.
pub(super) const PIECE: u64 = 1 << 20;
/// How many are in flight: more gain nothing, also from a cold device.
const IN_FLIGHT: usize = 8;
/// Two places that are nearer than this are read in one go.
const NEAR: u64 = 32 << 10;
/// Of how many bytes one has to be wanted so that all of a span is copied, which costs less than a call for each range.
const SPARSE: u64 = 8;
/// The most that scattered places which are near to each other are read in.
const SPAN: u64 = 1 << 20;

/// Does `work` for every item, started in order, some at a time, and gives the results in order. After the first failure no
/// other item is begun. The buffer is for the bytes of one item; whatever is in it is left from another one. So there are
/// a few buffers, however many items there are: memory that is touched for the first time costs more than what is done in it.
pub(super) fn in_order<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T, &mut Vec<u8>) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    static POOL: OnceLock<Option<rayon::ThreadPool>> = OnceLock::new();
    let pool = match items.len() {
        0 | 1 => &None,
        _ => POOL.get_or_init(|| rayon::ThreadPoolBuilder::new().num_threads(IN_FLIGHT).build().ok()),
    };
    let Some(pool) = pool else {
        let mut buffer = Vec::new();
        return items.iter().map(|item| work(item, &mut buffer)).collect();
    };
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let done: Mutex<Vec<(usize, Result<R>)>> = Mutex::new(Vec::with_capacity(items.len()));
    pool.scope(|scope| {
        for _ in 0..IN_FLIGHT.min(items.len()) {
            scope.spawn(|_| {
                let mut buffer = Vec::new();
                while !failed.load(Ordering::Relaxed) {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(i) else { break };
                    let result = work(item, &mut buffer);
                    failed.fetch_or(result.is_err(), Ordering::Relaxed);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((i, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, result)| result).collect()
}

/// The buffer as `len` bytes, of whatever was in it.
fn room(buffer: &mut Vec<u8>, len: u64) -> &mut [u8] {
    buffer.resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
    buffer
}

/// Reads many small ranges, which are ordered by place, and gives what `take` makes of each: of its position and its bytes,
/// or of the error that it can't be read. Ranges that are near to each other are read in one go: a device is faster at reading what is
/// between them than at seeking. Where all of them are in memory already and most of the bytes are between them, only they are copied.
pub(super) fn scattered<R: Send>(
    volume: &HostVolume,
    ranges: &[(u64, u64)],
    take: impl Fn(usize, Result<&[u8]>) -> R + Sync,
) -> Vec<R> {
    let end = |(at, len): &(u64, u64)| at.saturating_add(*len);
    let mut spans: Vec<Range<usize>> = Vec::new();
    let mut span_at = 0;
    for (i, range) in ranges.iter().enumerate() {
        let before = i.checked_sub(1).and_then(|b| ranges.get(b)).map_or(0, end);
        match spans.last_mut() {
            Some(span) if range.0.saturating_sub(before) <= NEAR && end(range).saturating_sub(span_at) <= SPAN => {
                span.end = i.saturating_add(1);
            }
            _ => {
                span_at = range.0;
                spans.push(i..i.saturating_add(1));
            }
        }
    }
    let read = in_order(&spans, |span, buffer| {
        let mine = ranges.get(span.clone()).unwrap_or_default();
        let start = mine.first().map_or(0, |r| r.0);
        let stop = mine.last().map_or(0, end);
        let size = |len: u64| usize::try_from(len).unwrap_or(usize::MAX);
        let wanted = mine.iter().fold(0u64, |n, r| n.saturating_add(r.1));
        if wanted < stop.saturating_sub(start) / SPARSE {
            let mut rest = room(buffer, wanted);
            let mut parts = Vec::with_capacity(mine.len());
            for range in mine {
                let Some((part, more)) = rest.split_at_mut_checked(size(range.1)) else { break };
                if !volume.read_at_once(Offset::new(range.0), part) {
                    break;
                }
                parts.push(&*part);
                rest = more;
            }
            if parts.len() == mine.len() {
                return Ok(span.clone().zip(parts).map(|(i, part)| take(i, Ok(part))).collect());
            }
        }
        let buffer = room(buffer, stop.saturating_sub(start));
        let together = volume.read_at(Offset::new(start), buffer).map(|()| &*buffer);
        let mut out = Vec::with_capacity(mine.len());
        for (i, range) in span.clone().zip(mine) {
            let from = size(range.0.saturating_sub(start));
            let part = together.as_ref().ok().and_then(|all| all.get(from..from.saturating_add(size(range.1))));
            out.push(match part {
                Some(bytes) => take(i, Ok(bytes)),
                // One of them can't be read: which one, only the single reads tell.
                None => match volume.read_vec(Offset::new(range.0), size(range.1)) {
                    Ok(bytes) => take(i, Ok(&bytes)),
                    Err(e) => take(i, Err(e)),
                },
            });
        }
        Ok(out)
    });
    let mut all = Vec::with_capacity(ranges.len());
    read.unwrap_or_default().into_iter().for_each(|some| all.extend(some));
    all
}

/// Cuts ranges into pieces that are summed one by one.
pub(super) fn pieces(ranges: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut out = Vec::new();
    for (at, len) in ranges {
        let end = at.saturating_add(*len);
        let mut from = *at;
        while from < end {
            let len = end.saturating_sub(from).min(PIECE);
            out.push((from, len));
            from = from.saturating_add(len);
        }
    }
    out
}

/// The checksums of pieces.
pub(super) fn sums(
    volume: &dyn ReadAt<Volume>,
    pieces: &[(u64, u64)],
    step: &(dyn Fn(u64) + Sync),
) -> Result<Vec<Sum>> {
    in_order(pieces, |(at, len), buffer| {
        let bytes = room(buffer, *len);
        volume.read_at(Offset::new(*at), bytes)?;
        step(*len);
        Ok(Sum { at: *at, len: *len, sum: *blake3::hash(bytes).as_bytes() })
    })
}

/// The first range whose bytes are not as summed, or can't be read.
pub(super) fn first_difference(
    volume: &dyn ReadAt<Volume>,
    expected: &[Sum],
    step: &(dyn Fn(u64) + Sync),
) -> Option<Offset<Volume>> {
    // A journal may hold any length: what is read at once stays small.
    let checked = in_order(expected, |sum, buffer| {
        let mut hasher = blake3::Hasher::new();
        for (at, len) in pieces(&[(sum.at, sum.len)]) {
            let bytes = room(buffer, len);
            if volume.read_at(Offset::new(at), bytes).is_err() {
                return Ok(Some(Offset::new(at)));
            }
            hasher.update(bytes);
        }
        step(sum.len);
        Ok((*hasher.finalize().as_bytes() != sum.sum).then_some(Offset::new(sum.at)))
    });
    checked.unwrap_or_default().into_iter().flatten().next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::medium;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        /// Whether all of a span is read, or, as it is in memory, each range by itself, in a file and beyond its end.
        #[test]
        fn scattered_ranges_of_a_file_are_its_bytes(
            ranges in prop::collection::btree_map(0u64..3000, 1u64..300, 0..200),
            near in prop::sample::select(vec![1u64, 7, 40, 400]),
        ) {
            let len = 1u64 << 20;
            let bytes: Vec<u8> = (0..len).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("host");
            std::fs::write(&path, &bytes).unwrap();
            let opened = medium::open_host(&path, 0, len).unwrap();
            let volume = HostVolume::new(opened.medium, 0, len).unwrap();
            let ranges: Vec<(u64, u64)> = ranges.into_iter().map(|(at, len)| (at * near * 300, len)).collect();
            let got = scattered(&volume, &ranges, |i, have| (i, have.map(<[u8]>::to_vec).ok()));
            for (i, ((n, have), (at, len))) in got.iter().zip(&ranges).enumerate() {
                prop_assert_eq!(*n, i);
                let want = bytes.get(*at as usize..(*at + *len) as usize);
                prop_assert_eq!(have.as_deref(), want);
            }
            prop_assert_eq!(got.len(), ranges.len());
        }
    }
}

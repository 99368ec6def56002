//! What all tables of equal blocks have in common: cutting a range at them, reading their entries in bulk, runs of bits.

use std::ops::Range;

use super::table::{Fault, Pieces};
use crate::error::{Error, Result};
use crate::extent::{Device, Offset, ReadAt};

/// Entries of a whole table that are looked at in one go.
const BATCH: u64 = 1 << 16;

/// The part of a block that a range covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Which block.
    pub(super) number: u64,
    /// Its first byte that is covered.
    pub(super) from: u64,
    /// Bytes covered, never 0.
    pub(super) len: u64,
}

/// Cuts `range` at blocks of `size` bytes, a size that is not 0.
pub(super) fn parts(range: Range<u64>, size: u64) -> impl Iterator<Item = Part> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let (number, from) = (at.checked_div(size)?, at.checked_rem(size)?);
        let len = size.saturating_sub(from).min(range.end.saturating_sub(at));
        at = at.saturating_add(len);
        Some(Part { number, from, len })
    })
}

/// The numbers of the blocks that `range` touches.
pub(super) fn touched(range: &Range<u64>, size: u64) -> Range<u64> {
    let first = range.start.checked_div(size).unwrap_or_default();
    first..range.end.div_ceil(size.max(1)).max(first)
}

/// Runs of equal bits: how many, and whether they are set. `bit` says of a number whether it is.
pub(super) fn runs(first: u64, count: u64, bit: impl Fn(u64) -> bool) -> impl Iterator<Item = (u64, bool)> {
    let end = first.saturating_add(count);
    let mut at = first;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let set = bit(at);
        let mut next = at.saturating_add(1);
        while next < end && bit(next) == set {
            next = next.saturating_add(1);
        }
        let run = next.saturating_sub(at);
        at = next;
        Some((run, set))
    })
}

/// Entries of `WIDTH` bytes of a table, read in one go.
pub(super) struct Entries<const WIDTH: usize> {
    name: &'static str,
    /// Where the first of them lies.
    at: u64,
    first: u64,
    bytes: Vec<u8>,
    /// Why there are no more.
    ends: Fault,
}

impl<const WIDTH: usize> Entries<WIDTH> {
    /// The entries `numbers` of the table called `name` that begins at `table` with entry 0.
    pub(super) fn read(name: &'static str, file: &dyn ReadAt<Device>, table: u64, numbers: Range<u64>) -> Self {
        let at = table.saturating_add(numbers.start.saturating_mul(WIDTH as u64));
        Self::read_at(name, file, at, numbers)
    }
    /// The entries `numbers`, the first of which lies at `at`, as many of them as lie within the file. Bounded by the
    /// file's length.
    pub(super) fn read_at(name: &'static str, file: &dyn ReadAt<Device>, at: u64, numbers: Range<u64>) -> Self {
        let width = WIDTH as u64;
        let have = file.len();
        let want = numbers.end.saturating_sub(numbers.start).saturating_mul(width);
        let len = at.saturating_add(want).min(have).saturating_sub(at);
        let mut ends = Fault::new(name, at.saturating_add(len), format!("an entry within the file's {have} bytes"));
        let mut bytes = Vec::new();
        if let Ok(len) = usize::try_from(len) {
            match file.read_vec(Offset::new(at), len) {
                Ok(read) => bytes = read,
                Err(e) => ends = Fault::failed(name, at, &e),
            }
        }
        Self { name, at, first: numbers.start, bytes, ends }
    }
    /// Where an entry lies.
    pub(super) fn place(&self, number: u64) -> u64 {
        self.at.saturating_add(number.saturating_sub(self.first).saturating_mul(WIDTH as u64))
    }
    /// The entry of this number, none where there is none.
    pub(super) fn get(&self, number: u64) -> Option<[u8; WIDTH]> {
        let at = number.checked_sub(self.first).and_then(|n| usize::try_from(n).ok())?;
        self.bytes.as_chunks::<WIDTH>().0.get(at).copied()
    }
    /// Why there are no more entries.
    pub(super) fn ends(&self) -> &Fault {
        &self.ends
    }
    /// The fault that an entry is not as `expected`.
    pub(super) fn wrong(&self, number: u64, expected: impl Into<String>) -> Fault {
        Fault::new(self.name, self.place(number), expected.into())
    }
    /// Calls `each` for every part of `range`, cut at blocks of `size` bytes, with its entry. What is left when there are no
    /// more entries is unreadable as a whole: the work is bounded by the entries that are there.
    pub(super) fn each(
        &self,
        range: Range<u64>,
        size: u64,
        out: &mut Pieces,
        mut each: impl FnMut(Part, [u8; WIDTH], &mut Pieces),
    ) {
        for part in parts(range.clone(), size) {
            let Some(entry) = self.get(part.number) else { break };
            each(part, entry, out);
        }
        out.unreadable(range.end.saturating_sub(out.at()), self.ends.clone());
    }
}

/// The numbers of entries that lead to where an earlier one leads, in order: a block that is the disk's in two places is
/// damage, and in tables of many levels it would let a small file say very much.
pub(super) fn repeated(mut all: Vec<(u64, u64)>) -> Vec<u64> {
    all.sort_unstable_by_key(|(number, place)| (*place, *number));
    let again = all.windows(2).filter_map(|w| match w {
        [(_, a), (number, b)] if a == b => Some(*number),
        _ => None,
    });
    let mut out: Vec<u64> = again.collect();
    out.sort_unstable();
    out
}

/// The [`repeated`] ones among all `count` entries of a table; `place` says where one leads, none where it does not matter.
/// `block` is what each block takes of the file.
///
/// # Errors
/// [`Error::Corrupt`] for more entries than the file has room for blocks.
pub(super) fn all_repeated<const WIDTH: usize>(
    name: &'static str,
    file: &dyn ReadAt<Device>,
    table: u64,
    count: u64,
    block: u64,
    place: impl Fn([u8; WIDTH]) -> Option<u64>,
) -> Result<Vec<u64>> {
    let most = file.len().checked_div(block).unwrap_or_default().saturating_add(BATCH);
    let mut all = Vec::new();
    for part in parts(0..count, BATCH) {
        let start = part.number.saturating_mul(BATCH);
        let end = start.saturating_add(part.len);
        let entries = Entries::<WIDTH>::read(name, file, table, start..end);
        for number in start..end {
            let Some(entry) = entries.get(number) else { return Ok(repeated(all)) };
            all.extend(place(entry).map(|place| (number, place)));
            if all.len() as u64 > most {
                let expected = format!("at most {most} blocks in a file of {} bytes", file.len());
                return Err(Error::corrupt(name, Offset::<Device>::new(entries.place(number)), expected));
            }
        }
    }
    Ok(repeated(all))
}

/// Appends `len` bytes of a file from `at` on, if they all lie within the file; else that part of them that does, and
/// for the rest the fault that an entry at `entry` of the table `name` leads past the end.
pub(super) fn stored(out: &mut Pieces, len: u64, file: &dyn ReadAt<Device>, at: u64, name: &'static str, entry: u64) {
    let have = file.len();
    let inside = have.saturating_sub(at).min(len);
    out.stored(inside, file.id(), at);
    if inside < len {
        out.unreadable(len.saturating_sub(inside), Fault::new(name, entry, past(have, at)));
    }
}

/// What is expected instead of an entry that leads to `at`, in a file of `have` bytes.
pub(super) fn past(have: u64, at: u64) -> String {
    format!("a block within the file's {have} bytes, it is at {at:#x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_cover_the_range(start in 0u64..5000, len in 0u64..5000, size in 1u64..700) {
            let mut at = start;
            for part in parts(start..start + len, size) {
                prop_assert_eq!(part.number * size + part.from, at);
                prop_assert!(part.len > 0 && part.from + part.len <= size);
                prop_assert!(touched(&(start..start + len), size).contains(&part.number));
                at += part.len;
            }
            prop_assert_eq!(at, start + len);
        }
        #[test]
        fn runs_cover_the_bits(bits in proptest::collection::vec(any::<bool>(), 0..200)) {
            let back: Vec<bool> = runs(0, bits.len() as u64, |n| bits[n as usize])
                .flat_map(|(n, set)| std::iter::repeat_n(set, n as usize))
                .collect();
            prop_assert_eq!(back, bits);
        }
    }
}

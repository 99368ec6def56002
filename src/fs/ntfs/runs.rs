//! Mapping pairs: where the clusters of a non-resident value are.

/// A run whose clusters do not exist: it reads as zeros.
pub const HOLE: u64 = u64::MAX;
/// A run of which it can't be told where its clusters are.
pub const LOST: u64 = u64::MAX - 1;

/// Clusters that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// How many; never 0.
    pub len: u64,
    /// The first, or [`HOLE`], or [`LOST`].
    pub lcn: u64,
}

impl Run {
    /// The run without its first `by` clusters.
    pub fn skip(self, by: u64) -> Self {
        let lcn = if self.lcn >= LOST { self.lcn } else { self.lcn.saturating_add(by) };
        Self { len: self.len.saturating_sub(by), lcn }
    }
}

/// Decodes mapping pairs of a piece of `count` clusters, in a volume of `clusters`, to the end of `out`. Runs that are
/// out of the volume become [`LOST`], and so does whatever is missing of `count` where the pairs are damaged.
///
/// # Errors
/// What was expected; `out` has `count` clusters nevertheless.
pub fn decode(pairs: &[u8], count: u64, clusters: u64, out: &mut Vec<Run>) -> Result<(), &'static str> {
    let mut have = 0u64;
    let result = decode_into(pairs, count, clusters, &mut have, out);
    if have < count {
        out.push(Run { len: count.saturating_sub(have), lcn: LOST });
    }
    result
}

fn decode_into(
    mut pairs: &[u8],
    count: u64,
    clusters: u64,
    have: &mut u64,
    out: &mut Vec<Run>,
) -> Result<(), &'static str> {
    let mut lcn = 0i64;
    let mut result = Ok(());
    while let Some((&head, rest)) = pairs.split_first()
        && head != 0
    {
        let (sizes, offsets) = (usize::from(head & 15), usize::from(head >> 4));
        let (Some((len, rest)), true) = (rest.split_at_checked(sizes), sizes <= 8 && offsets <= 8) else {
            return Err("mapping pairs that end within their attribute");
        };
        let Some((delta, rest)) = rest.split_at_checked(offsets) else {
            return Err("mapping pairs that end within their attribute");
        };
        pairs = rest;
        let len = match u64::try_from(signed(len)) {
            Ok(len) if len > 0 && len <= count.saturating_sub(*have) => len,
            _ => return Err("runs of as many clusters as the attribute has"),
        };
        let at = if delta.is_empty() {
            HOLE
        } else {
            lcn = lcn.wrapping_add(signed(delta));
            match u64::try_from(lcn) {
                Ok(at) if at < clusters => {
                    // Of a volume that was cut off, the part before the cut is still there.
                    let inside = len.min(clusters.saturating_sub(at));
                    out.push(Run { len: inside, lcn: at });
                    *have = have.saturating_add(inside);
                    let outside = len.saturating_sub(inside);
                    if outside > 0 {
                        result = Err("runs within the volume");
                        out.push(Run { len: outside, lcn: LOST });
                        *have = have.saturating_add(outside);
                    }
                    continue;
                }
                _ => {
                    result = Err("runs within the volume");
                    LOST
                }
            }
        };
        *have = have.saturating_add(len);
        out.push(Run { len, lcn: at });
    }
    if *have != count { result.and(Err("runs of as many clusters as the attribute has")) } else { result }
}

/// Appends the mapping pair of a run; `before` is the cluster that the next difference counts from, 0 at first.
pub fn encode(run: Run, before: &mut u64, out: &mut Vec<u8>) {
    let (len, len_bytes) = shortest(run.len as i64);
    let (delta, delta_bytes) = if run.lcn >= LOST {
        ([0; 8], 0)
    } else {
        let delta = run.lcn.wrapping_sub(*before) as i64;
        *before = run.lcn;
        shortest(delta)
    };
    out.push(len_bytes | delta_bytes << 4);
    out.extend_from_slice(len.get(..usize::from(len_bytes)).unwrap_or_default());
    out.extend_from_slice(delta.get(..usize::from(delta_bytes)).unwrap_or_default());
}

/// Bytes of the mapping pairs of these runs, without the one that ends them.
pub fn encoded_len(runs: &[Run]) -> usize {
    let (mut before, mut pair, mut len) = (0, Vec::with_capacity(24), 0usize);
    for run in runs {
        pair.clear();
        encode(*run, &mut before, &mut pair);
        len = len.saturating_add(pair.len());
    }
    len
}

/// The bytes of a signed number, and how many of them say it all.
fn shortest(n: i64) -> ([u8; 8], u8) {
    // One bit more than the number, for the sign.
    let bits = 65u32.saturating_sub(if n < 0 { n.leading_ones() } else { n.leading_zeros() });
    (n.to_le_bytes(), u8::try_from(bits.div_ceil(8)).unwrap_or(8).max(1))
}

/// A little-endian number of up to 8 bytes, its highest bit the sign.
fn signed(bytes: &[u8]) -> i64 {
    let mut wide = [if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xFF } else { 0 }; 8];
    for (to, from) in wide.iter_mut().zip(bytes) {
        *to = *from;
    }
    i64::from_le_bytes(wide)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(pairs: &[u8], count: u64) -> (Vec<Run>, Result<(), &'static str>) {
        let mut out = Vec::new();
        let result = decode(pairs, count, 0x10000, &mut out);
        (out, result)
    }
    fn run(len: u64, lcn: u64) -> Run {
        Run { len, lcn }
    }

    proptest::proptest! {
        #[test]
        fn runs_come_back(all in proptest::collection::vec((1u64..1 << 40, proptest::option::of(0u64..1 << 40)), 1..40)) {
            let runs: Vec<Run> = all.into_iter().map(|(len, lcn)| Run { len, lcn: lcn.unwrap_or(HOLE) }).collect();
            let (mut pairs, mut before) = (Vec::new(), 0);
            runs.iter().for_each(|r| encode(*r, &mut before, &mut pairs));
            pairs.push(0);
            let mut out = Vec::new();
            let count = runs.iter().map(|r| r.len).sum();
            decode(&pairs, count, 1 << 42, &mut out).unwrap();
            proptest::prop_assert_eq!(out, runs);
        }
    }

    #[test]
    fn deltas_are_signed_and_holes_leave_them() {
        // 0x18 clusters at 0x5634; 0x10 of a hole; 8 at 0x5634 - 0x10.
        let (runs, result) = all(&[0x21, 0x18, 0x34, 0x56, 0x01, 0x10, 0x11, 0x08, 0xF0, 0], 0x30);
        assert_eq!(runs, [run(0x18, 0x5634), run(0x10, HOLE), run(8, 0x5624)]);
        assert_eq!(result, Ok(()));
    }

    #[test]
    fn what_is_missing_or_outside_is_lost_not_zero() {
        assert_eq!(all(&[0x11, 2, 5, 0], 4).0, [run(2, 5), run(2, LOST)]);
        // The second ends at the end of the volume, the third beyond it, the fourth begins there.
        let (runs, result) = all(&[0x21, 2, 0xFF, 0x7F, 0x21, 2, 0xFF, 0x7F, 0x11, 2, 1, 0x11, 1, 1, 0], 7);
        assert_eq!(runs, [run(2, 0x7FFF), run(2, 0xFFFE), run(1, 0xFFFF), run(1, LOST), run(1, LOST)]);
        assert!(result.is_err());
        // Before the start of the volume, then back into it.
        let (runs, result) = all(&[0x11, 1, 0xFE, 0x11, 1, 9, 0], 2);
        assert_eq!(runs, [run(1, LOST), run(1, 7)]);
        assert!(result.is_err());
        for bad in [&[0x11u8, 2][..], &[0x91, 1], &[0x10, 3, 0], &[0x11, 0x80, 3, 0], &[0x11, 5, 3, 0]] {
            let (runs, result) = all(bad, 4);
            assert_eq!(runs, [run(4, LOST)], "{bad:x?}");
            assert!(result.is_err());
        }
    }
}

//! How a file's bytes get into its copy: which stretches can share the image's blocks, which are copied, decoded, or stay holes.

use crate::extent::{Device, Extent, LayerId, Stream, What};

/// How a stretch is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// It shares blocks of the ground file at this position, from this byte on.
    Share(usize, u64),
    /// It is copied from there.
    Copy(usize, u64),
    /// It has to be read through the layers above: it is decoded, or lies in no file of this machine as plain bytes.
    Decode,
    /// Nothing is written: a hole.
    Hole,
}

/// A stretch of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Its first byte in the file.
    pub at: u64,
    /// Bytes. The shared end of a file may be longer than the file: it is cut afterwards.
    pub len: u64,
    /// How it is written.
    pub how: How,
}

/// What a ground file allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site {
    /// Its position among the ground files.
    pub ground: usize,
    /// Its length in bytes.
    pub len: u64,
    /// Bytes of a block by which its blocks can be shared with the destination; none where they can't.
    pub block: Option<u64>,
    /// Whether the last, partial block of a file is shared as a whole and the file then cut, or copied.
    pub round_up: bool,
}

/// The parts of a file of `size` bytes with these extents, appended to `out`: in order and gapless; neighbours of one kind are one.
pub(super) fn recipe(
    extents: &[Extent<Stream, Device>],
    size: u64,
    site: impl Fn(LayerId) -> Option<Site>,
    out: &mut Vec<Part>,
) {
    let first = out.len();
    let mut push = |at: u64, len: u64, how: How| {
        if len == 0 {
            return;
        }
        if let Some(last) = out.get_mut(first..).and_then(<[_]>::last_mut)
            && joined(last, how)
        {
            last.len = last.len.saturating_add(len);
            return;
        }
        out.push(Part { at, len, how });
    };
    for e in extents {
        let (start, end) = (e.start.get(), e.end().get().min(size));
        let len = end.saturating_sub(start);
        let place = match e.what {
            What::Stored(p) => site(p.layer).map(|s| (s, p.offset.get())),
            What::Zero => {
                push(start, len, How::Hole);
                continue;
            }
            What::Encoded(_) => None,
        };
        let Some((site, at)) = place else {
            push(start, len, How::Decode);
            continue;
        };
        let (head, shared, tail) = split(&site, at, start, end, size);
        push(start, head, How::Copy(site.ground, at));
        push(start.saturating_add(head), shared, How::Share(site.ground, at.saturating_add(head)));
        let done = head.saturating_add(shared);
        push(start.saturating_add(done), tail, How::Copy(site.ground, at.saturating_add(done)));
    }
}

/// Bytes of `start..end` of a file, stored from `at` on, that are copied, then shared, then copied. What is shared may pass `end`
/// where that is the file's end.
fn split(site: &Site, at: u64, start: u64, end: u64, size: u64) -> (u64, u64, u64) {
    let len = end.saturating_sub(start);
    let all = (len, 0, 0);
    let Some(block) = site.block.filter(|b| *b > 0) else { return all };
    let into = |n: u64| n.checked_rem(block).unwrap_or_default();
    if into(at) != into(start) {
        return all;
    }
    let head = start.next_multiple_of(block).saturating_sub(start);
    let whole = end.saturating_sub(into(end));
    let shared = whole.saturating_sub(start.saturating_add(head));
    let tail = len.saturating_sub(head).saturating_sub(shared);
    if head >= len {
        return all;
    }
    if tail > 0 && end == size && site.round_up {
        // Up to the end of the block, or of the ground, where that ends in the middle of one.
        let from = at.saturating_add(head);
        let most = shared.saturating_add(block).min(site.len.saturating_sub(from));
        if most >= shared.saturating_add(tail) {
            return (head, most, 0);
        }
    }
    if shared == 0 {
        return all;
    }
    (head, shared, tail)
}

/// Whether a stretch of this kind behind `last` is the same part.
fn joined(last: &Part, how: How) -> bool {
    match (last.how, how) {
        (How::Hole, How::Hole) | (How::Decode, How::Decode) => true,
        (How::Share(a, at), How::Share(b, next)) | (How::Copy(a, at), How::Copy(b, next)) => {
            a == b && at.checked_add(last.len) == Some(next)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::{Encoding, Map, Offset, Place};
    use proptest::prelude::*;

    fn parts(map: &Map<Stream, Device>, layer: LayerId, site: Site) -> Vec<Part> {
        let mut out = Vec::new();
        recipe(map.extents(), map.len(), |l| (l == layer).then_some(site), &mut out);
        out
    }
    fn site(block: Option<u64>) -> Site {
        Site { ground: 0, len: 1 << 40, block, round_up: true }
    }

    #[test]
    fn aligned_stretches_are_shared_and_the_rest_is_copied() {
        let layer = LayerId::fresh();
        let mut map = Map::new();
        map.push_stored(8192, layer, 4096 * 10);
        map.push(4096, What::Zero);
        map.push_stored(5000, layer, 4096 * 20);
        let got = parts(&map, layer, site(Some(4096)));
        let part = |at, len, how| Part { at, len, how };
        assert_eq!(
            got,
            [part(0, 8192, How::Share(0, 40960)), part(8192, 4096, How::Hole), part(12288, 8192, How::Share(0, 81920)),]
        );
        // Without rounding the end is copied.
        let got = parts(&map, layer, Site { round_up: false, ..site(Some(4096)) });
        assert_eq!(got[2..], [part(12288, 4096, How::Share(0, 81920)), part(16384, 904, How::Copy(0, 86016))]);
        // Blocks of 1 KiB that lie right, with edges; and some that don't.
        let mut map = Map::new();
        map.push_stored(3072, layer, 1024);
        map.push_stored(9216, layer, 1 << 20 | 3072);
        let got = parts(&map, layer, site(Some(4096)));
        assert_eq!(
            got,
            [
                part(0, 3072, How::Copy(0, 1024)),
                part(3072, 1024, How::Copy(0, (1 << 20) + 3072)),
                part(4096, 8192, How::Share(0, (1 << 20) + 4096)),
            ]
        );
        // The ground ends in the middle of the block.
        let mut map = Map::new();
        map.push_stored(5000, layer, 8192);
        let end = Site { len: 8192 + 5100, ..site(Some(4096)) };
        assert_eq!(parts(&map, layer, end), [part(0, 5100, How::Share(0, 8192))]);
        // Another layer's bytes, and encoded ones, are read through the layers.
        let mut map = Map::new();
        map.push_stored(10, LayerId::fresh(), 0);
        map.push(10, What::Encoded(Encoding::ContainerCompressed));
        assert_eq!(parts(&map, layer, site(Some(4096))), [part(0, 20, How::Decode)]);
    }

    proptest! {
        #[test]
        fn every_byte_has_one_part_that_leads_to_its_place(
            pieces in prop::collection::vec((1u64..5000, 0u64..40, 0u8..3), 0..12),
            block in prop::sample::select(vec![None, Some(512), Some(4096)]),
            round_up: bool,
        ) {
            let layer = LayerId::fresh();
            let map: Map<Stream, Device> = pieces.iter().map(|(len, at, kind)| (*len, match kind {
                0 => What::Zero,
                1 => What::Encoded(Encoding::Inline),
                _ => What::Stored(Place { layer, offset: Offset::new(at * 512) }),
            })).collect();
            let size = map.len();
            let got = parts(&map, layer, Site { len: 1 << 20, round_up, ..site(block) });
            let mut at = 0;
            for (n, part) in got.iter().enumerate() {
                prop_assert_eq!(part.at, at);
                at += part.len;
                let last = n + 1 == got.len();
                if let How::Share(_, from) = part.how {
                    let block = block.unwrap();
                    prop_assert!(part.at % block == 0 && from % block == 0 && part.len % block == 0);
                    prop_assert!(at <= size || last && round_up && at - size < block);
                } else {
                    prop_assert!(at <= size);
                }
                for e in map.slice(Offset::new(part.at)..Offset::new(at.min(size))) {
                    let skip = e.start.get() - part.at;
                    let right = match (part.how, e.what) {
                        (How::Hole, What::Zero) | (How::Decode, What::Encoded(_)) => true,
                        (How::Share(0, from) | How::Copy(0, from), What::Stored(p)) => p.offset.get() == from + skip,
                        _ => false,
                    };
                    prop_assert!(right);
                }
            }
            prop_assert!(at >= size);
        }
    }
}

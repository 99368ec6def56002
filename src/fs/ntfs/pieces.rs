//! The pieces of one value, put together by VCN: its size, how it is kept, and what its bytes are.

use crate::extent::{Encoding, LayerId, Offset, Place, Volume, What};
use crate::fs::Form;
use crate::fs::ntfs::layout::{COMPRESSION_MASK, ENCRYPTED};
use crate::fs::ntfs::runs::{HOLE, LOST, Run};
use crate::fs::ntfs::scan::{Chunk, Piece};

/// The largest compression unit that is decoded, in bytes; Windows makes them of 16 clusters of at most 4 KiB.
pub const MAX_UNIT: u64 = 1 << 20;

/// A piece and the chunk that its spans point into.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    /// The chunk.
    pub chunk: &'a Chunk,
    /// The piece.
    pub piece: &'a Piece,
}

impl<'a> Part<'a> {
    /// Type and name of the attribute, by which pieces of one value are known.
    pub fn value(&self) -> (u32, &'a [u8]) {
        (self.piece.kind, self.piece.name.of(&self.chunk.text))
    }
    /// Its runs, none for a resident value.
    pub fn runs(&self) -> Option<&'a [Run]> {
        self.piece.runs.map(|r| r.of(&self.chunk.runs))
    }
}

/// A whole value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// Length in bytes.
    pub size: u64,
    /// Initialized length in bytes.
    pub valid: u64,
    /// How it is kept.
    pub form: Form,
    /// The locator of its first piece.
    pub locator: u64,
    /// What is wrong with it: pieces that are missing, or are there twice.
    pub wrong: Option<&'static str>,
}

/// Puts together the value whose pieces are `parts`, ordered by VCN and not empty. What its bytes are goes to `out`, which is
/// emptied first; they are as many as the size, and whatever is not known is [`Encoding::Unreadable`].
pub fn assemble(
    parts: &[Part<'_>],
    cluster: u64,
    volume: LayerId,
    out: &mut Vec<(u64, What<Volume>)>,
) -> Option<Value> {
    out.clear();
    let first = parts.first()?.piece;
    let mut value = Value {
        size: first.size,
        valid: first.valid.min(first.size),
        form: Form::Plain,
        locator: first.locator,
        wrong: None,
    };
    if first.runs.is_none() {
        value.form = Form::Inline;
        out.push((value.size, What::Encoded(Encoding::Inline)));
        if parts.len() > 1 {
            value.wrong = Some("one value of this type and name");
        }
        return Some(value);
    }
    let compressed = first.flags & COMPRESSION_MASK != 0;
    let unit = 1u64.checked_shl(first.unit.into()).unwrap_or(0);
    if first.lowest != 0 {
        // The first piece, which has the sizes, is missing: at least so long, and nothing is known of the rest.
        let end =
            |p: &Part<'_>| p.runs().unwrap_or_default().iter().fold(p.piece.lowest, |at, r| at.saturating_add(r.len));
        let clusters = parts.iter().map(end).max().unwrap_or(0);
        value.size = clusters.saturating_mul(cluster).min(i64::MAX as u64);
        value.valid = value.size;
    }
    let mut sink = Sink { out, cluster, volume, unit: None, some_encoded: false };
    let known = !compressed
        || (first.flags & COMPRESSION_MASK == 1
            && first.unit > 0
            && unit > 0
            && unit.checked_mul(cluster).is_some_and(|n| n <= MAX_UNIT));
    if compressed && known {
        sink.unit = Some(Unit { clusters: unit, ..Unit::default() });
    }
    runs(parts, &mut value.wrong, |run| sink.run(run));
    sink.end();
    let encoded = sink.some_encoded;
    clip(out, value.valid, value.size);
    if first.flags & ENCRYPTED != 0 {
        value.form = Form::Encrypted;
        replace(out, Encoding::FsEncrypted);
    } else if !known {
        replace(out, Encoding::Unreadable);
        value.wrong = Some("LZNT1 in units of at most 1 MiB");
    } else if encoded {
        value.form = Form::Compressed(u32::try_from(unit.saturating_mul(cluster)).unwrap_or(u32::MAX));
    }
    if value.wrong.is_none() && out.iter().any(|(_, w)| *w == What::Encoded(Encoding::Unreadable)) {
        value.wrong = Some("runs for all of its bytes, within the volume");
    }
    Some(value)
}

/// The runs of all pieces in order of VCN, gaps between them as lost, overlaps left out.
pub fn runs(parts: &[Part<'_>], wrong: &mut Option<&'static str>, mut each: impl FnMut(Run)) {
    let mut vcn = 0u64;
    for part in parts {
        let Some(runs) = part.runs() else {
            *wrong = Some("pieces that are all in clusters");
            continue;
        };
        if part.piece.lowest > vcn {
            *wrong = Some("pieces without a gap between them");
            each(Run { len: part.piece.lowest.saturating_sub(vcn), lcn: LOST });
            vcn = part.piece.lowest;
        }
        let mut skip = vcn.saturating_sub(part.piece.lowest);
        if skip > 0 {
            *wrong = Some("pieces that do not overlap");
        }
        for run in runs {
            let over = skip.min(run.len);
            skip = skip.saturating_sub(over);
            let run = run.skip(over);
            if run.len > 0 {
                each(run);
                vcn = vcn.saturating_add(run.len);
            }
        }
    }
}

/// A compression unit that is being filled.
#[derive(Default)]
struct Unit {
    /// Clusters that it has.
    clusters: u64,
    /// Clusters that were seen, and how many of them are stored and lost.
    seen: u64,
    stored: u64,
    lost: u64,
    /// The first bytes of it in `out`.
    first: usize,
}

struct Sink<'a> {
    out: &'a mut Vec<(u64, What<Volume>)>,
    cluster: u64,
    volume: LayerId,
    unit: Option<Unit>,
    some_encoded: bool,
}

impl Sink<'_> {
    fn run(&mut self, run: Run) {
        let Some(unit) = &mut self.unit else { return self.push(run) };
        let mut run = run;
        while run.len > 0 {
            if unit.seen == 0 {
                unit.first = self.out.len();
            }
            // Whole units of one kind are what they are: stored as they are, or zeros.
            let now = if unit.seen == 0 && run.len >= unit.clusters {
                run.len.saturating_sub(run.len.checked_rem(unit.clusters).unwrap_or(0))
            } else {
                run.len.min(unit.clusters.saturating_sub(unit.seen))
            };
            let len = now.saturating_mul(self.cluster);
            self.out.push((len, what(run, self.cluster, self.volume)));
            if now < unit.clusters || unit.seen > 0 {
                unit.seen = unit.seen.saturating_add(now);
                match run.lcn {
                    HOLE => {}
                    LOST => unit.lost = unit.lost.saturating_add(now),
                    _ => unit.stored = unit.stored.saturating_add(now),
                }
                if unit.seen == unit.clusters {
                    self.some_encoded |= close(unit, self.out, self.cluster);
                }
            }
            run = run.skip(now);
        }
    }
    fn push(&mut self, run: Run) {
        self.out.push((run.len.saturating_mul(self.cluster), what(run, self.cluster, self.volume)));
    }
    /// Ends the last unit, whose clusters may be fewer.
    fn end(&mut self) {
        if let Some(unit) = &mut self.unit
            && unit.seen > 0
        {
            self.some_encoded |= close(unit, self.out, self.cluster);
        }
    }
}

/// Decides what a unit is that was put together of several runs; says whether it must be decoded.
fn close(unit: &mut Unit, out: &mut Vec<(u64, What<Volume>)>, cluster: u64) -> bool {
    let (seen, stored, lost) = (unit.seen, unit.stored, unit.lost);
    let len = seen.saturating_mul(cluster);
    (unit.seen, unit.stored, unit.lost) = (0, 0, 0);
    let one = if lost > 0 {
        What::Encoded(Encoding::Unreadable)
    } else if stored == 0 {
        What::Zero
    } else if stored < unit.clusters {
        What::Encoded(Encoding::FsCompressed)
    } else {
        return false; // all stored: as they are
    };
    out.truncate(unit.first);
    out.push((len, one));
    one == What::Encoded(Encoding::FsCompressed)
}

fn what(run: Run, cluster: u64, volume: LayerId) -> What<Volume> {
    match run.lcn {
        HOLE => What::Zero,
        LOST => What::Encoded(Encoding::Unreadable),
        lcn => What::Stored(Place { layer: volume, offset: Offset::new(lcn.saturating_mul(cluster)) }),
    }
}

/// Cuts `out` to `size` bytes; what is beyond `valid` is zeros, and what is missing up to there can't be read.
fn clip(out: &mut Vec<(u64, What<Volume>)>, valid: u64, size: u64) {
    let mut left = valid;
    let mut keep = 0usize;
    for (len, _) in out.iter_mut() {
        *len = (*len).min(left);
        left = left.saturating_sub(*len);
        if *len == 0 {
            break;
        }
        keep = keep.saturating_add(1);
    }
    out.truncate(keep);
    for (len, what) in [(left, What::Encoded(Encoding::Unreadable)), (size.saturating_sub(valid), What::Zero)] {
        if len > 0 {
            out.push((len, what));
        }
    }
}

/// Makes all that is not zeros something to be decoded.
fn replace(out: &mut [(u64, What<Volume>)], how: Encoding) {
    for (_, what) in out {
        if *what != What::Zero {
            *what = What::Encoded(how);
        }
    }
}

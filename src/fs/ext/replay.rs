//! A journal that was not replayed yet, as a layer over the volume: what its owner would find after the next mount.
//! Nothing is written.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::extent_tree::Run;
use super::journal::{self, JournalSuper, LogBlock, Tag};
use super::superblock::Superblock;
use crate::error::{Error, Result};
use crate::extent::{LayerId, Offset, ReadAt, Volume};

/// The most blocks that a journal may have (the limit of mke2fs).
const MOST: u32 = 10_240_000;
/// The most revocations that are kept: of 64 GiB of metadata.
const REVOCATIONS: usize = 16 << 20;

/// A block that the journal replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The block of the volume, within the journal, that holds its new contents.
    pub block: u64,
    /// Whether the first four bytes there are zeros instead of the journal's magic number.
    pub escaped: bool,
}

/// What a journal that was not replayed yet says.
#[derive(Debug, Default)]
pub struct Replay {
    /// Blocks of the volume by their numbers, and where their contents are.
    pub blocks: BTreeMap<u64, Source>,
    /// Complete transactions that it has.
    pub transactions: u32,
    /// Whether there are fast commits behind them, which are not replayed.
    pub fast_commits: bool,
    /// What was damaged.
    pub problems: Vec<Error>,
}

/// The journal's blocks in the volume.
struct Log<'a> {
    volume: &'a dyn ReadAt<Volume>,
    s: &'a Superblock,
    runs: &'a [Run],
    head: JournalSuper,
}

impl Log<'_> {
    /// The block of the volume that holds block `n` of the journal.
    fn place(&self, n: u32) -> Result<u64> {
        let n = u64::from(n);
        let run = self.runs.get(self.runs.partition_point(|r| r.logical.saturating_add(r.len) <= n));
        run.and_then(|r| r.physical.checked_add(n.checked_sub(r.logical)?)).ok_or_else(|| {
            Error::corrupt("ext journal", Offset::<Volume>::new(0), format!("its block {n} to be mapped"))
        })
    }
    fn read(&self, n: u32) -> Result<(u64, Vec<u8>)> {
        let block = self.place(n)?;
        Ok((block, self.volume.read_vec(self.s.byte(block), self.s.block as usize)?))
    }
    /// The block after block `n`.
    fn next(&self, n: u32) -> u32 {
        let next = n.saturating_add(1);
        if next >= self.head.end() { self.head.first } else { next }
    }
}

/// One complete transaction.
#[derive(Default)]
struct Transaction {
    /// Block in the volume of the contents, and the tag.
    writes: Vec<(u64, Tag)>,
    revoked: Vec<u64>,
}

/// Reads the log of the journal whose blocks are `runs`.
///
/// # Errors
/// Where the journal's superblock can't be made sense of.
pub fn replay(volume: &dyn ReadAt<Volume>, s: &Superblock, runs: &[Run]) -> Result<Replay> {
    let first = runs.first().filter(|r| r.logical == 0).map_or(0, |r| r.physical);
    let bytes = volume.read_vec(s.byte(first), s.block as usize)?;
    let head = JournalSuper::decode(s.byte(first), &bytes)?;
    if head.block != s.block || head.blocks > MOST {
        return Err(Error::corrupt(
            "ext journal superblock",
            s.byte(first),
            "the volume's block size and a length that may be",
        ));
    }
    let mut out = Replay::default();
    if !head.intact {
        return Err(Error::corrupt("ext journal superblock", s.byte(first), "a checksum that is right"));
    }
    let log = Log { volume, s, runs, head };
    let mut sequence = head.sequence;
    let mut all: Vec<Transaction> = Vec::new();
    if head.start != 0 {
        let mut at = head.start;
        let mut revocations = 0usize;
        // The log can't have more blocks than the journal.
        let mut left = head.blocks;
        while let Some(one) = transaction(&log, sequence, &mut at, &mut left, &mut out.problems) {
            revocations = revocations.saturating_add(one.revoked.len());
            all.push(one);
            if revocations > REVOCATIONS {
                return Err(Error::corrupt("ext journal", s.byte(first), format!("at most {REVOCATIONS} revocations")));
            }
            sequence = sequence.wrapping_add(1);
        }
    }
    out.transactions = u32::try_from(all.len()).unwrap_or(u32::MAX);
    out.fast_commits = fast_commits(&log, sequence);
    // The last transaction that revoked a block, by their order.
    let mut revoked: HashMap<u64, usize> = HashMap::new();
    for (n, one) in all.iter().enumerate() {
        for block in &one.revoked {
            revoked.insert(*block, n);
        }
    }
    let mut places: Vec<(u64, u64)> = runs.iter().map(|r| (r.physical, r.len)).collect();
    places.sort_unstable();
    let own = |block: u64| {
        let before = places.partition_point(|p| p.0 <= block).checked_sub(1).and_then(|n| places.get(n));
        before.is_some_and(|(start, len)| block < start.saturating_add(*len))
    };
    for (n, one) in all.iter().enumerate() {
        for (place, tag) in &one.writes {
            if revoked.get(&tag.block).is_some_and(|last| *last >= n) {
                continue;
            }
            if tag.block >= s.blocks || own(tag.block) {
                let at = s.byte(*place);
                out.problems.push(Error::corrupt(
                    "ext journal block",
                    at,
                    "a block of the volume that is not the journal's",
                ));
                continue;
            }
            out.blocks.insert(tag.block, Source { block: *place, escaped: tag.escaped });
        }
    }
    Ok(out)
}

/// The transaction `sequence`, which begins at block `at` of the journal; none where it is not complete, which is where
/// the log ends.
fn transaction(
    log: &Log<'_>,
    sequence: u32,
    at: &mut u32,
    left: &mut u32,
    problems: &mut Vec<Error>,
) -> Option<Transaction> {
    let mut one = Transaction::default();
    let mut wrong = Vec::new();
    let mut sum = !0u32;
    loop {
        *left = left.checked_sub(1)?;
        let (block, bytes) = log.read(*at).ok()?;
        let (kind, found) = journal::head(&bytes)?;
        if found != sequence || !matches!(kind, 1 | 2 | 5) {
            return None;
        }
        *at = log.next(*at);
        let place = log.s.byte(block);
        match journal::decode(&log.head, place, &bytes) {
            // The last block that was being written may be torn: the log ends here.
            Err(e) => {
                problems.push(e);
                return None;
            }
            Ok(LogBlock::Descriptor(tags)) => {
                if log.head.first_kind() {
                    sum = journal::first_kind_sum(sum, &bytes);
                }
                for tag in tags {
                    *left = left.checked_sub(1)?;
                    let (block, bytes) = log.read(*at).ok()?;
                    *at = log.next(*at);
                    if log.head.first_kind() {
                        sum = journal::first_kind_sum(sum, &bytes);
                    }
                    if journal::tag_intact(&log.head, &tag, sequence, &bytes) {
                        one.writes.push((block, tag));
                    } else {
                        wrong.push(Error::corrupt("ext journal block", log.s.byte(block), "a checksum that is right"));
                    }
                }
            }
            Ok(LogBlock::Revoke(blocks)) => one.revoked.extend(blocks),
            Ok(LogBlock::Commit(expected)) => {
                if expected.is_some_and(|e| e != sum) {
                    problems.push(Error::corrupt("ext journal commit", place, "the checksum of what it commits"));
                    return None;
                }
                problems.append(&mut wrong);
                return Some(one);
            }
        }
    }
}

/// Whether the journal's end holds a fast commit that follows transaction `sequence` - 1.
fn fast_commits(log: &Log<'_>, sequence: u32) -> bool {
    if log.head.fast == 0 {
        return false;
    }
    // One block lies between the log and these.
    let Ok((_, bytes)) = log.read(log.head.end().saturating_add(1)) else { return false };
    // Its first record is a head (tag 9, little-endian) with the features and the transaction that it belongs to.
    let half = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?));
    half(0) == Some(9) && half(2).is_some_and(|len| len >= 8) && word(8) == Some(sequence)
}

/// The volume as it would be once the journal was replayed.
pub struct Replayed {
    volume: Arc<dyn ReadAt<Volume>>,
    block: u64,
    blocks: BTreeMap<u64, Source>,
}

impl Replayed {
    /// Lays the blocks of a replay over `volume`, whose blocks have `block` bytes.
    pub fn new(volume: Arc<dyn ReadAt<Volume>>, block: u32, replay: &Replay) -> Self {
        Self { volume, block: block.into(), blocks: replay.blocks.clone() }
    }
}

impl ReadAt<Volume> for Replayed {
    fn id(&self) -> LayerId {
        self.volume.id()
    }
    fn len(&self) -> u64 {
        self.volume.len()
    }
    fn read_at(&self, at: Offset<Volume>, buf: &mut [u8]) -> Result<()> {
        let end = at.get().saturating_add(buf.len() as u64);
        self.volume.read_at(at, buf)?;
        let number = |byte: u64| byte.checked_div(self.block).unwrap_or(0);
        for (target, source) in self.blocks.range(number(at.get())..end.div_ceil(self.block.max(1))) {
            let start = target.saturating_mul(self.block);
            let from = start.max(at.get());
            let to = start.saturating_add(self.block).min(end);
            let place = source.block.saturating_mul(self.block).saturating_add(from.saturating_sub(start));
            let cut = |x: u64| usize::try_from(x.saturating_sub(at.get())).unwrap_or(usize::MAX);
            let Some(part) = buf.get_mut(cut(from)..cut(to)) else { continue };
            self.volume.read_at(Offset::new(place), part)?;
            if source.escaped {
                for (byte, n) in journal::MAGIC.to_be_bytes().into_iter().zip(start..) {
                    if let Some(slot) = n.checked_sub(from).and_then(|n| part.get_mut(usize::try_from(n).ok()?)) {
                        *slot = byte;
                    }
                }
            }
        }
        Ok(())
    }
}

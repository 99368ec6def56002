//! What a sealed journal holds: everything that is needed to go either way, without a look at host or guest.

use std::collections::HashMap;
use std::ops::Range;

use crate::extent::Offset;
use crate::txn::SECTOR;
use crate::txn::codec::{Decoder, Encoder};
use crate::txn::reuse::{Move, sound};

/// One sector's contents.
pub(super) type Contents = [u8; SECTOR as usize];

/// Position of a sector's contents in the [`Pool`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ContentsId(u32);

/// All contents that sectors have, had or will have, each once: the second FAT is the first one's.
#[derive(Default)]
pub(super) struct Pool {
    bytes: Vec<u8>,
    index: HashMap<[u8; 32], ContentsId>,
}

impl Pool {
    /// Keeps contents; none where there are more than can be numbered.
    pub(super) fn keep(&mut self, contents: &Contents) -> Option<ContentsId> {
        let hash = *blake3::hash(contents).as_bytes();
        if let Some(id) = self.index.get(&hash) {
            return Some(*id);
        }
        let id = ContentsId(u32::try_from(self.index.len()).ok()?);
        self.bytes.extend_from_slice(contents);
        self.index.insert(hash, id);
        Some(id)
    }
    fn range(id: ContentsId) -> Range<usize> {
        let start = (id.0 as usize).saturating_mul(SECTOR as usize);
        start..start.saturating_add(SECTOR as usize)
    }
    /// The contents of that number.
    pub(super) fn get(&self, id: ContentsId) -> &[u8] {
        self.bytes.get(Self::range(id)).unwrap_or(&[0; SECTOR as usize])
    }
}

/// A sector in use that gets other contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sector {
    /// The group that it is written with.
    pub(super) group: u32,
    /// Its number: byte offset in the volume by [`SECTOR`].
    pub(super) number: u64,
    pub(super) old: ContentsId,
    pub(super) new: ContentsId,
}

/// Contents that a sector of [`Body::sectors`] has for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interim {
    /// It is written before this group.
    pub(super) before: u32,
    pub(super) number: u64,
    pub(super) contents: ContentsId,
}

/// A range and the blake3 checksum of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) at: u64,
    pub(super) len: u64,
    pub(super) sum: [u8; 32],
}

/// See the module.
#[derive(Default)]
pub(super) struct Body {
    /// The groups' names, in the order in which they are written; slack is the last one.
    pub(super) groups: Vec<String>,
    /// By group, then by number. No sector is there twice.
    pub(super) sectors: Vec<Sector>,
    /// By number. No sector is there twice.
    pub(super) interim: Vec<Interim>,
    pub(super) pool: Pool,
    /// What was written to units that were free, in the pieces in which it was written.
    pub(super) filled: Vec<Sum>,
    /// What tells, as a whole, that nobody wrote since: sums of the new state.
    pub(super) witnesses: Vec<Sum>,
    /// What goes to units of the image, by batch.
    pub(super) moves: Vec<Moved>,
}

/// A move, and what it moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Moved {
    /// From and to.
    pub(super) step: Move,
    /// The checksum of the bytes.
    pub(super) sum: [u8; 32],
    /// Where they begin among those that the journal keeps; 0 where it does not.
    pub(super) kept: u64,
}

/// Bytes of an encoded sum, at least.
const SUM_MIN: usize = 34;
/// Bytes of an encoded move, at least.
const MOVE_MIN: usize = 36;
/// The most bytes of a move: a unit, or what is read at once.
const MOVE_MAX: u64 = 64 << 20;

impl Body {
    /// The interim contents of a sector.
    pub(super) fn interim_of(&self, number: u64) -> Option<&Interim> {
        let at = self.interim.partition_point(|i| i.number < number);
        self.interim.get(at).filter(|i| i.number == number)
    }
    /// The sectors of a group, by number.
    pub(super) fn group(&self, group: u32) -> &[Sector] {
        let start = self.sectors.partition_point(|s| s.group < group);
        let end = self.sectors.partition_point(|s| s.group <= group);
        self.sectors.get(start..end).unwrap_or_default()
    }

    /// The sections: tag and bytes.
    pub(super) fn encode(&self) -> Vec<(super::frames::Tag, Vec<u8>)> {
        let mut places = Encoder::default();
        places.num(self.groups.len() as u64);
        for (group, name) in (0u32..).zip(&self.groups) {
            places.text(name.as_bytes());
            let sectors = self.group(group);
            places.num(sectors.len() as u64);
            let mut next = 0;
            for s in sectors {
                places.num(s.number.saturating_sub(next));
                next = s.number.saturating_add(1);
                places.num(s.old.0.into());
                places.num(s.new.0.into());
            }
        }
        places.num(self.interim.len() as u64);
        let mut next = 0;
        for i in &self.interim {
            places.num(i.number.saturating_sub(next));
            next = i.number.saturating_add(1);
            places.num(i.before.into());
            places.num(i.contents.0.into());
        }
        let mut sums = Encoder::default();
        for list in [&self.filled, &self.witnesses] {
            sums.num(list.len() as u64);
            for s in list {
                sums.num(s.at);
                sums.num(s.len);
                sums.raw(&s.sum);
            }
        }
        let mut all =
            vec![(*b"POOL", self.pool.bytes.clone()), (*b"PLAC", places.into_bytes()), (*b"SUMS", sums.into_bytes())];
        if !self.moves.is_empty() {
            all.push((*b"MOVE", self.encode_moves()));
        }
        all
    }

    fn encode_moves(&self) -> Vec<u8> {
        let mut e = Encoder::default();
        e.num(self.moves.len() as u64);
        for m in &self.moves {
            e.num(m.step.batch.into());
            e.num(m.step.to.get());
            e.num(m.step.len);
            e.raw(&m.sum);
            match &m.step.from {
                None => {
                    e.num(0);
                    e.num(m.kept);
                }
                Some(from) => {
                    e.num(from.len() as u64);
                    for (len, at) in from {
                        e.num(*len);
                        e.num(at.map_or(0, |at| at.saturating_add(1)));
                    }
                }
            }
        }
        e.into_bytes()
    }

    fn decode_moves(bytes: &[u8], volume_len: u64) -> Option<Vec<Moved>> {
        let within = |at: u64, len: u64| at.checked_add(len).filter(|end| *end <= volume_len);
        let mut d = Decoder::new(bytes);
        let count = d.index()?;
        let mut moves = Vec::with_capacity(d.room_for(count, MOVE_MIN));
        for _ in 0..count {
            let (batch, to, len, sum) = (d.small()?, d.num()?, d.num()?, d.array()?);
            within(to, len).filter(|_| len <= MOVE_MAX)?;
            let pieces = d.index()?;
            let (mut from, mut kept) = (None, 0);
            if pieces == 0 {
                kept = d.num()?;
            } else {
                let mut all = Vec::with_capacity(d.room_for(pieces, 2));
                for _ in 0..pieces {
                    let (len, at) = (d.num()?, d.num()?.checked_sub(1));
                    within(at.unwrap_or(0), len)?;
                    all.push((len, at));
                }
                from = Some(all);
            }
            moves.push(Moved { step: Move { batch, to: Offset::new(to), len, from }, sum, kept });
        }
        d.at_end()?;
        sound(moves.iter().map(|m| &m.step)).ok()?;
        Some(moves)
    }

    /// From the sections of a journal of a volume of `volume_len` bytes. None where one of them is not as
    /// [`encode`](Self::encode) makes them: whatever this gives can be written and taken back without a further check.
    pub(super) fn decode(sections: &HashMap<super::frames::Tag, Vec<u8>>, volume_len: u64) -> Option<Self> {
        let section = |tag: &[u8; 4]| sections.get(tag).map(Vec::as_slice).unwrap_or_default();
        let mut body = Self::default();
        body.pool.bytes = section(b"POOL").to_vec();
        let contents = u64::try_from(body.pool.bytes.len()).ok()?.checked_div(SECTOR)?;
        let contents_id = |d: &mut Decoder<'_>| d.small().filter(|n| u64::from(*n) < contents).map(ContentsId);
        let in_volume = |number: u64| number < volume_len.checked_div(SECTOR).unwrap_or_default();

        let mut d = Decoder::new(section(b"PLAC"));
        let groups = u32::try_from(d.num()?).ok()?;
        for group in 0..groups {
            body.groups.push(String::from_utf8_lossy(d.text()?).into_owned());
            let count = d.index()?;
            body.sectors.reserve(d.room_for(count, 3));
            let mut next = 0u64;
            for _ in 0..count {
                let number = next.checked_add(d.num()?).filter(|n| in_volume(*n))?;
                next = number.checked_add(1)?;
                body.sectors.push(Sector { group, number, old: contents_id(&mut d)?, new: contents_id(&mut d)? });
            }
        }
        let mut by_number: Vec<(u64, u32)> = body.sectors.iter().map(|s| (s.number, s.group)).collect();
        by_number.sort_unstable();
        if by_number.windows(2).any(|w| matches!(w, [(a, _), (b, _)] if a == b)) {
            return None;
        }
        let mut next = 0u64;
        for _ in 0..d.num()? {
            let number = next.checked_add(d.num()?)?;
            next = number.checked_add(1)?;
            let before = d.small()?;
            let at = by_number.partition_point(|(n, _)| *n < number);
            by_number.get(at).filter(|(n, group)| *n == number && *group >= before)?;
            body.interim.push(Interim { before, number, contents: contents_id(&mut d)? });
        }
        d.at_end()?;

        let mut d = Decoder::new(section(b"SUMS"));
        for list in [&mut body.filled, &mut body.witnesses] {
            let count = d.index()?;
            list.reserve(d.room_for(count, SUM_MIN));
            for _ in 0..count {
                let sum = Sum { at: d.num()?, len: d.num()?, sum: d.array()? };
                sum.at.checked_add(sum.len).filter(|end| *end <= volume_len)?;
                list.push(sum);
            }
        }
        d.at_end()?;
        if let Some(bytes) = sections.get(b"MOVE") {
            body.moves = Self::decode_moves(bytes, volume_len)?;
        }
        Some(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: u64 = 512 * 1000;

    fn sample() -> Body {
        let mut body = Body { groups: vec!["one".into(), "two".into()], ..Body::default() };
        for (group, number) in [(0, 3), (0, 4), (0, 900), (1, 2), (1, 77)] {
            let old = body.pool.keep(&[number as u8; 512]).unwrap();
            let new = body.pool.keep(&[group as u8; 512]).unwrap();
            body.sectors.push(Sector { group, number, old, new });
        }
        let contents = body.pool.keep(&[0xee; 512]).unwrap();
        body.interim.push(Interim { before: 0, number: 77, contents });
        body.filled = vec![Sum { at: 5000, len: 700, sum: [1; 32] }, Sum { at: 6000, len: 1, sum: [2; 32] }];
        body.witnesses = vec![Sum { at: 0, len: VOLUME, sum: [3; 32] }];
        let to = |batch, to, from| Move { batch, to: Offset::new(to), len: 1024, from };
        body.moves = [
            (to(0, 8192, Some(vec![(1000, Some(9300)), (24, None)])), 0),
            (to(1, 9216, Some(vec![(1024, Some(40_000))])), 0),
            (to(2, 40_960, None), 5000),
        ]
        .map(|(step, kept)| Moved { step, sum: [4; 32], kept })
        .to_vec();
        body
    }

    #[test]
    fn what_is_encoded_comes_back() {
        let body = sample();
        let again = Body::decode(&body.encode().into_iter().collect(), VOLUME).unwrap();
        assert_eq!((&again.groups, &again.sectors, &again.interim), (&body.groups, &body.sectors, &body.interim));
        assert_eq!((&again.filled, &again.witnesses), (&body.filled, &body.witnesses));
        assert_eq!(again.moves, body.moves);
        assert_eq!(again.pool.bytes, body.pool.bytes);
        assert!(
            Body::decode(&body.encode().into_iter().collect(), 512 * 900).is_none(),
            "beyond a smaller volume's end"
        );
    }

    /// A journal whose checksums are right may still be a crafted one: nothing that it says leads out of the volume.
    #[test]
    fn whatever_is_decoded_stays_in_the_volume() {
        let good: HashMap<_, _> = sample().encode().into_iter().collect();
        let mut dice = 1u64;
        let mut roll = |sides: usize| {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (dice >> 33) as usize % sides
        };
        let mut decoded = 0;
        for _ in 0..100_000 {
            let mut sections = good.clone();
            let tag = [*b"PLAC", *b"SUMS", *b"POOL", *b"MOVE"][roll(4)];
            let bytes = sections.get_mut(&tag).unwrap();
            let at = roll(bytes.len());
            match roll(4) {
                0 => bytes[at] ^= 1 << roll(8),
                1 => bytes[at] = 0xff,
                2 => bytes.truncate(at),
                _ => bytes.insert(at, 0x80),
            }
            let Some(body) = Body::decode(&sections, VOLUME) else { continue };
            decoded += 1;
            assert!(body.sectors.iter().all(|s| s.number * 512 + 512 <= VOLUME));
            assert!(body.filled.iter().chain(&body.witnesses).all(|s| s.at + s.len <= VOLUME));
            for m in &body.moves {
                assert!(m.step.to.get() + m.step.len <= VOLUME);
                assert!(m.step.from.iter().flatten().all(|(len, at)| at.unwrap_or(0) + len <= VOLUME));
            }
            assert_eq!(sound(body.moves.iter().map(|m| &m.step)), Ok(()));
            assert!(body.sectors.iter().all(|s| body.pool.bytes.len() >= (s.old.0.max(s.new.0) as usize + 1) * 512));
        }
        assert!(decoded > 1000, "some mutations change only contents");
    }
}

//! Attributes and MFT records, encoded. The decoders are in [`super::layout`], the offsets too.

use crate::fs::Timestamp;
use crate::fs::ntfs::layout::{STRIDE, kind};
use crate::fs::ntfs::runs::{self, Run};

/// Attribute flag: compressed by LZNT1.
pub const COMPRESSED: u16 = 1;
/// Attribute flag: has holes.
pub const SPARSE: u16 = 0x8000;
/// Bytes that end a record's attributes.
const END_LEN: usize = 8;

/// A structure that grows from its start on.
#[derive(Debug, Default)]
pub struct Out(pub Vec<u8>);

impl Out {
    /// With room for so many bytes.
    pub fn with_room(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }
    /// A byte.
    pub fn u8(&mut self, v: u8) -> &mut Self {
        self.bytes(&[v])
    }
    /// 16 bits, little-endian.
    pub fn u16(&mut self, v: u16) -> &mut Self {
        self.bytes(&v.to_le_bytes())
    }
    /// 32 bits, little-endian.
    pub fn u32(&mut self, v: u32) -> &mut Self {
        self.bytes(&v.to_le_bytes())
    }
    /// 64 bits, little-endian.
    pub fn u64(&mut self, v: u64) -> &mut Self {
        self.bytes(&v.to_le_bytes())
    }
    /// Bytes as they are.
    pub fn bytes(&mut self, v: &[u8]) -> &mut Self {
        self.0.extend_from_slice(v);
        self
    }
    /// UTF-16 units.
    pub fn units(&mut self, v: &[u16]) -> &mut Self {
        self.0.extend(v.iter().flat_map(|u| u.to_le_bytes()));
        self
    }
    /// Zeros up to byte `len`.
    pub fn to(&mut self, len: usize) -> &mut Self {
        self.0.resize(self.0.len().max(len), 0);
        self
    }
}

fn len32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
fn len16(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}
fn len8(len: usize) -> u8 {
    u8::try_from(len).unwrap_or(u8::MAX)
}

/// Where the value of a resident attribute with a name of so many units begins in it.
fn value_at(name: usize) -> usize {
    RESIDENT_HEAD.saturating_add(name.saturating_mul(2)).next_multiple_of(8)
}

/// Bytes of a resident attribute with a name of so many units.
pub fn resident_len(name: usize, value: usize) -> usize {
    value_at(name).saturating_add(value).next_multiple_of(8)
}

/// Bytes of the head of a resident attribute, before its name.
pub const RESIDENT_HEAD: usize = 0x18;

/// The head of a resident attribute, with instance 0.
pub fn resident_head(kind: u32, name: usize, value: usize, indexed: bool) -> [u8; RESIDENT_HEAD] {
    let at = value_at(name);
    let words = [
        u64::from(kind) | u64::from(len32(resident_len(name, value))) << 32,
        u64::from(len8(name)) << 8 | (RESIDENT_HEAD as u64) << 16,
        u64::from(len32(value)) | u64::from(len16(at)) << 32 | u64::from(indexed) << 48,
    ];
    let mut out = [0; RESIDENT_HEAD];
    for (to, word) in out.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *to = word.to_le_bytes();
    }
    out
}

/// A resident attribute, with instance 0.
pub fn resident(kind: u32, name: &[u16], value: &[u8], indexed: bool) -> Vec<u8> {
    let len = resident_len(name.len(), value.len());
    let mut out = Out::with_room(len);
    out.bytes(&resident_head(kind, name.len(), value.len(), indexed));
    out.units(name).to(value_at(name.len())).bytes(value).to(len);
    out.0
}

/// What the head of a non-resident attribute says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mapped {
    /// [`SPARSE`], compression, ...
    pub flags: u16,
    /// Compression unit.
    pub unit: u8,
    /// Bytes allocated, of data, initialized, and of clusters that are there (of sparse ones).
    pub sizes: [u64; 4],
}

/// Bytes before the mapping pairs of a piece.
pub fn mapped_head(name: &[u16], flags: u16, lowest: u64) -> usize {
    let head: usize = if flags & (SPARSE | COMPRESSED) != 0 && lowest == 0 { 0x48 } else { 0x40 };
    head.saturating_add(name.len().saturating_mul(2)).next_multiple_of(8)
}

/// A piece of a non-resident attribute, with instance 0, from VCN `lowest` on: as many of the runs as `room` bytes hold.
/// Also how many runs these are. None where there is no room for one.
pub fn mapped(kind: u32, name: &[u16], m: &Mapped, lowest: u64, runs: &[Run], room: usize) -> Option<(Vec<u8>, usize)> {
    let at = mapped_head(name, m.flags, lowest);
    let (mut pairs, mut before, mut vcns, mut used) = (Vec::with_capacity(24), 0u64, 0u64, 0usize);
    for run in runs {
        let kept = pairs.len();
        runs::encode(*run, &mut before, &mut pairs);
        if at.saturating_add(pairs.len()).saturating_add(1).next_multiple_of(8) > room {
            pairs.truncate(kept);
            break;
        }
        vcns = vcns.saturating_add(run.len);
        used = used.saturating_add(1);
    }
    if used == 0 && !runs.is_empty() {
        return None;
    }
    pairs.push(0);
    let len = at.saturating_add(pairs.len()).next_multiple_of(8);
    let first = lowest == 0;
    let mut out = Out::with_room(len);
    let extra: usize = if m.flags & (SPARSE | COMPRESSED) != 0 && first { 0x48 } else { 0x40 };
    out.u32(kind).u32(len32(len)).u8(1).u8(len8(name.len())).u16(len16(extra)).u16(m.flags).u16(0);
    out.u64(lowest).u64(lowest.saturating_add(vcns).wrapping_sub(1)).u16(len16(at));
    out.u8(if first { m.unit } else { 0 }).to(0x28);
    let [allocated, size, valid, there] = if first { m.sizes } else { [0; 4] };
    out.u64(allocated).u64(size).u64(valid);
    if extra == 0x48 {
        out.u64(there);
    }
    out.units(name).to(at).bytes(&pairs).to(len);
    Some((out.0, used))
}

/// The head of a record.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// Bytes of a record.
    pub size: usize,
    /// Its number.
    pub number: u64,
    /// Sequence number.
    pub sequence: u16,
    /// Names that it has.
    pub links: u16,
    /// In use, directory.
    pub flags: u16,
    /// Reference of the base record, 0 for a base.
    pub base: u64,
    /// Update sequence number.
    pub usn: u16,
}

/// Where the attributes of a new record begin.
pub fn first_attribute(size: usize) -> usize {
    let fixes = (size / STRIDE).saturating_add(1).saturating_mul(2);
    0x30usize.saturating_add(fixes).next_multiple_of(8)
}

/// Bytes that the attributes of a new record may take.
pub fn capacity(size: usize) -> usize {
    size.saturating_sub(first_attribute(size)).saturating_sub(END_LEN)
}

/// Bytes of a record's head before its fix-ups.
const HEAD_LEN: usize = 0x30;

/// A record with these attributes, in order, whose instances become their positions; its fix-ups are applied. None
/// where they do not fit.
pub fn record<'a>(head: &Head, attributes: impl IntoIterator<Item = &'a [u8]>) -> Option<Vec<u8>> {
    let mut out = vec![0; head.size];
    record_into(&mut out, head, attributes).map(|()| out)
}

/// The same in a place of its size, whatever is there.
pub fn record_into<'a>(place: &mut [u8], head: &Head, attributes: impl IntoIterator<Item = &'a [u8]>) -> Option<()> {
    let first = first_attribute(head.size);
    let mut at = first;
    let mut instance = 0u16;
    for a in attributes {
        let end = at.checked_add(a.len())?;
        let to = place.get_mut(at..end)?;
        to.copy_from_slice(a);
        to.get_mut(0x0E..0x10)?.copy_from_slice(&instance.to_le_bytes());
        instance = instance.saturating_add(1);
        at = end;
    }
    let used = at.checked_add(END_LEN)?;
    place.get_mut(at..used)?.copy_from_slice(&u64::from(kind::END).to_le_bytes());
    place.get_mut(used..)?.fill(0);
    let mut out = Out::with_room(HEAD_LEN);
    out.bytes(b"FILE").u16(0x30).u16(len16((head.size / STRIDE).saturating_add(1))).u64(0);
    out.u16(head.sequence).u16(head.links).u16(len16(first)).u16(head.flags);
    out.u32(len32(used)).u32(len32(head.size)).u64(head.base).u16(instance).u16(0).u32(head.number as u32);
    place.get_mut(..HEAD_LEN)?.copy_from_slice(&out.0);
    place.get_mut(HEAD_LEN..first)?.fill(0);
    protect(place, head.usn).then_some(())
}

/// The update sequence number after `before`; 0 and 0xFFFF are none.
pub fn next_usn(before: u16) -> u16 {
    match before.wrapping_add(1) {
        0 | 0xFFFF => 1,
        n => n,
    }
}

/// The update sequence number of a protected structure.
pub fn usn(block: &[u8]) -> u16 {
    let at16 = |at: usize| block.get(at..).and_then(|b| b.first_chunk()).map(|b| u16::from_le_bytes(*b));
    at16(4).and_then(|at| at16(at.into())).unwrap_or(0)
}

/// Applies the fix-ups of a record or index block. False where its head has no room for them.
#[must_use]
pub fn protect(block: &mut [u8], usn: u16) -> bool {
    let at16 = |b: &[u8], at: usize| b.get(at..).and_then(|b| b.first_chunk()).map(|b| u16::from_le_bytes(*b));
    let (Some(at), Some(count)) = (at16(block, 4), at16(block, 6)) else { return false };
    let count = usize::from(count);
    if count.saturating_sub(1).saturating_mul(STRIDE) != block.len() {
        return false;
    }
    let mut array = Out::with_room(count.saturating_mul(2));
    array.u16(usn);
    for stride in block.chunks_exact_mut(STRIDE) {
        let Some(end) = stride.last_chunk_mut::<2>() else { return false };
        array.bytes(end.as_slice());
        *end = usn.to_le_bytes();
    }
    crate::bytes::put(block, at.into(), &array.0)
}

/// A time in 100 ns since 1601, at least 0.
pub fn filetime(t: Timestamp) -> u64 {
    let ticks = i128::from(t.secs)
        .saturating_add(11_644_473_600)
        .saturating_mul(10_000_000)
        .saturating_add(i128::from(t.nanos / 100));
    u64::try_from(ticks.clamp(0, i64::MAX.into())).unwrap_or(0)
}

/// What a `$FILE_NAME` says beside the name; also the key of an index entry.
#[derive(Clone, Copy, Debug, Default)]
pub struct Duplicated {
    /// Made, contents changed, record changed, read.
    pub times: [u64; 4],
    /// Bytes allocated, and of data.
    pub sizes: [u64; 2],
    /// Attributes.
    pub flags: u32,
    /// Tag of a reparse point, or packed bytes of extended attributes.
    pub reparse: u32,
}

/// Bytes of the value of a `$FILE_NAME`.
pub fn file_name_len(name: &[u16]) -> usize {
    0x42usize.saturating_add(name.len().saturating_mul(2))
}

/// The value of a `$FILE_NAME` of namespace 0.
pub fn file_name(parent: u64, about: &Duplicated, name: &[u16]) -> Vec<u8> {
    let mut out = Out::with_room(file_name_len(name));
    out.u64(parent);
    for time in about.times {
        out.u64(time);
    }
    for size in about.sizes {
        out.u64(size);
    }
    out.u32(about.flags).u32(about.reparse).u8(len8(name.len())).u8(0).units(name);
    out.0
}

/// An entry of an attribute list.
pub fn list_entry(kind: u32, name: &[u16], lowest: u64, record: u64, instance: u16) -> Vec<u8> {
    let len = list_entry_len(name);
    let mut out = Out::with_room(len);
    out.u32(kind).u16(len16(len)).u8(len8(name.len())).u8(0x1A).u64(lowest).u64(record).u16(instance);
    out.units(name).to(len);
    out.0
}

/// Its length.
pub fn list_entry_len(name: &[u16]) -> usize {
    0x1Ausize.saturating_add(name.len().saturating_mul(2)).next_multiple_of(8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::Fields;
    use crate::extent::Offset;
    use crate::fs::TimeUnit;
    use crate::fs::ntfs::layout::{Body, Record, fix_up, timestamp};

    #[test]
    fn a_record_comes_back() {
        for size in [1024, 4096] {
            let runs = [Run { len: 5, lcn: 70_000 }, Run { len: 3, lcn: runs::HOLE }, Run { len: 1, lcn: 9 }];
            let m = Mapped { flags: SPARSE, unit: 4, sizes: [9 * 4096, 33_000, 32_000, 6 * 4096] };
            let (data, used) = mapped(kind::DATA, &[0x61], &m, 0, &runs, 200).unwrap();
            assert_eq!(used, 3);
            let name = resident(kind::FILE_NAME, &[], &file_name(5, &Duplicated::default(), &[0x62; 200]), true);
            let head = Head { size, number: 77, sequence: 3, links: 1, flags: 1, base: 0, usn: 9 };
            let mut bytes = record(&head, [name.as_slice(), &data]).unwrap();
            assert_eq!(usn(&bytes), 9);
            fix_up(&mut bytes).unwrap();
            let back = Record::decode(Fields::new("r", Offset::new(0), &bytes), 77).unwrap();
            let all: Vec<_> = back.attributes().map(|a| a.unwrap()).collect();
            assert_eq!((all.len(), back.sequence, all[1].flags, all[1].name), (2, 3, SPARSE, &[0x61, 0][..]));
            let Body::NonResident { lowest, end, pairs, size, valid, unit } = all[1].body else { panic!() };
            assert_eq!((lowest, end, size, valid, unit), (0, 9, 33_000, 32_000, 4));
            let mut found = Vec::new();
            runs::decode(pairs, 9, 1 << 20, &mut found).unwrap();
            assert_eq!(found, runs);
        }
    }

    #[test]
    fn times_come_back() {
        for (secs, nanos) in [(0, 0), (-11_644_473_600, 100), (1_700_000_000, 123_456_700), (-5, 999_999_900)] {
            let t = Timestamp { secs, nanos, unit: TimeUnit::Tick };
            assert_eq!(timestamp(filetime(t) as i64), t);
        }
        assert_eq!(filetime(Timestamp { secs: i64::MIN, nanos: 0, unit: TimeUnit::Second }), 0);
    }
}

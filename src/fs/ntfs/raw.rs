//! Records that are there already, to be changed: their attributes as they are, and where the clusters of a value are.

use std::ops::Range;

use crate::bytes::Fields;
use crate::error::{Error, Result};
use crate::extent::Offset;
use crate::fs::ntfs::encode::{next_usn, protect, usn};
use crate::fs::ntfs::layout::{self, Attribute, Body, Record, kind};
use crate::fs::ntfs::reader::Reader;
use crate::fs::ntfs::runs::{self, HOLE, LOST, Run};
use crate::txn::Fresh;

/// An attribute as it stands in its record: [`RawRecord`] has its bytes. Many are looked at one after the other, so that these are not
/// copied.
#[derive(Clone, Debug)]
pub struct Raw {
    /// Type.
    pub kind: u32,
    /// Where it is in its record.
    at: Range<usize>,
    /// Where its name is.
    name: Range<usize>,
    /// Where the value of a resident one is.
    value: Option<Range<usize>>,
    /// The clusters of a non-resident one, in order of VCN, with holes.
    pub runs: Vec<Run>,
    /// Bytes of data and of initialized data, of a non-resident one.
    pub sizes: [u64; 2],
    /// Flags.
    pub flags: u16,
}

/// A record and its attributes.
#[derive(Clone, Debug)]
pub struct RawRecord {
    /// Its number.
    pub number: u64,
    /// Its sequence number.
    pub sequence: u16,
    /// In use, directory.
    pub flags: u16,
    /// Its update sequence number.
    usn: u16,
    /// Its bytes, fix-ups undone.
    bytes: Vec<u8>,
    /// Its attributes, in order.
    pub attributes: Vec<Raw>,
}

impl RawRecord {
    /// Reads a record in use.
    ///
    /// # Errors
    /// Where it is damaged in any way.
    pub fn read(reader: &Reader, number: u64) -> Result<Self> {
        let mut bytes = reader.record(number)?;
        let usn = usn(&bytes);
        let place = reader.place(number);
        let wrong = |what: &str| Error::corrupt(format!("MFT record {number}"), place, what);
        if !bytes.starts_with(b"FILE") {
            return Err(wrong("the signature `FILE`"));
        }
        layout::fix_up(&mut bytes).map_err(wrong)?;
        let record = Record::decode(Fields::new("MFT record", place, &bytes), number)?;
        let attributes = record.attributes().map(|a| raw(&a?, &bytes, reader).map_err(wrong));
        let attributes = attributes.collect::<Result<Vec<_>>>()?;
        Ok(Self { number, sequence: record.sequence, flags: record.flags, usn, attributes, bytes })
    }
    /// All of its bytes, fix-ups undone.
    pub fn whole(&self) -> &[u8] {
        &self.bytes
    }
    /// Its update sequence number.
    pub fn usn(&self) -> u16 {
        self.usn
    }
    /// Where its attributes end.
    pub fn end(&self) -> usize {
        self.attributes.last().map_or_else(|| self.first(), |a| a.at.end)
    }
    /// All bytes of one of its attributes.
    pub fn bytes(&self, a: &Raw) -> &[u8] {
        self.bytes.get(a.at.clone()).unwrap_or_default()
    }
    /// The name of one of its attributes in UTF-16, little-endian.
    pub fn name(&self, a: &Raw) -> &[u8] {
        self.bytes.get(a.name.clone()).unwrap_or_default()
    }
    /// The value of one of its attributes, where that is resident.
    pub fn value_of(&self, a: &Raw) -> Option<&[u8]> {
        self.bytes.get(a.value.clone()?)
    }
    /// The resident value of this type without a name.
    pub fn value(&self, kind: u32) -> Option<&[u8]> {
        self.get(kind).and_then(|a| self.value_of(a))
    }
    /// Number and sequence number.
    pub fn reference(&self) -> u64 {
        self.number | u64::from(self.sequence) << 48
    }
    /// Names that it counts.
    pub fn links(&self) -> u16 {
        self.bytes.get(0x12..).and_then(|b| b.first_chunk()).map_or(0, |b| u16::from_le_bytes(*b))
    }
    /// The attribute of this type without a name.
    pub fn get(&self, kind: u32) -> Option<&Raw> {
        self.named(kind, &[])
    }
    /// The attribute of this type and name.
    pub fn named(&self, kind: u32, name: &[u16]) -> Option<&Raw> {
        let spelled = |a: &Raw| self.name(a).iter().copied().eq(name.iter().flat_map(|u| u.to_le_bytes()));
        self.attributes.iter().find(|a| a.kind == kind && spelled(a))
    }
    /// Whether some of its attributes are in other records.
    pub fn has_list(&self) -> bool {
        self.get(kind::ATTRIBUTE_LIST).is_some()
    }
    /// Bytes for attributes.
    pub fn room(&self) -> usize {
        self.bytes.len().saturating_sub(self.first()).saturating_sub(8)
    }
    fn first(&self) -> usize {
        self.bytes.get(0x14..).and_then(|b| b.first_chunk()).map_or(0, |b| usize::from(u16::from_le_bytes(*b)))
    }
    /// The record with other attributes in order: those with an instance keep it, and the ones in `new` get one. None
    /// where they do not fit.
    pub fn with(&self, attributes: Vec<(Vec<u8>, bool)>) -> Option<Vec<u8>> {
        let first = self.first();
        let mut out = self.bytes.get(..first)?.to_vec();
        let mut next = u16::from_le_bytes(*self.bytes.get(0x28..)?.first_chunk()?);
        for (mut bytes, new) in attributes {
            if new {
                bytes.get_mut(0x0E..0x10)?.copy_from_slice(&next.to_le_bytes());
                next = next.checked_add(1)?;
            }
            out.extend_from_slice(&bytes);
        }
        out.extend_from_slice(&kind::END.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        let used = u32::try_from(out.len()).ok()?;
        if out.len() > self.bytes.len() {
            return None;
        }
        out.resize(self.bytes.len(), 0);
        out.get_mut(0x18..0x1C)?.copy_from_slice(&used.to_le_bytes());
        out.get_mut(0x28..0x2A)?.copy_from_slice(&next.to_le_bytes());
        protect(&mut out, next_usn(self.usn)).then_some(out)
    }
    /// The record as [`with`](Self::with) gives it, with the attributes that it has.
    pub fn bytes_with_usn(&self) -> Vec<u8> {
        let mut out = self.bytes.clone();
        if protect(&mut out, next_usn(self.usn)) { out } else { Vec::new() }
    }
    /// The record no longer in use, with the next sequence number.
    pub fn freed(&self) -> Option<Vec<u8>> {
        let mut out = self.bytes.clone();
        let sequence = match self.sequence.wrapping_add(1) {
            0 => 1,
            n => n,
        };
        out.get_mut(0x10..0x12)?.copy_from_slice(&sequence.to_le_bytes());
        out.get_mut(0x16..0x18)?.copy_from_slice(&(self.flags & !layout::IN_USE).to_le_bytes());
        protect(&mut out, next_usn(self.usn)).then_some(out)
    }
}

fn raw(a: &Attribute<'_>, record: &[u8], reader: &Reader) -> Result<Raw, &'static str> {
    let len = record.get(a.at.saturating_add(4)..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b));
    let end = a.at.saturating_add(len as usize);
    record.get(a.at..end).ok_or("an attribute within it")?;
    // The decoder's slices are parts of the record.
    let within = |part: &[u8]| {
        let start = part.as_ptr().addr().saturating_sub(record.as_ptr().addr());
        if part.is_empty() { 0..0 } else { start..start.saturating_add(part.len()) }
    };
    let mut out = Raw {
        kind: a.kind,
        at: a.at..end,
        name: within(a.name),
        value: None,
        runs: Vec::new(),
        sizes: [0; 2],
        flags: a.flags,
    };
    match a.body {
        Body::Resident(value) => out.value = Some(within(value)),
        Body::NonResident { lowest, end, pairs, size, valid, .. } => {
            let clusters = reader.context(0).clusters;
            runs::decode(pairs, end.saturating_sub(lowest), clusters, &mut out.runs)?;
            out.sizes = [size, valid];
        }
    }
    Ok(out)
}

impl Raw {
    /// Whether its value is in the record.
    pub fn is_resident(&self) -> bool {
        self.value.is_some()
    }
    /// Whether it has a name.
    pub fn has_name(&self) -> bool {
        !self.name.is_empty()
    }
}

/// Only the runs that have clusters.
pub fn stored(runs: &[Run]) -> impl Iterator<Item = Run> + '_ {
    runs.iter().copied().filter(|r| r.lcn != HOLE && r.lcn != LOST)
}

/// Where the bytes of a value are.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// First byte in the value, first byte in the volume, bytes.
    runs: Vec<(u64, u64, u64)>,
}

impl Places {
    /// Of these runs, which have no holes.
    pub fn new(runs: &[Run], cluster: u64) -> Self {
        let mut at = 0u64;
        let mut out = Vec::with_capacity(runs.len());
        for r in runs {
            let len = r.len.saturating_mul(cluster);
            out.push((at, r.lcn.saturating_mul(cluster), len));
            at = at.saturating_add(len);
        }
        Self { runs: out }
    }
    /// Bytes that have a place.
    pub fn len(&self) -> u64 {
        self.runs.last().map_or(0, |(at, _, len)| at.saturating_add(*len))
    }
    /// All places: first byte in the volume, and bytes.
    pub fn all(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.runs.iter().map(|(_, to, len)| (*to, *len))
    }
    /// `bytes` of the value from `at` on, by their places in the volume. None where some have none.
    pub fn put<'b>(&self, at: u64, bytes: &'b [u8]) -> Option<Vec<(u64, &'b [u8])>> {
        let mut out = Vec::new();
        let (mut at, mut rest) = (at, bytes);
        let mut i = self.runs.partition_point(|(from, _, len)| from.saturating_add(*len) <= at);
        while !rest.is_empty() {
            let (from, to, len) = *self.runs.get(i)?;
            let skip = at.saturating_sub(from);
            let now = usize::try_from(len.saturating_sub(skip)).unwrap_or(usize::MAX).min(rest.len());
            let (head, tail) = rest.split_at_checked(now)?;
            out.push((to.saturating_add(skip), head));
            rest = tail;
            at = at.saturating_add(now as u64);
            i = i.saturating_add(1);
        }
        Some(out)
    }
    /// The same for clusters that were free; bytes that stay in one piece are not copied.
    pub fn fresh(&self, at: u64, bytes: Vec<u8>) -> Option<Vec<Fresh>> {
        let parts = self.put(at, &bytes)?;
        if let [(to, _)] = parts.as_slice() {
            return Some(vec![Fresh { at: Offset::new(*to), bytes }]);
        }
        Some(parts.into_iter().map(|(to, part)| Fresh { at: Offset::new(to), bytes: part.to_vec() }).collect())
    }
}

//! The audit of records: each attribute once, in order, of the form and with the sizes that it has to have.

use crate::error::Result;
use crate::extent::Offset;
use crate::fs::ObjectId;
use crate::fs::asked::wrong;
use crate::fs::ntfs::audit::Audit;
use crate::fs::ntfs::audit_form;
use crate::fs::ntfs::encode::{RESIDENT_HEAD, resident_head, resident_len};
use crate::fs::ntfs::layout::{DIRECTORY, kind};
use crate::fs::ntfs::raw::{Raw, RawRecord};

/// Whether a resident attribute is written as the encoder writes it, but for its instance.
fn spelled(record: &RawRecord, a: &Raw) -> bool {
    let Some(value) = record.value_of(a) else { return true };
    let (bytes, given) = (record.bytes(a), record.name(a));
    let units = given.len() / 2;
    let Some((head, rest)) = bytes.split_first_chunk::<RESIDENT_HEAD>() else { return false };
    let mut meant = resident_head(a.kind, units, value.len(), a.kind == kind::FILE_NAME);
    let instance = 0x0E..0x10;
    if let (Some(to), Some(from)) = (meant.get_mut(instance.clone()), head.get(instance)) {
        to.copy_from_slice(from);
    }
    // The name, the value at the next multiple of 8, and zeros up to the next one.
    let (name, rest) = rest.split_at_checked(given.len()).unwrap_or_default();
    let fill = given.len().next_multiple_of(8).saturating_sub(given.len());
    let (zeros, rest) = rest.split_at_checked(fill).unwrap_or((&[1], &[]));
    let (body, end) = rest.split_at_checked(value.len()).unwrap_or((&[], &[1]));
    let empty = |b: &[u8]| b.iter().all(|b| *b == 0);
    meant == *head
        && name == given
        && empty(zeros)
        && body == value
        && empty(end)
        && bytes.len() == resident_len(units, value.len())
}

impl Audit<'_> {
    /// The records of a new file are as they are written, and count its names: these.
    pub(super) fn record(&self, id: ObjectId, record: RawRecord) -> Result<Vec<Vec<u8>>> {
        let number = record.number;
        let place = || self.new.reader.place(number).get();
        if (record.flags & DIRECTORY != 0) != self.is_dir(id) {
            return Err(wrong(place(), "MFT record", "the flag of a directory on directories"));
        }
        let links = usize::from(record.links());
        let mut names = Vec::with_capacity(links);
        let mut all = vec![record];
        if all.first().is_some_and(RawRecord::has_list) {
            let chunk = self.new.reader.file(number, 0)?;
            for other in chunk.recs.iter().map(|r| r.number).filter(|n| *n != number) {
                all.push(RawRecord::read(&self.new.reader, other)?);
            }
            let layer = self.new.reader.open_value(number, kind::ATTRIBUTE_LIST, b"")?;
            let len = usize::try_from(layer.len()).unwrap_or(usize::MAX);
            let list = layer.read_vec(Offset::new(0), len)?;
            audit_form::list(&all, &list, &self.now.up).map_err(|what| wrong(place(), "$ATTRIBUTE_LIST", what))?;
        }
        let base = all.first().map(RawRecord::reference);
        for raw in &all {
            self.once(raw)?;
            let extends = base.filter(|_| raw.number != number);
            audit_form::new_head(raw, extends).map_err(|what| wrong(place(), "MFT record", what))?;
            if !raw.attributes.iter().all(|a| spelled(raw, a)) {
                return Err(wrong(place(), "MFT record", format!("attributes as they are written in {}", raw.number)));
            }
            let sorted = raw.attributes.is_sorted_by_key(|a| a.kind);
            if !sorted || self.before.census.in_use.get(raw.number) {
                return Err(wrong(place(), "MFT record", format!("attributes in order in record {}", raw.number)));
            }
            let all = raw.attributes.iter().filter(|a| a.kind == kind::FILE_NAME).filter_map(|a| raw.value_of(a));
            names.extend(all.map(<[u8]>::to_vec));
        }
        let cluster = self.new.reader.boot.cluster;
        audit_form::sizes(&all, cluster).map_err(|what| wrong(place(), "MFT record", what))?;
        if links != names.len() || names.is_empty() {
            return Err(wrong(place(), "MFT record", format!("a link count of {} in record {number}", names.len())));
        }
        Ok(names)
    }
    /// No attribute is there twice, but for names.
    pub(super) fn once(&self, record: &RawRecord) -> Result<()> {
        // Type, name and first cluster; and the instance. There are a few of them, so that each is compared with each.
        let bytes = |a: &Raw| record.bytes(a);
        let key = |a: &Raw| (a.kind, record.name(a), bytes(a).get(0x10..0x18).filter(|_| !a.is_resident()));
        let instance = |a: &Raw| bytes(a).get(0x0E..0x10);
        let same = |a: &Raw, b: &Raw| instance(a) == instance(b) || (a.kind != kind::FILE_NAME && key(a) == key(b));
        let mut rest = record.attributes.as_slice();
        let mut twice = false;
        while let Some((first, others)) = rest.split_first() {
            twice |= others.iter().any(|other| same(first, other));
            rest = others;
        }
        if twice {
            let place = self.new.reader.place(record.number).get();
            return Err(wrong(place, "MFT record", format!("each attribute once in record {}", record.number)));
        }
        Ok(())
    }
    /// A record of before that was changed: what changed is `mine`, its sizes fit, and all else is as it was.
    pub(super) fn changed(&self, number: u64, mine: impl Fn(&RawRecord, &Raw) -> bool) -> Result<()> {
        let (old, new) = (RawRecord::read(self.old_reader(), number)?, RawRecord::read(&self.new.reader, number)?);
        self.once(&new)?;
        let place = self.new.reader.place(number).get();
        let kept = audit_form::kept(&old, &new, mine);
        let all = [new];
        // What is not mine may have been written by a driver that does it in another way.
        let sizes = if kept.is_ok() && audit_form::sizes(&[old], self.new.reader.boot.cluster).is_ok() {
            audit_form::sizes(&all, self.new.reader.boot.cluster)
        } else {
            kept
        };
        sizes.map_err(|what| wrong(place, "MFT record", format!("{what}, in record {number}")))
    }
}

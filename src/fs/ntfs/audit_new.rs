//! The audit of one new file: is it what was asked for, its bytes where they were planned to be, with all that it has beside them.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::extent::{Encoding, Extent, Map, Offset, Stream, Volume, What};
use crate::fs::asked::{not, wrong};
use crate::fs::host::{Content, NewEntry, NewKind};
use crate::fs::ntfs::audit::{Added, Audit, Places, plain};
use crate::fs::ntfs::encode::filetime;
use crate::fs::ntfs::extras::{Extras, Keeper, special_ea};
use crate::fs::ntfs::index;
use crate::fs::ntfs::layout::{DIRECTORY_BIT, kind};
use crate::fs::ntfs::old_dir::OldDir;
use crate::fs::ntfs::raw::RawRecord;
use crate::fs::ntfs::reparse;
use crate::fs::ntfs::wanted::{KEPT, times};
use crate::fs::{EA, FileSystem, Form, Kind, ObjectId, REPARSE, StreamId};

/// Attribute bits that say how the data is kept, and what the object is: sparse, compressed, reparse point, special
/// file, directory.
const FORM_BITS: u32 = 0x200 | 0x800 | 0x400 | 0x4_0000 | DIRECTORY_BIT;

impl Audit<'_> {
    /// Whether it is a directory, also one that is a link.
    pub(super) fn is_dir(&self, object: ObjectId) -> bool {
        let object = self.now.tree.object(object);
        object.kind == Kind::Dir || object.attributes & DIRECTORY_BIT != 0
    }
    pub(super) fn entry(
        &self,
        entry: &NewEntry,
        object: ObjectId,
        record: &RawRecord,
        copied: Option<Places>,
        keeper: &mut Keeper<'_>,
    ) -> Result<()> {
        let tree = &self.now.tree;
        let found = tree.object(object);
        let made = self.before.tree.object(self.job.image.named.object).times;
        let t = found.times;
        let have = [t.created, t.modified, t.changed, t.accessed].map(|t| t.map(filetime));
        if have != times(entry.times, made).map(Some) || found.attributes & !FORM_BITS != entry.attributes & KEPT {
            return Err(not(entry, "times and attributes as planned"));
        }
        self.extras(entry, object, record, keeper)?;
        let point = tree.xattrs(object).iter().any(|(name, _)| name == REPARSE);
        let (size, content) = match &entry.kind {
            NewKind::Dir if self.is_dir(object) && (point || found.kind == Kind::Dir) => return Ok(()),
            NewKind::File { size, content } if !self.is_dir(object) && (point || found.kind == Kind::File) => {
                (*size, content)
            }
            NewKind::Symlink(target)
                if found.kind == Kind::Symlink && tree.target(object) == Some(target.as_slice()) =>
            {
                (0, &Content::Empty)
            }
            NewKind::Special(kind) if found.kind == *kind => (0, &Content::Empty),
            _ => return Err(not(entry, "the planned kind")),
        };
        self.stream(entry, tree.data(object), size, content, copied, Some(record))
    }
    /// Reparse buffer, extended attributes and security.
    fn extras(&self, entry: &NewEntry, object: ObjectId, record: &RawRecord, keeper: &mut Keeper<'_>) -> Result<()> {
        let expected: Extras = match &entry.kind {
            NewKind::Symlink(_) | NewKind::Special(_) => keeper.special(entry).unwrap_or_default(),
            _ => keeper.of(entry),
        };
        let ea: Option<Vec<u8>> =
            entry.xattrs.iter().find(|(n, v)| n == EA && Keeper::keeps(n, v)).map(|x| x.1.clone());
        let device = match entry.kind {
            NewKind::Special(kind) => Some(special_ea(entry, kind)),
            _ => None,
        };
        let xattrs: BTreeMap<&[u8], &[u8]> =
            self.now.tree.xattrs(object).iter().map(|(n, v)| (n.as_slice(), v.as_slice())).collect();
        if xattrs.get(REPARSE).copied() != expected.reparse.as_deref()
            || xattrs.get(EA).copied() != device.or(ea).as_deref()
        {
            return Err(not(entry, "the planned reparse point and extended attributes"));
        }
        let have = self.new.security_of(record);
        let asked = entry.security.as_ref().filter(|d| keeper.security(d).is_some()).map(|d| &**d);
        let security = &expected.security;
        let meant = asked.or(security.descriptor.as_deref()).or(self.new.secure().get(security.id).map(|d| &**d));
        if have.as_deref() != meant {
            return Err(not(entry, "the planned security"));
        }
        Ok(())
    }
    /// A stream is of the planned size, initialized as planned, and where it was planned to be. `record` is the file's, where the
    /// stream is its data.
    pub(super) fn stream(
        &self,
        entry: &NewEntry,
        stream: Option<StreamId>,
        size: u64,
        content: &Content,
        copied: Option<Places>,
        record: Option<&RawRecord>,
    ) -> Result<()> {
        let tree = &self.now.tree;
        let stream = stream.ok_or_else(|| not(entry, "data"))?;
        let info = tree.stream(stream);
        let valid = match content {
            Content::Linked(extents) => valid(extents, self.new.reader.boot.cluster).unwrap_or(size),
            Content::Packed { valid, .. } => (*valid).min(size),
            _ => size,
        };
        if info.size != size || info.valid != valid {
            return Err(not(entry, "a stream of the planned size, initialized as planned"));
        }
        // Of a file that is compressed as a whole the reader says that its holes are no zeros.
        let elsewhere = info.form == Form::Wof;
        let holes = tree.extents(stream).iter().map(|e| match e.what {
            What::Encoded(Encoding::Unreadable) if elsewhere => Extent { what: What::Zero, ..*e },
            _ => *e,
        });
        let at = plain(&holes.collect::<Vec<_>>());
        let right = match content {
            _ if size == 0 => at.is_some_and(|a| a.is_empty()),
            Content::Empty => false,
            Content::Linked(extents) => at.is_some() && at == plain(extents),
            Content::Packed { extents, .. } => {
                let planned: Map<Stream, Volume> = extents.iter().map(|e| (e.len, e.what)).collect();
                let found = self.new.packed(tree, stream);
                found.is_some_and(|p| p.map.extents() == planned.extents())
            }
            // What was read just now is not read again.
            Content::Bytes(bytes)
                if info.form == Form::Inline && record.is_some_and(|r| r.number == info.locator >> 16) =>
            {
                let value = record.and_then(|r| r.value(kind::DATA));
                value == Some(bytes.as_slice())
            }
            Content::Bytes(bytes) => {
                let layer = self.new.open(tree, stream)?;
                layer.read_vec(Offset::new(0), bytes.len())? == *bytes
            }
            Content::Copied => at.is_some() && at == copied,
        };
        if right { Ok(()) } else { Err(not(entry, "the planned extents")) }
    }
    /// Bytes of clusters that a stream has, or of a resident one its length up to 8.
    pub(super) fn allocated(&self, stream: StreamId) -> u64 {
        let tree = &self.now.tree;
        let cluster = self.new.reader.boot.cluster;
        let sum = |extents: &[Extent<Stream>]| -> u64 {
            let there = extents.iter().filter(|e| matches!(e.what, What::Stored(_)));
            there.map(|e| e.len.next_multiple_of(cluster)).sum()
        };
        let info = tree.stream(stream);
        match info.form {
            Form::Inline => info.size.next_multiple_of(8),
            Form::Compressed(unit) if unit > 0 => {
                self.new.packed(tree, stream).map_or(0, |packed| sum(packed.map.extents()))
            }
            _ => sum(tree.extents(stream)),
        }
    }
    /// What a name says of reparse point or extended attributes.
    pub(super) fn word(&self, object: ObjectId) -> u32 {
        let all = self.now.tree.xattrs(object);
        if let Some((_, buffer)) = all.iter().find(|(n, _)| n == REPARSE) {
            return reparse::tag(buffer).unwrap_or(0);
        }
        if all.iter().all(|(n, _)| n != EA) {
            return 0;
        }
        let record = RawRecord::read(&self.new.reader, self.now.tree.object(object).number).ok();
        let information = record.as_ref().and_then(|r| r.value(kind::EA_INFORMATION));
        information.and_then(|v| v.first_chunk()).map_or(0, |b| u16::from_le_bytes(*b).into())
    }
    /// The new reparse points: tag and reference.
    pub(super) fn points(&self, added: &Added) -> impl Iterator<Item = (u32, u64)> {
        added.iter().filter_map(|id| {
            let (_, buffer) = self.now.tree.xattrs(*id).iter().find(|(n, _)| n == REPARSE)?;
            let number = self.now.tree.object(*id).number;
            let sequence = self.now.census.slots.get(usize::try_from(number).ok()?)?.0;
            Some((reparse::tag(buffer)?, number | u64::from(sequence) << 48))
        })
    }
    /// The index of reparse points has the new ones and those of before, in order.
    pub(super) fn reparse_index(&self, added: &Added) -> Result<()> {
        let mut points = self.points(added).peekable();
        let (Some(number), true) = (self.before.reparse_index(), points.peek().is_some()) else { return Ok(()) };
        let read = |reader| OldDir::read_reparse(reader, number).map(|d| d.keys);
        let place = self.new.reader.place(number).get();
        let form = OldDir::read_reparse(&self.new.reader, number)?.form(&self.new.reader)?;
        form.map_err(|what| wrong(place, "index of reparse points", what))?;
        let (before, now) = (read(self.old_reader())?, read(&self.new.reader)?);
        let mut meant: Vec<Vec<u32>> = before.iter().map(index::words).collect();
        meant.extend(points.map(|(tag, r)| vec![tag, r as u32, (r >> 32) as u32]));
        meant.sort_unstable();
        if now.iter().map(index::words).ne(meant) || now.iter().any(|k| k.reference.0 != index::NO_DATA) {
            let place = self.new.reader.place(number).get();
            return Err(wrong(place, "index of reparse points", "the new ones and those of before, in order"));
        }
        Ok(())
    }
}

/// Bytes that are initialized, where they are not all: zeros follow that begin within a cluster.
fn valid(extents: &[Extent<Stream, Volume>], cluster: u64) -> Option<u64> {
    let [.., before, last] = extents else { return None };
    let starts = last.start.get();
    let within = last.what == What::Zero && before.what != What::Zero && starts.checked_rem(cluster) != Some(0);
    within.then_some(starts)
}

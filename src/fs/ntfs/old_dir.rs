//! A directory of the host that is to be rebuilt.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::extent::{Layer, Stream};
use crate::fs::ntfs::bits::Bits;
use crate::fs::ntfs::index::{self, Built, Form, Key, Source};
use crate::fs::ntfs::layout::{DIRECTORY, kind};
use crate::fs::ntfs::raw::{RawRecord, stored};
use crate::fs::ntfs::reader::Reader;
use crate::fs::ntfs::runs::Run;

/// `$I30` in UTF-16.
const WIDE_NAME: &[u8] = &[0x24, 0, 0x49, 0, 0x33, 0, 0x30, 0];

/// A directory as it is.
#[derive(Debug)]
pub struct OldDir {
    /// Its record.
    pub record: RawRecord,
    /// Blocks of its index.
    pub form: Form,
    /// Its entries, in order.
    pub keys: Vec<Key>,
}

/// Whether an attribute belongs to the index of names.
fn of_index(kind: u32, name: &[u8]) -> bool {
    matches!(kind, kind::INDEX_ROOT | kind::INDEX_ALLOCATION | kind::BITMAP) && name == WIDE_NAME
}

impl OldDir {
    /// Reads it with all of its index.
    ///
    /// # Errors
    /// [`Error::Refused`] where it can't be rebuilt; [`Error::Corrupt`] where it is damaged.
    pub fn read(reader: &Reader, number: u64) -> Result<Self> {
        let dir = Self::read_listed(reader, number)?;
        if dir.record.has_list() {
            return Err(Error::Refused(format!(
                "the directory of MFT record {number} has an attribute list: choose another directory"
            )));
        }
        Ok(dir)
    }
    /// The same, also where it has an attribute list; such a one can't be rebuilt.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where it is damaged.
    pub fn read_listed(reader: &Reader, number: u64) -> Result<Self> {
        let record = RawRecord::read(reader, number)?;
        let place = reader.place(number);
        if record.flags & DIRECTORY == 0 {
            return Err(Error::corrupt(format!("MFT record {number}"), place, "a directory"));
        }
        let value = |kind: u32| -> Result<Option<Arc<dyn Layer<Stream>>>> {
            let chunk = reader.file(number, kind)?;
            if Reader::parts(&chunk, kind, b"$I30").is_empty() {
                return Ok(None);
            }
            reader.open_value(number, kind, b"$I30").map(Some)
        };
        let bytes = |layer: &dyn Layer<Stream>| {
            let len = usize::try_from(layer.len()).unwrap_or(usize::MAX);
            layer.read_vec(crate::extent::Offset::new(0), len)
        };
        let root = value(kind::INDEX_ROOT)?;
        let root = root.ok_or_else(|| Error::corrupt(format!("MFT record {number}"), place, "$INDEX_ROOT"))?;
        let root = bytes(&*root)?;
        let blocks = value(kind::INDEX_ALLOCATION)?;
        let bitmap = value(kind::BITMAP)?.map_or(Ok(Vec::new()), |b| {
            // A bit for each block: no longer than the volume has bytes, whatever its head says.
            if b.len() > reader.volume.len() {
                return Err(Error::corrupt(format!("MFT record {number}"), place, "a bitmap within the volume"));
            }
            bytes(&*b)
        })?;
        let blocks = blocks.as_deref().map(|b| -> &dyn crate::extent::ReadAt<Stream> { b });
        let source = Source { root: &root, blocks, bitmap: Bits::of(bitmap), cluster: reader.boot.cluster };
        let (form, keys) = index::read(&source)?;
        Ok(Self { record, form, keys })
    }
    /// The clusters of its index.
    pub fn clusters(&self) -> Vec<Run> {
        let index = self.record.attributes.iter().filter(|a| of_index(a.kind, &a.name));
        index.flat_map(|a| stored(&a.runs).collect::<Vec<_>>()).collect()
    }
    /// Bytes that its new index may take in the record.
    pub fn room(&self) -> usize {
        let others = self.record.attributes.iter().filter(|a| !of_index(a.kind, &a.name)).map(|a| a.bytes.len());
        self.record.room().saturating_sub(others.sum())
    }
    /// Its record with these attributes for the index.
    pub fn with(&self, index: Vec<(u32, Vec<u8>)>) -> Option<Vec<u8>> {
        let mut all: Vec<(u32, Vec<u8>, bool)> = Vec::new();
        for a in self.record.attributes.iter().filter(|a| !of_index(a.kind, &a.name)) {
            all.push((a.kind, a.bytes.clone(), false));
        }
        for (kind, bytes) in index {
            // Names without one come first, and `$I30` before what else has a name of letters.
            let at = all.partition_point(|(other, bytes, _)| (*other, bytes.get(9) > Some(&0)) < (kind, true));
            all.insert(at, (kind, bytes, true));
        }
        self.record.with(all.into_iter().map(|(_, bytes, new)| (bytes, new)).collect())
    }
}

/// Bytes that the attributes beside the root take, at most, where an index has blocks.
pub const BESIDE: usize = 0xC0;

/// The index of these keys in `room` bytes of a record. None where that is too small.
pub fn build(keys: &[Key], form: Form, cluster: u64, room: usize) -> Option<Built> {
    let head = 0x20usize;
    if index::small(keys.iter().map(Key::len)).saturating_add(head) <= room {
        return index::build(keys, form, cluster, room.saturating_sub(head));
    }
    index::build(keys, form, cluster, room.checked_sub(BESIDE)?.checked_sub(head)?)
}

/// Room that an index needs at least, whatever its keys.
pub const LEAST: usize = BESIDE + 0x20 + index::SMALLEST;

//! An index of the host that is to be rebuilt: of a directory, or of all reparse points.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::extent::{Layer, Stream};
use crate::fs::ntfs::audit_form;
use crate::fs::ntfs::bits::Bits;
use crate::fs::ntfs::index::{self, Form, Key, Keys, Source};
use crate::fs::ntfs::layout::{DIRECTORY, kind};
use crate::fs::ntfs::raw::{Raw, RawRecord, stored};
use crate::fs::ntfs::reader::Reader;
use crate::fs::ntfs::runs::Run;

/// Which index of a record.
#[derive(Clone, Copy, Debug)]
pub struct Which {
    text: &'static [u8],
    units: &'static [u16],
    keys: Keys,
}

/// Of names.
pub const NAMES: Which = Which { text: b"$I30", units: &index::NAME, keys: Keys::Names };
/// Of reparse points.
pub const REPARSE: Which = Which { text: b"$R", units: &[0x24, 0x52], keys: Keys::Reparse };

impl Which {
    /// Whether an attribute belongs to it.
    pub fn has(self, kind: u32, name: &[u8]) -> bool {
        let units = name.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b));
        matches!(kind, kind::INDEX_ROOT | kind::INDEX_ALLOCATION | kind::BITMAP) && units.eq(self.units.iter().copied())
    }
}

/// What an index consists of.
type Values = (Vec<u8>, Option<Arc<dyn Layer<Stream>>>, Vec<u8>);

/// An index as it is.
#[derive(Debug)]
pub struct OldDir {
    /// Its record.
    pub record: RawRecord,
    /// Blocks of its index.
    pub form: Form,
    /// Its entries, in order.
    pub keys: Vec<Key>,
    which: Which,
}

impl OldDir {
    /// Reads a directory with all of its index.
    ///
    /// # Errors
    /// [`Error::Refused`] where it can't be rebuilt; [`Error::Corrupt`] where it is damaged.
    pub fn read(reader: &Reader, number: u64) -> Result<Self> {
        Self::in_one_record(Self::read_listed(reader, number)?)
    }
    /// The index of reparse points, which is in the record of `$Extend\$Reparse`.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_reparse(reader: &Reader, number: u64) -> Result<Self> {
        Self::in_one_record(Self::index(reader, number, REPARSE)?)
    }
    fn in_one_record(dir: Self) -> Result<Self> {
        if dir.record.has_list() {
            return Err(Error::Refused(format!(
                "the directory of MFT record {} has an attribute list: choose another directory",
                dir.record.number
            )));
        }
        Ok(dir)
    }
    /// A directory, also where it has an attribute list; such a one can't be rebuilt.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where it is damaged.
    pub fn read_listed(reader: &Reader, number: u64) -> Result<Self> {
        let dir = Self::index(reader, number, NAMES)?;
        if dir.record.flags & DIRECTORY == 0 {
            return Err(Error::corrupt(format!("MFT record {number}"), reader.place(number), "a directory"));
        }
        Ok(dir)
    }
    /// The value of its root, its blocks, and the bitmap of these.
    fn values(reader: &Reader, number: u64, which: Which) -> Result<Values> {
        let wrong = |what: &str| Error::corrupt(format!("MFT record {number}"), reader.place(number), what);
        let value = |kind: u32| -> Result<Option<Arc<dyn Layer<Stream>>>> {
            let chunk = reader.file(number, kind)?;
            if Reader::parts(&chunk, kind, which.text).is_empty() {
                return Ok(None);
            }
            reader.open_value(number, kind, which.text).map(Some)
        };
        let bytes = |layer: &dyn Layer<Stream>| {
            let len = usize::try_from(layer.len()).unwrap_or(usize::MAX);
            layer.read_vec(crate::extent::Offset::new(0), len)
        };
        let root = value(kind::INDEX_ROOT)?.ok_or_else(|| wrong("$INDEX_ROOT"))?;
        let root = bytes(&*root)?;
        let blocks = value(kind::INDEX_ALLOCATION)?;
        let bitmap = value(kind::BITMAP)?.map_or(Ok(Vec::new()), |b| {
            // A bit for each block: no longer than the volume has bytes, whatever its head says.
            if b.len() > reader.volume.len() {
                return Err(wrong("a bitmap within the volume"));
            }
            bytes(&*b)
        })?;
        Ok((root, blocks, bitmap))
    }
    /// Whether it has the form of those that are written; it is not what readers need.
    ///
    /// # Errors
    /// Where it can't be read.
    pub fn form(&self, reader: &Reader) -> Result<Result<(), &'static str>> {
        let (root, blocks, bitmap) = Self::values(reader, self.record.number, self.which)?;
        let blocks = match blocks {
            Some(layer) => {
                let len = usize::try_from(layer.len().min(reader.volume.len())).unwrap_or(0);
                layer.read_vec(crate::extent::Offset::new(0), len)?
            }
            None => Vec::new(),
        };
        Ok(audit_form::index(&root, &blocks, &bitmap, reader.boot.cluster))
    }
    fn index(reader: &Reader, number: u64, which: Which) -> Result<Self> {
        let record = RawRecord::read(reader, number)?;
        let wrong = |what: &str| Error::corrupt(format!("MFT record {number}"), reader.place(number), what);
        let (root, blocks, bitmap) = Self::values(reader, number, which)?;
        let blocks = blocks.as_deref().map(|b| -> &dyn crate::extent::ReadAt<Stream> { b });
        let source = Source { root: &root, blocks, bitmap: Bits::of(bitmap), cluster: reader.boot.cluster };
        let (form, keys) = index::read(&source)?;
        if form.keys != which.keys {
            return Err(wrong("an index of what its name says"));
        }
        Ok(Self { record, form, keys, which })
    }
    /// The name of the index in UTF-16.
    pub fn name(&self) -> &'static [u16] {
        self.which.units
    }
    /// The clusters of its index.
    pub fn clusters(&self) -> Vec<Run> {
        let index = self.record.attributes.iter().filter(|a| self.which.has(a.kind, self.record.name(a)));
        index.flat_map(|a| stored(&a.runs).collect::<Vec<_>>()).collect()
    }
    /// Attributes that are not of its index.
    fn others(&self) -> impl Iterator<Item = &Raw> {
        self.record.attributes.iter().filter(|a| !self.which.has(a.kind, self.record.name(a)))
    }
    /// Bytes that its new index may take in the record.
    pub fn room(&self) -> usize {
        let others = self.others().map(|a| self.record.bytes(a).len());
        self.record.room().saturating_sub(others.sum())
    }
    /// Its record with these attributes for the index.
    pub fn with(&self, index: Vec<(u32, Vec<u8>)>) -> Option<Vec<u8>> {
        let mut all: Vec<(u32, Vec<u8>, bool)> = Vec::new();
        for a in self.others() {
            all.push((a.kind, self.record.bytes(a).to_vec(), false));
        }
        for (kind, bytes) in index {
            // Names without one come first, and `$I30` before what else has a name of letters.
            let at = all.partition_point(|(other, bytes, _)| (*other, bytes.get(9) > Some(&0)) < (kind, true));
            all.insert(at, (kind, bytes, true));
        }
        self.record.with(all.into_iter().map(|(_, bytes, new)| (bytes, new)).collect())
    }
}

//! Partition tables: the volumes of a virtual disk.

use std::sync::Arc;

use crate::error::Result;
use crate::extent::{Image, Layer, ReadAt, Volume};

/// One volume of a disk.
pub struct Slot {
    /// Its part of a path: `p1`, `p2`, ... by partition number; empty for a disk without a table.
    pub name: String,
    /// What the table says it is: type name, label, identity.
    pub about: String,
    /// Its bytes.
    pub layer: Arc<dyn Layer<Volume>>,
}

/// The volumes of a disk, and what was found about its table.
pub struct Table {
    /// `gpt`, `mbr`, or `none` for a disk that is one volume.
    pub kind: &'static str,
    /// Bytes of a sector by which the table counts.
    pub sector: u64,
    /// The volumes in order of their partition numbers.
    pub slots: Vec<Slot>,
    /// Defects, one sentence each: a bad checksum, a partition beyond the end, an overlap.
    pub problems: Vec<String>,
}

/// Reads the table of `image`. Without one, the whole disk is one volume whose name is empty.
///
/// # Errors
/// Only where the disk can't be read.
pub fn probe(image: Arc<dyn ReadAt<Image>>) -> Result<Table> {
    let _ = image;
    Err(crate::error::Error::Unsupported("volume".into()))
}

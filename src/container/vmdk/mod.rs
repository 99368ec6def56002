//! VMDK, the disks of VMware: a descriptor, in a file of its own or inside an extent, and extents, each of which is flat or
//! sparse, in this file or in others. "Virtual Disk Format 5.0" by VMware.

use std::ops::Range;
use std::sync::Arc;

use super::table::{Fault, Pieces, Table};
use super::{Disk, OpenWith};
use crate::error::Result;
use crate::extent::{Device, LayerId, ReadAt};

mod descriptor;
mod grains;
mod header;
mod open;

use grains::Grains;

/// Whether a file begins like a descriptor or a sparse extent.
pub(super) fn recognised(head: &[u8]) -> bool {
    head.starts_with(&header::HOSTED)
        || head.starts_with(&header::COWD)
        || head.starts_with(&header::SESPARSE)
        || descriptor::is_descriptor(head)
}

/// Opens a VMDK by its descriptor, or by the extent that holds it.
///
/// # Errors
/// What makes no sense, an extent opened without its descriptor, and what the gate says of extents and parents.
pub(super) fn open(device: &Arc<dyn ReadAt<Device>>, with: &OpenWith<'_>) -> Result<Disk> {
    open::open(device, with)
}

/// What an extent's bytes are.
enum Content {
    /// Those of a file, from this byte on.
    Flat(LayerId, u64),
    Zero,
    /// The virtual machine may not read them.
    Denied,
    Sparse(Box<Grains>),
}

/// An extent of a disk.
struct Extent {
    /// Bytes of the disk before it.
    start: u64,
    len: u64,
    content: Content,
}

/// The extents of one VMDK, without its parents.
struct Extents {
    list: Vec<Extent>,
    len: u64,
    files: Vec<Arc<dyn ReadAt<Device>>>,
    /// The CID.
    identity: String,
    name: String,
}

impl Table for Extents {
    fn len(&self) -> u64 {
        self.len
    }
    fn span(&self) -> u64 {
        let one = |e: &Extent| match &e.content {
            Content::Sparse(grains) => grains.span(),
            _ => 0,
        };
        self.list.iter().map(one).max().unwrap_or_default()
    }
    fn pieces(&self, range: Range<u64>, out: &mut Pieces) -> Result<()> {
        let first = self.list.partition_point(|e| e.start.saturating_add(e.len) <= range.start);
        for (number, extent) in self.list.iter().enumerate().skip(first) {
            let from = range.start.saturating_sub(extent.start);
            let to = range.end.saturating_sub(extent.start).min(extent.len);
            if extent.start >= range.end {
                break;
            }
            let len = to.saturating_sub(from);
            match &extent.content {
                Content::Flat(file, at) => out.stored(len, *file, at.saturating_add(from)),
                Content::Zero => out.zero(len),
                Content::Denied => out.unreadable(len, Fault::new("VMDK extent", extent.start, DENIED)),
                Content::Sparse(grains) => {
                    grains.pieces(from..to, u32::try_from(number).unwrap_or(u32::MAX), out);
                }
            }
        }
        Ok(())
    }
    fn unpack(&self, unit: u64, out: &mut Vec<u8>) -> Result<()> {
        let extent = usize::try_from(unit >> 32).ok().and_then(|n| self.list.get(n));
        match extent.map(|e| &e.content) {
            Some(Content::Sparse(grains)) => grains.unpack(unit & 0xFFFF_FFFF, out),
            _ => Err(Fault::new("VMDK compressed grain", 0, "an extent with grains").error()),
        }
    }
    fn files(&self) -> &[Arc<dyn ReadAt<Device>>] {
        &self.files
    }
    fn name(&self) -> &str {
        &self.name
    }
    fn identity(&self) -> &str {
        &self.identity
    }
}

const DENIED: &str = "an extent that may be read: the descriptor says NOACCESS";

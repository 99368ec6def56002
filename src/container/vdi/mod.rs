//! VDI, the disks of VirtualBox: static, dynamic and differencing.
//!
//! The block map has a number of 32 bits for each block of the disk. Blocks that were never written are the parent's, or
//! zeros; blocks that were discarded are zeros. A differencing disk names its parent by identity only: no name of a file is
//! in it.

use std::ops::Range;
use std::sync::Arc;

use super::blocks::{Entries, stored, touched};
use super::gate::Wanted;
use super::table::{Pieces, Table};
use super::{Disk, Format, OpenWith, Parent};
use crate::error::{Error, Result};
use crate::extent::{Device, Offset, ReadAt};
use crate::guid::Guid;

mod layout;
use layout::{Block, Header};

/// Files beside a child that are asked whether they are its parent.
const MAX_SIBLINGS: usize = 1000;

const ENTRY: &str = "VDI block map entry";

/// One VDI.
struct Blocks {
    files: [Arc<dyn ReadAt<Device>>; 1],
    header: Header,
    identity: String,
    name: String,
}

impl Table for Blocks {
    fn len(&self) -> u64 {
        self.header.size
    }
    fn span(&self) -> u64 {
        // 16 KiB of entries.
        self.header.block.saturating_mul(4096)
    }
    fn pieces(&self, range: Range<u64>, out: &mut Pieces) -> Result<()> {
        let [file] = &self.files;
        let entries = Entries::<4>::read(ENTRY, &**file, self.header.map, touched(&range, self.header.block));
        entries.each(range, self.header.block, out, |part, entry, out| {
            match Block::decode(u32::from_le_bytes(entry)) {
                Block::Absent if self.header.has_parent() => out.parent(part.len),
                Block::Absent | Block::Zero => out.zero(part.len),
                Block::At(number) => {
                    let at = self.header.place(number).saturating_add(part.from);
                    stored(out, part.len, &**file, at, ENTRY, entries.place(part.number));
                }
            }
        });
        Ok(())
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

/// Whether a file begins like a VDI.
pub(super) fn recognised(head: &[u8]) -> bool {
    head.get(layout::SIGN_AT..).is_some_and(|rest| rest.starts_with(&layout::SIGN))
}

/// By what children know it: identity and last change. Both must be as they were when the child was made.
fn identity(id: Guid, change: Guid) -> String {
    format!("{id} {change}")
}

/// Opens a VDI.
///
/// # Errors
/// [`Error::Corrupt`] for a header that makes no sense, and what the gate says of a parent.
pub(super) fn open(device: &Arc<dyn ReadAt<Device>>, with: &OpenWith<'_>) -> Result<Disk> {
    let header = Header::decode(&device.read_vec(Offset::new(0), layout::HEADER)?)?;
    let mut remarks = Vec::new();
    let parent = match header.has_parent() {
        true => Some(parent(&header, with, &mut remarks)?),
        false => None,
    };
    let identity = identity(header.id, header.change);
    let table = Blocks { files: [Arc::clone(device)], header, identity, name: with.name() };
    let mut disk = Disk::chained("vdi", Arc::new(table), Vec::new(), parent)?;
    remarks.append(&mut disk.remarks);
    disk.remarks = remarks;
    Ok(disk)
}

/// The parent: that file beside the child, or among those that the machine's description lists, which has the identity. Its name
/// is nowhere in the child.
fn parent(header: &Header, with: &OpenWith<'_>, remarks: &mut Vec<String>) -> Result<Parent> {
    let own = with.gate.own();
    let mut names = with.gate.siblings()?;
    names.retain(|name| name != own && name.to_ascii_lowercase().ends_with(b".vdi"));
    names.sort_unstable();
    names.truncate(MAX_SIBLINGS);
    let beside = names.iter().map(|name| (with.gate, name));
    let listed = with.media.iter().flat_map(|media| media.files.iter().map(|name| (media.gate, name)));
    for (gate, name) in beside.chain(listed) {
        let wanted = Wanted { name, what: "parent", moved: false };
        // A file that can't be opened or is no VDI is not the one that is sought.
        let Ok(opened) = with.part_by(gate, &wanted) else { continue };
        let head = opened.device.read_vec(Offset::new(0), layout::HEADER).ok();
        let Some(Ok(found)) = head.map(|h| Header::decode(&h)) else { continue };
        if found.id != header.parent {
            continue;
        }
        let parent = with.parent_by(gate, &wanted, Format::Kind("vdi"))?;
        if found.change != header.parent_change && !header.parent_change.is_nil() {
            let why = format!("the parent {} was changed after its child was made from it", parent.opened.name);
            remarks.push(with.other(why)?);
        }
        return Ok(parent);
    }
    Err(Error::NotFound(format!("the parent, a VDI of the identity {{{}}}, is not beside the image", header.parent)))
}

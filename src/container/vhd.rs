//! VHD: fixed, dynamic, differencing. "Virtual Hard Disk Image Format Specification" 1.0.
//!
//! ```text
//! fixed     disk | footer
//! dynamic   copy of the footer | dynamic header | block allocation table | blocks ... | footer
//! ```
//!
//! A block is a bitmap of its sectors, and the sectors. In a differencing disk the bitmap says which sectors are here and
//! which are the parent's; in a dynamic disk it says nothing that counts. The footer is the last 512 bytes of the file, 511
//! in files of Virtual PC before 2004.

use std::sync::Arc;

use super::blocks::all_repeated;
use super::table::Plain;
use super::{Disk, Format, OpenWith, Parent, paths};
use crate::error::{Error, Result};
use crate::extent::{Device, Map, Offset, ReadAt};

mod layout;
mod table;

use layout::{ABSENT, FOOTER, Footer, HEADER, Header, Locator, OLD_FOOTER, SECTOR, locator_name};

/// What a geometry can count to: larger disks all have this one.
const MOST_BY_GEOMETRY: u64 = 65_535 * 16 * 255 * SECTOR;

/// A footer, where it lies, and what should be said of it.
pub(super) struct Found {
    at: Offset<Device>,
    footer: Footer,
    remarks: Vec<String>,
}

/// Opens `device`, whose footer was found.
///
/// # Errors
/// [`Error::Corrupt`] for what makes no sense, and what the gate says of a parent.
pub(super) fn open(device: &Arc<dyn ReadAt<Device>>, found: Found, with: &OpenWith<'_>) -> Result<Disk> {
    let Found { at, footer, mut remarks } = found;
    let mut disk = match footer.disk_type {
        2 => fixed(device, at, &footer, &mut remarks)?,
        3 | 4 => blocks(device, &footer, with, &mut remarks)?,
        other => {
            let at = at.saturating_add(60);
            return Err(Error::corrupt("VHD footer", at, format!("disk type 2, 3 or 4, it is {other}")));
        }
    };
    remarks.append(&mut disk.remarks);
    disk.remarks = remarks;
    Ok(disk)
}

/// The footer; of a file that lost it, or where it is damaged, the copy of it that dynamic disks begin with.
///
/// # Errors
/// Where these places can't be read.
pub(super) fn footer(device: &dyn ReadAt<Device>) -> Result<Option<Found>> {
    let mut remarks = Vec::new();
    let mut last = None;
    for len in [FOOTER, OLD_FOOTER] {
        let Some(at) = device.len().checked_sub(len as u64).map(Offset::new) else { continue };
        if let Some(footer) = Footer::decode(at, &device.read_vec(at, len)?)? {
            last = Some((at, footer));
            break;
        }
    }
    if last.as_ref().is_some_and(|(_, f)| f.sound) {
        return Ok(last.map(|(at, footer)| Found { at, footer, remarks }));
    }
    let start = Offset::new(0);
    let copy = match device.len() >= FOOTER as u64 {
        true => Footer::decode(start, &device.read_vec(start, FOOTER)?)?.filter(|f| f.sound && f.disk_type != 2),
        false => None,
    };
    let found = match (last, copy) {
        (Some((at, _)), Some(copy)) => {
            remarks.push(format!(
                "the checksum of the VHD footer at {at} is wrong: its copy at the file's start is right"
            ));
            Some((start, copy))
        }
        (Some((at, footer)), None) => {
            remarks.push(format!("the checksum of the VHD footer at {at} is wrong"));
            Some((at, footer))
        }
        (None, Some(copy)) => {
            remarks
                .push("the VHD has no footer: the file was cut, or not closed; its copy at the start is taken".into());
            Some((start, copy))
        }
        (None, None) => None,
    };
    Ok(found.map(|(at, footer)| Found { at, footer, remarks }))
}

/// The identity by which children know a parent.
fn identity(id: &[u8; 16]) -> String {
    id.iter().map(|b| format!("{b:02x}")).collect()
}

fn fixed(
    device: &Arc<dyn ReadAt<Device>>,
    at: Offset<Device>,
    footer: &Footer,
    remarks: &mut Vec<String>,
) -> Result<Disk> {
    let data = at.get();
    let size = match footer.size {
        size if size > data => {
            remarks
                .push(format!("the VHD footer says that the disk has {size} bytes, the file has {data}: it was cut"));
            data
        }
        size if size == 0 && data > 0 => {
            remarks
                .push(format!("the VHD footer says that the disk has no byte: the {data} bytes before it are taken"));
            data
        }
        size => size,
    };
    if size < data {
        remarks.push(format!(
            "{} bytes between the disk's end and the VHD footer are no part of it",
            data.saturating_sub(size)
        ));
    }
    let plain = Plain::new(Map::run(size, device.id(), 0), vec![Arc::clone(device)]);
    Disk::chained("vhd", Arc::new(plain.identified(identity(&footer.id))), Vec::new(), None)
}

fn blocks(
    device: &Arc<dyn ReadAt<Device>>,
    footer: &Footer,
    with: &OpenWith<'_>,
    remarks: &mut Vec<String>,
) -> Result<Disk> {
    let at = Offset::new(footer.header);
    let header = Header::decode(at, &device.read_vec(at, HEADER)?)?;
    if !header.sound {
        remarks.push(format!("the checksum of the VHD dynamic header at {at} is wrong"));
    }
    let (size, by_geometry) = (footer.size, footer.geometry);
    if &footer.creator == b"vpc " && by_geometry < size && (1..MOST_BY_GEOMETRY).contains(&by_geometry) {
        remarks.push(format!("Virtual PC shows the first {by_geometry} of the disk's {size} bytes, by its geometry"));
    }
    let differencing = footer.disk_type == 4;
    let repeated = match differencing {
        true => {
            all_repeated::<4>(table::ENTRY, &**device, header.table, header.entries.into(), header.block, |entry| {
                Some(u32::from_be_bytes(entry)).filter(|sector| *sector != ABSENT).map(u64::from)
            })?
        }
        false => Vec::new(),
    };
    let parent = match differencing {
        true => Some(parent(&**device, &header, with, remarks)?),
        false => None,
    };
    let (files, identity) = ([Arc::clone(device)], identity(&footer.id));
    let table = table::Blocks { files, size, header, differencing, repeated, identity, name: with.name() };
    Disk::chained("vhd", Arc::new(table), Vec::new(), parent)
}

/// The parent, by the first of its names that leads to the disk with the right identity.
fn parent(
    device: &dyn ReadAt<Device>,
    header: &Header,
    with: &OpenWith<'_>,
    remarks: &mut Vec<String>,
) -> Result<Parent> {
    // Relative paths outlive a move of both files.
    let order = |l: &&Locator| match &l.code {
        b"W2ru" | b"Wi2r" => 0,
        b"MacX" => 1,
        _ => 2,
    };
    let mut locators: Vec<&Locator> = header.locators.iter().collect();
    locators.sort_by_key(order);
    let mut names = Vec::new();
    for locator in locators {
        let Ok(bytes) = device.read_vec(Offset::new(locator.at), locator.len as usize) else {
            remarks.push(format!("the VHD parent locator at {:#x} is not within the file", locator.at));
            continue;
        };
        names.extend(locator_name(locator.code, &bytes).map(|n| paths::from_windows(&n)));
    }
    names.push(paths::from_windows(&header.parent_name));
    let mut seen = Vec::new();
    names.retain(|n| {
        !n.is_empty() && !seen.contains(n) && {
            seen.push(n.clone());
            true
        }
    });
    let parent = with.first_parent(&names, Format::Kind("vhd"))?;
    let (want, have) = (identity(&header.parent), parent.identity());
    if want != have {
        let why = format!("the parent {} has the identity {have}, its child expects {want}", parent.opened.name);
        remarks.push(with.other(why)?);
    }
    Ok(parent)
}

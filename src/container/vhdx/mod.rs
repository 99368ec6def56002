//! VHDX, the disks of Hyper-V: \[MS-VHDX\]. Fixed, dynamic and differencing.
//!
//! A file that was not closed has a log, which is replayed in memory before anything else is read: what the tables say
//! without it is stale. A file whose log can't be replayed is refused.

use std::sync::Arc;

use super::blocks::all_repeated;
use super::{Disk, Format, OpenWith, Parent, paths};
use crate::error::{Error, Result};
use crate::extent::{Device, Offset, ReadAt};

mod layout;
mod log;
mod overlay;
mod table;

use crate::guid::Guid;
use layout::{Header, Metadata, Payload, Regions};
use overlay::Overlay;

/// Bytes of the metadata region that are read: the table, and items of at most 1 MiB in all.
const MAX_METADATA: u64 = 2 << 20;

/// Whether a file begins like a VHDX.
pub(super) fn recognised(head: &[u8]) -> bool {
    head.starts_with(layout::SIGN)
}

/// Opens a VHDX.
///
/// # Errors
/// What makes no sense, a log that can't be replayed, and what the gate says of a parent.
pub(super) fn open(device: &Arc<dyn ReadAt<Device>>, with: &OpenWith<'_>) -> Result<Disk> {
    let mut remarks = Vec::new();
    let header = header(&**device, &mut remarks)?;
    let now = replayed(device, &header, &mut remarks)?;
    let regions = either("VHDX region table", layout::REGIONS, &mut remarks, |at| {
        Regions::decode(at, &now.read_vec(Offset::new(at), layout::TABLE)?)
    })?;
    let (at, len) = regions.metadata;
    let have = len.min(MAX_METADATA).min(now.len().saturating_sub(at));
    let bytes = now.read_vec(Offset::new(at), usize::try_from(have).unwrap_or_default())?;
    let metadata = Metadata::decode(at, &bytes)?;
    let (bat, bat_len) = regions.bat;
    let blocks = metadata.size.div_ceil(metadata.block);
    let entries = match blocks.checked_sub(1) {
        Some(last) => metadata.entry(last).saturating_add(1),
        None => 0,
    };
    if entries.saturating_mul(8) > bat_len {
        let expected = format!("{entries} entries for a disk of {} bytes, it has {bat_len} bytes", metadata.size);
        return Err(Error::corrupt("VHDX block allocation table", Offset::<Device>::new(bat), expected));
    }
    let (repeated, parent) = match &metadata.parent {
        Some(locator) => {
            // Only blocks that are made up sector by sector can say much with few bytes.
            let again = all_repeated::<8>(table::ENTRY, &now, bat, entries, metadata.block, |entry| {
                match Payload::decode(u64::from_le_bytes(entry)) {
                    Payload::Partly(at) => Some(at),
                    _ => None,
                }
            })?;
            (again, Some(parent(locator, with, &mut remarks)?))
        }
        None => (Vec::new(), None),
    };
    let (files, identity) = ([Arc::clone(device)], header.data_write.to_string());
    let table = table::Blocks { files, now, metadata, bat, repeated, identity, name: with.name() };
    let mut disk = Disk::chained("vhdx", Arc::new(table), Vec::new(), parent)?;
    remarks.append(&mut disk.remarks);
    disk.remarks = remarks;
    Ok(disk)
}

/// The first of two copies that is valid.
fn either<T>(name: &str, places: [u64; 2], remarks: &mut Vec<String>, read: impl Fn(u64) -> Result<T>) -> Result<T> {
    let [first, second] = places;
    let error = match read(first) {
        Ok(found) => return Ok(found),
        Err(e) => e,
    };
    let found = read(second).map_err(|_| error.again())?;
    remarks.push(format!("the {name} at {first:#x} is damaged ({error}): the copy is taken"));
    Ok(found)
}

/// The header that counts.
fn header(device: &dyn ReadAt<Device>, remarks: &mut Vec<String>) -> Result<Header> {
    let [first, second] =
        layout::HEADERS.map(|at| Header::decode(at, &device.read_vec(Offset::new(at), layout::HEADER)?));
    match (first, second) {
        (Ok(a), Ok(b)) => Ok(if b.sequence > a.sequence { b } else { a }),
        // A crash while one was written: the other one counts, and has been written before.
        (Ok(one), Err(e)) | (Err(e), Ok(one)) => {
            remarks.push(format!("one of the VHDX headers is not valid ({e}): the other one is taken"));
            Ok(one)
        }
        (Err(e), Err(_)) => Err(e),
    }
}

/// The file with its log replayed.
fn replayed(device: &Arc<dyn ReadAt<Device>>, header: &Header, remarks: &mut Vec<String>) -> Result<Overlay> {
    let mut now = Overlay::new(Arc::clone(device));
    if header.log.is_nil() {
        return Ok(now);
    }
    let (at, len) = (header.log_at, header.log_len);
    let place = Offset::new(at);
    if len == 0 || len > log::MAX_LOG || !u64::from(len).is_multiple_of(layout::MIB) {
        let expected = format!("a log of a multiple of 1 MiB, at most {} bytes, it has {len}", log::MAX_LOG);
        return Err(Error::corrupt("VHDX log", place, expected));
    }
    let bytes = device.read_vec(place, len as usize)?;
    let Some(need) = log::replay(at, &bytes, header.log, &mut now)? else {
        remarks.push("the VHDX was not closed, and its log has no entry of that session: nothing was replayed".into());
        return Ok(now);
    };
    if device.len() < need.flushed {
        let expected = format!("a file of at least {} bytes, it has {}: it was cut", need.flushed, device.len());
        return Err(Error::corrupt("VHDX log", place, expected));
    }
    now.extend(need.last);
    remarks.push(format!("the VHDX was not closed: {} entries of its log were replayed in memory", need.entries));
    Ok(now)
}

/// The parent, by the first of its names that leads anywhere.
fn parent(locator: &[(String, String)], with: &OpenWith<'_>, remarks: &mut Vec<String>) -> Result<Parent> {
    let value = |key: &str| locator.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
    // Relative paths outlive a move of both files.
    let keys = ["relative_path", "absolute_win32_path", "volume_path"];
    let names: Vec<Vec<u8>> = keys.into_iter().filter_map(value).map(paths::from_windows).collect();
    let parent = with.first_parent(&names, Format::Kind("vhdx"))?;
    let linkage = |key: &str| value(key).and_then(Guid::parse).map(|g| g.to_string());
    let (want, other) = (linkage("parent_linkage"), linkage("parent_linkage2"));
    let have = parent.identity().to_owned();
    if want.as_deref() != Some(&have) && other.as_deref() != Some(&have) {
        let want = want.unwrap_or_else(|| "none that can be read".into());
        let why = format!("the parent {} has the identity {have}, its child expects {want}", parent.opened.name);
        remarks.push(with.other(why)?);
    }
    Ok(parent)
}

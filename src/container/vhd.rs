//! Fixed VHD: the disk's bytes, and behind them a footer. "Virtual Hard Disk Image Format Specification" 1.0.
//!
//! All numbers are big-endian. The footer is the last 512 bytes of the file, 511 in files of Virtual PC before 2004.

use std::sync::Arc;

use super::Disk;
use crate::bytes::Fields;
use crate::error::{Error, Result};
use crate::extent::{Device, Map, Offset, ReadAt};

/// What footers begin with.
pub(super) const COOKIE: &[u8; 8] = b"conectix";
/// Bytes of a footer.
const FOOTER: usize = 512;
/// Bytes of an old footer, and of what a checksum is made of in both.
const OLD_FOOTER: usize = 511;

/// What a footer says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Footer {
    /// 2 fixed, 3 dynamic, 4 differencing.
    disk_type: u32,
    /// Bytes of the disk.
    size: u64,
    /// Whether its checksum is right.
    sound: bool,
}

/// Decodes a footer of 511 or 512 bytes; none without the cookie.
fn decode(at: Offset<Device>, bytes: &[u8]) -> Result<Option<Footer>> {
    if !bytes.starts_with(COOKIE) {
        return Ok(None);
    }
    let f = Fields::new("VHD footer", at, bytes);
    // The one's complement of the sum of all bytes but the checksum's own.
    let own: u32 = f.slice(64, 4)?.iter().map(|b| u32::from(*b)).sum();
    let all: u32 = bytes.iter().map(|b| u32::from(*b)).sum();
    let sound = !all.saturating_sub(own) == f.u32_be(64)?;
    Ok(Some(Footer { disk_type: f.u32_be(60)?, size: f.u64_be(48)?, sound }))
}

/// Opens `device` where it ends with a footer.
///
/// # Errors
/// [`Error::Unsupported`] for dynamic and differencing disks.
pub(super) fn open(device: &Arc<dyn ReadAt<Device>>) -> Result<Option<Disk>> {
    for len in [FOOTER, OLD_FOOTER] {
        let Some(at) = device.len().checked_sub(len as u64) else { continue };
        let at = Offset::new(at);
        let Some(footer) = decode(at, &device.read_vec(at, len)?)? else { continue };
        return disk(device, at, &footer).map(Some);
    }
    Ok(None)
}

fn disk(device: &Arc<dyn ReadAt<Device>>, at: Offset<Device>, footer: &Footer) -> Result<Disk> {
    let unsupported = |what: &str| Err(Error::Unsupported(format!("a {what} VHD: only fixed ones can be read so far")));
    let mut remarks = Vec::new();
    match footer.disk_type {
        2 => {}
        3 => return unsupported("dynamic"),
        4 => return unsupported("differencing"),
        other => {
            return Err(Error::corrupt(
                "VHD footer",
                at.saturating_add(60),
                format!("disk type 2, 3 or 4, it is {other}"),
            ));
        }
    }
    if !footer.sound {
        remarks.push(format!("the checksum of the VHD footer at {at} is wrong"));
    }
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
    let mut disk = Disk::plain("vhd", Map::run(size, device.id(), 0), vec![Arc::clone(device)])?;
    disk.remarks = remarks;
    Ok(disk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_the_specification() {
        let mut bytes = [0u8; FOOTER];
        bytes[..8].copy_from_slice(COOKIE);
        bytes[60..64].copy_from_slice(&2u32.to_be_bytes());
        bytes[48..56].copy_from_slice(&4096u64.to_be_bytes());
        let sum: u32 = bytes.iter().map(|b| u32::from(*b)).sum();
        bytes[64..68].copy_from_slice(&(!sum).to_be_bytes());
        let footer = decode(Offset::new(0), &bytes).unwrap().unwrap();
        assert_eq!(footer, Footer { disk_type: 2, size: 4096, sound: true });
        bytes[100] = 1;
        assert!(!decode(Offset::new(0), &bytes).unwrap().unwrap().sound);
    }
}

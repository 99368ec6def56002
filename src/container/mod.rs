//! Containers: what presents the bytes of a virtual disk. Each is one more layer; nothing above it may notice which.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::extent::{Device, Image, Layer, ReadAt};

mod known;
mod raw;
mod vhd;

/// A virtual disk.
pub struct Disk {
    /// `raw`, `vhd`, ...
    pub kind: &'static str,
    /// Its bytes.
    pub image: Arc<dyn Layer<Image>>,
    /// Whatever else a reader should know, one sentence each.
    pub remarks: Vec<String>,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("kind", &self.kind).field("remarks", &self.remarks).finish_non_exhaustive()
    }
}

/// Recognises the container in `device` by its content. What has no container's signature is a raw image here; whether
/// its bytes mean anything, the volume and file system probes tell (bytes that none of them knows are *unknown*).
///
/// # Errors
/// A container that is recognised but damaged or not supported.
pub fn probe(device: Arc<dyn ReadAt<Device>>) -> Result<Disk> {
    let mut remarks = Vec::new();
    // A bad sector where a signature could be is no reason to give up a disk, but it is said.
    let mut unless_unreadable = |e: Error| match e {
        Error::Io { .. } => {
            remarks.push(format!("whether it is a container could not be made sure of: {e}"));
            Ok(())
        }
        other => Err(other),
    };
    match vhd::open(&device) {
        Ok(Some(disk)) => return Ok(disk),
        Ok(None) => {}
        Err(e) => unless_unreadable(e)?,
    }
    // A dynamic VHD begins with a copy of its footer, and is refused by its name here if the footer itself is lost.
    match known::probe(&device) {
        Ok(Some(name)) => return Err(Error::Unsupported(format!("{name}: such containers can't be read so far"))),
        Ok(None) => {}
        Err(e) => unless_unreadable(e)?,
    }
    let mut disk = raw::open(device)?;
    disk.remarks = remarks;
    Ok(disk)
}

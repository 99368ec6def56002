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
    // A dynamic VHD has a copy of its footer at the start, and is refused by its name here if the footer itself is lost.
    if let Some(disk) = vhd::open(&device)? {
        return Ok(disk);
    }
    if let Some(name) = known::probe(&device)? {
        return Err(Error::Unsupported(format!("{name}: such containers can't be read so far")));
    }
    raw::open(device)
}

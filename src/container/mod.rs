//! Containers: what presents the bytes of a virtual disk. Each is one more layer; nothing above it may notice which.

use std::sync::Arc;

use crate::error::Result;
use crate::extent::{Device, Image, Layer, ReadAt};

mod raw;

/// A virtual disk.
pub struct Disk {
    /// `raw`, `vhd`, ...
    pub kind: &'static str,
    /// Its bytes.
    pub image: Arc<dyn Layer<Image>>,
    /// Whatever else a reader should know, one sentence each.
    pub remarks: Vec<String>,
}

/// Recognises the container in `device` by its content. What has no container's signature is a raw image here; whether
/// its bytes mean anything, the volume and file system probes tell (bytes that none of them knows are *unknown*).
///
/// # Errors
/// A container that is recognised but damaged or not supported.
pub fn probe(device: Arc<dyn ReadAt<Device>>) -> Result<Disk> {
    raw::open(device)
}

//! A raw image: the disk's bytes as they are.

use std::sync::Arc;

use super::Disk;
use crate::error::Result;
use crate::extent::{Device, MapLayer, ReadAt};

/// All bytes of `device` as a disk.
pub(super) fn open(device: Arc<dyn ReadAt<Device>>) -> Result<Disk> {
    Ok(Disk { kind: "raw", image: Arc::new(MapLayer::whole(device)?), remarks: Vec::new() })
}

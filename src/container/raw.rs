//! A raw image: the disk's bytes as they are.

use std::sync::Arc;

use super::Disk;
use crate::error::Result;
use crate::extent::{Device, Map, ReadAt};

/// All bytes of `device` as a disk.
pub(super) fn open(device: Arc<dyn ReadAt<Device>>) -> Result<Disk> {
    Disk::plain("raw", Map::run(device.len(), device.id(), 0), vec![device])
}

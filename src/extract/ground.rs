//! The files and devices of this machine that an image lies in, to be read and shared from by position.

use std::fs::File;
use std::io;

use rustix::fs::Advice;

use crate::error::{Error, Result};
use crate::extent::LayerId;
use crate::stack::Stack;

/// One of them.
#[derive(Debug)]
pub(super) struct Ground {
    layer: LayerId,
    /// Open for reading.
    pub file: File,
    name: String,
    /// Bytes.
    pub len: u64,
    /// Whether it is a regular file: only these have blocks that can be shared, and bytes that the kernel copies by itself.
    pub regular: bool,
}

/// All of them. A stored extent's file is found by its layer.
#[derive(Debug)]
pub(super) struct Grounds(Vec<Ground>);

impl Grounds {
    /// Those of an opened address: the source, and the further files of its container. What is made of several files, and what lies in
    /// another image, is none of them: it is read through the layers.
    pub fn open(stack: &Stack) -> Result<Self> {
        let level = stack.levels.first().ok_or_else(|| Error::NotFound("nothing was opened".into()))?;
        let name = stack.address.source.display().to_string();
        let parts = level.disk.parts.iter().map(|part| (&part.device, part.name.clone()));
        let mut all = Vec::new();
        for (device, name) in std::iter::once((&level.device, name)).chain(parts) {
            let Some(file) = device.file() else { continue };
            let failed = |e: io::Error| Error::io(format!("opening {name}"), e);
            let regular = file.metadata().map_err(failed)?.is_file();
            let file = file.try_clone().map_err(failed)?;
            all.push(Ground { layer: device.id(), file, len: device.len(), name, regular });
        }
        Ok(Self(all))
    }
    /// The position of a layer's file; none for a layer that lies in no file of its own.
    pub fn find(&self, layer: LayerId) -> Option<usize> {
        self.0.iter().position(|g| g.layer == layer)
    }
    /// The file at a position.
    pub fn get(&self, at: usize) -> Option<&Ground> {
        self.0.get(at)
    }
    /// All.
    pub fn iter(&self) -> impl Iterator<Item = &Ground> {
        self.0.iter()
    }
}

impl Ground {
    /// Fills `buf` from `at` on by positioned reads.
    pub fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let mut at = at;
        let mut rest = buf;
        while !rest.is_empty() {
            match rustix::io::pread(&self.file, &mut *rest, at) {
                Ok(0) => return Err(self.failed(at, io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => {
                    at = at.saturating_add(n as u64);
                    rest = rest.get_mut(n..).unwrap_or_default();
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(self.failed(at, e.into())),
            }
        }
        Ok(())
    }
    fn failed(&self, at: u64, cause: io::Error) -> Error {
        Error::io(format!("{}: reading at {at:#x}", self.name), cause)
    }
    /// Says that these bytes will be wanted soon. It is only a hint.
    pub fn soon(&self, at: u64, len: u64) {
        if let Some(len) = std::num::NonZeroU64::new(len) {
            let _ = rustix::fs::fadvise(&self.file, at, Some(len), Advice::WillNeed);
        }
    }
}

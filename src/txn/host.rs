//! The volume that is written: a part of a medium.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::extent::{LayerId, Offset, ReadAt, Volume};
use crate::source::Medium;

/// The host volume: `len` bytes of a medium from byte `at` on. All of a commit goes through it, by the volume's offsets.
#[derive(Clone)]
pub struct HostVolume {
    medium: Arc<dyn Medium>,
    at: u64,
    len: u64,
    id: LayerId,
}

impl HostVolume {
    /// The volume of `len` bytes that begins at byte `at` of `medium`.
    ///
    /// # Errors
    /// [`Error::Refused`] where the medium ends before.
    pub fn new(medium: Arc<dyn Medium>, at: u64, len: u64) -> Result<Self> {
        if at.checked_add(len).is_none_or(|end| end > medium.len()) {
            return Err(Error::Refused(format!(
                "the host has {} bytes: no volume of {len} bytes at its byte {at}",
                medium.len()
            )));
        }
        Ok(Self { medium, at, len, id: LayerId::fresh() })
    }
    /// The byte of the medium at which it begins.
    pub fn at(&self) -> u64 {
        self.at
    }
}

impl ReadAt<Volume> for HostVolume {
    fn id(&self) -> LayerId {
        self.id
    }
    fn len(&self) -> u64 {
        self.len
    }
    fn read_at(&self, at: Offset<Volume>, buf: &mut [u8]) -> Result<()> {
        let end = at.checked_add(buf.len() as u64).map(Offset::get);
        if end.is_none_or(|end| end > self.len) {
            return Err(Error::past_end(at, buf.len() as u64, self.len));
        }
        let place = self.at.saturating_add(at.get());
        self.medium
            .read_at(place, buf)
            .map_err(|cause| Error::io(format!("reading {} bytes of the host at {at}", buf.len()), cause))
    }
}

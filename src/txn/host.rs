//! The volume that is written: a part of a medium.

use std::io;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::extent::{LayerId, Offset, ReadAt, Volume};
use crate::source::Medium;
use crate::txn::Journal;

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
    /// The volume of `journal` in `medium`: where it was at the commit, or, on a medium of just its length, at the start. It is
    /// told by the contents of the sector that the quarantine switches, which holds its serial number or UUID.
    ///
    /// # Errors
    /// [`Error::Refused`] where it is at neither place.
    pub fn find(medium: &Arc<dyn Medium>, journal: &Journal) -> Result<Self> {
        let about = journal.about();
        for at in [about.volume_at, 0] {
            if let Ok(volume) = Self::new(Arc::clone(medium), at, about.volume_len)
                && (at == about.volume_at || medium.len() == about.volume_len)
                && journal.switch().find(&volume).is_some()
            {
                return Ok(volume);
            }
        }
        Err(Error::Refused(format!(
            "this is not the host of the journal {}: no {} volume {} of {} bytes at byte {} of it, or it was changed since",
            journal.path().display(),
            about.kind,
            about.serial,
            about.volume_len,
            about.volume_at
        )))
    }
    /// The byte of the medium at which it begins.
    pub fn at(&self) -> u64 {
        self.at
    }
    fn place(&self, at: Offset<Volume>, len: u64) -> io::Result<u64> {
        match at.checked_add(len).map(Offset::get) {
            Some(end) if end <= self.len => Ok(self.at.saturating_add(at.get())),
            _ => Err(io::Error::other(format!("beyond the volume's {} bytes", self.len))),
        }
    }
    /// See [`Medium::read_at_once`].
    pub(super) fn read_at_once(&self, at: Offset<Volume>, buf: &mut [u8]) -> bool {
        self.place(at, buf.len() as u64).is_ok_and(|place| self.medium.read_at_once(place, buf))
    }
    /// Writes, durable after [`sync`](Self::sync).
    pub(super) fn write_at(&self, at: Offset<Volume>, bytes: &[u8]) -> io::Result<()> {
        self.medium.write_at(self.place(at, bytes.len() as u64)?, bytes)
    }
    pub(super) fn sync(&self) -> io::Result<()> {
        self.medium.sync()
    }
    pub(super) fn reserve(&self, at: u64, len: u64) -> io::Result<()> {
        self.medium.reserve(self.place(Offset::new(at), len)?, len)
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
        let place = self.place(at, buf.len() as u64).map_err(|_| Error::past_end(at, buf.len() as u64, self.len))?;
        self.medium
            .read_at(place, buf)
            .map_err(|cause| Error::io(format!("reading {} bytes of the host at {at}", buf.len()), cause))
    }
}

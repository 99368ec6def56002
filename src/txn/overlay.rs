//! The new state of a volume before anything of it is written, and the old one after everything is.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::extent::{LayerId, Offset, ReadAt, Volume};
use crate::txn::Staging;
use crate::txn::journal::Sealed;

/// Where the bytes of a patch are.
enum Bytes {
    Fresh(usize),
    Group(usize, usize),
    Open,
    Zeros,
    Own(Vec<u8>),
}

struct Patch {
    at: u64,
    len: u64,
    bytes: Bytes,
}

impl Patch {
    fn end(&self) -> u64 {
        self.at.saturating_add(self.len)
    }
}

/// A volume with changes laid over it. It keeps the identity of the volume, so that extents found through either agree.
pub struct Overlay {
    base: Arc<dyn ReadAt<Volume>>,
    staging: Arc<Staging>,
    /// By place, not overlapping.
    patches: Vec<Patch>,
}

impl Overlay {
    /// `base` as it will be after `staging` is committed: fresh structures, all groups, zeroed slack, the quarantine
    /// lifted. What is to be copied is not there yet: its targets read as they are before the commit.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where the staging writes something twice.
    pub fn new(base: Arc<dyn ReadAt<Volume>>, staging: Arc<Staging>) -> Result<Self> {
        let mut patches = Vec::new();
        let mut add = |at: Offset<Volume>, len: usize, bytes: Bytes| {
            if len > 0 {
                patches.push(Patch { at: at.get(), len: len as u64, bytes });
            }
        };
        for (i, fresh) in staging.fresh.iter().enumerate() {
            add(fresh.at, fresh.bytes.len(), Bytes::Fresh(i));
        }
        for (g, group) in staging.groups.iter().enumerate() {
            for (i, write) in group.writes.iter().enumerate() {
                add(write.at, write.bytes.len(), Bytes::Group(g, i));
            }
        }
        add(staging.quarantine.at, staging.quarantine.open.len(), Bytes::Open);
        for (at, len) in &staging.slack {
            add(*at, *len as usize, Bytes::Zeros);
        }
        Self::of(base, staging, patches)
    }

    /// `base` with the old contents of a journal's sectors and slack: the state before its commit, outside of units
    /// that were free.
    pub(super) fn before(base: Arc<dyn ReadAt<Volume>>, sealed: Sealed<'_>) -> Result<Self> {
        let own = |at: u64, bytes: &[u8]| Patch { at, len: bytes.len() as u64, bytes: Bytes::Own(bytes.to_vec()) };
        let body = sealed.body;
        let mut patches: Vec<Patch> =
            body.sectors.iter().map(|s| own(s.number.saturating_mul(super::SECTOR), body.pool.get(s.old))).collect();
        patches.push(own(sealed.switch.at, &sealed.switch.old));
        Self::of(base, Arc::new(Staging::default()), patches)
    }

    fn of(base: Arc<dyn ReadAt<Volume>>, staging: Arc<Staging>, mut patches: Vec<Patch>) -> Result<Self> {
        patches.sort_unstable_by_key(|p| p.at);
        for pair in patches.windows(2) {
            if let [a, b] = pair
                && b.at < a.end()
            {
                return Err(Error::corrupt("staging", Offset::<Volume>::new(b.at), "bytes that are written once"));
            }
        }
        Ok(Self { base, staging, patches })
    }

    /// The bytes of a patch; none for zeros.
    fn bytes<'a>(&'a self, patch: &'a Patch) -> Option<&'a [u8]> {
        match &patch.bytes {
            Bytes::Fresh(i) => self.staging.fresh.get(*i).map(|f| f.bytes.as_slice()),
            Bytes::Group(g, i) => self.staging.groups.get(*g)?.writes.get(*i).map(|w| w.bytes.as_slice()),
            Bytes::Open => Some(&self.staging.quarantine.open),
            Bytes::Own(bytes) => Some(bytes),
            Bytes::Zeros => None,
        }
    }
}

impl ReadAt<Volume> for Overlay {
    fn id(&self) -> LayerId {
        self.base.id()
    }
    fn len(&self) -> u64 {
        self.base.len()
    }
    fn read_at(&self, at: Offset<Volume>, buf: &mut [u8]) -> Result<()> {
        let start = at.get();
        let end = at.checked_add(buf.len() as u64).map(Offset::get).filter(|end| *end <= self.len());
        let end = end.ok_or_else(|| Error::past_end(at, buf.len() as u64, self.len()))?;
        let first = self.patches.partition_point(|p| p.end() <= start);
        let met = self.patches.get(first..).unwrap_or_default();
        // A metadata block is mostly one patch as a whole: then the base need not be read.
        if !met.first().is_some_and(|p| p.at <= start && end <= p.end()) {
            self.base.read_at(at, buf)?;
        }
        for patch in met.iter().take_while(|p| p.at < end) {
            let (from, to) = (patch.at.max(start), patch.end().min(end));
            let index = |at: u64, origin: u64| usize::try_from(at.saturating_sub(origin)).unwrap_or(usize::MAX);
            let Some(target) = buf.get_mut(index(from, start)..index(to, start)) else { continue };
            let range = index(from, patch.at)..index(to, patch.at);
            match self.bytes(patch).and_then(|bytes| bytes.get(range)) {
                Some(source) => target.copy_from_slice(source),
                None => target.fill(0),
            }
        }
        Ok(())
    }
}

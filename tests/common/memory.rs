//! Bytes in memory as a layer.

use std::ops::Range;
use std::sync::Arc;

use unimage::error::{Error, Result};
use unimage::extent::{LayerId, Offset, ReadAt, Space};

/// A layer of any space. Reading any of `bad` fails.
#[derive(Clone)]
pub struct Memory {
    pub bytes: Arc<Vec<u8>>,
    bad: Range<u64>,
    id: LayerId,
}

impl Memory {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes: Arc::new(bytes), bad: 0..0, id: LayerId::fresh() }
    }
    /// Other bytes of the same layer.
    pub fn with(&self, bytes: Vec<u8>) -> Self {
        Self { bytes: Arc::new(bytes), ..self.clone() }
    }
    /// Which layer it is, whatever its space.
    pub fn id(&self) -> LayerId {
        self.id
    }
    /// Bytes.
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
}

impl<S: Space> ReadAt<S> for Memory {
    fn id(&self) -> LayerId {
        self.id
    }
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn read_at(&self, at: Offset<S>, buf: &mut [u8]) -> Result<()> {
        let len = self.bytes.len() as u64;
        let end = at.checked_add(buf.len() as u64).map(Offset::get).filter(|end| *end <= len);
        let end = end.ok_or_else(|| Error::past_end(at, buf.len() as u64, len))?;
        if at.get() < self.bad.end && self.bad.start < end && !buf.is_empty() {
            let what = format!("reading {} bytes at {at}", buf.len());
            return Err(Error::io(what, std::io::Error::from_raw_os_error(5)));
        }
        buf.copy_from_slice(&self.bytes[at.get() as usize..end as usize]);
        Ok(())
    }
}

/// Bytes as a source.
pub fn bytes<S: Space>(bytes: Vec<u8>) -> Arc<dyn ReadAt<S>> {
    failing(bytes, 0..0)
}

/// Bytes as a source that fails with an I/O error wherever a read touches `bad`.
pub fn failing<S: Space>(bytes: Vec<u8>, bad: Range<u64>) -> Arc<dyn ReadAt<S>> {
    Arc::new(Memory { bad, ..Memory::new(bytes) })
}

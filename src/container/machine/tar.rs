//! `.ova`: a tar of an `.ovf` and its files, the description first. POSIX.1-1988 (ustar), with sizes of GNU.

use std::sync::Arc;

use super::super::gate::{Gate, Identity, Opened, Wanted};
use super::MAX_LEN;
use crate::bytes::Fields;
use crate::error::{Error, Result};
use crate::extent::{Device, LayerId, Offset, ReadAt};

/// Bytes of a header, and what everything is padded to.
const BLOCK: u64 = 512;
/// Files of an archive that are looked at.
const MAX_FILES: usize = 4096;

/// A file of an archive.
#[derive(Clone)]
struct Member {
    name: Vec<u8>,
    at: u64,
    len: u64,
}

/// An archive.
pub(super) struct Archive {
    device: Arc<dyn ReadAt<Device>>,
    members: Arc<Vec<Member>>,
}

/// Whether these are the first bytes of an archive whose first file is a description.
pub(super) fn recognised(head: &[u8]) -> bool {
    head.get(257..262) == Some(b"ustar") && head.get(..100).is_some_and(|name| is_description(until_zero(name)))
}

fn until_zero(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}

fn is_description(name: &[u8]) -> bool {
    name.to_ascii_lowercase().ends_with(b".ovf")
}

/// A number in octal digits, or in the bytes behind a first one of 0x80.
fn number(field: &[u8]) -> Option<u64> {
    if let Some((0x80, rest)) = field.split_first() {
        let (high, low) = rest.split_last_chunk::<8>()?;
        return high.iter().all(|b| *b == 0).then(|| u64::from_be_bytes(*low));
    }
    let text = std::str::from_utf8(until_zero(field)).ok()?.trim();
    u64::from_str_radix(text, 8).ok()
}

impl Archive {
    /// Reads all headers, as far as they make sense.
    pub(super) fn open(device: &Arc<dyn ReadAt<Device>>) -> Result<Self> {
        let mut members = Vec::new();
        let mut at = 0u64;
        while members.len() < MAX_FILES && at.saturating_add(BLOCK) <= device.len() {
            let bytes = device.read_vec(Offset::new(at), BLOCK as usize)?;
            let f = Fields::<Device>::new("tar header", Offset::new(at), &bytes);
            let Some(len) = number(f.slice(124, 12)?).filter(|_| f.slice(257, 5).is_ok_and(|m| m == b"ustar")) else {
                break;
            };
            let data = at.saturating_add(BLOCK);
            if matches!(f.u8(156)?, 0 | b'0') {
                if data.saturating_add(len) > device.len() {
                    return Err(f.wrong(124, format!("a file of {len} bytes within the archive's {}", device.len())));
                }
                members.push(Member { name: until_zero(f.slice(0, 100)?).to_vec(), at: data, len });
            }
            at = data.saturating_add(len.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX));
        }
        Ok(Self { device: Arc::clone(device), members: Arc::new(members) })
    }

    /// The description: its name and text.
    pub(super) fn description(&self) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
        let Some(member) = self.members.iter().find(|m| is_description(&m.name) && m.len <= MAX_LEN) else {
            return Ok(None);
        };
        let len = usize::try_from(member.len).unwrap_or_default();
        Ok(Some((member.name.clone(), self.device.read_vec(Offset::new(member.at), len)?)))
    }

    /// The gate of a file of the archive: what it names is in the archive too.
    pub(super) fn gate(&self, own: Vec<u8>) -> impl Gate + use<> {
        Within { device: Arc::clone(&self.device), members: Arc::clone(&self.members), own }
    }
}

struct Within {
    device: Arc<dyn ReadAt<Device>>,
    members: Arc<Vec<Member>>,
    own: Vec<u8>,
}

impl Gate for Within {
    fn own(&self) -> &[u8] {
        &self.own
    }
    fn identity(&self) -> Identity {
        Identity::None
    }
    fn open(&self, wanted: &Wanted<'_>) -> Result<Opened> {
        let shown = String::from_utf8_lossy(wanted.name).into_owned();
        let member = self.members.iter().find(|m| m.name == wanted.name);
        let member =
            member.ok_or_else(|| Error::NotFound(format!("the {} {shown} is not in the archive", wanted.what)))?;
        let (device, members) = (Arc::clone(&self.device), Arc::clone(&self.members));
        let window = Window { id: LayerId::fresh(), device: Arc::clone(&device), at: member.at, len: member.len };
        let gate = Self { device, members, own: member.name.clone() };
        Ok(Opened { device: Arc::new(window), gate: Arc::new(gate), name: shown, remark: None })
    }
    fn siblings(&self) -> Result<Vec<Vec<u8>>> {
        Ok(self.members.iter().map(|m| m.name.clone()).collect())
    }
}

/// A file of an archive as a device of its own.
struct Window {
    id: LayerId,
    device: Arc<dyn ReadAt<Device>>,
    at: u64,
    len: u64,
}

impl ReadAt<Device> for Window {
    fn id(&self) -> LayerId {
        self.id
    }
    fn len(&self) -> u64 {
        self.len
    }
    fn read_at(&self, at: Offset<Device>, buf: &mut [u8]) -> Result<()> {
        if at.checked_add(buf.len() as u64).is_none_or(|end| end.get() > self.len) {
            return Err(Error::past_end(at, buf.len() as u64, self.len));
        }
        self.device.read_at(at.saturating_add(self.at), buf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number(b"00000000017\0"), Some(15));
        assert_eq!(number(b"\x80\0\0\0\0\0\0\x01\0\0\0\0"), Some(1 << 32));
        assert_eq!(number(b"no number\0\0\0"), None);
        assert_eq!(number(b"\x80\x01\0\0\0\0\0\x01\0\0\0\0"), None);
    }
}

//! Reparse buffers (\[MS-FSCC\] 2.1.2): what a reparse point is, and where a link leads.

use crate::fs::ntfs::encode::Out;
use crate::fs::{Kind, utf16};

/// A file whose data is compressed in its stream `WofCompressedData` (Compact OS).
pub const WOF: u32 = 0x8000_0017;
const MOUNT_POINT: u32 = 0xA000_0003;
const SYMLINK: u32 = 0xA000_000C;
const LX_SYMLINK: u32 = 0xA000_001D;
const AF_UNIX: u32 = 0x8000_0023;
const LX_FIFO: u32 = 0x8000_0024;
const LX_CHAR: u32 = 0x8000_0025;
const LX_BLOCK: u32 = 0x8000_0026;
/// The extended attributes in which WSL keeps type and permissions, and the number of a device.
const LX_MODE: &[u8] = b"$LXMOD";
const LX_DEVICE: &[u8] = b"$LXDEV";
/// Of a tag: the object stands for another one.
const NAME_SURROGATE: u32 = 0x2000_0000;

/// What a reparse point is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reparse {
    /// A symbolic link, of Windows or of WSL, and its target.
    Symlink(Vec<u8>),
    /// A junction or a volume mount point, and its target.
    Junction(Vec<u8>),
    /// A socket of WSL or Windows.
    Socket,
    /// A named pipe of WSL.
    Fifo,
    /// A device of WSL, whether it is a block device; its number is an extended attribute.
    Device(bool),
    /// Any other, by its tag.
    Other(u32),
}

impl Reparse {
    /// Decodes a buffer; none where it is damaged.
    pub fn decode(buffer: &[u8]) -> Option<Self> {
        let tag = u32::from_le_bytes(*buffer.first_chunk()?);
        let len = usize::from(u16::from_le_bytes(*buffer.get(4..)?.first_chunk()?));
        // Tags that are not Microsoft's have a GUID of 16 bytes before the data, which `len` does not count.
        let data = buffer.get(8..)?;
        let data = if tag & 0x8000_0000 != 0 { data.get(..len)? } else { data };
        Some(match tag {
            SYMLINK => Self::Symlink(target(data, data.get(12..)?)?),
            MOUNT_POINT => Self::Junction(target(data, data.get(8..)?)?),
            LX_SYMLINK => Self::Symlink(data.get(4..)?.to_vec()),
            AF_UNIX => Self::Socket,
            LX_FIFO => Self::Fifo,
            LX_CHAR => Self::Device(false),
            LX_BLOCK => Self::Device(true),
            other => Self::Other(other),
        })
    }
    /// Whether the data of a file with this tag may be elsewhere: what is not stored here is not zeros.
    pub fn redirects_data(&self) -> bool {
        matches!(self, Self::Other(tag) if tag & NAME_SURROGATE == 0)
    }
}

/// The tag of a buffer.
pub fn tag(buffer: &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(*buffer.first_chunk()?))
}

fn buffer(tag: u32, data: &[u8]) -> Option<Vec<u8>> {
    let mut out = Out::default();
    out.u32(tag).u16(u16::try_from(data.len()).ok()?).u16(0).bytes(data);
    Some(out.0)
}

/// The buffer of a symbolic link of WSL, which has the target's bytes as they are. None where they are too many.
pub fn symlink(target: &[u8]) -> Option<Vec<u8>> {
    buffer(LX_SYMLINK, &[&2u32.to_le_bytes(), target].concat())
}

/// The buffer of a device, socket or pipe of WSL.
pub fn special(kind: Kind) -> Option<Vec<u8>> {
    let tag = match kind {
        Kind::Fifo => LX_FIFO,
        Kind::Socket => AF_UNIX,
        Kind::CharDevice(..) => LX_CHAR,
        Kind::BlockDevice(..) => LX_BLOCK,
        _ => return None,
    };
    buffer(tag, &[])
}

/// Whether a tag is that of a device, socket or pipe of WSL, whose files have an attribute bit of their own.
pub fn is_special(tag: u32) -> bool {
    matches!(tag, AF_UNIX | LX_FIFO | LX_CHAR | LX_BLOCK)
}

/// The list of extended attributes of a device, socket or pipe: type and permissions, and the number of a device.
pub fn special_ea(kind: Kind, permissions: u16) -> Vec<u8> {
    let (format, number) = match kind {
        Kind::CharDevice(major, minor) => (0o020_000, Some((major, minor))),
        Kind::BlockDevice(major, minor) => (0o060_000, Some((major, minor))),
        Kind::Socket => (0o140_000, None),
        _ => (0o010_000, None),
    };
    let mut out = Out::default();
    out.u32(20).u8(0).u8(LX_MODE.len() as u8).u16(4).bytes(LX_MODE).u8(0);
    out.u32(format | u32::from(permissions & 0o7777)).to(20);
    if let Some((major, minor)) = number {
        out.u32(24).u8(0).u8(LX_DEVICE.len() as u8).u16(8).bytes(LX_DEVICE).u8(0).u32(major).u32(minor).to(44);
    }
    out.0
}

/// The number of a device in a list of extended attributes.
pub fn device_number(mut list: &[u8]) -> Option<(u32, u32)> {
    loop {
        let next = u32::from_le_bytes(*list.first_chunk()?) as usize;
        let name = usize::from(*list.get(5)?);
        let value = list.get(8usize.saturating_add(name).saturating_add(1)..)?;
        if list.get(8..8usize.saturating_add(name)) == Some(LX_DEVICE) {
            let word = |at: usize| value.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b));
            return Some((word(0)?, word(4)?));
        }
        // Always forward.
        list = list.get(next..).filter(|_| next >= 8)?;
    }
}

/// The substitute name, which is the one that counts, as Win32 writes it.
fn target(data: &[u8], names: &[u8]) -> Option<Vec<u8>> {
    let at = usize::from(u16::from_le_bytes(*data.first_chunk()?));
    let len = usize::from(u16::from_le_bytes(*data.get(2..)?.first_chunk()?));
    let name = utf16::to_wtf8(names.get(at..at.checked_add(len)?)?);
    let Some(rest) = name.strip_prefix(br"\??\") else { return Some(name) };
    Some(match rest {
        [drive, b':', ..] if drive.is_ascii_alphabetic() => rest.to_vec(),
        [b'U', b'N', b'C', b'\\', server @ ..] => [br"\\", server].concat(),
        other => [br"\\?\", other].concat(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(tag: u32, flags: &[u8], substitute: &str, print: &str) -> Vec<u8> {
        let wide = |s: &str| s.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        let (s, p) = (wide(substitute), wide(print));
        let mut data = Vec::new();
        for n in [p.len(), s.len(), 0, p.len()] {
            data.extend_from_slice(&(n as u16).to_le_bytes());
        }
        data.extend_from_slice(flags);
        data.extend_from_slice(&p);
        data.extend_from_slice(&s);
        let mut all = tag.to_le_bytes().to_vec();
        all.extend_from_slice(&(data.len() as u32).to_le_bytes());
        all.extend_from_slice(&data);
        all
    }

    #[test]
    fn targets_are_the_substitute_names() {
        let cases = [
            (MOUNT_POINT, &[][..], r"\??\C:\Users", r"C:\Users"),
            (MOUNT_POINT, &[], r"\??\Volume{01234567-89ab-cdef-0123-456789abcdef}\", ""),
            (SYMLINK, &[1, 0, 0, 0], r"..\x", r"..\shown"),
            (SYMLINK, &[0; 4], r"\??\UNC\server\share", r"\\server\share"),
        ];
        let expected = [
            Reparse::Junction(br"C:\Users".to_vec()),
            Reparse::Junction(br"\\?\Volume{01234567-89ab-cdef-0123-456789abcdef}\".to_vec()),
            Reparse::Symlink(br"..\x".to_vec()),
            Reparse::Symlink(br"\\server\share".to_vec()),
        ];
        for ((tag, flags, substitute, print), expected) in cases.into_iter().zip(expected) {
            let all = buffer(tag, flags, substitute, print);
            assert_eq!(Reparse::decode(&all), Some(expected));
            for cut in 0..all.len() {
                assert_eq!(Reparse::decode(&all[..cut]), None, "cut to {cut}");
            }
        }
        assert_eq!(Reparse::decode(&[0x17, 0, 0, 0x80, 0, 0, 0, 0]), Some(Reparse::Other(WOF)));
    }
}

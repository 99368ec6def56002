//! What a file has beside names, times and streams: security, a reparse buffer, extended attributes.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use crate::fs::host::{NewEntry, NewKind};
use crate::fs::ntfs::encode::{Out, capacity};
use crate::fs::ntfs::layout::kind;
use crate::fs::ntfs::pack::{Body, Value};
use crate::fs::ntfs::reparse;
use crate::fs::ntfs::secure::{Secure, sound};
use crate::fs::{EA, Kind, REPARSE};

/// The largest reparse buffer and list of extended attributes, in bytes.
const MAX_BUFFER: usize = 16 << 10;
const MAX_EA: usize = 64 << 10;

/// Who may do what with new files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// Identity of a descriptor in `$Secure`, 0 for none.
    pub id: u32,
    /// Or a descriptor of its own.
    pub descriptor: Option<Arc<[u8]>>,
}

/// All of that.
#[derive(Clone, Debug, Default)]
pub struct Extras {
    /// Security.
    pub security: Security,
    /// A reparse buffer.
    pub reparse: Option<Vec<u8>>,
    /// The same as an attribute.
    pub point: Option<Box<Value<'static>>>,
    /// `$EA`.
    pub ea: Option<Box<Value<'static>>>,
    /// `$EA_INFORMATION`, where there are such.
    pub ea_information: Vec<u8>,
}

impl Extras {
    /// What a `$FILE_NAME` says of it: the tag, or packed bytes of extended attributes.
    pub fn word(&self) -> u32 {
        let tag = self.reparse.as_deref().and_then(reparse::tag);
        let packed = self.ea_information.first_chunk().map_or(0, |b| u16::from_le_bytes(*b).into());
        tag.unwrap_or(packed)
    }
}

/// Decides what is kept of a new entry's extended attributes.
#[derive(Clone)]
pub struct Keeper<'a> {
    /// The host's descriptors.
    secure: &'a Secure,
    /// Of new files and directories that have none: the image's, and that of the directory that they are in.
    others: [Security; 2],
    /// Bytes of a descriptor that a record has room for.
    room: usize,
    known: HashMap<Vec<u8>, Security>,
    /// The one that was asked for last: most files have the same as the one before.
    last: Option<(Arc<[u8]>, Security)>,
}

impl<'a> Keeper<'a> {
    /// For records of so many bytes. Given are the descriptors of the image, and of the directory that is written into: what can't be
    /// passed on (mkntfs gives the root one of 4 KiB) is the image's instead, or the first of the host's.
    pub fn new(secure: &'a Secure, others: [Option<Arc<[u8]>>; 2], record: usize) -> Self {
        let room = capacity(record) / 2;
        let mut keeper = Self { secure, others: Default::default(), room, known: HashMap::new(), last: None };
        let [file, dir] = others.map(|d| d.and_then(|d| keeper.security(&d)));
        let file = file.unwrap_or_else(|| Security { id: secure.first(), descriptor: None });
        keeper.others = [file.clone(), dir.unwrap_or(file)];
        keeper
    }
    /// Of a file or directory that nothing is said of.
    pub fn none(&self, dir: bool) -> Extras {
        let [file, of_dir] = &self.others;
        Extras { security: if dir { of_dir } else { file }.clone(), ..Extras::default() }
    }
    /// Of an entry.
    pub fn of(&mut self, entry: &NewEntry) -> Extras {
        let mut out = self.none(matches!(entry.kind, NewKind::Dir));
        if let Some(security) = entry.security.as_ref().and_then(|d| self.security(d)) {
            out.security = security;
        }
        for (name, value) in &entry.xattrs {
            match name.as_slice() {
                REPARSE if is_reparse(value) => out.set_reparse(value.clone()),
                EA => out.set_ea(value),
                _ => {}
            }
        }
        out
    }
    /// Of a link, device, socket or pipe, as WSL has them. None where it can't be.
    pub fn special(&mut self, entry: &NewEntry) -> Option<Extras> {
        let mut out = self.of(entry);
        let buffer = match &entry.kind {
            NewKind::Symlink(target) => reparse::symlink(target)?,
            NewKind::Special(kind) => {
                out.set_ea(&special_ea(entry, *kind));
                reparse::special(*kind)?
            }
            _ => return None,
        };
        out.set_reparse(buffer);
        Some(out)
    }
    /// A descriptor: by the identity that the host has for it, or as it is. None where it is not sound or too long.
    pub fn security(&mut self, descriptor: &Arc<[u8]>) -> Option<Security> {
        if let Some((_, security)) = self.last.as_ref().filter(|(last, _)| Arc::ptr_eq(last, descriptor)) {
            return Some(security.clone());
        }
        let security = self.looked_up(descriptor)?;
        self.last = Some((Arc::clone(descriptor), security.clone()));
        Some(security)
    }
    fn looked_up(&mut self, descriptor: &[u8]) -> Option<Security> {
        if let Some(known) = self.known.get(descriptor) {
            return Some(known.clone());
        }
        let new = match self.secure.find(descriptor) {
            Some(id) => Security { id, descriptor: None },
            None if descriptor.len() <= self.room && sound(descriptor) => {
                Security { id: 0, descriptor: Some(descriptor.into()) }
            }
            None => return None,
        };
        self.known.insert(descriptor.to_vec(), new.clone());
        Some(new)
    }
    /// Whether an extended attribute of an entry is kept.
    pub fn keeps(name: &[u8], value: &[u8]) -> bool {
        match name {
            REPARSE => is_reparse(value),
            EA => ea_information(value).is_some(),
            _ => false,
        }
    }
}

/// The extended attributes of a device, socket or pipe.
pub fn special_ea(entry: &NewEntry, kind: Kind) -> Vec<u8> {
    reparse::special_ea(kind, entry.posix.map_or(0o600, |(mode, ..)| mode))
}

fn is_reparse(value: &[u8]) -> bool {
    value.len() <= MAX_BUFFER && reparse::Reparse::decode(value).is_some()
}

impl Extras {
    fn set_reparse(&mut self, buffer: Vec<u8>) {
        let body = Body::Resident(buffer.clone().into(), false);
        self.point = Some(Box::new(Value { kind: kind::REPARSE_POINT, name: Cow::default(), body }));
        self.reparse = Some(buffer);
    }
    fn set_ea(&mut self, value: &[u8]) {
        if let Some(information) = ea_information(value) {
            let body = Body::Resident(value.to_vec().into(), false);
            self.ea = Some(Box::new(Value { kind: kind::EA, name: Cow::default(), body }));
            self.ea_information = information;
        }
    }
}

/// `$EA_INFORMATION` of a list: bytes of it when packed, how many must be understood, bytes of it. None where it is damaged.
/// Each entry says how long it is, a multiple of 4; the last one too.
fn ea_information(list: &[u8]) -> Option<Vec<u8>> {
    let (mut packed, mut needed) = (0u16, 0u16);
    let mut rest = list;
    while !rest.is_empty() {
        let next = usize::try_from(u32::from_le_bytes(*rest.first_chunk()?)).ok()?;
        let (flags, name) = (*rest.get(4)?, usize::from(*rest.get(5)?));
        let value = u16::from_le_bytes(*rest.get(6..)?.first_chunk()?);
        let end = name.checked_add(value.into())?.checked_add(9)?;
        if name == 0 || rest.get(8usize.checked_add(name)?) != Some(&0) || next != end.next_multiple_of(4) {
            return None;
        }
        packed = packed.checked_add(u16::try_from(name).ok()?)?.checked_add(value)?.checked_add(5)?;
        needed = needed.checked_add(u16::from(flags >> 7))?;
        rest = rest.get(next..)?;
    }
    let mut out = Out::default();
    out.u16(packed).u16(needed).u32(u32::try_from(list.len()).ok()?);
    (1..=MAX_EA).contains(&list.len()).then_some(out.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_extended_attributes() {
        let one = reparse::special_ea(Kind::Fifo, 0o644);
        assert_eq!(ea_information(&one), Some(vec![5 + 6 + 4, 0, 0, 0, one.len() as u8, 0, 0, 0]));
        let mut two = one.clone();
        two[4] = 0x80;
        two.extend(&one);
        assert_eq!(ea_information(&two), Some(vec![30, 0, 1, 0, two.len() as u8, 0, 0, 0]));
        for cut in (0..two.len()).filter(|n| *n != one.len()) {
            assert_eq!(ea_information(&two[..cut]), None, "cut to {cut}");
        }
    }
}

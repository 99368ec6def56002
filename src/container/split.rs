//! A raw disk in parts: `disk.001`, `disk.002`, ... or `disk.aa`, `disk.ab`, ... in one folder.
//!
//! Nothing in the parts says that they are any, only their names and sizes do. So they are joined only where both fit, and it is
//! said.

use std::sync::Arc;

use super::gate::Wanted;
use super::{Disk, OpenWith, Part, Role};
use crate::error::{Error, Result};
use crate::extent::{Device, Map, Offset, ReadAt};

/// Opens the disk that `device` is a part of; none where it stands alone.
///
/// # Errors
/// [`Error::NotFound`] for a part that is missing between others.
pub(super) fn open(device: &Arc<dyn ReadAt<Device>>, with: &OpenWith<'_>) -> Result<Option<Disk>> {
    let own = with.gate.own();
    let Some(place) = Place::of(own) else { return Ok(None) };
    let mut others: Vec<(u32, Vec<u8>)> = Vec::new();
    for name in with.gate.siblings()? {
        if let Some(other) = Place::of(&name)
            && other.stem == place.stem
            && (other.digits, other.width) == (place.digits, place.width)
            && name != own
        {
            others.push((other.number, name));
        }
    }
    if others.is_empty() {
        return Ok(None);
    }
    others.sort_unstable();
    let mut parts: Vec<(u32, String, Arc<dyn ReadAt<Device>>)> = Vec::with_capacity(others.len());
    for (number, name) in others {
        let opened = with.part(&Wanted { name: &name, what: "part", moved: false })?;
        parts.push((number, opened.name, opened.device));
    }
    parts.push((place.number, String::new(), Arc::clone(device)));
    parts.sort_by_key(|(number, ..)| *number);
    let alone = |why: String| {
        let mut disk = super::raw::open(Arc::clone(device))?;
        disk.remarks
            .push(format!("{} files beside it are named as parts of it, but {why}: it is read alone", parts.len()));
        Ok(Some(disk))
    };
    let first = parts.first().map_or(0, |(number, ..)| *number);
    if first > 1 {
        return Err(missing(first.saturating_sub(1)));
    }
    for (expected, (number, ..)) in (first..).zip(&parts) {
        if *number != expected {
            return Err(missing(expected));
        }
    }
    let size = parts.first().map_or(0, |(.., d)| d.len());
    let Some(((.., last), rest)) = parts.split_last() else { return Ok(None) };
    if last.len() > size || last.is_empty() || rest.iter().any(|(.., d)| d.len() != size) || !size.is_multiple_of(512) {
        return alone("their sizes are not those of parts".into());
    }
    for (.., name, part) in parts.iter().skip(1) {
        let mut sign = [0; 2];
        // What begins with a boot sector is a disk of its own.
        if part.len() >= 512 && part.read_at(Offset::new(510), &mut sign).is_ok() && sign == [0x55, 0xAA] {
            return alone(format!("{} begins as a disk does", if name.is_empty() { "this one" } else { name }));
        }
    }
    let mut map = Map::new();
    for (.., part) in &parts {
        map.push_stored(part.len(), part.id(), 0);
    }
    let files = parts.iter().map(|(.., d)| Arc::clone(d)).collect();
    let mut disk = Disk::plain("split-raw", map, files)?;
    disk.remarks.push(format!("{} parts, joined by their names and sizes", parts.len()));
    let beside = parts.into_iter().filter(|(_, name, _)| !name.is_empty());
    disk.parts = beside.map(|(_, name, device)| Part { role: Role::Own, kind: "data", name, device }).collect();
    Ok(Some(disk))
}

fn missing(number: u32) -> Error {
    Error::NotFound(format!("part {number} of the split image (counted by its name) is missing from its folder"))
}

/// What a name says of a part.
#[derive(Debug, PartialEq, Eq)]
struct Place<'a> {
    stem: &'a [u8],
    digits: bool,
    width: usize,
    /// By its digits; by its letters, `aa` being 0.
    number: u32,
}

impl<'a> Place<'a> {
    fn of(name: &'a [u8]) -> Option<Self> {
        let dot = name.iter().rposition(|b| *b == b'.')?;
        let (stem, tail) = name.split_at_checked(dot)?;
        let tail = tail.get(1..)?;
        let fold = |base: u8, radix: u32| {
            let add = |sum: u32, b: &u8| sum.checked_mul(radix)?.checked_add(b.wrapping_sub(base).into());
            tail.iter().try_fold(0u32, add)
        };
        let place = |digits, number| Self { stem, digits, width: tail.len(), number };
        if (3..=4).contains(&tail.len()) && tail.iter().all(u8::is_ascii_digit) {
            return Some(place(true, fold(b'0', 10)?));
        }
        // Two letters that begin with `a`: as many parts as `split` makes before it needs longer ends.
        if tail.len() == 2 && tail.iter().all(u8::is_ascii_lowercase) && tail.first() == Some(&b'a') {
            return Some(place(false, fold(b'a', 26)?));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts() {
        let number = |name: &'static str| Place::of(name.as_bytes()).map(|p| (p.stem, p.number));
        assert_eq!(number("disk.001"), Some((&b"disk"[..], 1)));
        assert_eq!(number("disk.raw.0010"), Some((&b"disk.raw"[..], 10)));
        assert_eq!(number("disk.aa"), Some((&b"disk"[..], 0)));
        assert_eq!(number("disk.ab"), Some((&b"disk"[..], 1)));
        for other in ["disk.raw", "disk.01", "disk.7z", "disk", "disk.ba", ".", "disk."] {
            assert_eq!(number(other), None, "{other}");
        }
    }
}

//! The segment files of an EWF image, found beside the one that was named, and their sections in order.

use std::sync::Arc;

use super::second::{self, Codec};
use super::section::{self, DESCRIPTOR, HEADER, Kind, Section};
use crate::bytes::Fields;
use crate::container::gate::{Opened, Wanted};
use crate::container::{OpenWith, Part, Role};
use crate::error::{Error, Result};
use crate::extent::{Device, Offset, ReadAt};

/// Sections of a segment file that are followed.
const MAX_SECTIONS: usize = 1 << 20;

/// How an Ex01 file compresses, and the identity of its set.
type Second = (Codec, [u8; 16]);

/// One segment file.
pub struct Segment {
    /// Its bytes.
    pub device: Arc<dyn ReadAt<Device>>,
    /// Its name, for messages; empty for the one that the address names.
    pub name: String,
    /// Of Ex01 alone.
    pub second: Option<Second>,
    /// Its sections, in order.
    pub sections: Vec<Section>,
    /// Why what follows the last of them could not be read.
    pub broken: Option<Error>,
}

/// All of them, in order.
pub struct Segments {
    /// The first one first.
    pub all: Vec<Segment>,
    /// Those beside the one that was named.
    pub parts: Vec<Part>,
}

/// Gathers the segment files of the image that `device` is one of. The number in a file's header counts, its name only
/// says where to look.
///
/// # Errors
/// [`Error::NotFound`] for a segment that is missing, [`Error::Corrupt`] for a first one without sections.
pub fn gather(device: &Arc<dyn ReadAt<Device>>, with: &OpenWith<'_>) -> Result<Segments> {
    let own = with.gate.own();
    let (number, second) = number_of(&**device)?;
    let mut found: Vec<(u32, Segment)> = vec![(number, sections(Arc::clone(device), String::new(), second))];
    let mut parts = Vec::new();
    let mut names: Vec<(u32, Vec<u8>)> = Vec::new();
    if let Some((stem, _)) = position(own) {
        for name in with.gate.siblings()? {
            if let Some((other, place)) = position(&name)
                && other == stem
                && name != own
            {
                names.push((place, name));
            }
        }
    }
    names.sort_unstable();
    for (_, name) in names {
        let wanted = Wanted { name: &name, what: "segment", moved: false };
        let Opened { device, name, .. } = with.part(&wanted)?;
        // A stranger by the same name is passed over; where its place stays empty, that is said below.
        let Ok((number, other)) = number_of(&*device) else { continue };
        if other != second || found.iter().any(|(n, _)| *n == number) {
            continue;
        }
        parts.push(Part { role: Role::Own, kind: "data", name: name.clone(), device: Arc::clone(&device) });
        found.push((number, sections(device, name, second)));
    }
    found.sort_by_key(|(n, _)| *n);
    let mut all = Vec::with_capacity(found.len());
    for (expected, (number, segment)) in (1u32..).zip(found) {
        if number != expected {
            return Err(missing(expected));
        }
        let last = segment.sections.last().map(|s| s.kind);
        all.push(segment);
        if last == Some(Kind::Done) {
            return Ok(Segments { all, parts });
        }
    }
    match all.last() {
        // Whether more follows is not known where the last one is cut; its own error tells more than a missing file would.
        Some(Segment { broken: Some(_), .. }) => Ok(Segments { all, parts }),
        _ => Err(missing(u32::try_from(all.len()).unwrap_or(u32::MAX).saturating_add(1))),
    }
}

fn missing(number: u32) -> Error {
    Error::NotFound(format!("segment file {number} of the EWF image is missing from its folder"))
}

/// Its number, and what the header of an Ex01 file says beside.
fn number_of(device: &dyn ReadAt<Device>) -> Result<(u32, Option<Second>)> {
    let at = Offset::new(0);
    let head = device.read_vec(at, HEADER)?;
    if head.starts_with(second::SIGNATURE) {
        let head = device.read_vec(at, second::HEADER)?;
        let head = second::Header::decode(Fields::new("EWF segment file", at, &head))?;
        return Ok((head.number, Some((head.codec, head.set))));
    }
    Ok((section::segment(Fields::new("EWF segment file", at, &head))?.into(), None))
}

/// Follows the sections of a segment file.
fn sections(device: Arc<dyn ReadAt<Device>>, name: String, second: Option<Second>) -> Segment {
    let mut segment = Segment { device, name, second, sections: Vec::new(), broken: None };
    if segment.second.is_some() {
        backward(&mut segment);
    } else {
        forward(&mut segment);
    }
    segment
}

/// From the last section of an Ex01 file to the first. Each lies before the one that points to it, so that there is no circle.
fn backward(segment: &mut Segment) {
    let mut at = segment.device.len().saturating_sub(second::DESCRIPTOR as u64);
    while at >= second::HEADER as u64 && segment.sections.len() < MAX_SECTIONS {
        let place = Offset::new(at);
        let read = segment.device.read_vec(place, second::DESCRIPTOR);
        match read.and_then(|b| second::section(Fields::new("EWF section", place, &b))) {
            Ok(section) if section.next < at => {
                at = section.next;
                segment.sections.push(section);
            }
            Ok(_) => {
                let place = Offset::<Device>::new(at.saturating_add(8));
                segment.broken = Some(Error::corrupt("EWF section", place, "a section that lies before it"));
                break;
            }
            Err(e) => {
                segment.broken = Some(e);
                break;
            }
        }
    }
    segment.sections.reverse();
}

/// From the first section of an E01 file to the last. Each lies behind the one before it, so that there is no circle.
fn forward(segment: &mut Segment) {
    let mut at = HEADER as u64;
    while segment.sections.len() < MAX_SECTIONS {
        let read = segment.device.read_vec(Offset::new(at), DESCRIPTOR);
        let section = read.and_then(|b| Section::decode(Fields::new("EWF section", Offset::new(at), &b)));
        match section {
            Ok(section) => {
                segment.sections.push(section);
                if matches!(section.kind, Kind::Next | Kind::Done) {
                    break;
                }
                if section.next < at.saturating_add(DESCRIPTOR as u64) {
                    let place = Offset::<Device>::new(at.saturating_add(16));
                    segment.broken = Some(Error::corrupt("EWF section", place, "a next section that lies behind it"));
                    break;
                }
                at = section.next;
            }
            Err(e) => {
                segment.broken = Some(e);
                break;
            }
        }
    }
}

/// The place of a segment file among the others by its name: what stands before the extension, and a number that grows with
/// it. `E01` to `E99`, then `EAA` to `EZZ`, `FAA` and so on; the same with `e`, `s`, `S`, and with `Ex`.
fn position(name: &[u8]) -> Option<(&[u8], u32)> {
    let dot = name.iter().rposition(|b| *b == b'.')?;
    let (stem, extension) = name.split_at_checked(dot)?;
    let [kind @ .., second, third] = extension.get(1..)? else { return None };
    if !(1..=2).contains(&kind.len()) || !kind.iter().all(u8::is_ascii_alphabetic) {
        return None;
    }
    let digit = |b: &u8| u32::from(b.wrapping_sub(b'0'));
    let letters = |all: &[u8]| {
        let letter = |b: &u8| u32::from(b.to_ascii_uppercase().wrapping_sub(b'A'));
        all.iter().fold(0u32, |sum, b| sum.wrapping_mul(26).wrapping_add(letter(b)))
    };
    let place = if second.is_ascii_digit() && third.is_ascii_digit() {
        digit(second).wrapping_mul(10).wrapping_add(digit(third))
    } else if second.is_ascii_alphabetic() && third.is_ascii_alphabetic() {
        letters(extension.get(1..)?).wrapping_add(100)
    } else {
        return None;
    };
    Some((stem, place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_the_order_that_encase_gives_them() {
        let names = ["c.E01", "c.E02", "c.E99", "c.EAA", "c.EAB", "c.EZZ", "c.FAA", "c.FZZ", "c.ZZZ"];
        let places: Vec<_> = names.iter().map(|n| position(n.as_bytes()).unwrap()).collect();
        assert!(places.windows(2).all(|w| w[0].1 < w[1].1 && w[0].0 == b"c"));
        let names = ["c.Ex01", "c.Ex99", "c.ExAA", "c.ExZZ", "c.EyAA"];
        let places: Vec<_> = names.iter().map(|n| position(n.as_bytes()).unwrap().1).collect();
        assert!(places.is_sorted());
        for other in ["c.001", "E01", "c.E0", "c.E0A", "c.txt2", "c."] {
            assert_eq!(position(other.as_bytes()), None, "{other}");
        }
    }
}

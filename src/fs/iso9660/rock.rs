//! Rock Ridge: what POSIX knows of a file, in the system use areas of directory records.

use super::layout::{SECTOR, long_time, short_time};
use crate::bytes::Fields;
use crate::error::Result;
use crate::extent::{Offset, ReadAt, Volume};
use crate::fs::Times;

/// Areas in which the entries of one record may go on.
const MAX_AREAS: usize = 64;
/// Bytes of the longest name or target.
const MAX_TEXT: usize = 64 << 10;

/// What the entries of a record say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rock {
    /// The name, none where it is the record's own.
    pub name: Option<Vec<u8>>,
    /// File type and permissions, owner, group.
    pub posix: Option<(u32, u32, u32)>,
    /// The serial number of the file, and how many names it has.
    pub links: Option<(u64, u32)>,
    /// A link's target.
    pub target: Option<Vec<u8>>,
    /// A device's numbers: major, minor.
    pub device: Option<(u32, u32)>,
    /// Times.
    pub times: Times,
    /// The block of the directory that stands here, but lies elsewhere.
    pub child: Option<u64>,
    /// Whether it is such a directory, at the place where it lies.
    pub relocated: bool,
    /// Bytes of the file when it is inflated.
    pub packed: Option<u64>,
}

/// Bytes of other system use that come before the entries, by the root's own record; none without Rock Ridge.
pub fn skip(area: &[u8]) -> Option<usize> {
    // `SP`, 7 bytes, version 1, two bytes to know it by.
    match area {
        [b'S', b'P', 7, 1, 0xBE, 0xEF, skip, ..] => Some(usize::from(*skip)),
        // Written behind 15 bytes of CD-ROM XA.
        _ => match area.get(14..) {
            Some([b'S', b'P', 7, 1, 0xBE, 0xEF, skip, ..]) => Some(usize::from(*skip)),
            _ => None,
        },
    }
}

/// Decodes the entries of the area of one record, and of those that it goes on in.
///
/// # Errors
/// An area that can't be read, or an entry that is cut. What was found before is in `out`.
pub fn decode(volume: &dyn ReadAt<Volume>, block: u64, area: &[u8], out: &mut Rock) -> Result<()> {
    let mut text = Text::default();
    let done = areas(volume, block, area, out, &mut text);
    out.name = text.name;
    if text.link && done.is_ok() {
        out.target = Some(text.target);
    }
    done
}

fn areas(volume: &dyn ReadAt<Volume>, block: u64, area: &[u8], out: &mut Rock, text: &mut Text) -> Result<()> {
    let mut area = area.to_vec();
    let mut at = 0u64;
    for _ in 0..MAX_AREAS {
        let more = entries(Fields::new("Rock Ridge entry", Offset::new(at), &area), out, text)?;
        let Some((first, offset, len)) = more else { break };
        at = first.saturating_mul(block).saturating_add(offset);
        area = volume.read_vec(Offset::new(at), len.min(SECTOR) as usize)?;
    }
    Ok(())
}

/// Texts that are put together from several entries.
#[derive(Default)]
struct Text {
    name: Option<Vec<u8>>,
    link: bool,
    target: Vec<u8>,
    /// Whether the next component of a target goes on with the last one.
    goes_on: bool,
}

/// Block, offset and bytes of the area in which entries go on.
type More = (u64, u64, u64);

fn entries(f: Fields<'_, Volume>, out: &mut Rock, text: &mut Text) -> Result<Option<More>> {
    let mut pos = 0usize;
    let mut more = None;
    while pos.saturating_add(4) <= f.bytes().len() {
        let len = usize::from(f.u8(pos.saturating_add(2))?);
        if len < 4 {
            break;
        }
        let e = f.part("Rock Ridge entry", pos, len)?;
        match e.slice(0, 2)? {
            b"NM" => match e.u8(4)? {
                // The directory itself, or its parent.
                flags if flags & 6 != 0 => {}
                _ => {
                    let name = text.name.get_or_insert_default();
                    if name.len() < MAX_TEXT {
                        name.extend_from_slice(e.bytes().get(5..).unwrap_or_default());
                    }
                }
            },
            b"PX" => {
                out.posix = Some((e.u32(4)?, e.u32(20)?, e.u32(28)?));
                let serial = e.u32(36).ok().map(u64::from);
                out.links = serial.map(|serial| Ok::<_, crate::error::Error>((serial, e.u32(12)?))).transpose()?;
            }
            b"PN" => out.device = Some((e.u32(4)?, e.u32(12)?)),
            b"SL" => components(e, text)?,
            b"TF" => times(e, &mut out.times)?,
            b"CL" => out.child = Some(e.u32(4)?.into()),
            b"RE" => out.relocated = true,
            b"ZF" => out.packed = Some(e.u32(8)?.into()),
            b"CE" => more = Some((e.u32(4)?.into(), e.u32(12)?.into(), e.u32(20)?.into())),
            b"ST" => break,
            _ => {}
        }
        pos = pos.saturating_add(len);
    }
    Ok(more)
}

/// The components of a link's target.
fn components(e: Fields<'_, Volume>, text: &mut Text) -> Result<()> {
    text.link = true;
    let mut pos = 5usize;
    while pos.saturating_add(2) <= e.bytes().len() {
        let (flags, len) = (e.u8(pos)?, usize::from(e.u8(pos.saturating_add(1))?));
        let part = e.slice(pos.saturating_add(2), len)?;
        if text.target.len() > MAX_TEXT {
            break;
        }
        if !text.goes_on && !text.target.is_empty() && text.target.last() != Some(&b'/') {
            text.target.push(b'/');
        }
        match flags {
            f if f & 8 != 0 => text.target.push(b'/'),
            f if f & 4 != 0 => text.target.extend_from_slice(b".."),
            f if f & 2 != 0 => text.target.push(b'.'),
            _ => text.target.extend_from_slice(part),
        }
        text.goes_on = flags & 1 != 0;
        pos = pos.saturating_add(2).saturating_add(len);
    }
    Ok(())
}

/// The times that the flags name, in this order: made, modified, read, attributes changed.
fn times(e: Fields<'_, Volume>, out: &mut Times) -> Result<()> {
    let flags = e.u8(4)?;
    let long = flags & 0x80 != 0;
    let mut pos = 5usize;
    let slots = [&mut out.created, &mut out.modified, &mut out.accessed, &mut out.changed];
    for (bit, slot) in slots.into_iter().enumerate() {
        if flags >> bit & 1 == 0 {
            continue;
        }
        let (time, len) = if long { (long_time(&e.array(pos)?), 17) } else { (short_time(&e.array(pos)?), 7) };
        *slot = time;
        pos = pos.saturating_add(len);
    }
    Ok(())
}

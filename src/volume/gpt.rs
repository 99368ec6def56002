//! The GUID partition table, as in the UEFI specification, section 5.3.
//!
//! A header lies in sector 1, its backup in the last sector; each points at an array of entries. Header and array have a
//! checksum each, and each of the four is judged on its own: the array that is right is the one that is used.

use std::sync::Arc;

use super::{Found, Part, SECTORS, mbr, types};
use crate::bytes::Fields;
use crate::error::{Error, Result};
use crate::extent::{Image, Offset, ReadAt};
use crate::guid::Guid;

const SIGNATURE: &[u8; 8] = b"EFI PART";
/// Bytes of a header without what later revisions may append.
const HEADER: usize = 92;
/// Entries that are read; a table in practice has 128.
const MAX_ENTRIES: u32 = 4096;
/// The largest array that is checksummed.
const MAX_ARRAY: u64 = 64 << 20;

/// A header, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Header {
    /// Whether its checksum is right.
    sound: bool,
    /// The sector that it says it lies in.
    my_lba: u64,
    /// The sector of the other header.
    other_lba: u64,
    first_usable: u64,
    last_usable: u64,
    /// First sector of the array.
    array_lba: u64,
    entries: u32,
    /// Bytes of an entry.
    entry_size: u32,
    array_crc: u32,
}

/// Decodes the header in `bytes`, one sector; none without the signature.
fn decode(at: Offset<Image>, bytes: &[u8]) -> Result<Option<Header>> {
    if !bytes.starts_with(SIGNATURE) {
        return Ok(None);
    }
    let f = Fields::new("GPT header", at, bytes);
    let size = f.u32(12)? as usize;
    let sound = match bytes.get(..size) {
        Some(whole) if size >= HEADER => {
            let mut crc = crc32fast::Hasher::new();
            crc.update(whole.get(..16).unwrap_or_default());
            crc.update(&[0; 4]);
            crc.update(whole.get(20..).unwrap_or_default());
            crc.finalize() == f.u32(16)?
        }
        _ => false,
    };
    Ok(Some(Header {
        sound,
        my_lba: f.u64(24)?,
        other_lba: f.u64(32)?,
        first_usable: f.u64(40)?,
        last_usable: f.u64(48)?,
        array_lba: f.u64(72)?,
        entries: f.u32(80)?,
        entry_size: f.u32(84)?,
        array_crc: f.u32(88)?,
    }))
}

/// Whether sector 1 has a header's signature, for sectors of this size.
pub(super) fn signed(head: &[u8], sector: u64) -> bool {
    usize::try_from(sector).ok().and_then(|s| head.get(s..)).is_some_and(|b| b.starts_with(SIGNATURE))
}

/// One of the two tables, as far as it could be read.
struct Copy {
    header: Header,
    /// The array's bytes, at most [`MAX_ENTRIES`] entries of it.
    array: Vec<u8>,
    /// Whether the array's checksum is right.
    intact: bool,
}

impl Copy {
    /// How far it is to be believed: the array's checksum says more than the header's.
    fn rank(&self) -> u8 {
        u8::from(self.intact).saturating_mul(2).saturating_add(u8::from(self.header.sound))
    }
}

/// Reads the header in sector `lba`, and its array. What is wrong with it is said in `problems`; none where nothing is
/// usable.
fn copy(image: &Arc<dyn ReadAt<Image>>, sector: u64, lba: u64, name: &str, problems: &mut Vec<String>) -> Option<Copy> {
    match try_copy(image, sector, lba, name, problems) {
        Ok(copy) => copy,
        Err(e) => {
            problems.push(format!("{name}: {e}"));
            None
        }
    }
}

fn try_copy(
    image: &Arc<dyn ReadAt<Image>>,
    sector: u64,
    lba: u64,
    name: &str,
    problems: &mut Vec<String>,
) -> Result<Option<Copy>> {
    let at = Offset::new(lba.saturating_mul(sector));
    if at.get().saturating_add(sector) > image.len() {
        problems.push(format!("{name}: sector {lba} is not on the disk"));
        return Ok(None);
    }
    let bytes = image.read_vec(at, usize::try_from(sector).unwrap_or_default())?;
    let Some(header) = decode(at, &bytes)? else {
        problems.push(format!("{name}: expected the signature EFI PART in sector {lba}"));
        return Ok(None);
    };
    if !header.sound {
        problems.push(format!("{name}: the header's checksum in sector {lba} is wrong"));
    }
    if header.my_lba != lba {
        problems.push(format!("{name}: the header in sector {lba} says that it lies in sector {}", header.my_lba));
    }
    if !header.entry_size.is_power_of_two() || !(128..=4096).contains(&header.entry_size) {
        problems.push(format!("{name}: expected entries of 128 to 4096 bytes, they have {}", header.entry_size));
        return Ok(None);
    }
    let (array, intact) = array(image, sector, &header).inspect_err(|_| ()).or_else(|e| {
        problems.push(format!("{name}: {e}"));
        Ok::<_, Error>((Vec::new(), false))
    })?;
    if array.is_empty() && header.entries != 0 {
        return Ok(None);
    }
    if !intact {
        problems.push(format!("{name}: the checksum of the entries is wrong"));
    }
    if header.entries > MAX_ENTRIES {
        problems.push(format!("{name}: {} entries, those beyond p{MAX_ENTRIES} are left out", header.entries));
    }
    Ok(Some(Copy { header, array, intact }))
}

/// The array's bytes as far as they are used, and whether the checksum of all of it is right. What lies beyond the disk's
/// end is missing.
fn array(image: &Arc<dyn ReadAt<Image>>, sector: u64, header: &Header) -> Result<(Vec<u8>, bool)> {
    let at = Offset::<Image>::new(header.array_lba.saturating_mul(sector));
    let size = u64::from(header.entry_size);
    let all = u64::from(header.entries).saturating_mul(size);
    let have = image.len().saturating_sub(at.get()).min(all);
    if have < size.min(all) {
        return Err(Error::corrupt("GPT entry array", at, "a place on the disk"));
    }
    let keep = have.min(u64::from(MAX_ENTRIES).saturating_mul(size));
    let keep = keep.checked_div(size).unwrap_or_default().saturating_mul(size);
    let bytes = image.read_vec(at, usize::try_from(keep).unwrap_or_default())?;
    if have != all || all > MAX_ARRAY {
        return Ok((cut(bytes, header, sector), false));
    }
    let mut crc = crc32fast::Hasher::new();
    crc.update(&bytes);
    let mut done = keep;
    while done < all {
        let step = all.saturating_sub(done).min(1 << 20);
        crc.update(&image.read_vec(at.saturating_add(done), usize::try_from(step).unwrap_or_default())?);
        done = done.saturating_add(step);
    }
    if crc.finalize() == header.array_crc {
        return Ok((bytes, true));
    }
    Ok((cut(bytes, header, sector), false))
}

/// Of an array whose checksum is wrong, only what lies before the sectors of partitions or the header behind it: what
/// comes then is something else. The first 128 entries always have a place.
fn cut(mut bytes: Vec<u8>, header: &Header, sector: u64) -> Vec<u8> {
    let size = u64::from(header.entry_size);
    let behind = [header.first_usable, header.my_lba].into_iter().filter(|lba| *lba > header.array_lba).min();
    let room = behind.map_or(0, |lba| lba.saturating_sub(header.array_lba).saturating_mul(sector));
    let entries = room.checked_div(size).unwrap_or_default().max(128);
    bytes.truncate(usize::try_from(entries.saturating_mul(size)).unwrap_or(usize::MAX));
    bytes
}

/// The table of `image`, none where neither copy can be used for any sector size.
pub(super) fn read(image: &Arc<dyn ReadAt<Image>>, first: Option<&mbr::Sector>) -> Result<Option<Found>> {
    let mut best: Option<(u8, Found)> = None;
    for sector in SECTORS {
        let Some((rank, found)) = read_as(image, sector, first) else { continue };
        if best.as_ref().is_none_or(|(b, _)| rank > *b) {
            best = Some((rank, found));
        }
    }
    Ok(best.map(|(_, found)| found))
}

fn read_as(image: &Arc<dyn ReadAt<Image>>, sector: u64, first: Option<&mbr::Sector>) -> Option<(u8, Found)> {
    let mut problems = Vec::new();
    let sectors = image.len().checked_div(sector)?;
    let last = sectors.checked_sub(1).filter(|l| *l > 1)?;
    let primary = copy(image, sector, 1, "primary GPT", &mut problems);
    let told = primary.as_ref().filter(|p| p.header.sound).map(|p| p.header.other_lba);
    let backup = match told {
        Some(lba) if lba != last => {
            problems.push(format!("backup GPT: expected in the last sector ({last}), the primary says sector {lba}"));
            let mut unsure = Vec::new();
            let there = copy(image, sector, lba, "backup GPT", &mut unsure)
                .or_else(|| copy(image, sector, last, "backup GPT", &mut Vec::new()));
            problems.extend(unsure);
            there
        }
        _ => copy(image, sector, last, "backup GPT", &mut problems),
    };
    if let (Some(p), Some(b)) = (&primary, &backup)
        && p.rank() == 3
        && b.rank() == 3
        && p.array != b.array
    {
        problems.push("the backup GPT has other partitions than the primary".to_owned());
    }
    let (used, name) = match (primary, backup) {
        (Some(p), Some(b)) if b.rank() > p.rank() => (b, "backup"),
        (Some(p), _) => (p, "primary"),
        (None, Some(b)) => (b, "backup"),
        (None, None) => return None,
    };
    if name == "backup" {
        problems.push("the partitions are those of the backup GPT".to_owned());
    }
    match first {
        None => problems.push("no protective MBR in sector 0".to_owned()),
        Some(m) if !m.is_protective() => problems.push("no protective entry in the MBR".to_owned()),
        Some(m) if m.others() > 0 => problems
            .push(format!("a hybrid MBR with {} more partitions, which are not listed: the GPT is used", m.others())),
        Some(_) => {}
    }
    let rank = used.rank();
    let parts = parts(&used, sector, &mut problems);
    Some((rank, Found { kind: "gpt", sector, parts, problems }))
}

fn parts(copy: &Copy, sector: u64, problems: &mut Vec<String>) -> Vec<Part> {
    let size = usize::try_from(copy.header.entry_size).unwrap_or(128);
    let mut parts = Vec::new();
    for (number, bytes) in (1u32..).zip(copy.array.chunks_exact(size)) {
        let Some((kind, id, first, last, label)) = entry(bytes) else { continue };
        if last < first {
            problems.push(format!("p{number}: ends at sector {last} before it begins at {first}, left out"));
            continue;
        }
        if first < copy.header.first_usable || last > copy.header.last_usable {
            problems.push(format!("p{number}: outside of the sectors that the header says are usable"));
        }
        let label = if label.is_empty() { String::new() } else { format!(" \"{label}\"") };
        parts.push(Part {
            number,
            about: format!("{}{label}, {id}", types::gpt(&kind)),
            start: first.checked_mul(sector),
            len: last.checked_sub(first).and_then(|n| n.checked_add(1)).and_then(|n| n.checked_mul(sector)),
        });
    }
    parts
}

/// Type, identity, first and last sector and label of an entry; none where it is not used.
fn entry(bytes: &[u8]) -> Option<(String, String, u64, u64, String)> {
    let (kind, rest) = bytes.split_first_chunk::<16>()?;
    let (id, rest) = rest.split_first_chunk::<16>()?;
    let (first, rest) = rest.split_first_chunk::<8>()?;
    let (last, rest) = rest.split_first_chunk::<8>()?;
    let (_attributes, rest) = rest.split_first_chunk::<8>()?;
    let label: &[u8; 72] = rest.first_chunk()?;
    if kind == &[0; 16] {
        return None;
    }
    let units = label.as_chunks::<2>().0.iter().map(|u| u16::from_le_bytes(*u)).take_while(|u| *u != 0);
    let label: String = char::decode_utf16(units)
        .map(|c| c.ok().filter(|c| !c.is_control()).unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect();
    Some((guid(kind), guid(id), u64::from_le_bytes(*first), u64::from_le_bytes(*last), label))
}

/// A GUID as text.
fn guid(b: &[u8; 16]) -> String {
    Guid(*b).to_string().to_uppercase()
}

//! What the examiner noted, the hashes that were stored, and what could not be read when the disk was acquired.

use std::io::Read;

use super::second::Codec;
use super::section::{Kind, MAX_CHUNK, Section, Shape, adler32};
use super::segments::Segment;
use crate::bytes::Fields;
use crate::container::StoredHash;
use crate::error::{Error, Result};
use crate::extent::{Device, Offset};

/// Bytes of notes that are read, inflated or not.
const MOST: u64 = 1 << 20;

/// Facts by their names, hashes of the whole disk; what can't be read becomes a remark.
pub fn read(all: &[Segment], remarks: &mut Vec<String>) -> (Vec<(&'static str, String)>, Vec<StoredHash>) {
    let mut facts: Vec<(&'static str, String)> = Vec::new();
    let mut hashes: Vec<StoredHash> = Vec::new();
    for segment in all {
        for section in &segment.sections {
            let done = match section.kind {
                Kind::Notes => contents(segment, section).map(|b| noted(&text(Codec::Zlib, &b), &mut facts)),
                Kind::Case => contents(segment, section).map(|b| noted(&text(codec(segment), &b), &mut facts)),
                Kind::Hash if segment.second.is_some() => {
                    contents(segment, section).and_then(|b| hash(section, &b, 16, &[("md5", 0, 16)], &mut hashes))
                }
                Kind::Sha1 => {
                    contents(segment, section).and_then(|b| hash(section, &b, 20, &[("sha1", 0, 20)], &mut hashes))
                }
                Kind::Errors if segment.second.is_some() => Ok(()),
                Kind::Hash => {
                    contents(segment, section).and_then(|b| hash(section, &b, 32, &[("md5", 0, 16)], &mut hashes))
                }
                Kind::Digest => contents(segment, section)
                    .and_then(|b| hash(section, &b, 76, &[("md5", 0, 16), ("sha1", 16, 20)], &mut hashes)),
                Kind::Errors => contents(segment, section).and_then(|b| errors(section, &b, remarks)),
                _ => Ok(()),
            };
            if let Err(e) = done {
                remarks.push(e.to_string());
            }
        }
    }
    (facts, hashes)
}

fn contents(segment: &Segment, section: &Section) -> Result<Vec<u8>> {
    let len = section.end.min(segment.device.len()).saturating_sub(section.body);
    segment.device.read_vec(Offset::new(section.body), len.min(MOST) as usize)
}

fn codec(segment: &Segment) -> Codec {
    segment.second.map_or(Codec::Zlib, |(codec, _)| codec)
}

/// A text, decompressed and of one width. Ex01 compresses what is small all the same.
fn text(codec: Codec, packed: &[u8]) -> String {
    let mut bytes = Vec::new();
    let done = match codec {
        Codec::Zlib => flate2::read::ZlibDecoder::new(packed).take(MOST).read_to_end(&mut bytes),
        Codec::Bzip2 => bzip2::read::BzDecoder::new(packed).take(MOST).read_to_end(&mut bytes),
    };
    if done.is_err() {
        bytes = packed.to_vec();
    }
    if bytes.starts_with(&[0xFF, 0xFE]) {
        let units = bytes.as_chunks().0.iter().skip(1).map(|b| u16::from_le_bytes(*b));
        return char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The lines of a text that name values, and those that have them: the third and the fourth.
fn lines(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut lines = text.lines().skip(2);
    let (keys, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    keys.split('\t').zip(values.split('\t'))
}

/// The shape of a disk of Ex01, which is told by its texts.
pub fn shape(all: &[Segment]) -> Result<Shape> {
    let mut found: [Option<u64>; 4] = [None; 4];
    for segment in all {
        for section in segment.sections.iter().filter(|s| matches!(s.kind, Kind::Device | Kind::Case)) {
            let text = text(codec(segment), &contents(segment, section)?);
            for (key, value) in lines(&text) {
                let slot = match (section.kind, key) {
                    (Kind::Device, "bp") => 0,
                    (Kind::Device, "ts") => 1,
                    (Kind::Case, "sb") => 2,
                    (Kind::Case, "tb") => 3,
                    _ => continue,
                };
                if let (Some(slot), Ok(n)) = (found.get_mut(slot), value.trim().parse()) {
                    slot.get_or_insert(n);
                }
            }
        }
    }
    let missing = |what: &str| Error::corrupt("EWF image", Offset::<Device>::new(0), format!("the {what} of the disk"));
    let [sector, sectors, per_chunk, chunks] = found;
    let sector = sector.ok_or_else(|| missing("bytes of a sector"))?;
    let sectors = sectors.ok_or_else(|| missing("number of sectors"))?;
    let per_chunk = per_chunk.ok_or_else(|| missing("sectors of a chunk"))?;
    let chunk = per_chunk.checked_mul(sector).filter(|c| (512..=u64::from(MAX_CHUNK)).contains(c));
    let chunk = chunk
        .and_then(|c| u32::try_from(c).ok())
        .ok_or_else(|| missing("size, 512 bytes to 128 MiB, of the chunks"))?;
    let len = sectors.checked_mul(sector).ok_or_else(|| missing("size, fewer than 2^64 bytes,"))?;
    let chunks = chunks.and_then(|n| u32::try_from(n).ok()).unwrap_or_default();
    Ok(Shape { chunks, chunk, len, set: [0; 16] })
}

/// The notes that are shown.
fn noted(text: &str, facts: &mut Vec<(&'static str, String)>) {
    for (key, value) in lines(text) {
        let name = match key {
            "c" | "cn" => "case_number",
            "n" | "en" => "evidence_number",
            "a" | "nm" => "description",
            "e" | "ex" => "examiner",
            "t" | "nt" => "notes",
            "m" | "at" => "acquired",
            "u" | "tt" => "system_time",
            "av" => "software",
            "ov" => "platform",
            _ => continue,
        };
        let value = value.trim();
        // The first of the copies counts: it has the wider letters.
        if !value.is_empty() && !facts.iter().any(|(n, _)| *n == name) {
            facts.push((name, value.to_owned()));
        }
    }
}

fn hash(
    section: &Section,
    bytes: &[u8],
    sum: usize,
    each: &[(&'static str, usize, usize)],
    hashes: &mut Vec<StoredHash>,
) -> Result<()> {
    let f = Fields::new("EWF hash section", Offset::<Device>::new(section.body), bytes);
    if f.u32(sum)? != adler32(f.slice(0, sum)?) {
        return Err(f.wrong(sum, "the checksum of the section"));
    }
    for (algorithm, at, len) in each {
        let value = f.slice(*at, *len)?;
        if value.iter().any(|b| *b != 0) && !hashes.iter().any(|h| h.algorithm == *algorithm) {
            hashes.push(StoredHash { algorithm, value: value.to_vec() });
        }
    }
    Ok(())
}

/// Sectors that were zeroed because they could not be read.
fn errors(section: &Section, bytes: &[u8], remarks: &mut Vec<String>) -> Result<()> {
    /// Bytes before the entries.
    const HEAD: usize = 520;
    let f = Fields::new("EWF error section", Offset::<Device>::new(section.body), bytes);
    let count = f.u32(0)?;
    let entries = bytes.get(HEAD..).unwrap_or_default().as_chunks::<8>().0.iter().take(count as usize);
    let sectors = entries.fold(0u64, |sum, e| match e {
        [_, _, _, _, count @ ..] => sum.saturating_add(u32::from_le_bytes(*count).into()),
    });
    if count > 0 {
        remarks.push(format!(
            "{sectors} sectors in {count} places could not be read when the disk was acquired: they read as what was put in their place"
        ));
    }
    if sectors == 0 && count > 0 {
        return Err(Error::corrupt("EWF error section", f.at(), "entries for its count"));
    }
    Ok(())
}

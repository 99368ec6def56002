//! Directory slots of 32 bytes: entries with their 8.3 names, and the long names (LFN) before them.
//!
//! Source: Microsoft, "FAT: General Overview of On-Disk Format", version 1.03, and its description of long names.

use crate::bytes::put;

/// Bytes of a slot.
pub const SLOT: usize = 32;
/// The same, for places on a volume.
pub const SLOT_BYTES: u64 = SLOT as u64;
/// Most slots that a directory may have.
pub const MAX_SLOTS: usize = 65_536;
/// First byte of a slot that is free, with used ones after it.
pub const DELETED: u8 = 0xE5;
/// Attribute: read-only.
pub const READ_ONLY: u8 = 1;
/// Attribute: hidden.
pub const HIDDEN: u8 = 2;
/// Attribute: system.
pub const SYSTEM: u8 = 4;
/// Attribute: the entry is the volume's label.
pub const LABEL: u8 = 8;
/// Attribute: directory.
pub const DIRECTORY: u8 = 0x10;
/// Attribute: archive.
pub const ARCHIVE: u8 = 0x20;
/// Attributes of a slot of a long name.
pub const LONG: u8 = 0x0F;
/// UTF-16 units in one slot of a long name.
pub const UNITS: usize = 13;
/// UTF-16 units of the longest name.
pub const MAX_UNITS: usize = 255;
/// NT byte: the base of the 8.3 name is shown in lower case.
pub const LOWER_BASE: u8 = 0x08;
/// NT byte: its extension is.
pub const LOWER_EXT: u8 = 0x10;

const LAST: u8 = 0x40;
const DOT: [u8; 11] = *b".          ";
const DOT_DOT: [u8; 11] = *b"..         ";

/// An entry with its 8.3 name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Short {
    /// Base and extension, padded with spaces, in the OEM code page; as on the disk (0x05 for a leading 0xE5).
    pub name: [u8; 11],
    /// Attributes.
    pub attr: u8,
    /// [`LOWER_BASE`], [`LOWER_EXT`].
    pub nt: u8,
    /// Made: 10 ms, 0 to 199.
    pub created_fine: u8,
    /// Made: time, 2 s.
    pub created_time: u16,
    /// Made: date.
    pub created_date: u16,
    /// Read: date.
    pub accessed_date: u16,
    /// Changed: time, 2 s.
    pub modified_time: u16,
    /// Changed: date.
    pub modified_date: u16,
    /// First cluster; 0 for none.
    pub cluster: u32,
    /// Bytes; 0 for directories.
    pub size: u32,
}

fn u16_at(slot: &[u8; SLOT], at: usize) -> u16 {
    slot.get(at..).and_then(<[u8]>::first_chunk).copied().map_or(0, u16::from_le_bytes)
}

impl Short {
    /// The entry in a slot. `wide` where the cluster's number has its high half (FAT32).
    pub fn decode(slot: &[u8; SLOT], wide: bool) -> Self {
        let mut name = [0; 11];
        name.copy_from_slice(slot.first_chunk::<11>().unwrap_or(&[0; 11]));
        let high = if wide { u32::from(u16_at(slot, 0x14)) << 16 } else { 0 };
        Self {
            name,
            attr: u16_at(slot, 0x0B).to_le_bytes()[0],
            nt: u16_at(slot, 0x0C).to_le_bytes()[0],
            created_fine: u16_at(slot, 0x0D).to_le_bytes()[0],
            created_time: u16_at(slot, 0x0E),
            created_date: u16_at(slot, 0x10),
            accessed_date: u16_at(slot, 0x12),
            modified_time: u16_at(slot, 0x16),
            modified_date: u16_at(slot, 0x18),
            cluster: high | u32::from(u16_at(slot, 0x1A)),
            size: u32::from(u16_at(slot, 0x1E)) << 16 | u32::from(u16_at(slot, 0x1C)),
        }
    }
    /// Its slot.
    pub fn encode(&self) -> [u8; SLOT] {
        let mut slot = [0; SLOT];
        let [c0, c1, c2, c3] = self.cluster.to_le_bytes();
        let _fits = put(&mut slot, 0, &self.name)
            && put(&mut slot, 0x0B, &[self.attr, self.nt, self.created_fine])
            && put(&mut slot, 0x0E, &self.created_time.to_le_bytes())
            && put(&mut slot, 0x10, &self.created_date.to_le_bytes())
            && put(&mut slot, 0x12, &self.accessed_date.to_le_bytes())
            && put(&mut slot, 0x14, &[c2, c3])
            && put(&mut slot, 0x16, &self.modified_time.to_le_bytes())
            && put(&mut slot, 0x18, &self.modified_date.to_le_bytes())
            && put(&mut slot, 0x1A, &[c0, c1])
            && put(&mut slot, 0x1C, &self.size.to_le_bytes());
        slot
    }
    /// The entry `.` of a directory.
    pub fn dot(cluster: u32) -> Self {
        Self { name: DOT, attr: DIRECTORY, cluster, ..Self::default() }
    }
    /// The entry `..`: the parent's first cluster, 0 for the root on all widths.
    pub fn dot_dot(cluster: u32) -> Self {
        Self { name: DOT_DOT, attr: DIRECTORY, cluster, ..Self::default() }
    }
    /// Whether it is `.`.
    pub fn is_dot(&self) -> bool {
        self.name == DOT
    }
    /// Whether it is `..`.
    pub fn is_dot_dot(&self) -> bool {
        self.name == DOT_DOT
    }
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.attr & DIRECTORY != 0
    }
    /// The name as bytes of the code page, 0xE5 in its place, without padding: base and extension.
    pub fn parts(&self) -> (Vec<u8>, Vec<u8>) {
        let (base, ext) = self.name.split_at(8);
        let trimmed = |part: &[u8]| {
            let len = part.iter().rposition(|b| *b != b' ').map_or(0, |last| last.saturating_add(1));
            part.get(..len).unwrap_or_default().to_vec()
        };
        let mut base = trimmed(base);
        if let Some(first) = base.first_mut()
            && *first == 0x05
        {
            *first = DELETED;
        }
        (base, trimmed(ext))
    }
}

/// The checksum of an 8.3 name that each slot of its long name carries.
pub fn checksum(name: &[u8; 11]) -> u8 {
    name.iter().fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte))
}

/// One slot of a long name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Long {
    /// Its position from the end of the entry: 1 is the one just before the 8.3 name.
    pub position: u8,
    /// Whether it stands first on the disk, being the end of the name.
    pub last: bool,
    /// [`checksum`] of the 8.3 name.
    pub checksum: u8,
    /// Thirteen UTF-16 units, little-endian.
    pub units: [u8; 2 * UNITS],
}

impl Long {
    const PIECES: [(usize, usize); 3] = [(0x01, 10), (0x0E, 12), (0x1C, 4)];

    /// The long name's slot.
    pub fn decode(slot: &[u8; SLOT]) -> Self {
        let mut units = [0; 2 * UNITS];
        let bytes = Self::PIECES.iter().flat_map(|(at, len)| slot.iter().skip(*at).take(*len));
        for (unit, byte) in units.iter_mut().zip(bytes) {
            *unit = *byte;
        }
        let [sequence, ..] = *slot;
        Self {
            position: sequence & !LAST,
            last: sequence & LAST != 0,
            checksum: u16_at(slot, 0x0D).to_le_bytes()[0],
            units,
        }
    }
    /// Its slot.
    pub fn encode(&self) -> [u8; SLOT] {
        let mut slot = [0; SLOT];
        let mut at = 0usize;
        let mut fits = put(&mut slot, 0, &[self.position | if self.last { LAST } else { 0 }])
            && put(&mut slot, 0x0B, &[LONG, 0, self.checksum]);
        for (place, len) in Self::PIECES {
            let end = at.saturating_add(len);
            fits = fits && put(&mut slot, place, self.units.get(at..end).unwrap_or_default());
            at = end;
        }
        slot
    }
}

/// The slots of a long name as they stand on the disk, before the entry whose 8.3 name has this checksum.
/// A name has at most [`MAX_UNITS`] units; more are cut off.
pub fn long_slots(units: &[u16], checksum: u8) -> Vec<[u8; SLOT]> {
    let units = units.get(..MAX_UNITS).unwrap_or(units);
    let mut slots: Vec<[u8; SLOT]> = Vec::with_capacity(units.len().div_ceil(UNITS));
    let count = units.len().div_ceil(UNITS);
    for (i, piece) in units.chunks(UNITS).enumerate() {
        let mut bytes = [0xFF; 2 * UNITS];
        // Behind the name stands NUL, then all ones; a name that fills its last slot has neither.
        let ended = piece.iter().copied().chain(std::iter::once(0));
        for (room, unit) in bytes.chunks_exact_mut(2).zip(ended) {
            room.copy_from_slice(&unit.to_le_bytes());
        }
        let position = u8::try_from(i.saturating_add(1)).unwrap_or(u8::MAX);
        slots.push(Long { position, last: usize::from(position) == count, checksum, units: bytes }.encode());
    }
    slots.reverse();
    slots
}

/// What a slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// Free, and all that follow too.
    End,
    /// Free.
    Deleted,
    /// Part of a long name.
    Long(Long),
    /// The volume's label.
    Label([u8; 11]),
    /// A file or directory.
    Entry(Short),
}

impl Slot {
    /// Which one it is. `wide` as for [`Short::decode`].
    pub fn decode(slot: &[u8; SLOT], wide: bool) -> Self {
        let short = Short::decode(slot, wide);
        match slot {
            [0, ..] => Self::End,
            [DELETED, ..] => Self::Deleted,
            _ if short.attr & 0x3F == LONG => Self::Long(Long::decode(slot)),
            _ if short.attr & (LABEL | DIRECTORY) == LABEL => Self::Label(short.name),
            _ => Self::Entry(short),
        }
    }
}

/// An entry of a directory with its long name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Slot of the 8.3 name.
    pub slot: usize,
    /// First slot of the long name; `slot` where it has none.
    pub first: usize,
    /// The long name, UTF-16 little-endian.
    pub long: Option<Vec<u8>>,
    /// The entry.
    pub short: Short,
}

/// What the slots of a directory hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Entries in the order of the disk, `.` and `..` among them.
    pub found: Vec<Found>,
    /// Slots before the end mark, or all.
    pub used: usize,
    /// Slots of long names that belong to no entry.
    pub orphans: usize,
    /// Labels.
    pub labels: Vec<[u8; 11]>,
}

/// The entries in the slots of a directory, up to its end mark.
pub fn list(bytes: &[u8], wide: bool) -> Listing {
    let mut out = Listing::default();
    // The long name being gathered: its first slot, pieces (end of the name first), and the position awaited next.
    let mut pieces: Vec<Long> = Vec::new();
    let (slots, _) = bytes.as_chunks::<SLOT>();
    for (i, slot) in slots.iter().enumerate() {
        match Slot::decode(slot, wide) {
            Slot::End => break,
            Slot::Long(long) => {
                let follows = pieces.last().is_some_and(|before: &Long| {
                    before.position.checked_sub(1) == Some(long.position) && before.checksum == long.checksum
                });
                if long.last || !follows || long.position == 0 {
                    out.orphans = out.orphans.saturating_add(pieces.len());
                    pieces.clear();
                }
                // 20 slots hold the longest name.
                if long.position == 0 || long.position > 20 || !(long.last || follows) {
                    out.orphans = out.orphans.saturating_add(1);
                } else {
                    pieces.push(long);
                }
            }
            Slot::Entry(short) => {
                let whole = pieces.last().is_some_and(|l| l.position == 1 && l.checksum == checksum(&short.name));
                let long = if whole { joined(&pieces) } else { None };
                if long.is_none() {
                    out.orphans = out.orphans.saturating_add(pieces.len());
                }
                let first = if long.is_some() { i.saturating_sub(pieces.len()) } else { i };
                out.found.push(Found { slot: i, first, long, short });
                pieces.clear();
            }
            other => {
                if let Slot::Label(label) = other {
                    out.labels.push(label);
                }
                out.orphans = out.orphans.saturating_add(pieces.len());
                pieces.clear();
            }
        }
        out.used = i.saturating_add(1);
    }
    out.orphans = out.orphans.saturating_add(pieces.len());
    out
}

/// The name of a whole set of slots, up to its NUL; none where it has no unit or is too long.
fn joined(pieces: &[Long]) -> Option<Vec<u8>> {
    let mut name: Vec<u8> = pieces.iter().rev().flat_map(|l| l.units).collect();
    let (units, _) = name.as_chunks::<2>();
    let len = units.iter().position(|unit| *unit == [0, 0]).unwrap_or(units.len());
    if len == 0 || len > MAX_UNITS {
        return None;
    }
    name.truncate(len.saturating_mul(2));
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn short() -> impl Strategy<Value = Short> {
        (any::<[u8; 11]>(), any::<[u8; 3]>(), any::<[u16; 5]>(), any::<u32>(), any::<u32>()).prop_map(
            |(name, b, w, cluster, size)| Short {
                name,
                attr: b[0],
                nt: b[1],
                created_fine: b[2],
                created_time: w[0],
                created_date: w[1],
                accessed_date: w[2],
                modified_time: w[3],
                modified_date: w[4],
                cluster,
                size,
            },
        )
    }

    fn file(name: &[u8; 11]) -> Short {
        Short { name: *name, attr: ARCHIVE, ..Short::default() }
    }

    fn units(name: &str) -> Vec<u16> {
        name.encode_utf16().collect()
    }

    fn bytes(name: &str) -> Vec<u8> {
        name.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }

    fn with_long(name: &str, short: &Short) -> Vec<u8> {
        let mut out = long_slots(&units(name), checksum(&short.name)).concat();
        out.extend_from_slice(&short.encode());
        out
    }

    #[test]
    fn checksum_of_a_known_name() {
        // From a volume that Windows wrote: "THEQUI~1FOX" of the specification's example.
        assert_eq!(checksum(b"THEQUI~1FOX"), 0x07);
    }

    #[test]
    fn names_of_all_lengths_come_back() {
        for len in 1..=255 {
            let name = "x".repeat(len);
            let short = file(b"XXXXXX~1   ");
            let slots = with_long(&name, &short);
            assert_eq!(slots.len() / SLOT, len.div_ceil(13) + 1);
            let listed = list(&slots, true);
            assert_eq!(
                listed.found,
                [Found { slot: slots.len() / SLOT - 1, first: 0, long: Some(bytes(&name)), short }]
            );
            assert_eq!(listed.orphans, 0);
        }
    }

    #[test]
    fn a_long_name_that_is_not_whole_is_left_out() {
        let short = file(b"LONGNA~1TXT");
        let whole = with_long("a long name of three slots, twenty-seven", &short);
        let only_short = |slots: &[u8]| {
            let listed = list(slots, true);
            assert_eq!(listed.found.len(), 1);
            assert_eq!((listed.found[0].first, &listed.found[0].long), (listed.found[0].slot, &None));
            assert!(listed.orphans > 0);
        };
        // A slot is missing, whichever.
        for missing in 0..4 {
            let mut slots = whole.clone();
            slots.drain(missing * SLOT..(missing + 1) * SLOT);
            only_short(&slots);
        }
        // The checksum of one slot, or the 8.3 name, is another.
        for at in [SLOT + 0x0D, 4 * SLOT] {
            let mut slots = whole.clone();
            slots[at] ^= 0x11;
            only_short(&slots);
        }
        // A deleted slot, a label in between.
        let mut slots = whole.clone();
        slots[2 * SLOT] = DELETED;
        only_short(&slots);
        let mut slots = whole.clone();
        let label = Short { attr: LABEL, ..file(b"LABEL      ") };
        slots.splice(4 * SLOT..4 * SLOT, label.encode());
        only_short(&slots);
    }

    #[test]
    fn nothing_counts_after_the_end_mark() {
        let mut slots = file(b"A          ").encode().to_vec();
        slots.extend_from_slice(&[0; SLOT]);
        slots.extend_from_slice(&file(b"B          ").encode());
        let listed = list(&slots, true);
        assert_eq!((listed.found.len(), listed.used), (1, 1));
    }

    #[test]
    fn a_leading_e5_is_kept_as_05() {
        let (base, ext) = file(b"\x05BC     D  ").parts();
        assert_eq!((base.as_slice(), ext.as_slice()), (&b"\xE5BC"[..], &b"D"[..]));
        assert_eq!(file(b"A B     C  ").parts().0, b"A B");
    }

    proptest! {
        #[test]
        fn entries_come_back(short in short()) {
            prop_assert_eq!(Short::decode(&short.encode(), true), short);
            let narrow = Short { cluster: short.cluster & 0xFFFF, ..short };
            prop_assert_eq!(Short::decode(&short.encode(), false), narrow);
        }
        #[test]
        fn long_slots_come_back(position in 1u8..=20, last: bool, checksum: u8, units: [u8; 26]) {
            let long = Long { position, last, checksum, units };
            prop_assert_eq!(Slot::decode(&long.encode(), true), Slot::Long(long));
        }
        #[test]
        fn any_slots_can_be_listed(bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(0x0F), Just(0x41), Just(1)], 0..900)) {
            let listed = list(&bytes, true);
            prop_assert!(listed.found.iter().all(|f| f.first <= f.slot && f.slot < bytes.len() / SLOT));
        }
    }
}

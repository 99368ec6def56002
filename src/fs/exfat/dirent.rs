//! Directory entries of 32 bytes, and the sets of them that a file is: one file entry, one stream extension, and file
//! names of 15 units each.
//!
//! Source: Microsoft, "exFAT file system specification", revision 1.00, sections 6 and 7.

use crate::bytes::put;
use crate::fs::exfat::layout::add16;
use crate::fs::fat::stamp;
use crate::fs::{TimeUnit, Timestamp};

/// Bytes of an entry.
pub const ENTRY: usize = 32;
/// The same, for places on a volume.
pub const ENTRY_BYTES: u64 = ENTRY as u64;
/// Bytes of the largest directory: 256 MiB.
pub const MAX_DIR: u64 = 256 << 20;
/// UTF-16 units of one name entry.
pub const UNITS: usize = 15;
/// UTF-16 units of the longest name.
pub const MAX_UNITS: usize = 255;
/// Attribute: read-only.
pub const READ_ONLY: u16 = 1;
/// Attribute: hidden.
pub const HIDDEN: u16 = 2;
/// Attribute: system.
pub const SYSTEM: u16 = 4;
/// Attribute: directory.
pub const DIRECTORY: u16 = 0x10;
/// Attribute: archive.
pub const ARCHIVE: u16 = 0x20;
/// Bit of an entry's type: in use.
pub const IN_USE: u8 = 0x80;
/// Stream flag: it may have clusters.
pub const POSSIBLE: u8 = 1;
/// Stream flag: its clusters are neighbours, and have no chain in the table.
pub const NO_CHAIN: u8 = 2;

const SECONDARY: u8 = 0x40;
const BENIGN: u8 = 0x20;
const BITMAP: u8 = 0x81;
const UP_CASE: u8 = 0x82;
const LABEL: u8 = 0x83;
const FILE: u8 = 0x85;
const GUID: u8 = 0xA0;
const PADDING: u8 = 0xA1;
const STREAM: u8 = 0xC0;
const NAME: u8 = 0xC1;
const VENDOR: u8 = 0xE0;
const VENDOR_CLUSTERS: u8 = 0xE1;
/// Offset from UTC: whether there is one.
const ZONE_KNOWN: u8 = 0x80;

/// An entry as its bytes.
pub type Entry = [u8; ENTRY];

fn array<const N: usize>(entry: &Entry, at: usize) -> [u8; N] {
    entry.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
}
fn u8_at(entry: &Entry, at: usize) -> u8 {
    u8::from_le_bytes(array(entry, at))
}
fn u16_at(entry: &Entry, at: usize) -> u16 {
    u16::from_le_bytes(array(entry, at))
}
fn u32_at(entry: &Entry, at: usize) -> u32 {
    u32::from_le_bytes(array(entry, at))
}
fn u64_at(entry: &Entry, at: usize) -> u64 {
    u64::from_le_bytes(array(entry, at))
}

/// A time as it is kept: date and time of 2 s as FAT has them, 10 ms beyond it, and the offset from UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Date in the high half, time in the low one.
    pub when: u32,
    /// 10 ms, 0 to 199.
    pub fine: u8,
    /// Offset from UTC in quarters of an hour (7 bits with a sign), where the highest bit is set.
    pub zone: u8,
}

impl Stamp {
    /// The time, of which the entry keeps what `unit` says; without an offset of its own in a zone so many seconds east of UTC.
    pub fn decode(&self, unit: TimeUnit, local: i32) -> Option<Timestamp> {
        let seconds = match self.zone & ZONE_KNOWN {
            0 => local,
            _ => {
                // Seven bits with a sign.
                let quarters = i32::from((self.zone << 1).cast_signed()) / 2;
                quarters.saturating_mul(15 * 60)
            }
        };
        let half = |shift: u32| u16::try_from(self.when >> shift & 0xFFFF).unwrap_or(0);
        stamp::decode(half(16), half(0), self.fine, unit, seconds)
    }
    /// A point in time, in UTC.
    pub fn encode(at: Timestamp) -> Self {
        let (date, time, fine) = stamp::encode(at, 0);
        Self { when: u32::from(date) << 16 | u32::from(time), fine, zone: ZONE_KNOWN }
    }
}

/// Where the clusters of something are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alloc {
    /// [`POSSIBLE`], [`NO_CHAIN`].
    pub flags: u8,
    /// First cluster; 0 for none.
    pub first: u32,
    /// Bytes.
    pub len: u64,
}

impl Alloc {
    /// Whether its clusters are neighbours without a chain.
    pub fn no_chain(&self) -> bool {
        self.flags & NO_CHAIN != 0
    }
    fn of(entry: &Entry, flags: u8) -> Self {
        Self { flags, first: u32_at(entry, 0x14), len: u64_at(entry, 0x18) }
    }
}

/// What a file's entry set says, but for its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct File {
    /// Attributes.
    pub attributes: u16,
    /// Made.
    pub created: Stamp,
    /// Changed.
    pub modified: Stamp,
    /// Read; has no 10 ms.
    pub accessed: Stamp,
    /// Bytes from the start that were written; the rest reads as zeros.
    pub valid: u64,
    /// Where its clusters are.
    pub alloc: Alloc,
}

impl File {
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.attributes & DIRECTORY != 0
    }
    /// Its entry set with this name, of at most 255 units, and that name's hash.
    pub fn encode(&self, units: &[u16], hash: u16) -> Vec<Entry> {
        let names = units.chunks(UNITS);
        let count = u8::try_from(names.len().saturating_add(1)).unwrap_or(u8::MAX);
        let mut file = [0; ENTRY];
        let mut stream = [0; ENTRY];
        let (c, m, a) = (self.created, self.modified, self.accessed);
        let length = u8::try_from(units.len()).unwrap_or(u8::MAX);
        let _fits = put(&mut file, 0, &[FILE, count])
            && put(&mut file, 4, &self.attributes.to_le_bytes())
            && put(&mut file, 0x08, &c.when.to_le_bytes())
            && put(&mut file, 0x0C, &m.when.to_le_bytes())
            && put(&mut file, 0x10, &a.when.to_le_bytes())
            && put(&mut file, 0x14, &[c.fine, m.fine, c.zone, m.zone, a.zone])
            && put(&mut stream, 0, &[STREAM, self.alloc.flags, 0, length])
            && put(&mut stream, 4, &hash.to_le_bytes())
            && put(&mut stream, 0x08, &self.valid.to_le_bytes())
            && put(&mut stream, 0x14, &self.alloc.first.to_le_bytes())
            && put(&mut stream, 0x18, &self.alloc.len.to_le_bytes());
        let mut set = vec![file, stream];
        for part in names {
            let mut entry = [0; ENTRY];
            let bytes: Vec<u8> = part.iter().flat_map(|unit| unit.to_le_bytes()).collect();
            let _fits = put(&mut entry, 0, &[NAME]) && put(&mut entry, 2, &bytes);
            set.push(entry);
        }
        seal(&mut set);
        set
    }
}

/// Says in an entry set that its clusters, all of them valid, are there.
pub fn set_alloc(set: &mut [Entry], alloc: Alloc) {
    if let [_, stream, ..] = set {
        let _fits = put(stream, 1, &[alloc.flags])
            && put(stream, 0x08, &alloc.len.to_le_bytes())
            && put(stream, 0x14, &alloc.first.to_le_bytes())
            && put(stream, 0x18, &alloc.len.to_le_bytes());
    }
    seal(set);
}

/// Sets the checksum of an entry set.
pub fn seal(set: &mut [Entry]) {
    let sum = checksum(set).to_le_bytes();
    if let Some(first) = set.first_mut() {
        let _fits = put(first, 2, &sum);
    }
}

/// The checksum of an entry set: over all of its bytes but those of the checksum.
pub fn checksum(set: &[Entry]) -> u16 {
    set.as_flattened().iter().enumerate().filter(|(i, _)| !matches!(i, 2 | 3)).fold(0, |sum, (_, b)| add16(sum, *b))
}

/// The entry set of a file as it was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// Position of its first entry in the directory.
    pub at: usize,
    /// Entries, those behind the name included.
    pub entries: usize,
    /// What it says.
    pub file: File,
    /// Units of its name.
    pub units: Vec<u16>,
    /// Hash of its name, as it is there.
    pub hash: u16,
    /// Whether its checksum is right.
    pub sound: bool,
    /// Clusters of vendors.
    pub vendor: Vec<Alloc>,
    /// Entries that only a vendor knows.
    pub vendors: usize,
    /// Whether an entry of it is of a kind that is unknown and must not be ignored.
    pub unknown: bool,
}

/// An allocation bitmap's entry, or the up-case table's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Position of its entry.
    pub at: usize,
    /// Whether it is the second bitmap.
    pub second: bool,
    /// Checksum of the up-case table.
    pub checksum: u32,
    /// Where it is. It has a chain.
    pub alloc: Alloc,
}

/// A directory's entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Files and directories, in order.
    pub sets: Vec<Set>,
    /// Allocation bitmaps.
    pub bitmaps: Vec<Table>,
    /// Up-case tables; there has to be one, in the root.
    pub up_case: Vec<Table>,
    /// Units of the volume's label.
    pub label: Option<Vec<u16>>,
    /// Clusters of what is unknown and may be ignored.
    pub others: Vec<Alloc>,
    /// Entries of which something is wrong: position, and what was expected.
    pub faults: Vec<(usize, &'static str)>,
    /// Entries before the end mark.
    pub used: usize,
}

/// Reads a directory's entries up to the end mark. Deleted ones are left out.
pub fn list(bytes: &[u8]) -> Listing {
    let (entries, _) = bytes.as_chunks::<ENTRY>();
    let mut out = Listing { used: entries.len(), ..Listing::default() };
    let mut at = 0usize;
    while let Some(entry) = entries.get(at) {
        let [kind, count, ..] = *entry;
        if kind == 0 {
            out.used = at;
            break;
        }
        let mut taken = 1usize;
        let possible = |flags: u8| flags & POSSIBLE != 0;
        match kind {
            _ if kind & IN_USE == 0 => {}
            FILE => taken = file_set(entries, at, &mut out),
            BITMAP => {
                let alloc = Alloc::of(entry, POSSIBLE);
                out.bitmaps.push(Table { at, second: count & 1 != 0, checksum: 0, alloc });
            }
            UP_CASE => {
                let table = Table { at, second: false, checksum: u32_at(entry, 4), alloc: Alloc::of(entry, POSSIBLE) };
                out.up_case.push(table);
            }
            LABEL => {
                let length = usize::from(count).min(11);
                let units = entry.as_chunks::<2>().0.iter().skip(1).take(length).map(|u| u16::from_le_bytes(*u));
                out.label = Some(units.collect());
            }
            GUID | PADDING => {}
            _ if kind & SECONDARY != 0 => {
                out.faults.push((at, "the file entry of this set before it"));
                let rest = entries.get(at..).unwrap_or_default().iter();
                taken = rest.take_while(|e| u8_at(e, 0) & (IN_USE | SECONDARY) == IN_USE | SECONDARY).count();
            }
            _ if kind & BENIGN != 0 => {
                // Primary entries have their flags at byte 4.
                let flags = u8_at(entry, 4);
                if possible(flags) {
                    out.others.push(Alloc::of(entry, flags));
                }
            }
            _ => out.faults.push((at, "an entry of a kind that is known")),
        }
        at = at.saturating_add(taken.max(1));
    }
    out
}

/// Reads the set that begins at `at`; the entries that it has.
fn file_set(entries: &[Entry], at: usize, out: &mut Listing) -> usize {
    let Some(first) = entries.get(at) else { return 1 };
    let count = usize::from(u8_at(first, 1));
    let behind = entries.get(at.saturating_add(1)..).unwrap_or_default();
    let there = behind.iter().take(count).take_while(|e| u8_at(e, 0) & (IN_USE | SECONDARY) == IN_USE | SECONDARY);
    let have = there.count();
    let taken = have.saturating_add(1);
    let secondary = behind.get(..have).unwrap_or_default();
    let Some(stream) = secondary.first().filter(|e| u8_at(e, 0) == STREAM) else {
        out.faults.push((at, "a stream extension behind the file entry"));
        return taken;
    };
    let length = usize::from(u8_at(stream, 3));
    let mut set = Set {
        at,
        entries: taken,
        file: File {
            attributes: u16_at(first, 4),
            created: Stamp { when: u32_at(first, 0x08), fine: u8_at(first, 0x14), zone: u8_at(first, 0x16) },
            modified: Stamp { when: u32_at(first, 0x0C), fine: u8_at(first, 0x15), zone: u8_at(first, 0x17) },
            accessed: Stamp { when: u32_at(first, 0x10), fine: 0, zone: u8_at(first, 0x18) },
            valid: u64_at(stream, 8),
            alloc: Alloc::of(stream, u8_at(stream, 1)),
        },
        hash: u16_at(stream, 4),
        sound: have == count
            && checksum(entries.get(at..at.saturating_add(taken)).unwrap_or_default()) == u16_at(first, 2),
        ..Set::default()
    };
    let mut names = true;
    for entry in secondary.get(1..).unwrap_or_default() {
        match u8_at(entry, 0) {
            NAME if names && set.units.len() < length => {
                let room = length.saturating_sub(set.units.len()).min(UNITS);
                let units = entry.as_chunks::<2>().0.iter().skip(1).take(room).map(|u| u16::from_le_bytes(*u));
                set.units.extend(units);
            }
            VENDOR => set.vendors = set.vendors.saturating_add(1),
            VENDOR_CLUSTERS => {
                set.vendors = set.vendors.saturating_add(1);
                let flags = u8_at(entry, 1);
                if flags & POSSIBLE != 0 {
                    set.vendor.push(Alloc::of(entry, flags));
                }
            }
            kind if kind & BENIGN != 0 => set.vendors = set.vendors.saturating_add(1),
            _ => set.unknown = true,
        }
        names &= u8_at(entry, 0) == NAME;
    }
    if have < count {
        out.faults.push((at, "as many secondary entries as the file entry says"));
    }
    if length == 0 || set.units.len() < length {
        out.faults.push((at, "a name of the length that the stream extension says"));
    }
    out.sets.push(set);
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file() -> File {
        File {
            attributes: ARCHIVE,
            modified: Stamp { when: 0x5821_6000, fine: 150, zone: 0x84 },
            valid: 5,
            alloc: Alloc { flags: POSSIBLE | NO_CHAIN, first: 9, len: 5 },
            ..File::default()
        }
    }

    #[test]
    fn offsets_from_utc() {
        let at =
            |zone: u8, local| Stamp { when: 0x0021_0000, fine: 0, zone }.decode(TimeUnit::Second, local).unwrap().secs;
        let utc = 315_532_800;
        assert_eq!(at(0x80, 7200), utc);
        assert_eq!(at(0x00, 7200), utc - 7200);
        // An hour east; five and a half hours; eight hours west, which has its sign in bit 6.
        assert_eq!([at(0x84, 0), at(0x96, 0), at(0xE0, 0)], [utc - 3600, utc - 19_800, utc + 28_800]);
    }

    #[test]
    fn a_set_is_what_was_encoded() {
        let units: Vec<u16> = "a name of more than fifteen units".encode_utf16().collect();
        let set = file().encode(&units, 0x1234);
        assert_eq!(set.len(), 5);
        let mut bytes = set.as_flattened().to_vec();
        bytes.extend([0; 96]);
        let listing = list(&bytes);
        assert_eq!((listing.faults.len(), listing.used, listing.sets.len()), (0, 5, 1));
        let found = &listing.sets[0];
        assert_eq!((found.file, &found.units, found.hash, found.sound), (file(), &units, 0x1234, true));
        // Deleted.
        for entry in bytes.chunks_mut(32).take(5) {
            entry[0] &= !IN_USE;
        }
        let listing = list(&bytes);
        assert_eq!((listing.sets.len(), listing.faults.len(), listing.used), (0, 0, 5));
    }

    #[test]
    fn sets_that_are_damaged() {
        let units: Vec<u16> = "a name of more than fifteen units".encode_utf16().collect();
        let good = file().encode(&units, 0x1234).as_flattened().to_vec();
        let with = |at: usize, new: u8| {
            let mut bytes = good.clone();
            bytes[at] = new;
            list(&bytes)
        };
        // A time: the checksum is wrong, all else is as it was.
        let other = with(0x0C, 1);
        assert!(!other.sets[0].sound && other.sets[0].units == units && other.faults.is_empty());
        assert_eq!(with(1, 9).faults, [(0, "as many secondary entries as the file entry says")]);
        assert_eq!(with(32, 0xC1).faults, [(0, "a stream extension behind the file entry")]);
        assert_eq!(with(35, 0).faults[0].1, "a name of the length that the stream extension says");
        assert_eq!(with(35, 200).sets[0].units.len(), 45);
        assert_eq!(with(96, 0xE0).sets[0].vendors, 1);
        assert!(with(96, 0xC5).sets[0].unknown);
        assert_eq!(with(0, 0x05).faults.len(), 1);
        assert_eq!(with(64, 0).sets[0].entries, 2);
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(0xC1u8), Just(0x85), Just(0xC0), Just(1)], 0..600)) {
            let listing = list(&bytes);
            prop_assert!(listing.sets.iter().all(|s| s.at + s.entries <= bytes.len() / 32));
        }
        #[test]
        fn ten_milliseconds_come_back(secs in 315_532_800i64..4_354_819_198, hundredths in 0u32..100) {
            let at = Timestamp { secs, nanos: hundredths * 10_000_000, unit: TimeUnit::Hundredth };
            prop_assert_eq!(Stamp::encode(at).decode(TimeUnit::Hundredth, 3600), Some(at));
        }
    }
}

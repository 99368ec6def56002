//! The headers of sparse extents: hosted (`KDMV`), of ESX (`COWD`), and space-efficient (`SESPARSE`). All numbers are
//! little-endian, most are in sectors of 512 bytes. "Virtual Disk Format 5.0" by VMware has the first two.

use super::descriptor::SECTOR;
use crate::bytes::Fields;
use crate::error::{Error, Result};
use crate::extent::{Device, Offset};

/// What a hosted extent begins with.
pub(super) const HOSTED: [u8; 4] = *b"KDMV";
/// What an extent of ESX begins with.
pub(super) const COWD: [u8; 4] = *b"COWD";
/// What a space-efficient extent begins with.
pub(super) const SESPARSE: [u8; 8] = 0x0000_0000_CAFE_BABE_u64.to_le_bytes();
/// Bytes of a header that are decoded.
pub(super) const HEADER: usize = 512;
/// The grain directory that is at the end of the file, behind a footer.
const AT_END: u64 = u64::MAX;
/// Grains have at most as many bytes: `qemu` and VMware use 64 KiB, the specification allows more.
const MAX_GRAIN: u64 = 16 << 20;

/// How the entries of a grain table are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// 32 bits: 0 absent, 1 zeros where `zeros`, else a sector.
    Hosted {
        /// Whether an entry of 1 stands for a grain of zeros.
        zeros: bool,
    },
    /// 32 bits: 0 absent, else a sector.
    Cowd,
    /// 64 bits, the kind in the highest four: see [`sesparse`].
    Se {
        /// The sector where the grains begin.
        grains: u64,
        /// The sector where the grain tables begin.
        tables: u64,
    },
}

/// Where the grains of a sparse extent are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) style: Style,
    /// Bytes of the extent.
    pub(super) len: u64,
    /// Bytes of a grain.
    pub(super) grain: u64,
    /// Grains of a grain table.
    pub(super) per_table: u64,
    /// Where the grain directory lies.
    pub(super) directory: u64,
    /// Where the second grain directory lies, for where the first is damaged.
    pub(super) second: Option<u64>,
    /// Whether grains are compressed.
    pub(super) packed: bool,
    /// Whether grains have a marker in front.
    pub(super) markers: bool,
    /// The embedded descriptor: place and bytes.
    pub(super) descriptor: Option<(u64, u64)>,
    /// What should be said of it.
    pub(super) remarks: Vec<&'static str>,
    /// Whether its true header is the footer.
    pub(super) at_end: bool,
}

impl Header {
    /// Decodes the header at `at`; none for bytes that begin with no signature.
    ///
    /// # Errors
    /// What makes no sense, or is a feature that can't be read.
    pub(super) fn decode(at: Offset<Device>, bytes: &[u8]) -> Result<Option<Self>> {
        if bytes.starts_with(&HOSTED) {
            return Self::hosted(Fields::new("VMDK header", at, bytes)).map(Some);
        }
        if bytes.starts_with(&COWD) {
            return Self::cowd(Fields::new("VMDK (COWD) header", at, bytes)).map(Some);
        }
        if bytes.starts_with(&SESPARSE) {
            return Self::sesparse(Fields::new("VMDK (SESPARSE) header", at, bytes)).map(Some);
        }
        Ok(None)
    }

    fn hosted(f: Fields<'_, Device>) -> Result<Self> {
        let version = f.u32(4)?;
        if !(1..=3).contains(&version) {
            return Err(Error::Unsupported(format!("a VMDK extent of version {version}: expected 1, 2 or 3")));
        }
        let flags = f.u32(8)?;
        let has = |bit: u32| flags & bit != 0;
        let mut remarks = Vec::new();
        // Bytes that a transfer as text would have changed.
        if has(1) && f.slice(73, 4)? != b"\n \r\n" {
            remarks.push("the VMDK header's line ends were changed: the file was transferred as text");
        }
        if f.u8(72)? != 0 {
            remarks.push("the VMDK was not closed cleanly");
        }
        let compression = f.u16(77)?;
        if has(1 << 16) && compression != 1 {
            return Err(Error::Unsupported(format!(
                "a VMDK extent compressed by method {compression}: expected deflate"
            )));
        }
        let (directory, second) = (f.u64(56)?, f.u64(48)?);
        let per_table = f.u32(44)?;
        if per_table != 512 {
            return Err(f.wrong(44, format!("512 entries in a grain table, there are {per_table}")));
        }
        let descriptor = (bytes_of(&f, 28)?, bytes_of(&f, 36)?);
        Ok(Self {
            style: Style::Hosted { zeros: has(4) },
            len: bytes_of(&f, 12)?,
            grain: grain(&f, 20, f.u64(20)?)?,
            per_table: per_table.into(),
            directory: directory.saturating_mul(SECTOR),
            second: Some(second.saturating_mul(SECTOR)).filter(|_| has(2) && second != 0 && second != AT_END),
            packed: has(1 << 16),
            markers: has(1 << 17),
            descriptor: Some(descriptor).filter(|(at, len)| *at > 0 && *len > 0),
            remarks,
            at_end: directory == AT_END,
        })
    }

    fn cowd(f: Fields<'_, Device>) -> Result<Self> {
        let version = f.u32(4)?;
        if version != 1 {
            return Err(Error::Unsupported(format!("a VMDK extent (COWD) of version {version}: expected 1")));
        }
        Ok(Self {
            style: Style::Cowd,
            len: u64::from(f.u32(12)?).saturating_mul(SECTOR),
            grain: grain(&f, 16, f.u32(16)?.into())?,
            per_table: 4096,
            directory: u64::from(f.u32(20)?).saturating_mul(SECTOR),
            second: None,
            packed: false,
            markers: false,
            descriptor: None,
            // The last field of the header lies behind names that are not read: whether it was closed is not asked.
            remarks: Vec::new(),
            at_end: false,
        })
    }

    fn sesparse(f: Fields<'_, Device>) -> Result<Self> {
        let version = f.u64(8)?;
        if version != 0x2_0000_0001 {
            return Err(Error::Unsupported(format!("a VMDK extent (SESPARSE) of version {version:#x}: expected 2.1")));
        }
        let table = f.u64(32)?;
        // A table of 64 sectors has 4096 entries of 8 bytes.
        if table == 0 || table > 1 << 16 || !table.is_power_of_two() {
            return Err(f.wrong(32, format!("a grain table of a power of two of sectors, it has {table}")));
        }
        Ok(Self {
            style: Style::Se { grains: f.u64(192)?, tables: f.u64(144)? },
            len: bytes_of(&f, 16)?,
            grain: grain(&f, 24, f.u64(24)?)?,
            per_table: table.saturating_mul(SECTOR / 8),
            directory: bytes_of(&f, 128)?,
            second: None,
            packed: false,
            markers: false,
            descriptor: None,
            remarks: Vec::new(),
            at_end: false,
        })
    }

    /// Where the volatile header of a space-efficient extent lies: at its sector, by the first header's `bytes`.
    pub(super) fn volatile(bytes: &[u8]) -> Result<u64> {
        bytes_of(&Fields::<Device>::new("VMDK (SESPARSE) header", Offset::new(0), bytes), 80)
    }

    /// Grain tables of the extent.
    pub(super) fn tables(&self) -> u64 {
        self.len.div_ceil(self.table_covers().max(1))
    }

    /// Bytes of the disk that a grain table covers.
    pub(super) fn table_covers(&self) -> u64 {
        self.grain.saturating_mul(self.per_table)
    }

    /// Bytes of an entry, in directory and tables.
    pub(super) fn width(&self) -> usize {
        if matches!(self.style, Style::Se { .. }) { 8 } else { 4 }
    }

    /// Where the grain table is that an entry of the directory leads to; none for a table of absent grains.
    ///
    /// # Errors
    /// What was expected of the entry.
    pub(super) fn table(&self, entry: u64) -> Result<Option<u64>, &'static str> {
        match self.style {
            _ if entry == 0 => Ok(None),
            Style::Hosted { .. } | Style::Cowd => Ok(Some(entry.saturating_mul(SECTOR))),
            Style::Se { tables, .. } if entry >> 32 == 0x1000_0000 => {
                let bytes = (entry & 0xFFFF_FFFF).saturating_mul(self.per_table).saturating_mul(8);
                Ok(Some(tables.saturating_mul(SECTOR).saturating_add(bytes)))
            }
            Style::Se { .. } => Err("0, or a table's number behind 0x10000000"),
        }
    }

    /// What an entry of a grain table says.
    ///
    /// # Errors
    /// What was expected of the entry.
    pub(super) fn entry(&self, entry: u64) -> Result<Grain, &'static str> {
        match self.style {
            _ if entry == 0 => Ok(Grain::Absent),
            Style::Hosted { zeros: true } if entry == 1 => Ok(Grain::Zero),
            Style::Hosted { .. } | Style::Cowd => Ok(Grain::At(entry.saturating_mul(SECTOR))),
            Style::Se { grains, .. } => sesparse(entry, grains, self.grain),
        }
    }
}

/// What an entry of a grain table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grain {
    /// The parent's, or zeros.
    Absent,
    Zero,
    /// It is here, at this byte of the file.
    At(u64),
}

/// An entry of a space-efficient grain table: 0 absent, 1 unmapped (zeros), 2 zeros, 3 a grain, whose number is in two
/// parts: its low 12 bits in bits 48 to 59, the others in bits 0 to 47.
fn sesparse(entry: u64, grains: u64, grain: u64) -> Result<Grain, &'static str> {
    match entry >> 60 {
        1 | 2 => Ok(Grain::Zero),
        3 => {
            let number = entry >> 48 & 0xFFF | (entry & 0xFFFF_FFFF_FFFF) << 12;
            let at = grains.saturating_mul(SECTOR).saturating_add(number.saturating_mul(grain));
            Ok(Grain::At(at))
        }
        _ => Err("a grain of a kind from 0 to 3"),
    }
}

/// A number of sectors at `at`, in bytes.
fn bytes_of(f: &Fields<'_, Device>, at: usize) -> Result<u64> {
    let sectors = f.u64(at)?;
    sectors.checked_mul(SECTOR).ok_or_else(|| f.wrong(at, format!("a number of sectors, it is {sectors:#x}")))
}

/// Bytes of a grain of so many sectors.
fn grain(f: &Fields<'_, Device>, at: usize, sectors: u64) -> Result<u64> {
    let bytes = sectors.saturating_mul(SECTOR);
    if !sectors.is_power_of_two() || bytes > MAX_GRAIN {
        return Err(f.wrong(at, format!("grains of a power of two of sectors, up to 16 MiB, they have {sectors}")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A header as the table of the specification has it: 3 MiB, grains of 64 KiB.
    fn hosted() -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes[..4].copy_from_slice(&HOSTED);
        for (at, value) in [(4, 1u32), (8, 3), (44, 512)] {
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        for (at, value) in [(12, 6144u64), (20, 128), (28, 1), (36, 20), (48, 21), (56, 26), (64, 128)] {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        bytes[73..77].copy_from_slice(b"\n \r\n");
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Option<Header>> {
        Header::decode(Offset::new(0), bytes)
    }

    #[test]
    fn a_hosted_header() {
        let got = decode(&hosted()).unwrap().unwrap();
        assert_eq!((got.len, got.grain, got.per_table, got.tables()), (3 << 20, 65536, 512, 1));
        assert_eq!((got.directory, got.second), (26 * 512, Some(21 * 512)));
        assert_eq!((got.descriptor, got.packed, got.at_end), (Some((512, 20 * 512)), false, false));
        assert_eq!(got.remarks, [""; 0]);
        assert_eq!(got.entry(1), Ok(Grain::At(512)));
        assert_eq!((got.entry(0), got.entry(128)), (Ok(Grain::Absent), Ok(Grain::At(65536))));
    }

    #[test]
    fn flags_and_remarks() {
        let mut bytes = hosted();
        bytes[8..12].copy_from_slice(&(1u32 | 4 | 1 << 16 | 1 << 17).to_le_bytes());
        bytes[77] = 1;
        bytes[56..64].fill(0xFF);
        bytes[72] = 1;
        bytes[75] = b'\n';
        let got = decode(&bytes).unwrap().unwrap();
        assert!(got.packed && got.markers && got.at_end && got.second.is_none());
        assert_eq!(got.remarks.len(), 2);
        assert_eq!(got.entry(1), Ok(Grain::Zero));
        bytes[77] = 2;
        assert!(decode(&bytes).unwrap_err().to_string().contains("method 2"));
    }

    #[test]
    fn entries_of_the_space_efficient() {
        assert_eq!(sesparse(0x3005_0000_0000_0001, 1000, 4096), Ok(Grain::At(1000 * 512 + (4096 + 5) * 4096)));
        assert_eq!(sesparse(0x1000_0000_0000_0000, 0, 4096), Ok(Grain::Zero));
        assert_eq!(sesparse(0x2000_0000_0000_0000, 0, 4096), Ok(Grain::Zero));
        assert!(sesparse(5, 0, 4096).is_err() && sesparse(0x4000_0000_0000_0000, 0, 4096).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes(change in proptest::collection::vec((0usize..200, any::<u8>()), 0..8), which in 0..3) {
            let mut bytes = hosted();
            match which {
                0 => {}
                1 => bytes[..4].copy_from_slice(&COWD),
                _ => bytes[..8].copy_from_slice(&SESPARSE),
            }
            for (at, value) in change {
                bytes[at] = value;
            }
            if let Ok(Some(header)) = decode(&bytes) {
                let _ = (header.tables(), header.entry(7), header.table(7));
            }
        }
    }
}

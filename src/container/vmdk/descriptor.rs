//! The text that describes a VMDK: "Virtual Disk Format 5.0" by VMware.
//!
//! ```text
//! # Disk DescriptorFile
//! version=1
//! CID=fffffffe
//! parentCID=ffffffff
//! createType="twoGbMaxExtentSparse"
//! parentFileNameHint="base.vmdk"
//! # Extent description
//! RW 4192256 SPARSE "disk-s001.vmdk"
//! RW 2097152 FLAT "disk-f002.vmdk" 0
//! # The Disk Data Base
//! ddb.adapterType = "lsilogic"
//! ```

use crate::error::{Error, Result};
use crate::extent::{Device, Offset};

/// The parent CID of a disk without a parent.
const NO_PARENT: u32 = u32::MAX;
/// Bytes of a sector.
pub(super) const SECTOR: u64 = 512;
/// Most bytes of a descriptor: VMware's have some hundred, and twenty with each extent.
pub(super) const MAX_LEN: u64 = 4 << 20;
/// Most extents: a disk of 64 TiB in parts of 2 GB has fewer.
const MAX_EXTENTS: usize = 65_536;

/// What the first line says, in any case.
const FIRST_LINE: &[u8] = b"# Disk DescriptorFile";

/// Whether these are the first bytes of a descriptor: after white space, its first line.
pub(in crate::container) fn is_descriptor(head: &[u8]) -> bool {
    let line = head.trim_ascii_start().split(|b| *b == b'\n' || *b == b'\r').next().unwrap_or_default();
    line.trim_ascii_end().eq_ignore_ascii_case(FIRST_LINE)
}

/// What an extent's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `FLAT`, `VMFS`: the bytes of a file, from this byte on.
    Flat(u64),
    /// `SPARSE`, `VMFSSPARSE`, `SESPARSE`: a file with grain tables.
    Sparse,
    /// `ZERO`: no file.
    Zero,
    /// A disk of the machine that it was made on: `VMFSRDM`, `VMFSRAW`, a `FLAT` one of a device.
    Device,
}

/// A line of the extent description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Whether the virtual machine may read it: `RW` and `RDONLY`, not `NOACCESS`.
    pub(super) readable: bool,
    /// Bytes of the disk.
    pub(super) len: u64,
    pub(super) kind: Kind,
    /// The type as it is written.
    pub(super) word: String,
    /// The file; empty for `ZERO`.
    pub(super) name: String,
}

/// What a descriptor says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    /// Changes with the first write of each session.
    pub(super) cid: u32,
    /// The parent's CID when this was made; none without a parent.
    pub(super) parent_cid: Option<u32>,
    /// The parent's file.
    pub(super) parent: Option<String>,
    /// `monolithicSparse`, `vmfs`, ...
    pub(super) create_type: String,
    /// In disk order.
    pub(super) extents: Vec<Extent>,
}

impl Descriptor {
    /// Bytes of the disk.
    ///
    /// # Errors
    /// Where the extents' sum is no size.
    pub(super) fn len(&self) -> Result<u64> {
        let sum = self.extents.iter().try_fold(0u64, |sum, e| sum.checked_add(e.len));
        sum.ok_or_else(|| wrong("extents whose sizes can be summed up"))
    }

    /// Reads the text of a descriptor that lies at `at`. What follows a zero byte is none of it.
    pub(super) fn decode(at: Offset<Device>, bytes: &[u8]) -> Result<Self> {
        let bytes = bytes.split(|b| *b == 0).next().unwrap_or_default();
        if !is_descriptor(bytes) {
            return Err(Error::corrupt("VMDK descriptor", at, "a first line `# Disk DescriptorFile`"));
        }
        let text = text(bytes);
        let (mut cid, mut parent_cid, mut parent, mut create_type) = (None, None, None, String::new());
        let mut extents = Vec::new();
        for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            if let Some(extent) = extent(line)? {
                if extents.len() == MAX_EXTENTS {
                    return Err(wrong(format!("at most {MAX_EXTENTS} extents")));
                }
                extents.push(extent);
                continue;
            }
            let Some((key, value)) = line.split_once('=') else { continue };
            let value = value.trim().trim_matches('"');
            let number = || u32::from_str_radix(value, 16).map_err(|_| wrong(format!("a hexadecimal {}", key.trim())));
            match key.trim().to_ascii_lowercase().as_str() {
                "cid" => cid = Some(number()?),
                "parentcid" => parent_cid = Some(number()?),
                "parentfilenamehint" => parent = Some(value.to_owned()),
                "createtype" => value.clone_into(&mut create_type),
                _ => {}
            }
        }
        if extents.is_empty() {
            return Err(wrong("at least one extent"));
        }
        Ok(Self {
            cid: cid.unwrap_or_default(),
            parent_cid: parent_cid.filter(|c| *c != NO_PARENT),
            parent,
            create_type,
            extents,
        })
    }
}

fn wrong(expected: impl Into<String>) -> Error {
    Error::Corrupt { structure: "VMDK descriptor".into(), at: "its text".into(), expected: expected.into() }
}

/// The text in UTF-8. Descriptors name their encoding; names in others than UTF-8 are taken byte by byte (Latin-1), so
/// that none is lost: it is only found if it was ASCII.
fn text(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).map_or_else(|_| bytes.iter().map(|b| char::from(*b)).collect(), str::to_owned)
}

/// `ACCESS SECTORS TYPE ["NAME" [OFFSET]]`; none for a line of another kind.
fn extent(line: &str) -> Result<Option<Extent>> {
    let (access, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let readable = match access.to_ascii_uppercase().as_str() {
        "RW" | "RDONLY" => true,
        "NOACCESS" => false,
        _ => return Ok(None),
    };
    let odd = || wrong(format!("an extent as `RW 2048 FLAT \"NAME\" 0`, it is `{}`", shortened(line)));
    let (sectors, rest) = rest.trim_start().split_once(char::is_whitespace).ok_or_else(odd)?;
    let (word, rest) = rest.trim_start().split_once(char::is_whitespace).unwrap_or((rest.trim(), ""));
    let bytes = |sectors: &str| sectors.parse::<u64>().ok().and_then(|n| n.checked_mul(SECTOR)).ok_or_else(odd);
    let (name, rest) = match rest.trim_start().strip_prefix('"') {
        Some(quoted) => quoted.split_once('"').ok_or_else(odd)?,
        None => ("", ""),
    };
    let from = rest.split_whitespace().next().map_or(Ok(0), bytes)?;
    let kind = match word.to_ascii_uppercase().as_str() {
        "FLAT" | "VMFS" if device(name) => Kind::Device,
        "FLAT" | "VMFS" => Kind::Flat(from),
        "SPARSE" | "VMFSSPARSE" | "SESPARSE" => Kind::Sparse,
        "ZERO" => Kind::Zero,
        "VMFSRDM" | "VMFSRAW" => Kind::Device,
        _ => return Err(Error::Unsupported(format!("a VMDK extent of type {}", shortened(word)))),
    };
    if name.is_empty() && !matches!(kind, Kind::Zero | Kind::Device) {
        return Err(odd());
    }
    Ok(Some(Extent { readable, len: bytes(sectors)?, kind, word: word.to_owned(), name: name.to_owned() }))
}

/// Whether the name is that of a device of the machine that the disk was made on.
fn device(name: &str) -> bool {
    name.starts_with("/dev/") || name.starts_with("\\\\.\\")
}

fn shortened(text: &str) -> String {
    text.chars().take(80).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nCID=7c1aa8ff\nparentCID=ffffffff\n\
        createType=\"twoGbMaxExtentSparse\"\n\n# Extent description\nRW 4192256 SPARSE \"a b-s001.vmdk\"\n\
        RDONLY 100 FLAT \"x-f002.vmdk\" 63\nNOACCESS 8 ZERO\nRW 16 VMFS \"y-flat.vmdk\"\n\
        rw 5 vmfssparse \"z-delta.vmdk\"\nRW 63 FLAT \"\\\\.\\PhysicalDrive0\" 0\n\n\
        # The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"4\"\n";

    fn decode(text: &str) -> Result<Descriptor> {
        Descriptor::decode(Offset::new(0), text.as_bytes())
    }

    #[test]
    fn all_kinds_of_extents() {
        let got = decode(TEXT).unwrap();
        assert_eq!((got.cid, got.parent_cid, got.parent.as_deref()), (0x7c1a_a8ff, None, None));
        assert_eq!(got.create_type, "twoGbMaxExtentSparse");
        let seen: Vec<_> = got.extents.iter().map(|e| (e.readable, e.len / 512, &e.kind, e.name.as_str())).collect();
        assert_eq!(
            seen,
            [
                (true, 4_192_256, &Kind::Sparse, "a b-s001.vmdk"),
                (true, 100, &Kind::Flat(63 * 512), "x-f002.vmdk"),
                (false, 8, &Kind::Zero, ""),
                (true, 16, &Kind::Flat(0), "y-flat.vmdk"),
                (true, 5, &Kind::Sparse, "z-delta.vmdk"),
                (true, 63, &Kind::Device, "\\\\.\\PhysicalDrive0"),
            ]
        );
        assert_eq!(got.len().unwrap(), (4_192_256 + 100 + 8 + 16 + 5 + 63) * 512);
    }

    #[test]
    fn a_parent() {
        let got = decode(&TEXT.replace("parentCID=ffffffff", "parentCID=0000002a\r\nparentFileNameHint=\"../b.vmdk\""));
        let got = got.unwrap();
        assert_eq!((got.parent_cid, got.parent.as_deref()), (Some(0x2a), Some("../b.vmdk")));
    }

    #[test]
    fn zero_bytes_end_it_and_first_lines_are_told() {
        assert_eq!(decode(&format!("{TEXT}\0\0RW nonsense")).unwrap(), decode(TEXT).unwrap());
        assert!(is_descriptor(b"\r\n # disk descriptorfile \r\nversion=1"));
        assert!(!is_descriptor(b"# Disk Descriptor"));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (from, to, word) in [
            ("4192256", "9999999999999999999", "RW 2048"),
            ("4192256", "36028797018963967", "summed"),
            ("SPARSE", "PARSE", "type PARSE"),
            ("CID=7c1", "CID=zz", "hexadecimal"),
            ("\"y-flat.vmdk\"", "", "RW 2048"),
            ("\"y-flat.vmdk\"", "\"y", "RW 2048"),
        ] {
            let error = decode(&TEXT.replacen(from, to, 1)).and_then(|d| d.len()).unwrap_err().to_string();
            assert!(error.contains(word), "{to}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..400), cut in 0..400usize) {
            let mut text = TEXT.as_bytes()[..cut.min(TEXT.len())].to_vec();
            text.extend(bytes);
            let _ = Descriptor::decode(Offset::new(0), &text).map(|d| d.len());
        }
    }
}

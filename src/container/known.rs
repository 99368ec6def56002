//! Containers that are recognised and can't be read: taking one for a raw disk would be wrong without a word.

/// Bytes from the start that tell.
pub(super) const HEAD: usize = 512;

/// The name of the container that begins with these bytes, none where it is none of these.
pub(super) fn by_head(head: &[u8]) -> Option<&'static str> {
    let at = |at: usize, sign: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(sign));
    const SIGNS: &[(&str, usize, &[u8])] = &[
        ("an AFF image", 0, b"AFF10\x0d\x0a\x00"),
        ("a LUKS volume", 0, b"LUKS\xba\xbe"),
        ("a Parallels image", 0, b"WithoutFreeSpace"),
        ("a Parallels image", 0, b"WithouFreSpacExt"),
        ("a QED image", 0, b"QED\0"),
        ("a WIM archive", 0, b"MSWIM\0\0\0"),
        ("a gzip file", 0, b"\x1f\x8b\x08"),
        ("an xz file", 0, b"\xfd7zXZ\0"),
        ("a zstd file", 0, b"\x28\xb5\x2f\xfd"),
        ("a bzip2 file", 0, b"BZh91AY&SY"),
        ("a zip archive", 0, b"PK\x03\x04"),
        ("a 7z archive", 0, b"7z\xbc\xaf\x27\x1c"),
    ];
    SIGNS.iter().find(|(_, offset, sign)| at(*offset, sign)).map(|(name, ..)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_boot_sector_is_none() {
        let mut sector = vec![0; 512];
        sector[..11].copy_from_slice(b"\xEB\x52\x90NTFS    ");
        sector[510..].copy_from_slice(&[0x55, 0xAA]);
        assert_eq!(by_head(&sector), None);
        assert_eq!(by_head(&[]), None);
        assert_eq!(by_head(&[0; 0x41]), None);
    }

    proptest! {
        #[test]
        fn any_bytes(head in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = by_head(&head);
        }
    }
}

//! VDI: differencing disks, made after the format's rules over a base that qemu wrote; blocks that were discarded.

use std::fs;
use std::path::Path;

use unimage::container::Role;
use unimage::container::gate::Allow;
use unimage::extent::What;

use crate::common::{Noise, scratch};
use crate::folder::{content, open, open_with};
use crate::qemu;

const MIB: usize = 1 << 20;

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// A child over the VDI at `base`: blocks as they are here, none for the parent's, `Some(None)` for discarded ones.
pub fn child(base: &Path, path: &Path, id: u8, blocks: &[Option<Option<u8>>]) {
    let parent = fs::read(base).unwrap();
    let data = u32::from_le_bytes(parent[344..348].try_into().unwrap()) as usize;
    let mut bytes = parent[..data].to_vec();
    put(&mut bytes, 76, &4u32.to_le_bytes());
    put(&mut bytes, 424, &parent[392..408]);
    put(&mut bytes, 440, &parent[408..424]);
    put(&mut bytes, 392, &[id; 16]);
    put(&mut bytes, 408, &[id ^ 0x80; 16]);
    let map = u32::from_le_bytes(bytes[340..344].try_into().unwrap()) as usize;
    let mut count = 0u32;
    for (n, block) in blocks.iter().enumerate() {
        let entry = match block {
            None => u32::MAX,
            Some(None) => u32::MAX - 1,
            Some(Some(byte)) => {
                bytes.extend(vec![*byte; MIB]);
                count += 1;
                count - 1
            }
        };
        put(&mut bytes, map + 4 * n, &entry.to_le_bytes());
    }
    put(&mut bytes, 388, &count.to_le_bytes());
    fs::write(path, bytes).unwrap();
}

/// A base of 5 MiB with some content.
pub fn base(dir: &Path) -> Vec<u8> {
    let raw = qemu::raw(dir, 5 << 20, &mut Noise::new(31));
    qemu::convert(&raw, "vdi", "", &dir.join("base.vdi"));
    fs::read(raw).unwrap()
}

#[test]
fn differencing_disks() {
    let dir = scratch();
    let dir = dir.path();
    let mut want = base(dir);
    child(&dir.join("base.vdi"), &dir.join("c1.vdi"), 1, &[None, Some(Some(0x11)), None, Some(Some(0x33)), None]);
    child(&dir.join("c1.vdi"), &dir.join("c2.vdi"), 2, &[None, None, Some(Some(0x22)), Some(None), None]);
    want[MIB..2 * MIB].fill(0x11);
    want[2 * MIB..3 * MIB].fill(0x22);
    want[3 * MIB..4 * MIB].fill(0);
    let disk = open(&dir.join("c2.vdi")).unwrap();
    assert_eq!((disk.kind, disk.remarks.len(), disk.tables.len()), ("vdi", 0, 3));
    assert!(content(&disk) == want);
    let parts: Vec<_> = disk.parts.iter().map(|p| (p.role, p.name.as_str())).collect();
    assert_eq!(parts, [(Role::Parent(1), "c1.vdi"), (Role::Parent(2), "base.vdi")]);
    let map = disk.image.map().unwrap();
    assert!(map.extents().iter().any(|e| e.what == What::Zero && e.start.get() == 3 << 20 && e.len == 1 << 20));
}

#[test]
fn a_parent_that_is_missing_or_another_one() {
    let dir = scratch();
    let dir = dir.path();
    base(dir);
    child(&dir.join("base.vdi"), &dir.join("c1.vdi"), 1, &[None; 5]);
    // The base was written to after the child was made.
    let mut bytes = fs::read(dir.join("base.vdi")).unwrap();
    bytes[410] ^= 1;
    fs::write(dir.join("base.vdi"), &bytes).unwrap();
    let error = open(&dir.join("c1.vdi")).unwrap_err();
    assert_eq!(error.exit_code(), 4, "{error}");
    assert!(error.to_string().contains("--allow-other-parent"), "{error}");
    let allow = Allow { other_parent: true, ..Allow::default() };
    let disk = open_with(&dir.join("c1.vdi"), &allow).unwrap();
    assert!(disk.remarks.iter().any(|r| r.contains("changed")), "{:?}", disk.remarks);
    // Another disk's identity, and no file at all.
    bytes[392] ^= 1;
    fs::write(dir.join("base.vdi"), &bytes).unwrap();
    assert_eq!(open(&dir.join("c1.vdi")).unwrap_err().exit_code(), 3);
    fs::remove_file(dir.join("base.vdi")).unwrap();
    let error = open(&dir.join("c1.vdi")).unwrap_err();
    assert_eq!(error.exit_code(), 3, "{error}");
}

#[test]
fn a_chain_that_is_a_circle() {
    let dir = scratch();
    let dir = dir.path();
    base(dir);
    child(&dir.join("base.vdi"), &dir.join("a.vdi"), 1, &[None; 5]);
    child(&dir.join("a.vdi"), &dir.join("b.vdi"), 2, &[None; 5]);
    let mut a = fs::read(dir.join("a.vdi")).unwrap();
    a[424..440].fill(2);
    a[440..456].fill(2 ^ 0x80);
    fs::write(dir.join("a.vdi"), a).unwrap();
    let error = open(&dir.join("b.vdi")).unwrap_err();
    assert!(matches!(error.exit_code(), 3 | 4), "{error}");
}

#[test]
fn an_entry_past_the_end_is_an_error_and_not_zeros() {
    let dir = scratch();
    let path = dir.path().join("base.vdi");
    let want = base(dir.path());
    let mut bytes = fs::read(&path).unwrap();
    let map = u32::from_le_bytes(bytes[340..344].try_into().unwrap()) as usize;
    put(&mut bytes, map + 8, &0x1234u32.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let disk = open(&path).unwrap();
    let read = |at: usize, len: usize| disk.image.read_vec(unimage::extent::Offset::new(at as u64), len);
    let error = read(2 * MIB, 512).unwrap_err().to_string();
    assert!(error.contains("VDI block map entry") && error.contains(&format!("{:#x}", map + 8)), "{error}");
    assert!(read(0, 2 * MIB).unwrap() == want[..2 * MIB] && read(3 * MIB, 2 * MIB).unwrap() == want[3 * MIB..]);
}

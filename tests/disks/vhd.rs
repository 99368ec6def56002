//! VHD: differencing disks, made after the specification over a base that qemu wrote and judged by libvhdi; footers that are
//! lost or damaged; tables that lead nowhere.

use std::fs;
use std::path::Path;

use unimage::container::Role;
use unimage::container::gate::Allow;
use unimage::extent::Offset;

use crate::common::{Noise, ok, scratch};
use crate::folder::{content, open, open_with};
use crate::qemu;

const BLOCK: usize = 2 << 20;

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// Makes the checksum at `at` of a structure right.
fn seal(bytes: &mut [u8], at: usize) {
    bytes[at..at + 4].fill(0);
    let sum: u32 = bytes.iter().map(|b| u32::from(*b)).sum();
    put(bytes, at, &(!sum).to_be_bytes());
}

fn utf16(text: &str, big: bool) -> Vec<u8> {
    text.encode_utf16().flat_map(|c| if big { c.to_be_bytes() } else { c.to_le_bytes() }).collect()
}

/// A child over the VHD at `base`, of sectors that are here: number and the byte that fills it. `unused` fills the others of
/// their blocks, which are the parent's.
pub fn child(base: &Path, path: &Path, id: u8, sectors: &[(usize, u8)], unused: u8) {
    let parent = fs::read(base).unwrap();
    let size = u64::from_be_bytes(parent[parent.len() - 512 + 48..][..8].try_into().unwrap()) as usize;
    let mut footer = parent[parent.len() - 512..].to_vec();
    let parent_id = footer[68..84].to_vec();
    put(&mut footer, 16, &512u64.to_be_bytes());
    put(&mut footer, 60, &4u32.to_be_bytes());
    footer[68..84].fill(id);
    seal(&mut footer, 64);
    let blocks = size.div_ceil(BLOCK);
    let table = 512 + 1024 + 1024;
    let name = base.file_name().unwrap().to_str().unwrap();
    let mut header = vec![0; 1024];
    put(&mut header, 0, b"cxsparse");
    header[8..16].fill(0xFF);
    put(&mut header, 16, &(table as u64).to_be_bytes());
    put(&mut header, 24, &0x10000u32.to_be_bytes());
    put(&mut header, 28, &(blocks as u32).to_be_bytes());
    put(&mut header, 32, &(BLOCK as u32).to_be_bytes());
    put(&mut header, 40, &parent_id);
    put(&mut header, 64, &utf16(name, true));
    let relative = utf16(&format!(".\\{name}"), false);
    for (n, (code, at, text)) in
        [(b"W2ku", 1536, utf16(&format!("C:\\gone\\{name}"), false)), (b"W2ru", 2048, relative)].iter().enumerate()
    {
        let entry = 576 + n * 24;
        put(&mut header, entry, *code);
        put(&mut header, entry + 4, &512u32.to_be_bytes());
        put(&mut header, entry + 8, &(text.len() as u32).to_be_bytes());
        put(&mut header, entry + 16, &(*at as u64).to_be_bytes());
    }
    seal(&mut header, 36);
    let mut bytes = footer.clone();
    bytes.extend(header);
    for text in [utf16(&format!("C:\\gone\\{name}"), false), utf16(&format!(".\\{name}"), false)] {
        bytes.extend(text);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    assert_eq!(bytes.len(), table);
    bytes.resize((table + blocks * 4).next_multiple_of(512), 0xFF);
    for block in 0..blocks {
        let here: Vec<_> = sectors.iter().filter(|(s, _)| s / 4096 == block).collect();
        if here.is_empty() {
            continue;
        }
        let at = bytes.len();
        put(&mut bytes, table + block * 4, &((at / 512) as u32).to_be_bytes());
        bytes.resize(at + 512 + BLOCK, unused);
        bytes[at..at + 512].fill(0);
        for (sector, byte) in here {
            let n = sector % 4096;
            bytes[at + n / 8] |= 0x80 >> (n % 8);
            bytes[at + 512 + n * 512..][..512].fill(*byte);
        }
    }
    bytes.extend(footer);
    fs::write(path, bytes).unwrap();
}

/// A dynamic base of 10 MiB, and its bytes.
pub fn base(dir: &Path) -> Vec<u8> {
    let raw = qemu::raw(dir, 10 << 20, &mut Noise::new(41));
    qemu::convert(&raw, "vpc", "subformat=dynamic,force_size=on", &dir.join("base.vhd"));
    fs::read(raw).unwrap()
}

/// Compares what libvhdi reads of a chain, the top last, with what it should be.
#[track_caller]
pub fn same_by_libvhdi(files: &[&Path], want: &[u8]) {
    let got = libvhdi(files);
    assert_eq!(got.len(), want.len());
    let differ: Vec<usize> = (0..got.len() / 512).filter(|s| got[s * 512..][..512] != want[s * 512..][..512]).collect();
    let first: Vec<_> = differ.iter().take(12).map(|s| (*s, got[s * 512], want[s * 512])).collect();
    assert!(differ.is_empty(), "{} sectors differ: {first:?}", differ.len());
}

/// What libvhdi reads: the files of a chain, the top last.
fn libvhdi(files: &[&Path]) -> Vec<u8> {
    let script = "import sys, pyvhdi\nfiles = []\nfor name in sys.argv[2:]:\n f = pyvhdi.file()\n f.open(name)\n if files: f.set_parent(files[-1])\n files.append(f)\n\
        open(sys.argv[1], 'wb').write(files[-1].read_buffer(files[-1].get_media_size()))\n";
    let out = files[0].with_extension("read-by-libvhdi");
    let mut args = vec!["-c", script, qemu::text(&out)];
    args.extend(files.iter().map(|f| qemu::text(f)));
    ok("/usr/bin/python3", args);
    fs::read(out).unwrap()
}

/// libvhdi (20210425) is asked of a chain without what it gets wrong: of a bitmap's byte, all bits behind the first that is set
/// are taken for set, and where the last parent has nothing it gives what a child's block has there by chance.
#[test]
fn differencing_disks() {
    let dir = scratch();
    let dir = dir.path();
    let raw = base(dir);
    let bottom = dir.join("base.vhd");
    let (a, b) = (dir.join("a.vhd"), dir.join("b.vhd"));
    for (group, unused) in [(8, 0), (1, 0x77)] {
        let mut random = Noise::new(42);
        let mut want = raw.clone();
        for (over, path, id) in [(&bottom, &a, 1u8), (&a, &b, 2)] {
            let groups = 20 * 1024 / group;
            let mut first: Vec<(usize, u8)> = (0..200).map(|n| (groups / 5 + n * 3, id)).collect();
            first.extend((0..300).map(|_| (random.below(groups as u64) as usize, 1 + random.below(255) as u8)));
            first.retain(|(s, _)| s * group / 4096 != 2);
            first.sort_by_key(|s| s.0);
            first.dedup_by_key(|s| s.0);
            let sectors: Vec<_> =
                first.iter().flat_map(|(n, b)| (0..group).map(move |m| (n * group + m, *b))).collect();
            child(over, path, id, &sectors, unused);
            for (sector, byte) in sectors {
                want[sector * 512..][..512].fill(byte);
            }
        }
        let disk = open(&b).unwrap();
        assert_eq!((disk.kind, disk.remarks.as_slice(), disk.tables.len()), ("vhd", [].as_slice(), 3));
        assert!(content(&disk) == want);
        let parts: Vec<_> = disk.parts.iter().map(|p| (p.role, p.name.as_str())).collect();
        assert_eq!(parts, [(Role::Parent(1), "a.vhd"), (Role::Parent(2), "base.vhd")]);
        if unused == 0 {
            same_by_libvhdi(&[&bottom, &a, &b], &want);
        }
    }
}

#[test]
fn another_parent_is_refused() {
    let dir = scratch();
    let dir = dir.path();
    base(dir);
    let path = dir.join("a.vhd");
    child(&dir.join("base.vhd"), &path, 1, &[(5, 9)], 0x77);
    let mut bytes = fs::read(&path).unwrap();
    bytes[512 + 40] ^= 1;
    seal(&mut bytes[512..1536], 36);
    fs::write(&path, &bytes).unwrap();
    let error = open(&path).unwrap_err();
    assert_eq!(error.exit_code(), 4, "{error}");
    let disk = open_with(&path, &Allow { other_parent: true, ..Allow::default() }).unwrap();
    assert!(disk.remarks.iter().any(|r| r.contains("identity")), "{:?}", disk.remarks);
    fs::remove_file(dir.join("base.vhd")).unwrap();
    assert_eq!(open(&path).unwrap_err().exit_code(), 3);
}

#[test]
fn the_copy_of_the_footer_serves() {
    let dir = scratch();
    let want = base(dir.path());
    let path = dir.path().join("base.vhd");
    let good = fs::read(&path).unwrap();
    let footer = good.len() - 512;

    fs::write(&path, &good[..footer]).unwrap();
    let disk = open(&path).unwrap();
    assert!(disk.remarks.iter().any(|r| r.contains("no footer")), "{:?}", disk.remarks);
    assert!(content(&disk) == want);

    let mut bytes = good.clone();
    bytes[footer + 50] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let disk = open(&path).unwrap();
    assert!(disk.remarks.iter().any(|r| r.contains("copy")), "{:?}", disk.remarks);
    assert!(content(&disk) == want);

    fs::write(&path, &good[..good.len() - 1]).unwrap();
    let disk = open(&path).unwrap();
    assert_eq!(disk.remarks, [""; 0]);
    assert!(content(&disk) == want);
}

#[test]
fn what_was_cut_off_is_an_error_and_not_zeros() {
    let dir = scratch();
    let want = base(dir.path());
    let path = dir.path().join("base.vhd");
    let good = fs::read(&path).unwrap();
    // The last block lost its second half.
    fs::write(&path, &good[..good.len() - 512 - BLOCK / 2]).unwrap();
    let disk = open(&path).unwrap();
    let (mut same, mut failed) = (0, 0);
    for at in (0..want.len()).step_by(4096) {
        match disk.image.read_vec(Offset::new(at as u64), 4096) {
            Ok(bytes) => {
                assert!(bytes == want[at..at + 4096]);
                same += 1;
            }
            Err(e) => {
                assert!(e.to_string().contains("VHD block allocation table entry"), "{e}");
                failed += 1;
            }
        }
    }
    assert_eq!(same + failed, 10 * 256);
    assert!(failed > 0 && failed <= BLOCK / 2 / 4096);
}

#[test]
fn a_block_in_two_places_of_a_differencing_disk() {
    let dir = scratch();
    let dir = dir.path();
    base(dir);
    let path = dir.join("a.vhd");
    child(&dir.join("base.vhd"), &path, 1, &[(5, 9)], 0x77);
    let mut bytes = fs::read(&path).unwrap();
    let entry = bytes[2560..2564].to_vec();
    put(&mut bytes, 2564, &entry);
    fs::write(&path, &bytes).unwrap();
    let disk = open(&path).unwrap();
    assert!(disk.image.read_vec(Offset::new(5 * 512), 512).unwrap().iter().all(|b| *b == 9));
    assert!(disk.image.read_vec(Offset::new(BLOCK as u64), 512).unwrap_err().to_string().contains("earlier entry"));
}

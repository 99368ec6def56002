//! VMDK: delta chains, extents of all kinds, renamed and moved; the formats of ESX, made after what is known of them and read by
//! qemu too; what is damaged.

use std::fs;
use std::path::Path;

use unimage::container::Role;
use unimage::container::gate::Allow;
use unimage::extent::{Encoding, Offset, What};

use crate::common::{Noise, ok, scratch};
use crate::folder::{content, open, open_with};
use crate::qemu;

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// A descriptor with these extent lines.
pub fn descriptor(kind: &str, cid: u32, parent: Option<(u32, &str)>, extents: &str) -> String {
    let parent = match parent {
        Some((cid, name)) => format!("parentCID={cid:08x}\ncreateType=\"{kind}\"\nparentFileNameHint=\"{name}\""),
        None => format!("parentCID=ffffffff\ncreateType=\"{kind}\""),
    };
    format!(
        "# Disk DescriptorFile\nversion=1\nCID={cid:08x}\n{parent}\n# Extent description\n{extents}\n# The Disk Data Base\nddb.adapterType = \"lsilogic\"\n"
    )
}

/// `qemu-img create` over a backing file.
fn delta(dir: &Path, name: &str, over: &str, options: &str) {
    let path = dir.join(name);
    let mut args = vec!["create", "-q", "-f", "vmdk", "-F", "vmdk", "-b", over];
    if !options.is_empty() {
        args.extend(["-o", options]);
    }
    args.push(qemu::text(&path));
    ok("qemu-img", args);
}

#[test]
fn delta_chains_by_qemu() {
    let mut random = Noise::new(51);
    for options in ["subformat=monolithicSparse,zeroed_grain=on", "subformat=twoGbMaxExtentSparse"] {
        let dir = scratch();
        let dir = dir.path();
        let size = 9 << 20;
        qemu::create(&dir.join("base.vmdk"), "vmdk", options, size);
        qemu::scribble(&dir.join("base.vmdk"), "vmdk", size, &mut random, 2, false);
        let mut over = "base.vmdk".to_owned();
        for n in 0..3 {
            let name = format!("delta{n}.vmdk");
            delta(dir, &name, &over, options);
            qemu::scribble(&dir.join(&name), "vmdk", size, &mut random, 1, options.contains("zeroed"));
            over = name;
        }
        let top = dir.join(&over);
        let disk = open(&top).unwrap();
        assert_eq!((disk.remarks.as_slice(), disk.tables.len()), ([].as_slice(), 4));
        qemu::same(&disk, &top, "vmdk");
        assert!(disk.parts.iter().any(|p| p.role == Role::Parent(3) && p.name == "base.vmdk"));
    }
}

#[test]
fn a_parent_that_was_written_to_is_refused() {
    let dir = scratch();
    let dir = dir.path();
    qemu::create(&dir.join("base.vmdk"), "vmdk", "", 4 << 20);
    delta(dir, "delta.vmdk", "base.vmdk", "");
    open(&dir.join("delta.vmdk")).unwrap();
    qemu::scribble(&dir.join("base.vmdk"), "vmdk", 4 << 20, &mut Noise::new(52), 1, false);
    let error = open(&dir.join("delta.vmdk")).unwrap_err();
    assert_eq!(error.exit_code(), 4, "{error}");
    assert!(error.to_string().contains("CID"), "{error}");
    let disk = open_with(&dir.join("delta.vmdk"), &Allow { other_parent: true, ..Allow::default() }).unwrap();
    assert!(disk.remarks.iter().any(|r| r.contains("CID")), "{:?}", disk.remarks);
    fs::remove_file(dir.join("base.vmdk")).unwrap();
    assert_eq!(open(&dir.join("delta.vmdk")).unwrap_err().exit_code(), 3);
}

/// Every kind of extent in one disk.
#[test]
fn extents_of_all_kinds() {
    let dir = scratch();
    let dir = dir.path();
    let mut random = Noise::new(53);
    let raw = fs::read(qemu::raw(dir, 4 << 20, &mut random)).unwrap();
    qemu::convert(&dir.join("source.raw"), "vmdk", "subformat=twoGbMaxExtentSparse", &dir.join("d.vmdk"));
    let flat = random.bytes(64 * 512);
    fs::write(dir.join("d-f002.vmdk"), &flat).unwrap();
    let lines = "RW 20 FLAT \"d-f002.vmdk\" 3\nRW 8192 SPARSE \"d-s001.vmdk\"\nRDONLY 9 VMFS \"d-f002.vmdk\"\nRW 7 ZERO\nNOACCESS 4 FLAT \"gone.vmdk\" 0\nRW 30 FLAT \"d-f002.vmdk\" 30";
    fs::write(dir.join("all.vmdk"), descriptor("custom", 1, None, lines)).unwrap();
    let mut want = flat[3 * 512..23 * 512].to_vec();
    want.extend(&raw);
    want.extend(&flat[..9 * 512]);
    want.extend([0; 7 * 512]);
    let disk = open(&dir.join("all.vmdk")).unwrap();
    assert_eq!(disk.remarks, [""; 0]);
    let read = |at: usize, len: usize| disk.image.read_vec(Offset::new(at as u64), len);
    assert!(read(0, want.len()).unwrap() == want);
    assert!(read(want.len(), 512).unwrap_err().to_string().contains("NOACCESS"));
    assert!(read(want.len() + 4 * 512, 30 * 512).unwrap() == flat[30 * 512..60 * 512]);
    let names: Vec<_> = disk.parts.iter().map(|p| (p.role, p.name.as_str())).collect();
    assert_eq!(names, [(Role::Own, "d-f002.vmdk"), (Role::Own, "d-s001.vmdk")]);
}

#[test]
fn renamed_and_moved() {
    let dir = scratch();
    let dir = dir.path();
    let raw = qemu::raw(dir, 3 << 20, &mut Noise::new(54));
    let want = fs::read(&raw).unwrap();
    for (options, extent) in [
        ("subformat=monolithicFlat", "flat"),
        ("subformat=twoGbMaxExtentSparse", "s001"),
        ("subformat=twoGbMaxExtentFlat", "f001"),
    ] {
        let (old, new) = (dir.join("old.vmdk"), dir.join("new.vmdk"));
        qemu::convert(&raw, "vmdk", options, &old);
        // The descriptor names it in another folder.
        let text = fs::read_to_string(&old).unwrap();
        let name = format!("old-{extent}.vmdk");
        fs::write(&old, text.replace(&name, &format!("/vmfs/volumes/1/{name}"))).unwrap();
        let disk = open(&old).unwrap();
        assert!(disk.remarks.iter().any(|r| r.contains("moved")), "{:?}", disk.remarks);
        assert!(content(&disk) == want);
        // Both were renamed, the descriptor still has the old name.
        fs::rename(&old, &new).unwrap();
        fs::rename(dir.join(&name), dir.join(format!("new-{extent}.vmdk"))).unwrap();
        let disk = open(&new).unwrap();
        assert!(disk.remarks.iter().any(|r| r.contains("is taken")), "{:?}", disk.remarks);
        assert!(content(&disk) == want);
        // One of another size is not the one that is meant.
        fs::write(&new, text.replace("RW 6144 ", "RW 6145 ")).unwrap();
        assert_eq!(open(&new).unwrap_err().exit_code(), 4);
        // And none is found.
        fs::remove_file(dir.join(format!("new-{extent}.vmdk"))).unwrap();
        assert_eq!(open(&new).unwrap_err().exit_code(), 3);
    }
}

#[test]
fn an_extent_alone_is_refused() {
    let dir = scratch();
    let dir = dir.path();
    qemu::create(&dir.join("d.vmdk"), "vmdk", "subformat=twoGbMaxExtentSparse", 1 << 20);
    let error = open(&dir.join("d-s001.vmdk")).unwrap_err().to_string();
    assert!(error.contains("descriptor must be opened"), "{error}");
}

/// A VMFS-sparse extent (`COWD`): grains that are here, each with the byte that fills it.
pub fn cowd(sectors: usize, grain: usize, grains: &[(usize, u8)]) -> Vec<u8> {
    let covers = 4096 * grain;
    let tables = sectors.div_ceil(covers);
    let mut bytes = vec![0; 4 * 512];
    put(&mut bytes, 0, b"COWD");
    for (at, value) in [(4, 1), (8, 3), (12, sectors), (16, grain), (20, 4), (24, tables)] {
        put(&mut bytes, at, &(value as u32).to_le_bytes());
    }
    bytes.resize((bytes.len() + tables * 4).next_multiple_of(512), 0);
    for table in 0..tables {
        let here: Vec<_> = grains.iter().filter(|(g, _)| g / 4096 == table).collect();
        if here.is_empty() {
            continue;
        }
        let at = bytes.len();
        put(&mut bytes, 4 * 512 + table * 4, &((at / 512) as u32).to_le_bytes());
        bytes.resize(at + 4096 * 4, 0);
        for (number, byte) in here {
            let sector = (bytes.len() / 512) as u32;
            put(&mut bytes, at + number % 4096 * 4, &sector.to_le_bytes());
            bytes.extend(vec![*byte; grain * 512]);
        }
    }
    let end = (bytes.len() / 512) as u32;
    put(&mut bytes, 28, &end.to_le_bytes());
    bytes
}

/// A space-efficient extent: grains of 4 KiB, each with the byte that fills it; 0 for one of zeros, 1 for an unmapped one.
pub fn sesparse(sectors: usize, grains: &[(usize, u8)]) -> Vec<u8> {
    let covers = 4096 * 8;
    let tables = sectors.div_ceil(covers);
    let (directory, first) = (2usize, 2 + (tables * 8).div_ceil(512));
    let grains_at = first + tables * 64;
    let mut bytes = vec![0; grains_at * 512];
    for (n, value) in [
        0xCAFE_BABE,
        0x2_0000_0001,
        sectors,
        8,
        64,
        0,
        0,
        0,
        0,
        0,
        1,
        1,
        0,
        0,
        0,
        0,
        directory,
        first - directory,
        first,
        tables * 64,
        0,
        0,
        0,
        0,
        grains_at,
    ]
    .into_iter()
    .enumerate()
    {
        put(&mut bytes, n * 8, &(value as u64).to_le_bytes());
    }
    put(&mut bytes, 512, &0xCAFE_CAFEu64.to_le_bytes());
    let mut tables_used = 0u64;
    let mut used = 0u64;
    for table in 0..tables {
        let here: Vec<_> = grains.iter().filter(|(g, _)| g / 4096 == table).collect();
        if here.is_empty() {
            continue;
        }
        put(&mut bytes, directory * 512 + table * 8, &(0x1000_0000_0000_0000 | tables_used).to_le_bytes());
        let at = first * 512 + tables_used as usize * 64 * 512;
        tables_used += 1;
        for (number, byte) in here {
            let entry = match byte {
                0 => 2 << 60,
                1 => 1 << 60,
                _ => {
                    bytes.extend(vec![*byte; 4096]);
                    used += 1;
                    let n = used - 1;
                    3 << 60 | (n & 0xFFF) << 48 | n >> 12
                }
            };
            put(&mut bytes, at + number % 4096 * 8, &entry.to_le_bytes());
        }
    }
    bytes
}

#[test]
fn deltas_of_esx() {
    let mut random = Noise::new(55);
    let sectors = 40 << 11;
    for (which, line, kind) in [("cowd", "VMFSSPARSE", "vmfsSparse"), ("sesparse", "SESPARSE", "seSparse")] {
        let dir = scratch();
        let dir = dir.path();
        let raw = qemu::raw(dir, sectors as u64 * 512, &mut random);
        let mut want = fs::read(&raw).unwrap();
        qemu::convert(&raw, "vmdk", "subformat=monolithicFlat", &dir.join("base.vmdk"));
        let cid = fs::read_to_string(dir.join("base.vmdk")).unwrap();
        let cid = cid.lines().find_map(|l| l.strip_prefix("CID=")).unwrap();
        let cid = u32::from_str_radix(cid, 16).unwrap();
        let grain = if which == "cowd" { 1 } else { 8 };
        let mut grains: Vec<(usize, u8)> =
            (0..5000).map(|_| (random.below(sectors as u64 / grain) as usize, random.below(256) as u8)).collect();
        if which == "cowd" {
            // Without a kind of its own, a grain of zeros is one that is stored.
            grains.iter_mut().for_each(|g| g.1 = g.1.max(2));
        }
        grains.sort_by_key(|g| g.0);
        grains.dedup_by_key(|g| g.0);
        for (number, byte) in &grains {
            let len = grain as usize * 512;
            want[number * len..][..len].fill(if *byte == 1 { 0 } else { *byte });
        }
        let bytes = if which == "cowd" { cowd(sectors, 1, &grains) } else { sesparse(sectors, &grains) };
        fs::write(dir.join("base-000001-delta.vmdk"), bytes).unwrap();
        let lines = format!("RW {sectors} {line} \"base-000001-delta.vmdk\"");
        let top = dir.join("base-000001.vmdk");
        fs::write(&top, descriptor(kind, 7, Some((cid, "base.vmdk")), &lines)).unwrap();
        let disk = open(&top).unwrap();
        assert_eq!((disk.remarks.as_slice(), disk.tables.len()), ([].as_slice(), 2), "{which}");
        assert!(content(&disk) == want, "{which}");
        qemu::same(&disk, &top, "vmdk");
    }
}

#[test]
fn a_journal_of_esx_that_would_have_to_be_replayed() {
    let dir = scratch();
    let dir = dir.path();
    let mut bytes = sesparse(4096, &[(1, 9)]);
    bytes[512 + 24] = 1;
    fs::write(dir.join("d-sesparse.vmdk"), bytes).unwrap();
    fs::write(dir.join("d.vmdk"), descriptor("seSparse", 7, None, "RW 4096 SESPARSE \"d-sesparse.vmdk\"")).unwrap();
    assert!(open(&dir.join("d.vmdk")).unwrap_err().to_string().contains("not closed cleanly"));
}

#[test]
fn the_second_grain_directory_serves() {
    let dir = scratch();
    let path = dir.path().join("d.vmdk");
    let raw = qemu::raw(dir.path(), 40 << 20, &mut Noise::new(56));
    qemu::convert(&raw, "vmdk", "subformat=monolithicSparse", &path);
    let mut bytes = fs::read(&path).unwrap();
    let first = u64::from_le_bytes(bytes[56..64].try_into().unwrap()) as usize * 512;
    put(&mut bytes, first, &0x7FFF_FFFFu32.to_le_bytes());
    fs::write(&path, &bytes).unwrap();
    let disk = open(&path).unwrap();
    assert!(disk.remarks.iter().any(|r| r.contains("second")), "{:?}", disk.remarks);
    assert!(content(&disk) == fs::read(&raw).unwrap());
    // Both are damaged: an error, and what another table says is still read.
    let second = u64::from_le_bytes(bytes[48..56].try_into().unwrap()) as usize * 512;
    put(&mut bytes, second, &0x7FFF_FFFFu32.to_le_bytes());
    fs::write(&path, &bytes).unwrap();
    let disk = open(&path).unwrap();
    let error = disk.image.read_vec(Offset::new(0), 512).unwrap_err().to_string();
    assert!(error.contains("VMDK grain directory entry") && error.contains(&format!("{first:#x}")), "{error}");
    let rest = disk.image.read_vec(Offset::new(32 << 20), 8 << 20).unwrap();
    assert!(rest == fs::read(&raw).unwrap()[32 << 20..]);
}

#[test]
fn a_stream_that_was_cut_or_damaged() {
    let dir = scratch();
    let path = dir.path().join("d.vmdk");
    let raw = qemu::raw(dir.path(), 3 << 20, &mut Noise::new(57));
    qemu::convert(&raw, "vmdk", "subformat=streamOptimized", &path);
    let good = fs::read(&path).unwrap();
    let disk = open(&path).unwrap();
    let packed = disk.image.map().unwrap();
    let packed =
        packed.extents().iter().find(|e| e.what == What::Encoded(Encoding::ContainerCompressed)).unwrap().start;
    // The grains of a stream begin behind the header, and have markers in front.
    let grain = u64::from_le_bytes(good[64..72].try_into().unwrap()) as usize * 512;
    let mut bytes = good.clone();
    bytes[grain + 12..grain + 40].fill(0xEE);
    fs::write(&path, &bytes).unwrap();
    let error = open(&path).unwrap().image.read_vec(packed, 512).unwrap_err().to_string();
    assert!(error.contains("VMDK compressed grain"), "{error}");
    // VMware has the grain directory at the end, which a footer leads to.
    let mut stream = good.clone();
    stream.resize(stream.len().next_multiple_of(512), 0);
    let footer = stream.len() + 512;
    stream.extend([0; 3 * 512]);
    put(&mut stream, footer - 512, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3]);
    put(&mut stream, footer, &good[..512]);
    put(&mut stream, 56, &[0xFF; 8]);
    fs::write(&path, &stream).unwrap();
    assert!(content(&open(&path).unwrap()) == fs::read(&raw).unwrap());
    fs::write(&path, &stream[..stream.len() - 1024]).unwrap();
    let error = open(&path).unwrap_err().to_string();
    assert!(error.contains("VMDK footer") && error.contains("cut"), "{error}");
}

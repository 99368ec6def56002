//! Mutated and crafted disks of every kind: no panic, no hang, no byte said to be stored where there is none, memory bounded.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use unimage::container::gate::Allow;
use unimage::container::{OpenWith, probe};
use unimage::extent::{Offset, What};

use crate::common::mutate::{busy, mutate};
use crate::common::vhdx::{Block, child};
use crate::common::{Noise, UNIMAGE, long, scratch};
use crate::folder::Folder;
use crate::memory::bytes;
use crate::{qemu, vdi, vhd, vhdx, vmdk};

/// A disk of every kind in a folder; those without a parent first.
fn disks(dir: &Path) -> Vec<PathBuf> {
    let raw = qemu::raw(dir, 3 << 20, &mut Noise::new(71));
    let mut all = Vec::new();
    for (name, format, options) in [
        ("d.vhd", "vpc", "subformat=dynamic"),
        ("d.vdi", "vdi", ""),
        ("d.vmdk", "vmdk", "subformat=monolithicSparse"),
        ("stream.vmdk", "vmdk", "subformat=streamOptimized"),
        ("flat.vmdk", "vmdk", "subformat=monolithicFlat"),
        ("d.vhdx", "vhdx", "block_size=1M"),
        ("d.qcow2", "qcow2", ""),
        ("old.qcow2", "qcow2", "compat=0.10,cluster_size=4096"),
        ("parts.qcow2", "qcow2", "extended_l2=on,cluster_size=16k"),
    ] {
        qemu::convert(&raw, format, options, &dir.join(name));
        all.push(dir.join(name));
    }
    let sub = |name: &str| {
        fs::create_dir(dir.join(name)).unwrap();
        dir.join(name)
    };
    let d = sub("vhd");
    vhd::base(&d);
    vhd::child(&d.join("base.vhd"), &d.join("c.vhd"), 1, &[(5, 9), (700, 8), (4100, 7)], 0x77);
    all.push(d.join("c.vhd"));
    let d = sub("vdi");
    vdi::base(&d);
    vdi::child(&d.join("base.vdi"), &d.join("c.vdi"), 1, &[None, Some(Some(9)), Some(None), None, None]);
    all.push(d.join("c.vdi"));
    let d = sub("vhdx");
    qemu::convert(&raw, "vhdx", "", &d.join("base.vhdx"));
    child(&d.join("base.vhdx"), &d.join("c.vhdx"), 1, 3 << 20, &[Block::Partly(3, 9), Block::Full(8)], 0x66);
    all.push(d.join("c.vhdx"));
    let d = sub("open");
    vhdx::dirty(&d.join("d.vhdx"));
    all.push(d.join("d.vhdx"));
    let d = sub("esx");
    for (name, extent, line) in [
        ("c", vmdk::cowd(8192, 1, &[(3, 9), (5000, 8)]), "VMFSSPARSE"),
        ("s", vmdk::sesparse(65536, &[(1, 9), (7, 0), (5000, 1)]), "SESPARSE"),
    ] {
        fs::write(d.join(format!("{name}-delta.vmdk")), &extent).unwrap();
        let lines = format!("RW {} {line} \"{name}-delta.vmdk\"", if name == "c" { 8192 } else { 65536 });
        fs::write(d.join(format!("{name}.vmdk")), vmdk::descriptor("vmfs", 7, None, &lines)).unwrap();
        all.push(d.join(format!("{name}.vmdk")));
    }
    all
}

/// Opens bytes as a disk in place of the file at `path`, and reads of it.
fn tried(path: &Path, mutant: Vec<u8>) {
    let allow = Allow { other_parent: true, ..Allow::default() };
    let gate = Folder(path.to_owned());
    let Ok(disk) = probe(bytes(mutant), &OpenWith::new(&gate, &allow, None)) else { return };
    let len = disk.image.len();
    for at in [0, len / 2, len.saturating_sub(70_000)] {
        let _ = disk.image.read_vec(Offset::new(at), len.saturating_sub(at).min(70_000) as usize);
    }
    let map = disk.image.map().unwrap();
    assert_eq!(map.len(), len);
    let files: Vec<_> = disk.tables.iter().flat_map(|t| t.files().iter()).collect();
    for e in map.extents() {
        if let What::Stored(place) = e.what {
            let file = files.iter().find(|f| f.id() == place.layer).expect("a file of the disk");
            assert!(place.offset.get() + e.len <= file.len(), "{e:?} is within its file");
        }
    }
}

#[test]
fn no_mutation_breaks_a_promise() {
    let dir = scratch();
    let limit = Duration::from_millis(if long() { 60_000 } else { 1500 });
    let mut noise = Noise::new(2026);
    for path in disks(dir.path()) {
        let sound = fs::read(&path).unwrap();
        tried(&path, sound.clone());
        // Most of a file is data: three of four mutations are in the first places that hold something, the tables.
        let all = busy(&sound);
        let tables: Vec<usize> = all.iter().copied().take(48).collect();
        let (start, mut rounds, mut slowest) = (Instant::now(), 0, Duration::ZERO);
        while start.elapsed() < limit || rounds < 20 {
            let mut mutant = sound.clone();
            mutate(&mut mutant, if noise.below(4) == 0 { &all } else { &tables }, &mut noise);
            let round = Instant::now();
            tried(&path, mutant);
            slowest = slowest.max(round.elapsed());
            rounds += 1;
        }
        println!("{}: {rounds} mutations, the slowest {slowest:?}", path.display());
        assert!(slowest < Duration::from_secs(20), "{}: {slowest:?}", path.display());
    }
}

/// The extents of ESX are files of their own, which the loop above leaves alone.
#[test]
fn no_mutation_of_an_extent_breaks_a_promise() {
    let dir = scratch();
    let limit = Duration::from_millis(if long() { 60_000 } else { 1500 });
    let mut noise = Noise::new(2027);
    disks(dir.path());
    for name in ["c", "s"] {
        let descriptor = dir.path().join(format!("esx/{name}.vmdk"));
        let extent = dir.path().join(format!("esx/{name}-delta.vmdk"));
        let (text, sound) = (fs::read(&descriptor).unwrap(), fs::read(&extent).unwrap());
        let busy = busy(&sound);
        let start = Instant::now();
        while start.elapsed() < limit {
            let mut mutant = sound.clone();
            mutate(&mut mutant, &busy, &mut noise);
            fs::write(&extent, mutant).unwrap();
            tried(&descriptor, text.clone());
        }
    }
}

/// Small files that say that they are very much: answered at once, and within 512 MiB.
#[test]
fn crafted_sizes() {
    let dir = scratch();
    let dir = dir.path();
    let all = disks(dir);
    let put = |name: &str, at: usize, value: &[u8]| {
        let path = all.iter().find(|p| p.ends_with(name)).unwrap();
        let mut bytes = fs::read(path).unwrap();
        bytes[at..at + value.len()].copy_from_slice(value);
        fs::write(path, bytes).unwrap();
        path.clone()
    };
    let sealed = |path: &Path, at: usize, len: usize, sum: usize| {
        let mut bytes = fs::read(path).unwrap();
        bytes[at + sum..at + sum + 4].fill(0);
        let total: u32 = bytes[at..at + len].iter().map(|b| u32::from(*b)).sum();
        bytes[at + sum..at + sum + 4].copy_from_slice(&(!total).to_be_bytes());
        fs::write(path, bytes).unwrap();
    };
    let vhd = put("d.vhd", 512 + 28, &u32::MAX.to_be_bytes());
    let footer = fs::metadata(&vhd).unwrap().len() as usize - 512;
    put("d.vhd", footer + 48, &(1u64 << 62).to_be_bytes());
    put("d.vhd", 512 + 32, &512u32.to_be_bytes());
    sealed(&vhd, footer, 512, 64);
    let child = put("vhd/c.vhd", 512 + 28, &u32::MAX.to_be_bytes());
    // Every entry leads to one block, of which every other sector is here.
    let mut bytes = fs::read(&child).unwrap();
    bytes[2560..2580].as_chunks_mut::<4>().0.iter_mut().for_each(|e| *e = [0, 0, 0, 6]);
    bytes[6 * 512..7 * 512].fill(0x55);
    fs::write(&child, bytes).unwrap();
    put("d.vdi", 368, &(1u64 << 51).to_le_bytes());
    put("d.vdi", 384, &u32::MAX.to_le_bytes());
    put("d.vmdk", 12, &(1u64 << 54).to_le_bytes());
    put("stream.vmdk", 20, &(1u64 << 40).to_le_bytes());
    for path in &all {
        let start = Instant::now();
        let address = format!("{}//", path.display());
        let out = Command::new("prlimit").args(["--as=536870912", UNIMAGE, "info", &address]).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(matches!(out.status.code(), Some(0 | 3 | 4)), "{}: {:?} {said}", path.display(), out.status);
        assert!(start.elapsed() < Duration::from_secs(20), "{}: {:?}", path.display(), start.elapsed());
    }
}

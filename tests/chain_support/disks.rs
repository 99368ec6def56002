//! The same with VMDK and VHDX: delta chains, differencing disks, disks of several files, streams.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use crate::common::vhdx::{self, Block};
use crate::common::{Noise, Seens, guest, ok, scratch, tree};
use crate::{Host, at, counts, fill, mounted};

/// Two states of a guest file system, and what a foreign driver shows of the later one.
fn states(dir: &Path, kind: &str) -> (Vec<u8>, Vec<u8>, Seens) {
    let raw = dir.join("guest.raw");
    let mut random = Noise::new(77);
    let size = 24 << 20;
    if kind == "ntfs" {
        guest::bare_ntfs(&raw, size, 4096, |root| fill(root, &mut random, "first", 40));
    } else {
        File::create(&raw).unwrap().set_len(size).unwrap();
        ok("mkfs.ext4", ["-q", "-b", "4096", raw.to_str().unwrap()]);
        let (root, _mount) = mounted(&raw, kind, "rw");
        fill(&root, &mut random, "first", 40);
    }
    let first = fs::read(&raw).unwrap();
    {
        let (root, _mount) = mounted(&raw, kind, "rw");
        fill(&root, &mut random, "second", 30);
        fs::write(root.join("first/file 5"), random.bytes(333_333)).unwrap();
    }
    let (root, mount) = mounted(&raw, kind, "ro");
    let files = tree(&root);
    drop(mount);
    (first, fs::read(&raw).unwrap(), files)
}

/// A base in the folder, over it a delta with what the second state has otherwise, by qemu.
fn vmdk_chain(dir: &Path, first: &[u8], second: &[u8]) {
    fs::write(dir.join("first.raw"), first).unwrap();
    at(dir, "qemu-img", &["convert", "-f", "raw", "-O", "vmdk", "first.raw", "base.vmdk"]);
    at(dir, "qemu-img", &["create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "top.vmdk"]);
    let mut commands = vec!["-f".to_owned(), "vmdk".into()];
    const PIECE: usize = 64 << 10;
    for (i, (a, b)) in first.chunks(PIECE).zip(second.chunks(PIECE)).enumerate().filter(|(_, (a, b))| a != b) {
        let piece = dir.join(format!("piece{i}"));
        fs::write(&piece, b).unwrap();
        commands.extend(["-c".into(), format!("write -s {} {} {}", piece.display(), i * PIECE, a.len())]);
    }
    commands.push("top.vmdk".into());
    at(dir, "qemu-io", &commands.iter().map(String::as_str).collect::<Vec<_>>());
}

/// The same, the child sector by sector.
fn vhdx_chain(dir: &Path, first: &[u8], second: &[u8]) {
    fs::write(dir.join("first.raw"), first).unwrap();
    at(dir, "qemu-img", &["convert", "-f", "raw", "-O", "vhdx", "first.raw", "base.vhdx"]);
    let blocks: Vec<Block> = first
        .chunks(2 << 20)
        .zip(second.chunks(2 << 20))
        .map(|(a, b)| {
            let pairs = a.chunks(512).zip(b.chunks(512)).enumerate();
            let sectors: Vec<_> = pairs.filter(|(_, (a, b))| a != b).map(|(n, (_, b))| (n, b.to_vec())).collect();
            if sectors.is_empty() { Block::Absent } else { Block::Sectors(sectors) }
        })
        .collect();
    vhdx::child(&dir.join("base.vhdx"), &dir.join("top.vhdx"), 0xC1, first.len() as u64, &blocks, 0x66);
}

/// Relinked with and without its parent, and taken back.
fn chain(kind: &str, make: fn(&Path, &[u8], &[u8]), names: [&str; 2], hosts: &[&'static str]) {
    let made = scratch();
    let (first, second, files) = states(made.path(), kind);
    make(made.path(), &first, &second);
    let [base, top] = names;
    for on in hosts {
        let host = Host::new(on, made.path(), &names);
        let done = host.relink(top, &["--commit"]).exits(0);
        let all = crate::rows(&done.stdout);
        assert!(counts(&all, "link", "") >= 5 && counts(&all, "copy", "shared") >= 15, "{on}: {}", done.stdout);
        host.holds(&all, &files, &[top]);
        host.undone();
        let done = host.relink(top, &["--commit", "--remove-chain"]).exits(0);
        let all = crate::rows(&done.stdout);
        assert!(counts(&all, "link", "") >= 30 && counts(&all, "copy", "shared") == 0, "{on}: {}", done.stdout);
        host.holds(&all, &files, &[base, top]);
        host.undone();
    }
}

#[test]
fn a_vmdk_delta_chain_with_ntfs() {
    chain("ntfs", vmdk_chain, ["base.vmdk", "top.vmdk"], &["fat32", "ext4", "ntfs"]);
}
#[test]
fn a_vmdk_delta_chain_with_ext4() {
    chain("ext4", vmdk_chain, ["base.vmdk", "top.vmdk"], &["ntfs"]);
}
#[test]
fn a_vhdx_differencing_disk_with_ntfs() {
    chain("ntfs", vhdx_chain, ["base.vhdx", "top.vhdx"], &["fat32", "ext4", "ntfs"]);
}
#[test]
fn a_vhdx_differencing_disk_with_ext4() {
    chain("ext4", vhdx_chain, ["base.vhdx", "top.vhdx"], &["fat32"]);
}

/// Disks of one format each, of one file or several, on the three hosts in turn.
#[test]
fn every_other_format() {
    let made = scratch();
    let (_, second, files) = states(made.path(), "ntfs");
    fs::write(made.path().join("guest.raw"), &second).unwrap();
    let hosts = ["fat32", "ext4", "ntfs"];
    let formats: [(&str, &str, &[&str]); 7] = [
        ("vmdk", "subformat=twoGbMaxExtentSparse", &["a.vmdk", "a-s001.vmdk"]),
        ("vmdk", "subformat=monolithicFlat", &["b.vmdk", "b-flat.vmdk"]),
        ("vmdk", "subformat=twoGbMaxExtentFlat", &["c.vmdk", "c-f001.vmdk"]),
        ("vmdk", "subformat=streamOptimized", &["d.vmdk"]),
        ("vhdx", "subformat=dynamic", &["e.vhdx"]),
        ("vdi", "static=off", &["f.vdi"]),
        ("vpc", "subformat=dynamic,force_size=on", &["g.vhd"]),
    ];
    for (n, (format, options, names)) in formats.iter().enumerate() {
        at(made.path(), "qemu-img", &["convert", "-f", "raw", "-O", format, "-o", options, "guest.raw", names[0]]);
        let host = Host::new(hosts[n % 3], made.path(), names);
        let done = host.relink(names[0], &["--commit"]).exits(0);
        let all = crate::rows(&done.stdout);
        let mut seen = BTreeMap::new();
        for row in all.iter().filter(|r| r.kind == "file") {
            *seen.entry((row.verdict.clone(), row.reason.clone())).or_insert(0usize) += 1;
        }
        println!("{options} on {}: {seen:?}", hosts[n % 3]);
        match *options {
            "subformat=streamOptimized" => {
                assert!(
                    counts(&all, "link", "") <= 20 && counts(&all, "copy", "container-compressed") >= 30,
                    "{seen:?}"
                );
            }
            // A block of a VHD has its bitmap of one sector in front: only every eighth begins on a cluster of 4 KiB. And qemu
            // puts the blocks of a small VDI right behind the map (VirtualBox' begin at 1 MiB).
            "subformat=dynamic,force_size=on" | "static=off" => {
                assert!(counts(&all, "copy", "misaligned") >= 10, "{seen:?}")
            }
            _ => assert!(counts(&all, "link", "") >= 30, "{seen:?}"),
        }
        host.holds(&all, &files, names);
        host.undone();
        fs::remove_file(made.path().join(names[0])).unwrap();
    }
}

/// A machine's description leads to its disk for reading; a host is only changed by the disk's own name.
#[test]
fn a_machine_on_a_host() {
    let made = scratch();
    let (first, second, files) = states(made.path(), "ntfs");
    vmdk_chain(made.path(), &first, &second);
    fs::write(made.path().join("win.vmx"), "config.version = \"8\"\nscsi0:0.fileName = \"top.vmdk\"\n").unwrap();
    let host = Host::new("fat32", made.path(), &["base.vmdk", "top.vmdk", "win.vmx"]);
    let refused = host.relink("win.vmx", &["--commit"]).exits(4);
    assert!(refused.stderr.contains("top.vmdk"), "{}", refused.stderr);
    for address in [format!("{}//vm/win.vmx//", host.file.display()), made.path().join("win.vmx").display().to_string()]
    {
        let listed = crate::unimage(["ls", "-R", &address]).exits(0);
        let all: Vec<&str> = listed.stdout.lines().collect();
        assert!(files.keys().all(|path| all.contains(&path.as_str())), "{}", listed.stdout);
    }
}

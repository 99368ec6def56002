//! Everything that `qemu-img` writes: each subformat, converted and written at random, against qemu's bytes and its map.

use crate::common::{Noise, long, scratch};
use crate::folder::open;
use crate::qemu;

/// Format as qemu has it, options, ours, whether qemu-io may zero and discard.
const WRITTEN: &[(&str, &str, &str, bool)] = &[
    ("vpc", "subformat=dynamic", "vhd", false),
    ("vpc", "subformat=dynamic,force_size=on", "vhd", false),
    ("vpc", "subformat=fixed,force_size=on", "vhd", false),
    ("vhdx", "subformat=dynamic", "vhdx", true),
    ("vhdx", "subformat=dynamic,block_size=1M,log_size=2M", "vhdx", true),
    ("vhdx", "subformat=dynamic,block_state_zero=off", "vhdx", true),
    ("vhdx", "subformat=fixed", "vhdx", true),
    ("vdi", "static=off", "vdi", false),
    ("vdi", "static=on", "vdi", false),
    ("vmdk", "subformat=monolithicSparse", "vmdk", false),
    ("vmdk", "subformat=monolithicSparse,zeroed_grain=on", "vmdk", true),
    ("vmdk", "subformat=monolithicFlat", "vmdk", false),
    ("vmdk", "subformat=twoGbMaxExtentSparse", "vmdk", false),
    ("vmdk", "subformat=twoGbMaxExtentFlat", "vmdk", false),
];

#[test]
fn random_writes_by_qemu_io() {
    let mut random = Noise::new(11);
    for (format, options, kind, zeros) in WRITTEN {
        for round in 0..if long() { 40 } else { 3 } {
            let dir = scratch();
            let path = dir.path().join("d.img");
            // A size that is no multiple of a block.
            let size = (1 + random.below(24 << 20) / 512) * 512;
            qemu::create(&path, format, options, size);
            if round > 0 {
                qemu::scribble(&path, format, size, &mut random, 1 + round % 3, *zeros);
            }
            let disk = open(&path).unwrap_or_else(|e| panic!("{format} {options}: {e}"));
            assert_eq!((disk.kind, disk.remarks.as_slice()), (*kind, [].as_slice()), "{options}");
            qemu::same(&disk, &path, format);
        }
    }
}

#[test]
fn converted_from_raw() {
    let mut random = Noise::new(12);
    let stream = [("vmdk", "subformat=streamOptimized", "vmdk", false)];
    for (format, options, kind, _) in WRITTEN.iter().chain(&stream) {
        for _ in 0..if long() { 20 } else { 2 } {
            let dir = scratch();
            let raw = qemu::raw(dir.path(), (1 + random.below(12 << 20) / 512) * 512, &mut random);
            let path = dir.path().join("d.img");
            qemu::convert(&raw, format, options, &path);
            let disk = open(&path).unwrap_or_else(|e| panic!("{format} {options}: {e}"));
            assert_eq!((disk.kind, disk.remarks.as_slice()), (*kind, [].as_slice()), "{options}");
            qemu::same(&disk, &path, format);
        }
    }
}

/// Disks whose tables are many: what is written far behind is found.
#[test]
fn large_and_sparse() {
    let mut random = Noise::new(13);
    let size = 7 << 30;
    for (format, options, ..) in WRITTEN.iter().filter(|w| !w.1.contains("ixed") && !w.1.contains("static=on")) {
        let dir = scratch();
        let path = dir.path().join("d.img");
        qemu::create(&path, format, options, size);
        qemu::scribble(&path, format, size, &mut random, 2, false);
        qemu::same_extents(&open(&path).unwrap(), &path, format);
    }
}

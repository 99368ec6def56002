//! A real relink on a small FAT host, on a simulated machine whose power is cut everywhere.

mod common;
#[path = "common/crash.rs"]
mod crash;
#[path = "common/machine.rs"]
mod machine;

use common::host::{Host, Place, Shape};
use common::{fsck_fat, guest, scratch};

/// On the larger hosts the recoveries are cut too with `tests/run.sh --long`.
fn run(shape: Shape, guest_len: u64) {
    let dir = scratch();
    let image = dir.path().join("guest");
    guest::fat(&image, guest_len, 12, 1);
    let host = Host::new(shape, &image);
    let base = host.base;
    let bench = crash::Bench {
        file: host.file.clone(),
        image: host.image(),
        base: host.base,
        len: host.len,
        in_use: host.fat.in_use(&host.before),
        reuse: false,
        probe: host.dir.path().join("probe.img"),
        check: Box::new(move |file| fsck_fat(file, base, shape.len)),
    };
    crash::run(bench, common::long() || shape.len < 700 << 10);
}

/// An image of two files: a qcow2 and the file with its data.
#[test]
fn two_files_that_make_up_an_image() {
    let dir = scratch();
    let raw = dir.path().join("guest");
    guest::fat(&raw, 256 << 10, 12, 1);
    let made = std::process::Command::new("qemu-img")
        .current_dir(dir.path())
        .args(["convert", "-f", "raw", "-O", "qcow2", "-o", "data_file=DATA.IMG,cluster_size=512", "guest", "disk"])
        .status();
    assert!(made.unwrap().success());
    let shape = Shape { width: 12, cluster_sectors: 1, len: 800 << 10, place: Place::Bare, fragments: 3 };
    let host = Host::new(shape, &dir.path().join("disk"));
    host.fat.place(&host.file, &dir.path().join("DATA.IMG"), "DATA.IMG", 4);
    std::fs::copy(&host.file, &host.before).unwrap();
    let bench = crash::Bench {
        file: host.file.clone(),
        image: host.image(),
        base: host.base,
        len: host.len,
        in_use: host.fat.in_use(&host.before),
        reuse: false,
        probe: host.dir.path().join("probe.img"),
        check: Box::new(move |file| fsck_fat(file, 0, shape.len)),
    };
    crash::run(bench, common::long());
}

#[test]
fn fat12_bare() {
    run(Shape { width: 12, cluster_sectors: 1, len: 640 << 10, place: Place::Bare, fragments: 5 }, 256 << 10);
}

#[test]
fn fat12_in_a_partition_with_other_clusters() {
    run(Shape { width: 12, cluster_sectors: 2, len: 768 << 10, place: Place::Logical, fragments: 2 }, 256 << 10);
}

#[test]
fn fat16() {
    run(Shape { width: 16, cluster_sectors: 1, len: 2400 << 10, place: Place::Bare, fragments: 20 }, 256 << 10);
}

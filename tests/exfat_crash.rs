//! A real relink on a small exFAT host, on a simulated machine whose power is cut everywhere.

mod common;
#[path = "common/crash.rs"]
mod crash;
mod exfat_support;
#[path = "common/machine.rs"]
mod machine;

use common::{fsck_exfat, guest, scratch};
use exfat_support::host::{Host, Shape};

/// On the larger hosts the recoveries are cut too with `tests/run.sh --long`.
fn run(shape: Shape, guest_len: u64) {
    let dir = scratch();
    let image = dir.path().join("guest");
    guest::fat(&image, guest_len, 12, 1);
    let host = Host::with(shape, &image, &["-b", "64K"]);
    let base = host.base;
    let bench = crash::Bench {
        file: host.file.clone(),
        image: host.path("DISK.raw"),
        base,
        len: host.len,
        in_use: host.exfat.in_use(&host.before),
        reuse: false,
        probe: host.dir.path().join("probe.img"),
        check: Box::new(move |file| fsck_exfat(file, base, shape.len)),
    };
    crash::run(bench, common::long() || shape.len <= 1 << 20);
}

#[test]
fn the_image_in_one_piece() {
    run(Shape { unit: "512", len: 1 << 20, fragments: 1, partition: false }, 256 << 10);
}

#[test]
fn the_image_in_fragments() {
    run(Shape { unit: "512", len: 1 << 20, fragments: 9, partition: false }, 256 << 10);
}

#[test]
fn larger_clusters_in_a_partition() {
    run(Shape { unit: "4K", len: 3 << 20, fragments: 5, partition: true }, 256 << 10);
}

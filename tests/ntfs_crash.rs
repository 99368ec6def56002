//! A real relink on a small NTFS host, on a simulated machine whose power is cut everywhere.

mod common;
#[path = "common/crash.rs"]
mod crash;
#[path = "common/machine.rs"]
mod machine;
#[path = "ntfs_support/host.rs"]
mod ntfs_host;

use common::{guest, scratch};
use ntfs_host::{Host, Shape};

/// The recoveries are cut too with `tests/run.sh --long`, and the recoveries after these.
fn run(shape: Shape) {
    let dir = scratch();
    let image = dir.path().join("guest");
    guest::fat(&image, 256 << 10, 12, (shape.cluster / 512) as u32);
    let host = Host::new(shape, &image);
    let bench = crash::Bench {
        image: host.image.clone(),
        file: host.file.clone(),
        base: host.base,
        len: host.len,
        in_use: host.in_use(),
        reuse: false,
        probe: dir.path().join("probe.raw"),
        check: Box::new(host.checker()),
    };
    crash::run(bench, common::long());
}

#[test]
fn small_clusters_and_many_pieces() {
    run(Shape { sector: 512, cluster: 512, mib: 3, pieces: 20, partition: false });
}

#[test]
fn in_a_partition() {
    run(Shape { sector: 512, cluster: 4096, mib: 4, pieces: 3, partition: true });
}

#[test]
fn records_of_4_kib() {
    run(Shape { sector: 4096, cluster: 4096, mib: 6, pieces: 1, partition: false });
}

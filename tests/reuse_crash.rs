//! Relinks on hosts that are full, so that copies go to units of the image, on a simulated machine whose power is cut everywhere.

mod common;
#[path = "common/crash.rs"]
mod crash;
mod exfat_support;
#[path = "common/machine.rs"]
mod machine;

use common::{fsck_exfat, fsck_fat, guest, host, scratch};

#[test]
fn exfat() {
    for (fragments, leave) in [(1, 3), (7, 2)] {
        let dir = scratch();
        let image = dir.path().join("guest");
        guest::tight(&image, 72 << 10);
        let shape = exfat_support::host::Shape { unit: "1K", len: 512 << 10, fragments, partition: false };
        let mut host = exfat_support::host::Host::with(shape, &image, &["-b", "64K"]);
        host.fill_up(leave);
        let bench = crash::Bench {
            file: host.file.clone(),
            image: host.path("DISK.raw"),
            base: host.base,
            len: host.len,
            in_use: host.exfat.in_use(&host.before),
            probe: host.dir.path().join("probe.img"),
            check: Box::new(move |file| fsck_exfat(file, 0, shape.len)),
        };
        crash::run_reusing(bench, common::long() || fragments == 1);
    }
}

#[test]
fn fat() {
    for (fragments, leave) in [(2, 4), (6, 2)] {
        let dir = scratch();
        let image = dir.path().join("guest");
        guest::tight(&image, 72 << 10);
        let (width, place) = (12, host::Place::Bare);
        let shape = host::Shape { width, cluster_sectors: 2, len: 180 << 10, place, fragments };
        let mut host = host::Host::new(shape, &image);
        host.fill_up(leave);
        let bench = crash::Bench {
            file: host.file.clone(),
            image: host.image(),
            base: host.base,
            len: host.len,
            in_use: host.fat.in_use(&host.before),
            probe: host.dir.path().join("probe.img"),
            check: Box::new(move |file| fsck_fat(file, 0, shape.len)),
        };
        crash::run_reusing(bench, common::long());
    }
}

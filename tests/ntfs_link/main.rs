//! NTFS as host: synthetic trees over the clusters of an image file, judged by ntfsresize, ntfsfix, ntfs-3g and The Sleuth Kit.

#[path = "../common/apply.rs"]
mod apply;
mod host;
#[path = "../ntfs_support/mod.rs"]
mod ntfs_support;

use host::*;

const SHAPES: [Shape; 4] = [
    Shape { sector: 512, cluster: 512, mib: 24 },
    Shape { sector: 512, cluster: 4096, mib: 48 },
    Shape { sector: 512, cluster: 65536, mib: 160 },
    Shape { sector: 4096, cluster: 4096, mib: 48 },
];

#[test]
fn trees_of_all_sorts_on_all_shapes() {
    for (i, shape) in SHAPES.iter().enumerate() {
        let case = HostCase::new(*shape, 640, 40);
        assert!(case.image.map.extents().len() > 5, "{shape:?}");
        let all = [&[][..], &["out"], &["vm"], &["VM", "new one", "and another"], &["older directory"]];
        for (n, into) in all.iter().enumerate().filter(|(n, _)| *n == i % 5 || *n == (i + 2) % 5) {
            let mut wanted = Wanted::new(&case, into, (10 * i + n) as u64);
            wanted.fill(100);
            // The names of `into` that are there keep their case.
            let there = |path: &String| path.replacen("VM/", "vm/", 1).replacen("older directory/", "Older Directory/", 1);
            wanted.files = wanted.files.iter().map(|(p, h)| (there(p), h.clone())).collect();
            println!("{shape:?} {into:?}");
            check(&wanted);
        }
    }
}

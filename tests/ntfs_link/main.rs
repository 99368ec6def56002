//! NTFS as host: synthetic trees over the clusters of an image file, judged by ntfsresize, ntfsfix, ntfs-3g and The Sleuth Kit.

#[path = "../common/apply.rs"]
mod apply;
mod faults;
mod guests;
mod host;
#[path = "../ntfs_support/judge/mod.rs"]
mod judge;
mod kept;
mod kill;
#[path = "../common/machine.rs"]
mod machine;
#[expect(dead_code, reason = "the sectors are chosen here")]
#[path = "../common/mutate.rs"]
mod mutate;
mod mutated;
#[path = "../ntfs_support/mod.rs"]
mod ntfs_support;
mod relink;
mod rules;
#[expect(dead_code, reason = "only what walks NTFS and relinks is used here")]
#[path = "../../fuzz/src/lib.rs"]
mod targets;

use host::*;
use ntfs_support::Noise;

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
        assert!(case.image.named.map.extents().len() > 3, "{shape:?}: {:?}", case.image.named.map.extents());
        let all = [&[][..], &["out"], &["vm"], &["VM", "new one", "and another"], &["older directory"]];
        for (n, into) in all.iter().enumerate().filter(|(n, _)| *n == i % 5 || *n == (i + 2) % 5) {
            let mut wanted = Wanted::new(&case, into, (10 * i + n) as u64);
            wanted.fill(100);
            // The names of `into` that are there keep their case.
            let there =
                |path: &String| path.replacen("VM/", "vm/", 1).replacen("older directory/", "Older Directory/", 1);
            wanted.streams = wanted.streams.iter().map(|((p, s), h)| ((there(p), s.clone()), h.clone())).collect();
            wanted.files = wanted.files.iter().map(|(p, h)| (there(p), h.clone())).collect();
            println!("{shape:?} {into:?}");
            check(&wanted);
        }
    }
}

#[test]
fn twenty_thousand_files_and_one_in_more_than_ten_thousand_pieces() {
    let case = HostCase::new(Shape { sector: 512, cluster: 512, mib: 160 }, 40_000, 100);
    let mut wanted = Wanted::new(&case, &["vm", "all of it"], 3);
    assert!(wanted.linked(None, "in pieces", 11_000 * 512 - 100, 0));
    assert!(wanted.linked(None, "in pieces with holes", 3_000 * 512, 3));
    let dir = wanted.dir(None, "five thousand");
    for i in 0..20_000 {
        let dir = if i < 5000 { Some(dir) } else { None };
        let name = format!("begins alike, {}.dat", i * 7919 % 20_000);
        match i % 10 {
            0 => _ = wanted.empty(dir, &name),
            _ => assert!(wanted.linked(dir, &name, 1 + i % 512, 0)),
        }
    }
    let start = std::time::Instant::now();
    let staging = case.host().link(&case.job(&wanted.tree)).unwrap();
    let time = start.elapsed();
    println!("20,000 files linked in {time:?}");
    // Without optimisation this takes seconds; a search for each name would take minutes.
    assert!(time.as_secs() < 60, "{time:?}");
    assert!(staging.fresh.len() < 60, "{}", staging.fresh.len());
    check(&wanted);
}

#[test]
fn fifty_thousand_names_in_one_directory() {
    let case = HostCase::new(Shape { sector: 512, cluster: 4096, mib: 160 }, 3000, 20);
    let mut wanted = Wanted::new(&case, &["out"], 3);
    let dir = wanted.dir(None, "fifty thousand");
    for i in 0..50_000u32 {
        let name = format!("{:08x} and so on", i.wrapping_mul(2_654_435_761));
        if i % 25 != 0 || !wanted.linked(Some(dir), &name, 1 + u64::from(i) % 4096, 0) {
            wanted.empty(Some(dir), &name);
        }
    }
    check(&wanted);
}

#[test]
fn many_files_on_clusters_of_64_kib() {
    let case = HostCase::new(Shape { sector: 512, cluster: 65536, mib: 400 }, 2500, 20);
    let mut wanted = Wanted::new(&case, &["vm", "out"], 3);
    assert!(wanted.linked(None, "in pieces", 800 * 65536 - 7, 0));
    assert!(wanted.linked(None, "in pieces with holes", 300 * 65536, 3));
    for i in 0..8000u64 {
        if i % 8 != 0 || !wanted.linked(None, &format!("linked {i}"), 1 + i * 13 % 65536, 0) {
            wanted.empty(None, &format!("empty {i}"));
        }
    }
    check(&wanted);
}

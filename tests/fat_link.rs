//! FAT as host: synthetic trees over the clusters of an image file, judged by fsck.fat, mtools, fusefat and The Sleuth Kit.

mod fat_support;

use std::collections::BTreeSet;
use std::process::Command;

use fat_support::host::*;
use fat_support::*;
use proptest::prelude::*;
use unimage::error::Error;
use unimage::extent::{Extent, What};
use unimage::fs::host::{Content, NewKind};

#[test]
fn trees_of_all_sorts_on_all_widths() {
    for (i, shape) in SHAPES.iter().enumerate() {
        // In a directory with a long name, and in the root with a short one.
        let case = HostCase::at(*shape, 60, if i.is_multiple_of(2) { IMAGE } else { "DISK.IMG" });
        assert!(case.image.named.map.extents().len() > 5, "{shape:?}");
        let all = [&[][..], &["out"], &["vm"], &["VM", "new one", "and another"], &["older directory"]];
        for (n, into) in all.iter().enumerate().filter(|(n, _)| *n == i % 5 || *n == (i + 2) % 5) {
            let mut wanted = Wanted::new(&case, into, (10 * i + n) as u64);
            wanted.fill(40);
            // The names of `into` that are there keep their case.
            let there =
                |path: &String| path.replacen("VM/", "vm/", 1).replacen("older directory/", "Older Directory/", 1);
            wanted.files = wanted.files.iter().map(|(p, h)| (there(p), h.clone())).collect();
            let after = check(&wanted);
            if n == i % 5 {
                check_foreign(&wanted, &after);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 20, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn random_trees(seed: u64, entries in 1usize..120, clusters in 13usize..400, into in 0usize..4) {
        let case = HostCase::new(SMALL, clusters);
        let into: &[&str] = [&[][..], &["vm"], &["Older Directory"], &["vm", "x"]][into];
        let mut wanted = Wanted::new(&case, into, seed);
        // The fixed root directory of FAT16 holds 512 slots.
        wanted.fill(if into.is_empty() { entries.min(15) } else { entries });
        check(&wanted);
    }
}

#[test]
fn twenty_thousand_files_in_one_directory() {
    let case = HostCase::new(SHAPES[5], 22_000);
    for (into, nested) in [("vm", false), ("new", true)] {
        let mut wanted = Wanted::new(&case, &[into], 5);
        let parent = nested.then(|| wanted.dir(None, "all of them"));
        for i in 0..20_000 {
            assert!(wanted.linked(parent, &format!("begins alike, {i}.dat"), 1 + i % 512));
        }
        let start = std::time::Instant::now();
        let staging = case.host().link(&case.job(&wanted.tree)).unwrap();
        let time = start.elapsed();
        println!("20,000 files linked in {time:?}");
        // Without optimisation this takes a second; a search for each name would take minutes.
        assert!(time.as_secs() < 20, "{time:?}");
        assert!(staging.fresh.len() < 40, "{}", staging.fresh.len());
        check(&wanted);
    }
    let mut wanted = Wanted::new(&case, &["vm"], 5);
    for i in 0..22_000 {
        wanted.empty(None, &format!("begins alike, {i}.dat"));
    }
    refused_with(&case, &wanted, "65536");
}

fn refused_with(case: &HostCase, wanted: &Wanted<'_>, word: &str) {
    match case.host().link(&case.job(&wanted.tree)) {
        Err(Error::Refused(why)) => assert!(why.contains(word) && !why.contains('\n'), "{why}"),
        other => panic!("{word}: {:?}", other.map(|_| ())),
    }
}

#[test]
fn what_fat_can_not_hold_is_refused() {
    let case = HostCase::new(SMALL, 60);
    let one = |build: &dyn Fn(&mut Wanted<'_>), word: &str| {
        let mut wanted = Wanted::new(&case, &["out"], 1);
        build(&mut wanted);
        refused_with(&case, &wanted, word);
    };
    one(&|w| (0..2).for_each(|i| w.empty(None, ["Größe", "GRÖßE"][i])), "the name");
    for name in ["a:b", "dot.", "", "a/b", &"x".repeat(256)] {
        one(&|w| w.empty(None, name), "no name that FAT can have");
    }
    one(&|w| _ = w.push(None, "l", NewKind::Symlink(b"x".to_vec())), "links");
    let big = NewKind::File { size: 1 << 32, content: Content::Copied };
    one(&|w| _ = w.push(None, "big", big.clone()), "4 GiB");
    one(&|w| _ = w.push(None, "big", NewKind::File { size: 8_100_000, content: Content::Copied }), "too little space");
    // A cluster twice, one that is another file's, one in the middle of a cluster.
    let linked = |places: &[u64]| {
        let size = 512 * places.len() as u64;
        NewKind::File { size, content: Content::Linked(case.extents(places, size)) }
    };
    let image = case.clusters[0];
    one(&|w| _ = w.push(None, "twice", linked(&[image, image])), "not the image's");
    one(&|w| (0..2).for_each(|i| _ = w.push(None, ["a", "b"][i], linked(&[image]))), "not the image's");
    let tree = case.fs.walk().unwrap();
    let keep = tree.order().find(|(e, _)| tree.path(*e) == b"KEEP.BIN").unwrap().0;
    let What::Stored(place) = tree.extents(tree.data(tree.entry(keep).object).unwrap())[0].what else { panic!() };
    one(&|w| _ = w.push(None, "other", linked(&[place.offset.get()])), "not the image's");
    one(&|w| _ = w.push(None, "odd", linked(&[image + 1])), "no clusters");
    let zero = NewKind::File { size: 512, content: Content::Linked(vec![Extent::zero(0, 512)]) };
    one(&|w| _ = w.push(None, "zero", zero.clone()), "no clusters");
    // A file on the way to `--into`; names that are there; a root directory that is full.
    let mut wanted = Wanted::new(&case, &["keep.bin", "x"], 1);
    wanted.empty(None, "a");
    refused_with(&case, &wanted, "no directory");
    let mut wanted = Wanted::new(&case, &["Older Directory"], 1);
    wanted.empty(None, "a file.txt");
    refused_with(&case, &wanted, "the name");
    let mut wanted = Wanted::new(&case, &[], 1);
    (0..300).for_each(|i| wanted.empty(None, &format!("file number {i}")));
    refused_with(&case, &wanted, "too little space");
    // What is refused for space is estimated all the same.
    let mut wanted = Wanted::new(&case, &["out"], 1);
    wanted.push(None, "big", NewKind::File { size: 8_100_000, content: Content::Copied });
    let estimate = case.host().estimate(&case.job(&wanted.tree));
    assert_eq!(estimate.copy_units, 8_100_000u64.div_ceil(512));
    assert!(estimate.copy_units > case.host().free_units());
}

#[test]
fn names_that_are_taken() {
    let case = HostCase::new(SMALL, 60);
    let names = |dir: &[&str]| {
        let dir: Vec<_> = dir.iter().map(|n| n.as_bytes().to_vec()).collect();
        let all = case.host().names_in(&dir).unwrap()?;
        Some(all.into_iter().map(|n| String::from_utf8(n).unwrap()).collect::<BTreeSet<_>>())
    };
    let vm = names(&["VM"]).unwrap();
    assert!(["disk image.raw", "DISKIM~1.RAW", "after the image"].iter().all(|n| vm.contains(*n)), "{vm:?}");
    assert!(names(&[]).unwrap().contains("OLDERD~1"));
    assert!(names(&["olderd~1"]).unwrap().contains("A FILE.TXT"));
    assert_eq!(names(&["nothing", "here"]), None);
    assert!(case.host().names_in(&[b"KEEP.BIN".to_vec()]).is_err());
    let fold = |name: &str| case.host().fold(name.as_bytes());
    assert_eq!(fold("größe"), fold("GRÖßE"));
    assert_ne!(fold("a"), fold("b"));
}

#[test]
fn nobody_takes_a_quarantined_volume_for_fat() {
    for shape in [SHAPES[0], SHAPES[2], SHAPES[5]] {
        let case = HostCase::new(shape, 30);
        let mut wanted = Wanted::new(&case, &["out"], 1);
        wanted.fill(10);
        let staging = case.host().link(&case.job(&wanted.tree)).unwrap();
        let mut bytes = case.volume.bytes.to_vec();
        bytes[..512].copy_from_slice(&staging.quarantine.closed);
        let (_dir, path) = written(&bytes);
        let file = path.to_str().unwrap();
        for args in [&["-a"][..], &["-y", "-w"], &["-n"]] {
            let out = Command::new("fsck.fat").args(args).arg(file).output().unwrap();
            assert_eq!(out.status.code(), Some(1), "{args:?}");
        }
        assert!(std::fs::read(&path).unwrap() == bytes, "fsck.fat changed something");
        let blkid = Command::new("blkid").args(["-p", file]).output().unwrap();
        assert!(!String::from_utf8_lossy(&blkid.stdout).contains("vfat"));
        assert!(!Command::new("mdir").args(["-i", file, "::"]).output().unwrap().status.success());
        assert!(!Command::new("fls").args(["-f", "fat", file]).output().unwrap().status.success());
    }
}

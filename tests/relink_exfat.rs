//! Relinking on exFAT hosts, from plan to undo: judged by `fsck.exfat`, exfat-fuse and The Sleuth Kit, against what other
//! drivers showed of the guest before.

mod common;
mod exfat_support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use common::guest::{self, Guest};
use common::host::{Row, rows};
use common::{Mount, Seens, scratch, sha256, sha256_file, unimage};
use exfat_support::host::{Host, Shape};

fn below(prefix: &str, files: &Seens) -> Seens {
    files.iter().map(|(p, s)| (format!("{prefix}/{p}"), s.clone())).collect()
}

/// Plan, relink, look, undo, look. Gives the rows.
#[track_caller]
fn there_and_back(host: &Host, into: &str, guest: &Seens) -> Vec<Row> {
    // Without --commit nothing is written, and the plan is the same.
    let dry = host.relink_into(into, &["--json"]).exits(0);
    assert!(host.untouched(), "a plan wrote");
    assert!(!host.journal().exists());
    let done = host.relink_into(into, &["--commit", "--json"]).exits(0);
    let all = rows(&done.stdout);
    assert_eq!(
        all.iter().map(|r| (&r.path, &r.verdict, &r.written)).collect::<Vec<_>>(),
        rows(&dry.stdout).iter().map(|r| (&r.path, &r.verdict, &r.written)).collect::<Vec<_>>(),
        "the plan and what was done"
    );
    host.relinked(into.trim_start_matches('/'), &all, guest);
    // A journal that is done: recover says so and writes nothing.
    let after = host.digest();
    host.journal_verb("recover").exits(0);
    assert_eq!(host.digest(), after, "recover of a finished relink wrote");
    host.journal_verb("undo").exits(0);
    assert_eq!(host.changed(), None, "undo");
    assert_eq!(host.fsck(), Vec::<String>::new(), "fsck.exfat -n -v after undo");
    let again = host.digest();
    host.journal_verb("undo").exits(0);
    host.journal_verb("recover").exits(0);
    assert_eq!(host.digest(), again, "a second undo wrote");
    all
}

/// Linked and copied files that are not empty.
fn counts(rows: &[Row]) -> (usize, usize) {
    let of = |verdict: &str| rows.iter().filter(|r| r.verdict == verdict && r.size > 0).count();
    (of("link"), of("copy"))
}

const HOST: Shape = Shape { unit: "4K", len: 600 << 20, fragments: 1, partition: false };

/// Every size of clusters, the image in one piece and in many.
const SHAPES: [Shape; 6] = [
    HOST,
    Shape { fragments: 300, partition: true, ..HOST },
    Shape { unit: "32K", fragments: 1, partition: true, ..HOST },
    Shape { unit: "32K", fragments: 50, ..HOST },
    Shape { unit: "128K", fragments: 1, ..HOST },
    Shape { unit: "128K", fragments: 20, partition: true, ..HOST },
];

#[test]
fn ntfs_guest_on_every_host() {
    let Guest { image, files } = guest::small_windows();
    for shape in SHAPES {
        let host = Host::new(shape, &image);
        let rows = there_and_back(&host, "/out", &below("p1", &files));
        let (linked, copied) = counts(&rows);
        println!("{shape:?}: {linked} linked, {copied} copied");
        assert_eq!(rows.iter().any(|r| r.reason == "misaligned"), shape.unit != "4K", "{shape:?}");
        assert!(linked > if shape.unit == "4K" { 200 } else { 2 }, "{shape:?}: {linked} linked");
    }
}

#[test]
fn other_guests() {
    for (i, guest) in [guest::plain_ext4(400), guest::plain_fat(400), guest::plain_exfat(400)].iter().enumerate() {
        for shape in [SHAPES[i], SHAPES[i + 3]] {
            let host = Host::new(shape, &guest.image);
            let rows = there_and_back(&host, "/new folder/and below", &guest.files);
            let (linked, copied) = counts(&rows);
            println!("{shape:?}: {linked} linked, {copied} copied");
            assert!(linked > 0, "{shape:?}");
        }
    }
}

/// What a guest is called, and how it is made.
type Kind = (&'static str, fn() -> Guest);

/// The issue's guests, of 20,000 files and more, each on every host: 24 cases with `tests/run.sh --long`, of them one here; with
/// `UNIMAGE_CASE` the one of that number.
#[test]
fn twenty_thousand_files() {
    let only = std::env::var("UNIMAGE_CASE").ok().map(|n| n.parse::<usize>().expect("the number of a case"));
    let guests: [Kind; 4] = [
        ("NTFS", || {
            let Guest { image, files } = guest::windows();
            Guest { image, files: below("p1", &files) }
        }),
        ("ext4", || guest::plain_ext4(20_000)),
        ("FAT", || guest::plain_fat(20_000)),
        ("exFAT", || guest::plain_exfat(20_000)),
    ];
    let mut run = 0;
    for (g, (kind, make)) in guests.into_iter().enumerate() {
        for (h, shape) in SHAPES.into_iter().enumerate() {
            let case = g * SHAPES.len() + h;
            if only.map_or(common::long() || case == 1, |n| n == case) {
                let fragments = if shape.fragments == 1 { 1 } else { 3000 };
                twenty_thousand(case, kind, Shape { len: 8 << 30, fragments, ..shape }, make());
                run += 1;
            }
        }
    }
    assert!(run == 24 || run == 1 && (only.is_some() || !common::long()), "{run} cases");
}

fn twenty_thousand(case: usize, kind: &str, shape: Shape, Guest { image, files }: Guest) {
    assert!(files.len() >= 20_000, "{} files", files.len());
    let start = Instant::now();
    let host = Host::new(shape, &image);
    let made = start.elapsed();
    let rows = there_and_back(&host, "/out", &files);
    let (linked, copied) = counts(&rows);
    println!(
        "case {case}: {kind} of {} files on {shape:?}: {linked} linked, {copied} copied; made in {made:?}, judged in {:?}",
        files.len(),
        start.elapsed() - made
    );
    // Files that are not empty, in one of the two ways; what begins in the midst of a cluster, and no other, can't be linked.
    assert_eq!(linked + copied, files.values().filter(|f| f.size > 0).count(), "case {case}");
    assert!(linked > if shape.unit == "4K" { 9_000 } else { 1 }, "case {case}: {linked} linked");
    assert_eq!(rows.iter().any(|r| r.reason == "misaligned"), shape.unit != "4K", "case {case}");
}

#[test]
fn into_directories_that_are_there() {
    let dir = scratch();
    let image = dir.path().join("guest");
    let files = guest::tiny_ntfs(&image, 8 << 20, 4096);
    for (n, into) in
        ["/", "/OLDER folder", "/Older folder/below it", "/empty folder", "/empty folder/x/y"].into_iter().enumerate()
    {
        for fragments in [1, 9] {
            let shape = Shape { unit: ["4K", "512", "32K"][n % 3], len: 64 << 20, fragments, partition: false };
            let host = Host::new(shape, &image);
            let real = into.replace("OLDER", "Older");
            let dry = host.relink_into(into, &["--commit", "--json"]).exits(0);
            host.relinked(real.trim_matches('/'), &rows(&dry.stdout), &files);
            host.journal_verb("undo").exits(0);
            assert_eq!(host.changed(), None, "undo");
        }
    }
}

/// Directories that must grow, of each kind: the root, one in a piece without a chain, one that has a chain.
#[test]
fn directories_that_grow() {
    let dir = scratch();
    let image = dir.path().join("guest");
    let mut files = Seens::new();
    guest::bare_ntfs(&image, 16 << 20, 4096, |root| {
        for i in 0..150 {
            fs::write(root.join(format!("a file with a name of some length, number {i}")), vec![i as u8; 5000 + i])
                .unwrap();
        }
    });
    {
        let mount = Mount::ntfs(&image, 0, 0, "ro,streams_interface=windows");
        files.extend(guest::with_streams(&mount.dir));
    }
    for (into, fragments) in [("/", 1), ("/", 5), ("/Older folder", 1), ("/Older folder/below it", 5)] {
        let shape = Shape { unit: "4K", len: 96 << 20, fragments, partition: false };
        let host = Host::new(shape, &image);
        there_and_back(&host, into, &files);
        // Twice: what has grown once has a chain.
        let done = host.relink_into(into, &["--commit", "--json", "--journal"]);
        assert_ne!(done.code, 0, "a journal is there already");
        fs::remove_file(host.journal()).unwrap();
        let done = host.relink_into(into, &["--commit", "--json"]).exits(0);
        host.relinked(into.trim_start_matches('/'), &rows(&done.stdout), &files);
        host.exfat.place(&host.file, &image, "second.raw", 7);
        let journal = host.dir.path().join("second journal");
        let second = host.path("second.raw");
        let a = ["relink", &second, "--into", into, "--journal", journal.to_str().unwrap(), "--commit", "--json"];
        let again = rows(&unimage(a).exits(0).stdout);
        assert_eq!(host.fsck(), Vec::<String>::new());
        let mount = host.mount();
        for row in again.iter().filter(|r| r.kind == "file") {
            let path = mount.dir.join(into.trim_start_matches('/')).join(row.written.as_ref().unwrap());
            assert_eq!(sha256_file(&path), files[&row.path].sha, "{}", path.display());
        }
    }
}

#[test]
fn an_image_whose_end_was_never_written() {
    // Valid data that end in the middle of the image: what is behind reads as zeros, whatever lies there.
    let Guest { image, files } = guest::plain_fat(400);
    let host = Host::new(HOST, &image);
    let size = fs::metadata(&image).unwrap().len();
    let file = fs::File::options().read(true).write(true).open(&host.file).unwrap();
    let mut root = vec![0; 4096];
    let at = host.exfat.at(host.exfat.root);
    file.read_exact_at(&mut root, at).unwrap();
    let set = common::exfat::find_set(&root, exfat_support::host::IMAGE);
    // Behind the last byte of the guest that is not zero.
    let bytes = fs::read(&image).unwrap();
    let valid = bytes.iter().rposition(|b| *b != 0).unwrap() as u64 + 1;
    assert!(valid + (1 << 20) < size);
    root[set + 40..set + 48].copy_from_slice(&valid.to_le_bytes());
    common::exfat::seal(&mut root, set);
    file.write_all_at(&root, at).unwrap();
    // The clusters behind hold other bytes.
    let first = common::exfat::u32_in(&root, set + 52);
    let from = host.exfat.at(first) + valid;
    file.write_all_at(&vec![0xA5; 1 << 20], from).unwrap();
    drop(file);
    guest::copy_sparse(&host.file, &host.before);
    let rows = there_and_back(&host, "/out", &files);
    assert!(counts(&rows).0 > 200);
}

#[test]
fn slack_is_zeroed_or_kept_as_asked() {
    let Guest { image, files } = guest::small_windows();
    for (how, zero) in [("zero", true), ("keep", false)] {
        let host = Host::new(HOST, &image);
        let done = host.relink(&["--commit", "--json", "--slack", how]).exits(0);
        let rows = rows(&done.stdout);
        host.relinked("out", &rows, &below("p1", &files));
        let mut dirty = 0;
        for row in rows.iter().filter(|r| r.path.starts_with("p1/cut/") && r.kind == "file" && r.verdict == "link") {
            let path = format!("out/{}", row.written.as_ref().unwrap());
            dirty += usize::from(tail(&host, &path).iter().any(|b| *b != 0));
        }
        assert_eq!(dirty == 0, zero, "--slack {how}: {dirty} tails");
        host.journal_verb("undo").exits(0);
        assert_eq!(host.changed(), None);
    }
}

/// The bytes behind the end of a file in its last cluster, by `istat` of The Sleuth Kit.
fn tail(host: &Host, path: &str) -> Vec<u8> {
    let file = host.file.to_str().unwrap();
    let list = common::ok("fls", ["-r", "-p", "-u", "-f", "exfat", file]);
    let line = list.lines().find(|l| l.split('\t').nth(1) == Some(path)).unwrap();
    let inode = line.split(' ').nth(1).unwrap().trim_end_matches(':').to_owned();
    let inode = inode.split(':').next().unwrap();
    let stat = common::ok("istat", ["-f", "exfat", file, inode]);
    let size: u64 = stat.lines().find_map(|l| l.strip_prefix("Size: ")).unwrap().parse().unwrap();
    let sectors: Vec<u64> =
        stat.split("Sectors:").nth(1).unwrap().split_whitespace().map_while(|w| w.parse().ok()).collect();
    let last = (size - 1) / 512;
    let behind = host.exfat.cluster - (size - 1) % host.exfat.cluster - 1;
    let mut bytes = vec![0; behind as usize];
    let at = sectors[last as usize] * 512 + (size - 1) % 512 + 1;
    fs::File::open(file).unwrap().read_exact_at(&mut bytes, at).unwrap();
    bytes
}

#[test]
fn an_exfat_guest_on_a_fat_host() {
    use common::host::{Host, Place, Shape};
    let Guest { image, files } = guest::plain_exfat(400);
    let shape = Shape { width: 32, cluster_sectors: 8, len: 400 << 20, place: Place::Gpt, fragments: 30 };
    let host = Host::new(shape, &image);
    let done = host.relink(&["--commit", "--json"]).exits(0);
    let all = rows(&done.stdout);
    host.relinked(&all, &files);
    assert!(counts(&all).0 > 250, "{:?}", counts(&all));
    host.journal_verb("undo").exits(0);
    assert_eq!(host.changed(), None);
}

#[test]
fn nobody_takes_a_quarantined_volume_for_exfat() {
    // The power is cut in the middle: what stands then is kept out of by drivers and repair tools.
    let dir = scratch();
    let image = dir.path().join("guest");
    guest::tiny_ntfs(&image, 8 << 20, 4096);
    let host = Host::new(Shape { len: 64 << 20, ..HOST }, &image);
    let mut boot = fs::read(&host.file).unwrap();
    boot = unimage::fs::exfat::layout::closed(boot);
    let path = dir.path().join("closed");
    fs::write(&path, &boot).unwrap();
    let before = sha256(&boot);
    for args in [&["-y"][..], &["-p"], &["-a"], &["-n"]] {
        let out = common::run("fsck.exfat", [args, &[path.to_str().unwrap()]].concat());
        assert!(out.code >= 8, "{args:?}: {out}");
        assert_eq!(sha256_file(&path), before, "fsck.exfat {args:?} changed something");
    }
    let blkid = common::run("blkid", ["-p", path.to_str().unwrap()]);
    assert!(!blkid.stdout.contains("TYPE=\"exfat\""), "{blkid}");
    let on = common::Loop::attach(&path, 0, 0, false);
    let at = dir.path().join("m");
    fs::create_dir(&at).unwrap();
    let mount = common::run("mount.exfat-fuse", [on.device.to_str().unwrap(), at.to_str().unwrap()]);
    assert_ne!(mount.code, 0, "{mount}");
    assert_eq!(sha256_file(&path), before);
}

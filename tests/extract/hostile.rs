//! Images that mean harm: nothing outside of DEST, and bounded time and memory.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use super::support::{extract, names_in, with_method};
use crate::common::{self, UNIMAGE};
use crate::ext_support as ext;

/// Puts `to` in the place of `from` wherever it stands in an image; both have the same length.
#[track_caller]
fn patch(image: &Path, from: &[u8], to: &[u8]) -> usize {
    assert_eq!(from.len(), to.len());
    let mut bytes = fs::read(image).unwrap();
    let mut found = 0;
    let mut at = 0;
    while let Some(next) = bytes[at..].windows(from.len()).position(|w| w == from) {
        bytes[at + next..at + next + to.len()].copy_from_slice(to);
        at += next + to.len();
        found += 1;
    }
    assert!(found > 0, "{} is not in it", from.escape_ascii());
    fs::write(image, bytes).unwrap();
    found
}

/// Runs within a minute and a quarter of a GiB of memory.
fn bounded(args: &[&str]) -> common::Out {
    let start = Instant::now();
    let mut command = std::process::Command::new("prlimit");
    command.args(["--as=1073741824", UNIMAGE]).args(args);
    let out = common::output(&mut command);
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}: {out}", start.elapsed());
    assert!(out.code < 128 && !out.stderr.contains("panicked"), "{out}");
    out
}

/// A folder with `image`, where DEST will be `inner/out`, and canaries that a way out would hit.
struct Cage {
    dir: tempfile::TempDir,
    image: std::path::PathBuf,
    out: std::path::PathBuf,
}

impl Cage {
    fn new() -> Self {
        let dir = common::scratch();
        let (image, inner) = (dir.path().join("guest.raw"), dir.path().join("inner"));
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("canary"), b"alive").unwrap();
        fs::write(dir.path().join("canary"), b"alive").unwrap();
        let out = inner.join("out");
        Self { image, out, dir }
    }
    fn ext(args: &str, fill: impl FnOnce(&Path)) -> Self {
        let this = Self::new();
        ext::make(&this.image, 64, args);
        fill(ext::Mount::new(&this.image, "rw").path());
        this
    }
    #[track_caller]
    fn nothing_outside(&self) {
        let inner = self.dir.path().join("inner");
        for canary in [inner.join("canary"), self.dir.path().join("canary")] {
            assert_eq!(fs::read(&canary).unwrap(), b"alive", "{}", canary.display());
        }
        let want = |n: &[&str]| n.iter().map(|s| (*s).to_owned()).collect::<std::collections::BTreeSet<_>>();
        let mut there = names_in(&inner);
        // The log, where something failed.
        there.remove("out.jsonl.log");
        assert_eq!(there, want(&["canary", "out", "out.jsonl"]));
        assert_eq!(names_in(self.dir.path()), want(&["canary", "guest.raw", "inner"]));
    }
}

#[test]
fn names_that_lead_out() {
    let cage = Cage::ext("-t ext4 -O ^metadata_csum,^dir_index", |root| {
        for name in ["..|..|canary", "|etc|xyzzy1", "d.|canary", "aaaa|b", "qq"] {
            fs::write(root.join(name), name).unwrap();
        }
        fs::create_dir(root.join("dir")).unwrap();
        fs::write(root.join("dir/xx"), b"x").unwrap();
        fs::create_dir(root.join("zz")).unwrap();
    });
    patch(&cage.image, b"..|..|canary", b"../../canary");
    patch(&cage.image, b"|etc|xyzzy1", b"/etc/xyzzy1");
    patch(&cage.image, b"d.|canary", b"../canary");
    patch(&cage.image, b"aaaa|b", b"aaaa/b");
    // Names of two bytes with their length before them: a second `..`, which is a file here, and one with a NUL.
    patch(&cage.image, b"\x02\x01qq", b"\x02\x01..");
    patch(&cage.image, b"\x02\x01xx", b"\x02\x01a\0");
    patch(&cage.image, b"\x02\x02zz", b"\x02\x02..");
    let (said, rows) = extract(cage.image.to_str().unwrap(), &cage.out, &[]);
    assert!(said.code <= 1, "{said}");
    cage.nothing_outside();
    assert!(!Path::new("/etc/xyzzy1").exists());
    let written: Vec<_> = rows.values().filter_map(|r| r["written"].as_str()).collect();
    assert!(written.iter().all(|w| !w.split('/').any(|n| n == "..")), "{written:?}");
    // The contents were patched with the names. Those that could be listed are there, under a name that says what it was.
    let there = names_in(&cage.out);
    assert!(there.iter().any(|n| n.contains("%2F")), "{there:?}");
    let bytes: Vec<_> = there.iter().filter_map(|n| fs::read_to_string(cage.out.join(n)).ok()).collect();
    assert!(bytes.iter().any(|b| b == "../../canary") && bytes.iter().any(|b| b == "/etc/xyzzy1"), "{bytes:?}");
}

#[test]
fn a_link_and_then_a_file_through_it() {
    // Two entries of one name: a link to the folder above, and a directory with a file.
    let cage = Cage::ext("-t ext4 -O ^metadata_csum,^dir_index", |root| {
        std::os::unix::fs::symlink("..", root.join("evil1")).unwrap();
        fs::create_dir(root.join("evil2")).unwrap();
        fs::write(root.join("evil2/canary"), b"overwritten").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.join("twin1")).unwrap();
        fs::write(root.join("twin2"), b"overwritten").unwrap();
    });
    patch(&cage.image, b"\x05\x02evil2", b"\x05\x02evil1");
    patch(&cage.image, b"\x05\x01twin2", b"\x05\x01twin1");
    let passwd = fs::read("/etc/passwd").unwrap();
    for more in [&[][..], &["--overwrite"], &["--overwrite"]] {
        let manifest = cage.out.with_extension("jsonl");
        let mut args = vec![
            "extract",
            cage.image.to_str().unwrap(),
            cage.out.to_str().unwrap(),
            "--manifest",
            manifest.to_str().unwrap(),
        ];
        args.extend(more);
        let said = bounded(&args);
        assert!(said.code <= 1, "{said}");
        cage.nothing_outside();
        assert_eq!(fs::read("/etc/passwd").unwrap(), passwd);
    }
    // Neither took the other's place.
    let there = names_in(&cage.out);
    assert!(there.contains("evil1") && there.contains("twin1"), "{there:?}");
    assert_eq!(there.iter().filter(|n| n.starts_with("evil") || n.starts_with("twin")).count(), 4, "{there:?}");
}

#[test]
fn a_link_that_was_in_the_destination_is_not_followed() {
    let cage = Cage::ext("-t ext4", |root| {
        fs::create_dir(root.join("sub")).unwrap();
        fs::write(root.join("sub/canary"), b"overwritten").unwrap();
        fs::write(root.join("file"), b"overwritten").unwrap();
    });
    fs::create_dir(&cage.out).unwrap();
    std::os::unix::fs::symlink("..", cage.out.join("sub")).unwrap();
    std::os::unix::fs::symlink("../canary", cage.out.join("file")).unwrap();
    let (said, rows) = extract(cage.image.to_str().unwrap(), &cage.out, &[]);
    said.exits(1);
    cage.nothing_outside();
    assert_eq!(rows["file"]["reason"], "exists");
    assert_eq!(
        (rows["sub"]["method"].as_str(), rows["sub/canary"]["reason"].as_str()),
        (Some("failed"), Some("no-directory"))
    );
    let (said, _) = extract(cage.image.to_str().unwrap(), &cage.out, &["--overwrite"]);
    said.exits(0);
    cage.nothing_outside();
    assert_eq!(fs::read(cage.out.join("sub/canary")).unwrap(), b"overwritten");
    assert!(fs::symlink_metadata(cage.out.join("file")).unwrap().is_file());
}

#[test]
fn ten_thousand_names_of_one_file() {
    let cage = Cage::ext("-t ext4 -O ^metadata_csum", |root| {
        fs::write(root.join("one"), vec![7; 5000]).unwrap();
        for i in 0..10_000 {
            fs::hard_link(root.join("one"), root.join(format!("name {i}"))).unwrap();
        }
    });
    let (said, rows) = extract(cage.image.to_str().unwrap(), &cage.out, &["--hash", "sha256"]);
    said.exits(0);
    cage.nothing_outside();
    assert_eq!(fs::metadata(cage.out.join("one")).unwrap().nlink(), 10_001);
    assert_eq!(with_method(&rows, "hardlink").len(), 10_000);
}

#[test]
fn a_file_of_sixteen_exbibytes() {
    let cage = Cage::ext("-t ext4 -O ^metadata_csum", |root| {
        fs::write(root.join("big"), b"small").unwrap();
        fs::File::create(root.join("bigger")).unwrap().set_len(3 << 40).unwrap();
        fs::write(root.join("other"), b"other").unwrap();
    });
    common::ok("debugfs", ["-w", "-R", "set_inode_field big size 0xfffffffffffff000", cage.image.to_str().unwrap()]);
    let manifest = cage.out.with_extension("jsonl");
    let said = bounded(&[
        "extract",
        cage.image.to_str().unwrap(),
        cage.out.to_str().unwrap(),
        "--manifest",
        manifest.to_str().unwrap(),
        "--hash",
        "sha256,md5",
    ]);
    assert!(said.code <= 1, "{said}");
    cage.nothing_outside();
    let rows = super::support::rows(&manifest);
    assert!(!rows["big"]["method"].is_null());
    assert_eq!(fs::metadata(cage.out.join("bigger")).unwrap().size(), 3 << 40);
    assert!(fs::metadata(cage.out.join("bigger")).unwrap().blocks() < 64);
    assert_eq!(rows["bigger"]["lost"][0], "hash");
    assert_eq!(fs::read(cage.out.join("other")).unwrap(), b"other");
}

#[test]
fn a_directory_that_contains_itself() {
    let cage = Cage::ext("-t ext4 -O ^metadata_csum,^dir_index", |root| {
        fs::create_dir_all(root.join("a/b/c")).unwrap();
        fs::write(root.join("a/b/c/file"), b"file").unwrap();
        fs::create_dir(root.join("a/b/c/loop")).unwrap();
        fs::create_dir(root.join("a/b/c/root")).unwrap();
    });
    let number = |path: &str| {
        let said = common::ok("debugfs", ["-R", &format!("stat {path}"), cage.image.to_str().unwrap()]);
        said.split_whitespace().nth(1).unwrap().parse::<u32>().unwrap()
    };
    let (a, in_loop, in_root) = (number("/a"), number("/a/b/c/loop"), number("/a/b/c/root"));
    // The entries `loop` and `root` lead to `a` and to the root itself.
    for (name, from, to) in [(&b"loop"[..], in_loop, a), (b"root", in_root, 2)] {
        let entry = |n: u32| [&n.to_le_bytes()[..], &[0xff, 0xff, 4, 2], name].concat();
        let bytes = fs::read(&cage.image).unwrap();
        let want = entry(from);
        let at = bytes.windows(12).position(|w| w[..4] == want[..4] && w[6..] == want[6..]).unwrap();
        fs::File::options().write(true).open(&cage.image).unwrap().write_all_at(&to.to_le_bytes(), at as u64).unwrap();
    }
    let manifest = cage.out.with_extension("jsonl");
    let said = bounded(&[
        "extract",
        cage.image.to_str().unwrap(),
        cage.out.to_str().unwrap(),
        "--manifest",
        manifest.to_str().unwrap(),
    ]);
    assert!(said.code <= 1, "{said}");
    cage.nothing_outside();
    assert_eq!(fs::read(cage.out.join("a/b/c/file")).unwrap(), b"file");
}

/// FAT: names are free text there, and a directory's clusters may be anybody's.
#[test]
fn fat_directories_that_mean_harm() {
    let cage = Cage::new();
    let image = cage.image.to_str().unwrap();
    fs::File::create(&cage.image).unwrap().set_len(20 << 20).unwrap();
    common::ok("mkfs.fat", ["-F", "16", "-s", "4", image]);
    let file = cage.dir.path().join("f");
    fs::write(&file, b"contents").unwrap();
    for name in ["::/AAAAAAAA.TXT", "::/BBBBBBBB.TXT"] {
        common::ok("mcopy", ["-i", image, file.to_str().unwrap(), name]);
    }
    fs::remove_file(&file).unwrap();
    common::ok("mmd", ["-i", image, "::/LOOPDIR", "::/LOOPDIR/INNER"]);
    patch(&cage.image, b"AAAAAAAATXT", b"../../XX   ");
    patch(&cage.image, b"BBBBBBBBTXT", b"/ETC/XY    ");
    // The first cluster of INNER becomes that of LOOPDIR.
    let bytes = fs::read(&cage.image).unwrap();
    let find = |name: &[u8]| bytes.windows(11).position(|w| w == name).unwrap();
    let (outer, inner) = (find(b"LOOPDIR    "), find(b"INNER      "));
    let cluster = [bytes[outer + 26], bytes[outer + 27]];
    fs::File::options().write(true).open(&cage.image).unwrap().write_all_at(&cluster, inner as u64 + 26).unwrap();
    let manifest = cage.out.with_extension("jsonl");
    let said = bounded(&["extract", image, cage.out.to_str().unwrap(), "--manifest", manifest.to_str().unwrap()]);
    assert!(said.code <= 1, "{said}");
    cage.nothing_outside();
    assert_eq!(super::support::rows(&manifest)["*"]["type"], "summary");
    assert!(names_in(&cage.out).iter().any(|n| n.contains("%2F")), "{:?}", names_in(&cage.out));
}

/// Bytes of directories and inodes turned at random: no panic, no end of time, nothing outside.
#[test]
fn damage_at_random() {
    let cage = Cage::ext("-t ext4 -O ^metadata_csum", |root| {
        ext::fill(root, ext::Filling { names: 50, ..ext::Filling::default() })
    });
    let good = fs::read(&cage.image).unwrap();
    let used: Vec<usize> =
        (0..good.len() / 4096).filter(|b| good[b * 4096..][..4096].iter().any(|x| *x != 0)).collect();
    let mut dice = ext::Random(0x9876_5432_1fed_cba9);
    for _ in 0..if common::long() { 150 } else { 12 } {
        let mut bytes = good.clone();
        for _ in 0..200 {
            // Mostly in the first blocks: tables of inodes and directories.
            let block = used[dice.below(used.len().min(600) as u64) as usize];
            bytes[block * 4096 + dice.below(4096) as usize] = dice.below(256) as u8;
        }
        fs::write(&cage.image, &bytes).unwrap();
        let said = bounded(&[
            "extract",
            cage.image.to_str().unwrap(),
            cage.out.to_str().unwrap(),
            "--manifest",
            cage.out.with_extension("jsonl").to_str().unwrap(),
        ]);
        assert!([0, 1, 3].contains(&said.code), "{said}");
        if cage.out.exists() && cage.out.with_extension("jsonl").exists() {
            cage.nothing_outside();
        }
        let _ = common::run("chmod", ["-R", "u+rwx", cage.out.to_str().unwrap()]);
        let _ = fs::remove_dir_all(&cage.out);
        let _ = fs::remove_file(cage.out.with_extension("jsonl"));
        let _ = fs::remove_file(cage.out.with_extension("jsonl.log"));
    }
}

//! ISO 9660 as guest: what genisoimage and xorriso write, side by side with what they were given, with isoinfo, xorriso and The Sleuth Kit.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use common::{Noise, UNIMAGE, ok, run, scratch, sha256};

/// Files of all kinds of names and sizes, below `root`.
fn fill(root: &Path) {
    let mut noise = Noise::new(11);
    fs::create_dir_all(root.join("deep/a/b/c/d/e/f/g/h/i/j")).unwrap();
    fs::create_dir(root.join("empty folder")).unwrap();
    fs::create_dir(root.join("many")).unwrap();
    for i in 0..300 {
        let size = noise.below(9000) as usize;
        fs::write(root.join(format!("many/file number {i:03} of a longer name.data")), noise.bytes(size)).unwrap();
    }
    fs::write(root.join("deep/a/b/c/d/e/f/g/h/i/j/last.txt"), b"deep").unwrap();
    fs::write(root.join("Größe ß 日本.txt"), noise.bytes(5000)).unwrap();
    fs::write(root.join("empty"), b"").unwrap();
    fs::write(root.join("UPPER.TXT"), b"upper").unwrap();
    fs::write(root.join("exact.bin"), noise.bytes(4096)).unwrap();
    fs::write(root.join("big.bin"), noise.bytes(3 << 20)).unwrap();
}

/// SHA-256 by path of all files below a folder.
fn sums(root: &Path) -> BTreeMap<String, String> {
    fn below(root: &Path, dir: &Path, out: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            if meta.is_dir() {
                below(root, &path, out);
            } else if meta.is_file() {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                out.insert(name, sha256(&fs::read(&path).unwrap()));
            }
        }
    }
    let mut out = BTreeMap::new();
    below(root, root, &mut out);
    out
}

/// The rows of `ls -R --json`, by path.
fn rows(iso: &Path, code: i32) -> BTreeMap<String, serde_json::Value> {
    let out = run(UNIMAGE, ["ls".as_ref(), "-R".as_ref(), "--json".as_ref(), iso.as_os_str()]).exits(code);
    let (_, rows, _) = common::host::json_lines(&out.stdout);
    rows.into_iter().map(|r| (r["path"].as_str().unwrap().to_owned(), r)).collect()
}

fn cat(iso: &Path, path: &str) -> Vec<u8> {
    let out =
        std::process::Command::new(UNIMAGE).arg("cat").arg(format!("{}//{path}", iso.display())).output().unwrap();
    assert!(out.status.success(), "{path}: {}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

/// Every file of `root` is in the image by its own name, with its bytes.
fn same_files(iso: &Path, root: &Path, rows: &BTreeMap<String, serde_json::Value>) {
    let wanted = sums(root);
    let files: Vec<&String> = rows.iter().filter(|(_, r)| r["kind"] == "file").map(|(p, _)| p).collect();
    assert_eq!(files, wanted.keys().collect::<Vec<_>>());
    // A process for each would take minutes: of many alike, some.
    for (path, sum) in wanted.iter().filter(|(p, _)| !p.starts_with("many/") || p.contains("7")) {
        assert_eq!(&sha256(&cat(iso, path)), sum, "{path}");
        assert_eq!(rows[path]["size"].as_u64(), Some(fs::metadata(root.join(path)).unwrap().len()), "{path}");
    }
}

#[test]
fn rock_ridge() {
    let dir = scratch();
    let root = dir.path().join("in");
    fs::create_dir(&root).unwrap();
    fill(&root);
    symlink("../many/../UPPER.TXT", root.join("deep/link")).unwrap();
    symlink("/an/absolute/target", root.join("absolute")).unwrap();
    fs::write(root.join("n".repeat(240)), b"a long name").unwrap();
    ok("mkfifo", [root.join("pipe")]);
    ok("mknod", ["-m", "640", root.join("device").to_str().unwrap(), "c", "5", "300"]);
    std::os::unix::fs::chown(root.join("UPPER.TXT"), Some(1234), Some(70_000)).unwrap();
    fs::set_permissions(root.join("UPPER.TXT"), fs::Permissions::from_mode(0o4751)).unwrap();
    ok("touch", ["-d", "2011-12-13T14:15:16Z", root.join("UPPER.TXT").to_str().unwrap()]);
    let iso = dir.path().join("rock.iso");
    for joliet in [false, true] {
        let more: &[&str] = if joliet { &["-J", "-joliet-long"] } else { &[] };
        let args = ["-quiet", "-R", "-D", "-iso-level", "3", "-V", "ROCK_VOLUME", "-o", iso.to_str().unwrap()];
        ok("genisoimage", args.iter().chain(more).copied().chain([root.to_str().unwrap()]));
        let rows = rows(&iso, 0);
        same_files(&iso, &root, &rows);
        let upper = &rows["UPPER.TXT"];
        assert_eq!(upper["mtime"].as_str(), Some("2011-12-13T14:15:16Z"), "{upper}");
        assert_eq!((upper["uid"].as_u64(), upper["gid"].as_u64()), (Some(1234), Some(70_000)));
        for path in ["deep/link", "absolute"] {
            let target = fs::read_link(root.join(path)).unwrap();
            assert_eq!(rows[path]["kind"], "symlink", "{path}");
            assert_eq!(rows[path]["target"].as_str(), target.to_str(), "{path}");
        }
        assert_eq!((&rows["pipe"]["kind"], &rows["device"]["kind"]), (&"fifo".into(), &"device".into()));
        // The other readers: of every path, and of what The Sleuth Kit sees, which knows no names of Rock Ridge.
        let listed = ok("isoinfo", ["-R", "-f", "-i", iso.to_str().unwrap()]);
        let mut paths: Vec<&str> = listed.lines().map(|l| l.trim_start_matches('/')).collect();
        paths.sort_unstable();
        assert_eq!(rows.keys().map(String::as_str).collect::<Vec<_>>(), paths);
        let listed = ok("fls", ["-r", "-p", "-f", "iso9660", iso.to_str().unwrap()]);
        let dirs = listed.lines().filter(|l| l.starts_with("d/d") && !l.contains('$')).count();
        assert_eq!(rows.values().filter(|r| r["kind"] == "dir").count(), dirs, "{listed}");
        let meta = fs::metadata(root.join("UPPER.TXT")).unwrap();
        assert_eq!(upper["mode"].as_str(), Some("4751"));
        let seen = ok("xorriso", ["-indev", iso.to_str().unwrap(), "-lsl", "/UPPER.TXT"]);
        assert!(seen.contains("-rwsr-x--x") && meta.mode() & 0o7777 == 0o4751, "{seen}");
    }
}

#[test]
fn rock_ridge_with_directories_that_lie_elsewhere() {
    let dir = scratch();
    let root = dir.path().join("in");
    fs::create_dir(&root).unwrap();
    fill(&root);
    let iso = dir.path().join("deep.iso");
    // Without -D, what is deeper than eight levels is moved to rr_moved.
    ok("genisoimage", ["-quiet", "-R", "-o", iso.to_str().unwrap(), root.to_str().unwrap()]);
    let mut rows = rows(&iso, 0);
    assert!(rows.remove("rr_moved").is_some_and(|r| r["kind"] == "dir"));
    same_files(&iso, &root, &rows);
}

#[test]
fn joliet_and_plain_names() {
    let dir = scratch();
    let root = dir.path().join("in");
    fs::create_dir(&root).unwrap();
    fill(&root);
    fs::remove_dir_all(root.join("deep")).unwrap();
    let iso = dir.path().join("joliet.iso");
    let path = iso.to_str().unwrap();
    ok("genisoimage", ["-quiet", "-J", "-joliet-long", "-V", "Längerer Name", "-o", path, root.to_str().unwrap()]);
    same_files(&iso, &root, &rows(&iso, 0));
    assert!(ok(UNIMAGE, ["info", path]).contains("iso9660 \"Längerer Name\""));
    // What one tree hides is told.
    ok("genisoimage", ["-quiet", "-J", "-joliet-long", "-hide-joliet", "big.bin", "-o", path, root.to_str().unwrap()]);
    let out = run(UNIMAGE, ["ls", "-R", path]).exits(1);
    assert!(out.stderr.contains("1 files are only in the plain tree"), "{out}");
    // Neither: as the standard has them.
    ok("genisoimage", ["-quiet", "-iso-level", "1", "-o", path, root.to_str().unwrap()]);
    let rows = rows(&iso, 0);
    let listed = ok("isoinfo", ["-f", "-i", path]);
    let mut names: Vec<String> = listed
        .lines()
        .map(|l| l.trim_start_matches('/').trim_end_matches(";1").trim_end_matches('.').to_owned())
        .collect();
    names.sort();
    let mine: Vec<String> = rows.keys().cloned().collect();
    assert_eq!(mine, names);
    assert_eq!(cat(&iso, "UPPER.TXT"), b"upper");
}

#[test]
fn files_of_several_extents_and_disks_that_boot_from_elsewhere() {
    let dir = scratch();
    let root = dir.path().join("in");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("small"), b"small").unwrap();
    // A target that goes on in another area: genisoimage writes such a one wrongly.
    let long = "x/".repeat(200) + "end";
    symlink(&long, root.join("long link")).unwrap();
    // More than 4 GiB in one file: two records. A sparse one costs no disk; neither does the image.
    let big = fs::File::create(root.join("huge")).unwrap();
    big.set_len((4 << 30) + 5_000_000).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&big, b"in the second record", (4 << 30) + 4_000_000).unwrap();
    let iso = dir.path().join("huge.iso");
    let path = iso.to_str().unwrap();
    let pipe = format!(
        "xorriso -as mkisofs -quiet -R -iso-level 3 {} | dd of={path} conv=sparse bs=64k status=none",
        root.display()
    );
    ok("sh", ["-c", &pipe]);
    let rows = rows(&iso, 0);
    assert_eq!(rows["long link"]["target"].as_str(), Some(&*long));
    assert_eq!(rows["huge"]["size"].as_u64(), Some((4 << 30) + 5_000_000));
    let out =
        ok("sh", ["-c", &format!("{UNIMAGE} cat {path}//huge | tail -c +{} | head -c 20", (4u64 << 30) + 4_000_001)]);
    assert_eq!(out, "in the second record");
    // A table over it, as for a USB stick.
    fs::remove_file(root.join("huge")).unwrap();
    let hybrid = dir.path().join("hybrid.iso");
    let path = hybrid.to_str().unwrap();
    ok("xorriso", ["-as", "mkisofs", "-quiet", "-R", "-o", path, "--protective-msdos-label", root.to_str().unwrap()]);
    let out = run(UNIMAGE, ["ls", path]);
    assert!(out.stdout.contains("small"), "{out}");
}

#[test]
fn any_damage_is_survived() {
    let dir = scratch();
    let root = dir.path().join("in");
    fs::create_dir(&root).unwrap();
    fs::create_dir_all(root.join("a/b")).unwrap();
    for i in 0..40 {
        fs::write(root.join(format!("a/file {i}")), vec![i; 100 * usize::from(i)]).unwrap();
    }
    symlink("some/where", root.join("a/b/link")).unwrap();
    let iso = dir.path().join("x.iso");
    ok("genisoimage", ["-quiet", "-R", "-J", "-o", iso.to_str().unwrap(), root.to_str().unwrap()]);
    let sound = fs::read(&iso).unwrap();
    let mut noise = Noise::new(3);
    let used: Vec<usize> = (0..sound.len()).filter(|at| *at > 32_768 && sound[*at] != 0).take(14_000).collect();
    for _ in 0..600 {
        let mut bytes = sound.clone();
        for _ in 0..=noise.below(4) {
            bytes[used[noise.below(used.len() as u64) as usize]] = noise.below(256) as u8;
        }
        if noise.below(8) == 0 {
            bytes.truncate(noise.below(sound.len() as u64) as usize);
        }
        fs::write(&iso, &bytes).unwrap();
        let address = unimage::stack::Address::parse(iso.as_os_str()).unwrap();
        let Ok(stack) = unimage::stack::open(&address, Default::default()) else { continue };
        for guest in &stack.last().unwrap().guests {
            let (Ok(tree), Ok(fs)) = (guest.tree(), guest.fs()) else { continue };
            for (id, _) in tree.objects() {
                for stream in tree.streams(id) {
                    let _ = fs.open(&tree, stream);
                }
            }
            assert!(tree.order().len() < 20_000);
        }
    }
}

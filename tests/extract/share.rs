//! Sharing blocks on XFS and btrfs, as FIEMAP and the file systems' own checkers see it.

use std::fs;
use std::path::Path;

use super::support::{Volume, extract, shared_bytes, with_method, written};
use crate::common::{self, guest, same_tree};
use crate::ext_support as ext;

pub fn check(volume: &Volume) {
    volume.unmount();
    let image = volume.image.to_str().unwrap();
    match common::run("blkid", ["-o", "value", "-s", "TYPE", image]).stdout.trim() {
        "xfs" => common::run("xfs_repair", ["-n", image]).exits(0),
        "btrfs" => common::run("btrfs", ["check", "--force", image]).exits(0),
        other => panic!("{other}"),
    };
}

/// An ext4 guest with large and small files, aligned to 4 KiB.
pub fn ext_guest(image: &Path) {
    ext::make(image, 160, "-t ext4 -b 4096");
    let mount = ext::Mount::new(image, "rw");
    let mut noise = common::Noise::new(9);
    for i in 0..6 {
        fs::write(mount.path().join(format!("large {i}")), noise.bytes((3 << 20) + 5000 * i)).unwrap();
    }
    for i in 0..200 {
        fs::write(mount.path().join(format!("small {i}")), noise.bytes(i * 97)).unwrap();
    }
    let sparse = fs::File::create(mount.path().join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, &noise.bytes(2 << 20), 20 << 20).unwrap();
    sparse.set_len(40 << 20).unwrap();
}

fn shares(volume: &Volume) {
    let image = volume.dir.join("guest.raw");
    ext_guest(&image);
    let before = common::sha256_file(&image);
    let want = { common::tree(ext::Mount::new(&image, "ro").path()) };
    let out = volume.dir.join("out");
    let (said, rows) = extract(image.to_str().unwrap(), &out, &["--hash", "sha256"]);
    said.exits(0);
    same_tree(&want, &common::tree(&out), "contents");
    common::ok("sync", [""; 0]);
    for (path, seen) in want.iter().filter(|(_, s)| s.size > 1 << 20) {
        let (shared, all) = shared_bytes(&out.join(path));
        assert!(shared * 100 >= all * 95, "{path}: {shared} of {all} bytes are shared");
        let row = &rows[path];
        assert_eq!(row["method"], "reflink", "{row}");
        assert_eq!(row["sha256"], seen.sha.as_str());
        let sum = row["shared"].as_u64().unwrap() + row["copied"].as_u64().unwrap();
        assert!(sum == seen.size || path == "sparse", "{row}");
    }
    assert_eq!(common::sha256_file(&image), before, "the image");

    // Only what can be shared, and everything that can: a guest of this kind has nothing else.
    let out = volume.dir.join("always");
    let (said, rows) = extract(image.to_str().unwrap(), &out, &["--link", "always"]);
    said.exits(0);
    same_tree(&want, &common::tree(&out), "--link always");
    assert_eq!(rows["*"]["copied"], 0);
    // None.
    let out = volume.dir.join("never");
    let (said, rows) = extract(image.to_str().unwrap(), &out, &["--link", "never"]);
    said.exits(0);
    assert_eq!(rows["*"]["shared"], 0);
    same_tree(&want, &common::tree(&out), "--link never");
    common::ok("sync", [""; 0]);
    for path in want.keys().filter(|p| p.starts_with("large")) {
        assert_eq!(shared_bytes(&out.join(path)).0, 0, "{path}");
    }
    check(volume);
}

#[test]
fn on_xfs() {
    shares(&Volume::xfs(600));
}

#[test]
fn on_btrfs() {
    shares(&Volume::btrfs(900));
}

/// Clusters of 4 KiB in a GPT image; resident files, compressed files, streams; a guest whose partition lies askew.
#[test]
fn windows_guests_on_xfs_and_btrfs() {
    let guest = guest::small_windows();
    for volume in [Volume::xfs(600), Volume::btrfs(900)] {
        let image = volume.dir.join("guest.raw");
        guest::copy_sparse(&guest.image, &image);
        let out = volume.dir.join("out");
        let (said, rows) =
            extract(&format!("{}//p1", image.display()), &out, &["--streams", "files", "--hash", "sha256"]);
        assert!(said.code <= 1, "{said}");
        common::ok("sync", [""; 0]);
        let mut checked = 0;
        for (path, row) in rows.iter().filter(|(_, r)| r["kind"] == "file" && !r["written"].is_null()) {
            let Some(seen) = guest.files.get(path) else { continue };
            assert_eq!(row["sha256"], seen.sha.as_str(), "{row}");
            assert_eq!(common::sha256_file(&out.join(written(row))), seen.sha, "{row}");
            checked += 1;
        }
        assert!(checked > 200, "{checked}");
        assert!(with_method(&rows, "reflink").len() > 50 && with_method(&rows, "copy").len() > 10);
        let resident = rows.values().filter(|r| r["reason"] == "resident").count();
        assert!(resident > 10, "{resident}");

        let out = volume.dir.join("always");
        let (said, rows) = extract(&format!("{}//p1", image.display()), &out, &["--link", "always"]);
        said.exits(1);
        assert_eq!(rows["*"]["copied"], 0);
        for (path, row) in &rows {
            let there = !row["written"].is_null() && out.join(written(row)).symlink_metadata().is_ok();
            match row["reason"].as_str() {
                Some("not-shareable") => assert!(row["method"] == "skipped" && !out.join(path).exists(), "{path}"),
                Some("empty") | None if path != "*" => assert!(there, "{path}: {row}"),
                _ => {}
            }
        }
        check(&volume);
    }
}

#[test]
fn what_does_not_lie_on_blocks_is_copied_beside_what_does() {
    // Blocks of 1 KiB: some lie right by chance, some stretches in their middle.
    let volume = Volume::xfs(600);
    let image = volume.dir.join("guest.raw");
    ext::make(&image, 100, "-t ext4 -b 1024");
    {
        let mount = ext::Mount::new(&image, "rw");
        let mut noise = common::Noise::new(4);
        for i in 0..40 {
            fs::write(mount.path().join(format!("file {i}")), noise.bytes(300_000 + i * 1024)).unwrap();
        }
    }
    let want = { common::tree(ext::Mount::new(&image, "ro").path()) };
    let out = volume.dir.join("out");
    let (said, rows) = extract(image.to_str().unwrap(), &out, &["--hash", "blake3"]);
    said.exits(0);
    same_tree(&want, &common::tree(&out), "contents");
    let mixed = rows.values().filter(|r| r["shared"].as_u64() > Some(0) && r["copied"].as_u64() > Some(4096));
    assert!(mixed.count() >= 1, "no file that is shared in part");
    assert!(with_method(&rows, "copy").iter().all(|p| rows[*p]["reason"] == "misaligned"));
}

#[test]
fn why_nothing_is_shared_is_said_once() {
    let dir = common::scratch();
    let image = dir.path().join("guest.raw");
    ext_guest(&image);
    // The destination is another file system, that could.
    let volume = Volume::xfs(600);
    let out = volume.dir.join("out");
    let (said, rows) = extract(image.to_str().unwrap(), &out, &[]);
    let said = said.exits(0);
    assert_eq!(said.stdout.matches("different file systems").count(), 1, "{said}");
    assert!(rows["*"]["not_shared"].as_str().unwrap().contains("different file systems"));
    let refused = volume.dir.join("always");
    let said =
        common::unimage(["extract", image.to_str().unwrap(), refused.to_str().unwrap(), "--link", "always"]).exits(4);
    assert!(said.stderr.contains("different file systems"), "{said}");
    assert!(fs::read_dir(&refused).map_or(true, |mut d| d.next().is_none()), "something was written");
    // On btrfs a file without copy-on-write can't be shared with one that has it.
    let volume = Volume::btrfs(900);
    let nocow = volume.dir.join("nocow.raw");
    fs::File::create(&nocow).unwrap();
    common::ok("chattr", ["+C", nocow.to_str().unwrap()]);
    fs::copy(&image, volume.dir.join("copy")).unwrap();
    common::ok(
        "dd",
        [
            &format!("if={}", image.display()),
            &format!("of={}", nocow.display()),
            "bs=1M",
            "conv=notrunc",
            "status=none",
        ],
    );
    let out = volume.dir.join("out");
    let (said, rows) = extract(nocow.to_str().unwrap(), &out, &[]);
    said.exits(0);
    assert!(rows["*"]["not_shared"].as_str().unwrap().contains("nodatacow"), "{}", rows["*"]);
}

//! What is kept, compared with the kernel's mount of the same guest, allocated blocks included.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::support::{extract, kernel_view, shape, with_method};
use crate::common::{self, guest, same_tree};
use crate::ext_support::{self as ext, Filling};

/// Stops the test unless the tree at `got` is that at `want`, by the kernel: all but change times, birth times and inode numbers.
#[track_caller]
fn same(want: &Path, got: &Path) {
    ext::same(&kernel_view(want), &kernel_view(got));
    let (a, b) = (shape(want), shape(got));
    assert_eq!(a.links, b.links, "names of one file");
    let unit = fs::metadata(got).unwrap().blksize();
    for (path, blocks) in &b.blocks {
        // Not more than the guest has, but for the destination's larger blocks at each edge of a hole.
        let guest = a.blocks[path];
        let size = fs::symlink_metadata(got.join(std::ffi::OsStr::new(std::str::from_utf8(path).unwrap_or(""))))
            .map_or(0, |m| m.size());
        let most = guest.next_multiple_of(unit) + guest / 512 * unit.min(8 * 512) / 8 + 2 * unit;
        assert!(
            *blocks <= most.min(size + 3 * unit).max(3 * unit),
            "{}: {blocks} bytes allocated, {guest} in the guest",
            path.escape_ascii()
        );
    }
}

#[test]
fn everything_that_an_ext4_guest_has() {
    for (args, how) in [
        ("-t ext4 -b 4096 -O metadata_csum", Filling { big_values: false, preallocate: true, names: 500 }),
        ("-t ext4 -b 1024 -I 256 -O inline_data", Filling { big_values: false, preallocate: true, names: 300 }),
        ("-t ext2 -b 1024", Filling { big_values: false, preallocate: false, names: 100 }),
    ] {
        let dir = common::scratch();
        let image = dir.path().join("guest.raw");
        ext::make(&image, 200, args);
        {
            let mount = ext::Mount::new(&image, "rw");
            ext::fill(mount.path(), how);
        }
        let before = common::sha256_file(&image);
        let out = dir.path().join("out");
        let (said, rows) = extract(image.to_str().unwrap(), &out, &["--hash", "sha256"]);
        said.exits(0);
        let lossy: Vec<_> = rows.iter().filter(|(_, r)| !r["lost"].is_null()).map(|(p, _)| p.as_str()).collect();
        assert!(lossy.is_empty(), "{args}: {lossy:?}");
        let mount = ext::Mount::new(&image, "ro,noatime");
        same(mount.path(), &out);
        drop(mount);
        let root = fs::metadata(&out).unwrap();
        assert_eq!(root.mode() & 0o7777, 0o755, "the root's own permissions");
        for (path, row) in rows.iter().filter(|(_, r)| r["kind"] == "file" && r["method"] == "copy") {
            assert!(row["sha256"].as_str().unwrap().len() == 64, "{path}");
        }
        common::unimage(["verify", out.with_extension("jsonl").to_str().unwrap(), out.to_str().unwrap()]).exits(0);
        assert_eq!(common::sha256_file(&image), before, "the image");
    }
}

#[test]
fn an_ntfs_guest_as_ntfs_3g_shows_it() {
    let guest = guest::small_windows();
    let dir = common::scratch();
    let out = dir.path().join("out");
    let (said, rows) = extract(guest.image.to_str().unwrap(), &out, &["--hash", "sha256", "--streams", "files"]);
    assert!(said.code <= 1, "{said}");
    let mut got = common::tree(&out.join("p1"));
    let mut want = guest.files.clone();
    // Streams are files beside theirs; ntfs-3g has them behind a colon.
    for (path, row) in rows.iter().filter(|(_, r)| r["kind"] == "stream") {
        let written = row["written"].as_str().unwrap().strip_prefix("p1/").unwrap();
        let path = path.strip_prefix("p1/").unwrap();
        let seen = want.remove(path).unwrap_or_else(|| panic!("ntfs-3g has no {path}"));
        want.insert(written.into(), seen);
    }
    for (path, row) in &rows {
        if let Some(written) = row["written"].as_str().filter(|w| *w != path && row["kind"] == "file") {
            let (path, written) = (path.strip_prefix("p1/").unwrap(), written.strip_prefix("p1/").unwrap());
            let seen = want.remove(path).unwrap();
            want.insert(written.into(), seen);
        }
    }
    // What is left out has a reason of its own.
    for (path, row) in rows.iter().filter(|(_, r)| r["method"] == "skipped") {
        assert!(["special", "unreadable", "fs-encrypted"].contains(&row["reason"].as_str().unwrap()), "{path}: {row}");
        want.remove(path.strip_prefix("p1/").unwrap());
    }
    for seen in got.values_mut().chain(want.values_mut()) {
        if seen.mtime == 0 {
            seen.mtime = 0;
        }
    }
    same_tree(&want, &got, "against ntfs-3g");
    let times = want.iter().filter(|(p, w)| w.mtime != 0 && got[*p].mtime != w.mtime).count();
    assert_eq!(times, 0, "times of modification");

    // As attributes: those that fit; the others are said.
    let out = dir.path().join("attributes");
    let (said, rows) = extract(guest.image.to_str().unwrap(), &out, &[]);
    said.exits(1);
    let (mut kept, mut large) = (0, 0);
    for (path, row) in rows.iter().filter(|(_, r)| r["kind"] == "stream") {
        let (_, stream) = path.rsplit_once(':').unwrap();
        if row["method"] == "xattr" {
            let file = out.join(row["written"].as_str().unwrap());
            let mut value = vec![0; 65536];
            let n = rustix::fs::lgetxattr(&file, format!("user.{stream}"), &mut value[..]).unwrap();
            assert_eq!(common::sha256(&value[..n]), guest.files[path.strip_prefix("p1/").unwrap()].sha, "{path}");
            kept += 1;
        } else {
            assert_eq!(
                (row["method"].as_str(), row["reason"].as_str()),
                (Some("skipped"), Some("stream-too-large")),
                "{path}"
            );
            large += 1;
        }
    }
    assert!(kept >= 3 && large >= 1, "{kept} {large}");
}

#[test]
fn a_fat_guest_and_a_fat_destination() {
    let dir = common::scratch();
    let image = dir.path().join("guest.raw");
    let want = guest::fat(&image, 40 << 20, 16, 4);
    let out = dir.path().join("out");
    let (said, rows) = extract(image.to_str().unwrap(), &out, &[]);
    said.exits(0);
    same_tree(&want, &common::tree(&out), "against what mtools were given");
    assert!(with_method(&rows, "failed").is_empty());

    // Names that Win32 has not, onto FAT.
    let image = dir.path().join("ext.raw");
    ext::make(&image, 30, "-t ext4");
    {
        let mount = ext::Mount::new(&image, "rw");
        for name in ["a:b", "what?", "Case", "case", "CASE", "aux", "dot.", "%41"] {
            fs::write(mount.path().join(name), name).unwrap();
        }
    }
    let volume = dir.path().join("fat");
    fs::File::create(&volume).unwrap().set_len(40 << 20).unwrap();
    common::ok("mkfs.fat", ["-F", "16", volume.to_str().unwrap()]);
    let mount = common::Mount::fat(&volume, "rw+");
    let dest = mount.dir.join("out");
    let manifest = dir.path().join("m.jsonl");
    let said = common::unimage([
        "extract",
        image.to_str().unwrap(),
        dest.to_str().unwrap(),
        "--manifest",
        manifest.to_str().unwrap(),
    ]);
    assert!(said.code <= 1, "{said}");
    let rows = super::support::rows(&manifest);
    let mut seen = std::collections::BTreeSet::new();
    for name in ["a:b", "what?", "Case", "case", "CASE", "aux", "dot.", "%41"] {
        let row = rows
            .get(name)
            .or_else(|| rows.get(&name.replace('%', "%25")))
            .unwrap_or_else(|| panic!("{name}: {rows:?}"));
        let written = row["written"].as_str().unwrap_or_else(|| panic!("{row}"));
        let raw = row["written_raw"].as_str().map(|r| {
            use base64::Engine;
            String::from_utf8(base64::engine::general_purpose::STANDARD.decode(r).unwrap()).unwrap()
        });
        let written = raw.as_deref().unwrap_or(written);
        assert_eq!(fs::read_to_string(dest.join(written)).unwrap(), name);
        assert!(seen.insert(written.to_uppercase()), "{written} twice");
    }
}

//! `plan` of an image on a mounted file system: what it foresees is what `extract` then does, file by file, and it writes nothing.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::support::{Rows, Volume, extract};
use crate::common::{self, UNIMAGE, run};
use crate::ext_support as ext;

/// An ext4 guest of 1 KiB blocks with shared, half shared, misaligned, inline and sparse files, links and a device.
fn guest(image: &Path) {
    ext::make(image, 96, "-t ext4 -b 1024 -O inline_data -I 256");
    let mount = ext::Mount::new(image, "rw");
    let mut noise = common::Noise::new(5);
    let at = |name: &str| mount.path().join(name);
    for i in 0..40 {
        fs::write(at(&format!("file {i}")), noise.bytes(i * 3001)).unwrap();
    }
    fs::write(at("tiny"), b"in its inode").unwrap();
    fs::hard_link(at("file 9"), at("second name")).unwrap();
    std::os::unix::fs::symlink("file 9", at("link")).unwrap();
    let sparse = fs::File::create(at("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, &noise.bytes(1 << 20), 8 << 20).unwrap();
    sparse.set_len(16 << 20).unwrap();
}

/// The lines of `plan`: by path, the others by their type.
fn plan(image: &str) -> (Vec<Value>, Value, Value) {
    let said = run(UNIMAGE, ["plan", "--json", image]).exits(0);
    let lines: Vec<Value> = said.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let one = |kind: &str| lines.iter().find(|l| l["type"] == kind).unwrap().clone();
    (lines.iter().filter(|l| l["type"] == "entry").cloned().collect(), one("place"), one("summary"))
}

/// What is foreseen equals what is done.
fn foreseen(volume: &Volume) -> (Value, Value, Rows) {
    let image = volume.dir.join("guest.raw");
    guest(&image);
    let image = image.to_str().unwrap();
    common::ok("sync", [""; 0]);
    let before = fs::metadata(image).unwrap();
    let (rows, place, summary) = plan(image);
    let (said, done) = extract(image, &volume.dir.join("out"), &[]);
    said.exits(0);
    assert_eq!(rows.len(), done.len() - 1, "as many rows");
    for row in &rows {
        let done = &done[row["path"].as_str().unwrap()];
        let want = match done["method"].as_str().unwrap() {
            "made" | "reflink" => "link",
            "copy" | "xattr" => "copy",
            "hardlink" => row["verdict"].as_str().unwrap(),
            other => panic!("{other}: {done}"),
        };
        assert_eq!(row["verdict"], want, "{row} {done}");
        for field in ["size", "kind", "shared", "copied", "reason"] {
            if done["method"] != "hardlink" || field == "size" {
                assert_eq!(row[field], done[field], "{field}: {row} {done}");
            }
        }
    }
    for (foreseen, done) in [("shared_bytes", &done["*"]["shared"]), ("copied_bytes", &done["*"]["copied"])] {
        assert_eq!(&summary[foreseen], done, "{summary}");
    }
    let after = fs::metadata(image).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!((before.ctime_nsec(), before.mtime()), (after.ctime_nsec(), after.mtime()), "the image was touched");
    (place, summary, done)
}

#[test]
fn on_xfs_and_btrfs_what_is_foreseen_is_done() {
    for volume in [Volume::xfs(600), Volume::btrfs(600)] {
        let (place, summary, _) = foreseen(&volume);
        assert!(place.get("not_shared").is_none(), "{place}");
        assert!(["xfs", "btrfs"].contains(&place["host"].as_str().unwrap()), "{place}");
        assert!(summary["shared_bytes"].as_u64().unwrap() > 256 << 10, "{summary}");
        assert!(summary["reasons"]["misaligned"]["files"].as_u64().unwrap() > 5, "{summary}");
    }
}

#[test]
fn xfs_without_reflink_and_ext4_can_not_share() {
    let volume = Volume::new(&["mkfs.xfs", "-q", "-m", "reflink=0"], 600, "loop");
    let (place, summary, _) = foreseen(&volume);
    assert!(place["not_shared"].as_str().unwrap().contains("can't share"), "{place}");
    assert_eq!(summary["shared_bytes"], 0);
    let volume = Volume::ext4(600);
    foreseen(&volume);
    // What to do instead: the place of the image as a relink names it.
    let image = volume.dir.join("guest.raw");
    let said = run(UNIMAGE, ["plan", image.to_str().unwrap()]).exits(0).stdout;
    let hint = said.lines().last().unwrap().rsplit_once(' ').unwrap().1.to_owned();
    assert!(hint.starts_with("/dev/loop") && hint.ends_with("//guest.raw"), "{said}");
    let said = run(UNIMAGE, ["plan", &hint]).exits(0).stdout;
    assert!(said.contains("host: ext4"), "{said}");
}

#[test]
fn a_device_is_told_how_to_name_an_image() {
    let volume = Volume::ext4(300);
    let image = volume.dir.join("guest.raw");
    guest(&image);
    let attached = common::Loop::attach(&image, 0, 0, true);
    let said = run(UNIMAGE, ["plan", attached.device.to_str().unwrap()]).exits(2);
    assert!(said.stderr.contains("HOST//PATH"), "{}", said.stderr);
}

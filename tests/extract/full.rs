//! A destination that fills up, and media that can't be read.

use std::fs;

use super::support::{Volume, extract, rows, with_method};
use crate::common;
use crate::ext_support as ext;

#[test]
fn a_destination_that_fills_up() {
    let dir = common::scratch();
    let image = dir.path().join("guest.raw");
    ext::make(&image, 200, "-t ext4");
    {
        let mount = ext::Mount::new(&image, "rw");
        let mut noise = common::Noise::new(2);
        for i in 0..300 {
            fs::write(mount.path().join(format!("file {i:03}")), noise.bytes(100_000 + 4000 * (i % 50))).unwrap();
        }
    }
    let want = { common::tree(ext::Mount::new(&image, "ro").path()) };
    // The manifest lies on it too.
    for volume in [Volume::ext4(150), Volume::xfs(310), Volume::btrfs(300)] {
        let room = common::ok("df", ["--output=avail", "-k", volume.dir.to_str().unwrap()]);
        let room: u64 = room.lines().last().unwrap().trim().parse().unwrap();
        {
            let fill = fs::File::create(volume.dir.join("fill")).unwrap();
            rustix::fs::fallocate(&fill, rustix::fs::FallocateFlags::empty(), 0, (room - 30_000) << 10).unwrap();
        }
        let out = volume.dir.join("out");
        let (said, rows) = extract(image.to_str().unwrap(), &out, &["--hash", "sha256"]);
        let said = said.exits(1);
        let failed = with_method(&rows, "failed");
        assert!(!failed.is_empty() && failed.len() < 300, "{}", failed.len());
        for path in &failed {
            assert_eq!(rows[*path]["reason"], "no-space", "{}", rows[*path]);
            assert!(!out.join(path).exists(), "half a file: {path}");
            assert!(said.stderr.contains(path), "not on standard error: {path}");
        }
        common::ok("sync", [""; 0]);
        let got = common::tree(&out);
        for (path, seen) in &got {
            assert_eq!(seen.sha, want[path].sha, "{path}");
        }
        assert_eq!(got.len() + failed.len(), 300);
        common::unimage(["verify", out.with_extension("jsonl").to_str().unwrap(), out.to_str().unwrap()]).exits(0);
        // With room, the rest is done.
        assert!(out.with_extension("jsonl.log").exists());
        {
            fs::remove_file(volume.dir.join("fill")).unwrap();
            common::ok("sync", [""; 0]);
            let manifest = out.with_extension("jsonl");
            let args = [
                "extract",
                image.to_str().unwrap(),
                out.to_str().unwrap(),
                "--manifest",
                manifest.to_str().unwrap(),
                "--hash",
                "sha256",
                "--resume",
            ];
            common::unimage(args).exits(0);
            common::same_tree(&want, &common::tree(&out), "resumed");
            assert!(!out.with_extension("jsonl.log").exists());
        }
    }
}

/// The image ends in the middle of some files; others were cut into it.
#[test]
fn what_can_be_read_is_kept() {
    let dir = common::scratch();
    let image = dir.path().join("guest.raw");
    ext::make(&image, 64, "-t ext4 -b 4096 -O ^has_journal -g 8192");
    {
        let mount = ext::Mount::new(&image, "rw");
        let mut noise = common::Noise::new(2);
        for i in 0..20 {
            fs::write(mount.path().join(format!("file {i:02}")), noise.bytes((2 << 20) + 100)).unwrap();
        }
    }
    let want = { common::tree(ext::Mount::new(&image, "ro").path()) };
    let mut whole = std::collections::BTreeMap::new();
    {
        let mount = ext::Mount::new(&image, "ro");
        for path in want.keys() {
            whole.insert(path.clone(), fs::read(mount.path().join(path)).unwrap());
        }
    }
    let first = |path: &String| {
        let said = common::ok("debugfs", ["-R", &format!("blocks \"/{path}\""), image.to_str().unwrap()]);
        said.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    let mut places: Vec<u64> = want.keys().map(first).collect();
    places.sort_unstable();
    // In the middle of a file, with others behind it.
    fs::File::options().write(true).open(&image).unwrap().set_len(places[10] * 4096 + (1 << 20) + 1536).unwrap();
    let out = dir.path().join("out");
    let (said, rows) = extract(image.to_str().unwrap(), &out, &["--hash", "sha256"]);
    let said = said.exits(1);
    let partial = with_method(&rows, "partial");
    let failed = with_method(&rows, "failed");
    assert!(!partial.is_empty() && !failed.is_empty(), "{said}");
    for (path, bytes) in &whole {
        let row = &rows[path];
        match row["method"].as_str().unwrap() {
            "copy" => assert_eq!(&fs::read(out.join(path)).unwrap(), bytes),
            "partial" => {
                let mut bytes = bytes.clone();
                for bad in row["unreadable"].as_array().unwrap() {
                    let (at, len) = (bad[0].as_u64().unwrap() as usize, bad[1].as_u64().unwrap() as usize);
                    bytes[at..at + len].fill(0);
                }
                assert_eq!(fs::read(out.join(path)).unwrap(), bytes, "{path}");
                assert!(row["sha256"].is_null() && said.stderr.contains(path));
            }
            "failed" => assert!(!out.join(path).exists() && row["reason"] == "unreadable", "{row}"),
            other => panic!("{other}"),
        }
    }
}

/// A bad sector of a device: the rest of the sector's file is there, byte by byte, and all other files are whole.
#[test]
fn a_bad_sector() {
    let dir = common::scratch();
    let image = dir.path().join("guest.raw");
    ext::make(&image, 32, "-t ext4 -b 4096");
    {
        let mount = ext::Mount::new(&image, "rw");
        let mut noise = common::Noise::new(7);
        for i in 0..30 {
            fs::write(mount.path().join(format!("file {i:02}")), noise.bytes(20_000)).unwrap();
        }
    }
    let said = common::ok("debugfs", ["-R", "blocks \"/file 11\"", image.to_str().unwrap()]);
    let block: u64 = said.split_whitespace().nth(2).unwrap().parse().unwrap();
    // A file that is cut at its third block, as the last bytes of an image that is copied without its end.
    let cut = dir.path().join("cut.raw");
    fs::copy(&image, &cut).unwrap();
    fs::File::options().write(true).open(&cut).unwrap().set_len(block * 4096 + 1536).unwrap();
    let out = dir.path().join("out");
    let (said, rows) = extract(cut.to_str().unwrap(), &out, &[]);
    said.exits(1);
    let row = &rows["file 11"];
    assert_eq!(row["method"], "partial", "{row}");
    let bad: Vec<u64> = row["unreadable"][0].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
    assert_eq!(bad[0], 2 * 4096 + 1536, "{row}");
    assert!(rows_whole_before(&rows, &out));
}

fn rows_whole_before(rows: &super::support::Rows, out: &std::path::Path) -> bool {
    let whole: Vec<_> = rows.iter().filter(|(_, r)| r["method"] == "copy").collect();
    !whole.is_empty()
        && whole.iter().all(|(p, r)| fs::metadata(out.join(p)).unwrap().len() == r["size"].as_u64().unwrap())
}

#[test]
fn a_manifest_that_has_no_room_is_said_before_anything_is_written() {
    let dir = common::scratch();
    let image = dir.path().join("guest.raw");
    ext::make(&image, 60, "-t ext4 -N 20000");
    {
        let mount = ext::Mount::new(&image, "rw");
        for i in 0..9000 {
            fs::write(mount.path().join(format!("{i}")), b"").unwrap();
        }
    }
    let volume = Volume::ext4(6);
    let manifest = volume.dir.join("m.jsonl");
    let out = dir.path().join("out");
    let said = common::unimage([
        "extract",
        image.to_str().unwrap(),
        out.to_str().unwrap(),
        "--manifest",
        manifest.to_str().unwrap(),
    ]);
    let said = said.exits(3);
    assert!(said.stderr.contains("manifest") && fs::read_dir(&out).unwrap().next().is_none(), "{said}");
}

/// 64 MiB and 200 bytes for each file: the manifest is not held, nor are bytes of files.
#[test]
fn memory_does_not_follow_the_bytes() {
    const FILES: u64 = 40_000;
    let dir = common::scratch();
    let image = dir.path().join("guest.raw");
    ext::make(&image, 600, "-t ext4 -b 4096 -N 50000");
    {
        let mount = ext::Mount::new(&image, "rw");
        let mut noise = common::Noise::new(3);
        for i in 0..FILES {
            let folder = mount.path().join(format!("folder {:03}", i / 200));
            if i % 200 == 0 {
                fs::create_dir(&folder).unwrap();
            }
            fs::write(folder.join(format!("some file {i:06}.dat")), noise.bytes(if i % 2 == 0 { 10 } else { 200 }))
                .unwrap();
        }
        fs::write(mount.path().join("large"), noise.bytes(300 << 20)).unwrap();
    }
    let (out, manifest) = (dir.path().join("out"), dir.path().join("m.jsonl"));
    let mut command = std::process::Command::new(common::UNIMAGE);
    command.arg("extract").arg(&image).arg(&out).arg("--manifest").arg(&manifest).args(["--hash", "sha256"]);
    let mut child = command.spawn().unwrap();
    // Without the pages of the program itself, of which a build for tests has three times as many.
    let mut peak = 0;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        let now = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let now = now.lines().find_map(|l| l.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.parse().ok());
        peak = peak.max(now.unwrap_or(0));
        std::thread::sleep(std::time::Duration::from_millis(1));
    };
    assert!(status.success() && peak > 10_000, "{status}, {peak} KiB");
    assert!(peak << 10 <= (64 << 20) + 200 * FILES, "{peak} KiB for {FILES} files");
    assert_eq!(rows(&manifest)["*"]["files"], FILES + 1);
}

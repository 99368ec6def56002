//! There and back: guests of several kinds on NTFS hosts, by the program as its users run it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::host::*;

fn unimage(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_unimage")).args(args).output().unwrap()
}

pub fn done(args: &[&str]) -> String {
    let out = unimage(args);
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{args:?}: {} {text}", out.status);
    text
}

/// A folder of files, with their hashes.
fn files(dir: &Path, count: u64) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for i in 0..count {
        let name = match i % 3 {
            0 => format!("one/file number {i}"),
            1 => format!("one/two/ü {i}.txt"),
            _ => format!("top {i}.bin"),
        };
        let bytes = noise(500 + i, (i * 977 % 30_000) as usize);
        fs::create_dir_all(dir.join(&name).parent().unwrap()).unwrap();
        fs::write(dir.join(&name), &bytes).unwrap();
        all.insert(name, sha(&bytes));
    }
    all
}

/// A guest of 20 MiB with the files in `from`.
fn guest(kind: &str, from: &Path, at: &Path) -> Vec<u8> {
    fs::File::create(at).unwrap().set_len(20 << 20).unwrap();
    let (file, from) = (at.to_str().unwrap(), from.to_str().unwrap());
    match kind {
        "ext4" => _ = run("mkfs.ext4", &["-q", "-b", "4096", "-d", from, file]),
        "fat" => {
            run("mkfs.fat", &["-F", "16", "-s", "8", "-a", file]);
            let all: Vec<String> =
                fs::read_dir(from).unwrap().map(|e| e.unwrap().path().to_str().unwrap().to_owned()).collect();
            let mut args = vec!["-s", "-Q", "-i", file];
            args.extend(all.iter().map(String::as_str));
            args.push("::/");
            run("mcopy", &args);
        }
        _ => {
            let image = crate::ntfs_support::Image::new(Shape { sector: 512, cluster: 4096, mib: 20 });
            let m = image.mount();
            run("cp", &["-r", &format!("{from}/."), m.at.to_str().unwrap()]);
            m.set_xattr("top 2.bin", "user.Zone.Identifier", b"[ZoneTransfer]");
            m.set_xattr("top 5.bin", "user.larger", &noise(77, 50_000));
            drop(m);
            return image.bytes();
        }
    }
    fs::read(at).unwrap()
}

#[test]
fn relinked_and_taken_back() {
    let shapes = [
        Shape { sector: 512, cluster: 512, mib: 80 },
        Shape { sector: 512, cluster: 4096, mib: 80 },
        Shape { sector: 4096, cluster: 4096, mib: 80 },
    ];
    for (kind, shape) in ["fat", "ext4", "ntfs"].into_iter().zip(shapes) {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        let files = files(&from, 300);
        let image = guest(kind, &from, &dir.path().join("guest"));
        let host = dir.path().join("host.raw");
        let before = made(shape, &image, 8, |_| {});
        // One of the hosts is a partition, with more behind it.
        let at = if kind == "fat" { 1 << 20 } else { 0 };
        let volume = |disk: Vec<u8>| disk[at..at + before.len()].to_vec();
        fs::write(&host, [&vec![0; at], &before[..], &vec![7; at]].concat()).unwrap();
        if at > 0 {
            let table = dir.path().join("table");
            fs::write(&table, format!("label: dos\nstart=2048, size={}, type=7\n", before.len() / 512)).unwrap();
            let stdin = fs::File::open(&table).unwrap();
            assert!(Command::new("sfdisk").arg("-q").arg(&host).stdin(stdin).status().unwrap().success());
        }
        let older = {
            let mut all = HostCase::open(before.clone()).older;
            all.remove(IMAGE);
            all
        };
        let address = format!("{}//{}{IMAGE}", host.display(), if at > 0 { "p1/" } else { "" });
        let (journal, manifest) = (dir.path().join("journal"), dir.path().join("manifest"));
        let options = |more: &[&str]| {
            let all =
                ["relink", &address, "--into", "/vm/out put", "--discard-rest", "--journal", journal.to_str().unwrap()];
            let more = [more, &["--manifest", manifest.to_str().unwrap()]].concat();
            [&all[..], &more].concat().iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()
        };
        let args = options(&["--commit"]);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let said = done(&args);
        println!("{kind} {shape:?}: {}", said.lines().last().unwrap_or_default());
        let mut meant = older.clone();
        meant.extend(files.iter().map(|(path, hash)| (format!("vm/out put/{path}"), hash.clone())));
        let disk = fs::read(&host).unwrap();
        let after = volume(disk.clone());
        let mut streams = BTreeMap::new();
        if kind == "ntfs" {
            let path = |name: &str| format!("vm/out put/{name}");
            streams.insert((path("top 2.bin"), "Zone.Identifier".to_owned()), sha(b"[ZoneTransfer]"));
            streams.insert((path("top 5.bin"), "larger".to_owned()), sha(&noise(77, 50_000)));
        }
        foreign(&after, &meant, &streams);
        let rows = fs::read_to_string(&manifest).unwrap();
        let linked = rows.matches("\"verdict\":\"link\"").count();
        assert!(linked > 250, "{linked}");

        done(&["recover", journal.to_str().unwrap()]);
        assert!(fs::read(&host).unwrap() == disk, "recover had nothing to do");
        done(&["undo", journal.to_str().unwrap()]);
        let back = volume(fs::read(&host).unwrap());
        let (_dir, path) = written(&back);
        content(&path);
        let mount = Mounted::new(&path, "ro,norecover");
        assert_eq!(sha(&fs::read(mount.at.join(IMAGE)).unwrap()), sha(&image));
        assert!(!mount.at.join("vm/out put").exists());
        mount.close();
        assert_eq!(HostCase::open(back).older, HostCase::open(before).older);
    }
}

#[test]
fn nobody_takes_a_quarantined_volume_for_ntfs() {
    let case = HostCase::open(made(Shape { sector: 512, cluster: 4096, mib: 40 }, &noise(1, 200_000), 4, |_| {}));
    let mut wanted = Wanted::new(&case, &["out"], 1);
    wanted.fill(10);
    let staging = case.host().link(&case.job(&wanted.tree)).unwrap();
    let mut bytes = case.volume.bytes.to_vec();
    bytes[..512].copy_from_slice(&staging.quarantine.closed);
    assert_eq!(staging.quarantine.also.len(), 1);
    for also in &staging.quarantine.also {
        assert_eq!(also.at.get() + 512, bytes.len() as u64);
        bytes[also.at.get() as usize..][..512].copy_from_slice(&also.bytes);
    }
    let (_dir, path) = written(&bytes);
    let file = path.to_str().unwrap();
    for args in
        [&["ntfsfix", file][..], &["ntfsfix", "-n", file], &["ntfsresize", "-i", "-f", file], &["ntfsinfo", "-m", file]]
    {
        assert!(!Command::new(args[0]).args(&args[1..]).output().unwrap().status.success(), "{args:?}");
    }
    assert!(fs::read(&path).unwrap() == bytes, "somebody changed something");
    let blkid = Command::new("blkid").args(["-p", file]).output().unwrap();
    assert!(!String::from_utf8_lossy(&blkid.stdout).contains("ntfs"));
    let out = unimage(&["ls", file]);
    assert_eq!(out.status.code(), Some(3));
}

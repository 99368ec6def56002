//! What a file has beside its bytes stays what it is: security, times, attributes, streams of files and directories, reparse
//! points, extended attributes, compressed units, lengths of valid data; links and special files of an ext4 guest.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;

use crate::host::*;
use crate::ntfs_support::{junction, prose};
use crate::relink::done;

const NAMES: [&str; 6] = [
    "system.ntfs_acl",
    "system.ntfs_attrib_be",
    "system.ntfs_crtime_be",
    "system.ntfs_times_be",
    "system.ntfs_reparse_data",
    "system.ntfs_ea",
];

/// All that ntfs-3g shows of each entry below a folder: what it is, its bytes, its attributes and streams.
fn everything(root: &Path) -> BTreeMap<String, Vec<(String, String)>> {
    let list = String::from_utf8(run("find", &[root.to_str().unwrap(), "-mindepth", "1", "-printf", "%P\\n"])).unwrap();
    let get = |path: &Path, name: &str| {
        let mut value = vec![0; 1 << 18];
        rustix::fs::lgetxattr(path, name, &mut value[..]).ok().map(|len| value[..len].to_vec())
    };
    let mut all = BTreeMap::new();
    for name in list.lines() {
        let path = root.join(name);
        let meta = fs::symlink_metadata(&path).unwrap();
        let mut about = vec![("mode".to_owned(), format!("{:o}", meta.mode() & 0o170_000))];
        if meta.is_file() {
            about.push(("bytes".into(), sha(&fs::read(&path).unwrap_or_default())));
            about.push(("links".into(), meta.nlink().to_string()));
        }
        for name in NAMES {
            about.extend(get(&path, name).map(|v| (name.to_owned(), v.iter().map(|b| format!("{b:02x}")).collect())));
        }
        let mut names = vec![0; 1 << 16];
        let len = rustix::fs::llistxattr(&path, &mut names[..]).unwrap_or(0);
        for name in names[..len].split(|b| *b == 0).filter_map(|n| std::str::from_utf8(n).ok()) {
            if name.starts_with("user.") {
                about.push((name.to_owned(), sha(&get(&path, name).unwrap())));
            }
        }
        about.sort();
        all.insert(name.to_owned(), about);
    }
    all
}

/// A descriptor: S-1-5-21-1-2-3-`rid` owns it and may do all; everybody may read.
pub fn descriptor(rid: u8) -> Vec<u8> {
    let sid = [&[1, 5, 0, 0, 0, 0, 0, 5, 21, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, rid, 4, 0, 0][..]].concat();
    let everybody = [1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
    let ace = |mask: [u8; 4], sid: &[u8]| [&[0, 3, sid.len() as u8 + 8, 0][..], &mask, sid].concat();
    let aces = [ace([0xFF, 1, 0x1F, 0], &sid), ace([0xA9, 0, 0x12, 0], &everybody)].concat();
    let acl = [&[2, 0, aces.len() as u8 + 8, 0, 2, 0, 0, 0][..], &aces].concat();
    let mut d = vec![1, 0, 4, 0x80];
    for at in [20 + acl.len() as u32, 20 + (acl.len() + sid.len()) as u32, 0, 20] {
        d.extend(at.to_le_bytes());
    }
    [d, acl, sid.clone(), sid].concat()
}

fn buffer(tag: u32, data: &[u8]) -> Vec<u8> {
    [&tag.to_le_bytes()[..], &(data.len() as u16).to_le_bytes(), &[0, 0], data].concat()
}

fn fill(m: &crate::ntfs_support::Mount) {
    for i in 0..120usize {
        m.put(&format!("small/größe {i}"), &noise(i as u64, i * 7));
    }
    // Hardly any room beside the name, and none.
    for len in [300, 550, 690, 700] {
        m.put(&format!("small/{}{len}", "n".repeat(200)), &noise(len as u64, len));
    }
    m.put("large", &noise(1, 300_000));
    fs::hard_link(m.path("large"), m.path("small/second name of large")).unwrap();
    for (i, name) in ["large", "small", "small/größe 3", "small/größe 4"].into_iter().enumerate() {
        m.set_xattr(name, "system.ntfs_acl", &descriptor(i as u8));
    }
    m.set_xattr("small/größe 5", "system.ntfs_attrib_be", &[0, 0, 0x20, 0x23]);
    m.set_xattr("small/größe 6", "system.ntfs_ea", b"\x14\0\0\0\0\x04\x06\0NAME\0value\0\0");
    m.set_xattr("small", "user.stream of a directory", b"short");
    m.set_xattr("small", "user.a longer one", &noise(8, 60_000));
    m.set_xattr("small/größe 7", "user.Zone.Identifier", b"[ZoneTransfer]\r\nZoneId=3\r\n");
    // Valid up to a byte within a cluster, then zeros.
    m.put("longer than valid", &noise(9, 70_001));
    fs::OpenOptions::new().write(true).open(m.path("longer than valid")).unwrap().set_len(500_123).unwrap();
    m.put("valid within the last cluster", &noise(10, 8193));
    fs::OpenOptions::new().write(true).open(m.path("valid within the last cluster")).unwrap().set_len(9000).unwrap();
    for name in ["junctions/first", "junctions/second"] {
        fs::create_dir_all(m.path(name)).unwrap();
        m.set_xattr(name, "system.ntfs_reparse_data", &junction(&format!(r"\??\C:\{name}")));
    }
    m.put("cloud file", &noise(12, 20_000));
    m.set_xattr("cloud file", "system.ntfs_reparse_data", &buffer(0x9000_001A, &[1, 2, 3, 4]));
    m.put("link of WSL", b"");
    m.set_xattr("link of WSL", "system.ntfs_reparse_data", &buffer(0xA000_001D, b"\x02\0\0\0../target"));
    // As Compact OS has them: holes, and the bytes in a stream.
    fs::File::create(m.path("compact")).unwrap().set_len(90_000).unwrap();
    m.set_xattr("compact", "user.WofCompressedData", &noise(13, 40_000));
    m.set_xattr(
        "compact",
        "system.ntfs_reparse_data",
        &buffer(0x8000_0017, &[1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]),
    );
    fs::create_dir(m.path("packed")).unwrap();
    m.set_xattr("packed", "system.ntfs_attrib_be", &[0, 0, 8, 0]);
    for i in 0..6usize {
        let text = [prose(i as u64, 50_000 + i * 30_001), noise(i as u64, 70_000), vec![0; 150_000], prose(7, 9000)];
        m.put(&format!("packed/text {i}"), &text.concat());
    }
}

/// A host of 4 KiB clusters with the guest on it, relinked: volume and journal.
fn relinked(guest: &[u8], dir: &Path) -> (std::path::PathBuf, String) {
    let bytes = made(Shape { sector: 512, cluster: 4096, mib: 100 }, guest, 6, |m| {
        // So that there is an index with a point of before.
        fs::create_dir(m.path("older junction")).unwrap();
        m.set_xattr("older junction", "system.ntfs_reparse_data", &junction(r"\??\D:\older"));
    });
    let (host, journal) = (dir.join("host.raw"), dir.join("journal"));
    fs::write(&host, bytes).unwrap();
    let image = format!("{}//{IMAGE}", host.display());
    let args = ["relink", &image, "--into", "/out", "--discard-rest", "--commit", "--manifest"];
    let manifest = dir.join("manifest");
    let said = done(&[&args[..], &[manifest.to_str().unwrap(), "--journal", journal.to_str().unwrap()]].concat());
    println!("{said}");
    (host, fs::read_to_string(manifest).unwrap())
}

#[test]
fn all_that_ntfs_has() {
    let dir = scratch();
    let guest = crate::ntfs_support::Image::new(Shape { sector: 512, cluster: 4096, mib: 24 });
    let mount = guest.mount();
    fill(&mount);
    drop(mount);
    let mount = Mounted::new(&guest.path, "ro,efs_raw");
    let before = everything(&mount.at);
    mount.close();
    assert!(before["small/größe 6"].iter().any(|(n, _)| n == "system.ntfs_ea"), "{:?}", before["small/größe 6"]);
    assert!(before.len() > 140, "{}", before.len());
    let (host, manifest) = relinked(&guest.bytes(), dir.path());
    content(&host);
    let mount = Mounted::new(&host, "ro,norecover,efs_raw");
    let after = everything(&mount.at.join("out"));
    mount.close();
    for (path, about) in &before {
        assert_eq!(after.get(path), Some(about), "{path}");
    }
    assert_eq!(after.len(), before.len());

    let rows: Vec<serde_json::Value> = manifest.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let verdict = |path: &str| {
        let row = rows.iter().find(|r| r["path"] == path).unwrap_or_else(|| panic!("{path}"));
        row["verdict"].as_str().unwrap().to_owned()
    };
    for path in ["longer than valid", "valid within the last cluster", "packed/text 3", "compact", "cloud file"] {
        assert_eq!(verdict(path), "link", "{path}");
    }
    // Small ones are in their records, also by another reader; compressed ones are.
    let file = host.to_str().unwrap();
    let list = String::from_utf8(run("fls", &["-r", "-p", "-F", "-f", "ntfs", file])).unwrap();
    let istat = |path: &str| {
        let line = list.lines().find(|l| l.split_once(":\t").is_some_and(|l| l.1 == path)).unwrap();
        let number = line.split_once(' ').unwrap().1.split(['-', ':']).next().unwrap();
        String::from_utf8(run("istat", &["-f", "ntfs", file, number])).unwrap()
    };
    let data = |text: &str| text.lines().find(|l| l.starts_with("Type: $DATA (128-")).unwrap().to_owned();
    for i in [1, 60, 70] {
        let about = data(&istat(&format!("out/small/größe {i}")));
        assert!(about.contains(" Resident") && about.ends_with(&format!("size: {}", i * 7)), "{about}");
    }
    // The driver shows no streams of a point that it knows nothing of.
    let stream = list.lines().find(|l| l.ends_with(":\tout/compact:WofCompressedData")).unwrap();
    let number = stream.split_once(' ').unwrap().1.split(':').next().unwrap();
    assert_eq!(sha(&run("icat", &["-f", "ntfs", file, number])), sha(&noise(13, 40_000)));
    assert!(data(&istat("out/packed/text 2")).contains("Compressed"), "{}", istat("out/packed/text 2"));

    // The driver takes points away, with their entries in the index, and compresses on.
    let mount = Mounted::new(&host, "norecover,compression,efs_raw");
    for path in ["older junction", "out/junctions/second"] {
        fs::remove_dir(mount.at.join(path)).or_else(|_| fs::remove_file(mount.at.join(path))).unwrap();
    }
    fs::remove_file(mount.at.join("out/link of WSL")).unwrap();
    let appended = mount.at.join("out/packed/text 1");
    let before = fs::read(&appended).unwrap();
    fs::OpenOptions::new().append(true).open(&appended).unwrap().write_all(&prose(5, 100_000)).unwrap();
    let grown = mount.at.join("out/longer than valid");
    fs::OpenOptions::new().append(true).open(&grown).unwrap().write_all(b"end").unwrap();
    mount.close();
    content(&host);
    let mount = Mounted::new(&host, "ro,norecover");
    assert!(fs::read(mount.at.join("out/packed/text 1")).unwrap() == [before, prose(5, 100_000)].concat());
    let mut meant = noise(9, 70_001);
    meant.resize(500_123, 0);
    meant.extend(b"end");
    assert!(fs::read(mount.at.join("out/longer than valid")).unwrap() == meant);
    mount.close();
}

#[test]
fn links_and_special_files_of_ext4() {
    let dir = scratch();
    let guest = dir.path().join("guest.raw");
    fs::File::create(&guest).unwrap().set_len(20 << 20).unwrap();
    run("mkfs.ext4", &["-q", "-b", "4096", guest.to_str().unwrap()]);
    let at = dir.path().join("mounted");
    fs::create_dir(&at).unwrap();
    run("mount", &["-o", "loop", guest.to_str().unwrap(), at.to_str().unwrap()]);
    let long = format!("{}/end", "a/../".repeat(300));
    fs::write(at.join("target"), noise(1, 10_000)).unwrap();
    for (name, to) in [("short", "target"), ("long", long.as_str()), ("dangling", "/no/such ü🦀")] {
        symlink(to, at.join(name)).unwrap();
    }
    let name = |name: &str| at.join(name).to_str().unwrap().to_owned();
    run("mkfifo", &["-m", "644", &name("pipe")]);
    run("mknod", &[&name("tty"), "c", "4", "70"]);
    run("mknod", &[&name("disk"), "b", "259", "70000"]);
    drop(std::os::unix::net::UnixListener::bind(at.join("socket")).unwrap());
    run("umount", &[at.to_str().unwrap()]);
    let (host, _) = relinked(&fs::read(&guest).unwrap(), dir.path());
    content(&host);
    let mount = Mounted::new(&host, "ro,norecover");
    let path = |name: &str| mount.at.join("out").join(name);
    for (name, to) in [("short", "target"), ("long", long.as_str()), ("dangling", "/no/such ü🦀")] {
        assert_eq!(fs::read_link(path(name)).unwrap(), Path::new(to), "{name}");
    }
    assert_eq!(fs::read(path("short")).unwrap(), noise(1, 10_000));
    let about = |name: &str| fs::symlink_metadata(path(name)).unwrap();
    assert!(about("pipe").file_type().is_fifo(), "{:?}", about("pipe"));
    assert!(about("socket").file_type().is_socket(), "{:?}", about("socket"));
    assert!(about("tty").file_type().is_char_device() && about("tty").rdev() == libc::makedev(4, 70));
    assert!(about("disk").file_type().is_block_device() && about("disk").rdev() == libc::makedev(259, 70_000));
    mount.close();
    let mount = Mounted::new(&host, "norecover");
    for name in ["short", "long", "pipe", "disk"] {
        fs::remove_file(mount.at.join("out").join(name)).unwrap();
    }
    mount.close();
    content(&host);
}

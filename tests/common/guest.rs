//! Guests: disk images with file systems that real tools made and filled, and what those tools say is in them.
//!
//! The large ones are made once and kept below `target/`, by a name that this file's contents are part of.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use super::{Loop, Mount, Noise, Seen, Seens, fat::data_ranges, ok, output, run, sha256, sha256_file, tree};
use crate::args;

/// Where the first partition of the images begins.
pub const PART: u64 = 1 << 20;

/// An image and what is in it.
pub struct Guest {
    /// The raw image: GPT, one partition at [`PART`].
    pub image: PathBuf,
    /// Its files as the foreign driver shows them; alternate streams as `PATH:STREAM`.
    pub files: Seens,
}

/// A raw GPT image of `len` bytes with one partition over all of it.
pub fn partitioned(path: &Path, len: u64, kind: &str) {
    File::create(path).unwrap().set_len(len).unwrap();
    let mut sfdisk = std::process::Command::new("sfdisk")
        .args(["--quiet", "--no-reread", "--no-tell-kernel"])
        .arg(path)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    sfdisk.stdin.take().unwrap().write_all(format!("label: gpt\nstart=2048, type={kind}\n").as_bytes()).unwrap();
    assert!(sfdisk.wait().unwrap().success(), "sfdisk");
}

/// Bytes of the first partition.
fn part_len(path: &Path) -> u64 {
    let dump = ok("sfdisk", args!["--dump", *path.as_os_str()]);
    let line = dump.lines().find(|l| l.contains("start=")).unwrap();
    let size = line.split("size=").nth(1).unwrap().split(',').next().unwrap().trim();
    size.parse::<u64>().unwrap() * 512
}

/// An image whose partition has an NTFS of 4 KiB clusters, filled by `fill` through `ntfs-3g`.
pub fn ntfs(path: &Path, len: u64, fill: impl FnOnce(&Path)) {
    partitioned(path, len, "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7");
    let part = part_len(path);
    {
        let on = Loop::attach(path, PART, part, false);
        ok(
            "mkntfs",
            args!["-F", "-Q", "-q", "-c", "4096", "-s", "512", "-p", "2048", "-L", "GUEST", *on.device.as_os_str()],
        );
    }
    let mount = Mount::ntfs(path, PART, part, "rw,streams_interface=windows,compression,big_writes,noatime");
    fill(&mount.dir);
}

/// What `ntfs-3g` shows of the partition, alternate streams as `PATH:STREAM`.
pub fn seen_by_ntfs3g(image: &Path) -> Seens {
    let mount = Mount::ntfs(image, PART, part_len(image), "ro,streams_interface=windows");
    with_streams(&mount.dir)
}

/// The tree of a mount that shows alternate streams the Windows way.
pub fn with_streams(root: &Path) -> Seens {
    let mut seen = tree(root);
    let mut streams = Vec::new();
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_symlink() {
                continue;
            }
            let mut names = vec![0_u8; 65536];
            if let Ok(n) = rustix::fs::getxattr(&path, "ntfs.streams.list", &mut names[..]) {
                for name in names[..n].split(|b| *b == 0).filter(|n| !n.is_empty()) {
                    let name = std::str::from_utf8(name).unwrap();
                    let shown = format!("{}:{name}", path.strip_prefix(root).unwrap().display());
                    let full = format!("{}:{name}", path.display());
                    streams.push((shown, PathBuf::from(full)));
                }
            }
            if meta.is_dir() {
                dirs.push(path);
            }
        }
    }
    for (shown, full) in streams {
        let size = fs::metadata(&full).unwrap().len();
        seen.insert(shown, Seen { size, sha: sha256_file(&full), mtime: 0 });
    }
    seen
}

/// The names of the corpus that a FAT host can't hold as they are.
pub const AWKWARD: &[&str] =
    &["what?.txt", "trailing dot.", "trailing space ", "CON.txt", "aux", "tab\there", "pipe|star*.log", "quote\"d"];

fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

fn dated(path: &Path, noise: &mut Noise) {
    // Odd seconds and fractions too: between 1998 and 2023, in 100 ns.
    let time =
        UNIX_EPOCH + Duration::new(883_612_800 + noise.below(800_000_000), (noise.below(10_000_000) * 100) as u32);
    File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

/// Everything that an NTFS of the real world holds, some of each: `seed` and `files` decide how much.
pub fn mixed(root: &Path, files: usize, seed: u64) {
    let mut noise = Noise::new(seed);
    let per_dir = 100;
    for i in 0..files {
        let dir = root.join(format!("Users/u{:02}/Documents and more {:03}", i / 1000, i / per_dir));
        if i % per_dir == 0 {
            fs::create_dir_all(&dir).unwrap();
        }
        let len = match noise.below(100) {
            0..3 => 0,
            3..30 => 1 + noise.below(600),
            30..80 => 700 + noise.below(12_000),
            80..99 => 12_000 + noise.below(50_000),
            _ => 100_000 + noise.below(400_000),
        };
        let path = dir.join(format!("Datei {i:05} übergröße.{}", ["txt", "docx", "jpeg", "log"][i % 4]));
        write(&path, &noise.bytes(len as usize));
        if i % 7 == 0 {
            dated(&path, &mut noise);
        }
        if i % 97 == 5 {
            write(Path::new(&format!("{}:Zone.Identifier", path.display())), b"[ZoneTransfer]\r\nZoneId=3\r\n");
        }
        if i % 501 == 7 {
            write(Path::new(&format!("{}:große Daten", path.display())), &noise.bytes(9000 + i));
        }
    }
    special(root, &mut noise);
}

/// Forms and names that are not everyday ones.
pub fn special(root: &Path, noise: &mut Noise) {
    let dir = |name: &str| {
        let dir = root.join(name);
        fs::create_dir_all(&dir).unwrap();
        dir
    };
    let names = dir("names");
    for name in AWKWARD {
        write(&names.join(name), &noise.bytes(5000 + name.len()));
    }
    for (i, name) in ["Readme.TXT", "README.txt", "readme.txt"].iter().enumerate() {
        write(&names.join(name), &noise.bytes(6000 + i));
    }
    write(&names.join(format!("{}.txt", "n".repeat(251))), &noise.bytes(12_345));
    write(&names.join("😀 two units each 🗂.bin"), &noise.bytes(4097));
    write(&names.join("𝔘".repeat(60)), &noise.bytes(8192));
    write(&names.join("файл с именем.dat"), &noise.bytes(777));
    write(&names.join("ﬀ ß İ ı.txt"), &noise.bytes(4500));
    // Names of which many share their first letters: numeric tails of 8.3 names.
    let tails = dir("tails");
    for i in 0..120 {
        write(&tails.join(format!("similar name {i}.text")), &noise.bytes(i * 61));
    }
    // Files that grew in turns, so that the driver gave each cluster to another one.
    let frag = dir("fragmented");
    let open =
        |i: usize| OpenOptions::new().append(true).create(true).open(frag.join(format!("grown {i}.bin"))).unwrap();
    for _ in 0..40 {
        for i in 0..6 {
            let mut file = open(i);
            let more = 4096 + noise.below(3) as usize * 4096;
            file.write_all(&noise.bytes(more)).unwrap();
            file.sync_all().unwrap();
        }
    }
    for i in 0..6 {
        open(i).write_all(&noise.bytes(100 + i)).unwrap();
    }
    // Holes at the beginning, between and at the end.
    let sparse = dir("sparse");
    for i in 0..5_u64 {
        let file = File::create(sparse.join(format!("holes {i}"))).unwrap();
        file.set_len(1_000_000 + i).unwrap();
        file.write_all_at(&noise.bytes(5000), 262_144).unwrap();
        file.write_all_at(&noise.bytes(70_000), 600_000 + i * 4096).unwrap();
    }
    File::create(sparse.join("nothing but hole")).unwrap().set_len(300_000).unwrap();
    // Compressed by the file system, when the folder says so.
    let packed = dir("compressed");
    rustix::fs::setxattr(&packed, "system.ntfs_attrib_be", &[0, 0, 8, 0x10], rustix::fs::XattrFlags::empty()).unwrap();
    for i in 0..12_usize {
        write(&packed.join(format!("text {i}.log")), &noise.text(3000 + i * 40_000));
    }
    write(&packed.join("does not compress"), &noise.bytes(200_000));
    // Shorter than they once were: old bytes behind the end.
    let cut = dir("cut");
    for i in 0..20_u64 {
        let path = cut.join(format!("cut {i}"));
        write(&path, &noise.bytes(20_000));
        File::options().write(true).open(&path).unwrap().set_len(5000 + i * 311).unwrap();
    }
    // Two names of one file, streams of a folder, and a name that looks like what a stream is written as.
    let more = dir("more");
    write(&more.join("first name"), &noise.bytes(10_000));
    fs::hard_link(more.join("first name"), more.join("second name")).unwrap();
    write(Path::new(&format!("{}:of the folder", more.display())), &noise.bytes(4321));
    write(&more.join("clash"), b"owner");
    write(Path::new(&format!("{}:a", more.join("clash").display())), &noise.bytes(6000));
    write(&more.join("clash.stream.a"), &noise.bytes(50));
    fs::create_dir_all(more.join("empty folder/in it")).unwrap();
    write(&more.join("empty file"), b"");
    // Whole multiples of a cluster, and one byte more or less.
    for i in [4095, 4096, 4097, 8192, 65536, 65537] {
        write(&more.join(format!("exactly {i}")), &noise.bytes(i));
    }
}

/// The guest of the issue: 2 GiB, 20,000 files and more, made once.
pub fn windows() -> Guest {
    cached("windows", |image| ntfs(image, 2 << 30, |root| mixed(root, 20_000, 1)), seen_by_ntfs3g)
}

/// The same forms, few files: 96 MiB.
pub fn small_windows() -> Guest {
    cached("small-windows", |image| ntfs(image, 96 << 20, |root| mixed(root, 300, 2)), seen_by_ntfs3g)
}

/// Few large files: 2 GiB, 1.5 GiB of them filled.
pub fn large_files() -> Guest {
    let fill = |root: &Path| {
        let mut noise = Noise::new(3);
        for i in 0..12 {
            let file = File::create(root.join(format!("disk {i}.vmdk"))).unwrap();
            for part in 0..8 {
                file.write_all_at(&noise.bytes(16 << 20), part << 24).unwrap();
            }
        }
    };
    cached("large-files", |image| ntfs(image, 2 << 30, fill), seen_by_ntfs3g)
}

/// Many small files, for the speed of the walk: 200,000 in 2,000 folders, half of them resident.
pub fn many_files() -> Guest {
    let fill = |root: &Path| {
        let mut noise = Noise::new(5);
        for i in 0..200_000_usize {
            let dir = root.join(format!("folder {:02}/sub folder {:04}", i / 10_000, i / 100));
            if i % 100 == 0 {
                fs::create_dir_all(&dir).unwrap();
            }
            write(&dir.join(format!("some file {i:06}.dat")), &noise.bytes(if i % 2 == 0 { 100 } else { 3000 }));
        }
    };
    cached("many-files", |image| ntfs(image, 2 << 30, fill), seen_by_ntfs3g)
}

/// An image file with a bare NTFS, filled by `fill` through `ntfs-3g`.
pub fn bare_ntfs(path: &Path, len: u64, cluster: u32, fill: impl FnOnce(&Path)) {
    File::create(path).unwrap().set_len(len).unwrap();
    {
        let on = Loop::attach(path, 0, 0, false);
        let cluster = cluster.to_string();
        ok(
            "mkntfs",
            args!["-F", "-Q", "-q", "-c", cluster, "-s", "512", "-p", "0", "-L", "GUEST", *on.device.as_os_str()],
        );
    }
    let mount = Mount::ntfs(path, 0, 0, "rw,streams_interface=windows,noatime");
    fill(&mount.dir);
}

/// A handful of files, for hosts that are taken apart write by write: NTFS without a partition table.
pub fn tiny_ntfs(path: &Path, len: u64, cluster: u32) -> Seens {
    bare_ntfs(path, len, cluster, |root| {
        let mut noise = Noise::new(4);
        fs::create_dir(root.join("sub folder")).unwrap();
        for i in 0..8_usize {
            write(&root.join(format!("sub folder/file number {i}.txt")), &noise.bytes(i * 1700));
        }
        write(&root.join("top.bin"), &noise.bytes(30_000));
        write(Path::new(&format!("{}:alt", root.join("top.bin").display())), &noise.bytes(2000));
        write(&root.join("small"), b"resident");
    });
    let mount = Mount::ntfs(path, 0, 0, "ro,streams_interface=windows");
    with_streams(&mount.dir)
}

/// A FAT guest without a partition table, filled by `mtools`; what is in it is what was put in.
pub fn fat(path: &Path, len: u64, width: u32, cluster_sectors: u32) -> Seens {
    File::create(path).unwrap().set_len(len).unwrap();
    ok("mkfs.fat", args!["-F", width.to_string(), "-s", cluster_sectors.to_string(), "-n", "GUEST", *path.as_os_str()]);
    let source = super::scratch();
    let root = source.path().join("top");
    fs::create_dir_all(root.join("Folder with a long name/deeper")).unwrap();
    let mut noise = Noise::new(u64::from(width));
    for i in 0..10_usize {
        write(&root.join(format!("Folder with a long name/deeper/some file {i}.dat")), &noise.bytes(i * 1500));
        write(&root.join(format!("SHORT{i}.TXT")), &noise.bytes(300 + i));
    }
    write(&root.join("é ü.txt"), &noise.bytes(5000));
    ok("mcopy", args!["-s", "-i", *path.as_os_str(), *root.as_os_str(), "::/"]);
    let mut seen = Seens::new();
    for (name, file) in tree(&root) {
        seen.insert(format!("top/{name}"), file);
    }
    seen
}

/// A FAT guest of clusters of 512 bytes of which all but about `spare` bytes are files: on larger clusters, what begins in the midst of one must be
/// copied.
pub fn tight(path: &Path, len: u64, spare: u64) -> Seens {
    File::create(path).unwrap().set_len(len).unwrap();
    ok("mkfs.fat", args!["-F", "12", "-s", "1", "-r", "16", "-n", "GUEST", *path.as_os_str()]);
    let source = super::scratch();
    let root = source.path().join("top");
    fs::create_dir_all(root.join("sub")).unwrap();
    let (mut noise, mut left) = (Noise::new(12), len - spare);
    // What is free was in use once: a host does not keep it as holes.
    write(&source.path().join("gone"), &noise.bytes(len as usize - (6 << 10)));
    ok("mcopy", args!["-i", *path.as_os_str(), *source.path().join("gone").as_os_str(), "::/"]);
    ok("mdel", args!["-i", *path.as_os_str(), "::/gone"]);
    for i in 0_u64.. {
        let size = (i * 2711 + 400) % 13_000;
        let cost = size.next_multiple_of(512) + 160;
        if left < cost {
            break;
        }
        left -= cost;
        write(
            &root.join(format!("{}file number {i}", if i % 3 == 0 { "sub/" } else { "" })),
            &noise.bytes(size as usize),
        );
    }
    ok("mcopy", args!["-s", "-i", *path.as_os_str(), *root.as_os_str(), "::/"]);
    tree(&root).into_iter().map(|(name, file)| (format!("top/{name}"), file)).collect()
}

/// 20,000 files in folders that every file system can hold, a fifth of them of more than 16 KiB.
pub fn plain(root: &Path, files: usize) {
    let mut noise = Noise::new(11);
    for i in 0..files {
        let dir = root.join(format!("folder {:02}/Größe {:03}", i / 1000, i / 100));
        if i % 100 == 0 {
            fs::create_dir_all(&dir).unwrap();
        }
        let len = match i % 10 {
            0 => 0,
            1 => 20_000 + noise.below(60_000),
            2 => 16_384,
            n => noise.below(n as u64 * 2000),
        };
        write(&dir.join(format!("file number {i:05}.dat")), &noise.bytes(len as usize));
    }
}

/// An ext4 without a partition table of so many files, made by `mke2fs` from a folder.
pub fn plain_ext4(files: usize) -> Guest {
    plain_of("ext4", files, |image, root| {
        ok("mkfs.ext4", args!["-q", "-b", "4096", "-O", "^has_journal", "-d", *root.as_os_str(), *image.as_os_str()]);
    })
}

/// A FAT32 without a partition table of so many files, filled by `mcopy`.
pub fn plain_fat(files: usize) -> Guest {
    plain_of("fat", files, |image, root| {
        ok("mkfs.fat", args!["-F", "32", "-s", "8", "-n", "GUEST", *image.as_os_str()]);
        for entry in fs::read_dir(root).unwrap() {
            ok("mcopy", args!["-s", "-Q", "-i", *image.as_os_str(), *entry.unwrap().path().as_os_str(), "::/"]);
        }
    })
}

/// An exFAT without a partition table of so many files, filled through `exfat-fuse`.
pub fn plain_exfat(files: usize) -> Guest {
    plain_of("exfat", files, |image, root| {
        ok("mkfs.exfat", args!["-c", "4K", "-L", "GUEST", *image.as_os_str()]);
        let mount = Mount::exfat(image, 0, 0, "rw");
        ok("cp", args!["-r", root.join("."), mount.dir]);
    })
}

fn plain_of(kind: &str, files: usize, make: impl FnOnce(&Path, &Path)) -> Guest {
    let source = super::scratch();
    let root = source.path().join("source");
    let list = |_: &Path| {
        // What was put in; the times are those of the copy.
        let mut all = tree(&root);
        all.values_mut().for_each(|seen| seen.mtime = 0);
        all
    };
    let fill = |image: &Path| {
        plain(&root, files);
        // FAT32 of 4 KiB clusters has more than 256 MiB.
        File::create(image).unwrap().set_len((320 << 20) + files as u64 * 16_000).unwrap();
        make(image, &root);
    };
    cached(&format!("plain-{kind}-of-{files}"), fill, list)
}

/// Makes a guest once: image and listing lie in a folder that another test may be waiting for.
fn cached(name: &str, make: impl FnOnce(&Path), list: impl FnOnce(&Path) -> Seens) -> Guest {
    let key =
        &sha256(concat!(include_str!("guest.rs"), include_str!("noise.rs"), include_str!("mounts.rs")).as_bytes())
            [..12];
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests");
    fs::create_dir_all(&dir).unwrap();
    let lock = File::create(dir.join(format!("{name}.lock"))).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let (image, listing) = (dir.join(format!("{name}-{key}.img")), dir.join(format!("{name}-{key}.list")));
    if !listing.exists() {
        for old in fs::read_dir(&dir).unwrap() {
            let old = old.unwrap().path();
            let of = old.file_name().unwrap().as_bytes();
            if of.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b"-")) {
                fs::remove_file(&old).unwrap();
            }
        }
        make(&image);
        let lines: Vec<String> = list(&image)
            .iter()
            .map(|(p, s)| format!("{}\t{}\t{}\t{}", s.size, s.sha, s.mtime, p.escape_default()))
            .collect();
        let part = listing.with_extension("tmp");
        fs::write(&part, lines.join("\n")).unwrap();
        fs::rename(&part, &listing).unwrap();
    }
    let mut files = BTreeMap::new();
    for line in fs::read_to_string(&listing).unwrap().lines() {
        let mut f = line.splitn(4, '\t');
        let mut next = || f.next().unwrap();
        let (size, sha, mtime) = (next().parse().unwrap(), next().to_owned(), next().parse().unwrap());
        files.insert(unescape(next()), Seen { size, sha, mtime });
    }
    Guest { image, files }
}

fn unescape(s: &str) -> String {
    let (mut out, mut rest) = (String::new(), s.chars());
    while let Some(c) = rest.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match rest.next() {
            Some('u') => {
                let code: String = rest.by_ref().skip(1).take_while(|c| *c != '}').collect();
                out.push(char::from_u32(u32::from_str_radix(&code, 16).unwrap()).unwrap());
            }
            Some('t') => out.push('\t'),
            Some('n') => out.push('\n'),
            Some(c) => out.push(c),
            None => {}
        }
    }
    out
}

/// Copies a file with its holes.
pub fn copy_sparse(from: &Path, to: &Path) {
    let (a, b) = (File::open(from).unwrap(), File::create(to).unwrap());
    let len = a.metadata().unwrap().len();
    b.set_len(len).unwrap();
    let mut buffer = vec![0_u8; 1 << 20];
    for (at, n) in data_ranges(&a, 0, len) {
        let mut pos = at;
        while pos < at + n {
            let step = (at + n - pos).min(1 << 20) as usize;
            a.read_exact_at(&mut buffer[..step], pos).unwrap();
            b.write_all_at(&buffer[..step], pos).unwrap();
            pos += step as u64;
        }
    }
}

/// Whether a program is there at all; the tests need them, so this is for messages.
pub fn have(program: &str) -> bool {
    output(std::process::Command::new("sh").args(["-c", &format!("command -v {program}")])).code == 0
}

/// How many runs a file of the guest has by `istat`, through its path as `fls` shows it.
pub fn runs_of(image: &Path, part_sector: u64, path: &str) -> Vec<(u64, u64)> {
    let offset = part_sector.to_string();
    let list = ok("fls", args!["-r", "-p", "-o", offset, *image.as_os_str()]);
    let line = list.lines().find(|l| l.split('\t').nth(1) == Some(path)).unwrap_or_else(|| panic!("fls has no {path}"));
    let inode = line.split(' ').nth(1).unwrap().trim_end_matches(|c: char| !c.is_ascii_digit());
    let inode = inode.split(':').next().unwrap();
    let out = run("istat", args!["-o", offset, *image.as_os_str(), inode]).exits(0).stdout;
    istat_runs(&out)
}

/// The clusters of the unnamed $DATA attribute that `istat` prints, as runs.
pub fn istat_runs(istat: &str) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut on = false;
    for line in istat.lines() {
        if line.starts_with("Type: ") {
            on = line.starts_with("Type: $DATA (128-") && line.contains("Name: N/A") && line.contains("Non-Resident");
            continue;
        }
        if !on {
            continue;
        }
        for cluster in line.split_whitespace().filter_map(|c| c.parse::<u64>().ok()) {
            match runs.last_mut() {
                Some((at, n)) if cluster != 0 && *at + *n == cluster => *n += 1,
                Some((0, n)) if cluster == 0 => *n += 1,
                _ => runs.push((cluster, 1)),
            }
        }
    }
    runs
}

//! Real guests of more than 20,000 files on NTFS hosts: one directory of 50,000, one file in more than 10,000 pieces. The image
//! lies whole or in so many pieces that its record has an attribute list, on a bare volume or in a partition.
//!
//! One slice of it always; all of it where `UNIMAGE_LONG=1`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::host::*;
use crate::relink::done;

/// How much there is of everything.
#[derive(Clone, Copy, Debug)]
struct Scale {
    files: usize,
    in_one: usize,
    pieces: u64,
}

const FULL: Scale = Scale { files: 20_000, in_one: 50_000, pieces: 16_000 };
const SLICE: Scale = Scale { files: 1500, in_one: 2500, pieces: 1200 };

/// Digests by path and name.
type Streams = BTreeMap<(String, String), String>;

const IN_PIECES: &str = "in pieces.bin";
const IN_ONE: &str = "one directory";

/// So many bytes of a file system's file, at its place.
fn sparse(path: &Path, len: u64) -> File {
    let file = File::create(path).unwrap();
    file.set_len(len).unwrap();
    file
}

/// Files of all sizes: some longer than a unit, some that are resident in NTFS, many empty.
fn corpus(root: &Path, unit: u64, scale: Scale) {
    for i in 0..scale.files {
        let dir = root.join(format!("folders/{:02}/{:03}", i / 2000, i / 200));
        if i % 200 == 0 {
            fs::create_dir_all(&dir).unwrap();
        }
        let len = match i % 8 {
            0 => 1 + (i as u64 * 7919) % (3 * unit),
            2 => 1 + (i as u64 * 31) % 900,
            5 if unit < 65536 => 1 + (i as u64 * 53) % 6000,
            _ => 0,
        };
        fs::write(dir.join(format!("Datei {i:05}, größer.txt")), noise(i as u64, len as usize)).unwrap();
    }
    fs::create_dir(root.join(IN_ONE)).unwrap();
    for i in 0..scale.in_one {
        let len = if i % 50 == 0 { 1 + (i as u64 * 131) % unit } else { 0 };
        let name = format!("{:08x}", (i as u32).wrapping_mul(2_654_435_761));
        fs::write(root.join(IN_ONE).join(name), noise(i as u64, len as usize)).unwrap();
    }
}

/// A file of one unit after the other, in an order that leaves none beside its neighbour. But `ntfs-3g` gives each the place that is as
/// far from the others' as it is in the file, so that in an NTFS guest it is whole after all.
fn permuted(path: &Path, unit: u64, pieces: u64) {
    let file = sparse(path, pieces * unit - 77);
    for i in 0..pieces {
        let n = i * 7919 % pieces;
        let len = if n == pieces - 1 { unit - 77 } else { unit };
        file.write_all_at(&noise(n, len as usize), n * unit).unwrap();
    }
}

/// Bytes that a guest of this scale needs, and some more.
fn room(unit: u64, scale: Scale) -> u64 {
    let (files, in_one) = (scale.files as u64, scale.in_one as u64);
    let small = if unit < 65536 { files / 4 * 6000.max(unit) } else { files / 8 * unit };
    let bytes = files / 8 * 2 * unit + small + in_one / 50 * unit + 9 * scale.pieces / 4 * unit.max(1024);
    (bytes + (files + in_one) * 1700 + (64 << 20)).next_multiple_of(1 << 20)
}

/// Some files get streams, that fit into records and that do not.
fn with_streams(root: &Path, files: &BTreeMap<String, String>) -> Streams {
    let mut all = Streams::new();
    for (i, path) in files.keys().enumerate().filter(|(i, _)| i % 400 == 0) {
        for (name, len) in [("Zone.Identifier", 26), ("größer", 9000 + i % 3000)] {
            let bytes = noise(i as u64, len);
            let name = name.to_owned();
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::lsetxattr(root.join(path), format!("user.{name}"), &bytes, flags).unwrap();
            all.insert((path.clone(), name), sha(&bytes));
        }
    }
    all
}

fn guest(kind: &str, at: &Path, unit: u64, scale: Scale, streams: &mut Streams) -> BTreeMap<String, String> {
    let len = room(unit, scale);
    let file = at.to_str().unwrap();
    drop(sparse(at, len));
    let words = unit.to_string();
    match kind {
        "ntfs" => {
            run("mkntfs", &["-q", "-F", "-Q", "-c", &words, file]);
            let mount = Mounted::new(at, "big_writes");
            corpus(&mount.at, unit, scale);
            permuted(&mount.at.join(IN_PIECES), unit, scale.pieces);
            let all = tree_hashes(&mount.at);
            *streams = with_streams(&mount.at, &all);
            mount.close();
            all
        }
        "ext4" => {
            let inodes = (scale.files + scale.in_one + 2000).to_string();
            let block = unit.clamp(1024, 4096).to_string();
            let mut args = vec!["-q", "-b", &block, "-N", &inodes, "-m", "0"];
            if unit > 4096 {
                args.extend(["-O", "bigalloc", "-C", &words, "-g", "8192"]);
            }
            args.push(file);
            run("mkfs.ext4", &args);
            let mount = at.with_extension("mounted");
            fs::create_dir_all(&mount).unwrap();
            run("mount", &["-o", "loop", file, mount.to_str().unwrap()]);
            corpus(&mount, unit, scale);
            // Free space is left only in every other unit of a file that takes all of it.
            let filler = mount.join("filler");
            let all = File::create(&filler).unwrap();
            // Some of it goes to the extent trees of both files.
            let (wide, pieces) = (unit.max(1024), scale.pieces + scale.pieces / 16);
            all.set_len(2 * pieces * wide).unwrap();
            rustix::fs::fallocate(&all, rustix::fs::FallocateFlags::empty(), 0, 2 * pieces * wide).unwrap();
            let rest = File::create(mount.join("rest")).unwrap();
            let part = vec![7; 1 << 20];
            while rest.sync_data().is_ok() && (&rest).write_all(&part).is_ok() {}
            let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
            for i in 0..pieces {
                rustix::fs::fallocate(&all, punch, 2 * i * wide, wide).unwrap();
            }
            all.sync_all().unwrap();
            fs::write(mount.join(IN_PIECES), noise(5, (scale.pieces * wide - 77) as usize)).unwrap();
            drop((all, rest));
            run("sync", &[]);
            fs::remove_file(&filler).unwrap();
            fs::remove_file(mount.join("rest")).unwrap();
            let hashes = tree_hashes(&mount);
            run("umount", &[mount.to_str().unwrap()]);
            hashes
        }
        _ => fat(at, unit, scale),
    }
}

/// A FAT32 of which one file is in single clusters with a free one between any two. `mkfs.fat` makes it; the tables and
/// directories are written here, as no driver makes 50,000 entries in a time that can be waited for. `fsck.fat` judges it.
fn fat(at: &Path, unit: u64, scale: Scale) -> BTreeMap<String, String> {
    let len = room(unit, scale).max((unit + 8) * 70_000);
    drop(sparse(at, len));
    let file = at.to_str().unwrap();
    run("mkfs.fat", &["-F", "32", "-S", "512", "-s", &(unit / 512).to_string(), file]);
    let disk = File::options().read(true).write(true).open(at).unwrap();
    let mut boot = [0; 512];
    disk.read_exact_at(&mut boot, 0).unwrap();
    let u16_at = |at: usize| u64::from(u16::from_le_bytes([boot[at], boot[at + 1]]));
    let reserved = u16_at(0x0E) * 512;
    let table_len = u64::from(u32::from_le_bytes(boot[0x24..0x28].try_into().unwrap())) * 512;
    let data = reserved + 2 * table_len;
    let mut table: Vec<u32> = vec![0x0FFF_FFF8, 0x0FFF_FFFF, 0x0FFF_FFFF];
    let mut take = |count: u64, step: u32| -> Vec<u32> {
        let first = table.len() as u32;
        let all: Vec<u32> = (0..count as u32).map(|i| first + i * step).collect();
        table.resize(table.len() + (count as usize) * step as usize, 0);
        for (i, n) in all.iter().enumerate() {
            table[*n as usize] = all.get(i + 1).copied().unwrap_or(0x0FFF_FFFF);
        }
        all
    };
    let write = |clusters: &[u32], bytes: &[u8]| {
        for (n, part) in clusters.iter().zip(bytes.chunks(unit as usize)) {
            disk.write_all_at(part, data + u64::from(*n - 2) * unit).unwrap();
        }
    };
    let entry = |name: &str, attributes: u8, first: u32, size: u32| -> Vec<u8> {
        let (stem, more) = name.split_once('.').filter(|_| !name.starts_with('.')).unwrap_or((name, ""));
        let mut e = format!("{stem:<8}{more:<3}").into_bytes();
        e.push(attributes);
        e.extend([0; 8]);
        e.extend(((first >> 16) as u16).to_le_bytes());
        e.extend([0x21, 0x43, 0x65, 0x57]);
        e.extend((first as u16).to_le_bytes());
        e.extend(size.to_le_bytes());
        e
    };
    let mut hashes = BTreeMap::new();
    let mut put = |dir: &mut Vec<u8>, path: &str, name: &str, bytes: &[u8], step: u32| {
        let clusters = take((bytes.len() as u64).div_ceil(unit), step);
        write(&clusters, bytes);
        dir.extend(entry(name, 0x20, clusters.first().copied().unwrap_or(0), bytes.len() as u32));
        hashes.insert(format!("{path}{name}"), sha(bytes));
    };
    let mut root = Vec::new();
    put(&mut root, "", "PIECES.BIN", &noise(6, (scale.pieces * unit - 77) as usize), 2);
    let mut dirs: Vec<(String, Vec<u8>)> = Vec::new();
    for d in 0..scale.files / 500 {
        let name = format!("FOLDER{d:02}");
        let mut dir = vec![0; 64];
        for i in 0..500 {
            let len = if i % 8 == 0 { 1 + (i * 7919 + d) % (2 * unit as usize) } else { i % 8 / 6 * 300 };
            put(&mut dir, &format!("{name}/"), &format!("F{i:05}.TXT"), &noise(i as u64, len), 1);
        }
        dirs.push((name, dir));
    }
    let mut one = vec![0; 64];
    for i in 0..scale.in_one {
        let len = if i % 50 == 0 { 1 + i * 131 % unit as usize } else { 0 };
        put(&mut one, "ONEDIR/", &format!("{:08X}", (i as u32).wrapping_mul(2_654_435_761)), &noise(i as u64, len), 1);
    }
    dirs.push(("ONEDIR".into(), one));
    for (name, mut bytes) in dirs {
        let clusters = take((bytes.len() as u64).div_ceil(unit), 1);
        bytes.resize(clusters.len() * unit as usize, 0);
        bytes[..32].copy_from_slice(&entry(".", 0x10, clusters[0], 0));
        bytes[32..64].copy_from_slice(&entry("..", 0x10, 0, 0));
        write(&clusters, &bytes);
        root.extend(entry(&name, 0x10, clusters[0], 0));
    }
    let rest = take(((root.len() + 32) as u64).div_ceil(unit).saturating_sub(1), 1);
    table[2] = rest.first().copied().unwrap_or(0x0FFF_FFFF);
    root.resize((rest.len() + 1) * unit as usize, 0);
    write(&[&[2], &rest[..]].concat(), &root);
    let bytes: Vec<u8> = table.iter().flat_map(|n| n.to_le_bytes()).collect();
    assert!(bytes.len() as u64 <= table_len);
    disk.write_all_at(&bytes, reserved).unwrap();
    disk.write_all_at(&bytes, reserved + table_len).unwrap();
    let sectors = u64::from(u32::from_le_bytes(boot[0x20..0x24].try_into().unwrap()));
    let total = (sectors * 512 - data) / unit;
    let free = total + 2 - table.iter().filter(|n| **n != 0).count() as u64;
    disk.write_all_at(&(free as u32).to_le_bytes(), 512 + 0x1E8).unwrap();
    let out = Command::new("fsck.fat").args(["-n", file]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    hashes
}

/// A host with the guest on it as `vm/disk image.raw`, and the hashes of its older files.
fn host(shape: Shape, guest: &Path, in_pieces: bool, at: &Path) -> BTreeMap<String, String> {
    drop(sparse(at, shape.mib << 20));
    let (sector, cluster) = (shape.sector.to_string(), shape.cluster.to_string());
    let fixed = ["-q", "-F", "-Q", "-p", "0", "-H", "16", "-S", "63"];
    run("mkntfs", &[&fixed[..], &["-s", &sector, "-c", &cluster, at.to_str().unwrap()]].concat());
    let mount = Mounted::new(at, "big_writes");
    fs::create_dir_all(mount.at.join("vm")).unwrap();
    for i in 0..300 {
        fs::write(mount.at.join(format!("vm/older {i}")), noise(i, 30 * i as usize)).unwrap();
    }
    for i in 0..100 {
        fs::remove_file(mount.at.join(format!("vm/older {}", 3 * i))).unwrap();
    }
    let len = fs::metadata(guest).unwrap().len();
    let image = sparse(&mount.at.join(IMAGE), if in_pieces { len } else { 0 });
    let mut from = File::open(guest).unwrap();
    let parts = match (in_pieces, shape.sector) {
        (false, _) => 1,
        // Larger records have room for more runs.
        (true, 4096) => 5000,
        (true, _) => 700,
    };
    // Whole clusters of any host, in an order that leaves no part beside its neighbour.
    let part = len.div_ceil(parts).next_multiple_of(65536);
    let mut buffer = vec![0; 4 << 20];
    for i in 0..parts {
        let start = i * 89 % parts * part;
        let end = (start + part).min(len);
        from.seek(SeekFrom::Start(start)).unwrap();
        let mut to = start;
        while to < end {
            let step = ((end - to) as usize).min(buffer.len());
            from.read_exact(&mut buffer[..step]).unwrap();
            image.write_all_at(&buffer[..step], to).unwrap();
            to += step as u64;
        }
    }
    drop(image);
    let mut older = tree_hashes(&mount.at);
    mount.close();
    older.remove(IMAGE).unwrap();
    let list = String::from_utf8(run("fls", &["-r", "-p", "-F", "-f", "ntfs", at.to_str().unwrap()])).unwrap();
    let line = list.lines().find(|l| l.ends_with(&format!("\t{IMAGE}"))).unwrap();
    let number = line.split_once(' ').unwrap().1.split_once(":\t").unwrap().0;
    let about = String::from_utf8(run("istat", &["-f", "ntfs", at.to_str().unwrap(), number])).unwrap();
    assert_eq!(about.contains("$ATTRIBUTE_LIST"), in_pieces, "{}", &about[..about.len().min(3000)]);
    older
}

/// Where the data of a file does not go on at the next cluster, as The Sleuth Kit has it.
fn fragments(volume: &Path, file: &str) -> usize {
    let volume = volume.to_str().unwrap();
    let list = String::from_utf8(run("fls", &["-r", "-p", "-F", "-f", "ntfs", volume])).unwrap();
    let line = list.lines().find(|l| l.ends_with(&format!("\t{file}"))).unwrap();
    let number = line.split_once(' ').unwrap().1.split_once(":\t").unwrap().0;
    let about = String::from_utf8(run("istat", &["-f", "ntfs", volume, number])).unwrap();
    let data = about.lines().skip_while(|l| !l.starts_with("Type: $DATA")).skip(1);
    let numbers = data.take_while(|l| !l.starts_with("Type:")).flat_map(str::split_whitespace);
    let all: Vec<u64> = numbers.filter_map(|n| n.parse().ok()).collect();
    1 + all.windows(2).filter(|p| p[0] + 1 != p[1]).count()
}

/// A disk whose only partition is this volume.
fn in_partition(volume: &Path, disk: &Path) {
    let len = fs::metadata(volume).unwrap().len();
    drop(sparse(disk, len + (3 << 20)));
    let table = format!("label: gpt\nstart=2048, size={}, type=EBD0A0A2-B9E5-4433-87C0-68B6B72699C7\n", len / 512);
    let mut sfdisk = Command::new("sfdisk").args(["-q"]).arg(disk).stdin(Stdio::piped()).spawn().unwrap();
    sfdisk.stdin.take().unwrap().write_all(table.as_bytes()).unwrap();
    assert!(sfdisk.wait().unwrap().success());
    run(
        "dd",
        &[
            "bs=1M",
            "seek=1",
            "conv=notrunc,sparse",
            "status=none",
            &format!("if={}", volume.display()),
            &format!("of={}", disk.display()),
        ],
    );
    fs::remove_file(volume).unwrap();
}

fn one(kind: &str, shape: Shape, partition: bool, in_pieces: bool, scale: Scale) {
    let dir = scratch();
    let start = std::time::Instant::now();
    let path = |name: &str| -> PathBuf { dir.path().join(name) };
    let unit = shape.cluster;
    let mut streams = Streams::new();
    let files = guest(kind, &path("guest.raw"), unit, scale, &mut streams);
    assert!((kind != "ntfs" && streams.is_empty()) || streams.len() > scale.files / 400);
    assert!(files.len() > scale.files + scale.in_one);
    let len = fs::metadata(path("guest.raw")).unwrap().len();
    let record = shape.sector.max(1024) + 1024;
    let mib = ((len * 5 / 4) >> 20) + (scale.files + scale.in_one) as u64 * record / (1 << 20) + 64;
    let shape = Shape { mib, ..shape };
    let older = host(shape, &path("guest.raw"), in_pieces, &path("volume.raw"));
    fs::remove_file(path("guest.raw")).unwrap();
    let odd = judged(&path("volume.raw"));
    let mut address = path("volume.raw");
    if partition {
        in_partition(&path("volume.raw"), &path("disk.raw"));
        address = path("disk.raw");
    }
    let made = start.elapsed();
    let image = format!("{}//{}{IMAGE}", address.display(), if partition { "p1/" } else { "" });
    let journal = path("journal");
    let start = std::time::Instant::now();
    let args = ["relink", &image, "--into", "/vm/out", "--discard-rest", "--commit", "--journal"];
    let said = done(&[&args[..], &[journal.to_str().unwrap()]].concat());
    let took = start.elapsed();
    println!("{kind} on {shape:?}, partition {partition}, pieces {in_pieces}: made in {made:?}, relinked in {took:?}");
    println!("{}", said.lines().filter(|l| !l.trim().is_empty()).collect::<Vec<_>>().join("\n"));
    if partition {
        let volume = path("volume.raw");
        let skip = &format!("count={}", shape.mib);
        let (from, to) = (format!("if={}", address.display()), format!("of={}", volume.display()));
        run("dd", &["bs=1M", "skip=1", "conv=sparse", "status=none", skip, &from, &to]);
        File::options().write(true).open(&volume).unwrap().set_len(shape.mib << 20).unwrap();
        fs::remove_file(&address).unwrap();
    }
    let mut meant = older;
    meant.extend(files.into_iter().map(|(path, hash)| (format!("vm/out/{path}"), hash)));
    let pieces = if kind == "fat" { "vm/out/PIECES.BIN".into() } else { format!("vm/out/{IN_PIECES}") };
    let start = std::time::Instant::now();
    not_worse(&odd, &judged(&path("volume.raw")));
    let runs = fragments(&path("volume.raw"), &pieces);
    println!("  {pieces} has {runs} fragments");
    assert!(kind == "ntfs" || runs as u64 > scale.pieces * 5 / 8, "{runs} fragments of {pieces}");
    let streams = streams.into_iter().map(|((file, name), hash)| ((format!("vm/out/{file}"), name), hash)).collect();
    foreign_at(&path("volume.raw"), &meant, &streams, &[&pieces]);
    println!("  judged in {:?}", start.elapsed());
}

const HOSTS: [Shape; 4] = [
    Shape { sector: 512, cluster: 4096, mib: 0 },
    Shape { sector: 512, cluster: 512, mib: 0 },
    Shape { sector: 4096, cluster: 4096, mib: 0 },
    Shape { sector: 512, cluster: 65536, mib: 0 },
];

/// Each kind of guest on each kind of host; bare and in a partition, whole and in pieces take turns, so that each meets
/// every guest and every host.
#[test]
fn guests_of_twenty_thousand_files() {
    let long = std::env::var_os("UNIMAGE_LONG").is_some_and(|v| v == "1");
    let only = std::env::var("UNIMAGE_CASE").ok().and_then(|n| n.parse::<usize>().ok());
    for (h, shape) in HOSTS.into_iter().enumerate() {
        for (g, kind) in ["ntfs", "ext4", "fat"].into_iter().enumerate() {
            let case = 3 * h + g;
            // Of the slice, a guest for each kind on three of the hosts.
            if only.map_or(long || g == h, |n| n == case) {
                one(kind, shape, (h + g) % 2 == 1, (h / 2 + g) % 2 == 0, if long { FULL } else { SLICE });
            }
        }
    }
}

//! The exFAT reader against exfat-fuse, The Sleuth Kit and what the specification says of volumes that are damaged or unusual.

mod common;
mod exfat_support;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use common::exfat::{ExFat, find_set, seal, u32_in};
use common::{Mount, noise, ok, run, sha256, tree};
use exfat_support::{Memory, assert_same, open, open_bytes, volume, written};
use unimage::extent::{Offset, What};
use unimage::fs::{FileSystem, Kind, ReadOptions, Tree};

/// Files of all sorts: fragmented, empty, long and foreign names, deep and large directories, deleted entries.
fn mixed(root: &Path) {
    let put = |path: &str, bytes: &[u8]| fs::write(root.join(path), bytes).unwrap();
    put("empty.bin", b"");
    put("one.txt", b"x");
    fs::create_dir_all(root.join("Some directory/deeper/and deeper")).unwrap();
    for i in 0..60 {
        put(&format!("Some directory/piece {i}"), &noise(i, 4096));
    }
    // Two that grow by turns are in fragments.
    let open = |name: &str| fs::File::create(root.join(name)).unwrap();
    let (mut a, mut b) = (open("grown by turns"), open("the other one"));
    for i in 0..12 {
        a.write_all(&noise(i, 150_000)).unwrap();
        b.write_all(&noise(i + 50, 140_001)).unwrap();
        // The driver gives clusters when it flushes.
        a.sync_all().unwrap();
        b.sync_all().unwrap();
    }
    for i in (0..60).step_by(2) {
        fs::remove_file(root.join(format!("Some directory/piece {i}"))).unwrap();
    }
    put("Some directory/deeper/behind the gaps", &noise(77, 200_013));
    put("Größe & Übermaß.txt", &noise(78, 100));
    put(&"n".repeat(255), &noise(79, 5000));
    put("fifteen units !", &noise(80, 511));
    put("sixteen units !!", &noise(80, 512));
    put("日本語のファイル名 🦀🌍.txt", &noise(81, 70_000));
    for i in 0..400 {
        put(&format!("Some directory/deeper/entry number {i} with a longer name"), &noise(i, i as usize));
    }
    fs::remove_file(root.join("the other one")).unwrap();
    let old = fs::File::options().append(true).open(root.join("one.txt")).unwrap();
    old.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_709_213_879)).unwrap();
}

const UNITS: [(&str, u32, u64); 5] = [
    ("512", 512, 40 << 20),
    ("4K", 512, 64 << 20),
    ("32K", 512, 256 << 20),
    ("128K", 512, 512 << 20),
    ("4K", 4096, 64 << 20),
];

fn entries(tree: &Tree) -> impl Iterator<Item = (String, &unimage::fs::Object, Option<unimage::fs::StreamId>)> {
    tree.order().map(|(e, _)| {
        let id = tree.entry(e).object;
        (String::from_utf8(tree.path(e)).unwrap(), tree.object(id), tree.data(id))
    })
}

fn bytes_of(fs: &dyn FileSystem, tree: &Tree, stream: unimage::fs::StreamId) -> Vec<u8> {
    let opened = fs.open(tree, stream).unwrap();
    opened.read_vec(Offset::new(0), opened.len() as usize).unwrap()
}

/// Inode numbers and paths by `fls`, deleted entries and TSK's own files left out.
fn fls(image: &Path) -> BTreeMap<String, (u64, bool)> {
    ok("fls", ["-r", "-p", "-u", "-f", "exfat", image.to_str().unwrap()])
        .lines()
        .filter_map(|line| {
            let (kind, rest) = line.split_once(' ')?;
            let (number, path) = rest.split_once(":\t")?;
            (!kind.starts_with(['v', 'V']) && !path.starts_with('$') && !path.ends_with("(Volume Label Entry)"))
                .then(|| (path.to_owned(), (number.parse().unwrap(), kind.starts_with('d'))))
        })
        .collect()
}

#[test]
fn paths_contents_times_and_numbers_agree_with_other_readers() {
    for (unit, sector, len) in UNITS {
        let (_dir, path) = volume(len, &["-c", unit], sector, mixed);
        let fs = open(&path);
        let facts = fs.facts();
        assert_eq!((facts.kind, facts.label.as_str(), facts.clean), ("exfat", "Läbel 🦀", Some(true)));
        assert_eq!(facts.remarks, Vec::<String>::new());
        let tree_of = fs.walk().unwrap();
        assert_eq!(tree_of.problems(), [], "{unit}");
        let mount = Mount::exfat(&path, 0, 0, "ro");
        let theirs: BTreeMap<_, _> =
            tree(&mount.dir).into_iter().map(|(p, s)| (p, (s.size, s.sha, s.mtime / 1_000_000_000))).collect();
        assert!(theirs.len() > 430, "{}", theirs.len());
        let ours = entries(&tree_of)
            .filter(|(_, o, _)| o.kind == Kind::File)
            .map(|(path, object, stream)| {
                let bytes = bytes_of(&*fs, &tree_of, stream.unwrap());
                let secs = object.times.modified.unwrap().secs;
                (path, (bytes.len() as u64, sha256(&bytes), i128::from(secs)))
            })
            .collect();
        assert_same(&ours, &theirs);
        let free = common::output(std::process::Command::new("stat").args(["-f", "-c", "%f %S"]).arg(&mount.dir));
        let free: Vec<u64> = free.stdout.split_whitespace().map(|n| n.parse().unwrap()).collect();
        assert_eq!(vec![facts.free_units.unwrap(), facts.unit], free);
        let ours = entries(&tree_of).map(|(path, o, _)| (path, (o.number, o.kind == Kind::Dir))).collect();
        // fls cuts the longest names.
        let short = |mut all: BTreeMap<String, (u64, bool)>| {
            all.retain(|p, _| p.len() < 240);
            all
        };
        assert_same(&short(ours), &short(fls(&path)));
        let mut fragmented = 0;
        for (path_of, object, stream) in entries(&tree_of).filter(|(p, ..)| !p.contains("number 1")) {
            let Some(stream) = stream else { continue };
            let out = ok("istat", ["-f", "exfat", path.to_str().unwrap(), &object.number.to_string()]);
            let field = |name: &str| out.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim().to_owned();
            assert_eq!(field("Size:"), tree_of.stream(stream).size.to_string(), "{path_of}");
            let listed = out.split("Sectors:").nth(1).unwrap_or_default().split_whitespace();
            let sectors: Vec<u64> = listed.map(|n| n.parse().unwrap()).collect();
            let mut ours = Vec::new();
            for extent in tree_of.extents(stream) {
                let What::Stored(place) = extent.what else { panic!("{extent:?}") };
                let sector = u64::from(sector);
                ours.extend((0..extent.len.div_ceil(sector)).map(|i| place.offset.get() / sector + i));
            }
            assert_eq!(ours, sectors[..ours.len()], "{unit} {path_of}");
            fragmented += usize::from(tree_of.extents(stream).len() > 1);
            let shown = |secs: i64| {
                let t = time::OffsetDateTime::from_unix_timestamp(secs).unwrap();
                format!("{} {:02}:{:02}:{:02} (UTC)", t.date(), t.hour(), t.minute(), t.second())
            };
            assert_eq!(field("Accessed:"), shown(object.times.accessed.unwrap().secs));
            // It leaves the tens of milliseconds out, and with them the odd second.
            assert_eq!(field("Written:"), shown(object.times.modified.unwrap().secs / 2 * 2), "{path_of}");
        }
        assert!(fragmented > 0, "{unit}");
    }
}

#[test]
fn the_program_lists_shows_and_maps_it() {
    let (_dir, path) = volume(64 << 20, &["-c", "4K"], 512, mixed);
    let address = path.to_str().unwrap();
    let info = common::unimage(["info", address]).exits(0).stdout;
    assert!(info.contains("exfat \"Läbel 🦀\"") && info.contains("4096 bytes") && info.contains("clean"), "{info}");
    let (_, rows, _) = common::host::json_lines(&common::unimage(["ls", "-R", "--json", address]).exits(0).stdout);
    assert!(rows.iter().any(|r| r["path"] == "Some directory/deeper/behind the gaps" && r["size"] == 200_013));
    // Names are found in whatever case.
    let one = format!("{address}//ONE.TXT");
    assert_eq!(common::unimage(["cat", &one]).exits(0).stdout, "x");
    let map = common::unimage(["map", &format!("{address}//grown by turns"), "--json"]).exits(0).stdout;
    assert!(map.lines().count() > 3, "{map}");
}

/// A small volume with a directory, a fragmented file and one in a piece; its bytes.
fn small() -> Vec<u8> {
    let (_dir, path) = volume(2 << 20, &["-c", "512", "-b", "64K"], 512, |root| {
        fs::create_dir(root.join("dir")).unwrap();
        let mut a = fs::File::create(root.join("dir/fragment.bin")).unwrap();
        for i in 0..4 {
            a.write_all(&noise(i, 600)).unwrap();
            a.sync_all().unwrap();
            fs::write(root.join(format!("dir/between {i}")), noise(i, 700)).unwrap();
        }
        fs::write(root.join("a file in one piece"), noise(9, 3000)).unwrap();
    });
    fs::read(path).unwrap()
}

fn listed(fs: &dyn FileSystem) -> (Vec<String>, Vec<String>) {
    let tree = fs.walk().unwrap();
    let paths = tree.order().map(|(e, _)| String::from_utf8_lossy(&tree.path(e)).into_owned()).collect();
    (paths, tree.problems().iter().map(|p| p.what.clone()).collect())
}

fn found(fs: &dyn FileSystem, path: &str) -> Vec<u8> {
    let tree = fs.walk().unwrap();
    let stream = entries(&tree).find(|(p, ..)| p == path).unwrap_or_else(|| panic!("no {path}")).2.unwrap();
    bytes_of(fs, &tree, stream)
}

const FRAGMENT: &str = "dir/fragment.bin";
const PIECE: &str = "a file in one piece";

fn whole() -> Vec<u8> {
    (0..4).flat_map(|i| noise(i, 600)).collect()
}

/// The table's entry of a cluster.
fn fat(bytes: &[u8], cluster: u32) -> usize {
    u32_in(bytes, 0x50) as usize * 512 + cluster as usize * 4
}

fn cluster_at(bytes: &[u8], cluster: u32) -> usize {
    (u32_in(bytes, 0x58) as usize) * 512 + (cluster as usize - 2) * 512
}

#[test]
fn bytes_behind_the_valid_ones_are_zeros() {
    let mut bytes = small();
    for (name, valid) in [("fragment.bin", 700u64), (PIECE, 0)] {
        let at = find_set(&bytes, name);
        bytes[at + 40..at + 48].copy_from_slice(&valid.to_le_bytes());
        seal(&mut bytes, at);
    }
    let fs = open_bytes(bytes);
    assert_eq!(listed(&*fs).1, Vec::<String>::new());
    let mut expected = whole()[..700].to_vec();
    expected.resize(2400, 0);
    assert_eq!(found(&*fs, FRAGMENT), expected);
    assert_eq!(found(&*fs, PIECE), vec![0; 3000]);
    let tree = fs.walk().unwrap();
    let stream = entries(&tree).find(|(p, ..)| p == FRAGMENT).unwrap().2.unwrap();
    assert_eq!((tree.stream(stream).size, tree.stream(stream).valid), (2400, 700));
    assert_eq!(tree.extents(stream).last().unwrap().what, What::Zero);
}

#[test]
fn times_with_an_offset_from_utc() {
    // Quarters of an hour: none known, UTC, an hour east, five and a half, eight west; as exfat-fuse shows them.
    let bytes = small();
    let at = find_set(&bytes, PIECE);
    for (zone, odd) in [(0u8, 0u8), (0x80, 30), (0x84, 130), (0x96, 199), (0xE0, 99)] {
        let mut bytes = bytes.clone();
        bytes[at + 20..at + 22].fill(odd);
        bytes[at + 22..at + 25].fill(zone);
        seal(&mut bytes, at);
        let (_dir, path) = written(&bytes);
        let fs = open_bytes(bytes);
        let tree = fs.walk().unwrap();
        let times = entries(&tree).find(|(p, ..)| p == PIECE).unwrap().1.times;
        let mount = Mount::exfat(&path, 0, 0, "ro");
        let meta = fs::metadata(mount.dir.join(PIECE)).unwrap();
        assert_eq!(times.modified.unwrap().secs, meta.mtime(), "{zone:#x}");
        assert_eq!(times.accessed.unwrap().secs, meta.atime(), "{zone:#x}");
        assert_eq!(times.modified.unwrap().nanos, u32::from(odd % 100) * 10_000_000);
        assert_eq!(times.created.unwrap().nanos, u32::from(odd % 100) * 10_000_000);
    }
}

#[test]
fn names_with_a_lone_surrogate() {
    let mut bytes = small();
    let at = find_set(&bytes, PIECE);
    bytes[at + 66..at + 68].copy_from_slice(&0xD83Du16.to_le_bytes());
    // The hash over the name in upper case.
    let mut units: Vec<u16> = PIECE.to_ascii_uppercase().encode_utf16().collect();
    units[0] = 0xD83D;
    let hash = units.iter().flat_map(|u| u.to_le_bytes()).fold(0u16, |h, b| h.rotate_right(1).wrapping_add(b.into()));
    bytes[at + 36..at + 38].copy_from_slice(&hash.to_le_bytes());
    seal(&mut bytes, at);
    let fs = open_bytes(bytes);
    let tree = fs.walk().unwrap();
    assert_eq!(tree.problems(), []);
    let name = [b"\xED\xA0\xBD".as_slice(), &PIECE.as_bytes()[1..]].concat();
    let entry = tree.child(tree.root(), &name).unwrap();
    assert_eq!(bytes_of(&*fs, &tree, tree.data(tree.entry(entry).object).unwrap()), noise(9, 3000));
}

#[test]
fn damage_is_named_and_the_rest_is_read() {
    let good = small();
    let (all, problems) = listed(&*open_bytes(good.clone()));
    assert_eq!((all.len(), problems), (7, vec![]));
    let (fragment, piece, dir) = (find_set(&good, "fragment.bin"), find_set(&good, PIECE), find_set(&good, "dir"));
    assert_eq!(good[fragment + 33], 1, "in fragments, with a chain");
    assert_eq!(good[piece + 33], 3, "in one piece, without a chain");
    let first = u32_in(&good, fragment + 52);
    type Change<'a> = Box<dyn Fn(&mut Vec<u8>) + 'a>;
    let put = |at: usize, new: &[u8]| -> Change<'_> {
        let new = new.to_vec();
        Box::new(move |b| b[at..at + new.len()].copy_from_slice(&new))
    };
    let sealed = |set: usize, at: usize, new: &[u8]| -> Change<'_> {
        let new = new.to_vec();
        Box::new(move |b| {
            b[set + at..set + at + new.len()].copy_from_slice(&new);
            seal(b, set);
        })
    };
    let word = |n: u32| n.to_le_bytes();
    // What is changed; a word of the problem; how many paths are lost; whether all of the contents are still read.
    let cases: Vec<(Change<'_>, &str, usize, bool)> = vec![
        (put(fragment + 8, &[1]), "checksum", 0, true),
        (sealed(fragment, 36, &[1, 2]), "hash", 0, true),
        (put(fat(&good, first), &word(0)), "free", 0, false),
        (put(fat(&good, first), &word(first)), "comes back", 0, false),
        (put(fat(&good, first), &word(0x00F0_0000)), "number 15728640", 0, false),
        (put(fat(&good, first), &word(0xFFFF_FFF7)), "bad", 0, false),
        (put(fat(&good, first), &word(u32::MAX)), "5 clusters", 0, false),
        (sealed(fragment, 52, &word(0)), "number 0", 0, false),
        (sealed(fragment, 52, &word(1)), "number 1", 0, false),
        (sealed(fragment, 40, &u64::MAX.to_le_bytes()), "valid", 0, true),
        (sealed(fragment, 56, &(u64::MAX - 1).to_le_bytes()), "clusters for", 0, false),
        (sealed(piece, 56, &(u64::MAX - 1).to_le_bytes()), "cluster", 0, false),
        (sealed(piece, 52, &word(first)), "another chain", 0, false),
        (sealed(piece, 52, &word(u32::MAX)), "number 4294967295", 0, false),
        (sealed(dir, 52, &word(0)), "number 0", 5, false),
        (sealed(dir, 52, &good[0x60..0x64]), "another chain", 5, false),
        (put(fragment + 32, &[0xC1]), "stream extension", 1, false),
        (put(fragment, &[0x05]), "file entry", 1, false),
        (sealed(fragment, 35, &[200]), "name of the length", 0, true),
        (put(fragment + 1, &[200]), "secondary entries", 0, true),
        (sealed(fragment, 66, &[b'/', 0]), "slash", 0, true),
        (sealed(fragment, 64, &[0xE0]), "vendors", 0, true),
        (sealed(fragment, 64, &[0xC7]), "kinds that are known", 0, true),
        (put(cluster_at(&good, u32_in(&good, 0x60)) + 32, &[0x87]), "kind that is known", 0, true),
    ];
    for (n, (change, word, lost, read)) in cases.into_iter().enumerate() {
        let mut bytes = good.clone();
        change(&mut bytes);
        let fs = open_bytes(bytes);
        let (paths, problems) = listed(&*fs);
        assert!(problems.iter().any(|p| p.contains(word)), "{n} {word}: {problems:?}");
        assert_eq!(paths.len(), 7 - lost, "{n} {word}: {paths:?}");
        let tree = fs.walk().unwrap();
        // By what they hold: some have lost their names.
        let all: Vec<Vec<u8>> = entries(&tree)
            .filter_map(|(_, _, s)| s)
            .filter(|s| tree.stream(*s).size < 10_000)
            .filter_map(|s| {
                let opened = fs.open(&tree, s).unwrap();
                opened.read_vec(Offset::new(0), opened.len() as usize).ok()
            })
            .collect();
        if read {
            assert!(all.contains(&whole()), "{n} {word}");
        }
        assert!(all.contains(&noise(9, 3000)) || [11, 12, 13].contains(&n), "{n} {word}");
    }
    // What is there of a cut chain can be read, the rest is an error and no zeros.
    let mut bytes = good.clone();
    put(fat(&good, first), &word(u32::MAX))(&mut bytes);
    let fs = open_bytes(bytes);
    let tree = fs.walk().unwrap();
    let stream = entries(&tree).find(|(p, ..)| p == FRAGMENT).unwrap().2.unwrap();
    let opened = fs.open(&tree, stream).unwrap();
    assert_eq!(opened.read_vec(Offset::new(0), 512).unwrap(), whole()[..512]);
    assert!(opened.read_vec(Offset::new(500), 100).is_err());
    assert_eq!(opened.len(), 2400);
}

#[test]
fn a_damaged_boot_region_is_read_from_its_backup() {
    let good = small();
    for (from, to) in [(0, 512), (0, 6144), (0x6C, 0x6D)] {
        let mut bytes = good.clone();
        bytes[from..to].fill(0xA5);
        let fs = open_bytes(bytes);
        assert_eq!(found(&*fs, FRAGMENT), whole());
        assert_eq!(fs.facts().clean, Some(false));
        assert!(fs.facts().remarks.iter().any(|r| r.contains("backup")));
    }
    let mut bytes = good.clone();
    bytes[0x200] ^= 1;
    assert!(open_bytes(bytes).facts().remarks.iter().any(|r| r.contains("checksum")));
    // Beneath another file system an old backup says nothing.
    let (_dir, path) = written(&good);
    ok("mkfs.ext4", ["-q", "-F", path.to_str().unwrap()]);
    assert!(open(&path).facts().kind.starts_with("ext"));
    let mut bytes = good;
    bytes[..512].fill(0);
    bytes[510..512].copy_from_slice(&[0x55, 0xAA]);
    bytes[0x1BE..0x1CE].copy_from_slice(&[0x80, 0, 2, 0, 0x07, 0, 2, 0, 0, 8, 0, 0, 0, 8, 0, 0]);
    assert!(unimage::fs::probe(Arc::new(Memory::new(bytes)), ReadOptions::default()).unwrap().is_none());
}

#[test]
fn the_second_table_of_texfat() {
    let mut bytes = small();
    let (at, len) = (fat(&bytes, 0), u32_in(&bytes, 0x54) as usize * 512);
    assert!(u32_in(&bytes, 0x58) as usize * 512 >= at + 2 * len, "room for a second table");
    bytes.copy_within(at..at + len, at + len);
    let first = u32_in(&bytes, find_set(&bytes, "fragment.bin") + 52);
    let here = fat(&bytes, first);
    bytes[here..here + 4].copy_from_slice(&[0xFF; 4]);
    bytes[0x6E] = 2;
    let root = cluster_at(&bytes, u32_in(&bytes, 0x60));
    let bitmap = (root..root + 512).step_by(32).find(|at| bytes[*at] == 0x81).unwrap();
    // The first table and bitmap are in use, then the second ones.
    let fs = open_bytes(bytes.clone());
    assert!(listed(&*fs).1.iter().any(|p| p.contains("5 clusters")));
    bytes[0x6A] |= 1;
    bytes[bitmap + 1] = 1;
    let fs = open_bytes(bytes);
    assert_eq!(found(&*fs, FRAGMENT), whole());
    assert!(listed(&*fs).1.is_empty() && fs.facts().free_units.is_some());
    assert!(fs.facts().remarks.iter().any(|r| r.contains("TexFAT")));
}

#[test]
fn bitmap_and_up_case_table() {
    let good = small();
    let root = cluster_at(&good, u32_in(&good, 0x60));
    let entry = |kind: u8| (root..root + 512).step_by(32).find(|at| good[*at] == kind).unwrap();
    let with = |at: usize, new: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + new.len()].copy_from_slice(new);
        open_bytes(bytes)
    };
    for (fs, word, free) in [
        (with(entry(0x81) + 24, &[1, 0]), "all clusters", false),
        (with(entry(0x81) + 20, &[0xFF; 4]), "bitmap", false),
        (with(entry(0x81), &[1]), "expected an allocation bitmap", false),
        (with(entry(0x82) + 4, &[1]), "another checksum", true),
        (with(entry(0x82), &[2]), "one up-case table", true),
        (with(entry(0x82) + 24, &[0, 0, 16]), "65536 units", true),
    ] {
        let (paths, problems) = listed(&*fs);
        assert_eq!(paths.len(), 7);
        assert!(problems.iter().any(|p| p.contains(word)), "{word}: {problems:?}");
        assert_eq!(fs.facts().free_units.is_some(), free, "{word}");
        assert_eq!(found(&*fs, FRAGMENT), whole());
    }
}

#[test]
fn a_volume_that_was_cut_off_is_read_as_far_as_it_goes() {
    let good = small();
    for len in [good.len() - 4096, good.len() / 2, 600_000, 80_000, 40_000, 20_000, 5_000, 600, 511, 3] {
        let volume = Memory::new(good[..len].to_vec());
        let Some(fs) = unimage::fs::probe(Arc::new(volume), ReadOptions::default()).unwrap() else {
            assert!(len < 600);
            continue;
        };
        fs.facts();
        let (paths, problems) = listed(&*fs);
        assert!(paths.len() == 7 || !problems.is_empty(), "{len}");
    }
}

#[test]
fn what_is_no_exfat_volume_is_not_taken_for_one() {
    let none = |bytes: Vec<u8>| {
        let volume = Arc::new(Memory::new(bytes));
        unimage::fs::exfat::open(volume.clone(), Default::default()).unwrap().is_none()
            && unimage::fs::exfat::open_by_backup(volume, Default::default()).unwrap().is_none()
    };
    assert!(none(vec![]) && none(vec![0; 100]) && none(vec![0; 1 << 20]) && none(vec![0xFF; 1 << 20]));
    for seed in 0..100 {
        assert!(none(noise(seed, 64 << 10)));
    }
    let dir = tempfile::tempdir().unwrap();
    for (program, args) in [
        ("mkfs.ntfs", vec!["-F", "-Q", "-q"]),
        ("mkfs.fat", vec![]),
        ("mkfs.ext4", vec!["-q"]),
        ("sgdisk", vec!["-n", "1"]),
    ] {
        let path = dir.path().join("volume");
        fs::write(&path, vec![0; 8 << 20]).unwrap();
        run(program, [args, vec![path.to_str().unwrap()]].concat()).exits(0);
        assert!(none(fs::read(&path).unwrap()), "{program}");
    }
}

#[test]
fn mutated_volumes_neither_panic_nor_hang() {
    let start = std::time::Instant::now();
    let mut random = 0x2545_F491_4F6C_DD1Du64;
    let mut next = move |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 11) as usize % below
    };
    let good = small();
    // Boot regions, table, bitmap and directories count more than data.
    let meta: Vec<usize> = (0..good.len())
        .filter(|i| good[*i] != 0)
        .filter(|i| *i < 512 || good[i / 32 * 32] & 0x7F <= 5 || *i < cluster_at(&good, 2))
        .collect();
    for round in 0..1500 {
        let mut bytes = good.clone();
        for _ in 0..1 + next(6) {
            let near = meta[next(meta.len())] + next(3);
            let at = if next(4) == 0 { next(512) } else { near.min(bytes.len() - 1) };
            bytes[at] = match next(4) {
                0 => 0xFF,
                1 => 0,
                2 => bytes[at] ^ 1 << next(8),
                _ => next(256) as u8,
            };
        }
        if round % 2 == 0 {
            for name in ["fragment.bin", PIECE, "dir"] {
                // Where it is still to be found: right checksums over wrong values.
                let at = find_set(&good, name);
                if bytes[at] == 0x85 && at + (usize::from(bytes[at + 1]) + 1) * 32 <= bytes.len() {
                    seal(&mut bytes, at);
                }
            }
        }
        if next(10) == 0 {
            bytes.truncate(next(bytes.len()));
        }
        let Some(fs) = unimage::fs::probe(Arc::new(Memory::new(bytes)), ReadOptions::default()).unwrap() else {
            continue;
        };
        fs.facts();
        let tree = fs.walk().unwrap();
        for (e, _) in tree.order() {
            let Some(stream) = tree.data(tree.entry(e).object) else { continue };
            let opened = fs.open(&tree, stream).unwrap();
            let _ = opened.read_vec(Offset::new(0), opened.len().min(4096) as usize);
        }
    }
    assert!(start.elapsed().as_secs() < 120, "{:?}", start.elapsed());
}

#[test]
fn the_geometry_of_the_tests_is_that_of_the_reader() {
    let (_dir, path) = volume(64 << 20, &["-c", "4K"], 512, mixed);
    let geometry = ExFat::open(&path, 0);
    let facts = open(&path).facts();
    assert_eq!((facts.unit, facts.units), (geometry.cluster, geometry.clusters.into()));
    assert_eq!(facts.free_units, Some(geometry.free(&path).len() as u64));
}

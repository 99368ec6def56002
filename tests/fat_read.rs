//! The FAT reader against mtools, The Sleuth Kit, fusefat and the `fatfs` crate.

mod fat_support;

use std::collections::BTreeMap;

use fat_support::*;
use unimage::extent::{LayerId, Offset, ReadAt, Volume, What};
use unimage::fs::{FileSystem, Kind, Tree};

/// Files of all sorts: fragmented, empty, long and foreign names, deep and large directories.
fn filled(shape: Shape) -> (Image, BTreeMap<String, Vec<u8>>) {
    let image = Image::new(shape);
    let mut files = BTreeMap::new();
    let mut put = |path: &str, bytes: Vec<u8>| {
        image.put_at(path, &bytes, 1_709_210_278 + bytes.len() as i64 * 2);
        files.insert(path.trim_start_matches('/').to_owned(), bytes);
    };
    put("/EMPTY.BIN", vec![]);
    put("/one.txt", b"x".to_vec());
    image.mkdir("/Some directory");
    image.mkdir("/Some directory/deeper");
    let unit = 4096;
    // Every other one is removed, so that what comes after is in fragments.
    for i in 0..40 {
        put(&format!("/Some directory/piece {i}"), noise(i, unit));
    }
    for i in (0..40).step_by(2) {
        image.remove(&format!("/Some directory/piece {i}"));
    }
    image.rewind(shape);
    let mut files2 = BTreeMap::new();
    let mut put = |path: &str, bytes: Vec<u8>| {
        image.put_at(path, &bytes, 1_709_210_278 + bytes.len() as i64 * 2);
        files2.insert(path.trim_start_matches('/').to_owned(), bytes);
    };
    put("/Some directory/deeper/fragmented file.dat", noise(77, 30 * unit + 13));
    put("/Größe & Übermaß.txt", noise(78, 100));
    put(&format!("/{}", "n".repeat(180)), noise(79, 5000));
    put("/exactly13char", noise(80, 511));
    put("/exactly 13 ch", noise(80, 512));
    put("/日本語のファイル名.txt", noise(81, 700));
    for i in 0..120 {
        put(&format!("/Some directory/deeper/entry number {i}"), noise(i, i as usize));
    }
    for i in (0..40).step_by(2) {
        files.remove(&format!("Some directory/piece {i}"));
    }
    files.append(&mut files2);
    (image, files)
}

fn contents(fs: &dyn FileSystem, tree: &Tree) -> BTreeMap<String, Vec<u8>> {
    tree.order()
        .filter(|(e, _)| tree.object(tree.entry(*e).object).kind == Kind::File)
        .map(|(e, _)| {
            let stream = tree.data(tree.entry(e).object).unwrap();
            let opened = fs.open(tree, stream).unwrap();
            let bytes = opened.read_vec(Offset::new(0), opened.len() as usize).unwrap();
            (String::from_utf8(tree.path(e)).unwrap(), bytes)
        })
        .collect()
}

/// Inode numbers and paths by `fls`, deleted entries and TSK's own files left out.
fn fls(image: &Image) -> BTreeMap<String, (u64, bool)> {
    text("fls", &["-r", "-p", "-u", "-f", "fat", image.str()])
        .lines()
        .filter_map(|line| {
            let (kind, rest) = line.split_once(' ')?;
            let (number, path) = rest.split_once(":\t")?;
            (!kind.starts_with('v')
                && !kind.starts_with('V')
                && !path.starts_with('$')
                && !path.ends_with("(Volume Label Entry)"))
            .then(|| (path.to_owned(), (number.parse().unwrap(), kind.starts_with('d'))))
        })
        .collect()
}

fn hashes(files: &BTreeMap<String, Vec<u8>>) -> BTreeMap<String, String> {
    files.iter().map(|(path, bytes)| (path.clone(), sha(bytes))).collect()
}

/// Hashes of all files as fusefat shows them; it knows no NT byte, so that names are in upper case, and it shows the label.
fn mounted(image: &Image) -> BTreeMap<String, String> {
    let mount = Mounted::new(&image.path);
    let list = text("find", &[mount.path().to_str().unwrap(), "-type", "f", "-printf", "%P\n"]);
    list.lines()
        .filter(|path| *path != "LABEL")
        .map(|path| (path.to_uppercase(), sha(&std::fs::read(mount.path().join(path)).unwrap())))
        .collect()
}

#[test]
fn paths_contents_and_numbers_agree_with_other_readers() {
    for shape in SHAPES {
        let (image, files) = filled(*shape);
        let fs = open(image.bytes());
        let facts = fs.facts();
        assert_eq!(facts.kind, format!("fat{}", shape.fat), "{shape:?}");
        assert_eq!((facts.label.as_str(), facts.serial.as_str(), facts.clean), ("LABEL", "1234-ABCD", Some(true)));
        let tree = fs.walk().unwrap();
        assert_eq!(tree.problems(), [], "{shape:?}");
        let (found, meant) = (hashes(&contents(&*fs, &tree)), hashes(&files));
        assert_same(&found, &meant);
        assert_same(&mounted(&image), &meant.into_iter().map(|(path, hash)| (path.to_uppercase(), hash)).collect());
        let ours: BTreeMap<String, (u64, bool)> = tree
            .order()
            .map(|(e, _)| {
                let object = tree.object(tree.entry(e).object);
                (String::from_utf8(tree.path(e)).unwrap(), (object.number, object.kind == Kind::Dir))
            })
            .collect();
        assert_same(&ours, &fls(&image));
    }
}

/// Sectors of a file by `istat`, and its size and times.
fn istat(image: &Image, number: u64) -> (u64, Vec<u64>, BTreeMap<String, String>) {
    let out = text("istat", &["-f", "fat", image.str(), &number.to_string()]);
    let mut size = 0;
    let mut sectors = Vec::new();
    let mut times = BTreeMap::new();
    let mut listing = false;
    for line in out.lines() {
        if let Some(n) = line.strip_prefix("Size: ") {
            size = n.parse().unwrap();
        } else if line == "Sectors:" {
            listing = true;
        } else if let Some((what, when)) = line.split_once(":\t") {
            times.insert(what.to_owned(), when.to_owned());
        } else if listing {
            sectors.extend(line.split_whitespace().map(|n| n.parse::<u64>().unwrap()));
        }
    }
    (size, sectors, times)
}

#[test]
fn extents_sizes_and_times_agree_with_istat() {
    for shape in [SHAPES[0], SHAPES[3], SHAPES[5], SHAPES[9]] {
        let (image, _) = filled(shape);
        let fs = open(image.bytes());
        let tree = fs.walk().unwrap();
        let sector: u64 = shape.sector.parse().unwrap();
        let mut fragmented = 0;
        for (e, _) in tree.order().filter(|(e, _)| !String::from_utf8_lossy(tree.name(*e)).contains("number 1")) {
            let object = tree.object(tree.entry(e).object);
            let Some(stream) = tree.data(tree.entry(e).object) else { continue };
            let (size, sectors, times) = istat(&image, object.number);
            assert_eq!(tree.stream(stream).size, size);
            let mut ours = Vec::new();
            for extent in tree.extents(stream) {
                let What::Stored(place) = extent.what else { panic!("{extent:?}") };
                ours.extend((0..extent.len.div_ceil(sector)).map(|i| place.offset.get() / sector + i));
            }
            fragmented += usize::from(tree.extents(stream).len() > 1);
            // istat lists whole clusters.
            assert_eq!(ours, sectors[..ours.len()], "{shape:?} {}", object.number);
            assert_eq!(sectors.len() as u64 * sector, size.div_ceil(fs.facts().unit) * fs.facts().unit);
            let shown = |secs: i64| {
                let t = time::OffsetDateTime::from_unix_timestamp(secs).unwrap();
                format!("{} {:02}:{:02}:{:02} (UTC)", t.date(), t.hour(), t.minute(), t.second())
            };
            assert_eq!(times["Written"], shown(object.times.modified.unwrap().secs));
            assert_eq!(times["Accessed"], shown(object.times.accessed.unwrap().secs));
            assert_eq!(times["Created"], shown(object.times.created.unwrap().secs));
        }
        assert!(fragmented > 0, "{shape:?}");
    }
}

#[test]
fn the_fatfs_crate_reads_the_same() {
    fn walk(dir: &fatfs::Dir<'_, std::io::Cursor<Vec<u8>>>, path: &str, out: &mut BTreeMap<String, String>) {
        for entry in dir.iter().map(|e| e.unwrap()).filter(|e| ![".", ".."].contains(&e.file_name().as_str())) {
            // It knows no NT byte in `file_name`.
            let path = format!("{path}{}", entry.file_name().to_uppercase());
            if entry.is_dir() {
                walk(&entry.to_dir(), &format!("{path}/"), out);
            } else {
                let mut bytes = Vec::new();
                std::io::Read::read_to_end(&mut entry.to_file(), &mut bytes).unwrap();
                out.insert(path, sha(&bytes));
            }
        }
    }
    for shape in [SHAPES[1], SHAPES[3], SHAPES[5]] {
        let (image, _) = filled(shape);
        let fs = open(image.bytes());
        let ours = hashes(&contents(&*fs, &fs.walk().unwrap()));
        let other = fatfs::FileSystem::new(std::io::Cursor::new(image.bytes()), fatfs::FsOptions::new()).unwrap();
        let mut theirs = BTreeMap::new();
        walk(&other.root_dir(), "", &mut theirs);
        assert_same(&ours.into_iter().map(|(path, hash)| (path.to_uppercase(), hash)).collect(), &theirs);
    }
}

/// A small volume of each width with a directory, a fragmented file and a file after it.
fn small(fat: &'static str) -> Vec<u8> {
    let size = match fat {
        "12" => 304,
        "16" => 2304,
        _ => 34_000,
    };
    let image = Image::new(Shape { fat, cluster: "1", sector: "512", size });
    image.mkdir("/DIR");
    image.put("/DIR/a", &noise(1, 600));
    image.put("/DIR/b", &noise(2, 600));
    image.remove("/DIR/a");
    image.rewind(Shape { fat, cluster: "1", sector: "512", size: 0 });
    image.put("/DIR/FRAGMENT.BIN", &noise(3, 2500));
    image.put("/a long name of a file.txt", &noise(4, 700));
    image.bytes()
}

/// Where the 8.3 entry with this name is.
fn slot(bytes: &[u8], name: &[u8; 11]) -> usize {
    bytes.windows(11).position(|w| w == name).unwrap()
}

fn listed(fs: &dyn FileSystem) -> (Vec<String>, Vec<String>) {
    let tree = fs.walk().unwrap();
    let mut paths: Vec<String> =
        tree.order().map(|(e, _)| String::from_utf8_lossy(&tree.path(e)).into_owned()).collect();
    paths.sort();
    (paths, tree.problems().iter().map(|p| p.what.clone()).collect())
}

const ALL: [&str; 4] = ["DIR", "DIR/FRAGMENT.BIN", "DIR/b", "a long name of a file.txt"];

#[test]
fn damage_is_named_and_the_rest_is_read() {
    let good = small("16");
    let (paths, problems) = listed(&*open(good.clone()));
    assert_eq!((paths, problems), (ALL.map(str::to_owned).to_vec(), vec![]));
    let fragment = slot(&good, b"FRAGMENTBIN");
    let dir = slot(&good, b"DIR        ");
    let cluster = |at: usize| u16::from_le_bytes([good[at + 26], good[at + 27]]) as usize;
    let reserved = u16::from_le_bytes([good[14], good[15]]) as usize * 512;
    let entry = |n: usize| reserved + 2 * n;
    let with = |at: usize, new: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + new.len()].copy_from_slice(new);
        bytes
    };
    let first = cluster(fragment);
    for (bytes, word, lost) in [
        // The second cluster is free; the chain comes back; it leads nowhere, to a bad cluster, into another file.
        (with(entry(first), &[0, 0]), "free", 0),
        (with(entry(first), &(first as u16).to_le_bytes()), "comes back", 0),
        (with(entry(first), &[0xF0, 0xEF]), "number 61424", 0),
        (with(entry(first), &[1, 0]), "number 1", 0),
        (with(entry(first), &[0xF7, 0xFF]), "bad", 0),
        (with(entry(first), &[0xFF, 0xFF]), "5 clusters", 0),
        (with(fragment + 26, &[0, 0]), "5 clusters", 0),
        (with(fragment + 26, &[0xF0, 0xEF]), "number 61424", 0),
        (with(fragment + 28, &[0xFF, 0xFF, 0xFF, 0xFF]), "8388608 clusters", 0),
        (with(fragment + 26, &good[slot(&good, b"ALONGN~1TXT") + 26..][..2]), "another chain", 0),
        // The directory leads to nothing, to itself by a file of its own, to the root's place.
        (with(dir + 26, &[0, 0]), "number 0", 2),
        (with(dir + 26, &[1, 0]), "number 1", 2),
        (with(fragment + 11, &[0x10]), "another chain", 0),
    ] {
        let bytes = if word == "another chain" && bytes[fragment + 11] == 0x10 {
            // A directory that contains itself.
            let mut bytes = bytes;
            let own = cluster(dir) as u16;
            bytes[fragment + 26..fragment + 28].copy_from_slice(&own.to_le_bytes());
            bytes
        } else {
            bytes
        };
        let fs = open(bytes);
        let (paths, problems) = listed(&*fs);
        assert!(problems.iter().any(|p| p.contains(word) && p.contains("volume offset")), "{word}: {problems:?}");
        assert_eq!(paths.len(), 4 - lost, "{word}: {paths:?}");
        assert!(paths.contains(&ALL[3].to_owned()));
    }
    // What is there of a cut chain can be read, the rest is an error and no zeros.
    let fs = open(with(entry(first), &[0xFF, 0xFF]));
    let tree = fs.walk().unwrap();
    let e = tree.order().find(|(e, _)| tree.name(*e) == b"FRAGMENT.BIN").unwrap().0;
    let stream = fs.open(&tree, tree.data(tree.entry(e).object).unwrap()).unwrap();
    assert_eq!(stream.read_vec(Offset::new(0), 512).unwrap(), noise(3, 2500)[..512]);
    assert!(stream.read_vec(Offset::new(500), 100).is_err());
    assert_eq!(stream.len(), 2500);
}

#[test]
fn a_damaged_boot_sector_is_read_from_its_copy() {
    let good = small("32");
    let mut bytes = good.clone();
    bytes[..512].fill(0xA5);
    let fs = open(bytes.clone());
    assert_eq!(listed(&*fs).0, ALL);
    assert_eq!(fs.facts().clean, Some(false));
    assert!(fs.facts().remarks.iter().any(|r| r.contains("copy")));
    // Beneath another file system's superblock or a partition table, an old copy says nothing.
    bytes[..512].fill(0);
    let none = |bytes: Vec<u8>| {
        unimage::fs::fat::open(std::sync::Arc::new(Memory::new(bytes)), Default::default()).unwrap().is_none()
    };
    assert!(!none(bytes.clone()));
    let mut ext = bytes.clone();
    ext[1024 + 56..][..2].copy_from_slice(&[0x53, 0xEF]);
    assert!(none(ext));
    let mut mbr = bytes.clone();
    mbr[510..512].copy_from_slice(&[0x55, 0xAA]);
    mbr[0x1BE..0x1CE].copy_from_slice(&[0x80, 0, 2, 0, 0x0C, 0, 2, 0, 0, 8, 0, 0, 0, 8, 0, 0]);
    assert!(none(mbr));
    // FAT16 has no copy.
    let mut bytes = small("16");
    bytes[..512].fill(0);
    assert!(none(bytes));
}

#[test]
fn what_is_no_fat_volume_is_not_taken_for_one() {
    let none = |bytes: Vec<u8>| {
        unimage::fs::fat::open(std::sync::Arc::new(Memory::new(bytes)), Default::default()).unwrap().is_none()
    };
    assert!(none(vec![]) && none(vec![0; 100]) && none(vec![0; 1 << 20]) && none(vec![0xFF; 1 << 20]));
    for seed in 0..200 {
        let mut bytes = noise(seed, 64 << 10);
        bytes[510..512].copy_from_slice(&[0x55, 0xAA]);
        assert!(none(bytes));
    }
    let dir = tempfile::tempdir().unwrap();
    let made = |make: &dyn Fn(&str)| {
        let path = dir.path().join("volume");
        std::fs::write(&path, vec![0; 8 << 20]).unwrap();
        make(path.to_str().unwrap());
        std::fs::read(path).unwrap()
    };
    assert!(none(made(&|p| _ = run("mkfs.ntfs", &["-F", "-Q", "-q", p]))));
    assert!(none(made(&|p| _ = run("mkfs.exfat", &[p]))));
    assert!(none(made(&|p| _ = run("mkfs.ext4", &["-q", p]))));
    assert!(none(made(&|p| _ = run("sgdisk", &["-n", "1", p]))));
    assert!(none(made(&|p| _ = run("sh", &["-c", &format!("echo '2048,,c,*' | sfdisk -q {p}")]))));
}

#[test]
fn a_volume_that_was_cut_off_is_read_as_far_as_it_goes() {
    for fat in ["12", "16", "32"] {
        let good = small(fat);
        let whole = listed(&*open(good.clone())).0;
        for len in [good.len() - 4096, good.len() / 2, 64 << 10, 40_000, 20_000, 5_000, 600, 511, 3] {
            let volume = Memory::new(good[..len].to_vec());
            let Some(fs) = unimage::fs::fat::open(std::sync::Arc::new(volume), Default::default()).unwrap() else {
                assert!(len < 600);
                continue;
            };
            let (paths, problems) = listed(&*fs);
            assert!(!problems.is_empty());
            assert!(len < good.len() / 2 || paths == whole, "{fat} {len}");
        }
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
    for fat in ["12", "16", "32"] {
        let good = small(fat);
        // Bytes that are not zero are the tables, directories and file data.
        let used: Vec<usize> = (0..good.len()).filter(|i| good[*i] != 0).collect();
        for _ in 0..if fat == "32" { 150 } else { 700 } {
            let mut bytes = good.clone();
            for _ in 0..1 + next(6) {
                let near = used[next(used.len())] + next(3);
                let at = if next(4) == 0 { next(512) } else { near.min(bytes.len() - 1) };
                bytes[at] = match next(4) {
                    0 => 0xFF,
                    1 => 0,
                    2 => bytes[at] ^ 1 << next(8),
                    _ => next(256) as u8,
                };
            }
            if next(10) == 0 {
                bytes.truncate(next(bytes.len()));
            }
            let Some(fs) = unimage::fs::fat::open(std::sync::Arc::new(Memory::new(bytes)), Default::default()).unwrap()
            else {
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
    }
    assert!(start.elapsed().as_secs() < 120, "{:?}", start.elapsed());
}

/// A volume of which some ranges can't be read.
struct Failing {
    volume: Memory,
    bad: Vec<std::ops::Range<u64>>,
}

impl ReadAt<Volume> for Failing {
    fn id(&self) -> LayerId {
        self.volume.id()
    }
    fn len(&self) -> u64 {
        self.volume.len()
    }
    fn read_at(&self, at: Offset<Volume>, buf: &mut [u8]) -> unimage::error::Result<()> {
        let end = at.get() + buf.len() as u64;
        if self.bad.iter().any(|bad| bad.start < end && at.get() < bad.end) {
            return Err(unimage::error::Error::io(format!("reading at {at}"), std::io::Error::from_raw_os_error(5)));
        }
        self.volume.read_at(at, buf)
    }
}

#[test]
fn sectors_that_can_not_be_read_cost_only_what_is_in_them() {
    let good = small("32");
    let reserved = u64::from(u16::from_le_bytes([good[14], good[15]])) * 512;
    let table = u64::from(u32::from_le_bytes(good[0x24..0x28].try_into().unwrap())) * 512;
    let open = |bad: Vec<std::ops::Range<u64>>| {
        let volume = Failing { volume: Memory::new(good.clone()), bad };
        unimage::fs::fat::open(std::sync::Arc::new(volume), Default::default()).unwrap().unwrap()
    };
    // The first table, the boot sector, another part of each table: nothing is missing.
    let other = reserved + table + 8192;
    let parts = [(reserved, table), (0, 512), (reserved, 512), (other, 512)].map(|(at, len)| at..at + len);
    for bad in [&parts[..1], &parts[1..2], &parts[2..]].map(<[_]>::to_vec) {
        assert_eq!(listed(&*open(bad.clone())), (ALL.map(str::to_owned).to_vec(), vec![]), "{bad:?}");
    }
    // The same part of both: it is named.
    let both = open(vec![reserved + 8192..reserved + 8200, other..other + 8]);
    let (paths, problems) = listed(&*both);
    assert_eq!(paths, ALL);
    assert!(problems.len() == 1 && problems[0].contains("0x2000"), "{problems:?}");
    assert_eq!(both.facts().free_units, None);
    // A directory.
    let dir = slot(&good, b"B          ") as u64 / 512 * 512;
    let (paths, problems) = listed(&*open(std::iter::once(dir..dir + 512).collect()));
    assert_eq!(paths, ["DIR", "a long name of a file.txt"]);
    assert!(problems.iter().any(|p| p.contains("reading")), "{problems:?}");
}

//! The FAT reader against mtools, The Sleuth Kit, fusefat and the `fatfs` crate.

mod fat_support;

use std::collections::BTreeMap;

use fat_support::*;
use unimage::extent::{Offset, What};
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

/// Compares two maps and shows only what differs.
fn assert_same<V: PartialEq + std::fmt::Debug>(ours: &BTreeMap<String, V>, theirs: &BTreeMap<String, V>) {
    let differ = |a: &BTreeMap<String, V>, b: &BTreeMap<String, V>| -> Vec<String> {
        a.iter().filter(|(k, v)| b.get(*k) != Some(v)).map(|(k, v)| format!("{k}: {v:?}")).collect()
    };
    assert!(!theirs.is_empty());
    assert_eq!(differ(ours, theirs), differ(theirs, ours));
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

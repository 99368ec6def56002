//! NTFS volumes that are damaged, crafted, or unusual: what can be read is read, what can't be is said.

mod ntfs_support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use ntfs_support::*;
use unimage::extent::{Encoding, Offset, What};
use unimage::fs::{FileSystem, Form, Kind, ObjectId, ReadOptions, Tree};

const SMALL: Shape = Shape { sector: 512, cluster: 512, mib: 6 };

/// A small volume with one of most things; record numbers by name.
fn small() -> (Image, BTreeMap<String, u64>) {
    let image = Image::new(SMALL);
    let m = image.mount();
    for i in 0..30u64 {
        m.put(&format!("dir/file {i:02}"), &noise(i, i as usize * 150));
    }
    m.put("dir/below/deep", b"deep");
    m.put("written.bin", &noise(50, 100_000));
    let mut file = File::create(m.path("scattered")).unwrap();
    for i in 0..900 {
        file.seek(SeekFrom::Start(i * 1024)).unwrap();
        file.write_all(&noise(i, 512)).unwrap();
    }
    drop(file);
    fs::create_dir(m.path("compressed")).unwrap();
    m.set_xattr("compressed", "system.ntfs_attrib_be", &[0, 0, 8, 0]);
    m.put("compressed/prose", &prose(1, 60_000));
    m.set_xattr("written.bin", "user.stream", b"a stream");
    fs::hard_link(m.path("written.bin"), m.path("dir/second")).unwrap();
    fs::create_dir(m.path("junction")).unwrap();
    m.set_xattr("junction", "system.ntfs_reparse_data", &junction(r"\??\C:\x"));
    let mut numbers = BTreeMap::new();
    for name in ["dir", "dir/below", "dir/file 20", "dir/file 01", "written.bin", "scattered", "compressed/prose"] {
        numbers.insert(name.to_owned(), fs::metadata(m.path(name)).unwrap().ino());
    }
    drop(m);
    (image, numbers)
}

fn find(tree: &Tree, path: &str) -> Option<ObjectId> {
    tree.lookup(path.split('/').map(str::as_bytes))
}

fn data(fs: &dyn FileSystem, tree: &Tree, path: &str) -> unimage::error::Result<Vec<u8>> {
    let object = find(tree, path).unwrap_or_else(|| panic!("{path}"));
    let layer = fs.open(tree, tree.data(object).unwrap())?;
    layer.read_vec(Offset::new(0), layer.len() as usize)
}

/// Where a record lies, by the reader's own walk: only to know where to do damage.
fn place(bytes: &[u8], number: u64) -> usize {
    let fs = open(bytes.to_vec());
    let tree = fs.walk().unwrap();
    let mft = tree.map(tree.data(find(&tree, "$MFT").unwrap()).unwrap());
    let at = Offset::new(number * 1024);
    let What::Stored(p) = mft.slice(at..at.saturating_add(1)).next().unwrap().what else { panic!("$MFT is stored") };
    let place = p.offset.get() as usize;
    assert_eq!(&bytes[place..place + 4], b"FILE");
    place
}

/// Places and types of a record's attributes.
fn attributes(bytes: &[u8], record: usize) -> Vec<(usize, u32)> {
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let mut at = record + usize::from(bytes[record + 0x14]);
    let mut all = Vec::new();
    while u32_at(at) != u32::MAX {
        all.push((at, u32_at(at)));
        at += u32_at(at + 4) as usize;
    }
    all
}

/// The non-resident `$DATA` attribute of a record.
fn data_attribute(bytes: &[u8], record: usize) -> usize {
    let (at, _) = attributes(bytes, record).into_iter().find(|a| a.1 == 0x80).unwrap();
    assert_eq!(bytes[at + 8], 1, "non-resident");
    at
}

/// Changes a record as a driver would: its fix-ups hold afterwards.
fn edit(bytes: &mut [u8], record: usize, at: usize, value: &[u8]) {
    let (saved, strides) = (record + usize::from(bytes[record + 4]) + 2, [record + 510, record + 1022]);
    for (i, end) in strides.into_iter().enumerate() {
        bytes.copy_within(saved + 2 * i..saved + 2 * i + 2, end);
    }
    bytes[at..at + value.len()].copy_from_slice(value);
    for (i, end) in strides.into_iter().enumerate() {
        bytes.copy_within(end..end + 2, saved + 2 * i);
        bytes.copy_within(saved - 2..saved, end);
    }
}

#[test]
fn bytes_beyond_the_initialized_size_are_zeros_whatever_lies_there() {
    let (image, numbers) = small();
    let mut bytes = image.bytes();
    let number = numbers["written.bin"];
    let record = place(&bytes, number);
    let attribute = data_attribute(&bytes, record);
    edit(&mut bytes, record, attribute + 0x38, &5000u64.to_le_bytes());
    fs::write(&image.path, &bytes).unwrap();
    let mut expected = noise(50, 100_000);
    expected[5000..].fill(0);
    assert_eq!(run("icat", &[image.str(), &number.to_string()]), expected);

    let fs = open(bytes);
    let tree = fs.walk().unwrap();
    assert_eq!(data(&*fs, &tree, "written.bin").unwrap(), expected);
    let stream = tree.data(find(&tree, "written.bin").unwrap()).unwrap();
    assert_eq!(tree.stream(stream).valid, 5000);
    let zeros: u64 = tree.extents(stream).iter().filter(|e| e.what == What::Zero).map(|e| e.len).sum();
    assert_eq!(zeros, 95_000);
    let m = image.mount();
    assert_eq!(fs::read(m.path("written.bin")).unwrap(), expected);
}

#[test]
fn a_lost_boot_sector_or_mft_record_is_read_from_its_copy() {
    let (image, _) = small();
    let good = image.bytes();
    let whole = open(good.clone()).walk().unwrap();
    // A lost record of $MFT itself is no longer listed.
    let users = |tree: &Tree| tree.order().filter(|(e, _)| !tree.object(tree.entry(*e).object).system).count();
    let same = |bytes: Vec<u8>, by: &str| {
        let fs = unimage::fs::probe(volume(bytes), ReadOptions::default()).unwrap().expect(by);
        let tree = fs.walk().unwrap();
        assert_eq!(users(&tree), users(&whole), "{by}");
        assert_eq!(data(&*fs, &tree, "written.bin").unwrap(), noise(50, 100_000));
        assert!(fs.facts().remarks.iter().any(|r| r.contains(by)), "{by}: {:?}", fs.facts().remarks);
    };
    let mut bytes = good.clone();
    bytes[..512].fill(0);
    same(bytes, "backup boot sector");
    let mut bytes = good.clone();
    bytes[0x0D] = 3; // sectors per cluster
    same(bytes, "backup boot sector");
    let mut bytes = good.clone();
    bytes[0x30..0x38].copy_from_slice(&(1u64 << 60).to_le_bytes()); // $MFT
    same(bytes, "$MFTMirr");
    let mut bytes = good.clone();
    let at = place(&good, 0);
    bytes[at + 510] ^= 0x55;
    same(bytes, "$MFTMirr");
    // Neither of them: an error that says where.
    let mut bytes = good.clone();
    bytes[at..at + 1024].fill(0);
    let mirror = good.windows(4).enumerate().filter(|(i, w)| i % 512 == 0 && *w == b"FILE" && i.abs_diff(at) > 1 << 20);
    for (i, _) in mirror.collect::<Vec<_>>() {
        bytes[i..i + 4].fill(0);
    }
    let Err(error) = unimage::fs::ntfs::open(volume(bytes), ReadOptions::default()) else { panic!("opened") };
    assert!(error.to_string().contains("$MFT"), "{error}");
}

#[test]
fn a_torn_record_costs_its_file_and_names_it() {
    let (image, numbers) = small();
    let mut bytes = image.bytes();
    let number = numbers["dir/file 20"];
    let at = place(&bytes, number);
    bytes[at + 1022] ^= 0xFF;
    let fs = open(bytes);
    let tree = fs.walk().unwrap();
    assert!(find(&tree, "dir/file 20").is_none());
    assert_eq!(data(&*fs, &tree, "dir/file 21").unwrap(), noise(21, 21 * 150));
    let [problem] = tree.problems() else { panic!("{:?}", tree.problems()) };
    assert!(problem.what.contains(&format!("MFT record {number}")), "{}", problem.what);
    assert!(problem.what.contains(&format!("{at:#x}")), "{}", problem.what);
}

#[test]
fn files_whose_directory_is_gone_are_still_listed() {
    let (image, numbers) = small();
    let mut bytes = image.bytes();
    // The directory's record was used again: what refers to it means another one.
    let at = place(&bytes, numbers["dir"]);
    bytes[at + 0x10] = bytes[at + 0x10].wrapping_add(1);
    let fs = open(bytes.clone());
    let tree = fs.walk().unwrap();
    assert_eq!(tree.children(find(&tree, "dir").unwrap()), []);
    let orphans = find(&tree, "$OrphanFiles").unwrap();
    assert_eq!(tree.children(orphans).len(), 32); // 30 files, one directory, one second name
    let below = numbers["dir/below"];
    assert_eq!(data(&*fs, &tree, &format!("$OrphanFiles/record-{below} below/deep")).unwrap(), b"deep");
    assert!(tree.problems().iter().any(|p| p.what.contains("32 names")), "{:?}", tree.problems());
    assert!(!tree.object(orphans).system);

    // Two directories that are in each other.
    let mut bytes = image.bytes();
    let (dir, below) = (place(&bytes, numbers["dir"]), place(&bytes, numbers["dir/below"]));
    let reference = (numbers["dir/below"] | u64::from(bytes[below + 0x10]) << 48).to_le_bytes();
    let root = [5u64.to_le_bytes()[..6].to_vec(), vec![5, 0]].concat();
    let name = bytes[dir..dir + 1024].windows(8).position(|w| w == root).unwrap();
    bytes[dir + name..dir + name + 8].copy_from_slice(&reference);
    let fs = open(bytes);
    let tree = fs.walk().unwrap();
    let orphans = find(&tree, "$OrphanFiles").unwrap();
    assert_eq!(tree.children(orphans).len(), 1);
    let all: Vec<_> = tree.order().map(|(e, _)| String::from_utf8(tree.path(e)).unwrap()).collect();
    for name in ["file 21", "deep", "second"] {
        assert_eq!(all.iter().filter(|p| p.ends_with(name)).count(), 1, "{name}: {all:?}");
    }
}

#[test]
fn a_lost_extension_record_makes_bytes_unreadable_not_zero() {
    let (image, numbers) = small();
    let good = image.bytes();
    let fs = open(good.clone());
    let before = fs.walk().unwrap();
    let number = numbers["scattered"];
    let whole = data(&*fs, &before, "scattered").unwrap();
    assert_eq!(run("icat", &[image.str(), &number.to_string()]), whole);
    // Records whose base is that file.
    let reference = |b: &[u8]| u64::from_le_bytes(b[0x20..0x28].try_into().unwrap()) & 0xFFFF_FFFF_FFFF;
    let extensions: Vec<usize> = (0..good.len() - 1024)
        .step_by(512)
        .filter(|i| good[*i..].starts_with(b"FILE") && reference(&good[*i..]) == number)
        .collect();
    assert!(extensions.len() >= 3, "{extensions:?}");
    let mut some_runs = false;
    for lost in extensions {
        let mut bytes = good.clone();
        bytes[lost..lost + 4].copy_from_slice(b"BAAD");
        let fs = open(bytes);
        let tree = fs.walk().unwrap();
        // Its name may have been in that record, too.
        let (object, _) = tree.objects().find(|(_, o)| o.number == number).unwrap();
        assert!(tree.order().any(|(e, _)| tree.entry(e).object == object));
        assert!(tree.problems().iter().any(|p| p.object == Some(object)), "{:?}", tree.problems());
        let stream = tree.data(object).unwrap();
        let unreadable = |e: &&unimage::extent::Extent<_>| e.what == What::Encoded(Encoding::Unreadable);
        let had_runs = attributes(&good, lost).iter().any(|a| a.1 == 0x80);
        assert_eq!(tree.extents(stream).iter().any(|e| unreadable(&e)), had_runs);
        some_runs |= had_runs;
        let Ok(layer) = fs.open(&tree, stream) else { continue };
        for e in tree.extents(stream) {
            let read = layer.read_vec(e.start, e.len as usize);
            if unreadable(&e) {
                assert!(read.is_err());
            } else if tree.stream(stream).size == whole.len() as u64 {
                let start = e.start.get() as usize;
                assert_eq!(read.unwrap(), &whole[start..start + e.len as usize]);
            }
        }
    }
    assert!(some_runs);
}

#[test]
fn a_volume_that_is_cut_off_still_gives_what_is_left() {
    let (image, _) = small();
    let good = image.bytes();
    let fs = open(good.clone());
    let tree = fs.walk().unwrap();
    let stream = tree.data(find(&tree, "written.bin").unwrap()).unwrap();
    let What::Stored(p) = tree.extents(stream)[0].what else { panic!("stored") };
    // In the middle of that file.
    let cut = p.offset.get() as usize + 40_000;
    let fs = open(good[..cut].to_vec());
    assert!(fs.facts().remarks.iter().any(|r| r.contains("cut off")));
    let tree = fs.walk().unwrap();
    let object = find(&tree, "written.bin").unwrap();
    assert!(tree.problems().iter().any(|p| p.object == Some(object)));
    let layer = fs.open(&tree, tree.data(object).unwrap()).unwrap();
    let have = 40_000 / 512 * 512;
    assert_eq!(layer.read_vec(Offset::new(0), have).unwrap(), &noise(50, 100_000)[..have]);
    assert!(layer.read_vec(Offset::new(50_000), 1).is_err());
    assert_eq!(data(&*fs, &tree, "dir/file 01").unwrap(), noise(1, 150));
}

#[test]
fn the_table_of_files_may_itself_be_in_pieces() {
    let image = Image::new(Shape { sector: 512, cluster: 512, mib: 12 });
    let m = image.mount();
    let mut made = 0;
    while fs::write(m.path(&format!("f{made:05}")), noise(made, 1000)).is_ok() {
        made += 1;
    }
    assert!(made > 2000, "{made}");
    for i in (0..made).step_by(2) {
        fs::remove_file(m.path(&format!("f{i:05}"))).unwrap();
    }
    // Their records first, then the table grows into the gaps.
    let mut more = 0;
    while more < 20_000 && File::create(m.path(&format!("e{more:05}"))).is_ok() {
        more += 1;
    }
    drop(m);
    let fs = open(image.bytes());
    let tree = fs.walk().unwrap();
    assert_eq!(tree.problems(), []);
    let mft = tree.extents(tree.data(find(&tree, "$MFT").unwrap()).unwrap());
    assert!(mft.len() > 300, "{} extents", mft.len());
    assert!(mft.iter().any(|e| e.len % 1024 != 0), "a record that straddles two runs");
    let info = String::from_utf8_lossy(&run("istat", &[image.str(), "0"])).into_owned();
    assert!(info.contains("$ATTRIBUTE_LIST"), "{info}");
    let m = image.mount();
    let mut count = 0;
    for entry in fs::read_dir(&m.at).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        assert_eq!(data(&*fs, &tree, &name).unwrap(), fs::read(entry.path()).unwrap(), "{name}");
        count += 1;
    }
    assert!(count > 2000);
    let users = tree.children(tree.root()).iter().filter(|e| !tree.object(tree.entry(**e).object).system);
    assert_eq!(users.count(), count);
}

/// Opens, walks, and reads some of every stream: whatever the bytes are, this ends without a panic.
fn use_it(bytes: Vec<u8>) {
    let Ok(Some(fs)) = unimage::fs::ntfs::open(volume(bytes), ReadOptions::default()) else { return };
    let _ = fs.facts();
    let Ok(tree) = fs.walk() else { return };
    for (id, object) in tree.objects() {
        for stream in tree.streams(id) {
            let extents = tree.extents(stream);
            let mut at = 0;
            for e in extents {
                assert_eq!(e.start.get(), at);
                assert!(e.len > 0);
                at += e.len;
            }
            assert_eq!(at, tree.stream(stream).size, "of record {}", object.number);
            let Ok(layer) = fs.open(&tree, stream) else { continue };
            let len = layer.len().min(70_000);
            let _ = layer.read_vec(Offset::new(0), len as usize);
            let _ = layer.read_vec(Offset::new(layer.len() - len), len as usize);
        }
        assert!(object.kind != Kind::Junction || tree.target(id).is_some());
    }
    for (e, _) in tree.order() {
        let _ = tree.path(e);
    }
}

#[test]
fn no_mutation_leads_to_a_panic_or_a_hang() {
    let (image, _) = small();
    let good = image.bytes();
    let records: Vec<usize> = (0..good.len() - 1024).step_by(512).filter(|i| good[*i..].starts_with(b"FILE")).collect();
    let begin = Instant::now();
    let mut round = 0u64;
    while begin.elapsed() < Duration::from_secs(12) {
        round += 1;
        let dice: Vec<u64> = noise(round, 800).chunks(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect();
        let mut dice = dice.into_iter();
        let mut roll = |n: usize| (dice.next().unwrap() >> 7) as usize % n;
        let mut bytes = good.clone();
        for _ in 0..1 + roll(12) {
            // Nearly all in records that are in use, few in the boot sector.
            let at = match roll(20) {
                0 => roll(0x60),
                1 => roll(bytes.len()),
                _ => records[roll(records.len())] + roll(600),
            };
            let Some(slot) = bytes.get_mut(at) else { continue };
            match roll(4) {
                0 => *slot ^= 1 << roll(8),
                1 => *slot = [0, 1, 0x7F, 0x80, 0xFF][roll(5)],
                2 => *slot = roll(256) as u8,
                _ => {
                    let value = [u64::MAX, 1 << 63, (1 << 63) - 1, 0, 1 << 40][roll(5)].to_le_bytes();
                    let aligned = at / 8 * 8;
                    let end = (aligned + 8).min(bytes.len());
                    bytes[aligned..end].copy_from_slice(&value[..end - aligned]);
                }
            }
        }
        if roll(30) == 0 {
            let len = roll(bytes.len());
            bytes.truncate(len);
        }
        let now = Instant::now();
        use_it(bytes);
        assert!(now.elapsed() < Duration::from_secs(5), "round {round} took {:?}", now.elapsed());
    }
    assert!(round > 50, "{round} rounds");
}

#[test]
fn encrypted_and_unknown_forms_are_never_read_as_plain() {
    let (image, numbers) = small();
    let good = image.bytes();
    let record = place(&good, numbers["written.bin"]);
    let attribute = data_attribute(&good, record);
    let with = |flags: u16, unit: u8| {
        let mut bytes = good.clone();
        edit(&mut bytes, record, attribute + 0x0C, &flags.to_le_bytes());
        edit(&mut bytes, record, attribute + 0x22, &[unit]);
        let fs = open(bytes);
        let tree = fs.walk().unwrap();
        let stream = tree.data(find(&tree, "written.bin").unwrap()).unwrap();
        assert!(data(&*fs, &tree, "written.bin").is_err(), "flags {flags:#x}");
        (tree.stream(stream).form, tree.extents(stream)[0].what)
    };
    assert_eq!(with(0x4000, 0), (Form::Encrypted, What::Encoded(Encoding::FsEncrypted)));
    assert_eq!(with(0x0002, 4).1, What::Encoded(Encoding::Unreadable));
    assert_eq!(with(0x0001, 0).1, What::Encoded(Encoding::Unreadable));
    assert_eq!(with(0x0001, 60).1, What::Encoded(Encoding::Unreadable));
}

//! ext volumes that are not as they should be: not unmounted, damaged, crafted. What is seen of a journal that was not
//! replayed is compared with what the kernel's replay gives.

mod ext_support;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ext_support::{Filling, Memory, Mount, Random, fill, kernel_rows, make, open, own_rows, run, same, scratch};
use unimage::extent::{Offset, What};
use unimage::fs::ReadOptions;

const SOME: Filling = Filling { big_values: false, preallocate: false, names: 300 };

/// Changes of all kinds, each transaction complete on the disk, but not yet where it belongs.
fn work(root: &Path) {
    let mut r = Random(77);
    let sync = || drop(run("sync", &["-f".as_ref(), root.as_os_str()]));
    for n in 0..6 {
        fs::create_dir(root.join(format!("dir{n}"))).unwrap();
        for m in 0..80 {
            fs::write(root.join(format!("dir{n}/a rather long name of a file {m}")), r.bytes(m * 40)).unwrap();
        }
    }
    sync();
    // Blocks that were directories become data: revoked.
    for n in 0..4 {
        fs::remove_dir_all(root.join(format!("dir{n}"))).unwrap();
    }
    sync();
    for n in 0..40 {
        fs::write(root.join(format!("big{n}")), r.bytes(30_000)).unwrap();
    }
    sync();
    fs::rename(root.join("big1"), root.join("dir5/renamed")).unwrap();
    fs::remove_file(root.join("big2")).unwrap();
    // Each block begins with the journal's magic number: in the journal it does not.
    let mut escaped = File::create(root.join("escaped")).unwrap();
    for n in 0..9u8 {
        let mut block = vec![n; 1024];
        block[..4].copy_from_slice(&[0xc0, 0x3b, 0x39, 0x98]);
        escaped.write_all(&block).unwrap();
    }
    File::options().write(true).open(root.join("big3")).unwrap().set_len(5000).unwrap();
    sync();
}

/// The image as it is while it is mounted, before the journal's blocks are where they belong.
fn dirty(dir: &Path, mib: u64, args: &str, options: &str) -> std::path::PathBuf {
    let image = dir.join("live.img");
    let copy = dir.join("dirty.img");
    make(&image, mib, args);
    fill(Mount::new(&image, "rw").path(), SOME);
    {
        let mount = Mount::new(&image, options);
        let orphan = File::create(mount.path().join("open and removed")).unwrap();
        orphan.write_all_at(&[7; 9000], 0).unwrap();
        fs::remove_file(mount.path().join("open and removed")).unwrap();
        work(mount.path());
        fs::copy(&image, &copy).unwrap();
    }
    fs::remove_file(&image).unwrap();
    copy
}

fn replayed_as_by_the_kernel(mib: u64, args: &str, options: &str) {
    let dir = scratch();
    let image = dir.path().join("dirty.img");
    dirty(dir.path(), mib, args, options);
    let before = ext_support::sha(&fs::read(&image).unwrap());
    let ext = open(&image);
    let tree = ext.walk().unwrap();
    let facts = ext.facts();
    assert_eq!(facts.clean, Some(false));
    assert!(facts.remarks.iter().any(|r| r.contains("replayed in memory")), "{:?}", facts.remarks);
    assert_eq!(tree.problems(), []);
    let own = own_rows(&*ext, &tree);
    // Every stored byte is where the extents say in the volume as it is: nobody needs the replay to link them.
    let volume = fs::read(&image).unwrap();
    let mut journaled = 0;
    for (entry, _) in tree.order() {
        let Some(data) = tree.data(tree.entry(entry).object) else { continue };
        let layer = ext.open(&tree, data).unwrap();
        for e in tree.extents(data) {
            match e.what {
                What::Stored(p) => {
                    let at = p.offset.get() as usize;
                    let bytes = layer.read_vec(e.start, e.len as usize).unwrap();
                    assert!(volume[at..at + bytes.len()] == bytes, "{}", tree.path(entry).escape_ascii());
                }
                What::Encoded(_) => journaled += 1,
                What::Zero => {}
            }
        }
    }
    if options.contains("data=journal") {
        assert!(journaled > 0, "blocks that the journal keeps in another form");
    }
    assert_eq!(before, ext_support::sha(&fs::read(&image).unwrap()), "reading writes nothing");
    // The kernel replays its copy; what it then shows is what was to be seen.
    drop(Mount::new(&image, "rw"));
    let mount = Mount::new(&image, "ro");
    same(&kernel_rows(mount.path()), &own);
}

#[test]
fn a_journal_with_checksums_of_the_third_kind() {
    replayed_as_by_the_kernel(64, "-t ext4 -b 4096", "rw");
    replayed_as_by_the_kernel(64, "-t ext4 -b 1024", "rw");
}

#[test]
fn a_journal_without_checksums() {
    replayed_as_by_the_kernel(64, "-t ext3 -b 1024", "rw");
    replayed_as_by_the_kernel(64, "-t ext4 -b 2048 -O ^metadata_csum,^64bit", "rw");
    replayed_as_by_the_kernel(64, "-t ext4 -b 4096 -O ^metadata_csum,64bit", "rw");
}

#[test]
fn a_journal_with_checksums_of_the_first_kind() {
    replayed_as_by_the_kernel(64, "-t ext4 -b 4096 -O ^metadata_csum,^64bit", "rw,journal_checksum");
    replayed_as_by_the_kernel(64, "-t ext4 -b 1024 -O ^metadata_csum,64bit", "rw,data=writeback,journal_async_commit");
}

#[test]
fn a_journal_that_has_the_data_too() {
    replayed_as_by_the_kernel(96, "-t ext4 -b 1024 -J size=16", "rw,data=journal");
    replayed_as_by_the_kernel(64, "-t ext3 -b 1024 -J size=16", "rw,data=journal");
}

/// Fast commits are not replayed, and that is said.
#[test]
fn fast_commits_are_told_of() {
    let dir = scratch();
    let image = dir.path().join("live.img");
    make(&image, 64, "-t ext4 -b 4096 -O fast_commit");
    let copy = dir.path().join("copy.img");
    {
        let mount = Mount::new(&image, "rw");
        fs::write(mount.path().join("first"), b"first").unwrap();
        run("sync", &["-f".as_ref(), mount.path().as_os_str()]);
        let file = File::create(mount.path().join("second")).unwrap();
        file.write_all_at(b"second", 0).unwrap();
        file.sync_all().unwrap();
        fs::copy(&image, &copy).unwrap();
    }
    let ext = open(&copy);
    assert!(ext.facts().remarks.iter().any(|r| r.contains("ast commits")), "{:?}", ext.facts().remarks);
    assert!(ext.walk().unwrap().problems().iter().any(|p| p.what.contains("fast commits")));
}

fn sound(dir: &Path, args: &str) -> (std::path::PathBuf, ext_support::Rows) {
    let image = dir.join("guest.img");
    // Large enough for a second group.
    make(&image, if args.contains("4096") { 200 } else { 64 }, args);
    fill(Mount::new(&image, "rw").path(), SOME);
    let rows = kernel_rows(Mount::new(&image, "ro").path());
    (image, rows)
}

/// The first KiB after the boot sector, then the first 64 KiB with all descriptors, are gone: the copies are used.
#[test]
fn copies_of_superblock_and_descriptors() {
    for (args, lost) in
        [("-t ext4 -b 4096", 2048), ("-t ext4 -b 1024", 2048), ("-t ext4 -b 4096", 8192), ("-t ext3 -b 1024", 3072)]
    {
        let dir = scratch();
        let (image, rows) = sound(dir.path(), args);
        let file = File::options().write(true).open(&image).unwrap();
        file.write_all_at(&vec![0; lost], 0).unwrap();
        let ext = open(&image);
        assert!(ext.facts().remarks.iter().any(|r| r.contains("copy")), "{:?}", ext.facts().remarks);
        let tree = ext.walk().unwrap();
        assert!(!tree.problems().is_empty());
        same(&rows, &own_rows(&*ext, &tree));
    }
}

/// A signature that was wiped, as `wipefs` does.
#[test]
fn a_wiped_magic_number() {
    let dir = scratch();
    for args in ["-t ext4 -b 1024", "-t ext3 -b 4096"] {
        let (image, rows) = sound(dir.path(), args);
        File::options().write(true).open(&image).unwrap().write_all_at(&[0, 0], 1024 + 0x38).unwrap();
        let ext = open(&image);
        same(&rows, &own_rows(&*ext, &ext.walk().unwrap()));
    }
}

/// What was formatted over is not taken for an ext volume though a copy is left.
#[test]
fn remains_under_another_file_system_are_none() {
    let dir = scratch();
    let (image, _) = sound(dir.path(), "-t ext4 -b 4096");
    let mut head = vec![0u8; 4096];
    head[..4].copy_from_slice(b"XFSB");
    File::options().write(true).open(&image).unwrap().write_all_at(&head, 0).unwrap();
    let volume = Arc::new(ext_support::FileVolume::open(&image));
    assert!(unimage::fs::ext::open(volume, ReadOptions::default()).unwrap().is_none());
}

/// Every kind of checksum that is wrong is told of, and the data is still read. Where the structures are, debugfs says.
#[test]
fn wrong_checksums_are_told_of() {
    let dir = scratch();
    let (image, rows) = sound(dir.path(), "-t ext4 -b 1024");
    let debugfs = |command: &str| run("debugfs", &["-R", command, image.to_str().unwrap()]);
    let number = |text: &str, before: &str| -> u64 {
        let at = text.find(before).unwrap_or_else(|| panic!("`{before}` in {text}")) + before.len();
        text[at..].trim_start().split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
    };
    let imap = debugfs("imap /time-3");
    let inode = number(&imap, "located at block") * 1024
        + u64::from_str_radix(imap.trim().rsplit("0x").next().unwrap(), 16).unwrap();
    let dir_block = number(&debugfs("blocks /links"), "") * 1024;
    let xattr_block = number(&debugfs("stat /xattr-many"), "File ACL:") * 1024;
    let stats = run("dumpe2fs", &[image.to_str().unwrap()]);
    let inode_bitmap = number(&stats, "Inode bitmap at") * 1024;
    let extents = debugfs("stat /a/sparse");
    let node = number(&extents, "(ETB1):") * 1024;
    let spots = [
        // The inode's version, which nothing reads; the root's own name in its block; an attribute block's hash; a bit of
        // the padding behind the last inode's; the unused end of an extent node.
        ("inode", inode + 0x24, 0x10),
        ("directory block", dir_block + 2 * 12 + 7, 0x40),
        ("attribute block", xattr_block + 12, 1),
        ("inode bitmap", inode_bitmap, 0),
        ("extent node", node + 8, 1),
        ("superblock", 1024 + 0x34, 1),
        ("descriptor", 2048 + 0x1a, 1),
    ];
    let volume = fs::read(&image).unwrap();
    for (name, at, bit) in spots {
        let mut bytes = volume.clone();
        if bit == 0 {
            // A free inode shown as used.
            let free = (0..128).find(|n| bytes[at as usize + n] == 0).unwrap();
            bytes[at as usize + free] = 1;
        } else {
            bytes[at as usize] ^= bit;
        }
        let ext = unimage::fs::ext::open(Arc::new(Memory::new(bytes)), ReadOptions::default()).unwrap().unwrap();
        let tree = ext.walk().unwrap();
        let told = tree.problems().iter().any(|p| p.what.contains(name) && p.what.contains("checksum"));
        assert!(told, "{name}: {:?}", tree.problems());
        same(&rows, &own_rows(&*ext, &tree));
    }
}

/// Blocks of a map that can't be told are an error when they are read, never zeros; the others are as they were.
#[test]
fn a_damaged_map_is_no_hole() {
    let dir = scratch();
    for args in ["-t ext4 -b 1024", "-t ext2 -b 1024"] {
        let (image, rows) = sound(dir.path(), args);
        let said = run("debugfs", &["-R", "stat /a/sparse", image.to_str().unwrap()]);
        let mark = if args.contains("ext4") { "(ETB1):" } else { "(IND):" };
        let at = said.find(mark).unwrap() + mark.len();
        let block: u64 = said[at..].split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap();
        let file = File::options().write(true).open(&image).unwrap();
        // No node; pointers beyond the volume.
        file.write_all_at(&[0xee; 1024], block * 1024).unwrap();
        let ext = open(&image);
        let tree = ext.walk().unwrap();
        let id = tree.lookup([b"a".as_slice(), b"sparse"]).unwrap();
        let data = tree.data(id).unwrap();
        assert!(tree.problems().iter().any(|p| p.object == Some(id)), "{:?}", tree.problems());
        let lost = tree.extents(data).iter().find(|e| matches!(e.what, What::Encoded(_))).expect("lost blocks");
        let layer = ext.open(&tree, data).unwrap();
        assert!(layer.read_vec(lost.start, 1).is_err());
        assert_eq!(layer.read_vec(Offset::new(70 << 20), 3).unwrap(), b"far");
        let mut own = own_rows(&*ext, &tree);
        let mut rows = rows;
        own.remove(b"a/sparse".as_slice());
        rows.remove(b"a/sparse".as_slice());
        same(&rows, &own);
        fs::remove_file(&image).unwrap();
    }
}

/// Whatever the bytes are: no panic, no endless loop, no memory without end. Bytes that metadata is made of are changed
/// a few at a time, or cut off.
#[test]
fn mutations_do_no_harm() {
    let dir = scratch();
    let mut r = Random(0xfeed);
    let variants = [
        ("-t ext4 -b 1024 -N 200", "rw"),
        ("-t ext2 -b 1024 -N 200", ""),
        ("-t ext4 -b 1024 -O inline_data,ea_inode,bigalloc -C 4096 -I 256 -N 200", ""),
        ("-t ext4 -b 4096 -N 200 -O meta_bg,^resize_inode", ""),
    ];
    for (args, journal) in variants {
        let image = dir.path().join("small.img");
        make(&image, 6, args);
        {
            let mount = Mount::new(&image, "rw");
            small(mount.path(), args.contains("ea_inode"));
            if !journal.is_empty() {
                run("sync", &["-f".as_ref(), mount.path().as_os_str()]);
                fs::copy(&image, dir.path().join("dirty.img")).unwrap();
            }
        }
        if !journal.is_empty() {
            fs::rename(dir.path().join("dirty.img"), &image).unwrap();
        }
        let bytes = fs::read(&image).unwrap();
        // Blocks that have something in them and are no file's data are the ones worth changing.
        let blocks: Vec<usize> = (0..bytes.len() / 1024)
            .filter(|n| {
                let block = &bytes[n * 1024..(n + 1) * 1024];
                block.iter().any(|b| *b != 0) && !block.iter().all(|b| *b == b'd')
            })
            .collect();
        let start = Instant::now();
        let mut rounds = 0;
        while start.elapsed() < Duration::from_secs(6) {
            let mut mutant = bytes.clone();
            match r.below(12) {
                0 => mutant.truncate(r.below(bytes.len() as u64) as usize),
                _ => {
                    for _ in 0..1 + r.below(4) {
                        let at = blocks[r.below(blocks.len() as u64) as usize] * 1024 + r.below(1024) as usize;
                        match r.below(4) {
                            0 => mutant[at] ^= 1 << r.below(8),
                            1 => mutant[at] = [0, 0xff, 0x7f, 0x80][r.below(4) as usize],
                            2 => {
                                let other = blocks[r.below(blocks.len() as u64) as usize] * 1024;
                                let at = at & !1023;
                                mutant.copy_within(other..other + 1024, at);
                            }
                            _ => mutant[at] = r.next() as u8,
                        }
                    }
                }
            }
            let once = Instant::now();
            probe(&mutant);
            assert!(once.elapsed() < Duration::from_secs(5), "a walk of {:?}", once.elapsed());
            rounds += 1;
        }
        assert!(rounds > 100, "{rounds} mutants of {args}");
    }
}

/// Reads what can be read of it, at most the first bytes of each stream.
fn probe(bytes: &[u8]) {
    let Ok(Some(ext)) = unimage::fs::ext::open(Arc::new(Memory::new(bytes.to_vec())), ReadOptions::default()) else {
        return;
    };
    let _ = ext.facts();
    let Ok(tree) = ext.walk() else { return };
    let mut seen = BTreeSet::new();
    for (entry, _) in tree.order() {
        let id = tree.entry(entry).object;
        if !seen.insert(id) {
            continue;
        }
        for stream in tree.streams(id) {
            let size = tree.stream(stream).size;
            assert_eq!(tree.extents(stream).iter().map(|e| e.len).sum::<u64>(), size);
            if let Ok(layer) = ext.open(&tree, stream) {
                let _ = layer.read_vec(Offset::new(0), size.min(5000) as usize);
                let _ = layer.read_vec(Offset::new(size.saturating_sub(100)), size.min(100) as usize);
            }
        }
    }
}

fn small(root: &Path, big: bool) {
    fs::create_dir_all(root.join("a/b")).unwrap();
    for n in 0..60 {
        fs::write(root.join(format!("a/b/a name that takes some room {n}")), vec![b'd'; n * 30]).unwrap();
    }
    let sparse = File::create(root.join("sparse")).unwrap();
    for n in 0..200u64 {
        sparse.write_all_at(&[b'd'; 1024], n * 2048).unwrap();
    }
    sparse.write_all_at(b"far", 70 << 20).unwrap();
    std::os::unix::fs::symlink("t".repeat(200), root.join("slow")).unwrap();
    std::os::unix::fs::symlink("fast", root.join("fast")).unwrap();
    let set = |key: &str, value: &[u8]| {
        rustix::fs::setxattr(root.join("a"), key, value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    set("user.one", b"1");
    set("user.two", &[b'2'; 300]);
    if big {
        set("user.big", &[b'3'; 3000]);
    }
}

//! ext2, ext3 and ext4 as the kernel's own driver sees them: images made by mke2fs with many sets of features, filled
//! through a mount, and walked side by side.

mod ext_support;

use std::path::Path;

use ext_support::{Filling, Mount, fill, kernel_rows, make, open, own_rows, same, scratch};
use unimage::extent::What;

/// Makes, fills, mounts read-only and compares all that there is.
fn side_by_side(mib: u64, args: &str, filling: Filling) {
    let dir = scratch();
    let image = dir.path().join("guest.img");
    make(&image, mib, args);
    {
        let mount = Mount::new(&image, "rw");
        fill(mount.path(), filling);
    }
    compare(&image);
}

fn compare(image: &Path) {
    let fs = open(image);
    let tree = fs.walk().unwrap();
    assert_eq!(tree.problems(), [], "a sound volume has no problems");
    let own = own_rows(&*fs, &tree);
    let mount = Mount::new(image, "ro");
    same(&kernel_rows(mount.path()), &own);
    extents(mount.path(), &tree, fs.facts().unit);
}

/// The extents of up to 60 files as `filefrag` lists them: logical, physical and length in blocks, unwritten ones left out.
fn extents(root: &Path, tree: &unimage::fs::Tree, _unit: u64) {
    let mut seen = 0;
    let mut names: Vec<_> = tree.order().map(|(e, _)| e).collect();
    names.sort_by_key(|e| {
        let data = tree.data(tree.entry(*e).object);
        std::cmp::Reverse(data.map_or(0, |d| tree.extents(d).len()))
    });
    for entry in names.into_iter().take(60) {
        let Some(data) = tree.data(tree.entry(entry).object) else { continue };
        let path = {
            use std::os::unix::ffi::OsStrExt;
            root.join(std::ffi::OsStr::from_bytes(&tree.path(entry)))
        };
        let said = ext_support::run("filefrag", &["-v".as_ref(), "-b1024".as_ref(), path.as_os_str()]);
        let mut theirs: Vec<(u64, u64, u64)> = Vec::new();
        for line in said.lines() {
            let fields: Vec<&str> = line.split(':').collect();
            if fields.len() < 5 || fields[0].trim().parse::<u64>().is_err() || line.contains("unwritten") {
                continue;
            }
            if line.contains("inline") {
                continue;
            }
            let first = |s: &str| s.split("..").next().unwrap().trim().parse::<u64>().unwrap();
            let len: u64 = fields[3].trim().parse().unwrap();
            let now = (first(fields[1]), first(fields[2]), len);
            match theirs.last_mut() {
                Some(last) if last.0 + last.2 == now.0 && last.1 + last.2 == now.1 => last.2 += len,
                _ => theirs.push(now),
            }
        }
        let ours: Vec<(u64, u64, u64)> = tree
            .extents(data)
            .iter()
            .filter_map(|e| match e.what {
                What::Stored(p) => Some((e.start.get() >> 10, p.offset.get() >> 10, e.len.div_ceil(1024))),
                _ => None,
            })
            .collect();
        // The kernel also lists the rest of the last block, and blocks behind the end.
        let size = tree.stream(data).size.div_ceil(1024);
        theirs.retain(|t| t.0 < size);
        for t in &mut theirs {
            t.2 = t.2.min(size - t.0);
        }
        assert_eq!(ours, theirs, "extents of {}", path.display());
        seen += ours.len();
    }
    assert!(seen > 2000, "{seen} extents compared");
}

const ALL: Filling = Filling { big_values: false, preallocate: true, names: 1500 };
const MAPS: Filling = Filling { big_values: false, preallocate: false, names: 1500 };

#[test]
fn ext2_with_small_blocks() {
    side_by_side(64, "-t ext2 -b 1024 -I 128", MAPS);
}

#[test]
fn ext3_with_2k_blocks() {
    side_by_side(64, "-t ext3 -b 2048", MAPS);
}

#[test]
fn ext4_as_mke2fs_makes_it() {
    side_by_side(64, "-t ext4 -b 4096", Filling { names: 5000, ..ALL });
}

#[test]
fn ext4_with_small_blocks() {
    side_by_side(64, "-t ext4 -b 1024", ALL);
}

#[test]
fn ext4_with_2k_blocks_and_small_inodes() {
    side_by_side(64, "-t ext4 -b 2048 -I 128", ALL);
}

#[test]
fn ext4_with_block_maps() {
    side_by_side(64, "-t ext4 -b 1024 -O ^extents,^64bit", MAPS);
}

#[test]
fn ext4_without_checksums() {
    side_by_side(64, "-t ext4 -b 4096 -O ^metadata_csum,^uninit_bg,^64bit,^flex_bg", ALL);
}

#[test]
fn ext4_with_descriptor_checksums() {
    side_by_side(64, "-t ext4 -b 1024 -O ^metadata_csum,uninit_bg,^64bit", ALL);
}

#[test]
fn ext4_with_clusters() {
    side_by_side(128, "-t ext4 -b 4096 -O bigalloc -C 16384", ALL);
    side_by_side(128, "-t ext4 -b 1024 -O bigalloc -C 8192", ALL);
}

#[test]
fn ext4_with_inline_data() {
    side_by_side(64, "-t ext4 -b 4096 -O inline_data -I 256", ALL);
    side_by_side(64, "-t ext4 -b 1024 -O inline_data -I 1024", ALL);
}

#[test]
fn ext4_with_meta_groups() {
    side_by_side(64, "-t ext4 -b 1024 -O meta_bg,^resize_inode -g 512", ALL);
    side_by_side(64, "-t ext4 -b 4096 -O meta_bg,^resize_inode,^flex_bg -g 1024", ALL);
}

#[test]
fn ext4_with_a_stored_seed_and_an_orphan_file() {
    side_by_side(64, "-t ext4 -b 4096 -O metadata_csum_seed,orphan_file", ALL);
}

#[test]
fn ext4_with_large_values_of_attributes() {
    side_by_side(64, "-t ext4 -b 1024 -O ea_inode", Filling { big_values: true, ..ALL });
}

#[test]
fn ext4_with_what_else_there_is() {
    side_by_side(64, "-t ext4 -b 4096 -O sparse_super2,large_dir,^has_journal", ALL);
}

/// Names and contents as a second reader has them, which nobody here wrote.
#[test]
fn a_second_reader_agrees() {
    for args in ["-t ext4 -b 1024", "-t ext4 -b 4096"] {
        let dir = scratch();
        let image = dir.path().join("guest.img");
        make(&image, 64, args);
        {
            let mount = Mount::new(&image, "rw");
            fill(mount.path(), ALL);
            // It takes some times that can be for damage.
            for n in 0..6 {
                std::fs::remove_file(mount.path().join(format!("time-{n}"))).unwrap();
            }
        }
        let fs = open(&image);
        let tree = fs.walk().unwrap();
        let own = own_rows(&*fs, &tree);
        let theirs = ext4_view::Ext4::load(Box::new(std::fs::read(&image).unwrap())).unwrap();
        let mut todo = vec![ext4_view::PathBuf::new("/")];
        let mut seen = 0;
        while let Some(dir) = todo.pop() {
            for entry in theirs.read_dir(&dir).unwrap() {
                let entry = entry.unwrap();
                let name = entry.file_name();
                if matches!(name.as_ref(), b"." | b"..") {
                    continue;
                }
                seen += 1;
                let path = entry.path();
                let row = own.get(&path.as_ref()[1..]).unwrap_or_else(|| panic!("{path:?} is not listed"));
                let meta = theirs.symlink_metadata(&path).unwrap();
                assert_eq!((row.mode, row.owner), (meta.mode() & 0o7777, (meta.uid(), meta.gid())), "{path:?}");
                if meta.is_dir() {
                    todo.push(path);
                } else if meta.is_symlink() {
                    // It takes a part of a path that is longer than a name can be for damage.
                    if row.target.as_ref().is_none_or(|t| t.len() <= 255) {
                        let target = theirs.read_link(&path).unwrap();
                        assert_eq!(row.target.as_deref(), Some(target.as_ref()), "{path:?}");
                    }
                } else if let Some((size, sum)) = &row.data {
                    assert_eq!(*size, meta.len(), "{path:?}");
                    assert_eq!(*sum, ext_support::sha(&theirs.read(&path).unwrap()), "{path:?}");
                }
            }
        }
        assert_eq!(seen, own.len(), "{args}");
    }
}

/// A directory that ignores case has names like any other. The kernel here has no Unicode tables: mke2fs fills it.
#[test]
fn casefold_is_read() {
    let dir = scratch();
    let source = dir.path().join("source");
    std::fs::create_dir_all(source.join("Größe/B")).unwrap();
    std::fs::write(source.join("Größe/ReadMe.TXT"), b"case").unwrap();
    std::fs::write(source.join("Größe/B/c"), vec![7; 10_000]).unwrap();
    std::os::unix::fs::symlink("ReadMe.TXT", source.join("Größe/link")).unwrap();
    let image = dir.path().join("guest.img");
    make(&image, 16, &format!("-t ext4 -O casefold -E encoding=utf8 -d {}", source.display()));
    ext_support::run("debugfs", &["-w", "-R", "sif Größe flags 0x40080000", image.to_str().unwrap()]);
    let fs = open(&image);
    let tree = fs.walk().unwrap();
    assert_eq!(tree.problems(), []);
    let mut own = own_rows(&*fs, &tree);
    own.remove(b"lost+found".as_slice());
    let theirs = kernel_rows(&source);
    assert_eq!(own.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    for (path, row) in &own {
        let Some(k) = theirs.get(path) else { continue };
        assert_eq!((&row.kind, row.mode, &row.target, &row.data), (&k.kind, k.mode, &k.target, &k.data));
    }
}

/// Files and names that are encrypted: as the kernel shows them without the key, but with the names' own bytes.
#[test]
fn encryption_is_recognised() {
    use unimage::fs::{Form, Kind};
    let dir = scratch();
    let image = dir.path().join("guest.img");
    make(&image, 16, "-t ext4 -b 4096 -O encrypt");
    {
        let mount = Mount::new(&image, "rw,test_dummy_encryption");
        let root = mount.path();
        std::fs::create_dir(root.join("dir")).unwrap();
        for n in 0..300 {
            std::fs::write(root.join(format!("dir/file {n}")), vec![b'x'; n * 50]).unwrap();
        }
        std::os::unix::fs::symlink("target", root.join("dir/link")).unwrap();
        std::fs::File::create(root.join("dir/hole")).unwrap().set_len(100_000).unwrap();
    }
    let fs = open(&image);
    let tree = fs.walk().unwrap();
    assert_eq!(tree.problems(), []);
    let mount = Mount::new(&image, "ro");
    let kernel: std::collections::BTreeMap<u64, _> =
        kernel_meta(mount.path()).into_iter().map(|m| (std::os::unix::fs::MetadataExt::ino(&m), m)).collect();
    let mut files = 0;
    for (entry, _) in tree.order() {
        let id = tree.entry(entry).object;
        let o = tree.object(id);
        let meta = kernel.get(&o.number).unwrap_or_else(|| panic!("inode {} is not the kernel's", o.number));
        assert_eq!(meta.is_dir(), o.kind == Kind::Dir);
        let Some(data) = tree.data(id) else { continue };
        let info = tree.stream(data);
        assert_eq!(info.form, Form::Encrypted);
        assert!(fs.open(&tree, data).is_err_and(|e| e.to_string().contains("encrypted")));
        if o.kind == Kind::File {
            assert_eq!(info.size, meta.len());
            files += 1;
        }
    }
    assert_eq!(files, 301);
    assert_eq!(tree.order().len(), kernel.len());
    let names: Vec<&[u8]> = tree.order().map(|(e, _)| tree.name(e)).collect();
    assert!(!names.contains(&b"file 7".as_slice()), "the names are not the clear ones");
}

fn kernel_meta(root: &Path) -> Vec<std::fs::Metadata> {
    let mut out = Vec::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = std::fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                todo.push(path);
            }
            out.push(meta);
        }
    }
    out
}

//! ext volumes as The Sleuth Kit and debugfs see them, and a directory whose index has three levels.

mod ext_support;

use std::collections::BTreeMap;
use std::path::Path;

use ext_support::{Filling, Mount, Rows, fill, kernel_rows, make, open, own_rows, run, same, scratch};

const ALL: Filling = Filling { big_values: false, preallocate: true, names: 1500 };
const MAPS: Filling = Filling { preallocate: false, ..ALL };

/// What `fls` prints of a file, as far as it does so without a mistake: type, inode, size, owner.
type Line = (char, u64, u64, (u32, u32));

fn fls(image: &Path) -> BTreeMap<String, Line> {
    let mut out = BTreeMap::new();
    for line in run("fls", &["-r", "-p", "-u", "-l", image.to_str().unwrap()]).lines() {
        let f: Vec<&str> = line.split('\t').collect();
        let (kind, number) = f[0].split_once(' ').unwrap();
        let number = number.trim_end_matches(':').parse().unwrap();
        let of = |n: usize| f[n].parse::<u64>().unwrap_or_else(|e| panic!("{e}: {line}"));
        // The second letter is the inode's type; the group comes before the owner.
        let kind = kind.chars().nth(2).unwrap();
        assert!(out.insert(f[1].to_owned(), (kind, number, of(6), (of(8) as u32, of(7) as u32))).is_none(), "{line}");
    }
    out
}

fn own_lines(rows: &Rows) -> BTreeMap<String, Line> {
    let line = |(path, row): (&Vec<u8>, &ext_support::Row)| {
        let kind = match row.kind.split(' ').next().unwrap() {
            "dir" => 'd',
            "symlink" => 'l',
            "fifo" => 'p',
            "socket" => 'h',
            "char" => 'c',
            "block" => 'b',
            _ => 'r',
        };
        let size = match (&row.data, &row.target) {
            (Some(data), _) => data.0,
            (_, Some(target)) => target.len() as u64,
            _ => 0,
        };
        Some((String::from_utf8(path.clone()).ok()?, (kind, row.number, size, row.owner)))
    };
    rows.iter().filter_map(line).collect()
}

/// Every path with its type, inode, size and owner; and the contents of some files.
#[test]
fn the_sleuth_kit_agrees() {
    for (args, filling) in [
        ("-t ext4 -b 4096", ALL),
        ("-t ext4 -b 1024 -O ^metadata_csum,^64bit", ALL),
        ("-t ext3 -b 2048", MAPS),
        ("-t ext2 -b 1024 -I 128", MAPS),
    ] {
        let dir = scratch();
        let image = dir.path().join("guest.img");
        make(&image, 64, args);
        fill(Mount::new(&image, "rw").path(), filling);
        let fs = open(&image);
        let tree = fs.walk().unwrap();
        let rows = own_rows(&*fs, &tree);
        let mut theirs = fls(&image);
        // Its own folder for what no name leads to.
        theirs.retain(|path, _| !path.starts_with("$OrphanFiles"));
        // Bytes that are no UTF-8 it shows in its own way.
        theirs.retain(|path, _| !path.starts_with("a/not utf-8"));
        let mut ours = own_lines(&rows);
        // Of directories, it prints the bytes of their blocks.
        for (path, line) in &mut ours {
            if line.0 == 'd' {
                line.2 = theirs.get(path).map_or(0, |t| t.2);
            }
        }
        let wrong: Vec<_> = ours.iter().filter(|(p, l)| theirs.get(*p) != Some(l)).collect();
        assert!(wrong.is_empty(), "{args}: {} differ: {:?}", wrong.len(), &wrong[..wrong.len().min(5)]);
        assert_eq!(ours.len(), theirs.len(), "{args}");
        // It fails at extent trees of several levels with holes.
        let sparse = if args.contains("ext4") { "a/turns-2" } else { "a/sparse" };
        for path in [sparse, "a/turns-1", "a/hole at the end", "sizes/300000", "a/b/c/third"] {
            let row = &rows[path.as_bytes()];
            let copy = dir.path().join("copy");
            let number = row.number.to_string();
            run("sh", &["-c", "icat \"$0\" \"$1\" > \"$2\"", image.to_str().unwrap(), &number, copy.to_str().unwrap()]);
            let bytes = std::fs::read(&copy).unwrap();
            assert_eq!(row.data, Some((bytes.len() as u64, ext_support::sha(&bytes))), "{args}: {path}");
        }
    }
}

/// An index of three levels, which only `large_dir` allows; debugfs says that it has them.
#[test]
fn a_directory_with_three_levels() {
    let dir = scratch();
    let image = dir.path().join("guest.img");
    make(&image, 120, "-t ext4 -b 1024 -O large_dir,^has_journal");
    {
        let mount = Mount::new(&image, "rw");
        let many = mount.path().join("many");
        std::fs::create_dir(&many).unwrap();
        std::fs::write(many.join("first"), b"all names are this file's").unwrap();
        let pad = "x".repeat(240);
        for n in 0..60_000 {
            std::fs::hard_link(many.join("first"), many.join(format!("{n} {pad}"))).unwrap();
        }
    }
    let index = run("debugfs", &["-R", "htree_dump /many", image.to_str().unwrap()]);
    assert!(index.contains("Indirect levels: 2"), "{}", &index[..index.len().min(600)]);
    let fs = open(&image);
    let tree = fs.walk().unwrap();
    assert_eq!(tree.problems(), []);
    let own = own_rows(&*fs, &tree);
    assert_eq!(own.len(), 60_003);
    same(&kernel_rows(Mount::new(&image, "ro").path()), &own);
}

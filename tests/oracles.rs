//! The tests' own oracles: each says nothing about what is right, and does say what is wrong.

mod common;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use common::fat::Fat;
use common::host::{Host, IMAGE, Place, Shape};
use common::{Noise, guest, scratch};

fn shape(width: u32) -> Shape {
    let (cluster_sectors, len) = match width {
        12 => (4, 4 << 20),
        16 => (4, 32 << 20),
        _ => (1, 40 << 20),
    };
    Shape { width, cluster_sectors, len, place: Place::Bare, fragments: 7 }
}

fn image(dir: &std::path::Path, len: usize) -> std::path::PathBuf {
    let path = dir.join("image");
    std::fs::write(&path, Noise::new(5).bytes(len)).unwrap();
    path
}

#[test]
fn a_host_in_fragments_reads_back_through_mcopy() {
    for width in [12, 16, 32] {
        for place in [Place::Bare, Place::Gpt, Place::Logical] {
            let dir = scratch();
            let image = image(dir.path(), 1_000_003);
            let host = Host::new(Shape { place, ..shape(width) }, &image);
            let (seen, paths) = host.tree();
            assert_eq!(seen[IMAGE].sha, common::sha256_file(&image));
            assert!(host.older.contains_key("Older folder/report of last year.odt"));
            assert!(paths.contains(&"Older folder/below it/".to_owned()), "{paths:?}");
            assert!(host.untouched());
            assert_eq!(host.changed(), None);
        }
    }
}

#[test]
fn the_checker_wrapper_sees_each_planted_fault() {
    let dir = scratch();
    let image = image(dir.path(), 300_000);
    for width in [12, 16, 32] {
        let host = Host::new(shape(width), &image);
        let file = OpenOptions::new().read(true).write(true).open(&host.file).unwrap();
        let fat: &Fat = &host.fat;
        let used = host.fat.table(&host.file, 0).iter().skip(3).position(|e| *e != 0).unwrap() as u64 + 3;
        let mut faults = vec![
            ("FATs differ", fat.fat_at + fat.fat_len + used * 3 / 2 + 1),
            ("a chain in both FATs", fat.fat_at + used * u64::from(width) / 8),
        ];
        if width == 32 {
            faults.push(("free count", fat.info_at + 0x1E8));
            faults.push(("dirty", 0x41));
            // A difference that fsck.fat prints without an exit code.
            faults.push(("backup boot sector", 6 * 512 + 3));
        }
        for (what, at) in faults {
            let mut old = [0];
            file.read_exact_at(&mut old, at).unwrap();
            file.write_all_at(&[old[0] ^ 1], at).unwrap();
            assert_ne!(host.fsck(), Vec::<String>::new(), "FAT{width}: {what}");
            assert!(!host.untouched());
            assert_eq!(host.changed(), Some(at), "FAT{width}: {what}");
            file.write_all_at(&old, at).unwrap();
            assert_eq!(host.fsck(), Vec::<String>::new(), "FAT{width}: {what} taken back");
        }
        // A byte of a cluster in use counts, one of a free cluster does not (but is no longer untouched).
        let last = host.fat.table(&host.file, 0).len() as u32 - 1;
        file.write_all_at(&[1], fat.at(last)).unwrap();
        assert_eq!(host.changed(), None);
        assert!(!host.untouched());
        file.write_all_at(&[0xEE; 3], fat.at(used as u32)).unwrap();
        assert_eq!(host.changed(), Some(fat.at(used as u32)));
    }
}

#[test]
fn the_small_corpus_has_the_forms_that_it_promises() {
    let guest = guest::small_windows();
    assert!(guest.files.len() > 450, "{}", guest.files.len());
    assert!(guest::runs_of(&guest.image, 2048, "fragmented/grown 1.bin").len() > 10);
    assert!(guest::runs_of(&guest.image, 2048, "sparse/holes 1").iter().any(|r| r.0 == 0));
    for path in ["more/clash:a", "more:of the folder", "names/README.txt", "names/readme.txt", "names/CON.txt"] {
        assert!(guest.files.contains_key(path), "{path}");
    }
    let packed = common::ok(
        "istat",
        ["-o", "2048", guest.image.to_str().unwrap(), &inode(&guest.image, "compressed/text 5.log")],
    );
    assert!(packed.contains("Compressed"), "{packed}");
}

fn inode(image: &std::path::Path, path: &str) -> String {
    let list = common::ok("fls", ["-r", "-p", "-o", "2048", image.to_str().unwrap()]);
    let line = list.lines().find(|l| l.split('\t').nth(1) == Some(path)).unwrap();
    line.split(' ').nth(1).unwrap().split(':').next().unwrap().to_owned()
}

#[test]
fn a_tiny_ntfs_fits_into_two_mebibytes() {
    let dir = scratch();
    for (len, cluster) in [(2 << 20, 1024), (4 << 20, 4096)] {
        let files = guest::tiny_ntfs(&dir.path().join(format!("{cluster}")), len, cluster);
        assert!(files.contains_key("top.bin:alt") && files.len() == 11, "{:?}", files.keys());
    }
}

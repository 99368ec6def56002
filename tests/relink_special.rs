//! Guests that are out of the ordinary, end to end on FAT hosts: data that was never written, files that Windows compresses as a
//! whole, streams where nobody looks, folders that are gone, bad sectors.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use common::guest::{bare_ntfs, with_streams};
use common::host::{Host, Place, Shape, json_lines, rows, strace};
use common::{Mount, Noise, Seens, UNIMAGE, sha256, unimage};

const FAT16: Shape = Shape { width: 16, cluster_sectors: 4, len: 48 << 20, place: Place::Bare, fragments: 3 };

/// A bare NTFS with clusters of 2 KiB.
fn guest(dir: &Path, fill: impl FnOnce(&Path)) -> PathBuf {
    let image = dir.join("guest");
    bare_ntfs(&image, 8 << 20, 2048, fill);
    image
}

/// The driver's own reading.
fn seen(image: &Path) -> Seens {
    with_streams(&Mount::ntfs(image, 0, 0, "ro,streams_interface=windows").dir)
}

/// Place and bytes of the MFT record of the file with this name.
fn record(image: &Path, name: &str) -> (usize, Vec<u8>) {
    let all = fs::read(image).unwrap();
    let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let found: Vec<usize> = (0..all.len())
        .step_by(1024)
        .filter(|at| all[*at..].starts_with(b"FILE") && all[*at..at + 1024].windows(name.len()).any(|w| w == name))
        .collect();
    assert_eq!(found.len(), 1, "records with that name");
    (found[0], all[found[0]..found[0] + 1024].to_vec())
}

fn u16_at(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

/// Where the unnamed, non-resident $DATA begins in a record.
fn data(record: &[u8]) -> usize {
    let mut at = u16_at(record, 20);
    loop {
        assert_ne!(&record[at..at + 4], &[0xFF; 4], "no $DATA");
        if record[at] == 0x80 && record[at + 8] == 1 && record[at + 9] == 0 {
            return at;
        }
        at += u16_at(record, at + 4);
    }
}

fn put(image: &Path, at: usize, bytes: &[u8]) {
    File::options().write(true).open(image).unwrap().write_all_at(bytes, at as u64).unwrap();
}

#[test]
fn bytes_behind_the_valid_length_come_out_as_zeros() {
    let dir = common::scratch();
    let bytes = Noise::new(1).bytes(60_000);
    let names = ["ends in a cluster", "ends on a cluster", "nothing valid", "all valid"];
    let image = guest(dir.path(), |root| {
        for name in names {
            fs::write(root.join(name), &bytes).unwrap();
        }
    });
    for (name, valid) in [(names[0], 20_001_u64), (names[1], 20_480), (names[2], 0)] {
        let (place, record) = record(&image, name);
        let at = data(&record);
        assert_eq!(record[at + 56..at + 64], 60_000_u64.to_le_bytes());
        // Not where the record's sectors end: those bytes are kept elsewhere.
        assert!((at + 56..at + 64).all(|b| b % 512 < 510));
        put(&image, place + at + 56, &valid.to_le_bytes());
    }
    let seen = seen(&image);
    for (name, valid) in names.iter().zip([20_001, 20_480, 0, 60_000]) {
        let zeros = [&bytes[..valid], &vec![0; 60_000 - valid]].concat();
        assert_eq!(seen[*name].sha, sha256(&zeros), "{name}: what the driver reads");
    }
    let host = Host::new(FAT16, &image);
    let done = host.relink(&["--commit", "--json"]).exits(0);
    let rows = rows(&done.stdout);
    host.relinked(&rows, &seen);
    let of = |name: &str| rows.iter().find(|r| r.path == name).map(|r| r.verdict.clone()).unwrap();
    assert_eq!(names.map(of), ["copy", "copy", "copy", "link"]);
    host.journal_verb("undo").exits(0);
    assert_eq!(host.changed(), None);
}

#[test]
fn a_file_that_windows_compressed_as_a_whole_is_said_to_be_that() {
    let dir = common::scratch();
    let packed = Noise::new(2).bytes(9000);
    let image = guest(dir.path(), |root| {
        let path = root.join("program.exe");
        File::create(&path).unwrap().set_len(40_000).unwrap();
        fs::write(format!("{}:WofCompressedData", path.display()), &packed).unwrap();
        fs::write(root.join("other"), b"other").unwrap();
        let buffer = [&[0x17, 0, 0, 0x80, 16, 0, 0, 0][..], &[1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]].concat();
        let none = rustix::fs::XattrFlags::empty();
        rustix::fs::lsetxattr(&path, "system.ntfs_reparse_data", &buffer, none).unwrap();
    });
    let host = Host::new(FAT16, &image);
    let out = host.relink(&["--commit"]).exits(4);
    assert!(
        out.stderr.contains("compressed by WOF (Compact OS)") && out.stderr.contains("--discard-unreadable"),
        "{out}"
    );
    assert!(host.untouched());
    let out = host.relink(&["--commit", "--json", "--discard-unreadable"]).exits(1);
    let entries = json_lines(&out.stdout).1;
    let row = |path: &str| entries.iter().find(|r| r["path"] == path).unwrap().clone();
    let program = row("program.exe");
    assert_eq!((&program["verdict"], &program["reason"]), (&"skip".into(), &"unreadable".into()));
    assert_eq!(program["detail"], "WOF (Compact OS)");
    // Its compressed bytes are there for whoever can make something of them.
    let written = row("program.exe:WofCompressedData")["written"].as_str().unwrap().to_owned();
    assert_eq!(host.tree().0[&format!("out/{written}")].sha, sha256(&packed));
    assert_eq!(host.fsck(), Vec::<String>::new());
}

#[test]
fn streams_on_files_of_the_file_system_do_not_go_unsaid() {
    let dir = common::scratch();
    let image = guest(dir.path(), |root| fs::write(root.join("file"), b"file").unwrap());
    {
        let mount = Mount::ntfs(&image, 0, 0, "rw,show_sys_files,streams_interface=windows");
        fs::write(mount.dir.join("$UpCase:secret"), Noise::new(3).bytes(5000)).unwrap();
    }
    let host = Host::new(FAT16, &image);
    let out = host.relink(&["--commit"]).exits(4);
    assert!(out.stderr.contains("1 named stream of the file system's own files"), "{out}");
    assert!(host.untouched());
    let out = host.relink(&["--json", "--discard-rest"]).exits(0);
    assert!(out.stdout.contains("\"bytes\":5000"), "{out}");
}

#[test]
fn files_whose_folder_is_gone_are_written_and_no_reason_to_refuse() {
    let dir = common::scratch();
    let bytes = Noise::new(4).bytes(7000);
    let image = guest(dir.path(), |root| {
        fs::create_dir(root.join("folder that is gone")).unwrap();
        fs::write(root.join("folder that is gone/orphan.bin"), &bytes).unwrap();
        fs::write(root.join("other"), b"other").unwrap();
    });
    // No longer in use: what a crash leaves. The name of the folder is in its own record alone.
    let (place, record) = record(&image, "folder that is gone");
    put(&image, place + 22, &[record[22] & !1]);
    let out = unimage(["ls", "-R", image.to_str().unwrap()]).exits(0);
    assert!(out.stderr.contains("note: ") && out.stderr.contains("$OrphanFiles"), "{out}");
    let host = Host::new(FAT16, &image);
    let out = host.relink(&["--commit", "--json"]).exits(0);
    assert!(out.stdout.lines().any(|l| l.contains("\"lost\"") && l.contains("$OrphanFiles")), "{out}");
    let tree = host.tree().0;
    let orphan = tree.iter().find(|(path, _)| path.ends_with("orphan.bin")).unwrap();
    assert!(orphan.0.starts_with("out/$OrphanFiles/") && orphan.1.sha == sha256(&bytes), "{orphan:?}");
    assert_eq!(host.fsck(), Vec::<String>::new());
}

/// Each read of the host fails once: whatever was met, nothing in use was touched, and it is said where.
#[test]
fn a_bad_sector_ends_a_commit_before_anything_in_use_is_touched() {
    let dir = common::scratch();
    let mut noise = Noise::new(5);
    let image = guest(dir.path(), |root| {
        for i in 0..6 {
            // Holes are copied to FAT.
            let file = File::create(root.join(format!("with a hole {i}"))).unwrap();
            file.write_all_at(&noise.bytes(400_000), 30_000).unwrap();
        }
    });
    let shape = Shape { width: 12, cluster_sectors: 16, len: 12 << 20, place: Place::Bare, fragments: 2 };
    let host = Host::new(shape, &image);
    let log = dir.path().join("strace");
    let path = host.file.to_str().unwrap();
    let (mut copying, mut ended) = (0, false);
    for n in 1..400 {
        let inject = format!("inject=pread64:error=EIO:when={n}");
        let line =
            ["relink", &host.image(), "--into", "/out", "--journal", host.journal().to_str().unwrap(), "--commit"]
                .map(str::to_owned);
        let out = strace(&["-P", path, "-e", &inject], &log, UNIMAGE, &line);
        if !fs::read_to_string(&log).unwrap().contains("(INJECTED)") {
            assert_eq!(out.code, 0, "{out}");
            ended = true;
            break;
        }
        if out.code == 0 {
            // Where there is a second way to the same bytes.
            host.journal_verb("undo").exits(0);
        } else {
            assert!(out.code == 3 || out.code == 4, "{out}");
            assert_eq!(host.changed(), None, "read {n}: {out}");
            assert!(out.stderr.contains("os error 5") || out.stderr.contains("can't be read"), "{out}");
        }
        if out.stderr.contains("copying out/with a hole") || out.stderr.contains("copying with a hole") {
            assert_eq!(out.code, 3, "{out}");
            assert!(out.stderr.contains("stream offset") && out.stderr.contains("in use was touched"), "{out}");
            host.journal_verb("recover").exits(0);
            copying += 1;
        }
        host.reset();
    }
    assert!(ended && copying > 0, "{ended} {copying}");
}

//! What is refused as unsafe: exit code 4, a clear line, and not a byte written.

mod common;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::guest::{self, copy_sparse};
use common::host::{Host, Place, Shape};
use common::{Loop, Mount, Noise, Out, Seens, ok, output, run, scratch, unimage};

const FAT16: Shape = Shape { width: 16, cluster_sectors: 4, len: 24 << 20, place: Place::Bare, fragments: 3 };
const FAT32: Shape = Shape { width: 32, cluster_sectors: 1, len: 36 << 20, place: Place::Bare, fragments: 3 };

fn host(shape: Shape) -> (Host, Seens) {
    let dir = scratch();
    let image = dir.path().join("guest");
    let files = guest::fat(&image, 2 << 20, 12, 4);
    (Host::new(shape, &image), files)
}

/// Exit code 4, one line (or one for each reason) that has these words, no journal, and the host's file as it was in `copy`.
#[track_caller]
fn refused(out: &Out, host: &Host, words: &[&str]) {
    let before = fs::metadata(&host.before).unwrap().len();
    assert_eq!(fs::metadata(&host.file).unwrap().len(), before);
    assert_eq!(out.code, 4, "{out}");
    assert!(host.untouched(), "refused, and yet written: {out}");
    says(out, words);
}

#[track_caller]
fn says(out: &Out, words: &[&str]) {
    let lines: Vec<&str> = out.stderr.lines().filter(|l| !l.trim().is_empty()).collect();
    assert!(!lines.is_empty() && lines.len() <= 3, "one clear line: {out}");
    assert!(lines.iter().all(|l| l.starts_with("unimage: ")), "{out}");
    let text = out.stderr.to_lowercase();
    assert!(words.iter().any(|w| text.contains(w)), "none of {words:?}: {out}");
}

/// The same for `relink --commit`; a journal must not be left.
#[track_caller]
fn relink_refused(host: &Host, words: &[&str]) {
    let out = host.relink(&["--commit"]);
    refused(&out, host, words);
    assert!(!host.journal().exists(), "a journal was left: {out}");
}

#[test]
fn a_host_that_is_mounted() {
    let (host, _) = host(FAT16);
    // The driver itself marks the volume: what counts is what is there while it is mounted.
    let mount = Mount::fat(&host.file, "rw+");
    let copy = host.dir.path().join("copy.img");
    copy_sparse(&host.file, &copy);
    let out = host.relink(&["--commit"]);
    assert_eq!(out.code, 4, "{out}");
    says(&out, &["mounted", "use", "open", "held"]);
    assert_eq!(common::sha256_file(&host.file), common::sha256_file(&copy), "{out}");
    assert!(!host.journal().exists());
    drop(mount);
    // Also read-only; and afterwards it is free.
    host.reset();
    let mount = Mount::fat(&host.file, "ro");
    relink_refused(&host, &["mounted", "use", "open", "held"]);
    drop(mount);
    host.relink(&["--commit"]).exits(0);
}

#[test]
fn a_host_that_is_mounted_through_a_loop_device() {
    for place in [Place::Bare, Place::Gpt, Place::Logical] {
        let (host, _) = host(Shape { place, ..FAT16 });
        let device = Loop::attach(&host.file, host.base, host.len, false);
        let mount = Mount::fat(&device.device, "rw+");
        relink_refused(&host, &["mounted", "use", "loop", "held"]);
        // By the device as well.
        let address = format!("{}//disk.raw", device.device.display());
        let journal = host.journal().display().to_string();
        let out = unimage(["relink", &address, "--into", "/out", "--journal", &journal, "--commit"]);
        refused(&out, &host, &["mounted", "use", "held", "open"]);
        assert!(!host.journal().exists());
        drop(mount);
    }
}

#[test]
fn a_host_in_a_partition_through_two_loop_devices() {
    let (host, _) = host(Shape { place: Place::Gpt, ..FAT16 });
    let disk = Loop::attach(&host.file, 0, 0, true);
    let part = Loop::attach(&disk.device, host.base, host.len, true);
    let mount = Mount::fat(&part.device, "ro");
    relink_refused(&host, &["loop", "mounted", "use", "open", "held"]);
    drop(mount);
    drop(part);
    drop(disk);
    host.relink(&["--commit"]).exits(0);
}

#[test]
fn other_partitions_that_are_mounted_do_not_matter() {
    let (host, _) = host(Shape { place: Place::Gpt, ..FAT16 });
    // The first partition: 512 KiB from 1 MiB on.
    let first = Loop::attach(&host.file, 1 << 20, 512 << 10, false);
    ok("mkfs.fat", [first.device.as_os_str()]);
    let mount = Mount::fat(&first.device, "rw+");
    host.relink(&["--commit"]).exits(0);
    drop(mount);
}

#[test]
fn a_host_of_ntfs_that_is_mounted_or_has_no_writer() {
    let dir = scratch();
    let (image, disk) = (dir.path().join("guest"), dir.path().join("disk"));
    guest::fat(&image, 1 << 20, 12, 2);
    guest::ntfs(&disk, 24 << 20, |root| {
        fs::copy(&image, root.join("disk.raw")).unwrap();
    });
    let before = common::sha256_file(&disk);
    let journal = dir.path().join("journal");
    let address = format!("{}//p1/disk.raw", disk.display());
    let mount = Mount::ntfs(&disk, guest::PART, 23 << 20, "ro");
    let out = unimage(["relink", &address, "--into", "/out", "--journal", journal.to_str().unwrap(), "--commit"]);
    assert!(matches!(out.code, 3 | 4), "{out}");
    drop(mount);
    assert_eq!(common::sha256_file(&disk), before);
    assert!(!journal.exists());
}

#[test]
fn a_host_that_is_open_for_writing_elsewhere() {
    let (host, _) = host(FAT16);
    let mut sleeper = Command::new("bash")
        .args(["-c", "exec 7<>\"$0\"; echo ready; exec sleep 60"])
        .arg(&host.file)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    std::io::Read::read_exact(sleeper.stdout.as_mut().unwrap(), &mut ready).unwrap();
    let out = host.relink(&["--commit"]);
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    refused(&out, &host, &["open", "held", "use"]);
}

/// A host with one byte changed is refused; `before` is then that host.
#[track_caller]
fn changed(host: &Host, at: u64, to: &[u8], words: &[&str]) {
    host.reset();
    let file = OpenOptions::new().write(true).open(&host.file).unwrap();
    file.write_all_at(to, at).unwrap();
    drop(file);
    let kept = host.dir.path().join("kept.img");
    fs::rename(&host.before, &kept).unwrap();
    copy_sparse(&host.file, &host.before);
    relink_refused(host, words);
    fs::rename(&kept, &host.before).unwrap();
}

#[test]
fn a_dirty_host() {
    let (host, _) = host(FAT16);
    changed(&host, 0x25, &[1], &["dirty", "clean"]);
    // The clean-shutdown and no-error bits of FAT[1], in both FATs alike.
    for bits in [0x7F, 0xBF] {
        host.reset();
        let file = OpenOptions::new().write(true).open(&host.file).unwrap();
        for which in 0..2 {
            file.write_all_at(&[bits], host.fat.fat_at + which * host.fat.fat_len + 3).unwrap();
        }
        drop(file);
        let out = host.relink(&["--commit"]);
        assert_eq!(out.code, 4, "{out}");
        says(&out, &["dirty", "clean", "error"]);
        assert!(!host.journal().exists());
    }
    let (host, _) = self::host(FAT32);
    changed(&host, 0x41, &[1], &["dirty", "clean"]);
}

#[test]
fn fats_that_differ() {
    for shape in [FAT16, FAT32] {
        let (host, _) = host(shape);
        let last = host.fat.fat_at + 2 * host.fat.fat_len;
        // An entry of a free cluster, of one in use, and one beyond the last cluster of no meaning.
        let used = host.fat.fat_at + host.fat.fat_len + 40;
        changed(&host, used, &[0x55], &["fat"]);
        let free = last - host.fat.fat_len + u64::from(host.fat.clusters) * u64::from(host.fat.width) / 8;
        changed(&host, free, &[0x55], &["fat"]);
    }
}

#[test]
fn mirroring_that_is_off_and_a_chain_that_is_broken() {
    let (host, _) = host(FAT32);
    changed(&host, 0x28, &[0x80], &["mirror", "fat", "flags"]);
    // The image's chain ends too early, in both FATs.
    host.reset();
    let table = host.fat.table(&host.file, 0);
    let (paths, _) = (host.tree().1, ());
    assert!(paths.iter().any(|p| p == common::host::IMAGE));
    let longest = table.iter().skip(3).position(|e| *e > 3 && *e < 0x0FFF_FFF0).unwrap() as u64 + 3;
    let file = OpenOptions::new().write(true).open(&host.file).unwrap();
    for which in 0..2 {
        let at = host.fat.fat_at + which * host.fat.fat_len + (longest + 800) * 4;
        file.write_all_at(&0x0FFF_FFFF_u32.to_le_bytes(), at).unwrap();
    }
    drop(file);
    let out = host.relink(&["--commit"]);
    assert!(matches!(out.code, 3 | 4), "{out}");
    assert!(!host.journal().exists());
}

#[test]
fn a_journal_that_exists() {
    let (host, _) = host(FAT16);
    fs::write(host.journal(), b"precious").unwrap();
    let out = host.relink(&["--commit"]);
    refused(&out, &host, &["journal"]);
    assert_eq!(fs::read(host.journal()).unwrap(), b"precious");
    // Through a link too, and a link to nowhere.
    fs::remove_file(host.journal()).unwrap();
    std::os::unix::fs::symlink("/nonexistent/there", host.journal()).unwrap();
    let out = host.relink(&["--commit"]);
    refused(&out, &host, &["journal"]);
}

#[track_caller]
fn journal_at(host: &Host, path: &Path) -> Out {
    unimage(["relink", &host.image(), "--into", "/out", "--journal", path.to_str().unwrap(), "--commit"])
}

#[test]
fn a_journal_in_memory_or_nowhere() {
    let (host, _) = host(FAT16);
    let shm = PathBuf::from("/dev/shm").join(format!("unimage-test-{}", std::process::id()));
    let out = journal_at(&host, &shm);
    assert!(!shm.exists());
    refused(&out, &host, &["tmpfs", "memory", "ramfs"]);
    let out = journal_at(&host, &host.dir.path().join("no such folder/journal"));
    assert!(matches!(out.code, 3 | 4), "{out}");
    assert!(host.untouched());
    let out = journal_at(&host, host.dir.path());
    refused(&out, &host, &["journal"]);
    assert_eq!(journal_at(&host, &host.file).code, 4);
    assert!(host.untouched());
}

#[test]
fn a_journal_on_something_mounted_from_the_host() {
    // The host's volume holds, beside the image, a disk that is attached and mounted: a journal there would be on the host volume.
    let dir = scratch();
    let image = dir.path().join("guest");
    guest::fat(&image, 1 << 20, 12, 2);
    let host = Host::new(FAT16, &image);
    // The disk of the host, mounted by its own file: as loop device over a range of it in which an ext4 lies.
    let inner = dir.path().join("inner");
    fs::File::create(&inner).unwrap().set_len(8 << 20).unwrap();
    ok("mkfs.ext4", ["-q", "-F", inner.to_str().unwrap()]);
    let start = host.fat.at(host.fat.place(&host.file, &inner, "INNER.IMG", 1));
    assert!(host.tree().0.contains_key("INNER.IMG"));
    copy_sparse(&host.file, &host.before);
    let device = Loop::attach(&host.file, start, 8 << 20, false);
    let at = scratch();
    ok("mount", [device.device.as_os_str(), at.path().as_os_str()]);
    let out = journal_at(&host, &at.path().join("journal"));
    let there = at.path().join("journal").exists();
    ok("umount", [at.path().as_os_str()]);
    assert!(!there, "{out}");
    assert_eq!(out.code, 4, "{out}");
    says(&out, &["mounted", "loop", "host", "volume"]);
}

#[test]
fn a_journal_on_the_host_volume_itself() {
    let (host, _) = host(FAT16);
    let mount = Mount::fat(&host.file, "rw+");
    let copy = host.dir.path().join("copy.img");
    copy_sparse(&host.file, &copy);
    let out = journal_at(&host, &mount.dir.join("journal"));
    assert_eq!(common::sha256_file(&host.file), common::sha256_file(&copy), "{out}");
    drop(mount);
    assert_eq!(out.code, 4, "{out}");
    says(&out, &["mounted", "use", "open", "held", "volume"]);
    assert!(!host.tree().0.contains_key("journal"));
}

#[test]
fn too_little_space() {
    // A host that is filled up to its last clusters: new directories and what must be copied have no place.
    for (left, words) in [(0, ["space", "free"]), (3, ["space", "free"])] {
        let (host, _) = host(FAT16);
        let filler = host.dir.path().join("filler");
        fs::write(
            &filler,
            Noise::new(1).bytes((u64::from(host.fat.free(&host.file) - left) * host.fat.cluster) as usize),
        )
        .unwrap();
        ok("mcopy", ["-i", &host.mtools(), filler.to_str().unwrap(), "::/FILLER.BIN"]);
        copy_sparse(&host.file, &host.before);
        relink_refused(&host, &words);
    }
}

#[test]
fn an_image_that_is_not_on_that_volume_or_no_image() {
    let (host, _) = host(FAT16);
    let journal = host.journal().display().to_string();
    let stray = host.dir.path().join("stray.img");
    guest::fat(&stray, 1 << 20, 12, 2);
    let path = stray.display().to_string();
    for address in [path.as_str(), &host.address] {
        // An image as such lies on no host that could be written.
        let out = unimage(["relink", address, "--into", "/out", "--journal", &journal, "--commit"]);
        assert!(matches!(out.code, 2 | 4), "{out}");
        assert_eq!(out.stderr.lines().filter(|l| l.starts_with("unimage")).count(), 1, "{out}");
        assert!(host.untouched() && !host.journal().exists(), "{out}");
    }
    let out =
        unimage(["relink", &host.path("no such image"), "--into", "/out", "--journal", &journal, "--commit"]).exits(3);
    says(&out, &["no such image"]);
    // A file that is no image: its bytes are unknown, not raw by default.
    let out = unimage(["relink", &host.path("NOTES.TXT"), "--into", "/out", "--journal", &journal, "--commit"]);
    assert!(matches!(out.code, 3 | 4), "{out}");
    assert!(host.untouched() && !host.journal().exists());
}

#[test]
fn a_part_of_an_image_while_the_rest_has_files() {
    let dir = scratch();
    let image = dir.path().join("guest");
    guest::ntfs(&image, 12 << 20, |root| guest::special(&root.join("all"), &mut Noise::new(4)));
    let host = Host::new(Shape { len: 60 << 20, ..FAT16 }, &image);
    let journal = host.journal().display().to_string();
    let address = format!("{}//p1/all/names", host.image());
    let out = unimage(["relink", &address, "--into", "/out", "--journal", &journal, "--commit"]);
    refused(&out, &host, &["discard-rest"]);
    let out = unimage(["relink", &address, "--into", "/out", "--journal", &journal, "--commit", "--discard-rest"]);
    assert!(matches!(out.code, 0 | 1), "{out}");
    assert_eq!(host.fsck(), Vec::<String>::new());
    host.journal_verb("undo").exits(0);
    assert_eq!(host.changed(), None);
}

/// A host that is relinked, and a copy of its file of that moment in `before`.
fn relinked(shape: Shape) -> Host {
    let (host, _) = host(shape);
    host.relink(&["--commit"]).exits(0);
    copy_sparse(&host.file, &host.before);
    host
}

#[test]
fn undo_of_a_host_that_was_changed_since() {
    // By mtools, each time in another way; the refusal is before the first write.
    let changes: [&dyn Fn(&Host); 5] = [
        &|h| drop(ok("mcopy", ["-i", &h.mtools(), "/etc/passwd", "::/NEW.TXT"])),
        &|h| drop(ok("mdel", ["-i", &h.mtools(), "::/NOTES.TXT"])),
        &|h| drop(ok("mmd", ["-i", &h.mtools(), "::/out/made"])),
        &|h| drop(ok("mren", ["-i", &h.mtools(), "::/out/top/SHORT1.TXT", "::/out/top/other name.txt"])),
        &|h| drop(ok("mdel", ["-i", &h.mtools(), "::/out/top/SHORT3.TXT"])),
    ];
    for (i, change) in changes.iter().enumerate() {
        let host = relinked(if i % 2 == 0 { FAT16 } else { FAT32 });
        change(&host);
        copy_sparse(&host.file, &host.before);
        let out = host.journal_verb("undo");
        refused(&out, &host, &["changed"]);
        // A file's contents, in a cluster that was the image's: the tables are as they were, the image is not.
        let out = host.journal_verb("recover").exits(0);
        assert!(host.untouched(), "{out}");
    }
}

#[test]
fn a_journal_of_another_host() {
    let (one, other) = (relinked(FAT16), relinked(FAT16));
    for verb in ["undo", "recover"] {
        let a = [verb, one.journal().to_str().unwrap(), "--host", other.file.to_str().unwrap()].map(str::to_owned);
        let out = unimage(a);
        assert!(other.untouched() && one.untouched(), "{out}");
        if verb == "undo" {
            assert_eq!(out.code, 4, "{out}");
            says(&out, &["host", "journal"]);
        }
    }
    // The right host at another path is known by its content.
    let moved = one.dir.path().join("moved.img");
    fs::rename(&one.file, &moved).unwrap();
    let out = one.journal_verb("undo");
    assert!(matches!(out.code, 3 | 4), "{out}");
    unimage(["undo", one.journal().to_str().unwrap(), "--host", moved.to_str().unwrap()]).exits(0);
    fs::rename(&moved, &one.file).unwrap();
    assert_eq!(one.fsck(), Vec::<String>::new());
}

#[test]
fn what_is_no_journal() {
    let host = relinked(FAT16);
    let whole = fs::read(host.journal()).unwrap();
    for verb in ["undo", "recover"] {
        for bytes in [b"".to_vec(), b"something else".to_vec(), whole[..whole.len() / 2].to_vec(), vec![0; 4096]] {
            fs::write(host.journal(), &bytes).unwrap();
            let out = host.journal_verb(verb);
            assert!(matches!(out.code, 3 | 4), "{out}");
            assert!(host.untouched(), "{out}");
        }
        // A bit that is turned anywhere in it.
        let mut noise = Noise::new(6);
        for _ in 0..40 {
            let mut bytes = whole.clone();
            let at = noise.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << noise.below(8);
            fs::write(host.journal(), &bytes).unwrap();
            let out = host.journal_verb(verb);
            if out.code == 0 && verb == "undo" {
                // What was turned has no meaning for the undo (the manifest); it must then be whole.
                assert_eq!(host.fsck(), Vec::<String>::new(), "byte {at}: {out}");
                copy_sparse(&host.before, &host.file);
                continue;
            }
            assert!(host.untouched(), "byte {at}: {out}");
        }
        fs::write(host.journal(), &whole).unwrap();
    }
}

#[test]
fn a_host_that_is_mounted_at_undo_and_recover() {
    let host = relinked(FAT16);
    let mount = Mount::fat(&host.file, "ro");
    let out = host.journal_verb("undo");
    drop(mount);
    refused(&out, &host, &["mounted", "use", "open", "held"]);
}

#[test]
fn no_other_verb_writes() {
    let (host, _) = host(FAT16);
    for a in [
        vec!["info".to_owned(), host.image()],
        vec!["ls".to_owned(), "-R".to_owned(), host.image()],
        vec!["plan".to_owned(), host.image()],
        vec!["plan".to_owned(), "--json".to_owned(), host.image()],
        vec!["map".to_owned(), host.image()],
        vec!["cat".to_owned(), format!("{}//top/SHORT1.TXT", host.image())],
    ] {
        // Read-only also by the system: any attempt to write or to open for it would fail.
        let mut permissions = fs::metadata(&host.file).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&host.file, permissions).unwrap();
        let log = host.dir.path().join("log");
        let out = output(
            Command::new("strace")
                .args(["-f", "-qq", "-e", "trace=openat,open,creat", "-o"])
                .arg(&log)
                .arg(common::UNIMAGE)
                .args(&a),
        );
        assert_eq!(out.code, 0, "{out}");
        let opened = fs::read_to_string(&log).unwrap();
        let writes: Vec<_> = opened
            .lines()
            .filter(|l| l.contains("host.img") && ["O_RDWR", "O_WRONLY"].iter().any(|f| l.contains(f)))
            .collect();
        assert!(writes.is_empty(), "{a:?}: {writes:?}");
        assert!(host.untouched());
    }
    run("true", [""; 0]).exits(0);
}

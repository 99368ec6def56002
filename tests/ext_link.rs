//! ext4 as host: images with all sorts of guests are relinked by the program, and judged by e2fsck and by the kernel,
//! which then goes on writing.

mod ext_support;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use ext_support::{Filling, Mount, Random, Rows, fill, kernel_rows, make, run, same, scratch};

/// What e2fsck says beside its passes and its summary; nothing for a sound file system.
fn complaints(image: &Path) -> String {
    let out = Command::new("e2fsck").args(["-fn".as_ref(), image.as_os_str()]).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    let name = image.to_str().unwrap();
    let lines: Vec<&str> = text
        .lines()
        .filter(|l| {
            !(l.starts_with("Pass ") || l.starts_with("e2fsck 1.") || l.starts_with(name) && l.contains(" files ("))
        })
        .collect();
    format!("{}{}", lines.join("\n"), if out.status.success() { "" } else { " (exit code)" })
}

#[track_caller]
fn sound(image: &Path, when: &str) {
    assert_eq!(complaints(image), "", "e2fsck {when}");
}

/// A journal must not lie in memory.
fn journal() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("journal");
    (dir, path)
}

fn unimage(args: &[&str]) -> (i32, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_unimage")).args(args).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(!text.contains("panicked"), "{text}");
    (out.status.code().unwrap_or(-1), text)
}

/// A host with older files and, in many pieces, the image at `vm/disk.img`; what the kernel says of the older files.
struct Host {
    _dir: tempfile::TempDir,
    image: PathBuf,
    older: Rows,
}

/// How the host's directories are before the relink.
#[derive(Clone, Copy, Default)]
struct Setting {
    /// Names beside the image: enough of them, and its directory has an index.
    beside: u32,
    /// Whether the image is written in pieces, with holes of the host between them.
    pieces: bool,
}

impl Host {
    fn new(mib: u64, args: &str, guest: &Path, how: Setting) -> Self {
        let dir = scratch();
        let image = dir.path().join("host.img");
        make(&image, mib, args);
        let older = {
            let mount = Mount::new(&image, "rw");
            let root = mount.path();
            let mut r = Random(5);
            for d in ["vm", "other", "deep/er"] {
                fs::create_dir_all(root.join(d)).unwrap();
            }
            for n in 0..how.beside {
                fs::write(root.join(format!("vm/beside the image {n}")), r.bytes((n % 7) as usize)).unwrap();
            }
            let fillers = if how.pieces { 300 } else { 4 };
            for n in 0..fillers {
                fs::write(root.join(format!("other/filler {n}")), r.bytes(9000)).unwrap();
            }
            run("sync", &["-f".as_ref(), root.as_os_str()]);
            for n in (0..fillers).step_by(2) {
                fs::remove_file(root.join(format!("other/filler {n}"))).unwrap();
            }
            run("sync", &["-f".as_ref(), root.as_os_str()]);
            copy(guest, &root.join("vm/disk.img"), how.pieces);
            fs::write(root.join("vm/after the image"), r.bytes(70_000)).unwrap();
            for n in 0..30 {
                fs::write(root.join(format!("deep/er/{n}")), r.bytes(300 * n)).unwrap();
                fs::remove_file(root.join(format!("deep/er/{}", n / 2))).ok();
            }
            run("sync", &["-f".as_ref(), root.as_os_str()]);
            drop(mount);
            kernel_rows(Mount::new(&image, "ro").path())
        };
        sound(&image, "before");
        Self { _dir: dir, image, older }
    }
    /// Relinks it; the output.
    fn relink(&self, into: &str, journal: &Path) -> String {
        let address = format!("{}//vm/disk.img", self.image.display());
        let (code, text) =
            unimage(&["relink", &address, "--into", into, "--journal", journal.to_str().unwrap(), "--commit"]);
        assert_eq!(code, 0, "{text}");
        text
    }
    /// What the kernel has below `into` now, without that folder; and all else must be as it was.
    fn after(&self, into: &str) -> Rows {
        sound(&self.image, "after");
        let all = kernel_rows(Mount::new(&self.image, "ro").path());
        let prefix = format!("{into}/").into_bytes();
        let mut older = self.older.clone();
        let image = older.remove(b"vm/disk.img".as_slice()).unwrap();
        let (new, rest): (Rows, Rows) = all.into_iter().partition(|(p, _)| p.starts_with(&prefix));
        let mut rest = rest;
        // Directories of `into` that were made.
        rest.retain(|p, _| older.contains_key(p) || !prefix.starts_with(&[p.as_slice(), b"/"].concat()));
        let new: Rows = new.into_iter().filter(|(p, _)| !older.contains_key(p)).collect();
        for (path, row) in &older {
            if path.starts_with(&prefix) {
                rest.insert(path.clone(), row.clone());
            }
        }
        same(&older, &rest);
        assert!(!rest.values().any(|r| r.number == image.number));
        new.into_iter().map(|(p, r)| (p[prefix.len()..].to_vec(), r)).collect()
    }
    /// The kernel creates, extends and deletes; then all is still in order.
    fn used(&self, into: &str) {
        {
            let mount = Mount::new(&self.image, "rw");
            let top = mount.path().join(into);
            let mut files = Vec::new();
            let mut dirs = vec![top.clone()];
            let mut at = 0;
            while at < dirs.len() {
                for e in fs::read_dir(&dirs[at]).unwrap() {
                    let e = e.unwrap();
                    let kind = e.file_type().unwrap();
                    if kind.is_dir() {
                        dirs.push(e.path());
                    } else if kind.is_file() {
                        files.push(e.path());
                    }
                }
                at += 1;
            }
            for (n, file) in files.iter().enumerate() {
                match n % 5 {
                    0 => fs::remove_file(file).unwrap(),
                    1 => {
                        let f = File::options().write(true).open(file).unwrap();
                        let len = f.metadata().unwrap().len();
                        f.write_all_at(&[7; 3000], len + 10).unwrap();
                        // What was behind the end reads as zeros.
                        let mut gap = [1; 10];
                        File::open(file).unwrap().read_exact_at(&mut gap, len).unwrap();
                        assert_eq!(gap, [0; 10]);
                    }
                    2 => File::options().write(true).open(file).unwrap().set_len(1).unwrap(),
                    _ => {}
                }
            }
            for dir in &dirs {
                for n in 0..20 {
                    fs::write(dir.join(format!("made afterwards {n}")), vec![n; 50 * usize::from(n)]).unwrap();
                }
                for n in 0..5 {
                    fs::remove_file(dir.join(format!("made afterwards {n}"))).unwrap();
                }
            }
            fs::write(mount.path().join("vm/new beside"), b"beside").unwrap();
        }
        // A tree that the kernel has cut or joined keeps its depth, which e2fsck remarks.
        let said = complaints(&self.image);
        let said: Vec<&str> =
            said.lines().filter(|l| !l.is_empty() && !l.ends_with("could be shorter.  Optimize? no")).collect();
        assert_eq!(said, Vec::<&str>::new(), "e2fsck after the kernel has used it");
    }
}

/// Copies so that the host's file has holes where the image has zeros, and in pieces if that is asked for.
fn copy(from: &Path, to: &Path, pieces: bool) {
    let bytes = fs::read(from).unwrap();
    let file = File::create(to).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    let step = 1 << 16;
    let mut order: Vec<usize> = (0..bytes.len().div_ceil(step)).collect();
    if pieces {
        // Later parts first, each on the disk before the next.
        order.reverse();
    }
    for (n, part) in order.into_iter().enumerate() {
        let end = bytes.len().min((part + 1) * step);
        let part_bytes = &bytes[part * step..end];
        if part_bytes.iter().any(|b| *b != 0) {
            file.write_all_at(part_bytes, (part * step) as u64).unwrap();
            if pieces && n % 4 == 0 {
                file.sync_data().unwrap();
            }
        }
    }
    file.sync_all().unwrap();
}

/// An ext guest with everything in it; and what the kernel says of it.
fn ext_guest(dir: &Path, args: &str, filling: Filling) -> (PathBuf, Rows) {
    let path = dir.join("guest.img");
    make(&path, 64, args);
    fill(Mount::new(&path, "rw").path(), filling);
    let rows = kernel_rows(Mount::new(&path, "ro").path());
    (path, rows)
}

/// Compares what an ext guest had with what the host has now: all but inode numbers; names of one file stay names of one
/// file. Times are as the host keeps them.
#[track_caller]
fn kept(guest: &Rows, host: &Rows, small_inodes: bool) {
    let mut numbers: HashMap<u64, u64> = HashMap::new();
    let mut wanted = BTreeMap::new();
    for (path, row) in guest {
        let mut row = row.clone();
        if let Some(now) = host.get(path) {
            assert_eq!(*numbers.entry(row.number).or_insert(now.number), now.number, "{}", path.escape_ascii());
            row.number = now.number;
        }
        if small_inodes {
            let cut = |t: Option<(i64, u32)>| t.map(|t| (t.0.clamp(i32::MIN.into(), i32::MAX.into()), 0));
            row.times = row.times.map(cut);
            row.times[3] = None;
        }
        wanted.insert(path.clone(), row);
    }
    let distinct: std::collections::HashSet<u64> = numbers.values().copied().collect();
    assert_eq!(distinct.len(), numbers.len(), "two files became one");
    same(&wanted, host);
}

const GUEST: Filling = Filling { big_values: false, preallocate: true, names: 700 };

/// One host with one guest, there and used.
fn there(mib: u64, host: &str, guest: &str, how: Setting, into: &str) {
    let dir = scratch();
    let preallocate = guest.contains("-t ext4");
    let (image, mut rows) = ext_guest(dir.path(), guest, Filling { preallocate, ..GUEST });
    if host.contains("-b 1024") && guest.contains("-b 4096") {
        // All of its attributes are more than a small block holds.
        rows.get_mut(b"xattr-many".as_slice()).unwrap().xattrs.retain(|x| x.0 != "user.large");
    }
    let host_args = host;
    let host = Host::new(mib, host, &image, how);
    let (_keep, journal) = journal();
    host.relink(&format!("/{into}"), &journal);
    kept(&rows, &host.after(into), host_args.contains("-I 128"));
    host.used(into);
}

const PLAIN: Setting = Setting { beside: 3, pieces: false };
const PIECES: Setting = Setting { beside: 3, pieces: true };
const INDEXED: Setting = Setting { beside: 900, pieces: true };

#[test]
fn host_4k() {
    there(256, "-t ext4 -b 4096", "-t ext4 -b 4096", INDEXED, "out");
}

#[test]
fn host_1k() {
    there(256, "-t ext4 -b 1024", "-t ext4 -b 1024", PIECES, "out/and/deeper");
}

#[test]
fn host_2k_into_the_images_directory() {
    there(256, "-t ext4 -b 2048", "-t ext4 -b 4096", INDEXED, "vm");
}

#[test]
fn host_with_small_inodes() {
    there(256, "-t ext4 -b 4096 -I 128", "-t ext4 -b 4096", PLAIN, "out");
}

#[test]
fn host_without_checksums() {
    there(256, "-t ext4 -b 4096 -O ^metadata_csum,^uninit_bg,^64bit,^flex_bg", "-t ext4 -b 4096", PLAIN, "out");
}

#[test]
fn host_with_descriptor_checksums() {
    there(256, "-t ext4 -b 1024 -O ^metadata_csum,uninit_bg,^64bit", "-t ext4 -b 1024", INDEXED, "deep/er");
}

#[test]
fn host_without_a_journal_and_without_indexes() {
    there(256, "-t ext4 -b 4096 -O ^has_journal,^dir_index", "-t ext4 -b 4096", INDEXED, "other");
}

#[test]
fn host_with_clusters() {
    there(256, "-t ext4 -b 4096 -O bigalloc -C 16384", "-t ext4 -b 4096", PIECES, "out");
    there(256, "-t ext4 -b 1024 -O bigalloc -C 4096", "-t ext4 -b 4096", INDEXED, "vm/in");
}

#[test]
fn host_with_a_stored_seed_and_an_orphan_file() {
    there(256, "-t ext4 -b 4096 -O metadata_csum_seed,orphan_file", "-t ext3 -b 4096", PIECES, "out");
}

#[test]
fn host_with_meta_groups_and_large_directories() {
    there(256, "-t ext4 -b 4096 -O meta_bg,^resize_inode,large_dir", "-t ext4 -b 4096", PLAIN, "out");
    there(256, "-t ext4 -b 1024 -O meta_bg,^resize_inode,sparse_super2 -g 2048", "-t ext2 -b 1024", PLAIN, "out");
}

#[test]
fn host_with_small_groups_and_inline_data() {
    there(
        256,
        "-t ext4 -b 4096 -g 2048 -N 30000 -O inline_data,ea_inode",
        "-t ext4 -b 1024 -O inline_data",
        INDEXED,
        "out",
    );
}

/// Guests without owners and modes get the image's: who may read the image may read what was in it.
#[test]
fn guests_without_owners() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let dir = scratch();
    let guest = dir.path().join("guest.img");
    File::create(&guest).unwrap().set_len(48 << 20).unwrap();
    run("mkntfs", &["-F".as_ref(), "-Q".as_ref(), "-q".as_ref(), guest.as_os_str()]);
    {
        let at = scratch();
        run(
            "ntfs-3g",
            &["-o".as_ref(), "streams_interface=windows".as_ref(), guest.as_os_str(), at.path().as_os_str()],
        );
        let mut r = Random(8);
        fs::create_dir_all(at.path().join("Users/größe 🦀")).unwrap();
        for n in 0..300 {
            fs::write(at.path().join(format!("Users/größe 🦀/file {n}")), r.bytes(n * 123)).unwrap();
        }
        fs::write(at.path().join("with a stream"), b"data").unwrap();
        fs::write(at.path().join("with a stream:name"), r.bytes(20_000)).unwrap();
        run("umount", &[at.path()]);
    }
    let mut host = Host::new(200, "-t ext4 -b 4096", &guest, PIECES);
    {
        let mount = Mount::new(&host.image, "rw");
        let image = mount.path().join("vm/disk.img");
        std::os::unix::fs::chown(&image, Some(1234), Some(5678)).unwrap();
        fs::set_permissions(&image, fs::Permissions::from_mode(0o640)).unwrap();
    }
    host.older = kernel_rows(Mount::new(&host.image, "ro").path());
    let (_keep, journal) = journal();
    host.relink("/out", &journal);
    let rows = host.after("out");
    let mut r = Random(8);
    for n in 0..300 {
        let row = &rows[format!("Users/größe 🦀/file {n}").as_bytes()];
        let data = r.bytes(n * 123);
        assert_eq!(row.data, Some((data.len() as u64, ext_support::sha(&data))));
        assert_eq!((row.mode, row.owner), (0o640, (1234, 5678)));
    }
    assert_eq!(rows[b"with a stream".as_slice()].data, Some((4, ext_support::sha(b"data"))));
    assert_eq!(rows[b"with a stream.stream.name".as_slice()].data, Some((20_000, ext_support::sha(&r.bytes(20_000)))));
    let mount = Mount::new(&host.image, "ro");
    let top = fs::metadata(mount.path().join("out")).unwrap();
    assert_eq!((top.mode() & 0o7777, top.uid(), top.gid()), (0o750, 1234, 5678));
    drop(mount);
    host.used("out");
}

/// A disk with a table: each partition has its folder. Owners of the guest's are kept, that of a folder is the image's.
#[test]
fn a_disk_with_partitions() {
    let dir = scratch();
    let (ext, rows) = ext_guest(dir.path(), "-t ext4 -b 4096", GUEST);
    let disk = dir.path().join("disk.img");
    let file = File::create(&disk).unwrap();
    file.set_len(80 << 20).unwrap();
    let mut sfdisk = Command::new("sfdisk")
        .args(["--quiet", "--no-reread", "--no-tell-kernel"])
        .arg(&disk)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    use std::io::Write;
    sfdisk.stdin.take().unwrap().write_all(b"label: gpt\nstart=2048, size=131072, type=L\n").unwrap();
    assert!(sfdisk.wait().unwrap().success());
    file.write_all_at(&fs::read(&ext).unwrap(), 1 << 20).unwrap();
    let host = Host::new(256, "-t ext4 -b 4096", &disk, PIECES);
    let (_keep, journal) = journal();
    host.relink("/vm", &journal);
    kept(&rows, &host.after("vm/p1"), false);
    host.used("vm/p1");
}

/// Twenty thousand files; on more kinds of hosts where `UNIMAGE_LONG=1`.
#[test]
fn twenty_thousand_files() {
    let dir = scratch();
    let guest = dir.path().join("guest.img");
    make(&guest, 200, "-t ext4 -b 4096 -N 24000");
    {
        let mount = Mount::new(&guest, "rw");
        let mut r = Random(20);
        for d in 0..100 {
            let at = mount.path().join(format!("{}/{}", d % 10, d));
            fs::create_dir_all(&at).unwrap();
            for n in 0..200 {
                let len = r.below(9000) as usize;
                fs::write(at.join(format!("file {n} of {d}")), r.bytes(len)).unwrap();
            }
        }
    }
    let rows = kernel_rows(Mount::new(&guest, "ro").path());
    assert!(rows.len() > 20_000);
    let all = ["-t ext4 -b 4096", "-t ext4 -b 1024", "-t ext4 -b 4096 -O bigalloc -C 16384", "-t ext4 -b 2048 -I 128"];
    let long = std::env::var_os("UNIMAGE_LONG").is_some_and(|v| v == "1");
    for args in all.into_iter().take(if long { 4 } else { 1 }) {
        let host = Host::new(700, &format!("{args} -N 50000"), &guest, INDEXED);
        let (_keep, journal) = journal();
        let start = std::time::Instant::now();
        host.relink("/out", &journal);
        println!(
            "{args}: relinked in {:?}, journal of {} bytes",
            start.elapsed(),
            fs::metadata(&journal).unwrap().len()
        );
        kept(&rows, &host.after("out"), args.contains("-I 128"));
        host.used("out");
    }
}

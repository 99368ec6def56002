//! An ext4 host with an image on it: relinked by the program, judged by e2fsck and by the kernel, which then goes on writing.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::FallocateFlags;

use super::{Filling, Mount, Random, Rows, fill, kernel_rows, make, run, same, scratch};

/// What e2fsck says beside its passes and its summary; nothing for a sound file system.
pub fn complaints(image: &Path) -> String {
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
pub fn sound(image: &Path, when: &str) {
    assert_eq!(complaints(image), "", "e2fsck {when}");
}

/// A journal must not lie in memory.
pub fn journal() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("journal");
    (dir, path)
}

pub fn unimage(args: &[&str]) -> (i32, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_unimage")).args(args).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(!text.contains("panicked"), "{text}");
    (out.status.code().unwrap_or(-1), text)
}

/// A host with older files and, in many pieces, the image at `vm/disk.img`; what the kernel says of the older files.
pub struct Host {
    _dir: tempfile::TempDir,
    pub image: PathBuf,
    /// What the kernel says of the older files.
    pub older: Rows,
}

/// How the host's directories are before the relink.
#[derive(Clone, Copy, Default)]
pub struct Setting {
    /// Names beside the image: enough of them, and its directory has an index.
    pub beside: u32,
    /// Whether the image is written in pieces, with holes of the host between them.
    pub pieces: bool,
    /// Whether only blocks without a free neighbour are left for the image: then each of its own is a fragment.
    pub scattered: bool,
}

impl Host {
    pub fn new(mib: u64, args: &str, guest: &Path, how: Setting) -> Self {
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
            if how.scattered {
                scatter(&root.join("other/scattered"));
            }
            copy(guest, &root.join("vm/disk.img"), how.pieces);
            if how.scattered {
                fs::remove_file(root.join("other/scattered")).unwrap();
            }
            fs::write(root.join("vm/after the image"), r.bytes(70_000)).unwrap();
            for n in 0..30 {
                fs::write(root.join(format!("deep/er/{n}")), r.bytes(300 * n)).unwrap();
                fs::remove_file(root.join(format!("deep/er/{}", n / 2))).ok();
            }
            run("sync", &["-f".as_ref(), root.as_os_str()]);
            drop(mount);
            kernel_rows(Mount::new(&image, "ro").path())
        };
        // The kernel's own tree over the pieces of a scattered image can be wider than e2fsck would have it.
        let said = complaints(&image);
        let mut said = said.lines().filter(|l| !(how.scattered && l.ends_with("could be narrower.  Optimize? no")));
        assert_eq!(said.next(), None, "e2fsck before");
        Self { _dir: dir, image, older }
    }
    /// Relinks it; the output.
    pub fn relink(&self, into: &str, journal: &Path) -> String {
        let address = format!("{}//vm/disk.img", self.image.display());
        let (code, text) =
            unimage(&["relink", &address, "--into", into, "--journal", journal.to_str().unwrap(), "--commit"]);
        assert_eq!(code, 0, "{text}");
        text
    }
    /// What the kernel has below `into` now, without that folder; and all else must be as it was.
    pub fn after(&self, into: &str) -> Rows {
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
    /// The kernel creates, extends and deletes; e2fsck is silent, and what was let be is as it was. Then it cuts files too.
    #[track_caller]
    pub fn used(&self, into: &str) {
        let before = kernel_rows(&Mount::new(&self.image, "ro").path().join(into));
        let mut let_be = Vec::new();
        {
            let mount = Mount::new(&self.image, "rw");
            let top = mount.path().join(into);
            // Names of one file share its fate: they are let be.
            let mut names: HashMap<u64, u32> = HashMap::new();
            for row in before.values() {
                *names.entry(row.number).or_default() += 1;
            }
            for (n, (path, row)) in before.iter().filter(|r| r.1.kind == "file").enumerate() {
                let file = top.join(OsStr::from_bytes(path));
                match n % 4 {
                    0 if names[&row.number] == 1 => fs::remove_file(file).unwrap(),
                    1 if names[&row.number] == 1 => {
                        let f = File::options().read(true).write(true).open(file).unwrap();
                        let len = f.metadata().unwrap().len();
                        f.write_all_at(&[7; 3000], len + 10).unwrap();
                        // What was behind the end reads as zeros.
                        let mut gap = [1; 10];
                        f.read_exact_at(&mut gap, len).unwrap();
                        assert_eq!(gap, [0; 10]);
                    }
                    _ => let_be.push((path, row.data.clone())),
                }
            }
            let dirs: Vec<&Vec<u8>> = before.iter().filter(|r| r.1.kind == "dir").map(|r| r.0).collect();
            let dirs = dirs.iter().map(|d| top.join(OsStr::from_bytes(d))).chain([top.clone()]);
            for dir in dirs {
                for n in 0..20 {
                    fs::write(dir.join(format!("made afterwards {n}")), vec![n; 50 * usize::from(n)]).unwrap();
                }
                for n in 0..5 {
                    fs::remove_file(dir.join(format!("made afterwards {n}"))).unwrap();
                }
            }
            fs::write(mount.path().join("vm/new beside"), b"beside").unwrap();
        }
        sound(&self.image, "after the kernel has created, extended and deleted");
        {
            let mount = Mount::new(&self.image, "rw");
            let now = kernel_rows(&mount.path().join(into));
            for (path, data) in &let_be {
                assert_eq!(now[*path].data, *data, "{}", path.escape_ascii());
            }
            for (path, _) in let_be.iter().step_by(3) {
                let file = mount.path().join(into).join(OsStr::from_bytes(path));
                File::options().write(true).open(file).unwrap().set_len(1).unwrap();
            }
        }
        // A tree that the kernel has cut keeps its depth, which e2fsck remarks.
        let said = complaints(&self.image);
        let said: Vec<&str> =
            said.lines().filter(|l| !l.is_empty() && !l.ends_with("could be shorter.  Optimize? no")).collect();
        assert_eq!(said, Vec::<&str>::new(), "e2fsck after the kernel has cut files");
    }
}

/// Takes nearly all free space, and gives back every other unit of it.
pub fn scatter(path: &Path) {
    let file = File::create(path).unwrap();
    let stat = rustix::fs::fstatvfs(&file).unwrap();
    let unit = stat.f_bsize;
    // The kernel keeps some back, at most 4,096 units.
    let len = stat.f_bfree.saturating_sub(4096 + (6 << 20) / unit) * unit;
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, len).unwrap();
    file.sync_all().unwrap();
    for at in (0..len).step_by(2 * unit as usize) {
        rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, unit).unwrap();
    }
    file.sync_all().unwrap();
}

/// How many extents the kernel finds in a file.
pub fn fragments(path: &Path) -> usize {
    let said = run("filefrag", &[path]);
    let count = said.trim().trim_end_matches(" extents found").rsplit(' ').next().unwrap();
    count.parse().unwrap_or_else(|_| panic!("{said}"))
}

/// Copies so that the host's file has holes where the image has zeros, and in pieces if that is asked for.
pub fn copy(from: &Path, to: &Path, pieces: bool) {
    let bytes = fs::read(from).unwrap();
    let file = File::create(to).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    let step = 1 << 16;
    let zeros = vec![0; step];
    let mut order: Vec<usize> = (0..bytes.len().div_ceil(step)).collect();
    if pieces {
        // Later parts first, each on the disk before the next.
        order.reverse();
    }
    for (n, part) in order.into_iter().enumerate() {
        let end = bytes.len().min((part + 1) * step);
        let part_bytes = &bytes[part * step..end];
        if part_bytes != &zeros[..part_bytes.len()] {
            file.write_all_at(part_bytes, (part * step) as u64).unwrap();
            if pieces && n % 4 == 0 {
                file.sync_data().unwrap();
            }
        }
    }
    file.sync_all().unwrap();
}

/// An ext guest with everything in it; and what the kernel says of it.
pub fn ext_guest(dir: &Path, args: &str, filling: Filling) -> (PathBuf, Rows) {
    let path = dir.join("guest.img");
    make(&path, 64, args);
    fill(Mount::new(&path, "rw").path(), filling);
    let rows = kernel_rows(Mount::new(&path, "ro").path());
    (path, rows)
}

/// Compares what an ext guest had with what the host has now: all but inode numbers; names of one file stay names of one
/// file. Times are as the host keeps them.
#[track_caller]
pub fn kept(guest: &Rows, host: &Rows, small_inodes: bool) {
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

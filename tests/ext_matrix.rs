//! ext4 as host, in every kind that mke2fs makes: twenty thousand files of an ext4 or an NTFS guest are relinked, judged by
//! e2fsck and by the kernel, which then goes on writing. With `UNIMAGE_LONG=1` on a set of hosts in which any three
//! features meet in every combination; otherwise on the first two of them.

mod ext_support;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use ext_support::host::{Host, Setting, fragments, journal, kept, scatter};
use ext_support::{Filling, FuseMount, Mount, Random, Rows, fill, kernel_rows, long, make, run, scratch};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags};

const FILES: usize = 20_000;
/// A file with more than ten thousand fragments.
const FRAGMENTS: &str = "in many fragments";

/// A guest, and what its driver says of it.
struct Guest {
    dir: tempfile::TempDir,
    rows: Rows,
    ntfs: bool,
}

impl Guest {
    fn image(&self) -> PathBuf {
        self.dir.path().join("guest.img")
    }
    fn ext() -> Self {
        let dir = scratch();
        let image = dir.path().join("guest.img");
        make(&image, 320, "-t ext4 -b 4096 -N 32000");
        {
            let mount = Mount::new(&image, "rw");
            let root = mount.path();
            scatter(&root.join("scattered"));
            let file = File::create(root.join(FRAGMENTS)).unwrap();
            let mut r = Random(21);
            // What is left beside the scattered blocks is taken first.
            file.write_all_at(&r.bytes(18_000 * 4096 - 99), 0).unwrap();
            file.sync_all().unwrap();
            assert!(fragments(&root.join(FRAGMENTS)) > 10_000);
            fs::remove_file(root.join("scattered")).unwrap();
            fill(root, Filling { big_values: false, preallocate: true, names: 700 });
            ext_files(root, &mut r);
        }
        let rows = kernel_rows(Mount::new(&image, "ro").path());
        assert!(rows.values().filter(|r| r.kind == "file").count() > FILES);
        Self { dir, rows, ntfs: false }
    }
    fn ntfs() -> Self {
        let dir = scratch();
        let image = dir.path().join("guest.img");
        File::create(&image).unwrap().set_len(320 << 20).unwrap();
        run(
            "mkntfs",
            &["-F".as_ref(), "-Q".as_ref(), "-q".as_ref(), "-c".as_ref(), "4096".as_ref(), image.as_os_str()],
        );
        {
            let mount = FuseMount::ntfs(&image, 0, 0, "rw");
            let root = &mount.dir;
            let mut r = Random(22);
            for n in 0..FILES {
                let dir = root.join(format!("Users/größe {}/{}", n % 10, n % 100));
                if n < 100 {
                    fs::create_dir_all(&dir).unwrap();
                }
                let path = dir.join(format!("file {n} 🦀.txt"));
                let len = r.below(9000) as usize;
                fs::write(&path, r.bytes(len)).unwrap();
                moment(&path, &mut r);
            }
            let sparse = File::create(root.join("sparse")).unwrap();
            sparse.write_all_at(b"far", 3 << 20).unwrap();
            File::create(root.join("a hole")).unwrap().set_len(1 << 20).unwrap();
        }
        let mut rows;
        {
            let mount = FuseMount::ntfs(&image, 0, 0, "ro");
            let root = &mount.dir;
            rows = kernel_rows(root);
            for (path, row) in &mut rows {
                let path = root.join(OsStr::from_bytes(path));
                let mut made = [0; 8];
                rustix::fs::lgetxattr(path, "system.ntfs_crtime", &mut made[..]).unwrap();
                let ticks = i64::from_le_bytes(made) - 116_444_736_000_000_000;
                row.times[3] = Some((ticks.div_euclid(10_000_000), ticks.rem_euclid(10_000_000) as u32 * 100));
                row.xattrs.clear();
            }
        }
        assert!(rows.len() > FILES);
        Self { dir, rows, ntfs: true }
    }
}

/// Both times to 100 ns, which either guest keeps.
fn moment(path: &Path, r: &mut Random) {
    let mut one = || Timespec { tv_sec: r.below(1 << 31) as i64, tv_nsec: r.below(10_000_000) as i64 * 100 };
    let both = Timestamps { last_access: one(), last_modification: one() };
    rustix::fs::utimensat(CWD, path, &both, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Files with all sorts of owners, modes, times, names, attributes.
fn ext_files(root: &Path, r: &mut Random) {
    for n in 0..FILES {
        let dir = root.join(format!("files {}/{}", n % 10, n % 100));
        if n < 100 {
            fs::create_dir_all(&dir).unwrap();
        }
        let path = dir.join(format!("file {n}"));
        let len = r.below(9000) as usize;
        fs::write(&path, r.bytes(len)).unwrap();
        std::os::unix::fs::chown(&path, Some(r.below(100_000) as u32), Some(r.below(300) as u32)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(r.below(0o10000) as u32)).unwrap();
        if n % 8 == 0 {
            // Some lie in the inode, some in a block that many have, some in one of their own.
            let value = [vec![b'x'; 10], vec![b'y'; 300], r.bytes(200)][n / 8 % 3].clone();
            rustix::fs::setxattr(&path, "user.of a file", &value, XattrFlags::empty()).unwrap();
        }
        moment(&path, r);
        if n % 10 == 0 {
            fs::hard_link(&path, dir.join(format!("second name {n}"))).unwrap();
        }
        if n % 15 == 0 {
            let link = dir.join(format!("link {n}"));
            std::os::unix::fs::symlink(format!("file {n}{}", "/..".repeat(n % 40)), &link).unwrap();
            moment(&link, r);
        }
    }
}

/// One way to make a host: a level of each factor.
type Levels = [usize; 10];

/// Block size; checksums (all, of descriptors, none); 64bit; journal; flex_bg; bigalloc; orphan_file; small inodes; the
/// image's directory (hashed, linear, one block); the guest.
const FACTORS: Levels = [3, 3, 2, 2, 2, 2, 2, 2, 3, 2];

/// mke2fs refuses an orphan file without a journal.
fn possible(l: &Levels) -> bool {
    !(l[6] == 0 && l[3] == 1)
}

/// Hosts in which any three levels that can meet do.
fn hosts() -> Vec<Levels> {
    let mut all = vec![[0; 10]];
    for (at, count) in FACTORS.into_iter().enumerate() {
        let with = |l: &Levels, n| {
            let mut l = *l;
            l[at] = n;
            l
        };
        all = all.iter().flat_map(|l| (0..count).map(|n| with(l, n)).collect::<Vec<_>>()).collect();
    }
    all.retain(possible);
    let triples = |l: &Levels| {
        let mut out = Vec::with_capacity(120);
        for a in 0..10 {
            for b in a + 1..10 {
                out.extend((b + 1..10).map(|c| ((a * 10 + b) * 10 + c) * 27 + (l[a] * 3 + l[b]) * 3 + l[c]));
            }
        }
        out
    };
    let of: Vec<Vec<usize>> = all.iter().map(triples).collect();
    let mut left: HashSet<usize> = of.iter().flatten().copied().collect();
    let mut out = Vec::new();
    while !left.is_empty() {
        let most = |i: &usize| of[*i].iter().filter(|t| left.contains(t)).count();
        // Of those that bring as much, the last: it differs most from the first one.
        let best = (0..all.len()).max_by_key(most).unwrap();
        left.retain(|t| !of[best].contains(t));
        out.push(all[best]);
    }
    out
}

fn arguments(l: &Levels) -> String {
    let block = [4096, 1024, 2048][l[0]];
    let mut features = vec![
        ["metadata_csum", "^metadata_csum,uninit_bg", "^metadata_csum,^uninit_bg"][l[1]].to_owned(),
        ["64bit", "^64bit"][l[2]].to_owned(),
        ["has_journal", "^has_journal"][l[3]].to_owned(),
        ["flex_bg", "^flex_bg"][l[4]].to_owned(),
    ];
    let mut more = String::new();
    if l[5] == 1 {
        features.push("bigalloc".into());
        more = format!(" -C {}", block * 4);
    }
    if l[6] == 0 && l[3] == 0 {
        features.push("orphan_file".into());
    }
    if l[8] == 1 {
        features.push("^dir_index".into());
    }
    let inode = [256, 128][l[7]];
    format!("-t ext4 -b {block} -I {inode} -N 60000 -O {}{more}", features.join(","))
}

/// What the guest has, as this host has to show it.
fn wanted(guest: &Guest, args: &str) -> Rows {
    let mut rows = guest.rows.clone();
    if guest.ntfs {
        for row in rows.values_mut() {
            row.owner = (1234, 5678);
            row.mode = if row.kind == "dir" { 0o750 } else { 0o640 };
        }
    } else if args.contains("-b 1024") {
        // All of its attributes are more than a small block holds.
        rows.get_mut(b"xattr-many".as_slice()).unwrap().xattrs.retain(|x| x.0 != "user.large");
    }
    rows
}

fn relinked(guest: &Guest, args: &str, how: Setting) {
    let start = Instant::now();
    let mut host = Host::new(1300, args, &guest.image(), how);
    {
        let mount = Mount::new(&host.image, "rw");
        let image = mount.path().join("vm/disk.img");
        std::os::unix::fs::chown(&image, Some(1234), Some(5678)).unwrap();
        fs::set_permissions(&image, fs::Permissions::from_mode(0o640)).unwrap();
        if how.scattered {
            let count = fragments(&image);
            println!("the image is in {count} fragments");
            assert!(count > 10_000);
        }
    }
    host.older = kernel_rows(Mount::new(&host.image, "ro").path());
    let (_keep, journal) = journal();
    let made = start.elapsed();
    let said = host.relink("/out", &journal);
    let relinked = start.elapsed() - made;
    kept(&wanted(guest, args), &host.after("out"), args.contains("-I 128"));
    if !guest.ntfs && !args.contains("bigalloc") {
        // It was linked, not copied: in one piece it would be.
        assert!(fragments(&Mount::new(&host.image, "ro").path().join("out").join(FRAGMENTS)) > 10_000);
    }
    host.used("out");
    let count = |word: &str| {
        let line = said.lines().find(|l| l.trim_start().starts_with(word));
        line.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
    };
    println!(
        "{} on {args}, {} beside the image{}: relinked in {relinked:.1?}, journal of {} bytes, {:.0?} in all; {} {}",
        if guest.ntfs { "NTFS" } else { "ext4" },
        how.beside,
        if how.scattered { ", scattered" } else { "" },
        fs::metadata(&journal).unwrap().len(),
        start.elapsed(),
        count("link"),
        count("cop"),
    );
}

#[test]
fn all_kinds_of_hosts() {
    let hosts = hosts();
    println!("{} hosts", hosts.len());
    let guests = [Guest::ext(), Guest::ntfs()];
    let all = if long() { hosts.as_slice() } else { &hosts[..2] };
    assert!((0..2).all(|g| all.iter().any(|l| l[9] == g)), "both guests");
    for levels in all {
        let beside = [900, 900, 3][levels[8]];
        relinked(&guests[levels[9]], &arguments(levels), Setting { beside, pieces: levels[8] != 2, scattered: false });
    }
}

/// The image in more than ten thousand fragments, and a file in it in as many.
#[test]
fn an_image_in_many_fragments() {
    let guest = Guest::ext();
    let how = Setting { beside: 3, pieces: false, scattered: true };
    if long() {
        relinked(&guest, "-t ext4 -b 1024 -N 60000", how);
        relinked(&Guest::ntfs(), "-t ext4 -b 2048 -N 60000", how);
    }
    relinked(&guest, "-t ext4 -b 4096 -N 60000", how);
}

//! ext volumes made by mke2fs, filled through the kernel's own driver, and what it says of them.

#![allow(dead_code, unused_imports, reason = "each test file uses a part of it")]

#[path = "../common/hash.rs"]
mod hash;
#[path = "../common/memory.rs"]
mod memory;
#[path = "../common/mounts.rs"]
mod mounts;
#[path = "../common/noise.rs"]
mod noise;
#[path = "../common/run.rs"]
mod run;

pub mod host;

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FallocateFlags, FileType, Mode, StatxFlags, Timespec, Timestamps, XattrFlags};
use sha2::{Digest, Sha256};
use unimage::error::{Error, Result};
use unimage::extent::{LayerId, Offset, ReadAt, Volume};
use unimage::fs::{FileSystem, Kind, ReadOptions, Timestamp, Tree};

pub use hash::sha256 as sha;
pub use memory::Memory;
pub use mounts::Mount as FuseMount;
pub use noise::Noise as Random;
pub use run::long;
use run::output;

/// A volume in a file, read by position.
pub struct FileVolume {
    file: File,
    len: u64,
    id: LayerId,
}

impl FileVolume {
    pub fn open(path: &Path) -> Self {
        let file = File::open(path).unwrap();
        let len = file.metadata().unwrap().len();
        Self { file, len, id: LayerId::fresh() }
    }
}

impl ReadAt<Volume> for FileVolume {
    fn id(&self) -> LayerId {
        self.id
    }
    fn len(&self) -> u64 {
        self.len
    }
    fn read_at(&self, at: Offset<Volume>, buf: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buf, at.get()).map_err(|e| Error::io(format!("reading {at}"), e))
    }
}

pub fn open(path: &Path) -> Arc<dyn FileSystem> {
    unimage::fs::ext::open(Arc::new(FileVolume::open(path)), ReadOptions::default()).unwrap().expect("an ext volume")
}

/// Runs a program that has to succeed; its standard output.
#[track_caller]
pub fn run<S: AsRef<OsStr>>(program: &str, args: &[S]) -> String {
    run::ok(program, args)
}

/// A folder of this test alone, in memory where there is such a place (the images are made durable at each step),
/// removed at its end.
pub fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let root = if memory.is_dir() { memory } else { Path::new(env!("CARGO_TARGET_TMPDIR")) };
    fs::create_dir_all(root).unwrap();
    tempfile::Builder::new().prefix("ext-").tempdir_in(root).unwrap()
}

/// An image of `mib` MiB with a file system that mke2fs makes with these arguments.
pub fn make(path: &Path, mib: u64, args: &str) {
    let file = File::create(path).unwrap();
    file.set_len(mib << 20).unwrap();
    let mut all: Vec<&OsStr> = vec!["-q".as_ref(), "-F".as_ref()];
    all.extend(args.split_whitespace().map(OsStr::new));
    all.push(path.as_os_str());
    run("mke2fs", &all);
}

/// A mount by the kernel through a loop device; unmounted when dropped.
pub struct Mount {
    dir: tempfile::TempDir,
}

impl Mount {
    pub fn new(image: &Path, options: &str) -> Self {
        let dir = scratch();
        let options = format!("loop,{options}");
        run(
            "mount",
            &[
                "-t".as_ref(),
                "ext4".as_ref(),
                "-o".as_ref(),
                options.as_ref(),
                image.as_os_str(),
                dir.path().as_os_str(),
            ],
        );
        Self { dir }
    }
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // A program that another test is just starting may hold what is open here for a moment.
        for _ in 0..100 {
            let done = Command::new("umount").arg(self.dir.path()).stderr(Stdio::null()).status();
            if done.is_ok_and(|s| s.success()) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        assert!(std::thread::panicking(), "umount {}", self.dir.path().display());
    }
}

fn name(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn attribute(path: &Path, key: &str, value: &[u8]) {
    rustix::fs::lsetxattr(name(path), key, value, XattrFlags::empty())
        .unwrap_or_else(|e| panic!("{} {key} of {} bytes: {e}", path.display(), value.len()));
}

fn times(path: &Path, access: (i64, i64), modified: (i64, i64)) {
    let spec = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
    let both = Timestamps { last_access: spec(access), last_modification: spec(modified) };
    rustix::fs::utimensat(CWD, name(path), &both, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// What a filling has beyond the plain: it depends on the features.
#[derive(Clone, Copy, Default)]
pub struct Filling {
    /// Values of attributes beyond a block.
    pub big_values: bool,
    /// `fallocate` and holes punched: extent trees only.
    pub preallocate: bool,
    /// Names in the large directory.
    pub names: u32,
}

/// Fills a mounted file system with everything that a reader can get wrong.
pub fn fill(root: &Path, how: Filling) {
    let mut r = Random(0x2545_f491_4f6c_dd1d);
    let file = |path: &str, bytes: &[u8]| fs::write(root.join(path), bytes).unwrap();
    for d in ["a", "a/b", "a/b/c", "empty", "many", "links", "special", "sizes", "space in name", "größe 🦀", "gone"]
    {
        fs::create_dir(root.join(d)).unwrap();
    }
    let block = fs::metadata(root).unwrap().blksize() as usize;
    let around = [0, 1, 4, 59, 60, 61, 100, 135, 136, 150, 156, 157, 160, 200, 400, 1023, 1024, 1025];
    for n in around.into_iter().chain([block - 1, block, block + 1, 3 * block + 7, 300_000]) {
        file(&format!("sizes/{n}"), &r.bytes(n));
    }
    for n in 0..12 {
        fs::create_dir(root.join(format!("a/b/d{n}"))).unwrap();
        for m in 0..n {
            file(&format!("a/b/d{n}/{m}"), &r.bytes(n * m));
        }
    }
    file("größe 🦀/ünïcödé 🦀🎉.txt", b"names");
    file(&format!("space in name/{}", "x".repeat(255)), b"long");
    file(&format!("space in name/{}", "🦀".repeat(63)), b"long in bytes");
    fs::write(root.join(OsStr::from_bytes(b"a/not utf-8 \xff\xfe")), b"raw").unwrap();

    // Fragments: two files that grow by turns, each block made durable before the next.
    let grow = |path: &str| OpenOptions::new().create(true).append(true).open(root.join(path)).unwrap();
    let (mut one, mut two) = (grow("a/turns-1"), grow("a/turns-2"));
    for _ in 0..60 {
        for f in [&mut one, &mut two] {
            f.write_all(&r.bytes(block)).unwrap();
            f.sync_data().unwrap();
        }
    }
    // Many extents: a deep tree, or all levels of indirection.
    let sparse = File::create(root.join("a/sparse")).unwrap();
    for n in 0..2000u64 {
        sparse.write_all_at(&n.to_le_bytes(), n * 2 * block as u64 + 5).unwrap();
    }
    sparse.write_all_at(b"far", 70 << 20).unwrap();
    sparse.set_len((80 << 20) + 3).unwrap();
    let tail = File::create(root.join("a/hole at the end")).unwrap();
    tail.write_all_at(b"start", 0).unwrap();
    tail.set_len(100_000).unwrap();
    File::create(root.join("a/only a hole")).unwrap().set_len(5 << 20).unwrap();
    if how.preallocate {
        let f = File::create(root.join("a/preallocated")).unwrap();
        rustix::fs::fallocate(&f, FallocateFlags::empty(), 0, 500_000).unwrap();
        f.write_all_at(&r.bytes(block), 3 * block as u64).unwrap();
        let f = File::create(root.join("a/preallocated beyond")).unwrap();
        f.write_all_at(&r.bytes(10_000), 0).unwrap();
        rustix::fs::fallocate(&f, FallocateFlags::KEEP_SIZE, 0, 200_000).unwrap();
        let f = File::create(root.join("a/punched")).unwrap();
        f.write_all_at(&r.bytes(40 * block), 0).unwrap();
        f.sync_all().unwrap();
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&f, punch, 3 * block as u64, 17 * block as u64).unwrap();
    }

    for n in 0..how.names {
        file(&format!("many/name number {n} of many"), if n % 50 == 0 { b"x" } else { b"" });
    }
    for n in (0..how.names).step_by(3) {
        fs::remove_file(root.join(format!("many/name number {n} of many"))).unwrap();
    }
    for n in 0..200 {
        file(&format!("gone/{n}"), &r.bytes(700));
    }
    fs::remove_dir_all(root.join("gone")).unwrap();

    file("links/original", b"one file with three names");
    fs::hard_link(root.join("links/original"), root.join("links/second")).unwrap();
    fs::hard_link(root.join("links/original"), root.join("a/b/c/third")).unwrap();
    for n in [1, 10, 59, 60, 61, 120, 160, 500, 900] {
        std::os::unix::fs::symlink("t".repeat(n), root.join(format!("links/to {n}"))).unwrap();
    }
    std::os::unix::fs::symlink("../größe 🦀/ünïcödé 🦀🎉.txt", root.join("links/there")).unwrap();
    let node = |path: &str, kind, dev| {
        rustix::fs::mknodat(CWD, name(&root.join(path)), kind, Mode::from_raw_mode(0o640), dev).unwrap();
    };
    node("special/null", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    node("special/char", FileType::CharacterDevice, rustix::fs::makedev(4000, 1_000_000));
    node("special/block", FileType::BlockDevice, rustix::fs::makedev(259, 70_000));
    node("special/fifo", FileType::Fifo, 0);
    node("special/socket", FileType::Socket, 0);

    file("xattr-small", b"");
    attribute(&root.join("xattr-small"), "user.k", b"v");
    attribute(&root.join("xattr-small"), "user.empty", b"");
    file("xattr-many", &r.bytes(5000));
    for n in 0..12 {
        attribute(&root.join("xattr-many"), &format!("user.key{n}"), &r.bytes(n * 4));
    }
    attribute(&root.join("xattr-many"), "trusted.unimage", b"trusted");
    attribute(&root.join("xattr-many"), "security.unimage", b"secure");
    attribute(&root.join("xattr-many"), "user.large", &r.bytes(block / 8));
    attribute(&root.join("a"), "user.of a directory", &r.bytes(100));
    attribute(&root.join("links/to 10"), "trusted.of a link", b"link");
    attribute(&root.join("special/fifo"), "trusted.of a fifo", b"fifo");
    if how.big_values {
        file("xattr-big", b"big");
        attribute(&root.join("xattr-big"), "user.big", &r.bytes(20_000));
        attribute(&root.join("xattr-big"), "user.bigger", &r.bytes(60_000));
    }
    // Version 2; entries of tag, permissions, id: owner, a user, group, mask, others.
    let acl = |extra: u16| -> Vec<u8> {
        let mut out = 2u32.to_le_bytes().to_vec();
        for (tag, perm, id) in [(1, 7, !0), (2, 5 & extra, 1234u32), (4, 5, !0), (0x10, 7, !0), (0x20, 1, !0)] {
            out.extend_from_slice(&u16::to_le_bytes(tag));
            out.extend_from_slice(&u16::to_le_bytes(perm));
            out.extend_from_slice(&u32::to_le_bytes(id));
        }
        out
    };
    attribute(&root.join("xattr-small"), "system.posix_acl_access", &acl(7));
    attribute(&root.join("a/b"), "system.posix_acl_default", &acl(4));

    for (n, mode) in [0o4755, 0o1777, 0o000, 0o2640].into_iter().enumerate() {
        let path = root.join(format!("mode-{n}"));
        fs::write(&path, b"m").unwrap();
        std::os::unix::fs::chown(&path, Some(70_000 + n as u32), Some(80_000)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let moments = [
        (-2_000_000_000, 1),
        (-1, 999_999_999),
        (0, 0),
        (1_700_000_000, 123_456_789),
        (4_000_000_000, 5),
        (8_000_000_000, 7),
    ];
    for (n, (secs, nanos)) in moments.into_iter().enumerate() {
        let path = root.join(format!("time-{n}"));
        fs::write(&path, b"t").unwrap();
        times(&path, (secs, nanos), (secs / 2, nanos));
    }
    times(&root.join("links/to 60"), (1_000_000_000, 3), (1_100_000_000, 4));
    times(&root.join("a/b/c"), (1_000_000_001, 3), (1_100_000_001, 4));
}

/// All that is compared of one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub number: u64,
    pub kind: String,
    pub mode: u16,
    pub owner: (u32, u32),
    /// Modified, accessed, changed, made: seconds and nanoseconds.
    pub times: [Option<(i64, u32)>; 4],
    pub target: Option<Vec<u8>>,
    pub xattrs: Vec<(String, Vec<u8>)>,
    /// Of files: size and SHA-256.
    pub data: Option<(u64, String)>,
}

pub type Rows = BTreeMap<Vec<u8>, Row>;

/// What the kernel says of everything below `root`.
pub fn kernel_rows(root: &Path) -> Rows {
    let mut out = Rows::new();
    let mut todo: Vec<PathBuf> = vec![root.into()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                todo.push(path.clone());
            }
            let rel = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
            out.insert(rel, kernel_row(&path, &meta));
        }
    }
    out
}

fn kernel_row(path: &Path, meta: &fs::Metadata) -> Row {
    let stat = rustix::fs::statx(CWD, name(path), AtFlags::SYMLINK_NOFOLLOW, StatxFlags::ALL).unwrap();
    let made = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
    let device = format!("{}:{}", rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    let kind = match meta.mode() & 0o170_000 {
        0o010_000 => "fifo".to_string(),
        0o020_000 => format!("char {device}"),
        0o040_000 => "dir".into(),
        0o060_000 => format!("block {device}"),
        0o100_000 => "file".into(),
        0o120_000 => "symlink".into(),
        0o140_000 => "socket".into(),
        other => panic!("mode {other:o}"),
    };
    let mut data = None;
    if meta.is_file() {
        let mut hash = Sha256::new();
        let mut file = File::open(path).unwrap();
        let mut buf = vec![0; 1 << 20];
        loop {
            let n = file.read(&mut buf).unwrap();
            if n == 0 {
                break;
            }
            hash.update(&buf[..n]);
        }
        data = Some((meta.len(), hash.finalize().iter().map(|b| format!("{b:02x}")).collect()));
    }
    Row {
        number: meta.ino(),
        kind,
        mode: (meta.mode() & 0o7777) as u16,
        owner: (meta.uid(), meta.gid()),
        times: [
            Some((meta.mtime(), meta.mtime_nsec() as u32)),
            Some((meta.atime(), meta.atime_nsec() as u32)),
            Some((meta.ctime(), meta.ctime_nsec() as u32)),
            made.then_some((stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec)),
        ],
        target: meta.is_symlink().then(|| fs::read_link(path).unwrap().into_os_string().into_vec()),
        xattrs: kernel_xattrs(path),
        data,
    }
}

fn kernel_xattrs(path: &Path) -> Vec<(String, Vec<u8>)> {
    let path = name(path);
    let mut list = vec![0u8; 65_536];
    let n = rustix::fs::llistxattr(&path, &mut list[..]).unwrap();
    let mut out: Vec<(String, Vec<u8>)> = list[..n]
        .split(|b| *b == 0)
        .filter(|k| !k.is_empty())
        .map(|key| {
            let mut value = vec![0u8; 65_536];
            let key = String::from_utf8(key.to_vec()).unwrap();
            let n = rustix::fs::lgetxattr(&path, key.as_str(), &mut value[..]).unwrap();
            value.truncate(n);
            (key, value)
        })
        .collect();
    out.sort();
    out
}

/// What this program says of everything in the file system.
pub fn own_rows(fs: &dyn FileSystem, tree: &Tree) -> Rows {
    let time = |t: Option<Timestamp>| t.map(|t| (t.secs, t.nanos));
    tree.order()
        .map(|(entry, _)| {
            let id = tree.entry(entry).object;
            let o = tree.object(id);
            let data = (o.kind == Kind::File).then(|| {
                let stream = tree.data(id).expect("a file's data");
                let size = tree.stream(stream).size;
                let hash = match fs.open(tree, stream) {
                    Ok(layer) => hash(&*layer).unwrap_or_else(|e| e.to_string()),
                    Err(e) => e.to_string(),
                };
                (size, hash)
            });
            let row = Row {
                number: o.number,
                kind: match o.kind {
                    Kind::CharDevice(a, b) => format!("char {a}:{b}"),
                    Kind::BlockDevice(a, b) => format!("block {a}:{b}"),
                    kind => kind_word(kind).into(),
                },
                mode: o.mode.unwrap(),
                owner: o.owner.unwrap(),
                times: [time(o.times.modified), time(o.times.accessed), time(o.times.changed), time(o.times.created)],
                target: tree.target(id).map(<[u8]>::to_vec),
                xattrs: tree
                    .xattrs(id)
                    .iter()
                    .map(|(k, v)| (String::from_utf8(k.clone()).unwrap(), v.clone()))
                    .collect(),
                data,
            };
            (tree.path(entry), row)
        })
        .collect()
}

fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
        kind => kind.word(),
    }
}

pub fn hash(layer: &dyn unimage::extent::Layer<unimage::extent::Stream>) -> Result<String> {
    let mut hash = Sha256::new();
    let mut at = 0;
    while at < layer.len() {
        let n = (layer.len() - at).min(1 << 20);
        hash.update(layer.read_vec(Offset::new(at), n as usize)?);
        at += n;
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

/// Stops at the first paths that differ.
#[track_caller]
pub fn same(kernel: &Rows, own: &Rows) {
    let show = |p: &[u8]| p.escape_ascii().to_string();
    let mut wrong = Vec::new();
    for (path, k) in kernel {
        match own.get(path) {
            None => wrong.push(format!("missing: {}", show(path))),
            Some(o) if o != k => wrong.push(format!("{}:\n  kernel {}\n  own    {}", show(path), brief(k), brief(o))),
            _ => {}
        }
    }
    wrong.extend(own.keys().filter(|p| !kernel.contains_key(*p)).map(|p| format!("not there: {}", show(p))));
    assert!(wrong.is_empty(), "{} paths differ:\n{}", wrong.len(), wrong[..wrong.len().min(10)].join("\n"));
}

fn brief(row: &Row) -> String {
    let mut row = row.clone();
    for (_, value) in &mut row.xattrs {
        if value.len() > 100 {
            *value = sha(value).into_bytes();
        }
    }
    format!("{row:?}")
}

//! NTFS volumes made by mkntfs and filled through ntfs-3g, and what foreign readers say of them.

#![allow(dead_code, unused_imports, reason = "each test file uses a part of it")]

#[path = "../common/hash.rs"]
mod hash;
#[path = "../common/memory.rs"]
mod memory;
#[path = "../common/noise.rs"]
mod noise;
#[path = "../common/run.rs"]
mod run;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use unimage::extent::{ReadAt, Volume};
use unimage::fs::{FileSystem, ReadOptions};

pub use hash::sha256 as sha;
pub use noise::{Noise, noise};
pub use run::{long, ok_bytes as run};

pub fn volume(bytes: Vec<u8>) -> Arc<dyn ReadAt<Volume>> {
    memory::bytes(bytes)
}

pub fn open(bytes: Vec<u8>) -> Arc<dyn FileSystem> {
    unimage::fs::ntfs::open(volume(bytes), ReadOptions::default()).unwrap().expect("an NTFS volume")
}

/// Text that compresses.
pub fn prose(seed: u64, len: usize) -> Vec<u8> {
    const WORDS: &[&str] = &["cluster ", "record ", "run ", "extent ", "of ", "the ", "a ", "volume\n"];
    let mut out: Vec<u8> =
        noise(seed, len / 2 + 8).iter().flat_map(|b| WORDS[usize::from(b & 7)].bytes()).take(len).collect();
    out.resize(len, b'.');
    out
}

/// A form of volume.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub sector: u64,
    pub cluster: u64,
    pub mib: u64,
}

pub const SHAPES: &[Shape] = &[
    Shape { sector: 512, cluster: 512, mib: 48 },
    Shape { sector: 512, cluster: 4096, mib: 64 },
    Shape { sector: 512, cluster: 65536, mib: 160 },
    Shape { sector: 4096, cluster: 4096, mib: 64 },
];

/// A volume file in a folder of its own.
pub struct Image {
    pub dir: tempfile::TempDir,
    pub path: PathBuf,
    pub shape: Shape,
}

impl Image {
    pub fn new(shape: Shape) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volume.img");
        File::create(&path).unwrap().set_len(shape.mib << 20).unwrap();
        let (sector, cluster) = (shape.sector.to_string(), shape.cluster.to_string());
        let fixed = ["-q", "-F", "-Q", "-p", "0", "-H", "16", "-S", "63", "-L", "Größe 🦀"];
        run("mkntfs", &[&fixed[..], &["-s", &sector, "-c", &cluster, path.to_str().unwrap()]].concat());
        Self { dir, path, shape }
    }
    pub fn str(&self) -> &str {
        self.path.to_str().unwrap()
    }
    pub fn bytes(&self) -> Vec<u8> {
        fs::read(&self.path).unwrap()
    }
    pub fn mount(&self) -> Mount {
        let at = self.dir.path().join("mounted");
        fs::create_dir_all(&at).unwrap();
        let child = Command::new("ntfs-3g")
            .args(["-o", "no_detach,compression,streams_interface=xattr,efs_raw"])
            .args([&self.path, &at])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let parent = std::os::unix::fs::MetadataExt::dev(&fs::metadata(self.dir.path()).unwrap());
        let mount = Mount { child, at };
        for _ in 0..500 {
            if std::os::unix::fs::MetadataExt::dev(&fs::metadata(&mount.at).unwrap()) != parent {
                return mount;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("ntfs-3g did not mount {}", self.str());
    }
}

/// A mounted volume; unmounted, and written out, when it goes.
pub struct Mount {
    child: Child,
    pub at: PathBuf,
}

impl Drop for Mount {
    fn drop(&mut self) {
        // What was closed a moment ago may still be in use for another one.
        let done = (0..200).any(|_| {
            let out = Command::new("umount").arg(&self.at).stderr(Stdio::null()).status();
            let done = out.is_ok_and(|s| s.success());
            if !done {
                std::thread::sleep(Duration::from_millis(20));
            }
            done
        });
        if !done {
            // Something of the test is still open in it: a failing test.
            let _ = Command::new("umount").arg("-l").arg(&self.at).status();
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

impl Mount {
    pub fn path(&self, name: &str) -> PathBuf {
        self.at.join(name)
    }
    pub fn put(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    pub fn set_xattr(&self, name: &str, xattr: &str, value: &[u8]) {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::lsetxattr(self.path(name), xattr, value, flags)
            .unwrap_or_else(|e| panic!("{xattr} of {name}: {e}"));
    }
    /// Streams of a file or directory, by name.
    pub fn streams(&self, path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let list = grown(|buf| rustix::fs::llistxattr(path, buf));
        let names = list.split(|b| *b == 0).filter_map(|n| n.strip_prefix(b"user."));
        let value = |n: &[u8]| {
            let full = [b"user.", n].concat();
            grown(|buf| rustix::fs::lgetxattr(path, os(&full), buf))
        };
        names.map(|n| (n.to_vec(), value(n))).collect()
    }
}

fn grown(f: impl FnOnce(&mut [u8]) -> rustix::io::Result<usize>) -> Vec<u8> {
    let mut buf = vec![0; 1 << 18];
    let len = f(&mut buf[..]).unwrap();
    buf.truncate(len);
    buf
}

/// Everything that an NTFS volume may hold, as far as ntfs-3g can make it.
pub fn filled(shape: Shape) -> Image {
    let image = Image::new(shape);
    let m = image.mount();
    let c = shape.cluster as usize;
    for size in [0, 1, 2, 500, 511, 512, 513, 600, 650, 700, 750, 1000, 3500, 4095, 4096, 4097] {
        m.put(&format!("sizes/{size:05}.bin"), &noise(size as u64, size));
    }
    m.put("large.bin", &noise(1, (1 << 20) + 13));
    m.put("exact.bin", &noise(2, 8 * c));
    m.put(&format!("names/{}", "n".repeat(255)), b"255 characters");
    m.put(&format!("names/{}", "é".repeat(255)), b"255 of two bytes");
    m.put(&format!("names/{}", "🦀".repeat(127)), b"254 units in pairs");
    m.put("names/日本語のファイル名.txt", b"three bytes each");
    for name in ["case", "Case", "CASE"] {
        m.put(&format!("names/{name}"), name.as_bytes());
    }
    for name in ["trailing dot.", "trailing space ", "con", "quo\"te", "st*r", "co:lon", "back\\slash", "<|>?"] {
        m.put(&format!("names/{name}"), name.as_bytes());
    }
    for i in 0..1500 {
        m.put(&format!("many/entry number {i:05}"), &noise(i, (i % 40) as usize));
    }
    // Deleted: these must not be seen.
    for i in 0..200 {
        fs::remove_file(m.path(&format!("many/entry number {:05}", i * 3))).unwrap();
    }
    fs::create_dir_all(m.path("a/b/c/d/e/f/g")).unwrap();
    m.put("a/b/c/d/e/f/g/deep", b"deep");

    // So many runs that they need an attribute list, and a large one for small clusters.
    let mut file = File::create(m.path("scattered.sparse")).unwrap();
    let runs = if c == 512 { 12_000 } else { 700 };
    for i in 0..runs {
        file.seek(SeekFrom::Start(i * 2 * shape.cluster)).unwrap();
        file.write_all(&noise(i, c.min(700))).unwrap();
    }
    file.set_len(runs * 2 * shape.cluster + 5).unwrap();
    drop(file);
    let mut file = File::create(m.path("hole.sparse")).unwrap();
    file.seek(SeekFrom::Start(5 << 20)).unwrap();
    file.write_all(b"behind a hole").unwrap();
    file.set_len(9 << 20).unwrap();
    drop(file);
    File::create(m.path("only.sparse")).unwrap().set_len(3 << 20).unwrap();

    if c <= 4096 {
        fs::create_dir(m.path("compressed")).unwrap();
        m.set_xattr("compressed", "system.ntfs_attrib_be", &[0, 0, 8, 0]);
        let unit = 16 * c;
        m.put("compressed/text", &prose(3, 20 * unit + 321));
        m.put("compressed/noise", &noise(4, 5 * unit));
        m.put("compressed/noise and a bit", &noise(5, 5 * unit + 1));
        m.put("compressed/zeros", &vec![0; 7 * unit + 9]);
        let mixed = [prose(6, 3 * unit), noise(7, 2 * unit + 100), vec![0; 4 * unit], prose(8, unit / 2)].concat();
        m.put("compressed/mixed", &mixed);
        m.put("compressed/small", b"resident");
        m.put("compressed/one unit", &prose(9, unit));
        m.set_xattr("compressed/text", "user.named", &prose(10, 60_000.min(2 * unit)));
    }
    m.set_xattr("large.bin", "user.first", b"a stream");
    m.set_xattr("large.bin", "user.second stream ü🦀", &noise(11, 60_000));
    m.set_xattr("a/b", "user.of a directory", b"named stream of a directory");
    m.set_xattr("sizes/00000.bin", "user.empty", b"");

    fs::hard_link(m.path("large.bin"), m.path("a/b/second name")).unwrap();
    fs::hard_link(m.path("large.bin"), m.path("large third name.bin")).unwrap();
    m.put("long name with a short twin.text", b"short twin");
    m.set_xattr("long name with a short twin.text", "system.ntfs_dos_name", b"LONGNA~1.TEX");
    fs::create_dir(m.path("directory with a short twin")).unwrap();
    m.put("directory with a short twin/inside", b"inside");
    m.set_xattr("directory with a short twin", "system.ntfs_dos_name", b"DIRECT~1");
    // So many names that they do not fit into one record.
    m.put("many names", b"linked");
    for i in 0..60 {
        fs::hard_link(m.path("many names"), m.path(&format!("many/{} {i}", "another name of it".repeat(5)))).unwrap();
    }

    fs::create_dir(m.path("junction")).unwrap();
    m.set_xattr("junction", "system.ntfs_reparse_data", &junction(r"\??\C:\Users\Größe"));
    m.put("cloud file", &noise(12, 3 * c));
    m.set_xattr("cloud file", "system.ntfs_reparse_data", &[0x1A, 0, 0, 0x90, 4, 0, 0, 0, 1, 2, 3, 4]);

    let time = SystemTime::UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_700);
    for name in ["large.bin", "sizes/00500.bin", "many"] {
        File::open(m.path(name)).unwrap().set_modified(time).unwrap();
    }
    let before = SystemTime::UNIX_EPOCH - Duration::from_secs(86_400 * 365);
    File::open(m.path("exact.bin")).unwrap().set_modified(before).unwrap();
    drop(m);
    image
}

/// A reparse buffer of a junction.
pub fn junction(target: &str) -> Vec<u8> {
    let name: Vec<u8> = target.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let len = name.len() as u16;
    let mut data = Vec::new();
    for n in [0, len, len + 2, 0] {
        data.extend_from_slice(&n.to_le_bytes());
    }
    data.extend_from_slice(&name);
    data.extend_from_slice(&[0; 4]);
    let mut all = 0xA000_0003u32.to_le_bytes().to_vec();
    all.extend_from_slice(&(data.len() as u32).to_le_bytes());
    all.extend_from_slice(&data);
    all
}

/// Appends to a file of this machine.
pub fn append(path: &Path, bytes: &[u8]) {
    OpenOptions::new().append(true).open(path).unwrap().write_all(bytes).unwrap();
}

pub fn os(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

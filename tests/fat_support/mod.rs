//! FAT volumes made by mkfs.fat and mtools, and what foreign readers say of them.

#![allow(dead_code, unused_imports, reason = "each test file uses a part of it")]

#[path = "../common/hash.rs"]
mod hash;
pub mod host;
#[path = "../common/memory.rs"]
mod memory;
#[path = "../common/noise.rs"]
mod noise;
#[path = "../common/run.rs"]
mod run;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use unimage::fs::{FileSystem, ReadOptions};

pub use hash::sha256 as sha;
pub use memory::Memory;
pub use noise::noise;
pub use run::ok_bytes as run;

pub fn open(bytes: Vec<u8>) -> Arc<dyn FileSystem> {
    open_volume(&Memory::new(bytes))
}

pub fn open_volume(volume: &Memory) -> Arc<dyn FileSystem> {
    unimage::fs::fat::open(Arc::new(volume.clone()), ReadOptions::default()).unwrap().expect("a FAT volume")
}

pub fn text(program: &str, args: &[&str]) -> String {
    String::from_utf8_lossy(&run(program, args)).into_owned()
}

/// A form of volume: arguments of mkfs.fat, and its size.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub fat: &'static str,
    /// Sectors per cluster.
    pub cluster: &'static str,
    /// Bytes per sector.
    pub sector: &'static str,
    /// KiB.
    pub size: u64,
}

pub const SHAPES: &[Shape] = &[
    Shape { fat: "12", cluster: "1", sector: "512", size: 1440 },
    Shape { fat: "12", cluster: "8", sector: "512", size: 12_000 },
    Shape { fat: "16", cluster: "1", sector: "512", size: 8_000 },
    Shape { fat: "16", cluster: "4", sector: "512", size: 20_000 },
    Shape { fat: "16", cluster: "64", sector: "512", size: 140_000 },
    Shape { fat: "32", cluster: "1", sector: "512", size: 40_000 },
    Shape { fat: "32", cluster: "8", sector: "512", size: 300_000 },
    Shape { fat: "12", cluster: "1", sector: "4096", size: 8_000 },
    Shape { fat: "16", cluster: "1", sector: "4096", size: 30_000 },
    Shape { fat: "32", cluster: "1", sector: "4096", size: 300_000 },
];

/// A volume file in a folder of its own.
pub struct Image {
    pub dir: tempfile::TempDir,
    pub path: PathBuf,
}

impl Image {
    pub fn new(shape: Shape) -> Self {
        Self::with(shape, &[])
    }
    pub fn with(shape: Shape, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volume.img");
        let file = path.to_str().unwrap();
        let size = shape.size.to_string();
        let fixed = ["-F", shape.fat, "-s", shape.cluster, "-S", shape.sector, "-i", "1234ABCD", "-n", "LABEL", "-C"];
        run("mkfs.fat", &[&fixed[..], more, &[file, &size]].concat());
        Self { dir, path }
    }
    pub fn str(&self) -> &str {
        self.path.to_str().unwrap()
    }
    pub fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }
    /// Puts a file; the path as mtools wants it, below `::`.
    pub fn put(&self, path: &str, bytes: &[u8]) {
        let from = self.dir.path().join("in");
        std::fs::write(&from, bytes).unwrap();
        run("mcopy", &["-i", self.str(), "-o", from.to_str().unwrap(), &format!("::{path}")]);
    }
    /// Puts a file with these times (seconds since 1970).
    pub fn put_at(&self, path: &str, bytes: &[u8], mtime: i64) {
        let from = self.dir.path().join("in");
        std::fs::write(&from, bytes).unwrap();
        run("touch", &["-d", &format!("@{mtime}"), from.to_str().unwrap()]);
        run("mcopy", &["-i", self.str(), "-m", "-o", from.to_str().unwrap(), &format!("::{path}")]);
    }
    /// Makes mtools look for free clusters from the start again.
    pub fn rewind(&self, shape: Shape) {
        if shape.fat == "32" {
            use std::os::unix::fs::FileExt;
            let sector: u64 = shape.sector.parse().unwrap();
            let file = std::fs::OpenOptions::new().write(true).open(&self.path).unwrap();
            file.write_all_at(&2u32.to_le_bytes(), sector + 0x1EC).unwrap();
        }
    }
    pub fn mkdir(&self, path: &str) {
        run("mmd", &["-i", self.str(), &format!("::{path}")]);
    }
    pub fn remove(&self, path: &str) {
        run("mdel", &["-i", self.str(), &format!("::{path}")]);
    }
}

/// Writes bytes as a volume file for the foreign programs.
pub fn written(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("volume.img");
    // Sparse: most of a volume is zeros.
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (i, chunk) in bytes.chunks(65_536).enumerate().filter(|(_, chunk)| chunk.iter().any(|b| *b != 0)) {
        file.write_all_at(chunk, i as u64 * 65_536).unwrap();
    }
    (dir, path)
}

/// A volume mounted read-only by fusefat until it is dropped.
pub struct Mounted {
    dir: tempfile::TempDir,
}

impl Mounted {
    pub fn new(volume: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        run("fusefat", &["-o", "ro", volume.to_str().unwrap(), dir.path().to_str().unwrap()]);
        Self { dir }
    }
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("fusermount").args(["-u", self.dir.path().to_str().unwrap()]).status();
    }
}

/// Compares two maps and shows only what differs.
pub fn assert_same<V: PartialEq + std::fmt::Debug>(ours: &BTreeMap<String, V>, theirs: &BTreeMap<String, V>) {
    let differ = |a: &BTreeMap<String, V>, b: &BTreeMap<String, V>| -> Vec<String> {
        a.iter().filter(|(k, v)| b.get(*k) != Some(v)).map(|(k, v)| format!("{k}: {v:?}")).collect()
    };
    assert!(!theirs.is_empty());
    assert_eq!(differ(ours, theirs), differ(theirs, ours));
}

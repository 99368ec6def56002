//! exFAT volumes made by mkfs.exfat and exfat-fuse, and opened by the library.

#![allow(dead_code, unused_imports, reason = "each test file uses a part of it")]

pub mod host;
#[path = "../common/memory.rs"]
mod memory;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use unimage::fs::{FileSystem, ReadOptions};

use crate::common::{Loop, Mount, fsck_exfat, ok, scratch};

pub use memory::Memory;

/// A new volume, filled through exfat-fuse.
pub fn volume(len: u64, mkfs: &[&str], sector: u32, fill: impl FnOnce(&Path)) -> (tempfile::TempDir, PathBuf) {
    let dir = scratch();
    let path = dir.path().join("volume.img");
    fs::File::create(&path).unwrap().set_len(len).unwrap();
    let device = |sector: u32| {
        let on = Loop::attach(&path, 0, 0, false);
        if sector != 512 {
            ok("losetup", ["--sector-size", &sector.to_string(), on.device.to_str().unwrap()]);
        }
        on
    };
    {
        let on = device(sector);
        ok("mkfs.exfat", [mkfs, &["-L", "Läbel 🦀", on.device.to_str().unwrap()]].concat());
    }
    {
        let mount = Mount::exfat(&path, 0, 0, "rw");
        fill(&mount.dir);
    }
    assert_eq!(fsck_exfat(&path, 0, 0), Vec::<String>::new());
    (dir, path)
}

pub fn open(path: &Path) -> Arc<dyn FileSystem> {
    open_bytes(fs::read(path).unwrap())
}

pub fn open_bytes(bytes: Vec<u8>) -> Arc<dyn FileSystem> {
    unimage::fs::probe(Arc::new(Memory::new(bytes)), ReadOptions::default()).unwrap().expect("an exFAT volume")
}

/// Writes bytes as a volume file for the foreign programs.
pub fn written(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = scratch();
    let path = dir.path().join("volume.img");
    fs::write(&path, bytes).unwrap();
    (dir, path)
}

/// Compares two maps and shows only what differs.
pub fn assert_same<V: PartialEq + std::fmt::Debug>(ours: &BTreeMap<String, V>, theirs: &BTreeMap<String, V>) {
    let differ = |a: &BTreeMap<String, V>, b: &BTreeMap<String, V>| -> Vec<String> {
        a.iter().filter(|(k, v)| b.get(*k) != Some(v)).map(|(k, v)| format!("{k}: {v:?}")).collect()
    };
    assert!(!theirs.is_empty());
    assert_eq!(differ(ours, theirs), differ(theirs, ours));
}

//! Destinations, manifests and trees to be compared.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::common::{Out, ok, run, unimage};

/// A file system of its own on a loop device, mounted by the kernel; gone when dropped.
pub struct Volume {
    pub dir: PathBuf,
    pub image: PathBuf,
    at: tempfile::TempDir,
}

impl Volume {
    /// `mkfs` is the program with its arguments, without the device.
    pub fn new(mkfs: &[&str], mib: u64, options: &str) -> Self {
        let at = crate::common::scratch();
        let (image, dir) = (at.path().join("volume"), at.path().join("m"));
        File::create(&image).unwrap().set_len(mib << 20).unwrap();
        fs::create_dir(&dir).unwrap();
        let mut args: Vec<&OsStr> = mkfs[1..].iter().map(OsStr::new).collect();
        args.push(image.as_os_str());
        ok(mkfs[0], args);
        let this = Self { dir, image, at };
        this.mount(options);
        this
    }
    pub fn xfs(mib: u64) -> Self {
        Self::new(&["mkfs.xfs", "-q"], mib, "loop")
    }
    pub fn btrfs(mib: u64) -> Self {
        Self::new(&["mkfs.btrfs", "-q"], mib, "loop")
    }
    pub fn ext4(mib: u64) -> Self {
        Self::new(&["mkfs.ext4", "-q", "-F"], mib, "loop")
    }
    fn mount(&self, options: &str) {
        ok("mount", [OsStr::new("-o"), options.as_ref(), self.image.as_os_str(), self.dir.as_os_str()]);
    }
    /// Unmounts it, so that it can be checked.
    pub fn unmount(&self) {
        for _ in 0..200 {
            if run("umount", [&self.dir]).code == 0 {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("umount {}", self.dir.display());
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if crate::common::mounted(&self.dir) {
            for _ in 0..100 {
                if Command::new("umount").arg(&self.dir).output().is_ok_and(|o| o.status.success()) {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        }
        let _ = self.at.path();
    }
}

/// Runs `extract` with a manifest, which has to be whole, and gives its rows by path.
#[track_caller]
pub fn extract(address: &str, dest: &Path, more: &[&str]) -> (Out, Rows) {
    let manifest = dest.with_extension("jsonl");
    let _ = fs::remove_file(&manifest);
    let mut args = vec!["extract", address, dest.to_str().unwrap(), "--manifest", manifest.to_str().unwrap()];
    args.extend(more);
    let out = unimage(&args);
    assert!(manifest.exists(), "{out}");
    (out, rows(&manifest))
}

pub type Rows = BTreeMap<String, Value>;

/// The rows of a manifest: a header, entries whose paths differ, a summary (by the path `*`).
#[track_caller]
pub fn rows(manifest: &Path) -> Rows {
    let text = fs::read_to_string(manifest).unwrap();
    let lines: Vec<Value> =
        text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{l}: {e}"))).collect();
    assert_eq!(lines[0]["schema"], "unimage/extract/1");
    let mut all = Rows::new();
    for line in &lines[1..lines.len() - 1] {
        if line["type"] == "entry" {
            let path = line["path"].as_str().unwrap();
            assert!(all.insert(path.into(), line.clone()).is_none(), "{path} twice");
        } else {
            assert_eq!(line["type"], "problem");
        }
    }
    let summary = lines.last().unwrap();
    assert_eq!(summary["type"], "summary", "the manifest was cut off");
    all.insert("*".into(), summary.clone());
    all
}

/// The paths whose rows have this method.
pub fn with_method<'r>(rows: &'r Rows, method: &str) -> Vec<&'r str> {
    rows.iter().filter(|(_, r)| r["method"] == method).map(|(p, _)| p.as_str()).collect()
}

/// Bytes that are allocated, and names by file: which paths are one file.
pub struct Shape {
    pub blocks: BTreeMap<Vec<u8>, u64>,
    pub links: BTreeSet<Vec<Vec<u8>>>,
}

pub fn shape(root: &Path) -> Shape {
    let mut blocks = BTreeMap::new();
    let mut names: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let rel = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
            if meta.is_dir() {
                todo.push(path);
                continue;
            }
            blocks.insert(rel.clone(), meta.blocks() * 512);
            names.entry(meta.ino()).or_default().push(rel);
        }
    }
    let mut links: BTreeSet<_> = names.into_values().filter(|n| n.len() > 1).collect();
    links = links
        .into_iter()
        .map(|mut n| {
            n.sort();
            n
        })
        .collect();
    Shape { blocks, links }
}

/// Bytes of a file that FIEMAP says are shared with another one, and all of its bytes that are allocated.
pub fn shared_bytes(file: &Path) -> (u64, u64) {
    let said = ok("filefrag", [OsStr::new("-v"), OsStr::new("-s"), file.as_os_str()]);
    let (mut shared, mut all) = (0, 0);
    let block: u64 = said.split("blocks of ").nth(1).and_then(|s| s.split(' ').next()).unwrap().parse().unwrap();
    for line in said.lines().filter(|l| l.trim().split(':').next().is_some_and(|n| n.trim().parse::<u32>().is_ok())) {
        let fields: Vec<&str> = line.split(':').collect();
        let bytes = fields[3].trim().parse::<u64>().unwrap() * block;
        all += bytes;
        if line.contains("shared") {
            shared += bytes;
        }
    }
    (shared, all)
}

/// A folder with nothing but the image of a scratch, to see that nothing is written outside of DEST.
#[track_caller]
pub fn names_in(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

/// What the kernel says of a tree, without inode numbers, change and birth times. Times of access are those of before anything was read.
pub fn kernel_view(root: &Path) -> crate::ext_support::Rows {
    let mut accessed = BTreeMap::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let rel = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
            accessed.insert(rel, (meta.atime(), meta.atime_nsec() as u32));
            if meta.is_dir() {
                todo.push(path);
            }
        }
    }
    let mut rows = crate::ext_support::kernel_rows(root);
    for (path, row) in &mut rows {
        row.number = 0;
        row.times[1] = Some(accessed[path]);
        row.times[2] = None;
        row.times[3] = None;
    }
    rows
}

/// The path of a row below the destination, as the bytes of its names.
#[track_caller]
pub fn written(row: &Value) -> PathBuf {
    use base64::Engine;
    match row["written_raw"].as_str() {
        Some(raw) => OsStr::from_bytes(&base64::engine::general_purpose::STANDARD.decode(raw).unwrap()).into(),
        None => row["written"].as_str().unwrap_or_else(|| panic!("{row}")).into(),
    }
}

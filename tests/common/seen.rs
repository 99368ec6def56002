//! Trees of files as a foreign reader shows them, and how two of them differ.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::UNIX_EPOCH;

use sha2::{Digest, Sha256};

use super::hash::hex;

/// SHA-256 of a file, read in pieces.
#[track_caller]
pub fn sha256_file(path: &Path) -> String {
    let mut file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        let n = file.read(&mut buffer).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        if n == 0 {
            return hex(&hash.finalize());
        }
        hash.update(&buffer[..n]);
    }
}

/// One file of a tree.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// Bytes.
    pub size: u64,
    /// SHA-256 of the contents.
    pub sha: String,
    /// Last change, nanoseconds since 1970.
    pub mtime: i128,
}

/// Paths below a folder, `/` between names.
pub type Seens = BTreeMap<String, Seen>;

/// All regular files below a folder.
#[track_caller]
pub fn tree(root: &Path) -> Seens {
    let mut found = Seens::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            if meta.is_dir() {
                todo.push(path);
            } else if meta.is_file() {
                let mtime = meta.modified().unwrap();
                let mtime = match mtime.duration_since(UNIX_EPOCH) {
                    Ok(d) => i128::try_from(d.as_nanos()).unwrap(),
                    Err(e) => -i128::try_from(e.duration().as_nanos()).unwrap(),
                };
                let name = path.strip_prefix(root).unwrap().to_str().expect("names of the tests are UTF-8").to_owned();
                found.insert(name, Seen { size: meta.len(), sha: sha256_file(&path), mtime });
            }
        }
    }
    found
}

/// Says how two trees differ in paths, sizes and contents; empty when they don't.
pub fn differences(expected: &Seens, got: &Seens) -> Vec<String> {
    let mut list = Vec::new();
    for (path, want) in expected {
        match got.get(path) {
            None => list.push(format!("missing: {path:?}")),
            Some(g) if g.size != want.size => list.push(format!("size of {path:?}: {} not {}", g.size, want.size)),
            Some(g) if g.sha != want.sha => list.push(format!("contents of {path:?}")),
            Some(_) => {}
        }
    }
    list.extend(got.keys().filter(|p| !expected.contains_key(*p)).map(|p| format!("too many: {p:?}")));
    list
}

/// Stops the test when the trees differ, showing the first differences.
#[track_caller]
pub fn same_tree(expected: &Seens, got: &Seens, what: &str) {
    let list = differences(expected, got);
    assert!(list.is_empty(), "{what}: {} differences, such as {:#?}", list.len(), &list[..list.len().min(10)]);
}

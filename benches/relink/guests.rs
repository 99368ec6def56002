//! Guests that only the benchmark needs.

use std::fs;
use std::path::Path;

use crate::common::Mount;
use crate::common::guest::{self, Guest, copy_sparse};

/// The same guest without the names that `fusefat` and `mcopy` refuse: its folder `names` is removed, and letters
/// outside of ASCII become `_`. The files and where they lie stay as they are. Kept beside the guest.
pub fn plain_names(of: &Guest) -> Guest {
    let name = of.image.file_name().unwrap().to_str().unwrap();
    let image = of.image.with_file_name(format!("plain-names-of-{name}"));
    if !image.exists() {
        let part = image.with_extension("part");
        copy_sparse(&of.image, &part);
        {
            let len = fs::metadata(&part).unwrap().len() - guest::PART - (1 << 20);
            let mount = Mount::ntfs(&part, guest::PART, len, "rw,streams_interface=none,noatime");
            fs::remove_dir_all(mount.dir.join("names")).unwrap();
            rename(&mount.dir);
        }
        fs::rename(&part, &image).unwrap();
    }
    let kept = of.files.iter().filter(|(path, _)| !path.starts_with("names/"));
    Guest { image, files: kept.map(|(path, seen)| (plain(path), seen.clone())).collect() }
}

fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii() { c } else { '_' }).collect()
}

fn rename(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let to = entry.path().with_file_name(plain(&name));
        if !name.is_ascii() {
            assert!(!to.exists(), "{} twice", to.display());
            fs::rename(entry.path(), &to).unwrap();
        }
        if entry.file_type().unwrap().is_dir() {
            rename(&to);
        }
    }
}

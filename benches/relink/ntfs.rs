//! NTFS as host: 8 GiB, clusters of 4 KiB, made and filled by `ntfs-3g`.

use std::fs;
use std::path::Path;

use crate::common::guest::{self, Guest};
use crate::common::{self, Mount, ok, tree};
use crate::measure::words;
use crate::relink::{Copy, Filled, Source, cp_all, fresh_folder, fresh_medium};

const MKNTFS: &[&str] = &["mkntfs", "-q", "-F", "-Q", "-c", "4096", "-s", "512", "-p", "0"];

/// The tenth part of `guest::many_files`: 20,000 small files, a hundred in a folder.
pub fn few_files() -> Guest {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests");
    fs::create_dir_all(&dir).unwrap();
    let image = dir.join("bench-ntfs-few.img");
    if !image.exists() {
        let part = image.with_extension("part");
        guest::ntfs(&part, 512 << 20, |root| {
            let mut noise = common::Noise::new(5);
            for i in 0..20_000_usize {
                let dir = root.join(format!("folder {:02}/sub folder {:04}", i / 10_000, i / 100));
                if i % 100 == 0 {
                    fs::create_dir_all(&dir).unwrap();
                }
                fs::write(dir.join(format!("some file {i:06}.dat")), noise.bytes(if i % 2 == 0 { 100 } else { 3000 }))
                    .unwrap();
            }
        });
        fs::rename(&part, &image).unwrap();
    }
    let len = fs::metadata(&image).unwrap().len() - guest::PART - (1 << 20);
    let files = tree(&Mount::ntfs(&image, guest::PART, len, "ro,streams_interface=none").dir);
    Guest { image, files }
}

fn mounted(volume: &Path) -> Source {
    let mount = Mount::ntfs(volume, 0, 0, "rw,noatime,big_writes");
    Source { dir: mount.dir.clone(), _mount: Box::new(mount) }
}

/// The host, with this image.
pub fn host(image: &Path) -> Filled {
    let guest = image.to_owned();
    let copy = move |dir: &Path, what: &str, from: &[String]| match what {
        "cp -a, ntfs-3g mounts" => {
            let medium = fresh_medium(dir, 8 << 30, MKNTFS);
            let mount = mounted(&medium);
            let command = cp_all(from, mount.dir.to_str().unwrap());
            Copy { command, mount: Some(Box::new(mount)), medium: Some(medium) }
        }
        "7z x to the host's disk" => {
            // It does not look into partitions.
            let volume = dir.join("volume.ntfs");
            let (from, to) = (format!("if={}", guest.display()), format!("of={}", volume.display()));
            ok("dd", ["bs=1M", "skip=1", "conv=sparse", "status=none", &from, &to]);
            let to = format!("-o{}", fresh_folder(dir));
            let command = words(&["7z", "x", "-y", &to, volume.to_str().unwrap()]);
            Copy { command, mount: None, medium: None }
        }
        _ => Copy { command: cp_all(from, &fresh_folder(dir)), mount: None, medium: None },
    };
    let copies = &["cp -a, ntfs-3g mounts", "cp -a to the host's disk", "7z x to the host's disk"];
    Filled::new(image, MKNTFS, mounted, "on NTFS, clusters of 4 KiB").beside(copies, Box::new(copy))
}

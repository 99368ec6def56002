//! NTFS as host: 8 GiB, clusters of 4 KiB, made and filled by `ntfs-3g`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::guest::{self, Guest, copy_sparse};
use crate::common::{self, Mount, UNIMAGE, ok, tree};
use crate::measure::words;
use crate::relink::{Copy, Target, cp, fresh_folder, fresh_medium};

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

/// The host.
pub struct Ntfs {
    dir: tempfile::TempDir,
    guest: PathBuf,
}

impl Ntfs {
    /// A host with this image.
    pub fn new(image: &Path) -> Self {
        let dir = common::scratch();
        let host = fresh_medium(dir.path(), 8 << 30, MKNTFS);
        fs::rename(host, dir.path().join("host.img")).unwrap();
        let this = Self { dir, guest: image.into() };
        let mount = Mount::ntfs(&this.host(), 0, 0, "rw,noatime,big_writes");
        fs::create_dir(mount.dir.join("vm")).unwrap();
        copy_sparse(image, &mount.dir.join("vm/disk.img"));
        drop(mount);
        this
    }
    fn host(&self) -> PathBuf {
        self.dir.path().join("host.img")
    }
}

impl Target for Ntfs {
    fn what(&self) -> String {
        "on NTFS, clusters of 4 KiB".into()
    }
    fn image(&self) -> String {
        format!("{}//vm/disk.img", self.host().display())
    }
    fn journal(&self) -> PathBuf {
        self.dir.path().join("journal")
    }
    fn dir(&self) -> &Path {
        self.dir.path()
    }
    fn reset(&self) {
        let journal = self.journal();
        if journal.exists() {
            ok(UNIMAGE, ["undo", journal.to_str().unwrap()]);
            fs::remove_file(journal).unwrap();
        }
    }
    fn copies(&self) -> Vec<&'static str> {
        vec!["cp -a, ntfs-3g mounts", "cp -a to the host's disk", "7z x to the host's disk"]
    }
    fn copy(&self, what: &str, from: &[String]) -> Copy {
        let all = |to: &str| {
            let mut command = cp(from, to);
            command.splice(1..4, words(&["-a", "--sparse=never"]));
            command
        };
        match what {
            "cp -a, ntfs-3g mounts" => {
                let medium = fresh_medium(self.dir(), 8 << 30, MKNTFS);
                let mount = Mount::ntfs(&medium, 0, 0, "rw,noatime,big_writes");
                let command = all(mount.dir.to_str().unwrap());
                Copy { command, mount: Some(Box::new(mount)), medium: Some(medium) }
            }
            "7z x to the host's disk" => {
                // It does not look into partitions.
                let (volume, image) = (self.dir().join("volume.ntfs"), self.guest.display());
                let (from, to) = (format!("if={image}"), format!("of={}", volume.display()));
                ok("dd", ["bs=1M", "skip=1", "conv=sparse", "status=none", &from, &to]);
                let to = format!("-o{}", fresh_folder(self.dir()));
                let command = words(&["7z", "x", "-y", &to, volume.to_str().unwrap()]);
                Copy { command, mount: None, medium: None }
            }
            _ => Copy { command: all(&fresh_folder(self.dir())), mount: None, medium: None },
        }
    }
}

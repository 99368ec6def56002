//! ext4: guests that the kernel's own driver has filled, and a host of 8 GiB with blocks of 4 KiB.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use crate::common::guest::Guest;
use crate::common::{self, Loop, Noise, ok, tree};
use crate::measure::words;
use crate::relink::{Copy, Filled, Source, cp_all, fresh_folder, fresh_medium};
use crate::walk::{Reader, own, run};

/// A mount by the kernel; taken off when dropped.
pub struct Kernel {
    at: tempfile::TempDir,
    _on: Loop,
}

impl Kernel {
    /// Of a volume in a file.
    pub fn new(image: &Path, read_only: bool) -> Self {
        let at = common::scratch();
        let on = Loop::attach(image, 0, 0, read_only);
        let options = if read_only { "ro" } else { "rw,noatime" };
        ok("mount", ["-t", "ext4", "-o", options, on.device.to_str().unwrap(), at.path().to_str().unwrap()]);
        Self { at, _on: on }
    }
    fn path(&self) -> &Path {
        self.at.path()
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.at.path()).output();
    }
}

/// A bare ext4 of 4 GiB, made once and filled through the kernel.
fn made(name: &str, fill: impl FnOnce(&Path, &mut Noise)) -> Guest {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests");
    fs::create_dir_all(&dir).unwrap();
    let image = dir.join(format!("bench-ext4-{name}.img"));
    if !image.exists() {
        let part = image.with_extension("part");
        File::create(&part).unwrap().set_len(4 << 30).unwrap();
        ok("mke2fs", ["-q", "-F", "-t", "ext4", "-b", "4096", "-N", "250000", part.to_str().unwrap()]);
        fill(Kernel::new(&part, false).path(), &mut Noise::new(31));
        fs::rename(&part, &image).unwrap();
    }
    let files = tree(Kernel::new(&image, true).path());
    Guest { image, files }
}

/// 200,000 files of 100 and 3,000 bytes, a hundred in a folder.
pub fn many_files() -> Guest {
    small("many", 200_000)
}

/// The fifth part of them.
pub fn small_files() -> Guest {
    small("small", 40_000)
}

fn small(name: &str, files: usize) -> Guest {
    made(name, |root, noise| {
        for i in 0..files {
            let dir = root.join(format!("folder {:02}/sub folder {:04}", i / 10_000, i / 100));
            if i % 100 == 0 {
                fs::create_dir_all(&dir).unwrap();
            }
            fs::write(dir.join(format!("some file {i:06}.dat")), noise.bytes(if i % 2 == 0 { 100 } else { 3000 }))
                .unwrap();
        }
    })
}

/// 20,000 files of up to 30,000 bytes.
pub fn mixed_files() -> Guest {
    made("mixed", |root, noise| {
        for i in 0..20_000_usize {
            let dir = root.join(format!("folder {:02}/{:03}", i / 1000, i / 50));
            fs::create_dir_all(&dir).unwrap();
            let len = noise.below(30_000) as usize;
            fs::write(dir.join(format!("some file {i:06}.dat")), noise.bytes(len)).unwrap();
        }
    })
}

/// Twelve files of 128 MiB.
pub fn large_files() -> Guest {
    made("large", |root, noise| {
        for i in 0..12 {
            fs::write(root.join(format!("large {i}")), noise.bytes(128 << 20)).unwrap();
        }
    })
}

/// The guest as the kernel mounts it.
pub fn source(guest: &Guest) -> Source {
    mounted(&guest.image, true)
}

fn mounted(volume: &Path, read_only: bool) -> Source {
    let mount = Kernel::new(volume, read_only);
    Source { dir: mount.path().into(), _mount: Box::new(mount) }
}

/// The walk against `fls`, `debugfs` and `find` on the kernel's mount.
pub fn walk(title: &str, guest: &Guest) {
    let image = guest.image.to_str().unwrap();
    let mount = Kernel::new(&guest.image, true);
    // debugfs lists one directory at a time.
    let dirs = ok("find", [mount.path().to_str().unwrap(), "-type", "d", "-printf", "ls -p \"/%P\"\n"]);
    let commands = common::scratch();
    let list = commands.path().join("list").display().to_string();
    fs::write(&list, dirs).unwrap();
    let mut readers = own(image);
    let mut row = |what, command: &[&str]| readers.push(Reader { what, command: words(command) });
    row("fls -r -p", &["fls", "-r", "-p", image]);
    row("debugfs ls -p", &["debugfs", "-f", &list, image]);
    row("find, kernel mount", &["find", mount.path().to_str().unwrap(), "-printf", "%y %i %P\n"]);
    row("find -ls, kernel mount", &["find", mount.path().to_str().unwrap(), "-ls"]);
    run(title, guest.files.len(), &readers, "fls -r -p");
}

/// The host, with this image.
pub fn host(image: &Path) -> Filled {
    let mkfs = &["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096"];
    let copy = |dir: &Path, what: &str, from: &[String]| {
        if what == "cp -a, kernel mounts" {
            let medium = fresh_medium(dir, 8 << 30, &["mke2fs", "-q", "-F", "-t", "ext4", "-N", "500000"]);
            let mount = Kernel::new(&medium, false);
            let command = cp_all(from, mount.path().to_str().unwrap());
            return Copy { command, mount: Some(Box::new(mount)), medium: None };
        }
        Copy { command: cp_all(from, &fresh_folder(dir)), mount: None, medium: None }
    };
    let copies = &["cp -a, kernel mounts", "cp -a to the host's disk"];
    Filled::new(image, mkfs, |host| mounted(host, false), "on ext4, blocks of 4 KiB").beside(copies, Box::new(copy))
}

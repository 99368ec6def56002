//! exFAT as host: 8 GiB with room, and one that is full, so that what is copied goes to units of the image.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::common::guest::{self, Guest};
use crate::common::{Mount, ok};
use crate::exfat_support::host::{Host, IMAGE, Shape};
use crate::relink::{Copy, Source, Target, cp, cp_all, fresh_folder, fresh_medium};

const LEN: u64 = 8 << 30;

/// The host.
pub struct ExFat {
    host: Host,
    unit: &'static str,
    full: bool,
}

impl ExFat {
    /// Of 8 GiB, with this image in four fragments.
    pub fn new(unit: &'static str, image: &Path) -> Self {
        let shape = Shape { unit, len: LEN, fragments: 4, partition: false };
        Self { host: Host::new(shape, image), unit, full: false }
    }
    /// Hardly larger than the image: half a percent of its clusters is free.
    pub fn full(unit: &'static str, image: &Path) -> Self {
        let len = fs::metadata(image).unwrap().len() + (96 << 20);
        let mut host = Host::new(Shape { unit, len, fragments: 4, partition: false }, image);
        host.fill_up(host.exfat.clusters as usize / 200);
        Self { host, unit, full: true }
    }
}

impl Target for ExFat {
    fn what(&self) -> String {
        let full = if self.full { ", 0.5 % of them free" } else { "" };
        format!("clusters of {} KiB{full}, the image in 4 fragments", self.unit.trim_end_matches('K'))
    }
    fn image(&self) -> String {
        self.host.path(IMAGE)
    }
    fn flags(&self) -> &'static [&'static str] {
        if self.full { &["--reuse"] } else { &[] }
    }
    fn journal(&self) -> PathBuf {
        self.host.journal()
    }
    fn dir(&self) -> &Path {
        self.host.dir.path()
    }
    fn reset(&self) {
        self.host.reset();
    }
    fn copies(&self) -> Vec<&'static str> {
        vec!["cp -r, mounted copies", "cp -a to the host's disk"]
    }
    fn copy(&self, what: &str, from: &[String]) -> Copy {
        if what != "cp -r, mounted copies" {
            return Copy { command: cp_all(from, &fresh_folder(self.dir())), mount: None, medium: None };
        }
        let medium = fresh_medium(self.dir(), LEN, &["mkfs.exfat", "-c", self.unit]);
        let mount = Mount::exfat(&medium, 0, 0, "rw");
        let device = device(&mount.dir);
        Copy { command: cp(from, mount.dir.to_str().unwrap()), mount: Some(Box::new(mount)), medium: Some(device) }
    }
}

/// What is mounted at a folder: the server has that open, not the file behind it.
fn device(dir: &Path) -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut lines = mounts.lines().map(|l| l.split(' '));
    lines.find_map(|mut l| Some((l.next()?, l.next()?)).filter(|(_, at)| Some(*at) == dir.to_str())).unwrap().0.into()
}

/// The first sector of the only partition of old disks.
const OLD: u64 = 63;

/// The same guest as old systems partitioned it, from sector 63 on: no cluster of it begins where one of 4 KiB of the host does.
pub fn old_partition(of: &Guest) -> Guest {
    let name = of.image.file_name().unwrap().to_str().unwrap();
    let image = of.image.with_file_name(format!("sector-63-{name}"));
    if !image.exists() {
        let part = image.with_extension("part");
        let len = fs::metadata(&of.image).unwrap().len();
        File::create(&part).unwrap().set_len(len).unwrap();
        let sectors = (len - guest::PART - (1 << 20)) / 512;
        let (from, seek) = (format!("if={}", of.image.display()), format!("seek={}", OLD * 512));
        let (to, count) = (format!("of={}", part.display()), format!("count={}", sectors * 512));
        let (skip, flags) = (format!("skip={}", guest::PART), "iflag=skip_bytes,count_bytes");
        let sparse = "conv=sparse,notrunc";
        ok("dd", ["bs=512K", &from, &to, &skip, &seek, &count, flags, "oflag=seek_bytes", sparse, "status=none"]);
        let mut entry = [0_u8; 66];
        entry[4] = 7;
        entry[8..12].copy_from_slice(&(OLD as u32).to_le_bytes());
        entry[12..16].copy_from_slice(&u32::try_from(sectors).unwrap().to_le_bytes());
        entry[64..].copy_from_slice(&[0x55, 0xAA]);
        File::options().write(true).open(&part).unwrap().write_all_at(&entry, 446).unwrap();
        fs::rename(&part, &image).unwrap();
    }
    Guest { image, files: of.files.clone() }
}

/// Its files, by `ntfs-3g`.
pub fn old_source(guest: &Guest) -> Source {
    let len = fs::metadata(&guest.image).unwrap().len() - guest::PART - (1 << 20);
    let mount = Mount::ntfs(&guest.image, OLD * 512, len, "ro,streams_interface=none");
    Source { dir: mount.dir.clone(), _mount: Box::new(mount) }
}

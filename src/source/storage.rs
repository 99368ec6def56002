//! Where the bytes of a file or device really lie: what shares bytes with what, by whatever name or device node.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A file or a disk, told by numbers and not by a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Store {
    /// A whole disk (or anything else with a block device node that is no partition): major and minor number.
    Disk(u32, u32),
    /// A regular file: device number of its file system, inode.
    File(u64, u64),
}

/// A range of a [`Store`], in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) store: Store,
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Region {
    fn overlaps(&self, other: &Self) -> bool {
        self.store == other.store && self.start < other.end && other.start < self.end
    }
}

/// A region and all that lies below it: of a partition its disk, of a loop device its file, of a mapped device its parts.
#[derive(Clone, Debug, Default)]
pub(super) struct Chain(Vec<Region>);

/// Devices stacked deeper than this are taken for a cycle.
const DEPTH: usize = 16;

pub(super) fn number(device: u64) -> (u32, u32) {
    (rustix::fs::major(device), rustix::fs::minor(device))
}

/// The folder of a block device in sysfs.
pub(super) fn sysfs((major, minor): (u32, u32)) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{major}:{minor}"))
}

pub(super) fn read_text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn read_number(path: &Path) -> Option<u64> {
    read_text(path)?.parse().ok()
}

/// A device number as sysfs and mountinfo write it, `8:1`.
pub(super) fn parse_number(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// A partition of a disk.
pub(super) struct Partition {
    pub(super) disk: (u32, u32),
    /// Bytes from the disk's start.
    pub(super) start: u64,
    pub(super) len: u64,
}

/// Of a partition, where it lies; none for a whole disk.
pub(super) fn partition(device: (u32, u32)) -> Option<Partition> {
    let folder = fs::canonicalize(sysfs(device)).ok()?;
    folder.join("partition").exists().then_some(())?;
    // Sysfs counts by 512 bytes, whatever the disk's sectors.
    let bytes = |name: &str| read_number(&folder.join(name)).map(|n| n.saturating_mul(512));
    let disk = parse_number(&read_text(&folder.parent()?.join("dev"))?)?;
    Some(Partition { disk, start: bytes("start")?, len: bytes("size")? })
}

/// The partitions that the kernel knows of a disk, with the names of their device nodes.
pub(super) fn partitions(disk: (u32, u32)) -> Vec<((u32, u32), String)> {
    let Ok(entries) = fs::read_dir(sysfs(disk)) else { return Vec::new() };
    let one = |path: PathBuf| {
        path.join("partition").exists().then_some(())?;
        let device = parse_number(&read_text(&path.join("dev"))?)?;
        let uevent = read_text(&path.join("uevent"))?;
        let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
        Some((device, name.to_owned()))
    };
    entries.flatten().filter_map(|entry| one(entry.path())).collect()
}

/// Of a loop device: the file or device below it, and the range of that; none for anything else.
fn loop_backing(device: (u32, u32)) -> Option<(PathBuf, u64, u64)> {
    let folder = sysfs(device).join("loop");
    let backing = read_text(&folder.join("backing_file"))?;
    let start = read_number(&folder.join("offset")).unwrap_or_default();
    let limit = read_number(&folder.join("sizelimit")).filter(|n| *n > 0).unwrap_or(u64::MAX);
    // A file that was removed or lies where this process can't look has no number here: its name must do.
    Some((backing.strip_suffix(" (deleted)").unwrap_or(&backing).into(), start, start.saturating_add(limit)))
}

impl Chain {
    /// Of the bytes from `start` to `end` of the file or block device at `path`; none for anything else.
    pub(super) fn of_path(path: &Path, start: u64, end: u64) -> Option<Self> {
        Self::of_metadata(&fs::metadata(path).ok()?, start, end)
    }

    /// The same of what `metadata` tells of.
    pub(super) fn of_metadata(metadata: &fs::Metadata, start: u64, end: u64) -> Option<Self> {
        let mut chain = Self::default();
        let kind = metadata.file_type();
        if kind.is_block_device() {
            chain.add_device(number(metadata.rdev()), start, end, 0);
        } else if kind.is_file() {
            chain.0.push(Region { store: Store::File(metadata.dev(), metadata.ino()), start, end });
        } else {
            return None;
        }
        Some(chain)
    }

    /// All of a block device.
    pub(super) fn of_device(device: (u32, u32)) -> Self {
        let mut chain = Self::default();
        chain.add_device(device, 0, u64::MAX, 0);
        chain
    }

    fn add_device(&mut self, device: (u32, u32), start: u64, end: u64, depth: usize) {
        if depth > DEPTH {
            return;
        }
        let depth = depth.saturating_add(1);
        if let Some(part) = partition(device) {
            let limit = part.start.saturating_add(part.len);
            let within = |at: u64| part.start.saturating_add(at).min(limit);
            return self.add_device(part.disk, within(start), within(end), depth);
        }
        self.0.push(Region { store: Store::Disk(device.0, device.1), start, end });
        if let Some((backing, from, to)) = loop_backing(device) {
            let within = |at: u64| from.saturating_add(at).min(to);
            let (start, end) = (within(start), within(end));
            match fs::metadata(&backing) {
                Ok(m) if m.file_type().is_block_device() => self.add_device(number(m.rdev()), start, end, depth),
                Ok(m) => self.0.push(Region { store: Store::File(m.dev(), m.ino()), start, end }),
                Err(_) => {}
            }
        }
        // Mapped devices (LVM, encryption, RAID): which of their bytes lie where is theirs to know.
        let slaves = fs::read_dir(sysfs(device).join("slaves"));
        for slave in slaves.into_iter().flatten().flatten() {
            if let Some(device) = read_text(&slave.path().join("dev")).as_deref().and_then(parse_number) {
                self.add_device(device, 0, u64::MAX, depth);
            }
        }
    }

    /// Adds what the file systems lie on that the files of the chain are in, and so on, down to the ground.
    pub(super) fn down_to_the_ground(mut self, device_of: &dyn Fn(u64) -> Option<Self>) -> Self {
        let mut at = 0;
        while let Some(region) = self.0.get(at).copied().filter(|_| at < DEPTH.saturating_mul(DEPTH)) {
            if let Store::File(device, _) = region.store {
                let below = device_of(device).unwrap_or_default().0;
                self.0.extend(below.into_iter().filter(|r| !self.0.contains(r)).collect::<Vec<_>>());
            }
            at = at.saturating_add(1);
        }
        self
    }

    /// Whether the two share a byte.
    pub(super) fn meets(&self, other: &Self) -> bool {
        self.0.iter().any(|a| other.0.iter().any(|b| a.overlaps(b)))
    }

    /// The whole disks of the chain.
    pub(super) fn disks(&self) -> impl Iterator<Item = (u32, u32)> {
        self.0.iter().filter_map(|r| match r.store {
            Store::Disk(major, minor) => Some((major, minor)),
            Store::File(..) => None,
        })
    }
}

//! A disk that is held back: what takes 3 times as long as `dd` on a disk of 2 GB/s may be as fast as it on the disks that evidence
//! lies on. The kernel holds back what a group of processes writes (`blkio.throttle`); it takes root and version 1 of its groups.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::measure::words;

const GROUPS: &str = "/sys/fs/cgroup/blkio";

/// A group of processes that writes to the disk of a folder at most so fast. It ends with this value.
pub struct Limit {
    group: PathBuf,
    disk: String,
}

impl Limit {
    /// For the disk that `dir` is on; none where the kernel can't do it.
    pub fn new(dir: &Path, bytes_a_second: u64) -> Option<Self> {
        let dev = fs::metadata(dir).unwrap().dev();
        let number = format!("{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev));
        // Of a partition the disk, which is the folder above it.
        let at = fs::canonicalize(format!("/sys/dev/block/{number}")).ok()?;
        let disk = if at.join("partition").exists() { at.parent()?.join("dev") } else { at.join("dev") };
        let disk = fs::read_to_string(disk).ok()?.trim().to_owned();
        let group = Path::new(GROUPS).join(format!("unimage-bench-{}", std::process::id()));
        fs::create_dir(&group).ok()?;
        let this = Self { group, disk };
        this.set(bytes_a_second)?;
        Some(this)
    }
    fn set(&self, bytes_a_second: u64) -> Option<()> {
        fs::write(self.group.join("blkio.throttle.write_bps_device"), format!("{} {bytes_a_second}", self.disk)).ok()
    }
    /// The command as a member of the group.
    pub fn on(&self, command: &[String]) -> Vec<String> {
        let mut all = words(&["sh", "-c", "echo $$ > \"$0\" && exec \"$@\""]);
        all.push(self.group.join("tasks").display().to_string());
        all.extend_from_slice(command);
        all
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        let _ = self.set(0);
        let _ = fs::remove_dir(&self.group);
    }
}

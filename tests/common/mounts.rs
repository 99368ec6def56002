//! Loop devices and FUSE mounts that go away by themselves.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{output, scratch};

/// A loop device over a part of a file; detached when dropped.
pub struct Loop {
    /// `/dev/loopN`.
    pub device: PathBuf,
    file: PathBuf,
}

impl Loop {
    /// Attaches `len` bytes (0: all) from `offset` on.
    #[track_caller]
    pub fn attach(file: &Path, offset: u64, len: u64, read_only: bool) -> Self {
        for _ in 0..50 {
            let mut command = Command::new("losetup");
            command.args(["--find", "--show", "--offset", &offset.to_string()]);
            if len > 0 {
                command.args(["--sizelimit", &len.to_string()]);
            }
            if read_only {
                command.arg("--read-only");
            }
            let out = output(command.arg(file));
            if out.code == 0 {
                return Self { device: PathBuf::from(out.stdout.trim()), file: file.canonicalize().unwrap() };
            }
            // Two tests may have been told the same free device.
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("no loop device for {}", file.display());
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).output();
        // Another test that looks for a free device may have this one open: it then goes when that one closes it.
        let backing = Path::new("/sys/block").join(self.device.file_name().unwrap()).join("loop/backing_file");
        for _ in 0..500 {
            let now = fs::read_to_string(&backing).unwrap_or_default();
            if now.trim().trim_end_matches(" (deleted)") != self.file.to_str().unwrap() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A FUSE mount; taken off when dropped, and only then does its server's end count as reached.
pub struct Mount {
    /// Where it is seen.
    pub dir: PathBuf,
    what: PathBuf,
    on: Option<Loop>,
    at: tempfile::TempDir,
}

impl Mount {
    fn new(on: Option<Loop>, program: &str, options: &str, what: &Path) -> Self {
        let at = scratch();
        let dir = at.path().join("m");
        fs::create_dir(&dir).unwrap();
        let mut command = Command::new(program);
        command.args(["-o", options]).arg(what).arg(&dir).env("TZ", "UTC0");
        // The server goes to the background and may keep its standard error: no pipe that would wait for it.
        let log = at.path().join("log");
        let status = command
            .stdin(Stdio::null())
            .stdout(File::create(&log).unwrap())
            .stderr(File::options().append(true).open(&log).unwrap())
            .status()
            .unwrap_or_else(|e| panic!("{program}: {e}"));
        let said = fs::read_to_string(&log).unwrap_or_default();
        assert!(status.success(), "{command:?}: {status}\n{said}");
        let until = Instant::now() + Duration::from_secs(10);
        while !mounted(&dir) {
            assert!(Instant::now() < until, "{command:?}: nothing mounted\n{said}");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { dir, what: what.canonicalize().unwrap(), on, at }
    }
    /// NTFS on a part of an image file, by `ntfs-3g`.
    #[track_caller]
    pub fn ntfs(image: &Path, offset: u64, len: u64, options: &str) -> Self {
        let on = Loop::attach(image, offset, len, options.split(',').any(|o| o == "ro"));
        let device = on.device.clone();
        Self::new(Some(on), "ntfs-3g", options, &device)
    }
    /// exFAT on a part of an image file, by `exfat-fuse`.
    #[track_caller]
    pub fn exfat(image: &Path, offset: u64, len: u64, options: &str) -> Self {
        let on = Loop::attach(image, offset, len, options.split(',').any(|o| o == "ro"));
        let device = on.device.clone();
        Self::new(Some(on), "mount.exfat-fuse", options, &device)
    }
    /// FAT on an image file or a device, by `fusefat`.
    #[track_caller]
    pub fn fat(image: &Path, options: &str) -> Self {
        Self::new(None, "fusefat", options, image)
    }
}

/// Whether something is mounted at this folder.
pub fn mounted(dir: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().any(|l| l.split(' ').nth(1) == dir.to_str())
}

impl Drop for Mount {
    fn drop(&mut self) {
        for _ in 0..100 {
            if Command::new("umount").arg(&self.dir).output().is_ok_and(|o| o.status.success()) || !mounted(&self.dir) {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        // The server may still be writing when the mount is gone already.
        for _ in 0..200 {
            if !held(&self.what) {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(self.on.take());
    }
}

/// Whether another process has this file open.
fn held(what: &Path) -> bool {
    let own = std::process::id().to_string();
    let others = fs::read_dir("/proc").unwrap().flatten().filter(|p| p.file_name().to_str() != Some(&own));
    let mut open = others.filter_map(|p| fs::read_dir(p.path().join("fd")).ok()).flatten().flatten();
    open.any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == what))
}

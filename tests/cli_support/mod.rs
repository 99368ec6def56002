//! What the tests of the command line need: running programs, NTFS mounts that go away by themselves, a small FAT host.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use assert_cmd::cargo::cargo_bin;

/// What a program did.
#[derive(Debug)]
pub struct Out {
    line: String,
    /// Exit code; 128 + signal when it was killed.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Out {
    /// Stops the test unless it exited with this code.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "exit code of {self}");
        self
    }
}

impl std::fmt::Display for Out {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\nexit {}\n--- stdout\n{}\n--- stderr\n{}", self.line, self.code, self.stdout, self.stderr)
    }
}

/// Runs a prepared command to its end, in the C locale with UTF-8 and UTC.
#[track_caller]
pub fn output(command: &mut Command) -> Out {
    use std::os::unix::process::ExitStatusExt;
    command.stdin(Stdio::null()).env("LC_ALL", "C.UTF-8").env("TZ", "UTC0").env("MTOOLS_SKIP_CHECK", "1");
    let line = format!("{command:?}");
    let got = command.output().unwrap_or_else(|e| panic!("{line}: {e}"));
    let code = got.status.code().unwrap_or_else(|| 128 + got.status.signal().unwrap_or(0));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Out { line, code, stdout: text(&got.stdout), stderr: text(&got.stderr) }
}

/// Runs a program that has to succeed, and gives its standard output.
#[track_caller]
pub fn ok<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> String {
    output(Command::new(program).args(args)).exits(0).stdout
}

/// Runs the program under test; whatever it does, it must not panic, nor be killed.
#[track_caller]
pub fn unimage<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Out {
    let out = output(Command::new(cargo_bin("unimage")).args(args));
    assert!(!out.stderr.contains("panicked") && out.code < 128, "a panic or a signal: {out}");
    out
}

/// A folder of this test alone, removed at its end.
pub fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("cli-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// An image file with a bare NTFS, filled through `ntfs-3g`.
pub fn ntfs(image: &Path, len: u64, fill: impl FnOnce(&Path)) {
    File::create(image).unwrap().set_len(len).unwrap();
    ok("mkntfs", ["-F", "-Q", "-q", "-c", "4096", "-s", "512", "-p", "0", "-L", "GUEST", image.to_str().unwrap()]);
    let at = scratch();
    // In the foreground: when the process has ended, everything is in the file.
    let child = Command::new("ntfs-3g")
        .args(["-o", "rw,no_detach,streams_interface=windows,noatime"])
        .args([image, at.path()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut mount = Mount { child, at };
    let until = Instant::now() + Duration::from_secs(60);
    while !mount.is_there() {
        assert!(Instant::now() < until && mount.child.try_wait().unwrap().is_none(), "ntfs-3g mounted nothing");
        std::thread::sleep(Duration::from_millis(10));
    }
    fill(mount.at.path());
}

struct Mount {
    child: std::process::Child,
    at: tempfile::TempDir,
}

impl Mount {
    fn is_there(&self) -> bool {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        mounts.lines().any(|l| l.split(' ').nth(1) == self.at.path().to_str())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        for _ in 0..200 {
            let gone = Command::new("umount").arg(self.at.path()).output().is_ok_and(|o| o.status.success());
            if gone || !self.is_there() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.child.wait();
    }
}

/// Bytes that are different at each place and for each seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut out: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| next().to_le_bytes()).collect();
    out.truncate(len);
    out
}

/// A GPT with one partition from 1 MiB to the end.
pub fn partitioned(path: &Path, len: u64) {
    File::create(path).unwrap().set_len(len).unwrap();
    let mut sfdisk = Command::new("sfdisk").arg("--quiet").arg(path).stdin(Stdio::piped()).spawn().unwrap();
    sfdisk.stdin.take().unwrap().write_all(b"label: gpt\nstart=2048\n").unwrap();
    assert!(sfdisk.wait().unwrap().success(), "sfdisk");
}

/// A small FAT16 with an older file and, as `disk.raw`, an NTFS image.
pub struct Host {
    pub dir: tempfile::TempDir,
    pub file: PathBuf,
    guest: Vec<u8>,
    before: Vec<u8>,
    /// Bytes before the data area: boot sector, both FATs, the root directory.
    tables: usize,
}

impl Host {
    pub fn new() -> Self {
        let dir = scratch();
        let image = dir.path().join("image");
        ntfs(&image, 3 << 20, |at| {
            fs::create_dir(at.join("sub folder")).unwrap();
            for i in 0..8 {
                fs::write(at.join(format!("sub folder/file number {i}.txt")), noise(10 + i, 1700 * i as usize))
                    .unwrap();
            }
            fs::write(at.join("top.bin"), noise(20, 30_000)).unwrap();
            fs::write(at.join("top.bin:alt"), noise(21, 2000)).unwrap();
            fs::write(at.join("small"), b"resident").unwrap();
        });
        let file = dir.path().join("host.raw");
        let name = file.to_str().unwrap();
        File::create(&file).unwrap().set_len(8 << 20).unwrap();
        ok("mkfs.fat", ["-F", "16", "-s", "1", name]);
        let older = dir.path().join("older");
        fs::write(&older, noise(30, 10_000)).unwrap();
        ok("mcopy", ["-i", name, older.to_str().unwrap(), "::/Older file.bin"]);
        ok("mcopy", ["-i", name, image.to_str().unwrap(), "::/disk.raw"]);
        let said = ok("fsck.fat", ["-n", "-v", name]);
        let start = said.lines().find_map(|l| l.trim().strip_prefix("Data area starts at byte ")).unwrap();
        let tables = start.split(' ').next().unwrap().parse().unwrap();
        Self { guest: fs::read(&image).unwrap(), before: fs::read(&file).unwrap(), dir, file, tables }
    }
    pub fn name(&self) -> &str {
        self.file.to_str().unwrap()
    }
    /// The address of the image.
    pub fn image(&self) -> String {
        format!("{}//disk.raw", self.name())
    }
    pub fn journal(&self) -> PathBuf {
        self.dir.path().join("journal")
    }
    /// Whether no byte of it was written.
    pub fn is_untouched(&self) -> bool {
        fs::read(&self.file).unwrap() == self.before
    }
    /// Whether its tables are as they were, and the image is there with all its bytes.
    pub fn is_as_before(&self) -> bool {
        let back = self.dir.path().join("back");
        ok("mcopy", ["-n", "-o", "-i", self.name(), "::/disk.raw", back.to_str().unwrap()]);
        fs::read(&self.file).unwrap()[..self.tables] == self.before[..self.tables]
            && fs::read(&back).unwrap() == self.guest
    }
    pub fn reset(&self) {
        fs::write(&self.file, &self.before).unwrap();
        let _ = fs::remove_file(self.journal());
    }
}

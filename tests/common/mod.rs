//! What the end-to-end tests share: running programs, mounts and loop devices that go away by themselves, trees of
//! checksums, and the judgement of foreign checkers.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod fat;
pub mod guest;
pub mod host;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, UNIX_EPOCH};

use sha2::{Digest, Sha256};

/// What a program did.
#[derive(Debug, Clone)]
pub struct Out {
    /// The command line, for messages.
    pub line: String,
    /// Exit code; 128 + signal when it was killed.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
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
        let cut = |s: &str| s.chars().take(1500).collect::<String>();
        write!(
            f,
            "{}\nexit {}\n--- stdout\n{}\n--- stderr\n{}",
            self.line,
            self.code,
            cut(&self.stdout),
            cut(&self.stderr)
        )
    }
}

/// Runs a program to its end, in the C locale with UTF-8 and UTC, without standard input.
#[track_caller]
pub fn run<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: impl IntoIterator<Item = S>) -> Out {
    let mut command = Command::new(program);
    command.args(args);
    output(&mut command)
}

/// Runs a prepared command to its end.
#[track_caller]
pub fn output(command: &mut Command) -> Out {
    command.stdin(Stdio::null()).env("LC_ALL", "C.UTF-8").env("TZ", "UTC0").env("MTOOLS_SKIP_CHECK", "1");
    let line = format!("{command:?}");
    let got = command.output().unwrap_or_else(|e| panic!("{line}: {e}; tests/run.sh installs what is needed"));
    use std::os::unix::process::ExitStatusExt;
    let code = got.status.code().unwrap_or_else(|| 128 + got.status.signal().unwrap_or(0));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Out { line, code, stdout: text(&got.stdout), stderr: text(&got.stderr) }
}

/// Runs a program that has to succeed, and gives its standard output.
#[track_caller]
pub fn ok<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: impl IntoIterator<Item = S>) -> String {
    run(program, args).exits(0).stdout
}

/// The arguments of a command, of several string-like types.
#[macro_export]
macro_rules! args {
    ($($a:expr),* $(,)?) => { [$(std::ffi::OsString::from(&$a)),*] };
}

/// The program under test.
pub const UNIMAGE: &str = env!("CARGO_BIN_EXE_unimage");

/// Runs the program under test; whatever it does, it must not panic, nor be killed.
#[track_caller]
pub fn unimage<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Out {
    let out = run(UNIMAGE, args);
    assert!(!out.stderr.contains("panicked") && out.code < 128, "a panic or a signal: {out}");
    out
}

/// A folder of this test alone, on a real disk, removed at its end.
pub fn scratch() -> tempfile::TempDir {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR"));
    fs::create_dir_all(root).unwrap();
    tempfile::Builder::new().prefix("t-").tempdir_in(root).unwrap()
}

/// Whether the long campaigns were asked for (`tests/run.sh --long`).
pub fn long() -> bool {
    std::env::var_os("UNIMAGE_LONG").is_some_and(|v| v == "1")
}

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
        command.args(["-o", options]).arg(what).arg(&dir);
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

/// SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

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

/// Everything that `fsck.fat -n -v` says about a volume that is not its banner, its dump of the boot sector or its
/// summary; also its exit code when that is not 0. Empty for a volume without fault.
#[track_caller]
pub fn fsck_fat(file: &Path, offset: u64, len: u64) -> Vec<String> {
    let out = if offset == 0 {
        run("fsck.fat", args!["-n", "-v", *file.as_os_str()])
    } else {
        let on = Loop::attach(file, offset, len, true);
        run("fsck.fat", args!["-n", "-v", *on.device.as_os_str()])
    };
    let mut extra = unexpected_of_fsck(&out.stdout);
    extra.extend(out.stderr.lines().map(|l| format!("stderr: {l}")));
    if out.code != 0 {
        extra.push(format!("exit {}", out.code));
    }
    extra
}

/// The lines that a silent `fsck.fat -n -v` would not print. Of each line that it may print there is exactly one.
pub fn unexpected_of_fsck(stdout: &str) -> Vec<String> {
    let number = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let expected: &[&dyn Fn(&str) -> bool] = &[
        &|l| l.starts_with("fsck.fat 4."),
        &|l| l == "Checking we can access the last sector of the filesystem",
        &|l| l == "Boot sector contents:",
        &|l| l.starts_with("System ID \"") && l.ends_with('"'),
        &|l| l.starts_with("Media byte 0x") && (l.ends_with("(hard disk)") || l.contains("floppy")),
        &|l| l.strip_suffix(" bytes per logical sector").is_some_and(number),
        &|l| l.strip_suffix(" bytes per cluster").is_some_and(number),
        &|l| l.strip_suffix(" reserved sectors").or(l.strip_suffix(" reserved sector")).is_some_and(number),
        &|l| l.starts_with("First FAT starts at byte "),
        &|l| l.contains(" FATs, ") && l.ends_with(" bit entries"),
        &|l| l.contains(" bytes per FAT (= ") && (l.ends_with(" sectors)") || l.ends_with(" sector)")),
        &|l| l.starts_with("Root directory start"),
        &|l| l.starts_with("Data area starts at byte "),
        &|l| l.contains(" data clusters (") && l.ends_with(" bytes)"),
        &|l| l.contains(" sectors/track, ") && l.ends_with(" heads"),
        &|l| l.strip_suffix(" hidden sectors").is_some_and(number),
        &|l| l.strip_suffix(" sectors total").is_some_and(number),
        &|l| l == "Checking for unused clusters.",
        &|l| l == "Checking free cluster summary.",
        &|l| l.ends_with(" clusters") && l.contains(" files, ") && l.contains('/'),
    ];
    let mut left: Vec<_> = expected.iter().collect();
    let mut extra = Vec::new();
    // FAT12 and FAT16 have a further line, for the root directory's size.
    for line in stdout.lines().map(str::trim).filter(|l| !l.is_empty()) {
        if line.ends_with(" root directory entries") {
            continue;
        }
        match left.iter().position(|e| e(line)) {
            Some(i) => drop(left.remove(i)),
            None => extra.push(line.to_owned()),
        }
    }
    extra
}

/// A deterministic stream of bytes: xorshift64*, so that no two files of a corpus are alike.
pub struct Noise(u64);

impl Noise {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }
    /// The next 64 bits.
    pub fn word(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        (self.word() >> 11) % n
    }
    /// `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut all = Vec::with_capacity(len + 8);
        while all.len() < len {
            all.extend(self.word().to_le_bytes());
        }
        all.truncate(len);
        all
    }
    /// `len` bytes that compress well.
    pub fn text(&mut self, len: usize) -> Vec<u8> {
        let mut all = Vec::with_capacity(len + 32);
        while all.len() < len {
            let word = ["responder ", "volume ", "cluster ", "journal ", "extent ", "\n"][self.below(6) as usize];
            all.extend(word.as_bytes());
        }
        all.truncate(len);
        all
    }
}

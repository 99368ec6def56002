//! A relink against copies of the same files onto the same kind of medium.

use std::any::Any;
use std::fs;
use std::path::{Path, PathBuf};

use crate::common::guest::{self, Guest};
use crate::common::host::json_lines;
use crate::common::{self, Mount, UNIMAGE, ok};
use crate::limit::Limit;
use crate::measure::{self, Cost, words};

/// A host that holds the image of a guest, and the media of its kind to which the guest's files are copied for
/// comparison. One file beside this one for each kind of host.
pub trait Target {
    /// The host, in words.
    fn what(&self) -> String;
    /// The image on it: the argument of `relink`.
    fn image(&self) -> String;
    /// Further arguments of `relink`.
    fn flags(&self) -> &'static [&'static str] {
        &[]
    }
    /// Where the journal is made; not there after `reset`.
    fn journal(&self) -> PathBuf;
    /// A folder on the disk that the host's file is on.
    fn dir(&self) -> &Path;
    /// Puts the host back to before the relink.
    fn reset(&self);
    /// The kinds of copies that `copy` knows, by their rows' names.
    fn copies(&self) -> Vec<&'static str>;
    /// Makes a fresh medium for a copy of `from` (files and folders).
    fn copy(&self, what: &str, from: &[String]) -> Copy;
}

/// A copy that is ready to be started.
pub struct Copy {
    /// The command.
    pub command: Vec<String>,
    /// The mount of the medium that it writes to, if any.
    pub mount: Option<Box<dyn Any>>,
    /// The file that is the medium: who else writes to it during the copy is counted too.
    pub medium: Option<PathBuf>,
}

/// Files as a driver shows them.
pub struct Source {
    /// Where.
    pub dir: PathBuf,
    /// The mount, held for as long as it is wanted.
    pub _mount: Box<dyn Any>,
}

/// A host of 8 GiB that a driver has filled: the image is `vm/disk.img` in it. Brought back by `undo` between rounds.
pub struct Filled {
    dir: tempfile::TempDir,
    what: &'static str,
    copies: &'static [&'static str],
    copy: CopyTo,
}

/// Makes a fresh medium in a folder for the copy with a row's name.
pub type CopyTo = Box<dyn Fn(&Path, &str, &[String]) -> Copy>;

impl Filled {
    /// Made by a command, and written through a mount.
    pub fn new(image: &Path, mkfs: &[&str], mount: impl FnOnce(&Path) -> Source, what: &'static str) -> Self {
        let dir = common::scratch();
        let host = dir.path().join("host.img");
        fs::rename(fresh_medium(dir.path(), 8 << 30, mkfs), &host).unwrap();
        let mount = mount(&host);
        fs::create_dir(mount.dir.join("vm")).unwrap();
        guest::copy_sparse(image, &mount.dir.join("vm/disk.img"));
        drop(mount);
        Self { dir, what, copies: &[], copy: Box::new(|_, what, _| panic!("{what}")) }
    }
    /// With these copies.
    pub fn beside(self, copies: &'static [&'static str], copy: CopyTo) -> Self {
        Self { copies, copy, ..self }
    }
    fn host(&self) -> PathBuf {
        self.dir.path().join("host.img")
    }
}

impl Target for Filled {
    fn what(&self) -> String {
        self.what.into()
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
        self.copies.to_vec()
    }
    fn copy(&self, what: &str, from: &[String]) -> Copy {
        (self.copy)(self.dir(), what, from)
    }
}

/// An NTFS guest in a partition, by `ntfs-3g`.
pub fn ntfs_source(guest: &Guest) -> Source {
    let len = fs::metadata(&guest.image).unwrap().len() - guest::PART - (1 << 20);
    let mount = Mount::ntfs(&guest.image, guest::PART, len, "ro,streams_interface=none");
    Source { dir: mount.dir.clone(), _mount: Box::new(mount) }
}

/// Seconds after which a copy is stopped.
fn stop() -> String {
    std::env::var("UNIMAGE_BENCH_STOP").unwrap_or_else(|_| "300".into())
}

/// Prints the relink's rows, and one for each copy.
pub fn run(title: &str, guest: &Guest, target: &dyn Target, source: fn(&Guest) -> Source) {
    let bytes: u64 = guest.files.values().map(|s| s.size).sum();
    let files = guest.files.len() as u64;
    println!("\n## {title}: {files} files, {} MB, {}", bytes / 1_000_000, target.what());
    let mut dry = words(&[UNIMAGE, "relink", &target.image(), "--into", "/out"]);
    dry.extend(words(target.flags()));
    let mut commit = dry.clone();
    commit.extend(words(&["--journal", &target.journal().display().to_string(), "--commit"]));
    let mut best = Cost { seconds: f64::MAX, ..Cost::default() };
    for _ in 0..5 {
        target.reset();
        ok("sync", [""; 0]);
        let got = measure::run(&commit, true);
        assert!((0..=1).contains(&got.code), "exit {}: {}", got.code, got.complaint);
        if got.seconds < best.seconds {
            best = got;
        }
    }
    target.reset();
    // What it says of itself, of a run that also prints a line for every file.
    commit.push("--json".into());
    let told = measure::run(&commit, true);
    target.reset();
    let plan = measure::in_turns(3, &[dry], || ()).remove(0);
    let summary = json_lines(&told.stdout).2;
    let number = |field: &str| summary[field].as_u64().unwrap_or_else(|| panic!("{field}: {summary}"));
    let (copied, zeroed) = (number("written_copied_bytes"), number("written_zeroed_bytes"));
    let rest = best.written.saturating_sub(copied + zeroed);
    println!(
        "relink                     {:8.2} s   processor {:.2} s   peak memory {} MiB",
        best.seconds,
        best.cpu,
        best.memory / 1024
    );
    println!("  of it the plan           {:8.2} s   processor {:.2} s", plan.seconds, plan.cpu);
    println!("  written, by the kernel   {:8} B", best.written);
    println!("  less copied and zeroed   {:8} B a file ({rest} B)", rest / files.max(1));
    println!(
        "  by its own account       {} B metadata, {} B journal, {copied} B copied in whole clusters, {zeroed} B zeroed",
        number("written_metadata_bytes"),
        number("written_journal_bytes")
    );
    let seconds = |field: &str| summary[field].as_f64().unwrap_or_else(|| panic!("{field}: {summary}"));
    let (copying, zeroing) = (seconds("copied_seconds"), seconds("zeroed_seconds"));
    for (what, time, written, of) in [
        ("linked, with the plan", told.seconds - copying - zeroing, rest, &summary["linked"]),
        ("copied", copying, copied, &summary["copied"]),
        ("slack zeroed", zeroing, zeroed, &serde_json::Value::Null),
    ] {
        println!("  part: {what:<23}{time:6.3} s   written {written} B   {of}");
    }
    if !summary["reuse"].is_null() {
        println!("  in units of the image    {}", summary["reuse"]);
    }
    let dd = measure::in_turns(5, &[zeros(target, best.written)], || ()).remove(0);
    println!(
        "dd, as many bytes, fsync   {:8.2} s   the relink takes {:.1} times as long",
        dd.seconds,
        best.seconds / dd.seconds
    );
    copies(&source(guest), bytes, target, best.seconds);
}

/// `dd` of as many bytes onto the host's disk, with an fsync.
fn zeros(target: &dyn Target, bytes: u64) -> Vec<String> {
    let (to, count) = (format!("of={}", target.dir().join("zeros").display()), format!("count={bytes}"));
    words(&["dd", "if=/dev/zero", &to, "bs=1M", "iflag=count_bytes", &count, "conv=fsync", "status=none"])
}

/// The relink and `dd` in turns on a disk that is held back.
pub fn held_back(target: &dyn Target) {
    let commit = words(&[UNIMAGE, "relink", &target.image(), "--into", "/out", "--commit", "--journal"]);
    let commit = [commit, vec![target.journal().display().to_string()]].concat();
    for rate in [1000, 500, 200] {
        let Some(limit) = Limit::new(target.dir(), rate * 1_000_000) else {
            println!("a disk held back: not to be had here");
            return;
        };
        let (mut relink, mut dd) = (f64::MAX, f64::MAX);
        for _ in 0..3 {
            target.reset();
            ok("sync", [""; 0]);
            let got = measure::run(&limit.on(&commit), false);
            assert!((0..=1).contains(&got.code), "exit {}: {}", got.code, got.complaint);
            relink = relink.min(got.seconds);
            let _ = std::fs::remove_file(target.dir().join("zeros"));
            ok("sync", [""; 0]);
            let got = measure::run(&limit.on(&zeros(target, got.written)), false);
            assert_eq!(got.code, 0, "{}", got.complaint);
            dd = dd.min(got.seconds);
        }
        target.reset();
        println!(
            "disk held to {rate:>4} MB/s: relink {relink:.2} s   dd {dd:.2} s   the relink takes {:.1} times as long",
            relink / dd
        );
    }
}

/// Copies from a mount.
fn copies(source: &Source, bytes: u64, target: &dyn Target, relink: f64) {
    let mut from: Vec<String> =
        fs::read_dir(&source.dir).unwrap().map(|e| e.unwrap().path().display().to_string()).collect();
    from.sort();
    for what in target.copies() {
        let Copy { command, mount, medium } = target.copy(what, &from);
        let server = medium.as_deref().and_then(writer);
        let before = server.map_or(0, measure::written_by);
        let mut timed = words(&["sh", "-c", "timeout \"$0\" \"$@\"; code=$?; sync; exit $code", &stop()]);
        timed.extend(command);
        let got = measure::run(&timed, false);
        let behind = server.map_or(0, measure::written_by) - before;
        drop(mount);
        let more = if got.code == 124 { "more than " } else { "" };
        // A copy that failed is no measurement: its complaint stands beside it.
        let failed = if matches!(got.code, 0 | 124) { String::new() } else { format!("   FAILED: {}", got.complaint) };
        let written = if server.is_some() { behind } else { got.written };
        println!(
            "{what:<26} {more}{:8.2} s   {more}{:.0} times the relink   written {written} B of {bytes} B{failed}",
            got.seconds,
            got.seconds / relink
        );
    }
}

/// The process that has this file open.
fn writer(file: &Path) -> Option<u32> {
    let file = file.canonicalize().ok()?;
    let all = fs::read_dir("/proc").ok()?.flatten();
    let pids = all.filter_map(|p| p.file_name().to_str()?.parse::<u32>().ok());
    let mut others = pids.filter(|pid| *pid != std::process::id());
    others.find(|pid| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.into_iter().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == file))
    })
}

/// An empty folder for a copy to the host's disk.
pub fn fresh_folder(dir: &Path) -> String {
    let to = dir.join("copy");
    let _ = fs::remove_dir_all(&to);
    fs::create_dir(&to).unwrap();
    to.display().to_string()
}

/// `cp -r` of all of `from`.
pub fn cp(from: &[String], to: &str) -> Vec<String> {
    let mut command = words(&["cp", "-r", "--sparse=never", "--preserve=timestamps"]);
    command.extend(from.iter().cloned());
    command.push(to.to_owned());
    command
}

/// `cp -a` of all of `from`, with every byte.
pub fn cp_all(from: &[String], to: &str) -> Vec<String> {
    let mut command = cp(from, to);
    command.splice(1..4, words(&["-a", "--sparse=never"]));
    command
}

/// A sparse file of `len` bytes that was not there, made into a medium by a command.
pub fn fresh_medium(dir: &Path, len: u64, mkfs: &[&str]) -> PathBuf {
    let medium = dir.join("medium.img");
    let _ = fs::remove_file(&medium);
    fs::File::create(&medium).unwrap().set_len(len).unwrap();
    let mut words = mkfs.to_vec();
    let name = medium.display().to_string();
    words.push(&name);
    common::ok(words[0], &words[1..]);
    medium
}

//! One run of a command, seen from outside.

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use crate::common;

/// What a run cost.
#[derive(Clone, Debug, Default)]
pub struct Cost {
    /// Seconds on the clock.
    pub seconds: f64,
    /// Seconds of processors, of the program and of the kernel for it.
    pub cpu: f64,
    /// Peak memory, KiB.
    pub memory: u64,
    /// Bytes handed to write calls, other than those to standard output. No `strace` is in the way: the kernel counts.
    pub written: u64,
    /// The exit code; -1 for a signal.
    pub code: i32,
    /// Standard output, where it was asked for.
    pub stdout: String,
    /// The first line of standard error.
    pub complaint: String,
}

/// Runs a command to its end. Standard output goes to a file, and is read back where `keep`.
pub fn run(command: &[String], keep: bool) -> Cost {
    let log = common::scratch();
    let file = |name: &str| log.path().join(name);
    let start = Instant::now();
    let mut child = Command::new("/usr/bin/time")
        .args(["-q", "-f", "%U %S %M", "-o"])
        .arg(file("time"))
        .args(command)
        .env("LC_ALL", "C.UTF-8")
        .env("MTOOLS_SKIP_CHECK", "1")
        .stdin(Stdio::null())
        .stdout(File::create(file("out")).unwrap())
        .stderr(File::create(file("err")).unwrap())
        .spawn()
        .unwrap_or_else(|e| panic!("/usr/bin/time: {e}; tests/run.sh installs what is needed"));
    // The counters of a process and of those that it waited for can be read until somebody waits for it.
    let pid = Pid::from_child(&child);
    waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    let written = written_by(child.id());
    let code = child.wait().unwrap().code().unwrap_or(-1);
    let report = fs::read_to_string(file("time")).unwrap();
    let mut words = report.split_whitespace();
    let mut word = || words.next().unwrap_or("0");
    let (user, system): (f64, f64) = (word().parse().unwrap(), word().parse().unwrap());
    let memory = word().parse().unwrap();
    let out = fs::metadata(file("out")).unwrap().len();
    let err = fs::read_to_string(file("err")).unwrap_or_default();
    Cost {
        seconds,
        cpu: user + system,
        memory,
        written: written.saturating_sub(out + err.len() as u64 + report.len() as u64),
        code,
        stdout: if keep { fs::read_to_string(file("out")).unwrap() } else { String::new() },
        complaint: err.lines().next().unwrap_or_default().to_owned(),
    }
}

/// Bytes that a process, and the children that it waited for, handed to write calls.
pub fn written_by(pid: u32) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    io.lines().find_map(|l| l.strip_prefix("wchar: ")).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// The best of several runs of each command, made in turns so that a busy machine is busy for all of them. Of
/// processor time, whose clock is coarse, the mean.
pub fn in_turns(rounds: u32, commands: &[Vec<String>], before: impl Fn()) -> Vec<Cost> {
    let mut best: Vec<Cost> = vec![Cost { seconds: f64::MAX, ..Cost::default() }; commands.len()];
    for _ in 0..rounds {
        for (best, command) in best.iter_mut().zip(commands) {
            before();
            let got = run(command, false);
            assert_eq!(got.code, 0, "{command:?}: {}", got.complaint);
            let cpu = best.cpu + got.cpu / f64::from(rounds);
            if got.seconds < best.seconds {
                *best = got;
            }
            best.cpu = cpu;
        }
    }
    best
}

/// Takes everything out of the page cache.
pub fn drop_caches() {
    common::ok("sync", [""; 0]);
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

/// Words as a command.
pub fn words(all: &[&str]) -> Vec<String> {
    all.iter().map(|s| (*s).to_owned()).collect()
}

//! Running programs, foreign ones and the one under test.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

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
    both(command).0
}

fn both(command: &mut Command) -> (Out, Vec<u8>) {
    command.stdin(Stdio::null()).env("LC_ALL", "C.UTF-8").env("TZ", "UTC0").env("MTOOLS_SKIP_CHECK", "1");
    let line = format!("{command:?}");
    let got = command.output().unwrap_or_else(|e| panic!("{line}: {e}; tests/run.sh installs what is needed"));
    use std::os::unix::process::ExitStatusExt;
    let code = got.status.code().unwrap_or_else(|| 128 + got.status.signal().unwrap_or(0));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (Out { line, code, stdout: text(&got.stdout), stderr: text(&got.stderr) }, got.stdout)
}

/// Runs a program that has to succeed, and gives its standard output.
#[track_caller]
pub fn ok<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: impl IntoIterator<Item = S>) -> String {
    run(program, args).exits(0).stdout
}

/// Runs a program that has to succeed, and gives the bytes of its standard output.
#[track_caller]
pub fn ok_bytes(program: &str, args: &[&str]) -> Vec<u8> {
    let (out, bytes) = both(Command::new(program).args(args));
    out.exits(0);
    bytes
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

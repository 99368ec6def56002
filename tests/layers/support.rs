//! What these tests share: foreign programs that read their standard input, and bytes in memory as a source.

#[expect(dead_code, reason = "a part of it is used here")]
#[path = "../common/memory.rs"]
mod memory;
#[expect(dead_code, reason = "a part of it is used here")]
#[path = "../common/noise.rs"]
mod noise;

use std::io::Write;
use std::process::{Command, Stdio};

pub use memory::{bytes, failing};
pub use noise::Noise as Random;

/// Runs a program with `input` on its standard input; gives its standard output. It has to succeed.
pub fn run(program: &str, args: &[&str], input: &str) -> String {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Bytes that differ from place to place.
pub fn pattern(len: usize) -> Vec<u8> {
    noise::noise(len as u64, len)
}

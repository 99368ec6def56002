//! What these tests share: foreign programs, and bytes in memory as a source.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;

use unimage::error::{Error, Result};
use unimage::extent::{LayerId, Offset, ReadAt, Space};

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
    let mut random = Random(len as u64);
    (0..len.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).take(len).collect()
}

/// A small generator with a fixed seed (xorshift64*).
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Bytes in memory. Reading any of `bad` fails.
pub struct Memory {
    id: LayerId,
    bytes: Vec<u8>,
    bad: std::ops::Range<u64>,
}

impl<S: Space> ReadAt<S> for Memory {
    fn id(&self) -> LayerId {
        self.id
    }
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn read_at(&self, at: Offset<S>, buf: &mut [u8]) -> Result<()> {
        let end = at.checked_add(buf.len() as u64).map(Offset::get);
        let Some(end) = end.filter(|end| *end <= self.bytes.len() as u64) else {
            return Err(Error::past_end(at, buf.len() as u64, self.bytes.len() as u64));
        };
        if at.get() < self.bad.end && self.bad.start < end && !buf.is_empty() {
            return Err(Error::io(
                format!("reading {} bytes at {at}", buf.len()),
                std::io::Error::from_raw_os_error(5),
            ));
        }
        buf.copy_from_slice(&self.bytes[at.get() as usize..end as usize]);
        Ok(())
    }
}

/// Bytes as a source.
pub fn bytes<S: Space>(bytes: Vec<u8>) -> Arc<dyn ReadAt<S>> {
    failing(bytes, 0..0)
}

/// Bytes as a source that fails with an I/O error wherever a read touches `bad`.
pub fn failing<S: Space>(bytes: Vec<u8>, bad: std::ops::Range<u64>) -> Arc<dyn ReadAt<S>> {
    Arc::new(Memory { id: LayerId::fresh(), bytes, bad })
}

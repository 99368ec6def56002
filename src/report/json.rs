//! One JSON line at a time, appended to a buffer: fields in the order in which they are given, no value in between.
//! The rows and their fields are described in `docs/schemas.md`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use serde::Serialize;

use super::{path, time};
use crate::fs::Timestamp;

/// A JSON object that is being appended to a buffer. [`end`](Self::end) closes it and the line.
#[derive(Debug)]
pub struct Row<'b> {
    out: &'b mut Vec<u8>,
}

impl<'b> Row<'b> {
    /// Begins a line `{"type":"kind"`. `kind` is a word that needs no escape.
    #[inline]
    pub fn new(out: &'b mut Vec<u8>, kind: &'static str) -> Self {
        out.extend_from_slice(b"{\"type\":\"");
        out.extend_from_slice(kind.as_bytes());
        out.push(b'"');
        Self { out }
    }
    #[inline]
    fn key(&mut self, key: &'static str) {
        self.out.extend_from_slice(b",\"");
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
    }
    /// A field of any value.
    pub fn value(&mut self, key: &'static str, value: &(impl Serialize + ?Sized)) -> &mut Self {
        self.key(key);
        let before = self.out.len();
        // A buffer takes every byte, and no value here has keys that are no strings; but the line must stay JSON.
        if serde_json::to_writer(&mut *self.out, value).is_err() {
            self.out.truncate(before);
            self.out.extend_from_slice(b"null");
        }
        self
    }
    /// A field of any value, left out where there is none.
    pub fn some(&mut self, key: &'static str, value: Option<impl Serialize>) -> &mut Self {
        match value {
            Some(value) => self.value(key, &value),
            None => self,
        }
    }
    /// A field of one of this program's own words, which need no escape.
    #[inline]
    pub fn word(&mut self, key: &'static str, word: &'static str) -> &mut Self {
        self.key(key);
        self.out.push(b'"');
        self.out.extend_from_slice(word.as_bytes());
        self.out.push(b'"');
        self
    }
    /// A time, left out where there is none.
    pub fn time(&mut self, key: &'static str, time: Option<Timestamp>) -> &mut Self {
        if let Some(time) = time {
            self.key(key);
            self.out.push(b'"');
            time::rfc3339(self.out, time);
            self.out.push(b'"');
        }
        self
    }
    /// The same path twice: `key` escaped for people, and, only where that differs from the bytes, `key_raw` in base64.
    pub fn path(&mut self, key: &'static str, key_raw: &'static str, raw: &[u8]) -> &mut Self {
        let shown = path::escape(raw);
        self.value(key, &*shown);
        if shown.as_bytes() != raw {
            self.value(key_raw, &base64(raw));
        }
        self
    }
    /// A number.
    #[inline]
    pub fn number(&mut self, key: &'static str, value: u64) -> &mut Self {
        self.key(key);
        number(self.out, value);
        self
    }
    /// A list of numbers.
    #[inline]
    pub fn numbers(&mut self, key: &'static str, values: &[u64]) -> &mut Self {
        self.key(key);
        self.out.push(b'[');
        for (n, value) in values.iter().enumerate() {
            if n > 0 {
                self.out.push(b',');
            }
            number(self.out, *value);
        }
        self.out.push(b']');
        self
    }
    /// Closes the object and the line.
    #[inline]
    pub fn end(&mut self) {
        self.out.extend_from_slice(b"}\n");
    }
}

/// Bytes in base64 (RFC 4648, padded).
pub fn base64(raw: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(raw)
}

/// Appends a number in decimal.
#[inline]
pub fn number(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// The first line: which rows follow, in which version, made by which program, on which command line.
pub fn header(out: &mut Vec<u8>, schema: &'static str, command: &[impl AsRef<OsStr>]) {
    let command: Vec<_> = command.iter().map(|a| path::escape(a.as_ref().as_bytes())).collect();
    Row::new(out, "header")
        .word("schema", schema)
        .word("version", env!("CARGO_PKG_VERSION"))
        .value("command", &command)
        .end();
}

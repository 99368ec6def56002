//! Reading fields out of a structure's bytes without a panic, and naming the structure when they are not there.

use crate::error::{Error, Result};
use crate::extent::{Offset, Space};

/// The bytes of one on-disk structure, little-endian unless a name says otherwise. Every access is checked; an error
/// names the structure and the place of the field.
#[derive(Debug)]
pub struct Fields<'a, S: Space> {
    bytes: &'a [u8],
    name: &'static str,
    at: Offset<S>,
}

impl<S: Space> Clone for Fields<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Space> Copy for Fields<'_, S> {}

macro_rules! scalar {
    ($(#[$doc:meta] $name:ident: $ty:ty = $from:ident;)*) => { $(
        #[$doc]
        ///
        /// # Errors
        /// [`Error::Corrupt`] where the structure ends before.
        #[inline]
        pub fn $name(&self, at: usize) -> Result<$ty> {
            self.array(at).map(<$ty>::$from)
        }
    )* };
}

impl<'a, S: Space> Fields<'a, S> {
    /// `bytes` of the structure called `name`, which lie at `at`.
    pub fn new(name: &'static str, at: Offset<S>, bytes: &'a [u8]) -> Self {
        Self { bytes, name, at }
    }
    /// All of its bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
    /// Where the structure begins.
    pub fn at(&self) -> Offset<S> {
        self.at
    }
    /// The error that this structure is not as `expected` at its byte `at`.
    pub fn wrong(&self, at: usize, expected: impl Into<String>) -> Error {
        Error::corrupt(self.name, self.at.saturating_add(at as u64), expected)
    }
    /// `len` bytes from `at` on.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where the structure ends before.
    #[inline]
    pub fn slice(&self, at: usize, len: usize) -> Result<&'a [u8]> {
        at.checked_add(len).and_then(|end| self.bytes.get(at..end)).ok_or_else(|| self.short(at, len))
    }
    #[cold]
    fn short(&self, at: usize, len: usize) -> Error {
        self.wrong(at, format!("{len} bytes, in a structure of {}", self.bytes.len()))
    }
    /// The part of the structure from `at` on, `len` bytes long, as a structure called `name`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where the structure ends before.
    #[inline]
    pub fn part(&self, name: &'static str, at: usize, len: usize) -> Result<Fields<'a, S>> {
        Ok(Fields { bytes: self.slice(at, len)?, name, at: self.at.saturating_add(at as u64) })
    }
    /// `N` bytes from `at` on.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where the structure ends before.
    #[inline]
    pub fn array<const N: usize>(&self, at: usize) -> Result<[u8; N]> {
        let there = self.bytes.get(at..).and_then(<[u8]>::first_chunk);
        there.copied().ok_or_else(|| self.short(at, N))
    }
    scalar! {
        /// The byte at `at`.
        u8: u8 = from_le_bytes;
        /// The 16-bit little-endian number at `at`.
        u16: u16 = from_le_bytes;
        /// The 32-bit little-endian number at `at`.
        u32: u32 = from_le_bytes;
        /// The 64-bit little-endian number at `at`.
        u64: u64 = from_le_bytes;
        /// The signed 64-bit little-endian number at `at`.
        i64: i64 = from_le_bytes;
        /// The 16-bit big-endian number at `at`.
        u16_be: u16 = from_be_bytes;
        /// The 32-bit big-endian number at `at`.
        u32_be: u32 = from_be_bytes;
        /// The 64-bit big-endian number at `at`.
        u64_be: u64 = from_be_bytes;
    }
}

/// Puts `value` at `at` of a structure that is being encoded.
///
/// Returns whether it fitted; encoders size their buffers first, so a false is a defect that their tests find.
#[must_use]
pub fn put(bytes: &mut [u8], at: usize, value: &[u8]) -> bool {
    match at.checked_add(value.len()).and_then(|end| bytes.get_mut(at..end)) {
        Some(room) => {
            room.copy_from_slice(value);
            true
        }
        None => false,
    }
}

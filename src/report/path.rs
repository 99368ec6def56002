//! Names and paths as text, reversibly: file systems have names that are no text.
//!
//! A byte is written `%XX` (two upper-case hexadecimal digits) where it is part of a sequence that is not valid UTF-8
//! (such as a lone surrogate in WTF-8), part of a control character (U+0000 to U+001F, U+007F to U+009F), of one that turns
//! the direction of writing (U+202A to U+202E, U+2066 to U+2069: by these, `gpj.exe` can be shown as `exe.jpg`), or a `%`
//! that two hexadecimal digits follow. Everything else stays as it is, so nearly all names are unchanged, and each text has
//! exactly one reading: [`unescape`] takes every `%` with two hexadecimal digits for a byte.

use std::borrow::Cow;
use std::fmt::Write;

/// A path of raw names with `/` between them as text.
pub fn escape(raw: &[u8]) -> Cow<'_, str> {
    escape_but(raw, |_| false)
}

/// One name as text; a `/` in it, which only a damaged or hostile image has, is escaped too.
pub fn escape_name(raw: &[u8]) -> Cow<'_, str> {
    escape_but(raw, |c| c == '/')
}

/// The bytes that [`escape`] or [`escape_name`] made `text` of; of other text, the bytes that it stands for.
pub fn unescape(text: &str) -> Cow<'_, [u8]> {
    if !text.contains('%') {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        match (first, hex_pair(after)) {
            (b'%', Some(byte)) => {
                out.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            _ => {
                out.push(*first);
                rest = after;
            }
        }
    }
    Cow::Owned(out)
}

fn escape_but(raw: &[u8], also: impl Fn(char) -> bool) -> Cow<'_, str> {
    // Nearly all names are plain: that is seen without looking at one character after the other.
    let plain = |b: u8| b.wrapping_sub(b' ') < 0x5F && b != b'%' && !also(char::from(b));
    if raw.iter().fold(true, |all, b| all & plain(*b))
        && let Ok(text) = std::str::from_utf8(raw)
    {
        return Cow::Borrowed(text);
    }
    let needs =
        |c: char, after: &[u8]| c.is_control() || turns(c) || also(c) || (c == '%' && hex_pair(after).is_some());
    if let Ok(text) = std::str::from_utf8(raw)
        && !text.char_indices().any(|(at, c)| {
            let after = raw.get(at.saturating_add(c.len_utf8())..).unwrap_or_default();
            needs(c, after)
        })
    {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(raw.len().saturating_add(16));
    let mut at = 0usize;
    for chunk in raw.utf8_chunks() {
        for c in chunk.valid().chars() {
            at = at.saturating_add(c.len_utf8());
            if needs(c, raw.get(at..).unwrap_or_default()) {
                push_hex(&mut out, c.encode_utf8(&mut [0; 4]).as_bytes());
            } else {
                out.push(c);
            }
        }
        push_hex(&mut out, chunk.invalid());
        at = at.saturating_add(chunk.invalid().len());
    }
    Cow::Owned(out)
}

/// Whether a character turns the direction of writing of what follows it.
fn turns(c: char) -> bool {
    matches!(c, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

fn push_hex(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // Writing to a string can't fail.
        let _ = write!(out, "%{byte:02X}");
    }
}

/// The byte that the first two characters stand for, where they are hexadecimal digits.
fn hex_pair(text: &[u8]) -> Option<u8> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let [high, low] = *text.first_chunk::<2>()?;
    Some(digit(high)? << 4 | digit(low)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_needs_no_escape_stays() {
        for name in ["plain", "100%", "50% off", "%zz", "a b", "\u{1F600}", "back\\slash", "grün/ß", ""] {
            assert_eq!(escape(name.as_bytes()), name);
            assert!(matches!(escape(name.as_bytes()), Cow::Borrowed(_)));
        }
    }

    #[test]
    fn the_rest_is_written_in_hex() {
        assert_eq!(escape(b"a\nb"), "a%0Ab");
        assert_eq!(escape(b"%41"), "%2541");
        assert_eq!(escape(b"\xED\xA0\x80.txt"), "%ED%A0%80.txt");
        assert_eq!(escape("\u{9b}2J".as_bytes()), "%C2%9B2J");
        assert_eq!(escape("\u{202E}gpj.exe".as_bytes()), "%E2%80%AEgpj.exe");
        assert_eq!(escape(b"%4\xff"), "%4%FF");
        assert_eq!(escape(b"a/b"), "a/b");
        assert_eq!(escape_name(b"a/b"), "a%2Fb");
    }

    proptest! {
        #[test]
        fn reversible(raw in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..40),
            proptest::collection::vec(proptest::sample::select(b"%4aF/\x80\xed\xa0\n".to_vec()), 0..12),
        ]) {
            let (path, name) = (escape(&raw), escape_name(&raw));
            prop_assert_eq!(unescape(&path).into_owned(), raw.clone());
            prop_assert_eq!(unescape(&name).into_owned(), raw.clone());
            prop_assert!(!path.chars().any(char::is_control));
            prop_assert!(!name.contains('/'));
        }
    }
}

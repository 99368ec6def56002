//! Pieces of tables for people.

use std::borrow::Cow;

use super::json::number;

/// Appends what `put` appends, and blanks behind it up to `width`, at least one.
pub fn left(out: &mut Vec<u8>, width: usize, put: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    put(out);
    let end = start.saturating_add(width).max(out.len().saturating_add(1));
    out.resize(end, b' ');
}

/// Appends what `put` appends, with blanks before it up to `width`.
pub fn right(out: &mut Vec<u8>, width: usize, put: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    put(out);
    let blanks = width.saturating_sub(out.len().saturating_sub(start));
    out.resize(out.len().saturating_add(blanks), b' ');
    if let Some(field) = out.get_mut(start..) {
        field.rotate_right(blanks);
    }
}

/// A sentence without control characters (names in it may come from an image): a line stays a line, and a terminal does
/// nothing but show it. Unlike a path's, this escape is not meant to be read back.
pub fn clean(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len().saturating_add(16));
    for c in text.chars() {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    Cow::Owned(out)
}

/// Bytes by the largest unit that they fill, rounded down to a tenth: `512 B`, `1.5 KiB`, `2.0 GiB`.
pub fn size(bytes: u64) -> String {
    let mut unit = 1u64;
    let mut name = "B";
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        if bytes.checked_div(unit).is_none_or(|n| n < 1024) {
            break;
        }
        unit = unit.saturating_mul(1024);
        name = next;
    }
    let whole = bytes.checked_div(unit).unwrap_or(0);
    if unit == 1 {
        return format!("{whole} B");
    }
    let rest = bytes.checked_rem(unit).unwrap_or(0);
    let tenth = u128::from(rest).saturating_mul(10).checked_div(unit.into()).unwrap_or(0);
    format!("{whole}.{tenth} {name}")
}

/// A count with a comma between thousands: `200,013`.
pub fn count(n: u64) -> String {
    let mut digits = Vec::new();
    number(&mut digits, n);
    let mut out = String::new();
    for (at, d) in digits.iter().enumerate() {
        if at > 0 && digits.len().saturating_sub(at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(char::from(*d));
    }
    out
}

/// A count and its noun: `1 file`, `2,000 files`.
pub fn counted(n: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(n), if n == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_down() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_048_575, "1023.9 KiB"),
            (2 << 30, "2.0 GiB"),
            (u64::MAX, "15.9 EiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!([count(0), count(999), count(1000), count(1_234_567)], ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(counted(1, "file", "files"), "1 file");
    }

    #[test]
    fn fields_are_filled_up_with_blanks() {
        let mut out = Vec::new();
        left(&mut out, 4, |o| o.extend_from_slice(b"ab"));
        right(&mut out, 4, |o| o.extend_from_slice(b"7"));
        right(&mut out, 2, |o| o.extend_from_slice(b"long"));
        assert_eq!(out, b"ab     7long");
    }
}

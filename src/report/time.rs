//! Times as RFC 3339 in UTC, with exactly the digits of a second that the file system keeps.
//!
//! A year beyond 9999 or before 0, which RFC 3339 has no form for (NTFS can hold 60056), is written with its sign, as
//! in ISO 8601's expanded form: `+60056-05-28T05:36:10.9551615Z`.

use crate::fs::Timestamp;

const DAY: i64 = 86_400;

/// Year, month (1 to 12) and day of the month of a day counted from 1970-01-01 in the proleptic Gregorian calendar.
fn civil(days: i64) -> (i64, u8, u8) {
    // Counted from 0000-03-01 in eras of 400 years (146,097 days), so that a leap day ends its year.
    let z = days.saturating_add(719_468);
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let leaps = (doe / 1_460).saturating_add(doe / 146_096).saturating_sub(doe / 36_524);
    let yoe = doe.saturating_sub(leaps) / 365;
    let before = yoe.saturating_mul(365).saturating_add(yoe / 4).saturating_sub(yoe / 100);
    let doy = doe.saturating_sub(before);
    let shifted = doy.saturating_mul(5).saturating_add(2) / 153;
    let day = doy.saturating_sub(shifted.saturating_mul(153).saturating_add(2) / 5).saturating_add(1);
    let month = if shifted < 10 { shifted.saturating_add(3) } else { shifted.saturating_sub(9) };
    let year = era.saturating_mul(400).saturating_add(yoe).saturating_add(i64::from(month <= 2));
    (year, u8::try_from(month).unwrap_or(1), u8::try_from(day).unwrap_or(1))
}

/// Appends `value` in `width` decimal digits, its low ones where it has more.
fn digits(out: &mut Vec<u8>, mut value: u64, width: usize) {
    let mut text = [b'0'; 20];
    for place in text.iter_mut().rev().take(width) {
        *place = b'0'.saturating_add(u8::try_from(value % 10).unwrap_or(0));
        value /= 10;
    }
    out.extend_from_slice(text.get(text.len().saturating_sub(width)..).unwrap_or_default());
}

/// Appends `time`, such as `2024-02-29T23:59:59.1234567Z`.
pub fn rfc3339(out: &mut Vec<u8>, time: Timestamp) {
    let (year, month, day) = civil(time.secs.div_euclid(DAY));
    let within = time.secs.rem_euclid(DAY).unsigned_abs();
    if !(0..=9999).contains(&year) {
        out.push(if year < 0 { b'-' } else { b'+' });
    }
    let years = year.unsigned_abs();
    let width = years.checked_ilog10().map_or(1, |n| n.saturating_add(1)).max(4);
    digits(out, years, width as usize);
    out.push(b'-');
    digits(out, month.into(), 2);
    out.push(b'-');
    digits(out, day.into(), 2);
    out.push(b'T');
    digits(out, within / 3_600, 2);
    out.push(b':');
    digits(out, within / 60 % 60, 2);
    out.push(b':');
    digits(out, within % 60, 2);
    let kept = time.unit.digits();
    if kept > 0 {
        out.push(b'.');
        let unit = 10u64.saturating_pow(9u32.saturating_sub(kept.into()));
        digits(out, u64::from(time.nanos).checked_div(unit).unwrap_or(0), kept.into());
    }
    out.push(b'Z');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::TimeUnit::{self, Hundredth, Nano, Second, Tick};
    use proptest::prelude::*;

    fn text(secs: i64, nanos: u32, unit: TimeUnit) -> String {
        let mut out = Vec::new();
        rfc3339(&mut out, Timestamp { secs, nanos, unit });
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_digits_are_those_that_the_file_system_has() {
        assert_eq!(text(0, 0, Second), "1970-01-01T00:00:00Z");
        assert_eq!(text(1_709_251_199, 123_456_700, Tick), "2024-02-29T23:59:59.1234567Z");
        assert_eq!(text(1_709_251_199, 120_000_000, Hundredth), "2024-02-29T23:59:59.12Z");
        assert_eq!(text(-1, 999_999_999, Nano), "1969-12-31T23:59:59.999999999Z");
    }

    #[test]
    fn ntfs_can_hold_years_that_rfc_3339_can_not() {
        // The end of NTFS's time: 2^64 - 1 tenths of a microsecond from 1601 on.
        assert_eq!(text(1_844_674_407_370 - 11_644_473_600, 955_161_500, Tick), "+60056-05-28T05:36:10.9551615Z");
        assert!(text(i64::MIN, 0, Second).starts_with('-'));
        assert!(text(i64::MAX, 0, Second).starts_with('+'));
    }

    proptest! {
        #[test]
        fn agrees_with_the_time_crate(secs in -62_167_219_200i64..253_402_300_800, nanos in 0u32..1_000_000_000) {
            let format = time::macros::format_description!(
                "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:9]Z");
            let there = time::OffsetDateTime::from_unix_timestamp(secs).unwrap()
                .replace_nanosecond(nanos).unwrap().format(&format).unwrap();
            prop_assert_eq!(text(secs, nanos, Nano), there);
        }
    }
}

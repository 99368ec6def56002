//! Dates and times of directory entries: local time, of which the volume does not say where.

use time::{Date, Month, PrimitiveDateTime, Time};

use crate::fs::{TimeUnit, Timestamp};

/// The earliest second that can be written: 1980-01-01.
const FIRST: i64 = 315_532_800;
/// The last one: 2107-12-31 23:59:58.
const LAST: i64 = 4_354_819_198;

/// A date, a time of 2 s and 10 ms beyond it, of which the entry keeps what `unit` says, in a zone so many seconds east
/// of UTC; none where the date is none.
pub fn decode(date: u16, time: u16, fine: u8, unit: TimeUnit, utc_offset: i32) -> Option<Timestamp> {
    let part = |value: u16, shift: u32, mask: u16| u8::try_from(value >> shift & mask).unwrap_or(0);
    let year = i32::from(part(date, 9, 0x7F)).saturating_add(1980);
    let month = Month::try_from(part(date, 5, 0xF)).ok()?;
    let day = Date::from_calendar_date(year, month, part(date, 0, 0x1F)).ok()?;
    let second = part(time, 0, 0x1F).saturating_mul(2).saturating_add(fine / 100);
    // A time that no clock shows is worth less than the date beside it.
    let clock = Time::from_hms(part(time, 11, 0x1F), part(time, 5, 0x3F), second).unwrap_or(Time::MIDNIGHT);
    let local = PrimitiveDateTime::new(day, clock).assume_utc().unix_timestamp();
    let nanos = u32::from(fine % 100).saturating_mul(10_000_000);
    Some(Timestamp { secs: local.saturating_sub(utc_offset.into()), nanos, unit })
}

/// Date, time and 10 ms of a point in time, in a zone so many seconds east of UTC; what FAT can't hold becomes the first or
/// last time that it can.
pub fn encode(at: Timestamp, utc_offset: i32) -> (u16, u16, u8) {
    let local = at.secs.saturating_add(utc_offset.into());
    let (secs, nanos) = match local {
        ..FIRST => (FIRST, 0),
        FIRST..=LAST => (local, at.nanos),
        _ => (LAST, 0),
    };
    let Ok(when) = time::OffsetDateTime::from_unix_timestamp(secs) else { return (0, 0, 0) };
    let year = u16::try_from(when.year().saturating_sub(1980)).unwrap_or(0);
    let date = year << 9 | u16::from(u8::from(when.month())) << 5 | u16::from(when.day());
    let time = u16::from(when.hour()) << 11 | u16::from(when.minute()) << 5 | u16::from(when.second() / 2);
    let fine = u8::try_from(nanos / 10_000_000).unwrap_or(0).saturating_add((when.second() % 2).saturating_mul(100));
    (date, time, fine)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::TimeUnit::{Hundredth, Nano, Second};
    use proptest::prelude::*;

    #[test]
    fn known_points() {
        assert_eq!(decode(0x0021, 0, 0, Second, 0), Some(Timestamp { secs: FIRST, nanos: 0, unit: Second }));
        assert_eq!(decode(0, 0, 0, Second, 0), None);
        // 2024-02-29 13:37:58, an hour east.
        let (date, time) = (44 << 9 | 2 << 5 | 29, 13 << 11 | 37 << 5 | 29);
        assert_eq!(decode(date, time, 0, Second, 3600).map(|t| t.secs), Some(1_709_210_278));
        // No 29 February in 2023; an hour of 31.
        assert_eq!(decode(43 << 9 | 2 << 5 | 29, 0, 0, Second, 0), None);
        assert_eq!(decode(0x0021, 31 << 11, 0, Second, 0).map(|t| t.secs), Some(FIRST));
        assert_eq!(encode(Timestamp { secs: -1, nanos: 5, unit: Nano }, 0), (0x0021, 0, 0));
        let (date, time, _) = encode(Timestamp { secs: i64::MAX, nanos: 0, unit: Second }, 0);
        assert_eq!(decode(date, time, 0, Second, 0).map(|t| t.secs), Some(LAST));
    }

    proptest! {
        #[test]
        fn ten_milliseconds_come_back(secs in FIRST..=LAST - 86_400, hundredths in 0u32..100, zone in -43_200i32..43_200) {
            let at = Timestamp { secs: secs.max(FIRST + 86_400), nanos: hundredths * 10_000_000, unit: Hundredth };
            let (date, time, fine) = encode(at, zone);
            prop_assert_eq!(decode(date, time, fine, Hundredth, zone), Some(at));
        }
        #[test]
        fn nothing_panics(date: u16, time: u16, fine: u8, secs: i64, nanos in 0u32..1_000_000_000, zone: i32) {
            let _ = decode(date, time, fine, Hundredth, zone);
            let _ = encode(Timestamp { secs, nanos, unit: Nano }, zone);
        }
    }
}

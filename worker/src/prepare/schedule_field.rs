//! `X-Schedule`: when a message may be delivered.

use ipc::text;
use ipc::windows::Windows;
use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};

use super::headers::unfolded;

/// Windows that a message may have.
const WINDOWS_MAX: usize = 100;
/// Characters of what is no window that the reply shows.
const SHOWN_MAX: usize = 60;
/// The form of a time.
const TIME: &str = "0000-00-00 00:00:00";

/// The windows that a field names, `START / END` with commas between them, each as `YYYY-MM-DD HH:MM:SS`, in the machine's time zone or with one behind it
/// (`+0200`). `now_ms` is queue time, `wall_ms` the same as the machine's clock has it.
///
/// # Errors
/// A sentence saying what is wrong.
pub fn windows(value: &[u8], now_ms: i64, wall_ms: i64) -> Result<Windows, String> {
    let value = unfolded(value);
    let mut all = Vec::new();
    for window in value.split(',') {
        let found = || text::clean(window.trim(), SHOWN_MAX).into_owned();
        let expected =
            || format!("x-schedule: expected START / END, each YYYY-MM-DD HH:MM:SS [+HHMM], found {:?}", found());
        let (start, end) = window.split_once('/').ok_or_else(expected)?;
        let (start, end) = (time(start).ok_or_else(expected)?, time(end).ok_or_else(expected)?);
        if end <= start {
            return Err(format!("x-schedule: {:?} ends before it begins", found()));
        }
        all.push((start, end));
        if all.len() > WINDOWS_MAX {
            return Err(format!("x-schedule: more than {WINDOWS_MAX} windows"));
        }
    }
    let w = Windows { all, ..Default::default() };
    let now_s = wall_ms.div_euclid(1000);
    let Some(next) = w.next(now_s) else { return Err("x-schedule: all of its windows are over".into()) };
    let last = w.all.iter().map(|(_, end)| *end).max().unwrap_or(now_s);
    let queue_ms = |wall_s: i64| now_ms + (wall_s - now_s) * 1000;
    let due_ms = if next <= now_s { 0 } else { queue_ms(next) };
    Ok(Windows { due_ms, ends_ms: queue_ms(last), ..w })
}

/// Unix seconds.
fn time(text: &str) -> Option<i64> {
    let text = text.trim();
    let (local, zone) = text.split_at_checked(TIME.len())?;
    let is_time = local.bytes().zip(TIME.bytes()).all(|(b, form)| match form {
        b'0' => b.is_ascii_digit(),
        form => b == form,
    });
    let local = DateTime::strptime("%Y-%m-%d %H:%M:%S", local).ok().filter(|_| is_time && !local.ends_with("60"))?;
    let zone = match zone.trim_start() {
        "" => TimeZone::system(),
        "Z" | "UTC" | "GMT" => TimeZone::UTC,
        offset => {
            let (sign, digits) = (if offset.starts_with('-') { -1 } else { 1 }, offset.strip_prefix(['+', '-'])?);
            let digits: String = digits.split(':').collect();
            let is_offset = digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_digit());
            let (hours, minutes) = digits.split_at_checked(2).filter(|_| is_offset)?;
            let (hours, minutes): (i32, i32) = (hours.parse().ok()?, minutes.parse().ok()?);
            if hours > 14 || minutes > 59 {
                return None;
            }
            TimeZone::fixed(Offset::from_seconds(sign * (hours * 3600 + minutes * 60)).ok()?)
        }
    };
    Some(local.to_zoned(zone).ok()?.timestamp().as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_read_with_and_without_a_time_zone() {
        let read = |value: &str, now_s: i64| windows(value.as_bytes(), 7_000_000_500, now_s * 1000 + 500);
        let one = " 2030-01-01 00:00:00 +0000 / 2030-01-01 06:00:00 +0000";
        let start = 1_893_456_000;
        let w = read(one, start - 10).unwrap_or_default();
        assert_eq!((w.all, w.due_ms, w.ends_ms), (vec![(start, start + 21_600)], 7_000_010_500, 7_021_610_500));
        assert_eq!(read(one, start).map(|w| w.due_ms), Ok(0), "it is open");
        let two = format!("{one},\r\n\t2030-01-02 02:00:00 +0200/2030-01-02 00:30:00 +0000");
        assert_eq!(read(&two, start + 30_000).map(|w| w.all.len()), Ok(2));
        for zone in ["Z", " UTC", " +00:00", "+0000", " -0000"] {
            let w = read(&format!("2030-01-01 00:00:00{zone} / 2031-01-01 00:00:00"), 0).unwrap_or_default();
            assert_eq!(w.all.first().map(|w| w.0), Some(start), "{zone}");
        }
        let local = read("2030-01-01 00:00:00 / 2030-01-01 00:00:01", 0).unwrap_or_default();
        assert_eq!(crate::local_time(local.all[0].0, "%Y-%m-%d %H:%M:%S"), "2030-01-01 00:00:00");
        for (wrong, why) in [
            ("", "expected START / END"),
            ("2030-01-01 00:00:00", "expected START / END"),
            ("2030-01-01 00:00:00 / 2030-01-01", "expected START / END"),
            ("2030-02-30 00:00:00 / 2030-03-01 00:00:00", "expected START / END"),
            ("2030-01-02 00:00:00 / 2030-01-01 00:00:00", "ends before it begins"),
            ("2000-01-01 00:00:00 / 2000-01-02 00:00:00", "are over"),
            ("2030-01-01 00:00:00 / 2030-01-02 00:00:00,", "expected START / END"),
            ("2030-01-01 00:00:00 +2500 / 2030-01-02 00:00:00", "expected START / END"),
            ("-001-01-01 00:00:00 / 2030-01-02 00:00:00", "expected START / END"),
            ("2030-01-01 00:00:60 / 2030-01-02 00:00:00", "expected START / END"),
            ("2030-01-01 00:00:00 CET / 2030-01-02 00:00:00", "expected START / END"),
        ] {
            assert!(read(wrong, start - 10).is_err_and(|e| e.contains(why)), "{wrong}");
        }
        let many = vec![one; WINDOWS_MAX + 1].join(",");
        assert!(read(&many, 0).is_err_and(|e| e.contains("more than 100")));
    }
}

//! Times of accounting files: `2024-03-01 21:54:05+0000`, or seconds since 1970.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// A time, and what the clock on the wall said where it was written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Seconds since 1970.
    pub unix: i64,
    /// The same for the clock on the wall.
    pub wall: i64,
}

impl Moment {
    /// `2024-03-01 21:54:05`, of the clock on the wall.
    pub fn shown(wall: i64) -> String {
        let (days, second) = (wall.div_euclid(86_400), wall.rem_euclid(86_400));
        format!("{} {:02}:{:02}:{:02}", day(days), second / 3600, second / 60 % 60, second % 60)
    }

    /// With the distance from UTC, as accounting files have it.
    pub fn with_offset(self) -> String {
        let minutes = (self.wall - self.unix) / 60;
        let sign = if minutes < 0 { '-' } else { '+' };
        format!("{}{sign}{:02}{:02}", Self::shown(self.wall), minutes.abs() / 60, minutes.abs() % 60)
    }
}

/// `2024-03-01`, by days since 1970.
pub fn day(days: i64) -> String {
    // The proleptic Gregorian calendar, in eras of 400 years from 1 March 0000.
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let of_era = z.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let d = of_year - (153 * month_from_march + 2) / 5 + 1;
    let m = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let y = year_of_era + era * 400 + i64::from(m <= 2);
    format!("{y:04}-{m:02}-{d:02}")
}

fn days_of(y: i64, m: i64, d: i64) -> i64 {
    let y = if m <= 2 { y - 1 } else { y };
    let era = y.div_euclid(400);
    let year_of_era = y.rem_euclid(400);
    let of_year = (153 * (if m > 2 { m - 3 } else { m + 9 }) + 2) / 5 + d - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year - 719_468
}

/// Reads times; neighbouring records tend to have the same.
#[derive(Debug)]
pub struct Clock {
    zone: TimeZone,
    last: Vec<u8>,
    read: Option<Moment>,
}

impl Clock {
    /// Numbers are shown by the clock of `zone`.
    pub fn new(zone: TimeZone) -> Clock {
        Clock { zone, last: Vec::new(), read: None }
    }

    /// The time that a cell says, if it says one.
    pub fn read(&mut self, cell: &[u8]) -> Option<Moment> {
        if cell != self.last {
            self.read = parse(cell).or_else(|| self.of_number(cell));
            self.last.clear();
            self.last.extend_from_slice(&cell[..cell.len().min(64)]);
        }
        self.read
    }

    fn of_number(&self, cell: &[u8]) -> Option<Moment> {
        let unix: i64 = std::str::from_utf8(cell).ok()?.parse().ok()?;
        let offset = self.zone.to_offset(Timestamp::from_second(unix).ok()?).seconds();
        Some(Moment { unix, wall: unix + i64::from(offset) })
    }
}

fn parse(cell: &[u8]) -> Option<Moment> {
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = cell.get(from..to)?;
        digits.iter().try_fold(0, |n, b| b.is_ascii_digit().then(|| n * 10 + i64::from(b - b'0')))
    };
    let marks = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    if marks.iter().any(|(at, mark)| cell.get(*at) != Some(mark)) || !matches!(cell.get(10), Some(b' ' | b'T')) {
        return None;
    }
    let (y, m, d) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if !(1..=12).contains(&m) || !(1..=31).contains(&d) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let offset = match cell.get(19)? {
        b'Z' if cell.len() == 20 => 0,
        sign @ (b'+' | b'-') => {
            let minutes = match cell.len() {
                24 => number(20, 22)? * 60 + number(22, 24)?,
                25 if cell[22] == b':' => number(20, 22)? * 60 + number(23, 25)?,
                _ => return None,
            };
            if *sign == b'-' { -minutes * 60 } else { minutes * 60 }
        }
        _ => return None,
    };
    let wall = days_of(y, m, d) * 86_400 + hour * 3600 + minute * 60 + second;
    Some(Moment { unix: wall - offset, wall })
}

/// A span of time such as `3h15m`, `1d`, in seconds.
pub fn span(text: &str) -> Option<i64> {
    let (mut all, mut number) = (0i64, String::new());
    for c in text.chars() {
        let unit = match c.to_ascii_lowercase() {
            '0'..='9' => {
                number.push(c);
                continue;
            }
            'd' => 86_400,
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return None,
        };
        all = all.checked_add(std::mem::take(&mut number).parse::<i64>().ok()?.checked_mul(unit)?)?;
    }
    (number.is_empty() && !text.is_empty()).then_some(all)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn times_come_back_as_they_were_written(unix in -2_000_000_000i64..20_000_000_000, quarters in -56i64..57) {
            let m = Moment { unix, wall: unix + quarters * 900 };
            prop_assert_eq!(Clock::new(TimeZone::UTC).read(m.with_offset().as_bytes()), Some(m));
            let by_jiff = Timestamp::from_second(m.wall).unwrap().strftime("%Y-%m-%d %H:%M:%S").to_string();
            prop_assert_eq!(Moment::shown(m.wall), by_jiff);
        }

        #[test]
        fn any_bytes_are_a_time_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = Clock::new(TimeZone::UTC).read(&bytes);
        }
    }

    #[test]
    fn numbers_and_spans() {
        let mut c = Clock::new(TimeZone::UTC);
        assert_eq!(c.read(b"86400"), Some(Moment { unix: 86_400, wall: 86_400 }));
        for none in ["", "2024-13-01 00:00:00+0000", "2024-03-01 21:54:05", "yesterday"] {
            assert_eq!(c.read(none.as_bytes()), None, "{none}");
        }
        assert_eq!((span("3h15m"), span("1D2H3m4S"), span("90s")), (Some(11_700), Some(93_784), Some(90)));
        assert_eq!(
            (span(""), span("15"), span("h"), span("1w"), span("99999999999999999999d")),
            (None, None, None, None, None)
        );
    }
}

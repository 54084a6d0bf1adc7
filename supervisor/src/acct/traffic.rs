//! How long deliveries took, and how many there were at the busiest times; both in bounded memory.

use std::collections::BTreeMap;

/// Seconds up to which times are told apart by the second, then by the minute, then by the hour.
const BY_SECOND: u64 = 3600;
const BY_MINUTE: u64 = 86_400;
/// What is longer counts as this long: 90 days.
const LONGEST: u64 = 90 * 86_400;

/// Times from queueing to delivery.
#[derive(Debug, Default)]
pub struct Times {
    /// By the step that a time falls in: how many, their seconds together, the longest.
    steps: BTreeMap<u64, (u64, u64, u64)>,
    count: u64,
}

impl Times {
    /// Counts a delivery that took so many seconds.
    pub fn add(&mut self, seconds: u64) {
        let step = match seconds.min(LONGEST) {
            s if s < BY_SECOND => s,
            s if s < BY_MINUTE => s / 60 * 60,
            s => s / 3600 * 3600,
        };
        let (n, sum, max) = self.steps.entry(step).or_default();
        (*n, *sum, *max) = (*n + 1, *sum + seconds, (*max).max(seconds));
        self.count += 1;
    }

    /// Deliveries.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Of the fastest `n`: seconds on average, and of the slowest among them. Within a step beyond an hour
    /// the slowest may be another one of it.
    pub fn fastest(&self, n: u64) -> (u64, u64) {
        let (mut left, mut sum, mut slowest) = (n.min(self.count), 0, 0);
        let all = left;
        for (count, seconds, max) in self.steps.values() {
            if left == 0 {
                break;
            }
            let taken = left.min(*count);
            sum += seconds * taken / count;
            slowest = *max;
            left -= taken;
        }
        (sum / all.max(1), slowest)
    }

    /// Deliveries that took no more than so many seconds, which is below an hour or whole minutes or hours.
    pub fn within(&self, seconds: u64) -> u64 {
        // A step of a minute or an hour holds its first second and longer ones.
        let counted = self.steps.range(..=seconds).filter(|(step, v)| **step < BY_SECOND || v.2 <= seconds);
        counted.map(|(_, (n, _, _))| n).sum()
    }
}

/// Seconds of the windows that the greatest rates are looked for in.
pub const WINDOWS: [(i64, &str); 3] = [(60, "one minute"), (300, "five minutes"), (3600, "one hour")];
/// Seconds with deliveries that are held; older ones have been looked at by then.
const SECONDS_MAX: usize = 1 << 20;

/// The busiest window.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Busiest {
    pub recipients: u64,
    pub bytes: u64,
    /// When it began, by the clock on the wall.
    pub from: i64,
}

/// Deliveries by the second, in about the order of time.
#[derive(Debug, Default)]
pub struct Rates {
    seconds: BTreeMap<i64, (u64, u64)>,
    /// The second that is being counted, which is most often that of the record before.
    now: (i64, u64, u64),
    by_recipients: [Busiest; 3],
    by_bytes: [Busiest; 3],
}

impl Rates {
    /// Counts one recipient with so many bytes at a second of the clock on the wall.
    pub fn add(&mut self, second: i64, bytes: u64) {
        if self.now.0 != second {
            self.put();
            self.now = (second, 0, 0);
            if self.seconds.len() > SECONDS_MAX {
                self.look();
                // Windows that are yet to end begin within the last hour.
                let newest = self.seconds.last_key_value().map_or(0, |(s, _)| *s);
                self.seconds = self.seconds.split_off(&(newest - 3600));
            }
        }
        self.now.1 += 1;
        self.now.2 += bytes;
    }

    fn put(&mut self) {
        let (second, recipients, bytes) = std::mem::take(&mut self.now);
        if recipients > 0 {
            let at = self.seconds.entry(second).or_default();
            (at.0, at.1) = (at.0 + recipients, at.1 + bytes);
        }
    }

    fn look(&mut self) {
        for (n, (length, _)) in WINDOWS.iter().enumerate() {
            let mut sum = Busiest::default();
            let mut oldest = self.seconds.iter();
            let mut next = oldest.next();
            for (second, (recipients, bytes)) in &self.seconds {
                sum.recipients += recipients;
                sum.bytes += bytes;
                while let Some((s, (r, b))) = next.filter(|(s, _)| **s <= second - length) {
                    let _ = s;
                    sum.recipients -= r;
                    sum.bytes -= b;
                    next = oldest.next();
                }
                sum.from = next.map_or(*second, |(s, _)| *s);
                if sum.recipients > self.by_recipients[n].recipients {
                    self.by_recipients[n] = sum;
                }
                if sum.bytes > self.by_bytes[n].bytes {
                    self.by_bytes[n] = sum;
                }
            }
        }
    }

    /// The busiest of each of [`WINDOWS`], by recipients and by bytes.
    pub fn busiest(&mut self) -> ([Busiest; 3], [Busiest; 3]) {
        self.put();
        self.look();
        (self.by_recipients, self.by_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn times_below_an_hour_are_exact(seconds in proptest::collection::vec(0u64..3600, 1..80), n in 1u64..80, limit in 0u64..3600) {
            let mut t = Times::default();
            seconds.iter().for_each(|s| t.add(*s));
            let mut sorted = seconds;
            sorted.sort_unstable();
            let first = &sorted[..sorted.len().min(n as usize)];
            prop_assert_eq!(t.fastest(n), (first.iter().sum::<u64>() / first.len() as u64, first[first.len() - 1]));
            prop_assert_eq!(t.within(limit), sorted.iter().filter(|s| **s <= limit).count() as u64);
        }

        #[test]
        fn the_busiest_window_is_found(mut seconds in proptest::collection::vec(0i64..400, 1..60), swap in any::<prop::sample::Index>()) {
            let mut r = Rates::default();
            // A record that comes late.
            let at = swap.index(seconds.len());
            seconds.swap(0, at);
            seconds.iter().for_each(|s| r.add(*s, 1));
            let most = seconds.iter().map(|from| seconds.iter().filter(|s| (*from..from + 60).contains(*s)).count() as u64).max();
            let (by_recipients, by_bytes) = r.busiest();
            prop_assert_eq!(Some(by_recipients[0].recipients), most);
            prop_assert_eq!(Some(by_bytes[0].bytes), most);
            prop_assert!(seconds.contains(&by_recipients[0].from));
        }
    }

    #[test]
    fn hours_are_counted_as_hours() {
        let mut t = Times::default();
        [7199, 7200, 7201, 90_000, u64::from(u32::MAX)].iter().for_each(|s| t.add(*s));
        assert_eq!(t.within(7200), 1, "a step that goes beyond the limit does not count");
        assert_eq!((t.within(3600 * 12), t.count()), (3, 5));
    }
}

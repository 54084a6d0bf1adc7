//! `max-msg-rate`: never more than N+1 in any sliding window, paced, and at least 95 % of N
//! while there is work.
//!
//! Generic cell rate algorithm. With tolerance `t` and interval `i`, a window `W` sees at
//! most `(W + t) / i + 1` events. Choosing `t = 4 % of W`, 5 s at most, and `i = (W + t) / N` makes
//! that N + 1, at 96 % of N or more; the tolerance catches up with timers that fire late.

use ipc::ledger::Ahead;
use ipc::rules::Rate;

/// The state of one rate limit: when the next event is due by the pace, Unix nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pace {
    /// Theoretical arrival time.
    pub tat_ns: i64,
}

/// Timers are never later than this: what a longer window lets go at once would be a burst.
const TOLERANCE_MAX_NS: u128 = 5_000_000_000;

fn tolerance_ns(rate: Rate) -> i64 {
    (rate.per.as_nanos() / 25).min(TOLERANCE_MAX_NS) as i64
}

fn interval_ns(rate: Rate) -> i64 {
    ((rate.per.as_nanos() + tolerance_ns(rate) as u128) / u128::from(rate.count.max(1))) as i64
}

impl Pace {
    /// How many of `want` events may be taken at `now_ns`, and when the next may be if that
    /// is fewer.
    pub fn available(&self, rate: Rate, now_ns: i64, want: u64) -> (u64, i64) {
        if rate.count == 0 || want == 0 {
            return (want, now_ns);
        }
        let (interval, tolerance) = (interval_ns(rate).max(1), tolerance_ns(rate));
        let from = self.tat_ns.max(now_ns);
        if self.tat_ns - tolerance > now_ns {
            return (0, self.tat_ns - tolerance);
        }
        let n = 1 + ((now_ns + tolerance - from) / interval) as u64;
        if n >= want { (want, now_ns) } else { (n, from + interval * n as i64 - tolerance) }
    }

    /// Takes `n` events that were available.
    pub fn advance(&mut self, rate: Rate, now_ns: i64, n: u64) {
        if rate.count > 0 && n > 0 {
            let took = interval_ns(rate).saturating_mul(n.min(i64::MAX as u64) as i64);
            self.tat_ns = self.tat_ns.max(now_ns).saturating_add(took);
        }
    }

    /// Gives back `n` events that were taken and did not happen.
    pub fn give_back(&mut self, rate: Rate, n: u64) {
        if rate.count > 0 {
            self.tat_ns -= interval_ns(rate).saturating_mul(n.min(i64::MAX as u64) as i64);
        }
    }

    /// Takes up to `want` events at `now_ns`; answers how many, and when the next may be
    /// taken if that is fewer.
    #[cfg(test)]
    pub fn take(&mut self, rate: Rate, now_ns: i64, want: u64) -> (u64, i64) {
        let (taken, next) = self.available(rate, now_ns, want);
        self.advance(rate, now_ns, taken);
        (taken, next)
    }

    /// When one more event may be taken; the past if now.
    pub fn ready_at_ns(&self, rate: Rate) -> i64 {
        if rate.count == 0 { 0 } else { self.tat_ns - tolerance_ns(rate) }
    }

    /// How far the clock of a rate runs ahead.
    pub fn ahead(rate: Rate) -> Ahead {
        Self::ahead_by(rate, 1)
    }

    /// The same where `n` events may be taken as one.
    pub fn ahead_by(rate: Rate, n: u64) -> Ahead {
        let (before_ns, n) = (tolerance_ns(rate), n.min(i64::MAX as u64) as i64);
        Ahead { before_ns, after_ns: before_ns.saturating_add(interval_ns(rate).saturating_mul(n)) }
    }

    /// Assumes the most that may have happened before `now_ns`: nothing more is due until the
    /// tolerance has passed.
    pub fn exhausted(rate: Rate, now_ns: i64) -> Pace {
        Pace { tat_ns: now_ns + Self::ahead(rate).after_ns }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    proptest! {
        #[test]
        fn never_more_than_n_plus_one_in_any_window(
            n in 1u64..400, secs in 1u64..100,
            gaps in proptest::collection::vec(0u64..3_000_000_000, 1..300),
            restart in 0usize..300,
        ) {
            let rate = Rate { count: n, per: Duration::from_secs(secs) };
            let mut pace = Pace::default();
            let (mut now, mut events) = (1_000_000_000_000i64, Vec::new());
            for (i, g) in gaps.iter().enumerate() {
                now += *g as i64;
                if i == restart {
                    pace = Pace::exhausted(rate, now);
                }
                let (taken, _) = pace.take(rate, now, 1 + g % 7);
                events.extend(std::iter::repeat_n(now, taken as usize));
            }
            let window = rate.per.as_nanos() as i64;
            let mut from = 0;
            for (i, t) in events.iter().enumerate() {
                while events[from] <= t - window { from += 1; }
                prop_assert!((i - from) as u64 <= n, "{} in a window of {n}", i - from + 1);
            }
        }
    }

    #[test]
    fn bytes_are_counted_like_events_and_what_is_larger_than_the_window_passes_alone() {
        let rate = Rate { count: 1_000_000, per: Duration::from_secs(10) };
        let mut pace = Pace::default();
        let now = 1_000_000_000_000;
        pace.advance(rate, now, 3_000_000);
        assert_eq!(pace.available(rate, now + 30_000_000_000, 1).0, 0);
        assert_eq!(pace.available(rate, now + 32_000_000_000, 1).0, 1);
        pace.give_back(rate, 3_000_000);
        assert_eq!(pace.available(rate, now, 1).0, 1);
    }

    #[test]
    fn at_least_95_percent_is_used_with_late_timers() {
        let rate = Rate { count: 6000, per: Duration::from_secs(60) };
        let (mut pace, mut now, mut sent) = (Pace::default(), 1_000_000_000_000i64, 0u64);
        let end = now + 60_000_000_000;
        while now < end {
            let (taken, next) = pace.take(rate, now, 1);
            sent += taken;
            now = if taken == 0 { next.max(now) + 7_000_000 } else { now };
        }
        assert!((5700..=6001).contains(&sent), "{sent} of 6000");
    }
}

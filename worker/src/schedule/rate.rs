//! The state of a rate that one shard counts; the rule is that of [`ipc::pace`].

use std::sync::atomic::AtomicU64;

use ipc::ledger::window::BUCKETS;
use ipc::pace::{Pacing, UNNOTED};
use ipc::rules::Rate;

/// The state of one rate limit: when the next event is due by the pace, Unix nanoseconds.
#[derive(Debug, Default)]
pub struct Pace {
    /// Theoretical arrival time.
    pub tat_ns: i64,
    /// How far the last event moved it, picoseconds; 0 where that is not known.
    interval_ps: u64,
    /// What its window holds, from the first time that several were wanted at once.
    counted: Option<Box<Counted>>,
}

/// Counts of a window, and since when they tell all.
#[derive(Debug)]
struct Counted {
    buckets: [AtomicU64; BUCKETS],
    window_ns: i64,
    since_ns: i64,
}

impl PartialEq for Pace {
    fn eq(&self, other: &Pace) -> bool {
        self.tat_ns == other.tat_ns
    }
}

impl Pace {
    /// One whose clock stands so, and of which nothing more is known.
    pub fn at(tat_ns: i64) -> Pace {
        Pace { tat_ns, ..Default::default() }
    }

    fn held(&self, p: &Pacing, now_ns: i64) -> Option<u64> {
        let c = self.counted.as_ref().filter(|c| c.window_ns == p.window_ns)?;
        (c.since_ns <= now_ns - p.window_ns).then(|| p.window(&c.buckets, 0).held(now_ns))
    }

    /// How many of `want` events may be taken at `now_ns`, and when the next may be if that
    /// is none.
    pub fn available(&self, rate: Rate, now_ns: i64, want: u64) -> (u64, i64) {
        let Some(p) = Pacing::of(rate).filter(|_| want > 0) else { return (want, now_ns) };
        let counted = if want > 1 { self.held(&p, now_ns) } else { None };
        let n = p.allowed(self.tat_ns, now_ns, want, counted);
        if n > 0 { (n, now_ns) } else { (0, p.ready_at_ns(self.tat_ns)) }
    }

    /// Takes `n` events that were available.
    pub fn advance(&mut self, rate: Rate, now_ns: i64, n: u64) {
        if let Some(p) = Pacing::of(rate).filter(|_| n > 0) {
            self.tat_ns = p.taken(self.tat_ns, now_ns, n);
            self.interval_ps = p.interval_ps();
        }
    }

    /// The same of `n` recipients where `wanted` were to be had: they are counted in the window.
    pub fn count(&mut self, rate: Rate, now_ns: i64, n: u64, wanted: u64) {
        let Some(p) = Pacing::of(rate).filter(|_| n > 0) else { return };
        if wanted > 1 && self.counted.as_ref().is_none_or(|c| c.window_ns != p.window_ns) {
            let is_new = p.held_by_clock(self.tat_ns, now_ns) == 0;
            let since_ns = if is_new { i64::MIN } else { now_ns };
            let buckets = [const { AtomicU64::new(0) }; BUCKETS];
            self.counted = Some(Box::new(Counted { buckets, window_ns: p.window_ns, since_ns }));
        }
        if let Some(c) = &self.counted {
            p.window(&c.buckets, 0).add(now_ns, n);
        }
        self.advance(rate, now_ns, n);
    }

    /// Gives back `n` events that were taken and did not happen.
    pub fn give_back(&mut self, rate: Rate, now_ns: i64, n: u64) {
        let Some(p) = Pacing::of(rate) else { return };
        self.tat_ns = self.tat_ns.saturating_sub(p.lead_ns(n));
        if let Some(c) = &self.counted {
            p.window(&c.buckets, 0).sub(now_ns, n);
        }
    }

    /// Another limit is in force: the clock stands for what was taken as that one counts it, and for no more than one
    /// window of it.
    pub fn rescale(&mut self, rate: Rate, now_ns: i64) {
        match Pacing::of(rate) {
            None => *self = Pace::default(),
            Some(p) if p.interval_ps() != self.interval_ps => {
                self.tat_ns = p.rescaled(self.tat_ns, now_ns, self.interval_ps);
                self.interval_ps = p.interval_ps();
            }
            Some(_) => {}
        }
    }

    /// When one more event may be taken; the past if now.
    pub fn ready_at_ns(&self, rate: Rate) -> i64 {
        Pacing::of(rate).map_or(0, |p| p.ready_at_ns(self.tat_ns))
    }

    /// Assumes the most that may have happened before `now_ns`, beyond what was noted: one event, or as many as are
    /// not noted.
    pub fn exhausted(rate: Rate, now_ns: i64) -> Pace {
        Pace::at(Pacing::of(rate).map_or(0, |p| now_ns + p.tolerance_ns + unnoted_ns(&p)))
    }

    /// Something put its clock further ahead than [`Pace::exhausted`] assumes.
    pub fn is_to_be_noted(&self, rate: Rate, now_ns: i64) -> bool {
        Pacing::of(rate).is_some_and(|p| self.tat_ns > now_ns + p.tolerance_ns + unnoted_ns(&p))
    }
}

/// So far one transaction may put a clock ahead without a note.
fn unnoted_ns(p: &Pacing) -> i64 {
    p.lead_ns(p.count).min(p.lead_ns(1).max(UNNOTED.as_nanos() as i64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    const BEGIN: i64 = 1_000_000_000_000_000;

    /// Takes what may be taken of `want` at `now_ns`.
    fn take(pace: &mut Pace, rate: Rate, now_ns: i64, want: u64) -> (u64, i64) {
        let (taken, next) = pace.available(rate, now_ns, want);
        pace.count(rate, now_ns, taken, want);
        (taken, next)
    }

    /// The most that any window of the rate holds.
    fn densest(rate: Rate, events: &[(i64, u64)]) -> u64 {
        let window = rate.per.as_nanos() as i64;
        let held = |(to, (end, _)): (usize, &(i64, u64))| -> u64 {
            events[..=to].iter().rev().take_while(|(at, _)| *at > end - window).map(|(_, n)| n).sum()
        };
        events.iter().enumerate().map(held).max().unwrap_or(0)
    }

    proptest! {
        #[test]
        fn no_window_holds_more_than_the_rate(
            n in 1u64..400, ms in 200u64..100_000,
            calls in proptest::collection::vec((0u64..100, 1u64..600, prop::bool::weighted(0.3)), 1..300),
            restart in 0usize..600, greedy in any::<bool>(),
        ) {
            let rate = Rate { count: n, per: Duration::from_millis(ms) };
            let (mut pace, mut now, mut next) = (Pace::default(), BEGIN, BEGIN);
            let mut events = Vec::new();
            for (i, (gap, want, single)) in calls.into_iter().enumerate() {
                // In hundredths of a window, or as soon as there is something.
                let gap = now + (gap * ms) as i64 * 10_000;
                now = if greedy { now.max(next) } else { gap };
                if i == restart {
                    // A process that follows knows no more than the clock.
                    pace = Pace::at(pace.tat_ns);
                }
                let (taken, at) = take(&mut pace, rate, now, if single { 1 } else { want });
                events.push((now, taken));
                next = at;
            }
            let most = densest(rate, &events);
            prop_assert!(most <= n, "{most} in a window of {n}");
        }

        #[test]
        fn the_rate_is_used_whatever_the_sizes(
            n in 20u64..400, sizes in proptest::collection::vec(1u64..300, 1..20), late_us in 0i64..3000,
        ) {
            let rate = Rate { count: n, per: Duration::from_secs(1) };
            let (mut pace, mut now, mut sent) = (Pace::default(), BEGIN, 0);
            let windows = 20;
            let mut sizes = sizes.into_iter().cycle();
            let mut left = 0;
            while now < BEGIN + windows * 1_000_000_000 {
                if left == 0 { left = sizes.next().unwrap_or(1); }
                let (taken, next) = take(&mut pace, rate, now, left);
                (sent, left) = (sent + taken, left - taken);
                now = if taken == 0 { next.max(now) + late_us * 1000 } else { now };
            }
            prop_assert!(sent * 100 >= n * windows as u64 * 90, "{sent} of {}", n * windows as u64);
        }
    }

    #[test]
    fn a_message_of_many_recipients_goes_at_once_and_the_next_a_window_later() {
        let rate = Rate { count: 100, per: Duration::from_secs(1) };
        let (mut pace, mut now) = (Pace::default(), BEGIN);
        for _ in 0..20 {
            assert_eq!(take(&mut pace, rate, now, 100).0, 100);
            let (none, next) = take(&mut pace, rate, now, 100);
            assert!(none == 0 && (1_000_000_000..1_050_000_000).contains(&(next - now)), "{}", next - now);
            now = next;
        }
        // What is asked for singly is paced, before and behind.
        now += 10_000_000_000;
        let burst = (0..100).filter(|_| take(&mut pace, rate, now, 1).0 == 1).count();
        assert!(burst <= 4, "{burst}");
        assert_eq!(take(&mut pace, rate, now + 10_000_000_000, 250).0, 100, "no more than the rate at once");
    }

    #[test]
    fn what_one_transaction_took_beyond_a_note_is_to_be_noted() {
        let hour = Rate::per_hour(1000);
        let mut pace = Pace::default();
        pace.count(hour, BEGIN, 1, 1);
        assert!(!pace.is_to_be_noted(hour, BEGIN));
        pace.count(hour, BEGIN, 100, 100);
        assert!(pace.is_to_be_noted(hour, BEGIN));
        let of_a_second = Rate { count: 100, per: Duration::from_secs(1) };
        let mut pace = Pace::default();
        pace.count(of_a_second, BEGIN, 100, 100);
        assert!(!pace.is_to_be_noted(of_a_second, BEGIN));
        assert!(Pace::exhausted(of_a_second, BEGIN).tat_ns >= pace.tat_ns);
    }

    #[test]
    fn another_limit_counts_what_was_taken_as_its_own() {
        let rate = |count, secs| Rate { count, per: Duration::from_secs(secs) };
        let mut pace = Pace::default();
        pace.count(rate(100, 10), BEGIN, 100, 100);
        pace.rescale(rate(1000, 10), BEGIN);
        assert!((900_000_000..1_100_000_000).contains(&(pace.ready_at_ns(rate(1000, 10)) + 250_000_000 - BEGIN)));
        pace.rescale(rate(1, 10), BEGIN);
        assert_eq!(pace.ready_at_ns(rate(1, 10)), BEGIN + 10_000_000_000, "no longer than its window");
        pace.rescale(Rate::UNLIMITED, BEGIN);
        assert_eq!(pace.tat_ns, 0);
    }

    #[test]
    fn bytes_are_counted_like_events_and_what_is_larger_than_the_window_passes_alone() {
        let rate = Rate { count: 1_000_000, per: Duration::from_secs(10) };
        let mut pace = Pace::default();
        pace.advance(rate, BEGIN, 3_000_000);
        assert_eq!(pace.available(rate, BEGIN + 30_000_000_000, 1).0, 0);
        assert_eq!(pace.available(rate, BEGIN + 32_000_000_000, 1).0, 1);
        pace.give_back(rate, BEGIN, 3_000_000);
        assert_eq!(pace.available(rate, BEGIN, 1).0, 1);
    }

    #[test]
    fn at_least_95_percent_is_used_with_late_timers() {
        let rate = Rate { count: 6000, per: Duration::from_secs(60) };
        let (mut pace, mut now, mut sent) = (Pace::default(), BEGIN, 0u64);
        let end = now + 60_000_000_000;
        while now < end {
            let (taken, next) = take(&mut pace, rate, now, 1);
            sent += taken;
            now = if taken == 0 { next.max(now) + 7_000_000 } else { now };
        }
        assert!((5700..=6001).contains(&sent), "{sent} of 6000");
    }
}

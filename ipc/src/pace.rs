//! How a rate of N in a window W is counted: by one clock, and by what the window holds.
//!
//! Each event moves the clock on by `(W + tolerance + bucket) / N`, and something may be taken
//! once the clock is no further ahead of the time than the tolerance (generic cell rate
//! algorithm). So from the first event in any window to its last the clock went less than that
//! span, and events taken one by one are N in a window at most, at 95 % of N or more; the tolerance
//! catches up with timers that fire late.
//!
//! Several are taken at once where the window that ends now then holds no more than N: by the count
//! of a [`Window`](crate::ledger::window::Window), or by what the clock alone rules out. The clock
//! then stands for all of them, so that what follows is no burst. Of the N taken before, the first
//! has left the window by the time that the clock asks for, bucket and all.

use std::time::Duration;

use crate::ledger::window::{Window, width_ns};
use crate::rules::Rate;

/// Timers are never later than this, nanoseconds: what a longer window lets go at once would be a burst.
const TOLERANCE_MAX_NS: i64 = 5_000_000_000;
/// Windows beyond a hundred years are cut, nanoseconds: clocks stay far from their ends.
const WINDOW_MAX_NS: i64 = 100 * 366 * 86_400 * 1_000_000_000;

/// A rate, as clocks count it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pacing {
    /// Events in a window; 1 at least.
    pub count: u64,
    /// Length of the window, nanoseconds.
    pub window_ns: i64,
    /// A clock so far ahead lets something be taken still, nanoseconds.
    pub tolerance_ns: i64,
    /// How far N events move the clock, nanoseconds.
    span_ns: i64,
}

fn scaled(n: u64, by: i64, of: u64) -> i64 {
    let ns = u128::from(n) * by.max(0) as u128 / u128::from(of.max(1));
    i64::try_from(ns).unwrap_or(i64::MAX)
}

impl Pacing {
    /// `None` where the rate limits nothing.
    pub fn of(rate: Rate) -> Option<Pacing> {
        let window_ns = i64::try_from(rate.per.as_nanos()).unwrap_or(i64::MAX).clamp(1, WINDOW_MAX_NS);
        let tolerance_ns = (window_ns / 40).min(TOLERANCE_MAX_NS);
        let span_ns = window_ns + tolerance_ns + width_ns(window_ns);
        (rate.count > 0).then_some(Pacing { count: rate.count, window_ns, tolerance_ns, span_ns })
    }

    /// How far `n` events move the clock, nanoseconds.
    pub fn lead_ns(&self, n: u64) -> i64 {
        scaled(n, self.span_ns, self.count).saturating_add(1)
    }

    /// The same of one, picoseconds; 1 at least.
    pub fn interval_ps(&self) -> u64 {
        (self.span_ns as u128 * 1000 / u128::from(self.count)).clamp(1, u128::from(u64::MAX)) as u64
    }

    /// When the next event may be taken by a clock.
    pub fn ready_at_ns(&self, clock_ns: i64) -> i64 {
        clock_ns.saturating_sub(self.tolerance_ns)
    }

    /// Events that may be taken one by one at once, by the clock alone.
    pub fn by_clock(&self, clock_ns: i64, now_ns: i64) -> u64 {
        if self.ready_at_ns(clock_ns) > now_ns {
            return 0;
        }
        let left_ns = now_ns + self.tolerance_ns - clock_ns.max(now_ns);
        1 + (left_ns.max(0) as u128 * u128::from(self.count) / (self.span_ns as u128 + u128::from(self.count))) as u64
    }

    /// The most that the window which ends now may hold, as far as the clock tells.
    pub fn held_by_clock(&self, clock_ns: i64, now_ns: i64) -> u64 {
        if clock_ns <= 0 {
            // Never used.
            return 0;
        }
        let since_ns = clock_ns.saturating_sub(now_ns.saturating_sub(self.window_ns)).max(0);
        let n = since_ns as u128 * u128::from(self.count) / self.span_ns as u128;
        u64::try_from(n).unwrap_or(u64::MAX)
    }

    /// The most of `want` that may be taken now, where the window holds `counted`, if that is known.
    pub fn allowed(&self, clock_ns: i64, now_ns: i64, want: u64, counted: Option<u64>) -> u64 {
        let one_by_one = self.by_clock(clock_ns, now_ns);
        if one_by_one == 0 || one_by_one >= want {
            return one_by_one.min(want);
        }
        let held = self.held_by_clock(clock_ns, now_ns).min(counted.unwrap_or(u64::MAX));
        one_by_one.max(self.count.saturating_sub(held)).min(want)
    }

    /// The clock when `n` were taken.
    pub fn taken(&self, clock_ns: i64, now_ns: i64, n: u64) -> i64 {
        if n == 0 { clock_ns } else { clock_ns.max(now_ns).saturating_add(self.lead_ns(n)) }
    }

    /// Where a clock stands that counted the same events under another rate, of which each was `interval_ps`. No
    /// window asks for more than its own length.
    pub fn rescaled(&self, clock_ns: i64, now_ns: i64, interval_ps: u64) -> i64 {
        let lead_ns = clock_ns.saturating_sub(now_ns);
        if lead_ns <= 0 {
            return clock_ns;
        }
        let lead_ns = match interval_ps {
            0 => lead_ns,
            of => scaled(self.interval_ps(), lead_ns, of),
        };
        now_ns + lead_ns.min(self.window_ns + self.tolerance_ns)
    }

    /// The window that counts for it in these buckets.
    pub fn window<'a>(&self, buckets: &'a [std::sync::atomic::AtomicU64], key: u64) -> Window<'a> {
        Window::of(buckets, key, self.window_ns)
    }
}

/// The most that one transaction may put the clock ahead unseen, where it is not noted.
pub const UNNOTED: Duration = Duration::from_secs(5);

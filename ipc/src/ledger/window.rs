//! What was taken of a rate within its window: counts of as many parts of it, which several
//! processes change at once.
//!
//! A process that wants several events counts them first, then looks at the sum, and takes its counts back where
//! the sum is more than the rate. Of all processes whose counts stay, the last one to count has seen those of every
//! other. So the rate is never exceeded; two that come at once may both step back; and a process that dies between
//! counting and looking leaves a count that is too high for one window.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

/// Counts of one window.
pub const BUCKETS: usize = 64;
/// What others counted so many buckets later than now is seen still, for clocks are read before they are used.
const NEWER: u32 = 1024;

/// Time that one count stands for; a whole window and the part that is going on fit into [`BUCKETS`].
pub const fn width_ns(window_ns: i64) -> i64 {
    window_ns / (BUCKETS as i64 - 1) + 1
}

/// The counts of one rate; each carries its time and the rate's name above its number, and one of
/// another time or name is none.
#[derive(Debug)]
pub struct Window<'a> {
    buckets: &'a [AtomicU64],
    name: u32,
    width_ns: i64,
}

impl<'a> Window<'a> {
    /// That of a rate of this name and length.
    pub fn of(buckets: &'a [AtomicU64], key: u64, window_ns: i64) -> Window<'a> {
        let name = super::shared_limits::mixed(key, window_ns as u64) as u32;
        Window { buckets, name, width_ns: width_ns(window_ns) }
    }

    fn bucket(&self, now_ns: i64) -> (&AtomicU64, u32) {
        let at = now_ns.div_euclid(self.width_ns);
        (&self.buckets[at.rem_euclid(BUCKETS as i64) as usize], at as u32)
    }

    /// The time and the number of a count.
    fn read(&self, word: u64) -> (u32, u64) {
        ((word >> 32) as u32 ^ self.name, word & u64::from(u32::MAX))
    }

    fn change(&self, now_ns: i64, change: impl Fn(u64) -> u64) {
        let (bucket, now) = self.bucket(now_ns);
        let _ = bucket.fetch_update(SeqCst, SeqCst, |word| {
            let (at, n) = self.read(word);
            let (at, n) = if at.wrapping_sub(now) < NEWER { (at, n) } else { (now, 0) };
            Some(u64::from(at ^ self.name) << 32 | change(n).min(u64::from(u32::MAX)))
        });
    }

    /// Counts `n`.
    pub fn add(&self, now_ns: i64, n: u64) {
        self.change(now_ns, |before| before.saturating_add(n));
    }

    /// `n` that were counted did not happen.
    pub fn sub(&self, now_ns: i64, n: u64) {
        self.change(now_ns, |before| before.saturating_sub(n));
    }

    /// How many were counted within the window that ends now, and up to a bucket before.
    pub fn held(&self, now_ns: i64) -> u64 {
        let first = (now_ns.div_euclid(self.width_ns) as u32).wrapping_sub(BUCKETS as u32 - 1);
        let counts = |(at, n): (u32, u64)| if at.wrapping_sub(first) < BUCKETS as u32 + NEWER { n } else { 0 };
        self.buckets.iter().map(|b| counts(self.read(b.load(SeqCst)))).sum()
    }
}

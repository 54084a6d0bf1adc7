//! The only reader of time. Unix milliseconds that never go backwards within a process:
//! the wall clock is read once and the monotonic clock carries on from there.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

fn base() -> &'static (Instant, u128) {
    static BASE: OnceLock<(Instant, u128)> = OnceLock::new();
    BASE.get_or_init(|| {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (Instant::now(), wall.as_nanos())
    })
}

/// Unix milliseconds.
pub fn now_ms() -> i64 {
    (now_ns() / 1_000_000) as i64
}

/// Unix nanoseconds.
pub fn now_ns() -> u128 {
    let (start, wall) = base();
    wall + start.elapsed().as_nanos()
}

/// The instant at which [`now_ms`] reaches `unix_ms`; now for times in the past.
pub fn instant_of(unix_ms: i64) -> Instant {
    Instant::now() + Duration::from_millis((unix_ms - now_ms()).max(0) as u64)
}

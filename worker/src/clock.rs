//! The only reader of time. There are two of them:
//!
//! *Queue time* is what mail waits and expires by, what limits count by, and what spool and ledger
//! keep: Unix milliseconds as the machine's clock had them when the server was first started, and
//! from there on as time passed (`CLOCK_BOOTTIME`). It is one for all processes of a server, goes
//! on over restarts, and knows nothing of a clock that somebody sets, or that was wrong at a start.
//!
//! *Wall time* is queue time as people read it: in dates, accounting and signatures. It follows the
//! machine's clock.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// Queue time less time since boot, nanoseconds; [`UNSET`] until it is known.
static AHEAD_NS: AtomicI64 = AtomicI64::new(UNSET);
const UNSET: i64 = i64::MIN;
/// Wall time less queue time, milliseconds, as it was when it was last found to have changed.
static STEP_MS: AtomicI64 = AtomicI64::new(0);
/// A difference as small as that is one between two readings.
const STEP_LEAST_MS: i64 = 500;
/// The kernel's own word for the time since boot is this exact, nanoseconds.
const UPTIME_EXACT_NS: i64 = 1_000_000_000;

#[expect(clippy::disallowed_methods, reason = "this is where the machine's clock is read")]
fn boottime_ns() -> i64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |t| t.tv_sec() * 1_000_000_000 + t.tv_nsec())
}

/// What `CLOCK_BOOTTIME` is off by: programs that are to see another time are lied to about all
/// clocks, the same lie or another at each start.
fn correction_ns() -> i64 {
    static CORRECTION: OnceLock<i64> = OnceLock::new();
    *CORRECTION.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
        let seconds = text.split_whitespace().next().and_then(|s| s.parse::<f64>().ok());
        let off = seconds.map_or(0, |s| (s * 1e9) as i64 - boottime_ns());
        if off.abs() > UPTIME_EXACT_NS { off } else { 0 }
    })
}

/// Nanoseconds since the machine was booted.
pub fn uptime_ns() -> i64 {
    #[cfg(feature = "simulation")]
    if let Some((uptime, _)) = simulated::now_ns() {
        return uptime;
    }
    boottime_ns() + correction_ns()
}

#[expect(clippy::disallowed_methods, reason = "this is where the machine's clock is read")]
fn machine_ns() -> i64 {
    #[cfg(feature = "simulation")]
    if let Some((_, machine)) = simulated::now_ns() {
        return machine;
    }
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_nanos() as i64)
}

/// Queue time less time since boot, nanoseconds: what all processes of a server share.
pub fn ahead_ns() -> i64 {
    let known = AHEAD_NS.load(Relaxed);
    if known != UNSET {
        return known;
    }
    let first = machine_ns() - uptime_ns();
    AHEAD_NS.compare_exchange(UNSET, first, Relaxed, Relaxed).map_or_else(|other| other, |_| first)
}

/// Takes over the queue time of the other processes.
pub fn follow(ahead_ns: i64) {
    AHEAD_NS.store(ahead_ns, Relaxed);
}

/// Queue time, milliseconds.
pub fn now_ms() -> i64 {
    (now_ns() / 1_000_000) as i64
}

/// Queue time, nanoseconds.
pub fn now_ns() -> u128 {
    if ipc::planted!("queue-time-follows-the-clock") {
        return machine_ns().max(0) as u128;
    }
    (uptime_ns() + ahead_ns()).max(0) as u128
}

/// A queue time as people read it, Unix milliseconds.
pub fn wall_ms(queue_ms: i64) -> i64 {
    let step = machine_ns() / 1_000_000 - now_ms();
    if (step - STEP_MS.load(Relaxed)).abs() > STEP_LEAST_MS {
        STEP_MS.store(step, Relaxed);
    }
    queue_ms.saturating_add(STEP_MS.load(Relaxed))
}

/// The time of a simulated machine: that of the tokio runtime in use, which is paused.
#[cfg(feature = "simulation")]
pub mod simulated {
    use std::cell::Cell;
    use std::sync::atomic::Ordering::Relaxed;

    use tokio::time::Instant;

    #[derive(Clone, Copy)]
    struct Machine {
        booted: Instant,
        /// Its clock when it was booted, nanoseconds since the epoch.
        clock_ns: i64,
    }

    thread_local! {
        static MACHINE: Cell<Option<Machine>> = const { Cell::new(None) };
    }

    /// Boots the machine of this thread. Nothing is left of what clocks said before.
    pub fn boot(clock_ns: i64) {
        MACHINE.set(Some(Machine { booted: Instant::now(), clock_ns }));
        super::AHEAD_NS.store(super::UNSET, Relaxed);
        super::STEP_MS.store(0, Relaxed);
    }

    /// Sets its clock forward or back.
    pub fn step(by_ns: i64) {
        MACHINE.set(MACHINE.get().map(|m| Machine { clock_ns: m.clock_ns + by_ns, ..m }));
    }

    /// Time since it was booted, and what its clock says.
    pub(super) fn now_ns() -> Option<(i64, i64)> {
        let m = MACHINE.get()?;
        let uptime = m.booted.elapsed().as_nanos() as i64;
        Some((uptime, m.clock_ns + uptime))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_time_goes_on_and_is_read_as_the_machine_has_it() {
        let (a, wall) = (now_ms(), machine_ns() / 1_000_000);
        assert!((wall_ms(a) - wall).abs() <= STEP_LEAST_MS, "{} {wall}", wall_ms(a));
        assert!(now_ms() >= a && uptime_ns() > 0);
    }
}

//! How long the worker's loop is held. Everything in a shard shares one thread: a piece of work that goes on for long is a
//! time in which no reply is read, no message accepted and no heartbeat sent. Nothing that a client or a receiver sends
//! may hold it longer than [`HOLD_MAX`]; what did is counted, named and logged.
//!
//! It costs two readings of a coarse clock for each round of the loop, and two for each piece that has a name.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

/// Longest time that the loop may be held.
pub const HOLD_MAX: Duration = Duration::from_millis(50);
/// How long a piece of long work goes on before others have their turn.
const PIECE: Duration = Duration::from_millis(5);
/// Time between two lines of the log about the same work.
const TOLD_EVERY_MS: i64 = 60_000;

/// Work that could hold the loop, for what others send decides how much it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Work {
    /// Whatever has no name of its own.
    #[default]
    Other,
    /// Commands and content of an SMTP client.
    Commands,
    /// Reading a message's header and choosing its way.
    Prepare,
    /// Finding the owners of a message's recipients.
    Route,
    /// Queueing a message.
    Enqueue,
    /// Doubling dots, or reading many replies.
    Transmit,
    /// Signing by DKIM.
    Sign,
    /// Writing down what became of recipients.
    Conclude,
    /// Making a report to a sender.
    Report,
    /// Timers and the look after queues.
    Timers,
    /// An order or a question of an operator.
    Order,
    /// Taking a configuration or a shard map into use.
    Reload,
}

/// How many there are.
const WORKS: usize = 12;

impl Work {
    /// Its name in the log and in `status`.
    pub fn name(self) -> &'static str {
        match self {
            Work::Other => "other",
            Work::Commands => "commands",
            Work::Prepare => "prepare",
            Work::Route => "route",
            Work::Enqueue => "enqueue",
            Work::Transmit => "transmit",
            Work::Sign => "sign",
            Work::Conclude => "conclude",
            Work::Report => "report",
            Work::Timers => "timers",
            Work::Order => "order",
            Work::Reload => "reload",
        }
    }
}

/// The holds of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Holds {
    /// Those longer than [`HOLD_MAX`].
    pub count: u64,
    /// The longest by CPU, milliseconds of CPU.
    pub cpu_ms: u32,
    /// How long it took, milliseconds: more than its CPU where the thread waited for its core or a disk.
    pub ms: u32,
    /// What it was.
    pub by: Work,
}

thread_local! {
    static HOLDS: Cell<Holds> = const { Cell::new(Holds { count: 0, cpu_ms: 0, ms: 0, by: Work::Other }) };
    /// The longest piece of the round that goes on, and its milliseconds.
    static LONGEST: Cell<(Work, i64)> = const { Cell::new((Work::Other, 0)) };
    /// When the thread's CPU time was read last, and what it was, microseconds.
    static CPU: Cell<(i64, i64)> = const { Cell::new((i64::MIN, 0)) };
    /// Somebody may wait for it.
    static SERVES: Cell<bool> = const { Cell::new(false) };
    /// When each work was told of last: that it worked, and that it waited.
    static TOLD: Cell<[[i64; WORKS]; 2]> = const { Cell::new([[i64::MIN; WORKS]; 2]) };
}

/// Milliseconds by a clock that costs a few nanoseconds and moves every one to four milliseconds.
#[expect(clippy::disallowed_methods, reason = "what held the loop up is logged, and decides nothing")]
fn coarse_ms() -> i64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(0, |t| t.tv_sec() * 1000 + t.tv_nsec() / 1_000_000)
}

#[expect(clippy::disallowed_methods, reason = "what held the loop up is logged, and decides nothing")]
fn cpu_us() -> i64 {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(0, |t| t.tv_sec() * 1_000_000 + t.tv_nsec() / 1000)
}

/// Does a piece of work under its name.
pub fn doing<T>(work: Work, piece: impl FnOnce() -> T) -> T {
    let began = coarse_ms();
    let done = piece();
    let lasted = coarse_ms() - began;
    if lasted > LONGEST.get().1 {
        LONGEST.set((work, lasted));
    }
    done
}

/// From now on clients and receivers may wait for this thread: what holds it before is its own start.
pub fn serves() {
    SERVES.set(true);
}

/// The holds of this thread so far.
pub fn so_far() -> Holds {
    HOLDS.get()
}

/// Runs the worker and watches how long each round of its loop takes.
pub async fn watched<F: Future>(loop_: F) -> F::Output {
    let mut loop_ = std::pin::pin!(loop_);
    poll_fn(|cx| {
        let began = coarse_ms();
        if CPU.get().0 != began {
            CPU.set((began, cpu_us()));
        }
        LONGEST.set((Work::Other, 0));
        let polled = loop_.as_mut().poll(cx);
        let now = coarse_ms();
        if now - began > HOLD_MAX.as_millis() as i64 && SERVES.get() {
            note(now, now - began);
        }
        polled
    })
    .await
}

fn note(now: i64, ms: i64) {
    let cpu_ms = (cpu_us() - CPU.get().1) / 1000;
    let (longest, of_it) = LONGEST.get();
    // Where what has a name took the smaller part of it, it was something else.
    let by = if of_it * 2 >= ms { longest } else { Work::Other };
    let mut holds = HOLDS.get();
    holds.count += 1;
    if cpu_ms as u32 >= holds.cpu_ms {
        (holds.cpu_ms, holds.ms, holds.by) = (cpu_ms as u32, ms as u32, by);
    }
    HOLDS.set(holds);
    // Else the thread waited most of the time: for its core on a busy machine, or for a disk.
    let worked = cpu_ms * 2 >= ms;
    let mut told = TOLD.get();
    let last = &mut told[usize::from(worked)][by as usize];
    if now.saturating_sub(*last) >= TOLD_EVERY_MS {
        *last = now;
        TOLD.set(told);
        match worked {
            true => tracing::warn!(work = by.name(), ms, cpu_ms, "the worker's loop was held"),
            false => tracing::info!(work = by.name(), ms, cpu_ms, "the worker's loop stood still"),
        }
    }
}

/// Long work in pieces, between which everybody else has a turn.
#[derive(Debug)]
pub struct Pieces(Instant);

impl Default for Pieces {
    fn default() -> Self {
        Pieces(Instant::now())
    }
}

impl Pieces {
    /// Lets the others have their turn if this piece has gone on for long.
    pub async fn pause(&mut self) {
        if self.is_long() {
            tokio::task::yield_now().await;
            self.0 = Instant::now();
        }
    }

    /// It is time for a pause.
    pub fn is_long(&self) -> bool {
        self.0.elapsed() >= PIECE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hold_is_counted_and_named() {
        watched(async { std::thread::sleep(3 * HOLD_MAX) }).await;
        assert_eq!(so_far().count, 0, "it does not serve yet");
        serves();
        let before = so_far().count;
        watched(async {
            doing(Work::Sign, || std::thread::sleep(3 * HOLD_MAX));
        })
        .await;
        assert_eq!((so_far().count, so_far().by), (before + 1, Work::Sign));
        watched(async {
            doing(Work::Prepare, || ());
            std::thread::sleep(3 * HOLD_MAX);
        })
        .await;
        assert_eq!(so_far().count, before + 2);
        watched(async {
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(Work::Reload as usize + 1, WORKS);
    }
}

//! What wakes whoever does the work: a thread, or a task where no thread is wanted.

use std::sync::{Condvar, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Rung when there is work. One alone waits for it.
pub(crate) struct Bell {
    for_a_task: bool,
    thread: Condvar,
    task: Notify,
}

impl Bell {
    /// A bell that a thread waits for.
    pub fn for_thread() -> Bell {
        Bell::new(false)
    }

    /// A bell that a task waits for.
    pub fn for_task() -> Bell {
        Bell::new(true)
    }

    fn new(for_a_task: bool) -> Bell {
        Bell { for_a_task, thread: Condvar::new(), task: Notify::new() }
    }

    /// Wakes the one who waits, or who looks next.
    pub fn ring(&self) {
        if self.for_a_task { self.task.notify_one() } else { self.thread.notify_one() }
    }

    /// Gives the lock back until it rings, or so much time has passed: for a thread.
    pub fn wait<'a, T>(&self, lock: MutexGuard<'a, T>, time: Duration) -> MutexGuard<'a, T> {
        self.thread.wait_timeout(lock, time).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits until it rings, or until then: for a task. What rang before counts, too.
    pub async fn rung(&self, until: Instant) {
        // Whoever waits looks what there is to do, in either case.
        let _ = tokio::time::timeout_at(until, self.task.notified()).await;
    }
}

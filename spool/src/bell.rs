//! Wakes the one thread, or the one task, that waits for work.

use std::sync::{Condvar, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Rung when there is work. Only one thread, or only one task, may wait for it.
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

    /// Wakes the waiting thread or task. Where a task does not wait yet, its next wait ends at once.
    pub fn ring(&self) {
        if self.for_a_task { self.task.notify_one() } else { self.thread.notify_one() }
    }

    /// Lets a thread wait until the bell rings or `time` has passed. The lock is given back meanwhile.
    pub fn wait<'a, T>(&self, lock: MutexGuard<'a, T>, time: Duration) -> MutexGuard<'a, T> {
        self.thread.wait_timeout(lock, time).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Lets a task wait until the bell rings or `until` has come. A ring since the last wait counts, too.
    pub async fn rung(&self, until: Instant) {
        // The task looks for work in either case, so it does not matter which of the two has happened.
        let _ = tokio::time::timeout_at(until, self.task.notified()).await;
    }
}

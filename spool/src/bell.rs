//! What wakes whoever does the work: a thread, or a task where no thread is wanted.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::accounting::Writer;

/// Rung when there is work. One alone waits for it.
pub(crate) struct Bell {
    for_a_task: bool,
    thread: Condvar,
    task: Notify,
}

impl Bell {
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

/// Who does the work of a spool.
pub(crate) enum Runner {
    /// Threads, started when they are needed.
    Threads,
    /// A task, which takes up the writers that it finds here.
    Task(std::sync::Arc<Mutex<Vec<Writer>>>),
}

impl Runner {
    /// A bell that wakes this one.
    pub fn bell(&self) -> Bell {
        Bell { for_a_task: matches!(self, Runner::Task(_)), thread: Condvar::new(), task: Notify::new() }
    }

    /// Lets a writer of accounting files run.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(&self, writer: Writer) -> std::io::Result<()> {
        match self {
            // Not waited for at the end: it may hang with its disk.
            Runner::Threads => {
                drop(std::thread::Builder::new().name("accounting".into()).spawn(move || writer.run())?);
            }
            Runner::Task(writers) => writers.lock().unwrap_or_else(PoisonError::into_inner).push(writer),
        }
        Ok(())
    }
}

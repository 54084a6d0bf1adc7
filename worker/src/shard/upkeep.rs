//! The loop that keeps a shard's queues moving: timers, expiry, and what is to be forgotten.

use std::rc::Rc;
use std::time::Duration;

use super::Shard;
use crate::clock;
use crate::deliver::shared_limits::wake_first;
use crate::engine::Aged;
use crate::holds::{Pieces, Work, doing};
use crate::schedule::QueueId;
use crate::tasks::{self, Panicked};

/// When what a timer was for panicked, it is tried again after this time, milliseconds.
const TIMED_AGAIN_MS: i64 = 60_000;
/// Queues and paths that are looked after in a second.
const SWEPT_MAX: usize = 1024;
/// The spool's index follows within 2 s, milliseconds.
const GIVE_BACK_AFTER_MS: i64 = 4_000;

impl Shard {
    /// Drives what depends on time: retries, waiting recipients, rates, expiry.
    pub async fn run_timers(self: Rc<Self>) {
        let mut sweep = clock::now_ms();
        let mut held = false;
        loop {
            let now = clock::now_ms();
            let next = self.scheduler().next_timer().unwrap_or(i64::MAX).min(now + 1000);
            let next = self.limit_queue.look_again_ms(now).map_or(next, |at| next.min(at));
            if next > now {
                tokio::select! {
                    biased;
                    () = self.timers.notified() => {}
                    () = tokio::time::sleep(Duration::from_millis((next - now) as u64)) => {}
                }
            }
            let now = clock::now_ms();
            let due = self.decide(|e, now| e.due(now));
            let mut pieces = Pieces::default();
            for timer in due {
                if let Err(panic) = tasks::contained(|| self.decide(|e, now| e.on_timer(timer, now))) {
                    panic.tell("timers");
                    self.decide(|e, _| e.time_again(timer, now + TIMED_AGAIN_MS));
                }
                pieces.pause().await;
            }
            for place in self.limit_queue.woken(&self.ledger, self.number, now) {
                let id = self.scheduler().paths.at(place).map(|(id, _)| id);
                if !id.is_some_and(|id| self.decide(|e, now| e.asks_again(id, now))) {
                    // It has no use for it any more: the next one has.
                    let keys = self.ledger.withdraw_all(self.number, place, now);
                    keys.into_iter().for_each(|k| wake_first(&self, k, id));
                }
            }
            if std::mem::replace(&mut held, self.spool.holds_deliveries()) && !held {
                tracing::info!(shard = self.number, "delivery goes on: what came of it can be written again");
                self.decide(|e, now| e.pump_all(now));
            }
            if now - sweep >= 1000 {
                sweep = now;
                doing(Work::Timers, || self.sweep(now));
            }
            tokio::task::yield_now().await;
        }
    }

    /// Looks for expired and delayed mail, ends backoff whose time is over, and forgets empty
    /// queues and paths: of so many at a time that a hundred thousand which wait cost nothing.
    fn sweep(self: &Rc<Self>, now: i64) {
        let (queue, path) = self.swept.get();
        let (queues, paths) = {
            let s = self.scheduler();
            (part(queue, s.queues.capacity()), part(path, s.paths.capacity()))
        };
        self.swept.set((queues.end, paths.end));
        let tell = |panic: Panicked| panic.tell("upkeep");
        for place in queues {
            let id = self.scheduler().queues.at(place as u32).map(|(id, _)| id);
            id.into_iter().for_each(|id| tasks::contained(|| self.look_after_queue(id)).unwrap_or_else(tell));
        }
        for place in paths {
            let id = self.scheduler().paths.at(place as u32).map(|(id, _)| id);
            id.into_iter().for_each(|id| {
                tasks::contained(|| self.decide(|e, now| e.look_after_path(id, now))).unwrap_or_else(tell)
            });
        }
        self.decide(|e, now| e.sweep_inherited(now));
        crate::log_limit::sweep();
        self.give_memory_back(now);
    }

    /// A queue that was deep is not any more, or many receivers that were silent: what that held goes back to the system once the spool has
    /// written down, and freed, what became of it.
    fn give_memory_back(&self, now: i64) {
        let at = self.give_back_ms.get();
        if self.decide(|e, _| e.shrink()) || self.openers.openings.fell() {
            self.give_back_ms.set(now + GIVE_BACK_AFTER_MS);
        } else if at != 0 && at <= now {
            self.give_back_ms.set(0);
            ipc::memory::give_back();
            tracing::debug!(shard = self.number, took_ms = clock::now_ms() - now, "memory given back");
        }
    }

    /// Much memory was freed that the allocator has use for again only in another such moment.
    pub fn gives_memory_back_soon(&self) {
        self.give_back_ms.set(clock::now_ms() + GIVE_BACK_AFTER_MS);
    }

    fn look_after_queue(self: &Rc<Self>, id: QueueId) {
        let Aged { expired, delayed } = self.decide(|e, now| e.look_for_age(id, now));
        if !expired.is_empty() {
            let shard = Rc::clone(self);
            tasks::begin("expiry", move || crate::deliver::conclusion::expire(shard, id, expired));
        }
        if !delayed.is_empty() {
            let shard = Rc::clone(self);
            tasks::begin("reports of delays", move || crate::deliver::conclusion::report_delays(shard, id, delayed));
        }
        let ends_pause = self.scheduler().queues.get(id).map(|q| q.paused && crate::meant::is_left_over(self, q));
        if let Some(ends_pause) = ends_pause {
            self.decide(|e, now| e.look_after_queue(id, ends_pause, now));
        }
    }
}

/// The next numbers of `all` that are looked after, from `at` on or from the first.
fn part(at: usize, all: usize) -> std::ops::Range<usize> {
    let from = if at >= all { 0 } else { at };
    from..all.min(from + SWEPT_MAX)
}

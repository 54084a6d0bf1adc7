//! The loop that keeps a shard's queues moving: timers, expiry, and what is to be forgotten.

use std::rc::Rc;
use std::time::Duration;

use super::Shard;
use crate::clock;
use crate::deliver::shared_limits::wake_first;
use crate::holds::{Pieces, Work, doing};
use crate::schedule::{PathId, QueueId, Timer};
use crate::tasks::{self, Panicked};

/// When what a timer was for panicked, it is tried again after this time, milliseconds.
const TIMED_AGAIN_MS: i64 = 60_000;
/// Queues and paths that are looked after in a second.
const SWEPT_MAX: usize = 1024;
/// The spool's index follows within 2 s, milliseconds.
const GIVE_BACK_AFTER_MS: i64 = 4_000;
/// How long the hosts of a domain that rolled up count for connections of others, milliseconds.
const HOSTS_MS: i64 = 300_000;

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
            let due = self.scheduler_mut().due(now);
            let mut pieces = Pieces::default();
            for timer in due {
                let pumped = tasks::contained(|| match timer {
                    Timer::Queue(id) => self.pump_queue(id),
                    Timer::Path(id) => self.pump(id),
                });
                if let Err(panic) = pumped {
                    panic.tell("timers");
                    self.time_again(timer, now + TIMED_AGAIN_MS);
                }
                pieces.pause().await;
            }
            for place in self.limit_queue.woken(&self.ledger, self.number, now) {
                let id = self.scheduler().paths.at(place).map(|(id, _)| id);
                if !id.is_some_and(|id| self.asks_again(id, now)) {
                    // It has no use for it any more: the next one has.
                    let keys = self.ledger.withdraw_all(self.number, place, now);
                    keys.into_iter().for_each(|k| wake_first(&self, k, id));
                }
            }
            if std::mem::replace(&mut held, self.spool.holds_deliveries()) && !held {
                tracing::info!(shard = self.number, "delivery goes on: what came of it can be written again");
                let ids: Vec<QueueId> = self.scheduler().queues.iter().map(|(id, _)| id).collect();
                ids.into_iter().for_each(|id| self.pump_queue(id));
            }
            if now - sweep >= 1000 {
                sweep = now;
                doing(Work::Timers, || self.sweep(now));
            }
            tokio::task::yield_now().await;
        }
    }

    /// A path asks anew for what was in its way, which others have given back; whether it opens a connection with it.
    fn asks_again(&self, id: PathId, now: i64) -> bool {
        let opening = {
            let mut s = self.scheduler_mut();
            let Some(p) = s.paths.get_mut(id) else { return false };
            p.ask_again_ms = if p.ask_again_ms > now { 0 } else { p.ask_again_ms };
            p.connecting
        };
        self.pump(id);
        let opens = |p: &crate::schedule::Path| {
            p.connecting > opening || p.waits_to_open || (p.connecting > 0 && p.is_lively(now))
        };
        self.scheduler().paths.get(id).is_some_and(opens)
    }

    /// What a timer was for panicked: that is tried once more, later.
    fn time_again(&self, timer: Timer, at_ms: i64) {
        let mut s = self.scheduler_mut();
        let paths: Vec<PathId> = match timer {
            Timer::Path(id) => vec![id],
            Timer::Queue(id) => {
                let of_queue = s.queues.get(id);
                of_queue.iter().flat_map(|q| q.pullers.iter().map(|p| p.path)).collect()
            }
        };
        paths.into_iter().for_each(|id| s.wake_at(id, at_ms));
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
            id.into_iter().for_each(|id| tasks::contained(|| self.look_after_queue(id, now)).unwrap_or_else(tell));
        }
        for place in paths {
            let id = self.scheduler().paths.at(place as u32).map(|(id, _)| id);
            id.into_iter().for_each(|id| tasks::contained(|| self.look_after_path(id)).unwrap_or_else(tell));
        }
        self.decide(|e, now| e.sweep_inherited(now));
        crate::log_limit::sweep();
        self.give_memory_back(now);
    }

    /// A queue that was deep is not any more, or many receivers that were silent: what that held goes back to the system once the spool has
    /// written down, and freed, what became of it.
    fn give_memory_back(&self, now: i64) {
        let at = self.give_back_ms.get();
        if self.scheduler_mut().shrink() || self.openers.openings.fell() {
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

    fn look_after_queue(self: &Rc<Self>, id: QueueId, now: i64) {
        let expired = self.scheduler_mut().expired(id, now);
        if !expired.is_empty() {
            let shard = Rc::clone(self);
            tasks::begin("expiry", move || crate::deliver::conclusion::expire(shard, id, expired));
        }
        let delayed = self.scheduler_mut().delayed(id, now);
        if !delayed.is_empty() {
            let shard = Rc::clone(self);
            tasks::begin("reports of delays", move || crate::deliver::conclusion::report_delays(shard, id, delayed));
        }
        let waits = {
            let mut s = self.scheduler_mut();
            if let Some(q) = s.queues.get_mut(id).filter(|q| q.paused && crate::meant::is_left_over(self, q)) {
                // Nothing comes here that the pause could hold.
                q.paused = false;
            }
            if let Some(q) = s.queues.get_mut(id).filter(|q| q.recipients == 0 && !q.sent_on_from.is_empty()) {
                // Mail that is sent on again says it again.
                q.sent_on_from = Box::default();
            }
            s.forget_queue(id);
            let r = s.queues.get_mut(id).and_then(|q| q.rolled_up.as_mut());
            if let Some(r) = r.filter(|r| !r.hosts.is_empty() && now - r.hosts_ms > HOSTS_MS) {
                r.hosts = Rc::from([]);
            }
            crate::why::count(&mut s, id, now);
            s.queues.get(id).filter(|q| !q.ready.is_empty() && q.may_go(now)).map(|q| q.pullers.is_empty())
        };
        match waits {
            // A path that let others go first, whose probe is due, or whose connections hang.
            Some(false) => {
                self.decide(|e, now| {
                    e.pump_pullers(id, now);
                    e.pump_another_member(id, now);
                });
            }
            Some(true) => self.pump_queue(id),
            None => {}
        }
    }

    fn look_after_path(&self, id: PathId) {
        self.decide(|e, now| {
            e.keep_up(id, now);
            e.end_backoff(id, now);
            e.forget_path(id, now);
        });
    }
}

/// The next numbers of `all` that are looked after, from `at` on or from the first.
fn part(at: usize, all: usize) -> std::ops::Range<usize> {
    let from = if at >= all { 0 } else { at };
    from..all.min(from + SWEPT_MAX)
}

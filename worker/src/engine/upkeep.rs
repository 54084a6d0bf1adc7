//! What time brings: timers, mail that is too old, and what is to be forgotten.

use std::rc::Rc;

use ipc::dice::HashMap;

use super::now::Now;
use super::state::Engine;
use crate::schedule::message::HeldContent;
use crate::schedule::{Entry, PathId, QueueId, Timer};

/// How long the hosts of a domain that rolled up count for connections of others, milliseconds.
const HOSTS_MS: i64 = 300_000;

/// What was found due in a queue.
#[derive(Debug, Default)]
pub struct Aged {
    /// Recipients past `bounce-after`, taken out of the queue.
    pub expired: Vec<Entry>,
    /// Recipients whose delay may have to be reported, with the times that they wait for, Unix milliseconds.
    pub delayed: Vec<(Entry, i64)>,
}

impl<C: HeldContent> Engine<C> {
    /// Timers that have come due.
    pub fn due(&mut self, now: Now) -> Vec<Timer> {
        self.scheduler.due(now.ms())
    }

    /// Does what a timer was for.
    pub fn on_timer(&mut self, timer: Timer, now: Now) {
        match timer {
            Timer::Queue(id) => self.pump_queue(id, now),
            Timer::Path(id) => {
                self.pump(id, now);
            }
        }
    }

    /// What a timer was for panicked: that is tried once more, at this time, Unix milliseconds.
    pub fn time_again(&mut self, timer: Timer, at_ms: i64) {
        let s = &mut self.scheduler;
        let paths: Vec<PathId> = match timer {
            Timer::Path(id) => vec![id],
            Timer::Queue(id) => {
                let of_queue = s.queues.get(id);
                of_queue.iter().flat_map(|q| q.pullers.iter().map(|p| p.path)).collect()
            }
        };
        paths.into_iter().for_each(|id| s.wake_at(id, at_ms));
    }

    /// Looks for mail of a queue that is too old or late.
    pub fn look_for_age(&mut self, id: QueueId, now: Now) -> Aged {
        let s = &mut self.scheduler;
        Aged { expired: s.expired(id, now.ms()), delayed: s.delayed(id, now.ms()) }
    }

    /// Looks after a queue: forgets it, or what it knows, where that is of no use any more, and sends what waits in it. `ends_pause`
    /// says that it is paused, and that its mail goes elsewhere.
    pub fn look_after_queue(&mut self, id: QueueId, ends_pause: bool, now: Now) {
        let s = &mut self.scheduler;
        if let Some(q) = s.queues.get_mut(id) {
            if ends_pause {
                // Nothing comes here that a pause could hold.
                q.paused = false;
            }
            if q.recipients == 0 && !q.sent_on_from.is_empty() {
                // Mail that is sent on again says it again.
                q.sent_on_from = Box::default();
            }
            let of_old = |r: &&mut Box<crate::schedule::queue::RolledUp>| now.ms() - r.hosts_ms > HOSTS_MS;
            if let Some(r) = q.rolled_up.as_mut().filter(|r| !r.hosts.is_empty()).filter(of_old) {
                r.hosts = Rc::from([]);
            }
        }
        s.forget_queue(id);
        s.count_cause(id, now.ms());
        let waits = s.queues.get(id).filter(|q| !q.ready.is_empty() && q.may_go(now.ms()));
        match waits.map(|q| q.pullers.is_empty()) {
            // A path that let others go first, whose probe is due, or whose connections hang.
            Some(false) => {
                self.pump_pullers(id, now);
                self.pump_another_member(id, now);
            }
            Some(true) => self.pump_queue(id, now),
            None => {}
        }
    }

    /// Looks after a path: its mode, and whether there is anything left to remember of it.
    pub fn look_after_path(&mut self, id: PathId, now: Now) {
        self.keep_up(id, now);
        self.end_backoff(id, now);
        self.forget_path(id, now);
    }

    /// Sends what waits in all queues, after a time in which nothing could be sent.
    pub fn pump_all(&mut self, now: Now) {
        let ids: Vec<QueueId> = self.scheduler.queues.iter().map(|(id, _)| id).collect();
        ids.into_iter().for_each(|id| self.pump_queue(id, now));
    }

    /// Gives the tables of what was deep, and is not any more, back to the allocator; whether there were some.
    pub fn shrink(&mut self) -> bool {
        self.scheduler.shrink()
    }

    /// All mail that the spool holds is found, with the replies that it met.
    pub fn has_recalled(&mut self) {
        self.scheduler.has_recalled();
    }

    /// The destination at which most recipients were attempted since the last time that this was asked, with its part of all, in a
    /// thousand.
    pub fn hottest(&mut self) -> Option<(String, u32)> {
        let mut all: HashMap<&str, u64> = HashMap::default();
        for (_, p) in self.scheduler.paths.iter_mut() {
            let taken = std::mem::take(&mut p.taken);
            if taken > 0 {
                *all.entry(&p.destination).or_default() += u64::from(taken);
            }
        }
        let sum: u64 = all.values().sum();
        let (destination, most) = all.into_iter().max_by_key(|(_, n)| *n)?;
        Some((destination.to_owned(), (most * 1000 / sum.max(1)) as u32))
    }
}

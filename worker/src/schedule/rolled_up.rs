//! Queues of one path whose domains have hosts of their own: which of its connections serves which.

use std::cmp::Reverse;

use super::ids::{PathId, QueueId, Timer};
use super::message::HeldContent;
use super::scheduler::Scheduler;
use crate::connect::protection::Parameters;

/// Queues of a path that are looked at for one that no connection serves.
const UNSERVED_MAX: usize = 64;

impl<C: HeldContent> Scheduler<C> {
    /// The queue whose hosts the next connection of path `id` is to be opened to: one that no
    /// open connection serves, if there is one.
    pub fn unserved(&self, path: PathId, now_ms: i64) -> Option<QueueId> {
        let p = self.paths.get(path)?;
        let able = |id: &QueueId| {
            let q = self.queues.get(*id).filter(|q| q.may_go(now_ms) && !q.ready.is_empty());
            q.is_some_and(|q| q.ready.next(|j| self.jobs.may_go(j)).is_some()) && self.may_pull(*id, path, now_ms)
        };
        let served = |id: &QueueId| self.queues.get(*id).is_none_or(|q| q.rolled_up.is_none() || p.serves(q));
        let mut first = None;
        for queue in p.in_turn().filter(able).take(UNSERVED_MAX) {
            if !served(&queue) {
                return Some(queue);
            }
            first = first.or(Some(queue));
        }
        first
    }

    /// Whether mail waits for a path that none of its connections can carry.
    pub fn has_unserved(&self, id: PathId, now_ms: i64) -> bool {
        let Some(p) = self.paths.get(id).filter(|p| !p.open_hosts.is_empty()) else { return false };
        let queue = self.unserved(id, now_ms).and_then(|q| self.queues.get(q));
        queue.is_some_and(|q| q.rolled_up.is_some() && !p.serves(q))
    }

    /// A connection of path `id` to a host was opened, or closed.
    pub fn count_host(&mut self, id: PathId, host: &str, parameters: Option<&Parameters>, opened: bool) {
        let Some(p) = self.paths.get_mut(id) else { return };
        let at = p.open_hosts.iter().position(|(h, with, _)| h == host && with.as_ref() == parameters);
        match (at, opened) {
            (Some(at), true) => p.open_hosts[at].2 += 1,
            (None, true) => p.open_hosts.push((host.to_owned(), parameters.cloned(), 1)),
            (Some(at), false) => {
                p.open_hosts[at].2 -= 1;
                if p.open_hosts[at].2 == 0 {
                    p.open_hosts.swap_remove(at);
                }
            }
            (None, false) => {}
        }
    }

    /// Queue `id` waits for its own domain's hosts; wakes it then.
    pub fn defer_queue(&mut self, id: QueueId, now_ms: i64, failure: crate::classify::outcome::Failure) {
        let failure = self.shared_failure(failure);
        if let Some(q) = self.queues.get_mut(id) {
            q.defer(now_ms, failure);
            self.timers.push(Reverse((q.retry_at_ms(), Timer::Queue(id))));
        }
        self.drop_contents(id);
    }
}

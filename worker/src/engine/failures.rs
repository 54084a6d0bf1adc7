//! What receivers said, and what failed: what it says of a path, and how long that rests for it.

use std::rc::Rc;

use super::now::Now;
use super::state::Engine;
use crate::classify::outcome::Failure;
use crate::classify::reply_patterns::{Effects, Patterns, Switch};
use crate::schedule::message::HeldContent;
use crate::schedule::path::ModeChange;
use crate::schedule::{PathId, QueueId};

/// After a connection was refused while others of the path are open, another is tried so much later, milliseconds.
const CONNECT_AGAIN_MS: i64 = 5_000;

/// What a transaction says of its path.
#[derive(Debug, Default)]
pub struct Judgement {
    /// The last recipient that was not delivered, and why.
    pub failure: Option<Rc<Failure>>,
    /// Recipients were delivered.
    pub delivered: bool,
    /// The replies speak ill of the source address, see [`crate::classify`].
    pub speaks_ill: bool,
}

impl<C: HeldContent> Engine<C> {
    /// What a transaction with mail of a queue says of its path, and whether that changed the path's mode.
    pub fn judge(&mut self, id: PathId, queue: QueueId, of: Judgement, now: Now) -> Option<ModeChange> {
        let s = &mut self.scheduler;
        if let Some(q) = s.queues.get_mut(queue) {
            if of.failure.is_some() {
                q.last_failure.clone_from(&of.failure);
            }
            if of.delivered {
                q.rolled_up.iter_mut().for_each(|r| r.retry_step = 0);
            }
        }
        let p = s.paths.get_mut(id)?;
        of.failure.into_iter().for_each(|f| p.failed(now.ms(), f));
        if of.delivered {
            return p.delivered(now.ms());
        }
        if of.speaks_ill {
            p.judged(false);
        }
        None
    }

    /// A session failed in the middle of mail of a queue; the mail goes on by other connections.
    pub fn session_failed(&mut self, id: PathId, queue: QueueId, failure: Failure, speaks_ill: bool, now: Now) {
        let s = &mut self.scheduler;
        let failure = s.shared_failure(failure);
        if let Some(q) = s.queues.get_mut(queue) {
            q.last_failure = Some(Rc::clone(&failure));
        }
        if let Some(p) = s.paths.get_mut(id) {
            if speaks_ill {
                p.judged(false);
            }
            p.failed(now.ms(), failure);
        }
    }

    /// A path rests for `retry-after`, unless it does so already.
    pub fn defer_path(&mut self, id: PathId, failure: Failure, speaks_ill: bool, now: Now) {
        if self.scheduler.paths.get(id).is_some_and(|p| p.retry_at_ms <= now.ms()) {
            self.path_rests(id, failure, speaks_ill, now);
        }
    }

    /// A path rests for `retry-after`, also where it does so already.
    pub fn path_rests(&mut self, id: PathId, failure: Failure, speaks_ill: bool, now: Now) {
        let failure = self.scheduler.shared_failure(failure);
        let Some(p) = self.scheduler.paths.get_mut(id) else { return };
        p.defer(now.ms(), failure, speaks_ill);
        let at = p.retry_at_ms;
        self.scheduler.wake_at(id, at);
    }

    /// A path failed as a whole, or is to wait `by_rule` (`defer-queue`), whatever connections are open: those go on. Answers the queues
    /// whose mail other members of a pool may carry on.
    pub fn path_failed(
        &mut self,
        id: PathId,
        failure: Failure,
        speaks_ill: bool,
        by_rule: bool,
        now: Now,
    ) -> Vec<QueueId> {
        let s = &mut self.scheduler;
        let failure = s.shared_failure(failure);
        let Some(p) = s.paths.get_mut(id) else { return Vec::new() };
        self.line.learn(p, false);
        let queues = p.queues.clone();
        for q in queues.iter() {
            s.queues.get_mut(q).into_iter().for_each(|q| q.last_failure = Some(Rc::clone(&failure)));
        }
        // Several connections that fail together are one failure.
        let at = if p.retry_at_ms <= now.ms() && (p.connections == 0 || by_rule) {
            p.defer(now.ms(), failure, speaks_ill);
            p.retry_at_ms
        } else {
            // The connections that are open go on; one more is tried later.
            p.failed(now.ms(), failure);
            p.connect_again_ms = p.connect_again_ms.max(now.ms() + CONNECT_AGAIN_MS);
            p.connect_again_ms
        };
        s.wake_at(id, at);
        let is_shared = |q: &QueueId| s.queues.get(*q).is_some_and(|q| q.members.len() > 1);
        let (shared, own): (Vec<QueueId>, Vec<QueueId>) = queues.iter().partition(is_shared);
        own.into_iter().for_each(|q| s.drop_contents(q));
        shared
    }

    /// Whether a failure is one domain's alone: no connection of the path is open, and the queue is no pool's.
    pub fn is_of_domain_alone(&self, id: PathId, queue: QueueId) -> bool {
        let s = &self.scheduler;
        s.queues.get(queue).is_some_and(|q| q.members.len() == 1) && s.paths.get(id).is_some_and(|p| p.connections == 0)
    }

    /// A queue waits for the hosts of its own domain; others that share its path go on.
    pub fn defer_queue(&mut self, queue: QueueId, failure: Failure, now: Now) {
        self.scheduler.defer_queue(queue, now.ms(), failure);
    }

    /// What the rules that a reply matches do, and their place in the configuration. The mode of the path is another one already; what
    /// the answer says of the change is to be told with [`Engine::mode_changed`].
    pub fn apply_reply_rules(
        &mut self,
        id: PathId,
        patterns: &Patterns,
        matching: &[usize],
        now: Now,
    ) -> Option<(Effects, String, Option<ModeChange>)> {
        let p = self.scheduler.paths.get_mut(id)?;
        let (effects, place) = patterns.effects(matching, &mut p.matches, now.ms());
        let change = match effects.mode {
            Some(Switch::ToBackoff(None)) => p.enter_backoff(now.ms()),
            Some(Switch::ToBackoff(Some(ms))) => {
                let until = now.ms().saturating_add(i64::try_from(ms).unwrap_or(i64::MAX / 4));
                p.enter_backoff_until(until, now.ms())
            }
            Some(Switch::ToNormal) => p.leave_backoff(now.ms()),
            None => None,
        };
        Some((effects, place.unwrap_or_default().to_owned(), change))
    }
}

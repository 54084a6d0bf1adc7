//! From a message that is on disk to entries in its queues.

use ipc::message::{ArchivedEnvelope, ArchivedRecipient, notify, priority};
use spool::Recovered;

use super::action::Action;
use super::now::Now;
use super::state::Engine;
use crate::schedule::message::{HeldContent, Message, windows_end_s};
use crate::schedule::{Entry, QueueId, Slot};

/// Queues that recipients of a message are put into at least, before others have their turn.
const ENQUEUED_AT_LEAST: usize = 16;
/// Queues that recipients of a message are put into at most, before others have their turn: opening connections for them takes many times as long.
const ENQUEUED_MAX: usize = 64;

/// Bytes of content kept in memory until the first attempt, per shard.
const CONTENT_BUDGET_BYTES: u64 = 64 << 20;

/// A message that is being queued.
#[derive(Debug)]
pub struct Intake {
    slot: Slot,
    /// The first recipient that is not queued yet.
    start: usize,
    due_ms: i64,
    /// Whether every queue that recipients were put into so far waits for its retry; `None` while there was no queue.
    rests: Option<bool>,
    /// Queues that have to be looked at.
    touched: Vec<QueueId>,
}

impl Intake {
    /// All recipients of its message are queued.
    pub fn is_over(&self, e: &ArchivedEnvelope) -> bool {
        self.start >= e.recipients.len()
    }
}

impl<C: HeldContent> Engine<C> {
    /// Contents may be held in memory: there is room in the budget.
    pub fn may_hold_content(&self) -> bool {
        self.scheduler.content_bytes < CONTENT_BUDGET_BYTES
    }

    /// Puts a message among those in memory; none of its recipients is queued yet. `key` is its number in the spool.
    pub fn begin_intake(
        &mut self,
        key: u64,
        e: &ArchivedEnvelope,
        body_len: u32,
        content: Option<std::rc::Rc<C>>,
    ) -> Intake {
        let windows = e.windows();
        let of_windows = windows.as_ref().map_or(0, |w| w.due_ms);
        let due_ms = e.moved.as_ref().map_or(0, |m| m.due_unix_ms.to_native()).max(of_windows);
        let slot = self.scheduler.add(
            &e.job_id,
            Message {
                key,
                received_ms: e.received_unix_ms.to_native(),
                body_len,
                left: e.recipients.len() as u16,
                notify_delay: e.recipients.iter().any(|r| r.notify & notify::DELAY != 0),
                alone: e.is_alone(),
                windows_end_s: windows_end_s(windows.as_ref().map_or(0, |w| w.ends_ms)),
                job: 0,
                content,
            },
        );
        Intake { slot, start: 0, due_ms, rests: None, touched: Vec::new() }
    }

    /// Queues recipients until `is_long` says that others have their turn, and starts what they wait for.
    pub fn take_in_some(&mut self, e: &ArchivedEnvelope, new: &mut Intake, is_long: impl Fn() -> bool, now: Now) {
        let mut queues = 0;
        let is_over = |queues| queues >= ENQUEUED_MAX || (queues >= ENQUEUED_AT_LEAST && is_long());
        while !new.is_over(e) && !is_over(queues) {
            queues += 1;
            let first = &e.recipients[new.start];
            let (destination, given) = (first.destination.as_str(), first.priority_given);
            let sent = |r: &ArchivedRecipient| r.notify & notify::NOT_TO_BE_SENT == 0;
            let alike = |r: &&ArchivedRecipient| {
                r.destination == first.destination && r.priority_given == given && sent(r) == sent(first)
            };
            let same = e.recipients[new.start..].iter().take_while(alike).count();
            let id = self.queue_for(destination, &e.vmta, now);
            if e.moved.is_some() || e.handoff.is_some() {
                self.was_accepted_before(id, now);
            }
            let (from, end, priority) = (new.start as u16, (new.start + same) as u16, priority(given));
            let attempts = e.moved.as_ref().map_or(0, |m| m.attempts);
            let entry = Entry { slot: new.slot, start: from, end, priority, attempts };
            let s = &mut self.scheduler;
            if sent(first) {
                s.enqueue(id, entry, new.due_ms, now.ms());
                if let Some(m) = e.moved.as_ref().filter(|m| !m.last_reply.is_empty()) {
                    s.recall(id, m.last_reply.as_str(), new.due_ms);
                }
                new.touched.push(id);
            } else {
                // A recipient that was accepted only to be bounced does not wait for its receiver.
                s.count_in(id, &entry);
                self.act(Action::Refuse(id, entry));
            }
            new.start += same;
        }
        if !new.touched.is_empty() {
            let waits = new.due_ms > now.ms();
            let rest = waits || new.touched.iter().all(|id| self.scheduler.rests(*id, now.ms()));
            new.rests = Some(rest && new.rests != Some(false));
        }
        if new.is_over(e) && new.rests == Some(true) {
            // Its receivers failed a moment ago, so the first attempt is not soon: other messages have more use of the memory.
            self.scheduler.drop_content(new.slot);
        }
        new.touched.drain(..).for_each(|id| self.pump_queue(id, now));
    }

    /// Queues a message of this shard's own that was found when the spool opened.
    pub fn take_in_recovered(&mut self, r: &Recovered, now: Now) {
        let slot = self.scheduler.add(
            &r.job,
            Message {
                key: r.key,
                received_ms: r.received_unix_ms,
                body_len: r.body_len,
                left: r.recipients.len() as u16,
                notify_delay: r.notify_delay,
                alone: r.alone,
                windows_end_s: windows_end_s(r.windows_end_ms),
                job: 0,
                content: None,
            },
        );
        let mut at = 0;
        while at < r.recipients.len() {
            let first = &r.recipients[at];
            let same = r.recipients[at..]
                .iter()
                .enumerate()
                .take_while(|(i, x)| {
                    x.destination == first.destination
                        && x.priority == first.priority
                        && (x.due_unix_ms, x.attempts) == (first.due_unix_ms, first.attempts)
                        && usize::from(x.index) == usize::from(first.index) + i
                })
                .count();
            let id = self.queue_for(&first.destination, &r.vmta, now);
            let (start, end) = (first.index, first.index + same as u16);
            let entry = Entry { slot, start, end, priority: first.priority, attempts: first.attempts };
            self.was_accepted_before(id, now);
            self.scheduler.enqueue(id, entry, first.due_unix_ms, now.ms());
            self.scheduler.recall(id, &first.last_reply, first.due_unix_ms);
            at += same;
        }
    }
}

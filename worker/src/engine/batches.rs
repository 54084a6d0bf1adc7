//! Mail that leaves its queue: given out to be sent, put back, held until a time, and ended.

use std::net::IpAddr;

use super::action::{Action, News};
use super::now::Now;
use super::state::Engine;
use crate::schedule::message::HeldContent;
use crate::schedule::removal::TakenOut;
use crate::schedule::tokens::Grant;
use crate::schedule::{Batch, Entry, Next, PathId, Queue, QueueId, Slot};

impl<C: HeldContent> Engine<C> {
    /// What a connection of a path from `source` sends next. `serves` says which queues' mail it can carry; `shared` answers how many of
    /// so many recipients, of so many bytes, the limits over all shards allow.
    pub fn next_batch(
        &mut self,
        id: PathId,
        source: Option<IpAddr>,
        serves: &dyn Fn(&Queue) -> bool,
        shared: &mut dyn FnMut(u64, u64) -> Grant,
        now: Now,
    ) -> Next {
        let next = self.scheduler.next(id, source, now.ns, serves, shared);
        if matches!(next, Next::Send(_)) {
            self.note_rate(id, now);
        }
        next
    }

    /// A connection of a path is through with a batch.
    pub fn end_batch(&mut self, id: PathId, ordinary: bool) {
        self.scheduler.free(id, ordinary);
    }

    /// Recipients of a batch were not attempted: they go back to the front of their queue.
    pub fn put_back(&mut self, batch: &Batch, recipients: &[u16]) {
        self.scheduler.put_back(batch, recipients);
    }

    /// Recipients of a batch wait until a time, Unix milliseconds, after one attempt more.
    pub fn retry(&mut self, batch: &Batch, recipients: &[u16], due_ms: i64) {
        self.scheduler.retry(batch, recipients, due_ms);
    }

    /// Recipients of a batch wait until a time, Unix milliseconds, after as many attempts as `attempts` says.
    pub fn hold(&mut self, batch: &Batch, recipients: &[u16], due_ms: i64, attempts: u8) {
        self.scheduler.hold(batch, recipients, due_ms, attempts);
    }

    /// So many recipients of the message of a key ended, which were out of their queue. Answers whether none of the message is left.
    pub fn settle(&mut self, id: QueueId, slot: Slot, key: u64, recipients: usize) -> bool {
        self.scheduler.settle(id, slot, key, recipients).unwrap_or_else(|| {
            // An error of this program. Settled as before, the recipients of another message would be taken for ended.
            self.act(Action::Tell(News::SettledTwice { key, recipients }));
            false
        })
    }

    /// Takes all that waits out of a queue, with the times that it waits for, Unix milliseconds.
    pub fn drain(&mut self, id: QueueId) -> Vec<(Entry, i64)> {
        self.scheduler.drain(id)
    }

    /// Takes the recipients out of a queue that `is_meant` says, by message (key and slot) and number.
    pub fn take_out(&mut self, id: QueueId, is_meant: impl Fn(u64, Slot, u16) -> bool) -> Vec<TakenOut> {
        self.scheduler.take_out(id, is_meant)
    }

    /// Recipients that were counted under the rates of a path were not attempted after all.
    pub fn not_attempted(&mut self, id: PathId, source: Option<IpAddr>, recipients: u64, now: Now) {
        self.scheduler.not_attempted(id, source, recipients, now.ns);
    }

    /// Bytes that were counted under the rates of a path did not arrive after all.
    pub fn not_transferred(&mut self, id: PathId, source: Option<IpAddr>, bytes: u64, now: Now) {
        self.scheduler.not_transferred(id, source, bytes, now.ns);
    }
}

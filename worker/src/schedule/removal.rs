//! Mail that leaves its queue without being sent from there: deleted, or moved.

use std::cmp::Reverse;

use super::batch::Batch;
use super::entry::Entry;
use super::ids::{QueueId, Slot};
use super::message::HeldContent;
use super::scheduler::Scheduler;

/// Recipients that were taken out of their queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakenOut {
    /// The message's key in the spool.
    pub key: u64,
    /// The entry that they waited in.
    pub entry: Entry,
    /// When they may be tried next, Unix milliseconds; 0 where that is past.
    pub due_ms: i64,
    /// Their indexes.
    pub recipients: Vec<u16>,
}

impl<C: HeldContent> Scheduler<C> {
    /// Takes recipients that wait out of queue `id`: those of a message (its key and slot) that `wanted`
    /// says. They count as its recipients until they are settled.
    pub fn take_out(&mut self, id: QueueId, wanted: impl Fn(u64, Slot, u16) -> bool) -> Vec<TakenOut> {
        let Some(q) = self.queues.get_mut(id) else { return Vec::new() };
        let messages = &self.messages;
        let key = |e: &Entry| messages.get(e.slot as usize).map(|m| m.key);
        let meant = |e: &Entry| key(e).is_some_and(|k| (e.start..e.end).any(|r| wanted(k, e.slot, r)));
        let mut found: Vec<(Entry, i64)> = Vec::new();
        let mut stays = |e: &Entry, due_ms: i64| {
            let taken = meant(e);
            if taken {
                found.push((*e, due_ms));
            }
            !taken
        };
        q.ready.retain(|e| stays(e, 0));
        q.waiting.retain(|Reverse((due, e))| stays(e, i64::from(*due) * 1000));
        let mut all = Vec::new();
        for (entry, due_ms) in found {
            let Some(m) = self.messages.get(entry.slot as usize) else { continue };
            let (key, job) = (m.key, m.job);
            let (out, rest): (Vec<u16>, Vec<u16>) = (entry.start..entry.end).partition(|r| wanted(key, entry.slot, *r));
            let batch = Batch::of(id, key, entry);
            for e in batch.entries(&rest) {
                match due_ms {
                    0 => self.queues.get_mut(id).into_iter().for_each(|q| q.ready.push(job, e)),
                    due => self.wait(id, e, due),
                }
            }
            all.push(TakenOut { key, entry, due_ms, recipients: out });
        }
        all
    }

    /// Moves what waits in a queue to another one; answers how many recipients.
    pub fn transfer(&mut self, from: QueueId, to: QueueId, now_ms: i64) -> u64 {
        let mut moved = 0;
        let said = self.queues.get(from).and_then(|q| q.last_failure.clone());
        self.queues.get_mut(to).into_iter().for_each(|q| q.last_failure = q.last_failure.take().or(said.clone()));
        for (entry, due_ms) in self.drain(from) {
            let bytes = self.messages.get(entry.slot as usize).map_or(0, |m| u64::from(m.body_len));
            if let Some(q) = self.queues.get_mut(from) {
                let had = q.recipients > 0;
                q.recipients = q.recipients.saturating_sub(entry.len());
                self.queues_with_mail -= u64::from(had && q.recipients == 0);
                q.bytes = q.bytes.saturating_sub(bytes);
            }
            self.recipients = self.recipients.saturating_sub(entry.len());
            self.enqueue(to, entry, due_ms, now_ms);
            moved += entry.len();
        }
        moved
    }

    /// Takes everything that waits out of queue `id`, with the time it is due (Unix
    /// milliseconds; 0 where that is past).
    pub fn drain(&mut self, id: QueueId) -> Vec<(Entry, i64)> {
        let Some(q) = self.queues.get_mut(id) else { return Vec::new() };
        let mut all: Vec<(Entry, i64)> = q.ready.drain().into_iter().map(|e| (e, 0)).collect();
        all.extend(std::mem::take(&mut q.waiting).into_iter().map(|Reverse((due, e))| (e, i64::from(due) * 1000)));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::Next;
    use super::super::scheduler::tests::{next, with};
    use super::*;
    use ipc::rules::DomainRules;

    #[test]
    fn who_is_taken_out_leaves_the_others_as_they_were() {
        let (mut s, id) = with(DomainRules { max_rcpt_per_transaction: 4, ..Default::default() }, 10);
        let Next::Send(b) = next(&mut s, id, 0) else { panic!("nothing to send") };
        s.retry(&b, &[1, 2, 3], 60_000);
        let taken = |s: &mut Scheduler<()>, which: &[u16]| {
            let all = s.take_out(id, |key, slot, r| (key, slot) == (1, b.slot) && which.contains(&r));
            let mut all: Vec<u16> = all.into_iter().flat_map(|t| t.recipients).collect();
            all.sort_unstable();
            all
        };
        assert_eq!(taken(&mut s, &[0, 2, 5, 9, 77]), [2, 5, 9], "0 is under way");
        assert!(taken(&mut s, &[2, 5, 9]).is_empty());
        let mut left = Vec::new();
        while let Next::Send(b) = next(&mut s, id, 0) {
            left.extend(b.recipients);
        }
        assert_eq!(left, [4, 6, 7, 8]);
        assert!(!s.due(60_000).is_empty());
        while let Next::Send(b) = next(&mut s, id, 60_000 * 1_000_000) {
            assert_eq!(b.attempts, 1);
            left.extend(b.recipients);
        }
        assert_eq!(left[4..], [1, 3]);
    }
}

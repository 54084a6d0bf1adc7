//! What a connection sends at once.

use super::entry::Entry;
use super::ids::{QueueId, Slot};

/// Recipients to send in one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The queue.
    pub queue: QueueId,
    /// The message.
    pub slot: Slot,
    /// Its key in the spool.
    pub key: u64,
    /// Priority that they share.
    pub priority: u8,
    /// Attempts made before.
    pub attempts: u8,
    /// It counts among its path's mail below `reserved-priority`.
    pub ordinary: bool,
    /// Indexes of the recipients.
    pub recipients: Vec<u16>,
}

impl Batch {
    /// All of an entry that was taken out of its queue.
    pub fn of(queue: QueueId, key: u64, e: Entry) -> Batch {
        let recipients = (e.start..e.end).collect();
        Batch { queue, slot: e.slot, key, priority: e.priority, attempts: e.attempts, ordinary: false, recipients }
    }

    /// The entry that it was taken out as; only of a batch that is whole.
    pub fn whole(&self) -> Entry {
        let start = self.recipients.first().copied().unwrap_or_default();
        let end = self.recipients.last().map_or(start, |r| r + 1);
        Entry { slot: self.slot, start, end, priority: self.priority, attempts: self.attempts }
    }

    /// Some of its recipients, as entries of consecutive indexes.
    pub fn entries(&self, recipients: &[u16]) -> Vec<Entry> {
        let mut all: Vec<Entry> = Vec::new();
        for r in recipients {
            match all.last_mut() {
                Some(e) if e.end == *r => e.end += 1,
                _ => all.push(Entry {
                    slot: self.slot,
                    start: *r,
                    end: r + 1,
                    priority: self.priority,
                    attempts: self.attempts,
                }),
            }
        }
        all
    }
}

/// What a connection does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Send this.
    Send(Batch),
    /// Nothing before this time (Unix milliseconds).
    Wait(i64),
    /// Nothing to do.
    Idle,
}

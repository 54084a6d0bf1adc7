//! How long a group waits for mail that is likely to come at once.

use std::time::Duration;

use tokio::time::Instant;

/// A group waits this long at most for mail that is expected.
const GATHER_MAX: Duration = Duration::from_millis(4);
/// Mail that came this long after the last group has nothing to do with it.
const GATHER_MEMORY: Duration = Duration::from_millis(10);

/// How much mail the next group waits for.
///
/// Clients whose messages were made durable in one group send their next messages at the same moment. Without a short wait
/// they would split into two halves that are synced in turn, and each of these syncs costs as much as one for all of them.
#[derive(Debug, Default)]
pub(crate) struct Gathering {
    /// Messages of the last group, and those that had come for the next one when it was answered.
    expected: usize,
    /// How long a group waits for mail: longer each time when all that was expected came, shorter when it did not.
    pub patience: Duration,
    /// When the last group with messages was answered.
    last: Option<Instant>,
}

impl Gathering {
    /// Until so many messages are there it is worth waiting.
    pub fn wanted(&self, now: Instant) -> usize {
        let recent = self.last.is_some_and(|t| now - t < GATHER_MEMORY);
        if recent { self.expected - self.expected / 8 } else { 1 }
    }

    /// Notes that a group was taken with so many `messages` when so many were `wanted`.
    pub fn taken(&mut self, messages: usize, wanted: usize) {
        self.patience = if messages >= wanted {
            (self.patience * 2).clamp(GATHER_MAX / 8, GATHER_MAX)
        } else {
            (self.patience * 3 / 4).max(GATHER_MAX / 8)
        };
    }

    /// Notes that a group of so many `messages` was answered, and that so many more are `waiting` for the next.
    pub fn answered(&mut self, messages: usize, waiting: usize) {
        if messages > 0 {
            self.expected = messages + waiting;
            self.last = Some(Instant::now());
        }
    }
}

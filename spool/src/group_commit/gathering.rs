//! How long a group waits for mail that is likely to come at once.

use std::time::Duration;

use tokio::time::Instant;

/// A group waits this long at most for mail that is expected.
const GATHER_MAX: Duration = Duration::from_millis(4);
/// Mail that came this long after the last group has nothing to do with it.
const GATHER_MEMORY: Duration = Duration::from_millis(10);

/// How much mail the next group may wait for. Those who inject in lockstep would otherwise
/// part into halves that are synced in turn, each sync at the cost of a full one: whoever was
/// answered with the last group, or waited meanwhile, is likely to be back at once.
#[derive(Debug, Default)]
pub(crate) struct Gathering {
    expected: usize,
    /// Grows while waiting pays, shrinks when it does not.
    pub patience: Duration,
    last: Option<Instant>,
}

impl Gathering {
    /// Messages worth waiting for now.
    pub fn wanted(&self, now: Instant) -> usize {
        let recent = self.last.is_some_and(|t| now - t < GATHER_MEMORY);
        if recent { self.expected - self.expected / 8 } else { 1 }
    }

    /// A group was taken after waiting.
    pub fn taken(&mut self, messages: usize, wanted: usize) {
        self.patience = if messages >= wanted {
            (self.patience * 2).clamp(GATHER_MAX / 8, GATHER_MAX)
        } else {
            (self.patience * 3 / 4).max(GATHER_MAX / 8)
        };
    }

    /// A group was answered while `waiting` messages had come for the next.
    pub fn answered(&mut self, messages: usize, waiting: usize) {
        if messages > 0 {
            self.expected = messages + waiting;
            self.last = Some(Instant::now());
        }
    }
}

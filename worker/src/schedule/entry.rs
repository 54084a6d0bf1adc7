//! Recipients of one message that wait together.

use super::ids::Slot;

/// Recipients `start..end` of a message that share a priority and a past. 12 bytes, for memory is what a
/// deep queue costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The message.
    pub slot: Slot,
    /// First recipient's index.
    pub start: u16,
    /// Index behind the last.
    pub end: u16,
    /// 0 to 100; the highest goes first.
    pub priority: u8,
    /// Attempts made so far, up to 255.
    pub attempts: u8,
}

impl Entry {
    /// Recipients in it.
    pub fn len(&self) -> u64 {
        u64::from(self.end - self.start)
    }

    /// Never true: entries hold at least one recipient.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

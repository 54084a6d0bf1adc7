//! Messages in memory.

use std::rc::Rc;

use super::job::JobId;

/// Unix milliseconds as [`Message::windows_end_s`].
pub fn windows_end_s(ms: i64) -> u32 {
    u32::try_from(ms.max(0) / 1000).unwrap_or(u32::MAX)
}

/// Envelope and content of a message in memory: the schedule holds them until the first attempt, and knows nothing else of them.
pub trait HeldContent {
    /// Bytes of memory that it takes, about.
    fn held_bytes(&self) -> u64;
}

/// A message in this shard. Kept small: this and its entry are all that a deferred message
/// costs in memory.
#[derive(Debug)]
pub struct Message<C> {
    /// Its key in the spool.
    pub key: u64,
    /// When it was accepted, Unix milliseconds.
    pub received_ms: i64,
    /// Bytes of content.
    pub body_len: u32,
    /// Recipients that have not ended.
    pub left: u16,
    /// The sender of some of them wants to hear of delays.
    pub notify_delay: bool,
    /// Each recipient has a transaction of its own.
    pub alone: bool,
    /// When the last of the windows ends that its mail is delivered within, in place of `bounce-after`; Unix seconds, 0 for none.
    pub windows_end_s: u32,
    /// What it belongs to, see [`Scheduler::add`].
    pub job: JobId,
    /// Envelope and content until the first attempt, within the memory budget.
    pub content: Option<Rc<C>>,
}

/// For schedules without contents, in tests.
#[cfg(test)]
impl HeldContent for () {
    fn held_bytes(&self) -> u64 {
        0
    }
}

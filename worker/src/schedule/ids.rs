//! Numbers of queues, paths and messages within their shard, and what has its time.

/// Number of a queue within its shard.
pub type QueueId = usize;

/// Number of a path within its shard.
pub type PathId = usize;

/// A message's place in [`super::Scheduler`].
pub type Slot = u32;

/// Something whose time comes. Numbers of 32 bits: there is one for nearly every queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// Recipients of a queue that waited are due.
    Queue(u32),
    /// A path's clock or window lets it go on.
    Path(u32),
}

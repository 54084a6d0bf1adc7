//! How queues, paths and messages are named within their shard, and what has its time.

use super::arena::Id;

/// Marks ids of queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OfQueue {}

/// Marks ids of paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OfPath {}

/// A queue of the shard. None has an id that another had before.
pub type QueueId = Id<OfQueue>;

/// A path of the shard. None has an id that another had before.
pub type PathId = Id<OfPath>;

#[cfg(test)]
impl QueueId {
    /// The path that was made with this queue, in tests that make one for each.
    pub fn only_path(self) -> PathId {
        Id::numbered_as(self)
    }
}

/// A message's place in [`super::Scheduler`]. Another may have it later; what keeps one for longer keeps the message's key, too.
pub type Slot = u32;

/// Something whose time comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// Recipients of a queue that waited are due.
    Queue(QueueId),
    /// A path's clock or window lets it go on.
    Path(PathId),
}

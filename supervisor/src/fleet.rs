//! What the supervisor knows of its shards, as values: [`crate::scaling`] and [`crate::retiring`] decide by it, for the server's workers and for
//! those that the simulation runs.

use std::time::Instant;

use ipc::control::Heartbeat;

/// What is known of a shard.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// Shard number.
    pub number: u8,
    /// It has a process.
    pub runs: bool,
    /// Its process serves, and has not been told to stop.
    pub serves: bool,
    /// One of its processes has served, so its spool can be opened.
    pub has_served: bool,
    /// It has no process, and the last ones did not serve for long.
    pub is_down: bool,
    /// Its last heartbeat; of a process that has ended, the number of recipients in it.
    pub heartbeat: &'a Heartbeat,
    /// When that came.
    pub beat_at: Instant,
    /// Its last process said, as it ended, that everything is on disk and in accounting files.
    pub left_complete: bool,
}

/// What the supervisor knows.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The shard map's epoch.
    pub epoch: u64,
    /// Shards that own destinations.
    pub owners: &'a [u8],
    /// All shards.
    pub shards: &'a [Known<'a>],
}

impl Seen<'_> {
    /// Every destination that the last map moved has been released by the shard that owned it before, as far as shards are up: one that is
    /// down has no connections.
    pub fn is_settled(&self) -> bool {
        let is_settled = |s: &Known<'_>| s.is_down || (s.serves && s.heartbeat.settled_epoch == self.epoch);
        self.shards.iter().all(is_settled)
    }
}

//! What a connection counts in, from the moment that the engine wants it until it has ended.

use std::rc::Rc;

use super::path::ServedPath;
use crate::connect::protection::Parameters;
use crate::engine::connections::{Blocked, Ended};
use crate::schedule::PathId;
use crate::shard::Shard;

/// A connection's place in the counts of its shard, its path and its source address. Dropped, it is in none of them any more, whatever
/// ended it, and the path may open another. What limits over several paths count is in [`super::shared_limits::LimitPlaces`], which has to be
/// dropped before.
pub(super) struct Lease {
    shard: Rc<Shard>,
    path: PathId,
    counts: Ended,
}

impl Lease {
    /// Of a connection that the engine has counted as being opened.
    pub fn of(shard: &Rc<Shard>, path: PathId) -> Lease {
        shard.connections.set(shard.connections.get() + 1);
        Lease { shard: Rc::clone(shard), path, counts: Ended::default() }
    }

    /// It goes from the source address that [`super::path::path_of`] has chosen, and counted.
    pub fn goes_from(&mut self, path: &ServedPath) {
        self.counts.source = path.source.filter(|_| path.counted);
    }

    /// It is open, to this host where mail of several domains may go by it.
    pub fn opened(&mut self, host: Option<(String, Option<Parameters>)>) {
        self.shard.decide(|e, _| e.connection_opened(self.path, host.as_ref()));
        (self.counts.was_open, self.counts.host) = (true, host);
    }

    /// A limit does not let it be opened.
    pub fn block(&mut self, blocked: Blocked) {
        self.counts.blocked = Some(blocked);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shard.decide(|e, now| e.connection_ended(self.path, &self.counts, now));
        self.shard.connections.set(self.shard.connections.get() - 1);
        self.shard.ended_or_moved.notify_waiters();
        self.shard.pump(self.path);
    }
}

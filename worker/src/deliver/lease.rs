//! What a connection counts in, from the moment that the engine wants it until it has ended.

use std::net::IpAddr;
use std::rc::Rc;

use super::limit_queue::ASK_AGAIN_MS;
use super::path::ServedPath;
use crate::clock;
use crate::connect::protection::Parameters;
use crate::schedule::PathId;
use crate::schedule::limit::Limit;
use crate::shard::Shard;

/// A limit is reached.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blocked {
    /// When it may be tried again, Unix milliseconds.
    pub until_ms: i64,
    /// Which one; `None` where no source address is free.
    pub by: Option<Limit>,
}

/// A connection's place in the counts of its shard, its path and its source address. Dropped, it is in none of them any more, whatever
/// ended it, and the path may open another. What limits over several paths count is in [`super::shared_limits::Held`], which has to be
/// dropped before.
pub(super) struct Lease {
    shard: Rc<Shard>,
    path: PathId,
    is_open: bool,
    /// The source address, where limits of its own hold for it.
    source: Option<IpAddr>,
    /// The host, where mail of several domains may go by the connection.
    host: Option<(String, Option<Parameters>)>,
    blocked: Option<Blocked>,
}

impl Lease {
    /// Of a connection that the engine has counted as being opened.
    pub fn of(shard: &Rc<Shard>, path: PathId) -> Lease {
        shard.connections.set(shard.connections.get() + 1);
        Lease { shard: Rc::clone(shard), path, is_open: false, source: None, host: None, blocked: None }
    }

    /// It goes from the source address that [`super::path::path_of`] has chosen, and counted.
    pub fn goes_from(&mut self, path: &ServedPath) {
        self.source = path.source.filter(|_| path.counted);
    }

    /// It is open, to this host where mail of several domains may go by it.
    pub fn opened(&mut self, host: Option<(String, Option<Parameters>)>) {
        self.is_open = true;
        let mut s = self.shard.scheduler_mut();
        if let Some(p) = s.paths.get_mut(self.path) {
            p.connecting -= 1;
            p.connections += 1;
        }
        if let Some((name, with)) = &host {
            s.count_host(self.path, name, with.as_ref(), true);
        }
        drop(s);
        self.host = host;
    }

    /// A limit does not let it be opened.
    pub fn is_blocked(&mut self, blocked: Blocked) {
        self.blocked = Some(blocked);
    }

    /// Takes it out of the counts of its path.
    fn leave_path(&self) {
        let s = &mut *self.shard.scheduler_mut();
        if let Some((name, with)) = &self.host {
            s.count_host(self.path, name, with.as_ref(), false);
        }
        let Some(p) = s.paths.get_mut(self.path) else { return };
        if let Some(source) = p.sources.iter_mut().find(|s| Some(s.ip) == self.source) {
            source.connections = source.connections.saturating_sub(1);
        }
        if self.is_open {
            p.connections -= 1;
            if self.source.is_some() && p.blocked_by.is_none() && p.ask_again_ms > 0 {
                // It may have waited for this source address.
                p.ask_again_ms = 0;
            }
        } else {
            p.connecting -= 1;
        }
        if let Some(Blocked { until_ms, by }) = self.blocked {
            p.ask_again_ms = until_ms;
            // Asked again and again: the cause lasts until one is opened.
            (p.blocked_until_ms, p.blocked_by) = (until_ms + 2 * ASK_AGAIN_MS, by);
        }
        p.rest(clock::now_ms());
        if let Some(Blocked { until_ms, .. }) = self.blocked {
            s.wake_at(self.path, until_ms);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leave_path();
        self.shard.connections.set(self.shard.connections.get() - 1);
        self.shard.ended_or_moved.notify_waiters();
        self.shard.pump(self.path);
    }
}

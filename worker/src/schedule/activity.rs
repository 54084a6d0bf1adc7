//! What a path has while it does something, or while something that it did still counts: most
//! of a hundred thousand paths wait for their clock and have none of it.

use ipc::backoff::Mode;

use super::limit::Limit;
use super::matches::Matches;
use super::source::{Paces, Source};
use super::spread::SpreadPath;
use crate::connect::protection::Parameters;

/// Connections, windows and mode of a path. [`super::Path`] dereferences to it: reading one that is
/// at rest finds the values of a path without history, the first write makes its own.
#[derive(Debug)]
pub struct Activity {
    /// Hosts that connections are open to, how they are protected, and how many there are; while
    /// mail that rolled up goes by it.
    pub open_hosts: Vec<(String, Option<Parameters>, u32)>,
    /// Open connections.
    pub connections: u32,
    /// Connections being opened.
    pub connecting: u32,
    /// Open connections that wait for work.
    pub idle: u32,
    /// Connections that are busy with mail below `reserved-priority`.
    pub ordinary: u32,
    /// No new connection before this time, while those that are open go on: the receiver
    /// refused one more, or the ramp-up asks to wait.
    pub connect_again_ms: i64,
    /// When `smtp-out-rampup-interval` lets another one be opened, Unix milliseconds.
    pub ramp_up_ms: i64,
    /// When it asks again for a place under a limit over all shards, Unix milliseconds.
    pub ask_again_ms: i64,
    /// A limit other than the path's own lets no connection be opened before this time, Unix
    /// milliseconds.
    pub blocked_until_ms: i64,
    /// The limit; `None` where no source address is free.
    pub blocked_by: Option<Limit>,
    /// Its windows.
    pub paces: Paces,
    /// Source addresses of which limits or switches are known.
    pub sources: Vec<Source>,
    /// The process before may have used the windows of any until this time, Unix nanoseconds;
    /// 0 where there was none.
    pub sources_in_use_ns: i64,
    /// Normal, backoff, or on the way back.
    pub mode: Mode,
    /// An operator set the mode.
    pub forced: bool,
    /// Since when, Unix milliseconds; 0 for ever.
    pub mode_since_ms: i64,
    /// When backoff ends, Unix milliseconds.
    pub mode_until_ms: i64,
    /// Deliveries in a row while limits rise.
    pub good_in_a_row: u32,
    /// When rules with a trigger in time matched.
    pub matches: Matches,
    /// Hosts that are left out until a time, Unix milliseconds (`skip-mx`).
    pub skipped_hosts: Vec<(String, i64)>,
    /// Several shards own the destination and have a path of this name: what they share.
    pub spread: Option<Box<SpreadPath>>,
}

impl Default for Activity {
    fn default() -> Self {
        Activity {
            open_hosts: Vec::new(),
            connections: 0,
            connecting: 0,
            idle: 0,
            ordinary: 0,
            connect_again_ms: 0,
            ramp_up_ms: 0,
            ask_again_ms: 0,
            blocked_until_ms: 0,
            blocked_by: None,
            paces: Paces::default(),
            sources: Vec::new(),
            sources_in_use_ns: 0,
            mode: Mode::Normal,
            forced: false,
            mode_since_ms: 0,
            mode_until_ms: 0,
            good_in_a_row: 0,
            matches: Matches::default(),
            skipped_hosts: Vec::new(),
            spread: None,
        }
    }
}

thread_local! {
    static NONE: &'static Activity = Box::leak(Box::default());
}

impl Activity {
    /// The activity of every path that has none of its own. There is one in the thread, which stays.
    pub fn none() -> &'static Activity {
        NONE.with(|a| *a)
    }

    /// Nothing is going on, and nothing waits to be opened.
    pub fn is_over(&self, now_ms: i64) -> bool {
        self.connections + self.connecting + self.idle + self.ordinary == 0
            && self.mode == Mode::Normal
            && self.spread.is_none()
            && self.connect_again_ms.max(self.ask_again_ms).max(self.blocked_until_ms) <= now_ms
            && self.sources.iter().all(|s| s.connections == 0)
            && self.open_hosts.is_empty()
    }
}

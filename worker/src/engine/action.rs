//! What the engine wants to be done.

use crate::schedule::path::ModeChange;
use crate::schedule::{Entry, PathId, QueueId};

/// Something to be carried out, in the order in which it was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// A connection of a path is to be opened; the path counts it already.
    Open(PathId),
    /// One connection of a path that idles has work.
    WakeOne(PathId),
    /// All connections of a path that idle look at what has changed.
    WakeAll(PathId),
    /// Timers have changed: the shard's loop looks when the next one is due.
    LookAtTimers,
    /// There may be mail here that another shard owns.
    LookForForeign,
    /// A value is to be kept in the spool under a name, in place of the one before; an empty one takes it away.
    Keep(String, Vec<u8>),
    /// Recipients that were accepted only to be bounced, see [`ipc::message::notify::NOT_TO_BE_SENT`].
    Refuse(QueueId, Entry),
    /// A notice to operators.
    Notify {
        /// Addresses.
        to: Vec<String>,
        /// Its subject.
        subject: String,
        /// Its text, lines with CRLF.
        text: String,
    },
    /// A line for the log.
    Tell(News),
}

/// What operators read in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// A path went into backoff, or back.
    ModeChanged {
        /// The path.
        path: String,
        /// The mode that it is in.
        mode: &'static str,
        /// What changed it.
        why: String,
    },
    /// A path of a spread destination follows the mode of the other shards' paths.
    ModeFollowed {
        /// The path.
        path: String,
        /// How the mode changed.
        change: ModeChange,
    },
    /// Mail that waits goes another way.
    Rerouted {
        /// The virtual MTA that it was to go by.
        from: String,
        /// The queue that it waits in now.
        to: String,
        /// How many recipients.
        recipients: u64,
    },
    /// The virtual MTA of a path is not there any more, or is back.
    VirtualMtaChanged {
        /// The path.
        path: String,
        /// Its mail waits.
        held: bool,
    },
    /// Recipients of a message ended that had ended before, by an error of this program.
    SettledTwice {
        /// The message's key in the spool.
        key: u64,
        /// How many recipients.
        recipients: usize,
    },
    /// All source addresses of a path are left out.
    SourcesDisabled {
        /// The path.
        path: String,
    },
}

//! The inbox of a spool: callers put requests in through the handle ([`crate::Spool`]); the spool's thread, or the task in its
//! place, takes them out and does the work. That thread or task is called the worker of the spool below.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use ipc::message::HandoffId;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::SpoolError;
use crate::backlog::Backlog;
use crate::bell::Bell;
use crate::group::Group;
use crate::layout::RecipientState;
use crate::projection::Projection;
use crate::store::KnownRecipient;

/// Counters of the spool, readable from any thread.
#[derive(Debug, Default)]
pub struct Statistics {
    /// Group commits.
    pub syncs: AtomicU64,
    /// Bytes appended to the log.
    pub log_bytes: AtomicU64,
    /// Bytes of all segments.
    pub disk_bytes: AtomicU64,
}

/// Where the key of a message goes once it is durable.
pub(crate) type StoreReply = oneshot::Sender<Result<u64, SpoolError>>;

/// A question of a caller, and the channel for its answer.
pub(crate) enum Query {
    /// The archived envelope and the content of the message with this key.
    Read(u64, oneshot::Sender<Result<(Vec<u8>, Bytes), SpoolError>>),
    /// The last state of one recipient: key of the message, and index of the recipient in its envelope.
    State(u64, u16, oneshot::Sender<Result<Option<RecipientState>, SpoolError>>),
    /// All recipients of the message with this key; `None` when it has ended.
    Recipients(u64, oneshot::Sender<Result<Option<Vec<KnownRecipient>>, SpoolError>>),
    /// Whether this handoff was taken and is durable.
    Seen(HandoffId, oneshot::Sender<Result<bool, SpoolError>>),
    /// Answered when everything that was given before is durable.
    Barrier(oneshot::Sender<Result<(), SpoolError>>),
    /// Write accounting to other files; answered when those before are complete.
    SwitchProjection(Box<dyn Projection>, oneshot::Sender<Result<(), SpoolError>>),
}

/// What callers have given since the spool's worker last emptied it.
#[derive(Default)]
pub(crate) struct Inbox {
    /// Messages, outcomes and values for the next group.
    pub group: Group,
    /// For each message of `group.store`, who waits for it.
    pub replies: Vec<StoreReply>,
    /// For each message of `group.reports`, who waits for it.
    pub report_replies: Vec<StoreReply>,
    /// Questions that are not answered yet.
    pub queries: Vec<Query>,
    /// Approximate bytes of the group's outcomes.
    pub outcome_bytes: usize,
    /// Since when messages wait that were flushed.
    pub mail_since: Option<Instant>,
    /// The worker waits a moment until so many messages are there.
    pub wanted: usize,
    /// The writer of accounting files has left a report.
    pub accounting: bool,
    /// Since when outcomes or values wait.
    pub since: Option<Instant>,
    /// The spool is to write everything out and end.
    pub stop: bool,
}

/// What the handle and the spool's worker share.
pub(crate) struct Shared {
    inbox: Mutex<Inbox>,
    /// Wakes the worker.
    pub bell: Bell,
    /// Counters that the worker keeps.
    pub statistics: Statistics,
    /// What is not on disk yet, and why new mail is refused.
    pub backlog: Backlog,
    /// The worker has ended, in order or not.
    pub ended: AtomicBool,
    /// Told when it has.
    pub over: Notify,
    /// The worker ended in order: everything was on disk and in accounting files.
    pub is_complete: AtomicBool,
}

impl Shared {
    /// An empty inbox whose worker waits for this bell.
    pub fn new(bell: Bell) -> Arc<Shared> {
        Arc::new(Shared {
            inbox: Mutex::default(),
            bell,
            statistics: Statistics::default(),
            backlog: Backlog::default(),
            ended: AtomicBool::new(false),
            over: Notify::new(),
            is_complete: AtomicBool::new(false),
        })
    }

    /// The inbox. It must be given back soon: callers on the message path wait for it.
    pub fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held by the spool's worker. Dropping it, which also happens in a panic, notes that the worker has ended.
pub(crate) struct Working(pub(crate) Arc<Shared>);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Release);
        self.0.over.notify_one();
    }
}

//! What callers leave for whoever does the work of a spool, and what both of them look at.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use ipc::message::HandoffId;
use tokio::sync::oneshot;
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

/// A question to the spool, with where its answer goes.
pub(crate) enum Query {
    Read(u64, oneshot::Sender<Result<(Vec<u8>, Bytes), SpoolError>>),
    State(u64, u16, oneshot::Sender<Result<Option<RecipientState>, SpoolError>>),
    Recipients(u64, oneshot::Sender<Result<Option<Vec<KnownRecipient>>, SpoolError>>),
    Seen(HandoffId, oneshot::Sender<Result<bool, SpoolError>>),
    Barrier(oneshot::Sender<Result<(), SpoolError>>),
    SwitchProjection(Box<dyn Projection>, oneshot::Sender<Result<(), SpoolError>>),
}

/// What was given since whoever does the work has looked last.
#[derive(Default)]
pub(crate) struct Inbox {
    pub group: Group,
    pub replies: Vec<StoreReply>,
    /// Of those who wait for `group.reports`.
    pub report_replies: Vec<StoreReply>,
    pub queries: Vec<Query>,
    /// Bytes of the group's outcomes, about.
    pub outcome_bytes: usize,
    /// Mail is there since then.
    pub mail_since: Option<Instant>,
    /// Messages that the thread waits for, for a moment.
    pub wanted: usize,
    /// The thread that writes accounting has something to say.
    pub accounting: bool,
    pub since: Option<Instant>,
    pub stop: bool,
}

/// What the handle and whoever does the work have in common.
pub(crate) struct Shared {
    inbox: Mutex<Inbox>,
    pub bell: Bell,
    pub statistics: Statistics,
    pub backlog: Backlog,
    /// Nobody does the work any more.
    pub ended: AtomicBool,
    /// When it ended, everything was on disk and in accounting files.
    pub is_complete: AtomicBool,
}

impl Shared {
    pub fn new(bell: Bell) -> Arc<Shared> {
        Arc::new(Shared {
            inbox: Mutex::default(),
            bell,
            statistics: Statistics::default(),
            backlog: Backlog::default(),
            ended: AtomicBool::new(false),
            is_complete: AtomicBool::new(false),
        })
    }

    pub fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held by whoever does the work; says when that is over, however it ends.
pub(crate) struct Working(pub(crate) Arc<Shared>);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Release);
    }
}

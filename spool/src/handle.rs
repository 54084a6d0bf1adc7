//! The handle by which the shard's reactor uses its spool.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use ipc::message::HandoffId;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::SpoolError;
use crate::backlog::Refusal;
use crate::bell::Bell;
use crate::disk::Disk;
use crate::driver::Driver;
use crate::group::{NewMessage, Settled};
use crate::group_commit::Options;
use crate::inbox::{Inbox, Query, Shared, Statistics, Working};
use crate::index::Index;
use crate::layout::{
    BODY_BYTES_MAX, META_BYTES_MAX, PutMeta, REPLY_BYTES_MAX, RecipientState, UpdateEntry, VALUE_BYTES_MAX, beginning,
};
use crate::projection::Projection;
use crate::store::{KnownRecipient, Recovered, Values};
use crate::thread;

/// A caller that waits for the disk is answered [`SpoolError::Slow`] after this time.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Largest envelope: with the state of each recipient it is still one record.
const ENVELOPE_BYTES_MAX: usize = META_BYTES_MAX / 2;

/// The handle to a shard's spool. Cheap to use from the reactor: nothing here blocks but for
/// a short lock. New mail is collected until [`Spool::flush`] wakes the thread.
pub struct Spool {
    shared: Arc<Shared>,
    /// `None` when it has ended, or a [`Driver`] is in its place.
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What opening found: the values kept with [`Spool::put`].
pub type Opening = oneshot::Receiver<Result<Values, SpoolError>>;

impl std::fmt::Debug for Spool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spool").finish_non_exhaustive()
    }
}

impl Spool {
    /// Opens the spool on a thread of its own. `each` is called there for every message with
    /// recipients left; the receiver resolves when all have been passed.
    ///
    /// # Errors
    /// When the thread cannot be started; errors of opening come through the receiver.
    pub fn open(
        options: Options,
        projection: Box<dyn Projection>,
        each: Box<dyn FnMut(Recovered) + Send>,
    ) -> std::io::Result<(Spool, Opening)> {
        let shared = Shared::new(Bell::for_thread());
        let (ready, opened) = oneshot::channel();
        let thread = thread::start(options, projection, each, Working(Arc::clone(&shared)), ready)?;
        Ok((Spool { shared, thread: Mutex::new(Some(thread)) }, opened))
    }

    /// Opens a spool without a thread, on the disk and the index that are given: all work,
    /// opening included, is done by whoever runs the driver.
    pub fn without_thread<D: Disk, I: Index>(
        folder: D,
        index: I,
        options: Options,
        projection: Box<dyn Projection>,
        each: Box<dyn FnMut(Recovered) + Send>,
    ) -> (Spool, Opening, Driver<D, I>) {
        let shared = Shared::new(Bell::for_task());
        let (ready, opened) = oneshot::channel();
        let working = Working(Arc::clone(&shared));
        let driver = Driver::new(folder, index, options, projection, each, ready, working);
        (Spool { shared, thread: Mutex::new(None) }, opened, driver)
    }

    /// Makes a message durable. Resolves, after [`Spool::flush`], when the group that holds
    /// it is on disk; only then may the client hear `250` (RFC 5321 §6.1). Dropping the
    /// receiver does not cancel the write.
    ///
    /// # Errors
    /// Through the receiver: [`SpoolError::Full`], [`SpoolError::Write`], [`SpoolError::Sync`].
    pub fn store(&self, message: NewMessage) -> oneshot::Receiver<Result<u64, SpoolError>> {
        let (reply, receiver) = oneshot::channel();
        if let Err(e) = bounded(&message) {
            // The other end is the receiver that is returned.
            let _ = reply.send(Err(e));
            return receiver;
        }
        let mut inbox = self.shared.lock();
        inbox.group.store.push(message);
        inbox.replies.push(reply);
        receiver
    }

    /// Messages waiting for [`Spool::flush`].
    pub fn pending(&self) -> usize {
        self.shared.lock().group.store.len()
    }

    /// Lets the thread take what was stored.
    pub fn flush(&self) {
        let mut inbox = self.shared.lock();
        if inbox.group.store.is_empty() {
            return;
        }
        let first = inbox.mail_since.is_none();
        inbox.mail_since.get_or_insert_with(Instant::now);
        let is_enough = inbox.group.store.len() >= inbox.wanted;
        drop(inbox);
        if first || is_enough {
            self.shared.bell.ring();
        }
    }

    /// Records final outcomes; durable with the next group.
    pub fn settle(&self, settled: Settled) {
        self.conclude(Outcomes { settled: Some(settled), ..Default::default() });
    }

    /// Records recipients' states and their accounting rows.
    pub fn update(&self, entries: Vec<UpdateEntry>, rows: Vec<Vec<u8>>) {
        self.conclude(Outcomes { entries, rows, ..Default::default() });
    }

    /// Records what came of an attempt, all of it in one group: neither is there without the
    /// other after a crash. Its reports need no room but that for outcomes. The receivers answer
    /// with the reports' keys when they are durable.
    pub fn conclude(&self, mut o: Outcomes) -> Vec<oneshot::Receiver<Result<u64, SpoolError>>> {
        let settled_rows = o.settled.iter_mut().map(|s| &mut s.rows);
        settled_rows.chain([&mut o.rows]).for_each(without_huge);
        for e in o.entries.iter_mut().filter(|e| e.state.last_reply.len() > REPLY_BYTES_MAX) {
            e.state.last_reply = beginning(&e.state.last_reply, REPLY_BYTES_MAX).to_owned();
        }
        o.reports.retain(|r| bounded(r).is_ok());
        let size = |rows: &[Vec<u8>]| rows.iter().map(|r| r.len() + 32).sum::<usize>();
        let bytes = o.settled.iter().map(|s| size(&s.rows) + 16 * s.recipients.len()).sum::<usize>()
            + size(&o.rows)
            + o.entries.iter().map(|e| e.state.last_reply.len() + 64).sum::<usize>()
            + o.reports.iter().map(|r| r.envelope.len() + r.body[0].len() + r.body[1].len()).sum::<usize>();
        let (replies, receivers): (Vec<_>, Vec<_>) = o.reports.iter().map(|_| oneshot::channel()).unzip();
        self.outcome(bytes, |inbox| {
            inbox.group.reports.extend(o.reports);
            inbox.report_replies.extend(replies);
            inbox.group.update.entries.extend(o.entries);
            inbox.group.update.rows.extend(o.rows);
            o.settled.into_iter().for_each(|s| inbox.group.settle(s));
        });
        receivers
    }

    /// Keeps a value that outlives the index; an empty one removes the name.
    pub fn put(&self, name: &str, value: Vec<u8>) {
        if value.len() + name.len() > VALUE_BYTES_MAX {
            tracing::error!(
                name,
                bytes = value.len(),
                "a value is too large to be kept; it is as before after a restart"
            );
            return;
        }
        self.outcome(value.len(), |i| i.group.put.push(PutMeta { name: name.to_owned(), value }));
    }

    /// Notes what `origin` may still repeat, by incarnation from a sequence on: all other handoffs
    /// of it are forgotten.
    pub fn open_handoffs(&self, origin: u8, from: Vec<(u32, u64)>) {
        self.outcome(16, |i| i.group.open.push((origin, from)));
    }

    /// Deliveries are held until the disk takes what comes of them: mail that is delivered before would be delivered again after a
    /// crash.
    pub fn holds_deliveries(&self) -> bool {
        self.shared.backlog.holds_deliveries()
    }

    /// Since when and why rows wait for accounting files, if they wait for more than a moment.
    pub fn accounting_behind(&self) -> Option<Refusal> {
        self.shared.backlog.accounting_behind()
    }

    /// Why new mail is refused, if it is.
    pub fn refusal(&self) -> Option<Refusal> {
        self.shared.backlog.refusal()
    }

    fn outcome(&self, bytes: usize, add: impl FnOnce(&mut Inbox)) {
        self.shared.backlog.add(bytes);
        let mut inbox = self.shared.lock();
        add(&mut inbox);
        inbox.outcome_bytes += bytes;
        let first = inbox.since.is_none();
        if first {
            inbox.since = Some(Instant::now());
        }
        // A group with messages takes them along, and the worker knows of that one.
        let is_known = inbox.mail_since.is_some();
        drop(inbox);
        if first && !is_known {
            self.shared.bell.ring();
        }
    }

    fn query<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Query) -> oneshot::Receiver<T> {
        let (reply, receiver) = oneshot::channel();
        self.shared.lock().queries.push(make(reply));
        self.shared.bell.ring();
        receiver
    }

    /// Reads a message: archived envelope and content.
    ///
    /// # Errors
    /// [`SpoolError::Unreadable`], [`SpoolError::Index`], [`SpoolError::Closed`].
    pub async fn read(&self, key: u64) -> Result<(Vec<u8>, Bytes), SpoolError> {
        self.query(|r| Query::Read(key, r)).await.unwrap_or(Err(SpoolError::Closed))
    }

    /// The last state of a recipient.
    ///
    /// # Errors
    /// [`SpoolError::Index`], [`SpoolError::Closed`].
    pub async fn state(&self, key: u64, recipient: u16) -> Result<Option<RecipientState>, SpoolError> {
        self.query(|r| Query::State(key, recipient, r)).await.unwrap_or(Err(SpoolError::Closed))
    }

    /// All recipients of a message, in the order of its envelope; `None` when it has ended.
    ///
    /// # Errors
    /// [`SpoolError::Index`], [`SpoolError::Closed`].
    pub async fn recipients(&self, key: u64) -> Result<Option<Vec<KnownRecipient>>, SpoolError> {
        self.query(|r| Query::Recipients(key, r)).await.unwrap_or(Err(SpoolError::Closed))
    }

    /// Whether a handoff was taken before and is durable.
    ///
    /// # Errors
    /// It is not known: a group with messages failed and may be on disk all the same, until another is; [`SpoolError::Closed`].
    pub async fn has_seen(&self, id: HandoffId) -> Result<bool, SpoolError> {
        self.query(|r| Query::Seen(id, r)).await.unwrap_or(Err(SpoolError::Closed))
    }

    /// Resolves when everything given so far is durable; accounting files may be behind.
    ///
    /// # Errors
    /// When it could not be written; [`SpoolError::Slow`] when the disk does not answer.
    pub async fn barrier(&self) -> Result<(), SpoolError> {
        in_time(self.query(Query::Barrier)).await
    }

    /// Completes and syncs accounting so far, then goes on with another projection. What one that
    /// cannot be written has not taken goes to the other.
    ///
    /// # Errors
    /// When the old one cannot be completed; it stays in use until this is asked for again. [`SpoolError::Slow`] when
    /// the disk does not answer: the other one may be in use, and asking again does no harm.
    pub async fn switch_projection(&self, next: Box<dyn Projection>) -> Result<(), SpoolError> {
        in_time(self.query(|r| Query::SwitchProjection(next, r))).await
    }

    /// Counters.
    pub fn statistics(&self) -> &Statistics {
        &self.shared.statistics
    }

    /// [`Spool::finish`] for a reactor that goes on meanwhile. False when the disk did not take what happened last, or rows wait for
    /// accounting files: the next start goes on with it.
    pub async fn finished(&self) -> bool {
        self.shared.lock().stop = true;
        self.shared.bell.ring();
        while !self.shared.ended.load(Ordering::Acquire) {
            self.shared.over.notified().await;
        }
        self.finish();
        self.shared.is_complete.load(Ordering::Acquire)
    }

    /// Writes everything out, marks the stop as orderly and ends the thread. Blocks; what is
    /// given afterwards is not written. Without a thread it only asks for that: the driver does it.
    pub fn finish(&self) {
        self.shared.lock().stop = true;
        self.shared.bell.ring();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(t) = thread
            && t.join().is_err()
        {
            tracing::error!("the spool's thread panicked; the next start replays the log");
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.finish();
    }
}

/// What came of an attempt.
#[derive(Debug, Default)]
pub struct Outcomes {
    /// Recipients that ended.
    pub settled: Option<Settled>,
    /// Recipients that will be tried again.
    pub entries: Vec<UpdateEntry>,
    /// Accounting rows that belong to them.
    pub rows: Vec<Vec<u8>>,
    /// Reports of it.
    pub reports: Vec<NewMessage>,
}

/// Waits for an answer, but not for longer than [`ANSWER_WITHIN`]: the shard's reactor must not hang with its disk.
async fn in_time(answer: oneshot::Receiver<Result<(), SpoolError>>) -> Result<(), SpoolError> {
    match tokio::time::timeout(ANSWER_WITHIN, answer).await {
        Ok(r) => r.unwrap_or(Err(SpoolError::Closed)),
        Err(_) => Err(SpoolError::Slow(ANSWER_WITHIN.as_secs())),
    }
}

/// Whether the spool takes a message, as far as its size decides.
pub fn fits(m: &NewMessage) -> bool {
    bounded(m).is_ok()
}

/// What is taken must be accepted when it is read back.
fn bounded(m: &NewMessage) -> Result<(), SpoolError> {
    if m.envelope.len() > ENVELOPE_BYTES_MAX || m.body[0].len() + m.body[1].len() > BODY_BYTES_MAX {
        return Err(SpoolError::Write("the message is too large for the spool".into()));
    }
    Ok(())
}

/// Rows that one record can hold.
fn without_huge(rows: &mut Vec<Vec<u8>>) {
    rows.retain(|r| {
        let fits = r.len() <= VALUE_BYTES_MAX;
        if !fits {
            tracing::error!(bytes = r.len(), "an accounting row is too large to be written");
        }
        fits
    });
}

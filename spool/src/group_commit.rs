//! The spool's thread and the handle to it.
//!
//! What is done, and when, is decided by [`Running`], which knows of no thread: the thread waits as
//! long as it says and calls it again, and so does the [`Driver`] that takes the thread's place.
//!
//! Groups form by themselves: what arrives while one sync runs goes into the next, and under
//! load a group waits a moment for those who were answered last to come back (see
//! [`Gathering`]). Outcomes alone wait a few milliseconds for company; a lone message does not. Checkpoints, compaction and
//! accounting run between groups, in slices.

use std::io::IoSlice;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use ipc::message::HandoffId;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::SpoolError;
use crate::accounting::{Accounting, Stop};
use crate::backlog::{Backlog, Refusal};
use crate::bell::{Bell, Runner};
use crate::disk::{Disk, Folder};
use crate::driver::Driver;
use crate::index::Index;
use crate::layout::{
    BODY_BYTES_MAX, META_BYTES_MAX, PutMeta, REPLY_BYTES_MAX, RecipientState, UpdateEntry, VALUE_BYTES_MAX, beginning,
};
use crate::sled::SledIndex;
use crate::store::{Group, KnownRecipient, NewMessage, OPENED, Projection, Recovered, Settled, Store, Values, Written};

/// Outcomes alone wait this long for a group.
const OUTCOMES_WAIT: Duration = Duration::from_millis(4);
/// A group waits this long at most for mail that is expected.
const GATHER_MAX: Duration = Duration::from_millis(4);
/// Mail that came this long after the last group has nothing to do with it.
const GATHER_MEMORY: Duration = Duration::from_millis(10);
/// The index follows at least this often while something changes.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(2);
/// … and when this many messages are not in it.
const BEHIND_MAX: usize = 8192;
/// After a failed group intake stays closed this long before the next try.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);
/// Bytes of content in one group.
const GROUP_BYTES_MAX: usize = 4 << 20;
/// Room given back for outcomes and the index when the disk is full. New mail is taken only while
/// it stands, or there is room for it.
const BALLAST_BYTES: u64 = 16 << 20;
/// A failed index is restored not more often than this.
const RESTORE_EVERY: Duration = Duration::from_secs(2);
/// How long room is looked for before it is looked for again.
const ROOM_EVERY: Duration = Duration::from_millis(200);
/// Outcomes that could not be written are written again after this time, after twice this time, and so on …
const AGAIN: Duration = Duration::from_millis(50);
/// … but not later.
const AGAIN_MAX: Duration = Duration::from_secs(1);
/// Without work the disk is looked after this often.
const IDLE_MAX: Duration = Duration::from_millis(500);
/// The ballast is written in pieces of so many bytes where room cannot be allocated.
const BALLAST_STEP: usize = 1 << 20;
/// The ballast's file in the shard's folder.
const BALLAST: &str = "ballast";
/// The folder of the log in the shard's folder.
const LOG: &str = "log";
/// The folder of damaged bytes in the shard's folder.
const QUARANTINE: &str = "quarantine";
/// Who waits for the disk hears after this time that it does not answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Largest envelope: with the state of each recipient it is still one record.
const ENVELOPE_BYTES_MAX: usize = META_BYTES_MAX / 2;

/// How a shard's spool is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// The shard's folder.
    pub path: PathBuf,
    /// Shard number.
    pub shard: u8,
    /// `spool-sync group`; without it nothing is synced.
    pub sync: bool,
    /// `min-free-space` in bytes.
    pub min_free_bytes: u64,
    /// Name of the machine's boot (`/proc/sys/kernel/random/boot_id`).
    pub boot: String,
}

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

/// What became of a group: for each report and then each message to store.
pub(crate) type Results = Result<Vec<Result<u64, SpoolError>>, SpoolError>;

type StoreReply = oneshot::Sender<Result<u64, SpoolError>>;

pub(crate) enum Query {
    Read(u64, oneshot::Sender<Result<(Vec<u8>, Bytes), SpoolError>>),
    State(u64, u16, oneshot::Sender<Result<Option<RecipientState>, SpoolError>>),
    Recipients(u64, oneshot::Sender<Result<Option<Vec<KnownRecipient>>, SpoolError>>),
    Seen(HandoffId, oneshot::Sender<Result<bool, SpoolError>>),
    Barrier(oneshot::Sender<Result<(), SpoolError>>),
    SwitchProjection(Box<dyn Projection>, oneshot::Sender<Result<(), SpoolError>>),
}

#[derive(Default)]
pub(crate) struct Inbox {
    group: Group,
    replies: Vec<StoreReply>,
    /// Of those who wait for `group.reports`.
    report_replies: Vec<StoreReply>,
    queries: Vec<Query>,
    /// Bytes of the group's outcomes, about.
    outcome_bytes: usize,
    /// Mail is there since then.
    mail_since: Option<Instant>,
    /// Messages that the thread waits for, for a moment.
    wanted: usize,
    /// The thread that writes accounting has something to say.
    accounting: bool,
    since: Option<Instant>,
    stop: bool,
}

pub(crate) struct Shared {
    inbox: Mutex<Inbox>,
    pub(crate) bell: Bell,
    statistics: Statistics,
    backlog: Backlog,
    /// Nobody does the work any more.
    ended: AtomicBool,
    /// When it ended, everything was on disk and in accounting files.
    is_complete: AtomicBool,
}

impl Shared {
    fn new(bell: Bell) -> Arc<Shared> {
        Arc::new(Shared {
            inbox: Mutex::default(),
            bell,
            statistics: Statistics::default(),
            backlog: Backlog::default(),
            ended: AtomicBool::new(false),
            is_complete: AtomicBool::new(false),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inbox> {
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
        mut each: Box<dyn FnMut(Recovered) + Send>,
    ) -> std::io::Result<(Spool, Opening)> {
        let runner = Runner::Threads;
        let shared = Shared::new(runner.bell());
        let (ready, opened) = oneshot::channel();
        let working = Working(Arc::clone(&shared));
        let thread = std::thread::Builder::new().name("spool".into()).spawn(move || {
            let shared = Arc::clone(&working.0);
            let index_path = options.path.join("index");
            let running =
                Folder::open(&options.path, options.sync).map_err(|e| options.failed(&e)).and_then(|folder| {
                    let index = || SledIndex::open(&index_path);
                    Running::open(folder, index, options, projection, &mut *each, shared, runner)
                });
            match running {
                Ok(mut running) => {
                    drop(each);
                    // Whoever opened the spool may be gone; what it is still given is done.
                    let _ = ready.send(Ok(running.values()));
                    running.run();
                }
                Err(e) => drop(ready.send(Err(e))),
            }
        })?;
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
        let writers = Arc::default();
        let shared = Shared::new(Runner::Task(Arc::clone(&writers)).bell());
        let (ready, opened) = oneshot::channel();
        let (working, accounting_takes) = (Working(Arc::clone(&shared)), Arc::new(|| Duration::ZERO));
        let driver = Driver { folder, index, options, projection, each, ready, working, writers, accounting_takes };
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
        if !inbox.group.store.is_empty() {
            let first = inbox.mail_since.is_none();
            inbox.mail_since.get_or_insert_with(Instant::now);
            if first || inbox.group.store.len() >= inbox.wanted {
                self.shared.bell.ring();
            }
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

    /// Nothing more may be delivered for now: the disk does not take what came of it, and it
    /// would be delivered again after a crash.
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
        if inbox.since.is_none() {
            inbox.since = Some(Instant::now());
            self.shared.bell.ring();
        }
    }

    fn query<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Query) -> oneshot::Receiver<T> {
        let (reply, receiver) = oneshot::channel();
        let mut inbox = self.shared.lock();
        inbox.queries.push(make(reply));
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
        let is_over = || {
            let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
            thread.as_ref().map_or_else(|| self.shared.ended.load(Ordering::Acquire), JoinHandle::is_finished)
        };
        while !is_over() {
            tokio::time::sleep(Duration::from_millis(5)).await;
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

/// Whoever keeps a shard's reactor going must not wait for a disk that hangs.
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

/// How much mail the next group may wait for. Those who inject in lockstep would otherwise
/// part into halves that are synced in turn, each sync at the cost of a full one: whoever was
/// answered with the last group, or waited meanwhile, is likely to be back at once.
#[derive(Debug, Default)]
struct Gathering {
    expected: usize,
    /// Grows while waiting pays, shrinks when it does not.
    patience: Duration,
    last: Option<Instant>,
}

impl Gathering {
    /// Messages worth waiting for now.
    fn wanted(&self, now: Instant) -> usize {
        let recent = self.last.is_some_and(|t| now - t < GATHER_MEMORY);
        if recent { self.expected - self.expected / 8 } else { 1 }
    }

    /// A group was taken after waiting.
    fn taken(&mut self, messages: usize, wanted: usize) {
        self.patience = if messages >= wanted {
            (self.patience * 2).clamp(GATHER_MAX / 8, GATHER_MAX)
        } else {
            (self.patience * 3 / 4).max(GATHER_MAX / 8)
        };
    }

    /// A group was answered while `waiting` messages had come for the next.
    fn answered(&mut self, messages: usize, waiting: usize) {
        if messages > 0 {
            self.expected = messages + waiting;
            self.last = Some(Instant::now());
        }
    }
}

/// The spool at work, over some disk and index. It never waits, and knows of no thread.
pub(crate) struct Running<D: Disk, I: Index> {
    gathering: Gathering,
    store: Store<D, I>,
    /// The shard's folder.
    folder: D,
    options: Options,
    accounting: Accounting,
    shared: Arc<Shared>,
    checkpoint_at: Instant,
    intake_closed_until: Option<Instant>,
    /// Outcomes could not be written, so many times in a row.
    failures: u32,
    /// The last of these.
    failure: String,
    /// A group with messages failed, and nothing has been durable since: a crash may show its messages all the same.
    is_in_doubt: bool,
    /// They are not tried again before.
    again_at: Option<Instant>,
    free_checked: Option<Instant>,
    low_space: Option<String>,
    /// A message found no room in the log.
    no_room: Option<String>,
    /// The ballast is there.
    ballast: bool,
    restore_at: Instant,
    leave_at: Instant,
}

/// What is waited for between two steps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pause {
    /// Messages that are worth waiting for, …
    wanted: usize,
    /// … for so long.
    patience: Duration,
    /// Nothing is done before, whatever comes.
    not_before: Option<Instant>,
    /// Without work it ends then.
    until: Instant,
}

impl Pause {
    /// How long it lasts if nothing comes meanwhile; zero when something is due.
    pub fn left(&self, inbox: &Inbox, now: Instant) -> Duration {
        if let Some(t) = self.not_before.filter(|t| now < *t) {
            return t - now;
        }
        if inbox.stop || inbox.accounting || !inbox.queries.is_empty() || inbox.group.store.len() >= self.wanted {
            return Duration::ZERO;
        }
        match (inbox.mail_since, inbox.since) {
            (Some(since), _) => self.patience.saturating_sub(now - since),
            (_, Some(since)) => OUTCOMES_WAIT.saturating_sub(now - since),
            _ => self.until - now,
        }
    }
}

/// A group and who waits for it.
pub(crate) struct Batch {
    group: Group,
    replies: Vec<StoreReply>,
    report_replies: Vec<StoreReply>,
    outcome_bytes: usize,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.group.is_empty()
    }

    /// Messages to store.
    pub fn messages(&self) -> usize {
        self.group.store.len()
    }
}

/// What is done next.
pub(crate) struct Work {
    pub batch: Batch,
    pub queries: Vec<Query>,
    pub stop: bool,
}

impl Options {
    pub(crate) fn failed(&self, e: &std::io::Error) -> SpoolError {
        SpoolError::Open { path: self.path.display().to_string(), reason: e.to_string() }
    }
}

impl<D: Disk, I: Index> Running<D, I> {
    pub fn open(
        mut folder: D,
        index: impl FnOnce() -> I,
        options: Options,
        projection: Box<dyn Projection>,
        each: &mut dyn FnMut(Recovered),
        shared: Arc<Shared>,
        runner: Runner,
    ) -> Result<Running<D, I>, SpoolError> {
        let failed = |e: std::io::Error| options.failed(&e);
        let log = folder.folder(LOG).map_err(failed)?;
        if log.free_bytes().map_err(failed)? < BALLAST_BYTES {
            // sled destroys itself when it opens without room.
            let _ = folder.remove(BALLAST);
        }
        let (store, opened) = Store::open(log, index(), options.shard, &options.boot, each)?;
        tracing::info!(
            messages = opened.messages,
            replayed = opened.replayed,
            rebuilt = opened.rebuilt.is_some(),
            damaged = opened.damaged,
            "spool open"
        );
        let for_accounting = Arc::clone(&shared);
        let wake = move || {
            for_accounting.lock().accounting = true;
            for_accounting.bell.ring();
        };
        let accounting = Accounting::begin(&store, projection, runner, Arc::new(wake)).map_err(failed)?;
        // One that was being made at a crash keeps no room.
        let kept = folder.open(BALLAST).and_then(|file| folder.len(&file));
        let ballast = kept.is_ok_and(|len| len >= BALLAST_BYTES);
        let now = Instant::now();
        let mut running = Running {
            gathering: Gathering::default(),
            store,
            folder,
            options,
            accounting,
            shared,
            checkpoint_at: now,
            intake_closed_until: None,
            failures: 0,
            failure: String::new(),
            is_in_doubt: false,
            again_at: None,
            free_checked: None,
            low_space: None,
            no_room: None,
            ballast,
            restore_at: now,
            leave_at: now,
        };
        running.write_quarantine();
        running.restore_ballast();
        if opened.messages > 0 {
            running.try_disk();
        }
        Ok(running)
    }

    /// Writes a value, so that deliveries are held from the first moment where the disk takes nothing: what came of them could not be
    /// noted, and each further start would deliver the same mail again.
    fn try_disk(&mut self) {
        self.commit(Batch {
            group: Group { put: vec![self.proof()], ..Group::default() },
            replies: Vec::new(),
            report_replies: Vec::new(),
            outcome_bytes: 0,
        });
    }

    /// A value that shows, once it is durable, that the disk takes what is written.
    fn proof(&self) -> PutMeta {
        PutMeta { name: OPENED.into(), value: self.options.boot.clone().into_bytes() }
    }

    /// The disk of the log.
    pub fn disk(&mut self) -> &mut D {
        &mut self.store.log.disk
    }

    /// The values that are kept.
    pub fn values(&self) -> Values {
        self.store.values("")
    }

    /// The life of the thread.
    fn run(&mut self) {
        loop {
            self.wait();
            let work = self.take();
            if !work.batch.is_empty() {
                self.commit(work.batch);
            }
            self.look_after(work.queries);
            if work.stop {
                break;
            }
        }
        let mut stop = Stop::begin();
        while let Some(pause) = self.finish_accounting(&mut stop) {
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
        }
        let last = self.last(stop);
        if !last.is_empty() {
            self.commit(last);
        }
        self.close();
    }

    /// Lets the thread wait until something is due.
    fn wait(&mut self) {
        let pause = self.pause(Instant::now());
        let shared = Arc::clone(&self.shared);
        let mut inbox = shared.lock();
        loop {
            let left = pause.left(&inbox, Instant::now());
            if left.is_zero() {
                return;
            }
            inbox = shared.bell.wait(inbox, left);
        }
    }

    fn commit(&mut self, batch: Batch) {
        let messages = batch.messages();
        if let Some((batch, written)) = self.write(batch) {
            let results = self.sync(&batch, written);
            self.conclude(batch, results);
        }
        self.answered(messages);
    }

    /// What is waited for from now on.
    pub fn pause(&mut self, now: Instant) -> Pause {
        let busy = self.store.checkpointing() || self.store.compacting() || self.accounting.is_busy();
        let wanted = self.gathering.wanted(now);
        self.shared.lock().wanted = wanted;
        Pause {
            wanted,
            patience: self.gathering.patience,
            not_before: self.again_at.take(),
            until: if busy { now } else { now + IDLE_MAX },
        }
    }

    /// Takes what has come.
    pub fn take(&mut self) -> Work {
        let shared = Arc::clone(&self.shared);
        let mut inbox = shared.lock();
        let inbox = &mut *inbox;
        if inbox.mail_since.take().is_some() {
            self.gathering.taken(inbox.group.store.len(), inbox.wanted);
        }
        inbox.since = None;
        inbox.accounting = false;
        let mut group = std::mem::take(&mut inbox.group);
        let mut replies = std::mem::take(&mut inbox.replies);
        let mut bytes = 0;
        let fits = group
            .store
            .iter()
            .position(|m| {
                bytes += m.body[0].len() + m.body[1].len();
                bytes > GROUP_BYTES_MAX
            })
            .map_or(group.store.len(), |i| i.max(1));
        if fits < group.store.len() {
            inbox.group.store = group.store.split_off(fits);
            inbox.replies = replies.split_off(fits);
            inbox.mail_since = Some(Instant::now());
        }
        let batch = Batch {
            group,
            replies,
            report_replies: std::mem::take(&mut inbox.report_replies),
            outcome_bytes: std::mem::take(&mut inbox.outcome_bytes),
        };
        Work { batch, queries: std::mem::take(&mut inbox.queries), stop: inbox.stop }
    }

    /// Appends a group to the log; `None` when nothing of it is to be written. Then follows
    /// [`Running::sync`].
    pub fn write(&mut self, mut batch: Batch) -> Option<(Batch, Result<Written, SpoolError>)> {
        let Batch { group, replies, .. } = &mut batch;
        for (origin, open) in std::mem::take(&mut group.open) {
            group.forget.extend(self.store.forgettable(origin, &open));
        }
        if group.is_empty() {
            self.shared.backlog.written(batch.outcome_bytes as u64, self.shared.lock().since);
            return None;
        }
        if let Some(e) = self.intake_refusal() {
            let kept: Vec<bool> =
                group.store.iter().map(|m| m.in_progress && !matches!(e, SpoolError::Sync(_))).collect();
            let mut keep = kept.iter();
            group.store.retain(|_| *keep.next().unwrap_or(&false));
            let mut still = Vec::new();
            for (reply, kept) in std::mem::take(replies).into_iter().zip(kept) {
                if kept { still.push(reply) } else { drop(reply.send(Err(e.clone()))) }
            }
            *replies = still;
            if group.is_empty() {
                return None;
            }
        }
        let written = match self.store.write(&batch.group) {
            Err(SpoolError::Full(_)) if self.release_ballast() => self.store.write(&batch.group),
            r => r,
        };
        Some((batch, written))
    }

    /// Makes what was appended durable. Then follows [`Running::conclude`].
    pub fn sync(&mut self, batch: &Batch, written: Result<Written, SpoolError>) -> Results {
        let results = written.and_then(|w| self.store.sync(&batch.group, w));
        let statistics = &self.shared.statistics;
        statistics.syncs.fetch_add(1, Relaxed);
        statistics.log_bytes.store(self.store.written_bytes(), Relaxed);
        results
    }

    /// Answers those who wait for a group, and passes on what it says; outcomes that could not be
    /// written are kept.
    pub fn conclude(&mut self, batch: Batch, results: Results) {
        let Batch { mut group, replies, report_replies, outcome_bytes } = batch;
        match results {
            Ok(results) => {
                if std::mem::take(&mut self.failures) > 0 {
                    tracing::info!("outcomes are written again");
                    self.shared.backlog.set_failing(false);
                }
                self.is_in_doubt = false;
                self.shared.backlog.written(outcome_bytes as u64, self.shared.lock().since);
                if let Some(Err(SpoolError::Full(why))) = results.last() {
                    self.no_room = Some(why.clone());
                }
                self.accounting.switched.drain(..).for_each(|r| drop(r.send(Ok(()))));
                self.accounting.pass(&mut group, &results, &self.store);
                for (reply, r) in report_replies.into_iter().chain(replies).zip(results) {
                    let _ = reply.send(r);
                }
            }
            Err(e) => {
                if self.failures == 0 {
                    tracing::error!(error = %e, "group commit failed; intake pauses, delivery too until outcomes can be written");
                }
                self.intake_closed_until = Some(Instant::now() + FAILURE_PAUSE);
                for reply in replies {
                    let _ = reply.send(Err(e.clone()));
                }
                let had_messages = !group.store.is_empty();
                group.store.clear();
                let may_be_there = had_messages && matches!(e, SpoolError::Sync(_) | SpoolError::Write(_));
                if may_be_there && !std::mem::replace(&mut self.is_in_doubt, true) {
                    // Durable in their place, it says that they are not.
                    group.put.push(self.proof());
                }
                if !group.is_empty() && !ipc::planted!("outcomes-of-a-failed-group-forgotten") {
                    self.failures += 1;
                    self.failure = e.to_string();
                    self.shared.backlog.set_failing(true);
                    self.offer_again(group, report_replies, outcome_bytes);
                }
            }
        }
    }

    /// A group of so many messages was answered.
    pub fn answered(&mut self, messages: usize) {
        self.gathering.answered(messages, self.shared.lock().group.store.len());
    }

    /// Puts outcomes of a failed group before those that have come since.
    fn offer_again(&mut self, group: Group, mut report_replies: Vec<StoreReply>, outcome_bytes: usize) {
        let pause = (AGAIN * self.failures.min(20)).min(AGAIN_MAX);
        let shared = Arc::clone(&self.shared);
        let mut inbox = shared.lock();
        let again_at = if inbox.stop { Instant::now() } else { Instant::now() + pause };
        self.again_at = Some(again_at);
        let newer = std::mem::take(&mut inbox.group);
        let mut g = Group { store: newer.store, ..group };
        g.reports.extend(newer.reports);
        report_replies.append(&mut inbox.report_replies);
        inbox.report_replies = report_replies;
        inbox.outcome_bytes += outcome_bytes;
        g.done.entries.extend(newer.done.entries);
        g.done.settled.extend(newer.done.settled);
        g.done.rows.extend(newer.done.rows);
        g.update.entries.extend(newer.update.entries);
        g.update.rows.extend(newer.update.rows);
        g.put.extend(newer.put);
        g.forget.extend(newer.forget);
        g.open.extend(newer.open);
        inbox.group = g;
        inbox.since = Some(again_at);
    }

    /// Why no new mail may come in now.
    fn intake_refusal(&mut self) -> Option<SpoolError> {
        let now = Instant::now();
        if self.failures > 0 || self.intake_closed_until.is_some_and(|t| now < t) {
            return Some(SpoolError::Write("a group commit has just failed".into()));
        }
        self.intake_closed_until = None;
        if self.free_checked.is_none_or(|t| now - t > ROOM_EVERY) {
            self.free_checked = Some(now);
            self.low_space = self.look_for_room();
        }
        self.low_space.clone().map(SpoolError::Full)
    }

    /// Why there is no room for new mail.
    fn look_for_room(&mut self) -> Option<String> {
        let why = self.missing_room()?;
        Some(match self.accounting.behind() {
            Some((_, because)) => {
                format!("{why}; rows wait in the spool for accounting files that cannot be written: {because}")
            }
            None => why,
        })
    }

    fn missing_room(&mut self) -> Option<String> {
        let free = self.store.log.disk.free_bytes().unwrap_or(u64::MAX);
        let least = self.options.min_free_bytes;
        if free < least {
            return Some(format!("less than min-free-space {least} bytes are free"));
        }
        self.restore_ballast();
        if !self.ballast {
            // Given up for outcomes and the index: not for mail that would need more of it.
            return Some(format!("less than {} bytes are free", 2 * BALLAST_BYTES));
        }
        if self.no_room.is_some() && self.store.keep_room().is_ok() {
            self.no_room = None;
        }
        self.no_room.clone().or_else(|| self.accounting.refusal())
    }

    /// Notes for the operator why new mail is refused.
    fn note_refusal(&mut self) {
        let why = match self.intake_refusal() {
            _ if self.failures > 0 => Some(self.failure.clone()),
            Some(SpoolError::Full(why)) => Some(why),
            // One group has failed: it passes in a second.
            _ => None,
        };
        self.shared.backlog.set_refusal(why.as_deref());
    }

    /// Lets accounting go on, and notes in the log how far it is.
    fn step_accounting(&mut self) {
        if let Some(put) = self.accounting.step(&mut self.store) {
            let mut inbox = self.shared.lock();
            inbox.group.put.push(put);
            if !self.accounting.switched.is_empty() {
                inbox.since.get_or_insert_with(Instant::now);
            }
        }
        self.shared.backlog.set_accounting_behind(self.accounting.behind());
    }

    /// Whether what was given before is in the log: a group that failed is offered again.
    fn all_written(&self) -> Result<(), SpoolError> {
        if self.failures > 0 { Err(SpoolError::Write(self.failure.clone())) } else { Ok(()) }
    }

    fn answer(&mut self, query: Query) {
        match query {
            Query::Read(key, reply) => drop(reply.send(self.store.read(key))),
            Query::State(key, r, reply) => drop(reply.send(self.store.state(key, r))),
            Query::Recipients(key, reply) => drop(reply.send(self.store.recipients(key))),
            Query::Seen(id, reply) => drop(reply.send(match self.store.has_seen(id) {
                false if self.is_in_doubt => Err(SpoolError::Sync(self.failure.clone())),
                seen => Ok(seen),
            })),
            Query::Barrier(reply) => {
                drop(reply.send(self.all_written()));
            }
            Query::SwitchProjection(next, reply) => match self.all_written() {
                Ok(()) => self.accounting.switch(next, reply),
                Err(e) => drop(reply.send(Err(e))),
            },
        }
    }

    /// What is done after a group, and without one.
    pub fn look_after(&mut self, queries: Vec<Query>) {
        for q in queries {
            self.answer(q);
        }
        self.housekeeping();
    }

    fn housekeeping(&mut self) {
        let now = Instant::now();
        self.step_accounting();
        self.note_refusal();
        let age = now - self.checkpoint_at;
        let due = (self.store.behind() > BEHIND_MAX && age > ROOM_EVERY)
            || (age > CHECKPOINT_EVERY && self.store.needs_checkpoint());
        if due && !self.store.checkpointing() {
            self.checkpoint_at = now;
            if self.has_room_for_index() {
                self.store.begin_checkpoint();
            }
        }
        if now - self.leave_at > CHECKPOINT_EVERY {
            self.leave_at = now;
            self.leave_dead_segment();
        }
        if self.store.index_failed() {
            self.restore_index(now);
        } else if self.store.checkpointing() {
            match self.store.step_checkpoint() {
                Ok(true) => {
                    self.store.choose_compaction();
                    self.restore_ballast();
                }
                Ok(false) => {}
                Err(e) => {
                    tracing::error!(error = %e, "the index failed; it is rebuilt from the segments when there is room");
                }
            }
        } else if self.store.compacting()
            && let Err(e) = self.store.step_compaction()
        {
            tracing::warn!(error = %e, "copying long-deferred mail forward failed; tried again later");
        }
        self.write_quarantine();
        self.shared.statistics.disk_bytes.store(self.store.disk_bytes(), Relaxed);
    }

    fn write_quarantine(&mut self) {
        for (name, bytes) in self.store.take_quarantine() {
            let written = self.folder.folder(QUARANTINE).and_then(|mut quarantine| {
                // The same bytes may have been found before.
                let _ = quarantine.remove(&name);
                let file = quarantine.create(&name)?;
                quarantine.write(&file, 0, &[IoSlice::new(&bytes)])
            });
            if let Err(e) = written {
                tracing::error!(name, error = %e, "damaged bytes could not be copied to quarantine");
            }
        }
    }

    /// Whether the index can be written to; gives the ballast up for it. Nothing is freed until
    /// the index has followed, so this is what makes room again.
    fn has_room_for_index(&mut self) -> bool {
        let has = |s: &Self| s.store.log.disk.free_bytes().is_ok_and(|free| free >= s.store.index_room());
        has(self) || (self.release_ballast() && has(self))
    }

    fn restore_index(&mut self, now: Instant) {
        if now < self.restore_at || !self.has_room_for_index() {
            return;
        }
        match self.store.restore_index() {
            Ok(o) => tracing::info!(messages = o.messages, replayed = o.replayed, "the index is rebuilt"),
            Err(e) => tracing::warn!(error = %e, "the index cannot be rebuilt yet"),
        }
        self.restore_at = Instant::now() + RESTORE_EVERY;
    }

    /// Where new mail finds no room, the segment in use is not kept for the little that lives
    /// there: it can be the largest part of the disk.
    fn leave_dead_segment(&mut self) {
        if self.low_space.is_none() {
            return;
        }
        let left = match self.store.leave_dead_segment() {
            Err(e) if e.kind() == std::io::ErrorKind::StorageFull && self.release_ballast() => {
                self.store.leave_dead_segment()
            }
            r => r,
        };
        if let Err(e) = left {
            tracing::debug!(error = %e, "no room for another segment");
        }
    }

    fn release_ballast(&mut self) -> bool {
        let released = self.folder.remove(BALLAST).is_ok();
        self.ballast &= !released;
        released
    }

    fn restore_ballast(&mut self) {
        if self.ballast || self.store.log.disk.free_bytes().unwrap_or(0) < 2 * BALLAST_BYTES {
            return;
        }
        self.ballast = self.make_ballast().is_ok();
        if !self.ballast {
            // What stays of it is replaced by the next try.
            let _ = self.folder.remove(BALLAST);
        }
    }

    fn make_ballast(&mut self) -> std::io::Result<()> {
        // A part of one may be there; one that stays makes the next call fail.
        let _ = self.folder.remove(BALLAST);
        let file = self.folder.create(BALLAST)?;
        self.folder.preallocate(&file, 0, BALLAST_BYTES)?;
        let mut len = self.folder.len(&file)?;
        // A file system that cannot allocate takes bytes.
        let zeros = [0; BALLAST_STEP];
        while len < BALLAST_BYTES {
            let step = &zeros[..zeros.len().min((BALLAST_BYTES - len) as usize)];
            self.folder.write(&file, len, &[IoSlice::new(step)])?;
            len += step.len() as u64;
        }
        Ok(())
    }

    /// Lets accounting come to its end; to be called again after the time that it answers.
    pub fn finish_accounting(&mut self, stop: &mut Stop) -> Option<Duration> {
        self.accounting.finish(stop, &mut self.store)
    }

    /// The last group. What is asked from now on is not answered.
    pub fn last(&mut self, stop: Stop) -> Batch {
        if let Some(put) = stop.put() {
            self.shared.lock().group.put.push(put);
        }
        if self.accounting.is_behind() {
            tracing::warn!("accounting is behind; its rows are written at the next start");
        }
        self.take().batch
    }

    /// Marks the stop as orderly.
    pub fn close(&mut self) {
        if let Err(e) = self.store.close() {
            tracing::error!(error = %e, "the index could not be closed; the next start rebuilds it");
        }
        self.shared.is_complete.store(self.failures == 0 && !self.accounting.is_behind(), Ordering::Release);
    }
}

impl<D: Disk, I: Index> Store<D, I> {
    /// Whether a segment is being copied forward.
    pub fn compacting(&self) -> bool {
        self.compaction.is_some()
    }
}

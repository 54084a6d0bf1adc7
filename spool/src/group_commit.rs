//! The spool's thread and the handle to it.
//!
//! Groups form by themselves: what arrives while one sync runs goes into the next, and under
//! load a group waits a moment for those who were answered last to come back (see
//! [`Gathering`]). Outcomes alone wait a few milliseconds for company; a lone message does not. Checkpoints, compaction and
//! accounting run between groups, in slices.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ipc::message::HandoffId;
use tokio::sync::oneshot;

use crate::SpoolError;
use crate::disk::{Disk, Folder};
use crate::index::Index;
use crate::layout::{ForgetMeta, PutMeta, RecipientState, UpdateEntry};
use crate::sled::SledIndex;
use crate::store::{Group, NewMessage, Projection, Recovered, Settled, Store};

/// Outcomes alone wait this long for a group.
const OUTCOMES_WAIT: Duration = Duration::from_millis(4);
/// A group waits this long at most for mail that is expected.
const GATHER_MAX: Duration = Duration::from_millis(2);
/// Mail that came this long after the last group has nothing to do with it.
const GATHER_MEMORY: Duration = Duration::from_millis(10);
/// The index follows at least this often while something changes.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(2);
/// … and when this many messages are not in it.
const BEHIND_MAX: usize = 8192;
/// Accounting is synced this often while rows are written.
const PROJECTION_SYNC_EVERY: Duration = Duration::from_secs(1);
/// After a failed group intake stays closed this long before the next try.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);
/// Bytes of content in one group.
const GROUP_BYTES_MAX: usize = 4 << 20;
/// Room given back for outcomes when the disk is full.
const BALLAST_BYTES: u64 = 16 << 20;

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
    /// Rows not yet in accounting files wait on disk since this many seconds.
    pub projection_lag_s: AtomicU64,
}

type StoreReply = oneshot::Sender<Result<u64, SpoolError>>;

enum Query {
    Read(u64, oneshot::Sender<Result<(Vec<u8>, Bytes), SpoolError>>),
    State(u64, u16, oneshot::Sender<Result<Option<RecipientState>, SpoolError>>),
    Seen(HandoffId, oneshot::Sender<bool>),
    Barrier(oneshot::Sender<Result<(), SpoolError>>),
    SwitchProjection(Box<dyn Projection>, oneshot::Sender<Result<(), SpoolError>>),
}

#[derive(Default)]
struct Inbox {
    group: Group,
    replies: Vec<StoreReply>,
    queries: Vec<Query>,
    /// Mail is there since then.
    mail_since: Option<Instant>,
    /// Messages that the thread waits for, for a moment.
    wanted: usize,
    since: Option<Instant>,
    stop: bool,
}

struct Shared {
    inbox: Mutex<Inbox>,
    wake: Condvar,
    statistics: Statistics,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The handle to a shard's spool. Cheap to use from the reactor: nothing here blocks but for
/// a short lock. New mail is collected until [`Spool::flush`] wakes the thread.
pub struct Spool {
    shared: Arc<Shared>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

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
    ) -> std::io::Result<(Spool, oneshot::Receiver<Result<crate::store::Values, SpoolError>>)> {
        let shared =
            Arc::new(Shared { inbox: Mutex::default(), wake: Condvar::new(), statistics: Statistics::default() });
        let (ready, opened) = oneshot::channel();
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("spool".into()).spawn(move || {
            match Running::open(options, projection, &mut *each, for_thread) {
                Ok(mut running) => {
                    drop(each);
                    let _ = ready.send(Ok(running.store.values("")));
                    running.run();
                }
                Err(e) => drop(ready.send(Err(e))),
            }
        })?;
        Ok((Spool { shared, thread: Mutex::new(Some(thread)) }, opened))
    }

    /// Makes a message durable. Resolves, after [`Spool::flush`], when the group that holds
    /// it is on disk; only then may the client hear `250` (RFC 5321 §6.1). Dropping the
    /// receiver does not cancel the write.
    ///
    /// # Errors
    /// Through the receiver: [`SpoolError::Full`], [`SpoolError::Write`], [`SpoolError::Sync`].
    pub fn store(&self, message: NewMessage) -> oneshot::Receiver<Result<u64, SpoolError>> {
        let (reply, receiver) = oneshot::channel();
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
                self.shared.wake.notify_one();
            }
        }
    }

    /// Records final outcomes; durable with the next group.
    pub fn settle(&self, settled: Settled) {
        self.outcome(|g| g.settle(settled));
    }

    /// Records recipients' states and their accounting rows.
    pub fn update(&self, entries: Vec<UpdateEntry>, rows: Vec<Vec<u8>>) {
        self.outcome(|g| {
            g.update.entries.extend(entries);
            g.update.rows.extend(rows);
        });
    }

    /// Keeps a value that outlives the index; an empty one removes the name.
    pub fn put(&self, name: &str, value: Vec<u8>) {
        self.outcome(|g| g.put.push(PutMeta { name: name.to_owned(), value }));
    }

    /// Notes that `origin` will not repeat handoffs below a sequence.
    pub fn forget(&self, origin: u8, below: u64) {
        self.outcome(|g| g.forget.push(ForgetMeta { origin, below }));
    }

    fn outcome(&self, add: impl FnOnce(&mut Group)) {
        let mut inbox = self.shared.lock();
        add(&mut inbox.group);
        if inbox.since.is_none() {
            inbox.since = Some(Instant::now());
            self.shared.wake.notify_one();
        }
    }

    fn query<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Query) -> oneshot::Receiver<T> {
        let (reply, receiver) = oneshot::channel();
        let mut inbox = self.shared.lock();
        inbox.queries.push(make(reply));
        self.shared.wake.notify_one();
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

    /// Whether a handoff was taken before and is durable.
    pub async fn has_seen(&self, id: HandoffId) -> bool {
        self.query(|r| Query::Seen(id, r)).await.unwrap_or(false)
    }

    /// Resolves when everything given so far is durable, in accounting too.
    ///
    /// # Errors
    /// When it could not be written.
    pub async fn barrier(&self) -> Result<(), SpoolError> {
        self.query(Query::Barrier).await.unwrap_or(Err(SpoolError::Closed))
    }

    /// Completes and syncs accounting so far, then goes on with another projection.
    ///
    /// # Errors
    /// When the old one cannot be completed; it stays in use.
    pub async fn switch_projection(&self, next: Box<dyn Projection>) -> Result<(), SpoolError> {
        self.query(|r| Query::SwitchProjection(next, r)).await.unwrap_or(Err(SpoolError::Closed))
    }

    /// Counters.
    pub fn statistics(&self) -> &Statistics {
        &self.shared.statistics
    }

    /// Writes everything out, marks the stop as orderly and ends the thread. Blocks; what is
    /// given afterwards is not written.
    pub fn finish(&self) {
        self.shared.lock().stop = true;
        self.shared.wake.notify_one();
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
    fn wanted(&self) -> usize {
        let recent = self.last.is_some_and(|t| t.elapsed() < GATHER_MEMORY);
        if recent { self.expected - self.expected / 4 } else { 1 }
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

struct Running {
    gathering: Gathering,
    store: Store<Folder, SledIndex>,
    options: Options,
    projection: Box<dyn Projection>,
    shared: Arc<Shared>,
    checkpoint_at: Instant,
    projection_at: Instant,
    /// Rows were passed since the last sync of accounting.
    projection_pending: bool,
    /// Accounting could not be written since then.
    projection_failed: Option<Instant>,
    /// Who switched it, and is told when the position before is in the log.
    switched: Vec<oneshot::Sender<Result<(), SpoolError>>>,
    intake_closed_until: Option<Instant>,
    free_checked: Option<Instant>,
    low_space: Option<String>,
}

impl Running {
    fn open(
        options: Options,
        mut projection: Box<dyn Projection>,
        each: &mut dyn FnMut(Recovered),
        shared: Arc<Shared>,
    ) -> Result<Running, SpoolError> {
        let failed =
            |e: std::io::Error| SpoolError::Open { path: options.path.display().to_string(), reason: e.to_string() };
        let ballast = options.path.join("ballast");
        std::fs::create_dir_all(&options.path).map_err(failed)?;
        let folder = Folder::open(&options.path.join("log"), options.sync).map_err(failed)?;
        if folder.free_bytes().map_err(failed)? < BALLAST_BYTES {
            // sled destroys itself when it opens without room.
            let _ = std::fs::remove_file(&ballast);
        }
        let index = SledIndex::open(&options.path.join("index"))?;
        let (mut store, opened) = Store::open(folder, index, options.shard, &options.boot, each)?;
        tracing::info!(
            messages = opened.messages,
            replayed = opened.replayed,
            rebuilt = opened.rebuilt.is_some(),
            damaged = opened.damaged,
            "spool open"
        );
        projection.resume(store.projection_state());
        store.project_from(&mut *projection).map_err(failed)?;
        let now = Instant::now();
        let mut running = Running {
            gathering: Gathering::default(),
            store,
            options,
            projection,
            shared,
            checkpoint_at: now,
            projection_at: now,
            projection_pending: true,
            projection_failed: None,
            switched: Vec::new(),
            intake_closed_until: None,
            free_checked: None,
            low_space: None,
        };
        running.write_projection();
        running.write_quarantine();
        running.restore_ballast();
        Ok(running)
    }

    fn run(&mut self) {
        loop {
            let (group, replies, queries, stop) = self.next_work();
            if !group.is_empty() {
                let messages = group.store.len();
                self.commit(group, replies);
                self.gathering.answered(messages, self.shared.lock().group.store.len());
            }
            for q in queries {
                self.answer(q);
            }
            self.housekeeping();
            if stop {
                self.leave();
                return;
            }
        }
    }

    /// Waits for work, or for the next piece of housekeeping.
    fn next_work(&mut self) -> (Group, Vec<StoreReply>, Vec<Query>, bool) {
        let busy = self.store.checkpointing() || self.store.compacting();
        let idle = if busy { Duration::ZERO } else { Duration::from_millis(500) };
        let begun = Instant::now();
        let shared = Arc::clone(&self.shared);
        let mut inbox = shared.lock();
        let wanted = self.gathering.wanted();
        inbox.wanted = wanted;
        loop {
            let wait = match (inbox.mail_since, inbox.since) {
                _ if inbox.stop || !inbox.queries.is_empty() || inbox.group.store.len() >= wanted => break,
                (Some(since), _) => self.gathering.patience.saturating_sub(since.elapsed()),
                (_, Some(since)) => OUTCOMES_WAIT.saturating_sub(since.elapsed()),
                _ => idle.saturating_sub(begun.elapsed()),
            };
            if wait.is_zero() {
                break;
            }
            inbox = shared.wake.wait_timeout(inbox, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
        let inbox = &mut *inbox;
        if inbox.mail_since.take().is_some() {
            self.gathering.taken(inbox.group.store.len(), wanted);
        }
        inbox.since = None;
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
        (group, replies, std::mem::take(&mut inbox.queries), inbox.stop)
    }

    fn commit(&mut self, mut group: Group, mut replies: Vec<StoreReply>) {
        if let Some(e) = self.intake_refusal() {
            let kept: Vec<bool> =
                group.store.iter().map(|m| m.in_progress && !matches!(e, SpoolError::Sync(_))).collect();
            let mut keep = kept.iter();
            group.store.retain(|_| *keep.next().unwrap_or(&false));
            let mut still = Vec::new();
            for (reply, kept) in replies.into_iter().zip(kept) {
                if kept { still.push(reply) } else { drop(reply.send(Err(e.clone()))) }
            }
            replies = still;
            if group.is_empty() {
                return;
            }
        }
        let result = match self.store.commit(&group) {
            Err(SpoolError::Full(_)) if self.release_ballast() => self.store.commit(&group),
            r => r,
        };
        let statistics = &self.shared.statistics;
        statistics.syncs.fetch_add(1, Relaxed);
        statistics.log_bytes.store(self.store.written_bytes(), Relaxed);
        match result {
            Ok(results) => {
                self.switched.drain(..).for_each(|r| drop(r.send(Ok(()))));
                self.project(&group, &results);
                for (reply, r) in replies.into_iter().zip(results) {
                    let _ = reply.send(r);
                }
                self.write_projection();
            }
            Err(e) => {
                tracing::error!(error = %e, "group commit failed; intake pauses, outcomes are written again");
                self.intake_closed_until = Some(Instant::now() + FAILURE_PAUSE);
                for reply in replies {
                    let _ = reply.send(Err(e.clone()));
                }
                self.offer_again(group);
            }
        }
    }

    /// Puts outcomes of a failed group before those that have come since.
    fn offer_again(&mut self, group: Group) {
        std::thread::sleep(Duration::from_millis(50));
        let mut inbox = self.shared.lock();
        let newer = std::mem::take(&mut inbox.group);
        let mut g = Group { store: newer.store, ..group };
        g.done.entries.extend(newer.done.entries);
        g.done.settled.extend(newer.done.settled);
        g.done.rows.extend(newer.done.rows);
        g.update.entries.extend(newer.update.entries);
        g.update.rows.extend(newer.update.rows);
        g.put.extend(newer.put);
        g.forget.extend(newer.forget);
        inbox.group = g;
        inbox.since = Some(Instant::now());
    }

    /// Why no new mail may come in now.
    fn intake_refusal(&mut self) -> Option<SpoolError> {
        let now = Instant::now();
        if self.intake_closed_until.is_some_and(|t| now < t) {
            return Some(SpoolError::Write("a group commit has just failed".into()));
        }
        self.intake_closed_until = None;
        if self.free_checked.is_none_or(|t| now - t > Duration::from_millis(200)) {
            self.free_checked = Some(now);
            let free = self.store.log.disk.free_bytes().unwrap_or(u64::MAX);
            let least = self.options.min_free_bytes;
            let low = (free < least).then(|| format!("less than min-free-space {least} bytes are free"));
            self.low_space = low.or_else(|| self.projection.refuses_intake());
        }
        self.low_space.clone().map(SpoolError::Full)
    }

    fn project(&mut self, group: &Group, results: &[Result<u64, SpoolError>]) {
        if self.projection_failed.is_some() {
            return;
        }
        for row in group.update.rows.iter().chain(&group.done.rows) {
            self.projection.row(row);
            self.projection_pending = true;
        }
        for (m, r) in group.store.iter().zip(results) {
            if r.is_ok() {
                self.projection.message(&m.envelope, &m.body[0]);
                self.projection_pending = true;
            }
        }
    }

    fn write_projection(&mut self) {
        if self.projection_failed.is_none()
            && let Err(e) = self.projection.write()
        {
            tracing::error!(error = %e, "accounting cannot be written; rows stay in the log and are written later");
            self.projection_failed = Some(Instant::now());
        }
    }

    /// Makes rows durable and notes how far.
    fn sync_projection(&mut self) -> Result<(), SpoolError> {
        self.projection_at = Instant::now();
        if self.projection_failed.is_some() {
            let state = self.store.projection_state().to_vec();
            self.projection.resume(&state);
            self.store.project_from(&mut *self.projection).map_err(|e| SpoolError::Write(e.to_string()))?;
        }
        let synced = self.projection.write().and_then(|()| self.projection.sync());
        match synced {
            Ok(state) => {
                if self.projection_failed.take().is_some() {
                    tracing::info!("accounting is written again");
                }
                self.projection_pending = false;
                let put = self.store.set_projected(self.store.last_sequence(), &state);
                self.shared.statistics.projection_lag_s.store(0, Relaxed);
                self.shared.lock().group.put.push(put);
                Ok(())
            }
            Err(e) => {
                let since = *self.projection_failed.get_or_insert_with(Instant::now);
                self.shared.statistics.projection_lag_s.store(since.elapsed().as_secs().max(1), Relaxed);
                Err(SpoolError::Write(format!("accounting: {e}")))
            }
        }
    }

    fn answer(&mut self, query: Query) {
        match query {
            Query::Read(key, reply) => drop(reply.send(self.store.read(key))),
            Query::State(key, r, reply) => drop(reply.send(self.store.state(key, r))),
            Query::Seen(id, reply) => drop(reply.send(self.store.has_seen(id))),
            Query::Barrier(reply) => drop(reply.send(self.sync_projection())),
            Query::SwitchProjection(next, reply) => {
                let done = self.sync_projection();
                if done.is_err() {
                    return drop(reply.send(done));
                }
                self.projection = next;
                self.projection.begin();
                // Answered when a kill cannot make rows come again that the one before has written.
                self.switched.push(reply);
                self.shared.lock().since.get_or_insert_with(Instant::now);
            }
        }
    }

    fn housekeeping(&mut self) {
        let now = Instant::now();
        if self.projection_pending && now - self.projection_at > PROJECTION_SYNC_EVERY {
            let _ = self.sync_projection();
        }
        let due = self.store.behind() > BEHIND_MAX
            || (now - self.checkpoint_at > CHECKPOINT_EVERY && self.store.needs_checkpoint());
        if due && !self.store.checkpointing() {
            self.checkpoint_at = now;
            self.store.begin_checkpoint();
        }
        if self.store.checkpointing() {
            match self.store.step_checkpoint() {
                Ok(true) => {
                    self.store.choose_compaction();
                    self.restore_ballast();
                }
                Ok(false) => {}
                Err(e) => tracing::error!(error = %e, "the index failed; the next start rebuilds it from the segments"),
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
            let folder = self.options.path.join("quarantine");
            let written = std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(folder.join(&name), bytes));
            if let Err(e) = written {
                tracing::error!(name, error = %e, "damaged bytes could not be copied to quarantine");
            }
        }
    }

    fn release_ballast(&self) -> bool {
        std::fs::remove_file(self.options.path.join("ballast")).is_ok()
    }

    fn restore_ballast(&self) {
        let path = self.options.path.join("ballast");
        if path.exists() || self.store.log.disk.free_bytes().unwrap_or(0) < 4 * BALLAST_BYTES {
            return;
        }
        let made = std::fs::File::create(&path)
            .and_then(|f| nix::fcntl::posix_fallocate(&f, 0, BALLAST_BYTES as i64).map_err(std::io::Error::from));
        if made.is_err() {
            let _ = std::fs::remove_file(&path);
        }
    }

    fn leave(&mut self) {
        let _ = self.sync_projection();
        let (group, replies, queries, _) = self.next_work();
        if !group.is_empty() {
            self.commit(group, replies);
        }
        drop(queries);
        if let Err(e) = self.store.close() {
            tracing::error!(error = %e, "the index could not be closed; the next start rebuilds it");
        }
    }
}

impl<D: Disk, I: Index> Store<D, I> {
    /// Whether a segment is being copied forward.
    pub fn compacting(&self) -> bool {
        self.compaction.is_some()
    }
}

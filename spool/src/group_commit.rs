//! Group commit: decides what a spool does next, and when.
//!
//! The decisions are those of [`Running`], which knows of no thread and never waits: the spool's thread
//! ([`crate::thread`]) waits as long as [`Running::pause`] says and then calls it again, and so does the task that takes the
//! thread's place in simulations ([`crate::driver`]).
//!
//! Groups form by themselves: what arrives while one sync runs goes into the next group. Under load a group also waits a
//! moment for the clients that were answered last to send again (see [`Gathering`]). A group of outcomes alone waits a few
//! milliseconds for more of them; a lone message is written at once. Checkpoints, compaction and
//! accounting run between groups, in slices.

mod gathering;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::time::Duration;

use tokio::time::Instant;

use crate::SpoolError;
use crate::accounting::writer::Runner;
use crate::accounting::{Accounting, Stop};
use crate::ballast::Ballast;
use crate::disk::Disk;
use crate::group::Group;
use crate::inbox::{Inbox, Query, Shared, StoreReply};
use crate::index::Index;
use crate::layout::PutMeta;
use crate::projection::Projection;
use crate::store::{OPENED, Recovered, Store, Values, Written};
use gathering::Gathering;

/// A group without messages waits this long for more outcomes.
const OUTCOMES_WAIT: Duration = Duration::from_millis(4);
/// A checkpoint brings the index up to date at least this often while something changes …
const CHECKPOINT_EVERY: Duration = Duration::from_secs(2);
/// … and when the index lacks changes of more than this many messages.
const BEHIND_MAX: usize = 8192;
/// After a failed group intake stays closed this long before the next try.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);
/// Bytes of content in one group.
const GROUP_BYTES_MAX: usize = 4 << 20;
/// A failed index is restored not more often than this.
const RESTORE_EVERY: Duration = Duration::from_secs(2);
/// Time between two looks for room on the disk.
const ROOM_EVERY: Duration = Duration::from_millis(200);
/// Outcomes that could not be written are written again after this time, after twice this time, and so on …
const AGAIN: Duration = Duration::from_millis(50);
/// … but not later.
const AGAIN_MAX: Duration = Duration::from_secs(1);
/// Time after which a spool without work looks for room and other things that are due.
const IDLE_MAX: Duration = Duration::from_millis(500);
/// The folder of the log in the shard's folder.
const LOG: &str = "log";
/// Damaged bytes that the quarantine could not take are tried again after this time.
const QUARANTINE_EVERY: Duration = Duration::from_secs(1);
/// The folder of damaged bytes in the shard's folder.
const QUARANTINE: &str = "quarantine";

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

/// What became of a group: for each report and then each message to store.
pub(crate) type Results = Result<Vec<Result<u64, SpoolError>>, SpoolError>;

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
    /// How many times in a row outcomes could not be written.
    failures: u32,
    /// Why they could not the last time.
    failure: String,
    /// A group with messages failed, and nothing has been durable since: a crash may show its messages all the same.
    is_in_doubt: bool,
    /// Outcomes that could not be written are not tried again before this moment.
    again_at: Option<Instant>,
    free_checked: Option<Instant>,
    low_space: Option<String>,
    /// A message found no room in the log.
    no_room: Option<String>,
    ballast: Ballast,
    restore_at: Instant,
    leave_at: Instant,
    /// When damaged bytes are copied next.
    quarantine_at: Instant,
    /// The quarantine did not take what waits for it.
    quarantine_failed: bool,
}

/// How long the spool's thread or task waits before its next step, and for what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pause {
    /// The wait ends when so many messages are there …
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
#[derive(Default)]
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
        // sled destroys itself when it opens without room.
        let ballast = Ballast::open(&mut folder, log.free_bytes().map_err(failed)?);
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
            quarantine_at: now,
            quarantine_failed: false,
        };
        while running.write_quarantine(now) {}
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

    /// Writes a group and answers those who wait for it.
    pub fn commit(&mut self, batch: Batch) {
        let messages = batch.messages();
        if let Some((batch, written)) = self.write(batch) {
            let results = self.sync(&batch, written);
            self.conclude(batch, results);
        }
        self.answered(messages);
    }

    /// What is waited for from now on.
    pub fn pause(&mut self, now: Instant) -> Pause {
        let copies = self.store.quarantine_waits() && self.quarantine_at <= now;
        let busy = self.store.checkpointing() || self.store.compacting() || self.accounting.is_busy() || copies;
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
                    // Once this value is durable in their place in the log, they cannot be there.
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
        if !self.ballast.stands() {
            // The ballast was given up for outcomes and the index, not for new mail, which would need still more room.
            return Some(format!("less than {} bytes are free", Ballast::ROOM_BYTES));
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
            // Only one group has failed, which may pass within a second.
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
            Query::Read(key, reply) => {
                let answer = self.store.read(key);
                drop(reply.send(self.told(answer)));
            }
            Query::State(key, r, reply) => {
                let answer = self.store.state(key, r);
                drop(reply.send(self.told(answer)));
            }
            Query::Recipients(key, reply) => {
                let answer = self.store.recipients(key);
                drop(reply.send(self.told(answer)));
            }
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

    /// An answer out of the index, which is rebuilt where it cannot be read: who asks for one message asks again, and would never
    /// hear of it.
    fn told<T>(&mut self, answer: Result<T, SpoolError>) -> Result<T, SpoolError> {
        if let Err(SpoolError::Index(error)) = &answer
            && !self.store.index_failed()
        {
            tracing::error!(error, "the index cannot be read; it is rebuilt from the segments when there is room");
            self.store.give_index_up();
        }
        answer
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
        self.write_quarantine(now);
        self.shared.statistics.disk_bytes.store(self.store.disk_bytes(), Relaxed);
    }

    /// Copies one stretch of damaged bytes, if one waits; answers whether it did.
    fn write_quarantine(&mut self, now: Instant) -> bool {
        if !self.store.quarantine_waits() || now < self.quarantine_at {
            return false;
        }
        let quarantine = self.folder.folder(QUARANTINE);
        let written = quarantine.and_then(|mut quarantine| self.store.write_quarantine(&mut quarantine));
        let Err(e) = written else {
            self.quarantine_failed = false;
            return true;
        };
        if !std::mem::replace(&mut self.quarantine_failed, true) {
            tracing::error!(error = %e, "damaged bytes cannot be copied to quarantine; they stay where they are, and this is tried again");
        }
        self.quarantine_at = now + QUARANTINE_EVERY;
        false
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

    /// Gives the ballast's room to what needs it more; answers whether there was any to give.
    fn release_ballast(&mut self) -> bool {
        self.ballast.release(&mut self.folder)
    }

    fn restore_ballast(&mut self) {
        let log = &self.store.log.disk;
        self.ballast.restore(&mut self.folder, || log.free_bytes().unwrap_or(0));
    }

    /// Lets accounting come to its end; to be called again after the time that it answers.
    pub fn finish_accounting(&mut self, stop: &mut Stop) -> Option<Duration> {
        self.accounting.finish(stop, &mut self.store)
    }

    /// The last groups: what was given until now, and notes of how far accounting is. What is asked from now on is not answered.
    pub fn last(&mut self, stop: Stop) -> Batch {
        if let Some(put) = stop.put() {
            self.shared.lock().group.put.push(put);
        }
        if self.accounting.is_behind() {
            tracing::warn!("accounting is behind; its rows are written at the next start");
        }
        self.take().batch
    }

    /// What was given while the last group was written: deliveries that ended meanwhile, above all. Empty where groups fail, as they would
    /// be offered for ever.
    pub fn since_last(&mut self) -> Batch {
        if self.failures > 0 { Batch::default() } else { self.take().batch }
    }

    /// Marks the stop as orderly.
    pub fn close(&mut self) {
        let now = Instant::now();
        self.quarantine_at = now;
        while self.write_quarantine(now) {}
        if let Err(e) = self.store.close() {
            tracing::error!(error = %e, "the index could not be closed; the next start rebuilds it");
        }
        self.shared.is_complete.store(self.failures == 0 && !self.accounting.is_behind(), Release);
    }
}

//! Accounting is written by a thread of its own, so that a disk of accounting files that is full or
//! does not answer holds up neither mail nor outcomes: their rows are in the log, and what does not
//! fit into a bounded queue before that thread is read from there later. A segment stays until its
//! rows are in the files, so it is the spool's room that ends this, and new mail is refused.
//!
//! What the files hold is noted in the log with each sync ([`Store::set_projected`]). After a
//! failure, as after a crash, rows behind that come again and the projection leaves out those that
//! the files have. Until all of these came by, nothing is noted.

pub(crate) mod writer;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::SpoolError;
use crate::disk::Disk;
use crate::group::Group;
use crate::index::Index;
use crate::layout::PutMeta;
use crate::projection::{Item, Projection, Wanted};
use crate::rows::Cursor;
use crate::store::Store;
use writer::{Desk, Order, Report, Runner, start};

/// Rows that wait in memory, bytes.
const WAITING_MAX: usize = if cfg!(test) { 4 << 10 } else { 16 << 20 };
/// Rows that are read from the log at once, bytes.
const SLICE: usize = if cfg!(test) { 1 << 10 } else { 1 << 20 };
/// Accounting is synced this often while rows are written.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// Time between two attempts at files that cannot be written.
const AGAIN: Duration = Duration::from_secs(1);
/// A call that takes so long has met a disk that does not answer.
const HANGS_AFTER: Duration = Duration::from_secs(5);

type SwitchReply = oneshot::Sender<Result<(), SpoolError>>;

/// Files could not be written.
struct Failure {
    since: Instant,
    why: String,
    again_at: Instant,
    /// The thread was told to go on.
    resumed: bool,
}

/// What the spool's thread knows of accounting.
pub(crate) struct Accounting {
    desk: Arc<Desk>,
    runner: Runner,
    wake: Arc<dyn Fn() + Send + Sync>,
    wanted: Wanted,
    /// The state with the files that rows go to now, for the log: whoever begins behind a kill must know where they may be.
    named: Option<Vec<u8>>,
    /// Rows of records up to this sequence were given to the thread.
    passed: u64,
    /// The same, where there were any.
    rows_passed: u64,
    /// Rows are passed as they come; else they are read from the log.
    live: bool,
    cursor: Cursor,
    /// Rows up to there may stand in files without a note of it.
    maybe_written: u64,
    /// Rows are not known to be in files since then.
    pending_since: Option<Instant>,
    sync_at: Instant,
    syncing: bool,
    failure: Option<Failure>,
    /// The files to come, which wait for those before to be complete.
    next: Option<(Box<dyn Projection>, SwitchReply)>,
    /// The files that the thread was told to go on with, and the channel on which their use is told.
    switching: Option<(Wanted, SwitchReply)>,
    /// Switched, and told when the position before is in the log.
    pub switched: Vec<SwitchReply>,
}

impl Drop for Accounting {
    fn drop(&mut self) {
        self.desk.close();
    }
}

/// An orderly stop, which waits for what is not written.
pub(crate) struct Stop {
    until: Instant,
    asked: bool,
    put: Option<PutMeta>,
}

impl Stop {
    /// Begins now.
    pub fn begin() -> Stop {
        Stop { until: Instant::now() + HANGS_AFTER, asked: false, put: None }
    }

    /// What goes into the log at its end.
    pub fn put(self) -> Option<PutMeta> {
        self.put
    }
}

impl Accounting {
    /// Begins behind what the log says was synced. `wake` is called when there is something for
    /// [`Accounting::step`].
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn begin<D: Disk, I: Index>(
        store: &Store<D, I>,
        projection: Box<dyn Projection>,
        runner: Runner,
        wake: Arc<dyn Fn() + Send + Sync>,
    ) -> io::Result<Accounting> {
        let wanted = Wanted::by(&*projection);
        let known = store.projection_state();
        let named = projection.handed_on(known.to_vec());
        let named = (named != known).then_some(named);
        let desk = start(projection, &runner, &wake)?;
        desk.give(Order::Resume(store.projection_state().to_vec()));
        let now = Instant::now();
        Ok(Accounting {
            desk,
            runner,
            wake,
            wanted,
            named,
            passed: store.projected,
            rows_passed: store.projected,
            live: false,
            cursor: Cursor::behind(store.projected),
            maybe_written: store.last_sequence(),
            pending_since: Some(now),
            sync_at: now,
            syncing: false,
            failure: None,
            next: None,
            switching: None,
            switched: Vec::new(),
        })
    }

    /// A group is durable: passes on what it says, or leaves it in the log for later.
    pub fn pass<D: Disk, I: Index>(
        &mut self,
        group: &mut Group,
        results: &[Result<u64, SpoolError>],
        store: &Store<D, I>,
    ) {
        let rows = std::mem::take(&mut group.update.rows).into_iter().chain(std::mem::take(&mut group.done.rows));
        let mut items: Vec<Item> = rows.map(Item::Row).collect();
        if self.wanted.messages {
            let stored = group.reports.iter().chain(&group.store).zip(results).filter(|(_, r)| r.is_ok());
            let headers = |b: &Bytes| if self.wanted.headers { Bytes::copy_from_slice(b) } else { Bytes::new() };
            items.extend(stored.map(|(m, _)| Item::Message {
                envelope: Bytes::copy_from_slice(&m.envelope),
                headers: headers(&m.body[0]),
            }));
        }
        if !items.is_empty() {
            self.pending_since.get_or_insert_with(Instant::now);
            if self.live && self.desk.waiting.load(Relaxed) > WAITING_MAX {
                self.live = false;
                self.cursor = Cursor::behind(self.passed);
            }
        }
        if self.live {
            self.passed = store.last_sequence();
            self.give(items);
        }
    }

    fn give(&mut self, items: Vec<Item>) {
        if !items.is_empty() {
            self.rows_passed = self.passed;
            self.desk.give(Order::Items(items));
        }
    }

    /// Goes on with these files; answered when everything before is complete and in the log.
    pub fn switch(&mut self, next: Box<dyn Projection>, reply: SwitchReply) {
        if let Some((_, before)) = self.next.replace((next, reply)) {
            let _ = before.send(Err(SpoolError::Slow(HANGS_AFTER.as_secs())));
        }
    }

    /// Does what is due; never waits for accounting. What it answers goes into the log.
    pub fn step<D: Disk, I: Index>(&mut self, store: &mut Store<D, I>) -> Option<PutMeta> {
        let mut put = self.named.take().map(|state| store.set_projected(store.projected, &state));
        let reports = std::mem::take(&mut self.desk.lock().reports);
        for r in reports {
            match r {
                Report::Synced(sequence, state) => put = Some(self.synced(sequence, &state, store)),
                Report::Switched => {
                    if let Some((wanted, reply)) = self.switching.take() {
                        self.wanted = wanted;
                        self.switched.push(reply);
                    }
                }
                Report::Replaced => {
                    if let Some((wanted, reply)) = self.switching.take() {
                        self.wanted = wanted;
                        let _ = reply.send(Ok(()));
                    }
                }
                Report::Failed(e) => self.failed(&e),
            }
        }
        self.go_on_with_next(store);
        if self.failure.as_ref().is_some_and(|f| !f.resumed && Instant::now() >= f.again_at) {
            self.desk.give(Order::Resume(store.projection_state().to_vec()));
            self.again_from(store.projected);
        }
        self.read_on(store);
        self.sync_if_due(store.projected);
        if self.live && !self.is_behind() {
            // No row lies between.
            store.projected = store.projected.max(self.passed);
        }
        put
    }

    fn synced<D: Disk, I: Index>(&mut self, sequence: u64, state: &[u8], store: &mut Store<D, I>) -> PutMeta {
        if self.failure.take().is_some() {
            tracing::info!("accounting is written again");
        }
        self.syncing = false;
        self.pending_since = (!self.live || self.rows_passed > sequence).then_some(self.sync_at);
        let noted = if ipc::planted!("accounting-noted-before-it-is-synced") { self.passed } else { sequence };
        store.set_projected(noted, state)
    }

    fn failed(&mut self, e: &io::Error) {
        let now = Instant::now();
        if self.failure.is_none() {
            tracing::error!(error = %e, "accounting cannot be written; rows stay in the log and are written later");
        }
        let since = self.failure.as_ref().map_or(now, |f| f.since);
        self.failure = Some(Failure { since, why: e.to_string(), again_at: now + AGAIN, resumed: false });
        self.syncing = false;
        self.pending_since.get_or_insert(now);
        self.live = false;
        if let Some((_, reply)) = self.switching.take() {
            let _ = reply.send(Err(SpoolError::Write(format!("accounting: {e}"))));
        }
    }

    /// Rows behind this are passed once more.
    fn again_from(&mut self, projected: u64) {
        self.maybe_written = self.maybe_written.max(self.passed);
        self.passed = projected;
        // An earlier attempt has read this part of the log, and what it found is known.
        self.cursor.back_to(projected);
        self.live = false;
        if let Some(f) = &mut self.failure {
            f.resumed = true;
        }
    }

    /// Files that cannot be written do not keep the spool from going on with others: the rows that they lack go to the new ones.
    fn go_on_with_next<D: Disk, I: Index>(&mut self, store: &Store<D, I>) {
        let Some((next, _)) = &self.next else { return };
        let wanted = Wanted::by(&**next);
        let state = store.projection_state();
        let hangs = self.desk.lock().busy_since.is_some_and(|t| t.elapsed() > HANGS_AFTER);
        if hangs && next.is_elsewhere(state) {
            let Some((next, reply)) = self.next.take() else { return };
            tracing::warn!(
                "the disk of the accounting files before does not answer; their last rows may stand in the new ones too"
            );
            self.desk.close();
            match start(next, &self.runner, &self.wake) {
                Ok(desk) => self.desk = desk,
                Err(e) => return self.failed(&e),
            }
            // While files do not answer, no rows are read from the log for them.
            self.desk.give(Order::Resume(Vec::new()));
            self.again_from(store.projected);
            (self.wanted, self.syncing, self.switching) = (wanted, false, None);
            let _ = reply.send(Ok(()));
        } else if self.failure.is_some() {
            let Some((next, reply)) = self.next.take() else { return };
            self.desk.give(Order::Replace(next, state.to_vec()));
            self.again_from(store.projected);
            self.wanted = self.wanted.and(wanted);
            self.switching = Some((wanted, reply));
        } else if self.live && self.is_complete() && !hangs {
            let Some((next, reply)) = self.next.take() else { return };
            self.desk.give(Order::Switch(self.passed, next));
            self.wanted = self.wanted.and(wanted);
            self.switching = Some((wanted, reply));
        }
    }

    /// All rows that the files may hold already have been passed again.
    fn is_complete(&self) -> bool {
        self.passed >= self.maybe_written
    }

    fn may_read(&self) -> bool {
        !self.live && self.failure.as_ref().is_none_or(|f| f.resumed)
    }

    fn has_room(&self) -> bool {
        let waiting = self.desk.waiting.load(Relaxed);
        // Files that could not be written before are given few rows at first, as a trial.
        if self.failure.is_some() { waiting == 0 } else { waiting < WAITING_MAX / 2 }
    }

    /// Passes the next rows of the log.
    fn read_on<D: Disk, I: Index>(&mut self, store: &Store<D, I>) {
        if !self.may_read() {
            return;
        }
        if !self.has_room() {
            self.desk.wants_room.store(true, Relaxed);
            return;
        }
        let (mut items, mut bytes) = (Vec::new(), 0);
        let read = store.items_from(&mut self.cursor, self.wanted, &mut |i| {
            bytes += i.bytes();
            items.push(i);
            bytes < SLICE
        });
        self.passed = self.cursor.sequence();
        match read {
            Ok(true) => {
                self.live = true;
                self.passed = store.last_sequence();
            }
            Ok(false) => {}
            Err(e) => self.failed(&e),
        }
        self.give(items);
    }

    fn sync_if_due(&mut self, projected: u64) {
        let anything = self.pending_since.is_some() && (self.rows_passed > projected || self.live);
        let now = Instant::now();
        let due = self.failure.as_ref().map_or(now - self.sync_at > SYNC_EVERY, |f| f.resumed);
        if anything && due && !self.syncing && self.is_complete() {
            self.sync(now);
        }
    }

    fn sync(&mut self, now: Instant) {
        self.desk.give(Order::Sync(self.passed));
        (self.syncing, self.sync_at) = (true, now);
    }

    /// Whether [`Accounting::step`] has something to do at once.
    pub fn is_busy(&self) -> bool {
        self.may_read() && self.has_room()
    }

    /// Why new mail may not come in.
    pub fn refusal(&self) -> Option<String> {
        self.desk.lock().refusal.clone()
    }

    /// Rows wait for their files.
    pub fn is_behind(&self) -> bool {
        self.pending_since.is_some()
    }

    /// Since when rows wait that should be in files by now, and why.
    pub fn behind(&self) -> Option<(Instant, String)> {
        let pending = self.pending_since?;
        match &self.failure {
            Some(f) => Some((f.since, f.why.clone())),
            None => (pending.elapsed() > HANGS_AFTER).then(|| (pending, "their disk does not answer".to_owned())),
        }
    }

    /// Writes what is left, unless the disk does not take it in time: it is in the log. To be
    /// called again after the time that it answers, until it answers none.
    pub fn finish<D: Disk, I: Index>(&mut self, stop: &mut Stop, store: &mut Store<D, I>) -> Option<Duration> {
        let now = Instant::now();
        if self.pending_since.is_none() || self.failure.is_some() || now >= stop.until {
            return None;
        }
        if !stop.asked && self.live && self.is_complete() && !self.syncing {
            self.sync(now);
            stop.asked = true;
        }
        if let Some(put) = self.step(store) {
            stop.put = Some(put);
        }
        Some(if self.is_busy() { Duration::ZERO } else { Duration::from_millis(1) })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;
    use std::sync::{Condvar, Mutex};

    use super::*;
    use crate::{Options, Outcomes, Settled, Spool};

    /// A disk of accounting files that can be full, or not answer.
    #[derive(Debug, Default)]
    struct Disk {
        rows: Vec<Vec<u8>>,
        /// Rows that were there at the last sync.
        synced: usize,
        full: bool,
        hangs: bool,
    }

    #[derive(Debug, Clone, Default)]
    struct Files {
        disk: Arc<(Mutex<Disk>, Condvar)>,
        pending: Vec<Vec<u8>>,
        known: Vec<Vec<u8>>,
        elsewhere: bool,
    }

    impl Files {
        fn set(&self, full: bool, hangs: bool) {
            let mut disk = self.disk.0.lock().unwrap();
            (disk.full, disk.hangs) = (full, hangs);
            self.disk.1.notify_all();
        }

        fn rows(&self) -> Vec<Vec<u8>> {
            let mut rows = self.disk.0.lock().unwrap().rows.clone();
            rows.sort();
            rows
        }
    }

    impl Projection for Files {
        fn message(&mut self, _: &[u8], _: &[u8]) {}
        fn is_elsewhere(&self, _: &[u8]) -> bool {
            self.elsewhere
        }
        fn row(&mut self, row: &[u8]) {
            match self.known.iter().position(|k| k == row) {
                Some(i) => drop(self.known.swap_remove(i)),
                None => self.pending.push(row.to_vec()),
            }
        }
        fn write(&mut self) -> io::Result<()> {
            let mut disk = self.disk.0.lock().unwrap();
            while disk.hangs {
                disk = self.disk.1.wait(disk).unwrap();
            }
            if disk.full && !self.pending.is_empty() {
                // Part of it is written, as by several files.
                let first = self.pending.remove(0);
                disk.rows.push(first);
                return Err(io::ErrorKind::StorageFull.into());
            }
            disk.rows.append(&mut self.pending);
            Ok(())
        }
        fn sync(&mut self) -> io::Result<Vec<u8>> {
            self.known.clear();
            let mut disk = self.disk.0.lock().unwrap();
            disk.synced = disk.rows.len();
            Ok(disk.synced.to_le_bytes().to_vec())
        }
        fn resume(&mut self, state: &[u8]) {
            self.pending.clear();
            let from = state.try_into().map_or(0, usize::from_le_bytes);
            let rows = &self.disk.0.lock().unwrap().rows;
            self.known = rows.get(from..).unwrap_or_default().to_vec();
        }
    }

    fn open(path: &Path, files: &Files) -> Spool {
        let options = Options { path: path.into(), shard: 0, sync: false, min_free_bytes: 0, boot: "b".into() };
        let (spool, opened) = Spool::open(options, Box::new(files.clone()), Box::new(|_| {})).unwrap();
        opened.blocking_recv().unwrap().unwrap();
        spool
    }

    fn row(n: u32) -> Vec<u8> {
        format!("row {n:05} {}", "x".repeat(100)).into_bytes()
    }

    fn settle(spool: &Spool, all: std::ops::Range<u32>) {
        for n in all {
            let settled = Settled { key: u64::from(n), rows: vec![row(n)], ..Default::default() };
            spool.conclude(Outcomes { settled: Some(settled), ..Default::default() });
        }
        durable(spool).unwrap();
    }

    fn durable(spool: &Spool) -> Result<(), SpoolError> {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(spool.barrier())
    }

    fn switched(spool: &Spool, next: &Files) -> Result<(), SpoolError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(spool.switch_projection(Box::new(next.clone())))
    }

    fn eventually(what: &str, mut done: impl FnMut() -> bool) {
        let until = Instant::now() + Duration::from_secs(20);
        while !done() {
            assert!(Instant::now() < until, "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn rows(all: std::ops::Range<u32>) -> Vec<Vec<u8>> {
        all.map(row).collect()
    }

    #[test]
    fn a_disk_that_hangs_or_is_full_holds_nothing_up_and_every_row_is_written_once() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::default();
        let spool = open(dir.path(), &files);
        settle(&spool, 0..3);
        eventually("rows are written", || files.rows() == rows(0..3));
        // More than may wait in memory.
        files.set(false, true);
        (0..20).for_each(|k| settle(&spool, 3 + k * 10..13 + k * 10));
        assert_eq!(files.rows().len(), 3);
        files.set(false, false);
        eventually("what waited in memory, and the rest out of the log", || files.rows() == rows(0..203));
        files.set(true, false);
        (0..20).for_each(|k| settle(&spool, 203 + k * 10..213 + k * 10));
        eventually("it is told", || spool.accounting_behind().is_some());
        files.set(false, false);
        eventually("every row once", || files.rows() == rows(0..403));
        eventually("it is over", || spool.accounting_behind().is_none());
        // A kill loses what is not noted, and a start finds it.
        files.set(true, false);
        settle(&spool, 403..443);
        drop(spool);
        files.set(false, false);
        let spool = open(dir.path(), &files);
        eventually("rows of the time before", || files.rows() == rows(0..443));
        settle(&spool, 443..450);
        drop(spool);
        assert_eq!(files.rows(), rows(0..450), "a stop writes what is left");
    }

    #[test]
    fn files_that_cannot_be_written_keep_no_rows_from_others() {
        let dir = tempfile::tempdir().unwrap();
        let (files, next) = (Files::default(), Files::default());
        let spool = open(dir.path(), &files);
        settle(&spool, 0..3);
        eventually("rows are written", || files.rows() == rows(0..3) && files.disk.0.lock().unwrap().synced == 3);
        files.set(true, false);
        settle(&spool, 3..100);
        eventually("it is told", || spool.accounting_behind().is_some());
        // The rows that the files on the full disk have do not count here: the new files say which rows they have.
        switched(&spool, &next).unwrap();
        settle(&spool, 100..110);
        eventually("they go to the others", || next.rows() == rows(3..110));
        assert!(switched(&spool, &files).is_ok());
        files.set(false, false);
        settle(&spool, 110..111);
        eventually("and back", || files.rows().last() == Some(&row(110)));
    }

    #[test]
    fn files_on_a_disk_that_hangs_are_left_for_others() {
        let dir = tempfile::tempdir().unwrap();
        let (files, next) = (Files::default(), Files { elsewhere: true, ..Default::default() });
        let spool = open(dir.path(), &files);
        settle(&spool, 0..3);
        eventually("rows are synced", || files.disk.0.lock().unwrap().synced == 3);
        files.set(false, true);
        settle(&spool, 3..10);
        eventually("it is told", || spool.accounting_behind().is_some());
        eventually("the others are in use", || switched(&spool, &next).is_ok());
        settle(&spool, 10..20);
        eventually("rows go to the others", || next.rows() == rows(3..20));
        files.set(false, false);
        assert!(durable(&spool).is_ok());
    }
}

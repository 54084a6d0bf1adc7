//! The spool as a shard uses it, in simulated time and on a simulated disk: what its thread does
//! and when, run as a task.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use ipc::message::HandoffId;
use spool::disk::{Disk as _, Times};
use spool::layout::{RecipientState, UpdateEntry};
use spool::memory::{Fault, Lost, MemoryDisk, MemoryIndex};
use spool::quarantine::{BYTES_MAX, FILES_MAX};
use spool::{NewMessage, Options, Outcomes, Projection, Recovered, Settled, Spool, SpoolError};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

type Stored = oneshot::Receiver<Result<u64, SpoolError>>;

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Accounting files that can be full.
#[derive(Debug, Default)]
struct Disk {
    rows: Vec<Vec<u8>>,
    /// Rows that were there at the last sync.
    synced: usize,
    full: bool,
    /// How long each step takes.
    takes: Duration,
}

#[derive(Debug, Clone, Default)]
struct Files {
    disk: Arc<Mutex<Disk>>,
    pending: Vec<Vec<u8>>,
    known: Vec<Vec<u8>>,
    elsewhere: bool,
}

impl Files {
    fn set(&self, full: bool) {
        self.disk.lock().unwrap().full = full;
    }

    fn rows(&self) -> Vec<Vec<u8>> {
        let mut rows = self.disk.lock().unwrap().rows.clone();
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
        let mut disk = self.disk.lock().unwrap();
        if disk.full && !self.pending.is_empty() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        disk.rows.append(&mut self.pending);
        Ok(())
    }
    fn sync(&mut self) -> io::Result<Vec<u8>> {
        self.known.clear();
        let mut disk = self.disk.lock().unwrap();
        disk.synced = disk.rows.len();
        Ok(disk.synced.to_le_bytes().to_vec())
    }
    fn resume(&mut self, state: &[u8]) {
        self.pending.clear();
        let from = state.try_into().map_or(0, usize::from_le_bytes);
        self.known = self.disk.lock().unwrap().rows.get(from..).unwrap_or_default().to_vec();
    }
}

/// A machine with a shard's spool.
struct Machine {
    disk: MemoryDisk,
    index: MemoryIndex,
    files: Files,
    boot: u32,
}

/// A spool that is open.
struct Process {
    spool: Spool,
    driver: JoinHandle<()>,
    /// Found at opening, with the recipients left.
    found: BTreeMap<u64, Vec<u16>>,
}

impl Machine {
    fn new(capacity: u64) -> Machine {
        let (disk, index) = (MemoryDisk::new(capacity), MemoryIndex::default());
        Machine { disk, index, files: Files::default(), boot: 0 }
    }

    async fn start(&self) -> Process {
        let options =
            Options { path: "shard".into(), shard: 0, sync: true, min_free_bytes: 0, boot: self.boot.to_string() };
        let found: Arc<Mutex<BTreeMap<u64, Vec<u16>>>> = Arc::default();
        let each = {
            let found = Arc::clone(&found);
            move |r: Recovered| {
                let left = r.recipients.iter().map(|r| r.index).collect();
                assert!(found.lock().unwrap().insert(r.key, left).is_none());
            }
        };
        let files = Box::new(self.files.clone());
        let (spool, opened, driver) =
            Spool::without_thread(self.disk.clone(), self.index.clone(), options, files, Box::new(each));
        let takes = Arc::clone(&self.files.disk);
        let driver = driver.with_accounting_time(move || takes.lock().unwrap().takes);
        let driver = tokio::spawn(driver.run());
        opened.await.unwrap().unwrap();
        let found = std::mem::take(&mut *found.lock().unwrap());
        Process { spool, driver, found }
    }

    /// What the disk takes for each group from now on.
    fn takes(&self, times: Times) {
        self.disk.set_times(move || times);
    }

    fn log(&self) -> MemoryDisk {
        self.disk.folder("log").unwrap()
    }

    fn has_ballast(&self) -> bool {
        self.disk.list().unwrap().contains(&"ballast".to_owned())
    }

    /// Every change that was not synced is lost.
    fn lose_power(&mut self) {
        self.disk.lose_power_but(&mut |_, _| false);
        self.index.lose_power();
        self.boot += 1;
    }
}

impl Process {
    fn store(&self, recipients: u16, body: usize) -> Stored {
        let body = [Bytes::from(vec![7; body]), Bytes::new()];
        let envelope = common::envelope(recipients, None);
        let stored = self.spool.store(NewMessage { envelope, body, in_progress: false });
        self.spool.flush();
        stored
    }

    fn settle(&self, key: u64, rows: Vec<Vec<u8>>) {
        self.spool.settle(Settled { key, recipients: vec![0], last: true, rows });
    }

    fn groups(&self) -> u64 {
        self.spool.statistics().syncs.load(Relaxed)
    }

    /// Ends the process as `kill -9` does.
    async fn kill(self) {
        self.driver.abort();
        assert!(self.driver.await.unwrap_err().is_cancelled());
    }
}

fn row(n: u32) -> Vec<u8> {
    format!("row {n:05} {}", "x".repeat(100)).into_bytes()
}

fn rows(all: std::ops::Range<u32>) -> Vec<Vec<u8>> {
    all.map(row).collect()
}

#[tokio::test(start_paused = true)]
async fn a_lone_message_goes_at_once_and_outcomes_wait_for_company() {
    let p = Machine::new(1 << 30).start().await;
    let begun = Instant::now();
    let key = p.store(1, 100).await.unwrap().unwrap();
    assert!(begun.elapsed() < ms(1), "{:?}", begun.elapsed());
    let groups = p.groups();
    p.settle(key, vec![]);
    sleep(ms(3)).await;
    assert_eq!(p.groups(), groups, "an outcome waits");
    sleep(ms(2)).await;
    assert_eq!(p.groups(), groups + 1, "for 4 ms");
    p.settle(key, vec![]);
    sleep(ms(1)).await;
    p.store(1, 100).await.unwrap().unwrap();
    assert_eq!(p.groups(), groups + 2, "and goes with mail");
    sleep(ms(10)).await;
    assert_eq!(p.groups(), groups + 2);
    p.settle(key, vec![]);
    let asked = Instant::now();
    p.spool.barrier().await.unwrap();
    assert!(p.groups() == groups + 3 && asked.elapsed() < ms(1), "who asks is not kept waiting");
}

#[tokio::test(start_paused = true)]
async fn what_comes_while_a_sync_runs_is_the_next_group() {
    let m = Machine::new(1 << 30);
    m.takes(Times { sync: ms(10), ..Times::default() });
    let p = m.start().await;
    let (begun, groups) = (Instant::now(), p.groups());
    let first = p.store(1, 100);
    sleep(ms(1)).await;
    let later: Vec<Stored> = (0..5).map(|_| p.store(1, 100)).collect();
    first.await.unwrap().unwrap();
    assert_eq!((begun.elapsed(), p.groups()), (ms(10), groups + 1));
    for stored in later {
        stored.await.unwrap().unwrap();
    }
    assert!(p.groups() == groups + 2 && begun.elapsed() <= ms(21), "{:?}", begun.elapsed());
}

/// Those who were answered together are waited for, a moment, and not for ever.
#[tokio::test(start_paused = true)]
async fn a_group_waits_for_those_who_were_answered_last() {
    let m = Machine::new(1 << 30);
    m.takes(Times { sync: ms(1), ..Times::default() });
    let p = m.start().await;
    let all = |n: usize| (0..n).map(|_| p.store(1, 100)).collect::<Vec<_>>();
    async fn answered(stored: Vec<Stored>) -> Duration {
        let begun = Instant::now();
        for s in stored {
            s.await.unwrap().unwrap();
        }
        begun.elapsed()
    }
    for _ in 0..6 {
        let groups = p.groups();
        assert_eq!((answered(all(8)).await, p.groups()), (ms(1), groups + 1));
    }
    // Half of them are back at once; the others come 1 ms later, and all are one group.
    let groups = p.groups();
    let mut stored = all(4);
    sleep(ms(1)).await;
    assert_eq!(p.groups(), groups);
    stored.extend(all(4));
    let waited = answered(stored).await;
    assert!(waited <= ms(1), "{waited:?}");
    assert_eq!(p.groups(), groups + 1);
    // The others do not come.
    let waited = answered(all(4)).await;
    assert!(waited > ms(1) && waited <= ms(6), "{waited:?}");
    // Mail that comes later has nothing to do with them.
    sleep(ms(600)).await;
    assert_eq!(answered(all(1)).await, ms(1));
}

#[tokio::test(start_paused = true)]
async fn outcomes_of_a_failed_sync_are_offered_again_and_intake_is_closed_meanwhile() {
    let m = Machine::new(1 << 30);
    let p = m.start().await;
    let key = p.store(1, 100).await.unwrap().unwrap();
    let other = p.store(1, 100).await.unwrap().unwrap();
    let failed_from = Instant::now();
    m.disk.fail_until(Fault::Syncs, failed_from + ms(120));
    let report = NewMessage {
        envelope: common::envelope(1, None),
        body: [Bytes::from_static(b"report"), Bytes::new()],
        in_progress: false,
    };
    let settled = Settled { key, recipients: vec![0], last: true, rows: rows(0..1) };
    let outcomes = Outcomes { settled: Some(settled), reports: vec![report], ..Default::default() };
    let reported = p.spool.conclude(outcomes).remove(0);
    sleep(ms(10)).await;
    assert!(p.spool.holds_deliveries(), "what happens could not be noted");
    // While outcomes wait everything does, and new mail is refused.
    p.settle(other, rows(1..2));
    let refused = p.store(1, 100);
    assert!(matches!(p.spool.barrier().await, Err(SpoolError::Write(_))));
    assert!(matches!(refused.await.unwrap(), Err(SpoolError::Write(_))));
    assert!(failed_from.elapsed() >= ms(50) && p.spool.refusal().is_some());
    let report = reported.await.unwrap().unwrap();
    assert!(failed_from.elapsed() > ms(120) && failed_from.elapsed() < ms(250), "{:?}", failed_from.elapsed());
    assert!(!p.spool.holds_deliveries());
    assert!(matches!(p.store(1, 100).await.unwrap(), Err(SpoolError::Write(_))), "intake pauses for a second");
    sleep(ms(1100)).await;
    assert!(p.store(1, 100).await.unwrap().is_ok() && p.spool.refusal().is_none());
    sleep(ms(3000)).await;
    assert_eq!(m.files.rows(), rows(0..2), "each outcome was passed on once");
    p.kill().await;
    let p = m.start().await;
    assert!(p.found.contains_key(&report) && !p.found.contains_key(&key) && !p.found.contains_key(&other));
}

/// What a start on such a disk delivered would be delivered again by the next.
#[tokio::test(start_paused = true)]
async fn a_start_on_a_disk_that_fails_holds_deliveries_until_something_is_written() {
    for fault in [Fault::Writes, Fault::Syncs] {
        let m = Machine::new(1 << 30);
        let p = m.start().await;
        let key = p.store(1, 100).await.unwrap().unwrap();
        p.driver.abort();
        m.disk.fail_until(fault, Instant::now() + Duration::from_secs(5));
        let p = m.start().await;
        assert!(p.found.contains_key(&key) && p.spool.holds_deliveries(), "{fault:?}");
        sleep(Duration::from_secs(10)).await;
        assert!(!p.spool.holds_deliveries(), "{fault:?}");
        p.driver.abort();
        assert!(!m.start().await.spool.holds_deliveries(), "{fault:?}");
    }
}

/// A pause before outcomes are tried again grows, and a stop does not wait for it.
#[tokio::test(start_paused = true)]
async fn a_stop_on_a_disk_that_fails_ends() {
    let m = Machine::new(1 << 30);
    let p = m.start().await;
    let key = p.store(1, 100).await.unwrap().unwrap();
    m.disk.fail_until(Fault::Writes, Instant::now() + Duration::from_secs(600));
    p.settle(key, rows(0..1));
    sleep(Duration::from_secs(60)).await;
    let stopped = Instant::now();
    assert!(!p.spool.finished().await, "whoever asks hears that something is not written");
    assert!(stopped.elapsed() < Duration::from_secs(2), "{:?}", stopped.elapsed());
    p.driver.await.unwrap();
    m.disk.fail_until(Fault::Writes, Instant::now());
    assert!(m.start().await.found.contains_key(&key), "what came of it could not be written");
}

/// A group whose sync failed may be on disk: that its share was not taken is said when something else is there in its place.
#[tokio::test(start_paused = true)]
async fn whether_a_share_was_taken_is_not_known_while_the_disk_fails() {
    let m = Machine::new(1 << 30);
    let p = m.start().await;
    let id = HandoffId { origin: 9, incarnation: 0, sequence: 3 };
    p.store(1, 100).await.unwrap().unwrap();
    assert!(!p.spool.has_seen(id).await.unwrap());
    m.disk.fail_until(Fault::Syncs, Instant::now() + Duration::from_secs(5));
    let body = [Bytes::from_static(b"x"), Bytes::new()];
    let taken = p.spool.store(NewMessage { envelope: common::envelope(1, Some(3)), body, in_progress: false });
    p.spool.flush();
    let taken = taken.await.unwrap();
    assert!(matches!(taken, Err(SpoolError::Sync(_))), "{taken:?}");
    assert!(matches!(p.spool.has_seen(id).await, Err(SpoolError::Sync(_))));
    sleep(Duration::from_secs(10)).await;
    assert!(!p.spool.has_seen(id).await.unwrap(), "and it is not asked for anything meanwhile");
    p.driver.abort();
    assert!(!m.start().await.spool.has_seen(id).await.unwrap(), "after a kill, too");
}

/// A share that another shard was asked for first comes under the identity that it has had since then.
#[tokio::test(start_paused = true)]
async fn a_share_is_known_also_below_what_its_origin_would_not_repeat_here() {
    let m = Machine::new(1 << 30);
    let p = m.start().await;
    let take = |sequence| {
        let body = [Bytes::from_static(b"x"), Bytes::new()];
        let stored =
            p.spool.store(NewMessage { envelope: common::envelope(1, Some(sequence)), body, in_progress: false });
        p.spool.flush();
        stored
    };
    assert!(take(3).await.unwrap().is_ok());
    p.spool.open_handoffs(9, vec![(0, 10)]);
    sleep(Duration::from_secs(1)).await;
    assert!(take(5).await.unwrap().is_ok());
    let id = HandoffId { origin: 9, incarnation: 0, sequence: 5 };
    assert!(p.spool.has_seen(id).await.unwrap());
    assert!(take(4).await.unwrap().is_ok());
    p.spool.open_handoffs(9, vec![(0, 5)]);
    sleep(Duration::from_secs(1)).await;
    assert!(p.spool.has_seen(id).await.unwrap(), "it is open still, and another is not");
    // What its origin says lies in one group with what it offers next.
    p.spool.open_handoffs(9, vec![(0, 10)]);
    assert!(take(5).await.unwrap().is_ok() && p.spool.has_seen(id).await.unwrap());
    p.driver.abort();
    let p = m.start().await;
    assert!(p.spool.has_seen(id).await.unwrap(), "after a kill, too");
    p.spool.open_handoffs(9, vec![(0, 6)]);
    sleep(Duration::from_secs(1)).await;
    assert!(!p.spool.has_seen(id).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_takes_outcomes_and_gives_its_room_back() {
    let m = Machine::new(64 << 20);
    let p = m.start().await;
    assert!(m.has_ballast());
    let mut keys = Vec::new();
    let why = loop {
        match p.store(1, 1 << 20).await.unwrap() {
            Ok(key) => keys.push(key),
            Err(e) => break e,
        }
    };
    assert!(matches!(why, SpoolError::Full(_)) && keys.len() > 10 && m.has_ballast());
    // More than the room that is kept for them.
    for n in 0..12 {
        let row = vec![n; 1 << 20];
        let state = RecipientState { due_unix_ms: 9, ..Default::default() };
        p.spool.update(vec![UpdateEntry { key: keys[0], recipient: 0, state }], vec![row]);
        p.spool.barrier().await.unwrap();
    }
    assert!(!m.has_ballast(), "the ballast was given up for them");
    sleep(ms(1000)).await;
    assert!(p.spool.refusal().is_some_and(|r| r.why.contains("bytes are free")));
    assert!(matches!(p.store(1, 100).await.unwrap(), Err(SpoolError::Full(_))));
    for key in keys {
        p.settle(key, vec![]);
    }
    sleep(Duration::from_secs(30)).await;
    assert!(m.has_ballast() && p.spool.refusal().is_none(), "{:?}", p.spool.refusal());
    p.store(1, 100).await.unwrap().unwrap();
}

/// A disk that is full for a while refuses mail for a while.
#[tokio::test(start_paused = true)]
async fn a_disk_that_is_full_for_a_while_takes_mail_again() {
    let m = Machine::new(1 << 30);
    let p = m.start().await;
    p.store(1, 100).await.unwrap().unwrap();
    m.disk.fail_until(Fault::Full, Instant::now() + Duration::from_secs(20));
    let refused = loop {
        if let Err(e) = p.store(1, 1 << 20).await.unwrap() {
            break e;
        }
        sleep(ms(50)).await;
    };
    assert!(matches!(refused, SpoolError::Full(_)));
    sleep(Duration::from_secs(30)).await;
    assert!(p.store(1, 1 << 20).await.unwrap().is_ok() && p.spool.refusal().is_none());
}

/// A ballast that was being made when the power went kept no room, and was taken for whole.
#[tokio::test(start_paused = true)]
async fn a_ballast_that_keeps_no_room_is_made_again() {
    let mut m = Machine::new(1 << 30);
    m.disk.create("ballast").unwrap();
    let p = m.start().await;
    let file = m.disk.open("ballast").unwrap();
    assert_eq!(m.disk.len(&file).unwrap(), 16 << 20);
    drop(p);
}

#[tokio::test(start_paused = true)]
async fn a_kill_keeps_what_was_written_and_loses_what_was_not() {
    let step = ms(100);
    let times = [
        (Times { write: step, ..Times::default() }, false, false),
        (Times { sync: step, ..Times::default() }, true, false),
        (Times { answer: step, ..Times::default() }, true, true),
    ];
    for (times, after_kill, after_power_loss) in times {
        for power_loss in [false, true] {
            let mut m = Machine::new(1 << 30);
            let p = m.start().await;
            let known = p.store(2, 1000).await.unwrap().unwrap();
            m.takes(times);
            let stored = p.store(1, 1000);
            sleep(ms(50)).await;
            p.kill().await;
            assert!(stored.await.is_err(), "nobody was told");
            if power_loss {
                m.lose_power();
            }
            let p = m.start().await;
            assert_eq!(p.found.get(&known), Some(&vec![0, 1]));
            let is_there = if power_loss { after_power_loss } else { after_kill };
            assert_eq!(p.found.len(), 1 + usize::from(is_there), "{times:?}, power loss: {power_loss}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_without_a_thread_writes_everything() {
    let mut m = Machine::new(1 << 30);
    let p = m.start().await;
    let keys = [p.store(1, 100).await.unwrap().unwrap(), p.store(1, 100).await.unwrap().unwrap()];
    p.settle(keys[0], rows(0..3));
    p.spool.put("name", b"value".to_vec());
    assert!(p.spool.finished().await);
    p.driver.await.unwrap();
    assert_eq!(m.files.rows(), rows(0..3));
    // The index was flushed: it is trusted after a power loss.
    m.lose_power();
    let p = m.start().await;
    assert_eq!(p.found.keys().collect::<Vec<_>>(), [&keys[1]]);
    let driver = p.driver;
    drop(p.spool);
    driver.await.unwrap();
}

/// A shard that stops reads replies as long as its spool writes: what they end is not delivered again.
#[tokio::test(start_paused = true)]
async fn what_ends_while_a_stop_waits_for_its_disk_is_written_too() {
    let m = Machine::new(1 << 30);
    let p = m.start().await;
    let keys = [p.store(1, 100).await.unwrap().unwrap(), p.store(1, 100).await.unwrap().unwrap()];
    m.takes(Times { sync: ms(10_000), ..Times::default() });
    p.spool.put("name", b"value".to_vec());
    let later = async {
        for (n, key) in keys.into_iter().enumerate() {
            sleep(ms(9_000)).await;
            p.settle(key, rows(n as u32..n as u32 + 1));
        }
    };
    tokio::join!(p.spool.finished(), later);
    p.driver.await.unwrap();
    assert!(m.start().await.found.is_empty());
}

#[tokio::test(start_paused = true)]
async fn files_that_are_behind_are_left_for_others_and_every_row_is_in_one() {
    let m = Machine::new(1 << 30);
    let next = Files::default();
    let p = m.start().await;
    let settle = |all: std::ops::Range<u32>| all.for_each(|n| p.settle(u64::from(n), rows(n..n + 1)));
    settle(0..5);
    sleep(Duration::from_secs(5)).await;
    assert_eq!((m.files.rows(), m.files.disk.lock().unwrap().synced), (rows(0..5), 5));
    // They are full: what they have not taken goes to the others.
    m.files.set(true);
    settle(5..10);
    sleep(Duration::from_secs(5)).await;
    assert!(p.spool.accounting_behind().is_some());
    p.spool.switch_projection(Box::new(next.clone())).await.unwrap();
    settle(10..15);
    sleep(Duration::from_secs(5)).await;
    assert_eq!((m.files.rows(), next.rows()), (rows(0..5), rows(5..15)));
    assert_eq!(p.spool.accounting_behind(), None);
    // They are slow: those before are completed.
    m.files.disk.lock().unwrap().takes = ms(2000);
    settle(15..20);
    sleep(ms(100)).await;
    let last = Files::default();
    let asked = Instant::now();
    let switched = p.spool.switch_projection(Box::new(last.clone())).await;
    assert!(switched.is_ok() || matches!(switched, Err(SpoolError::Slow(_))), "{switched:?}");
    settle(20..25);
    sleep(Duration::from_secs(30)).await;
    assert!(asked.elapsed() > ms(2000));
    let mut all = next.rows();
    all.extend(last.rows());
    assert_eq!(all, rows(5..25));
    assert!(last.rows().ends_with(&rows(20..25)));
}

#[tokio::test(start_paused = true)]
async fn files_on_a_disk_that_hangs_are_left_for_others() {
    let m = Machine::new(1 << 30);
    let next = Files { elsewhere: true, ..Default::default() };
    let p = m.start().await;
    p.settle(1, rows(0..3));
    sleep(Duration::from_secs(5)).await;
    let hung = Instant::now();
    m.files.disk.lock().unwrap().takes = Duration::from_secs(3600);
    p.settle(2, rows(3..6));
    sleep(Duration::from_secs(1)).await;
    assert!(matches!(p.spool.switch_projection(Box::new(next.clone())).await, Err(SpoolError::Slow(5)) | Ok(())));
    // The others are on a disk that answers.
    m.files.disk.lock().unwrap().takes = Duration::ZERO;
    sleep(Duration::from_secs(5)).await;
    assert!(p.spool.switch_projection(Box::new(next.clone())).await.is_ok());
    p.settle(3, rows(6..8));
    sleep(Duration::from_secs(5)).await;
    assert_eq!(next.rows(), rows(3..8));
    assert!(hung.elapsed() < Duration::from_secs(30));
    p.spool.finished().await;
    p.driver.await.unwrap();
    assert_eq!(m.files.rows(), rows(0..3), "what hung is not done after a stop");
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_disk_that_does_not_answer_hears_of_it() {
    let m = Machine::new(1 << 30);
    let p = m.start().await;
    let key = p.store(1, 100).await.unwrap().unwrap();
    m.takes(Times { sync: Duration::from_secs(30), ..Times::default() });
    let begun = Instant::now();
    let stored = p.store(1, 100);
    sleep(ms(1)).await;
    p.settle(key, vec![]);
    assert!(matches!(p.spool.barrier().await, Err(SpoolError::Slow(5))));
    assert_eq!(begun.elapsed().as_secs(), 5);
    assert!(!p.spool.holds_deliveries());
    sleep(Duration::from_secs(6)).await;
    assert!(p.spool.holds_deliveries(), "an outcome has waited for more than 10 s");
    stored.await.unwrap().unwrap();
    assert_eq!(begun.elapsed().as_secs(), 30);
    m.takes(Times::default());
    sleep(Duration::from_secs(31)).await;
    p.spool.barrier().await.unwrap();
    assert!(!p.spool.holds_deliveries());
}

/// A source of chances.
struct Chances(u64);

impl Chances {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// What a client was told.
#[derive(Debug, Default)]
struct Told {
    /// Messages that it was told are stored.
    stored: BTreeSet<u64>,
    /// Messages of which it said that they ended.
    ended: BTreeSet<u64>,
    /// Of these, those that the spool said are noted.
    noted: BTreeSet<u64>,
}

/// One life of a machine: kills and power losses at any time, faults of its disk.
async fn live(seed: u64) -> (Told, Vec<u64>) {
    let mut c = Chances(seed);
    let mut m = Machine::new(1 << 30);
    let mut told = Told::default();
    let mut trace = Vec::new();
    for _ in 0..6 {
        let p = m.start().await;
        for key in told.stored.iter().filter(|k| !told.ended.contains(k)) {
            assert!(p.found.contains_key(key), "message {key} is lost, seed {seed}");
            let (_, body) = p.spool.read(*key).await.unwrap();
            assert!(body.iter().all(|b| *b == 7));
        }
        for key in p.found.keys() {
            assert!(!told.noted.contains(key), "message {key} came back, seed {seed}");
        }
        // What a kill took before it was noted is said once more.
        told.ended.retain(|key| !p.found.contains_key(key));
        trace.extend(p.found.keys());
        let n = AtomicU64::new(c.below(1 << 40));
        m.disk.set_times(move || {
            let mut c = Chances(n.load(Relaxed));
            let times = [(); 3].map(|()| ms(c.below(4) * c.below(8)));
            n.store(c.0, Relaxed);
            Times { write: times[0], sync: times[1], answer: times[2] }
        });
        let mut waiting: Vec<Stored> = Vec::new();
        for _ in 0..c.below(60) {
            match c.below(12) {
                0..5 => waiting.push(p.store(1 + c.below(3) as u16, c.below(40_000) as usize)),
                5..8 => {
                    let left: Vec<u64> = told.stored.difference(&told.ended).copied().collect();
                    if let Some(key) = left.get(c.below(left.len().max(1) as u64) as usize) {
                        told.ended.insert(*key);
                        let recipients = vec![0, 1, 2];
                        p.spool.settle(Settled { key: *key, recipients, last: true, rows: vec![row(*key as u32)] });
                    }
                }
                8 => {
                    if p.spool.barrier().await.is_ok() {
                        told.noted.clone_from(&told.ended);
                    }
                }
                9 => {
                    let fault = [Fault::Writes, Fault::Syncs, Fault::Full][c.below(3) as usize];
                    m.disk.fail_until(fault, Instant::now() + ms(c.below(400)));
                }
                _ => sleep(ms(c.below(60) * c.below(60))).await,
            }
            for i in (0..waiting.len()).rev() {
                match waiting[i].try_recv() {
                    Ok(stored) => {
                        told.stored.extend(stored.ok());
                        waiting.remove(i);
                    }
                    Err(oneshot::error::TryRecvError::Empty) => {}
                    Err(oneshot::error::TryRecvError::Closed) => panic!("no answer, seed {seed}"),
                }
            }
        }
        trace.push(m.disk.syncs());
        match c.below(4) {
            0 => {
                p.spool.finished().await;
            }
            _ => p.kill().await,
        }
        if c.below(2) == 0 {
            m.disk.lose_power_by(c.below(1 << 40));
            m.index.lose_power();
            m.boot += 1;
        } else {
            [Fault::Writes, Fault::Syncs, Fault::Full].iter().for_each(|f| m.disk.fail_until(*f, Instant::now()));
        }
    }
    (told, trace)
}

#[tokio::test(start_paused = true)]
async fn no_kill_and_no_power_loss_loses_what_was_acknowledged() {
    for seed in 0..20 {
        live(seed).await;
    }
}

#[test]
fn a_seed_is_one_life() {
    let trace = |seed| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(live(seed)).1
    };
    for seed in 100..103 {
        assert_eq!(trace(seed), trace(seed));
    }
}

#[tokio::test(start_paused = true)]
async fn files_lie_where_they_lay() {
    let m = Machine::new(1 << 30);
    let p = m.start().await;
    let key = p.store(1, 4000).await.unwrap().unwrap();
    assert_eq!(m.disk.list().unwrap(), ["ballast"]);
    assert_eq!(m.log().list().unwrap(), ["00000001.log"]);
    m.log().damage("00000001.log", 3000);
    for _ in 0..2 {
        assert!(matches!(p.spool.read(key).await, Err(SpoolError::Unreadable { .. })));
        sleep(ms(10)).await;
        assert_eq!(m.disk.folder("quarantine").unwrap().list().unwrap(), [format!("message-{key}")]);
    }
}

/// Bytes of files of a folder, by name.
fn files_of(folder: &MemoryDisk) -> BTreeMap<String, Vec<u8>> {
    let read = |name: String| {
        let file = folder.clone().open(&name).unwrap();
        let mut bytes = vec![0; folder.len(&file).unwrap() as usize];
        folder.read(&file, 0, &mut bytes).unwrap();
        (name, bytes)
    };
    folder.list().unwrap().into_iter().map(read).collect()
}

impl Machine {
    fn quarantine(&self) -> BTreeMap<String, Vec<u8>> {
        files_of(&self.disk.folder("quarantine").unwrap())
    }

    /// Stores two messages, is killed, and the content of the second one rots; answers the key of the first, and where
    /// the second begins.
    async fn rots_at_its_end(&self) -> (u64, usize) {
        let p = self.start().await;
        let first = p.store(1, 4000).await.unwrap().unwrap();
        let file = self.log().open("00000001.log").unwrap();
        let is_magic = |bytes: &[u8]| bytes.starts_with(&spool::layout::MAGIC_BYTES);
        p.store(1, 4000).await.unwrap().unwrap();
        p.kill().await;
        let mut bytes = vec![0; 1 << 20];
        self.log().read(&file, 0, &mut bytes).unwrap();
        let records: Vec<usize> = (0..bytes.len()).step_by(8).filter(|i| is_magic(&bytes[*i..])).collect();
        let second = *records.last().unwrap();
        self.log().damage("00000001.log", second + 2000);
        (first, second)
    }

    fn segment_bytes(&self) -> u64 {
        let file = self.log().open("00000001.log").unwrap();
        self.log().len(&file).unwrap()
    }
}

/// The last record of a log rotted after it was synced, and was taken for one that a crash had torn: it was cut off without a word.
#[tokio::test(start_paused = true)]
async fn what_rots_at_the_end_of_a_log_is_set_aside_before_it_is_cut_off() {
    let mut m = Machine::new(1 << 30);
    let (first, second) = m.rots_at_its_end().await;
    let before = files_of(&m.log())["00000001.log"].clone();
    let p = m.start().await;
    assert_eq!(p.found.keys().collect::<Vec<_>>(), [&first]);
    let name = format!("segment-1-{second}");
    let aside = m.quarantine();
    assert_eq!(aside.keys().collect::<Vec<_>>(), [&name]);
    let end = before.iter().rposition(|b| *b != 0).unwrap() + 1;
    assert!(aside[&name] == before[second..end], "the bytes as they were found");
    assert_eq!(m.segment_bytes(), second as u64);
    p.kill().await;
    m.lose_power();
    assert_eq!(m.quarantine(), aside);
}

/// What waits for a disk that takes nothing is found again by the next process, however far the index has come.
#[tokio::test(start_paused = true)]
async fn rot_waits_for_a_disk_that_takes_it() {
    for fault in [Fault::Full, Fault::Writes, Fault::Syncs] {
        let mut m = Machine::new(1 << 30);
        let (_, second) = m.rots_at_its_end().await;
        let name = format!("segment-1-{second}");
        let whole = m.segment_bytes();
        for _ in 0..2 {
            m.disk.fail_until(fault, Instant::now() + ms(20_000));
            let p = m.start().await;
            sleep(ms(10_000)).await;
            assert_eq!(m.segment_bytes(), whole, "{fault:?}");
            p.kill().await;
        }
        // What the disk refuses at the start is tried again: before 20 s are over since the fault began nothing is cut.
        let p = m.start().await;
        sleep(ms(9_900)).await;
        assert_eq!(m.segment_bytes(), whole, "{fault:?}");
        while m.segment_bytes() == whole {
            sleep(ms(100)).await;
        }
        assert!(m.quarantine()[&name].len() > 2000, "{fault:?}");
        assert_eq!(m.segment_bytes(), second as u64, "{fault:?}");
        p.kill().await;
        m.lose_power();
        assert!(m.quarantine()[&name].len() > 2000, "{fault:?}");
    }
}

/// The index has passed the segment when the process ends, and the bytes are still where they were.
#[tokio::test(start_paused = true)]
async fn what_was_not_set_aside_is_found_by_the_next_process() {
    let m = Machine::new(1 << 30);
    let (_, second) = m.rots_at_its_end().await;
    let name = format!("segment-1-{second}");
    // Room for groups and the index where the ballast was, and none for the quarantine.
    m.disk.set_capacity(m.disk.used());
    for orderly in [false, true] {
        let p = m.start().await;
        p.spool.put("name", b"value".to_vec());
        p.spool.barrier().await.unwrap();
        sleep(ms(6000)).await;
        assert_eq!(m.quarantine().len(), 0);
        if orderly {
            assert!(p.spool.finished().await);
            p.driver.await.unwrap();
        } else {
            p.kill().await;
        }
    }
    m.disk.set_capacity(1 << 30);
    let _p = m.start().await;
    assert_eq!(m.quarantine().into_keys().collect::<Vec<_>>(), [name]);
    assert_eq!(m.segment_bytes(), second as u64);
}

/// Room that was allocated and never written to is no damage.
#[tokio::test(start_paused = true)]
async fn a_kill_leaves_nothing_in_quarantine() {
    let mut m = Machine::new(1 << 30);
    for _ in 0..3 {
        let p = m.start().await;
        p.store(1, 4000).await.unwrap().unwrap();
        p.kill().await;
        m.lose_power();
    }
    let p = m.start().await;
    assert_eq!((p.found.len(), m.quarantine().len()), (3, 0));
}

impl Machine {
    /// Loses its power while a message is synced: the first sector of it is lost, and the others are not.
    async fn tears_a_group(&mut self, p: Process, body: usize) {
        self.takes(Times { sync: ms(1000), ..Times::default() });
        drop(p.store(1, body));
        sleep(ms(500)).await;
        p.kill().await;
        self.takes(Times::default());
        let mut sectors = 0;
        self.disk.lose_power_but(&mut |path, lost| match lost {
            Lost::Sector(_) if path.starts_with("log/") => {
                sectors += 1;
                sectors > 2
            }
            _ => true,
        });
        self.index.lose_power();
        self.boot += 1;
    }
}

/// Each loss of power can tear a group, and nobody empties the quarantine.
#[tokio::test(start_paused = true)]
async fn the_quarantine_drops_its_oldest_files() {
    let mut m = Machine::new(1 << 30);
    let mut names: Vec<String> = Vec::new();
    for round in 0..FILES_MAX + 6 {
        let p = m.start().await;
        names.extend(m.quarantine().into_keys().filter(|n| !names.contains(n)).collect::<Vec<_>>());
        assert_eq!(names.len(), round, "each leaves a file");
        m.tears_a_group(p, 4000).await;
    }
    let _p = m.start().await;
    let left: BTreeSet<String> = m.quarantine().into_keys().collect();
    assert_eq!(left.len(), FILES_MAX);
    let dropped: BTreeSet<String> = names[..6].iter().cloned().collect();
    assert!(left.is_disjoint(&dropped), "{left:?}");
}

/// Eight files of 7 MB are within the limit, and ten are not.
#[tokio::test(start_paused = true)]
async fn the_bytes_in_quarantine_are_limited() {
    let mut m = Machine::new(1 << 30);
    for _ in 0..10 {
        let p = m.start().await;
        m.tears_a_group(p, 7 << 20).await;
    }
    let _p = m.start().await;
    let bytes: u64 = m.quarantine().values().map(|b| b.len() as u64).sum();
    assert!(bytes <= BYTES_MAX && bytes > BYTES_MAX / 2, "{bytes}");
}

/// An entry of the index rotted: who asked for its message asked in vain until the next start.
#[tokio::test(start_paused = true)]
async fn an_index_that_cannot_be_read_is_rebuilt_in_use() {
    let m = Machine::new(1 << 30);
    let p = m.start().await;
    let key = p.store(1, 4000).await.unwrap().unwrap();
    // A checkpoint brings it to the index.
    sleep(ms(5000)).await;
    (0..m.index.keys() as u64).for_each(|n| assert!(m.index.rot(n)));
    assert!(matches!(p.spool.read(key).await, Err(SpoolError::Index(_))));
    sleep(ms(5000)).await;
    assert_eq!(p.spool.read(key).await.unwrap().1.len(), 4000);
}

//! The store against a model: random operations, kills, power loss, full disks and failures
//! at the n-th write or sync. Nothing acknowledged is lost, nothing settled comes back.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use common::envelope;
use ipc::message::HandoffId;
use proptest::prelude::*;
use spool::group::Group;
use spool::layout::{RecipientState, UpdateEntry};
use spool::memory::{MemoryDisk, MemoryIndex};
use spool::store::Store;
use spool::{NewMessage, Settled};

#[derive(Debug, Clone)]
enum Op {
    Store {
        recipients: u16,
        body: usize,
        handoff: bool,
    },
    Settle {
        pick: usize,
        recipient: u16,
    },
    SettleAll {
        pick: usize,
    },
    Update {
        pick: usize,
        recipient: u16,
        due: i64,
    },
    Checkpoint {
        steps: u8,
    },
    Compact,
    Kill,
    PowerLoss {
        torn: usize,
    },
    LoseIndex,
    /// The index fails in a checkpoint; it is rebuilt while in use, or by the next start.
    FailIndex {
        restore: bool,
    },
    LeaveDead,
    FailIn(u32),
    Stop,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (1u16..7, 0usize..6_000_000, any::<bool>()).prop_map(|(recipients, body, handoff)| Op::Store { recipients, body, handoff }),
        6 => (any::<usize>(), 0u16..7).prop_map(|(pick, recipient)| Op::Settle { pick, recipient }),
        6 => any::<usize>().prop_map(|pick| Op::SettleAll { pick }),
        5 => (any::<usize>(), 0u16..7, 1i64..1000).prop_map(|(pick, recipient, due)| Op::Update { pick, recipient, due }),
        4 => (1u8..4).prop_map(|steps| Op::Checkpoint { steps }),
        2 => Just(Op::Compact),
        2 => Just(Op::Kill),
        2 => (0usize..100_000).prop_map(|torn| Op::PowerLoss { torn }),
        1 => Just(Op::LoseIndex),
        2 => any::<bool>().prop_map(|restore| Op::FailIndex { restore }),
        1 => Just(Op::LeaveDead),
        2 => (0u32..6).prop_map(Op::FailIn),
        1 => Just(Op::Stop),
    ]
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Message {
    /// Recipients left, with the time they are due.
    left: BTreeMap<u16, i64>,
    body: u8,
    body_len: usize,
}

struct World {
    disk: MemoryDisk,
    index: MemoryIndex,
    store: Store<MemoryDisk, MemoryIndex>,
    model: BTreeMap<u64, Message>,
    handoffs: BTreeSet<u64>,
    /// Mail that was refused while the disk failed even at taking it back: it may return.
    unknown: Vec<Message>,
    boot: u32,
    stamp: u8,
}

impl World {
    fn new(capacity: u64) -> World {
        let (disk, index) = (MemoryDisk::new(capacity), MemoryIndex::default());
        let (store, _) = Store::open(disk.clone(), index.clone(), 0, "boot0", &mut |_| {}).unwrap();
        World {
            disk,
            index,
            store,
            model: BTreeMap::new(),
            handoffs: BTreeSet::new(),
            unknown: Vec::new(),
            boot: 0,
            stamp: 0,
        }
    }

    fn key(&self, pick: usize) -> Option<u64> {
        (!self.model.is_empty()).then(|| *self.model.keys().nth(pick % self.model.len()).unwrap())
    }

    /// Outcomes are offered until they are durable, as the spool's thread does.
    fn commit(&mut self, mut group: Group) -> Option<Result<u64, spool::SpoolError>> {
        for _ in 0..3 {
            match self.store.commit(&group) {
                Ok(mut r) => return r.pop(),
                Err(_) => {
                    self.disk.fail_in(None);
                    group.store.clear();
                }
            }
        }
        panic!("the disk is healthy and outcomes do not go in");
    }

    fn reopen(&mut self) {
        self.disk.fail_in(None);
        let mut found = BTreeMap::new();
        let (store, _) =
            Store::open(self.disk.clone(), self.index.clone(), 0, &format!("boot{}", self.boot), &mut |r| {
                let left: BTreeMap<u16, i64> = r.recipients.iter().map(|x| (x.index, x.due_unix_ms)).collect();
                assert!(found.insert(r.key, left).is_none(), "message {} twice", r.key);
            })
            .unwrap();
        self.store = store;
        for (key, left) in found.iter().filter(|(k, _)| !self.model.contains_key(k)).collect::<Vec<_>>() {
            let (_, body) = self.store.read(*key).unwrap();
            let at = self.unknown.iter().position(|m| m.left == *left && m.body_len == body.len());
            let m = self.unknown.remove(at.unwrap_or_else(|| panic!("message {key} came back")));
            self.model.insert(*key, m);
        }
        let left: BTreeMap<u64, BTreeMap<u16, i64>> = self.model.iter().map(|(k, m)| (*k, m.left.clone())).collect();
        assert_eq!(found, left);
        for h in &self.handoffs {
            assert!(
                self.store.has_seen(HandoffId { origin: 9, incarnation: 0, sequence: *h }),
                "handoff {h} forgotten"
            );
        }
        for (k, m) in &self.model {
            let (_, body) = self.store.read(*k).unwrap();
            assert!(body.len() == m.body_len && body.iter().all(|b| *b == m.body), "content of {k}");
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Store { recipients, body, handoff } => {
                self.stamp = self.stamp.wrapping_add(1);
                let sequence = handoff.then(|| u64::from(self.stamp) + 1000 * self.handoffs.len() as u64);
                let content = Bytes::from(vec![self.stamp; body]);
                let halves = [content.slice(..body / 2), content.slice(body / 2..)];
                let m = NewMessage { envelope: envelope(recipients, sequence), body: halves, in_progress: false };
                let refused = self.commit(Group { store: vec![m], ..Default::default() });
                if let Some(Ok(key)) = refused {
                    let left = (0..recipients).map(|r| (r, 0)).collect();
                    self.model.insert(key, Message { left, body: self.stamp, body_len: body });
                    self.handoffs.extend(sequence);
                } else {
                    let left = (0..recipients).map(|r| (r, 0)).collect();
                    self.unknown.push(Message { left, body: self.stamp, body_len: body });
                }
            }
            Op::Settle { pick, recipient } => {
                let Some(key) = self.key(pick) else { return };
                let m = self.model.get_mut(&key).unwrap();
                if m.left.remove(&recipient).is_none() {
                    return;
                }
                let last = m.left.is_empty();
                self.settle(key, vec![recipient], last);
            }
            Op::SettleAll { pick } => {
                let Some(key) = self.key(pick) else { return };
                let all = self.model[&key].left.keys().copied().collect();
                self.settle(key, all, true);
            }
            Op::Update { pick, recipient, due } => {
                let Some(key) = self.key(pick) else { return };
                let Some(d) = self.model.get_mut(&key).unwrap().left.get_mut(&recipient) else { return };
                *d = due;
                let state = RecipientState { due_unix_ms: due, ..Default::default() };
                let mut g = Group::default();
                g.update.entries.push(UpdateEntry { key, recipient, state });
                self.commit(g);
            }
            Op::Checkpoint { steps } => {
                self.store.begin_checkpoint();
                for _ in 0..steps {
                    // A spool without index begins none.
                    self.store.step_checkpoint().unwrap();
                }
            }
            Op::Compact => {
                if self.store.choose_compaction() {
                    let _ = self.store.step_compaction();
                    self.disk.fail_in(None);
                }
            }
            Op::Kill => self.reopen(),
            Op::PowerLoss { torn } => {
                self.boot += 1;
                self.disk.lose_power(torn);
                self.index.lose_power();
                self.reopen();
            }
            Op::LoseIndex => {
                spool::index::Index::set_aside(&mut self.index).unwrap();
                self.reopen();
            }
            Op::FailIndex { restore } => {
                self.disk.fail_in(None);
                self.index.fail(true);
                self.store.begin_checkpoint();
                while self.store.step_checkpoint().is_ok_and(|done| !done) {}
                self.index.fail(false);
                if restore && self.store.index_failed() {
                    self.store.restore_index().unwrap();
                    for (k, m) in &self.model {
                        let (_, body) = self.store.read(*k).unwrap();
                        assert!(body.len() == m.body_len && body.iter().all(|b| *b == m.body), "content of {k}");
                    }
                }
            }
            Op::LeaveDead => {
                let _ = self.store.leave_dead_segment();
            }
            Op::FailIn(n) => self.disk.fail_in(Some(n)),
            Op::Stop => {
                self.disk.fail_in(None);
                self.store.close().unwrap();
                self.boot += 1;
                self.reopen();
            }
        }
        self.store.set_projected(self.store.last_sequence(), &[]);
    }

    fn settle(&mut self, key: u64, recipients: Vec<u16>, last: bool) {
        let mut g = Group::default();
        g.settle(Settled { key, recipients, last, rows: vec![] });
        self.commit(g);
        if last {
            self.model.remove(&key);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 300, failure_persistence: None, ..Default::default() })]

    #[test]
    fn nothing_acknowledged_is_lost_and_nothing_settled_returns(ops in proptest::collection::vec(op(), 1..70)) {
        let mut w = World::new(400 << 20);
        for op in ops {
            w.apply(op);
        }
        w.apply(Op::Kill);
        w.apply(Op::LoseIndex);
    }

    #[test]
    fn a_full_disk_refuses_mail_and_takes_outcomes(ops in proptest::collection::vec(op(), 1..60)) {
        let mut w = World::new(40 << 20);
        for op in ops {
            if !matches!(op, Op::FailIn(_)) {
                w.apply(op);
            }
        }
        while let Some(key) = w.key(0) {
            let all = w.model[&key].left.keys().copied().collect();
            w.settle(key, all, true);
        }
        w.apply(Op::Kill);
    }
}

/// A message that was refused, for it could not be synced, lay in the log where taking it back failed, too. An index that
/// was restored from there knew it, and went on to know it when a power loss had taken it.
#[test]
fn an_index_knows_nothing_that_a_power_loss_takes() {
    let mut w = World::new(400 << 20);
    let store = |body| Op::Store { recipients: 1, body, handoff: false };
    let failed = [store(0), Op::FailIn(1), store(36_725), store(0), store(0), Op::FailIndex { restore: true }];
    let then = [store(0), Op::Stop, store(0), store(0), store(0), Op::PowerLoss { torn: 0 }];
    for op in failed.into_iter().chain(then) {
        w.apply(op);
    }
}

/// Compaction took the room that outcomes need, in a process that had none reserved yet.
#[test]
fn compaction_leaves_room_for_outcomes() {
    let mut w = World::new(40 << 20);
    let store = |recipients, body, handoff| Op::Store { recipients, body, handoff };
    for op in [
        store(3, 5_065_065, true),
        store(6, 4_536_337, true),
        store(6, 2_374_657, false),
        store(2, 5_949_969, false),
        Op::Kill,
        Op::Update { pick: 2, recipient: 0, due: 1 },
        Op::Stop,
        store(6, 4_991_033, false),
        store(6, 2_246_075, true),
        Op::Kill,
        Op::Compact,
    ] {
        w.apply(op);
    }
    while let Some(key) = w.key(0) {
        let all = w.model[&key].left.keys().copied().collect();
        w.settle(key, all, true);
    }
}

/// A spool that failed to make its first segment, was stopped in order and killed later lost
/// the mail in between: the number of the failed segment was used again.
#[test]
fn numbers_of_segments_are_not_given_twice() {
    let mut w = World::new(400 << 20);
    w.apply(Op::FailIn(0));
    w.apply(Op::Store { recipients: 1, body: 0, handoff: false });
    w.apply(Op::Stop);
    w.apply(Op::Store { recipients: 1, body: 0, handoff: false });
    w.apply(Op::Kill);
}

/// A state copied forward came back over a later one when the index was lost: the segment of
/// copies has the higher number.
#[test]
fn a_copied_state_does_not_replace_a_later_one() {
    let mut w = World::new(400 << 20);
    w.apply(Op::Store { recipients: 1, body: 0, handoff: false });
    w.apply(Op::Store { recipients: 1, body: 5000, handoff: false });
    w.apply(Op::Update { pick: 0, recipient: 0, due: 81 });
    w.apply(Op::Stop);
    w.apply(Op::SettleAll { pick: 1 });
    w.apply(Op::Checkpoint { steps: 1 });
    w.apply(Op::Compact);
    w.apply(Op::Update { pick: 0, recipient: 0, due: 82 });
    w.apply(Op::LoseIndex);
}

/// Messages that a trusted index had passed on were passed again by the rebuild, and
/// delivered twice.
#[test]
fn a_segment_that_is_missing_passes_no_message_twice() {
    let mut w = World::new(400 << 20);
    for _ in 0..2 {
        w.apply(Op::Store { recipients: 1, body: 10, handoff: false });
        w.apply(Op::Stop);
    }
    spool::disk::Disk::remove(&mut w.disk, "00000001.log").unwrap();
    w.model.pop_first();
    w.apply(Op::Kill);
}

/// A damaged record at the end of a segment was cut off, though the index knew its message.
#[test]
fn what_the_index_knows_is_not_cut_off() {
    for stop in [true, false] {
        let mut w = World::new(400 << 20);
        w.apply(Op::Store { recipients: 1, body: 0, handoff: false });
        w.apply(Op::Checkpoint { steps: 1 });
        if stop {
            w.apply(Op::Stop);
        }
        let in_its_envelope = w.store.disk_bytes() as usize - 40;
        w.disk.damage("00000001.log", in_its_envelope);
        let (mut store, _) = Store::open(w.disk.clone(), w.index.clone(), 0, "boot0", &mut |_| {}).unwrap();
        assert!(store.read(2).is_err());
        w.disk.damage("00000001.log", in_its_envelope);
        w.apply(Op::Kill);
    }
}

/// Nothing was written when nothing but the end of a message was to be said, and it came back at
/// each start.
#[test]
fn a_message_without_recipients_left_can_be_settled() {
    for checkpoint in [false, true] {
        let mut w = World::new(400 << 20);
        w.apply(Op::Store { recipients: 1, body: 10, handoff: false });
        let key = w.key(0).unwrap();
        w.model.get_mut(&key).unwrap().left.clear();
        w.settle(key, vec![0], false);
        w.apply(Op::Checkpoint { steps: u8::from(checkpoint) });
        w.apply(Op::Kill);
        w.settle(key, vec![], true);
        w.apply(Op::Kill);
        w.apply(Op::LoseIndex);
        w.apply(Op::Checkpoint { steps: 3 });
        assert_eq!(spool::disk::Disk::list(&w.disk).unwrap(), ["00000002.log"]);
    }
}

/// The segment of a message that cannot be read was chosen to be copied forward again and
/// again, and no other ever was.
#[test]
fn a_damaged_message_does_not_stop_compaction() {
    let mut w = World::new(400 << 20);
    for _ in 0..2 {
        w.apply(Op::Store { recipients: 1, body: 1000, handoff: false });
        w.apply(Op::Store { recipients: 1, body: 9000, handoff: false });
        w.apply(Op::Stop);
    }
    (1..3).for_each(|pick| w.apply(Op::SettleAll { pick }));
    w.disk.damage("00000001.log", 1000);
    let damaged = w.key(0).unwrap();
    assert!(w.store.read(damaged).is_err());
    for _ in 0..4 {
        w.apply(Op::Checkpoint { steps: 3 });
        w.apply(Op::Compact);
    }
    let names = spool::disk::Disk::list(&w.disk).unwrap();
    assert!(names.contains(&"00000001.log".to_owned()) && !names.contains(&"00000002.log".to_owned()), "{names:?}");
}

#[test]
fn ten_fills_and_drains_give_the_disk_back() {
    let mut w = World::new(4 << 30);
    for _ in 0..10 {
        for _ in 0..40 {
            w.apply(Op::Store { recipients: 1, body: 5_000_000, handoff: false });
        }
        let full = w.disk.used();
        while w.key(0).is_some() {
            w.apply(Op::SettleAll { pick: 0 });
        }
        w.apply(Op::Checkpoint { steps: 3 });
        assert!(full > 200_000_000 && w.disk.used() < 90_000_000, "{} of {full} bytes left", w.disk.used());
    }
}

#[test]
fn one_deferred_message_does_not_keep_its_segment() {
    let mut w = World::new(4 << 30);
    w.apply(Op::Store { recipients: 2, body: 1000, handoff: false });
    w.apply(Op::Update { pick: 0, recipient: 1, due: 77 });
    for _ in 0..40 {
        w.apply(Op::Store { recipients: 1, body: 5_000_000, handoff: false });
        w.apply(Op::SettleAll { pick: 1 });
    }
    w.apply(Op::Checkpoint { steps: 3 });
    for _ in 0..500 {
        w.apply(Op::Compact);
        w.apply(Op::Checkpoint { steps: 3 });
    }
    assert!(w.disk.used() < 90_000_000, "{} bytes for one message", w.disk.used());
    w.apply(Op::Kill);
    w.apply(Op::LoseIndex);
}

/// A spool that was stopped while it was empty counted its first mail twice at the next start,
/// and kept the segment for good.
#[test]
fn what_a_start_reads_is_counted_once() {
    let mut w = World::new(400 << 20);
    w.apply(Op::Stop);
    for _ in 0..2 {
        (0..5).for_each(|_| w.apply(Op::Store { recipients: 1, body: 10, handoff: false }));
        w.apply(Op::Kill);
    }
    while w.key(0).is_some() {
        w.apply(Op::SettleAll { pick: 0 });
    }
    w.apply(Op::Checkpoint { steps: 3 });
    assert_eq!(spool::disk::Disk::list(&w.disk).unwrap(), ["00000003.log"]);
}

/// Two segments that each held something the other superseded kept each other, and then every
/// segment after them: the disk filled up.
#[test]
fn a_message_that_is_tried_again_does_not_keep_what_came_meanwhile() {
    let mut w = World::new(4 << 30);
    w.apply(Op::Store { recipients: 2, body: 1000, handoff: false });
    for due in 0..4 {
        w.apply(Op::Update { pick: 0, recipient: 1, due });
        for _ in 0..15 {
            w.apply(Op::Store { recipients: 1, body: 5_000_000, handoff: false });
            w.apply(Op::SettleAll { pick: 1 });
        }
        for _ in 0..3 {
            w.apply(Op::Checkpoint { steps: 3 });
            (0..80).for_each(|_| w.apply(Op::Compact));
        }
    }
    w.apply(Op::Checkpoint { steps: 3 });
    assert!(w.disk.used() < 170_000_000, "{} bytes for one message", w.disk.used());
    w.apply(Op::Kill);
    w.apply(Op::LoseIndex);
}

/// What was settled came back when the index had failed on a full disk, and nothing was freed
/// any more until the next start.
#[test]
fn a_failed_index_is_rebuilt_in_use_and_frees_segments() {
    let mut w = World::new(400 << 20);
    for _ in 0..30 {
        w.apply(Op::Store { recipients: 2, body: 5_000_000, handoff: true });
    }
    w.apply(Op::Update { pick: 3, recipient: 1, due: 70 });
    w.apply(Op::Checkpoint { steps: 3 });
    while w.model.len() > 1 {
        w.apply(Op::SettleAll { pick: 0 });
    }
    w.apply(Op::FailIndex { restore: true });
    assert!(!w.store.index_failed());
    w.apply(Op::Checkpoint { steps: 3 });
    assert!(w.disk.used() < 90_000_000, "{} bytes left", w.disk.used());
    w.apply(Op::Kill);
    w.apply(Op::FailIndex { restore: false });
    w.apply(Op::Stop);
}

/// The segment in use was kept for good, however little lived there.
#[test]
fn a_dead_segment_in_use_is_left() {
    let mut w = World::new(400 << 20);
    for _ in 0..4 {
        w.apply(Op::Store { recipients: 1, body: 5_000_000, handoff: false });
        w.apply(Op::SettleAll { pick: 0 });
    }
    w.apply(Op::Checkpoint { steps: 3 });
    assert!(w.store.leave_dead_segment().unwrap());
    w.apply(Op::Checkpoint { steps: 3 });
    assert_eq!(spool::disk::Disk::list(&w.disk).unwrap(), ["00000002.log"]);
    assert!(!w.store.leave_dead_segment().unwrap(), "there is nothing to be won");
    w.apply(Op::Kill);
}

/// A spool without room for an index did not open; and when it did, what was known of recipients was looked for in the index all
/// the same.
#[test]
fn a_spool_opens_without_an_index() {
    let mut w = World::new(400 << 20);
    (0..6).for_each(|_| w.apply(Op::Store { recipients: 2, body: 1000, handoff: true }));
    w.apply(Op::Settle { pick: 0, recipient: 0 });
    w.apply(Op::SettleAll { pick: 1 });
    w.index.fail(true);
    w.apply(Op::Kill);
    for key in w.model.keys() {
        assert_eq!(w.store.state(*key, 1).unwrap(), None, "the log says all that there is of message {key}");
    }
    w.apply(Op::SettleAll { pick: 1 });
    w.index.fail(false);
    w.store.restore_index().unwrap();
    w.apply(Op::Checkpoint { steps: 3 });
    w.apply(Op::Kill);
}

/// All outcomes of a group were one record, and all values were the first record of a segment: at
/// some size it was not accepted any more when it was read.
#[test]
fn every_record_can_be_read_back() {
    let mut w = World::new(4 << 30);
    w.apply(Op::Store { recipients: 1, body: 10, handoff: false });
    let key = w.key(0).unwrap();
    let mut g = Group::default();
    let state = RecipientState { due_unix_ms: 9, last_reply: "x".repeat(200), ..Default::default() };
    g.update.entries = (0..9000).map(|_| UpdateEntry { key, recipient: 0, state: state.clone() }).collect();
    g.update.rows = (0..100).map(|n| vec![n as u8; 30_000]).collect();
    g.done.rows = g.update.rows.clone();
    g.done.entries = (0..200_000).map(|n| (1 << 40 | n, 0)).collect();
    g.done.settled = (0..200_000).map(|n| 1 << 40 | n).collect();
    for n in 0..4 {
        g.put.push(spool::layout::PutMeta { name: format!("value-{n}"), value: vec![n; 1 << 20] });
    }
    w.commit(g);
    w.model.get_mut(&key).unwrap().left.insert(0, 9);
    for _ in 0..14 {
        w.apply(Op::Store { recipients: 1, body: 5_000_000, handoff: false });
        let newest = *w.model.keys().last().unwrap();
        w.settle(newest, vec![0], true);
    }
    w.apply(Op::Checkpoint { steps: 250 });
    w.apply(Op::Kill);
    assert_eq!(w.store.values("value-").iter().filter(|(_, v)| v.len() == 1 << 20).count(), 4);
    w.apply(Op::LoseIndex);
    assert_eq!(w.store.values("value-").len(), 4);
}

/// A recipient whose state was written again into the same segment, after the index knew of it, kept that segment until the
/// next start, and where a start read the second state, for good.
#[test]
fn a_state_that_is_written_again_does_not_keep_its_segment() {
    for starts in [false, true] {
        let mut w = World::new(4 << 30);
        w.apply(Op::Store { recipients: 2, body: 1000, handoff: false });
        w.apply(Op::Update { pick: 0, recipient: 1, due: 1 });
        w.apply(Op::Checkpoint { steps: 3 });
        w.apply(Op::Update { pick: 0, recipient: 1, due: 2 });
        if starts {
            w.apply(Op::Kill);
        }
        w.apply(Op::Checkpoint { steps: 3 });
        w.apply(Op::SettleAll { pick: 0 });
        for _ in 0..30 {
            w.apply(Op::Store { recipients: 1, body: 5_000_000, handoff: false });
            w.apply(Op::SettleAll { pick: 0 });
        }
        w.apply(Op::Checkpoint { steps: 3 });
        w.apply(Op::Checkpoint { steps: 3 });
        assert!(w.disk.used() < 90_000_000, "{} bytes for nothing, starts: {starts}", w.disk.used());
    }
}

//! Opening a spool: trust the index and replay what is newer, or rebuild it from the
//! segments. Bodies are read only where a crash may have torn them.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use ipc::dice::{HashMap, HashSet};

use crate::SpoolError;
use crate::carried::Carried;
use crate::disk::Disk;
use crate::index::{Index, IndexError};
use crate::layout::{
    DoneMeta, FORMAT_VERSION, ForgetMeta, Kind, Location, MovedMeta, POSITION_KEY, Position, PutMeta, SegmentEntry,
    StartMeta, Summary, UpdateMeta, aligned,
};
use crate::quarantine::{Stretch, Waiting};
use crate::rows::PROJECTED;
use crate::segment::{Log, Record};
use crate::store::{Recovered, RecoveredRecipient, Store};

/// What opening a spool took.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The index was rebuilt from the segments, and why.
    pub rebuilt: Option<String>,
    /// Records read from the log.
    pub replayed: u64,
    /// Messages with recipients left.
    pub messages: u64,
    /// Stretches of damaged bytes.
    pub damaged: u64,
}

impl<D: Disk, I: Index> Store<D, I> {
    /// Opens a spool and passes every message that has recipients left.
    ///
    /// `boot` names the machine's boot: an index that another boot left without an orderly
    /// stop may have lost entries to power loss and is rebuilt.
    ///
    /// # Errors
    /// [`SpoolError`] when the folder or even a fresh index fails.
    pub fn open(
        disk: D,
        index: I,
        shard: u8,
        boot: &str,
        each: &mut dyn FnMut(Recovered),
    ) -> Result<(Self, Opened), SpoolError> {
        let log = Log::open(disk).map_err(|e| SpoolError::Write(e.to_string()))?;
        let mut store = Store {
            log,
            index,
            shard,
            boot: boot.to_owned(),
            dirty: HashMap::default(),
            seen: Default::default(),
            carried: Carried::default(),
            values: Default::default(),
            checkpoint: None,
            checkpointed: 0,
            compaction: None,
            projected: 0,
            index_failed: false,
            quarantine: Waiting::default(),
        };
        let mut opened = Opened::default();
        let trusted = match store.position() {
            Ok(p) => store.replay(Some(p), &mut opened).and_then(|()| store.count_pins()),
            Err(why) => Err(SpoolError::Index(why)),
        };
        if let Err(e) = trusted {
            let begun = store.index.set_aside().and_then(|()| store.index.begin());
            // Records that contradict one another, with checksums that are right, may make entries that do not decode: they are
            // looked at before any message is passed on, as those of a trusted index are.
            let built = match begun {
                Ok(()) => store.rebuild(&mut opened, &e.to_string()).and_then(|()| store.scan_messages(&mut |_, _| {})),
                Err(e) => Err(e.into()),
            };
            if let Err(failed) = built {
                // No room for an index, perhaps: mail is delivered without one meanwhile.
                tracing::error!(error = %failed, "the index cannot be rebuilt; tried again when there is room");
                store.give_index_up();
                store.rebuild(&mut opened, &e.to_string())?;
            }
        }
        store.emit(&mut opened, each)?;
        let position = store.value(PROJECTED).and_then(|v| v.first_chunk::<8>());
        store.projected = position.map_or(0, |b| u64::from_le_bytes(*b));
        Ok((store, opened))
    }

    fn rebuild(&mut self, opened: &mut Opened, why: &str) -> Result<(), SpoolError> {
        if !self.log.segments.is_empty() {
            opened.rebuilt = Some(why.to_owned());
            tracing::warn!(why, "rebuilding the index from the segments");
        }
        opened.replayed = 0;
        self.dirty.clear();
        self.seen.clear();
        self.values.clear();
        self.checkpointed = 0;
        for s in self.log.segments.values_mut() {
            (s.live, s.live_bytes, s.changed) = (0, 0, true);
            s.refs.clear();
        }
        self.replay(None, opened)
    }

    /// The index failed, and has to be restored.
    pub fn index_failed(&self) -> bool {
        self.index_failed
    }

    /// Rebuilds a failed index from the segments while the spool is in use; about a second for
    /// a gigabyte, in which nothing else is written.
    ///
    /// # Errors
    /// [`SpoolError`]: it is still given up, for another try.
    pub fn restore_index(&mut self) -> Result<Opened, SpoolError> {
        self.index.set_aside()?;
        self.index.begin()?;
        let (values, seen) = (self.values.clone(), self.seen.clone());
        let (mut opened, sequence) = (Opened::default(), self.log.next_sequence);
        self.index_failed = false;
        let built =
            self.rebuild(&mut opened, "it failed while in use").and_then(|()| self.emit(&mut opened, &mut |_| {}));
        // Nothing was written meanwhile, so what is in memory is what the log says.
        (self.values, self.seen) = (values, seen);
        self.log.next_sequence = self.log.next_sequence.max(sequence);
        match built {
            Ok(()) => Ok(opened),
            Err(e) => {
                self.give_index_up();
                Err(e)
            }
        }
    }

    /// The index's position, if it can be trusted.
    fn position(&self) -> Result<Position, String> {
        let bytes = self.index.get(POSITION_KEY).map_err(|e| e.to_string())?.ok_or("it has no position")?;
        let p: Position = ipc::frame::unarchive(0, &aligned(&bytes)).map_err(|e| e.to_string())?;
        if p.version != FORMAT_VERSION {
            return Err(format!("it has format version {}", p.version));
        }
        if !p.clean && p.boot != self.boot {
            return Err("the machine stopped without an orderly stop of the spool".into());
        }
        match p.active.iter().find(|(id, _)| !self.log.segments.contains_key(id)) {
            Some((id, _)) => Err(format!("segment {id} is missing")),
            None => Ok(p),
        }
    }

    /// Reads the log from `from` (or all of it) into the state of messages.
    fn replay(&mut self, from: Option<Position>, opened: &mut Opened) -> Result<(), SpoolError> {
        let from = from.unwrap_or_default();
        if from.next_sequence > 0 {
            self.checkpointed = from.next_sequence - 1;
            self.log.next_sequence = from.next_sequence;
            // Numbers of freed segments are not given again: what has a number below this is
            // taken for known to the index.
            self.log.next_segment = self.log.next_segment.max(from.next_segment);
            self.segment_entries(&from)?;
        }
        let newest_hot =
            self.log.segments.iter().rev().find(|(id, s)| !s.cold && carries_all(&self.log, **id)).map(|(id, _)| *id);
        let mut segments = [VecDeque::new(), VecDeque::new()];
        for (id, s) in &self.log.segments {
            let active = from.active.iter().find(|(a, _)| a == id).map(|(_, len)| *len);
            let newer = *id >= from.next_segment;
            // Values and handoffs have no entries in the index: the newest hot segment, which
            // is never freed, begins with all of them.
            if active.is_some() || newer || newest_hot == Some(*id) {
                let changes_from = if newer { 0 } else { active.unwrap_or(u64::MAX) };
                segments[usize::from(s.cold)].push_back((*id, changes_from));
            }
        }
        // Within a stream records are in order, but between the two numbers of segments say
        // nothing: while one takes what happens, the other takes copies of what was.
        let mut records = [VecDeque::new(), VecDeque::new()];
        let mut settled = HashSet::default();
        loop {
            for (records, segments) in records.iter_mut().zip(&mut segments) {
                while records.is_empty()
                    && let Some((id, changes_from)) = segments.pop_front()
                {
                    *records = self.records_of(id, changes_from, opened)?;
                    if self.checkpointed == 0 && !self.index_failed && self.dirty.len() >= I::REBUILD_BATCH {
                        // Memory must not follow the depth of the queue.
                        self.write_all_dirty()?;
                    }
                }
            }
            let next = |n: usize| records[n].front().map_or(u64::MAX, |(r, _): &(Record, _)| r.header.sequence);
            let stream = usize::from(next(1) < next(0));
            let Some((r, counts)) = records[stream].pop_front() else { break };
            opened.replayed += 1;
            self.replay_record(r, counts, &mut settled);
        }
        for s in self.log.segments.values_mut() {
            if s.last_sequence == 0 {
                s.last_sequence = self.checkpointed;
            }
        }
        Ok(())
    }

    /// The records of a segment, and whether the index does not know them yet: those from
    /// `changes_from` on.
    fn records_of(
        &mut self,
        id: u32,
        changes_from: u64,
        opened: &mut Opened,
    ) -> Result<VecDeque<(Record, bool)>, SpoolError> {
        // Any segment replayed may hold a group that a crash or a failed write tore, so the
        // bodies behind the checkpoint are read; what the index already holds is not.
        let torn = changes_from != u64::MAX;
        let mut records = VecDeque::new();
        let mut damage = Vec::new();
        if torn && let Err(error) = self.log.sync_segment(id) {
            // A group that failed may lie there, and was never synced: the index would know what a power loss takes.
            tracing::warn!(segment = id, %error, "a segment that is read back cannot be synced");
        }
        let end = self
            .log
            .scan(id, 0, torn, &mut damage, &mut |r| {
                let counts = u64::from(r.location.offset) >= changes_from;
                records.push_back((r, counts));
                Ok(())
            })
            .map_err(|e| SpoolError::Write(e.to_string()))?;
        let mut behind = None;
        for d in damage.into_iter().filter(|d| d.from < end || !ipc::planted!("damaged-end-cut-off")) {
            opened.damaged += 1;
            let name = format!("segment-{}-{}", d.segment, d.from);
            let at_the_end = d.from >= end;
            tracing::error!(
                segment = d.segment,
                from = d.from,
                to = d.to,
                at_the_end,
                file = name,
                "damaged bytes in the segment log; set aside in quarantine"
            );
            behind = at_the_end.then_some(d.to).or(behind);
            self.quarantine.push(Stretch { name, segment: d.segment, from: d.from, to: d.to });
        }
        // A segment in use ends where it was written to, and keeps the room behind that.
        if torn && !self.log.is_active(id) {
            // What the index knows was acknowledged: it stays, readable or not.
            let known = self.log.segments.get(&id).map_or(0, |s| s.len.min(changes_from));
            match behind {
                Some(to) if to > known => self.quarantine.cut_later(id, end.max(known)),
                _ => {
                    self.quarantine.cut_never(id);
                    self.log.set_len(id, end.max(known));
                }
            }
        }
        Ok(records)
    }

    /// Applies one record. What lies before the checkpoint (`counts` false) is in the index
    /// already, but for the values that have no entry there.
    fn replay_record(&mut self, r: Record, counts: bool, settled: &mut HashSet<u64>) {
        let id = r.location.segment;
        self.log.next_sequence = self.log.next_sequence.max(r.header.sequence + 1);
        if let Some(s) = self.log.segments.get_mut(&id) {
            s.last_sequence = s.last_sequence.max(r.header.sequence);
        }
        let meta = aligned(&r.meta);
        match r.header.kind {
            Kind::Start => {
                if let Ok(m) = ipc::frame::unarchive::<StartMeta>(0, &meta)
                    && !m.cold
                {
                    self.carried = Carried::after(m);
                    self.take_carried();
                }
            }
            Kind::Carried => {
                if let Ok(m) = ipc::frame::unarchive::<StartMeta>(0, &meta) {
                    self.carried.add(m);
                    self.take_carried();
                }
            }
            Kind::Message if counts && !settled.contains(&r.header.sequence) => {
                self.note_message(r.header.sequence, r.location, Bytes::from(r.meta), r.header.body_len as u32);
            }
            Kind::Message => self.note_handoff(&r.meta),
            Kind::Update if counts => {
                if let Ok(mut m) = ipc::frame::unarchive::<UpdateMeta>(0, &meta) {
                    m.entries.retain(|e| !settled.contains(&e.key) && !self.is_done(e.key, e.recipient));
                    self.note_update(&m, id);
                }
            }
            Kind::Done if counts => {
                if let Ok(m) = ipc::frame::unarchive::<DoneMeta>(0, &meta) {
                    settled.extend(&m.settled);
                    self.note_done(&m, id);
                }
            }
            Kind::Moved if counts => {
                if let Ok(m) = ipc::frame::unarchive::<MovedMeta>(0, &meta)
                    && !settled.contains(&m.key)
                {
                    self.replay_moved(&r, m);
                }
            }
            Kind::Put => {
                if let Ok(m) = ipc::frame::unarchive::<PutMeta>(0, &meta) {
                    self.note_put(&m);
                }
            }
            Kind::Forget => {
                if let Ok(m) = ipc::frame::unarchive::<ForgetMeta>(0, &meta) {
                    self.note_forget(m);
                }
            }
            _ => {}
        }
    }

    /// Puts what a segment begins with in place of what was, once all of it was read.
    fn take_carried(&mut self) {
        if self.carried.missing > 0 {
            return;
        }
        let c = std::mem::take(&mut self.carried);
        self.values = c.values;
        for (origin, s) in c.seen {
            self.seen.insert(origin, s);
        }
    }

    fn is_done(&self, key: u64, recipient: u16) -> bool {
        self.dirty.get(&key).is_some_and(|d| d.done.contains(&recipient))
    }

    fn replay_moved(&mut self, r: &Record, mut m: MovedMeta) {
        let rebuilding = self.checkpointed == 0;
        let known = self.dirty.get(&m.key);
        let indexed = self.indexed(m.key).ok().flatten();
        let before = indexed.as_ref().map(|s| s.location);
        // What a trusted index pins is counted later; a rebuild's holds what was read so far.
        let from = known.and_then(|d| d.location).or(before.filter(|_| rebuilding)).map_or(0, |at| at.segment);
        let done = |i: u16| {
            known.is_some_and(|d| d.done.contains(&i))
                || indexed.as_ref().is_some_and(|s| s.recipients.get(usize::from(i)).is_none_or(|r| r.done))
        };
        m.states.retain(|(i, _)| !done(*i));
        let fresh = indexed.is_none() && known.is_none_or(|d| d.envelope.is_empty());
        let envelope = Bytes::copy_from_slice(&m.envelope);
        self.note_moved(m.key, r.location, &m, from);
        if let Some(at) = before {
            self.log.refer(r.location.segment, at.segment);
        }
        if fresh && rebuilding {
            // Rebuilding: the original segment is gone and no index entry will come.
            if let Some(d) = self.dirty.get_mut(&m.key) {
                d.envelope = envelope;
                d.indexed = false;
            }
        }
    }

    fn segment_entries(&mut self, from: &Position) -> Result<(), SpoolError> {
        let log = &mut self.log;
        self.index.scan(b"s", &mut |k, v| {
            let id = k.get(1..5).and_then(|b| b.first_chunk::<4>()).map(|b| u32::from_be_bytes(*b));
            if let Some(s) = id.and_then(|id| log.segments.get_mut(&id)) {
                let e: SegmentEntry = ipc::frame::unarchive(0, &aligned(v)).map_err(|e| IndexError(e.to_string()))?;
                s.refs = e.refs.into_iter().collect();
                s.last_sequence = e.last_sequence;
                s.changed = false;
            }
            Ok(())
        })?;
        for (_, s) in log.segments.range_mut(..from.next_segment) {
            if s.last_sequence == 0 {
                s.last_sequence = from.next_sequence - 1;
            }
        }
        Ok(())
    }

    /// Visits every message of the index.
    fn scan_messages(&self, visit: &mut dyn FnMut(u64, Summary)) -> Result<(), SpoolError> {
        let mut open: Option<(u64, Summary)> = None;
        self.index.scan(b"m", &mut |k, v| {
            let bad = || IndexError("an entry does not decode".into());
            let key = k.get(1..9).and_then(|b| b.first_chunk()).map(|b| u64::from_be_bytes(*b)).ok_or_else(bad)?;
            let n = k.get(9..11).and_then(|b| b.first_chunk()).map(|b| u16::from_be_bytes(*b)).ok_or_else(bad)?;
            if n == 0
                && let Some((key, s)) = open.take()
            {
                visit(key, s);
            }
            let (of, s) = open.get_or_insert_with(|| (key, Summary::default()));
            if *of != key {
                return Err(bad());
            }
            s.decode_chunk(n, v).ok_or_else(bad)
        })?;
        if let Some((key, s)) = open.take() {
            visit(key, s);
        }
        Ok(())
    }

    /// Counts what the messages of the index keep in each segment. A pass of its own, so that
    /// an index that turns out to be of no use does so before any message was passed on: the
    /// rebuild would pass it again, and it would be delivered twice.
    fn count_pins(&mut self) -> Result<(), SpoolError> {
        if self.checkpointed == 0 {
            // All of the log was replayed, and counted.
            return Ok(());
        }
        let mut pins: BTreeMap<u32, (i64, i64)> = BTreeMap::new();
        self.scan_messages(&mut |key, s| {
            if self.dirty.get(&key).is_none_or(|d| d.location.is_none()) {
                let p = pins.entry(s.location.segment).or_default();
                (p.0, p.1) = (p.0 + 1, p.1 + i64::from(s.body_len));
            }
            for r in s.recipients.iter().filter(|r| r.state_segment != 0) {
                pins.entry(r.state_segment).or_default().0 += 1;
            }
        })?;
        for (id, (live, bytes)) in pins {
            if !self.log.segments.contains_key(&id) {
                return Err(SpoolError::Index(format!("segment {id} is missing")));
            }
            self.log.pin(id, live, bytes);
        }
        Ok(())
    }

    /// Passes every message with recipients left: those of the index, with what the replay
    /// changed, then those that only the replay knows.
    fn emit(&mut self, opened: &mut Opened, each: &mut dyn FnMut(Recovered)) -> Result<(), SpoolError> {
        let mut known = Vec::new();
        let mut emitted = 0u64;
        let mut of_index = |key: u64, mut s: Summary| {
            if let Some(d) = self.dirty.get(&key) {
                known.push(key);
                if d.settled {
                    return;
                }
                d.merge_into(&mut s);
            }
            emitted += u64::from(pass(key, &s, each));
        };
        if !self.index_failed {
            self.scan_messages(&mut of_index)?;
        }
        for key in &known {
            if let Some(d) = self.dirty.get_mut(key) {
                d.indexed = true;
            }
        }
        let known: HashSet<u64> = known.into_iter().collect();
        let mut fresh: Vec<u64> = self.dirty.keys().copied().filter(|k| !known.contains(k)).collect();
        // The oldest first.
        fresh.sort_unstable();
        for key in fresh {
            let Some(d) = self.dirty.get(&key) else { continue };
            match d.fresh_summary(self.shard).filter(|_| !d.settled) {
                Some(mut s) => {
                    d.merge_into(&mut s);
                    emitted += u64::from(pass(key, &s, each));
                }
                // Changes to a message that has left the index already, or the log.
                None => {
                    if let Some(d) = self.dirty.remove(&key) {
                        d.states.values().for_each(|(_, segment)| self.log.pin(*segment, -1, 0));
                    }
                }
            }
        }
        opened.messages = emitted;
        Ok(())
    }
}

/// Whether segment `id` was begun completely: with all values that older ones hold.
fn carries_all<D: Disk>(log: &Log<D>, id: u32) -> bool {
    let Ok((first, _)) = log.read(Location { segment: id, offset: 0 }, false) else { return false };
    let Ok(start) = ipc::frame::unarchive::<StartMeta>(0, &aligned(&first.meta)) else { return false };
    if first.header.kind != Kind::Start {
        return false;
    }
    let mut at = first.header.record_len();
    for _ in 0..Carried::after(start).missing {
        match log.read(Location { segment: id, offset: at as u32 }, false) {
            Ok((r, _)) if r.header.kind == Kind::Carried => at += r.header.record_len(),
            _ => return false,
        }
    }
    true
}

fn pass(key: u64, s: &Summary, each: &mut dyn FnMut(Recovered)) -> bool {
    let mut before = "";
    let recipients: Vec<RecoveredRecipient> = s
        .recipients
        .iter()
        .enumerate()
        .filter(|(_, r)| !r.done)
        .map(|(i, r)| RecoveredRecipient {
            index: i as u16,
            destination: r.destination.clone(),
            due_unix_ms: r.state.due_unix_ms,
            delay_reports: r.state.delay_reports,
            attempts: r.state.attempts,
            priority: r.priority,
            last_reply: match std::mem::replace(&mut before, &r.destination) == r.destination {
                true => String::new(),
                false => r.state.last_reply.clone(),
            },
        })
        .collect();
    // A message whose last recipient was settled by a record that did not say so stays an
    // entry; passing it lets the caller settle it.
    each(Recovered {
        key,
        body_len: s.body_len,
        received_unix_ms: s.received_unix_ms,
        handoff: s.handoff,
        notify_delay: s.notify_delay,
        alone: s.alone,
        windows_end_ms: s.windows_end_ms,
        vmta: s.vmta.clone(),
        job: s.job.clone(),
        recipients,
    });
    true
}

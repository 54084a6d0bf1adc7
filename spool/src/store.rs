//! The spool's state machine: groups of operations become records, records change the state
//! of messages, and the index follows behind. No threads, no clock: tests drive it directly.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::Bytes;
use ipc::dice::HashMap;
use ipc::message::{ArchivedEnvelope, ArchivedRecipient, HandoffId};

use crate::SpoolError;
use crate::carried::{self, Carried, Seen};
use crate::disk::Disk;
use crate::group::{Group, message_record, outcome_records};
use crate::index::Index;
use crate::layout::{
    DoneMeta, ForgetMeta, IndexedRecipient, Kind, Location, Position, PutMeta, REPLY_BYTES_MAX, RecipientState,
    Summary, UpdateEntry, UpdateMeta, beginning, message_key,
};
use crate::quarantine::{Stretch, Waiting};
use crate::segment::{Log, Pending, STEP_BYTES, Stream};

/// Room kept allocated behind new mail, so that outcomes of queued mail can be written when
/// the disk is full.
pub const RESERVE_BYTES: u64 = STEP_BYTES;

/// Room that the index has before much is written to it: a full disk can destroy it.
pub(crate) const INDEX_BYTES: u64 = 8 << 20;
/// Room for a message of usual size.
const MESSAGE_ROOM_BYTES: u64 = 256 << 10;
/// A segment is hardly alive when less than a quarter of it is.
pub(crate) const LIVE_SHARE: u64 = 4;
/// What the spool knows of a recipient.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownRecipient {
    /// It has ended.
    pub done: bool,
    /// Its state; the default before the first attempt.
    pub state: RecipientState,
}

/// A group in the log, which is not durable yet.
#[derive(Debug, Default)]
pub struct Written {
    /// Keys and places of its records.
    placed: Vec<(u64, Location)>,
    /// Where the log ended before.
    before: u64,
    /// The first record of a message to store.
    first_new: usize,
    /// Why no message to store is in it.
    refused: Option<SpoolError>,
}

/// A recipient found at opening.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredRecipient {
    /// Index in the envelope.
    pub index: u16,
    /// What it is queued under.
    pub destination: String,
    /// When it may be tried next, Unix milliseconds; 0 before the first attempt.
    pub due_unix_ms: i64,
    /// Delay reports sent so far.
    pub delay_reports: u8,
    /// Attempts made so far.
    pub attempts: u8,
    /// 0 to 100.
    pub priority: u8,
    /// The last reply, of the first of those in a row that go to one destination; empty for the others.
    pub last_reply: String,
}

/// A message found at opening, with the recipients that are left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Its key.
    pub key: u64,
    /// Bytes of content.
    pub body_len: u32,
    /// When it was accepted, Unix milliseconds.
    pub received_unix_ms: i64,
    /// Kept for another shard.
    pub handoff: bool,
    /// The sender of some recipient wants to hear of delays (RFC 3461 NOTIFY=DELAY).
    pub notify_delay: bool,
    /// Each recipient has a transaction of its own.
    pub alone: bool,
    /// When the last of the windows ends that its mail is delivered within, Unix milliseconds; 0 for none.
    pub windows_end_ms: i64,
    /// Virtual MTA or pool chosen.
    pub vmta: String,
    /// x-job
    pub job: String,
    /// Its recipients that are left.
    pub recipients: Vec<RecoveredRecipient>,
}

/// A message that the index does not know yet, or changes that it does not know yet.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    /// Where its record lies; `None` when only the index knows.
    pub location: Option<Location>,
    pub envelope: Bytes,
    pub body_len: u32,
    /// The index has an entry.
    pub indexed: bool,
    pub settled: bool,
    pub done: BTreeSet<u16>,
    pub states: BTreeMap<u16, (RecipientState, u32)>,
    /// Segments of the records that say so.
    pub done_in: BTreeSet<u32>,
}

/// A checkpoint in progress.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    /// What the index will hold at its end.
    pub position: Position,
    /// Messages that it has yet to write.
    pub keys: Vec<u64>,
}

/// A segment being copied forward.
#[derive(Debug)]
pub(crate) struct Compaction {
    pub segment: u32,
    /// Offset behind what was copied.
    pub at: u64,
}

/// The spool of one shard over some disk and index.
pub struct Store<D: Disk, I: Index> {
    pub(crate) log: Log<D>,
    pub(crate) index: I,
    pub(crate) shard: u8,
    pub(crate) boot: String,
    pub(crate) dirty: HashMap<u64, Dirty>,
    pub(crate) seen: Seen,
    pub(crate) values: BTreeMap<String, Vec<u8>>,
    /// See [`Carried`]: while a replay reads what a segment begins with.
    pub(crate) carried: Carried,
    pub(crate) checkpoint: Option<Checkpoint>,
    /// Sequence up to which the index holds everything.
    pub(crate) checkpointed: u64,
    pub(crate) compaction: Option<Compaction>,
    /// Sequence up to which rows are durable in accounting.
    pub(crate) projected: u64,
    /// The index failed; nothing more is written to it until it is rebuilt.
    pub(crate) index_failed: bool,
    pub(crate) quarantine: Waiting,
}

impl<D: Disk, I: Index> std::fmt::Debug for Store<D, I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("shard", &self.shard).field("dirty", &self.dirty.len()).finish_non_exhaustive()
    }
}

/// A validated view of an archived envelope. The bytes were validated before they were
/// stored and carry a checksum, but a disk is outside the process all the same.
pub(crate) fn envelope_of<T>(bytes: &[u8], f: impl FnOnce(&ArchivedEnvelope) -> T) -> Option<T> {
    let mut aligned = rkyv::util::AlignedVec::<16>::with_capacity(bytes.len());
    aligned.extend_from_slice(bytes);
    rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&aligned).ok().map(f)
}

impl<D: Disk, I: Index> Store<D, I> {
    /// Makes a group durable and answers, for each report and then each message to store, its
    /// key or why not. Outcomes and their reports go in even when new mail does not find room.
    ///
    /// # Errors
    /// When nothing of the group is durable. The caller offers outcomes again.
    pub fn commit(&mut self, group: &Group) -> Result<Vec<Result<u64, SpoolError>>, SpoolError> {
        let written = self.write(group)?;
        self.sync(group, written)
    }

    /// The first half of [`Store::commit`]: appends the group. Nothing else may be done before
    /// [`Store::sync`].
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub fn write(&mut self, group: &Group) -> Result<Written, SpoolError> {
        let mut records = Vec::with_capacity(group.store.len() + group.reports.len() + 4);
        // Of a group that a crash tears the beginning is kept: reports first, for a report that
        // comes twice is better than none.
        records.extend(group.reports.iter().map(message_record));
        outcome_records(group, &mut records);
        let outcomes: u64 = records.iter().map(Pending::bytes).sum();
        let intake: u64 = group.store.iter().map(|m| message_record(m).bytes()).sum();
        // What a new segment begins with: much to copy, and few groups begin one.
        let start = || carried::records(&self.values, &self.seen);
        let keep = if group.store.iter().all(|m| m.in_progress) { 0 } else { RESERVE_BYTES };
        let room = if group.store.is_empty() {
            Err(io::ErrorKind::NotFound.into())
        } else {
            self.log.reserve(Stream::Hot, intake + outcomes, keep, start)
        };
        let mut written = Written { first_new: records.len(), ..Default::default() };
        match room {
            Ok(()) => records.extend(group.store.iter().map(message_record)),
            Err(e) => {
                written.refused = Some(full(&e));
                if records.is_empty() {
                    return Ok(written);
                }
                self.log.reserve(Stream::Hot, outcomes, 0, start).map_err(|e| full(&e))?;
            }
        }
        written.before = self.log.position(Stream::Hot).map_or(0, |(_, len)| len);
        written.placed = self.log.append(Stream::Hot, &records).map_err(|e| {
            self.log.take_back(Stream::Hot, written.before);
            SpoolError::Write(e.to_string())
        })?;
        Ok(written)
    }

    /// The second half of [`Store::commit`].
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub fn sync(&mut self, group: &Group, written: Written) -> Result<Vec<Result<u64, SpoolError>>, SpoolError> {
        let Written { placed, before, first_new, refused } = written;
        if !placed.is_empty()
            && !ipc::planted!("sync-left-out")
            && let Err(e) = self.log.sync(Stream::Hot)
        {
            self.log.take_back(Stream::Hot, before);
            return Err(SpoolError::Sync(e.to_string()));
        }
        // Before the messages, as in the log: what is taken with this group is not among what is forgotten.
        group.forget.iter().for_each(|f| self.note_forget(*f));
        let mut results: Vec<Result<u64, SpoolError>> = Vec::with_capacity(group.store.len() + group.reports.len());
        let new = placed.get(first_new..).unwrap_or_default();
        let reports = group.reports.iter().zip(&placed);
        for (m, (key, at)) in reports.chain(group.store.iter().zip(new)) {
            let len = (m.body[0].len() + m.body[1].len()) as u32;
            self.note_message(*key, *at, m.envelope.clone(), len);
            results.push(Ok(*key));
        }
        if let Some(e) = refused {
            results.extend(group.store.iter().map(|_| Err(e.clone())));
        }
        let segment = placed.first().map_or(0, |(_, at)| at.segment);
        self.note_update(&group.update, segment);
        self.note_done(&group.done, segment);
        group.put.iter().for_each(|p| self.note_put(p));
        Ok(results)
    }

    /// Makes sure that a lone message, and the outcomes of what is queued, have room.
    ///
    /// # Errors
    /// By the disk.
    pub fn keep_room(&mut self) -> io::Result<()> {
        let start = || carried::records(&self.values, &self.seen);
        self.log.reserve(Stream::Hot, MESSAGE_ROOM_BYTES, RESERVE_BYTES, start)
    }

    /// Begins another hot segment when little of the one in use lives, so that it can be given
    /// back; answers whether it did. While there is room that would only cost syncs.
    ///
    /// # Errors
    /// By the disk; the one in use stays.
    pub fn leave_dead_segment(&mut self) -> io::Result<bool> {
        let Some((id, len)) = self.log.position(Stream::Hot) else { return Ok(false) };
        let (live, bytes) = self.log.segments.get(&id).map_or((0, 0), |s| (s.live, s.live_bytes));
        if len < STEP_BYTES || bytes.saturating_mul(LIVE_SHARE) >= len {
            return Ok(false);
        }
        let start = carried::records(&self.values, &self.seen);
        match self.log.roll(Stream::Hot, MESSAGE_ROOM_BYTES + RESERVE_BYTES, &start) {
            // Nothing lives there of which an outcome could come, and all of its room is given back.
            Err(e) if e.kind() == io::ErrorKind::StorageFull && live == 0 => self.log.roll(Stream::Hot, 0, &start)?,
            r => r?,
        }
        Ok(true)
    }

    /// Whether this very handoff was taken. One that was forgotten was not: taken for a repeat it
    /// would be lost.
    pub fn has_seen(&self, id: HandoffId) -> bool {
        let seen = self.seen.get(&(id.origin, id.incarnation)).is_some_and(|s| s.contains(&id.sequence));
        seen && !ipc::planted!("handoff-applied-twice")
    }

    /// What there is to forget of an origin that may repeat only what is `open`.
    pub fn forgettable(&self, origin: u8, open: &[(u32, u64)]) -> Vec<ForgetMeta> {
        let known = self.seen.range((origin, 0)..=(origin, u32::MAX));
        let all = known.filter_map(|((_, incarnation), s)| {
            let below = open.iter().find(|(i, _)| i == incarnation).map_or(u64::MAX, |(_, from)| *from);
            let any = below == u64::MAX || s.first().is_some_and(|first| *first < below);
            any.then_some(ForgetMeta { origin, incarnation: *incarnation, below })
        });
        all.collect()
    }

    /// A value kept with `put`.
    pub fn value(&self, name: &str) -> Option<&[u8]> {
        self.values.get(name).map(Vec::as_slice)
    }

    /// All values whose names begin with `prefix`.
    pub fn values(&self, prefix: &str) -> Vec<(String, Vec<u8>)> {
        let from = self.values.range(prefix.to_owned()..);
        from.take_while(|(k, _)| k.starts_with(prefix)).map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    /// Reads a message: its archived envelope and content.
    ///
    /// # Errors
    /// [`SpoolError::Unreadable`] when it is not there or does not validate; the bytes are
    /// then in quarantine.
    pub fn read(&mut self, key: u64) -> Result<(Vec<u8>, Bytes), SpoolError> {
        let unreadable = |reason: String| SpoolError::Unreadable { key, reason };
        let at = self.location(key)?.ok_or_else(|| unreadable("not in the spool".into()))?;
        let (record, body) = self.log.read(at, true).map_err(|e| {
            self.set_aside(key, at, &e.to_string());
            unreadable(e.to_string())
        })?;
        match record.header.kind {
            Kind::Message => Ok((record.meta, body)),
            Kind::Moved => {
                let meta = ipc::frame::unarchive::<crate::layout::MovedMeta>(0, &record.meta)
                    .map_err(|e| unreadable(e.to_string()))?;
                Ok((meta.envelope, body))
            }
            _ => Err(unreadable("no message at its place".into())),
        }
    }

    /// The last state of a recipient that was tried before.
    ///
    /// # Errors
    /// [`SpoolError::Index`].
    pub fn state(&self, key: u64, recipient: u16) -> Result<Option<RecipientState>, SpoolError> {
        if let Some(d) = self.dirty.get(&key) {
            if let Some((s, _)) = d.states.get(&recipient) {
                return Ok(Some(s.clone()));
            }
            if !d.indexed && !d.envelope.is_empty() {
                // The index, which may be given up, has nothing of it.
                return Ok(None);
            }
        }
        let indexed = self.indexed(key)?;
        Ok(indexed.and_then(|s| s.recipients.get(usize::from(recipient)).map(|r| r.state.clone())))
    }

    /// All recipients of a message, in the order of its envelope; `None` when it has ended.
    ///
    /// # Errors
    /// [`SpoolError::Index`].
    pub fn recipients(&self, key: u64) -> Result<Option<Vec<KnownRecipient>>, SpoolError> {
        let known = |r: IndexedRecipient| KnownRecipient { done: r.done, state: r.state };
        Ok(self.summary(key)?.map(|s| s.recipients.into_iter().map(known).collect()))
    }

    pub(crate) fn location(&self, key: u64) -> Result<Option<Location>, SpoolError> {
        match self.dirty.get(&key) {
            Some(d) if d.settled => Ok(None),
            Some(Dirty { location: Some(at), .. }) => Ok(Some(*at)),
            _ => Ok(self.indexed(key)?.map(|s| s.location)),
        }
    }

    /// What the index holds of a message.
    pub(crate) fn indexed(&self, key: u64) -> Result<Option<Summary>, SpoolError> {
        let mut summary = Summary::default();
        let Some(first) = self.index.get(&message_key(key, 0))? else { return Ok(None) };
        let count = first.get(21..23).map_or(0, |b| usize::from(u16::from_le_bytes([b[0], b[1]])));
        let bad = || SpoolError::Index(format!("entry of message {key} does not decode"));
        summary.decode_chunk(0, &first).ok_or_else(bad)?;
        for n in 1..count.div_ceil(crate::layout::RECIPIENTS_PER_CHUNK) as u16 {
            let v = self.index.get(&message_key(key, n))?.ok_or_else(bad)?;
            summary.decode_chunk(n, &v).ok_or_else(bad)?;
        }
        Ok(Some(summary))
    }

    /// What is known of a message, log and index together.
    pub(crate) fn summary(&self, key: u64) -> Result<Option<Summary>, SpoolError> {
        let Some(d) = self.dirty.get(&key) else { return self.indexed(key) };
        if d.settled {
            return Ok(None);
        }
        let base = if d.envelope.is_empty() { self.indexed(key)? } else { d.fresh_summary(self.shard) };
        Ok(base.map(|mut s| {
            d.merge_into(&mut s);
            s
        }))
    }

    fn set_aside(&mut self, key: u64, at: Location, why: &str) {
        tracing::error!(
            key,
            segment = at.segment,
            offset = at.offset,
            why,
            "message does not validate; set aside in quarantine"
        );
        let len = self.log.segments.get(&at.segment).map_or(0, |s| s.len);
        let to = (u64::from(at.offset) + (1 << 20)).min(len);
        let (from, name) = (u64::from(at.offset).min(to), format!("message-{key}"));
        self.quarantine.push(Stretch { name, segment: at.segment, from, to });
    }

    // What each record means, for commits and for replays alike.

    pub(crate) fn note_message(&mut self, key: u64, at: Location, envelope: Bytes, body_len: u32) {
        self.note_handoff(&envelope);
        self.log.pin(at.segment, 1, i64::from(body_len));
        let d = self.dirty.entry(key).or_default();
        d.location = Some(at);
        d.envelope = envelope;
        d.body_len = body_len;
    }

    /// A share was taken, and is known from now on.
    pub(crate) fn note_handoff(&mut self, envelope: &[u8]) {
        let shard = self.shard;
        let taken = envelope_of(envelope, |e| e.handoff_id().filter(|_| !e.is_kept_by(shard)));
        if let Some(Some(id)) = taken {
            // Also below what its origin had said it would not repeat here: a share that was offered to another shard, which is gone, comes
            // to this one under the identity that it has.
            self.seen.entry((id.origin, id.incarnation)).or_default().insert(id.sequence);
        }
    }

    pub(crate) fn note_update(&mut self, update: &UpdateMeta, segment: u32) {
        for UpdateEntry { key, recipient, state } in &update.entries {
            self.log.pin(segment, 1, 0);
            let d = self.dirty.entry(*key).or_insert_with(Dirty::of_index);
            if let Some((_, old)) = d.states.insert(*recipient, (state.clone(), segment)) {
                self.log.pin(old, -1, 0);
            }
        }
    }

    pub(crate) fn note_done(&mut self, done: &DoneMeta, segment: u32) {
        for (key, recipient) in &done.entries {
            let d = self.dirty.entry(*key).or_insert_with(Dirty::of_index);
            d.done_in.insert(segment);
            d.done.insert(*recipient);
            if let Some((_, old)) = d.states.remove(recipient) {
                self.log.pin(old, -1, 0);
            }
        }
        for key in &done.settled {
            let d = self.dirty.entry(*key).or_insert_with(Dirty::of_index);
            d.done_in.insert(segment);
            d.settled = true;
            for (_, old) in std::mem::take(&mut d.states).into_values() {
                self.log.pin(old, -1, 0);
            }
            // Mail that came and went between two checkpoints never touches the index.
            if let (Some(at), false) = (d.location, d.indexed) {
                let (body_len, done_in) = (i64::from(d.body_len), std::mem::take(&mut d.done_in));
                self.dirty.remove(key);
                self.log.pin(at.segment, -1, -body_len);
                done_in.into_iter().for_each(|s| self.log.refer(s, at.segment));
            }
        }
    }

    pub(crate) fn note_put(&mut self, p: &PutMeta) {
        if p.value.is_empty() {
            self.values.remove(&p.name);
        } else {
            self.values.insert(p.name.clone(), p.value.clone());
        }
    }

    pub(crate) fn note_forget(&mut self, f: ForgetMeta) {
        if f.below == u64::MAX {
            self.seen.remove(&(f.origin, f.incarnation));
            return;
        }
        if let Some(seen) = self.seen.get_mut(&(f.origin, f.incarnation)) {
            *seen = seen.split_off(&f.below);
        }
    }

    /// Bytes of all segments.
    pub fn disk_bytes(&self) -> u64 {
        self.log.segments.values().map(|s| s.len).sum()
    }

    /// Bytes appended since opening.
    pub fn written_bytes(&self) -> u64 {
        self.log.written
    }

    /// Sequence of the last durable record.
    pub fn last_sequence(&self) -> u64 {
        self.log.next_sequence - 1
    }
}

/// Name of the value that is written when a spool that holds messages is opened, and when a group with messages failed: the
/// machine's boot. That it is durable is all that it says.
pub(crate) const OPENED: &str = "spool/opened";

fn full(e: &io::Error) -> SpoolError {
    match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => SpoolError::Full(e.to_string()),
        _ => SpoolError::Write(e.to_string()),
    }
}

impl Dirty {
    /// Changes to a message that only the index knows.
    pub(crate) fn of_index() -> Dirty {
        Dirty { indexed: true, ..Default::default() }
    }

    /// The summary of a message by its envelope, before any attempt.
    pub(crate) fn fresh_summary(&self, shard: u8) -> Option<Summary> {
        let location = self.location?;
        envelope_of(&self.envelope, |e| {
            let (windows, handoff) = (e.windows(), e.is_kept_by(shard));
            // What is kept for another shard waits for that alone: a time to wait for tells that this shard has tried it itself.
            let opens_ms = windows.as_ref().filter(|_| !handoff).map_or(0, |w| w.due_ms);
            let state = match e.moved.as_ref() {
                None => RecipientState { due_unix_ms: opens_ms, ..Default::default() },
                // What came from elsewhere brought its state along.
                Some(m) => RecipientState {
                    due_unix_ms: m.due_unix_ms.to_native().max(opens_ms),
                    delay_reports: m.delay_reports,
                    attempts: m.attempts,
                    last_reply: beginning(m.last_reply.as_str(), REPLY_BYTES_MAX).to_owned(),
                },
            };
            // A recipient that is only there to be bounced waits for no window.
            let of = |r: &ArchivedRecipient| match r.notify & ipc::message::notify::NOT_TO_BE_SENT {
                0 => state.clone(),
                _ => RecipientState { due_unix_ms: 0, ..state.clone() },
            };
            Summary {
                location,
                body_len: self.body_len,
                received_unix_ms: e.received_unix_ms.to_native(),
                handoff,
                notify_delay: e.recipients.iter().any(|r| r.notify & ipc::message::notify::DELAY != 0),
                alone: e.is_alone(),
                windows_end_ms: windows.map_or(0, |w| w.ends_ms),
                vmta: e.vmta.as_str().to_owned(),
                job: e.job_id.as_str().to_owned(),
                recipients: e
                    .recipients
                    .iter()
                    .map(|r| IndexedRecipient {
                        destination: r.destination.as_str().to_owned(),
                        done: false,
                        priority: ipc::message::priority(r.priority_given),
                        state: of(r),
                        state_segment: 0,
                    })
                    .collect(),
            }
        })
    }

    /// Applies the changes to a summary.
    pub(crate) fn merge_into(&self, s: &mut Summary) {
        if let Some(at) = self.location {
            s.location = at;
        }
        for (i, r) in s.recipients.iter_mut().enumerate() {
            if self.done.contains(&(i as u16)) {
                r.done = true;
                r.state = RecipientState::default();
                r.state_segment = 0;
            } else if let Some((state, segment)) = self.states.get(&(i as u16)) {
                r.state = state.clone();
                r.state_segment = *segment;
            }
        }
    }
}

/// Values kept with `put`, by name.
pub type Values = Vec<(String, Vec<u8>)>;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ipc::message::{BodyType, Envelope, HandoffId, MessageId, Recipient, Ret, SourceType, notify};
    use ipc::windows::Windows;

    use super::*;

    #[test]
    fn mail_with_windows_waits_for_them_but_not_for_another_shard() {
        let to = |notify| Recipient {
            address: "a@d.test".into(),
            destination: "d.test".into(),
            notify,
            priority_given: 0,
            given_again: 0,
            orcpt: String::new(),
        };
        let due = |origin: Option<u8>| {
            let mut e = Envelope {
                id: MessageId([1; 16]),
                received_unix_ms: 5,
                sender: String::new(),
                vmta: String::new(),
                job_id: String::new(),
                envid: String::new(),
                ret: Ret::Unset,
                body_type: BodyType::SevenBit,
                smtputf8: false,
                suppress_dsn: false,
                source_type: SourceType::Smtp,
                kept: 0,
                source_name: String::new(),
                source_ip: String::new(),
                local_ip: "192.0.2.1".into(),
                handoff: origin.map(|origin| HandoffId { origin, incarnation: 0, sequence: 1 }),
                asked: None,
                moved: None,
                recipients: vec![to(0), to(notify::NOT_TO_BE_SENT)],
            };
            e.set_windows(&Windows { due_ms: 900, ends_ms: 990, all: vec![(1, 2)] });
            let envelope = Bytes::copy_from_slice(&ipc::frame::archive(&e));
            let dirty = Dirty { location: Some(Location::default()), envelope, ..Default::default() };
            let s = dirty.fresh_summary(3).unwrap();
            assert_eq!(s.windows_end_ms, 990);
            s.recipients.iter().map(|r| r.state.due_unix_ms).collect::<Vec<_>>()
        };
        // Its own, what another shard handed to it, and what it keeps for another.
        assert_eq!((due(None), due(Some(1)), due(Some(3))), (vec![900, 0], vec![900, 0], vec![0, 0]));
    }
}

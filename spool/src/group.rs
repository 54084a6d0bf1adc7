//! A group: messages, outcomes and values that are written to the log together and made durable by one sync, and the
//! records that hold them there.

use bytes::Bytes;

use crate::layout::{DoneMeta, ForgetMeta, Kind, OUTCOMES_BYTES_MAX, PutMeta, REPLY_BYTES_MAX, UpdateMeta};
use crate::segment::Pending;

/// Bytes of one entry of an Update record without its reply, at most.
const UPDATE_ENTRY_BYTES: usize = 48;
/// Bytes of one entry of a Done record, at most.
const DONE_ENTRY_BYTES: usize = 16;
/// Bytes of a row beside its text, at most.
const ROW_BYTES: usize = 8;

/// A message to be made durable.
#[derive(Debug)]
pub struct NewMessage {
    /// Archived [`ipc::message::Envelope`], validated by the caller.
    pub envelope: Bytes,
    /// The content in two pieces: the header as changed, and the rest as received.
    pub body: [Bytes; 2],
    /// It may use the reserve, as a share of a message in progress may whose owner did not take it.
    pub in_progress: bool,
}

/// Recipients of one message that ended.
#[derive(Debug, Default)]
pub struct Settled {
    /// The message.
    pub key: u64,
    /// Their indexes in its envelope.
    pub recipients: Vec<u16>,
    /// Nothing is left of the message.
    pub last: bool,
    /// Accounting rows that belong to them.
    pub rows: Vec<Vec<u8>>,
}

/// What one group holds.
#[derive(Debug, Default)]
pub struct Group {
    /// Messages to store.
    pub store: Vec<NewMessage>,
    /// Reports of the outcomes below. Reports and outcomes are written together or not at all.
    pub reports: Vec<NewMessage>,
    /// Recipients that ended.
    pub done: DoneMeta,
    /// Recipients that will be tried again.
    pub update: UpdateMeta,
    /// Values to keep.
    pub put: Vec<PutMeta>,
    /// Handoffs that their origins will not repeat, and that need not be remembered.
    pub forget: Vec<ForgetMeta>,
    /// By origin, the handoffs that it may still repeat; all others of this origin are forgotten.
    pub open: Vec<(u8, Vec<(u32, u64)>)>,
}

impl Group {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.store.is_empty()
            && self.reports.is_empty()
            && self.done.is_empty()
            && self.update.is_empty()
            && self.put.is_empty()
            && self.forget.is_empty()
            && self.open.is_empty()
    }

    /// Adds recipients that ended.
    pub fn settle(&mut self, s: Settled) {
        self.done.entries.extend(s.recipients.iter().map(|r| (s.key, *r)));
        if s.last {
            self.done.settled.push(s.key);
        }
        self.done.rows.extend(s.rows);
    }
}

/// The record of a message to store.
pub(crate) fn message_record(m: &NewMessage) -> Pending {
    Pending { kind: Kind::Message, meta: m.envelope.clone(), body: m.body.clone() }
}

/// The records of a group's outcomes. None is larger than what is accepted when it is read.
pub(crate) fn outcome_records(group: &Group, records: &mut Vec<Pending>) {
    let (update, done) = (&group.update, &group.done);
    if !update.is_empty() {
        let entries = update.entries.iter().map(|e| UPDATE_ENTRY_BYTES + e.state.last_reply.len()).sum();
        rows_apart(&update.rows, entries, records);
        let rows = if records_whole(&update.rows, entries) { update.rows.clone() } else { Vec::new() };
        let mut parts = update.entries.chunks(OUTCOMES_BYTES_MAX / (UPDATE_ENTRY_BYTES + REPLY_BYTES_MAX));
        let first = parts.next().unwrap_or_default().to_vec();
        if !first.is_empty() || !rows.is_empty() {
            records.push(Pending::of(Kind::Update, ipc::frame::archive(&UpdateMeta { entries: first, rows })));
        }
        for p in parts {
            let meta = UpdateMeta { entries: p.to_vec(), rows: Vec::new() };
            records.push(Pending::of(Kind::Update, ipc::frame::archive(&meta)));
        }
    }
    if !done.is_empty() {
        let entries = DONE_ENTRY_BYTES * (done.entries.len() + done.settled.len());
        if records_whole(&done.rows, entries) {
            records.push(Pending::of(Kind::Done, ipc::frame::archive(done)));
        } else {
            rows_apart(&done.rows, entries, records);
            // That a message is settled comes after the last of its recipients.
            let of_entries = done.entries.chunks(OUTCOMES_BYTES_MAX / DONE_ENTRY_BYTES);
            let of_settled = done.settled.chunks(OUTCOMES_BYTES_MAX / DONE_ENTRY_BYTES);
            let metas = of_entries
                .map(|e| DoneMeta { entries: e.to_vec(), ..Default::default() })
                .chain(of_settled.map(|s| DoneMeta { settled: s.to_vec(), ..Default::default() }));
            records.extend(metas.map(|m| Pending::of(Kind::Done, ipc::frame::archive(&m))));
        }
    }
    for p in &group.put {
        records.push(Pending::of(Kind::Put, ipc::frame::archive(p)));
    }
    for f in &group.forget {
        records.push(Pending::of(Kind::Forget, ipc::frame::archive(f)));
    }
}

/// Whether rows and entries go into one record.
fn records_whole(rows: &[Vec<u8>], entries: usize) -> bool {
    entries + rows.iter().map(|r| r.len() + ROW_BYTES).sum::<usize>() <= OUTCOMES_BYTES_MAX
}

/// Rows that do not go into one record with their entries: before them, for of a group that a
/// crash tears the beginning is kept, and a row must not be lost.
fn rows_apart(rows: &[Vec<u8>], entries: usize, records: &mut Vec<Pending>) {
    if records_whole(rows, entries) {
        return;
    }
    let record = |rows| Pending::of(Kind::Update, ipc::frame::archive(&UpdateMeta { rows, ..Default::default() }));
    let mut part = Vec::new();
    let mut bytes = 0;
    for r in rows {
        bytes += r.len() + ROW_BYTES;
        if bytes > OUTCOMES_BYTES_MAX && !part.is_empty() {
            records.push(record(std::mem::take(&mut part)));
            bytes = r.len() + ROW_BYTES;
        }
        part.push(r.clone());
    }
    if !part.is_empty() {
        records.push(record(part));
    }
}

//! Messages in memory.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use ipc::message::ArchivedEnvelope;
use rkyv::util::AlignedVec;

use super::job::JobId;
use crate::deliver::signing::Signed;
use crate::dkim::request::Request;
use crate::prepare::kept;

/// What the allocations of one [`Content`] cost beside what lies in them: its own, the envelope, two
/// pieces of content, each with a header, a count of its owners, and what rounding up takes.
const ALLOCATIONS_BYTES: usize = 160;

/// Envelope and content held in memory.
#[derive(Debug)]
pub struct Content {
    /// Archived [`ipc::message::Envelope`], validated.
    pub envelope: AlignedVec<16>,
    /// Header as changed, and the rest, as it goes out.
    pub body: [Bytes; 2],
    /// What it asks of its signature.
    pub dkim: Option<Request>,
    /// Names of its fields that do not go out, whatever the path.
    pub removed: Vec<String>,
    /// The content with the fields that are kept in front.
    stored: [Bytes; 2],
    /// The same without fields that do not go out and behind its DKIM signatures, by what asked for that: made once for all recipients
    /// and attempts as long as it is held.
    pub signed: RefCell<Vec<Signed>>,
}

impl Content {
    /// What was stored.
    pub fn new(envelope: AlignedVec<16>, body: [Bytes; 2]) -> Content {
        let marks = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&envelope).map_or(0, |e| e.kept);
        let stored = body.clone();
        let (body, dkim, removed) = kept::part(body, marks);
        Content { envelope, body, dkim, removed, stored, signed: RefCell::default() }
    }

    /// Bytes of memory that it holds, about.
    pub fn held_bytes(&self) -> u64 {
        let [header, rest] = self.stored.each_ref().map(Bytes::len);
        // The header as it came lies in one buffer with the rest.
        let own = self.envelope.capacity() + 2 * header + rest;
        (own + size_of::<Content>() + ALLOCATIONS_BYTES) as u64
    }

    /// The content as it is stored.
    pub fn stored(&self) -> &[Bytes; 2] {
        &self.stored
    }
}

/// A message in this shard. Kept small: this and its entry are all that a deferred message
/// costs in memory.
#[derive(Debug)]
pub struct Message {
    /// Its key in the spool.
    pub key: u64,
    /// When it was accepted, Unix milliseconds.
    pub received_ms: i64,
    /// Bytes of content.
    pub body_len: u32,
    /// Recipients that have not ended.
    pub left: u16,
    /// The sender of some of them wants to hear of delays.
    pub notify_delay: bool,
    /// What it belongs to, see [`Scheduler::add`].
    pub job: JobId,
    /// Envelope and content until the first attempt, within the memory budget.
    pub content: Option<Rc<Content>>,
}

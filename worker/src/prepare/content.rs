//! Envelope and content of a message in memory, as they go out.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use ipc::message::ArchivedEnvelope;
use ipc::rules::DomainRules;
use rkyv::util::AlignedVec;
use tokio::sync::OnceCell;

use super::kept::{self, Kept};
use crate::schedule::message::HeldContent;

/// What the allocations of one [`Content`] cost beside what lies in them: its own, the envelope, two
/// pieces of content, each with a header, a count of its owners, and what rounding up takes.
const ALLOCATIONS_BYTES: usize = 160;

/// Content as it goes by some paths.
pub struct Signed {
    /// Generation of the configuration.
    pub generation: u64,
    /// When it was made, Unix seconds.
    pub at_s: i64,
    /// By the rules of the path.
    pub rules: Rc<DomainRules>,
    /// Through a virtual MTA.
    pub vmta: Rc<str>,
    /// And its pool, where mail chose one.
    pub pool: Option<Rc<str>>,
    /// Others who ask while it is being made wait for it.
    pub body: Rc<OnceCell<[Bytes; 2]>>,
}

impl std::fmt::Debug for Signed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signed").field("vmta", &self.vmta).finish_non_exhaustive()
    }
}

/// Envelope and content held in memory.
#[derive(Debug)]
pub struct Content {
    /// Archived [`ipc::message::Envelope`], validated.
    pub envelope: AlignedVec<16>,
    /// Header as changed, and the rest, as it goes out.
    pub body: [Bytes; 2],
    /// What is known of how it goes out.
    pub kept: Kept,
    /// The content with the fields that are kept in front.
    stored: [Bytes; 2],
    /// The same with its header as it goes out and behind its DKIM signatures, by what asked for that: made once for all recipients
    /// and attempts as long as it is held.
    pub signed: RefCell<Vec<Signed>>,
}

impl Content {
    /// What was stored.
    pub fn new(envelope: AlignedVec<16>, body: [Bytes; 2]) -> Content {
        let marks = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&envelope).map_or(0, |e| e.kept);
        let stored = body.clone();
        let (body, kept) = kept::part(body, marks);
        Content { envelope, body, kept, stored, signed: RefCell::default() }
    }

    /// The content as it is stored.
    pub fn stored(&self) -> &[Bytes; 2] {
        &self.stored
    }
}

impl HeldContent for Content {
    fn held_bytes(&self) -> u64 {
        let [header, rest] = self.stored.each_ref().map(Bytes::len);
        // The header as it came lies in one buffer with the rest.
        let own = self.envelope.capacity() + 2 * header + rest;
        (own + size_of::<Content>() + ALLOCATIONS_BYTES) as u64
    }
}

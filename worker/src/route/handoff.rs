//! The origin's side of the mesh: shares that are offered to other shards, and what these say. [`super::links`] sends them.
//!
//! A share has an identity ([`HandoffId`]) that never comes again. As long as an answer to it may
//! be lost it is *open* at the shard that was asked, which remembers it that long ([`mesh::OPEN`]):
//! a repeat is known by its identity, and by nothing else.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use bytes::Bytes;
use ipc::dice;
use ipc::dice::HashMap;
use ipc::frame::Header;
use ipc::limits::{HANDOFFS_IN_FLIGHT_MAX, MESH_BACKLOG_BYTES_MAX};
use ipc::mesh::{self, Open};
use ipc::message::HandoffId;
use tokio::sync::{Notify, oneshot};

/// What an owner says of a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It has it on disk.
    Taken,
    /// It has no room for more, so neither has this shard.
    Full,
    /// It does not have it, and cannot take it now.
    Refused,
    /// It may have it one day: an earlier offer is being stored.
    Unknown,
    /// It does not have it and will not take it: it is being retired.
    Never,
}

/// A frame waiting to be written.
pub(super) struct OutgoingFrame {
    pub header: [u8; ipc::frame::HEADER_BYTES],
    pub archive: Bytes,
    pub body: [Bytes; 2],
}

impl OutgoingFrame {
    pub fn len(&self) -> usize {
        self.header.len() + self.archive.len() + self.body[0].len() + self.body[1].len()
    }
}

/// Frames that wait to be written to one shard, and the offers whose answers are waited for.
#[derive(Default)]
pub(super) struct Link {
    pub queue: RefCell<VecDeque<OutgoingFrame>>,
    pub queued_bytes: Cell<usize>,
    pub waiting: RefCell<HashMap<u64, oneshot::Sender<Answer>>>,
    pub wake: Notify,
    pub connected: Cell<bool>,
    pub started: Cell<bool>,
    /// Offers since the owner was last told what is open.
    untold: Cell<u32>,
}

impl Link {
    /// Its connection ended.
    pub fn ended(&self) {
        self.connected.set(false);
        // Each task that waits for an answer hears that there is none, and keeps its share here or offers it again.
        self.waiting.borrow_mut().clear();
        self.queue.borrow_mut().clear();
        self.queued_bytes.set(0);
    }

    fn send(&self, frame: OutgoingFrame) {
        self.queued_bytes.set(self.queued_bytes.get() + frame.len());
        self.queue.borrow_mut().push_back(frame);
        self.wake.notify_one();
    }
}

/// Offers after which an owner is told again what is open.
const TOLD_EVERY: u32 = 1024;

/// Identities that may still be offered, by the shard that is asked and by incarnation.
#[derive(Debug, Default)]
struct OpenShares(RefCell<HashMap<u8, BTreeMap<u32, BTreeSet<u64>>>>);

/// A share that may be offered to one shard, again and again until this is dropped.
#[derive(Debug)]
pub struct Share {
    /// Its identity.
    pub id: HandoffId,
    /// The shard that it was offered to.
    pub owner: u8,
    open: Rc<OpenShares>,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut open = self.open.0.borrow_mut();
        let Some(of_owner) = open.get_mut(&self.owner) else { return };
        if let Some(sequences) = of_owner.get_mut(&self.id.incarnation) {
            sequences.remove(&self.id.sequence);
            if sequences.is_empty() {
                of_owner.remove(&self.id.incarnation);
            }
        }
    }
}

/// All handoffs of this shard.
pub struct Handoffs {
    links: RefCell<HashMap<u8, Rc<Link>>>,
    origin: u8,
    incarnation: u32,
    next: Cell<u64>,
    next_offer: Cell<u64>,
    open: Rc<OpenShares>,
    /// Kept shares found at start have been read: what is open is known.
    all_known: Cell<bool>,
}

impl std::fmt::Debug for Handoffs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handoffs").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl Handoffs {
    /// Those of one process of shard `origin`.
    pub fn new(origin: u8) -> Self {
        Handoffs {
            links: RefCell::default(),
            origin,
            // 0 stands for versions that had no incarnations.
            incarnation: (dice::number() as u32).max(1),
            next: Cell::new(1),
            next_offer: Cell::new(1),
            open: Rc::default(),
            all_known: Cell::new(false),
        }
    }

    /// A new share for `owner`.
    pub fn new_share(&self, owner: u8) -> Share {
        let sequence = self.next.get();
        self.next.set(sequence + 1);
        self.share(owner, HandoffId { origin: self.origin, incarnation: self.incarnation, sequence })
    }

    /// A share that was given its identity before.
    pub fn share(&self, owner: u8, id: HandoffId) -> Share {
        let mut open = self.open.0.borrow_mut();
        open.entry(owner).or_default().entry(id.incarnation).or_default().insert(id.sequence);
        Share { id, owner, open: Rc::clone(&self.open) }
    }

    pub(super) fn link(&self, owner: u8) -> Rc<Link> {
        Rc::clone(self.links.borrow_mut().entry(owner).or_default())
    }

    /// Whether a shard can be asked now.
    pub fn is_connected(&self, owner: u8) -> bool {
        self.links.borrow().get(&owner).is_some_and(|l| l.connected.get())
    }

    /// Shards that may still be offered a share, and may have it already; `None` before all kept shares are known.
    pub fn open_at(&self) -> Option<Vec<u8>> {
        let open = self.open.0.borrow();
        let any =
            open.iter().filter(|(_, incarnations)| !incarnations.is_empty() && !ipc::planted!("open-shares-untold"));
        self.all_known.get().then(|| any.map(|(owner, _)| *owner).collect())
    }

    /// What one owner is to remember.
    fn to_remember(&self, owner: u8) -> Open {
        let open = self.open.0.borrow();
        let mut from = vec![(self.incarnation, self.next.get())];
        for (incarnation, sequences) in open.get(&owner).into_iter().flatten() {
            let Some(first) = sequences.first() else { continue };
            match *incarnation == self.incarnation {
                true => from[0].1 = *first,
                false => from.push((*incarnation, *first)),
            }
        }
        Open { from }
    }

    /// Tells an owner what it need not remember any more.
    pub(super) fn tell_open(&self, owner: u8, link: &Link) {
        if !self.all_known.get() || !link.connected.get() {
            return;
        }
        link.untold.set(0);
        let archive = Bytes::copy_from_slice(&ipc::frame::archive(&self.to_remember(owner)));
        let header = Header::new(mesh::OPEN, archive.len(), 0).encode();
        link.send(OutgoingFrame { header, archive, body: [Bytes::new(), Bytes::new()] });
    }

    /// Kept shares found at start are known from now on: owners can forget all others.
    pub fn all_known(&self) {
        self.all_known.set(true);
        let links: Vec<(u8, Rc<Link>)> = self.links.borrow().iter().map(|(o, l)| (*o, Rc::clone(l))).collect();
        links.iter().for_each(|(owner, link)| self.tell_open(*owner, link));
    }

    /// Offers a share; `None` when it cannot be sent now: the owner is not connected, or too much
    /// waits for it. `kind` is [`mesh::HANDOFF`], or [`mesh::HANDOFF_KEPT`] for a share that is on disk here.
    pub fn offer(
        &self,
        kind: u8,
        share: &Share,
        archive: Bytes,
        body: &[Bytes; 2],
    ) -> Option<oneshot::Receiver<Answer>> {
        let link = self.link(share.owner);
        if !link.connected.get() || link.queued_bytes.get() > MESH_BACKLOG_BYTES_MAX {
            return None;
        }
        if link.waiting.borrow().len() >= HANDOFFS_IN_FLIGHT_MAX {
            // Offers whose sender has stopped waiting for the answer are taken out, to make room.
            link.waiting.borrow_mut().retain(|_, tx| !tx.is_closed());
            if link.waiting.borrow().len() >= HANDOFFS_IN_FLIGHT_MAX {
                return None;
            }
        }
        link.untold.set(link.untold.get() + 1);
        if link.untold.get() >= TOLD_EVERY {
            self.tell_open(share.owner, &link);
        }
        let (tx, rx) = oneshot::channel();
        let offer = self.next_offer.get();
        self.next_offer.set(offer + 1);
        let mut h = Header::new(kind, archive.len(), body[0].len() + body[1].len());
        h.a = offer;
        link.waiting.borrow_mut().insert(offer, tx);
        link.send(OutgoingFrame { header: h.encode(), archive, body: body.clone() });
        Some(rx)
    }

    /// Tells a shard something that needs neither a value nor an answer, unless the same waits to be written already. A shard that is not
    /// connected does without.
    pub fn tell(&self, owner: u8, kind: u8) {
        let Some(link) = self.links.borrow().get(&owner).filter(|l| l.connected.get()).map(Rc::clone) else { return };
        let header = Header::new(kind, 0, 0).encode();
        if link.queue.borrow().back().is_none_or(|last| last.header != header) {
            link.send(OutgoingFrame { header, archive: Bytes::new(), body: [Bytes::new(), Bytes::new()] });
        }
    }

    /// Tells every connected shard something that needs no answer. A shard that is not connected does without.
    pub fn tell_all(&self, kind: u8, archive: &Bytes) {
        for link in self.links.borrow().values().filter(|l| l.connected.get()) {
            if link.queued_bytes.get() > MESH_BACKLOG_BYTES_MAX {
                continue;
            }
            let header = Header::new(kind, archive.len(), 0).encode();
            link.send(OutgoingFrame { header, archive: archive.clone(), body: [Bytes::new(), Bytes::new()] });
        }
    }
}

//! The origin's side of the mesh: shares offered to their owners, and shares kept for
//! owners that are away.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io::IoSlice;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use ipc::frame::Header;
use ipc::limits::{HANDOFFS_IN_FLIGHT_MAX, MESH_BACKLOG_BYTES_MAX};
use ipc::mesh::{self, Refusal};
use ipc::stream::FrameReader;
use spool::Spool;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::{Notify, oneshot};

use crate::shard::Shard;

/// What an owner says of a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It has it on disk.
    Taken,
    /// It has no room for more, so neither has this shard.
    Full,
    /// It cannot take it now.
    Refused,
}

/// A frame waiting to be written.
struct Outgoing {
    header: [u8; ipc::frame::HEADER_BYTES],
    archive: Bytes,
    body: [Bytes; 2],
}

impl Outgoing {
    fn len(&self) -> usize {
        self.header.len() + self.archive.len() + self.body[0].len() + self.body[1].len()
    }
}

#[derive(Default)]
struct Link {
    queue: RefCell<VecDeque<Outgoing>>,
    queued_bytes: Cell<usize>,
    waiting: RefCell<HashMap<u64, oneshot::Sender<Answer>>>,
    wake: Notify,
    connected: Cell<bool>,
    started: Cell<bool>,
}

/// A share kept under handoff.
#[derive(Debug, Clone, Copy)]
struct Kept {
    key: u64,
    recipients: u64,
    /// Found at start: its sequence is known only once it is read, and until then the
    /// watermark must not pass it, or the owner would take it for a repeat.
    recovered: bool,
}

/// Name, among the spool's values, of the sequence below which earlier processes used theirs.
const RESERVED_AS: &str = "handoffs/reserved";
/// Sequences that are reserved at once. Half of them are left when the next are, long before which
/// the reservation is on disk.
const RESERVED: u64 = 1 << 32;

/// All handoffs of this shard.
#[derive(Default)]
pub struct Handoffs {
    links: RefCell<HashMap<u8, Rc<Link>>>,
    next: Cell<u64>,
    /// Sequences below this one are reserved by the spool.
    reserved: Cell<u64>,
    /// Sequences that may still be repeated.
    open: RefCell<BTreeSet<u64>>,
    /// Kept shares by owner; those found at start have their sequences in their envelopes.
    kept: RefCell<HashMap<u8, VecDeque<Kept>>>,
    kept_recipients: Cell<u64>,
    /// Shares found at start whose sequences are not known yet: nothing may be forgotten.
    recovered: Cell<u64>,
    kept_wake: Notify,
}

impl std::fmt::Debug for Handoffs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handoffs").field("kept", &self.kept_recipients).finish_non_exhaustive()
    }
}

impl Handoffs {
    /// Begins above all sequences of earlier processes, whatever became of the clock: what they may have
    /// used is among the spool's values. Only where that is lost with the spool the time in
    /// microseconds has to do.
    pub fn start(&self, spool: &Spool, values: &[(String, Vec<u8>)], now_ns: u128) {
        let kept = values.iter().find(|(name, _)| name == RESERVED_AS);
        let used = kept.and_then(|(_, v)| v.as_slice().try_into().ok()).map_or(0, u64::from_le_bytes);
        self.next.set(used.max((now_ns / 1000) as u64));
        self.reserve(spool);
    }

    fn reserve(&self, spool: &Spool) {
        self.reserved.set(self.next.get().saturating_add(RESERVED));
        spool.put(RESERVED_AS, self.reserved.get().to_le_bytes().to_vec());
    }

    /// The identity of the next handoff.
    pub fn next_sequence(&self, spool: &Spool) -> u64 {
        let n = self.next.get();
        self.next.set(n + 1);
        if self.reserved.get() - n.min(self.reserved.get()) < RESERVED / 2 {
            self.reserve(spool);
        }
        self.open.borrow_mut().insert(n);
        n
    }

    /// Recipients kept for other shards.
    pub fn kept_recipients(&self) -> u64 {
        self.kept_recipients.get()
    }

    /// A handoff is settled and will not be repeated.
    pub fn confirmed(&self, sequence: u64) {
        self.open.borrow_mut().remove(&sequence);
    }

    fn watermark(&self) -> u64 {
        if self.recovered.get() > 0 {
            return 0;
        }
        self.open.borrow().first().copied().unwrap_or(self.next.get())
    }

    fn link(&self, owner: u8) -> Rc<Link> {
        Rc::clone(self.links.borrow_mut().entry(owner).or_default())
    }

    /// Offers a share to its owner. Waiting for the answer fails at once when the owner is not connected or too much waits for it.
    pub fn offer(&self, owner: u8, sequence: u64, archive: Bytes, body: &[Bytes; 2]) -> oneshot::Receiver<Answer> {
        self.offer_as(mesh::HANDOFF, owner, sequence, archive, body)
    }

    /// Offers a share that is on disk here, see [`mesh::HANDOFF_KEPT`].
    pub fn offer_kept(&self, owner: u8, sequence: u64, archive: Bytes, body: &[Bytes; 2]) -> oneshot::Receiver<Answer> {
        self.offer_as(mesh::HANDOFF_KEPT, owner, sequence, archive, body)
    }

    fn offer_as(
        &self,
        kind: u8,
        owner: u8,
        sequence: u64,
        archive: Bytes,
        body: &[Bytes; 2],
    ) -> oneshot::Receiver<Answer> {
        let (tx, rx) = oneshot::channel();
        let link = self.link(owner);
        let full =
            link.queued_bytes.get() > MESH_BACKLOG_BYTES_MAX || link.waiting.borrow().len() >= HANDOFFS_IN_FLIGHT_MAX;
        if !link.connected.get() || full {
            link.wake.notify_one();
            return rx;
        }
        let mut h = Header::new(kind, archive.len(), body[0].len() + body[1].len());
        (h.a, h.b) = (sequence, self.watermark());
        let frame = Outgoing { header: h.encode(), archive, body: body.clone() };
        link.queued_bytes.set(link.queued_bytes.get() + frame.len());
        link.queue.borrow_mut().push_back(frame);
        link.waiting.borrow_mut().insert(sequence, tx);
        link.wake.notify_one();
        rx
    }

    /// Tells every shard that is connected something that none has to answer, or to know.
    pub fn tell_all(&self, kind: u8, archive: &Bytes) {
        for link in self.links.borrow().values().filter(|l| l.connected.get()) {
            if link.queued_bytes.get() > MESH_BACKLOG_BYTES_MAX {
                continue;
            }
            let header = Header::new(kind, archive.len(), 0).encode();
            let frame = Outgoing { header, archive: archive.clone(), body: [Bytes::new(), Bytes::new()] };
            link.queued_bytes.set(link.queued_bytes.get() + frame.len());
            link.queue.borrow_mut().push_back(frame);
            link.wake.notify_one();
        }
    }

    /// A share is durable here and will be passed on.
    pub fn kept(&self, owner: u8, key: u64, recipients: u64) {
        self.keep(owner, Kept { key, recipients, recovered: false });
    }

    fn keep(&self, owner: u8, kept: Kept) {
        let recipients = kept.recipients;
        self.kept_recipients.set(self.kept_recipients.get() + recipients);
        self.kept.borrow_mut().entry(owner).or_default().push_back(kept);
        self.kept_wake.notify_one();
    }

    /// A kept share was found when the spool opened.
    pub fn recovered(&self, owner: u8, key: u64, recipients: u64) {
        self.recovered.set(self.recovered.get() + 1);
        self.keep(owner, Kept { key, recipients, recovered: true });
    }
}

/// Connects to every other shard of the map, now and whenever it changes.
pub fn keep_links(shard: &Rc<Shard>) {
    let map = Rc::clone(&shard.map.borrow());
    let all = map.shards.iter().chain(&map.previous).copied();
    for owner in all.filter(|s| *s != shard.number) {
        let link = shard.handoffs.link(owner);
        if !link.started.replace(true) {
            tokio::task::spawn_local(run_link(Rc::clone(shard), owner, link));
        }
    }
}

async fn run_link(shard: Rc<Shard>, owner: u8, link: Rc<Link>) {
    loop {
        let known = {
            let map = shard.map.borrow();
            map.shards.contains(&owner) || map.previous.contains(&owner)
        };
        if !known {
            link.started.set(false);
            return;
        }
        let path = shard.socket_of(owner);
        if let Ok(io) = UnixStream::connect(&path).await {
            link.connected.set(true);
            shard.handoffs.kept_wake.notify_one();
            if let Err(e) = speak(&shard, &link, io).await {
                tracing::info!(owner, error = %e, "mesh connection ended");
            }
            link.connected.set(false);
            // Unanswered shares are kept by those who wait for them.
            link.waiting.borrow_mut().clear();
            link.queue.borrow_mut().clear();
            link.queued_bytes.set(0);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn speak(shard: &Rc<Shard>, link: &Rc<Link>, io: UnixStream) -> Result<(), ipc::frame::FrameError> {
    let (mut read, mut write) = io.into_split();
    let hello = ipc::frame::archive(&mesh::Hello { shard: Some(shard.number), epoch: shard.map.borrow().epoch });
    write.write_all(&Header::new(mesh::HELLO, hello.len(), 0).encode()).await?;
    write.write_all(&hello).await?;
    let answers = async {
        let mut frames = FrameReader::default();
        while let Some(f) = frames.next(&mut read).await? {
            match f.header.kind {
                mesh::ACCEPTED | mesh::REFUSED => {
                    let answer = match f.header.kind {
                        mesh::ACCEPTED => Answer::Taken,
                        _ => match ipc::frame::unarchive::<Refusal>(mesh::REFUSED, &f.archive)? {
                            Refusal::Full => Answer::Full,
                            _ => Answer::Refused,
                        },
                    };
                    if let Some(tx) = link.waiting.borrow_mut().remove(&f.header.a) {
                        // Who asked may have stopped waiting and kept the share.
                        let _ = tx.send(answer);
                    }
                }
                k => return Err(ipc::frame::FrameError::Kind(k)),
            }
        }
        Ok(())
    };
    let frames = async {
        loop {
            let batch: Vec<Outgoing> = {
                let mut q = link.queue.borrow_mut();
                let n = q.len().min(64);
                q.drain(..n).collect()
            };
            if batch.is_empty() {
                link.wake.notified().await;
                continue;
            }
            let bytes: usize = batch.iter().map(Outgoing::len).sum();
            let parts = batch.iter().flat_map(|f| [&f.header[..], &f.archive, &f.body[0], &f.body[1]]);
            let mut slices: Vec<IoSlice<'_>> = parts.filter(|p| !p.is_empty()).map(IoSlice::new).collect();
            let mut left = &mut slices[..];
            while !left.is_empty() {
                let n = write.write_vectored(left).await?;
                if n == 0 {
                    return Err(ipc::frame::FrameError::Truncated);
                }
                IoSlice::advance_slices(&mut left, n);
            }
            link.queued_bytes.set(link.queued_bytes.get().saturating_sub(bytes));
        }
    };
    tokio::select! { r = answers => r, r = frames => r }
}

/// Passes kept shares on, oldest first, whenever their owner is there.
pub async fn pass_on(shard: Rc<Shard>) {
    loop {
        let owners: Vec<u8> =
            shard.handoffs.kept.borrow().iter().filter(|(_, q)| !q.is_empty()).map(|(o, _)| *o).collect();
        let mut progress = false;
        for recorded in owners {
            let Some(kept) = shard.handoffs.kept.borrow_mut().get_mut(&recorded).and_then(VecDeque::pop_front) else {
                continue;
            };
            match pass_one(&shard, kept).await {
                true => {
                    progress = true;
                    let h = &shard.handoffs;
                    h.kept_recipients.set(h.kept_recipients.get().saturating_sub(kept.recipients));
                }
                false => shard.handoffs.kept.borrow_mut().entry(recorded).or_default().push_front(kept),
            }
        }
        if !progress {
            let _ = tokio::time::timeout(Duration::from_millis(250), shard.handoffs.kept_wake.notified()).await;
        }
    }
}

/// Offers one kept share to whoever owns its destination now; true when it is settled here.
async fn pass_one(shard: &Rc<Shard>, kept: Kept) -> bool {
    let (envelope, body) = match shard.spool.read(kept.key).await {
        Ok(m) => m,
        Err(e) => {
            tracing::error!(key = kept.key, error = %e, "a share kept under handoff cannot be read");
            return matches!(e, spool::SpoolError::Unreadable { .. });
        }
    };
    let mut aligned = rkyv::util::AlignedVec::<16>::with_capacity(envelope.len());
    aligned.extend_from_slice(&envelope);
    let Ok(e) = rkyv::access::<ipc::message::ArchivedEnvelope, rkyv::rancor::Error>(&aligned) else { return true };
    let (Some(sequence), Some(destination)) =
        (e.handoff.as_ref().map(|h| h.sequence.to_native()), e.recipients.first().map(|r| r.destination.as_str()))
    else {
        return true;
    };
    let all: Vec<u16> = (0..e.recipients.len() as u16).collect();
    let owner = {
        let map = shard.map.borrow();
        let there = |s: u8| map.shards.contains(&s) || shard.handoffs.link(s).connected.get();
        let asked = e.asked.as_ref().copied().filter(|s| *s != shard.number && there(*s));
        asked.unwrap_or_else(|| map.taker(destination, shard.next_turn()))
    };
    shard.handoffs.open.borrow_mut().insert(sequence);
    let taken = if owner == shard.number {
        // From now on it is no share: kept as one it would be stored anew at each start.
        let own = rkyv::deserialize::<ipc::message::Envelope, rkyv::rancor::Error>(e);
        let Ok(own) = own.map(|e| ipc::message::Envelope { handoff: None, asked: None, ..e }) else { return true };
        let own = ipc::frame::archive(&own);
        crate::route::submit::store_archived(shard, own, [body, Bytes::new()], true).await.is_ok()
    } else {
        let answer = shard.handoffs.offer_kept(owner, sequence, Bytes::from(envelope), &[body, Bytes::new()]);
        matches!(tokio::time::timeout(Duration::from_secs(5), answer).await, Ok(Ok(Answer::Taken)))
    };
    if taken {
        shard.spool.settle(spool::Settled { key: kept.key, recipients: all, last: true, rows: Vec::new() });
        shard.handoffs.confirmed(sequence);
        let h = &shard.handoffs;
        h.recovered.set(h.recovered.get().saturating_sub(u64::from(kept.recovered)));
    }
    taken
}

//! Shares that this shard accepted for others and keeps on disk until their owners have them, in memory. [`super::keep`]
//! passes them on.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use ipc::dice::{HashMap, HashSet};
use ipc::message::{ArchivedEnvelope, MessageId};
use rkyv::util::AlignedVec;
use spool::Recovered;
use tokio::sync::Notify;

use super::handoff::Share;

/// Shares that are with one owner at once.
const AT_ONCE: usize = 32;

/// A share kept under handoff.
#[derive(Debug)]
pub(super) struct Kept {
    /// Its number in the spool.
    pub key: u64,
    pub message: MessageId,
    pub recipients: u64,
    pub share: Share,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Keeping {
    /// Message and the shard that is asked, by key; also of those that are with their owner right now.
    all: RefCell<HashMap<u64, (MessageId, u8)>>,
    /// By the shard that is asked.
    pub(super) by_owner: RefCell<HashMap<u8, VecDeque<Kept>>>,
    /// Found at start and not read yet.
    pub(super) found: RefCell<VecDeque<Recovered>>,
    /// By the key of a share that may be found at start: the shard that it was offered to last, where it names another.
    pub(super) noted: RefCell<HashMap<u64, u8>>,
    recipients: Cell<u64>,
    /// Owners that are being offered some.
    pub(super) passing: RefCell<HashSet<u8>>,
    /// There is something to do.
    pub wake: Notify,
}

impl Keeping {
    /// Recipients kept for other shards.
    pub fn recipients(&self) -> u64 {
        self.recipients.get()
    }

    /// A share is durable here and will be passed on.
    pub fn keep(&self, share: Share, key: u64, envelope: &AlignedVec<16>) {
        let known = with(envelope, |e| Some((MessageId(e.id.0), e.recipients.len() as u64)));
        let (message, recipients) = known.unwrap_or((MessageId([0; 16]), 0));
        self.recipients.set(self.recipients.get() + recipients);
        self.put_back([Kept { key, message, recipients, share }]);
    }

    /// Whether a share is kept.
    pub(super) fn has(&self, key: u64) -> bool {
        self.all.borrow().contains_key(&key)
    }

    /// Keys of the shares of a message, each with the shard that it is kept for.
    pub fn shares_of(&self, message: MessageId) -> Vec<(u64, u8)> {
        let all = self.all.borrow();
        all.iter().filter(|(_, (m, _))| *m == message).map(|(key, (_, owner))| (*key, *owner)).collect()
    }

    /// Shares that are to be offered again.
    pub(super) fn put_back(&self, all: impl IntoIterator<Item = Kept>) {
        for k in all {
            self.all.borrow_mut().insert(k.key, (k.message, k.share.owner));
            self.by_owner.borrow_mut().entry(k.share.owner).or_default().push_back(k);
        }
        self.wake.notify_one();
    }

    /// A kept share was found when the spool opened.
    pub fn found(&self, r: Recovered) {
        self.recipients.set(self.recipients.get() + r.recipients.len() as u64);
        self.found.borrow_mut().push_back(r);
    }

    /// Takes out of what was found at start, before it was read, what has one of these keys.
    pub fn take_found(&self, keys: &HashSet<u64>) -> Vec<Recovered> {
        let (taken, left): (Vec<_>, Vec<_>) = self.found.take().into_iter().partition(|r| keys.contains(&r.key));
        *self.found.borrow_mut() = left.into();
        taken.iter().for_each(|r| self.gone(r.key, r.recipients.len() as u64));
        taken
    }

    /// A share is not kept any more.
    pub(super) fn gone(&self, key: u64, recipients: u64) {
        self.all.borrow_mut().remove(&key);
        self.recipients.set(self.recipients.get().saturating_sub(recipients));
    }

    /// Some of those that one shard is to be offered.
    pub(super) fn take(&self, owner: u8) -> Vec<Kept> {
        let mut all = self.by_owner.borrow_mut();
        let Some(q) = all.get_mut(&owner) else { return Vec::new() };
        let n = q.len().min(AT_ONCE);
        let taken = q.drain(..n).collect();
        if q.is_empty() {
            all.remove(&owner);
        }
        taken
    }
}

/// Something of an envelope, unless it is damaged.
pub(super) fn with<T>(envelope: &AlignedVec<16>, f: impl FnOnce(&ArchivedEnvelope) -> Option<T>) -> Option<T> {
    rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(envelope).ok().and_then(f)
}

//! Mail of destinations that this shard does not own any more, after the shard map changed.
//!
//! Each new owner is handed its mail by a task of its own: one that is down holds up nobody
//! else's, and what waits for it stays in its queue.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use ipc::mesh;
use ipc::message::{ArchivedEnvelope, Envelope, Moved};
use spool::Settled;
use tokio::task::{JoinSet, spawn_local};
use tokio::time::{sleep, timeout};

use crate::deliver::conclusion::unreadable_in;
use crate::deliver::connection::load;
use crate::route::handoff::{Answer, is_there};
use crate::schedule::{Batch, Entry, QueueId};
use crate::shard::Shard;

/// How long a new owner may take for one message.
const OWNER_WAIT: Duration = Duration::from_secs(5);
/// Pause before an owner that did not take it is asked again.
const RETRY: Duration = Duration::from_millis(250);
/// Messages that are with one new owner at once: as many may be with both after a kill.
const AT_ONCE: usize = 8;

/// Moves under way.
#[derive(Debug, Default)]
pub struct Moves {
    /// Owners that are handed mail.
    owners: RefCell<HashSet<u8>>,
    /// Messages that an owner may have, and has not answered for.
    unanswered: Cell<usize>,
}

impl Moves {
    /// An orderly stop would leave a message with two shards.
    pub fn are_unanswered(&self) -> bool {
        self.unanswered.get() > 0
    }
}

/// A message that was offered.
struct Unanswered<'a>(&'a Moves);

impl<'a> Unanswered<'a> {
    fn new(moves: &'a Moves) -> Self {
        moves.unanswered.set(moves.unanswered.get() + 1);
        Unanswered(moves)
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        self.0.unanswered.set(self.0.unanswered.get() - 1);
    }
}

/// Hands over what belongs to others, whenever a map or late mail brings some.
pub async fn move_out(shard: Rc<Shard>) {
    while !shard.stopping() {
        let mut foreign: HashMap<u8, Vec<QueueId>> = HashMap::new();
        let mut any = false;
        {
            let map = shard.map.borrow();
            let s = shard.scheduler.borrow();
            let mine = |d: &str| map.is_owner(d, shard.number);
            for (id, q) in s.queues.iter().filter(|(_, q)| q.recipients > 0 && !mine(q.destination())) {
                any = true;
                if let Some(owner) = owner_of(&shard, q.destination()) {
                    foreign.entry(owner).or_default().push(id);
                }
            }
        }
        for (owner, queues) in foreign {
            if shard.moves.owners.borrow_mut().insert(owner) {
                let shard = Rc::clone(&shard);
                spawn_local(async move {
                    move_to(&shard, owner, queues).await;
                    shard.moves.owners.borrow_mut().remove(&owner);
                });
            }
        }
        if any {
            sleep(RETRY).await;
        } else {
            shard.foreign.notified().await;
        }
    }
}

/// An owner of a destination that can be handed its mail now.
fn owner_of(shard: &Shard, destination: &str) -> Option<u8> {
    let map = shard.map.borrow();
    let first = map.taker(destination, shard.next_turn());
    let can = |o: &u8| *o != shard.number && shard.handoffs.is_connected(*o);
    Some(first).filter(can).or_else(|| map.owners(destination).iter().find(can))
}

async fn move_to(shard: &Rc<Shard>, owner: u8, queues: Vec<QueueId>) {
    for id in queues {
        // Held, the queue opens no connection and gives none more to send; what is in
        // flight ends, and what it leaves is found in the next round.
        let mut entries = shard.scheduler.borrow_mut().drain(id).into_iter().peekable();
        let mut goes_on = true;
        while entries.peek().is_some() {
            let mut offers = JoinSet::new();
            for (entry, due) in entries.by_ref().take(AT_ONCE) {
                if !goes_on {
                    put_back(shard, id, entry, due);
                    continue;
                }
                let shard = Rc::clone(shard);
                offers.spawn_local(async move {
                    let moved = move_one(&shard, owner, id, entry, due).await;
                    if !moved {
                        put_back(&shard, id, entry, due);
                    }
                    moved
                });
            }
            while let Some(moved) = offers.join_next().await {
                goes_on &= moved.unwrap_or(false);
            }
        }
        if !goes_on {
            return;
        }
    }
}

fn put_back(shard: &Shard, id: QueueId, entry: Entry, due: i64) {
    let batch = Batch::of(id, 0, entry);
    shard.scheduler.borrow_mut().hold(&batch, &batch.recipients, due, batch.attempts);
}

/// Hands over one message; false when it stays for now.
async fn move_one(shard: &Rc<Shard>, owner: u8, id: QueueId, entry: Entry, due: i64) -> bool {
    let Some(key) = shard.scheduler.borrow().messages.get(entry.slot as usize).map(|m| m.key) else { return true };
    let content = match load(shard, entry.slot, key).await {
        Ok(c) => c,
        Err(e) => {
            // It waits, or is set aside: neither is a matter of this owner.
            unreadable_in(shard, &Batch::of(id, key, entry), &e);
            return true;
        }
    };
    let owned = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&content.envelope)
        .and_then(rkyv::deserialize::<Envelope, rkyv::rancor::Error>);
    let Ok(mut e) = owned else { return false };
    let state = shard.spool.state(key, entry.start).await.ok().flatten().unwrap_or_default();
    let range = usize::from(entry.start)..usize::from(entry.end).min(e.recipients.len());
    e.recipients = e.recipients[range].to_vec();
    let Some(destination) = shard.scheduler.borrow().queues.get(id).map(|q| Rc::clone(&q.key)) else { return true };
    if e.recipients.is_empty() {
        return true;
    }
    // Its domain may have rolled up since it was accepted.
    e.recipients.iter_mut().for_each(|r| r.destination = destination.as_ref().to_owned());
    let epoch = shard.map.borrow().epoch;
    let share = shard.handoffs.new_share(owner);
    e.handoff = Some(share.id);
    e.asked = Some(owner);
    let (delay_reports, attempts) = (state.delay_reports, state.attempts);
    e.moved = Some(Moved { due_unix_ms: due, delay_reports, attempts, last_reply: state.last_reply });
    let archive = Bytes::copy_from_slice(&ipc::frame::archive(&e));
    // An owner that had it on disk and whose answer was lost knows it by its identity, so the same
    // one is asked until it has answered: whoever it is moved to then gets it from there.
    let mut unanswered = None;
    loop {
        let offer = shard.handoffs.offer(mesh::HANDOFF_KEPT, &share, archive.clone(), content.stored());
        if let Some(answer) = offer {
            unanswered.get_or_insert_with(|| Unanswered::new(&shard.moves));
            match timeout(OWNER_WAIT, answer).await {
                Ok(Ok(Answer::Taken)) => break,
                // It says that it does not have it.
                Ok(Ok(Answer::Full | Answer::Refused)) => unanswered = None,
                _ => {}
            }
        }
        let may_have_it = unanswered.is_some() && is_there(shard, owner);
        if !may_have_it
            && (shard.stopping() || shard.map.borrow().epoch != epoch || !shard.handoffs.is_connected(owner))
        {
            return false;
        }
        sleep(RETRY).await;
    }
    let recipients: Vec<u16> = (entry.start..entry.end).collect();
    let last = shard.scheduler.borrow_mut().settle(id, entry.slot, recipients.len());
    shard.spool.settle(Settled { key, recipients, last, rows: Vec::new() });
    true
}

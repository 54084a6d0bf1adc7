//! Mail of destinations that this shard does not own any more, after the shard map changed.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use ipc::message::{ArchivedEnvelope, Envelope, HandoffId, Moved};
use spool::Settled;
use tokio::time::{sleep, timeout};

use crate::deliver::connection::load;
use crate::route::handoff::Answer;
use crate::schedule::{Batch, Entry, QueueId};
use crate::shard::Shard;

/// How long a new owner may take for one message.
const OWNER_WAIT: Duration = Duration::from_secs(5);
/// Pause before an owner that did not take it is asked again.
const RETRY: Duration = Duration::from_millis(250);

/// Hands over what belongs to others, whenever a map or late mail brings some: to each owner by a
/// task of its own, so that one which is away keeps nothing from the others.
pub async fn move_out(shard: Rc<Shard>) {
    let busy: Rc<RefCell<HashSet<u8>>> = Rc::default();
    while !shard.stopping() {
        let mut foreign: HashMap<u8, Vec<QueueId>> = HashMap::new();
        {
            let map = shard.map.borrow();
            let s = shard.scheduler.borrow();
            for (id, q) in s.queues.iter().filter(|(_, q)| q.recipients > 0) {
                if !map.is_owner(q.destination(), shard.number) {
                    foreign.entry(map.owner(q.destination())).or_default().push(id);
                }
            }
        }
        if foreign.is_empty() {
            shard.foreign.notified().await;
            continue;
        }
        for (owner, queues) in foreign {
            if busy.borrow_mut().insert(owner) {
                let (shard, busy) = (Rc::clone(&shard), Rc::clone(&busy));
                tokio::task::spawn_local(async move {
                    move_to_one(&shard, queues).await;
                    busy.borrow_mut().remove(&owner);
                });
            }
        }
        sleep(RETRY).await;
    }
}

/// Hands over queues of one owner.
async fn move_to_one(shard: &Rc<Shard>, queues: Vec<QueueId>) {
    for id in queues {
        // Another map may have given it back meanwhile.
        let is_foreign = {
            let s = shard.scheduler.borrow();
            s.queues.get(id).is_some_and(|q| !shard.map.borrow().is_owner(q.destination(), shard.number))
        };
        if !is_foreign {
            continue;
        }
        // Held, the queue opens no connection and gives none more to send; what is in
        // flight ends, and what it leaves is found in the next round.
        let entries = shard.scheduler.borrow_mut().drain(id);
        for (entry, due) in entries {
            if !move_one(shard, id, entry, due).await {
                let batch = Batch::of(id, 0, entry);
                shard.scheduler.borrow_mut().hold(&batch, &batch.recipients, due, batch.attempts);
            }
        }
    }
}

async fn move_one(shard: &Rc<Shard>, id: QueueId, entry: Entry, due: i64) -> bool {
    let Some(key) = shard.scheduler.borrow().messages.get(entry.slot as usize).map(|m| m.key) else { return true };
    let content = match load(shard, entry.slot, key).await {
        Ok(c) => c,
        Err(e) => {
            tracing::error!(key, error = %e, "message cannot be read to be handed over");
            let unreadable = matches!(e, spool::SpoolError::Unreadable { .. });
            if unreadable {
                // In quarantine: an operator's matter now, the others go on.
                shard.scheduler.borrow_mut().settle(id, entry.slot, entry.len() as usize);
            } else {
                sleep(RETRY).await;
            }
            return unreadable;
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
    let (epoch, owner) = {
        let map = shard.map.borrow();
        (map.epoch, map.taker(&destination, shard.next_turn()))
    };
    if owner == shard.number {
        return false;
    }
    let sequence = shard.handoffs.next_sequence(&shard.spool);
    e.handoff = Some(HandoffId { origin: shard.number, sequence });
    e.asked = Some(owner);
    let (delay_reports, attempts) = (state.delay_reports, state.attempts);
    e.moved = Some(Moved { due_unix_ms: due, delay_reports, attempts, last_reply: state.last_reply });
    let archive = Bytes::copy_from_slice(&ipc::frame::archive(&e));
    // An owner that had it on disk and whose answer was lost takes a repeat of the same
    // sequence for what it is, so the same one is offered until there is an answer.
    loop {
        let answer = shard.handoffs.offer_kept(owner, sequence, archive.clone(), content.stored());
        if matches!(timeout(OWNER_WAIT, answer).await, Ok(Ok(Answer::Taken))) {
            break;
        }
        if shard.stopping() || shard.map.borrow().epoch != epoch {
            shard.handoffs.confirmed(sequence);
            return false;
        }
        sleep(RETRY).await;
    }
    shard.handoffs.confirmed(sequence);
    let recipients: Vec<u16> = (entry.start..entry.end).collect();
    let last = shard.scheduler.borrow_mut().settle(id, entry.slot, recipients.len());
    shard.spool.settle(Settled { key, recipients, last, rows: Vec::new() });
    true
}

//! Mail of destinations that this shard does not own any more, after the shard map changed.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use ipc::message::{ArchivedEnvelope, Envelope, HandoffId};
use spool::Settled;
use tokio::time::{sleep, timeout};

use crate::deliver::connection::load;
use crate::schedule::{Entry, QueueId};
use crate::shard::Shard;

/// How long a new owner may take for one message.
const OWNER_WAIT: Duration = Duration::from_secs(5);
/// Pause before an owner that did not take it is asked again.
const RETRY: Duration = Duration::from_millis(250);

/// Hands over everything that belongs to others, until nothing is left or a newer map came.
pub async fn move_out(shard: Rc<Shard>) {
    let epoch = shard.map.borrow().epoch;
    loop {
        let foreign: Vec<QueueId> = {
            let map = shard.map.borrow();
            let s = shard.scheduler.borrow();
            let mine = |d: &str| map.owner(d) == shard.number;
            s.queues.iter().filter(|(_, q)| q.recipients > 0 && !mine(&q.destination)).map(|(id, _)| id).collect()
        };
        if foreign.is_empty() || shard.map.borrow().epoch != epoch || shard.stopping() {
            return;
        }
        for id in foreign {
            // Held, the queue opens no connection and gives none more to send; what is in
            // flight ends, and what it leaves is found in the next round.
            if let Some(q) = shard.scheduler.borrow_mut().queues.get_mut(id) {
                q.held = true;
            }
            let entries = shard.scheduler.borrow_mut().drain(id);
            for entry in entries {
                if !move_one(&shard, id, entry).await {
                    let all: Vec<u16> = (entry.start..entry.end).collect();
                    shard.scheduler.borrow_mut().put_back(id, entry.slot, &all);
                }
            }
        }
        sleep(RETRY).await;
    }
}

async fn move_one(shard: &Rc<Shard>, id: QueueId, entry: Entry) -> bool {
    let Some(key) = shard.scheduler.borrow().messages.get(entry.slot as usize).map(|m| m.key) else { return true };
    let content = match load(shard, entry.slot, key).await {
        Ok(c) => c,
        Err(e) => {
            tracing::error!(key, error = %e, "message cannot be read to be handed over");
            return false;
        }
    };
    let owned = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&content.envelope)
        .and_then(rkyv::deserialize::<Envelope, rkyv::rancor::Error>);
    let Ok(mut e) = owned else { return false };
    let range = usize::from(entry.start)..usize::from(entry.end).min(e.recipients.len());
    e.recipients = e.recipients[range].to_vec();
    let Some(owner) = e.recipients.first().map(|r| shard.map.borrow().owner(&r.destination)) else { return true };
    let sequence = shard.handoffs.next_sequence();
    e.handoff = Some(HandoffId { origin: shard.number, sequence });
    e.moved = true;
    let archive = Bytes::copy_from_slice(&ipc::frame::archive(&e));
    // An owner that had it on disk and whose answer was lost takes a repeat of the same
    // sequence for what it is, so the same one is offered until there is an answer.
    loop {
        let answer = shard.handoffs.offer(owner, sequence, archive.clone(), &content.body);
        if matches!(timeout(OWNER_WAIT, answer).await, Ok(Ok(true))) {
            break;
        }
        if shard.stopping() {
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

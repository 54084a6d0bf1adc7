//! Makes every share of a message durable before the client hears `250` (architecture,
//! "The life of a message" 4).

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use ipc::message::{Envelope, HandoffId};
use rkyv::util::AlignedVec;
use spool::layout::UpdateEntry;
use spool::{NewMessage, RecipientState, SpoolError};
use tokio::time::timeout;

use crate::route::handoff::Answer;
use crate::schedule::scheduler::Content;
use crate::shard::Shard;

/// How long an owner may take before the share is kept here.
const OWNER_WAIT: Duration = Duration::from_secs(1);

/// A share that is with its owner.
struct Offered {
    owner: u8,
    sequence: u64,
    envelope: AlignedVec<16>,
    answer: tokio::sync::oneshot::Receiver<Answer>,
}

/// Stores a message, here or with the owners of its destinations.
///
/// # Errors
/// [`SpoolError`] when nothing was accepted.
pub async fn submit(shard: &Rc<Shard>, envelope: Envelope, body: [Bytes; 2]) -> Result<(), SpoolError> {
    shard.check_room(envelope.recipients.len())?;
    let map = Rc::clone(&shard.map.borrow());
    let me = shard.number;
    let owner_of = |d: &str| if map.shards.is_empty() { me } else { map.owner(d) };
    let first = envelope.recipients.first().map_or(me, |r| owner_of(&r.destination));
    // Nearly all mail has one owner.
    if first == me && envelope.recipients.iter().all(|r| owner_of(&r.destination) == me) {
        return store_own(shard, envelope, body, false).await;
    }
    let mut owners: Vec<u8> = envelope.recipients.iter().map(|r| owner_of(&r.destination)).collect();
    owners.sort_unstable();
    owners.dedup();
    let share = |owner: u8| {
        let mut e = Envelope { recipients: Vec::new(), ..envelope.clone() };
        e.recipients = envelope.recipients.iter().filter(|r| owner_of(&r.destination) == owner).cloned().collect();
        e
    };
    let mut offered = Vec::new();
    for owner in owners.iter().copied().filter(|o| *o != me) {
        let sequence = shard.handoffs.next_sequence();
        let e = Envelope { handoff: Some(HandoffId { origin: me, sequence }), asked: Some(owner), ..share(owner) };
        let envelope = ipc::frame::archive(&e);
        let answer = shard.handoffs.offer(owner, sequence, Bytes::copy_from_slice(&envelope), &body);
        offered.push(Offered { owner, sequence, envelope, answer });
    }
    let mut own =
        if owners.contains(&me) { Some(store_own(shard, share(me), body.clone(), false).await) } else { None };
    let mut durable = matches!(own, Some(Ok(())));
    let mut left = Vec::new();
    for mut o in offered {
        match timeout(OWNER_WAIT, &mut o.answer).await {
            Ok(Ok(Answer::Taken)) => {
                shard.handoffs.confirmed(o.sequence);
                durable = true;
            }
            Ok(Ok(a)) => left.push((o, a)),
            _ => left.push((o, Answer::Refused)),
        }
    }
    if !durable && left.iter().all(|(_, a)| *a == Answer::Full) {
        // Nobody has any of it, so the client can be told.
        left.iter().for_each(|(o, _)| shard.handoffs.confirmed(o.sequence));
        let full = || SpoolError::Full("the spool of the destination's shard is full".into());
        return own.unwrap_or_else(|| Err(full()));
    }
    if matches!(own, Some(Err(SpoolError::Full(_)))) {
        // Others have, or may have, their shares: the reserve takes this one.
        own = Some(store_own(shard, share(me), body.clone(), true).await);
    }
    let mut result = own.unwrap_or(Ok(()));
    for (o, _) in left {
        let kept = keep(shard, o.owner, o.sequence, o.envelope, &body).await;
        if result.is_ok() {
            result = kept;
        }
    }
    result
}

async fn store_own(
    shard: &Rc<Shard>,
    envelope: Envelope,
    body: [Bytes; 2],
    in_progress: bool,
) -> Result<(), SpoolError> {
    let archive = ipc::frame::archive(&envelope);
    store_archived(shard, archive, body, in_progress).await.map(|_| ())
}

/// Stores an archived envelope that this shard owns, and queues it.
///
/// # Errors
/// [`SpoolError`]
pub async fn store_archived(
    shard: &Rc<Shard>,
    envelope: AlignedVec<16>,
    body: [Bytes; 2],
    in_progress: bool,
) -> Result<u64, SpoolError> {
    let message = NewMessage { envelope: Bytes::copy_from_slice(&envelope), body: body.clone(), in_progress };
    let key = shard.store(message).await?;
    keep_state(shard, key, &envelope);
    shard.enqueue(key, Rc::new(Content { envelope, body }));
    Ok(key)
}

/// Mail that moved here brings its recipients' state along.
fn keep_state(shard: &Rc<Shard>, key: u64, envelope: &AlignedVec<16>) {
    let Ok(e) = rkyv::access::<ipc::message::ArchivedEnvelope, rkyv::rancor::Error>(envelope) else { return };
    let Some(moved) = e.moved.as_ref().filter(|m| m.due_unix_ms > 0) else { return };
    let state = RecipientState {
        due_unix_ms: moved.due_unix_ms.to_native(),
        delay_reports: moved.delay_reports.to_native(),
        last_reply: moved.last_reply.as_str().to_owned(),
    };
    let of = |recipient| UpdateEntry { key, recipient, state: state.clone() };
    shard.spool.update((0..e.recipients.len() as u16).map(of).collect(), Vec::new());
}

/// Keeps a share that its owner did not take in time, to pass it on later.
async fn keep(
    shard: &Rc<Shard>,
    owner: u8,
    sequence: u64,
    envelope: AlignedVec<16>,
    body: &[Bytes; 2],
) -> Result<(), SpoolError> {
    let recipients = rkyv::access::<ipc::message::ArchivedEnvelope, rkyv::rancor::Error>(&envelope)
        .map_or(0, |e| e.recipients.len());
    let message = NewMessage { envelope: Bytes::copy_from_slice(&envelope), body: body.clone(), in_progress: true };
    match shard.store(message).await {
        Ok(key) => {
            shard.handoffs.kept(owner, key, recipients as u64);
            Ok(())
        }
        Err(e) => {
            shard.handoffs.confirmed(sequence);
            Err(e)
        }
    }
}

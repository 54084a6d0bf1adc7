//! Makes every share of a message durable before the client hears `250` (architecture,
//! "The life of a message" 4).

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use ipc::mesh;
use ipc::message::{ArchivedEnvelope, Envelope, Recipient};
use rkyv::util::AlignedVec;
use spool::{NewMessage, SpoolError};
use tokio::time::timeout;

use crate::holds::{Pieces, Work, doing};
use crate::route::handoff::{Answer, Share};
use crate::route::rollup;
use crate::schedule::message::Content;
use crate::shard::Shard;

/// How long an owner may take before the share is kept here.
const OWNER_WAIT: Duration = Duration::from_secs(1);

/// How long it may take where the share cannot be kept here either.
const LAST_WAIT: Duration = Duration::from_secs(30);

/// Recipients whose owners are found before others have their turn.
const ROUTED_AT_ONCE: usize = 256;

/// A share that a shard was asked to take, most often its owner.
struct Offered {
    share: Share,
    envelope: AlignedVec<16>,
    /// `None` when it could not be sent.
    answer: Option<tokio::sync::oneshot::Receiver<Answer>>,
}

impl Offered {
    /// What the owner says within that time; it can be waited for again while it has said nothing.
    async fn answer_within(&mut self, wait: Duration) -> Answer {
        let Some(answer) = &mut self.answer else { return Answer::Unknown };
        match timeout(wait, answer).await {
            Ok(said) => {
                self.answer = None;
                said.unwrap_or(Answer::Unknown)
            }
            Err(_) => Answer::Unknown,
        }
    }

    fn envelope(&self) -> Option<Envelope> {
        let e = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&self.envelope);
        e.and_then(rkyv::deserialize::<Envelope, rkyv::rancor::Error>).ok()
    }
}

/// Stores a message, here or with the owners of its destinations.
///
/// # Errors
/// [`SpoolError`] when nothing was accepted.
pub async fn submit(shard: &Rc<Shard>, mut envelope: Envelope, body: [Bytes; 2]) -> Result<(), SpoolError> {
    shard.check_room(envelope.recipients.len())?;
    follow_queue_to(shard, &mut envelope).await;
    doing(Work::Route, || rollup::follow(shard, &mut envelope));
    let me = shard.number;
    let mut own_share = None;
    let mut offered = Vec::new();
    for (owner, mut e) in shares(shard, envelope).await {
        if owner == me {
            own_share = Some(e);
            continue;
        }
        offered.push(offer(shard, owner, &mut e, &body));
    }
    let mut own = match &own_share {
        Some(e) => Some(store_own(shard, e, &body, false).await),
        None => None,
    };
    if offered.is_empty() {
        return own.unwrap_or(Ok(()));
    }
    let mut durable = matches!(own, Some(Ok(())));
    let (mut left, mut takers) = (Vec::new(), Vec::new());
    for mut o in offered {
        match o.answer_within(OWNER_WAIT).await {
            Answer::Taken => takers.push(o.share.owner),
            a => left.push((o, a)),
        }
    }
    durable |= !takers.is_empty();
    if !durable && left.iter().all(|(_, a)| *a == Answer::Full) {
        // Nobody has any of it, so the client can be told.
        let full = || {
            SpoolError::Full(
                "the destination's shard has none (min-free-space, spool-max-recipients, deliver-only of its <spool>)"
                    .into(),
            )
        };
        return own.unwrap_or_else(|| Err(full()));
    }
    if let (Some(e), Some(Err(SpoolError::Full(_)))) = (&own_share, &own) {
        // Others have, or may have, their shares: the reserve takes this one.
        own = Some(store_own(shard, e, &body, true).await);
    }
    // Shares that are nowhere, and why.
    let mut nowhere = Vec::new();
    if let (Some(e), Some(Err(error))) = (own_share, own) {
        nowhere.push((Some(e), error));
    }
    for (o, _) in left {
        match keep(shard, o, &body, durable).await {
            Ok(()) => durable = true,
            Err((mut o, error)) => match o.answer_within(LAST_WAIT).await {
                Answer::Taken => takers.push(o.share.owner),
                _ => nowhere.push((o.envelope(), error)),
            },
        }
    }
    for (envelope, error) in nowhere {
        let is_taken = match envelope {
            Some(e) => entrust(shard, &takers, e, &body).await,
            None => false,
        };
        if !is_taken {
            return Err(error);
        }
    }
    Ok(())
}

/// Who owns mail to one address, and the queue that it belongs to.
pub fn owner_of_one(shard: &Rc<Shard>, envelope: &mut Envelope) -> u8 {
    let config = shard.config();
    for r in &mut envelope.recipients {
        r.destination = config.queued_under(std::mem::take(&mut r.destination), &envelope.vmta);
    }
    rollup::follow(shard, envelope);
    let map = shard.map.borrow();
    let of = |r: &Recipient| map.taker(&r.destination, shard.next_turn());
    envelope.recipients.first().filter(|_| !map.shards.is_empty()).map_or(shard.number, of)
}

/// Puts recipients under the queues that `queue-to` sends them to.
async fn follow_queue_to(shard: &Shard, envelope: &mut Envelope) {
    let config = shard.config();
    if !config.snapshot.get().has_queue_to {
        return;
    }
    let mut pieces = Pieces::default();
    for r in &mut envelope.recipients {
        r.destination = config.queued_under(std::mem::take(&mut r.destination), &envelope.vmta);
        pieces.pause().await;
    }
    // Recipients of one queue must be neighbours.
    envelope.recipients.sort_by(|a, b| a.destination.cmp(&b.destination));
}

/// The shares of a message by owner. Nearly all mail has one owner and is not copied.
async fn shares(shard: &Shard, mut envelope: Envelope) -> Vec<(u8, Envelope)> {
    let map = Rc::clone(&shard.map.borrow());
    // Recipients of one message at one destination stay together.
    let turn = shard.next_turn();
    let owner_of = |r: &Recipient| if map.shards.is_empty() { shard.number } else { map.taker(&r.destination, turn) };
    let first = envelope.recipients.first().map_or(shard.number, owner_of);
    // The first that has another owner.
    let mut pieces = Pieces::default();
    let mut others = envelope.recipients.len();
    for (n, r) in envelope.recipients.iter().enumerate().skip(1) {
        if owner_of(r) != first {
            others = n;
            break;
        }
        if n % ROUTED_AT_ONCE == 0 {
            pieces.pause().await;
        }
    }
    pieces.pause().await;
    if others == envelope.recipients.len() {
        return vec![(first, envelope)];
    }
    let mut shares: Vec<(u8, Envelope)> = Vec::new();
    for (n, r) in std::mem::take(&mut envelope.recipients).into_iter().enumerate() {
        if n % ROUTED_AT_ONCE == 0 {
            pieces.pause().await;
        }
        let owner = if n < others { first } else { owner_of(&r) };
        let share = match shares.iter_mut().position(|(o, _)| *o == owner) {
            Some(i) => &mut shares[i].1,
            None => {
                shares.push((owner, envelope.clone()));
                let last = shares.len() - 1;
                &mut shares[last].1
            }
        };
        share.recipients.push(r);
    }
    shares
}

async fn store_own(
    shard: &Rc<Shard>,
    envelope: &Envelope,
    body: &[Bytes; 2],
    in_progress: bool,
) -> Result<(), SpoolError> {
    let archive = doing(Work::Route, || ipc::frame::archive(envelope));
    store_archived(shard, archive, body.clone(), in_progress).await.map(|_| ())
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
    let content = doing(Work::Enqueue, || Content::new(envelope, body));
    shard.enqueue(key, Rc::new(content)).await;
    Ok(key)
}

/// Offers a share to a shard, under an identity of its own.
fn offer(shard: &Shard, to: u8, e: &mut Envelope, body: &[Bytes; 2]) -> Offered {
    let share = shard.handoffs.new_share(to);
    (e.handoff, e.asked) = (Some(share.id), Some(to));
    let envelope = doing(Work::Route, || ipc::frame::archive(e));
    let answer = shard.handoffs.offer(mesh::HANDOFF, &share, Bytes::copy_from_slice(&envelope), body);
    Offered { share, envelope, answer }
}

/// Gives a share that cannot be written here to one of the shards that have taken another share of the message: the client
/// cannot be told that nothing was accepted any more. Whoever takes it passes it on to its owner. False where none does.
async fn entrust(shard: &Shard, takers: &[u8], mut e: Envelope, body: &[Bytes; 2]) -> bool {
    for taker in takers {
        if offer(shard, *taker, &mut e, body).answer_within(OWNER_WAIT).await == Answer::Taken {
            return true;
        }
    }
    false
}

/// Keeps a share that its owner did not take in time, to pass it on later; from the reserve
/// when another share of the message is durable already. Gives it back where it cannot be kept.
async fn keep(
    shard: &Rc<Shard>,
    o: Offered,
    body: &[Bytes; 2],
    in_progress: bool,
) -> Result<(), (Offered, SpoolError)> {
    let message = NewMessage { envelope: Bytes::copy_from_slice(&o.envelope), body: body.clone(), in_progress };
    match shard.store(message).await {
        Ok(key) => {
            shard.handoffs.kept.keep(o.share, key, &o.envelope);
            Ok(())
        }
        Err(e) => Err((o, e)),
    }
}

//! Makes every share of a message durable before the client hears `250` (architecture,
//! "The life of a message" 4).

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use ipc::mesh;
use ipc::message::{ArchivedEnvelope, Envelope, Recipient};
use rkyv::util::AlignedVec;
use spool::{NewMessage, SpoolError};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use crate::holds::{Pieces, Work, doing};
use crate::prepare::content::Content;
use crate::route::handoff::{Answer, Share};
use crate::route::rollup;
use crate::shard::Shard;

/// How long an owner may take before the share is kept here.
const OWNER_WAIT: Duration = Duration::from_secs(1);

/// How long a client waits at most while a part of its message is on disk and the rest cannot be written. RFC 5321 4.5.3.2.6
/// has clients wait ten minutes, and many wait five: this leaves room for the last attempt, which takes its time too.
const LAST_WAIT: Duration = Duration::from_secs(240);

/// How long after a share could not be written it is tried again.
const TRIED_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Recipients whose owners are found before others have their turn.
const ROUTED_AT_ONCE: usize = 256;

/// A share that a shard was asked to take, most often its owner.
struct Offered {
    share: Share,
    envelope: AlignedVec<16>,
    /// Whether the shard has the share, as far as it is known.
    said: Answer,
    /// What the shard will say; `None` when it has said it, or could not be asked.
    answer: Option<oneshot::Receiver<Answer>>,
}

impl Offered {
    /// What the shard says within that time; it can be waited for again while it has said nothing.
    async fn answer_within(&mut self, wait: Duration) -> Answer {
        if let Some(answer) = &mut self.answer
            && let Ok(said) = timeout(wait, answer).await
        {
            self.answer = None;
            self.said = said.unwrap_or(Answer::Unknown);
        }
        self.said
    }

    /// Offers the share again, unless an answer may still come, and says what the shard says.
    async fn ask_again(&mut self, shard: &Shard, body: &[Bytes; 2]) -> Answer {
        if self.answer.is_none() {
            // This kind of offer makes the owner look whether it has the share already, and lets it use its reserve.
            let archive = Bytes::copy_from_slice(&self.envelope);
            self.answer = shard.handoffs.offer(mesh::HANDOFF_KEPT, &self.share, archive, body);
            if self.answer.is_some() {
                self.said = Answer::Unknown;
            }
        }
        self.answer_within(OWNER_WAIT).await
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
    let own = match &own_share {
        Some(e) => Some(store_own(shard, e, &body, false).await),
        None => None,
    };
    if offered.is_empty() {
        return own.unwrap_or(Ok(()));
    }
    let mut elsewhere = Elsewhere { is_durable: matches!(own, Some(Ok(()))), ..Elsewhere::default() };
    let mut unwritten = Vec::new();
    let mut is_full = true;
    for mut o in offered {
        match o.answer_within(OWNER_WAIT).await {
            Answer::Taken => elsewhere.taken_by(o.share.owner),
            a => {
                elsewhere.may_be_taken |= a == Answer::Unknown;
                is_full &= a == Answer::Full;
                unwritten.push(Unwritten::Offered(o));
            }
        }
    }
    if !elsewhere.is_durable && is_full {
        // No shard has any part of the message, so the client may be told that it was not accepted.
        let full = || {
            SpoolError::Full(
                "the destination's shard has none (min-free-space, spool-max-recipients, deliver-only of its <spool>)"
                    .into(),
            )
        };
        return own.unwrap_or_else(|| Err(full()));
    }
    if let (Some(e), Some(Err(error))) = (own_share, own) {
        if !matches!(error, SpoolError::Full(_)) && !elsewhere.is_somewhere() {
            return Err(error);
        }
        unwritten.push(Unwritten::Own(Box::new(e)));
    }
    write_the_rest(shard, unwritten, &body, elsewhere).await
}

/// A share that no disk has yet.
enum Unwritten {
    /// Of this shard.
    Own(Box<Envelope>),
    /// Of another, which has not said that it has taken it.
    Offered(Offered),
}

/// What disks have of the other shares of a message.
#[derive(Default)]
struct Elsewhere {
    /// Shards that have taken a share.
    takers: Vec<u8>,
    /// Some share is on disk, here or there.
    is_durable: bool,
    /// Some share may be on disk: its owner has not said whether it is.
    may_be_taken: bool,
}

impl Elsewhere {
    /// Whether the message may be delivered to somebody although the client hears that it was not accepted.
    fn is_somewhere(&self) -> bool {
        self.is_durable || self.may_be_taken
    }

    fn taken_by(&mut self, shard: u8) {
        self.takers.push(shard);
        self.is_durable = true;
    }
}

/// Writes the shares that no disk has yet. Disks fail for moments, and a client that hears `451` repeats the whole message: where
/// one share is on disk or may be, each of the others is tried again until all are or [`LAST_WAIT`] is over.
///
/// # Errors
/// [`SpoolError`] of a share that could not be written.
async fn write_the_rest(
    shard: &Rc<Shard>,
    mut unwritten: Vec<Unwritten>,
    body: &[Bytes; 2],
    mut elsewhere: Elsewhere,
) -> Result<(), SpoolError> {
    let until = Instant::now() + LAST_WAIT;
    loop {
        let mut last_error = None;
        for u in std::mem::take(&mut unwritten) {
            if let Err((u, error)) = write_again(shard, u, body, &mut elsewhere).await {
                unwritten.push(u);
                last_error = Some(error);
            }
        }
        let Some(error) = last_error else { return Ok(()) };
        if !elsewhere.is_somewhere() || Instant::now() >= until || ipc::planted!("refused-though-a-part-is-stored") {
            return Err(error);
        }
        sleep(TRIED_AGAIN_AFTER).await;
    }
}

/// Tries to write a share here, from the reserve where another share of the message is on disk already; then, where others may
/// have a share, to give it to its owner or to a shard that has taken another. Gives it back where nobody takes it.
async fn write_again(
    shard: &Rc<Shard>,
    unwritten: Unwritten,
    body: &[Bytes; 2],
    elsewhere: &mut Elsewhere,
) -> Result<(), (Unwritten, SpoolError)> {
    let (e, unwritten, error) = match unwritten {
        Unwritten::Own(e) => match store_own(shard, &e, body, true).await {
            Ok(()) => {
                elsewhere.is_durable = true;
                return Ok(());
            }
            Err(error) => ((!elsewhere.takers.is_empty()).then(|| Envelope::clone(&e)), Unwritten::Own(e), error),
        },
        Unwritten::Offered(o) => match keep(shard, o, body, elsewhere.is_durable).await {
            Ok(()) => {
                elsewhere.is_durable = true;
                return Ok(());
            }
            Err((mut o, error)) => {
                if elsewhere.is_somewhere() && o.ask_again(shard, body).await == Answer::Taken {
                    elsewhere.taken_by(o.share.owner);
                    return Ok(());
                }
                // The shard that it was offered to may still store it, so no other shard may be given it.
                let e = if o.said == Answer::Unknown { None } else { o.envelope() };
                (e, Unwritten::Offered(o), error)
            }
        },
    };
    let Some(e) = e else { return Err((unwritten, error)) };
    match entrust(shard, &elsewhere.takers, e, body).await {
        Some(o) if o.said == Answer::Taken => Ok(()),
        Some(o) => Err((Unwritten::Offered(o), error)),
        None => Err((unwritten, error)),
    }
}

/// The shard that owns mail to the only recipient of a message. Sets the queue's name in the envelope.
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

/// Offers a share to a shard, under an identity of its own. A shard that cannot be asked has not taken it.
fn offer(shard: &Shard, to: u8, e: &mut Envelope, body: &[Bytes; 2]) -> Offered {
    let share = shard.handoffs.new_share(to);
    (e.handoff, e.asked) = (Some(share.id), Some(to));
    let envelope = doing(Work::Route, || ipc::frame::archive(e));
    let answer = shard.handoffs.offer(mesh::HANDOFF, &share, Bytes::copy_from_slice(&envelope), body);
    let said = if answer.is_some() { Answer::Unknown } else { Answer::Refused };
    Offered { share, envelope, said, answer }
}

/// Gives a share that cannot be written here to one of the shards that have taken another share of the message, which passes it on
/// to its owner. Says which one has taken it, or may have; `None` when none has.
async fn entrust(shard: &Shard, takers: &[u8], mut e: Envelope, body: &[Bytes; 2]) -> Option<Offered> {
    for taker in takers {
        let mut o = offer(shard, *taker, &mut e, body);
        if matches!(o.answer_within(OWNER_WAIT).await, Answer::Taken | Answer::Unknown) {
            return Some(o);
        }
    }
    None
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
            let share = match ipc::planted!("share-kept-under-another-identity") {
                true => shard.handoffs.new_share(o.share.owner),
                false => o.share,
            };
            shard.kept.keep(share, key, &o.envelope);
            Ok(())
        }
        Err(e) => Err((o, e)),
    }
}

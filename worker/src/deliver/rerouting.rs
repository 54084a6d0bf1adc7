//! `sluice reroute`: mail that waits gets another virtual MTA or pool. What is known of it goes along.
//!
//! A message's record says by whom it goes, so it is written anew, in one group with the end of the recipients that it is
//! written for. A crash may keep the beginning of a group, the new record without that end: what is about to be written is
//! noted before, and the next process ends what it finds twice.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use ipc::control::{RerouteOrder, Rerouted, Sent};
use ipc::dice::{HashMap, HashSet};
use ipc::message::{ArchivedEnvelope, Envelope, Moved, Recipient};
use ipc::queue_orders::Deletion;
use ipc::stored;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};
use spool::{NewMessage, Outcomes, Settled};
use tokio::time::Instant;

use super::deletion::{chose, next_messages};
use crate::engine::Now;
use crate::holds::{Pieces, Work, doing};
use crate::prepare::content::Content;
use crate::prepare::vmta_name::canonical_name;
use crate::route::stored::load;
use crate::schedule::job::JobId;
use crate::schedule::removal::TakenOut;
use crate::schedule::{Batch, Entry, Queue, QueueId, Slot};
use crate::shard::{Engine, Shard};

/// What the note is called among the spool's values.
const NOTED_AS: &str = "rerouting";
/// Bytes of messages that one request moves, and the time it takes: others are served in between, heartbeats among them.
const BYTES_MAX: usize = 32 << 20;
const TIME_MAX: Duration = Duration::from_secs(1);

/// Recipients of a message that are about to be written anew.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
struct Noted {
    key: u64,
    recipients: Vec<u16>,
}

/// What is noted of one group.
#[derive(Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
struct AllNoted(Vec<Noted>);

impl stored::Stored for AllNoted {
    const WHAT: &'static str = "what was to be rerouted";
    const VERSION: u8 = 1;
}

/// An order's turn to move mail, until this is dropped.
struct Underway<'a>(&'a Cell<bool>);

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// A message and what was taken out of its queues.
struct Leaving {
    key: u64,
    content: Rc<Content>,
    taken: Vec<(QueueId, TakenOut)>,
}

/// A message that may be meant.
struct Wanted {
    key: u64,
    content: Rc<Content>,
    /// It chose the virtual MTA that is meant itself.
    chose: bool,
}

/// What would move now, and what would not.
#[derive(Default)]
struct Outlook {
    rerouted: Rerouted,
    /// All mail of the queues is meant; else only the messages themselves can tell which.
    is_whole: bool,
}

/// A message written anew, not yet on disk.
struct Written {
    envelope: AlignedVec<16>,
    body: [Bytes; 2],
    recipients: usize,
}

/// Moves what an order means among the next messages behind number `after`.
///
/// # Errors
/// A sentence when it cannot be written.
pub async fn reroute(shard: &Rc<Shard>, order: &RerouteOrder, after: Option<u64>) -> Result<Rerouted, String> {
    let config = shard.config();
    let Some(to) = canonical_name(config.snapshot.get(), &order.to).map(str::to_owned) else {
        return Err(format!("there is no virtual MTA or pool {}", order.to));
    };
    if shard.is_rerouting.replace(true) {
        return Err("another reroute goes on: wait for its end".into());
    }
    let _turn = Underway(&shard.is_rerouting);
    if let Some(refusal) = shard.spool.refusal().filter(|_| !order.dry_run) {
        return Err(format!("mail cannot be written anew: {}", refusal.why));
    }
    let d = meant(order);
    // What does not move is counted before anything moves.
    let first = match after {
        None => doing(Work::Order, || shard.decide(|e, now| outlook(e, &d, &to, now))),
        Some(_) => Outlook::default(),
    };
    if order.dry_run && after.is_none() && first.is_whole {
        return Ok(first.rerouted);
    }
    let (messages, mut next) = next_messages(shard, &d, after);
    let mut wanted: HashMap<Slot, Wanted> = HashMap::default();
    let (began, mut bytes, mut last) = (Instant::now(), 0, None);
    for (key, slot) in messages {
        if bytes > BYTES_MAX || began.elapsed() > TIME_MAX || shard.stopping() {
            next = last;
            break;
        }
        last = Some(key);
        let Ok(content) = load(shard, slot, key).await else { continue };
        let Ok(e) = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&content.envelope) else { continue };
        bytes += content.envelope.len() + content.stored().iter().map(Bytes::len).sum::<usize>();
        let chose = chose(e, &d.of);
        wanted.insert(slot, Wanted { key, content, chose });
    }
    let (leaving, moves) =
        doing(Work::Order, || shard.decide(|e, now| take_out(e, &d, wanted, (&to, order.dry_run), now)));
    if !leaving.is_empty() {
        write_anew(shard, leaving, &to).await?;
    }
    if shard.stopping() {
        return Err("it is stopping: give the order again".into());
    }
    Ok(Rerouted { moves, after: next, ..first.rerouted })
}

/// The same mail as a deletion means it.
fn meant(order: &RerouteOrder) -> Deletion {
    Deletion {
        of: order.of.clone(),
        orig: None,
        rcpt: None,
        job_id: order.job.clone(),
        env_id: None,
        older_than_ms: None,
        dsn: false,
        accounting: false,
    }
}

/// Queues with mail that an order means, with where their mail would go; `None` for those that it is in already.
fn ways(e: &mut Engine, d: &Deletion, to: &str, now: Now) -> Vec<(QueueId, Option<(String, String)>)> {
    let is_meant = |q: &Queue| q.recipients > 0 && q.is_meant_by(&d.of);
    let meant: Vec<QueueId> = e.scheduler().queues.iter().filter(|(_, q)| is_meant(q)).map(|(id, _)| id).collect();
    let mut way = |id: QueueId| {
        let (key, from) = e.scheduler().queues.get(id).map(|q| (Rc::clone(&q.key), q.full_name()))?;
        let target = e.queue_for(&key, to, now);
        let name = e.scheduler().queues.get(target).map(Queue::full_name).unwrap_or_default();
        Some((id, (target != id).then_some((from, name))))
    };
    meant.into_iter().filter_map(&mut way).collect()
}

/// What would move now, and what would not, of the queues all of whose mail is meant.
fn outlook(e: &mut Engine, d: &Deletion, to: &str, now: Now) -> Outlook {
    let ways = ways(e, d, to, now);
    let s = e.scheduler();
    let job = d.job_id.as_ref().map(|name| s.jobs.iter().find(|(_, j)| *j.name == **name));
    let job = job.map(|found| found.map(|(id, j)| (id, j.recipients)));
    let (mut found, mut is_whole) = (Rerouted::default(), true);
    let (mut moves, mut here) = (BTreeMap::<(String, String), u64>::new(), 0);
    for (id, way) in ways {
        let Some(q) = s.queues.get(id) else { continue };
        if !q.is_named_by(&d.of) {
            is_whole = false;
            continue;
        }
        let of_job = |e: &Entry| {
            let is = |wanted: JobId| s.messages.get(e.slot as usize).is_some_and(|m| m.job == wanted);
            job.is_none_or(|job| job.is_some_and(|(id, _)| is(id)))
        };
        let n: u64 = q.entries().filter(of_job).map(|e| e.len()).sum();
        here += n;
        match way {
            Some(way) => {
                if n > 0 {
                    *moves.entry(way).or_default() += n;
                }
                found.in_delivery += q.recipients.saturating_sub(q.entries().map(|e| e.len()).sum());
            }
            None => found.stays += n,
        }
    }
    if let Some(job) = job {
        // Whose job it is that a queue is delivering is not known; of all queues together it is.
        let is_whole = d.of.destination == "*" && d.of.via == "*";
        found.in_delivery = job.filter(|_| is_whole).map_or(0, |(_, all)| all.saturating_sub(here));
    }
    found.moves = sent(moves);
    Outlook { rerouted: found, is_whole }
}

fn sent(moves: BTreeMap<(String, String), u64>) -> Vec<Sent> {
    moves.into_iter().map(|((from, to), recipients)| Sent { from, to, recipients }).collect()
}

/// Takes what waits of messages out of the queues that are meant, but for what is where it should go; or only counts it.
fn take_out(
    e: &mut Engine,
    d: &Deletion,
    mut wanted: HashMap<Slot, Wanted>,
    (to, dry_run): (&str, bool),
    now: Now,
) -> (Vec<Leaving>, Vec<Sent>) {
    let ways = ways(e, d, to, now);
    let mut moves: BTreeMap<(String, String), u64> = BTreeMap::new();
    let mut by_slot: BTreeMap<Slot, Vec<(QueueId, TakenOut)>> = BTreeMap::new();
    for (id, way) in ways {
        let Some(way) = way else { continue };
        let s = e.scheduler();
        let Some(q) = s.queues.get(id) else { continue };
        let all = q.is_named_by(&d.of);
        // Whose slot is another message's by now stays.
        let is_meant = |key: u64, slot: Slot| wanted.get(&slot).is_some_and(|w| w.key == key && (all || w.chose));
        let n: u64 = match dry_run {
            true => {
                let key = |e: &Entry| s.messages.get(e.slot as usize).map_or(0, |m| m.key);
                q.entries().filter(|e| is_meant(key(e), e.slot)).map(|e| e.len()).sum()
            }
            false => {
                let taken = e.take_out(id, |key, slot, _| is_meant(key, slot));
                let n = taken.iter().map(|t| t.recipients.len() as u64).sum::<u64>();
                taken.into_iter().for_each(|t| by_slot.entry(t.entry.slot).or_default().push((id, t)));
                n
            }
        };
        if n > 0 {
            *moves.entry(way).or_default() += n;
        }
    }
    let leaving = by_slot.into_iter().filter_map(|(slot, taken)| {
        let Wanted { key, content, .. } = wanted.remove(&slot)?;
        Some(Leaving { key, content, taken })
    });
    (leaving.collect(), sent(moves))
}

/// Writes messages anew and queues them when that is on disk.
async fn write_anew(shard: &Rc<Shard>, leaving: Vec<Leaving>, to: &str) -> Result<(), String> {
    let noted = |l: &Leaving| {
        let mut recipients: Vec<u16> = l.taken.iter().flat_map(|(_, t)| t.recipients.iter().copied()).collect();
        recipients.sort_unstable();
        Noted { key: l.key, recipients }
    };
    shard.spool.put(NOTED_AS, stored::bytes(&AllNoted(leaving.iter().map(noted).collect())));
    if let Err(e) = shard.spool.barrier().await {
        leaving.iter().for_each(|l| put_back(shard, l));
        shard.spool.put(NOTED_AS, Vec::new());
        return Err(format!("mail cannot be written anew: {e}"));
    }
    let mut pieces = Pieces::default();
    let mut durable = Vec::new();
    for l in leaving {
        let mut all = Vec::new();
        for (id, t) in &l.taken {
            all.extend(written(shard, &l, *id, t, to).await);
        }
        let report = |w: &Written| NewMessage {
            envelope: Bytes::copy_from_slice(&w.envelope),
            body: w.body.clone(),
            in_progress: true,
        };
        let reports: Vec<NewMessage> = all.iter().map(report).collect();
        let taken: usize = l.taken.iter().map(|(_, t)| t.recipients.len()).sum();
        let is_whole = all.iter().map(|w| w.recipients).sum::<usize>() == taken;
        if !is_whole || !reports.iter().all(spool::fits) {
            tracing::error!(
                shard = shard.number,
                key = l.key,
                "a message that cannot be written anew stays where it is"
            );
            put_back(shard, &l);
            continue;
        }
        let mut settled = Settled { key: l.key, ..Settled::default() };
        for (id, t) in &l.taken {
            settled.last = shard.decide(|e, _| e.settle(*id, t.entry.slot, l.key, t.recipients.len()));
            settled.recipients.extend(&t.recipients);
        }
        let receivers = shard.spool.conclude(Outcomes { settled: Some(settled), reports, ..Outcomes::default() });
        durable.extend(all.into_iter().zip(receivers));
        pieces.pause().await;
    }
    for (w, durable) in durable {
        // Else the process ends with nothing of it written: the next one finds the mail as it was.
        if let Ok(Ok(key)) = durable.await {
            shard.enqueue(key, Rc::new(Content::new(w.envelope, w.body))).await;
        }
    }
    shard.spool.put(NOTED_AS, Vec::new());
    Ok(())
}

fn put_back(shard: &Rc<Shard>, l: &Leaving) {
    for (id, t) in &l.taken {
        let batch = Batch::of(*id, l.key, t.entry);
        shard.decide(|e, now| {
            e.hold(&batch, &t.recipients, t.due_ms, t.entry.attempts);
            e.pump_queue(*id, now);
        });
    }
}

/// The message for recipients that were taken out of a queue, one for each state that they are in.
async fn written(shard: &Rc<Shard>, l: &Leaving, id: QueueId, t: &TakenOut, to: &str) -> Vec<Written> {
    let owned = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&l.content.envelope)
        .and_then(rkyv::deserialize::<Envelope, rkyv::rancor::Error>);
    let Ok(mut original) = owned else { return Vec::new() };
    let Some(destination) = shard.scheduler().queues.get(id).map(|q| Rc::clone(&q.key)) else {
        return Vec::new();
    };
    // Delays were told of also where nothing was attempted.
    let known = shard.spool.recipients(l.key).await.ok().flatten().unwrap_or_default();
    let mut by_state: BTreeMap<(u8, u8, String), Vec<Recipient>> = BTreeMap::new();
    let all = std::mem::take(&mut original.recipients);
    for r in &t.recipients {
        let Some(recipient) = all.get(usize::from(*r)).cloned() else { continue };
        let state = known.get(usize::from(*r)).map(|k| k.state.clone()).unwrap_or_default();
        let state = (state.delay_reports, state.attempts.max(t.entry.attempts), state.last_reply);
        // Its domain may have rolled up since it was accepted.
        let destination = destination.as_ref().to_owned();
        by_state.entry(state).or_default().push(Recipient { destination, ..recipient });
    }
    let all = by_state.into_iter().map(|((delay_reports, attempts, last_reply), recipients)| {
        let count = recipients.len();
        let mut e = Envelope { recipients, ..original.clone() };
        e.vmta = to.to_owned();
        (e.handoff, e.asked) = (None, None);
        e.moved = Some(Moved { due_unix_ms: t.due_ms, delay_reports, attempts, last_reply });
        let envelope = doing(Work::Order, || ipc::frame::archive(&e));
        Written { envelope, body: l.content.stored().clone(), recipients: count }
    });
    all.collect()
}

/// Messages that a note names, and those that came at the same time: what is written anew of one keeps its time.
struct Found {
    /// Place and time by key.
    originals: HashMap<u64, (Slot, i64)>,
    by_time: HashMap<i64, Vec<(u64, Slot)>>,
}

impl Found {
    fn of(shard: &Shard, noted: &[Noted]) -> Found {
        let keys: HashSet<u64> = noted.iter().map(|n| n.key).collect();
        let s = shard.scheduler();
        let all = || s.messages.iter().map(|(slot, m)| (slot as Slot, m));
        let originals: HashMap<u64, (Slot, i64)> =
            all().filter(|(_, m)| keys.contains(&m.key)).map(|(slot, m)| (m.key, (slot, m.received_ms))).collect();
        let mut by_time: HashMap<i64, Vec<(u64, Slot)>> = originals.values().map(|(_, at)| (*at, Vec::new())).collect();
        for (slot, m) in all() {
            if let Some(some) = by_time.get_mut(&m.received_ms) {
                some.push((m.key, slot));
            }
        }
        Found { originals, by_time }
    }
}

/// The note of an earlier process, if there is one.
fn note_in(values: &[(String, Vec<u8>)]) -> Option<Result<AllNoted, stored::StoredError>> {
    values.iter().find(|(name, _)| name == NOTED_AS).map(|(_, value)| stored::read::<AllNoted>(value))
}

/// Keys of messages that an earlier process was about to write anew.
pub fn noted(values: &[(String, Vec<u8>)]) -> impl Iterator<Item = u64> {
    note_in(values).and_then(Result::ok).into_iter().flat_map(|AllNoted(all)| all.into_iter().map(|n| n.key))
}

/// Ends what an earlier process had written anew and not ended, for a crash tore the group that both were in.
pub async fn restore(shard: &Rc<Shard>, values: &[(String, Vec<u8>)]) {
    let noted = match note_in(values) {
        None => return,
        Some(Ok(AllNoted(noted))) => noted,
        Some(Err(e)) => return tracing::error!(error = %e, "a note of what was to be rerouted cannot be read"),
    };
    let found = Found::of(shard, &noted);
    // Recipients by the message that they were written anew from.
    let mut ended: HashMap<(u64, Slot), HashSet<u16>> = HashMap::default();
    for n in &noted {
        let Some((slot, received_ms)) = found.originals.get(&n.key).copied() else { continue };
        let others = found.by_time.get(&received_ms).into_iter().flatten().filter(|(key, _)| *key > n.key);
        let others: Vec<(u64, Slot)> = others.copied().collect();
        if others.is_empty() {
            continue;
        }
        let Ok(original) = load(shard, slot, n.key).await else { continue };
        let Ok(e) = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&original.envelope) else { continue };
        // An address may be there several times.
        let mut anew: HashMap<String, usize> = HashMap::default();
        for (key, slot) in others {
            let Ok(other) = load(shard, slot, key).await else { continue };
            let Ok(o) = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&other.envelope) else { continue };
            if o.id.0 == e.id.0 && o.moved.is_some() {
                o.recipients.iter().for_each(|r| *anew.entry(r.address.as_str().to_owned()).or_default() += 1);
            }
        }
        let mut is_anew = |r: &u16| {
            let address = e.recipients.get(usize::from(*r)).map(|r| r.address.as_str());
            let left = address.and_then(|a| anew.get_mut(a)).filter(|n| **n > 0);
            left.map(|n| *n -= 1).is_some()
        };
        let some: HashSet<u16> = n.recipients.iter().copied().filter(|r| is_anew(r)).collect();
        if !some.is_empty() {
            ended.insert((n.key, slot), some);
        }
    }
    let queues: Vec<QueueId> = match ended.is_empty() {
        true => Vec::new(),
        false => shard.scheduler().queues.iter().map(|(id, _)| id).collect(),
    };
    let mut twice = 0;
    for id in queues {
        let is_ended = |key: u64, at: Slot, r: u16| ended.get(&(key, at)).is_some_and(|some| some.contains(&r));
        let taken = shard.decide(|e, _| e.take_out(id, is_ended));
        for t in taken {
            twice += t.recipients.len();
            let last = shard.decide(|e, _| e.settle(id, t.entry.slot, t.key, t.recipients.len()));
            shard.spool.settle(Settled { key: t.key, recipients: t.recipients, last, rows: Vec::new() });
        }
    }
    if twice > 0 {
        tracing::info!(
            shard = shard.number,
            recipients = twice,
            "rerouted by the process before, whose end had not been written"
        );
    }
    // Only what is ended may be forgotten.
    if shard.spool.barrier().await.is_ok() {
        shard.spool.put(NOTED_AS, Vec::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_to_be_rerouted_lies_in_spools_as_it_always_did() {
        let of = |key, recipients| Noted { key, recipients };
        ipc::assert_layout!(AllNoted(vec![of(9, vec![0, 1, 2]), of(u64::MAX, vec![u16::MAX])]), 1: "\
            000001000200ffff0900000000000000f0ffffff03000000ffffffffffffffffe6ffffff01000000e0ffffff02000000");
    }
}

//! Mail of destinations that this shard does not own any more, after the shard map changed.
//!
//! Each new owner is handed its mail by a task of its own: one that is down holds up nobody
//! else's, and what waits for it stays in its queue.
//!
//! What is offered is noted before, in a value of the spool for each owner. A process that is killed
//! before it heard the answer cannot know whether the owner has it: the next one asks under the same
//! identity, whoever owns the destination by then, and nobody sends it meanwhile.

use std::collections::VecDeque;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use ipc::dice::HashMap;
use ipc::mesh;
use ipc::message::{ArchivedEnvelope, Envelope, HandoffId, Moved};
use ipc::stored;
use rkyv::{Archive, Deserialize, Serialize};
use spool::Settled;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::deliver::conclusion::unreadable_in;
use crate::route::handoff::Answer;
use crate::route::links::{close, is_there};
use crate::route::moves::{Offer, Unanswered};
use crate::route::stored::load;
use crate::schedule::{Batch, Entry, QueueId};
use crate::shard::{Scheduler, Shard};
use crate::tasks::{self, AtEnd};

/// How long a new owner may take for one message.
const OWNER_WAIT: Duration = Duration::from_secs(5);
/// Pause before an owner that did not take it is asked again.
const RETRY: Duration = Duration::from_millis(250);
/// Messages that are with one new owner at once, noted together.
const AT_ONCE: usize = 32;
/// What the notes are called among the spool's values, before the owner's number.
const NOTED_AS: &str = "moving/";

/// Recipients of a message that were offered to a new owner.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
struct Offered {
    key: u64,
    start: u16,
    end: u16,
    incarnation: u32,
    sequence: u64,
}

/// What is noted of one new owner.
#[derive(Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
struct AllOffered(Vec<Offered>);

impl stored::Stored for AllOffered {
    const WHAT: &'static str = "what was offered to a new owner";
    const VERSION: u8 = 1;
}

/// The notes of an earlier process, by owner.
fn notes(values: &[(String, Vec<u8>)]) -> impl Iterator<Item = (u8, Result<AllOffered, stored::StoredError>)> {
    values.iter().filter_map(|(name, value)| {
        let owner = name.strip_prefix(NOTED_AS)?.parse::<u8>().ok()?;
        Some((owner, stored::read::<AllOffered>(value)))
    })
}

/// Keys of messages that an earlier process had offered.
pub fn noted(values: &[(String, Vec<u8>)]) -> impl Iterator<Item = u64> {
    notes(values).filter_map(|(_, noted)| noted.ok()).flat_map(|AllOffered(all)| all.into_iter().map(|o| o.key))
}

/// Finds what an earlier process had offered among what is queued.
pub fn restore(shard: &Rc<Shard>, values: &[(String, Vec<u8>)]) {
    for (owner, noted) in notes(values) {
        let noted = match noted {
            Ok(AllOffered(noted)) => noted,
            Err(e) => {
                tracing::error!(owner, error = %e, "a note of what was offered cannot be read");
                continue;
            }
        };
        let again = take_out(shard, owner, &noted);
        if !again.is_empty() {
            tracing::info!(
                shard = shard.number,
                owner,
                messages = again.len(),
                "offered before; its owner is asked again"
            );
            shard.moves.found.borrow_mut().insert(owner, again);
        }
    }
}

/// Takes noted messages out of their queues, as far as all their recipients are there as they were noted. A message of which some recipients
/// were tried or settled since had been refused by the owner. It stays here: offered in part under the same identity, the owner would
/// answer as if it were the whole.
fn take_out(shard: &Rc<Shard>, owner: u8, noted: &[Offered]) -> Vec<Offer> {
    let has_mail = |s: &Scheduler| s.queues.iter().filter(|(_, q)| q.recipients > 0).map(|(id, _)| id).collect();
    let queues: Vec<QueueId> = has_mail(&shard.scheduler());
    let mut all = Vec::new();
    for queue in queues {
        let is_noted = |o: &Offered, key: u64, r: u16| o.key == key && (o.start..o.end).contains(&r);
        let taken = shard.decide(|e, _| e.take_out(queue, |key, _, r| noted.iter().any(|o| is_noted(o, key, r))));
        for t in taken {
            let batch = Batch::of(queue, t.key, t.entry);
            let mut rest = t.recipients;
            for o in noted.iter().filter(|o| o.key == t.key) {
                let whole: Vec<u16> = (o.start..o.end).collect();
                if !whole.iter().all(|r| rest.binary_search(r).is_ok()) {
                    continue;
                }
                rest.retain(|r| !whole.contains(r));
                let id = HandoffId { origin: shard.number, incarnation: o.incarnation, sequence: o.sequence };
                let offer = |entry| Offer { queue, entry, due: 0, share: shard.handoffs.share(owner, id) };
                all.extend(batch.entries(&whole).into_iter().map(offer));
            }
            if !rest.is_empty() {
                shard.decide(|e, _| e.hold(&batch, &rest, 0, t.entry.attempts));
            }
        }
    }
    all
}

/// Hands over what belongs to others, whenever a map or late mail brings some.
pub async fn move_out(shard: Rc<Shard>) {
    for (owner, again) in shard.moves.found.take() {
        begin(&shard, owner, |shard| async move { ask_again(&shard, owner, again).await });
    }
    while !shard.stopping() {
        let mut foreign: HashMap<u8, Vec<QueueId>> = HashMap::default();
        let mut any = false;
        {
            let map = shard.map.borrow();
            let s = shard.scheduler();
            let mine = |d: &str| map.is_owner(d, shard.number);
            for (id, q) in s.queues.iter().filter(|(_, q)| q.recipients > 0 && !mine(q.destination())) {
                any = true;
                if let Some(owner) = owner_of(&shard, q.destination()) {
                    foreign.entry(owner).or_default().push(id);
                }
            }
        }
        for (owner, queues) in foreign {
            begin(&shard, owner, |shard| async move { move_to(&shard, owner, queues).await });
        }
        if any {
            sleep(RETRY).await;
        } else {
            shard.foreign.notified().await;
        }
    }
}

/// One task at a time hands over to an owner.
fn begin<F: Future<Output = ()> + 'static>(shard: &Rc<Shard>, owner: u8, work: impl FnOnce(Rc<Shard>) -> F) {
    if shard.moves.owners.borrow_mut().insert(owner) {
        let shard = Rc::clone(shard);
        let work = work(Rc::clone(&shard));
        tasks::begin("moving to an owner", move || async move {
            let _done = AtEnd(|| {
                shard.moves.owners.borrow_mut().remove(&owner);
            });
            work.await;
        });
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
    let mut queues = queues.into_iter();
    let mut entries: VecDeque<(QueueId, Entry, i64)> = VecDeque::new();
    loop {
        while entries.len() < AT_ONCE
            && let Some(id) = queues.next()
        {
            // A queue that is held opens no connection and gives out nothing more to send. What is in flight ends, and what
            // that leaves in the queue is found in the next round.
            let waiting = shard.decide(|e, _| e.drain(id));
            entries.extend(waiting.into_iter().map(|(entry, due)| (id, entry, due)));
        }
        let next = entries.drain(..entries.len().min(AT_ONCE));
        let some: Vec<Offer> = next
            .map(|(queue, entry, due)| Offer { queue, entry, due, share: shard.handoffs.new_share(owner) })
            .collect();
        if some.is_empty() || !move_some(shard, some).await {
            break;
        }
    }
    entries.into_iter().for_each(|(id, entry, due)| put_back(shard, id, entry, due));
    note(shard, owner, Vec::new());
}

/// Notes what an owner may have, in place of what was noted before.
fn note(shard: &Shard, owner: u8, offered: Vec<Offered>) {
    let value = if offered.is_empty() { Vec::new() } else { stored::bytes(&AllOffered(offered)) };
    shard.spool.put(&format!("{NOTED_AS}{owner}"), value);
}

/// Notes what is about to be offered, and hands it over; false when some of it stays for now.
async fn move_some(shard: &Rc<Shard>, some: Vec<Offer>) -> bool {
    let Some(owner) = some.first().map(|o| o.share.owner) else { return true };
    {
        let s = shard.scheduler();
        let noted = some.iter().filter_map(|o| {
            let key = s.messages.get(o.entry.slot as usize)?.key;
            let HandoffId { incarnation, sequence, .. } = o.share.id;
            Some(Offered { key, start: o.entry.start, end: o.entry.end, incarnation, sequence })
        });
        note(shard, owner, noted.collect());
    }
    if shard.spool.barrier().await.is_err() {
        some.into_iter().for_each(|o| put_back(shard, o.queue, o.entry, o.due));
        return false;
    }
    hand_over(shard, some, false).await
}

/// Offers what an earlier process had noted.
async fn ask_again(shard: &Rc<Shard>, owner: u8, mut all: Vec<Offer>) {
    for o in &mut all {
        let key = shard.scheduler().messages.get(o.entry.slot as usize).map(|m| m.key);
        if let Some(key) = key {
            o.due = shard.spool.state(key, o.entry.start).await.ok().flatten().map_or(0, |s| s.due_unix_ms);
        }
    }
    hand_over(shard, all, true).await;
    note(shard, owner, Vec::new());
    // What the owner says it does not have stays this shard's, or belongs to another owner by now.
    shard.foreign.notify_one();
}

/// Hands over messages at once. `asked` means that their owner may have them already.
async fn hand_over(shard: &Rc<Shard>, some: Vec<Offer>, asked: bool) -> bool {
    let mut offers = JoinSet::new();
    for o in some {
        let shard = Rc::clone(shard);
        #[expect(clippy::disallowed_methods, reason = "it contains what it does, and is joined below")]
        offers.spawn_local(async move {
            let mut unanswered = asked.then(|| Unanswered::new(&shard.moves));
            let moved = loop {
                let panic = match tasks::caught(pin!(move_one(&shard, &o, &mut unanswered))).await {
                    Ok(moved) => break moved,
                    Err(panic) => panic,
                };
                panic.tell("moving a message");
                sleep(tasks::AFTER_PANIC).await;
                // An owner that may have it is asked again under the same identity.
                if unanswered.is_none() || shard.stopping() {
                    break false;
                }
            };
            if !moved {
                put_back(&shard, o.queue, o.entry, o.due);
            }
            moved.then_some(o.share)
        });
    }
    let (mut all, mut moved) = (true, Vec::new());
    while let Some(offer) = offers.join_next().await {
        match offer {
            Ok(Some(share)) => moved.push(share),
            _ => all = false,
        }
    }
    close(shard, moved).await;
    all
}

fn put_back(shard: &Shard, id: QueueId, entry: Entry, due: i64) {
    let batch = Batch::of(id, 0, entry);
    shard.decide(|e, _| e.hold(&batch, &batch.recipients, due, batch.attempts));
}

/// Hands over one message; false when it stays in its queue. `unanswered` is there, before and after, where its owner may have it.
async fn move_one<'a>(shard: &'a Rc<Shard>, o: &Offer, unanswered: &mut Option<Unanswered<'a>>) -> bool {
    let Offer { queue: id, entry, due, ref share } = *o;
    let owner = share.owner;
    let Some(key) = shard.scheduler().messages.get(entry.slot as usize).map(|m| m.key) else { return true };
    let content = match load(shard, entry.slot, key).await {
        Ok(c) => c,
        Err(e) => {
            // The message cannot be read now, or is in quarantine. That is no reason to ask its owner later.
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
    let Some(destination) = shard.scheduler().queues.get(id).map(|q| Rc::clone(&q.key)) else { return true };
    if e.recipients.is_empty() {
        return true;
    }
    // Its domain may have rolled up since it was accepted.
    e.recipients.iter_mut().for_each(|r| r.destination = destination.as_ref().to_owned());
    let epoch = shard.map.borrow().epoch;
    e.handoff = Some(share.id);
    e.asked = Some(owner);
    let (delay_reports, attempts) = (state.delay_reports, state.attempts);
    e.moved = Some(Moved { due_unix_ms: due, delay_reports, attempts, last_reply: state.last_reply });
    let archive = Bytes::copy_from_slice(&ipc::frame::archive(&e));
    // An owner that had it on disk and whose answer was lost knows it by its identity, so the same
    // one is asked until it has answered: whoever it is moved to then gets it from there.
    let mut takes_none = false;
    loop {
        let offer = shard.handoffs.offer(mesh::HANDOFF_KEPT, share, archive.clone(), content.stored());
        if let Some(answer) = offer {
            unanswered.get_or_insert_with(|| Unanswered::new(&shard.moves));
            tasks::may_panic("moving");
            match timeout(OWNER_WAIT, answer).await {
                Ok(Ok(Answer::Taken)) => break,
                // The owner says that it does not have the message.
                Ok(Ok(a @ (Answer::Full | Answer::Refused | Answer::Never))) => {
                    *unanswered = None;
                    takes_none = a == Answer::Never;
                }
                _ => {}
            }
        }
        let may_have_it = unanswered.is_some() && is_there(shard, owner);
        if !may_have_it
            && (takes_none
                || shard.stopping()
                || shard.map.borrow().epoch != epoch
                || !shard.handoffs.is_connected(owner))
        {
            return false;
        }
        sleep(RETRY).await;
    }
    let recipients: Vec<u16> = (entry.start..entry.end).collect();
    let last = shard.decide(|e, _| e.settle(id, entry.slot, key, recipients.len()));
    shard.spool.settle(Settled { key, recipients, last, rows: Vec::new() });
    true
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ipc::frame::Header;
    use ipc::shard_map::ShardMap;
    use ipc::stream::FrameReader;
    use spool::{Recovered, RecoveredRecipient};
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixListener;
    use tokio::sync::{mpsc, oneshot};
    use tokio::task::LocalSet;

    use super::*;
    use crate::shard::life::SpoolContents;

    /// The second recipient of a message whose record says that it was kept for another shard once.
    fn kept_once() -> Recovered {
        let recipient = RecoveredRecipient {
            index: 1,
            destination: "d.test".into(),
            due_unix_ms: 0,
            delay_reports: 0,
            attempts: 0,
            priority: 50,
            last_reply: String::new(),
        };
        Recovered {
            key: 7,
            body_len: 20,
            received_unix_ms: 1,
            handoff: true,
            notify_delay: false,
            alone: false,
            windows_end_ms: 0,
            vmta: String::new(),
            job: String::new(),
            recipients: vec![recipient],
        }
    }

    #[tokio::test]
    async fn a_kept_share_that_became_its_keepers_own_and_was_offered_is_asked_for_again() {
        let folder = tempfile::tempdir().unwrap();
        let shard = crate::shard::alone::shard(folder.path(), ShardMap::first(2, Vec::new()), |_| ()).await;
        let noted = AllOffered(vec![Offered { key: 7, start: 1, end: 2, incarnation: 3, sequence: 4 }]);
        let (found, messages) = mpsc::channel(1);
        let (known, values) = oneshot::channel();
        found.send(kept_once()).await.unwrap();
        drop(found);
        known.send(Ok(vec![(format!("{NOTED_AS}1"), stored::bytes(&noted))])).unwrap();
        Rc::clone(&shard).recover(SpoolContents { messages, values }).await.unwrap();
        let found = shard.moves.found.borrow();
        let asked: Vec<HandoffId> = found.get(&1).into_iter().flatten().map(|o| o.share.id).collect();
        assert_eq!(asked, [HandoffId { origin: 0, incarnation: 3, sequence: 4 }]);
        assert_eq!(shard.kept.recipients(), 0, "it is not kept any more");
    }

    #[tokio::test]
    async fn an_owner_that_may_have_a_message_is_asked_for_it_again_after_a_panic() {
        let folder = tempfile::tempdir().unwrap();
        let all = async {
            let map = ShardMap::first(2, Vec::new());
            let domain = (0..).map(|n| format!("d{n}.test")).find(|d| map.owner(d) == 1).unwrap();
            let shard = crate::shard::alone::shard(folder.path(), map, |_| ()).await;
            let owner = UnixListener::bind(folder.path().join("shard-01.sock")).unwrap();
            let queue = crate::shard::alone::queued(&shard, &[&format!("r@{domain}")]).await;
            crate::route::links::keep_links(&shard);
            let (mut io, _) = owner.accept().await.unwrap();
            let mover = Rc::clone(&shard);
            tasks::PANICS_AT.set("moving");
            tasks::begin("mover", move || async move { move_to(&mover, 1, vec![queue]).await });
            let (mut frames, mut offered) = (FrameReader::default(), Vec::new());
            while offered.len() < 2 {
                let f = frames.next(&mut io).await.unwrap().unwrap();
                if f.header.kind == mesh::HANDOFF_KEPT {
                    offered
                        .push((f.header.a, ipc::frame::unarchive::<Envelope>(mesh::HANDOFF_KEPT, &f.archive).unwrap()));
                }
            }
            assert_eq!(offered[0].1.handoff, offered[1].1.handoff);
            let mut taken = Header::new(mesh::ACCEPTED, 0, 0);
            taken.a = offered[1].0;
            io.write_all(&taken.encode()).await.unwrap();
            while shard.scheduler().recipients > 0 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(30), LocalSet::new().run_until(all)).await.unwrap();
    }

    #[test]
    fn what_was_offered_lies_in_spools_as_it_always_did() {
        let of = |key| Offered { key, start: 1, end: 0x0203, incarnation: 0x0405_0607, sequence: 8 };
        ipc::assert_layout!(AllOffered(vec![of(9), of(u64::MAX)]), 1: "\
            090000000000000001000302070605040800000000000000ffffffffffffffff01000302070605040800000000000000d0ffffff02000000");
    }
}

//! `sluice show message`: everything that is known of one message of this shard, and what would be sent of it.

use std::cmp::Reverse;
use std::rc::Rc;

use bytes::Bytes;
use ipc::message::{ArchivedEnvelope, MessageId, notify, priority};
use ipc::operator::{MessageRecipientRow, MessageRow};
use spool::KnownRecipient;

use crate::clock;

use crate::deliver::signing::as_sent;
use crate::prepare::content::Content;
use crate::prepare::vmta_name::name_or_default;
use crate::route::stored::{load, read};
use crate::schedule::{QueueId, Slot};
use crate::shard::{Scheduler, Shard};

/// Content that is shown, bytes: it crosses two processes in one frame.
const SHOWN_MAX: usize = 16 << 20;

/// Where a recipient is.
enum Place {
    /// It waits in this queue, until a time, Unix milliseconds; 0 for its turn.
    Waits(QueueId, i64, u8),
    /// It is in no queue: in delivery, or it has ended.
    Elsewhere,
}

/// A record of a message.
pub struct Record {
    pub key: u64,
    pub content: Rc<Content>,
    pub whose: Whose,
}

/// Whose matter a record is.
#[derive(Clone, Copy)]
pub enum Whose {
    /// This shard's, which has its message under this number.
    Own(Slot),
    /// It is kept under handoff until this shard takes it.
    KeptFor(u8),
}

/// Records of a message in this shard: a share for each owner that it had, one for each reroute, and those kept for others.
pub async fn found(shard: &Rc<Shard>, id: MessageId) -> Vec<Record> {
    // Its id begins with when it was accepted.
    let at_ms = i64::from_be_bytes(std::array::from_fn(|i| if i < 2 { 0 } else { id.0[i - 2] }));
    let candidates: Vec<(Slot, u64)> = {
        let s = shard.scheduler();
        s.messages.iter().filter(|(_, m)| m.received_ms == at_ms).map(|(slot, m)| (slot as Slot, m.key)).collect()
    };
    let mut all = Vec::new();
    for (slot, key) in candidates {
        let Ok(content) = load(shard, slot, key).await else { continue };
        let e = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&content.envelope);
        if e.is_ok_and(|e| e.id.0 == id.0) {
            all.push(Record { key, content, whose: Whose::Own(slot) });
        }
    }
    for (key, owner) in shard.kept.shares_of(id) {
        // It may have been passed on meanwhile.
        let Ok((envelope, body)) = read(shard, key).await else { continue };
        let content = Rc::new(Content::new(envelope, [body, Bytes::new()]));
        all.push(Record { key, content, whose: Whose::KeptFor(owner) });
    }
    all
}

/// Rows of a message, one for each of its records.
pub async fn rows(shard: &Rc<Shard>, id: MessageId) -> Vec<MessageRow> {
    let mut all = Vec::new();
    for Record { key, content, whose } in found(shard, id).await {
        let known = shard.spool.recipients(key).await.ok().flatten().unwrap_or_default();
        let Ok(e) = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&content.envelope) else { continue };
        all.push(row(shard, whose, e, &content, &known));
    }
    all
}

/// Where the recipients of a record are, by index.
fn places(s: &Scheduler, whose: Whose, recipients: usize) -> Vec<Place> {
    let mut all: Vec<Place> = (0..recipients).map(|_| Place::Elsewhere).collect();
    let Whose::Own(slot) = whose else { return all };
    for (id, q) in s.queues.iter() {
        let ready = q.ready.iter().map(|(_, e)| (e, 0));
        let waiting = q.waiting.iter().map(|Reverse((due_s, e))| (*e, i64::from(*due_s) * 1000));
        for (e, due_ms) in ready.chain(waiting).filter(|(e, _)| e.slot == slot) {
            for at in all.iter_mut().take(usize::from(e.end)).skip(usize::from(e.start)) {
                *at = Place::Waits(id, due_ms, e.attempts);
            }
        }
    }
    all
}

fn row(shard: &Shard, whose: Whose, e: &ArchivedEnvelope, content: &Content, known: &[KnownRecipient]) -> MessageRow {
    let s = shard.scheduler();
    let now = clock::now_ms();
    let vmta = name_or_default(&e.vmta);
    let recipient = |(n, (r, place)): (usize, (&ipc::message::ArchivedRecipient, Place))| {
        let known = known.get(n);
        let destination = r.destination.as_str();
        let mut row = MessageRecipientRow {
            recipient: r.address.as_str().to_owned(),
            state: match whose {
                _ if known.is_some_and(|k| k.done) => "ended".to_owned(),
                Whose::Own(_) => "in delivery".to_owned(),
                Whose::KeptFor(owner) => format!("kept for shard {owner}"),
            },
            queue: format!("{}/{vmta}", ipc::message::shown_domain(ipc::message::queue_part(destination))),
            shard: shard.number,
            vmta: vmta.to_owned(),
            priority: priority(r.priority_given),
            attempts: known.map_or(0, |k| k.state.attempts),
            last_reply: known.map(|k| k.state.last_reply.clone()).unwrap_or_default(),
            next_attempt: String::new(),
            expires: String::new(),
            notify: notify_words(r.notify),
            orcpt: r.orcpt.as_str().to_owned(),
        };
        if let Place::Waits(id, due_ms, attempts) = place
            && let Some(q) = s.queues.get(id)
        {
            let of_paths =
                q.pullers.iter().filter_map(|p| s.paths.get(p.path)).map(|p| p.retry_at_ms).min().unwrap_or(0);
            let next = due_ms.max(of_paths).max(q.retry_at_ms());
            row.queue = q.full_name();
            row.state = if q.paused { "paused" } else { "waits" }.to_owned();
            row.attempts = row.attempts.max(attempts);
            row.next_attempt = crate::shown_if_to_come(next, now);
            let bounce_after = q.rules.bounce_after.as_millis().min(1 << 50) as i64;
            let by_age = e.received_unix_ms.to_native().saturating_add(bounce_after);
            let by_windows = e.windows().and_then(|w| w.ends_s()).map(|s| s.saturating_mul(1000));
            row.expires = crate::shown_time(by_windows.unwrap_or_else(|| clock::wall_ms(by_age)));
        }
        row
    };
    let places = places(&s, whose, e.recipients.len());
    MessageRow {
        message: MessageId(e.id.0).to_string(),
        received: crate::shown_time(clock::wall_ms(e.received_unix_ms.to_native())),
        sender: e.sender.as_str().to_owned(),
        job: e.job_id.as_str().to_owned(),
        envelope_id: e.envid.as_str().to_owned(),
        size: content.body.iter().map(Bytes::len).sum::<usize>() as u64,
        source: format!("{:?}", e.source_type).to_lowercase(),
        source_ip: e.source_ip.as_str().to_owned(),
        source_name: e.hello().to_owned(),
        smtp_user: e.smtp_user().to_owned(),
        body: if e.body_type == ipc::message::ArchivedBodyType::EightBit { "8bitmime" } else { "7bit" }.to_owned(),
        smtputf8: e.smtputf8,
        ret: match e.ret {
            ipc::message::ArchivedRet::Unset => "",
            ipc::message::ArchivedRet::Full => "full",
            ipc::message::ArchivedRet::Headers => "hdrs",
        }
        .to_owned(),
        recipients: e.recipients.iter().zip(places).enumerate().map(recipient).collect(),
    }
}

/// `NOTIFY=` in the words of RFC 3461.
fn notify_words(bits: u8) -> String {
    let words = [
        (notify::NEVER, "never"),
        (notify::SUCCESS, "success"),
        (notify::FAILURE, "failure"),
        (notify::DELAY, "delay"),
    ];
    words.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, word)| *word).collect::<Vec<_>>().join(",")
}

/// A message as it would be sent from the first queue that it waits in: without fields that do not go out, and signed.
/// `None` where it is not here.
///
/// # Errors
/// A sentence when it cannot be shown.
pub async fn content(shard: &Rc<Shard>, id: MessageId) -> Result<Option<Vec<u8>>, String> {
    let Some(Record { content, whose, .. }) = found(shard, id).await.into_iter().next() else { return Ok(None) };
    let bytes = content.body.iter().map(Bytes::len).sum::<usize>();
    if bytes > SHOWN_MAX {
        return Err(format!("the message has {bytes} bytes, and at most {SHOWN_MAX} are shown"));
    }
    let (queue, to) = {
        let Ok(e) = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&content.envelope) else { return Ok(None) };
        let waits = places(&shard.scheduler(), whose, e.recipients.len()).into_iter().find_map(|p| match p {
            Place::Waits(id, ..) => Some(id),
            Place::Elsewhere => None,
        });
        let Some(first) = e.recipients.first() else { return Ok(None) };
        let queue = shard.decide(|engine, now| {
            let id = waits.unwrap_or_else(|| engine.queue_for(&first.destination, &e.vmta, now));
            // Keys are those of the virtual MTA that would send it.
            let _ = engine.path_for(id, 0, now);
            id
        });
        (queue, first.address.as_str().to_owned())
    };
    Ok(as_sent(shard, queue, &content, &to).await.map(|body| body.concat()))
}

//! `delete`: recipients that an operator takes out of their queues.

use std::rc::Rc;
use std::time::Duration;

use ipc::dice::HashMap;
use ipc::message::ArchivedEnvelope;
use ipc::queue_orders::{Deletion, QueuePattern};
use spool::{Outcomes, Settled, SpoolError};
use tokio::time::Instant;

use super::conclusion::{Attempt, Common, accounted, reports};
use super::path::path_of_queue;
use crate::classify::outcome::Verdict;
use crate::clock;
use crate::prepare::content::Content;
use crate::prepare::vmta_name::name_or_default;
use crate::report::recorded;
use crate::route::stored::load;
use crate::schedule::removal::TakenOut;
use crate::schedule::{Batch, Entry, QueueId, Slot};
use crate::shard::{Scheduler, Shard};

/// Messages that one request looks at, bytes of them, and the time it takes: others are served in
/// between, heartbeats among them.
const MESSAGES_MAX: usize = 1_000;
const BYTES_MAX: usize = 64 << 20;
const TIME_MAX: Duration = Duration::from_secs(1);

/// A message and those of its recipients that are meant.
struct Meant {
    key: u64,
    content: Rc<Content>,
    recipients: Vec<u16>,
    /// It chose the virtual MTA that is meant itself.
    chose: bool,
}

/// Deletes what a deletion means among the next messages behind number `after`; answers, once that is on disk, how many
/// recipients, and the number to go on behind, if there are more messages.
///
/// # Errors
/// They are deleted, and may come back with the next process: that they ended could not be written.
pub async fn delete(shard: &Rc<Shard>, d: &Deletion, after: Option<u64>) -> Result<(u64, Option<u64>), SpoolError> {
    let (messages, mut next) = next_messages(shard, d, after);
    let mut wanted: HashMap<Slot, Meant> = HashMap::default();
    let (began, mut bytes, mut last) = (Instant::now(), 0, None);
    for (key, slot) in messages {
        if bytes > BYTES_MAX || began.elapsed() > TIME_MAX {
            next = last;
            break;
        }
        last = Some(key);
        let Ok(content) = load(shard, slot, key).await else { continue };
        let Ok(e) = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&content.envelope) else { continue };
        let recipients = recipients(e, d);
        if !recipients.is_empty() {
            bytes += content.stored().iter().map(bytes::Bytes::len).sum::<usize>();
            let chose = chose(e, &d.of);
            wanted.insert(slot, Meant { key, content, recipients, chose });
        }
    }
    // As they are now: mail may have changed its queue meanwhile.
    let meant = |s: &Scheduler| s.queues.iter().filter(|(_, q)| q.is_meant_by(&d.of)).map(|(id, _)| id).collect();
    let queues: Vec<QueueId> = if wanted.is_empty() { Vec::new() } else { meant(&shard.scheduler()) };
    let mut deleted = 0;
    for id in queues {
        // What is under way ends as the receiver says; whose slot is another message's by now stays.
        let taken = {
            let all = shard.scheduler().queues.get(id).is_some_and(|q| q.is_named_by(&d.of));
            let is_meant = |message: u64, slot: Slot, r: u16| {
                let is = |m: &Meant| m.key == message && (all || m.chose) && m.recipients.binary_search(&r).is_ok();
                wanted.get(&slot).is_some_and(is)
            };
            shard.decide(|e, _| e.take_out(id, is_meant))
        };
        for t in taken {
            deleted += t.recipients.len() as u64;
            if let Some(m) = wanted.get(&t.entry.slot) {
                end(shard, id, &t, Rc::clone(&m.content), d).await;
            }
        }
    }
    if !ipc::planted!("deletion-not-waited-for") {
        shard.spool.barrier().await?;
    }
    Ok((deleted, next))
}

/// Messages that may be meant, as far as memory tells, in the order of their numbers in the spool; and
/// the last of them, if there are more.
pub(super) fn next_messages(shard: &Shard, d: &Deletion, after: Option<u64>) -> (Vec<(u64, Slot)>, Option<u64>) {
    let s = shard.scheduler();
    let job = match &d.job_id {
        Some(name) => match s.jobs.iter().find(|(_, j)| *j.name == **name) {
            Some((id, _)) => Some(id),
            None => return (Vec::new(), None),
        },
        None => None,
    };
    let latest = d.older_than_ms.map_or(i64::MAX, |age| clock::now_ms().saturating_sub_unsigned(age));
    let mut all = Vec::new();
    for (_, q) in s.queues.iter().filter(|(_, q)| q.is_meant_by(&d.of)) {
        all.extend(q.entries().filter_map(|e| {
            let m = s.messages.get(e.slot as usize)?;
            let meant = after.is_none_or(|a| m.key > a) && job.is_none_or(|j| j == m.job) && m.received_ms <= latest;
            meant.then_some((m.key, e.slot))
        }));
    }
    let mut next = None;
    if all.len() > MESSAGES_MAX {
        let (_, (last, _), _) = all.select_nth_unstable(MESSAGES_MAX);
        let last = *last;
        all.retain(|(key, _)| *key <= last);
        next = Some(last);
    }
    // A message has an entry for each time that its recipients are due.
    all.sort_unstable();
    all.dedup();
    (all, next)
}

/// A message chose the virtual MTA or pool of a pattern. Where reroutes sent its mail on, it waits beside that of others.
pub(super) fn chose(e: &ArchivedEnvelope, of: &QueuePattern) -> bool {
    of.via == "*" || of.via.eq_ignore_ascii_case(name_or_default(&e.vmta))
}

/// Recipients of a message that are meant, in order.
fn recipients(e: &ArchivedEnvelope, d: &Deletion) -> Vec<u16> {
    let is = |pattern: &Option<String>, text: &str| pattern.as_ref().is_none_or(|p| matches(p, text));
    if !is(&d.orig, e.sender.as_str()) || d.env_id.as_ref().is_some_and(|id| e.envid.as_str() != id) {
        return Vec::new();
    }
    let all = (0u16..).zip(e.recipients.iter());
    all.filter(|(_, r)| is(&d.rcpt, r.address.as_str())).map(|(i, _)| i).collect()
}

/// Whether a text is an address as a pattern says it, in which `*` stands for any characters. Case does
/// not count.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.to_lowercase(), text.to_lowercase());
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// Ends recipients that were taken out, with their records; then tells their sender, where that is
/// wanted: a report may have to wait for room.
async fn end(shard: &Rc<Shard>, id: QueueId, t: &TakenOut, content: Rc<Content>, d: &Deletion) {
    let (key, n, slot) = (t.key, t.recipients.len(), t.entry.slot);
    let path = path_of_queue(shard, id);
    let verdict = Verdict::own("5.0.0", "deleted by administrator");
    let verdicts: Vec<(u16, Verdict)> = t.recipients.iter().map(|r| (*r, verdict.clone())).collect();
    let at = Attempt::default();
    let mut rows = Vec::new();
    if let (true, Some(path)) = (d.accounting, &path)
        && let Ok(e) = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&content.envelope)
    {
        let batch =
            Batch { recipients: t.recipients.clone(), ..Batch::of(id, key, Entry { end: t.entry.start, ..t.entry }) };
        let mut common = Common::default();
        for (r, v) in &verdicts {
            rows.extend(accounted(shard, path, &batch, e, &content.body, *r, v, &at, &mut common));
        }
    }
    shard.counters.bounced.set(shard.counters.bounced.get() + n as u64);
    let last = shard.decide(|e, _| e.settle(id, slot, key, n));
    let mut told = Vec::new();
    if let (true, Some(path)) = (d.dsn, path)
        && let Ok(e) = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&content.envelope)
    {
        told = reports(shard, &path, e, &content.body, &verdicts, &at, |_| true).await;
    }
    let settled = Settled { key, recipients: t.recipients.clone(), last, rows };
    recorded::record(shard, Outcomes { settled: Some(settled), ..Default::default() }, told);
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, text, is) in [
            ("a@d.test", "A@d.TEST", true),
            ("a@d.test", "aa@d.test", false),
            ("*@d.test", "a@d.test", true),
            ("*@d.test", "a@d.test.example", false),
            ("news-*@*.test", "news-7@x.test", true),
            ("news-*@*.test", "old-news-7@x.test", false),
            ("*", "", true),
            ("a*a", "a", false),
            ("*ab*ab", "ab", false),
        ] {
            assert_eq!(matches(pattern, text), is, "{pattern} {text}");
        }
    }
}

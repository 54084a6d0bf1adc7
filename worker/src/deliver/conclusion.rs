//! What outcomes do to recipients: reports, accounting rows, and their records in the spool.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use ipc::message::ArchivedEnvelope;
use ipc::rules::DomainRules;
use spool::layout::UpdateEntry;
use spool::{RecipientState, Settled};

use super::connection::{Path, load, path_of_queue};
use super::local::Type;
use super::mode;
use super::session::Session;
use crate::account::record::{self, Row};
use crate::classify::bounce_category;
use crate::classify::outcome::{Failure, Outcome, Verdict};
use crate::clock;
use crate::connect::tls;
use crate::report::dsn;
use crate::schedule::scheduler::Content;
use crate::schedule::{Batch, Entry, QueueId};
use crate::shard::{Shard, add};

/// Where an attempt was made, for accounting and reports.
#[derive(Debug, Default)]
pub(super) struct Attempt {
    host: String,
    ip: String,
    local: String,
    extensions: String,
    tls: Option<tls::Outcome>,
}

impl Attempt {
    fn of_failure(f: &Failure) -> Attempt {
        Attempt { host: f.host.clone(), ip: f.ip.clone(), ..Default::default() }
    }

    pub(super) fn of_session(s: &Session) -> Attempt {
        Attempt {
            host: s.host.clone(),
            ip: s.peer.ip().to_string(),
            local: s.local.to_string(),
            extensions: s.extensions.names.clone(),
            tls: s.tls.clone(),
        }
    }
}

/// Records outcomes: reports first, then the final records with their accounting rows.
#[allow(clippy::too_many_arguments)]
pub(super) async fn conclude(
    shard: &Rc<Shard>,
    path: &Path,
    batch: &Batch,
    e: &ArchivedEnvelope,
    body: &[Bytes; 2],
    verdicts: Vec<(u16, Verdict)>,
    at: &Attempt,
) {
    let (now, key) = (clock::now_ms(), batch.key);
    let before = delay_reports(shard, path, key, e, &verdicts).await;
    let due_reports = delay_reports_due(e.received_unix_ms.to_native(), now, &path.rules);
    report(shard, path, e, body, &verdicts, at, |r| due_reports > before.get(&r).copied().unwrap_or(0)).await;
    let size = (body[0].len() + body[1].len()) as u64;
    let (mut ended, mut rows, mut retry, mut updates, mut t_rows) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let due = now + path.rules.retry_recipients_after.as_millis() as i64;
    let mut delivered = 0u64;
    let config = shard.config();
    for (r, v) in &verdicts {
        let kind = match v.outcome {
            Outcome::Delivered => b'd',
            Outcome::Bounced => b'b',
            Outcome::Deferred => b't',
        };
        let accounted = !path.rules.disable_acct_records.iter().any(|k| k.as_bytes() == [kind]);
        let category = || if kind == b'd' { "" } else { bounce_category::of(config.bounce_rules(), v) };
        let line = accounted.then(|| row(kind, path, e, *r, v, category(), at, now, size).encode());
        tracing::debug!(message = %ipc::message::MessageId(e.id.0), shard = shard.number, queue = path.name, recipient = *r, outcome = ?v.outcome, status = v.status, "attempt");
        if v.outcome == Outcome::Deferred {
            retry.push(*r);
            let reported = before.get(r).map_or(0, |n| due_reports.max(*n));
            let state = RecipientState { due_unix_ms: due, delay_reports: reported, last_reply: v.diagnostic.clone() };
            updates.push(UpdateEntry { key, recipient: *r, state });
            t_rows.extend(line);
        } else {
            delivered += u64::from(v.outcome == Outcome::Delivered);
            ended.push(*r);
            rows.extend(line);
        }
    }
    let c = &shard.counters;
    add(&c.delivered, [delivered, u64::from(delivered > 0), if delivered > 0 { size } else { 0 }]);
    c.bounced.set(c.bounced.get() + ended.len() as u64 - delivered);
    c.deferred.set(c.deferred.get() + retry.len() as u64);
    let turn = judge(shard, path, &verdicts, at, delivered);
    if let Some(turn) = turn {
        mode::turned(shard, path.id, turn, "backoff-to-normal-after-delivery");
    }
    let waits = !retry.is_empty();
    {
        let mut s = shard.scheduler.borrow_mut();
        if waits {
            s.retry(batch, &retry, due);
            shard.spool.update(updates, t_rows);
        }
        if !ended.is_empty() {
            let last = s.settle(batch.queue, batch.slot, ended.len());
            shard.spool.settle(Settled { key, recipients: ended, last, rows });
        }
    }
    if waits {
        // What was in flight when the rest was rerouted follows it.
        mode::reroute(shard, batch.queue);
    }
}

/// What an attempt says of the path.
fn judge(
    shard: &Shard,
    path: &Path,
    verdicts: &[(u16, Verdict)],
    at: &Attempt,
    delivered: u64,
) -> Option<crate::schedule::path::Turn> {
    let s = &mut *shard.scheduler.borrow_mut();
    let failure = verdicts
        .iter()
        .rev()
        .find(|(_, v)| v.outcome != Outcome::Delivered)
        .map(|(_, v)| Rc::new(Failure { verdict: v.clone(), host: at.host.clone(), ip: at.ip.clone() }));
    if let (Some(q), Some(f)) = (s.queues.get_mut(path.queue), &failure) {
        q.last_failure = Some(Rc::clone(f));
    }
    if delivered > 0 {
        s.queues.get_mut(path.queue).into_iter().for_each(|q| q.retry_step = 0);
    }
    let p = s.paths.get_mut(path.id)?;
    p.last_failure = failure.or_else(|| p.last_failure.take());
    if delivered > 0 {
        return p.delivered(clock::now_ms());
    }
    // A mailbox that does not exist says nothing of the sender.
    let ill = |v: &Verdict| v.outcome == Outcome::Deferred || v.status.starts_with("5.7");
    if verdicts.iter().any(|(_, v)| ill(v)) {
        p.judged(false);
    }
    None
}

/// Queues the reports that the sender asked for.
async fn report(
    shard: &Rc<Shard>,
    path: &Path,
    e: &ArchivedEnvelope,
    body: &[Bytes; 2],
    verdicts: &[(u16, Verdict)],
    at: &Attempt,
    delay_is_due: impl Fn(u16) -> bool,
) {
    for outcome in [Outcome::Bounced, Outcome::Deferred, Outcome::Delivered] {
        let action = match outcome {
            Outcome::Bounced => "failed",
            Outcome::Deferred => "delayed",
            Outcome::Delivered => "relayed",
        };
        // A receiver that supports DSN reports success itself.
        if outcome == Outcome::Delivered && at.extensions.split(',').any(|x| x == "DSN") && !path.rules.ignore_dsn {
            continue;
        }
        let parts: Vec<dsn::Part> = verdicts
            .iter()
            .filter(|(r, v)| v.outcome == outcome && dsn::wanted(e, *r, &outcome))
            .filter(|(r, _)| outcome != Outcome::Deferred || delay_is_due(*r))
            .map(|(r, v)| dsn::Part { recipient: *r, verdict: v.clone(), action, remote: at.host.clone() })
            .collect();
        if parts.is_empty() {
            continue;
        }
        while let Err(error) = dsn::send(shard, e, &parts, body).await {
            tracing::warn!(error = %error, "a delivery status notification finds no room; tried again");
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    }
}

/// Delay reports sent so far, for the deferred recipients whose sender wants them.
async fn delay_reports(
    shard: &Rc<Shard>,
    path: &Path,
    key: u64,
    e: &ArchivedEnvelope,
    verdicts: &[(u16, Verdict)],
) -> HashMap<u16, u16> {
    let mut all = HashMap::new();
    if path.rules.notify_of_delay_every.is_zero() {
        return all;
    }
    for (r, v) in verdicts {
        if v.outcome == Outcome::Deferred && dsn::wanted(e, *r, &v.outcome) {
            let state = shard.spool.state(key, *r).await.ok().flatten();
            all.insert(*r, state.map_or(0, |s| s.delay_reports));
        }
    }
    all
}

/// Delay reports that are due by now: one each time `notify-of-delay-every` has passed.
fn delay_reports_due(received: i64, now: i64, rules: &DomainRules) -> u16 {
    let every = rules.notify_of_delay_every.as_millis().clamp(1, i64::MAX as u128) as i64;
    ((now - received).max(0) / every).min(i64::from(u16::MAX)) as u16
}

#[allow(clippy::too_many_arguments)]
fn row(
    kind: u8,
    path: &Path,
    e: &ArchivedEnvelope,
    r: u16,
    v: &Verdict,
    category: &str,
    at: &Attempt,
    now: i64,
    size: u64,
) -> Row {
    let rcpt = e.recipients.get(usize::from(r));
    let failed = kind != b'd';
    let tls = |part: fn(&tls::Outcome) -> &str| at.tls.as_ref().map_or_else(String::new, |t| part(t).to_owned());
    let mta = if at.host.is_empty() { String::new() } else { format!("{} ({})", at.host, at.ip) };
    Row {
        kind,
        logged_ms: now,
        queued_ms: e.received_unix_ms.to_native(),
        fields: [
            e.sender.as_str().to_owned(),
            rcpt.map(|r| r.address.as_str().to_owned()).unwrap_or_default(),
            rcpt.map(|r| r.orcpt.as_str().to_owned()).unwrap_or_default(),
            match kind {
                b'd' => "relayed",
                b'b' => "failed",
                _ => "delayed",
            }
            .to_owned(),
            format!("{} ({})", v.status, bounce_category::words(&v.status, v.remote)),
            if v.remote { format!("smtp;{}", v.diagnostic) } else { v.diagnostic.clone() },
            mta,
            category.to_owned(),
            record::source_type(&e.source_type).to_owned(),
            record::source_mta(e),
            Type::of(path.rules.delivery_type).name().to_owned(),
            at.local.clone(),
            at.ip.clone(),
            at.extensions.clone(),
            if failed { String::new() } else { size.to_string() },
            path.vmta_name.as_ref().to_owned(),
            e.job_id.as_str().to_owned(),
            e.envid.as_str().to_owned(),
            path.name.clone(),
            path.pool.as_deref().unwrap_or_default().to_owned(),
            tls(|t| &t.version),
            tls(|t| &t.cipher),
            tls(|t| t.verified),
            tls(|t| t.policy),
        ],
    }
}

/// Bounces everything that waits in a queue.
pub(super) async fn bounce_queue(shard: &Rc<Shard>, path: &Path, id: QueueId, f: &Failure) {
    let waiting = shard.scheduler.borrow_mut().drain(id);
    let at = Attempt::of_failure(f);
    for (entry, _) in waiting {
        let Some((key, content)) = content_of(shard, path, &entry).await else { continue };
        let Ok(e) = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&content.envelope) else { continue };
        let verdicts = (entry.start..entry.end).map(|r| (r, f.verdict.clone())).collect();
        conclude(shard, path, &Batch::of(id, key, entry), e, &content.body, verdicts, &at).await;
    }
}

/// Ends recipients that are older than `bounce-after`, with the last reply as their reason.
pub async fn expire(shard: Rc<Shard>, id: QueueId, entries: Vec<Entry>) {
    let Some(path) = path_of_queue(&shard, id) else { return };
    let never = || Rc::new(Failure::own("5.4.7", "no attempt was made within bounce-after"));
    let failure = shard.scheduler.borrow().queues.get(id).and_then(|q| q.last_failure.clone()).unwrap_or_else(never);
    for entry in entries {
        let Some((key, content)) = content_of(&shard, &path, &entry).await else { continue };
        let Ok(e) = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&content.envelope) else { continue };
        let mut verdicts = Vec::new();
        let mut at = Attempt::of_failure(&failure);
        for r in entry.start..entry.end {
            let last = shard.spool.state(key, r).await.ok().flatten().map(|s| s.last_reply).unwrap_or_default();
            // The spool keeps the beginning of the recipient's own reply; the path's last one
            // is whole and names its host.
            let v = if failure.verdict.diagnostic.starts_with(&last) {
                Verdict { outcome: Outcome::Bounced, status: "5.4.7".into(), ..failure.verdict.clone() }
            } else {
                at = Attempt::default();
                let remote = last.get(..3).is_some_and(|c| c.parse::<u16>().is_ok());
                let stage = failure.verdict.stage;
                Verdict { outcome: Outcome::Bounced, status: "5.4.7".into(), diagnostic: last, remote, stage }
            };
            verdicts.push((r, v));
        }
        conclude(&shard, &path, &Batch::of(id, key, entry), e, &content.body, verdicts, &at).await;
    }
}

/// Reports the delay of recipients that have waited for `notify-of-delay-every`, whether or
/// not they were attempted: a queue whose connections all fail attempts none.
pub async fn report_delays(shard: Rc<Shard>, id: QueueId, entries: Vec<(Entry, i64)>) {
    let Some(path) = path_of_queue(&shard, id) else { return };
    let waits = || Rc::new(Failure::own("4.4.7", "it waits for its turn"));
    let failure = shard.scheduler.borrow().queues.get(id).and_then(|q| q.last_failure.clone()).unwrap_or_else(waits);
    // A path may go on in spite of a 5yz, as with bounce-upon-5xx-greeting no.
    let status = failure
        .verdict
        .status
        .strip_prefix('5')
        .map_or_else(|| failure.verdict.status.clone(), |rest| format!("4{rest}"));
    let v = Verdict { outcome: Outcome::Deferred, status, ..failure.verdict.clone() };
    for (entry, due) in entries {
        let Some(key) = shard.scheduler.borrow().messages.get(entry.slot as usize).map(|m| m.key) else { continue };
        let Ok(content) = load(&shard, entry.slot, key).await else { continue };
        let Ok(e) = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&content.envelope) else { continue };
        let due_reports = delay_reports_due(e.received_unix_ms.to_native(), clock::now_ms(), &path.rules);
        let (mut verdicts, mut updates) = (Vec::new(), Vec::new());
        for r in (entry.start..entry.end).filter(|r| dsn::wanted(e, *r, &v.outcome)) {
            let state = shard.spool.state(key, r).await.ok().flatten().unwrap_or_default();
            if state.delay_reports < due_reports {
                verdicts.push((r, v.clone()));
                let state = RecipientState { due_unix_ms: due, delay_reports: due_reports, ..state };
                updates.push(UpdateEntry { key, recipient: r, state });
            }
        }
        report(&shard, &path, e, &content.body, &verdicts, &Attempt::of_failure(&failure), |_| true).await;
        let waits_still = shard.scheduler.borrow().messages.get(entry.slot as usize).is_some_and(|m| m.key == key);
        if waits_still && !updates.is_empty() {
            shard.spool.update(updates, Vec::new());
        }
    }
}

/// A waiting entry's message; `None`, and noted, when it cannot be read.
async fn content_of(shard: &Rc<Shard>, path: &Path, entry: &Entry) -> Option<(u64, Rc<Content>)> {
    let key = shard.scheduler.borrow().messages.get(entry.slot as usize).map(|m| m.key)?;
    match load(shard, entry.slot, key).await {
        Ok(c) => Some((key, c)),
        Err(e) => {
            unreadable(shard, path, &Batch::of(path.queue, key, *entry), &e);
            None
        }
    }
}

pub(super) fn unreadable(shard: &Rc<Shard>, path: &Path, batch: &Batch, e: &spool::SpoolError) {
    tracing::error!(key = batch.key, queue = path.name, error = %e, "message cannot be read for delivery");
    let mut s = shard.scheduler.borrow_mut();
    if matches!(e, spool::SpoolError::Unreadable { .. }) {
        // In quarantine: an operator's matter now, the queue goes on.
        s.settle(batch.queue, batch.slot, batch.recipients.len());
    } else {
        s.retry(batch, &batch.recipients, clock::now_ms() + 60_000);
    }
}

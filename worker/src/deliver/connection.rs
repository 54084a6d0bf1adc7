//! The life of one connection of a path, and what its outcomes do to recipients.

use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use ipc::ledger::Class;
use ipc::message::ArchivedEnvelope;
use ipc::rules::DomainRules;
use rkyv::util::AlignedVec;
use spool::layout::UpdateEntry;
use spool::{RecipientState, Settled};

use super::session::{Session, SessionFault};
use super::transaction;
use crate::account::record::{self, Row};
use crate::classify::bounce_category;
use crate::classify::outcome::{Outcome, Verdict};
use crate::clock;
use crate::report::dsn;
use crate::route::paths;
use crate::schedule::scheduler::Content;
use crate::schedule::{Batch, Entry, Next, QueueId};
use crate::shard::{NO_VMTA, Shard, add};

/// A connection whose queue has run empty waits this long for more mail when
/// `connection-idle-timeout` is not set: injection comes in bursts.
const IDLE_DEFAULT: Duration = Duration::from_millis(500);
/// How long a connection waits for a rate limit before it gives its slot up.
const RATE_WAIT_MAX: i64 = 5_000;

/// After a connection was refused while others of the path are open, milliseconds.
const CONNECT_AGAIN_MS: i64 = 5_000;

/// What connections of one path share.
struct Path {
    id: QueueId,
    destination: Rc<str>,
    name: String,
    vmta_name: Rc<str>,
    pool: Rc<str>,
    rules: Rc<DomainRules>,
    hello: String,
    source: Option<IpAddr>,
}

fn path_of(shard: &Shard, id: QueueId) -> Option<Path> {
    let config = shard.config();
    let mut s = shard.scheduler.borrow_mut();
    let q = s.queues.get_mut(id)?;
    let vmta = config.snapshot.get().vmtas.get(q.vmta as usize);
    let mut hello = vmta.map(|v| v.host_name.as_str().to_owned()).unwrap_or_default();
    let mut source = None;
    if let Some(hosts) = vmta.map(|v| &v.source_hosts).filter(|h| !h.is_empty()) {
        let h = &hosts[q.source_turn % hosts.len()];
        q.source_turn += 1;
        source = h.ip.parse().ok();
        if !h.name.is_empty() {
            hello = h.name.as_str().to_owned();
        }
    }
    if hello.is_empty() {
        hello.clone_from(&config.global.host_name);
    }
    Some(Path {
        id,
        destination: Rc::clone(&q.destination),
        name: q.name(),
        vmta_name: Rc::clone(&q.vmta_name),
        pool: Rc::clone(&q.pool),
        rules: Rc::clone(&q.rules),
        hello,
        source,
    })
}

/// Opens a connection for queue `id`, counted as connecting, and serves it.
pub async fn run(shard: Rc<Shard>, id: QueueId) {
    let config = shard.config();
    let limit = config.global.total_max_smtp_out as usize;
    let slot = shard.ledger.take(Class::SmtpOut, shard.number, limit, id * 64);
    let slot = match slot {
        Some(s) => s,
        None => {
            shard.scheduler.borrow_mut().queues[id].connecting -= 1;
            let at = clock::now_ms() + 100;
            shard.scheduler.borrow_mut().wake_at(id, at);
            return;
        }
    };
    shard.connections.set(shard.connections.get() + 1);
    if let Some(mut path) = path_of(&shard, id) {
        if let Some(session) = open(&shard, &path).await {
            {
                let mut s = shard.scheduler.borrow_mut();
                let q = &mut s.queues[id];
                q.connecting -= 1;
                q.connections += 1;
            }
            serve(&shard, &mut path, session).await;
            shard.scheduler.borrow_mut().queues[id].connections -= 1;
        } else {
            shard.scheduler.borrow_mut().queues[id].connecting -= 1;
        }
    }
    shard.ledger.give(slot);
    shard.connections.set(shard.connections.get() - 1);
    shard.pump(id);
}

/// Finds a host that takes the session. When none does the whole queue waits or bounces.
async fn open(shard: &Rc<Shard>, path: &Path) -> Option<Session> {
    if shard.scheduler.borrow().queues.get(path.id).is_some_and(|q| q.vmta == NO_VMTA) {
        let text = format!("virtual MTA {} does not exist", path.vmta_name);
        bounce_queue(shard, path, &Verdict::own("5.3.5", text)).await;
        return None;
    }
    let resolver = Rc::clone(&shard.resolver.borrow());
    let hosts = match resolver.hosts(&path.destination, &path.rules).await {
        Ok(h) => h,
        Err(fault) if fault.status().starts_with('5') => {
            bounce_queue(shard, path, &Verdict::own(fault.status(), fault.to_string())).await;
            return None;
        }
        Err(fault) => {
            queue_failed(shard, path, &fault.to_string());
            return None;
        }
    };
    if let Some(q) = shard.scheduler.borrow_mut().queues.get_mut(path.id) {
        q.no_mx = hosts.iter().all(|h| h.implicit);
    }
    let mut last = None;
    let mut attempts = 0;
    for host in &hosts {
        for address in &host.addresses {
            if path.source.is_some_and(|s| s.is_ipv4() != address.is_ipv4()) {
                continue;
            }
            attempts += 1;
            if attempts > path.rules.mx_connection_attempts.max(1) {
                break;
            }
            match greet(shard, path, &host.name, *address, true).await {
                Ok(s) => return Some(s),
                Err(SessionFault::Refused { reply, .. })
                    if reply.is_permanent() && path.rules.bounce_upon_5xx_greeting =>
                {
                    bounce_queue(shard, path, &Verdict::of_reply(&reply)).await;
                    return None;
                }
                Err(fault) => last = Some(fault),
            }
        }
    }
    let text = last.map_or_else(|| "no address of the receiver fits the source address".to_owned(), |f| f.to_string());
    queue_failed(shard, path, &text);
    None
}

/// Connects, greets and negotiates TLS.
async fn greet(
    shard: &Rc<Shard>,
    path: &Path,
    host: &str,
    address: std::net::SocketAddr,
    try_tls: bool,
) -> Result<Session, SessionFault> {
    let r = &path.rules;
    let mut s = Session::connect(host, address, path.source, r.connect_timeout).await?;
    let greeting = s.reply(r.smtp_greeting_timeout).await?;
    if !greeting.is_positive() {
        return Err(s.refused(greeting));
    }
    let limit = r.smtp_multiple_line_response_timeout;
    s.hello(&path.hello, limit).await?;
    if !(r.use_starttls && try_tls) {
        return if r.require_starttls { Err(tls_missing(&s)) } else { Ok(s) };
    }
    if !s.extensions.starttls {
        return if r.require_starttls { Err(tls_missing(&s)) } else { Ok(s) };
    }
    let go = s.command("STARTTLS", limit).await?;
    let negotiated = if go.is_positive() {
        match s.start_tls(std::sync::Arc::clone(&shard.tls), limit).await {
            Ok(()) => s.hello(&path.hello, limit).await,
            Err(e) => Err(e),
        }
    } else if r.require_starttls {
        Err(s.refused(go))
    } else {
        return Ok(s);
    };
    match negotiated {
        Ok(()) => Ok(s),
        Err(e) if r.require_starttls => Err(e),
        Err(e) => {
            // Opportunistic: clear text is better than no delivery.
            tracing::info!(queue = path.name, error = %e, "STARTTLS failed, trying in the clear");
            Box::pin(greet(shard, path, host, address, false)).await
        }
    }
}

fn tls_missing(s: &Session) -> SessionFault {
    SessionFault::Protocol {
        reason: "no STARTTLS offered, which require-starttls demands".into(),
        host: s.host.clone(),
        ip: s.peer.ip(),
    }
}

/// The queue as a whole failed.
fn queue_failed(shard: &Rc<Shard>, path: &Path, error: &str) {
    tracing::info!(shard = shard.number, queue = path.name, error, "queue deferred");
    let mut s = shard.scheduler.borrow_mut();
    if let Some(q) = s.queues.get_mut(path.id) {
        let now = clock::now_ms();
        // Several connections that fail together are one failure.
        if q.retry_at_ms <= now && q.connections == 0 {
            q.defer(now, error.to_owned());
            let at = q.retry_at_ms;
            s.wake_at(path.id, at);
        } else {
            // The connections that are open go on; one more is tried later.
            q.last_error = error.to_owned();
            q.connect_again_ms = now + CONNECT_AGAIN_MS;
            let at = q.connect_again_ms;
            s.wake_at(path.id, at);
        }
    }
}

/// Sends what the scheduler gives until there is nothing left or the session ends.
async fn serve(shard: &Rc<Shard>, path: &mut Path, mut s: Session) {
    let (mut messages, mut errors) = (0u64, 0u64);
    loop {
        let surplus = {
            let sch = shard.scheduler.borrow();
            let q = &sch.queues[path.id];
            if !Rc::ptr_eq(&path.rules, &q.rules) {
                path.rules = Rc::clone(&q.rules);
            }
            q.held || q.has_surplus()
        };
        let max = path.rules.max_msg_per_connection;
        if shard.stopping() || surplus || (max != 0 && messages >= max) {
            break;
        }
        let next = shard.scheduler.borrow_mut().next(path.id, clock::now_ns() as i64);
        match next {
            Next::Send(batch) => {
                paths::note_rate(shard, path.id);
                let more = attempt(shard, path, &mut s, batch, messages > 0, &mut errors).await;
                messages += 1;
                let max = path.rules.max_errors_per_connection;
                if !more {
                    return;
                }
                if max != 0 && errors >= max {
                    break;
                }
                shard.pump(path.id);
            }
            Next::Wait(at) if at - clock::now_ms() <= RATE_WAIT_MAX => {
                let wait = Duration::from_millis((at - clock::now_ms()).max(0) as u64);
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = s.disturbed() => return,
                }
            }
            Next::Wait(_) => break,
            Next::Idle => {
                let limit = match path.rules.connection_idle_timeout {
                    Duration::ZERO => IDLE_DEFAULT,
                    d => d,
                };
                if !wait_for_work(shard, path.id, &mut s, limit).await {
                    break;
                }
            }
        }
    }
    let _ = s.command("QUIT", Duration::from_secs(5)).await;
}

/// Waits, counted as idle, until there may be work; false when the connection should end.
async fn wait_for_work(shard: &Rc<Shard>, id: QueueId, s: &mut Session, limit: Duration) -> bool {
    let work = {
        let mut sch = shard.scheduler.borrow_mut();
        let q = &mut sch.queues[id];
        q.idle += 1;
        Rc::clone(&q.work)
    };
    let stop = shard.stop_signal();
    let more = tokio::select! {
        () = work.notified() => true,
        () = tokio::time::sleep(limit) => false,
        () = s.disturbed() => false,
        () = stop.wait() => false,
    };
    shard.scheduler.borrow_mut().queues[id].idle -= 1;
    more
}

/// Envelope and content of a message: from memory before the first attempt, else from disk.
pub async fn load(shard: &Rc<Shard>, slot: u32, key: u64) -> Result<Rc<Content>, spool::SpoolError> {
    let held = shard.scheduler.borrow().messages.get(slot as usize).and_then(|m| m.content.clone());
    if let Some(c) = held {
        return Ok(c);
    }
    let (bytes, body) = shard.spool.read(key).await?;
    let mut envelope = AlignedVec::<16>::with_capacity(bytes.len());
    envelope.extend_from_slice(&bytes);
    rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&envelope)
        .map_err(|e| spool::SpoolError::Unreadable { key, reason: e.to_string() })?;
    Ok(Rc::new(Content { envelope, body: [body, Bytes::new()] }))
}

/// One transaction; false when the session is over.
async fn attempt(
    shard: &Rc<Shard>,
    path: &Path,
    s: &mut Session,
    batch: Batch,
    reused: bool,
    errors: &mut u64,
) -> bool {
    let content = match load(shard, batch.slot, batch.key).await {
        Ok(c) => c,
        Err(e) => {
            unreadable(shard, path, &batch, &e);
            return true;
        }
    };
    let Ok(e) = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&content.envelope) else { return true };
    let mut result = transaction::send(s, e, &batch.recipients, &content.body, &path.rules).await;
    let fault = result.fault.take();
    if let Some(f) = &fault {
        let stale = reused && matches!(f, SessionFault::Closed { .. }) && result.verdicts.iter().all(Option::is_none);
        if stale {
            // The receiver closed between messages: not an attempt.
            shard.scheduler.borrow_mut().put_back(path.id, batch.slot, &batch.recipients);
            return false;
        }
        tracing::info!(shard = shard.number, queue = path.name, error = %f, "connection lost");
        let v = match f {
            SessionFault::Refused { reply, .. } => Verdict::of_reply(reply),
            f => Verdict::own("4.4.2", f.to_string()),
        };
        result.verdicts.iter_mut().filter(|x| x.is_none()).for_each(|x| *x = Some(v.clone()));
    }
    let mut verdicts: Vec<(u16, Verdict)> =
        batch.recipients.iter().copied().zip(result.verdicts.into_iter().flatten()).collect();
    if verdicts.iter().any(|(_, v)| v.outcome == Outcome::Delivered) {
        // More recipients than the receiver takes at once (RFC 5321 section 4.5.3.1.10): the
        // others go in the next transaction.
        let surplus = |v: &Verdict| v.remote && v.status == "4.5.3" && v.diagnostic.starts_with("452");
        let left: Vec<u16> = verdicts.iter().filter(|(_, v)| surplus(v)).map(|(r, _)| *r).collect();
        if !left.is_empty() {
            verdicts.retain(|(_, v)| !surplus(v));
            shard.scheduler.borrow_mut().put_back(path.id, batch.slot, &left);
        }
    }
    *errors += verdicts.iter().filter(|(_, v)| v.outcome != Outcome::Delivered).count() as u64;
    let at = Attempt::of_session(s);
    conclude(shard, path, batch.slot, batch.key, e, &content.body, verdicts, &at).await;
    fault.is_none()
}

fn unreadable(shard: &Rc<Shard>, path: &Path, batch: &Batch, e: &spool::SpoolError) {
    tracing::error!(key = batch.key, queue = path.name, error = %e, "message cannot be read for delivery");
    let mut s = shard.scheduler.borrow_mut();
    if matches!(e, spool::SpoolError::Unreadable { .. }) {
        // In quarantine: an operator's matter now, the queue goes on.
        s.settle(path.id, batch.slot, batch.recipients.len());
    } else {
        s.retry(path.id, batch.slot, &batch.recipients, clock::now_ms() + 60_000);
    }
}

/// Where an attempt was made, for accounting and reports.
#[derive(Debug, Default)]
struct Attempt {
    host: String,
    ip: String,
    local: String,
    extensions: String,
}

impl Attempt {
    fn of_session(s: &Session) -> Attempt {
        Attempt {
            host: s.host.clone(),
            ip: s.peer.ip().to_string(),
            local: s.local.to_string(),
            extensions: s.extensions.names.clone(),
        }
    }
}

/// Records outcomes: reports first, then the final records with their accounting rows.
#[allow(clippy::too_many_arguments)]
async fn conclude(
    shard: &Rc<Shard>,
    path: &Path,
    slot: u32,
    key: u64,
    e: &ArchivedEnvelope,
    body: &[Bytes; 2],
    verdicts: Vec<(u16, Verdict)>,
    at: &Attempt,
) {
    let now = clock::now_ms();
    let before = delay_reports(shard, path, key, e, &verdicts).await;
    let due_reports = delay_reports_due(e.received_unix_ms.to_native(), now, &path.rules);
    report(shard, path, e, body, &verdicts, at, |r| due_reports > before.get(&r).copied().unwrap_or(0)).await;
    let size = (body[0].len() + body[1].len()) as u64;
    let (mut ended, mut rows, mut retry, mut updates, mut t_rows) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let due = now + path.rules.retry_recipients_after.as_millis() as i64;
    let mut delivered = 0u64;
    for (r, v) in &verdicts {
        let kind = match v.outcome {
            Outcome::Delivered => b'd',
            Outcome::Bounced => b'b',
            Outcome::Deferred => b't',
        };
        let accounted = !path.rules.disable_acct_records.iter().any(|k| k.as_bytes() == [kind]);
        let line = accounted.then(|| row(kind, path, e, *r, v, at, now, size).encode());
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
    let mut s = shard.scheduler.borrow_mut();
    if let Some(q) = s.queues.get_mut(path.id) {
        if delivered > 0 {
            q.delivered();
        } else if !retry.is_empty() {
            q.health *= 0.9;
        }
        if let Some((_, v)) = verdicts.iter().rev().find(|(_, v)| v.outcome != Outcome::Delivered) {
            q.last_error.clone_from(&v.diagnostic);
        }
    }
    if !retry.is_empty() {
        s.retry(path.id, slot, &retry, due);
        shard.spool.update(updates, t_rows);
    }
    if !ended.is_empty() {
        let last = s.settle(path.id, slot, ended.len());
        shard.spool.settle(Settled { key, recipients: ended, last, rows });
    }
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
fn row(kind: u8, path: &Path, e: &ArchivedEnvelope, r: u16, v: &Verdict, at: &Attempt, now: i64, size: u64) -> Row {
    let rcpt = e.recipients.get(usize::from(r));
    let failed = kind != b'd';
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
            format!("{} ({})", v.status, bounce_category::words(&v.status)),
            if v.remote { format!("smtp;{}", v.diagnostic) } else { v.diagnostic.clone() },
            mta,
            if failed { bounce_category::of(&v.status, &v.diagnostic).to_owned() } else { String::new() },
            record::source_type(&e.source_type).to_owned(),
            record::source_mta(e),
            "smtp".to_owned(),
            at.local.clone(),
            at.ip.clone(),
            at.extensions.clone(),
            if failed { String::new() } else { size.to_string() },
            path.vmta_name.as_ref().to_owned(),
            e.job_id.as_str().to_owned(),
            e.envid.as_str().to_owned(),
            path.name.clone(),
            path.pool.as_ref().to_owned(),
        ],
    }
}

/// Bounces everything that waits in a queue.
async fn bounce_queue(shard: &Rc<Shard>, path: &Path, v: &Verdict) {
    let waiting = shard.scheduler.borrow_mut().drain(path.id);
    let entries = waiting.into_iter().map(|(e, _)| e).collect();
    conclude_entries(shard, path, entries, |_| v.clone()).await;
}

async fn conclude_entries(
    shard: &Rc<Shard>,
    path: &Path,
    entries: Vec<Entry>,
    verdict: impl Fn(Option<String>) -> Verdict,
) {
    for entry in entries {
        let Some(key) = shard.scheduler.borrow().messages.get(entry.slot as usize).map(|m| m.key) else { continue };
        let recipients: Vec<u16> = (entry.start..entry.end).collect();
        match load(shard, entry.slot, key).await {
            Ok(content) => {
                let Ok(e) = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&content.envelope) else { continue };
                let mut verdicts = Vec::with_capacity(recipients.len());
                for r in recipients {
                    let last = shard.spool.state(key, r).await.ok().flatten().map(|s| s.last_reply);
                    verdicts.push((r, verdict(last.filter(|t| !t.is_empty()))));
                }
                conclude(shard, path, entry.slot, key, e, &content.body, verdicts, &Attempt::default()).await;
            }
            Err(e) => unreadable(shard, path, &Batch { queue: path.id, slot: entry.slot, key, recipients }, &e),
        }
    }
}

/// Ends recipients that are older than `bounce-after`, with the last reply as their reason.
pub async fn expire(shard: Rc<Shard>, id: QueueId, entries: Vec<Entry>) {
    let Some(path) = path_of(&shard, id) else { return };
    let queue_error = shard.scheduler.borrow().queues.get(id).map(|q| q.last_error.clone()).unwrap_or_default();
    conclude_entries(&shard, &path, entries, |last| {
        let text = last.unwrap_or_else(|| queue_error.clone());
        let remote = text.get(..3).is_some_and(|c| c.parse::<u16>().is_ok());
        Verdict { outcome: Outcome::Bounced, status: "5.4.7".into(), diagnostic: text, remote }
    })
    .await;
}

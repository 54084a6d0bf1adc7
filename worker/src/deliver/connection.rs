//! The life of one connection of a path.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use ipc::ledger::Class;
use ipc::message::ArchivedEnvelope;
use ipc::rules::DomainRules;
use rkyv::util::AlignedVec;

use super::conclusion::{Attempt, bounce_queue, conclude, unreadable};
use super::session::{Session, SessionFault};
use super::transaction;
use crate::classify::outcome::{Failure, Outcome, Verdict};
use crate::clock;
use crate::route::paths;
use crate::schedule::scheduler::Content;
use crate::schedule::{Batch, Next, QueueId};
use crate::shard::{NO_VMTA, Shard};

/// A connection whose queue has run empty waits this long for more mail when
/// `connection-idle-timeout` is not set: injection comes in bursts.
const IDLE_DEFAULT: Duration = Duration::from_millis(500);
/// How long a connection waits for a rate limit before it gives its slot up.
const RATE_WAIT_MAX: i64 = 5_000;

/// After a connection was refused while others of the path are open, milliseconds.
const CONNECT_AGAIN_MS: i64 = 5_000;

/// What connections of one path share.
pub(super) struct Path {
    pub id: QueueId,
    pub destination: Rc<str>,
    pub name: String,
    pub vmta_name: Rc<str>,
    pub pool: Rc<str>,
    pub rules: Rc<DomainRules>,
    hello: String,
    source: Option<IpAddr>,
}

pub(super) fn path_of(shard: &Shard, id: QueueId) -> Option<Path> {
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
    let missing = shard.scheduler.borrow().queues.get(path.id).filter(|q| q.vmta == NO_VMTA).map(|q| q.orphaned);
    if let Some(orphaned) = missing {
        let text = format!("virtual MTA {} does not exist", path.vmta_name);
        if orphaned {
            let text = format!("{text} any more; its mail waits until it is back, or for invalid-virtual-mta-fallback");
            queue_failed(shard, path, Failure::own("4.3.5", text));
        } else {
            bounce_queue(shard, path, &Failure::own("5.3.5", text)).await;
        }
        return None;
    }
    let resolver = Rc::clone(&shard.resolver.borrow());
    let hosts = match resolver.hosts(&path.destination, &path.rules).await {
        Ok(h) => h,
        Err(fault) if fault.status().starts_with('5') => {
            bounce_queue(shard, path, &Failure::own(fault.status(), fault.to_string())).await;
            return None;
        }
        Err(fault) => {
            queue_failed(shard, path, Failure::own(fault.status(), fault.to_string()));
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
                Err(fault) => {
                    let failure = fault.failure();
                    if failure.verdict.outcome == Outcome::Bounced && path.rules.bounce_upon_5xx_greeting {
                        bounce_queue(shard, path, &failure).await;
                        return None;
                    }
                    last = Some(failure);
                }
            }
        }
    }
    let no_address = || Failure::own("4.4.1", "no address of the receiver fits the source address");
    queue_failed(shard, path, last.unwrap_or_else(no_address));
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
fn queue_failed(shard: &Rc<Shard>, path: &Path, failure: Failure) {
    tracing::info!(shard = shard.number, queue = path.name, error = %failure, "queue deferred");
    let mut s = shard.scheduler.borrow_mut();
    if let Some(q) = s.queues.get_mut(path.id) {
        let now = clock::now_ms();
        // Several connections that fail together are one failure.
        if q.retry_at_ms <= now && q.connections == 0 {
            q.defer(now, failure);
            let at = q.retry_at_ms;
            s.wake_at(path.id, at);
        } else {
            // The connections that are open go on; one more is tried later.
            q.last_failure = Some(Rc::new(failure));
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
        let v = f.failure().verdict;
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

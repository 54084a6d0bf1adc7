//! The life of one connection of a path.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use ipc::message::ArchivedEnvelope;

use super::bounce::bounce_queues;
use super::conclusion::without_suppressed;
use super::conclusion::{Attempt, conclude, unreadable};
use super::contained::{contained, hold_after_panic, rest_after_panic};
use super::decision::{Circumstances, Decision, decide};
use super::interruption::OpenConnection;
use super::lease::Lease;
use super::limit_queue::ASK_AGAIN_MS;
use super::open::{give_way, open, skip_host, wait_for_turn};
use super::own_spf::allowed_by_spf;
use super::path::{ServedPath, Waits, for_local_delivery, path_of};
use super::reply_effects::apply_reply_rules;
use super::session::ClientSession;
use super::session_fault::SessionFault;
use super::shared_limits::{Full, LimitPlaces, SourceWants, Wants};
use super::signing::signed;
use super::slow::{EARLY, GRANTED, SLOW, Slow, all_of};
use super::transaction;
use super::windows::within_windows;
use crate::classify::health;
use crate::classify::outcome::{Failure, Outcome, Stage, Verdict};
use crate::clock;
use crate::engine::connections::Blocked;
use crate::log_limit;
use crate::prepare::content::Content;
use crate::prepare::rewrite_list::RewriteList;
use crate::route::stored::load;
use crate::schedule::{Batch, Next, PathId, Queue};
use crate::shard::Shard;
use crate::signal::Signal;
use crate::smtp::flight::Standing;
use crate::suppression::refusals::{self, About};
use crate::tasks::{self, AtEnd};

/// A connection whose queue has run empty waits this long for more mail when
/// `connection-idle-timeout` is not set: injection comes in bursts.
const IDLE_DEFAULT: Duration = Duration::from_millis(500);
/// How long a connection waits for a rate limit before it gives its slot up.
const RATE_WAIT_MAX: i64 = 5_000;

/// A connection that waits for a rate limit for at least so long counts as idle: its place may be given to another.
const RATE_WAIT_IDLE: Duration = Duration::from_millis(200);

/// Messages of one domain's hosts after which others may have the connection's place.
const TURN_MESSAGES: u64 = 16;

/// Begins tasks that open connections, whenever there are too few.
pub async fn begin_openers(shard: Rc<Shard>) {
    loop {
        for _ in 0..shard.openers.to_begin().await {
            let shard = Rc::clone(&shard);
            tasks::begin("opening", move || async move {
                let _counted = AtEnd(|| {
                    // A task that ends in order has told `openers` so itself.
                    if std::thread::panicking() {
                        shard.openers.panicked();
                    }
                });
                open_connections(Rc::clone(&shard)).await;
            });
        }
    }
}

/// Opens connections one after the other. One task does so for many paths, because its memory is taken once: 15 KB that were
/// taken and freed for each of a hundred thousand destinations left holes which no other allocation fits.
async fn open_connections(shard: Rc<Shard>) {
    while let Some(id) = shard.openers.next().await {
        let without_smtp = shard.scheduler().paths.get(id).is_some_and(|p| p.rules.delivery_type != 0);
        if without_smtp {
            let shard = Rc::clone(&shard);
            tasks::begin("delivery", move || run_without_smtp(shard, id));
        } else {
            open_one(&shard, id).await;
        }
        shard.openers.done();
        shard.decide(|e, now| e.opened(now));
    }
}

/// Opens a connection of path `id`, counted as connecting, and lets it be served.
async fn open_one(shard: &Rc<Shard>, id: PathId) {
    let mut lease = Lease::of(shard, id);
    let connected = {
        let connecting = pin!(connect(shard, id, &mut lease));
        contained(connecting).await.unwrap_or_else(|| {
            rest_after_panic(shard, id);
            Ok(None)
        })
    };
    match connected {
        Ok(Some((path, session, held))) => {
            lease.opened(path.origin.as_ref().map(|_| (session.host.clone(), session.parameters.clone())));
            shard.decide(|e, _| e.session_began(id));
            let shard = Rc::clone(shard);
            tasks::begin("connection", move || carry(shard, lease, path, session, held));
        }
        Ok(None) => {}
        Err(blocked) => lease.block(blocked),
    }
}

/// Serves a connection to its end.
async fn carry(shard: Rc<Shard>, lease: Lease, mut path: ServedPath, session: ClientSession, mut held: LimitPlaces) {
    let entry = OpenConnection::take(&shard, path.id, held.keys());
    held.serves();
    tasks::may_panic("carry");
    if contained(pin!(serve(&shard, &mut path, session, &entry))).await.is_none() {
        rest_after_panic(&shard, path.id);
    }
    drop(entry);
    drop(held);
    drop(lease);
}

/// What is not delivered by SMTP needs no host, and counts as a connection all the same.
async fn run_without_smtp(shard: Rc<Shard>, id: PathId) {
    let mut lease = Lease::of(&shard, id);
    lease.opened(None);
    if let Some(mut path) = for_local_delivery(&shard, id)
        && contained(pin!(super::local::serve(&shard, &mut path))).await.is_none()
    {
        rest_after_panic(&shard, id);
    }
}

/// Takes what limits ask for and finds a host.
///
/// # Errors
/// When a limit is reached.
async fn connect(
    shard: &Rc<Shard>,
    id: PathId,
    lease: &mut Lease,
) -> Result<Option<(ServedPath, ClientSession, LimitPlaces)>, Blocked> {
    let config = shard.config();
    let Some(wants) = shard.scheduler().paths.get(id).map(Wants::of) else { return Ok(None) };
    let vmta = config.snapshot.get().vmtas.get(wants.vmta as usize);
    let again = |f: Full| shard.limit_queue.again_ms(f.is_asked, wants.queue_priority(), clock::now_ns() as i64);
    let blocked = |f: Full| Blocked { until_ms: again(f), by: Some(f.by) };
    let mut held = LimitPlaces::take(shard, &config, &wants, vmta, id).map_err(blocked)?;
    // Where only the end of another connection frees a source address, the path looks again within a second all the same.
    let now = clock::now_ms();
    let no_source = |at: i64| Blocked { until_ms: at.clamp(now + ASK_AGAIN_MS, now + 1000), by: None };
    let Some(mut path) = path_of(shard, id).map_err(no_source)? else { return Ok(None) };
    lease.goes_from(&path);
    let of_source = {
        let s = shard.scheduler();
        let p = s.paths.get(id);
        path.place = p.and_then(|p| p.spread.as_ref()).and_then(|t| held.number_under(t.connections));
        p.zip(path.source).and_then(|(p, ip)| SourceWants::of(p, ip))
    };
    if let Some(Err(full)) = of_source.map(|w| held.take_source(&w)) {
        return Err(blocked(full));
    }
    let session = contained(pin!(open_in_turn(shard, &path, &mut held))).await.unwrap_or_else(|| {
        rest_after_panic(shard, id);
        None
    });
    Ok(session.map(|s| (path, s, held)))
}

/// Opens a session, or gives it up when too many take long already, when it has taken long and others want what it holds, and
/// when the shard stops: nothing is lost with a connection that carries no mail yet, and bounces none.
async fn open_in_turn(shard: &Rc<Shard>, path: &ServedPath, held: &mut LimitPlaces) -> Option<ClientSession> {
    let keys = held.keys();
    let mut opening = pin!(open(shard, path, held));
    if let Ok(opened) = tokio::time::timeout(EARLY, opening.as_mut()).await {
        return opened;
    }
    let mut slow = if has_room_early(shard) { takes_long(shard, path) } else { None };
    if slow.is_none() {
        if let Ok(opened) = tokio::time::timeout(SLOW - EARLY, opening.as_mut()).await {
            return opened;
        }
        slow = takes_long(shard, path);
    }
    let may_end = || path.waits.get() != Waits::ForOutcomes;
    let Some(slow) = slow else {
        if may_end() {
            wait_for_turn(shard, path);
            return None;
        }
        return opening.await;
    };
    let is_wanted = async {
        tokio::time::sleep(GRANTED).await;
        let entry = OpenConnection::take(shard, path.id, keys);
        entry.set_idle(true);
        entry.end().wait().await;
    };
    let stop = shard.stop_signal();
    let gives_way = tokio::select! {
        biased;
        opened = opening.as_mut() => return opened,
        () = stop.wait() => false,
        () = slow.has_to_leave() => true,
        () = is_wanted => true,
    };
    if !may_end() {
        return opening.await;
    }
    if gives_way {
        give_way(shard, path);
    }
    None
}

/// Whether so few take long that more may from [`EARLY`] on.
fn has_room_early(shard: &Shard) -> bool {
    shard.openers.openings.count() < shard.slow_max() / 2
}

/// Notes that opening takes long: as long as the returned value lives, the task does not count among those that open connections. `None`
/// where too many take long already.
fn takes_long(shard: &Shard, path: &ServedPath) -> Option<Slow> {
    let is_retry = shard.scheduler().paths.get(path.id).is_some_and(|p| p.retry_step > 0);
    let places = match path.waits.get() {
        Waits::At(address) => Some(all_of(address.ip(), path.group.get())),
        Waits::ForNames | Waits::ForOutcomes => None,
    };
    let slow = shard.openers.openings.enter(places, is_retry, shard.slow_max())?;
    path.slow_at.replace(Some(Rc::clone(&slow.at)));
    shard.openers.help();
    shard.decide(|e, now| e.opened(now));
    Some(slow)
}

/// Whether mail of a queue may go by a connection: the hosts of its domain are those that the
/// connection was opened for, or the host is one of them and is trusted as the domain demands.
fn carries_mail_of(path: &ServedPath, s: &ClientSession, q: &Queue) -> bool {
    q.origin() == path.origin.as_ref() || q.is_carried_by(&s.host, s.parameters.as_ref())
}

/// Sends what the scheduler gives until there is nothing left or the session ends.
async fn serve(shard: &Rc<Shard>, path: &mut ServedPath, mut s: ClientSession, entry: &OpenConnection) {
    tasks::may_panic("serve");
    let (mut messages, mut errors) = (0u64, 0u64);
    let (end, cut) = (entry.end(), entry.cut());
    let rolled_up = path.origin.is_some();
    loop {
        shard.decide(|e, now| e.keep_up(path.id, now));
        let may_go_on = path.refresh(shard);
        let max = path.rules.max_msg_per_connection;
        // Hosts of other domains have their turn.
        if rolled_up && messages % TURN_MESSAGES == TURN_MESSAGES - 1 {
            let s = shard.scheduler();
            let now = clock::now_ms();
            let full = s.paths.get(path.id).is_some_and(|p| p.is_full() || p.blocked_until_ms > now);
            if full && s.has_unserved(path.id, now) {
                break;
            }
        }
        if shard.stopping()
            || shard.spool.holds_deliveries()
            || end.is_raised()
            || !may_go_on
            || (max != 0 && messages >= max + u64::from(ipc::planted!("one-message-too-many-on-a-connection")))
        {
            break;
        }
        let (rates, ledger) = (path.rates(), &shard.ledger);
        // How many recipients the host takes in a transaction, and how many messages in a session.
        let lesson = shard.learned.of(&s.host);
        let offered = &s.extensions;
        if offered.mail_max != 0 && messages >= u64::from(offered.mail_max)
            || lesson.refusals_max != 0 && errors >= u64::from(lesson.refusals_max)
        {
            break;
        }
        let most = [u64::from(lesson.recipients_max), u64::from(offered.rcpt_max)];
        let most = most.into_iter().filter(|n| *n != 0).min().unwrap_or(u64::MAX);
        let serves = |q: &Queue| carries_mail_of(path, &s, q);
        let next = shard.decide(|e, now| {
            let mut shared = |n: u64, bytes| rates.grant(ledger, n.min(most), bytes, now.ns);
            e.next_batch(path.id, path.source, &serves, &mut shared, now)
        });
        match next {
            Next::Send(batch) => {
                path.carries(shard, batch.queue);
                let ordinary = batch.ordinary;
                let (queue, key, whole) = (batch.queue, batch.key, batch.whole());
                let reused = messages > 0;
                let more = contained(pin!(attempt(shard, path, &mut s, batch, reused, &mut errors, &cut))).await;
                let more = more.unwrap_or_else(|| {
                    hold_after_panic(shard, path, &Batch::of(queue, key, whole));
                    false
                });
                shard.decide(|e, _| e.end_batch(path.id, ordinary));
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
                // Others who wait for its place could use it meanwhile.
                entry.set_idle(wait >= RATE_WAIT_IDLE);
                tokio::select! {
                    biased;
                    () = s.disturbed() => return,
                    () = end.wait() => {}
                    () = tokio::time::sleep(wait) => {}
                }
                entry.set_idle(false);
            }
            Next::Wait(_) => break,
            // Mail for other hosts needs the place.
            Next::Idle if rolled_up && shard.scheduler().has_unserved(path.id, clock::now_ms()) => break,
            Next::Idle => {
                let limit = match path.rules.connection_idle_timeout {
                    Duration::ZERO => IDLE_DEFAULT,
                    d => d,
                };
                if !wait_for_work(shard, path.id, &mut s, limit, entry).await {
                    break;
                }
            }
        }
    }
    s.quit().await;
}

/// Waits, counted as idle, until there may be work; false when the connection should end.
async fn wait_for_work(
    shard: &Rc<Shard>,
    id: PathId,
    s: &mut ClientSession,
    limit: Duration,
    entry: &OpenConnection,
) -> bool {
    if !shard.decide(|e, _| e.begins_to_idle(id)) {
        return false;
    }
    let _idles = AtEnd(|| shard.decide(|e, _| e.ends_to_idle(id)));
    tasks::may_panic("idle");
    let waiting = shard.idle.join(id);
    let (stop, end) = (shard.stop_signal(), entry.end());
    entry.set_idle(true);
    let more = tokio::select! {
        biased;
        () = stop.wait() => false,
        () = end.wait() => false,
        () = s.disturbed() => false,
        () = waiting.woken() => true,
        () = tokio::time::sleep(limit) => false,
    };
    entry.set_idle(false);
    more
}

/// One transaction; false when the session is over.
async fn attempt(
    shard: &Rc<Shard>,
    path: &ServedPath,
    s: &mut ClientSession,
    batch: Batch,
    reused: bool,
    errors: &mut u64,
    cut: &Signal,
) -> bool {
    tasks::may_panic("attempt");
    let content = match load(shard, batch.slot, batch.key).await {
        Ok(c) => c,
        Err(e) => {
            unreadable(shard, path, &batch, &e);
            return true;
        }
    };
    let Ok(e) = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&content.envelope) else { return true };
    let batch = match within_windows(shard, path, batch, e) {
        Some(batch) => without_suppressed(shard, path, batch, e, &content.body).await,
        None => None,
    };
    let Some(batch) = batch else {
        give_volume_back(shard, path, &content);
        // After many such messages in a row other tasks of the shard must have had their turn.
        tokio::task::yield_now().await;
        return true;
    };
    let to = batch.recipients.first().and_then(|r| e.recipients.get(usize::from(*r)));
    let to = to.map_or("", |r| r.address.as_str());
    let config = shard.config();
    let rewriting = path.rewriting(shard, &config);
    let sender = RewriteList::sender_to(rewriting.as_deref(), e, to);
    let Some(batch) = allowed_by_spf(shard, path, batch, e, &sender, &content.body).await else {
        give_volume_back(shard, path, &content);
        tokio::task::yield_now().await;
        return true;
    };
    let body = signed(shard, &config, path, &content, to).await;
    // Once the end of the content is on its way the receiver may have it: nothing is taken back.
    let began = clock::now_ms();
    let content_sent = Rc::clone(&s.content_sent);
    content_sent.set(false);
    let stop = shard.stop_signal();
    let cut_in_time = async {
        tokio::select! {
            biased;
            () = stop.wait() => {}
            () = cut.wait() => {}
        }
        if content_sent.get() {
            std::future::pending::<()>().await;
        }
    };
    let sent = tokio::select! {
        biased;
        r = transaction::send(s, (e, &sender), &batch.recipients, &body, &path.rules) => Some(r),
        () = cut_in_time => None,
    };
    let Some(mut sent) = sent else {
        // The shard stops, or mail of a higher queue-priority needs the place: what was under way begins anew.
        let why = if stop.is_raised() { "stop" } else { "queue-priority" };
        if log_limit::allows_line("transfer interrupted", &path.name) {
            tracing::info!(shard = shard.number, queue = path.name, why, "transfer interrupted");
        }
        path.put_back(shard, &batch, &batch.recipients);
        give_volume_back(shard, path, &content);
        return false;
    };
    let needs_tls = s.tls.is_none() && {
        let decided = sent.standings.iter_mut().filter_map(Standing::decided_mut);
        shard.protection.borrow().clear_text_refused(&path.rules, &s.host, s.extensions.starttls, decided)
    };
    learn_refusals(shard, path, &batch, e, &sent.standings);
    let circumstances = Circumstances {
        recipients: &batch.recipients,
        is_reused: reused,
        errors: *errors,
        content_sent: s.content_sent.get(),
        has_others: s.has_others,
        leaves_out_at_421: path.rules.smtp_421_means_mx_unavailable,
        needs_tls,
        lesson: shard.learned.of(&s.host),
        route: apply_reply_rules(shard, path).map(|(route, _)| route),
    };
    let decision = decide(sent, &circumstances);
    if decision.lesson != circumstances.lesson {
        shard.learned.note(&s.host, |l| *l = decision.lesson);
    }
    carry_out(shard, path, s, &batch, reused, &decision).await;
    if !decision.verdicts.iter().any(|(_, v)| v.outcome == Outcome::Delivered) {
        give_volume_back(shard, path, &content);
    }
    *errors += decision.verdicts.iter().filter(|(_, v)| v.outcome != Outcome::Delivered).count() as u64;
    if !decision.verdicts.is_empty() {
        let at = Attempt::of_session(s, began, &content);
        conclude(shard, path, &batch, e, &body, decision.verdicts, &at).await;
    }
    decision.goes_on
}

/// Learns which recipients were refused for themselves (`suppression`): outcomes by rules, or by replies about others, are none of that.
fn learn_refusals(shard: &Shard, path: &ServedPath, batch: &Batch, e: &ArchivedEnvelope, standings: &[Standing]) {
    let alone = standings.iter().filter(|s| matches!(s, Standing::Decided(_))).count() == 1;
    for (r, standing) in batch.recipients.iter().zip(standings) {
        let Standing::Decided(v) = standing else { continue };
        let is_of_recipient = v.stage == Stage::Recipient || alone && v.stage == Stage::Message;
        if let Some(to) = e.recipients.get(usize::from(*r)).filter(|_| is_of_recipient) {
            let (vmta, pool) = (path.vmta_name.as_ref(), path.pool.as_deref());
            let about = About { address: &to.address, vmta, pool, job: &e.job_id };
            refusals::note(shard, &path.rules, about, v, batch.attempts > 0);
        }
    }
}

/// Does what was decided of a transaction, but for recording the verdicts.
async fn carry_out(shard: &Rc<Shard>, path: &ServedPath, s: &ClientSession, batch: &Batch, reused: bool, d: &Decision) {
    if let Some(fault) = &d.fault {
        tell_of_fault(shard, path, fault, reused, d);
    }
    if !d.again.is_empty() {
        let is_left_out = d.fault.is_some() && ipc::planted!("recipients-of-a-lost-session-left-out");
        if !is_left_out {
            path.put_back(shard, batch, &d.again);
        }
    }
    if let Some(fault) = d.fault.as_ref().filter(|_| d.failed_here) {
        let failure = fault.failure();
        // A session that a reply ended was ended in answer to a command of the mail's: it may be about the mailbox.
        let speaks_ill = health::speak_ill(shard.config().bounce_rules(), std::iter::once(&failure.verdict));
        shard.decide(|e, now| e.session_failed(path.id, batch.queue, failure, speaks_ill, now));
    }
    if d.skips_host {
        skip_host(shard, path, &s.host);
    }
    let failure = |v: &Verdict| Failure::at(v.clone(), &s.host, &s.peer.ip().to_string());
    if let Some(v) = &d.defers_path {
        let speaks_ill = health::speaks_ill(shard.config().bounce_rules(), v);
        let failure = failure(v).recorded(&path.rules);
        shard.decide(|e, now| e.defer_path(path.id, failure, speaks_ill, now));
    }
    if let Some(v) = &d.bounces_queue {
        bounce_queues(shard, path, &failure(v)).await;
    }
}

/// Says in the log why a session ended, and counts a receiver that lost step.
fn tell_of_fault(shard: &Shard, path: &ServedPath, fault: &SessionFault, reused: bool, d: &Decision) {
    if matches!(fault, SessionFault::OutOfStep { .. }) {
        let c = &shard.counters.out_of_step;
        c.set(c.get() + 1);
        if log_limit::allows_line("a receiver lost step with a session", &path.name) {
            tracing::error!(shard = shard.number, queue = path.name, error = %fault, "a receiver lost step with a session; no recipient is judged by it");
        }
    }
    // A receiver that closes between messages says nothing.
    if d.verdicts.is_empty() && reused && matches!(fault, SessionFault::Closed { .. }) {
        tracing::debug!(shard = shard.number, queue = path.name, error = %fault, "connection closed between messages");
    } else if log_limit::allows_line("connection lost", &path.name) {
        tracing::info!(shard = shard.number, queue = path.name, error = %fault, again = d.again.len(), "connection lost");
    }
}

/// Bytes that were counted before they were sent, and did not arrive.
fn give_volume_back(shard: &Shard, path: &ServedPath, content: &Content) {
    let bytes = (content.body[0].len() + content.body[1].len()) as u64;
    shard.decide(|e, now| e.not_transferred(path.id, path.source, bytes, now));
    path.rates().not_transferred(&shard.ledger, bytes);
}

//! The life of one connection of a path.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use ipc::backoff::Mode;
use ipc::message::ArchivedEnvelope;
use ipc::rules::{ANY_CONNECTIONS, DomainRules};
use ipc::snapshot::ArchivedVirtualMta;
use rkyv::util::AlignedVec;

use super::conclusion::without_suppressed;
use super::conclusion::{Attempt, conclude, unreadable};
use super::contained::{contained, hold_after_panic, may_panic, rest_after_panic};
use super::interruption::Seat;
use super::mode::{self, bounce_queues};
use super::open::{give_way, open, skip_host, wait_for_turn};
use super::session::{Ear, Session, SessionFault};
use super::shared_limits::{ASK_AGAIN_MS, Full, Held, SharedRates, SourceWants, Wants};
use super::signing::signed;
use super::slow::{EARLY, GRANTED, SLOW, SlowAt};
use super::transaction::{self, Standing};
use crate::classify::health;
use crate::classify::outcome::{Failure, Outcome, Stage, Verdict};
use crate::classify::reply_patterns::Route;
use crate::clock;
use crate::log_limit;
use crate::prepare::content::Content;
use crate::route::{paths, spread};
use crate::schedule::limit::Limit;
use crate::schedule::{Batch, Next, PathId, Queue, QueueId};
use crate::shard::{Shard, Signal};
use crate::smtp::reply::Reply;
use crate::suppression::gate::{self, About};

/// A connection whose queue has run empty waits this long for more mail when
/// `connection-idle-timeout` is not set: injection comes in bursts.
const IDLE_DEFAULT: Duration = Duration::from_millis(500);
/// How long a connection waits for a rate limit before it gives its slot up.
const RATE_WAIT_MAX: i64 = 5_000;

/// Who waits for a rate limit for so long idles.
const RATE_WAIT_IDLE: Duration = Duration::from_millis(200);

/// Messages of one domain's hosts after which others may have the connection's place.
const TURN_MESSAGES: u64 = 16;

/// What opening a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Waits {
    /// DNS and policies.
    #[default]
    ForNames,
    /// The host at an address.
    At(SocketAddr),
    /// Mail is being bounced: that must come to its end.
    ForOutcomes,
}

/// What one connection knows of its path, and of the queue whose mail it carries.
pub(super) struct Path {
    pub id: PathId,
    pub destination: Rc<str>,
    pub name: String,
    pub vmta_name: Rc<str>,
    pub rules: Rc<DomainRules>,
    /// The domain whose hosts the connection is to, where that is not the destination.
    pub origin: Option<Rc<str>>,
    /// The queue that the batch in hand is from.
    pub queue: QueueId,
    /// The pool that the queue belongs to.
    pub pool: Option<Rc<str>>,
    pub hello: String,
    pub source: Option<IpAddr>,
    /// The connection is counted at its source address.
    counted: bool,
    rates: SharedRates,
    /// The mode that they are those of.
    mode: Mode,
    /// They are those of a spread path.
    of_spread: bool,
    /// Which place under `max-smtp-out` the connection has, where the destination is spread.
    place: Option<u32>,
    pub ear: Rc<Ear>,
    /// What is waited for while a connection is opened.
    pub waits: Cell<Waits>,
    /// The hosts that it may lead to, see [`super::slow::group_of`].
    pub group: Cell<u64>,
    /// Where opening the connection counts, once it takes long.
    pub slow_at: RefCell<Option<SlowAt>>,
    /// Recipients of the batch in hand that it is not responsible for any more.
    done: RefCell<Vec<u16>>,
}

impl Path {
    /// Takes the rules in force; false when the path has to rest.
    pub(super) fn refresh(&mut self, shard: &Shard) -> bool {
        let s = shard.scheduler.borrow();
        let Some(p) = s.paths.get(self.id) else { return false };
        if leads_elsewhere(&self.rules, &p.rules) {
            return false;
        }
        if !Rc::ptr_eq(&self.rules, &p.rules) || (self.mode, self.of_spread) != (p.mode, p.spread.is_some()) {
            (self.rules, self.mode, self.of_spread) = (Rc::clone(&p.rules), p.mode, p.spread.is_some());
            let config = shard.config();
            let vmta = config.snapshot.get().vmtas.get(p.vmta as usize);
            self.rates = SharedRates::of(p, vmta, self.source);
        }
        let now = clock::now_ms();
        let disabled = |ip| p.sources.iter().any(|s| s.ip == ip && s.disabled_until_ms > now);
        !(p.held || p.paused || p.has_surplus() || self.is_surplus(p) || self.source.is_some_and(disabled))
    }

    /// All owners of a spread destination share the places of its limit. A connection whose place is above the limit in force is given up.
    fn is_surplus(&self, p: &crate::schedule::Path) -> bool {
        let most = p.limits().smtp_out;
        // What needs no host takes no place.
        let counted = p.spread.is_some() && p.rules.delivery_type == 0;
        counted && most != ANY_CONNECTIONS && self.place.is_none_or(|n| u64::from(n) >= most)
    }

    /// Another batch is in hand.
    pub(super) fn takes_in_hand(&self) {
        self.done.borrow_mut().clear();
    }

    /// These recipients of the batch in hand ended, or are in their queue.
    pub(super) fn is_done_with(&self, recipients: &[u16]) {
        self.done.borrow_mut().extend(recipients);
    }

    /// Recipients of the batch in hand that nothing became of.
    pub(super) fn left_of(&self, batch: &Batch) -> Vec<u16> {
        let done = self.done.borrow();
        batch.recipients.iter().copied().filter(|r| !done.contains(r)).collect()
    }

    /// Recipients of the batch in hand that were not attempted go back to the front.
    pub(super) fn put_back(&self, shard: &Shard, batch: &Batch, recipients: &[u16]) {
        shard.scheduler.borrow_mut().put_back(batch, recipients);
        self.is_done_with(recipients);
    }

    /// Notes which queue the batch in hand is from.
    pub(super) fn carries(&mut self, shard: &Shard, queue: QueueId) {
        self.takes_in_hand();
        self.queue = queue;
        let s = shard.scheduler.borrow();
        self.pool = s.queues.get(queue).and_then(|q| q.pool().cloned());
    }

    /// Rates over all shards.
    pub(super) fn rates(&self) -> &SharedRates {
        &self.rates
    }
}

/// Other rules ask for other hosts, or for another protection: a connection that was opened before does not fit them.
fn leads_elsewhere(before: &Rc<DomainRules>, now: &Rc<DomainRules>) -> bool {
    fn of(r: &DomainRules) -> impl PartialEq + '_ {
        let hosts = (&r.smtp_hosts, r.default_smtp_port, r.delivery_type);
        let tls = (r.use_starttls, r.require_starttls, r.use_dane, r.use_mta_sts);
        let versions = (r.smtp_tls_allow_tlsv12, r.smtp_tls_allow_tlsv13, &r.smtp_tls_ca_file);
        let ciphers = (&r.smtp_tls_ciphers, &r.smtp_tls_tlsv13_ciphersuites);
        (hosts, tls, versions, ciphers, &r.smtp_client_certificate, r.withheld())
    }
    !Rc::ptr_eq(before, now) && of(before) != of(now)
}

/// Source addresses of a virtual MTA.
pub(crate) fn source_addresses(shard: &Shard, vmta: u32) -> Vec<IpAddr> {
    let config = shard.config();
    let hosts = config.snapshot.get().vmtas.get(vmta as usize).map(|v| &v.source_hosts);
    hosts.into_iter().flat_map(|h| h.iter()).filter_map(|h| h.ip.as_str().parse().ok()).collect()
}

/// A source address in turn that may open a connection now, and its EHLO name.
///
/// # Errors
/// When one may, Unix milliseconds; `i64::MAX` where only an event can tell.
fn next_source(
    p: &mut crate::schedule::Path,
    vmta: &ArchivedVirtualMta,
    now_ms: i64,
) -> Result<Option<(IpAddr, String)>, i64> {
    let hosts = &vmta.source_hosts;
    let mut soonest = i64::MAX;
    for i in 0..hosts.len() {
        let h = &hosts[(p.source_turn as usize + i) % hosts.len()];
        let Ok(ip) = h.ip.as_str().parse() else { continue };
        let ready = p.source_ready_ms(ip);
        if ready <= now_ms {
            p.source_turn = ((p.source_turn as usize + i + 1) % hosts.len()) as u16;
            return Ok(Some((ip, h.name.as_str().to_owned())));
        }
        soonest = soonest.min(ready);
    }
    if hosts.is_empty() { Ok(None) } else { Err(soonest) }
}

/// What a connection of path `id` needs to know; counts it at its source address.
///
/// # Errors
/// When there may be a source address for it, Unix milliseconds.
fn path_of(shard: &Shard, id: PathId) -> Result<Option<Path>, i64> {
    let config = shard.config();
    let mut s = shard.scheduler.borrow_mut();
    let picked = s.unserved(id, clock::now_ms());
    let s = &mut *s;
    let Some(p) = s.paths.get_mut(id) else { return Ok(None) };
    let vmta = config.snapshot.get().vmtas.get(p.vmta as usize);
    let mut hello = vmta.map(|v| v.host_name.as_str().to_owned()).unwrap_or_default();
    let mut source = None;
    if let Some((ip, name)) = vmta.map(|v| next_source(p, v, clock::now_ms())).transpose()?.flatten() {
        source = Some(ip);
        if !name.is_empty() {
            hello = name;
        }
    }
    if hello.is_empty() {
        hello.clone_from(&config.global.host_name);
    }
    let counted = source.is_some() && p.limits_sources();
    let first = p.queues.first();
    let queue = picked.or(first).unwrap_or_default();
    if let Some(ip) = source.filter(|_| counted) {
        let rate = p.rules.source_ip_max_connect_rate.of(ip);
        let s = p.source(ip);
        s.connections += 1;
        s.paces.connect.advance(rate, clock::now_ns() as i64, 1);
    }
    Ok(Some(Path {
        id,
        destination: Rc::clone(&p.destination),
        name: p.name(),
        vmta_name: Rc::clone(&p.vmta_name),
        rates: SharedRates::of(p, vmta, source),
        mode: p.mode,
        of_spread: p.spread.is_some(),
        place: None,
        ear: Ear::new(config.patterns(&p.rules.smtp_pattern_list)),
        rules: Rc::clone(&p.rules),
        origin: s.queues.get(queue).and_then(|q| q.origin().cloned()),
        queue,
        pool: None,
        hello,
        source,
        counted,
        waits: Cell::default(),
        group: Cell::default(),
        slow_at: RefCell::default(),
        done: RefCell::default(),
    }))
}

/// For mail of queue `id` that meets no connection: as if it went by the queue's first path.
pub(super) fn path_of_queue(shard: &Shard, id: QueueId) -> Option<Path> {
    let s = shard.scheduler.borrow();
    let q = s.queues.get(id)?;
    let member = q.members.first()?;
    Some(Path {
        id: q.pullers.first().map_or(PathId::MAX, |p| p.path),
        destination: Rc::clone(q.destination()),
        origin: q.origin().cloned(),
        name: format!("{}/{}", ipc::message::shown_domain(q.destination()), member.name),
        vmta_name: Rc::clone(&member.name),
        rules: Rc::clone(&q.rules),
        queue: id,
        pool: q.pool().cloned(),
        hello: String::new(),
        source: None,
        counted: false,
        rates: SharedRates::default(),
        mode: Mode::Normal,
        of_spread: false,
        place: None,
        ear: Ear::new(None),
        waits: Cell::default(),
        group: Cell::default(),
        slow_at: RefCell::default(),
        done: RefCell::default(),
    })
}

/// Opens connections one after the other. What that needs lies in this task for good: taken and
/// freed for each of a hundred thousand destinations it would leave holes that nothing fits.
pub async fn open_connections(shard: Rc<Shard>) {
    while let Some(id) = shard.openers.next().await {
        let without_smtp = shard.scheduler.borrow().paths.get(id).is_some_and(|p| p.rules.delivery_type != 0);
        if without_smtp {
            tokio::task::spawn_local(run_without_smtp(Rc::clone(&shard), id));
        } else {
            open_one(&shard, id).await;
        }
        shard.openers.done();
        shard.opened();
    }
}

/// Opens a connection of path `id`, counted as connecting, and lets it be served.
async fn open_one(shard: &Rc<Shard>, id: PathId) {
    shard.connections.set(shard.connections.get() + 1);
    let connected = {
        let connecting = pin!(connect(shard, id));
        contained(connecting).await.unwrap_or_else(|| {
            rest_after_panic(shard, id);
            Ok(None)
        })
    };
    match connected {
        Ok(Some((path, session, held))) => {
            if let Some(p) = shard.scheduler.borrow_mut().paths.get_mut(id) {
                p.connecting -= 1;
                p.connections += 1;
                shard.openers.learn(p, true);
            }
            tokio::task::spawn_local(carry(Rc::clone(shard), path, session, held));
        }
        other => {
            {
                let mut s = shard.scheduler.borrow_mut();
                if let Some(p) = s.paths.get_mut(id) {
                    p.connecting -= 1;
                    if let Err(Blocked { until_ms, by }) = other {
                        p.ask_again_ms = until_ms;
                        // Asked again and again: the cause lasts until one is opened.
                        (p.blocked_until_ms, p.blocked_by) = (until_ms + 2 * ASK_AGAIN_MS, by);
                    }
                    p.rest(clock::now_ms());
                }
                if let Err(Blocked { until_ms, .. }) = other {
                    s.wake_at(id, until_ms);
                }
            }
            shard.connections.set(shard.connections.get() - 1);
            shard.pump(id);
        }
    }
}

/// Serves a connection to its end.
async fn carry(shard: Rc<Shard>, mut path: Path, session: Session, mut held: Held) {
    let id = path.id;
    let seat = Seat::take(&shard, id, held.keys());
    let host = path.origin.as_ref().map(|_| (session.host.clone(), session.parameters.clone()));
    let count = |opened| {
        host.iter().for_each(|(h, with)| shard.scheduler.borrow_mut().count_host(id, h, with.as_ref(), opened));
    };
    count(true);
    held.serves();
    if contained(pin!(serve(&shard, &mut path, session, &seat))).await.is_none() {
        rest_after_panic(&shard, id);
    }
    count(false);
    drop(seat);
    drop(held);
    leave_source(&shard, &path);
    if let Some(p) = shard.scheduler.borrow_mut().paths.get_mut(id) {
        p.connections -= 1;
        if path.counted && p.blocked_by.is_none() && p.ask_again_ms > 0 {
            // It may have waited for this source address.
            p.ask_again_ms = 0;
        }
        p.rest(clock::now_ms());
    }
    shard.connections.set(shard.connections.get() - 1);
    shard.pump(id);
}

/// What is not delivered by SMTP needs no host, and counts as a connection all the same.
async fn run_without_smtp(shard: Rc<Shard>, id: PathId) {
    let count = |open: bool| {
        if let Some(p) = shard.scheduler.borrow_mut().paths.get_mut(id) {
            p.connecting -= u32::from(open);
            p.connections = if open { p.connections + 1 } else { p.connections - 1 };
        }
    };
    count(true);
    shard.connections.set(shard.connections.get() + 1);
    if let Some(mut path) = for_local_delivery(&shard, id)
        && contained(pin!(super::local::serve(&shard, &mut path))).await.is_none()
    {
        rest_after_panic(&shard, id);
    }
    shard.connections.set(shard.connections.get() - 1);
    count(false);
    shard.pump(id);
}

fn for_local_delivery(shard: &Shard, id: PathId) -> Option<Path> {
    let config = shard.config();
    let (queue, rates) = {
        let s = shard.scheduler.borrow();
        let p = s.paths.get(id)?;
        let vmta = config.snapshot.get().vmtas.get(p.vmta as usize);
        (p.queues.first()?, SharedRates::of(p, vmta, None))
    };
    let path = path_of_queue(shard, queue)?;
    let s = shard.scheduler.borrow();
    let p = s.paths.get(id)?;
    let (name, vmta_name, rules) = (p.name(), Rc::clone(&p.vmta_name), Rc::clone(&p.rules));
    Some(Path { id, name, vmta_name, rules, rates, ..path })
}

/// A limit is reached.
struct Blocked {
    /// When it may be tried again, Unix milliseconds.
    until_ms: i64,
    /// Which one; `None` where no source address is free.
    by: Option<Limit>,
}

/// Takes what limits ask for and finds a host.
///
/// # Errors
/// When a limit is reached.
async fn connect(shard: &Rc<Shard>, id: PathId) -> Result<Option<(Path, Session, Held)>, Blocked> {
    let config = shard.config();
    let Some(wants) = shard.scheduler.borrow().paths.get(id).map(Wants::of) else { return Ok(None) };
    let vmta = config.snapshot.get().vmtas.get(wants.vmta as usize);
    let again = |f: Full| shard.asks.again_ms(f.is_asked, wants.queue_priority());
    let blocked = |f: Full| Blocked { until_ms: again(f), by: Some(f.by) };
    let mut held = Held::take(shard, &config, &wants, vmta, id).map_err(blocked)?;
    // A source address that only an event frees is looked at again before long all the same.
    let now = clock::now_ms();
    let no_source = |at: i64| Blocked { until_ms: at.clamp(now + ASK_AGAIN_MS, now + 1000), by: None };
    let Some(mut path) = path_of(shard, id).map_err(no_source)? else { return Ok(None) };
    let of_source = {
        let s = shard.scheduler.borrow();
        let p = s.paths.get(id);
        path.place = p.and_then(|p| p.spread.as_ref()).and_then(|t| held.number_under(t.connections));
        p.zip(path.source).and_then(|(p, ip)| SourceWants::of(p, ip))
    };
    if let Some(Err(full)) = of_source.map(|w| held.take_source(&w)) {
        leave_source(shard, &path);
        return Err(blocked(full));
    }
    let session = contained(pin!(open_in_turn(shard, &path, &mut held))).await.unwrap_or_else(|| {
        rest_after_panic(shard, id);
        None
    });
    if session.is_none() {
        leave_source(shard, &path);
    }
    Ok(session.map(|s| (path, s, held)))
}

/// Opens a session, or gives it up when too many take long already, when it has taken long and others want what it holds, and
/// when the shard stops: nothing is lost with a connection that carries no mail yet, and bounces none.
async fn open_in_turn(shard: &Rc<Shard>, path: &Path, held: &mut Held) -> Option<Session> {
    let keys = held.keys();
    let mut opening = pin!(open(shard, path, held));
    if let Ok(opened) = tokio::time::timeout(EARLY, opening.as_mut()).await {
        return opened;
    }
    let mut slow = if shard.openers.has_room_early(shard) { shard.openers.slow(shard, path) } else { None };
    if slow.is_none() {
        if let Ok(opened) = tokio::time::timeout(SLOW - EARLY, opening.as_mut()).await {
            return opened;
        }
        slow = shard.openers.slow(shard, path);
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
        let seat = Seat::take(shard, path.id, keys);
        seat.set_idle(true);
        seat.end().wait().await;
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

/// A connection is not one of its source address any more.
fn leave_source(shard: &Shard, path: &Path) {
    let mut s = shard.scheduler.borrow_mut();
    if let (Some(p), Some(ip), true) = (s.paths.get_mut(path.id), path.source, path.counted)
        && let Some(source) = p.sources.iter_mut().find(|s| s.ip == ip)
    {
        source.connections = source.connections.saturating_sub(1);
    }
}

/// Applies what the rules say of all replies since the last time, and answers what is to become
/// of the mail by the first of them that says so, with the reply that it matched.
pub(super) fn heard(shard: &Rc<Shard>, path: &Path) -> Option<(Route, Reply)> {
    let (patterns, all) = path.ear.take()?;
    let mut said = None;
    for h in all {
        let route = mode::apply(shard, path, &patterns, &h.matching, path.source, &h.reply.text());
        said = said.or(route.map(|r| (r, h.reply)));
    }
    said
}

/// Whether mail of a queue may go by a connection: the hosts of its domain are those that the
/// connection was opened for, or the host is one of them and is trusted as the domain demands.
fn carries_mail_of(path: &Path, s: &Session, q: &Queue) -> bool {
    q.origin() == path.origin.as_ref() || q.is_carried_by(&s.host, s.parameters.as_ref())
}

/// Sends what the scheduler gives until there is nothing left or the session ends.
async fn serve(shard: &Rc<Shard>, path: &mut Path, mut s: Session, seat: &Seat) {
    may_panic("serve");
    let (mut messages, mut errors) = (0u64, 0u64);
    let (end, cut) = (seat.end(), seat.cut());
    let rolled_up = path.origin.is_some();
    loop {
        spread::keep_up(shard, path.id);
        let may_go_on = path.refresh(shard);
        let max = path.rules.max_msg_per_connection;
        // Hosts of other domains have their turn.
        if rolled_up && messages % TURN_MESSAGES == TURN_MESSAGES - 1 {
            let s = shard.scheduler.borrow();
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
        let now_ns = clock::now_ns() as i64;
        let (rates, ledger) = (&path.rates, &shard.ledger);
        // What the host takes in a transaction and in a session.
        let lesson = shard.learned.of(&s.host);
        let offered = &s.extensions;
        if offered.mail_max != 0 && messages >= u64::from(offered.mail_max)
            || lesson.refusals_max != 0 && errors >= u64::from(lesson.refusals_max)
        {
            break;
        }
        let most = [u64::from(lesson.recipients_max), u64::from(offered.rcpt_max)];
        let most = most.into_iter().filter(|n| *n != 0).min().unwrap_or(u64::MAX);
        let mut shared = |n: u64, bytes| rates.grant(ledger, n.min(most), bytes, now_ns);
        let serves = |q: &Queue| carries_mail_of(path, &s, q);
        let next = shard.scheduler.borrow_mut().next(path.id, path.source, now_ns, &serves, &mut shared);
        match next {
            Next::Send(batch) => {
                paths::note_rate(shard, path.id);
                path.carries(shard, batch.queue);
                let ordinary = batch.ordinary;
                let (queue, key, whole) = (batch.queue, batch.key, batch.whole());
                let reused = messages > 0;
                let more = contained(pin!(attempt(shard, path, &mut s, batch, reused, &mut errors, &cut))).await;
                let more = more.unwrap_or_else(|| {
                    hold_after_panic(shard, path, &Batch::of(queue, key, whole));
                    false
                });
                shard.scheduler.borrow_mut().free(path.id, ordinary);
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
                seat.set_idle(wait >= RATE_WAIT_IDLE);
                tokio::select! {
                    biased;
                    () = s.disturbed() => return,
                    () = end.wait() => {}
                    () = tokio::time::sleep(wait) => {}
                }
                seat.set_idle(false);
            }
            Next::Wait(_) => break,
            // Mail for other hosts needs the place.
            Next::Idle if rolled_up && shard.scheduler.borrow().has_unserved(path.id, clock::now_ms()) => break,
            Next::Idle => {
                let limit = match path.rules.connection_idle_timeout {
                    Duration::ZERO => IDLE_DEFAULT,
                    d => d,
                };
                if !wait_for_work(shard, path.id, &mut s, limit, seat).await {
                    break;
                }
            }
        }
    }
    s.quit().await;
}

/// Waits, counted as idle, until there may be work; false when the connection should end.
async fn wait_for_work(shard: &Rc<Shard>, id: PathId, s: &mut Session, limit: Duration, seat: &Seat) -> bool {
    {
        let mut sch = shard.scheduler.borrow_mut();
        let Some(p) = sch.paths.get_mut(id) else { return false };
        p.idle += 1;
    }
    let waiting = shard.idle.join(id);
    let (stop, end) = (shard.stop_signal(), seat.end());
    seat.set_idle(true);
    let more = tokio::select! {
        biased;
        () = stop.wait() => false,
        () = end.wait() => false,
        () = s.disturbed() => false,
        () = waiting.woken() => true,
        () = tokio::time::sleep(limit) => false,
    };
    seat.set_idle(false);
    shard.scheduler.borrow_mut().paths.get_mut(id).into_iter().for_each(|p| p.idle -= 1);
    more
}

/// Envelope and content of a message: from memory before the first attempt, else from disk.
pub async fn load(shard: &Rc<Shard>, slot: u32, key: u64) -> Result<Rc<Content>, spool::SpoolError> {
    let held = shard.scheduler.borrow().messages.get(slot as usize).and_then(|m| m.content.clone());
    if let Some(c) = held {
        return Ok(c);
    }
    let (envelope, body) = read(shard, key).await?;
    Ok(Rc::new(Content::new(envelope, [body, Bytes::new()])))
}

/// Envelope and content of a message as they are on disk; the envelope has been validated.
///
/// # Errors
/// [`spool::SpoolError::Unreadable`] where they are damaged, others where they cannot be had now.
pub async fn read(shard: &Shard, key: u64) -> Result<(AlignedVec<16>, Bytes), spool::SpoolError> {
    let (bytes, body) = shard.spool.read(key).await?;
    let mut envelope = AlignedVec::<16>::with_capacity(bytes.len());
    envelope.extend_from_slice(&bytes);
    rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&envelope)
        .map_err(|e| spool::SpoolError::Unreadable { key, reason: e.to_string() })?;
    Ok((envelope, body))
}

/// One transaction; false when the session is over.
async fn attempt(
    shard: &Rc<Shard>,
    path: &Path,
    s: &mut Session,
    batch: Batch,
    reused: bool,
    errors: &mut u64,
    cut: &Signal,
) -> bool {
    may_panic("attempt");
    let content = match load(shard, batch.slot, batch.key).await {
        Ok(c) => c,
        Err(e) => {
            unreadable(shard, path, &batch, &e);
            return true;
        }
    };
    let Ok(e) = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&content.envelope) else { return true };
    let Some(batch) = without_suppressed(shard, path, batch, e, &content.body).await else {
        give_volume_back(shard, path, &content);
        // A run of them must not keep the shard from everything else.
        tokio::task::yield_now().await;
        return true;
    };
    let body = signed(shard, path, &content).await;
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
        r = transaction::send(s, e, &batch.recipients, &body, &path.rules) => Some(r),
        () = cut_in_time => None,
    };
    let Some(mut result) = sent else {
        // The shard stops, or mail of a higher queue-priority needs the place: what was under way begins anew.
        let why = if stop.is_raised() { "stop" } else { "queue-priority" };
        if log_limit::allows_line("transfer interrupted", &path.name) {
            tracing::info!(shard = shard.number, queue = path.name, why, "transfer interrupted");
        }
        path.put_back(shard, &batch, &batch.recipients);
        give_volume_back(shard, path, &content);
        return false;
    };
    let needs_tls = shard.protection.borrow().clear_text_refused(&path.rules, s, &mut result.standings);
    let (fault, mut verdicts) = sort(shard, path, s, &batch, result, reused, *errors);
    // What the receiver said of each recipient itself; what comes of rules, or of others, is not.
    let alone = verdicts.len() == 1;
    for (r, v) in verdicts.iter().filter(|(_, v)| v.stage == Stage::Recipient || (alone && v.stage == Stage::Message)) {
        let Some(to) = e.recipients.get(usize::from(*r)) else { continue };
        let (vmta, pool) = (path.vmta_name.as_ref(), path.pool.as_deref());
        gate::note(
            shard,
            &path.rules,
            About { address: &to.address, vmta, pool, job: &e.job_id },
            v,
            batch.attempts > 0,
        );
    }
    let none = !verdicts.iter().any(|(_, v)| v.outcome == Outcome::Delivered);
    if none {
        give_volume_back(shard, path, &content);
    }
    let mut goes_on = fault.is_none() && !needs_tls;
    match heard(shard, path).map(|(route, _)| route) {
        Some(Route::SkipMx) => {
            // The mail stays, whatever the reply was, and goes to the next host.
            skip_host(shard, path, &s.host);
            let left: Vec<u16> =
                verdicts.iter().filter(|(_, v)| v.outcome != Outcome::Delivered).map(|(r, _)| *r).collect();
            verdicts.retain(|(_, v)| v.outcome == Outcome::Delivered);
            path.put_back(shard, &batch, &left);
            goes_on = false;
        }
        Some(Route::BounceQueue) => {
            for (_, v) in verdicts.iter_mut().filter(|(_, v)| v.outcome == Outcome::Deferred) {
                v.outcome = Outcome::Bounced;
            }
            if let Some((_, v)) = verdicts.iter().find(|(_, v)| v.outcome == Outcome::Bounced) {
                let failure = Failure::at(v.clone(), &s.host, &s.peer.ip().to_string());
                bounce_queues(shard, path, &failure).await;
            }
        }
        Some(Route::DeferQueue) => {
            let last = verdicts.iter().rev().find(|(_, v)| v.outcome != Outcome::Delivered);
            let verdict = last.map_or_else(|| Verdict::own("4.4.0", "deferred by a rule"), |(_, v)| v.clone());
            let ill = health::speaks_ill(shard.config().bounce_rules(), &verdict);
            let failure = Failure::at(verdict, &s.host, &s.peer.ip().to_string()).recorded(&path.rules);
            let mut sch = shard.scheduler.borrow_mut();
            let now = clock::now_ms();
            if let Some(p) = sch.paths.get_mut(path.id).filter(|p| p.retry_at_ms <= now) {
                p.defer(now, Rc::new(failure), ill);
                let at = p.retry_at_ms;
                sch.wake_at(path.id, at);
            }
            goes_on = false;
        }
        Some(Route::BounceRcpt) | None => {}
    }
    if fault.as_ref().is_some_and(SessionFault::is_421) && path.rules.smtp_421_means_mx_unavailable {
        skip_host(shard, path, &s.host);
    }
    *errors += verdicts.iter().filter(|(_, v)| v.outcome != Outcome::Delivered).count() as u64;
    if !verdicts.is_empty() {
        let at = Attempt::of_session(s, began, &content);
        conclude(shard, path, &batch, e, &body, verdicts, &at).await;
    }
    goes_on
}

/// Parts what was decided of recipients from what goes back to its queue and is tried again at
/// once, and keeps what the replies teach about the host. Recipients of which nothing was said have a new connection when the
/// session ended for a reason of its own and each such end brings the mail further: a used connection,
/// a decision on others, something learned. Where it does not, the fault is their deferral.
fn sort(
    shard: &Shard,
    path: &Path,
    s: &Session,
    batch: &Batch,
    result: transaction::Result,
    reused: bool,
    errors: u64,
) -> (Option<SessionFault>, Vec<(u16, Verdict)>) {
    let transaction::Result { standings, too_many_after, fault } = result;
    let content_sent = s.content_sent.get();
    let refused = |st: &&Standing| matches!(st, Standing::Decided(v) if v.outcome != Outcome::Delivered);
    let refusals = standings.iter().filter(refused).count() as u64 + errors;
    let accepted = standings.iter().filter(|st| **st == Standing::Accepted).count() as u16;
    let mut learns = false;
    if let Some(n) = too_many_after {
        learns |= shard.learned.note(&s.host, |l| l.recipients_max = n);
    }
    // It closed in place of an answer, and not just between messages.
    let answered = standings.iter().any(|st| *st != Standing::Unasked);
    let closed = |f: &SessionFault| f.is_421() || answered && f.is_closing();
    if standings.contains(&Standing::Unasked) && !content_sent && fault.as_ref().is_some_and(closed) {
        learns |= shard.learned.note(&s.host, |l| match (u16::try_from(refusals), accepted) {
            (Ok(0), 0) | (Err(_), _) => {}
            (Ok(0), n) => l.recipients_max = n,
            (Ok(n), _) => l.refusals_max = n,
        });
    }
    if let Some(SessionFault::OutOfStep { concerned, .. }) = &fault {
        let c = &shard.counters.out_of_step;
        c.set(c.get() + 1);
        // What was used here is not on the next connection.
        if let Some(extension) = *concerned {
            shard.learned.note(&s.host, |l| l.leave_out(extension));
            learns = true;
        }
    }
    let decides = standings.iter().any(|st| matches!(st, Standing::Decided(_)));
    let is_left_out = |f: &SessionFault| f.is_421() && path.rules.smtp_421_means_mx_unavailable && s.has_others;
    let again = match &fault {
        None => true,
        Some(f) if is_left_out(f) => true,
        Some(f @ SessionFault::OutOfStep { .. }) => {
            if log_limit::allows_line("a receiver lost step with a session", &path.name) {
                tracing::error!(shard = shard.number, queue = path.name, error = %f, "a receiver lost step with a session; no recipient is judged by it");
            }
            reused || learns
        }
        Some(f) => f.is_closing() && (reused || decides || learns),
    };
    let (mut verdicts, mut left) = (Vec::new(), Vec::new());
    for (r, standing) in batch.recipients.iter().copied().zip(standings) {
        match (standing, &fault) {
            (Standing::Decided(v) | Standing::Closing(v), _) => verdicts.push((r, v)),
            // The receiver may have it.
            (Standing::Accepted, Some(f)) if content_sent => verdicts.push((r, f.failure().verdict)),
            (_, Some(f)) if !again => verdicts.push((r, f.failure().verdict)),
            _ => left.push(r),
        }
    }
    if let Some(f) = &fault {
        // A receiver that closes between messages says nothing.
        if verdicts.is_empty() && reused && matches!(f, SessionFault::Closed { .. }) {
            tracing::debug!(shard = shard.number, queue = path.name, error = %f, "connection closed between messages");
        } else if log_limit::allows_line("connection lost", &path.name) {
            tracing::info!(shard = shard.number, queue = path.name, error = %f, again = left.len(), "connection lost");
        }
    }
    if !left.is_empty() {
        if !ipc::planted!("recipients-of-a-lost-session-left-out") {
            path.put_back(shard, batch, &left);
        }
        let mut sch = shard.scheduler.borrow_mut();
        if let Some(f) = fault.as_ref().filter(|f| is_left_out(f)) {
            let failure = sch.shared_failure(f.failure());
            let ill = health::speak_ill(shard.config().bounce_rules(), [&failure.verdict].into_iter());
            if let Some(q) = sch.queues.get_mut(batch.queue) {
                q.last_failure = Some(Rc::clone(&failure));
            }
            if let Some(p) = sch.paths.get_mut(path.id) {
                if ill {
                    p.judged(false);
                }
                p.failed(clock::now_ms(), failure);
            }
        }
    }
    (fault, verdicts)
}

/// Bytes that were counted before they were sent, and did not arrive.
fn give_volume_back(shard: &Shard, path: &Path, content: &Content) {
    let bytes = (content.body[0].len() + content.body[1].len()) as u64;
    shard.scheduler.borrow_mut().not_transferred(path.id, path.source, bytes, clock::now_ns() as i64);
    path.rates.not_transferred(&shard.ledger, bytes);
}

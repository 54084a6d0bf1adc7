//! What one shard owns, and how its queues get connections.

pub mod life;
mod upkeep;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ipc::backoff::Mode;
use ipc::dice::HashMap;
use ipc::layers::NO_VMTA;
use ipc::ledger::Ledger;
use ipc::ledger::shared_limits::mixed;
use ipc::message::{ArchivedEnvelope, ArchivedRecipient, MessageId, notify, priority};
use ipc::queue_orders::Switches;
use ipc::rules::REROUTES_MAX;
use ipc::shard_map::ShardMap;
use spool::layout::UpdateEntry;
use spool::{NewMessage, RecipientState, Recovered, Spool, SpoolError};
use tokio::sync::Notify;
use tokio::task::spawn_local;

use crate::accept::places::Strangers;
use crate::accept::receiving::Receiving;
use crate::account::file::Shown;
use crate::clock;
use crate::config::Config;
use crate::connect::address_health::AddressHealth;
use crate::connect::mx::Resolver;
use crate::deliver::idle::IdleConnections;
use crate::deliver::interruption::Connections;
use crate::deliver::learned::Learned;
use crate::deliver::openers::Openers;
use crate::deliver::security::Protection;
use crate::deliver::shared_limits::{Asks, cut_rates};
use crate::dkim::signers::Signers;
use crate::holds::{Pieces, Work, doing};
use crate::ports::Ports;
use crate::prepare::content::Content;
use crate::prepare::message::name_or_default;
use crate::programs::Programs;
use crate::route::handoff::Handoffs;
use crate::route::last_failures::LastFailures;
use crate::route::moving::Moves;
use crate::route::owner::Taken;
use crate::route::paths::{self, Paths};
use crate::route::rollup::Rollups;
use crate::route::spread;
use crate::schedule::message::Message;
use crate::schedule::scheduler::New;
use crate::schedule::{self, Entry, PathId, QueueId, Slot};
use crate::suppression::gate::Gate;

use life::Parts;

/// Counters for heartbeats.
#[derive(Debug, Default)]
pub struct Counters {
    /// Recipients, messages, bytes accepted.
    pub received: Cell<[u64; 3]>,
    /// Recipients, messages, bytes delivered.
    pub delivered: Cell<[u64; 3]>,
    /// Recipients bounced.
    pub bounced: Cell<u64>,
    /// Recipients deferred, each attempt.
    pub deferred: Cell<u64>,
    /// Sessions that ended for a reply about the order or the form of our commands.
    pub out_of_step: Cell<u64>,
}

/// A signal that many can wait for.
#[derive(Debug, Default)]
pub struct Signal {
    on: Cell<bool>,
    notify: Notify,
}

impl Signal {
    /// Raises it for good.
    pub fn raise(&self) {
        self.on.set(true);
        self.notify.notify_waiters();
    }

    /// Raised.
    pub fn is_raised(&self) -> bool {
        self.on.get()
    }

    /// Resolves when it is raised.
    pub async fn wait(&self) {
        let waiting = self.notify.notified();
        if !self.on.get() {
            waiting.await;
        }
    }
}

/// The queues and paths of a shard, with the contents that it holds in memory.
pub type Scheduler = schedule::Scheduler<Content>;

/// One shard.
pub struct Shard {
    /// Its number.
    pub number: u8,
    /// Configuration in force.
    config: RefCell<Rc<Config>>,
    /// Queues.
    pub scheduler: RefCell<Scheduler>,
    /// Durable storage.
    pub spool: Spool,
    /// What it has of the world around it.
    pub ports: Ports,
    /// DNS.
    pub resolver: RefCell<Rc<Resolver>>,
    /// Limits over all shards.
    pub ledger: Ledger,
    /// Who owns what.
    pub map: RefCell<Rc<ShardMap>>,
    /// Shares for other shards.
    pub handoffs: Handoffs,
    /// Mail on its way to new owners.
    pub moves: Moves,
    /// Shares from other shards.
    pub taken: Taken,
    /// What paths carry over restarts and moves.
    pub paths: Paths,
    /// Why paths waited when the process before stopped.
    pub last_failures: LastFailures,
    /// What operators paused and disabled.
    pub switches: RefCell<Switches>,
    /// Mail that gets another virtual MTA.
    pub rerouting: crate::deliver::rerouting::Rerouting,
    /// Who gave the orders that stand.
    pub standing_orders: crate::standing_orders::Notes,
    /// Why source addresses are disabled.
    pub disabled: crate::disabled::Notes,
    /// There may be mail here that another shard owns.
    pub foreign: Notify,
    /// Which domains share a queue.
    pub rollups: Rollups,
    /// Addresses that do not answer.
    pub address_health: AddressHealth,
    /// What replies taught about hosts.
    pub learned: Learned,
    /// Connections that wait for work.
    pub idle: IdleConnections,
    /// How connections are protected.
    pub protection: RefCell<Rc<Protection>>,
    /// Who gets no mail.
    pub suppression: Gate,
    /// What accounting files show of outcomes.
    pub accounting: RefCell<Arc<Shown>>,
    /// Who makes signatures by slow keys.
    pub signers: Signers,
    /// Statistics.
    pub counters: Counters,
    /// Messages that are being received.
    pub receiving: Receiving,
    /// Programs that are given mail.
    pub programs: Programs,
    /// Its folder lies in a `<spool>` that takes no new mail.
    pub delivers_only: bool,
    /// SMTP sessions served.
    pub sessions: Cell<u32>,
    /// Those of clients that no `<source>` names.
    pub strangers: Strangers,
    /// Outbound connections, those being opened included.
    pub connections: Cell<u32>,
    /// Who opens them.
    pub openers: Openers,
    /// Those that are open.
    pub open: Connections,
    /// Paths that limits over all shards hold up.
    pub asks: Asks,
    stop: Rc<Signal>,
    message_counter: Cell<u64>,
    /// See [`Shard::next_turn`].
    turns: Cell<u64>,
    flush: Notify,
    /// Wakes the scheduler's loop.
    pub timers: Notify,
    /// Turns of pools' members at destinations that are new.
    pool_turns: RefCell<HashMap<Rc<str>, u32>>,
    /// Where the next look after queues and paths begins.
    swept: Cell<(usize, usize)>,
    /// When memory is given back to the system, Unix milliseconds; 0 where there is none to give.
    give_back_ms: Cell<i64>,
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard").field("number", &self.number).finish_non_exhaustive()
    }
}

/// Queues of one path that are counted for the connections that it needs.
const QUEUES_LOOKED_AT: usize = 256;
/// Paths that have their turn to open connections when one was opened, where some have no use for it any more.
const TURNS_AT_ONCE: usize = 64;
/// Members of a pool that are asked, at most, for one that can take a message.
const TURNS_MAX: usize = 8;

/// Queues that recipients of a message are put into at least, before others have their turn.
const ENQUEUED_AT_LEAST: usize = 16;
/// And at most: starting what they wait for takes many times as long.
const ENQUEUED_MAX: usize = 64;

/// A message that is being queued.
struct Enqueueing {
    slot: Slot,
    /// The first recipient that is not queued yet.
    start: usize,
    due_ms: i64,
    /// All queues that it went to so far rest; `None` where it went to none.
    rests: Option<bool>,
    /// Queues that have to be looked at.
    touched: Vec<QueueId>,
}

/// Bytes of content kept in memory until the first attempt, per shard.
const CONTENT_BUDGET_BYTES: u64 = 64 << 20;

impl Shard {
    /// Puts a shard together.
    ///
    /// # Errors
    /// A sentence when DNS, TLS or the suppression lists cannot be used.
    pub fn new(parts: Parts) -> Result<Rc<Shard>, String> {
        let Parts { number, config, spool, ledger, map, ports, accounting, suppression, delivers_only } = parts;
        let resolver = Resolver::new(&config.global.name_servers, config.global.edns_udp_length, &ports.dns)?;
        let protection = Protection::of(&config.global, &ports);
        let lists = Gate::default();
        suppression.iter().try_for_each(|folder| lists.open(folder))?;
        ledger.acts_for(number);
        let shard = Rc::new(Shard {
            number,
            config: RefCell::new(Rc::new(config)),
            scheduler: RefCell::default(),
            spool,
            ports,
            resolver: RefCell::new(Rc::new(resolver)),
            ledger,
            map: RefCell::new(Rc::new(map)),
            handoffs: Handoffs::new(number),
            moves: Moves::default(),
            taken: Taken::default(),
            paths: Paths::default(),
            last_failures: LastFailures::default(),
            switches: RefCell::default(),
            rerouting: Default::default(),
            standing_orders: Default::default(),
            disabled: Default::default(),
            foreign: Notify::new(),
            rollups: Rollups::default(),
            address_health: AddressHealth::default(),
            learned: Learned::default(),
            idle: IdleConnections::default(),
            protection: RefCell::new(Rc::new(protection)),
            suppression: lists,
            accounting: RefCell::new(accounting),
            signers: Signers::default(),
            counters: Counters::default(),
            receiving: Receiving::default(),
            programs: Programs::default(),
            delivers_only,
            sessions: Cell::new(0),
            strangers: Strangers::default(),
            connections: Cell::new(0),
            openers: Openers::default(),
            open: Connections::default(),
            asks: Asks::default(),
            stop: Rc::default(),
            message_counter: Cell::new(clock::now_ns() as u64),
            turns: Cell::new(0),
            flush: Notify::new(),
            timers: Notify::new(),
            pool_turns: RefCell::default(),
            swept: Cell::default(),
            give_back_ms: Cell::new(0),
        });
        Ok(shard)
    }

    /// The configuration in force.
    pub fn config(&self) -> Rc<Config> {
        Rc::clone(&self.config.borrow())
    }

    /// Puts another configuration in force: new work follows it, work in flight ends under
    /// the old one, queues and their clocks go on.
    ///
    /// # Errors
    /// A sentence when it cannot be used; the old one stays.
    pub fn reload(self: &Rc<Self>, config: Config) -> Result<(), String> {
        let old = self.config();
        let asks = |g: &ipc::snapshot::Global| (g.name_servers.clone(), g.edns_udp_length);
        if asks(&old.global) != asks(&config.global) {
            let servers = &config.global.name_servers;
            let resolver = Resolver::new(servers, config.global.edns_udp_length, &self.ports.dns)?;
            *self.resolver.borrow_mut() = Rc::new(resolver);
        }
        // Files that certificates were read from may hold others now.
        self.rollups.forget();
        *self.protection.borrow_mut() = Rc::new(Protection::of(&config.global, &self.ports));
        *self.config.borrow_mut() = Rc::new(config);
        let config = self.config();
        let mut s = self.scheduler.borrow_mut();
        for (id, p) in &mut s.paths {
            let way = config.way(&p.destination, &p.vmta_name);
            let index = way.members.first().filter(|_| !way.of_pool).map_or(NO_VMTA, |m| m.vmta);
            // Mail of a virtual MTA that is gone goes on by the fallback, or waits.
            p.vmta = index;
            if std::mem::replace(&mut p.orphaned, index == NO_VMTA) != (index == NO_VMTA) {
                let held = index == NO_VMTA;
                tracing::warn!(shard = self.number, path = p.name(), held, "virtual MTA of a path went or came back");
                p.retry_at_ms = 0;
            }
            if index != NO_VMTA {
                let (before, list) = (&p.rules.smtp_pattern_list, &way.rules.smtp_pattern_list);
                if !p.matches.is_empty() && (before != list || !config.has_patterns_of(&old, list)) {
                    p.forget_matches();
                }
                if p.rules.smtp_hosts != way.rules.smtp_hosts {
                    p.leads_elsewhere();
                }
                p.rules = way.rules;
                p.limits_changed(clock::now_ms());
            }
            // Connections that wait look at their new limits.
            self.idle.wake_all(id);
        }
        let ids: Vec<QueueId> = s.queues.iter().map(|(id, _)| id).collect();
        for id in &ids {
            let Some(q) = s.queues.get_mut(*id) else { continue };
            // What they demand may be another thing now.
            q.forget_hosts();
            let way = config.way(q.destination(), &q.via);
            if way.members.first().is_some_and(|m| m.vmta == NO_VMTA) {
                // Its path stays as it was, and is looked at there.
                continue;
            }
            if q.rules.smtp_hosts != way.rules.smtp_hosts {
                q.retry_now();
            }
            if way.members == q.members && way.of_pool == q.of_pool {
                s.queues[*id].rules = way.rules;
            } else {
                s.set_way(*id, way);
            }
        }
        drop(s);
        crate::switches::apply(self);
        cut_rates(self);
        ids.into_iter().for_each(|id| self.pump_queue(id));
        Ok(())
    }

    /// Whether a listener is still to be served.
    pub fn serves(&self, address: &str) -> bool {
        !self.stopping() && self.config().has_listener(address)
    }

    /// The shard is stopping.
    pub fn stopping(&self) -> bool {
        self.stop.is_raised()
    }

    /// The shard has no part in the map that is in force: it is to hand over what it has and to end.
    pub fn is_retired(&self) -> bool {
        let map = self.map.borrow();
        !map.shards.is_empty() && !map.shards.contains(&self.number)
    }

    /// Raised when the shard stops.
    pub fn stop_signal(&self) -> Rc<Signal> {
        Rc::clone(&self.stop)
    }

    /// The identity of the next message.
    pub fn next_message_id(&self) -> MessageId {
        let n = self.message_counter.get().wrapping_add(1);
        self.message_counter.set(n);
        MessageId::new(clock::now_ms(), self.number, n)
    }

    /// Another number each time: mail to destinations with several owners goes to them alike.
    pub fn next_turn(&self) -> u64 {
        let n = self.turns.get();
        self.turns.set(n.wrapping_add(1));
        // Injectors that alternate between destinations must not send every turn of one kind to one.
        mixed(u64::from(self.number), n)
    }

    /// Notes a session that began or ended.
    pub fn session_count(&self, change: i32) {
        self.sessions.set(self.sessions.get().saturating_add_signed(change));
        self.ledger.set_sessions(self.number, self.sessions.get());
    }

    /// Notes an accepted message.
    pub fn count_received(&self, recipients: u64, bytes: u64) {
        add(&self.counters.received, [recipients, 1, bytes]);
    }

    /// Tells the other shards how many recipients are queued here.
    pub fn publish_recipients(&self) {
        let here = self.scheduler.borrow().recipients + self.handoffs.kept.recipients();
        self.ledger.set_recipients(self.number, here);
    }

    /// Whether `recipients` more may be queued on this machine (`spool-max-recipients`).
    ///
    /// # Errors
    /// [`SpoolError::Full`] naming the directive.
    pub fn check_room(&self, recipients: usize) -> Result<(), SpoolError> {
        if self.delivers_only {
            return Err(SpoolError::Full("it only delivers what is there (deliver-only of its <spool>)".into()));
        }
        let limit = self.config.borrow().global.spool_max_recipients;
        if limit == 0 {
            return Ok(());
        }
        self.publish_recipients();
        if self.ledger.recipients() + recipients as u64 > limit {
            return Err(SpoolError::Full(format!("the limit of {limit} recipients is reached (spool-max-recipients)")));
        }
        Ok(())
    }

    /// Makes a message durable; the group it joins leaves when nothing more is arriving.
    ///
    /// # Errors
    /// [`SpoolError`]
    pub async fn store(&self, message: NewMessage) -> Result<u64, SpoolError> {
        let done = self.spool.store(message);
        self.flush.notify_one();
        done.await.unwrap_or(Err(SpoolError::Closed))
    }

    /// Lets groups form: as long as every turn of the reactor brings more mail the group
    /// waits, for 2 ms at most. A lone message goes at once.
    pub async fn form_groups(self: Rc<Self>) {
        loop {
            self.flush.notified().await;
            let began = tokio::time::Instant::now();
            let mut before = 0;
            loop {
                tokio::task::yield_now().await;
                let now = self.spool.pending();
                if now == before || began.elapsed() > Duration::from_millis(2) {
                    break;
                }
                before = now;
            }
            self.spool.flush();
        }
    }

    /// Queues a message that has just been stored: of many recipients some at a time, between which others have their turn.
    pub async fn enqueue(self: &Rc<Self>, key: u64, content: Rc<Content>) {
        let mut pieces = Pieces::default();
        let begun = doing(Work::Enqueue, || {
            let e = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&content.envelope).ok()?;
            Some((e, self.begin_to_enqueue(key, &content, e)))
        });
        let Some((e, mut new)) = begun else { return };
        loop {
            doing(Work::Enqueue, || self.enqueue_some(e, &mut new, &pieces));
            if new.start >= e.recipients.len() {
                return;
            }
            pieces.pause().await;
        }
    }

    /// Puts a message among those in memory; none of its recipients is queued yet.
    fn begin_to_enqueue(&self, key: u64, content: &Rc<Content>, e: &ArchivedEnvelope) -> Enqueueing {
        let body_len = (content.stored()[0].len() + content.stored()[1].len()) as u32;
        let due_ms = e.moved.as_ref().map_or(0, |m| m.due_unix_ms.to_native());
        if let Some(moved) = e.moved.as_ref().filter(|m| due_ms > 0 || m.attempts > 0) {
            // Its recipients' state came along, and outlives this process too.
            let state = RecipientState {
                due_unix_ms: due_ms,
                delay_reports: moved.delay_reports,
                attempts: moved.attempts,
                last_reply: moved.last_reply.as_str().to_owned(),
            };
            let of = |recipient| UpdateEntry { key, recipient, state: state.clone() };
            self.spool.update((0..e.recipients.len() as u16).map(of).collect(), Vec::new());
        }
        let s = &mut *self.scheduler.borrow_mut();
        let keep = s.content_bytes < CONTENT_BUDGET_BYTES;
        let slot = s.add(
            &e.job_id,
            Message {
                key,
                received_ms: e.received_unix_ms.to_native(),
                body_len,
                left: e.recipients.len() as u16,
                notify_delay: e.recipients.iter().any(|r| r.notify & notify::DELAY != 0),
                job: 0,
                content: keep.then(|| Rc::clone(content)),
            },
        );
        Enqueueing { slot, start: 0, due_ms, rests: None, touched: Vec::new() }
    }

    /// Queues recipients as long as the piece lasts, and starts what they wait for.
    fn enqueue_some(self: &Rc<Self>, e: &ArchivedEnvelope, new: &mut Enqueueing, pieces: &Pieces) {
        let now = clock::now_ms();
        {
            let s = &mut *self.scheduler.borrow_mut();
            let mut queues = 0;
            let is_over = |queues| queues >= ENQUEUED_MAX || (queues >= ENQUEUED_AT_LEAST && pieces.is_long());
            while new.start < e.recipients.len() && !is_over(queues) {
                queues += 1;
                let first = &e.recipients[new.start];
                let (destination, given) = (first.destination.as_str(), first.priority_given);
                let sent = |r: &ArchivedRecipient| r.notify & notify::NOT_TO_BE_SENT == 0;
                let alike = |r: &&ArchivedRecipient| {
                    r.destination == first.destination && r.priority_given == given && sent(r) == sent(first)
                };
                let same = e.recipients[new.start..].iter().take_while(alike).count();
                let id = self.queue_for(s, destination, &e.vmta);
                if e.moved.is_some() || e.handoff.is_some() {
                    self.was_accepted_before(s, id);
                }
                let (from, end, priority) = (new.start as u16, (new.start + same) as u16, priority(given));
                let attempts = e.moved.as_ref().map_or(0, |m| m.attempts);
                let entry = Entry { slot: new.slot, start: from, end, priority, attempts };
                if sent(first) {
                    s.enqueue(id, entry, new.due_ms, now);
                    if let Some(m) = e.moved.as_ref().filter(|m| !m.last_reply.is_empty()) {
                        s.recall(id, m.last_reply.as_str(), new.due_ms);
                    }
                    new.touched.push(id);
                } else {
                    // Whom it was accepted for only to bounce waits for no receiver.
                    s.count_in(id, &entry);
                    spawn_local(crate::deliver::conclusion::bounce_refused(Rc::clone(self), id, entry));
                }
                new.start += same;
            }
            if !new.touched.is_empty() {
                let rest = new.touched.iter().all(|id| s.rests(*id, now));
                new.rests = Some(rest && new.rests != Some(false));
            }
            if new.start >= e.recipients.len() && new.rests == Some(true) {
                // Its receivers failed a moment ago: by the first attempt memory is worth more to others.
                s.drop_content(new.slot);
            }
        }
        new.touched.drain(..).for_each(|id| self.pump_queue(id));
    }

    /// When mail of queue `id` was accepted its virtual MTA was there, or the reply would have
    /// been another: where it is not any more, it waits.
    fn was_accepted_before(&self, s: &mut Scheduler, id: QueueId) {
        if s.queues.get(id).is_some_and(|q| q.members.first().is_some_and(|m| m.vmta == NO_VMTA))
            && let Some(path) = self.path_for(s, id, 0).and_then(|p| s.paths.get_mut(p))
        {
            path.orphaned = true;
        }
    }

    /// Queues a message that was found when the spool opened.
    pub fn enqueue_recovered(self: &Rc<Self>, r: Recovered) {
        if r.handoff && !r.recipients.is_empty() {
            self.handoffs.kept.found(r);
        } else {
            self.enqueue_own(&r);
        }
    }

    /// Queues a message of this shard's own that was found when the spool opened.
    pub fn enqueue_own(self: &Rc<Self>, r: &Recovered) {
        if r.recipients.is_empty() {
            // Every recipient ended, but the record that says so of the message was lost
            // with the group it was in.
            self.spool.settle(spool::Settled { key: r.key, last: true, ..Default::default() });
            return;
        }
        let s = &mut *self.scheduler.borrow_mut();
        let now = clock::now_ms();
        let slot = s.add(
            &r.job,
            Message {
                key: r.key,
                received_ms: r.received_unix_ms,
                body_len: r.body_len,
                left: r.recipients.len() as u16,
                notify_delay: r.notify_delay,
                job: 0,
                content: None,
            },
        );
        let mut at = 0;
        while at < r.recipients.len() {
            let first = &r.recipients[at];
            let same = r.recipients[at..]
                .iter()
                .enumerate()
                .take_while(|(i, x)| {
                    x.destination == first.destination
                        && x.priority == first.priority
                        && (x.due_unix_ms, x.attempts) == (first.due_unix_ms, first.attempts)
                        && usize::from(x.index) == usize::from(first.index) + i
                })
                .count();
            let id = self.queue_for(s, &first.destination, &r.vmta);
            let (start, end) = (first.index, first.index + same as u16);
            let entry = Entry { slot, start, end, priority: first.priority, attempts: first.attempts };
            self.was_accepted_before(s, id);
            s.enqueue(id, entry, first.due_unix_ms, now);
            s.recall(id, &first.last_reply, first.due_unix_ms);
            at += same;
        }
    }

    /// The queue for mail to `destination` that chose `via`, by `virtual-mta-pool` where it chose none, followed along
    /// `reroute-to-virtual-mta` and, while its path is in backoff, `backoff-reroute-to-virtual-mta`.
    pub fn queue_for(&self, s: &mut Scheduler, destination: &str, via: &str) -> QueueId {
        let config = self.config.borrow();
        let mut id = self.queue_named(s, &config, destination, via);
        if via.is_empty()
            && let Some(given) = s.queues.get(id).map(|q| &q.rules.virtual_mta_pool).filter(|p| !p.is_empty())
        {
            let given = given.clone();
            id = self.queue_named(s, &config, destination, &given);
        }
        let mut seen = vec![id];
        while let Some(target) = self.rerouted(s, id) {
            id = self.queue_named(s, &config, destination, &target);
            // In a circle mail stays where it closes.
            if seen.contains(&id) || seen.len() >= REROUTES_MAX {
                break;
            }
            seen.push(id);
        }
        if seen.first() != Some(&id) && s.queues.get_mut(id).is_some_and(|q| q.takes_mail_of(name_or_default(via))) {
            crate::switches::apply_to_mail_sent_on(self, s, id);
        }
        id
    }

    fn queue_named(&self, s: &mut Scheduler, config: &Config, destination: &str, via: &str) -> QueueId {
        let mut new = false;
        let id = s.queue(destination, name_or_default(via), || {
            new = true;
            config.way(ipc::message::queue_part(destination), via)
        });
        if let Some(q) = s.queues.get_mut(id).filter(|_| new) {
            crate::switches::apply_to_queue(self, q);
        }
        if let Some(q) = s.queues.get_mut(id).filter(|q| new && q.of_pool) {
            // Destinations with one message each still use all members.
            let mut turns = self.pool_turns.borrow_mut();
            let turn = turns.entry(Rc::clone(&q.via)).or_default();
            q.turn = *turn;
            *turn = turn.wrapping_add(1);
        }
        id
    }

    /// The virtual MTA that mail of queue `id` goes to instead.
    fn rerouted(&self, s: &mut Scheduler, id: QueueId) -> Option<String> {
        // What an operator paused stays where it is paused.
        let q = s.queues.get(id).filter(|q| !q.of_pool && !q.paused)?;
        if let Some(always) = q.rules.rerouted_to(&q.via) {
            return Some(always.to_owned());
        }
        let target = q.rules.rerouted_in_backoff_to(&q.via)?.to_owned();
        // By name: a queue that is made anew has no path yet, and a path that was made before, or was in backoff when this
        // shard got it, is so all the same.
        let (destination, vmta) = (Rc::clone(q.destination()), Rc::clone(&q.members.first()?.name));
        let in_backoff = match s.find_path(&destination, &vmta) {
            Some((_, p)) => p.mode == Mode::Backoff,
            None => self.paths.inherits_backoff(&destination, &vmta, clock::now_ms()),
        };
        in_backoff.then_some(target)
    }

    /// The path of a member of queue `id`.
    pub fn path_for(&self, s: &mut Scheduler, id: QueueId, member: usize) -> Option<PathId> {
        let config = self.config.borrow();
        let destination = Rc::clone(s.queues.get(id)?.destination());
        // By name: the queue may remember an index of a configuration before.
        let mut lost = false;
        let (path, new) = s.path_of(id, member, |m| {
            if m.vmta == NO_VMTA {
                return (NO_VMTA, config.rules(&destination, NO_VMTA));
            }
            let way = config.way(&destination, &m.name);
            let vmta = way.members.first().filter(|_| !way.of_pool).map_or(NO_VMTA, |m| m.vmta);
            lost = vmta == NO_VMTA;
            (vmta, way.rules)
        })?;
        if let Some(p) = s.paths.get_mut(path).filter(|_| new == New::Path) {
            p.orphaned = lost;
            paths::admit(self, p);
            crate::switches::apply_to_path(self, p);
        }
        if let Some(p) = s.paths.get_mut(path).filter(|_| new != New::Nothing) {
            crate::switches::apply_to_sources(self, p, s.queues.get(id));
        }
        Some(path)
    }

    /// Mail came into queue `id`: a path of it takes it, or opens a connection for it.
    pub fn pump_queue(self: &Rc<Self>, id: QueueId) {
        if self.stopping() {
            return;
        }
        let turns = match self.scheduler.borrow().queues.get(id) {
            Some(q) if !q.ready.is_empty() && q.may_go(clock::now_ms()) => q.members.len().min(TURNS_MAX),
            _ => {
                self.timers.notify_one();
                return;
            }
        };
        for _ in 0..turns {
            let path = {
                let mut s = self.scheduler.borrow_mut();
                let Some(q) = s.queues.get_mut(id) else { return };
                let member = if q.members.len() == 1 { 0 } else { q.next_turn() };
                self.path_for(&mut s, id, member)
            };
            if path.is_some_and(|p| self.pump(p)) {
                break;
            }
        }
        self.timers.notify_one();
    }

    /// Opens connections of a path and wakes idle ones as its queues' work and its limits
    /// allow; answers whether there is one that serves.
    pub fn pump(self: &Rc<Self>, id: PathId) -> bool {
        if self.stopping() || self.spool.holds_deliveries() {
            return false;
        }
        spread::keep_up(self, id);
        let (wanted, serves) = {
            let mut s = self.scheduler.borrow_mut();
            let now = clock::now_ms();
            let now_ns = clock::now_ns() as i64;
            // More queues than that have mail for more connections than it may open at once.
            let some = |p: &schedule::Path| p.in_turn().take(QUEUES_LOOKED_AT).collect::<Vec<_>>();
            let Some((held, queues)) = s.paths.get(id).map(|p| (p.held, some(p))) else { return false };
            if held {
                drop(s);
                // Mail that came late for a destination that moved away follows it.
                self.foreign.notify_one();
                return paths::look_again(self, id) && self.pump(id);
            }
            let backlog: u64 =
                queues.iter().filter(|q| s.may_pull(**q, id, now)).map(|q| s.share_of(*q, id, now)).sum();
            let Some(p) = s.paths.get(id) else { return false };
            let from = p.rules.reserved_priority.min(100) as u8;
            let urgent = match p.rules.reserved_smtp_out {
                0 => 0,
                _ => queues.iter().filter_map(|q| s.queues.get(*q)).map(|q| q.ready.len_from(from) as u64).sum(),
            };
            let Some(p) = s.paths.get_mut(id) else { return false };
            if backlog == 0 {
                return false;
            }
            if p.idle > 0 && p.may_send(now) {
                self.idle.wake_one(id);
            }
            let wanted = p.wanted(backlog, urgent, now);
            let mut n = wanted;
            if wanted > 0 {
                let standing = self.openers.standing(p);
                n = wanted.min(self.openers.room(self, standing));
                if n < wanted && !std::mem::replace(&mut p.waits_to_open, true) {
                    self.openers.wait(id, standing);
                }
            }
            (0..n).for_each(|_| p.opening(now_ns));
            let serves = p.may_send(now) && p.connections + p.connecting > 0;
            let at = p.connect_at_ms();
            if at > now {
                s.wake_at(id, at);
            }
            (n, serves)
        };
        for _ in 0..wanted {
            self.openers.want(self, id);
        }
        serves
    }

    /// Whoever opened a connection is free, or takes long: others have their turn.
    pub fn opened(self: &Rc<Self>) {
        // Some have nothing to do any more.
        for _ in 0..TURNS_AT_ONCE {
            let Some(id) = self.openers.next_in_line(self) else { return };
            if let Some(p) = self.scheduler.borrow_mut().paths.get_mut(id) {
                p.waits_to_open = false;
            }
            self.pump(id);
        }
    }

    /// Pumps every path that has pulled from queue `id`.
    pub fn pump_pullers(self: &Rc<Self>, id: QueueId) {
        let paths: Vec<PathId> = match self.scheduler.borrow().queues.get(id) {
            Some(q) => q.pullers.iter().map(|p| p.path).collect(),
            None => return,
        };
        for p in paths {
            self.pump(p);
        }
    }

    /// Takes a new shard map into use.
    pub fn set_map(self: &Rc<Self>, map: ShardMap) {
        if map.epoch < self.map.borrow().epoch {
            return;
        }
        let changed = map.epoch > self.map.borrow().epoch;
        *self.map.borrow_mut() = Rc::new(map);
        crate::route::handoff::keep_links(self);
        if changed {
            paths::claim_all(self);
        }
    }
}

/// Adds to a counter of three.
pub fn add(counter: &Cell<[u64; 3]>, by: [u64; 3]) {
    let c = counter.get();
    counter.set([c[0] + by[0], c[1] + by[1], c[2] + by[2]]);
}

//! What one shard owns, and the loop that keeps its queues moving.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ipc::ledger::Ledger;
use ipc::message::{ArchivedEnvelope, MessageId, notify};
use ipc::shard_map::ShardMap;
use ipc::snapshot::{Global, MappedSnapshot};
use spool::layout::UpdateEntry;
use spool::{NewMessage, RecipientState, Recovered, Spool, SpoolError};
use tokio::sync::Notify;

use crate::clock;
use crate::connect::mx::Resolver;
use crate::route::handoff::Handoffs;
use crate::route::owner::Taken;
use crate::route::paths::{self, Paths};
use crate::schedule::scheduler::{Content, Message};
use crate::schedule::{Entry, QueueId, Scheduler};

/// Virtual MTA index of mail whose virtual MTA does not exist.
pub const NO_VMTA: u32 = u32::MAX;

/// The configuration in force.
pub struct Config {
    /// The mapped snapshot.
    pub snapshot: MappedSnapshot,
    /// Its server settings.
    pub global: Rc<Global>,
    /// Listener → named source and TLS.
    listeners: Vec<(String, String, Option<Arc<rustls::ServerConfig>>)>,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("global", &self.global).finish_non_exhaustive()
    }
}

impl Config {
    /// Takes a snapshot into use.
    ///
    /// # Errors
    /// A sentence naming what cannot be used.
    pub fn of(snapshot: MappedSnapshot) -> Result<Config, String> {
        let global = Rc::new(snapshot.get().global().map_err(|e| e.to_string())?);
        let mut listeners = Vec::new();
        for l in snapshot.get().listeners.iter() {
            let tls = match l.tls_pem.as_str() {
                "" => None,
                pem => Some(crate::connect::tls::listener(pem)?),
            };
            listeners.push((l.address.as_str().to_owned(), l.source.as_str().to_owned(), tls));
        }
        Ok(Config { snapshot, global, listeners })
    }

    /// The named source of a listener.
    pub fn overlay_of(&self, address: &str) -> String {
        self.listeners.iter().find(|l| l.0 == address).map(|l| l.1.clone()).unwrap_or_default()
    }

    /// TLS of a listener.
    pub fn tls_of(&self, address: &str) -> Option<Arc<rustls::ServerConfig>> {
        self.listeners.iter().find(|l| l.0 == address).and_then(|l| l.2.clone())
    }

    /// Whether the listener is configured.
    pub fn has_listener(&self, address: &str) -> bool {
        self.listeners.iter().any(|l| l.0 == address)
    }
}

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
    /// DNS.
    pub resolver: RefCell<Rc<Resolver>>,
    /// Limits over all shards.
    pub ledger: Ledger,
    /// Who owns what.
    pub map: RefCell<Rc<ShardMap>>,
    /// Shares for other shards.
    pub handoffs: Handoffs,
    /// Shares from other shards.
    pub taken: Taken,
    /// What paths carry over restarts and moves.
    pub paths: Paths,
    /// There may be mail here that another shard owns.
    pub foreign: Notify,
    /// Outbound TLS.
    pub tls: Arc<rustls::ClientConfig>,
    /// Statistics.
    pub counters: Counters,
    /// SMTP sessions served.
    pub sessions: Cell<u32>,
    /// Outbound connections, those being opened included.
    pub connections: Cell<u32>,
    stop: Rc<Signal>,
    message_counter: Cell<u64>,
    flush: Notify,
    /// Wakes the scheduler's loop.
    pub timers: Notify,
    pool_turns: RefCell<std::collections::HashMap<u32, u64>>,
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard").field("number", &self.number).finish_non_exhaustive()
    }
}

/// Bytes of content kept in memory until the first attempt, per shard.
const CONTENT_BUDGET_BYTES: u64 = 64 << 20;

impl Shard {
    /// Puts a shard together.
    ///
    /// # Errors
    /// A sentence when DNS or TLS cannot be set up.
    pub fn new(number: u8, config: Config, spool: Spool, ledger: Ledger, map: ShardMap) -> Result<Rc<Shard>, String> {
        let resolver = Resolver::new(&config.global.name_servers)?;
        let tls = crate::connect::tls::opportunistic().map_err(|e| e.to_string())?;
        let shard = Rc::new(Shard {
            number,
            config: RefCell::new(Rc::new(config)),
            scheduler: RefCell::default(),
            spool,
            resolver: RefCell::new(Rc::new(resolver)),
            ledger,
            map: RefCell::new(Rc::new(map)),
            handoffs: Handoffs::default(),
            taken: Taken::default(),
            paths: Paths::default(),
            foreign: Notify::new(),
            tls,
            counters: Counters::default(),
            sessions: Cell::new(0),
            connections: Cell::new(0),
            stop: Rc::default(),
            message_counter: Cell::new(clock::now_ns() as u64),
            flush: Notify::new(),
            timers: Notify::new(),
            pool_turns: RefCell::default(),
        });
        shard.handoffs.start(clock::now_ns());
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
        if old.global.name_servers != config.global.name_servers {
            *self.resolver.borrow_mut() = Rc::new(Resolver::new(&config.global.name_servers)?);
        }
        *self.config.borrow_mut() = Rc::new(config);
        let config = self.config();
        let mut s = self.scheduler.borrow_mut();
        let names: Vec<(QueueId, String)> = s.queues.iter().map(|(id, q)| (id, q.vmta_name.to_lowercase())).collect();
        let index_of = |name: &str| config.snapshot.get().vmta_by_name.get(name).map(|i| i.to_native());
        let fallback = config.global.invalid_virtual_mta_fallback.to_lowercase();
        for (id, name) in names {
            // Mail of a virtual MTA that is gone goes on by the fallback, or waits.
            let index = index_of(&name).or_else(|| index_of(&fallback));
            let Some(q) = s.queues.get_mut(id) else { continue };
            q.vmta = index.unwrap_or(NO_VMTA);
            if std::mem::replace(&mut q.orphaned, index.is_none()) != index.is_none() {
                tracing::warn!(
                    shard = self.number,
                    queue = q.name(),
                    held = index.is_none(),
                    "virtual MTA of a queue went or came back"
                );
                q.retry_at_ms = 0;
            }
            if let Some(index) = index {
                q.rules = Rc::new(config.snapshot.get().domain_rules(&q.destination, index));
            }
            // Connections that wait look at their new limits.
            q.work.notify_waiters();
        }
        let ids: Vec<QueueId> = s.queues.iter().map(|(id, _)| id).collect();
        drop(s);
        ids.into_iter().for_each(|id| self.pump(id));
        Ok(())
    }

    /// Whether a listener is still to be served.
    pub fn serves(&self, address: &str) -> bool {
        !self.stopping() && self.config().has_listener(address)
    }

    /// The socket of another shard.
    pub fn socket_of(&self, shard: u8) -> PathBuf {
        PathBuf::from(&self.config().global.run_dir).join(format!("shard-{shard:02}.sock"))
    }

    /// The shard is stopping.
    pub fn stopping(&self) -> bool {
        self.stop.is_raised()
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
        let here = self.scheduler.borrow().recipients + self.handoffs.kept_recipients();
        self.ledger.set_recipients(self.number, here);
    }

    /// Whether `recipients` more may be queued on this machine (`spool-max-recipients`).
    ///
    /// # Errors
    /// [`SpoolError::Full`] naming the directive.
    pub fn check_room(&self, recipients: usize) -> Result<(), SpoolError> {
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
            let began = std::time::Instant::now();
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

    /// Queues a message that has just been stored.
    pub fn enqueue(self: &Rc<Self>, key: u64, content: Rc<Content>) {
        let Ok(e) = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&content.envelope) else { return };
        let now = clock::now_ms();
        let body_len = (content.body[0].len() + content.body[1].len()) as u32;
        let due = e.moved.as_ref().map_or(0, |m| m.due_unix_ms.to_native());
        if let Some(moved) = e.moved.as_ref().filter(|_| due > 0) {
            // Its recipients' state came along, and outlives this process too.
            let state = RecipientState {
                due_unix_ms: due,
                delay_reports: moved.delay_reports.to_native(),
                last_reply: moved.last_reply.as_str().to_owned(),
            };
            let of = |recipient| UpdateEntry { key, recipient, state: state.clone() };
            self.spool.update((0..e.recipients.len() as u16).map(of).collect(), Vec::new());
        }
        let mut touched = Vec::new();
        {
            let s = &mut *self.scheduler.borrow_mut();
            let keep = s.content_bytes < CONTENT_BUDGET_BYTES;
            let slot = s.add(Message {
                key,
                received_ms: e.received_unix_ms.to_native(),
                body_len,
                left: e.recipients.len() as u16,
                notify_delay: e.recipients.iter().any(|r| r.notify & notify::DELAY != 0),
                content: keep.then(|| Rc::clone(&content)),
            });
            let mut start = 0usize;
            while start < e.recipients.len() {
                let destination = e.recipients[start].destination.as_str();
                let same = e.recipients[start..].iter().take_while(|r| r.destination.as_str() == destination).count();
                let id = self.queue_for(s, destination, &e.vmta);
                s.enqueue(id, Entry { slot, start: start as u16, end: (start + same) as u16 }, due, now);
                touched.push(id);
                start += same;
            }
        }
        touched.into_iter().for_each(|id| self.pump(id));
    }

    /// Queues a message that was found when the spool opened.
    pub fn enqueue_recovered(self: &Rc<Self>, r: &Recovered) {
        if r.handoff {
            let owner = r.recipients.first().map_or(self.number, |x| self.map.borrow().owner(&x.destination));
            self.handoffs.recovered(owner, r.key, r.recipients.len() as u64);
            return;
        }
        if r.recipients.is_empty() {
            // Every recipient ended, but the record that says so of the message was lost
            // with the group it was in.
            self.spool.settle(spool::Settled { key: r.key, last: true, ..Default::default() });
            return;
        }
        let s = &mut *self.scheduler.borrow_mut();
        let now = clock::now_ms();
        let slot = s.add(Message {
            key: r.key,
            received_ms: r.received_unix_ms,
            body_len: r.body_len,
            left: r.recipients.len() as u16,
            notify_delay: r.notify_delay,
            content: None,
        });
        let mut at = 0;
        while at < r.recipients.len() {
            let first = &r.recipients[at];
            let same = r.recipients[at..]
                .iter()
                .enumerate()
                .take_while(|(i, x)| {
                    x.destination == first.destination
                        && x.due_unix_ms == first.due_unix_ms
                        && usize::from(x.index) == usize::from(first.index) + i
                })
                .count();
            let id = self.queue_for(s, &first.destination, &r.vmta);
            let entry = Entry { slot, start: first.index, end: first.index + same as u16 };
            // When it was accepted its virtual MTA was there, or the reply would have been another.
            s.queues.get_mut(id).into_iter().for_each(|q| q.orphaned = q.vmta == NO_VMTA);
            s.enqueue(id, entry, first.due_unix_ms, now);
            at += same;
        }
    }

    /// The queue for mail to `destination` that chose `vmta`.
    fn queue_for(&self, s: &mut Scheduler, destination: &str, vmta: &str) -> QueueId {
        let config = self.config.borrow();
        let snapshot = config.snapshot.get();
        let (index, pool) = self.choose(snapshot, vmta);
        let name = snapshot.vmtas.get(index as usize).map_or(vmta, |v| v.name.as_str());
        let mut new = false;
        let id = s.queue(destination, index, name, &pool, || {
            new = true;
            snapshot.domain_rules(destination, index)
        });
        if let Some(q) = s.queues.get_mut(id).filter(|_| new) {
            paths::admit(self, q);
        }
        id
    }

    /// The virtual MTA for a name: itself, a member of the pool in turn by weight, or the
    /// fallback.
    fn choose(&self, snapshot: &ipc::snapshot::ArchivedSnapshot, name: &str) -> (u32, String) {
        if name.is_empty() {
            return (0, String::new());
        }
        let key = name.to_lowercase();
        if let Some(i) = snapshot.vmta_by_name.get(key.as_str()) {
            return (i.to_native(), String::new());
        }
        if let Some(i) = snapshot.pool_by_name.get(key.as_str()).map(|i| i.to_native()) {
            let Some(pool) = snapshot.pools.get(i as usize) else { return (0, String::new()) };
            let total: u64 = pool.members.iter().map(|m| u64::from(m.weight.to_native())).sum();
            let mut turns = self.pool_turns.borrow_mut();
            let turn = turns.entry(i).or_default();
            let mut at = *turn % total.max(1);
            *turn += 1;
            for m in pool.members.iter() {
                let w = u64::from(m.weight.to_native());
                if at < w {
                    return (m.vmta.to_native(), pool.name.as_str().to_owned());
                }
                at -= w;
            }
        }
        let fallback = self.config.borrow().global.invalid_virtual_mta_fallback.to_lowercase();
        match snapshot.vmta_by_name.get(fallback.as_str()) {
            Some(i) if !fallback.is_empty() => (i.to_native(), String::new()),
            _ => (NO_VMTA, String::new()),
        }
    }

    /// Opens connections and wakes idle ones as the queue's work and limits allow.
    pub fn pump(self: &Rc<Self>, id: QueueId) {
        if self.stopping() {
            return;
        }
        let wanted = {
            let mut s = self.scheduler.borrow_mut();
            let Some(q) = s.queues.get_mut(id) else { return };
            let now = clock::now_ms();
            if !q.ready.is_empty() && q.idle > 0 {
                q.work.notify_one();
            }
            let n = q.wanted(now);
            q.connecting += n;
            let at = q.connect_at_ms();
            if at > now && !q.ready.is_empty() {
                s.wake_at(id, at);
            }
            n
        };
        for _ in 0..wanted {
            tokio::task::spawn_local(crate::deliver::connection::run(Rc::clone(self), id));
        }
        self.timers.notify_one();
    }

    /// Drives what depends on time: retries, waiting recipients, rates, expiry.
    pub async fn run_timers(self: Rc<Self>) {
        let mut sweep = clock::now_ms();
        loop {
            let now = clock::now_ms();
            let next = self.scheduler.borrow().next_timer().unwrap_or(i64::MAX).min(now + 1000);
            if next > now {
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_millis((next - now) as u64)) => {}
                    () = self.timers.notified() => {}
                }
            }
            let now = clock::now_ms();
            let due = self.scheduler.borrow_mut().due(now);
            due.into_iter().for_each(|id| self.pump(id));
            if now - sweep >= 1000 {
                sweep = now;
                self.sweep(now);
            }
            tokio::task::yield_now().await;
        }
    }

    /// Looks for expired and delayed mail and forgets empty queues.
    fn sweep(self: &Rc<Self>, now: i64) {
        let ids: Vec<QueueId> = self.scheduler.borrow().queues.iter().map(|(id, _)| id).collect();
        for id in ids {
            let expired = self.scheduler.borrow_mut().expired(id, now);
            if !expired.is_empty() {
                tokio::task::spawn_local(crate::deliver::conclusion::expire(Rc::clone(self), id, expired));
            }
            let delayed = self.scheduler.borrow_mut().delayed(id, now);
            if !delayed.is_empty() {
                tokio::task::spawn_local(crate::deliver::conclusion::report_delays(Rc::clone(self), id, delayed));
            }
            let gone = self.scheduler.borrow_mut().forget(id, now);
            if let Some(q) = gone {
                paths::forgotten(self, &q);
            }
        }
        paths::sweep(self, now);
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

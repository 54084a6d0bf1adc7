//! What one shard owns, and how what its engine decides is carried out.

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod alone;
pub mod life;
mod news;
mod upkeep;

use std::cell::{Cell, Ref, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ipc::ledger::Ledger;
use ipc::ledger::shared_limits::mixed;
use ipc::message::{ArchivedEnvelope, MessageId};
use ipc::queue_orders::{Given, Switches};
use ipc::shard_map::ShardMap;
use spool::layout::UpdateEntry;
use spool::{NewMessage, RecipientState, Recovered, Spool, SpoolError};
use tokio::sync::Notify;

use crate::accept::auth::attempts::Attempts;
use crate::accept::awaiting::Awaiting;
use crate::accept::budget::Receiving;
use crate::accept::strangers::Strangers;
use crate::account::file::Shown;
use crate::clock;
use crate::config::Config;
use crate::connect::address_health::AddressHealth;
use crate::connect::mx::Resolver;
use crate::deliver::idle::IdleConnections;
use crate::deliver::learned::Learned;
use crate::deliver::limit_queue::LimitQueue;
use crate::deliver::open_connections::Connections;
use crate::deliver::openers::Openers;
use crate::deliver::security::Protection;
use crate::disabled::kept::Notes;
use crate::dkim::signers::Signers;
use crate::engine::inherited::Inherited;
use crate::engine::line;
use crate::engine::{Action, Intake, Now, Tasks};
use crate::holds::{Pieces, Work, doing};
use crate::inbox::Inbox;
use crate::ports::Ports;
use crate::prepare::content::Content;
use crate::programs::Programs;
use crate::report::Notice;
use crate::route::handoff::Handoffs;
use crate::route::inbound::InboundHandoffs;
use crate::route::kept::Keeping;
use crate::route::moves::Moves;
use crate::route::rollups::Rollups;
use crate::schedule::{self, Entry, PathId, QueueId};
use crate::signal::Signal;
use crate::suppression::gate::Gate;
use crate::tasks;

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

/// The queues and paths of a shard, with the contents that it holds in memory.
pub type Scheduler = schedule::Scheduler<Content>;

/// What decides for a shard.
pub type Engine = crate::engine::Engine<Content>;

/// What a shard is put together from.
#[derive(Debug)]
pub struct Parts {
    /// Its number.
    pub number: u8,
    /// Configuration in force.
    pub config: Config,
    /// Durable storage.
    pub spool: Spool,
    /// Limits over all shards.
    pub ledger: Ledger,
    /// Which shard owns which destinations.
    pub map: ShardMap,
    /// What it has of the world around it.
    pub ports: Ports,
    /// What accounting files show of outcomes.
    pub accounting: Arc<Shown>,
    /// Folder of the suppression lists; none are kept without one.
    pub suppression: Option<PathBuf>,
    /// Its folder lies in a `<spool>` that takes no new mail.
    pub delivers_only: bool,
}

/// One shard.
pub struct Shard {
    /// Its number.
    pub number: u8,
    /// Configuration in force.
    config: RefCell<Rc<Config>>,
    /// What decides.
    engine: RefCell<Engine>,
    /// An empty table for what it decides next.
    actions: RefCell<Vec<Action>>,
    /// Durable storage.
    pub spool: Spool,
    /// What it has of the world around it.
    pub ports: Ports,
    /// DNS.
    pub resolver: RefCell<Rc<Resolver>>,
    /// Limits over all shards.
    pub ledger: Rc<Ledger>,
    /// Which shard owns which destinations.
    pub map: RefCell<Rc<ShardMap>>,
    /// Shares for other shards.
    pub handoffs: Handoffs,
    /// Those that are kept here until their owners have them.
    pub kept: Keeping,
    /// Mail on its way to new owners.
    pub moves: Moves,
    /// Shares from other shards.
    pub inbound: InboundHandoffs,
    /// An order moves mail to another virtual MTA: one at a time does.
    pub is_rerouting: Cell<bool>,
    /// The user that gave each order that stands, and when, by the name of its note, see [`crate::standing_orders`].
    pub standing_orders: RefCell<BTreeMap<String, Given>>,
    /// Why source addresses are disabled.
    pub disabled: Notes,
    /// Recipients that were accepted only to be bounced, and are to be.
    pub refused: Inbox<(QueueId, Entry)>,
    /// Notices that are to be sent to operators.
    pub notices: Inbox<Notice>,
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
    /// Tells which addresses get no mail.
    pub suppression: Gate,
    /// What accounting files show of outcomes.
    pub accounting: RefCell<Arc<Shown>>,
    /// Threads that make signatures by slow keys.
    pub signers: Signers,
    /// Checks of passwords.
    pub attempts: Attempts,
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
    pub strangers: Rc<Strangers>,
    /// Clients that wait for a place.
    pub awaiting: Awaiting,
    /// Outbound connections, those being opened included.
    pub connections: Cell<u32>,
    /// Tasks that open them.
    pub openers: Openers,
    /// Those that are open.
    pub open: Connections,
    /// Paths that limits over all shards hold up.
    pub limit_queue: LimitQueue,
    /// Told when a connection has ended, or another map is in force: what other shards wait for may be free.
    pub ended_or_moved: Notify,
    stop: Rc<Signal>,
    message_counter: Cell<u64>,
    /// See [`Shard::next_turn`].
    turns: Cell<u64>,
    flush: Notify,
    /// Wakes the scheduler's loop.
    pub timers: Notify,
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

/// Actions that one decision may have before their table is given back.
const ACTIONS_KEPT: usize = 1024;

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
        let (config, ledger, map) = (Rc::new(config), Rc::new(ledger), Rc::new(map));
        let engine = Engine::new(number, Rc::clone(&config), Rc::clone(&ledger), Rc::clone(&map));
        let shard = Rc::new(Shard {
            number,
            config: RefCell::new(config),
            engine: RefCell::new(engine),
            actions: RefCell::default(),
            spool,
            ports,
            resolver: RefCell::new(Rc::new(resolver)),
            ledger,
            map: RefCell::new(map),
            handoffs: Handoffs::new(number),
            moves: Moves::default(),
            kept: Keeping::default(),
            inbound: InboundHandoffs::default(),
            is_rerouting: Cell::default(),
            refused: Inbox::default(),
            notices: Inbox::default(),
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
            attempts: Attempts::default(),
            counters: Counters::default(),
            receiving: Receiving::default(),
            programs: Programs::default(),
            delivers_only,
            sessions: Cell::new(0),
            strangers: Rc::default(),
            awaiting: Awaiting::default(),
            connections: Cell::new(0),
            openers: Openers::default(),
            open: Connections::default(),
            limit_queue: LimitQueue::default(),
            ended_or_moved: Notify::new(),
            stop: Rc::default(),
            message_counter: Cell::new(clock::now_ns() as u64),
            turns: Cell::new(0),
            flush: Notify::new(),
            timers: Notify::new(),
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
    pub fn reload(&self, config: Config) -> Result<(), String> {
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
        let config = Rc::new(config);
        *self.config.borrow_mut() = Rc::clone(&config);
        self.decide(|e, now| e.reload(config, now));
        Ok(())
    }

    /// Lets the engine decide something, and carries out what it wants done. What [`Shard::engine`], [`Shard::scheduler`] and their like
    /// gave must be dropped before.
    pub fn decide<T>(&self, what: impl FnOnce(&mut Engine, Now) -> T) -> T {
        let (decided, mut actions) = {
            let mut engine = self.engine.borrow_mut();
            let may_send = !self.stopping() && !self.spool.holds_deliveries();
            engine.begins(Tasks { opening: self.openers.busy(), may_send });
            let decided = what(&mut engine, self.now());
            (decided, engine.take_actions(self.actions.take()))
        };
        actions.drain(..).for_each(|a| self.carry_out(a));
        // What a reload of a hundred thousand paths needed is not kept for what decides about one.
        if actions.capacity() <= ACTIONS_KEPT {
            self.actions.replace(actions);
        }
        decided
    }

    /// The time, as the engine is told it.
    pub fn now(&self) -> Now {
        Now { ns: clock::now_ns() as i64 }
    }

    /// None of it decides anything: what has to be thought of again is put where a task takes it from.
    fn carry_out(&self, action: Action) {
        match action {
            Action::Open(path) => self.openers.want(path),
            Action::WakeOne(path) => self.idle.wake_one(path),
            Action::WakeAll(path) => self.idle.wake_all(path),
            Action::LookAtTimers => self.timers.notify_one(),
            Action::LookForForeign => self.foreign.notify_one(),
            Action::Keep(name, value) => self.spool.put(&name, value),
            Action::Refuse(queue, entry) => self.refused.put((queue, entry)),
            Action::Notify { to, subject, text } => self.notices.put(Notice { to, subject, text }),
            Action::Tell(news) => news::tell(self.number, news),
        }
    }

    /// What the engine knows, to look at.
    pub fn engine(&self) -> Ref<'_, Engine> {
        self.engine.borrow()
    }

    /// Queues and paths, to look at.
    pub fn scheduler(&self) -> Ref<'_, Scheduler> {
        Ref::map(self.engine.borrow(), |e| e.scheduler())
    }

    /// Queues and paths, for tests to bring about what they are about.
    #[cfg(test)]
    pub fn scheduler_mut(&self) -> std::cell::RefMut<'_, Scheduler> {
        std::cell::RefMut::map(self.engine.borrow_mut(), |e| e.scheduler_mut())
    }

    /// What operators paused and disabled.
    pub fn switches(&self) -> Ref<'_, Switches> {
        Ref::map(self.engine.borrow(), |e| e.switches())
    }

    /// What is known of paths that have no mail here.
    pub fn inherited(&self) -> Ref<'_, Inherited> {
        Ref::map(self.engine.borrow(), |e| e.inherited())
    }

    /// How many connections may take long to open, see [`crate::deliver::slow`].
    pub fn slow_max(&self) -> u32 {
        line::shares(self.config.borrow().global.total_max_smtp_out, self.map.borrow().shards.len()).1
    }

    /// Whether a listener is still to be served.
    pub fn serves(&self, address: &str) -> bool {
        !self.stopping() && self.config().listener(address).is_some()
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
        let here = self.scheduler().recipients + self.kept.recipients();
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

    /// Lets groups form: the group waits as long as tasks that are ready bring more mail, for 2 ms at most. A lone message goes at
    /// once. What is still to be read from sockets is not waited for here: the spool knows how much mail is likely to come.
    pub async fn form_groups(self: Rc<Self>) {
        loop {
            self.flush.notified().await;
            let began = tokio::time::Instant::now();
            let mut before = 0;
            loop {
                tasks::after_those_ready().await;
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
    pub async fn enqueue(&self, key: u64, content: Rc<Content>) {
        let mut pieces = Pieces::default();
        let begun = doing(Work::Enqueue, || {
            let e = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&content.envelope).ok()?;
            Some((e, self.begin_to_enqueue(key, &content, e)))
        });
        let Some((e, mut new)) = begun else { return };
        loop {
            doing(Work::Enqueue, || {
                self.decide(|engine, now| engine.take_in_some(e, &mut new, || pieces.is_long(), now))
            });
            if new.is_over(e) {
                return;
            }
            pieces.pause().await;
        }
    }

    /// Puts a message among those in memory; none of its recipients is queued yet.
    fn begin_to_enqueue(&self, key: u64, content: &Rc<Content>, e: &ArchivedEnvelope) -> Intake {
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
        self.decide(|engine, _| {
            let content = engine.may_hold_content().then(|| Rc::clone(content));
            engine.begin_intake(key, e, body_len, content)
        })
    }

    /// Queues a message that was found when the spool opened.
    pub fn enqueue_recovered(&self, r: Recovered) {
        if r.handoff && !r.recipients.is_empty() {
            self.kept.found(r);
        } else {
            self.enqueue_own(&r);
        }
    }

    /// Queues a message of this shard's own that was found when the spool opened.
    pub fn enqueue_own(&self, r: &Recovered) {
        if r.recipients.is_empty() {
            // Every recipient ended, but the record that says so of the message was lost
            // with the group it was in.
            self.spool.settle(spool::Settled { key: r.key, last: true, ..Default::default() });
            return;
        }
        self.decide(|e, now| e.take_in_recovered(r, now));
    }

    /// Mail came into queue `id`: a path of it takes it, or opens a connection for it.
    pub fn pump_queue(&self, id: QueueId) {
        self.decide(|e, now| e.pump_queue(id, now));
    }

    /// Opens connections of a path and wakes idle ones as its queues' work and its limits allow.
    pub fn pump(&self, id: PathId) {
        self.decide(|e, now| e.pump(id, now));
    }

    /// Takes a new shard map into use; whether it is of another epoch.
    pub fn set_map(&self, map: ShardMap) -> bool {
        let before = self.map.borrow().epoch;
        if map.epoch < before {
            return false;
        }
        let changed = map.epoch > before;
        let map = Rc::new(map);
        self.decide(|e, _| e.set_map(Rc::clone(&map)));
        *self.map.borrow_mut() = map;
        self.ended_or_moved.notify_waiters();
        changed
    }
}

/// Adds to a counter of three.
pub fn add(counter: &Cell<[u64; 3]>, by: [u64; 3]) {
    let c = counter.get();
    counter.set([c[0] + by[0], c[1] + by[1], c[2] + by[2]]);
}

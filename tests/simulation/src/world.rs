//! The world: shards on their hosts, receivers, clients, and what goes wrong.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ipc::control::AccountingFile;
use ipc::ledger::Ledger;
use ipc::shard_map::ShardMap;
use ipc::snapshot::MappedSnapshot;
use spool::driver::Times;
use spool::memory::Fault;
use tokio::sync::mpsc;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};
use worker::account::file::{Files, Shown};
use worker::account::record::{View, stored};
use worker::clock;

use crate::book::{Book, Sums};
use crate::dice::Dice;
use crate::host::Host;
use crate::injector::inject;
use crate::net::{Network, Spawn};
use crate::receiver::{Manner, Most, Receiver};
use crate::rows;

/// What the machine's clock says when a world begins, Unix seconds.
const BEGIN_S: i64 = 1_900_000_000;
/// How long bytes take to receivers and clients.
const LATENCY: Duration = Duration::from_millis(20);
/// Age at which mail bounces, minutes.
const BOUNCE_AFTER_MIN: u64 = 40;
/// Mail that has not ended so long after it should have is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(15 * 60);

/// What a world is made of.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Everything follows from it.
    pub seed: u64,
    /// Shards.
    pub shards: u8,
    /// Receivers, one domain each.
    pub domains: usize,
    /// Clients.
    pub clients: u16,
    /// How long clients inject and things go wrong.
    pub busy: Duration,
    /// What may go wrong.
    pub faults: Vec<Trouble>,
    /// What happens is told on standard error.
    pub trace: bool,
}

/// A kind of thing that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Trouble {
    /// A shard is killed.
    Kill,
    /// A shard leaves in order, and another process takes its place.
    Restart,
    /// The machine loses its power: all shards, and what disks had not synced.
    Power,
    /// A disk is full for a while.
    Full,
    /// Writes fail for a while.
    Writes,
    /// Syncs fail for a while.
    Syncs,
    /// A disk is slow for a while, up to 30 s a group.
    Slow,
    /// Two shards do not reach each other for a while.
    Part,
    /// Bytes between shards take long for a while.
    Mesh,
    /// Connections of shards with receivers and clients are cut.
    Cut,
    /// Name servers do not answer for a while.
    Dns,
    /// The machine's clock is set forward or back, by hours.
    Clock,
    /// Receivers change their manners.
    Receivers,
}

/// The world.
pub struct World {
    /// What it is made of.
    pub plan: Plan,
    /// Where shards live.
    pub hosts: Vec<Host>,
    /// The network.
    pub network: Rc<Network>,
    /// What happened to mail.
    pub book: Rc<RefCell<Book>>,
    /// Who owns what.
    pub map: RefCell<ShardMap>,
    /// Starts what no process takes along.
    pub spawn: Spawn,
    /// Times that the machine was booted.
    pub boots: Cell<u32>,
    snapshot: OwnedFd,
    ledger: RefCell<(Ledger, OwnedFd)>,
    shown: Arc<Shown>,
    messages: Cell<u64>,
    is_injected: Cell<bool>,
    is_over: Cell<bool>,
    dice: Dice,
    begun: Instant,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("plan", &self.plan).finish_non_exhaustive()
    }
}

/// The configuration of all shards.
fn configuration() -> String {
    let connections = CONNECTIONS_MAX;
    let messages = MESSAGES_MAX;
    format!(
        "host-name mta.test\npostmaster postmaster@mta.test\ndata-dir /nowhere\nname-server 192.0.2.53:53\n\
         smtp-listener 10.0.0.1:25\n\
         <source 10.9.0.0/16>\n always-allow-relaying yes\n process-x-virtual-mta yes\n</source>\n\
         <virtual-mta a>\n smtp-source-host 10.10.0.1 a.test\n</virtual-mta>\n\
         <virtual-mta b>\n smtp-source-host 10.10.0.2 b.test\n</virtual-mta>\n\
         <virtual-mta c>\n smtp-source-host 10.10.0.3 c.test\n</virtual-mta>\n\
         <virtual-mta-pool pool>\n virtual-mta b\n virtual-mta c\n</virtual-mta-pool>\n\
         <domain *>\n max-smtp-out {connections}\n max-msg-per-connection {messages}\n retry-after 30s\n \
         retry-recipients-after 40s\n bounce-after {BOUNCE_AFTER_MIN}m\n use-starttls no\n use-dane no\n use-mta-sts no\n</domain>\n\
         <domain sender.test>\n deliver-local-dsn no\n</domain>\n\
         <acct-file acct.csv>\n records d,b\n</acct-file>\n",
    )
}

/// Connections that a virtual MTA may have with a receiver.
const CONNECTIONS_MAX: usize = 3;
/// Messages that one connection may carry.
const MESSAGES_MAX: usize = 20;

fn new_ledger() -> Result<(Ledger, OwnedFd), String> {
    let (ledger, fd) = Ledger::create().map_err(|e| format!("ledger: {e}"))?;
    ledger.set_ahead(clock::ahead_ns());
    Ok((ledger, fd))
}

fn manner(dice: &Dice) -> Manner {
    let some = |odds: u64, most: u64| if dice.permille(odds) { dice.between(1, most) } else { 0 };
    Manner {
        turns_away: some(200, 700),
        defers: some(300, 400),
        refuses: some(300, 200),
        greylists: dice.permille(150),
        drops: some(150, 60),
        drops_content: some(150, 200),
        hangs: some(60, 20),
        slow: Duration::from_millis(some(300, 3000)),
        chunking: dice.permille(500),
        pipelining: dice.permille(700),
    }
}

impl World {
    /// Builds a world.
    ///
    /// # Errors
    /// A sentence when its configuration is wrong.
    pub fn new(plan: Plan) -> Result<Rc<World>, String> {
        let dice = Dice::new(plan.seed);
        ipc::dice::seed(dice.next());
        clock::simulated::boot(BEGIN_S * 1_000_000_000);
        let checked = supervisor::config::compile::compile_text(Path::new("world.conf"), &configuration());
        if let Some(errors) = checked.errors() {
            return Err(errors);
        }
        let compiled = &checked.compiled.snapshot;
        let accounting: Vec<AccountingFile> =
            compiled.accounting.iter().map(|of| AccountingFile { path: of.path.clone(), of: of.clone() }).collect();
        let snapshot = compiled.seal().map_err(|e| e.to_string())?;
        let book = Rc::new(RefCell::new(Book::new()));
        let receiver = |n: usize| {
            let most = Most { connections: CONNECTIONS_MAX, messages: MESSAGES_MAX };
            Rc::new(Receiver::new(format!("d{n}.test"), manner(&dice), most, dice.fork(), Rc::clone(&book)))
        };
        let receivers = (0..plan.domains).map(receiver).collect();
        let network = Network::new(receivers, dice.fork(), LATENCY);
        let (tx, mut new) = mpsc::unbounded_channel();
        spawn_local(async move {
            while let Some(task) = new.recv().await {
                spawn_local(task);
            }
        });
        Ok(Rc::new(World {
            hosts: (0..plan.shards).map(Host::new).collect(),
            network,
            book,
            map: RefCell::new(ShardMap::first(plan.shards, Vec::new())),
            spawn: Rc::new(move |task| drop(tx.send(task))),
            boots: Cell::new(1),
            snapshot,
            ledger: RefCell::new(new_ledger()?),
            shown: Files::new(&accounting, 0).shown(),
            messages: Cell::new(0),
            is_injected: Cell::new(true),
            is_over: Cell::new(false),
            dice,
            begun: Instant::now(),
            plan,
        }))
    }

    /// The configuration.
    ///
    /// # Errors
    /// A sentence when it cannot be mapped.
    pub fn snapshot(&self) -> Result<MappedSnapshot, String> {
        MappedSnapshot::map(&self.snapshot).map_err(|e| e.to_string())
    }

    /// The ledger, as a process of a shard has it.
    ///
    /// # Errors
    /// A sentence when it cannot be mapped.
    pub fn ledger(&self, shard: u8) -> Result<Ledger, String> {
        let ledger = Ledger::open(&self.ledger.borrow().1).map_err(|e| e.to_string())?;
        ledger.acts_for(shard);
        Ok(ledger)
    }

    /// What accounting shows.
    pub fn shown(&self) -> Arc<Shown> {
        Arc::clone(&self.shown)
    }

    /// The number of the next message.
    pub fn next_message(&self) -> u64 {
        self.messages.set(self.messages.get() + 1);
        self.messages.get()
    }

    /// Clients go on.
    pub fn is_injected(&self) -> bool {
        self.is_injected.get()
    }

    /// Tells of what happens, where somebody listens.
    pub fn note(&self, what: impl FnOnce() -> String) {
        if self.plan.trace {
            eprintln!("{:>10.3} {}", self.begun.elapsed().as_secs_f64(), what());
        }
    }

    /// What chance has come to: the same for runs that were the same.
    pub fn dice_state(&self) -> u64 {
        self.dice.next()
    }

    /// Lets the world go on until all mail has ended, or should have.
    ///
    /// # Errors
    /// A sentence when a shard cannot run at all.
    pub async fn run(self: &Rc<Self>) -> Result<Sums, String> {
        for n in 0..self.hosts.len() {
            let world = Rc::clone(self);
            spawn_local(async move { world.supervise(n).await });
        }
        for n in 0..self.plan.clients {
            spawn_local(inject(Rc::clone(self), self.dice.fork(), n));
        }
        let until = Instant::now() + self.plan.busy;
        while Instant::now() < until {
            sleep(Duration::from_millis(self.dice.between(500, 15_000))).await;
            if let Some(trouble) = self.dice.pick(&self.plan.faults) {
                self.cause(*trouble);
            }
        }
        self.is_injected.set(false);
        self.mend();
        let stuck_at = Instant::now() + Duration::from_secs(BOUNCE_AFTER_MIN * 60) + STUCK_AFTER;
        // Clients hear of what they gave last.
        sleep(Duration::from_secs(130)).await;
        while !self.is_empty() && Instant::now() < stuck_at {
            sleep(Duration::from_secs(5)).await;
        }
        if !self.is_empty() {
            let left = self.left();
            self.book.borrow_mut().violations.push(format!("mail has not ended in time: {left}"));
        }
        self.is_over.set(true);
        self.hosts.iter().for_each(Host::stop);
        while self.hosts.iter().any(|h| h.life().is_some()) {
            sleep(Duration::from_millis(100)).await;
        }
        self.read_rows();
        Ok(self.book.borrow_mut().check())
    }

    /// Starts a shard's process whenever there is none.
    async fn supervise(self: Rc<Self>, n: usize) {
        let Some(host) = self.hosts.get(n) else { return };
        while !self.is_over.get() {
            let ending = host.live(&self).await;
            self.note(|| format!("shard {n}: {ending:?}"));
            self.ledger.borrow().0.free_all_of(host.number);
            sleep(Duration::from_millis(self.dice.between(20, 3000))).await;
        }
    }

    /// Lets something go wrong.
    fn cause(self: &Rc<Self>, trouble: Trouble) {
        let dice = &self.dice;
        self.note(|| format!("trouble: {trouble:?}"));
        let Some(host) = dice.pick(&self.hosts) else { return };
        let until = Instant::now() + Duration::from_millis(dice.between(100, 20_000));
        match trouble {
            Trouble::Kill => self.kill(host),
            Trouble::Restart => host.stop(),
            Trouble::Power => self.lose_power(),
            Trouble::Full => host.fail(Fault::Full, until),
            Trouble::Writes => host.fail(Fault::Writes, until),
            Trouble::Syncs => host.fail(Fault::Syncs, until),
            Trouble::Slow => {
                let most = dice.between(10, 30_000);
                host.group.set(host.group.get().max(3 * Duration::from_millis(most)));
                let times = dice.fork();
                host.disk.set_times(move || {
                    let next = || Duration::from_millis(if Instant::now() < until { times.below(most) } else { 0 });
                    Times { write: next(), sync: next(), answer: next() }
                });
            }
            Trouble::Part => {
                let pair = [host.number, dice.below(self.hosts.len() as u64) as u8];
                self.network.part(pair, true);
                self.later(until, move |w| w.network.part(pair, false));
            }
            Trouble::Mesh => {
                self.network.mesh_latency.set(Duration::from_millis(dice.between(1, 3000)));
                self.later(until, |w| w.network.mesh_latency.set(Duration::ZERO));
            }
            Trouble::Cut => self.network.cut_some(dice.between(1, 1000)),
            Trouble::Dns => {
                self.network.is_dns_dead.set(true);
                self.later(until, |w| w.network.is_dns_dead.set(false));
            }
            Trouble::Clock => {
                let hours = dice.between(0, 48) as i64 - 24;
                clock::simulated::step(hours * 3_600_000_000_000);
            }
            Trouble::Receivers => {
                self.network.receivers().filter(|_| dice.permille(300)).for_each(|r| r.manner.set(manner(dice)));
            }
        }
    }

    fn later(self: &Rc<Self>, at: Instant, what: impl FnOnce(&World) + 'static) {
        let world = Rc::clone(self);
        spawn_local(async move {
            tokio::time::sleep_until(at).await;
            what(&world);
        });
    }

    fn kill(&self, host: &Host) {
        host.kill(self);
        // What the index had not flushed may be there, or not.
        if self.dice.permille(500) {
            host.index.lose_power();
        }
    }

    fn lose_power(&self) {
        for host in &self.hosts {
            host.kill(self);
            host.disk.lose_power_by(self.dice.next());
            host.index.lose_power();
            let mut file = rows::lock(&host.rows);
            let kept = self.dice.below(file.unsynced() as u64 + 1) as usize;
            file.lose_power(kept);
        }
        self.boots.set(self.boots.get() + 1);
        // No process of the boot before has it.
        if let Ok(new) = new_ledger() {
            *self.ledger.borrow_mut() = new;
        }
    }

    /// Ends what goes wrong.
    fn mend(&self) {
        self.network.is_dns_dead.set(false);
        self.network.mesh_latency.set(Duration::ZERO);
        for r in self.network.receivers() {
            let m = r.manner.get();
            r.manner.set(Manner {
                turns_away: 0,
                defers: m.defers.min(100),
                drops: 0,
                drops_content: 0,
                hangs: 0,
                ..m
            });
        }
    }

    fn is_empty(&self) -> bool {
        let is_empty =
            |h: &Host| h.shard().is_some_and(|s| s.scheduler.borrow().recipients + s.handoffs.kept.recipients() == 0);
        self.hosts.iter().all(is_empty)
    }

    /// What has not ended, by shard and queue.
    fn left(&self) -> String {
        let mut left = Vec::new();
        for h in &self.hosts {
            let Some(s) = h.shard() else {
                left.push(format!("shard {} does not serve", h.number));
                continue;
            };
            left.push(format!("shard {} keeps {} for others", h.number, s.handoffs.kept.recipients()));
            let s = s.scheduler.borrow();
            for (_, q) in s.queues.iter().filter(|(_, q)| q.recipients > 0).take(5) {
                left.push(format!("{} of {} in shard {}", q.recipients, q.name(), h.number));
            }
        }
        left.join(", ")
    }

    fn read_rows(&self) {
        let rcpt = const { stored("rcpt") };
        let mut book = self.book.borrow_mut();
        for host in &self.hosts {
            for row in &rows::lock(&host.rows).rows {
                match View::of(row) {
                    Some(v) => book.row(&v.field(rcpt), v.kind),
                    None => book.violations.push("a row that is none".into()),
                }
            }
        }
    }
}

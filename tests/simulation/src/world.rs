//! The world: shards on their hosts, receivers, clients, and what goes wrong.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ipc::control::AccountingFile;
use ipc::ledger::Ledger;
use ipc::queue_orders::QueueAction;
use ipc::shard_map::ShardMap;
use ipc::snapshot::MappedSnapshot;
use spool::disk::Times;
use spool::memory::Fault;
use tokio::sync::mpsc;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};
use worker::account::file::{RowFiles, Shown};
use worker::account::record::{View, stored};
use worker::clock;

use crate::book::{Book, End, Sums};
use crate::dice::Dice;
use crate::host::Host;
use crate::injector::inject;
use crate::net::{Network, Spawn};
use crate::plan::{Given, Plan, SHARDS_MAX, Trouble};
use crate::receiver::{Manner, Most, Receiver};
use crate::rows;

/// What the machine's clock says when a world begins, Unix seconds.
const BEGIN_S: i64 = 1_900_000_000;
/// How long bytes take to receivers and clients.
const LATENCY: Duration = Duration::from_millis(20);
/// Minutes after which mail bounces in a world in which nothing goes wrong any more.
const BOUNCE_AFTER_MIN: u64 = 40;
/// Mail that has not ended so long after it should have is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(15 * 60);

/// What rows of deleted recipients say.
const DELETED: &str = "deleted by administrator";

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
    /// The number of shards changes.
    pub is_scaling: Cell<bool>,
    /// Supervisors before the one that is there, or that comes next.
    pub supervisor: Cell<u32>,
    /// No supervisor is there.
    pub is_unattended: Cell<bool>,
    snapshot: RefCell<OwnedFd>,
    ledger: RefCell<(Ledger, OwnedFd)>,
    shown: Arc<Shown>,
    messages: Cell<u64>,
    is_injected: Cell<bool>,
    is_over: Cell<bool>,
    /// What chance decides.
    pub dice: Dice,
    begun: Instant,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("plan", &self.plan).finish_non_exhaustive()
    }
}

/// The configuration of all shards.
fn configuration(plan: &Plan, variant: &str) -> String {
    let most = |n: usize, m: Most| {
        let Most { connections, messages } = m;
        format!("<domain d{n}.test>\n max-smtp-out {connections}\n max-msg-per-connection {messages}\n</domain>\n")
    };
    let receivers: String = plan.receivers.iter().enumerate().map(|(n, given)| most(n, given.most)).collect();
    let more = &plan.configuration;
    let bounce_after = bounce_after_min(plan);
    let use_starttls = if plan.tls { "yes" } else { "no" };
    format!(
        "host-name mta.test\npostmaster postmaster@mta.test\ndata-dir /nowhere\nname-server 192.0.2.53:53\n\
         smtp-listener 10.0.0.1:25\n\
         <source 10.9.0.0/16>\n always-allow-relaying yes\n process-x-virtual-mta yes\n</source>\n\
         <virtual-mta a>\n smtp-source-host 10.10.0.1 a.test\n max-smtp-out {SOURCE_CONNECTIONS_MAX}\n</virtual-mta>\n\
         <virtual-mta b>\n smtp-source-host 10.10.0.2 b.test\n</virtual-mta>\n\
         <virtual-mta c>\n smtp-source-host 10.10.0.3 c.test\n</virtual-mta>\n\
         <virtual-mta-pool pool>\n virtual-mta b\n virtual-mta c\n</virtual-mta-pool>\n\
         <domain *>\n retry-after 30s\n retry-recipients-after 40s\n bounce-after {bounce_after}m\n use-starttls {use_starttls}\n \
         use-dane no\n use-mta-sts no\n</domain>\n\
         {receivers}\
         <domain sender.test>\n deliver-local-dsn no\n</domain>\n\
         <acct-file acct.csv>\n records d,b\n</acct-file>\n\
         {more}\n{variant}\n",
    )
}

/// What configurations have beside what the first one has.
const VARIANTS: [&str; 4] = [
    "",
    "<domain *>\n max-msg-rate 300/m\n</domain>",
    "<domain *>\n retry-after 20s\n retry-recipients-after 1m\n backoff-retry-after 1m\n</domain>",
    "<domain d1.test>\n max-connect-rate 30/m\n</domain>\n<virtual-mta b>\n max-smtp-msg-rate 600/m\n</virtual-mta>",
];

/// The snapshot of a configuration, and its accounting files.
fn compiled(plan: &Plan, variant: &str) -> Result<(OwnedFd, Vec<AccountingFile>), String> {
    let checked = supervisor::config::compile::compile_text(Path::new("world.conf"), &configuration(plan, variant));
    if let Some(errors) = checked.errors() {
        return Err(errors);
    }
    let compiled = &checked.compiled.snapshot;
    let accounting =
        compiled.accounting.iter().map(|of| AccountingFile { path: of.path.clone(), of: of.clone() }).collect();
    Ok((compiled.seal().map_err(|e| e.to_string())?, accounting))
}

/// Age at which mail bounces, minutes: it is reached by mail that does not move, and by no other.
fn bounce_after_min(plan: &Plan) -> u64 {
    BOUNCE_AFTER_MIN + plan.busy.as_secs() / 60
}

/// The source address whose virtual MTA is limited over all shards and receivers.
const LIMITED_SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 10, 0, 1));
/// Connections from it at once.
const SOURCE_CONNECTIONS_MAX: usize = 20;

fn new_ledger() -> Result<(Ledger, OwnedFd), String> {
    let (ledger, fd) = Ledger::create().map_err(|e| format!("ledger: {e}"))?;
    ledger.set_ahead(clock::ahead_ns());
    Ok((ledger, fd))
}

fn manner(plan: &Plan, dice: &Dice) -> Manner {
    let some = |odds: u64, most: u64| if dice.permille(odds) { dice.between(1, most) } else { 0 };
    let manner = Manner {
        turns_away: some(200, 700),
        defers: some(300, 400),
        refuses: some(300, 200),
        greylists: dice.permille(150),
        drops: some(150, 60),
        drops_content: some(150, 200),
        hangs: some(60, 20),
        slow_ms: some(300, 3000),
        chunking: dice.permille(500),
        pipelining: dice.permille(700),
        ..Manner::default()
    };
    if plan.tls && dice.permille(200) {
        return Manner { starttls: true, breaks_tls: some(600, 500), ..manner };
    }
    manner
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
        let (snapshot, accounting) = compiled(&plan, VARIANTS[0])?;
        let book = Rc::new(RefCell::new(Book::new()));
        let receiver = |(n, given): (usize, &Given)| {
            let manner = manner(&plan, &dice);
            let manner = given.manner.unwrap_or(manner);
            Rc::new(Receiver::new(format!("d{n}.test"), manner, given.most, dice.fork(), Rc::clone(&book)))
        };
        let receivers = plan.receivers.iter().enumerate().map(receiver).collect();
        let network =
            Network::new(receivers, dice.fork(), LATENCY, (LIMITED_SOURCE, SOURCE_CONNECTIONS_MAX), Rc::clone(&book));
        let (tx, mut new) = mpsc::unbounded_channel();
        spawn_local(async move {
            while let Some(task) = new.recv().await {
                spawn_local(task);
            }
        });
        Ok(Rc::new(World {
            hosts: (0..SHARDS_MAX).map(|n| Host::new(n, n < plan.shards)).collect(),
            network,
            book,
            map: RefCell::new(ShardMap::first(plan.shards, Vec::new())),
            spawn: Rc::new(move |task| drop(tx.send(task))),
            boots: Cell::new(1),
            is_scaling: Cell::new(false),
            supervisor: Cell::new(0),
            is_unattended: Cell::new(false),
            snapshot: RefCell::new(snapshot),
            ledger: RefCell::new(new_ledger()?),
            shown: RowFiles::new(&accounting, 0).shown(),
            messages: Cell::new(0),
            is_injected: Cell::new(true),
            is_over: Cell::new(false),
            dice,
            begun: Instant::now(),
            plan,
        }))
    }

    /// Puts a configuration in force, for processes that begin from now on.
    ///
    /// # Errors
    /// A sentence when it is wrong.
    pub fn compile(&self, variant: u64) -> Result<(), String> {
        let variant = VARIANTS[(variant % VARIANTS.len() as u64) as usize];
        *self.snapshot.borrow_mut() = compiled(&self.plan, variant)?.0;
        Ok(())
    }

    /// The configuration.
    ///
    /// # Errors
    /// A sentence when it cannot be mapped.
    pub fn snapshot(&self) -> Result<MappedSnapshot, String> {
        MappedSnapshot::map(&self.snapshot.borrow()).map_err(|e| e.to_string())
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

    /// Everything has ended, or should have.
    pub fn is_over(&self) -> bool {
        self.is_over.get()
    }

    /// A number from `least` to `most`, both included.
    pub fn between(&self, least: u64, most: u64) -> u64 {
        self.dice.between(least, most)
    }

    /// Nothing in the ledger belongs to a process of a shard any more.
    pub fn free_ledger_of(&self, shard: u8) {
        self.ledger.borrow().0.free_all_of(shard);
    }

    /// A shard that has a process, or is to have one.
    pub fn any_host(&self, dice: &Dice) -> Option<&Host> {
        let wanted: Vec<&Host> = self.wanted().collect();
        dice.pick(&wanted).copied()
    }

    /// Tells of what happens, where somebody listens.
    pub fn note(&self, what: impl FnOnce() -> String) {
        if self.plan.trace {
            eprintln!("{:>10.3} {}", self.begun.elapsed().as_secs_f64(), what());
        }
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
        for event in &self.plan.events {
            let event = *event;
            let at = self.begun + Duration::from_secs_f64(event.at.clamp(0.0, 1e9));
            self.later(at, move |w| w.cause(event.trouble, event.shard));
        }
        let until = Instant::now() + self.plan.busy;
        while Instant::now() < until {
            sleep(Duration::from_millis(self.dice.between(500, 15_000))).await;
            if let Some(trouble) = self.dice.pick(&self.plan.faults) {
                self.cause(*trouble, None);
            }
        }
        self.is_injected.set(false);
        self.mend();
        let stuck_at = Instant::now() + Duration::from_secs(bounce_after_min(&self.plan) * 60) + STUCK_AFTER;
        // Clients hear of what they gave last; shards that were away hear of orders that are over. Then nothing happens any more that
        // would bring mail forward by chance.
        for _ in 0..26 {
            self.order("*/*", QueueAction::Pause(false));
            self.order("*/*", QueueAction::Mode(false));
            sleep(Duration::from_secs(5)).await;
        }
        while (self.is_scaling.get() || !self.is_empty()) && Instant::now() < stuck_at {
            sleep(Duration::from_secs(5)).await;
        }
        if !self.is_empty() {
            let left = self.left();
            self.book.borrow_mut().violation(format!("mail has not ended in time: {left}"));
        } else if self.is_scaling.get() {
            self.book.borrow_mut().violation("the number of shards has not changed in time".into());
        }
        self.is_over.set(true);
        self.hosts.iter().for_each(Host::stop);
        while self.hosts.iter().any(|h| h.life().is_some()) {
            sleep(Duration::from_millis(100)).await;
        }
        self.read_rows();
        let (panics, wanted) = (worker::tasks::panics(), self.network.panics.happened());
        if panics > wanted {
            self.book
                .borrow_mut()
                .violation(format!("{} tasks panicked by themselves; --trace names them", panics - wanted));
        }
        Ok(self.book.borrow_mut().check())
    }

    /// Lets something go wrong, with a shard of which chance decides where none is given.
    fn cause(self: &Rc<Self>, trouble: Trouble, shard: Option<u8>) {
        let dice = &self.dice;
        self.note(|| format!("trouble: {trouble:?}"));
        let any = self.any_host(dice);
        let Some(host) = shard.and_then(|n| self.hosts.get(usize::from(n))).or(any) else { return };
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
                let pair = [host.number, self.any_host(dice).map_or(0, |h| h.number)];
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
                self.network
                    .receivers()
                    .filter(|_| dice.permille(300))
                    .for_each(|r| r.manner.set(manner(&self.plan, dice)));
            }
            Trouble::Scale => {
                let workers = dice.between(1, u64::from(self.plan.shards) + 1).min(SHARDS_MAX.into()) as u8;
                spawn_local(Rc::clone(self).scale(workers));
            }
            Trouble::Reload => self.reload(dice.next()),
            Trouble::Orders => self.give_orders(until),
            Trouble::Delete => self.delete_some(),
            Trouble::Reroute => self.reroute_some(),
            Trouble::Rot => {
                // At the end of a log it looks like what a crash has torn.
                let at_the_end = dice.permille(400);
                if at_the_end {
                    self.kill(host);
                }
                let what = host.rot(dice, at_the_end);
                self.note(|| format!("rot on the disk of shard {}: {what}", host.number));
            }
            Trouble::Panic => {
                self.network.panics.set(dice.between(1, 20));
                self.later(until, |w| w.network.panics.set(0));
            }
            Trouble::Away => {
                // As long as systemd takes to start it again, or until somebody sees that it has given up.
                let until = Instant::now() + Duration::from_millis(dice.between(100, 60_000));
                spawn_local(Rc::clone(self).lose_supervisor(until));
            }
        }
    }

    /// Does something at a time.
    pub fn later(self: &Rc<Self>, at: Instant, what: impl FnOnce(&Rc<World>) + 'static) {
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
        self.begin_ledger();
    }

    /// Begins another ledger, which processes have that start from now on.
    pub fn begin_ledger(&self) {
        if let Ok(new) = new_ledger() {
            *self.ledger.borrow_mut() = new;
        }
    }

    /// Ends what goes wrong.
    fn mend(self: &Rc<Self>) {
        self.adopt();
        self.reload(0);
        self.network.panics.set(0);
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
                breaks_tls: 0,
                ..m
            });
        }
    }

    fn is_empty(&self) -> bool {
        let is_empty = |h: &Host| h.shard().is_some_and(|s| h.holds(&s) == 0);
        self.wanted().all(is_empty)
    }

    /// What has not ended, by shard and queue.
    fn left(&self) -> String {
        let mut left = Vec::new();
        for h in self.wanted() {
            let Some(s) = h.shard() else {
                left.push(format!("shard {} does not serve", h.number));
                continue;
            };
            left.push(format!("shard {} keeps {} for others", h.number, s.kept.recipients()));
            let s = s.scheduler();
            for (_, q) in s.queues.iter().filter(|(_, q)| q.recipients > 0).take(5) {
                left.push(format!("{} of {} in shard {}", q.recipients, q.name(), h.number));
            }
        }
        left.join(", ")
    }

    fn read_rows(&self) {
        let (rcpt, diagnosis) = const { (stored("rcpt"), stored("dsnDiag")) };
        let mut book = self.book.borrow_mut();
        for host in &self.hosts {
            book.in_quarantine(&host.in_quarantine());
            for (at, row) in &rows::lock(&host.rows).rows {
                match View::of(row) {
                    Some(v) => {
                        let of = if v.field(diagnosis).contains(DELETED) { End::Operator } else { End::Receiver };
                        book.row(&v.field(rcpt), v.kind, of, *at);
                    }
                    None => book.violation("a row that is none".into()),
                }
            }
        }
    }
}

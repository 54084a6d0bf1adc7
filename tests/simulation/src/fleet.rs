//! What the supervisor does with shards, and operators by way of it: starts processes, changes their number, gives them another
//! configuration and orders.

use std::rc::Rc;
use std::time::Duration;

use ipc::queue_orders::{QueueAction, QueueOrder, QueuePattern};
use tokio::time::{Instant, sleep};
use worker::config::Config;
use worker::shard::Shard;
use worker::switches;

use crate::host::Host;
use crate::world::World;

/// Time between two looks at what is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long `scale` waits for the change before it, and for new shards.
const SCALE_WAIT: Duration = Duration::from_secs(60);

impl World {
    /// Starts a shard's process whenever there is none and one is wanted.
    pub async fn supervise(self: Rc<Self>, n: usize) {
        let Some(host) = self.hosts.get(n) else { return };
        while !self.is_over() {
            if !host.is_wanted.get() {
                sleep(LOOK_EVERY).await;
                continue;
            }
            let ending = host.live(&self).await;
            self.note(|| format!("shard {n}: {ending:?}"));
            self.free_ledger_of(host.number);
            sleep(Duration::from_millis(self.between(20, 3000))).await;
        }
    }

    async fn until(&self, wait: Duration, is_so: impl Fn() -> bool) -> bool {
        let until = Instant::now() + wait;
        while !is_so() {
            if Instant::now() >= until || self.is_over() {
                return false;
            }
            sleep(LOOK_EVERY).await;
        }
        true
    }

    /// Shards that have a process, or are to have one.
    pub fn wanted(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter().filter(|h| h.is_wanted.get())
    }

    /// Every destination that the last map moved has been released by the shard that owned it before.
    fn is_settled(&self) -> bool {
        let epoch = self.map.borrow().epoch;
        let is_it =
            |h: &Host| h.shard().is_some_and(|s| s.engine().is_settled() && s.map.borrow().epoch == epoch);
        self.wanted().all(is_it)
    }

    /// Changes the number of shards, as `sluice scale` does. One change at a time: another is refused meanwhile.
    pub async fn scale(self: Rc<Self>, workers: u8) {
        if self.is_scaling.replace(true) {
            return;
        }
        self.scale_now(workers).await;
        self.is_scaling.set(false);
    }

    async fn scale_now(self: &Rc<Self>, workers: u8) {
        if !self.until(SCALE_WAIT, || self.is_settled()).await || usize::from(workers) > self.hosts.len() {
            return;
        }
        let before = self.map.borrow().clone();
        let is_new = |n: u8| !before.shards.contains(&n);
        self.hosts.iter().filter(|h| h.number < workers).for_each(|h| h.is_wanted.set(true));
        let new: Vec<&Host> = self.hosts.iter().filter(|h| h.number < workers && is_new(h.number)).collect();
        if !self.until(SCALE_WAIT, || new.iter().all(|h| h.shard().is_some())).await {
            return;
        }
        let first = before.shards.first().and_then(|n| self.hosts.get(usize::from(*n)));
        if let Some(all) = first.and_then(Host::shard).map(|s| switches::all(&s)) {
            for host in &new {
                let all = all.clone();
                host.order(move |shard| switches::take(shard, all));
            }
        }
        self.note(|| format!("{workers} shards"));
        let spread = before.spread.clone();
        let map = before.next(workers, spread);
        self.map.borrow_mut().clone_from(&map);
        for host in self.wanted() {
            let map = map.clone();
            host.order(move |shard| shard.follow_map(map));
        }
        for host in self.hosts.iter().filter(|h| h.number >= workers && h.is_wanted.get()) {
            self.retire(host).await;
        }
        self.until(SCALE_WAIT, || self.is_settled()).await;
    }

    /// Ends a shard that owns nothing any more, once it holds nothing either, and no other has a share of which it does not know
    /// whether this one took it.
    async fn retire(&self, host: &Host) {
        let epoch = self.map.borrow().epoch;
        let has_written = |s: &Shard| !s.spool.holds_deliveries() && s.spool.accounting_behind().is_none();
        let knows_it = |s: &Shard| s.map.borrow().epoch >= epoch;
        let is_empty = || host.shard().is_some_and(|s| knows_it(&s) && host.holds(&s) == 0 && has_written(&s));
        let has_none_open = |s: &Shard| s.handoffs.open_at().is_some_and(|at| !at.contains(&host.number));
        let none_open = || {
            let mut others = self.wanted().filter(|h| h.number != host.number);
            others.all(|h| h.shard().is_some_and(|s| has_none_open(&s)))
        };
        while !self.is_over() {
            sleep(Duration::from_secs(1)).await;
            if !is_empty() || !none_open() {
                continue;
            }
            host.is_wanted.set(false);
            host.has_left_nothing.set(false);
            host.stop();
            self.until(Duration::from_secs(3600), || host.life().is_none()).await;
            if host.has_left_nothing.get() {
                return;
            }
            // What came until the last moment is handed over by the next process.
            host.is_wanted.set(true);
        }
    }

    /// Gives all shards a configuration, by the number of what is different in it.
    pub fn reload(&self, variant: u64) {
        if let Err(e) = self.compile(variant) {
            self.book.borrow_mut().violation(format!("a configuration is wrong: {e}"));
            return;
        }
        for host in self.wanted() {
            let Ok(snapshot) = self.snapshot() else { continue };
            host.order(move |shard| {
                let taken = Config::of(snapshot).and_then(|config| shard.reload(config));
                taken.unwrap_or_else(|e| tracing::error!(error = %e, "a shard does not take a configuration"));
            });
        }
    }

    /// Gives all shards that run an order about queues.
    pub fn order(&self, of: &str, action: QueueAction) {
        let Ok(of) = QueuePattern::parse(of) else { return };
        let order = QueueOrder { of, action };
        for host in self.wanted() {
            let order = order.clone();
            host.order(move |shard| drop(switches::obey(shard, &order, "an operator")));
        }
    }
}

//! What the supervisor does with shards: starts processes, changes their number, gives them another configuration, and adopts those that
//! another supervisor started.

use std::rc::Rc;
use std::time::Duration;

use ipc::control::Heartbeat;
use ipc::shard_map::ShardMap;
use supervisor::fleet::{Known, Seen};
use supervisor::retiring::{Retiring, Step};
use supervisor::scaling::{self, Scaling, Trouble};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};
use worker::config::Config;
use worker::shard::Shard;
use worker::switches;

use crate::host::Host;
use crate::world::World;

/// Time between two looks at what is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long an operator asks again for a change while the one before is under way.
const SCALE_WAIT: Duration = Duration::from_secs(60);

impl World {
    /// Starts a shard's process whenever there is none and one is wanted.
    pub async fn supervise(self: Rc<Self>, n: usize) {
        let Some(host) = self.hosts.get(n) else { return };
        while !self.is_over() {
            if !host.is_wanted.get() || self.is_unattended.get() {
                sleep(LOOK_EVERY).await;
                continue;
            }
            let ending = host.live(&self).await;
            self.note(|| format!("shard {n}: {ending:?}"));
            while self.is_unattended.get() && !self.is_over() {
                sleep(LOOK_EVERY).await;
            }
            self.free_ledger_of(host.number);
            sleep(Duration::from_millis(self.between(20, 3000))).await;
        }
    }

    /// Shards that have a process, or are to have one.
    pub fn wanted(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter().filter(|h| h.is_wanted.get())
    }

    /// Changes the number of shards, as `sluice scale` does. One change at a time: another is refused meanwhile.
    pub async fn scale(self: Rc<Self>, workers: u8) {
        if self.is_unattended.get() || self.is_scaling.replace(true) {
            return;
        }
        let supervisor = self.supervisor.get();
        self.scale_now(workers).await;
        if self.supervisor.get() == supervisor {
            self.is_scaling.set(false);
        }
    }

    /// The supervisor is gone until then. Shards go on, and those that end stay away.
    pub async fn lose_supervisor(self: Rc<Self>, until: Instant) {
        if self.is_unattended.replace(true) {
            return;
        }
        // What it was about to do is not done.
        let gone = self.supervisor.get() + 1;
        self.supervisor.set(gone);
        self.is_scaling.set(false);
        for host in self.hosts.iter().filter(|h| h.life().is_some()) {
            match host.shard() {
                Some(shard) => shard.programs.supervisor_gone(),
                // It has nobody to tell that it serves, and ends.
                None => host.kill(&self),
            }
        }
        tokio::time::sleep_until(until).await;
        if self.supervisor.get() == gone {
            self.adopt();
        }
    }

    /// A supervisor comes, where none is: it adopts the shards that run, starts those that do not, and goes by its configuration.
    /// Shards beyond it are retired.
    pub fn adopt(self: &Rc<Self>) {
        if !self.is_unattended.get() {
            return;
        }
        let running: Vec<Rc<Shard>> = self.hosts.iter().filter_map(Host::shard).collect();
        self.note(|| format!("a supervisor adopts {} shards", running.len()));
        if self.hosts.iter().all(|h| h.life().is_none()) {
            // Nobody hands anything back.
            self.begin_ledger();
            *self.map.borrow_mut() = ShardMap::first(self.plan.shards, Vec::new());
        }
        let newest = running.iter().map(|s| s.map.borrow().clone()).max_by_key(|map| map.epoch);
        let configured: Vec<u8> = (0..self.plan.shards).collect();
        let found = newest.map_or_else(|| self.map.borrow().clone(), |map| ShardMap::clone(&map));
        let map = ShardMap::first(self.plan.shards, Vec::new()).adopting(&found);
        self.map.borrow_mut().clone_from(&map);
        let surplus: Vec<u8> =
            self.hosts[configured.len()..].iter().filter(|h| h.is_there()).map(|h| h.number).collect();
        for host in self.hosts.iter().filter(|h| configured.contains(&h.number) || surplus.contains(&h.number)) {
            host.is_wanted.set(true);
        }
        self.hosts.iter().for_each(Host::is_unheard);
        self.is_unattended.set(false);
        self.supervisor.set(self.supervisor.get() + 1);
        self.tell_map();
        let (world, supervisor) = (Rc::clone(self), self.supervisor.get());
        self.is_scaling.set(true);
        spawn_local(async move {
            world.retire_above(configured.len(), supervisor).await;
            if world.supervisor.get() == supervisor {
                world.is_scaling.set(false);
            }
        });
    }

    /// The shard map as shards are given it, with those that have no part in it.
    pub fn map_for_shards(&self) -> ShardMap {
        self.map.borrow().clone().among(self.hosts.iter().filter(|h| h.is_there()).map(|h| h.number))
    }

    /// Gives all shards that run the shard map.
    fn tell_map(&self) {
        let map = self.map_for_shards();
        for host in &self.hosts {
            let map = map.clone();
            host.order(move |shard| shard.follow_map(map));
        }
    }

    /// Makes the change as the supervisor decides. Where the change before is still under way, it is asked for again.
    async fn scale_now(self: &Rc<Self>, workers: u8) {
        if usize::from(workers) > self.hosts.len() {
            return;
        }
        let (supervisor, until) = (self.supervisor.get(), Instant::now() + SCALE_WAIT);
        let mut scaling = Scaling::to(workers, Instant::now().into_std());
        loop {
            if self.is_over() || self.supervisor.get() != supervisor {
                return;
            }
            match self.seen(None, |seen| scaling.step(Instant::now().into_std(), seen)) {
                scaling::Step::Wait => sleep(LOOK_EVERY).await,
                scaling::Step::IsSo => return,
                scaling::Step::Start(new) => {
                    self.hosts.iter().filter(|h| new.contains(&h.number)).for_each(|h| h.is_wanted.set(true));
                }
                scaling::Step::Tell(new) => match self.tell_switches(&new) {
                    true => scaling.are_told(),
                    false => sleep(LOOK_EVERY).await,
                },
                scaling::Step::Publish => break,
                scaling::Step::GiveUp(Trouble::Unsettled) if Instant::now() < until => {
                    scaling = Scaling::to(workers, Instant::now().into_std());
                }
                scaling::Step::GiveUp(trouble) => {
                    self.note(|| format!("{workers} shards: {trouble}"));
                    let owners = self.map.borrow().shards.len();
                    return self.retire_above(owners, supervisor).await;
                }
            }
        }
        self.note(|| format!("{workers} shards"));
        let map = self.map.borrow().clone();
        *self.map.borrow_mut() = map.next(workers, map.spread.clone());
        self.tell_map();
        self.retire_above(usize::from(workers), supervisor).await;
    }

    /// Tells new shards what operators paused, as one that owns destinations knows it; whether there is one.
    fn tell_switches(&self, new: &[u8]) -> bool {
        let owners = self.map.borrow().shards.clone();
        let mut known = owners.iter().filter_map(|n| self.hosts.get(usize::from(*n))?.shard());
        let Some(all) = known.next().map(|s| switches::all(&s)) else { return false };
        for host in self.hosts.iter().filter(|h| new.contains(&h.number)) {
            let all = all.clone();
            host.order(move |shard| switches::take(shard, all));
        }
        true
    }

    /// Ends shards that own nothing any more, one after the other.
    async fn retire_above(self: &Rc<Self>, owners: usize, supervisor: u32) {
        for host in self.hosts[owners..].iter().filter(|h| h.is_wanted.get()) {
            self.retire(host, supervisor).await;
        }
    }

    /// Ends a shard that owns nothing any more, as the supervisor decides.
    async fn retire(&self, host: &Host, supervisor: u32) {
        let mut retiring = Retiring::of(host.number);
        while !self.is_over() && self.supervisor.get() == supervisor {
            let step = self.seen(Some(host.number), |seen| retiring.step(Instant::now().into_std(), seen));
            match step {
                Step::Wait => sleep(LOOK_EVERY).await,
                Step::Stop => {
                    host.is_wanted.set(false);
                    host.has_left_nothing.set(false);
                    host.stop();
                }
                Step::StartAgain => host.is_wanted.set(true),
                Step::Gone => {
                    host.has_served.set(false);
                    return self.tell_map();
                }
                Step::Stays => return,
            }
        }
    }

    /// Looks at what is known of the shards that are there, and of `also`.
    fn seen<T>(&self, also: Option<u8>, look: impl FnOnce(Seen<'_>) -> T) -> T {
        let there: Vec<&Host> = self.hosts.iter().filter(|h| h.is_there() || Some(h.number) == also).collect();
        let heartbeats: Vec<Heartbeat> = there.iter().map(|h| h.heartbeat()).collect();
        let shards: Vec<Known<'_>> = there.iter().zip(&heartbeats).map(|(h, b)| h.known(b)).collect();
        let map = self.map.borrow();
        look(Seen { epoch: map.epoch, owners: &map.shards, shards: &shards })
    }

    /// Gives all shards a configuration, by the number of what is different in it.
    pub fn reload(&self, variant: u64) {
        if self.is_unattended.get() {
            return;
        }
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
}

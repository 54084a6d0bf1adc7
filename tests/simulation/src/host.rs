//! A shard's processes, one after the other, over what outlives them: its disk and its accounting file.

use std::cell::{Cell, RefCell};
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Mutex;
use std::time::Duration;

use ipc::control::Heartbeat;
use spool::memory::{Fault, MemoryDisk, MemoryIndex};
use supervisor::fleet::Known;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, sleep, timeout};
use tracing::Instrument;
use worker::accept::listener::serve;
use worker::config::Config;
use worker::control::{HEARTBEAT_EVERY, heartbeat};
use worker::ports::Ports;
use worker::shard::Parts;
use worker::shard::Shard;
use worker::shard::life::SpoolContents;
use worker::tasks::begin;

use crate::book::{CutShort, Life};
use crate::fragile::Fragile;
use crate::net::Port;
use crate::pipe::{End, Scissors, connection};
use crate::rot::Rotted;
use crate::rows::{self, Projected};
use crate::world::World;

/// Bytes of a shard's disk.
const DISK_BYTES: u64 = 2 << 30;
/// What a step of accounting takes at most, milliseconds.
const ACCOUNTING_STEP_MS: u64 = 200;
/// Messages that a spool may hold at a start.
const RECOVERED_MAX: usize = 1 << 20;

/// A machine's share of one shard.
#[derive(Debug)]
pub struct Host {
    /// Number of the shard.
    pub number: u8,
    /// Its disk.
    pub disk: MemoryDisk,
    /// Its index, on the same disk.
    pub index: MemoryIndex,
    /// Its accounting file.
    pub rows: rows::Shared,
    /// How long a group took at most.
    pub group: Cell<Duration>,
    /// Since and until when its disk takes nothing.
    pub unwritable: Cell<Option<(Instant, Instant)>>,
    /// A process is to run.
    pub is_wanted: Cell<bool>,
    /// What the supervisor heard of its process last, when, and whether the last process said that it left everything on disk.
    heard: RefCell<(Heartbeat, Instant, bool)>,
    /// The last process left in order, nothing was queued, and everything was on disk.
    pub has_left_nothing: Cell<bool>,
    /// One of its processes has served since the supervisor knows it.
    pub has_served: Cell<bool>,
    /// Records of its log that rotted.
    pub rotted: RefCell<Vec<Rotted>>,
    lives: Cell<u32>,
    process: RefCell<Option<Process>>,
}

/// Something that the supervisor tells a shard to do.
type Order = Box<dyn FnOnce(&Rc<Shard>)>;

/// A process that runs.
#[derive(Debug)]
struct Process {
    life: Life,
    shard: Weak<Shard>,
    clients: mpsc::UnboundedSender<(Fragile<End>, SocketAddr, SocketAddr)>,
    orders: mpsc::UnboundedSender<Order>,
    kill: Option<oneshot::Sender<()>>,
    stop: Option<oneshot::Sender<()>>,
}

/// How a process ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ending {
    /// It was killed.
    Killed,
    /// It left in order.
    Left,
    /// It could not go on.
    Failed(String),
}

impl Host {
    /// A host that no process has run on.
    pub fn new(number: u8, is_wanted: bool) -> Host {
        Host {
            number,
            disk: MemoryDisk::new(DISK_BYTES),
            index: MemoryIndex::default(),
            rows: rows::Shared::default(),
            group: Cell::default(),
            unwritable: Cell::default(),
            is_wanted: Cell::new(is_wanted),
            heard: RefCell::new((Heartbeat::default(), Instant::now(), false)),
            has_left_nothing: Cell::new(false),
            has_served: Cell::new(false),
            rotted: RefCell::default(),
            lives: Cell::new(0),
            process: RefCell::default(),
        }
    }

    /// The process that runs, and serves.
    pub fn shard(&self) -> Option<Rc<Shard>> {
        self.process.borrow().as_ref().and_then(|p| p.shard.upgrade())
    }

    /// Recipients that a shard has, of its own and for others.
    pub fn holds(&self, shard: &Shard) -> u64 {
        shard.scheduler().recipients + shard.kept.recipients()
    }

    /// What the supervisor knows of the shard; the heartbeat is the last one that it heard.
    pub fn known<'a>(&self, heartbeat: &'a Heartbeat) -> Known<'a> {
        let (_, beat_at, left_complete) = &*self.heard.borrow();
        let is_told_to_stop = self.process.borrow().as_ref().is_some_and(|p| p.stop.is_none());
        Known {
            number: self.number,
            runs: self.life().is_some(),
            serves: self.shard().is_some() && !is_told_to_stop,
            has_served: self.has_served.get(),
            is_down: false,
            heartbeat,
            beat_at: beat_at.into_std(),
            left_complete: *left_complete,
        }
    }

    /// The last heartbeat that the supervisor heard.
    pub fn heartbeat(&self) -> Heartbeat {
        self.heard.borrow().0.clone()
    }

    /// The supervisor hears how the shard is.
    fn beats(&self, shard: &Shard) {
        let mut heard = self.heard.borrow_mut();
        (heard.0, heard.1) = (heartbeat(shard), Instant::now());
    }

    /// Its process has ended, and what it said of itself holds no more.
    fn is_silent(&self) {
        let mut heard = self.heard.borrow_mut();
        heard.0 = Heartbeat { recipients: heard.0.recipients, ..Heartbeat::default() };
    }

    /// Another supervisor has heard nothing of it.
    pub fn is_unheard(&self) {
        *self.heard.borrow_mut() = (Heartbeat::default(), Instant::now(), false);
        self.has_served.set(self.shard().is_some());
    }

    /// Tells the process that runs to do something; nobody hears it where none does.
    pub fn order(&self, what: impl FnOnce(&Rc<Shard>) + 'static) {
        if let Some(p) = &*self.process.borrow() {
            let _ = p.orders.send(Box::new(what));
        }
    }

    /// A process runs or is to run, or one left something behind.
    pub fn is_there(&self) -> bool {
        self.is_wanted.get() || self.life().is_some() || self.lives.get() > 0 && !self.has_left_nothing.get()
    }

    /// The life that goes on.
    pub fn life(&self) -> Option<Life> {
        self.process.borrow().as_ref().map(|p| p.life)
    }

    /// Kills the process that runs.
    pub fn kill(&self, world: &World) {
        let Some(process) = self.process.borrow_mut().take() else { return };
        self.is_silent();
        world.book.borrow_mut().cut_short(process.life, self.cut_short());
        world.network.lose(process.life);
        let _ = process.kill.map(|k| k.send(()));
    }

    /// What a process that ends now may not have written down.
    fn cut_short(&self) -> CutShort {
        let now = Instant::now();
        let unwritable_since = self.unwritable_of_late(now).map(|(since, _)| since);
        CutShort { at: now, group: self.group.get(), unwritable_since }
    }

    /// Since and until when its disk took nothing, where that may still hold up what was to be written: groups that failed are offered
    /// again a second later at the latest, behind one that may be under way.
    fn unwritable_of_late(&self, now: Instant) -> Option<(Instant, Instant)> {
        self.unwritable.get().filter(|(_, until)| now <= *until + Duration::from_secs(3) + 2 * self.group.get())
    }

    /// Lets its disk take nothing until then, for this reason.
    pub fn fail(&self, fault: Fault, until: Instant) {
        self.disk.fail_until(fault, until);
        let now = Instant::now();
        let before = self.unwritable_of_late(now);
        let since = before.map_or(now, |(since, _)| since);
        self.unwritable.set(Some((since, before.map_or(until, |(_, before)| before.max(until)))));
    }

    /// Tells the process that runs to leave.
    pub fn stop(&self) {
        if let Some(p) = &mut *self.process.borrow_mut() {
            let _ = p.stop.take().map(|s| s.send(()));
        }
    }

    /// Connects a client to the process that runs.
    pub fn connect(&self, world: &World, from: SocketAddr) -> Option<(End, Scissors)> {
        let process = self.process.borrow();
        let p = process.as_ref().filter(|p| p.shard.strong_count() > 0)?;
        let listener = SocketAddr::from(([10, 0, 0, 1], 25));
        let (theirs, ours, scissors) = connection([from, listener], &world.network.latency);
        let ours = Fragile::new(ours, &world.network.panics, scissors.clone());
        p.clients.send((ours, from, listener)).ok()?;
        world.network.opened(p.life, scissors.clone());
        Some((theirs, scissors))
    }

    /// Starts a process, and resolves when it has ended.
    pub async fn live(&self, world: &Rc<World>) -> Ending {
        let life = Life { shard: self.number, number: self.lives.get() };
        self.lives.set(life.number + 1);
        self.heard.borrow_mut().2 = false;
        let (kill, killed) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let (clients, mut new) = mpsc::unbounded_channel::<(Fragile<End>, SocketAddr, SocketAddr)>();
        let (orders, mut ordered) = mpsc::unbounded_channel::<Order>();
        *self.process.borrow_mut() =
            Some(Process { life, shard: Weak::new(), clients, orders, kill: Some(kill), stop: Some(stop) });
        // What is killed gives nothing back: nothing of it is dropped.
        let tasks = ManuallyDrop::new(LocalSet::new());
        let main = async {
            let shard = self.open(world, life).await?;
            if let Some(p) = &mut *self.process.borrow_mut() {
                p.shard = Rc::downgrade(&shard);
            }
            self.has_served.set(true);
            // A shard that begins to serve is given the map that it missed.
            shard.follow_map(world.map_for_shards());
            let obeys = Rc::clone(&shard);
            spawn_local(async move {
                while let Some(order) = ordered.recv().await {
                    order(&obeys);
                }
            });
            let (beating, attended) = (Rc::clone(&shard), Rc::clone(world));
            spawn_local(async move {
                while let Some(host) = attended.hosts.get(usize::from(beating.number)) {
                    if !attended.is_unattended.get() {
                        host.beats(&beating);
                    }
                    sleep(HEARTBEAT_EVERY).await;
                }
            });
            let served = Rc::clone(&shard);
            let clients = spawn_local(async move {
                while let Some((end, peer, local)) = new.recv().await {
                    let shard = Rc::clone(&served);
                    begin(
                        "client",
                        move || async move { serve(shard, &local.to_string(), end, peer, Some(local)).await },
                    );
                }
            });
            let _ = stopped.await;
            clients.abort();
            shard.stop();
            let _ = timeout(Duration::from_secs(10), shard.has_ended_work()).await;
            let is_empty = self.holds(&shard) == 0;
            if !world.is_unattended.get() {
                self.beats(&shard);
            }
            let is_complete = shard.leave().await;
            self.has_left_nothing.set(is_empty && is_complete);
            self.heard.borrow_mut().2 = is_complete && !world.is_unattended.get();
            Ok::<_, String>(())
        };
        let named = tracing::info_span!("shard", n = life.shard, life = life.number);
        let mut running = ManuallyDrop::new(Box::pin(tasks.run_until(main).instrument(named)));
        let ended = tokio::select! {
            biased;
            _ = killed => return Ending::Killed,
            ended = running.as_mut() => ended,
        };
        drop(ManuallyDrop::into_inner(running));
        drop(ManuallyDrop::into_inner(tasks));
        *self.process.borrow_mut() = None;
        self.is_silent();
        let how = self.cut_short();
        if how.unwritable_since.is_some() {
            world.book.borrow_mut().cut_short(life, how);
        }
        world.network.lose(life);
        ended.map_or_else(Ending::Failed, |()| Ending::Left)
    }

    async fn open(&self, world: &Rc<World>, life: Life) -> Result<Rc<Shard>, String> {
        let config = Config::of(world.snapshot()?)?;
        let port = Rc::new(Port {
            life,
            network: Rc::clone(&world.network),
            spawn: Rc::clone(&world.spawn),
            next_port: Cell::new(1024),
        });
        let options = spool::Options {
            path: format!("shard-{:02}", self.number).into(),
            shard: self.number,
            sync: true,
            min_free_bytes: 0,
            boot: format!("boot {}", world.boots.get()),
        };
        let (tx, messages) = mpsc::channel(RECOVERED_MAX);
        let each = Box::new(move |m| drop(tx.try_send(m)));
        let projection = Box::new(Projected::into(rows::Shared::clone(&self.rows)));
        let (spool, values, driver) =
            spool::Spool::without_thread(self.disk.clone(), self.index.clone(), options, projection, each);
        let (most, dice) = (world.between(0, ACCOUNTING_STEP_MS), Mutex::new(world.dice.fork()));
        let takes = move || Duration::from_millis(dice.lock().map_or(0, |dice| dice.below(most + 1)));
        spawn_local(driver.with_accounting_time(takes).run());
        let shard = Shard::new(Parts {
            number: self.number,
            config,
            spool,
            ledger: world.ledger(self.number)?,
            map: world.map_for_shards(),
            ports: Ports { net: Rc::<Port>::clone(&port), dns: Rc::<Port>::clone(&port), mesh: port },
            accounting: world.shown(),
            suppression: None,
            delivers_only: false,
        })?;
        Rc::clone(&shard).recover(SpoolContents { messages, values }).await?;
        shard.start()?;
        Ok(shard)
    }
}

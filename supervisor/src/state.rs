//! The state of the supervisor: what it knows, and what it tells its workers. Tasks that change it are begun by [`crate::run`].

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use ipc::control::{AccountingFile, Rows, RowsOf, ToWorker};
use ipc::ledger::Ledger;
use ipc::rules::DomainKey;
use ipc::shard_map::{ShardMap, Spread};
use tokio::sync::{Notify, oneshot};

use crate::accounting::AccountingFiles;
use crate::acme::files::Trouble;
use crate::config::{Compiled, Overrides};
use crate::fleet::{Known, Seen};
use crate::listen;
use crate::load::Automatic;
use crate::shards::{Slot, State, Totals};
use crate::suppression::Suppression;

/// How long workers may take to answer an operator's question.
pub const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// How long killed processes may take to let go of a listening socket, and work beside the loop to end with it.
pub const LET_GO_WAIT: Duration = Duration::from_secs(3);

/// The supervisor's state.
pub struct Supervisor {
    /// The configuration file; `None` for the built-in configuration.
    pub file: Option<PathBuf>,
    /// What the command line says instead of the configuration.
    pub overrides: Overrides,
    /// The configuration in force.
    pub compiled: RefCell<Compiled>,
    /// Generation of the configuration in force; each reload adds one.
    pub generation: Cell<u64>,
    /// The sealed memfd that holds the compiled configuration in force.
    pub snapshot: RefCell<OwnedFd>,
    /// A generation, and the commands by which its configuration delivers mail. See [`Supervisor::runs_command`].
    pub commands: RefCell<(u64, HashSet<String>)>,
    /// Counters of the limits that span shards, mapped.
    pub ledger: RefCell<Ledger>,
    /// The memfd that holds them.
    pub ledger_fd: RefCell<OwnedFd>,
    /// Listening sockets by address.
    pub listeners: RefCell<Vec<(String, OwnedFd)>>,
    /// One for each shard.
    pub slots: RefCell<Vec<Slot>>,
    /// Which shard owns which destinations.
    pub map: RefCell<ShardMap>,
    /// Accounting files.
    pub accounting: AccountingFiles,
    /// How many DKIM keys there are, and how many of them differed from their published records at the last look.
    pub dkim_keys: Cell<(usize, usize)>,
    /// The suppression lists: recipients that get no mail.
    pub suppression: Suppression,
    /// At the start, the number of shards whose workers may have outlived a supervisor before and may still come back.
    pub returning: Cell<usize>,
    /// It is settled that the ledger here is the one that all workers use.
    pub has_ledger: Cell<bool>,
    /// Certificates of `<acme>` that could not be obtained, by file.
    pub acme: RefCell<HashMap<PathBuf, Trouble>>,
    /// An operator has put a configuration in force: what failed before is tried at once.
    pub acme_asked: Cell<bool>,
    /// The data folder that the server was started with.
    pub data_dir: PathBuf,
    /// Notified when a slot changes.
    pub changed: Notify,
    /// The server is stopping.
    pub stopping: Cell<bool>,
    /// Notified to ask for an orderly stop.
    pub stop: Notify,
    /// How the stop ended, once it has.
    pub stopped: RefCell<Option<Result<String, String>>>,
    /// How many operators wait for the end of the stop.
    pub stop_waiters: Cell<u32>,
    /// Held while a configuration is put in force: one at a time.
    pub reloading: tokio::sync::Mutex<()>,
    /// The folder in which configurations that were in force are kept. It lies in the data folder that the start had.
    pub configurations: PathBuf,
    /// Number of the configuration in force among those that are kept; `None` where it is the built-in one or could not be kept.
    pub kept_in_force: Cell<Option<u64>>,
    /// Held while a configuration is being kept, or the kept ones are listed: one at a time.
    pub keeping: tokio::sync::Mutex<()>,
    /// Held while a configuration is read and compiled: one at a time, for each takes much memory.
    pub reading: tokio::sync::Mutex<()>,
    /// When the supervisor started.
    pub started: SystemTime,
    /// What shards had counted that were removed by `scale`.
    pub gone: Cell<Totals>,
    /// Destinations that `spread auto` has spread over several shards.
    pub automatic: RefCell<Automatic>,
    /// Held while the number of workers is being changed, up to the next shard map: one change at a time.
    pub scaling: tokio::sync::Mutex<()>,
    /// Read: an operator's order is being given to the shards. Write: new shards are being told the orders that stand.
    pub ordering: tokio::sync::RwLock<()>,
    /// Questions to workers that are not answered yet, by number.
    pub questions: RefCell<HashMap<u64, oneshot::Sender<Rows>>>,
    /// Number of the next question.
    pub next_question: Cell<u64>,
}

impl Supervisor {
    /// Folder of the sockets.
    pub fn run_dir(&self) -> PathBuf {
        PathBuf::from(&self.compiled.borrow().snapshot.global.run_dir)
    }

    /// Looks at the slot of a shard; `None` when there is no such shard.
    pub fn slot<T>(&self, number: u8, f: impl FnOnce(&Slot) -> T) -> Option<T> {
        self.slots.borrow().iter().find(|s| s.number == number).map(f)
    }

    /// Changes the slot of a shard; `None` when there is no such shard.
    pub fn slot_mut<T>(&self, number: u8, f: impl FnOnce(&mut Slot) -> T) -> Option<T> {
        self.slots.borrow_mut().iter_mut().find(|s| s.number == number).map(f)
    }

    fn cloned(fd: &OwnedFd) -> Option<OwnedFd> {
        fd.try_clone().map_err(|e| tracing::error!(error = %e, "a descriptor cannot be duplicated")).ok()
    }

    /// What a worker starts with: listener addresses; snapshot, ledger, listeners.
    pub fn descriptors(&self) -> (Vec<String>, Vec<OwnedFd>) {
        let listeners = self.listeners.borrow();
        let mut fds: Vec<OwnedFd> = Vec::new();
        fds.extend(Self::cloned(&self.snapshot.borrow()));
        fds.extend(Self::cloned(&self.ledger_fd.borrow()));
        fds.extend(listeners.iter().filter_map(|(_, fd)| Self::cloned(fd)));
        (listeners.iter().map(|(a, _)| a.clone()).collect(), fds)
    }

    /// A worker hands back what a new supervisor cannot make.
    pub fn take_back(&self, names: Vec<String>, fds: Vec<OwnedFd>, accounting: &[AccountingFile], map: &ShardMap) {
        let mut fds = fds.into_iter().skip(1);
        if let Some(ledger) = fds.next().filter(|_| !self.has_ledger.replace(true)) {
            match Ledger::open(&ledger) {
                Ok(l) => {
                    worker::clock::follow(l.ahead());
                    *self.ledger.borrow_mut() = l;
                    *self.ledger_fd.borrow_mut() = ledger;
                }
                Err(e) => tracing::error!(error = %e, "the workers' ledger cannot be used"),
            }
        }
        let mut mine = self.listeners.borrow_mut();
        for (name, fd) in names.into_iter().zip(fds) {
            if !mine.iter().any(|(a, _)| *a == name) {
                mine.push((name, fd));
            }
        }
        let switch = self.accounting.switch();
        self.accounting.adopt(accounting.to_vec());
        if self.accounting.switch() != switch {
            self.order_switch();
        }
        let mut own = self.map.borrow_mut();
        if map.epoch >= own.epoch {
            *own = own.adopting(map);
        }
    }

    /// Workers that another supervisor configured follow this one's configuration: its
    /// snapshot gets a generation above theirs.
    pub fn outrank(&self, generation: u64) {
        if generation < self.generation.get() {
            return;
        }
        if let Err(e) = self.publish(&mut self.compiled.borrow_mut(), generation + 1) {
            tracing::error!(error = %e, "the configuration cannot be published; adopted workers keep theirs");
        }
    }

    /// Makes the configuration in force the snapshot of another generation.
    pub fn publish(&self, compiled: &mut Compiled, generation: u64) -> std::io::Result<()> {
        compiled.snapshot.generation = generation;
        *self.snapshot.borrow_mut() = compiled.snapshot.seal()?;
        self.generation.set(generation);
        Ok(())
    }

    /// A worker has begun to serve: what changed since it was welcomed.
    pub fn bring_up_to_date(&self, number: u8) {
        let map = self.map_for_shards();
        let (switch, current) = self.accounting.in_use();
        self.slot(number, |s| {
            s.order(ToWorker::Map(map), Vec::new());
            if s.switched < switch {
                s.order(ToWorker::SwitchAccounting { switch, files: current }, Vec::new());
            }
        });
        if self.generation.get() > self.slot(number, |s| s.generation).unwrap_or(0) {
            self.send_reload(number);
        }
    }

    /// Binds listeners that were left to running workers which then died.
    pub async fn bind_missing(&self) {
        let wanted: Vec<String> = self.compiled.borrow().snapshot.listeners.iter().map(|l| l.address.clone()).collect();
        let until = tokio::time::Instant::now() + LET_GO_WAIT;
        for address in wanted {
            while !self.listeners.borrow().iter().any(|(a, _)| *a == address) {
                match listen::bind_to(&address) {
                    Ok(fd) => self.listeners.borrow_mut().push((address.clone(), fd)),
                    Err(e) if tokio::time::Instant::now() >= until => {
                        tracing::error!(error = e, "a listener is not served");
                        break;
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        }
    }

    /// Whether all shards serve.
    pub fn all_serve(&self) -> bool {
        self.slots.borrow().iter().all(|s| s.state == State::Serving)
    }

    /// CPUs that workers are pinned to.
    pub fn cpus_of_workers(&self) -> Vec<usize> {
        self.slots.borrow().iter().map(|s| s.cpu).collect()
    }

    /// Whether the configuration in force delivers mail by this `command`.
    pub fn runs_command(&self, command: &str) -> bool {
        let mut commands = self.commands.borrow_mut();
        let generation = self.generation.get();
        if commands.0 != generation {
            let compiled = self.compiled.borrow();
            let all = compiled.snapshot.layers.texts(DomainKey::Command as u16);
            *commands = (generation, all.map(str::to_owned).collect());
        }
        commands.1.contains(command)
    }

    /// The mesh socket of a shard that serves.
    pub fn serving_socket(&self) -> Option<String> {
        let run = self.run_dir();
        let slots = self.slots.borrow();
        let s = slots.iter().find(|s| s.state == State::Serving)?;
        Some(run.join(format!("shard-{:02}.sock", s.number)).display().to_string())
    }

    /// Asks all workers and collects what comes in time.
    pub async fn ask_workers(&self, what: RowsOf) -> Vec<Rows> {
        self.ask_those(|_| true, what).await
    }

    /// The same of some shards, by number.
    pub async fn ask_those(&self, which: impl Fn(u8) -> bool, what: RowsOf) -> Vec<Rows> {
        let mut waiting = Vec::new();
        for s in self.slots.borrow().iter().filter(|s| which(s.number)) {
            let request = self.next_question.get();
            self.next_question.set(request + 1);
            let (tx, rx) = oneshot::channel();
            if s.order(ToWorker::Rows { request, what: what.clone() }, Vec::new()) {
                self.questions.borrow_mut().insert(request, tx);
                waiting.push((request, rx));
            }
        }
        let until = tokio::time::Instant::now() + ANSWER_WAIT;
        let mut all = Vec::new();
        for (request, rx) in waiting {
            if let Ok(Ok(rows)) = tokio::time::timeout_at(until, rx).await {
                all.push(rows);
            }
            self.questions.borrow_mut().remove(&request);
        }
        all
    }

    /// A worker answered.
    pub fn rows_came(&self, request: u64, rows: Rows) {
        if let Some(tx) = self.questions.borrow_mut().remove(&request) {
            // The command that asked may have given up waiting.
            let _ = tx.send(rows);
        }
    }

    /// Waits until `done`, looking whenever a slot changes.
    pub async fn until(&self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> bool {
        let until = tokio::time::Instant::now() + limit;
        while !done(self) {
            if tokio::time::Instant::now() >= until {
                return false;
            }
            let step = tokio::time::Instant::now() + Duration::from_millis(100);
            let _ = tokio::time::timeout_at(step.min(until), self.changed.notified()).await;
        }
        true
    }

    /// Tells a shard to end in order.
    pub fn tell_to_stop(&self, number: u8) {
        let grace_ms = self.grace().as_millis() as u64;
        self.slot_mut(number, |s| {
            s.state = State::Draining;
            s.order(ToWorker::Stop { grace_ms }, Vec::new());
        });
    }

    /// Tells all shards which accounting files they write.
    pub fn order_switch(&self) {
        let (switch, files) = self.accounting.in_use();
        for s in self.slots.borrow().iter() {
            s.order(ToWorker::SwitchAccounting { switch, files: files.clone() }, Vec::new());
        }
    }

    pub fn grace(&self) -> Duration {
        Duration::from_millis(self.compiled.borrow().snapshot.global.stop_grace_ms)
    }

    /// Puts the next shard map in force.
    pub fn publish_map(&self, workers: u8, spread: Vec<Spread>) {
        let map = match self.seen(|seen| seen.is_settled()) {
            true => self.map.borrow().next(workers, spread),
            false => self.map.borrow().next_unsettled(workers, spread),
        };
        *self.map.borrow_mut() = map;
        self.tell_map();
    }

    /// The shard map as shards are given it, with those that have no part in it.
    pub fn map_for_shards(&self) -> ShardMap {
        self.map.borrow().clone().among(self.slots.borrow().iter().map(|s| s.number))
    }

    /// Gives all shards the shard map.
    pub fn tell_map(&self) {
        let map = self.map_for_shards();
        for s in self.slots.borrow().iter() {
            s.order(ToWorker::Map(map.clone()), Vec::new());
        }
    }

    /// Looks at what is known of the shards.
    pub fn seen<T>(&self, look: impl FnOnce(Seen<'_>) -> T) -> T {
        let (map, slots) = (self.map.borrow(), self.slots.borrow());
        let shards: Vec<Known<'_>> = slots.iter().map(Slot::known).collect();
        look(Seen { epoch: map.epoch, owners: &map.shards, shards: &shards })
    }

    /// Every destination that the last map moved has been released by its owner before, and all shards serve.
    pub fn settled(&self) -> bool {
        self.all_serve() && self.seen(|seen| seen.is_settled())
    }

    /// Every listener goes along: a worker takes those it does not have.
    pub fn send_reload(&self, number: u8) {
        let (names, mut fds) = self.descriptors();
        if fds.len() > 1 {
            fds.remove(1);
        }
        let order = ToWorker::Reload { listeners: names.clone(), added: names };
        self.slot(number, |s| s.order(order, fds));
    }
}

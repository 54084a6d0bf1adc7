//! The worker's side of the control channel, and its life from start to exit.

use std::cell::RefCell;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use ipc::control::{
    AccountingFile, Heartbeat, Hello, Holds, Rows, RowsOf, TO_SUPERVISOR, TO_WORKER, ToSupervisor, ToWorker, Welcome,
};
use ipc::dice::HashMap;
use ipc::frame::{archive, unarchive};
use ipc::ledger::Ledger;
use ipc::message::MessageId;
use ipc::queue_orders::Deletion;
use ipc::shard_map::ShardMap;
use ipc::snapshot::MappedSnapshot;
use ipc::stream::FrameStream;
use nix::fcntl::{Flock, FlockArg};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use tokio::time::MissedTickBehavior;

use crate::account::file::RowFiles;
use crate::config::Config;
use crate::deliver::rerouting;
use crate::heat::Heat;
use crate::holds::Work;
use crate::ports::Ports;
use crate::sandbox::{self, Grants, InForce};
use crate::shard::life;
use crate::shard::{Parts, Shard};
use crate::suppression;
use crate::switches::Obeyed;
use crate::tasks::Panicked;
use crate::{Start, holds, one_message, rows, tasks};

/// A worker tells the supervisor so often how its shard is.
pub const HEARTBEAT_EVERY: Duration = Duration::from_millis(500);
/// The same of a shard that stops: what it still does is soon over.
const STOPPING_HEARTBEAT_EVERY: Duration = Duration::from_millis(20);
const RECONNECT_EVERY: Duration = Duration::from_millis(200);
/// Orders that may wait for the disk at once.
const AT_WORK_MAX: usize = 64;
/// Time between two attempts at accounting files that cannot be switched.
const SWITCH_AGAIN: Duration = Duration::from_millis(500);

/// What a worker holds for a supervisor that has to be adopted.
struct HandBack {
    snapshot: OwnedFd,
    ledger: OwnedFd,
    listeners: Vec<(String, OwnedFd)>,
    accounting: Vec<AccountingFile>,
    generation: u64,
}

/// Connects, recovers, serves, leaves.
///
/// # Errors
/// A sentence when the worker cannot serve.
pub async fn serve(start: Start) -> Result<(), String> {
    let socket = start.run_dir.join("supervisor.sock");
    let stream = UnixStream::connect(&socket)
        .await
        .map_err(|e| format!("the supervisor does not answer at {}: {e}", socket.display()))?;
    let mut control = FrameStream::new(stream);
    say(&control, &ToSupervisor::Hello(hello(&start, 0, false))).await.map_err(|e| e.to_string())?;
    let (welcome, fds) = welcome(&mut control).await?;
    let mut fds = fds.into_iter();
    let (Some(snapshot_fd), Some(ledger_fd)) = (fds.next(), fds.next()) else {
        return Err("the supervisor sent no snapshot".into());
    };
    let snapshot = MappedSnapshot::map(&snapshot_fd).map_err(|e| format!("snapshot: {e}"))?;
    let ledger = Ledger::open(&ledger_fd).map_err(|e| format!("ledger: {e}"))?;
    crate::clock::follow(ledger.ahead());
    let generation = snapshot.get().generation.to_native();
    let config = Config::of(snapshot)?;
    let folder = shard_folder(&config, start.shard)?;
    let _lock = lock(&folder)?;
    let held = HandBack {
        snapshot: snapshot_fd,
        ledger: ledger_fd,
        listeners: welcome.listeners.iter().cloned().zip(fds).collect(),
        accounting: welcome.accounting.clone(),
        generation,
    };
    let may = confine(&config, &start, &folder, &held.accounting, &welcome.accounting_before);
    let shard = open_shard(&start, config, ledger, welcome.map, &held.accounting, &folder, &control).await?;
    let (outbox, outcomes) = mpsc::channel(AT_WORK_MAX);
    let switching = Rc::new(Switching::default());
    let mut worker = Worker {
        start,
        shard,
        held,
        may,
        accepting: HashMap::default(),
        leaving: false,
        connection: 0,
        outbox,
        switching,
    };
    worker.begin()?;
    // What this round of the loop took belongs to the start, and is not measured as a hold.
    tokio::task::yield_now().await;
    holds::serves();
    // What the spool held is known from the first moment on.
    let found = Heartbeat { state: "recovering".into(), ..heartbeat(&worker.shard) };
    say(&control, &ToSupervisor::Heartbeat(found)).await.map_err(|e| e.to_string())?;
    say(&control, &ToSupervisor::Serving).await.map_err(|e| e.to_string())?;
    let control = worker.run(control, outcomes).await;
    worker.leave(&control).await;
    Ok(())
}

/// Puts the sandbox in force, before anything starts a thread; answers what it lets this worker touch.
fn confine(
    config: &Config,
    start: &Start,
    folder: &Path,
    accounting: &[AccountingFile],
    accounting_before: &[String],
) -> Option<Grants> {
    let shard = start.shard;
    if !config.global.sandbox {
        return None;
    }
    let grants = Grants::of(config, start, folder, accounting, accounting_before);
    match sandbox::enter(&grants) {
        Ok(InForce::Whole) => tracing::debug!(shard, "the sandbox is in force"),
        Ok(in_force) => tracing::info!(shard, ?in_force, "this kernel enforces a part of the sandbox only"),
        Err(e) => tracing::error!(shard, error = %e, "the sandbox is not in force, or in part"),
    }
    Some(grants)
}

/// The result of an order that had to wait for the disk.
struct Done {
    /// Number of the control connection that the order came on. A supervisor that has connected since did not give it, and gets no answer.
    connection: u64,
    what: ToSupervisor,
    /// Accounting is written to these files from now on.
    switched_to: Option<Vec<AccountingFile>>,
}

/// The accounting files that the supervisor wants. Only the last order counts: files that earlier orders named are no longer to be
/// written.
#[derive(Default)]
struct Switching {
    wanted: RefCell<Option<(u64, u64, Vec<AccountingFile>)>>,
    order: Notify,
}

/// Switches accounting, which has to wait for a disk that is full or slow.
async fn switch_accounting(shard: Rc<Shard>, switching: Rc<Switching>, outbox: mpsc::Sender<Done>) {
    let mut told = false;
    loop {
        let Some((connection, switch, files)) = switching.wanted.take() else {
            switching.order.notified().await;
            continue;
        };
        let next = RowFiles::new(&files, shard.number);
        match shard.spool.switch_projection(Box::new(next.again())).await {
            Ok(()) => {
                told = false;
                *shard.accounting.borrow_mut() = next.shown();
                let what = ToSupervisor::AccountingSwitched { switch };
                if outbox.send(Done { connection, what, switched_to: Some(files) }).await.is_err() {
                    return;
                }
            }
            Err(spool::SpoolError::Closed) => return,
            Err(e) => {
                if !told {
                    tracing::warn!(error = %e, "accounting cannot switch files yet");
                }
                told = true;
                // Another order may have come meanwhile, which is obeyed next.
                switching.wanted.borrow_mut().get_or_insert((connection, switch, files));
                tokio::time::sleep(SWITCH_AGAIN).await;
            }
        }
    }
}

async fn say(control: &FrameStream, message: &ToSupervisor) -> std::io::Result<()> {
    control.send(TO_SUPERVISOR, &archive(message), &[], &[]).await
}

fn hello(start: &Start, generation: u64, serving: bool) -> Hello {
    Hello {
        shard: start.shard,
        pid: std::process::id() as i32,
        version: env!("CARGO_PKG_VERSION").into(),
        generation,
        serving,
        cpu: start.cpu as u32,
    }
}

async fn welcome(control: &mut FrameStream) -> Result<(Welcome, Vec<OwnedFd>), String> {
    match control.next().await {
        Ok(Some((f, fds))) if f.header.kind == TO_WORKER => {
            match unarchive::<ToWorker>(TO_WORKER, &f.archive).map_err(|e| e.to_string())? {
                ToWorker::Welcome(w) => Ok((w, fds)),
                other => Err(format!("expected a welcome from the supervisor, found {other:?}")),
            }
        }
        Ok(_) => Err("the supervisor closed the control channel".into()),
        Err(e) => Err(format!("control channel: {e}")),
    }
}

/// The shard's folder: where it exists already, else in the spool of highest priority that
/// takes new mail and has more than its `min-free-space`.
fn shard_folder(config: &Config, shard: u8) -> Result<PathBuf, String> {
    let name = format!("shard-{shard:02}");
    let spools = &config.global.spools;
    let folder = |path: &str| Path::new(path).join(&name);
    let existing = spools.iter().find(|s| folder(&s.path).join("log").exists());
    let has_room = |path: &str, least: u64| {
        // A spool that does not exist yet lies on its nearest parent's file system.
        let at = Path::new(path).ancestors().find(|p| p.exists());
        let free =
            at.and_then(|p| nix::sys::statvfs::statvfs(p).ok()).map(|v| v.blocks_available() * v.fragment_size());
        free.is_none_or(|free| free > least)
    };
    let roomy = || spools.iter().find(|s| !s.deliver_only && has_room(&s.path, s.min_free_space));
    let chosen = existing.or_else(roomy).or_else(|| spools.iter().find(|s| !s.deliver_only)).or(spools.first());
    chosen.map(|s| folder(&s.path)).ok_or_else(|| "no spool is configured".to_owned())
}

/// One process at a time works in a shard's folder.
fn lock(folder: &Path) -> Result<Flock<File>, String> {
    let failed = |e: std::io::Error| format!("spool {}: {e}", folder.display());
    std::fs::create_dir_all(folder).map_err(failed)?;
    let file = File::options().create(true).truncate(false).write(true).open(folder.join("lock")).map_err(failed)?;
    let mut locked = Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, e)| format!("spool {} is in use by another process ({e})", folder.display()))?;
    // A supervisor that finds the lock held reads here which process to wait for.
    locked.set_len(0).and_then(|()| writeln!(locked, "{}", std::process::id())).map_err(failed)?;
    Ok(locked)
}

/// Opens the shard in its folder; the supervisor hears how much it has found.
async fn open_shard(
    start: &Start,
    config: Config,
    ledger: Ledger,
    map: ShardMap,
    accounting: &[AccountingFile],
    folder: &Path,
    control: &FrameStream,
) -> Result<Rc<Shard>, String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let of_spool = config.global.spools.iter().find(|s| folder.starts_with(&s.path));
    let (min_free_bytes, delivers_only) = of_spool.map_or((0, false), |s| (s.min_free_space, s.deliver_only));
    let options = spool::Options {
        path: folder.to_owned(),
        shard: start.shard,
        sync: config.global.spool_sync,
        min_free_bytes,
        boot: boot.trim().to_owned(),
    };
    let files = RowFiles::new(accounting, start.shard);
    let shown = files.shown();
    let (tx, messages) = mpsc::channel(1024);
    let each = Box::new(move |r| drop(tx.blocking_send(r)));
    let (spool, values) = spool::Spool::open(options, Box::new(files), each).map_err(|e| format!("spool: {e}"))?;
    let shard = Shard::new(Parts {
        number: start.shard,
        suppression: Some(Path::new(&config.global.data_dir).join(suppression::FOLDER)),
        config,
        spool,
        ledger,
        map,
        ports: Ports::of_the_system(start.shard, start.run_dir.clone()),
        accounting: shown,
        delivers_only,
    })?;
    let mut recovered = std::pin::pin!(Rc::clone(&shard).recover(life::SpoolContents { messages, values }));
    let mut beat = tokio::time::interval(HEARTBEAT_EVERY);
    loop {
        tokio::select! {
            biased;
            _ = beat.tick() => {
                let h = Heartbeat { state: "recovering".into(), ..heartbeat(&shard) };
                say(control, &ToSupervisor::Heartbeat(h)).await.map_err(|e| e.to_string())?;
            }
            done = &mut recovered => {
                done?;
                break;
            }
        }
    }
    Ok(shard)
}

/// What the supervisor is told of a shard now.
pub fn heartbeat(shard: &Shard) -> Heartbeat {
    let s = shard.scheduler();
    let st = shard.spool.statistics();
    let c = &shard.counters;
    let wall = crate::clock::wall_ms(crate::clock::now_ms());
    Heartbeat {
        state: if shard.stopping() { "draining" } else { "serving" }.into(),
        recipients: s.recipients + shard.kept.recipients(),
        messages: s.messages.len() as u64,
        queued_bytes: s.queued_bytes,
        domains: s.queues_with_mail,
        connections_out: shard.connections.get(),
        connections_in: shard.sessions.get(),
        handoffs: shard.kept.recipients(),
        shares_open_at: shard.handoffs.open_at(),
        received: c.received.get(),
        delivered: c.delivered.get(),
        bounced: c.bounced.get(),
        deferred: c.deferred.get(),
        out_of_step: c.out_of_step.get(),
        syncs: st.syncs.load(Relaxed),
        log_bytes: st.log_bytes.load(Relaxed),
        busy_permille: 0,
        hottest: None,
        refusal: shard.spool.refusal().map(|r| (r.since_ms(wall), r.why)),
        held: shard.spool.holds_deliveries(),
        accounting_behind: shard.spool.accounting_behind().map(|r| (r.since_ms(wall), r.why)),
        settled_epoch: if shard.engine().is_settled() { shard.map.borrow().epoch } else { 0 },
        holds: {
            let h = holds::so_far();
            let by = if h.count == 0 { String::new() } else { h.by.name().to_owned() };
            Holds { count: h.count, cpu_ms: h.cpu_ms, ms: h.ms, by }
        },
        panics: tasks::panics(),
    }
}

struct Worker {
    start: Start,
    shard: Rc<Shard>,
    held: HandBack,
    /// What the sandbox lets it touch; `None` without one.
    may: Option<Grants>,
    accepting: HashMap<String, AbortHandle>,
    leaving: bool,
    /// Supervisors that it has spoken with before this one.
    connection: u64,
    outbox: mpsc::Sender<Done>,
    switching: Rc<Switching>,
}

impl Worker {
    /// Starts everything that serves.
    fn begin(&mut self) -> Result<(), String> {
        self.shard.start()?;
        let (shard, switching) = (Rc::clone(&self.shard), Rc::clone(&self.switching));
        let outbox = self.outbox.clone();
        tasks::keep(&shard, "accounting files", move |shard| {
            switch_accounting(shard, Rc::clone(&switching), outbox.clone())
        });
        self.listen()
    }

    /// Accepts on every listener held and not yet served.
    fn listen(&mut self) -> Result<(), String> {
        for (address, fd) in &self.held.listeners {
            if self.accepting.contains_key(address) {
                continue;
            }
            let failed = |e: std::io::Error| format!("listener {address}: {e}");
            let socket = std::net::TcpListener::from(fd.try_clone().map_err(failed)?);
            socket.set_nonblocking(true).map_err(failed)?;
            let listener = Rc::new(TcpListener::from_std(socket).map_err(failed)?);
            let (shard, name) = (Rc::clone(&self.shard), address.clone());
            let task = match shard.config().global.dummy_smtp.address == name {
                true => tasks::keep(&shard, "listener", move |shard| {
                    crate::accept::blackhole::accept(shard, name.clone(), Rc::clone(&listener))
                }),
                false => tasks::keep(&shard, "listener", move |shard| {
                    crate::accept::listener::accept(shard, name.clone(), Rc::clone(&listener))
                }),
            };
            self.accepting.insert(address.clone(), task);
        }
        Ok(())
    }

    /// Speaks with the supervisor, and with its successor if it dies, until told to stop. Nothing
    /// here waits for a disk: a shard that does not say that it lives is killed.
    async fn run(&mut self, mut control: FrameStream, mut outcomes: mpsc::Receiver<Done>) -> FrameStream {
        let mut beat = tokio::time::interval(HEARTBEAT_EVERY);
        let mut heat = Heat::default();
        beat.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let Ok(mut term) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) else {
            return control;
        };
        loop {
            // Orders are looked at last. The supervisor waits for answers, so the other branches never have much to do before them.
            let alive = tokio::select! {
                biased;
                _ = term.recv() => {
                    // Without a supervisor this is how a worker is stopped in order.
                    let grace = Duration::from_millis(self.shard.config().global.stop_grace_ms);
                    self.stop(grace, &mut control).await;
                    true
                }
                _ = beat.tick() => {
                    self.shard.publish_recipients();
                    let (busy_permille, hottest) = heat.measure(&self.shard);
                    let h = Heartbeat { busy_permille, hottest, ..heartbeat(&self.shard) };
                    say(&control, &ToSupervisor::Heartbeat(h)).await.is_ok()
                }
                Some(o) = outcomes.recv() => {
                    let is_asked = o.connection == self.connection;
                    if let Some(files) = o.switched_to {
                        self.held.accounting = files;
                    }
                    !is_asked || answer(&control, &o.what).await
                }
                (order, content) = self.shard.programs.next() => {
                    control.send(TO_SUPERVISOR, &archive(&order), &[], &[content]).await.is_ok()
                }
                frame = control.next() => match frame {
                    Ok(Some((f, fds))) => match unarchive::<ToWorker>(TO_WORKER, &f.archive) {
                        Ok(m) => self.obey(m, fds, &mut control).await,
                        Err(e) => {
                            tracing::error!(error = %e, "bad frame from the supervisor");
                            false
                        }
                    },
                    Ok(None) => false,
                    Err(e) => {
                        tracing::warn!(error = %e, "control channel failed");
                        false
                    }
                },
            };
            if self.leaving {
                // The supervisor adds these last counts to its totals.
                let last = ToSupervisor::Heartbeat(heartbeat(&self.shard));
                let _ = tokio::time::timeout(Duration::from_secs(1), say(&control, &last)).await;
                let _ = tokio::time::timeout(Duration::from_secs(1), say(&control, &ToSupervisor::Leaving)).await;
                return control;
            }
            if !alive {
                tracing::warn!("the supervisor is gone; deliveries go on, waiting for its successor");
                self.shard.programs.supervisor_gone();
                control = tokio::select! {
                    biased;
                    _ = term.recv() => {
                        let grace = Duration::from_millis(self.shard.config().global.stop_grace_ms);
                        self.stop(grace, &mut control).await;
                        return control;
                    }
                    c = self.reconnect() => c,
                };
                self.connection += 1;
            }
        }
    }

    async fn reconnect(&self) -> FrameStream {
        let socket = self.start.run_dir.join("supervisor.sock");
        loop {
            tokio::time::sleep(RECONNECT_EVERY).await;
            let Ok(stream) = UnixStream::connect(&socket).await else { continue };
            let control = FrameStream::new(stream);
            let fds = [&self.held.snapshot, &self.held.ledger]
                .into_iter()
                .chain(self.held.listeners.iter().map(|(_, fd)| fd))
                .map(OwnedFd::try_clone)
                .collect::<Result<Vec<_>, _>>();
            let Ok(fds) = fds else { continue };
            let back = ToSupervisor::Return {
                listeners: self.held.listeners.iter().map(|(a, _)| a.clone()).collect(),
                accounting: self.held.accounting.clone(),
                map: ShardMap::clone(&self.shard.map.borrow()),
            };
            let said = say(&control, &ToSupervisor::Hello(hello(&self.start, self.held.generation, true))).await;
            if said.is_ok() && control.send(TO_SUPERVISOR, &archive(&back), &[], &fds).await.is_ok() {
                return control;
            }
        }
    }

    /// Does what the supervisor says; false when the channel is out of step.
    async fn obey(&mut self, message: ToWorker, fds: Vec<OwnedFd>, control: &mut FrameStream) -> bool {
        match message {
            ToWorker::Welcome(_) => false,
            ToWorker::Adopted => {
                // The supervisor logs it.
                tracing::debug!(shard = self.start.shard, "adopted by a new supervisor");
                true
            }
            ToWorker::Reload { listeners, added } => {
                let alive = answer(control, &self.reload(&listeners, &added, fds)).await;
                self.leave_sandbox(&self.held.accounting.clone(), control).await;
                alive
            }
            ToWorker::Map(map) => {
                holds::doing(Work::Reload, || self.shard.follow_map(map));
                true
            }
            ToWorker::SwitchAccounting { switch, files } => {
                self.leave_sandbox(&files, control).await;
                if self.leaving {
                    // The next process begins with these settings.
                    return true;
                }
                *self.switching.wanted.borrow_mut() = Some((self.connection, switch, files));
                self.switching.order.notify_one();
                true
            }
            ToWorker::Rows { request, what } => match self.rows(request, what) {
                Some(rows) => answer(control, &ToSupervisor::Rows { request, rows }).await,
                None => true,
            },
            ToWorker::ProgramEnded { number, how } => {
                self.shard.programs.ended(number, how);
                true
            }
            ToWorker::Stop { grace_ms } => {
                self.stop(Duration::from_millis(grace_ms), control).await;
                true
            }
        }
    }

    /// Answers what memory holds. Orders are carried out at once, in the order they came in; their
    /// answers, and what is on disk, come when the disk has spoken.
    fn rows(&self, request: u64, what: RowsOf) -> Option<Rows> {
        if let RowsOf::Page { of, from } = &what {
            return Some(answered(|| rows::page(&self.shard, of, *from)).unwrap_or_else(Rows::Refused));
        }
        if what == RowsOf::Switches {
            return Some(Rows::Switches(crate::switches::all(&self.shard)));
        }
        let Ok(permit) = self.outbox.clone().try_reserve_owned() else {
            return Some(Rows::Refused(format!("shard {}: {AT_WORK_MAX} orders wait for its disk", self.start.shard)));
        };
        let shard = Rc::clone(&self.shard);
        let done = answered(|| match &what {
            RowsOf::PauseJob { job, paused, by } => crate::switches::pause_job(&shard, job, *paused, by),
            RowsOf::Ordered { order, by } => crate::switches::obey(&shard, order, by),
            RowsOf::TakeSwitches(all) => {
                crate::switches::take(&shard, all.clone());
                Ok(Obeyed::default())
            }
            _ => Ok(Obeyed::default()),
        });
        let done = done.and_then(|done| done);
        let connection = self.connection;
        tasks::begin("order", move || async move {
            let making = pin!(async {
                match what {
                    RowsOf::WhyMessage(id) => Rows::Why(crate::why::of_message(&shard, MessageId(id)).await),
                    RowsOf::Message(id) => Rows::Message(one_message::rows(&shard, MessageId(id)).await),
                    RowsOf::MessageContent(id) => match one_message::content(&shard, MessageId(id)).await {
                        Ok(content) => Rows::MessageContent(content),
                        Err(e) => Rows::Refused(e),
                    },
                    RowsOf::Delete { what, after } => deleted(&shard, &what, after).await,
                    RowsOf::Reroute { order, after } => match rerouting::reroute(&shard, &order, after).await {
                        Ok(done) => Rows::Rerouted(done),
                        Err(e) => Rows::Refused(e),
                    },
                    _ => obeyed(&shard, done).await,
                }
            });
            let rows = tasks::caught(making).await.unwrap_or_else(|panic| Rows::Refused(error_of_ours(&panic)));
            permit.send(Done { connection, what: ToSupervisor::Rows { request, rows }, switched_to: None });
        });
        None
    }

    fn reload(&mut self, listeners: &[String], added: &[String], fds: Vec<OwnedFd>) -> ToSupervisor {
        let mut fds = fds.into_iter();
        let taken = fds.next().ok_or_else(|| "no snapshot came with the reload".to_owned()).and_then(|fd| {
            let mapped = MappedSnapshot::map(&fd).map_err(|e| e.to_string())?;
            let generation = mapped.get().generation.to_native();
            holds::doing(Work::Reload, || self.shard.reload(Config::of(mapped)?))?;
            self.held.snapshot = fd;
            self.held.generation = generation;
            self.held.listeners.retain(|(a, _)| listeners.contains(a));
            self.held.listeners.extend(added.iter().cloned().zip(fds));
            let gone: Vec<String> = self.accepting.keys().filter(|a| !listeners.contains(a)).cloned().collect();
            for a in gone {
                if let Some(task) = self.accepting.remove(&a) {
                    task.abort();
                }
            }
            self.listen()
        });
        ToSupervisor::Reloaded { generation: self.held.generation, error: taken.err() }
    }

    /// A sandbox cannot be widened: where the configuration or accounting files lie outside of it now, the worker ends in
    /// order, and the next one starts with them.
    async fn leave_sandbox(&mut self, accounting: &[AccountingFile], control: &mut FrameStream) {
        let shard = Rc::clone(&self.shard);
        let config = shard.config();
        let Some(may) = self.may.as_ref().filter(|_| !self.leaving) else { return };
        let wanted = may.next(&config, accounting);
        let Some(folder) = may.missing(&wanted) else { return };
        let folder = folder.display();
        tracing::info!(shard = self.start.shard, %folder, "starting again to write there: the sandbox cannot be widened");
        self.stop(Duration::from_millis(config.global.stop_grace_ms), control).await;
    }

    /// Stops taking work and lets transactions end, for the grace time at most.
    async fn stop(&mut self, grace: Duration, control: &mut FrameStream) {
        tracing::info!(shard = self.start.shard, "stopping");
        for (_, task) in self.accepting.drain() {
            task.abort();
        }
        self.held.listeners.clear();
        self.shard.stop();
        let shard = Rc::clone(&self.shard);
        let mut ended = std::pin::pin!(tokio::time::timeout(grace, shard.has_ended_work()));
        let mut beat = tokio::time::interval(STOPPING_HEARTBEAT_EVERY);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_heard = true;
        loop {
            tokio::select! {
                biased;
                _ = &mut ended => break,
                _ = beat.tick() => {
                    // Without a supervisor nobody hears it.
                    let _ = say(control, &ToSupervisor::Heartbeat(heartbeat(&shard))).await;
                }
                frame = control.next(), if is_heard => match frame {
                    Ok(Some((f, _))) => {
                        // Other orders mean nothing to a worker that stops.
                        if let Ok(ToWorker::ProgramEnded { number, how }) = unarchive(TO_WORKER, &f.archive) {
                            shard.programs.ended(number, how);
                        }
                    }
                    _ => {
                        is_heard = false;
                        shard.programs.supervisor_gone();
                    }
                },
            }
        }
        self.leaving = true;
    }

    /// Makes everything durable. However long the disk takes, the supervisor hears that this goes on.
    async fn leave(self, control: &FrameStream) {
        let durable = self.shard.leave();
        tokio::pin!(durable);
        let mut beat = tokio::time::interval(HEARTBEAT_EVERY);
        let is_complete = loop {
            tokio::select! {
                biased;
                is_complete = &mut durable => break is_complete,
                // Without a supervisor nobody hears it.
                _ = beat.tick() => {
                    let still = ToSupervisor::Heartbeat(heartbeat(&self.shard));
                    let _ = tokio::time::timeout(HEARTBEAT_EVERY, say(control, &still)).await;
                }
            }
        };
        if is_complete {
            // Where the supervisor does not receive this and was retiring the shard, it starts the shard once more.
            let _ = tokio::time::timeout(HEARTBEAT_EVERY, say(control, &ToSupervisor::Complete)).await;
        }
        crate::log_limit::tell_all();
        tracing::info!(shard = self.start.shard, "stopped");
    }
}

/// Answers the supervisor; false when the channel is broken. An answer that is too large for a frame is a fault of this program: it is
/// logged, the supervisor is told that there is none, and the channel goes on.
async fn answer(control: &FrameStream, what: &ToSupervisor) -> bool {
    match (say(control, what).await, what) {
        (Ok(()), _) => true,
        (Err(e), ToSupervisor::Rows { request, .. }) if e.kind() == std::io::ErrorKind::InvalidInput => {
            tracing::error!(error = %e, "an answer to the supervisor is too large");
            let refused = ToSupervisor::Rows { request: *request, rows: Rows::Refused(e.to_string()) };
            say(control, &refused).await.is_ok()
        }
        (Err(_), _) => false,
    }
}

/// Does at once what an operator wants. A panic is an answer, too.
fn answered<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    tasks::contained(|| holds::doing(Work::Order, work)).map_err(|panic| error_of_ours(&panic))
}

fn error_of_ours(panic: &Panicked) -> String {
    panic.tell("order");
    "an error of this server; see its log".to_owned()
}

/// What came of a deletion, once it is on disk.
async fn deleted(shard: &Rc<Shard>, what: &Deletion, after: Option<u64>) -> Rows {
    match crate::deliver::deletion::delete(shard, what, after).await {
        Ok((recipients, after)) => Rows::Deleted { recipients, after },
        Err(e) => Rows::Refused(format!("deleted, but not kept over a restart: {e}")),
    }
}

/// What came of an order, once it is on disk: a kill does not undo what was said to be done.
async fn obeyed(shard: &Rc<Shard>, result: Result<Obeyed, String>) -> Rows {
    match (result, shard.spool.barrier().await) {
        (Ok(Obeyed { matched, changed, names, kept }), Ok(())) => Rows::Done { matched, changed, names, kept },
        (Ok(_), Err(e)) => Rows::Refused(format!("in force, but not kept over a restart: {e}")),
        (Err(e), _) => Rows::Refused(e),
    }
}

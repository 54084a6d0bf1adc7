//! `sluice run`: start order, reload, scaling, stop.

mod certificates;
mod in_force;
mod keys;
mod memory;
mod pem_files;
mod reload;
mod scale;
mod spread;
mod told;

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use ipc::ledger::Ledger;
use ipc::limits::SHARDS_MAX;
use ipc::shard_map::ShardMap;
use ipc::snapshot::SaltKey;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use worker::rights::{cpu_of, cpus_to_pin};

use crate::accounting::{AccountingFiles, FilesInUse};
use crate::config::compile::Overrides;
use crate::config::source::Source;
use crate::config::{self, Compiled};
use crate::configurations::{self, By};
use crate::shards::{Slot, State, control, life};
use crate::state::{ANSWER_WAIT, LET_GO_WAIT, Supervisor};
use crate::suppression::Suppression;
use crate::{Failure, acme, http, listen, operator, rights};

/// How long workers may take to end behind their grace time: what they hold goes to disk.
const STOP_WAIT: Duration = Duration::from_secs(20);
/// How long killed workers may take to end.
const KILLED_WAIT: Duration = Duration::from_secs(5);

/// Warnings of the configuration that the log has at a start: what keeps mail back, and what this machine is not ready for.
const SAID_AT_START: [&str; 4] = ["withheld", "foreign-address", "no-address", "descriptors"];

/// Runs the server until it is stopped.
///
/// # Errors
/// [`Failure`]
pub fn run(file: Option<PathBuf>, overrides: Overrides) -> Result<(), Failure> {
    // Configurations are read beside the loop, and take much memory for a moment.
    ipc::descriptors::share_one_heap();
    let checked = config::compile_from(Source::Server, file.as_deref(), &overrides).map_err(|e| {
        Failure::Wrong(format!("cannot read {}: {e}", file.as_deref().unwrap_or(Path::new("")).display()))
    })?;
    if let Some(errors) = checked.errors() {
        return Err(Failure::Wrong(format!("the configuration has errors\n\n{errors}")));
    }
    let pending = checked.diagnostics.iter().filter(|d| d.code == "pending").count();
    if pending > 0 {
        tracing::warn!(directives = pending, "some directives are not in force yet; `sluice config check` names them");
    }
    rights::raise_descriptor_limit();
    for d in checked.diagnostics.iter().filter(|d| SAID_AT_START.contains(&d.code)) {
        tracing::warn!(file = %checked.files.path(d.at.file).display(), line = d.at.line, "{}", d.message);
    }
    let given = configurations::Text::of(&checked);
    let compiled = checked.compiled;
    // Mail and logs are the service's own business; what others may read is opened explicitly.
    let own = nix::sys::stat::Mode::from_bits_truncate(0o027);
    let stricter = nix::sys::stat::umask(own);
    nix::sys::stat::umask(own | stricter);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::Failed(format!("the runtime cannot be built: {e}")))?;
    let served = tokio::task::LocalSet::new().block_on(&runtime, serve(file, overrides, compiled, given));
    // What still waits for a disk does so without this process.
    runtime.shutdown_timeout(LET_GO_WAIT);
    served.map_err(Failure::Failed)
}

async fn serve(
    file: Option<PathBuf>,
    overrides: Overrides,
    mut compiled: Compiled,
    given: configurations::Text,
) -> Result<(), String> {
    if let Some(e) = listen::nowhere(&compiled) {
        return Err(e);
    }
    let mut listeners = listen::inherited();
    for l in &compiled.snapshot.listeners {
        if listeners.iter().any(|(a, _)| *a == l.address) {
            continue;
        }
        if let Some(fd) = bind_or_leave_to_workers(&compiled, &l.address).await? {
            listeners.push((l.address.clone(), fd));
        }
    }
    let challenges = compiled.acme.as_deref().map(acme::keep::bind);
    let run_dir = PathBuf::from(&compiled.snapshot.global.run_dir);
    let spools: Vec<PathBuf> = compiled.snapshot.global.spools.iter().map(|s| PathBuf::from(&s.path)).collect();
    let accounts: Vec<PathBuf> = compiled
        .snapshot
        .accounting
        .iter()
        .filter_map(|a| Path::new(&a.path).parent().map(Path::to_path_buf))
        .collect();
    let folders: Vec<&Path> =
        [&compiled.data_dir, &run_dir].into_iter().chain(&spools).chain(&accounts).map(PathBuf::as_path).collect();
    if !compiled.run_as_root {
        rights::drop_to(&compiled.run_as_user, &folders)?;
    }
    if compiled.snapshot.global.sandbox
        && let Err(e) = worker::sandbox::enter_supervisor()
    {
        tracing::error!(error = %e, "the supervisor's sandbox is not in force");
    }
    worker::folder::make(&run_dir).map_err(|e| format!("{}: {e}", run_dir.display()))?;
    if let Err(e) = rights::close_to_others(&run_dir) {
        tracing::warn!(path = %run_dir.display(), error = %e, "the folder of the control socket stays open to others");
    }
    compiled.snapshot.generation = 1;
    let data_dir = compiled.data_dir.clone();
    acme::files::load(&mut compiled, &data_dir);
    let users = compiled.snapshot.smtp_users.len();
    compiled.snapshot.salt_key = crate::salt_key::for_users(users, SaltKey::default(), &compiled.data_dir);
    crate::queue_time::restore(&compiled.data_dir);
    let (ledger, ledger_fd) = Ledger::create().map_err(|e| format!("ledger: {e}"))?;
    ledger.set_ahead(worker::clock::ahead_ns());
    crate::rates::restore(&compiled.data_dir, &ledger);
    let snapshot = compiled.snapshot.seal().map_err(|e| format!("snapshot: {e}"))?;
    ipc::descriptors::give_back_heap();
    let accounting = AccountingFiles::begin(&compiled.snapshot.accounting, &compiled.data_dir)
        .map_err(|e| format!("accounting: {e}"))?;
    let suppression = Suppression::open(&compiled.data_dir)?;
    let cpus = cpus_to_pin(&compiled.worker_cpus);
    let workers = workers_for(compiled.workers, cpus.len());
    let http_port = compiled.http_port;
    let spread = compiled.spread.clone();
    let left_over = shards_left_over(&spools, workers);
    let numbers: Vec<u8> = (0..workers).chain(left_over.iter().copied()).collect();
    let sup = Rc::new(Supervisor {
        file,
        overrides,
        configurations: configurations::folder(&compiled.data_dir),
        kept_in_force: Cell::default(),
        compiled: RefCell::new(compiled),
        generation: Cell::new(1),
        snapshot: RefCell::new(snapshot),
        commands: RefCell::default(),
        ledger: RefCell::new(ledger),
        ledger_fd: RefCell::new(ledger_fd),
        listeners: RefCell::new(listeners),
        slots: RefCell::new(numbers.iter().map(|n| Slot::new(*n, cpu_of(*n, &cpus))).collect()),
        map: RefCell::new(ShardMap::first(workers, spread)),
        accounting,
        returning: Cell::new(numbers.len()),
        has_ledger: Cell::new(false),
        suppression,
        dkim_keys: Cell::default(),
        acme: RefCell::default(),
        acme_asked: Cell::default(),
        data_dir,
        changed: Notify::new(),
        stopping: Cell::new(false),
        stop: Notify::new(),
        stopped: RefCell::default(),
        stop_waiters: Cell::default(),
        reloading: tokio::sync::Mutex::default(),
        keeping: tokio::sync::Mutex::default(),
        reading: tokio::sync::Mutex::default(),
        started: SystemTime::now(),
        gone: Cell::default(),
        automatic: RefCell::default(),
        scaling: tokio::sync::Mutex::default(),
        ordering: tokio::sync::RwLock::default(),
        questions: RefCell::default(),
        next_question: Cell::new(0),
    });
    spawn_local(Rc::clone(&sup).keep_configuration(given, By::Start, None));
    spawn_local(Rc::clone(&sup).watch_load());
    spawn_local(Rc::clone(&sup).watch_pem_files());
    spawn_local(Rc::clone(&sup).watch_certificates());
    spawn_local(acme::keep::keep(Rc::clone(&sup), challenges));
    spawn_local(Rc::clone(&sup).watch_memory());
    spawn_local(Rc::clone(&sup).compare_keys());
    // Workers are given the configuration with its keys, so this socket is not for the group, in which there may be other users than the server's.
    spawn_local(control::serve(Rc::clone(&sup), socket(&run_dir, "supervisor.sock", 0o600)?));
    spawn_local(operator::server::serve(Rc::clone(&sup), socket(&run_dir, "control.sock", 0o660)?));
    if http_port != 0 {
        http::serve(Rc::clone(&sup), http_port).await?;
    }
    for n in numbers {
        spawn_local(life::keep(Rc::clone(&sup), n));
    }
    if !left_over.is_empty() {
        tracing::info!(shards = ?left_over, "spools of more shards than there are workers now; their mail is handed over");
        spawn_local(scale::retire_left_over(Rc::clone(&sup), workers));
    }
    spawn_local(life::watch(Rc::clone(&sup)));
    spawn_local(rotate_files(Rc::clone(&sup)));
    spawn_local({
        let sup = Rc::clone(&sup);
        async move { sup.suppression.keep_looked_after().await }
    });
    spawn_local(crate::rates::keep(Rc::clone(&sup)));
    spawn_local(crate::queue_time::keep(Rc::clone(&sup)));
    spawn_local(keep_systemd_informed(Rc::clone(&sup)));
    sup.until_stopped().await;
    Ok(())
}

/// Shards from `workers` up that have a spool: mail of an earlier run with more workers.
fn shards_left_over(spools: &[PathBuf], workers: u8) -> Vec<u8> {
    let has_log = |n: u8| spools.iter().any(|s| s.join(format!("shard-{n:02}/log")).exists());
    (workers..SHARDS_MAX as u8).filter(|n| has_log(*n)).collect()
}

/// Binds a listener; `None` when workers that survived a supervisor hold it and will hand it
/// back. Workers that were killed with their supervisor may take a moment to let go of it.
async fn bind_or_leave_to_workers(c: &Compiled, address: &str) -> Result<Option<OwnedFd>, String> {
    let until = tokio::time::Instant::now() + LET_GO_WAIT;
    loop {
        match listen::bind_to(address) {
            Ok(fd) => return Ok(Some(fd)),
            Err(e) if any_worker_alive(c) => {
                tracing::info!(error = e, "listener is with running workers");
                return Ok(None);
            }
            Err(e) if tokio::time::Instant::now() >= until => return Err(e),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

fn any_worker_alive(c: &Compiled) -> bool {
    let run = Path::new(&c.snapshot.global.run_dir);
    (0..=255u8).any(|n| std::os::unix::net::UnixStream::connect(run.join(format!("shard-{n:02}.sock"))).is_ok())
}

fn socket(run_dir: &Path, name: &str, mode: u32) -> Result<UnixListener, String> {
    let path = run_dir.join(name);
    let failed = |e: std::io::Error| format!("{}: {e}", path.display());
    if std::os::unix::net::UnixStream::connect(&path).is_ok() {
        return Err(format!("another server runs here: it answers at {}", path.display()));
    }
    // Left by a predecessor that was killed; where it cannot be removed, binding says so.
    let _ = std::fs::remove_file(&path);
    let l = UnixListener::bind(&path).map_err(failed)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
    Ok(l)
}

/// Shards to start: as configured, else one for each CPU, as far as there are numbers.
fn workers_for(configured: Option<u32>, cpus: usize) -> u8 {
    let wanted = configured.map_or(cpus, |n| n as usize);
    wanted.clamp(1, SHARDS_MAX) as u8
}

impl Supervisor {
    /// Restarts one shard.
    ///
    /// # Errors
    /// A sentence when there is no such shard or it does not come back.
    pub async fn restart_shard(&self, number: u8, wait: bool) -> Result<String, String> {
        let grace = self.grace();
        let old = self
            .slot_mut(number, |s| {
                s.delay = Duration::ZERO;
                // One that is down is not left waiting for the end of its delay.
                s.start_now.notify_waiters();
                s.pid()
            })
            .ok_or_else(|| format!("there is no shard {number}; `sluice shard list` names them"))?;
        if old != 0 {
            self.tell_to_stop(number);
        }
        if !wait {
            return Ok(format!("shard {number} restarts"));
        }
        let back = self
            .until(grace + Duration::from_secs(30), |s| {
                s.slot(number, |s| s.state == State::Serving && s.pid() != old).unwrap_or(false)
            })
            .await;
        if back {
            Ok(format!("shard {number} restarted"))
        } else {
            Err(format!("shard {number} did not come back in time"))
        }
    }

    /// Begins new accounting files now, after a switch that is under way: that of one `<acct-file>`,
    /// or all with an empty name.
    ///
    /// # Errors
    /// As [`Supervisor::rotate_accounting`].
    pub async fn rotate_now(self: &Rc<Self>, file: String) -> Result<(), String> {
        self.until(ANSWER_WAIT, Self::may_rotate).await;
        // The rotation goes on when the command that asked for it has stopped waiting.
        let sup = Rc::clone(self);
        let rotated = spawn_local(async move { sup.rotate_accounting(Some(file)).await });
        match tokio::time::timeout(ANSWER_WAIT, rotated).await {
            Ok(Ok(r)) => r,
            Ok(Err(e)) => Err(e.to_string()),
            Err(_) => Err("the disk of the accounting files does not answer; they are rotated when it does".into()),
        }
    }

    /// Begins accounting files that are due, those of another configuration above all, and waits until they are in use.
    ///
    /// # Errors
    /// As [`Supervisor::rotate_accounting`].
    pub async fn rotate_now_if_due(self: &Rc<Self>) -> Result<(), String> {
        self.until(ANSWER_WAIT, Self::may_rotate).await;
        let sup = Rc::clone(self);
        let rotated = spawn_local(async move { sup.rotate_accounting(None).await });
        match tokio::time::timeout(ANSWER_WAIT, rotated).await {
            Ok(Ok(r)) => r?,
            Ok(Err(e)) => return Err(e.to_string()),
            Err(_) => return Err("the disk of the accounting files does not answer".into()),
        }
        self.until(ANSWER_WAIT, Self::may_rotate).await;
        Ok(())
    }

    /// All shards serve, and write to the files named last.
    fn may_rotate(&self) -> bool {
        let switch = self.accounting.switch();
        self.all_serve() && self.slots.borrow().iter().all(|s| s.switched >= switch)
    }

    /// Makes the accounting files those of the configuration, and begins new ones where they are
    /// due or an operator asks for it.
    ///
    /// # Errors
    /// A sentence when a file cannot be made, a shard is down, or no file has that name.
    async fn rotate_accounting(&self, force: Option<String>) -> Result<(), String> {
        // A shard that is down has rows to write into the old files first.
        if !self.may_rotate() {
            let refused = || "a shard is starting or switching; try again".to_owned();
            return force.map_or(Ok(()), |_| Err(refused()));
        }
        let all = self.compiled.borrow().snapshot.accounting.clone();
        let switch = self.accounting.switch();
        let work = move |files: &mut FilesInUse| {
            if !files.follow(&all) {
                files.settle();
            }
            files.rotate(force.as_deref())
        };
        let rotated = self.accounting.with(work).await;
        self.accounting.feed_programs(false, &self.cpus_of_workers());
        if self.accounting.switch() != switch {
            self.order_switch();
        }
        rotated.unwrap_or_else(|| Err("accounting files could not be rotated; see the log".into()))
    }

    /// A worker has switched; when all have, finished files are moved.
    pub fn accounting_switched(self: &Rc<Self>) {
        if self.may_rotate() {
            let sup = Rc::clone(self);
            spawn_local(async move {
                sup.accounting
                    .with({
                        let switch = sup.accounting.switch();
                        move |files| {
                            if files.switch == switch {
                                files.settle()
                            }
                        }
                    })
                    .await
            });
        }
    }

    /// A reload that a signal asks for.
    async fn reload_by_signal(self: Rc<Self>) {
        // It is told of in the log, as any other.
        let _ = self.reload(true, false, By::Signal).await;
    }

    async fn until_stopped(self: &Rc<Self>) {
        let (Ok(mut term), Ok(mut int), Ok(mut hup)) =
            (signal(SignalKind::terminate()), signal(SignalKind::interrupt()), signal(SignalKind::hangup()))
        else {
            tracing::error!("signals cannot be handled");
            return;
        };
        loop {
            tokio::select! {
                _ = term.recv() => break,
                _ = int.recv() => break,
                () = self.stop.notified() => break,
                _ = hup.recv() => drop(spawn_local(Rc::clone(self).reload_by_signal())),
            }
        }
        tracing::info!("stopping");
        self.stopping.set(true);
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        // When every process has closed a listening socket, the kernel refuses connections that no worker would greet any more.
        self.listeners.borrow_mut().clear();
        let numbers: Vec<u8> = self.slots.borrow().iter().map(|s| s.number).collect();
        for n in numbers {
            self.slot_mut(n, |s| s.retired = true);
            self.tell_to_stop(n);
        }
        let ended = |s: &Self| s.returning.get() == 0 && s.slots.borrow().iter().all(|s| s.process.is_none());
        let gone = self.until(self.grace() + STOP_WAIT, ended);
        let orderly = tokio::select! {
            done = gone => done,
            _ = term.recv() => false,
            _ = int.recv() => false,
        };
        let mut said = Ok("Stopped.".to_owned());
        if !orderly {
            let left: Vec<String> =
                self.slots.borrow().iter().filter(|s| s.process.is_some()).map(|s| s.number.to_string()).collect();
            let left = left.join(", ");
            tracing::error!(shards = left, "shards did not end in time and are killed; their mail is in their spools");
            said = Err(format!("stopped; shards that did not end in time were killed: {left}"));
            self.slots.borrow().iter().for_each(Slot::kill);
            self.until(KILLED_WAIT, ended).await;
        }
        let survivors = any_worker_alive(&self.compiled.borrow());
        crate::rates::keep_last(self, orderly && !survivors);
        crate::queue_time::keep_last(self);
        for p in self.accounting.take_programs() {
            p.finish().await;
        }
        let run = self.run_dir();
        // The next start removes what stays.
        let _ = std::fs::remove_file(run.join("control.sock"));
        let _ = std::fs::remove_file(run.join("supervisor.sock"));
        *self.stopped.borrow_mut() = Some(said);
        self.changed.notify_waiters();
        self.until(Duration::from_secs(1), |s| s.stop_waiters.get() == 0).await;
        tracing::info!("stopped");
    }

    /// `stop`: asks for an orderly stop, and waits until the server has stopped.
    ///
    /// # Errors
    /// A sentence when some shards had to be killed.
    pub async fn stop_and_wait(&self) -> Result<String, String> {
        self.stop.notify_one();
        while self.stopped.borrow().is_none() {
            self.until(Duration::from_secs(3600), |s| s.stopped.borrow().is_some()).await;
        }
        self.stopped.borrow().clone().unwrap_or_else(|| Ok(String::new()))
    }
}

async fn rotate_files(sup: Rc<Supervisor>) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if let Err(e) = sup.rotate_accounting(None).await {
            tracing::error!(error = e, "accounting files cannot be rotated");
        }
        if sup.may_rotate() {
            sup.accounting.all_switched();
        }
        sup.accounting.with(|files| files.make_room()).await;
    }
}

/// `READY=1` when every worker serves, then the watchdog and a line of status.
async fn keep_systemd_informed(sup: Rc<Supervisor>) {
    sup.until(Duration::from_secs(86_400), Supervisor::all_serve).await;
    announce(&sup);
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    loop {
        let text = {
            let slots = sup.slots.borrow();
            let serving = slots.iter().filter(|s| s.state == State::Serving).count();
            let recipients: u64 = slots.iter().map(|s| s.heartbeat.recipients).sum();
            format!("{serving} of {} shards serve, {recipients} recipients queued", slots.len())
        };
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog, sd_notify::NotifyState::Status(&text)]);
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

fn announce(sup: &Supervisor) {
    let c = sup.compiled.borrow();
    let listeners: Vec<&str> = c.snapshot.listeners.iter().map(|l| l.address.as_str()).collect();
    let config = sup.file.as_ref().map_or_else(|| "(built-in)".to_owned(), |f| f.display().to_string());
    let shards = sup.slots.borrow().len();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), config, listeners = listeners.join(" "), shards, data = %c.data_dir.display(), "ready");
    let waiting: u64 = sup.slots.borrow().iter().map(|s| s.heartbeat.recipients).sum();
    if waiting > 0 {
        tracing::info!(
            recipients = waiting,
            "mail waits from before: retries are due when they were; `sluice show queues` says when, `sluice schedule '*/*'` lets all go now"
        );
    }
    if sup.file.is_none() {
        use std::io::Write;
        let _ = writeln!(
            std::io::stderr(),
            "\nSluice runs with its built-in configuration.\n  SMTP       {}  (open to 127.0.0.1)\n  status     http://127.0.0.1:{}/\n  data       {}\n  delivery   by MX on port 25; for tries: sluice run --config etc/try.conf, and sluice sink\n\nA first message:\n  printf 'Subject: hello\\r\\n\\r\\nIt works.\\r\\n' | sluice inject --from you@example.com --to someone@example.net -\n",
            listeners.join(" "),
            c.http_port,
            c.data_dir.display(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_shards_as_cpus_up_to_the_last_number() {
        let auto = |cpus| workers_for(None, cpus);
        assert_eq!([0, 1, 2, 254, 255, 256, 257, 512, 1024].map(auto), [1, 1, 2, 254, 255, 255, 255, 255, 255]);
        assert_eq!([0, 1, 255, 256, u32::MAX].map(|n| workers_for(Some(n), 4)), [1, 1, 255, 255, 255]);
    }
}

//! The life of a worker's process: re-executes this program, waits for its end, starts it again.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use rustix::process::Signal;

use super::State;
use super::process::Process;
use crate::state::Supervisor;

/// How long a worker that holds its shard's lock may take to come back to a new supervisor.
const ADOPTION_WAIT: Duration = Duration::from_secs(10);
/// Time between two looks for workers that have sent nothing.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A worker that has sent nothing between so many looks counts as hung.
const HUNG_AFTER_LOOKS: u32 = 10;

/// Keeps one shard running until it is retired or the server stops.
pub async fn keep(sup: Rc<Supervisor>, number: u8) {
    wait_for_adoption(&sup, number).await;
    loop {
        match sup.slot(number, |s| s.process.clone()).flatten() {
            Some(adopted) => {
                adopted.ended().await;
                tracing::info!(shard = number, pid = adopted.pid, "adopted worker ended");
            }
            None if sup.slot(number, |s| s.retired).unwrap_or(true) || sup.stopping.get() => break,
            None => run_once(&sup, number).await,
        }
        sup.ledger.borrow().free_all_of(number);
        let Some(wait) = sup.slot_mut(number, super::Slot::ended) else { break };
        sup.changed.notify_waiters();
        if sup.slot(number, |s| s.retired).unwrap_or(true) || sup.stopping.get() {
            break;
        }
        sup.slot_mut(number, |s| s.restarts += 1);
        if !wait.is_zero() {
            tracing::warn!(shard = number, seconds = wait.as_secs(), "worker ended; starting it again after a delay");
            let Some(start_now) = sup.slot(number, |s| Rc::clone(&s.start_now)) else { break };
            // Whether the delay is over or an operator has ended it, the next process is started.
            let _ = tokio::time::timeout(wait, start_now.notified()).await;
        }
    }
    sup.slot_mut(number, |s| s.state = State::Waiting);
    sup.changed.notify_waiters();
}

async fn run_once(sup: &Rc<Supervisor>, number: u8) {
    // Also what a worker held that ended while no supervisor was there.
    sup.ledger.borrow().free_all_of(number);
    sup.bind_missing().await;
    let cpu = sup.slot(number, |s| s.cpu).unwrap_or(0);
    let mut command = tokio::process::Command::new("/proc/self/exe");
    command
        .arg0(crate::title::of_worker(number))
        .arg("worker")
        .args(["--shard", &number.to_string(), "--cpu", &cpu.to_string(), "--run-dir"])
        .arg(sup.run_dir())
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .env_remove("NOTIFY_SOCKET")
        .env_remove("LISTEN_FDS")
        .env_remove("LISTEN_PID")
        .process_group(0);
    match command.spawn() {
        Ok(mut child) => {
            let pid = child.id().unwrap_or(0) as i32;
            let process = match Process::open(pid) {
                Ok(p) => Rc::new(p),
                Err(e) => {
                    tracing::error!(shard = number, error = %e, "a worker that could not be watched is not started");
                    if let Err(e) = child.kill().await {
                        tracing::error!(shard = number, pid, error = %e, "it cannot be killed");
                    }
                    return;
                }
            };
            sup.slot_mut(number, |s| {
                s.process = Some(process);
                s.state = State::Starting;
                s.started = std::time::Instant::now();
                s.is_alive();
            });
            match child.wait().await {
                Ok(status) if status.success() => tracing::info!(shard = number, pid, "worker ended"),
                Ok(status) if status.signal() == Some(Signal::SYS.as_raw()) => tracing::error!(
                    shard = number,
                    pid,
                    "worker died: a filter of system calls does not allow what it needs; the unit must allow what that of this \
                     release does (SystemCallFilter), or set `sandbox no`"
                ),
                Ok(status) => tracing::error!(shard = number, pid, %status, "worker died"),
                Err(e) => tracing::error!(shard = number, pid, error = %e, "worker cannot be waited for"),
            }
        }
        Err(e) => tracing::error!(shard = number, error = %e, "worker cannot be started"),
    }
}

/// The number of the process that holds a shard's lock, as it wrote it down, if one does.
fn holder(sup: &Supervisor, number: u8) -> Option<i32> {
    let name = format!("shard-{number:02}/lock");
    let spools = sup.compiled.borrow().snapshot.global.spools.clone();
    spools.iter().find_map(|s| {
        let path = Path::new(&s.path).join(&name);
        let file = std::fs::File::options().read(true).write(true).open(&path).ok()?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(_) => None,
            // It writes its number after it has the lock.
            Err(_) => Some(std::fs::read_to_string(&path).ok()?.trim().parse().unwrap_or(0)),
        }
    })
}

/// Waits for a worker that is alive, and for what it brings with it: shards of one node share one
/// ledger, so none is started before it is known whether there is one.
async fn wait_for_adoption(sup: &Rc<Supervisor>, number: u8) {
    wait_for_holder(sup, number).await;
    sup.returning.set(sup.returning.get().saturating_sub(1));
    sup.changed.notify_waiters();
    while sup.returning.get() > 0 && !sup.has_ledger.get() && !sup.stopping.get() {
        let _ = tokio::time::timeout(Duration::from_millis(50), sup.changed.notified()).await;
    }
    // A worker that comes back later is given the ledger that is in use by then.
    sup.has_ledger.set(true);
}

async fn wait_for_holder(sup: &Rc<Supervisor>, number: u8) {
    let Some(pid) = holder(sup, number) else { return };
    // That it is adopted, or replaced, is told when it is.
    tracing::debug!(shard = number, pid, "a worker is alive; waiting for it to come back");
    let is_back = || sup.slot(number, |s| s.process.is_some()).unwrap_or(true);
    let until = tokio::time::Instant::now() + ADOPTION_WAIT;
    while tokio::time::Instant::now() < until {
        if is_back() || holder(sup, number).is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut told = false;
    while !is_back() {
        let Some(pid) = holder(sup, number) else { return };
        match (Process::of_worker(pid, number, &sup.run_dir()), told) {
            (Ok(p), told) => {
                if !told {
                    tracing::warn!(shard = number, pid, "the worker did not come back; it is replaced");
                }
                p.kill();
            }
            (Err(_), false) => {
                tracing::error!(
                    shard = number,
                    pid,
                    "a process that is no worker of this server holds the shard's lock; the shard waits for it"
                );
            }
            (Err(_), true) => {}
        }
        told = true;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Kills workers that are not heard of. It counts its own looks, not the time: a supervisor that
/// stood still, stopped or swapped out, has not listened, and what they said waits in its sockets.
pub async fn watch(sup: Rc<Supervisor>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        for s in sup.slots.borrow_mut().iter_mut().filter(|s| s.process.is_some()) {
            s.silent_looks += 1;
            if s.silent_looks > HUNG_AFTER_LOOKS {
                let (shard, pid, seconds) = (s.number, s.pid(), HUNG_AFTER_LOOKS);
                tracing::error!(shard, pid, seconds, "worker is hung; it is killed and started again");
                s.kill();
                // One that the kernel does not let go yet, as it waits for a disk.
                s.silent_looks = 0;
            }
        }
    }
}

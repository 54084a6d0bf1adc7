//! Worker processes: re-executes this program, waits for its end, starts it again.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use super::State;
use crate::run::Supervisor;

/// How long a worker that holds its shard's lock may take to come back to a new supervisor.
const ADOPTION_WAIT: Duration = Duration::from_secs(10);
/// A worker that has not been heard of for this long is hung.
const HUNG_AFTER: Duration = Duration::from_secs(10);

/// Keeps one shard running until it is retired or the server stops.
pub async fn keep(sup: Rc<Supervisor>, number: u8) {
    wait_for_adoption(&sup, number).await;
    loop {
        while sup.slot(number, |s| s.orders.is_some()).unwrap_or(false) {
            // Adopted: its end shows as the end of its control connection.
            sup.changed.notified().await;
        }
        if sup.slot(number, |s| s.retired).unwrap_or(true) || sup.stopping.get() {
            break;
        }
        run_once(&sup, number).await;
        sup.ledger.borrow().free_all_of(number);
        let Some(wait) = sup.slot_mut(number, super::Slot::ended) else { break };
        sup.changed.notify_waiters();
        if sup.slot(number, |s| s.retired).unwrap_or(true) || sup.stopping.get() {
            break;
        }
        sup.slot_mut(number, |s| s.restarts += 1);
        if !wait.is_zero() {
            tracing::warn!(shard = number, seconds = wait.as_secs(), "worker ended; starting it again after a delay");
            tokio::time::sleep(wait).await;
        }
    }
    sup.slot_mut(number, |s| s.state = State::Waiting);
    sup.changed.notify_waiters();
}

async fn run_once(sup: &Rc<Supervisor>, number: u8) {
    // Also what an adopted worker held, whose end is not seen as a child's.
    sup.ledger.borrow().free_all_of(number);
    sup.bind_missing().await;
    let cpu = sup.slot(number, |s| s.cpu).unwrap_or(0);
    let mut command = tokio::process::Command::new("/proc/self/exe");
    command
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
            sup.slot_mut(number, |s| {
                s.pid = pid;
                s.state = State::Starting;
                s.started = std::time::Instant::now();
                s.beat_at = s.started;
            });
            match child.wait().await {
                Ok(status) if status.success() => tracing::info!(shard = number, pid, "worker ended"),
                Ok(status) => tracing::error!(shard = number, pid, %status, "worker died"),
                Err(e) => tracing::error!(shard = number, pid, error = %e, "worker cannot be waited for"),
            }
        }
        Err(e) => tracing::error!(shard = number, error = %e, "worker cannot be started"),
    }
}

/// The process that holds a shard's lock, if one does.
fn holder(sup: &Supervisor, number: u8) -> Option<i32> {
    let name = format!("shard-{number:02}/lock");
    let spools = sup.compiled.borrow().snapshot.global.spools.clone();
    spools.iter().find_map(|s| {
        let path = Path::new(&s.path).join(&name);
        let file = std::fs::File::options().read(true).write(true).open(&path).ok()?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(_) => None,
            Err(_) => std::fs::read_to_string(&path).ok()?.trim().parse().ok(),
        }
    })
}

async fn wait_for_adoption(sup: &Rc<Supervisor>, number: u8) {
    let Some(pid) = holder(sup, number) else { return };
    tracing::info!(shard = number, pid, "a worker is alive; waiting for it to come back");
    let until = tokio::time::Instant::now() + ADOPTION_WAIT;
    while tokio::time::Instant::now() < until {
        if sup.slot(number, |s| s.orders.is_some()).unwrap_or(true) {
            return;
        }
        if holder(sup, number).is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tracing::warn!(shard = number, pid, "the worker did not come back; it is replaced");
    super::kill_now(pid);
    while holder(sup, number).is_some() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Kills workers that are not heard of.
pub async fn watch(sup: Rc<Supervisor>) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let hung: Vec<(u8, i32)> = sup
            .slots
            .borrow()
            .iter()
            .filter(|s| s.pid != 0 && s.beat_at.elapsed() > HUNG_AFTER)
            .map(|s| (s.number, s.pid))
            .collect();
        for (shard, pid) in hung {
            tracing::error!(
                shard,
                pid,
                seconds = HUNG_AFTER.as_secs(),
                "worker is hung; it is killed and started again"
            );
            super::kill_now(pid);
        }
    }
}

//! Worker processes: re-executes this program, waits for its end, starts it again.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use ipc::stream::FrameStream;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::State;
use crate::run::Supervisor;

/// How long a worker that holds its shard's lock may take to come back to a new supervisor.
const ADOPTION_WAIT: Duration = Duration::from_secs(10);
/// Time between two looks whether an adopted worker has ended.
const ENDED_EVERY: Duration = Duration::from_millis(50);
/// Time between two looks whether workers were heard of.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A worker that was not heard of for so many looks is hung.
const HUNG_AFTER_LOOKS: u32 = 10;

/// A process by a descriptor that never means another one, whatever becomes of its number.
#[derive(Debug)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    fd: OwnedFd,
}

impl Process {
    /// A process whose number cannot become another's meanwhile: a child of ours that nobody has waited for.
    ///
    /// # Errors
    /// As `pidfd_open(2)`.
    pub fn open(pid: i32) -> io::Result<Process> {
        let number = Pid::from_raw(pid).ok_or(io::ErrorKind::NotFound)?;
        Ok(Process { pid, fd: pidfd_open(number, PidfdFlags::empty())? })
    }

    /// The process at the other end of a socket.
    ///
    /// # Errors
    /// As `pidfd_open(2)`; when it has closed the socket, and its number may be another's.
    pub fn of_peer(stream: &FrameStream) -> io::Result<Process> {
        let pid = stream.peer()?.pid().ok_or(io::ErrorKind::NotFound)?;
        let process = Self::open(pid)?;
        // A hang-up is always reported.
        let mut socket = [PollFd::new(stream.as_fd(), PollFlags::empty())];
        poll(&mut socket, PollTimeout::ZERO)?;
        match socket[0].revents() {
            Some(e) if e.is_empty() => Ok(process),
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// The worker of a shard by a number that it once wrote down.
    fn of_worker(pid: i32, number: u8, run_dir: &Path) -> io::Result<Process> {
        let process = Self::open(pid)?;
        let line = std::fs::read(format!("/proc/{pid}/cmdline"))?;
        if is_worker(&line, number, run_dir) && !process.has_ended() {
            Ok(process)
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }

    fn has_ended(&self) -> bool {
        let mut fd = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fd, PollTimeout::ZERO).is_ok_and(|n| n > 0)
    }

    /// Waits for the end of a process that is no child of ours.
    async fn ended(&self) {
        while !self.has_ended() {
            tokio::time::sleep(ENDED_EVERY).await;
        }
    }

    /// Kills it at once.
    pub fn kill(&self) {
        match pidfd_send_signal(&self.fd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(e) => tracing::error!(pid = self.pid, error = %e, "a worker cannot be killed"),
        }
    }
}

/// Whether a command line is that of the worker of a shard.
fn is_worker(command_line: &[u8], number: u8, run_dir: &Path) -> bool {
    let words: Vec<&[u8]> = command_line.split(|b| *b == 0).collect();
    let has = |name: &str, value: &[u8]| words.windows(2).any(|w| w[0] == name.as_bytes() && w[1] == value);
    words.get(1).is_some_and(|w| *w == b"worker")
        && has("--shard", number.to_string().as_bytes())
        && has("--run-dir", run_dir.as_os_str().as_encoded_bytes())
}

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
            tokio::time::sleep(wait).await;
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
    // Whoever comes back later does so to the one that is in use by then.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_written_down_is_believed_of_this_servers_workers_alone() {
        let words = ["/proc/self/exe", "worker", "--shard", "7", "--cpu", "0", "--run-dir", "/var/lib/sluice/run", ""];
        let line = &words.join("\0").into_bytes();
        let run = Path::new("/var/lib/sluice/run");
        assert!(is_worker(line, 7, run));
        assert!(!is_worker(line, 0, run), "another shard's");
        assert!(!is_worker(line, 7, Path::new("/var/lib/other/run")), "another server's");
        assert!(!is_worker(b"sleep\x0060\x00", 7, run));
        assert!(!is_worker(b"", 7, run));
    }
}

//! A process by a descriptor, and whether it is a worker of this server.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use ipc::stream::FrameStream;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Time between two looks whether an adopted worker has ended.
const ENDED_EVERY: Duration = Duration::from_millis(50);

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
    ///
    /// # Errors
    /// As `pidfd_open(2)`; when the number is not, or no longer, that of such a worker.
    pub fn of_worker(pid: i32, number: u8, run_dir: &Path) -> io::Result<Process> {
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
    pub async fn ended(&self) {
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

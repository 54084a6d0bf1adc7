//! Programs that a configuration names: mail and accounting rows are given to them.

use std::ffi::OsString;
use std::io;

use tokio::process::{Child, Command};

use crate::rights;

/// Where programs are found, and their other programs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a program finds in its environment: nothing of what the server was started with, such as the socket by which
/// it speaks to systemd, but the time zone.
pub fn environment() -> impl Iterator<Item = (&'static str, OsString)> {
    let zone = std::env::var_os("TZ").map(|zone| ("TZ", zone));
    [("PATH", PATH.into()), ("LANG", "C.UTF-8".into())].into_iter().chain(zone)
}

/// Starts a program on other CPUs than those that workers are pinned to, as far as there are others.
///
/// # Errors
/// As `fork(2)` and `execve(2)`.
pub async fn start(mut command: Command, cpus_of_workers: Vec<usize>) -> io::Result<Child> {
    command.env_clear().envs(environment());
    // It has the CPUs of the thread that starts it.
    let started = tokio::task::spawn_blocking(move || {
        rights::leave_cpus_of_workers(&cpus_of_workers);
        command.spawn()
    });
    started.await.map_err(io::Error::other)?
}

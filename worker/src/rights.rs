//! Where the process runs and what it may hold.

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Pins this process to a CPU; a machine that does not allow it gets a warning, for a worker
/// runs as well unpinned.
pub fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    let pinned = set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    if let Err(e) = pinned {
        tracing::warn!(cpu, error = %e, "the worker could not be pinned to its CPU");
    }
}

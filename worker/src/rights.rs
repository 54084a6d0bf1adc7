//! Where the process runs and what it may hold.

use std::sync::OnceLock;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The CPUs that the process was given, before it was pinned.
static GIVEN: OnceLock<CpuSet> = OnceLock::new();

/// Pins this process to a CPU; a machine that does not allow it gets a warning, for a worker
/// runs as well unpinned.
pub fn pin(cpu: usize) {
    let this = Pid::from_raw(0);
    if let Ok(given) = sched_getaffinity(this) {
        // Pinned again it has fewer: what it was given first counts.
        let _ = GIVEN.set(given);
    }
    let mut set = CpuSet::new();
    let pinned = set.set(cpu).and_then(|()| sched_setaffinity(this, &set));
    if let Err(e) = pinned {
        tracing::warn!(cpu, error = %e, "the worker could not be pinned to its CPU");
    }
}

/// How many CPUs the process was given.
pub fn cpus() -> usize {
    let is_in = |set: &CpuSet| (0..CpuSet::count()).filter(|c| set.is_set(*c).unwrap_or(false)).count();
    GIVEN.get().map_or(1, is_in)
}

/// Lets this thread run on all CPUs that the process was given; it stays pinned where the system refuses.
pub fn unpin_thread() {
    if let Some(given) = GIVEN.get() {
        let _ = sched_setaffinity(Pid::from_raw(0), given);
    }
}

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

fn members(set: &CpuSet) -> impl Iterator<Item = usize> {
    (0..CpuSet::count()).filter(|c| set.is_set(*c).unwrap_or(false))
}

fn given() -> Option<CpuSet> {
    GIVEN.get().copied().or_else(|| sched_getaffinity(Pid::from_raw(0)).ok())
}

/// How many CPUs the process was given before it was pinned; 1 if it was not.
pub fn cpus() -> usize {
    GIVEN.get().map_or(1, |set| members(set).count())
}

/// CPUs that workers are pinned to in turn: those that `worker-cpus` names, else those that the process was given; never
/// none.
pub fn cpus_to_pin(named: &[usize]) -> Vec<usize> {
    let mut all = named.to_vec();
    if all.is_empty() {
        all.extend(given().iter().flat_map(members));
    }
    if all.is_empty() { vec![0] } else { all }
}

/// Which of them a shard's worker is pinned to.
pub fn cpu_of(shard: u8, cpus: &[usize]) -> usize {
    cpus.get(usize::from(shard) % cpus.len().max(1)).copied().unwrap_or_default()
}

/// Lets this thread run on all CPUs that the process was given; it stays pinned where the system refuses.
pub fn unpin_thread() {
    if let Some(given) = GIVEN.get() {
        let _ = sched_setaffinity(Pid::from_raw(0), given);
    }
}

/// Lets this thread, and the programs that it starts, run on those of the CPUs that the process was given that no worker
/// is pinned to; where every one has a worker, on all of them. It stays where it is where the system refuses.
pub fn leave_cpus_of_workers(pinned: &[usize]) {
    let Some(given) = given() else { return };
    let mut free = given;
    for cpu in pinned {
        // A CPU that no set can hold is nobody's.
        let _ = free.unset(*cpu);
    }
    let any = members(&free).next().is_some();
    let _ = sched_setaffinity(Pid::from_raw(0), if any { &free } else { &given });
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn programs_run_beside_the_workers_or_everywhere() {
        let here = || -> Vec<usize> { members(&sched_getaffinity(Pid::from_raw(0)).unwrap()).collect() };
        // A thread of its own, for its CPUs change.
        std::thread::spawn(move || {
            let all = here();
            let cpus_of_workers = |shards: &[u8], named: &[usize]| -> Vec<usize> {
                let cpus = cpus_to_pin(named);
                shards.iter().map(|n| cpu_of(*n, &cpus)).collect()
            };
            assert_eq!(cpus_of_workers(&[0, 1, 2], &[]), [0, 1, 2].map(|n| all[n % all.len()]));
            assert_eq!(cpus_of_workers(&[1, 2, 3], &[4, 6]), [6, 4, 6]);
            leave_cpus_of_workers(&all);
            assert_eq!(here(), all, "there is no other");
            leave_cpus_of_workers(&all[..all.len() - 1]);
            assert_eq!(here(), all[all.len() - 1..]);
        })
        .join()
        .unwrap();
    }
}

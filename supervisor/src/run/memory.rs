//! What the server's processes have of the machine's memory, for `max-memory-usage-percent`.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

use worker::clock;

use crate::state::Supervisor;

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Supervisor {
    /// Publishes the share of all processes together, and tells when clients begin and cease to be sent away.
    pub(super) async fn watch_memory(self: Rc<Self>) {
        let page = sysconf_u64(SysconfVar::PAGE_SIZE).unwrap_or(4096);
        let Some(machine) = machine_bytes(page) else {
            return tracing::warn!("the machine's memory is not known: max-memory-usage-percent has no effect");
        };
        let mut is_over = false;
        loop {
            let workers: Vec<i32> = self.slots.borrow().iter().map(|s| s.pid()).filter(|p| *p > 0).collect();
            let own = std::process::id();
            let processes = workers.iter().map(i32::to_string).chain([own.to_string()]);
            let pages: u64 =
                processes.filter_map(|p| own_pages(Path::new("/proc").join(p).join("statm").as_path())).sum();
            let permille = u128::from(pages) * u128::from(page) * 1000 / u128::from(machine.max(1));
            let permille = u32::try_from(permille).unwrap_or(u32::MAX);
            self.ledger.borrow().set_memory(permille, clock::wall_ms(clock::now_ms()) / 1000);
            let most = self.compiled.borrow().snapshot.global.max_memory_usage_percent;
            let was_over = std::mem::replace(&mut is_over, most < 100 && permille > most * 10);
            let (used_mb, machine_mb) = (pages.saturating_mul(page) >> 20, machine >> 20);
            match (was_over, is_over) {
                (false, true) => tracing::warn!(
                    used_mb,
                    machine_mb,
                    "the server's processes have more than max-memory-usage-percent {most} of the memory: MAIL gets 452 until they have less"
                ),
                (true, false) => tracing::info!(used_mb, machine_mb, "memory is free again: mail is accepted"),
                _ => {}
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Physical memory, or what the service's control group may have of it where that is less, bytes.
fn machine_bytes(page: u64) -> Option<u64> {
    let physical = sysconf_u64(SysconfVar::_PHYS_PAGES)?.saturating_mul(page);
    Some(group_limit().map_or(physical, |l| l.min(physical)))
}

/// `memory.max` of the process's control group (cgroup v2), bytes; `None` where there is no limit.
fn group_limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|l| l.strip_prefix("0::/"))?;
    std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(group).join("memory.max")).ok()?.trim().parse().ok()
}

fn sysconf_u64(name: SysconfVar) -> Option<u64> {
    sysconf(name).ok().flatten().and_then(|n| u64::try_from(n).ok())
}

/// Pages of a process that are its own: those in memory without the shared ones (`proc_pid_statm(5)`).
fn own_pages(statm: &Path) -> Option<u64> {
    of_statm(&std::fs::read_to_string(statm).ok()?)
}

fn of_statm(text: &str) -> Option<u64> {
    let mut numbers = text.split_whitespace().skip(1).map(|n| n.parse::<u64>().ok());
    let (resident, shared) = (numbers.next()??, numbers.next()??);
    Some(resident.saturating_sub(shared))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn shared_pages_are_nobodys_own() {
        assert_eq!(of_statm("52310 4711 711 9000 0 20000 0\n"), Some(4000));
        assert_eq!(of_statm("1 2 3 4"), Some(0));
        assert_eq!(of_statm("1 2"), None);
        assert_eq!(of_statm("a b c"), None);
        // This process has some megabytes, and less than the machine.
        let page = sysconf_u64(SysconfVar::PAGE_SIZE).unwrap();
        let own = own_pages(Path::new("/proc/self/statm")).unwrap() * page;
        assert!((1 << 18..machine_bytes(page).unwrap()).contains(&own), "{own}");
    }
}

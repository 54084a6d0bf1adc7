//! How busy this shard is, and with which destination: what `spread auto` goes by.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

use crate::shard::Shard;

/// Time between two measurements.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The last measurement.
#[derive(Debug)]
pub struct Heat {
    at: Instant,
    cpu: Duration,
    busy_permille: u32,
    hottest: Option<(String, u32)>,
}

/// Time that the shard's thread ran or waited for its core, which others may use as well.
#[expect(
    clippy::disallowed_methods,
    reason = "the time that this process had is reported, and decides nothing in a shard"
)]
fn cpu_time() -> Duration {
    // Kernels without it leave the time that it ran.
    let stat = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let mut fields = stat.split_whitespace().map_while(|f| f.parse().ok()).map(Duration::from_nanos);
    if let (Some(ran), Some(waited)) = (fields.next(), fields.next()) {
        return ran + waited;
    }
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

impl Default for Heat {
    fn default() -> Self {
        Heat { at: Instant::now(), cpu: cpu_time(), busy_permille: 0, hottest: None }
    }
}

impl Heat {
    /// Part of the time that the shard had work of late, in a thousand; and the destination that
    /// most recipients were attempted at, with its part of all. Nothing where no destination
    /// is spread automatically.
    pub fn measure(&mut self, shard: &Shard) -> (u32, Option<(String, u32)>) {
        if shard.map.borrow().spread.iter().all(|s| s.over != 0) {
            return (0, None);
        }
        let lasted = self.at.elapsed();
        if lasted >= LOOK_EVERY {
            let cpu = cpu_time();
            let used = cpu.saturating_sub(self.cpu).as_micros() * 1000 / lasted.as_micros().max(1);
            (self.at, self.cpu) = (Instant::now(), cpu);
            self.busy_permille = used.min(1000) as u32;
            self.hottest = shard.decide(|e, _| e.hottest());
        }
        (self.busy_permille, self.hottest.clone())
    }
}

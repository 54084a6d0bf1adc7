//! Queue time ([`worker::clock`]) goes on over restarts: what it is, is written to a file in the
//! data folder, and taken over from there. On the same boot it is known exactly how much time has
//! passed, whatever the clock says; on another, the clock is believed within limits.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use worker::clock;

use crate::state::Supervisor;

/// Name of the file in the data folder.
const FILE: &str = "queue-time";
const WRITTEN_EVERY: Duration = Duration::from_secs(60);
/// A machine that was down is believed to have been so for this long at most, nanoseconds: what
/// was due is due after it, and nothing expires by a clock that was wrong before or is now.
const DOWN_MAX_NS: i64 = 3600 * 1_000_000_000;

/// What was known when the file was written, nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    ahead_ns: i64,
    uptime_ns: i64,
    wall_ns: i64,
    boot: String,
}

impl Known {
    fn now() -> Known {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let wall_ns = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |t| t.as_nanos() as i64);
        Known { ahead_ns: clock::ahead_ns(), uptime_ns: clock::uptime_ns(), wall_ns, boot: boot.trim().to_owned() }
    }

    fn text(&self) -> String {
        format!("{} {} {} {}\n", self.ahead_ns, self.uptime_ns, self.wall_ns, self.boot)
    }

    fn read(text: &str) -> Option<Known> {
        let mut words = text.split_whitespace();
        let mut number = || words.next()?.parse().ok();
        let (ahead_ns, uptime_ns, wall_ns) = (number()?, number()?, number()?);
        Some(Known { ahead_ns, uptime_ns, wall_ns, boot: words.next().unwrap_or_default().to_owned() })
    }

    /// Queue time less time since boot, at a start that finds this from before.
    fn ahead_after(&self, now: &Known) -> i64 {
        if self.boot == now.boot && now.uptime_ns >= self.uptime_ns {
            return self.ahead_ns;
        }
        let passed = now.wall_ns.saturating_sub(self.wall_ns).clamp(0, DOWN_MAX_NS);
        self.uptime_ns.saturating_add(self.ahead_ns).saturating_add(passed) - now.uptime_ns
    }
}

/// Goes on with the queue time of the server before, before anything asks for it.
pub fn restore(data_dir: &Path) {
    let file = data_dir.join(FILE);
    match std::fs::read_to_string(&file).map(|t| Known::read(&t)) {
        Ok(Some(before)) => clock::follow(before.ahead_after(&Known::now())),
        Ok(None) => tracing::warn!(path = %file.display(), "queue time cannot be read; it begins with the clock"),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => {
            tracing::warn!(path = %file.display(), error = %e, "queue time cannot be read; it begins with the clock")
        }
    }
    keep_now(&file);
}

/// Writes it now and then, for a start after another boot.
pub async fn keep(sup: Rc<Supervisor>) {
    loop {
        tokio::time::sleep(WRITTEN_EVERY).await;
        let file = file_of(&sup);
        // Beside the loop, which must not wait for a slow disk.
        let _ = tokio::task::spawn_blocking(move || keep_now(&file)).await;
    }
}

/// The server stops.
pub fn keep_last(sup: &Supervisor) {
    keep_now(&file_of(sup));
}

fn file_of(sup: &Supervisor) -> PathBuf {
    sup.compiled.borrow().data_dir.join(FILE)
}

fn keep_now(file: &Path) {
    let new = file.with_extension("new");
    let written = std::fs::write(&new, Known::now().text()).and_then(|()| std::fs::rename(&new, file));
    if let Err(e) = written {
        tracing::warn!(path = %file.display(), error = %e, "queue time cannot be kept for the next start");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const HOUR: i64 = 3600 * 1_000_000_000;
    const DAY: i64 = 24 * HOUR;

    fn known(boot: &str, uptime_ns: i64, wall_ns: i64) -> Known {
        Known { ahead_ns: 100 * DAY, uptime_ns, wall_ns, boot: boot.into() }
    }

    #[test]
    fn a_clock_that_was_set_moves_nothing_and_a_boot_moves_little() {
        let before = known("a", HOUR, 100 * DAY);
        assert_eq!(Known::read(&before.text()), Some(before.clone()));
        let queue = |k: &Known| k.uptime_ns + before.ahead_after(k);
        for wall in [0, 90 * DAY, 101 * DAY, 1000 * DAY] {
            assert_eq!(queue(&known("a", 2 * HOUR, wall)), 100 * DAY + 2 * HOUR, "as much as has passed");
        }
        let booted = |wall| queue(&known("b", 1000, wall)) - (100 * DAY + HOUR);
        assert_eq!(booted(100 * DAY + HOUR / 2), HOUR / 2);
        assert_eq!((booted(90 * DAY), booted(200 * DAY)), (0, HOUR));
    }

    #[test]
    fn rubbish_is_no_time() {
        assert_eq!((Known::read(""), Known::read("1 2")), (None, None));
    }
}

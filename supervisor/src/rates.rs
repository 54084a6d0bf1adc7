//! Rates over all shards outlive a stop of the whole server, and its death: a restart is no free
//! burst (I3). They live in the ledger, which no process that is gone has; every second, and at a
//! stop, those that still count are written to a file.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ipc::ledger::{Ahead, Kept, Ledger};

use crate::state::Supervisor;

/// Name of the file in the data folder.
const FILE: &str = "rates";
/// Time between two looks.
const WRITTEN_EVERY: Duration = Duration::from_secs(1);
/// Within this time before a death nothing may have been written, nanoseconds.
const UNSEEN_NS: i64 = 3 * 1_000_000_000;
/// No clock runs further ahead, nanoseconds: a year, which is what one event a year takes.
const AHEAD_MAX_NS: i64 = 366 * 86_400 * 1_000_000_000;

/// What the file holds.
#[derive(Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Rates {
    /// When it was written, Unix nanoseconds.
    at_ns: i64,
    /// Nothing was sent after that.
    is_last: bool,
    all: Vec<Kept>,
}

impl ipc::stored::Stored for Rates {
    const WHAT: &'static str = "rates over all shards";
    const VERSION: u8 = 1;
}

impl Rates {
    /// The rates of a ledger that still count, or may have counted since the last look.
    fn of(ledger: &Ledger, at_ns: i64, is_last: bool) -> Rates {
        Rates { at_ns, is_last, all: ledger.rates(at_ns - UNSEEN_NS) }
    }

    /// They as they must be assumed at a start. When the server died, the most that their clocks
    /// allowed may have been taken since they were written.
    fn assumed(&self, now_ns: i64) -> impl Iterator<Item = Kept> + '_ {
        let sane = |ns: i64| (0..AHEAD_MAX_NS).contains(&ns);
        let all = self.all.iter().copied().filter(move |k| {
            sane(k.ahead.after_ns) && sane(k.ahead.before_ns) && k.clock_ns.saturating_sub(now_ns) < AHEAD_MAX_NS
        });
        all.map(move |k| {
            let most_ns = now_ns + k.ahead.after_ns;
            let may_be_taken = !self.is_last && k.clock_ns.saturating_sub(k.ahead.before_ns) <= now_ns;
            let clock_ns = match (k.ahead == Ahead::default(), may_be_taken) {
                (true, _) => k.clock_ns,
                (false, true) => most_ns,
                // It can be later only where this machine's clock was set back.
                (false, false) => k.clock_ns.min(most_ns),
            };
            Kept { clock_ns, ..k }
        })
    }
}

/// As the workers' clocks go, which follow no change of the machine's.
fn now_ns() -> i64 {
    worker::clock::now_ns() as i64
}

/// Held while the file is written; true when that was for the last time.
static LAST_IS_WRITTEN: Mutex<bool> = Mutex::new(false);

/// Writes a file of a server that goes on, unless it has ended meanwhile.
fn write_unless_over(file: &Path, rates: &Rates) -> std::io::Result<()> {
    let is_over = LAST_IS_WRITTEN.lock().unwrap_or_else(PoisonError::into_inner);
    if *is_over { Ok(()) } else { write(file, rates) }
}

fn write(file: &Path, rates: &Rates) -> std::io::Result<()> {
    let new = file.with_extension("new");
    std::fs::write(&new, ipc::stored::bytes(rates))?;
    std::fs::rename(&new, file)
}

/// Takes over into a new ledger what the server before has left.
pub fn restore(data_dir: &Path, ledger: &Ledger) {
    let file = data_dir.join(FILE);
    let bytes = match std::fs::read(&file) {
        Ok(b) => b,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return,
        Err(e) => {
            tracing::warn!(path = %file.display(), error = %e, "rates over all shards cannot be read and begin anew");
            return;
        }
    };
    match ipc::stored::read::<Rates>(&bytes) {
        Ok(rates) => rates.assumed(now_ns()).for_each(|k| ledger.restore(&k)),
        Err(e) => {
            tracing::warn!(path = %file.display(), error = %e, "rates over all shards cannot be read and begin anew");
        }
    }
}

/// Writes the rates that still count as long as the server runs.
pub async fn keep(sup: Rc<Supervisor>) {
    let mut written = Rates::default();
    let mut failed = false;
    loop {
        tokio::time::sleep(WRITTEN_EVERY).await;
        let rates = Rates::of(&sup.ledger.borrow(), now_ns(), false);
        if rates.all == written.all {
            continue;
        }
        // Beside the loop, which must not wait for a slow disk.
        let file = file_of(&sup);
        let done = tokio::task::spawn_blocking(move || write_unless_over(&file, &rates).map(|()| rates)).await;
        match done.map_err(std::io::Error::other).and_then(|r| r) {
            Ok(rates) => (written, failed) = (rates, false),
            Err(e) if !failed => {
                failed = true;
                tracing::warn!(path = %file_of(&sup).display(), error = %e, "rates over all shards cannot be kept for a restart");
            }
            Err(_) => {}
        }
    }
}

/// The server stops. Where all shards have ended, what counts now is all that counts.
pub fn keep_last(sup: &Supervisor, all_ended: bool) {
    let rates = Rates::of(&sup.ledger.borrow(), now_ns(), all_ended);
    let mut is_over = LAST_IS_WRITTEN.lock().unwrap_or_else(PoisonError::into_inner);
    *is_over = true;
    if let Err(e) = write(&file_of(sup), &rates) {
        tracing::warn!(path = %file_of(sup).display(), error = %e, "rates over all shards cannot be kept for the next start");
    }
}

fn file_of(sup: &Supervisor) -> PathBuf {
    sup.compiled.borrow().data_dir.join(FILE)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_was_in_use_at_a_death_is_taken_to_be_used_up() {
        let dir = tempfile::tempdir().unwrap();
        let now = now_ns();
        let minute = 60_000_000_000;
        let (before, _fd) = Ledger::create().unwrap();
        let ahead = |before, after| Ahead { before_ns: before * minute, after_ns: after * minute };
        let rates = [(1, 1, ahead(1, 2)), (2, -1, ahead(0, 1)), (3, 10, ahead(1, 20)), (4, 1, Ahead::default())];
        for (key, clock, ahead) in rates {
            before.update_clock(key, ahead, |_| (now + clock * minute, ()));
        }
        let start = |is_last| {
            write(&dir.path().join(FILE), &Rates::of(&before, now, is_last)).unwrap();
            let (after, _fd) = Ledger::create().unwrap();
            restore(dir.path(), &after);
            [1, 2, 3, 4].map(|k| after.clock(k).map(|c| (c - now) / minute))
        };
        assert_eq!(start(true), [Some(1), None, Some(10), Some(1)]);
        assert_eq!(start(false), [Some(2), None, Some(10), Some(1)]);
        std::fs::write(dir.path().join(FILE), "rubbish").unwrap();
        let (after, _fd) = Ledger::create().unwrap();
        restore(dir.path(), &after);
        assert_eq!(after.clock(1), None);
    }

    #[test]
    fn rates_lie_in_the_file_as_they_always_did() {
        let of = |key| Kept { key, clock_ns: -2, ahead: Ahead { before_ns: 3, after_ns: 4 }, interval_ps: 5 };
        let rates = Rates { at_ns: 0x0102_0304_0506_0708, is_last: true, all: vec![of(1), of(u64::MAX)] };
        ipc::assert_layout!(rates, 1: "\
            0100000000000000feffffffffffffff030000000000000004000000000000000500000000000000fffffffffffffffffeffffffffffffff
            030000000000000004000000000000000500000000000000080706050403020101000000a4ffffff0200000000000000");
    }
}

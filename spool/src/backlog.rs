//! How much that has happened is not on disk yet, and why new mail is refused. The shard's reactor reads it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Delivery stops when an outcome has waited this long for the disk …
const UNWRITTEN_MAX: Duration = Duration::from_secs(10);
/// … or when this many bytes of outcomes wait.
const UNWRITTEN_BYTES_MAX: u64 = 16 << 20;

/// Why new mail is refused, or accounting is behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Since when.
    pub since: Instant,
    /// The reason, for an operator.
    pub why: String,
}

impl Refusal {
    /// Since when on a clock, by what it shows now; both in milliseconds.
    pub fn since_ms(&self, now_ms: i64) -> i64 {
        now_ms - self.since.elapsed().as_millis() as i64
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Backlog {
    begun: Instant,
    /// The last group with outcomes could not be written.
    failing: AtomicBool,
    bytes: AtomicU64,
    /// Milliseconds after `begun` at which the oldest was given; 0 for none.
    oldest_ms: AtomicU64,
    refusal: Mutex<Option<Refusal>>,
    accounting: Mutex<Option<Refusal>>,
}

impl Default for Backlog {
    fn default() -> Self {
        Backlog {
            begun: Instant::now(),
            failing: AtomicBool::new(false),
            bytes: AtomicU64::new(0),
            oldest_ms: AtomicU64::new(0),
            refusal: Mutex::default(),
            accounting: Mutex::default(),
        }
    }
}

impl Backlog {
    fn now_ms(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64 + 1
    }

    /// Outcomes of so many bytes were given.
    pub fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Relaxed);
        let _ = self.oldest_ms.compare_exchange(0, self.now_ms(), Relaxed, Relaxed);
    }

    /// Outcomes of so many bytes are on disk; the oldest of the rest came `since`.
    pub fn written(&self, bytes: u64, since: Option<Instant>) {
        self.bytes.fetch_sub(bytes.min(self.bytes.load(Relaxed)), Relaxed);
        let oldest = since.map_or(0, |t| t.saturating_duration_since(self.begun).as_millis() as u64 + 1);
        self.oldest_ms.store(oldest, Relaxed);
    }

    /// Notes whether the last outcomes could be written.
    pub fn set_failing(&self, failing: bool) {
        self.failing.store(failing, Relaxed);
    }

    /// Whether deliveries are to wait: outcomes are not being written, so that of mail that is delivered now it could not be noted that it was.
    pub fn holds_deliveries(&self) -> bool {
        let oldest = self.oldest_ms.load(Relaxed);
        self.failing.load(Relaxed)
            || self.bytes.load(Relaxed) > UNWRITTEN_BYTES_MAX
            || (oldest > 0 && self.now_ms().saturating_sub(oldest) > UNWRITTEN_MAX.as_millis() as u64)
    }

    /// Why new mail is refused now.
    pub fn refusal(&self) -> Option<Refusal> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Since when and why rows wait for accounting files.
    pub fn accounting_behind(&self) -> Option<Refusal> {
        self.accounting.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes since when rows have been waiting for accounting files, and why.
    pub fn set_accounting_behind(&self, behind: Option<(Instant, String)>) {
        let mut noted = self.accounting.lock().unwrap_or_else(PoisonError::into_inner);
        let since = noted.as_ref().map(|r| r.since);
        *noted = behind.map(|(begun, why)| Refusal { since: since.unwrap_or(begun), why });
    }

    /// Notes why new mail is refused, `None` for not at all, and logs it when it changes.
    pub fn set_refusal(&self, why: Option<&str>) {
        let mut now = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        if now.as_ref().map(|r| r.why.as_str()) == why {
            return;
        }
        match why {
            Some(why) => tracing::warn!(why, "new mail is refused"),
            None => tracing::info!("new mail is taken again"),
        }
        let since = now.as_ref().map_or_else(Instant::now, |r| r.since);
        *now = why.map(|w| Refusal { since, why: w.to_owned() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delivery_stops_when_what_happened_cannot_be_written() {
        let b = Backlog::default();
        assert!(!b.holds_deliveries());
        b.set_failing(true);
        assert!(b.holds_deliveries());
        b.set_failing(false);
        b.add(17 << 20);
        assert!(b.holds_deliveries(), "too many bytes wait");
        b.written(17 << 20, None);
        assert!(!b.holds_deliveries());
        b.add(1);
        b.oldest_ms.store(1, Relaxed);
        let later = Backlog { begun: b.begun.checked_sub(Duration::from_secs(11)).unwrap_or(b.begun), ..b };
        assert!(later.holds_deliveries(), "one has waited too long");
    }

    #[test]
    fn a_refusal_keeps_its_beginning_over_its_reasons() {
        let b = Backlog::default();
        b.set_refusal(Some("one"));
        let since = b.refusal().map(|r| r.since);
        b.set_refusal(Some("two"));
        assert_eq!(b.refusal().map(|r| (Some(r.since), r.why)), Some((since, "two".to_owned())));
        b.set_refusal(None);
        assert_eq!(b.refusal(), None);
    }
}

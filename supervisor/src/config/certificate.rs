//! How long certificates last.

use std::time::{SystemTime, UNIX_EPOCH};

use worker::connect::certificate::Certificate;
use worker::connect::tls;

/// Days before the end of a certificate from which the operator is told of it.
const WARNED_DAYS: i64 = 30;
/// Seconds of a day.
pub const DAY_S: i64 = 86_400;

/// A certificate is renewed when less than this part of its time is left.
const RENEWED_PART: i64 = 3;

/// A certificate in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InForce {
    /// Its file.
    pub path: String,
    /// Hosts that it is for.
    pub names: Vec<String>,
    /// When it begins to be valid, Unix seconds.
    pub begins: i64,
    /// When it ends, Unix seconds.
    pub ends: i64,
}

/// Now, Unix seconds.
pub fn now_s() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

impl InForce {
    /// That of a file with a chain and its key in PEM.
    pub fn of(path: &str, pem: &str) -> Option<InForce> {
        let (chain, _) = tls::identity(pem).ok()?;
        let c = Certificate::of(chain.first()?)?;
        Some(InForce { path: path.to_owned(), names: c.host_names(), begins: c.valid.0, ends: c.valid.1 })
    }

    /// Seconds until it ends; below 0 when it has.
    pub fn left_s(&self) -> i64 {
        self.ends - now_s()
    }

    /// Less than a third of its time is left: `<acme>` renews it.
    pub fn is_due(&self) -> bool {
        self.left_s() < (self.ends - self.begins) / RENEWED_PART
    }

    /// It is for all of these names, as they are written.
    pub fn is_for_all(&self, names: &[String]) -> bool {
        names.iter().all(|n| self.names.iter().any(|have| have.eq_ignore_ascii_case(n)))
    }

    /// What an operator should know of it; `None` where it lasts for long.
    pub fn warning(&self) -> Option<String> {
        let names = self.names.join(", ");
        match self.left_s() {
            _ if self.begins > now_s() => Some(format!("{} ({names}) is not valid yet: clients refuse it", self.path)),
            left if left < 0 => Some(format!("{} ({names}) has ended: clients refuse it", self.path)),
            left if left < WARNED_DAYS * DAY_S => {
                Some(format!("{} ({names}) ends in {} days", self.path, left / DAY_S))
            }
            _ => None,
        }
    }
}

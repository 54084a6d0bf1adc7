//! Addresses that could not be connected to of late: others are tried first, until a time that
//! grows with each failure in a row has passed.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

/// After the first failure an address is left for so long, milliseconds; it doubles with each.
const FIRST_MS: i64 = 30_000;
/// At most so long.
const LONGEST_MS: i64 = 1_800_000;
/// Addresses that are remembered.
const ADDRESSES_MAX: usize = 20_000;

#[derive(Debug, Clone, Copy)]
struct Down {
    until_ms: i64,
    failures: u32,
}

/// What is remembered, for each address and the source that it was tried from.
#[derive(Debug, Default)]
pub struct AddressHealth(RefCell<HashMap<(SocketAddr, Option<IpAddr>), Down>>);

impl AddressHealth {
    /// It does not answer.
    pub fn is_down(&self, to: SocketAddr, from: Option<IpAddr>, now_ms: i64) -> bool {
        self.0.borrow().get(&(to, from)).is_some_and(|d| d.until_ms > now_ms)
    }

    /// No connection came about.
    pub fn failed(&self, to: SocketAddr, from: Option<IpAddr>, now_ms: i64) {
        let mut all = self.0.borrow_mut();
        if all.len() >= ADDRESSES_MAX {
            all.retain(|_, d| d.until_ms > now_ms);
            if all.len() >= ADDRESSES_MAX {
                all.clear();
            }
        }
        let d = all.entry((to, from)).or_insert(Down { until_ms: 0, failures: 0 });
        if d.until_ms > now_ms {
            // Connections that failed together count once.
            return;
        }
        d.until_ms = now_ms + (FIRST_MS << d.failures.min(10)).min(LONGEST_MS);
        d.failures += 1;
    }

    /// A connection came about.
    pub fn connected(&self, to: SocketAddr, from: Option<IpAddr>) {
        let mut all = self.0.borrow_mut();
        if !all.is_empty() {
            all.remove(&(to, from));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_grows_with_failures_in_a_row() {
        let (h, to) = (AddressHealth::default(), SocketAddr::from(([127, 0, 0, 1], 25)));
        h.failed(to, None, 0);
        h.failed(to, None, 10);
        assert!(h.is_down(to, None, 29_999) && !h.is_down(to, None, 30_000));
        h.failed(to, None, 30_000);
        assert!(h.is_down(to, None, 89_999) && !h.is_down(to, None, 90_000));
        assert!(!h.is_down(to, Some([127, 0, 0, 2].into()), 50_000));
        h.connected(to, None);
        assert!(!h.is_down(to, None, 50_000));
    }
}

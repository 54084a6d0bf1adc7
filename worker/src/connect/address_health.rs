//! Addresses that could not be connected to of late, or took no session: others are tried before them. Those that cannot be connected to are
//! left alone until a time that grows with each failure in a row has passed.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};

use ipc::dice::HashMap;

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

/// What is remembered; times are queue time.
#[derive(Debug, Default)]
pub struct AddressHealth {
    /// For each address and the source that it was tried from.
    down: RefCell<HashMap<(SocketAddr, Option<IpAddr>), Down>>,
    /// When an address last failed, whatever it was tried from.
    failed_ms: RefCell<HashMap<SocketAddr, i64>>,
}

impl AddressHealth {
    /// It does not answer.
    fn is_down(&self, to: SocketAddr, from: Option<IpAddr>, now_ms: i64) -> bool {
        self.down.borrow().get(&(to, from)).is_some_and(|d| d.until_ms > now_ms)
    }

    /// It failed, and has taken no session since.
    pub fn has_failed(&self, to: SocketAddr, from: Option<IpAddr>) -> bool {
        self.failed_ms.borrow().contains_key(&to) || self.down.borrow().contains_key(&(to, from))
    }

    /// No connection came about.
    pub fn failed(&self, to: SocketAddr, from: Option<IpAddr>, now_ms: i64) {
        self.took_no_session(to, now_ms);
        let mut down = self.down.borrow_mut();
        make_room(&mut down, |d| d.until_ms > now_ms);
        let d = down.entry((to, from)).or_insert(Down { until_ms: 0, failures: 0 });
        if d.until_ms > now_ms {
            // Connections that failed together count once.
            return;
        }
        d.until_ms = now_ms + (FIRST_MS << d.failures.min(10)).min(LONGEST_MS);
        d.failures += 1;
    }

    /// A connection came about, and no mail can follow.
    pub fn took_no_session(&self, to: SocketAddr, now_ms: i64) {
        let mut failed = self.failed_ms.borrow_mut();
        make_room(&mut failed, |at| now_ms - at < LONGEST_MS);
        failed.insert(to, now_ms);
    }

    /// It takes mail.
    pub fn connected(&self, to: SocketAddr, from: Option<IpAddr>) {
        let (mut down, mut failed) = (self.down.borrow_mut(), self.failed_ms.borrow_mut());
        if !down.is_empty() {
            down.remove(&(to, from));
        }
        if !failed.is_empty() {
            failed.remove(&to);
        }
    }

    /// Addresses in the order in which one attempt tries them, of those that are given in order of preference. First those that
    /// have not failed, by preference; then those that have, the longest ago first, so that over some attempts each
    /// has its turn. One of these that would be preferred goes before all, unless the last attempt failed (`is_retry`):
    /// that is how mail goes back to a host that is back. Those that are down are left out as long as there is another.
    pub fn in_turn<T>(
        &self,
        preferred: Vec<(T, SocketAddr)>,
        from: Option<IpAddr>,
        now_ms: i64,
        is_retry: bool,
    ) -> Vec<(T, SocketAddr)> {
        let some_up = preferred.iter().any(|(_, a)| !self.is_down(*a, from, now_ms));
        let up = preferred.into_iter().filter(|(_, a)| !(some_up && self.is_down(*a, from, now_ms)));
        let (mut order, mut failed) = (Vec::new(), Vec::new());
        // Those that have failed and are preferred to all that have not.
        let mut before = 0;
        for candidate in up {
            if self.has_failed(candidate.1, from) {
                failed.push(candidate);
                before += usize::from(order.is_empty());
            } else {
                order.push(candidate);
            }
        }
        let known = self.failed_ms.borrow();
        let failed_ms = |a: &SocketAddr| known.get(a).copied().unwrap_or(i64::MIN);
        let probe = (0..before).min_by_key(|i| failed_ms(&failed[*i].1)).filter(|_| !is_retry);
        let probe = probe.map(|i| failed.remove(i));
        failed.sort_by_key(|(_, a)| failed_ms(a));
        probe.into_iter().chain(order).chain(failed).collect()
    }
}

/// Before an entry is added: forgets those that say nothing any more when there are many.
fn make_room<K: Eq + std::hash::Hash, V>(all: &mut HashMap<K, V>, says_something: impl Fn(&V) -> bool) {
    if all.len() < ADDRESSES_MAX {
        return;
    }
    all.retain(|_, v| says_something(v));
    // Else the next ones would have to look through all again.
    if all.len() >= ADDRESSES_MAX / 4 * 3 {
        all.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address(n: u8) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, n], 25))
    }

    fn in_turn(h: &AddressHealth, all: impl Iterator<Item = u8>, now_ms: i64, is_retry: bool) -> Vec<u8> {
        let preferred = all.map(|n| (n, address(n))).collect();
        h.in_turn(preferred, None, now_ms, is_retry).into_iter().map(|(n, _)| n).collect()
    }

    #[test]
    fn the_time_grows_with_failures_in_a_row() {
        let (h, to) = (AddressHealth::default(), address(1));
        h.failed(to, None, 0);
        h.failed(to, None, 10);
        assert!(h.is_down(to, None, 29_999) && !h.is_down(to, None, 30_000));
        h.failed(to, None, 30_000);
        assert!(h.is_down(to, None, 89_999) && !h.is_down(to, None, 90_000));
        assert!(!h.is_down(to, Some([127, 0, 0, 2].into()), 50_000));
        h.connected(to, None);
        assert!(!h.is_down(to, None, 50_000) && !h.has_failed(to, None));
    }

    #[test]
    fn who_goes_first() {
        let h = AddressHealth::default();
        assert_eq!(in_turn(&h, 1..=4, 0, false), [1, 2, 3, 4]);
        h.failed(address(1), None, 1_000);
        h.failed(address(2), None, 0);
        assert_eq!(in_turn(&h, 1..=4, 2_000, false), [3, 4], "those that are down are left alone");
        assert_eq!(in_turn(&h, 1..=2, 2_000, true), [2, 1], "unless there is no other");
        assert_eq!(in_turn(&h, 1..=4, 40_000, false), [2, 3, 4, 1], "one is tried whether it is back");
        assert_eq!(in_turn(&h, 1..=4, 40_000, true), [3, 4, 2, 1]);
        assert_eq!(in_turn(&h, (1..=4).rev(), 40_000, false), [4, 3, 2, 1], "not where others are preferred");
        h.connected(address(2), None);
        h.took_no_session(address(3), 40_000);
        assert_eq!(in_turn(&h, 1..=4, 41_000, false), [1, 2, 4, 3]);
        let other_source = Some([127, 0, 0, 9].into());
        let from_there = h.in_turn(vec![((), address(1)), ((), address(2))], other_source, 2_000, true);
        assert_eq!(from_there[0].1, address(2), "what failed from one address comes later for all");
    }

    proptest! {
        #[test]
        fn an_address_that_lives_is_reached(lives in 0u8..60, tries in 1usize..12, pause_ms in 0i64..4_000_000, takes_ms in 0i64..200_000) {
            let (h, mut now) = (AddressHealth::default(), 0);
            // As many attempts as are needed to try all once, and one more.
            for attempt in 0..60 / tries + 2 {
                for n in in_turn(&h, 0..60, now, attempt > 0).into_iter().take(tries) {
                    if n == lives {
                        return Ok(());
                    }
                    now += takes_ms;
                    h.failed(address(n), None, now);
                }
                now += pause_ms;
            }
            prop_assert!(false, "never tried");
        }
    }
}

//! Limits by name: connections of one virtual MTA, to one host, to one destination.
//!
//! A connection under a limit of `n` holds one of the `n` places that the name has. A place is
//! a cell that carries its tag (name and number) and its owner, in a table that is probed from
//! the tag's position on. Two processes that write the same tag at once both see the other
//! and step back, so that a limit is never exceeded; a cell is emptied by one store, or by the
//! supervisor when its owner is dead.

use std::sync::atomic::Ordering::SeqCst;

use super::Ledger;
use crate::limits::LEDGER_CELLS;

/// Cells that are looked at from a tag's position on.
pub(super) const PROBES: usize = 32;
/// Places of one name that are tried; a limit above it is this.
pub const PLACES_MAX: u64 = 16_384;
/// The owner stands above the tag.
pub(super) const OWNER_SHIFT: u32 = 56;
pub(super) const TAG_MASK: u64 = (1 << OWNER_SHIFT) - 1;

/// A place in use; give it back with [`Ledger::give_place`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a place that is dropped stays taken until its shard restarts"]
pub struct Place {
    cell: u32,
    /// Which of the name's places it is, from 0.
    pub number: u32,
}

/// The number that stands for a name in the ledger.
pub fn key(kind: &str, name: &str) -> u64 {
    let mut h = xxhash_rust::xxh3::Xxh3::new();
    h.update(kind.as_bytes());
    h.update(&[0]);
    h.update(name.as_bytes());
    h.digest()
}

/// A number in which every bit of `key` and of `number` counts.
pub fn mixed(key: u64, number: u64) -> u64 {
    // The finalizer of SplitMix64: every bit of both counts.
    let mut x = key ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

impl Ledger {
    /// Takes one of `limit` places of `key` for `shard`. `hint` spreads the search; any number
    /// will do.
    pub fn take_place(&self, key: u64, shard: u8, limit: u64, hint: u64) -> Option<Place> {
        let limit = limit.min(PLACES_MAX);
        (0..limit).map(|i| (hint.wrapping_add(i)) % limit).find_map(|number| {
            let cell = self.claim(mixed(key, number), shard)?;
            Some(Place { cell, number: number as u32 })
        })
    }

    fn claim(&self, hash: u64, shard: u8) -> Option<u32> {
        let cells = self.cells();
        // Never 0, which is an empty cell's.
        let tag = (hash & TAG_MASK).max(1);
        let probes = || (0..PROBES).map(|i| (hash as usize).wrapping_add(i) % LEDGER_CELLS);
        let is_mine = |cell: &usize| cells[*cell].load(SeqCst) & TAG_MASK == tag;
        if probes().any(|c| is_mine(&c)) {
            return None;
        }
        let owned = tag | (u64::from(shard) + 1) << OWNER_SHIFT;
        let at = probes().find(|c| cells[*c].compare_exchange(0, owned, SeqCst, SeqCst).is_ok())?;
        if probes().filter(|c| *c != at).any(|c| is_mine(&c)) {
            cells[at].store(0, SeqCst);
            return None;
        }
        Some(at as u32)
    }

    /// Gives a place back.
    pub fn give_place(&self, place: Place) {
        self.cells()[place.cell as usize].store(0, SeqCst);
    }

    /// Frees the places that a dead worker held.
    pub(super) fn free_places_of(&self, shard: u8) {
        for c in self.cells() {
            let held = c.load(SeqCst);
            if held >> OWNER_SHIFT == u64::from(shard) + 1 {
                // Its owner is dead: nobody else changes the cell, and what failed is free already.
                let _ = c.compare_exchange(held, 0, SeqCst, SeqCst);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn names_have_as_many_places_as_their_limit_over_all_processes() {
        let (a, fd) = Ledger::create().unwrap();
        let b = Ledger::open(&fd).unwrap();
        let mut held = Vec::new();
        for (i, key) in (0..50).map(|i| (i, key("vmta", &format!("v{i}")))) {
            let limit = 1 + i % 7;
            for n in 0..limit {
                let (ledger, shard) = if n % 2 == 0 { (&a, 0) } else { (&b, 1) };
                held.push(ledger.take_place(key, shard, limit, n * 3).unwrap());
            }
            assert_eq!(b.take_place(key, 1, limit, 0), None, "one more of {limit}");
        }
        let k = key("vmta", "v6");
        a.free_all_of(1);
        let freed = (0..7).filter(|_| b.take_place(k, 1, 7, 0).is_some()).count();
        assert_eq!(freed, 3);
        held.into_iter().for_each(|p| a.give_place(p));
    }

    #[test]
    fn threads_that_ask_at_once_never_hold_more_than_the_limit() {
        let (ledger, _fd) = Ledger::create().unwrap();
        let (held, most) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|s| {
            for shard in 0..4 {
                let (ledger, held, most) = (&ledger, &held, &most);
                s.spawn(move || {
                    for i in 0..20_000 {
                        if let Some(p) = ledger.take_place(42, shard, 3, i) {
                            most.fetch_max(1 + held.fetch_add(1, SeqCst), SeqCst);
                            held.fetch_sub(1, SeqCst);
                            ledger.give_place(p);
                        }
                    }
                });
            }
        });
        assert!((1..=3).contains(&most.load(SeqCst)), "{most:?}");
    }
}

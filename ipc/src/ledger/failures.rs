//! Failures to authenticate, by address and by user, over all shards.
//!
//! A cell counts the failures of one name in the window that the first of them opened. It is one word (part of the name, when
//! the window ends, how many), so that every change is one compare-and-swap. A cell whose window has ended serves another name; where
//! all cells that a name may have count for others, it takes the one with the fewest failures. Somebody who fails from very many addresses
//! can make a count be forgotten that way. Names are numbers that come of a secret (see `worker::accept::auth::attempts`), so that nobody
//! can look for one that takes another's cell.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Ledger;
use super::shared_limits::mixed;
use crate::limits::LEDGER_FAILURES;

/// Cells that are looked at from a name's position on.
const PROBES: usize = 16;
/// Failures that a cell can count.
pub const FAILURES_MAX: u64 = COUNT_MASK;
const COUNT_BITS: u32 = 12;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;
/// Times are seconds in so many bits, which are eight years: no ledger gets so old. A window is [`WINDOW_MAX_S`] at most.
const TIME_BITS: u32 = 28;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;
/// Longest window: 90 days.
pub const WINDOW_MAX_S: u64 = 90 * 86_400;
const NAME_SHIFT: u32 = COUNT_BITS + TIME_BITS;

/// What a cell holds.
#[derive(Clone, Copy)]
struct Cell {
    name: u64,
    /// Seconds, modulo `1 << TIME_BITS`.
    until_s: u64,
    count: u64,
}

impl Cell {
    fn of(word: u64) -> Cell {
        Cell { name: word >> NAME_SHIFT, until_s: word >> COUNT_BITS & TIME_MASK, count: word & COUNT_MASK }
    }

    fn word(self) -> u64 {
        self.name << NAME_SHIFT | self.until_s << COUNT_BITS | self.count
    }

    fn counts(self, now_s: u64) -> bool {
        let left = self.until_s.wrapping_sub(now_s) & TIME_MASK;
        self.count > 0 && left > 0 && left <= WINDOW_MAX_S + 1
    }
}

impl Ledger {
    fn cells_of_failures(&self, key: u64) -> impl Iterator<Item = (&AtomicU64, u64)> {
        let all = self.failures();
        let hash = mixed(key, 0);
        let at = hash as usize % LEDGER_FAILURES;
        (0..PROBES).map(move |i| (&all[(at + i) % LEDGER_FAILURES], hash >> NAME_SHIFT))
    }

    /// Failures of a name in the window that is open at `now_s`, seconds of the clock that all
    /// processes go by; and in how many seconds it ends.
    pub fn failures_of(&self, key: u64, now_s: u64) -> (u64, u64) {
        let cells = self.cells_of_failures(key).map(|(c, name)| (Cell::of(c.load(Relaxed)), name));
        let counted =
            cells.filter(|(c, name)| c.name == *name && c.counts(now_s)).map(|(c, _)| c).max_by_key(|c| c.count);
        counted.map_or((0, 0), |c| (c.count, c.until_s.wrapping_sub(now_s) & TIME_MASK))
    }

    /// Counts a failure of a name; the first one opens a window of so many seconds.
    pub fn count_failure(&self, key: u64, now_s: u64, window_s: u64) {
        let until_s = (now_s + window_s.clamp(1, WINDOW_MAX_S)) & TIME_MASK;
        // Another process may change the cell meanwhile: then it is looked for anew.
        for _ in 0..PROBES {
            let Some((cell, before, after)) = self.cell_for_failure(key, now_s, until_s) else { return };
            if cell.compare_exchange(before, after, Relaxed, Relaxed).is_ok() {
                return;
            }
        }
    }

    /// The cell that a failure is to be counted in, what it holds, and what it is to hold.
    fn cell_for_failure(&self, key: u64, now_s: u64, until_s: u64) -> Option<(&AtomicU64, u64, u64)> {
        let mut free: Option<(&AtomicU64, u64, u64, u64)> = None;
        for (cell, name) in self.cells_of_failures(key) {
            let word = cell.load(Relaxed);
            let held = Cell::of(word);
            let count = if held.counts(now_s) { held.count } else { 0 };
            if count > 0 && held.name == name {
                let more = Cell { count: (count + 1).min(FAILURES_MAX), ..held };
                return Some((cell, word, more.word()));
            }
            if free.is_none_or(|(_, _, fewest, _)| count < fewest) {
                free = Some((cell, word, count, name));
            }
        }
        free.map(|(cell, word, _, name)| (cell, word, Cell { name, until_s, count: 1 }.word()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::shared_limits::key;
    use super::*;

    #[test]
    fn failures_count_until_the_window_of_the_first_ends() {
        let (ledger, fd) = Ledger::create().unwrap();
        let other = Ledger::open(&fd).unwrap();
        let (a, b) = (key("auth of user", "a"), key("auth of user", "b"));
        let start = (1 << TIME_BITS) - 5;
        let years = |n: u64| n * 365 * 86_400;
        for i in 0..3 {
            ledger.count_failure(a, start + i, 60);
        }
        other.count_failure(b, start, 10);
        assert_eq!((other.failures_of(a, start + 2), ledger.failures_of(b, start + 9)), ((3, 58), (1, 1)));
        assert_eq!((ledger.failures_of(a, start + 59).0, ledger.failures_of(a, start + 60).0), (3, 0));
        ledger.count_failure(a, start + 60, 60);
        assert_eq!(ledger.failures_of(a, start + 60), (1, 60));
        for later in [years(1), years(3), years(7)] {
            assert_eq!(ledger.failures_of(a, start + later).0, 0, "it is over for good");
        }
    }

    #[test]
    fn a_name_takes_the_cell_with_the_fewest_failures_where_all_are_taken() {
        let (ledger, _fd) = Ledger::create().unwrap();
        let own = key("auth of address", "192.0.2.1");
        let held = Cell { name: 1, until_s: 100, count: 9 };
        let fewest = ledger.cells_of_failures(own).nth(7).unwrap().0;
        ledger.cells_of_failures(own).for_each(|(c, _)| c.store(held.word(), Relaxed));
        fewest.store(Cell { count: 2, ..held }.word(), Relaxed);
        ledger.count_failure(own, 50, 60);
        assert_eq!(ledger.failures_of(own, 50), (1, 60));
        assert_eq!(Cell::of(fewest.load(Relaxed)).count, 1);
    }

    #[test]
    fn a_count_stays_at_its_largest() {
        let (ledger, _fd) = Ledger::create().unwrap();
        (0..FAILURES_MAX + 9).for_each(|_| ledger.count_failure(3, 1, 60));
        assert_eq!(ledger.failures_of(3, 1).0, FAILURES_MAX);
    }
}

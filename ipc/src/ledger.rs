//! Limits that span shards: a memfd of atomics that every process maps.
//!
//! A connection in use is a *slot* tagged with its owner, taken and given back by one
//! compare-and-swap, so a kill at any instant leaks nothing: the supervisor frees the slots
//! of a dead worker by their tag.

pub mod failures;
mod rates;
pub mod requests;
pub mod shared_limits;
pub mod window;

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::descriptors::{Mapping, shared_memfd};
use crate::limits::{LEDGER_CELLS, LEDGER_FAILURES, LEDGER_PACES, LEDGER_REQUESTS, LEDGER_SLOTS, SHARDS_MAX};
pub use rates::{Ahead, Kept, Refused};
pub use shared_limits::Place;

/// A class of connections that is limited over all shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// `total-max-smtp-in`
    SmtpIn,
    /// `total-max-smtp-out`
    SmtpOut,
}

/// How long what was published of memory counts, seconds.
pub const MEMORY_KNOWN_S: u32 = 10;

const CLASSES: usize = 2;
const SESSIONS_AT: usize = CLASSES * LEDGER_SLOTS * 4;
const RECIPIENTS_AT: usize = SESSIONS_AT + (SHARDS_MAX + 1) * 4;
const RECEIVING_AT: usize = RECIPIENTS_AT + (SHARDS_MAX + 1) * 4;
const MEMORY_AT: usize = RECEIVING_AT + (SHARDS_MAX + 1) * 4;
const CELLS_AT: usize = (MEMORY_AT + 8).next_multiple_of(8);
const PACES_AT: usize = CELLS_AT + LEDGER_CELLS * 8;
const REQUESTS_AT: usize = PACES_AT + LEDGER_PACES * rates::WORDS * 8;
const WINDOWS_AT: usize = REQUESTS_AT + LEDGER_REQUESTS * requests::WORDS * 8;
const CLOCK_AT: usize = WINDOWS_AT + LEDGER_PACES * window::BUCKETS * 8;
const REQUESTS_USED_AT: usize = CLOCK_AT + 8;
const FAILURES_AT: usize = REQUESTS_USED_AT + 8;
const BYTES: usize = FAILURES_AT + LEDGER_FAILURES * 8;

/// The mapped ledger of one process.
#[derive(Debug)]
pub struct Ledger {
    map: Mapping,
    /// Whose claims those of this process are, see [`rates`].
    claimer: AtomicU8,
    /// The latest time that this process knows of, nanoseconds as rates are counted by.
    seen_ns: AtomicI64,
    /// When a rate last found no room, by the same clock; 0 for never.
    no_room_ns: AtomicI64,
}

/// A slot in use; give it back with [`Ledger::give`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a slot that is dropped stays taken until its shard restarts"]
pub struct Slot {
    class: Class,
    index: u32,
}

impl Ledger {
    /// A new ledger and the descriptor to hand to the workers.
    ///
    /// # Errors
    /// As `memfd_create(2)`.
    pub fn create() -> std::io::Result<(Ledger, OwnedFd)> {
        let fd = shared_memfd("sluice-ledger", BYTES)?;
        Ok((Self::open(&fd)?, fd))
    }

    /// Maps a ledger that another process made.
    ///
    /// # Errors
    /// `EINVAL` when its size is not this version's.
    pub fn open(fd: &OwnedFd) -> std::io::Result<Ledger> {
        let map = Mapping::shared(fd, BYTES)?;
        let (seen_ns, no_room_ns) = (AtomicI64::new(0), AtomicI64::new(0));
        Ok(Ledger { map, claimer: AtomicU8::new(u8::MAX), seen_ns, no_room_ns })
    }

    fn slots(&self, class: Class) -> &[AtomicU32] {
        self.map.atomics(class as usize * LEDGER_SLOTS * 4, LEDGER_SLOTS)
    }

    fn cells(&self) -> &[AtomicU64] {
        self.map.atomics_64(CELLS_AT, LEDGER_CELLS)
    }

    /// The words of all rates, see [`rates`].
    fn paces(&self) -> &[AtomicU64] {
        self.map.atomics_64(PACES_AT, rates::WORDS * LEDGER_PACES)
    }

    /// What a rate's window holds: pages that only rates in use touch.
    fn buckets(&self, cell: usize) -> &[AtomicU64] {
        self.map.atomics_64(WINDOWS_AT + cell * window::BUCKETS * 8, window::BUCKETS)
    }

    /// Sets the time that all processes go by: nanoseconds less those since boot.
    pub fn set_ahead(&self, ns: i64) {
        self.map.atomics_64(CLOCK_AT, 1)[0].store(ns as u64, Relaxed);
    }

    /// The time that all processes go by: nanoseconds less those since boot.
    pub fn ahead(&self) -> i64 {
        self.map.atomics_64(CLOCK_AT, 1)[0].load(Relaxed) as i64
    }

    /// How many of the cells of requests have been in use: the first so many.
    fn requests_used(&self) -> &AtomicU64 {
        &self.map.atomics_64(REQUESTS_USED_AT, 1)[0]
    }

    fn requests(&self) -> &[AtomicU64] {
        self.map.atomics_64(REQUESTS_AT, requests::WORDS * LEDGER_REQUESTS)
    }

    /// Words of failures to authenticate, see [`failures`].
    fn failures(&self) -> &[AtomicU64] {
        self.map.atomics_64(FAILURES_AT, LEDGER_FAILURES)
    }

    /// Takes a slot for `shard` if fewer than `limit` are taken. `hint` spreads the search;
    /// any number will do.
    pub fn take(&self, class: Class, shard: u8, limit: usize, hint: usize) -> Option<Slot> {
        self.take_among(class, shard, 0..limit, hint)
    }

    /// The same of those slots alone: what is set apart for some is a range that others do not take from.
    pub fn take_among(&self, class: Class, shard: u8, among: Range<usize>, hint: usize) -> Option<Slot> {
        let (first, slots) = self.among(class, &among);
        let n = slots.len();
        (0..n).map(|i| (hint + i) % n).find_map(|i| {
            let free = slots[i].load(Relaxed) == 0
                && slots[i].compare_exchange(0, u32::from(shard) + 1, Relaxed, Relaxed).is_ok();
            free.then_some(Slot { class, index: (first + i) as u32 })
        })
    }

    /// How many of those slots are taken, by all shards.
    pub fn taken_among(&self, class: Class, among: &Range<usize>) -> usize {
        self.among(class, among).1.iter().filter(|s| s.load(Relaxed) != 0).count()
    }

    fn among(&self, class: Class, range: &Range<usize>) -> (usize, &[AtomicU32]) {
        let end = range.end.min(LEDGER_SLOTS);
        let first = range.start.min(end);
        (first, &self.slots(class)[first..end])
    }

    /// Gives a slot back.
    pub fn give(&self, slot: Slot) {
        self.slots(slot.class)[slot.index as usize].store(0, Relaxed);
    }

    /// Frees what a dead worker held.
    pub fn free_all_of(&self, shard: u8) {
        for class in [Class::SmtpIn, Class::SmtpOut] {
            for s in self.slots(class) {
                let _ = s.compare_exchange(u32::from(shard) + 1, 0, Relaxed, Relaxed);
            }
        }
        self.free_places_of(shard);
        self.free_claims_of(shard);
        self.withdraw_those_of(shard);
        self.set_sessions(shard, 0);
        self.set_receiving(shard, 0);
    }

    /// Publishes how many SMTP sessions `shard` serves.
    pub fn set_sessions(&self, shard: u8, n: u32) {
        self.map.atomics(SESSIONS_AT, SHARDS_MAX + 1)[usize::from(shard)].store(n, Relaxed);
    }

    /// Publishes how many recipients `shard` has queued; a dead shard's stay, for they are in
    /// its spool.
    pub fn set_recipients(&self, shard: u8, n: u64) {
        let n = n.min(u64::from(u32::MAX)) as u32;
        self.map.atomics(RECIPIENTS_AT, SHARDS_MAX + 1)[usize::from(shard)].store(n, Relaxed);
    }

    /// Recipients queued in all shards, as they last published.
    pub fn recipients(&self) -> u64 {
        self.map.atomics(RECIPIENTS_AT, SHARDS_MAX + 1).iter().map(|n| u64::from(n.load(Relaxed))).sum()
    }

    /// Publishes how many KiB of content `shard` has in memory of what it is receiving.
    pub fn set_receiving(&self, shard: u8, kib: u32) {
        self.map.atomics(RECEIVING_AT, SHARDS_MAX + 1)[usize::from(shard)].store(kib, Relaxed);
    }

    /// The same of all shards, as they last published.
    pub fn receiving(&self) -> u64 {
        self.map.atomics(RECEIVING_AT, SHARDS_MAX + 1).iter().map(|n| u64::from(n.load(Relaxed))).sum()
    }

    /// Publishes the share of the machine's memory that all processes of the server have, in a thousand, at a time (Unix seconds).
    pub fn set_memory(&self, permille: u32, at_s: i64) {
        let words = self.map.atomics(MEMORY_AT, 2);
        words[0].store(permille, Relaxed);
        words[1].store(at_s as u32, Relaxed);
    }

    /// The same as last published; 0 where that was more than [`MEMORY_KNOWN_S`] ago, for who publishes it may be gone.
    pub fn memory(&self, now_s: i64) -> u32 {
        let words = self.map.atomics(MEMORY_AT, 2);
        let age = (now_s as u32).wrapping_sub(words[1].load(Relaxed));
        if age <= MEMORY_KNOWN_S { words[0].load(Relaxed) } else { 0 }
    }

    /// The mean of sessions over the first `shards` shards.
    pub fn mean_sessions(&self, shards: &[u8]) -> u32 {
        let all = self.map.atomics(SESSIONS_AT, SHARDS_MAX + 1);
        let sum: u32 = shards.iter().map(|s| all[usize::from(*s)].load(Relaxed)).sum();
        sum / (shards.len().max(1) as u32)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_holds_over_shards_and_a_dead_one_gives_back() {
        let (a, fd) = Ledger::create().unwrap();
        let b = Ledger::open(&fd).unwrap();
        let first = a.take(Class::SmtpIn, 0, 2, 7).unwrap();
        assert!(b.take(Class::SmtpIn, 1, 2, 7).is_some());
        assert!(a.take(Class::SmtpIn, 0, 2, 0).is_none(), "third of two");
        assert!(a.take(Class::SmtpOut, 0, 2, 0).is_some(), "classes are apart");
        b.free_all_of(1);
        assert!(b.take(Class::SmtpIn, 1, 2, 0).is_some());
        a.give(first);
        assert!(b.take(Class::SmtpIn, 1, 2, 0).is_some());
        assert!(b.take_among(Class::SmtpIn, 1, 2..4, 1).is_some() && a.take_among(Class::SmtpIn, 0, 2..4, 1).is_some());
        assert!(b.take_among(Class::SmtpIn, 1, 2..4, 0).is_none() && b.take_among(Class::SmtpIn, 1, 4..4, 0).is_none());
        assert_eq!((a.taken_among(Class::SmtpIn, &(1..3)), a.taken_among(Class::SmtpIn, &(0..usize::MAX))), (2, 4));
    }
}

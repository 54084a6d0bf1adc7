//! Requests for a place that others hold.
//!
//! A path that finds a limit full posts a request, and repeats it as long as it waits. A shard
//! that holds such a place for less (`queue-priority`), idles on it, or has more than its fair
//! part lets one connection end for each request; and nobody takes a place that another asked
//! for with a better right.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::Ledger;

/// Words of a request: see [`Cell`].
pub(super) const WORDS: usize = 6;
/// The word of a request that says whose it is, and how long it lives.
const WHO: usize = 1;
/// A request lives so long without being repeated, milliseconds.
const LIVES_MS: u64 = 1_000;
/// An answer counts for so long when its connection does not end before, milliseconds.
const ANSWER_MS: u64 = 60_000;
/// After a connection ended for a request its place is not looked for elsewhere for so long.
const SETTLES_MS: u64 = 500;
const TIME_BITS: u32 = 48;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;

/// What a path waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Name of the limit, see [`super::shared_limits::key`].
    pub key: u64,
    /// `queue-priority`, 0 to 100.
    pub priority: u8,
    /// Shard of the path.
    pub shard: u8,
    /// Number of the path there.
    pub path: u32,
    /// Connections that it has.
    pub has: u32,
}

/// A request that is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The path that asks, and for what.
    pub ask: Ask,
    /// A connection is ending for it.
    pub answered: bool,
    posted_ms: u64,
    index: usize,
}

struct Cell<'a> {
    key: &'a AtomicU64,
    /// Priority, shard, alive until (milliseconds).
    who: &'a AtomicU64,
    /// Answered until, milliseconds.
    answered: &'a AtomicU64,
    /// Path, connections it has.
    path: &'a AtomicU64,
    /// Since when, milliseconds.
    posted: &'a AtomicU64,
    /// 1 when what it waits for was given back by another shard.
    woken: &'a AtomicU64,
}

impl Cell<'_> {
    fn of(words: &[AtomicU64; WORDS]) -> Cell<'_> {
        let [key, who, answered, path, posted, woken] = words;
        Cell { key, who, answered, path, posted, woken }
    }
}

impl Ledger {
    /// Cells that have been in use since the ledger was made, which are the first ones: whoever looks for a request looks at no others.
    /// Requests are looked for whenever something limited is given back, and where no limit was ever full there are none.
    fn request_cells(&self) -> &[[AtomicU64; WORDS]] {
        let used = self.requests_used().load(SeqCst) as usize;
        self.all_request_cells().get(..used).unwrap_or(self.all_request_cells())
    }

    fn all_request_cells(&self) -> &[[AtomicU64; WORDS]] {
        self.requests().as_chunks().0
    }

    fn request_cell(&self, i: usize) -> Cell<'_> {
        Cell::of(&self.all_request_cells()[i])
    }

    /// Requests that are alive.
    pub fn requests_now(&self, now_ms: i64) -> impl Iterator<Item = Request> + '_ {
        let now = now_ms as u64 & TIME_MASK;
        self.request_cells().iter().enumerate().filter_map(move |(index, words)| {
            let who = words[WHO].load(SeqCst);
            (who & TIME_MASK > now).then(|| {
                let c = Cell::of(words);
                let path = c.path.load(SeqCst);
                Request {
                    ask: Ask {
                        key: c.key.load(SeqCst),
                        priority: (who >> 56) as u8,
                        shard: (who >> TIME_BITS) as u8,
                        path: (path >> 32) as u32,
                        has: path as u32,
                    },
                    answered: c.answered.load(SeqCst) > now,
                    posted_ms: c.posted.load(SeqCst),
                    index,
                }
            })
        })
    }

    fn request_of(&self, ask: &Ask, now_ms: i64) -> Option<Request> {
        self.requests_now(now_ms).find(|r| same(&r.ask, ask))
    }

    /// Whether a request like this one is alive.
    pub fn has_asked(&self, ask: &Ask, now_ms: i64) -> bool {
        self.request_of(ask, now_ms).is_some()
    }

    /// Asks for a place, again as long as it is needed; false when the table is full and nothing is
    /// asked.
    pub fn request(&self, ask: &Ask, now_ms: i64) -> bool {
        let now = now_ms as u64 & TIME_MASK;
        let who = u64::from(ask.priority) << 56 | u64::from(ask.shard) << TIME_BITS | ((now + LIVES_MS) & TIME_MASK);
        let path = u64::from(ask.path) << 32 | u64::from(ask.has);
        if let Some(mine) = self.request_of(ask, now_ms) {
            let c = self.request_cell(mine.index);
            c.path.store(path, SeqCst);
            c.who.store(who, SeqCst);
            return true;
        }
        let take = |c: &Cell, before: u64| {
            let taken = c.who.compare_exchange(before, who, SeqCst, SeqCst).is_ok();
            if taken {
                c.key.store(ask.key, SeqCst);
                c.path.store(path, SeqCst);
                c.posted.store(now, SeqCst);
                c.answered.store(0, SeqCst);
                c.woken.store(0, SeqCst);
            }
            taken
        };
        for (i, c) in self.all_request_cells().iter().map(Cell::of).enumerate() {
            let before = c.who.load(SeqCst);
            if before & TIME_MASK > now {
                continue;
            }
            // Others have to find it from the moment that it is there.
            self.requests_used().fetch_max(i as u64 + 1, SeqCst);
            if take(&c, before) {
                return true;
            }
        }
        // All cells are taken: a request of a higher priority takes the cell of the one with the least right.
        let least = self.requests_now(now_ms).max_by_key(|r| rank(&r.ask, r.posted_ms));
        let Some(least) = least.filter(|r| r.ask.priority < ask.priority) else { return false };
        let c = self.request_cell(least.index);
        let before = c.who.load(SeqCst);
        ((before >> 56) as u8) < ask.priority && take(&c, before)
    }

    /// A path wants nothing any more; answers what it had asked for.
    pub fn withdraw_all(&self, shard: u8, path: u32, now_ms: i64) -> Vec<u64> {
        let mine = self.requests_now(now_ms).filter(|r| (r.ask.shard, r.ask.path) == (shard, path));
        mine.map(|r| {
            self.request_cell(r.index).who.store(0, SeqCst);
            r.ask.key
        })
        .collect()
    }

    /// A worker is dead: it waits for nothing.
    pub(super) fn withdraw_those_of(&self, shard: u8) {
        for c in self.request_cells().iter().map(Cell::of) {
            let who = c.who.load(SeqCst);
            if (who >> TIME_BITS) as u8 == shard {
                // Where that fails somebody else's request stands there by now.
                let _ = c.who.compare_exchange(who, 0, SeqCst, SeqCst);
            }
        }
    }

    /// The request with the best right to a free place of `key`.
    pub fn first_to_ask(&self, key: u64, now_ms: i64) -> Option<Ask> {
        let all = self.requests_now(now_ms).filter(|r| r.ask.key == key);
        all.min_by_key(|r| rank(&r.ask, r.posted_ms)).map(|r| r.ask)
    }

    /// Marks a request of another shard: what it waits for was given back. That shard finds it with [`Ledger::woken`]. Answers whether it
    /// was not marked before.
    pub fn wake(&self, ask: &Ask, now_ms: i64) -> bool {
        let marked = |r: Request| self.request_cell(r.index).woken.swap(1, SeqCst) == 0;
        self.request_of(ask, now_ms).is_some_and(marked)
    }

    /// Paths of `shard` that others told of a place since it looked last.
    pub fn woken(&self, shard: u8, now_ms: i64) -> Vec<u32> {
        let mine = self.requests_now(now_ms).filter(|r| r.ask.shard == shard);
        mine.filter(|r| self.request_cell(r.index).woken.swap(0, SeqCst) == 1).map(|r| r.ask.path).collect()
    }

    /// The place was had, or is not needed any more.
    pub fn withdraw(&self, ask: &Ask, now_ms: i64) {
        if let Some(mine) = self.request_of(ask, now_ms) {
            self.request_cell(mine.index).who.store(0, SeqCst);
        }
    }

    /// Whether somebody else has a better right to a place than `ask`: a higher priority, or
    /// fewer connections, or has asked for longer.
    pub fn others_first(&self, ask: &Ask, now_ms: i64) -> bool {
        let mine = self.request_of(ask, now_ms);
        let since = mine.map_or(now_ms as u64 & TIME_MASK, |r| r.posted_ms);
        let before = |r: &Request| r.ask.key == ask.key && !same(&r.ask, ask);
        self.requests_now(now_ms).filter(before).any(|r| rank(&r.ask, r.posted_ms) < rank(ask, since))
    }

    /// Takes it upon the caller to let a connection end for a request; false when another did.
    pub fn answer(&self, r: &Request, now_ms: i64) -> bool {
        let now = now_ms as u64 & TIME_MASK;
        let c = self.request_cell(r.index);
        let before = c.answered.load(SeqCst);
        before <= now
            && c.key.load(SeqCst) == r.ask.key
            && c.answered.compare_exchange(before, now + ANSWER_MS, SeqCst, SeqCst).is_ok()
    }

    /// The connection that was to end for a request has.
    pub fn answered(&self, r: &Request, now_ms: i64) {
        let c = self.request_cell(r.index);
        if c.key.load(SeqCst) == r.ask.key {
            c.answered.store((now_ms as u64 & TIME_MASK) + SETTLES_MS, SeqCst);
        }
    }
}

/// The least goes first: a higher priority, fewer connections, the longer wait.
fn rank(a: &Ask, since: u64) -> (std::cmp::Reverse<u8>, u32, u64) {
    (std::cmp::Reverse(a.priority), a.has, since)
}

fn same(a: &Ask, b: &Ask) -> bool {
    (a.key, a.shard, a.path) == (b.key, b.shard, b.path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::limits::LEDGER_REQUESTS;

    const T: i64 = 1_700_000_000_000;

    #[test]
    fn a_request_is_seen_by_all_answered_once_and_forgotten() {
        let (a, fd) = Ledger::create().unwrap();
        let b = Ledger::open(&fd).unwrap();
        let ask = Ask { key: 7, priority: 80, shard: 1, path: 3, has: 0 };
        a.request(&ask, T);
        a.request(&ask, T + 500);
        let r = b.requests_now(T + 900).next().unwrap();
        assert_eq!((r.ask, b.requests_now(T + 900).count()), (ask, 1));
        assert!(b.answer(&r, T + 900) && !a.answer(&r, T + 901));
        a.answered(&r, T + 1000);
        assert!(!a.answer(&r, T + 1400));
        a.request(&ask, T + 1400);
        assert!(a.answer(&r, T + 1600));
        a.withdraw(&ask, T + 1700);
        assert_eq!(b.requests_now(T + 1700).count(), 0);
        // A cell that is used again begins anew, and a request that nobody repeats ends.
        b.request(&Ask { key: 9, ..ask }, T + 2000);
        let r = a.requests_now(T + 2000).next().unwrap();
        assert_eq!((r.ask.key, r.answered), (9, false));
        assert_eq!(a.requests_now(T + 3001).count(), 0);
    }

    #[test]
    fn who_has_the_better_right() {
        let (l, _fd) = Ledger::create().unwrap();
        let ask = |path, priority, has| Ask { key: 7, priority, shard: 1, path, has };
        l.request(&ask(1, 50, 2), T);
        assert!(!l.others_first(&ask(1, 50, 2), T + 10), "not before itself");
        assert!(!l.others_first(&ask(2, 60, 5), T + 10), "priority");
        assert!(!l.others_first(&ask(2, 50, 1), T + 10), "fewer connections");
        assert!(l.others_first(&ask(2, 50, 2), T + 10), "came later");
        assert!(l.others_first(&ask(2, 40, 0), T + 10));
        assert!(!l.others_first(&Ask { key: 8, ..ask(2, 40, 0) }, T + 10));
    }

    #[test]
    fn only_cells_that_were_in_use_are_looked_at() {
        let (a, fd) = Ledger::create().unwrap();
        let b = Ledger::open(&fd).unwrap();
        let ask = |path| Ask { key: 7, priority: 50, shard: 1, path, has: 0 };
        assert_eq!(b.request_cells().len(), 0);
        for path in 0..3 {
            a.request(&ask(path), T);
            a.request(&ask(path), T + 500);
        }
        assert_eq!((b.request_cells().len(), b.requests_now(T + 900).count()), (3, 3));
        a.withdraw(&ask(0), T + 900);
        // What is free is used again, before what never was.
        b.request(&ask(3), T + 900);
        assert_eq!((a.request_cells().len(), a.requests_now(T + 900).count()), (3, 3));
    }

    #[test]
    fn when_the_line_is_full_who_may_go_before_others_stands_in_it_still() {
        let (l, _fd) = Ledger::create().unwrap();
        let ask = |path, priority| Ask { key: 7, priority, shard: (path % 2) as u8, path, has: 0 };
        assert!((0..LEDGER_REQUESTS as u32).all(|p| l.request(&ask(p, 50), T + i64::from(p % 7))));
        assert!(!l.request(&ask(1000, 50), T + 10) && !l.request(&ask(1000, 10), T + 10));
        assert_eq!(l.first_to_ask(7, T + 10), Some(ask(0, 50)), "the longest wait");
        assert!(l.request(&ask(1001, 90), T + 10));
        assert_eq!((l.first_to_ask(7, T + 10), l.first_to_ask(8, T + 10)), (Some(ask(1001, 90)), None));
        assert_eq!(l.requests_now(T + 10).count(), LEDGER_REQUESTS);
        assert_eq!(l.withdraw_all(1, 1001, T + 10), [7]);
        l.withdraw_those_of(0);
        assert!(l.requests_now(T + 10).all(|r| r.ask.shard == 1));
        assert!(l.request(&ask(1000, 10), T + 10));
    }
}

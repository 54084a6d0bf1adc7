//! Rates by name over all shards: one clock each, and what its window holds.
//!
//! A rate is a cell in a table that is probed from its name's position on. One whose clock is past by
//! more than its window says nothing any more, and its cell serves another name when no empty one
//! is left. Who takes a cell first writes its own number above the name in it: the cell is
//! claimed then, and found by nobody. It is given back where the clock moved meanwhile, or where
//! another claimed a cell for the same name. Who changes a clock looks at the name again afterwards
//! and begins anew when it was claimed in between, so that nothing is counted where nobody looks. A
//! claim whose process died is lifted by the supervisor.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use super::Ledger;
use super::shared_limits::{OWNER_SHIFT, PROBES, TAG_MASK, mixed};
use crate::limits::LEDGER_PACES;
use crate::pace::Pacing;

/// Words of a rate: name, clock, how far it runs ahead (two), what its window is complete for, the interval that its
/// clock counts by, the length of its window; a cache line.
pub(super) const WORDS: usize = 8;
const CLOCK: usize = 1;
const BEFORE: usize = 2;
const AFTER: usize = 3;
const COUNTED: usize = 4;
const INTERVAL: usize = 5;
const WINDOW: usize = 6;

/// Attempts to get a cell, or to change a clock in one that others do not claim meanwhile.
const ATTEMPTS: u32 = 64;
/// Before a cell that others claim is looked at again, nanoseconds.
const BUSY_NS: i64 = 1_000_000;
/// Before a rate without room asks for it again, nanoseconds.
const NO_ROOM_NS: i64 = 1_000_000_000;
/// A clock without a known window says something for so long after its time, nanoseconds.
const UNKNOWN_NS: i64 = 86_400 * 1_000_000_000;
/// Since when a window is complete stands above a mark of its name, in units of `1 << MARK_BITS` nanoseconds.
const MARK_BITS: u32 = 20;

/// How far the clock of a rate runs ahead of the time, nanoseconds; zeros where that is not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Ahead {
    /// So far at most when something may be taken.
    pub before_ns: i64,
    /// So far at most when it has been.
    pub after_ns: i64,
}

/// A rate as it is kept while no process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Kept {
    /// Its name, see [`super::shared_limits::key`].
    pub key: u64,
    /// Its clock, Unix nanoseconds.
    pub clock_ns: i64,
    /// How far that may run ahead.
    pub ahead: Ahead,
    /// Time that one recipient takes of the rate, picoseconds, by which [`Ledger::rescale`] knows a rate that
    /// was changed meanwhile; 0 where it is not known.
    pub interval_ps: u64,
}

/// Nothing of a rate may be taken now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// When to ask again, nanoseconds.
    pub at_ns: i64,
    /// It cannot be counted, for the table is full of rates that count.
    pub no_room: bool,
}

/// Why there is no cell.
enum Without {
    Room,
    /// Others claim it just now.
    Peace,
}

fn tag(key: u64) -> u64 {
    // Never 0, which is an empty cell's.
    (key & TAG_MASK).max(1)
}

/// Cells that a name may be in.
fn probes(tag: u64) -> impl Iterator<Item = usize> {
    (0..PROBES).map(move |i| (tag as usize).wrapping_add(i) % LEDGER_PACES)
}

impl Ledger {
    /// Claims of this process are those of `shard`: when it dies they are lifted with what else it held.
    pub fn acts_for(&self, shard: u8) {
        self.claimer.store(shard.wrapping_add(1), Relaxed);
    }

    fn word(&self, cell: usize, word: usize) -> &AtomicU64 {
        &self.paces()[WORDS * cell + word]
    }

    fn clock_at(&self, cell: usize) -> i64 {
        self.word(cell, CLOCK).load(SeqCst) as i64
    }

    /// Nothing that its clock says matters any more.
    fn is_over(&self, cell: usize) -> bool {
        let clock = self.clock_at(cell);
        let now = self.seen_ns.load(Relaxed);
        match (self.word(cell, WINDOW).load(SeqCst) as i64, self.word(cell, AFTER).load(SeqCst)) {
            // Not of a rate: a time in Unix milliseconds.
            (0, 0) => clock.saturating_mul(1_000_000) < now.saturating_sub(UNKNOWN_NS),
            (0, _) => clock < now.saturating_sub(UNKNOWN_NS),
            (window, _) => clock < now.saturating_sub(window),
        }
    }

    /// The cell of a name, a new one if it has none.
    fn cell(&self, key: u64) -> Result<usize, Without> {
        let tag = tag(key);
        let claimed = tag | u64::from(self.claimer.load(Relaxed)) << OWNER_SHIFT;
        let name = |cell: usize| self.word(cell, 0).load(SeqCst);
        for _ in 0..ATTEMPTS {
            if let Some(found) = probes(tag).find(|c| name(*c) & TAG_MASK == tag) {
                if name(found) == tag {
                    return Ok(found);
                }
                std::thread::yield_now();
                continue;
            }
            let is_free = |c: &usize| name(*c) == 0;
            let is_over = |c: &usize| name(*c) >> OWNER_SHIFT == 0 && self.is_over(*c);
            let Some(at) = probes(tag).find(is_free).or_else(|| probes(tag).find(is_over)) else {
                return Err(Without::Room);
            };
            if !self.claim_cell(at, claimed) {
                continue;
            }
            if probes(tag).any(|c| c != at && name(c) & TAG_MASK == tag) {
                self.word(at, 0).store(0, SeqCst);
                std::thread::yield_now();
                continue;
            }
            if self.word(at, 0).compare_exchange(claimed, tag, SeqCst, SeqCst).is_ok() {
                return Ok(at);
            }
        }
        Err(Without::Peace)
    }

    /// Claims a cell that is empty or over, for another name.
    fn claim_cell(&self, at: usize, claimed: u64) -> bool {
        let name = self.word(at, 0);
        let before = name.load(SeqCst);
        if before >> OWNER_SHIFT != 0 {
            return false;
        }
        let meanwhile = if before == 0 { claimed } else { before | (claimed & !TAG_MASK) };
        if name.compare_exchange(before, meanwhile, SeqCst, SeqCst).is_err() {
            return false;
        }
        if before != 0 && !self.is_over(at) {
            // A process that counted in it meanwhile looks at the name once more, finds it claimed, and counts anew; or it had looked before.
            let _ = name.compare_exchange(meanwhile, before, SeqCst, SeqCst);
            return false;
        }
        (1..WORDS).for_each(|w| self.word(at, w).store(0, SeqCst));
        name.compare_exchange(meanwhile, claimed, SeqCst, SeqCst).is_ok()
    }

    /// Lifts the claims of a dead worker.
    pub(super) fn free_claims_of(&self, shard: u8) {
        for cell in 0..LEDGER_PACES {
            let name = self.word(cell, 0).load(SeqCst);
            if name >> OWNER_SHIFT == u64::from(shard) + 1 {
                let _ = self.word(cell, 0).compare_exchange(name, name & TAG_MASK, SeqCst, SeqCst);
            }
        }
    }

    /// Does something in the cell of a name, again where that became another's meanwhile.
    fn within<R>(&self, key: u64, change: impl Fn(usize) -> R) -> Result<R, Without> {
        for _ in 0..ATTEMPTS {
            let at = self.cell(key)?;
            let answer = change(at);
            if self.word(at, 0).load(SeqCst) == tag(key) {
                return Ok(answer);
            }
        }
        Err(Without::Peace)
    }

    fn change_clock<R>(&self, at: usize, change: &impl Fn(i64) -> (i64, R)) -> R {
        let clock = self.word(at, CLOCK);
        let mut before = clock.load(SeqCst);
        loop {
            let (after, answer) = change(before as i64);
            match clock.compare_exchange(before, after as u64, SeqCst, SeqCst) {
                Ok(_) => return answer,
                Err(now) => before = now,
            }
        }
    }

    /// The clock of a rate (Unix nanoseconds); `None` when it was never used, or not for long.
    pub fn clock(&self, key: u64) -> Option<i64> {
        self.find_rate(key).map(|at| self.clock_at(at))
    }

    fn find_rate(&self, key: u64) -> Option<usize> {
        probes(tag(key)).find(|c| self.word(*c, 0).load(SeqCst) & TAG_MASK == tag(key))
    }

    /// Changes the clock of a rate (Unix nanoseconds; 0 when it was never used) by `change`,
    /// which may be asked more than once; answers what it said in the end. What its window holds is then known by the
    /// clock alone. When the table is full the clock reads 0 and is not kept.
    pub fn update_clock<R>(&self, key: u64, ahead: Ahead, change: impl Fn(i64) -> (i64, R)) -> R {
        let done = self.within(key, |at| {
            if ahead != Ahead::default() {
                self.word(at, BEFORE).store(ahead.before_ns as u64, Relaxed);
                self.word(at, AFTER).store(ahead.after_ns as u64, Relaxed);
            }
            self.word(at, COUNTED).store(0, SeqCst);
            let answer = self.change_clock(at, &change);
            self.word(at, COUNTED).store(0, SeqCst);
            answer
        });
        done.unwrap_or_else(|_| change(0).1)
    }

    /// Why nothing may be taken of a rate without a cell.
    fn refused(&self, without: &Without, now_ns: i64) -> Refused {
        match without {
            Without::Room => {
                self.no_room_ns.store(now_ns.max(1), Relaxed);
                Refused { at_ns: now_ns + NO_ROOM_NS, no_room: true }
            }
            Without::Peace => Refused { at_ns: now_ns + BUSY_NS, no_room: false },
        }
    }

    /// A rate of this process found no room since a time (nanoseconds as rates are counted by): mail of its limit waits.
    pub fn no_room_since(&self, since_ns: i64) -> bool {
        let at = self.no_room_ns.load(Relaxed);
        at > 0 && at >= since_ns
    }

    fn in_use(&self, at: usize, p: &Pacing, n: u64) {
        if self.word(at, WINDOW).load(Relaxed) != p.window_ns as u64 {
            self.word(at, WINDOW).store(p.window_ns as u64, SeqCst);
        }
        let _ = self.word(at, INTERVAL).compare_exchange(0, p.interval_ps(), SeqCst, SeqCst);
        self.word(at, BEFORE).store(p.tolerance_ns as u64, Relaxed);
        let after = p.tolerance_ns.saturating_add(p.lead_ns(n)) as u64;
        self.word(at, AFTER).fetch_max(after, Relaxed);
    }

    /// Whether the counts of its window tell all that was taken within it. Where they begin anew they do so
    /// from now on.
    fn is_counted(&self, at: usize, key: u64, p: &Pacing, now_ns: i64) -> bool {
        let mark = mixed(tag(key), p.window_ns as u64) & ((1 << MARK_BITS) - 1) | 1;
        let word = self.word(at, COUNTED);
        let known = word.load(SeqCst);
        if known & ((1 << MARK_BITS) - 1) == mark {
            return (known >> MARK_BITS) << MARK_BITS <= now_ns.saturating_sub(p.window_ns).max(0) as u64;
        }
        let is_new = p.held_by_clock(self.clock_at(at), now_ns) == 0;
        let since = if is_new { 0 } else { (now_ns.max(0) as u64 >> MARK_BITS) + 1 };
        let begun = word.compare_exchange(known, since << MARK_BITS | mark, SeqCst, SeqCst).is_ok();
        begun && is_new
    }

    /// Takes up to `want` recipients of a rate; answers how many.
    ///
    /// # Errors
    /// When to ask again, where there are none now.
    pub fn take_of_rate(&self, key: u64, p: &Pacing, want: u64, now_ns: i64) -> Result<u64, Refused> {
        self.seen_ns.fetch_max(now_ns, Relaxed);
        let done = self.within(key, |at| {
            let window = p.window(self.buckets(at), tag(key));
            // Before anything of the clock is looked at: what others take from here on is in the counts.
            let is_counted = self.is_counted(at, key, p, now_ns);
            let clock = self.clock_at(at);
            if p.by_clock(clock, now_ns) == 0 {
                self.in_use(at, p, 1);
                return Err(p.ready_at_ns(clock));
            }
            // Counted first, so that of several that come at once the last sees all.
            let mut wish = p.allowed(clock, now_ns, want, is_counted.then(|| window.held(now_ns)));
            window.add(now_ns, wish);
            let fits = is_counted && window.held(now_ns) <= p.count;
            self.in_use(at, p, wish);
            let taken = self.change_clock(at, &|now| {
                // Where another took something meanwhile by what the clock told it, the counts were looked at too early.
                let counted = (fits && now == clock).then_some(0);
                let clock = now;
                let n = p.allowed(clock, now_ns, wish, counted);
                (p.taken(clock, now_ns, n), if n == 0 { Err(p.ready_at_ns(clock)) } else { Ok(n) })
            });
            wish -= taken.unwrap_or(0);
            if wish > 0 {
                window.sub(now_ns, wish);
            }
            taken
        });
        match done {
            Ok(taken) => taken.map_err(|at_ns| Refused { at_ns, no_room: false }),
            Err(without) => Err(self.refused(&without, now_ns)),
        }
    }

    /// Whether something may be taken of a rate now.
    ///
    /// # Errors
    /// As [`Ledger::take_of_rate`].
    pub fn ready(&self, key: u64, p: &Pacing, now_ns: i64) -> Result<(), Refused> {
        self.seen_ns.fetch_max(now_ns, Relaxed);
        let clock = self.within(key, |at| {
            self.in_use(at, p, 1);
            self.clock_at(at)
        });
        let at_ns = p.ready_at_ns(clock.map_err(|w| self.refused(&w, now_ns))?);
        if at_ns > now_ns { Err(Refused { at_ns, no_room: false }) } else { Ok(()) }
    }

    /// Counts `n` of a rate that was ready, however many that are.
    pub fn count(&self, key: u64, p: &Pacing, n: u64, now_ns: i64) {
        let counted = self.within(key, |at| {
            self.in_use(at, p, n);
            self.change_clock(at, &|clock| (p.taken(clock, now_ns, n), ()));
        });
        if let Err(without) = counted {
            self.refused(&without, now_ns);
        }
    }

    /// `n` that were taken did not happen.
    pub fn give_back(&self, key: u64, p: &Pacing, n: u64, now_ns: i64) {
        if let Some(at) = self.find_rate(key).filter(|_| n > 0) {
            self.change_clock(at, &|clock| (clock.saturating_sub(p.lead_ns(n)), ()));
            p.window(self.buckets(at), tag(key)).sub(now_ns, n);
        }
    }

    /// A rate may have been changed by a reload or a restart: if it was, its clock stands for what was taken as the new
    /// one counts it.
    pub fn rescale(&self, key: u64, p: &Pacing, now_ns: i64) {
        let Some(at) = self.find_rate(key) else { return };
        let interval = self.word(at, INTERVAL);
        let before = interval.load(SeqCst);
        let is_other = before != p.interval_ps();
        if is_other && interval.compare_exchange(before, p.interval_ps(), SeqCst, SeqCst).is_ok() {
            self.change_clock(at, &|clock| (p.rescaled(clock, now_ns, before), ()));
            self.word(at, AFTER).store((p.tolerance_ns + p.lead_ns(1)) as u64, Relaxed);
        }
    }

    /// Rates whose clock is later than `since_ns` (Unix nanoseconds): what came before counts for none.
    pub fn rates(&self, since_ns: i64) -> Vec<Kept> {
        let of = |at: usize| {
            let key = self.word(at, 0).load(SeqCst) & TAG_MASK;
            let ns = |w: usize| self.word(at, w).load(SeqCst) as i64;
            (key != 0).then(|| Kept {
                key,
                clock_ns: ns(CLOCK),
                ahead: Ahead { before_ns: ns(BEFORE), after_ns: ns(AFTER) },
                interval_ps: self.word(at, INTERVAL).load(SeqCst),
            })
        };
        (0..LEDGER_PACES).filter_map(of).filter(|k| k.clock_ns > since_ns).collect()
    }

    /// Takes over a rate that was kept; one that is known by now stays where it is further ahead.
    pub fn restore(&self, kept: &Kept) {
        self.update_clock(kept.key, kept.ahead, |known| (known.max(kept.clock_ns), ()));
        if let Some(at) = self.find_rate(kept.key) {
            // One that is counted by now knows its own.
            let _ = self.word(at, INTERVAL).compare_exchange(0, kept.interval_ps, SeqCst, SeqCst);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use super::super::shared_limits::key;
    use super::*;
    use crate::rules::Rate;

    const BEGIN: i64 = 1_000_000_000_000_000_000;

    fn pacing(count: u64, ms: u64) -> Pacing {
        Pacing::of(Rate { count, per: Duration::from_millis(ms) }).unwrap()
    }

    /// The most that a window holds.
    fn densest(events: &mut [(i64, u64)], window_ns: i64) -> u64 {
        events.sort_unstable();
        let held = |i: usize| -> u64 {
            let end = events[i].0;
            events[..=i].iter().rev().take_while(|(at, _)| *at > end - window_ns).map(|(_, n)| n).sum()
        };
        (0..events.len()).map(held).max().unwrap_or(0)
    }

    #[test]
    fn a_clock_is_one_for_all() {
        let (a, fd) = Ledger::create().unwrap();
        let b = Ledger::open(&fd).unwrap();
        let (x, y) = (key("rate", "x"), key("rate", "y"));
        let ahead = Ahead { before_ns: 2, after_ns: 7 };
        assert_eq!(a.update_clock(x, ahead, |t| (t + 5, t)), 0);
        assert_eq!(b.update_clock(x, ahead, |t| (t + 5, t)), 5);
        assert_eq!(b.update_clock(y, Ahead::default(), |t| (t + 5, t)), 0);
        assert_eq!(a.update_clock(x, ahead, |t| (t, t)), 10);
        // What is kept is what still counts.
        assert_eq!(b.rates(5), [Kept { key: tag(x), clock_ns: 10, ahead, interval_ps: 0 }]);
        let (c, _fd) = Ledger::create().unwrap();
        assert_eq!(c.update_clock(x, ahead, |_| (20, 1)), 1);
        b.rates(0).iter().for_each(|k| c.restore(k));
        assert_eq!((c.clock(x), c.clock(y)), (Some(20), Some(5)));
    }

    #[test]
    fn several_are_taken_at_once_where_the_window_has_room_for_them() {
        let (a, fd) = Ledger::create().unwrap();
        let b = Ledger::open(&fd).unwrap();
        let (p, k) = (pacing(100, 1000), key("rate", "x"));
        assert_eq!(a.take_of_rate(k, &p, 60, BEGIN), Ok(60));
        let at = b.take_of_rate(k, &p, 60, BEGIN).unwrap_err().at_ns;
        assert_eq!(b.take_of_rate(k, &p, 60, at), Ok(40), "what the window has room for");
        a.give_back(k, &p, 40, at);
        assert_eq!(b.take_of_rate(k, &p, 30, at), Ok(30));
        // What a restart knows is the clock: a window that may be full takes one.
        let (c, _fd) = Ledger::create().unwrap();
        a.rates(0).iter().for_each(|k| c.restore(k));
        let ready = p.ready_at_ns(c.clock(k).unwrap());
        assert!(c.take_of_rate(k, &p, 60, ready).unwrap() <= 3);
        assert_eq!(c.take_of_rate(k, &p, 200, ready + 3_000_000_000), Ok(100));
        // Another rate counts what was taken as its own, once.
        let slower = pacing(50, 1000);
        let lead = |l: &Ledger| l.clock(k).unwrap() - ready - 3_000_000_000;
        let before = lead(&c);
        c.rescale(k, &slower, ready + 3_000_000_000);
        c.rescale(k, &slower, ready + 3_000_000_000);
        assert!(lead(&c) <= before && lead(&c) >= 1_000_000_000, "{}", lead(&c));
    }

    #[test]
    fn processes_that_take_at_once_never_have_more_than_the_rate_and_use_it() {
        let (first, fd) = Ledger::create().unwrap();
        drop(first);
        let (p, k) = (pacing(200, 100), key("rate", "x"));
        let begin = tokio::time::Instant::now();
        let now = || BEGIN + begin.elapsed().as_nanos() as i64;
        let all = Mutex::new(Vec::new());
        std::thread::scope(|s| {
            for shard in 0..4u64 {
                let ledger = Ledger::open(&fd).unwrap();
                let all = &all;
                s.spawn(move || {
                    let (mut mine, mut turn) = (Vec::new(), shard);
                    while begin.elapsed() < Duration::from_millis(1500) {
                        turn = mixed(turn, shard);
                        let want = if turn % 3 == 0 { 1 } else { turn % 250 + 1 };
                        let at = now();
                        match ledger.take_of_rate(k, &p, want, at) {
                            Ok(n) => mine.push((at, n)),
                            Err(_) => std::thread::sleep(Duration::from_micros(200)),
                        }
                    }
                    all.lock().unwrap().extend(mine);
                });
            }
        });
        let mut all = all.into_inner().unwrap();
        let sum: u64 = all.iter().map(|(_, n)| n).sum();
        assert!(densest(&mut all, p.window_ns) <= p.count, "{}", densest(&mut all, p.window_ns));
        assert!(sum > 0);
    }

    #[test]
    fn cells_of_rates_that_are_over_serve_others_and_a_full_table_lets_nothing_go() {
        let (a, _fd) = Ledger::create().unwrap();
        let p = pacing(10, 1000);
        let name = |i: usize| key("destination rate", &format!("d{i}"));
        let refused = |from: usize, now: i64| {
            (from..from + LEDGER_PACES)
                .filter(|i| a.take_of_rate(name(*i), &p, 1, now).is_err_and(|r| r.no_room))
                .count()
        };
        let without_room = refused(0, BEGIN);
        assert!(without_room > 0 && a.no_room_since(BEGIN), "{without_room}");
        assert!(refused(LEDGER_PACES, BEGIN + 500_000_000) > LEDGER_PACES / 2, "those that count are kept");
        // Ten times as many as there is room for, a window and a half apart.
        for round in 2..12 {
            let now = BEGIN + round as i64 * 3_000_000_000;
            let live = (0..1000).map(|i| name(round * LEDGER_PACES + i));
            assert_eq!(live.filter(|k| a.take_of_rate(*k, &p, 10, now) != Ok(10)).count(), 0, "{round}");
        }
    }

    #[test]
    fn a_rate_is_counted_while_others_take_cells_that_are_over() {
        let (first, fd) = Ledger::create().unwrap();
        let (p, begin) = (pacing(5, 20), tokio::time::Instant::now());
        let now = || BEGIN + begin.elapsed().as_nanos() as i64;
        // All of them begin at the same cell, so that each needs those of others.
        let name = |i: u64| 7 + (i + 1) * LEDGER_PACES as u64;
        let all = Mutex::new(Vec::new());
        std::thread::scope(|s| {
            for shard in 0..4u64 {
                let ledger = Ledger::open(&fd).unwrap();
                ledger.acts_for(shard as u8);
                let all = &all;
                s.spawn(move || {
                    let (mut mine, mut turn) = (Vec::new(), shard);
                    while begin.elapsed() < Duration::from_millis(1500) {
                        turn = mixed(turn, shard);
                        let (which, at) = (turn % 48, now());
                        match ledger.take_of_rate(name(which), &p, 1 + turn % 5, at) {
                            Ok(n) => mine.push((which, at, n)),
                            Err(_) => std::thread::sleep(Duration::from_micros(100)),
                        }
                    }
                    all.lock().unwrap().extend(mine);
                });
            }
        });
        let all = all.into_inner().unwrap();
        for which in 0..48 {
            let mut of: Vec<_> = all.iter().filter(|e| e.0 == which).map(|e| (e.1, e.2)).collect();
            assert!(densest(&mut of, p.window_ns) <= p.count, "{which}: {}", densest(&mut of, p.window_ns));
        }
        let claims = (0..LEDGER_PACES).filter(|c| first.word(*c, 0).load(SeqCst) >> OWNER_SHIFT != 0).count();
        assert_eq!(claims, 0);
        // A claim whose process died is lifted.
        let at = first.find_rate(name(0)).or_else(|| first.cell(name(0)).ok()).unwrap();
        first.word(at, 0).fetch_or(3 << OWNER_SHIFT, SeqCst);
        assert!(first.cell(name(0)).is_err());
        first.free_all_of(2);
        assert!(first.cell(name(0)).is_ok());
    }
}

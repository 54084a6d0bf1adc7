//! Who opens connections: a few tasks that take turns, and more while some take long (see [`super::slow`]).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use ipc::dice::HashSet;
use ipc::ledger::shared_limits::{key, mixed};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::connection::{Path, Waits};
use super::slow::{Openings, SLOW_MAX, Slow, all_of};
use crate::clock;
use crate::schedule::PathId;
use crate::shard::Shard;

/// Connections that are begun at once.
const OPENING_MAX: u32 = 256;
/// Or this part of the shard's share of `total-max-smtp-out`, but [`OPENING_MIN`].
const OPENING_PART: u64 = 8;
const OPENING_MIN: u32 = 4;
/// Paths that are remembered to have had a session.
const KNOWN: usize = 16_384;
/// A task that has nothing to do ends.
const IDLE: Duration = Duration::from_secs(30);
/// What found too many that take long has its turn again after so long, milliseconds, and those that did one after the other.
const TURN_AGAIN_MS: i64 = 10_000;
const TURN_EVERY_MS: i64 = 5;

/// Tasks and their work.
#[derive(Debug, Default)]
pub struct Openers {
    wanted: RefCell<VecDeque<PathId>>,
    /// Paths that want to open more and wait for others.
    line: RefCell<Line>,
    known: RefCell<Known>,
    all: Cell<u32>,
    idle: Cell<u32>,
    /// What they are at.
    pub openings: Openings,
    wake: Notify,
    /// The last turn that was given, Unix milliseconds.
    turn_ms: Cell<i64>,
}

/// Paths in line, by what is known of them.
#[derive(Debug, Default)]
struct Line {
    /// Those that had a session before.
    known: VecDeque<PathId>,
    /// Of these the newest go before the oldest in two of three turns: first come, first served thousands of silent receivers that
    /// came at once would keep everybody waiting who comes behind them.
    new: VecDeque<PathId>,
    /// Those whose last attempt failed.
    again: VecDeque<PathId>,
    turn: u8,
}

impl Line {
    fn push(&mut self, id: PathId, standing: Standing) {
        match standing {
            Standing::Known | Standing::Asks => &mut self.known,
            Standing::New => &mut self.new,
            Standing::Failed => &mut self.again,
        }
        .push_back(id);
    }

    /// Half of the turns are those of the known; a quarter each those of others.
    fn pop(&mut self) -> Option<PathId> {
        self.turn = (self.turn + 1) % 12;
        match self.turn % 4 {
            0 => self.again.pop_front().or_else(|| self.known.pop_front()).or_else(|| self.pop_new()),
            1 => self.pop_new().or_else(|| self.known.pop_front()).or_else(|| self.again.pop_front()),
            _ => self.known.pop_front().or_else(|| self.pop_new()).or_else(|| self.again.pop_front()),
        }
    }

    fn pop_new(&mut self) -> Option<PathId> {
        if self.turn % 3 == 1 { self.new.pop_front() } else { self.new.pop_back() }
    }
}

/// What is known of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It had a session before.
    Known,
    /// Nothing.
    New,
    /// Its last attempt failed.
    Failed,
    /// It has asked for a place under a limit over all shards. Whose turn that is the ledger says: in line here it would hold up those
    /// behind it there.
    Asks,
}

/// Paths that had a session, by their names' hashes: at least the last [`KNOWN`] of them.
#[derive(Debug, Default)]
struct Known {
    newer: HashSet<u64>,
    older: HashSet<u64>,
}

impl Known {
    fn insert(&mut self, path: u64) {
        if self.newer.insert(path) && self.newer.len() >= KNOWN {
            self.older = std::mem::take(&mut self.newer);
        }
    }

    fn remove(&mut self, path: u64) {
        self.newer.remove(&path);
        self.older.remove(&path);
    }

    fn has(&self, path: u64) -> bool {
        self.newer.contains(&path) || self.older.contains(&path)
    }
}

/// A path's number among the known.
fn number(p: &crate::schedule::Path) -> u64 {
    mixed(key("path", &p.destination), u64::from(p.vmta))
}

/// What a shard may open at once, and how many may take long besides. Half of its share of `total-max-smtp-out` stays free of
/// what takes long.
fn shares(shard: &Shard) -> (u32, u32) {
    let share = shard.config().global.total_max_smtp_out / shard.map.borrow().shards.len().max(1) as u64;
    let part = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    (part(share / OPENING_PART).clamp(OPENING_MIN, OPENING_MAX), part(share / 2).clamp(1, SLOW_MAX))
}

impl Openers {
    /// How many connections more may be asked for. A part of them stays free of those of which nothing good is known.
    pub fn room(&self, shard: &Shard, standing: Standing) -> u32 {
        let all = shares(shard).0;
        let most = match standing {
            Standing::Asks => OPENING_MAX,
            Standing::Known => all,
            Standing::New | Standing::Failed => all - (all / 4).max(1),
        };
        let busy = self.all.get() - self.idle.get() - self.openings.count();
        most.saturating_sub(busy + self.wanted.borrow().len() as u32)
    }

    /// What is known of a path.
    pub fn standing(&self, p: &crate::schedule::Path) -> Standing {
        match p.retry_step {
            _ if p.blocked_until_ms > clock::now_ms() => Standing::Asks,
            0 if p.connections > 0 || self.known.borrow().has(number(p)) => Standing::Known,
            0 => Standing::New,
            _ => Standing::Failed,
        }
    }

    /// A path has a session, or an attempt to get one failed.
    pub fn learn(&self, p: &crate::schedule::Path, has_session: bool) {
        let mut known = self.known.borrow_mut();
        if has_session { known.insert(number(p)) } else { known.remove(number(p)) }
    }

    /// A path that wants to open more waits for others.
    pub fn wait(&self, id: PathId, standing: Standing) {
        self.line.borrow_mut().push(id, standing);
    }

    /// The path that has its turn, when there is room for one.
    pub fn next_in_line(&self, shard: &Shard) -> Option<PathId> {
        let mut line = self.line.borrow_mut();
        match (self.room(shard, Standing::New), self.room(shard, Standing::Known)) {
            (0, 0) => None,
            (0, _) => line.known.pop_front(),
            _ => line.pop(),
        }
    }

    /// A connection of path `id` is to be opened.
    pub fn want(&self, shard: &Rc<Shard>, id: PathId) {
        self.wanted.borrow_mut().push_back(id);
        self.help(shard);
    }

    /// Wakes a task for what is wanted, or begins one.
    fn help(&self, shard: &Rc<Shard>) {
        // One that was woken or begun before and does nothing yet counts as idle.
        if self.idle.get() as usize >= self.wanted.borrow().len() {
            self.wake.notify_one();
        } else if self.all.get() - self.openings.count() < OPENING_MAX {
            self.all.set(self.all.get() + 1);
            self.idle.set(self.idle.get() + 1);
            tokio::task::spawn_local(super::connection::open_connections(Rc::clone(shard)));
        }
    }

    /// The next connection to open; `None` when the task is to end.
    pub async fn next(&self) -> Option<PathId> {
        loop {
            // Those that took the place of slow ones end when these are back.
            let surplus = self.all.get() - self.openings.count() > OPENING_MAX;
            if !surplus && let Some(id) = self.wanted.borrow_mut().pop_front() {
                self.idle.set(self.idle.get() - 1);
                return Some(id);
            }
            if surplus || timeout(IDLE, self.wake.notified()).await.is_err() {
                self.idle.set(self.idle.get() - 1);
                self.all.set(self.all.get() - 1);
                return None;
            }
        }
    }

    /// The task that had the last of [`Openers::next`] has done it.
    pub fn done(&self) {
        self.idle.set(self.idle.get() + 1);
    }

    /// Whether a connection of `path` to an address may be begun.
    pub(super) fn may_wait_at(&self, shard: &Shard, path: &Path, address: IpAddr) -> bool {
        let places = all_of(address, path.group.get());
        self.openings.may_wait(places, path.slow_at.borrow().as_ref(), shares(shard).1)
    }

    /// When a path that found too many that take long has its turn again, Unix milliseconds: however many they are, looking costs
    /// only so much.
    pub fn turn_ms(&self, now_ms: i64) -> i64 {
        let at = (self.turn_ms.get() + TURN_EVERY_MS).max(now_ms + TURN_AGAIN_MS);
        self.turn_ms.set(at);
        at
    }

    /// Whether so few take long that more may from [`super::slow::EARLY`] on.
    pub fn has_room_early(&self, shard: &Shard) -> bool {
        self.openings.count() < shares(shard).1 / 2
    }

    /// Opening takes long: as long as the answer lives the task does not count. `None` where too many take long already.
    pub(super) fn slow(&self, shard: &Rc<Shard>, path: &Path) -> Option<Slow> {
        let is_retry = shard.scheduler.borrow().paths.get(path.id).is_some_and(|p| p.retry_step > 0);
        let places = match path.waits.get() {
            Waits::At(address) => Some(all_of(address.ip(), path.group.get())),
            Waits::ForNames | Waits::ForOutcomes => None,
        };
        let slow = self.openings.enter(shard, places, is_retry, shares(shard).1)?;
        path.slow_at.replace(Some(Rc::clone(&slow.at)));
        if !self.wanted.borrow().is_empty() {
            self.help(shard);
        }
        shard.opened();
        Some(slow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_known_has_half_of_the_turns_and_everybody_some() {
        let in_line = |known: usize, new: usize, again: usize| {
            let mut line = Line::default();
            (0..known).for_each(|id| line.push(id, Standing::Known));
            (10..10 + new).for_each(|id| line.push(id, Standing::New));
            (20..20 + again).for_each(|id| line.push(id, Standing::Failed));
            std::iter::from_fn(|| line.pop()).collect::<Vec<PathId>>()
        };
        assert_eq!(in_line(4, 3, 2), [10, 0, 1, 20, 12, 2, 3, 21, 11]);
        assert_eq!(in_line(0, 6, 0), [10, 15, 14, 11, 13, 12], "two of the newest for one of the oldest");
        assert_eq!((in_line(3, 0, 0), in_line(0, 0, 3)), (vec![0, 1, 2], vec![20, 21, 22]));
    }

    #[test]
    fn the_last_that_had_a_session_are_known() {
        let mut known = Known::default();
        (0..3 * KNOWN as u64).for_each(|n| known.insert(n));
        assert!((2 * KNOWN as u64..3 * KNOWN as u64).all(|n| known.has(n)) && !known.has(0));
        assert!(known.newer.len() + known.older.len() <= 2 * KNOWN);
        known.remove(3 * KNOWN as u64 - 1);
        assert!(!known.has(3 * KNOWN as u64 - 1));
    }
}

//! Paths that wait for their turn to open connections.

use std::collections::VecDeque;

use ipc::dice::HashSet;
use ipc::ledger::shared_limits::{key, mixed};

use crate::schedule::ids::PathId;
use crate::schedule::path::Path;

/// Connections of a shard that are begun at the same time, at most.
pub const OPENING_MAX: u32 = 256;
/// At most, too, this part of the shard's share of `total-max-smtp-out`, where that is more than [`OPENING_MIN`].
const OPENING_PART: u64 = 8;
const OPENING_MIN: u32 = 4;
/// Connections of a shard whose opening may take long at the same time; each holds 17 KB.
pub const SLOW_MAX: u32 = 2048;
/// Paths that are remembered to have had a session.
const KNOWN: usize = 16_384;

/// What a shard may open at once, and how many may take long besides. Half of its share of `total-max-smtp-out` stays free of
/// what takes long.
pub fn shares(total_max_smtp_out: u64, shards: usize) -> (u32, u32) {
    let share = total_max_smtp_out / shards.max(1) as u64;
    let part = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    (part(share / OPENING_PART).clamp(OPENING_MIN, OPENING_MAX), part(share / 2).clamp(1, SLOW_MAX))
}

/// Paths in line, by what is known of them.
#[derive(Debug, Default)]
pub struct Line {
    /// Those that had a session before.
    pub(super) known: VecDeque<PathId>,
    /// Of these the newest go before the oldest in two of three turns: first come, first served thousands of silent receivers that
    /// came at once would keep everybody waiting who comes behind them.
    new: VecDeque<PathId>,
    /// Those whose last attempt failed.
    again: VecDeque<PathId>,
    turn: u8,
    /// Paths that have had a session.
    had_session: Known,
}

impl Line {
    /// A path waits for its turn.
    pub(super) fn push(&mut self, id: PathId, standing: Standing) {
        match standing {
            Standing::Known | Standing::Asks => &mut self.known,
            Standing::New => &mut self.new,
            Standing::Failed => &mut self.again,
        }
        .push_back(id);
    }

    /// The next path in line. Paths that had a session have half of the turns; those of which nothing is known, and those whose last attempt failed, have a quarter each.
    pub(super) fn pop(&mut self) -> Option<PathId> {
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

    /// A path has a session, or an attempt to get one failed.
    pub fn learn(&mut self, p: &Path, has_session: bool) {
        if has_session { self.had_session.insert(number(p)) } else { self.had_session.remove(number(p)) }
    }

    /// What is known of a path.
    pub(super) fn standing(&self, p: &Path, now_ms: i64) -> Standing {
        match p.retry_step {
            _ if p.blocked_until_ms > now_ms => Standing::Asks,
            0 if p.connections > 0 || self.had_session.has(number(p)) => Standing::Known,
            0 => Standing::New,
            _ => Standing::Failed,
        }
    }
}

/// What is known of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
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
fn number(p: &Path) -> u64 {
    mixed(key("path", &p.destination), u64::from(p.vmta))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_known_has_half_of_the_turns_and_everybody_some() {
        let in_line = |known: u32, new: u32, again: u32| {
            let mut line = Line::default();
            (0..known).for_each(|id| line.push(PathId::numbered(id), Standing::Known));
            (10..10 + new).for_each(|id| line.push(PathId::numbered(id), Standing::New));
            (20..20 + again).for_each(|id| line.push(PathId::numbered(id), Standing::Failed));
            std::iter::from_fn(|| line.pop()).map(PathId::place).collect::<Vec<u32>>()
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

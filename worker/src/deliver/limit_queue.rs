//! Paths that limits over all shards hold up, and when each asks again.

use std::cell::{Cell, RefCell};

use ipc::ledger::Ledger;

/// Pause before a limit that is reached is asked again, milliseconds.
pub const ASK_AGAIN_MS: i64 = 100;
/// A shard that waits for a place is told when another gave one back ([`ipc::mesh::PLACE_FREE`]). It looks so often by itself besides: the shard
/// that gave it back may have died before it told, milliseconds.
const LOOK_EVERY_MS: i64 = 100;
/// Time between two that ask.
const ASK_EVERY_NS: i64 = 400_000;
/// `queue-priority` where nothing is said.
const PRIORITY_DEFAULT: u64 = 50;

/// Paths that limits over all shards hold up. Those whose requests the ledger has ask again soon, or
/// as soon as what they wait for is given back; of all others, which may be very many, each looks
/// in its turn whether there is room for its request.
#[derive(Debug, Default)]
pub struct LimitQueue {
    /// The next turn, Unix nanoseconds.
    next_ns: Cell<i64>,
    woken: RefCell<Vec<u32>>,
    /// The ledger has requests of this shard until this time, Unix milliseconds.
    waits_until_ms: Cell<i64>,
}

impl LimitQueue {
    /// When a path of this `queue-priority` asks again, Unix milliseconds. Those above the default
    /// wait for nobody's turn.
    pub fn again_ms(&self, is_asked: bool, queue_priority: u64, now_ns: i64) -> i64 {
        let soon_ms = now_ns / 1_000_000 + ASK_AGAIN_MS;
        if is_asked || queue_priority > PRIORITY_DEFAULT {
            return soon_ms;
        }
        let turn_ns = self.next_ns.get().max(now_ns);
        self.next_ns.set(turn_ns + ASK_EVERY_NS);
        soon_ms.max(turn_ns / 1_000_000)
    }

    /// Places of paths for which something was given back, by this shard or another.
    pub fn woken(&self, ledger: &Ledger, shard: u8, now_ms: i64) -> Vec<u32> {
        let mut all = std::mem::take(&mut *self.woken.borrow_mut());
        if self.look_again_ms(now_ms).is_some() {
            all.extend(ledger.woken(shard, now_ms));
        }
        all
    }

    /// When what others give back is to be looked for again, if something is waited for; Unix milliseconds.
    pub fn look_again_ms(&self, now_ms: i64) -> Option<i64> {
        (self.waits_until_ms.get() > now_ms).then_some(now_ms + LOOK_EVERY_MS)
    }

    /// Something that the path at this place waits for was given back in this shard.
    pub fn wake(&self, place: u32) {
        self.woken.borrow_mut().push(place);
    }

    /// The ledger has a request of this shard until a time, Unix milliseconds.
    pub fn waits_until(&self, ms: i64) {
        self.waits_until_ms.set(ms);
    }
}

#[cfg(test)]
mod tests {
    use ipc::rules::DomainRules;

    use super::*;

    #[test]
    fn those_whose_requests_find_no_room_look_again_in_turn() {
        assert_eq!(PRIORITY_DEFAULT, DomainRules::default().queue_priority);
        let (queue, now) = (LimitQueue::default(), 5_000_000);
        let turns: Vec<i64> =
            (0..10_000).map(|_| queue.again_ms(false, PRIORITY_DEFAULT, now * 1_000_000) - now).collect();
        assert!((99..=200).contains(&turns[0]) && (99..=300).contains(&turns[250]), "{} {}", turns[0], turns[250]);
        assert!(turns.is_sorted() && (3_900..5_000).contains(&turns[9_999]), "{}", turns[9_999]);
        assert!(queue.again_ms(false, 51, now * 1_000_000) - now < 1_000, "urgent mail waits for nobody");
        assert!(queue.again_ms(true, 0, now * 1_000_000) - now < 1_000, "a request lives for a second");
    }
}

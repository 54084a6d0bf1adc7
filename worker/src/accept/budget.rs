//! How the memory for messages that are being received is shared between clients and shards.

use std::cell::{Cell, RefCell};

use ipc::dice::HashMap;
use ipc::network::Network;

/// What one client is sending to this shard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Client {
    pub bytes: u64,
    pub messages: u64,
}

/// What this shard is receiving.
#[derive(Debug, Default)]
pub struct Receiving {
    pub(super) bytes: Cell<u64>,
    /// The most since there was nothing.
    pub(super) most: Cell<u64>,
    pub(super) clients: RefCell<HashMap<Option<Network>, Client>>,
}

/// The budget as one session sees it, bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    /// Of all shards; 0 for none.
    pub of_all: u64,
    /// What others are holding, in all shards, the client's other sessions included.
    pub others: u64,
    pub shards: u64,
}

impl Budget {
    /// The largest message that it ever has room for.
    pub fn largest(of_all: u64) -> u64 {
        if of_all == 0 { u64::MAX } else { of_all - of_all / 8 }
    }

    /// Whether one message of a client that has these others may have so many bytes.
    pub fn has_room(&self, bytes: u64, own: Client) -> bool {
        let Some(free) = self.of_all.checked_sub(self.others.saturating_add(bytes)) else { return self.of_all == 0 };
        let is_alone = own.messages == 0 && self.others + bytes <= Self::largest(self.of_all);
        is_alone || (own.bytes + bytes).saturating_mul(self.shards) <= free
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MB: u64 = 1 << 20;

    #[test]
    fn one_client_leaves_room_for_others() {
        let budget = |others| Budget { of_all: 64 * MB, others, shards: 1 };
        let own = |messages, bytes| Client { bytes, messages };
        assert!(budget(0).has_room(56 * MB, own(0, 0)) && !budget(0).has_room(57 * MB, own(0, 0)));
        // With others of its own it gets half.
        assert!(budget(20 * MB).has_room(12 * MB, own(1, 20 * MB)));
        assert!(!budget(20 * MB).has_room(13 * MB, own(1, 20 * MB)));
        // Another client takes its part of the rest, and a third one of what is left then.
        assert!(budget(32 * MB).has_room(16 * MB, own(1, 0)) && budget(48 * MB).has_room(8 * MB, own(1, 0)));
        assert!(Budget { of_all: 0, others: 1 << 50, shards: 1 }.has_room(1 << 30, own(9, 1 << 40)));
    }

    proptest! {
        /// Clients that take all they can, in any order: the budget holds, and whoever is new still gets something.
        #[test]
        fn the_budget_holds_whoever_takes(steps in proptest::collection::vec((0usize..12, 0usize..4, 1u64..30), 0..300), shards in 1u64..5) {
            let of_all = 64 * MB;
            let mut held = [[0u64; 4]; 12];
            for (client, message, more) in steps {
                let others = held.iter().flatten().sum::<u64>() - held[client][message];
                let mut rest = held[client];
                rest[message] = 0;
                let own = Client { bytes: rest.iter().sum(), messages: rest.iter().filter(|b| **b > 0).count() as u64 };
                let bytes = held[client][message] + more * MB;
                if (Budget { of_all, others, shards }).has_room(bytes, own) {
                    held[client][message] = bytes;
                }
                let all: u64 = held.iter().flatten().sum();
                prop_assert!(all <= of_all);
                prop_assert!(Budget { of_all, others: all, shards }.has_room(100 << 10, Client::default()), "{all}");
            }
        }
    }
}

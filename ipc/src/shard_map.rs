//! Which shard owns a destination.

use rkyv::{Archive, Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Epoch and configured shards. A shard that is down keeps its destinations.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct ShardMap {
    /// Grows by one with each change of `shards`.
    pub epoch: u64,
    /// Shard numbers, ascending.
    pub shards: Vec<u8>,
    /// The shards of the epoch before; empty when there was none. Destinations that moved
    /// are released by those that owned them.
    pub previous: Vec<u8>,
}

impl ShardMap {
    /// The shard that owns `destination` in this epoch.
    ///
    /// Rendezvous hash: adding one shard to `n` moves about `1/(n+1)` of the destinations,
    /// all of them to the newcomer. Every process that holds the same epoch gives the same
    /// answer. An empty map (never published) owns nothing and answers shard 0.
    pub fn owner(&self, destination: &str) -> u8 {
        highest(&self.shards, destination).unwrap_or(0)
    }

    /// The shard that owned `destination` in the epoch before, if there was one.
    pub fn owner_before(&self, destination: &str) -> Option<u8> {
        highest(&self.previous, destination)
    }

    /// The map that follows this one, of `workers` shards.
    pub fn next(&self, workers: u8) -> ShardMap {
        ShardMap { epoch: self.epoch + 1, shards: (0..workers).collect(), previous: self.shards.clone() }
    }
}

fn highest(shards: &[u8], destination: &str) -> Option<u8> {
    // What rolls up to one queue has one owner.
    let destination = crate::message::queue_part(destination);
    let score = |s: u8| xxh3_64_with_seed(destination.as_bytes(), 0x5_1u64 << 8 | u64::from(s));
    shards.iter().copied().max_by_key(|s| score(*s))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(n: u8) -> ShardMap {
        ShardMap { epoch: 1, shards: (0..n).collect(), previous: Vec::new() }
    }

    #[test]
    fn growing_moves_a_fair_share_and_only_to_the_newcomer() {
        let (before, after) = (map(3), map(4));
        let mut moved = 0;
        for i in 0..4000 {
            let d = format!("d{i}.example");
            if before.owner(&d) != after.owner(&d) {
                assert_eq!(after.owner(&d), 3);
                moved += 1;
            }
        }
        assert!((800..1200).contains(&moved), "a quarter should move, {moved} of 4000 did");
    }

    proptest! {
        #[test]
        fn the_owner_is_one_of_the_shards(d in "[a-z]{1,20}", n in 1u8..40) {
            prop_assert!(map(n).shards.contains(&map(n).owner(&d)));
        }
    }
}

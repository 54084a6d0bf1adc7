//! Which shards own a destination.

use rkyv::{Archive, Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::layers::pattern_matches;

/// Epoch and configured shards. A shard that is down keeps its destinations.
#[derive(Debug, Clone, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct ShardMap {
    /// Grows by one with each change of `shards` or `spread`.
    pub epoch: u64,
    /// Shard numbers, ascending.
    pub shards: Vec<u8>,
    /// The shards of the epoch before; empty when there was none. Destinations that moved
    /// are released by those that owned them.
    pub previous: Vec<u8>,
    /// Destinations that several shards own, the pattern that counts first.
    pub spread: Vec<Spread>,
    /// Those of the epoch before.
    pub previous_spread: Vec<Spread>,
    /// Shards that are there and have no part in `shards`: they come, or leave. One that is in neither is gone, and has nothing.
    /// It changes within an epoch.
    pub without_part: Vec<u8>,
    /// Shards that may have connections since an epoch before the last one, to any destination: this map was made while it was not known that
    /// they had released all that moved.
    pub unreleased: Vec<u8>,
}

/// `spread` of the destinations that a pattern matches.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Spread {
    /// As a `<domain>` names them.
    pub pattern: String,
    /// How many shards own each; 0 is `auto`: one, until the supervisor finds it too hot.
    pub over: u8,
}

/// The shards that own one destination, in an epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owners(Vec<u8>);

impl Owners {
    /// Whether a shard is one of them.
    pub fn contains(&self, shard: u8) -> bool {
        self.0.contains(&shard)
    }

    /// There are several: limits of its paths are counted in the ledger.
    pub fn is_spread(&self) -> bool {
        self.0.len() > 1
    }

    /// The numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u8> + '_ {
        self.0.iter().copied()
    }
}

impl ShardMap {
    /// The first map of a server with `workers` shards.
    pub fn first(workers: u8, spread: Vec<Spread>) -> ShardMap {
        ShardMap { epoch: 1, shards: (0..workers).collect(), spread, ..ShardMap::default() }
    }

    /// The shard that owns `destination` in this epoch; of several the first, which decides
    /// what one has to.
    ///
    /// Rendezvous hash: adding one shard to `n` moves about `1/(n+1)` of the destinations,
    /// all of them to the newcomer. Every process that holds the same epoch gives the same
    /// answer. An empty map (never published) owns nothing and answers shard 0.
    pub fn owner(&self, destination: &str) -> u8 {
        highest(&self.shards, destination).unwrap_or(0)
    }

    /// All shards that own `destination` in this epoch.
    pub fn owners(&self, destination: &str) -> Owners {
        owners(&self.shards, &self.spread, destination)
    }

    /// Those of the epoch before; none if there was none.
    pub fn owners_before(&self, destination: &str) -> Owners {
        owners(&self.previous, &self.previous_spread, destination)
    }

    /// The owner that takes one message to `destination`; `turn` grows with each message, so
    /// that several owners take the same share.
    pub fn taker(&self, destination: &str, turn: u64) -> u8 {
        match over(&self.spread, destination) {
            0 | 1 => self.owner(destination),
            _ => {
                let Owners(all) = self.owners(destination);
                all.get((turn % all.len().max(1) as u64) as usize).copied().unwrap_or(0)
            }
        }
    }

    /// Whether one of the shards owns `destination`.
    pub fn is_owner(&self, destination: &str, shard: u8) -> bool {
        match over(&self.spread, destination) {
            0 | 1 => self.owner(destination) == shard,
            _ => self.owners(destination).contains(shard),
        }
    }

    /// Whether a shard serves, or will be back: what it was offered it may have.
    pub fn has(&self, shard: u8) -> bool {
        self.shards.contains(&shard) || self.without_part.contains(&shard)
    }

    /// This map as shards are given it, where these shards are there.
    #[must_use]
    pub fn among(mut self, there: impl IntoIterator<Item = u8>) -> ShardMap {
        self.without_part = there.into_iter().filter(|shard| !self.shards.contains(shard)).collect();
        self
    }

    /// The map that follows this one, in which every shard has released what moved; before it is known who has no part in it.
    pub fn next(&self, workers: u8, spread: Vec<Spread>) -> ShardMap {
        ShardMap {
            epoch: self.epoch + 1,
            shards: (0..workers).collect(),
            previous: self.shards.clone(),
            spread,
            previous_spread: self.spread.clone(),
            without_part: Vec::new(),
            unreleased: Vec::new(),
        }
    }

    /// The map of a supervisor that is configured as this one says, and adopts shards that have `found` in force. Shards that were scaled while they ran
    /// go by the configuration again; connections of before may still be open then.
    pub fn adopting(&self, found: &ShardMap) -> ShardMap {
        if (&found.shards, &found.spread) == (&self.shards, &self.spread) {
            return found.clone();
        }
        found.next_unsettled(self.shards.len() as u8, self.spread.clone())
    }

    /// The map that follows this one, of which it is not known whether shards still have connections to what it took from them.
    pub fn next_unsettled(&self, workers: u8, spread: Vec<Spread>) -> ShardMap {
        let mut unreleased = [&self.previous[..], &self.unreleased].concat();
        unreleased.sort_unstable();
        unreleased.dedup();
        ShardMap { unreleased, ..self.next(workers, spread) }
    }
}

/// Over how many shards a destination is spread, as written.
pub fn over(spread: &[Spread], destination: &str) -> u8 {
    if spread.is_empty() {
        return 1;
    }
    let destination = crate::message::queue_part(destination);
    spread.iter().find(|s| pattern_matches(&s.pattern, destination)).map_or(1, |s| s.over)
}

fn score(shard: u8, destination: &str) -> u64 {
    xxh3_64_with_seed(destination.as_bytes(), 0x5_1u64 << 8 | u64::from(shard))
}

fn highest(shards: &[u8], destination: &str) -> Option<u8> {
    // What rolls up to one queue has one owner.
    let destination = crate::message::queue_part(destination);
    shards.iter().copied().max_by_key(|s| score(*s, destination))
}

fn owners(shards: &[u8], spread: &[Spread], destination: &str) -> Owners {
    let n = usize::from(over(spread, destination)).max(1);
    if n == 1 {
        return Owners(highest(shards, destination).into_iter().collect());
    }
    let destination = crate::message::queue_part(destination);
    let mut all = shards.to_vec();
    all.sort_by_key(|s| std::cmp::Reverse(score(*s, destination)));
    all.truncate(n);
    all.sort_unstable();
    Owners(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(n: u8) -> ShardMap {
        ShardMap::first(n, Vec::new())
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

    #[test]
    fn the_first_pattern_that_matches_counts_and_a_queue_spreads_with_all_that_roll_up_to_it() {
        let one = |p: &str, over| Spread { pattern: p.into(), over };
        let m = ShardMap::first(4, vec![one("hot.test", 3), one("*.test", 2), one("*", 0)]);
        let count = |d: &str| m.owners(d).iter().count();
        assert_eq!([count("hot.test"), count("a.test"), count("a.example")], [3, 2, 1]);
        assert_eq!(m.owners("hot.test/other.example"), m.owners("hot.test"));
        let takers: Vec<u8> = (0..6).map(|turn| m.taker("hot.test", turn)).collect();
        assert_eq!(takers[..3], takers[3..]);
        assert!(m.owners("hot.test").iter().eq(takers[..3].iter().copied()));
    }

    #[test]
    fn whoever_may_have_connections_is_named_until_all_are_released() {
        let first = map(4);
        let second = first.next(1, Vec::new());
        let adopted = map(2).adopting(&second);
        assert_eq!((adopted.epoch, &adopted.previous, &adopted.unreleased), (3, &vec![0], &vec![0, 1, 2, 3]));
        let again = map(3).adopting(&adopted);
        assert_eq!((&again.previous, &again.unreleased), (&vec![0, 1], &vec![0, 1, 2, 3]));
        assert!(again.next(3, Vec::new()).unreleased.is_empty());
        assert_eq!(map(1).adopting(&second), second, "as it is configured");
    }

    proptest! {
        #[test]
        fn owners_are_some_of_the_shards_and_the_first_is_among_them(
            d in "[a-z]{1,20}", n in 1u8..40, spread in 0u8..50,
        ) {
            let m = ShardMap::first(n, vec![Spread { pattern: "*".into(), over: spread }]);
            let all = m.owners(&d);
            prop_assert_eq!(all.iter().count(), usize::from(spread.clamp(1, n)));
            prop_assert!(all.contains(m.owner(&d)) && all.iter().all(|s| m.is_owner(&d, s) && s < n));
            prop_assert!(all.contains(m.taker(&d, 12345)));
        }
    }
}

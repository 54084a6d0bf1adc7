//! Which destinations are too hot for one shard, by the load of all shards, and over how many shards each is spread.

use std::collections::BTreeMap;

use ipc::shard_map::{Spread, over};

/// A destination is spread when so many looks in a row find it too hot.
const LOOKS: u32 = 2;
/// From this share of the time with work on, in a thousand, a shard counts as full.
const BUSY: u32 = 850;
/// Up to this share of the time with work, in a thousand, a shard has time for others' mail.
const IDLE: u32 = 600;
/// From this share of a full shard's mail on, in a thousand, a destination is what makes the shard full.
const HOT: u32 = 400;

/// Destinations that `spread auto` has spread, and those that it watches.
#[derive(Debug, Default)]
pub struct Automatic {
    /// Over how many shards each destination is spread, where it is more than one.
    over: BTreeMap<String, u8>,
    /// How many looks in a row found each destination too hot.
    hot: BTreeMap<String, u32>,
}

impl Automatic {
    /// Counts one look at the load; answers the destination that is to be spread over one shard more, if there is one.
    pub fn look(&mut self, load: &[Load], configured: &[Spread]) -> Option<String> {
        let workers = load.len();
        let idlest = load.iter().map(|l| l.busy).min().unwrap_or(u32::MAX);
        let mut hot = BTreeMap::new();
        for (destination, share) in load.iter().filter(|l| l.busy >= BUSY).filter_map(|l| l.hottest.clone()) {
            let more = usize::from(self.over.get(&destination).copied().unwrap_or(1)) < workers;
            if share >= HOT && more && idlest <= IDLE && over(configured, &destination) == 0 {
                let looks = self.hot.get(&destination).map_or(1, |n| n + 1);
                hot.insert(destination, looks);
            }
        }
        let found = hot.iter().find(|(_, looks)| **looks >= LOOKS).map(|(d, _)| d.clone());
        self.hot = if found.is_some() { BTreeMap::new() } else { hot };
        if let Some(d) = &found {
            let n = self.over.entry(d.clone()).or_insert(1);
            *n = n.saturating_add(1);
        }
        found
    }

    /// The configured patterns, and before them what was found for single destinations.
    pub fn all(&self, configured: &[Spread]) -> Vec<Spread> {
        let is_auto = |d: &&String| over(configured, d) == 0;
        let found = self.over.iter().filter(|(d, _)| is_auto(d));
        let found = found.map(|(d, n)| Spread { pattern: d.clone(), over: *n });
        found.chain(configured.iter().cloned()).collect()
    }
}

/// The load of one shard.
pub struct Load {
    /// Share of the time in which it has work, in a thousand.
    pub busy: u32,
    /// The destination with the largest part of its mail, and that part in a thousand.
    pub hottest: Option<(String, u32)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(busy: u32, hottest: Option<(&str, u32)>) -> Load {
        Load { busy, hottest: hottest.map(|(d, n)| (d.to_owned(), n)) }
    }

    #[test]
    fn what_is_too_hot_twice_is_spread_and_nothing_else() {
        let one = |pattern: &str, over| Spread { pattern: pattern.into(), over };
        let configured = vec![one("hot.test", 0), one("fixed.test", 2)];
        let mut a = Automatic::default();
        let hot = || [load(950, Some(("hot.test", 900))), load(100, None), load(100, None)];
        assert_eq!(a.look(&hot(), &configured), None);
        assert_eq!(a.look(&[load(100, None), load(100, None), load(100, None)], &configured), None);
        assert_eq!(a.look(&hot(), &configured), None);
        assert_eq!(a.look(&hot(), &configured).as_deref(), Some("hot.test"));
        assert_eq!(a.all(&configured)[0], one("hot.test", 2));
        for (d, share) in [("fixed.test", 900), ("other.test", 900), ("hot.test", 100)] {
            let l = || [load(950, Some((d, share))), load(100, None)];
            assert_eq!((a.look(&l(), &configured), a.look(&l(), &configured)), (None, None), "{d}");
        }
        let full = || [load(950, Some(("hot.test", 900))), load(900, Some(("hot.test", 900)))];
        assert_eq!((a.look(&full(), &configured), a.look(&full(), &configured)), (None, None));
        // A reload that says otherwise counts.
        assert_eq!(a.all(&[one("hot.test", 1)]), [one("hot.test", 1)]);
    }
}

//! Over how many shards destinations are spread: as configured, and for `auto` as the load asks.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use ipc::shard_map::{Spread, over};

use super::Supervisor;

/// Time between two looks at the shards' load.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Looks in a row that must find a destination too hot.
const LOOKS: u32 = 2;
/// A shard that has work for so much of the time has no more to give, in a thousand.
const BUSY: u32 = 850;
/// A shard with no more has time for others' mail, in a thousand.
const IDLE: u32 = 600;
/// A destination with less of its shard's mail is not what makes it busy, in a thousand.
const HOT: u32 = 400;
/// How long the release of destinations may take before a new map waits no longer for it.
const SETTLE_WAIT: Duration = Duration::from_secs(600);

/// What `spread auto` came to.
#[derive(Debug, Default)]
pub struct Automatic {
    /// Shards by destination, where more than one.
    over: BTreeMap<String, u8>,
    /// Looks in a row that found a destination too hot.
    hot: BTreeMap<String, u32>,
}

impl Automatic {
    /// Counts a look, and answers the destination that another shard is to take part in.
    fn look(&mut self, load: &[Load], configured: &[Spread]) -> Option<String> {
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
    fn all(&self, configured: &[Spread]) -> Vec<Spread> {
        let is_auto = |d: &&String| over(configured, d) == 0;
        let found = self.over.iter().filter(|(d, _)| is_auto(d));
        let found = found.map(|(d, n)| Spread { pattern: d.clone(), over: *n });
        found.chain(configured.iter().cloned()).collect()
    }
}

/// One shard's.
struct Load {
    busy: u32,
    hottest: Option<(String, u32)>,
}

impl Supervisor {
    /// Puts what the configuration says now in force; one change of the shard map at a time.
    pub(super) async fn spread_anew(self: Rc<Self>) {
        let wanted = |s: &Self| s.automatic.borrow().all(&s.compiled.borrow().spread);
        if wanted(&self) == self.map.borrow().spread {
            return;
        }
        if !self.until(SETTLE_WAIT, Self::settled).await {
            tracing::warn!("destinations of the last change of the shard map are still being released");
        }
        let (spread, workers) = (wanted(&self), self.map.borrow().shards.len() as u8);
        if spread != self.map.borrow().spread {
            tracing::info!(?spread, "destinations are spread over shards");
            self.publish_map(workers, spread);
        }
    }

    /// Spreads destinations of `spread auto` over more shards while one is too hot for those
    /// that it has.
    pub(super) async fn watch_load(self: Rc<Self>) {
        while !self.stopping.get() {
            tokio::time::sleep(LOOK_EVERY).await;
            let load: Vec<Load> = {
                let workers = self.map.borrow().shards.len();
                let slots = self.slots.borrow();
                let of = |b: &ipc::control::Heartbeat| Load { busy: b.busy_permille, hottest: b.hottest.clone() };
                slots.iter().filter(|s| usize::from(s.number) < workers).map(|s| of(&s.heartbeat)).collect()
            };
            let found = self.automatic.borrow_mut().look(&load, &self.compiled.borrow().spread);
            if let Some(destination) = found {
                tracing::warn!(destination, "one shard more takes part in a destination that is too hot (spread auto)");
                Rc::clone(&self).spread_anew().await;
            }
        }
    }
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

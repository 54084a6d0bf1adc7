//! Which destinations are this shard's to deliver, by the map of shards and by what their owners before have released.

use std::rc::Rc;

use ipc::dice::{HashMap, HashSet};
use ipc::ledger::Ledger;
use ipc::shard_map::ShardMap;

use super::now::Now;
use crate::schedule::path::Path;
use crate::schedule::spread_path;

/// The map in force, and the shards that have not released what moved to this one.
#[derive(Debug)]
pub struct Ownership {
    pub(super) number: u8,
    map: Rc<ShardMap>,
    /// Shards that owned something before, and have not released everything: their destinations that
    /// have connections still, or `None` while they have not answered.
    pub(super) outstanding: HashMap<u8, Option<HashSet<String>>>,
    /// Shards that had not released everything when this epoch began; `None` where this process did not see the one before to its end.
    asked_before: Option<HashSet<u8>>,
}

impl Ownership {
    /// Nothing is asked of anybody yet.
    pub fn new(number: u8, map: Rc<ShardMap>) -> Ownership {
        Ownership { number, map, outstanding: HashMap::default(), asked_before: None }
    }

    /// The map in force.
    pub fn map(&self) -> &Rc<ShardMap> {
        &self.map
    }

    /// Another map is in force.
    pub fn set_map(&mut self, map: Rc<ShardMap>) {
        if map.epoch > self.map.epoch {
            let is_next = map.epoch == self.map.epoch + 1;
            self.asked_before = is_next.then(|| self.outstanding.keys().copied().collect());
        }
        self.map = map;
    }

    fn released(&self, mut owners_before: impl Iterator<Item = u8>, destination: &str) -> bool {
        owners_before.all(|o| match self.outstanding.get(&o) {
            None => true,
            Some(None) => false,
            Some(Some(busy)) => !busy.contains(destination),
        })
    }

    /// Shards that may have connections to what is this shard's now.
    pub(super) fn to_ask(&self) -> Vec<u8> {
        let mut all = [&self.map.previous[..], &self.map.unreleased].concat();
        all.sort_unstable();
        all.dedup();
        all.retain(|s| *s != self.number);
        all
    }

    /// Whether a path is this shard's to deliver. A path whose connections the ledger counts under both maps needs no
    /// release: its limits hold whichever shard has the connections.
    fn may_deliver(&self, p: &Path) -> bool {
        let map = &self.map;
        if !map.is_owner(&p.destination, self.number) {
            return false;
        }
        if map.previous.is_empty() {
            return true;
        }
        let (before, now) = (map.owners_before(&p.destination), map.owners(&p.destination));
        if p.spread.is_some() != now.is_spread() && p.connections + p.connecting > 0 {
            return false;
        }
        // What was this shard's before, and released to it by then, waits for nobody.
        let may_have =
            |s: &u8| !before.contains(self.number) || self.asked_before.as_ref().is_none_or(|a| a.contains(s));
        if !self.released(map.unreleased.iter().copied().filter(may_have), &p.destination) {
            return false;
        }
        if before.is_spread() && now.is_spread() {
            return true;
        }
        self.released(before.iter(), &p.destination)
    }

    /// Holds a path that is not this shard's to deliver, and lets go one that is.
    pub(super) fn update(&self, ledger: &Ledger, p: &mut Path, new: bool, now: Now) {
        p.held = !self.may_deliver(p);
        if !p.held {
            let is_spread = self.map.owners(&p.destination).is_spread();
            spread_path::take_regime(ledger, p, is_spread, new, now.ms());
        }
    }

    /// Whether connections of the path keep a shard that claims its destination waiting. Connections that this shard opened as one of the
    /// present owners are not in the way.
    pub(super) fn is_in_the_way(&self, p: &Path, claimant: u8) -> bool {
        p.connections + p.connecting > 0 && self.concerns(p, claimant) && !self.stays(p)
    }

    /// Whether the shard that claims a path's destination has use for what is known of the path.
    pub(super) fn concerns(&self, p: &Path, claimant: u8) -> bool {
        let (before, owners) = (self.map.owners_before(&p.destination), self.map.owners(&p.destination));
        // Of an epoch before the last one nobody knows whether the ledger counted its connections.
        let is_counted = before.is_spread() && owners.is_spread() && self.map.unreleased.is_empty();
        owners.contains(claimant) && !is_counted
    }

    /// Whether this shard may keep the path's connections under the map in force.
    pub(super) fn stays(&self, p: &Path) -> bool {
        let owners = self.map.owners(&p.destination);
        owners.contains(self.number) && p.spread.is_some() == owners.is_spread()
    }
}

//! What changes with the map of shards: paths are held until their owners before have released them.

use std::rc::Rc;

use super::action::Action;
use super::inherited::assume_in_use;
use super::now::Now;
use super::state::Engine;
use crate::schedule::ids::PathId;
use crate::schedule::message::HeldContent;
use crate::schedule::path::Path;
use crate::schedule::spread_path;

impl<C: HeldContent> Engine<C> {
    /// A connection of a path that is held has ended, which may have been the reason to hold it. Answers whether the path may go on.
    pub(super) fn is_released(&mut self, id: PathId, now: Now) -> bool {
        let Some(p) = self.scheduler.paths.get_mut(id) else { return false };
        self.ownership.update(&self.ledger, p, false, now);
        !p.held
    }

    /// Another map is in force: holds the paths that other shards have to release, and answers the shards that are to be asked.
    pub fn begins_epoch(&mut self, now: Now) -> Vec<u8> {
        let o = &mut self.ownership;
        let before = o.to_ask();
        o.outstanding = before.iter().map(|s| (*s, None)).collect();
        self.hold_and_free(now);
        before
    }

    /// A shard that was asked has answered: it still has connections to these destinations, and answers again when they end.
    pub fn released(&mut self, owner: u8, busy: Vec<String>, now: Now) {
        match busy.is_empty() {
            true => self.ownership.outstanding.remove(&owner),
            false => self.ownership.outstanding.insert(owner, Some(busy.into_iter().collect())),
        };
        self.hold_and_free(now);
    }

    /// A shard that was asked has no process, so it has no connections. It may have sent until a moment ago.
    pub fn owner_is_gone(&mut self, owner: u8, now: Now) {
        let map = Rc::clone(self.ownership.map());
        for (_, p) in self.scheduler.paths.iter_mut() {
            let before = map.owners_before(&p.destination);
            // What shards sent to a destination that is spread, the ledger knows.
            if before.contains(owner) && !before.is_spread() {
                assume_in_use(p, now);
                spread_path::publish(&self.ledger, p);
            }
        }
        self.ownership.outstanding.remove(&owner);
        self.hold_and_free(now);
    }

    /// Holds the queues that are not this shard's to deliver, and frees the others.
    fn hold_and_free(&mut self, now: Now) {
        let mut freed = Vec::new();
        for (id, p) in self.scheduler.paths.iter_mut() {
            let was_held = p.held;
            self.ownership.update(&self.ledger, p, false, now);
            if p.held {
                self.actions.push(Action::WakeAll(id));
            } else if was_held {
                freed.push(id);
            }
        }
        self.act(Action::LookForForeign);
        for id in freed {
            self.pump(id, now);
        }
    }

    /// Destinations whose connections keep a shard that claims them waiting.
    pub fn busy_for(&self, claimant: u8) -> impl Iterator<Item = &str> {
        let all = self.scheduler.paths.iter().filter(move |(_, p)| self.ownership.is_in_the_way(p, claimant));
        all.map(|(_, p)| &*p.destination)
    }

    /// This shard holds no connection of a destination that it does not own, and nothing is
    /// kept from it: the scaling of this epoch is over as far as it is concerned.
    pub fn is_settled(&self) -> bool {
        let o = &self.ownership;
        if o.map().previous.is_empty() {
            return true;
        }
        let is_settled = |p: &Path| p.connections + p.connecting == 0 || o.stays(p);
        o.outstanding.is_empty() && self.scheduler.paths.iter().all(|(_, p)| is_settled(p))
    }
}

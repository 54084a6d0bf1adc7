//! A client's place under `total-max-smtp-in` and the limits of its group, address and network.

use std::cell::RefCell;
use std::net::IpAddr;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use ipc::ledger::shared_limits::key;
use ipc::ledger::{Class, Place, Slot};
use ipc::network::Network;
use ipc::rules::SourceRules;
use tokio::time::Instant;

use super::places::NoPlace;
use super::strangers::Stranger;
use crate::shard::Shard;
use crate::tasks;

/// A network has so many times those of an address.
const ADDRESSES_PER_NETWORK: u64 = 2;
/// What places under the limit of a group are named for.
const GROUP: &str = "source-group";
/// How often a shard that has strangers looks whether places are scarce.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A client that was told to make room still counts for its address and network for so long. Otherwise it could come back at once
/// and take the place again.
const AWAY: Duration = Duration::from_secs(10);

/// A client's place; given back when it is dropped.
pub struct ClientPlace {
    shard: Rc<Shard>,
    slot: Option<Slot>,
    /// Its group, empty for none, and the place that it has under the group's limit.
    of_group: RefCell<(String, Option<Place>)>,
    /// Under the limits of its address and network.
    under: Vec<Place>,
    /// It may have to make room.
    pub stranger: Option<Stranger>,
}

impl ClientPlace {
    /// A place for a client at `ip`; `hint` spreads the search, any number will do.
    ///
    /// # Errors
    /// The limit that has none left.
    pub fn take(shard: &Rc<Shard>, rules: &SourceRules, ip: IpAddr, hint: u16) -> Result<ClientPlace, NoPlace> {
        let config = shard.config();
        let places = &config.places;
        let group = places.group(&rules.source_group);
        let is_known = Self::is_of_known(shard, rules, ip);
        let mut taken = ClientPlace {
            shard: Rc::clone(shard),
            slot: None,
            of_group: RefCell::default(),
            under: Vec::new(),
            stranger: None,
        };
        let place = |key, limit, why| place_under(shard, key, limit, hint).ok_or(why);
        if let Some(g) = group {
            taken.of_group.replace((g.name.clone(), place(key(GROUP, &g.name), g.max, NoPlace::OfGroup)?));
        }
        let usual = if is_known { 0 } else { places.per_address() };
        let per_address = rules.max_smtp_in_per_address.unwrap_or(usual);
        let per_network = rules.max_smtp_in_per_network.unwrap_or(match per_address {
            _ if is_known => 0,
            0 => 0,
            n => n.max(usual).saturating_mul(ADDRESSES_PER_NETWORK),
        });
        for (limit, network, why) in [
            (per_address, Network::of_one_host(ip), NoPlace::OfAddress),
            (per_network, Network::of_one_customer(ip), NoPlace::OfNetwork),
        ] {
            if limit > 0 {
                taken.under.extend(place(key("smtp-in", &network.to_string()), limit, why)?);
            }
        }
        let mut ranges = vec![places.common()];
        if is_known {
            ranges.insert(0, places.known());
            ranges.splice(0..0, group.map(|g| g.reserved.clone()));
        }
        let free = |r: Range<usize>| shard.ledger.take_among(Class::SmtpIn, shard.number, r, usize::from(hint));
        taken.slot = Some(ranges.into_iter().find_map(free).ok_or(NoPlace::Total)?);
        taken.stranger = (!is_known).then(|| shard.strangers.enter());
        if taken.stranger.is_some() && shard.strangers.begins_watch() {
            tasks::keep(shard, "strangers", watch);
        }
        shard.session_count(1);
        Ok(taken)
    }

    /// The configuration names the client: there are places that no stranger has.
    pub fn is_of_known(shard: &Shard, rules: &SourceRules, ip: IpAddr) -> bool {
        let config = shard.config();
        let group = config.places.group(&rules.source_group);
        config.snapshot.get().knows(ip) || group.is_some_and(|g| !g.reserved.is_empty())
    }

    /// The client is a user, whose source may be in another group than its address: it has a place under the limit of that group from now
    /// on. False, and nothing changes, where the group has none left.
    pub fn join_group(&self, rules: &SourceRules, hint: u16) -> bool {
        let config = self.shard.config();
        let Some(group) = config.places.group(&rules.source_group).filter(|g| g.name != self.of_group.borrow().0)
        else {
            return true;
        };
        let Some(place) = place_under(&self.shard, key(GROUP, &group.name), group.max, hint) else { return false };
        if let (_, Some(before)) = self.of_group.replace((group.name.clone(), place)) {
            self.shard.ledger.give_place(before);
        }
        true
    }

    /// Gives the place back to others; under the limits of its address and network the client counts on for a while.
    pub fn make_room(mut self) {
        let under = std::mem::take(&mut self.under);
        let shard = Rc::clone(&self.shard);
        tasks::begin("places of a client", move || async move {
            tokio::time::sleep(AWAY).await;
            under.into_iter().for_each(|p| shard.ledger.give_place(p));
        });
    }
}

impl Drop for ClientPlace {
    fn drop(&mut self) {
        let places = self.of_group.take().1.into_iter().chain(std::mem::take(&mut self.under));
        places.for_each(|p| self.shard.ledger.give_place(p));
        if let Some(slot) = self.slot.take() {
            self.shard.ledger.give(slot);
            self.shard.session_count(-1);
        }
    }
}

/// A place under a limit by name, and none where there is no limit (0); `None` where the limit has none left.
fn place_under(shard: &Shard, key: u64, limit: u64, hint: u16) -> Option<Option<Place>> {
    match limit {
        0 => Some(None),
        _ => shard.ledger.take_place(key, shard.number, limit, u64::from(hint)).map(Some),
    }
}

/// Looks after the strangers as long as there are any.
async fn watch(shard: Rc<Shard>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if shard.strangers.are_gone() {
            return;
        }
        let config = shard.config();
        let taken = shard.ledger.taken_among(Class::SmtpIn, &config.places.common());
        let now = Instant::now();
        // Other shards do their part.
        let wanted = config.places.scarce_by(taken).div_ceil(shard.map.borrow().shards.len().max(1));
        let made_room = if wanted > 0 { shard.strangers.make_room(wanted, now) } else { 0 };
        shard.strangers.tell(made_room, now);
    }
}

//! Places for clients: how `total-max-smtp-in` is shared between those whom the configuration names and strangers.
//!
//! The places of the ledger are three ranges: what is reserved for a `<source-group>` serves its sources alone; a quarter of the
//! rest serves known clients alone, where there are any; the others serve everybody. So no stranger takes the last place of
//! a known client. A stranger has besides only so many places for its address and for its network; and when places for
//! everybody get scarce, those strangers that take long to say something make room, see [`Strangers`].

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use ipc::ledger::shared_limits::key;
use ipc::ledger::{Class, Place, Slot};
use ipc::limits::LEDGER_SLOTS;
use ipc::network::Network;
use ipc::rules::SourceRules;
use ipc::snapshot::{ArchivedSnapshot, ArchivedSourceGroup};
use slab::Slab;
use tokio::time::Instant;

use crate::shard::{Shard, Signal};

/// Places of a stranger's address where `max-smtp-in-per-address` says nothing: an eighth of all, and at most so many.
const PER_ADDRESS_MAX: usize = 128;
/// But so many, where half of all are not fewer.
const PER_ADDRESS_MIN: usize = 4;
/// A network has so many times those of an address.
const ADDRESSES_PER_NETWORK: u64 = 2;
/// Places are scarce when less than this part of those for everybody is free.
const SPARE_PART: usize = 8;
/// How often that is looked at while there are strangers.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// When places are scarce a stranger may be silent for so long before its first command, between messages, and within one
/// (for a command, or 4,096 bytes of content).
const PATIENCE: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(10), Duration::from_secs(30)];
/// Who had to make room counts for its address and network for so long: coming back at once would take the place again.
const AWAY: Duration = Duration::from_secs(10);
/// Operators hear of it so often at most.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// How the places are shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    total: usize,
    /// For everybody.
    common: Range<usize>,
    /// For known clients.
    known: Range<usize>,
    /// For sources of groups.
    groups: Vec<Group>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    /// Lower case.
    name: String,
    /// 0 is unlimited.
    max: u64,
    reserved: Range<usize>,
}

/// Why there is no place for a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPlace {
    /// `total-max-smtp-in`
    Total,
    /// `max-smtp-in` of its `<source-group>`
    OfGroup,
    /// `max-smtp-in-per-address`
    OfAddress,
    /// `max-smtp-in-per-network`
    OfNetwork,
}

impl NoPlace {
    /// What a client of `host` is told.
    pub fn reply(self, host: &str) -> String {
        let (status, what) = match self {
            NoPlace::Total => ("4.3.2", "no free connection (total-max-smtp-in)"),
            NoPlace::OfGroup => ("4.3.2", "no free connection for your source group (max-smtp-in)"),
            NoPlace::OfAddress => ("4.7.0", "too many connections from your address (max-smtp-in-per-address)"),
            NoPlace::OfNetwork => ("4.7.0", "too many connections from your network (max-smtp-in-per-network)"),
        };
        format!("421 {status} {host} has {what}, try again later\r\n")
    }
}

impl Places {
    /// Those of a configuration with `total` places.
    pub fn of(snapshot: &ArchivedSnapshot, total: u64) -> Places {
        let reserved = |g: &ArchivedSourceGroup| {
            (g.name.as_str().to_owned(), g.max_smtp_in.to_native(), g.reserved_smtp_in.to_native())
        };
        let groups: Vec<_> = snapshot.source_groups.iter().map(reserved).collect();
        Self::shared(total, snapshot.known_networks().next().is_some(), groups)
    }

    fn shared(total: u64, names_any: bool, groups: Vec<(String, u64, u64)>) -> Places {
        let total = usize::try_from(total).unwrap_or(usize::MAX).min(LEDGER_SLOTS);
        let mut end = total;
        let mut set_apart = |n: u64| {
            let first = end.saturating_sub(usize::try_from(n).unwrap_or(usize::MAX));
            let range = first..end;
            end = first;
            range
        };
        let groups: Vec<Group> =
            groups.into_iter().map(|(name, max, n)| Group { name, max, reserved: set_apart(n) }).collect();
        let has_known = names_any || groups.iter().any(|g| !g.reserved.is_empty());
        let known = if has_known { end - end / 4..end } else { end..end };
        Places { total, common: 0..known.start, known, groups }
    }

    /// Those that clients have whom nothing is set apart for.
    pub fn common(&self) -> Range<usize> {
        self.common.clone()
    }

    fn group(&self, name: &str) -> Option<&Group> {
        let name = (!name.is_empty()).then(|| name.to_lowercase())?;
        self.groups.iter().find(|g| g.name == name)
    }

    /// What a stranger's address has where nothing else is said.
    fn per_address(&self) -> u64 {
        let least = PER_ADDRESS_MIN.min(self.total.div_ceil(2));
        (self.total / 8).clamp(least, PER_ADDRESS_MAX) as u64
    }

    /// How many of those for everybody are to be given back, of `taken`.
    fn scarce_by(&self, taken: usize) -> usize {
        let all = self.common.len();
        taken.saturating_sub(all - (all / SPARE_PART).max(1).min(all))
    }
}

/// A client's place; given back when it is dropped.
pub struct ClientPlace {
    shard: Rc<Shard>,
    slot: Option<Slot>,
    /// Under the limit of its group.
    of_group: Option<Place>,
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
        let is_known = config.snapshot.get().knows(ip) || group.is_some_and(|g| !g.reserved.is_empty());
        let mut taken =
            ClientPlace { shard: Rc::clone(shard), slot: None, of_group: None, under: Vec::new(), stranger: None };
        let place = |key, limit, why| match limit {
            0 => Ok(None),
            _ => shard.ledger.take_place(key, shard.number, limit, u64::from(hint)).ok_or(why).map(Some),
        };
        if let Some(g) = group {
            taken.of_group = place(key("source-group", &g.name), g.max, NoPlace::OfGroup)?;
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
            ranges.insert(0, places.known.clone());
            ranges.splice(0..0, group.map(|g| g.reserved.clone()));
        }
        let free = |r: Range<usize>| shard.ledger.take_among(Class::SmtpIn, shard.number, r, usize::from(hint));
        taken.slot = Some(ranges.into_iter().find_map(free).ok_or(NoPlace::Total)?);
        taken.stranger = (!is_known).then(|| Strangers::enter(shard));
        shard.session_count(1);
        Ok(taken)
    }

    /// Gives the place back to others; under the limits of its address and network the client counts on for a while.
    pub fn make_room(mut self) {
        let under = std::mem::take(&mut self.under);
        let shard = Rc::clone(&self.shard);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(AWAY).await;
            under.into_iter().for_each(|p| shard.ledger.give_place(p));
        });
    }
}

impl Drop for ClientPlace {
    fn drop(&mut self) {
        let places = self.of_group.take().into_iter().chain(std::mem::take(&mut self.under));
        places.for_each(|p| self.shard.ledger.give_place(p));
        if let Some(slot) = self.slot.take() {
            self.shard.ledger.give(slot);
            self.shard.session_count(-1);
        }
    }
}

/// What a stranger's session waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    /// The first command.
    ForGreeting,
    /// A command outside of a transaction.
    BetweenMessages,
    /// A command or content within one.
    WithinMessage,
}

#[derive(Debug)]
struct Session {
    /// From when on it may have to make room; `None` while it waits for nothing that the client has to do.
    due: Cell<Option<Instant>>,
    leave: Signal,
}

/// Sessions of strangers in one shard. When places are scarce those make room that have kept theirs waiting beyond what is granted
/// then, the longest first. Every shard looks after its own.
#[derive(Debug, Default)]
pub struct Strangers {
    sessions: RefCell<Slab<Rc<Session>>>,
    watched: Cell<bool>,
    /// Those that made room since operators were told, and when that was.
    told: Cell<(u32, Option<Instant>)>,
}

impl Strangers {
    fn enter(shard: &Rc<Shard>) -> Stranger {
        let all = &shard.strangers;
        let session = Rc::new(Session { due: Cell::new(None), leave: Signal::default() });
        let at = all.sessions.borrow_mut().insert(Rc::clone(&session));
        if !all.watched.replace(true) {
            tokio::task::spawn_local(watch(Rc::clone(shard)));
        }
        Stranger { shard: Rc::clone(shard), session, at }
    }

    /// Asks up to `n` to leave, with those that were asked and have not gone yet; those that are due for the longest first.
    /// How many that are.
    fn make_room(&self, n: usize, now: Instant) -> usize {
        let all = self.sessions.borrow();
        let n = n.saturating_sub(all.iter().filter(|(_, s)| s.leave.is_raised()).count());
        let due = |s: &Rc<Session>| s.due.get().filter(|due| *due <= now && !s.leave.is_raised());
        let mut late: Vec<(Instant, &Rc<Session>)> = all.iter().filter_map(|(_, s)| Some((due(s)?, s))).collect();
        if late.len() > n {
            late.select_nth_unstable_by_key(n, |(due, _)| *due);
            late.truncate(n);
        }
        late.iter().for_each(|(_, s)| s.leave.raise());
        late.len()
    }

    fn tell(&self, made_room: usize, now: Instant) {
        let (n, at) = self.told.get();
        let n = n.saturating_add(made_room as u32);
        let tells = n > 0 && at.is_none_or(|at| now - at >= TELL_EVERY);
        self.told.set(if tells { (0, Some(now)) } else { (n, at) });
        if tells {
            tracing::warn!(
                clients = n,
                "connections are scarce (total-max-smtp-in): silent clients that no <source> names made room"
            );
        }
    }
}

/// Looks after the strangers as long as there are any.
async fn watch(shard: Rc<Shard>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if shard.strangers.sessions.borrow().is_empty() {
            shard.strangers.watched.set(false);
            return;
        }
        let config = shard.config();
        let taken = shard.ledger.taken_among(Class::SmtpIn, &config.places.common);
        let now = Instant::now();
        // Other shards do their part.
        let wanted = config.places.scarce_by(taken).div_ceil(shard.map.borrow().shards.len().max(1));
        let made_room = if wanted > 0 { shard.strangers.make_room(wanted, now) } else { 0 };
        shard.strangers.tell(made_room, now);
    }
}

/// The session of a stranger among the others; it leaves when it is dropped.
pub struct Stranger {
    shard: Rc<Shard>,
    session: Rc<Session>,
    at: usize,
}

impl Stranger {
    /// The client has to do something, since a time.
    pub fn waits(&self, what: Waits, since: Instant) {
        self.session.due.set(Some(since + PATIENCE[what as usize]));
    }

    /// It waits for us.
    pub fn is_busy(&self) {
        self.session.due.set(None);
    }

    /// Resolves when it has to make room: never while the client waits for us.
    pub async fn has_to_leave(&self) {
        self.session.leave.wait().await;
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.shard.strangers.sessions.borrow_mut().try_remove(self.at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn places(total: u64, names_any: bool, reserved: &[u64]) -> Places {
        Places::shared(total, names_any, reserved.iter().enumerate().map(|(i, n)| (i.to_string(), 0, *n)).collect())
    }

    #[test]
    fn who_has_what() {
        let p = places(500, true, &[50, 30]);
        assert_eq!((p.groups[0].reserved.clone(), p.groups[1].reserved.clone()), (450..500, 420..450));
        assert_eq!((p.known.clone(), p.common()), (315..420, 0..315));
        assert_eq!(places(500, false, &[]).common(), 0..500);
        for (total, per_address) in [(1, 1), (3, 2), (20, 4), (100, 12), (500, 62), (20_000, 128)] {
            assert_eq!(places(total, true, &[]).per_address(), per_address, "{total}");
        }
        assert_eq!([437, 438, 439, 500].map(|n| places(500, false, &[]).scarce_by(n)), [0, 0, 1, 62]);
        assert_eq!([2, 3].map(|n| places(3, false, &[]).scarce_by(n)), [0, 1]);
    }

    proptest! {
        #[test]
        fn every_place_is_somebodys(total in 0u64..70_000, names_any: bool, reserved in proptest::collection::vec(0u64..40_000, 0..4)) {
            let p = places(total, names_any, &reserved);
            let groups = p.groups.iter().map(|g| g.reserved.clone());
            let mut ranges: Vec<_> = [p.common(), p.known.clone()].into_iter().chain(groups).collect();
            ranges.sort_by_key(|r| (r.start, r.end));
            let end = ranges.into_iter().fold(0, |end, r| { assert_eq!(r.start, end); r.end });
            prop_assert_eq!(end as u64, total.min(LEDGER_SLOTS as u64));
            prop_assert!(p.scarce_by(p.common.len()) <= p.common.len());
        }
    }

    #[test]
    fn who_is_due_for_the_longest_makes_room_first() {
        let all = Strangers::default();
        let now = Instant::now();
        let dues = [Some(3), None, Some(1), Some(2), Some(9)];
        let sessions = dues.map(|s| {
            let due = Cell::new(s.map(|s| now + Duration::from_secs(s)));
            let session = Rc::new(Session { due, leave: Signal::default() });
            all.sessions.borrow_mut().insert(Rc::clone(&session));
            session
        });
        let left = || sessions.iter().map(|s| s.leave.is_raised()).collect::<Vec<_>>();
        assert_eq!(all.make_room(5, now), 0, "nobody is late");
        let later = now + Duration::from_secs(5);
        assert_eq!((all.make_room(2, later), left()), (2, vec![false, false, true, true, false]));
        assert_eq!(all.make_room(2, later), 0, "two are on their way");
        assert_eq!((all.make_room(9, later), left()), (1, vec![true, false, true, true, false]));
    }
}

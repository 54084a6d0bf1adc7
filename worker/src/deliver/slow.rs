//! Connections whose opening takes long. However many receivers are silent, they leave room for those that answer: at an address, in
//! a network, at the hosts of one MX group and in all there is only so much of what takes long, and when there is that much
//! in all the one that has waited the longest gives way.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use ipc::dice::HashMap;
use ipc::ledger::shared_limits::key;
use ipc::network::Network;
use tokio::time::Instant;

use crate::connect::mx::Host;
use crate::signal::Signal;

/// A connection that is not open after this time takes long.
pub const SLOW: Duration = Duration::from_millis(500);
/// After this time already, while there are less than half as many that take long as may: so the tasks that open connections are free
/// earlier for others.
pub const EARLY: Duration = Duration::from_millis(100);
/// A connection that has taken long for this time may have to give way to another.
pub const GRANTED: Duration = Duration::from_secs(15);
/// So many are worth giving their memory back when most of them are over.
const MANY: u32 = 512;
/// So many may take long at one address (of IPv6 one /64, which one host can have as a whole), or at the hosts of one MX group; at most a
/// quarter of all.
const AT_MAX: u32 = 256;
/// But so many, as far as that many may take long at all.
const AT_MIN: u32 = 16;
/// So many in one network (of IPv6 one /48); at most half of what may take long.
const NETWORK_MAX: u32 = 1024;

/// Where a connection that takes long counts; nowhere while it waits for DNS.
pub type SlowAt = Rc<Cell<Option<[Where; 3]>>>;

/// Where a connection is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Where {
    /// An address, or what one host can have.
    Address(Network),
    /// What one customer of a provider can have.
    Network(Network),
    /// The hosts that mail for a domain may go to.
    Group(u64),
}

impl Where {
    /// How many there may be, where `all` may take long.
    fn most(self, all: u32) -> u32 {
        match self {
            Where::Address(_) | Where::Group(_) => AT_MAX.min((all / 4).max(AT_MIN).min(all).max(1)),
            Where::Network(_) => NETWORK_MAX.min((all / 2).max(AT_MIN).min(all).max(1)),
        }
    }
}

/// Where a connection to an address, for mail that may go to the hosts of a group, is waited for.
pub fn all_of(address: IpAddr, group: u64) -> [Where; 3] {
    [
        Where::Address(Network::of_one_host(address)),
        Where::Network(Network::of_one_customer(address)),
        Where::Group(group),
    ]
}

/// The number of a group of hosts, whatever their order.
pub fn group_of(hosts: &[Host]) -> u64 {
    hosts.iter().map(|h| key("mail host", &h.name)).fold(0, u64::wrapping_add)
}

#[derive(Debug)]
struct Opening {
    since: Instant,
    /// The path's last attempt failed.
    is_retry: bool,
    leave: Rc<Signal>,
}

/// Those of a shard.
#[derive(Debug, Default)]
pub struct Openings {
    /// Those that take long and were not told to give way, by age.
    slow: RefCell<BTreeMap<u64, Opening>>,
    next: Cell<u64>,
    /// With those that were.
    count: Cell<u32>,
    /// The most since memory was given back.
    peak: Cell<u32>,
    /// Those that take long and wait for an address.
    at: RefCell<HashMap<Where, u32>>,
}

impl Openings {
    /// How many take long.
    pub fn count(&self) -> u32 {
        self.count.get()
    }

    /// Many took long and do not any more; true once.
    pub fn fell(&self) -> bool {
        let fell = self.peak.get() >= MANY && self.count.get() < self.peak.get() / 4;
        if fell {
            self.peak.set(self.count.get());
        }
        fell
    }

    /// Whether a connection may be begun where it would be waited for at these places, and `most` may take long. One that takes long
    /// already counts there from now on.
    pub fn may_wait(&self, places: [Where; 3], slow: Option<&SlowAt>, most: u32) -> bool {
        let Some(at) = slow else { return self.has_room(&places, most) };
        at.take().into_iter().for_each(|before| self.leave(before));
        at.set(self.count_at(places, most).then_some(places));
        at.get().is_some()
    }

    fn has_room(&self, places: &[Where; 3], most: u32) -> bool {
        let at = self.at.borrow();
        places.iter().all(|w| at.get(w).is_none_or(|n| *n < w.most(most)))
    }

    fn count_at(&self, places: [Where; 3], most: u32) -> bool {
        let has_room = self.has_room(&places, most);
        if has_room {
            let mut at = self.at.borrow_mut();
            places.iter().for_each(|w| *at.entry(*w).or_default() += 1);
        }
        has_room
    }

    fn leave(&self, places: [Where; 3]) {
        let mut at = self.at.borrow_mut();
        for w in places {
            if let Entry::Occupied(mut n) = at.entry(w) {
                *n.get_mut() -= 1;
                if *n.get() == 0 {
                    n.remove();
                }
            }
        }
    }

    /// Opening a connection takes long: at places, or nobody knows yet where it leads. There may be `most`, of which paths whose
    /// last attempt failed have half. The one that has waited the longest gives way, if that is longer than [`GRANTED`]; where
    /// none has, and where there are too many at one place, the answer is `None`.
    pub fn enter(self: &Rc<Self>, places: Option<[Where; 3]>, is_retry: bool, most: u32) -> Option<Slow> {
        if places.is_some_and(|p| !self.has_room(&p, most)) {
            return None;
        }
        let now = Instant::now();
        self.make_room(is_retry, most, now).then(|| {
            self.count.set(self.count.get() + 1);
            self.peak.set(self.peak.get().max(self.count.get()));
            let (number, leave) = self.add(is_retry, now);
            let at = SlowAt::new(Cell::new(places.filter(|p| self.count_at(*p, most))));
            Slow { all: Rc::clone(self), number, at, leave }
        })
    }

    fn add(&self, is_retry: bool, since: Instant) -> (u64, Rc<Signal>) {
        let (number, leave) = (self.next.get(), Rc::<Signal>::default());
        self.next.set(number + 1);
        self.slow.borrow_mut().insert(number, Opening { since, is_retry, leave: Rc::clone(&leave) });
        (number, leave)
    }

    /// Whether there is room for one more, where one that has waited for long enough gives way.
    fn make_room(&self, is_retry: bool, most: u32, now: Instant) -> bool {
        let mut all = self.slow.borrow_mut();
        let full = all.len() >= most as usize;
        if !full && !is_retry {
            return true;
        }
        let retries = all.values().filter(|o| o.is_retry).count();
        let retries_full = is_retry && retries >= (most as usize / 2).max(1);
        if !full && !retries_full {
            return true;
        }
        let late = || all.iter().take_while(|(_, o)| now - o.since >= GRANTED);
        let oldest = late().find(|(_, o)| o.is_retry).or_else(|| late().next().filter(|_| !retries_full));
        let Some(number) = oldest.map(|(n, _)| *n) else { return false };
        all.remove(&number).iter().for_each(|o| o.leave.raise());
        true
    }
}

/// One that takes long.
pub struct Slow {
    all: Rc<Openings>,
    number: u64,
    /// Where it is waited for.
    pub at: SlowAt,
    leave: Rc<Signal>,
}

impl Slow {
    /// Resolves when it has to give way.
    pub async fn has_to_leave(&self) {
        self.leave.wait().await;
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        let all = &self.all;
        all.count.set(all.count.get() - 1);
        all.slow.borrow_mut().remove(&self.number);
        self.at.take().into_iter().for_each(|places| all.leave(places));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::engine::line::SLOW_MAX;

    #[test]
    fn the_hosts_of_a_group_are_the_same_in_any_order() {
        let host = |name: &str| Host { name: name.into(), addresses: Vec::new(), implicit: false, configured: false };
        let group = |names: &[&str]| group_of(&names.iter().map(|n| host(n)).collect::<Vec<_>>());
        assert_eq!(group(&["a.test", "b.test"]), group(&["b.test", "a.test"]));
        assert_ne!(group(&["a.test", "b.test"]), group(&["a.test"]));
        assert_eq!([2048, 100, 40, 12, 1].map(|all| Where::Group(1).most(all)), [256, 25, 16, 12, 1]);
    }

    #[test]
    fn at_one_place_there_are_only_so_many() {
        let all = Openings::default();
        let take = |n: usize, of: &dyn Fn(usize) -> (String, u64)| {
            let places = (0..n).map(of).map(|(ip, group)| all_of(ip.parse().unwrap(), group));
            places.filter(|p| all.count_at(*p, SLOW_MAX)).collect::<Vec<_>>()
        };
        let held = [
            take(999, &|n| ("192.0.2.1".into(), 5000 + n as u64)),
            take(999, &|n| (format!("192.0.3.{}", n % 250), 7)),
            take(2000, &|n| (format!("2001:db8:1:{n:x}::1"), 1000 + n as u64)),
            take(999, &|n| (format!("2001:db8:2:3::{n:x}"), 9000 + n as u64)),
        ];
        assert_eq!(held.each_ref().map(Vec::len), [256, 256, 1024, 256], "an address, a group, a network, a /64");
        held.into_iter().flatten().for_each(|p| all.leave(p));
        let places = |ip: [u8; 4]| all_of(ip.into(), 1);
        let slow = SlowAt::default();
        assert!(all.may_wait(places([192, 0, 2, 1]), Some(&slow), 1) && !all.may_wait(places([192, 0, 2, 1]), None, 1));
        assert!(all.may_wait(places([198, 51, 100, 1]), Some(&slow), 1), "what goes on elsewhere leaves");
        slow.take().into_iter().for_each(|p| all.leave(p));
        assert!(all.at.borrow().is_empty());
    }

    #[test]
    fn who_has_waited_the_longest_gives_way() {
        let slow = Openings::default();
        let now = Instant::now();
        let add = |is_retry: bool, at: u64| slow.add(is_retry, now + Duration::from_secs(at)).1;
        let left = |all: &[&Rc<Signal>]| all.iter().map(|s| s.is_raised()).collect::<Vec<_>>();
        let (a, b, c, d) = (add(false, 0), add(true, 1), add(false, 2), add(true, 3));
        let all = [&a, &b, &c, &d];
        let after = |s: u64| now + Duration::from_secs(s) + GRANTED;
        assert!(slow.make_room(false, 5, now) && left(&all) == [false; 4], "there is room");
        assert!(!slow.make_room(true, 5, now), "not for another that failed before");
        assert!(!slow.make_room(false, 4, now) && left(&all) == [false; 4], "nobody has waited for long");
        assert!(slow.make_room(false, 4, after(2)) && left(&all) == [false, true, false, false]);
        add(false, 20);
        assert!(!slow.make_room(true, 2, after(2)) && left(&all) == [false, true, false, false]);
        assert!(slow.make_room(false, 4, after(2)) && left(&all) == [true, true, false, false]);
        add(false, 20);
        assert!(slow.make_room(true, 4, after(3)) && left(&all) == [true, true, false, true]);
    }
}

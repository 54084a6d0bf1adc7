//! Who opens connections: a few tasks that take turns, and more while some take long. However many receivers are silent,
//! those that answer have their turn: of what takes long there is only so much at each address, and in all.

use std::cell::{Cell, RefCell};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use ipc::network::of_one_host;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::connection::Waits;
use crate::schedule::PathId;
use crate::shard::Shard;

/// Connections that are begun at once.
const OPENING_MAX: u32 = 256;
/// Those that take longer than [`SLOW`] besides; what would be one more is given up for now. Paths whose last attempt
/// failed have half of them.
const SLOW_MAX: u32 = 4096;
/// So many of them may be to one address, or to one network of IPv6: no further connection to it is begun.
const SLOW_AT_MAX: u32 = 256;
/// What is opened for so long makes room for others.
pub const SLOW: Duration = Duration::from_millis(500);
/// A task that has nothing to do ends.
const IDLE: Duration = Duration::from_secs(30);

/// Tasks and their work.
#[derive(Debug, Default)]
pub struct Openers {
    wanted: RefCell<VecDeque<PathId>>,
    all: Cell<u32>,
    idle: Cell<u32>,
    slow: Cell<u32>,
    /// Those of them that wait for an address.
    slow_at: RefCell<HashMap<IpAddr, u32>>,
    wake: Notify,
}

impl Openers {
    /// How many connections more may be asked for.
    pub fn room(&self, is_retry: bool) -> u32 {
        if is_retry && self.slow.get() >= SLOW_MAX / 2 {
            return 0;
        }
        let busy = self.all.get() - self.idle.get() - self.slow.get();
        OPENING_MAX.saturating_sub(busy + self.wanted.borrow().len() as u32)
    }

    /// A connection of path `id` is to be opened.
    pub fn want(&self, shard: &Rc<Shard>, id: PathId) {
        self.wanted.borrow_mut().push_back(id);
        self.help(shard);
    }

    /// Wakes a task for what is wanted, or begins one.
    fn help(&self, shard: &Rc<Shard>) {
        // One that was woken before and has not begun counts as idle still.
        if self.idle.get() as usize >= self.wanted.borrow().len() {
            self.wake.notify_one();
        } else if self.all.get() - self.slow.get() < OPENING_MAX {
            self.all.set(self.all.get() + 1);
            tokio::task::spawn_local(super::connection::open_connections(Rc::clone(shard)));
        }
    }

    /// The next connection to open; `None` when the task is to end.
    pub async fn next(&self) -> Option<PathId> {
        loop {
            // Those that took the place of slow ones end when these are back.
            let surplus = self.all.get() - self.slow.get() > OPENING_MAX;
            if !surplus && let Some(id) = self.wanted.borrow_mut().pop_front() {
                return Some(id);
            }
            self.idle.set(self.idle.get() + 1);
            let woken = !surplus && timeout(IDLE, self.wake.notified()).await.is_ok();
            self.idle.set(self.idle.get() - 1);
            if !woken {
                self.all.set(self.all.get() - 1);
                return None;
            }
        }
    }

    /// Whether another connection to an address may be begun.
    pub fn may_wait_at(&self, address: IpAddr) -> bool {
        self.slow_at.borrow().get(&of_one_host(address)).is_none_or(|n| *n < SLOW_AT_MAX)
    }

    /// Opening takes long: as long as the answer lives the task does not count. `None` where too many take long already.
    pub fn slow(&self, shard: &Rc<Shard>, waits: Waits) -> Option<Slow> {
        let at = match waits {
            Waits::At(address) => Some(of_one_host(address)),
            Waits::ForNames | Waits::ForOutcomes => None,
        };
        if self.slow.get() >= SLOW_MAX || at.is_some_and(|a| !self.may_wait_at(a)) {
            return None;
        }
        self.slow.set(self.slow.get() + 1);
        at.iter().for_each(|a| *self.slow_at.borrow_mut().entry(*a).or_default() += 1);
        if !self.wanted.borrow().is_empty() {
            self.help(shard);
        }
        shard.opened();
        Some(Slow { shard: Rc::clone(shard), at })
    }
}

/// A task that takes long.
pub struct Slow {
    shard: Rc<Shard>,
    at: Option<IpAddr>,
}

impl Drop for Slow {
    fn drop(&mut self) {
        let openers = &self.shard.openers;
        openers.slow.set(openers.slow.get() - 1);
        let Some(at) = self.at else { return };
        if let Entry::Occupied(mut n) = openers.slow_at.borrow_mut().entry(at) {
            *n.get_mut() -= 1;
            if *n.get() == 0 {
                n.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_one_host_can_have_count_together() {
        let of = |text: &str| text.parse().map(of_one_host).map(|n| n.to_string());
        for (address, counts_at) in [
            ("192.0.2.7", "192.0.2.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("2001:db8:1:2::", "2001:db8:1:2::"),
            ("::1", "::"),
        ] {
            assert_eq!(of(address).as_deref(), Ok(counts_at));
        }
    }
}

//! Who opens connections: a few tasks that take turns, and more while some take long.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use crate::schedule::PathId;
use crate::shard::Shard;

/// Connections that are begun at once.
const OPENING_MAX: u32 = 256;
/// Those that take longer than [`SLOW`] besides. Paths whose last attempt failed have half of
/// them, so that receivers which do not answer keep nobody from those that do.
const SLOW_MAX: u32 = 4096;
/// What is opened for so long makes room for others.
pub const SLOW: Duration = Duration::from_secs(1);
/// A task that has nothing to do ends.
const IDLE: Duration = Duration::from_secs(30);

/// Tasks and their work.
#[derive(Debug, Default)]
pub struct Openers {
    wanted: RefCell<VecDeque<PathId>>,
    all: Cell<u32>,
    idle: Cell<u32>,
    slow: Cell<u32>,
    wake: Notify,
}

impl Openers {
    /// How many connections more may be asked for.
    pub fn room(&self, is_retry: bool) -> u32 {
        let most_slow = if is_retry { SLOW_MAX / 2 } else { SLOW_MAX };
        if self.slow.get() >= most_slow {
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

    /// Opening takes long: as long as the answer lives the task does not count.
    pub fn slow(&self, shard: &Rc<Shard>) -> Slow {
        self.slow.set(self.slow.get() + 1);
        if !self.wanted.borrow().is_empty() {
            self.help(shard);
        }
        shard.opened();
        Slow(Rc::clone(shard))
    }
}

/// A task that takes long.
pub struct Slow(Rc<Shard>);

impl Drop for Slow {
    fn drop(&mut self) {
        let slow = &self.0.openers.slow;
        slow.set(slow.get() - 1);
    }
}

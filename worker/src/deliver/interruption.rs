//! Connections that end so that others find a place: those that idle, those of a lower
//! `queue-priority`, and those of a path that has more than its part of what a limit allows.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use ipc::ledger::requests::Request;
use slab::Slab;

use crate::clock;
use crate::schedule::PathId;
use crate::shard::{Shard, Signal};

/// A path that has but one connection more than another of its priority keeps it for so long,
/// milliseconds, before they change places.
const SLICE_MS: i64 = 2_000;
/// Requests are looked at so often at most, milliseconds.
const ANSWER_EVERY_MS: i64 = 10;
/// Pause between looks for requests of other shards.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// An open connection.
#[derive(Debug)]
struct Open {
    path: PathId,
    /// Limits that it holds a place of.
    keys: Vec<u64>,
    since_ms: i64,
    idle: Cell<bool>,
    /// Ends it behind the message in hand.
    end: Rc<Signal>,
    /// Ends it at once.
    cut: Rc<Signal>,
    /// Whose place it makes.
    request: Cell<Option<Request>>,
}

/// All open connections of a shard, and when requests were last looked at.
#[derive(Debug, Default)]
pub struct Connections {
    open: RefCell<Slab<Rc<Open>>>,
    /// Unix milliseconds.
    answered_ms: Cell<i64>,
}

impl Connections {
    /// Connections of path `id` that hold a place of `key`.
    pub fn held(&self, id: PathId, key: u64) -> u32 {
        self.open.borrow().iter().filter(|(_, c)| c.path == id && c.keys.contains(&key)).count() as u32
    }
}

/// An open connection's entry among the others; it leaves when it is dropped.
pub struct Seat {
    shard: Rc<Shard>,
    at: usize,
    open: Rc<Open>,
}

impl Seat {
    /// For a connection of path `path` that holds places of `keys`.
    pub fn take(shard: &Rc<Shard>, path: PathId, keys: Vec<u64>) -> Seat {
        let open = Rc::new(Open {
            path,
            keys,
            since_ms: clock::now_ms(),
            idle: Cell::new(false),
            end: Rc::default(),
            cut: Rc::default(),
            request: Cell::new(None),
        });
        let at = shard.open.open.borrow_mut().insert(Rc::clone(&open));
        Seat { shard: Rc::clone(shard), at, open }
    }

    /// It waits for work, or does not any more.
    pub fn set_idle(&self, idle: bool) {
        self.open.idle.set(idle);
    }

    /// Raised when it is to end behind the message in hand.
    pub fn end(&self) -> Rc<Signal> {
        Rc::clone(&self.open.end)
    }

    /// Raised when it is to end at once.
    pub fn cut(&self) -> Rc<Signal> {
        Rc::clone(&self.open.cut)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.shard.open.open.borrow_mut().try_remove(self.at);
        if let Some(r) = self.open.request.get() {
            self.shard.ledger.answered(&r, clock::now_ms());
        }
    }
}

/// Looks for requests of other shards as long as this one has connections.
pub async fn watch(shard: Rc<Shard>) {
    while !shard.stopping() {
        tokio::time::sleep(LOOK_EVERY).await;
        answer(&shard);
    }
}

/// Lets a connection end for every request that one of this shard's can serve.
pub fn answer(shard: &Rc<Shard>) {
    let open = shard.open.open.borrow();
    if open.is_empty() {
        return;
    }
    let now = clock::now_ms();
    // Thousands of paths may find a limit full at once.
    if now - shard.open.answered_ms.get() < ANSWER_EVERY_MS {
        return;
    }
    shard.open.answered_ms.set(now);
    for r in shard.ledger.requests_now(now).filter(|r| !r.answered) {
        let held = open.iter().map(|(_, c)| c).filter(|c| c.keys.contains(&r.ask.key));
        let free = held.filter(|c| c.request.get().is_none() && !is_own(shard, &r, c));
        // One that idles is given up before any that works.
        let idle = free.clone().find(|c| c.idle.get()).map(|c| ((0, 0), false, c));
        let best = idle.or_else(|| free.filter_map(|c| rank(shard, &r, c, now)).min_by_key(|(rank, ..)| *rank));
        let Some((_, at_once, c)) = best else { continue };
        if shard.ledger.answer(&r, now) {
            c.request.set(Some(r));
            c.end.raise();
            if at_once {
                c.cut.raise();
            }
            tracing::debug!(shard = shard.number, path = c.path, priority = r.ask.priority, "connection makes room");
        }
    }
}

fn is_own(shard: &Shard, r: &Request, c: &Open) -> bool {
    r.ask.shard == shard.number && r.ask.path as usize == c.path
}

/// How well connection `c`, which works, suits a request, the least best, and whether it ends at once;
/// `None` when it keeps its place.
fn rank<'a>(shard: &Shard, r: &Request, c: &'a Rc<Open>, now_ms: i64) -> Option<((u8, u64), bool, &'a Rc<Open>)> {
    let s = shard.scheduler.borrow();
    let rules = &s.paths.get(c.path)?.rules;
    let asked = u64::from(r.ask.priority);
    if rules.queue_priority < asked && rules.allow_priority_interruption {
        return Some(((1, rules.queue_priority), rules.allow_priority_interruption_during_transfer, c));
    }
    let more = shard.open.held(c.path, r.ask.key).saturating_sub(r.ask.has);
    let yields = more >= 2 || (more == 1 && now_ms - c.since_ms >= SLICE_MS);
    (rules.queue_priority == asked && yields).then_some(((2, 0), false, c))
}

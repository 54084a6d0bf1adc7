//! Connections that end so that others find a place: those that idle, those of a lower
//! `queue-priority`, and those of a path that has more than its part of what a limit allows.

use std::cell::Cell;
use std::cmp::Reverse;
use std::rc::Rc;
use std::time::Duration;

use ipc::dice::HashMap;
use ipc::ledger::requests::{Ask, Request};
use ipc::rules::DomainRules;

use super::open_connections::Open;
use crate::clock;
use crate::schedule::PathId;
use crate::shard::Shard;
use crate::signal::Signal;

/// A path that has but one connection more than another of its priority keeps it for so long,
/// milliseconds, before they change places.
const SLICE_MS: i64 = 2_000;
/// Requests are looked at so often at most, milliseconds.
const ANSWER_EVERY_MS: i64 = 10;
/// Pause between looks for requests of other shards.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// An open connection's entry among the others; it leaves when it is dropped.
pub struct OpenConnection {
    shard: Rc<Shard>,
    at: usize,
    open: Rc<Open>,
}

impl OpenConnection {
    /// For a connection of path `path` that holds places of `keys`.
    pub fn take(shard: &Rc<Shard>, path: PathId, keys: Vec<u64>) -> OpenConnection {
        let open = Rc::new(Open {
            path,
            keys,
            since_ms: clock::now_ms(),
            idle: Cell::new(false),
            end: Rc::default(),
            cut: Rc::default(),
            request: Cell::new(None),
        });
        let at = shard.open.insert(&open);
        OpenConnection { shard: Rc::clone(shard), at, open }
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

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.shard.open.remove(self.at);
        if let Some(r) = self.open.request.get() {
            self.shard.ledger.answered(&r, clock::now_ms());
        }
    }
}

/// Looks for requests of other shards as long as connections of this one hold what these may ask for.
pub async fn watch(shard: Rc<Shard>) {
    while !shard.stopping() {
        shard.open.hold_places().await;
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
    let requests: Vec<Request> = shard.ledger.requests_now(now).filter(|r| !r.answered).collect();
    if requests.is_empty() {
        return;
    }
    let mut candidates: HashMap<u64, Candidates> =
        requests.iter().map(|r| (r.ask.key, Candidates::default())).collect();
    {
        let s = shard.scheduler();
        for (_, c) in open.iter().filter(|(_, c)| c.request.get().is_none()) {
            let Some(p) = s.paths.get(c.path) else { continue };
            for k in &c.keys {
                if let Some(of_key) = candidates.get_mut(k) {
                    of_key.add(c, &p.rules, shard.open.held(c.path, *k));
                }
            }
        }
    }
    candidates.values_mut().for_each(Candidates::sort);
    for r in requests {
        let own = (r.ask.shard == shard.number).then_some(r.ask.path);
        let best = candidates.get(&r.ask.key).and_then(|of_key| of_key.best(&r.ask, own, now));
        let Some((c, at_once)) = best else { continue };
        if shard.ledger.answer(&r, now) {
            c.request.set(Some(r));
            c.end.raise();
            if at_once {
                c.cut.raise();
            }
            tracing::debug!(shard = shard.number, path = ?c.path, priority = r.ask.priority, "connection makes room");
        }
    }
}

/// Connections that could make room under one limit. Sorted once, they are not looked through for
/// each of hundreds of requests.
#[derive(Default)]
struct Candidates {
    idle: Vec<Rc<Open>>,
    /// Those that a higher priority may end, and whether at once; the lowest priority first.
    lower: Vec<(u64, bool, Rc<Open>)>,
    /// By priority, with how many their path has: the most first, and of those the oldest.
    equal: HashMap<u64, Vec<(u32, Rc<Open>)>>,
}

impl Candidates {
    /// A connection of a path that has `held` of them.
    fn add(&mut self, c: &Rc<Open>, rules: &DomainRules, held: u32) {
        if c.idle.get() {
            self.idle.push(Rc::clone(c));
        }
        if rules.allow_priority_interruption {
            let at_once = rules.allow_priority_interruption_during_transfer;
            self.lower.push((rules.queue_priority, at_once, Rc::clone(c)));
        }
        self.equal.entry(rules.queue_priority).or_default().push((held, Rc::clone(c)));
    }

    fn sort(&mut self) {
        self.lower.sort_by_key(|(priority, ..)| *priority);
        self.equal.values_mut().for_each(|all| all.sort_by_key(|(held, c)| (Reverse(*held), c.since_ms)));
    }

    /// The connection that suits a request best, of another path than that at place `own`, and whether it ends at
    /// once; `None` when all keep their places.
    fn best(&self, ask: &Ask, own: Option<u32>, now_ms: i64) -> Option<(&Rc<Open>, bool)> {
        let is_free = |c: &Open| c.request.get().is_none() && own != Some(c.path.place());
        // One that idles is given up before any that works.
        if let Some(c) = self.idle.iter().find(|c| is_free(c)) {
            return Some((c, false));
        }
        let asked = u64::from(ask.priority);
        let below = self.lower.iter().take_while(|(priority, ..)| *priority < asked);
        if let Some((_, at_once, c)) = below.into_iter().find(|(.., c)| is_free(c)) {
            return Some((c, *at_once));
        }
        // In front is the oldest connection of the path that has the most. If even that one keeps its place, all do.
        let (held, c) = self.equal.get(&asked)?.iter().find(|(_, c)| is_free(c))?;
        let more = held.saturating_sub(ask.has);
        let yields = more >= 2 || (more == 1 && now_ms - c.since_ms >= SLICE_MS);
        yields.then_some((c, false))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn open(place: u32, since_ms: i64, idle: bool) -> Rc<Open> {
        let (path, (end, cut, request)) = (PathId::numbered(place), Default::default());
        Rc::new(Open { path, keys: vec![7], since_ms, idle: Cell::new(idle), end, cut, request })
    }

    fn ask(priority: u8, has: u32) -> Ask {
        Ask { key: 7, priority, shard: 0, path: 9, has }
    }

    /// It makes room for somebody already.
    fn promise(c: &Open) {
        let ledger = ipc::ledger::Ledger::create().unwrap().0;
        ledger.request(&ask(50, 0), 1);
        c.request.set(ledger.requests_now(1).next());
        assert!(c.request.get().is_some());
    }

    #[test]
    fn who_idles_makes_room_first_then_a_lower_priority_then_who_has_the_most() {
        let rules = |queue_priority| DomainRules { queue_priority, ..Default::default() };
        let mut all = Candidates::default();
        let (low, lowest, much, little) = (open(1, 0, false), open(2, 0, false), open(3, 0, false), open(4, 0, false));
        all.add(&low, &DomainRules { allow_priority_interruption: true, ..rules(40) }, 1);
        let at_once = DomainRules {
            allow_priority_interruption: true,
            allow_priority_interruption_during_transfer: true,
            ..rules(30)
        };
        all.add(&lowest, &at_once, 1);
        all.add(&little, &rules(50), 1);
        all.add(&much, &rules(50), 3);
        all.sort();
        let of = |all: &Candidates, priority, has, own| {
            all.best(&ask(priority, has), own, 10).map(|(c, at_once)| (c.path.place(), at_once))
        };
        let best = |priority, has, own| of(&all, priority, has, own);
        assert_eq!(best(50, 0, None), Some((2, true)), "the lowest priority");
        assert_eq!(best(50, 0, Some(2)), Some((1, false)), "never its own");
        assert_eq!(best(20, 0, None), None, "nobody is below or equal");
        [&low, &lowest].iter().for_each(|c| promise(c));
        assert_eq!(best(50, 0, None), Some((3, false)));
        assert_eq!(best(50, 2, None), None, "one more is kept for a while");
        promise(&much);
        assert_eq!(best(50, 0, None), None);
        assert_eq!(all.best(&ask(50, 0), None, SLICE_MS).map(|(c, _)| c.path.place()), Some(4), "not longer");
        let idle = open(5, 0, true);
        all.add(&idle, &rules(60), 1);
        assert_eq!(of(&all, 50, 0, None), Some((5, false)));
    }
}

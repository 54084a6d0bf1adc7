//! A day of traffic under simulated time: fifty receivers that behave as receivers do, a pool of
//! four virtual MTAs, and what it makes of the day with `pool-adaptive` and without. A function of
//! its seed; `SLUICE_SEED` takes another one.

use std::collections::VecDeque;
use std::rc::Rc;

use ipc::dice::{HashMap, HashSet};
use ipc::rules::DomainRules;

use super::dice::Dice;
use super::message::Message;
use super::tokens::Grant;
use super::*;
use crate::classify::outcome::Failure;

const RECEIVERS: usize = 50;
const MEMBERS: usize = 4;
const MESSAGES: u64 = 120_000;
/// One turn of the clock, milliseconds.
const TURN_MS: i64 = 2_000;
const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;

/// How a receiver behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Takes everything.
    Plain,
    /// Takes so many recipients from one source in ten minutes.
    Throttles(usize),
    /// Defers what it sees for the first time.
    Greylists,
    /// 421 to every other message for some hours.
    Storms,
    /// Thinks ill of one source for some hours.
    DipsFor(usize),
    /// Is away for an hour.
    IsAway,
    /// Takes 20 s for a message from one source.
    TarPitsFor(usize),
}

struct Receiver {
    kind: Kind,
    /// Hour at which it begins, and hours that it lasts.
    from: i64,
    hours: i64,
    seen: HashSet<u64>,
    taken: Vec<VecDeque<i64>>,
}

enum Reply {
    Taken,
    Deferred,
    NoConnection,
}

impl Receiver {
    fn acts(&self, now: i64) -> bool {
        let hour = now / HOUR_MS;
        hour >= self.from && hour < self.from + self.hours
    }

    fn answer(&mut self, member: usize, key: u64, now: i64, dice: &mut Dice) -> Reply {
        let acts = self.acts(now);
        let taken = &mut self.taken[member];
        while taken.front().is_some_and(|t| now - t > 600_000) {
            taken.pop_front();
        }
        let fine = match self.kind {
            Kind::Throttles(n) => taken.len() < n,
            Kind::Greylists => !self.seen.insert(key),
            Kind::Storms if acts => dice.percent(50),
            Kind::DipsFor(m) if acts && m == member => dice.percent(3),
            Kind::IsAway if acts => return Reply::NoConnection,
            _ => true,
        };
        if fine {
            taken.push_back(now);
            Reply::Taken
        } else {
            Reply::Deferred
        }
    }

    /// Messages that a connection carries in one turn.
    fn pace(&self, member: usize, now: i64) -> u64 {
        match self.kind {
            Kind::TarPitsFor(m) if m == member && self.acts(now) => u64::from(now % 20_000 < TURN_MS),
            _ => 10,
        }
    }
}

/// What came of a day.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Day {
    delivered: u64,
    refused: u64,
    /// From acceptance to delivery, seconds.
    mean_s: f64,
    p95_s: i64,
    /// When the last message was delivered, hours after the day began.
    drained_h: f64,
}

fn receivers(dice: &mut Dice) -> Vec<Receiver> {
    (0..RECEIVERS)
        .map(|i| {
            let one = dice.below(MEMBERS as u64) as usize;
            let kind = match i % 10 {
                0 | 1 => Kind::Throttles(40 + dice.below(60) as usize),
                2 => Kind::Greylists,
                3 => Kind::Storms,
                4..=6 => Kind::DipsFor(one),
                7 => Kind::IsAway,
                8 => Kind::TarPitsFor(one),
                _ => Kind::Plain,
            };
            let hours = if kind == Kind::IsAway { 1 } else { 3 + dice.below(6) as i64 };
            let taken = vec![VecDeque::new(); MEMBERS];
            Receiver { kind, from: 6 + dice.below(10) as i64, hours, seen: HashSet::default(), taken }
        })
        .collect()
}

fn day(seed: u64, adaptive: bool) -> Day {
    let mut dice = Dice(seed | 1);
    let mut receivers = receivers(&mut dice);
    let rules = Rc::new(DomainRules { pool_adaptive: adaptive, max_smtp_out: 2, ..Default::default() });
    let members: Rc<[Member]> =
        (0..MEMBERS).map(|i| Member { vmta: i as u32, name: Rc::from(format!("v{i}")), weight: 1 }).collect();
    let mut s = Scheduler::<()>::default();
    let mut paths = Vec::new();
    for i in 0..RECEIVERS {
        let exit = Exit { members: Rc::clone(&members), of_pool: true, rules: Rc::clone(&rules) };
        let id = s.queue(&format!("r{i}.test"), "pool", || exit);
        let of_queue = (0..MEMBERS).filter_map(|m| s.path_of(id, m, |m| (m.vmta, Rc::clone(&rules))));
        paths.push((id, of_queue.map(|(p, _)| p).collect::<Vec<_>>()));
    }
    let mut arrivals: Vec<(i64, usize)> = (0..MESSAGES)
        .map(|_| {
            // Campaigns begin at the full hours between 7 and 18.
            let hour = 7 + dice.below(12) as i64;
            let within = dice.below(1200) as i64 * if dice.percent(70) { 500 } else { 3_000 };
            (hour * HOUR_MS + within, dice.below(RECEIVERS as u64) as usize)
        })
        .collect();
    arrivals.sort_unstable();
    let mut arrivals = arrivals.into_iter().peekable();
    let (mut refused, mut delays, mut last, mut key) = (0, Vec::new(), 0, 0);
    let mut received: HashMap<u64, i64> = HashMap::default();
    let mut now = HOUR_MS;
    while now < 2 * DAY_MS && (arrivals.peek().is_some() || s.recipients > 0) {
        while let Some((at, r)) = arrivals.next_if(|(at, _)| *at <= now) {
            key += 1;
            received.insert(key, at);
            let m = Message {
                key,
                received_ms: at,
                body_len: 1000,
                left: 1,
                notify_delay: false,
                alone: false,
                windows_end_s: 0,
                job: 0,
                content: None,
            };
            let slot = s.add("", m);
            s.enqueue(paths[r].0, Entry { slot, start: 0, end: 1, priority: 50, attempts: 0 }, 0, now);
        }
        s.due(now);
        for (r, (queue, of_queue)) in paths.iter().enumerate() {
            for (member, path) in of_queue.iter().enumerate() {
                let backlog = if s.may_pull(*queue, *path, now) { s.share_of(*queue, *path, now) } else { 0 };
                let wanted = s.paths[*path].wanted(backlog, 0, now);
                s.paths[*path].connections += wanted;
                let turns = u64::from(s.paths[*path].connections) * receivers[r].pace(member, now);
                for _ in 0..turns {
                    let Next::Send(b) = s.next(*path, None, now * 1_000_000, &|_| true, &mut |n, _| Grant::all(n))
                    else {
                        break;
                    };
                    match receivers[r].answer(member, b.key, now, &mut dice) {
                        Reply::Taken => {
                            s.paths[*path].delivered(now);
                            s.settle(b.queue, b.slot, b.key, 1);
                            delays.push((now - received[&b.key]) / 1000);
                            last = now;
                        }
                        Reply::Deferred => {
                            refused += 1;
                            s.paths[*path].judged(false);
                            s.retry(&b, &b.recipients, now + 600_000);
                        }
                        Reply::NoConnection => {
                            refused += 1;
                            s.put_back(&b, &b.recipients);
                            s.paths[*path].connections = 0;
                            s.paths[*path].defer(now, Rc::new(Failure::own("4.4.1", "away")), true);
                            break;
                        }
                    }
                }
            }
        }
        now += TURN_MS;
    }
    assert_eq!(s.recipients, 0, "seed {seed}: everything is delivered in the end");
    delays.sort_unstable();
    Day {
        delivered: delays.len() as u64,
        refused,
        mean_s: delays.iter().sum::<i64>() as f64 / delays.len() as f64,
        p95_s: delays[delays.len() * 95 / 100],
        drained_h: last as f64 / HOUR_MS as f64,
    }
}

#[test]
fn pools_that_adapt_are_refused_less_and_deliver_sooner() {
    let seed = std::env::var("SLUICE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(20_261_121);
    let (with, without) = (day(seed, true), day(seed, false));
    println!("seed {seed}\n  pool-adaptive yes: {with:?}\n  pool-adaptive no:  {without:?}");
    assert_eq!((with.delivered, without.delivered), (MESSAGES, MESSAGES));
    assert!(with.refused < without.refused, "{with:?} {without:?}");
    assert!(with.mean_s < without.mean_s, "{with:?} {without:?}");
    // The same seed is the same day.
    assert_eq!(day(seed, true), with);
}

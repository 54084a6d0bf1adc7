//! The scheduler under simulated time, receivers and operators: every run is a function of
//! its seed. Whatever happens, limits hold, every recipient ends once, and nothing waits
//! without a reason.

use std::rc::Rc;
use std::time::Duration;

use ipc::dice::HashMap;
use ipc::rules::{DomainRules, Rate};
use proptest::prelude::*;

use super::dice::Dice;
use super::message::Message;
use super::tokens::Grant;
use super::*;
use crate::classify::outcome::Failure;

/// A connection: what it sends until when.
struct Connection {
    queue: QueueId,
    messages: u64,
    busy: Option<(Batch, i64)>,
}

struct World {
    s: Scheduler<()>,
    dice: Dice,
    now_ms: i64,
    connections: Vec<Connection>,
    /// (message, recipient) → times it ended.
    ended: HashMap<(u64, u16), u32>,
    sent: HashMap<QueueId, Vec<i64>>,
    /// Bounced for age.
    expired: u64,
}

const BOUNCE_AFTER_MS: i64 = 40_000;

impl World {
    fn rules(dice: &mut Dice) -> DomainRules {
        let per = Duration::from_millis(1000 * (1 + dice.below(5)));
        DomainRules {
            max_smtp_out: 1 + dice.below(4),
            max_msg_per_connection: dice.below(4),
            max_rcpt_per_transaction: dice.below(3),
            max_msg_rate: Rate { count: [0, 5, 20][dice.below(3) as usize], per },
            retry_after: vec![Duration::from_secs(1), Duration::from_secs(3)],
            retry_recipients_after: Duration::from_secs(2),
            bounce_after: Duration::from_millis(BOUNCE_AFTER_MS as u64),
            ..Default::default()
        }
    }

    fn inject(&mut self, key: u64, queues: &[QueueId]) {
        let n = 1 + self.dice.below(6) as u16;
        let slot = self.s.add(
            "",
            Message {
                key,
                received_ms: self.now_ms,
                body_len: 1000,
                left: n,
                notify_delay: false,
                alone: false,
                windows_end_s: 0,
                job: 0,
                content: None,
            },
        );
        let split = self.dice.below(u64::from(n) + 1) as u16;
        for (start, end) in [(0, split), (split, n)].into_iter().filter(|(a, b)| a < b) {
            let id = queues[self.dice.below(queues.len() as u64) as usize];
            self.s.enqueue(id, Entry { slot, start, end, priority: 50, attempts: 0 }, 0, self.now_ms);
        }
    }

    fn end(&mut self, batch: &Batch, recipients: &[u16]) {
        for r in recipients {
            *self.ended.entry((batch.key, *r)).or_default() += 1;
        }
        assert!(self.s.settle(batch.queue, batch.slot, batch.key, recipients.len()).is_some());
    }

    /// A transaction is over: some recipients are taken, some refused for now.
    fn conclude(&mut self, i: usize) {
        let (batch, _) = self.connections[i].busy.take().unwrap_or_else(|| panic!("it was busy"));
        let (queue, dice) = (batch.queue, &mut self.dice);
        if dice.below(20) == 0 {
            // The connection broke before anything was said.
            self.s.put_back(&batch, &batch.recipients);
            self.s.paths[queue.only_path()].connections -= 1;
            self.connections.remove(i);
            return;
        }
        // Some recipients are never taken: only age ends them.
        let stubborn = |r: u16| (batch.key + u64::from(r)).is_multiple_of(5);
        let (now, later): (Vec<u16>, Vec<u16>) =
            batch.recipients.iter().partition(|r| !stubborn(**r) && dice.below(3) > 0);
        if !later.is_empty() {
            self.s.retry(&batch, &later, self.now_ms + 2_000);
        }
        if !now.is_empty() {
            self.s.paths[queue.only_path()].delivered(self.now_ms);
            self.end(&batch, &now);
        }
    }

    fn open(&mut self, id: QueueId) {
        let backlog = self.s.share_of(id, id.only_path(), self.now_ms);
        let wanted = self.s.paths[id.only_path()].wanted(backlog, 0, self.now_ms);
        for _ in 0..wanted {
            let p = &mut self.s.paths[id.only_path()];
            if self.dice.below(8) == 0 {
                p.defer(self.now_ms, Rc::new(Failure::own("4.4.1", "refused")), true);
                continue;
            }
            p.connections += 1;
            self.connections.push(Connection { queue: id, messages: 0, busy: None });
        }
        let p = &self.s.paths[id.only_path()];
        let max = p.rules.max_smtp_out;
        assert!(u64::from(p.connections) <= max, "{} connections of {max}", p.connections);
    }

    fn step(&mut self) {
        self.now_ms += 1 + self.dice.below(30) as i64;
        let now = self.now_ms;
        self.s.due(now);
        let mut i = 0;
        while i < self.connections.len() {
            let before = self.connections.len();
            if self.connections[i].busy.as_ref().is_some_and(|(_, until)| *until <= now) {
                self.conclude(i);
            }
            if self.connections.len() == before {
                i += 1;
            }
        }
        let mut i = 0;
        while i < self.connections.len() {
            let (id, idle) = (self.connections[i].queue, self.connections[i].busy.is_none());
            let full = {
                let max = self.s.paths[id.only_path()].rules.max_msg_per_connection;
                max != 0 && self.connections[i].messages >= max
            };
            let next = if idle && !full {
                self.s.next(id.only_path(), None, now * 1_000_000, &|_| true, &mut |n, _| Grant::all(n))
            } else {
                Next::Idle
            };
            match next {
                Next::Send(batch) => {
                    let sent = self.sent.entry(id).or_default();
                    sent.extend(batch.recipients.iter().map(|_| now));
                    let until = now + self.dice.below(200) as i64;
                    self.connections[i].messages += 1;
                    self.connections[i].busy = Some((batch, until));
                    i += 1;
                }
                _ if idle => {
                    self.s.paths[id.only_path()].connections -= 1;
                    self.connections.remove(i);
                }
                _ => i += 1,
            }
        }
        let ids: Vec<QueueId> = self.s.queues.iter().map(|(id, _)| id).collect();
        for id in ids {
            self.open(id);
            for entry in self.s.expired(id, now) {
                let key = self.s.messages[entry.slot as usize].key;
                let batch = Batch::of(id, key, entry);
                self.expired += batch.recipients.len() as u64;
                self.end(&batch, &batch.recipients);
            }
        }
    }

    fn assert_rates(&self) {
        for (id, times) in &self.sent {
            let Rate { count, per } = self.s.paths[id.only_path()].rules.max_msg_rate;
            for (i, t) in times.iter().enumerate().filter(|_| count > 0) {
                let n = times[i..].iter().take_while(|u| **u - *t < per.as_millis() as i64).count() as u64;
                assert!(n <= count + 1, "{n} of {count} within {per:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..Default::default() })]
    #[test]
    fn limits_hold_and_every_recipient_ends_once(seed in 1u64..u64::MAX) {
        let mut dice = Dice(seed);
        let mut s = Scheduler::<()>::default();
        let queues: Vec<QueueId> = (0..1 + dice.below(4))
            .map(|i| {
                let rules = Rc::new(World::rules(&mut dice));
                let members = Rc::from([Member { vmta: 0, name: "v".into(), weight: 1 }]);
                let id = s.queue(&format!("d{i}.test"), "v", || Exit { members, of_pool: false, rules: Rc::clone(&rules) });
                // One path a queue, so that both have the same number.
                assert_eq!(s.path_of(id, 0, |m| (m.vmta, rules)), Some((id.only_path(), scheduler::New::Path)));
                id
            })
            .collect();
        let mut w = World {
            s,
            dice,
            now_ms: 1_000_000_000_000,
            connections: Vec::new(),
            ended: HashMap::default(),
            sent: HashMap::default(),
            expired: 0,
        };
        let messages = 5 + w.dice.below(40);
        for key in 0..messages {
            w.inject(key, &queues);
            for _ in 0..w.dice.below(10) {
                w.step();
            }
            if w.dice.below(30) == 0 {
                // A reload.
                for id in &queues {
                    let rules = World::rules(&mut w.dice);
                    if rules.max_msg_rate == w.s.paths[id.only_path()].rules.max_msg_rate
                        && rules.max_smtp_out >= w.s.paths[id.only_path()].rules.max_smtp_out
                    {
                        let rules = Rc::new(rules);
                        w.s.paths[id.only_path()].rules = Rc::clone(&rules);
                        w.s.queues[*id].rules = rules;
                    }
                }
            }
        }
        // What is left ends by delivery or by age: one interval of everything behind the last.
        let until = w.now_ms + BOUNCE_AFTER_MS + 10_000;
        while w.s.recipients > 0 && w.now_ms < until {
            w.step();
        }
        prop_assert_eq!(w.s.recipients, 0, "something waits for ever");
        prop_assert!(w.ended.values().all(|n| *n == 1), "something ended twice");
        prop_assert_eq!(w.s.messages.len(), 0);
        w.assert_rates();
    }
}

//! One queue (destination, and virtual MTA or pool): the mail that waits.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::rc::Rc;

use ipc::queue_orders::QueuePattern;
use ipc::rules::DomainRules;
use smallvec::SmallVec;

use super::cause::History;
use super::entry::Entry;
use super::ids::PathId;
use super::message::Message;
use super::ready::Ready;
use super::retry_wait::failure_wait_ms;
use crate::classify::outcome::Failure;
use crate::connect::protection::Parameters;

/// A virtual MTA that a queue's mail may leave through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Index in the snapshot in force.
    pub vmta: u32,
    /// Its name.
    pub name: Rc<str>,
    /// Share of the queue's mail, against the other members'.
    pub weight: u32,
}

/// A path that has pulled from the queue.
#[derive(Debug)]
pub struct Puller {
    /// The path.
    pub path: PathId,
    /// Place in the queue's members.
    pub member: usize,
    /// What it took, over its weight and trust: the least is served first.
    pub pass: f64,
}

/// Hosts of a domain as they were found last, and what each demands of a connection that others
/// opened.
pub type Hosts = Rc<[(String, Option<Rc<Parameters>>)]>;

/// What a queue is besides whose domain rolled up with others.
#[derive(Debug)]
pub struct RolledUp {
    /// Destination: what its paths and directives go by.
    pub destination: Rc<str>,
    /// The domain whose hosts take the mail.
    pub origin: Rc<str>,
    /// Those hosts.
    pub hosts: Hosts,
    /// When they were found, Unix milliseconds.
    pub hosts_ms: i64,
    /// When the mail may be tried again after its own domain failed, Unix milliseconds.
    pub retry_at_ms: i64,
    /// Position in `retry-after` then.
    pub retry_step: u32,
}

/// A queue.
#[derive(Debug)]
pub struct Queue {
    /// Destination as mail names it: of what rolled up with the domain that it came from.
    pub key: Rc<str>,
    /// Its domain's, where it rolled up with others.
    pub rolled_up: Option<Box<RolledUp>>,
    /// Virtual MTA or pool that the mail chose.
    pub via: Rc<str>,
    /// The virtual MTA, or the members of the pool; shared by all queues of the pool.
    pub members: Rc<[Member]>,
    /// It is a pool's.
    pub of_pool: bool,
    /// Directives for what waits: those of the virtual MTA, or of the pool.
    pub rules: Rc<DomainRules>,
    /// Paths that have pulled from it.
    pub pullers: SmallVec<[Puller; 1]>,
    /// Members take turns.
    pub turn: u32,
    /// What may go now.
    pub ready: Ready,
    /// Recipients that got their own 4yz, by the time they are due (Unix seconds).
    pub waiting: BinaryHeap<Reverse<(u32, Entry)>>,
    /// Recipients here, in flight included.
    pub recipients: u64,
    /// Bytes of content here.
    pub bytes: u64,
    /// The last failure.
    pub last_failure: Option<Rc<Failure>>,
    /// When a delay report may be due for someone who waits here, Unix milliseconds.
    pub delay_at_ms: i64,
    /// Acceptance time of the oldest entry that has no windows, or earlier.
    pub oldest_ms: i64,
    /// What held it up of late.
    pub history: History,
    /// Virtual MTAs whose mail reroutes sent on to it.
    pub sent_on_from: Box<[Rc<str>]>,
    /// An operator paused it.
    pub paused: bool,
    /// The destination has no MX: `bounce-upon-no-mx` may end mail earlier.
    pub no_mx: bool,
}

impl Queue {
    /// Destination: what its paths and directives go by.
    pub fn destination(&self) -> &Rc<str> {
        self.rolled_up.as_ref().map_or(&self.key, |r| &r.destination)
    }

    /// The domain whose hosts take the mail, where that is not the destination.
    pub fn origin(&self) -> Option<&Rc<str>> {
        self.rolled_up.as_ref().map(|r| &r.origin)
    }

    /// When mail that rolled up may be tried again after its own domain failed, Unix milliseconds.
    pub fn retry_at_ms(&self) -> i64 {
        self.rolled_up.as_ref().map_or(0, |r| r.retry_at_ms)
    }

    /// Its own domain's failure counts no more.
    pub fn retry_now(&mut self) {
        self.rolled_up.iter_mut().for_each(|r| r.retry_at_ms = 0);
    }

    /// What its domain's hosts were found to be is not known any more.
    pub fn forget_hosts(&mut self) {
        self.rolled_up.iter_mut().for_each(|r| r.hosts = Rc::from([]));
    }

    /// What it is found by.
    pub(super) fn names(&self) -> (&str, &str) {
        (&self.key, &self.via)
    }

    /// `destination/vmta` or `destination/pool`, as operators name it.
    pub fn name(&self) -> String {
        format!("{}/{}", ipc::message::shown_domain(self.destination()), self.via)
    }

    /// The same with the domain whose part of a queue it is, where it rolled up: `queue/vmta (domain)`.
    pub fn full_name(&self) -> String {
        let of = self.origin().map(|o| format!(" ({})", ipc::message::shown_domain(o)));
        self.name() + of.as_deref().unwrap_or_default()
    }

    /// A command names it, or a domain that rolled up to it: all of its mail is meant.
    pub fn is_named_by(&self, of: &QueuePattern) -> bool {
        self.is_at(of, &self.via)
    }

    fn is_at(&self, of: &QueuePattern, via: &str) -> bool {
        of.matches(self.destination(), via) || self.origin().is_some_and(|o| of.matches(o, via))
    }

    /// Its mail that is ready, and that waits for its time; what is in delivery is not among it.
    pub fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        self.ready.iter().map(|(_, e)| e).chain(self.waiting.iter().map(|w| w.0.1))
    }

    /// A command about queues means it: by its name, or by a virtual MTA some of whose mail was sent on to it.
    pub fn is_meant_by(&self, of: &QueuePattern) -> bool {
        self.is_named_by(of) || self.sent_on_from.iter().any(|from| of.via != "*" && self.is_at(of, from))
    }

    /// Mail of a virtual MTA was sent on to it; answers whether that is news.
    pub fn takes_mail_of(&mut self, via: &str) -> bool {
        let news = !self.sent_on_from.iter().any(|from| from.eq_ignore_ascii_case(via));
        if news {
            self.sent_on_from = self.sent_on_from.iter().cloned().chain([Rc::from(via)]).collect();
        }
        news
    }

    /// The pool's name, unless it is a virtual MTA's queue.
    pub fn pool(&self) -> Option<&Rc<str>> {
        self.of_pool.then_some(&self.via)
    }

    /// `notify-of-delay-every` in milliseconds.
    pub fn delay_every_ms(&self) -> i64 {
        match self.rules.notify_of_delay_every.as_millis() {
            0 => i64::MAX,
            n => n.min(i64::MAX as u128) as i64,
        }
    }

    /// A connection to a host, protected as `parameters` say, can carry its mail.
    pub fn is_carried_by(&self, host: &str, parameters: Option<&Parameters>) -> bool {
        let fits = |(h, demand): &(String, Option<Rc<Parameters>>)| {
            h == host && demand.as_deref().is_none_or(|d| parameters == Some(d))
        };
        self.rolled_up.as_ref().is_some_and(|r| r.hosts.iter().any(fits))
    }

    /// Mail of it may go, as far as operators and its own domain's hosts decide.
    pub fn may_go(&self, now_ms: i64) -> bool {
        !self.paused && self.retry_at_ms() <= now_ms
    }

    /// The hosts of the domain that it came from failed: its neighbours in the same path go on.
    pub fn defer(&mut self, now_ms: i64, failure: Rc<Failure>) {
        if let Some(r) = &mut self.rolled_up {
            let wait_ms = failure_wait_ms(&failure, &self.rules, &self.rules.retry_after, &mut r.retry_step);
            r.retry_at_ms = now_ms.saturating_add(wait_ms);
        }
        self.last_failure = Some(failure);
    }

    /// Moves what is due to the ready list.
    pub fn promote<C>(&mut self, now_ms: i64, messages: &slab::Slab<Message<C>>) {
        let now_s = (now_ms / 1000) as u32;
        while let Some(Reverse((due, entry))) = self.waiting.peek().copied() {
            if due > now_s {
                break;
            }
            self.waiting.pop();
            let job = messages.get(entry.slot as usize).map_or(0, |m| m.job);
            self.ready.push(job, entry);
        }
        if self.waiting.is_empty() {
            self.waiting.shrink_to(0);
        }
    }

    /// The member whose turn it is: each as often as its weight says.
    pub fn next_turn(&mut self) -> usize {
        let total: u64 = self.members.iter().map(|m| u64::from(m.weight)).sum();
        let mut at = u64::from(self.turn) % total.max(1);
        self.turn = self.turn.wrapping_add(1);
        for (i, m) in self.members.iter().enumerate() {
            let w = u64::from(m.weight);
            if at < w {
                return i;
            }
            at -= w;
        }
        0
    }
}

/// The first multiple of `every_ms` after acceptance that is later than `after_ms`.
pub(super) fn next_delay(received_ms: i64, after_ms: i64, every_ms: i64) -> i64 {
    let passed = (after_ms - received_ms).max(0) / every_ms;
    received_ms.saturating_add((passed + 1).saturating_mul(every_ms))
}

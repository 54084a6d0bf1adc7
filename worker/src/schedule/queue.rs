//! One queue (destination and virtual MTA) and its path: what waits, what may go, and the
//! state of its connections.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::rc::Rc;

use ipc::rules::DomainRules;

use super::rate::Pace;
use super::scheduler::Slot;
use crate::classify::outcome::Failure;

/// Number of a queue within its shard.
pub type QueueId = usize;

/// Recipients `start..end` of a message. 12 bytes, for memory is what a deep queue costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The message.
    pub slot: Slot,
    /// First recipient's index.
    pub start: u16,
    /// Index behind the last.
    pub end: u16,
}

impl Entry {
    /// Recipients in it.
    pub fn len(&self) -> u64 {
        u64::from(self.end - self.start)
    }

    /// Never true: entries hold at least one recipient.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

/// A queue and its path.
#[derive(Debug)]
pub struct Queue {
    /// Destination.
    pub destination: Rc<str>,
    /// Virtual MTA: index in the snapshot in force.
    pub vmta: u32,
    /// Its name.
    pub vmta_name: Rc<str>,
    /// The pool that chose the virtual MTA; empty for none.
    pub pool: Rc<str>,
    /// Directives in force.
    pub rules: Rc<DomainRules>,
    /// FIFO of what may go now.
    pub ready: VecDeque<Entry>,
    /// Recipients that got their own 4yz, by the time they are due (Unix seconds).
    pub waiting: BinaryHeap<Reverse<(u32, Entry)>>,
    /// Recipients here, in flight included.
    pub recipients: u64,
    /// Bytes of content here.
    pub bytes: u64,
    /// Open connections.
    pub connections: u32,
    /// Connections being opened.
    pub connecting: u32,
    /// Open connections that wait for work.
    pub idle: u32,
    /// When the queue may be tried again, Unix milliseconds; 0 when it may.
    pub retry_at_ms: i64,
    /// No new connection before this time, while those that are open go on: the receiver
    /// refused one more.
    pub connect_again_ms: i64,
    /// The last timer that was set for it.
    pub timer_ms: i64,
    /// Position in `retry-after`.
    pub retry_step: usize,
    /// The rate limit's state.
    pub pace: Pace,
    /// The last failure.
    pub last_failure: Option<Rc<Failure>>,
    /// When a delay report may be due for someone who waits here, Unix milliseconds.
    pub delay_at_ms: i64,
    /// Acceptance time of the oldest entry, or earlier.
    pub oldest_ms: i64,
    /// When expiry was last looked for.
    pub swept_ms: i64,
    /// Recent attempts: exponentially weighted share of successes.
    pub health: f32,
    /// The destination is another shard's, or the shard that owned it before has not released
    /// it yet: no connection is opened and nothing is given out.
    pub held: bool,
    /// Its virtual MTA was there when the mail was accepted and is not any more: the mail waits.
    pub orphaned: bool,
    /// The destination has no MX: `bounce-upon-no-mx` may end mail earlier.
    pub no_mx: bool,
    /// The spool knows that the rate limit is in use, see [`crate::route::paths`].
    pub noted: bool,
    /// Wakes idle connections.
    pub work: Rc<tokio::sync::Notify>,
    /// Connections rotate over the virtual MTA's source addresses.
    pub source_turn: usize,
}

impl Queue {
    /// `destination/vmta`, as operators and accounting name it.
    pub fn name(&self) -> String {
        format!("{}/{}", ipc::message::shown_domain(&self.destination), self.vmta_name)
    }

    /// Nothing here and nothing going on: may be forgotten, unless a retry clock or a rate
    /// window still counts.
    pub fn is_idle(&self, now_ms: i64) -> bool {
        self.recipients == 0
            && self.connections == 0
            && self.connecting == 0
            && self.retry_at_ms <= now_ms
            && self.pace.tat_ns / 1_000_000 <= now_ms
    }

    /// `notify-of-delay-every` in milliseconds.
    pub fn delay_every_ms(&self) -> i64 {
        match self.rules.notify_of_delay_every.as_millis() {
            0 => i64::MAX,
            n => n.min(i64::MAX as u128) as i64,
        }
    }

    /// A connection beyond `max-smtp-out`, after a reload lowered it.
    pub fn has_surplus(&self) -> bool {
        self.rules.max_smtp_out != 0 && u64::from(self.connections) > self.rules.max_smtp_out
    }

    /// Moves what is due to the ready list.
    pub fn promote(&mut self, now_ms: i64) {
        let now_s = (now_ms / 1000) as u32;
        while let Some(Reverse((due, entry))) = self.waiting.peek().copied() {
            if due > now_s {
                break;
            }
            self.waiting.pop();
            self.ready.push_back(entry);
        }
        if self.waiting.is_empty() {
            self.waiting.shrink_to(0);
        }
    }

    /// The queue as a whole failed: starts the retry clock and walks one step on.
    pub fn defer(&mut self, now_ms: i64, failure: Failure) {
        let list = &self.rules.retry_after;
        let wait = list.get(self.retry_step.min(list.len().saturating_sub(1))).copied();
        self.retry_step += 1;
        self.retry_at_ms = now_ms + wait.map_or(600_000, |d| d.as_millis() as i64);
        self.last_failure = Some(Rc::new(failure));
        self.health *= 0.9;
    }

    /// Something was delivered: the retry list begins anew.
    pub fn delivered(&mut self) {
        self.retry_step = 0;
        self.health = self.health * 0.9 + 0.1;
    }

    /// When the next connection may be opened, as far as clocks and the rate decide; Unix
    /// milliseconds.
    pub fn connect_at_ms(&self) -> i64 {
        let rate_ms = (self.pace.ready_at_ns(self.rules.max_msg_rate) + 999_999) / 1_000_000;
        self.retry_at_ms.max(self.connect_again_ms).max(rate_ms)
    }

    /// New connections to open now.
    pub fn wanted(&self, now_ms: i64) -> u32 {
        if self.held || self.ready.is_empty() || self.connect_at_ms() > now_ms {
            return 0;
        }
        let max = match self.rules.max_smtp_out {
            0 => u32::MAX,
            n => n.min(u64::from(u32::MAX)) as u32,
        };
        let have = self.connections + self.connecting;
        let busy = self.connections - self.idle.min(self.connections);
        // One connection serves several short messages before another would have opened;
        // the number grows at most twofold at a time while mail keeps waiting.
        let backlog = (self.ready.len() as u64).saturating_sub(u64::from(busy) * 2).min(u64::from(u32::MAX)) as u32;
        let step = self.connections.max(1).saturating_sub(self.connecting);
        backlog.saturating_sub(self.idle + self.connecting).min(step).min(max.saturating_sub(have))
    }
}

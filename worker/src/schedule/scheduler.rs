//! All queues of a shard and the messages in them.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::rc::Rc;

use bytes::Bytes;
use ipc::rules::DomainRules;
use rkyv::util::AlignedVec;
use slab::Slab;

use super::queue::{Entry, Queue, QueueId};

/// A message's place in [`Scheduler`].
pub type Slot = u32;

/// Envelope and content held in memory.
#[derive(Debug)]
pub struct Content {
    /// Archived [`ipc::message::Envelope`], validated.
    pub envelope: AlignedVec<16>,
    /// Header as changed, and the rest.
    pub body: [Bytes; 2],
}

/// A message in this shard. Kept small: this and its entry are all that a deferred message
/// costs in memory.
#[derive(Debug)]
pub struct Message {
    /// Its key in the spool.
    pub key: u64,
    /// When it was accepted, Unix milliseconds.
    pub received_ms: i64,
    /// Bytes of content.
    pub body_len: u32,
    /// Recipients that have not ended.
    pub left: u16,
    /// The sender of some of them wants to hear of delays.
    pub notify_delay: bool,
    /// Envelope and content until the first attempt, within the memory budget.
    pub content: Option<Rc<Content>>,
}

/// Recipients to send in one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The queue.
    pub queue: QueueId,
    /// The message.
    pub slot: Slot,
    /// Its key in the spool.
    pub key: u64,
    /// Indexes of the recipients.
    pub recipients: Vec<u16>,
}

/// What a connection does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Send this.
    Send(Batch),
    /// Nothing before this time (Unix milliseconds).
    Wait(i64),
    /// Nothing to do.
    Idle,
}

/// Destination, virtual MTA, pool.
type Name = (Rc<str>, Rc<str>, Rc<str>);

/// All queues of a shard.
#[derive(Debug, Default)]
pub struct Scheduler {
    /// Messages.
    pub messages: Slab<Message>,
    /// Queues.
    pub queues: Slab<Queue>,
    by_name: HashMap<Name, QueueId>,
    timers: BinaryHeap<Reverse<(i64, QueueId)>>,
    /// Bytes of content held in memory.
    pub content_bytes: u64,
    /// Recipients in all queues.
    pub recipients: u64,
    /// Bytes of content in all queues, once a message.
    pub queued_bytes: u64,
}

impl Scheduler {
    /// The queue of a destination and virtual MTA, made if it is new.
    pub fn queue(
        &mut self,
        destination: &str,
        vmta: u32,
        vmta_name: &str,
        pool: &str,
        rules: impl FnOnce() -> DomainRules,
    ) -> QueueId {
        let key = (Rc::from(destination), Rc::from(vmta_name), Rc::from(pool));
        if let Some(id) = self.by_name.get(&key) {
            return *id;
        }
        let id = self.queues.insert(Queue {
            destination: Rc::clone(&key.0),
            vmta,
            vmta_name: Rc::clone(&key.1),
            pool: Rc::clone(&key.2),
            rules: Rc::new(rules()),
            ready: Default::default(),
            waiting: Default::default(),
            recipients: 0,
            bytes: 0,
            connections: 0,
            connecting: 0,
            idle: 0,
            retry_at_ms: 0,
            connect_again_ms: 0,
            timer_ms: 0,
            retry_step: 0,
            pace: Default::default(),
            last_failure: None,
            delay_at_ms: i64::MAX,
            oldest_ms: i64::MAX,
            swept_ms: 0,
            health: 1.0,
            held: false,
            orphaned: false,
            no_mx: false,
            noted: false,
            work: Default::default(),
            source_turn: 0,
        });
        self.by_name.insert(key, id);
        id
    }

    /// Forgets a queue that has nothing left, and answers it.
    pub fn forget(&mut self, id: QueueId, now_ms: i64) -> Option<Queue> {
        self.queues.get(id).filter(|q| q.is_idle(now_ms))?;
        let q = self.queues.remove(id);
        self.by_name.remove(&(Rc::clone(&q.destination), Rc::clone(&q.vmta_name), Rc::clone(&q.pool)));
        Some(q)
    }

    /// The queue of that name, if there is one.
    pub fn find(&mut self, destination: &str, vmta_name: &str, pool: &str) -> Option<(QueueId, &mut Queue)> {
        let id = *self.by_name.get(&(Rc::from(destination), Rc::from(vmta_name), Rc::from(pool)))?;
        self.queues.get_mut(id).map(|q| (id, q))
    }

    /// Adds a message; its entries follow with [`Scheduler::enqueue`].
    pub fn add(&mut self, m: Message) -> Slot {
        self.queued_bytes += u64::from(m.body_len);
        if m.content.is_some() {
            self.content_bytes += u64::from(m.body_len);
        }
        self.messages.insert(m) as Slot
    }

    /// Puts recipients into a queue, due at `due_ms` (0: now).
    pub fn enqueue(&mut self, id: QueueId, entry: Entry, due_ms: i64, now_ms: i64) {
        let Some(m) = self.messages.get(entry.slot as usize) else { return };
        let Some(q) = self.queues.get_mut(id) else { return };
        q.recipients += entry.len();
        q.bytes += u64::from(m.body_len);
        q.oldest_ms = q.oldest_ms.min(m.received_ms);
        self.recipients += entry.len();
        if m.notify_delay {
            q.delay_at_ms = q.delay_at_ms.min(next_delay(m.received_ms, now_ms, q.delay_every_ms()));
        }
        if due_ms > now_ms {
            self.wait(id, entry, due_ms);
        } else {
            q.ready.push_back(entry);
            if q.rules.retry_upon_new_mail {
                q.retry_at_ms = 0;
            }
        }
    }

    /// Lets recipients wait in their queue until `due_ms`, to the second above.
    fn wait(&mut self, id: QueueId, entry: Entry, due_ms: i64) {
        let due_s = (due_ms + 999) / 1000;
        if let Some(q) = self.queues.get_mut(id) {
            let sooner = q.waiting.peek().is_none_or(|Reverse((first, _))| i64::from(*first) > due_s);
            q.waiting.push(Reverse((due_s as u32, entry)));
            if sooner {
                self.timers.push(Reverse((due_s * 1000, id)));
            }
        }
    }

    /// Wakes queue `id` at a time.
    pub fn wake_at(&mut self, id: QueueId, at_ms: i64) {
        // Every message that joins a waiting queue asks for the same time.
        if let Some(q) = self.queues.get_mut(id).filter(|q| q.timer_ms != at_ms) {
            q.timer_ms = at_ms;
            self.timers.push(Reverse((at_ms, id)));
        }
    }

    /// When [`Scheduler::due`] has something, Unix milliseconds.
    pub fn next_timer(&self) -> Option<i64> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }

    /// Queues whose time has come.
    pub fn due(&mut self, now_ms: i64) -> Vec<QueueId> {
        let mut ids = Vec::new();
        while let Some(Reverse((at, id))) = self.timers.peek().copied() {
            if at > now_ms {
                break;
            }
            self.timers.pop();
            if let Some(q) = self.queues.get_mut(id) {
                q.timer_ms = 0;
                q.promote(now_ms);
                if let Some(Reverse((due, _))) = q.waiting.peek() {
                    self.timers.push(Reverse((i64::from(*due) * 1000, id)));
                }
                ids.push(id);
            }
        }
        ids
    }

    /// What a connection of queue `id` sends next. The rate's tokens are taken here, right
    /// before RCPT is written.
    pub fn next(&mut self, id: QueueId, now_ns: i64) -> Next {
        let now_ms = now_ns / 1_000_000;
        let Some(q) = self.queues.get_mut(id) else { return Next::Idle };
        q.promote(now_ms);
        if q.held || q.retry_at_ms > now_ms {
            return Next::Idle;
        }
        let Some(entry) = q.ready.front().copied() else { return Next::Idle };
        let most = match q.rules.max_rcpt_per_transaction {
            0 => entry.len(),
            n => n.min(entry.len()),
        };
        let (taken, next_ns) = q.pace.take(q.rules.max_msg_rate, now_ns, most);
        if taken == 0 {
            let at_ms = (next_ns + 999_999) / 1_000_000;
            self.wake_at(id, at_ms);
            return Next::Wait(at_ms);
        }
        let end = entry.start + taken as u16;
        if end == entry.end {
            q.ready.pop_front();
            if q.ready.is_empty() && q.ready.capacity() > 1024 {
                q.ready.shrink_to(64);
            }
        } else if let Some(front) = q.ready.front_mut() {
            front.start = end;
        }
        let Some(m) = self.messages.get(entry.slot as usize) else { return Next::Idle };
        Next::Send(Batch { queue: id, slot: entry.slot, key: m.key, recipients: (entry.start..end).collect() })
    }

    /// What was in flight while expiry was looked for was not seen there.
    fn back(&mut self, id: QueueId, slot: Slot) {
        if let (Some(q), Some(m)) = (self.queues.get_mut(id), self.messages.get(slot as usize)) {
            q.oldest_ms = q.oldest_ms.min(m.received_ms);
        }
    }

    /// Puts a batch that was not attempted back in front.
    pub fn put_back(&mut self, id: QueueId, slot: Slot, recipients: &[u16]) {
        self.back(id, slot);
        if let Some(q) = self.queues.get_mut(id) {
            for entry in ranges(slot, recipients).into_iter().rev() {
                q.ready.push_front(entry);
            }
        }
    }

    /// Recipients got a reply of their own that asks to come back.
    pub fn retry(&mut self, id: QueueId, slot: Slot, recipients: &[u16], due_ms: i64) {
        self.back(id, slot);
        for entry in ranges(slot, recipients) {
            self.wait(id, entry, due_ms);
        }
        self.drop_content(slot);
    }

    /// Frees a message's content after its first attempt.
    pub fn drop_content(&mut self, slot: Slot) {
        if let Some(m) = self.messages.get_mut(slot as usize)
            && m.content.take().is_some()
        {
            self.content_bytes = self.content_bytes.saturating_sub(u64::from(m.body_len));
        }
    }

    /// Recipients ended; answers whether nothing is left of the message.
    pub fn settle(&mut self, id: QueueId, slot: Slot, n: usize) -> bool {
        let Some(m) = self.messages.get_mut(slot as usize) else { return false };
        m.left = m.left.saturating_sub(n as u16);
        let (last, body_len) = (m.left == 0, u64::from(m.body_len));
        self.recipients = self.recipients.saturating_sub(n as u64);
        if let Some(q) = self.queues.get_mut(id) {
            q.recipients = q.recipients.saturating_sub(n as u64);
            q.bytes = if q.recipients == 0 { 0 } else { q.bytes.saturating_sub(body_len) };
        }
        if last {
            self.drop_content(slot);
            self.messages.remove(slot as usize);
            self.queued_bytes = self.queued_bytes.saturating_sub(body_len);
        }
        last
    }

    /// Takes recipients past `bounce-after` (and `bounce-upon-no-mx`) out of queue `id`, wherever they wait.
    pub fn expired(&mut self, id: QueueId, now_ms: i64) -> Vec<Entry> {
        let Some(q) = self.queues.get_mut(id) else { return Vec::new() };
        let limit = if q.no_mx { q.rules.bounce_after.min(q.rules.bounce_upon_no_mx) } else { q.rules.bounce_after };
        let limit = limit.as_millis().min(i64::MAX as u128 / 2) as i64;
        if q.oldest_ms.saturating_add(limit) > now_ms {
            return Vec::new();
        }
        q.swept_ms = now_ms;
        let messages = &self.messages;
        let mut oldest = i64::MAX;
        let mut old = Vec::new();
        let mut keep = |e: &Entry| {
            let Some(m) = messages.get(e.slot as usize) else { return false };
            let alive = m.received_ms.saturating_add(limit) > now_ms;
            if alive {
                oldest = oldest.min(m.received_ms);
            } else {
                old.push(*e);
            }
            alive
        };
        q.ready.retain(&mut keep);
        q.waiting.retain(|Reverse((_, e))| keep(e));
        q.oldest_ms = oldest;
        old
    }

    /// Recipients in queue `id` whose sender is to hear of their delay by now, with the time
    /// they are due. Those it names may have been reported already.
    pub fn delayed(&mut self, id: QueueId, now_ms: i64) -> Vec<(Entry, i64)> {
        let Some(q) = self.queues.get_mut(id) else { return Vec::new() };
        if q.delay_at_ms > now_ms {
            return Vec::new();
        }
        // Everyone who reached a multiple since the last look was due at this time at the earliest.
        let (since, every) = (std::mem::replace(&mut q.delay_at_ms, i64::MAX), q.delay_every_ms());
        let messages = &self.messages;
        let mut first = i64::MAX;
        let mut found = Vec::new();
        let waiting = q.waiting.iter().map(|Reverse((due, e))| (*e, i64::from(*due) * 1000));
        for (e, due) in q.ready.iter().map(|e| (*e, 0)).chain(waiting) {
            let Some(m) = messages.get(e.slot as usize).filter(|m| m.notify_delay) else { continue };
            first = first.min(next_delay(m.received_ms, now_ms, every));
            if next_delay(m.received_ms, since - 1, every) <= now_ms {
                found.push((e, due));
            }
        }
        q.delay_at_ms = first;
        found
    }

    /// Takes everything that waits out of queue `id`, with the time it is due (Unix
    /// milliseconds; 0 for now).
    pub fn drain(&mut self, id: QueueId) -> Vec<(Entry, i64)> {
        let Some(q) = self.queues.get_mut(id) else { return Vec::new() };
        let mut all: Vec<(Entry, i64)> = q.ready.drain(..).map(|e| (e, 0)).collect();
        all.extend(std::mem::take(&mut q.waiting).into_iter().map(|Reverse((due, e))| (e, i64::from(due) * 1000)));
        all
    }
}

/// The first multiple of `every_ms` after acceptance that is later than `after_ms`.
fn next_delay(received_ms: i64, after_ms: i64, every_ms: i64) -> i64 {
    let passed = (after_ms - received_ms).max(0) / every_ms;
    received_ms.saturating_add((passed + 1).saturating_mul(every_ms))
}

/// Recipients as ranges of consecutive indexes.
fn ranges(slot: Slot, recipients: &[u16]) -> Vec<Entry> {
    let mut all: Vec<Entry> = Vec::new();
    for r in recipients {
        match all.last_mut() {
            Some(e) if e.end == *r => e.end += 1,
            _ => all.push(Entry { slot, start: *r, end: r + 1 }),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::rules::Rate;
    use std::time::Duration;

    fn with(rules: DomainRules, n: u16) -> (Scheduler, QueueId) {
        let mut s = Scheduler::default();
        let id = s.queue("d.test", 0, "v", "", || rules);
        let slot = s.add(Message { key: 1, received_ms: 0, body_len: 100, left: n, notify_delay: true, content: None });
        s.enqueue(id, Entry { slot, start: 0, end: n }, 0, 0);
        (s, id)
    }

    #[test]
    fn a_message_is_split_by_max_rcpt_per_transaction() {
        let (mut s, id) = with(DomainRules { max_rcpt_per_transaction: 2, ..Default::default() }, 5);
        let mut sizes = Vec::new();
        while let Next::Send(b) = s.next(id, 0) {
            sizes.push(b.recipients.len());
        }
        assert_eq!(sizes, [2, 2, 1]);
    }

    #[test]
    fn what_waits_for_its_own_reply_does_not_stop_the_queue() {
        let (mut s, id) = with(DomainRules::default(), 2);
        let Next::Send(b) = s.next(id, 0) else { panic!("nothing to send") };
        s.retry(id, b.slot, &[0], 10_000);
        s.put_back(id, b.slot, &[1]);
        assert!(matches!(s.next(id, 0), Next::Send(b) if b.recipients == [1]));
        assert_eq!(s.next(id, 0), Next::Idle);
        assert_eq!(s.next_timer(), Some(10_000));
        assert_eq!(s.due(10_000), [id]);
        assert!(matches!(s.next(id, 10_000 * 1_000_000), Next::Send(b) if b.recipients == [0]));
    }

    #[test]
    fn the_rate_counts_recipients() {
        let rate = Rate { count: 1, per: Duration::from_secs(10) };
        let (mut s, id) = with(DomainRules { max_msg_rate: rate, ..Default::default() }, 3);
        let now = 1_000_000_000_000;
        assert!(matches!(s.next(id, now), Next::Send(b) if b.recipients == [0]));
        assert!(matches!(s.next(id, now), Next::Wait(at) if at >= now / 1_000_000 + 10_000));
    }

    #[test]
    fn expiry_finds_recipients_in_every_state() {
        let (mut s, id) = with(DomainRules { bounce_after: Duration::from_secs(5), ..Default::default() }, 3);
        let Next::Send(b) = s.next(id, 0) else { panic!("nothing to send") };
        s.retry(id, b.slot, &[0], 60_000);
        s.put_back(id, b.slot, &[1, 2]);
        assert!(s.expired(id, 4_999).is_empty());
        assert_eq!(s.expired(id, 5_000).iter().map(Entry::len).sum::<u64>(), 3);
        assert!(s.settle(id, b.slot, 3));
    }

    #[test]
    fn delays_are_told_of_at_every_multiple() {
        let every = Duration::from_millis(1000);
        let (mut s, id) = with(DomainRules { notify_of_delay_every: every, ..Default::default() }, 1);
        let slot = s.add(Message { key: 2, received_ms: 300, body_len: 1, left: 1, notify_delay: true, content: None });
        s.enqueue(id, Entry { slot, start: 0, end: 1 }, 9000, 400);
        let mut told = |now| s.delayed(id, now).into_iter().map(|(e, due)| (e.slot, due)).collect::<Vec<_>>();
        assert_eq!(told(999), []);
        assert_eq!(told(1000), [(0, 0)]);
        assert_eq!(told(1299), []);
        assert_eq!(told(2100), [(0, 0), (1, 9000)]);
        assert_eq!(told(2300), [(1, 9000)]);
    }

    #[test]
    fn what_was_in_flight_expires_when_it_is_back() {
        let (mut s, id) = with(DomainRules { bounce_after: Duration::from_secs(5), ..Default::default() }, 2);
        s.queues[id].rules = Rc::new(DomainRules { max_rcpt_per_transaction: 1, ..(*s.queues[id].rules).clone() });
        let Next::Send(b) = s.next(id, 0) else { panic!("nothing to send") };
        assert_eq!(s.expired(id, 6_000).len(), 1);
        s.retry(id, b.slot, &b.recipients, 7_000);
        assert_eq!(s.expired(id, 8_000).len(), 1);
    }

    #[test]
    fn a_waiting_queue_sets_one_timer_however_many_ask() {
        let (mut s, id) = with(DomainRules::default(), 1);
        for _ in 0..1000 {
            s.wake_at(id, 5_000);
        }
        assert_eq!(s.timers.len(), 1);
        assert_eq!(s.due(5_000), [id]);
        s.wake_at(id, 9_000);
        assert_eq!(s.next_timer(), Some(9_000));
    }

    #[test]
    fn one_refused_connection_is_no_reason_to_hammer() {
        let (mut s, id) = with(DomainRules::default(), 1);
        let q = &mut s.queues[id];
        assert_eq!(q.wanted(1_000), 1);
        q.connect_again_ms = 6_000;
        assert_eq!((q.wanted(5_999), q.wanted(6_000)), (0, 1));
    }

    #[test]
    fn a_deferred_message_costs_less_than_100_bytes() {
        assert!(size_of::<Message>() + size_of::<Reverse<(u32, Entry)>>() <= 64);
    }
}

//! All queues of a shard and the messages in them.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::IpAddr;
use std::rc::Rc;

use ipc::dice::{HashMap, HashSet};
use ipc::layers::NO_VMTA;
use ipc::message::{origin_part, queue_part};
use ipc::rules::DomainRules;
use slab::Slab;
use smallvec::SmallVec;

use super::arena::Arena;
use super::batch::{Batch, Next};
use super::depth::Depth;
use super::entry::Entry;
use super::ids::{OfPath, OfQueue, PathId, QueueId, Slot, Timer};
use super::job::{JobId, Jobs};
use super::message::{HeldContent, Message};
use super::name_index::NameIndex;
use super::path::Path;
use super::queue::{Member, Puller, Queue, RolledUp, next_delay};
use super::tokens::{Grant, take_tokens};
use crate::classify::outcome::Failure;

/// Messages whose contents are freed at once.
const CONTENTS_DROPPED_MAX: usize = 10_000;

/// Failures that others are compared with.
const FAILURES_KEPT: usize = 32;
/// Queues of one path that are looked at for its work.
const QUEUES_LOOKED_AT: usize = 16;
/// Names that are kept whether queues have them or not.
const NAMES_MIN: usize = 1024;

/// The virtual MTAs that a queue's mail may leave through.
#[derive(Debug, Clone)]
pub struct Exit {
    /// The virtual MTA, or the members of the pool.
    pub members: Rc<[Member]>,
    /// It is a pool.
    pub of_pool: bool,
    /// Directives for what waits.
    pub rules: Rc<DomainRules>,
}

impl Exit {
    /// Index of the virtual MTA, where it is one that exists; [`NO_VMTA`] for a pool.
    pub fn vmta(&self) -> u32 {
        self.members.first().filter(|_| !self.of_pool).map_or(NO_VMTA, |m| m.vmta)
    }
}

/// What was not there before, of a path and what it serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum New {
    /// All was there.
    Nothing,
    /// The path serves one more queue.
    ForQueue,
    /// The path.
    Path,
}

/// When the replies that queues know were said, by the time that their recipients wait for (Unix milliseconds).
#[derive(Debug, Default)]
pub struct Recalled {
    pub(super) due_ms: HashMap<QueueId, i64>,
    /// All mail is found: what is said from now on is newer.
    pub(super) is_over: bool,
}

/// All queues and paths of a shard.
#[derive(Debug)]
pub struct Scheduler<C> {
    /// Messages.
    pub messages: Slab<Message<C>>,
    /// Jobs that they belong to.
    pub jobs: Jobs,
    /// Queues.
    pub queues: Arena<OfQueue, Queue>,
    /// Paths.
    pub paths: Arena<OfPath, Path>,
    queue_by_name: NameIndex,
    path_by_name: NameIndex,
    /// Names of virtual MTAs and pools that queues have, and how many may be kept before those that no
    /// queue has any more are dropped.
    names: HashSet<Rc<str>>,
    names_kept: usize,
    /// Of queues whose last reply was found in the spool.
    pub(super) recalled: Recalled,
    /// Failures of late.
    failures: VecDeque<Rc<Failure>>,
    pub(super) timers: BinaryHeap<Reverse<(i64, Timer)>>,
    /// Bytes that messages hold in memory until their first attempt.
    pub content_bytes: u64,
    /// Recipients in all queues.
    pub recipients: u64,
    /// Queues that have some.
    pub queues_with_mail: u64,
    /// Bytes of content in all queues, once a message.
    pub queued_bytes: u64,
    pub(super) depth: Depth,
    /// Queues with mail that has windows: when those of some of it end, or earlier, Unix seconds.
    pub(super) windows_end_s: HashMap<QueueId, u32>,
}

impl<C> Default for Scheduler<C> {
    fn default() -> Self {
        Scheduler {
            messages: Slab::new(),
            jobs: Jobs::default(),
            queues: Arena::default(),
            paths: Arena::default(),
            queue_by_name: NameIndex::default(),
            path_by_name: NameIndex::default(),
            names: HashSet::default(),
            names_kept: 0,
            recalled: Recalled::default(),
            failures: VecDeque::new(),
            timers: BinaryHeap::new(),
            content_bytes: 0,
            recipients: 0,
            queues_with_mail: 0,
            queued_bytes: 0,
            depth: Depth::default(),
            windows_end_s: HashMap::default(),
        }
    }
}

impl<C: HeldContent> Scheduler<C> {
    /// The queue of a destination and virtual MTA or pool, made if it is new.
    pub fn queue(&mut self, destination: &str, via: &str, exit: impl FnOnce() -> Exit) -> QueueId {
        if let Some(id) = self.find_queue(destination, via) {
            return id;
        }
        let Exit { members, of_pool, rules } = exit();
        let rolled_up = origin_part(destination).map(|origin| {
            Box::new(RolledUp {
                destination: Rc::from(queue_part(destination)),
                origin: Rc::from(origin),
                hosts: Rc::from([]),
                hosts_ms: 0,
                retry_at_ms: 0,
                retry_step: 0,
            })
        });
        let via = self.shared_name(via);
        let id = self.queues.insert(Queue {
            key: Rc::from(destination),
            rolled_up,
            via,
            members,
            of_pool,
            rules,
            pullers: SmallVec::new(),
            turn: 0,
            ready: Default::default(),
            waiting: Default::default(),
            recipients: 0,
            bytes: 0,
            last_failure: None,
            delay_at_ms: i64::MAX,
            oldest_ms: i64::MAX,
            history: Default::default(),
            sent_on_from: Box::default(),
            paused: false,
            no_mx: false,
        });
        self.queue_by_name.insert(id.place(), |place| self.queues.at(place).map(|(_, q)| q.names()));
        id
    }

    /// The queue of these names, if there is one.
    fn find_queue(&self, destination: &str, via: &str) -> Option<QueueId> {
        let names = |place| self.queues.at(place).map(|(_, q)| q.names());
        self.queues.at(self.queue_by_name.find((destination, via), names)?).map(|(id, _)| id)
    }

    /// One copy of a virtual MTA's or pool's name for all queues that have it.
    fn shared_name(&mut self, name: &str) -> Rc<str> {
        if let Some(known) = self.names.get(name) {
            return Rc::clone(known);
        }
        if self.names.len() >= self.names_kept.max(NAMES_MIN) {
            self.names.retain(|n| Rc::strong_count(n) > 1);
            self.names_kept = self.names.len() * 2;
        }
        let name: Rc<str> = Rc::from(name);
        self.names.insert(Rc::clone(&name));
        name
    }

    /// The failure, as one copy for all that met the same of late.
    pub fn shared_failure(&mut self, failure: Failure) -> Rc<Failure> {
        if let Some(known) = self.failures.iter().find(|f| ***f == failure) {
            return Rc::clone(known);
        }
        if self.failures.len() == FAILURES_KEPT {
            self.failures.pop_front();
        }
        let failure = Rc::new(failure);
        self.failures.push_back(Rc::clone(&failure));
        failure
    }

    /// The path by which a member of queue `id` serves it, made if it is new; and what is new.
    /// `rules` answers the virtual MTA's index of now, and its directives.
    pub fn path_of(
        &mut self,
        id: QueueId,
        member: usize,
        rules: impl FnOnce(&Member) -> (u32, Rc<DomainRules>),
    ) -> Option<(PathId, New)> {
        let q = self.queues.get_mut(id)?;
        if let Some(p) = q.pullers.iter().find(|p| p.member == member) {
            return Some((p.path, New::Nothing));
        }
        let m = q.members.get(member)?;
        let names = |place| self.paths.at(place).map(|(_, p)| p.names());
        let known = self.path_by_name.find((q.destination(), &m.name), names).and_then(|place| self.paths.at(place));
        let (path, new) = match known {
            Some((path, _)) => (path, New::ForQueue),
            None => {
                let (vmta, rules) = rules(m);
                let p = Path::new(Rc::clone(q.destination()), vmta, Rc::clone(&m.name), rules);
                let path = self.paths.insert(p);
                self.path_by_name.insert(path.place(), |place| self.paths.at(place).map(|(_, p)| p.names()));
                (path, New::Path)
            }
        };
        // It begins where the others are, not with all that it has missed.
        let pass = q.pullers.iter().map(|p| p.pass).fold(f64::INFINITY, f64::min);
        q.pullers.push(Puller { path, member, pass: if pass.is_finite() { pass } else { 0.0 } });
        if let Some(p) = self.paths.get_mut(path) {
            p.queues.insert(id);
            if !q.ready.is_empty() {
                p.ready.insert(id);
            }
        }
        Some((path, new))
    }

    /// Takes other members for a queue, after a reload.
    pub fn set_exit(&mut self, id: QueueId, exit: Exit) {
        self.leave_paths(id);
        let Some(q) = self.queues.get_mut(id) else { return };
        (q.members, q.of_pool, q.rules) = (exit.members, exit.of_pool, exit.rules);
    }

    /// Queue `id` has no paths any more.
    fn leave_paths(&mut self, id: QueueId) {
        let pullers = self.queues.get_mut(id).map(|q| std::mem::take(&mut q.pullers)).unwrap_or_default();
        for p in pullers {
            if let Some(path) = self.paths.get_mut(p.path) {
                path.queues.remove(id);
                path.ready.remove(id);
            }
        }
    }

    /// Queue `id` has something that its paths may send.
    pub(super) fn rouse(&mut self, id: QueueId) {
        for p in self.queues.get(id).iter().flat_map(|q| &q.pullers) {
            self.paths.get_mut(p.path).into_iter().for_each(|p| p.ready.insert(id));
        }
    }

    /// Forgets a queue that has nothing left.
    pub fn forget_queue(&mut self, id: QueueId) {
        if self.queues.get(id).is_none_or(|q| q.recipients > 0 || q.paused) {
            return;
        }
        self.leave_paths(id);
        if let Some(q) = self.queues.remove(id) {
            self.queue_by_name.remove(id.place(), q.names());
            self.windows_end_s.remove(&id);
        }
    }

    /// Forgets a path that has nothing left, and answers it.
    pub fn forget_path(&mut self, id: PathId, now_ms: i64) -> Option<Path> {
        self.paths.get(id).filter(|p| p.is_idle(now_ms))?;
        let p = self.paths.remove(id)?;
        self.path_by_name.remove(id.place(), p.names());
        Some(p)
    }

    /// The path of that name, if there is one.
    pub fn find_path(&mut self, destination: &str, vmta: &str) -> Option<(PathId, &mut Path)> {
        let names = |place| self.paths.at(place).map(|(_, p)| p.names());
        let (id, _) = self.paths.at(self.path_by_name.find((destination, vmta), names)?)?;
        self.paths.get_mut(id).map(|p| (id, p))
    }

    /// Adds a message of a job; its entries follow with [`Scheduler::enqueue`].
    pub fn add(&mut self, job: &str, mut m: Message<C>) -> Slot {
        m.job = self.jobs.join(job, u64::from(m.left), u64::from(m.body_len));
        self.queued_bytes += u64::from(m.body_len);
        self.content_bytes += m.content.as_ref().map_or(0, |c| c.held_bytes());
        self.messages.insert(m) as Slot
    }

    /// Recipients are their queue's from now on, and end as others do; [`Scheduler::enqueue`] lets them
    /// wait for their turn too.
    pub fn count_in(&mut self, id: QueueId, entry: &Entry) {
        let Some(m) = self.messages.get(entry.slot as usize) else { return };
        let Some(q) = self.queues.get_mut(id) else { return };
        self.queues_with_mail += u64::from(q.recipients == 0);
        q.recipients += entry.len();
        q.bytes += u64::from(m.body_len);
        self.recipients += entry.len();
    }

    /// Puts recipients into a queue, due at `due_ms` (0: now).
    pub fn enqueue(&mut self, id: QueueId, entry: Entry, due_ms: i64, now_ms: i64) {
        self.count_in(id, &entry);
        self.note_age(id, entry.slot);
        let Some(m) = self.messages.get(entry.slot as usize) else { return };
        let Some(q) = self.queues.get_mut(id) else { return };
        if m.notify_delay && m.windows_end_s == 0 {
            q.delay_at_ms = q.delay_at_ms.min(next_delay(m.received_ms, now_ms, q.delay_every_ms()));
        }
        if due_ms > now_ms {
            self.wait(id, entry, due_ms);
        } else {
            q.ready.push(m.job, entry);
            let again = q.rules.retry_upon_new_mail;
            if again {
                q.retry_now();
            }
            for p in &q.pullers {
                let Some(p) = self.paths.get_mut(p.path) else { continue };
                p.ready.insert(id);
                if again {
                    p.retry_at_ms = 0;
                }
            }
        }
    }

    /// What a connection of path `id` from `source` sends next. The tokens of rates are taken
    /// here, right before RCPT is written. `serves` says which queues' mail the connection can
    /// carry, `shared` grants what limits over all shards allow of a number of recipients of so
    /// many bytes.
    pub fn next(
        &mut self,
        id: PathId,
        source: Option<IpAddr>,
        now_ns: i64,
        serves: &dyn Fn(&Queue) -> bool,
        shared: &mut dyn FnMut(u64, u64) -> Grant,
    ) -> Next {
        let now_ms = now_ns / 1_000_000;
        let Some(p) = self.paths.get(id).filter(|p| p.may_send(now_ms)) else { return Next::Idle };
        let least = p.least_priority();
        let (mut nothing, mut found) = (Vec::new(), None);
        for queue in p.in_turn() {
            let Some(q) = self.queues.get_mut(queue) else { continue };
            q.promote(now_ms, &self.messages);
            if q.ready.is_empty() {
                nothing.push(queue);
                continue;
            }
            let Some(q) = self.queues.get(queue).filter(|q| q.may_go(now_ms) && serves(q)) else { continue };
            let Some(next) = q.ready.next(|j| self.jobs.may_go(j)).filter(|(_, e)| e.priority >= least) else {
                continue;
            };
            if self.may_pull(queue, id, now_ms) {
                found = Some((queue, next));
                break;
            }
        }
        if let Some(p) = self.paths.get_mut(id).filter(|_| !nothing.is_empty()) {
            nothing.iter().for_each(|q| p.ready.remove(*q));
        }
        match found {
            Some((queue, next)) => self.give(id, queue, next, source, now_ns, shared),
            None => Next::Idle,
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn give(
        &mut self,
        id: PathId,
        queue: QueueId,
        (job, entry): (JobId, Entry),
        source: Option<IpAddr>,
        now_ns: i64,
        shared: &mut dyn FnMut(u64, u64) -> Grant,
    ) -> Next {
        let (Some(p), Some(m)) = (self.paths.get_mut(id), self.messages.get(entry.slot as usize)) else {
            return Next::Idle;
        };
        let most = match p.rules.max_rcpt_per_transaction {
            _ if m.alone => 1,
            0 => entry.len(),
            n => n.min(entry.len()),
        };
        let (taken, next_ns) = take_tokens(p, source, most, u64::from(m.body_len), now_ns, shared);
        if taken == 0 {
            let at_ms = (next_ns + 999_999) / 1_000_000;
            // A connection that ends for it is not followed by another at once.
            p.connect_again_ms = p.connect_again_ms.max(at_ms);
            self.wake_at(id, at_ms);
            return Next::Wait(at_ms);
        }
        p.turn = queue.place();
        let ordinary = !p.is_urgent(entry.priority);
        p.ordinary += u32::from(ordinary);
        let key = m.key;
        if let Some(q) = self.queues.get_mut(queue) {
            q.ready.take(job, entry, taken);
        }
        self.pulled(queue, id, taken, now_ns / 1_000_000);
        let entry = Entry { end: entry.start + taken as u16, ..entry };
        Next::Send(Batch { ordinary, ..Batch::of(queue, key, entry) })
    }

    /// Path `id` has mail for more connections than it has, and could open one now.
    pub fn has_more_for(&self, id: PathId, now_ms: i64) -> bool {
        let Some(p) = self.paths.get(id) else { return false };
        let may_go = |q: &&Queue| q.may_go(now_ms) && q.ready.next(|j| self.jobs.may_go(j)).is_some();
        let queues = p.in_turn().take(QUEUES_LOOKED_AT).filter_map(|q| self.queues.get(q)).filter(may_go);
        let ready: usize = queues.map(|q| q.ready.len()).sum();
        let opens_another = (p.connecting < p.connections.max(1) || p.is_lively(now_ms)) && p.least_priority() == 0;
        !p.is_full() && opens_another && ready > 2 * (p.connections + p.connecting) as usize
    }

    /// A connection of path `id` is through with a batch.
    pub fn free(&mut self, id: PathId, ordinary: bool) {
        if let Some(p) = self.paths.get_mut(id) {
            p.ordinary = p.ordinary.saturating_sub(u32::from(ordinary));
        }
    }

    /// An entry of this message is in the queue, new or back from being in flight, where looking for expiry did not see it.
    fn note_age(&mut self, id: QueueId, slot: Slot) {
        let (Some(q), Some(m)) = (self.queues.get_mut(id), self.messages.get(slot as usize)) else { return };
        if m.windows_end_s == 0 {
            q.oldest_ms = q.oldest_ms.min(m.received_ms);
        } else {
            let first = self.windows_end_s.entry(id).or_insert(m.windows_end_s);
            *first = m.windows_end_s.min(*first);
        }
    }

    /// Puts a batch that was not attempted back in front.
    pub fn put_back(&mut self, batch: &Batch, recipients: &[u16]) {
        self.note_age(batch.queue, batch.slot);
        let Some(job) = self.messages.get(batch.slot as usize).map(|m| m.job) else { return };
        if let Some(q) = self.queues.get_mut(batch.queue) {
            for entry in batch.entries(recipients).into_iter().rev() {
                q.ready.put_back(job, entry);
            }
        }
        self.rouse(batch.queue);
    }

    /// Lets everybody go who waits in queue `id`.
    pub fn promote_all(&mut self, id: QueueId) {
        let Some(q) = self.queues.get_mut(id) else { return };
        q.promote(i64::from(u32::MAX) * 1000, &self.messages);
        self.rouse(id);
    }

    /// Recipients got a reply of their own that asks to come back.
    pub fn retry(&mut self, batch: &Batch, recipients: &[u16], due_ms: i64) {
        self.hold(batch, recipients, due_ms, batch.attempts.saturating_add(1));
    }

    /// Recipients wait until then, after so many attempts.
    pub fn hold(&mut self, batch: &Batch, recipients: &[u16], due_ms: i64, attempts: u8) {
        self.note_age(batch.queue, batch.slot);
        for entry in batch.entries(recipients) {
            self.wait(batch.queue, Entry { attempts, ..entry }, due_ms);
        }
        self.drop_content(batch.slot);
    }

    /// Frees a message's content after its first attempt.
    pub fn drop_content(&mut self, slot: Slot) {
        if let Some(m) = self.messages.get_mut(slot as usize)
            && let Some(c) = m.content.take()
        {
            self.content_bytes = self.content_bytes.saturating_sub(c.held_bytes());
        }
    }

    /// No path that serves queue `id` may send before the next look at the clock: an attempt is far off.
    pub fn rests(&self, id: QueueId, now_ms: i64) -> bool {
        let Some(q) = self.queues.get(id) else { return false };
        let rests = |p: &Puller| self.paths.get(p.path).is_some_and(|p| p.retry_at_ms > now_ms);
        q.retry_at_ms() > now_ms || (q.pullers.len() == q.members.len() && q.pullers.iter().all(rests))
    }

    /// Frees the contents of what a queue holds for its next attempt: that is far off.
    pub fn drop_contents(&mut self, id: QueueId) {
        if self.content_bytes == 0 {
            return;
        }
        let slots: Vec<Slot> = match self.queues.get(id) {
            Some(q) => q.ready.iter().take(CONTENTS_DROPPED_MAX).map(|(_, e)| e.slot).collect(),
            None => return,
        };
        slots.into_iter().for_each(|s| self.drop_content(s));
    }

    /// The message of a key in the spool at a slot; `None` where it has ended, and the slot may be another message's.
    pub fn message(&self, slot: Slot, key: u64) -> Option<&Message<C>> {
        self.messages.get(slot as usize).filter(|m| m.key == key)
    }

    /// Recipients of the message of a key ended; answers whether nothing is left of it. `None` where all of it had ended before, and nothing
    /// was done.
    pub fn settle(&mut self, id: QueueId, slot: Slot, key: u64, n: usize) -> Option<bool> {
        let m = self.messages.get_mut(slot as usize).filter(|m| m.key == key)?;
        m.left = m.left.saturating_sub(n as u16);
        let (last, body_len) = (m.left == 0, u64::from(m.body_len));
        self.jobs.leave(m.job, n as u64, last.then_some(body_len));
        self.recipients = self.recipients.saturating_sub(n as u64);
        if let Some(q) = self.queues.get_mut(id) {
            let had = q.recipients > 0;
            q.recipients = q.recipients.saturating_sub(n as u64);
            self.queues_with_mail -= u64::from(had && q.recipients == 0);
            q.bytes = if q.recipients == 0 { 0 } else { q.bytes.saturating_sub(body_len) };
        }
        if last {
            self.drop_content(slot);
            self.messages.remove(slot as usize);
            self.queued_bytes = self.queued_bytes.saturating_sub(body_len);
        }
        Some(last)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn exit(rules: DomainRules, members: &[(&str, u32)]) -> Exit {
        let members = members.iter().enumerate().map(|(i, (name, weight))| Member {
            vmta: i as u32,
            name: Rc::from(*name),
            weight: *weight,
        });
        Exit { members: members.collect(), of_pool: false, rules: Rc::new(rules) }
    }

    /// A queue with `n` recipients, and its only path.
    pub fn with(rules: DomainRules, n: u16) -> (Scheduler<()>, QueueId) {
        let mut s = Scheduler::default();
        let exit = exit(rules, &[("v", 1)]);
        let rules = Rc::clone(&exit.rules);
        let id = s.queue("d.test", "v", || exit);
        s.path_of(id, 0, |m| (m.vmta, rules));
        let slot = s.add(
            "",
            Message {
                key: 1,
                received_ms: 0,
                body_len: 100,
                left: n,
                notify_delay: true,
                alone: false,
                windows_end_s: 0,
                job: 0,
                content: None,
            },
        );
        s.enqueue(id, Entry { slot, start: 0, end: n, priority: 50, attempts: 0 }, 0, 0);
        (s, id)
    }

    pub fn next(s: &mut Scheduler<()>, id: QueueId, now_ns: i64) -> Next {
        s.next(id.only_path(), None, now_ns, &|_| true, &mut |n, _| Grant::all(n))
    }

    #[test]
    fn a_message_is_split_by_max_rcpt_per_transaction() {
        let (mut s, id) = with(DomainRules { max_rcpt_per_transaction: 2, ..Default::default() }, 5);
        let mut sizes = Vec::new();
        while let Next::Send(b) = next(&mut s, id, 0) {
            sizes.push(b.recipients.len());
        }
        assert_eq!(sizes, [2, 2, 1]);
    }

    #[test]
    fn what_waits_for_its_own_reply_does_not_stop_the_queue() {
        let (mut s, id) = with(DomainRules::default(), 2);
        let Next::Send(b) = next(&mut s, id, 0) else { panic!("nothing to send") };
        s.retry(&b, &[0], 10_000);
        s.put_back(&b, &[1]);
        assert!(matches!(next(&mut s, id, 0), Next::Send(b) if b.recipients == [1]));
        assert_eq!(next(&mut s, id, 0), Next::Idle);
        assert_eq!(s.next_timer(), Some(10_000));
        assert_eq!(s.due(10_000), [Timer::Queue(id)]);
        assert!(matches!(next(&mut s, id, 10_000 * 1_000_000), Next::Send(b) if b.recipients == [0]));
    }

    #[test]
    fn a_path_that_serves_two_queues_takes_from_them_in_turn() {
        let (mut s, id) = with(DomainRules::default(), 1);
        let rules = Rc::clone(&s.queues[id].rules);
        let exit = Exit { of_pool: true, ..exit(DomainRules::default(), &[("v", 1)]) };
        let other = s.queue("d.test", "pool", || exit);
        assert_eq!(s.path_of(other, 0, |m| (m.vmta, rules)), Some((id.only_path(), New::ForQueue)));
        for key in 0..3 {
            let m = Message {
                key,
                received_ms: 0,
                body_len: 1,
                left: 1,
                notify_delay: false,
                alone: false,
                windows_end_s: 0,
                job: 0,
                content: None,
            };
            let slot = s.add("", m);
            s.enqueue(other, Entry { slot, start: 0, end: 1, priority: 50, attempts: 0 }, 0, 0);
        }
        let mut from = Vec::new();
        while let Next::Send(b) = next(&mut s, id, 0) {
            from.push(b.queue);
        }
        assert_eq!(from, [id, other, other, other]);
    }

    #[test]
    fn a_deferred_message_costs_less_than_100_bytes() {
        assert!(size_of::<Queue>() <= 240 && size_of::<Timer>() <= 12, "{}", size_of::<Queue>());
        assert!(size_of::<Message<()>>() + size_of::<Reverse<(u32, Entry)>>() <= 64);
    }
}

//! All queues of a shard and the messages in them.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet, VecDeque};
use std::net::IpAddr;
use std::rc::Rc;

use bytes::Bytes;
use ipc::message::ArchivedEnvelope;
use ipc::message::{origin_part, queue_part};
use ipc::rules::{DomainRules, Rate};
use rkyv::util::AlignedVec;
use slab::Slab;
use smallvec::SmallVec;

use super::job::{JobId, Jobs};
use super::name_index::NameIndex;
use super::path::{Path, PathId};
use super::queue::{Entry, Member, Puller, Queue, QueueId, RolledUp};
use super::rate::Pace;
use crate::classify::outcome::Failure;
use crate::deliver::signing::Signed;
use crate::dkim::request::{self, Request};

/// Messages whose contents are freed at once.
const CONTENTS_DROPPED_MAX: usize = 10_000;

/// Failures that others are compared with.
const FAILURES_KEPT: usize = 32;
/// Names that are kept whether queues have them or not.
const NAMES_MIN: usize = 1024;

/// A message's place in [`Scheduler`].
pub type Slot = u32;

/// Envelope and content held in memory.
#[derive(Debug)]
pub struct Content {
    /// Archived [`ipc::message::Envelope`], validated.
    pub envelope: AlignedVec<16>,
    /// Header as changed, and the rest, as it goes out.
    pub body: [Bytes; 2],
    /// What it asks of its signature.
    pub dkim: Option<Request>,
    /// The content with the fields that are kept in front.
    stored: [Bytes; 2],
    /// The same behind its DKIM signatures, by what asked for them: signed once for all recipients
    /// and attempts as long as it is held.
    pub signed: RefCell<Vec<Signed>>,
}

impl Content {
    /// What was stored.
    pub fn new(envelope: AlignedVec<16>, body: [Bytes; 2]) -> Content {
        let kept = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&envelope).map_or(0, |e| e.kept);
        let stored = body.clone();
        let (body, dkim) = request::part(body, kept);
        Content { envelope, body, dkim, stored, signed: RefCell::default() }
    }

    /// The content as it is stored.
    pub fn stored(&self) -> &[Bytes; 2] {
        &self.stored
    }
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
    /// What it belongs to, see [`Scheduler::add`].
    pub job: JobId,
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
    /// Priority that they share.
    pub priority: u8,
    /// Attempts made before.
    pub attempts: u8,
    /// It counts among its path's mail below `reserved-priority`.
    pub ordinary: bool,
    /// Indexes of the recipients.
    pub recipients: Vec<u16>,
}

impl Batch {
    /// All of an entry that was taken out of its queue.
    pub fn of(queue: QueueId, key: u64, e: Entry) -> Batch {
        let recipients = (e.start..e.end).collect();
        Batch { queue, slot: e.slot, key, priority: e.priority, attempts: e.attempts, ordinary: false, recipients }
    }
}

/// Recipients that were taken out of their queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakenOut {
    /// The message's key in the spool.
    pub key: u64,
    /// The entry that they waited in.
    pub entry: Entry,
    /// Their indexes.
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

/// What limits over all shards allow of a number of recipients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// So many may be attempted.
    pub count: u64,
    /// When there will be more, if that is none; Unix nanoseconds.
    pub next_ns: i64,
    /// The directive behind it then, and whose it is; see [`Path::blocked_by`].
    pub by: &'static str,
}

impl Grant {
    /// All of them.
    pub fn all(count: u64) -> Grant {
        Grant { count, next_ns: 0, by: "" }
    }
}

/// Something whose time comes. Numbers of 32 bits: there is one for nearly every queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// Recipients of a queue that waited are due.
    Queue(u32),
    /// A path's clock or window lets it go on.
    Path(u32),
}

/// Who a queue's mail may leave through.
#[derive(Debug, Clone)]
pub struct Way {
    /// The virtual MTA, or the members of the pool.
    pub members: Rc<[Member]>,
    /// It is a pool.
    pub of_pool: bool,
    /// Directives for what waits.
    pub rules: Rc<DomainRules>,
}

/// All queues and paths of a shard.
#[derive(Debug, Default)]
pub struct Scheduler {
    /// Messages.
    pub messages: Slab<Message>,
    /// Jobs that they belong to.
    pub jobs: Jobs,
    /// Queues.
    pub queues: Slab<Queue>,
    /// Paths.
    pub paths: Slab<Path>,
    queue_by_name: NameIndex,
    path_by_name: NameIndex,
    /// Names of virtual MTAs and pools that queues have, and how many may be kept before those that no
    /// queue has any more are dropped.
    names: HashSet<Rc<str>>,
    names_kept: usize,
    /// Failures of late.
    failures: VecDeque<Rc<Failure>>,
    pub(super) timers: BinaryHeap<Reverse<(i64, Timer)>>,
    /// Bytes of content held in memory.
    pub content_bytes: u64,
    /// Recipients in all queues.
    pub recipients: u64,
    /// Queues that have some.
    pub queues_with_mail: u64,
    /// Bytes of content in all queues, once a message.
    pub queued_bytes: u64,
}

impl Scheduler {
    /// The queue of a destination and virtual MTA or pool, made if it is new.
    pub fn queue(&mut self, destination: &str, via: &str, way: impl FnOnce() -> Way) -> QueueId {
        let names = |id: usize| self.queues.get(id).map(Queue::names);
        if let Some(id) = self.queue_by_name.find((destination, via), names) {
            return id;
        }
        let Way { members, of_pool, rules } = way();
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
            paused: false,
            no_mx: false,
        });
        self.queue_by_name.insert(id, |id| self.queues.get(id).map(Queue::names));
        id
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

    /// The path by which a member of queue `id` serves it, made if it is new; and whether it is.
    /// `rules` answers the virtual MTA's index of now, and its directives.
    pub fn path_of(
        &mut self,
        id: QueueId,
        member: usize,
        rules: impl FnOnce(&Member) -> (u32, Rc<DomainRules>),
    ) -> Option<(PathId, bool)> {
        let q = self.queues.get_mut(id)?;
        if let Some(p) = q.pullers.iter().find(|p| p.member == member) {
            return Some((p.path, false));
        }
        let m = q.members.get(member)?;
        let names = |id: usize| self.paths.get(id).map(Path::names);
        let (path, new) = match self.path_by_name.find((q.destination(), &m.name), names) {
            Some(path) => (path, false),
            None => {
                let (vmta, rules) = rules(m);
                let p = Path::new(Rc::clone(q.destination()), vmta, Rc::clone(&m.name), rules);
                let path = self.paths.insert(p);
                self.path_by_name.insert(path, |id| self.paths.get(id).map(Path::names));
                (path, true)
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
    pub fn set_way(&mut self, id: QueueId, way: Way) {
        let Some(q) = self.queues.get_mut(id) else { return };
        for p in std::mem::take(&mut q.pullers) {
            if let Some(path) = self.paths.get_mut(p.path) {
                path.queues.remove(id);
                path.ready.remove(id);
            }
        }
        (q.members, q.of_pool, q.rules) = (way.members, way.of_pool, way.rules);
    }

    /// Forgets a queue that has nothing left.
    pub fn forget_queue(&mut self, id: QueueId) {
        if self.queues.get(id).is_none_or(|q| q.recipients > 0 || q.paused) {
            return;
        }
        let q = self.queues.remove(id);
        for p in &q.pullers {
            if let Some(path) = self.paths.get_mut(p.path) {
                path.queues.remove(id);
                path.ready.remove(id);
            }
        }
        self.queue_by_name.remove(id, q.names());
    }

    /// Forgets a path that has nothing left, and answers it.
    pub fn forget_path(&mut self, id: PathId, now_ms: i64) -> Option<Path> {
        self.paths.get(id).filter(|p| p.is_idle(now_ms))?;
        let p = self.paths.remove(id);
        self.path_by_name.remove(id, p.names());
        Some(p)
    }

    /// The path of that name, if there is one.
    pub fn find_path(&mut self, destination: &str, vmta: &str) -> Option<(PathId, &mut Path)> {
        let id = self.path_by_name.find((destination, vmta), |id| self.paths.get(id).map(Path::names))?;
        self.paths.get_mut(id).map(|p| (id, p))
    }

    /// Adds a message of a job; its entries follow with [`Scheduler::enqueue`].
    pub fn add(&mut self, job: &str, mut m: Message) -> Slot {
        m.job = self.jobs.join(job, u64::from(m.left), u64::from(m.body_len));
        self.queued_bytes += u64::from(m.body_len);
        if m.content.is_some() {
            self.content_bytes += u64::from(m.body_len);
        }
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
        let Some(m) = self.messages.get(entry.slot as usize) else { return };
        let Some(q) = self.queues.get_mut(id) else { return };
        q.oldest_ms = q.oldest_ms.min(m.received_ms);
        if m.notify_delay {
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

    /// Lets recipients wait in their queue until `due_ms`, to the second above.
    fn wait(&mut self, id: QueueId, entry: Entry, due_ms: i64) {
        // `never` lies behind the last second that fits.
        let due_s = (due_ms.saturating_add(999) / 1000).clamp(0, i64::from(u32::MAX));
        if let Some(q) = self.queues.get_mut(id) {
            let sooner = q.waiting.peek().is_none_or(|Reverse((first, _))| i64::from(*first) > due_s);
            if q.waiting.is_empty() {
                // Most that wait are alone.
                q.waiting.reserve_exact(1);
            }
            q.waiting.push(Reverse((due_s as u32, entry)));
            if sooner {
                self.timers.push(Reverse((due_s * 1000, Timer::Queue(id as u32))));
            }
        }
    }

    /// Wakes path `id` at a time.
    pub fn wake_at(&mut self, id: PathId, at_ms: i64) {
        // Every message that joins a waiting path asks for the same time.
        if let Some(p) = self.paths.get_mut(id).filter(|p| p.timer_ms != at_ms && at_ms < i64::MAX) {
            p.timer_ms = at_ms;
            self.timers.push(Reverse((at_ms, Timer::Path(id as u32))));
        }
    }

    /// When [`Scheduler::due`] has something, Unix milliseconds.
    pub fn next_timer(&self) -> Option<i64> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }

    /// What has come due.
    pub fn due(&mut self, now_ms: i64) -> Vec<Timer> {
        let mut all = Vec::new();
        while let Some(Reverse((at, timer))) = self.timers.peek().copied() {
            if at > now_ms {
                break;
            }
            self.timers.pop();
            match timer {
                Timer::Path(id) => {
                    let Some(p) = self.paths.get_mut(id as PathId) else { continue };
                    p.timer_ms = 0;
                }
                Timer::Queue(id) => {
                    let id = id as QueueId;
                    let Some(q) = self.queues.get_mut(id) else { continue };
                    q.promote(now_ms, &self.messages);
                    for p in &q.pullers {
                        self.paths.get_mut(p.path).into_iter().for_each(|p| p.ready.insert(id));
                    }
                    if let Some(Reverse((due, _))) = q.waiting.peek() {
                        self.timers.push(Reverse((i64::from(*due) * 1000, timer)));
                    }
                }
            }
            all.push(timer);
        }
        all
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
        p.turn = queue as u32;
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

    /// A connection of path `id` is through with a batch.
    pub fn free(&mut self, id: PathId, ordinary: bool) {
        if let Some(p) = self.paths.get_mut(id) {
            p.ordinary = p.ordinary.saturating_sub(u32::from(ordinary));
        }
    }

    /// A transaction did not deliver its content: bytes that were counted are given back.
    pub fn not_transferred(&mut self, id: PathId, source: Option<IpAddr>, bytes: u64) {
        let Some(p) = self.paths.get_mut(id) else { return };
        let rate = p.limits().data_volume_rate;
        p.paces.volume.give_back(rate, bytes);
        if let Some(ip) = source {
            let rate = p.rules.source_ip_max_data_volume_rate.of(ip);
            if rate.count > 0 {
                p.source(ip).paces.volume.give_back(rate, bytes);
            }
        }
    }

    /// Takes recipients that wait out of queue `id`: those of a message (its key and slot) that `wanted`
    /// says. They count as its recipients until they are settled.
    pub fn take_out(&mut self, id: QueueId, wanted: impl Fn(u64, Slot, u16) -> bool) -> Vec<TakenOut> {
        let Some(q) = self.queues.get_mut(id) else { return Vec::new() };
        let messages = &self.messages;
        let key = |e: &Entry| messages.get(e.slot as usize).map(|m| m.key);
        let meant = |e: &Entry| key(e).is_some_and(|k| (e.start..e.end).any(|r| wanted(k, e.slot, r)));
        let mut found: Vec<(Entry, i64)> = Vec::new();
        let mut stays = |e: &Entry, due_ms: i64| {
            let taken = meant(e);
            if taken {
                found.push((*e, due_ms));
            }
            !taken
        };
        q.ready.retain(|e| stays(e, 0));
        q.waiting.retain(|Reverse((due, e))| stays(e, i64::from(*due) * 1000));
        let mut all = Vec::new();
        for (entry, due_ms) in found {
            let Some(m) = self.messages.get(entry.slot as usize) else { continue };
            let (key, job) = (m.key, m.job);
            let (out, rest): (Vec<u16>, Vec<u16>) = (entry.start..entry.end).partition(|r| wanted(key, entry.slot, *r));
            let batch = Batch::of(id, key, entry);
            for e in ranges(&batch, &rest) {
                match due_ms {
                    0 => self.queues.get_mut(id).into_iter().for_each(|q| q.ready.push(job, e)),
                    due => self.wait(id, e, due),
                }
            }
            all.push(TakenOut { key, entry, recipients: out });
        }
        all
    }

    /// Recipients that were counted as attempted were not: the receiver never heard of them.
    pub fn not_attempted(&mut self, id: PathId, source: Option<IpAddr>, n: u64) {
        let Some(p) = self.paths.get_mut(id) else { return };
        let (msg, hour) = (p.limits().msg_rate, p.limits().msg_per_hour);
        p.paces.msg.give_back(msg, n);
        p.paces.hour.give_back(hour, n);
        if let Some(ip) = source {
            let rate = p.rules.source_ip_max_msg_rate.of(ip);
            if rate.count > 0 {
                p.source(ip).paces.msg.give_back(rate, n);
            }
        }
    }

    /// What was in flight while expiry was looked for was not seen there.
    fn back(&mut self, id: QueueId, slot: Slot) {
        if let (Some(q), Some(m)) = (self.queues.get_mut(id), self.messages.get(slot as usize)) {
            q.oldest_ms = q.oldest_ms.min(m.received_ms);
        }
    }

    /// Puts a batch that was not attempted back in front.
    pub fn put_back(&mut self, batch: &Batch, recipients: &[u16]) {
        self.back(batch.queue, batch.slot);
        let Some(job) = self.messages.get(batch.slot as usize).map(|m| m.job) else { return };
        if let Some(q) = self.queues.get_mut(batch.queue) {
            for entry in ranges(batch, recipients).into_iter().rev() {
                q.ready.put_back(job, entry);
            }
            for p in &q.pullers {
                self.paths.get_mut(p.path).into_iter().for_each(|p| p.ready.insert(batch.queue));
            }
        }
    }

    /// Lets everybody go who waits in queue `id`.
    pub fn promote_all(&mut self, id: QueueId) {
        let Some(q) = self.queues.get_mut(id) else { return };
        q.promote(i64::from(u32::MAX) * 1000, &self.messages);
        for p in &q.pullers {
            self.paths.get_mut(p.path).into_iter().for_each(|p| p.ready.insert(id));
        }
    }

    /// Recipients got a reply of their own that asks to come back.
    pub fn retry(&mut self, batch: &Batch, recipients: &[u16], due_ms: i64) {
        self.hold(batch, recipients, due_ms, batch.attempts.saturating_add(1));
    }

    /// Recipients wait until then, after so many attempts.
    pub fn hold(&mut self, batch: &Batch, recipients: &[u16], due_ms: i64, attempts: u8) {
        self.back(batch.queue, batch.slot);
        for entry in ranges(batch, recipients) {
            self.wait(batch.queue, Entry { attempts, ..entry }, due_ms);
        }
        self.drop_content(batch.slot);
    }

    /// Frees a message's content after its first attempt.
    pub fn drop_content(&mut self, slot: Slot) {
        if let Some(m) = self.messages.get_mut(slot as usize)
            && m.content.take().is_some()
        {
            self.content_bytes = self.content_bytes.saturating_sub(u64::from(m.body_len));
        }
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

    /// Recipients ended; answers whether nothing is left of the message.
    pub fn settle(&mut self, id: QueueId, slot: Slot, n: usize) -> bool {
        let Some(m) = self.messages.get_mut(slot as usize) else { return false };
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
        for (e, due) in q.ready.iter().map(|(_, e)| (e, 0)).chain(waiting) {
            let Some(m) = messages.get(e.slot as usize).filter(|m| m.notify_delay) else { continue };
            first = first.min(next_delay(m.received_ms, now_ms, every));
            if next_delay(m.received_ms, since - 1, every) <= now_ms {
                found.push((e, due));
            }
        }
        q.delay_at_ms = first;
        found
    }

    /// Moves what waits in a queue to another one; answers how many recipients.
    pub fn transfer(&mut self, from: QueueId, to: QueueId, now_ms: i64) -> u64 {
        let mut moved = 0;
        for (entry, due_ms) in self.drain(from) {
            let bytes = self.messages.get(entry.slot as usize).map_or(0, |m| u64::from(m.body_len));
            if let Some(q) = self.queues.get_mut(from) {
                let had = q.recipients > 0;
                q.recipients = q.recipients.saturating_sub(entry.len());
                self.queues_with_mail -= u64::from(had && q.recipients == 0);
                q.bytes = q.bytes.saturating_sub(bytes);
            }
            self.recipients = self.recipients.saturating_sub(entry.len());
            self.enqueue(to, entry, due_ms, now_ms);
            moved += entry.len();
        }
        moved
    }

    /// Takes everything that waits out of queue `id`, with the time it is due (Unix
    /// milliseconds; 0 for now).
    pub fn drain(&mut self, id: QueueId) -> Vec<(Entry, i64)> {
        let Some(q) = self.queues.get_mut(id) else { return Vec::new() };
        let mut all: Vec<(Entry, i64)> = q.ready.drain().into_iter().map(|e| (e, 0)).collect();
        all.extend(std::mem::take(&mut q.waiting).into_iter().map(|Reverse((due, e))| (e, i64::from(due) * 1000)));
        all
    }
}

/// Takes what all limits of a path allow of `most` recipients of a message of `bytes`, and says
/// when there will be more if that is none.
fn take_tokens(
    p: &mut Path,
    source: Option<IpAddr>,
    most: u64,
    bytes: u64,
    now_ns: i64,
    shared: &mut dyn FnMut(u64, u64) -> Grant,
) -> (u64, i64) {
    let l = p.limits();
    let mut n = most;
    let mut next = now_ns;
    let mut allow = |pace: &Pace, rate: Rate, one: bool| {
        let (k, at) = pace.available(rate, now_ns, if one { n.min(1) } else { n });
        if !one || k == 0 {
            n = n.min(k);
        }
        next = next.max(at);
    };
    allow(&p.paces.msg, l.msg_rate, false);
    allow(&p.paces.hour, l.msg_per_hour, false);
    allow(&p.paces.volume, l.data_volume_rate, true);
    let of_source = source.filter(|_| p.limits_sources()).map(|ip| {
        let (msg, volume) = (p.rules.source_ip_max_msg_rate.of(ip), p.rules.source_ip_max_data_volume_rate.of(ip));
        let paces = p.source(ip).paces;
        (ip, msg, volume, paces)
    });
    if let Some((_, msg, volume, paces)) = &of_source {
        allow(&paces.msg, *msg, false);
        allow(&paces.volume, *volume, true);
    }
    if n == 0 {
        return (0, next);
    }
    let Grant { count: granted, next_ns, by } = shared(n, bytes);
    if granted == 0 {
        (p.blocked_until_ms, p.blocked_by) = ((next_ns + 999_999) / 1_000_000, by);
        return (0, next_ns);
    }
    p.paces.msg.advance(l.msg_rate, now_ns, granted);
    p.paces.hour.advance(l.msg_per_hour, now_ns, granted);
    p.paces.volume.advance(l.data_volume_rate, now_ns, bytes);
    if let Some((ip, msg, volume, _)) = of_source {
        let paces = &mut p.source(ip).paces;
        paces.msg.advance(msg, now_ns, granted);
        paces.volume.advance(volume, now_ns, bytes);
    }
    (granted, now_ns)
}

/// The first multiple of `every_ms` after acceptance that is later than `after_ms`.
fn next_delay(received_ms: i64, after_ms: i64, every_ms: i64) -> i64 {
    let passed = (after_ms - received_ms).max(0) / every_ms;
    received_ms.saturating_add((passed + 1).saturating_mul(every_ms))
}

/// Recipients as ranges of consecutive indexes.
fn ranges(batch: &Batch, recipients: &[u16]) -> Vec<Entry> {
    let mut all: Vec<Entry> = Vec::new();
    for r in recipients {
        match all.last_mut() {
            Some(e) if e.end == *r => e.end += 1,
            _ => all.push(Entry {
                slot: batch.slot,
                start: *r,
                end: r + 1,
                priority: batch.priority,
                attempts: batch.attempts,
            }),
        }
    }
    all
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use ipc::rules::Rate;
    use std::time::Duration;

    pub fn way(rules: DomainRules, members: &[(&str, u32)]) -> Way {
        let members = members.iter().enumerate().map(|(i, (name, weight))| Member {
            vmta: i as u32,
            name: Rc::from(*name),
            weight: *weight,
        });
        Way { members: members.collect(), of_pool: false, rules: Rc::new(rules) }
    }

    /// A queue with `n` recipients, and its only path; both have number 0.
    fn with(rules: DomainRules, n: u16) -> (Scheduler, QueueId) {
        let mut s = Scheduler::default();
        let way = way(rules, &[("v", 1)]);
        let rules = Rc::clone(&way.rules);
        let id = s.queue("d.test", "v", || way);
        s.path_of(id, 0, |m| (m.vmta, rules));
        let slot = s.add(
            "",
            Message { key: 1, received_ms: 0, body_len: 100, left: n, notify_delay: true, job: 0, content: None },
        );
        s.enqueue(id, Entry { slot, start: 0, end: n, priority: 50, attempts: 0 }, 0, 0);
        (s, id)
    }

    pub fn next(s: &mut Scheduler, path: PathId, now_ns: i64) -> Next {
        s.next(path, None, now_ns, &|_| true, &mut |n, _| Grant::all(n))
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
        assert_eq!(s.due(10_000), [Timer::Queue(id as u32)]);
        assert!(matches!(next(&mut s, id, 10_000 * 1_000_000), Next::Send(b) if b.recipients == [0]));
    }

    #[test]
    fn who_is_taken_out_leaves_the_others_as_they_were() {
        let (mut s, id) = with(DomainRules { max_rcpt_per_transaction: 4, ..Default::default() }, 10);
        let Next::Send(b) = next(&mut s, id, 0) else { panic!("nothing to send") };
        s.retry(&b, &[1, 2, 3], 60_000);
        let taken = |s: &mut Scheduler, which: &[u16]| {
            let all = s.take_out(id, |key, slot, r| (key, slot) == (1, b.slot) && which.contains(&r));
            let mut all: Vec<u16> = all.into_iter().flat_map(|t| t.recipients).collect();
            all.sort_unstable();
            all
        };
        assert_eq!(taken(&mut s, &[0, 2, 5, 9, 77]), [2, 5, 9], "0 is under way");
        assert!(taken(&mut s, &[2, 5, 9]).is_empty());
        let mut left = Vec::new();
        while let Next::Send(b) = next(&mut s, id, 0) {
            left.extend(b.recipients);
        }
        assert_eq!(left, [4, 6, 7, 8]);
        assert!(!s.due(60_000).is_empty());
        while let Next::Send(b) = next(&mut s, id, 60_000 * 1_000_000) {
            assert_eq!(b.attempts, 1);
            left.extend(b.recipients);
        }
        assert_eq!(left[4..], [1, 3]);
    }

    #[test]
    fn the_rate_counts_recipients() {
        let rate = Rate { count: 1, per: Duration::from_secs(10) };
        let (mut s, id) = with(DomainRules { max_msg_rate: rate, ..Default::default() }, 3);
        let now = 1_000_000_000_000;
        assert!(matches!(next(&mut s, id, now), Next::Send(b) if b.recipients == [0]));
        assert!(matches!(next(&mut s, id, now), Next::Wait(at) if at >= now / 1_000_000 + 10_000));
    }

    #[test]
    fn expiry_finds_recipients_in_every_state() {
        let (mut s, id) = with(DomainRules { bounce_after: Duration::from_secs(5), ..Default::default() }, 3);
        let Next::Send(b) = next(&mut s, id, 0) else { panic!("nothing to send") };
        s.retry(&b, &[0], 60_000);
        s.put_back(&b, &[1, 2]);
        assert!(s.expired(id, 4_999).is_empty());
        assert_eq!(s.expired(id, 5_000).iter().map(Entry::len).sum::<u64>(), 3);
        assert!(s.settle(id, b.slot, 3));
    }

    #[test]
    fn delays_are_told_of_at_every_multiple() {
        let every = Duration::from_millis(1000);
        let (mut s, id) = with(DomainRules { notify_of_delay_every: every, ..Default::default() }, 1);
        let slot = s.add(
            "",
            Message { key: 2, received_ms: 300, body_len: 1, left: 1, notify_delay: true, job: 0, content: None },
        );
        s.enqueue(id, Entry { slot, start: 0, end: 1, priority: 50, attempts: 0 }, 9000, 400);
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
        s.paths[id].rules = Rc::new(DomainRules { max_rcpt_per_transaction: 1, ..(*s.queues[id].rules).clone() });
        let Next::Send(b) = next(&mut s, id, 0) else { panic!("nothing to send") };
        assert_eq!(s.expired(id, 6_000).len(), 1);
        s.retry(&b, &b.recipients, 7_000);
        assert_eq!(s.expired(id, 8_000).len(), 1);
    }

    #[test]
    fn a_waiting_queue_sets_one_timer_however_many_ask() {
        let (mut s, id) = with(DomainRules::default(), 1);
        for _ in 0..1000 {
            s.wake_at(id, 5_000);
        }
        assert_eq!(s.timers.len(), 1);
        assert_eq!(s.due(5_000), [Timer::Path(id as u32)]);
        s.wake_at(id, 9_000);
        assert_eq!(s.next_timer(), Some(9_000));
    }

    #[test]
    fn who_waits_for_ever_is_not_tried_at_once() {
        let (mut s, id) = with(DomainRules::default(), 1);
        let Next::Send(b) = next(&mut s, id, 0) else { panic!("nothing to send") };
        s.retry(&b, &[0], ipc::rules::NEVER_MS as i64);
        assert_eq!(next(&mut s, id, 1_800_000_000_000_000_000), Next::Idle);
    }

    #[test]
    fn a_shared_limit_that_asks_to_wait_opens_no_connection_meanwhile() {
        let (mut s, id) = with(DomainRules::default(), 1);
        let at_ms = 1_000_060_000;
        assert_eq!(
            s.next(id, None, 1_000_000_000_000_000, &|_| true, &mut |_, _| Grant {
                count: 0,
                next_ns: at_ms * 1_000_000,
                by: ""
            }),
            Next::Wait(at_ms)
        );
        assert_eq!((s.paths[id].wanted(1, 0, at_ms - 1), s.paths[id].wanted(1, 0, at_ms)), (0, 1));
    }

    #[test]
    fn a_path_that_serves_two_queues_takes_from_them_in_turn() {
        let (mut s, id) = with(DomainRules::default(), 1);
        let rules = Rc::clone(&s.queues[id].rules);
        let way = Way { of_pool: true, ..way(DomainRules::default(), &[("v", 1)]) };
        let other = s.queue("d.test", "pool", || way);
        assert_eq!(s.path_of(other, 0, |m| (m.vmta, rules)), Some((0, false)));
        for key in 0..3 {
            let m = Message { key, received_ms: 0, body_len: 1, left: 1, notify_delay: false, job: 0, content: None };
            let slot = s.add("", m);
            s.enqueue(other, Entry { slot, start: 0, end: 1, priority: 50, attempts: 0 }, 0, 0);
        }
        let mut from = Vec::new();
        while let Next::Send(b) = next(&mut s, 0, 0) {
            from.push(b.queue);
        }
        assert_eq!(from, [id, other, other, other]);
    }

    #[test]
    fn every_limit_is_asked_and_the_tightest_binds() {
        let ip = IpAddr::from([127, 0, 0, 1]);
        let rate = |count| Rate { count, per: Duration::from_secs(60) };
        let rules = DomainRules { max_msg_rate: rate(600), max_data_volume_rate: rate(100_000), ..Default::default() };
        let now = 1_000_000_000_000;
        let taken = |rules: &DomainRules, shared: u64| {
            let (mut s, id) = with(rules.clone(), 1000);
            match s.next(id, Some(ip), now, &|_| true, &mut |n, _| Grant::all(n.min(shared))) {
                Next::Send(b) => b.recipients.len(),
                _ => 0,
            }
        };
        let alone = taken(&rules, 1000);
        assert!((20..=25).contains(&alone), "{alone}");
        assert_eq!(taken(&rules, 3), 3);
        assert_eq!(taken(&rules, 0), 0);
        assert_eq!(taken(&DomainRules { max_msg_per_hour: 50, ..rules.clone() }, 1000), 2);
        // What was not delivered does not count as volume.
        let (mut s, id) =
            with(DomainRules { max_data_volume_rate: rate(100), max_rcpt_per_transaction: 1, ..rules }, 3);
        assert!(matches!(next(&mut s, id, now), Next::Send(_)));
        assert!(matches!(next(&mut s, id, now), Next::Wait(_)));
        s.not_transferred(id, None, 100);
        assert!(matches!(next(&mut s, id, now), Next::Send(_)));
    }

    #[test]
    fn a_deferred_message_costs_less_than_100_bytes() {
        assert!(size_of::<Queue>() <= 240 && size_of::<Timer>() <= 8, "{}", size_of::<Queue>());
        assert!(size_of::<Message>() + size_of::<Reverse<(u32, Entry)>>() <= 64);
    }
}

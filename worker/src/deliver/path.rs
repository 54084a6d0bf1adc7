//! What one connection knows of its path.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use ipc::backoff::Mode;
use ipc::layers::NO_VMTA;
use ipc::rules::{ANY_CONNECTIONS, DomainRules};

use super::shared_limits::SharedRates;
use super::slow::SlowAt;
use crate::classify::reply_rules::ReplyRules;
use crate::clock;
use crate::config::Config;
use crate::engine::connections::Departure;
use crate::prepare::rewrite_list::RewriteList;
use crate::schedule::{Batch, PathId, QueueId};
use crate::shard::Shard;

/// What opening a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Waits {
    /// DNS and policies.
    #[default]
    ForNames,
    /// The host at an address.
    At(SocketAddr),
    /// Mail is being bounced: that must come to its end.
    ForOutcomes,
}

/// The path that one connection serves, as the connection knows it, and the queue whose mail it carries.
pub(super) struct ServedPath {
    pub id: PathId,
    pub destination: Rc<str>,
    pub name: String,
    pub vmta_name: Rc<str>,
    pub rules: Rc<DomainRules>,
    /// The domain whose hosts the connection is to, where that is not the destination.
    pub origin: Option<Rc<str>>,
    /// The queue that the batch in hand is from.
    pub queue: QueueId,
    /// The pool that the queue belongs to.
    pub pool: Option<Rc<str>>,
    pub hello: String,
    pub source: Option<IpAddr>,
    /// The connection is counted at its source address.
    pub(super) counted: bool,
    rates: SharedRates,
    /// The mode that they are those of.
    mode: Mode,
    /// They are those of a spread path.
    of_spread: bool,
    /// Which place under `max-smtp-out` the connection has, where the destination is spread.
    pub(super) place: Option<u32>,
    pub reply_rules: Rc<ReplyRules>,
    /// What is waited for while a connection is opened.
    pub waits: Cell<Waits>,
    /// The hosts that it may lead to, see [`super::slow::group_of`].
    pub group: Cell<u64>,
    /// Where opening the connection counts, once it takes long.
    pub slow_at: RefCell<Option<SlowAt>>,
    /// Recipients of the batch in hand that it is not responsible for any more.
    done: RefCell<Vec<u16>>,
}

impl ServedPath {
    /// Takes the rules in force; false when the path has to rest.
    pub(super) fn refresh(&mut self, shard: &Shard) -> bool {
        let s = shard.scheduler();
        let Some(p) = s.paths.get(self.id) else { return false };
        if leads_elsewhere(&self.rules, &p.rules) {
            return false;
        }
        if !Rc::ptr_eq(&self.rules, &p.rules) || (self.mode, self.of_spread) != (p.mode, p.spread.is_some()) {
            (self.rules, self.mode, self.of_spread) = (Rc::clone(&p.rules), p.mode, p.spread.is_some());
            let config = shard.config();
            let vmta = config.snapshot.get().vmtas.get(p.vmta as usize);
            self.rates = SharedRates::of(p, vmta, self.source);
        }
        let now = clock::now_ms();
        let disabled = |ip| p.sources.iter().any(|s| s.ip == ip && s.disabled_until_ms > now);
        !(p.held || p.paused || p.has_surplus() || self.is_surplus(p) || self.source.is_some_and(disabled))
    }

    /// All owners of a spread destination share the places of its limit. A connection whose place is above the limit in force is given up.
    fn is_surplus(&self, p: &crate::schedule::Path) -> bool {
        let most = p.limits().smtp_out;
        // What needs no host takes no place.
        let counted = p.spread.is_some() && p.rules.delivery_type == 0;
        counted && most != ANY_CONNECTIONS && self.place.is_none_or(|n| u64::from(n) >= most)
    }

    /// Another batch is in hand.
    pub(super) fn takes_in_hand(&self) {
        self.done.borrow_mut().clear();
    }

    /// These recipients of the batch in hand ended, or are in their queue.
    pub(super) fn is_done_with(&self, recipients: &[u16]) {
        self.done.borrow_mut().extend(recipients);
    }

    /// Recipients of the batch in hand that nothing became of.
    pub(super) fn left_of(&self, batch: &Batch) -> Vec<u16> {
        let done = self.done.borrow();
        batch.recipients.iter().copied().filter(|r| !done.contains(r)).collect()
    }

    /// Recipients of the batch in hand that were not attempted go back to the front.
    pub(super) fn put_back(&self, shard: &Shard, batch: &Batch, recipients: &[u16]) {
        shard.decide(|e, _| e.put_back(batch, recipients));
        self.is_done_with(recipients);
    }

    /// Notes which queue the batch in hand is from.
    pub(super) fn carries(&mut self, shard: &Shard, queue: QueueId) {
        self.takes_in_hand();
        self.queue = queue;
        let s = shard.scheduler();
        self.pool = s.queues.get(queue).and_then(|q| q.pool().cloned());
    }

    /// Index of its virtual MTA.
    pub(super) fn vmta(&self, shard: &Shard) -> u32 {
        shard.scheduler().paths.get(self.id).map_or(NO_VMTA, |p| p.vmta)
    }

    /// By what its mail is rewritten.
    pub(super) fn rewriting(&self, shard: &Shard, config: &Config) -> Option<Rc<RewriteList>> {
        config.rewriting(self.vmta(shard), self.pool.as_deref())
    }

    /// Rates over all shards.
    pub(super) fn rates(&self) -> &SharedRates {
        &self.rates
    }
}

/// Other rules ask for other hosts, or for another protection: a connection that was opened before does not fit them.
fn leads_elsewhere(before: &Rc<DomainRules>, now: &Rc<DomainRules>) -> bool {
    fn of(r: &DomainRules) -> impl PartialEq + '_ {
        let hosts = (&r.smtp_hosts, r.default_smtp_port, r.delivery_type);
        let tls = (r.use_starttls, r.require_starttls, r.use_dane, r.use_mta_sts);
        let versions = (r.smtp_tls_allow_tlsv12, r.smtp_tls_allow_tlsv13, &r.smtp_tls_ca_file);
        let ciphers = (&r.smtp_tls_ciphers, &r.smtp_tls_tlsv13_ciphersuites);
        (hosts, tls, versions, ciphers, &r.smtp_client_certificate, r.withheld())
    }
    !Rc::ptr_eq(before, now) && of(before) != of(now)
}

/// What a connection of path `id` needs to know; counts it at its source address.
///
/// # Errors
/// When there may be a source address for it, Unix milliseconds.
pub(super) fn path_of(shard: &Shard, id: PathId) -> Result<Option<ServedPath>, i64> {
    let config = shard.config();
    let Some(Departure { queue, source, is_counted }) = shard.decide(|e, now| e.departs(id, now))? else {
        return Ok(None);
    };
    let s = shard.scheduler();
    let Some(p) = s.paths.get(id) else { return Ok(None) };
    let vmta = config.snapshot.get().vmtas.get(p.vmta as usize);
    let of_vmta = vmta.map(|v| v.host_name.as_str().to_owned());
    let (source, of_source) = source.unzip();
    let mut names = of_source.into_iter().chain(of_vmta).filter(|n| !n.is_empty());
    Ok(Some(ServedPath {
        id,
        destination: Rc::clone(&p.destination),
        name: p.name(),
        vmta_name: Rc::clone(&p.vmta_name),
        rates: SharedRates::of(p, vmta, source),
        mode: p.mode,
        of_spread: p.spread.is_some(),
        place: None,
        reply_rules: ReplyRules::new(config.patterns(&p.rules.smtp_pattern_list)),
        rules: Rc::clone(&p.rules),
        origin: s.queues.get(queue).and_then(|q| q.origin().cloned()),
        queue,
        pool: None,
        hello: names.next().unwrap_or_else(|| config.global.host_name.clone()),
        source,
        counted: is_counted,
        waits: Cell::default(),
        group: Cell::default(),
        slow_at: RefCell::default(),
        done: RefCell::default(),
    }))
}

/// For mail of queue `id` that meets no connection: as if it went by the queue's first path.
pub(super) fn path_of_queue(shard: &Shard, id: QueueId) -> Option<ServedPath> {
    let s = shard.scheduler();
    let q = s.queues.get(id)?;
    let member = q.members.first()?;
    Some(ServedPath {
        id: q.pullers.first().map_or(PathId::NOTHING, |p| p.path),
        destination: Rc::clone(q.destination()),
        origin: q.origin().cloned(),
        name: format!("{}/{}", ipc::message::shown_domain(q.destination()), member.name),
        vmta_name: Rc::clone(&member.name),
        rules: Rc::clone(&q.rules),
        queue: id,
        pool: q.pool().cloned(),
        hello: String::new(),
        source: None,
        counted: false,
        rates: SharedRates::default(),
        mode: Mode::Normal,
        of_spread: false,
        place: None,
        reply_rules: ReplyRules::new(None),
        waits: Cell::default(),
        group: Cell::default(),
        slow_at: RefCell::default(),
        done: RefCell::default(),
    })
}

/// For mail that is not delivered by SMTP.
pub(super) fn for_local_delivery(shard: &Shard, id: PathId) -> Option<ServedPath> {
    let config = shard.config();
    let (queue, rates) = {
        let s = shard.scheduler();
        let p = s.paths.get(id)?;
        let vmta = config.snapshot.get().vmtas.get(p.vmta as usize);
        (p.queues.first()?, SharedRates::of(p, vmta, None))
    };
    let path = path_of_queue(shard, queue)?;
    let s = shard.scheduler();
    let p = s.paths.get(id)?;
    let (name, vmta_name, rules) = (p.name(), Rc::clone(&p.vmta_name), Rc::clone(&p.rules));
    Some(ServedPath { id, name, vmta_name, rules, rates, ..path })
}

//! Connections of a path: from which source address they go, and what they count in from the moment that they are wanted until they
//! have ended.

use std::net::IpAddr;
use std::rc::Rc;

use ipc::snapshot::ArchivedVirtualMta;

use super::action::Action;
use super::now::Now;
use super::state::Engine;
use crate::classify::outcome::Failure;
use crate::connect::protection::Parameters;
use crate::schedule::limit::Limit;
use crate::schedule::message::HeldContent;
use crate::schedule::queue::Hosts;
use crate::schedule::{Path, PathId, QueueId};

/// A path that found a limit full is not said to be held up by it any more when it has not asked again for so long,
/// milliseconds: twice the pause before it asks ([`crate::deliver::limit_queue::ASK_AGAIN_MS`]).
const BLOCKED_LINGERS_MS: i64 = 200;

/// From where a connection goes, and for which queue it is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Departure {
    /// The queue whose hosts it is opened to.
    pub queue: QueueId,
    /// The source address, with the name that is said in EHLO, which may be empty; `None` where the system chooses.
    pub source: Option<(IpAddr, String)>,
    /// It is counted at the source address, because limits of its own hold for that.
    pub is_counted: bool,
}

/// A limit that is reached.
#[derive(Debug, Clone, Copy)]
pub struct Blocked {
    /// When it may be tried again, Unix milliseconds.
    pub until_ms: i64,
    /// Which one; `None` where no source address is free.
    pub by: Option<Limit>,
}

/// What a connection counted in, and how it ended.
#[derive(Debug, Default)]
pub struct Ended {
    /// It was open.
    pub was_open: bool,
    /// The source address that it is counted at.
    pub source: Option<IpAddr>,
    /// The host, where mail of several domains may go by it.
    pub host: Option<(String, Option<Parameters>)>,
    /// A limit did not let it be opened.
    pub blocked: Option<Blocked>,
}

/// A source address in turn that may open a connection now, and its EHLO name.
///
/// # Errors
/// When one may, Unix milliseconds; `i64::MAX` where only an event can tell.
fn next_source(p: &mut Path, vmta: &ArchivedVirtualMta, now_ms: i64) -> Result<Option<(IpAddr, String)>, i64> {
    let hosts = &vmta.source_hosts;
    let mut soonest = i64::MAX;
    for i in 0..hosts.len() {
        let h = &hosts[(p.source_turn as usize + i) % hosts.len()];
        let Ok(ip) = h.ip.as_str().parse() else { continue };
        let ready = p.source_ready_ms(ip);
        if ready <= now_ms {
            p.source_turn = ((p.source_turn as usize + i + 1) % hosts.len()) as u16;
            return Ok(Some((ip, h.name.as_str().to_owned())));
        }
        soonest = soonest.min(ready);
    }
    if hosts.is_empty() { Ok(None) } else { Err(soonest) }
}

impl<C: HeldContent> Engine<C> {
    /// Chooses where a connection of a path, which is counted as being opened, goes from, and counts it at its source address. `None`
    /// where the path has nothing to send any more.
    ///
    /// # Errors
    /// When there may be a source address for it, Unix milliseconds; `i64::MAX` where only an event can tell.
    pub fn departs(&mut self, id: PathId, now: Now) -> Result<Option<Departure>, i64> {
        let picked = self.scheduler.unserved(id, now.ms());
        let Some(p) = self.scheduler.paths.get_mut(id) else { return Ok(None) };
        let Some(queue) = picked.or(p.queues.first()) else { return Ok(None) };
        let vmta = self.config.snapshot.get().vmtas.get(p.vmta as usize);
        let source = vmta.map(|v| next_source(p, v, now.ms())).transpose()?.flatten();
        let is_counted = source.is_some() && p.limits_sources();
        if let Some((ip, _)) = source.as_ref().filter(|_| is_counted) {
            let rate = p.rules.source_ip_max_connect_rate.of(*ip);
            let s = p.source(*ip);
            s.connections += 1;
            s.paces.connect.advance(rate, now.ns, 1);
        }
        Ok(Some(Departure { queue, source, is_counted }))
    }

    /// A connection is open; to this host, where mail of several domains may go by it.
    pub fn connection_opened(&mut self, id: PathId, host: Option<&(String, Option<Parameters>)>) {
        if let Some(p) = self.scheduler.paths.get_mut(id) {
            p.connecting -= 1;
            p.connections += 1;
        }
        if let Some((name, with)) = host {
            self.scheduler.count_host(id, name, with.as_ref(), true);
        }
    }

    /// A session began on a connection of a path.
    pub fn session_began(&mut self, id: PathId) {
        if let Some(p) = self.scheduler.paths.get(id) {
            self.line.learn(p, true);
        }
    }

    /// A connection has ended, or was not opened: it is in no count of its path any more.
    pub fn connection_ended(&mut self, id: PathId, of: &Ended, now: Now) {
        let s = &mut self.scheduler;
        if let Some((name, with)) = &of.host {
            s.count_host(id, name, with.as_ref(), false);
        }
        let Some(p) = s.paths.get_mut(id) else { return };
        if let Some(source) = p.sources.iter_mut().find(|s| Some(s.ip) == of.source) {
            source.connections = source.connections.saturating_sub(1);
        }
        if of.was_open {
            p.connections -= 1;
            if of.source.is_some() && p.blocked_by.is_none() && p.ask_again_ms > 0 {
                // It may have waited for this source address.
                p.ask_again_ms = 0;
            }
        } else {
            p.connecting -= 1;
        }
        if let Some(blocked) = of.blocked {
            self.block(id, blocked);
        }
        if let Some(p) = self.scheduler.paths.get_mut(id) {
            p.rest(now.ms());
        }
    }

    /// A limit does not let a path open a connection before a time.
    pub fn block(&mut self, id: PathId, Blocked { until_ms, by }: Blocked) {
        let Some(p) = self.scheduler.paths.get_mut(id) else { return };
        p.ask_again_ms = until_ms;
        // It asks again and again: the cause lasts until a connection is opened.
        (p.blocked_until_ms, p.blocked_by) = (until_ms.saturating_add(BLOCKED_LINGERS_MS), by);
        self.scheduler.wake_at(id, until_ms);
    }

    /// What was in a path's way may be free: it asks anew. Answers whether it opens a connection with it.
    pub fn asks_again(&mut self, id: PathId, now: Now) -> bool {
        let Some(p) = self.scheduler.paths.get_mut(id) else { return false };
        p.ask_again_ms = if p.ask_again_ms > now.ms() { 0 } else { p.ask_again_ms };
        let before = p.connecting;
        self.pump(id, now);
        let opens = |p: &Path| p.connecting > before || p.waits_to_open || (p.connecting > 0 && p.is_lively(now.ms()));
        self.scheduler.paths.get(id).is_some_and(opens)
    }

    /// A connection of a path begins to wait for work; false where the path is gone, and it is not counted.
    pub fn begins_to_idle(&mut self, id: PathId) -> bool {
        let p = self.scheduler.paths.get_mut(id);
        p.map(|p| p.idle += 1).is_some()
    }

    /// A connection of a path does not wait for work any more.
    pub fn ends_to_idle(&mut self, id: PathId) {
        if let Some(p) = self.scheduler.paths.get_mut(id) {
            p.idle -= 1;
        }
    }

    /// DNS told the hosts of a destination: notes for the queues of the path whether there is an MX, which some rules go by, and
    /// answers the hosts that are left out now.
    pub fn hosts_found(&mut self, id: PathId, origin: Option<&Rc<str>>, no_mx: bool, now: Now) -> Option<Vec<String>> {
        let s = &mut self.scheduler;
        let p = s.paths.get_mut(id)?;
        for q in p.queues.iter() {
            let q = s.queues.get_mut(q).filter(|q| q.origin() == origin);
            q.into_iter().for_each(|q| q.no_mx = no_mx);
        }
        p.skipped_hosts.retain(|(_, until)| *until > now.ms());
        Some(p.skipped_hosts.iter().map(|(h, _)| h.clone()).collect())
    }

    /// Notes the hosts of a domain that rolled up, at its queue; false when they are new here and a connection that
    /// is open can carry its mail.
    pub fn note_hosts(&mut self, id: PathId, queue: QueueId, hosts: Hosts, now: Now) -> bool {
        let s = &mut self.scheduler;
        let (Some(q), Some(p)) = (s.queues.get_mut(queue), s.paths.get(id)) else { return false };
        let Some(r) = &mut q.rolled_up else { return true };
        let are_new = r.hosts.is_empty();
        (r.hosts, r.hosts_ms) = (hosts, now.ms());
        let is_served = are_new && p.serves(q);
        if is_served {
            self.act(Action::WakeOne(id));
        }
        !is_served
    }

    /// Leaves a host out of what a path tries, until a time, Unix milliseconds.
    pub fn skip_host(&mut self, id: PathId, host: &str, until_ms: i64) {
        if let Some(p) = self.scheduler.paths.get_mut(id) {
            p.skipped_hosts.retain(|(h, _)| h != host);
            p.skipped_hosts.push((host.to_owned(), until_ms));
        }
    }

    /// Every host of a path is left out: its retry begins with the first again.
    pub fn skip_no_host(&mut self, id: PathId) {
        if let Some(p) = self.scheduler.paths.get_mut(id) {
            p.skipped_hosts.clear();
        }
    }

    /// A path waits until a time, Unix milliseconds, because of so many that take long; `failure` says so.
    pub fn waits_for_turn(&mut self, id: PathId, until_ms: i64, failure: Failure, now: Now) {
        let failure = self.scheduler.shared_failure(failure);
        let Some(p) = self.scheduler.paths.get_mut(id) else { return };
        p.connect_again_ms = p.connect_again_ms.max(until_ms);
        p.failed(now.ms(), failure);
        let at = p.connect_again_ms;
        self.scheduler.wake_at(id, at);
    }
}

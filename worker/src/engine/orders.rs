//! What operators paused and disabled, put in force at queues and paths.

use std::net::IpAddr;

use ipc::queue_orders::{QueueOrder, QueuePattern, Switches};

use super::action::Action;
use super::now::Now;
use super::state::Engine;
use crate::config::Config;
use crate::schedule::message::HeldContent;
use crate::schedule::{Path, PathId, Queue, QueueId};

/// Leaves sources of a path out that operators disabled there, or at a queue that it serves.
pub(super) fn leave_sources_out(switches: &Switches, config: &Config, p: &mut Path, q: Option<&Queue>) {
    if switches.disabled.is_empty() {
        return;
    }
    let is_direct = |of: &QueuePattern| of.matches(&p.destination, &p.vmta_name);
    let sources = switches.sources(|of| is_direct(of) || q.is_some_and(|q| q.is_meant_by(of)));
    let own = if sources.is_empty() { Vec::new() } else { config.source_addresses(p.vmta) };
    for (ip, until_ms) in sources {
        if let Some(ip) = ip.parse().ok().filter(|ip| until_ms > 0 && own.contains(ip)) {
            p.source(ip).disabled_until_ms = until_ms;
        }
    }
}

/// Pauses a queue where operators said so, and lets it go on elsewhere.
pub(super) fn pause_queue(switches: &Switches, q: &mut Queue) {
    q.paused = switches.is_paused(|of| q.is_meant_by(of));
}

/// Pauses a path where operators said so, and lets it go on elsewhere.
pub(super) fn pause_path(switches: &Switches, p: &mut Path) {
    p.paused = switches.is_paused(|of| of.matches(&p.destination, &p.vmta_name));
}

impl<C: HeldContent> Engine<C> {
    /// Puts these switches in force in place of all that there were.
    pub fn set_switches(&mut self, switches: Switches) {
        self.switches = switches;
        self.apply_orders();
    }

    /// Notes an order among the switches, for queues and paths to come; whether these are other ones now.
    ///
    /// # Errors
    /// A sentence when there are too many.
    pub fn note_order(&mut self, order: &QueueOrder, now: Now) -> Result<bool, String> {
        let before = self.switches.clone();
        self.switches.forget_over(now.ms());
        self.switches.note(order)?;
        Ok(self.switches != before)
    }

    /// Puts the switches in force at what is there: also after a reload, by which mail may go other ways.
    pub(super) fn apply_orders(&mut self) {
        let queues: Vec<QueueId> = self.scheduler.queues.iter().map(|(id, _)| id).collect();
        queues.into_iter().for_each(|id| self.apply_orders_to_mail_sent_on(id));
        for (_, p) in self.scheduler.paths.iter_mut() {
            pause_path(&self.switches, p);
            leave_sources_out(&self.switches, &self.config, p, None);
        }
    }

    /// Queue `id` got mail of a virtual MTA that sends it on there: what operators said of that counts too.
    pub(super) fn apply_orders_to_mail_sent_on(&mut self, id: QueueId) {
        let s = &mut self.scheduler;
        let Some(q) = s.queues.get_mut(id) else { return };
        pause_queue(&self.switches, q);
        for path in &q.pullers {
            if let Some(p) = s.paths.get_mut(path.path) {
                leave_sources_out(&self.switches, &self.config, p, Some(q));
            }
        }
    }

    /// Pauses what is to be paused now and lets the rest go on; calls `each` for every queue with whether it was paused before.
    /// Answers the queues that were, and are not any more.
    pub fn apply_pauses(&mut self, mut each: impl FnMut(QueueId, &Queue, bool)) -> Vec<QueueId> {
        let mut resumed = Vec::new();
        for (id, q) in self.scheduler.queues.iter_mut() {
            let before = q.paused;
            pause_queue(&self.switches, q);
            if before && !q.paused {
                resumed.push(id);
            }
            each(id, q, before);
        }
        for (id, p) in self.scheduler.paths.iter_mut() {
            pause_path(&self.switches, p);
            // Connections that idle look at it at once, those that carry a message when that has ended.
            self.actions.push(Action::WakeAll(id));
        }
        resumed
    }

    /// Pauses these jobs, and lets all others go on.
    pub fn set_paused_jobs(&mut self, names: impl IntoIterator<Item = String>) {
        self.scheduler.jobs.set_paused(names);
    }

    /// Makes the paths that queue `id` has none of yet, if it has mail; answers how many it has then.
    pub fn make_all_paths(&mut self, id: QueueId, now: Now) -> usize {
        let members = self.scheduler.queues.get(id).filter(|q| q.recipients > 0).map_or(0, |q| q.members.len());
        for member in 0..members {
            // The path is made for orders to find it.
            let _ = self.path_for(id, member, now);
        }
        members
    }

    /// Puts a path into backoff or normal mode; whether that changed something.
    pub fn set_mode(&mut self, id: PathId, backoff: bool, now: Now) -> bool {
        let Some(p) = self.scheduler.paths.get_mut(id) else { return false };
        let was_forced = p.forced;
        let change = if backoff { p.enter_backoff(now.ms()) } else { p.leave_backoff(now.ms()) };
        if change.is_some() || backoff {
            p.forced = true;
        }
        let is_forced_now = p.forced != was_forced;
        if let Some(change) = change {
            self.mode_changed(id, change, "set queue", now);
        } else if is_forced_now {
            self.note_mode(id, now);
        }
        change.is_some() || is_forced_now
    }

    /// Ends what the paths of queue `id` wait for, and its recipients where wanted; whether something waited.
    pub fn end_waits(&mut self, id: QueueId, of_recipients: bool, now: Now) -> bool {
        let s = &mut self.scheduler;
        let mut changed = of_recipients && s.queues.get(id).is_some_and(|q| !q.waiting.is_empty());
        if changed {
            s.promote_all(id);
        }
        let Some(q) = s.queues.get_mut(id) else { return false };
        changed |= q.retry_at_ms() > now.ms();
        q.retry_now();
        for p in &q.pullers {
            let Some(p) = s.paths.get_mut(p.path) else { continue };
            changed |= p.retry_at_ms > now.ms();
            (p.retry_at_ms, p.connect_again_ms, p.ask_again_ms) = (0, 0, 0);
        }
        changed
    }

    /// Leaves a source address of a path out until a time, Unix milliseconds, or takes it in again (0); whether that changed something.
    /// `None` where the path never goes from that address.
    pub fn set_source(&mut self, id: PathId, ip: IpAddr, until_ms: i64) -> Option<bool> {
        let p = self.scheduler.paths.get_mut(id)?;
        let known = p.sources.iter().any(|s| s.ip == ip && s.disabled_until_ms > 0);
        if !known && !self.config.source_addresses(p.vmta).contains(&ip) {
            return None;
        }
        let changed = match p.sources.iter().find(|s| s.ip == ip) {
            Some(s) => s.disabled_until_ms != until_ms,
            None => until_ms > 0,
        };
        if changed {
            p.source(ip).disabled_until_ms = until_ms;
            // Connections that wait look at it.
            self.act(Action::WakeAll(id));
        }
        Some(changed)
    }
}

//! What operators paused and disabled, put in force at queues and paths.

use ipc::queue_orders::{QueuePattern, Switches};

use super::action::Action;
use super::state::Engine;
use crate::config::Config;
use crate::schedule::message::HeldContent;
use crate::schedule::{Path, Queue, QueueId};

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
    /// Puts the switches in force at what is there: also after a reload, by which mail may go other ways.
    pub fn apply_orders(&mut self) {
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
}

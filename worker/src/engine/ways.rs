//! Which queue mail waits in, and which path it leaves by.

use std::rc::Rc;

use ipc::backoff::Mode;
use ipc::layers::NO_VMTA;
use ipc::rules::REROUTES_MAX;

use super::action::{Action, News};
use super::now::Now;
use super::orders::{leave_sources_out, pause_path, pause_queue};
use super::state::Engine;
use crate::prepare::vmta_name::{DEFAULT_VMTA, name_or_default};
use crate::schedule::message::HeldContent;
use crate::schedule::scheduler::New;
use crate::schedule::{PathId, QueueId};

impl<C: HeldContent> Engine<C> {
    /// The queue for mail to `destination` that chose `via`, by `virtual-mta-pool` where it chose none, followed along
    /// `reroute-to-virtual-mta` and, while its path is in backoff, `backoff-reroute-to-virtual-mta`.
    pub fn queue_for(&mut self, destination: &str, via: &str, now: Now) -> QueueId {
        let mut id = self.queue_named(destination, via);
        if via.is_empty()
            && let Some(given) =
                self.scheduler.queues.get(id).map(|q| &q.rules.virtual_mta_pool).filter(|p| !p.is_empty())
        {
            let given = given.clone();
            id = self.queue_named(destination, &given);
        }
        let Some(mut target) = self.rerouted(id, now) else { return id };
        let first = id;
        let mut seen = vec![id];
        loop {
            id = self.queue_named(destination, &target);
            // The rules lead in a circle: mail stays in the queue that it would come back to.
            if seen.contains(&id) || seen.len() >= REROUTES_MAX {
                break;
            }
            seen.push(id);
            let Some(next) = self.rerouted(id, now) else { break };
            target = next;
        }
        let is_new = |q: &mut crate::schedule::Queue| q.takes_mail_of(name_or_default(via));
        if first != id && self.scheduler.queues.get_mut(id).is_some_and(is_new) {
            self.apply_orders_to_mail_sent_on(id);
        }
        id
    }

    /// The queue of that name, made by the configuration and the orders in force if it is new.
    fn queue_named(&mut self, destination: &str, via: &str) -> QueueId {
        let mut new = false;
        let config = &self.config;
        let id = self.scheduler.queue(destination, name_or_default(via), || {
            new = true;
            config.exit(ipc::message::queue_part(destination), via)
        });
        if let Some(q) = self.scheduler.queues.get_mut(id).filter(|_| new) {
            pause_queue(&self.switches, q);
            if q.of_pool {
                // Destinations with one message each still use all members.
                let turn = self.pool_turns.entry(Rc::clone(&q.via)).or_default();
                q.turn = *turn;
                *turn = turn.wrapping_add(1);
            }
        }
        id
    }

    /// The virtual MTA that mail of queue `id` goes to instead.
    fn rerouted(&mut self, id: QueueId, now: Now) -> Option<String> {
        // Mail in a queue that an operator paused stays there.
        let q = self.scheduler.queues.get(id).filter(|q| !q.of_pool && !q.paused)?;
        if let Some(always) = q.rules.rerouted_to(&q.via) {
            return Some(always.to_owned());
        }
        let target = q.rules.rerouted_in_backoff_to(&q.via)?.to_owned();
        // The path is looked up by its name: a queue that was just made has no path yet, but one may be there from before, or have been in backoff
        // when this shard inherited it.
        let (destination, vmta) = (Rc::clone(q.destination()), Rc::clone(&q.members.first()?.name));
        let in_backoff = match self.scheduler.find_path(&destination, &vmta) {
            Some((_, p)) => p.mode == Mode::Backoff,
            None => self.inherited.is_in_backoff(&destination, &vmta, now.ms()),
        };
        in_backoff.then_some(target)
    }

    /// The path of a member of queue `id`, made if it is new: with what is known of it, and under the orders in force.
    pub fn path_for(&mut self, id: QueueId, member: usize, now: Now) -> Option<PathId> {
        let config = &self.config;
        let destination = Rc::clone(self.scheduler.queues.get(id)?.destination());
        let mut lost = false;
        let (path, new) = self.scheduler.path_of(id, member, |m| {
            if m.vmta == NO_VMTA {
                return (NO_VMTA, config.rules(&destination, NO_VMTA));
            }
            // The virtual MTA is looked up by its name: the index that the queue holds may be of an earlier configuration.
            let exit = config.exit(&destination, &m.name);
            let vmta = exit.vmta();
            lost = vmta == NO_VMTA;
            (vmta, exit.rules)
        })?;
        if new == New::Nothing {
            return Some(path);
        }
        let p = self.scheduler.paths.get_mut(path)?;
        if new == New::Path {
            p.orphaned = lost;
            self.inherited.admit(p, now);
            self.ownership.update(&self.ledger, p, true, now);
            if p.held {
                self.actions.push(Action::LookForForeign);
            }
            pause_path(&self.switches, p);
        }
        leave_sources_out(&self.switches, &self.config, p, self.scheduler.queues.get(id));
        Some(path)
    }

    /// Marks the path of queue `id` as an orphan where its virtual MTA is gone. The virtual MTA was there when the mail was accepted, for else the
    /// mail would have been refused, so the mail waits for it.
    pub(super) fn was_accepted_before(&mut self, id: QueueId, now: Now) {
        let lacks = |q: &crate::schedule::Queue| q.members.first().is_some_and(|m| m.vmta == NO_VMTA);
        if self.scheduler.queues.get(id).is_some_and(lacks)
            && let Some(path) = self.path_for(id, 0, now).and_then(|p| self.scheduler.paths.get_mut(p))
        {
            path.orphaned = true;
        }
    }

    /// Moves what waits in a virtual MTA's own queue to where its rules send it now.
    pub fn reroute(&mut self, id: QueueId, now: Now) {
        let Some(q) = self.scheduler.queues.get(id).filter(|q| !q.of_pool) else { return };
        let (destination, via) = (Rc::clone(&q.key), Rc::clone(&q.via));
        let target = self.queue_for(&destination, &via, now);
        if target == id {
            return;
        }
        let recipients = self.scheduler.transfer(id, target, now.ms());
        let to = self.scheduler.queues.get(target).map(|q| q.name()).unwrap_or_default();
        self.act(Action::Tell(News::Rerouted { from: via.as_ref().to_owned(), to, recipients }));
        self.pump_queue(target, now);
    }

    /// Moves what waits for a domain, by one of its paths, to the queue that the domain joins by its mail hosts.
    pub fn join(&mut self, path: PathId, domain: &str, queue: &str, now: Now) {
        let to = format!("{queue}/{domain}");
        let queues: Vec<QueueId> =
            self.scheduler.paths.get(path).map(|p| p.queues.iter().collect()).unwrap_or_default();
        for from in queues {
            let Some(q) = self.scheduler.queues.get(from).filter(|q| *q.key == *domain) else { continue };
            // Mail that chose no virtual MTA goes by the `virtual-mta-pool` of the queue that it joins. Mail that asked for {default} looks the same here.
            let via = if *q.via == *DEFAULT_VMTA { String::new() } else { q.via.as_ref().to_owned() };
            let target = self.queue_for(&to, &via, now);
            self.scheduler.transfer(from, target, now.ms());
            self.pump_queue(target, now);
        }
    }
}

//! When the state of a path is noted in the spool, taken over and passed on.

use std::rc::Rc;

use ipc::mesh::{PathState, Windows};
use ipc::queue_orders::QueuePattern;
use ipc::stored;

use super::action::Action;
use super::inherited::{State, apply, clocks_of, name, state_of, takes_much};
use super::now::Now;
use super::state::Engine;
use crate::classify::outcome::Failure;
use crate::schedule::ids::PathId;
use crate::schedule::message::HeldContent;
use crate::schedule::path::Path;
use crate::schedule::source::Paces;
use crate::schedule::spread_path;

impl<C: HeldContent> Engine<C> {
    /// Takes over the state of a path from an earlier process, or from the shard that owned it before. `noted` says that this shard's spool has it.
    pub fn inherit(&mut self, state: PathState, noted: bool, now: Now) {
        if let Some((id, p)) = self.scheduler.find_path(&state.destination, &state.vmta) {
            apply(p, &state, now);
            spread_path::publish(&self.ledger, p);
            p.noted |= noted;
            let at = p.retry_at_ms;
            if at > now.ms() {
                self.scheduler.wake_at(id, at);
            }
        } else {
            let key = name(&state.destination, &state.vmta);
            self.inherited.states.insert(key, State { state, noted });
        }
    }

    /// Takes over why a path waited when the process before stopped.
    pub fn inherit_failure(&mut self, destination: &str, vmta: &str, failure: Rc<Failure>, failed_s: u32) {
        match self.scheduler.find_path(destination, vmta) {
            Some((_, p)) if p.last_failure.is_none() => (p.last_failure, p.failed_s) = (Some(failure), failed_s),
            Some(_) => {}
            None => {
                self.inherited.last_failures.insert((destination.into(), vmta.into()), (failure, failed_s));
            }
        }
    }

    /// Changes states of paths that a pattern means and that have no mail here, also where they lie in the spool; answers the names
    /// of those that `change` changed.
    pub fn change_inherited(&mut self, of: &QueuePattern, change: impl Fn(&mut PathState) -> bool) -> Vec<String> {
        let members = self.config.members_of(&of.via);
        let mut changed = Vec::new();
        for i in self.inherited.states.values_mut() {
            let (destination, vmta) = (&i.state.destination, &i.state.vmta);
            let is_member = members.contains(vmta) && of.matches(destination, &of.via);
            if (of.matches(destination, vmta) || is_member) && change(&mut i.state) {
                let p = &i.state;
                self.actions.push(Action::Keep(name(&p.destination, &p.vmta), stored::bytes(p)));
                i.noted = true;
                changed.push(format!("{}/{}", ipc::message::shown_domain(&p.destination), p.vmta));
            }
        }
        changed
    }

    /// The path is about to send: notes once that its windows are in use, and each time that one transaction takes more of
    /// one than is assumed of a window in use.
    pub fn note_rate(&mut self, id: PathId, now: Now) {
        let in_use = |p: &Path| p.paces != Paces::default() || p.sources.iter().any(|s| s.paces != Paces::default());
        let Some(p) = self.scheduler.paths.get(id) else { return };
        if (!p.noted && in_use(p)) || takes_much(p, now.ns) {
            self.note_mode(id, now);
        }
    }

    /// The mode of a path changed, or one of its source addresses was left out: a kill does not
    /// undo that. Windows go on being used behind the note: the most that may have been sent is assumed.
    pub fn note_mode(&mut self, id: PathId, now: Now) {
        let Some(p) = self.scheduler.paths.get_mut(id) else { return };
        let key = name(&p.destination, &p.vmta_name);
        if let Some(state) = state_of(p, now.ms()) {
            let windows = match &state.windows {
                Windows::Until(tat_ns) | Windows::InUseAfter(tat_ns) if takes_much(p, now.ns) => {
                    Windows::InUseAfter(*tat_ns)
                }
                _ => Windows::InUse,
            };
            let state = PathState { windows, retry_at_unix_ms: 0, ..state };
            p.noted = true;
            self.act(Action::Keep(key, stored::bytes(&state)));
        } else if std::mem::take(&mut p.noted) {
            self.act(Action::Keep(key, Vec::new()));
        }
    }

    /// Forgets a path that nothing is left of, with what the spool knows of it.
    pub fn forget_path(&mut self, id: PathId, now: Now) {
        if let Some(p) = self.scheduler.forget_path(id, now.ms()).filter(|p| p.noted) {
            self.act(Action::Keep(name(&p.destination, &p.vmta_name), Vec::new()));
        }
    }

    /// Drops inherited states that say nothing any more.
    pub fn sweep_inherited(&mut self, now: Now) {
        let actions = &mut self.actions;
        self.inherited.states.retain(|key, i| {
            let over = clocks_of(&i.state).are_over(now.ms());
            if over && i.noted {
                actions.push(Action::Keep(key.clone(), Vec::new()));
            }
            !over
        });
    }

    /// Keeps all clocks and windows over an orderly stop.
    pub fn keep_paths(&mut self, now: Now) {
        for (_, p) in self.scheduler.paths.iter() {
            let key = name(&p.destination, &p.vmta_name);
            if let Some(state) = state_of(p, now.ms()) {
                self.actions.push(Action::Keep(key, stored::bytes(&state)));
            } else if p.noted {
                self.actions.push(Action::Keep(key, Vec::new()));
            }
        }
        // States of paths that had no mail here are passed on as they came.
        for (key, i) in self.inherited.states.iter().filter(|(_, i)| !i.noted) {
            self.actions.push(Action::Keep(key.clone(), stored::bytes(&i.state)));
        }
    }

    /// What a shard that claims destinations is to know of their paths, those with connections in its way left out.
    pub fn to_release(&self, claimant: u8, now: Now) -> Vec<PathState> {
        let o = &self.ownership;
        let concerned = self.scheduler.paths.iter().map(|(_, p)| p).filter(|p| o.concerns(p, claimant));
        let mut all: Vec<PathState> =
            concerned.filter(|p| !o.is_in_the_way(p, claimant)).filter_map(|p| state_of(p, now.ms())).collect();
        let theirs = self.inherited.states.values().filter(|i| o.map().is_owner(&i.state.destination, claimant));
        all.extend(theirs.map(|i| i.state.clone()));
        all
    }
}

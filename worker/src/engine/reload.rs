//! Another configuration is in force.

use std::rc::Rc;

use ipc::dice::HashMap;
use ipc::layers::NO_VMTA;
use ipc::ledger::shared_limits::key;
use ipc::pace::Pacing;
use ipc::rules::Rate;

use super::action::{Action, News};
use super::now::Now;
use super::state::Engine;
use crate::config::Config;
use crate::schedule::message::HeldContent;
use crate::schedule::{Queue, QueueId};

impl<C: HeldContent> Engine<C> {
    /// Puts another configuration in force: queues and their clocks go on, by the directives that hold for them now.
    pub fn reload(&mut self, config: Rc<Config>, now: Now) {
        let old = std::mem::replace(&mut self.config, Rc::clone(&config));
        self.reload_paths(&old, &config, now);
        let ids = self.reload_queues(&config);
        self.apply_orders();
        self.cut_rates(now);
        ids.into_iter().for_each(|id| self.pump_queue(id, now));
    }

    fn reload_paths(&mut self, old: &Config, config: &Config, now: Now) {
        for (id, p) in self.scheduler.paths.iter_mut() {
            let exit = config.exit(&p.destination, &p.vmta_name);
            let index = exit.vmta();
            // Mail of a virtual MTA that is gone goes on by the fallback, or waits.
            p.vmta = index;
            let held = index == NO_VMTA;
            if std::mem::replace(&mut p.orphaned, held) != held {
                self.actions.push(Action::Tell(News::VirtualMtaChanged { path: p.name(), held }));
                p.retry_at_ms = 0;
            }
            if index != NO_VMTA {
                let (before, list) = (&p.rules.smtp_pattern_list, &exit.rules.smtp_pattern_list);
                if !p.matches.is_empty() && (before != list || !config.has_patterns_of(old, list)) {
                    p.forget_matches();
                }
                if p.rules.smtp_hosts != exit.rules.smtp_hosts {
                    p.leads_elsewhere();
                }
                p.rules = exit.rules;
                p.limits_changed(now.ms());
            }
            // Connections that wait look at their new limits.
            self.actions.push(Action::WakeAll(id));
        }
    }

    fn reload_queues(&mut self, config: &Config) -> Vec<QueueId> {
        let s = &mut self.scheduler;
        let ids: Vec<QueueId> = s.queues.iter().map(|(id, _)| id).collect();
        for id in &ids {
            let Some(q) = s.queues.get_mut(*id) else { continue };
            // What the rules demand of hosts and of TLS may have changed.
            q.forget_hosts();
            let exit = config.exit(q.destination(), &q.via);
            if exit.members.first().is_some_and(|m| m.vmta == NO_VMTA) {
                // Its path stays as it was, and is looked at there.
                continue;
            }
            if q.rules.smtp_hosts != exit.rules.smtp_hosts {
                q.retry_now();
            }
            if exit.members == q.members && exit.of_pool == q.of_pool {
                q.rules = exit.rules;
            } else {
                s.set_exit(*id, exit);
            }
        }
        ids
    }

    /// Rates that a reload or a restart changed hold from now on, not from when those before would have
    /// let something go.
    pub fn cut_rates(&self, now: Now) {
        let cut = |key: u64, rate: Rate| Pacing::of(rate).iter().for_each(|p| self.ledger.rescale(key, p, now.ns));
        for v in self.config.snapshot.get().vmtas.iter() {
            let (count, per_ms) = (v.msg_rate.0.to_native(), v.msg_rate.1.to_native());
            cut(key("vmta rate", v.name.as_str()), Rate { count, per: std::time::Duration::from_millis(per_ms) });
        }
        // Where virtual MTAs have different rates, the slowest counts.
        let mut of_destinations: HashMap<Rc<str>, Rate> = HashMap::default();
        let interval = |rate: Rate| Pacing::of(rate).map(|p| p.interval_ps());
        let in_use = |q: &Queue| self.ledger.clock(key("destination rate", q.destination())).is_some();
        for (_, q) in self.scheduler.queues.iter().filter(|(_, q)| in_use(q)) {
            for m in q.members.iter() {
                let rate = self.config.rules(q.destination(), m.vmta).destination_max_msg_rate;
                let slowest = of_destinations.entry(Rc::clone(q.destination())).or_insert(rate);
                if interval(rate) > interval(*slowest) {
                    *slowest = rate;
                }
            }
        }
        let limited = of_destinations.into_iter().filter(|(_, rate)| rate.count > 0);
        limited.for_each(|(name, rate)| cut(key("destination rate", &name), rate));
    }
}

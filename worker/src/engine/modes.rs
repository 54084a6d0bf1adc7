//! Backoff and normal mode of paths, source addresses that are left out, and the notices about both.

use std::net::IpAddr;

use ipc::backoff::Mode;

use super::action::{Action, News};
use super::now::Now;
use super::state::Engine;
use crate::schedule::PathId;
use crate::schedule::message::HeldContent;
use crate::schedule::path::ModeChange;

impl<C: HeldContent> Engine<C> {
    /// A path changed its mode: says so, and moves mail where the rules want it moved.
    pub fn mode_changed(&mut self, id: PathId, change: ModeChange, why: &str, now: Now) {
        let Some(p) = self.scheduler.paths.get(id) else { return };
        let (path, to, queues) = (p.name(), p.rules.backoff_notify.clone(), p.queues.clone());
        let mode = if change == ModeChange::Entered { "backoff" } else { "normal" };
        if !to.is_empty() {
            let text = format!("The path {path} is in {mode} mode now.\r\n\r\n{why}\r\n");
            self.act(Action::Notify { to, subject: format!("{path}: {mode} mode"), text });
        }
        self.act(Action::Tell(News::ModeChanged { path, mode, why: why.to_owned() }));
        self.note_mode(id, now);
        if change == ModeChange::Entered {
            queues.iter().for_each(|q| self.reroute(q, now));
        }
        self.pump(id, now);
    }

    /// Leaves a source address unused at a path until a time, Unix milliseconds.
    pub fn disable_source(&mut self, id: PathId, ip: IpAddr, until_ms: i64, why: &str, now: Now) {
        let Some(p) = self.scheduler.paths.get_mut(id) else { return };
        p.source(ip).disabled_until_ms = until_ms;
        let first = p.sources.iter().map(|s| s.disabled_until_ms).filter(|t| *t > now.ms()).min();
        let (path, to) = (p.name(), p.rules.disabled_source_ip_notify.clone());
        self.scheduler.wake_at(id, first.unwrap_or(until_ms));
        self.note_mode(id, now);
        if !to.is_empty() {
            let text = format!("The source address {ip} is not used for {path} any more.\r\n\r\n{why}\r\n");
            self.act(Action::Notify { to, subject: format!("{path}: source {ip} disabled"), text });
        }
        self.rest_without_sources(id, now);
    }

    /// Says so when every source address of a path is left out, and puts it in backoff where
    /// `backoff-upon-all-sources-disabled` asks for it.
    pub fn rest_without_sources(&mut self, id: PathId, now: Now) {
        let Some(vmta) = self.scheduler.paths.get(id).map(|p| p.vmta) else { return };
        let hosts = self.config.source_addresses(vmta);
        let Some(p) = self.scheduler.paths.get_mut(id) else { return };
        let disabled = |ip: &IpAddr| p.sources.iter().any(|s| s.ip == *ip && s.disabled_until_ms > now.ms());
        if hosts.is_empty() || !hosts.iter().all(disabled) {
            return;
        }
        let change = if p.rules.backoff_upon_all_sources_disabled { p.enter_backoff(now.ms()) } else { None };
        let path = p.name();
        self.act(Action::Tell(News::SourcesDisabled { path }));
        if let Some(change) = change {
            self.mode_changed(id, change, "all source addresses are disabled", now);
        }
    }

    /// Ends the backoff of a path whose time is over.
    pub fn end_backoff(&mut self, id: PathId, now: Now) {
        let Some(p) = self.scheduler.paths.get_mut(id) else { return };
        p.rest(now.ms());
        let is_over = p.mode == Mode::Backoff && p.mode_until_ms <= now.ms();
        if let Some(change) = if is_over { p.leave_backoff(now.ms()) } else { None } {
            self.mode_changed(id, change, "backoff-to-normal-after", now);
        }
    }
}

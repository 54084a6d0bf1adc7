//! Putting another configuration in force: all of it is checked before anything changes.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use ipc::control::ToWorker;
use ipc::snapshot::MappedSnapshot;

use super::Supervisor;
use crate::config::{self, Compiled, map};
use crate::listen;
use crate::shards::{Slot, State};

/// What a dry run of a reload says of the built-in configuration.
const NO_FILE: &str = "The server runs on its built-in configuration: there is no file to reload.";

impl Supervisor {
    /// Puts the changed file in force; answers when every worker has taken it, or without
    /// `wait` when they have been told.
    ///
    /// # Errors
    /// The errors of the file; the old configuration stays.
    pub async fn reload(self: &Rc<Self>, wait: bool, dry_run: bool) -> Result<String, String> {
        if dry_run {
            return self.file.as_deref().map_or_else(|| Ok(NO_FILE.into()), |f| self.diff(f));
        }
        let _ = sd_notify::notify(&[
            sd_notify::NotifyState::Reloading,
            sd_notify::NotifyState::monotonic_usec_now().unwrap_or(sd_notify::NotifyState::Reloading),
        ]);
        let result = self.try_reload(wait).await;
        let status = match &result {
            Ok(t) => t.clone(),
            Err(_) => "reload refused: the configuration has errors; the old one stays in force".to_owned(),
        };
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Status(&status)]);
        result
    }

    /// Why the configuration file cannot be read.
    fn unread(&self, e: &std::io::Error) -> String {
        let file = self.file.as_deref().unwrap_or(Path::new("(built-in)"));
        format!("cannot read {}: {e}; the old configuration stays in force", file.display())
    }

    /// What putting `file` in force would change, a line each.
    ///
    /// # Errors
    /// The errors of the file.
    pub fn diff(&self, file: &Path) -> Result<String, String> {
        let checked = config::compile(Some(file), &self.overrides).map_err(|e| format!("{}: {e}", file.display()))?;
        if let Some(errors) = checked.errors() {
            return Err(format!("the configuration has errors\n\n{errors}"));
        }
        let new = checked.compiled.snapshot.seal().map_err(|e| e.to_string())?;
        let changes = config::diff::diff(self.mapped()?.get(), map(&new)?.get());
        Ok(if changes.is_empty() { "Nothing changes.".into() } else { changes.join("\n") })
    }

    /// `config explain` as JSON.
    ///
    /// # Errors
    /// A sentence naming what does not exist.
    pub fn explain(&self, destination: &str, via: &str, only: &str) -> Result<String, String> {
        let all = config::explain::explain(self.mapped()?.get(), destination, via, only)?;
        serde_json::to_string(&all).map_err(|e| e.to_string())
    }

    fn mapped(&self) -> Result<MappedSnapshot, String> {
        map(&self.snapshot.borrow())
    }

    async fn try_reload(self: &Rc<Self>, wait: bool) -> Result<String, String> {
        let checked = config::compile(self.file.as_deref(), &self.overrides).map_err(|e| self.unread(&e))?;
        if let Some(errors) = checked.errors() {
            return Err(format!("the configuration has errors, the old one stays in force\n\n{errors}"));
        }
        let mut compiled = checked.compiled;
        self.check_addresses(&compiled)?;
        let mut added = Vec::new();
        for l in &compiled.snapshot.listeners {
            if !self.listeners.borrow().iter().any(|(a, _)| *a == l.address) {
                added.push((l.address.clone(), listen::bind_to(&l.address)?));
            }
        }
        let kept = {
            let old = self.compiled.borrow();
            let same = old.snapshot.accounting == compiled.snapshot.accounting;
            // Workers name accounting files by their place in the list they began with.
            compiled.snapshot.accounting.clone_from(&old.snapshot.accounting);
            let mut kept = Vec::new();
            kept.extend((!same).then_some("<acct-file>"));
            kept.extend((old.http_port != compiled.http_port).then_some("http-mgmt-port"));
            kept.extend((old.workers != compiled.workers).then_some("workers (or: sluice scale)"));
            kept.extend((old.data_dir != compiled.data_dir).then_some("data-dir"));
            kept
        };
        compiled.snapshot.generation = self.generation.get() + 1;
        let fd = compiled.snapshot.seal().map_err(|e| e.to_string())?;
        let changes = config::diff::diff(self.mapped()?.get(), map(&fd)?.get());
        ipc::descriptors::give_back_heap();
        self.generation.set(compiled.snapshot.generation);
        self.listeners.borrow_mut().retain(|(a, _)| compiled.snapshot.listeners.iter().any(|l| l.address == *a));
        self.listeners.borrow_mut().extend(added);
        *self.snapshot.borrow_mut() = fd;
        *self.compiled.borrow_mut() = compiled;
        let numbers: Vec<u8> = self.slots.borrow().iter().map(|s| s.number).collect();
        for n in numbers {
            self.slot_mut(n, |s| s.reload_error = None);
            self.send_reload(n);
        }
        let generation = self.generation.get();
        let settled = |s: &Slot| s.state != State::Serving || s.generation >= generation || s.reload_error.is_some();
        if wait {
            self.until(Duration::from_secs(10), |s| s.slots.borrow().iter().all(settled)).await;
        }
        let refused = self.slots.borrow().iter().find_map(|s| s.reload_error.clone());
        let mut said = changes;
        match refused {
            Some(e) => return Err(e),
            None if kept.is_empty() => said.push("Configuration reloaded.".into()),
            None => said.push(format!("Configuration reloaded. A restart is needed for: {}.", kept.join(", "))),
        }
        Ok(said.join("\n"))
    }

    /// Source addresses that come with a reload must be this machine's.
    fn check_addresses(&self, new: &Compiled) -> Result<(), String> {
        let old = self.compiled.borrow();
        let known = |ip: &str| old.snapshot.vmtas.iter().any(|v| v.source_hosts.iter().any(|h| h.ip == ip));
        for v in &new.snapshot.vmtas {
            for h in v.source_hosts.iter().filter(|h| !known(&h.ip)) {
                let ip: std::net::IpAddr = h.ip.parse().map_err(|_| format!("{} is no address", h.ip))?;
                if let Err(e) = std::net::UdpSocket::bind((ip, 0)) {
                    return Err(format!(
                        "smtp-source-host {ip} of virtual MTA {} cannot be used on this machine ({e}); the old configuration stays in force",
                        v.name
                    ));
                }
            }
        }
        Ok(())
    }

    /// Every listener goes along: a worker takes those it does not have.
    pub(super) fn send_reload(&self, number: u8) {
        let (names, mut fds) = self.descriptors();
        if fds.len() > 1 {
            fds.remove(1);
        }
        let order = ToWorker::Reload { listeners: names.clone(), added: names };
        self.slot(number, |s| s.order(order, fds));
    }
}

//! Putting another configuration in force: all of it is checked before anything changes.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use tokio::task::spawn_local;

use super::told;
use crate::accounting;
use crate::acme;
use crate::config::diff::Change;
use crate::config::source::Source;
use crate::config::{self, Compiled, map};
use crate::configurations::{By, Text};
use crate::listen;
use crate::salt_key;
use crate::shards::{Slot, State};
use crate::state::Supervisor;

/// What a dry run of a reload says of the built-in configuration.
const NO_FILE: &str = "The server runs on its built-in configuration: there is no file to reload.";

/// Another configuration, checked and not in force.
struct Prepared {
    compiled: Compiled,
    /// What it was read from.
    text: Text,
    fd: OwnedFd,
    changes: Vec<Change>,
    /// Listeners that it adds.
    added: Vec<(String, OwnedFd)>,
    /// What this machine would not let happen.
    refused: Vec<String>,
}

/// Why a configuration cannot be put in force.
struct NotPrepared {
    /// All errors, for the operator.
    text: String,
    /// The first of them, for the log.
    reason: String,
}

impl From<String> for NotPrepared {
    fn from(text: String) -> NotPrepared {
        NotPrepared { reason: text.clone(), text }
    }
}

/// What is in force, and was tried when it was put in force.
struct Known {
    addresses: HashSet<String>,
    accounting: HashSet<String>,
}

impl Known {
    fn of(compiled: &Compiled) -> Known {
        let hosts = compiled.snapshot.vmtas.iter().flat_map(|v| &v.source_hosts);
        let accounting = compiled.snapshot.accounting.iter().map(|a| a.path.clone());
        Known { addresses: hosts.map(|h| h.ip.clone()).collect(), accounting: accounting.collect() }
    }

    /// Why accounting files that come with a configuration cannot be made.
    fn unwritable(&self, new: &Compiled) -> Vec<String> {
        let added = new.snapshot.accounting.iter().filter(|a| !self.accounting.contains(&a.path));
        added.filter_map(accounting::unwritable).collect()
    }

    /// Source addresses that come with a configuration and are not this machine's.
    fn unusable_addresses(&self, new: &Compiled) -> Vec<String> {
        let mut tried = HashSet::new();
        let mut refused = Vec::new();
        for v in &new.snapshot.vmtas {
            for h in v.source_hosts.iter().filter(|h| !self.addresses.contains(&h.ip)) {
                if !tried.insert(h.ip.as_str()) {
                    continue;
                }
                if let Err(e) = config::source_hosts::usable(&h.ip) {
                    let of = format!("smtp-source-host {} of virtual MTA {}", h.ip, v.name);
                    refused.push(format!("{of} cannot be used on this machine ({e})"));
                }
            }
        }
        refused
    }
}

/// Does beside the loop what takes its time: the loop must not wait for a disk, nor for a long file.
pub(super) async fn beside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string())?
}

impl Supervisor {
    /// Puts the changed file in force; answers when every worker has taken it, or without
    /// `wait` when they have been told.
    ///
    /// # Errors
    /// The errors of the file; the old configuration stays.
    pub async fn reload(self: &Rc<Self>, wait: bool, dry_run: bool, by: By) -> Result<String, String> {
        if dry_run {
            return match self.file.clone() {
                Some(f) => self.diff(Source::Server, f, false).await,
                None => Ok(NO_FILE.into()),
            };
        }
        // Without systemd there is no socket to tell, and where telling fails the reload goes on all the same.
        let _ = sd_notify::notify(&[
            sd_notify::NotifyState::Reloading,
            sd_notify::NotifyState::monotonic_usec_now().unwrap_or(sd_notify::NotifyState::Reloading),
        ]);
        let result = self.try_reload(wait, by).await;
        let status = match &result {
            Ok(t) => t.clone(),
            Err(e) => format!("reload: {}", e.lines().next().unwrap_or_default()),
        };
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Status(&status)]);
        result
    }

    /// Reads and compiles a file, none for the built-in configuration, and tries what it needs
    /// of this machine. All of it is done beside the loop, which must not wait for a disk, nor for a file that is long.
    async fn prepare(&self, source: Source, file: Option<PathBuf>) -> Result<Prepared, NotPrepared> {
        let _one_at_a_time = self.reading.lock().await;
        let is_servers = matches!(source, Source::Server);
        let overrides = self.overrides.clone();
        let known = Known::of(&self.compiled.borrow());
        let read = move || {
            let checked = config::compile_from(source, file.as_deref(), &overrides).map_err(|e| {
                format!("cannot read {}: {e}", file.as_deref().unwrap_or(Path::new("(built-in)")).display())
            })?;
            if let (Some(errors), Some(reason)) = (checked.errors(), checked.first_error()) {
                return Ok(Err(NotPrepared { text: format!("the configuration has errors\n\n{errors}"), reason }));
            }
            let mut refused = known.unusable_addresses(&checked.compiled);
            refused.extend(known.unwritable(&checked.compiled));
            refused.extend(listen::nowhere(&checked.compiled));
            Ok(Ok((Text::of(&checked), checked.compiled, refused)))
        };
        let read = beside(read).await;
        ipc::descriptors::give_back_heap();
        let (text, mut compiled, mut refused) = read??;
        let mut added = Vec::new();
        for l in &compiled.snapshot.listeners {
            if !self.listeners.borrow().iter().any(|(a, _)| *a == l.address) {
                match listen::bind_to(&l.address) {
                    Ok(fd) => added.push((l.address.clone(), fd)),
                    Err(e) => refused.push(e),
                }
            }
        }
        let (known, data_dir) = {
            let in_force = self.compiled.borrow();
            (in_force.snapshot.salt_key, in_force.data_dir.clone())
        };
        let users = compiled.snapshot.smtp_users.len();
        let of_start = self.data_dir.clone();
        compiled = beside(move || {
            compiled.snapshot.salt_key = salt_key::for_users(users, known, &data_dir);
            if is_servers {
                acme::files::load(&mut compiled, &of_start);
            }
            Ok(compiled)
        })
        .await?;
        loop {
            let generation = self.generation.get() + 1;
            compiled.snapshot.generation = generation;
            let old = self.snapshot.borrow().try_clone().map_err(|e| e.to_string())?;
            let sealed = beside(move || {
                let fd = compiled.snapshot.seal().map_err(|e| e.to_string())?;
                let changes = config::diff::diff(map(&old)?.get(), map(&fd)?.get());
                Ok((compiled, fd, changes))
            });
            let (sealed, fd, changes) = sealed.await?;
            // Meanwhile a key may have changed, or a worker come back that was ahead.
            if self.generation.get() + 1 == generation {
                return Ok(Prepared { compiled: sealed, text, fd, changes, added, refused });
            }
            compiled = sealed;
        }
    }

    /// What putting files in force would change, a line each or as JSON.
    ///
    /// # Errors
    /// The errors of the files, and what this machine would not let happen.
    pub async fn diff(&self, source: Source, file: PathBuf, json: bool) -> Result<String, String> {
        let p = self.prepare(source, Some(file)).await.map_err(|e| e.text)?;
        let said = move || {
            if json {
                return serde_json::to_string_pretty(&p.changes).map_err(|e| e.to_string());
            }
            let mut said = config::diff::as_text(&p.changes);
            said.push_str(&restart_note(&p.changes).map(|n| format!("\n{n}")).unwrap_or_default());
            if p.refused.is_empty() {
                return Ok(said);
            }
            Err(format!("{said}\n\na reload would be refused:\n{}", p.refused.join("\n")))
        };
        beside(said).await
    }

    /// `config explain` as JSON.
    ///
    /// # Errors
    /// A sentence naming what does not exist.
    pub async fn explain(
        &self,
        destination: String,
        via: String,
        only: String,
        lookup: bool,
    ) -> Result<String, String> {
        let snapshot = self.snapshot.borrow().try_clone().map_err(|e| e.to_string())?;
        let explained = move || {
            let all = config::explained(map(&snapshot)?, &destination, &via, &only, lookup)?;
            serde_json::to_string(&all).map_err(|e| e.to_string())
        };
        beside(explained).await
    }

    /// `config explain --source` as JSON.
    ///
    /// # Errors
    /// A sentence naming what does not exist.
    pub async fn explain_source(&self, who: String, only: String) -> Result<String, String> {
        let snapshot = self.snapshot.borrow().try_clone().map_err(|e| e.to_string())?;
        let explained = move || {
            let all = config::explain::explain_source(map(&snapshot)?.get(), &who, &only)?;
            serde_json::to_string(&all).map_err(|e| e.to_string())
        };
        beside(explained).await
    }

    async fn try_reload(self: &Rc<Self>, wait: bool, by: By) -> Result<String, String> {
        let stays = |e: String| match e.split_once('\n') {
            Some((first, rest)) => format!("{first}; the old configuration stays in force\n{rest}"),
            None => format!("{e}; the old configuration stays in force"),
        };
        let one_at_a_time = self.reloading.lock().await;
        let p = match self.prepare(Source::Server, self.file.clone()).await {
            Ok(p) if p.refused.is_empty() => p,
            Ok(p) => {
                told::of_refusal(&p.refused.join("; "));
                return Err(stays(p.refused.join("\n")));
            }
            Err(e) => {
                told::of_refusal(&e.reason);
                return Err(stays(e.text));
            }
        };
        self.generation.set(p.compiled.snapshot.generation);
        self.listeners.borrow_mut().retain(|(a, _)| p.compiled.snapshot.listeners.iter().any(|l| l.address == *a));
        self.listeners.borrow_mut().extend(p.added);
        *self.snapshot.borrow_mut() = p.fd;
        spawn_local(Rc::clone(self).keep_configuration(p.text, by, Some(p.changes.len())));
        let old = self.compiled.replace(p.compiled);
        // Half a million lines take their time to be forgotten, too.
        drop(tokio::task::spawn_blocking(move || drop(old)));
        drop(one_at_a_time);
        let numbers: Vec<u8> = self.slots.borrow().iter().map(|s| s.number).collect();
        for n in numbers {
            self.slot_mut(n, |s| s.reload_error = None);
            self.send_reload(n);
        }
        let generation = self.generation.get();
        let settled = |s: &Slot| s.state != State::Serving || s.generation >= generation || s.reload_error.is_some();
        spawn_local(Rc::clone(self).spread_anew());
        spawn_local(Rc::clone(self).compare_keys());
        self.acme_asked.set(true);
        self.accounting.feed_programs(true, &self.cpus_of_workers());
        if wait {
            self.until(Duration::from_secs(10), |s| s.slots.borrow().iter().all(settled)).await;
            // Rows of mail that comes after the answer are in new files already.
            if let Err(error) = self.rotate_now_if_due().await {
                tracing::error!(error, "new accounting files are not in use yet");
            }
        }
        let lacking = self.slots.borrow().iter().find_map(|s| s.reload_error.clone().map(|e| (s.number, e)));
        if let Some((shard, error)) = lacking {
            told::of_part(&format!("shard {shard}: {error}"));
            return Err(format!("the configuration is in force, but shard {shard} could not take all of it: {error}"));
        }
        told::of_reload(generation, &p.changes);
        let mut said: Vec<String> = p.changes.iter().map(Change::to_string).collect();
        said.push("Configuration reloaded.".into());
        said.extend(restart_note(&p.changes));
        Ok(said.join("\n"))
    }
}

/// Names what only a restart puts in force.
fn restart_note(changes: &[Change]) -> Option<String> {
    let names = config::diff::restart_needed(changes);
    (!names.is_empty()).then(|| format!("A restart is needed for: {}.", names.join(", ")))
}

//! DKIM keys whose files change: they are used without a reload, which would put other edits in
//! force as well.

use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use worker::connect::mx::Resolver;
use worker::dkim::key::Key;
use worker::ports::dns_of_the_system;
use worker::regular_file;

use crate::config::source::PEM_BYTES_MAX;
use crate::state::Supervisor;

/// Time between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What tells that a file is another.
type Stamp = (Option<SystemTime>, u64);

fn stamp(path: &str) -> Stamp {
    std::fs::metadata(path).map_or((None, 0), |m| (m.modified().ok(), m.len()))
}

/// Beside the loop, which must not wait for a disk.
async fn stamps(paths: Vec<String>) -> Vec<(String, Stamp)> {
    let with_stamp = |p: String| {
        let stamp = stamp(&p);
        (p, stamp)
    };
    let look = move || paths.into_iter().map(with_stamp).collect();
    tokio::task::spawn_blocking(look).await.unwrap_or_default()
}

/// What key files hold.
async fn read(paths: Vec<String>) -> Vec<(String, Result<String, String>)> {
    let read = |p: String| {
        let pem = regular_file::read_to_string(Path::new(&p), PEM_BYTES_MAX).map_err(|e| e.to_string());
        (p, pem.and_then(|pem| Key::from_pem(&pem).map(|_| pem)))
    };
    let all = move || paths.into_iter().map(read).collect();
    tokio::task::spawn_blocking(all).await.unwrap_or_default()
}

impl Supervisor {
    /// Looks after the files of all keys.
    pub(super) async fn watch_keys(self: Rc<Self>) {
        let mut known: HashMap<String, Stamp> = HashMap::new();
        while !self.stopping.get() {
            let paths = self.key_files();
            known.retain(|p, _| paths.contains(p));
            let mut changed = Vec::new();
            for (p, now) in stamps(paths).await {
                // What is there first is what the configuration was read with.
                if known.insert(p.clone(), now).is_some_and(|before| before != now) {
                    changed.push(p);
                }
            }
            if !changed.is_empty() {
                self.take_keys(changed).await;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Warns of DKIM keys whose published record holds another key: receivers cannot verify what they sign.
    pub(super) async fn compare_keys(self: Rc<Self>) {
        let (keys, name_servers, udp_bytes) = {
            let compiled = self.compiled.borrow();
            let global = &compiled.snapshot.global;
            (crate::dkim::keys_of(&compiled.snapshot), global.name_servers.clone(), global.edns_udp_length)
        };
        let generation = self.generation.get();
        let compared = match Resolver::new(&name_servers, udp_bytes, &dns_of_the_system()) {
            Ok(r) => crate::dkim::compare(keys, &r).await,
            Err(e) => return tracing::warn!(error = e, "DKIM keys cannot be compared with their records"),
        };
        match compared {
            // Meanwhile there are others, which are compared as well.
            Ok(_) if self.generation.get() != generation => {}
            Ok(all) => {
                for c in all.iter().filter(|c| c.is_wrong()) {
                    tracing::warn!(
                        "the record of a DKIM key is not its own: {c}; `sluice dkim check` says what to publish"
                    );
                }
                self.dkim_keys.set((all.len(), all.iter().filter(|c| c.is_wrong()).count()));
            }
            Err(e) => tracing::warn!(error = %e, "DKIM keys cannot be compared with their records"),
        }
    }

    fn key_files(&self) -> Vec<String> {
        let compiled = self.compiled.borrow();
        let mut paths: Vec<String> = compiled.snapshot.all_domain_keys().map(|k| k.path.clone()).collect();
        paths.sort_unstable();
        paths.dedup();
        paths
    }

    /// Reads files that changed; what holds no key is left for its next change.
    async fn take_keys(self: &Rc<Self>, changed: Vec<String>) {
        let mut some = false;
        let held = read(changed.clone()).await;
        {
            let mut compiled = self.compiled.borrow_mut();
            for (path, read) in held {
                match read {
                    Ok(pem) => {
                        let held = compiled.snapshot.pem_files.iter_mut().find(|(p, _)| *p == path);
                        some |= held.is_some_and(|(_, old)| std::mem::replace(old, pem.clone()) != pem);
                    }
                    Err(e) => {
                        tracing::error!(path, error = %e, "a DKIM key's file changed and cannot be used; the key before stays in force")
                    }
                }
            }
            if !some {
                return;
            }
            if let Err(e) = self.publish(&mut compiled, self.generation.get() + 1) {
                return tracing::error!(error = %e, "changed DKIM keys cannot be published");
            }
        }
        tracing::info!(files = ?changed, "DKIM keys changed");
        let numbers: Vec<u8> = self.slots.borrow().iter().map(|s| s.number).collect();
        numbers.into_iter().for_each(|n| self.send_reload(n));
        tokio::task::spawn_local(Rc::clone(self).compare_keys());
    }
}

//! Keys and certificates whose files change: they are used without a reload, which would put other edits in force as well.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::{spawn_blocking, spawn_local};

use crate::config::pem::{Form, PemFile};
use crate::state::Supervisor;

/// Time between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What tells that a file is another: when it was changed, its size and number.
type Stamp = Option<(i64, i64, u64, u64)>;

fn stamp(path: &str) -> Stamp {
    let m = std::fs::metadata(path).ok()?;
    Some((m.mtime(), m.mtime_nsec(), m.len(), m.ino()))
}

/// Beside the loop, which must not wait for a disk.
async fn stamps(files: Vec<PemFile>) -> Vec<(PemFile, Stamp)> {
    let with_stamp = |f: PemFile| {
        let stamp = stamp(&f.path);
        (f, stamp)
    };
    spawn_blocking(move || files.into_iter().map(with_stamp).collect()).await.unwrap_or_default()
}

/// What files hold.
async fn read(files: Vec<PemFile>) -> Vec<(PemFile, Result<String, String>)> {
    let read = |f: PemFile| {
        let pem = f.read();
        (f, pem)
    };
    spawn_blocking(move || files.into_iter().map(read).collect()).await.unwrap_or_default()
}

impl Supervisor {
    /// Looks after the files of all keys and certificates.
    pub(super) async fn watch_pem_files(self: Rc<Self>) {
        let mut known: HashMap<PemFile, Stamp> = HashMap::new();
        let mut generation = 0;
        while !self.stopping.get() {
            let files = self.compiled.borrow().pem_files.clone();
            if std::mem::replace(&mut generation, self.generation.get()) != generation {
                // The configuration was read at some time since the last look: what it has of any file may be older than the file.
                known.clear();
            }
            let mut changed = Vec::new();
            for (f, now) in stamps(files).await {
                if known.insert(f.clone(), now) != Some(now) && now.is_some() {
                    changed.push(f);
                }
            }
            if !changed.is_empty() && self.generation.get() == generation {
                self.take_pem_files(changed).await;
                generation = self.generation.get();
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Reads files that changed; what cannot be used is left for its next change.
    pub async fn take_pem_files(self: &Rc<Self>, changed: Vec<PemFile>) {
        let mut taken = Vec::new();
        let held = read(changed).await;
        {
            let mut compiled = self.compiled.borrow_mut();
            for (file, read) in held {
                let (path, what) = (&file.path, file.form.what());
                match read {
                    Ok(pem) => {
                        let held = compiled.snapshot.pem_files.iter_mut().find(|(p, _)| p == path);
                        if held.is_some_and(|(_, old)| std::mem::replace(old, pem.clone()) != pem) {
                            taken.push(file);
                        }
                    }
                    Err(e) => {
                        tracing::error!(path, error = %e, "a {what} changed and cannot be used; what was there before stays in force")
                    }
                }
            }
            if taken.is_empty() {
                return;
            }
            if let Err(e) = self.publish(&mut compiled, self.generation.get() + 1) {
                return tracing::error!(error = %e, "changed keys and certificates cannot be published");
            }
        }
        taken.iter().for_each(|f| tracing::info!(path = f.path, "a {} changed and is in force", f.form.what()));
        let numbers: Vec<u8> = self.slots.borrow().iter().map(|s| s.number).collect();
        numbers.into_iter().for_each(|n| self.send_reload(n));
        if taken.iter().any(|f| f.form == Form::SigningKey) {
            spawn_local(Rc::clone(self).compare_keys());
        }
    }
}

//! Keys and certificates whose files change: they are used without a reload, which would put other edits in force as well.

use std::collections::{HashMap, HashSet};
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
    // A thread that ends by a panic has told the log, and the files are looked at again.
    spawn_blocking(move || files.into_iter().map(with_stamp).collect()).await.unwrap_or_default()
}

/// What files hold.
async fn read(files: Vec<(PemFile, bool)>) -> Vec<((PemFile, bool), Result<String, String>)> {
    let read = |f: (PemFile, bool)| {
        let pem = f.0.read();
        (f, pem)
    };
    // Likewise, but that they are looked at again with their next change.
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
                let before = known.insert(f.clone(), now);
                if now.is_none() && before.is_some_and(|b| b.is_some()) {
                    let (path, what) = (&f.path, f.form.what());
                    tracing::warn!(
                        path,
                        "the file of a {what} is gone; what was there stays in force until a restart or a reload"
                    );
                }
                if before != Some(now) && now.is_some() {
                    changed.push((f, before.is_some()));
                }
            }
            if !changed.is_empty() && self.generation.get() == generation {
                generation = self.take_pem_files(changed).await.unwrap_or(generation);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Reads files that changed, each with whether that is known rather than possible; what cannot be used is left for its next change.
    /// Answers the generation that has them in force, unless nothing is another.
    pub async fn take_pem_files(self: &Rc<Self>, changed: Vec<(PemFile, bool)>) -> Option<u64> {
        let held = read(changed).await;
        let mut unusable = HashSet::new();
        for ((file, has_changed), read) in &held {
            let Err(e) = read else { continue };
            // Another line may need less of the same file.
            unusable.insert(file.path.clone());
            let (path, what) = (&file.path, file.form.what());
            if *has_changed {
                let text = "changed and cannot be used; what was there before stays in force";
                tracing::error!(path, error = %e, "a {what} {text}");
            } else {
                tracing::debug!(path, error = %e, "a {what} cannot be read again");
            }
        }
        let mut taken: Vec<(PemFile, String)> = Vec::new();
        let mut compiled = self.compiled.borrow_mut();
        for ((file, _), read) in held {
            let Some(pem) = read.ok().filter(|_| !unusable.contains(&file.path)) else { continue };
            let held = compiled.snapshot.pem_files.iter_mut().find(|(p, _)| *p == file.path);
            if let Some((_, old)) = held.filter(|(_, old)| *old != pem) {
                taken.push((file, std::mem::replace(old, pem)));
            }
        }
        if taken.is_empty() {
            return None;
        }
        let generation = self.generation.get() + 1;
        if let Err(e) = self.publish(&mut compiled, generation) {
            for (file, old) in taken {
                let held = compiled.snapshot.pem_files.iter_mut().filter(|(p, _)| *p == file.path);
                held.for_each(|f| f.1.clone_from(&old));
            }
            tracing::error!(error = %e, "changed keys and certificates cannot be published; they are looked at again when they change");
            return None;
        }
        drop(compiled);
        taken.iter().for_each(|(f, _)| tracing::info!(path = f.path, "a {} changed and is in force", f.form.what()));
        let numbers: Vec<u8> = self.slots.borrow().iter().map(|s| s.number).collect();
        numbers.into_iter().for_each(|n| self.send_reload(n));
        if taken.iter().any(|(f, _)| f.form == Form::SigningKey) {
            spawn_local(Rc::clone(self).compare_keys());
        }
        Some(generation)
    }
}

//! How old finished accounting files are, for `delete-after`. What the file system says is by a
//! clock that may have been wrong when a file was written, or is wrong now: a clock that is set ten
//! days ahead must not make files of today ten days old. So it is written down at which queue time
//! ([`worker::clock`]) each was first seen finished, and that counts.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name of the file in the data folder.
const FILE: &str = "accounting-ages";

/// See the module.
#[derive(Debug, Default)]
pub struct Ages {
    file: PathBuf,
    /// Queue time at which a file was first seen finished, milliseconds, by the path it was
    /// written at: it keeps its age where it is moved to.
    finished: BTreeMap<PathBuf, i64>,
}

impl Ages {
    /// Goes on with what a server before this one has written down. Where that is lost, files
    /// count from now on: kept for longer, never for less.
    pub fn read(data_dir: &Path) -> Ages {
        let file = data_dir.join(FILE);
        let finished = match std::fs::read(&file).map(|bytes| serde_json::from_slice(&bytes)) {
            Ok(Ok(finished)) => finished,
            Ok(Err(e)) => {
                tracing::warn!(path = %file.display(), error = %e, "ages of accounting files cannot be read; they count from now on (delete-after)");
                BTreeMap::new()
            }
            Err(_) => BTreeMap::new(),
        };
        Ages { file, finished }
    }

    /// These are finished at this time, and no others: a name that is used again begins anew.
    pub fn note(&mut self, finished: &HashSet<PathBuf>, now_ms: i64) {
        let before = self.finished.len();
        self.finished.retain(|p, _| finished.contains(p));
        let mut changed = self.finished.len() != before;
        for p in finished {
            self.finished.entry(p.clone()).or_insert_with(|| {
                changed = true;
                now_ms
            });
        }
        if changed {
            self.write();
        }
    }

    /// It is deleted.
    pub fn forget(&mut self, written_at: &Path) {
        if self.finished.remove(written_at).is_some() {
            self.write();
        }
    }

    /// How long ago a file was first seen finished.
    pub fn age(&self, written_at: &Path, now_ms: i64) -> Duration {
        let since = self.finished.get(written_at).copied().unwrap_or(now_ms);
        Duration::from_millis((now_ms - since).max(0) as u64)
    }

    fn write(&self) {
        if self.file.as_os_str().is_empty() {
            return;
        }
        let new = self.file.with_extension("new");
        let written = serde_json::to_vec(&self.finished)
            .map_err(std::io::Error::from)
            .and_then(|text| std::fs::write(&new, text))
            .and_then(|()| std::fs::rename(&new, &self.file));
        if let Err(e) = written {
            tracing::warn!(path = %self.file.display(), error = %e, "ages of accounting files cannot be written down; after a restart they count anew (delete-after)");
        }
    }
}

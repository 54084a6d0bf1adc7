//! The index on sled 0.34, used so that its measured traps cannot bite:
//!
//! - values are small and bodies never go in (large values leak files in `blobs/`);
//! - `flush()` alone does not survive power loss, so its `db` file is synced through a
//!   descriptor of our own;
//! - opening on a full disk destroys it, so the caller frees its ballast and checks first;
//! - recovery can panic, so it is opened under `catch_unwind`;
//! - it starts threads, which inherit the CPU that the worker was pinned to before.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crate::index::{Change, Each, Index, IndexError};

/// Bytes of cache that sled may use. It holds several times as much memory for them, and for good: with 16 MB a queue of 202,000
/// messages cost 320 bytes each, 46 MB of which stayed when it was empty; with 2 MB 143 bytes and 13 MB, and starts are no slower.
const CACHE_BYTES: u64 = 2 << 20;

/// An index in a folder of its own.
pub struct SledIndex {
    path: PathBuf,
    open: Option<(sled::Db, Option<File>)>,
}

impl std::fmt::Debug for SledIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SledIndex").field("path", &self.path).finish_non_exhaustive()
    }
}

fn guarded<T>(what: &str, f: impl FnOnce() -> sled::Result<T>) -> Result<T, IndexError> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(v)) => Ok(v),
        Ok(Err(e)) => Err(IndexError(format!("{what}: {e}"))),
        Err(_) => Err(IndexError(format!("{what}: sled panicked"))),
    }
}

impl SledIndex {
    /// An index in `path`. What cannot be opened stays closed: every use of it fails, and the
    /// caller sets it aside and rebuilds.
    pub fn open(path: &Path) -> SledIndex {
        let mut index = SledIndex { path: path.to_owned(), open: None };
        match Self::start(path) {
            Ok(open) => index.open = Some(open),
            Err(e) => {
                tracing::warn!(path = %path.display(), error = %e, "index does not open; it is rebuilt from the segments");
            }
        }
        index
    }

    fn start(path: &Path) -> Result<(sled::Db, Option<File>), IndexError> {
        let db =
            guarded("open", || sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None).open())?;
        Ok((db, File::open(path.join("db")).ok()))
    }

    fn db(&self) -> Result<&sled::Db, IndexError> {
        self.open.as_ref().map(|(db, _)| db).ok_or_else(|| IndexError("closed".into()))
    }
}

impl Index for SledIndex {
    const REBUILD_BATCH: usize = 65_536;

    fn apply(&mut self, changes: Vec<Change>) -> Result<(), IndexError> {
        let db = self.db()?;
        guarded("write", || {
            let mut batch = sled::Batch::default();
            for (k, v) in changes {
                match v {
                    Some(v) => batch.insert(k, v),
                    None => batch.remove(k),
                }
            }
            db.apply_batch(batch)
        })
    }

    fn flush(&mut self) -> Result<(), IndexError> {
        let (db, file) = self.open.as_ref().ok_or_else(|| IndexError("closed".into()))?;
        guarded("flush", || db.flush())?;
        if let Some(f) = file {
            f.sync_all().map_err(|e| IndexError(format!("sync: {e}")))?;
        }
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        let db = self.db()?;
        guarded("read", || Ok(db.get(key)?.map(|v| v.to_vec())))
    }

    fn scan(&self, prefix: &[u8], each: &mut Each<'_>) -> Result<(), IndexError> {
        let db = self.db()?;
        let mut from_each = Ok(());
        guarded("scan", || {
            for entry in db.scan_prefix(prefix) {
                let (k, v) = entry?;
                from_each = each(&k, &v);
                if from_each.is_err() {
                    break;
                }
            }
            Ok(())
        })?;
        from_each
    }

    fn set_aside(&mut self) -> Result<(), IndexError> {
        let aside = self.path.with_extension("aside");
        let io = |e: std::io::Error| IndexError(format!("set aside: {e}"));
        if aside.exists() {
            std::fs::remove_dir_all(&aside).map_err(io)?;
        }
        if self.path.exists() {
            std::fs::rename(&self.path, &aside).map_err(io)?;
        }
        // Closed after it has lost its name: sled writes once more when it is closed, and what
        // it writes after a failure must never be found again.
        self.open = None;
        if aside.exists() {
            std::fs::remove_dir_all(&aside).map_err(io)?;
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<(), IndexError> {
        self.open = Some(Self::start(&self.path)?);
        Ok(())
    }
}

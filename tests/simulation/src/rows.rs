//! The accounting file of one shard, on its simulated disk.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spool::Projection;
use tokio::time::Instant;

/// A file of rows, as they lie in the spool's log.
#[derive(Debug, Default)]
pub struct File {
    /// All rows that were written, and when.
    pub rows: Vec<(Instant, Vec<u8>)>,
    /// The first so many are on disk for good.
    synced: usize,
}

impl File {
    /// Forgets what was not synced, but for the first `kept` of it.
    pub fn lose_power(&mut self, kept: usize) {
        self.rows.truncate(self.synced + kept);
        self.synced = self.rows.len();
    }

    /// Rows that power loss would take.
    pub fn unsynced(&self) -> usize {
        self.rows.len() - self.synced
    }
}

/// A file that outlives the processes that write it.
pub type Shared = Arc<Mutex<File>>;

/// Locks a file.
pub fn lock(f: &Shared) -> MutexGuard<'_, File> {
    f.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes rows into a [`File`].
#[derive(Debug)]
pub struct Projected {
    file: Shared,
    pending: Vec<Vec<u8>>,
    /// Rows that the file holds behind the state resumed from, and that come again.
    known: BTreeMap<Vec<u8>, usize>,
}

impl Projected {
    /// Writes into `file`.
    pub fn into(file: Shared) -> Projected {
        Projected { file, pending: Vec::new(), known: BTreeMap::new() }
    }
}

impl Projection for Projected {
    fn message(&mut self, _: &[u8], _: &[u8]) {}

    fn takes_messages(&self) -> bool {
        false
    }

    fn row(&mut self, row: &[u8]) {
        match self.known.get_mut(row) {
            Some(n) if *n > 0 => *n -= 1,
            _ => self.pending.push(row.to_vec()),
        }
    }

    fn write(&mut self) -> io::Result<()> {
        let now = Instant::now();
        lock(&self.file).rows.extend(self.pending.drain(..).map(|row| (now, row)));
        Ok(())
    }

    fn sync(&mut self) -> io::Result<Vec<u8>> {
        let mut file = lock(&self.file);
        file.synced = file.rows.len();
        Ok((file.synced as u64).to_le_bytes().to_vec())
    }

    fn resume(&mut self, state: &[u8]) {
        let from = state.first_chunk().map_or(0, |b| u64::from_le_bytes(*b) as usize);
        self.pending.clear();
        self.known.clear();
        for (_, row) in lock(&self.file).rows.iter().skip(from) {
            *self.known.entry(row.clone()).or_default() += 1;
        }
    }
}

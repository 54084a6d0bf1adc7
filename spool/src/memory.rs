//! Disk and index in memory for tests, with a power switch: they fail at the n-th operation,
//! and [`MemoryDisk::lose_power`] keeps only what was synced (and a torn part of the rest).

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipc::dice::HashMap;

use crate::disk::Disk;
use crate::index::{Change, Each, Index, IndexError};

#[derive(Debug, Default, Clone)]
struct FileState {
    now: Vec<u8>,
    synced: Vec<u8>,
}

#[derive(Debug, Default)]
struct DiskState {
    files: HashMap<String, FileState>,
    capacity: u64,
    /// Operations until writes and syncs fail; `None` for never.
    fail_in: Option<u32>,
}

/// A folder in memory; clones share it.
#[derive(Debug, Clone)]
pub struct MemoryDisk(Arc<Mutex<DiskState>>);

impl MemoryDisk {
    /// An empty folder on a file system of `capacity` bytes.
    pub fn new(capacity: u64) -> Self {
        MemoryDisk(Arc::new(Mutex::new(DiskState { capacity, ..Default::default() })))
    }

    fn state(&self) -> MutexGuard<'_, DiskState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the n-th write or sync from now fail, and all after it.
    pub fn fail_in(&self, operations: Option<u32>) {
        self.state().fail_in = operations;
    }

    /// Sets the size of the file system.
    pub fn set_capacity(&self, bytes: u64) {
        self.state().capacity = bytes;
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.state().files.values().map(|f| f.now.len() as u64).sum()
    }

    /// Forgets what was not synced, but for the first `torn` bytes of each change.
    pub fn lose_power(&self, torn: usize) {
        let mut s = self.state();
        s.fail_in = None;
        for f in s.files.values_mut() {
            let mut kept = f.synced.clone();
            if let Some(first) = (0..f.now.len()).find(|i| f.now.get(*i) != f.synced.get(*i)) {
                let end = (first + torn).min(f.now.len());
                kept.resize(kept.len().max(end), 0);
                kept[first..end].copy_from_slice(&f.now[first..end]);
            }
            f.now = kept.clone();
            f.synced = kept;
        }
    }

    /// Flips bits at a place of a file, as bad media would.
    pub fn damage(&self, name: &str, offset: usize) {
        if let Some(b) = self.state().files.get_mut(name).and_then(|f| f.now.get_mut(offset)) {
            *b ^= 0xFF;
        }
    }
}

fn tick(s: &mut DiskState) -> io::Result<()> {
    match &mut s.fail_in {
        Some(0) => Err(io::Error::other("injected failure")),
        Some(n) => {
            *n -= 1;
            Ok(())
        }
        None => Ok(()),
    }
}

impl Disk for MemoryDisk {
    type File = String;

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.state().files.keys().cloned().collect())
    }

    fn create(&mut self, name: &str) -> io::Result<String> {
        let mut s = self.state();
        tick(&mut s)?;
        s.files.insert(name.to_owned(), FileState::default());
        Ok(name.to_owned())
    }

    fn open(&mut self, name: &str) -> io::Result<String> {
        if self.state().files.contains_key(name) { Ok(name.to_owned()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn preallocate(&mut self, file: &String, _from: u64, end: u64) -> io::Result<()> {
        let mut s = self.state();
        let used: u64 = s.files.values().map(|f| f.now.len() as u64).sum();
        let capacity = s.capacity;
        let f = s.files.get_mut(file).ok_or(io::ErrorKind::NotFound)?;
        let grow = end.saturating_sub(f.now.len() as u64);
        if used + grow > capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let len = f.now.len().max(end as usize);
        f.now.resize(len, 0);
        f.synced.resize(len, 0);
        Ok(())
    }

    fn write(&mut self, file: &String, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let mut s = self.state();
        let failed = tick(&mut s);
        let used: u64 = s.files.values().map(|f| f.now.len() as u64).sum();
        let capacity = s.capacity;
        let f = s.files.get_mut(file).ok_or(io::ErrorKind::NotFound)?;
        let mut bytes: Vec<u8> = parts.iter().flat_map(|p| p.iter().copied()).collect();
        if failed.is_err() {
            bytes.truncate(bytes.len() / 2);
        }
        let (at, end) = (offset as usize, offset as usize + bytes.len());
        if used + end.saturating_sub(f.now.len()) as u64 > capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let len = f.now.len().max(end);
        f.now.resize(len, 0);
        f.now[at..end].copy_from_slice(&bytes);
        failed
    }

    fn sync(&mut self, file: &String) -> io::Result<()> {
        let mut s = self.state();
        tick(&mut s)?;
        let f = s.files.get_mut(file).ok_or(io::ErrorKind::NotFound)?;
        f.synced = f.now.clone();
        Ok(())
    }

    fn truncate(&mut self, file: &String, len: u64) -> io::Result<()> {
        let mut s = self.state();
        tick(&mut s)?;
        let f = s.files.get_mut(file).ok_or(io::ErrorKind::NotFound)?;
        f.now.truncate(len as usize);
        f.synced = f.now.clone();
        Ok(())
    }

    fn read(&self, file: &String, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let s = self.state();
        let f = s.files.get(file).ok_or(io::ErrorKind::NotFound)?;
        let from = f.now.get((offset as usize).min(f.now.len())..).unwrap_or_default();
        let n = from.len().min(buf.len());
        buf[..n].copy_from_slice(&from[..n]);
        Ok(n)
    }

    fn len(&self, file: &String) -> io::Result<u64> {
        Ok(self.state().files.get(file).ok_or(io::ErrorKind::NotFound)?.now.len() as u64)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.state().files.remove(name).map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let s = self.state();
        let used: u64 = s.files.values().map(|f| f.now.len() as u64).sum();
        Ok(s.capacity.saturating_sub(used))
    }
}

#[derive(Debug, Default)]
struct IndexState {
    now: BTreeMap<Vec<u8>, Vec<u8>>,
    flushed: BTreeMap<Vec<u8>, Vec<u8>>,
    fail: bool,
}

/// An index in memory; clones share it.
#[derive(Debug, Clone, Default)]
pub struct MemoryIndex(Arc<Mutex<IndexState>>);

impl MemoryIndex {
    fn state(&self) -> MutexGuard<'_, IndexState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets every operation fail, or none.
    pub fn fail(&self, yes: bool) {
        self.state().fail = yes;
    }

    /// Back to what was flushed.
    pub fn lose_power(&self) {
        let mut s = self.state();
        s.now = s.flushed.clone();
        s.fail = false;
    }

    /// Keys in use.
    pub fn keys(&self) -> usize {
        self.state().now.len()
    }
}

impl Index for MemoryIndex {
    /// Small, so that tests meet messages that are in the index already.
    const REBUILD_BATCH: usize = 3;

    fn apply(&mut self, changes: Vec<Change>) -> Result<(), IndexError> {
        let mut s = self.state();
        if s.fail {
            return Err(IndexError("injected failure".into()));
        }
        for (k, v) in changes {
            match v {
                Some(v) => s.now.insert(k, v),
                None => s.now.remove(&k),
            };
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), IndexError> {
        let mut s = self.state();
        if s.fail {
            return Err(IndexError("injected failure".into()));
        }
        s.flushed = s.now.clone();
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        let s = self.state();
        if s.fail { Err(IndexError("injected failure".into())) } else { Ok(s.now.get(key).cloned()) }
    }

    fn scan(&self, prefix: &[u8], each: &mut Each<'_>) -> Result<(), IndexError> {
        let s = self.state();
        s.now.range(prefix.to_vec()..).take_while(|(k, _)| k.starts_with(prefix)).try_for_each(|(k, v)| each(k, v))
    }

    fn set_aside(&mut self) -> Result<(), IndexError> {
        let mut s = self.state();
        *s = IndexState { fail: s.fail, ..Default::default() };
        Ok(())
    }

    fn begin(&mut self) -> Result<(), IndexError> {
        if self.state().fail { Err(IndexError("injected failure".into())) } else { Ok(()) }
    }
}

//! Disk and index in memory for tests and simulations, with a power switch: they fail at the n-th
//! operation or for a time, and a loss of power keeps what was synced, and of the rest what the
//! caller chooses.
//!
//! A kill of the process alone takes nothing from a [`MemoryDisk`]: what was written is the
//! system's. Of a [`MemoryIndex`] it may take what was not flushed, as a loss of power does.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::disk::{Disk, Timed, Times};
use crate::index::{Change, Each, Index, IndexError};

/// What a disk writes whole, or not at all.
const SECTOR: usize = 512;
/// Few: a page is copied whenever it is written to for the first time since a sync.
const PAGE_SECTORS: usize = 8;
const PAGE: usize = SECTOR * PAGE_SECTORS;

type Page = Box<[u8; PAGE]>;

/// What was written to a page since the last sync.
#[derive(Debug, Default)]
struct Unsynced {
    /// The page as it was synced; `None` for one of zeros.
    before: Option<Page>,
    /// A bit for each sector written.
    sectors: u8,
}

/// A file. Pages that were never written are not there, and read as zeros.
#[derive(Debug, Default)]
struct FileState {
    /// Changes of the disk before the last of this file.
    changed: u64,
    len: u64,
    pages: BTreeMap<u64, Page>,
    synced_len: u64,
    unsynced: BTreeMap<u64, Unsynced>,
}

impl FileState {
    /// Changes bytes of one page, which may be no more than it holds.
    fn change(&mut self, n: u64, from: usize, bytes: &[u8]) {
        let (first, last) = (from / SECTOR, (from + bytes.len() - 1) / SECTOR);
        let page = self.pages.get(&n);
        let u = self.unsynced.entry(n).or_insert_with(|| Unsynced { before: page.cloned(), sectors: 0 });
        u.sectors |= (first..=last).fold(0, |bits, s| bits | 1 << s);
        let page = self.pages.entry(n).or_insert_with(|| Box::new([0; PAGE]));
        page[from..from + bytes.len()].copy_from_slice(bytes);
    }

    fn write(&mut self, mut at: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let from = (at % PAGE as u64) as usize;
            let (now, rest) = bytes.split_at(bytes.len().min(PAGE - from));
            self.change(at / PAGE as u64, from, now);
            at += now.len() as u64;
            bytes = rest;
        }
        self.len = self.len.max(at);
    }

    fn read(&self, mut at: u64, buf: &mut [u8]) -> usize {
        let all = buf.len().min(self.len.saturating_sub(at) as usize);
        let mut left = &mut buf[..all];
        while !left.is_empty() {
            let from = (at % PAGE as u64) as usize;
            let n = left.len().min(PAGE - from);
            let (now, rest) = left.split_at_mut(n);
            match self.pages.get(&(at / PAGE as u64)) {
                Some(page) => now.copy_from_slice(&page[from..from + n]),
                None => now.fill(0),
            }
            at += n as u64;
            left = rest;
        }
        all
    }

    /// Cuts the file; not durable until [`FileState::sync`].
    fn cut(&mut self, len: u64) {
        self.len = self.len.min(len);
        let behind: Vec<u64> = self.pages.range(len / PAGE as u64..).map(|(n, _)| *n).collect();
        for n in behind {
            let from = len.saturating_sub(n * PAGE as u64).min(PAGE as u64) as usize;
            if from < PAGE {
                self.change(n, from, &[0; PAGE][from..]);
            }
        }
    }

    fn sync(&mut self) {
        self.unsynced.clear();
        self.synced_len = self.len;
        // What was cut off is nobody's any more.
        self.pages.split_off(&self.len.div_ceil(PAGE as u64));
    }

    /// Back to what was synced, with those changes that are to be kept.
    fn lose(&mut self, keep: &mut dyn FnMut(Lost) -> bool) {
        if self.len != self.synced_len && !keep(Lost::Length) {
            self.len = self.synced_len;
        }
        for (n, u) in std::mem::take(&mut self.unsynced) {
            let mut page = u.before.unwrap_or_else(|| Box::new([0; PAGE]));
            for s in (0..PAGE_SECTORS).filter(|s| u.sectors & 1 << s != 0) {
                if keep(Lost::Sector(n * PAGE_SECTORS as u64 + s as u64))
                    && let Some(new) = self.pages.get(&n)
                {
                    let bytes = s * SECTOR..(s + 1) * SECTOR;
                    page[bytes.clone()].copy_from_slice(&new[bytes]);
                }
            }
            self.pages.insert(n, page);
        }
        // Behind the end there is nothing, whatever came there.
        self.cut(self.len);
        self.sync();
    }
}

/// A change that was not synced when the power went: it may be lost, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// Bytes of this sector, of 512 each.
    Sector(u64),
    /// Another length of the file.
    Length,
    /// The removal of the file: it is there again. Those before are not lost where a later one is
    /// kept.
    Removal,
}

/// What a disk does not do for a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It has no room.
    Full,
    /// Writes fail, half done.
    Writes,
    /// Syncs fail, and what was written stays as it is: unknown.
    Syncs,
}

type NextTimes = Box<dyn FnMut() -> Times + Send>;

#[derive(Default)]
struct DiskState {
    /// By path.
    files: BTreeMap<String, FileState>,
    /// Files removed since their folder was synced, in order.
    removed: Vec<(String, FileState)>,
    used: u64,
    capacity: u64,
    /// Operations until writes and syncs fail; `None` for never.
    fail_in: Option<u32>,
    /// Until when.
    faults: Vec<(Fault, Instant)>,
    times: Option<NextTimes>,
    syncs: u64,
    /// Writes and new files so far.
    changes: u64,
}

impl DiskState {
    fn has(&self, fault: Fault) -> bool {
        self.faults.iter().any(|(f, until)| *f == fault && Instant::now() < *until)
    }

    /// Counts an operation, which may be one that fails.
    fn tick(&mut self, fault: Fault) -> io::Result<()> {
        if self.has(fault) {
            return Err(io::Error::other("injected failure"));
        }
        match &mut self.fail_in {
            Some(0) => Err(io::Error::other("injected failure")),
            Some(n) => {
                *n -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn free(&self) -> u64 {
        if self.has(Fault::Full) { 0 } else { self.capacity.saturating_sub(self.used) }
    }

    /// Lets a file grow to `end`, if there is room.
    fn grow(&mut self, path: &str, end: u64) -> io::Result<&mut FileState> {
        let free = self.free();
        let f = self.files.get_mut(path).ok_or(io::ErrorKind::NotFound)?;
        let more = end.saturating_sub(f.len);
        if more > free {
            return Err(io::ErrorKind::StorageFull.into());
        }
        f.len += more;
        self.used += more;
        Ok(f)
    }

    fn get(&self, path: &str) -> io::Result<&FileState> {
        self.files.get(path).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn count(&mut self) {
        self.used = self.files.values().map(|f| f.len).sum();
    }
}

/// A folder in memory; clones and the folders in it share one file system.
#[derive(Clone)]
pub struct MemoryDisk {
    state: Arc<Mutex<DiskState>>,
    /// What the paths of its files begin with.
    prefix: String,
}

impl std::fmt::Debug for MemoryDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryDisk").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl MemoryDisk {
    /// An empty folder on a file system of `capacity` bytes.
    pub fn new(capacity: u64) -> Self {
        let state = DiskState { capacity, ..Default::default() };
        MemoryDisk { state: Arc::new(Mutex::new(state)), prefix: String::new() }
    }

    fn state(&self) -> MutexGuard<'_, DiskState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Lets the n-th write or sync from now fail, and all after it.
    pub fn fail_in(&self, operations: Option<u32>) {
        self.state().fail_in = operations;
    }

    /// Lets the disk fail until then.
    pub fn fail_until(&self, fault: Fault, until: Instant) {
        let mut s = self.state();
        s.faults.retain(|(f, _)| *f != fault);
        s.faults.push((fault, until));
    }

    /// Sets the size of the file system.
    pub fn set_capacity(&self, bytes: u64) {
        self.state().capacity = bytes;
    }

    /// Says how long each group takes from now on.
    pub fn set_times(&self, next: impl FnMut() -> Times + Send + 'static) {
        self.state().times = Some(Box::new(next));
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.state().used
    }

    /// Syncs that succeeded.
    pub fn syncs(&self) -> u64 {
        self.state().syncs
    }

    /// Forgets what was not synced, but for the first `torn` bytes of each file's changes.
    pub fn lose_power(&self, torn: usize) {
        let mut s = self.state();
        (s.fail_in, s.faults) = (None, Vec::new());
        s.removed.clear();
        for f in s.files.values_mut() {
            let mut kept = Vec::new();
            let mut first = None;
            for (n, u) in &f.unsynced {
                let zeros = [0; PAGE];
                let (new, old) = (f.pages.get(n).map_or(&zeros, |p| &**p), u.before.as_ref().map_or(&zeros, |p| &**p));
                let begins = || new.iter().zip(old).position(|(a, b)| a != b).map(|i| n * PAGE as u64 + i as u64);
                let Some(from) = first.or_else(begins) else { continue };
                first = Some(from);
                let page_at = n * PAGE as u64;
                let (from, to) = (from.max(page_at), (from + torn as u64).min(page_at + PAGE as u64).min(f.len));
                if from < to {
                    kept.push((from, new[(from - page_at) as usize..(to - page_at) as usize].to_vec()));
                }
            }
            f.lose(&mut |_| false);
            kept.iter().for_each(|(at, bytes)| f.write(*at, bytes));
            f.sync();
        }
        s.count();
    }

    /// Forgets what was not synced, but for what `keep` wants to keep: it is asked of every change,
    /// in a fixed order, with the path of its file.
    pub fn lose_power_but(&self, keep: &mut dyn FnMut(&str, Lost) -> bool) {
        let mut s = self.state();
        (s.fail_in, s.faults) = (None, Vec::new());
        let removed = std::mem::take(&mut s.removed);
        // Folders keep their changes in order.
        let last_kept = removed.iter().rposition(|(path, _)| keep(path, Lost::Removal));
        let back = removed.into_iter().skip(last_kept.map_or(0, |i| i + 1));
        for (path, file) in back {
            s.files.entry(path).or_insert(file);
        }
        for (path, f) in &mut s.files {
            f.lose(&mut |lost| keep(path, lost));
        }
        s.count();
    }

    /// [`MemoryDisk::lose_power_but`], by chance.
    pub fn lose_power_by(&self, mut seed: u64) {
        self.lose_power_but(&mut |_, _| {
            // SplitMix64.
            seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let x = (seed ^ seed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
            (x ^ x >> 31) & 1 == 0
        });
    }

    /// Flips all bits of a byte of a file, as bad media would: what is synced is damaged, too.
    pub fn damage(&self, name: &str, offset: usize) {
        self.rot(name, offset, 0xFF);
    }

    /// Whether nothing of a stretch of a file would be lost with the power.
    pub fn is_synced(&self, name: &str, from: u64, to: u64) -> bool {
        let s = self.state();
        let Some(f) = s.files.get(&self.path(name)).filter(|f| to <= f.synced_len) else { return false };
        let sectors = from / SECTOR as u64..to.div_ceil(SECTOR as u64);
        f.unsynced.range(sectors.start / PAGE_SECTORS as u64..sectors.end.div_ceil(PAGE_SECTORS as u64)).all(
            |(n, u)| {
                let of_page = (0..PAGE_SECTORS as u64).filter(|s| u.sectors & 1 << s != 0);
                of_page.map(|s| n * PAGE_SECTORS as u64 + s).all(|s| !sectors.contains(&s))
            },
        )
    }

    /// Names and bytes of files that were removed, and that a loss of power may bring back.
    pub fn removed(&self) -> Vec<(String, Vec<u8>)> {
        let s = self.state();
        let of_folder = |(path, f): &(String, FileState)| {
            let name = path.strip_prefix(&self.prefix).filter(|name| !name.contains('/'))?;
            let mut bytes = vec![0; f.len as usize];
            f.read(0, &mut bytes);
            Some((name.to_owned(), bytes))
        };
        s.removed.iter().filter_map(of_folder).collect()
    }

    /// Flips some bits of a byte of a file, in memory and on disk.
    pub fn rot(&self, name: &str, offset: usize, bits: u8) {
        let path = self.path(name);
        let mut s = self.state();
        let Some(f) = s.files.get_mut(&path).filter(|f| (offset as u64) < f.len) else { return };
        let (n, at) = ((offset / PAGE) as u64, offset % PAGE);
        f.pages.entry(n).or_insert_with(|| Box::new([0; PAGE]))[at] ^= bits;
        if let Some(before) = f.unsynced.get_mut(&n).and_then(|u| u.before.as_mut()) {
            before[at] ^= bits;
        }
    }
}

impl Disk for MemoryDisk {
    /// Its path.
    type File = String;

    fn list(&self) -> io::Result<Vec<String>> {
        let s = self.state();
        let inside = s.files.range(self.prefix.clone()..).map_while(|(path, _)| path.strip_prefix(&self.prefix));
        Ok(inside.filter(|name| !name.contains('/')).map(str::to_owned).collect())
    }

    fn oldest_first(&self) -> io::Result<Vec<String>> {
        let mut names = self.list()?;
        let s = self.state();
        names.sort_by_key(|name| s.files.get(&self.path(name)).map_or(0, |f| f.changed));
        Ok(names)
    }

    fn create(&mut self, name: &str) -> io::Result<String> {
        let path = self.path(name);
        let mut s = self.state();
        s.tick(Fault::Writes)?;
        if s.files.contains_key(&path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        s.changes += 1;
        let changed = s.changes;
        s.files.insert(path.clone(), FileState { changed, ..FileState::default() });
        // Syncing the folder makes removals durable, too.
        let of_folder = |path: &str| path.strip_prefix(&self.prefix).is_some_and(|name| !name.contains('/'));
        s.removed.retain(|(path, _)| !of_folder(path));
        Ok(path)
    }

    fn open(&mut self, name: &str) -> io::Result<String> {
        let path = self.path(name);
        self.state().get(&path)?;
        Ok(path)
    }

    fn preallocate(&mut self, file: &String, _from: u64, end: u64) -> io::Result<()> {
        self.state().grow(file, end).map(|_| ())
    }

    fn write(&mut self, file: &String, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let mut s = self.state();
        let done = s.tick(Fault::Writes);
        let all: usize = parts.iter().map(|p| p.len()).sum();
        let mut left = if done.is_ok() { all } else { all / 2 };
        s.changes += 1;
        let changed = s.changes;
        let f = s.grow(file, offset + left as u64)?;
        f.changed = changed;
        let mut at = offset;
        for p in parts {
            let now = &p[..p.len().min(left)];
            f.write(at, now);
            at += now.len() as u64;
            left -= now.len();
        }
        done
    }

    fn sync(&mut self, file: &String) -> io::Result<()> {
        let mut s = self.state();
        s.tick(Fault::Syncs)?;
        s.files.get_mut(file).ok_or(io::ErrorKind::NotFound)?.sync();
        s.syncs += 1;
        Ok(())
    }

    fn truncate(&mut self, file: &String, len: u64) -> io::Result<()> {
        let mut s = self.state();
        let done = s.tick(Fault::Syncs);
        let unknown = s.has(Fault::Syncs);
        let f = s.files.get_mut(file).ok_or(io::ErrorKind::NotFound)?;
        let before = f.len;
        if done.is_ok() || unknown {
            f.cut(len);
        }
        let less = before - f.len;
        if done.is_ok() {
            f.sync();
        }
        s.used -= less;
        done
    }

    fn read(&self, file: &String, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        Ok(self.state().get(file)?.read(offset, buf))
    }

    fn len(&self, file: &String) -> io::Result<u64> {
        Ok(self.state().get(file)?.len)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let path = self.path(name);
        let mut s = self.state();
        let f = s.files.remove(&path).ok_or(io::ErrorKind::NotFound)?;
        s.used -= f.len;
        s.removed.push((path, f));
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.state().free())
    }

    fn folder(&self, name: &str) -> io::Result<MemoryDisk> {
        Ok(MemoryDisk { state: Arc::clone(&self.state), prefix: format!("{}{name}/", self.prefix) })
    }
}

impl Timed for MemoryDisk {
    fn times(&mut self) -> Times {
        self.state().times.as_mut().map_or_else(Times::default, |next| next())
    }
}

#[derive(Debug, Default)]
struct IndexState {
    now: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What keys that changed since the last flush had before it.
    before: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// Keys whose values fail their checksums.
    rotted: BTreeSet<Vec<u8>>,
    fail: bool,
    /// It was set aside, and no other was begun.
    is_aside: bool,
}

impl IndexState {
    /// Whether values can be read; as in sled, one that rotted fails its checksum.
    fn reads<'a>(&self, mut keys: impl Iterator<Item = &'a [u8]>) -> Result<(), IndexError> {
        if self.is_aside {
            return Err(IndexError("closed".into()));
        }
        if keys.any(|k| self.rotted.contains(k)) { Err(IndexError("a checksum is wrong".into())) } else { Ok(()) }
    }
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
        for (k, v) in std::mem::take(&mut s.before) {
            match v {
                Some(v) => s.now.insert(k, v),
                None => s.now.remove(&k),
            };
        }
        s.fail = false;
    }

    /// Lets the n-th value rot, counted around; false where there is none.
    pub fn rot(&self, n: u64) -> bool {
        let mut s = self.state();
        let Some(i) = n.checked_rem(s.now.len() as u64) else { return false };
        let key = s.now.keys().nth(i as usize).cloned();
        s.rotted.extend(key);
        true
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
        s.reads(changes.iter().map(|(k, _)| k.as_slice()))?;
        for (k, v) in changes {
            let before = match v {
                Some(v) => s.now.insert(k.clone(), v),
                None => s.now.remove(&k),
            };
            s.before.entry(k).or_insert(before);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), IndexError> {
        let mut s = self.state();
        if s.fail || s.is_aside {
            return Err(IndexError("injected failure".into()));
        }
        s.before.clear();
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        let s = self.state();
        if s.fail {
            return Err(IndexError("injected failure".into()));
        }
        s.reads(std::iter::once(key))?;
        Ok(s.now.get(key).cloned())
    }

    fn scan(&self, prefix: &[u8], each: &mut Each<'_>) -> Result<(), IndexError> {
        let s = self.state();
        s.reads(std::iter::empty())?;
        let all = s.now.range(prefix.to_vec()..).take_while(|(k, _)| k.starts_with(prefix));
        all.into_iter().try_for_each(|(k, v)| s.reads(std::iter::once(k.as_slice())).and_then(|()| each(k, v)))
    }

    fn set_aside(&mut self) -> Result<(), IndexError> {
        let mut s = self.state();
        *s = IndexState { fail: s.fail, is_aside: true, ..Default::default() };
        Ok(())
    }

    fn begin(&mut self) -> Result<(), IndexError> {
        let mut s = self.state();
        if s.fail {
            return Err(IndexError("injected failure".into()));
        }
        s.is_aside = false;
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn content(disk: &MemoryDisk, file: &String) -> Vec<u8> {
        let mut bytes = vec![1; disk.len(file).unwrap() as usize];
        assert_eq!(disk.read(file, 0, &mut bytes).unwrap(), bytes.len());
        bytes
    }

    /// A write, a cut or a sync.
    #[derive(Debug, Clone)]
    enum Op {
        Write(u64, Vec<u8>),
        Cut(u64),
        Sync,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0u64..70_000, 1u8.., 1usize..20_000).prop_map(|(at, byte, n)| Op::Write(at, vec![byte; n])),
            1 => (0u64..70_000).prop_map(Op::Cut),
            1 => Just(Op::Sync),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..Default::default() })]

        #[test]
        fn a_file_is_what_was_written_and_a_power_loss_parts_it_by_sectors(
            ops in proptest::collection::vec(op(), 1..20), seed in any::<u64>(),
        ) {
            let mut disk = MemoryDisk::new(1 << 20);
            let file = disk.create("file").unwrap();
            let (mut now, mut synced) = (Vec::new(), Vec::new());
            for op in ops {
                match op {
                    Op::Write(at, bytes) => {
                        disk.write(&file, at, &[IoSlice::new(&bytes)]).unwrap();
                        now.resize(now.len().max(at as usize + bytes.len()), 0);
                        now[at as usize..][..bytes.len()].copy_from_slice(&bytes);
                        continue;
                    }
                    Op::Cut(len) => {
                        disk.truncate(&file, len).unwrap();
                        now.truncate(len as usize);
                    }
                    Op::Sync => disk.sync(&file).unwrap(),
                }
                synced.clone_from(&now);
            }
            prop_assert_eq!(&content(&disk, &file), &now);
            prop_assert_eq!(disk.used(), now.len() as u64);
            disk.lose_power_by(seed);
            let left = content(&disk, &file);
            prop_assert!(left.len() == now.len() || left.len() == synced.len());
            prop_assert_eq!(disk.used(), left.len() as u64);
            for (n, sector) in left.chunks(SECTOR).enumerate() {
                let is = |of: &[u8]| (0..sector.len()).all(|i| of.get(n * SECTOR + i).copied().unwrap_or(0) == sector[i]);
                prop_assert!(is(&now) || is(&synced), "sector {} is neither the old nor the new one", n);
            }
            disk.lose_power_by(seed);
            prop_assert_eq!(content(&disk, &file), left, "nothing is left to lose");
        }
    }

    #[test]
    fn room_that_is_only_allocated_takes_no_memory() {
        let mut disk = MemoryDisk::new(1 << 30);
        let file = disk.create("file").unwrap();
        disk.preallocate(&file, 0, 64 << 20).unwrap();
        disk.write(&file, 5 << 20, &[IoSlice::new(b"bytes")]).unwrap();
        assert_eq!((disk.used(), disk.state().files["file"].pages.len()), (64 << 20, 1));
        assert!(disk.preallocate(&file, 0, 2 << 30).is_err());
        disk.set_capacity(64 << 20);
        assert!(disk.write(&file, 64 << 20, &[IoSlice::new(b"more")]).is_err());
        disk.write(&file, 9 << 20, &[IoSlice::new(b"within")]).unwrap();
    }

    /// A folder is synced when a file is made in it; before that what was removed may come back, and
    /// nothing that was removed later stays away then.
    #[test]
    fn removals_are_lost_from_the_last_on() {
        let mut disk = MemoryDisk::new(1 << 20);
        let mut folder = disk.folder("log").unwrap();
        ["a", "b", "c"].iter().for_each(|n| drop(folder.create(n).unwrap()));
        folder.remove("a").unwrap();
        disk.create("elsewhere").unwrap();
        folder.remove("b").unwrap();
        folder.remove("c").unwrap();
        disk.lose_power_but(&mut |path, _| path != "log/c");
        assert_eq!(folder.list().unwrap(), ["c"]);
        folder.remove("c").unwrap();
        folder.create("d").unwrap();
        disk.lose_power_but(&mut |_, _| false);
        assert_eq!(
            (folder.list().unwrap(), disk.list().unwrap()),
            (vec!["d".to_owned()], vec!["elsewhere".to_owned()])
        );
    }

    #[test]
    fn an_index_goes_back_to_what_was_flushed() {
        let mut index = MemoryIndex::default();
        let set = |k: &[u8], v: Option<&[u8]>| vec![(k.to_vec(), v.map(<[u8]>::to_vec))];
        index.apply(set(b"a", Some(b"1"))).unwrap();
        index.apply(set(b"b", Some(b"1"))).unwrap();
        index.flush().unwrap();
        for change in [set(b"a", Some(b"2")), set(b"a", Some(b"3")), set(b"b", None), set(b"c", Some(b"1"))] {
            index.apply(change).unwrap();
        }
        assert_eq!(index.get(b"a").unwrap().as_deref(), Some(&b"3"[..]));
        index.lose_power();
        let mut left = Vec::new();
        index
            .scan(b"", &mut |k, v| {
                left.push((k.to_vec(), v.to_vec()));
                Ok(())
            })
            .unwrap();
        assert_eq!(left, [(b"a".to_vec(), b"1".to_vec()), (b"b".to_vec(), b"1".to_vec())]);
    }
}

//! The lists as one process sees them: the mapped table, and the delta in memory.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::Entry;
use super::delta::{Change, Delta};
use super::table::Table;

/// Bytes of the delta that one look reads, so that no look holds a process up for long.
const READ_MAX: usize = 256 << 10;
/// Times that an append looks again because a new generation came.
const TURNS_MAX: usize = 16;

/// A process's view.
#[derive(Debug)]
pub struct Lists {
    folder: PathBuf,
    /// Generation in force when it was opened.
    pub generation: u64,
    /// Its entries, if there are any.
    pub table: Option<Table>,
    /// Changes since.
    pub delta: Delta,
    file: File,
    /// Bytes of the delta that were read.
    at: u64,
}

/// The file that names the generation in force.
pub(super) fn current_path(folder: &Path) -> PathBuf {
    folder.join("current")
}

pub(super) fn table_path(folder: &Path, generation: u64) -> PathBuf {
    folder.join(format!("table-{generation}"))
}

pub(super) fn delta_path(folder: &Path, generation: u64) -> PathBuf {
    folder.join(format!("delta-{generation}"))
}

/// Puts a generation in force.
pub(super) fn set_current(folder: &Path, generation: u64) -> io::Result<()> {
    let new = folder.join("current.new");
    let mut f = File::create(&new)?;
    writeln!(f, "{generation}")?;
    f.sync_all()?;
    std::fs::rename(new, current_path(folder))?;
    File::open(folder)?.sync_all()
}

fn current(folder: &Path) -> io::Result<u64> {
    let text = std::fs::read_to_string(current_path(folder))?;
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, format!("{}: a number expected", folder.display()));
    text.trim().parse().map_err(|_| wrong())
}

impl Lists {
    /// Makes the folder with empty lists where there are none, and removes what an interrupted
    /// compaction or import left. For the one process that compacts.
    ///
    /// # Errors
    /// By the system.
    pub fn prepare(folder: &Path) -> io::Result<()> {
        std::fs::create_dir_all(folder)?;
        let generation = match current(folder) {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                File::create(delta_path(folder, 1))?.sync_all()?;
                set_current(folder, 1)?;
                1
            }
            Err(e) => return Err(e),
        };
        for e in std::fs::read_dir(folder)?.flatten() {
            let name = e.file_name().to_string_lossy().into_owned();
            let kept = [current_path(folder), table_path(folder, generation), delta_path(folder, generation)];
            let ours = ["table-", "delta-", "import-", "current.new"].iter().any(|p| name.starts_with(p));
            if ours && !kept.contains(&e.path()) {
                let is_folder = e.file_type().is_ok_and(|t| t.is_dir());
                if is_folder { std::fs::remove_dir_all(e.path()) } else { std::fs::remove_file(e.path()) }?;
            }
        }
        Ok(())
    }

    /// Opens the generation in force and reads all of it.
    ///
    /// # Errors
    /// By the system, or when a file is damaged.
    pub fn open(folder: &Path) -> io::Result<Lists> {
        let mut last = None;
        for _ in 0..TURNS_MAX {
            // Between reading the number and opening its files another may come into force.
            match Self::open_generation(folder, current(folder)?) {
                Ok(mut lists) => {
                    while lists.read_more()? {}
                    return Ok(lists);
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => last = Some(e),
                Err(e) => return Err(e),
            }
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
    }

    fn open_generation(folder: &Path, generation: u64) -> io::Result<Lists> {
        let file = File::options().read(true).append(true).open(delta_path(folder, generation))?;
        let path = table_path(folder, generation);
        // The first generation has none.
        let table = if generation > 1 { Some(Table::open(&path)?) } else { None };
        Ok(Lists { folder: folder.to_owned(), generation, table, delta: Delta::default(), file, at: 0 })
    }

    /// Takes in what others changed; true when there is more to read.
    ///
    /// # Errors
    /// By the system; what is known stays.
    pub fn refresh(&mut self) -> io::Result<bool> {
        // A delta whose generation is over has no name any more; where a kill left it one, the next
        // to append, or the next start, finds out.
        if nix::sys::stat::fstat(self.file.as_fd())?.st_nlink == 0 {
            *self = Self::open(&self.folder)?;
            return Ok(false);
        }
        self.read_more()
    }

    /// Applies the next records; true when there may be more.
    fn read_more(&mut self) -> io::Result<bool> {
        let len = self.file.metadata()?.len();
        if len <= self.at {
            return Ok(false);
        }
        let mut bytes = vec![0; READ_MAX.min((len - self.at) as usize)];
        let n = self.file.read_at(&mut bytes, self.at)?;
        bytes.truncate(n);
        let mut taken = 0;
        while let Some((change, n)) = Change::decode(&bytes[taken..]) {
            taken += n;
            self.delta.apply(change);
        }
        self.at += taken as u64;
        Ok(taken > 0 && self.at < len)
    }

    /// The first of the lists that an address is in.
    pub fn find<'a>(&self, lists: impl IntoIterator<Item = &'a str>, address: &str, now_s: u32) -> Option<Entry> {
        lists.into_iter().find_map(|list| self.find_in(list, address).filter(|e| !e.is_over(now_s)))
    }

    fn find_in(&self, list: &str, address: &str) -> Option<Entry> {
        match self.delta.find(list, address) {
            Some(said) => said.cloned(),
            None => self.table.as_ref()?.find(list, address),
        }
    }

    /// Nobody is on any.
    pub fn is_empty(&self) -> bool {
        self.table.as_ref().is_none_or(Table::is_empty) && self.delta.is_empty()
    }

    /// Names of lists that have, or had, entries.
    pub fn names(&self) -> Vec<String> {
        let mut all: Vec<String> = self.delta.lists().map(str::to_owned).collect();
        all.extend(self.table.iter().flat_map(Table::names).map(str::to_owned));
        all.sort();
        all.dedup();
        all
    }

    /// Appends changes; they are in force here at once, in other processes when they look next.
    /// With `sync` they are on disk when this returns.
    ///
    /// # Errors
    /// By the system: none of them, or some from the first on, may be in force.
    pub fn append(&mut self, changes: &[Change], sync: bool) -> io::Result<()> {
        self.append_when(FlockArg::LockExclusive, changes, sync)
    }

    /// The same for those who must not wait.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] while another process appends, or as [`Lists::append`].
    pub fn try_append(&mut self, changes: &[Change]) -> io::Result<()> {
        self.append_when(FlockArg::LockExclusiveNonblock, changes, false)
    }

    fn append_when(&mut self, lock: FlockArg, changes: &[Change], sync: bool) -> io::Result<()> {
        let mut bytes = Vec::new();
        changes.iter().for_each(|c| c.encode(&mut bytes));
        self.locked(lock, |lists| {
            // What a kill left of an append would hide what comes behind it.
            if lists.file.metadata()?.len() > lists.at {
                lists.file.set_len(lists.at)?;
            }
            lists.file.write_all(&bytes)?;
            if sync {
                lists.file.sync_data()?;
            }
            while lists.read_more()? {}
            Ok(())
        })
    }

    /// Does something while nobody else appends, with everything read that others appended.
    pub(super) fn locked<T>(&mut self, how: FlockArg, f: impl FnOnce(&mut Lists) -> io::Result<T>) -> io::Result<T> {
        for _ in 0..TURNS_MAX {
            let lock = Flock::lock(self.file.try_clone()?, how);
            let lock = lock.map_err(|(_, e)| io::Error::from(e))?;
            // What is over may have kept its name, when whoever compacted was killed.
            if current(&self.folder)? != self.generation {
                drop(lock);
                *self = Self::open(&self.folder)?;
                continue;
            }
            while self.read_more()? {}
            let done = f(self);
            drop(lock);
            return done;
        }
        Err(io::Error::other("the suppression lists change too fast"))
    }

    /// Bytes of the delta that were read, of all that there are.
    pub(super) fn delta_bytes(&self, from: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; (self.at - from) as usize];
        self.file.read_exact_at(&mut bytes, from)?;
        Ok(bytes)
    }

    /// Bytes of the delta that were read.
    pub(super) fn position(&self) -> u64 {
        self.at
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

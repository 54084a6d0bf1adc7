//! Files as the segment log needs them, behind a trait so that tests can break them.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{FallocateFlags, fallocate};

/// One folder of files. Names have no path separators.
pub trait Disk: Send {
    /// An open file.
    type File: Send;

    /// Names of all files.
    ///
    /// # Errors
    /// As `readdir(3)`.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Names of all files, by the time of their last change.
    ///
    /// # Errors
    /// As `readdir(3)` and `fstat(2)`.
    fn oldest_first(&self) -> io::Result<Vec<String>>;
    /// Creates a file that must not exist, durably.
    ///
    /// # Errors
    /// As `open(2)`.
    fn create(&mut self, name: &str) -> io::Result<Self::File>;
    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// As `open(2)`.
    fn open(&mut self, name: &str) -> io::Result<Self::File>;
    /// Makes sure that bytes up to `end` can be written without running out of space.
    ///
    /// # Errors
    /// `ENOSPC` when they cannot.
    fn preallocate(&mut self, file: &Self::File, from: u64, end: u64) -> io::Result<()>;
    /// Writes all of `parts` from `offset`.
    ///
    /// # Errors
    /// As `pwritev(2)`; some of the bytes may have been written.
    fn write(&mut self, file: &Self::File, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()>;
    /// Makes what was written durable.
    ///
    /// # Errors
    /// As `fdatasync(2)`; what was written since the last success is then unknown.
    fn sync(&mut self, file: &Self::File) -> io::Result<()>;
    /// Cuts the file, durably.
    ///
    /// # Errors
    /// As `ftruncate(2)`.
    fn truncate(&mut self, file: &Self::File, len: u64) -> io::Result<()>;
    /// Reads into `buf` from `offset`; fewer bytes only at the end of the file.
    ///
    /// # Errors
    /// As `pread(2)`.
    fn read(&self, file: &Self::File, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
    /// Bytes of the file.
    ///
    /// # Errors
    /// As `fstat(2)`.
    fn len(&self, file: &Self::File) -> io::Result<u64>;
    /// Removes a file.
    ///
    /// # Errors
    /// As `unlink(2)`.
    fn remove(&mut self, name: &str) -> io::Result<()>;
    /// Free bytes of the file system.
    ///
    /// # Errors
    /// As `statvfs(3)`.
    fn free_bytes(&self) -> io::Result<u64>;
    /// A folder in this one, which is created if it is not there.
    ///
    /// # Errors
    /// As `mkdir(2)` and `open(2)`.
    fn folder(&self, name: &str) -> io::Result<Self>
    where
        Self: Sized;
}

/// How long a disk takes for one group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// Until the group is written. A kill meanwhile loses it.
    pub write: Duration,
    /// From there until it is synced. After a kill meanwhile it is in the log all the same, unless
    /// the power is lost, too: then any part of it is.
    pub sync: Duration,
    /// From there until those who wait for it hear of it. A kill meanwhile leaves a durable group
    /// that nobody was told of.
    pub answer: Duration,
}

/// A disk that says how long it takes.
pub trait Timed: Disk {
    /// How long it takes for the next group.
    fn times(&mut self) -> Times;
}

/// A folder of a real file system.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// The folder itself, to sync its entries.
    handle: File,
    sync: bool,
}

impl Folder {
    /// Opens `path`, creating it. Without `sync` nothing is ever flushed (`spool-sync none`).
    ///
    /// # Errors
    /// As `mkdir(2)` and `open(2)`.
    pub fn open(path: &Path, sync: bool) -> io::Result<Folder> {
        std::fs::create_dir_all(path)?;
        Ok(Folder { path: path.to_owned(), handle: File::open(path)?, sync })
    }
}

impl Disk for Folder {
    type File = File;

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for e in std::fs::read_dir(&self.path)? {
            if let Ok(name) = e?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn oldest_first(&self) -> io::Result<Vec<String>> {
        let mut all = Vec::new();
        for e in std::fs::read_dir(&self.path)? {
            let e = e?;
            if let Ok(name) = e.file_name().into_string() {
                all.push((e.metadata()?.modified()?, name));
            }
        }
        all.sort_unstable();
        Ok(all.into_iter().map(|(_, name)| name).collect())
    }

    fn create(&mut self, name: &str) -> io::Result<File> {
        let f = OpenOptions::new().read(true).write(true).create_new(true).open(self.path.join(name))?;
        if self.sync {
            self.handle.sync_all()?;
        }
        Ok(f)
    }

    fn open(&mut self, name: &str) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(self.path.join(name))
    }

    fn preallocate(&mut self, file: &File, from: u64, end: u64) -> io::Result<()> {
        match fallocate(file.as_fd(), FallocateFlags::empty(), from as i64, (end - from) as i64) {
            Ok(()) => Ok(()),
            // Not every file system can; space is then found out at the write.
            Err(nix::Error::EOPNOTSUPP) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn write(&mut self, file: &File, mut offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        const PARTS_MAX: usize = 1024;
        for some in parts.chunks(PARTS_MAX) {
            let mut some = some.to_vec();
            let mut left = &mut some[..];
            IoSlice::advance_slices(&mut left, 0);
            while !left.is_empty() {
                match nix::sys::uio::pwritev(file.as_fd(), left, offset as i64) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(n) => {
                        offset += n as u64;
                        IoSlice::advance_slices(&mut left, n);
                    }
                    Err(nix::Error::EINTR) => {}
                    Err(e) => return Err(e.into()),
                }
            }
        }
        Ok(())
    }

    fn sync(&mut self, file: &File) -> io::Result<()> {
        if self.sync { file.sync_data() } else { Ok(()) }
    }

    fn truncate(&mut self, file: &File, len: u64) -> io::Result<()> {
        file.set_len(len)?;
        if self.sync { file.sync_all() } else { Ok(()) }
    }

    fn read(&self, file: &File, mut offset: u64, mut buf: &mut [u8]) -> io::Result<usize> {
        let whole = buf.len();
        while !buf.is_empty() {
            match file.read_at(buf, offset) {
                Ok(0) => break,
                Ok(n) => {
                    offset += n as u64;
                    buf = &mut buf[n..];
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(whole - buf.len())
    }

    fn len(&self, file: &File) -> io::Result<u64> {
        Ok(file.metadata()?.len())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let s = nix::sys::statvfs::fstatvfs(&self.handle)?;
        Ok(s.blocks_available() * s.fragment_size())
    }

    fn folder(&self, name: &str) -> io::Result<Folder> {
        let path = self.path.join(name);
        let is_new = !path.exists();
        let folder = Folder::open(&path, self.sync)?;
        if is_new && self.sync {
            self.handle.sync_all()?;
        }
        Ok(folder)
    }
}

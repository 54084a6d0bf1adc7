//! The CSV files that all workers append to, projected from each shard's log.
//!
//! Rows of a group go out in one write under a file lock; a torn end that a killed process
//! or a full disk left is cut off first, so every line in the file is whole. After a crash,
//! the rows behind the last synced position come again; those that the file already has are
//! recognised by their text and left out, so a kill neither loses nor doubles a row.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nix::fcntl::{Flock, FlockArg};
use spool::Projection;

use super::record;

/// One `<acct-file>` as this worker writes it.
#[derive(Debug)]
pub struct Target {
    /// The file now written.
    pub path: PathBuf,
    /// Which rows it takes.
    pub kinds: Vec<u8>,
    /// ISO times.
    pub iso: bool,
    open: Option<File>,
    pending: Vec<u8>,
    /// Lines that the file holds behind the resumed position.
    known: HashMap<Vec<u8>, u32>,
    /// Where our last write ended.
    end: u64,
    written: bool,
}

impl Target {
    /// A target for the rows of `kinds`.
    pub fn new(path: PathBuf, kinds: Vec<u8>, iso: bool) -> Target {
        Target { path, kinds, iso, open: None, pending: Vec::new(), known: HashMap::new(), end: 0, written: false }
    }

    fn takes(&self, kind: u8) -> bool {
        self.kinds.contains(&kind)
    }

    fn mixed(&self) -> bool {
        self.takes(b'r') && self.kinds.len() > 1
    }

    /// The first line of a file that takes `kinds`.
    pub fn header(kinds: &[u8]) -> String {
        match (kinds.contains(&b'r'), kinds.len()) {
            (true, 1) => format!("{}\r\n", record::RECEIPT_ONLY_COLUMNS),
            (true, _) => format!("{},{}\r\n", record::COLUMNS, record::RECEIPT_COLUMNS),
            _ => format!("{}\r\n", record::COLUMNS),
        }
    }

    fn add(&mut self, from: usize) {
        if self.known.is_empty() {
            return;
        }
        let line = self.pending[from..].to_vec();
        if let Some(n) = self.known.get_mut(&line) {
            *n -= 1;
            if *n == 0 {
                self.known.remove(&line);
            }
            self.pending.truncate(from);
        }
    }

    fn write(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let file = match self.open.take() {
            Some(f) => f,
            None => OpenOptions::new().read(true).append(true).create(true).open(&self.path)?,
        };
        let mut locked = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| io::Error::from(e))?;
        let result = append_whole(&mut locked, &self.pending, &self.kinds);
        self.open = Some(locked.unlock().map_err(|(_, e)| io::Error::from(e))?);
        self.end = result?;
        self.pending.clear();
        self.written = true;
        Ok(())
    }

    fn read_known(&mut self, from: u64) -> io::Result<()> {
        self.known.clear();
        let f = match File::open(&self.path) {
            Ok(f) => f,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        let len = f.metadata()?.len();
        let mut bytes = vec![0; len.saturating_sub(from) as usize];
        f.read_exact_at(&mut bytes, from.min(len))?;
        for line in bytes.split_inclusive(|b| *b == b'\n').filter(|l| l.ends_with(b"\r\n")) {
            *self.known.entry(line.to_vec()).or_default() += 1;
        }
        Ok(())
    }
}

/// Appends whole lines to a locked file and answers its new end.
fn append_whole(file: &mut File, lines: &[u8], kinds: &[u8]) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut last = [0u8; 1];
    if end > 0 && file.read_at(&mut last, end - 1)? == 1 && last[0] != b'\n' {
        end = last_line_end(file, end)?;
        file.set_len(end)?;
    }
    if end == 0 {
        file.write_all(Target::header(kinds).as_bytes())?;
        end = file.metadata()?.len();
    }
    if let Err(e) = file.write_all(lines) {
        file.set_len(end)?;
        return Err(e);
    }
    Ok(end + lines.len() as u64)
}

fn last_line_end(file: &File, mut end: u64) -> io::Result<u64> {
    while end > 0 {
        let from = end.saturating_sub(64 << 10);
        let mut bytes = vec![0; (end - from) as usize];
        file.read_exact_at(&mut bytes, from)?;
        if let Some(i) = memchr::memrchr(b'\n', &bytes) {
            return Ok(from + i as u64 + 1);
        }
        end = from;
    }
    Ok(0)
}

/// All accounting files of a worker.
#[derive(Debug, Default)]
pub struct Files {
    targets: Vec<Target>,
    shard: u8,
}

impl Files {
    /// The rows of `shard` go to these.
    pub fn new(targets: Vec<Target>, shard: u8) -> Files {
        Files { targets, shard }
    }

    /// The same files, not yet opened.
    pub fn again(&self) -> Files {
        let each = |t: &Target| Target::new(t.path.clone(), t.kinds.clone(), t.iso);
        Files { targets: self.targets.iter().map(each).collect(), shard: self.shard }
    }
}

impl Projection for Files {
    fn message(&mut self, envelope: &[u8]) {
        if !self.targets.iter().any(|t| t.takes(b'r')) {
            return;
        }
        let mut aligned = rkyv::util::AlignedVec::<16>::with_capacity(envelope.len());
        aligned.extend_from_slice(envelope);
        let Ok(e) = rkyv::access::<ipc::message::ArchivedEnvelope, rkyv::rancor::Error>(&aligned) else { return };
        // A share kept for its owner is accounted there, and one that was moved between
        // shards later has been accounted before.
        let elsewhere = e.moved.is_some() || e.handoff.as_ref().is_some_and(|h| h.origin == self.shard);
        if elsewhere {
            return;
        }
        for t in self.targets.iter_mut().filter(|t| t.takes(b'r')) {
            let mut lines = Vec::new();
            record::write_receipts(e, t.kinds.len() == 1, t.iso, &mut lines);
            for line in lines.split_inclusive(|b| *b == b'\n') {
                let from = t.pending.len();
                t.pending.extend_from_slice(line);
                t.add(from);
            }
        }
    }

    fn row(&mut self, row: &[u8]) {
        let Some(kind) = row.first() else { return };
        for t in self.targets.iter_mut().filter(|t| t.takes(*kind)) {
            let from = t.pending.len();
            record::write_row(row, t.mixed(), t.iso, &mut t.pending);
            t.add(from);
        }
    }

    fn write(&mut self) -> io::Result<()> {
        self.targets.iter_mut().try_for_each(Target::write)
    }

    fn sync(&mut self) -> io::Result<Vec<u8>> {
        let mut state = Vec::new();
        for t in &mut self.targets {
            if std::mem::take(&mut t.written)
                && let Some(f) = &t.open
            {
                f.sync_data()?;
            }
            let path = t.path.to_string_lossy();
            state.extend_from_slice(&t.end.to_le_bytes());
            state.extend_from_slice(&(path.len() as u32).to_le_bytes());
            state.extend_from_slice(path.as_bytes());
            t.known.clear();
        }
        Ok(state)
    }

    fn resume(&mut self, mut state: &[u8]) {
        let mut ends = HashMap::new();
        while let Some((end, rest)) = state.split_first_chunk::<8>() {
            let Some((len, rest)) = rest.split_first_chunk::<4>() else { break };
            let Some((path, rest)) = rest.split_at_checked(u32::from_le_bytes(*len) as usize) else { break };
            ends.insert(path.to_vec(), u64::from_le_bytes(*end));
            state = rest;
        }
        for t in &mut self.targets {
            t.pending.clear();
            t.end = ends.get(t.path.to_string_lossy().as_bytes()).copied().unwrap_or(0);
            if let Err(e) = t.read_known(t.end) {
                tracing::warn!(path = %t.path.display(), error = %e, "accounting file cannot be read back; rows behind the last synced position may appear twice");
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn row(n: i64) -> Vec<u8> {
        record::Row { kind: b'd', logged_ms: n * 1000, ..Default::default() }.encode()
    }

    #[test]
    fn a_torn_end_is_cut_and_known_rows_are_not_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.csv");
        let open = || Files::new(vec![Target::new(path.clone(), vec![b'd'], false)], 0);
        let mut f = open();
        f.resume(&[]);
        f.row(&row(1));
        f.write().unwrap();
        let state = f.sync().unwrap();
        f.row(&row(2));
        f.row(&row(2));
        f.write().unwrap();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"d,3,half a li").unwrap();
        let mut f = open();
        f.resume(&state);
        for n in [2, 2, 3] {
            f.row(&row(n));
        }
        f.write().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let times: Vec<&str> = text.lines().skip(1).map(|l| l.split(',').nth(1).unwrap()).collect();
        assert_eq!(times, ["1", "2", "2", "3"]);
        assert!(text.starts_with("type,timeLogged"));
    }
}

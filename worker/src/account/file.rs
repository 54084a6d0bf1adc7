//! The CSV files that all workers append to, projected from each shard's log.
//!
//! Rows of a group go out in one write under a file lock; a torn end that a killed process
//! or a full disk left is cut off first, so every line in the file is whole. After a crash,
//! the rows behind the last synced position come again; those that the file already has are
//! recognised by their text and left out, so a kill neither loses nor doubles a row.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipc::dice::HashMap;
use nix::fcntl::{Flock, FlockArg};
use spool::Projection;

use ipc::control::AccountingFile;
use ipc::message::ArchivedEnvelope;
use ipc::snapshot::Accounting;

use super::columns::Columns;
use super::file_name;
use super::record::{self, View};
use crate::prepare::headers;
use crate::regular_file::{self, Links};

/// Removals in a row that rows are written anew after.
const REMOVALS_MAX: usize = 8;

/// One `<acct-file>` as this worker writes it.
#[derive(Debug)]
struct Target {
    /// The file now written.
    path: PathBuf,
    /// Path of the `<acct-file>`, which its files are numbered by.
    base: PathBuf,
    columns: Columns,
    world_readable: bool,
    open: Option<File>,
    pending: Vec<u8>,
    /// Lines that the file holds behind the resumed position.
    known: HashMap<Vec<u8>, u32>,
    /// Where our last write ended.
    end: u64,
    written: bool,
}

impl Target {
    fn of(f: &AccountingFile) -> Target {
        Target {
            path: PathBuf::from(&f.path),
            base: PathBuf::from(&f.of.path),
            columns: Columns::of(&f.of),
            world_readable: f.of.world_readable,
            open: None,
            pending: Vec::new(),
            known: HashMap::default(),
            end: 0,
            written: false,
        }
    }

    /// A file of the same `<acct-file>`.
    fn is_own(&self, p: &Path) -> bool {
        let name = p.file_name().unwrap_or_default().to_string_lossy();
        p == self.path || p.parent() == self.path.parent() && file_name::number_of(&name, &self.base).is_some()
    }

    /// Adds the row's line, unless it is one of those that a crash left in the file.
    fn add(&mut self, row: &View) {
        let from = self.pending.len();
        self.columns.write(row, &mut self.pending);
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
        for _ in 0..REMOVALS_MAX {
            let file = match self.open.take().filter(|f| is_at(f, &self.path)) {
                Some(f) => f,
                None => self.make()?,
            };
            let mut locked = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| io::Error::from(e))?;
            let result = append_whole(&mut locked, &self.pending, &self.columns);
            let file = locked.unlock().map_err(|(_, e)| io::Error::from(e))?;
            // Removed while rows were written to it, it takes them along: they go to another.
            let is_gone = file.metadata().is_ok_and(|m| m.nlink() == 0);
            self.open = Some(file);
            self.end = result?;
            if !is_gone {
                break;
            }
        }
        self.pending.clear();
        self.written = true;
        Ok(())
    }

    /// Opens the file, and makes it and its folder where somebody took them away.
    fn make(&self) -> io::Result<File> {
        let open = |create| {
            let mut options = OpenOptions::new();
            regular_file::open_as(&self.path, options.read(true).append(true).create(create), Links::Followed)
        };
        match open(false) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        if let Some(folder) = self.path.parent() {
            crate::folder::make(folder)?;
        }
        let file = open(true)?;
        file.set_permissions(std::fs::Permissions::from_mode(file_name::mode(self.world_readable)))?;
        Ok(file)
    }

    /// Notes the lines that a file holds from there on.
    fn read_known(&mut self, path: &Path, from: u64) -> io::Result<()> {
        let f = match regular_file::open(path) {
            Ok(f) => f,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        let len = f.metadata()?.len();
        // Shorter than it was, it is another: all its lines came after the position.
        let from = if from > len { 0 } else { from };
        let mut bytes = vec![0; (len - from) as usize];
        f.read_exact_at(&mut bytes, from)?;
        for line in bytes.split_inclusive(|b| *b == b'\n').filter(|l| l.ends_with(b"\n")) {
            *self.known.entry(line.to_vec()).or_default() += 1;
        }
        Ok(())
    }
}

fn put_end(state: &mut Vec<u8>, end: u64, path: &Path) {
    let path = path.as_os_str();
    state.extend_from_slice(&end.to_le_bytes());
    state.extend_from_slice(&(path.len() as u32).to_le_bytes());
    state.extend_from_slice(path.as_bytes());
}

/// What a state says: files, and where they ended when it was made.
fn ends(mut state: &[u8]) -> HashMap<PathBuf, u64> {
    let mut ends = HashMap::default();
    while let Some((end, rest)) = state.split_first_chunk::<8>() {
        let Some((len, rest)) = rest.split_first_chunk::<4>() else { break };
        let Some((path, rest)) = rest.split_at_checked(u32::from_le_bytes(*len) as usize) else { break };
        ends.insert(PathBuf::from(OsStr::from_bytes(path)), u64::from_le_bytes(*end));
        state = rest;
    }
    ends
}

/// Whether a path still leads to an open file: others may remove or rename it at any time.
fn is_at(file: &File, path: &Path) -> bool {
    let id = |m: std::fs::Metadata| (m.dev(), m.ino());
    matches!((file.metadata().map(id), path.metadata().map(id)), (Ok(open), Ok(named)) if open == named)
}

/// Appends whole lines to a locked file and answers its new end.
fn append_whole(file: &mut File, lines: &[u8], columns: &Columns) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut last = [0u8; 1];
    if end > 0 && file.read_at(&mut last, end - 1)? == 1 && last[0] != b'\n' {
        end = last_line_end(file, end)?;
        file.set_len(end)?;
    }
    if end == 0 {
        file.write_all(columns.header_line().as_bytes())?;
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

/// The folder of an `<acct-file>`.
pub fn folder(a: &Accounting) -> &Path {
    Path::new(&a.path).parent().unwrap_or(Path::new("."))
}

/// Less than `min-free-space` is free there. Where the system does not say, there is room.
pub fn lacks_room(a: &Accounting) -> bool {
    let room = || nix::sys::statvfs::statvfs(folder(a));
    a.min_free_space > 0 && room().is_ok_and(|v| v.blocks_available() * v.fragment_size() < a.min_free_space)
}

/// What outcomes have to say for the files in use; what none shows is not put into rows.
#[derive(Debug, Default)]
pub struct Shown {
    kinds: Vec<u8>,
    /// Our own fields of outcomes.
    pub own: bool,
    headers: Vec<(u8, String)>,
}

impl Shown {
    /// Some file takes records of this type.
    pub fn takes(&self, kind: u8) -> bool {
        self.kinds.contains(&kind)
    }

    /// Headers of a message, of those that some file shows in records of this type.
    pub fn headers_of(&self, kind: u8, content: &[u8]) -> Vec<(String, String)> {
        if !self.headers.iter().any(|(k, _)| *k == kind) {
            return Vec::new();
        }
        let (fields, _) = headers::parse(content);
        let wanted = self.headers.iter().filter(|(k, _)| *k == kind);
        let value = |name: &str| {
            let found = fields.iter().find(|f| f.name.eq_ignore_ascii_case(name))?;
            Some((name.to_owned(), headers::shown(found.value, HEADER_MAX)))
        };
        wanted.filter_map(|(_, name)| value(name)).collect()
    }
}

/// Bytes of a header that are accounted.
const HEADER_MAX: usize = 2000;

/// All accounting files of a worker.
#[derive(Debug, Default)]
pub struct RowFiles {
    targets: Vec<Target>,
    of: Vec<AccountingFile>,
    shard: u8,
    shown: Arc<Shown>,
}

impl RowFiles {
    /// The rows of `shard` go to these.
    pub fn new(of: &[AccountingFile], shard: u8) -> RowFiles {
        let targets: Vec<Target> = of.iter().map(Target::of).collect();
        let mut shown = Shown::default();
        for c in targets.iter().map(|t| &t.columns) {
            shown.own |= c.shows_own();
            for kind in c.kinds() {
                shown.kinds.push(kind);
                for name in c.headers(kind) {
                    if !shown.headers.iter().any(|(k, n)| *k == kind && n.eq_ignore_ascii_case(name)) {
                        shown.headers.push((kind, name.to_owned()));
                    }
                }
            }
        }
        RowFiles { targets, of: of.to_vec(), shard, shown: shown.into() }
    }

    /// The same files, not yet opened.
    #[must_use]
    pub fn again(&self) -> RowFiles {
        RowFiles::new(&self.of, self.shard)
    }

    /// What they show.
    pub fn shown(&self) -> Arc<Shown> {
        Arc::clone(&self.shown)
    }

    fn add(&mut self, row: &[u8]) {
        let Some(view) = View::of(row) else { return };
        for t in self.targets.iter_mut().filter(|t| t.columns.takes(view.kind)) {
            (0..view.times()).for_each(|_| t.add(&view));
        }
    }
}

impl Projection for RowFiles {
    fn message(&mut self, envelope: &[u8], content: &[u8]) {
        if !self.shown.takes(b'r') {
            return;
        }
        let mut aligned = rkyv::util::AlignedVec::<16>::with_capacity(envelope.len());
        aligned.extend_from_slice(envelope);
        let Ok(e) = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&aligned) else { return };
        // A share kept for its owner is accounted there, and one that was moved between
        // shards later has been accounted before.
        let elsewhere = e.moved.is_some() || e.handoff.as_ref().is_some_and(|h| h.origin == self.shard);
        if elsewhere {
            return;
        }
        let headers = self.shown.headers_of(b'r', content);
        for row in record::receipts(e, &headers, self.shard) {
            self.add(&row.encode());
        }
    }

    fn refuses_intake(&self) -> Option<String> {
        let full = self.of.iter().map(|f| &f.of).find(|a| lacks_room(a))?;
        Some(format!("less than min-free-space {} bytes are free for {}", full.min_free_space, full.path))
    }

    fn takes_messages(&self) -> bool {
        self.shown.takes(b'r')
    }

    fn handed_on(&self, mut state: Vec<u8>) -> Vec<u8> {
        let noted = ends(&state);
        for t in self.targets.iter().filter(|t| !noted.contains_key(&t.path)) {
            put_end(&mut state, 0, &t.path);
        }
        state
    }

    fn is_elsewhere(&self, state: &[u8]) -> bool {
        let before = ends(state);
        let folders = |p: &Path| before.keys().all(|b| b.parent() != p.parent());
        self.targets.iter().all(|t| folders(&t.path))
    }

    fn reads_headers(&self) -> bool {
        self.shown.headers.iter().any(|(kind, _)| *kind == b'r')
    }

    fn row(&mut self, row: &[u8]) {
        self.add(row);
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
            put_end(&mut state, t.end, &t.path);
            t.known.clear();
        }
        Ok(state)
    }

    fn begin(&mut self) {
        for t in &mut self.targets {
            t.end = t.path.metadata().map_or(0, |m| m.len());
        }
    }

    fn resume(&mut self, state: &[u8]) {
        let ends = ends(state);
        let of_none: Vec<(PathBuf, u64)> = ends
            .iter()
            .filter(|(p, _)| !self.targets.iter().any(|t| t.is_own(p)))
            .map(|(p, end)| (p.clone(), *end))
            .collect();
        for t in &mut self.targets {
            t.pending.clear();
            t.known.clear();
            // A kill between two files leaves rows in the one before.
            let mut read: Vec<(PathBuf, u64)> =
                ends.iter().filter(|(p, _)| t.is_own(p)).map(|(p, end)| (p.clone(), *end)).collect();
            if read.iter().all(|(_, end)| *end == 0) {
                // It may stand for a file that a configuration before wrote elsewhere.
                read.extend(of_none.iter().cloned());
            }
            t.end = ends.get(&t.path).copied().unwrap_or(0);
            if !ends.contains_key(&t.path) {
                read.push((t.path.clone(), 0));
            }
            for (path, from) in read {
                if let Err(e) = t.read_known(&path, from) {
                    tracing::warn!(path = %path.display(), error = %e, "accounting file cannot be read back; rows behind the last synced position may appear twice");
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ipc::snapshot::RecordFields;

    use super::*;

    fn row(n: i64) -> Vec<u8> {
        record::Row { kind: b'd', logged_ms: n * 1000, ..Default::default() }.encode()
    }

    #[test]
    fn a_torn_end_is_cut_and_known_rows_are_not_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.csv");
        let fields = RecordFields { record: "d".into(), fields: vec!["timeLogged".into()], headers: Vec::new() };
        let of = Accounting {
            path: path.display().to_string(),
            fields: vec![fields],
            privacy: "retain".into(),
            ..Default::default()
        };
        let file = AccountingFile { of, path: path.display().to_string() };
        let open = || RowFiles::new(std::slice::from_ref(&file), 0);
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

    #[test]
    fn rows_follow_the_name_of_a_file_that_is_removed_or_renamed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acct/a.csv");
        let fields = RecordFields { record: "d".into(), fields: vec!["timeLogged".into()], headers: Vec::new() };
        let of = Accounting {
            path: path.display().to_string(),
            fields: vec![fields],
            privacy: "retain".into(),
            world_readable: true,
            ..Default::default()
        };
        let mut f = RowFiles::new(&[AccountingFile { of, path: path.display().to_string() }], 0);
        let times = |p: &Path| {
            let text = std::fs::read_to_string(p).unwrap();
            let rows = text.lines().skip(1).map(|l| l.split(',').nth(1).unwrap().to_owned());
            rows.collect::<Vec<_>>()
        };
        let mut write = |n| {
            f.row(&row(n));
            f.write().unwrap();
            f.sync().unwrap()
        };
        write(1);
        std::fs::remove_dir_all(dir.path().join("acct")).unwrap();
        write(2);
        assert_eq!(times(&path), ["2"], "with a header and its folder");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o644);
        std::fs::rename(&path, dir.path().join("taken.csv")).unwrap();
        write(3);
        let state = write(4);
        assert_eq!(
            (times(&dir.path().join("taken.csv")), times(&path)),
            (vec!["2".into()], vec!["3".into(), "4".into()])
        );
        // Removed, and written by another process before this one was killed.
        std::fs::write(&path, "type,timeLogged\r\nd,5\r\n").unwrap();
        f.resume(&state);
        f.row(&row(5));
        f.write().unwrap();
        assert_eq!(times(&path), ["5"]);
    }
}

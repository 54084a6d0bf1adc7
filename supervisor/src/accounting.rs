//! Accounting files: their names, when they are finished, where they go. Workers write them;
//! the supervisor names them and moves them once every worker has switched.

mod ages;
mod pipe;

use std::cell::RefCell;
use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use ipc::control::AccountingFile;
use ipc::snapshot::Accounting;
use worker::account::columns::Columns;
use worker::account::file::{folder, lacks_room};
use worker::account::file_name::{all_in, mode, number_of, numbered};
use worker::regular_file::{self, Links};

use ages::Ages;
use pipe::Pipe;

/// A program's buffer is cut into files of this size, so that what was read makes room soon.
const BUFFER_FILE_MAX: u64 = 4 << 20;

/// The accounting files, and the programs that read some of them. What touches the disk is done
/// beside the loop, one piece after the other: a disk that does not answer delays only the commands
/// that need it.
#[derive(Debug)]
pub struct AccountingFiles {
    files: RefCell<FilesInUse>,
    at_work: tokio::sync::Mutex<()>,
    /// What workers came back with while work was under way.
    returned: RefCell<Vec<Vec<AccountingFile>>>,
    programs: RefCell<Programs>,
}

impl AccountingFiles {
    /// See [`FilesInUse::begin`].
    ///
    /// # Errors
    /// When a folder or a file cannot be made.
    pub fn begin(all: &[Accounting], data_dir: &Path) -> std::io::Result<AccountingFiles> {
        let files = RefCell::new(FilesInUse::begin(all, data_dir)?);
        let (at_work, returned, programs) = Default::default();
        Ok(AccountingFiles { files, at_work, returned, programs })
    }

    /// Number of the last switch, and the files that are written since.
    pub fn in_use(&self) -> (u64, Vec<AccountingFile>) {
        let files = self.files.borrow();
        (files.switch, files.current.clone())
    }

    /// Number of the last switch.
    pub fn switch(&self) -> u64 {
        self.files.borrow().switch
    }

    /// Does something with the files that may have to wait for the disk.
    pub async fn with<T: Send + 'static>(&self, work: impl FnOnce(&mut FilesInUse) -> T + Send + 'static) -> Option<T> {
        let _one_at_a_time = self.at_work.lock().await;
        let mut files = self.files.borrow().clone();
        let done = tokio::task::spawn_blocking(move || {
            let result = work(&mut files);
            (files, result)
        });
        match done.await {
            Ok((files, result)) => {
                *self.files.borrow_mut() = files;
                self.returned.take().into_iter().for_each(|theirs| self.files.borrow_mut().adopt(theirs));
                Some(result)
            }
            Err(e) => {
                tracing::error!(error = %e, "work on accounting files ended early");
                None
            }
        }
    }

    /// See [`FilesInUse::adopt`].
    pub fn adopt(&self, theirs: Vec<AccountingFile>) {
        if self.at_work.try_lock().is_err() {
            self.returned.borrow_mut().push(theirs.clone());
        }
        self.files.borrow_mut().adopt(theirs);
    }

    /// Starts the programs that the files in use name and that do not run, and ends those that are
    /// not named any more; with `retry` those that failed are started again now. They leave the workers their CPUs.
    pub fn feed_programs(&self, retry: bool, cpus_of_workers: &[usize]) {
        self.programs.borrow_mut().feed(&self.files.borrow().current, retry, cpus_of_workers);
    }

    /// Every worker writes to the files in use.
    pub fn all_switched(&self) {
        self.programs.borrow().switched(&self.files.borrow().current);
    }

    /// The programs, to be finished when the workers have ended.
    pub fn take_programs(&self) -> Vec<Pipe> {
        std::mem::take(&mut self.programs.borrow_mut().pipes)
    }
}

/// Programs that read rows.
#[derive(Debug, Default)]
struct Programs {
    pipes: Vec<Pipe>,
    /// Those that end, by the path of their buffers: no other reads one meanwhile.
    ending: Vec<(String, tokio::task::JoinHandle<()>)>,
}

impl Programs {
    fn feed(&mut self, current: &[AccountingFile], retry: bool, cpus_of_workers: &[usize]) {
        let wanted = |of: &Accounting| current.iter().any(|f| f.of == *of);
        let (kept, gone): (Vec<Pipe>, Vec<Pipe>) = self.pipes.drain(..).partition(|p| wanted(&p.of));
        for p in gone {
            self.ending.push((p.of.path.clone(), tokio::task::spawn_local(p.finish())));
        }
        self.ending.retain(|(_, task)| !task.is_finished());
        if retry {
            kept.iter().for_each(Pipe::retry_now);
        }
        self.pipes = kept;
        for a in current.iter().map(|f| &f.of).filter(|a| !a.program.is_empty()) {
            let known = self.pipes.iter().any(|p| p.of.path == a.path) || self.ending.iter().any(|(p, _)| *p == a.path);
            if !known {
                self.pipes.push(Pipe::start(a.clone(), cpus_of_workers.to_vec()));
            }
        }
    }

    fn switched(&self, current: &[AccountingFile]) {
        for p in &self.pipes {
            let written = current.iter().find(|f| f.of.path == p.of.path);
            written.into_iter().for_each(|f| p.switched_to(&f.path));
        }
    }
}

/// How long a file has been in use: what it had behind it when this server started, and since when
/// that was.
#[derive(Debug, Clone, Copy)]
struct InUse {
    before: Duration,
    since: Instant,
}

impl InUse {
    fn new() -> InUse {
        InUse { before: Duration::ZERO, since: Instant::now() }
    }

    /// A file that an earlier server began. File systems that do not say when let it begin anew.
    fn of(path: &str) -> InUse {
        let begun = std::fs::metadata(path).and_then(|m| m.created()).ok();
        let before = begun.and_then(|t| t.elapsed().ok()).unwrap_or_default();
        InUse { before, ..InUse::new() }
    }

    fn elapsed(&self) -> Duration {
        self.before + self.since.elapsed()
    }
}

/// The files in use.
#[derive(Debug, Clone, Default)]
pub struct FilesInUse {
    /// Named to workers.
    pub current: Vec<AccountingFile>,
    begun: Vec<InUse>,
    /// Their `<acct-file>` is not in the configuration any more.
    dropped: Vec<Accounting>,
    /// Number of the last switch.
    pub switch: u64,
    /// Finished files may lie where they were written.
    unsettled: bool,
    /// It was said which files cannot be made.
    told: bool,
    ages: Arc<Mutex<Ages>>,
}

fn today() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    worker::local_time(now.as_secs() as i64, "%Y-%m-%d")
}

/// The day that a file begun on this day is named by. Buffers of programs are read in the order of
/// their names, which must not go back with a clock.
fn named_by(a: &Accounting, today: String) -> String {
    let last = if a.program.is_empty() { None } else { all_in(folder(a), Path::new(&a.path)).pop() };
    let last = last.and_then(|p| Some(number_of(&file_name(&p), Path::new(&a.path))?.0.to_owned()));
    last.map_or(today.clone(), |last| last.max(today))
}

/// The name behind a path's last slash; what all_in answers has one.
fn file_name(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}

/// Folders that its files lie in.
fn folders(a: &Accounting) -> impl Iterator<Item = &Path> {
    [folder(a), Path::new(&a.move_to)].into_iter().filter(|f| !f.as_os_str().is_empty())
}

/// The highest number in use on a day, in the file's own folder and where files are moved.
fn last_number(a: &Accounting, date: &str) -> Option<u32> {
    let path = Path::new(&a.path);
    let all = folders(a).flat_map(|f| all_in(f, path));
    all.filter_map(|p| number_of(&file_name(&p), path).filter(|(d, _)| *d == date).map(|(_, n)| n)).max()
}

/// Whether rows with the columns that are asked for may follow in a file.
fn goes_on(path: &Path, a: &Accounting) -> bool {
    use std::io::Read;
    let header = Columns::of(a).header_line();
    let mut begins = Vec::new();
    let read = regular_file::open(path).and_then(|f| f.take(header.len().max(1) as u64).read_to_end(&mut begins));
    match (read.is_ok(), a.json) {
        (false, _) => false,
        (true, true) => matches!(begins.first(), None | Some(b'{')),
        // Workers begin an empty one with the header.
        (true, false) => begins.is_empty() || begins == header.as_bytes(),
    }
}

/// Why files of an `<acct-file>` cannot be made here, before anything depends on it. Nothing is made yet: the file that
/// names them may never be put in force.
pub fn unwritable(a: &Accounting) -> Option<String> {
    let tried = |f: &Path| {
        let is_there = f.ancestors().find(|a| std::fs::symlink_metadata(a).is_ok()).unwrap_or(f);
        if !std::fs::metadata(is_there)?.is_dir() {
            return Err(std::io::Error::from(std::io::ErrorKind::NotADirectory));
        }
        nix::unistd::access(is_there, nix::unistd::AccessFlags::W_OK).map_err(std::io::Error::from)
    };
    folders(a).find_map(|f| tried(f).err().map(|e| format!("<acct-file {}>: {}: {e}", a.path, f.display())))
}

/// On a full disk a server starts as on any other: workers make what is missing of a file when there
/// is room for its rows.
fn unless_full(made: std::io::Result<()>) -> std::io::Result<()> {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    made.or_else(|e| if matches!(e.kind(), StorageFull | QuotaExceeded) { Ok(()) } else { Err(e) })
}

/// Makes the next file of the day, with its header line.
fn begin_file(a: &Accounting) -> std::io::Result<AccountingFile> {
    let date = named_by(a, today());
    let n = last_number(a, &date).map_or(0, |n| n + 1);
    let path = numbered(Path::new(&a.path), &date, n);
    unless_full(make_file(&path, a))?;
    Ok(AccountingFile { of: a.clone(), path: path.display().to_string() })
}

fn make_file(path: &Path, a: &Accounting) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    let mut f = regular_file::open_as(path, File::options().append(true).create(true), Links::Followed)?;
    if f.metadata()?.len() > 0 {
        return Ok(());
    }
    f.set_permissions(std::fs::Permissions::from_mode(mode(a.world_readable)))?;
    f.write_all(Columns::of(a).header_line().as_bytes()).inspect_err(|_| drop(f.set_len(0)))
}

/// Today's last file if rows may follow in it, else a new one.
fn last_or_new(a: &Accounting) -> std::io::Result<AccountingFile> {
    folders(a).try_for_each(|f| unless_full(worker::folder::make(f)))?;
    let date = named_by(a, today());
    // Under a clock that was ahead there may be files of days to come.
    let all = all_in(folder(a), Path::new(&a.path));
    let fits = |p: &PathBuf| {
        number_of(&file_name(p), Path::new(&a.path)).is_some_and(|(d, n)| d == date && last_number(a, &date) == Some(n))
            && goes_on(p, a)
    };
    match all.into_iter().rev().find(fits) {
        Some(path) => Ok(AccountingFile { of: a.clone(), path: path.display().to_string() }),
        None => begin_file(a),
    }
}

impl FilesInUse {
    /// Goes on with today's last files, or begins the first ones.
    ///
    /// # Errors
    /// When a folder or a file cannot be made.
    pub fn begin(all: &[Accounting], data_dir: &Path) -> std::io::Result<FilesInUse> {
        let current = all.iter().map(last_or_new).collect::<std::io::Result<Vec<_>>>()?;
        let begun = current.iter().map(|f| InUse::of(&f.path)).collect();
        let ages = Arc::new(Mutex::new(Ages::read(data_dir)));
        Ok(FilesInUse { current, begun, unsettled: true, ages, ..Default::default() })
    }

    /// Goes on with what running workers write; [`FilesInUse::follow`] makes of it what the
    /// configuration asks for.
    pub fn adopt(&mut self, theirs: Vec<AccountingFile>) {
        if theirs == self.current {
            return;
        }
        // Workers that were between two files when their supervisor ended are all switched.
        self.switch += 1;
        for f in theirs {
            match self.current.iter_mut().find(|c| c.of.path == f.of.path) {
                Some(c) if c.path < f.path => *c = f,
                Some(_) => {}
                None => {
                    self.current.push(f);
                    self.begun.push(InUse::new());
                }
            }
        }
    }

    /// Makes the files those that the configuration asks for; true when workers have to switch. One
    /// that cannot be made is left out, told, and tried again.
    pub fn follow(&mut self, all: &[Accounting]) -> bool {
        if self.current.iter().map(|f| &f.of).eq(all) {
            self.told = false;
            return false;
        }
        let mut left_out = false;
        let mut next = Vec::with_capacity(all.len());
        let mut begun = Vec::with_capacity(all.len());
        for a in all {
            let known = self.current.iter().zip(&self.begun).find(|(f, _)| f.of.path == a.path);
            match known {
                Some((f, since)) if goes_on(Path::new(&f.path), a) => {
                    next.push(AccountingFile { of: a.clone(), path: f.path.clone() });
                    begun.push(*since);
                }
                _ => match last_or_new(a) {
                    Ok(f) => {
                        begun.push(InUse::of(&f.path));
                        next.push(f);
                    }
                    Err(error) => {
                        left_out = true;
                        if !self.told {
                            tracing::error!(path = a.path, %error, "an accounting file cannot be made; its rows are not written anywhere");
                        }
                    }
                },
            }
        }
        self.told = left_out;
        if self.current == next {
            return false;
        }
        let gone = self.current.drain(..).map(|f| f.of).filter(|a| !all.iter().any(|n| n.path == a.path));
        self.dropped.extend(gone);
        (self.current, self.begun) = (next, begun);
        self.switch += 1;
        self.unsettled = true;
        true
    }

    /// Begins new files where the old are due, or the one that is named, or all. Workers have to switch where
    /// that raises the number of the switch.
    ///
    /// # Errors
    /// When a new file cannot be made, and its old one stays in use; and when none has that name.
    pub fn rotate(&mut self, force: Option<&str>) -> Result<(), String> {
        let meant = |a: &Accounting| match force {
            None => false,
            Some("") => true,
            // As it is written in the configuration, whole or from some folder on.
            Some(name) if a.program.is_empty() => Path::new(&a.path).ends_with(name.trim_start_matches("./")),
            Some(name) => a.program == name.trim_start_matches('|').trim(),
        };
        if let Some(name) = force.filter(|name| !name.is_empty() && !self.current.iter().any(|f| meant(&f.of))) {
            let shown = |f: &AccountingFile| match f.of.program.as_str() {
                "" => f.of.path.clone(),
                program => format!("|{program}"),
            };
            let names: Vec<String> = self.current.iter().map(shown).collect();
            return Err(format!("no <acct-file> has the path {name:?}; there are {}", names.join(", ")));
        }
        let date = today();
        let (mut changed, mut failed) = (false, None);
        for (f, begun) in self.current.iter_mut().zip(&mut self.begun) {
            let a = &f.of;
            let path = PathBuf::from(&f.path);
            let size = std::fs::metadata(&path).map_or(0, |m| m.len());
            let day = number_of(&file_name(&path), Path::new(&a.path)).map(|(d, _)| d.to_owned());
            let yesterday = day.is_none_or(|d| d != named_by(a, date.clone()));
            let interval = Duration::from_millis(a.move_interval_ms);
            let due = a.move_interval_ms > 0 && !a.move_to.is_empty() && begun.elapsed() >= interval;
            let max = if a.program.is_empty() { a.max_size } else { BUFFER_FILE_MAX.min(a.max_size) };
            let wanted = meant(a) || due || size >= max || yesterday;
            let has_rows = || size > Columns::of(a).header_line().len() as u64;
            if !wanted || !has_rows() {
                continue;
            }
            match begin_file(&f.of) {
                Ok(next) => {
                    (*f, *begun) = (next, InUse::new());
                    changed = true;
                }
                Err(e) => failed = Some(format!("accounting: {e}")),
            }
        }
        self.switch += u64::from(changed);
        self.unsettled |= changed;
        failed.map_or(Ok(()), Err)
    }

    /// Every worker writes to the current files: moves what is finished, deletes what is old.
    pub fn settle(&mut self) {
        if std::mem::take(&mut self.unsettled) {
            self.settle_at(worker::clock::now_ms());
        }
    }

    fn settle_at(&mut self, now_ms: i64) {
        let dropped = std::mem::take(&mut self.dropped);
        let files = |a: &&Accounting| a.program.is_empty();
        let all: Vec<&Accounting> = self.current.iter().map(|f| &f.of).chain(&dropped).filter(files).collect();
        let deleting = all.iter().filter(|a| a.delete_after_ms < ipc::rules::NEVER_MS);
        let finished = deleting.flat_map(|a| folders(a).flat_map(|f| self.finished(f, a)).map(|p| written_at(&p, a)));
        let finished: HashSet<PathBuf> = finished.collect();
        self.ages().note(&finished, now_ms);
        for a in all {
            if !a.move_to.is_empty() {
                self.move_finished(a);
            } else {
                let old = self.finished(folder(a), a).into_iter().filter(|p| self.is_due(p, a, now_ms));
                old.for_each(|p| self.delete(&p, a, "an old accounting file cannot be deleted (delete-after)"));
            }
        }
    }

    fn ages(&self) -> MutexGuard<'_, Ages> {
        self.ages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn delete(&self, path: &Path, a: &Accounting, wrong: &str) {
        match std::fs::remove_file(path) {
            Ok(()) => self.ages().forget(&written_at(path, a)),
            Err(error) => tracing::warn!(path = %path.display(), %error, "{wrong}"),
        }
    }

    /// Older than `delete-after`.
    fn is_due(&self, path: &Path, a: &Accounting, now_ms: i64) -> bool {
        let after = Duration::from_millis(a.delete_after_ms);
        a.delete_after_ms < ipc::rules::NEVER_MS && self.ages().age(&written_at(path, a), now_ms) >= after
    }

    /// Files of `a` in a folder that no worker writes.
    fn finished(&self, folder: &Path, a: &Accounting) -> Vec<PathBuf> {
        let used = |p: &PathBuf| self.current.iter().any(|f| Path::new(&f.path) == p);
        all_in(folder, Path::new(&a.path)).into_iter().filter(|p| !used(p)).collect()
    }

    fn move_finished(&self, a: &Accounting) {
        if Path::new(&a.move_to) == folder(a) {
            return;
        }
        for from in self.finished(folder(a), a) {
            let to = Path::new(&a.move_to).join(from.file_name().unwrap_or_default());
            match std::fs::rename(&from, &to) {
                Ok(()) if a.count_moved_records => {
                    // Reading a large file must hold nothing up; what was counted is only told.
                    drop(std::thread::spawn(move || tell_count(&to)));
                }
                Ok(()) => {}
                Err(e) => {
                    tracing::error!(from = %from.display(), to = %to.display(), error = %e, "accounting file could not be moved (move-to)");
                }
            }
        }
    }

    /// Where the disk is nearly full: deletes files past `delete-after`, the oldest first, moved
    /// ones too, until there is room again.
    pub fn make_room(&self) {
        let now_ms = worker::clock::now_ms();
        for a in self.current.iter().map(|f| &f.of).filter(|a| a.program.is_empty()) {
            if a.delete_after_ms >= ipc::rules::NEVER_MS || !lacks_room(a) {
                continue;
            }
            let mut old: Vec<PathBuf> = folders(a).flat_map(|f| self.finished(f, a)).collect();
            old.sort_by_key(|p| std::cmp::Reverse(self.ages().age(&written_at(p, a), now_ms)));
            for p in old.iter().filter(|p| self.is_due(p, a, now_ms)) {
                if !lacks_room(a) {
                    break;
                }
                tracing::warn!(path = %p.display(), "an accounting file past delete-after makes room (min-free-space)");
                self.delete(p, a, "an accounting file cannot be deleted to make room");
            }
        }
    }
}

/// Where a file was written, wherever it was moved to.
fn written_at(path: &Path, a: &Accounting) -> PathBuf {
    folder(a).join(path.file_name().unwrap_or_default())
}

/// `count-moved-records`
fn tell_count(path: &Path) {
    use std::io::{BufRead, BufReader};
    let counted = File::open(path).and_then(|f| {
        let mut counts = std::collections::BTreeMap::<String, u64>::new();
        let mut lines = BufReader::new(f);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line)? > 0 {
            let text = line.strip_prefix(b"{\"type\":\"").unwrap_or(&line);
            let end = text.iter().position(|b| matches!(b, b',' | b'"' | b'\r')).unwrap_or(0);
            let kind = String::from_utf8_lossy(&text[..end.min(8)]).into_owned();
            // Lines of cells that hold line ends, and the header, are no records.
            if worker::account::field::kind_of(&kind).is_some() {
                *counts.entry(kind).or_default() += 1;
            }
            line.clear();
        }
        Ok(counts)
    });
    match counted {
        Ok(counts) => {
            let each: Vec<String> = counts.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
            let records: u64 = counts.values().sum();
            tracing::info!(path = %path.display(), records, types = each.join(", "), "accounting file moved");
        }
        Err(e) => {
            tracing::warn!(path = %path.display(), error = %e, "a moved accounting file cannot be read for counting")
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const DAY_MS: i64 = 86_400_000;

    fn account(dir: &Path) -> Accounting {
        let path = dir.join("acct/a.csv").display().to_string();
        let fields = ipc::snapshot::RecordFields { record: "d".into(), fields: Vec::new(), headers: Vec::new() };
        Accounting {
            path,
            fields: vec![fields],
            privacy: "retain".into(),
            max_size: 1 << 30,
            delete_after_ms: 8 * DAY_MS as u64,
            ..Default::default()
        }
    }

    /// What the file system says of a file that was written ten days ago, or under another clock.
    fn looks_old(path: &str) {
        let f = File::options().append(true).open(path).unwrap();
        std::io::Write::write_all(&mut &f, b"d,row\n").unwrap();
        f.set_modified(SystemTime::now() - Duration::from_secs(10 * 86_400)).unwrap();
    }

    #[test]
    fn a_clock_that_jumps_deletes_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let a = account(dir.path());
        let begin = || FilesInUse::begin(std::slice::from_ref(&a), dir.path()).unwrap();
        let mut files = begin();
        let first = files.current[0].path.clone();
        looks_old(&first);
        files.rotate(Some("")).unwrap();
        files.settle_at(0);
        assert!(Path::new(&first).exists(), "finished just now, whatever the clock says");
        files.settle_at(7 * DAY_MS);
        assert!(Path::new(&first).exists());
        // Over a restart its age goes on.
        let mut files = begin();
        assert_ne!(files.current[0].path, first);
        files.settle_at(9 * DAY_MS);
        assert!(!Path::new(&first).exists(), "so much time has passed");
        // A file of the same name is another.
        std::fs::write(&first, "d,row\n").unwrap();
        files.settle_at(9 * DAY_MS);
        assert!(Path::new(&first).exists());
    }

    #[test]
    fn a_file_keeps_its_age_where_it_is_moved_to() {
        let dir = tempfile::tempdir().unwrap();
        let a = Accounting { move_to: dir.path().join("done").display().to_string(), ..account(dir.path()) };
        let mut files = FilesInUse::begin(std::slice::from_ref(&a), dir.path()).unwrap();
        let first = files.current[0].path.clone();
        looks_old(&first);
        files.rotate(Some("")).unwrap();
        files.settle_at(0);
        let moved = dir.path().join("done").join(Path::new(&first).file_name().unwrap());
        assert!(moved.exists() && !files.is_due(&moved, &a, 7 * DAY_MS) && files.is_due(&moved, &a, 8 * DAY_MS));
    }

    #[test]
    fn buffers_of_programs_are_named_in_their_order_under_any_clock() {
        let dir = tempfile::tempdir().unwrap();
        let a = Accounting { program: "cat".into(), ..account(dir.path()) };
        std::fs::create_dir_all(folder(&a)).unwrap();
        let ahead = numbered(Path::new(&a.path), "2999-01-01", 3);
        std::fs::write(&ahead, "another header\n").unwrap();
        let mut files = FilesInUse::begin(std::slice::from_ref(&a), dir.path()).unwrap();
        let second = PathBuf::from(&files.current[0].path);
        std::fs::write(&second, "d,row\n".repeat(100)).unwrap();
        files.rotate(None).unwrap();
        assert_eq!(Path::new(&files.current[0].path), second, "no new file each second");
        files.rotate(Some("")).unwrap();
        let all = all_in(folder(&a), Path::new(&a.path));
        assert_eq!(all, [ahead, second, PathBuf::from(&files.current[0].path)]);
    }
}

//! Programs that read accounting rows (`<acct-file |command>`). Workers append to a buffer on disk
//! as they do to any accounting file; the supervisor starts the program and feeds it from there,
//! so that one that is slow or gone holds no delivery up and misses no row that the buffer holds.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipc::snapshot::Accounting;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;
use worker::account::columns::Columns;
use worker::account::file::folder;
use worker::account::file_name::all_in;
use worker::{programs, regular_file, rights};

use super::file_name;

/// Bytes that are written to a program at once; a row may be longer.
const CHUNK: usize = 64 << 10;
/// Time between two looks for new rows.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Time that a program has to end when its input does.
const END_WAIT: Duration = Duration::from_secs(5);
/// How far back the beginning of a row that was taken in part is looked for, bytes.
const ROW_MAX: u64 = 1 << 20;
/// Name of the file beside the buffer that says how far it was read.
const POSITION: &str = "position";
/// A number and the name of a file.
const POSITION_BYTES_MAX: u64 = 4096;

/// A program that is fed, by a thread of its own: its buffer is on a disk.
#[derive(Debug)]
pub struct Pipe {
    /// Its `<acct-file>`.
    pub of: Accounting,
    said: Arc<Said>,
    ended: oneshot::Receiver<()>,
}

/// What the thread is told.
#[derive(Debug, Default)]
struct Said {
    /// The file that all workers write to; whatever is older is finished.
    written: Mutex<PathBuf>,
    /// It is not to be started again.
    stopping: AtomicBool,
    stop: Notify,
    again: Notify,
    abandon: Notify,
}

impl Pipe {
    /// Starts feeding a program, on other CPUs than those of the workers where there are others.
    pub fn start(of: Accounting, cpus_of_workers: Vec<usize>) -> Pipe {
        let said = Arc::new(Said::default());
        let (ending, ended) = oneshot::channel();
        let (feeds, heard) = (of.clone(), Arc::clone(&said));
        let thread = std::thread::Builder::new().name("acct-program".into()).spawn(move || {
            rights::leave_cpus_of_workers(&cpus_of_workers);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let feed = |runtime: tokio::runtime::Runtime| {
                runtime.block_on(async {
                    let feeder = Feeder { at: Position::read(&feeds), of: feeds, began: 0, said: Arc::clone(&heard) };
                    tokio::select! {
                        () = feeder.run() => {}
                        () = heard.abandon.notified() => {}
                    }
                });
            };
            if let Err(error) = runtime.map(feed) {
                tracing::error!(%error, "a program that reads accounting rows cannot be fed");
            }
            // The task that waits for the end may have ended itself.
            let _ = ending.send(());
        });
        if let Err(error) = thread {
            tracing::error!(command = of.program, %error, "a program that reads accounting rows cannot be fed");
        }
        Pipe { of, said, ended }
    }

    /// Every worker writes to this file of the buffer now.
    pub fn switched_to(&self, path: &str) {
        *self.said.written.lock().unwrap_or_else(PoisonError::into_inner) = PathBuf::from(path);
    }

    /// A program that failed is started at once, whatever `retry-interval` says (a reload).
    pub fn retry_now(&self) {
        self.said.again.notify_waiters();
    }

    /// Passes on what the buffer holds, ends the program's input and waits for its end, for some
    /// seconds in all.
    pub async fn finish(mut self) {
        self.said.stopping.store(true, Relaxed);
        self.said.stop.notify_one();
        if timeout(END_WAIT * 3, &mut self.ended).await.is_err() {
            tracing::warn!(
                command = self.of.program,
                "a program that reads accounting rows did not end; the rest waits in its buffer"
            );
            self.said.abandon.notify_one();
            // It is killed, unless its thread waits for the disk.
            drop(timeout(Duration::from_secs(1), self.ended).await);
        }
    }
}

/// How far the buffer was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Position {
    /// Name of the file.
    file: String,
    /// Bytes of it.
    offset: u64,
}

impl Position {
    fn read(a: &Accounting) -> Position {
        let text = regular_file::read_to_string(&position_path(a), POSITION_BYTES_MAX).unwrap_or_else(|e| {
            if e.kind() != std::io::ErrorKind::NotFound {
                tracing::warn!(command = a.program, error = %e, "how far a program has read is not known: it is given its whole buffer");
            }
            String::new()
        });
        let found = text.trim().split_once(' ').and_then(|(offset, file)| Some((offset.parse().ok()?, file)));
        found.map_or_else(Position::default, |(offset, file)| Position { file: file.to_owned(), offset })
    }

    fn write(&self, a: &Accounting) -> std::io::Result<()> {
        let path = position_path(a);
        let new = path.with_extension("new");
        std::fs::write(&new, format!("{} {}\n", self.offset, self.file))?;
        std::fs::rename(new, path)
    }
}

fn position_path(a: &Accounting) -> PathBuf {
    folder(a).join(POSITION)
}

struct Feeder {
    of: Accounting,
    /// What was written into the pipe.
    at: Position,
    /// Offset in the file at which this life of the program began.
    began: u64,
    said: Arc<Said>,
}

/// A shell and all that it started; nothing of them outlives the command's turn.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0.and_then(|p| i32::try_from(p).ok()).filter(|p| *p > 1) {
            // All processes of the group may have ended already.
            let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// Why a program is not fed any more: what was being done, and the error.
type Fault = (&'static str, String);

impl Feeder {
    async fn run(mut self) {
        let said = Arc::clone(&self.said);
        loop {
            let Err((doing, error)) = self.feed(&said.stop).await else { return };
            tracing::error!("Error {doing} {:?}: {error}", self.of.program);
            self.bound();
            if self.said.stopping.load(Relaxed) {
                return;
            }
            let until = tokio::time::Instant::now() + Duration::from_millis(self.of.retry_interval_ms);
            loop {
                tokio::select! {
                    () = tokio::time::sleep_until(until) => break,
                    () = said.again.notified() => break,
                    () = said.stop.notified() => return,
                    () = tokio::time::sleep(Duration::from_secs(5)) => self.bound(),
                }
            }
        }
    }

    /// One life of the program.
    async fn feed(&mut self, stop: &Notify) -> Result<(), Fault> {
        let starting = |e: std::io::Error| ("starting", e.to_string());
        let mut child = Command::new("/bin/sh")
            .arg("-c")
            .arg(&self.of.program)
            .env_clear()
            .envs(programs::environment())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(starting)?;
        let _group = Group(child.id());
        let mut input = child.stdin.take().ok_or(("starting", "it has no input".to_owned()))?;
        tracing::info!(command = self.of.program, pid = child.id(), "a program reads accounting rows");
        let header = Columns::of(&self.of).header_line();
        put(&mut input, header.as_bytes(), &mut child, self.limit(), &mut 0).await?;
        self.began = self.at.offset;
        let fed = self.feed_rows(&mut input, &mut child, stop).await;
        let until = tokio::time::Instant::now() + END_WAIT;
        while fed.is_ok() && unread(&input) > 0 && tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // What it has not taken out of the pipe is given to its successor.
        self.at.offset = self.taken(&input);
        self.note().and(fed)?;
        drop(input);
        // It is told by the end of its input, and killed when it does not care.
        drop(timeout(END_WAIT, child.wait()).await);
        Ok(())
    }

    async fn feed_rows(&mut self, input: &mut ChildStdin, child: &mut Child, stop: &Notify) -> Result<(), Fault> {
        loop {
            let drained = unread(input) == 0;
            let rows = self.next_rows(drained).map_err(|e| ("reading the buffer of", e.to_string()))?;
            if !rows.is_empty() {
                let limit = self.limit();
                put(input, &rows, child, limit, &mut self.at.offset).await?;
                self.note()?;
                self.bound();
                continue;
            }
            if self.said.stopping.load(Relaxed) {
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = stop.notified() => {}
                status = child.wait() => return Err(("executing", ended(status))),
            }
        }
    }

    /// Where the first row begins that the program has not taken whole. Files are kept until all
    /// of them is taken, so it is in this one.
    fn taken(&self, input: &ChildStdin) -> u64 {
        let taken = self.at.offset.saturating_sub(unread(input)).max(self.began).min(self.at.offset);
        let path = folder(&self.of).join(&self.at.file);
        let begins = || -> std::io::Result<u64> {
            let mut f = regular_file::open(&path)?;
            let from = taken.saturating_sub(ROW_MAX);
            f.seek(SeekFrom::Start(from))?;
            let mut before = Vec::new();
            f.take(taken - from).read_to_end(&mut before)?;
            Ok(memchr::memrchr(b'\n', &before).map_or(from, |i| from + i as u64 + 1))
        };
        begins().unwrap_or(taken)
    }

    fn note(&self) -> Result<(), Fault> {
        self.at.write(&self.of).map_err(|e| ("noting the position of", e.to_string()))
    }

    fn written(&self) -> PathBuf {
        self.said.written.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn limit(&self) -> Duration {
        Duration::from_millis(self.of.write_timeout_ms)
    }

    /// Whole lines behind the position; empty when there are none. Files that were read to their
    /// end, by the program too, are deleted once no worker writes to them.
    fn next_rows(&mut self, drained: bool) -> std::io::Result<Vec<u8>> {
        loop {
            let files = all_in(folder(&self.of), Path::new(&self.of.path));
            let name = |p: &PathBuf| file_name(p).into_owned();
            let here = files.iter().position(|p| file_name(p) == self.at.file);
            let at = here.unwrap_or(0);
            let Some(path) = files.get(at) else { return Ok(Vec::new()) };
            if here.is_none() {
                self.at = Position { file: name(path), offset: 0 };
                self.began = 0;
            }
            self.at.offset = self.at.offset.min(std::fs::metadata(path)?.len());
            // Known before the file is read: what came in meanwhile was seen.
            let now = self.written();
            let written = files.iter().position(|p| *p == now);
            let rows = self.lines_of(path)?;
            if !rows.is_empty() || !drained || written.is_none_or(|w| w <= at) {
                return Ok(rows);
            }
            self.began = 0;
            std::fs::remove_file(path)?;
            self.at = Position { file: files.get(at + 1).map(name).unwrap_or_default(), offset: 0 };
        }
    }

    fn lines_of(&mut self, path: &Path) -> std::io::Result<Vec<u8>> {
        let mut f = regular_file::open(path)?;
        f.seek(SeekFrom::Start(self.at.offset))?;
        let mut bytes = vec![0; CHUNK];
        let mut len = f.read(&mut bytes)?;
        while len == bytes.len() && memchr::memchr(b'\n', &bytes).is_none() {
            bytes.resize(len * 2, 0);
            len += f.read(&mut bytes[len..])?;
        }
        bytes.truncate(len);
        bytes.truncate(memchr::memrchr(b'\n', &bytes).map_or(0, |i| i + 1));
        if self.at.offset == 0 && !self.of.json {
            // The header was given when the program started.
            let header = memchr::memchr(b'\n', &bytes).map_or(0, |i| i + 1);
            self.at.offset = header as u64;
            bytes.drain(..header);
        }
        Ok(bytes)
    }

    /// Drops the oldest rows when the buffer is larger than `max-size`.
    fn bound(&mut self) {
        let files = all_in(folder(&self.of), Path::new(&self.of.path));
        let size = |p: &PathBuf| p.metadata().map_or(0, |m| m.len());
        let mut total: u64 = files.iter().map(size).sum();
        let written = self.written();
        let finished = files.iter().take_while(|p| **p != written);
        for p in finished.take(files.len().saturating_sub(1)) {
            if total <= self.of.max_size {
                return;
            }
            let bytes = size(p);
            total -= bytes;
            if let Err(e) = std::fs::remove_file(p) {
                return tracing::error!(path = %p.display(), error = %e, "the buffer of a program cannot be bounded");
            }
            let command = &self.of.program;
            tracing::error!(
                command,
                bytes,
                "a program does not read: the oldest rows of its buffer were dropped (max-size)"
            );
        }
    }
}

/// Bytes in the pipe that the program has not read.
fn unread(input: &ChildStdin) -> u64 {
    rustix::io::ioctl_fionread(input).unwrap_or(0)
}

/// Writes all of `bytes`, and counts what the pipe has taken.
async fn put(
    input: &mut ChildStdin,
    mut bytes: &[u8],
    child: &mut Child,
    limit: Duration,
    taken: &mut u64,
) -> Result<(), Fault> {
    while !bytes.is_empty() {
        match timeout(limit, input.write(bytes)).await {
            Ok(Ok(n)) => {
                bytes = &bytes[n..];
                *taken += n as u64;
            }
            // What it ended with says more than the broken pipe.
            Ok(Err(e)) => {
                return match timeout(Duration::from_millis(100), child.wait()).await {
                    Ok(status) => Err(("executing", ended(status))),
                    Err(_) => Err(("writing to", e.to_string())),
                };
            }
            Err(_) => return Err(("writing to", format!("it did not read for {limit:?} (write-timeout)"))),
        }
    }
    Ok(())
}

fn ended(status: std::io::Result<ExitStatus>) -> String {
    status.map_or_else(|e| e.to_string(), |s| format!("it ended ({s})"))
}

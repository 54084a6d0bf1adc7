//! Programs that mail is delivered to (`type pipe`). A worker must not start any (see [`worker::sandbox`]), so it asks the
//! supervisor, which runs what the configuration says and nothing else.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ipc::control::{ProgramEnd, ToWorker};
use ipc::frame::FrameError;
use ipc::limits::PROGRAMS_PER_SHARD_MAX;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::timeout;
use worker::programs;

use crate::shards::orders::Orders;
use crate::state::Supervisor;

/// How long a program may take for one recipient.
const PROGRAM_WAIT: Duration = Duration::from_secs(600);
/// Time between two lines of the log about what a worker must not ask for, and bytes of a command in it.
const TELL_EVERY: Duration = Duration::from_secs(60);
const COMMAND_SHOWN: usize = 200;

/// The programs that one worker has asked for. They are killed when the worker's connection to the supervisor ends, for the worker would not hear how they
/// ended.
pub struct Programs {
    sup: Rc<Supervisor>,
    orders: Rc<Orders>,
    running: JoinSet<()>,
    /// When the log was told of what cannot be meant.
    told: Option<Instant>,
}

impl Programs {
    /// None yet; `orders` go to the worker.
    pub fn of(sup: &Rc<Supervisor>, orders: &Rc<Orders>) -> Programs {
        Programs { sup: Rc::clone(sup), orders: Rc::clone(orders), running: JoinSet::new(), told: None }
    }

    /// Runs a program that is given mail, and answers how it ended. The mail is the descriptor.
    ///
    /// # Errors
    /// The worker asks for more than any does that waits for answers.
    pub fn run(
        &mut self,
        number: u64,
        command: String,
        words: Vec<String>,
        fds: Vec<OwnedFd>,
    ) -> Result<(), FrameError> {
        while self.running.try_join_next().is_some() {}
        let (found, max) = (self.running.len() + self.orders.answers(), 2 * PROGRAMS_PER_SHARD_MAX);
        if found >= max {
            return Err(FrameError::TooLarge { what: "programs", found, max });
        }
        let orders = Rc::clone(&self.orders);
        let answer = move |how| {
            orders.give(ToWorker::ProgramEnded { number, how }, Vec::new());
        };
        if self.running.len() >= PROGRAMS_PER_SHARD_MAX {
            answer(ProgramEnd::Unknown(format!("{PROGRAMS_PER_SHARD_MAX} programs of the shard run already")));
            return Ok(());
        }
        if !self.sup.runs_command(&command) || !programs::are_of(&command, &words) {
            if self.told.is_none_or(|t| t.elapsed() >= TELL_EVERY) {
                let command = &*ipc::text::clean(&command, COMMAND_SHOWN);
                tracing::warn!(command, "a worker asks for a program that the configuration does not name");
                self.told = Some(Instant::now());
            }
            answer(ProgramEnd::Unknown("the configuration does not name this command any more".to_owned()));
            return Ok(());
        }
        let cpus = self.sup.cpus_of_workers();
        self.running.spawn_local(async move { answer(ended(&words, fds, cpus).await) });
        Ok(())
    }
}

async fn ended(words: &[String], fds: Vec<OwnedFd>, cpus_of_workers: Vec<usize>) -> ProgramEnd {
    let unknown = |what: &str, e: std::io::Error| ProgramEnd::Unknown(format!("{what}: {e}"));
    let Some((program, arguments)) = words.split_first() else { return ProgramEnd::Unknown("no command".to_owned()) };
    let Some(mut mail) = fds.into_iter().next().map(File::from) else {
        return ProgramEnd::Unknown("its mail did not come along".to_owned());
    };
    // It was written through the same descriptor.
    if let Err(e) = mail.seek(SeekFrom::Start(0)) {
        return unknown("its mail cannot be read", e);
    }
    let mut command = Command::new(program);
    command.args(arguments).stdin(mail).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = match programs::start(command, cpus_of_workers).await {
        Ok(child) => child,
        Err(e) => return unknown("it cannot be started", e),
    };
    match timeout(PROGRAM_WAIT, child.wait()).await {
        Ok(Ok(status)) => status.code().map_or(ProgramEnd::Signal, ProgramEnd::Code),
        Ok(Err(e)) => unknown("nobody knows how it ended", e),
        Err(_) => ProgramEnd::Unknown(format!("it took longer than {} s", PROGRAM_WAIT.as_secs())),
    }
}

//! The lives of the workers: start, pin, watch, restart with growing delay, adopt, stop.

pub mod control;
pub mod life;
pub mod orders;
pub mod process;

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ipc::control::{AccountingFile, Heartbeat, ToWorker};
use std::os::fd::OwnedFd;
use tokio::sync::Notify;

use orders::Orders;
use process::Process;

use crate::fleet::Known;

/// Folders of accounting files that are remembered behind a change of the configuration.
const FOLDERS_BEFORE_MAX: usize = 16;

/// Where a shard is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// No process yet, or waiting before the next.
    Waiting,
    /// A process that has not said that it serves.
    Starting,
    /// Serving.
    Serving,
    /// Told to stop.
    Draining,
}

/// Counters that outlive a worker's process: recipients, messages, bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    /// Accepted.
    pub received: [u64; 3],
    /// Delivered.
    pub delivered: [u64; 3],
    /// Recipients bounced.
    pub bounced: u64,
    /// Attempts deferred.
    pub deferred: u64,
    /// Sessions that ended for a reply about the order or the form of our commands.
    pub out_of_step: u64,
    /// Panics, each of which ended a task.
    pub panics: u64,
}

impl Totals {
    /// Adds what another process counted.
    pub fn add(&mut self, other: &Totals) {
        for (mine, more) in [(&mut self.received, &other.received), (&mut self.delivered, &other.delivered)] {
            mine.iter_mut().zip(more).for_each(|(a, b)| *a += b);
        }
        self.bounced += other.bounced;
        self.deferred += other.deferred;
        self.out_of_step += other.out_of_step;
        self.panics += other.panics;
    }
}

impl From<&Heartbeat> for Totals {
    fn from(h: &Heartbeat) -> Totals {
        Totals {
            received: h.received,
            delivered: h.delivered,
            bounced: h.bounced,
            deferred: h.deferred,
            out_of_step: h.out_of_step,
            panics: h.panics,
        }
    }
}

/// One shard as the supervisor sees it.
#[derive(Debug)]
pub struct Slot {
    /// Shard number.
    pub number: u8,
    /// CPU it is pinned to.
    pub cpu: usize,
    /// Where it is.
    pub state: State,
    /// Its process, while there is one.
    pub process: Option<Rc<Process>>,
    /// Starts but the first.
    pub restarts: u32,
    /// When the process was started.
    pub started: Instant,
    /// Since when it serves.
    pub serving_since: Option<Instant>,
    /// Delay before the next start.
    pub delay: Duration,
    /// Ends the delay before the next start, where one is going on.
    pub start_now: Rc<Notify>,
    /// To its control connection.
    pub orders: Option<Rc<Orders>>,
    /// Last heartbeat.
    pub heartbeat: Heartbeat,
    /// What the processes before this one had counted.
    pub past: Totals,
    /// When it came.
    pub beat_at: Instant,
    /// Looks since then, see [`process::watch`].
    pub silent_looks: u32,
    /// Accounting files that it writes.
    pub accounting: Vec<AccountingFile>,
    /// Folders of those before, the last [`FOLDERS_BEFORE_MAX`].
    pub accounting_before: Vec<String>,
    /// Last switch of accounting that it acknowledged.
    pub switched: u64,
    /// Generation of the snapshot it serves, and why it refused a newer one.
    pub generation: u64,
    /// Error of the last reload.
    pub reload_error: Option<String>,
    /// Not to be started again.
    pub retired: bool,
    /// One of the processes before this one has served.
    has_served: bool,
    /// Its mail is being handed over, so that it can be retired.
    pub leaving: bool,
    /// The last process said that everything is on disk and in accounting files, and what it left in the heartbeat before.
    pub left_complete: bool,
}

impl Slot {
    /// A shard that is not running.
    pub fn new(number: u8, cpu: usize) -> Slot {
        let now = Instant::now();
        Slot {
            number,
            cpu,
            state: State::Waiting,
            process: None,
            restarts: 0,
            started: now,
            serving_since: None,
            delay: Duration::ZERO,
            start_now: Rc::default(),
            orders: None,
            heartbeat: Heartbeat::default(),
            past: Totals::default(),
            beat_at: now,
            silent_looks: 0,
            accounting: Vec::new(),
            accounting_before: Vec::new(),
            switched: 0,
            generation: 0,
            reload_error: None,
            retired: false,
            has_served: false,
            leaving: false,
            left_complete: false,
        }
    }

    /// Counted by all its processes.
    pub fn totals(&self) -> Totals {
        let mut all = self.past;
        all.add(&Totals::from(&self.heartbeat));
        all
    }

    /// What scaling and retiring decide by.
    pub fn known(&self) -> Known<'_> {
        Known {
            number: self.number,
            runs: self.process.is_some(),
            serves: self.state == State::Serving,
            has_served: self.has_served || self.serving_since.is_some(),
            is_down: self.is_down(),
            heartbeat: &self.heartbeat,
            beat_at: self.beat_at,
            left_complete: self.left_complete,
        }
    }

    /// It does not run, and has failed before.
    pub fn is_down(&self) -> bool {
        self.state == State::Waiting && self.delay > Duration::from_secs(1)
    }

    /// How the state is named to operators.
    pub fn state_name(&self) -> &str {
        match self.state {
            State::Waiting => "waiting",
            State::Starting if self.heartbeat.state == "recovering" => "recovering",
            State::Starting => "starting",
            State::Serving => "serving",
            State::Draining => "draining",
        }
    }

    /// Sends an order; false where no worker is connected. A worker that begins to serve is told everything it missed but questions. Questions are
    /// refused too while too many wait.
    pub fn order(&self, what: ToWorker, fds: Vec<OwnedFd>) -> bool {
        self.orders.as_ref().is_some_and(|o| o.give(what, fds))
    }

    /// Rows go to these files from now on.
    pub fn writes_to(&mut self, files: &[AccountingFile]) {
        let folder = |f: &AccountingFile| Some(Path::new(&f.path).parent()?.display().to_string());
        let before: Vec<String> = self.accounting.iter().filter_map(folder).collect();
        self.accounting_before.retain(|f| !before.contains(f));
        self.accounting_before.extend(before);
        let surplus = self.accounting_before.len().saturating_sub(FOLDERS_BEFORE_MAX);
        self.accounting_before.drain(..surplus);
        self.accounting = files.to_vec();
    }

    /// Process id; 0 for none.
    pub fn pid(&self) -> i32 {
        self.process.as_ref().map_or(0, |p| p.pid)
    }

    /// Something was heard of it.
    pub fn is_alive(&mut self) {
        self.beat_at = Instant::now();
        self.silent_looks = 0;
    }

    /// Kills its process at once, if there is one.
    pub fn kill(&self) {
        if let Some(p) = &self.process {
            p.kill();
        }
    }

    /// The process ended: when to start the next one. At once after it has served, then 1 s
    /// doubling to 60 s; anew after 10 s of serving.
    pub fn ended(&mut self) -> Duration {
        self.has_served |= self.serving_since.is_some();
        let served = self.serving_since.take().map(|t| t.elapsed()).unwrap_or_default();
        if served >= Duration::from_secs(10) {
            self.delay = Duration::ZERO;
        }
        let wait = self.delay;
        self.delay = (self.delay * 2).clamp(Duration::from_secs(1), Duration::from_secs(60));
        self.past.add(&Totals::from(&self.heartbeat));
        self.heartbeat = Heartbeat { recipients: self.heartbeat.recipients, ..Heartbeat::default() };
        self.state = State::Waiting;
        self.process = None;
        self.orders = None;
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_at_once_then_after_growing_delays() {
        let mut s = Slot::new(0, 0);
        let waits: Vec<u64> = (0..9).map(|_| s.ended().as_secs()).collect();
        assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
        s.serving_since = Instant::now().checked_sub(Duration::from_secs(11));
        assert_eq!(s.ended().as_secs(), 0);
    }

    #[test]
    fn one_that_was_adopted_while_it_served_has_served() {
        let mut s = Slot::new(0, 0);
        assert!(!s.known().has_served);
        s.ended();
        assert!(!s.known().has_served, "it ended before");
        s.serving_since = Some(Instant::now());
        assert!(s.known().has_served);
        s.ended();
        assert!(s.known().has_served);
    }
}

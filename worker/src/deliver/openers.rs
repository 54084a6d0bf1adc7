//! Tasks that open connections: a few that take turns, and more while some take long (see [`super::slow`]).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use super::slow::Openings;
use crate::engine::line::OPENING_MAX;
use crate::schedule::PathId;

/// A task that has nothing to do ends.
const IDLE: Duration = Duration::from_secs(30);
/// A path that found too many connections that take long has its turn again after so long, milliseconds. Several such paths have their
/// turns this far apart.
const TURN_AGAIN_MS: i64 = 10_000;
const TURN_EVERY_MS: i64 = 5;

/// Tasks and their work.
#[derive(Debug, Default)]
pub struct Openers {
    wanted: RefCell<VecDeque<PathId>>,
    all: Cell<u32>,
    idle: Cell<u32>,
    /// Those that are counted among all and are to be begun.
    to_begin: Cell<u32>,
    begins: Notify,
    /// What they are at.
    pub openings: Rc<Openings>,
    wake: Notify,
    /// The last turn that was given, Unix milliseconds.
    turn_ms: Cell<i64>,
}

impl Openers {
    /// Connections that are being opened or are to be, without those that take long.
    pub fn busy(&self) -> u32 {
        self.all.get() - self.idle.get() - self.openings.count() + self.wanted.borrow().len() as u32
    }

    /// A connection of path `id` is to be opened.
    pub fn want(&self, id: PathId) {
        self.wanted.borrow_mut().push_back(id);
        self.help();
    }

    /// Wakes a task for what is wanted, if something is, or has one begun.
    pub fn help(&self) {
        if self.wanted.borrow().is_empty() {
            return;
        }
        // One that was woken or begun before and does nothing yet counts as idle.
        if self.idle.get() as usize >= self.wanted.borrow().len() {
            self.wake.notify_one();
        } else if self.all.get() - self.openings.count() < OPENING_MAX {
            self.all.set(self.all.get() + 1);
            self.idle.set(self.idle.get() + 1);
            self.to_begin.set(self.to_begin.get() + 1);
            self.begins.notify_one();
        }
    }

    /// Resolves when tasks are to be begun, with their number. Each takes its work from [`Openers::next`].
    pub async fn to_begin(&self) -> u32 {
        loop {
            match self.to_begin.take() {
                0 => self.begins.notified().await,
                n => return n,
            }
        }
    }

    /// The next connection to open; `None` when the task is to end.
    pub async fn next(&self) -> Option<PathId> {
        loop {
            // Those that took the place of slow ones end when these are back.
            let surplus = self.all.get() - self.openings.count() > OPENING_MAX;
            if !surplus && let Some(id) = self.wanted.borrow_mut().pop_front() {
                self.idle.set(self.idle.get() - 1);
                return Some(id);
            }
            if surplus || timeout(IDLE, self.wake.notified()).await.is_err() {
                self.idle.set(self.idle.get() - 1);
                self.all.set(self.all.get() - 1);
                return None;
            }
        }
    }

    /// The task that had the last of [`Openers::next`] has done it.
    pub fn done(&self) {
        self.idle.set(self.idle.get() + 1);
    }

    /// A task ended by a panic, with something in hand.
    pub fn panicked(&self) {
        self.all.set(self.all.get() - 1);
    }

    /// When a path that found too many connections that take long has its turn again, Unix milliseconds. Turns are spread out, so that
    /// looking costs the same however many such paths there are.
    pub fn turn_ms(&self, now_ms: i64) -> i64 {
        let at = (self.turn_ms.get() + TURN_EVERY_MS).max(now_ms + TURN_AGAIN_MS);
        self.turn_ms.set(at);
        at
    }
}

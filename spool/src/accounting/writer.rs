//! The writing side of accounting: it obeys the orders on the desk, and leaves its reports there.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::bell::Bell;
use crate::projection::{Item, Projection};

/// What comes within this time goes out in one write.
const GATHER: Duration = Duration::from_millis(5);
/// Room for accounting is looked for this often.
const ROOM_EVERY: Duration = Duration::from_millis(200);
pub(crate) enum Order {
    Items(Vec<Item>),
    /// Everything so far, which is everything up to this sequence.
    Sync(u64),
    /// Go on behind this state.
    Resume(Vec<u8>),
    /// Sync as above, then go on with another.
    Switch(u64, Box<dyn Projection>),
    /// Go on with another behind this state.
    Replace(Box<dyn Projection>, Vec<u8>),
}

pub(crate) enum Report {
    Synced(u64, Vec<u8>),
    Switched,
    Replaced,
    Failed(io::Error),
}

/// What the spool's thread and the writing one have in common.
pub(crate) struct Desk {
    state: Mutex<DeskState>,
    work: Bell,
    /// Bytes of items that are not written.
    pub waiting: AtomicUsize,
    /// The spool's thread found no room for more.
    pub wants_room: AtomicBool,
}

#[derive(Default)]
pub(crate) struct DeskState {
    orders: VecDeque<Order>,
    pub reports: Vec<Report>,
    /// The thread waits for orders, and is woken for them.
    idle: bool,
    /// It is in a call since then, which may touch the disk.
    pub busy_since: Option<Instant>,
    /// Why no new mail may come in.
    pub refusal: Option<String>,
    closed: bool,
}

impl Desk {
    pub fn lock(&self) -> MutexGuard<'_, DeskState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn give(&self, order: Order) {
        if let Order::Items(items) = &order {
            self.waiting.fetch_add(items.iter().map(Item::bytes).sum(), Relaxed);
        }
        let mut s = self.lock();
        s.orders.push_back(order);
        if s.idle {
            self.work.ring();
        }
    }

    pub fn close(&self) {
        self.lock().closed = true;
        self.work.ring();
    }
}

/// What the writer waits for.
#[derive(Clone, Copy)]
enum Waits {
    Nothing,
    /// Orders, until then.
    Orders(Instant),
    /// More of what has begun to come, until then.
    Company(Instant),
}

/// What the writer does next.
enum Turn {
    Obey(VecDeque<Order>),
    Wait(Instant),
    /// Nobody gives orders any more.
    End,
}

/// Who writes accounting files.
pub(crate) struct Writer {
    desk: Arc<Desk>,
    projection: Box<dyn Projection>,
    waits: Waits,
    /// Everything is left alone until it is told to go on.
    failed: bool,
    looked_for_room: Option<Instant>,
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl Writer {
    /// The life of the thread.
    pub fn run(mut self) {
        loop {
            let desk = Arc::clone(&self.desk);
            let mut state = desk.lock();
            let orders = loop {
                let now = Instant::now();
                match self.turn(&mut state, now) {
                    Turn::Obey(orders) => break orders,
                    Turn::Wait(until) => state = desk.work.wait(state, until - now),
                    Turn::End => return,
                }
            };
            drop(state);
            self.step(orders);
        }
    }

    /// The same as a task. `takes` says how long each step lasts: one that is dropped meanwhile
    /// has not happened.
    pub async fn attend(mut self, takes: Arc<dyn Fn() -> Duration + Send + Sync>) {
        loop {
            let desk = Arc::clone(&self.desk);
            let turn = self.turn(&mut desk.lock(), Instant::now());
            match turn {
                Turn::Obey(orders) => {
                    let time = takes();
                    if !time.is_zero() {
                        tokio::time::sleep(time).await;
                    }
                    self.step(orders);
                }
                Turn::Wait(until) => desk.work.rung(until).await,
                Turn::End => return,
            }
        }
    }

    /// Whether to obey what is there or to wait. What comes to a writer without orders waits a
    /// moment for more of it.
    fn turn(&mut self, s: &mut DeskState, now: Instant) -> Turn {
        if s.closed {
            return Turn::End;
        }
        let none = s.orders.is_empty();
        self.waits = match self.waits {
            Waits::Nothing if none => Waits::Orders(now + ROOM_EVERY),
            Waits::Orders(until) if none && now < until => Waits::Orders(until),
            Waits::Orders(_) if !none && s.orders.iter().all(|o| matches!(o, Order::Items(_))) => {
                Waits::Company(now + GATHER)
            }
            Waits::Company(until) if now < until => Waits::Company(until),
            _ => Waits::Nothing,
        };
        s.idle = matches!(self.waits, Waits::Orders(_));
        match self.waits {
            Waits::Orders(until) | Waits::Company(until) => Turn::Wait(until),
            Waits::Nothing => {
                s.busy_since = Some(now);
                Turn::Obey(std::mem::take(&mut s.orders))
            }
        }
    }

    fn step(&mut self, orders: VecDeque<Order>) {
        let (mut waited, mut reports) = (0, Vec::new());
        for o in orders {
            if let Order::Items(items) = &o {
                waited += items.iter().map(Item::bytes).sum::<usize>();
            }
            if let Err(e) = self.obey(o, &mut reports) {
                self.failed = true;
                reports.push(Report::Failed(e));
            }
        }
        if !self.failed
            && let Err(e) = self.projection.write()
        {
            self.failed = true;
            reports.push(Report::Failed(e));
        }
        self.desk.waiting.fetch_sub(waited, Relaxed);
        let tell = !reports.is_empty() || self.desk.wants_room.swap(false, Relaxed);
        let look = self.looked_for_room.is_none_or(|t| t.elapsed() >= ROOM_EVERY);
        let refusal = look.then(|| self.projection.refuses_intake());
        let mut s = self.desk.lock();
        s.reports.append(&mut reports);
        s.busy_since = None;
        if let Some(refusal) = refusal {
            s.refusal = refusal;
            self.looked_for_room = Some(Instant::now());
        }
        drop(s);
        if tell {
            (self.wake)();
        }
    }

    fn obey(&mut self, order: Order, reports: &mut Vec<Report>) -> io::Result<()> {
        match order {
            Order::Resume(state) => {
                self.projection.resume(&state);
                self.failed = false;
            }
            Order::Replace(next, state) => {
                let state = self.projection.handed_on(state);
                self.projection = next;
                self.projection.resume(&state);
                self.failed = false;
                reports.push(Report::Replaced);
            }
            _ if self.failed => {}
            Order::Items(items) => items.iter().for_each(|i| i.pass_to(&mut *self.projection)),
            Order::Sync(sequence) => reports.push(self.synced(sequence)?),
            Order::Switch(sequence, next) => {
                self.synced(sequence)?;
                self.projection = next;
                self.projection.begin();
                // What was synced is behind; rows may be in the next from now on.
                reports.push(Report::Synced(sequence, self.projection.sync()?));
                reports.push(Report::Switched);
            }
        }
        Ok(())
    }

    fn synced(&mut self, sequence: u64) -> io::Result<Report> {
        self.projection.write()?;
        Ok(Report::Synced(sequence, self.projection.sync()?))
    }
}

pub(crate) fn start(
    projection: Box<dyn Projection>,
    runner: &Runner,
    wake: &Arc<dyn Fn() + Send + Sync>,
) -> io::Result<Arc<Desk>> {
    let desk = Arc::new(Desk {
        state: Mutex::default(),
        work: runner.bell(),
        waiting: AtomicUsize::new(0),
        wants_room: AtomicBool::new(false),
    });
    runner.start(Writer {
        desk: Arc::clone(&desk),
        projection,
        waits: Waits::Nothing,
        failed: false,
        looked_for_room: None,
        wake: Arc::clone(wake),
    })?;
    Ok(desk)
}

/// Who does the work of a spool.
pub(crate) enum Runner {
    /// Threads, started when they are needed.
    Threads,
    /// A task, which takes up the writers that it finds here.
    Task(Arc<Mutex<Vec<Writer>>>),
}

impl Runner {
    /// A bell that wakes this one.
    pub fn bell(&self) -> Bell {
        match self {
            Runner::Threads => Bell::for_thread(),
            Runner::Task(_) => Bell::for_task(),
        }
    }

    /// Lets a writer of accounting files run.
    ///
    /// # Errors
    /// When no thread can be started.
    fn start(&self, writer: Writer) -> io::Result<()> {
        match self {
            // Not waited for at the end: it may hang with its disk.
            Runner::Threads => {
                drop(std::thread::Builder::new().name("accounting".into()).spawn(move || writer.run())?);
            }
            Runner::Task(writers) => writers.lock().unwrap_or_else(PoisonError::into_inner).push(writer),
        }
        Ok(())
    }
}

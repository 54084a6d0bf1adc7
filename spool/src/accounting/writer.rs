//! The writer of accounting files. It has a thread of its own, or a task in simulations. The spool's thread puts orders
//! on a desk that both share; the writer obeys them and puts its reports there.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::bell::Bell;
use crate::projection::{Item, Projection};

/// What comes within this time goes out in one write.
const GATHER: Duration = Duration::from_millis(20);
/// Room for accounting is looked for this often.
const ROOM_EVERY: Duration = Duration::from_millis(200);

/// What the spool's thread tells the writer.
pub(crate) enum Order {
    /// Write these.
    Items(Vec<Item>),
    /// Write and sync everything so far, which is everything up to this sequence.
    Sync(u64),
    /// What follows begins behind this state of the files; also ends the pause after a failure.
    Resume(Vec<u8>),
    /// Sync as above, then go on with other files.
    Switch(u64, Box<dyn Projection>),
    /// Go on with other files, behind this state, without completing those before.
    Replace(Box<dyn Projection>, Vec<u8>),
}

/// What the writer tells the spool's thread.
pub(crate) enum Report {
    /// Everything up to this sequence is durable in the files, whose state is this now.
    Synced(u64, Vec<u8>),
    /// [`Order::Switch`] was obeyed.
    Switched,
    /// [`Order::Replace`] was obeyed.
    Replaced,
    /// Files cannot be written; the writer does nothing until [`Order::Resume`] or [`Order::Replace`].
    Failed(io::Error),
}

/// What the spool's thread and the writer share.
pub(crate) struct Desk {
    state: Mutex<DeskState>,
    work: Bell,
    /// Bytes of items that were given and are not written yet.
    pub waiting: AtomicUsize,
    /// The spool's thread has more items than it may give, and is to be woken when there is room.
    pub wants_room: AtomicBool,
}

/// The part of the desk behind its lock.
#[derive(Default)]
pub(crate) struct DeskState {
    orders: VecDeque<Order>,
    /// Reports that the spool's thread has not taken yet.
    pub reports: Vec<Report>,
    /// The writer waits for orders, and has to be woken for them.
    idle: bool,
    /// Since when the writer is in one step, which may wait for the disk; `None` between steps.
    pub busy_since: Option<Instant>,
    /// Why no new mail may come in: its rows would find no room in the files.
    pub refusal: Option<String>,
    closed: bool,
}

impl Desk {
    /// The part behind the lock.
    pub fn lock(&self) -> MutexGuard<'_, DeskState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an order on the desk.
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

    /// Ends the writer. Orders that it has not begun are left undone.
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
enum Step {
    Obey(VecDeque<Order>),
    Wait(Instant),
    /// Nobody gives orders any more.
    End,
}

/// Writes accounting files.
pub(crate) struct Writer {
    desk: Arc<Desk>,
    projection: Box<dyn Projection>,
    waits: Waits,
    /// The files could not be written; nothing is done until an order says to go on.
    failed: bool,
    looked_for_room: Option<Instant>,
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl Writer {
    /// Obeys orders until the desk is closed: the whole life of the writer's thread.
    pub fn run(mut self) {
        loop {
            let desk = Arc::clone(&self.desk);
            let mut state = desk.lock();
            let orders = loop {
                let now = Instant::now();
                match self.turn(&mut state, now) {
                    Step::Obey(orders) => break orders,
                    Step::Wait(until) => state = desk.work.wait(state, until - now),
                    Step::End => return,
                }
            };
            drop(state);
            self.step(orders);
        }
    }

    /// The same as a task in simulated time. `takes` says how long each step lasts. A step happens at the end of its time, so
    /// dropping the task meanwhile is as if the step had not begun.
    pub async fn attend(mut self, takes: Arc<dyn Fn() -> Duration + Send + Sync>) {
        loop {
            let desk = Arc::clone(&self.desk);
            let turn = self.turn(&mut desk.lock(), Instant::now());
            match turn {
                Step::Obey(orders) => {
                    let time = takes();
                    if !time.is_zero() {
                        tokio::time::sleep(time).await;
                    }
                    self.step(orders);
                }
                Step::Wait(until) => desk.work.rung(until).await,
                Step::End => return,
            }
        }
    }

    /// Whether to obey what is there or to wait. What comes to a writer without orders waits a
    /// moment for more of it.
    fn turn(&mut self, s: &mut DeskState, now: Instant) -> Step {
        if s.closed {
            return Step::End;
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
            Waits::Orders(until) | Waits::Company(until) => Step::Wait(until),
            Waits::Nothing => {
                s.busy_since = Some(now);
                Step::Obey(std::mem::take(&mut s.orders))
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

/// Starts a writer; answers the desk that it shares. `wake` is called when the writer has left something there.
///
/// # Errors
/// When no thread can be started.
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

/// Whether threads or one task do the work of a spool.
pub(crate) enum Runner {
    /// A thread for the spool, and one for each writer of accounting files.
    Threads,
    /// One task ([`crate::Driver`]), which also runs the writers that it finds in this list.
    Task(Arc<Mutex<Vec<Writer>>>),
}

impl Runner {
    /// A bell that wakes the thread or the task.
    pub fn bell(&self) -> Bell {
        match self {
            Runner::Threads => Bell::for_thread(),
            Runner::Task(_) => Bell::for_task(),
        }
    }

    /// Starts a thread for a writer, or puts the writer in the task's list.
    ///
    /// # Errors
    /// When no thread can be started.
    fn start(&self, writer: Writer) -> io::Result<()> {
        match self {
            // Nobody waits for the end of this thread, for it may hang with its disk.
            Runner::Threads => {
                drop(std::thread::Builder::new().name("accounting".into()).spawn(move || writer.run())?);
            }
            Runner::Task(writers) => writers.lock().unwrap_or_else(PoisonError::into_inner).push(writer),
        }
        Ok(())
    }
}

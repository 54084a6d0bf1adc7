//! A spool without threads, for simulations: the [`Driver`] is a task that does what the spool's threads do. The simulation
//! runs it, in tokio's time, which may be paused.
//!
//! A disk that is simulated takes no time by itself, so it is asked how long each group is to take
//! ([`Timed`]), and the driver sleeps so long while requests gather. Dropping the driver is a kill:
//! what it was about to do does not happen.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use crate::SpoolError;
use crate::accounting::Stop;
use crate::accounting::writer::{Runner, Writer};
use crate::disk::{Disk, Timed};
use crate::group_commit::{Batch, Options, Running};
use crate::inbox::Working;
use crate::index::Index;
use crate::projection::Projection;
use crate::store::{Recovered, Values};

/// How long each step of accounting takes.
type StepTime = Arc<dyn Fn() -> Duration + Send + Sync>;

type Each = Box<dyn FnMut(Recovered) + Send>;

/// Does the work of a spool that was opened with [`crate::Spool::without_thread`].
pub struct Driver<D: Disk, I: Index> {
    folder: D,
    index: I,
    options: Options,
    projection: Box<dyn Projection>,
    each: Each,
    ready: oneshot::Sender<Result<Values, SpoolError>>,
    working: Working,
    writers: Arc<Mutex<Vec<Writer>>>,
    accounting_takes: StepTime,
}

impl<D: Disk, I: Index> std::fmt::Debug for Driver<D, I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("options", &self.options).finish_non_exhaustive()
    }
}

impl<D: Disk, I: Index> Driver<D, I> {
    pub(crate) fn new(
        folder: D,
        index: I,
        options: Options,
        projection: Box<dyn Projection>,
        each: Each,
        ready: oneshot::Sender<Result<Values, SpoolError>>,
        working: Working,
    ) -> Self {
        let (writers, accounting_takes) = (Arc::default(), Arc::new(|| Duration::ZERO));
        Driver { folder, index, options, projection, each, ready, working, writers, accounting_takes }
    }

    /// Says how long each step of accounting takes: what was passed to the files since the last.
    #[must_use]
    pub fn with_accounting_time(self, takes: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Driver { accounting_takes: Arc::new(takes), ..self }
    }
}

impl<D: Timed, I: Index> Driver<D, I> {
    /// Opens the spool and does its work until it is stopped in order. Resolves then; dropped
    /// before, the spool is as after a kill.
    pub async fn run(self) {
        let (writers, takes) = (Arc::clone(&self.writers), Arc::clone(&self.accounting_takes));
        let mut spool = pin!(self.work());
        let mut accounting: Vec<Pin<Box<dyn Future<Output = ()> + Send>>> = Vec::new();
        std::future::poll_fn(|cx| {
            let over = spool.as_mut().poll(cx);
            let new = std::mem::take(&mut *writers.lock().unwrap_or_else(PoisonError::into_inner));
            accounting.extend(new.into_iter().map(|w| Box::pin(w.attend(Arc::clone(&takes))) as _));
            accounting.retain_mut(|w| w.as_mut().poll(cx).is_pending());
            over
        })
        .await;
    }

    /// What the spool's thread does.
    async fn work(self) {
        let Driver { folder, index, options, projection, mut each, ready, working, writers, .. } = self;
        let shared = Arc::clone(&working.0);
        let runner = Runner::Task(writers);
        let mut running =
            match Running::open(folder, || index, options, projection, &mut *each, Arc::clone(&shared), runner) {
                Ok(running) => running,
                Err(e) => return drop(ready.send(Err(e))),
            };
        drop(each);
        // The caller that opened the spool may have gone. What the spool is given is done all the same.
        let _ = ready.send(Ok(running.values()));
        loop {
            let pause = running.pause(Instant::now());
            // Other tasks run between two steps.
            tokio::task::yield_now().await;
            loop {
                let now = Instant::now();
                let left = pause.left(&shared.lock(), now);
                if left.is_zero() {
                    break;
                }
                shared.bell.rung(now + left).await;
            }
            let work = running.take();
            commit(&mut running, work.batch).await;
            running.look_after(work.queries);
            if work.stop {
                break;
            }
        }
        let mut stop = Stop::begin();
        while let Some(pause) = running.finish_accounting(&mut stop) {
            tokio::task::yield_now().await;
            pass(pause).await;
        }
        let mut last = running.last(stop);
        while !last.is_empty() {
            commit(&mut running, last).await;
            last = running.since_last();
        }
        running.close();
    }
}

/// Writes a group, in the time that the disk takes for it.
async fn commit<D: Timed, I: Index>(running: &mut Running<D, I>, batch: Batch) {
    if batch.is_empty() {
        return;
    }
    let messages = batch.messages();
    let times = running.disk().times();
    pass(times.write).await;
    if let Some((batch, written)) = running.write(batch) {
        pass(times.sync).await;
        let results = running.sync(&batch, written);
        pass(times.answer).await;
        running.conclude(batch, results);
    }
    running.answered(messages);
}

async fn pass(time: Duration) {
    if !time.is_zero() {
        sleep(time).await;
    }
}

//! Changes the number of workers: starts those that are new, and ends those that own nothing any more, as [`crate::scaling`] and
//! [`crate::retiring`] decide.

use std::rc::Rc;
use std::time::{Duration, Instant};

use ipc::control::{Rows, RowsOf};
use ipc::limits::SHARDS_MAX;
use tokio::task::spawn_local;
use worker::rights::{cpu_of, cpus_to_pin};

use crate::retiring::{self, Retiring, Waits};
use crate::scaling::{Scaling, Step, Trouble};
use crate::shards::{Slot, State, life};
use crate::state::Supervisor;

/// How long one step is waited for, before it is said that it is still under way.
const STEP_WAIT: Duration = Duration::from_secs(3600);
/// Pause before new workers that could not be told something are told again.
const TOLD_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Shards from `workers` up, whose spools are left from an earlier run with more workers, hand over their mail and end, once all serve.
pub(super) async fn retire_left_over(sup: Rc<Supervisor>, workers: u8) {
    sup.until(Duration::from_secs(86_400), Supervisor::all_serve).await;
    if let Err(e) = sup.retire_above(workers).await {
        tracing::warn!("{e}");
    }
}

impl Supervisor {
    /// A worker came back whose number is above those wanted: it hands its mail over and ends.
    pub fn take_surplus(self: &Rc<Self>, number: u8, cpu: usize) {
        self.slots.borrow_mut().push(Slot::new(number, cpu));
        self.tell_map();
        spawn_local(life::keep(Rc::clone(self), number));
        let workers = self.map.borrow().shards.len() as u8;
        spawn_local(retire_left_over(Rc::clone(self), workers));
    }

    /// Changes the number of workers.
    ///
    /// # Errors
    /// A sentence when the number is out of range, or mail does not move in time.
    pub async fn scale(self: &Rc<Self>, workers: u32, wait: bool) -> Result<String, String> {
        let in_range = u8::try_from(workers).ok().filter(|n| (1..=SHARDS_MAX).contains(&usize::from(*n)));
        let Some(workers) = in_range else {
            return Err(format!("expected a number of workers from 1 to {SHARDS_MAX}, found {workers}"));
        };
        let Ok(one_at_a_time) = self.scaling.try_lock() else { return Err(Trouble::Busy.to_string()) };
        let mut scaling = Scaling::to(workers, Instant::now());
        loop {
            let mut step = Step::Wait;
            let decides = |s: &Self| {
                step = s.seen(|seen| scaling.step(Instant::now(), seen));
                step != Step::Wait
            };
            self.until(STEP_WAIT, decides).await;
            match step {
                Step::Wait => {}
                Step::IsSo => return Ok(format!("{workers} workers")),
                Step::Start(new) => self.start(&new),
                Step::Tell(new) => match self.tell_switches(&new).await {
                    true => scaling.are_told(),
                    false => tokio::time::sleep(TOLD_AGAIN_AFTER).await,
                },
                Step::Publish => break,
                Step::GiveUp(trouble) => {
                    let started = scaling.started().to_vec();
                    spawn_local(Rc::clone(self).end_all(started));
                    return Err(trouble.to_string());
                }
            }
        }
        let spread = self.map.borrow().spread.clone();
        self.publish_map(workers, spread);
        drop(one_at_a_time);
        let sup = Rc::clone(self);
        let retire = spawn_local(async move { sup.retire_above(workers).await });
        if !wait {
            return Ok(format!("scaling to {workers} workers"));
        }
        // A shard that is to leave is waited for, and one that may have something open there; but not by an operator where one of
        // them does not run.
        let is_any_down = |s: &Self| s.slots.borrow().iter().any(Slot::is_down);
        self.until(STEP_WAIT, |s| retire.is_finished() || is_any_down(s)).await;
        if retire.is_finished() {
            retire.await.map_err(|e| format!("shards could not be retired: {e}"))??;
        }
        if !self.until(Duration::from_secs(600), |s| s.seen(|seen| seen.is_settled())).await {
            return Err("some destinations still have connections at their owner before; see the log".into());
        }
        let slots = self.slots.borrow();
        let down: Vec<String> = slots.iter().filter(|s| s.is_down()).map(|s| s.number.to_string()).collect();
        Ok(match down.is_empty() {
            true => format!("{workers} workers"),
            false => format!("{workers} workers; shard {} is down, and what belongs to it waits", down.join(", ")),
        })
    }

    /// Starts processes of shards that have none; they own nothing yet.
    fn start(self: &Rc<Self>, new: &[u8]) {
        let cpus = cpus_to_pin(&self.compiled.borrow().worker_cpus);
        for n in new {
            self.slots.borrow_mut().push(Slot::new(*n, cpu_of(*n, &cpus)));
            spawn_local(life::keep(Rc::clone(self), *n));
        }
    }

    /// Ends shards that were started for more owners than there are in the end. What lies in the spool of one that cannot serve is left to the
    /// next start of the server.
    async fn end_all(self: Rc<Self>, started: Vec<u8>) {
        for number in started {
            let serves = self.slot(number, |s| s.known().has_served);
            let is_owner = self.map.borrow().shards.contains(&number);
            match serves {
                _ if is_owner => {}
                Some(true) => {
                    if let Err(e) = self.retire_one(number).await {
                        tracing::warn!("{e}");
                    }
                }
                Some(false) => {
                    self.slot_mut(number, |s| {
                        s.retired = true;
                        s.start_now.notify_waiters();
                        s.kill();
                    });
                    let has_ended = |s: &Self| s.slot(number, |s| s.process.is_none()).unwrap_or(true);
                    if self.until(STEP_WAIT, has_ended).await {
                        self.slots.borrow_mut().retain(|s| s.number != number);
                        tracing::error!(shard = number, "the new worker could not serve and is not started again");
                    }
                }
                None => {}
            }
        }
    }

    /// Tells new shards what operators paused and disabled, as one that owns destinations knows it; whether all have it on disk. No order is
    /// given meanwhile: it would be undone at the new ones.
    async fn tell_switches(&self, new: &[u8]) -> bool {
        let _no_order = self.ordering.write().await;
        let owners = self.map.borrow().shards.clone();
        let serves = |n: &u8| self.slot(*n, |s| s.state == State::Serving).unwrap_or(false);
        let serving: Vec<u8> = owners.into_iter().filter(serves).collect();
        let known = self.ask_those(|n| serving.contains(&n), RowsOf::Switches).await;
        let Some(Rows::Switches(all)) = known.into_iter().next() else { return false };
        let answers = self.ask_those(|n| new.contains(&n), RowsOf::TakeSwitches(all)).await;
        answers.iter().filter(|a| matches!(a, Rows::Done { .. })).count() == new.len()
    }

    /// Shards that own nothing any more hand their mail over and end.
    async fn retire_above(self: Rc<Self>, workers: u8) -> Result<(), String> {
        let leaving: Vec<u8> = self.slots.borrow().iter().map(|s| s.number).filter(|n| *n >= workers).collect();
        for number in leaving {
            self.retire_one(number).await?;
        }
        Ok(())
    }

    /// One shard that owns nothing any more hands its mail over and ends.
    async fn retire_one(self: &Rc<Self>, number: u8) -> Result<(), String> {
        if self.slot_mut(number, |s| std::mem::replace(&mut s.leaving, true)).unwrap_or(true) {
            // Another task retires it already.
            self.until(STEP_WAIT, |s| s.slot(number, |s| !s.leaving).unwrap_or(true)).await;
            return Ok(());
        }
        let done = self.retire(number).await;
        self.slot_mut(number, |s| s.leaving = false);
        done
    }

    /// Ends one shard that owns nothing any more, as [`Retiring`] decides.
    async fn retire(self: &Rc<Self>, number: u8) -> Result<(), String> {
        let mut retiring = Retiring::of(number);
        loop {
            let mut step = retiring::Step::Wait;
            let decides = |s: &Self| {
                step = s.seen(|seen| retiring.step(Instant::now(), seen));
                step != retiring::Step::Wait
            };
            self.until(STEP_WAIT, decides).await;
            match step {
                retiring::Step::Stays => return Ok(()),
                retiring::Step::Stop => {
                    self.slot_mut(number, |s| s.retired = true);
                    self.tell_to_stop(number);
                }
                retiring::Step::StartAgain if !self.stopping.get() => {
                    tracing::info!(
                        shard = number,
                        "mail, or what came of it, was not all on disk when the shard ended; it is started again to hand over what is left"
                    );
                    self.slot_mut(number, |s| s.retired = false);
                    spawn_local(life::keep(Rc::clone(self), number));
                }
                retiring::Step::StartAgain | retiring::Step::Gone => {
                    let mut gone = self.gone.get();
                    self.slot(number, |s| gone.add(&s.totals()));
                    self.gone.set(gone);
                    self.slots.borrow_mut().retain(|s| s.number != number);
                    if !self.stopping.get() {
                        // It has nothing that others offered it: they need not ask it any more.
                        self.tell_map();
                        tracing::info!(shard = number, "the shard is gone: the others have its mail");
                    }
                    return Ok(());
                }
                retiring::Step::Wait => match retiring.waits() {
                    Waits::ForMap => {
                        return Err(format!(
                            "shard {number} has not taken the shard map in an hour; it goes on handing over its mail"
                        ));
                    }
                    Waits::UntilEmpty(_) => {
                        return Err(format!("shard {number} still holds mail; it goes on handing it over"));
                    }
                    // On a slow disk the end takes long. It is waited for all the same: another process may not use the spool before.
                    Waits::ForEnd => {
                        tracing::warn!(shard = number, "the shard was told to stop an hour ago, and has not ended")
                    }
                },
            }
        }
    }
}

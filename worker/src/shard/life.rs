//! A shard from its start to its end: put together, given what its spool holds, started, stopped, and left. None of it needs
//! a supervisor.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use ipc::dice::HashSet;
use ipc::shard_map::ShardMap;
use spool::store::Values;
use spool::{Recovered, SpoolError};
use tokio::sync::{mpsc, oneshot};

use super::Shard;
use crate::deliver::{conclusion, connection, interruption, rerouting};
use crate::report::notice;
use crate::route::{keep, last_failures, links, moving, owner, paths};
use crate::schedule::QueueId;
use crate::suppression::refusals;
use crate::tasks;

/// Time between two looks whether a shard that stops has ended its work.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What an opened spool holds.
#[derive(Debug)]
pub struct SpoolContents {
    /// Messages with recipients left; it ends with the last.
    pub messages: mpsc::Receiver<Recovered>,
    /// Values that were kept, when all messages have been passed.
    pub values: oneshot::Receiver<Result<Values, SpoolError>>,
}

impl Shard {
    /// Takes in what the spool holds.
    ///
    /// # Errors
    /// A sentence when the spool cannot be opened.
    pub async fn recover(self: Rc<Self>, mut held: SpoolContents) -> Result<(), String> {
        while let Some(message) = held.messages.recv().await {
            self.enqueue_recovered(message);
        }
        let values = held.values.await.map_err(|_| "the spool's thread ended while opening".to_owned())?;
        let values = values.map_err(|e| e.to_string())?;
        // Only a shard's own mail is moved or rerouted: what was kept for another and is named there was this one's own by then.
        let own: HashSet<u64> = moving::noted(&values).chain(rerouting::noted(&values)).collect();
        self.kept.take_found(&own).iter().for_each(|r| self.enqueue_own(r));
        crate::switches::restore(&self, &values);
        crate::standing_orders::restore(&self, &values);
        crate::disabled::restore(&self, &values);
        rerouting::restore(&self, &values).await;
        moving::restore(&self, &values);
        keep::restore(&self, &values);
        last_failures::restore(&self, &values);
        paths::restore(&self, values);
        self.decide(|e, now| {
            e.has_recalled();
            e.cut_rates(now);
        });
        Ok(())
    }

    /// Starts everything that a shard does by itself, on the `LocalSet` that this is called from.
    ///
    /// # Errors
    /// A sentence when the other shards could not reach it.
    pub fn start(self: &Rc<Self>) -> Result<(), String> {
        let mesh = self.ports.mesh.listen().map_err(|e| e.to_string())?;
        let mesh = Rc::new(RefCell::new(Some(mesh)));
        tasks::keep(self, "mesh", move |shard| owner::serve(shard, Rc::clone(&mesh)));
        tasks::keep(self, "opening", connection::begin_openers);
        tasks::keep(self, "refusals", conclusion::bounce_all_refused);
        tasks::keep(self, "notices", notice::send_all);
        tasks::keep(self, "groups", Shard::form_groups);
        tasks::keep(self, "timers", Shard::run_timers);
        tasks::keep(self, "suppression", refusals::watch);
        tasks::keep(self, "kept shares", keep::pass_on);
        tasks::keep(self, "moving", moving::move_out);
        tasks::keep(self, "interruption", interruption::watch);
        tasks::keep(self, "precache", precache);
        links::keep_links(self);
        paths::claim_all(self);
        let ids: Vec<QueueId> = self.scheduler().queues.iter().map(|(id, _)| id).collect();
        ids.into_iter().for_each(|id| self.pump_queue(id));
        Ok(())
    }

    /// Takes a new shard map into use: connects to the shards of it, and claims what moved here.
    pub fn follow_map(self: &Rc<Self>, map: ShardMap) {
        let is_another = self.set_map(map);
        links::keep_links(self);
        if is_another {
            paths::claim_all(self);
        }
    }

    /// Takes no more work; transactions in flight may end.
    pub fn stop(&self) {
        self.stop_signal().raise();
        self.programs.stop();
    }

    /// Resolves when nothing is in flight any more: no transaction, and no handoff that was not answered.
    pub async fn has_ended_work(&self) {
        let is_busy = || {
            let unanswered = self.moves.are_unanswered() || !self.inbound.is_idle();
            self.sessions.get() > 0 || self.connections.get() > 0 || unanswered
        };
        while is_busy() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Makes everything durable that happened until now, and leaves the other shards in order. False when the disk did not take all of
    /// it, or rows wait for accounting files: only another start of the shard goes on with that.
    pub async fn leave(&self) -> bool {
        self.decide(|e, now| e.keep_paths(now));
        last_failures::keep_all(self);
        if ipc::planted!("left-before-outcomes-are-written") {
            self.ports.mesh.leave();
            return true;
        }
        if let Err(e) = self.spool.barrier().await {
            tracing::error!(error = %e, "what happened last is not on disk yet");
        }
        self.ports.mesh.leave();
        self.spool.finished().await
    }
}

/// Holds the domains of `<dns>` that are this shard's fresh in the cache.
async fn precache(shard: Rc<Shard>) {
    loop {
        let config = shard.config();
        for d in &config.global.precached_domains {
            if shard.map.borrow().owner(d) == shard.number {
                let rules = config.exit(d, "").rules;
                let resolver = Rc::clone(&shard.resolver.borrow());
                resolver.refresh(d, &rules, &config.own_server).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(config.global.precached_refresh_ms.max(1000))).await;
    }
}

//! Over how many shards destinations are spread: as configured, and for `auto` as the load asks.

use std::rc::Rc;
use std::time::Duration;

use crate::load::Load;
use crate::state::Supervisor;

/// Time between two looks at the shards' load.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long the release of destinations may take before a new map waits no longer for it.
const SETTLE_WAIT: Duration = Duration::from_secs(600);

impl Supervisor {
    /// Puts what the configuration says now in force; one change of the shard map at a time.
    pub(super) async fn spread_anew(self: Rc<Self>) {
        let wanted = |s: &Self| s.automatic.borrow().all(&s.compiled.borrow().spread);
        if wanted(&self) == self.map.borrow().spread {
            return;
        }
        if !self.until(SETTLE_WAIT, Self::settled).await {
            tracing::warn!("destinations of the last change of the shard map are still being released");
        }
        let (spread, workers) = (wanted(&self), self.map.borrow().shards.len() as u8);
        if spread != self.map.borrow().spread {
            tracing::info!(?spread, "destinations are spread over shards");
            self.publish_map(workers, spread);
        }
    }

    /// Spreads destinations of `spread auto` over more shards while one is too hot for those
    /// that it has.
    pub(super) async fn watch_load(self: Rc<Self>) {
        while !self.stopping.get() {
            tokio::time::sleep(LOOK_EVERY).await;
            let load: Vec<Load> = {
                let workers = self.map.borrow().shards.len();
                let slots = self.slots.borrow();
                let of = |b: &ipc::control::Heartbeat| Load { busy: b.busy_permille, hottest: b.hottest.clone() };
                slots.iter().filter(|s| usize::from(s.number) < workers).map(|s| of(&s.heartbeat)).collect()
            };
            let found = self.automatic.borrow_mut().look(&load, &self.compiled.borrow().spread);
            if let Some(destination) = found {
                tracing::warn!(destination, "one shard more takes part in a destination that is too hot (spread auto)");
                Rc::clone(&self).spread_anew().await;
            }
        }
    }
}

//! `await-slot`: clients that wait for a place while `total-max-smtp-in` is reached.

use std::cell::Cell;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::timeout;

use super::places::NoPlace;
use crate::tasks::AtEnd;

/// Clients of a shard that may wait: each holds a descriptor. Others are told that there is no place.
const WAITING_MAX: usize = 1000;
/// How often the first of them looks for a place; those of other shards may have given theirs back.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The clients of a shard that wait, in the order in which they came.
#[derive(Debug, Default)]
pub struct Awaiting {
    waiting: Cell<usize>,
    /// The first in line has it.
    turn: Mutex<()>,
}

impl Awaiting {
    /// What `take` takes for a client, for which it waits so long at most. Only a place of all is waited for: where a client's own
    /// address, network or group has too many, waiting would serve nobody.
    ///
    /// # Errors
    /// The limit that has none left.
    pub async fn place<P>(
        &self,
        most: Duration,
        mut take: impl FnMut() -> Result<P, NoPlace>,
        stopping: impl Fn() -> bool,
    ) -> Result<P, NoPlace> {
        if self.waiting.get() == 0 {
            match take() {
                Err(NoPlace::Total) => {}
                taken => return taken,
            }
        }
        if self.waiting.get() >= WAITING_MAX {
            return Err(NoPlace::Total);
        }
        self.waiting.set(self.waiting.get() + 1);
        let _leaves = AtEnd(|| self.waiting.set(self.waiting.get() - 1));
        let in_turn = timeout(most, async {
            let _turn = self.turn.lock().await;
            loop {
                match take() {
                    Err(NoPlace::Total) if !stopping() => tokio::time::sleep(LOOK_EVERY).await,
                    taken => return taken,
                }
            }
        });
        in_turn.await.unwrap_or(Err(NoPlace::Total))
    }
}

//! `await-slot`: clients that wait for a place while `total-max-smtp-in` is reached.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use ipc::dice::HashMap;
use ipc::network::Network;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::places::NoPlace;
use crate::tasks::AtEnd;

/// Clients of a shard that may wait: each holds a descriptor. Others are told that there is no place.
const WAITING_MAX: usize = 1000;
/// The same of one network (an IPv4 /24, an IPv6 /48) whose clients no `<source>` names.
const OF_NETWORK_MAX: usize = 64;
/// How often the first of a line looks for a place; those of other shards may have given theirs back.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Who waits.
#[derive(Debug, Clone, Copy)]
pub enum Who<'a> {
    /// A client that the configuration names, by its `<source-group>`, empty for none: there are places set apart for it.
    Known(&'a str),
    /// Another, of a network.
    Stranger(Network),
}

/// The clients of a shard that wait: in the order in which they came, but each group by itself, for each may have places of its own.
#[derive(Debug, Default)]
pub struct Awaiting(RefCell<Lines>);

#[derive(Debug, Default)]
struct Lines {
    waiting: usize,
    /// Strangers, by network.
    strangers: HashMap<Network, usize>,
    /// The first in line has the turn; by group, `None` for strangers.
    turns: HashMap<Option<String>, Rc<Mutex<()>>>,
}

impl Awaiting {
    /// What `take` takes for a client, for which it waits so long at most. Only a place of all is waited for: where a client's own
    /// address, network or group has too many, waiting would serve nobody.
    ///
    /// # Errors
    /// The limit that has none left.
    pub async fn place<P>(
        &self,
        who: Who<'_>,
        most: Duration,
        mut take: impl FnMut() -> Result<P, NoPlace>,
        stopping: impl Fn() -> bool,
    ) -> Result<P, NoPlace> {
        // No stranger goes before those that wait.
        if matches!(who, Who::Known(_)) || self.0.borrow().strangers.is_empty() {
            match take() {
                Err(NoPlace::Total) => {}
                taken => return taken,
            }
        }
        let turn = self.enter(who).ok_or(NoPlace::Total)?;
        let _leaves = AtEnd(|| self.leave(who));
        let in_turn = timeout(most, async {
            let _turn = turn.lock().await;
            loop {
                match take() {
                    Err(NoPlace::Total) if !stopping() => tokio::time::sleep(LOOK_EVERY).await,
                    taken => return taken,
                }
            }
        });
        in_turn.await.unwrap_or(Err(NoPlace::Total))
    }

    /// The turn of the client's line; `None` where too many wait.
    fn enter(&self, who: Who<'_>) -> Option<Rc<Mutex<()>>> {
        let lines = &mut *self.0.borrow_mut();
        let line = match who {
            _ if lines.waiting >= WAITING_MAX => return None,
            Who::Known(group) => Some(group.to_lowercase()),
            Who::Stranger(network) => {
                let of_network = lines.strangers.entry(network).or_default();
                if *of_network >= OF_NETWORK_MAX {
                    return None;
                }
                *of_network += 1;
                None
            }
        };
        lines.waiting += 1;
        Some(Rc::clone(lines.turns.entry(line).or_default()))
    }

    fn leave(&self, who: Who<'_>) {
        let lines = &mut *self.0.borrow_mut();
        lines.waiting -= 1;
        if let Who::Stranger(network) = who
            && let Some(n) = lines.strangers.get_mut(&network)
        {
            *n -= 1;
            lines.strangers.retain(|_, n| *n > 0);
        }
        if lines.waiting == 0 {
            lines.turns.clear();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn network(n: u8) -> Network {
        Network::of_one_customer([192, 0, n, 1].into())
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_goes_before_those_that_wait_but_whom_places_are_set_apart_for() {
        let (awaiting, free, of_known) = (Awaiting::default(), Cell::new(0), Cell::new(0));
        let from = |places: &Cell<i32>| {
            let n = places.get();
            places.set((n - 1).max(0));
            if n > 0 { Ok(()) } else { Err(NoPlace::Total) }
        };
        let wait = Duration::from_secs(60);
        let order = RefCell::new(Vec::new());
        let stranger = |n: u8| {
            let (awaiting, free, order) = (&awaiting, &free, &order);
            async move {
                let got = awaiting.place(Who::Stranger(network(n)), wait, || from(free), || false).await;
                order.borrow_mut().push((n, got.is_ok()));
            }
        };
        let later = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            free.set(1);
            let new = awaiting.place(Who::Stranger(network(9)), Duration::ZERO, || from(&free), || false).await;
            assert!(new.is_err(), "the first in line has it");
            of_known.set(1);
            assert!(awaiting.place(Who::Known("g"), wait, || from(&of_known), || false).await.is_ok());
            tokio::time::sleep(Duration::from_secs(1)).await;
            free.set(1);
        };
        tokio::join!(stranger(1), stranger(2), stranger(3), later);
        assert_eq!(*order.borrow(), [(1, true), (2, true), (3, false)]);
        assert!(awaiting.0.borrow().turns.is_empty() && awaiting.0.borrow().strangers.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn one_network_does_not_fill_the_line() {
        let awaiting = Awaiting::default();
        let all: Vec<_> = (0..OF_NETWORK_MAX).map(|_| awaiting.enter(Who::Stranger(network(1)))).collect();
        assert!(all.iter().all(Option::is_some) && awaiting.enter(Who::Stranger(network(1))).is_none());
        assert!(awaiting.enter(Who::Stranger(network(2))).is_some());
        let stops = awaiting.place(Who::Known(""), Duration::MAX, || Err::<(), _>(NoPlace::Total), || true).await;
        assert_eq!(stops.unwrap_err(), NoPlace::Total);
        let other = awaiting.place(Who::Known(""), Duration::MAX, || Err::<(), _>(NoPlace::OfGroup), || false).await;
        assert_eq!(other.unwrap_err(), NoPlace::OfGroup);
    }
}

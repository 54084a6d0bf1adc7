//! Keeps a path of a destination that several shards own in line with the paths of the others, see
//! [`crate::schedule::spread_path`].

use std::rc::Rc;

use crate::clock;
use crate::route::paths;
use crate::schedule::PathId;
use crate::schedule::path::Turn;
use crate::schedule::spread_path::follow;
use crate::shard::Shard;

/// [`follow`], and what a change of mode leads to. Those who are to hear of it were told by the shard that made the change.
pub fn keep_up(shard: &Rc<Shard>, id: PathId) {
    let followed = {
        let mut s = shard.scheduler.borrow_mut();
        let Some(p) = s.paths.get_mut(id).filter(|p| p.spread.is_some()) else { return };
        let before = p.retry_at_ms;
        let turn = follow(&shard.ledger, p, clock::now_ms());
        let at = p.retry_at_ms;
        let followed = turn.map(|t| (t, p.name(), p.queues.clone()));
        if at > before {
            s.wake_at(id, at);
        }
        followed
    };
    if let Some((turn, name, queues)) = followed {
        paths::note_mode(shard, id);
        tracing::info!(shard = shard.number, path = name, ?turn, "mode as on the other shards of the destination");
        if turn == Turn::Entered {
            queues.iter().for_each(|q| crate::deliver::mode::reroute(shard, q));
        }
    }
}

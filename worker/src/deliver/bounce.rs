//! `bounce-queue`: a reply, or what is known of a domain, ends what waits in the queues of a path.

use std::rc::Rc;

use super::conclusion::bounce_queue;
use super::path::{ServedPath, path_of_queue};
use crate::classify::outcome::Failure;
use crate::schedule::Queue;
use crate::shard::Shard;

/// `bounce-queue`: ends what waits in the virtual MTA's own queue. A pool's queue belongs to
/// its other members as well; only where there is none it is ended, too.
pub(super) async fn bounce_queues(shard: &Rc<Shard>, path: &ServedPath, failure: &Failure) {
    bounce_those(shard, path, failure, |q| q.members.len() == 1).await;
}

/// Ends what waits in the queues of a path that `meant` picks.
pub(super) async fn bounce_those(
    shard: &Rc<Shard>,
    path: &ServedPath,
    failure: &Failure,
    meant: impl Fn(&Queue) -> bool,
) {
    let queues = shard.scheduler().paths.get(path.id).map(|p| p.queues.clone()).unwrap_or_default();
    for id in queues.iter() {
        let picked = {
            let s = shard.scheduler();
            // Others may have emptied it meanwhile, and its number may be another queue's.
            let serves = s.paths.get(path.id).is_some_and(|p| p.queues.contains(id));
            serves && s.queues.get(id).is_some_and(&meant)
        };
        if picked && let Some(p) = path_of_queue(shard, id) {
            bounce_queue(shard, &p, id, failure).await;
        }
    }
}

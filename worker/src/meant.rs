//! Which queues and paths an operator's `DOMAIN[/VMTA]` means: those of that name, and those that carry its mail. Mail of
//! a domain that rolled up waits in the queue of all, and mail of a virtual MTA with a reroute in another's.

use ipc::queue_orders::QueuePattern;

use crate::schedule::{Path, PathId, Queue, QueueId};
use crate::shard::{Scheduler, Shard};

/// The queues that a pattern means.
pub fn queues(shard: &Shard, s: &Scheduler, of: &QueuePattern) -> Vec<QueueId> {
    let meant = |q: &Queue| q.is_meant_by(of) && !is_left_over(shard, q);
    s.queues.iter().filter(|(_, q)| meant(q)).map(|(id, _)| id).collect()
}

/// Its mail has gone to the queue that its domain rolled up to, or to another shard.
pub fn is_left_over(shard: &Shard, q: &Queue) -> bool {
    q.recipients == 0
        && (shard.rollups.queue_of(&q.key).is_some() || !shard.map.borrow().is_owner(q.destination(), shard.number))
}

/// The paths that it means: those of the name or of a member of the pool, and those that serve `queues`.
pub fn paths(shard: &Shard, s: &Scheduler, of: &QueuePattern, queues: &[QueueId]) -> Vec<PathId> {
    let members = shard.config().members_of(&of.via);
    let is_named = |p: &Path| {
        of.matches(&p.destination, &p.vmta_name)
            || (members.contains(&*p.vmta_name) && of.matches(&p.destination, &of.via))
    };
    // One that is left from before its domain rolled up, or moved to another shard, carries nothing any more.
    let is_over = |p: &Path| {
        let is_elsewhere = p.held || shard.rollups.queue_of(&p.destination).is_some();
        let is_empty = |id: QueueId| s.queues.get(id).is_none_or(|q| q.recipients == 0);
        is_elsewhere && p.queues.iter().all(is_empty) && p.connections + p.connecting == 0
    };
    let mut all: Vec<PathId> = s.paths.iter().filter(|(_, p)| is_named(p) && !is_over(p)).map(|(id, _)| id).collect();
    let serving = queues.iter().filter_map(|id| s.queues.get(*id)).flat_map(|q| &q.pullers).map(|p| p.path);
    all.extend(serving.filter(|id| s.paths.get(*id).is_some_and(|p| !is_over(p))));
    all.sort_unstable();
    all.dedup();
    all
}

//! How the members of a pool share its queue: by weight and by what receivers said of late,
//! none far ahead of the others, and none held up by one that cannot.

use super::ids::{PathId, QueueId};
use super::message::HeldContent;
use super::path::Path;
use super::queue::{Puller, Queue};
use super::scheduler::Scheduler;

/// Messages that a path may take ahead of its share of a pool's mail while the pool's other
/// paths are busy.
const LEAD_MESSAGES: f64 = 4.0;
/// A path that took nothing for so long, milliseconds, is not waited for.
const RECENT_MS: i64 = 1000;

impl<C: HeldContent> Scheduler<C> {
    /// Entries of queue `id` that are path `path`'s share, at least one while there are any.
    pub fn share_of(&self, id: QueueId, path: PathId, now_ms: i64) -> u64 {
        let Some(q) = self.queues.get(id).filter(|q| q.may_go(now_ms)) else { return 0 };
        let ready = q.ready.len() as u64;
        if ready == 0 || q.ready.next(|j| self.jobs.may_go(j)).is_none() {
            return 0;
        }
        let Some(p) = q.pullers.iter().find(|p| p.path == path) else { return 0 };
        let weight = |p: &Puller| q.members.get(p.member).map_or(1, |m| u64::from(m.weight));
        let all: u64 = q.pullers.iter().map(weight).sum();
        (ready * weight(p)).div_ceil(all.max(1))
    }

    /// Whether path `path` may take from queue `id` now, as far as the other paths of a pool
    /// have a say in it.
    pub fn may_pull(&self, id: QueueId, path: PathId, now_ms: i64) -> bool {
        let (Some(q), Some(p)) = (self.queues.get(id), self.paths.get(path)) else { return false };
        if q.pullers.len() < 2 {
            return true;
        }
        let rivals = || q.pullers.iter().filter(|r| r.path != path).filter_map(|r| Some((r, self.paths.get(r.path)?)));
        if !p.is_due_for_probe(now_ms) {
            // Receivers speak ill of it: others carry its mail while they are well.
            return !rivals().any(|(_, r)| r.health > p.health && r.may_send(now_ms));
        }
        let Some(me) = q.pullers.iter().find(|x| x.path == path) else { return false };
        // Nobody waits for one that is only probed, or that its own rates hold up.
        let recent = |r: &Path| {
            let may = r.connections > 0 && r.may_send(now_ms) && now_ms - r.pulled_ms < RECENT_MS;
            may && r.is_trusted() && r.rates_ready_ms() <= now_ms
        };
        let least = rivals().filter(|(_, r)| recent(r)).map(|(r, _)| r.pass).fold(f64::INFINITY, f64::min);
        me.pass <= least + LEAD_MESSAGES / share(q, me, p)
    }

    /// Notes that path `path` took `n` recipients of queue `id`.
    pub(super) fn pulled(&mut self, id: QueueId, path: PathId, n: u64, now_ms: i64) {
        let Some(q) = self.queues.get_mut(id) else { return };
        let Some(p) = self.paths.get_mut(path) else { return };
        let rested = now_ms - p.pulled_ms >= RECENT_MS;
        p.pulled_ms = now_ms;
        p.taken = p.taken.saturating_add(n as u32);
        let Some(at) = q.pullers.iter().position(|x| x.path == path) else { return };
        if rested && q.pullers.len() > 1 {
            let others = q.pullers.iter().filter(|x| x.path != path).map(|x| x.pass).fold(f64::INFINITY, f64::min);
            if others.is_finite() {
                q.pullers[at].pass = q.pullers[at].pass.max(others);
            }
        }
        let by = n as f64 / share(q, &q.pullers[at], p);
        q.pullers[at].pass += by;
    }
}

/// What a path gets of a queue's mail, against the others.
fn share(q: &Queue, puller: &Puller, p: &Path) -> f64 {
    let weight = q.members.get(puller.member).map_or(1, |m| m.weight);
    f64::from(weight) * f64::from(p.trust())
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::time::Duration;

    use ipc::rules::{DomainRules, Rate};

    use super::super::scheduler::tests::exit;
    use super::super::tokens::Grant;
    use super::super::{Entry, Message, Next};
    use super::*;

    /// A pool's queue with `n` messages, and paths for its members with a connection each.
    fn pool(members: &[(&str, u32)], n: u64) -> (Scheduler<()>, QueueId, Vec<PathId>) {
        let mut s = Scheduler::<()>::default();
        let id = s.queue("d.test", "pool", || exit(DomainRules::default(), members));
        let paths: Vec<PathId> = (0..members.len())
            .filter_map(|i| s.path_of(id, i, |m| (m.vmta, Rc::new(DomainRules::default()))).map(|(p, _)| p))
            .collect();
        paths.iter().for_each(|p| s.paths[*p].connections = 1);
        for key in 0..n {
            let m = Message {
                key,
                received_ms: 0,
                body_len: 1,
                left: 1,
                notify_delay: false,
                alone: false,
                windows_end_s: 0,
                job: 0,
                content: None,
            };
            let slot = s.add("", m);
            s.enqueue(id, Entry { slot, start: 0, end: 1, priority: 50, attempts: 0 }, 0, 0);
        }
        (s, id, paths)
    }

    /// How many each path got when all ask in turn, every 10 ms.
    fn shares(s: &mut Scheduler<()>, paths: &[PathId], from_ms: i64, turns: i64) -> Vec<u32> {
        let mut got = vec![0; paths.len()];
        for turn in 0..turns {
            for (i, p) in paths.iter().enumerate() {
                if let Next::Send(b) =
                    s.next(*p, None, (from_ms + turn * 10) * 1_000_000, &|_| true, &mut |n, _| Grant::all(n))
                {
                    s.settle(b.queue, b.slot, b.key, 1);
                    got[i] += 1;
                }
            }
        }
        got
    }

    #[test]
    fn members_of_a_pool_pull_by_weight_while_all_are_able() {
        let (mut s, _, paths) = pool(&[("a", 3), ("b", 1)], 4000);
        let got = shares(&mut s, &paths, 10_000, 1000);
        let ratio = f64::from(got[0]) / f64::from(got[1]);
        assert!((2.5..3.5).contains(&ratio), "{got:?}");
    }

    #[test]
    fn a_path_that_cannot_send_holds_nobody_up() {
        let (mut s, _, paths) = pool(&[("a", 1), ("b", 1)], 500);
        s.paths[paths[1]].retry_at_ms = 1_000_000;
        assert_eq!(shares(&mut s, &paths, 10_000, 500), [500, 0]);
        // One that has connections and takes nothing holds it up for a second at most.
        let (mut s, _, paths) = pool(&[("a", 1), ("b", 1)], 500);
        assert_eq!(shares(&mut s, &paths, 10_000, 1), [1, 1]);
        let alone = shares(&mut s, &paths[..1], 10_010, 98);
        assert!(alone[0] <= 6, "{alone:?}");
        assert_eq!(shares(&mut s, &paths[..1], 11_010, 10), [10]);
    }

    #[test]
    fn a_path_that_receivers_speak_ill_of_is_only_probed_while_others_are_well() {
        let (mut s, _, paths) = pool(&[("a", 1), ("b", 1), ("c", 1)], 6000);
        (0..6).for_each(|_| s.paths[paths[0]].judged(false));
        s.paths[paths[0]].pulled_ms = 10_000;
        // 20 s: two probes.
        let got = shares(&mut s, &paths, 10_000, 2000);
        assert!(got[0] <= 2 && got[1] + got[2] > 3900, "{got:?}");
        // When all are ill somebody has to go on.
        let (mut s, _, paths) = pool(&[("a", 1), ("b", 1)], 100);
        for p in &paths {
            (0..6).for_each(|_| s.paths[*p].judged(false));
            s.paths[*p].pulled_ms = 10_000;
        }
        assert!(shares(&mut s, &paths, 10_000, 60).iter().sum::<u32>() >= 100);
    }

    #[test]
    fn a_pool_is_not_as_slow_as_its_slowest_member() {
        let (mut s, _, paths) = pool(&[("a", 1), ("b", 1)], 1000);
        let rate = Rate { count: 2, per: Duration::from_secs(1) };
        s.paths[paths[0]].rules = Rc::new(DomainRules { max_msg_rate: rate, ..Default::default() });
        let got = shares(&mut s, &paths, 10_000, 900);
        assert!(got[0] <= 20 && got[1] >= 850, "{got:?}");
    }
}

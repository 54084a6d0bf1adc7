//! What operators do to queues and paths of this shard.

use std::net::IpAddr;
use std::rc::Rc;

use ipc::control::AllSwitches;
use ipc::mesh::PathState;
use ipc::queue_orders::{QueueAction, QueueOrder, Switches};
use ipc::{stored, text};

use crate::clock;
use crate::meant;
use crate::schedule::{Path, PathId, QueueId};
use crate::shard::Shard;

/// Name of the switches among the spool's values.
const KEPT_AS: &str = "switches";
/// Name of the paused jobs there.
const JOBS_KEPT_AS: &str = "paused-jobs";
/// Jobs that may be paused at once.
const PAUSED_JOBS_MAX: usize = 10_000;
/// Queues or paths that an answer names.
const NAMED_MAX: usize = 100;

/// What came of an order.
#[derive(Debug, Default)]
pub struct Obeyed {
    /// Queues that it means; paths for modes and sources, recipients for jobs.
    pub matched: u64,
    /// Those where something changed.
    pub changed: u64,
    /// Names of those, at most [`NAMED_MAX`].
    pub names: Vec<String>,
    /// What is kept for queues and paths to come is another thing than before.
    pub kept: bool,
}

impl Obeyed {
    /// Something that the order means, and whether it changed.
    fn count(&mut self, name: impl FnOnce() -> String, changed: bool) {
        self.matched += 1;
        if changed {
            self.changed += 1;
            if self.names.len() < NAMED_MAX {
                self.names.push(name());
            }
        }
    }
}

/// Takes over what the spool had kept.
pub fn restore(shard: &Rc<Shard>, values: &[(String, Vec<u8>)]) {
    if let Some((_, jobs)) = values.iter().find(|(name, _)| name == JOBS_KEPT_AS) {
        let names = String::from_utf8_lossy(jobs).lines().map(str::to_owned).collect::<Vec<_>>();
        shard.decide(|e, _| e.set_paused_jobs(names));
    }
    let Some((_, value)) = values.iter().find(|(name, _)| name == KEPT_AS) else { return };
    match stored::read::<Switches>(value) {
        Ok(s) => shard.decide(|e, _| e.set_switches(s)),
        Err(e) => tracing::warn!(error = %e, "pauses in the spool cannot be read; forgotten"),
    }
}

/// What operators switched, for a shard that is new.
pub fn all(shard: &Shard) -> AllSwitches {
    let jobs = shard.scheduler().jobs.paused().map(str::to_owned).collect();
    AllSwitches { queues: shard.switches().clone(), jobs, given: crate::standing_orders::all(shard) }
}

/// Takes over what the other shards know, in place of what was known here before.
pub fn take(shard: &Shard, all: AllSwitches) {
    shard.spool.put(KEPT_AS, stored::bytes(&all.queues));
    shard.spool.put(JOBS_KEPT_AS, all.jobs.join("\n").into_bytes());
    shard.decide(|e, _| {
        e.set_paused_jobs(all.jobs);
        e.set_switches(all.queues);
    });
    crate::standing_orders::take(shard, all.given);
}

/// Carries out an order of a user.
///
/// # Errors
/// A sentence when it cannot be kept.
pub fn obey(shard: &Rc<Shard>, order: &QueueOrder, by: &str) -> Result<Obeyed, String> {
    let now = clock::now_ms();
    let (queues, paths) = meant(shard, order);
    if let QueueAction::DisableSource { ip, .. } | QueueAction::EnableSource { ip } = &order.action {
        let until_ms = match order.action {
            QueueAction::DisableSource { until_unix_ms, .. } => until_unix_ms,
            _ => 0,
        };
        crate::disabled::note(shard, (&order.of.destination, &order.of.via), ip, until_ms, None);
    }
    if queues.is_empty() && paths.is_empty() && !shard.config().is_via(&order.of.via) {
        // A slip of the pen: nothing is kept for it.
        return Ok(Obeyed::default());
    }
    let kept = shard.decide(|e, now| e.note_order(order, now))?;
    if kept {
        shard.spool.put(KEPT_AS, stored::bytes(&*shard.switches()));
        crate::standing_orders::note(shard, order, by);
    }
    let mut done = match &order.action {
        QueueAction::Pause(_) => pause(shard, &queues),
        QueueAction::Mode(backoff) => set_modes(shard, order, &paths, *backoff, now),
        QueueAction::Schedule { recipients } => {
            let mut done = Obeyed::default();
            for id in &queues {
                let changed = shard.decide(|e, now| e.end_waits(*id, *recipients, now));
                done.count(|| queue_name(shard, *id), changed);
            }
            done
        }
        QueueAction::DisableSource { ip, until_unix_ms } => set_source(shard, order, &paths, ip, *until_unix_ms)?,
        QueueAction::EnableSource { ip } => set_source(shard, order, &paths, ip, 0)?,
    };
    done.kept = kept;
    pump_all(shard, queues);
    tracing::info!(shard = shard.number, of = %order.of, action = ?order.action, matched = done.matched, changed = done.changed, "order");
    Ok(done)
}

fn pump_all(shard: &Shard, queues: Vec<QueueId>) {
    shard.decide(|e, now| {
        for id in queues {
            e.pump_queue(id, now);
            e.pump_pullers(id, now);
        }
    });
}

fn queue_name(shard: &Shard, id: QueueId) -> String {
    let s = shard.scheduler();
    let Some(q) = s.queues.get(id) else { return String::new() };
    // Its wait is over, and it stays all the same.
    let paused = if q.paused { ", paused: it goes when it is resumed" } else { "" };
    format!("{}{paused}", q.full_name())
}

/// Paths that one order makes. Further ones take what an order says of sources when they are made; modes they do not take.
const PATHS_MADE_MAX: usize = 10_000;

/// Queues and paths that an order means. For what is said to paths those are made that will serve the queues: else it
/// would not hold for them.
fn meant(shard: &Shard, order: &QueueOrder) -> (Vec<QueueId>, Vec<PathId>) {
    let queues = meant::queues(shard, &shard.scheduler(), &order.of);
    let is_of_paths = !matches!(order.action, QueueAction::Pause(_) | QueueAction::Schedule { .. });
    let mut made = 0;
    for id in queues.iter().filter(|_| is_of_paths) {
        if made >= PATHS_MADE_MAX {
            break;
        }
        made += shard.decide(|e, now| e.make_all_paths(*id, now));
    }
    let paths = meant::paths(shard, &shard.scheduler(), &order.of, &queues);
    (queues, paths)
}

/// Pauses a job or lets it go on; answers how many recipients it has here, and whether that
/// changed something.
///
/// # Errors
/// A sentence when it cannot be kept.
pub fn pause_job(shard: &Rc<Shard>, job: &str, paused: bool, by: &str) -> Result<Obeyed, String> {
    if job.len() > text::JOB_NAME_MAX || !text::is_fit(job) {
        return Err(format!("a job's name has at most {} printable characters", text::JOB_NAME_MAX));
    }
    let mut names: Vec<String> = shard.scheduler().jobs.paused().map(str::to_owned).collect();
    let was = names.iter().any(|n| n == job);
    names.retain(|n| n != job);
    if paused {
        names.push(job.to_owned());
    }
    if names.len() > PAUSED_JOBS_MAX {
        return Err(format!("{PAUSED_JOBS_MAX} jobs are paused already; resume some"));
    }
    let (changed, kept) = (was != paused, names.join("\n"));
    shard.decide(|e, _| e.set_paused_jobs(names));
    let recipients = shard.scheduler().jobs.iter().find(|(_, j)| &*j.name == job).map_or(0, |(_, j)| j.recipients);
    if changed {
        shard.spool.put(JOBS_KEPT_AS, kept.into_bytes());
        crate::standing_orders::note_job(shard, job, by);
        let queues: Vec<QueueId> = shard.scheduler().queues.iter().map(|(id, _)| id).collect();
        if !paused {
            pump_all(shard, queues);
        }
    }
    tracing::info!(shard = shard.number, job, paused, recipients, "job");
    Ok(Obeyed { matched: recipients, changed: u64::from(changed), ..Obeyed::default() })
}

fn pause(shard: &Rc<Shard>, queues: &[QueueId]) -> Obeyed {
    let mut done = Obeyed::default();
    shard.decide(|e, now| {
        let resumed = e.apply_pauses(|id, q, before| {
            // They are in the order of their numbers, as these are.
            if queues.binary_search(&id).is_ok() {
                done.count(|| q.full_name(), before != q.paused);
            }
        });
        // Their rules may send them on to others, which they did not while they were paused.
        resumed.into_iter().for_each(|id| e.reroute(id, now));
    });
    done
}

fn path_name(shard: &Shard, id: PathId) -> String {
    shard.scheduler().paths.get(id).map(Path::name).unwrap_or_default()
}

fn set_modes(shard: &Rc<Shard>, order: &QueueOrder, paths: &[PathId], backoff: bool, now: i64) -> Obeyed {
    let mut done = Obeyed::default();
    for id in paths {
        let changed = shard.decide(|e, now| e.set_mode(*id, backoff, now));
        done.count(|| path_name(shard, *id), changed);
    }
    if !backoff {
        // Paths that this shard knows of and has no mail for would begin in backoff, and with its waits.
        let leave = |p: &mut PathState| {
            let was_in_backoff = std::mem::take(&mut p.backoff_until_unix_ms) > now;
            if was_in_backoff {
                p.retry_at_unix_ms = 0;
            }
            was_in_backoff
        };
        let left = shard.decide(|e, _| e.change_inherited(&order.of, leave));
        left.into_iter().for_each(|name| done.count(|| name, true));
    }
    done
}

fn set_source(
    shard: &Rc<Shard>,
    order: &QueueOrder,
    paths: &[PathId],
    ip: &str,
    until_ms: i64,
) -> Result<Obeyed, String> {
    let address: IpAddr = ip.parse().map_err(|_| format!("expected an IP address, found {ip:?}"))?;
    let mut done = Obeyed::default();
    let mut set = Vec::new();
    for id in paths {
        let Some(changed) = shard.decide(|e, _| e.set_source(*id, address, until_ms)) else { continue };
        done.count(|| path_name(shard, *id), changed);
        if changed {
            set.push(*id);
        }
    }
    if until_ms == 0 {
        let enable = |p: &mut PathState| {
            let of = p.sources.iter_mut().find(|s| s.ip == ip);
            of.is_some_and(|s| std::mem::take(&mut s.disabled_until_unix_ms) > clock::now_ms())
        };
        let enabled = shard.decide(|e, _| e.change_inherited(&order.of, enable));
        enabled.into_iter().for_each(|name| done.count(|| name, true));
    }
    for id in &set {
        let s = shard.scheduler();
        let Some(p) = s.paths.get(*id) else { continue };
        crate::disabled::note(shard, (&p.destination, &p.vmta_name), ip, until_ms, None);
    }
    // What a note of before says of the source is not so any more.
    shard.decide(|e, now| {
        set.iter().for_each(|id| e.note_mode(*id, now));
        set.iter().filter(|_| until_ms > 0).for_each(|id| e.rest_without_sources(*id, now));
        for id in &set {
            e.pump(*id, now);
        }
    });
    Ok(done)
}

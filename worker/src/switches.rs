//! What operators do to queues and paths of this shard.

use std::net::IpAddr;
use std::rc::Rc;

use ipc::control::AllSwitches;
use ipc::frame::archive;
use ipc::queue_orders::{QueueAction, QueueOrder, QueuePattern, Switches};
use ipc::text;

use crate::clock;
use crate::schedule::{Path, PathId, Queue, QueueId};
use crate::shard::Shard;

/// Name of the switches among the spool's values.
const KEPT_AS: &str = "switches";
/// Name of the paused jobs there.
const JOBS_KEPT_AS: &str = "paused-jobs";
/// Jobs that may be paused at once.
const PAUSED_JOBS_MAX: usize = 10_000;

/// Takes over what the spool had kept.
pub fn restore(shard: &Rc<Shard>, values: &[(String, Vec<u8>)]) {
    if let Some((_, jobs)) = values.iter().find(|(name, _)| name == JOBS_KEPT_AS) {
        let names = String::from_utf8_lossy(jobs).lines().map(str::to_owned).collect::<Vec<_>>();
        shard.scheduler.borrow_mut().jobs.set_paused(names);
    }
    let Some((_, value)) = values.iter().find(|(name, _)| name == KEPT_AS) else { return };
    match rkyv::from_bytes::<Switches, rkyv::rancor::Error>(value) {
        Ok(s) => *shard.switches.borrow_mut() = s,
        Err(e) => tracing::warn!(error = %e, "pauses in the spool cannot be read; forgotten"),
    }
    apply(shard);
}

/// Puts the switches in force at what is there.
fn apply(shard: &Shard) {
    let s = &mut *shard.scheduler.borrow_mut();
    s.queues.iter_mut().for_each(|(_, q)| apply_to_queue(shard, q));
    s.paths.iter_mut().for_each(|(_, p)| apply_to_path(shard, p));
}

/// What operators switched, for a shard that is new.
pub fn all(shard: &Shard) -> AllSwitches {
    let jobs = shard.scheduler.borrow().jobs.paused().map(str::to_owned).collect();
    AllSwitches { queues: shard.switches.borrow().clone(), jobs }
}

/// Takes over what the other shards know, in place of what was known here before.
pub fn take(shard: &Shard, all: AllSwitches) {
    shard.spool.put(KEPT_AS, archive(&all.queues).to_vec());
    shard.spool.put(JOBS_KEPT_AS, all.jobs.join("\n").into_bytes());
    *shard.switches.borrow_mut() = all.queues;
    shard.scheduler.borrow_mut().jobs.set_paused(all.jobs);
    apply(shard);
}

/// A queue is new: it is paused where operators said so.
pub fn apply_to_queue(shard: &Shard, q: &mut Queue) {
    let switches = shard.switches.borrow();
    let of_origin = q.origin().is_some_and(|o| switches.is_paused(o, &q.via));
    q.paused = of_origin || switches.is_paused(q.destination(), &q.via);
}

/// A path is new: it is paused, and sources are left out, where operators said so.
pub fn apply_to_path(shard: &Shard, p: &mut Path) {
    let switches = shard.switches.borrow();
    p.paused = switches.is_paused(&p.destination, &p.vmta_name);
    for (of, ip, until) in &switches.disabled {
        if let (true, Ok(ip)) = (of.matches(&p.destination, &p.vmta_name), ip.parse()) {
            p.source(ip).disabled_until_ms = *until;
        }
    }
}

/// Carries out an order; answers how many queues or paths match, and at how many something
/// changed.
///
/// # Errors
/// A sentence when it cannot be kept.
pub fn obey(shard: &Rc<Shard>, order: &QueueOrder) -> Result<(u64, u64), String> {
    let now = clock::now_ms();
    let before = shard.switches.borrow().clone();
    shard.switches.borrow_mut().note(order)?;
    if *shard.switches.borrow() != before {
        shard.spool.put(KEPT_AS, archive(&*shard.switches.borrow()).to_vec());
    }
    let (queues, paths) = matching(shard, &order.of);
    let counts = match &order.action {
        QueueAction::Pause(_) => pause(shard, &queues),
        QueueAction::Mode(backoff) => {
            let changed = paths.iter().filter(|p| set_mode(shard, **p, *backoff, now)).count();
            (paths.len() as u64, changed as u64)
        }
        QueueAction::Schedule { recipients } => {
            let changed = queues.iter().filter(|q| schedule(shard, **q, *recipients, now)).count();
            (queues.len() as u64, changed as u64)
        }
        QueueAction::DisableSource { ip, until_unix_ms } => set_source(shard, &paths, ip, *until_unix_ms)?,
        QueueAction::EnableSource { ip } => set_source(shard, &paths, ip, 0)?,
    };
    for id in queues {
        shard.pump_queue(id);
        shard.pump_pullers(id);
    }
    tracing::info!(shard = shard.number, of = %order.of, action = ?order.action, matched = counts.0, changed = counts.1, "order");
    Ok(counts)
}

/// Pauses a job or lets it go on; answers how many recipients it has here, and whether that
/// changed something.
///
/// # Errors
/// A sentence when it cannot be kept.
pub fn pause_job(shard: &Rc<Shard>, job: &str, paused: bool) -> Result<(u64, u64), String> {
    if job.len() > text::JOB_NAME_MAX || !text::is_fit(job) {
        return Err(format!("a job's name has at most {} printable characters", text::JOB_NAME_MAX));
    }
    let (recipients, changed, kept) = {
        let jobs = &mut shard.scheduler.borrow_mut().jobs;
        let mut names: Vec<String> = jobs.paused().map(str::to_owned).collect();
        let was = names.iter().any(|n| n == job);
        names.retain(|n| n != job);
        if paused {
            names.push(job.to_owned());
        }
        if names.len() > PAUSED_JOBS_MAX {
            return Err(format!("{PAUSED_JOBS_MAX} jobs are paused already; resume some"));
        }
        let kept = names.join("\n");
        jobs.set_paused(names);
        let has = jobs.iter().find(|(_, j)| &*j.name == job).map_or(0, |(_, j)| j.recipients);
        (has, was != paused, kept)
    };
    if changed {
        shard.spool.put(JOBS_KEPT_AS, kept.into_bytes());
        let queues: Vec<QueueId> = shard.scheduler.borrow().queues.iter().map(|(id, _)| id).collect();
        for id in queues.into_iter().filter(|_| !paused) {
            shard.pump_queue(id);
            shard.pump_pullers(id);
        }
    }
    tracing::info!(shard = shard.number, job, paused, recipients, "job");
    Ok((recipients, u64::from(changed)))
}

/// Queues of this name, and paths: those of the virtual MTA, and those that serve a pool of
/// this name.
fn matching(shard: &Shard, of: &QueuePattern) -> (Vec<QueueId>, Vec<PathId>) {
    let s = shard.scheduler.borrow();
    let queues: Vec<QueueId> = s.queues.iter().filter(|(_, q)| q.is_meant_by(of)).map(|(id, _)| id).collect();
    let members = shard.config().members_of(&of.via);
    let named = |p: &Path| {
        of.matches(&p.destination, &p.vmta_name)
            || (members.contains(&*p.vmta_name) && of.matches(&p.destination, &of.via))
    };
    let paths = s.paths.iter().filter(|(_, p)| named(p)).map(|(id, _)| id).collect();
    (queues, paths)
}

fn pause(shard: &Rc<Shard>, queues: &[QueueId]) -> (u64, u64) {
    let s = &mut *shard.scheduler.borrow_mut();
    let mut changed = 0;
    for (id, q) in &mut s.queues {
        let before = q.paused;
        apply_to_queue(shard, q);
        changed += u64::from(before != q.paused && queues.contains(&id));
    }
    let switches = shard.switches.borrow();
    for (_, p) in &mut s.paths {
        p.paused = switches.is_paused(&p.destination, &p.vmta_name);
        // Connections that wait look at it; those that are busy end their message first.
        p.work.notify_waiters();
    }
    (queues.len() as u64, changed)
}

fn set_mode(shard: &Rc<Shard>, id: PathId, backoff: bool, now: i64) -> bool {
    let turn = {
        let mut s = shard.scheduler.borrow_mut();
        let Some(p) = s.paths.get_mut(id) else { return false };
        if backoff { p.enter_backoff(now) } else { p.leave_backoff(now) }
    };
    if let Some(turn) = turn {
        crate::deliver::mode::turned(shard, id, turn, "set queue");
    }
    turn.is_some()
}

/// Ends the wait of a queue's paths, and of its recipients where wanted.
fn schedule(shard: &Shard, id: QueueId, recipients: bool, now: i64) -> bool {
    let s = &mut *shard.scheduler.borrow_mut();
    let Some(q) = s.queues.get_mut(id) else { return false };
    let mut changed = false;
    if recipients && !q.waiting.is_empty() {
        changed = true;
    }
    if changed {
        s.promote_all(id);
    }
    let Some(q) = s.queues.get_mut(id) else { return false };
    changed |= q.retry_at_ms() > now;
    q.retry_now();
    for p in &q.pullers {
        let Some(p) = s.paths.get_mut(p.path) else { continue };
        changed |= p.retry_at_ms > now;
        p.retry_at_ms = 0;
        if p.connect_again_ms.max(p.ask_again_ms) > 0 {
            (p.connect_again_ms, p.ask_again_ms) = (0, 0);
        }
    }
    changed
}

fn set_source(shard: &Rc<Shard>, paths: &[PathId], ip: &str, until_ms: i64) -> Result<(u64, u64), String> {
    let ip: IpAddr = ip.parse().map_err(|_| format!("expected an IP address, found {ip:?}"))?;
    let mut s = shard.scheduler.borrow_mut();
    let mut changed = 0;
    for id in paths {
        let Some(p) = s.paths.get_mut(*id) else { continue };
        let known = p.sources.iter().any(|s| s.ip == ip);
        if !known && until_ms == 0 {
            continue;
        }
        let source = p.source(ip);
        changed += u64::from(source.disabled_until_ms != until_ms);
        source.disabled_until_ms = until_ms;
        // Connections that wait look at it.
        p.work.notify_waiters();
    }
    drop(s);
    // What a note of before says of the source is not so any more.
    paths.iter().for_each(|id| crate::route::paths::note_mode(shard, *id));
    paths.iter().filter(|_| until_ms > 0).for_each(|id| crate::deliver::mode::rest_without_sources(shard, *id));
    Ok((paths.len() as u64, changed))
}

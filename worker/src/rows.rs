//! Live state of this shard as operators see it.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use ipc::backoff::Mode;
use ipc::operator::{JobRow, PathRow, PoolRow, QueueRow};
use ipc::rules::Rate;

use crate::clock;
use crate::schedule::job::JobId;
use crate::schedule::{Path, Queue};
use crate::shard::Shard;

fn shown_mode(mode: Mode) -> String {
    match mode {
        Mode::Normal => "normal".into(),
        Mode::Backoff => "backoff".into(),
        Mode::Returning { step, of } => format!("normal ({step}/{of})"),
    }
}

/// `show queues`. What rolled up to one queue is one row.
pub fn queues(shard: &Shard) -> Vec<QueueRow> {
    let s = shard.scheduler.borrow();
    let now = clock::now_ms();
    let mut rows: Vec<QueueRow> = Vec::new();
    let mut rolled_up: HashMap<String, usize> = HashMap::new();
    for (_, q) in &s.queues {
        let paths: Vec<&Path> = q.pullers.iter().filter_map(|p| s.paths.get(p.path)).collect();
        let row = queue_row(shard, q, &paths, now);
        if row.recipients == 0 && !row.paused && row.connections == 0 {
            continue;
        }
        let at = q.rolled_up.as_ref().and_then(|_| rolled_up.get(&row.queue).copied());
        if let Some(sum) = at.and_then(|i| rows.get_mut(i)) {
            join(sum, row);
            continue;
        }
        if rows.len() >= ipc::limits::OPERATOR_ROWS_MAX {
            break;
        }
        if q.rolled_up.is_some() {
            rolled_up.insert(row.queue.clone(), rows.len());
        }
        rows.push(row);
    }
    rows
}

fn queue_row(shard: &Shard, q: &Queue, paths: &[&Path], now: i64) -> QueueRow {
    // The queue goes on when the first of its paths may.
    let of_paths = paths.iter().map(|p| p.retry_at_ms).min().unwrap_or(0);
    let retry = of_paths.max(q.retry_at_ms());
    let backoff = !paths.is_empty() && paths.iter().all(|p| p.mode == Mode::Backoff);
    QueueRow {
        queue: q.name(),
        destination: q.destination().as_ref().to_owned(),
        vmta: if q.of_pool { String::new() } else { q.via.as_ref().to_owned() },
        pool: q.pool().map_or_else(String::new, |p| p.as_ref().to_owned()),
        shard: shard.number,
        recipients: q.recipients,
        kbytes: q.bytes.div_ceil(1024),
        connections: paths.iter().map(|p| p.connections).sum(),
        mode: if backoff { "backoff" } else { "normal" }.into(),
        paused: q.paused || (!paths.is_empty() && paths.iter().all(|p| p.paused)),
        next_retry: if retry > now { crate::local_time(retry / 1000, "%Y-%m-%d %H:%M:%S") } else { String::new() },
        last_error: q.last_failure.as_ref().map(ToString::to_string).unwrap_or_default(),
        oldest_s: if q.recipients > 0 && q.oldest_ms < now { ((now - q.oldest_ms) / 1000) as u64 } else { 0 },
    }
}

/// Adds another domain's part of a queue. Its paths are the same.
fn join(sum: &mut QueueRow, row: QueueRow) {
    sum.recipients += row.recipients;
    sum.kbytes += row.kbytes;
    sum.oldest_s = sum.oldest_s.max(row.oldest_s);
    sum.paused &= row.paused;
    // It goes on when the first of its domains may.
    let sooner = row.next_retry.is_empty() || row.next_retry < sum.next_retry;
    if !sum.next_retry.is_empty() && sooner {
        sum.next_retry = row.next_retry;
    }
    if sum.last_error.is_empty() {
        sum.last_error = row.last_error;
    }
}

/// `show paths`
pub fn paths(shard: &Shard) -> Vec<PathRow> {
    let s = shard.scheduler.borrow();
    let rows = s.paths.iter().map(|(_, p)| {
        let limits = p.limits();
        PathRow {
            path: p.name(),
            destination: p.destination.as_ref().to_owned(),
            vmta: p.vmta_name.as_ref().to_owned(),
            shard: shard.number,
            connections: p.connections,
            mode: shown_mode(p.mode),
            health: p.health,
            max_smtp_out: limits.smtp_out as u32,
            max_msg_rate: match limits.msg_rate {
                Rate { count: 0, .. } => String::new(),
                r => format!("{}/{}s", r.count, r.per.as_secs_f64()),
            },
            max_msg_per_connection: p.rules.max_msg_per_connection as u32,
        }
    });
    rows.take(ipc::limits::OPERATOR_ROWS_MAX).collect()
}

/// `show pools`: members that have served a destination, with what they get of its mail.
pub fn pools(shard: &Shard) -> Vec<PoolRow> {
    let s = shard.scheduler.borrow();
    let now = clock::now_ms();
    let mut all = Vec::new();
    for (_, q) in s.queues.iter().filter(|(_, q)| q.of_pool) {
        let weight = |m: usize| f64::from(q.members.get(m).map_or(1, |m| m.weight));
        let share = |p: &crate::schedule::queue::Puller| {
            let trust = s.paths.get(p.path).filter(|p| p.may_send(now)).map_or(0.0, |p| f64::from(p.trust()));
            weight(p.member) * trust
        };
        let total: f64 = q.pullers.iter().map(share).sum();
        for puller in &q.pullers {
            let Some(p) = s.paths.get(puller.path) else { continue };
            all.push(PoolRow {
                pool: q.via.as_ref().to_owned(),
                destination: q.destination().as_ref().to_owned(),
                vmta: p.vmta_name.as_ref().to_owned(),
                shard: shard.number,
                recipients: q.recipients,
                weight: weight(puller.member) as u32,
                share_percent: if total > 0.0 { (share(puller) / total * 100.0).round() as u32 } else { 0 },
                health: p.health,
                probed: !p.is_trusted(),
                connections: p.connections,
                mode: shown_mode(p.mode),
                paused: p.paused || q.paused,
                last_error: p.last_failure.as_ref().map(ToString::to_string).unwrap_or_default(),
            });
        }
    }
    all.truncate(ipc::limits::OPERATOR_ROWS_MAX);
    all
}

/// `show jobs`
pub fn jobs(shard: &Shard) -> Vec<JobRow> {
    let s = shard.scheduler.borrow();
    let mut domains: HashMap<JobId, HashSet<&str>> = HashMap::new();
    for (_, q) in &s.queues {
        let waiting = q.waiting.iter().filter_map(|Reverse((_, e))| s.messages.get(e.slot as usize)).map(|m| m.job);
        for job in q.ready.iter().map(|(job, _)| job).chain(waiting) {
            domains.entry(job).or_default().insert(q.destination());
        }
    }
    let rows = s.jobs.iter().filter(|(_, j)| !j.name.is_empty()).map(|(id, j)| JobRow {
        job: j.name.as_ref().to_owned(),
        domains: domains.get(&id).map_or(0, |d| d.len() as u64),
        recipients: j.recipients,
        kbytes: j.bytes.div_ceil(1024),
        paused: j.paused,
    });
    rows.take(ipc::limits::OPERATOR_ROWS_MAX).collect()
}

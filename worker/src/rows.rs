//! Live state of this shard as operators see it.

use std::cmp::Reverse;

use ipc::backoff::Mode;
use ipc::control::Rows;
use ipc::dice::{HashMap, HashSet};
use ipc::limits::PAGE_BYTES;
use ipc::operator::{
    DisabledRow, JobRow, Listed, Listing, MemberRow, OrderRow, PathRow, PoolRow, QueueRow, WhyCause, WhyRow,
};
use ipc::queue_orders::QueuePattern;
use ipc::rules::Rate;

use crate::clock;
use crate::schedule::arena::Id;
use crate::schedule::job::{Job, JobId};
use crate::schedule::{Path, Queue};
use crate::shard::Shard;

fn shown_mode(mode: Mode) -> String {
    match mode {
        Mode::Normal => "normal".into(),
        Mode::Backoff => "backoff".into(),
        Mode::Returning { step, of } => format!("normal ({step}/{of})"),
    }
}

/// Source addresses of a path that are not used now.
fn disabled_sources(p: &Path, now_ms: i64) -> impl Iterator<Item = String> {
    p.sources.iter().filter(move |s| s.disabled_until_ms > now_ms).map(|s| s.ip.to_string())
}

/// Rows of a page as they come, and where the next page begins.
struct Page<R> {
    rows: Vec<R>,
    bytes: usize,
    next: Option<u64>,
}

impl<R> Page<R> {
    /// Goes through queues or paths in the order of their places, from one on, until the page is full.
    fn of_places<M: Copy, T>(
        all: impl Iterator<Item = (Id<M>, T)>,
        from: u64,
        rows_of: impl Fn(Id<M>, T, &mut Vec<R>),
        bytes: impl Fn(&R) -> usize,
    ) -> Page<R> {
        let all = all.map(|(id, one)| (id.place() as usize, (id, one)));
        Page::of(all, from, |_, (id, one), rows| rows_of(id, one, rows), bytes)
    }

    /// Goes through what has numbers, from one on, until the page is full.
    fn of<T>(
        all: impl Iterator<Item = (usize, T)>,
        from: u64,
        rows_of: impl Fn(usize, T, &mut Vec<R>),
        bytes: impl Fn(&R) -> usize,
    ) -> Page<R> {
        let mut page = Page { rows: Vec::new(), bytes: 0, next: None };
        for (id, one) in all.skip_while(|(id, _)| (*id as u64) < from) {
            if page.bytes >= PAGE_BYTES {
                page.next = Some(id as u64);
                break;
            }
            let before = page.rows.len();
            rows_of(id, one, &mut page.rows);
            page.bytes += page.rows.iter().skip(before).map(&bytes).sum::<usize>();
        }
        page
    }

    fn answer(self, listing: impl Fn(Vec<R>) -> Listing) -> Rows {
        Rows::Page { rows: listing(self.rows), next: self.next }
    }
}

/// A page of a listing; `from` is what the page before said, or 0.
pub fn page(shard: &Shard, of: &Listed, from: u64) -> Rows {
    let text = |t: &[&String]| t.iter().map(|t| t.len()).sum::<usize>() + 128;
    match of {
        Listed::Queues(of) => queues(shard, of, from, |r| {
            let members: usize = r.members.iter().map(|m| m.vmta.len() + m.mode.len() + 32).sum();
            let sources: usize = r.disabled_sources.iter().map(|s| s.len() + 16).sum();
            text(&[&r.queue, &r.destination, &r.vmta, &r.pool, &r.mode, &r.next_retry, &r.last_error])
                + members
                + sources
        })
        .answer(Listing::Queues),
        Listed::Paths => paths(shard, from, |r| text(&[&r.path, &r.destination, &r.vmta, &r.mode, &r.max_msg_rate]))
            .answer(Listing::Paths),
        Listed::Pools => pools(shard, from, |r| text(&[&r.pool, &r.destination, &r.vmta, &r.mode, &r.last_error]))
            .answer(Listing::Pools),
        Listed::Jobs => jobs(shard, from, |r| text(&[&r.job])).answer(Listing::Jobs),
        Listed::Disabled(of) => {
            let all = crate::disabled::rows(shard, of).into_iter().enumerate();
            let bytes = |r: &DisabledRow| text(&[&r.source, &r.queue, &r.since, &r.until, &r.why]);
            Page::of(all, from, |_, row, rows| rows.push(row), bytes).answer(Listing::Disabled)
        }
        Listed::Orders(of) => {
            let all = crate::standing_orders::rows(shard, of).into_iter().enumerate();
            let bytes = |r: &OrderRow| text(&[&r.order, &r.of, &r.source, &r.since, &r.until, &r.by, &r.taken_back_by]);
            Page::of(all, from, |_, row, rows| rows.push(row), bytes).answer(Listing::Orders)
        }
        Listed::Why(of) => {
            let cause = |c: &WhyCause| {
                let named = text(&[&c.cause, &c.path, &c.directive, &c.value, &c.origin, &c.note]);
                named + text(&[&c.until, &c.said, &c.said_at, &c.mode, &c.mode_since, &c.mode_until])
            };
            let bytes = |r: &WhyRow| {
                r.last_5_min.iter().chain(&r.now).map(cause).sum::<usize>()
                    + text(&[&r.queue, &r.domain, &r.last_reply])
            };
            let s = shard.scheduler();
            let meant = s.queues.iter().filter(|(_, q)| crate::why::is_meant(&s, q, of));
            let row = |id, q: &Queue, rows: &mut Vec<WhyRow>| rows.push(crate::why::row(shard, &s, id, q));
            Page::of_places(meant, from, row, bytes).answer(Listing::Why)
        }
    }
}

/// `show queues`: what rolled up to one queue is a row for each domain, and joined by who asked.
fn queues(shard: &Shard, of: &QueuePattern, from: u64, bytes: impl Fn(&QueueRow) -> usize) -> Page<QueueRow> {
    let s = shard.scheduler();
    let now = clock::now_ms();
    let row = |_, q: &Queue, rows: &mut Vec<QueueRow>| {
        let paths: Vec<&Path> = q.pullers.iter().filter_map(|p| s.paths.get(p.path)).collect();
        let row = queue_row(shard, q, &paths, now);
        if row.recipients > 0 || row.paused || row.connections > 0 {
            rows.push(row);
        }
    };
    Page::of_places(s.queues.iter().filter(|(_, q)| q.is_meant_by(of)), from, row, bytes)
}

fn queue_row(shard: &Shard, q: &Queue, paths: &[&Path], now: i64) -> QueueRow {
    // The queue goes on when the first of its paths may.
    let of_paths = paths.iter().map(|p| p.retry_at_ms).min().unwrap_or(0);
    let retry = of_paths.max(q.retry_at_ms());
    let mut disabled: Vec<String> = paths.iter().flat_map(|p| disabled_sources(p, now)).collect();
    disabled.sort_unstable();
    disabled.dedup();
    let member = |p: &&Path| MemberRow {
        vmta: p.vmta_name.as_ref().to_owned(),
        mode: shown_mode(p.mode),
        forced: p.forced,
        paused: p.paused,
    };
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
        forced: paths.iter().any(|p| p.forced),
        disabled_sources: disabled,
        members: paths.iter().filter(|_| q.of_pool).map(member).collect(),
        next_retry: crate::shown_if_to_come(retry, now),
        last_error: q.last_failure.as_ref().map(ToString::to_string).unwrap_or_default(),
        oldest_s: if q.recipients > 0 && q.oldest_ms < now { ((now - q.oldest_ms) / 1000) as u64 } else { 0 },
    }
}

/// `show paths`
fn paths(shard: &Shard, from: u64, bytes: impl Fn(&PathRow) -> usize) -> Page<PathRow> {
    let s = shard.scheduler();
    let now = clock::now_ms();
    let row = |_, p: &Path, rows: &mut Vec<PathRow>| {
        let limits = p.limits();
        rows.push(PathRow {
            path: p.name(),
            destination: p.destination.as_ref().to_owned(),
            vmta: p.vmta_name.as_ref().to_owned(),
            shard: shard.number,
            connections: p.connections,
            mode: shown_mode(p.mode),
            forced: p.forced,
            paused: p.paused,
            disabled_sources: disabled_sources(p, now).collect(),
            health: p.health,
            max_smtp_out: u32::try_from(limits.smtp_out).ok(),
            max_msg_rate: match limits.msg_rate {
                Rate { count: 0, .. } => String::new(),
                r => format!("{}/{}s", r.count, r.per.as_secs_f64()),
            },
            max_msg_per_connection: p.rules.max_msg_per_connection as u32,
        });
    };
    Page::of_places(s.paths.iter(), from, row, bytes)
}

/// `show pools`: members that have served a destination, with what they get of its mail.
fn pools(shard: &Shard, from: u64, bytes: impl Fn(&PoolRow) -> usize) -> Page<PoolRow> {
    let s = shard.scheduler();
    let now = clock::now_ms();
    let members = |_, q: &Queue, all: &mut Vec<PoolRow>| {
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
                forced: p.forced,
                paused: p.paused || q.paused,
                disabled_sources: disabled_sources(p, now).collect(),
                last_error: p.last_failure.as_ref().map(ToString::to_string).unwrap_or_default(),
            });
        }
    };
    Page::of_places(s.queues.iter().filter(|(_, q)| q.of_pool), from, members, bytes)
}

/// `show jobs`
fn jobs(shard: &Shard, from: u64, bytes: impl Fn(&JobRow) -> usize) -> Page<JobRow> {
    let s = shard.scheduler();
    let mut domains: HashMap<JobId, HashSet<&str>> = HashMap::default();
    for (_, q) in s.queues.iter() {
        let waiting = q.waiting.iter().filter_map(|Reverse((_, e))| s.messages.get(e.slot as usize)).map(|m| m.job);
        for job in q.ready.iter().map(|(job, _)| job).chain(waiting) {
            domains.entry(job).or_default().insert(q.destination());
        }
    }
    let row = |_, (job, j): (JobId, &Job), rows: &mut Vec<JobRow>| {
        rows.push(JobRow {
            job: j.name.as_ref().to_owned(),
            domains: domains.get(&job).map_or(0, |d| d.len() as u64),
            recipients: j.recipients,
            kbytes: j.bytes.div_ceil(1024),
            paused: j.paused,
        });
    };
    let named = s.jobs.iter().filter(|(_, j)| !j.name.is_empty()).map(|(id, j)| (id as usize, (id, j)));
    Page::of(named, from, row, bytes)
}

//! `status`, and what `show` lists: shards, queues, paths, pools, jobs, domains, virtual MTAs.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use ipc::operator::{Answer, JobRow, Listed, Listing, PathRow, PoolRow, QueueRow, Request};
use ipc::queue_orders::QueuePattern;

use super::client::{Target, ask, pages, unexpected};
use super::output::{json, print, table};
use super::state;
use crate::Failure;

/// Which queues `show queues` shows, and how.
#[derive(Debug)]
pub struct ShownQueues {
    /// Those that match.
    pub of: QueuePattern,
    /// `normal` or `backoff`.
    pub mode: Option<String>,
    /// Paused, or not.
    pub paused: Option<bool>,
    /// With open connections, or without.
    pub connected: Option<bool>,
    /// By `name`, `rcpt` or `size`.
    pub sort: String,
    /// No more than so many.
    pub max_items: Option<usize>,
}

impl ShownQueues {
    /// Every queue, the longest first.
    fn all() -> ShownQueues {
        let of = QueuePattern { destination: "*".into(), via: "*".into() };
        ShownQueues { of, mode: None, paused: None, connected: None, sort: "rcpt".into(), max_items: None }
    }

    fn takes(&self, r: &QueueRow) -> bool {
        self.mode.as_ref().is_none_or(|m| *m == r.mode)
            && self.paused.is_none_or(|p| p == r.paused)
            && self.connected.is_none_or(|c| c == (r.connections > 0))
    }

    /// The rows to be shown. What rolled up to one queue has come as a row for each domain.
    fn of_rows(&self, rows: Vec<QueueRow>) -> Vec<QueueRow> {
        let mut at: HashMap<(String, u8), usize> = HashMap::new();
        let mut all: Vec<QueueRow> = Vec::new();
        for row in rows {
            match at.entry((row.queue.clone(), row.shard)) {
                Entry::Occupied(e) => all[*e.get()].join(row),
                Entry::Vacant(e) => {
                    e.insert(all.len());
                    all.push(row);
                }
            }
        }
        all.retain(|r| self.takes(r));
        let by_name = |a: &QueueRow, b: &QueueRow| a.queue.cmp(&b.queue).then(a.shard.cmp(&b.shard));
        match self.sort.as_str() {
            "name" => all.sort_by(by_name),
            "size" => all.sort_by(|a, b| b.kbytes.cmp(&a.kbytes).then_with(|| by_name(a, b))),
            _ => all.sort_by(|a, b| b.recipients.cmp(&a.recipients).then_with(|| by_name(a, b))),
        }
        all.truncate(self.max_items.unwrap_or(usize::MAX));
        all
    }

    fn rows(&self, target: &Target) -> Result<Vec<QueueRow>, Failure> {
        let of = Listed::Queues(self.of.clone());
        pages(target, &of, |l| if let Listing::Queues(r) = l { Some(r) } else { None }).map(|r| self.of_rows(r))
    }
}

/// `status`
///
/// # Errors
/// [`Failure`]
pub fn status(target: &Target, as_json: bool) -> Result<(), Failure> {
    let Answer::Status(text) = ask(target, &Request::Status)? else { return Err(unexpected()) };
    if as_json {
        return print(format!("{text}\n").as_bytes());
    }
    let v: serde_json::Value = serde_json::from_str(&text).map_err(|e| Failure::Failed(e.to_string()))?;
    print(crate::status::as_text(&v).as_bytes())
}

/// `show shards`
///
/// # Errors
/// [`Failure`]
pub fn shards(target: &Target, as_json: bool) -> Result<(), Failure> {
    let Answer::Shards(rows) = ask(target, &Request::Shards)? else { return Err(unexpected()) };
    if as_json {
        return json(&rows);
    }
    let cells = rows.iter().map(|r| {
        vec![
            r.shard.to_string(),
            r.pid.to_string(),
            r.cpu.to_string(),
            r.state.clone(),
            r.restarts.to_string(),
            r.uptime_s.to_string(),
            (r.rss_bytes >> 20).to_string(),
            r.recipients.to_string(),
            r.connections_out.to_string(),
            r.connections_in.to_string(),
        ]
    });
    table(
        &["shard", "pid", "cpu", "state", "restarts", "uptime_s", "rss_mb", "recipients", "out", "in"],
        cells.collect(),
    )
}

/// `show queues`
///
/// # Errors
/// [`Failure`]
pub fn queues(target: &Target, shown: &ShownQueues, as_json: bool) -> Result<(), Failure> {
    let rows = shown.rows(target)?;
    if as_json {
        return json(&rows);
    }
    let cells = rows.iter().map(|r| {
        vec![
            r.queue.clone(),
            r.recipients.to_string(),
            r.kbytes.to_string(),
            r.connections.to_string(),
            r.shard.to_string(),
            state::of_queue(r),
            r.next_retry.clone(),
            r.last_error.clone(),
        ]
    });
    table(&["queue", "#rcpt", "kbytes", "conn", "shard", "mode", "retry", "last error"], cells.collect())
}

/// `show paths`
///
/// # Errors
/// [`Failure`]
pub fn paths(target: &Target, as_json: bool) -> Result<(), Failure> {
    let mut rows: Vec<PathRow> =
        pages(target, &Listed::Paths, |l| if let Listing::Paths(r) = l { Some(r) } else { None })?;
    rows.sort_by(|a, b| a.path.cmp(&b.path));
    if as_json {
        return json(&rows);
    }
    let cells = rows.iter().map(|r| {
        vec![
            r.path.clone(),
            r.shard.to_string(),
            r.connections.to_string(),
            state::cell(&r.mode, r.forced, r.paused, &r.disabled_sources),
            format!("{:.2}", r.health),
            r.max_smtp_out.map_or_else(|| "unlimited".into(), |n| n.to_string()),
            r.max_msg_rate.clone(),
        ]
    });
    table(&["path", "shard", "conn", "mode", "health", "max-smtp-out", "max-msg-rate"], cells.collect())
}

/// `show pools`
///
/// # Errors
/// [`Failure`]
pub fn pools(target: &Target, as_json: bool) -> Result<(), Failure> {
    let mut rows: Vec<PoolRow> =
        pages(target, &Listed::Pools, |l| if let Listing::Pools(r) = l { Some(r) } else { None })?;
    rows.sort_by(|a, b| (&a.pool, &a.destination, &a.vmta).cmp(&(&b.pool, &b.destination, &b.vmta)));
    if as_json {
        return json(&rows);
    }
    let cells = rows.iter().map(|r| {
        vec![
            r.pool.clone(),
            r.destination.clone(),
            r.vmta.clone(),
            r.recipients.to_string(),
            r.weight.to_string(),
            format!("{}%", r.share_percent),
            format!("{:.2}{}", r.health, if r.probed { " (probed)" } else { "" }),
            r.connections.to_string(),
            state::cell(&r.mode, r.forced, r.paused, &r.disabled_sources),
            r.last_error.clone(),
        ]
    });
    let head = ["pool", "destination", "vmta", "#rcpt", "weight", "share", "health", "conn", "mode", "last error"];
    table(&head, cells.collect())
}

/// `show jobs`
///
/// # Errors
/// [`Failure`]
pub fn jobs(target: &Target, sort: Sort, as_json: bool) -> Result<(), Failure> {
    let of_shards = pages(target, &Listed::Jobs, |l| if let Listing::Jobs(r) = l { Some(r) } else { None })?;
    let mut by_name: BTreeMap<String, JobRow> = BTreeMap::new();
    for row in of_shards {
        let of = by_name.entry(row.job.clone()).or_insert_with(|| JobRow { job: row.job, ..Default::default() });
        // A destination is in one shard, so their numbers add up.
        of.domains += row.domains;
        of.recipients += row.recipients;
        of.kbytes += row.kbytes;
        of.paused |= row.paused;
    }
    let mut rows: Vec<JobRow> = by_name.into_values().collect();
    sort.apply(&mut rows, |r| (r.recipients, r.kbytes));
    if as_json {
        return json(&rows);
    }
    let cells = rows.iter().map(|r| {
        let paused = if r.paused { "yes" } else { "" };
        vec![r.job.clone(), r.domains.to_string(), r.recipients.to_string(), r.kbytes.to_string(), paused.to_owned()]
    });
    table(&["job-id", "domains", "#rcpt", "kbytes", "paused"], cells.collect())
}

/// A row of `show domains` or `show vmtas`.
#[derive(Debug, Default, serde::Serialize)]
struct Sum {
    name: String,
    domains: usize,
    recipients: u64,
    kbytes: u64,
    connections: u32,
    /// Queues that are paused, in backoff, with modes that were set by hand.
    paused: usize,
    backoff: usize,
    forced: usize,
    disabled_sources: BTreeSet<String>,
}

/// Sums of queues by a name that each has.
fn sums(rows: &[QueueRow], name: impl Fn(&QueueRow) -> String) -> Vec<Sum> {
    let mut by_name: BTreeMap<String, (Sum, BTreeSet<&str>)> = BTreeMap::new();
    for q in rows {
        let (sum, domains) = by_name.entry(name(q)).or_default();
        domains.insert(&q.destination);
        sum.recipients += q.recipients;
        sum.kbytes += q.kbytes;
        sum.connections += q.connections;
        sum.paused += usize::from(q.paused);
        sum.backoff += usize::from(q.mode == "backoff" || q.members.iter().any(|m| m.mode == "backoff"));
        sum.forced += usize::from(q.forced);
        sum.disabled_sources.extend(q.disabled_sources.iter().cloned());
    }
    let whole = |(name, (sum, domains)): (String, (Sum, BTreeSet<&str>))| Sum { name, domains: domains.len(), ..sum };
    by_name.into_iter().map(whole).collect()
}

/// The order of a listing by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Sort {
    /// By name
    Name,
    /// The most recipients first
    Rcpt,
    /// The most kilobytes first
    Size,
}

impl Sort {
    /// Sorts rows, which come in the order of their names. `of` answers the recipients and kilobytes of a row.
    fn apply<R>(self, rows: &mut [R], of: impl Fn(&R) -> (u64, u64)) {
        match self {
            Sort::Name => {}
            Sort::Rcpt => rows.sort_by_key(|r| std::cmp::Reverse(of(r).0)),
            Sort::Size => rows.sort_by_key(|r| std::cmp::Reverse(of(r).1)),
        }
    }
}

/// `show domains`
///
/// # Errors
/// [`Failure`]
pub fn domains(target: &Target, as_json: bool) -> Result<(), Failure> {
    let rows = ShownQueues::all().rows(target)?;
    let mut all = sums(&rows, |q| q.destination.clone());
    Sort::Rcpt.apply(&mut all, |s| (s.recipients, s.kbytes));
    if as_json {
        let row = |s: &Sum| {
            serde_json::json!({ "domain": s.name, "recipients": s.recipients, "kbytes": s.kbytes,
            "connections": s.connections, "paused": s.paused, "backoff": s.backoff })
        };
        return json(&all.iter().map(row).collect::<Vec<_>>());
    }
    let cells =
        |s: &Sum| vec![s.name.clone(), s.recipients.to_string(), s.kbytes.to_string(), s.connections.to_string()];
    table(&["domain", "#rcpt", "kbytes", "conn"], all.iter().map(cells).collect())
}

/// `show vmtas`: virtual MTAs, and pools for what waits in their queues.
///
/// # Errors
/// [`Failure`]
pub fn vmtas(target: &Target, sort: Sort, as_json: bool) -> Result<(), Failure> {
    let rows = ShownQueues::all().rows(target)?;
    let mut all = sums(&rows, |q| if q.pool.is_empty() { q.vmta.clone() } else { q.pool.clone() });
    sort.apply(&mut all, |s| (s.recipients, s.kbytes));
    if as_json {
        let row = |s: &Sum| {
            serde_json::json!({ "vmta": s.name, "domains": s.domains, "recipients": s.recipients, "kbytes": s.kbytes,
            "connections": s.connections, "paused": s.paused, "backoff": s.backoff, "forced": s.forced,
            "disabled_sources": s.disabled_sources })
        };
        return json(&all.iter().map(row).collect::<Vec<_>>());
    }
    let total: u64 = all.iter().map(|s| s.recipients).sum::<u64>().max(1);
    let cells = |s: &Sum| {
        let share = format!("{}%", s.recipients * 100 / total);
        vec![
            s.name.clone(),
            s.domains.to_string(),
            s.recipients.to_string(),
            s.kbytes.to_string(),
            s.connections.to_string(),
            share,
            s.paused.to_string(),
            s.backoff.to_string(),
            s.forced.to_string(),
            s.disabled_sources.iter().cloned().collect::<Vec<_>>().join(" "),
        ]
    };
    let head = ["vmta", "domains", "#rcpt", "kbytes", "conn", "% total", "paused", "backoff", "by hand", "disabled"];
    table(&head, all.iter().map(cells).collect())
}

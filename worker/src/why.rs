//! `sluice why`: what holds a queue back, with the directive and line that say so.

use std::rc::Rc;
use std::time::Duration;

use ipc::message::{ArchivedEnvelope, MessageId};
use ipc::operator::{WhyCause, WhyRow};
use ipc::queue_orders::QueuePattern;
use ipc::rules::{ANY_CONNECTIONS, DomainKey, Rate};

use crate::clock;
use crate::deliver::connection::load;
use crate::schedule::cause::{self, Cause};
use crate::schedule::path::dns_wait;
use crate::schedule::{Path, Queue, QueueId, Scheduler};
use crate::shard::Shard;

/// What goes before a virtual MTA's own directive, see [`Path::blocked_by`].
const OF_VMTA: &str = "virtual-mta ";

/// Counts the seconds since the last time for a queue that has work.
pub fn count(s: &mut Scheduler, id: QueueId, now_ms: i64) {
    let Some(q) = s.queues.get(id).filter(|q| q.recipients > 0) else { return };
    let cause = of_queue(s, id, q, now_ms);
    if let Some(q) = s.queues.get_mut(id) {
        q.history.count(cause, now_ms);
    }
}

/// The cause of a queue is that of the path which is held up least.
fn of_queue(s: &Scheduler, id: QueueId, q: &Queue, now_ms: i64) -> Cause {
    if has_paused_jobs_only(s, q) {
        return Cause::Paused;
    }
    let of_path = |p: &crate::schedule::queue::Puller| {
        let path = s.paths.get(p.path)?;
        Some(cause::of_path(q, path, s.may_pull(id, p.path, now_ms), now_ms))
    };
    let none = if q.paused {
        Cause::Paused
    } else if q.ready.is_empty() {
        Cause::Recipients
    } else {
        Cause::Connecting
    };
    q.pullers.iter().filter_map(of_path).min().unwrap_or(none)
}

/// Mail is ready, and all of it belongs to jobs that an operator paused.
fn has_paused_jobs_only(s: &Scheduler, q: &Queue) -> bool {
    !q.ready.is_empty() && q.ready.next(|j| s.jobs.may_go(j)).is_none()
}

/// Whether a queue has work and matches, by itself or by one of its paths.
pub fn is_meant(s: &Scheduler, q: &Queue, of: &QueuePattern) -> bool {
    let path_is_meant = || {
        let mut paths = q.pullers.iter().filter_map(|p| s.paths.get(p.path));
        paths.any(|p| of.matches(&p.destination, &p.vmta_name))
    };
    q.recipients > 0 && (q.is_meant_by(of) || path_is_meant())
}

/// Rows for the queues that a message waits in.
pub async fn of_message(shard: &Rc<Shard>, id: MessageId) -> Vec<WhyRow> {
    let at_ms = i64::from_be_bytes(std::array::from_fn(|i| if i < 2 { 0 } else { id.0[i - 2] }));
    let candidates: Vec<(u32, u64)> = {
        let s = shard.scheduler.borrow();
        s.messages.iter().filter(|(_, m)| m.received_ms == at_ms).map(|(slot, m)| (slot as u32, m.key)).collect()
    };
    let mut rows = Vec::new();
    for (slot, key) in candidates {
        let Ok(content) = load(shard, slot, key).await else { continue };
        let Ok(e) = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&content.envelope) else { continue };
        if e.id.0 != id.0 {
            continue;
        }
        let s = shard.scheduler.borrow();
        let has = |q: &Queue| {
            q.ready.iter().any(|(_, e)| e.slot == slot)
                || q.waiting.iter().any(|std::cmp::Reverse((_, e))| e.slot == slot)
        };
        rows.extend(s.queues.iter().filter(|(_, q)| has(q)).map(|(id, q)| row(shard, &s, id, q)));
    }
    rows
}

/// Of late a rate over several paths could not be counted.
const NO_ROOM: &str =
    "the ledger is full of rates that count: this one has no room until the window of another is over";

fn has_no_room(shard: &Shard, directive: &str) -> bool {
    let since_ns = clock::now_ns() as i64 - 5_000_000_000;
    directive.ends_with("-rate") && shard.ledger.no_room_since(since_ns)
}

/// What holds a queue back.
pub fn row(shard: &Shard, s: &Scheduler, id: QueueId, q: &Queue) -> WhyRow {
    let now = clock::now_ms();
    let first = q.pullers.first().and_then(|p| s.paths.get(p.path));
    let explained = |cause: Cause, p: Option<&Path>| {
        let directive = p.map_or("", |p| match cause {
            Cause::SharedLimit => p.blocked_by.trim_start_matches(OF_VMTA),
            Cause::Source => p.blocked_by,
            Cause::MaxSmtpOut if !p.is_full() => "reserved-smtp-out",
            _ => cause::directive(cause, p.mode),
        });
        let value = |p: &Path| match cause {
            Cause::SharedLimit => shared_value(shard, p),
            _ => value_of(cause, p),
        };
        let of_vmta = |p: &Path| cause == Cause::SharedLimit && p.blocked_by.starts_with(OF_VMTA);
        let origin = |p: &Path| if of_vmta(p) { String::new() } else { origin_of(shard, q, p, directive) };
        let (value, origin) = p.map_or_else(Default::default, |p| (value(p), origin(p)));
        WhyCause {
            cause: word(cause).to_owned(),
            percent: 0,
            path: p.map(Path::name).unwrap_or_default(),
            directive: directive.to_owned(),
            value,
            origin,
            detail: match cause == Cause::SharedLimit && has_no_room(shard, directive) {
                true => NO_ROOM.to_owned(),
                false => detail(cause, q, p, now),
            },
        }
    };
    let shares = q.history.shares().into_iter().map(|(c, percent)| WhyCause { percent, ..explained(c, first) });
    let paths = q.pullers.iter().filter_map(|p| {
        let path = s.paths.get(p.path)?;
        let c = match has_paused_jobs_only(s, q) {
            true => Cause::Paused,
            false => cause::of_path(q, path, s.may_pull(id, p.path, now), now),
        };
        Some(explained(c, Some(path)))
    });
    WhyRow {
        queue: q.name(),
        shard: shard.number,
        recipients: q.recipients,
        oldest_s: if q.oldest_ms < now { ((now - q.oldest_ms) / 1000) as u64 } else { 0 },
        last_5_min: shares.collect(),
        now: of_disk(shard).into_iter().chain(paths).collect(),
    }
}

/// What the disk holds up: delivery, when what comes of it cannot be written, or new mail.
fn of_disk(shard: &Shard) -> Option<WhyCause> {
    let held = shard.spool.holds_deliveries();
    let refusal = shard.spool.refusal();
    if !held && refusal.is_none() {
        return None;
    }
    let since = |r: &spool::Refusal| crate::local_time(r.since_unix_ms / 1000, "%Y-%m-%d %H:%M:%S");
    let reason = refusal.map_or_else(String::new, |r| format!(" since {}: {}", since(&r), r.why));
    let what = if held { "nothing is delivered, and new mail is refused," } else { "new mail is refused" };
    Some(WhyCause {
        cause: "disk".to_owned(),
        percent: 0,
        path: String::new(),
        directive: String::new(),
        value: String::new(),
        origin: String::new(),
        detail: format!("{what}{reason}"),
    })
}

fn word(c: Cause) -> &'static str {
    match c {
        Cause::Receiver => "receiver",
        Cause::Connecting => "connecting",
        Cause::MaxSmtpOut => "connections",
        Cause::MaxMsgRate | Cause::MaxMsgPerHour => "message rate",
        Cause::MaxDataVolumeRate => "volume rate",
        Cause::MaxConnectRate => "connection rate",
        Cause::ConnectPause => "pause between connections",
        Cause::SharedLimit => "shared limit",
        Cause::Source => "source addresses",
        Cause::Retry => "retry",
        Cause::RetryDns => "DNS",
        Cause::Recipients => "recipients wait",
        Cause::Pool => "other members first",
        Cause::Paused => "paused",
        Cause::NoVirtualMta => "no virtual MTA",
        Cause::Moving => "moving",
    }
}

fn shown_rate(r: Rate) -> String {
    let s = r.per.as_secs();
    let window = match s {
        1 => "s".to_owned(),
        60 => "m".to_owned(),
        3600 => "h".to_owned(),
        86_400 => "d".to_owned(),
        s => format!("{s}s"),
    };
    format!("{}/{window}", r.count)
}

fn shown_connections(n: u64) -> String {
    if n == ANY_CONNECTIONS { "unlimited".into() } else { n.to_string() }
}

fn value_of(c: Cause, p: &Path) -> String {
    let l = p.limits();
    match c {
        Cause::MaxSmtpOut if !p.is_full() => p.rules.reserved_smtp_out.to_string(),
        Cause::MaxSmtpOut => shown_connections(l.smtp_out),
        Cause::MaxMsgRate => shown_rate(l.msg_rate),
        Cause::MaxMsgPerHour => l.msg_per_hour.count.to_string(),
        Cause::MaxDataVolumeRate => shown_rate(l.data_volume_rate),
        Cause::MaxConnectRate => shown_rate(l.connect_rate),
        Cause::ConnectPause => format!("{}s", p.rules.smtp_out_rampup_interval.as_secs()),
        Cause::Recipients => format!("{}s", p.rules.retry_recipients_after.as_secs()),
        Cause::Retry => {
            p.rules.retry_waits(p.mode).iter().map(|d| format!("{}s", d.as_secs())).collect::<Vec<_>>().join(",")
        }
        Cause::RetryDns => format!("{}s", dns_wait(&p.rules, &p.rules.retry_waits(p.mode), p.retry_step).as_secs()),
        _ => String::new(),
    }
}

/// The value of the limit over several paths that a path waits for.
fn shared_value(shard: &Shard, p: &Path) -> String {
    let config = shard.config();
    let rate = |(count, per_ms): (u64, u64)| shown_rate(Rate { count, per: Duration::from_millis(per_ms) });
    let vmta = config.snapshot.get().vmtas.get(p.vmta as usize);
    match (p.blocked_by, vmta) {
        ("total-max-smtp-out", _) => config.global.total_max_smtp_out.to_string(),
        ("destination-max-smtp-out", _) => p.rules.destination_max_smtp_out.to_string(),
        ("destination-max-msg-rate", _) => shown_rate(p.rules.destination_max_msg_rate),
        ("max-smtp-out", _) => shown_connections(p.limits().smtp_out),
        ("virtual-mta max-smtp-out", Some(v)) => v.max_smtp_out.to_string(),
        ("virtual-mta max-smtp-msg-rate", Some(v)) => rate((v.msg_rate.0.to_native(), v.msg_rate.1.to_native())),
        ("virtual-mta max-smtp-data-volume-rate", Some(v)) => {
            rate((v.data_volume_rate.0.to_native(), v.data_volume_rate.1.to_native()))
        }
        _ => String::new(),
    }
}

fn detail(c: Cause, q: &Queue, p: Option<&Path>, now_ms: i64) -> String {
    let time = |at_ms: i64| crate::local_time(clock::wall_ms(at_ms) / 1000, "%Y-%m-%d %H:%M:%S");
    let Some(p) = p else { return String::new() };
    let failure = || p.last_failure.as_ref().map(|f| format!(": {f}")).unwrap_or_default();
    let backoff = match p.mode {
        ipc::backoff::Mode::Backoff => {
            format!(", in backoff since {} until {}", time(p.mode_since_ms), time(p.mode_until_ms))
        }
        ipc::backoff::Mode::Returning { step, of } => {
            format!(", limits rise after backoff: step {} of {of}", step + 1)
        }
        _ => String::new(),
    };
    let text = match c {
        Cause::Receiver => format!("{} connections, {} of them idle", p.connections, p.idle),
        Cause::Connecting => format!("{} connections are being opened{}", p.connecting, failure()),
        Cause::Retry | Cause::RetryDns => format!("until {}{}", time(p.retry_at_ms), failure()),
        Cause::Recipients => {
            let due = q.waiting.peek().map(|std::cmp::Reverse((due, _))| i64::from(*due) * 1000);
            let last = q.last_failure.as_ref().map(|f| format!(": {f}")).unwrap_or_default();
            due.map_or_else(String::new, |at| format!("the first until {}{last}", time(at)))
        }
        Cause::Source => {
            let off = p.sources.iter().filter(|s| s.disabled_until_ms > now_ms).map(|s| s.ip.to_string());
            match off.collect::<Vec<_>>().join(", ") {
                off if off.is_empty() && p.blocked_by.is_empty() => {
                    "each is at a source-ip-max-… limit of its own".to_owned()
                }
                off if off.is_empty() => "of each source address".to_owned(),
                off => format!("disabled: {off}"),
            }
        }
        Cause::SharedLimit if p.blocked_by.starts_with(OF_VMTA) => {
            format!("of virtual MTA {} over all destinations", p.vmta_name)
        }
        Cause::SharedLimit if p.blocked_by.starts_with("destination-") => "over all virtual MTAs".to_owned(),
        Cause::SharedLimit if p.blocked_by == "total-max-smtp-out" => "over all paths".to_owned(),
        Cause::SharedLimit => "over all shards".to_owned(),
        Cause::ConnectPause => format!("until {}{}", time(p.connect_again_ms), failure()),
        Cause::Pool => format!("health {:.2}{}", p.health, failure()),
        Cause::Paused if !q.paused && !p.paused => "its jobs, by an operator; `sluice resume job`".to_owned(),
        Cause::Paused => "by an operator; `sluice resume queue`".to_owned(),
        _ => String::new(),
    };
    match text.is_empty() {
        true => backoff.trim_start_matches(", ").to_owned(),
        false => text + &backoff,
    }
}

/// File and line of the directive's value in force; empty where it is the default.
fn origin_of(shard: &Shard, q: &Queue, p: &Path, directive: &str) -> String {
    let Some(key) = DomainKey::named(directive) else { return String::new() };
    let config = shard.config();
    let s = config.snapshot.get();
    let mut found = None;
    s.layers.each(q.destination(), s.pool_of(p.vmta), p.vmta, |_, _, _, x| {
        if x.key.to_native() == key as u16 {
            found = Some((x.file.to_native(), x.line.to_native()));
        }
    });
    found.map_or_else(String::new, |(file, line)| {
        format!("{}:{line}", s.files.get(usize::from(file)).map_or("", |f| f.as_str()))
    })
}

//! `sluice why`: what holds a queue back, with the directive and line that say so.

mod blame;

use std::rc::Rc;

use ipc::backoff::Mode;
use ipc::message::MessageId;
use ipc::operator::{WhyCause, WhyRow};
use ipc::queue_orders::QueuePattern;
use ipc::rules::DomainKey;

use self::blame::Blame;
use crate::clock;
use crate::one_message::{Whose, found};
use crate::schedule::cause::Cause;
use crate::schedule::held_up;
use crate::schedule::limit::{Holder, Limit};
use crate::schedule::{Path, Queue, QueueId};
use crate::shard::{Scheduler, Shard};

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
    let mut rows = Vec::new();
    for record in found(shard, id).await {
        let Whose::Own(slot) = record.whose else { continue };
        let s = shard.scheduler();
        let has = |q: &Queue| q.entries().any(|e| e.slot == slot);
        rows.extend(s.queues.iter().filter(|(_, q)| has(q)).map(|(id, q)| row(shard, &s, id, q)));
    }
    rows
}

/// Of late a rate over several paths could not be counted.
const NO_ROOM: &str =
    "the ledger is full of rates that count: this one has no room until the window of another is over";

fn has_no_room(shard: &Shard, p: &Path) -> bool {
    let since_ns = clock::now_ns() as i64 - 5_000_000_000;
    p.blocked_by.is_some_and(Limit::is_rate) && shard.ledger.no_room_since(since_ns)
}

/// What holds a queue back.
pub fn row(shard: &Shard, s: &Scheduler, id: QueueId, q: &Queue) -> WhyRow {
    let now = clock::now_ms();
    let of = Of { shard, q, now };
    let first = q.pullers.first().and_then(|p| s.paths.get(p.path));
    let shares = q.history.shares().into_iter().map(|(c, percent)| WhyCause { percent, ..of.late(c, first) });
    let mut causes: Vec<WhyCause> = of_disk(shard).into_iter().collect();
    let paths = q.pullers.iter().filter_map(|p| Some((p.path, s.paths.get(p.path)?)));
    causes.extend(paths.map(|(path_id, path)| {
        let cause = match s.has_paused_jobs_only(q) {
            true => Cause::Paused,
            false => held_up::of_path(q, path, s.may_pull(id, path_id, now), now),
        };
        of.path(cause, path)
    }));
    if q.pullers.is_empty() {
        causes.push(of.queue(s.cause_of(id, q, now)));
    }
    WhyRow {
        queue: q.name(),
        domain: q.origin().map_or_else(String::new, |o| ipc::message::shown_domain(o)),
        shard: shard.number,
        recipients: q.recipients,
        oldest_s: if q.oldest_ms < now { ((now - q.oldest_ms) / 1000) as u64 } else { 0 },
        last_reply: q.last_failure.as_ref().map(ToString::to_string).unwrap_or_default(),
        last_5_min: shares.collect(),
        now: causes,
    }
}

/// What the disk holds up: delivery, when what comes of it cannot be written, or new mail.
fn of_disk(shard: &Shard) -> Option<WhyCause> {
    let held = shard.spool.holds_deliveries();
    let refusal = shard.spool.refusal();
    if !held && refusal.is_none() {
        return None;
    }
    let since = |r: &spool::Refusal| crate::shown_time(clock::wall_ms(r.since_ms(clock::now_ms())));
    let reason = refusal.map_or_else(String::new, |r| format!(" since {}: {}", since(&r), r.why));
    let what = if held { "nothing is delivered, and new mail is refused," } else { "new mail is refused" };
    Some(WhyCause { cause: "disk".to_owned(), note: format!("{what}{reason}"), ..Default::default() })
}

/// The limit that holds the path up is its virtual MTA's.
fn is_of_vmta(cause: Cause, p: &Path) -> bool {
    cause == Cause::SharedLimit && p.blocked_by.is_some_and(|l| l.holder() == Holder::VirtualMta)
}

/// A queue whose causes are put into words.
struct Of<'a> {
    shard: &'a Shard,
    q: &'a Queue,
    now: i64,
}

impl Of<'_> {
    /// A cause of the last minutes.
    fn late(&self, cause: Cause, p: Option<&Path>) -> WhyCause {
        let of_path = p.and_then(|p| blame::of_late(self.shard, p, cause));
        let of_rules = || blame::own(&self.q.rules, cause, Mode::Normal);
        let blame = if p.is_some() { of_path } else { of_rules() };
        let of_vmta = p.is_some_and(|p| is_of_vmta(cause, p));
        let c = self.named(cause, p.map(|p| p.vmta), blame, of_vmta);
        WhyCause { path: p.map(Path::name).unwrap_or_default(), ..c }
    }

    /// What holds the queue back that no path has pulled from yet.
    fn queue(&self, cause: Cause) -> WhyCause {
        let vmta = self.q.members.first().map(|m| m.vmta);
        let c = self.named(cause, vmta, blame::own(&self.q.rules, cause, Mode::Normal), false);
        self.by_windows(cause, WhyCause { until: self.until(cause, None), said: self.said(cause, None), ..c })
    }

    /// The same where the first of those who wait does so for a window.
    fn by_windows(&self, cause: Cause, c: WhyCause) -> WhyCause {
        let first = self.q.waiting.peek().map(|std::cmp::Reverse((_, e))| *e).filter(|_| cause == Cause::Recipients);
        let s = self.shard.scheduler();
        let message = first.filter(|e| e.attempts == 0).and_then(|e| s.messages.get(e.slot as usize));
        if message.is_none_or(|m| m.windows_end_s == 0) {
            return c;
        }
        let of_nothing = WhyCause { said: String::new(), value: String::new(), origin: String::new(), ..c };
        let note = "for the windows that their x-schedule names".to_owned();
        WhyCause { directive: "process-x-schedule".to_owned(), is_default: false, note, ..of_nothing }
    }

    /// What holds a path up now.
    fn path(&self, cause: Cause, p: &Path) -> WhyCause {
        let c = self.named(cause, Some(p.vmta), blame::now(self.shard, p, cause, self.now), is_of_vmta(cause, p));
        let note = match cause == Cause::SharedLimit && has_no_room(self.shard, p) {
            true => NO_ROOM.to_owned(),
            false => note(cause, self.q, p, self.now),
        };
        let (mode, mode_until) = match p.mode {
            Mode::Normal => (String::new(), String::new()),
            Mode::Backoff => ("backoff".to_owned(), crate::shown_if_to_come(p.mode_until_ms, self.now)),
            Mode::Returning { step, of } => {
                (format!("limits rise after backoff: step {} of {of}", step + 1), String::new())
            }
        };
        let since = p.mode == Mode::Backoff && p.mode_since_ms > 0;
        let of_path = WhyCause {
            path: p.name(),
            note,
            until: self.until(cause, Some(p)),
            said: self.said(cause, Some(p)),
            said_at: self.said_at(cause, p),
            mode,
            mode_since: if since { crate::shown_time(clock::wall_ms(p.mode_since_ms)) } else { String::new() },
            mode_until,
            connections: p.connections,
            idle: p.idle,
            connecting: p.connecting,
            ..c
        };
        self.by_windows(cause, of_path)
    }

    fn named(&self, cause: Cause, vmta: Option<u32>, blame: Option<Blame>, of_vmta: bool) -> WhyCause {
        let Blame { directive, value } = blame.unwrap_or_default();
        let key = DomainKey::named(directive).filter(|_| !of_vmta);
        let origin = key.zip(vmta).and_then(|(k, v)| self.origin_of(v, k)).unwrap_or_default();
        WhyCause {
            cause: word(cause).to_owned(),
            directive: directive.to_owned(),
            value,
            is_default: key.is_some() && origin.is_empty(),
            origin,
            ..Default::default()
        }
    }

    /// When the cause ends by itself.
    fn until(&self, cause: Cause, p: Option<&Path>) -> String {
        let due = || self.q.waiting.peek().map_or(0, |std::cmp::Reverse((due, _))| i64::from(*due) * 1000);
        let of_path = |p: &Path| {
            let (l, w) = (p.limits(), &p.paces);
            let ready = |pace: &crate::schedule::rate::Pace, rate| pace.ready_at_ns(rate) / 1_000_000;
            match cause {
                Cause::Retry | Cause::RetryDns => p.retry_at_ms.max(self.q.retry_at_ms()),
                Cause::MaxMsgRate => ready(&w.msg, l.msg_rate),
                Cause::MaxMsgPerHour => ready(&w.hour, l.msg_per_hour),
                Cause::MaxDataVolumeRate => ready(&w.volume, l.data_volume_rate),
                Cause::MaxConnectRate => ready(&w.connect, l.connect_rate),
                Cause::ConnectPause => p.connect_again_ms,
                // Others are asked for again and again until somebody gives one back.
                Cause::SharedLimit if p.blocked_by.is_some_and(Limit::is_rate) => p.blocked_until_ms,
                Cause::Source => p.sources.iter().map(|s| p.source_ready_ms(s.ip)).min().unwrap_or(0),
                Cause::Pool => p.pulled_ms + p.rules.pool_probe_interval.as_millis().min(1 << 50) as i64,
                _ => 0,
            }
        };
        let at = match cause {
            Cause::Recipients => due(),
            _ => p.map_or(0, of_path),
        };
        crate::shown_if_to_come(at, self.now)
    }

    /// When that failed which the cause is about; of a path alone this is known.
    fn said_at(&self, cause: Cause, p: &Path) -> String {
        let of_domain = self.q.retry_at_ms() > self.now;
        let is_of_path = match cause {
            Cause::Retry | Cause::RetryDns => !of_domain,
            Cause::Connecting | Cause::ConnectPause | Cause::Pool => true,
            _ => false,
        };
        match is_of_path && p.failed_s > 0 && p.last_failure.is_some() {
            true => crate::shown_time(clock::wall_ms(i64::from(p.failed_s) * 1000)),
            false => String::new(),
        }
    }

    /// What failed last, of that which the cause is about.
    fn said(&self, cause: Cause, p: Option<&Path>) -> String {
        let of_domain = self.q.retry_at_ms() > self.now;
        let of_path = || p.and_then(|p| p.last_failure.clone());
        let last = match cause {
            Cause::Recipients => self.q.last_failure.clone(),
            Cause::Retry | Cause::RetryDns if of_domain => self.q.last_failure.clone(),
            Cause::Retry | Cause::RetryDns | Cause::Connecting | Cause::ConnectPause | Cause::Pool => of_path(),
            _ => None,
        };
        last.map(|f| f.to_string()).unwrap_or_default()
    }

    /// File and line of a directive's value in force; `None` where it is the default.
    fn origin_of(&self, vmta: u32, key: DomainKey) -> Option<String> {
        let config = self.shard.config();
        let s = config.snapshot.get();
        let mut found = None;
        s.layers.each(self.q.destination(), s.pool_of(vmta), vmta, |_, _, _, x| {
            if x.key.to_native() == key as u16 {
                found = Some((x.file.to_native(), x.line.to_native()));
            }
        });
        found.map(|(file, line)| format!("{}:{line}", s.files.get(usize::from(file)).map_or("", |f| f.as_str())))
    }
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

/// What is to be said of a cause besides.
fn note(c: Cause, q: &Queue, p: &Path, now_ms: i64) -> String {
    match c {
        Cause::Source => {
            let off = p.sources.iter().filter(|s| s.disabled_until_ms > now_ms).map(|s| s.ip.to_string());
            match off.collect::<Vec<_>>().join(", ") {
                off if off.is_empty() => "of each source address".to_owned(),
                off => format!("disabled: {off}"),
            }
        }
        Cause::SharedLimit => match p.blocked_by.map(Limit::holder) {
            Some(Holder::VirtualMta) => format!("of virtual MTA {} over all destinations", p.vmta_name),
            Some(Holder::Destination) => "over all virtual MTAs".to_owned(),
            Some(Holder::Server) => "over all paths".to_owned(),
            Some(Holder::Host) => "of the receiver's host".to_owned(),
            Some(Holder::Path | Holder::Source) | None => "over all shards".to_owned(),
        },
        Cause::Pool => "receivers refused or deferred much of what this member sent".to_owned(),
        Cause::Paused if !q.paused && !p.paused => "its jobs, by an operator; `sluice resume job`".to_owned(),
        Cause::Paused => "by an operator; `sluice resume queue`".to_owned(),
        _ => String::new(),
    }
}

//! `sluice why`: what shards say holds their queues back, put together: equal causes are one line, however many paths, domains
//! and shards they hold up.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ipc::message::MessageId;
use ipc::operator::{Answer, Listed, Listing, Request, WhyCause, WhyRow};
use ipc::queue_orders::QueuePattern;

use super::client::{Target, ask, pages, unexpected};
use super::output::{json, print};
use crate::Failure;

/// Names that are written out of many.
const NAMED: usize = 3;

/// Asks, and prints what holds queues back.
///
/// # Errors
/// [`Failure`]; also when nothing waits there.
pub fn why(target: &Target, what: String, as_json: bool) -> Result<(), Failure> {
    let rows: Vec<WhyRow> = match what.parse::<MessageId>() {
        Ok(id) => {
            let Answer::Why(rows) = ask(target, &Request::WhyMessage(id.0))? else { return Err(unexpected()) };
            rows
        }
        Err(_) => {
            let of = QueuePattern::parse(&what);
            let of = of.map_err(|e| Failure::Wrong(format!("{e}, or the id of a message")))?;
            pages(target, &Listed::Why(of), |l| if let Listing::Why(r) = l { Some(r) } else { None })?
        }
    };
    let queues = Held::of(rows);
    if as_json {
        return json(&queues);
    }
    if queues.is_empty() {
        return Err(Failure::Failed(format!("nothing waits in {what}")));
    }
    print(as_text(&queues).as_bytes())
}

/// A queue, with all its shards and all domains that rolled up into it.
#[derive(Debug, Default, serde::Serialize)]
struct Held {
    queue: String,
    shard: u8,
    shards: BTreeSet<u8>,
    recipients: u64,
    oldest_s: u64,
    /// Domains that rolled up into it and wait there, with their recipients.
    domains: BTreeMap<String, u64>,
    last_replies: BTreeMap<String, u64>,
    last_5_min: Vec<Cause>,
    now: Vec<Cause>,
}

/// A cause, with all that it holds up.
#[derive(Debug, Clone, serde::Serialize)]
struct Cause {
    #[serde(flatten)]
    of: WhyCause,
    paths: BTreeSet<String>,
    /// The last of them is held up until then; `until` is the first.
    until_last: String,
    /// What was said last, and of how many paths.
    replies: BTreeMap<String, u64>,
    /// The same in a sentence.
    detail: String,
}

impl Cause {
    fn new(mut of: WhyCause) -> Cause {
        let paths = BTreeSet::from_iter(Some(of.path.clone()).filter(|p| !p.is_empty()));
        let said = std::mem::take(&mut of.said);
        let replies = BTreeMap::from_iter(Some((said, 1)).filter(|(said, _)| !said.is_empty()));
        Cause { until_last: of.until.clone(), of, paths, replies, detail: String::new() }
    }

    /// The same holds them up.
    fn is_like(&self, o: &Cause) -> bool {
        self.names() == o.names()
    }

    fn names(&self) -> [&String; 6] {
        let c = &self.of;
        [&c.cause, &c.directive, &c.value, &c.origin, &c.note, &c.mode]
    }

    fn key(&self) -> [String; 6] {
        self.names().map(String::clone)
    }

    fn join(&mut self, o: Cause) {
        self.paths.extend(o.paths);
        let times = [(&mut self.of.until, &o.of.until), (&mut self.of.mode_since, &o.of.mode_since)];
        for (at, other) in times {
            if at.is_empty() || (!other.is_empty() && other < at) {
                at.clone_from(other);
            }
        }
        let latest = [
            (&mut self.until_last, o.until_last),
            (&mut self.of.mode_until, o.of.mode_until),
            (&mut self.of.said_at, o.of.said_at),
        ];
        for (at, other) in latest {
            *at = std::mem::take(at).max(other);
        }
        self.of.connections += o.of.connections;
        self.of.idle += o.of.idle;
        self.of.connecting += o.of.connecting;
        o.replies.into_iter().for_each(|(r, n)| *self.replies.entry(r).or_default() += n);
    }

    /// Since when, until when, what the receiver said.
    fn detail(&self) -> String {
        let c = &self.of;
        let mut parts = Vec::new();
        match c.cause.as_str() {
            "receiver" => parts.push(format!("{} connections, {} of them idle", c.connections, c.idle)),
            "connecting" => parts.push(format!("{} connections are being opened", c.connecting)),
            _ => {}
        }
        parts.extend(Some(c.note.clone()).filter(|n| !n.is_empty()));
        if !c.until.is_empty() {
            let first = if c.cause == "recipients wait" { "the first until" } else { "until" };
            let last =
                if self.until_last > c.until { format!(", the last until {}", self.until_last) } else { String::new() };
            parts.push(format!("{first} {}{last}", c.until));
        }
        match c.mode.as_str() {
            "" => {}
            "backoff" => {
                let since = if c.mode_since.is_empty() { String::new() } else { format!(" since {}", c.mode_since) };
                let until = if c.mode_until.is_empty() { String::new() } else { format!(" until {}", c.mode_until) };
                parts.push(format!("in backoff{since}{until}"));
            }
            step => parts.push(step.to_owned()),
        }
        let said = match (most_said(&self.replies), c.said_at.as_str()) {
            (said, at) if said.is_empty() || at.is_empty() => said,
            // Of several that are alike this is the last.
            (said, at) => format!("{said}, at {at}"),
        };
        let text = parts.join(", ");
        match (text.is_empty(), said.is_empty()) {
            (_, true) => text,
            (true, false) => said,
            (false, false) => format!("{text}: {said}"),
        }
    }
}

/// What was said most often, and that other things were said.
fn most_said(replies: &BTreeMap<String, u64>) -> String {
    let Some((most, _)) = replies.iter().max_by(|a, b| a.1.cmp(b.1).then_with(|| b.0.cmp(a.0))) else {
        return String::new();
    };
    match replies.len() - 1 {
        0 => most.clone(),
        1 => format!("{most} (and another reply)"),
        n => format!("{most} (and {n} other replies)"),
    }
}

/// Adds causes to those that are known already.
fn join(all: &mut Vec<Cause>, more: impl IntoIterator<Item = Cause>) {
    for c in more {
        match all.iter_mut().find(|known| known.is_like(&c)) {
            Some(known) => known.join(c),
            None => all.push(c),
        }
    }
}

/// Shares of the time, each with the weight of its queue's recipients.
#[derive(Debug, Default)]
struct Shares(Vec<(Cause, u64)>, u64);

impl Shares {
    fn add(&mut self, causes: Vec<WhyCause>, recipients: u64) {
        let weight = recipients.max(1);
        self.1 += weight;
        for c in causes {
            let points = u64::from(c.percent) * weight;
            let c = Cause::new(c);
            match self.0.iter_mut().find(|(known, _)| known.is_like(&c)) {
                Some((known, sum)) => {
                    *sum += points;
                    known.join(c);
                }
                None => self.0.push((c, points)),
            }
        }
    }

    /// The longest first.
    fn take(self) -> Vec<Cause> {
        let Shares(mut all, weight) = self;
        all.sort_by_key(|(_, points)| std::cmp::Reverse(*points));
        let percent = |points: u64| (points / weight.max(1)) as u32;
        let of = |(mut c, points): (Cause, u64)| {
            c.of.percent = percent(points);
            c
        };
        all.into_iter().map(of).filter(|c| c.of.percent > 0).collect()
    }
}

impl Held {
    /// Puts rows together, the queue with the most recipients first.
    fn of(rows: Vec<WhyRow>) -> Vec<Held> {
        let mut queues: BTreeMap<String, (Held, Shares)> = BTreeMap::new();
        for row in rows {
            let (held, shares) = queues.entry(row.queue.clone()).or_insert_with(|| {
                (Held { queue: row.queue.clone(), shard: row.shard, ..Default::default() }, Shares::default())
            });
            held.shards.insert(row.shard);
            held.recipients += row.recipients;
            held.oldest_s = held.oldest_s.max(row.oldest_s);
            if !row.domain.is_empty() {
                *held.domains.entry(row.domain).or_default() += row.recipients;
            }
            if !row.last_reply.is_empty() {
                *held.last_replies.entry(row.last_reply).or_default() += 1;
            }
            shares.add(row.last_5_min, row.recipients);
            join(&mut held.now, row.now.into_iter().map(Cause::new));
        }
        let whole = |(_, (mut held, shares)): (String, (Held, Shares))| {
            held.last_5_min = shares.take();
            for c in held.now.iter_mut().chain(&mut held.last_5_min) {
                c.detail = c.detail();
            }
            held
        };
        let mut all: Vec<Held> = queues.into_iter().map(whole).collect();
        all.sort_by(|a, b| b.recipients.cmp(&a.recipients).then_with(|| a.queue.cmp(&b.queue)));
        all
    }

    /// Equal for queues that the same holds up.
    fn causes(&self) -> Vec<[String; 6]> {
        let mut all: Vec<[String; 6]> = self.now.iter().map(Cause::key).collect();
        all.sort_unstable();
        all
    }
}

/// Queues that the same holds up, told of together.
#[derive(Debug)]
struct Group<'a> {
    queues: Vec<&'a Held>,
}

fn as_text(queues: &[Held]) -> String {
    let mut groups: Vec<Group<'_>> = Vec::new();
    let mut places: HashMap<Vec<[String; 6]>, usize> = HashMap::new();
    for q in queues {
        let at = *places.entry(q.causes()).or_insert_with(|| {
            groups.push(Group { queues: Vec::new() });
            groups.len() - 1
        });
        groups[at].queues.push(q);
    }
    groups.iter().map(Group::text).collect()
}

fn counted(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Some names, and how many there are besides.
fn named<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let n = names.len();
    let some: Vec<&str> = names.take(NAMED).collect();
    let more = if n > NAMED { format!(" and {} more", n - NAMED) } else { String::new() };
    format!("{}{more}", some.join(", "))
}

impl Group<'_> {
    fn text(&self) -> String {
        let [first, more @ ..] = &self.queues[..] else { return String::new() };
        let recipients: u64 = self.queues.iter().map(|q| q.recipients).sum();
        let oldest = self.queues.iter().map(|q| q.oldest_s).max().unwrap_or(0);
        let shards: BTreeSet<u8> = self.queues.iter().flat_map(|q| &q.shards).copied().collect();
        let in_shards = if shards.len() > 1 { format!(" in {} shards", shards.len()) } else { String::new() };
        let of = counted(recipients, "recipient");
        let head = match (more, first.domains.len()) {
            ([], 0) => format!("{}: {of}{in_shards}", first.queue),
            ([], 1) => {
                let domain = first.domains.keys().next().map_or("", String::as_str);
                format!("{domain}, which rolls up into {}: {of}{in_shards}", first.queue)
            }
            ([], n) => {
                let mut domains: Vec<(&String, &u64)> = first.domains.iter().collect();
                domains.sort_by_key(|(name, n)| (std::cmp::Reverse(**n), *name));
                let all: Vec<String> = domains.iter().map(|(name, n)| format!("{name} {n}")).collect();
                let all = named(all.iter().map(String::as_str));
                format!("{}: {of} of {n} domains that roll up into it ({all}){in_shards}", first.queue)
            }
            (more, _) => {
                let all = named(self.queues.iter().map(|q| q.queue.as_str()));
                format!("{} queues ({all}): {of}{in_shards}", more.len() + 1)
            }
        };
        let mut text = format!("{head}, the oldest for {oldest} s\n");
        let mut shares = Shares::default();
        for q in &self.queues {
            let causes = q.last_5_min.iter().map(|c| c.of.clone()).collect();
            shares.add(causes, q.recipients);
        }
        for c in shares.take() {
            text.push_str(&format!("  {} % of the last 5 min: {}\n", c.of.percent, reason(&c.of)));
        }
        let mut now = Vec::new();
        self.queues.iter().for_each(|q| join(&mut now, q.now.iter().cloned()));
        let mut told = String::new();
        for c in &now {
            let detail = c.detail();
            let detail = if detail.is_empty() { detail } else { format!(", {detail}") };
            let paths = named(c.paths.iter().map(String::as_str));
            let who = match c.paths.len() {
                0 => String::new(),
                1 => format!(" {paths}"),
                n => format!(" {n} paths ({paths})"),
            };
            told.push_str(&format!("  now{who}: {}{detail}\n", reason(&c.of)));
        }
        let mut replies: BTreeMap<String, u64> = BTreeMap::new();
        for (r, n) in self.queues.iter().flat_map(|q| &q.last_replies) {
            *replies.entry(r.clone()).or_default() += n;
        }
        if !replies.is_empty() && !replies.keys().any(|r| told.contains(r.as_str())) {
            told.push_str(&format!("  last reply: {}\n", most_said(&replies)));
        }
        text + &told
    }
}

/// `message rate: max-msg-rate 120/m (etc/x.conf:41)`
fn reason(c: &WhyCause) -> String {
    let origin = match c.origin.as_str() {
        "" if c.is_default => " (default)".to_owned(),
        "" => String::new(),
        origin => format!(" ({origin})"),
    };
    let by = [c.directive.as_str(), &c.value].into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>().join(" ");
    if by.is_empty() { c.cause.clone() } else { format!("{}: {by}{origin}", c.cause) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause(cause: &str, directive: &str, path: &str, until: &str, said: &str) -> WhyCause {
        WhyCause {
            cause: cause.into(),
            directive: directive.into(),
            value: "1h".into(),
            origin: "a.conf:3".into(),
            path: path.into(),
            until: until.into(),
            said: said.into(),
            ..Default::default()
        }
    }

    fn row(queue: &str, domain: &str, shard: u8, recipients: u64, now: Vec<WhyCause>) -> WhyRow {
        let last_5_min = now.first().map(|c| WhyCause { percent: 50, ..c.clone() }).into_iter().collect();
        WhyRow { queue: queue.into(), domain: domain.into(), shard, recipients, now, last_5_min, ..Default::default() }
    }

    #[test]
    fn equal_causes_are_one_line_and_the_times_span_all() {
        let rows = (1..=5).map(|n| {
            let path = format!("d.test/v{n}");
            let said = if n == 2 { "\"450 b\"" } else { "\"451 a\"" };
            row(
                "d.test/p",
                "",
                n % 2,
                10,
                vec![cause("retry", "retry-after", &path, &format!("2026-01-01 0{n}:00"), said)],
            )
        });
        let held = Held::of(rows.collect());
        assert_eq!(held.len(), 1);
        assert_eq!(
            as_text(&held),
            "d.test/p: 50 recipients in 2 shards, the oldest for 0 s\n  50 % of the last 5 min: retry: retry-after 1h (a.conf:3)\n  \
             now 5 paths (d.test/v1, d.test/v2, d.test/v3 and 2 more): retry: retry-after 1h (a.conf:3), until 2026-01-01 01:00, \
             the last until 2026-01-01 05:00: \"451 a\" (and another reply)\n"
        );
    }

    #[test]
    fn queues_that_differ_are_told_of_apart() {
        let retry = |p: &str| vec![cause("retry", "retry-after", p, "", "")];
        let rows = vec![
            row("a.test/v", "", 0, 1, retry("a.test/v")),
            row("b.test/v", "", 1, 2, retry("b.test/v")),
            row("c.test/v", "", 1, 3, vec![cause("paused", "", "c.test/v", "", "")]),
        ];
        let text = as_text(&Held::of(rows));
        assert!(text.contains("2 queues (b.test/v, a.test/v): 3 recipients in 2 shards"), "{text}");
        assert!(text.contains("c.test/v: 3 recipients, ") && text.matches("  now ").count() == 2, "{text}");
    }

    #[test]
    fn members_of_a_roll_up_are_named_the_largest_first_and_a_last_reply_that_no_cause_tells() {
        let rows = (0..5).map(|n| WhyRow {
            last_reply: "\"451 later\"".into(),
            ..row(
                "e.rollup/v",
                &format!("t{n}.test"),
                0,
                n + 1,
                vec![cause("message rate", "max-msg-rate", "e.rollup/v", "", "")],
            )
        });
        let text = as_text(&Held::of(rows.collect()));
        let head =
            "e.rollup/v: 15 recipients of 5 domains that roll up into it (t4.test 5, t3.test 4, t2.test 3 and 2 more)";
        assert!(text.starts_with(head) && text.ends_with("  last reply: \"451 later\"\n"), "{text}");
    }
}

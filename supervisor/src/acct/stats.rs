//! `pmtastats`: statistics from accounting files.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::tz::TimeZone;

use super::moment::{Clock, Moment, day};
use super::options::{Detail, Options, RCPT_DOMAIN, Statistic};
use super::reader::{self, Record, Told, Wanted};
use super::reason::{self, About};
use super::report::{Align::Left, Align::Right, Report, hours, number, percent, tenths};
use super::tally::{Outcomes, Tally};
use super::traffic::{Rates, Times, WINDOWS};
use crate::Failure;
use crate::operator::output::print;

/// Names that a count is kept of, in one report; split ones share them.
const NAMES_MAX: usize = 200_000;
/// Names that each of many reports may have.
const NAMES_MIN: usize = 200;
/// Bytes of a name.
const NAME_BYTES_MAX: usize = 400;
/// Stands between the parts of a name.
const SEPARATOR: u8 = 0;

/// Prints the report.
///
/// # Errors
/// [`Failure`]
pub fn run(asked: &Options) -> Result<(), Failure> {
    let mut told = Told::default();
    let mut read = Reading::new(asked);
    let done = reader::read(&asked.files, &mut told, &mut |r| {
        read.record(r);
        Ok(true)
    });
    done.map_err(|e| Failure::Failed(e.to_string()))?;
    print(read.report(asked).as_bytes())?;
    if told.failed { Err(Failure::Failed("not every file could be read".into())) } else { Ok(()) }
}

/// Which counts the statistics need.
#[derive(Debug, Default, Clone, Copy)]
struct Needs {
    domains: bool,
    domain_reasons: bool,
    categories: bool,
    times: bool,
    vmtas: bool,
    vmta_dates: bool,
    vmta_hours: bool,
    vmta_domains: bool,
    vmta_domain_dates: bool,
    rates: bool,
}

/// Places of the columns in [`Wanted`].
struct Of {
    kind: usize,
    logged: usize,
    queued: usize,
    orig: usize,
    rcpt: usize,
    status: usize,
    diagnostic: usize,
    host: usize,
    category: usize,
    source: usize,
    size: usize,
    vmta: usize,
}

struct Reading {
    wanted: Wanted,
    of: Of,
    filters: Vec<(Option<usize>, String)>,
    not_before: Option<i64>,
    split: Option<usize>,
    split_limit: usize,
    needs: Needs,
    clock: Clock,
    rates: Rates,
    all: Scope,
    by_value: BTreeMap<String, Scope>,
    /// Values beyond the limit.
    others: Option<Scope>,
}

/// First and last.
#[derive(Debug, Default, Clone, Copy)]
struct Span(Option<(i64, i64)>);

impl Span {
    fn add(&mut self, at: i64) {
        let (first, last) = self.0.unwrap_or((at, at));
        self.0 = Some((first.min(at), last.max(at)));
    }

    fn cells(self) -> [String; 2] {
        self.0.map_or(["n/a".into(), "n/a".into()], |(first, last)| [Moment::shown(first), Moment::shown(last)])
    }
}

const HOURS: [&str; 24] = [
    "00", "01", "02", "03", "04", "05", "06", "07", "08", "09", "10", "11", "12", "13", "14", "15", "16", "17", "18",
    "19", "20", "21", "22", "23",
];

/// What one report counts.
#[derive(Debug)]
struct Scope {
    received: Span,
    logged: Span,
    total: Outcomes,
    bytes: u64,
    size: Option<(u64, u64)>,
    times: Times,
    domains: Tally<Outcomes>,
    domain_reasons: Tally<u64>,
    categories: Tally<Outcomes>,
    category_reasons: Tally<u64>,
    category_domains: Tally<u64>,
    category_both: Tally<u64>,
    vmtas: Tally<Outcomes>,
    vmta_dates: Tally<Outcomes>,
    vmta_hours: Tally<Outcomes>,
    vmta_domains: Tally<Outcomes>,
    vmta_domain_dates: Tally<Outcomes>,
    /// The day that was named last, and its name.
    day: (i64, String),
}

impl Scope {
    fn new(names_max: usize) -> Scope {
        Scope {
            received: Span::default(),
            logged: Span::default(),
            total: Outcomes::default(),
            bytes: 0,
            size: None,
            times: Times::default(),
            domains: Tally::new(names_max),
            domain_reasons: Tally::new(names_max),
            categories: Tally::new(names_max),
            category_reasons: Tally::new(names_max),
            category_domains: Tally::new(names_max),
            category_both: Tally::new(names_max),
            vmtas: Tally::new(names_max),
            vmta_dates: Tally::new(names_max),
            vmta_hours: Tally::new(names_max),
            vmta_domains: Tally::new(names_max),
            vmta_domain_dates: Tally::new(names_max),
            day: (0, day(0)),
        }
    }
}

/// One delivery or bounce.
struct Event<'a> {
    outcome: Outcomes,
    logged: Option<Moment>,
    queued: Option<Moment>,
    size: Option<u64>,
    domain: &'a str,
    vmta: &'a str,
    source: &'a str,
    category: &'a str,
    reason: &'a str,
}

impl Reading {
    fn new(asked: &Options) -> Reading {
        let mut wanted = Wanted::new(Vec::new());
        let mut column = |name: &str| wanted.add(name);
        let of = Of {
            kind: column("type"),
            logged: column("timeLogged"),
            queued: column("timeQueued"),
            orig: column("orig"),
            rcpt: column("rcpt"),
            status: column("dsnStatus"),
            diagnostic: column("dsnDiag"),
            host: column("dsnMta"),
            category: column("bounceCat"),
            source: column("dlvSourceIp"),
            size: column("dlvSize"),
            vmta: column("vmta"),
        };
        let filters = asked.filters.iter().map(|(name, start)| {
            let at = (name != RCPT_DOMAIN).then(|| wanted.add(name));
            (at, start.to_lowercase())
        });
        let filters = filters.collect();
        let split = asked.split.as_deref().map(|name| wanted.add(name));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
        let mut needs = Needs::default();
        for s in &asked.statistics {
            match s {
                Statistic::BounceCategories { .. } => needs.categories = true,
                Statistic::DeliveryTimes => needs.times = true,
                Statistic::MessageCounts => {}
                Statistic::TopBounce { .. } => (needs.domains, needs.domain_reasons) = (true, true),
                Statistic::TopDomains { .. } => needs.domains = true,
                Statistic::TopRates => needs.rates = true,
                Statistic::VmtaSummary { by_date: false } => needs.vmtas = true,
                Statistic::VmtaSummary { by_date: true } => needs.vmta_dates = true,
                Statistic::VmtaTimeBreakdown { .. } => needs.vmta_hours = true,
                Statistic::VmtaTopBounce { by_date: false, .. } => needs.vmta_domains = true,
                Statistic::VmtaTopBounce { by_date: true, .. } => needs.vmta_domain_dates = true,
            }
        }
        Reading {
            of,
            filters,
            not_before: asked.last.map(|seconds| now - seconds),
            split,
            split_limit: asked.split_limit,
            needs,
            clock: Clock::new(TimeZone::system()),
            rates: Rates::default(),
            all: Scope::new(NAMES_MAX),
            by_value: BTreeMap::new(),
            others: None,
            wanted,
        }
    }

    fn record(&mut self, r: &Record) {
        self.wanted.bind(r);
        let value = |n: usize| self.wanted.value(n, r);
        let kind = value(self.of.kind);
        let is = |name: &str| kind.eq_ignore_ascii_case(name.as_bytes());
        let (delivered, bounced, received) = (is("d"), is("b"), is("r"));
        if !delivered && !bounced && !received {
            return;
        }
        let rcpt = value(self.of.rcpt);
        let rcpt = String::from_utf8_lossy(&rcpt);
        let domain = lower(rcpt.rsplit_once('@').map_or("", |(_, d)| d));
        let passes = self.filters.iter().all(|(at, start)| match at {
            Some(at) => begins_so(&String::from_utf8_lossy(&value(*at)), start),
            None => domain.starts_with(start),
        });
        let logged = self.clock.read(&value(self.of.logged));
        let is_old = self.not_before.is_some_and(|from| logged.is_none_or(|m| m.unix < from));
        if !passes || is_old {
            return;
        }
        let queued = if received { logged } else { self.clock.read(&value(self.of.queued)) };
        let status = value(self.of.status);
        let (source, vmta, category) = (value(self.of.source), value(self.of.vmta), value(self.of.category));
        let size = value(self.of.size);
        let seconds = match (logged, queued) {
            (Some(l), Some(q)) if delivered => (l.unix - q.unix).max(0) as u64,
            _ => 0,
        };
        let outcome = Outcomes {
            delivered: delivered.into(),
            five: (bounced && status.first() != Some(&b'4')).into(),
            four: (bounced && status.first() == Some(&b'4')).into(),
            seconds,
            seconds_max: seconds,
        };
        let reason = match bounced && (self.needs.categories || self.needs.domain_reasons) {
            true => {
                let (orig, diagnostic, host) = (value(self.of.orig), value(self.of.diagnostic), value(self.of.host));
                let (orig, host) = (String::from_utf8_lossy(&orig), String::from_utf8_lossy(&host));
                let host = host.split_once(" (").map_or(host.as_ref(), |(name, _)| name);
                let source_ip = String::from_utf8_lossy(&source);
                let about = About { rcpt: &rcpt, orig: &orig, source_ip: &source_ip, host };
                reason::of(&String::from_utf8_lossy(&status), &String::from_utf8_lossy(&diagnostic), about)
            }
            false => String::new(),
        };
        let event = Event {
            outcome,
            logged,
            queued,
            size: std::str::from_utf8(&size).ok().and_then(|s| s.parse().ok()),
            domain: &domain,
            vmta: &String::from_utf8_lossy(&vmta),
            source: &String::from_utf8_lossy(&source),
            category: &String::from_utf8_lossy(if category.is_empty() { b"other" } else { &category }),
            reason: &reason,
        };
        if self.needs.rates
            && !received
            && let Some(m) = logged
        {
            self.rates.add(m.wall, event.size.unwrap_or(0));
        }
        let scope = match self.split {
            None => &mut self.all,
            Some(at) => {
                let value = self.wanted.value(at, r);
                let value = shortened(&String::from_utf8_lossy(&value)).to_owned();
                let names = (NAMES_MAX / self.split_limit).max(NAMES_MIN);
                if self.by_value.contains_key(&value) || self.by_value.len() < self.split_limit {
                    self.by_value.entry(value).or_insert_with(|| Scope::new(names))
                } else {
                    self.others.get_or_insert_with(|| Scope::new(NAMES_MAX))
                }
            }
        };
        scope.add(&event, self.needs);
    }

    fn report(mut self, asked: &Options) -> String {
        let mut out = Report::new(asked.html);
        match &asked.split {
            None => self.all.report(asked, &mut out),
            Some(column) => {
                for (value, scope) in &self.by_value {
                    out.title(&format!("{column}: {}", if value.is_empty() { "(none)" } else { value }));
                    scope.report(asked, &mut out);
                }
                if let Some(scope) = &self.others {
                    out.title(&format!("{column}: all others (--splitLimit {})", asked.split_limit));
                    scope.report(asked, &mut out);
                }
            }
        }
        // These are of all records, whatever reports are split by.
        if self.needs.rates {
            rates(&mut self.rates, &mut out);
        }
        out.end()
    }
}

fn lower(text: &str) -> Cow<'_, str> {
    match text.bytes().any(|b| b.is_ascii_uppercase()) || !text.is_ascii() {
        true => text.to_lowercase().into(),
        false => text.into(),
    }
}

fn begins_so(text: &str, start: &str) -> bool {
    match text.get(..start.len()) {
        Some(begin) if text.is_ascii() => begin.eq_ignore_ascii_case(start),
        _ => text.to_lowercase().starts_with(start),
    }
}

fn shortened(text: &str) -> &str {
    &text[..text.floor_char_boundary(NAME_BYTES_MAX)]
}

/// A name of several parts.
fn name(parts: &[&str]) -> Vec<u8> {
    let mut all = Vec::with_capacity(parts.iter().map(|p| p.len() + 1).sum());
    for (n, p) in parts.iter().enumerate() {
        if n > 0 {
            all.push(SEPARATOR);
        }
        all.extend_from_slice(shortened(p).as_bytes());
    }
    all
}

/// The parts of a name.
fn parts<const N: usize>(name: &[u8]) -> [String; N] {
    let mut all = name.split(|b| *b == SEPARATOR).map(|p| shown(&String::from_utf8_lossy(p)));
    std::array::from_fn(|_| all.next().unwrap_or_default())
}

/// For a terminal.
fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl Scope {
    fn add(&mut self, e: &Event, needs: Needs) {
        if let Some(m) = e.queued {
            self.received.add(m.wall);
        }
        if e.outcome.recipients() == 0 {
            return;
        }
        if let Some(m) = e.logged {
            self.logged.add(m.wall);
        }
        self.total += e.outcome;
        if e.outcome.delivered > 0 {
            if let Some(size) = e.size {
                let (least, most) = self.size.unwrap_or((size, size));
                self.size = Some((least.min(size), most.max(size)));
                self.bytes += size;
            }
            if needs.times {
                self.times.add(e.outcome.seconds);
            }
        }
        if needs.domains {
            self.domains.add(&name(&[e.domain]), e.outcome);
        }
        if e.outcome.bounced() > 0 {
            if needs.domain_reasons {
                self.domain_reasons.add(&name(&[e.domain, e.reason]), 1);
            }
            if needs.categories {
                self.categories.add(&name(&[e.category]), e.outcome);
                self.category_reasons.add(&name(&[e.category, e.reason]), 1);
                self.category_domains.add(&name(&[e.category, e.domain]), 1);
                self.category_both.add(&name(&[e.category, e.domain, e.reason]), 1);
            }
        }
        if needs.vmtas {
            self.vmtas.add(&name(&[e.vmta, e.source]), e.outcome);
        }
        if needs.vmta_domains {
            self.vmta_domains.add(&name(&[e.vmta, e.source, e.domain]), e.outcome);
        }
        if !needs.vmta_dates && !needs.vmta_hours && !needs.vmta_domain_dates {
            return;
        }
        let wall = e.logged.map_or(0, |m| m.wall);
        let days = wall.div_euclid(86_400);
        if self.day.0 != days {
            self.day = (days, day(days));
        }
        let date = &self.day.1;
        if needs.vmta_dates {
            self.vmta_dates.add(&name(&[e.vmta, e.source, date]), e.outcome);
        }
        if needs.vmta_hours {
            let hour = HOURS[(wall.rem_euclid(86_400) / 3600) as usize];
            self.vmta_hours.add(&name(&[e.vmta, e.source, date, hour]), e.outcome);
        }
        if needs.vmta_domain_dates {
            self.vmta_domain_dates.add(&name(&[e.vmta, e.source, date, e.domain]), e.outcome);
        }
    }

    fn report(&self, asked: &Options, out: &mut Report) {
        out.subheading("Time Frame:");
        let row = |label: &str, span: Span| {
            let [first, last] = span.cells();
            vec![label.to_owned(), first, last]
        };
        let rows = [row("received", self.received), row("delivered/bounced", self.logged)];
        out.table(20, &[("", Left), ("first", Left), ("last", Left)], &rows);
        for s in &asked.statistics {
            match s {
                Statistic::BounceCategories { categories, detail, by_dsn, by_domain, by_both } => {
                    self.bounce_categories(*categories, detail, [*by_dsn, *by_domain, *by_both], out);
                }
                Statistic::DeliveryTimes => self.delivery_times(out),
                Statistic::MessageCounts => self.message_counts(out),
                Statistic::TopBounce { domains, codes } => self.top_bounce(*domains, *codes, out),
                Statistic::TopDomains { domains, times } => self.top_domains(*domains, *times, out),
                Statistic::TopRates => {}
                Statistic::VmtaSummary { by_date } => self.vmta_summary(*by_date, out),
                Statistic::VmtaTimeBreakdown { hourly } => self.vmta_time_breakdown(*hourly, out),
                Statistic::VmtaTopBounce { domains, by_date } => self.vmta_top_bounce(*domains, *by_date, out),
            }
        }
    }

    fn bounce_categories(&self, top: usize, detail: &Detail, by: [usize; 3], out: &mut Report) {
        out.heading("Total Bounce Breakdown By Category:");
        let total = self.categories.total();
        out.subheading(&format!("Bounces (across {} categories):", number(self.categories.len() as u64)));
        let bounces = |o: &Outcomes| [o.bounced(), o.five, o.four].map(number).to_vec();
        let heads = [("total bounced", Right), ("5.X.X bounces", Right), ("4.X.X bounces", Right)];
        out.table(3, &heads, &[bounces(&total)]);
        let sorted = self.categories.top(usize::MAX, Outcomes::bounced);
        let rows: Vec<Vec<String>> = sorted
            .iter()
            .take(top)
            .map(|(k, o)| {
                let [category] = parts(k);
                vec![number(o.bounced()), percent(o.bounced(), total.bounced()), category]
            })
            .collect();
        out.table(3, &[("bounced", Right), ("%bounced", Right), ("bounce category", Left)], &rows);
        let detailed = sorted.iter().enumerate().filter(|(n, (k, _))| match detail {
            Detail::All => true,
            Detail::Top(top) => n < top,
            Detail::Named(named) => k.eq_ignore_ascii_case(named.as_bytes()),
        });
        for (_, (category, outcomes)) in detailed {
            self.category(category, outcomes, by, out);
        }
    }

    fn category(&self, category: &[u8], outcomes: &Outcomes, by: [usize; 3], out: &mut Report) {
        let [label] = parts(category);
        out.heading(&format!("Bounce Category Detail ({label})"));
        let row = vec![label, number(outcomes.bounced()), number(outcomes.five), number(outcomes.four)];
        let heads =
            [("bounce category", Left), ("total bounced", Right), ("5.X.X bounces", Right), ("4.X.X bounces", Right)];
        out.table(3, &heads, &[row]);
        let share = |n: u64| percent(n, outcomes.bounced());
        let reasons = below(&self.category_reasons, category, by[0]);
        out.subheading("Sorted By DSN Code (Reason)");
        let rows: Vec<Vec<String>> =
            reasons.iter().map(|(k, n)| vec![number(*n), share(*n), parts::<1>(k).concat()]).collect();
        out.table(3, &[("bounced", Right), ("% in category", Right), ("dsn code (reason)", Left)], &rows);
        out.subheading("Sorted By Domain");
        let domains = below(&self.category_domains, category, by[1]);
        let rows: Vec<Vec<String>> =
            domains.iter().map(|(k, n)| vec![parts::<1>(k).concat(), number(*n), share(*n)]).collect();
        out.table(3, &[("domain", Left), ("bounced", Right), ("% in category", Right)], &rows);
        out.subheading("Sorted By DSN Code (Reason) By Domain");
        let both = below(&self.category_both, category, by[2]);
        let rows: Vec<Vec<String>> = both
            .iter()
            .map(|(k, n)| {
                let [domain, reason] = parts(k);
                vec![domain, number(*n), share(*n), reason]
            })
            .collect();
        let heads = [("domain", Left), ("bounced", Right), ("% in category", Right), ("dsn code (reason)", Left)];
        out.table(3, &heads, &rows);
        rest(self.category_both.others, out);
    }

    fn delivery_times(&self, out: &mut Report) {
        out.heading("Delivery Times And Numbers (total queue time):");
        out.subheading("Delivery times per percentage of recipients (successful deliveries only):");
        let all = self.times.count();
        let rows: Vec<Vec<String>> = [50, 60, 70, 80, 90, 95, 96, 97, 98, 99, 100]
            .iter()
            .map(|share| {
                let n = all * share / 100;
                let (average, slowest) = self.times.fastest(n);
                vec![number(n), hours(average), hours(slowest), format!("{share}%")]
            })
            .collect();
        out.table(39, &[("recipients", Right), ("avg. time", Right), ("max. time", Right), ("%rcpt.", Right)], &rows);
        let row = |label: &str, n: u64| vec![label.to_owned(), stars(n, all), number(n), percent(n, all)];
        out.subheading("Deliveries per time increment (successful deliveries only):");
        let mut before = 0;
        let mut rows: Vec<Vec<String>> = Vec::new();
        for (limit, label, _) in INCREMENTS {
            let within = self.times.within(limit);
            rows.push(row(label, within - before));
            before = within;
        }
        rows.push(row("after 12 hours", all - before));
        let heads =
            |first: &'static str| [(first, Left), ("histogram", Left), ("recipients", Right), ("%rcpt.", Right)];
        out.table(15, &heads("interval (between)"), &rows);
        out.subheading("Cumulative deliveries per time increment (successful deliveries only):");
        let mut rows: Vec<Vec<String>> =
            INCREMENTS.iter().map(|(limit, _, label)| row(label, self.times.within(*limit))).collect();
        rows.push(row("after 12 hours", all));
        out.table(16, &heads("interval"), &rows);
    }

    fn message_counts(&self, out: &mut Report) {
        out.heading("Global Message Counts And Sizes:");
        out.subheading("Message counts:");
        let volume = kilobytes(self.bytes);
        let rows = [
            vec!["deliveries".into(), number(self.total.delivered), volume.clone()],
            vec!["bounces".into(), number(self.total.bounced()), String::new()],
            vec!["total".into(), number(self.total.recipients()), volume],
        ];
        out.table(44, &[("", Left), ("recipients", Right), ("volume", Right)], &rows);
        out.subheading("Message sizes:");
        let (least, most) = self.size.unwrap_or_default();
        let average = self.bytes / self.total.delivered.max(1);
        let row = [least, average, most].map(kilobytes).to_vec();
        out.table(48, &[("min. size", Right), ("avg. size", Right), ("max. size", Right)], &[row]);
    }

    fn top_bounce(&self, top: usize, codes: usize, out: &mut Report) {
        out.heading("Top Bounce Domain Breakdowns:");
        let heads = [
            ("domain", Right),
            ("recipients", Right),
            ("total bounced", Right),
            ("5.X.X bounces", Right),
            ("4.X.X bounces", Right),
        ];
        let row = |k: &[u8], o: &Outcomes| {
            let figures = [o.recipients(), o.bounced(), o.five, o.four].map(number);
            std::iter::once(parts::<1>(k).concat()).chain(figures).collect::<Vec<String>>()
        };
        let domains = self.domains.top(top, Outcomes::bounced);
        let rows: Vec<Vec<String>> = domains.iter().map(|(k, o)| row(k, o)).collect();
        out.table(3, &heads, &rows);
        for (domain, outcomes) in &domains {
            out.subheading(&parts::<1>(domain).concat());
            out.table(12, &heads, &[row(domain, outcomes)]);
            let reasons = below(&self.domain_reasons, domain, codes);
            let share = |n: u64| percent(n, outcomes.bounced());
            let rows: Vec<Vec<String>> =
                reasons.iter().map(|(k, n)| vec![number(*n), share(*n), parts::<1>(k).concat()]).collect();
            out.table(3, &[("bounced", Right), ("%bounced", Right), ("dsn code (reason)", Left)], &rows);
        }
        rest(self.domain_reasons.others, out);
    }

    fn top_domains(&self, top: usize, times: bool, out: &mut Report) {
        out.heading("Top Domains Breakdown:");
        let all = self.domains.total().recipients();
        let average = |o: &Outcomes| o.seconds.checked_div(o.delivered).unwrap_or(0);
        let mut table = |title: &str, rank: &dyn Fn(&Outcomes) -> u64| {
            out.subheading(title);
            let rows = self.domains.top(top, rank).into_iter().map(|(k, o)| {
                let time = |seconds: u64| if o.delivered > 0 { hours(seconds) } else { "n/a".into() };
                let share = percent(o.recipients(), all);
                let [domain] = parts(k);
                vec![domain, number(o.recipients()), number(o.bounced()), time(average(&o)), time(o.seconds_max), share]
            });
            let heads = [
                ("domain", Right),
                ("recipients", Right),
                ("bounced", Right),
                ("avg. time", Right),
                ("max. time", Right),
                ("%rcpt.", Right),
            ];
            out.table(3, &heads, &rows.collect::<Vec<_>>());
        };
        table("Domains with largest number of queued recipients:", &Outcomes::recipients);
        table("Domains with highest number of bounces:", &Outcomes::bounced);
        if times {
            table("Domains with highest average delivery times:", &average);
        }
        rest(self.domains.others.recipients(), out);
    }

    fn vmta_summary(&self, by_date: bool, out: &mut Report) {
        out.heading("VirtualMTA Traffic Summary:");
        let tally = if by_date { &self.vmta_dates } else { &self.vmtas };
        let mut heads = vec![("VirtualMTA", Left), ("IP address", Left)];
        heads.extend(by_date.then_some(("Date", Left)));
        heads.extend(OUTCOMES);
        let mut rows: Vec<Vec<String>> = Vec::new();
        for (k, o) in tally.top(usize::MAX, Outcomes::recipients) {
            let [vmta, ip, date] = parts(k);
            let mut row = vec![vmta, ip];
            row.extend(by_date.then_some(date));
            row.extend(outcomes(&o));
            rows.push(row);
        }
        let mut total = vec!["Total".to_owned(), String::new()];
        total.extend(by_date.then(String::new));
        total.extend(outcomes(&tally.total()));
        rows.push(total);
        out.table(3, &heads, &rows);
        rest(tally.others.recipients(), out);
    }

    fn vmta_time_breakdown(&self, hourly: bool, out: &mut Report) {
        out.heading("VirtualMTA Traffic Breakdown By Time:");
        let mut days: BTreeMap<(String, String), BTreeMap<String, [Outcomes; 24]>> = BTreeMap::new();
        for (k, o) in self.vmta_hours.sorted() {
            let [vmta, ip, date, hour] = parts(k);
            let hours = days.entry((vmta, ip)).or_default().entry(date).or_default();
            hours[hour.parse::<usize>().unwrap_or(0).min(23)] += o;
        }
        let sum = |hours: &[Outcomes; 24]| {
            let mut all = Outcomes::default();
            hours.iter().for_each(|h| all += *h);
            all
        };
        for ((vmta, ip), days) in &days {
            out.subheading(&format!("VirtualMTA: {vmta}, IP Address: {ip}"));
            out.remark("Daily Breakdown:");
            let row = |label: String, o: &Outcomes| -> Vec<String> { [label].into_iter().chain(outcomes(o)).collect() };
            let rows: Vec<Vec<String>> = days.iter().map(|(date, hours)| row(date.clone(), &sum(hours))).collect();
            let heads = |first: &'static str| [(first, Left)].into_iter().chain(OUTCOMES).collect::<Vec<_>>();
            out.table(3, &heads("Date"), &rows);
            for (date, hours) in days.iter().filter(|_| hourly) {
                out.remark(&format!("Hourly Breakdown, {date}:"));
                let interval = |n: usize| format!("{n:02}:00 - {n:02}:59");
                let rows: Vec<Vec<String>> = hours.iter().enumerate().map(|(n, o)| row(interval(n), o)).collect();
                out.table(3, &heads("Interval"), &rows);
            }
        }
        rest(self.vmta_hours.others.recipients(), out);
    }

    fn vmta_top_bounce(&self, top: usize, by_date: bool, out: &mut Report) {
        out.heading("VirtualMTA Top Bounce Domains:");
        let tally = if by_date { &self.vmta_domain_dates } else { &self.vmta_domains };
        let mut groups: BTreeMap<[String; 3], Vec<(String, Outcomes)>> = BTreeMap::new();
        for (k, o) in tally.top(usize::MAX, Outcomes::bounced) {
            let (group, domain) = match by_date {
                true => {
                    let [vmta, ip, date, domain] = parts(k);
                    ([vmta, ip, date], domain)
                }
                false => {
                    let [vmta, ip, domain] = parts(k);
                    ([vmta, ip, String::new()], domain)
                }
            };
            let domains = groups.entry(group).or_default();
            if domains.len() < top {
                domains.push((domain, o));
            }
        }
        for ([vmta, ip, date], domains) in &groups {
            let on = if by_date { format!(", Date: {date}") } else { String::new() };
            out.subheading(&format!("VirtualMTA: {vmta}, IP Address: {ip}{on}"));
            let rows: Vec<Vec<String>> =
                domains.iter().map(|(d, o)| [d.clone()].into_iter().chain(outcomes(o)).collect()).collect();
            let heads: Vec<_> = [("Domain", Left)].into_iter().chain(OUTCOMES).collect();
            out.table(3, &heads, &rows);
        }
        rest(tally.others.recipients(), out);
    }
}

const OUTCOMES: [super::report::Column; 4] =
    [("Recipients", Right), ("Delivered", Right), ("Bounced", Right), ("Bounced%", Right)];

fn outcomes(o: &Outcomes) -> [String; 4] {
    let share = percent(o.bounced(), o.recipients());
    [number(o.recipients()), number(o.delivered), number(o.bounced()), share]
}

/// The most frequent names that begin with a part, without it.
fn below<'a>(tally: &'a Tally<u64>, part: &[u8], n: usize) -> Vec<(&'a [u8], u64)> {
    tally.top_of(n, part, SEPARATOR)
}

/// What is not told by name.
fn rest(n: u64, out: &mut Report) {
    if n > 0 {
        out.remark(&format!("{} recipients under rarer names are not shown by name.", number(n)));
    }
}

fn kilobytes(bytes: u64) -> String {
    format!("{} kb", tenths(bytes * 10 / 1024))
}

fn stars(part: u64, whole: u64) -> String {
    // As many of 23 as the percentage has that is shown.
    let thousandths = (u128::from(part) * 2000 / u128::from(whole.max(1))).div_ceil(2) as usize;
    "*".repeat(thousandths * 23 / 1000)
}

/// Seconds, between which times that is, and within which time.
const INCREMENTS: [(u64, &str, &str); 16] = [
    (5, " 0 -  5 seconds", "within 5 seconds"),
    (30, " 6 - 30 seconds", "within 30 seconds"),
    (60, "31 - 60 seconds", "within 1 minute"),
    (120, " 1 -  2 minutes", "within 2 minutes"),
    (300, " 2 -  5 minutes", "within 5 minutes"),
    (600, " 5 - 10 minutes", "within 10 minutes"),
    (1800, "10 - 30 minutes", "within 30 minutes"),
    (3600, "30 - 60 minutes", "within 1 hour"),
    (7200, " 1 -  2 hours", "within 2 hours"),
    (10_800, " 2 -  3 hours", "within 3 hours"),
    (14_400, " 3 -  4 hours", "within 4 hours"),
    (18_000, " 4 -  5 hours", "within 5 hours"),
    (21_600, " 5 -  6 hours", "within 6 hours"),
    (28_800, " 6 -  8 hours", "within 8 hours"),
    (36_000, " 8 - 10 hours", "within 10 hours"),
    (43_200, "10 - 12 hours", "within 12 hours"),
];

fn rates(rates: &mut Rates, out: &mut Report) {
    out.heading("Top Rates:");
    let (by_recipients, by_bytes) = rates.busiest();
    let windows = || WINDOWS.iter().enumerate();
    out.subheading("Top recipient delivery rates:");
    let rows: Vec<Vec<String>> = windows()
        .map(|(n, (seconds, label))| {
            let b = by_recipients[n];
            let a_minute = b.recipients * 60 / *seconds as u64;
            vec![(*label).to_owned(), number(a_minute), number(b.recipients), Moment::shown(b.from)]
        })
        .filter(|r| r[2] != "0")
        .collect();
    let heads = [("measured over", Left), ("rcpt./min.", Right), ("recipients", Right), ("beginning on", Left)];
    out.table(21, &heads, &rows);
    out.subheading("Top throughput rates:");
    let rows: Vec<Vec<String>> = windows()
        .map(|(n, (seconds, label))| {
            let b = by_bytes[n];
            let (kbytes, a_second) = (b.bytes * 10 / 1024, b.bytes * 10 / 1024 / *seconds as u64);
            vec![(*label).to_owned(), tenths(a_second), tenths(kbytes), number(b.recipients), Moment::shown(b.from)]
        })
        .filter(|r| r[3] != "0")
        .collect();
    let heads = [
        ("measured over", Left),
        ("kbytes/s", Right),
        ("kbytes", Right),
        ("recipients", Right),
        ("beginning on", Left),
    ];
    out.table(13, &heads, &rows);
}

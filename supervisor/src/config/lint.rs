//! Lines that are legal and do not do what somebody meant.

use std::collections::{BTreeMap, HashSet};

use ipc::rules::{ANY_CONNECTIONS, Value};

use super::diagnostic::{Diagnostic, Diagnostics, SECRETS, WITH_PASSWORD};
use super::directives;
use super::files::Span;
use super::syntax::Statement;
use super::types::{Parsed, Type};

/// Messages a second that one connection will hardly exceed.
const PER_CONNECTION_PER_S: f64 = 50.0;
/// Stanzas that have to agree before one that differs is taken for forgotten, and how many
/// of them may differ: one in so many.
const SIMILAR_MIN: usize = 5;
const FORGOTTEN_SHARE: usize = 5;

/// Limits that have a counterpart for backoff.
const WITH_BACKOFF: &[&str] =
    &["max-smtp-out", "max-msg-rate", "max-msg-per-hour", "max-connect-rate", "max-data-volume-rate"];

/// What one `<domain>` block says that cannot be meant; `anywhere` are the directives that some
/// block sets, which this one may inherit.
pub fn domain(all: &mut Diagnostics, s: &Statement, anywhere: &HashSet<&str>) {
    let get = |name: &str| s.inside.iter().rev().find(|i| *i.name == *name);
    delivery_type(all, s, &get, anywhere);
    for name in WITH_BACKOFF {
        let (Some(normal), Some(backoff)) = (get(name), get(&format!("backoff-{name}"))) else { continue };
        let (Some(n), Some(b)) = (amount(normal), amount(backoff)) else { continue };
        if b > n {
            let message = match *name {
                "max-smtp-out" => format!("{} has no effect above {name}", backoff.name),
                _ => format!("{} is above {name}: a queue would go faster in backoff", backoff.name),
            };
            let d = Diagnostic::warning(backoff.at, "backoff-above-normal", message, "lower it");
            all.push(d.with(normal.at, "the normal value"));
        }
    }
    if let (Some(out), Some(rate)) = (get("max-smtp-out"), get("max-msg-rate"))
        && let (Some(n), Some(r)) = (amount(out), amount(rate))
        && r.is_finite()
        && n > 0.0
        && r > n * PER_CONNECTION_PER_S
    {
        let message =
            format!("each of {n} connections would have to deliver {:.0} messages a second for this rate", r / n);
        let d = Diagnostic::warning(rate.at, "unreachable-rate", message, "raise max-smtp-out, or lower the rate");
        all.push(d.with(out.at, "allows so few connections"));
    }
    if let (Some(connects), Some(each), Some(rate)) =
        (get("max-connect-rate"), get("max-msg-per-connection"), get("max-msg-rate"))
        && let (Some(c), Some(m), Some(r)) = (amount(connects), amount(each), amount(rate))
        && r.is_finite()
        && c * m < r
    {
        let message = "max-connect-rate and max-msg-per-connection together allow less than this rate";
        let d = Diagnostic::warning(rate.at, "unreachable-rate", message, "");
        all.push(d.with(connects.at, "opens so few connections"));
    }
    if let Some(out) = get("max-smtp-out")
        && let (Some(n), most) = (amount(out), descriptors())
        && n.is_finite()
        && n > most as f64
    {
        let message = format!("max-smtp-out is above the {most} descriptors that a process may open here");
        all.push(Diagnostic::warning(out.at, "descriptors", message, "raise LimitNOFILE, or lower the value"));
    }
    if let (Some(retry), Some(bounce)) = (get("retry-after"), get("bounce-after"))
        && let (Some(r), Some(b)) = (first_millis(retry), first_millis(bounce))
        && b <= r
    {
        let message = "mail is returned before it would be attempted a second time";
        let d = Diagnostic::warning(bounce.at, "one-attempt", message, "raise bounce-after above retry-after");
        all.push(d.with(retry.at, "the first wait"));
    }
    if let (Some(no), Some(require)) = (get("use-starttls"), get("require-starttls"))
        && Type::Flag.parse(&no.value).is_ok_and(|p| p.value == Value::Flag(false))
        && Type::Flag.parse(&require.value).is_ok_and(|p| p.value == Value::Flag(true))
    {
        let message = "require-starttls demands what use-starttls no forbids: nothing would be delivered";
        all.push(Diagnostic::warning(require.at, "contradiction", message, "").with(no.at, "forbids TLS"));
    }
}

/// A limit of a `<domain>` and its counterpart for backoff of the `<domain *>` beside it, `of_all`, or the reverse: the queue
/// would go faster in backoff.
pub fn backoff_beside(all: &mut Diagnostics, s: &Statement, of_all: &[&Statement]) {
    let here = |name: &str| s.inside.iter().rev().find(|i| *i.name == *name);
    let there = |name: &str| of_all.iter().flat_map(|b| b.inside.iter()).rfind(|i| *i.name == *name);
    // More connections in backoff than in normal mode have no effect. Where the limit is meant for other queues there is nothing to warn of.
    for name in WITH_BACKOFF.iter().filter(|n| **n != "max-smtp-out") {
        let in_backoff = format!("backoff-{name}");
        let (line, other, normal, backoff) = match (here(name), here(&in_backoff)) {
            (Some(n), None) => match there(&in_backoff) {
                Some(b) => (n, b, n, b),
                None => continue,
            },
            (None, Some(b)) => match there(name) {
                Some(n) => (b, n, n, b),
                None => continue,
            },
            _ => continue,
        };
        let (Some(n), Some(b)) = (amount(normal), amount(backoff)) else { continue };
        if b > n {
            let message = format!(
                "{in_backoff} is above {name} for {}, with what <domain *> says: a queue would go faster in backoff",
                &*s.value
            );
            let help = format!("write both in <domain {}>", &*s.value);
            all.push(
                Diagnostic::warning(line.at, "backoff-above-normal", message, help).with(other.at, "the other value"),
            );
        }
    }
}

/// Types of delivery that need another line.
fn delivery_type<'s>(
    all: &mut Diagnostics,
    s: &Statement,
    get: &impl Fn(&str) -> Option<&'s Statement>,
    anywhere: &HashSet<&str>,
) {
    let Some(kind) = get("type") else { return };
    let needs = match kind.value.to_ascii_lowercase().as_str() {
        "pipe" => "command",
        "http-delivery" => {
            let message = "type http-delivery is not in force yet: mail waits";
            all.push(Diagnostic::warning(kind.at, "pending", message, ""));
            "http-delivery-url"
        }
        "file" => "file-destination",
        _ => return,
    };
    if !anywhere.contains(needs) {
        let message = format!("type {} needs {needs}", &*kind.value);
        let d = Diagnostic::error(s.at, "missing-directive", message, format!("add {needs} to <domain {}>", &*s.value));
        all.push(d.with(kind.at, "the type"));
    }
}

/// Rates of `<domain *>` that are meant for one domain, and hold for all domains of a receiver together where its profile rolls
/// them up.
pub fn shared_by_roll_up(inside: &[Statement]) -> Option<Diagnostic> {
    let rates = ["max-msg-rate", "max-msg-per-hour", "max-data-volume-rate", "max-connect-rate"];
    let is_low = |s: &&Statement| rates.contains(&&*s.name) && amount(s).is_some_and(f64::is_finite);
    let line = inside.iter().find(is_low)?;
    let message = format!(
        "{} of <domain *> holds for each queue, and receivers' profiles make one queue of all domains whose mail a receiver \
         takes: thousands share it",
        line.name
    );
    let help = "give those queues limits of their own, as in <domain google.rollup> (`sluice config profiles` names them), or \
                write receiver-profiles no";
    Some(Diagnostic::warning(line.at, "shared-limit", message, help))
}

/// A number or a rate as a figure that others compare with: rates by the second.
fn amount(s: &Statement) -> Option<f64> {
    let d = directives::find(&s.name, "domain")?;
    match d.kind.parse(&s.value) {
        Ok(Parsed { value: Value::Number(n), .. }) if d.kind == Type::Connections => {
            Some(if n == ANY_CONNECTIONS { f64::INFINITY } else { n as f64 })
        }
        // 0 and unlimited are no limit.
        Ok(Parsed { value: Value::Number(0) | Value::Rate { count: 0, .. }, .. }) => Some(f64::INFINITY),
        Ok(Parsed { value: Value::Number(n), .. }) => Some(n as f64),
        Ok(Parsed { value: Value::Rate { count, per_ms }, .. }) => Some(count as f64 * 1000.0 / per_ms as f64),
        _ => None,
    }
}

/// A time interval, or the first of a list.
fn first_millis(s: &Statement) -> Option<u64> {
    let d = directives::find(&s.name, "domain")?;
    match d.kind.parse(&s.value).ok()?.value {
        Value::Millis(n) => Some(n),
        Value::MillisList(l) => l.first().copied(),
        _ => None,
    }
}

/// Descriptors that a process may open here; what POSIX promises where the system does not say.
pub fn descriptors() -> u64 {
    use nix::sys::resource::{Resource, getrlimit};
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(_, hard)| hard)
}

/// What only the whole configuration shows.
pub fn statements(all: &mut Diagnostics, statements: &[Statement]) {
    let blocks = |tag: &'static str| statements.iter().filter(move |s| *s.name == *tag);
    let inner = || statements.iter().flat_map(|s| s.inside.iter().filter(|i| &*i.name == "<domain>"));
    let has_hosts: HashSet<String> = blocks("<domain>")
        .chain(inner())
        .filter(|d| d.inside.iter().any(|i| matches!(&*i.name, "smtp-hosts" | "route" | "queue-to" | "type")))
        .map(|d| d.value.to_lowercase())
        .collect();
    let hosts = |i: &Statement| directives::canonical(&i.name) == "smtp-hosts" && Type::Hosts.parse(&i.value).is_ok();
    let inherited = blocks("<domain>").any(|d| &*d.value == "*" && d.inside.iter().any(hosts));
    let made_up = |q: &str| q.ends_with(".queue") || q.ends_with(".rollup");
    for d in blocks("<domain>").chain(inner()) {
        for s in d.inside.iter().filter(|s| &*s.name == "queue-to") {
            let target = s.value.to_lowercase();
            if made_up(&target) && !has_hosts.contains(&target) && !inherited {
                let message =
                    format!("{target} has no <domain {target}> with smtp-hosts: there is nowhere to deliver to");
                all.push(Diagnostic::warning(s.value_at(), "no-hosts", message, ""));
            }
        }
    }
    for list in blocks("<mx-rollup-list>") {
        for s in list.inside.iter().filter(|s| &*s.name == "mx") {
            let mut words = s.value.split_whitespace();
            let (host, queue, by_ip) =
                (words.next().unwrap_or_default(), words.next().unwrap_or_default(), words.next());
            let queue = queue.to_lowercase();
            if host.contains('*') && by_ip.is_none() && !has_hosts.contains(&queue) && queue.ends_with(".rollup") {
                let message = format!(
                    "PowerMTA wants smtp-hosts in <domain {queue}>, or rollup-by-ip, for a wildcard; here the mail of \
                     each domain goes to the domain's own hosts"
                );
                all.push(Diagnostic::warning(s.value_at(), "no-hosts", message, ""));
            }
        }
    }
    reroutes(all, statements);
    queue_loops(all, statements);
    unused_macros(all, statements);
    for v in blocks("<virtual-mta>") {
        let itself = |s: &&Statement| &*s.name == "cold-virtual-mta" && s.value.eq_ignore_ascii_case(&v.value);
        for s in v.inside.iter().filter(itself) {
            let message = format!("{} is its own cold virtual MTA", &*v.value);
            all.push(Diagnostic::warning(
                s.value_at(),
                "no-effect",
                message,
                "name the one that takes what is too much",
            ));
        }
    }
}

/// Macros that no block, no directive and no other macro mentions.
fn unused_macros(all: &mut Diagnostics, statements: &[Statement]) {
    fn note<'s>(statements: &'s [Statement], used: &mut HashSet<&'s str>) {
        for s in statements {
            used.extend(super::macros::mentioned(&s.value));
            note(&s.inside, used);
        }
    }
    let mut used = HashSet::new();
    note(statements, &mut used);
    for s in statements.iter().filter(|s| &*s.name == "domain-macro") {
        let name = s.value.split_whitespace().next().unwrap_or_default();
        if Type::Macro.parse(&s.value).is_ok() && !used.contains(name) {
            all.push(Diagnostic::warning(
                s.value_at(),
                "unused",
                format!("nothing refers to domain-macro {name:?}"),
                "",
            ));
        }
    }
}

/// Queues that send their mail to each other.
fn queue_loops(all: &mut Diagnostics, statements: &[Statement]) {
    let mut next = BTreeMap::new();
    for d in statements.iter().filter(|s| &*s.name == "<domain>") {
        for s in d.inside.iter().filter(|s| &*s.name == "queue-to" && !s.value.is_empty()) {
            // A queue or a virtual MTA that sends mail to itself has no effect, and is allowed.
            if !s.value.eq_ignore_ascii_case(&d.value) {
                next.insert(d.value.to_lowercase(), (s.value.to_lowercase(), s.at));
            }
        }
    }
    loops(&next, |path, at| {
        let message = format!("these queues send to each other, and mail stays where the circle closes: {path}");
        all.push(Diagnostic::warning(at, "queue-loop", message, ""));
    });
}

/// Finds each loop once, and tells its path and where its first member in the alphabet leads on.
fn loops(next: &BTreeMap<String, (String, Span)>, mut tell: impl FnMut(String, Span)) {
    let mut known: HashSet<&str> = HashSet::new();
    for start in next.keys() {
        let mut path: Vec<&str> = Vec::new();
        let mut on_path: HashSet<&str> = HashSet::new();
        let mut at = start.as_str();
        while let Some((target, _)) = next.get(at) {
            if !known.insert(at) {
                break;
            }
            path.push(at);
            on_path.insert(at);
            at = target;
        }
        if !on_path.contains(at) {
            continue;
        }
        let mut circle: Vec<&str> = path.into_iter().skip_while(|n| *n != at).collect();
        let least = circle.iter().enumerate().min_by_key(|(_, n)| **n).map_or(0, |(i, _)| i);
        circle.rotate_left(least);
        let first = circle.first().copied().unwrap_or_default();
        circle.push(first);
        tell(circle.join(" -> "), next.get(first).map(|(_, at)| *at).unwrap_or_default());
    }
}

/// Virtual MTAs that reroute to each other.
fn reroutes(all: &mut Diagnostics, statements: &[Statement]) {
    let mut next: BTreeMap<String, (String, Span)> = BTreeMap::new();
    for v in statements.iter().filter(|s| &*s.name == "<virtual-mta>") {
        let inside =
            v.inside.iter().filter(|d| &*d.name == "<domain>" && &*d.value == "*").flat_map(|d| d.inside.iter());
        for s in inside.filter(|s| s.name.ends_with("reroute-to-virtual-mta") && !s.value.is_empty()) {
            let target = s.value.to_lowercase();
            // A queue or a virtual MTA that sends mail to itself has no effect, and is allowed.
            if target != v.value.to_lowercase() {
                next.insert(v.value.to_lowercase(), (target, s.at));
            }
        }
    }
    loops(&next, |path, at| {
        let message = format!("the virtual MTAs reroute to each other: {path}");
        all.push(Diagnostic::warning(at, "reroute-loop", message, ""));
    });
}

/// By value: the number of lines that say it, and the places of the first ones.
type Values = BTreeMap<String, (usize, Vec<Span>)>;

/// Stanzas for the same domain in many virtual MTAs, of which a few were forgotten when the
/// others were changed.
#[derive(Debug, Default)]
pub struct Similar {
    /// By domain and directive.
    seen: BTreeMap<(String, String), Values>,
}

impl Similar {
    /// Takes a `<domain>` block of a virtual MTA.
    pub fn note(&mut self, s: &Statement) {
        for i in &s.inside {
            // The warning about a line that differs repeats the value of the line.
            let is_secret = SECRETS.contains(&&*i.name) || WITH_PASSWORD.contains(&&*i.name);
            if is_secret || directives::find(&i.name, "domain").is_some_and(|d| d.repeats) {
                continue;
            }
            let values = self.seen.entry((s.value.to_lowercase(), i.name.to_string())).or_default();
            let (count, places) = values.entry(i.value.to_string()).or_default();
            *count += 1;
            if places.len() < SIMILAR_MIN {
                places.push(i.at);
            }
        }
    }

    /// Names the lines that differ from what nearly all others say.
    pub fn report(self, all: &mut Diagnostics) {
        for ((domain, name), values) in self.seen {
            let total: usize = values.values().map(|(n, _)| n).sum();
            let Some((usual, (most, at))) = values.iter().max_by_key(|(_, (n, _))| *n) else { continue };
            let others = total - most;
            if total < SIMILAR_MIN || others == 0 || others * FORGOTTEN_SHARE > total {
                continue;
            }
            for (value, (_, places)) in values.iter().filter(|(v, _)| *v != usual) {
                for place in places {
                    let message = format!(
                        "{most} of {total} virtual MTAs say {name} {usual} for {domain}, this one says {value}: forgotten?"
                    );
                    let d = Diagnostic::warning(*place, "differs", message, "a <profile> keeps them together");
                    all.push(match at.first() {
                        Some(first) => d.with(*first, "the others"),
                        None => d,
                    });
                }
            }
        }
    }
}

/// A virtual MTA's `<domain *>` beats global blocks that name a domain: legal, and seldom what
/// was meant by whoever wrote the domain's block.
#[derive(Debug, Default)]
pub struct Shadows {
    /// Directives of virtual MTAs' `<domain *>`: where first, and how many.
    everywhere: BTreeMap<String, (Span, usize)>,
    /// Directives of global blocks that name a domain: the first of each.
    named: BTreeMap<String, (Span, String)>,
}

impl Shadows {
    /// Takes a `<domain>` block of a virtual MTA.
    pub fn of_vmta(&mut self, s: &Statement) {
        for i in s.inside.iter().filter(|_| &*s.value == "*") {
            self.everywhere.entry(i.name.to_string()).or_insert((i.at, 0)).1 += 1;
        }
    }

    /// Takes a global `<domain>` block.
    pub fn of_global(&mut self, s: &Statement) {
        for i in s.inside.iter().filter(|_| !s.value.contains('*')) {
            self.named.entry(i.name.to_string()).or_insert((i.at, s.value.to_string()));
        }
    }

    /// Names each directive once.
    pub fn report(self, all: &mut Diagnostics) {
        for (name, (at, count)) in self.everywhere {
            let Some((named_at, domain)) = self.named.get(&name) else { continue };
            let more = if count > 1 { format!(" ({count} virtual MTAs, the first is shown)") } else { String::new() };
            let message =
                format!("{name} of the virtual MTA's <domain *> also beats the global <domain {domain}>{more}");
            let d = Diagnostic::warning(
                at,
                "shadowed",
                message,
                "name the domain in the virtual MTA too, if its value is meant",
            );
            all.push(d.with(*named_at, "has no effect for it"));
        }
    }
}

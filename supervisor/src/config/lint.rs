//! Lines that are legal and do not do what somebody meant.

use std::collections::{BTreeMap, HashSet};

use ipc::rules::Value;

use super::diagnostic::Diagnostic;
use super::directives;
use super::files::Span;
use super::syntax::Statement;
use super::value::{self, Parsed};

/// Messages a second that one connection will hardly exceed.
const PER_CONNECTION_PER_S: f64 = 50.0;
/// Stanzas that have to agree before one that differs is taken for forgotten, and how many
/// of them may differ: one in so many.
const SIMILAR_MIN: usize = 5;
const FORGOTTEN_SHARE: usize = 5;

/// What one `<domain>` block says that cannot be meant.
pub fn domain(all: &mut Vec<Diagnostic>, s: &Statement) {
    let get = |name: &str| s.inside.iter().rev().find(|i| *i.name == *name);
    delivery_type(all, s, &get);
    for name in ["max-smtp-out", "max-msg-rate", "max-connect-rate", "max-data-volume-rate"] {
        let (Some(normal), Some(backoff)) = (get(name), get(&format!("backoff-{name}"))) else { continue };
        let (Some(n), Some(b)) = (amount(normal), amount(backoff)) else { continue };
        if b > n {
            let message = format!("{} is above {name}: a queue would go faster in backoff", backoff.name);
            let d = Diagnostic::warning(backoff.at, "backoff-above-normal", message, "lower it");
            all.push(d.with(normal.at, "the normal value"));
        }
    }
    if let (Some(out), Some(rate)) = (get("max-smtp-out"), get("max-msg-rate"))
        && let (Some(n), Some(r)) = (amount(out), amount(rate))
        && r.is_finite()
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
        && m > 0.0
        && c * m < r
    {
        let message = "max-connect-rate and max-msg-per-connection together allow less than this rate";
        let d = Diagnostic::warning(rate.at, "unreachable-rate", message, "");
        all.push(d.with(connects.at, "opens so few connections"));
    }
    if let Some(out) = get("max-smtp-out")
        && let (Some(n), Some(most)) = (amount(out), descriptors())
        && n > most
    {
        let message = format!("max-smtp-out is above the {most} descriptors that a process may open here");
        all.push(Diagnostic::warning(out.at, "descriptors", message, "raise LimitNOFILE, or lower the value"));
    }
    if let (Some(hosts), Some(route)) = (get("smtp-hosts"), get("route")) {
        let d = Diagnostic::warning(route.at, "shadowed", "route has no effect beside smtp-hosts", "remove it");
        all.push(d.with(hosts.at, "is in force"));
    }
    if let (Some(no), Some(require)) = (get("use-starttls"), get("require-starttls"))
        && value::parse("flag", &no.value).is_ok_and(|p| p.value == Value::Flag(false))
        && value::parse("flag", &require.value).is_ok_and(|p| p.value == Value::Flag(true))
    {
        let message = "require-starttls demands what use-starttls no forbids: nothing would be delivered";
        all.push(Diagnostic::warning(require.at, "contradiction", message, "").with(no.at, "forbids TLS"));
    }
}

/// Types of delivery that need another line.
fn delivery_type<'s>(all: &mut Vec<Diagnostic>, s: &Statement, get: &impl Fn(&str) -> Option<&'s Statement>) {
    let Some(kind) = get("type") else { return };
    let needs = match kind.value.to_ascii_lowercase().as_str() {
        "pipe" => "command",
        "http-delivery" => "http-delivery-url",
        "file" => "file-destination",
        _ => return,
    };
    if get(needs).is_none() {
        let message = format!("type {} needs {needs}", &*kind.value);
        let d = Diagnostic::error(s.at, "missing-directive", message, format!("add {needs} to <domain {}>", &*s.value));
        all.push(d.with(kind.at, "the type"));
    }
}

/// A number or a rate as a figure that others compare with: rates by the second.
fn amount(s: &Statement) -> Option<f64> {
    let d = directives::find(&s.name, "domain")?;
    match value::parse(d.kind, &s.value) {
        Ok(Parsed { value: Value::Number(n), .. }) => Some(n as f64),
        Ok(Parsed { value: Value::Rate { count: 0, .. }, .. }) => Some(f64::INFINITY),
        Ok(Parsed { value: Value::Rate { count, per_ms }, .. }) => Some(count as f64 * 1000.0 / per_ms as f64),
        _ => None,
    }
}

fn descriptors() -> Option<f64> {
    use nix::sys::resource::{Resource, getrlimit};
    getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(_, hard)| hard as f64)
}

/// What only the whole configuration shows.
pub fn statements(all: &mut Vec<Diagnostic>, statements: &[Statement]) {
    let blocks = |tag: &'static str| statements.iter().filter(move |s| *s.name == *tag);
    let inner = || statements.iter().flat_map(|s| s.inside.iter().filter(|i| &*i.name == "<domain>"));
    let has_hosts: HashSet<String> = blocks("<domain>")
        .chain(inner())
        .filter(|d| d.inside.iter().any(|i| matches!(&*i.name, "smtp-hosts" | "route" | "queue-to" | "type")))
        .map(|d| d.value.to_lowercase())
        .collect();
    let made_up = |q: &str| q.ends_with(".queue") || q.ends_with(".rollup");
    for d in blocks("<domain>").chain(inner()) {
        for s in d.inside.iter().filter(|s| &*s.name == "queue-to") {
            let target = s.value.to_lowercase();
            if made_up(&target) && !has_hosts.contains(&target) {
                let message =
                    format!("{target} has no <domain {target}> with smtp-hosts: there is nowhere to deliver to");
                all.push(Diagnostic::warning(s.value_at, "no-hosts", message, ""));
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
                let message = format!("a wildcard needs smtp-hosts in <domain {queue}>, or rollup-by-ip");
                all.push(Diagnostic::warning(s.value_at, "no-hosts", message, ""));
            }
        }
    }
    reroutes(all, statements);
}

/// Virtual MTAs that reroute to each other.
fn reroutes(all: &mut Vec<Diagnostic>, statements: &[Statement]) {
    let mut next: BTreeMap<String, (String, Span)> = BTreeMap::new();
    for v in statements.iter().filter(|s| &*s.name == "<virtual-mta>") {
        let inside =
            v.inside.iter().filter(|d| &*d.name == "<domain>" && &*d.value == "*").flat_map(|d| d.inside.iter());
        for s in inside.filter(|s| s.name.ends_with("reroute-to-virtual-mta") && !s.value.is_empty()) {
            let target = s.value.to_lowercase();
            // One to itself has no effect and is allowed.
            if target != v.value.to_lowercase() {
                next.insert(v.value.to_lowercase(), (target, s.at));
            }
        }
    }
    for start in next.keys() {
        let mut path = vec![start.as_str()];
        let mut at = start;
        while let Some((target, _)) = next.get(at) {
            path.push(target);
            if target == start || path.len() > next.len() + 1 {
                break;
            }
            at = target;
        }
        let closed = path.len() > 1 && path.last() == path.first();
        if closed && path.iter().min() == path.first() {
            let message = format!("the virtual MTAs reroute to each other: {}", path.join(" -> "));
            let place = next.get(start).map(|(_, at)| *at).unwrap_or_default();
            all.push(Diagnostic::warning(place, "reroute-loop", message, ""));
        }
    }
}

/// Value → how many say it, and the first places.
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
            if directives::find(&i.name, "domain").is_some_and(|d| d.repeats) {
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
    pub fn report(self, all: &mut Vec<Diagnostic>) {
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
    pub fn report(self, all: &mut Vec<Diagnostic>) {
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

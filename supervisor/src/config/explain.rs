//! Why a directive has the value that it has: every line that speaks for a path, weakest
//! first, read from the same snapshot and in the same order as workers read it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipc::backoff::Mode;
use ipc::layers::{ArchivedProfile, NO_VMTA, Scope};
use ipc::reply_rules::ReplyListsInForce;
use ipc::rules::{ArchivedSetting, DomainKey, DomainRules, Value};
use ipc::snapshot::{ArchivedSnapshot, ArchivedWritten};

use super::diagnostic::SECRETS;
use super::directives::{self, Directive, Status};
use super::landing::{self, RolledUp};
use super::nearest::perhaps;
use super::pattern::{pattern, pattern_key};
use super::types::Type;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Origin {
    /// `default`, `receiver profile`, `global`, `pool NAME`, `virtual-mta NAME`, with the
    /// `<domain>` that it stands in.
    pub layer: String,
    /// File; empty where it stands in none.
    pub file: String,
    /// Line, from 1; 0 for none.
    pub line: u32,
}

/// A value and its origin.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Said {
    /// As the configuration writes it.
    pub value: String,
    /// Where.
    pub origin: Origin,
}

/// A directive in force for a path.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Explained {
    /// Name.
    pub name: String,
    /// Value in force.
    pub value: String,
    /// Where it comes from.
    pub origin: Origin,
    /// What it overrode, strongest first.
    pub overrides: Vec<Said>,
    /// What it is counted or evaluated for.
    pub scope: String,
    /// The directive is only stored so far.
    pub pending: bool,
    /// Of a pool: members for which another value is in force.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<Member>,
}

/// A member of a pool with a value of its own.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Member {
    /// Name.
    pub virtual_mta: String,
    /// What is in force for it.
    #[serde(flatten)]
    pub said: Said,
}

impl Explained {
    fn of(d: &Directive, said: Said, overrides: Vec<Said>) -> Explained {
        Explained {
            name: d.name.into(),
            value: said.value,
            origin: said.origin,
            overrides,
            scope: d.scope.into(),
            pending: d.status != Status::Supported,
            members: Vec::new(),
        }
    }
}

/// What mail goes through.
#[derive(Clone, Copy)]
enum Via {
    Vmta(u32),
    Pool(u32),
}

impl Via {
    fn named(s: &ArchivedSnapshot, name: &str) -> Result<Via, String> {
        let key = name.to_lowercase();
        if key.is_empty() {
            return Ok(Via::Vmta(0));
        }
        let pool = || s.pool_by_name.get(key.as_str()).map(|i| Via::Pool(i.to_native()));
        s.vmta_by_name.get(key.as_str()).map(|i| Via::Vmta(i.to_native())).or_else(pool).ok_or_else(|| {
            let known = s.vmta_by_name.keys().chain(s.pool_by_name.keys()).map(|n| n.as_str());
            let near = perhaps(&key, known);
            format!("{name} is neither a virtual MTA nor a pool in this configuration{near}")
        })
    }

    /// Index of the virtual MTA, or one that none has, and of the pool.
    fn indices(self, s: &ArchivedSnapshot) -> (u32, Option<u32>) {
        match self {
            Via::Vmta(i) => (i, s.pool_of(i)),
            Via::Pool(i) => (NO_VMTA, Some(i)),
        }
    }
}

/// Destination, and virtual MTA or pool, of `DOMAIN` or `DOMAIN/VMTA`.
///
/// # Errors
/// A sentence when it is neither.
pub fn path(text: &str, via: &str) -> Result<(String, String), String> {
    let (domain, chosen) = match text.split_once('/') {
        Some((d, v)) if !text.starts_with('[') => (d, v),
        _ => (text, via),
    };
    if chosen != via && !via.is_empty() {
        return Err(format!("{text} names the virtual MTA {chosen}, and {via} is named beside it: name one"));
    }
    let expected = |hint: &str| Err(format!("expected a domain such as example.com, found {text:?}{hint}"));
    match domain {
        "" => expected(""),
        d if d.contains('*') => expected("; a pattern has no single answer: name a domain that it matches"),
        d => match d.rsplit_once('@') {
            Some((_, d)) => expected(&format!("; did you mean {d}?")),
            None if pattern(d).is_err() => expected(""),
            None => Ok((pattern_key(d), chosen.to_owned())),
        },
    }
}

/// The directive that is asked about: its name as it is in force.
fn asked(only: &str) -> Result<String, String> {
    let wanted = directives::canonical(&only.to_ascii_lowercase()).to_owned();
    let of_paths = |d: &&Directive| {
        d.kind != Type::Block
            && d.blocks.iter().any(|b| matches!(*b, "domain" | "virtual-mta" | "virtual-mta-pool" | "global"))
    };
    match directives::all().iter().find(|d| d.name == wanted) {
        None if wanted == QUEUE => Ok(wanted),
        _ if matches!(wanted.as_str(), "use-profile" | "include") => {
            Err(format!("{wanted} has no value of its own: what it brings is shown with the directives concerned"))
        }
        Some(_) if directives::all().iter().filter(of_paths).any(|d| d.name == wanted) => Ok(wanted),
        Some(d) => Err(format!("{only} is valid in {}, which does not depend on where mail goes", d.blocks.join(", "))),
        None => {
            let known = directives::all().iter().filter(of_paths).map(|d| d.name);
            let near = perhaps(&wanted, known);
            Err(format!("there is no directive {only}{near}"))
        }
    }
}

/// Every directive in force for mail to `destination` through a virtual MTA or pool (none:
/// `{default}`), by name. `only` names one directive. What `queue-to` and roll-up put under another queue goes by that one's
/// lines; `rolled_up` is what DNS said of its mail hosts, where that was looked up.
///
/// # Errors
/// A sentence when destination, virtual MTA or directive are none.
pub fn explain(
    s: &ArchivedSnapshot,
    destination: &str,
    via: &str,
    only: &str,
    rolled_up: Option<&RolledUp>,
) -> Result<Vec<Explained>, String> {
    let (domain, via) = path(destination, via)?;
    let only = if only.is_empty() { String::new() } else { asked(only)? };
    let via = Via::named(s, &via)?;
    let queue = queue_of(s, &domain, via, rolled_up);
    // Lines that send mail to another queue stand in the block of the domain itself.
    let destination = if matches!(only.as_str(), "queue-to" | "mx-rollup") { domain } else { queue.value.clone() };
    if only == QUEUE {
        return Ok(vec![queue]);
    }
    let mut all = in_force(s, &destination, via, &only);
    if let Via::Pool(i) = via {
        let members = s.pools.get(i as usize).into_iter().flat_map(|p| p.members.iter());
        let members: Vec<(&str, Vec<Explained>)> = members
            .map(|m| m.vmta.to_native())
            .map(|v| (s.vmtas.get(v as usize).map_or("", |v| v.name.as_str()), v))
            .map(|(name, v)| (name, in_force(s, &destination, Via::Vmta(v), &only)))
            .collect();
        all.iter_mut().for_each(|e| by_members(e, &members));
    }
    if only.is_empty() {
        all.insert(0, queue);
    }
    Ok(all)
}

/// The name under which the directives list the queue that mail waits in.
const QUEUE: &str = "queue";
/// Times that `queue-to` is followed, as by workers.
const QUEUE_TO_HOPS_MAX: usize = 8;

/// The queue that mail for a domain waits in, and the line that says so; the lines on the way there are those it overrides.
fn queue_of(s: &ArchivedSnapshot, domain: &str, via: Via, rolled_up: Option<&RolledUp>) -> Explained {
    let mut steps: Vec<Said> = Vec::new();
    let mut at = domain.to_owned();
    while steps.len() < QUEUE_TO_HOPS_MAX {
        let line = of_domains(s, &at, via, "queue-to").into_iter().next().filter(|e| e.origin.line > 0);
        let Some(next) = line.map(|e| Said { value: pattern_key(&e.value), origin: e.origin }) else { break };
        let is_circle = next.value == domain || steps.iter().any(|s| s.value == next.value);
        if is_circle || next.value == "\"\"" {
            break;
        }
        at.clone_from(&next.value);
        steps.push(next);
    }
    let said = match rolled_up {
        Some(found) => landing::by_hosts(s, &at, found),
        None => steps.pop().unwrap_or_else(|| {
            let keeps_out = |name| of_domains(s, &at, via, name).iter().any(|e| landing::keeps_out(name, &e.value));
            landing::own(s, &at, ["type", "smtp-hosts", "disable-mx-rollup"].into_iter().any(keeps_out))
        }),
    };
    steps.reverse();
    Explained {
        name: QUEUE.into(),
        value: said.value,
        origin: said.origin,
        overrides: steps,
        scope: String::new(),
        pending: false,
        members: Vec::new(),
    }
}

/// Every directive that is in force for a client, by name, with the `<source>` and the line that says so. `who` is an address, names of
/// `<source>`s, or both, with commas between: a listener's source stands before a user's, whose lines win. `only` names one directive.
///
/// # Errors
/// A sentence when a name is none.
pub fn explain_source(s: &ArchivedSnapshot, who: &str, only: &str) -> Result<Vec<Explained>, String> {
    let (mut ip, mut names) = (None, Vec::new());
    for part in who.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        match part.parse::<IpAddr>() {
            Ok(found) => ip = Some(found),
            Err(_) => names.push(part.to_lowercase()),
        }
    }
    let blocks = || s.written.iter().filter(|w| w.block.as_str() == "source");
    let network_of = |w: &ArchivedWritten| ipc::network::parse(w.name.as_str());
    let is_named = |w: &ArchivedWritten, name: &str| network_of(w).is_none() && w.name.as_str().to_lowercase() == name;
    if let Some(name) = names.iter().find(|n| !blocks().any(|w| is_named(w, n))) {
        let known: Vec<&str> = blocks().filter(|w| network_of(w).is_none()).map(|w| w.name.as_str()).collect();
        let near = perhaps(name, known.into_iter());
        return Err(format!("{who}: expected an address, or the name of a <source>{near}"));
    }
    let wanted = directives::canonical(&only.to_ascii_lowercase()).to_owned();
    let has_value = |d: &&Directive| d.blocks.contains(&"source") && d.kind != Type::Block && d.name != "include";
    if !only.is_empty() && !directives::all().iter().filter(has_value).any(|d| d.name == wanted) {
        let known = directives::all().iter().filter(has_value).map(|d| d.name);
        let near = perhaps(&wanted, known);
        return Err(format!("{only} is no directive of <source>{near}"));
    }
    // Wider networks first, as for clients; named ones come last.
    let mut apply: Vec<(usize, &ArchivedWritten)> = blocks()
        .filter_map(|w| match network_of(w) {
            Some(n) => ip.is_some_and(|ip| n.contains(ip)).then_some((usize::from(n.bits), w)),
            None => names.iter().position(|n| is_named(w, n)).map(|at| (usize::from(u8::MAX) + at, w)),
        })
        .collect();
    apply.sort_by_key(|(bits, _)| *bits);
    let mut all = Vec::new();
    for (row, d) in directives::all().iter().enumerate().filter(|(_, d)| has_value(d)) {
        let mut chain = vec![default(d)];
        for (_, w) in &apply {
            for x in w.settings.iter().filter(|x| usize::from(x.key.to_native()) == row) {
                let Some(value) = shown_setting(d, x) else { continue };
                let layer = format!("<source {}>", w.name.as_str());
                chain.push(Said { value, origin: Origin { layer, ..written_at(s, x) } });
            }
        }
        let is_asked =
            if only.is_empty() { chain.len() > 1 || d.status == Status::Supported } else { d.name == wanted };
        if !is_asked {
            continue;
        }
        if d.repeats && chain.len() > 1 {
            all.extend(chain.into_iter().skip(1).map(|said| Explained::of(d, said, Vec::new())));
            continue;
        }
        let Some(last) = chain.pop() else { continue };
        chain.reverse();
        all.push(Explained::of(d, last, chain));
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

/// What is in force where mail goes by a pool is what its members have: the value that they share, or the pool's and those
/// of the members that have another.
fn by_members(of_pool: &mut Explained, members: &[(&str, Vec<Explained>)]) {
    let same = |e: &&Explained| e.name == of_pool.name && e.scope == of_pool.scope;
    let each: Vec<(&str, &Explained)> =
        members.iter().filter_map(|(name, all)| Some((*name, all.iter().find(same)?))).collect();
    let others: Vec<(&str, &Explained)> = each.iter().filter(|(_, e)| e.value != of_pool.value).copied().collect();
    match others.first() {
        Some((_, first)) if others.len() == members.len() && others.iter().all(|(_, e)| e.value == first.value) => {
            *of_pool = (*first).clone();
        }
        _ => {
            let member = |(name, e): &(&str, &Explained)| Member {
                virtual_mta: (*name).to_owned(),
                said: Said { value: e.value.clone(), origin: e.origin.clone() },
            };
            of_pool.members = others.iter().map(member).collect();
        }
    }
}

fn in_force(s: &ArchivedSnapshot, destination: &str, via: Via, only: &str) -> Vec<Explained> {
    let mut all = of_domains(s, destination, via, only);
    all.extend(beside_domains(s, via, only));
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// What `<domain>` blocks say.
fn of_domains(s: &ArchivedSnapshot, destination: &str, via: Via, only: &str) -> Vec<Explained> {
    let mut chains: BTreeMap<u16, Vec<Said>> = BTreeMap::new();
    let (vmta, pool) = via.indices(s);
    let mut lists = ReplyListsInForce::default();
    s.layers.each(destination, pool, vmta, |scope, pattern, profile, setting| {
        lists.take(scope, pattern, setting);
        let Some(d) = directives::of_domain_key(setting.key.to_native()) else { return };
        let Some(value) = shown_setting(d, setting) else { return };
        let said = Said { value, origin: origin(s, scope, pattern, profile, setting) };
        let chain = chains.entry(setting.key.to_native()).or_default();
        // The same line again: a profile that is used twice.
        if chain.last() != Some(&said) {
            chain.push(said);
        }
    });
    let policy = chains.get(&(DomainKey::BackoffPolicy as u16)).and_then(|c| c.last()).cloned();
    let policy = policy.map(|said| (said, rules_of_policy(s, destination, via)));
    let mut all: Vec<Explained> = Vec::new();
    for (i, d) in directives::all().iter().enumerate().filter(|(_, d)| d.blocks.contains(&"domain")) {
        let is_asked = only.is_empty() || d.name == only;
        let has_value = d.kind != Type::Block && !matches!(d.name, "include" | "use-profile");
        if !is_asked || !has_value || directives::canonical(d.name) != d.name {
            continue;
        }
        let mut chain = chains.remove(&directives::domain_key(i)).unwrap_or_default();
        if chain.is_empty() && d.status != Status::Supported && only.is_empty() {
            continue;
        }
        // Lines of any block beat what a policy stands for.
        let of_policy = policy.as_ref().and_then(|(said, rules)| of_policy(d, said, rules));
        chain.splice(0..0, [default(d)].into_iter().chain(of_policy));
        if d.repeats && chain.len() > 1 {
            // Lines that add up all count, and each is told; of those for one network the last.
            chain.remove(0);
            all.extend(by_network(d, chain).into_iter().map(|(said, over)| Explained::of(d, said, over)));
            continue;
        }
        let Some(mut last) = chain.pop() else { continue };
        chain.reverse();
        if d.name == "smtp-pattern-list" {
            last.value = lists.joined(last.value);
        }
        all.push(Explained::of(d, last, chain));
    }
    all
}

/// Lines that count, each with those of the same network before it, strongest first; of other directives than limits for
/// networks every line counts.
fn by_network(d: &Directive, lines: Vec<Said>) -> Vec<(Said, Vec<Said>)> {
    let mut all: Vec<(Said, Vec<Said>)> = Vec::new();
    for said in lines {
        let network = |s: &Said| s.value.split_whitespace().next().map(str::to_owned);
        let same = |(s, _): &&mut (Said, Vec<Said>)| d.kind.is_by_network() && network(s) == network(&said);
        match all.iter_mut().find(same) {
            Some((before, over)) => over.insert(0, std::mem::replace(before, said)),
            None => all.push((said, Vec::new())),
        }
    }
    all
}

/// The rules of a path without its own lines for backoff: what its `backoff-policy` stands for.
fn rules_of_policy(s: &ArchivedSnapshot, destination: &str, via: Via) -> DomainRules {
    let rules = match via {
        Via::Vmta(i) => s.domain_rules(destination, i),
        Via::Pool(i) => s.pool_rules(destination, i),
    };
    DomainRules {
        backoff_max_smtp_out: None,
        backoff_max_msg_rate: None,
        backoff_retry_after: None,
        backoff_to_normal_after: None,
        backoff_to_normal_after_delivery: None,
        ..rules
    }
}

/// What a `backoff-policy` says in place of a directive.
fn of_policy(d: &Directive, policy: &Said, rules: &DomainRules) -> Option<Said> {
    let millis = |t: Duration| u64::try_from(t.as_millis()).unwrap_or(u64::MAX);
    let value = match d.name {
        "backoff-max-smtp-out" => Value::Number(rules.backoff().smtp_out),
        "backoff-max-msg-rate" => {
            let rate = rules.backoff().msg_rate;
            Value::Rate { count: rate.count, per_ms: millis(rate.per) }
        }
        "backoff-retry-after" => Value::MillisList(rules.retry_waits(Mode::Backoff).into_iter().map(millis).collect()),
        "backoff-to-normal-after" => Value::Millis(millis(rules.backoff_lasts())),
        "backoff-to-normal-after-delivery" => Value::Flag(rules.backoff_ends_upon_delivery()),
        _ => return None,
    };
    let layer = format!("backoff-policy {}, {}", policy.value, policy.origin.layer);
    Some(Said { value: shown(d, &value), origin: Origin { layer, ..policy.origin.clone() } })
}

fn default(d: &Directive) -> Said {
    let origin = Origin { layer: "default".into(), file: String::new(), line: 0 };
    Said { value: if d.default.is_empty() { "-" } else { d.default }.to_owned(), origin }
}

/// Directives of keys and headers: the lines of the virtual MTA come first, and those of the other levels count, too.
const ADD_UP_OVER_LEVELS: &[&str] = &["domain-key", "include-headers-from"];

/// What stands beside `<domain>` blocks: at top level what virtual MTAs inherit, and in the
/// blocks of pool and virtual MTA; the virtual MTA wins.
fn beside_domains(s: &ArchivedSnapshot, via: Via, only: &str) -> Vec<Explained> {
    let (vmta, pool) = via.indices(s);
    let pool = pool.and_then(|i| s.pools.get(i as usize)).map(|p| (format!("pool {}", p.name.as_str()), &p.settings));
    let vmta = s.vmtas.get(vmta as usize).map(|v| (format!("virtual-mta {}", v.name.as_str()), &v.settings));
    let top = s.written.iter().filter(|w| w.block.is_empty()).map(|w| ("global".to_owned(), &w.settings));
    // Name → row, and the lines of each level, weakest first.
    let mut found: BTreeMap<&str, (&Directive, Vec<Vec<Said>>)> = BTreeMap::new();
    for (layer, settings) in top.chain(pool).chain(vmta) {
        let mut here: BTreeMap<&str, (&Directive, Vec<Said>)> = BTreeMap::new();
        for x in settings.iter() {
            let Some(d) = directives::all().get(usize::from(x.key.to_native())) else { continue };
            let wanted =
                if only.is_empty() { layer != "global" || inherited(d) } else { directives::canonical(d.name) == only };
            let Some(value) = shown_setting(d, x).filter(|_| wanted) else { continue };
            let said = Said { value, origin: Origin { layer: layer.clone(), ..written_at(s, x) } };
            here.entry(directives::canonical(d.name)).or_insert((d, Vec::new())).1.push(said);
        }
        for (name, (d, lines)) in here {
            let all = found.entry(name).or_insert((d, Vec::new()));
            all.0 = d;
            all.1.push(lines);
        }
    }
    if found.is_empty() && !only.is_empty() && directives::find(only, "domain").is_none() {
        let rows = directives::all().iter().filter(|d| d.name == only);
        return rows.take(1).map(|d| Explained::of(d, default(d), Vec::new())).collect();
    }
    let mut all = Vec::new();
    for (d, mut levels) in found.into_values() {
        if ADD_UP_OVER_LEVELS.contains(&d.name) {
            levels = vec![levels.into_iter().rev().flatten().collect()];
        }
        let Some(mut strongest) = levels.pop() else { continue };
        let mut overridden: Vec<Said> = levels.into_iter().rev().flat_map(|l| l.into_iter().rev()).collect();
        if !d.repeats {
            // Of several lines at one level the last one counts.
            let last = strongest.pop();
            overridden.splice(0..0, std::mem::take(&mut strongest).into_iter().rev());
            strongest.extend(last);
        }
        for (i, said) in strongest.into_iter().enumerate() {
            all.push(Explained::of(d, said, if i == 0 { std::mem::take(&mut overridden) } else { Vec::new() }));
        }
    }
    all
}

/// Whether virtual MTAs inherit a directive of the top level.
fn inherited(d: &Directive) -> bool {
    directives::find(d.name, "virtual-mta").is_some_and(|d| d.kind != Type::Block)
}

fn shown_setting(d: &Directive, x: &ArchivedSetting) -> Option<String> {
    rkyv::deserialize::<Value, rkyv::rancor::Error>(&x.value).ok().map(|v| shown(d, &v))
}

/// File and line of a setting.
pub fn written_at(s: &ArchivedSnapshot, setting: &ArchivedSetting) -> Origin {
    let file = s.files.get(usize::from(setting.file.to_native())).map_or("", |f| f.as_str());
    Origin { layer: String::new(), file: file.to_owned(), line: setting.line.to_native() }
}

/// A value as the configuration would write it, unless it is a secret.
pub fn shown(d: &Directive, v: &Value) -> String {
    if SECRETS.contains(&d.name) {
        return "(secret)".to_owned();
    }
    match d.kind.show(v) {
        // Where no limit is written so, 0 says the same.
        _ if *v == Value::Number(0) && d.unit.contains("unlimited") && d.kind != Type::Connections => {
            "unlimited".to_owned()
        }
        t if t.is_empty() => "\"\"".to_owned(),
        t => t,
    }
}

fn origin(
    s: &ArchivedSnapshot,
    scope: Scope,
    pattern: &str,
    profile: Option<&ArchivedProfile>,
    setting: &ArchivedSetting,
) -> Origin {
    let name = match scope {
        Scope::BuiltIn => "receiver profile".to_owned(),
        Scope::Global => "global".to_owned(),
        Scope::Pool(i) => format!("pool {}", s.pools.get(i as usize).map_or("", |p| p.name.as_str())),
        Scope::Vmta(i) => format!("virtual-mta {}", s.vmtas.get(i as usize).map_or("", |v| v.name.as_str())),
    };
    let through = profile.map(|p| format!(" profile {}", p.name.as_str())).unwrap_or_default();
    // The name is shown as the block is written: an operator who looks for the line looks for `<domain $isp.com>`.
    let parameter = s.layers.parameter(setting).filter(|_| profile.is_none());
    let pattern = parameter.map_or_else(|| ipc::message::shown_domain(pattern), str::to_owned);
    let layer = format!("{name} <domain {pattern}>{through}");
    Origin { layer, ..written_at(s, setting) }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            0 => f.write_str(&self.layer),
            line => write!(f, "{}:{line} ({})", self.file, self.layer),
        }
    }
}

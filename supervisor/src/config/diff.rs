//! What a new configuration changes, path by path.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use ipc::layers::{ArchivedLayers, Scope, matching_patterns};
use ipc::rules::{ArchivedSetting, Value};
use ipc::snapshot::{ArchivedSnapshot, ArchivedVirtualMta};

use super::directives;
use super::value;

/// Changes as lines for people, in the order: server, listeners, virtual MTAs, paths.
pub fn diff(old: &ArchivedSnapshot, new: &ArchivedSnapshot) -> Vec<String> {
    let mut all = Vec::new();
    server(old, new, &mut all);
    names(
        "listener",
        old.listeners.iter().map(|l| l.address.as_str()),
        new.listeners.iter().map(|l| l.address.as_str()),
        &mut all,
    );
    sources(old, new, &mut all);
    names(
        "virtual MTA",
        old.vmtas.iter().map(|v| v.name.as_str()),
        new.vmtas.iter().map(|v| v.name.as_str()),
        &mut all,
    );
    names("pool", old.pools.iter().map(|p| p.name.as_str()), new.pools.iter().map(|p| p.name.as_str()), &mut all);
    addresses(old, new, &mut all);
    members(old, new, &mut all);
    paths(old, new, &mut all);
    all
}

fn names<'a>(
    what: &str,
    old: impl Iterator<Item = &'a str>,
    new: impl Iterator<Item = &'a str>,
    all: &mut Vec<String>,
) {
    let (old, new): (BTreeSet<&str>, BTreeSet<&str>) = (old.collect(), new.collect());
    all.extend(new.difference(&old).map(|n| format!("{what} {n}: new")));
    all.extend(old.difference(&new).map(|n| format!("{what} {n}: gone")));
}

fn server(old: &ArchivedSnapshot, new: &ArchivedSnapshot, all: &mut Vec<String>) {
    let (Ok(o), Ok(n)) = (old.global(), new.global()) else { return };
    let list = |l: &[String]| if l.is_empty() { "none".to_owned() } else { l.join(", ") };
    let number = |n: u64| n.to_string();
    let text = |t: &str| if t.is_empty() { "none".to_owned() } else { t.to_owned() };
    for (name, a, b) in [
        ("host-name", o.host_name.clone(), n.host_name.clone()),
        ("relay-domain", list(&o.relay_domains), list(&n.relay_domains)),
        ("relay-address", list(&o.relay_addresses), list(&n.relay_addresses)),
        ("postmaster", list(&o.postmaster), list(&n.postmaster)),
        ("name-server", list(&o.name_servers), list(&n.name_servers)),
        ("custom-dsn-from-header", text(&o.custom_dsn_from_header), text(&n.custom_dsn_from_header)),
        ("total-max-smtp-in", number(o.total_max_smtp_in), number(n.total_max_smtp_in)),
        ("total-max-smtp-out", number(o.total_max_smtp_out), number(n.total_max_smtp_out)),
        ("spool-max-recipients", number(o.spool_max_recipients), number(n.spool_max_recipients)),
        ("host-id", number(o.host_id), number(n.host_id)),
        ("stop-grace", value::show_duration(o.stop_grace_ms), value::show_duration(n.stop_grace_ms)),
        ("invalid-virtual-mta-fallback", text(&o.invalid_virtual_mta_fallback), text(&n.invalid_virtual_mta_fallback)),
    ] {
        if a != b {
            all.push(format!("{name} {a} → {b}"));
        }
    }
}

fn sources(old: &ArchivedSnapshot, new: &ArchivedSnapshot, all: &mut Vec<String>) {
    let by_name = |s: &ArchivedSnapshot| -> BTreeMap<String, BTreeMap<u16, String>> {
        let mut m: BTreeMap<String, BTreeMap<u16, String>> = BTreeMap::new();
        for x in s.sources.iter() {
            let name = match x.network.as_ref() {
                Some(n) => shown_network(n.base, n.bits),
                None => x.name.as_str().to_owned(),
            };
            let into = m.entry(name).or_default();
            into.extend(x.settings.iter().map(|s| (s.key.to_native(), shown(s))));
        }
        m
    };
    let (o, n) = (by_name(old), by_name(new));
    for name in o.keys().chain(n.keys()).collect::<BTreeSet<_>>() {
        match (o.get(name), n.get(name)) {
            (None, Some(_)) => all.push(format!("source {name}: new")),
            (Some(_), None) => all.push(format!("source {name}: gone")),
            (Some(a), Some(b)) if a != b => all.push(format!("source {name}: changed")),
            _ => {}
        }
    }
}

fn shown_network(base: [u8; 16], bits: u8) -> String {
    let v6 = std::net::Ipv6Addr::from(base);
    match v6.to_ipv4_mapped() {
        Some(v4) => format!("{v4}/{}", bits.saturating_sub(96)),
        None if bits == 0 => "0/0".to_owned(),
        None => format!("{v6}/{bits}"),
    }
}

fn shown(s: &ArchivedSetting) -> String {
    let Ok(v) = rkyv::deserialize::<Value, rkyv::rancor::Error>(&s.value) else { return String::new() };
    match directives::of_domain_key(s.key.to_native()) {
        Some(d) => super::explain::shown(d, &v),
        None => value::show("text", &v),
    }
}

fn by_name(s: &ArchivedSnapshot) -> BTreeMap<String, &ArchivedVirtualMta> {
    s.vmtas.iter().map(|v| (v.name.as_str().to_lowercase(), v)).collect()
}

fn addresses(old: &ArchivedSnapshot, new: &ArchivedSnapshot, all: &mut Vec<String>) {
    let hosts = |v: &ArchivedVirtualMta| -> Vec<String> {
        v.source_hosts.iter().map(|h| format!("{} {}", h.ip.as_str(), h.name.as_str()).trim().to_owned()).collect()
    };
    let (o, n) = (by_name(old), by_name(new));
    for (name, a) in &o {
        let Some(b) = n.get(name) else { continue };
        let (before, after) = (hosts(a), hosts(b));
        if before != after {
            let list = |l: &[String]| if l.is_empty() { "the system's choice".to_owned() } else { l.join(", ") };
            all.push(format!("virtual MTA {}: smtp-source-host {} → {}", b.name.as_str(), list(&before), list(&after)));
        }
        if a.host_name != b.host_name {
            all.push(format!(
                "virtual MTA {}: host-name {} → {}",
                b.name.as_str(),
                a.host_name.as_str(),
                b.host_name.as_str()
            ));
        }
    }
}

fn members(old: &ArchivedSnapshot, new: &ArchivedSnapshot, all: &mut Vec<String>) {
    let of = |s: &ArchivedSnapshot| -> BTreeMap<String, BTreeMap<String, u32>> {
        let name = |i: u32| s.vmtas.get(i as usize).map_or("", |v| v.name.as_str()).to_owned();
        let pools = s.pools.iter();
        pools
            .map(|p| {
                let m = p.members.iter().map(|m| (name(m.vmta.to_native()), m.weight.to_native())).collect();
                (p.name.as_str().to_lowercase(), m)
            })
            .collect()
    };
    let (o, n) = (of(old), of(new));
    for (pool, before) in &o {
        let Some(after) = n.get(pool) else { continue };
        for m in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
            match (before.get(m), after.get(m)) {
                (None, Some(_)) => all.push(format!("pool {pool}: virtual-mta {m} joins")),
                (Some(_), None) => all.push(format!("pool {pool}: virtual-mta {m} leaves")),
                (Some(a), Some(b)) if a != b => all.push(format!("pool {pool}: weight of {m} {a} → {b}")),
                _ => {}
            }
        }
    }
}

/// Values in force for a path, by directive.
fn in_force(s: &ArchivedSnapshot, destination: &str, pool: Option<u32>, vmta: u32) -> BTreeMap<u16, String> {
    let mut last: BTreeMap<u16, &ArchivedSetting> = BTreeMap::new();
    s.layers.each(destination, pool, vmta, |_, _, _, x| {
        last.insert(x.key.to_native(), x);
    });
    last.into_iter().map(|(k, x)| (k, shown(x))).collect()
}

/// A destination that stands for all that a pattern matches first.
fn sample(pattern: &str) -> String {
    match pattern {
        "*" => "any-other.invalid".to_owned(),
        p => match (p.strip_prefix("[*.]"), p.strip_prefix("*.")) {
            (Some(d), _) => d.to_owned(),
            (_, Some(d)) => format!("any.{d}"),
            _ => p
                .split('/')
                .next()
                .map_or_else(|| p.to_owned(), |d| if p.contains('/') { format!("{d}]") } else { p.to_owned() }),
        },
    }
}

/// A virtual MTA that both configurations have: name, and its index in each.
struct Kept<'a> {
    name: &'a str,
    old: u32,
    new: u32,
}

fn kept<'a>(old: &ArchivedSnapshot, new: &'a ArchivedSnapshot) -> Vec<Kept<'a>> {
    let before: HashMap<String, u32> =
        old.vmtas.iter().enumerate().map(|(i, v)| (v.name.as_str().to_lowercase(), i as u32)).collect();
    let both = new.vmtas.iter().enumerate().filter_map(|(i, v)| {
        Some(Kept { name: v.name.as_str(), old: *before.get(&v.name.as_str().to_lowercase())?, new: i as u32 })
    });
    both.collect()
}

/// What virtual MTAs say of their own for a pattern, by place in the list of those kept.
struct Own {
    /// Those that say something, before or after.
    all: HashSet<usize>,
    /// Those that say something else than before.
    changed: HashSet<usize>,
}

fn own(old: &ArchivedLayers, new: &ArchivedLayers, pattern: &str, kept: &[Kept<'_>]) -> Own {
    let said = |l: &ArchivedLayers, vmta: u32| -> Vec<(u16, String)> {
        l.written(pattern, Scope::Vmta(vmta)).iter().map(|s| (s.key.to_native(), shown(s))).collect()
    };
    let mut o = Own { all: HashSet::new(), changed: HashSet::new() };
    for (i, k) in kept.iter().enumerate() {
        let (before, after) = (said(old, k.old), said(new, k.new));
        if before.is_empty() && after.is_empty() {
            continue;
        }
        o.all.insert(i);
        if before != after {
            o.changed.insert(i);
        }
    }
    o
}

/// An index that no virtual MTA has: only what stands above them counts.
const NO_VMTA: u32 = u32::MAX >> 2;

fn paths(old: &ArchivedSnapshot, new: &ArchivedSnapshot, all: &mut Vec<String>) {
    let kept = kept(old, new);
    let patterns: BTreeSet<&str> = old.layers.patterns().chain(new.layers.patterns()).collect();
    let own: HashMap<&str, Own> = patterns
        .iter()
        .filter(|p| old.layers.has_vmtas(p) || new.layers.has_vmtas(p))
        .map(|p| (*p, own(&old.layers, &new.layers, p, &kept)))
        .collect();
    // Path pattern, directive, before, after → virtual MTAs.
    let mut changes: BTreeMap<(String, &str, String, String), Vec<&str>> = BTreeMap::new();
    for pattern in patterns {
        let destination = sample(pattern);
        let matching = matching_patterns(&destination).into_iter().chain([pattern.to_owned()]);
        let mine: Vec<&Own> = matching.filter_map(|p| own.get(p.as_str())).collect();
        // What holds for those that say nothing of their own here, by pool.
        let mut above: HashMap<(Option<u32>, Option<u32>), Vec<Change>> = HashMap::new();
        for (i, k) in kept.iter().enumerate() {
            let pools = (old.pool_of(k.old), new.pool_of(k.new));
            let general = above.entry(pools).or_insert_with(|| {
                compare(&in_force(old, &destination, pools.0, NO_VMTA), &in_force(new, &destination, pools.1, NO_VMTA))
            });
            let speaks = mine.iter().any(|o| o.all.contains(&i));
            let alone = speaks && (!general.is_empty() || mine.iter().any(|o| o.changed.contains(&i)));
            let of_its_own = alone.then(|| {
                compare(&in_force(old, &destination, pools.0, k.old), &in_force(new, &destination, pools.1, k.new))
            });
            for (directive, before, after) in of_its_own.as_ref().unwrap_or(general) {
                let path = ipc::message::shown_domain(pattern);
                changes.entry((path, directive, before.clone(), after.clone())).or_default().push(k.name);
            }
        }
    }
    tell(&changes, kept.len(), all);
}

/// Changes as lines: many virtual MTAs that change alike are one.
fn tell(changes: &BTreeMap<(String, &str, String, String), Vec<&str>>, vmtas_in_all: usize, all: &mut Vec<String>) {
    // What changes for every destination is not said again for each that is named somewhere.
    let general: HashMap<(&str, &str, &str), &Vec<&str>> = changes
        .iter()
        .filter(|((p, ..), _)| p == "*")
        .map(|((_, d, a, b), v)| ((*d, a.as_str(), b.as_str()), v))
        .collect();
    for ((pattern, directive, before, after), vmtas) in changes {
        let said = general.get(&(*directive, before.as_str(), after.as_str()));
        if pattern != "*" && said.is_some_and(|g| *g == vmtas) {
            continue;
        }
        let who = match vmtas.len() {
            n if n == vmtas_in_all => pattern.clone(),
            1 => format!("{pattern}/{}", vmtas[0]),
            n => format!("{pattern} × {n} virtual MTAs"),
        };
        all.push(format!("{who}: {directive} {before} → {after}"));
    }
}

/// A directive and its values before and after.
type Change = (&'static str, String, String);

fn compare(old: &BTreeMap<u16, String>, new: &BTreeMap<u16, String>) -> Vec<Change> {
    let keys: BTreeSet<&u16> = old.keys().chain(new.keys()).collect();
    keys.into_iter()
        .filter(|k| old.get(k) != new.get(k))
        .filter_map(|k| {
            let d = directives::of_domain_key(*k)?;
            let shown = |m: &BTreeMap<u16, String>| m.get(k).cloned().unwrap_or_else(|| d.default.to_owned());
            let (a, b) = (shown(old), shown(new));
            (a != b).then_some((d.name, a, b))
        })
        .collect()
}

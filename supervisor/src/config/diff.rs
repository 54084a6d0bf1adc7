//! What a new configuration changes, path by path.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use ipc::layers::{ArchivedLayers, NO_VMTA, Scope, matching_patterns};
use ipc::rules::{ArchivedSetting, Value};
use ipc::snapshot::ArchivedSnapshot;

use super::directives::{self, Directive};
use super::explain::shown;

/// What only takes effect when the server, or for the spool each shard, starts again. Blocks
/// stand in angle brackets.
const NEEDS_RESTART: &[&str] = &[
    "<spool>",
    "data-dir",
    "http-mgmt-port",
    "run-as-root",
    "run-as-user",
    "sandbox",
    "spool",
    "spool-min-free-space",
    "spool-sync",
    "worker-cpus",
    "workers",
];

/// What became of a line or a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It was not there before.
    New,
    /// It is not there any more.
    Gone,
    /// It has another value.
    Changed,
    /// The same lines follow each other in another order.
    Order,
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Change {
    /// Destination, virtual MTA, pool or block; empty for the whole server.
    pub path: String,
    /// Directive; empty when `path` itself is new or gone, and for rules that begin with an
    /// expression.
    pub directive: String,
    /// What became of it.
    pub change: Kind,
    /// Value before, as the configuration writes it.
    pub before: Option<String>,
    /// Value from now on.
    pub after: Option<String>,
    /// It takes effect when the server starts again.
    pub needs_restart: bool,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = match (self.change, &self.before, &self.after) {
            (Kind::New, _, Some(v)) | (Kind::Gone, Some(v), _) => v.clone(),
            // A secret is not shown, before and after.
            (Kind::Changed, Some(a), Some(b)) if a != b => format!("{a} → {b}"),
            _ => String::new(),
        };
        let join =
            |parts: [&str; 2], with: &str| parts.into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>().join(with);
        let what = join([&self.directive, &value], " ");
        f.write_str(&join([&self.path, &what], ": "))?;
        f.write_str(match self.change {
            Kind::New => ": new",
            Kind::Gone => ": gone",
            Kind::Order => ": order changed",
            Kind::Changed if value.is_empty() => ": changed",
            Kind::Changed => "",
        })
    }
}

/// A directive and what became of it: name, kind, values before and after.
type Differs = (&'static str, Kind, Option<String>, Option<String>);

impl Change {
    fn of(path: String, (directive, change, before, after): Differs) -> Change {
        // A rule says itself what it is.
        let directive = if directive == "/regex/" { "" } else { directive }.to_owned();
        Change { path, directive, change, before, after, needs_restart: false }
    }

    fn block(path: String, is_new: bool) -> Change {
        Change::of(path, ("", if is_new { Kind::New } else { Kind::Gone }, None, None))
    }
}

/// Changes as lines for people.
pub fn as_text(changes: &[Change]) -> String {
    match changes {
        [] => "Nothing changes.".to_owned(),
        all => all.iter().map(Change::to_string).collect::<Vec<_>>().join("\n"),
    }
}

/// What only a restart puts in force, by name.
pub fn restart_needed(changes: &[Change]) -> Vec<String> {
    let names = changes.iter().filter(|c| c.needs_restart).map(|c| match c.path.split_once(' ') {
        Some((tag, _)) => format!("<{tag}>"),
        None => c.directive.clone(),
    });
    names.collect::<BTreeSet<_>>().into_iter().collect()
}

/// Changes in the order: server, blocks, virtual MTAs, pools, paths.
pub fn diff(old: &ArchivedSnapshot, new: &ArchivedSnapshot) -> Vec<Change> {
    let mut all = Vec::new();
    blocks(old, new, &mut all);
    let vmtas = |s: &'_ ArchivedSnapshot| -> Vec<(String, Lines)> {
        s.vmtas.iter().map(|v| (v.name.as_str().to_owned(), lines(&v.settings))).collect()
    };
    of_a_kind("virtual MTA", vmtas(old), vmtas(new), &mut all);
    let pools = |s: &'_ ArchivedSnapshot| -> Vec<(String, Lines)> {
        s.pools.iter().map(|p| (p.name.as_str().to_owned(), lines(&p.settings))).collect()
    };
    of_a_kind("pool", pools(old), pools(new), &mut all);
    members(old, new, &mut all);
    paths(old, new, &mut all);
    all
}

/// Values by row of the table, in the order of the file.
type Lines = BTreeMap<u16, Vec<Value>>;

fn lines(settings: &[ArchivedSetting]) -> Lines {
    let mut all = Lines::new();
    for s in settings {
        // An archive that was validated is read without error.
        if let Ok(v) = rkyv::deserialize::<Value, rkyv::rancor::Error>(&s.value) {
            all.entry(s.key.to_native()).or_default().push(v);
        }
    }
    all
}

/// Lines at top level and in blocks that are neither paths' nor virtual MTAs'.
fn blocks(old: &ArchivedSnapshot, new: &ArchivedSnapshot, all: &mut Vec<Change>) {
    let by_name = |s: &ArchivedSnapshot| -> BTreeMap<(String, String), Lines> {
        let mut m: BTreeMap<(String, String), Lines> = BTreeMap::new();
        for b in s.written.iter() {
            let name = match b.block.as_str() {
                // Names of users count as they are written.
                "smtp-user" => b.name.as_str().to_owned(),
                _ => ipc::network::parse(b.name.as_str())
                    .map_or_else(|| b.name.as_str().to_lowercase(), |n| n.to_string()),
            };
            let into = m.entry((b.block.as_str().to_owned(), name)).or_default();
            for (row, values) in lines(&b.settings) {
                into.entry(row).or_default().extend(values);
            }
        }
        m
    };
    let (o, n) = (by_name(old), by_name(new));
    for key in o.keys().chain(n.keys()).collect::<BTreeSet<_>>() {
        let (block, name) = key;
        let path = format!("{block} {name}").trim_end().to_owned();
        let from = all.len();
        match (o.get(key), n.get(key)) {
            (Some(a), Some(b)) => all.extend(compare(a, b, of_row).into_iter().map(|d| Change::of(path.clone(), d))),
            (before, _) => all.push(Change::block(path, before.is_none())),
        }
        for c in &mut all[from..] {
            c.needs_restart =
                NEEDS_RESTART.contains(&c.directive.as_str()) || NEEDS_RESTART.contains(&format!("<{block}>").as_str());
        }
    }
}

fn of_row(row: u16) -> Option<&'static Directive> {
    // A change of a macro is told of at the paths that the macro stands for.
    directives::all().get(usize::from(row)).filter(|d| d.name != "domain-macro")
}

/// What differs between two lists of lines; `directive` finds the directive of a line.
fn compare(old: &Lines, new: &Lines, directive: impl Fn(u16) -> Option<&'static Directive>) -> Vec<Differs> {
    let none = Vec::new();
    let mut all = Vec::new();
    for key in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
        let Some(d) = directive(*key) else { continue };
        let (a, b) = (old.get(key).unwrap_or(&none), new.get(key).unwrap_or(&none));
        if d.repeats {
            let (before, after): (HashSet<&Value>, HashSet<&Value>) = (a.iter().collect(), b.iter().collect());
            let gone: Vec<&Value> = a.iter().filter(|v| !after.contains(v)).collect();
            let added: Vec<&Value> = b.iter().filter(|v| !before.contains(v)).collect();
            if let ([before], [after]) = (&gone[..], &added[..]) {
                all.push((d.name, Kind::Changed, Some(shown(d, before)), Some(shown(d, after))));
                continue;
            }
            all.extend(gone.into_iter().map(|v| (d.name, Kind::Gone, Some(shown(d, v)), None)));
            all.extend(added.into_iter().map(|v| (d.name, Kind::New, None, Some(shown(d, v)))));
            // Where the first line that matches decides, the order of the lines that are in both lists counts, too.
            if !a.iter().filter(|v| after.contains(v)).eq(b.iter().filter(|v| before.contains(v))) {
                all.push((d.name, Kind::Order, None, None));
            }
        } else if a.last() != b.last() {
            let said = |v: Option<&Value>| v.map_or_else(|| default(d), |v| shown(d, v));
            let (before, after) = (said(a.last()), said(b.last()));
            // A line that says the default changes nothing; of secrets both sides look alike.
            if before != after || (a.last().is_some() && b.last().is_some()) {
                all.push((d.name, Kind::Changed, Some(before), Some(after)));
            }
        }
    }
    all
}

fn default(d: &Directive) -> String {
    if matches!(d.default, "" | "-") { "(none)".to_owned() } else { d.default.to_owned() }
}

/// Virtual MTAs or pools that are new, gone, or say something else; many that change alike are
/// one line.
fn of_a_kind(kind: &str, old: Vec<(String, Lines)>, new: Vec<(String, Lines)>, all: &mut Vec<Change>) {
    let key = |list: Vec<(String, Lines)>| -> BTreeMap<String, (String, Lines)> {
        list.into_iter().map(|(name, l)| (name.to_lowercase(), (name, l))).collect()
    };
    let (old, new) = (key(old), key(new));
    let mut alike: BTreeMap<Differs, Vec<&str>> = BTreeMap::new();
    for name in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
        match (old.get(name), new.get(name)) {
            (Some((_, a)), Some((shown, b))) => {
                for d in compare(a, b, of_row) {
                    alike.entry(d).or_default().push(shown);
                }
            }
            (before, after) => {
                let shown = before.or(after).map_or("", |(n, _)| n.as_str());
                all.push(Change::block(format!("{kind} {shown}"), before.is_none()));
            }
        }
    }
    for (differs, names) in alike {
        let path = match names[..] {
            [one] => format!("{kind} {one}"),
            _ => format!("{} {kind}s", names.len()),
        };
        all.push(Change::of(path, differs));
    }
}

fn members(old: &ArchivedSnapshot, new: &ArchivedSnapshot, all: &mut Vec<Change>) {
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
            let (a, b) = (before.get(m), after.get(m));
            let differs = match (a, b) {
                (None, Some(_)) => ("virtual-mta", Kind::New, None, Some(m.clone())),
                (Some(_), None) => ("virtual-mta", Kind::Gone, Some(m.clone()), None),
                (Some(a), Some(b)) if a != b => {
                    let shown = |weight: &u32| Some(format!("{m} weight={weight}"));
                    ("virtual-mta", Kind::Changed, shown(a), shown(b))
                }
                _ => continue,
            };
            all.push(Change::of(format!("pool {pool}"), differs));
        }
    }
}

/// Values in force for a path, by directive.
fn in_force(s: &ArchivedSnapshot, destination: &str, pool: Option<u32>, vmta: u32) -> BTreeMap<u16, Vec<Value>> {
    let mut all: BTreeMap<u16, Vec<Value>> = BTreeMap::new();
    s.layers.each(destination, pool, vmta, |_, _, _, x| {
        let key = x.key.to_native();
        let repeats = directives::of_domain_key(key).is_some_and(|d| d.repeats);
        let Ok(v) = rkyv::deserialize::<Value, rkyv::rancor::Error>(&x.value) else { return };
        let values = all.entry(key).or_default();
        if !repeats {
            values.clear();
        }
        values.push(v);
    });
    all
}

/// Label → destination that stands for what a pattern matches: a wildcard of both kinds is
/// looked at in both.
fn samples(pattern: &str) -> Vec<(String, String)> {
    let below = |d: &str| (format!("*.{d}"), format!("any-other.{d}"));
    let itself = |d: &str| (d.to_owned(), d.to_owned());
    if pattern == "*" {
        return vec![("*".to_owned(), "any-other.invalid".to_owned())];
    }
    match (pattern.strip_prefix("[*.]"), pattern.strip_prefix("*.")) {
        (Some(d), _) => vec![itself(d), below(d)],
        (_, Some(d)) => vec![below(d)],
        _ => match pattern.split_once('/') {
            // A network of address literals: its first address.
            Some((base, _)) => {
                let parts = base.trim_start_matches('[').split('.').count();
                vec![(pattern.to_owned(), format!("{base}{}]", ".0".repeat(4usize.saturating_sub(parts))))]
            }
            None => vec![itself(pattern)],
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
    let said = |l: &ArchivedLayers, vmta: u32| lines(l.written(pattern, Scope::Vmta(vmta)));
    let mut o = Own { all: HashSet::new(), changed: HashSet::new() };
    // A profile is named by its number, and what it says may have changed.
    let uses_profile = |l: &Lines| l.contains_key(&ipc::layers::USE_PROFILE);
    for (i, k) in kept.iter().enumerate() {
        let (before, after) = (said(old, k.old), said(new, k.new));
        if before.is_empty() && after.is_empty() {
            continue;
        }
        o.all.insert(i);
        if before != after || uses_profile(&before) {
            o.changed.insert(i);
        }
    }
    o
}

/// Path and what differs → virtual MTAs.
type ByPath<'a> = BTreeMap<(String, Differs), Vec<&'a str>>;

fn paths(old: &ArchivedSnapshot, new: &ArchivedSnapshot, all: &mut Vec<Change>) {
    let kept = kept(old, new);
    let patterns: BTreeSet<&str> = old.layers.patterns().chain(new.layers.patterns()).collect();
    let own: HashMap<&str, Own> = patterns
        .iter()
        .filter(|p| old.layers.has_vmtas(p) || new.layers.has_vmtas(p))
        .map(|p| (*p, own(&old.layers, &new.layers, p, &kept)))
        .collect();
    let destinations: BTreeMap<String, (String, &str)> =
        patterns.iter().flat_map(|p| samples(p).into_iter().map(move |(label, d)| (label, (d, *p)))).collect();
    let mut changes = ByPath::new();
    for (label, (destination, pattern)) in destinations {
        let matching = matching_patterns(&destination).into_iter().chain([pattern.to_owned()]);
        let mine: Vec<&Own> = matching.filter_map(|p| own.get(p.as_str())).collect();
        // The change for virtual MTAs that say nothing of their own here, by pool.
        let mut above: HashMap<(Option<u32>, Option<u32>), Vec<Differs>> = HashMap::new();
        for (i, k) in kept.iter().enumerate() {
            let pools = (old.pool_of(k.old), new.pool_of(k.new));
            let general = above.entry(pools).or_insert_with(|| {
                differs(&in_force(old, &destination, pools.0, NO_VMTA), &in_force(new, &destination, pools.1, NO_VMTA))
            });
            let speaks = mine.iter().any(|o| o.all.contains(&i));
            let alone = speaks && (!general.is_empty() || mine.iter().any(|o| o.changed.contains(&i)));
            let of_its_own = alone.then(|| {
                differs(&in_force(old, &destination, pools.0, k.old), &in_force(new, &destination, pools.1, k.new))
            });
            for d in of_its_own.as_ref().unwrap_or(general) {
                changes.entry((ipc::message::shown_domain(&label), d.clone())).or_default().push(k.name);
            }
        }
    }
    join_wildcards(&mut changes);
    tell(&changes, kept.len(), all);
}

/// A change that is the same for a domain and for all domains below it is told of once, for `[*.]domain`.
fn join_wildcards(changes: &mut ByPath<'_>) {
    let below: Vec<(String, Differs)> = changes.keys().filter(|(path, _)| path.starts_with("*.")).cloned().collect();
    for key in below {
        let itself = (key.0[2..].to_owned(), key.1.clone());
        if changes.get(&itself).is_some_and(|v| changes.get(&key) == Some(v))
            && let Some(vmtas) = changes.remove(&key)
        {
            changes.remove(&itself);
            changes.insert((format!("[*.]{}", itself.0), itself.1), vmtas);
        }
    }
}

/// Changes as lines: many virtual MTAs that change alike are one.
fn tell(changes: &ByPath<'_>, vmtas_in_all: usize, all: &mut Vec<Change>) {
    // A change for every destination is not told of again for each destination that some line names.
    let general: HashMap<&Differs, &Vec<&str>> =
        changes.iter().filter(|((path, _), _)| path == "*").map(|((_, d), v)| (d, v)).collect();
    for ((pattern, differs), vmtas) in changes {
        if pattern != "*" && general.get(differs).is_some_and(|g| *g == vmtas) {
            continue;
        }
        let path = match vmtas.len() {
            n if n == vmtas_in_all => pattern.clone(),
            1 => format!("{pattern}/{}", vmtas[0]),
            n => format!("{pattern} × {n} virtual MTAs"),
        };
        all.push(Change::of(path, differs.clone()));
    }
}

fn differs(old: &Lines, new: &Lines) -> Vec<Differs> {
    compare(old, new, directives::of_domain_key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// What changes between two texts, by the lines that people read.
    fn between(old: &str, new: &str) -> Vec<String> {
        let map = |text: &str| {
            let checked = crate::config::compile::compile_text(Path::new("c.conf"), text);
            assert_eq!(checked.errors(), None);
            crate::config::map(&checked.compiled.snapshot.seal().expect("a memfd")).expect("just sealed")
        };
        diff(map(old).get(), map(new).get()).iter().map(Change::to_string).collect()
    }

    #[test]
    fn server_blocks_and_virtual_mtas_are_compared_line_by_line() {
        let old = "data-dir /tmp/a\nrelay-domain a.test\nspool-sync group\n<source 10/8>\n always-allow-relaying no\n</source>\n\
            <virtual-mta v>\n max-smtp-out 5\n</virtual-mta>\n<spool one>\n min-free-space 1M\n</spool>\n\
            <smtp-pattern-list l>\n reply /a/ mode=backoff\n</smtp-pattern-list>\n<domain *>\n smtp-pattern-list l\n</domain>\n";
        for (from, to, told) in [
            ("data-dir /tmp/a", "data-dir /tmp/b", "data-dir /tmp/a → /tmp/b"),
            ("relay-domain a.test", "relay-domain b.test", "relay-domain a.test → b.test"),
            ("spool-sync group", "spool-sync none", "spool-sync group → none"),
            ("relaying no", "relaying yes", "source 10.0.0.0/8: always-allow-relaying no → yes"),
            ("<source 10/8>", "<source 10.0.0.0/9>", "source 10.0.0.0/8: gone|source 10.0.0.0/9: new"),
            ("max-smtp-out 5", "max-smtp-out 6", "virtual MTA v: max-smtp-out 5 → 6"),
            ("min-free-space 1M", "min-free-space 2M", "spool one: min-free-space 1M → 2M"),
            ("/a/ mode=backoff", "/b/ mode=backoff", "smtp-pattern-list l: reply /a/ mode=backoff → /b/ mode=backoff"),
        ] {
            assert_eq!(between(old, &old.replace(from, to)).join("|"), told, "{from} → {to}");
        }
        assert!(between(old, old).is_empty());
    }

    #[test]
    fn a_wildcard_that_loses_the_domain_itself_is_told_of_it() {
        let block = |pattern: &str, n: u32| format!("<domain {pattern}>\n max-smtp-out {n}\n</domain>\n");
        assert_eq!(between(&block("[*.]y.test", 5), &block("*.y.test", 5)), ["y.test: max-smtp-out 5 → 20"]);
        assert_eq!(between(&block("*.y.test", 5), &block("[*.]y.test", 5)), ["y.test: max-smtp-out 20 → 5"]);
        assert_eq!(between(&block("[*.]y.test", 5), &block("[*.]y.test", 6)), ["[*.]y.test: max-smtp-out 5 → 6"]);
        assert_eq!(between(&block("[10.0.0.0/8]", 5), &block("[10.0.0.0/8]", 6)), ["[10.0.0.0/8]: max-smtp-out 5 → 6"]);
    }

    #[test]
    fn a_profile_that_changes_is_told_at_the_paths_that_use_it() {
        let text = |n: u32| {
            format!(
                "<profile p>\n max-smtp-out {n}\n</profile>\n<virtual-mta v>\n <domain d.test>\n use-profile p\n </domain>\n</virtual-mta>\n"
            )
        };
        assert_eq!(between(&text(3), &text(4)), ["d.test/v: max-smtp-out 3 → 4"]);
    }

    #[test]
    fn a_secret_that_changes_is_told_without_it() {
        let text = |word: &str| format!("<domain d.test>\n auth-password {word}\n</domain>\n");
        assert_eq!(between(&text("a"), &text("b")), ["d.test: auth-password: changed"]);
        let user = |name: &str, word: &str| format!("<smtp-user {name}>\n password {word}\n</smtp-user>\n");
        let both = user("Shop", "a") + &user("shop", "a");
        assert_eq!(between(&both, &user("shop", "a")), ["smtp-user Shop: gone"]);
        assert_eq!(between(&user("shop", "a"), &user("shop", "b")), ["smtp-user shop: password: changed"]);
    }
}

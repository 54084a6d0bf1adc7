//! Why a directive has the value that it has: every line that speaks for a path, weakest
//! first, read from the same snapshot and in the same order as workers read it.

use std::collections::BTreeMap;

use ipc::layers::{ArchivedProfile, Scope};
use ipc::rules::{ArchivedSetting, Value};
use ipc::snapshot::ArchivedSnapshot;

use super::compile::pattern_key;
use super::diagnostic::SECRETS;
use super::directives::{self, Directive, Status};
use super::value;

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
    /// The directive is only stored so far.
    pub pending: bool,
}

/// Whom mail goes through: index of the virtual MTA, or none, and of the pool.
fn chosen(s: &ArchivedSnapshot, name: &str) -> Result<(Option<u32>, Option<u32>), String> {
    let key = name.to_lowercase();
    if key.is_empty() {
        return Ok((Some(0), s.pool_of(0)));
    }
    if let Some(i) = s.vmta_by_name.get(key.as_str()).map(|i| i.to_native()) {
        return Ok((Some(i), s.pool_of(i)));
    }
    match s.pool_by_name.get(key.as_str()) {
        Some(i) => Ok((None, Some(i.to_native()))),
        None => Err(format!("{name} is neither a virtual MTA nor a pool in this configuration")),
    }
}

/// An index that no virtual MTA has: only what stands above them counts.
const NO_VMTA: u32 = u32::MAX >> 2;

/// Every directive in force for mail to `destination` through a virtual MTA or pool (none:
/// `{default}`), by name. `only` names one directive.
///
/// # Errors
/// A sentence when the virtual MTA or the directive does not exist.
pub fn explain(s: &ArchivedSnapshot, destination: &str, name: &str, only: &str) -> Result<Vec<Explained>, String> {
    let (vmta, pool) = chosen(s, name)?;
    let wanted = directives::canonical(only).to_ascii_lowercase();
    if !only.is_empty() && directives::find(&wanted, "domain").is_none() {
        let known = directives::all().iter().filter(|d| d.blocks.contains(&"domain")).map(|d| d.name);
        let near = super::diagnostic::nearest(&wanted, known).map(|n| format!("; did you mean {n}?"));
        return Err(format!("{only} is no directive of <domain>{}", near.unwrap_or_default()));
    }
    let mut chains: BTreeMap<u16, Vec<Said>> = BTreeMap::new();
    let destination = pattern_key(destination);
    s.layers.each(&destination, pool, vmta.unwrap_or(NO_VMTA), |scope, pattern, profile, setting| {
        let Some(d) = directives::of_domain_key(setting.key.to_native()) else { return };
        let Ok(v) = rkyv::deserialize::<Value, rkyv::rancor::Error>(&setting.value) else { return };
        let said = Said { value: shown(d, &v), origin: origin(s, scope, pattern, profile, setting) };
        let chain = chains.entry(setting.key.to_native()).or_default();
        // The same line again: a profile that is used twice.
        if chain.last() != Some(&said) {
            chain.push(said);
        }
    });
    let mut all: Vec<Explained> = Vec::new();
    for (i, d) in directives::all().iter().enumerate().filter(|(_, d)| d.blocks.contains(&"domain")) {
        let asked = only.is_empty() || d.name == wanted;
        if !asked || d.kind == "block" || directives::canonical(d.name) != d.name {
            continue;
        }
        let default = Said {
            value: d.default.to_owned(),
            origin: Origin { layer: "default".into(), file: String::new(), line: 0 },
        };
        let mut chain = chains.remove(&directives::domain_key(i)).unwrap_or_default();
        let set = !chain.is_empty();
        chain.insert(0, default);
        let pending = d.status != Status::Supported;
        if !set && (pending || d.name == "include") && only.is_empty() {
            continue;
        }
        let Some(last) = chain.pop() else { continue };
        chain.reverse();
        all.push(one(d.name, last, chain, pending));
    }
    if only.is_empty() {
        beside_domains(s, vmta, pool, &mut all);
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

/// What the blocks of pool and virtual MTA set beside `<domain>`; the virtual MTA wins.
fn beside_domains(s: &ArchivedSnapshot, vmta: Option<u32>, pool: Option<u32>, all: &mut Vec<Explained>) {
    let pool = pool.and_then(|i| s.pools.get(i as usize)).map(|p| (format!("pool {}", p.name.as_str()), &p.settings));
    let vmta = vmta.and_then(|i| s.vmtas.get(i as usize));
    let vmta = vmta.map(|v| (format!("virtual-mta {}", v.name.as_str()), &v.settings));
    let mut chains: BTreeMap<&str, Vec<(Said, bool)>> = BTreeMap::new();
    for (layer, settings) in pool.into_iter().chain(vmta) {
        for x in settings.iter() {
            let Some(d) = directives::all().get(usize::from(x.key.to_native())) else { continue };
            let Ok(v) = rkyv::deserialize::<Value, rkyv::rancor::Error>(&x.value) else { continue };
            let origin = Origin { layer: layer.clone(), ..written_at(s, x) };
            let chain = chains.entry(d.name).or_default();
            // Lines that add up all count, and each is told.
            if d.repeats && !chain.is_empty() {
                let said = Said { value: shown(d, &v), origin };
                all.push(one(d.name, said, Vec::new(), d.status != Status::Supported));
            } else {
                chain.push((Said { value: shown(d, &v), origin }, d.status != Status::Supported));
            }
        }
    }
    for (name, mut chain) in chains {
        let Some((last, pending)) = chain.pop() else { continue };
        let overrides = chain.into_iter().rev().map(|(s, _)| s).collect();
        all.push(one(name, last, overrides, pending));
    }
}

fn one(name: &str, said: Said, overrides: Vec<Said>, pending: bool) -> Explained {
    Explained { name: name.into(), value: said.value, origin: said.origin, overrides, pending }
}

fn written_at(s: &ArchivedSnapshot, setting: &ArchivedSetting) -> Origin {
    let file = s.files.get(usize::from(setting.file.to_native())).map_or("", |f| f.as_str());
    Origin { layer: String::new(), file: file.to_owned(), line: setting.line.to_native() }
}

/// A value as the configuration would write it, unless it is a secret.
pub fn shown(d: &Directive, v: &Value) -> String {
    if SECRETS.contains(&d.name) {
        return "(secret)".to_owned();
    }
    match value::show(d.kind, v) {
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
    let layer = format!("{name} <domain {}>{through}", ipc::message::shown_domain(pattern));
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

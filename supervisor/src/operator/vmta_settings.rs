//! `show vmta-settings`: what the block of one virtual MTA says, as PowerMTA's command of that name shows it.

use ipc::operator::Request;
use ipc::snapshot::Snapshot;
use serde::{Deserialize, Serialize};

use super::client::{Target, read};
use super::output::{json, print};
use crate::Failure;
use crate::config::nearest::perhaps;
use crate::config::{directives, explain};

/// Length of the line above the settings.
const RULE: usize = 79;

/// What is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmtaSettings {
    /// Name.
    pub virtual_mta: String,
    /// Directives of its block and their values, by name.
    pub settings: Vec<(String, String)>,
    /// Addresses that it sends from, with their names; those of the top level where it has none.
    pub source_hosts: Vec<(String, String)>,
    /// Its DKIM keys: selector, domain, file.
    pub domain_keys: Vec<(String, String, String)>,
}

/// Those of a virtual MTA.
///
/// # Errors
/// A sentence when there is none of this name.
pub fn of(s: &Snapshot, name: &str) -> Result<VmtaSettings, String> {
    let key = name.to_lowercase();
    let found = s.vmta_by_name.get(&key).and_then(|i| s.vmtas.get(*i as usize));
    let Some(v) = found else {
        let near = perhaps(&key, s.vmta_by_name.keys().map(String::as_str));
        return Err(format!("there is no virtual MTA {name}{near}"));
    };
    // They have tables of their own.
    let in_tables = |name: &str| matches!(directives::canonical(name), "smtp-source-host" | "domain-key");
    let rows = v.settings.iter().filter_map(|x| Some((directives::all().get(usize::from(x.key))?, &x.value)));
    let mut settings: Vec<(String, String)> = rows
        .filter(|(d, _)| !in_tables(d.name))
        .map(|(d, value)| (d.name.to_owned(), explain::shown(d, value)))
        .collect();
    settings.sort();
    Ok(VmtaSettings {
        virtual_mta: v.name.clone(),
        settings,
        source_hosts: v.source_hosts.iter().map(|h| (h.ip.clone(), h.name.clone())).collect(),
        domain_keys: v.domain_keys.iter().map(|k| (k.selector.clone(), k.domain.clone(), k.path.clone())).collect(),
    })
}

/// As PowerMTA prints them.
fn text(v: &VmtaSettings) -> String {
    let mut out = format!("{}\n", "-".repeat(RULE));
    v.settings.iter().for_each(|(name, value)| out += &format!("{name} {value}\n"));
    let mut hosts: Vec<Vec<&str>> = v.source_hosts.iter().map(|(ip, name)| vec![ip.as_str(), name.as_str()]).collect();
    if hosts.is_empty() {
        hosts.push(vec!["0.0.0.0", ""]);
    }
    out += &right_aligned(&["Source Host IP", "Source Host"], &hosts);
    let keys: Vec<Vec<&str>> = v.domain_keys.iter().map(|(s, d, f)| vec![s.as_str(), d.as_str(), f.as_str()]).collect();
    out + &right_aligned(&["Domain Key selector", "domain", "source"], &keys)
}

/// A table with its columns to the right, and a line of dashes below its head.
fn right_aligned(head: &[&str], rows: &[Vec<&str>]) -> String {
    let width =
        |i: usize| rows.iter().map(|r| r[i]).chain([head[i]]).map(|c| c.chars().count()).max().unwrap_or_default();
    let line = |cells: &[&str]| {
        let cells = cells.iter().enumerate().map(|(i, c)| format!("{c:>0$}", width(i)));
        cells.collect::<Vec<_>>().join("  ") + "\n"
    };
    let dashes: Vec<String> = (0..head.len()).map(|i| "-".repeat(width(i))).collect();
    let dashes: Vec<&str> = dashes.iter().map(String::as_str).collect();
    format!("\n{}{}{}", line(head), line(&dashes), rows.iter().map(|r| line(r)).collect::<String>())
}

/// Asks the server and prints them.
///
/// # Errors
/// [`Failure`]; also when there is no such virtual MTA.
pub fn show(target: &Target, vmta: String, as_json: bool) -> Result<(), Failure> {
    let found: VmtaSettings = read(target, &Request::VmtaSettings { vmta })?;
    if as_json {
        return json(&found);
    }
    print(text(&found).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_to_the_right_below_dashes() {
        let v = VmtaSettings {
            virtual_mta: "v".into(),
            settings: vec![("host-name".into(), "a.test".into()), ("max-smtp-out".into(), "5".into())],
            source_hosts: vec![("192.0.2.1".into(), "a.test".into())],
            domain_keys: vec![("sel".into(), "a.test".into(), "/k.pem".into())],
        };
        let expected = "\
host-name a.test
max-smtp-out 5

Source Host IP  Source Host
--------------  -----------
     192.0.2.1       a.test

Domain Key selector  domain  source
-------------------  ------  ------
                sel  a.test  /k.pem
";
        assert_eq!(text(&v), format!("{}\n{expected}", "-".repeat(RULE)));
        let empty = VmtaSettings { source_hosts: Vec::new(), ..v };
        assert!(text(&empty).contains("\n       0.0.0.0             \n"));
    }
}

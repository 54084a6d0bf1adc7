//! The directive table: the one source of truth for parser, validation, `config
//! directives` and documentation. The data lies in `directives.tsv` beside this file.

use std::collections::HashMap;
use std::sync::OnceLock;

/// Whether a directive is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// In force today.
    Supported,
    /// Parsed and validated, not in force yet.
    Pending,
    /// Harmless here, ignored on purpose.
    Accepted,
    /// Refused, with a reason.
    Refused,
}

/// One row: a directive in some blocks.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Directive {
    /// Name; blocks in angle brackets.
    pub name: &'static str,
    /// Blocks where it is valid.
    pub blocks: Vec<&'static str>,
    /// Type that values are checked against.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Form of the value.
    pub unit: &'static str,
    /// Default.
    pub default: &'static str,
    /// What it is counted or evaluated for.
    pub scope: &'static str,
    /// Whether it is in force.
    pub status: Status,
    /// Why it is accepted or refused.
    pub reason: &'static str,
    /// Meaning.
    pub doc: &'static str,
}

/// All directives.
pub fn all() -> &'static [Directive] {
    static TABLE: OnceLock<Vec<Directive>> = OnceLock::new();
    TABLE.get_or_init(|| include_str!("directives.tsv").lines().skip(1).filter_map(row).collect())
}

fn row(line: &'static str) -> Option<Directive> {
    let mut c = line.split('\t');
    Some(Directive {
        name: c.next()?,
        blocks: c.next()?.split(',').collect(),
        kind: c.next()?,
        unit: c.next()?,
        default: c.next()?,
        scope: c.next()?,
        status: match c.next()? {
            "supported" => Status::Supported,
            "accepted" => Status::Accepted,
            "refused" => Status::Refused,
            _ => Status::Pending,
        },
        reason: c.next()?,
        doc: c.nth(1)?,
    })
}

/// The row of `name` in `block`.
pub fn find(name: &str, block: &str) -> Option<&'static Directive> {
    static INDEX: OnceLock<HashMap<(&'static str, &'static str), usize>> = OnceLock::new();
    let index = INDEX.get_or_init(|| {
        let rows = all().iter().enumerate();
        rows.flat_map(|(i, d)| d.blocks.iter().map(move |b| ((*b, d.name), i))).collect()
    });
    index.get(&(block, name)).map(|i| &all()[*i])
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::rules::{DomainKey, SourceKey};

    #[test]
    fn what_the_table_calls_supported_is_in_force_and_the_reverse() {
        for d in all() {
            let in_force = DomainKey::named(alias_of(d.name)).is_some();
            if d.blocks.contains(&"domain") && d.name != "include" {
                assert_eq!(d.status == Status::Supported, in_force, "{} in <domain>", d.name);
            }
            if d.blocks == ["source"] && d.name != "include" {
                assert_eq!(d.status == Status::Supported, SourceKey::named(d.name).is_some(), "{} in <source>", d.name);
            }
        }
        assert!(all().len() > 400);
    }

    #[test]
    fn values_of_the_table_are_what_the_rules_take() {
        for d in all().iter().filter(|d| d.status == Status::Supported) {
            let kind = d.kind.split(':').next().unwrap_or_default();
            for block in &d.blocks {
                let kinds = match *block {
                    "domain" => DomainKey::named(alias_of(d.name)).map(DomainKey::kinds),
                    "source" => SourceKey::named(d.name).map(SourceKey::kinds),
                    _ => None,
                };
                assert!(kinds.is_none_or(|k| k.contains(&kind)), "{} in <{block}> is {kind}", d.name);
            }
        }
    }

    fn alias_of(name: &str) -> &str {
        if name == "max-msg-per-conn" { "max-msg-per-connection" } else { name }
    }
}

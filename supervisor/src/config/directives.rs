//! The directive table: the one source of truth for parser, validation, `config
//! directives` and documentation. The data lies in `directives.tsv` beside this file.

use std::collections::HashMap;
use std::sync::OnceLock;

use ipc::rules::{DomainKey, PENDING, Value};

use super::types::Type;

/// Whether a directive is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// In force today.
    Supported,
    /// Parsed and validated, not in force yet: mail goes as if the line were not there.
    Pending,
    /// The same, and mail that it is about is kept back: without the line in force that mail would come in, go elsewhere, or
    /// show what it must not.
    Withheld,
    /// Harmless here, ignored on purpose.
    Accepted,
    /// Without effect here; a warning tells the operator so, and what to do instead.
    Ignored,
}

impl Status {
    /// Its values are more than checked and shown.
    pub fn reaches_workers(self) -> bool {
        matches!(self, Status::Supported | Status::Withheld)
    }
}

/// One row: a directive in some blocks.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Directive {
    /// Name; blocks in angle brackets.
    pub name: &'static str,
    /// Blocks where it is valid.
    pub blocks: Vec<&'static str>,
    /// Name of the type, as it stands in the table.
    #[serde(rename = "type")]
    pub type_name: &'static str,
    /// The type, which values are checked against.
    #[serde(skip)]
    pub kind: Type,
    /// Form of the value.
    pub unit: &'static str,
    /// Default.
    pub default: &'static str,
    /// What it is counted or evaluated for.
    pub scope: &'static str,
    /// Whether it is in force.
    pub status: Status,
    /// Why it is accepted or ignored; what becomes of mail where it is withheld; of one that is pending what happens, where
    /// that is not its default.
    pub reason: &'static str,
    /// Several lines add up; else the last one wins.
    pub repeats: bool,
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
    let (name, blocks, type_name) = (c.next()?, c.next()?, c.next()?);
    Some(Directive {
        name,
        blocks: blocks.split(',').collect(),
        type_name,
        kind: Type::named(type_name)?,
        unit: c.next()?,
        default: c.next()?,
        scope: c.next()?,
        status: match c.next()? {
            "supported" => Status::Supported,
            "accepted" => Status::Accepted,
            "withheld" => Status::Withheld,
            "ignored" => Status::Ignored,
            _ => Status::Pending,
        },
        reason: c.next()?,
        repeats: c.next()? == "yes",
        doc: c.next()?,
    })
}

/// Number of the row of `name` in `block`. What stands in a `<profile>` is what stands in a
/// `<domain>`, a line that begins with an expression goes by `/regex/`, and what was about DomainKeys (`dk-…`) by `dk-sign`.
pub fn row_of(name: &str, block: &str) -> Option<usize> {
    static INDEX: OnceLock<HashMap<(&'static str, &'static str), usize>> = OnceLock::new();
    let index = INDEX.get_or_init(|| {
        let rows = all().iter().enumerate();
        rows.flat_map(|(i, d)| d.blocks.iter().map(move |b| ((*b, d.name), i))).collect()
    });
    let block = if block == "profile" { "domain" } else { block };
    let name = match name {
        n if n.starts_with('/') => "/regex/",
        n if n.starts_with("dk-") => "dk-sign",
        n => n,
    };
    index.get(&(block, name)).copied()
}

/// The row of `name` in `block`.
pub fn find(name: &str, block: &str) -> Option<&'static Directive> {
    row_of(name, block).map(|i| &all()[i])
}

/// Whether a value names nothing: `""`, `none`.
pub fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Text(t) => t.is_empty(),
        Value::TextList(l) => l.is_empty() || *l == ["none"],
        _ => false,
    }
}

impl Directive {
    /// A line of this directive, which is not in force, says what happens anyway, or nothing.
    pub fn says_what_happens(&self, value: &Value) -> bool {
        let is_none = is_nothing(value) || (self.status == Status::Withheld && *value == Value::Flag(false));
        let happens = self.reason.strip_prefix("what happens is ").unwrap_or(self.default);
        is_none || self.kind.parse(happens).is_ok_and(|p| p.value == *value)
    }
}

/// The name that a directive is in force under: of an alias the one it stands for.
pub fn canonical(name: &str) -> &str {
    match name {
        "max-msg-per-conn" => "max-msg-per-connection",
        "max-conn-rate" => "max-connect-rate",
        "delivery-priority" => "queue-priority",
        "route" => "smtp-hosts",
        "421-means-mx-unavailable" => "smtp-421-means-mx-unavailable",
        "max-rcpt-per-message" => "max-rcpt-per-transaction",
        "max-smtp-out-per-source-ip" => "source-ip-max-smtp-out",
        "smtp-source-ip" => "smtp-source-host",
        n => n,
    }
}

/// Key of a `<domain>` directive's settings.
pub fn domain_key(row: usize) -> u16 {
    let name = canonical(all()[row].name);
    let row = row_of(name, "domain").unwrap_or(row);
    DomainKey::named(name).map_or(PENDING + row as u16, |k| k as u16)
}

/// The row of a `<domain>` directive by the key of its settings.
pub fn of_domain_key(key: u16) -> Option<&'static Directive> {
    static INDEX: OnceLock<HashMap<u16, usize>> = OnceLock::new();
    let index = INDEX.get_or_init(|| {
        let rows =
            all().iter().enumerate().filter(|(_, d)| d.blocks.contains(&"domain") && canonical(d.name) == d.name);
        rows.map(|(i, _)| (domain_key(i), i)).collect()
    });
    index.get(&key).map(|i| &all()[*i])
}

#[cfg(test)]
mod tests {
    use super::super::problem::Problem;
    use super::*;
    use ipc::rules::SourceKey;
    use proptest::prelude::*;

    #[test]
    fn what_the_table_calls_supported_is_in_force_and_the_reverse() {
        for d in all() {
            let in_force = DomainKey::named(canonical(d.name)).is_some();
            if d.blocks.contains(&"domain") && !matches!(d.name, "include" | "use-profile") {
                assert_eq!(d.status.reaches_workers(), in_force, "{} in <domain>", d.name);
            }
            if d.blocks == ["source"] && d.name != "include" {
                assert_eq!(d.status.reaches_workers(), SourceKey::named(d.name).is_some(), "{} in <source>", d.name);
            }
        }
        assert!(all().len() > 400);
        let known = ["supported", "pending", "withheld", "accepted", "ignored"];
        for line in include_str!("directives.tsv").lines().skip(1) {
            let status = line.split('\t').nth(6).unwrap_or_default();
            assert!(known.contains(&status), "{line}");
        }
        // No row is left out, as one of an unknown type would be.
        assert_eq!(all().len(), include_str!("directives.tsv").lines().count() - 1);
    }

    #[test]
    fn defaults_are_values() {
        // A default that is no value names what the directive follows by default.
        let says = |t: &str| {
            matches!(t, "-" | "?" | "\"\"" | "" | "none" | "*") || t.contains(' ') || t == "global" || t == "system"
        };
        let mut wrong = Vec::new();
        for d in all().iter().filter(|d| d.kind != Type::Block && !says(d.default)) {
            // Where a directive takes a network before its value, the default is one of the value.
            if matches!(d.kind, Type::Args(_)) {
                continue;
            }
            let needs_a_file = matches!(d.kind, Type::File | Type::ListFile | Type::Certificate);
            if !needs_a_file && d.kind.parse(d.default).is_err() {
                wrong.push(format!("{} in {:?}: {} is no {}", d.name, d.blocks, d.default, d.type_name));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn values_of_the_table_are_what_the_rules_take() {
        for d in all().iter().filter(|d| d.status.reaches_workers()) {
            let kind = d.type_name.split(':').next().unwrap_or_default();
            for block in &d.blocks {
                let kinds = match *block {
                    "domain" => DomainKey::named(canonical(d.name)).map(DomainKey::kinds),
                    "source" => SourceKey::named(d.name).map(SourceKey::kinds),
                    _ => None,
                };
                assert!(kinds.is_none_or(|k| k.contains(&kind)), "{} in <{block}> is {kind}", d.name);
            }
        }
    }

    #[test]
    fn where_yes_is_a_word_true_and_false_are_too() {
        for d in all() {
            let Type::Enum(words) = d.kind else { continue };
            let words: Vec<&str> = words.split(',').collect();
            if words.contains(&"yes") {
                assert!(words.contains(&"no"), "{}", d.name);
                assert!(d.kind.parse("TRUE").is_ok() && d.kind.parse("false").is_ok(), "{}", d.name);
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_value_or_a_problem(s in "\\PC{0,20}") {
            for d in all() {
                if let Err(Problem { part: Some((at, len)), .. }) = d.kind.parse(&s) {
                    prop_assert!(at + len <= s.len(), "{} {s:?}", d.type_name);
                }
            }
        }
    }
}

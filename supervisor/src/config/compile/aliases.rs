//! `alias`, at top level or in `<aliases>`, and what `postmaster` stands for.

use std::collections::{BTreeMap, BTreeSet};

use worker::prepare::aliases::of_domain;
use worker::suppression::normal_address;

use super::super::aliases::{Aliases, DEPTH_MAX, Line, TARGETS_MAX};
use super::{Compiler, Diagnostic, Problem, Statement};

/// Lines.
const ALIASES_MAX: usize = 100_000;
/// Addresses that all of them together may lead to: every worker has the list.
const ALL_TARGETS_MAX: usize = 500_000;

/// The halves of an address that mail can be sent to; the domain as A-labels.
fn target_of(address: &str) -> Option<(String, String)> {
    let (local, domain) = address.rsplit_once('@')?;
    let domain = ipc::message::normalise_domain(domain).ok()?;
    let spelled = if domain.starts_with('[') { domain.replace("[ipv6:", "[IPv6:") } else { domain };
    worker::smtp::command::rcpt(&format!("<{local}@{spelled}>"), false).ok()?;
    Some((local.to_owned(), spelled))
}

impl Compiler<'_> {
    /// Takes a line.
    pub(super) fn alias(&mut self, s: &Statement, text: &str) {
        let (source, targets) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        if self.out.aliases.len() >= ALIASES_MAX {
            return self.error(s.at, "too-many-lines", format!("more than {ALIASES_MAX} aliases"), "");
        }
        let source = match source.split_once("*@") {
            Some(("", domain)) => match ipc::message::normalise_domain(domain) {
                Ok(domain) => of_domain(&domain),
                Err(e) => return self.problem(s, Problem::other(e)),
            },
            _ if source.contains('@') => match normal_address(source) {
                Ok(address) => address,
                Err(e) => return self.problem(s, Problem::other(e)),
            },
            _ if normal_address(&format!("{source}@d")).is_ok() && source != "*" => source.to_lowercase(),
            _ => return self.problem(s, Problem::expected("an e-mail address, its local part, or *@DOMAIN", source)),
        };
        let mut all = Vec::new();
        for target in targets.split(',').map(str::trim) {
            let target = target.trim_start_matches('<').trim_end_matches('>');
            // A local part alone is one of this host.
            let full = if target.contains('@') { target.to_owned() } else { format!("{target}@localhost") };
            let Some((local, domain)) = target_of(&full) else {
                let expected = "an e-mail address whose local part is ASCII, as RCPT has it";
                return self.problem(s, Problem::expected(expected, target));
            };
            all.push(if target.contains('@') { format!("{local}@{domain}") } else { local });
        }
        self.out.aliases.push(Line { source, targets: all, at: s.at });
    }

    /// Puts together where mail goes, once it is known which domains are local, and where postmasters are.
    pub(super) fn aliases(&mut self) {
        let lines = std::mem::take(&mut self.out.aliases);
        let global = &self.snapshot.global;
        let (domains, host) = (global.local_domains.clone(), global.host_name.clone());
        let mut aliases = Aliases::default();
        let (mut at, mut written) = (BTreeMap::new(), 0);
        for line in lines {
            let sources = match line.source.contains('@') {
                true => vec![line.source],
                false => domains.iter().map(|d| format!("{}@{d}", line.source)).collect(),
            };
            written += sources.len().saturating_mul(line.targets.len());
            if written > ALL_TARGETS_MAX {
                let message = format!("aliases name more than {ALL_TARGETS_MAX} addresses, at all local domains");
                return self.error(line.at, "too-many-targets", message, "name a mailing list in place of its members");
            }
            for source in sources {
                let full = line.targets.iter().map(|t| match t.contains('@') {
                    true => t.clone(),
                    false => format!("{t}@{host}"),
                });
                aliases.0.entry(source.clone()).or_default().extend(full);
                at.entry(source).or_insert(line.at);
            }
        }
        // RFC 2142.
        for role in ["postmaster", "abuse"] {
            for d in domains.iter().filter(|_| !global.postmaster.is_empty()) {
                aliases.0.entry(format!("{role}@{d}")).or_insert_with(|| global.postmaster.clone());
            }
        }
        let (mut circles, mut all) = (BTreeSet::new(), 0);
        for key in aliases.0.keys() {
            let at = at.get(key).copied().unwrap_or_default();
            let Some(found) = aliases.led_to(key, &mut circles) else {
                let message =
                    format!("alias {key} leads to more than {TARGETS_MAX} addresses, or through as many aliases");
                return self.error(at, "too-many-targets", message, "");
            };
            all += found.len();
            if all > ALL_TARGETS_MAX {
                let message = format!("aliases lead to more than {ALL_TARGETS_MAX} addresses in all");
                return self.error(at, "too-many-targets", message, "name a mailing list in place of its members");
            }
            self.snapshot.aliases.insert(key.clone(), found);
        }
        for key in circles {
            if let Some(at) = at.get(&key) {
                let message = format!("aliases lead from {key} back to it, or through more than {DEPTH_MAX} others");
                let help = "the address at which that is seen gets the mail itself";
                let d = Diagnostic::error(*at, "alias-circle", message, help);
                self.reader.diagnostics.push(Diagnostic { is_error: false, ..d });
            }
        }
    }
}

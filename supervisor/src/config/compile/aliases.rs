//! `alias`, at top level or in `<aliases>`, and what `postmaster` stands for.

use std::collections::{BTreeMap, BTreeSet};

use worker::prepare::aliases::of_domain;
use worker::suppression::normal_address;

use super::{Compiler, Diagnostic, Problem, Span, Statement};

/// Addresses that mail to one may go to.
const TARGETS_MAX: usize = 1000;
/// Lines.
const ALIASES_MAX: usize = 100_000;
/// Aliases that lead to each other, one behind the other; more are not followed.
const DEPTH_MAX: usize = 32;

/// An `alias`.
#[derive(Debug)]
pub(super) struct Line {
    /// The address, `*@domain`, or a local part at each local domain.
    source: String,
    targets: Vec<String>,
    at: Span,
}

/// What aliases lead to, as far as lines say it: by address, or `*@domain`.
#[derive(Debug, Default)]
struct Aliases(BTreeMap<String, Vec<String>>);

impl Aliases {
    /// The name of the alias that an address is.
    fn key_of(&self, address: &str) -> Option<String> {
        let address = normal_address(address).ok()?;
        if self.0.contains_key(&address) {
            return Some(address);
        }
        let key = of_domain(address.rsplit_once('@')?.1);
        self.0.contains_key(&key).then_some(key)
    }

    /// The addresses that an alias leads to, those behind other aliases in their place. One that leads back to where it came from is an address
    /// itself: its name is added to `circles`, unless it names itself.
    fn led_to(&self, key: &str, circles: &mut BTreeSet<String>) -> Vec<String> {
        let mut found = Vec::new();
        let mut taken = BTreeSet::new();
        self.walk(key, &mut vec![key.to_owned()], &mut taken, circles, &mut found);
        found
    }

    fn walk(
        &self,
        key: &str,
        way: &mut Vec<String>,
        taken: &mut BTreeSet<String>,
        circles: &mut BTreeSet<String>,
        found: &mut Vec<String>,
    ) {
        for target in self.0.get(key).into_iter().flatten() {
            if found.len().max(taken.len()) > TARGETS_MAX {
                return;
            }
            let next = self.key_of(target);
            match next {
                Some(next) if !way.contains(&next) && way.len() < DEPTH_MAX => {
                    // Where it leads is known already, wherever it comes up again.
                    if taken.insert(next.clone()) {
                        way.push(next.clone());
                        self.walk(&next, way, taken, circles, found);
                        way.pop();
                    }
                }
                own => {
                    circles.extend(own.filter(|own| own != key));
                    if !found.contains(target) {
                        found.push(target.clone());
                    }
                }
            }
        }
    }
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
            let is_address = normal_address(target).is_ok() && ipc::message::destination_of(target).is_ok();
            if target.is_empty() || (target.contains('@') && !is_address) {
                return self.problem(s, Problem::expected("an e-mail address", target));
            }
            all.push(target.to_owned());
        }
        self.out.aliases.push(Line { source, targets: all, at: s.at });
    }

    /// Puts together where mail goes, once it is known which domains are local, and where postmasters are.
    pub(super) fn aliases(&mut self) {
        let lines = std::mem::take(&mut self.out.aliases);
        let global = &self.snapshot.global;
        let (domains, host) = (global.local_domains.clone(), global.host_name.clone());
        let mut aliases = Aliases::default();
        let mut at = BTreeMap::new();
        for line in lines {
            let sources = match line.source.contains('@') {
                true => vec![line.source],
                false => domains.iter().map(|d| format!("{}@{d}", line.source)).collect(),
            };
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
        let mut circles = BTreeSet::new();
        for key in aliases.0.keys() {
            let found = aliases.led_to(key, &mut circles);
            if let (true, Some(at)) = (found.len() > TARGETS_MAX, at.get(key)) {
                let message = format!("alias {key} leads to more than {TARGETS_MAX} addresses");
                self.reader.diagnostics.push(Diagnostic::error(*at, "too-many-targets", message, ""));
                return;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn led_to(lines: &[(&str, &[&str])], from: &str) -> (String, usize) {
        let mut all = Aliases::default();
        for (key, targets) in lines {
            all.0.insert((*key).to_owned(), targets.iter().map(|t| (*t).to_owned()).collect());
        }
        let mut circles = BTreeSet::new();
        (all.led_to(from, &mut circles).join(","), circles.len())
    }

    #[test]
    fn aliases_of_aliases_are_followed_and_circles_end() {
        let lines: &[(&str, &[&str])] = &[
            ("a@d", &["b@d", "x@e"]),
            ("b@d", &["c@d", "x@e", "B@D"]),
            ("*@old", &["Keeper@old", "a@d"]),
            ("self@d", &["self@d", "x@e"]),
            ("p@d", &["q@d"]),
            ("q@d", &["p@d"]),
        ];
        assert_eq!(led_to(lines, "a@d"), ("c@d,x@e,B@D".into(), 0));
        assert_eq!(led_to(lines, "*@old"), ("Keeper@old,c@d,x@e,B@D".into(), 0));
        assert_eq!(led_to(lines, "self@d"), ("self@d,x@e".into(), 0));
        assert_eq!(led_to(lines, "p@d"), ("p@d".into(), 1));
        assert_eq!(led_to(lines, "none@d"), (String::new(), 0));
    }

    #[test]
    fn aliases_that_branch_much_are_looked_at_once() {
        let names: Vec<String> = (0..30).map(|n| format!("a{n}@d")).collect();
        let mut all = Aliases::default();
        for pair in names.windows(2) {
            all.0.insert(pair[0].clone(), vec![pair[1].clone(), pair[1].to_uppercase()]);
        }
        assert_eq!(all.led_to(&names[0], &mut BTreeSet::new()), ["a29@d", "A29@D"]);
    }
}

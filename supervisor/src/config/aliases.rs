//! Where `alias` lines lead, those of other aliases included.

use std::collections::{BTreeMap, BTreeSet};

use worker::prepare::aliases::of_domain;
use worker::suppression::normal_address;

use super::files::Span;

/// Addresses that mail to one may go to.
pub const TARGETS_MAX: usize = 1000;
/// Aliases that lead to each other, one behind the other; more are not followed.
pub const DEPTH_MAX: usize = 32;

/// An `alias`.
#[derive(Debug)]
pub struct Line {
    /// The address, `*@domain`, or a local part at each local domain.
    pub source: String,
    /// What stands behind it.
    pub targets: Vec<String>,
    /// Where it stands.
    pub at: Span,
}

/// What aliases lead to, as far as lines say it: by address, or `*@domain`.
#[derive(Debug, Default)]
pub struct Aliases(pub BTreeMap<String, Vec<String>>);

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

    /// The addresses that an alias leads to, those behind other aliases in their place; `None` for more of them, or more aliases on the way, than
    /// [`TARGETS_MAX`]. One that leads back to where it came from is an address
    /// itself: its name is added to `circles`, unless it names itself.
    pub fn led_to(&self, key: &str, circles: &mut BTreeSet<String>) -> Option<Vec<String>> {
        let mut found = Found::default();
        self.walk(key, &mut vec![key.to_owned()], circles, &mut found)?;
        Some(found.targets)
    }

    fn walk(&self, key: &str, way: &mut Vec<String>, circles: &mut BTreeSet<String>, found: &mut Found) -> Option<()> {
        for target in self.0.get(key).into_iter().flatten() {
            match self.key_of(target) {
                Some(next) if !way.contains(&next) && way.len() < DEPTH_MAX => {
                    // Where it leads is known already, wherever it comes up again.
                    if found.aliases.insert(next.clone()) {
                        way.push(next.clone());
                        self.walk(&next, way, circles, found)?;
                        way.pop();
                    }
                }
                own => {
                    circles.extend(own.filter(|own| own != key));
                    if found.known.insert(target.clone()) {
                        found.targets.push(target.clone());
                    }
                }
            }
            if found.targets.len().max(found.aliases.len()) > TARGETS_MAX {
                return None;
            }
        }
        Some(())
    }
}

/// What an alias leads to, as far as it was followed.
#[derive(Debug, Default)]
struct Found {
    targets: Vec<String>,
    /// The same, to look them up.
    known: BTreeSet<String>,
    /// Aliases on the way.
    aliases: BTreeSet<String>,
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
        (all.led_to(from, &mut circles).unwrap_or_default().join(","), circles.len())
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
        assert_eq!(all.led_to(&names[0], &mut BTreeSet::new()), Some(vec!["a29@d".to_owned(), "A29@D".to_owned()]));
    }
    #[test]
    fn too_much_is_said_whether_it_is_addresses_or_aliases() {
        let named = |n: usize, of: &str| (0..n).map(|n| format!("{of}{n}@d")).collect::<Vec<String>>();
        let mut all = Aliases::default();
        all.0.insert("many@d".into(), named(TARGETS_MAX + 1, "t"));
        all.0.insert("fits@d".into(), named(TARGETS_MAX, "t"));
        all.0.insert("roles@d".into(), named(TARGETS_MAX + 1, "role"));
        named(TARGETS_MAX + 1, "role").into_iter().for_each(|r| drop(all.0.insert(r, vec!["few@d".into()])));
        let led_to = |key| all.led_to(key, &mut BTreeSet::new()).map(|t| t.len());
        assert_eq!((led_to("fits@d"), led_to("many@d"), led_to("roles@d")), (Some(TARGETS_MAX), None, None));
    }
}

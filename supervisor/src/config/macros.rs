//! `domain-macro` lists and what they stand for.

use std::cell::Cell;
use std::collections::HashMap;

use super::value;

/// Macros may refer to each other this deep, and stand for this many names in one place, and in all.
const DEPTH_MAX: usize = 20;
const NAMES_MAX: usize = 100_000;
const NAMES_IN_ALL_MAX: usize = 3_000_000;

/// All macros of a configuration.
#[derive(Debug, Default)]
pub struct Macros {
    all: HashMap<String, Vec<String>>,
    /// Names that they were expanded to.
    names: Cell<usize>,
}

impl Macros {
    /// Takes `NAME item, item…`.
    pub fn define(&mut self, text: &str) {
        let (name, list) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        self.all.insert(name.to_owned(), value::list(list));
    }

    /// The names that a domain with macros in it stands for.
    ///
    /// # Errors
    /// A sentence when a macro is not defined or loops.
    pub fn expand(&self, pattern: &str) -> Result<Vec<String>, String> {
        let mut names = Vec::new();
        self.expand_within(pattern, &mut Vec::new(), &mut names)?;
        self.names.set(self.names.get() + names.len());
        match self.names.get() > NAMES_IN_ALL_MAX {
            true => Err(format!("the macros of the configuration stand for more than {NAMES_IN_ALL_MAX} names")),
            false => Ok(names),
        }
    }

    /// The loop that macro `name` is in, as `a -> b -> a`.
    pub fn find_loop(&self, name: &str) -> Option<String> {
        let mut path = vec![name.to_owned()];
        let mut at = name.to_owned();
        for _ in 0..DEPTH_MAX {
            let next = self.all.get(&at)?.iter().flat_map(|item| mentioned(item)).find(|m| {
                // Follows the first mention that leads on; a loop is found from each of its members.
                self.all.contains_key(*m)
            })?;
            path.push(next.to_owned());
            if next == name {
                return Some(path.join(" -> "));
            }
            at = next.to_owned();
        }
        None
    }

    fn expand_within(&self, pattern: &str, inside: &mut Vec<String>, names: &mut Vec<String>) -> Result<(), String> {
        let Some(at) = pattern.find('$') else {
            if names.len() >= NAMES_MAX {
                return Err(format!("the macros stand for more than {NAMES_MAX} names"));
            }
            names.push(pattern.to_owned());
            return Ok(());
        };
        let rest = &pattern[at + 1..];
        let len = name_len(rest);
        let name = &rest[..len];
        let items = self.all.get(name).ok_or_else(|| format!("domain-macro {name:?} is not defined"))?;
        if inside.len() >= DEPTH_MAX {
            return Err(format!("the macros in {pattern} refer to each other in a loop: {}", inside.join(" -> ")));
        }
        for item in items {
            let whole = format!("{}{item}{}", &pattern[..at], &rest[len..]);
            inside.push(name.to_owned());
            self.expand_within(&whole, inside, names)?;
            inside.pop();
        }
        Ok(())
    }
}

fn name_len(text: &str) -> usize {
    text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len())
}

/// Names of the macros in an item or a parameter.
pub fn mentioned(item: &str) -> impl Iterator<Item = &str> {
    item.split('$').skip(1).map(|t| &t[..name_len(t)])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn macros_cross_nest_and_loop() {
        let mut m = Macros::default();
        for text in
            ["isp yahoo, aol", "tld com,de", "dotted .com,.co.uk", "all $isp.$tld, x.test", "a b, $c", "c d, $a"]
        {
            m.define(text);
        }
        assert_eq!(m.expand("$isp.$tld").unwrap(), ["yahoo.com", "yahoo.de", "aol.com", "aol.de"]);
        assert_eq!(m.expand("yahoo$dotted").unwrap(), ["yahoo.com", "yahoo.co.uk"]);
        assert_eq!(m.expand("$all").unwrap().len(), 5);
        assert_eq!(m.find_loop("a").unwrap(), "a -> c -> a");
        assert_eq!(m.find_loop("all"), None);
        m.define(&format!("many {}", vec!["x"; NAMES_MAX].join(",")));
        let fit = NAMES_IN_ALL_MAX / NAMES_MAX;
        assert_eq!((0..=fit).take_while(|_| m.expand("$many").is_ok()).count(), fit - 1);
        assert!(m.expand("$a").is_err() && m.expand("$none").unwrap_err().contains("not defined"));
    }
}

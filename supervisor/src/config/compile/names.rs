//! Names that blocks define and directives refer to.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use super::super::files::Span;
use super::super::syntax::Statement;

/// A block's name: kind of block and name in lower case.
type Key = (&'static str, String);

/// All names of a configuration.
#[derive(Debug, Default)]
pub struct Names {
    defined: HashMap<Key, Span>,
    used: HashSet<Key>,
    /// Numbers of `<profile>`s by name.
    pub profiles: HashMap<String, usize>,
    /// Blocks that are defined again: kind, name as written, first place, this place.
    pub again: Vec<(&'static str, String, Span, Span)>,
    /// Where mail is sent with `queue-to`.
    pub queues: Vec<(String, Span)>,
}

/// Kinds of blocks that have names, and whether one that nothing refers to is of no use.
const KINDS: &[(&str, &str, bool)] = &[
    ("<virtual-mta>", "virtual-mta", false),
    ("<virtual-mta-pool>", "pool", false),
    ("<source>", "source", true),
    ("<pattern-list>", "pattern-list", true),
    ("<smtp-pattern-list>", "smtp-pattern-list", true),
    ("<source-group>", "source-group", true),
    ("<rewrite-list>", "rewrite-list", true),
    ("<address-list>", "address-list", true),
    ("<suppression-list>", "address-list", true),
    ("<proxy>", "proxy", true),
    ("<profile>", "profile", true),
];

impl Names {
    /// The names that top-level blocks define.
    pub fn of(statements: &[Statement]) -> Names {
        let mut all = Names::default();
        let mut networks: HashMap<ipc::network::Network, Span> = HashMap::new();
        for s in statements.iter().filter(|s| s.name.starts_with('<')) {
            let Some((_, kind, _)) = KINDS.iter().find(|(block, _, _)| *block == &*s.name) else { continue };
            let network = ipc::network::parse(&s.value);
            if let Some(n) = network.filter(|_| *kind == "source")
                && let Some(first) = networks.insert(n, s.at)
            {
                all.again.push((kind, s.value.to_string(), first, s.at));
            }
            if *kind == "source"
                && (s.value.contains(['/', ':', '{']) || s.value.starts_with(|c: char| c.is_ascii_digit()))
            {
                continue;
            }
            let name = s.value.to_lowercase();
            if *kind == "profile" {
                let next = all.profiles.len();
                all.profiles.entry(name.clone()).or_insert(next);
            }
            match all.defined.entry((kind, name)) {
                Entry::Vacant(e) => {
                    e.insert(s.at);
                }
                Entry::Occupied(e) => all.again.push((kind, s.value.to_string(), *e.get(), s.at)),
            }
        }
        // Sources in braces are there without a reference, too: {auth}, {pickup}.
        for s in statements.iter().filter(|s| &*s.name == "<source>" && s.value.starts_with('{')) {
            let key = ("source", s.value.to_lowercase());
            all.used.insert(key.clone());
            match all.defined.entry(key) {
                Entry::Vacant(e) => {
                    e.insert(s.at);
                }
                Entry::Occupied(e) => all.again.push(("source", s.value.to_string(), *e.get(), s.at)),
            }
        }
        all
    }

    fn get(&self, kind: &'static str, name: &str) -> Option<Span> {
        let reserved = match kind {
            // Each receiver profile has a list of its name.
            "smtp-pattern-list" => super::super::profiles::text(name).is_some(),
            "virtual-mta" => name == "{default}",
            "source" => matches!(name, "{auth}" | "{pickup}" | "{transmissions-api}"),
            _ => false,
        };
        if reserved { Some(Default::default()) } else { self.defined.get(&(kind, name.to_owned())).copied() }
    }

    /// Where a block of this kind and name begins.
    pub fn place(&self, kind: &'static str, name: &str) -> Option<Span> {
        self.get(kind, &name.to_lowercase())
    }

    /// Notes a reference to a block of one of these kinds; `name` is in lower case. Answers whether there is such a block.
    pub fn refer(&mut self, kinds: &[&'static str], name: &str) -> bool {
        self.used.extend(kinds.iter().map(|k| (*k, name.to_owned())));
        kinds.iter().any(|k| self.get(k, name).is_some())
    }

    /// Names of all blocks of these kinds, in lower case and no order.
    pub fn of_kinds(&self, kinds: &[&'static str]) -> impl Iterator<Item = &str> {
        self.defined.keys().filter(move |(k, _)| kinds.contains(k)).map(|(_, n)| n.as_str())
    }

    /// Blocks that nothing refers to.
    pub fn unused(&self) -> Vec<(&'static str, &str, Span)> {
        let mut all: Vec<_> = self
            .defined
            .iter()
            .filter(|(key, _)| {
                KINDS.iter().any(|(_, kind, matters)| *kind == key.0 && *matters) && !self.used.contains(*key)
            })
            .map(|((kind, name), at)| (*kind, name.as_str(), *at))
            .collect();
        all.sort_by_key(|(_, _, at)| *at);
        all
    }
}

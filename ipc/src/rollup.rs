//! MX roll-up: domains whose preferred mail hosts are the same share a queue.

#![allow(missing_docs)] // for what derive(Archive) generates beside the documented types

use rkyv::{Archive, Deserialize, Serialize};

use crate::layers::pattern_matches;

/// A queue and the mail hosts that lead to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Rollup {
    /// The queue, such as `google.rollup`.
    pub queue: String,
    /// Hosts by name: all of them have to be among the domain's preferred ones.
    pub hosts: Vec<String>,
    /// `*.DOMAIN`: each of the domain's preferred hosts has to match one of them.
    pub patterns: Vec<String>,
    /// `rollup-by-ip`: hosts are compared by their addresses.
    pub by_ip: bool,
    /// `mx-rollup`: the domain whose mail hosts count; empty for none.
    pub like: String,
    /// It comes with the program: what operators say of a domain goes before it.
    pub built_in: bool,
}

impl ArchivedRollup {
    /// Whether a domain with these preferred hosts (lower case, without a final dot) joins.
    pub fn takes(&self, preferred: &[String]) -> bool {
        if preferred.is_empty() || (self.hosts.is_empty() && self.patterns.is_empty()) {
            return false;
        }
        let named = self.hosts.iter().all(|h| preferred.iter().any(|p| p == h.as_str()));
        let by_pattern = |host: &String| self.patterns.iter().any(|p| pattern_matches(p.as_str(), host));
        named && (self.patterns.is_empty() || preferred.iter().all(by_pattern))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn takes(hosts: &[&str], patterns: &[&str], preferred: &[&str]) -> bool {
        let own = |all: &[&str]| all.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let r = Rollup { hosts: own(hosts), patterns: own(patterns), ..Default::default() };
        let bytes = rkyv::to_bytes::<rkyv::rancor::Error>(&r).unwrap();
        rkyv::access::<ArchivedRollup, rkyv::rancor::Error>(&bytes).unwrap().takes(&own(preferred))
    }

    #[test]
    fn all_hosts_of_a_queue_have_to_be_preferred_ones() {
        assert!(takes(&["a", "b"], &[], &["a", "b"]));
        assert!(takes(&["a", "b"], &[], &["a", "b", "c"]));
        assert!(takes(&["a"], &[], &["a", "b"]));
        assert!(!takes(&["a", "b"], &[], &["a"]));
        assert!(!takes(&["a"], &[], &["x.a"]) && !takes(&["a"], &[], &[]));
        assert!(takes(&[], &["*.g.test"], &["m1.g.test", "m2.g.test"]));
        assert!(takes(&[], &["*.g.test", "*.h.test"], &["m1.g.test", "m2.h.test"]));
        assert!(!takes(&[], &["*.g.test"], &["m1.g.test", "other.test"]));
    }
}

//! Who may do what: the `<source>` rules of a client, and the relay decision.

use ipc::layers::pattern_matches;
use ipc::rules::SourceRules;
use ipc::snapshot::Global;

use crate::smtp::command::{self, Refusal};
use crate::suppression::Suppresses;

/// The directive that an address is kept back for: an alias, or a processor of bounces, that is not in force.
pub fn kept_back(global: &Global, lists: &dyn Suppresses, address: &str) -> Option<Refusal> {
    let withheld = &global.withheld_lists;
    if withheld.is_empty() {
        return None;
    }
    let list = lists.list_of(withheld, address).filter(|l| withheld.contains(l))?;
    Some(command::withheld(list.trim_matches(['{', '}'])))
}

/// Whether a client with `rules` may send to `address` at `destination`.
pub fn may_relay(rules: &SourceRules, global: &Global, address: &str, destination: &str) -> bool {
    rules.always_allow_relaying
        || global.local_domains.iter().any(|d| d == destination)
        || global.relay_domains.iter().any(|p| pattern_matches(p, destination))
        || global.relay_addresses.iter().any(|a| a.eq_ignore_ascii_case(address))
}

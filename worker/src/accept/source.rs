//! Who may do what: the `<source>` rules of a client, and the relay decision.

use ipc::layers::pattern_matches;
use ipc::rules::SourceRules;
use ipc::snapshot::Global;

/// Whether a client with `rules` may send to `address` at `destination`.
pub fn may_relay(rules: &SourceRules, global: &Global, address: &str, destination: &str) -> bool {
    rules.always_allow_relaying
        || global.local_domains.iter().any(|d| d == destination)
        || global.relay_domains.iter().any(|p| pattern_matches(p, destination))
        || global.relay_addresses.iter().any(|a| a.eq_ignore_ascii_case(address))
}

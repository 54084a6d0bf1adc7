//! Which queue mail for a domain waits in, and which lines say so: `queue-to`, and roll-up by mail hosts.

use std::time::Duration;

use ipc::layers::{Scope, pattern_matches};
use ipc::rules::{ArchivedValue, DomainKey};
use ipc::snapshot::ArchivedSnapshot;
use worker::config::Config;
use worker::connect::mx::Resolver;
use worker::ports::dns_of_the_system;
use worker::route::rollup;

use super::directives;
use super::explain::{Origin, Said, written_at};
use super::pattern::pattern_key;

/// How long DNS may take to say which mail hosts a domain has.
const LOOK_UP_WAIT: Duration = Duration::from_secs(10);
/// What `config explain` says of a queue that no line sends mail to.
const OWN: &str = "its own";

/// What a look-up found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolledUp {
    /// The queue that the domain joins; empty for none.
    pub queue: String,
    /// Its preferred mail hosts.
    pub hosts: Vec<String>,
}

/// Looks up a domain's mail hosts, and decides as a worker would whether its mail rolls up.
///
/// # Errors
/// A sentence where that cannot be found out.
pub fn look_up(config: &Config, destination: &str, via: &str) -> Result<RolledUp, String> {
    let (destination, via) = super::explain::path(destination, via)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    let queue = config.queued_under(destination, &via);
    let rules = config.exit(&queue, &via).rules;
    let found = runtime.block_on(async {
        let dns = dns_of_the_system();
        let resolver = Resolver::new(&config.global.name_servers, config.global.edns_udp_length, &dns)?;
        let all = async {
            let hosts = resolver.preferred(&queue).await;
            let joins = rollup::decide(config, &rules, &queue, &resolver).await;
            RolledUp { queue: joins.unwrap_or_default(), hosts }
        };
        tokio::time::timeout(LOOK_UP_WAIT, all).await.map_err(|_| format!("DNS does not answer for {queue}"))
    });
    let found = found?;
    match found.hosts.is_empty() {
        true => Err(format!(
            "{queue} has no mail hosts in DNS, or DNS does not answer: whether its mail rolls up is not known"
        )),
        false => Ok(found),
    }
}

/// The queue that `destination` joins by its hosts, with the line that says so.
pub fn by_hosts(s: &ArchivedSnapshot, destination: &str, found: &RolledUp) -> Said {
    if found.queue.is_empty() {
        let layer = format!("{OWN}; mail hosts {}", found.hosts.join(", "));
        return Said { value: destination.to_owned(), origin: Origin { layer, file: String::new(), line: 0 } };
    }
    Said { value: found.queue.clone(), origin: line_of(s, found) }
}

/// The queue of a domain that was not looked up.
pub fn own(s: &ArchivedSnapshot, destination: &str, never_joins: bool) -> Said {
    let layer = match s.rollups.is_empty() || never_joins || destination.starts_with('[') {
        true => OWN.to_owned(),
        false => format!("{OWN}, or that of its mail hosts where those roll up: --lookup finds out"),
    };
    Said { value: destination.to_owned(), origin: Origin { layer, file: String::new(), line: 0 } }
}

/// Where it is written that domains with these hosts join the queue.
fn line_of(s: &ArchivedSnapshot, found: &RolledUp) -> Origin {
    let lists = s.written.iter().filter(|w| w.block.as_str() == "mx-rollup-list").flat_map(|w| w.settings.iter());
    for line in lists {
        let ArchivedValue::Text(text) = &line.value else { continue };
        let mut words = text.split_whitespace();
        let (Some(host), Some(queue)) = (words.next().map(pattern_key), words.next()) else { continue };
        let is_meant = pattern_key(queue.trim_matches('"')) == found.queue;
        if is_meant && (words.next().is_some() || found.hosts.iter().any(|h| pattern_matches(&host, h))) {
            return Origin { layer: format!("<mx-rollup-list> mx {host}"), ..written_at(s, line) };
        }
    }
    let like = s.rollups.iter().filter(|r| r.queue.as_str() == found.queue && !r.like.is_empty());
    for r in like {
        let lines = s.layers.written(r.like.as_str(), Scope::Global).iter();
        if let Some(line) = lines.rev().find(|l| l.key.to_native() == DomainKey::MxRollup as u16) {
            let layer = format!("mx-rollup of <domain {}>", r.like.as_str());
            return Origin { layer, ..written_at(s, line) };
        }
    }
    let profile = found.queue.trim_end_matches(".rollup");
    let layer = format!("receiver profile {profile}, mail hosts {}", found.hosts.join(", "));
    Origin { layer, file: String::new(), line: 0 }
}

/// Whether a value of `type`, `smtp-hosts` or `disable-mx-rollup` keeps a domain out of roll-up.
pub fn keeps_out(name: &str, value: &str) -> bool {
    match directives::canonical(name) {
        "type" => value != "smtp",
        "smtp-hosts" => !matches!(value, "" | "-" | "\"\""),
        "disable-mx-rollup" => value == "yes",
        _ => false,
    }
}

//! MX roll-up: mail for domains whose preferred mail hosts are shared is queued together, and
//! limits hold for all of them. It is known only after DNS: a domain's first mail goes by the
//! domain's own queue, whose shard looks, moves what waits, and tells the others, who route
//! straight from then on. Each recipient's mail still goes to its own domain's hosts.

use std::rc::Rc;

use bytes::Bytes;
use ipc::mesh::{self, RolledUp};
use ipc::message::Envelope;
use ipc::rules::DomainRules;

use crate::config::Config;
use crate::connect::mx::{Host, Resolver};
use crate::schedule::PathId;
use crate::shard::Shard;

/// Bytes of `QUEUE/DOMAIN`.
const DESTINATION_BYTES_MAX: usize = 255;
/// Puts recipients under the queues that their domains are known to roll up to.
pub fn follow(shard: &Shard, envelope: &mut Envelope) {
    let mut changed = false;
    for r in &mut envelope.recipients {
        if let Some(queue) = shard.rollups.queue_of(&r.destination) {
            r.destination = format!("{queue}/{}", r.destination);
            changed = true;
        }
    }
    if changed {
        // Recipients of one queue must be neighbours.
        envelope.recipients.sort_by(|a, b| a.destination.cmp(&b.destination));
    }
}

/// The queue that `domain` rolls up to by its mail hosts, as DNS has them now. A domain that an
/// operator names in a `<domain>` keeps its own queue, unless an operator's list says otherwise.
pub async fn decide(config: &Config, rules: &DomainRules, domain: &str, resolver: &Resolver) -> Option<String> {
    let snapshot = config.snapshot.get();
    let own_way = !rules.smtp_hosts.is_empty() || rules.disable_mx_rollup || rules.delivery_type != 0;
    if snapshot.rollups.is_empty() || own_way || domain.starts_with('[') {
        return None;
    }
    let preferred = resolver.preferred(domain).await;
    if preferred.is_empty() {
        return None;
    }
    let named = snapshot.layers.names(domain);
    for r in snapshot.rollups.iter().filter(|r| !(r.built_in && named)) {
        let takes = match (r.like.as_str(), r.by_ip) {
            ("", false) => r.takes(&preferred),
            ("", true) => r.takes(&preferred) || same_addresses(resolver, r, &preferred).await,
            (like, _) => {
                let theirs = resolver.preferred(like).await;
                preferred.iter().all(|h| theirs.contains(h))
            }
        };
        if takes {
            // The index of the spool holds so much of a destination.
            let fits = r.queue.len() + 1 + domain.len() <= DESTINATION_BYTES_MAX;
            return fits.then(|| r.queue.as_str().to_owned());
        }
    }
    None
}

/// `rollup-by-ip`: the hosts of the list have addresses of the domain's preferred ones.
async fn same_addresses(resolver: &Resolver, r: &ipc::rollup::ArchivedRollup, preferred: &[String]) -> bool {
    let mut theirs = Vec::new();
    for h in preferred {
        theirs.extend(resolver.addresses_of(h).await.unwrap_or_default());
    }
    for h in r.hosts.iter() {
        let own = resolver.addresses_of(h).await.unwrap_or_default();
        if !own.iter().any(|ip| theirs.contains(ip)) {
            return false;
        }
    }
    !r.hosts.is_empty()
}

/// Of the hosts of a domain those that its roll-up queue is made of: surplus ones are not used.
pub fn of_queue(config: &Config, queue: &str, hosts: Vec<Host>) -> Vec<Host> {
    let rollups = &config.snapshot.get().rollups;
    let named = |h: &Host| {
        let name = h.name.trim_end_matches('.').to_ascii_lowercase();
        rollups.iter().any(|r| r.queue.as_str() == queue && r.hosts.iter().any(|x| x.as_str() == name))
    };
    // Lists that name hosts by pattern or by address take any of the hosts.
    if hosts.iter().any(named) { hosts.into_iter().filter(named).collect() } else { hosts }
}

/// Moves what waits for `domain` to the queue that it joins, and tells the other shards.
pub fn join(shard: &Rc<Shard>, id: PathId, domain: &str, queue: &str) {
    if shard.rollups.learn(domain, queue) {
        tracing::info!(shard = shard.number, domain, queue, "mail hosts are shared: the domain rolls up");
        let news = ipc::frame::archive(&RolledUp { domain: domain.to_owned(), queue: queue.to_owned() });
        shard.handoffs.tell_all(mesh::ROLLED_UP, &Bytes::copy_from_slice(&news));
    }
    shard.decide(|e, now| e.join(id, domain, queue, now));
}

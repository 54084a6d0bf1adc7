//! The name that the server greets a client by.

use std::net::IpAddr;

use ipc::rules::SourceRules;
use ipc::snapshot::ArchivedVirtualMta;

use crate::config::Config;
use crate::prepare::message::BY_SOURCE_IP;

/// The name of the local address that the client connected to, among the source addresses of the virtual MTA that its mail
/// leaves by (`default-virtual-mta`; of a pool the first member), of any with `by-smtp-source-ip`, or of those at top level; else
/// the first `host-name`.
pub fn to_client(config: &Config, rules: &SourceRules, local: Option<IpAddr>) -> String {
    let s = config.snapshot.get();
    let local = local.map(|ip| ip.to_string()).unwrap_or_default();
    let name_of = |v: &ArchivedVirtualMta| {
        let host = v.source_hosts.iter().find(|h| h.ip == local)?;
        Some(if host.name.is_empty() { v.host_name.as_str() } else { host.name.as_str() }.to_owned())
    };
    let of_default = match rules.default_virtual_mta.as_str() {
        "" => None,
        BY_SOURCE_IP => s.vmtas.iter().skip(1).find_map(name_of),
        _ => {
            let key = rules.default_virtual_mta.to_lowercase();
            let pool = s.pool_by_name.get(key.as_str()).and_then(|p| s.pools.get(p.to_native() as usize));
            let first = pool.and_then(|p| p.members.first()).map(|m| &m.vmta);
            let index = s.vmta_by_name.get(key.as_str()).or(first);
            index.and_then(|i| s.vmtas.get(i.to_native() as usize)).and_then(name_of)
        }
    };
    let name = of_default.or_else(|| s.vmtas.first().and_then(name_of));
    name.filter(|n| !n.is_empty()).unwrap_or_else(|| config.global.host_name.clone())
}

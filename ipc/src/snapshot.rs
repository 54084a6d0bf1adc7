//! The compiled configuration: one rkyv archive in a sealed memfd, mapped read-only by every
//! worker. Values that a worker needs often are copied out once; settings per destination
//! and virtual MTA are read in place.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use rkyv::{Archive, Deserialize, Serialize};

use crate::descriptors::{Mapping, sealed_memfd, trusted_root};
use crate::frame::FrameError;
use crate::rules::{DomainRules, Setting, SourceRules};

/// Everything that workers need to know of the configuration.
#[derive(Debug, Clone, Default, Archive, Serialize, Deserialize)]
pub struct Snapshot {
    /// Grows with each reload.
    pub generation: u64,
    /// Settings of the whole server.
    pub global: Global,
    /// Listeners in the order of the configuration.
    pub listeners: Vec<Listener>,
    /// `<source>` blocks, widest network first, named ones last.
    pub sources: Vec<Source>,
    /// Virtual MTAs; the first is `{default}`.
    pub vmtas: Vec<VirtualMta>,
    /// Index of a virtual MTA by lower-case name.
    pub vmta_by_name: HashMap<String, u32>,
    /// Pools.
    pub pools: Vec<Pool>,
    /// Index of a pool by lower-case name.
    pub pool_by_name: HashMap<String, u32>,
    /// `<domain>` blocks: settings by [`domain_key`].
    pub domains: HashMap<String, Vec<Setting>>,
    /// `<acct-file>` blocks.
    pub accounting: Vec<Accounting>,
}

/// Settings of the whole server.
#[derive(Debug, Clone, Archive, Serialize, Deserialize)]
pub struct Global {
    /// Greeting and EHLO name.
    pub host_name: String,
    /// Local domains: every `host-name` and the system's.
    pub local_domains: Vec<String>,
    /// Domain patterns of `relay-domain`.
    pub relay_domains: Vec<String>,
    /// Addresses of `relay-address`.
    pub relay_addresses: Vec<String>,
    /// Administrators; the first is the author of reports.
    pub postmaster: Vec<String>,
    /// From header text of reports; empty for the default.
    pub custom_dsn_from_header: String,
    /// Resolvers as `IP:PORT`; empty for the system's.
    pub name_servers: Vec<String>,
    /// Inbound connections over all shards.
    pub total_max_smtp_in: u64,
    /// Outbound connections over all shards.
    pub total_max_smtp_out: u64,
    /// Parents of `shard-NN`, highest priority first.
    pub spools: Vec<SpoolDirectory>,
    /// Recipients that all shards together may hold; 0 is unlimited.
    pub spool_max_recipients: u64,
    /// `spool-sync group`
    pub spool_sync: bool,
    /// `host-id`
    pub host_id: u64,
    /// Virtual MTA of mail whose own no longer exists; empty for none.
    pub invalid_virtual_mta_fallback: String,
    /// Folder of the sockets.
    pub run_dir: String,
    /// How long a stop waits for transactions, milliseconds.
    pub stop_grace_ms: u64,
}

impl Default for Global {
    fn default() -> Self {
        Global {
            host_name: "localhost".into(),
            local_domains: Vec::new(),
            relay_domains: Vec::new(),
            relay_addresses: Vec::new(),
            postmaster: Vec::new(),
            custom_dsn_from_header: String::new(),
            name_servers: Vec::new(),
            total_max_smtp_in: 1000,
            total_max_smtp_out: 1000,
            spools: Vec::new(),
            spool_max_recipients: 0,
            spool_sync: true,
            host_id: 0,
            invalid_virtual_mta_fallback: String::new(),
            run_dir: String::new(),
            stop_grace_ms: 30_000,
        }
    }
}

/// A `<spool>`.
#[derive(Debug, Clone, Archive, Serialize, Deserialize)]
pub struct SpoolDirectory {
    /// Where `shard-NN` folders lie.
    pub path: String,
    /// 1 to 100, highest first.
    pub priority: u32,
    /// Bytes to leave free on its file system.
    pub min_free_space: u64,
}

/// An SMTP listener.
#[derive(Debug, Clone, Archive, Serialize, Deserialize)]
pub struct Listener {
    /// `IP:PORT`, the listener's name everywhere.
    pub address: String,
    /// Named source that overlays the client's; empty for none.
    pub source: String,
    /// Certificate chain and key in PEM; empty for no STARTTLS.
    pub tls_pem: String,
}

/// A `<source>` block.
#[derive(Debug, Clone, Archive, Serialize, Deserialize)]
pub struct Source {
    /// Its network, unless it is a named source.
    pub network: Option<Network>,
    /// Its name, lower case; empty when it has a network.
    pub name: String,
    /// What it sets.
    pub settings: Vec<Setting>,
}

/// A CIDR network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Network {
    /// IPv4 as IPv4-mapped IPv6.
    pub base: [u8; 16],
    /// Bits, of 128; 0 contains every address of both families.
    pub bits: u8,
}

impl Network {
    /// Whether `ip` lies in the network.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = mapped(ip);
        let (whole, rest) = (usize::from(self.bits / 8), self.bits % 8);
        let mask = if rest == 0 { 0 } else { 0xFFu8 << (8 - rest) };
        // More bits than an address has: a damaged snapshot may say so, and then nothing matches.
        self.bits <= 128
            && ip[..whole] == self.base[..whole]
            && (rest == 0 || (ip[whole] ^ self.base[whole]) & mask == 0)
    }
}

/// An address as 16 bytes, IPv4 as IPv4-mapped.
pub fn mapped(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// A `<virtual-mta>`.
#[derive(Debug, Clone, Default, Archive, Serialize, Deserialize)]
pub struct VirtualMta {
    /// Name as written.
    pub name: String,
    /// Source addresses with their EHLO names, used in turn; empty for the system's choice.
    pub source_hosts: Vec<SourceHost>,
    /// EHLO name when the source address has none of its own.
    pub host_name: String,
    /// The pool whose `<domain>` blocks it inherits.
    pub pool: Option<u32>,
}

/// A `smtp-source-host`.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct SourceHost {
    /// Address to connect from.
    pub ip: String,
    /// EHLO name.
    pub name: String,
}

/// A `<virtual-mta-pool>`.
#[derive(Debug, Clone, Default, Archive, Serialize, Deserialize)]
pub struct Pool {
    /// Name as written.
    pub name: String,
    /// Members.
    pub members: Vec<PoolMember>,
}

/// A virtual MTA of a pool.
#[derive(Debug, Clone, Archive, Serialize, Deserialize)]
pub struct PoolMember {
    /// Index of the virtual MTA.
    pub vmta: u32,
    /// Share of the pool's traffic.
    pub weight: u32,
}

/// An `<acct-file>`.
#[derive(Debug, Clone, Default, PartialEq, Archive, Serialize, Deserialize)]
pub struct Accounting {
    /// Path as written; files are `stem-YYYY-MM-DD-NNNN.ext` beside it.
    pub path: String,
    /// Record types, `d b t tq r`.
    pub records: Vec<String>,
    /// Folder for finished files; empty for none.
    pub move_to: String,
    /// How often a file is finished, milliseconds; 0 for daily only.
    pub move_interval_ms: u64,
    /// Bytes after which a file is finished.
    pub max_size: u64,
    /// Age after which finished files are deleted, milliseconds; 0 for never.
    pub delete_after_ms: u64,
    /// ISO times; else Unix seconds.
    pub iso_times: bool,
    /// Readable by all.
    pub world_readable: bool,
}

/// Where a `<domain>` block stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// At top level.
    Global,
    /// In the pool of this index.
    Pool(u32),
    /// In the virtual MTA of this index.
    Vmta(u32),
}

/// The key of a `<domain>` block in [`Snapshot::domains`].
pub fn domain_key(scope: Scope, pattern: &str) -> String {
    match scope {
        Scope::Global => format!("g {pattern}"),
        Scope::Pool(i) => format!("p{i} {pattern}"),
        Scope::Vmta(i) => format!("v{i} {pattern}"),
    }
}

/// The patterns that match `destination`, least specific first: `*`, then by growing suffix
/// `[*.]suffix` before `*.suffix`, then the name itself.
pub fn matching_patterns(destination: &str) -> Vec<String> {
    let mut all = vec!["*".to_owned()];
    if destination.starts_with('[') {
        all.push("[0/0]".to_owned());
    } else {
        let labels: Vec<&str> = destination.split('.').collect();
        for i in (1..labels.len()).rev() {
            let suffix = labels[i..].join(".");
            all.push(format!("[*.]{suffix}"));
            all.push(format!("*.{suffix}"));
        }
        all.push(format!("[*.]{destination}"));
    }
    all.push(destination.to_owned());
    all
}

/// A snapshot mapped into this process.
#[derive(Debug)]
pub struct MappedSnapshot {
    mapping: Mapping,
}

impl MappedSnapshot {
    /// Maps and validates a snapshot.
    ///
    /// # Errors
    /// [`FrameError::Io`] when it is not sealed, [`FrameError::Archive`] when it is not valid.
    pub fn map(fd: &OwnedFd) -> Result<Self, FrameError> {
        let mapping = Mapping::read_only(fd).map_err(std::io::Error::from)?;
        rkyv::access::<ArchivedSnapshot, rkyv::rancor::Error>(mapping.bytes())
            .map_err(|e| FrameError::Archive { kind: 0, reason: e.to_string() })?;
        Ok(MappedSnapshot { mapping })
    }

    /// The archived snapshot.
    pub fn get(&self) -> &ArchivedSnapshot {
        trusted_root(&self.mapping)
    }
}

impl Snapshot {
    /// Seals the snapshot into a memfd.
    ///
    /// # Errors
    /// As `memfd_create(2)` and `write(2)`.
    pub fn seal(&self) -> std::io::Result<OwnedFd> {
        sealed_memfd("sluice-snapshot", &crate::frame::archive(self))
    }
}

impl ArchivedSnapshot {
    /// The server's settings as an owned copy.
    ///
    /// # Errors
    /// Never for a validated snapshot; the signature is rkyv's.
    pub fn global(&self) -> Result<Global, FrameError> {
        rkyv::deserialize::<Global, rkyv::rancor::Error>(&self.global)
            .map_err(|e| FrameError::Archive { kind: 0, reason: e.to_string() })
    }

    /// Resolves the directives in force for mail to `destination` through virtual MTA `vmta`.
    ///
    /// Scope comes before specificity: the virtual MTA's own `<domain *>` beats the global
    /// block that names the destination.
    pub fn domain_rules(&self, destination: &str, vmta: u32) -> DomainRules {
        let mut rules = DomainRules::default();
        let pool = self.vmtas.get(vmta as usize).and_then(|v| v.pool.as_ref().map(|p| p.to_native()));
        let scopes = [Some(Scope::Global), pool.map(Scope::Pool), Some(Scope::Vmta(vmta))];
        let patterns = matching_patterns(destination);
        for scope in scopes.into_iter().flatten() {
            for pattern in &patterns {
                if let Some(settings) = self.domains.get(domain_key(scope, pattern).as_str()) {
                    settings.iter().for_each(|s| rules.apply(s));
                }
            }
        }
        rules
    }

    /// Resolves the directives in force for a client at `ip` on a listener with the named
    /// source `overlay`.
    pub fn source_rules(&self, ip: Option<IpAddr>, overlay: &str) -> SourceRules {
        let mut rules = SourceRules::default();
        for s in self.sources.iter() {
            let applies = match s.network.as_ref() {
                Some(n) => ip.is_some_and(|ip| Network { base: n.base, bits: n.bits }.contains(ip)),
                None => !overlay.is_empty() && s.name.eq_ignore_ascii_case(overlay),
            };
            if applies {
                s.settings.iter().for_each(|s| rules.apply(s));
            }
        }
        rules
    }
}

/// Whether a domain pattern (`*`, `name`, `*.name`, `[*.]name`) matches `domain`.
pub fn pattern_matches(pattern: &str, domain: &str) -> bool {
    matching_patterns(domain).iter().any(|p| p == pattern)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::rules::{DomainKey, Value};

    fn set(n: u64) -> Vec<Setting> {
        vec![Setting { key: DomainKey::MaxSmtpOut as u16, value: Value::Number(n) }]
    }

    #[test]
    fn scope_beats_specificity_and_specificity_beats_order() {
        let mut s = Snapshot {
            vmtas: vec![VirtualMta::default(), VirtualMta { pool: Some(0), ..Default::default() }],
            ..Default::default()
        };
        for (scope, pattern, n) in [
            (Scope::Global, "*", 1),
            (Scope::Global, "[*.]b.test", 2),
            (Scope::Global, "*.b.test", 3),
            (Scope::Global, "a.b.test", 4),
            (Scope::Pool(0), "c.test", 5),
            (Scope::Vmta(1), "d.test", 6),
        ] {
            s.domains.insert(domain_key(scope, pattern), set(n));
        }
        let m = MappedSnapshot::map(&s.seal().unwrap()).unwrap();
        let out = |d: &str, v| m.get().domain_rules(d, v).max_smtp_out;
        assert_eq!(out("x.test", 0), 1);
        assert_eq!(out("b.test", 0), 2);
        assert_eq!(out("z.b.test", 0), 3);
        assert_eq!(out("a.b.test", 0), 4);
        assert_eq!((out("c.test", 0), out("c.test", 1)), (1, 5));
        assert_eq!((out("d.test", 0), out("d.test", 1)), (1, 6));
    }

    #[test]
    fn networks_contain_what_they_should() {
        let n = Network { base: mapped("10.0.0.0".parse().unwrap()), bits: 96 + 9 };
        assert!(n.contains("10.127.0.1".parse().unwrap()));
        assert!(!n.contains("10.128.0.1".parse().unwrap()));
        assert!(Network { base: [0; 16], bits: 0 }.contains("::1".parse().unwrap()));
        let one = mapped("::1".parse().unwrap());
        assert!(Network { base: one, bits: 128 }.contains("::1".parse().unwrap()));
        for bits in [129, 136, 255] {
            assert!(!Network { base: one, bits }.contains("::1".parse().unwrap()));
        }
    }

    #[test]
    fn an_unsealed_memfd_is_refused() {
        let fd = crate::descriptors::shared_memfd("x", 4096).unwrap();
        assert!(MappedSnapshot::map(&fd).is_err());
    }
}

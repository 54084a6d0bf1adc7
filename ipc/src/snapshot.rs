//! The compiled configuration: one rkyv archive in a sealed memfd, mapped read-only by every
//! worker. Values that a worker needs often are copied out once; settings per destination
//! and virtual MTA are read in place.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use rkyv::{Archive, Deserialize, Serialize};

use crate::descriptors::{Mapping, sealed_memfd, trusted_root};
use crate::dice::HashMap;
use crate::frame::FrameError;
use crate::layers::{Layers, NO_VMTA};
use crate::network::{ArchivedNetwork, Network};
use crate::pattern_lists::PatternList;
use crate::reply_rules::{ReplyList, ReplyListsInForce};
use crate::rollup::Rollup;
use crate::rules::{DomainRules, Setting, SourceRules};

/// Everything that workers need to know of the configuration.
#[derive(Clone, Default, Archive, Serialize, Deserialize)]
pub struct Snapshot {
    /// Grows with each reload.
    pub generation: u64,
    /// Settings of the whole server.
    pub global: Global,
    /// Listeners in the order of the configuration.
    pub listeners: Vec<Listener>,
    /// `<source>` blocks, widest network first, named ones last.
    pub sources: Vec<Source>,
    /// `<source-group>` blocks.
    pub source_groups: Vec<SourceGroup>,
    /// `<smtp-user>` blocks.
    pub smtp_users: Vec<SmtpUser>,
    /// Secret of this installation, by which names that no user has are given salts that last, and failures to authenticate the
    /// numbers that they are counted under. The supervisor sets it.
    pub salt_key: SaltKey,
    /// Virtual MTAs; the first is `{default}`.
    pub vmtas: Vec<VirtualMta>,
    /// Index of a virtual MTA by lower-case name.
    pub vmta_by_name: HashMap<String, u32>,
    /// Pools.
    pub pools: Vec<Pool>,
    /// Index of a pool by lower-case name.
    pub pool_by_name: HashMap<String, u32>,
    /// `<domain>` blocks and `<profile>`s.
    pub layers: Layers,
    /// Some `<domain>` or `<profile>` sets `queue-to`.
    pub has_queue_to: bool,
    /// Files that settings come from.
    pub files: Vec<String>,
    /// `<acct-file>` blocks.
    pub accounting: Vec<Accounting>,
    /// `<smtp-pattern-list>`s, those of receiver profiles included.
    pub reply_lists: Vec<ReplyList>,
    /// `domain-key` at top level.
    pub domain_keys: Vec<DomainKey>,
    /// `<domain-key-list>`s: name in lower case, and keys.
    pub domain_key_lists: Vec<(String, Vec<DomainKey>)>,
    /// `<address-list>`s.
    pub address_lists: Vec<AddressList>,
    /// `alias`: an address as lists hold it, or `*@domain`, and the addresses that its mail goes to. None of these is an alias of another
    /// address. Postmaster and abuse of local domains are among them (RFC 2142).
    pub aliases: HashMap<String, Vec<String>>,
    /// `<rewrite-list>`s.
    pub rewrite_lists: Vec<RewriteList>,
    /// `<bounce-category-patterns>`, in order.
    pub bounce_patterns: Vec<BouncePattern>,
    /// Files in PEM that directives name, by path.
    pub pem_files: Vec<(String, String)>,
    /// MX roll-up; the first that takes a domain counts.
    pub rollups: Vec<Rollup>,
    /// `<pattern-list>`s, and those inside them.
    pub pattern_lists: Vec<PatternList>,
    /// Top level and blocks other than those of paths, virtual MTAs and pools, as written, for
    /// those who ask what is configured.
    pub written: Vec<Written>,
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // It has passwords and keys in many places.
        f.debug_struct("Snapshot").field("generation", &self.generation).finish_non_exhaustive()
    }
}

/// A secret of an installation.
#[derive(Clone, Copy, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct SaltKey(pub [u8; 32]);

/// A `domain-key`.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct DomainKey {
    /// `s=`
    pub selector: String,
    /// Domain in lower case that it signs for, subdomains included; `*` for any.
    pub domain: String,
    /// Its file, whose content is in [`Snapshot::pem_files`].
    pub path: String,
}

/// An `<address-list>`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct AddressList {
    /// Name.
    pub name: String,
    /// Domains all of whose addresses are in it.
    pub domains: Vec<String>,
    /// Addresses, and local parts at any domain.
    pub addresses: Vec<String>,
    /// What stands between the slashes of `/…/`.
    pub expressions: Vec<String>,
}

/// A `<rewrite-list>`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RewriteList {
    /// Name in lower case.
    pub name: String,
    /// `mail-from`: `USER@DOMAIN` with `*` for any half, or `<>`; and what such a sender becomes, `*` for what it has there.
    pub senders: Vec<(String, String)>,
    /// `from-domain`: a domain pattern, and the domain that takes the place in From.
    pub from_domains: Vec<(String, String)>,
}

/// A line of `<bounce-category-patterns>`.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct BouncePattern {
    /// What stands between the slashes.
    pub expression: String,
    /// Category.
    pub category: String,
    /// Index of the file.
    pub file: u16,
    /// Line.
    pub line: u32,
}

/// A block as it is written.
#[derive(Debug, Clone, Default, Archive, Serialize, Deserialize)]
pub struct Written {
    /// Kind without angle brackets; empty for the top level.
    pub block: String,
    /// Its parameter; empty for none.
    pub name: String,
    /// Its lines: keys are rows of the table of directives.
    pub settings: Vec<Setting>,
}

/// Settings of the whole server.
#[derive(Debug, Clone, Archive, Serialize, Deserialize)]
pub struct Global {
    /// Greeting and EHLO name.
    pub host_name: String,
    /// `include-headers-from` at top level: fields that all mail is given when it comes in.
    pub included_headers: String,
    /// `domain-suffix`: what is put behind domains that have no dot; empty for none.
    pub domain_suffix: String,
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
    /// Resolvers whose word on DNSSEC is trusted, as `IP:PORT`; empty for those on this machine.
    pub dnssec_name_servers: Vec<String>,
    /// `edns-udp-length`: bytes that DNS may answer in by UDP.
    pub edns_udp_length: u16,
    /// `max-memory-usage-percent`: above this share of the machine's memory clients are sent away; 100 for never.
    pub max_memory_usage_percent: u32,
    /// Inbound connections over all shards.
    pub total_max_smtp_in: u64,
    /// Bytes of memory over all shards for messages that are being received; 0 is unlimited.
    pub total_max_smtp_in_size: u64,
    /// Outbound connections over all shards.
    pub total_max_smtp_out: u64,
    /// Parents of `shard-NN`, highest priority first.
    pub spools: Vec<SpoolDirectory>,
    /// Recipients that all shards together may hold; 0 is unlimited.
    pub spool_max_recipients: u64,
    /// `spool-sync group`
    pub spool_sync: bool,
    /// `sandbox`: workers hold themselves to what they need.
    pub sandbox: bool,
    /// `host-id`
    pub host_id: u64,
    /// Virtual MTA of mail whose own no longer exists; empty for none.
    pub invalid_virtual_mta_fallback: String,
    /// Folder of the sockets.
    pub run_dir: String,
    /// Parent of all folders.
    pub data_dir: String,
    /// How long a stop waits for transactions, milliseconds.
    pub stop_grace_ms: u64,
    /// `mx-connection-limit`: pattern of host names, and connections to each host that matches
    /// from each source address. The first that matches counts.
    pub mx_connection_limits: Vec<(String, u64)>,
    /// `ip-connection-limit`: the same by a host's address, from all source addresses.
    pub ip_connection_limits: Vec<(Network, u64)>,
    /// Domains that are held fresh in the DNS cache.
    pub precached_domains: Vec<String>,
    /// How often, milliseconds.
    pub precached_refresh_ms: u64,
    /// `dummy-smtp-…`
    pub dummy_smtp: DummySmtp,
    /// Address lists, each named for a directive in braces that is not in force and that mail to these addresses is for:
    /// it is refused.
    pub withheld_lists: Vec<String>,
}

/// A receiver for tests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct DummySmtp {
    /// `IP:PORT`; empty for none.
    pub address: String,
    /// Clients wait for a free connection.
    pub await_slot: bool,
    /// CHUNKING is offered.
    pub has_chunking: bool,
    /// PIPELINING is offered.
    pub has_pipelining: bool,
    /// VERP is offered.
    pub has_verp: bool,
    /// Pause before each reply, milliseconds.
    pub latency_ms: u64,
    /// What it takes counts as received.
    pub update_stats: bool,
}

impl Default for Global {
    fn default() -> Self {
        Global {
            host_name: "localhost".into(),
            included_headers: String::new(),
            domain_suffix: String::new(),
            local_domains: Vec::new(),
            relay_domains: Vec::new(),
            relay_addresses: Vec::new(),
            postmaster: Vec::new(),
            custom_dsn_from_header: String::new(),
            name_servers: Vec::new(),
            dnssec_name_servers: Vec::new(),
            edns_udp_length: crate::limits::EDNS_UDP_BYTES,
            max_memory_usage_percent: 90,
            total_max_smtp_in: 1000,
            total_max_smtp_in_size: 64 << 20,
            total_max_smtp_out: 1000,
            spools: Vec::new(),
            spool_max_recipients: 0,
            spool_sync: true,
            sandbox: true,
            host_id: 0,
            invalid_virtual_mta_fallback: String::new(),
            run_dir: String::new(),
            data_dir: String::new(),
            stop_grace_ms: 30_000,
            mx_connection_limits: Vec::new(),
            ip_connection_limits: Vec::new(),
            precached_domains: Vec::new(),
            precached_refresh_ms: 300_000,
            dummy_smtp: DummySmtp { update_stats: true, ..Default::default() },
            withheld_lists: Vec::new(),
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
    /// `deliver-only`: what is there is delivered, and shards whose folder lies there take no new mail.
    pub deliver_only: bool,
}

/// An SMTP listener.
#[derive(Debug, Clone, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Listener {
    /// `IP:PORT`, the listener's name everywhere.
    pub address: String,
    /// Named source that overlays the client's; empty for none.
    pub source: String,
    /// TLS that its clients are offered.
    pub tls: ListenerTls,
    /// `proxy-protocol from`: all clients come by way of these, which say with a PROXY header whom they speak for. Empty where clients
    /// come themselves.
    pub proxies: Vec<Network>,
    /// `await-slot`: while `total-max-smtp-in` is reached, clients wait for their greeting.
    pub await_slot: bool,
}

/// TLS of a listener.
#[derive(Debug, Clone, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct ListenerTls {
    /// Files with a certificate chain and its key each, whose content is in [`Snapshot::pem_files`], in the order in which they are
    /// looked through for the name that a client asks for. One that holds none yet is passed over; without any there is no TLS.
    pub certificates: Vec<String>,
    /// `tls-ca-file`: what clients' certificates have to be issued by to count; empty for no matter by whom.
    pub ca_file: String,
    /// `immediate-tls`: from the first byte (RFC 8314 §3.3), in place of STARTTLS.
    pub immediate: bool,
    /// `tls-allow-tlsv1.2 no`
    pub bars_tls12: bool,
    /// `tls-allow-tlsv1.3 no`
    pub bars_tls13: bool,
    /// `tls-ciphers`: OpenSSL's list for TLS 1.2; empty for all suites.
    pub ciphers: String,
    /// `tls-tlsv1.3-ciphersuites`; empty for all suites.
    pub suites: String,
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

/// A `<smtp-user>`.
#[derive(Clone, Default, Archive, Serialize, Deserialize)]
pub struct SmtpUser {
    /// Its name, as written.
    pub name: String,
    /// Its password, in one of the forms that `password` takes; empty for a user with a certificate.
    pub password: String,
    /// SHA-256 of the certificate that it shows; empty for a user with a password.
    pub certificate: Vec<u8>,
    /// Named source that overlays all others, lower case.
    pub source: String,
}

impl std::fmt::Debug for SmtpUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A password is not shown.
        f.debug_struct("SmtpUser").field("name", &self.name).field("source", &self.source).finish_non_exhaustive()
    }
}

/// A `<source-group>`.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct SourceGroup {
    /// Name, lower case.
    pub name: String,
    /// Inbound connections of its sources over all shards; 0 is unlimited.
    pub max_smtp_in: u64,
    /// So many of `total-max-smtp-in` serve its sources alone.
    pub reserved_smtp_in: u64,
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
    /// `max-smtp-out`, of its own or its pool's: connections over all destinations; 0 is
    /// unlimited.
    pub max_smtp_out: u64,
    /// `max-smtp-msg-rate`: recipients attempted, over all destinations.
    pub msg_rate: (u64, u64),
    /// `max-smtp-data-volume-rate`: bytes delivered, over all destinations.
    pub data_volume_rate: (u64, u64),
    /// `domain-key`
    pub domain_keys: Vec<DomainKey>,
    /// What stands in its block beside `<domain>`, as written: keys are rows of the table of
    /// directives, for those who ask where a value comes from.
    pub settings: Vec<Setting>,
    /// A directive of it, its pools or the top level that is not in force, and without which its mail would go otherwise
    /// than meant: the mail waits. Empty for none.
    pub withheld: String,
    /// `include-headers-from`: fields that mail for it is given when it comes in, behind those of the top level.
    pub included_headers: String,
    /// `rewrite-list` in lower case; empty where a line says that there is none, `None` where no line says anything.
    pub rewrite_list: Option<String>,
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
    /// `domain-key`, for members without one of their own.
    pub domain_keys: Vec<DomainKey>,
    /// What stands in its block beside members and `<domain>`, as in [`VirtualMta::settings`].
    pub settings: Vec<Setting>,
    /// `include-headers-from`, as in [`VirtualMta::included_headers`].
    pub included_headers: String,
    /// `rewrite-list` in lower case, for members that say nothing of it; empty for none.
    pub rewrite_list: String,
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Accounting {
    /// Path as written; files are `stem-YYYY-MM-DD-NNNN.ext` beside it. For a program, its buffer's.
    pub path: String,
    /// Command line of the program that reads the rows (`|command`); empty for none.
    pub program: String,
    /// Time after which a program that failed is started again, milliseconds.
    pub retry_interval_ms: u64,
    /// Time that a program may take to read what it is given, milliseconds.
    pub write_timeout_ms: u64,
    /// Record types that it takes, in order, with their fields.
    pub fields: Vec<RecordFields>,
    /// JSON lines; else CSV.
    pub json: bool,
    /// Value of `userString`.
    pub user_string: String,
    /// Queues whose rows it takes; the first that matches decides. Empty for all.
    pub filter: Vec<QueueFilter>,
    /// `privacy-policy` as written.
    pub privacy: String,
    /// Names of pools, if `vmtaPool` of receipts is shown.
    pub pools: Vec<String>,
    /// Below so many free bytes in the file's folder no new mail comes in.
    pub min_free_space: u64,
    /// Log how many records moved files have.
    pub count_moved_records: bool,
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

/// A record type of an accounting file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RecordFields {
    /// Short name: `d b t tq r`.
    pub record: String,
    /// Fields that are shown, `type` apart.
    pub fields: Vec<String>,
    /// `map-header-to-field`: header and the field that shows it, first come first served.
    pub headers: Vec<(String, String)>,
}

/// An entry of `queue-filter`.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct QueueFilter {
    /// `!`: rows of such queues are left out.
    pub excludes: bool,
    /// Which queues.
    pub of: crate::queue_orders::QueuePattern,
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
    /// The text of a file in [`Snapshot::pem_files`].
    pub fn pem(&self, path: &str) -> Option<&str> {
        self.pem_files.iter().find(|f| f.0 == path).map(|f| f.1.as_str())
    }

    /// Every `domain-key`, wherever it stands.
    pub fn all_domain_keys(&self) -> impl Iterator<Item = &DomainKey> {
        let of_pools = self.pools.iter().flat_map(|p| &p.domain_keys);
        let named = self.domain_key_lists.iter().flat_map(|(_, keys)| keys);
        self.domain_keys.iter().chain(named).chain(of_pools).chain(self.vmtas.iter().flat_map(|v| &v.domain_keys))
    }

    /// Seals the snapshot into a memfd.
    ///
    /// # Errors
    /// As `memfd_create(2)` and `write(2)`.
    pub fn seal(&self) -> std::io::Result<OwnedFd> {
        sealed_memfd("sluice-snapshot", &crate::frame::archive(self))
    }
}

impl ArchivedSnapshot {
    /// The text of a file in [`Snapshot::pem_files`].
    pub fn pem(&self, path: &str) -> Option<&str> {
        self.pem_files.iter().find(|f| f.0.as_str() == path).map(|f| f.1.as_str())
    }

    /// The server's settings as an owned copy.
    ///
    /// # Errors
    /// Never for a validated snapshot; the signature is rkyv's.
    pub fn global(&self) -> Result<Global, FrameError> {
        rkyv::deserialize::<Global, rkyv::rancor::Error>(&self.global)
            .map_err(|e| FrameError::Archive { kind: 0, reason: e.to_string() })
    }

    /// Resolves the directives in force for mail to `destination` through virtual MTA `vmta`.
    pub fn domain_rules(&self, destination: &str, vmta: u32) -> DomainRules {
        self.rules(destination, self.pool_of(vmta), vmta)
    }

    /// Resolves the directives in force for what waits for any member of a pool.
    pub fn pool_rules(&self, destination: &str, pool: u32) -> DomainRules {
        self.rules(destination, Some(pool), NO_VMTA)
    }

    fn rules(&self, destination: &str, pool: Option<u32>, vmta: u32) -> DomainRules {
        let mut rules = DomainRules::default();
        let mut lists = ReplyListsInForce::default();
        self.layers.each(destination, pool, vmta, |scope, pattern, _, s| {
            rules.apply(s);
            lists.take(scope, pattern, s);
        });
        rules.smtp_pattern_list = lists.joined(rules.smtp_pattern_list);
        rules
    }

    /// The pool whose `<domain>` blocks a virtual MTA inherits.
    pub fn pool_of(&self, vmta: u32) -> Option<u32> {
        self.vmtas.get(vmta as usize).and_then(|v| v.pool.as_ref().map(|p| p.to_native()))
    }

    /// Whether the configuration names the client at `ip`: it lies in the network of a `<source>` that is not that of everybody.
    pub fn knows(&self, ip: IpAddr) -> bool {
        self.known_networks().any(|n| n.contains(ip))
    }

    /// Networks of the clients that the configuration names, see [`ArchivedSnapshot::knows`].
    pub fn known_networks(&self) -> impl Iterator<Item = Network> {
        let networks = self.sources.iter().filter_map(|s| s.network.as_ref());
        networks.map(|n| Network { base: n.base, bits: n.bits }).filter(|n| !n.is_everybody())
    }

    /// Resolves the directives in force for a client at `ip`, and over these those of named sources: a listener's, then a user's.
    /// An empty name is none.
    pub fn source_rules(&self, ip: Option<IpAddr>, named: &[&str]) -> SourceRules {
        let mut rules = SourceRules::default();
        let contains = |n: &ArchivedNetwork, ip| Network { base: n.base, bits: n.bits }.contains(ip);
        let of_address =
            self.sources.iter().filter(|s| s.network.as_ref().zip(ip).is_some_and(|(n, ip)| contains(n, ip)));
        of_address.flat_map(|s| s.settings.iter()).for_each(|s| rules.apply(s));
        for name in named.iter().filter(|n| !n.is_empty()) {
            let of_name = self.sources.iter().filter(|s| s.network.is_none() && s.name.eq_ignore_ascii_case(name));
            of_name.flat_map(|s| s.settings.iter()).for_each(|s| rules.apply(s));
        }
        rules
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::layers::{LayersBuilder, Named, Scope};
    use crate::rules::{DomainKey, Value};

    #[test]
    fn a_path_takes_what_is_in_force_and_defaults_else() {
        let mut b = LayersBuilder::default();
        for (scope, n) in [(Scope::Global, 1), (Scope::Pool(0), 5), (Scope::Vmta(2), 6)] {
            let value = Value::Number(n);
            b.add(
                scope,
                Named::Itself,
                "d.test",
                &[Setting { key: DomainKey::MaxSmtpOut as u16, file: 0, line: 1, value }],
            );
        }
        let vmta = VirtualMta { pool: Some(0), ..Default::default() };
        let s = Snapshot {
            vmtas: vec![VirtualMta::default(), vmta.clone(), vmta],
            layers: b.build(),
            ..Default::default()
        };
        let m = MappedSnapshot::map(&s.seal().unwrap()).unwrap();
        let out = |d: &str, v| m.get().domain_rules(d, v).max_smtp_out;
        assert_eq!([out("d.test", 0), out("d.test", 1), out("d.test", 2), out("x.test", 2)], [1, 5, 6, 20]);
    }

    #[test]
    fn of_limits_for_every_source_address_the_last_line_counts() {
        let of = |lines: &[(&str, u64)], ip: &str| {
            let mut b = LayersBuilder::default();
            let all = lines.iter().map(|(network, count)| {
                let network = match *network {
                    "" => Network { base: [0; 16], bits: 0 },
                    n => crate::network::parse(n).unwrap(),
                };
                let value = Value::PerNetwork { network, count: *count, per_ms: 0 };
                Setting { key: DomainKey::SourceIpMaxSmtpOut as u16, file: 0, line: 1, value }
            });
            b.add(Scope::Global, Named::Itself, "*", &all.collect::<Vec<_>>());
            let s = Snapshot { vmtas: vec![VirtualMta::default()], layers: b.build(), ..Default::default() };
            let m = MappedSnapshot::map(&s.seal().unwrap()).unwrap();
            m.get().domain_rules("d.test", 0).source_ip_max_smtp_out.of(ip.parse().unwrap()).count
        };
        // The old form has no network and is for both families.
        assert_eq!(of(&[("0/0", 9), ("", 2)], "10.0.0.1"), 2);
        assert_eq!(of(&[("", 2), ("0/0", 9)], "10.0.0.1"), 9);
        assert_eq!(of(&[("10/8", 5), ("", 2)], "10.0.0.1"), 5, "a narrower network counts wherever it stands");
        assert_eq!(of(&[("", 2), ("::/0", 9)], "2001:db8::1"), 9);
        assert_eq!(of(&[("0.0.0.0/0", 5), ("::/0", 50)], "10.0.0.1"), 5, "what is for IPv6 leaves IPv4 alone");
    }

    #[test]
    fn a_list_for_every_domain_leaves_a_receivers_own_in_force() {
        let list = |scope, pattern: &str, name: &str| (scope, pattern.to_owned(), name.to_owned());
        let in_force = |operators: &[(Scope, String, String)]| {
            let mut b = LayersBuilder::default();
            let profile = [list(Scope::BuiltIn, "d.test", "edge")];
            for (scope, pattern, name) in profile.iter().chain(operators) {
                let value = Value::Text(name.clone());
                let key = DomainKey::SmtpPatternList as u16;
                b.add(*scope, Named::Itself, pattern, &[Setting { key, file: 0, line: 1, value }]);
            }
            let s = Snapshot { vmtas: vec![VirtualMta::default()], layers: b.build(), ..Default::default() };
            let m = MappedSnapshot::map(&s.seal().unwrap()).unwrap();
            m.get().domain_rules("d.test", 0).smtp_pattern_list
        };
        let (global, own) = (Scope::Global, Scope::Vmta(0));
        for (operators, expected) in [
            (vec![], "edge"),
            (vec![list(global, "*", "mine")], "mine, then edge"),
            (vec![list(global, "*", "mine"), list(own, "*", "its")], "its, then edge"),
            (vec![list(global, "*", "mine"), list(global, "d.test", "named")], "named"),
            (vec![list(global, "[*.]d.test", "named"), list(own, "*", "its")], "its"),
            (vec![list(global, "*", "")], ""),
            (vec![list(global, "*", "Edge")], "Edge"),
        ] {
            assert_eq!(in_force(&operators), expected);
        }
    }

    #[test]
    fn an_unsealed_memfd_is_refused() {
        let fd = crate::descriptors::shared_memfd("x", 4096).unwrap();
        assert!(MappedSnapshot::map(&fd).is_err());
    }
}

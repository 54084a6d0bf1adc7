//! Mail hosts of a destination (RFC 5321 §5): `smtp-hosts`, MX in order of preference,
//! implicit MX, null MX (RFC 7505), address literals.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use hickory_proto::rr::{Name, RData, RecordType};
use ipc::message::parse_literal;
use ipc::rules::DomainRules;
use tokio::time::Instant;

use super::cache::Cache;
use super::dns::{CachingResolver, Found, Unknown};
use super::loops::OwnServer;
use crate::ports::Dns;

/// Why no host can be named.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DnsFault {
    /// The domain does not exist; authoritative.
    #[error("domain {0} does not exist (NXDOMAIN)")]
    NoSuchDomain(String),
    /// The domain accepts no mail (RFC 7505).
    #[error("domain {0} has a null MX: it accepts no mail")]
    NullMx(String),
    /// Neither MX nor address.
    #[error("domain {0} has neither MX nor address records")]
    NoRecords(String),
    /// No MX, and `bounce-upon-no-mx` is on.
    #[error("domain {0} has no MX record (bounce-upon-no-mx)")]
    NoMx(String),
    /// Its mail hosts are this server (RFC 5321 section 5.1).
    #[error(
        "mail for {domain} loops back to this server: {host} is one of its own names or addresses; smtp-hosts can name another"
    )]
    LoopsBack {
        /// The name asked for.
        domain: String,
        /// The mail host, or the literal.
        host: String,
    },
    /// The servers could not say.
    #[error("{status} resolving {domain}: {reason}", status = "StatusDnsQueryFailed")]
    Temporary {
        /// The name asked for.
        domain: String,
        /// SERVFAIL, timeout …
        reason: String,
    },
}

impl DnsFault {
    /// The domain has no host, whoever asks: another attempt would hear the same.
    pub fn is_lasting(&self) -> bool {
        !matches!(self, DnsFault::Temporary { .. })
    }

    /// RFC 3463 status, of class 5 where the fault [lasts](Self::is_lasting).
    pub fn status(&self) -> &'static str {
        match self {
            DnsFault::NoSuchDomain(_) => "5.1.2",
            DnsFault::NullMx(_) => "5.1.10",
            DnsFault::NoRecords(_) | DnsFault::NoMx(_) => "5.4.4",
            DnsFault::LoopsBack { .. } => "5.4.6",
            DnsFault::Temporary { .. } => "4.4.3",
        }
    }
}

/// A host and its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its name, or the literal.
    pub name: String,
    /// Where to connect.
    pub addresses: Vec<SocketAddr>,
    /// The domain itself, for want of MX records.
    pub implicit: bool,
    /// Named by the configuration, not by DNS.
    pub configured: bool,
}

impl Host {
    /// One that needs no DNS.
    fn at(name: &str, address: SocketAddr) -> Host {
        Host { name: name.to_owned(), addresses: vec![address], implicit: false, configured: false }
    }
}

/// How long a temporary failure is remembered.
const FAILURE_TTL: Duration = Duration::from_secs(5);
/// Failures remembered at once, and bytes of what they say.
const FAILURES_MAX: usize = 10_000;
const FAILURES_BYTES: usize = 4 << 20;
/// Names the system's name servers.
const SYSTEM_RESOLVER: &str = "/etc/resolv.conf";
/// Where name servers listen.
const DNS_PORT: u16 = 53;
/// Hosts considered for one destination.
const HOSTS_MAX: usize = 64;
/// Addresses of further hosts are not asked for when some are known and asking took so long.
const ASK_FOR: Duration = Duration::from_secs(60);

/// Which hosts an attempt looks for.
#[derive(Clone, Copy)]
pub struct Search<'a> {
    /// Addresses that it can use.
    pub family: Family,
    /// This server, which is not to be found.
    pub own: &'a OwnServer,
    /// What failed before is not enough: more hosts are looked at then.
    pub has_failed: &'a dyn Fn(SocketAddr) -> bool,
}

/// A worker's resolver.
#[derive(Debug)]
pub struct Resolver {
    dns: CachingResolver,
    failures: RefCell<Cache<String, DnsFault>>,
}

impl Resolver {
    /// A resolver that asks `servers` (`IP:PORT`), or the system's when there are none, for answers of so many bytes by UDP.
    ///
    /// # Errors
    /// A sentence when the system has none either.
    pub fn new(servers: &[String], udp_bytes: u16, dns: &Rc<dyn Dns>) -> Result<Resolver, String> {
        let addresses = match servers.is_empty() {
            true => of_the_system().map_err(|e| {
                format!("the system's resolver configuration cannot be used: {e}; name one with name-server")
            })?,
            false => servers.iter().filter_map(|s| s.parse().ok()).collect(),
        };
        let failures = RefCell::new(Cache::new(FAILURES_MAX, FAILURES_BYTES));
        Ok(Resolver { dns: CachingResolver::of(addresses, udp_bytes, dns), failures })
    }

    /// The hosts to try for `destination`, in order; equal preferences in random order. This server itself is none of them,
    /// unless `smtp-hosts` names it.
    ///
    /// # Errors
    /// [`DnsFault`].
    pub async fn hosts(
        &self,
        destination: &str,
        rules: &DomainRules,
        search: &Search<'_>,
    ) -> Result<Vec<Host>, DnsFault> {
        if let Some(fault) = self.failures.borrow().get(destination) {
            return Err(fault.clone());
        }
        let result = self.look_up(destination, rules, search).await;
        if let Err(fault @ DnsFault::Temporary { domain, reason }) = &result {
            let (bytes, until) = (domain.len() + reason.len(), Instant::now() + FAILURE_TTL);
            self.failures.borrow_mut().insert(destination.to_owned(), fault.clone(), bytes, until);
        }
        result
    }

    async fn look_up(
        &self,
        destination: &str,
        rules: &DomainRules,
        search: &Search<'_>,
    ) -> Result<Vec<Host>, DnsFault> {
        let port = rules.default_smtp_port as u16;
        if !rules.smtp_hosts.is_empty() {
            let attempts = rules.mx_connection_attempts.max(1);
            return self.configured(&rules.smtp_hosts, port, attempts, search).await;
        }
        if let Some(ip) = destination.strip_prefix('[').and_then(|d| d.strip_suffix(']')).and_then(parse_literal) {
            let address = SocketAddr::new(ip, port);
            if search.own.is_listened_at(address) {
                return Err(loops_back(destination, destination));
            }
            return Ok(vec![Host::at(destination, address)]);
        }
        let (only_mx, attempts) = (rules.bounce_upon_no_mx.is_zero(), rules.mx_connection_attempts.max(1));
        self.by_mx(destination, port, only_mx, attempts, search).await
    }

    /// `h1, h2; [10.1.1.1]:2525; lookup-mx:D`: commas part equals, semicolons levels.
    async fn configured(
        &self,
        spec: &str,
        port: u16,
        attempts: u64,
        search: &Search<'_>,
    ) -> Result<Vec<Host>, DnsFault> {
        let mut hosts = Vec::new();
        let mut fault = None;
        for level in spec.split(';') {
            let mut names: Vec<&str> = level.split(',').map(str::trim).filter(|h| !h.is_empty()).collect();
            shuffle(&mut names);
            for name in names {
                let found = match name.strip_prefix("lookup-mx:") {
                    Some(d) => self.by_mx(d, port, false, attempts, search).await,
                    None => self.one(name, port, search.family).await.map(|h| vec![h]),
                };
                match found {
                    Ok(h) => hosts.extend(h),
                    Err(e) => fault = Some(e),
                }
            }
        }
        match fault {
            Some(f @ DnsFault::Temporary { .. }) if hosts.is_empty() => Err(f),
            // Absence of a configured host is the operator's to mend, never the recipient's.
            Some(f) if hosts.is_empty() => Err(DnsFault::Temporary { domain: spec.to_owned(), reason: f.to_string() }),
            _ => Ok(hosts),
        }
    }

    async fn one(&self, name: &str, port: u16, family: Family) -> Result<Host, DnsFault> {
        let (host, port) = split_port(name, port);
        let literal = host.strip_prefix('[').and_then(|d| d.strip_suffix(']')).and_then(parse_literal);
        if let Some(ip) = literal.or_else(|| host.parse().ok()) {
            return Ok(Host { configured: true, ..Host::at(host, SocketAddr::new(ip, port)) });
        }
        self.addresses(host, port, family).await.map(|h| Host { configured: true, ..h })
    }

    async fn by_mx(
        &self,
        domain: &str,
        port: u16,
        only_mx: bool,
        attempts: u64,
        search: &Search<'_>,
    ) -> Result<Vec<Host>, DnsFault> {
        let Search { family, own, has_failed } = *search;
        let is_own = |h: &Host| h.addresses.iter().any(|a| own.is_listened_at(*a));
        let found = self.dns.look_up(&asked(domain)?, RecordType::MX).await.map_err(|e| temporary(domain, &e))?;
        if *found == Found::NoSuchName {
            return Err(DnsFault::NoSuchDomain(domain.to_owned()));
        }
        let exchange = |data: &RData| match data {
            RData::MX(mx) => Some((mx.preference, text_of(&mx.exchange))),
            _ => None,
        };
        let mut mx: Vec<(u16, String)> = found.records().iter().filter_map(exchange).collect();
        if mx.is_empty() {
            if only_mx {
                return Err(DnsFault::NoMx(domain.to_owned()));
            }
            if own.is_named(domain, port) {
                return Err(loops_back(domain, domain));
            }
            let host = self.addresses(domain, port, family).await?;
            return if is_own(&host) {
                Err(loops_back(domain, domain))
            } else {
                Ok(vec![Host { implicit: true, ..host }])
            };
        }
        mx.retain(|(_, host)| !host.is_empty());
        if mx.is_empty() {
            return Err(DnsFault::NullMx(domain.to_owned()));
        }
        shuffle(&mut mx);
        mx.sort_by_key(|(preference, _)| *preference);
        let mut hosts: Vec<(u16, Host)> = Vec::new();
        let mut faults: Vec<(u16, DnsFault)> = Vec::new();
        let mut reached = None;
        let began = Instant::now();
        for (preference, name) in mx.iter().take(HOSTS_MAX) {
            // More are not tried in one turn anyway; but this server may be among those of the same preference.
            let found = hosts.iter().flat_map(|(_, h)| &h.addresses).filter(|a| !has_failed(**a)).count();
            let enough = found as u64 >= attempts || began.elapsed() >= ASK_FOR;
            if enough && hosts.last().is_some_and(|(p, _)| p != preference) {
                break;
            }
            let host = if own.is_named(name, port) {
                None
            } else {
                match self.addresses(name, port, family).await {
                    Ok(h) => Some(h).filter(|h| !is_own(h)),
                    Err(e @ DnsFault::Temporary { .. }) => {
                        faults.push((*preference, e));
                        continue;
                    }
                    Err(_) => continue,
                }
            };
            let Some(host) = host else {
                // Those that are no better than this server would only send it back.
                hosts.retain(|(p, _)| p < preference);
                faults.retain(|(p, _)| p < preference);
                reached = Some(name);
                break;
            };
            hosts.push((*preference, host));
        }
        if !hosts.is_empty() {
            return Ok(hosts.into_iter().map(|(_, h)| h).collect());
        }
        match (faults.pop(), reached) {
            (Some((_, temporary)), _) => Err(temporary),
            (None, Some(host)) => Err(loops_back(domain, host)),
            (None, None) => Err(DnsFault::NoRecords(domain.to_owned())),
        }
    }

    /// Names of a domain's preferred mail hosts, in lower case without a final dot; none when it
    /// has no MX, or they cannot be had.
    pub async fn preferred(&self, domain: &str) -> Vec<String> {
        let Ok(asked) = asked(domain) else { return Vec::new() };
        let Ok(found) = self.dns.look_up(&asked, RecordType::MX).await else { return Vec::new() };
        let all = || found.records().iter().filter_map(|r| if let RData::MX(mx) = r { Some(mx) } else { None });
        let Some(best) = all().map(|mx| mx.preference).min() else { return Vec::new() };
        let mut names: Vec<String> = all()
            .filter(|mx| mx.preference == best && !mx.exchange.is_root())
            .map(|mx| text_of(&mx.exchange).to_ascii_lowercase())
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Holds what is known of mail for a domain fresh.
    pub async fn refresh(&self, domain: &str, rules: &DomainRules, own: &OwnServer) {
        // Failures are remembered as long as for mail.
        let search = Search { family: Family::of(None, rules), own, has_failed: &|_| false };
        let _ = self.hosts(domain, rules, &search).await;
    }

    /// What DNS says of a name.
    ///
    /// # Errors
    /// A sentence when it cannot be known now.
    pub(super) async fn found(&self, name: &str, kind: RecordType) -> Result<Rc<Found>, String> {
        let asked = asked(name).map_err(|e| e.to_string())?;
        self.dns.look_up(&asked, kind).await.map_err(|e| e.to_string())
    }

    /// Texts of a name; none when it has none.
    ///
    /// # Errors
    /// A sentence when they cannot be had.
    pub async fn txt(&self, name: &str) -> Result<Vec<String>, String> {
        let asked = asked(name).map_err(|e| e.to_string())?;
        let found = self.dns.look_up(&asked, RecordType::TXT).await.map_err(|e| e.to_string())?;
        let texts = found.records().iter().filter_map(|r| match r {
            RData::TXT(t) => Some(t.txt_data.concat()),
            _ => None,
        });
        Ok(texts.map(|t| ipc::text::clean_bytes(&t, t.len())).collect())
    }

    /// Addresses of a name.
    ///
    /// # Errors
    /// A sentence when there are none.
    pub async fn addresses_of(&self, name: &str) -> Result<Vec<IpAddr>, String> {
        let host = self.addresses(name, 0, Family::V4).await.map_err(|e| e.to_string())?;
        Ok(host.addresses.iter().map(SocketAddr::ip).collect())
    }

    async fn addresses(&self, name: &str, port: u16, family: Family) -> Result<Host, DnsFault> {
        let host = |mut addresses: Vec<SocketAddr>| {
            shuffle(&mut addresses);
            // IPv6 first means all of them before the first of IPv4.
            addresses.sort_by_key(|a| a.is_ipv4() == (family != Family::V4));
            Host { name: name.to_owned(), addresses, implicit: false, configured: false }
        };
        let first = match family {
            Family::V6 | Family::V6First => self.of_family(name, port, true).await,
            Family::V4 => self.of_family(name, port, false).await,
        };
        match (first, family) {
            (Ok(found), Family::V6First) => {
                let more = self.of_family(name, port, false).await.unwrap_or_default();
                Ok(host(found.into_iter().chain(more).collect()))
            }
            (Ok(found), _) => Ok(host(found)),
            // Absence of the one says nothing of the other.
            (Err(DnsFault::NoRecords(_)), _) => self.of_family(name, port, family == Family::V4).await.map(host),
            (Err(e), _) => Err(e),
        }
    }

    async fn of_family(&self, name: &str, port: u16, v6: bool) -> Result<Vec<SocketAddr>, DnsFault> {
        let kind = if v6 { RecordType::AAAA } else { RecordType::A };
        let found = self.dns.look_up(&asked(name)?, kind).await.map_err(|e| temporary(name, &e))?;
        if *found == Found::NoSuchName {
            return Err(DnsFault::NoSuchDomain(name.to_owned()));
        }
        let ip = |data: &RData| match data {
            RData::A(a) => Some(IpAddr::V4(a.0)),
            RData::AAAA(a) => Some(IpAddr::V6(a.0)),
            _ => None,
        };
        let all: Vec<SocketAddr> = found.records().iter().filter_map(ip).map(|ip| SocketAddr::new(ip, port)).collect();
        if all.is_empty() { Err(DnsFault::NoRecords(name.to_owned())) } else { Ok(all) }
    }
}

/// The system's name servers.
///
/// # Errors
/// A sentence when there are none.
pub fn of_the_system() -> Result<Vec<SocketAddr>, String> {
    let text = std::fs::read(SYSTEM_RESOLVER).map_err(|e| format!("{SYSTEM_RESOLVER}: {e}"))?;
    let (config, _) = resolv_conf::Config::parse_with_errors(&text);
    if config.nameservers.is_empty() {
        return Err(format!("{SYSTEM_RESOLVER} names no name server"));
    }
    Ok(config.nameservers.iter().map(|s| SocketAddr::new(s.into(), DNS_PORT)).collect())
}

/// Which addresses are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4; IPv6 only where there is none.
    V4,
    /// IPv6; IPv4 only where there is none.
    V6,
    /// Both, IPv6 first.
    V6First,
}

impl Family {
    /// For a connection from `source`, else by `ip-preference`.
    pub fn of(source: Option<IpAddr>, rules: &DomainRules) -> Family {
        match (source, rules.ip_preference) {
            (Some(IpAddr::V4(_)), _) | (None, 0) => Family::V4,
            (Some(IpAddr::V6(_)), _) => Family::V6,
            (None, _) => Family::V6First,
        }
    }
}

/// The name to ask for, whatever octets are in its labels: the library's own reading of text refuses underscores, hyphens at
/// the beginning and `xn--` that says nothing, which DNS serves (RFC 2181 section 11). `None` for lengths that DNS has not.
pub fn name_of(text: &str) -> Option<Name> {
    let labels = text.strip_suffix('.').unwrap_or(text).split('.').map(str::as_bytes);
    let mut name = Name::from_labels(labels).ok()?;
    name.set_fqdn(true);
    Some(name)
}

fn asked(name: &str) -> Result<Name, DnsFault> {
    name_of(name).ok_or_else(|| DnsFault::Temporary {
        domain: name.to_owned(),
        reason: "it is no name that DNS can have".into(),
    })
}

/// A name as text without a final dot: octets as they are where they print, else as `\DDD` (RFC 1035 section 5.1). Empty for
/// the root.
pub(super) fn text_of(name: &Name) -> String {
    let mut text = String::with_capacity(name.len());
    for label in name.iter() {
        if !text.is_empty() {
            text.push('.');
        }
        for b in label {
            match b {
                b if b.is_ascii_graphic() && !matches!(b, b'.' | b'\\') => text.push(char::from(*b)),
                b => text.push_str(&format!("\\{b:03}")),
            }
        }
    }
    text
}

fn loops_back(domain: &str, host: &str) -> DnsFault {
    DnsFault::LoopsBack { domain: domain.to_owned(), host: host.to_owned() }
}

fn temporary(domain: &str, e: &Unknown) -> DnsFault {
    DnsFault::Temporary { domain: domain.to_owned(), reason: e.to_string() }
}

/// Splits `HOST:PORT`; an IPv6 literal keeps its colons inside brackets.
fn split_port(name: &str, default: u16) -> (&str, u16) {
    match name.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && (!host.contains(':') || host.ends_with(']')) => {
            port.parse().map_or((name, default), |p| (host, p))
        }
        _ => (name, default),
    }
}

/// A random order; seeded by the clock, for load spreading only.
fn shuffle<T>(items: &mut [T]) {
    let mut seed = crate::clock::now_ns() as u64 | 1;
    for i in (1..items.len()).rev() {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        items.swap(i, (seed % (i as u64 + 1)) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_any_octets() {
        for text in ["mx_1.my_shop.test", "_a.b_.test", "-mx.test", "xn--a.test", "a+b.test", "*.test", "MX.Test"] {
            let name = name_of(text).unwrap_or_default();
            assert!(name.is_fqdn() && name.num_labels() >= 1);
            assert_eq!(text_of(&name), text);
        }
        assert_eq!(name_of("a.test."), name_of("a.test"));
        assert!(name_of("a..test").is_none() && name_of("").is_none());
        let odd = Name::from_labels([&b"a.b\x00"[..], b"test"]).unwrap_or_default();
        assert_eq!((text_of(&odd).as_str(), text_of(&Name::root()).as_str()), ("a\\046b\\000.test", ""));
    }

    #[test]
    fn ports_in_smtp_hosts() {
        assert_eq!(split_port("h.test:2525", 25), ("h.test", 2525));
        assert_eq!(split_port("[IPv6:::1]:26", 25), ("[IPv6:::1]", 26));
        assert_eq!(split_port("[IPv6:::1]", 25), ("[IPv6:::1]", 25));
        assert_eq!(split_port("h.test", 25), ("h.test", 25));
    }
}

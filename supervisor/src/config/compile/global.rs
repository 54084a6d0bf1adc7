//! Directives at top level.

use std::path::Path;

use ipc::rules::Value;
use ipc::snapshot::{DomainKey, SourceHost, SpoolDirectory};
use worker::connect::own_addresses;
use worker::dkim::key::{BITS_ADVISED, BITS_VERIFIED_MAX, Key};

use super::super::certificate::InForce;
use super::super::source::{BYTES_MAX, PEM_BYTES_MAX};
use super::super::{composite, encrypted_key, source_hosts};
use super::listener_lines::Lines;
use super::{Accepted, Compiler, Form, PemFile, Problem, Span, Statement, pattern_key};

/// Bytes of a file with header fields that mail is given.
const HEADERS_BYTES_MAX: u64 = 64 << 10;

/// What became of a file that a directive names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is among the snapshot's files, at this place.
    Now(usize),
    /// It was taken for another line, or there is nothing to take.
    Before,
    /// It cannot be used, which was said.
    Unusable,
}

impl Compiler<'_> {
    pub(super) fn global(&mut self, s: &Statement, v: Value) {
        let g = &mut self.snapshot.global;
        match (&*s.name, v) {
            // 0 leaves what the descriptors allow.
            ("total-max-smtp-out" | "total-max-smtp-in", Value::Number(0)) => {}
            ("total-max-smtp-out", Value::Number(n)) => g.total_max_smtp_out = n,
            ("total-max-smtp-in", Value::Number(n)) => g.total_max_smtp_in = n,
            ("total-max-smtp-in-size", Value::Number(n)) => g.total_max_smtp_in_size = n,
            ("spool-max-recipients", Value::Number(n)) => g.spool_max_recipients = n,
            ("host-id", Value::Number(n)) => g.host_id = n,
            ("edns-udp-length", Value::Number(n)) => g.edns_udp_length = n.clamp(512, 2048) as u16,
            ("max-memory-usage-percent", Value::Number(n)) => g.max_memory_usage_percent = n.min(100) as u32,
            ("spool-sync", Value::Number(n)) => g.spool_sync = n == 0,
            ("sandbox", Value::Flag(b)) => g.sandbox = b,
            ("stop-grace", Value::Millis(n)) => g.stop_grace_ms = n,
            ("http-mgmt-port", Value::Number(n)) => self.out.http_port = u16::try_from(n).ok(),
            ("run-as-root", Value::Flag(b)) => self.out.run_as_root = b,
            ("worker-cpus", Value::TextList(l)) => {
                self.out.worker_cpus = l.iter().filter_map(|t| t.parse().ok()).collect();
                self.check_cpus(s);
            }
            ("workers", Value::Number(n)) => self.workers(s, n),
            ("smtp-port", Value::Number(n)) => {
                self.out.smtp_port = u16::try_from(n).ok();
                self.out.old_listener.push(("smtp-port", s.at));
            }
            ("dummy-smtp-port", Value::Number(n)) => self.out.dummy_port = u16::try_from(n).unwrap_or(0),
            ("dummy-smtp-await-slot", Value::Flag(b)) => g.dummy_smtp.await_slot = b,
            ("dummy-smtp-has-chunking", Value::Flag(b)) => g.dummy_smtp.has_chunking = b,
            ("dummy-smtp-has-pipelining", Value::Flag(b)) => g.dummy_smtp.has_pipelining = b,
            ("dummy-smtp-has-verp", Value::Flag(b)) => g.dummy_smtp.has_verp = b,
            ("dummy-smtp-latency", Value::Number(n)) => g.dummy_smtp.latency_ms = n,
            ("dummy-smtp-update-stats", Value::Flag(b)) => g.dummy_smtp.update_stats = b,
            ("receiver-profiles", Value::TextList(l)) => self.choose_profiles(s, &l),
            ("postmaster", Value::TextList(l)) => g.postmaster.extend(l),
            ("ip-connection-limit", Value::PerNetwork { network, count, .. }) => {
                g.ip_connection_limits.push((network, count));
            }
            ("mx-connection-limit", Value::Text(t)) => {
                let (host, n) = t.split_once(char::is_whitespace).unwrap_or((&t, ""));
                g.mx_connection_limits.push((pattern_key(host), n.trim().parse().unwrap_or(0)));
            }
            ("include-headers-from", Value::Text(path)) => {
                self.snapshot.global.included_headers = self.included_headers(s, &path);
            }
            ("domain-suffix", Value::Text(t)) => {
                // What goes behind a dot; a dot in front of it is how some write it.
                let name = ipc::message::normalise_domain(t.trim_start_matches('.'));
                // Whether it is a domain was checked with the value.
                g.domain_suffix = name.unwrap_or_default();
            }
            ("spool-min-free-space", Value::Number(n)) => self.out.min_free_space = n.saturating_mul(1 << 20),
            ("smtp-server-tls-certificate", _) => {
                let path = self.certificate(s);
                self.of_listeners.certificates.extend(path);
            }
            ("smtp-server-tls-ca-file", _) => self.of_listeners.ca_file = self.issuers(s),
            (name, v) if name.starts_with("smtp-server-tls-") || name == "smtp-await-slot" => {
                self.of_listeners.take(name, v);
            }
            (_, Value::Text(t)) => self.global_text(s, t),
            _ => {}
        }
    }

    /// Warns of CPUs that this machine does not have.
    fn check_cpus(&mut self, s: &Statement) {
        let Ok(Some(cpus)) = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_CONF) else { return };
        let missing = self.out.worker_cpus.iter().find(|c| i64::try_from(**c).is_ok_and(|c| c >= cpus));
        if let Some(c) = missing {
            let message = format!("this machine has CPUs 0 to {}, not {c}", cpus - 1);
            self.warning(s.value_at(), "no-effect", message, "");
        }
    }

    fn workers(&mut self, s: &Statement, n: u64) {
        let auto = s.value.eq_ignore_ascii_case("auto");
        match u32::try_from(n).ok().filter(|n| (1..=ipc::limits::SHARDS_MAX as u32).contains(n)) {
            _ if auto => self.out.workers = None,
            Some(n) => self.out.workers = Some(n),
            None => {
                let form = format_args!("a number from 1 to {} or auto", ipc::limits::SHARDS_MAX).to_string();
                self.problem(s, Problem::expected(form, &s.value));
            }
        }
    }

    fn global_text(&mut self, s: &Statement, t: String) {
        let g = &mut self.snapshot.global;
        match &*s.name {
            "custom-dsn-from-header" => g.custom_dsn_from_header = t,
            "invalid-virtual-mta-fallback" => g.invalid_virtual_mta_fallback = t,
            "host-name" => self.out.host_names.push(t.to_ascii_lowercase()),
            "relay-domain" if t.contains('$') => match self.macros.expand(&t) {
                Ok(names) => self.snapshot.global.relay_domains.extend(names.iter().map(|n| pattern_key(n))),
                Err(e) => self.error(s.value_at(), "macro", e, ""),
            },
            "relay-domain" => g.relay_domains.push(pattern_key(&t)),
            "relay-address" if !t.starts_with('/') => g.relay_addresses.push(t),
            "relay-address" => {
                let message = "relay-address with an expression is not in force yet";
                self.warning(s.value_at(), "pending", message, "");
            }
            "data-dir" => {
                self.writes_to(s, &t);
                self.out.data_dir = Some(t.into());
            }
            "alias" => self.alias(s, &t),
            "run-as-user" => self.out.run_as_user = t,
            "spool" => {
                g.spools.push(SpoolDirectory { path: t.clone(), priority: 1, min_free_space: 0, deliver_only: false });
                self.writes_to(s, t);
            }
            "smtp-ip" => {
                // The table's type has looked at it.
                self.out.smtp_ip = composite::ip(&t).ok();
                self.out.old_listener.push(("smtp-ip", s.at));
            }
            "dummy-smtp-ip" => self.out.dummy_ip = t.parse().ok(),
            "name-server" => g.name_servers.push(t),
            "dnssec-name-server" => g.dnssec_name_servers.push(t),
            "smtp-source-host" | "smtp-source-ip" => {
                let hosts = self.source_hosts(s, &t);
                self.out.source_hosts.extend(hosts);
            }
            "domain-key" => {
                let keys = self.domain_keys(s, &t);
                self.snapshot.domain_keys.extend(keys);
            }
            "smtp-listener" => {
                if let Ok((listen, source)) = composite::listener(&t) {
                    let source = source.unwrap_or_default().to_owned();
                    if !source.is_empty() {
                        self.reference("source", &source, s, "global");
                    }
                    self.listeners.add(s.value_at(), listen, source, Lines::default());
                }
            }
            _ => {}
        }
    }

    /// The addresses that a `smtp-source-host` stands for.
    pub(super) fn source_hosts(&mut self, s: &Statement, text: &str) -> Vec<SourceHost> {
        let local = self.lasting_addresses.get_or_insert_with(own_addresses::lasting);
        let hosts = source_hosts::expand(text, local);
        if hosts.is_empty() {
            let message = format!("no address of this machine but 127.0.0.1 lies in {text}");
            self.warning(s.value_at(), "no-address", message, "");
        }
        hosts
    }

    /// The text of a file in PEM, its key in plain.
    fn pem(&mut self, path: &str, password: &str) -> Result<String, Problem> {
        let read = self.reader.named_file(Path::new(path), PEM_BYTES_MAX).map_err(|e| Problem::missing(path, &e));
        read.and_then(|pem| encrypted_key::in_plain(path, pem, password))
    }

    /// The file of a certificate chain and its key, if it can be used.
    pub(super) fn certificate(&mut self, s: &Statement) -> Option<String> {
        let (path, password) = composite::certificate(&s.value);
        let taken = self.pem_file(s, path, Form::Identity, password);
        (taken != Taken::Unusable).then(|| path.to_owned())
    }

    /// The file of those that issue clients' certificates, if it can be used.
    pub(super) fn issuers(&mut self, s: &Statement) -> Option<String> {
        let path = s.value.trim();
        self.issuers_at.get_or_insert(s.at);
        (self.pem_file(s, path, Form::Issuers, "") != Taken::Unusable).then(|| path.to_owned())
    }

    /// `<dns>`
    pub(super) fn dns(&mut self, s: &Statement) {
        let (mut domains, mut most) = (Vec::new(), 500);
        for i in &s.inside {
            match (&*i.name, self.check("dns", i).and_then(Accepted::in_force)) {
                ("precached-domains-file", Some(Value::Text(path))) => {
                    let text = self.list_file(i, &path);
                    let names = text.lines().map(|l| l.split('#').next().unwrap_or_default().trim());
                    domains = names.filter(|l| !l.is_empty()).map(pattern_key).collect();
                }
                ("precached-refresh-interval", Some(Value::Millis(n))) => {
                    self.snapshot.global.precached_refresh_ms = n;
                }
                ("precached-max-domains", Some(Value::Number(n))) => most = n as usize,
                _ => {}
            }
        }
        domains.truncate(most);
        self.snapshot.global.precached_domains = domains;
    }

    /// `<domain-key-list>`; one that is defined again goes on.
    pub(super) fn domain_key_list(&mut self, s: &Statement) {
        let mut keys = Vec::new();
        for i in &s.inside {
            if let Some(Value::Text(t)) = self.check("domain-key-list", i).and_then(Accepted::in_force) {
                keys.extend(self.domain_keys(i, &t));
            }
        }
        let name = s.value.to_lowercase();
        match self.snapshot.domain_key_lists.iter_mut().find(|(n, _)| *n == name) {
            Some((_, known)) => known.extend(keys),
            None => self.snapshot.domain_key_lists.push((name, keys)),
        }
    }

    /// A `domain-key` whose file holds a key that can be used: of a domain with macros one for each name, in their order.
    pub(super) fn domain_keys(&mut self, s: &Statement, text: &str) -> Vec<DomainKey> {
        let Ok((selector, domain, path)) = composite::domain_key(text) else { return Vec::new() };
        if composite::is_in_vault(text) {
            let message = "keys in Vault are not fetched yet: mail of virtual MTAs that this line is for waits, until bounce-after";
            let help = "name the key's file, or remove the line and have mail go unsigned";
            self.warning(s.value_at(), "withheld", message, help);
            return Vec::new();
        }
        let names = self.expanded(s, domain);
        if names.is_empty() || !self.is_usable_key(s, path) {
            return Vec::new();
        }
        let key = |domain: &String| {
            let domain = ipc::message::normalise_domain(domain).unwrap_or_else(|_| domain.to_lowercase());
            DomainKey { selector: selector.to_owned(), domain, path: path.to_owned() }
        };
        names.iter().map(key).collect()
    }

    /// What a domain with macros stands for; none where that is wrong, which is said.
    pub(super) fn expanded(&mut self, s: &Statement, domain: &str) -> Vec<String> {
        if !domain.contains('$') {
            return vec![domain.to_owned()];
        }
        let names = self.macros.expand(domain).unwrap_or_else(|e| {
            self.error(s.value_at(), "macro", e, "");
            Vec::new()
        });
        if let Some(p) = names.iter().find_map(|n| composite::domain(n).err()) {
            self.problem(s, Problem { message: format!("{domain} stands for other than domains: {}", p.message), ..p });
            return Vec::new();
        }
        names
    }

    fn is_usable_key(&mut self, s: &Statement, path: &str) -> bool {
        let taken = match self.pem_file(s, path, Form::SigningKey, "") {
            Taken::Unusable => return false,
            Taken::Before => return true,
            Taken::Now(i) => self.snapshot.pem_files.get(i),
        };
        let Some(key) = taken.and_then(|(_, pem)| Key::from_pem(pem).ok()) else { return true };
        if key.algorithm().starts_with("rsa") && key.bits() < BITS_ADVISED {
            let message = format!("the key in {path} has {} bits", key.bits());
            let help = format!("receivers advise {BITS_ADVISED}: `sluice dkim generate` makes one");
            self.warning(s.value_at(), "short-key", message, help);
        }
        if key.algorithm().starts_with("rsa") && key.bits() > BITS_VERIFIED_MAX {
            let message = format!("the key in {path} has {} bits", key.bits());
            let help = format!("verifiers need not take more than {BITS_VERIFIED_MAX} (RFC 8301), and some do not");
            self.warning(s.value_at(), "long-key", message, help);
        }
        true
    }

    /// Reads and checks a file that a directive names, and takes its content along for the workers, which may not read it. A file of
    /// somebody else's configuration is not opened.
    pub(super) fn pem_file(&mut self, s: &Statement, path: &str, form: Form, password: &str) -> Taken {
        if path.is_empty() || !self.reader.source.opens_named_files() {
            return Taken::Before;
        }
        let file = PemFile { path: path.to_owned(), form, password: password.to_owned() };
        if self.pem_files.contains(&file) {
            return Taken::Before;
        }
        let read = self.pem(path, password).and_then(|pem| {
            let checked = form.check(&pem).map_err(|e| Problem::other(format!("{path}: {e}")));
            let help = "the file holds the certificate chain and its private key in PEM";
            checked.map(|()| pem).map_err(|p| if form == Form::Identity { p.help(help) } else { p })
        });
        let pem = match read {
            Ok(pem) => pem,
            Err(p) => {
                self.problem(s, p);
                return Taken::Unusable;
            }
        };
        if form.is_secret() {
            self.check_readers(path, s.value_at());
        }
        if let Some(warning) = InForce::of(path, &pem).filter(|_| form == Form::Identity).and_then(|c| c.warning()) {
            self.warning(s.value_at(), "certificate-ends", format!("the certificate in {warning}"), "");
        }
        self.pem_files.insert(file);
        let next = self.snapshot.pem_files.len();
        let place = *self.pem_places.entry(path.to_owned()).or_insert(next);
        if place == next {
            self.snapshot.pem_files.push((path.to_owned(), pem));
        }
        Taken::Now(place)
    }

    /// The header fields of a file, each of its lines with CR LF at its end; none where they cannot be used, which is said.
    pub(super) fn included_headers(&mut self, s: &Statement, path: &str) -> String {
        if !self.reader.source.opens_named_files() || path.is_empty() {
            return String::new();
        }
        let read = self.reader.named_file(Path::new(path), HEADERS_BYTES_MAX).map_err(|e| Problem::missing(path, &e));
        let fields = read.and_then(|text| {
            let text: String = text.lines().filter(|l| !l.is_empty()).map(|l| format!("{l}\r\n")).collect();
            let (_, end) = worker::prepare::headers::parse(text.as_bytes());
            let wrong = text[end.min(text.len())..].lines().next().map(str::to_owned);
            match wrong {
                None if !text.contains('\0') => Ok(text),
                line => {
                    let found = line.unwrap_or_else(|| "a NUL".into());
                    let p = Problem::expected(format_args!("header fields in {path}, NAME: VALUE"), &found);
                    Err(p.help("a line that goes on begins with a blank"))
                }
            }
        });
        fields.unwrap_or_else(|p| {
            self.problem(s, p);
            String::new()
        })
    }

    /// The text of a file with a list, which can be done without: whether it is there was checked with the value.
    pub(super) fn list_file(&mut self, s: &Statement, path: &str) -> String {
        if !self.reader.source.opens_named_files() {
            return String::new();
        }
        let read = self.reader.named_file(Path::new(path), BYTES_MAX);
        read.unwrap_or_else(|e| {
            self.warning(s.value_at(), "missing-file", format!("{}: cannot read {path}: {e}", s.name), "");
            String::new()
        })
    }

    /// Warns of a key that everybody may read.
    fn check_readers(&mut self, path: &str, at: Span) {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(path).map_or(0, |m| m.permissions().mode());
        if mode & 0o004 != 0 {
            let help = format!("chmod o-r {path}");
            self.warning(at, "readable-key", format!("every user of this machine may read the key in {path}"), help);
        }
    }
}

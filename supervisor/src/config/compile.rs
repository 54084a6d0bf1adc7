//! Statements to a snapshot; everything that is wrong is collected on the way.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use ipc::rules::{DomainKey, Setting, SourceKey, Value};
use ipc::snapshot::{
    Accounting, Listener, Network, Pool, PoolMember, Scope, Snapshot, Source, SourceHost, SpoolDirectory, VirtualMta,
    domain_key, mapped,
};

use super::diagnostic::{Diagnostic, Place, nearest};
use super::directives::{self, Status};
use super::parse::{Parser, Statement};
use super::value;

/// A configuration ready to be put in force.
#[derive(Debug)]
pub struct Compiled {
    /// What workers need.
    pub snapshot: Snapshot,
    /// `workers`; `None` for auto.
    pub workers: Option<u32>,
    /// `worker-cpus`
    pub worker_cpus: Vec<usize>,
    /// Parent of all default folders.
    pub data_dir: PathBuf,
    /// `http-mgmt-port`; 0 for none.
    pub http_port: u16,
    /// `run-as-user`
    pub run_as_user: String,
    /// `run-as-root`
    pub run_as_root: bool,
}

/// What the command line says beside the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--workers`
    pub workers: Option<u32>,
    /// `--data-dir`
    pub data_dir: Option<PathBuf>,
}

/// Compiles a file, or the built-in configuration. Errors are among the diagnostics; the
/// compiled part is then of no use.
///
/// # Errors
/// When the file cannot be read.
pub fn compile(file: Option<&Path>, overrides: &Overrides) -> std::io::Result<(Compiled, Vec<Diagnostic>)> {
    let mut parser = Parser::default();
    let statements = match file {
        Some(f) => parser.file(f)?,
        None => parser.text(Path::new("(built-in)"), super::builtin::TEXT),
    };
    let mut c = Compiler {
        snapshot: Snapshot::default(),
        diagnostics: std::mem::take(&mut parser.diagnostics),
        parser,
        out: Extra::default(),
        tls_pem: String::new(),
        vmta_places: Vec::new(),
        pool_places: Vec::new(),
        pending_members: Vec::new(),
        domains: Vec::new(),
    };
    c.snapshot.vmtas.push(VirtualMta { name: "{default}".into(), ..Default::default() });
    c.snapshot.vmta_by_name.insert("{default}".into(), 0);
    c.block("global", &statements);
    Ok(c.finish(overrides))
}

#[derive(Default)]
struct Extra {
    workers: Option<u32>,
    worker_cpus: Vec<usize>,
    data_dir: Option<PathBuf>,
    http_port: Option<u16>,
    run_as_user: String,
    run_as_root: bool,
    default_hosts: Vec<SourceHost>,
    host_names: Vec<String>,
}

struct Compiler {
    snapshot: Snapshot,
    diagnostics: Vec<Diagnostic>,
    parser: Parser,
    out: Extra,
    tls_pem: String,
    vmta_places: Vec<(String, Place)>,
    pool_places: Vec<(String, Place)>,
    pending_members: Vec<(u32, String, u32, Place)>,
    domains: Vec<(Scope, Statement)>,
}

impl Compiler {
    fn error(&mut self, at: &Place, code: &'static str, message: impl Into<String>, suggestion: impl Into<String>) {
        self.diagnostics.push(Diagnostic::error(at, code, message, suggestion));
    }

    fn warning(&mut self, at: &Place, code: &'static str, message: impl Into<String>, suggestion: impl Into<String>) {
        self.diagnostics.push(Diagnostic::warning(at, code, message, suggestion));
    }

    /// Checks a statement against the table; its value when it is to be put in force.
    fn check(&mut self, block: &'static str, s: &Statement) -> Option<Value> {
        let Some(d) = directives::find(&s.name, block) else {
            self.unknown(block, s);
            return None;
        };
        match d.status {
            Status::Refused => {
                self.error(&s.at, "refused", format!("{} is refused: {}", s.name, d.reason), "remove the line");
                return None;
            }
            Status::Accepted => return None,
            Status::Pending if d.kind == "block" => {
                self.warning(&s.at, "pending", format!("{} is not in force yet", s.name), "");
                return None;
            }
            Status::Pending => self.warning(
                &s.at,
                "pending",
                format!("{} is not in force yet: the value is checked and stored", s.name),
                "",
            ),
            Status::Supported => {}
        }
        // "" clears what is inherited.
        if s.value.is_empty() && d.kind != "text" && d.kind != "list" && !s.at.text.contains("\"\"") {
            self.error(&s.at, "missing-value", format!("{} needs a value: {}", s.name, d.unit), "");
            return None;
        }
        match value::parse(d.kind, &s.value) {
            Ok(v) => (d.status == Status::Supported).then_some(v),
            Err(expected) if d.status == Status::Pending && !matches!(d.kind, "flag" | "duration" | "size") => {
                self.warning(&s.at, "value", format!("{}: expected {expected}, found {:?}", s.name, s.value), "");
                None
            }
            Err(expected) => {
                let message = format!("{}: expected {expected}, found {:?}", s.name, s.value);
                self.error(&s.at, "bad-value", message, format!("form: {}", d.unit));
                None
            }
        }
    }

    fn unknown(&mut self, block: &'static str, s: &Statement) {
        let elsewhere: Vec<&str> =
            directives::all().iter().filter(|d| d.name == s.name).flat_map(|d| d.blocks.iter().copied()).collect();
        if !elsewhere.is_empty() {
            let place = if block == "global" { "at top level".to_owned() } else { format!("in <{block}>") };
            let message = format!("{} is not valid {place}", s.name);
            let shown: Vec<String> =
                elsewhere.iter().map(|b| if *b == "global" { "top level".into() } else { format!("<{b}>") }).collect();
            self.error(&s.at, "wrong-block", message, format!("valid in: {}", shown.join(", ")));
            return;
        }
        let names = directives::all().iter().map(|d| d.name);
        let suggestion = nearest(&s.name, names).map(|n| format!("did you mean {n}?")).unwrap_or_default();
        self.error(&s.at, "unknown-directive", format!("{} is no directive", s.name), suggestion);
    }

    fn block(&mut self, block: &'static str, statements: &[Statement]) {
        for s in statements {
            if s.name.starts_with('<') {
                if directives::find(&s.name, block).is_some_and(|d| d.status == Status::Supported) {
                    self.known_block(s);
                } else {
                    self.check(block, s);
                }
            } else if let Some(v) = self.check(block, s) {
                self.global(s, v);
            }
        }
    }

    fn known_block(&mut self, s: &Statement) {
        match s.name.as_str() {
            "<source>" => self.source(s),
            "<domain>" => self.domains.push((Scope::Global, s.clone())),
            "<virtual-mta>" => self.virtual_mta(s),
            "<virtual-mta-pool>" => self.pool(s),
            "<spool>" => self.spool(s),
            "<acct-file>" => self.accounting(s),
            "<smtp-listener>" => self.listener(s),
            _ => {}
        }
    }

    fn global(&mut self, s: &Statement, v: Value) {
        let g = &mut self.snapshot.global;
        match (s.name.as_str(), v) {
            ("total-max-smtp-out", Value::Number(n)) => g.total_max_smtp_out = n,
            ("total-max-smtp-in", Value::Number(n)) => g.total_max_smtp_in = n,
            ("spool-max-recipients", Value::Number(n)) => g.spool_max_recipients = n,
            ("host-id", Value::Number(n)) => g.host_id = n,
            ("spool-sync", Value::Number(n)) => g.spool_sync = n == 0,
            ("stop-grace", Value::Millis(n)) => g.stop_grace_ms = n,
            ("http-mgmt-port", Value::Number(n)) => match u16::try_from(n) {
                Ok(n) => self.out.http_port = Some(n),
                Err(_) => self.error(
                    &s.at,
                    "bad-value",
                    format!("http-mgmt-port: expected a port from 0 (none) to 65535, found {n}"),
                    "",
                ),
            },
            ("run-as-root", Value::Flag(b)) => self.out.run_as_root = b,
            ("worker-cpus", Value::TextList(l)) => {
                self.out.worker_cpus = l.iter().filter_map(|t| t.parse().ok()).collect();
                if self.out.worker_cpus.len() != l.len() {
                    self.error(&s.at, "bad-value", "worker-cpus: expected CPU numbers parted by commas", "");
                }
            }
            ("spool-min-free-space", Value::Number(n)) => {
                for d in &mut g.spools {
                    d.min_free_space = n << 20;
                }
            }
            (_, Value::Text(t)) => self.global_text(s, t),
            _ => {}
        }
    }

    fn global_text(&mut self, s: &Statement, t: String) {
        let g = &mut self.snapshot.global;
        match s.name.as_str() {
            "postmaster" => g.postmaster.push(t),
            "custom-dsn-from-header" => g.custom_dsn_from_header = t,
            "invalid-virtual-mta-fallback" => g.invalid_virtual_mta_fallback = t,
            "host-name" => self.out.host_names.push(t.to_ascii_lowercase()),
            "relay-domain" => g.relay_domains.push(t.to_ascii_lowercase()),
            "relay-address" if !t.starts_with('/') => g.relay_addresses.push(t),
            "relay-address" => {
                self.warning(&s.at, "pending", "relay-address with an expression is not in force yet", "")
            }
            "data-dir" => self.out.data_dir = Some(t.into()),
            "run-as-user" => self.out.run_as_user = t,
            "spool" => g.spools.push(SpoolDirectory { path: t, priority: 1, min_free_space: 0 }),
            "workers" if t.eq_ignore_ascii_case("auto") => self.out.workers = None,
            "workers" => match t.parse::<u32>() {
                Ok(n) if (1..=ipc::limits::SHARDS_MAX as u32).contains(&n) => self.out.workers = Some(n),
                _ => self.error(
                    &s.at,
                    "bad-value",
                    format!("workers: expected a number from 1 to {} or auto, found {t:?}", ipc::limits::SHARDS_MAX),
                    "",
                ),
            },
            "name-server" => match name_server(&t) {
                Some(a) => g.name_servers.push(a),
                None => self.error(&s.at, "bad-value", format!("name-server: expected IP or IP:PORT, found {t:?}"), ""),
            },
            "smtp-source-host" => {
                if let Some(h) = self.source_host(s) {
                    self.out.default_hosts.push(h);
                }
            }
            "smtp-server-tls-certificate" => self.tls_pem = self.certificate(s),
            "smtp-listener" => {
                let mut words = t.split_whitespace();
                let address = words.next().unwrap_or_default().to_owned();
                let source = words.next().and_then(|w| w.strip_prefix("source=")).unwrap_or_default().to_owned();
                self.add_listener(s, &address, source, String::new());
            }
            _ => {}
        }
    }

    fn source_host(&mut self, s: &Statement) -> Option<SourceHost> {
        let mut words = s.value.split_whitespace();
        let ip = words.next().unwrap_or_default();
        let name = words.next().unwrap_or_default().to_owned();
        if ip.parse::<IpAddr>().is_err() {
            let what = if ip.contains('/') { "CIDR entries are not in force yet" } else { "expected IP HOST-NAME" };
            self.error(
                &s.at,
                "bad-value",
                format!("smtp-source-host: {what}, found {:?}", s.value),
                "form: IP HOST-NAME",
            );
            return None;
        }
        Some(SourceHost { ip: ip.to_owned(), name })
    }

    /// The PEM of a certificate and key file.
    fn certificate(&mut self, s: &Statement) -> String {
        let path = s.value.split_whitespace().next().unwrap_or_default().to_owned();
        match std::fs::read_to_string(&path) {
            Ok(pem) => match worker::connect::tls::listener(&pem) {
                Ok(_) => pem,
                Err(e) => {
                    self.error(
                        &s.at,
                        "bad-certificate",
                        format!("{path}: {e}"),
                        "the file holds the certificate chain and its private key in PEM",
                    );
                    String::new()
                }
            },
            Err(e) => {
                self.error(&s.at, "missing-file", format!("certificate {path}: {e}"), "");
                String::new()
            }
        }
    }

    fn add_listener(&mut self, s: &Statement, address: &str, source: String, tls_pem: String) {
        match address.parse::<SocketAddr>() {
            Ok(a) if self.snapshot.listeners.iter().any(|l| l.address == a.to_string()) => {
                self.error(&s.at, "duplicate", format!("listener {a} is given twice"), "");
            }
            Ok(a) => self.snapshot.listeners.push(Listener {
                address: a.to_string(),
                source: source.to_lowercase(),
                tls_pem,
            }),
            Err(_) => self.error(&s.at, "bad-value", format!("smtp-listener: expected IP:PORT, found {address:?}"), ""),
        }
    }

    fn listener(&mut self, s: &Statement) {
        let (mut source, mut pem) = (String::new(), String::new());
        for i in &s.inside {
            if self.check("smtp-listener", i).is_some() {
                match i.name.as_str() {
                    "source" => source.clone_from(&i.value),
                    "tls-certificate" => pem = self.certificate(i),
                    _ => {}
                }
            }
        }
        self.add_listener(s, &s.value, source, pem);
    }

    fn source(&mut self, s: &Statement) {
        let network = network(&s.value);
        let mut settings = Vec::new();
        for i in &s.inside {
            if let (Some(v), Some(key)) = (self.check("source", i), SourceKey::named(&i.name)) {
                settings.push(Setting { key: key as u16, value: v });
            }
        }
        let name = if network.is_some() { String::new() } else { s.value.to_lowercase() };
        self.snapshot.sources.push(Source { network, name, settings });
    }

    fn virtual_mta(&mut self, s: &Statement) {
        let name = s.value.clone();
        let key = name.to_lowercase();
        if name.is_empty() {
            self.error(&s.at, "missing-value", "<virtual-mta> needs a name", "");
            return;
        }
        let index = match self.snapshot.vmta_by_name.get(&key) {
            Some(i) => *i,
            None => {
                let i = self.snapshot.vmtas.len() as u32;
                self.snapshot.vmtas.push(VirtualMta { name: name.clone(), ..Default::default() });
                self.snapshot.vmta_by_name.insert(key.clone(), i);
                self.vmta_places.push((key, s.at.clone()));
                i
            }
        };
        for i in &s.inside {
            if i.name == "<domain>" {
                self.domains.push((Scope::Vmta(index), i.clone()));
                continue;
            }
            if self.check("virtual-mta", i).is_none() {
                continue;
            }
            let host = if i.name == "smtp-source-host" { self.source_host(i) } else { None };
            let v = &mut self.snapshot.vmtas[index as usize];
            v.source_hosts.extend(host);
            if i.name == "host-name" {
                v.host_name.clone_from(&i.value);
            }
        }
    }

    fn pool(&mut self, s: &Statement) {
        let key = s.value.to_lowercase();
        let index = match self.snapshot.pool_by_name.get(&key) {
            Some(i) => *i,
            None => {
                let i = self.snapshot.pools.len() as u32;
                self.snapshot.pools.push(Pool { name: s.value.clone(), ..Default::default() });
                self.snapshot.pool_by_name.insert(key.clone(), i);
                self.pool_places.push((key, s.at.clone()));
                i
            }
        };
        for i in &s.inside {
            match i.name.as_str() {
                "<domain>" => self.domains.push((Scope::Pool(index), i.clone())),
                "virtual-mta" => {
                    let mut words = i.value.split_whitespace();
                    let name = words.next().unwrap_or_default().to_owned();
                    let weight = match words.next().map(|w| w.strip_prefix("weight=").and_then(|n| n.parse().ok())) {
                        None => 1,
                        Some(Some(n)) if n > 0 => n,
                        _ => {
                            self.error(
                                &i.at,
                                "bad-value",
                                format!("virtual-mta: expected NAME [weight=N], found {:?}", i.value),
                                "",
                            );
                            1
                        }
                    };
                    self.pending_members.push((index, name, weight, i.at.clone()));
                }
                _ => drop(self.check("virtual-mta-pool", i)),
            }
        }
    }

    fn spool(&mut self, s: &Statement) {
        let mut d = SpoolDirectory { path: s.value.clone(), priority: 1, min_free_space: 0 };
        for i in &s.inside {
            match (i.name.as_str(), self.check("spool", i)) {
                ("priority", Some(Value::Number(n))) if (1..=100).contains(&n) => d.priority = n as u32,
                ("priority", Some(_)) => {
                    self.error(&i.at, "bad-value", "priority: expected a number from 1 to 100", "")
                }
                ("min-free-space", Some(Value::Number(n))) => d.min_free_space = n,
                _ => {}
            }
        }
        self.snapshot.global.spools.push(d);
    }

    fn accounting(&mut self, s: &Statement) {
        if s.value.starts_with('|') {
            self.warning(&s.at, "pending", "<acct-file> with a program is not in force yet", "");
            return;
        }
        let mut a = Accounting {
            path: s.value.clone(),
            records: vec!["d".into(), "b".into()],
            max_size: 250 << 20,
            delete_after_ms: 8 * 86_400_000,
            iso_times: true,
            ..Default::default()
        };
        for i in &s.inside {
            match (i.name.as_str(), self.check("acct-file", i)) {
                ("records", Some(Value::TextList(l))) => {
                    a.records.clear();
                    for word in l {
                        match record_type(&word) {
                            Some(t @ ("d" | "b" | "t" | "r")) => a.records.push(t.into()),
                            Some(t) => {
                                self.warning(&i.at, "pending", format!("records of type {t} are not written yet"), "")
                            }
                            None => self.error(
                                &i.at,
                                "bad-value",
                                format!("records: {word:?} is no record type"),
                                "types: d, b, t, tq, r, rb, rs, f",
                            ),
                        }
                    }
                }
                ("move-to", Some(Value::Text(t))) => a.move_to = t,
                ("move-interval", Some(Value::Millis(n))) => a.move_interval_ms = n,
                ("max-size", Some(Value::Number(n))) => a.max_size = n.max(1 << 20),
                ("delete-after", Some(Value::Millis(n))) => a.delete_after_ms = n,
                ("iso-times", Some(Value::Flag(b))) => a.iso_times = b,
                ("world-readable", Some(Value::Flag(b))) => a.world_readable = b,
                _ => {}
            }
        }
        self.snapshot.accounting.push(a);
    }

    fn domain_blocks(&mut self) {
        let mut explicit: HashMap<String, Vec<Setting>> = HashMap::new();
        let mut by_macro: HashMap<String, Vec<Setting>> = HashMap::new();
        for (scope, s) in std::mem::take(&mut self.domains) {
            let mut settings = Vec::new();
            for i in &s.inside {
                let name = if i.name == "max-msg-per-conn" { "max-msg-per-connection" } else { &i.name };
                if let (Some(v), Some(key)) = (self.check("domain", i), DomainKey::named(name)) {
                    settings.push(Setting { key: key as u16, value: v });
                }
            }
            let patterns = match self.parser.expand(&s.value) {
                Ok(p) => p,
                Err(e) => {
                    self.error(&s.at, "macro", e, "");
                    continue;
                }
            };
            let into = if s.value.contains('$') { &mut by_macro } else { &mut explicit };
            for p in patterns {
                let key = domain_key(scope, &pattern_key(&p));
                into.entry(key).or_default().extend(settings.iter().cloned());
            }
        }
        // A domain written out beats one that a macro gave.
        for (key, mut settings) in by_macro {
            settings.extend(explicit.remove(&key).unwrap_or_default());
            explicit.insert(key, settings);
        }
        self.snapshot.domains = explicit;
    }

    fn references(&mut self) {
        for (pool, name, weight, at) in std::mem::take(&mut self.pending_members) {
            match self.snapshot.vmta_by_name.get(&name.to_lowercase()) {
                Some(i) => {
                    self.snapshot.pools[pool as usize].members.push(PoolMember { vmta: *i, weight });
                    self.snapshot.vmtas[*i as usize].pool = Some(pool);
                }
                None => {
                    let near = nearest(&name, self.snapshot.vmtas.iter().map(|v| v.name.as_str()))
                        .map(|n| format!("did you mean {n}?"));
                    self.error(
                        &at,
                        "unknown-virtual-mta",
                        format!("virtual MTA {name} is not defined"),
                        near.unwrap_or_default(),
                    );
                }
            }
        }
        for (key, at) in std::mem::take(&mut self.pool_places) {
            if self.snapshot.vmta_by_name.contains_key(&key) {
                self.error(
                    &at,
                    "duplicate",
                    format!("{key} names a virtual MTA and a pool"),
                    "virtual MTAs and pools share one name space",
                );
            }
            if self.snapshot.pool_by_name.get(&key).is_some_and(|i| self.snapshot.pools[*i as usize].members.is_empty())
            {
                self.error(&at, "empty-pool", format!("pool {key} has no virtual-mta"), "");
            }
        }
    }

    fn finish(mut self, overrides: &Overrides) -> (Compiled, Vec<Diagnostic>) {
        self.references();
        self.domain_blocks();
        let data_dir =
            overrides.data_dir.clone().or(self.out.data_dir.take()).unwrap_or_else(|| "./sluice-data".into());
        let data_dir = std::path::absolute(&data_dir).unwrap_or(data_dir);
        let s = &mut self.snapshot;
        s.vmtas[0].source_hosts = std::mem::take(&mut self.out.default_hosts);
        let host = self.out.host_names.first().cloned().unwrap_or_else(system_host_name);
        for v in &mut s.vmtas {
            if v.host_name.is_empty() {
                v.host_name.clone_from(&host);
            }
        }
        let defaults = s.vmtas[0].source_hosts.clone();
        for v in s.vmtas.iter_mut().filter(|v| v.source_hosts.is_empty()) {
            v.source_hosts.clone_from(&defaults);
        }
        let g = &mut s.global;
        g.local_domains = std::mem::take(&mut self.out.host_names);
        g.local_domains.push(system_host_name());
        g.host_name = host;
        g.run_dir = data_dir.join("run").display().to_string();
        if g.spools.is_empty() {
            g.spools.push(SpoolDirectory { path: "spool".into(), priority: 1, min_free_space: 0 });
        }
        for d in &mut g.spools {
            d.path = data_dir.join(&d.path).display().to_string();
        }
        g.spools.sort_by_key(|d| std::cmp::Reverse(d.priority));
        for a in &mut s.accounting {
            a.path = data_dir.join(&a.path).display().to_string();
            if !a.move_to.is_empty() {
                a.move_to = data_dir.join(&a.move_to).display().to_string();
            }
        }
        for l in s.listeners.iter_mut().filter(|l| l.tls_pem.is_empty()) {
            l.tls_pem.clone_from(&self.tls_pem);
        }
        if s.listeners.is_empty() {
            s.listeners.push(Listener {
                address: "0.0.0.0:25".into(),
                source: String::new(),
                tls_pem: self.tls_pem.clone(),
            });
        }
        // Wider networks first: what is narrower is applied over them. Named ones come last.
        s.sources.sort_by_key(|x| x.network.map_or(255, |n| n.bits));
        self.diagnostics.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
        let compiled = Compiled {
            snapshot: self.snapshot,
            workers: overrides.workers.or(self.out.workers),
            worker_cpus: self.out.worker_cpus,
            data_dir,
            http_port: self.out.http_port.unwrap_or(8080),
            run_as_user: if self.out.run_as_user.is_empty() { "sluice".into() } else { self.out.run_as_user },
            run_as_root: self.out.run_as_root,
        };
        (compiled, self.diagnostics)
    }
}

/// A pattern in the spelling that queues use.
fn pattern_key(p: &str) -> String {
    let p = p.trim().to_lowercase();
    for prefix in ["[*.]", "*."] {
        if let Some(rest) = p.strip_prefix(prefix) {
            return ipc::message::normalise_domain(rest).map_or_else(|_| p.clone(), |d| format!("{prefix}{d}"));
        }
    }
    ipc::message::normalise_domain(&p).unwrap_or(p)
}

fn record_type(word: &str) -> Option<&'static str> {
    Some(match word.to_ascii_lowercase().as_str() {
        "d" | "delivery" => "d",
        "b" | "bounce" | "bounced" => "b",
        "t" | "transient" => "t",
        "tq" | "transient-queue" => "tq",
        "r" | "receipt" | "received" => "r",
        "rb" | "remote-bounce" => "rb",
        "rs" | "remote-status" => "rs",
        "f" | "feedback-loop" | "fbl" => "f",
        _ => return None,
    })
}

fn name_server(t: &str) -> Option<String> {
    if let Ok(a) = t.parse::<SocketAddr>() {
        return Some(a.to_string());
    }
    t.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 53).to_string())
}

/// `a.b.c.d/n` with short prefixes, a plain address, `0/0`.
fn network(t: &str) -> Option<Network> {
    if t == "0/0" {
        return Some(Network { base: [0; 16], bits: 0 });
    }
    let (ip, bits) = t.split_once('/').map_or((t, None), |(ip, n)| (ip, Some(n)));
    let mut full = ip.to_owned();
    if bits.is_some() && !ip.contains(':') {
        for _ in full.split('.').count()..4 {
            full.push_str(".0");
        }
    }
    let ip: IpAddr = full.parse().ok()?;
    let width = if ip.is_ipv4() { 32 } else { 128 };
    let bits = match bits {
        Some(b) => b.parse::<u8>().ok().filter(|b| *b <= width)?,
        None => width,
    };
    let bits = if ip.is_ipv4() { bits + 96 } else { bits };
    Some(Network { base: mapped(ip), bits })
}

fn system_host_name() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|n| n.into_string().ok())
        .unwrap_or_else(|| "localhost".into())
        .to_lowercase()
}

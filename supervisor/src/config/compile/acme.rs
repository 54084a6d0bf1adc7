//! `<acme>`

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use ipc::rules::Value;

use super::global::Taken;
use super::{Accepted, Compiler, Form, Problem, Statement};
use crate::config::acme::{Acme, Challenge, DIRECTORY, DnsUpdate, Wanted};

/// Names of one certificate, as Let's Encrypt has it.
const NAMES_MAX: usize = 100;
/// Certificates.
const CERTIFICATES_MAX: usize = 100;
/// Algorithms that an update is signed by (RFC 8945 §6), as far as they are strong.
const ALGORITHMS: [&str; 3] = ["hmac-sha256", "hmac-sha384", "hmac-sha512"];

/// What the block says.
#[derive(Default)]
struct Lines {
    accepts_terms: bool,
    http: Vec<SocketAddr>,
    tls: Vec<SocketAddr>,
    challenge: Challenge,
}

impl Compiler<'_> {
    pub(super) fn acme(&mut self, s: &Statement) {
        if let Some(first) = self.acme_at.replace(s.at) {
            self.error(s.at, "duplicate", "<acme> is given twice", format!("the first is in line {}", first.line));
            return;
        }
        let mut acme = Acme {
            directory: DIRECTORY.to_owned(),
            contacts: Vec::new(),
            external_account: None,
            certificates: Vec::new(),
            challenge: Challenge::default(),
            listeners: Vec::new(),
            dns_command: Vec::new(),
            dns_update: None,
            roots: String::new(),
        };
        let mut lines = Lines::default();
        for i in &s.inside {
            let Some(value) = self.check("acme", i).and_then(Accepted::in_force) else { continue };
            self.acme_line(i, value, &mut acme, &mut lines);
        }
        acme.challenge = lines.challenge;
        if !lines.accepts_terms {
            let help = "read the terms of the authority that directory names, and say accept-terms yes";
            self.error(s.at, "missing-directive", "<acme> without accept-terms yes: nothing is asked for", help);
        }
        if acme.certificates.is_empty() {
            self.error(s.at, "missing-directive", "<acme> has no domain", "name the hosts: domain mail.example.com");
        }
        let has_a_way = !acme.dns_command.is_empty() || acme.dns_update.is_some();
        if lines.challenge == Challenge::Dns01 && !has_a_way {
            let help = "name a program with dns-command, or a name server with dns-update";
            self.error(s.at, "missing-directive", "challenge dns-01 has no way to set records", help);
        }
        if !acme.dns_command.is_empty() && acme.dns_update.is_some() {
            self.warning(s.at, "no-effect", "dns-command has no effect beside dns-update", "remove one of them");
        }
        for (named, of) in [(&lines.http, Challenge::Http01), (&lines.tls, Challenge::TlsAlpn01)] {
            if !named.is_empty() && lines.challenge != of {
                let message = "a listener for another challenge than the one of this block has no effect";
                self.warning(s.at, "no-effect", message, "remove it, or choose its challenge");
            }
        }
        if lines.challenge != Challenge::Dns01 {
            if let Some(name) = acme.certificates.iter().flat_map(|w| &w.names).find(|n| n.starts_with("*.")) {
                let message = format!("{name}: a certificate for all of a domain needs challenge dns-01");
                self.error(s.at, "bad-value", message, "");
            }
            if has_a_way {
                let message = "dns-command and dns-update have no effect without challenge dns-01";
                self.warning(s.at, "no-effect", message, "");
            }
        }
        let everywhere = |port| [SocketAddr::from(([0; 4], port)), SocketAddr::from(([0u16; 8], port))].to_vec();
        let (named, port) = match lines.challenge {
            Challenge::Http01 => (std::mem::take(&mut lines.http), 80),
            Challenge::TlsAlpn01 => (std::mem::take(&mut lines.tls), 443),
            Challenge::Dns01 => (Vec::new(), 0),
        };
        acme.listeners = match (named.is_empty(), port) {
            (_, 0) => Vec::new(),
            (true, port) => everywhere(port),
            (false, _) => named,
        };
        self.acme = Some(Arc::new(acme));
    }

    fn acme_line(&mut self, i: &Statement, value: Value, acme: &mut Acme, lines: &mut Lines) {
        match (&*i.name, value) {
            ("directory", Value::Text(t)) if t.starts_with("https://") => acme.directory = t,
            ("directory", Value::Text(t)) => self.problem(i, Problem::expected("an https:// URL", &t)),
            ("accept-terms", Value::Flag(yes)) => lines.accepts_terms = yes,
            ("contact", Value::Text(t)) => acme.contacts.push(format!("mailto:{t}")),
            ("challenge", Value::Number(n)) => lines.challenge = Challenge::of(n),
            ("ca-file", Value::Text(path)) => {
                let taken = self.pem_file(i, &path, Form::Issuers, "");
                // A configuration of somebody else has the text of no file.
                let held = self.snapshot.pem(&path).filter(|_| taken != Taken::Unusable);
                acme.roots = held.unwrap_or_default().to_owned();
            }
            ("dns-command", Value::Text(t)) => {
                self.program(i, &t);
                acme.dns_command = worker::programs::words(&t);
            }
            ("http-01-listener" | "tls-alpn-01-listener", Value::Text(t)) => match t.parse() {
                Ok(at) if &*i.name == "http-01-listener" => lines.http.push(at),
                Ok(at) => lines.tls.push(at),
                Err(_) => self.problem(i, Problem::expected("IP:PORT", &t)),
            },
            ("external-account", Value::Text(t)) => match external_account(&t) {
                Some(account) => acme.external_account = Some(account),
                None => {
                    let help = "the authority gives both: external-account ID KEY";
                    self.error(i.value_at(), "bad-value", "external-account: the key is not base64url", help);
                }
            },
            ("dns-update", Value::Text(t)) => match dns_update(&t) {
                Ok(update) => acme.dns_update = Some(update),
                Err(why) => {
                    let help = "form: IP:PORT KEY-NAME ALGORITHM SECRET, as tsig-keygen has them";
                    self.error(i.value_at(), "bad-value", format!("dns-update: {why}"), help);
                }
            },
            ("domain", Value::TextList(names)) => self.acme_names(i, &names, acme),
            _ => {}
        }
    }

    /// The names of a certificate, as DNS has them.
    fn acme_names(&mut self, i: &Statement, names: &[String], acme: &mut Acme) {
        let as_dns = |n: &String| {
            let (star, host) = n.strip_prefix("*.").map_or(("", n.as_str()), |rest| ("*.", rest));
            let host = super::super::composite::domain(host)?;
            let fits = host.contains('.') && host.parse::<std::net::IpAddr>().is_err();
            let problem = || Problem::expected("the name of a host, or *.DOMAIN", n).at(n, &i.value);
            fits.then(|| format!("{star}{host}")).ok_or_else(problem)
        };
        let first = |all: &[String]| Wanted { names: all.first().cloned().into_iter().collect() };
        match names.iter().map(as_dns).collect::<Result<Vec<_>, _>>() {
            Err(p) => self.problem(i, p),
            Ok(all) if all.is_empty() => self.problem(i, Problem::other("argument missing")),
            Ok(all) if all.len() > NAMES_MAX || acme.certificates.len() >= CERTIFICATES_MAX => {
                let message =
                    format!("at most {NAMES_MAX} names of a certificate, and {CERTIFICATES_MAX} certificates");
                self.error(i.value_at(), "too-many", message, format!("{} names are here", all.len()));
            }
            Ok(all) if acme.certificates.iter().any(|w| w.path(Path::new("")) == first(&all).path(Path::new(""))) => {
                let message = format!("{} begins another certificate already", all.first().map_or("", String::as_str));
                self.error(i.value_at(), "duplicate", message, "names of one certificate stand in one line");
            }
            Ok(mut names) => {
                let mut seen = HashSet::new();
                names.retain(|n| seen.insert(n.clone()));
                acme.certificates.push(Wanted { names });
            }
        }
    }

    /// Has listeners show the certificates of `<acme>` as well, behind those that lines name.
    pub(super) fn acme_certificates(&mut self, data_dir: &Path) {
        let Some(acme) = &self.acme else { return };
        let paths: Vec<String> = acme.certificates.iter().map(|w| w.path(data_dir).display().to_string()).collect();
        for l in &mut self.snapshot.listeners {
            l.tls.certificates.extend(paths.iter().cloned());
        }
    }
}

fn external_account(text: &str) -> Option<(String, Vec<u8>)> {
    let (id, key) = text.split_once(char::is_whitespace)?;
    let key = BASE64_URL_SAFE_NO_PAD.decode(key.trim().trim_end_matches('=')).ok()?;
    Some((id.to_owned(), key))
}

fn dns_update(text: &str) -> Result<DnsUpdate, String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [server, key, algorithm, secret] = words[..] else { return Err("four words expected".into()) };
    let server = server.parse().map_err(|_| "the name server is not IP:PORT".to_owned())?;
    let algorithm = algorithm.to_ascii_lowercase();
    if !ALGORITHMS.contains(&algorithm.as_str()) {
        return Err(format!("the algorithm is none of {}", ALGORITHMS.join(", ")));
    }
    let secret = BASE64_STANDARD.decode(secret).map_err(|_| "the secret is not base64".to_owned())?;
    Ok(DnsUpdate { server, key: key.to_owned(), algorithm, secret })
}

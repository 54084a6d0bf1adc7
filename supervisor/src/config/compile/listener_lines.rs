//! What a configuration says of listeners, as written.

use ipc::network::{self, Network};
use ipc::rules::Value;
use ipc::snapshot::{Listener, ListenerTls};

use super::super::composite::Listen;
use super::super::files::Span;

/// Lines and blocks, as written.
#[derive(Debug, Default)]
pub struct Listeners {
    /// In the order of the file.
    pub asked: Vec<Asked>,
}

/// One of them.
#[derive(Debug)]
pub struct Asked {
    /// Its place.
    pub at: Span,
    /// Where to listen.
    pub listen: Listen,
    /// The source that clients there are of, in lower case; empty for none.
    pub source: String,
    /// What else it says.
    pub lines: Lines,
}

/// What a block, or the top level for all of them, says of listeners.
#[derive(Debug, Clone, Default)]
pub struct Lines {
    /// `tls-certificate`: their files.
    pub certificates: Vec<String>,
    /// `tls-ca-file`
    pub ca_file: Option<String>,
    /// `immediate-tls`
    pub immediate: bool,
    /// `tls-allow-tlsv1.2`
    pub tls12: Option<bool>,
    /// `tls-allow-tlsv1.3`
    pub tls13: Option<bool>,
    /// `tls-ciphers`
    pub ciphers: Option<String>,
    /// `tls-tlsv1.3-ciphersuites`
    pub suites: Option<String>,
    /// `await-slot`
    pub await_slot: Option<bool>,
    /// `proxy-protocol`
    pub proxies: Vec<Network>,
}

impl Lines {
    /// Takes a line in force, but for files: `tls-…` of a block, `smtp-server-tls-…` of the top level.
    pub fn take(&mut self, name: &str, value: Value) {
        match (name.strip_prefix("smtp-server-").unwrap_or(name), value) {
            ("immediate-tls", Value::Flag(yes)) => self.immediate = yes,
            ("tls-allow-tlsv1.2", Value::Flag(yes)) => self.tls12 = Some(yes),
            ("tls-allow-tlsv1.3", Value::Flag(yes)) => self.tls13 = Some(yes),
            ("tls-ciphers", Value::Text(list)) => self.ciphers = Some(list),
            ("tls-tlsv1.3-ciphersuites" | "tls-v1.3-ciphersuites", Value::Text(list)) => self.suites = Some(list),
            ("await-slot" | "smtp-await-slot", Value::Flag(yes)) => self.await_slot = Some(yes),
            ("proxy-protocol", Value::TextList(l)) => self.proxies.extend(l.iter().filter_map(|n| network::parse(n))),
            _ => {}
        }
    }

    /// What a listener at `address` does by these lines, and by those of the top level where there are none.
    pub fn listener(&self, top: &Lines, address: String, source: String) -> Listener {
        let flag = |f: fn(&Lines) -> Option<bool>| f(self).or(f(top));
        let text = |f: fn(&Lines) -> &Option<String>| f(self).clone().or_else(|| f(top).clone()).unwrap_or_default();
        let certificates = if self.certificates.is_empty() { &top.certificates } else { &self.certificates };
        let tls = ListenerTls {
            certificates: certificates.clone(),
            ca_file: text(|l| &l.ca_file),
            immediate: self.immediate,
            bars_tls12: !flag(|l| l.tls12).unwrap_or(true),
            bars_tls13: !flag(|l| l.tls13).unwrap_or(true),
            ciphers: text(|l| &l.ciphers),
            suites: text(|l| &l.suites),
        };
        let await_slot = flag(|l| l.await_slot).unwrap_or(false);
        Listener { address, source, tls, proxies: self.proxies.clone(), await_slot }
    }
}

impl Listeners {
    /// Takes a line or a block.
    pub fn add(&mut self, at: Span, listen: Listen, source: String, lines: Lines) {
        self.asked.push(Asked { at, listen, source: source.to_lowercase(), lines });
    }
}

//! What a configuration says of listeners, as written.

use ipc::rules::Value;
use ipc::snapshot::ListenerTls;

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
    /// What it says of TLS.
    pub tls: TlsLines,
}

/// What a block, or the top level for all of them, says of TLS.
#[derive(Debug, Clone, Default)]
pub struct TlsLines {
    /// `tls-certificate`, as the PEM of its file.
    pub pem: Option<String>,
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
}

impl TlsLines {
    /// Takes a line in force, but for the certificate: `tls-…` of a block, `smtp-server-tls-…` of the top level.
    pub fn take(&mut self, name: &str, value: Value) {
        match (name.strip_prefix("smtp-server-").unwrap_or(name), value) {
            ("immediate-tls", Value::Flag(yes)) => self.immediate = yes,
            ("tls-allow-tlsv1.2", Value::Flag(yes)) => self.tls12 = Some(yes),
            ("tls-allow-tlsv1.3", Value::Flag(yes)) => self.tls13 = Some(yes),
            ("tls-ciphers", Value::Text(list)) => self.ciphers = Some(list),
            ("tls-tlsv1.3-ciphersuites" | "tls-v1.3-ciphersuites", Value::Text(list)) => self.suites = Some(list),
            _ => {}
        }
    }

    /// These lines, with those of the top level where there are none.
    pub fn over(&self, top: &TlsLines) -> ListenerTls {
        let flag = |f: fn(&TlsLines) -> Option<bool>| f(self).or(f(top)).unwrap_or(true);
        let text = |f: fn(&TlsLines) -> &Option<String>| f(self).clone().or_else(|| f(top).clone()).unwrap_or_default();
        ListenerTls {
            pem: text(|l| &l.pem),
            immediate: self.immediate,
            bars_tls12: !flag(|l| l.tls12),
            bars_tls13: !flag(|l| l.tls13),
            ciphers: text(|l| &l.ciphers),
            suites: text(|l| &l.suites),
        }
    }
}

impl Listeners {
    /// Takes a line or a block.
    pub fn add(&mut self, at: Span, listen: Listen, source: String, tls: TlsLines) {
        self.asked.push(Asked { at, listen, source: source.to_lowercase(), tls });
    }
}

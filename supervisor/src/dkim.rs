//! `sluice dkim`: keys, and whether their records are published.

use std::collections::HashMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ipc::snapshot::{DomainKey, Snapshot};
use serde::Serialize;
use worker::connect::mx::Resolver;
use worker::dkim::key::{self, Key};
use worker::ports::dns_of_the_system;

use crate::Failure;
use crate::config::{self, compile::Overrides};

/// Characters of one string of a TXT record.
const STRING_MAX: usize = 255;

/// Makes a key, writes it to a file that only its owner may read, and answers what to publish.
///
/// # Errors
/// When the file exists already, or cannot be written.
pub fn generate(
    selector: &str,
    domain: &str,
    algorithm: &str,
    bits: usize,
    file: Option<PathBuf>,
) -> Result<String, Failure> {
    let domain = ipc::message::normalise_domain(domain).map_err(|e| Failure::Wrong(format!("{domain}: {e}")))?;
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let is_label = |l: &str| !l.is_empty() && !l.starts_with('-') && !l.ends_with('-');
    if !selector.chars().all(fine) || !selector.split('.').all(is_label) {
        return Err(Failure::Wrong(format!("expected a selector of letters, digits, - and ., found {selector:?}")));
    }
    let pem = if algorithm == "ed25519" { key::generate_ed25519() } else { key::generate_rsa(bits) };
    let pem = pem.map_err(Failure::Failed)?;
    let path = file.unwrap_or_else(|| PathBuf::from(format!("{selector}.{domain}.pem")));
    let cannot = |e: std::io::Error| Failure::Failed(format!("cannot write {}: {e}", path.display()));
    let mut out = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(cannot)?;
    out.write_all(pem.as_bytes()).and_then(|()| out.sync_all()).map_err(cannot)?;
    let key = Key::from_pem(&pem).map_err(Failure::Failed)?;
    let record = record(&key).map_err(Failure::Failed)?;
    let strings: Vec<String> =
        record.as_bytes().chunks(STRING_MAX).map(|c| format!("\"{}\"", String::from_utf8_lossy(c))).collect();
    let shown = std::path::absolute(&path).unwrap_or(path);
    Ok(format!(
        "The private key is in {}. Publish:\n\n{selector}._domainkey.{domain}. IN TXT ( {} )\n\nand let mail be signed:\n\n\
         domain-key {selector},{domain},{}\n<domain *>\n    dkim-sign yes\n</domain>\n",
        shown.display(),
        strings.join(" "),
        shown.display()
    ))
}

/// The text of the record that publishes a key (RFC 6376 section 3.6.1).
///
/// # Errors
/// When the library cannot write the public key.
fn record(key: &Key) -> Result<String, String> {
    Ok(format!("v=DKIM1; k={}; p={}", kind_of(key), public(key)?))
}

/// `k=`
fn kind_of(key: &Key) -> &'static str {
    if key.algorithm().starts_with("rsa") { "rsa" } else { "ed25519" }
}

fn public(key: &Key) -> Result<String, String> {
    key.public().map(|p| key::base64(&p))
}

/// What was found of one key.
#[derive(Debug, Serialize)]
pub struct Checked {
    selector: String,
    domain: String,
    file: String,
    bits: usize,
    /// `published`, `missing`, `differs`, `revoked`, `unusable` (the key is there, and `v=`, `k=`, `h=` or `s=` keep
    /// verifiers from it), `any domain`, or `unknown` where DNS does not say.
    state: &'static str,
    /// Why DNS does not say; empty where it does.
    reason: String,
    /// What to publish; empty where it is.
    publish: String,
}

impl Checked {
    /// Its signatures will not be verified.
    pub fn is_wrong(&self) -> bool {
        matches!(self.state, "missing" | "differs" | "revoked" | "unusable")
    }
}

impl std::fmt::Display for Checked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}._domainkey.{}: {} ({}, {} bits)", self.selector, self.domain, self.state, self.file, self.bits)?;
        if self.reason.is_empty() { Ok(()) } else { write!(f, ": {}", self.reason) }
    }
}

/// A `domain-key` with its file's content, to be compared with its record.
#[derive(Debug)]
pub struct Published {
    of: DomainKey,
    pem: String,
}

/// Every `domain-key` of a configuration, once.
pub fn keys_of(s: &Snapshot) -> Vec<Published> {
    let mut keys: Vec<&DomainKey> = Vec::new();
    for k in s.all_domain_keys() {
        if !keys.contains(&k) {
            keys.push(k);
        }
    }
    let pem = |path: &str| s.pem(path).unwrap_or_default().to_owned();
    keys.into_iter().map(|k| Published { of: k.clone(), pem: pem(&k.path) }).collect()
}

/// Compares keys with what is published.
///
/// # Errors
/// A sentence about a key that cannot be used.
pub async fn compare(keys: Vec<Published>, resolver: &Resolver) -> Result<Vec<Checked>, String> {
    let mut all = Vec::new();
    for Published { of: k, pem } in keys {
        let key = Key::from_pem(&pem)?;
        let expected = record(&key)?;
        let mut reason = String::new();
        let state = match k.domain.as_str() {
            "*" => "any domain",
            d => match resolver.txt(&format!("{}._domainkey.{d}", k.selector)).await {
                Ok(found) => state_of(&found, kind_of(&key), &public(&key)?),
                Err(e) => {
                    reason = e;
                    "unknown"
                }
            },
        };
        let publish = if matches!(state, "published" | "any domain") { String::new() } else { expected };
        all.push(Checked {
            selector: k.selector,
            domain: k.domain,
            file: k.path,
            bits: key.bits(),
            state,
            reason,
            publish,
        });
    }
    Ok(all)
}

/// Compares every `domain-key` of a file with what is published. Answers text or JSON, and whether
/// all are well.
///
/// # Errors
/// What is wrong with the file.
pub fn check(file: &Path, json: bool) -> Result<(String, bool), Failure> {
    let s = config::compiled(file, &Overrides::default())?.snapshot;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::Failed(e.to_string()))?;
    let (servers, dns) = (&s.global.name_servers, dns_of_the_system());
    let resolver = Resolver::new(servers, s.global.edns_udp_length, &dns).map_err(Failure::Failed)?;
    let all = runtime.block_on(compare(keys_of(&s), &resolver)).map_err(Failure::Failed)?;
    let well = all.iter().all(|c| c.publish.is_empty());
    if json {
        let text = serde_json::to_string_pretty(&all).map_err(|e| Failure::Failed(e.to_string()))?;
        return Ok((text + "\n", well));
    }
    let mut text = String::new();
    for c in &all {
        text += &format!("{c}\n");
        if !c.publish.is_empty() {
            text += &format!("    expected {}\n", c.publish);
        }
    }
    if all.is_empty() {
        text += "The file has no domain-key.\n";
    }
    Ok((text, well))
}

/// Whether one of the records that were found publishes the key `p` of a kind (`k=`), so that verifiers take it
/// (RFC 6376 section 3.6.1).
fn state_of(found: &[String], kind: &str, p: &str) -> &'static str {
    let all: Vec<HashMap<&str, String>> = found.iter().map(|r| tags(r)).filter(|t| t.contains_key("p")).collect();
    let is_usable = |t: &HashMap<&str, String>| {
        let names = |tag: &str, wanted: &[&str]| {
            t.get(tag).is_none_or(|v| v.split(':').any(|n| wanted.iter().any(|w| n.eq_ignore_ascii_case(w))))
        };
        t.get("v").is_none_or(|v| v == "DKIM1")
            && t.get("k").map_or(kind == "rsa", |k| k.eq_ignore_ascii_case(kind))
            && names("h", &["sha256"])
            && names("s", &["*", "email"])
    };
    let has_key = |t: &&HashMap<&str, String>| t["p"] == p;
    match all.as_slice() {
        [] => "missing",
        l if l.iter().filter(has_key).any(is_usable) => "published",
        l if l.iter().any(|t| has_key(&t)) => "unusable",
        l if l.iter().any(|t| t["p"].is_empty()) => "revoked",
        _ => "differs",
    }
}

/// A record's tags, without white space.
fn tags(record: &str) -> HashMap<&str, String> {
    record
        .split(';')
        .filter_map(|t| t.split_once('='))
        .map(|(n, v)| (n.trim(), v.split_whitespace().collect()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_compared_by_their_key() {
        let of = |r: &[&str]| state_of(&r.iter().map(|r| (*r).to_owned()).collect::<Vec<_>>(), "rsa", "AB+=");
        assert_eq!(of(&["v=DKIM1; k=rsa; p=AB +="]), "published");
        assert_eq!(of(&["v=spf1 -all", "v=DKIM1; p=CD"]), "differs");
        assert_eq!(of(&["k=rsa; h=sha1:sha256; s=email; p=AB+="]), "published");
        for unusable in ["h=sha1; p=AB+=", "s=other; p=AB+=", "k=ed25519; p=AB+=", "v=DKIM2; p=AB+="] {
            assert_eq!(of(&[unusable]), "unusable", "{unusable}");
        }
        assert_eq!((of(&["p="]), of(&[]), of(&["v=spf1"])), ("revoked", "missing", "missing"));
    }
}

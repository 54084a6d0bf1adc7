//! What `dkim-*` and `second-dkim-*` ask for.

use std::time::Duration;

use ipc::rules::DomainRules;

use super::canonical::Form;
use super::key::Key;
use crate::classify::expression;

/// Signed wherever a message has them.
const ALWAYS: [&str; 33] = [
    "bimi-selector",
    "cc",
    "cfbl-address",
    "content-description",
    "content-id",
    "content-transfer-encoding",
    "content-type",
    "date",
    "feedback-id",
    "from",
    "in-reply-to",
    "list-archive",
    "list-help",
    "list-id",
    "list-owner",
    "list-post",
    "list-subscribe",
    "list-unsubscribe",
    "list-unsubscribe-post",
    "message-id",
    "mime-version",
    "references",
    "reply-to",
    "resent-cc",
    "resent-date",
    "resent-from",
    "resent-message-id",
    "resent-sender",
    "resent-to",
    "sender",
    "subject",
    "to",
    "x-csa-complaints",
];
/// Never signed: they change on the way, or are not for receivers.
const NEVER: [&str; 7] = ["bcc", "comments", "dkim-signature", "keywords", "received", "resent-bcc", "return-path"];

/// Whose domain the signature is to speak for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// That of Sender, or else of From.
    SenderOrFrom,
    /// That of From, by a key of exactly that domain.
    StrictFrom,
    /// `user@domain` or `@domain`, which `i=` then says.
    Given(String),
}

impl Identity {
    fn parse(text: &str) -> Identity {
        match text.to_ascii_lowercase().as_str() {
            "" | "sender-or-from" => Identity::SenderOrFrom,
            "strict-from" => Identity::StrictFrom,
            _ => Identity::Given(text.to_owned()),
        }
    }
}

/// A header by name, or by an expression for names.
#[derive(Debug)]
enum Named {
    Name(String),
    Like(fancy_regex::Regex),
}

/// One signature's.
#[derive(Debug)]
pub struct Options {
    /// `a=` that the key must be good for; `None` for any.
    algorithm: Option<&'static str>,
    /// Form of the header fields.
    pub headers_canon: Form,
    /// Form of the body.
    pub body_canon: Form,
    /// `l=`
    pub body_limit: bool,
    /// `t=`
    pub timestamp: bool,
    /// `x=`, from now on; `None` for never.
    pub expire_after: Option<Duration>,
    /// `q=`; empty for none.
    pub query_method: String,
    headers: Vec<Named>,
    /// Listed once more than they are there, in lower case.
    pub oversigned: Vec<String>,
    /// The domain and user in whose name mail is signed.
    pub identity: Identity,
    /// The identity that is used where no key fits the first one.
    pub fallback: Option<Identity>,
    /// What the message asks for comes before all of it.
    pub follows_message: bool,
    /// Only messages that ask for it are signed.
    pub only_if_asked: bool,
}

/// Rules whose first signature is the second of `r`: what `second-dkim-…` does not say is as it is there.
fn as_first(r: &DomainRules) -> DomainRules {
    let mut of = r.clone();
    of.dkim_algorithm = r.second_dkim_algorithm.or(r.dkim_algorithm);
    set(&mut of.dkim_headers_canon, &r.second_dkim_headers_canon);
    set(&mut of.dkim_body_canon, &r.second_dkim_body_canon);
    set(&mut of.dkim_add_body_limit, &r.second_dkim_add_body_limit);
    set(&mut of.dkim_add_timestamp, &r.second_dkim_add_timestamp);
    set(&mut of.dkim_expire_after, &r.second_dkim_expire_after);
    set(&mut of.dkim_query_method, &r.second_dkim_query_method);
    set(&mut of.dkim_headers, &r.second_dkim_headers);
    set(&mut of.dkim_disallow_adding_headers, &r.second_dkim_disallow_adding_headers);
    set(&mut of.dkim_identity, &r.second_dkim_identity);
    set(&mut of.dkim_identity_fallback, &r.second_dkim_identity_fallback);
    of
}

fn set<T: Clone>(value: &mut T, second: &Option<T>) {
    second.iter().for_each(|s| value.clone_from(s));
}

fn form(n: u64) -> Form {
    if n == 0 { Form::Simple } else { Form::Relaxed }
}

fn algorithm(n: Option<u64>) -> Option<&'static str> {
    // rsa-sha1 must not be used any more (RFC 8301): such a key signs by SHA-256.
    n.map(|n| if n == 2 { "ed25519-sha256" } else { "rsa-sha256" })
}

impl Options {
    /// Those of the signatures that the rules of a path ask for: none, one or two.
    pub fn of(r: &DomainRules) -> Vec<Options> {
        // yes, no, true, false, if-x-dkim-options-present
        let first = matches!(r.dkim_sign, 0 | 2 | 4).then(|| Options {
            follows_message: true,
            only_if_asked: r.dkim_sign == 4,
            ..Options::first(r)
        });
        let second = r.second_dkim_sign.then(|| Options::first(&as_first(r)));
        first.into_iter().chain(second).collect()
    }

    fn first(r: &DomainRules) -> Options {
        Options {
            algorithm: algorithm(r.dkim_algorithm),
            headers_canon: form(r.dkim_headers_canon),
            body_canon: form(r.dkim_body_canon),
            body_limit: r.dkim_add_body_limit,
            timestamp: r.dkim_add_timestamp,
            expire_after: expiry(r.dkim_expire_after),
            query_method: method(&r.dkim_query_method),
            headers: named(&r.dkim_headers),
            oversigned: lower(&r.dkim_disallow_adding_headers),
            identity: Identity::parse(&r.dkim_identity),
            follows_message: false,
            only_if_asked: false,
            fallback: Some(&r.dkim_identity_fallback).filter(|f| !f.is_empty()).map(|f| Identity::parse(f)),
        }
    }

    /// Whether a field of this name is signed.
    pub fn signs(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        // Nor what would end the list of names.
        if NEVER.contains(&name.as_str()) || name.contains(';') {
            return false;
        }
        let is_meant = |n: &Named| match n {
            Named::Name(n) => *n == name,
            // An expression that runs away means nothing.
            Named::Like(e) => e.is_match(&name).unwrap_or(false),
        };
        ALWAYS.contains(&name.as_str()) || self.oversigned.contains(&name) || self.headers.iter().any(is_meant)
    }

    /// Whether a key may be used.
    pub fn takes(&self, key: &Key) -> bool {
        self.algorithm.is_none_or(|a| a == key.algorithm())
    }
}

/// A value that ends at no other tag.
pub(super) fn method(text: &str) -> String {
    let fine = text.bytes().all(|b| b.is_ascii_graphic() && b != b';');
    if fine { text.to_owned() } else { String::new() }
}

fn expiry(d: Duration) -> Option<Duration> {
    (d.as_millis() as u64 != ipc::rules::NEVER_MS && !d.is_zero()).then_some(d)
}

fn lower(names: &[String]) -> Vec<String> {
    let all = names.iter().map(|n| n.to_ascii_lowercase());
    all.filter(|n| !n.is_empty() && !NEVER.contains(&n.as_str())).collect()
}

fn named(names: &[String]) -> Vec<Named> {
    let one = |n: &String| match n.strip_prefix('/').and_then(|n| n.strip_suffix('/')) {
        Some(e) => expression::compile(e).ok().map(Named::Like),
        None => Some(Named::Name(n.to_ascii_lowercase())),
    };
    names.iter().filter(|n| !n.is_empty()).filter_map(one).collect()
}

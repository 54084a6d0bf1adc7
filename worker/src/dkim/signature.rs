//! Making a `DKIM-Signature` field.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use super::canonical::{self, Form};
use super::key::Key;
use super::options::{Identity, Options, method};
use super::request::Request;
use crate::prepare::headers::{self, Field};

/// Columns that a line of the field keeps below.
const COLUMNS: usize = 76;

/// A key with the names that it signs by.
#[derive(Debug, Clone)]
pub struct DomainKey {
    /// `s=`
    pub selector: String,
    /// `d=`; `*` for the domain of whoever signs.
    pub domain: String,
    /// The key.
    pub key: Arc<Key>,
}

/// A message, seen as signers do.
#[derive(Debug)]
pub struct Signable<'a> {
    header: &'a [u8],
    fields: Vec<Field<'a>>,
    /// The body without the empty line before it.
    body: [&'a [u8]; 2],
    /// Body hashes that were worked out.
    hashes: Vec<(Form, Vec<u8>, u64)>,
}

impl<'a> Signable<'a> {
    /// Of content as it is stored: the header, perhaps with all that follows, and the rest.
    pub fn of(content: &'a [Bytes; 2]) -> Signable<'a> {
        let (fields, end) = headers::parse(&content[0]);
        let (header, rest) = content[0].split_at(end);
        let body = match rest.is_empty() {
            true => [&[][..], content[1].strip_prefix(b"\r\n").unwrap_or(&content[1])],
            false => [rest.strip_prefix(b"\r\n").unwrap_or(rest), &content[1][..]],
        };
        Signable { header, fields, body, hashes: Vec::new() }
    }

    /// Bytes of the header section.
    pub fn header_len(&self) -> usize {
        self.header.len()
    }

    /// The domain of the address in the first field of a name.
    fn domain_in(&self, name: &str) -> Option<String> {
        let f = self.fields.iter().find(|f| f.name.eq_ignore_ascii_case(name))?;
        domain_of_mailbox(&headers::unfolded(f.value))
    }

    /// The hash of the body was worked out elsewhere.
    pub fn has_body_hash(&mut self, form: Form, (hash, len): (Vec<u8>, u64)) {
        self.hashes.push((form, hash, len));
    }

    /// The hash of the body, and the length of its canonical form.
    pub fn body_hash(&mut self, form: Form) -> (Vec<u8>, u64) {
        if let Some((_, hash, len)) = self.hashes.iter().find(|(f, ..)| *f == form) {
            return (hash.clone(), *len);
        }
        let (hash, len) = canonical::body_hash(form, self.body.into_iter());
        self.hashes.push((form, hash.clone(), len));
        (hash, len)
    }
}

/// The domain of the first address in a From or Sender: `"a@b" <c@d.test> (x@y)` is `d.test`.
fn domain_of_mailbox(value: &str) -> Option<String> {
    let mut plain = String::with_capacity(value.len());
    let (mut quoted, mut depth, mut escaped) = (false, 0u32, false);
    for c in value.chars() {
        if std::mem::take(&mut escaped) {
            continue;
        }
        match c {
            '\\' if quoted || depth > 0 => escaped = true,
            '"' if depth == 0 => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted && depth > 0 => depth -= 1,
            c if !quoted && depth == 0 => plain.push(c),
            _ => {}
        }
    }
    // Groups (RFC 5322 section 3.4) end with a semicolon, their names with a colon.
    let domain = plain.split([',', ';']).find_map(|mailbox| {
        let address = match mailbox.split_once('<') {
            Some((_, rest)) => rest.split_once('>')?.0,
            None => mailbox.rsplit_once(':').map_or(mailbox, |(_, address)| address),
        };
        Some(address.rsplit_once('@')?.1)
    })?;
    // White space may stand around each dot.
    let labels: Vec<&str> = domain.split('.').map(str::trim).collect();
    signing_domain(&labels.join("."))
}

/// A domain as `d=` names it: no address literal, nor what is none at all.
fn signing_domain(domain: &str) -> Option<String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    ipc::message::normalise_domain(domain).ok().filter(|d| !d.is_empty() && d.chars().all(fine))
}

/// The key that signs a message, and the `d=` and `i=` of the signature.
fn signer(
    m: &Signable<'_>,
    o: &Options,
    lists: &[&[DomainKey]],
    takes: &dyn Fn(&&DomainKey) -> bool,
) -> Option<(DomainKey, String, String)> {
    std::iter::once(&o.identity).chain(&o.fallback).find_map(|identity| {
        let (domain, said) = identified(m, identity)?;
        let fits = |k: &&DomainKey| match identity {
            Identity::StrictFrom => k.domain.eq_ignore_ascii_case(&domain),
            _ => covers(&k.domain, &domain),
        };
        // The virtual MTA's keys go first, as long as one of them fits.
        let key = lists.iter().find_map(|l| l.iter().filter(fits).find(takes))?;
        let d = if key.domain == "*" { domain } else { key.domain.to_lowercase() };
        Some((key.clone(), d, said))
    })
}

/// The domain that an identity speaks for, and what `i=` says.
fn identified(m: &Signable<'_>, identity: &Identity) -> Option<(String, String)> {
    Some(match identity {
        Identity::SenderOrFrom => (m.domain_in("sender").or_else(|| m.domain_in("from"))?, String::new()),
        Identity::StrictFrom => (m.domain_in("from")?, String::new()),
        Identity::Given(i) => {
            let (local, domain) = i.rsplit_once('@')?;
            let domain = signing_domain(domain)?;
            let said = format!("{local}@{domain}");
            (domain, said)
        }
    })
}

/// A key's domain is that of an identity, or a parent of it, or any.
fn covers(of_key: &str, domain: &str) -> bool {
    let of = of_key.to_lowercase();
    let parent = || domain.strip_suffix(of.as_str()).is_some_and(|rest| rest.ends_with('.'));
    of == "*" || of == domain || parent()
}

/// The same where the message asks for a signature itself: what it says comes before the configuration.
fn signer_asked_for(
    m: &Signable<'_>,
    o: &Options,
    r: &Request,
    lists: &[&[DomainKey]],
) -> Option<(DomainKey, String, String)> {
    let identity = Some(&r.identity).filter(|i| !i.is_empty()).map(|i| Identity::Given(i.clone()));
    let wanted = Some(&r.domain).filter(|d| !d.is_empty()).map(|d| signing_domain(d));
    if wanted == Some(None) {
        // No domain at all: nobody can sign for it.
        return None;
    }
    let wanted = wanted.flatten();
    let by_selector = |k: &&DomainKey| (r.selector.is_empty() || k.selector == r.selector) && o.takes(&k.key);
    if identity.is_none() && wanted.is_none() && r.key.is_none() {
        // Whose signature it is stays as configured.
        return signer(m, o, lists, &by_selector);
    }
    let (domain, said) = match (&identity, &wanted) {
        // By RFC 6376 section 3.5 the identity lies in the domain.
        (Some(i), Some(d)) => identified(m, i).filter(|(of, _)| covers(d, of)).map(|(_, i)| (d.clone(), i))?,
        (Some(i), None) => identified(m, i)?,
        (None, Some(d)) => (d.clone(), String::new()),
        (None, None) => identified(m, &o.identity)?,
    };
    let fits = |k: &&DomainKey| {
        let by_domain = match wanted {
            Some(_) => k.domain == "*" || k.domain.eq_ignore_ascii_case(&domain),
            None => covers(&k.domain, &domain),
        };
        by_domain && by_selector(k)
    };
    let own = r.key.as_ref().filter(|_| !r.selector.is_empty());
    let own = own.map(|key| DomainKey { selector: r.selector.clone(), domain: "*".into(), key: Arc::clone(key) });
    let key = own.or_else(|| lists.iter().find_map(|l| l.iter().find(fits)).cloned())?;
    let d = if key.domain == "*" { domain } else { key.domain.to_lowercase() };
    Some((key, d, said))
}

/// A field that lacks its signature only.
#[derive(Debug)]
pub struct Unsigned {
    /// Up to `b=`.
    field: String,
    /// What is to be signed.
    pub data: Vec<u8>,
    /// By which key.
    pub key: Arc<Key>,
}

impl Unsigned {
    /// The whole field with its final CR LF.
    pub fn with(self, signature: &[u8]) -> String {
        let mut out = self.field;
        let b = STANDARD.encode(signature);
        for (n, line) in b.as_bytes().chunks(COLUMNS - 10).enumerate() {
            if n > 0 {
                out.push_str("\r\n\t ");
            }
            out.extend(line.iter().map(|b| char::from(*b)));
        }
        out.push_str("\r\n");
        out
    }
}

/// The field that signs a message at `now_s` (Unix seconds), as the message asks if it does; `None` where no key fits, or there
/// is no From.
///
/// # Errors
/// Why nobody can sign as asked.
pub fn unsigned(
    m: &mut Signable<'_>,
    o: &Options,
    asked: Option<&Request>,
    lists: &[&[DomainKey]],
    now_s: i64,
) -> Result<Option<Unsigned>, String> {
    if asked.is_some_and(|r| r.unusable_key) {
        return Err("X-DKIM-Key holds no key that can be used".into());
    }
    let by = match asked {
        Some(r) => signer_asked_for(m, o, r, lists),
        None => signer(m, o, lists, &|k| o.takes(&k.key)),
    };
    let Some((key, d, i)) = by else { return Ok(None) };
    if !key.selector.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')) {
        return Err(format!("{:?} is no selector", key.selector));
    }
    // From the last up: a name that is listed again means the next field above (RFC 6376 section 5.4.2).
    let signed: Vec<Field<'_>> = m.fields.iter().rev().filter(|f| o.signs(f.name)).cloned().collect();
    if !signed.iter().any(|f| f.name.eq_ignore_ascii_case("from")) {
        return Ok(None);
    }
    let (hash, len) = m.body_hash(o.body_canon);
    let mut out = String::with_capacity(1024);
    out.push_str("DKIM-Signature: ");
    let mut column = out.len();
    let mut tag = |text: &str, out: &mut String| {
        if column + text.len() > COLUMNS && column > 8 {
            out.push_str("\r\n\t");
            column = 8;
        } else if !out.ends_with([' ', '\t']) {
            out.push(' ');
            column += 1;
        }
        out.push_str(text);
        column += text.len();
    };
    tag("v=1;", &mut out);
    tag(&format!("a={};", key.key.algorithm()), &mut out);
    tag(&format!("c={}/{};", o.headers_canon.name(), o.body_canon.name()), &mut out);
    tag(&format!("d={d};"), &mut out);
    tag(&format!("s={};", key.selector), &mut out);
    if o.timestamp {
        tag(&format!("t={now_s};"), &mut out);
    }
    if let Some(after) = o.expire_after {
        tag(&format!("x={};", now_s.saturating_add(after.as_secs() as i64)), &mut out);
    }
    let query_method = asked.map(|r| method(&r.query_method)).filter(|q| !q.is_empty());
    let query_method = query_method.unwrap_or_else(|| o.query_method.clone());
    if !query_method.is_empty() {
        tag(&format!("q={query_method};"), &mut out);
    }
    if o.body_limit {
        tag(&format!("l={len};"), &mut out);
    }
    if !i.is_empty() {
        tag(&format!("i={};", quoted_printable(&i)), &mut out);
    }
    let mut names: Vec<&str> = signed.iter().map(|f| f.name).collect();
    // As the message spells it: some verifiers compare names octet for octet.
    names.extend(o.oversigned.iter().map(|name| {
        let field = signed.iter().find(|f| f.name.eq_ignore_ascii_case(name));
        field.map_or(name.as_str(), |f| f.name)
    }));
    for (n, name) in names.iter().enumerate() {
        let (before, after) = (if n == 0 { "h=" } else { "" }, if n + 1 == names.len() { ";" } else { ":" });
        tag(&format!("{before}{name}{after}"), &mut out);
    }
    tag(&format!("bh={};", STANDARD.encode(&hash)), &mut out);
    out.push_str("\r\n\tb=");
    let mut data = Vec::with_capacity(2048);
    for f in &signed {
        canonical::field(o.headers_canon, &m.header[f.range.clone()], &mut data);
    }
    canonical::field(o.headers_canon, out.as_bytes(), &mut data);
    data.truncate(data.len() - 2);
    Ok(Some(Unsigned { field: out, data, key: key.key }))
}

/// RFC 6376 section 2.11, for `i=`.
fn quoted_printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        match b {
            b'!'..=b'~' if !matches!(b, b';' | b'=') => out.push(char::from(b)),
            b => out.push_str(&format!("={b:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_domain_of_an_address() {
        for (value, domain) in [
            ("a@b.test", Some("b.test")),
            ("\"x <y@z.test>\" <a@B.test>", Some("b.test")),
            ("A (c@d.test) <a@b.test> (e)", Some("b.test")),
            ("a@b.test, c@d.test", Some("b.test")),
            ("\"a\\\"b\" <a@b.test>", Some("b.test")),
            ("Group: a@b.test;", Some("b.test")),
            ("G:;, \"H:\" : A <a@b.test>, c@d.test;", Some("b.test")),
            ("a @ b . test", Some("b.test")),
            ("a@b.test, C <c@d.test>", Some("b.test")),
            ("<@x.test:a@b.test>", Some("b.test")),
            ("undisclosed", None),
            ("undisclosed:;", None),
            ("<a@b.test; x=1>", None),
            ("<a@b c>", None),
            ("<a@[192.0.2.1]>", None),
            ("", None),
        ] {
            assert_eq!(domain_of_mailbox(value).as_deref(), domain, "{value}");
        }
    }
}

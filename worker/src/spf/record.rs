//! A record as a domain publishes it (RFC 7208 section 5 and 6, grammar in section 12).

use std::net::{Ipv4Addr, Ipv6Addr};

use super::expansion::Text;

/// A record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// Directives in order.
    pub directives: Vec<Directive>,
    /// `redirect=`
    pub redirect: Option<Text>,
}

/// What a mechanism that matches comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qualifier {
    /// `+`
    Pass,
    /// `-`
    Fail,
    /// `~`
    SoftFail,
    /// `?`
    Neutral,
}

/// A mechanism, and what it comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    /// What it comes to.
    pub qualifier: Qualifier,
    /// What matches.
    pub mechanism: Mechanism,
}

/// Lengths of prefixes, of IPv4 and IPv6.
pub type Prefixes = (u8, u8);

/// A mechanism. Where no domain is named, it is the one that is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mechanism {
    /// Everything.
    All,
    /// What another domain's record passes.
    Include(Text),
    /// Addresses of a domain.
    A(Option<Text>, Prefixes),
    /// Addresses of its mail hosts.
    Mx(Option<Text>, Prefixes),
    /// Addresses with a name below it.
    Ptr(Option<Text>),
    /// A network.
    Ip4(Ipv4Addr, u8),
    /// A network.
    Ip6(Ipv6Addr, u8),
    /// There is any address of a name.
    Exists(Text),
}

/// Whether a text is a record at all.
pub fn is_record(text: &[u8]) -> bool {
    text.get(..6).is_some_and(|v| v.eq_ignore_ascii_case(b"v=spf1")) && matches!(text.get(6), None | Some(b' '))
}

/// Reads a record; `None` where it breaks the grammar.
pub fn read(text: &[u8]) -> Option<Record> {
    let text = std::str::from_utf8(text).ok().filter(|t| t.is_ascii())?;
    let mut record = Record::default();
    let mut has_explanation = false;
    for term in text.get(6..)?.split(' ').filter(|t| !t.is_empty()) {
        let name_len = term.find(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c)).unwrap_or(term.len());
        if let Some(value) = term[name_len..].strip_prefix('=').filter(|_| name_len > 0) {
            if !term.starts_with(|c: char| c.is_ascii_alphabetic()) {
                return None;
            }
            let name = term[..name_len].to_ascii_lowercase();
            match name.as_str() {
                "redirect" if record.redirect.is_none() => record.redirect = Some(Text::of_domain(value)?),
                // What it would have the client told is not passed on.
                "exp" if !has_explanation => has_explanation = Text::of_domain(value).map(|_| true)?,
                "redirect" | "exp" => return None,
                _ => drop(Text::of(value)?),
            }
            continue;
        }
        record.directives.push(directive(term)?);
    }
    Some(record)
}

fn directive(term: &str) -> Option<Directive> {
    let (qualifier, term) = match term.as_bytes().first()? {
        b'+' => (Qualifier::Pass, &term[1..]),
        b'-' => (Qualifier::Fail, &term[1..]),
        b'~' => (Qualifier::SoftFail, &term[1..]),
        b'?' => (Qualifier::Neutral, &term[1..]),
        _ => (Qualifier::Pass, term),
    };
    let end = term.find([':', '/']).unwrap_or(term.len());
    let (name, rest) = term.split_at(end);
    let argument = rest.strip_prefix(':');
    let mechanism = match (name.to_ascii_lowercase().as_str(), argument) {
        ("all", None) if rest.is_empty() => Mechanism::All,
        ("include", Some(domain)) => Mechanism::Include(Text::of_domain(domain)?),
        ("exists", Some(domain)) => Mechanism::Exists(Text::of_domain(domain)?),
        ("ptr", None) if rest.is_empty() => Mechanism::Ptr(None),
        ("ptr", Some(domain)) => Mechanism::Ptr(Some(Text::of_domain(domain)?)),
        ("ip4", Some(network)) => {
            let (address, bits) = network.split_once('/').map_or((network, 32), |(a, b)| (a, prefix(b, 32)));
            Mechanism::Ip4(address.parse().ok()?, u8::try_from(bits).ok()?)
        }
        ("ip6", Some(network)) => {
            let (address, bits) = network.split_once('/').map_or((network, 128), |(a, b)| (a, prefix(b, 128)));
            Mechanism::Ip6(address.parse().ok()?, u8::try_from(bits).ok()?)
        }
        (name @ ("a" | "mx"), _) => {
            let (domain, prefixes) = with_prefixes(argument.unwrap_or(rest))?;
            let domain = match argument {
                Some(_) => Some(Text::of_domain(domain)?),
                None if domain.is_empty() => None,
                None => return None,
            };
            if name == "a" { Mechanism::A(domain, prefixes) } else { Mechanism::Mx(domain, prefixes) }
        }
        _ => return None,
    };
    Some(Directive { qualifier, mechanism })
}

/// The length of a prefix; above 255 for what is none.
fn prefix(text: &str, most: u16) -> u16 {
    let is_number = !text.is_empty() && text.len() <= 3 && text.bytes().all(|b| b.is_ascii_digit());
    let is_plain = text.len() == 1 || !text.starts_with('0');
    let n = text.parse().unwrap_or(u16::MAX);
    if is_number && is_plain && n <= most { n } else { u16::MAX }
}

/// Parts `DOMAIN/4//6`, either of the lengths being optional.
fn with_prefixes(text: &str) -> Option<(&str, Prefixes)> {
    let mut text = text;
    let (mut v4, mut v6) = (32, 128);
    if let Some((rest, bits)) = text.rsplit_once("//").filter(|(_, bits)| is_digits(bits)) {
        (text, v6) = (rest, prefix(bits, 128));
    }
    if let Some((rest, bits)) = text.rsplit_once('/').filter(|(rest, bits)| is_digits(bits) && !rest.ends_with('/')) {
        (text, v4) = (rest, prefix(bits, 32));
    }
    Some((text, (u8::try_from(v4).ok()?, u8::try_from(v6).ok()?)))
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

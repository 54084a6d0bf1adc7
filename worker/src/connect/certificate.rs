//! What TLS needs of a certificate that nobody judges: its key, and its names. The library that
//! judges certificates reads none that it would not trust (X.509 version 1, critical extensions
//! that it does not know, authorities), though with DANE-EE (RFC 7672 section 3.1.1) and for a
//! certificate that the operator names nothing but what is read here counts.

use std::net::IpAddr;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OBJECT_ID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0] version`, `[3] extensions` of a TBSCertificate.
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
/// `dNSName`, `iPAddress` of a GeneralName.
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;
/// 2.5.4.3, 2.5.29.17
const COMMON_NAME: &[u8] = &[0x55, 4, 3];
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 17];

/// A certificate, read in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Certificate<'a> {
    /// Issuer: what is inside its SEQUENCE.
    pub issuer: &'a [u8],
    /// When it is valid, Unix seconds.
    pub valid: (i64, i64),
    /// Subject, likewise.
    pub subject: &'a [u8],
    /// SubjectPublicKeyInfo as a whole.
    pub key_info: &'a [u8],
    extensions: &'a [u8],
}

/// A public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey<'a> {
    /// AlgorithmIdentifier: what is inside its SEQUENCE.
    pub algorithm: &'a [u8],
    /// The key.
    pub key: &'a [u8],
}

/// One value of DER: its tag, what is inside, and all of it.
struct Value<'a> {
    tag: u8,
    inside: &'a [u8],
    whole: &'a [u8],
}

/// Takes the first value off `from`.
fn next<'a>(from: &mut &'a [u8]) -> Option<Value<'a>> {
    let all = *from;
    let (tag, first) = (*all.first()?, *all.get(1)?);
    let (head, len) = match first {
        0..=0x7f => (2, usize::from(first)),
        // 16 MB is more than any certificate.
        0x81..=0x83 => {
            let bytes = usize::from(first & 0x7f);
            let len = all.get(2..2 + bytes)?.iter().fold(0, |n, b| n << 8 | usize::from(*b));
            (2 + bytes, len)
        }
        _ => return None,
    };
    let whole = all.get(..head + len)?;
    *from = &all[head + len..];
    Some(Value { tag, inside: &whole[head..], whole })
}

fn expect<'a>(from: &mut &'a [u8], tag: u8) -> Option<Value<'a>> {
    next(from).filter(|v| v.tag == tag)
}

/// Takes the first value off `from` if it has this tag.
fn optional<'a>(from: &mut &'a [u8], tag: u8) -> Option<Value<'a>> {
    if from.first() == Some(&tag) { next(from) } else { None }
}

fn each<'a>(mut from: &'a [u8]) -> impl Iterator<Item = Value<'a>> {
    std::iter::from_fn(move || next(&mut from))
}

impl<'a> Certificate<'a> {
    /// Reads DER; `None` when it is no certificate.
    pub fn of(mut der: &'a [u8]) -> Option<Certificate<'a>> {
        let mut outer = expect(&mut der, SEQUENCE)?.inside;
        let mut tbs = expect(&mut outer, SEQUENCE)?.inside;
        let _ = optional(&mut tbs, VERSION);
        // Serial number, algorithm of the signature.
        next(&mut tbs)?;
        expect(&mut tbs, SEQUENCE)?;
        let issuer = expect(&mut tbs, SEQUENCE)?.inside;
        let mut dates = expect(&mut tbs, SEQUENCE)?.inside;
        let valid = (time(&next(&mut dates)?)?, time(&next(&mut dates)?)?);
        let subject = expect(&mut tbs, SEQUENCE)?.inside;
        let key_info = expect(&mut tbs, SEQUENCE)?.whole;
        let extensions = each(tbs).find(|v| v.tag == EXTENSIONS).map_or(&[][..], |v| v.inside);
        Some(Certificate { issuer, valid, subject, key_info, extensions })
    }

    /// Its key; `None` when it cannot be read.
    pub fn public_key(&self) -> Option<PublicKey<'a>> {
        PublicKey::of(self.key_info)
    }

    /// Whether it is for a host: by its alternative names, and by its common name only where
    /// those name no host (RFC 7672 section 3.2.3). `*.` stands for one label.
    pub fn is_for(&self, host: &str) -> bool {
        let names = self.alternative_names();
        if let Ok(ip) = host.parse::<IpAddr>() {
            let octets = match ip {
                IpAddr::V4(a) => a.octets().to_vec(),
                IpAddr::V6(a) => a.octets().to_vec(),
            };
            return names.iter().any(|(tag, name)| *tag == IP_ADDRESS && *name == octets);
        }
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let fits = |name: &[u8]| {
            let name = String::from_utf8_lossy(name).trim_end_matches('.').to_ascii_lowercase();
            match name.strip_prefix("*.") {
                Some(rest) => host.split_once('.').is_some_and(|(first, of)| !first.is_empty() && of == rest),
                None => name == host,
            }
        };
        let mut dns = names.iter().filter(|(tag, _)| *tag == DNS_NAME).peekable();
        if dns.peek().is_some() {
            return dns.any(|(_, name)| fits(name));
        }
        self.common_names().any(fits)
    }

    /// The hosts that it is for, as written, with `*.` where it is for all of a domain: its alternative names, else its common names.
    pub fn host_names(&self) -> Vec<String> {
        let shown = |(tag, name): &(u8, &[u8])| match (*tag, name.len()) {
            (DNS_NAME, _) => Some(String::from_utf8_lossy(name).into_owned()),
            (IP_ADDRESS, 4) => <[u8; 4]>::try_from(*name).ok().map(|a| IpAddr::from(a).to_string()),
            (IP_ADDRESS, 16) => <[u8; 16]>::try_from(*name).ok().map(|a| IpAddr::from(a).to_string()),
            _ => None,
        };
        let names: Vec<String> = self.alternative_names().iter().filter_map(shown).collect();
        match names.is_empty() {
            true => self.common_names().map(|n| String::from_utf8_lossy(n).into_owned()).collect(),
            false => names,
        }
    }

    fn alternative_names(&self) -> Vec<(u8, &'a [u8])> {
        let all = each(self.extensions).filter(|v| v.tag == SEQUENCE).flat_map(|v| each(v.inside));
        let value = |extension: Value<'a>| {
            let mut parts = extension.inside;
            let id = expect(&mut parts, OBJECT_ID)?.inside;
            // `critical` may stand between.
            let mut value = each(parts).find(|v| v.tag == OCTET_STRING)?.inside;
            if id == SUBJECT_ALT_NAME { expect(&mut value, SEQUENCE) } else { None }
        };
        all.filter_map(value).flat_map(|names| each(names.inside)).map(|n| (n.tag, n.inside)).collect()
    }

    fn common_names(&self) -> impl Iterator<Item = &'a [u8]> {
        let attributes = each(self.subject).filter(|v| v.tag == SET).flat_map(|v| each(v.inside));
        attributes.filter_map(|a| {
            let mut parts = a.inside;
            let id = expect(&mut parts, OBJECT_ID)?.inside;
            if id == COMMON_NAME { next(&mut parts).map(|v| v.inside) } else { None }
        })
    }
}

impl<'a> PublicKey<'a> {
    /// What is inside the SEQUENCE of a SubjectPublicKeyInfo.
    pub fn inside(mut info: &'a [u8]) -> Option<&'a [u8]> {
        expect(&mut info, SEQUENCE).map(|v| v.inside)
    }

    /// Reads a SubjectPublicKeyInfo.
    pub fn of(mut info: &'a [u8]) -> Option<PublicKey<'a>> {
        let mut parts = expect(&mut info, SEQUENCE)?.inside;
        let algorithm = expect(&mut parts, SEQUENCE)?.inside;
        // No bit of the last octet is unused.
        let key = expect(&mut parts, BIT_STRING)?.inside.strip_prefix(&[0])?;
        Some(PublicKey { algorithm, key })
    }
}

/// `YYMMDDHHMMSSZ`, `YYYYMMDDHHMMSSZ` (RFC 5280 section 4.1.2.5) as Unix seconds.
fn time(v: &Value<'_>) -> Option<i64> {
    let text = std::str::from_utf8(v.inside).ok()?.strip_suffix('Z')?;
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let (year, rest) = match (v.tag, text.len(), digits) {
        (UTC_TIME, 12, true) => {
            let short: i64 = text[..2].parse().ok()?;
            (short + if short < 50 { 2000 } else { 1900 }, &text[2..])
        }
        (GENERALIZED_TIME, 14, true) => (text[..4].parse().ok()?, &text[4..]),
        _ => return None,
    };
    let part = |i: usize| rest[2 * i..2 * i + 2].parse::<i64>().ok();
    let (month, day, hour, minute, second) = (part(0)?, part(1)?, part(2)?, part(3)?, part(4)?);
    // Days since 1970 by years that begin in March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days =
        365 * y + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (153 * m + 2) / 5 + day - 1 - 719_468;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let inside = parts.concat();
        let len = inside.len();
        let head = if len < 128 { vec![tag, len as u8] } else { vec![tag, 0x82, (len >> 8) as u8, len as u8] };
        [head, inside].concat()
    }

    /// A certificate of version 1 (no version, no extensions) or one with these alternative names.
    fn certificate(common_name: &str, names: &[(u8, &[u8])]) -> Vec<u8> {
        let algorithm = der(SEQUENCE, &[&der(OBJECT_ID, &[&[0x2b, 0x65, 0x70]])]);
        let cn = der(SEQUENCE, &[&der(OBJECT_ID, &[COMMON_NAME]), &der(0x0c, &[common_name.as_bytes()])]);
        let name = der(SEQUENCE, &[&der(SET, &[&cn])]);
        let dates =
            der(SEQUENCE, &[&der(UTC_TIME, &[b"991231235959Z"]), &der(GENERALIZED_TIME, &[b"20500228120000Z"])]);
        let key = der(SEQUENCE, &[&algorithm, &der(BIT_STRING, &[&[0], &[7; 32]])]);
        let serial = [2, 1, 5];
        let mut tbs = vec![&serial[..], &algorithm, &name, &dates, &name, &key];
        let general: Vec<u8> = names.iter().flat_map(|(tag, n)| der(*tag, &[n])).collect();
        let value = der(OCTET_STRING, &[&der(SEQUENCE, &[&general])]);
        let unknown = der(SEQUENCE, &[&der(OBJECT_ID, &[&[0x2a, 3, 4]]), &[1, 1, 0xff], &der(OCTET_STRING, &[b"x"])]);
        let alt = der(SEQUENCE, &[&der(OBJECT_ID, &[SUBJECT_ALT_NAME]), &value]);
        let extensions = der(EXTENSIONS, &[&der(SEQUENCE, &[&unknown, &alt])]);
        let version = der(VERSION, &[&[2, 1, 2]]);
        if !names.is_empty() {
            tbs.insert(0, &version);
            tbs.push(&extensions);
        }
        let tbs = der(SEQUENCE, &tbs);
        der(SEQUENCE, &[&tbs, &algorithm, &der(BIT_STRING, &[&[0], &[9; 64]])])
    }

    #[test]
    fn the_key_and_the_names_are_found() {
        let der = certificate("mx.d.test", &[]);
        let c = Certificate::of(&der).unwrap();
        let key = c.public_key().unwrap();
        assert_eq!((key.algorithm, key.key), (&[6u8, 3, 0x2b, 0x65, 0x70][..], &[7u8; 32][..]));
        assert!(c.is_for("MX.d.test.") && !c.is_for("d.test"));
        let der = certificate("mx.d.test", &[(DNS_NAME, b"*.e.test"), (IP_ADDRESS, &[127, 0, 0, 1])]);
        let c = Certificate::of(&der).unwrap();
        assert!(c.is_for("mx.e.test") && c.is_for("127.0.0.1"));
        // The common name does not count beside names of hosts, and a star is one label.
        assert!(!c.is_for("mx.d.test") && !c.is_for("a.b.e.test") && !c.is_for("e.test") && !c.is_for("127.0.0.2"));
        let der = certificate("mx.d.test", &[(IP_ADDRESS, &[127, 0, 0, 1])]);
        assert!(Certificate::of(&der).unwrap().is_for("mx.d.test"));
    }

    #[test]
    fn dates_are_unix_seconds() {
        let der = certificate("x", &[]);
        assert_eq!(Certificate::of(&der).unwrap().valid, (946_684_799, 2_529_662_400));
    }

    proptest! {
        #[test]
        fn any_bytes_are_handled(at in 0usize..400, byte: u8, cut in 0usize..400, rubbish in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut der = certificate("mx.d.test", &[(DNS_NAME, b"mx.e.test")]);
            if let Some(b) = der.get_mut(at) { *b = byte; }
            der.truncate(cut);
            for bytes in [&der, &rubbish] {
                if let Some(c) = Certificate::of(bytes) {
                    let _ = (c.public_key(), c.is_for("mx.e.test"), c.is_for("::1"));
                }
            }
        }
    }
}

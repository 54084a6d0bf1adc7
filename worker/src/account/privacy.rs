//! `privacy-policy`: recipients' local parts in accounting files become a text or a hash, wherever
//! they show.

use std::hash::Hasher;

use aws_lc_rs::hmac;
use siphasher::sip::SipHasher24;

/// What stands in place of a local part.
#[derive(Clone, Default)]
pub enum Privacy {
    /// It stays.
    #[default]
    Retain,
    /// This text.
    Redact(String),
    /// SipHash-2-4 of it in lower case, in hexadecimal digits.
    SipHash([u8; 16]),
    /// HMAC-SHA-256 (RFC 2104) of it in lower case, in hexadecimal digits.
    Hmac(Box<hmac::Key>),
}

impl std::fmt::Debug for Privacy {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Privacy::Retain => "retain",
            Privacy::Redact(_) => "redact",
            Privacy::SipHash(_) => "siphash",
            Privacy::Hmac(_) => "hmac-sha256",
        })
    }
}

/// Longest key that is taken, bytes.
const KEY_MAX: usize = 4096;
/// Characters of a local part that is replaced wherever it stands as a word.
const LOCAL_WORD_MIN: usize = 4;
/// Local parts that are words of replies as well.
const WORDS_OF_REPLIES: [&str; 12] = [
    "mail",
    "user",
    "spam",
    "host",
    "abuse",
    "domain",
    "server",
    "policy",
    "mailbox",
    "address",
    "support",
    "postmaster",
];
/// Bytes of a SipHash key; shorter ones are filled up with NUL.
const SIPHASH_KEY: usize = 16;

impl Privacy {
    /// Reads `retain`, `redact ["text"]`, `siphash KEY`, `siphash-hexkey HEX`, `hmac-sha256 KEY` or
    /// `hmac-sha256-hexkey HEX`.
    ///
    /// # Errors
    /// A sentence saying what is wrong; it does not repeat the key.
    pub fn parse(text: &str) -> Result<Privacy, String> {
        let (word, rest) = text.trim().split_once(char::is_whitespace).unwrap_or((text.trim(), ""));
        let argument = unquoted(rest.trim());
        match word.to_ascii_lowercase().as_str() {
            "retain" if argument.is_empty() => Ok(Privacy::Retain),
            "redact" => Ok(Privacy::Redact(if argument.is_empty() { "...".into() } else { argument.into() })),
            "siphash" => Privacy::siphash(argument.as_bytes()),
            "siphash-hexkey" => Privacy::siphash(&hex(argument)?),
            "hmac-sha256" => Privacy::hmac(argument.as_bytes()),
            "hmac-sha256-hexkey" => Privacy::hmac(&hex(argument)?),
            "retain" => Err("retain takes no argument".into()),
            other => Err(format!(
                "expected retain, redact, siphash, siphash-hexkey, hmac-sha256 or hmac-sha256-hexkey, found {other:?}"
            )),
        }
    }

    /// SipHash with a key of at most 16 bytes.
    ///
    /// # Errors
    /// A sentence.
    pub fn siphash(key: &[u8]) -> Result<Privacy, String> {
        let mut whole = [0; SIPHASH_KEY];
        match key.len() {
            0 => Err("the key of siphash is missing".into()),
            n if n > SIPHASH_KEY => Err(format!("the key of siphash has {n} bytes; it may have {SIPHASH_KEY}")),
            n => {
                whole[..n].copy_from_slice(key);
                Ok(Privacy::SipHash(whole))
            }
        }
    }

    /// HMAC-SHA-256.
    ///
    /// # Errors
    /// A sentence.
    pub fn hmac(key: &[u8]) -> Result<Privacy, String> {
        match key.len() {
            0 => Err("the key of hmac-sha256 is missing".into()),
            n if n > KEY_MAX => Err(format!("the key of hmac-sha256 has {n} bytes; it may have {KEY_MAX}")),
            _ => Ok(Privacy::Hmac(Box::new(hmac::Key::new(hmac::HMAC_SHA256, key)))),
        }
    }

    /// Nothing changes.
    pub fn retains(&self) -> bool {
        matches!(self, Privacy::Retain)
    }

    /// What stands for a local part.
    pub fn digest(&self, local: &str) -> String {
        let lower = local.to_lowercase();
        match self {
            Privacy::Retain => local.to_owned(),
            Privacy::Redact(text) => text.clone(),
            Privacy::SipHash(key) => {
                let mut h = SipHasher24::new_with_key(key);
                h.write(lower.as_bytes());
                format!("{:016X}", h.finish())
            }
            Privacy::Hmac(key) => upper_hex(hmac::sign(key, lower.as_bytes()).as_ref()),
        }
    }

    /// An address with its local part replaced.
    pub fn address(&self, address: &str) -> String {
        match address.rsplit_once('@') {
            Some((local, domain)) => format!("{}@{domain}", self.digest(local)),
            None if address.is_empty() => String::new(),
            None => self.digest(address),
        }
    }

    /// A text with the local part of `recipient` replaced where the address stands in it, also as
    /// standard VERP writes it (`local=domain`), in any case.
    pub fn text(&self, text: &str, recipient: &str) -> String {
        // One that is no address is a local part alone.
        let (local, domain) = recipient.rsplit_once('@').unwrap_or((recipient, ""));
        if local.is_empty() {
            return text.to_owned();
        }
        let (lower, wanted) = (lowered(text), lowered(local));
        let behind = lowered(domain);
        let speaks_for_itself = is_telling(&wanted);
        let (mut out, mut from) = (String::with_capacity(text.len()), 0);
        for at in memchr::memmem::find_iter(lower.as_bytes(), wanted.as_bytes()) {
            let end = at + wanted.len();
            let (Some(before), Some(rest)) = (lower.get(..at), lower.get(end..)) else { continue };
            let is_address = rest.strip_prefix(['@', '=']).is_some_and(|d| d.starts_with(&behind))
                // Some replies name the mailbox alone: <local>, or as a word.
                || (rest.starts_with('>') && before.ends_with('<'))
                || (speaks_for_itself && is_word(before, rest));
            if at >= from && is_address {
                out.push_str(&text[from..at]);
                out.push_str(&self.digest(local));
                from = end;
            }
        }
        out.push_str(&text[from..]);
        out
    }
}

/// In lower case where that takes as many bytes, so that places in it are places in the text.
fn lowered(text: &str) -> String {
    let one = |c: char| {
        let mut lower = c.to_lowercase();
        match (lower.next(), lower.next()) {
            (Some(l), None) if l.len_utf8() == c.len_utf8() => l,
            _ => c,
        }
    };
    text.chars().map(one).collect()
}

/// A local part that no reply would hold by chance.
fn is_telling(local: &str) -> bool {
    local.chars().count() >= LOCAL_WORD_MIN && !WORDS_OF_REPLIES.contains(&local)
}

/// What stands between these is not a part of a longer word.
fn is_word(before: &str, behind: &str) -> bool {
    let inside = |c: char| c.is_alphanumeric() || matches!(c, '.' | '+' | '_' | '-');
    let ends = before.chars().next_back().is_none_or(|c| !inside(c));
    let mut next = behind.chars();
    let begins = next.next().is_none_or(|c| !inside(c) || (c == '.' && next.next().is_none_or(|c| !inside(c))));
    ends && begins
}

fn unquoted(text: &str) -> &str {
    text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(text)
}

/// Bytes of hexadecimal digits.
///
/// # Errors
/// A sentence.
pub fn hex(text: &str) -> Result<Vec<u8>, String> {
    let digits: Option<Vec<u32>> = text.chars().map(|c| c.to_digit(16)).collect();
    match digits {
        Some(d) if d.len() % 2 == 0 => Ok(d.chunks(2).map(|p| (p[0] << 4 | p[1]) as u8).collect()),
        _ => Err("expected a key of an even number of hexadecimal digits".into()),
    }
}

fn upper_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02X}")).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_their_definitions() {
        // RFC 4231, test case 2.
        let p = Privacy::parse("hmac-sha256 Jefe").unwrap();
        assert_eq!(
            p.digest("what do ya want for nothing?"),
            "5BDCC146BF60754E6A042426089575C75A003F089D2739839DEC58B964EC3843"
        );
        // The SipHash paper's example: key 00..0f, message 00..0e.
        let p = Privacy::parse("siphash-hexkey 000102030405060708090a0b0c0d0e0f").unwrap();
        let message: String = (0u8..15).map(char::from).collect();
        assert_eq!(p.digest(&message), "A129CA6149BE45E5");
        assert_eq!(p.digest("Ann"), p.digest("aNN"));
    }

    #[test]
    fn local_parts_go_wherever_the_address_shows() {
        let p = Privacy::parse("redact").unwrap();
        assert_eq!(p.address("ann@b.test"), "...@b.test");
        let reply = "smtp;550 <Ann@B.test>: joann@b.test is not ann, <ann> unknown";
        assert_eq!(p.text(reply, "ann@b.test"), "smtp;550 <...@B.test>: jo...@b.test is not ann, <...> unknown");
        let bare = "550 secretA+tag (ID) unknown, fwd SECRETA+TAG@other.test, secreta+tagged is not";
        assert_eq!(
            p.text(bare, "secretA+tag@b.test"),
            "550 ... (ID) unknown, fwd ...@other.test, secreta+tagged is not"
        );
        assert_eq!(p.text("user \u{dc}nser is full.", "\u{fc}nser@b.test"), "user ... is full.");
        assert_eq!(p.text("550 no such user here", "user@b.test"), "550 no such user here");
        assert_eq!(p.text("news-ann=b.test@s.test", "ann@b.test"), "news-...=b.test@s.test");
        assert_eq!(Privacy::parse("redact \"x y\"").unwrap().address("a@b"), "x y@b");
    }

    proptest::proptest! {
        #[test]
        fn no_reply_is_too_odd(text in "[aAbn@=<>.Ⱥẞüß ]{0,40}", local in "[anbⱥßÜ]{1,6}", domain in "[aü.]{1,5}") {
            let p = Privacy::parse("redact").unwrap();
            let recipient = format!("{local}@{domain}");
            let shown = p.text(&format!("{text} <{recipient}> {text}"), &recipient);
            proptest::prop_assert!(!shown.contains(&recipient), "{}", shown);
            let _ = p.text(&text, &local);
        }
    }

    #[test]
    fn letters_whose_lower_case_is_longer_shift_nothing() {
        let p = Privacy::parse("redact").unwrap();
        assert_eq!(
            p.text("550 \u{23a}\u{23a} <ann1>\u{1e9e}\u{1e9e}", "ann1@b.test"),
            "550 \u{23a}\u{23a} <...>\u{1e9e}\u{1e9e}"
        );
        assert_eq!(p.text("550 <ann@M\u{dc}NCHEN.test>", "ann@m\u{fc}nchen.test"), "550 <...@M\u{dc}NCHEN.test>");
        assert_eq!(p.text("501 <john smith> is no address", "john smith"), "501 <...> is no address");
    }

    #[test]
    fn keys_are_judged_and_not_repeated() {
        for wrong in
            ["siphash", "siphash 12345678901234567", "siphash-hexkey abc", "hmac-sha256-hexkey zz", "md5 x", "retain x"]
        {
            assert!(Privacy::parse(wrong).is_err(), "{wrong}");
        }
        assert!(!format!("{:?}", Privacy::parse("siphash secret").unwrap()).contains("secret"));
    }
}

//! SMTP commands as text (RFC 5321 §4.1, RFC 3461 §4, RFC 1870, RFC 3030).

use ipc::message::{BodyType, Ret, notify};
use ipc::text;

/// A reply to the client: code, enhanced status, text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal(pub u16, pub &'static str, pub String);

fn refuse<T>(code: u16, status: &'static str, text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal(code, status, text.into()))
}

/// Parameters of MAIL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mail {
    /// Reverse-path; empty for null.
    pub sender: String,
    /// SIZE=
    pub size: u64,
    /// BODY=
    pub body: BodyType,
    /// SMTPUTF8
    pub smtputf8: bool,
    /// RET=
    pub ret: Ret,
    /// ENVID=
    pub envid: String,
    /// VERP, as PowerMTA has it: the sender is another to each recipient.
    pub verp: bool,
}

/// Mail that a directive is about which is known and not in force: without it the mail would come in or go out otherwise
/// than its author meant.
pub fn withheld(directive: &str) -> Refusal {
    let text =
        format!("{directive} is not in force here yet: mail that it is for is refused as long as the line stands");
    Refusal(451, "4.3.5", text)
}

/// Parameters of RCPT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rcpt {
    /// Forward-path.
    pub address: String,
    /// NOTIFY= as [`notify`] bits.
    pub notify: u8,
    /// ORCPT=
    pub orcpt: String,
}

/// Longest address, in octets. RFC 5321 §4.5.3.1 wants what it names (a local part of 64) taken by everybody and nothing
/// refused for its length: return paths that name a recipient (VERP, SRS, BATV) are longer.
pub const ADDRESS_MAX: usize = ipc::limits::ADDRESS_BYTES_MAX;

/// Parameters of one command: of those that there are, each may be given once.
const PARAMETERS_MAX: usize = 16;

/// Splits `<path> parameters`.
fn path(arg: &str) -> Result<(&str, &str), Refusal> {
    let Some(rest) = arg.trim_start().strip_prefix('<') else {
        return refuse(501, "5.5.4", "Expected an address in angle brackets");
    };
    let mut quoted = false;
    let mut escaped = false;
    for (i, c) in rest.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '>' if !quoted => {
                let after = &rest[i + 1..];
                if !after.is_empty() && !after.starts_with(' ') {
                    return refuse(501, "5.5.4", "Expected a blank behind the address");
                }
                return Ok((&rest[..i], after.trim()));
            }
            _ => {}
        }
    }
    refuse(501, "5.5.4", "Expected '>' behind the address")
}

/// Checks what must be so of a mailbox for it to be relayed, and strips an obsolete source route and the domain's final dot,
/// which is none of SMTP's. Whether a local part exists is the receiver's to say, with its dots wherever they are.
fn mailbox(path: &str, utf8: bool) -> Result<String, Refusal> {
    let path = match path.strip_prefix('@').and_then(|p| p.split_once(':')) {
        Some((_, mailbox)) => mailbox,
        None => path,
    };
    let bad = |why: &str| refuse(501, "5.1.3", format!("Address <{path}> {why}"));
    if path.len() > ADDRESS_MAX {
        return refuse(501, "5.1.3", format!("Address is longer than {ADDRESS_MAX} octets"));
    }
    if !utf8 && !path.is_ascii() {
        return refuse(553, "5.6.7", "Address is not ASCII and SMTPUTF8 was not given in MAIL");
    }
    if !text::is_fit(path) {
        return bad("has characters that cannot be shown");
    }
    let Some((local, domain)) = path.rsplit_once('@') else { return bad("has no domain") };
    let quoted = local.len() >= 2 && local.starts_with('"') && local.ends_with('"');
    let atom = |c: char| !" \"(),:;<>@[\\]".contains(c);
    let fine = quoted || (!local.is_empty() && local.chars().all(atom));
    if !fine {
        return bad("has a local part that is empty, or has what only a quoted string may have");
    }
    if ipc::message::normalise_domain(domain).is_err() {
        return bad("has no valid domain");
    }
    Ok(path.strip_suffix('.').unwrap_or(path).to_owned())
}

/// xtext of RFC 3461 §4, bounded.
fn xtext(v: &str, max: usize) -> bool {
    !v.is_empty() && v.len() <= max && v.bytes().all(|b| (33..=126).contains(&b) && b != b'=')
}

/// A number as RFC 1870 and RFC 3030 write it: one to twenty digits and nothing else.
pub fn digits(word: &str) -> Option<u64> {
    Some(word).filter(|w| w.len() <= 20 && w.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()
}

/// What an argument of MAIL or RCPT has behind `FROM:` or `TO:`, which may stand there in any case.
pub fn keyword<'a>(arg: &'a str, word: &str) -> Option<&'a str> {
    let arg = arg.trim_start();
    arg.get(..word.len()).filter(|w| w.eq_ignore_ascii_case(word)).map(|_| &arg[word.len()..])
}

/// What follows `MAIL FROM:`.
///
/// # Errors
/// The reply that names what is wrong.
pub fn mail(arg: &str, allow_utf8: bool) -> Result<Mail, Refusal> {
    let (path, params) = path(arg)?;
    let mut m = Mail {
        sender: String::new(),
        size: 0,
        body: BodyType::SevenBit,
        smtputf8: false,
        ret: Ret::Unset,
        envid: String::new(),
        verp: false,
    };
    for (name, value) in parameters(params)? {
        match (name.as_str(), value.to_ascii_uppercase().as_str()) {
            ("SIZE", v) => match digits(v) {
                Some(size) => m.size = size,
                None => return malformed(&name, value),
            },
            ("BODY", "7BIT") => m.body = BodyType::SevenBit,
            ("BODY", "8BITMIME") => m.body = BodyType::EightBit,
            ("SMTPUTF8", "") if allow_utf8 => m.smtputf8 = true,
            ("RET", "FULL") => m.ret = Ret::Full,
            ("RET", "HDRS") => m.ret = Ret::Headers,
            ("ENVID", _) if xtext(value, 100) => m.envid = value.to_owned(),
            ("AUTH", _) => {}
            ("VERP", "") => m.verp = true,
            ("BODY" | "RET" | "ENVID" | "VERP", _) => return malformed(&name, value),
            _ => return unsupported(&name),
        }
    }
    if !path.is_empty() {
        m.sender = mailbox(path, m.smtputf8)?;
    }
    Ok(m)
}

/// What follows `RCPT TO:`.
///
/// # Errors
/// The reply that names what is wrong.
pub fn rcpt(arg: &str, utf8: bool) -> Result<Rcpt, Refusal> {
    let (path, params) = path(arg)?;
    let mut r = Rcpt { address: mailbox(path, utf8)?, notify: 0, orcpt: String::new() };
    for (name, value) in parameters(params)? {
        match name.as_str() {
            "NOTIFY" => r.notify = notify_bits(value)?,
            "ORCPT" if xtext_orcpt(value) => r.orcpt = value.to_owned(),
            "ORCPT" => return malformed(&name, value),
            _ => return unsupported(&name),
        }
    }
    Ok(r)
}

/// `NAME[=VALUE]` in upper case names, none of which may be given twice (RFC 3461 §4).
fn parameters(given: &str) -> Result<Vec<(String, &str)>, Refusal> {
    let mut all: Vec<(String, &str)> = Vec::new();
    for p in given.split_ascii_whitespace() {
        if all.len() == PARAMETERS_MAX {
            return refuse(501, "5.5.4", format!("More than {PARAMETERS_MAX} parameters"));
        }
        let (name, value) = p.split_once('=').unwrap_or((p, ""));
        let name = name.to_ascii_uppercase();
        if all.iter().any(|(n, _)| *n == name) {
            return refuse(501, "5.5.4", format!("Parameter {name} is given twice"));
        }
        all.push((name, value));
    }
    Ok(all)
}

fn malformed<T>(name: &str, value: &str) -> Result<T, Refusal> {
    refuse(501, "5.5.4", format!("{name}={value} is not valid"))
}

fn unsupported<T>(name: &str) -> Result<T, Refusal> {
    refuse(555, "5.5.4", format!("Parameter {name} is not supported"))
}

fn xtext_orcpt(v: &str) -> bool {
    let printable = |s: &str| text::is_fit(s) && !s.contains(' ');
    v.len() <= 500 && v.split_once(';').is_some_and(|(t, a)| xtext(t, 50) && !a.is_empty() && printable(a))
}

fn notify_bits(v: &str) -> Result<u8, Refusal> {
    let mut bits = 0;
    for word in v.split(',') {
        bits |= match word.to_ascii_uppercase().as_str() {
            "NEVER" => notify::NEVER,
            "SUCCESS" => notify::SUCCESS,
            "FAILURE" => notify::FAILURE,
            "DELAY" => notify::DELAY,
            _ => return refuse(501, "5.5.4", format!("NOTIFY={v} is not valid")),
        };
    }
    if bits & notify::NEVER != 0 && bits != notify::NEVER {
        return refuse(501, "5.5.4", "NOTIFY=NEVER must stand alone");
    }
    Ok(bits)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_as_they_come() {
        assert_eq!(mail("<>", true).unwrap().sender, "");
        assert_eq!(mail("<@a,@b:u@d.test> SIZE=5", true).unwrap().sender, "u@d.test");
        assert_eq!(rcpt("<\"a>b c\"@d.test> NOTIFY=FAILURE,DELAY", false).unwrap().notify, 12);
        assert_eq!(rcpt("<u@[127.0.0.1]>", false).unwrap().address, "u@[127.0.0.1]");
        assert_eq!(rcpt("<\u{fc}@d.test>", false).unwrap_err().0, 553);
        for bad in ["u@d.test", "<u>", "<u@>", "<@d.test>", "<u@d.test", "<u@d..test>", "<u v@d.test>", "<u@d.test>x"] {
            assert!(rcpt(bad, true).is_err(), "{bad}");
        }
        for bad in ["NOTIFY=NEVER,DELAY", "NOTIFY=DELAY NOTIFY=DELAY", "ORCPT=x"] {
            assert_eq!(rcpt(&format!("<u@d.test> {bad}"), true).unwrap_err().0, 501, "{bad}");
        }
        for bad in ["RET=X", "SIZE=a", "ENVID=a RET=FULL envid=b", "BODY=9BIT"] {
            assert_eq!(mail(&format!("<u@d.test> {bad}"), true).unwrap_err().0, 501, "{bad}");
        }
        assert_eq!(mail("<u@d.test> FOO=1", true).unwrap_err().0, 555);
    }

    #[test]
    fn addresses_are_relayed_as_they_came() {
        let verp = format!("<{}@news.test>", "v".repeat(200));
        for path in [
            "<.u@d.test>",
            "<a..b@d.test>",
            "<ab.@d.test>",
            "<.@d.test>",
            "<-a_b-@my_shop.test>",
            "<u@-mx.xn--a>",
            &verp,
        ] {
            assert_eq!(format!("<{}>", rcpt(path, false).unwrap().address), path);
            assert_eq!(format!("<{}>", mail(path, false).unwrap().sender), path);
        }
        assert_eq!(rcpt("<u.@D.test.>", false).unwrap().address, "u.@D.test");
        assert_eq!(mail("<u@d.test.>", false).unwrap().sender, "u@d.test");
        assert!(rcpt("<u@d.test..>", false).is_err() && rcpt("<u.>", false).is_err());
        assert!(rcpt(&format!("<{}@d.test>", "v".repeat(ADDRESS_MAX)), false).is_err());
        for unfit in ["a\u{202e}b@d.test", "\"a\u{9b}b\"@d.test", "a\u{2028}b@d.test", "a@d\u{200e}\u{fc}.test"] {
            assert!(rcpt(&format!("<{unfit}>"), true).is_err() && mail(&format!("<{unfit}>"), true).is_err());
        }
        let many: String = (0..2000).map(|n| format!(" {n}")).collect();
        assert_eq!(mail(&format!("<>{many}"), true).unwrap_err().0, 501);
    }

    proptest! {
        #[test]
        fn any_text_is_a_command_or_a_refusal(s in "\\PC{0,80}") {
            let _ = (mail(&s, true), rcpt(&s, true));
        }
    }
}

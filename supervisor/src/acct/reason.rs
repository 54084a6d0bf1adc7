//! Makes replies alike that differ only in whom and which message they are about, so that they can be counted.

/// What a reply may name.
#[derive(Debug, Clone, Copy)]
pub struct About<'a> {
    /// Address of the recipient.
    pub rcpt: &'a str,
    /// Address of the sender.
    pub orig: &'a str,
    /// Our address.
    pub source_ip: &'a str,
    /// The receiver's host.
    pub host: &'a str,
}

/// Hexadecimal digits from which on a run of them is taken for a dump.
const HEX_MIN: usize = 8;
/// Letters and digits from which on a mixture of them is taken for an identifier.
const ID_MIN: usize = 10;

/// `5.1.1 (bad destination mailbox address); 550 5.1.1 <RCPT_USER>@<example.com> unknown`
pub fn of(status: &str, diagnostic: &str, about: About) -> String {
    let reply = diagnostic.strip_prefix("smtp;").unwrap_or(diagnostic);
    let mut out = String::with_capacity(status.len() + reply.len() + 16);
    out.push_str(status);
    if reply.is_empty() {
        return out;
    }
    if !status.is_empty() {
        out.push_str("; ");
    }
    // Addresses of version 6 hold colons, which separate words elsewhere.
    let replaced;
    let mut rest = reply;
    if about.source_ip.contains(':') && reply.contains(about.source_ip) {
        replaced = reply.replace(about.source_ip, "<SENDER_IPADDRESS>");
        rest = &replaced;
    }
    while let Some(from) = rest.find(is_of_word) {
        out.extend(rest[..from].chars().map(|c| if c.is_control() { ' ' } else { c }));
        rest = &rest[from..];
        let len = rest.find(|c| !is_of_word(c)).unwrap_or(rest.len());
        let word = rest[..len].trim_end_matches('.');
        let dots = &rest[word.len()..len];
        put_word(word, about, &mut out);
        out.push_str(dots);
        rest = &rest[len..];
    }
    out.extend(rest.chars().map(|c| if c.is_control() { ' ' } else { c }));
    out
}

fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '+' | '@' | '=' | '%')
}

fn put_word(word: &str, about: About, out: &mut String) {
    let is = |what: &str| !what.is_empty() && word.eq_ignore_ascii_case(what);
    if is(about.source_ip) {
        return out.push_str("<SENDER_IPADDRESS>");
    }
    if is(about.host) {
        return out.push_str("<RCPT_SERVER>");
    }
    if is(about.orig) {
        return out.push_str("<ORIG>");
    }
    if let Some((user, domain)) = word.rsplit_once('@').filter(|(u, d)| !u.is_empty() && !d.is_empty()) {
        let (rcpt_user, rcpt_domain) = about.rcpt.rsplit_once('@').unwrap_or((about.rcpt, ""));
        let is_rcpt = user.eq_ignore_ascii_case(rcpt_user) && domain.eq_ignore_ascii_case(rcpt_domain);
        out.push_str(if is_rcpt { "<RCPT_USER>@<" } else { "<OTHER_USER>@<" });
        out.extend(domain.chars().map(|c| c.to_ascii_lowercase()));
        return out.push('>');
    }
    let mut from = 0;
    for (at, mark) in word.char_indices().filter(|(_, c)| !c.is_alphanumeric()).chain([(word.len(), '\0')]) {
        put_run(&word[from..at], out);
        if mark != '\0' {
            out.push(mark);
        }
        from = at + mark.len_utf8();
    }
}

/// Letters and digits.
fn put_run(run: &str, out: &mut String) {
    let digits = run.bytes().filter(u8::is_ascii_digit).count();
    if run.len() >= HEX_MIN && digits > 0 && run.bytes().all(|b| b.is_ascii_hexdigit()) {
        out.push_str("<HEXDUMP>");
    } else if run.len() >= ID_MIN && digits >= 2 && digits < run.len() && run.is_ascii() {
        out.push_str("<ID>");
    } else {
        out.push_str(run);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ABOUT: About =
        About { rcpt: "Ann@x.test", orig: "b-1=x.test@s.test", source_ip: "192.0.2.7", host: "mx1.x.test" };

    #[test]
    fn what_differs_from_message_to_message_is_alike() {
        for (reply, alike) in [
            ("smtp;550 5.1.1 <ann@X.test>: unknown.", "550 5.1.1 <<RCPT_USER>@<x.test>>: unknown."),
            ("smtp;550 ask postmaster@x.test.", "550 ask <OTHER_USER>@<x.test>."),
            ("smtp;554 [192.0.2.7] is listed by mx1.x.test", "554 [<SENDER_IPADDRESS>] is listed by <RCPT_SERVER>"),
            ("smtp;550 sender b-1=x.test@s.test refused", "550 sender <ORIG> refused"),
            ("smtp;571 spam : 1585:8f2a91c04d|5439", "571 spam : 1585:<HEXDUMP>|5439"),
            (
                "smtp;421-4.7.28 later 41be03b00d2f7-7c1a2si1234567abc.12 - gsmtp",
                "421-4.7.28 later <HEXDUMP>-<ID>.12 - gsmtp",
            ),
            ("smtp;550 mailbox unavailable 5.2.1", "550 mailbox unavailable 5.2.1"),
            ("", ""),
        ] {
            assert_eq!(of("", reply, ABOUT), alike);
        }
        assert_eq!(of("5.0.0 (x)", "smtp;550 no", ABOUT), "5.0.0 (x); 550 no");
        let six = About { source_ip: "2001:db8::1", ..ABOUT };
        assert_eq!(of("", "smtp;550 [2001:db8::1] no", six), "550 [<SENDER_IPADDRESS>] no");
    }

    proptest! {
        #[test]
        fn any_reply_has_a_reason_without_control_characters(reply in ".{0,60}", rcpt in ".{0,10}") {
            let reason = of("", &reply, About { rcpt: &rcpt, ..ABOUT });
            prop_assert!(!reason.chars().any(char::is_control));
        }
    }
}

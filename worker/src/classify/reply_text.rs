//! A reply as rules look at it: one line in lower case, code first, without what only repeats
//! itself and without addresses, whose parts must not decide anything.

/// Bytes of a reply that are looked at.
const LOOKED_AT: usize = 2000;

/// Prepares a reply, or a diagnostic that holds one.
pub fn prepared(reply: &str) -> String {
    let reply = of_diagnostic(reply);
    let mut end = reply.len().min(LOOKED_AT);
    while !reply.is_char_boundary(end) {
        end -= 1;
    }
    let mut out = String::with_capacity(end + 1);
    let mut words = reply[..end].split_whitespace();
    let Some(first) = words.next() else { return out };
    let (mut code, mut rest) = leading_code(first);
    if code.is_empty()
        && let Some(s) = as_status(first)
    {
        // Some logs leave the code out.
        (code, rest) = (if s.starts_with('4') { "451" } else { "554" }, first);
    }
    let mut enhanced = "";
    if !code.is_empty() {
        out.push_str(code);
    }
    for word in std::iter::once(rest).filter(|w| !w.is_empty()).chain(words) {
        // `550-5.7.1 text 550 5.7.1 more`: what each line of a reply begins with.
        let (again, behind) = leading_code(word);
        let word = if !again.is_empty() && again == code && !enhanced.is_empty() { behind } else { word };
        let status = as_status(word);
        match status {
            Some(s) if enhanced.is_empty() => enhanced = s,
            Some(s) if s == enhanced => continue,
            _ => {}
        }
        if word.is_empty() {
            continue;
        }
        if !out.is_empty() {
            out.push(' ');
        }
        let word = status.filter(|_| out.len() <= 4).unwrap_or(word);
        push_word(&mut out, word);
    }
    status_first(&mut out, code, enhanced);
    out.push(' ');
    out
}

/// The reply in `smtp;550 …`, `host x said: 550 …` and the like.
fn of_diagnostic(text: &str) -> &str {
    let text = text.trim();
    let text = text.strip_prefix("smtp;").or_else(|| text.strip_prefix("x-postfix;")).unwrap_or(text).trim_start();
    if !leading_code(text).0.is_empty() {
        return text;
    }
    ["said: ", "responded: ", "reply: ", "response: ", "error from remote mail server after "]
        .iter()
        .find_map(|m| text.find(m).map(|at| text[at + m.len()..].trim_start()))
        .unwrap_or(text)
}

/// A reply code at the beginning, and what stands behind it and its separator.
fn leading_code(word: &str) -> (&str, &str) {
    let b = word.as_bytes();
    let is_code = b.len() >= 3 && (b'2'..=b'5').contains(&b[0]) && b[1].is_ascii_digit() && b[2].is_ascii_digit();
    match b.get(3) {
        None if is_code => (word, ""),
        Some(b' ' | b'-' | b'_' | b':') if is_code => (&word[..3], &word[4..]),
        _ => ("", word),
    }
}

/// An enhanced status code (RFC 3463) in a word: `5.1.1`, `#5.1.1`, `(#5.1.1)`, `[5.1.1]:`.
fn as_status(word: &str) -> Option<&str> {
    let s = word.trim_matches(|c: char| !c.is_ascii_digit());
    let mut parts = s.split('.');
    let (class, subject, detail) = (parts.next()?, parts.next()?, parts.next()?);
    let short = |p: &str| (1..=3).contains(&p.len()) && p.bytes().all(|b| b.is_ascii_digit());
    let is_status = matches!(class, "2" | "4" | "5") && short(subject) && short(detail) && parts.next().is_none();
    is_status.then_some(s)
}

/// Puts a status that stands further back (qmail's) behind the code.
fn status_first(out: &mut String, code: &str, enhanced: &str) {
    if code.is_empty() || enhanced.is_empty() || out[code.len()..].trim_start().starts_with(enhanced) {
        return;
    }
    out.insert_str(code.len(), &format!(" {enhanced}"));
}

fn push_word(out: &mut String, word: &str) {
    if word.contains('@') && !word.contains("://") {
        out.push_str("addr");
        // What stands behind the address may be the point.
        let domain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | '@');
        let behind = match (word.rsplit_once('>'), word.rsplit_once('@')) {
            (Some((_, behind)), _) => behind,
            (None, Some((_, behind))) => behind.trim_start_matches(domain),
            (None, None) => "",
        };
        push_lower(out, behind);
        return;
    }
    let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric() && c != ':');
    if bare.len() >= 7 && bare.parse::<std::net::IpAddr>().is_ok() {
        let at = word.find(bare).unwrap_or(0);
        push_lower(out, &word[..at]);
        out.push_str("ip");
        push_lower(out, &word[at + bare.len()..]);
        return;
    }
    push_lower(out, word);
}

fn push_lower(out: &mut String, word: &str) {
    out.extend(word.chars().flat_map(char::to_lowercase));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn replies_are_one_line_with_code_and_status_first() {
        for (reply, expected) in [
            ("550 5.1.1 <full@spam.example>: User Unknown", "550 5.1.1 addr: user unknown "),
            ("550-5.7.1 [192.0.2.1] one 550-5.7.1 two 550 5.7.1 three", "550 5.7.1 [ip] one two three "),
            ("550-5.1.1", "550 5.1.1 "),
            (
                "550 sorry, no mailbox here by that name (#5.1.1)",
                "550 5.1.1 sorry, no mailbox here by that name (#5.1.1) ",
            ),
            ("smtp;550 #5.1.0 Address rejected", "550 5.1.0 address rejected "),
            ("host mx.x.test[192.0.2.1] said: 421 4.7.0 Wait", "421 4.7.0 wait "),
            (
                "550 Requested action not taken 550 Reject due to policy",
                "550 requested action not taken 550 reject due to policy ",
            ),
            ("554: too much", "554 too much "),
            ("5.1.1 <a@b.test> Address Error", "554 5.1.1 addr address error "),
            ("4.3.2 Come back later", "451 4.3.2 come back later "),
            ("550 failed (a@b.test:blocked)", "550 failed addr:blocked) "),
            ("", ""),
            ("EDISCON in connection", "ediscon in connection "),
        ] {
            assert_eq!(prepared(reply), expected, "{reply}");
        }
    }

    proptest! {
        #[test]
        fn any_text_can_be_prepared(t in "\\PC{0,80}", code in "[245][0-9]{2}[ -]?[45]?(\\.[0-9]){0,2}") {
            let reply = code + &t;
            prop_assert!(prepared(&reply).len() < 10 * reply.len() + 10);
        }
    }
}

//! `<rewrite-list>`: another envelope sender, and another domain in From.

use std::borrow::Cow;
use std::ops::Range;

use ipc::layers::pattern_matches;
use ipc::message::{ArchivedEnvelope, ArchivedSourceType, normalise_domain, verp};
use ipc::snapshot::ArchivedRewriteList;

use super::headers::Field;

/// Bytes that an encoded word is looked for in: RFC 2047 allows 75.
const ENCODED_WORD_MAX: usize = 500;

/// A rewrite list in force.
#[derive(Debug, Default)]
pub struct RewriteList {
    /// Its name, in lower case.
    pub name: String,
    /// `mail-from`: what senders are like, in lower case, and what they become. Halves are `*` for any; both are empty for the null sender.
    senders: Vec<([String; 2], [String; 2])>,
    /// `from-domain`: a pattern, and the domain that takes the place of those that match it.
    from_domains: Vec<(String, String)>,
}

impl RewriteList {
    /// The list of a snapshot.
    pub fn of(list: &ArchivedRewriteList) -> RewriteList {
        let pair = |p: &rkyv::tuple::ArchivedTuple2<rkyv::string::ArchivedString, rkyv::string::ArchivedString>| {
            (p.0.as_str().to_owned(), p.1.as_str().to_owned())
        };
        let as_is = |address: &str| {
            let (local, domain) = halves(address);
            [local.to_owned(), domain.to_owned()]
        };
        let normal = |address: &str| {
            let (local, domain) = halves(address);
            [local.to_lowercase(), normalise_domain(domain).unwrap_or_else(|_| domain.to_lowercase())]
        };
        RewriteList {
            name: list.name.as_str().to_owned(),
            senders: list.senders.iter().map(pair).map(|(from, to)| (normal(&from), as_is(&to))).collect(),
            from_domains: list.from_domains.iter().map(pair).collect(),
        }
    }

    /// What the first line that fits makes of a sender; `None` where none does.
    pub fn sender(&self, sender: &str) -> Option<String> {
        let (local, domain) = halves(sender);
        let ascii = normalise_domain(domain).unwrap_or_else(|_| domain.to_lowercase());
        let lower = local.to_lowercase();
        let fits = |[l, d]: &[String; 2]| match l.is_empty() && d.is_empty() {
            true => sender.is_empty(),
            false => !sender.is_empty() && (l == "*" || *l == lower) && (d == "*" || *d == ascii),
        };
        let (_, [l, d]) = self.senders.iter().find(|(from, _)| fits(from))?;
        let half = |target: &str, own: &str| if target == "*" { own.to_owned() } else { target.to_owned() };
        Some(match l.is_empty() && d.is_empty() {
            true => String::new(),
            false => format!("{}@{}", half(l, local), half(d, domain)),
        })
    }

    /// The sender of a message to a recipient.
    pub fn sender_to<'e>(list: Option<&RewriteList>, e: &'e ArchivedEnvelope, recipient: &str) -> Cow<'e, str> {
        // A report stays one of nobody's, or reports of reports would come back (RFC 3464 section 2).
        let list = list.filter(|_| e.source_type != ArchivedSourceType::Report);
        match list.and_then(|l| l.sender(&e.sender)) {
            Some(sender) if e.is_verp() && !sender.is_empty() => Cow::Owned(verp(&sender, recipient)),
            Some(sender) => Cow::Owned(sender),
            None => e.sender_to(recipient),
        }
    }

    /// It may change a header.
    pub fn changes_header(&self) -> bool {
        !self.from_domains.is_empty()
    }

    /// Fields that become others: their places among `fields`, and what they become.
    pub fn changed<'f>(&self, fields: &'f [Field<'f>]) -> impl Iterator<Item = (&'f Field<'f>, Vec<u8>)> {
        fields
            .iter()
            .filter(|f| self.changes_header() && f.name.eq_ignore_ascii_case("From"))
            .filter_map(|f| Some((f, self.with_domains(f.value)?)))
    }

    /// The value of a From field with other domains; `None` where they stay.
    fn with_domains(&self, value: &[u8]) -> Option<Vec<u8>> {
        let (mut out, mut copied) = (Vec::new(), 0);
        for place in domains(value) {
            let Ok(domain) = String::from_utf8(plain(&value[place.clone()])) else { continue };
            let Ok(domain) = normalise_domain(&domain) else { continue };
            if let Some((_, to)) = self.from_domains.iter().find(|(pattern, _)| pattern_matches(pattern, &domain)) {
                out.extend_from_slice(&value[copied..place.start]);
                out.extend_from_slice(to.as_bytes());
                copied = place.end;
            }
        }
        out.extend_from_slice(&value[copied..]);
        (copied > 0).then_some(out)
    }
}

/// The halves of an address; both are empty for the null sender.
fn halves(address: &str) -> (&str, &str) {
    if address == "<>" { ("", "") } else { address.rsplit_once('@').unwrap_or((address, "")) }
}

/// Where domains stand in the value of a field of addresses (RFC 5322 section 3.4): behind each `@` outside of quotes, comments and encoded words.
/// Blanks and comments may stand within them. A quote or comment that does not end is text like any other.
fn domains(value: &[u8]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let (mut quotes_end, mut comments_end) = (true, true);
    let mut at = 0;
    while let Some(b) = value.get(at) {
        at = match b {
            b'"' if quotes_end => behind_quotes(value, at).unwrap_or_else(|| {
                quotes_end = false;
                at + 1
            }),
            b'(' if comments_end => behind_comment(value, at).unwrap_or_else(|| {
                comments_end = false;
                at + 1
            }),
            b'=' => behind_encoded_word(value, at).unwrap_or(at + 1),
            b'@' => match domain(value, at + 1, comments_end) {
                Some(place) => {
                    let end = place.end;
                    found.push(place);
                    end
                }
                None => at + 1,
            },
            _ => at + 1,
        };
    }
    found
}

/// The domain that begins at `at`, or behind blanks and comments there: words with dots between them.
fn domain(value: &[u8], at: usize, comments_end: bool) -> Option<Range<usize>> {
    let start = behind_blanks(value, at, comments_end);
    let mut end = start;
    loop {
        let ends = |b: &u8| b" \t\r\n,;:<>()\"@[]\\".contains(b);
        let word = value[end..].iter().take_while(|b| !ends(b)).count();
        if word == 0 {
            break;
        }
        end += word;
        let next = behind_blanks(value, end, comments_end);
        // The dot may stand at the end of a word, or before the next.
        let goes_on = next > end && (value[end - 1] == b'.' || value.get(next) == Some(&b'.'));
        if !goes_on {
            break;
        }
        end = next;
    }
    let blanks = value[start..end].iter().rev().take_while(|b| b" \t\r\n".contains(b)).count();
    (end - blanks > start).then(|| start..end - blanks)
}

/// The domain at a place, without the blanks and comments within it.
fn plain(value: &[u8]) -> Vec<u8> {
    let (mut out, mut at) = (Vec::new(), 0);
    while let Some(b) = value.get(at) {
        let next = behind_blanks(value, at, true);
        if next == at {
            out.push(*b);
            at += 1;
        } else {
            at = next;
        }
    }
    out
}

/// Behind blanks and comments that stand at `at`.
fn behind_blanks(value: &[u8], mut at: usize, comments_end: bool) -> usize {
    loop {
        match value.get(at) {
            Some(b' ' | b'\t' | b'\r' | b'\n') => at += 1,
            Some(b'(') if comments_end => match behind_comment(value, at) {
                Some(end) => at = end,
                None => return at,
            },
            _ => return at,
        }
    }
}

/// Behind a quoted string that begins at `at`; `None` where it does not end.
fn behind_quotes(value: &[u8], at: usize) -> Option<usize> {
    let mut at = at + 1;
    loop {
        match value.get(at)? {
            b'\\' => at += 2,
            b'"' => return Some(at + 1),
            _ => at += 1,
        }
    }
}

/// Behind a comment that begins at `at`, and those inside it; `None` where it does not end.
fn behind_comment(value: &[u8], at: usize) -> Option<usize> {
    let (mut at, mut depth) = (at, 0usize);
    loop {
        match value.get(at)? {
            b'\\' => at += 1,
            b'(' => depth += 1,
            b')' if depth == 1 => return Some(at + 1),
            b')' => depth -= 1,
            _ => {}
        }
        at += 1;
    }
}

/// Behind an encoded word (RFC 2047) that begins at `at`; `None` where none does.
fn behind_encoded_word(value: &[u8], at: usize) -> Option<usize> {
    let word = &value[at..value.len().min(at + ENCODED_WORD_MAX)];
    let word = &word[..word.iter().position(|b| b" \t\r\n".contains(b)).unwrap_or(word.len())];
    let rest = word.strip_prefix(b"=?")?;
    let mut marks = memchr::memchr_iter(b'?', rest);
    let (_charset, encoding) = (marks.next()?, marks.next()?);
    let end = memchr::memmem::find(&rest[encoding + 1..], b"?=")?;
    Some(at + 2 + encoding + 1 + end + 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(senders: &[(&str, &str)], from_domains: &[(&str, &str)]) -> RewriteList {
        let own = |h: (&str, &str)| [h.0.to_owned(), h.1.to_owned()];
        RewriteList {
            name: "l".into(),
            senders: senders.iter().map(|(a, b)| (own(halves(&a.to_lowercase())), own(halves(b)))).collect(),
            from_domains: from_domains.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect(),
        }
    }

    #[test]
    fn the_first_line_that_fits_makes_the_sender() {
        let l = list(
            &[
                ("boss@a.test", "*@b.test"),
                ("*@a.test", "bounce@*"),
                ("Info@*", "<>"),
                ("<>", "null@a.test"),
                ("*@c.test", "*@*"),
                ("*@*", "*@d.test"),
            ],
            &[],
        );
        for (sender, made) in [
            ("BOSS@A.test", "BOSS@b.test"),
            ("x@a.test", "bounce@a.test"),
            ("info@z.test", ""),
            ("", "null@a.test"),
            ("x@c.test.", "x@c.test."),
            ("\"a@b\"@z.test", "\"a@b\"@d.test"),
        ] {
            assert_eq!(l.sender(sender).as_deref(), Some(made), "{sender}");
        }
        let l = list(&[("*@*", "*@d.test")], &[]);
        assert_eq!((l.sender(""), l.sender("a@b")), (None, Some("a@d.test".into())));
    }

    #[test]
    fn domains_of_addresses_alone_become_others() {
        let l = list(&[], &[("[*.]old.test", "new.test"), ("xn--bcher-kva.test", "books.test")]);
        for (value, made) in [
            (" a@old.test", " a@new.test"),
            (" \"a@old.test\" <a@OLD.Test>", " \"a@old.test\" <a@new.test>"),
            (" A (me @old.test (or \\) x@old.test)) <a@sub.old.test>, b@old.test\r\n\t, c@other.test", ""),
            (" =?utf-8?Q?a@old.test?= <a@\r\n old.test>", " =?utf-8?Q?a@old.test?= <a@\r\n new.test>"),
            (" Group: a@old.test, b@old.test.;", " Group: a@new.test, b@new.test;"),
            (" a@b\u{fc}cher.test", " a@books.test"),
            (" Smile :( <a@old.test>", " Smile :( <a@new.test>"),
            (" 5\" disk <a@old.test> (x", " 5\" disk <a@new.test> (x"),
            (" \"a\" 5\" disk (a) (b <a@old.test>", " \"a\" 5\" disk (a) (b <a@new.test>"),
            (" a@(c)old.test, a@old .test (d), a@old. (e)\r\n test", " a@(c)new.test, a@new.test (d), a@new.test"),
            (" a@old. <b@old.test>", " a@old. <b@new.test>"),
            (" a@[127.0.0.1]", "-"),
            (" a@old.test.example", "-"),
            (" a@xold.test, =?broken @old", "-"),
            (" a@", "-"),
            (" \"open@old.test", " \"open@new.test"),
        ] {
            let made = match made {
                "" => " A (me @old.test (or \\) x@old.test)) <a@new.test>, b@new.test\r\n\t, c@other.test",
                m => m,
            };
            let got = l.with_domains(value.as_bytes()).map(|v| String::from_utf8_lossy(&v).into_owned());
            assert_eq!(got.as_deref().unwrap_or("-"), made, "{value}");
        }
    }

    #[test]
    fn long_values_are_read_in_one_pass() {
        let l = list(&[], &[("*", "n.test")]);
        for part in ["=?a?b ", "=?a?b?", "(", "\"", "a@", "(\"", "a@(x", "a@b. "] {
            let value = part.repeat((1 << 20) / part.len());
            // What takes time by the square of the length takes minutes.
            drop(l.with_domains(value.as_bytes()));
        }
    }

    proptest! {
        #[test]
        fn any_value_keeps_what_is_no_domain(value in "[a@.,;<>()\"\\\\=? o\r\n]{0,40}") {
            let l = list(&[], &[("*", "n.test")]);
            let made = l.with_domains(value.as_bytes()).unwrap_or_else(|| value.clone().into_bytes());
            let mut left = Vec::new();
            let mut at = 0;
            for d in domains(value.as_bytes()) {
                prop_assert!(d.start >= at && d.end <= value.len());
                left.push(&value[at..d.start]);
                at = d.end;
            }
            left.push(&value[at..]);
            let made = String::from_utf8_lossy(&made).into_owned();
            let mut rest = made.as_str();
            for part in left {
                let place = rest.find(part);
                prop_assert!(place.is_some());
                rest = &rest[place.unwrap_or_default() + part.len()..];
            }
        }
    }
}

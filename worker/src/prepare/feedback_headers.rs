//! Fields by which receivers and their users answer a sender, written by templates of its source: `one-click-unsubscribe` (RFC 8058),
//! `cfbl-address` (RFC 9477) and `feedback-id`.
//!
//! A template has `${NAME}` where a value of the message goes. Where a message has several recipients and a template names the
//! recipient, the field is written when it is delivered, to each recipient by itself.

use ipc::message::Envelope;
use ipc::rules::SourceRules;

use super::headers::{Field, unfolded};

/// Names that may stand in a template.
pub const NAMES: [&str; 7] = ["recipient", "sender", "job", "vmta", "envid", "message-id", "domain"];
/// Longest template, bytes.
pub const TEMPLATE_MAX: usize = 500;
/// Longest line of a header (RFC 5322 §2.1.1), CR LF excluded.
const LINE_MAX: usize = 998;
/// What stands for the recipient in a field that is written at delivery: within text, a URL and an address.
const RECIPIENT: &str = "${recipient}";
const RECIPIENT_IN_URL: &str = "${recipient:url}";
const RECIPIENT_IN_ADDRESS: &str = "${recipient:address}";

/// What a template is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A URL: values are percent-encoded (RFC 3986).
    Url,
    /// An address, and `arf` or `xarf` behind it: `@` of values is `=`, as with VERP.
    Cfbl,
    /// Text.
    Text,
}

/// Whether text is a template of a kind.
///
/// # Errors
/// A sentence saying what is wrong with it.
pub fn check(kind: Kind, text: &str) -> Result<(), String> {
    if text.len() > TEMPLATE_MAX {
        return Err(format!("expected at most {TEMPLATE_MAX} bytes, found {}", text.len()));
    }
    if let Some(c) = text.chars().find(|c| !c.is_ascii() || c.is_ascii_control()) {
        return Err(format!("expected printable ASCII characters, found {c:?}"));
    }
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let Some(end) = rest[at..].find('}') else { return Err("${ without a }".into()) };
        let name = &rest[at + 2..at + end];
        if !NAMES.contains(&name) {
            return Err(format!("expected one of {} within ${{…}}, found {name:?}", NAMES.join(", ")));
        }
        rest = &rest[at + end + 1..];
    }
    match kind {
        Kind::Url if !text.starts_with("https://") || text.contains([' ', '<', '>', ',']) => {
            Err("expected an https:// URL without blanks, commas and angle brackets (RFC 8058)".into())
        }
        Kind::Cfbl => {
            let mut words = text.split_ascii_whitespace();
            let (address, report, more) = (words.next().unwrap_or_default(), words.next(), words.next());
            let is_address = address.rsplit_once('@').is_some_and(|(l, d)| !l.is_empty() && !d.is_empty());
            match is_address && more.is_none() && report.is_none_or(|r| matches!(r, "arf" | "xarf")) {
                true => Ok(()),
                false => Err("expected ADDRESS [arf|xarf]".into()),
            }
        }
        _ => Ok(()),
    }
}

/// Fields for a message.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Fields {
    /// Those of all recipients, each line with CR LF.
    pub of_all: String,
    /// Those that are another to each recipient, to be finished by [`to_recipient`].
    pub of_each: Vec<String>,
}

/// The fields that a message lacks; `present` are those that it has, and `new_id` is the Message-ID that it is given, if it has none.
pub fn fields(rules: &SourceRules, e: &Envelope, present: &[Field<'_>], new_id: Option<&str>) -> Fields {
    let templates = [&rules.one_click_unsubscribe, &rules.cfbl_address, &rules.feedback_id];
    if templates.iter().all(|t| t.is_empty()) {
        return Fields::default();
    }
    let given = || present.iter().find(|f| f.name.eq_ignore_ascii_case("message-id"));
    let message_id = new_id.map(str::to_owned).or_else(|| given().map(|f| unfolded(f.value))).unwrap_or_default();
    let message_id = message_id.trim_matches(['<', '>']);
    let lacks = |name: &str| !present.iter().any(|f| f.name.eq_ignore_ascii_case(name));
    let mut lines = Vec::new();
    if !rules.one_click_unsubscribe.is_empty() && lacks("List-Unsubscribe") {
        lines.push(("List-Unsubscribe: <", Kind::Url, rules.one_click_unsubscribe.clone(), ">"));
        if lacks("List-Unsubscribe-Post") {
            lines.push(("List-Unsubscribe-Post: List-Unsubscribe=One-Click", Kind::Text, String::new(), ""));
        }
    }
    if !rules.cfbl_address.is_empty() && lacks("CFBL-Address") {
        let (address, report) = rules.cfbl_address.split_once(' ').unwrap_or((&rules.cfbl_address, ""));
        let report = if report.trim() == "xarf" { "; report=xarf" } else { "; report=arf" };
        lines.push(("CFBL-Address: ", Kind::Cfbl, address.to_owned(), report));
    }
    if !rules.feedback_id.is_empty() && lacks("Feedback-ID") {
        lines.push(("Feedback-ID: ", Kind::Text, rules.feedback_id.clone(), ""));
    }
    let mut made = Fields::default();
    for (before, kind, template, after) in lines {
        let line = format!("{before}{}{after}", expanded(&template, kind, e, message_id));
        match line.contains("${") {
            true => made.of_each.push(line),
            false if line.len() <= LINE_MAX => made.of_all += &format!("{line}\r\n"),
            // A receiver may cut it, and whoever follows it would get somewhere else.
            false => {
                tracing::debug!(message = %e.id, "a field of a template is longer than a line may be: it is left out")
            }
        }
    }
    made
}

/// A field of [`Fields::of_each`] for one recipient, with CR LF; empty where it is longer than a line may be.
pub fn to_recipient(line: &str, recipient: &str) -> String {
    let line = line.replace(RECIPIENT_IN_URL, &in_url(recipient));
    let line = line.replace(RECIPIENT_IN_ADDRESS, &in_address(recipient)).replace(RECIPIENT, &plain(recipient));
    if line.len() > LINE_MAX { String::new() } else { line + "\r\n" }
}

/// A template with the values of a message; of several recipients the place is kept.
fn expanded(template: &str, kind: Kind, e: &Envelope, message_id: &str) -> String {
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, behind)) = rest.split_once("${") {
        out += before;
        let (name, more) = behind.split_once('}').unwrap_or((behind, ""));
        rest = more;
        let value = match (name, &e.recipients[..]) {
            ("recipient", [only]) => &only.address,
            ("recipient", _) => {
                out += match kind {
                    Kind::Url => RECIPIENT_IN_URL,
                    Kind::Cfbl => RECIPIENT_IN_ADDRESS,
                    Kind::Text => RECIPIENT,
                };
                continue;
            }
            ("sender", _) => &e.sender,
            ("job", _) => &e.job_id,
            ("vmta", _) => &e.vmta,
            ("envid", _) => &e.envid,
            ("message-id", _) => message_id,
            ("domain", _) => e.sender.rsplit_once('@').map_or("", |(_, domain)| domain),
            _ => "",
        };
        out += &match kind {
            Kind::Url => in_url(value),
            Kind::Cfbl => in_address(value),
            Kind::Text => plain(value),
        };
    }
    out + rest
}

/// A value within a URL (RFC 3986 §2.3).
fn in_url(value: &str) -> String {
    let encoded = |b: u8| match b {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(b).to_string(),
        b => format!("%{b:02X}"),
    };
    value.bytes().map(encoded).collect()
}

/// A value within the local part of an address.
fn in_address(value: &str) -> String {
    plain(value).replace('@', "=")
}

/// A value within a field: what could be structure there, or stand for another value, is none.
fn plain(value: &str) -> String {
    let fits = |c: char| c.is_ascii_graphic() && !matches!(c, '$' | '<' | '>' | ';' | ',');
    value.chars().map(|c| if fits(c) { c } else { '_' }).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ipc::message::{BodyType, MessageId, Recipient, Ret, SourceType};

    use super::*;
    use crate::prepare::headers;

    fn envelope(recipients: &[&str]) -> Envelope {
        let recipient = |a: &&str| Recipient {
            address: (*a).to_owned(),
            destination: "d.test".into(),
            notify: 0,
            priority_given: 0,
            given_again: 0,
            orcpt: String::new(),
        };
        Envelope {
            id: MessageId([0; 16]),
            received_unix_ms: 0,
            sender: "news@s.test".into(),
            vmta: "pool-1".into(),
            job_id: "j${recipient}<>".into(),
            envid: String::new(),
            ret: Ret::Unset,
            body_type: BodyType::SevenBit,
            smtputf8: false,
            suppress_dsn: false,
            source_type: SourceType::Smtp,
            kept: 0,
            source_name: String::new(),
            source_ip: String::new(),
            local_ip: String::new(),
            handoff: None,
            asked: None,
            moved: None,
            recipients: recipients.iter().map(recipient).collect(),
        }
    }

    fn rules() -> SourceRules {
        SourceRules {
            one_click_unsubscribe: "https://u.test/?r=${recipient}&m=${message-id}".into(),
            cfbl_address: "fbl-${job}-${sender}@s.test xarf".into(),
            feedback_id: "${job}:${vmta}:${domain}:x".into(),
            ..SourceRules::default()
        }
    }

    #[test]
    fn templates_of_one_recipient_are_written_at_once() {
        let made = fields(&rules(), &envelope(&["a+b@d.test"]), &[], Some("1@s.test"));
        let expected = "List-Unsubscribe: <https://u.test/?r=a%2Bb%40d.test&m=1%40s.test>\r\n\
                        List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n\
                        CFBL-Address: fbl-j_{recipient}__-news=s.test@s.test; report=xarf\r\n\
                        Feedback-ID: j_{recipient}__:pool-1:s.test:x\r\n";
        assert_eq!((made.of_all.as_str(), made.of_each.len()), (expected, 0));
        let (has, _) = headers::parse(b"list-unsubscribe: <mailto:x@s.test>\r\nFEEDBACK-ID: y\r\n\r\n");
        let made = fields(&rules(), &envelope(&["a@d.test"]), &has, None);
        assert!(made.of_all.starts_with("CFBL-Address: ") && made.of_all.matches("\r\n").count() == 1, "{made:?}");
    }

    #[test]
    fn of_several_recipients_each_has_its_own() {
        let made = fields(&rules(), &envelope(&["a@d.test", "b@d.test"]), &[], Some("1@s.test"));
        assert!(made.of_each.len() == 1 && made.of_all.starts_with("List-Unsubscribe-Post: "), "{made:?}");
        assert_eq!(
            to_recipient(&made.of_each[0], "b ü@d.test"),
            "List-Unsubscribe: <https://u.test/?r=b%20%C3%BC%40d.test&m=1%40s.test>\r\n"
        );
        let address = SourceRules { cfbl_address: "fbl+${recipient}@s.test".into(), ..SourceRules::default() };
        let made_for_each = fields(&address, &envelope(&["a@d.test", "b@d.test"]), &[], None);
        let expected = "CFBL-Address: fbl+b=d.test@s.test; report=arf\r\n";
        assert_eq!(to_recipient(&made_for_each.of_each[0], "b@d.test"), expected);
        assert_eq!(to_recipient(&made.of_each[0], &"x".repeat(LINE_MAX)), "");
    }

    #[test]
    fn what_is_no_template_is_said() {
        for (kind, text, expected) in [
            (Kind::Url, "http://u.test/", "https"),
            (Kind::Url, "https://u.test/ x", "blanks"),
            (Kind::Text, "${", "without a }"),
            (Kind::Text, "${subject}", "expected one of recipient, "),
            (Kind::Text, "a\tb", "printable"),
            (Kind::Text, &"x".repeat(TEMPLATE_MAX + 1), "at most 500"),
            (Kind::Cfbl, "nobody", "ADDRESS"),
            (Kind::Cfbl, "a@b.test other", "ADDRESS"),
        ] {
            assert!(check(kind, text).unwrap_err().contains(expected), "{text}");
        }
        for (kind, text) in
            [(Kind::Url, "https://u.test/${recipient}"), (Kind::Cfbl, "f@b.test arf"), (Kind::Text, "x:$y")]
        {
            assert_eq!(check(kind, text), Ok(()));
        }
    }
}

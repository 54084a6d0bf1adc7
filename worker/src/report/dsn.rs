//! Delivery status notifications (RFC 3464 in the form of RFC 6522), queued like any mail.

use std::rc::Rc;

use bytes::Bytes;
use ipc::message::{ArchivedEnvelope, ArchivedRet, Envelope, notify};

use crate::classify::outcome::{Outcome, Verdict};
use crate::clock;
use crate::prepare::headers;
use crate::report::recorded::Report;
use crate::shard::Shard;

/// Bytes of the original that a report returns at most.
const RETURNED_MAX: usize = 50_000;

/// Recipients that one report tells of at most; of more there are several.
pub const RECIPIENTS_MAX: usize = 500;

/// What a report says of one recipient.
#[derive(Debug, Clone)]
pub struct Part {
    /// Index in the envelope.
    pub recipient: u16,
    /// What happened.
    pub verdict: Verdict,
    /// `failed`, `delayed`, `relayed`
    pub action: &'static str,
    /// Remote host; empty for none.
    pub remote: String,
}

/// Whether the sender wants to hear of this outcome.
pub fn wanted(e: &ArchivedEnvelope, recipient: u16, outcome: &Outcome) -> bool {
    if e.sender.is_empty() || e.suppress_dsn {
        return false;
    }
    let Some(r) = e.recipients.get(usize::from(recipient)) else { return false };
    match outcome {
        Outcome::Bounced => r.notify & notify::GIVEN == 0 || r.notify & notify::FAILURE != 0,
        Outcome::Deferred => r.notify & notify::DELAY != 0,
        Outcome::Delivered => r.notify & notify::SUCCESS != 0,
    }
}

/// A report about recipients of one message, to each destination that its sender's address leads to; none where no mail can go to its sender, or by `deliver-local-dsn no` of the
/// sender's domain none is to.
pub fn about(shard: &Rc<Shard>, e: &ArchivedEnvelope, parts: &[Part], content: &[Bytes; 2]) -> Vec<Report> {
    let config = shard.config();
    let id = shard.next_message_id();
    let now = clock::now_ms();
    let first = parts.first().and_then(|p| e.recipients.get(usize::from(p.recipient)));
    let to = e.sender_to(first.map_or("", |r| &r.address));
    let Ok(destination) = ipc::message::destination_of(&to) else { return Vec::new() };
    if !config.exit(&destination, "").rules.deliver_local_dsn {
        return Vec::new();
    }
    let body = compose(&config.global, &id.to_string(), now, (e, &to), parts, content);
    let vmta = super::vmta_of(&config, e);
    let report = Envelope { vmta, ..super::envelope(&config.global, id, now, &to, destination, &body) };
    Report::each(shard, &super::to_aliases(&config, report), &[Bytes::from(body), Bytes::new()])
}

fn compose(
    global: &ipc::snapshot::Global,
    id: &str,
    now_ms: i64,
    (e, to): (&ArchivedEnvelope, &str),
    parts: &[Part],
    content: &[Bytes; 2],
) -> Vec<u8> {
    let host = &global.host_name;
    let boundary = format!("=_{id}_{host}");
    let from = match global.custom_dsn_from_header.as_str() {
        "" => format!("Mail Delivery System <mailer-daemon@{host}>"),
        custom => custom.to_owned(),
    };
    let action = parts.first().map_or("failed", |p| p.action);
    let (subject, sentence) = match action {
        "delayed" => (
            "Delivery Status Notification (Delay)",
            "Your message has not been delivered yet to the recipients below. Delivery goes on; you need not send it again.",
        ),
        "relayed" => (
            "Delivery Status Notification (Success)",
            "Your message was relayed for the recipients below to a system that may not report further.",
        ),
        _ => ("Delivery Status Notification (Failure)", "Your message could not be delivered to the recipients below."),
    };
    let mut t = format!(
        "From: {from}\r\nTo: <{}>\r\nSubject: {subject}\r\nDate: {}\r\nMessage-ID: <{id}@{host}>\r\nAuto-Submitted: auto-replied\r\nMIME-Version: 1.0\r\nContent-Type: multipart/report; report-type=delivery-status;\r\n\tboundary=\"{boundary}\"\r\n\r\nThis is a delivery status notification in MIME format.\r\n\r\n--{boundary}\r\nContent-Type: text/plain; charset=utf-8\r\n",
        to,
        crate::rfc5322_date(clock::wall_ms(now_ms) / 1000),
    );
    let mut words = format!("{sentence}\r\n\r\n");
    for p in parts {
        if let Some(r) = e.recipients.get(usize::from(p.recipient)) {
            words.push_str(&format!("<{}>: {}\r\n", r.address, one_line(&p.verdict.diagnostic)));
        }
    }
    t.push_str(&text_part(words.as_bytes()));
    t.push_str(&format!(
        "\r\n--{boundary}\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; {host}\r\n"
    ));
    if !e.envid.is_empty() {
        t.push_str(&format!("Original-Envelope-Id: {}\r\n", plain(&decoded_xtext(&e.envid))));
    }
    t.push_str(&format!(
        "Arrival-Date: {}\r\n",
        crate::rfc5322_date(clock::wall_ms(e.received_unix_ms.to_native()) / 1000)
    ));
    for p in parts {
        let Some(r) = e.recipients.get(usize::from(p.recipient)) else { continue };
        t.push_str("\r\n");
        if !r.orcpt.is_empty() {
            t.push_str(&format!("Original-Recipient: {}\r\n", plain(&decoded_xtext(&r.orcpt))));
        }
        let kind = if r.address.is_ascii() { "rfc822" } else { "utf-8" };
        t.push_str(&format!(
            "Final-Recipient: {kind}; {}\r\nAction: {}\r\nStatus: {}\r\n",
            plain(&r.address),
            p.action,
            p.verdict.status
        ));
        if !p.remote.is_empty() {
            t.push_str(&format!("Remote-MTA: dns; {}\r\n", p.remote));
        }
        let source = if p.verdict.remote { "smtp" } else { "x-sluice" };
        t.push_str(&format!("Diagnostic-Code: {source}; {}\r\n", plain(&one_line(&p.verdict.diagnostic))));
    }
    let mut whole = content[0][..content[0].len().min(RETURNED_MAX)].to_vec();
    let room = RETURNED_MAX - whole.len();
    whole.extend_from_slice(&content[1][..content[1].len().min(room)]);
    let (_, end) = headers::parse(&whole);
    // message/rfc822 cannot be encoded, and the sender's host may take ASCII alone.
    let full = e.ret == ArchivedRet::Full && action == "failed" && whole.is_ascii();
    t.push_str(&format!("\r\n--{boundary}\r\nContent-Type: "));
    if full {
        t.push_str("message/rfc822\r\n\r\n");
        t.push_str(&String::from_utf8_lossy(&whole));
    } else {
        t.push_str("text/rfc822-headers\r\n");
        t.push_str(&text_part(&whole[..end.min(whole.len())]));
    }
    if !t.ends_with('\n') {
        t.push_str("\r\n");
    }
    t.push_str(&format!("\r\n--{boundary}--\r\n"));
    t.into_bytes()
}

/// The rest of a text part's header, and its body: as it is, or quoted-printable (RFC 2045
/// §6.7) where it is not ASCII, so that a report goes through any receiver.
fn text_part(text: &[u8]) -> String {
    if text.is_ascii() {
        return format!("\r\n{}", String::from_utf8_lossy(text));
    }
    let mut out = String::from("Content-Transfer-Encoding: quoted-printable\r\n\r\n");
    for line in text.split_inclusive(|b| *b == b'\n') {
        let body = line.strip_suffix(b"\r\n").unwrap_or(line);
        let mut column = 0;
        for (i, b) in body.iter().enumerate() {
            let last = i + 1 == body.len();
            let keep = (0x21..0x7F).contains(b) && *b != b'=' || (matches!(b, b' ' | b'\t') && !last);
            let word = if keep { char::from(*b).to_string() } else { format!("={b:02X}") };
            if column + word.len() > 75 {
                out.push_str("=\r\n");
                column = 0;
            }
            column += word.len();
            out.push_str(&word);
        }
        if body.len() < line.len() {
            out.push_str("\r\n");
        }
    }
    out
}

/// ASCII for a field: what is not, in the form of RFC 6533 §3 (utf-8-addr-xtext).
fn plain(text: &str) -> String {
    if text.is_ascii() {
        return text.to_owned();
    }
    let one = |c: char| if c.is_ascii() { c.to_string() } else { format!("\\x{{{:X}}}", u32::from(c)) };
    text.chars().map(one).collect()
}

/// xtext (RFC 3461 §4) as it was meant, if that is printable.
pub fn decoded_xtext(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let hex = rest.strip_prefix('+').and_then(|h| h.get(..2)).and_then(|h| u8::from_str_radix(h, 16).ok());
        if let Some(b) = hex {
            bytes.push(b);
            rest = &rest[3..];
        } else {
            bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            rest = &rest[c.len_utf8()..];
        }
    }
    String::from_utf8(bytes).ok().filter(|t| !t.chars().any(char::is_control)).unwrap_or_else(|| text.to_owned())
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(800).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xtext_is_read_where_it_is_printable() {
        assert_eq!(decoded_xtext("a+2Bb+3Dc"), "a+b=c");
        assert_eq!(decoded_xtext("a+0Ab"), "a+0Ab");
        assert_eq!(decoded_xtext("a+ZZ+2"), "a+ZZ+2");
        assert_eq!(plain("\u{fc}@x"), "\\x{FC}@x");
    }

    #[test]
    fn other_than_ascii_is_quoted() {
        assert_eq!(text_part(b"a = b\r\n"), "\r\na = b\r\n");
        let quoted = text_part("\u{fc} = \r\nx".as_bytes());
        assert!(quoted.ends_with("\r\n\r\n=C3=BC =3D=20\r\nx"), "{quoted}");
        assert!(text_part("\u{fc}".repeat(99).as_bytes()).lines().all(|l| l.len() <= 76));
    }
}

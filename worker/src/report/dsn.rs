//! Delivery status notifications (RFC 3464 in the form of RFC 6522), queued like any mail.

use std::rc::Rc;

use bytes::Bytes;
use ipc::message::{ArchivedEnvelope, ArchivedRet, BodyType, Envelope, Recipient, Ret, SourceType, notify};

use crate::classify::outcome::{Outcome, Verdict};
use crate::prepare::headers;
use crate::shard::Shard;

/// Bytes of the original that a report returns at most.
const RETURNED_MAX: usize = 50_000;

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
        Outcome::Bounced => r.notify == 0 || r.notify & notify::FAILURE != 0,
        Outcome::Deferred => r.notify & notify::DELAY != 0,
        Outcome::Delivered => r.notify & notify::SUCCESS != 0,
    }
}

/// Queues a report about recipients of one message.
///
/// # Errors
/// [`spool::SpoolError`] when it could not be stored; the caller tries again.
pub async fn send(
    shard: &Rc<Shard>,
    e: &ArchivedEnvelope,
    parts: &[Part],
    content: &[Bytes; 2],
) -> Result<(), spool::SpoolError> {
    let config = shard.config();
    let id = shard.next_message_id();
    let now = crate::clock::now_ms();
    let Ok(destination) = ipc::message::destination_of(&e.sender) else { return Ok(()) };
    let body = compose(&config.global, &id.to_string(), now, e, parts, content);
    let utf8 = !e.sender.is_ascii();
    let report = Envelope {
        id,
        received_unix_ms: now,
        sender: String::new(),
        vmta: e.vmta.as_str().to_owned(),
        job_id: String::new(),
        envid: String::new(),
        ret: Ret::Unset,
        body_type: if body.is_ascii() { BodyType::SevenBit } else { BodyType::EightBit },
        smtputf8: utf8,
        suppress_dsn: true,
        source_type: SourceType::Report,
        source_name: config.global.host_name.clone(),
        source_ip: String::new(),
        local_ip: String::new(),
        handoff: None,
        asked: None,
        moved: None,
        recipients: vec![Recipient {
            address: e.sender.as_str().to_owned(),
            destination,
            notify: notify::NEVER,
            orcpt: String::new(),
        }],
    };
    Box::pin(crate::route::submit::submit(shard, report, [Bytes::from(body), Bytes::new()])).await
}

fn compose(
    global: &ipc::snapshot::Global,
    id: &str,
    now_ms: i64,
    e: &ArchivedEnvelope,
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
        "From: {from}\r\nTo: <{}>\r\nSubject: {subject}\r\nDate: {}\r\nMessage-ID: <{id}@{host}>\r\nAuto-Submitted: auto-replied\r\nMIME-Version: 1.0\r\nContent-Type: multipart/report; report-type=delivery-status;\r\n\tboundary=\"{boundary}\"\r\n\r\nThis is a delivery status notification in MIME format.\r\n\r\n--{boundary}\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n{sentence}\r\n\r\n",
        e.sender,
        crate::rfc5322_date(now_ms / 1000),
    );
    for p in parts {
        if let Some(r) = e.recipients.get(usize::from(p.recipient)) {
            t.push_str(&format!("<{}>: {}\r\n", r.address, one_line(&p.verdict.diagnostic)));
        }
    }
    t.push_str(&format!(
        "\r\n--{boundary}\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; {host}\r\n"
    ));
    if !e.envid.is_empty() {
        t.push_str(&format!("Original-Envelope-Id: {}\r\n", e.envid));
    }
    t.push_str(&format!("Arrival-Date: {}\r\n", crate::rfc5322_date(e.received_unix_ms.to_native() / 1000)));
    for p in parts {
        let Some(r) = e.recipients.get(usize::from(p.recipient)) else { continue };
        t.push_str("\r\n");
        if !r.orcpt.is_empty() {
            t.push_str(&format!("Original-Recipient: {}\r\n", r.orcpt));
        }
        let kind = if r.address.is_ascii() { "rfc822" } else { "utf-8" };
        t.push_str(&format!(
            "Final-Recipient: {kind}; {}\r\nAction: {}\r\nStatus: {}\r\n",
            r.address, p.action, p.verdict.status
        ));
        if !p.remote.is_empty() {
            t.push_str(&format!("Remote-MTA: dns; {}\r\n", p.remote));
        }
        let source = if p.verdict.remote { "smtp" } else { "x-sluice" };
        t.push_str(&format!("Diagnostic-Code: {source}; {}\r\n", one_line(&p.verdict.diagnostic)));
    }
    let full = e.ret == ArchivedRet::Full && action == "failed";
    let mut whole = content[0].to_vec();
    whole.extend_from_slice(&content[1][..content[1].len().min(RETURNED_MAX)]);
    let (_, end) = headers::parse(&whole);
    let (kind, returned) = if full {
        ("message/rfc822", &whole[..whole.len().min(RETURNED_MAX)])
    } else {
        ("text/rfc822-headers", &whole[..end.min(RETURNED_MAX)])
    };
    t.push_str(&format!("\r\n--{boundary}\r\nContent-Type: {kind}\r\n\r\n"));
    let mut out = t.into_bytes();
    out.extend_from_slice(returned);
    if !out.ends_with(b"\n") {
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    out
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(800).collect()
}

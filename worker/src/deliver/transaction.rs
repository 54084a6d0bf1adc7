//! One mail transaction as one pipelined flight: MAIL, every RCPT, and BDAT or DATA.

use std::io::IoSlice;

use bytes::Bytes;
use ipc::message::{ArchivedBodyType, ArchivedEnvelope, ArchivedRet, notify};
use ipc::rules::DomainRules;

use super::reply::Reply;
use super::session::{Session, SessionFault};
use crate::classify::bounce_rules::Stage;
use crate::classify::outcome::{Outcome, Verdict};

/// What came of a transaction.
#[derive(Debug)]
pub struct Result {
    /// One verdict a recipient, in the batch's order. `None`: not attempted, costs nothing.
    pub verdicts: Vec<Option<Verdict>>,
    /// Why the session is over, if it is.
    pub fault: Option<SessionFault>,
}

/// Content with dots doubled where a line begins with one (RFC 5321 §4.5.2), and ended.
pub fn dot_stuffed(body: &[Bytes; 2]) -> Vec<Bytes> {
    let mut parts = Vec::with_capacity(4);
    let mut at_line_start = true;
    for piece in body.iter().filter(|b| !b.is_empty()) {
        let mut from = 0;
        if at_line_start && piece[0] == b'.' {
            parts.push(Bytes::from_static(b"."));
        }
        for nl in memchr::memmem::find_iter(piece, b"\n.") {
            parts.push(piece.slice(from..=nl));
            parts.push(Bytes::from_static(b"."));
            from = nl + 1;
        }
        parts.push(piece.slice(from..));
        at_line_start = piece.ends_with(b"\n");
    }
    parts.push(Bytes::from_static(if at_line_start { b".\r\n" } else { b"\r\n.\r\n" }));
    parts
}

fn mail_command(e: &ArchivedEnvelope, s: &Session, size: usize, utf8: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(b"MAIL FROM:<");
    out.extend_from_slice(e.sender.as_bytes());
    out.push(b'>');
    if s.extensions.size.is_some() {
        out.extend_from_slice(format!(" SIZE={size}").as_bytes());
    }
    if e.body_type == ArchivedBodyType::EightBit && s.extensions.eight_bit {
        out.extend_from_slice(b" BODY=8BITMIME");
    }
    if utf8 {
        out.extend_from_slice(b" SMTPUTF8");
    }
    if s.extensions.dsn {
        match e.ret {
            ArchivedRet::Full => out.extend_from_slice(b" RET=FULL"),
            ArchivedRet::Headers => out.extend_from_slice(b" RET=HDRS"),
            ArchivedRet::Unset => {}
        }
        if !e.envid.is_empty() {
            out.extend_from_slice(b" ENVID=");
            out.extend_from_slice(e.envid.as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
}

fn rcpt_command(r: &ipc::message::ArchivedRecipient, dsn: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(b"RCPT TO:<");
    out.extend_from_slice(r.address.as_bytes());
    out.push(b'>');
    if dsn && r.notify != 0 {
        let names = [
            (notify::NEVER, "NEVER"),
            (notify::SUCCESS, "SUCCESS"),
            (notify::FAILURE, "FAILURE"),
            (notify::DELAY, "DELAY"),
        ];
        let given: Vec<&str> = names.iter().filter(|(bit, _)| r.notify & bit != 0).map(|(_, n)| *n).collect();
        out.extend_from_slice(format!(" NOTIFY={}", given.join(",")).as_bytes());
    }
    if dsn && !r.orcpt.is_empty() {
        out.extend_from_slice(b" ORCPT=");
        out.extend_from_slice(r.orcpt.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

/// Why this receiver cannot take the message as it is, before anything is sent.
fn unsupported(e: &ArchivedEnvelope, s: &Session, rules: &DomainRules, size: usize, utf8: bool) -> Option<Verdict> {
    if utf8 && !s.extensions.smtputf8 {
        return Some(Verdict::own("5.6.7", "the receiver does not support SMTPUTF8, which the message needs"));
    }
    if e.body_type == ArchivedBodyType::EightBit && !s.extensions.eight_bit && !rules.ignore_8bitmime {
        return Some(Verdict::own("5.6.3", "the receiver does not support 8BITMIME, which the message needs"));
    }
    match s.extensions.size {
        Some(limit) if limit != 0 && size as u64 > limit => Some(Verdict::own(
            "5.3.4",
            format!("message of {size} bytes is larger than the receiver's limit of {limit}"),
        )),
        _ => None,
    }
}

/// Sends a message to some of its recipients.
pub async fn send(
    s: &mut Session,
    e: &ArchivedEnvelope,
    recipients: &[u16],
    body: &[Bytes; 2],
    rules: &DomainRules,
) -> Result {
    let size = body[0].len() + body[1].len();
    let internationalised =
        |i: &u16| e.smtputf8 && e.recipients.get(usize::from(*i)).is_some_and(|r| !r.address.is_ascii());
    let message_needs_utf8 = e.smtputf8 && !(e.sender.is_ascii() && body[0].is_ascii());
    let utf8 = message_needs_utf8 || (s.extensions.smtputf8 && recipients.iter().any(internationalised));
    if let Some(v) = unsupported(e, s, rules, size, utf8) {
        return Result { verdicts: vec![Some(v); recipients.len()], fault: None };
    }
    // A receiver without SMTPUTF8 still serves those whose addresses are ASCII.
    let (able, unable): (Vec<u16>, Vec<u16>) =
        recipients.iter().partition(|i| s.extensions.smtputf8 || !internationalised(i));
    let mut verdicts = vec![None; able.len()];
    let fault = match able.is_empty() {
        true => None,
        false => {
            s.said_421 = None;
            let flown = flight(s, e, &able, body, rules, utf8, &mut verdicts).await;
            after_421(s, flown, rules).await.err()
        }
    };
    if !unable.is_empty() {
        let v = Verdict::own("5.6.7", "the receiver does not support SMTPUTF8, which the recipient's address needs");
        let mut of_able = verdicts.into_iter();
        verdicts = recipients
            .iter()
            .map(|i| if unable.contains(i) { Some(v.clone()) } else { of_able.next().flatten() })
            .collect();
    }
    Result { verdicts, fault }
}

async fn flight(
    s: &mut Session,
    e: &ArchivedEnvelope,
    recipients: &[u16],
    body: &[Bytes; 2],
    rules: &DomainRules,
    utf8: bool,
    verdicts: &mut [Option<Verdict>],
) -> std::result::Result<(), SessionFault> {
    let size = body[0].len() + body[1].len();
    let limit = rules.smtp_multiple_line_response_timeout;
    let pipelined = s.extensions.pipelining && !rules.ignore_pipelining;
    let chunked = s.extensions.chunking && !rules.ignore_chunking;
    let dsn = s.extensions.dsn && !rules.ignore_dsn;
    let mut commands = Vec::with_capacity(256);
    mail_command(e, s, size, utf8, &mut commands);
    if !pipelined {
        s.write(&mut [IoSlice::new(&commands)], limit).await?;
        let mail = s.reply(limit).await?;
        if !mail.is_positive() {
            return refused_mail(s, &mail, verdicts, rules).await;
        }
        commands.clear();
    }
    let mut accepted = 0;
    for (i, r) in recipients.iter().filter_map(|i| e.recipients.get(usize::from(*i))).enumerate() {
        rcpt_command(r, dsn, &mut commands);
        if !pipelined {
            s.write(&mut [IoSlice::new(&commands)], limit).await?;
            commands.clear();
            accepted += usize::from(note_rcpt(s, rules, &mut verdicts[i]).await?);
        }
    }
    if !pipelined && accepted == 0 {
        return reset(s, limit).await;
    }
    if chunked {
        commands.extend_from_slice(format!("BDAT {size} LAST\r\n").as_bytes());
        s.content_sent.set(true);
        s.write(
            &mut [IoSlice::new(&commands), IoSlice::new(&body[0]), IoSlice::new(&body[1])],
            rules.data_send_timeout,
        )
        .await?;
    } else {
        commands.extend_from_slice(b"DATA\r\n");
        s.write(&mut [IoSlice::new(&commands)], limit).await?;
    }
    let mut mail_refused = None;
    if pipelined {
        let mail = s.reply(limit).await?;
        if ends_session(&mail, rules) {
            return Err(s.refused(mail));
        }
        if !mail.is_positive() {
            mail_refused = Some(mail);
        }
        for v in verdicts.iter_mut() {
            accepted += usize::from(note_rcpt(s, rules, v).await?);
        }
    }
    if let Some(mail) = &mail_refused {
        verdicts.iter_mut().for_each(|v| *v = Some(Verdict::of_refusal(mail).at(Stage::Transaction)));
        accepted = 0;
    }
    let end = if chunked {
        s.reply(rules.smtp_data_termination_timeout).await?
    } else {
        let go = s.reply(limit).await?;
        if go.code != 354 {
            if ends_session(&go, rules) {
                return Err(s.refused(go));
            }
            judge_accepted(verdicts, &about(accepted, Verdict::of_refusal(&go)));
            return if accepted > 0 { reset(s, limit).await } else { Ok(()) };
        }
        // A receiver that says 354 without a recipient still waits for an end of data.
        let stuffed = if accepted > 0 { dot_stuffed(body) } else { vec![Bytes::from_static(b".\r\n")] };
        s.content_sent.set(true);
        let apart = usize::from(s.behind_pix && rules.pix_bug_workaround);
        // The final dot in a segment of its own.
        for part in [&stuffed[..stuffed.len() - apart], &stuffed[stuffed.len() - apart..]] {
            let mut parts: Vec<IoSlice<'_>> = part.iter().map(|b| IoSlice::new(b)).collect();
            s.write(&mut parts, rules.data_send_timeout).await?;
        }
        s.reply(rules.smtp_data_termination_timeout).await?
    };
    judge_accepted(verdicts, &about(accepted, Verdict::of_reply(&end)));
    if ends_session(&end, rules) && accepted > 0 {
        return Err(s.refused(end));
    }
    if mail_refused.is_some() && chunked { reset(s, limit).await } else { Ok(()) }
}

/// The receiver closes the service channel, and by `smtp-421-means-mx-unavailable` so do we.
fn ends_session(reply: &Reply, rules: &DomainRules) -> bool {
    reply.code == 421 && rules.smtp_421_means_mx_unavailable
}

/// A receiver that said 421 and closed said why; one that did not close may go on.
async fn after_421(
    s: &mut Session,
    flown: std::result::Result<(), SessionFault>,
    rules: &DomainRules,
) -> std::result::Result<(), SessionFault> {
    let Some(reply) = s.said_421.clone() else { return flown };
    let alive = match flown {
        Ok(()) => reset(s, rules.smtp_multiple_line_response_timeout).await,
        Err(e) => Err(e),
    };
    s.said_421 = None;
    alive.map_err(|_| s.refused(reply))
}

/// Reads the reply to one RCPT; true when it was accepted.
async fn note_rcpt(
    s: &mut Session,
    rules: &DomainRules,
    verdict: &mut Option<Verdict>,
) -> std::result::Result<bool, SessionFault> {
    let reply = s.reply(rules.smtp_multiple_line_response_timeout).await?;
    if ends_session(&reply, rules) {
        // The session is over; a rule may make an end of the recipient as well.
        *verdict = Some(s.verdict_on_recipient(&reply)).filter(|v| v.outcome == Outcome::Bounced);
        return Err(s.refused(reply));
    }
    if reply.is_positive() {
        return Ok(true);
    }
    *verdict = Some(s.verdict_on_recipient(&reply));
    Ok(false)
}

/// What is said of the content for several recipients is about none of them alone.
fn about(accepted: usize, v: Verdict) -> Verdict {
    if accepted > 1 { v.at(Stage::Transaction) } else { v }
}

/// The reply to the content is the verdict of every recipient that was accepted.
fn judge_accepted(verdicts: &mut [Option<Verdict>], v: &Verdict) {
    for slot in verdicts.iter_mut().filter(|s| s.is_none()) {
        *slot = Some(v.clone());
    }
}

async fn refused_mail(
    s: &mut Session,
    reply: &Reply,
    verdicts: &mut [Option<Verdict>],
    rules: &DomainRules,
) -> std::result::Result<(), SessionFault> {
    if ends_session(reply, rules) {
        return Err(s.refused(reply.clone()));
    }
    judge_accepted(verdicts, &Verdict::of_refusal(reply).at(Stage::Transaction));
    reset(s, rules.smtp_multiple_line_response_timeout).await
}

async fn reset(s: &mut Session, limit: std::time::Duration) -> std::result::Result<(), SessionFault> {
    let r = s.command("RSET", limit).await?;
    if r.is_positive() { Ok(()) } else { Err(s.refused(r)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn joined(parts: &[Bytes]) -> Vec<u8> {
        parts.iter().flat_map(|p| p.iter().copied()).collect()
    }

    #[test]
    fn dots_are_doubled_at_line_starts_only() {
        let body = |a: &'static [u8], b: &'static [u8]| [Bytes::from_static(a), Bytes::from_static(b)];
        assert_eq!(joined(&dot_stuffed(&body(b".a\r\n.", b".b.\r\n"))), b"..a\r\n...b.\r\n.\r\n");
        assert_eq!(joined(&dot_stuffed(&body(b"a\r\n", b".b"))), b"a\r\n..b\r\n.\r\n");
        assert_eq!(joined(&dot_stuffed(&body(b"", b""))), b".\r\n");
    }

    proptest! {
        #[test]
        fn unstuffing_gives_the_content_back(a in "[.a\n]{0,30}", b in "[.a\n]{0,30}") {
            let crlf = |s: &str| Bytes::from(s.replace('\n', "\r\n"));
            let body = [crlf(&a), crlf(&b)];
            let sent = joined(&dot_stuffed(&body));
            let mut lines: Vec<&[u8]> = sent.split_inclusive(|b| *b == b'\n').collect();
            prop_assert_eq!(lines.pop(), Some(&b".\r\n"[..]));
            prop_assert!(lines.iter().all(|l| *l != b".\r\n"));
            let back: Vec<u8> = lines.iter().flat_map(|l| l.strip_prefix(b".").unwrap_or(l).iter().copied()).collect();
            let mut want = joined(&body);
            if !want.is_empty() && !want.ends_with(b"\n") { want.extend_from_slice(b"\r\n"); }
            prop_assert_eq!(back, want);
        }
    }
}

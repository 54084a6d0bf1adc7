//! One mail transaction as one pipelined flight: MAIL, every RCPT, and BDAT or DATA.
//!
//! A transaction that began, for MAIL was accepted, and whose content was not taken is ended by
//! RSET, whatever failed (RFC 5321 section 4.1.4, RFC 2920 section 3.1, RFC 3030 section 2): else
//! the receiver would take the next message for a part of it. What a receiver says of the order
//! or the form of our own commands is a fault of the session, and of no recipient.

use std::io::IoSlice;
use std::time::Duration;

use bytes::Bytes;
use ipc::message::{ArchivedBodyType, ArchivedEnvelope, ArchivedRet, notify};
use ipc::rules::DomainRules;
use tokio::task::coop::consume_budget;

use super::session::{Session, SessionFault};
use crate::classify::outcome::{Outcome, Stage, Verdict};
use crate::holds::{Work, doing};
use crate::smtp::dot_stuffing::DotStuffed;
use crate::smtp::extension::Extension;
use crate::smtp::reply::Reply;

/// How a recipient stands with the receiver when its transaction is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Nothing was said of it.
    Unasked,
    /// Its RCPT was accepted, and nothing was said of the content.
    Accepted,
    /// One more than the receiver takes in a transaction that had others (RFC 5321 section 4.5.3.1.10).
    Surplus,
    /// The answer was 421. It counts when the receiver goes on all the same; when the session ended
    /// with it, it was the session's.
    Closing(Verdict),
    /// Its end, or its deferral.
    Decided(Verdict),
}

impl Standing {
    /// The verdict, where there is one that the receiver said of the recipient.
    pub fn decided_mut(&mut self) -> Option<&mut Verdict> {
        match self {
            Standing::Decided(v) => Some(v),
            Standing::Unasked | Standing::Accepted | Standing::Surplus | Standing::Closing(_) => None,
        }
    }
}

/// What came of a transaction.
#[derive(Debug)]
pub struct Result {
    /// One a recipient, in the batch's order.
    pub standings: Vec<Standing>,
    /// Recipients that the receiver had accepted when it said that more are too many.
    pub too_many_after: Option<u16>,
    /// Why the session is over, if it is.
    pub fault: Option<SessionFault>,
}

/// The MAIL command; whether it has parameters that can be left out.
fn mail_command(e: &ArchivedEnvelope, s: &Session, size: usize, utf8: bool, out: &mut Vec<u8>) -> bool {
    out.extend_from_slice(b"MAIL FROM:<");
    out.extend_from_slice(e.sender.as_bytes());
    out.push(b'>');
    let plain = out.len();
    if s.extensions.size.is_some() {
        out.extend_from_slice(format!(" SIZE={size}").as_bytes());
    }
    if e.body_type == ArchivedBodyType::EightBit && s.extensions.eight_bit && !s.lesson.without_parameters {
        out.extend_from_slice(b" BODY=8BITMIME");
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
    let has_more = out.len() > plain;
    if utf8 {
        out.extend_from_slice(b" SMTPUTF8");
    }
    out.extend_from_slice(b"\r\n");
    has_more
}

/// A RCPT command; whether it has parameters.
fn rcpt_command(r: &ipc::message::ArchivedRecipient, dsn: bool, out: &mut Vec<u8>) -> bool {
    out.extend_from_slice(b"RCPT TO:<");
    out.extend_from_slice(r.address.as_bytes());
    out.push(b'>');
    let plain = out.len();
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
    let has_more = out.len() > plain;
    out.extend_from_slice(b"\r\n");
    has_more
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
        |i: u16| e.smtputf8 && e.recipients.get(usize::from(i)).is_some_and(|r| !r.address.is_ascii());
    let message_needs_utf8 = e.smtputf8 && !(e.sender.is_ascii() && body[0].is_ascii());
    let utf8 = message_needs_utf8 || (s.extensions.smtputf8 && recipients.iter().any(|i| internationalised(*i)));
    if let Some(v) = unsupported(e, s, rules, size, utf8) {
        return Result { standings: vec![Standing::Decided(v); recipients.len()], too_many_after: None, fault: None };
    }
    // A receiver without SMTPUTF8 still serves those whose addresses are ASCII.
    let standing = |i: &u16| match s.extensions.smtputf8 || !internationalised(*i) {
        true => Standing::Unasked,
        false => Standing::Decided(Verdict::own(
            "5.6.7",
            "the receiver does not support SMTPUTF8, which the recipient's address needs",
        )),
    };
    let standings: Vec<Standing> = recipients.iter().map(standing).collect();
    let asked: Vec<usize> = (0..recipients.len()).filter(|i| standings[*i] == Standing::Unasked).collect();
    if asked.is_empty() {
        return Result { standings, too_many_after: None, fault: None };
    }
    s.said_421 = None;
    let mut t = Transaction {
        limit: rules.smtp_multiple_line_response_timeout,
        is_pipelined: s.extensions.pipelining && !rules.ignore_pipelining,
        is_chunked: s.extensions.chunking && !rules.ignore_chunking,
        dsn: s.extensions.dsn && !rules.ignore_dsn,
        s,
        e,
        rules,
        recipients,
        asked,
        standings,
        has_begun: false,
        accepted: 0,
        too_many_after: None,
        misstep: None,
    };
    let fault = t.run(body, utf8).await.err();
    Result { standings: t.standings, too_many_after: t.too_many_after, fault }
}

/// A transaction under way.
struct Transaction<'a> {
    s: &'a mut Session,
    e: &'a ArchivedEnvelope,
    rules: &'a DomainRules,
    /// For a command's reply.
    limit: Duration,
    is_pipelined: bool,
    is_chunked: bool,
    dsn: bool,
    recipients: &'a [u16],
    /// Places of those that get a RCPT.
    asked: Vec<usize>,
    standings: Vec<Standing>,
    /// MAIL was accepted.
    has_begun: bool,
    /// Recipients whose RCPT was.
    accepted: u16,
    too_many_after: Option<u16>,
    /// The first reply that was about our own commands, as a fault.
    misstep: Option<SessionFault>,
}

type Flown<T> = std::result::Result<T, SessionFault>;

impl Transaction<'_> {
    /// From MAIL to the end of the transaction, that of the content or RSET.
    async fn run(&mut self, body: &[Bytes; 2], utf8: bool) -> Flown<()> {
        let flown = match self.converse(body, utf8).await {
            // A receiver that said 421 may go on: RSET tells.
            Ok(_) if ipc::planted!("mail-without-rset") => Ok(()),
            Ok(taken) if !taken && self.has_begun || self.s.said_421.is_some() => self.reset().await,
            Ok(_) => Ok(()),
            Err(e) => Err(e),
        };
        let flown = match (flown, self.s.said_421.take()) {
            (Err(_), Some(reply)) => Err(self.s.refused(reply)),
            (flown, _) => flown,
        };
        for s in self.standings.iter_mut() {
            if let Standing::Closing(v) = s {
                *s = if flown.is_ok() { Standing::Decided(v.clone()) } else { Standing::Unasked };
            }
        }
        flown.and(self.misstep.take().map_or(Ok(()), Err))
    }

    /// The commands and their replies; whether the content was taken.
    async fn converse(&mut self, body: &[Bytes; 2], utf8: bool) -> Flown<bool> {
        let size = body[0].len() + body[1].len();
        let mut commands = Vec::with_capacity(256);
        let mail_has_parameters = mail_command(self.e, self.s, size, utf8, &mut commands);
        if !self.is_pipelined {
            self.s.write(&mut [IoSlice::new(&commands)], self.limit).await?;
            commands.clear();
            self.read_mail(mail_has_parameters).await?;
            if !self.has_begun {
                return Ok(false);
            }
        }
        let mut rcpt_has_parameters = false;
        for n in 0..self.asked.len() {
            let Some(r) = self.e.recipients.get(usize::from(self.recipients[self.asked[n]])) else { continue };
            let has_parameters = rcpt_command(r, self.dsn, &mut commands);
            rcpt_has_parameters |= has_parameters;
            if !self.is_pipelined {
                self.s.write(&mut [IoSlice::new(&commands)], self.limit).await?;
                commands.clear();
                self.read_rcpt(n, has_parameters).await?;
            }
        }
        if !self.is_pipelined && self.accepted == 0 {
            return Ok(false);
        }
        if self.is_chunked {
            commands.extend_from_slice(format!("BDAT {size} LAST\r\n").as_bytes());
            self.s.content_sent.set(true);
            let mut parts = [IoSlice::new(&commands), IoSlice::new(&body[0]), IoSlice::new(&body[1])];
            self.s.write(&mut parts, self.rules.data_send_timeout).await?;
        } else {
            commands.extend_from_slice(b"DATA\r\n");
            self.s.write(&mut [IoSlice::new(&commands)], self.limit).await?;
        }
        if self.is_pipelined {
            self.read_mail(mail_has_parameters).await?;
            for n in 0..self.asked.len() {
                self.read_rcpt(n, rcpt_has_parameters).await?;
            }
        }
        if !self.is_chunked && !self.read_go().await? {
            return Ok(false);
        }
        if !self.is_chunked {
            // A receiver that says 354 without a recipient still waits for an end of data.
            let none = [Bytes::new(), Bytes::new()];
            let mut stuffed = DotStuffed::of(if self.accepted > 0 { body } else { &none });
            self.s.content_sent.set(true);
            while let Some(piece) = doing(Work::Transmit, || stuffed.next()) {
                // The final dot in a segment of its own.
                let is_apart = stuffed.is_done() && self.s.behind_pix && self.rules.pix_bug_workaround;
                let (piece, last) = piece.split_at(piece.len() - usize::from(is_apart));
                for part in [piece, last] {
                    let mut parts: Vec<IoSlice<'_>> = part.iter().map(|b| IoSlice::new(b)).collect();
                    self.s.write(&mut parts, self.rules.data_send_timeout).await?;
                }
                consume_budget().await;
            }
        }
        self.read_end().await
    }

    /// The reply to MAIL.
    async fn read_mail(&mut self, has_parameters: bool) -> Flown<()> {
        let reply = self.s.reply(self.limit).await?;
        if self.ends_session(&reply) {
            return Err(self.s.refused(reply));
        }
        self.has_begun = reply.is_positive();
        if self.has_begun || self.is_misstep("MAIL", &reply, has_parameters) {
            return Ok(());
        }
        let v = Verdict::of_refusal(&reply).at(Stage::Transaction);
        for at in &self.asked {
            self.standings[*at] =
                if reply.code == 421 { Standing::Closing(v.clone()) } else { Standing::Decided(v.clone()) };
        }
        Ok(())
    }

    /// The reply to the `n`-th RCPT.
    async fn read_rcpt(&mut self, n: usize, has_parameters: bool) -> Flown<()> {
        let reply = self.s.reply(self.limit).await?;
        let at = self.asked[n];
        if self.ends_session(&reply) {
            // The session is over; a rule may make an end of the recipient as well.
            let v = self.s.verdict_on_recipient(&reply);
            if v.outcome == Outcome::Bounced {
                self.standings[at] = Standing::Decided(v);
            }
            return Err(self.s.refused(reply));
        }
        if !self.has_begun {
            // It follows from the reply to MAIL, and says nothing else.
            return Ok(());
        }
        let is_taken =
            reply.is_positive() || ipc::planted!("deferred-recipient-taken-for-accepted") && self.accepted > 0;
        self.standings[at] = if is_taken {
            self.accepted += 1;
            Standing::Accepted
        } else if self.is_misstep("RCPT", &reply, has_parameters) {
            Standing::Unasked
        } else if reply.is_too_many_recipients() && self.accepted > 0 {
            self.too_many_after.get_or_insert(self.accepted);
            Standing::Surplus
        } else {
            match (self.s.verdict_on_recipient(&reply), reply.code) {
                (v, 421) if v.outcome == Outcome::Deferred => Standing::Closing(v),
                (v, _) => Standing::Decided(v),
            }
        };
        Ok(())
    }

    /// The reply to DATA; whether the content may go.
    async fn read_go(&mut self) -> Flown<bool> {
        let reply = self.s.reply(self.limit).await?;
        if reply.code == 354 {
            return match self.has_begun {
                true => Ok(true),
                // MAIL was not accepted, so only the receiver knows what content it expects: it gets none.
                false => Err(self.s.out_of_step("DATA", reply, None)),
            };
        }
        if self.ends_session(&reply) {
            return Err(self.s.refused(reply));
        }
        if self.accepted > 0 && !self.is_misstep("DATA", &reply, false) {
            self.judge_accepted(&reply, Verdict::of_refusal(&reply));
        }
        Ok(false)
    }

    /// The reply to the content: the verdict of every recipient that was accepted. Whether it was taken.
    async fn read_end(&mut self) -> Flown<bool> {
        let reply = self.s.reply(self.rules.smtp_data_termination_timeout).await?;
        let taken = reply.is_positive();
        if !self.has_begun && taken {
            return Err(self.s.out_of_step("BDAT", reply, Some(Extension::Chunking)));
        }
        if self.accepted == 0 {
            return Ok(taken);
        }
        if self.ends_session(&reply) {
            self.judge_accepted(&reply, Verdict::of_reply(&reply));
            return Err(self.s.refused(reply));
        }
        if !matches!(reply.code / 100, 2 | 4 | 5) {
            // Only the receiver knows whether it waits for more content: commands could be taken for it, so the session ends.
            self.judge_accepted(&reply, Verdict::of_refusal(&reply));
            return Err(self.s.no_verdict(&reply));
        }
        let command = if self.is_chunked { "BDAT" } else { "the end of data" };
        let about_command = self.is_chunked || reply.code == 503;
        if about_command && self.is_misstep(command, &reply, self.is_chunked) {
            // The receiver said that it has no content.
            self.standings.iter_mut().filter(|s| **s == Standing::Accepted).for_each(|s| *s = Standing::Unasked);
        } else {
            self.judge_accepted(&reply, Verdict::of_reply(&reply));
        }
        Ok(taken)
    }

    fn judge_accepted(&mut self, reply: &Reply, v: Verdict) {
        // What is said of the content for several recipients is about none of them alone.
        let v = if self.accepted > 1 { v.at(Stage::Transaction) } else { v };
        for s in self.standings.iter_mut().filter(|s| **s == Standing::Accepted) {
            *s = if reply.code == 421 { Standing::Closing(v.clone()) } else { Standing::Decided(v.clone()) };
        }
    }

    /// Whether a reply is about the order or the form of our own command, which is a fault of the
    /// session; notes the first of them, and what recipients were accepted for is not judged by it.
    fn is_misstep(&mut self, command: &'static str, reply: &Reply, has_parameters: bool) -> bool {
        let concerned = match command {
            "BDAT" => Some(Extension::Chunking),
            _ if has_parameters && reply.code != 503 => Some(Extension::Parameters),
            _ if self.is_pipelined => Some(Extension::Pipelining),
            _ => None,
        };
        let is_misstep = match reply.code {
            500 | 502 | 503 => true,
            501 | 504 | 555 => has_parameters,
            _ => false,
        };
        if !is_misstep || reply.is_about_policy() {
            return false;
        }
        if self.misstep.is_none() {
            self.misstep = Some(self.s.out_of_step(command, reply.clone(), concerned));
        }
        true
    }

    /// The receiver closes the service channel, and by `smtp-421-means-mx-unavailable` so do we.
    fn ends_session(&self, reply: &Reply) -> bool {
        reply.code == 421 && self.rules.smtp_421_means_mx_unavailable
    }

    async fn reset(&mut self) -> Flown<()> {
        let r = self.s.command("RSET", self.limit).await?;
        if r.is_positive() { Ok(()) } else { Err(self.s.refused(r)) }
    }
}

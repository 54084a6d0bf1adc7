//! One mail transaction of a client, without a socket: MAIL, every RCPT, and BDAT or DATA, pipelined where the receiver takes it.
//! A [`Flight`] says what is to be sent next, and is told each reply.
//!
//! A transaction that began, for MAIL was accepted, and whose content was not taken is ended by
//! RSET, whatever failed (RFC 5321 section 4.1.4, RFC 2920 section 3.1, RFC 3030 section 2): else
//! the receiver would take the next message for a part of it. What a receiver says of the order
//! or the form of our own commands is a fault of the session, and of no recipient.

use ipc::message::{ArchivedBodyType, ArchivedEnvelope, ArchivedRecipient, ArchivedRet, notify};
use ipc::rules::DomainRules;

use super::extension::{Extension, Lesson};
use super::reply::{Extensions, Reply};
use crate::classify::outcome::{Outcome, Stage, Verdict};

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

/// What of SMTP is used with a receiver: what it offers and keeps, as far as rules do not leave it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Commands go out together (RFC 2920).
    pub pipelining: bool,
    /// Content goes out by BDAT (RFC 3030).
    pub chunking: bool,
    /// The sender's wishes for reports are passed on (RFC 3461).
    pub dsn: bool,
    /// The size is told (RFC 1870): the receiver's limit, 0 for none.
    pub size: Option<u64>,
    /// Content with octets above 127 may be sent.
    pub takes_eight_bit: bool,
    /// It is announced as such (RFC 6152).
    pub says_eight_bit: bool,
    /// Addresses and headers may be in UTF-8 (RFC 6531).
    pub smtputf8: bool,
    /// A reply of 421 ends the session, whatever the receiver does (`smtp-421-means-mx-unavailable`).
    pub ends_at_421: bool,
}

impl Terms {
    /// By what the host offers, what is known of it, and the rules of the path.
    pub fn of(offered: &Extensions, lesson: &Lesson, rules: &DomainRules) -> Terms {
        let eight_bit = offered.eight_bit && !rules.ignore_8bitmime;
        Terms {
            pipelining: offered.pipelining && !rules.ignore_pipelining,
            chunking: offered.chunking && !rules.ignore_chunking,
            dsn: offered.dsn && !rules.ignore_dsn,
            size: offered.size,
            takes_eight_bit: offered.eight_bit || rules.ignore_8bitmime,
            says_eight_bit: eight_bit && !lesson.without_parameters,
            smtputf8: offered.smtputf8,
            ends_at_421: rules.smtp_421_means_mx_unavailable,
        }
    }

    /// Why the receiver cannot take the message as it is, before anything is sent.
    fn refuse(&self, m: &Outgoing<'_>) -> Option<Verdict> {
        if m.needs_utf8 && !self.smtputf8 {
            return Some(Verdict::own("5.6.7", "the receiver does not support SMTPUTF8, which the message needs"));
        }
        if m.envelope.body_type == ArchivedBodyType::EightBit && !self.takes_eight_bit {
            return Some(Verdict::own("5.6.3", "the receiver does not support 8BITMIME, which the message needs"));
        }
        match self.size {
            Some(limit) if limit != 0 && m.size as u64 > limit => Some(Verdict::own(
                "5.3.4",
                format!("message of {} bytes is larger than the receiver's limit of {limit}", m.size),
            )),
            _ => None,
        }
    }
}

/// A message as it goes to some of its recipients.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    /// Parameters and all recipients.
    pub envelope: &'a ArchivedEnvelope,
    /// Sender.
    pub sender: &'a str,
    /// Those that are asked for, as places in the envelope.
    pub recipients: &'a [u16],
    /// Bytes of the content.
    pub size: usize,
    /// Sender or header are in UTF-8, which the receiver must have offered to take.
    pub needs_utf8: bool,
}

impl<'a> Outgoing<'a> {
    /// Content is header and body.
    pub fn of(
        (envelope, sender): (&'a ArchivedEnvelope, &'a str),
        recipients: &'a [u16],
        content: &[bytes::Bytes; 2],
    ) -> Outgoing<'a> {
        let needs_utf8 = envelope.smtputf8 && !(sender.is_ascii() && content[0].is_ascii());
        Outgoing { envelope, sender, recipients, size: content[0].len() + content[1].len(), needs_utf8 }
    }

    fn recipient(&self, place: usize) -> Option<&'a ArchivedRecipient> {
        self.recipients.get(place).and_then(|i| self.envelope.recipients.get(usize::from(*i)))
    }

    /// Whether a recipient's address is in UTF-8.
    fn is_internationalised(&self, place: usize) -> bool {
        self.envelope.smtputf8 && self.recipient(place).is_some_and(|r| !r.address.is_ascii())
    }

    /// The MAIL command; whether it has parameters that can be left out.
    fn mail_command(&self, terms: &Terms, utf8: bool, out: &mut Vec<u8>) -> bool {
        let e = self.envelope;
        out.extend_from_slice(b"MAIL FROM:<");
        out.extend_from_slice(self.sender.as_bytes());
        out.push(b'>');
        let plain = out.len();
        if terms.size.is_some() {
            out.extend_from_slice(format!(" SIZE={}", self.size).as_bytes());
        }
        if e.body_type == ArchivedBodyType::EightBit && terms.says_eight_bit {
            out.extend_from_slice(b" BODY=8BITMIME");
        }
        if terms.dsn {
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
}

/// A RCPT command; whether it has parameters.
fn rcpt_command(r: &ArchivedRecipient, dsn: bool, out: &mut Vec<u8>) -> bool {
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

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Commands are sent.
    Say(Vec<u8>),
    /// A command is sent with the content right behind it, as it is (BDAT).
    SayWithContent(Vec<u8>),
    /// The content is sent with its dots doubled, and ended by a dot (DATA).
    SendContent,
    /// The end of data is sent without content: a receiver that says 354 without a recipient still waits for it.
    EndWithoutContent,
    /// The reply to a command is awaited.
    HearReply,
    /// The reply to the content is awaited.
    HearVerdict,
    /// Nothing any more.
    Over,
}

/// Why a session cannot go on behind a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlightFault {
    /// By this reply.
    Refused(Reply),
    /// By this reply to content, which neither takes nor refuses it.
    NoVerdict(Reply),
    /// By a reply about the order or the form of our own commands.
    OutOfStep {
        /// The command.
        command: &'static str,
        /// The reply.
        reply: Reply,
        /// What was used that could be left out.
        concerned: Option<Extension>,
    },
}

/// What came of a transaction.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended {
    /// One a recipient, in the order in which they were given.
    pub standings: Vec<Standing>,
    /// Recipients that the receiver had accepted when it said that more are too many.
    pub too_many_after: Option<u16>,
    /// Why the session is over, if the receiver's replies say so.
    pub fault: Option<FlightFault>,
}

/// The reply that comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awaited {
    Mail,
    /// To the RCPT of this place in [`Flight::asked`].
    Rcpt(usize),
    /// To DATA.
    Go,
    /// To the content.
    Verdict,
    Reset,
    Nothing,
}

type Flown<T> = Result<T, FlightFault>;

/// A transaction under way.
pub struct Flight<'a> {
    message: Outgoing<'a>,
    terms: Terms,
    /// Whether a rule makes an end of the recipient whose RCPT had this reply.
    rule_ends_recipient: &'a dyn Fn(&Reply) -> bool,
    standings: Vec<Standing>,
    /// Places of those that get a RCPT.
    asked: Vec<usize>,
    awaited: Awaited,
    /// What is sent before the next reply is read.
    to_send: Option<Step>,
    mail_has_parameters: bool,
    /// The RCPT that was sent has, or one of those that were sent together.
    rcpt_has_parameters: bool,
    /// MAIL was accepted.
    has_begun: bool,
    /// Recipients whose RCPT was.
    accepted: u16,
    too_many_after: Option<u16>,
    /// The first reply that was about our own commands, as a fault.
    misstep: Option<FlightFault>,
    /// The first reply of 421. The receiver may go on all the same; where the session ends behind it, that reply is the reason.
    said_421: Option<Reply>,
    /// By which reply the session is over.
    fault: Option<FlightFault>,
}

impl<'a> Flight<'a> {
    /// One that has sent nothing. Where the receiver cannot take the message, or none of its recipients, it is over.
    pub fn of(message: Outgoing<'a>, terms: Terms, rule_ends_recipient: &'a dyn Fn(&Reply) -> bool) -> Flight<'a> {
        let places = 0..message.recipients.len();
        let standings: Vec<Standing> = match terms.refuse(&message) {
            Some(v) => vec![Standing::Decided(v); message.recipients.len()],
            // A receiver without SMTPUTF8 still serves those whose addresses are ASCII.
            None => places
                .clone()
                .map(|at| match terms.smtputf8 || !message.is_internationalised(at) {
                    true => Standing::Unasked,
                    false => Standing::Decided(Verdict::own(
                        "5.6.7",
                        "the receiver does not support SMTPUTF8, which the recipient's address needs",
                    )),
                })
                .collect(),
        };
        let asked =
            places.filter(|at| standings[*at] == Standing::Unasked && message.recipient(*at).is_some()).collect();
        let mut flight = Flight {
            message,
            terms,
            rule_ends_recipient,
            standings,
            asked,
            awaited: Awaited::Nothing,
            to_send: None,
            mail_has_parameters: false,
            rcpt_has_parameters: false,
            has_begun: false,
            accepted: 0,
            too_many_after: None,
            misstep: None,
            said_421: None,
            fault: None,
        };
        if !flight.asked.is_empty() {
            flight.begin();
        }
        flight
    }

    /// MAIL, and with PIPELINING all that follows as far as no reply is needed.
    fn begin(&mut self) {
        let mut commands = Vec::with_capacity(256);
        let utf8 = self.message.needs_utf8
            || self.terms.smtputf8 && (0..self.standings.len()).any(|at| self.message.is_internationalised(at));
        self.mail_has_parameters = self.message.mail_command(&self.terms, utf8, &mut commands);
        self.awaited = Awaited::Mail;
        if !self.terms.pipelining {
            self.to_send = Some(Step::Say(commands));
            return;
        }
        for at in &self.asked {
            if let Some(r) = self.message.recipient(*at) {
                self.rcpt_has_parameters |= rcpt_command(r, self.terms.dsn, &mut commands);
            }
        }
        self.announce_content(commands);
    }

    /// BDAT with the content, or DATA, behind the commands that go out with it.
    fn announce_content(&mut self, mut commands: Vec<u8>) {
        self.to_send = Some(match self.terms.chunking {
            true => {
                commands.extend_from_slice(format!("BDAT {} LAST\r\n", self.message.size).as_bytes());
                Step::SayWithContent(commands)
            }
            false => {
                commands.extend_from_slice(b"DATA\r\n");
                Step::Say(commands)
            }
        });
    }

    /// What is to be done next. What it says to send is said once.
    pub fn step(&mut self) -> Step {
        if let Some(step) = self.to_send.take() {
            return step;
        }
        match self.awaited {
            Awaited::Nothing => Step::Over,
            Awaited::Verdict => Step::HearVerdict,
            Awaited::Mail | Awaited::Rcpt(_) | Awaited::Go | Awaited::Reset => Step::HearReply,
        }
    }

    /// The receiver's next reply.
    pub fn heard(&mut self, reply: Reply) {
        if reply.code == 421 && self.said_421.is_none() {
            self.said_421 = Some(reply.clone());
        }
        let flown = match self.awaited {
            Awaited::Mail => self.heard_of_mail(reply),
            Awaited::Rcpt(n) => self.heard_of_rcpt(n, reply),
            Awaited::Go => self.heard_of_data(reply),
            Awaited::Verdict => self.heard_of_content(reply).map(|is_taken| self.finish(is_taken)),
            Awaited::Reset => {
                self.awaited = Awaited::Nothing;
                if reply.is_positive() { Ok(()) } else { Err(FlightFault::Refused(reply)) }
            }
            Awaited::Nothing => Ok(()),
        };
        if let Err(fault) = flown {
            self.fault = Some(fault);
            self.awaited = Awaited::Nothing;
            self.to_send = None;
        }
    }

    /// What came of it. `is_lost` says that the session failed in the middle of it.
    pub fn end(mut self, is_lost: bool) -> Ended {
        let is_over = is_lost || self.fault.is_some();
        if is_over && let Some(reply) = self.said_421.take() {
            self.fault = Some(FlightFault::Refused(reply));
        }
        for s in self.standings.iter_mut() {
            if let Standing::Closing(v) = s {
                *s = if is_over { Standing::Unasked } else { Standing::Decided(v.clone()) };
            }
        }
        let fault = self.fault.or(if is_over { None } else { self.misstep });
        Ended { standings: self.standings, too_many_after: self.too_many_after, fault }
    }

    /// Ends the transaction where the receiver has not ended it by taking the content.
    fn finish(&mut self, is_taken: bool) {
        // A receiver that said 421 may go on: RSET tells.
        let has_to_reset = !is_taken && self.has_begun || self.said_421.is_some();
        if has_to_reset && !ipc::planted!("mail-without-rset") {
            self.to_send = Some(Step::Say(b"RSET\r\n".to_vec()));
            self.awaited = Awaited::Reset;
        } else {
            self.awaited = Awaited::Nothing;
        }
    }

    /// Goes on to the RCPT of a place in [`Flight::asked`], or behind the last one to the content.
    fn go_on_to(&mut self, n: usize) {
        let Some(r) = self.asked.get(n).and_then(|at| self.message.recipient(*at)) else {
            if !self.terms.pipelining {
                if self.accepted == 0 {
                    return self.finish(false);
                }
                self.announce_content(Vec::with_capacity(32));
            }
            self.awaited = if self.terms.chunking { Awaited::Verdict } else { Awaited::Go };
            return;
        };
        if !self.terms.pipelining {
            let mut command = Vec::with_capacity(128);
            self.rcpt_has_parameters = rcpt_command(r, self.terms.dsn, &mut command);
            self.to_send = Some(Step::Say(command));
        }
        self.awaited = Awaited::Rcpt(n);
    }

    fn heard_of_mail(&mut self, reply: Reply) -> Flown<()> {
        if self.ends_session(&reply) {
            return Err(FlightFault::Refused(reply));
        }
        self.has_begun = reply.is_positive();
        if !self.has_begun && !self.is_misstep("MAIL", &reply, self.mail_has_parameters) {
            let v = Verdict::of_refusal(&reply).at(Stage::Transaction);
            for at in &self.asked {
                self.standings[*at] = of_421(&reply, v.clone());
            }
        }
        match self.has_begun || self.terms.pipelining {
            true => self.go_on_to(0),
            false => self.finish(false),
        }
        Ok(())
    }

    fn heard_of_rcpt(&mut self, n: usize, reply: Reply) -> Flown<()> {
        let at = self.asked[n];
        if self.ends_session(&reply) {
            // The session is over; a rule may make an end of the recipient as well.
            let v = self.verdict_on_recipient(&reply);
            if v.outcome == Outcome::Bounced {
                self.standings[at] = Standing::Decided(v);
            }
            return Err(FlightFault::Refused(reply));
        }
        // Where MAIL was not accepted, it follows from that, and says nothing else.
        if self.has_begun {
            self.standings[at] = self.standing_by(&reply);
        }
        self.go_on_to(n + 1);
        Ok(())
    }

    /// How a recipient stands by the reply to its RCPT.
    fn standing_by(&mut self, reply: &Reply) -> Standing {
        let is_taken =
            reply.is_positive() || ipc::planted!("deferred-recipient-taken-for-accepted") && self.accepted > 0;
        if is_taken {
            self.accepted += 1;
            return Standing::Accepted;
        }
        if self.is_misstep("RCPT", reply, self.rcpt_has_parameters) {
            return Standing::Unasked;
        }
        if reply.is_too_many_recipients() && self.accepted > 0 {
            self.too_many_after.get_or_insert(self.accepted);
            return Standing::Surplus;
        }
        match self.verdict_on_recipient(reply) {
            v if v.outcome == Outcome::Deferred => of_421(reply, v),
            v => Standing::Decided(v),
        }
    }

    /// The verdict on a recipient by the reply to its RCPT: a rule may make an end of a 4yz.
    fn verdict_on_recipient(&self, reply: &Reply) -> Verdict {
        let v = Verdict::of_refusal(reply).at(Stage::Recipient);
        match v.outcome {
            Outcome::Deferred if (self.rule_ends_recipient)(reply) => Verdict { outcome: Outcome::Bounced, ..v },
            _ => v,
        }
    }

    fn heard_of_data(&mut self, reply: Reply) -> Flown<()> {
        if reply.code == 354 {
            if !self.has_begun {
                // MAIL was not accepted, so only the receiver knows what content it expects: it gets none.
                return Err(FlightFault::OutOfStep { command: "DATA", reply, concerned: None });
            }
            self.to_send = Some(if self.accepted > 0 { Step::SendContent } else { Step::EndWithoutContent });
            self.awaited = Awaited::Verdict;
            return Ok(());
        }
        if self.ends_session(&reply) {
            return Err(FlightFault::Refused(reply));
        }
        if self.accepted > 0 && !self.is_misstep("DATA", &reply, false) {
            self.judge_accepted(&reply, Verdict::of_refusal(&reply));
        }
        self.finish(false);
        Ok(())
    }

    /// The reply to the content: the verdict of every recipient that was accepted. Whether it was taken.
    fn heard_of_content(&mut self, reply: Reply) -> Flown<bool> {
        let is_taken = reply.is_positive();
        if !self.has_begun && is_taken {
            return Err(FlightFault::OutOfStep { command: "BDAT", reply, concerned: Some(Extension::Chunking) });
        }
        if self.accepted == 0 {
            return Ok(is_taken);
        }
        if self.ends_session(&reply) {
            self.judge_accepted(&reply, Verdict::of_reply(&reply));
            return Err(FlightFault::Refused(reply));
        }
        if !matches!(reply.code / 100, 2 | 4 | 5) {
            // Only the receiver knows whether it waits for more content: commands could be taken for it, so the session ends.
            self.judge_accepted(&reply, Verdict::of_refusal(&reply));
            return Err(FlightFault::NoVerdict(reply));
        }
        let command = if self.terms.chunking { "BDAT" } else { "the end of data" };
        let about_command = self.terms.chunking || reply.code == 503;
        if about_command && self.is_misstep(command, &reply, self.terms.chunking) {
            // The receiver said that it has no content.
            self.standings.iter_mut().filter(|s| **s == Standing::Accepted).for_each(|s| *s = Standing::Unasked);
        } else {
            self.judge_accepted(&reply, Verdict::of_reply(&reply));
        }
        Ok(is_taken)
    }

    fn judge_accepted(&mut self, reply: &Reply, v: Verdict) {
        // What is said of the content for several recipients is about none of them alone.
        let v = if self.accepted > 1 { v.at(Stage::Transaction) } else { v };
        for s in self.standings.iter_mut().filter(|s| **s == Standing::Accepted) {
            *s = of_421(reply, v.clone());
        }
    }

    /// Whether a reply is about the order or the form of our own command, which is a fault of the
    /// session; notes the first of them, and what recipients were accepted for is not judged by it.
    fn is_misstep(&mut self, command: &'static str, reply: &Reply, has_parameters: bool) -> bool {
        let concerned = match command {
            "BDAT" => Some(Extension::Chunking),
            _ if has_parameters && reply.code != 503 => Some(Extension::Parameters),
            _ if self.terms.pipelining => Some(Extension::Pipelining),
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
            self.misstep = Some(FlightFault::OutOfStep { command, reply: reply.clone(), concerned });
        }
        true
    }

    /// The receiver closes the service channel, and by `smtp-421-means-mx-unavailable` so do we.
    fn ends_session(&self, reply: &Reply) -> bool {
        reply.code == 421 && self.terms.ends_at_421
    }
}

/// A verdict by a reply of 421 waits for what becomes of the session.
fn of_421(reply: &Reply, v: Verdict) -> Standing {
    if reply.code == 421 { Standing::Closing(v) } else { Standing::Decided(v) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ipc::message::{BodyType, Ret};
    use proptest::prelude::*;

    use super::*;
    use crate::shard::alone::envelope;

    const NO_RULE: &dyn Fn(&Reply) -> bool = &|_| false;

    fn reply(code: u16) -> Reply {
        Reply { code, lines: vec!["x".into()] }
    }

    fn terms(pipelining: bool, chunking: bool) -> Terms {
        let offered = Extensions { pipelining, chunking, dsn: true, eight_bit: true, ..Extensions::default() };
        Terms::of(&offered, &Lesson::default(), &DomainRules::default())
    }

    /// All that is said to a receiver that gives replies of these codes, one after the other, what comes of it, and whether the session was lost, for
    /// the replies had run out.
    fn fly(e: &ipc::message::Envelope, terms: Terms, codes: &[u16]) -> (Vec<String>, Ended, bool) {
        let archive = ipc::frame::archive(e);
        let e = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&archive).unwrap();
        let all: Vec<u16> = (0..e.recipients.len() as u16).collect();
        let content = [bytes::Bytes::from_static(b"Subject: x\r\n\r\n"), bytes::Bytes::from_static(b"x\r\n")];
        let mut flight = Flight::of(Outgoing::of((e, &e.sender), &all, &content), terms, NO_RULE);
        let (mut said, mut codes) = (Vec::new(), codes.iter());
        let is_lost = loop {
            match flight.step() {
                Step::Say(commands) => said.push(String::from_utf8(commands).unwrap()),
                Step::SayWithContent(commands) => said.push(String::from_utf8(commands).unwrap() + "content"),
                Step::SendContent => said.push("content".into()),
                Step::EndWithoutContent => said.push("no content".into()),
                Step::HearReply | Step::HearVerdict => match codes.next() {
                    Some(code) => flight.heard(reply(*code)),
                    None => break true,
                },
                Step::Over => break false,
            }
        };
        (said, flight.end(is_lost), is_lost)
    }

    fn by(e: &ipc::message::Envelope, terms: Terms, codes: &[u16]) -> (Vec<String>, Ended) {
        let (said, ended, _) = fly(e, terms, codes);
        (said, ended)
    }

    fn outcomes(ended: &Ended) -> Vec<Option<Outcome>> {
        let of = |s: &Standing| match s {
            Standing::Decided(v) => Some(v.outcome.clone()),
            Standing::Unasked | Standing::Accepted | Standing::Surplus | Standing::Closing(_) => None,
        };
        ended.standings.iter().map(of).collect()
    }

    use Outcome::{Bounced, Deferred, Delivered};

    #[test]
    fn commands_go_out_together_and_recipients_are_judged_one_by_one() {
        let e = envelope(&["a@r.test", "b@r.test", "c@r.test"]);
        let (said, ended) = by(&e, terms(true, true), &[250, 250, 550, 451, 250]);
        let commands = "MAIL FROM:<s@s.test>\r\nRCPT TO:<a@r.test>\r\nRCPT TO:<b@r.test>\r\nRCPT TO:<c@r.test>\r\n";
        assert_eq!(said, [format!("{commands}BDAT 17 LAST\r\ncontent")]);
        assert_eq!((outcomes(&ended), ended.fault), (vec![Some(Delivered), Some(Bounced), Some(Deferred)], None));
        let (said, ended) = by(&e, terms(true, false), &[250, 250, 550, 451, 354, 250]);
        assert_eq!(said, [format!("{commands}DATA\r\n"), "content".into()]);
        assert_eq!(outcomes(&ended), [Some(Delivered), Some(Bounced), Some(Deferred)]);
    }

    #[test]
    fn without_pipelining_nothing_is_said_before_its_reason() {
        let e = envelope(&["a@r.test", "b@r.test"]);
        let (said, ended) = by(&e, terms(false, false), &[250, 550, 551, 250]);
        let commands = ["MAIL FROM:<s@s.test>\r\n", "RCPT TO:<a@r.test>\r\n", "RCPT TO:<b@r.test>\r\n", "RSET\r\n"];
        assert_eq!((said, outcomes(&ended)), (commands.map(str::to_owned).to_vec(), vec![Some(Bounced); 2]));
        let (said, ended) = by(&e, terms(false, true), &[550]);
        assert_eq!((said.len(), outcomes(&ended)), (1, vec![Some(Bounced); 2]));
    }

    #[test]
    fn what_rules_leave_out_is_neither_said_in_mail_nor_in_rcpt() {
        let mut e = envelope(&["a@r.test"]);
        (e.ret, e.envid, e.body_type) = (Ret::Headers, "id".into(), BodyType::EightBit);
        e.recipients[0].notify = notify::NEVER;
        let mail = "MAIL FROM:<s@s.test> BODY=8BITMIME RET=HDRS ENVID=id\r\n";
        assert_eq!(by(&e, terms(false, true), &[250]).0, [mail, "RCPT TO:<a@r.test> NOTIFY=NEVER\r\n"]);
        let offered = Extensions { dsn: true, eight_bit: true, ..Extensions::default() };
        let rules = DomainRules { ignore_dsn: true, ignore_8bitmime: true, ..DomainRules::default() };
        let said = by(&e, Terms::of(&offered, &Lesson::default(), &rules), &[250]).0;
        assert_eq!(said, ["MAIL FROM:<s@s.test>\r\n", "RCPT TO:<a@r.test>\r\n"]);
    }

    #[test]
    fn a_421_counts_when_the_receiver_goes_on_all_the_same() {
        let e = envelope(&["a@r.test", "b@r.test"]);
        let (said, ended) = by(&e, terms(true, true), &[250, 421, 250, 250, 250]);
        assert_eq!(
            (said.last().unwrap().as_str(), outcomes(&ended)),
            ("RSET\r\n", vec![Some(Deferred), Some(Delivered)])
        );
        let (_, ended) = by(&e, terms(true, true), &[250, 421]);
        assert_eq!(ended.standings, [Standing::Unasked, Standing::Unasked]);
        assert_eq!(ended.fault, Some(FlightFault::Refused(reply(421))));
    }

    #[test]
    fn content_that_nobody_is_there_for_is_none() {
        let (said, ended) = by(&envelope(&["a@r.test"]), terms(true, false), &[250, 550, 354, 554, 250]);
        assert_eq!(said[1..], ["no content", "RSET\r\n"]);
        assert_eq!((outcomes(&ended), ended.fault), (vec![Some(Bounced)], None));
        // Only the receiver knows what it takes the content for where it refused MAIL.
        let (said, ended) = by(&envelope(&["a@r.test"]), terms(true, false), &[550, 503, 354]);
        assert_eq!(said.len(), 1);
        assert!(matches!(ended.fault, Some(FlightFault::OutOfStep { command: "DATA", .. })));
    }

    proptest! {
        /// Whatever a receiver replies: a transaction comes to its end within one reply to each command; no message is begun on top of
        /// another; content goes to nobody who was not accepted, but for that which went out before the replies; and nobody is taken for
        /// delivered but by a 2yz to content.
        #[test]
        fn a_flight_lands(
            recipients in 1usize..5,
            pipelining: bool,
            chunking: bool,
            ends_at_421: bool,
            codes in proptest::collection::vec(
                proptest::sample::select(vec![220u16, 250, 251, 354, 421, 450, 451, 452, 500, 501, 503, 550, 552, 554, 555]), 0..12),
        ) {
            let addresses: Vec<String> = (0..recipients).map(|n| format!("r{n}@r.test")).collect();
            let e = envelope(&addresses.iter().map(String::as_str).collect::<Vec<_>>());
            let terms = Terms { ends_at_421, ..terms(pipelining, chunking) };
            let (said, ended, is_lost) = fly(&e, terms, &codes);
            prop_assert_eq!(ended.standings.len(), recipients);
            let text = said.concat();
            let commands = ["MAIL", "RCPT", "DATA", "BDAT", "RSET"].map(|c| text.matches(c).count());
            prop_assert!(commands[0] == 1 && commands[1] <= recipients && commands[2..].iter().all(|n| *n <= 1));
            // In the order of the commands, as each has one reply.
            let begun = codes.first().is_some_and(|c| c / 100 == 2);
            let accepted = begun && codes.iter().skip(1).take(commands[1]).any(|c| c / 100 == 2);
            if !accepted {
                prop_assert!(!outcomes(&ended).contains(&Some(Delivered)));
                prop_assert!(!said.contains(&"content".to_owned()));
            }
            let content = 1 + recipients + usize::from(!chunking);
            let is_taken = codes.get(content).is_some_and(|c| c / 100 == 2) && (chunking || codes[content - 1] == 354);
            prop_assert!(is_taken || !outcomes(&ended).contains(&Some(Delivered)));
            if begun && !is_taken && !is_lost && ended.fault.is_none() {
                prop_assert_eq!(said.last().map(String::as_str), Some("RSET\r\n"));
            }
            if ended.fault.is_none() && !is_lost {
                prop_assert!(ended.standings.iter().all(|s| matches!(s, Standing::Decided(_) | Standing::Surplus)));
            }
        }
    }
}

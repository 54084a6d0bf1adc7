//! The one place that decides what a failure does to a recipient.

use std::borrow::Cow;

use ipc::rules::DomainRules;
use ipc::text;

use crate::smtp::reply::Reply;

/// Longest diagnostic of our own, bytes.
const DIAGNOSTIC_MAX: usize = 2000;

/// What a reply was an answer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stage {
    /// Opening the connection, the greeting, EHLO or STARTTLS, or the end of the session: it says
    /// nothing about a mailbox.
    Session,
    /// RCPT, or not known.
    #[default]
    Recipient,
    /// DATA or the content.
    Message,
    /// MAIL, or content that several recipients were accepted for: it says nothing about one mailbox.
    Transaction,
    /// Nothing: the recipient gets no mail from us, and no host was asked.
    Suppressed,
    /// Nothing: the mail must not go out from here, and no host was asked.
    Unasked,
}

/// What happened to a recipient in one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Accepted by the receiver.
    Delivered,
    /// Will never be accepted.
    Bounced,
    /// May be accepted later.
    Deferred,
}

/// Outcome and its words for one recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// What becomes of it.
    pub outcome: Outcome,
    /// RFC 3463 status.
    pub status: String,
    /// The remote reply, or our own diagnosis.
    pub diagnostic: String,
    /// The diagnostic is a remote reply.
    pub remote: bool,
    /// That reply's code; 0 where none was just read.
    pub code: u16,
    /// What it answered.
    pub stage: Stage,
}

/// Why recipients, or a path as a whole, could not be served, and by whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What it does to those that wait.
    pub verdict: Verdict,
    /// Host that was asked; empty for none.
    pub host: String,
    /// Its address; empty for none.
    pub ip: String,
    /// DNS could not answer.
    pub is_of_dns: bool,
}

impl Failure {
    /// By our own decision, before any host was asked.
    pub fn own(status: &str, diagnostic: impl Into<String>) -> Failure {
        Failure::at(Verdict::own(status, diagnostic), "", "")
    }

    /// At a host with this address.
    pub fn at(verdict: Verdict, host: &str, ip: &str) -> Failure {
        Failure { verdict, host: host.to_owned(), ip: ip.to_owned(), is_of_dns: false }
    }

    /// As it is recorded: `replace-smtp-421-service-response` leaves out what a receiver said behind 421.
    #[must_use]
    pub fn recorded(self, rules: &DomainRules) -> Failure {
        Failure { verdict: self.verdict.recorded(rules), ..self }
    }
}

impl Failure {
    /// By what the spool kept of the last attempt on a recipient: the beginning of the reply, or of our own diagnosis.
    pub fn recalled(text: &str) -> Failure {
        let code = text.get(..3).and_then(|c| c.parse().ok()).filter(|c| (200..600).contains(c));
        let given = status_of(text);
        let status = match text.as_bytes().first() {
            Some(b'5') if code.is_some() && given.is_empty() => "5.0.0",
            _ if given.is_empty() => "4.0.0",
            _ => given,
        };
        let verdict = Verdict {
            outcome: Outcome::Deferred,
            status: status.to_owned(),
            diagnostic: text.to_owned(),
            remote: code.is_some(),
            code: code.unwrap_or(0),
            stage: Stage::Recipient,
        };
        Failure::at(verdict, "", "")
    }
}

/// The enhanced status that a reply begins with; empty for none.
pub fn status_of(reply: &str) -> &str {
    let status = reply.get(4..).and_then(|r| r.split_whitespace().next()).unwrap_or_default();
    let is_status = status.starts_with(['2', '4', '5']) && status.bytes().all(|b| b == b'.' || b.is_ascii_digit());
    if is_status && status.split('.').count() == 3 { status } else { "" }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.verdict.remote {
            true if self.host.is_empty() => write!(f, "\"{}\"", self.verdict.diagnostic),
            true => write!(f, "\"{}\" from {} ({})", self.verdict.diagnostic, self.host, self.ip),
            false => f.write_str(&self.verdict.diagnostic),
        }
    }
}

impl Verdict {
    /// As it is recorded, see [`Failure::recorded`].
    #[must_use]
    pub fn recorded(self, rules: &DomainRules) -> Verdict {
        match rules.replace_smtp_421_service_response && self.remote && self.code == 421 {
            true => Verdict { diagnostic: "421 service unavailable".into(), ..self },
            false => self,
        }
    }

    /// By the receiver's reply to RCPT, or to the content.
    pub fn of_reply(reply: &Reply) -> Verdict {
        let outcome = match reply.code / 100 {
            2 => Outcome::Delivered,
            5 => Outcome::Bounced,
            _ => Outcome::Deferred,
        };
        let (status, diagnostic) = (reply.enhanced_status(), reply.text());
        Verdict { outcome, status, diagnostic, remote: true, code: reply.code, stage: Stage::Message }
    }

    /// The same of a refusal, as an answer to something else than the message.
    pub fn at(self, stage: Stage) -> Verdict {
        Verdict { stage, ..self }
    }

    /// By a reply that did not let the transaction go on: one that says neither yes nor no
    /// there (2yz to DATA, 3yz to RCPT) is a reason to come back, never a delivery.
    pub fn of_refusal(reply: &Reply) -> Verdict {
        let v = Verdict::of_reply(reply);
        if v.outcome == Outcome::Bounced || v.status.starts_with('4') {
            return v;
        }
        Verdict { outcome: Outcome::Deferred, status: "4.5.0".into(), ..v }
    }

    /// By a reply that refused no recipient, where a rule says what becomes of the mail: `5.0.0` or `4.0.0` if the
    /// reply has no status of that class itself.
    pub fn by_rule(reply: &Reply, outcome: Outcome) -> Verdict {
        let class = if outcome == Outcome::Bounced { '5' } else { '4' };
        let v = Verdict { outcome, ..Verdict::of_reply(reply).at(Stage::Session) };
        if v.status.starts_with(class) { v } else { Verdict { status: format!("{class}.0.0"), ..v } }
    }

    /// By our own decision; the status's class says what becomes of the recipient. The diagnostic may quote what others
    /// said (name servers, TLS, programs).
    pub fn own(status: &str, diagnostic: impl Into<String>) -> Verdict {
        let diagnostic = diagnostic.into();
        let outcome = if status.starts_with('5') { Outcome::Bounced } else { Outcome::Deferred };
        Verdict {
            outcome,
            status: status.to_owned(),
            diagnostic: match text::clean(&diagnostic, DIAGNOSTIC_MAX) {
                Cow::Borrowed(whole) if whole.len() == diagnostic.len() => diagnostic,
                cleaned => cleaned.into_owned(),
            },
            remote: false,
            code: 0,
            stage: Stage::Session,
        }
    }
}

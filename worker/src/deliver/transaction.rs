//! One mail transaction over a session: what the [`Flight`] says is sent, and what the receiver replies is told to it.

use std::io::IoSlice;

use bytes::Bytes;
use ipc::message::ArchivedEnvelope;
use ipc::rules::DomainRules;
use tokio::task::coop::consume_budget;

use super::session::ClientSession;
use super::session_fault::SessionFault;
use crate::classify::reply_patterns::Route;
use crate::holds::{Work, doing};
use crate::smtp::dot_stuffing::DotStuffed;
use crate::smtp::flight::{Ended, Flight, Outgoing, Standing, Step, Terms};
use crate::smtp::reply::Reply;

/// What came of a transaction.
#[derive(Debug)]
pub struct Sent {
    /// One a recipient, in the batch's order.
    pub standings: Vec<Standing>,
    /// Recipients that the receiver had accepted when it said that more are too many.
    pub too_many_after: Option<u16>,
    /// Why the session is over, if it is.
    pub fault: Option<SessionFault>,
}

/// Sends a message to some of its recipients, from `sender`.
pub async fn send(
    s: &mut ClientSession,
    (e, sender): (&ArchivedEnvelope, &str),
    recipients: &[u16],
    body: &[Bytes; 2],
    rules: &DomainRules,
) -> Sent {
    let terms = Terms::of(&s.extensions, &s.lesson, rules);
    let reply_rules = std::rc::Rc::clone(&s.reply_rules);
    let rule_ends_recipient = |reply: &Reply| reply_rules.route_of(reply) == Some(Route::BounceRcpt);
    let mut flight = Flight::of(Outgoing::of((e, sender), recipients, body), terms, &rule_ends_recipient);
    let lost = fly(&mut flight, s, body, rules).await.err();
    let Ended { standings, too_many_after, fault } = flight.end(lost.is_some());
    Sent { standings, too_many_after, fault: fault.map(|f| s.fault_of(f)).or(lost) }
}

/// Does what the flight says, to its end or that of the session.
///
/// # Errors
/// [`SessionFault`] when the session fails.
async fn fly(
    flight: &mut Flight<'_>,
    s: &mut ClientSession,
    body: &[Bytes; 2],
    rules: &DomainRules,
) -> Result<(), SessionFault> {
    let limit = rules.smtp_multiple_line_response_timeout;
    loop {
        match flight.step() {
            Step::Say(commands) => s.write(&mut [IoSlice::new(&commands)], limit).await?,
            Step::SayWithContent(commands) => {
                s.content_sent.set(true);
                let mut parts = [IoSlice::new(&commands), IoSlice::new(&body[0]), IoSlice::new(&body[1])];
                s.write(&mut parts, rules.data_send_timeout).await?;
            }
            Step::SendContent => send_content(s, body, rules).await?,
            Step::EndWithoutContent => send_content(s, &[Bytes::new(), Bytes::new()], rules).await?,
            Step::HearReply => flight.heard(s.reply(limit).await?),
            Step::HearVerdict => flight.heard(s.reply(rules.smtp_data_termination_timeout).await?),
            Step::Over => return Ok(()),
        }
    }
}

/// Content behind DATA, and its end.
///
/// # Errors
/// [`SessionFault`] when the session fails.
async fn send_content(s: &mut ClientSession, body: &[Bytes; 2], rules: &DomainRules) -> Result<(), SessionFault> {
    let mut stuffed = DotStuffed::of(body);
    s.content_sent.set(true);
    while let Some(piece) = doing(Work::Transmit, || stuffed.next()) {
        // The final dot in a segment of its own.
        let is_apart = stuffed.is_done() && s.behind_pix && rules.pix_bug_workaround;
        let (piece, last) = piece.split_at(piece.len() - usize::from(is_apart));
        for part in [piece, last] {
            let mut parts: Vec<IoSlice<'_>> = part.iter().map(|b| IoSlice::new(b)).collect();
            s.write(&mut parts, rules.data_send_timeout).await?;
        }
        consume_budget().await;
    }
    Ok(())
}

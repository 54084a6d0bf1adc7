//! `sluice show message`: everything that is known of one message.

use std::rc::Rc;

use ipc::control::{Rows, RowsOf};
use ipc::message::MessageId;
use ipc::operator::{Answer, MessageRow, Request};

use super::client::{Target, ask, unexpected};
use super::output::{json, print, table};
use crate::Failure;
use crate::state::Supervisor;

/// Rows of a message, of all shards that have a share of it.
pub async fn rows(sup: &Rc<Supervisor>, id: [u8; 16]) -> Answer {
    let of = |r| if let Rows::Message(m) = r { m } else { Vec::new() };
    Answer::Message(sup.ask_workers(RowsOf::Message(id)).await.into_iter().flat_map(of).collect())
}

/// The message as it would be sent, for somebody who may read it.
pub async fn content(sup: &Rc<Supervisor>, id: [u8; 16], may_read: bool) -> Answer {
    if !may_read {
        let who = "the user that the server runs as";
        return Answer::Failed(format!("mail is read by root and {who} only; without --content you may see the rest"));
    }
    for rows in sup.ask_workers(RowsOf::MessageContent(id)).await {
        match rows {
            Rows::MessageContent(Some(content)) => return Answer::MessageContent(content),
            Rows::Refused(e) => return Answer::Failed(e),
            _ => {}
        }
    }
    Answer::Failed(not_queued(id))
}

fn not_queued(id: [u8; 16]) -> String {
    format!("no message {} is queued; of one that has ended the accounting files tell", MessageId(id))
}

/// `show message`
///
/// # Errors
/// [`Failure`]; also when there is no such message.
pub fn show(target: &Target, id: MessageId, with_content: bool, as_json: bool) -> Result<(), Failure> {
    if with_content {
        let Answer::MessageContent(content) = ask(target, &Request::MessageContent(id.0))? else {
            return Err(unexpected());
        };
        return print(&content);
    }
    let Answer::Message(rows) = ask(target, &Request::Message(id.0))? else { return Err(unexpected()) };
    let Some(message) = joined(rows) else { return Err(Failure::Failed(not_queued(id.0))) };
    if as_json {
        return json(&message);
    }
    print(head(&message).as_bytes())?;
    let cells = message.recipients.iter().map(|r| {
        vec![
            r.recipient.clone(),
            r.state.clone(),
            r.queue.clone(),
            r.attempts.to_string(),
            r.next_attempt.clone(),
            r.expires.clone(),
            r.last_reply.clone(),
        ]
    });
    table(&["recipient", "state", "queue", "attempts", "next attempt", "expires", "last reply"], cells.collect())
}

/// Shares of a message are one, with the recipients of all.
fn joined(rows: Vec<MessageRow>) -> Option<MessageRow> {
    let mut rows = rows.into_iter();
    let mut all = rows.next()?;
    rows.for_each(|r| all.recipients.extend(r.recipients));
    // Of a recipient whose mail was rerouted there are two records; the old one says nothing that the new one does not.
    let is_elsewhere =
        |a: &str, rs: &[ipc::operator::MessageRecipientRow]| rs.iter().any(|r| r.recipient == a && r.state != "ended");
    let known = all.recipients.clone();
    all.recipients.retain(|r| r.state != "ended" || !is_elsewhere(&r.recipient, &known));
    Some(all)
}

fn head(m: &MessageRow) -> String {
    let sender = if m.sender.is_empty() { "<>" } else { &m.sender };
    let mut vmtas: Vec<&str> = m.recipients.iter().map(|r| r.vmta.as_str()).collect();
    vmtas.sort_unstable();
    vmtas.dedup();
    let from = [m.source.as_str(), &m.source_name, &m.source_ip].into_iter().filter(|t| !t.is_empty());
    let utf8 = if m.smtputf8 { ", smtputf8" } else { "" };
    let lines = [
        ("message", m.message.clone()),
        ("sender", sender.to_owned()),
        ("received", m.received.clone()),
        ("from", from.collect::<Vec<_>>().join(" ")),
        ("smtp user", m.smtp_user.clone()),
        ("size", format!("{} bytes, {}{utf8}", m.size, m.body)),
        ("vmta", vmtas.join(" ")),
        ("job", m.job.clone()),
        ("envelope id", m.envelope_id.clone()),
        ("ret", m.ret.clone()),
    ];
    let shown = lines.iter().filter(|(_, value)| !value.is_empty());
    let text: String = shown.map(|(name, value)| format!("{name:<12} {value}\n")).collect();
    text + "\n"
}

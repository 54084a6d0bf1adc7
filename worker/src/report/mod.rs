//! Mail that Sluice writes itself.

pub mod copy;
pub mod dsn;
pub mod notice;
pub mod recorded;

use ipc::message::{ArchivedEnvelope, BodyType, Envelope, MessageId, Recipient, Ret, SourceType, notify};
use ipc::snapshot::Global;

use crate::config::Config;
use crate::prepare::aliases;
use crate::prepare::vmta_name::canonical_name;

/// A short mail to operators.
#[derive(Debug)]
pub struct Notice {
    /// Addresses.
    pub to: Vec<String>,
    /// Its subject.
    pub subject: String,
    /// Its text, lines with CRLF.
    pub text: String,
}

/// The envelope of mail to one address, from nobody: no report comes back for it.
fn envelope(global: &Global, id: MessageId, now_ms: i64, to: &str, destination: String, body: &[u8]) -> Envelope {
    Envelope {
        id,
        received_unix_ms: now_ms,
        sender: String::new(),
        vmta: String::new(),
        job_id: String::new(),
        envid: String::new(),
        ret: Ret::Unset,
        body_type: if body.is_ascii() { BodyType::SevenBit } else { BodyType::EightBit },
        smtputf8: !to.is_ascii(),
        suppress_dsn: true,
        source_type: SourceType::Report,
        kept: 0,
        source_name: global.host_name.clone(),
        source_ip: String::new(),
        local_ip: String::new(),
        handoff: None,
        asked: None,
        moved: None,
        recipients: vec![Recipient {
            address: to.to_owned(),
            destination,
            notify: notify::NEVER,
            priority_given: 0,
            given_again: 0,
            orcpt: String::new(),
        }],
    }
}

/// The virtual MTA for mail about a message: by what is there, for that of the message may be why it failed.
fn vmta_of(config: &Config, e: &ArchivedEnvelope) -> String {
    canonical_name(config.snapshot.get(), &e.vmta).unwrap_or_default().to_owned()
}

/// Mail of our own goes where aliases lead, like all mail.
fn to_aliases(config: &Config, mut e: Envelope) -> Envelope {
    // More of them than a message may have recipients no single address has.
    if let Ok(to) = aliases::expand(config.snapshot.get(), e.recipients.clone()) {
        e.recipients = to;
        e.recipients.sort_by(|a, b| a.destination.cmp(&b.destination));
    }
    e
}

//! `bcc-upon-delivery`: a copy of what was delivered.

use std::rc::Rc;

use bytes::Bytes;
use ipc::message::{ArchivedEnvelope, ArchivedSourceType, BodyType, Envelope};

use super::recorded::Report;
use crate::clock;
use crate::shard::Shard;

/// The copy of a message that was delivered to some of its recipients, to `to`; none of a report or another copy.
pub fn of(shard: &Rc<Shard>, e: &ArchivedEnvelope, to: &str, content: &[Bytes; 2]) -> Vec<Report> {
    if e.source_type == ArchivedSourceType::Report {
        return Vec::new();
    }
    let config = shard.config();
    let Ok(destination) = ipc::message::destination_of(to) else { return Vec::new() };
    let id = shard.next_message_id();
    // What becomes of it is nobody's business.
    let copy = Envelope {
        vmta: super::vmta_of(&config, e),
        job_id: e.job_id.as_str().to_owned(),
        body_type: match e.body_type {
            ipc::message::ArchivedBodyType::SevenBit => BodyType::SevenBit,
            ipc::message::ArchivedBodyType::EightBit => BodyType::EightBit,
        },
        smtputf8: e.smtputf8 || !to.is_ascii(),
        ..super::envelope(&config.global, id, clock::now_ms(), to, destination, &content[0])
    };
    Report::each(shard, &super::to_aliases(&config, copy), content)
}

//! What tests of the spool store.

use bytes::Bytes;
use ipc::message::{BodyType, Envelope, HandoffId, MessageId, Recipient, Ret, SourceType};

/// An archived envelope of so many recipients, of a handoff if it has a sequence.
pub fn envelope(n: u16, handoff: Option<u64>) -> Bytes {
    let e = Envelope {
        id: MessageId([1; 16]),
        received_unix_ms: 5,
        sender: "s@x.test".into(),
        vmta: "v".into(),
        job_id: String::new(),
        envid: String::new(),
        ret: Ret::Unset,
        body_type: BodyType::SevenBit,
        smtputf8: false,
        suppress_dsn: false,
        source_type: SourceType::Smtp,
        kept: 0,
        source_name: String::new(),
        source_ip: String::new(),
        local_ip: String::new(),
        handoff: handoff.map(|sequence| HandoffId { origin: 9, incarnation: 0, sequence }),
        asked: None,
        moved: None,
        recipients: (0..n)
            .map(|i| Recipient {
                address: format!("r{i}@d.test"),
                destination: "d.test".into(),
                notify: 0,
                priority_given: 0,
                given_again: 0,
                orcpt: String::new(),
            })
            .collect(),
    };
    Bytes::copy_from_slice(&ipc::frame::archive(&e))
}

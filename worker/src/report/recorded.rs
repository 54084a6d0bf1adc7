//! Reports go into the spool in one group with the outcomes that they report: neither is there
//! without the other after a crash, and neither waits for room that only new mail has to find. So
//! a report is stored here first, whoever owns its destination, and passed on like any share that
//! its owner could not take.

use std::rc::Rc;

use bytes::Bytes;
use ipc::message::{Envelope, Recipient};
use rkyv::util::AlignedVec;
use spool::{NewMessage, Outcomes};

use crate::prepare::content::Content;
use crate::route::handoff::Share;
use crate::route::submit::owner_of_one;
use crate::shard::Shard;

/// A report that is to be stored.
pub struct Report {
    envelope: AlignedVec<16>,
    body: [Bytes; 2],
    /// By what it is passed on; `None` for this shard's.
    share: Option<Share>,
}

impl std::fmt::Debug for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Report").field("share", &self.share).finish_non_exhaustive()
    }
}

impl Report {
    /// Mail of the server's own: for each destination by itself, for each has an owner.
    pub fn each(shard: &Rc<Shard>, envelope: &Envelope, body: &[Bytes; 2]) -> Vec<Report> {
        let recipients = envelope.recipients.chunk_by(|a, b| a.destination == b.destination);
        let of =
            |some: &[Recipient]| Report::new(shard, Envelope { recipients: some.to_vec(), ..envelope.clone() }, body);
        recipients.map(of).collect()
    }

    fn new(shard: &Rc<Shard>, mut envelope: Envelope, body: &[Bytes; 2]) -> Report {
        let owner = Some(owner_of_one(shard, &mut envelope)).filter(|o| *o != shard.number);
        let share = owner.map(|o| shard.handoffs.new_share(o));
        if let Some(s) = &share {
            envelope.handoff = Some(s.id);
            envelope.asked = Some(s.owner);
        }
        Report { envelope: ipc::frame::archive(&envelope), body: body.clone(), share }
    }
}

/// Records what came of an attempt together with its reports, and queues them when they are on
/// disk. Nobody waits for that: what cannot be written yet stops delivery as a whole.
pub fn record(shard: &Rc<Shard>, mut outcomes: Outcomes, reports: Vec<Report>) {
    let stored = |r: &Report| NewMessage {
        envelope: Bytes::copy_from_slice(&r.envelope),
        body: r.body.clone(),
        in_progress: true,
    };
    outcomes.reports = reports.iter().map(stored).collect();
    let durable = shard.spool.conclude(outcomes);
    if reports.is_empty() {
        return;
    }
    let shard = Rc::clone(shard);
    crate::tasks::begin("reports", move || async move {
        for (r, durable) in reports.into_iter().zip(durable) {
            match (durable.await, r.share) {
                (Ok(Ok(key)), Some(share)) => shard.kept.keep(share, key, &r.envelope),
                (Ok(Ok(key)), None) => shard.enqueue(key, Rc::new(Content::new(r.envelope, r.body))).await,
                // The process ends with the outcome unwritten: the recipient is attempted again.
                _ => {}
            }
        }
    });
}

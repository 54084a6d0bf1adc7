//! A shard for unit tests, with a spool in a folder and the system's ports, of which nothing has begun to work.

use std::path::Path;
use std::rc::Rc;

use ipc::ledger::Ledger;
use ipc::message::{BodyType, Envelope, MessageId, Recipient, Ret, SourceType, destination_of};
use ipc::shard_map::ShardMap;
use ipc::snapshot::{MappedSnapshot, Snapshot, VirtualMta};

use super::{Parts, Shard};
use crate::config::Config;
use crate::ports::Ports;
use crate::schedule::message::Message;
use crate::schedule::{Entry, QueueId};

/// Shard 0 of `map` over an empty spool, with a configuration that has what `more` says beside the least.
pub(crate) async fn shard(folder: &Path, map: ShardMap, more: impl FnOnce(&mut Snapshot)) -> Rc<Shard> {
    let mut snapshot = Snapshot::default();
    snapshot.vmtas.push(VirtualMta { name: "{default}".into(), ..Default::default() });
    snapshot.vmta_by_name.insert("{default}".into(), 0);
    snapshot.global.host_name = "mta.test".into();
    more(&mut snapshot);
    let config = Config::of(MappedSnapshot::map(&snapshot.seal().unwrap()).unwrap()).unwrap();
    let options = spool::Options { path: folder.into(), shard: 0, sync: false, min_free_bytes: 0, boot: String::new() };
    let rows = crate::account::file::RowFiles::new(&[], 0);
    let (spool, opened) = spool::Spool::open(options, Box::new(rows), Box::new(|_| {})).unwrap();
    opened.await.unwrap().unwrap();
    let parts = Parts {
        number: 0,
        config,
        spool,
        ledger: Ledger::create().unwrap().0,
        map,
        ports: Ports::of_the_system(0, folder.into()),
        accounting: Default::default(),
        suppression: None,
        delivers_only: false,
    };
    Shard::new(parts).unwrap()
}

/// A message to some recipients, as it is stored.
pub(crate) fn envelope(recipients: &[&str]) -> Envelope {
    let to = |address: &&str| Recipient {
        address: (*address).to_owned(),
        destination: destination_of(address).unwrap(),
        notify: 0,
        priority_given: 0,
        given_again: 0,
        orcpt: String::new(),
    };
    let text = String::new;
    Envelope {
        id: MessageId([1; 16]),
        received_unix_ms: crate::clock::now_ms(),
        sender: "s@s.test".into(),
        vmta: text(),
        job_id: text(),
        envid: text(),
        ret: Ret::Unset,
        body_type: BodyType::SevenBit,
        smtputf8: false,
        suppress_dsn: false,
        source_type: SourceType::Smtp,
        kept: 0,
        source_name: text(),
        source_ip: text(),
        local_ip: text(),
        handoff: None,
        asked: None,
        moved: None,
        recipients: recipients.iter().map(to).collect(),
    }
}

/// A message to some recipients of one domain, in its queue.
pub(crate) async fn queued(shard: &Rc<Shard>, recipients: &[&str]) -> QueueId {
    let e = envelope(recipients);
    let (destination, count) = (e.recipients[0].destination.clone(), e.recipients.len() as u16);
    let stored = shard.spool.store(spool::NewMessage {
        envelope: ipc::frame::archive(&e).to_vec().into(),
        body: ["Subject: x\r\n\r\n".into(), "x\r\n".into()],
        in_progress: false,
    });
    shard.spool.flush();
    let key = stored.await.unwrap().unwrap();
    let received_ms = e.received_unix_ms;
    let m = Message {
        key,
        received_ms,
        body_len: 20,
        left: count,
        notify_delay: false,
        alone: false,
        windows_end_s: 0,
        job: 0,
        content: None,
    };
    shard.decide(|e, now| {
        let slot = e.scheduler_mut().add("", m);
        let id = e.queue_for(&destination, "", now);
        e.scheduler_mut().enqueue(id, Entry { slot, start: 0, end: count, priority: 50, attempts: 0 }, 0, received_ms);
        id
    })
}

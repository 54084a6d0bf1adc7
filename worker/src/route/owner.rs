//! The owner's side of the mesh: takes handoffs, makes them durable, acknowledges; and takes
//! mail that `sluice inject` submits.

use std::cell::RefCell;
use std::pin::pin;
use std::rc::Rc;

use bytes::BytesMut;
use ipc::frame::{Frame, FrameError, Header};
use ipc::limits::RECIPIENTS_PER_MESSAGE_MAX;
use ipc::mesh::{self, Inject, Injected, Refusal, Speaker};
use ipc::message::{ArchivedEnvelope, MessageId, SourceType};
use ipc::stream::FrameReader;
use spool::SpoolError;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::accept::receiving::{MemoryShare, no_room};
use crate::accept::source::kept_back;
use crate::ports::{MeshListener, MeshStream};
use crate::prepare::message::{Submitter, prepare};
use crate::prepare::vmta_name::canonical_name;
use crate::route::submit::{store_archived, submit};
use crate::shard::Shard;
use crate::smtp::command::{Mail, Rcpt};
use crate::tasks;

/// Answers that may wait to be written to one origin.
const ANSWERS_MAX: usize = 2 * ipc::limits::HANDOFFS_IN_FLIGHT_MAX;

/// Pause before the socket is made once more.
const LISTEN_AGAIN: std::time::Duration = std::time::Duration::from_secs(1);

/// Serves the shard's socket: `first`, and after a panic another one in its place.
pub async fn serve(shard: Rc<Shard>, first: Rc<RefCell<Option<Box<dyn MeshListener>>>>) {
    let mut listener = loop {
        match first.take().map_or_else(|| shard.ports.mesh.listen(), Ok) {
            Ok(listener) => break listener,
            Err(e) => tracing::error!(error = %e, "the mesh socket cannot be made again; tried once more"),
        }
        tokio::time::sleep(LISTEN_AGAIN).await;
    };
    loop {
        match listener.accept().await {
            Ok(io) => {
                let shard = Rc::clone(&shard);
                tasks::begin("mesh connection", move || async move {
                    if let Err(e) = serve_one(&shard, io).await {
                        tracing::warn!(error = %e, "mesh peer sent a bad frame; connection closed");
                    }
                });
            }
            Err(e) => {
                tracing::warn!(error = %e, "mesh socket");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_one(shard: &Rc<Shard>, io: MeshStream) -> Result<(), FrameError> {
    let MeshStream { mut read, write } = io;
    let mut frames = FrameReader::default();
    let Some(first) = frames.next(&mut read).await? else { return Ok(()) };
    if first.header.kind != mesh::HELLO {
        return Err(FrameError::Kind(first.header.kind));
    }
    let hello: mesh::Hello = ipc::frame::unarchive(mesh::HELLO, &first.archive)?;
    let replaced = match hello.from {
        Speaker::Origin(origin) => match shard.inbound.connected(origin) {
            Some(replaced) => replaced,
            None => return Ok(()),
        },
        Speaker::Claimant(_) | Speaker::Client => Rc::default(),
    };
    let (answers, queue) = mpsc::channel(ANSWERS_MAX);
    tasks::begin("mesh answers", move || write_answers(write, queue));
    let mut over = pin!(async {
        tokio::select! {
            biased;
            // The task that writes answers has ended, so the origin would never hear of what is read here. The origin connects anew
            // when this connection ends.
            () = answers.closed() => {}
            () = replaced.wait() => {}
        }
    });
    loop {
        let next = tokio::select! {
            biased;
            () = &mut over => return Ok(()),
            next = frames.next(&mut read) => next?,
        };
        let Some(f) = next else { return Ok(()) };
        match (f.header.kind, hello.from) {
            (mesh::HANDOFF | mesh::HANDOFF_KEPT, Speaker::Origin(origin)) => take(shard, origin.shard, f, &answers),
            (mesh::OPEN, Speaker::Origin(origin)) => {
                let open: mesh::Open = ipc::frame::unarchive(mesh::OPEN, &f.archive)?;
                shard.spool.open_handoffs(origin.shard, open.from);
            }
            (mesh::CLAIM, Speaker::Claimant(claimant)) => {
                let claim: mesh::Claim = ipc::frame::unarchive(mesh::CLAIM, &f.archive)?;
                let (shard, answers) = (Rc::clone(shard), answers.clone());
                tasks::begin("release", move || crate::route::paths::release(shard, claimant, claim.epoch, answers));
            }
            (mesh::ROLLED_UP, Speaker::Origin(_)) => {
                let news: mesh::RolledUp = ipc::frame::unarchive(mesh::ROLLED_UP, &f.archive)?;
                shard.rollups.learn(&news.domain, &news.queue);
            }
            // The loop that looks at timers looks in the ledger which place it is.
            (mesh::PLACE_FREE, Speaker::Origin(_)) => shard.timers.notify_one(),
            (mesh::INJECT, Speaker::Client) => {
                let answer = inject(shard, f).await?;
                let archive = ipc::frame::archive(&answer);
                let mut bytes = Header::new(mesh::INJECTED, archive.len(), 0).encode().to_vec();
                bytes.extend_from_slice(&archive);
                let _ = answers.send(bytes).await;
            }
            (k, _) => return Err(FrameError::Kind(k)),
        }
    }
}

async fn write_answers(mut write: Box<dyn AsyncWrite + Unpin>, mut queue: mpsc::Receiver<Vec<u8>>) {
    let mut all = Vec::new();
    while let Some(first) = queue.recv().await {
        all.clear();
        all.extend_from_slice(&first);
        while let Ok(more) = queue.try_recv() {
            all.extend_from_slice(&more);
        }
        if write.write_all(&all).await.is_err() {
            return;
        }
    }
}

fn answer(offer: u64, refused: Option<Refusal>) -> Vec<u8> {
    let archive = refused.map(|w| ipc::frame::archive(&w)).unwrap_or_default();
    let mut h = Header::new(if refused.is_some() { mesh::REFUSED } else { mesh::ACCEPTED }, archive.len(), 0);
    h.a = offer;
    let mut bytes = h.encode().to_vec();
    bytes.extend_from_slice(&archive);
    bytes
}

/// Takes a share, unless it has it already, and answers.
fn take(shard: &Rc<Shard>, origin: u8, f: Frame, answers: &mpsc::Sender<Vec<u8>>) {
    let (shard, answers, offer) = (Rc::clone(shard), answers.clone(), f.header.a);
    tasks::begin("handoff", move || async move {
        let refused = store_once(&shard, origin, f).await.err();
        let _ = answers.send(answer(offer, refused)).await;
    });
}

async fn store_once(shard: &Rc<Shard>, origin: u8, f: Frame) -> Result<(), Refusal> {
    let valid = rkyv::access::<ArchivedEnvelope, rkyv::rancor::Error>(&f.archive).map_err(|e| {
        tracing::error!(origin, error = %e, "a handoff does not validate");
        Refusal::Invalid
    })?;
    let recipients = valid.recipients.len();
    if recipients > RECIPIENTS_PER_MESSAGE_MAX {
        tracing::error!(origin, recipients, limit = RECIPIENTS_PER_MESSAGE_MAX, "a handoff has too many recipients");
        return Err(Refusal::Invalid);
    }
    let id = valid.handoff_id().filter(|id| id.origin == origin).ok_or(Refusal::Invalid)?;
    let Some(_in_progress) = shard.inbound.begin(id) else { return Err(Refusal::InProgress) };
    // A share that its origin does not have on disk is offered for the first time.
    let kept = f.header.kind == mesh::HANDOFF_KEPT;
    let message = MessageId(valid.id.0);
    tracing::debug!(shard = shard.number, origin, incarnation = id.incarnation, sequence = id.sequence, kept, %message, "offered");
    if kept && shard.spool.has_seen(id).await.map_err(|_| Refusal::InProgress)? {
        return Ok(());
    }
    if shard.is_retired() {
        return Err(Refusal::Retired);
    }
    if shard.stopping() {
        return Err(Refusal::Stopping);
    }
    if shard.check_room(recipients).is_err() && !kept {
        return Err(Refusal::Full);
    }
    match store_archived(shard, f.archive, [f.raw, bytes::Bytes::new()], kept).await {
        Ok(_) => Ok(()),
        Err(SpoolError::Full(_)) => Err(Refusal::Full),
        // The share may be on disk in spite of the error.
        Err(SpoolError::Sync(_) | SpoolError::Closed) => Err(Refusal::InProgress),
        Err(_) => Err(Refusal::Spool),
    }
}

/// An address without the angle brackets that some write around it.
fn bare(address: &str) -> &str {
    address.strip_prefix('<').and_then(|a| a.strip_suffix('>')).unwrap_or(address)
}

async fn inject(shard: &Rc<Shard>, f: Frame) -> Result<Injected, FrameError> {
    let request: Inject = ipc::frame::unarchive(mesh::INJECT, &f.archive)?;
    let config = shard.config();
    let rules = config.snapshot.get().source_rules(None, &["{api}"]);
    let from = Submitter {
        source_type: SourceType::Api,
        name: "sluice-inject".into(),
        user: String::new(),
        ip: None,
        local: None,
        protocol: "local",
        vmta: match (request.vmta.as_str(), canonical_name(config.snapshot.get(), &request.vmta)) {
            ("", _) => String::new(),
            (_, Some(name)) => name.to_owned(),
            (name, None) => return Ok(Injected::Refused(format!("{name} is neither a virtual MTA nor a pool here"))),
        },
        results: String::new(),
    };
    if request.recipients.len() > RECIPIENTS_PER_MESSAGE_MAX {
        let n = request.recipients.len();
        return Ok(Injected::Refused(format!(
            "expected at most {RECIPIENTS_PER_MESSAGE_MAX} recipients of one message, found {n}"
        )));
    }
    let mut recipients = Vec::new();
    for address in &request.recipients {
        match crate::smtp::command::rcpt(&format!("<{}>", bare(address)), true) {
            Ok(r) if let Some(refusal) = kept_back(&config.global, &**shard, &r.address) => {
                return Ok(Injected::Refused(refusal.2));
            }
            Ok(r) => match ipc::message::destination_of(&r.address) {
                Ok(d) => recipients.push((Rcpt { ..r }, d)),
                Err(e) => return Ok(Injected::Refused(e)),
            },
            Err(r) => return Ok(Injected::Refused(r.2)),
        }
    }
    let utf8 = !request.sender.is_ascii() || request.recipients.iter().any(|r| !r.is_ascii());
    let mail = match crate::smtp::command::mail(
        &format!("<{}>{}", bare(&request.sender), if utf8 { " SMTPUTF8" } else { "" }),
        true,
    ) {
        Ok(m) => Mail { ..m },
        Err(r) => return Ok(Injected::Refused(r.2)),
    };
    let share = MemoryShare::of(shard, None);
    if !share.hold(f.raw.len() as u64) {
        return Ok(Injected::Refused(no_room().2));
    }
    let id = shard.next_message_id();
    let prepared =
        prepare(&config, &rules, &from, id, crate::clock::now_ms(), mail, recipients, BytesMut::from(&f.raw[..])).await;
    Ok(match prepared {
        Err(r) => Injected::Refused(r.2),
        Ok((envelope, body)) => match submit(shard, envelope, body).await {
            Ok(()) => Injected::Queued(id.to_string()),
            Err(e) => Injected::Refused(e.to_string()),
        },
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "a panic of what tests begin is a failure of theirs")]

    use ipc::message::HandoffId;
    use ipc::shard_map::ShardMap;
    use tokio::io::DuplexStream;
    use tokio::task::{LocalSet, spawn_local};

    use super::*;
    use crate::deliver::shared_limits::wake_first;

    /// A connection of shard 1 to `shard`, which it opened then.
    async fn connected(shard: &Rc<Shard>, opened_ns: i64) -> (DuplexStream, FrameReader) {
        said_hello(shard, Speaker::Origin(mesh::Origin { shard: 1, opened_ns })).await
    }

    async fn said_hello(shard: &Rc<Shard>, from: Speaker) -> (DuplexStream, FrameReader) {
        let (mut theirs, ours) = tokio::io::duplex(1 << 16);
        let (read, write) = tokio::io::split(ours);
        let shard = Rc::clone(shard);
        spawn_local(
            async move { serve_one(&shard, MeshStream { read: Box::new(read), write: Box::new(write) }).await },
        );
        let hello = ipc::frame::archive(&mesh::Hello { from, epoch: 1 });
        theirs.write_all(&Header::new(mesh::HELLO, hello.len(), 0).encode()).await.unwrap();
        theirs.write_all(&hello).await.unwrap();
        tokio::task::yield_now().await;
        (theirs, FrameReader::default())
    }

    /// A share, offered as one that its origin has on disk or not.
    fn offer(kind: u8) -> Vec<u8> {
        let mut e = crate::shard::alone::envelope(&["r@d.test"]);
        e.handoff = Some(HandoffId { origin: 1, incarnation: 2, sequence: 3 });
        let (archive, body) = (ipc::frame::archive(&e), b"Subject: x\r\n\r\nx\r\n");
        let header = Header::new(kind, archive.len(), body.len()).encode();
        [&header[..], &archive, body].concat()
    }

    #[tokio::test]
    async fn what_an_origin_gave_up_is_not_read_behind_what_it_offers_again() {
        let folder = tempfile::tempdir().unwrap();
        let all = async {
            let shard = crate::shard::alone::shard(folder.path(), ShardMap::first(2, Vec::new()), |_| ()).await;
            let (mut before, mut answers_before) = connected(&shard, 1).await;
            let (mut now, mut answers) = connected(&shard, 2).await;
            now.write_all(&offer(mesh::HANDOFF_KEPT)).await.unwrap();
            assert_eq!(answers.next(&mut now).await.unwrap().unwrap().header.kind, mesh::ACCEPTED);
            // It may be closed by now.
            let _ = before.write_all(&offer(mesh::HANDOFF)).await;
            assert!(answers_before.next(&mut before).await.unwrap().is_none(), "nothing is answered there");
            assert_eq!(shard.scheduler().recipients, 1);
        };
        LocalSet::new().run_until(all).await;
    }

    #[tokio::test]
    async fn a_connection_that_is_heard_of_behind_a_later_one_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let all = async {
            let shard = crate::shard::alone::shard(folder.path(), ShardMap::first(2, Vec::new()), |_| ()).await;
            let (mut now, mut answers) = connected(&shard, 2).await;
            let (mut before, mut answers_before) = connected(&shard, 1).await;
            // It may be closed by now.
            let _ = before.write_all(&offer(mesh::HANDOFF)).await;
            assert!(answers_before.next(&mut before).await.unwrap().is_none(), "nothing is answered there");
            now.write_all(&offer(mesh::HANDOFF_KEPT)).await.unwrap();
            assert_eq!(answers.next(&mut now).await.unwrap().unwrap().header.kind, mesh::ACCEPTED);
            assert_eq!(shard.scheduler().recipients, 1);
        };
        LocalSet::new().run_until(all).await;
    }

    #[tokio::test]
    async fn a_shard_that_asks_what_it_owns_goes_on_offering() {
        let folder = tempfile::tempdir().unwrap();
        let all = async {
            let shard = crate::shard::alone::shard(folder.path(), ShardMap::first(2, Vec::new()), |_| ()).await;
            let (mut offering, mut answers) = connected(&shard, 1).await;
            let (_asking, _) = said_hello(&shard, Speaker::Claimant(1)).await;
            offering.write_all(&offer(mesh::HANDOFF)).await.unwrap();
            assert_eq!(answers.next(&mut offering).await.unwrap().unwrap().header.kind, mesh::ACCEPTED);
        };
        LocalSet::new().run_until(all).await;
    }

    #[tokio::test]
    async fn a_place_that_another_shard_asked_for_is_told_to_it_once() {
        let folder = tempfile::tempdir().unwrap();
        let shard = crate::shard::alone::shard(folder.path(), ShardMap::first(2, Vec::new()), |_| ()).await;
        let link = shard.handoffs.link(1);
        let ask = ipc::ledger::requests::Ask { key: 7, priority: 50, shard: 1, path: 3, has: 0 };
        assert!(shard.ledger.request(&ask, crate::clock::now_ms()));
        link.connected.set(true);
        wake_first(&shard, 7, None);
        wake_first(&shard, 7, None);
        let told: Vec<u8> = link.queue.borrow().iter().map(|f| Header::decode(&f.header).unwrap().kind).collect();
        assert_eq!(told, [mesh::PLACE_FREE]);
        assert_eq!(shard.ledger.woken(1, crate::clock::now_ms()), [3]);
    }

    #[tokio::test]
    async fn a_shard_that_is_told_of_a_place_looks_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let all = async {
            let shard = crate::shard::alone::shard(folder.path(), ShardMap::first(2, Vec::new()), |_| ()).await;
            let (mut other, _) = connected(&shard, 1).await;
            other.write_all(&Header::new(mesh::PLACE_FREE, 0, 0).encode()).await.unwrap();
            shard.timers.notified().await;
        };
        LocalSet::new().run_until(all).await;
    }
}

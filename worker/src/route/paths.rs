//! What paths carry from shard to shard: when a destination moves, its new owner claims it and opens no connection before the
//! owner of the epoch before has closed its own. What they carry over a restart lies in the spool, see
//! [`crate::engine::inherited`].

use std::io::ErrorKind;
use std::rc::Rc;
use std::time::Duration;

use ipc::frame::{FrameError, Header, archive, unarchive};
use ipc::mesh::{self, Claim, PathState, Release};
use ipc::stream::FrameReader;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::ports::MeshStream;
use crate::shard::Shard;
use crate::tasks;

/// Paths in one frame of a release.
const PATHS_PER_FRAME: usize = 1000;
/// Connections that are in the way of a claimant are looked for this often at most: that goes over all paths.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// They are looked for again after this time even where no connection has ended.
const LOOK_WITHIN: Duration = Duration::from_secs(1);
/// Pause before an owner whose connection broke is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// Takes over the values that the spool had kept.
pub fn restore(shard: &Rc<Shard>, values: Vec<(String, Vec<u8>)>) {
    for (key, value) in values.into_iter().filter(|(k, _)| k.starts_with("path/")) {
        match ipc::stored::read::<PathState>(&value) {
            Ok(state) => shard.decide(|e, now| e.inherit(state, true, now)),
            Err(e) => tracing::warn!(name = key, error = %e, "a path's state in the spool cannot be read; forgotten"),
        }
    }
}

/// Claims, under the map in force, what other shards delivered before.
pub fn claim_all(shard: &Rc<Shard>) {
    let before = shard.decide(|e, now| e.begins_epoch(now));
    let epoch = shard.map.borrow().epoch;
    for owner in before {
        tasks::keep(shard, "claim", move |shard| claim(shard, owner, epoch));
    }
}

async fn claim(shard: Rc<Shard>, owner: u8, epoch: u64) {
    while shard.map.borrow().epoch == epoch {
        match shard.ports.mesh.connect(owner).await {
            Ok(io) => match ask(&shard, owner, epoch, io).await {
                Ok(()) => return,
                Err(e)
                    if crate::log_limit::allows_line("a claim was not answered; asked again", &owner.to_string()) =>
                {
                    tracing::warn!(owner, error = %e, "a claim was not answered; asked again");
                }
                Err(_) => {}
            },
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                return shard.decide(|e, now| e.owner_is_gone(owner, now));
            }
            // It may be there, with connections: no descriptor is left for the question, or too many ask at once.
            Err(e) => {
                if crate::log_limit::allows_line("a shard could not be asked for what it owned", &owner.to_string()) {
                    tracing::warn!(owner, error = %e, "a shard could not be asked for what it owned; asked again");
                }
            }
        }
        sleep(ASK_AGAIN).await;
    }
}

async fn ask(shard: &Rc<Shard>, owner: u8, epoch: u64, io: MeshStream) -> Result<(), FrameError> {
    let MeshStream { mut read, mut write } = io;
    let hello = archive(&mesh::Hello { from: mesh::Speaker::Claimant(shard.number), epoch });
    let claim = archive(&Claim { epoch });
    for (kind, body) in [(mesh::HELLO, hello), (mesh::CLAIM, claim)] {
        write.write_all(&Header::new(kind, body.len(), 0).encode()).await?;
        write.write_all(&body).await?;
    }
    let mut frames = FrameReader::default();
    while let Some(f) = frames.next(&mut read).await? {
        if f.header.kind != mesh::RELEASE {
            return Err(FrameError::Kind(f.header.kind));
        }
        let release: Release = unarchive(mesh::RELEASE, &f.archive)?;
        if shard.map.borrow().epoch != epoch {
            return Ok(());
        }
        let done = release.busy.as_ref().is_some_and(Vec::is_empty);
        shard.decide(|e, now| {
            release.paths.into_iter().for_each(|p| e.inherit(p, false, now));
            release.busy.into_iter().for_each(|busy| e.released(owner, busy, now));
        });
        if done {
            return Ok(());
        }
    }
    Err(FrameError::Truncated)
}

/// Answers a claim: what is free at once, the rest as its connections end.
pub async fn release(shard: Rc<Shard>, claimant: u8, epoch: u64, answers: mpsc::Sender<Vec<u8>>) {
    let mut told: Option<usize> = None;
    loop {
        let changes = shard.ended_or_moved.notified();
        if shard.map.borrow().epoch >= epoch {
            // What was told changes with connections that end.
            let busy = shard.engine().busy_for(claimant).count();
            if told != Some(busy) {
                told = Some(busy);
                let (busy, paths) = {
                    let e = shard.engine();
                    let busy: Vec<String> = e.busy_for(claimant).map(str::to_owned).collect();
                    (busy, e.to_release(claimant, shard.now()))
                };
                for chunk in paths.chunks(PATHS_PER_FRAME) {
                    if !say(&answers, &Release { busy: None, paths: chunk.to_vec() }).await {
                        return;
                    }
                }
                let done = busy.is_empty();
                if !say(&answers, &Release { busy: Some(busy), paths: Vec::new() }).await || done {
                    return;
                }
            }
        }
        sleep(LOOK_EVERY).await;
        // It looks again in either case.
        let _ = timeout(LOOK_WITHIN, changes).await;
    }
}

async fn say(answers: &mpsc::Sender<Vec<u8>>, release: &Release) -> bool {
    let body = archive(release);
    let mut bytes = Header::new(mesh::RELEASE, body.len(), 0).encode().to_vec();
    bytes.extend_from_slice(&body);
    answers.send(bytes).await.is_ok()
}

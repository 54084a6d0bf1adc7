//! Connections to the other shards, over which shares are offered to them.

use std::io::IoSlice;
use std::rc::Rc;
use std::time::Duration;

use ipc::frame::Header;
use ipc::mesh::{self, Refusal};
use ipc::stream::FrameReader;
use spool::SpoolError;
use tokio::io::AsyncWriteExt;
use tokio::time::sleep;

use super::handoff::{Answer, Link, OutgoingFrame, Share};
use crate::ports::MeshStream;
use crate::shard::Shard;
use crate::tasks::{self, AtEnd};

/// Pause before a disk that did not take that shares are gone is asked again.
const CLOSED_AGAIN_AFTER: Duration = Duration::from_millis(250);

/// Closes shares that their owners have taken, once this shard's disk has it that they are not here any more. If an owner forgot them earlier,
/// a process of this shard that found them at its start would offer them again, and the owner would take them twice.
pub async fn close(shard: &Shard, taken: Vec<Share>) {
    while !taken.is_empty() && !ipc::planted!("share-closed-before-it-is-gone") {
        match shard.spool.barrier().await {
            Ok(()) | Err(SpoolError::Closed) => return,
            Err(_) => sleep(CLOSED_AGAIN_AFTER).await,
        }
    }
}

/// Whether a shard is there, or will be back. That nobody listens for it says nothing of that: what it was offered last may be on its
/// disk all the same.
pub fn is_there(shard: &Shard, other: u8) -> bool {
    shard.map.borrow().has(other) || shard.handoffs.is_connected(other)
}

/// Connects to every other shard that is there, and to those of the map before, now and whenever it changes.
pub fn keep_links(shard: &Rc<Shard>) {
    let map = Rc::clone(&shard.map.borrow());
    let all = map.shards.iter().chain(&map.previous).chain(&map.without_part).copied();
    for owner in all.filter(|s| *s != shard.number) {
        let link = shard.handoffs.link(owner);
        if !link.started.replace(true) {
            tasks::keep(shard, "mesh link", move |shard| run_link(shard, owner, Rc::clone(&link)));
        }
    }
}

async fn run_link(shard: Rc<Shard>, owner: u8, link: Rc<Link>) {
    loop {
        let known = {
            let map = shard.map.borrow();
            map.has(owner) || map.previous.contains(&owner)
        };
        if !known {
            link.started.set(false);
            return;
        }
        if let Ok(io) = shard.ports.mesh.connect(owner).await {
            link.connected.set(true);
            let ended = AtEnd(|| link.ended());
            shard.handoffs.tell_open(owner, &link);
            shard.kept.wake.notify_one();
            shard.foreign.notify_one();
            if let Err(e) = speak(&shard, &link, io).await
                && crate::log_limit::allows_line("mesh connection ended", &owner.to_string())
            {
                tracing::info!(owner, error = %e, "mesh connection ended");
            }
            drop(ended);
        }
        sleep(Duration::from_millis(100)).await;
    }
}

async fn speak(shard: &Rc<Shard>, link: &Rc<Link>, io: MeshStream) -> Result<(), ipc::frame::FrameError> {
    let MeshStream { mut read, mut write } = io;
    let from = mesh::Speaker::Origin(mesh::Origin { shard: shard.number, opened_ns: crate::clock::uptime_ns() });
    let hello = ipc::frame::archive(&mesh::Hello { from, epoch: shard.map.borrow().epoch });
    write.write_all(&Header::new(mesh::HELLO, hello.len(), 0).encode()).await?;
    write.write_all(&hello).await?;
    let answers = async {
        let mut frames = FrameReader::default();
        while let Some(f) = frames.next(&mut read).await? {
            match f.header.kind {
                mesh::ACCEPTED | mesh::REFUSED => {
                    let answer = match f.header.kind {
                        mesh::ACCEPTED => Answer::Taken,
                        _ => match ipc::frame::unarchive::<Refusal>(mesh::REFUSED, &f.archive)? {
                            Refusal::Full => Answer::Full,
                            Refusal::InProgress => Answer::Unknown,
                            Refusal::Retired => Answer::Never,
                            Refusal::Stopping | Refusal::Spool | Refusal::Invalid => Answer::Refused,
                        },
                    };
                    if let Some(tx) = link.waiting.borrow_mut().remove(&f.header.a) {
                        // The task that offered the share may have stopped waiting, and kept it here.
                        let _ = tx.send(answer);
                    }
                }
                k => return Err(ipc::frame::FrameError::Kind(k)),
            }
        }
        Ok(())
    };
    let frames = async {
        loop {
            let batch: Vec<OutgoingFrame> = {
                let mut q = link.queue.borrow_mut();
                let n = q.len().min(64);
                q.drain(..n).collect()
            };
            if batch.is_empty() {
                link.wake.notified().await;
                continue;
            }
            let bytes: usize = batch.iter().map(OutgoingFrame::len).sum();
            let parts = batch.iter().flat_map(|f| [&f.header[..], &f.archive, &f.body[0], &f.body[1]]);
            let mut slices: Vec<IoSlice<'_>> = parts.filter(|p| !p.is_empty()).map(IoSlice::new).collect();
            let mut left = &mut slices[..];
            while !left.is_empty() {
                let n = write.write_vectored(left).await?;
                if n == 0 {
                    return Err(ipc::frame::FrameError::Truncated);
                }
                IoSlice::advance_slices(&mut left, n);
            }
            link.queued_bytes.set(link.queued_bytes.get().saturating_sub(bytes));
        }
    };
    tokio::select! {
        biased;
        // Answers come first. There are never more of them than offers that were written, so offers are not starved.
        r = answers => r,
        r = frames => r,
    }
}

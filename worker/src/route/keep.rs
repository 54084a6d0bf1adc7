//! Shares that this shard accepted for others and keeps on disk until their owners have them.
//!
//! In the spool a kept share is told by its identity: its origin is the shard that holds it. When
//! it becomes this shard's own, for its owner is gone or the map says so, it stays the record that
//! it is: from the first attempt or outcome on its recipients have a state, and a share with a
//! state is offered to nobody as a whole.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use ipc::mesh;
use ipc::message::MessageId;
use spool::{Settled, SpoolError};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::prepare::content::Content;
use crate::route::handoff::{Answer, Share};
use crate::route::kept::{Kept, with};
use crate::route::links::{close, is_there};
use crate::route::stored::read;
use crate::shard::Shard;
use crate::tasks::{self, AtEnd};

/// How long an owner may take for one share.
const OWNER_WAIT: Duration = Duration::from_secs(5);
/// Pause before an owner that did not take one is asked again.
const RETRY: Duration = Duration::from_millis(250);
/// A kept share names the shard that it was made for. Where it was offered to another since, a value of the spool says to which: this,
/// and the share's key, is the value's name.
const NOTED_AS: &str = "kept/";

/// Passes kept shares on, to each owner whenever it is there.
pub async fn pass_on(shard: Rc<Shard>) {
    read_found(&shard).await;
    loop {
        let kept = &shard.kept;
        let asked: Vec<u8> = kept.by_owner.borrow().keys().copied().collect();
        for owner in asked {
            let can = owner == shard.number || shard.handoffs.is_connected(owner) || !is_there(&shard, owner);
            if can && kept.passing.borrow_mut().insert(owner) {
                let shard = Rc::clone(&shard);
                tasks::begin("passing on", move || async move {
                    let _done = AtEnd(|| {
                        shard.kept.passing.borrow_mut().remove(&owner);
                    });
                    pass_to(&shard, owner).await;
                });
            }
        }
        let waiting = !kept.by_owner.borrow().is_empty();
        let wake = kept.wake.notified();
        if waiting {
            let _ = timeout(RETRY, wake).await;
            // Shares that were just put back wake this loop; the owner that did not take them is given a pause all the same.
            tokio::time::sleep(Duration::from_millis(20)).await;
        } else {
            wake.await;
        }
    }
}

/// Reads the notes of an earlier process, see [`NOTED_AS`].
pub fn restore(shard: &Shard, values: &[(String, Vec<u8>)]) {
    let notes = values.iter().filter_map(|(name, value)| {
        let key = name.strip_prefix(NOTED_AS)?.parse::<u64>().ok()?;
        value.first().map(|owner| (key, *owner))
    });
    shard.kept.noted.borrow_mut().extend(notes);
}

/// Notes the shard that a share is offered to from now on, so that the next process asks the same one; `None` takes the note away.
fn note(shard: &Shard, key: u64, owner: Option<u8>) {
    shard.spool.put(&format!("{NOTED_AS}{key}"), owner.into_iter().collect());
}

/// Learns the identities of shares found at start. Those that were this shard's own for a while
/// are so for good.
async fn read_found(shard: &Rc<Shard>) {
    loop {
        let Some(r) = shard.kept.found.borrow_mut().pop_front() else { break };
        let recipients = r.recipients.len() as u64;
        let touched = r.recipients.iter().any(|x| x.attempts > 0 || x.due_unix_ms > 0);
        let identity = match read(shard, r.key).await {
            Ok(_) if ipc::planted!("kept-share-taken-for-own-at-start") => None,
            Ok((envelope, _)) => with(&envelope, |e| {
                let whole = e.recipients.len() == r.recipients.len();
                e.handoff_id()
                    .filter(|_| whole && !touched)
                    .map(|id| (id, e.asked.as_ref().copied(), MessageId(e.id.0)))
            }),
            // A damaged message can be given to no owner. Its queue finds and reports it like any other message.
            Err(SpoolError::Unreadable { .. }) => None,
            Err(_) => {
                shard.kept.found.borrow_mut().push_back(r);
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        match identity {
            Some((id, asked, message)) => {
                let noted = shard.kept.noted.borrow_mut().remove(&r.key);
                let owner = noted.or(asked).unwrap_or(shard.number);
                let share = shard.handoffs.share(owner, id);
                shard.kept.put_back([Kept { key: r.key, message, recipients, share }]);
            }
            None => {
                shard.kept.gone(r.key, recipients);
                shard.enqueue_own(&r);
            }
        }
    }
    // Notes of shares that are not kept any more.
    let old: Vec<u64> = shard.kept.noted.borrow_mut().drain().map(|(key, _)| key).collect();
    old.into_iter().for_each(|key| note(shard, key, None));
    shard.handoffs.all_known();
}

/// Offers what is kept for `owner` until nothing is left, or it takes no more.
async fn pass_to(shard: &Rc<Shard>, owner: u8) {
    loop {
        let some = shard.kept.take(owner);
        if some.is_empty() {
            return;
        }
        let mut offers = JoinSet::new();
        for kept in some {
            let shard = Rc::clone(shard);
            #[expect(clippy::disallowed_methods, reason = "it contains what it does, and is joined below")]
            offers.spawn_local(async move { pass_contained(&shard, kept).await });
        }
        let (mut taken, mut left) = (Vec::new(), Vec::new());
        while let Some(done) = offers.join_next().await {
            match done {
                Ok(Passed::Taken(share)) => taken.push(share),
                Ok(Passed::Nowhere(kept)) => left.push(kept),
                Ok(Passed::Gone) | Err(_) => {}
            }
        }
        close(shard, taken).await;
        if !left.is_empty() {
            left.sort_by_key(|k| k.key);
            shard.kept.put_back(left);
            tokio::time::sleep(RETRY).await;
            return;
        }
    }
}

/// What became of a kept share that was to be passed on.
enum Passed {
    /// Its owner has it; that it is not kept any more is noted, and not yet on disk.
    Taken(Share),
    /// It is this shard's own, or nobody's.
    Gone,
    /// It is still kept.
    Nowhere(Kept),
}

/// As [`pass_one`]. Where that panics the share is still kept, if it was not settled before, and is offered again after a while.
async fn pass_contained(shard: &Rc<Shard>, kept: Kept) -> Passed {
    let Kept { key, message, recipients, share: Share { id, owner, .. } } = kept;
    let panic = match tasks::caught(pin!(pass_one(shard, kept))).await {
        Ok(passed) => return passed,
        Err(panic) => panic,
    };
    panic.tell("passing on a share");
    if !shard.kept.has(key) {
        return Passed::Gone;
    }
    let kept = Kept { key, message, recipients, share: shard.handoffs.share(owner, id) };
    tokio::time::sleep(tasks::AFTER_PANIC).await;
    Passed::Nowhere(kept)
}

/// Offers one kept share to the shard that was asked before, or to the owner of its destination once that one is gone, or has said
/// that it never takes it.
async fn pass_one(shard: &Rc<Shard>, kept: Kept) -> Passed {
    let (envelope, body) = match read(shard, kept.key).await {
        Ok(m) => m,
        Err(e) => {
            tracing::error!(key = kept.key, error = %e, "a share kept under handoff cannot be read");
            if !matches!(e, SpoolError::Unreadable { .. }) {
                return Passed::Nowhere(kept);
            }
            // The message is in quarantine, which operators look after; the other shares go on.
            shard.kept.gone(kept.key, kept.recipients);
            return Passed::Gone;
        }
    };
    let owner_now = || {
        with(&envelope, |e| e.recipients.first().map(|r| r.destination.as_str().to_owned()))
            .map_or(shard.number, |d| shard.map.borrow().taker(&d, shard.next_turn()))
    };
    let asked = kept.share.owner;
    let named = with(&envelope, |e| e.asked.as_ref().copied());
    if asked != shard.number && is_there(shard, asked) {
        let archive = Bytes::copy_from_slice(&envelope);
        let offer = shard.handoffs.offer(mesh::HANDOFF_KEPT, &kept.share, archive, &[body.clone(), Bytes::new()]);
        let Some(answer) = offer else { return Passed::Nowhere(kept) };
        match timeout(OWNER_WAIT, answer).await {
            Ok(Ok(Answer::Never)) => {}
            Ok(Ok(Answer::Taken)) => return passed(shard, kept, named),
            _ if ipc::planted!("share-dropped-when-offered") => return passed(shard, kept, named),
            _ => return Passed::Nowhere(kept),
        }
    }
    match owner_now() {
        owner if owner == shard.number => {
            if named != Some(asked) {
                note(shard, kept.key, None);
            }
            shard.kept.gone(kept.key, kept.recipients);
            shard.enqueue(kept.key, Rc::new(Content::new(envelope, [body, Bytes::new()]))).await;
            Passed::Gone
        }
        owner => readdress(shard, kept, named, owner).await,
    }
}

/// A kept share is with the shard that was asked. `named` is the shard that the share names.
fn passed(shard: &Shard, kept: Kept, named: Option<u8>) -> Passed {
    if named != Some(kept.share.owner) {
        note(shard, kept.key, None);
    }
    let recipients = (0..kept.recipients as u16).collect();
    shard.spool.settle(Settled { key: kept.key, recipients, last: true, rows: Vec::new() });
    shard.kept.gone(kept.key, kept.recipients);
    Passed::Taken(kept.share)
}

/// The share is offered to another shard from now on. This is on disk before the first offer, so that after a kill the next process asks
/// the same shard again, which may have the share.
async fn readdress(shard: &Shard, kept: Kept, named: Option<u8>, owner: u8) -> Passed {
    if owner == kept.share.owner {
        return Passed::Nowhere(kept);
    }
    note(shard, kept.key, Some(owner).filter(|_| named != Some(owner)));
    Passed::Nowhere(match shard.spool.barrier().await {
        Ok(()) => Kept { share: shard.handoffs.share(owner, kept.share.id), ..kept },
        Err(_) => kept,
    })
}

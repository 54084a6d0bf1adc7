//! Clocks and rate windows of paths outlive their shard's process, and follow their
//! destinations to another shard (I3).
//!
//! A rate window in use is noted in the spool once, and in full at an orderly stop; after a
//! crash the note alone tells that recipients were sent shortly before, and the most that
//! may have been is assumed. When a destination moves, its new owner claims it and opens no
//! connection before the owner of the epoch before has closed its own.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::time::Duration;

use ipc::frame::{FrameError, Header, archive, unarchive};
use ipc::mesh::{self, Claim, PathState, Release};
use ipc::stream::FrameReader;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::clock;
use crate::schedule::rate::Pace;
use crate::schedule::{Queue, QueueId};
use crate::shard::Shard;

/// Paths in one frame of a release.
const PATHS_PER_FRAME: usize = 1000;
/// Pause between looks at connections that are to end.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Pause before an owner whose connection broke is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// The state of a path that has no queue yet.
#[derive(Debug)]
struct Inherited {
    state: PathState,
    /// There is a note of it in this shard's spool.
    noted: bool,
}

/// What this shard has been given of paths that it has no queue for yet, and who has not
/// released what moved here.
#[derive(Debug, Default)]
pub struct Paths {
    inherited: RefCell<HashMap<String, Inherited>>,
    /// Owners of the epoch before that have not released everything: their destinations that
    /// have connections still, or `None` while they have not answered.
    outstanding: RefCell<HashMap<u8, Option<HashSet<String>>>>,
}

impl Paths {
    /// Everything that moved here in this epoch is released.
    pub fn all_released(&self) -> bool {
        self.outstanding.borrow().is_empty()
    }

    fn released(&self, owner_before: Option<u8>, destination: &str) -> bool {
        match owner_before.and_then(|o| self.outstanding.borrow().get(&o).cloned()) {
            None => true,
            Some(None) => false,
            Some(Some(busy)) => !busy.contains(destination),
        }
    }
}

fn name(destination: &str, vmta: &str, pool: &str) -> String {
    format!("path/{destination}/{vmta}/{pool}")
}

/// What a new queue of that name would not know; `None` if nothing.
fn state_of(q: &Queue, now_ms: i64) -> Option<PathState> {
    let tat_unix_ns = if q.rules.max_msg_rate.count > 0 { q.pace.tat_ns } else { 0 };
    if q.retry_at_ms <= now_ms && tat_unix_ns / 1_000_000 <= now_ms {
        return None;
    }
    Some(PathState {
        destination: q.destination.as_ref().to_owned(),
        vmta: q.vmta_name.as_ref().to_owned(),
        pool: q.pool.as_ref().to_owned(),
        tat_unix_ns,
        retry_at_unix_ms: q.retry_at_ms,
        retry_step: q.retry_step.min(1000) as u32,
    })
}

fn apply(q: &mut Queue, state: &PathState) {
    q.pace = match state.tat_unix_ns {
        i64::MAX if q.rules.max_msg_rate.count > 0 => Pace::exhausted(q.rules.max_msg_rate, clock::now_ns() as i64),
        i64::MAX => Pace::default(),
        tat => Pace { tat_ns: tat.max(q.pace.tat_ns) },
    };
    q.retry_at_ms = q.retry_at_ms.max(state.retry_at_unix_ms);
    q.retry_step = q.retry_step.max(state.retry_step as usize);
}

/// A queue was made: it inherits its path's state, and is held while it is not this
/// shard's to deliver.
pub fn admit(shard: &Shard, q: &mut Queue) {
    let key = name(&q.destination, &q.vmta_name, &q.pool);
    if let Some(i) = shard.paths.inherited.borrow_mut().remove(&key) {
        apply(q, &i.state);
        q.noted = i.noted;
    }
    q.held = !may_deliver(shard, &q.destination);
    if q.held {
        shard.foreign.notify_one();
    }
}

fn may_deliver(shard: &Shard, destination: &str) -> bool {
    let map = shard.map.borrow();
    map.owner(destination) == shard.number && shard.paths.released(map.owner_before(destination), destination)
}

/// Takes over the values that the spool had kept.
pub fn restore(shard: &Rc<Shard>, values: Vec<(String, Vec<u8>)>) {
    for (key, value) in values.into_iter().filter(|(k, _)| k.starts_with("path/")) {
        match rkyv::from_bytes::<PathState, rkyv::rancor::Error>(&value) {
            Ok(state) => inherit(shard, state, true),
            Err(e) => tracing::warn!(name = key, error = %e, "a path's state in the spool cannot be read; forgotten"),
        }
    }
}

fn inherit(shard: &Rc<Shard>, state: PathState, noted: bool) {
    let mut s = shard.scheduler.borrow_mut();
    if let Some((id, q)) = s.find(&state.destination, &state.vmta, &state.pool) {
        apply(q, &state);
        q.noted |= noted;
        let at = q.retry_at_ms;
        if at > clock::now_ms() {
            s.wake_at(id, at);
        }
    } else {
        let key = name(&state.destination, &state.vmta, &state.pool);
        shard.paths.inherited.borrow_mut().insert(key, Inherited { state, noted });
    }
}

/// The queue is about to send: notes once that its rate window is in use.
pub fn note_rate(shard: &Rc<Shard>, id: QueueId) {
    let mut s = shard.scheduler.borrow_mut();
    let Some(q) = s.queues.get_mut(id).filter(|q| !q.noted && q.rules.max_msg_rate.count > 0) else { return };
    q.noted = true;
    let now = clock::now_ms();
    if let Some(state) = state_of(q, now) {
        let state = PathState { tat_unix_ns: i64::MAX, retry_at_unix_ms: 0, ..state };
        shard.spool.put(&name(&q.destination, &q.vmta_name, &q.pool), archive(&state).to_vec());
    }
}

/// A queue is gone, and so is what the spool knew of its path.
pub fn forgotten(shard: &Shard, q: &Queue) {
    if q.noted {
        shard.spool.put(&name(&q.destination, &q.vmta_name, &q.pool), Vec::new());
    }
}

/// Drops inherited states that say nothing any more.
pub fn sweep(shard: &Shard, now_ms: i64) {
    shard.paths.inherited.borrow_mut().retain(|key, i| {
        let over = i.state.tat_unix_ns / 1_000_000 <= now_ms && i.state.retry_at_unix_ms <= now_ms;
        if over && i.noted {
            shard.spool.put(key, Vec::new());
        }
        !over
    });
}

/// Keeps all clocks and windows over an orderly stop.
pub fn keep_all(shard: &Shard) {
    let now = clock::now_ms();
    for (_, q) in &shard.scheduler.borrow().queues {
        if let Some(state) = state_of(q, now) {
            shard.spool.put(&name(&q.destination, &q.vmta_name, &q.pool), archive(&state).to_vec());
        } else if q.noted {
            forgotten(shard, q);
        }
    }
}

/// Claims, under the map in force, what other shards delivered before.
pub fn claim_all(shard: &Rc<Shard>) {
    let map = Rc::clone(&shard.map.borrow());
    let before: Vec<u8> = map.previous.iter().copied().filter(|o| *o != shard.number).collect();
    *shard.paths.outstanding.borrow_mut() = before.iter().map(|o| (*o, None)).collect();
    hold_and_free(shard);
    for owner in before {
        tokio::task::spawn_local(claim(Rc::clone(shard), owner, map.epoch));
    }
}

/// Holds the queues that are not this shard's to deliver, and frees the others.
fn hold_and_free(shard: &Rc<Shard>) {
    let mut freed = Vec::new();
    for (id, q) in &mut shard.scheduler.borrow_mut().queues {
        let held = !may_deliver(shard, &q.destination);
        if held {
            q.work.notify_waiters();
        } else if q.held {
            freed.push(id);
        }
        q.held = held;
    }
    shard.foreign.notify_one();
    freed.into_iter().for_each(|id| shard.pump(id));
}

async fn claim(shard: Rc<Shard>, owner: u8, epoch: u64) {
    let path = shard.socket_of(owner);
    while shard.map.borrow().epoch == epoch {
        match UnixStream::connect(&path).await {
            Ok(io) => match ask(&shard, owner, epoch, io).await {
                Ok(()) => return,
                Err(e) => tracing::warn!(owner, error = %e, "a claim was not answered; asked again"),
            },
            Err(_) => {
                // No process, so no connections: but it may have sent until just now.
                let map = Rc::clone(&shard.map.borrow());
                for (_, q) in &mut shard.scheduler.borrow_mut().queues {
                    if map.owner_before(&q.destination) == Some(owner) && q.rules.max_msg_rate.count > 0 {
                        q.pace = Pace::exhausted(q.rules.max_msg_rate, clock::now_ns() as i64);
                    }
                }
                shard.paths.outstanding.borrow_mut().remove(&owner);
                hold_and_free(&shard);
                return;
            }
        }
        sleep(ASK_AGAIN).await;
    }
}

async fn ask(shard: &Rc<Shard>, owner: u8, epoch: u64, io: UnixStream) -> Result<(), FrameError> {
    let (mut read, mut write) = io.into_split();
    let hello = archive(&mesh::Hello { shard: Some(shard.number), epoch });
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
        release.paths.into_iter().for_each(|p| inherit(shard, p, false));
        let Some(busy) = release.busy else { continue };
        let done = busy.is_empty();
        let mut outstanding = shard.paths.outstanding.borrow_mut();
        if done {
            outstanding.remove(&owner);
        } else {
            outstanding.insert(owner, Some(busy.into_iter().collect()));
        }
        drop(outstanding);
        hold_and_free(shard);
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
        let map = Rc::clone(&shard.map.borrow());
        if map.epoch >= epoch {
            let (mut busy, mut paths) = (Vec::new(), Vec::new());
            let now = clock::now_ms();
            for (_, q) in &shard.scheduler.borrow().queues {
                if map.owner(&q.destination) != claimant {
                    continue;
                }
                if q.connections + q.connecting > 0 {
                    busy.push(q.destination.as_ref().to_owned());
                } else {
                    paths.extend(state_of(q, now));
                }
            }
            if told != Some(busy.len()) {
                told = Some(busy.len());
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
    }
}

async fn say(answers: &mpsc::Sender<Vec<u8>>, release: &Release) -> bool {
    let body = archive(release);
    let mut bytes = Header::new(mesh::RELEASE, body.len(), 0).encode().to_vec();
    bytes.extend_from_slice(&body);
    answers.send(bytes).await.is_ok()
}

/// This shard holds no connection of a destination that it does not own, and nothing is
/// kept from it: the scaling of this epoch is over as far as it is concerned.
pub fn is_settled(shard: &Shard) -> bool {
    let map = shard.map.borrow();
    let mine = |q: &Queue| map.owner(&q.destination) == shard.number;
    shard.paths.all_released()
        && shard.scheduler.borrow().queues.iter().all(|(_, q)| mine(q) || q.connections + q.connecting == 0)
}

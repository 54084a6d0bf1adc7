//! Clocks and rate windows of paths outlive their shard's process, and follow their
//! destinations to another shard (I3).
//!
//! A rate window in use is noted in the spool once, and in full at an orderly stop; after a
//! crash the note alone tells that recipients were sent shortly before, and the most that
//! may have been is assumed. When a destination moves, its new owner claims it and opens no
//! connection before the owner of the epoch before has closed its own.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::rc::Rc;
use std::time::Duration;

use ipc::backoff::Mode;
use ipc::dice::{HashMap, HashSet};
use ipc::frame::{FrameError, Header, archive, unarchive};
use ipc::mesh::{self, Claim, PathState, Release, SourceState, Windows};
use ipc::rules::Rate;
use ipc::shard_map::{Owners, ShardMap};
use ipc::stream::FrameReader;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::clock;
use crate::ports::MeshStream;
use crate::route::last_failures;
use crate::schedule::path::{Paces, Source};
use crate::schedule::rate::Pace;
use crate::schedule::spread_path;
use crate::schedule::{Path, PathId};
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

    /// A path that this shard has no queue for yet is in backoff.
    pub fn inherits_backoff(&self, destination: &str, vmta: &str, now_ms: i64) -> bool {
        let inherited = self.inherited.borrow();
        inherited.get(&name(destination, vmta)).is_some_and(|i| i.state.backoff_until_unix_ms > now_ms)
    }

    fn released(&self, owners_before: &Owners, destination: &str) -> bool {
        let outstanding = self.outstanding.borrow();
        owners_before.iter().all(|o| match outstanding.get(&o) {
            None => true,
            Some(None) => false,
            Some(Some(busy)) => !busy.contains(destination),
        })
    }
}

fn name(destination: &str, vmta: &str) -> String {
    format!("path/{destination}/{vmta}")
}

/// What a new path of that name would not know; `None` if nothing.
fn state_of(p: &Path, now_ms: i64) -> Option<PathState> {
    let w = &p.paces;
    let counting = p.paces.busy_until_ns() / 1_000_000 > now_ms;
    let of_source = |s: &Source| SourceState {
        ip: s.ip.to_string(),
        until_ns: [s.paces.msg.tat_ns, s.paces.volume.tat_ns, s.paces.connect.tat_ns],
        disabled_until_unix_ms: s.disabled_until_ms,
    };
    let counts = |s: &&Source| s.disabled_until_ms.max(s.paces.busy_until_ns() / 1_000_000) > now_ms;
    let sources: Vec<SourceState> = p.sources.iter().filter(counts).map(of_source).collect();
    let backoff_until_unix_ms = if p.mode == Mode::Backoff { p.mode_until_ms } else { 0 };
    if p.retry_at_ms <= now_ms && !counting && sources.is_empty() && backoff_until_unix_ms <= now_ms {
        return None;
    }
    Some(PathState {
        destination: p.destination.as_ref().to_owned(),
        vmta: p.vmta_name.as_ref().to_owned(),
        windows: Windows::Until([w.msg.tat_ns, w.hour.tat_ns, w.volume.tat_ns, w.connect.tat_ns]),
        retry_at_unix_ms: p.retry_at_ms,
        retry_step: p.retry_step.min(1000),
        forced: p.forced && p.mode == Mode::Backoff,
        backoff_until_unix_ms,
        sources,
    })
}

fn apply(p: &mut Path, state: &PathState) {
    let now_ns = clock::now_ns() as i64;
    if state.backoff_until_unix_ms > now_ns / 1_000_000 && p.mode != Mode::Backoff {
        p.enter_backoff_until(state.backoff_until_unix_ms, now_ns / 1_000_000);
        // Since when it has been so is not known.
        p.mode_since_ms = 0;
        if state.forced {
            p.forced = true;
        }
    }
    let l = p.limits();
    for (i, (pace, rate)) in p.paces.under(&l).into_iter().enumerate() {
        match &state.windows {
            _ if rate.count == 0 => {}
            Windows::Until(tat_ns) => pace.tat_ns = pace.tat_ns.max(tat_ns[i]),
            Windows::InUse => *pace = Pace::exhausted(rate, now_ns),
            Windows::InUseAfter(tat_ns) => *pace = Pace::at(Pace::exhausted(rate, now_ns).tat_ns.max(tat_ns[i])),
        }
    }
    // What each source sent before a kill is not known.
    if !matches!(state.windows, Windows::Until(_)) && p.limits_sources() {
        p.sources_in_use_ns = p.sources_in_use_ns.max(now_ns);
    }
    for of in &state.sources {
        let Ok(ip) = of.ip.parse() else { continue };
        let s = p.source(ip);
        let [msg, volume, connect] = of.until_ns;
        for (pace, tat_ns) in [(&mut s.paces.msg, msg), (&mut s.paces.volume, volume), (&mut s.paces.connect, connect)]
        {
            pace.tat_ns = pace.tat_ns.max(tat_ns);
        }
        s.disabled_until_ms = s.disabled_until_ms.max(of.disabled_until_unix_ms);
    }
    p.retry_at_ms = p.retry_at_ms.max(state.retry_at_unix_ms);
    p.retry_step = p.retry_step.max(state.retry_step);
}

/// A path was made: it inherits its state, and is held while it is not this shard's to
/// deliver.
pub fn admit(shard: &Shard, p: &mut Path) {
    let key = name(&p.destination, &p.vmta_name);
    if let Some(i) = shard.paths.inherited.borrow_mut().remove(&key) {
        apply(p, &i.state);
        p.noted = i.noted;
    }
    last_failures::admit(shard, p);
    own(shard, p, true);
    if p.held {
        shard.foreign.notify_one();
    }
}

/// Whether a path is this shard's to deliver. What the ledger counts before and after needs no
/// release: its limits hold whoever has the connections.
fn may_deliver(shard: &Shard, p: &Path) -> bool {
    let map = shard.map.borrow();
    if !map.is_owner(&p.destination, shard.number) {
        return false;
    }
    if map.previous.is_empty() {
        return true;
    }
    let (before, now) = (map.owners_before(&p.destination), map.owners(&p.destination));
    if p.spread.is_some() != now.is_spread() && p.connections + p.connecting > 0 {
        return false;
    }
    if before.is_spread() && now.is_spread() {
        return true;
    }
    shard.paths.released(&before, &p.destination)
}

/// Holds a path that is not this shard's to deliver, and lets go one that is.
fn own(shard: &Shard, p: &mut Path, new: bool) {
    p.held = !may_deliver(shard, p);
    if !p.held {
        let is_spread = shard.map.borrow().owners(&p.destination).is_spread();
        spread_path::take_regime(&shard.ledger, p, is_spread, new, clock::now_ms());
    }
}

/// A connection of a path that is held has ended: it may have been what it was held for.
pub fn look_again(shard: &Shard, id: PathId) -> bool {
    let mut s = shard.scheduler.borrow_mut();
    let Some(p) = s.paths.get_mut(id) else { return false };
    own(shard, p, false);
    !p.held
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
    if let Some((id, p)) = s.find_path(&state.destination, &state.vmta) {
        apply(p, &state);
        spread_path::publish(&shard.ledger, p);
        p.noted |= noted;
        let at = p.retry_at_ms;
        if at > clock::now_ms() {
            s.wake_at(id, at);
        }
    } else {
        let key = name(&state.destination, &state.vmta);
        shard.paths.inherited.borrow_mut().insert(key, Inherited { state, noted });
    }
}

/// The path is about to send: notes once that its windows are in use, and each time that one transaction takes more of
/// one than is assumed of a window in use.
pub fn note_rate(shard: &Rc<Shard>, id: PathId) {
    let mut s = shard.scheduler.borrow_mut();
    let in_use = |p: &Path| p.paces != Paces::default() || p.sources.iter().any(|s| s.paces != Paces::default());
    let Some(p) = s.paths.get_mut(id) else { return };
    if (!p.noted && in_use(p)) || takes_much(p, clock::now_ns() as i64) {
        note(shard, p);
    }
}

/// What the ledger counts for a spread path needs no note.
fn takes_much(p: &Path, now_ns: i64) -> bool {
    let l = p.limits();
    let of_source = |s: &Source| {
        let msg = p.rules.source_ip_max_msg_rate.of(s.ip);
        s.paces.is_to_be_noted(msg, Rate::UNLIMITED, now_ns)
    };
    p.spread.is_none()
        && (p.paces.is_to_be_noted(l.msg_rate, l.msg_per_hour, now_ns) || p.sources.iter().any(of_source))
}

/// The mode of a path changed, or one of its source addresses was left out: a kill does not
/// undo that.
pub fn note_mode(shard: &Rc<Shard>, id: PathId) {
    if let Some(p) = shard.scheduler.borrow_mut().paths.get_mut(id) {
        note(shard, p);
    }
}

/// Keeps in the spool what the path would not know after a kill. Windows go on being used
/// behind the note: the most that may have been sent is assumed.
fn note(shard: &Rc<Shard>, p: &mut Path) {
    let key = name(&p.destination, &p.vmta_name);
    if let Some(state) = state_of(p, clock::now_ms()) {
        let windows = match &state.windows {
            Windows::Until(tat_ns) if takes_much(p, clock::now_ns() as i64) => Windows::InUseAfter(*tat_ns),
            _ => Windows::InUse,
        };
        let state = PathState { windows, retry_at_unix_ms: 0, ..state };
        shard.spool.put(&key, archive(&state).to_vec());
        p.noted = true;
    } else if std::mem::take(&mut p.noted) {
        shard.spool.put(&key, Vec::new());
    }
}

/// A path is gone, and so is what the spool knew of it.
pub fn forgotten(shard: &Shard, p: &Path) {
    if p.noted {
        shard.spool.put(&name(&p.destination, &p.vmta_name), Vec::new());
    }
}

/// States of paths that this shard has no queue for yet.
pub mod inherited {
    use ipc::mesh::PathState;
    use ipc::queue_orders::QueuePattern;

    use super::{archive, name};
    use crate::shard::Shard;

    /// Those that a pattern means.
    pub fn of(shard: &Shard, of: &QueuePattern) -> Vec<PathState> {
        let inherited = shard.paths.inherited.borrow();
        inherited.values().map(|i| &i.state).filter(|p| of.matches(&p.destination, &p.vmta)).cloned().collect()
    }

    /// Changes those of a pattern, also where they lie in the spool; answers the names of those that `change` changed.
    pub fn change(shard: &Shard, of: &QueuePattern, change: impl Fn(&mut PathState) -> bool) -> Vec<String> {
        let members = shard.config().members_of(&of.via);
        let mut changed = Vec::new();
        for i in shard.paths.inherited.borrow_mut().values_mut() {
            let (destination, vmta) = (&i.state.destination, &i.state.vmta);
            let is_member = members.contains(vmta) && of.matches(destination, &of.via);
            if (of.matches(destination, vmta) || is_member) && change(&mut i.state) {
                let p = &i.state;
                shard.spool.put(&name(&p.destination, &p.vmta), archive(p).to_vec());
                i.noted = true;
                changed.push(format!("{}/{}", ipc::message::shown_domain(&p.destination), p.vmta));
            }
        }
        changed
    }
}

/// Drops inherited states that say nothing any more.
pub fn sweep(shard: &Shard, now_ms: i64) {
    shard.paths.inherited.borrow_mut().retain(|key, i| {
        let counting = match &i.state.windows {
            Windows::Until(tat_ns) => tat_ns.iter().any(|t| t / 1_000_000 > now_ms),
            Windows::InUse | Windows::InUseAfter(_) => true,
        };
        let until = i.state.retry_at_unix_ms.max(i.state.backoff_until_unix_ms);
        let of_source = |s: &SourceState| {
            let windows_ns = s.until_ns.iter().copied().max().unwrap_or(0);
            s.disabled_until_unix_ms.max(windows_ns / 1_000_000)
        };
        let over = !counting && i.state.sources.iter().map(of_source).fold(until, i64::max) <= now_ms;
        if over && i.noted {
            shard.spool.put(key, Vec::new());
        }
        !over
    });
}

/// Keeps all clocks and windows over an orderly stop.
pub fn keep_all(shard: &Shard) {
    let now = clock::now_ms();
    for (_, p) in &shard.scheduler.borrow().paths {
        if let Some(state) = state_of(p, now) {
            shard.spool.put(&name(&p.destination, &p.vmta_name), archive(&state).to_vec());
        } else if p.noted {
            forgotten(shard, p);
        }
    }
    // What was inherited and met no mail here is passed on as it came.
    for (key, i) in shard.paths.inherited.borrow().iter().filter(|(_, i)| !i.noted) {
        shard.spool.put(key, archive(&i.state).to_vec());
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
    for (id, p) in &mut shard.scheduler.borrow_mut().paths {
        let was_held = p.held;
        own(shard, p, false);
        if p.held {
            shard.idle.wake_all(id);
        } else if was_held {
            freed.push(id);
        }
    }
    shard.foreign.notify_one();
    for id in freed {
        shard.pump(id);
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
                // No process, so no connections: but it may have sent until just now.
                let map = Rc::clone(&shard.map.borrow());
                for (_, p) in &mut shard.scheduler.borrow_mut().paths {
                    let before = map.owners_before(&p.destination);
                    // The ledger knows what was sent of what was spread.
                    if before.contains(owner) && !before.is_spread() {
                        let state = PathState { windows: Windows::InUse, ..Default::default() };
                        apply(p, &state);
                        spread_path::publish(&shard.ledger, p);
                    }
                }
                shard.paths.outstanding.borrow_mut().remove(&owner);
                hold_and_free(&shard);
                return;
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
            // What was told changes with connections that end. Those without are looked up, by two hashes
            // each, only for an answer.
            let told_all = told.is_some_and(|n| n == still_busy(&shard, &map, claimant));
            for (_, p) in shard.scheduler.borrow().paths.iter().filter(|_| !told_all) {
                let (before, owners) = (map.owners_before(&p.destination), map.owners(&p.destination));
                if !owners.contains(claimant) || (before.is_spread() && owners.is_spread()) {
                    continue;
                }
                // Those that were opened since under the owners of now are not in the way.
                let stays = owners.contains(shard.number) && p.spread.is_some() == owners.is_spread();
                if p.connections + p.connecting > 0 && !stays {
                    busy.push(p.destination.as_ref().to_owned());
                } else {
                    paths.extend(state_of(p, now));
                }
            }
            {
                let inherited = shard.paths.inherited.borrow();
                let theirs = inherited.values().filter(|i| map.is_owner(&i.state.destination, claimant));
                paths.extend(theirs.map(|i| i.state.clone()));
            }
            if !told_all {
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

/// Paths with connections that keep a claim waiting.
fn still_busy(shard: &Shard, map: &ShardMap, claimant: u8) -> usize {
    let keeps = |p: &Path| {
        let (before, owners) = (map.owners_before(&p.destination), map.owners(&p.destination));
        let stays = owners.contains(shard.number) && p.spread.is_some() == owners.is_spread();
        owners.contains(claimant) && !(before.is_spread() && owners.is_spread()) && !stays
    };
    let s = shard.scheduler.borrow();
    s.paths.iter().filter(|(_, p)| p.connections + p.connecting > 0 && keeps(p)).count()
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
    if map.previous.is_empty() {
        return true;
    }
    let mine = |p: &Path| {
        let owners = map.owners(&p.destination);
        owners.contains(shard.number) && p.spread.is_some() == owners.is_spread()
    };
    shard.paths.all_released()
        && shard.scheduler.borrow().paths.iter().all(|(_, p)| p.connections + p.connecting == 0 || mine(p))
}

//! What replies do to a path beside the mail that met them: backoff, source addresses, and
//! who is told.

use std::net::IpAddr;
use std::rc::Rc;

use super::conclusion::bounce_queue;
use super::connection::{Path, path_of_queue, source_addresses};
use crate::classify::outcome::Failure;
use crate::classify::reply_patterns::{Effects, Patterns, Route, Switch};
use crate::clock;
use crate::log_limit;
use crate::report::notice;
use crate::schedule::path::Turn;
use crate::schedule::{PathId, Queue, QueueId};
use crate::shard::Shard;

/// Applies what the rules that `matching` names do, and answers what is left for the caller to
/// do with the mail.
pub(super) fn apply(
    shard: &Rc<Shard>,
    path: &Path,
    patterns: &Patterns,
    matching: &[usize],
    source: Option<IpAddr>,
    reply: &str,
) -> Option<Route> {
    if matching.is_empty() {
        return None;
    }
    let now = clock::now_ms();
    let (effects, place, turn) = {
        let mut s = shard.scheduler.borrow_mut();
        let p = s.paths.get_mut(path.id)?;
        let (effects, place) = patterns.effects(matching, &mut p.matches, now);
        let turn = match effects.mode {
            Some(Switch::ToBackoff(None)) => p.enter_backoff(now),
            Some(Switch::ToBackoff(Some(ms))) => {
                p.enter_backoff_until(now.saturating_add(i64::try_from(ms).unwrap_or(i64::MAX / 4)), now)
            }
            Some(Switch::ToNormal) => p.leave_backoff(now),
            None => None,
        };
        (effects, place.unwrap_or_default().to_owned(), turn)
    };
    if effects != Effects::default() && log_limit::allows_line("reply matches a rule", &path.name) {
        tracing::info!(shard = shard.number, path = path.name, rule = place, reply, ?effects, "reply matches a rule");
    }
    if let Some(turn) = turn {
        turned(shard, path.id, turn, &format!("\"{reply}\" ({place})"));
    }
    if let (Some(after), Some(ip)) = (effects.disable_source, source) {
        disable_source(shard, path, ip, after, reply);
    }
    effects.route
}

/// A path changed its mode: says so, and moves mail where the rules want it moved.
pub fn turned(shard: &Rc<Shard>, id: PathId, turn: Turn, why: &str) {
    let told = {
        let s = shard.scheduler.borrow();
        let Some(p) = s.paths.get(id) else { return };
        (p.name(), p.rules.backoff_notify.clone(), p.queues.clone())
    };
    let (name, notify, queues) = told;
    let mode = if turn == Turn::Entered { "backoff" } else { "normal" };
    if log_limit::allows_line("path changes its mode", &name) {
        tracing::warn!(shard = shard.number, path = name, mode, why, "path changes its mode");
    }
    if !notify.is_empty() {
        let subject = format!("{name}: {mode} mode");
        notice::send(shard, &notify, &subject, &format!("The path {name} is in {mode} mode now.\r\n\r\n{why}\r\n"));
    }
    crate::route::paths::note_mode(shard, id);
    if turn == Turn::Entered {
        queues.iter().for_each(|q| reroute(shard, q));
    }
    shard.pump(id);
}

/// Moves what waits in a virtual MTA's own queue to where its rules send it now.
pub fn reroute(shard: &Rc<Shard>, id: QueueId) {
    let target = {
        let mut s = shard.scheduler.borrow_mut();
        let Some(q) = s.queues.get(id).filter(|q| !q.of_pool) else { return };
        let (destination, via) = (Rc::clone(&q.key), Rc::clone(&q.via));
        let target = shard.queue_for(&mut s, &destination, &via);
        if target == id {
            return;
        }
        let moved = s.transfer(id, target, clock::now_ms());
        let name = s.queues.get(target).map(|q| q.name()).unwrap_or_default();
        if log_limit::allows_line("mail rerouted", &name) {
            tracing::info!(shard = shard.number, from = &*via, to = name, recipients = moved, "mail rerouted");
        }
        target
    };
    shard.pump_queue(target);
}

/// Leaves a source address unused at a path.
fn disable_source(shard: &Rc<Shard>, path: &Path, ip: IpAddr, after_ms: Option<u64>, why: &str) {
    let now = clock::now_ms();
    let lasts = after_ms.unwrap_or(path.rules.reenable_source_ip_after.as_millis().min(1 << 50) as u64);
    let until = now.saturating_add(i64::try_from(lasts).unwrap_or(i64::MAX / 4));
    {
        let mut s = shard.scheduler.borrow_mut();
        let Some(p) = s.paths.get_mut(path.id) else { return };
        p.source(ip).disabled_until_ms = until;
        let first = p.sources.iter().map(|s| s.disabled_until_ms).filter(|t| *t > now).min();
        s.wake_at(path.id, first.unwrap_or(until));
    }
    crate::route::paths::note_mode(shard, path.id);
    crate::disabled::note(shard, (&path.destination, &path.vmta_name), &ip.to_string(), until, Some(why));
    if log_limit::allows_line("source address is not used any more here", &path.name) {
        tracing::warn!(shard = shard.number, path = path.name, source = %ip, why, "source address is not used any more here");
    }
    let notify = &path.rules.disabled_source_ip_notify;
    if !notify.is_empty() {
        let subject = format!("{}: source {ip} disabled", path.name);
        let text = format!("The source address {ip} is not used for {} any more.\r\n\r\n{why}\r\n", path.name);
        notice::send(shard, notify, &subject, &text);
    }
    rest_without_sources(shard, path.id);
}

/// Says so when every source address of a path is left out, and puts it in backoff where
/// `backoff-upon-all-sources-disabled` asks for it.
pub fn rest_without_sources(shard: &Rc<Shard>, id: PathId) {
    let now = clock::now_ms();
    let Some(vmta) = shard.scheduler.borrow().paths.get(id).map(|p| p.vmta) else { return };
    let hosts = source_addresses(shard, vmta);
    let (name, turn) = {
        let mut s = shard.scheduler.borrow_mut();
        let Some(p) = s.paths.get_mut(id) else { return };
        let disabled = |ip: &IpAddr| p.sources.iter().any(|s| s.ip == *ip && s.disabled_until_ms > now);
        if hosts.is_empty() || !hosts.iter().all(disabled) {
            return;
        }
        let backoff = p.rules.backoff_upon_all_sources_disabled;
        (p.name(), if backoff { p.enter_backoff(now) } else { None })
    };
    if log_limit::allows_line("All SMTP sources are disabled", &name) {
        tracing::warn!(shard = shard.number, path = name, "All SMTP sources for queue {name} are now disabled.");
    }
    if let Some(turn) = turn {
        turned(shard, id, turn, "all source addresses are disabled");
    }
}

/// `bounce-queue`: ends what waits in the virtual MTA's own queue. A pool's queue belongs to
/// its other members as well; only where there is none it is ended, too.
pub(super) async fn bounce_queues(shard: &Rc<Shard>, path: &Path, failure: &Failure) {
    bounce_those(shard, path, failure, |q| q.members.len() == 1).await;
}

/// Ends what waits in the queues of a path that `meant` picks.
pub(super) async fn bounce_those(shard: &Rc<Shard>, path: &Path, failure: &Failure, meant: impl Fn(&Queue) -> bool) {
    let queues = shard.scheduler.borrow().paths.get(path.id).map(|p| p.queues.clone()).unwrap_or_default();
    for id in queues.iter() {
        let picked = {
            let s = shard.scheduler.borrow();
            // Others may have emptied it meanwhile, and its number may be another queue's.
            let serves = s.paths.get(path.id).is_some_and(|p| p.queues.contains(id));
            serves && s.queues.get(id).is_some_and(&meant)
        };
        if picked && let Some(p) = path_of_queue(shard, id) {
            bounce_queue(shard, &p, id, failure).await;
        }
    }
}

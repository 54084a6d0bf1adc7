//! `<smtp-pattern-list>`: what rules say of replies, and what that does to a path beside the mail that met them.

use std::net::IpAddr;
use std::rc::Rc;

use super::path::ServedPath;
use crate::classify::reply_patterns::{Effects, Patterns, Route};
use crate::clock;
use crate::log_limit;
use crate::shard::Shard;
use crate::smtp::reply::Reply;

/// Applies what the rules say of all replies since the last time, and answers what is to become
/// of the mail by the first of them that says so, with the reply that it matched.
pub(super) fn apply_reply_rules(shard: &Rc<Shard>, path: &ServedPath) -> Option<(Route, Reply)> {
    let (patterns, all) = path.reply_rules.take()?;
    let mut said = None;
    for h in all {
        let route = apply(shard, path, &patterns, &h.matching, path.source, &h.reply.text());
        said = said.or(route.map(|r| (r, h.reply)));
    }
    said
}

/// Applies what the rules that `matching` names do, and answers what is left for the caller to
/// do with the mail.
fn apply(
    shard: &Rc<Shard>,
    path: &ServedPath,
    patterns: &Patterns,
    matching: &[usize],
    source: Option<IpAddr>,
    reply: &str,
) -> Option<Route> {
    if matching.is_empty() {
        return None;
    }
    let (effects, place, change) = shard.decide(|e, now| e.apply_reply_rules(path.id, patterns, matching, now))?;
    if effects != Effects::default() && log_limit::allows_line("reply matches a rule", &path.name) {
        tracing::info!(shard = shard.number, path = path.name, rule = place, reply, ?effects, "reply matches a rule");
    }
    if let Some(change) = change {
        let why = format!("\"{reply}\" ({place})");
        shard.decide(|e, now| e.mode_changed(path.id, change, &why, now));
    }
    if let (Some(after), Some(ip)) = (effects.disable_source, source) {
        disable_source(shard, path, ip, after, reply);
    }
    effects.route
}

/// Leaves a source address unused at a path.
fn disable_source(shard: &Rc<Shard>, path: &ServedPath, ip: IpAddr, after_ms: Option<u64>, why: &str) {
    let now = clock::now_ms();
    let lasts = after_ms.unwrap_or(path.rules.reenable_source_ip_after.as_millis().min(1 << 50) as u64);
    let until = now.saturating_add(i64::try_from(lasts).unwrap_or(i64::MAX / 4));
    crate::disabled::note(shard, (&path.destination, &path.vmta_name), &ip.to_string(), until, Some(why));
    if log_limit::allows_line("source address is not used any more here", &path.name) {
        tracing::warn!(shard = shard.number, path = path.name, source = %ip, why, "source address is not used any more here");
    }
    shard.decide(|e, now| e.disable_source(path.id, ip, until, why, now));
}

//! Since when and why source addresses are left out: `show disabled`. That they are is the path's or the order's own
//! matter; here is what is said of it, which outlives the process.

pub mod kept;

use std::net::IpAddr;

use ipc::operator::DisabledRow;
use ipc::queue_orders::QueuePattern;
use ipc::stored;

use self::kept::Note;
use crate::clock;
use crate::shard::Shard;

/// What notes are called among the spool's values, before queue and address.
const NOTED_AS: &str = "disabled/";
/// Notes that are kept.
const NOTES_MAX: usize = 10_000;
/// Characters of a reason.
const WHY_MAX: usize = 300;

fn name(destination: &str, via: &str, ip: &str) -> String {
    format!("{NOTED_AS}{destination}/{via}/{ip}")
}

/// Takes over what the spool had kept.
pub fn restore(shard: &Shard, values: &[(String, Vec<u8>)]) {
    let now = clock::now_ms();
    for (name, value) in values.iter().filter(|(name, _)| name.starts_with(NOTED_AS)) {
        match stored::read::<Note>(value) {
            Ok(note) if note.until_unix_ms > now => drop(shard.disabled.0.borrow_mut().insert(name.clone(), note)),
            // It is over.
            Ok(_) => shard.spool.put(name, Vec::new()),
            Err(e) => {
                tracing::warn!(name, error = %e, "why a source address is left out cannot be read; forgotten");
                if !e.is_of_newer_build() {
                    shard.spool.put(name, Vec::new());
                }
            }
        }
    }
}

/// A source address is left out at a path, or wherever a pattern means, until a time, Unix milliseconds.
pub fn note(shard: &Shard, (destination, via): (&str, &str), ip: &str, until_ms: i64, why: Option<&str>) {
    let now = clock::now_ms();
    let name = name(destination, via, ip);
    let mut notes = shard.disabled.0.borrow_mut();
    if until_ms <= now {
        if notes.remove(&name).is_some() {
            shard.spool.put(&name, Vec::new());
        }
        return;
    }
    if notes.len() >= NOTES_MAX {
        let over: Vec<String> = notes.iter().filter(|(_, n)| n.until_unix_ms <= now).map(|(k, _)| k.clone()).collect();
        for k in over {
            notes.remove(&k);
            shard.spool.put(&k, Vec::new());
        }
        if notes.len() >= NOTES_MAX {
            return;
        }
    }
    let note = Note {
        since_unix_ms: now,
        until_unix_ms: until_ms,
        by_operator: why.is_none(),
        why: why.unwrap_or_default().chars().take(WHY_MAX).collect(),
    };
    shard.spool.put(&name, stored::bytes(&note));
    notes.insert(name, note);
}

/// Rows of `show disabled`: orders first, then paths that have mail, then those that a shard remembers.
pub fn rows(shard: &Shard, of: &QueuePattern) -> Vec<DisabledRow> {
    let now = clock::now_ms();
    let mut all = Vec::new();
    for (pattern, ip, until_ms) in shard.switches().disabled.iter().filter(|(_, _, until)| *until > now) {
        if of.covers(pattern) {
            let queue = (pattern.destination.as_str(), pattern.via.as_str());
            all.push(DisabledRow { is_order: true, ..row(shard, queue, ip, *until_ms) });
        }
    }
    for (_, p) in shard.scheduler().paths.iter() {
        let serves = || p.queues.iter().any(|id| shard.scheduler().queues.get(id).is_some_and(|q| q.is_meant_by(of)));
        if p.sources.iter().any(|s| s.disabled_until_ms > now) && (of.matches(&p.destination, &p.vmta_name) || serves())
        {
            let disabled = p.sources.iter().filter(|s| s.disabled_until_ms > now);
            let queue = (&*p.destination, &*p.vmta_name);
            all.extend(disabled.map(|s| row(shard, queue, &s.ip.to_string(), s.disabled_until_ms)));
        }
    }
    for state in shard.inherited().of(of) {
        let disabled = state.sources.iter().filter(|s| s.disabled_until_unix_ms > now);
        let queue = (state.destination.as_str(), state.vmta.as_str());
        all.extend(disabled.map(|s| row(shard, queue, &s.ip, s.disabled_until_unix_ms)));
    }
    all
}

fn row(shard: &Shard, (destination, via): (&str, &str), ip: &str, until_ms: i64) -> DisabledRow {
    let time = |ms: i64| crate::shown_time(clock::wall_ms(ms));
    let notes = shard.disabled.0.borrow();
    let note = notes.get(&name(destination, via, ip));
    DisabledRow {
        source: ip.parse::<IpAddr>().map_or_else(|_| ip.to_owned(), |ip| ip.to_string()),
        queue: format!("{}/{via}", ipc::message::shown_domain(destination)),
        shard: shard.number,
        is_order: false,
        since: note.map(|n| time(n.since_unix_ms)).unwrap_or_default(),
        until: if until_ms == i64::MAX { String::new() } else { time(until_ms) },
        why: match note {
            Some(n) if n.by_operator => "disabled by an operator".to_owned(),
            Some(n) => n.why.clone(),
            None => String::new(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_lie_in_spools_as_they_always_did() {
        let note =
            Note { since_unix_ms: 1, until_unix_ms: -2, by_operator: true, why: "421 4.7.0 not from there".into() };
        ipc::assert_layout!(note, 1: "\
            34323120342e372e30206e6f742066726f6d2074686572650100000000000000feffffffffffffff0100000098000000d4ffffff00000000");
    }
}

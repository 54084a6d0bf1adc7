//! Orders of operators that stand until they are taken back, whether they match mail now or not: `show orders`. What each
//! of them does is a matter of [`crate::switches`]; here is who gave it and when, which outlives the process.

use std::collections::BTreeSet;

use ipc::backoff::Mode;
use ipc::operator::OrderRow;
use ipc::queue_orders::{Given, QueueAction, QueueOrder, QueuePattern};
use ipc::stored;

use crate::clock;
use crate::schedule::Path;
use crate::shard::Shard;

/// What the notes are called among the spool's values, before what they are about.
const NOTED_AS: &str = "order/";

fn pause_name(of: &QueuePattern) -> String {
    format!("{NOTED_AS}queue/{of}")
}

fn source_name(of: &QueuePattern, ip: &str) -> String {
    format!("{NOTED_AS}source/{ip}/{of}")
}

fn job_name(job: &str) -> String {
    format!("{NOTED_AS}job/{job}")
}

/// Takes over what the spool had kept.
pub fn restore(shard: &Shard, values: &[(String, Vec<u8>)]) {
    for (name, value) in values.iter().filter(|(name, _)| name.starts_with(NOTED_AS)) {
        match stored::read::<Given>(value) {
            Ok(given) => drop(shard.standing_orders.borrow_mut().insert(name.clone(), given)),
            Err(e) => {
                tracing::warn!(name, error = %e, "who gave an order cannot be read; forgotten");
                if !e.is_of_newer_build() {
                    shard.spool.put(name, Vec::new());
                }
            }
        }
    }
    forget_taken_back(shard);
}

/// An order about queues or sources was given that changed what is kept.
pub fn note(shard: &Shard, order: &QueueOrder, by: &str) {
    match &order.action {
        QueueAction::Pause(_) => put(shard, pause_name(&order.of), by),
        QueueAction::DisableSource { ip, .. } | QueueAction::EnableSource { ip } => {
            put(shard, source_name(&order.of, ip), by);
        }
        QueueAction::Mode(_) | QueueAction::Schedule { .. } => {}
    }
    forget_taken_back(shard);
}

/// A job was paused, or goes on.
pub fn note_job(shard: &Shard, job: &str, by: &str) {
    put(shard, job_name(job), by);
    forget_taken_back(shard);
}

fn put(shard: &Shard, name: String, by: &str) {
    let given = Given { unix_ms: clock::now_ms(), by: by.to_owned() };
    shard.spool.put(&name, stored::bytes(&given));
    shard.standing_orders.borrow_mut().insert(name, given);
}

/// Forgets who gave orders that stand no more.
fn forget_taken_back(shard: &Shard) {
    let switches = shard.switches();
    let mut stand: BTreeSet<String> = switches.pauses.iter().map(|(of, _)| pause_name(of)).collect();
    stand.extend(switches.disabled.iter().map(|(of, ip, _)| source_name(of, ip)));
    stand.extend(shard.scheduler().jobs.paused().map(job_name));
    shard.standing_orders.borrow_mut().retain(|name, _| {
        let stands = stand.contains(name);
        if !stands {
            shard.spool.put(name, Vec::new());
        }
        stands
    });
}

/// All notes, for a shard that is new.
pub fn all(shard: &Shard) -> Vec<(String, Given)> {
    shard.standing_orders.borrow().iter().map(|(name, given)| (name.clone(), given.clone())).collect()
}

/// Takes over the notes of another shard, once its orders were taken over.
pub fn take(shard: &Shard, all: Vec<(String, Given)>) {
    for (name, given) in all.into_iter().filter(|(name, _)| name.starts_with(NOTED_AS)) {
        shard.spool.put(&name, stored::bytes(&given));
        shard.standing_orders.borrow_mut().insert(name, given);
    }
    forget_taken_back(shard);
}

/// A word as shells take it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_./:@".contains(c);
    match word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

fn time(ms: i64) -> String {
    crate::shown_time(clock::wall_ms(ms))
}

/// A row of what is noted under a name, if anything is.
fn row(shard: &Shard, name: &str, order: &str, of: String, taken_back_by: String) -> OrderRow {
    let notes = shard.standing_orders.borrow();
    let given = notes.get(name);
    OrderRow {
        order: order.to_owned(),
        of,
        source: String::new(),
        since: given.map(|g| time(g.unix_ms)).unwrap_or_default(),
        until: String::new(),
        by: given.map(|g| g.by.clone()).unwrap_or_default(),
        taken_back_by,
    }
}

/// Rows of `show orders`: those whose pattern means nothing outside of `of`, jobs where `of` is everything.
pub fn rows(shard: &Shard, of: &QueuePattern) -> Vec<OrderRow> {
    let now = clock::now_ms();
    let switches = shard.switches();
    let mut all = Vec::new();
    for (pattern, paused) in switches.pauses.iter().filter(|(p, _)| of.covers(p)) {
        let (order, opposite) = if *paused { ("pause queue", "resume queue") } else { ("resume queue", "pause queue") };
        all.push(row(
            shard,
            &pause_name(pattern),
            order,
            pattern.to_string(),
            format!("{opposite} {}", quoted(&pattern.to_string())),
        ));
    }
    let is_in_force = |until_ms: i64| until_ms == 0 || until_ms > now;
    for (pattern, ip, until_ms) in switches.disabled.iter().filter(|(p, _, until)| of.covers(p) && is_in_force(*until))
    {
        let (order, opposite) = match until_ms {
            0 => ("enable source", "disable source"),
            _ => ("disable source", "enable source"),
        };
        let undo = format!("{opposite} {ip} {}", quoted(&pattern.to_string()));
        let until = if (1..i64::MAX).contains(until_ms) { time(*until_ms) } else { String::new() };
        let row = row(shard, &source_name(pattern, ip), order, pattern.to_string(), undo);
        all.push(OrderRow { source: ip.clone(), until, ..row });
    }
    let s = shard.scheduler();
    if of.destination == "*" && of.via == "*" {
        let of_job =
            |job: &str| row(shard, &job_name(job), "pause job", job.to_owned(), format!("resume job {}", quoted(job)));
        all.extend(s.jobs.paused().map(of_job));
    }
    let forced = |name: String, since_ms: Option<i64>, until_ms: i64| OrderRow {
        order: "set queue --mode=backoff".to_owned(),
        source: String::new(),
        since: since_ms.filter(|ms| *ms > 0).map(time).unwrap_or_default(),
        until: time(until_ms),
        by: String::new(),
        taken_back_by: format!("set queue --mode=normal {}", quoted(&name)),
        of: name,
    };
    let is_forced = |p: &&Path| p.forced && p.mode == Mode::Backoff && of.matches(&p.destination, &p.vmta_name);
    let of_path = |p: &Path| forced(p.name(), Some(p.mode_since_ms), p.mode_until_ms);
    all.extend(s.paths.iter().map(|(_, p)| p).filter(is_forced).map(of_path));
    // Paths that this shard has no mail for begin in backoff.
    let inherited = shard.inherited().of(of);
    all.extend(inherited.iter().filter(|p| p.forced && p.backoff_until_unix_ms > now).map(|p| {
        let name = format!("{}/{}", ipc::message::shown_domain(&p.destination), p.vmta);
        forced(name, None, p.backoff_until_unix_ms)
    }));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_an_order_back_may_be_given_to_a_shell() {
        assert_eq!(quoted("d.test/v"), "d.test/v");
        assert_eq!(quoted("*/*"), "'*/*'");
        assert_eq!(quoted("it's $(x)"), r"'it'\''s $(x)'");
    }
}

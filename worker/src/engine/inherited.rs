//! What is known of paths from before they had mail here: clocks and rate windows outlive their shard's process, and follow
//! their destinations to another shard (I3).
//!
//! A rate window in use is noted in the spool once, and in full at an orderly stop; after a
//! crash the note alone tells that recipients were sent shortly before, and the most that
//! may have been is assumed.

use std::rc::Rc;

use ipc::backoff::Mode;
use ipc::dice::HashMap;
use ipc::mesh::{PathState, SourceState, Windows};
use ipc::queue_orders::QueuePattern;
use ipc::rules::Rate;

use super::now::Now;
use crate::classify::outcome::Failure;
use crate::schedule::clocks::Clocks;
use crate::schedule::path::Path;
use crate::schedule::rate::Pace;
use crate::schedule::source::Source;

/// The state of a path that has no queue yet.
#[derive(Debug)]
pub(super) struct State {
    pub state: PathState,
    /// There is a note of it in this shard's spool.
    pub noted: bool,
}

/// A failure, and when that was, Unix seconds; 0 where it is not known.
type LastFailure = (Rc<Failure>, u32);

/// What this shard has been given of paths that it has no queue for yet.
#[derive(Debug, Default)]
pub struct Inherited {
    pub(super) states: HashMap<String, State>,
    /// Why paths waited when the process before stopped, by destination and virtual MTA.
    pub(super) last_failures: HashMap<(Rc<str>, Rc<str>), LastFailure>,
}

impl Inherited {
    /// A path that this shard has no queue for yet is in backoff.
    pub(super) fn is_in_backoff(&self, destination: &str, vmta: &str, now_ms: i64) -> bool {
        self.states.get(&name(destination, vmta)).is_some_and(|i| i.state.backoff_until_unix_ms > now_ms)
    }

    /// A path was made: it inherits its state.
    pub(super) fn admit(&mut self, p: &mut Path, now: Now) {
        if !self.states.is_empty()
            && let Some(i) = self.states.remove(&name(&p.destination, &p.vmta_name))
        {
            apply(p, &i.state, now);
            p.noted = i.noted;
        }
        if !self.last_failures.is_empty()
            && let Some(last) = self.last_failures.remove(&(Rc::clone(&p.destination), Rc::clone(&p.vmta_name)))
            && p.last_failure.is_none()
        {
            (p.last_failure, p.failed_s) = (Some(last.0), last.1);
        }
    }

    /// States of those that a pattern means.
    pub fn of(&self, of: &QueuePattern) -> Vec<PathState> {
        self.states.values().map(|i| &i.state).filter(|p| of.matches(&p.destination, &p.vmta)).cloned().collect()
    }
}

/// What the state of a path is called among the spool's values.
pub(super) fn name(destination: &str, vmta: &str) -> String {
    format!("path/{destination}/{vmta}")
}

/// What a new path of that name would not know; `None` if nothing.
pub(super) fn state_of(p: &Path, now_ms: i64) -> Option<PathState> {
    let clocks = p.clocks().kept();
    let backoff_until_unix_ms = if p.mode == Mode::Backoff { p.mode_until_ms } else { 0 };
    if (Clocks { mode_ms: backoff_until_unix_ms, ..clocks }).are_over(now_ms) {
        return None;
    }
    let w = &p.paces;
    let of_source = |s: &Source| SourceState {
        ip: s.ip.to_string(),
        until_ns: [s.paces.msg.tat_ns, s.paces.volume.tat_ns, s.paces.connect.tat_ns],
        disabled_until_unix_ms: s.disabled_until_ms,
    };
    let counts = |s: &&Source| s.disabled_until_ms.max(s.paces.busy_until_ms()) > now_ms;
    let tat_ns = [w.msg.tat_ns, w.hour.tat_ns, w.volume.tat_ns, w.connect.tat_ns];
    // Source addresses that were not used since a kill: only the inherited state says what they may have sent.
    let is_in_use = p.sources_in_use_until_ms() > now_ms;
    Some(PathState {
        destination: p.destination.as_ref().to_owned(),
        vmta: p.vmta_name.as_ref().to_owned(),
        windows: if is_in_use { Windows::InUseAfter(tat_ns) } else { Windows::Until(tat_ns) },
        retry_at_unix_ms: p.retry_at_ms,
        retry_step: p.retry_step.min(1000),
        forced: p.forced && p.mode == Mode::Backoff,
        backoff_until_unix_ms,
        sources: p.sources.iter().filter(counts).map(of_source).collect(),
    })
}

/// The clocks in the state of a path: the latest of them says how long it has to be remembered.
pub(super) fn clocks_of(state: &PathState) -> Clocks {
    let PathState {
        destination: _,
        vmta: _,
        windows,
        retry_at_unix_ms,
        // The step says nothing without the retry time, and the force nothing without a backoff.
        retry_step: _,
        forced: _,
        backoff_until_unix_ms,
        sources,
    } = state;
    let latest_ms = |tat_ns: &[i64]| tat_ns.iter().copied().fold(0, i64::max) / 1_000_000;
    Clocks {
        retry_ms: *retry_at_unix_ms,
        mode_ms: *backoff_until_unix_ms,
        windows_ms: match windows {
            Windows::Until(tat_ns) => latest_ms(tat_ns),
            Windows::InUse | Windows::InUseAfter(_) => i64::MAX,
        },
        source_windows_ms: sources.iter().map(|s| latest_ms(&s.until_ns)).fold(0, i64::max),
        disabled_ms: sources.iter().map(|s| s.disabled_until_unix_ms).fold(0, i64::max),
        ..Clocks::default()
    }
}

/// Takes over what is known of a path.
pub(super) fn apply(p: &mut Path, state: &PathState, now: Now) {
    let PathState {
        destination: _,
        vmta: _,
        windows,
        retry_at_unix_ms,
        retry_step,
        forced,
        backoff_until_unix_ms,
        sources,
    } = state;
    let now_ns = now.ns;
    if *backoff_until_unix_ms > now.ms() && p.mode != Mode::Backoff {
        p.enter_backoff_until(*backoff_until_unix_ms, now.ms());
        // The state does not say since when the path has been in this mode.
        p.mode_since_ms = 0;
        if *forced {
            p.forced = true;
        }
    }
    let l = p.limits();
    for (i, (pace, rate)) in p.paces.under(&l).into_iter().enumerate() {
        match windows {
            _ if rate.count == 0 => {}
            Windows::Until(tat_ns) => pace.tat_ns = pace.tat_ns.max(tat_ns[i]),
            Windows::InUse => *pace = Pace::exhausted(rate, now_ns),
            Windows::InUseAfter(tat_ns) => *pace = Pace::at(Pace::exhausted(rate, now_ns).tat_ns.max(tat_ns[i])),
        }
    }
    // Nobody knows what each source address sent before a kill, so the most that it may have sent is assumed.
    if !matches!(windows, Windows::Until(_)) && p.limits_sources() {
        p.sources_in_use_ns = p.sources_in_use_ns.max(now_ns);
    }
    for of in sources {
        let Ok(ip) = of.ip.parse() else { continue };
        let s = p.source(ip);
        let [msg, volume, connect] = of.until_ns;
        for (pace, tat_ns) in [(&mut s.paces.msg, msg), (&mut s.paces.volume, volume), (&mut s.paces.connect, connect)]
        {
            pace.tat_ns = pace.tat_ns.max(tat_ns);
        }
        s.disabled_until_ms = s.disabled_until_ms.max(of.disabled_until_unix_ms);
    }
    p.retry_at_ms = p.retry_at_ms.max(*retry_at_unix_ms);
    p.retry_step = p.retry_step.max(*retry_step);
}

/// Assumes that all rates of a path were used up until now: recipients may have been sent, and nobody knows how many.
pub(super) fn assume_in_use(p: &mut Path, now: Now) {
    apply(p, &PathState { windows: Windows::InUse, ..Default::default() }, now);
}

/// What the ledger counts for a spread path needs no note.
pub(super) fn takes_much(p: &Path, now_ns: i64) -> bool {
    let l = p.limits();
    let of_source = |s: &Source| {
        let msg = p.rules.source_ip_max_msg_rate.of(s.ip);
        s.paces.is_to_be_noted(msg, Rate::UNLIMITED, now_ns)
    };
    p.spread.is_none()
        && (p.paces.is_to_be_noted(l.msg_rate, l.msg_per_hour, now_ns) || p.sources.iter().any(of_source))
}

//! Paths of destinations that are spread over several shards (`spread`). Each of those shards
//! has a path of the same name; what its limits count, its mode and its retry clock lie in the
//! ledger, so that the receiver sees the limits of one.
//!
//! The clocks in a [`Path`] are copies there, brought up to date before each decision
//! ([`follow`]); tokens and places are taken in the ledger itself, by whoever delivers.

use std::net::IpAddr;
use std::time::Duration;

use ipc::backoff::Mode;
use ipc::ledger::{Ahead, Ledger};
use ipc::pace::Pacing;
use ipc::rules::Rate;

use super::path::{ModeChange, Path};
use super::rate::Pace;
use super::spread::{SpreadPath, source_names};

/// Names of a source address's windows at a path (recipients, bytes, connections), and of its
/// places.
pub fn source_keys(p: &Path, ip: IpAddr) -> ([u64; 3], u64) {
    source_names(&p.destination, &p.vmta_name, ip)
}

/// The rate that `smtp-out-rampup-interval` amounts to.
pub fn ramp_up(interval: Duration) -> Rate {
    Rate { count: u64::from(!interval.is_zero()), per: interval }
}

/// Brings a path's regime in line with how many shards own its destination; only when it has no
/// connections, which were counted under the other one. Mode and clock of a path that is `new`
/// here are those that the other owners went on with.
pub fn take_regime(ledger: &Ledger, p: &mut Path, is_spread: bool, new: bool, now_ms: i64) {
    match (p.spread.is_some(), is_spread) {
        (false, true) => {
            let mut t = Box::new(SpreadPath::of(&p.destination, &p.vmta_name));
            if let Some(at) = ledger.clock(t.retry).filter(|_| new) {
                (p.retry_at_ms, t.agreed_retry_ms) = (at, at);
            }
            if let Some(until) = ledger.clock(t.mode).filter(|_| new) {
                t.agreed_mode_ms = until;
                set_mode(p, until, now_ms);
            }
            p.spread = Some(t);
            publish(ledger, p);
        }
        (true, false) => {
            follow(ledger, p, now_ms);
            p.spread = None;
        }
        _ => {}
    }
}

/// Windows that were counted elsewhere hold for the paths of all owners.
pub fn publish(ledger: &Ledger, p: &mut Path) {
    let Some(keys) = p.spread.as_ref().map(|t| t.windows) else { return };
    let raise = |k: u64, pace: &Pace| {
        if pace.tat_ns > 0 {
            ledger.update_clock(k, Ahead::default(), |tat_ns| (tat_ns.max(pace.tat_ns), ()));
        }
    };
    let w = &p.paces;
    keys.into_iter().zip([&w.msg, &w.hour, &w.volume, &w.connect]).for_each(|(k, pace)| raise(k, pace));
    for s in &p.sources {
        let w = &s.paces;
        source_keys(p, s.ip).0.into_iter().zip([&w.msg, &w.volume, &w.connect]).for_each(|(k, pace)| raise(k, pace));
    }
}

/// Backoff until a time, Unix milliseconds; none when it is past.
fn set_mode(p: &mut Path, until_ms: i64, now_ms: i64) -> Option<ModeChange> {
    if until_ms > now_ms { p.enter_backoff_until(until_ms, now_ms) } else { p.leave_backoff(now_ms) }
}

/// Takes over what the other owners did since, and tells them what happened here.
pub fn follow(ledger: &Ledger, p: &mut Path, now_ms: i64) -> Option<ModeChange> {
    // Nearly all have none, and are at rest: taking would give them an activity of their own.
    p.spread.as_ref()?;
    let mut t = p.spread.take()?;
    let limits = p.limits();
    let cut = std::mem::take(&mut t.limits_changed);
    for (k, (pace, rate)) in t.windows.into_iter().zip(p.paces.under(&limits)) {
        if ledger.clock(k).is_none() {
            continue;
        }
        match Pacing::of(rate).filter(|_| cut) {
            Some(p) => ledger.rescale(k, &p, now_ms.saturating_mul(1_000_000)),
            None if cut => ledger.update_clock(k, Ahead::default(), |_| (0, ())),
            None => {}
        }
        *pace = Pace::at(ledger.clock(k).unwrap_or_default());
    }
    if p.limits_sources() {
        for i in 0..p.sources.len() {
            let [msg, volume, connect] = t.windows_of(&p.destination, &p.vmta_name, p.sources[i].ip);
            let s = &mut p.sources[i];
            for (pace, k) in [(&mut s.paces.msg, msg), (&mut s.paces.volume, volume), (&mut s.paces.connect, connect)] {
                *pace = Pace::at(ledger.clock(k).unwrap_or(pace.tat_ns));
            }
        }
    }
    p.retry_at_ms = agree(ledger, t.retry, p.retry_at_ms, &mut t.agreed_retry_ms);
    let mine = if p.mode == Mode::Backoff { p.mode_until_ms } else { 0 };
    let all = agree(ledger, t.mode, mine, &mut t.agreed_mode_ms);
    p.spread = Some(t);
    if all == mine {
        return None;
    }
    set_mode(p, all, now_ms)
}

/// What changed here counts for all, what did not is as the others have it. Where the ledger has no
/// room each keeps its own.
fn agree(ledger: &Ledger, key: u64, mine: i64, agreed: &mut i64) -> i64 {
    if mine != *agreed {
        ledger.update_clock(key, Ahead::default(), |_| (mine, ()));
        *agreed = mine;
    } else {
        *agreed = ledger.clock(key).unwrap_or(mine);
    }
    *agreed
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use ipc::rules::DomainRules;

    /// Unix milliseconds.
    const NOW: i64 = 1_000_000_000;

    fn two_owners() -> (Ledger, [Path; 2]) {
        let ledger = Ledger::create().unwrap().0;
        let rules = Rc::new(DomainRules {
            max_msg_rate: Rate { count: 10, per: Duration::from_secs(1) },
            backoff_max_msg_rate: Some(Rate { count: 1, per: Duration::from_secs(3600) }),
            backoff_return_steps: 0,
            ..Default::default()
        });
        let both = [0, 1].map(|_| {
            let mut p = Path::new("hot.test".into(), 0, "v".into(), Rc::clone(&rules));
            take_regime(&ledger, &mut p, true, true, NOW);
            p
        });
        (ledger, both)
    }

    #[test]
    fn mode_and_retry_clock_are_those_of_whoever_changed_them() {
        let (ledger, [mut a, mut b]) = two_owners();
        let now = 1_000_000_000;
        a.enter_backoff(now);
        a.retry_at_ms = now + 5000;
        assert_eq!(follow(&ledger, &mut a, now), None);
        assert_eq!(follow(&ledger, &mut b, now), Some(ModeChange::Entered));
        assert_eq!((b.mode_until_ms, b.retry_at_ms), (a.mode_until_ms, now + 5000));
        b.leave_backoff(now + 1);
        assert_eq!(follow(&ledger, &mut b, now + 1), None);
        assert_eq!(follow(&ledger, &mut a, now + 1), Some(ModeChange::Left));
        assert_eq!(follow(&ledger, &mut a, now + 2), None);
    }

    #[test]
    fn a_path_that_comes_back_takes_what_other_owners_went_on_with() {
        let (ledger, [mut a, mut b]) = two_owners();
        let now = NOW;
        a.enter_backoff(now);
        follow(&ledger, &mut a, now);
        follow(&ledger, &mut b, now);
        b.leave_backoff(now);
        follow(&ledger, &mut b, now);
        // What its spool knew is older.
        let mut again = Path::new("hot.test".into(), 0, "v".into(), Rc::clone(&a.rules));
        again.enter_backoff(now);
        take_regime(&ledger, &mut again, true, true, NOW);
        assert_eq!(again.mode, Mode::Normal);
        assert_eq!((follow(&ledger, &mut again, now), follow(&ledger, &mut b, now)), (None, None));
        assert_eq!(b.mode, Mode::Normal);
    }

    #[test]
    fn windows_are_one_for_all_and_those_of_backoff_end_with_it() {
        let (ledger, [mut a, mut b]) = two_owners();
        let now = 1_000_000_000;
        a.enter_backoff(now);
        let k = a.spread.as_ref().unwrap().windows[0];
        ledger.update_clock(k, Ahead::default(), |_| (now * 1_000_000 + 3_600_000_000_000, ()));
        follow(&ledger, &mut a, now);
        follow(&ledger, &mut b, now);
        assert_eq!(b.paces.msg.tat_ns, now * 1_000_000 + 3_600_000_000_000);
        a.leave_backoff(now + 1);
        follow(&ledger, &mut a, now + 1);
        follow(&ledger, &mut b, now + 1);
        assert!(b.paces.msg.tat_ns < now * 1_000_000 + 1_100_000_000);
    }

    #[test]
    fn what_a_path_counted_alone_holds_when_it_is_spread_and_after() {
        let (ledger, [mut a, _]) = two_owners();
        let mut alone = Path::new("hot.test".into(), 0, "v".into(), Rc::clone(&a.rules));
        alone.paces.msg.tat_ns = 77;
        take_regime(&ledger, &mut alone, true, false, NOW);
        follow(&ledger, &mut a, 0);
        assert_eq!(a.paces.msg.tat_ns, 77);
        take_regime(&ledger, &mut a, false, false, NOW);
        assert!(a.spread.is_none() && a.paces.msg.tat_ns == 77);
    }
}

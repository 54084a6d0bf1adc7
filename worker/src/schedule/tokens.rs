//! Tokens of a path's rates: taken right before RCPT is written, given back for what the receiver never heard of.

use std::net::IpAddr;

use ipc::rules::Rate;

use super::limit::Limit;
use super::path::Path;
use super::rate::Pace;

/// What limits over all shards allow of a number of recipients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// So many may be attempted.
    pub count: u64,
    /// When there will be more, if that is none; Unix nanoseconds.
    pub next_ns: i64,
    /// The limit behind it then.
    pub by: Option<Limit>,
}

impl Grant {
    /// All of them.
    pub fn all(count: u64) -> Grant {
        Grant { count, next_ns: 0, by: None }
    }
}

/// Takes what all limits of a path allow of `most` recipients of a message of `bytes`, and says
/// when there will be more if that is none.
pub(super) fn take_tokens(
    p: &mut Path,
    source: Option<IpAddr>,
    most: u64,
    bytes: u64,
    now_ns: i64,
    shared: &mut dyn FnMut(u64, u64) -> Grant,
) -> (u64, i64) {
    let l = p.limits();
    // Of a spread path the clocks are copies: how many there are the ledger knows.
    let by_clock_alone = p.spread.is_some();
    let (mut n, mut next, mut by_source) = (most, now_ns, None);
    let mut allow = |pace: &Pace, rate: Rate, one: bool| {
        let one = one || by_clock_alone;
        let (k, at) = pace.available(rate, now_ns, if one { n.min(1) } else { n });
        if !one || k == 0 {
            n = n.min(k);
        }
        next = next.max(at);
    };
    allow(&p.paces.msg, l.msg_rate, false);
    allow(&p.paces.hour, l.msg_per_hour, false);
    allow(&p.paces.volume, l.data_volume_rate, true);
    let of_source = source
        .filter(|_| p.limits_sources())
        .map(|ip| (ip, p.rules.source_ip_max_msg_rate.of(ip), p.rules.source_ip_max_data_volume_rate.of(ip)));
    if let Some((ip, msg, volume)) = of_source {
        let waits = |pace: &Pace, rate: Rate| pace.available(rate, now_ns, 1).0 == 0;
        let paces = &p.source(ip).paces;
        by_source = match () {
            () if waits(&paces.msg, msg) => Some(Limit::SourceMsgRate),
            () if waits(&paces.volume, volume) => Some(Limit::SourceDataVolumeRate),
            () => None,
        };
        allow(&paces.msg, msg, false);
        allow(&paces.volume, volume, true);
    }
    if n == 0 {
        if by_source.is_some() {
            (p.blocked_until_ms, p.blocked_by) = ((next + 999_999) / 1_000_000, by_source);
        }
        return (0, next);
    }
    let Grant { count: granted, next_ns, by } = shared(n, bytes);
    if granted == 0 {
        (p.blocked_until_ms, p.blocked_by) = ((next_ns + 999_999) / 1_000_000, by);
        return (0, next_ns);
    }
    let count = |pace: &mut Pace, rate: Rate| {
        if by_clock_alone { pace.advance(rate, now_ns, granted) } else { pace.count(rate, now_ns, granted, most) }
    };
    count(&mut p.paces.msg, l.msg_rate);
    count(&mut p.paces.hour, l.msg_per_hour);
    p.paces.volume.advance(l.data_volume_rate, now_ns, bytes);
    if let Some((ip, msg, volume)) = of_source {
        let paces = &mut p.source(ip).paces;
        count(&mut paces.msg, msg);
        paces.volume.advance(volume, now_ns, bytes);
    }
    (granted, now_ns)
}

#[cfg(test)]
mod tests {
    use super::super::scheduler::tests::{next, with};
    use super::*;
    use std::time::Duration;

    use super::super::batch::Next;
    use ipc::rules::DomainRules;

    #[test]
    fn the_rate_counts_recipients() {
        let rate = Rate { count: 1, per: Duration::from_secs(10) };
        let (mut s, id) = with(DomainRules { max_msg_rate: rate, ..Default::default() }, 3);
        let now = 1_000_000_000_000;
        assert!(matches!(next(&mut s, id, now), Next::Send(b) if b.recipients == [0]));
        assert!(matches!(next(&mut s, id, now), Next::Wait(at) if at >= now / 1_000_000 + 10_000));
    }

    #[test]
    fn every_limit_is_asked_and_the_tightest_binds() {
        let ip = IpAddr::from([127, 0, 0, 1]);
        let rate = |count| Rate { count, per: Duration::from_secs(60) };
        let rules = DomainRules { max_msg_rate: rate(600), max_data_volume_rate: rate(100_000), ..Default::default() };
        let now = 1_000_000_000_000;
        let taken = |rules: &DomainRules, shared: u64| {
            let (mut s, id) = with(rules.clone(), 1000);
            match s.next(id.only_path(), Some(ip), now, &|_| true, &mut |n, _| Grant::all(n.min(shared))) {
                Next::Send(b) => b.recipients.len(),
                _ => 0,
            }
        };
        let alone = taken(&rules, 1000);
        assert_eq!(alone, 600, "as many as the rate at once");
        assert_eq!(taken(&rules, 3), 3);
        assert_eq!(taken(&rules, 0), 0);
        assert_eq!(taken(&DomainRules { max_msg_per_hour: 50, ..rules.clone() }, 1000), 50);
        // What was not delivered does not count as volume.
        let (mut s, id) =
            with(DomainRules { max_data_volume_rate: rate(100), max_rcpt_per_transaction: 1, ..rules }, 3);
        assert!(matches!(next(&mut s, id, now), Next::Send(_)));
        assert!(matches!(next(&mut s, id, now), Next::Wait(_)));
        s.not_transferred(id.only_path(), None, 100, now);
        assert!(matches!(next(&mut s, id, now), Next::Send(_)));
    }

    #[test]
    fn a_shared_limit_that_asks_to_wait_opens_no_connection_meanwhile() {
        let (mut s, id) = with(DomainRules::default(), 1);
        let at_ms = 1_000_060_000;
        assert_eq!(
            s.next(id.only_path(), None, 1_000_000_000_000_000, &|_| true, &mut |_, _| Grant {
                count: 0,
                next_ns: at_ms * 1_000_000,
                by: None
            }),
            Next::Wait(at_ms)
        );
        assert_eq!(
            (s.paths[id.only_path()].wanted(1, 0, at_ms - 1), s.paths[id.only_path()].wanted(1, 0, at_ms)),
            (0, 1)
        );
    }
}

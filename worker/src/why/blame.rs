//! Which directive is behind a cause, with its value in force. None is named that limits nothing: an unlimited value, one that
//! another mode would have, or a pause that no line asks for.

use std::net::IpAddr;
use std::time::Duration;

use ipc::backoff::{Mode, POLICIES};
use ipc::rules::{ANY_CONNECTIONS, DomainRules, Rate};
use ipc::snapshot::ArchivedVirtualMta;

use crate::schedule::Path;
use crate::schedule::cause::Cause;
use crate::schedule::limit::Limit;
use crate::schedule::retry_wait::dns_wait;
use crate::shard::Shard;

/// A directive and its value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blame {
    /// Empty for none.
    pub directive: &'static str,
    /// Empty where it is not known which of several is meant.
    pub value: String,
}

impl Blame {
    fn of(directive: &'static str, value: String) -> Option<Blame> {
        Some(Blame { directive, value })
    }
}

/// What holds a path up now.
pub fn now(shard: &Shard, p: &Path, cause: Cause, now_ms: i64) -> Option<Blame> {
    match cause {
        Cause::MaxSmtpOut if !p.is_full() => Blame::of("reserved-smtp-out", p.rules.reserved_smtp_out.to_string()),
        Cause::SharedLimit => shared(shard, p),
        Cause::Source => source(p, now_ms),
        Cause::ConnectPause if p.connect_again_ms > p.ramp_up_ms => None,
        _ => own(&p.rules, cause, p.mode),
    }
}

/// What held it up in the last minutes: since then its mode may have changed, or its limits.
pub fn of_late(shard: &Shard, p: &Path, cause: Cause) -> Option<Blame> {
    let other = if p.mode == Mode::Normal { Mode::Backoff } else { Mode::Normal };
    match cause {
        Cause::SharedLimit => shared(shard, p),
        Cause::Source => None,
        Cause::Retry | Cause::RetryDns => own(&p.rules, cause, p.mode),
        _ => own(&p.rules, cause, p.mode).or_else(|| own(&p.rules, cause, other)),
    }
}

/// A limit of the path alone, in a mode.
pub fn own(r: &DomainRules, cause: Cause, mode: Mode) -> Option<Blame> {
    let (l, n) = (r.limits(mode), r.normal());
    let backoff = mode == Mode::Backoff;
    let policy = r.backoff_policy.and_then(|n| POLICIES.get(usize::try_from(n).ok()?)).filter(|_| backoff);
    // The one of three that gives a value in backoff: its line, the policy, or the line of normal mode.
    let of_mode =
        |own: &'static str, has_line: bool, of_backoff: &'static str, differs: bool, value: String| match policy {
            _ if !backoff => Blame::of(own, value),
            _ if has_line => Blame::of(of_backoff, value),
            Some(p) if differs => Blame::of("backoff-policy", format!("{}: {value}", p.name)),
            None if differs => Blame::of(of_backoff, value),
            _ => Blame::of(own, value),
        };
    let rate = |own, line: Option<Rate>, of_backoff, now: Rate, normal: Rate| {
        let value = shown_rate(now);
        (now.count > 0).then(|| of_mode(own, line.is_some(), of_backoff, now != normal, value)).flatten()
    };
    match cause {
        Cause::MaxSmtpOut => {
            let has_line = r.backoff_max_smtp_out == Some(l.smtp_out);
            let differs = l.smtp_out != n.smtp_out;
            let value = l.smtp_out.to_string();
            let limits = l.smtp_out != ANY_CONNECTIONS;
            limits.then(|| of_mode("max-smtp-out", has_line, "backoff-max-smtp-out", differs, value)).flatten()
        }
        Cause::MaxMsgRate => {
            rate("max-msg-rate", r.backoff_max_msg_rate, "backoff-max-msg-rate", l.msg_rate, n.msg_rate)
        }
        Cause::MaxMsgPerHour => {
            let value = l.msg_per_hour.count.to_string();
            let has_line = r.backoff_max_msg_per_hour.is_some();
            let named = || of_mode("max-msg-per-hour", has_line, "backoff-max-msg-per-hour", false, value);
            (l.msg_per_hour.count > 0).then(named).flatten()
        }
        Cause::MaxDataVolumeRate => {
            let value = shown_volume(l.data_volume_rate);
            let has_line = r.backoff_max_data_volume_rate.is_some();
            let named = || of_mode("max-data-volume-rate", has_line, "backoff-max-data-volume-rate", false, value);
            (l.data_volume_rate.count > 0).then(named).flatten()
        }
        Cause::MaxConnectRate => rate(
            "max-connect-rate",
            r.backoff_max_connect_rate,
            "backoff-max-connect-rate",
            l.connect_rate,
            n.connect_rate,
        ),
        Cause::ConnectPause => {
            let gap = r.smtp_out_rampup_interval;
            (!gap.is_zero()).then(|| Blame::of("smtp-out-rampup-interval", shown_duration(gap))).flatten()
        }
        Cause::Retry => {
            let list = r.retry_waits(mode);
            let value = list.iter().map(|d| shown_duration(*d)).collect::<Vec<_>>().join(",");
            of_mode("retry-after", r.backoff_retry_after.is_some(), "backoff-retry-after", true, value)
        }
        // The retry list is at whatever step: where it is shorter the first shows that.
        Cause::RetryDns => Blame::of("retry-after-dns-error", shown_duration(dns_wait(r, &r.retry_waits(mode), 0))),
        Cause::Recipients => Blame::of("retry-recipients-after", shown_duration(r.retry_recipients_after)),
        Cause::Pool => Blame::of("pool-adaptive", "yes".to_owned()),
        _ => None,
    }
}

/// The limit of a source address that lets no connection be opened, of the address that is free first.
fn source(p: &Path, now_ms: i64) -> Option<Blame> {
    let of_paces = |ip: IpAddr| match p.blocked_by {
        Some(Limit::SourceMsgRate) => {
            Blame::of("source-ip-max-msg-rate", shown_rate(p.rules.source_ip_max_msg_rate.of(ip)))
        }
        Some(Limit::SourceDataVolumeRate) => {
            Blame::of("source-ip-max-data-volume-rate", shown_volume(p.rules.source_ip_max_data_volume_rate.of(ip)))
        }
        _ => None,
    };
    let used = p.sources.iter().filter(|s| s.disabled_until_ms <= now_ms);
    let s = used.min_by_key(|s| p.source_ready_ms(s.ip))?;
    let most = p.rules.source_ip_max_smtp_out.of(s.ip).count;
    if most > 0 && u64::from(s.connections) >= most {
        return Blame::of("source-ip-max-smtp-out", most.to_string());
    }
    let connects = p.rules.source_ip_max_connect_rate.of(s.ip);
    let waits = |at_ns: i64| at_ns / 1_000_000 > now_ms;
    if connects.count > 0 && waits(s.paces.connect.ready_at_ns(connects)) {
        return Blame::of("source-ip-max-connect-rate", shown_rate(connects));
    }
    let msg = p.rules.source_ip_max_msg_rate.of(s.ip);
    if msg.count > 0 && waits(s.paces.msg.ready_at_ns(msg)) {
        return Blame::of("source-ip-max-msg-rate", shown_rate(msg));
    }
    let volume = p.rules.source_ip_max_data_volume_rate.of(s.ip);
    if volume.count > 0 && waits(s.paces.volume.ready_at_ns(volume)) {
        return Blame::of("source-ip-max-data-volume-rate", shown_volume(volume));
    }
    of_paces(s.ip)
}

/// The limit over several paths that a path waits for.
fn shared(shard: &Shard, p: &Path) -> Option<Blame> {
    let limit = p.blocked_by?;
    let config = shard.config();
    let rate = |(count, per_ms): (u64, u64)| Rate { count, per: Duration::from_millis(per_ms) };
    let vmta = config.snapshot.get().vmtas.get(p.vmta as usize);
    // Of several lines it is not known which one it was.
    let one = |n: usize, first: Option<u64>| first.filter(|_| n == 1).map(|n| n.to_string()).unwrap_or_default();
    let of_vmta = |show: &dyn Fn(&ArchivedVirtualMta) -> String| vmta.map(show).unwrap_or_default();
    let of_source = |show: &dyn Fn(IpAddr) -> String| p.sources.first().map(|s| show(s.ip)).unwrap_or_default();
    let value = match limit {
        Limit::TotalSmtpOut => config.global.total_max_smtp_out.to_string(),
        Limit::DestinationSmtpOut => p.rules.destination_max_smtp_out.to_string(),
        Limit::DestinationMsgRate => shown_rate(p.rules.destination_max_msg_rate),
        Limit::MxConnections => {
            let all = &config.global.mx_connection_limits;
            one(all.len(), all.first().map(|(_, n)| *n))
        }
        Limit::IpConnections => {
            let all = &config.global.ip_connection_limits;
            one(all.len(), all.first().map(|(_, n)| *n))
        }
        Limit::VmtaSmtpOut => of_vmta(&|v| v.max_smtp_out.to_string()),
        Limit::VmtaMsgRate => of_vmta(&|v| shown_rate(rate((v.msg_rate.0.to_native(), v.msg_rate.1.to_native())))),
        Limit::VmtaDataVolumeRate => {
            of_vmta(&|v| shown_volume(rate((v.data_volume_rate.0.to_native(), v.data_volume_rate.1.to_native()))))
        }
        // Limits of a path that others of the same name have a part of.
        Limit::SmtpOut => return own(&p.rules, Cause::MaxSmtpOut, p.mode),
        Limit::ConnectRate => return own(&p.rules, Cause::MaxConnectRate, p.mode),
        Limit::MsgRate => return own(&p.rules, Cause::MaxMsgRate, p.mode),
        Limit::MsgPerHour => return own(&p.rules, Cause::MaxMsgPerHour, p.mode),
        Limit::DataVolumeRate => return own(&p.rules, Cause::MaxDataVolumeRate, p.mode),
        Limit::RampUp => return own(&p.rules, Cause::ConnectPause, p.mode),
        Limit::SourceSmtpOut => of_source(&|ip| p.rules.source_ip_max_smtp_out.of(ip).count.to_string()),
        Limit::SourceConnectRate => of_source(&|ip| shown_rate(p.rules.source_ip_max_connect_rate.of(ip))),
        Limit::SourceMsgRate => of_source(&|ip| shown_rate(p.rules.source_ip_max_msg_rate.of(ip))),
        Limit::SourceDataVolumeRate => of_source(&|ip| shown_volume(p.rules.source_ip_max_data_volume_rate.of(ip))),
    };
    Blame::of(limit.directive(), value)
}

fn shown_window(per: Duration) -> String {
    match per.as_secs() {
        1 => "s".to_owned(),
        60 => "m".to_owned(),
        3600 => "h".to_owned(),
        86_400 => "d".to_owned(),
        s => format!("{s}s"),
    }
}

/// `120/m`
fn shown_rate(r: Rate) -> String {
    format!("{}/{}", r.count, shown_window(r.per))
}

/// `10M/m`
fn shown_volume(r: Rate) -> String {
    let unit = [(30, "G"), (20, "M"), (10, "K")].into_iter().find(|(s, _)| r.count.is_multiple_of(1 << s));
    let size = unit.map_or_else(|| r.count.to_string(), |(s, u)| format!("{}{u}", r.count >> s));
    format!("{size}/{}", shown_window(r.per))
}

/// `1h30m`
fn shown_duration(d: Duration) -> String {
    if d.as_millis() >= u128::from(ipc::rules::NEVER_MS) {
        return "never".to_owned();
    }
    let (mut out, mut left) = (String::new(), d.as_secs());
    for (unit, s) in [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)] {
        if left >= s {
            out.push_str(&format!("{}{unit}", left / s));
            left %= s;
        }
    }
    if out.is_empty() { format!("{}ms", d.as_millis()) } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blame(r: &DomainRules, cause: Cause, mode: Mode) -> Option<(&'static str, String)> {
        own(r, cause, mode).map(|b| (b.directive, b.value))
    }

    #[test]
    fn nothing_is_named_that_limits_nothing() {
        let r = DomainRules { max_smtp_out: ANY_CONNECTIONS, ..Default::default() };
        for cause in [
            Cause::MaxSmtpOut,
            Cause::MaxMsgRate,
            Cause::MaxMsgPerHour,
            Cause::MaxDataVolumeRate,
            Cause::MaxConnectRate,
            Cause::ConnectPause,
            Cause::Connecting,
            Cause::Receiver,
        ] {
            assert_eq!(blame(&r, cause, Mode::Normal), None, "{cause:?}");
        }
        let waits = blame(&r, Cause::Recipients, Mode::Normal);
        assert_eq!(waits, Some(("retry-recipients-after", shown_duration(r.retry_recipients_after))));
    }

    #[test]
    fn in_backoff_the_line_is_named_that_gives_the_value() {
        let per_minute = |count| Rate { count, per: Duration::from_secs(60) };
        let all = DomainRules {
            max_smtp_out: 20,
            max_msg_rate: per_minute(100),
            backoff_max_smtp_out: Some(3),
            backoff_max_msg_rate: Some(per_minute(7)),
            ..Default::default()
        };
        assert_eq!(blame(&all, Cause::MaxSmtpOut, Mode::Backoff), Some(("backoff-max-smtp-out", "3".into())));
        assert_eq!(blame(&all, Cause::MaxSmtpOut, Mode::Normal), Some(("max-smtp-out", "20".into())));
        assert_eq!(blame(&all, Cause::MaxMsgRate, Mode::Backoff), Some(("backoff-max-msg-rate", "7/m".into())));
        // The normal limit is the tighter one.
        let tight = DomainRules { max_smtp_out: 2, ..all.clone() };
        assert_eq!(blame(&tight, Cause::MaxSmtpOut, Mode::Backoff), Some(("max-smtp-out", "2".into())));
        let policy =
            DomainRules { backoff_policy: Some(1), backoff_max_smtp_out: None, backoff_max_msg_rate: None, ..all };
        assert_eq!(blame(&policy, Cause::MaxSmtpOut, Mode::Backoff), Some(("backoff-policy", "standard: 2".into())));
        assert_eq!(blame(&policy, Cause::MaxMsgRate, Mode::Backoff), Some(("backoff-policy", "standard: 20/m".into())));
        assert_eq!(blame(&policy, Cause::Retry, Mode::Backoff), Some(("backoff-policy", "standard: 30m".into())));
        assert_eq!(blame(&policy, Cause::MaxMsgPerHour, Mode::Backoff), None);
        let plain = DomainRules { max_msg_rate: per_minute(100), ..Default::default() };
        assert_eq!(blame(&plain, Cause::MaxMsgRate, Mode::Backoff), Some(("max-msg-rate", "100/m".into())));
        assert_eq!(blame(&plain, Cause::Retry, Mode::Backoff), Some(("backoff-retry-after", "1h".into())));
    }

    #[test]
    fn values_are_shown_as_they_are_written() {
        assert_eq!(shown_volume(Rate { count: 10 << 20, per: Duration::from_secs(3600) }), "10M/h");
        assert_eq!(shown_duration(Duration::from_secs(5400)), "1h30m");
        assert_eq!(shown_duration(Duration::from_millis(250)), "250ms");
        assert_eq!(shown_rate(Rate { count: 5, per: Duration::from_secs(300) }), "5/300s");
    }
}

//! Why a queue with work does not send more: a cause for every second, and the shares of the
//! last five minutes.

use ipc::backoff::Mode;
use ipc::layers::NO_VMTA;
use ipc::rules::Rate;

use super::path::Path;
use super::queue::Queue;

/// A cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Cause {
    /// Transactions are under way, or about to begin: nothing of ours holds it up.
    Receiver,
    /// DNS, connection, greeting or TLS.
    Connecting,
    /// `max-smtp-out` connections are all busy.
    MaxSmtpOut,
    /// `max-msg-rate`
    MaxMsgRate,
    /// `max-msg-per-hour`
    MaxMsgPerHour,
    /// `max-data-volume-rate`
    MaxDataVolumeRate,
    /// `max-connect-rate`
    MaxConnectRate,
    /// `smtp-out-rampup-interval`, or a pause after a connection was refused beside others.
    ConnectPause,
    /// A limit over all shards: of the virtual MTA, the destination, the host, or in all.
    SharedLimit,
    /// Every source address is disabled or at a limit of its own.
    Source,
    /// The path failed as a whole and waits for `retry-after`.
    Retry,
    /// Every recipient got a 4yz of its own and waits for `retry-recipients-after`.
    Recipients,
    /// Other members of the pool go first, for receivers speak ill of this one.
    Pool,
    /// An operator paused it.
    Paused,
    /// The virtual MTA does not exist any more.
    NoVirtualMta,
    /// The destination moves to another shard.
    Moving,
}

/// Causes that there are.
pub const CAUSES: [Cause; 16] = [
    Cause::Receiver,
    Cause::Connecting,
    Cause::MaxSmtpOut,
    Cause::MaxMsgRate,
    Cause::MaxMsgPerHour,
    Cause::MaxDataVolumeRate,
    Cause::MaxConnectRate,
    Cause::ConnectPause,
    Cause::SharedLimit,
    Cause::Source,
    Cause::Retry,
    Cause::Recipients,
    Cause::Pool,
    Cause::Paused,
    Cause::NoVirtualMta,
    Cause::Moving,
];

/// Minutes that are remembered.
const MINUTES: usize = 5;

/// Seconds spent with each cause, by minute.
#[derive(Debug, Clone, Copy, Default)]
pub struct History {
    minutes: [[u8; CAUSES.len()]; MINUTES],
    /// The minute that is being counted, since 1970.
    now: i64,
}

impl History {
    /// Counts some seconds.
    pub fn count(&mut self, cause: Cause, seconds: u8, now_ms: i64) {
        let minute = now_ms / 60_000;
        for m in (self.now + 1).max(minute - MINUTES as i64 + 1)..=minute {
            self.minutes[m.rem_euclid(MINUTES as i64) as usize] = Default::default();
        }
        self.now = minute;
        let second = &mut self.minutes[minute.rem_euclid(MINUTES as i64) as usize][cause as usize];
        *second = second.saturating_add(seconds);
    }

    /// Causes with their share in percent, largest first.
    pub fn shares(&self) -> Vec<(Cause, u32)> {
        let of = |c: Cause| self.minutes.iter().map(|m| u32::from(m[c as usize])).sum::<u32>();
        let total: u32 = CAUSES.iter().map(|c| of(*c)).sum();
        let mut all: Vec<(Cause, u32)> =
            CAUSES.iter().map(|c| (*c, of(*c) * 100 / total.max(1))).filter(|(_, n)| *n > 0).collect();
        all.sort_by_key(|(c, n)| (std::cmp::Reverse(*n), *c));
        all
    }
}

/// What holds a path up now in sending the mail of a queue.
pub fn of_path(q: &Queue, p: &Path, may_pull: bool, now_ms: i64) -> Cause {
    if q.paused || p.paused {
        return Cause::Paused;
    }
    if p.held {
        return Cause::Moving;
    }
    if p.vmta == NO_VMTA {
        return Cause::NoVirtualMta;
    }
    if q.ready.is_empty() {
        let busy = p.connections > p.idle;
        return if busy || q.waiting.is_empty() { Cause::Receiver } else { Cause::Recipients };
    }
    if p.retry_at_ms > now_ms || q.retry_at_ms > now_ms {
        return Cause::Retry;
    }
    let l = p.limits();
    let w = &p.paces;
    let ready = |pace: &super::rate::Pace, rate: Rate| pace.ready_at_ns(rate) / 1_000_000;
    let rates = [
        (Cause::MaxMsgRate, ready(&w.msg, l.msg_rate)),
        (Cause::MaxMsgPerHour, ready(&w.hour, l.msg_per_hour)),
        (Cause::MaxDataVolumeRate, ready(&w.volume, l.data_volume_rate)),
    ];
    if let Some((cause, _)) = rates.into_iter().filter(|(_, at)| *at > now_ms).max_by_key(|(_, at)| *at) {
        return cause;
    }
    if !may_pull {
        return Cause::Pool;
    }
    if p.blocked_until_ms > now_ms {
        return if p.blocked_by.is_empty() { Cause::Source } else { Cause::SharedLimit };
    }
    let open = u64::from(p.connections + p.connecting);
    if l.smtp_out > 0 && open >= l.smtp_out {
        return if p.connections == 0 { Cause::Connecting } else { Cause::MaxSmtpOut };
    }
    if p.connecting > 0 {
        return Cause::Connecting;
    }
    if ready(&w.connect, l.connect_rate) > now_ms {
        return Cause::MaxConnectRate;
    }
    if p.connect_again_ms > now_ms {
        return Cause::ConnectPause;
    }
    Cause::Receiver
}

/// The directive behind a cause, in a mode.
pub fn directive(cause: Cause, mode: Mode) -> &'static str {
    let backoff = mode == Mode::Backoff;
    match cause {
        Cause::MaxSmtpOut if backoff => "backoff-max-smtp-out",
        Cause::MaxSmtpOut => "max-smtp-out",
        Cause::MaxMsgRate if backoff => "backoff-max-msg-rate",
        Cause::MaxMsgRate => "max-msg-rate",
        Cause::MaxMsgPerHour if backoff => "backoff-max-msg-per-hour",
        Cause::MaxMsgPerHour => "max-msg-per-hour",
        Cause::MaxDataVolumeRate if backoff => "backoff-max-data-volume-rate",
        Cause::MaxDataVolumeRate => "max-data-volume-rate",
        Cause::MaxConnectRate if backoff => "backoff-max-connect-rate",
        Cause::MaxConnectRate => "max-connect-rate",
        Cause::ConnectPause => "smtp-out-rampup-interval",
        Cause::Retry if backoff => "backoff-retry-after",
        Cause::Retry => "retry-after",
        Cause::Recipients => "retry-recipients-after",
        Cause::Pool => "pool-adaptive",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_those_of_the_last_five_minutes() {
        let mut h = History::default();
        let begin = 1_000_000 * 60_000;
        for s in 0..300 {
            h.count(if s < 249 { Cause::MaxMsgRate } else { Cause::Receiver }, 1, begin + s * 1000);
        }
        assert_eq!(h.shares(), [(Cause::MaxMsgRate, 83), (Cause::Receiver, 17)]);
        for s in 300..600 {
            h.count(Cause::Paused, 1, begin + s * 1000);
        }
        assert_eq!(h.shares(), [(Cause::Paused, 100)]);
        // After a rest nothing old counts.
        h.count(Cause::Retry, 1, begin + 3_600_000);
        assert_eq!(h.shares(), [(Cause::Retry, 100)]);
    }
}

//! Why a queue with work does not send more: a cause for every second, and the shares of the
//! last five minutes.

/// Declares [`Cause`] and, from the same list, [`CAUSES`].
macro_rules! causes {
    ($( $(#[$doc:meta])* $cause:ident, )*) => {
        /// A cause.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Cause { $( $(#[$doc])* $cause, )* }

        /// Causes that there are.
        pub const CAUSES: [Cause; [$( Cause::$cause ),*].len()] = [$( Cause::$cause ),*];
    };
}

causes! {
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
    /// DNS could not answer, and the path waits for `retry-after-dns-error`.
    RetryDns,
}

/// Minutes that are remembered.
const MINUTES: usize = 5;

/// Seconds spent with each cause, by minute.
#[derive(Debug, Clone, Copy, Default)]
struct Minutes {
    minutes: [[u8; CAUSES.len()]; MINUTES],
    /// The minute that is being counted, since 1970.
    now: i64,
}

impl Minutes {
    /// Counts seconds that ended at a time.
    fn count(&mut self, cause: Cause, seconds: u32, end_ms: i64) {
        for s in (0..seconds.min(60 * MINUTES as u32)).rev() {
            let minute = (end_ms - i64::from(s) * 1000) / 60_000;
            for m in (self.now + 1).max(minute - MINUTES as i64 + 1)..=minute {
                self.minutes[m.rem_euclid(MINUTES as i64) as usize] = Default::default();
            }
            self.now = self.now.max(minute);
            let second = &mut self.minutes[minute.rem_euclid(MINUTES as i64) as usize][cause as usize];
            *second = second.saturating_add(1);
        }
    }
}

/// What held a queue up in the last minutes. As long as that is one thing, it needs no more
/// memory than to say since when.
#[derive(Debug, Default)]
pub struct History {
    /// Causes before the last one.
    before: Option<Box<Minutes>>,
    /// Seconds with the last cause, up to the minutes that are remembered.
    seconds: u16,
    last: Option<Cause>,
    /// When it was counted last, Unix milliseconds; 0 for never.
    pub counted_ms: i64,
}

impl History {
    /// Counts the seconds since the last time for a cause.
    pub fn count(&mut self, cause: Cause, now_ms: i64) {
        const ALL: u32 = 60 * MINUTES as u32;
        let since = std::mem::replace(&mut self.counted_ms, now_ms);
        // A queue that was not looked at for long had no mail meanwhile.
        let seconds = if since == 0 { 1 } else { ((now_ms - since + 500) / 1000).clamp(1, 120) as u32 };
        if now_ms - since > 1000 * i64::from(ALL) {
            (self.before, self.seconds) = (None, 0);
        } else if self.last.is_some_and(|last| last != cause) {
            if let Some(last) = self.last {
                self.before.get_or_insert_default().count(last, u32::from(self.seconds), since);
            }
            self.seconds = 0;
        }
        self.last = Some(cause);
        self.seconds = (u32::from(self.seconds) + seconds).min(ALL) as u16;
        if u32::from(self.seconds) == ALL {
            self.before = None;
        }
    }

    /// Causes with their share in percent, largest first.
    pub fn shares(&self) -> Vec<(Cause, u32)> {
        let Some(last) = self.last else { return Vec::new() };
        let mut all = self.before.as_deref().copied().unwrap_or_default();
        all.count(last, u32::from(self.seconds), self.counted_ms);
        let of = |c: Cause| all.minutes.iter().map(|m| u32::from(m[c as usize])).sum::<u32>();
        let total: u32 = CAUSES.iter().map(|c| of(*c)).sum();
        let mut all: Vec<(Cause, u32)> =
            CAUSES.iter().map(|c| (*c, of(*c) * 100 / total.max(1))).filter(|(_, n)| *n > 0).collect();
        all.sort_by_key(|(c, n)| (std::cmp::Reverse(*n), *c));
        all
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
            h.count(if s < 249 { Cause::MaxMsgRate } else { Cause::Receiver }, begin + s * 1000);
        }
        assert_eq!(h.shares(), [(Cause::MaxMsgRate, 83), (Cause::Receiver, 17)]);
        for s in 300..600 {
            h.count(Cause::Paused, begin + s * 1000);
        }
        assert_eq!(h.shares(), [(Cause::Paused, 100)]);
        assert!(h.before.is_none() && size_of::<History>() <= 24);
        // After a rest nothing old counts.
        h.count(Cause::Retry, begin + 3_600_000);
        assert_eq!(h.shares(), [(Cause::Retry, 100)]);
    }

    #[test]
    fn a_hundred_thousand_queues_are_looked_at_every_hundred_seconds() {
        let mut h = History::default();
        let begin = 1_000_000 * 60_000;
        h.count(Cause::Connecting, begin);
        for s in [100, 200] {
            h.count(Cause::Retry, begin + s * 1000);
        }
        h.count(Cause::Receiver, begin + 299_000);
        assert_eq!(h.shares(), [(Cause::Retry, 66), (Cause::Receiver, 33)]);
    }
}

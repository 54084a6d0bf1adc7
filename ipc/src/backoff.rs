//! Limits of a path by its mode: `backoff-*` directives and the sets of them that
//! `backoff-policy` names.

use std::time::Duration;

use crate::rules::{ANY_CONNECTIONS, DomainRules, Rate};

/// Whether a path goes at its normal pace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Normal limits.
    #[default]
    Normal,
    /// The `backoff-` twins are in force.
    Backoff,
    /// Back from backoff: of `of` steps between the two, `step` are done.
    Returning {
        /// From 0.
        step: u16,
        /// Steps in all.
        of: u16,
    },
}

/// What a path may do; rates of 0 are unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections; [`ANY_CONNECTIONS`] for no limit, 0 for none.
    pub smtp_out: u64,
    /// Recipients attempted.
    pub msg_rate: Rate,
    /// Recipients attempted in an hour.
    pub msg_per_hour: Rate,
    /// Bytes delivered.
    pub data_volume_rate: Rate,
    /// Connections opened.
    pub connect_rate: Rate,
}

/// A `backoff-policy`.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Its name.
    pub name: &'static str,
    /// `backoff-max-smtp-out`
    pub max_smtp_out: u64,
    /// `backoff-max-msg-rate`
    pub max_msg_rate: Rate,
    /// `backoff-retry-after`
    pub retry_after: Duration,
    /// `backoff-to-normal-after`
    pub to_normal_after: Duration,
    /// `backoff-to-normal-after-delivery`
    pub to_normal_after_delivery: bool,
}

const fn minutes(n: u64) -> Duration {
    Duration::from_secs(n * 60)
}

/// The sets, in the order of the directive's values.
pub const POLICIES: [Policy; 3] = [
    Policy {
        name: "gentle",
        max_smtp_out: 5,
        max_msg_rate: Rate { count: 60, per: minutes(1) },
        retry_after: minutes(10),
        to_normal_after: minutes(30),
        to_normal_after_delivery: true,
    },
    Policy {
        name: "standard",
        max_smtp_out: 2,
        max_msg_rate: Rate { count: 20, per: minutes(1) },
        retry_after: minutes(30),
        to_normal_after: minutes(60),
        to_normal_after_delivery: false,
    },
    Policy {
        name: "aggressive",
        max_smtp_out: 1,
        max_msg_rate: Rate { count: 60, per: minutes(60) },
        retry_after: minutes(60),
        to_normal_after: minutes(240),
        to_normal_after_delivery: false,
    },
];

impl DomainRules {
    fn policy(&self) -> Option<&'static Policy> {
        self.backoff_policy.and_then(|n| POLICIES.get(usize::try_from(n).ok()?))
    }

    /// Limits in normal mode.
    pub fn normal(&self) -> Limits {
        Limits {
            smtp_out: self.max_smtp_out,
            msg_rate: self.max_msg_rate,
            msg_per_hour: Rate::per_hour(self.max_msg_per_hour),
            data_volume_rate: self.max_data_volume_rate,
            connect_rate: self.max_connect_rate,
        }
    }

    /// Limits in backoff mode: `backoff-` lines, else the policy's, else the normal ones; never
    /// more connections than in normal mode.
    pub fn backoff(&self) -> Limits {
        let n = self.normal();
        let p = self.policy();
        let smtp_out = self.backoff_max_smtp_out.or(p.map(|p| p.max_smtp_out)).unwrap_or(BACKOFF_SMTP_OUT);
        Limits {
            smtp_out: smtp_out.min(n.smtp_out),
            // What a line says is meant; a policy is never faster than normal mode.
            msg_rate: self.backoff_max_msg_rate.or(p.map(|p| slower(p.max_msg_rate, n.msg_rate))).unwrap_or(n.msg_rate),
            msg_per_hour: self.backoff_max_msg_per_hour.map_or(n.msg_per_hour, Rate::per_hour),
            data_volume_rate: self.backoff_max_data_volume_rate.unwrap_or(n.data_volume_rate),
            connect_rate: self.backoff_max_connect_rate.unwrap_or(n.connect_rate),
        }
    }

    /// Limits in a mode.
    pub fn limits(&self, mode: Mode) -> Limits {
        match mode {
            Mode::Normal => self.normal(),
            Mode::Backoff => self.backoff(),
            Mode::Returning { step, of } => self.backoff().towards(&self.normal(), step, of.max(1)),
        }
    }

    /// Waits of the queue clock in a mode.
    pub fn retry_waits(&self, mode: Mode) -> Vec<Duration> {
        let of_policy = || self.policy().map(|p| vec![p.retry_after]);
        match mode {
            Mode::Backoff => self.backoff_retry_after.clone().or_else(of_policy).unwrap_or_else(|| vec![minutes(60)]),
            _ => self.retry_after.clone(),
        }
    }

    /// How long backoff lasts when nothing else ends it.
    pub fn backoff_lasts(&self) -> Duration {
        self.backoff_to_normal_after.or(self.policy().map(|p| p.to_normal_after)).unwrap_or(minutes(60))
    }

    /// Whether a delivery ends backoff.
    pub fn backoff_ends_upon_delivery(&self) -> bool {
        let of_policy = self.policy().is_some_and(|p| p.to_normal_after_delivery);
        self.backoff_to_normal_after_delivery.unwrap_or(of_policy)
    }
}

/// `backoff-max-smtp-out` where nothing sets it.
const BACKOFF_SMTP_OUT: u64 = 20;

/// The slower of two rates of which a count of 0 is unlimited.
fn slower(a: Rate, b: Rate) -> Rate {
    let over = |r: Rate, other: Rate| u128::from(r.count) * other.per.as_millis();
    if b.count == 0 || (a.count > 0 && over(a, b) <= over(b, a)) { a } else { b }
}

impl Limits {
    /// A part of the way from these limits to wider ones. What has no limit at the end is let go
    /// with the last step.
    fn towards(&self, wide: &Limits, step: u16, of: u16) -> Limits {
        let (step, of) = (u64::from(step.min(of)), u64::from(of));
        let count = |a: u64, b: u64| match (a, b) {
            (_, 0) if step == of => 0,
            (0, b) => b,
            // Twice as much with each step, where the end is open.
            (a, 0) => a.saturating_mul(1 << step.min(16)),
            (a, b) if b > a => a + (b - a) * step / of,
            (_, b) => b,
        };
        let rate = |a: Rate, b: Rate| match (a.count, b.count) {
            (0, _) => b,
            (_, 0) if step == of => b,
            (_, 0) => Rate { count: a.count.saturating_mul(1 << step.min(16)), per: a.per },
            _ => {
                // In events an hour, for the windows may differ.
                let hourly = |r: Rate| (u128::from(r.count) * 3_600_000 / r.per.as_millis().max(1)) as u64;
                let now = count(hourly(a), hourly(b)).max(1);
                if now >= hourly(b) { b } else { in_window(now, b.per) }
            }
        };
        let smtp_out = match (self.smtp_out, wide.smtp_out) {
            (_, ANY_CONNECTIONS) if step == of => ANY_CONNECTIONS,
            // Deliveries take the steps: one connection is there for them where backoff has none.
            (a, ANY_CONNECTIONS) => a.max(1).saturating_mul(1 << step.min(16)),
            (a, b) if b > a => (a + (b - a) * step / of).max(1),
            (_, b) => b,
        };
        Limits {
            smtp_out,
            msg_rate: rate(self.msg_rate, wide.msg_rate),
            msg_per_hour: rate(self.msg_per_hour, wide.msg_per_hour),
            data_volume_rate: rate(self.data_volume_rate, wide.data_volume_rate),
            connect_rate: rate(self.connect_rate, wide.connect_rate),
        }
    }
}

/// `hourly` events an hour as a rate over `per`, or over the time that one takes if that is more.
fn in_window(hourly: u64, per: Duration) -> Rate {
    let count = u128::from(hourly) * per.as_millis() / 3_600_000;
    match u64::try_from(count) {
        Ok(count) if count > 0 => Rate { count, per },
        _ => Rate { count: 1, per: Duration::from_millis(3_600_000 / hourly.max(1)) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn per_minute(n: u64) -> Rate {
        Rate { count: n, per: minutes(1) }
    }

    #[test]
    fn twins_replace_what_they_name_and_connections_never_grow() {
        let r = DomainRules { max_smtp_out: 5, max_msg_rate: per_minute(100), ..Default::default() };
        assert_eq!(r.backoff().smtp_out, 5);
        assert_eq!(r.backoff().msg_rate, per_minute(100));
        let r = DomainRules { backoff_policy: Some(1), max_smtp_out: ANY_CONNECTIONS, ..r };
        assert_eq!((r.backoff().smtp_out, r.backoff().msg_rate), (2, per_minute(20)));
        let slow = DomainRules { max_msg_rate: Rate::per_hour(10), ..r.clone() };
        assert_eq!(slow.backoff().msg_rate, Rate::per_hour(10));
        let r = DomainRules { backoff_max_smtp_out: Some(3), backoff_max_msg_rate: Some(per_minute(7)), ..r };
        assert_eq!((r.backoff().smtp_out, r.backoff().msg_rate), (3, per_minute(7)));
        assert_eq!(r.retry_waits(Mode::Backoff), [minutes(30)]);
        for max_smtp_out in [8, ANY_CONNECTIONS] {
            let stops = DomainRules { max_smtp_out, backoff_max_smtp_out: Some(0), ..r.clone() };
            let at = |step| stops.limits(Mode::Returning { step, of: 4 }).smtp_out;
            assert_eq!((stops.backoff().smtp_out, at(0), at(4)), (0, 1, max_smtp_out), "it comes back by deliveries");
        }
        let none = DomainRules { max_smtp_out: 0, ..r };
        assert_eq!((none.normal().smtp_out, none.backoff().smtp_out), (0, 0), "0 sends nothing, in any mode");
        assert_eq!(none.limits(Mode::Returning { step: 1, of: 2 }).smtp_out, 0);
    }

    #[test]
    fn limits_rise_in_steps() {
        let r = DomainRules {
            max_smtp_out: 20,
            max_msg_rate: per_minute(100),
            backoff_max_smtp_out: Some(4),
            backoff_max_msg_rate: Some(Rate { count: 60, per: minutes(60) }),
            ..Default::default()
        };
        let at = |step| r.limits(Mode::Returning { step, of: 4 });
        assert_eq!([0, 1, 2, 3, 4].map(|s| at(s).smtp_out), [4, 8, 12, 16, 20]);
        assert_eq!([0, 1, 2, 3, 4].map(|s| at(s).msg_rate.count), [1, 25, 50, 75, 100]);
        let open = DomainRules { max_smtp_out: ANY_CONNECTIONS, max_msg_rate: Rate::UNLIMITED, ..r };
        let at = |step| open.limits(Mode::Returning { step, of: 2 });
        assert_eq!([0, 1, 2].map(|s| at(s).smtp_out), [4, 8, ANY_CONNECTIONS]);
        assert_eq!([0, 1, 2].map(|s| at(s).msg_rate.count), [60, 120, 0]);
    }
}

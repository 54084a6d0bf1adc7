//! One path (destination and virtual MTA): its connections, clocks, mode and health. Mail
//! waits in queues; a path pulls from its virtual MTA's own queue and from those of pools.

use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use ipc::backoff::{Limits, Mode};
use ipc::rules::{ANY_CONNECTIONS, DomainRules, Rate};

use super::activity::Activity;
use super::clocks::Clocks;
use super::ids::QueueId;
use super::queue::Queue;
use super::queue_set::QueueSet;
use super::rate::Pace;
use super::retry_wait::{failure_wait_ms, next_wait_ms};
use super::source::{Paces, Source};
use crate::classify::outcome::Failure;

/// Deliveries in a row that lead one step further back from backoff.
const DELIVERIES_PER_STEP: u32 = 10;
/// Busy connections of which none took anything for so long are taken to be held up, milliseconds.
const STUCK_MS: i64 = 1000;
/// How long what receivers said of a path is remembered that has nothing to do, milliseconds.
const REMEMBERED_MS: i64 = 3_600_000;
/// When limits changed, a path that waits to connect looks again after so long, milliseconds.
const LOOK_AGAIN_MS: i64 = 1000;
/// A path that took something so lately is lively, milliseconds.
const LIVELY_MS: i64 = 1000;
/// Health below which a path is only probed.
const PROBED_BELOW: f32 = 0.25;

/// A path: what it needs while it waits. The rest is its [`Activity`].
#[derive(Debug)]
pub struct Path {
    /// Destination.
    pub destination: Rc<str>,
    /// Virtual MTA: index in the snapshot in force.
    pub vmta: u32,
    /// Its name.
    pub vmta_name: Rc<str>,
    /// Directives in force.
    pub rules: Rc<DomainRules>,
    /// Queues that it pulls from.
    pub queues: QueueSet,
    /// Those of them that may have mail ready.
    pub ready: QueueSet,
    /// When the path may be tried again, Unix milliseconds; 0 when it may.
    pub retry_at_ms: i64,
    /// The last timer that was set for it.
    pub timer_ms: i64,
    /// Position in `retry-after`.
    pub retry_step: u32,
    /// The last failure.
    pub last_failure: Option<Rc<Failure>>,
    /// When that was, Unix seconds; 0 where it is not known.
    pub failed_s: u32,
    /// Recent attempts: 1 when all were taken, 0 when none.
    pub health: f32,
    /// When it last took something from a queue, Unix milliseconds.
    pub pulled_ms: i64,
    /// The destination is another shard's, or the shard that owned it before has not released
    /// it yet: no connection is opened and nothing is given out.
    pub held: bool,
    /// An operator paused it.
    pub paused: bool,
    /// Its virtual MTA was there when the mail was accepted and is not any more: the mail waits.
    pub orphaned: bool,
    /// The spool knows that a rate limit is in use, see [`crate::engine::inherited`].
    pub noted: bool,
    /// Place of the queue that was served last.
    pub turn: u32,
    /// Recipients attempted since the shard's load was last looked at.
    pub taken: u32,
    /// It wants to open connections and waits for others that do.
    pub waits_to_open: bool,
    /// Which of the virtual MTA's source addresses is next: connections rotate over the first 65,536.
    pub source_turn: u16,
    activity: Option<Box<Activity>>,
}

impl Deref for Path {
    type Target = Activity;

    fn deref(&self) -> &Activity {
        match &self.activity {
            Some(a) => a,
            None => Activity::none(),
        }
    }
}

impl DerefMut for Path {
    fn deref_mut(&mut self) -> &mut Activity {
        self.activity.get_or_insert_default()
    }
}

impl Path {
    /// A path without history.
    pub fn new(destination: Rc<str>, vmta: u32, vmta_name: Rc<str>, rules: Rc<DomainRules>) -> Path {
        Path {
            destination,
            vmta,
            vmta_name,
            rules,
            queues: QueueSet::default(),
            ready: QueueSet::default(),
            retry_at_ms: 0,
            timer_ms: 0,
            retry_step: 0,
            last_failure: None,
            failed_s: 0,
            health: 1.0,
            pulled_ms: 0,
            held: false,
            paused: false,
            orphaned: false,
            noted: false,
            waits_to_open: false,
            turn: u32::MAX,
            taken: 0,
            source_turn: 0,
            activity: None,
        }
    }

    /// What it is found by.
    pub(super) fn names(&self) -> (&str, &str) {
        (&self.destination, &self.vmta_name)
    }

    /// `destination/vmta`, as operators and accounting name it.
    pub fn name(&self) -> String {
        format!("{}/{}", ipc::message::shown_domain(&self.destination), self.vmta_name)
    }

    /// What it may do in its mode.
    pub fn limits(&self) -> Limits {
        self.rules.limits(self.mode)
    }

    /// Until when what is known of it counts.
    pub fn clocks(&self) -> Clocks {
        let sources = self.sources.iter();
        let of_sources =
            sources.clone().map(|s| s.paces.busy_until_ms()).fold(self.sources_in_use_until_ms(), i64::max);
        Clocks {
            retry_ms: self.retry_at_ms,
            mode_ms: match self.mode {
                Mode::Normal => 0,
                // It leaves backoff by itself.
                Mode::Backoff => i64::MAX,
                Mode::Returning { .. } => self.mode_since_ms.saturating_add(REMEMBERED_MS),
            },
            ill_ms: if self.health < PROBED_BELOW { self.pulled_ms.saturating_add(REMEMBERED_MS) } else { 0 },
            windows_ms: self.paces.busy_until_ms(),
            source_windows_ms: of_sources,
            disabled_ms: sources.map(|s| s.disabled_until_ms).fold(0, i64::max),
            skipped_ms: self.skipped_hosts.iter().map(|(_, until_ms)| *until_ms).fold(0, i64::max),
            matches_ms: self.matches.until_ms(),
        }
    }

    /// Until when source addresses that nothing is known of may have windows that the process before used, Unix milliseconds.
    pub fn sources_in_use_until_ms(&self) -> i64 {
        let since_ns = self.sources_in_use_ns;
        if since_ns == 0 {
            return 0;
        }
        let r = &self.rules;
        let limits = [&r.source_ip_max_msg_rate, &r.source_ip_max_data_volume_rate, &r.source_ip_max_connect_rate];
        limits.iter().flat_map(|l| l.rates()).map(|l| Pace::exhausted(l, since_ns).tat_ns / 1_000_000).fold(0, i64::max)
    }

    /// Nothing going on, and nothing that still counts.
    pub fn is_idle(&self, now_ms: i64) -> bool {
        self.queues.is_empty()
            && self.connections == 0
            && self.connecting == 0
            && !self.paused
            && self.sources.iter().all(|s| s.connections == 0)
            && self.clocks().are_over(now_ms)
    }

    /// Frees what it needs no longer; the next attempt makes it anew.
    pub fn rest(&mut self, now_ms: i64) {
        if self.activity.as_ref().is_some_and(|a| a.is_over(now_ms)) && self.clocks().of_activity().are_over(now_ms) {
            self.activity = None;
        }
    }

    /// Other rules are in force: what was counted for those before does not count.
    pub fn forget_matches(&mut self) {
        self.activity.iter_mut().for_each(|a| a.matches.clear());
    }

    /// Its queues that may have mail ready, beginning with the one behind the queue that was served last.
    pub fn in_turn(&self) -> impl Iterator<Item = QueueId> + '_ {
        self.ready.behind(self.turn)
    }

    /// One of its connections can carry the mail of a queue that rolled up.
    pub fn serves(&self, q: &Queue) -> bool {
        self.open_hosts.iter().any(|(host, parameters, _)| q.is_carried_by(host, parameters.as_ref()))
    }

    /// It has as many connections as it may.
    pub fn is_full(&self) -> bool {
        let most = self.limits().smtp_out;
        u64::from(self.connections + self.connecting) >= most
    }

    /// A connection beyond `max-smtp-out`, after a reload or backoff lowered it.
    pub fn has_surplus(&self) -> bool {
        let most = self.limits().smtp_out;
        u64::from(self.connections) > most
    }

    /// It took something of late, so the connections that it is opening will stand soon.
    pub fn is_lively(&self, now_ms: i64) -> bool {
        now_ms - self.pulled_ms < LIVELY_MS
    }

    /// May send, as far as operators, clocks and ownership decide.
    pub fn may_send(&self, now_ms: i64) -> bool {
        !self.held && !self.paused && self.retry_at_ms <= now_ms
    }

    /// Something failed, and this says what.
    pub fn failed(&mut self, now_ms: i64, failure: Rc<Failure>) {
        self.failed_s = u32::try_from(now_ms / 1000).unwrap_or(0);
        self.last_failure = Some(failure);
    }

    /// The path as a whole failed: starts the retry clock and walks one step on. `ill`: the failure speaks ill of the path, see
    /// [`crate::classify::health`].
    pub fn defer(&mut self, now_ms: i64, failure: Rc<Failure>, ill: bool) {
        let wait_ms = failure_wait_ms(&failure, &self.rules, &self.rules.retry_waits(self.mode), &mut self.retry_step);
        self.retry_at_ms = now_ms.saturating_add(wait_ms);
        self.failed(now_ms, failure);
        if ill {
            self.judged(false);
        }
    }

    /// Its mail goes to other hosts from now on: what failed at those before is no reason to wait.
    pub fn leads_elsewhere(&mut self) {
        (self.retry_at_ms, self.retry_step) = (0, 0);
        if self.connect_again_ms.max(self.ask_again_ms) > 0 {
            (self.connect_again_ms, self.ask_again_ms) = (0, 0);
        }
    }

    /// Something was delivered: the retry list begins anew, and limits may rise.
    pub fn delivered(&mut self, now_ms: i64) -> Option<ModeChange> {
        self.retry_step = 0;
        self.judged(true);
        match self.mode {
            Mode::Backoff if self.rules.backoff_ends_upon_delivery() => self.leave_backoff(now_ms),
            Mode::Returning { step, of } => {
                self.good_in_a_row += 1;
                if self.good_in_a_row >= DELIVERIES_PER_STEP {
                    self.good_in_a_row = 0;
                    self.mode = if step + 1 >= of { Mode::Normal } else { Mode::Returning { step: step + 1, of } };
                    self.limits_changed(now_ms);
                }
                None
            }
            _ => None,
        }
    }

    /// A reply spoke well or ill of the path. Ill counts at once; trust comes back in steps.
    pub fn judged(&mut self, well: bool) {
        self.health = if well { (self.health + 0.1).min(1.0) } else { self.health * 0.7 };
        if !well && self.good_in_a_row > 0 {
            self.good_in_a_row = 0;
        }
    }

    /// Goes into backoff; `None` when it is there already.
    pub fn enter_backoff(&mut self, now_ms: i64) -> Option<ModeChange> {
        let lasts = self.rules.backoff_lasts().as_millis().min(1 << 50) as i64;
        self.enter_backoff_until(now_ms.saturating_add(lasts), now_ms)
    }

    /// Goes into backoff until a time, Unix milliseconds, whatever the rules say; `None` when it is there already. Each
    /// reason for it sets the time anew.
    pub fn enter_backoff_until(&mut self, until_ms: i64, now_ms: i64) -> Option<ModeChange> {
        self.mode_until_ms = until_ms;
        if self.mode == Mode::Backoff {
            return None;
        }
        self.mode = Mode::Backoff;
        self.forced = false;
        self.mode_since_ms = now_ms;
        Some(ModeChange::Entered)
    }

    /// Comes back from backoff, in steps where the rules say so; `None` when it was not there.
    pub fn leave_backoff(&mut self, now_ms: i64) -> Option<ModeChange> {
        if self.mode != Mode::Backoff {
            return None;
        }
        self.mode_since_ms = now_ms;
        self.forced = false;
        self.good_in_a_row = 0;
        self.mode = match self.rules.backoff_return_steps.min(100) as u16 {
            0 => Mode::Normal,
            of => Mode::Returning { step: 0, of },
        };
        // A wait that `backoff-retry-after` began lasts no longer than `retry-after` would have it last from now on.
        let mut step = self.retry_step.saturating_sub(1);
        let wait_ms = next_wait_ms(&self.rules.retry_waits(self.mode), &mut step);
        self.retry_at_ms = self.retry_at_ms.min(now_ms.saturating_add(wait_ms));
        self.limits_changed(now_ms);
        Some(ModeChange::Left)
    }

    /// When its rates let the next recipient go, Unix milliseconds.
    pub fn rates_ready_ms(&self) -> i64 {
        let (l, p) = (self.limits(), &self.paces);
        let of_msg = p.msg.ready_at_ns(l.msg_rate).max(p.hour.ready_at_ns(l.msg_per_hour));
        (of_msg.max(p.volume.ready_at_ns(l.data_volume_rate)) + 999_999) / 1_000_000
    }

    /// When the next connection may be opened, as far as clocks and rates decide; Unix
    /// milliseconds.
    pub fn connect_at_ms(&self) -> i64 {
        let ready_ns = self.paces.connect.ready_at_ns(self.limits().connect_rate);
        let by_rates = self.rates_ready_ms().max((ready_ns + 999_999) / 1_000_000);
        self.retry_at_ms.max(self.connect_again_ms).max(self.ask_again_ms).max(by_rates)
    }

    /// Limits changed: no window waits longer than the new one can ask for.
    pub fn limits_changed(&mut self, now_ms: i64) {
        let l = self.limits();
        let gap = self.rules.smtp_out_rampup_interval.as_millis().min(1 << 50) as i64;
        let Some(a) = &mut self.activity else { return };
        a.ramp_up_ms = a.ramp_up_ms.min(now_ms.saturating_add(gap));
        a.spread.iter_mut().for_each(|t| t.limits_changed = true);
        // It may wait for what a rate over all shards would have given under the old limits.
        a.connect_again_ms = a.connect_again_ms.min(now_ms + LOOK_AGAIN_MS).max(a.ramp_up_ms);
        for (pace, rate) in a.paces.under(&l) {
            pace.rescale(rate, now_ms.saturating_mul(1_000_000));
        }
    }

    /// Connections that mail below `reserved-priority` may have: one at least, also where backoff leaves fewer than
    /// are reserved.
    pub fn unreserved(&self) -> u64 {
        let max = self.limits().smtp_out;
        let none_kept = max == ANY_CONNECTIONS || self.rules.reserved_smtp_out == 0;
        if none_kept { u64::MAX } else { max.saturating_sub(self.rules.reserved_smtp_out).max(1) }
    }

    /// Mail of this priority may go by `reserved-smtp-out`.
    pub fn is_urgent(&self, priority: u8) -> bool {
        u64::from(priority) >= self.rules.reserved_priority
    }

    /// The least priority that a free connection may serve.
    pub fn least_priority(&self) -> u8 {
        let full = u64::from(self.ordinary) >= self.unreserved();
        if full { self.rules.reserved_priority.min(100) as u8 } else { 0 }
    }

    /// New connections to open now for `backlog` entries that wait for this path, `urgent` of
    /// which may go by reserved connections.
    pub fn wanted(&self, backlog: u64, urgent: u64, now_ms: i64) -> u32 {
        if backlog == 0 || !self.may_send(now_ms) || self.connect_at_ms() > now_ms {
            return 0;
        }
        let l = self.limits();
        let max = l.smtp_out.min(u64::from(u32::MAX)) as u32;
        let have =
            if ipc::planted!("opening-not-counted") { self.connections } else { self.connections + self.connecting };
        // Connections that have taken nothing for long will not take anything soon.
        let moving = now_ms - self.pulled_ms < STUCK_MS;
        let busy = if moving { self.connections - self.idle.min(self.connections) } else { 0 };
        // One connection serves several short messages before another would have opened;
        // the number grows at most twofold at a time while mail keeps waiting.
        let waiting = backlog.saturating_sub(u64::from(busy) * 2).min(u64::from(u32::MAX)) as u32;
        let step = self.connections.max(1).saturating_sub(self.connecting);
        let unreserved = self.unreserved().min(u64::from(max)) as u32;
        let beyond_open = |entries: u32, max: u32| {
            entries.saturating_sub(self.idle + self.connecting).min(step).min(max.saturating_sub(have))
        };
        let wanted = match unreserved < max {
            true => beyond_open(waiting, unreserved).max(beyond_open(urgent.min(u64::from(u32::MAX)) as u32, max)),
            false => beyond_open(waiting, max),
        };
        let one_at_a_time = l.connect_rate.count > 0 || !self.rules.smtp_out_rampup_interval.is_zero();
        if one_at_a_time { wanted.min(1) } else { wanted }
    }

    /// A connection is about to be opened.
    pub fn opening(&mut self, now_ns: i64) {
        self.connecting += 1;
        let rate = self.limits().connect_rate;
        self.paces.connect.advance(rate, now_ns, 1);
        let gap = self.rules.smtp_out_rampup_interval.as_millis().min(1 << 50) as i64;
        if gap > 0 {
            self.ramp_up_ms = now_ns / 1_000_000 + gap;
            self.connect_again_ms = self.connect_again_ms.max(self.ramp_up_ms);
        }
    }

    /// Share of a pool's mail that it should get, for a weight: by what receivers said of late.
    pub fn trust(&self) -> f32 {
        if !self.rules.pool_adaptive {
            return 1.0;
        }
        (self.health * self.health).max(self.rules.pool_floor.clamp(0, 100) as f32 / 100.0)
    }

    /// Receivers do not speak ill of it.
    pub fn is_trusted(&self) -> bool {
        self.health >= PROBED_BELOW || !self.rules.pool_adaptive
    }

    /// A path that is not trusted is tried now and then, whatever its share.
    pub fn is_due_for_probe(&self, now_ms: i64) -> bool {
        self.is_trusted() || now_ms - self.pulled_ms >= self.rules.pool_probe_interval.as_millis().min(1 << 50) as i64
    }

    /// The source's state, kept from the first time that something is to be known of it.
    pub fn source(&mut self, ip: IpAddr) -> &mut Source {
        let at = self.sources.iter().position(|s| s.ip == ip).unwrap_or_else(|| {
            let paces = self.begun(ip);
            self.sources.push(Source { ip, connections: 0, paces, disabled_until_ms: 0 });
            self.sources.len() - 1
        });
        &mut self.sources[at]
    }

    /// Windows of a source address that nothing is known of: of the process before the most
    /// that it may have sent is assumed.
    fn begun(&self, ip: IpAddr) -> Paces {
        let since_ns = self.sources_in_use_ns;
        let in_use = |rate: Rate| since_ns > 0 && rate.count > 0;
        let of = |rate: Rate| if in_use(rate) { Pace::exhausted(rate, since_ns) } else { Pace::default() };
        Paces {
            msg: of(self.rules.source_ip_max_msg_rate.of(ip)),
            hour: Pace::default(),
            volume: of(self.rules.source_ip_max_data_volume_rate.of(ip)),
            connect: of(self.rules.source_ip_max_connect_rate.of(ip)),
        }
    }

    /// When a connection from `ip` may be opened, as far as it itself is concerned; Unix
    /// milliseconds, `i64::MAX` where only an event can tell.
    pub fn source_ready_ms(&self, ip: IpAddr) -> i64 {
        let known = self.sources.iter().find(|s| s.ip == ip);
        let most = self.rules.source_ip_max_smtp_out.of(ip).count;
        if most != 0 && known.is_some_and(|s| u64::from(s.connections) >= most) {
            return i64::MAX;
        }
        let begun = self.begun(ip);
        let paces = known.map_or(&begun, |s| &s.paces);
        let r = &self.rules;
        let ready_ns = (paces.msg.ready_at_ns(r.source_ip_max_msg_rate.of(ip)))
            .max(paces.volume.ready_at_ns(r.source_ip_max_data_volume_rate.of(ip)))
            .max(paces.connect.ready_at_ns(r.source_ip_max_connect_rate.of(ip)));
        known.map_or(0, |s| s.disabled_until_ms).max((ready_ns + 999_999) / 1_000_000)
    }

    /// Whether limits of its own hold for source addresses here.
    pub fn limits_sources(&self) -> bool {
        let r = &self.rules;
        !(r.source_ip_max_smtp_out.is_empty()
            && r.source_ip_max_connect_rate.is_empty()
            && r.source_ip_max_msg_rate.is_empty()
            && r.source_ip_max_data_volume_rate.is_empty())
    }
}

/// A change of mode that people are told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModeChange {
    /// Into backoff.
    Entered,
    /// Out of it.
    Left,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn path(rules: DomainRules) -> Path {
        Path::new("d.test".into(), 0, "v".into(), Rc::new(rules))
    }

    #[test]
    fn backoff_begins_ends_and_returns_in_steps() {
        let mut p = path(DomainRules { max_smtp_out: 8, backoff_max_smtp_out: Some(2), ..Default::default() });
        assert_eq!(p.enter_backoff(1000), Some(ModeChange::Entered));
        assert_eq!(p.enter_backoff(2000), None);
        assert_eq!((p.limits().smtp_out, p.mode_until_ms), (2, 2000 + 3_600_000));
        assert_eq!(p.leave_backoff(3000), Some(ModeChange::Left));
        let mut seen = vec![p.limits().smtp_out];
        for _ in 0..4 {
            for _ in 0..DELIVERIES_PER_STEP {
                p.delivered(4000);
            }
            seen.push(p.limits().smtp_out);
        }
        assert_eq!((seen, p.mode), (vec![2, 3, 5, 6, 8], Mode::Normal));
        assert_eq!(p.leave_backoff(5000), None);
    }

    #[test]
    fn what_counts_for_a_time_outlasts_the_mail() {
        type Change = fn(&mut Path);
        let all: [(Change, i64); 5] = [
            (|p| p.skipped_hosts.push(("mx.d.test".into(), 5_000)), 5_000),
            (|p| assert!(!p.matches.triggers(0, 2, 3_000, 1_000)), 4_001),
            (|p| (p.health, p.pulled_ms) = (0.1, 1_000), 3_601_000),
            (|p| p.retry_at_ms = 2_000, 2_000),
            (|p| p.source([127, 0, 0, 1].into()).disabled_until_ms = 7_000, 7_000),
        ];
        for (change, until_ms) in all {
            let mut p = path(DomainRules::default());
            assert!(p.is_idle(1_000));
            change(&mut p);
            assert_eq!((p.is_idle(until_ms - 1), p.is_idle(until_ms)), (false, true), "{until_ms}");
            p.rest(until_ms);
            assert!(p.activity.is_none());
        }
    }

    #[test]
    fn trust_is_lost_at_once_and_comes_back_in_steps() {
        let mut p = path(DomainRules::default());
        (0..5).for_each(|_| p.judged(false));
        assert!(p.trust() < 0.05, "{}", p.trust());
        (0..20).for_each(|_| p.judged(false));
        assert!((p.trust() - 0.01).abs() < f32::EPSILON);
        p.pulled_ms = 1000;
        assert!(!p.is_due_for_probe(10_999) && p.is_due_for_probe(11_000));
        (0..5).for_each(|_| p.judged(true));
        assert!(p.trust() < 0.5);
        (0..5).for_each(|_| p.judged(true));
        assert!(p.trust() > 0.9);
        p.health = 0.0;
        p.rules = Rc::new(DomainRules { pool_adaptive: false, ..Default::default() });
        assert!((p.trust() - 1.0).abs() < f32::EPSILON);
    }

    #[test]
    fn one_refused_connection_is_no_reason_to_hammer() {
        let mut p = path(DomainRules::default());
        assert_eq!(p.wanted(1, 0, 1_000), 1);
        p.connect_again_ms = 6_000;
        assert_eq!((p.wanted(1, 0, 5_999), p.wanted(1, 0, 6_000)), (0, 1));
    }

    #[test]
    fn reserved_connections_are_for_urgent_mail() {
        let rules = DomainRules { max_smtp_out: 4, reserved_smtp_out: 1, ..Default::default() };
        let mut p = path(rules);
        (p.connections, p.ordinary) = (3, 3);
        assert_eq!((p.wanted(100, 0, 1), p.wanted(100, 1, 1), p.least_priority()), (0, 1, 75));
        p.ordinary = 2;
        assert_eq!((p.least_priority(), p.is_urgent(74), p.is_urgent(75)), (0, false, true));
        p.connections = 4;
        assert_eq!(p.wanted(100, 100, 1), 0);
        let mut all = path(DomainRules { max_smtp_out: 1, reserved_smtp_out: 3, ..Default::default() });
        assert_eq!((all.wanted(9, 0, 1), all.least_priority()), (1, 0), "the last one is not kept free");
        (all.connections, all.ordinary) = (1, 1);
        assert_eq!((all.wanted(9, 9, 1), all.least_priority()), (0, 75));
        all.rules = Rc::new(DomainRules::default());
        assert_eq!(all.least_priority(), 0);
    }

    #[test]
    fn windows_of_backoff_do_not_last_in_normal_mode() {
        let per_hour = |n| Rate::per_hour(n);
        let mut p = path(DomainRules {
            backoff_max_msg_rate: Some(per_hour(1)),
            max_msg_rate: Rate { count: 10, per: Duration::from_secs(1) },
            backoff_return_steps: 0,
            ..Default::default()
        });
        let now = 1_000_000_000;
        p.enter_backoff(now);
        let rate = p.limits().msg_rate;
        p.paces.msg.advance(rate, now * 1_000_000, 1);
        assert!(p.rates_ready_ms() > now + 3_000_000);
        p.leave_backoff(now);
        assert!(p.rates_ready_ms() <= now + 1000, "{}", p.rates_ready_ms() - now);
    }

    #[test]
    fn who_leaves_backoff_waits_no_longer_than_in_normal_mode() {
        let mut p = path(DomainRules {
            retry_after: vec![Duration::from_secs(30), Duration::from_secs(90)],
            backoff_retry_after: Some(vec![Duration::from_secs(3600)]),
            backoff_return_steps: 0,
            ..Default::default()
        });
        let (now, failed) = (1_000_000_000, || Rc::new(Failure::own("4.4.1", "away")));
        p.enter_backoff(now);
        p.defer(now, failed(), true);
        p.leave_backoff(now + 1000);
        assert_eq!(p.retry_at_ms, now + 31_000);
        p.enter_backoff(now + 2000);
        p.defer(now + 2000, failed(), true);
        p.leave_backoff(now + 3000);
        assert_eq!(p.retry_at_ms, now + 93_000, "the second wait of the list");
        p.enter_backoff(now + 4000);
        p.retry_at_ms = now + 4500;
        p.leave_backoff(now + 4000);
        assert_eq!(p.retry_at_ms, now + 4500, "a shorter wait stays");
    }

    #[test]
    fn a_path_at_rest_costs_what_it_must_remember() {
        assert!(size_of::<Path>() <= 144, "{}", size_of::<Path>());
        let mut p = path(DomainRules { max_connect_rate: Rate::per_hour(3600), ..Default::default() });
        let now = 1_000_000_000;
        p.opening(now * 1_000_000);
        p.connecting -= 1;
        p.defer(now, Rc::new(Failure::own("4.4.1", "away")), true);
        p.rest(now);
        assert!(p.activity.is_some() && p.paces.connect.tat_ns > 0, "a window that counts is not forgotten");
        p.rest(now + 10_000);
        p.limits_changed(now + 10_000);
        assert!(p.activity.is_none() && p.connections == 0 && p.retry_step == 1);
        p.enter_backoff(now);
        p.rest(now + 10_000);
        assert_eq!(p.mode, Mode::Backoff);
    }

    #[test]
    fn connections_open_no_faster_than_the_ramp_up_says() {
        let mut p = path(DomainRules { smtp_out_rampup_interval: Duration::from_secs(2), ..Default::default() });
        p.connections = 4;
        assert_eq!(p.wanted(100, 0, 10_000), 1);
        p.opening(10_000_000_000);
        assert_eq!((p.wanted(100, 0, 11_999), p.wanted(100, 0, 12_000)), (0, 1));
        // A reload is no reason to open one sooner, unless it says so.
        p.limits_changed(10_500);
        assert_eq!((p.wanted(100, 0, 11_999), p.wanted(100, 0, 12_000)), (0, 1));
        p.rules = Rc::new(DomainRules::default());
        p.limits_changed(10_500);
        assert!(p.wanted(100, 0, 11_500) > 0);
    }
}

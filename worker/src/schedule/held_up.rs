//! What holds a path and its queues up.

use ipc::layers::NO_VMTA;
use ipc::rules::Rate;

use super::cause::Cause;
use super::ids::QueueId;
use super::limit::Holder;
use super::message::HeldContent;
use super::path::Path;
use super::queue::{Puller, Queue};
use super::scheduler::Scheduler;

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
    if p.retry_at_ms > now_ms || q.retry_at_ms() > now_ms {
        let failure = if p.retry_at_ms > now_ms { &p.last_failure } else { &q.last_failure };
        return if failure.as_ref().is_some_and(|f| f.is_of_dns) { Cause::RetryDns } else { Cause::Retry };
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
        let of_source = p.blocked_by.is_none_or(|l| l.holder() == Holder::Source);
        return if of_source && p.spread.is_none() { Cause::Source } else { Cause::SharedLimit };
    }
    let open = u64::from(p.connections + p.connecting);
    if open >= l.smtp_out {
        return if p.connections == 0 && l.smtp_out > 0 { Cause::Connecting } else { Cause::MaxSmtpOut };
    }
    let best = q.ready.next(|_| true).map_or(0, |(_, e)| e.priority);
    if best < p.least_priority() {
        // The connections that are left are reserved for mail of a higher priority.
        return Cause::MaxSmtpOut;
    }
    if p.connecting > 0 && p.connections == 0 {
        return Cause::Connecting;
    }
    if ready(&w.connect, l.connect_rate) > now_ms {
        return Cause::MaxConnectRate;
    }
    if p.connect_again_ms > now_ms {
        return Cause::ConnectPause;
    }
    if p.connecting > 0 { Cause::Connecting } else { Cause::Receiver }
}

impl<C: HeldContent> Scheduler<C> {
    /// Counts the seconds since the last time for a queue that has work.
    pub fn count_cause(&mut self, id: QueueId, now_ms: i64) {
        let Some(q) = self.queues.get(id).filter(|q| q.recipients > 0) else { return };
        let cause = self.cause_of(id, q, now_ms);
        if let Some(q) = self.queues.get_mut(id) {
            q.history.count(cause, now_ms);
        }
    }

    /// What holds a queue up now: what does so with the path that is held up least.
    pub fn cause_of(&self, id: QueueId, q: &Queue, now_ms: i64) -> Cause {
        if self.has_paused_jobs_only(q) {
            return Cause::Paused;
        }
        let of_puller = |p: &Puller| {
            let path = self.paths.get(p.path)?;
            Some(of_path(q, path, self.may_pull(id, p.path, now_ms), now_ms))
        };
        let none = if q.paused {
            Cause::Paused
        } else if q.ready.is_empty() {
            Cause::Recipients
        } else {
            Cause::Connecting
        };
        q.pullers.iter().filter_map(of_puller).min().unwrap_or(none)
    }

    /// Mail is ready, and all of it belongs to jobs that an operator paused.
    pub fn has_paused_jobs_only(&self, q: &Queue) -> bool {
        !q.ready.is_empty() && q.ready.next(|j| self.jobs.may_go(j)).is_none()
    }
}

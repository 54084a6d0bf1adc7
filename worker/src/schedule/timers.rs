//! When queues and paths are to be looked at again.

use std::cmp::Reverse;

use super::entry::Entry;
use super::ids::{PathId, QueueId, Timer};
use super::message::HeldContent;
use super::scheduler::Scheduler;

impl<C: HeldContent> Scheduler<C> {
    /// Lets recipients wait in their queue until `due_ms`, to the second above.
    pub(super) fn wait(&mut self, id: QueueId, entry: Entry, due_ms: i64) {
        // `never` lies behind the last second that fits.
        let due_s = (due_ms.saturating_add(999) / 1000).clamp(0, i64::from(u32::MAX));
        if let Some(q) = self.queues.get_mut(id) {
            let sooner = q.waiting.peek().is_none_or(|Reverse((first, _))| i64::from(*first) > due_s);
            if q.waiting.is_empty() {
                // Most that wait are alone.
                q.waiting.reserve_exact(1);
            }
            q.waiting.push(Reverse((due_s as u32, entry)));
            if sooner {
                self.timers.push(Reverse((due_s * 1000, Timer::Queue(id))));
            }
        }
    }

    /// Wakes path `id` at a time.
    pub fn wake_at(&mut self, id: PathId, at_ms: i64) {
        // Every message that joins a waiting path asks for the same time.
        if let Some(p) = self.paths.get_mut(id).filter(|p| p.timer_ms != at_ms && at_ms < i64::MAX) {
            p.timer_ms = at_ms;
            self.timers.push(Reverse((at_ms, Timer::Path(id))));
        }
    }

    /// When [`Scheduler::due`] has something, Unix milliseconds.
    pub fn next_timer(&self) -> Option<i64> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }

    /// What has come due.
    pub fn due(&mut self, now_ms: i64) -> Vec<Timer> {
        let mut all = Vec::new();
        while let Some(Reverse((at, timer))) = self.timers.peek().copied() {
            if at > now_ms {
                break;
            }
            self.timers.pop();
            match timer {
                Timer::Path(id) => {
                    let Some(p) = self.paths.get_mut(id) else { continue };
                    p.timer_ms = 0;
                }
                Timer::Queue(id) => {
                    let Some(q) = self.queues.get_mut(id) else { continue };
                    q.promote(now_ms, &self.messages);
                    if let Some(Reverse((due, _))) = q.waiting.peek()
                        && !ipc::planted!("timer-of-those-who-wait-longer-left-out")
                    {
                        self.timers.push(Reverse((i64::from(*due) * 1000, timer)));
                    }
                    self.rouse(id);
                }
            }
            all.push(timer);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::Next;
    use super::super::scheduler::tests::{next, with};
    use super::*;
    use ipc::rules::DomainRules;

    #[test]
    fn a_waiting_queue_sets_one_timer_however_many_ask() {
        let (mut s, id) = with(DomainRules::default(), 1);
        for _ in 0..1000 {
            s.wake_at(id.only_path(), 5_000);
        }
        assert_eq!(s.timers.len(), 1);
        assert_eq!(s.due(5_000), [Timer::Path(id.only_path())]);
        s.wake_at(id.only_path(), 9_000);
        assert_eq!(s.next_timer(), Some(9_000));
    }

    #[test]
    fn who_waits_for_ever_is_not_tried_at_once() {
        let (mut s, id) = with(DomainRules::default(), 1);
        let Next::Send(b) = next(&mut s, id, 0) else { panic!("nothing to send") };
        s.retry(&b, &[0], ipc::rules::NEVER_MS as i64);
        assert_eq!(next(&mut s, id, 1_800_000_000_000_000_000), Next::Idle);
    }
}

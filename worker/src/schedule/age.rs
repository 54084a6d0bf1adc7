//! What becomes of mail by its age: expiry, and reports of delay.

use std::cmp::Reverse;

use super::entry::Entry;
use super::ids::QueueId;
use super::message::{HeldContent, Message, windows_end_s};
use super::queue::next_delay;
use super::scheduler::Scheduler;

impl<C: HeldContent> Scheduler<C> {
    /// Takes recipients past `bounce-after` (and `bounce-upon-no-mx`), or the last of their windows, out of queue `id`, wherever they wait.
    pub fn expired(&mut self, id: QueueId, now_ms: i64) -> Vec<Entry> {
        let Some(q) = self.queues.get_mut(id) else { return Vec::new() };
        let limit = if q.no_mx { q.rules.bounce_after.min(q.rules.bounce_upon_no_mx) } else { q.rules.bounce_after };
        let limit = limit.as_millis().min(i64::MAX as u128 / 2) as i64;
        let now_s = windows_end_s(now_ms);
        let windows_end = self.windows_end_s.get(&id);
        if q.oldest_ms.saturating_add(limit) > now_ms && windows_end.is_none_or(|end| *end > now_s) {
            return Vec::new();
        }
        let messages = &self.messages;
        let (mut oldest, mut first_end) = (i64::MAX, None);
        let mut old = Vec::new();
        let mut keep = |e: &Entry| {
            let Some(m) = messages.get(e.slot as usize) else { return false };
            let alive = match m.windows_end_s {
                0 => m.received_ms.saturating_add(limit) > now_ms,
                end => end > now_s,
            };
            if alive {
                match m.windows_end_s {
                    0 => oldest = oldest.min(m.received_ms),
                    end => first_end = Some(first_end.unwrap_or(u32::MAX).min(end)),
                }
            } else {
                old.push(*e);
            }
            alive
        };
        q.ready.retain(&mut keep);
        q.waiting.retain(|Reverse((_, e))| keep(e));
        q.oldest_ms = oldest;
        if let Some(end) = first_end {
            self.windows_end_s.insert(id, end);
        } else {
            self.windows_end_s.remove(&id);
        }
        old
    }

    /// Recipients in queue `id` whose sender is to hear of their delay by now, with the time
    /// they are due. Some of these recipients may have been reported already.
    pub fn delayed(&mut self, id: QueueId, now_ms: i64) -> Vec<(Entry, i64)> {
        let Some(q) = self.queues.get_mut(id) else { return Vec::new() };
        if q.delay_at_ms > now_ms {
            return Vec::new();
        }
        // A recipient that reached a multiple of the interval since the last look was due at this time at the earliest.
        let (since, every) = (std::mem::replace(&mut q.delay_at_ms, i64::MAX), q.delay_every_ms());
        let messages = &self.messages;
        let mut first = i64::MAX;
        let mut found = Vec::new();
        let waiting = q.waiting.iter().map(|Reverse((due, e))| (*e, i64::from(*due) * 1000));
        for (e, due) in q.ready.iter().map(|(_, e)| (e, 0)).chain(waiting) {
            // What waits for its window is not late, and what was attempted in one is reported of by then.
            let may_be_late = |m: &&Message<C>| m.notify_delay && m.windows_end_s == 0;
            let Some(m) = messages.get(e.slot as usize).filter(may_be_late) else { continue };
            first = first.min(next_delay(m.received_ms, now_ms, every));
            if next_delay(m.received_ms, since - 1, every) <= now_ms {
                found.push((e, due));
            }
        }
        q.delay_at_ms = first;
        found
    }
}

#[cfg(test)]
mod tests {
    use super::super::scheduler::tests::{next, with};
    use super::*;
    use std::rc::Rc;
    use std::time::Duration;

    use super::super::batch::Next;
    use ipc::rules::DomainRules;

    #[test]
    fn expiry_finds_recipients_in_every_state() {
        let (mut s, id) = with(DomainRules { bounce_after: Duration::from_secs(5), ..Default::default() }, 3);
        let Next::Send(b) = next(&mut s, id, 0) else { panic!("nothing to send") };
        s.retry(&b, &[0], 60_000);
        s.put_back(&b, &[1, 2]);
        assert!(s.expired(id, 4_999).is_empty());
        assert_eq!(s.expired(id, 5_000).iter().map(Entry::len).sum::<u64>(), 3);
        assert_eq!(s.settle(id, b.slot, b.key, 3), Some(true));
        assert_eq!(s.settle(id, b.slot, b.key, 3), None, "it has ended");
    }

    #[test]
    fn what_has_windows_ends_with_the_last_of_them() {
        let (mut s, id) = with(DomainRules { bounce_after: Duration::from_secs(5), ..Default::default() }, 1);
        let m = Message {
            key: 2,
            received_ms: 0,
            body_len: 1,
            left: 1,
            notify_delay: true,
            alone: false,
            windows_end_s: 9,
            job: 0,
            content: None,
        };
        let slot = s.add("", m);
        s.enqueue(id, Entry { slot, start: 0, end: 1, priority: 50, attempts: 0 }, 7_000, 0);
        let mut slots = |now| s.expired(id, now).into_iter().map(|e| e.slot).collect::<Vec<_>>();
        assert_eq!((slots(5_000), slots(8_999), slots(9_000)), (vec![0], vec![], vec![slot]));
    }

    #[test]
    fn delays_are_told_of_at_every_multiple() {
        let every = Duration::from_millis(1000);
        let (mut s, id) = with(DomainRules { notify_of_delay_every: every, ..Default::default() }, 1);
        let slot = s.add(
            "",
            Message {
                key: 2,
                received_ms: 300,
                body_len: 1,
                left: 1,
                notify_delay: true,
                alone: false,
                windows_end_s: 0,
                job: 0,
                content: None,
            },
        );
        s.enqueue(id, Entry { slot, start: 0, end: 1, priority: 50, attempts: 0 }, 9000, 400);
        let mut told = |now| s.delayed(id, now).into_iter().map(|(e, due)| (e.slot, due)).collect::<Vec<_>>();
        assert_eq!(told(999), []);
        assert_eq!(told(1000), [(0, 0)]);
        assert_eq!(told(1299), []);
        assert_eq!(told(2100), [(0, 0), (1, 9000)]);
        assert_eq!(told(2300), [(1, 9000)]);
    }

    #[test]
    fn what_was_in_flight_expires_when_it_is_back() {
        let (mut s, id) = with(DomainRules { bounce_after: Duration::from_secs(5), ..Default::default() }, 2);
        s.paths[id.only_path()].rules =
            Rc::new(DomainRules { max_rcpt_per_transaction: 1, ..(*s.queues[id].rules).clone() });
        let Next::Send(b) = next(&mut s, id, 0) else { panic!("nothing to send") };
        assert_eq!(s.expired(id, 6_000).len(), 1);
        s.retry(&b, &b.recipients, 7_000);
        assert_eq!(s.expired(id, 8_000).len(), 1);
    }
}

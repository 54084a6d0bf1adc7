//! Memory of queues that were deep is given back.

use super::message::HeldContent;
use super::scheduler::Scheduler;

impl<C: HeldContent> Scheduler<C> {
    /// Frees tables that were made for a deeper queue; true when that, or content that went, is worth
    /// being given back to the system.
    pub fn shrink(&mut self) -> bool {
        let fell = self.depth.fell(self.messages.len(), self.content_bytes);
        if fell {
            self.messages.shrink_to_fit();
            self.queues.shrink_to_fit();
            self.paths.shrink_to_fit();
            self.timers.shrink_to_fit();
        }
        fell
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::QueueId;
    use crate::schedule::message::Message;

    #[test]
    fn tables_of_a_deep_queue_are_freed_with_it() {
        let mut s = Scheduler::<()>::default();
        let m = |key| Message {
            key,
            received_ms: 0,
            body_len: 1,
            left: 1,
            notify_delay: false,
            alone: false,
            windows_end_s: 0,
            job: 0,
            content: None,
        };
        let slots: Vec<u32> = (0..10_000).map(|key| s.add("", m(key))).collect();
        assert!(!s.shrink());
        (0..).zip(slots).for_each(|(key, slot)| assert_eq!(s.settle(QueueId::NOTHING, slot, key, 1), Some(true)));
        assert!(s.shrink() && s.messages.capacity() == 0 && !s.shrink());
    }
}

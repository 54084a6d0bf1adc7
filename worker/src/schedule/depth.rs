//! How deep the queues were, and what they held: when most of it is gone its memory is given back.

use super::message::Held;
use super::scheduler::Scheduler;

/// Fewer messages than these are not worth it.
const MESSAGES_MIN: usize = 4096;
/// Less content than that neither, bytes.
const CONTENT_MIN: u64 = 8 << 20;

/// The most that was held since memory was given back last.
#[derive(Debug, Default)]
pub struct Depth {
    messages: usize,
    content_bytes: u64,
}

impl Depth {
    /// Notes what is held now; true when most of what was held is gone, and the count begins anew.
    fn fell(&mut self, messages: usize, content_bytes: u64) -> bool {
        self.messages = self.messages.max(messages);
        self.content_bytes = self.content_bytes.max(content_bytes);
        let fewer = self.messages >= MESSAGES_MIN && messages <= self.messages / 4;
        let less = self.content_bytes >= CONTENT_MIN && content_bytes <= self.content_bytes / 4;
        if fewer || less {
            *self = Depth { messages, content_bytes };
        }
        fewer || less
    }
}

impl<C: Held> Scheduler<C> {
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
    use crate::schedule::message::Message;

    #[test]
    fn what_a_deep_queue_held_is_given_back_once_and_a_shallow_one_costs_nothing() {
        let mut d = Depth::default();
        assert!(!d.fell(MESSAGES_MIN - 1, CONTENT_MIN - 1) && !d.fell(0, 0));
        assert!(!d.fell(100_000, 64 << 20));
        assert!(!d.fell(30_000, 32 << 20));
        assert!(d.fell(30_000, 1 << 20), "content was dropped at the first attempt");
        assert!(!d.fell(29_000, 0) && d.fell(7_000, 0) && d.fell(0, 0) && !d.fell(0, 0));
    }

    #[test]
    fn tables_of_a_deep_queue_are_freed_with_it() {
        let mut s = Scheduler::<()>::default();
        let m = |key| Message { key, received_ms: 0, body_len: 1, left: 1, notify_delay: false, job: 0, content: None };
        let slots: Vec<u32> = (0..10_000).map(|key| s.add("", m(key))).collect();
        assert!(!s.shrink());
        slots.into_iter().for_each(|slot| assert!(s.settle(0, slot, 1)));
        assert!(s.shrink() && s.messages.capacity() == 0 && !s.shrink());
    }
}

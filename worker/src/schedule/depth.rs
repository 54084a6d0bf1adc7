//! How deep the queues were, and what they held: when most of it is gone its memory is given back.

/// The memory of fewer messages is not worth giving back.
const MESSAGES_MIN: usize = 4096;
/// Nor is that of less content than this, bytes.
const CONTENT_MIN: u64 = 8 << 20;

/// The most that was held since memory was given back last.
#[derive(Debug, Default)]
pub struct Depth {
    messages: usize,
    content_bytes: u64,
}

impl Depth {
    /// Notes what is held now; true when most of what was held is gone, and the count begins anew.
    pub(super) fn fell(&mut self, messages: usize, content_bytes: u64) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_deep_queue_held_is_given_back_once_and_a_shallow_one_costs_nothing() {
        let mut d = Depth::default();
        assert!(!d.fell(MESSAGES_MIN - 1, CONTENT_MIN - 1) && !d.fell(0, 0));
        assert!(!d.fell(100_000, 64 << 20));
        assert!(!d.fell(30_000, 32 << 20));
        assert!(d.fell(30_000, 1 << 20), "content was dropped at the first attempt");
        assert!(!d.fell(29_000, 0) && d.fell(7_000, 0) && d.fell(0, 0) && !d.fell(0, 0));
    }
}

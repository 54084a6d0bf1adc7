//! What receivers said last, of mail that was found when the spool opened: recipients' states have it, and queues know it again
//! before anything is tried.

use std::rc::Rc;

use super::ids::QueueId;
use super::message::HeldContent;
use super::scheduler::{Recalled, Scheduler};
use crate::classify::outcome::Failure;

impl<C: HeldContent> Scheduler<C> {
    /// A recipient of queue `id` that waits until a time was told `reply`, in this shard before its start or in another. Of
    /// several the latest counts.
    pub fn recall(&mut self, id: QueueId, reply: &str, due_ms: i64) {
        let Some(known) = self.queues.get(id).map(|q| q.last_failure.is_some()) else { return };
        let is_older = self.recalled.due_ms.get(&id).is_none_or(|at| *at >= due_ms);
        if reply.is_empty() || known && is_older {
            return;
        }
        let failure = self.shared_failure(Failure::recalled(reply));
        self.queues.get_mut(id).into_iter().for_each(|q| q.last_failure = Some(Rc::clone(&failure)));
        if !self.recalled.is_over {
            self.recalled.due_ms.insert(id, due_ms);
        }
    }

    /// The spool has passed all mail.
    pub fn has_recalled(&mut self) {
        self.recalled = Recalled { is_over: true, ..Default::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::super::scheduler::tests::with;
    use ipc::rules::DomainRules;

    #[test]
    fn the_latest_reply_counts_and_nothing_that_is_newer_is_overwritten() {
        let (mut s, id) = with(DomainRules::default(), 1);
        let said =
            |s: &super::Scheduler<()>| s.queues[id].last_failure.as_ref().map(ToString::to_string).unwrap_or_default();
        s.recall(id, "", 1);
        assert_eq!(said(&s), "");
        s.recall(id, "451 4.7.1 one", 2000);
        s.recall(id, "451 4.7.1 before", 1000);
        assert_eq!(said(&s), "\"451 4.7.1 one\"");
        s.recall(id, "452 two", 3000);
        let v = s.queues[id].last_failure.as_ref().map(|f| f.verdict.clone());
        assert_eq!(v.map(|v| (v.status, v.remote)), Some(("4.0.0".to_owned(), true)));
        s.has_recalled();
        s.recall(id, "451 later in the file", 9000);
        assert_eq!(said(&s), "\"452 two\"");
        // What was no reply is told as it is.
        s.queues[id].last_failure = None;
        s.recall(id, "the message could not be signed", 1);
        assert_eq!(said(&s), "the message could not be signed");
    }
}

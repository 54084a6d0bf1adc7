//! Shares of other shards that are being stored here.

use std::cell::RefCell;
use std::rc::Rc;

use ipc::dice::{HashMap, HashSet};
use ipc::mesh::Origin;
use ipc::message::HandoffId;

use crate::signal::Signal;

/// Handoffs being stored.
#[derive(Debug, Default)]
pub struct InboundHandoffs {
    in_progress: RefCell<HashSet<HandoffId>>,
    /// By origin, when it opened the connection that it offers on, and what is raised when it offers on another one.
    connections: RefCell<HashMap<u8, (i64, Rc<Signal>)>>,
}

impl InboundHandoffs {
    /// Nothing is being stored.
    pub fn is_idle(&self) -> bool {
        self.in_progress.borrow().is_empty()
    }

    /// An origin offers on another connection. Of several only the latest is read: the origin has given up what is unread on the
    /// others and offers it again, so it would be read behind its repeat. Ends the connection before. The signal that this answers is raised
    /// when the new one is to end in turn; `None` where a later one is known already, for greetings that came on two connections can be read
    /// in any order.
    pub(super) fn connected(&self, origin: Origin) -> Option<Rc<Signal>> {
        let mut connections = self.connections.borrow_mut();
        if connections.get(&origin.shard).is_some_and(|(latest, _)| origin.opened_ns < *latest) {
            return None;
        }
        let replaced = Rc::<Signal>::default();
        let before = connections.insert(origin.shard, (origin.opened_ns, Rc::clone(&replaced)));
        before.iter().for_each(|(_, before)| before.raise());
        Some(replaced)
    }

    /// One is being stored from now on; `None` where it is already.
    pub(super) fn begin(&self, id: HandoffId) -> Option<InProgress<'_>> {
        let is_new = self.in_progress.borrow_mut().insert(id);
        (is_new || ipc::planted!("handoff-stored-twice-at-once")).then(|| InProgress(self, id))
    }
}

/// A handoff that is being stored, until this is dropped.
pub(super) struct InProgress<'a>(&'a InboundHandoffs, HandoffId);

impl Drop for InProgress<'_> {
    fn drop(&mut self) {
        self.0.in_progress.borrow_mut().remove(&self.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeat_leaves_the_first_in_progress() {
        let inbound = InboundHandoffs::default();
        let id = HandoffId { origin: 1, incarnation: 2, sequence: 3 };
        let first = inbound.begin(id);
        assert!(first.is_some() && inbound.begin(id).is_none() && inbound.begin(id).is_none());
        drop(first);
        assert!(inbound.is_idle() && inbound.begin(id).is_some());
    }
}

//! Mail on its way to new owners, in memory. [`super::moving`] hands it over.

use std::cell::{Cell, RefCell};

use ipc::dice::{HashMap, HashSet};

use super::handoff::Share;
use crate::schedule::{Entry, QueueId};

/// Something to hand over, with the time that it is due, under its identity.
pub(super) struct Offer {
    pub queue: QueueId,
    pub entry: Entry,
    pub due: i64,
    pub share: Share,
}

/// Moves under way.
#[derive(Default)]
pub struct Moves {
    /// Owners that are handed mail.
    pub(super) owners: RefCell<HashSet<u8>>,
    /// Messages that an owner may have, and has not answered for.
    unanswered: Cell<usize>,
    /// Offered before this process was started, and not answered for: taken out of their queues.
    pub(super) found: RefCell<HashMap<u8, Vec<Offer>>>,
}

impl Moves {
    /// An orderly stop would leave a message with two shards.
    pub fn are_unanswered(&self) -> bool {
        self.unanswered.get() > 0
    }
}

/// A message that was offered.
pub(super) struct Unanswered<'a>(&'a Moves);

impl<'a> Unanswered<'a> {
    pub fn new(moves: &'a Moves) -> Self {
        moves.unanswered.set(moves.unanswered.get() + 1);
        Unanswered(moves)
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        self.0.unanswered.set(self.0.unanswered.get() - 1);
    }
}

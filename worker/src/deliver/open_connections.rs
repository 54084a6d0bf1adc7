//! All open connections of a shard, by the limits that they hold a place of.

use std::cell::{Cell, RefCell};
use std::collections::hash_map::Entry;
use std::rc::Rc;

use ipc::dice::HashMap;
use ipc::ledger::requests::Request;
use slab::Slab;
use tokio::sync::Notify;

use crate::schedule::PathId;
use crate::signal::Signal;

/// An open connection.
#[derive(Debug)]
pub(super) struct Open {
    pub path: PathId,
    /// Limits that it holds a place of.
    pub keys: Vec<u64>,
    pub since_ms: i64,
    pub idle: Cell<bool>,
    /// Ends it behind the message in hand.
    pub end: Rc<Signal>,
    /// Ends it at once.
    pub cut: Rc<Signal>,
    /// Whose place it makes.
    pub request: Cell<Option<Request>>,
}

/// All open connections of a shard, and when requests were last looked at.
#[derive(Debug, Default)]
pub struct Connections {
    pub(super) open: RefCell<Slab<Rc<Open>>>,
    /// How many of a path hold a place of a limit.
    held: RefCell<HashMap<(PathId, u64), u32>>,
    /// Told when a connection holds a place of a limit.
    begun: Notify,
    /// Unix milliseconds.
    pub(super) answered_ms: Cell<i64>,
}

impl Connections {
    /// Connections of path `id` that hold a place of `key`.
    pub fn held(&self, id: PathId, key: u64) -> u32 {
        self.held.borrow().get(&(id, key)).copied().unwrap_or(0)
    }

    pub(super) fn insert(&self, c: &Rc<Open>) -> usize {
        let mut held = self.held.borrow_mut();
        c.keys.iter().for_each(|k| *held.entry((c.path, *k)).or_default() += 1);
        if !c.keys.is_empty() {
            self.begun.notify_one();
        }
        self.open.borrow_mut().insert(Rc::clone(c))
    }

    /// Resolves when some connection holds a place of a limit; only one task may wait for it.
    pub(super) async fn hold_places(&self) {
        while self.held.borrow().is_empty() {
            self.begun.notified().await;
        }
    }

    pub(super) fn remove(&self, at: usize) {
        let Some(c) = self.open.borrow_mut().try_remove(at) else { return };
        let mut held = self.held.borrow_mut();
        for k in &c.keys {
            if let Entry::Occupied(mut n) = held.entry((c.path, *k)) {
                *n.get_mut() -= 1;
                if *n.get() == 0 {
                    n.remove();
                }
            }
        }
    }
}

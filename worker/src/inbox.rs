//! Work that one part of a shard leaves for a task of another.

use std::cell::RefCell;
use std::collections::VecDeque;

use tokio::sync::Notify;

/// What is to be done, in order. What is put in is bounded by what it is about: recipients in queues, paths.
#[derive(Debug)]
pub struct Inbox<T> {
    all: RefCell<VecDeque<T>>,
    wake: Notify,
}

impl<T> Default for Inbox<T> {
    fn default() -> Self {
        Inbox { all: RefCell::default(), wake: Notify::new() }
    }
}

impl<T> Inbox<T> {
    /// Leaves something to be done.
    pub fn put(&self, one: T) {
        self.all.borrow_mut().push_back(one);
        self.wake.notify_one();
    }

    /// The next one, when there is one. One task takes them.
    pub async fn next(&self) -> T {
        loop {
            if let Some(one) = self.all.borrow_mut().pop_front() {
                return one;
            }
            self.wake.notified().await;
        }
    }
}

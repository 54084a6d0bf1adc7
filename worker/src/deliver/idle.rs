//! Connections that are open and wait for work.

use std::cell::RefCell;
use std::rc::Rc;

use ipc::dice::HashMap;
use tokio::sync::Notify;

use crate::schedule::PathId;

/// What wakes them, by path.
#[derive(Debug, Clone, Default)]
pub struct IdleConnections(Rc<RefCell<HashMap<PathId, Rc<Notify>>>>);

/// One connection's place among those of its path that wait; given up when this is dropped.
#[derive(Debug)]
pub struct Waiting {
    all: IdleConnections,
    path: PathId,
    wake: Rc<Notify>,
}

impl IdleConnections {
    /// A connection of a path begins to wait.
    pub fn join(&self, path: PathId) -> Waiting {
        let wake = Rc::clone(self.0.borrow_mut().entry(path).or_default());
        Waiting { all: self.clone(), path, wake }
    }

    /// There may be work for one connection of a path.
    pub fn wake_one(&self, path: PathId) {
        if let Some(wake) = self.0.borrow().get(&path) {
            wake.notify_one();
        }
    }

    /// Something has changed that all connections of a path look at.
    pub fn wake_all(&self, path: PathId) {
        if let Some(wake) = self.0.borrow().get(&path) {
            wake.notify_waiters();
        }
    }
}

impl Waiting {
    /// Resolves when there may be work.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // One count is the table's, one this one's.
        if Rc::strong_count(&self.wake) == 2 {
            self.all.0.borrow_mut().remove(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_that_waits_takes_the_entry_of_its_path_along() {
        let all = IdleConnections::default();
        let path = PathId::numbered(3);
        let (a, b) = (all.join(path), all.join(path));
        all.wake_one(path);
        a.woken().await;
        drop(a);
        assert_eq!(all.0.borrow().len(), 1);
        drop(b);
        assert!(all.0.borrow().is_empty());
        // Nobody waits: nothing is kept for whoever comes.
        all.wake_one(path);
        assert!(all.0.borrow().is_empty());
    }
}

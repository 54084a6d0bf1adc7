//! A signal that is raised once, and that many tasks can wait for.

use std::cell::Cell;

use tokio::sync::Notify;

/// A signal that many tasks can wait for.
#[derive(Debug, Default)]
pub struct Signal {
    on: Cell<bool>,
    notify: Notify,
}

impl Signal {
    /// Raises it for good.
    pub fn raise(&self) {
        self.on.set(true);
        self.notify.notify_waiters();
    }

    /// Raised.
    pub fn is_raised(&self) -> bool {
        self.on.get()
    }

    /// Resolves when it is raised.
    pub async fn wait(&self) {
        let waiting = self.notify.notified();
        if !self.on.get() {
            waiting.await;
        }
    }
}

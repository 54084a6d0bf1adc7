//! Sessions of clients that no `<source>` names, and which of them make room for others.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use slab::Slab;
use tokio::time::Instant;

use crate::signal::Signal;

/// When places are scarce a stranger may be silent for so long before its first command, between messages, and within one
/// (for a command, or 4,096 bytes of content).
const PATIENCE: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(10), Duration::from_secs(30)];
/// Operators hear of it so often at most.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// What a stranger's session waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    /// The first command.
    ForGreeting,
    /// A command outside of a transaction.
    BetweenMessages,
    /// A command or content within one.
    WithinMessage,
}

#[derive(Debug)]
struct Session {
    /// From when on it may have to make room; `None` while it waits for nothing that the client has to do.
    due: Cell<Option<Instant>>,
    leave: Signal,
}

/// Sessions of strangers in one shard. When places are scarce those make room that have kept theirs waiting beyond what is granted
/// then, the longest first. Every shard looks after its own.
#[derive(Debug, Default)]
pub struct Strangers {
    sessions: RefCell<Slab<Rc<Session>>>,
    watched: Cell<bool>,
    /// Those that made room since operators were told, and when that was.
    told: Cell<(u32, Option<Instant>)>,
}

impl Strangers {
    /// Another one's session begins.
    pub fn enter(self: &Rc<Self>) -> Stranger {
        let session = Rc::new(Session { due: Cell::new(None), leave: Signal::default() });
        let at = self.sessions.borrow_mut().insert(Rc::clone(&session));
        Stranger { all: Rc::clone(self), session, at }
    }

    /// Somebody has to look after them from now on, and nobody does yet; true once, until [`Strangers::are_gone`].
    pub fn begins_watch(&self) -> bool {
        !self.watched.replace(true)
    }

    /// There are none any more, and nobody looks after them.
    pub fn are_gone(&self) -> bool {
        let gone = self.sessions.borrow().is_empty();
        if gone {
            self.watched.set(false);
        }
        gone
    }

    /// Asks up to `n` to leave, with those that were asked and have not gone yet; those that are due for the longest first.
    /// How many that are.
    pub fn make_room(&self, n: usize, now: Instant) -> usize {
        let all = self.sessions.borrow();
        let n = n.saturating_sub(all.iter().filter(|(_, s)| s.leave.is_raised()).count());
        let due = |s: &Rc<Session>| s.due.get().filter(|due| *due <= now && !s.leave.is_raised());
        let mut late: Vec<(Instant, &Rc<Session>)> = all.iter().filter_map(|(_, s)| Some((due(s)?, s))).collect();
        if late.len() > n {
            late.select_nth_unstable_by_key(n, |(due, _)| *due);
            late.truncate(n);
        }
        late.iter().for_each(|(_, s)| s.leave.raise());
        late.len()
    }

    /// Counts those that made room, and tells operators of them now and then.
    pub fn tell(&self, made_room: usize, now: Instant) {
        let (n, at) = self.told.get();
        let n = n.saturating_add(made_room as u32);
        let tells = n > 0 && at.is_none_or(|at| now - at >= TELL_EVERY);
        self.told.set(if tells { (0, Some(now)) } else { (n, at) });
        if tells {
            tracing::warn!(
                clients = n,
                "connections are scarce (total-max-smtp-in): silent clients that no <source> names made room"
            );
        }
    }
}

/// The session of a stranger among the others; it leaves when it is dropped.
pub struct Stranger {
    all: Rc<Strangers>,
    session: Rc<Session>,
    at: usize,
}

impl Stranger {
    /// The client has to do something, since a time.
    pub fn waits(&self, what: Waits, since: Instant) {
        self.session.due.set(Some(since + PATIENCE[what as usize]));
    }

    /// It waits for us.
    pub fn is_busy(&self) {
        self.session.due.set(None);
    }

    /// Resolves when it has to make room: never while the client waits for us.
    pub async fn has_to_leave(&self) {
        self.session.leave.wait().await;
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.all.sessions.borrow_mut().try_remove(self.at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_due_for_the_longest_makes_room_first() {
        let all = Strangers::default();
        let now = Instant::now();
        let dues = [Some(3), None, Some(1), Some(2), Some(9)];
        let sessions = dues.map(|s| {
            let due = Cell::new(s.map(|s| now + Duration::from_secs(s)));
            let session = Rc::new(Session { due, leave: Signal::default() });
            all.sessions.borrow_mut().insert(Rc::clone(&session));
            session
        });
        let left = || sessions.iter().map(|s| s.leave.is_raised()).collect::<Vec<_>>();
        assert_eq!(all.make_room(5, now), 0, "nobody is late");
        let later = now + Duration::from_secs(5);
        assert_eq!((all.make_room(2, later), left()), (2, vec![false, false, true, true, false]));
        assert_eq!(all.make_room(2, later), 0, "two are on their way");
        assert_eq!((all.make_room(9, later), left()), (1, vec![true, false, true, true, false]));
    }
}

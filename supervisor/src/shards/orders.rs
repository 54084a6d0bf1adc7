//! Orders on their way to one worker.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use ipc::control::ToWorker;
use tokio::sync::Notify;

/// What is sent to a worker.
pub type Order = (ToWorker, Vec<OwnedFd>);

/// Questions that may wait for one worker.
const QUESTIONS_MAX: usize = 64;

/// Orders that wait. Of maps, configurations, accounting files and stops the last one counts, so that
/// none is ever refused and a worker that reads slowly is sent no more than it needs.
#[derive(Debug, Default)]
pub struct Orders {
    waiting: RefCell<VecDeque<Order>>,
    more: Notify,
}

fn is_question(what: &ToWorker) -> bool {
    matches!(what, ToWorker::Rows { .. })
}

/// There are as many as the worker has asked for.
fn is_answer(what: &ToWorker) -> bool {
    matches!(what, ToWorker::ProgramEnded { .. })
}

impl Orders {
    /// Adds an order, in place of those that it makes void; false for a question too many.
    pub fn give(&self, what: ToWorker, fds: Vec<OwnedFd>) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        if is_question(&what) {
            if waiting.iter().filter(|(w, _)| is_question(w)).count() >= QUESTIONS_MAX {
                return false;
            }
        } else if !is_answer(&what) {
            waiting.retain(|(w, _)| std::mem::discriminant(w) != std::mem::discriminant(&what));
        }
        waiting.push_back((what, fds));
        self.more.notify_one();
        true
    }

    /// Answers that the worker has not read yet.
    pub fn answers(&self) -> usize {
        self.waiting.borrow().iter().filter(|(w, _)| is_answer(w)).count()
    }

    /// The next one, when there is one.
    pub async fn next(&self) -> Order {
        loop {
            if let Some(o) = self.waiting.borrow_mut().pop_front() {
                return o;
            }
            self.more.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use ipc::control::{ProgramEnd, RowsOf};
    use ipc::shard_map::ShardMap;

    use super::*;

    #[test]
    fn questions_are_bounded_and_maps_answers_and_stops_are_never_lost() {
        let orders = Orders::default();
        let question = |request| ToWorker::Rows { request, what: RowsOf::Switches };
        let map = ShardMap::first(1, Vec::new());
        for n in 0..1000 {
            assert_eq!(orders.give(question(n), Vec::new()), n < QUESTIONS_MAX as u64);
            assert!(orders.give(ToWorker::Map(ShardMap { epoch: n, ..map.clone() }), Vec::new()));
        }
        for number in 0..9 {
            assert!(orders.give(ToWorker::ProgramEnded { number, how: ProgramEnd::Signal }, Vec::new()));
        }
        assert!(orders.give(ToWorker::Stop { grace_ms: 1 }, Vec::new()));
        let waiting = orders.waiting.borrow();
        assert_eq!(waiting.len(), QUESTIONS_MAX + 9 + 2);
        assert!(matches!(&waiting[QUESTIONS_MAX].0, ToWorker::Map(m) if m.epoch == 999), "the last map");
        assert!(matches!(waiting.back(), Some((ToWorker::Stop { .. }, _))), "in the order given");
    }
}

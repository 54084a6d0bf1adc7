//! A small sorted set of queues. Nearly every path has one; a tree would cost more than the
//! path's own state.

use super::queue::QueueId;

/// Queues in order.
#[derive(Debug, Clone, Default)]
pub struct QueueSet(Vec<QueueId>);

impl QueueSet {
    /// Adds one.
    pub fn insert(&mut self, id: QueueId) {
        if let Err(at) = self.0.binary_search(&id) {
            if self.0.is_empty() {
                self.0.reserve_exact(1);
            }
            self.0.insert(at, id);
        }
    }

    /// Takes one out.
    pub fn remove(&mut self, id: QueueId) {
        if let Ok(at) = self.0.binary_search(&id) {
            self.0.remove(at);
            if self.0.is_empty() {
                self.0 = Vec::new();
            }
        }
    }

    /// It is among them.
    pub fn contains(&self, id: QueueId) -> bool {
        self.0.binary_search(&id).is_ok()
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The first.
    pub fn first(&self) -> Option<QueueId> {
        self.0.first().copied()
    }

    /// All of them in order.
    pub fn iter(&self) -> impl Iterator<Item = QueueId> + '_ {
        self.0.iter().copied()
    }

    /// All of them, those behind `last` first.
    pub fn behind(&self, last: QueueId) -> impl Iterator<Item = QueueId> + '_ {
        let at = self.0.partition_point(|id| *id <= last);
        self.0[at..].iter().chain(&self.0[..at]).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_a_turn() {
        let mut s = QueueSet::default();
        [5, 1, 9, 5].into_iter().for_each(|id| s.insert(id));
        let order = |last| s.behind(last).collect::<Vec<_>>();
        assert_eq!(
            (order(1), order(9), order(QueueId::MAX), order(6)),
            (vec![5, 9, 1], vec![1, 5, 9], vec![1, 5, 9], vec![9, 1, 5])
        );
        s.remove(5);
        s.remove(4);
        assert_eq!((s.first(), s.len(), s.contains(5), s.contains(9)), (Some(1), 2, false, true));
    }
}

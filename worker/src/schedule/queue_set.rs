//! A small sorted set of queues. Nearly every path has one, which needs no memory of its own.

use super::ids::QueueId;

/// Queues in order.
#[derive(Debug, Clone, Default)]
pub struct QueueSet(Members);

#[derive(Debug, Clone, Default)]
enum Members {
    #[default]
    None,
    One(QueueId),
    #[allow(clippy::box_collection)]
    Many(Box<Vec<QueueId>>),
}

impl QueueSet {
    fn all(&self) -> &[QueueId] {
        match &self.0 {
            Members::None => &[],
            Members::One(id) => std::slice::from_ref(id),
            Members::Many(all) => all,
        }
    }

    /// Adds one.
    pub fn insert(&mut self, id: QueueId) {
        match &mut self.0 {
            Members::None => self.0 = Members::One(id),
            Members::One(first) if *first != id => {
                let (first, second) = (id.min(*first), id.max(*first));
                self.0 = Members::Many(Box::new(vec![first, second]));
            }
            Members::One(_) => {}
            Members::Many(all) => {
                if let Err(at) = all.binary_search(&id) {
                    all.insert(at, id);
                }
            }
        }
    }

    /// Takes one out.
    pub fn remove(&mut self, id: QueueId) {
        match &mut self.0 {
            Members::One(one) if *one == id => self.0 = Members::None,
            Members::Many(all) => {
                if let Ok(at) = all.binary_search(&id) {
                    all.remove(at);
                }
                if let [one] = all[..] {
                    self.0 = Members::One(one);
                }
            }
            _ => {}
        }
    }

    /// It is among them.
    pub fn contains(&self, id: QueueId) -> bool {
        self.all().binary_search(&id).is_ok()
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.all().is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all().len()
    }

    /// The first.
    pub fn first(&self) -> Option<QueueId> {
        self.iter().next()
    }

    /// All of them in order.
    pub fn iter(&self) -> impl Iterator<Item = QueueId> + '_ {
        self.all().iter().copied()
    }

    /// All of them, those behind the place `last` first.
    pub fn behind(&self, last: u32) -> impl Iterator<Item = QueueId> + '_ {
        let all = self.all();
        let at = all.partition_point(|id| id.place() <= last);
        all[at..].iter().chain(&all[..at]).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_a_turn() {
        let mut s = QueueSet::default();
        let id = QueueId::numbered;
        [5, 1, 9, 5].into_iter().for_each(|n| s.insert(id(n)));
        let order = |last| s.behind(last).map(QueueId::place).collect::<Vec<_>>();
        assert_eq!(
            (order(1), order(9), order(u32::MAX), order(6)),
            (vec![5, 9, 1], vec![1, 5, 9], vec![1, 5, 9], vec![9, 1, 5])
        );
        s.remove(id(5));
        s.remove(id(4));
        assert_eq!((s.first(), s.len(), s.contains(id(5)), s.contains(id(9))), (Some(id(1)), 2, false, true));
        s.remove(id(1));
        s.remove(id(1));
        assert_eq!((s.first(), s.len()), (Some(id(9)), 1));
        s.insert(id(9));
        s.remove(id(9));
        assert!(s.is_empty() && size_of::<QueueSet>() <= 16);
    }
}

//! A small sorted set of queues. Nearly every path has one, which needs no memory of its own.

use super::ids::QueueId;

/// Queues in order.
#[derive(Debug, Clone, Default)]
pub struct QueueSet(Held);

// Numbers of queues fit: so many do not fit into memory.
#[derive(Debug, Clone, Default)]
enum Held {
    #[default]
    None,
    One(u32),
    #[allow(clippy::box_collection)]
    Many(Box<Vec<u32>>),
}

impl QueueSet {
    fn all(&self) -> &[u32] {
        match &self.0 {
            Held::None => &[],
            Held::One(id) => std::slice::from_ref(id),
            Held::Many(all) => all,
        }
    }

    /// Adds one.
    pub fn insert(&mut self, id: QueueId) {
        let new = id as u32;
        match &mut self.0 {
            Held::None => self.0 = Held::One(new),
            Held::One(first) if *first != new => {
                let (first, second) = (new.min(*first), new.max(*first));
                self.0 = Held::Many(Box::new(vec![first, second]));
            }
            Held::One(_) => {}
            Held::Many(all) => {
                if let Err(at) = all.binary_search(&new) {
                    all.insert(at, new);
                }
            }
        }
    }

    /// Takes one out.
    pub fn remove(&mut self, id: QueueId) {
        let old = id as u32;
        match &mut self.0 {
            Held::One(one) if *one == old => self.0 = Held::None,
            Held::Many(all) => {
                if let Ok(at) = all.binary_search(&old) {
                    all.remove(at);
                }
                if let [one] = all[..] {
                    self.0 = Held::One(one);
                }
            }
            _ => {}
        }
    }

    /// It is among them.
    pub fn contains(&self, id: QueueId) -> bool {
        self.all().binary_search(&(id as u32)).is_ok()
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
        self.all().iter().map(|id| *id as QueueId)
    }

    /// All of them, those behind `last` first.
    pub fn behind(&self, last: QueueId) -> impl Iterator<Item = QueueId> + '_ {
        let all = self.all();
        let at = all.partition_point(|id| *id as QueueId <= last);
        all[at..].iter().chain(&all[..at]).map(|id| *id as QueueId)
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
        s.remove(1);
        s.remove(1);
        assert_eq!((s.first(), s.len()), (Some(9), 1));
        s.insert(9);
        s.remove(9);
        assert!(s.is_empty() && size_of::<QueueSet>() <= 16);
    }
}

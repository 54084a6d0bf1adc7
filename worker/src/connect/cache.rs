//! What others said and is remembered for a while. However much they say, it takes so many entries and so many bytes.

use std::borrow::Borrow;
use std::hash::Hash;

use ipc::dice::HashMap;
use tokio::time::Instant;

#[derive(Debug)]
struct Entry<V> {
    value: V,
    bytes: usize,
    until: Instant,
}

/// Values by keys, each until its time is over.
#[derive(Debug)]
pub struct Cache<K, V> {
    entries: HashMap<K, Entry<V>>,
    /// Of all values.
    bytes: usize,
    entries_max: usize,
    bytes_max: usize,
}

impl<K: Eq + Hash, V> Cache<K, V> {
    /// An empty one. Its entries themselves come on top of `bytes_max`.
    pub fn new(entries_max: usize, bytes_max: usize) -> Cache<K, V> {
        Cache { entries: HashMap::default(), bytes: 0, entries_max, bytes_max }
    }

    /// What is remembered still.
    pub fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.entries.get(key).filter(|e| e.until > Instant::now()).map(|e| &e.value)
    }

    /// Remembers a value of so many bytes until a time; what is larger than all may be is not.
    pub fn insert(&mut self, key: K, value: V, bytes: usize, until: Instant) {
        self.remove(&key);
        if bytes > self.bytes_max {
            return;
        }
        if self.is_full(bytes) {
            let now = Instant::now();
            self.entries.retain(|_, e| e.until > now);
            self.bytes = self.entries.values().map(|e| e.bytes).sum();
            // Else the next ones would have to look through all again.
            let much = self.entries.len() >= self.entries_max / 4 * 3 || self.bytes >= self.bytes_max / 4 * 3;
            if much || self.is_full(bytes) {
                self.entries.clear();
                self.bytes = 0;
            }
        }
        self.bytes += bytes;
        self.entries.insert(key, Entry { value, bytes, until });
    }

    fn is_full(&self, more: usize) -> bool {
        self.entries.len() >= self.entries_max || self.bytes + more > self.bytes_max
    }

    /// Forgets it.
    pub fn remove<Q: Eq + Hash + ?Sized>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
        if let Some(e) = self.entries.remove(key) {
            self.bytes -= e.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[test]
    fn what_is_over_is_forgotten_first() {
        let mut c = Cache::new(4, 1000);
        let (over, later) = (Instant::now(), Instant::now() + Duration::from_secs(60));
        (0..2).for_each(|n| c.insert(n, n, 1, over));
        (2..4).for_each(|n| c.insert(n, n, 1, later));
        assert_eq!([0, 2].map(|n| c.get(&n).copied()), [None, Some(2)]);
        c.insert(9, 9, 1, later);
        assert_eq!([2, 3, 9].map(|n| c.get(&n).copied()), [Some(2), Some(3), Some(9)]);
        c.insert(2, 7, 990, later);
        assert_eq!((c.get(&2), c.bytes), (Some(&7), 992));
        c.insert(5, 5, 1001, later);
        assert_eq!((c.get(&5), c.get(&2)), (None, Some(&7)), "too large for all");
        c.insert(5, 5, 500, later);
        assert_eq!((c.get(&5), c.entries.len(), c.bytes), (Some(&5), 1, 500));
    }

    proptest! {
        #[test]
        fn it_takes_so_much(steps in proptest::collection::vec((0u8..40, 0usize..120, any::<bool>()), 0..200)) {
            let mut c = Cache::new(16, 400);
            for (key, bytes, holds) in steps {
                let now = Instant::now();
                c.insert(key, (), bytes, if holds { now + Duration::from_secs(9) } else { now });
                prop_assert!(c.entries.len() <= 16 && c.bytes <= 400);
                prop_assert_eq!(c.bytes, c.entries.values().map(|e| e.bytes).sum::<usize>());
                prop_assert_eq!(c.get(&key).is_some(), holds);
            }
        }
    }
}

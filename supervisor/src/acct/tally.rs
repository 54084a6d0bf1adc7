//! Counts by name in bounded memory.

use std::collections::HashMap;
use std::ops::AddAssign;

/// What is counted.
pub trait Weight {
    /// What decides whether a name stays when there are too many.
    fn weight(&self) -> u64;
}

impl Weight for u64 {
    fn weight(&self) -> u64 {
        *self
    }
}

/// Recipients by what became of them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Outcomes {
    pub delivered: u64,
    /// Bounces with a status of 5.X.X.
    pub five: u64,
    /// Other bounces.
    pub four: u64,
    /// Seconds that delivered ones took, together, and the longest.
    pub seconds: u64,
    pub seconds_max: u64,
}

impl Outcomes {
    /// All bounces.
    pub fn bounced(&self) -> u64 {
        self.five + self.four
    }

    /// All recipients.
    pub fn recipients(&self) -> u64 {
        self.delivered + self.bounced()
    }
}

impl Weight for Outcomes {
    fn weight(&self) -> u64 {
        self.recipients()
    }
}

impl AddAssign for Outcomes {
    fn add_assign(&mut self, other: Outcomes) {
        self.delivered += other.delivered;
        self.five += other.five;
        self.four += other.four;
        self.seconds += other.seconds;
        self.seconds_max = self.seconds_max.max(other.seconds_max);
    }
}

/// Values by name, of no more than so many names: when there are more, the rarest half goes into `others`. A name that
/// comes back after that is counted from nothing again, so what stands for a frequent one is right, and for a rare one at least
/// what is shown.
#[derive(Debug)]
pub struct Tally<V> {
    by_name: HashMap<Vec<u8>, V>,
    names_max: usize,
    /// Of names that are not held any more.
    pub others: V,
}

impl<V: Weight + Default + AddAssign + Copy> Tally<V> {
    /// No more than `names_max` names.
    pub fn new(names_max: usize) -> Tally<V> {
        Tally { by_name: HashMap::new(), names_max, others: V::default() }
    }

    /// Adds to a name.
    pub fn add(&mut self, name: &[u8], value: V) {
        if let Some(v) = self.by_name.get_mut(name) {
            *v += value;
            return;
        }
        if self.by_name.len() >= self.names_max {
            self.drop_the_rarest();
        }
        self.by_name.insert(name.to_vec(), value);
    }

    fn drop_the_rarest(&mut self) {
        let mut weights: Vec<u64> = self.by_name.values().map(Weight::weight).collect();
        let half = weights.len() / 2;
        let (_, limit, _) = weights.select_nth_unstable(half);
        let limit = *limit;
        // Names of the same weight may be nearly all of them.
        let mut left = half.max(1);
        for strictly in [true, false] {
            self.by_name.retain(|_, v| {
                let rare = if strictly { v.weight() < limit } else { v.weight() <= limit };
                let goes = rare && left > 0;
                if goes {
                    left -= 1;
                    self.others += *v;
                }
                !goes
            });
        }
    }

    /// The `n` names of the greatest rank that is not 0, those of the same rank by name.
    pub fn top(&self, n: usize, rank: impl Fn(&V) -> u64) -> Vec<(&[u8], V)> {
        let mut all: Vec<(&[u8], V)> =
            self.by_name.iter().map(|(k, v)| (k.as_slice(), *v)).filter(|(_, v)| rank(v) > 0).collect();
        all.sort_by(|a, b| rank(&b.1).cmp(&rank(&a.1)).then_with(|| a.0.cmp(b.0)));
        all.truncate(n);
        all
    }

    /// The same of the names that begin with `part` and a separator, without these.
    pub fn top_of(&self, n: usize, part: &[u8], separator: u8) -> Vec<(&[u8], V)> {
        let behind = |k: &'_ [u8]| k.strip_prefix(part).and_then(|k| k.strip_prefix(&[separator])).map(<[u8]>::len);
        let mut all: Vec<(&[u8], V)> =
            self.by_name.iter().filter_map(|(k, v)| behind(k).map(|len| (&k[k.len() - len..], *v))).collect();
        all.sort_by(|a, b| b.1.weight().cmp(&a.1.weight()).then_with(|| a.0.cmp(b.0)));
        all.truncate(n);
        all
    }

    /// All names in their order.
    pub fn sorted(&self) -> Vec<(&[u8], V)> {
        let mut all: Vec<(&[u8], V)> = self.by_name.iter().map(|(k, v)| (k.as_slice(), *v)).collect();
        all.sort_by_key(|(k, _)| *k);
        all
    }

    /// Number of names.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// All together.
    pub fn total(&self) -> V {
        let mut all = self.others;
        self.by_name.values().for_each(|v| all += *v);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequent_names_stay_and_nothing_is_lost_of_the_total() {
        let mut t = Tally::<u64>::new(100);
        for round in 0..1000u64 {
            t.add(b"frequent", 1);
            t.add(b"often", u64::from(round % 2 == 0));
            t.add(format!("once {round}").as_bytes(), 1);
        }
        assert!(t.len() <= 100);
        assert_eq!(t.total(), 2500);
        let top: Vec<(&[u8], u64)> = t.top(2, |v| *v);
        assert_eq!(top, [(&b"frequent"[..], 1000), (&b"often"[..], 500)]);
    }
}

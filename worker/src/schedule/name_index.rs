//! Finds queues and paths by their two names, which only they themselves hold: what a map would
//! keep of a hundred thousand names is a fifth of all that waiting costs.

use std::hash::BuildHasher;

use hashbrown::HashTable;
use ipc::dice::RandomState;

/// Numbers by name.
#[derive(Debug, Default)]
pub struct NameIndex {
    numbers: HashTable<u32>,
    hasher: RandomState,
}

impl NameIndex {
    /// The number whose names are these; `names` answers those of a number.
    pub fn find<'a>(&self, name: (&str, &str), names: impl Fn(usize) -> Option<(&'a str, &'a str)>) -> Option<usize> {
        let found = self.numbers.find(self.hasher.hash_one(name), |n| names(*n as usize) == Some(name));
        found.map(|n| *n as usize)
    }

    /// Adds a number that is not there, whose names are known by now.
    pub fn insert<'a>(&mut self, number: usize, names: impl Fn(usize) -> Option<(&'a str, &'a str)>) {
        let hash = |n: &u32| self.hasher.hash_one(names(*n as usize).unwrap_or_default());
        self.numbers.insert_unique(hash(&(number as u32)), number as u32, hash);
    }

    /// Takes one out.
    pub fn remove(&mut self, number: usize, name: (&str, &str)) {
        if let Ok(entry) = self.numbers.find_entry(self.hasher.hash_one(name), |n| *n as usize == number) {
            entry.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_to_its_number_until_it_is_taken_out() {
        let names: Vec<(String, String)> = (0..1000).map(|n| (format!("d{}", n / 2), format!("v{}", n % 2))).collect();
        let of = |n: usize| names.get(n).map(|(a, b)| (a.as_str(), b.as_str()));
        let mut index = NameIndex::default();
        (0..1000).for_each(|n| index.insert(n, of));
        (0..1000).step_by(3).for_each(|n| index.remove(n, of(n).unwrap_or_default()));
        for n in 0..1000 {
            assert_eq!(index.find(of(n).unwrap_or_default(), of), (n % 3 != 0).then_some(n));
        }
        assert_eq!(index.find(("d1", "v9"), of), None);
    }
}

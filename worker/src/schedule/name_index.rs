//! Finds queues and paths, by their places, by their two names, which only they themselves hold: what a map would
//! keep of a hundred thousand names is a fifth of all that waiting costs.

use std::hash::BuildHasher;

use hashbrown::HashTable;
use ipc::dice::RandomState;

/// Places by name.
#[derive(Debug, Default)]
pub struct NameIndex {
    places: HashTable<u32>,
    hasher: RandomState,
}

impl NameIndex {
    /// The place of what has these names; `names` answers those of what lies at a place.
    pub fn find<'a>(&self, name: (&str, &str), names: impl Fn(u32) -> Option<(&'a str, &'a str)>) -> Option<u32> {
        self.places.find(self.hasher.hash_one(name), |place| names(*place) == Some(name)).copied()
    }

    /// Adds a place that is not there, whose names are known by now.
    pub fn insert<'a>(&mut self, place: u32, names: impl Fn(u32) -> Option<(&'a str, &'a str)>) {
        // Whatever lies at a place in the table has names. One without would not be found, and be made anew.
        let hash = |place: &u32| self.hasher.hash_one(names(*place).unwrap_or_default());
        self.places.insert_unique(hash(&place), place, hash);
    }

    /// Takes one out.
    pub fn remove(&mut self, place: u32, name: (&str, &str)) {
        if let Ok(entry) = self.places.find_entry(self.hasher.hash_one(name), |of| *of == place) {
            entry.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_to_its_place_until_it_is_taken_out() {
        let names: Vec<(String, String)> = (0..1000).map(|n| (format!("d{}", n / 2), format!("v{}", n % 2))).collect();
        let of = |n: u32| names.get(n as usize).map(|(a, b)| (a.as_str(), b.as_str()));
        let mut index = NameIndex::default();
        (0..1000).for_each(|n| index.insert(n, of));
        (0..1000).step_by(3).for_each(|n| index.remove(n, of(n).unwrap_or_default()));
        for n in 0..1000 {
            assert_eq!(index.find(of(n).unwrap_or_default(), of), (n % 3 != 0).then_some(n));
        }
        assert_eq!(index.find(("d1", "v9"), of), None);
    }
}

//! Chance: random numbers that are no secrets, and the order in which hash maps give what they hold. The system
//! decides both; in a simulation (feature `simulation`) a seed does, so that a run can be repeated.
#![expect(clippy::disallowed_types, reason = "this is where chance comes from")]

use std::hash::BuildHasher;

#[cfg(feature = "simulation")]
pub use simulated::{RandomState, seed};

/// Makes hashers that another process, or another map, does not share.
#[cfg(not(feature = "simulation"))]
pub type RandomState = std::hash::RandomState;

/// A hash map whose order a simulation can repeat.
pub type HashMap<K, V, S = RandomState> = std::collections::HashMap<K, V, S>;
/// A hash set whose order a simulation can repeat.
pub type HashSet<T, S = RandomState> = std::collections::HashSet<T, S>;

/// A number that is different each time, as good as a hash under a random key is.
pub fn number() -> u64 {
    RandomState::default().hash_one(())
}

#[cfg(feature = "simulation")]
mod simulated {
    use std::cell::Cell;
    use std::hash::{BuildHasher, DefaultHasher, Hasher};

    thread_local! {
        static STATE: Cell<u64> = const { Cell::new(0) };
    }

    /// Lets everything that is random on this thread follow from `seed` from now on.
    pub fn seed(seed: u64) {
        STATE.set(seed);
    }

    /// Takes the place of the one of the standard library.
    #[derive(Debug, Clone)]
    pub struct RandomState(u64);

    impl Default for RandomState {
        fn default() -> Self {
            // An odd step meets every number before it meets one again.
            let next = STATE.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
            STATE.set(next);
            RandomState(next)
        }
    }

    impl BuildHasher for RandomState {
        type Hasher = DefaultHasher;

        fn build_hasher(&self) -> DefaultHasher {
            let mut h = DefaultHasher::new();
            h.write_u64(self.0);
            h
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_differ() {
        let some: HashSet<u64> = (0..100).map(|_| number()).collect();
        assert_eq!(some.len(), 100);
    }
}

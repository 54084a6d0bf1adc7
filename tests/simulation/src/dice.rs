//! Chance of one run: everything that the world decides follows from the seed.

use std::cell::Cell;

/// A generator of numbers (SplitMix64), so that a run is the same on every machine.
#[derive(Debug)]
pub struct Dice(Cell<u64>);

impl Dice {
    /// Numbers that follow from `seed`.
    pub fn new(seed: u64) -> Dice {
        Dice(Cell::new(seed))
    }

    /// The next number.
    pub fn next(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.0.set(state);
        let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number of its own sequence, so that what one part of the world asks for changes nothing for another.
    pub fn fork(&self) -> Dice {
        Dice::new(self.next())
    }

    /// A number from 0 to below `n`; 0 for 0.
    pub fn below(&self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.next() % n }
    }

    /// A number from `least` to `most`, both included.
    pub fn between(&self, least: u64, most: u64) -> u64 {
        least + self.below(most.saturating_sub(least) + 1)
    }

    /// True in so many of a thousand cases.
    pub fn permille(&self, n: u64) -> bool {
        self.below(1000) < n
    }

    /// One of some; `None` of none.
    pub fn pick<'a, T>(&self, some: &'a [T]) -> Option<&'a T> {
        some.get(self.below(some.len() as u64) as usize)
    }
}

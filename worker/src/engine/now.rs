//! Time, as an argument.

/// A moment of queue time, see [`crate::clock`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Unix nanoseconds.
    pub ns: i64,
}

impl Now {
    /// Unix milliseconds.
    pub fn ms(self) -> i64 {
        self.ns / 1_000_000
    }
}

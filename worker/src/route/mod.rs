//! From an accepted message to the shards that own its recipients' destinations.

pub mod handoff;
pub mod keep;
pub mod last_failures;
pub mod moving;
pub mod owner;
pub mod paths;
pub mod rollup;
pub mod spread;
pub mod submit;

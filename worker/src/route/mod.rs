//! From an accepted message to the shards that own its recipients' destinations.

pub mod handoff;
pub mod owner;
pub mod submit;

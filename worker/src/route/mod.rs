//! From an accepted message to the shards that own its recipients' destinations.

pub mod handoff;
pub mod inbound;
pub mod keep;
pub mod kept;
pub mod last_failures;
pub mod links;
pub mod moves;
pub mod moving;
pub mod owner;
pub mod paths;
pub mod rollup;
pub mod rollups;
pub mod stored;
pub mod submit;

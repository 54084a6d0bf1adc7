//! The decisions of a shard, without what carries them out: no socket, no file, no clock. Every call gets the time, changes
//! what is known in memory, and leaves [`Action`]s for [`crate::shard::Shard::decide`] to carry out.
//!
//! ```text
//! intake ──▶ ways ──▶ schedule ──▶ opening ──▶ Action::Open
//!              ▲                      │
//!              └── modes ◀── replies ─┘   orders, reload and ownership change what these look at
//! ```
//! [`schedule`](crate::schedule) holds queues and paths; here is what of them depends on the configuration, on the map of
//! shards, on orders of operators, and on what other shards know.

mod action;
mod batches;
pub mod connections;
pub mod failures;
pub mod inherited;
mod intake;
pub mod line;
mod modes;
mod now;
mod opening;
mod orders;
pub mod ownership;
mod path_states;
mod releases;
mod reload;
mod state;
mod upkeep;
mod ways;

pub use action::{Action, News};
pub use intake::Intake;
pub use now::Now;
pub use state::{Engine, Tasks};
pub use upkeep::Aged;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

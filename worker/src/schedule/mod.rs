//! What is sent next, when, and over how many connections. No sockets and no clock: time is
//! an argument (Unix milliseconds), so simulations replay under a seed.
//!
//! ```text
//! waiting ──due──▶ ready ──next──▶ in flight ──▶ settled
//!    ▲                               │
//!    └────── retry-recipients-after ─┘   (a failed connection puts it back in front)
//! ```
//! A queue's clock (`retry-after`) and a recipient's (`retry-recipients-after`) are
//! independent of each other.

pub mod queue;
pub mod rate;
pub mod scheduler;
#[cfg(test)]
mod simulation;

pub use queue::{Entry, Queue, QueueId};
pub use scheduler::{Batch, Message, Next, Scheduler, Slot};

//! What is sent next, when, and over how many connections. No sockets and no clock: time is
//! an argument (Unix milliseconds), so simulations replay under a seed.
//!
//! ```text
//! waiting ──due──▶ ready ──next──▶ in flight ──▶ settled
//!    ▲                               │
//!    └────── retry-recipients-after ─┘   (a failed connection puts it back in front)
//! ```
//! Mail waits in a *queue* (destination, and virtual MTA or pool) and leaves by a *path*
//! (destination and virtual MTA), which pulls when its limits let it: a pool's mail goes by
//! whichever of its members is able, by weight and by what receivers said of late. A path's
//! clock (`retry-after`) and a recipient's (`retry-recipients-after`) are independent of each
//! other.

pub mod activity;
mod age;
pub mod arena;
pub mod batch;
pub mod cause;
pub mod clocks;
mod depth;
#[cfg(test)]
mod dice;
pub mod entry;
mod given_back;
pub mod held_up;
pub mod ids;
pub mod job;
pub mod limit;
pub mod matches;
pub mod message;
mod name_index;
pub mod path;
pub mod pool;
pub mod queue;
pub mod queue_set;
pub mod rate;
pub mod ready;
pub mod recalled;
pub mod removal;
pub mod retry_wait;
mod rolled_up;
pub mod scheduler;
mod shrink;
#[cfg(test)]
mod simulated_day;
#[cfg(test)]
mod simulation;
pub mod source;
pub mod spread;
pub mod spread_path;
pub mod timers;
pub mod tokens;

pub use batch::{Batch, Next};
pub use entry::Entry;
pub use ids::{PathId, QueueId, Slot, Timer};
pub use message::Message;
pub use path::Path;
pub use queue::{Member, Queue};
pub use scheduler::{Exit, Scheduler};

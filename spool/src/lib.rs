//! The durable spool of one shard.
//!
//! An append-only segment log is the truth; a small index beside it makes restarts fast and
//! can be rebuilt at any time. `LIFECYCLE.md` argues every crash. [`Spool`] is the handle
//! that the shard's reactor uses; a thread of its own does all that may block.
//! In simulations a [`Driver`] does it in the thread's place.

pub mod disk;
pub mod driver;
pub mod group;
pub mod index;
pub mod layout;
pub mod memory;
pub mod quarantine;
mod quarantine_files;
pub mod segment;
pub mod sled;
pub mod store;

mod accounting;
mod backlog;
mod ballast;
mod bell;
mod carried;
mod checkpoint;
mod compact;
mod group_commit;
mod handle;
mod inbox;
mod projection;
mod recover;
mod rows;
mod thread;

pub use backlog::Refusal;
pub use driver::Driver;
pub use group::{NewMessage, Settled};
pub use group_commit::Options;
pub use handle::{Opening, Outcomes, Spool, fits};
pub use inbox::Statistics;
pub use layout::RecipientState;
pub use projection::Projection;
pub use store::{KnownRecipient, Recovered, RecoveredRecipient};

/// Why the spool did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SpoolError {
    /// No room for new mail; nothing was written. Answer `452 4.3.1`.
    #[error("no room in the spool: {0}")]
    Full(String),
    /// The write failed and was taken back. Answer `451 4.3.0`.
    #[error("writing the segment log: {0}")]
    Write(String),
    /// Whether the data is on disk is unknown. Answer `451 4.3.0`; intake stops.
    #[error("syncing the segment log: {0}")]
    Sync(String),
    /// The message is not in the spool, or does not validate and is in quarantine.
    #[error("message {key} cannot be read: {reason}")]
    Unreadable {
        /// Its key.
        key: u64,
        /// What is wrong.
        reason: String,
    },
    /// The index failed; it is rebuilt when there is room.
    #[error("{0}")]
    Index(String),
    /// The spool could not be opened.
    #[error("opening the spool {path}: {reason}")]
    Open {
        /// Folder.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The disk has not answered in time; what was asked for may still happen.
    #[error("the disk has not answered within {0} s")]
    Slow(u64),
    /// The spool's thread has ended.
    #[error("the spool is closed")]
    Closed,
}

impl From<index::IndexError> for SpoolError {
    fn from(e: index::IndexError) -> Self {
        SpoolError::Index(e.to_string())
    }
}

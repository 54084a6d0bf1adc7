//! One connection to a receiver: from MX to QUIT.
//!
//! ```text
//! hosts → connect → greeting → EHLO → STARTTLS → EHLO ┐
//!        ┌─────────────────────────────────────────────┘
//!        └▶ next batch → MAIL RCPT… DATA|BDAT → replies → outcome ─▶ … → QUIT
//! ```

pub mod conclusion;
pub mod connection;
mod contained;
pub mod deletion;
pub mod idle;
pub mod interruption;
pub mod learned;
pub mod local;
pub mod mode;
pub mod open;
pub mod openers;
mod removed_fields;
pub mod rerouting;
pub mod security;
pub mod session;
pub mod shared_limits;
pub mod signing;
pub mod slow;
pub mod transaction;

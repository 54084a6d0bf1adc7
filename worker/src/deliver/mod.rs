//! One connection to a receiver: from MX to QUIT.
//!
//! ```text
//! hosts → connect → greeting → EHLO → STARTTLS → EHLO ┐
//!        ┌─────────────────────────────────────────────┘
//!        └▶ next batch → MAIL RCPT… DATA|BDAT → replies → outcome ─▶ … → QUIT
//! ```

pub mod bounce;
pub mod conclusion;
pub mod connection;
mod contained;
mod decision;
pub mod deletion;
pub mod delivery_type;
pub mod idle;
pub mod interruption;
pub mod learned;
mod lease;
pub mod limit_queue;
pub mod local;
pub mod open;
pub mod open_connections;
pub mod openers;
mod outgoing_header;
mod own_spf;
pub mod path;
mod reply_effects;
pub mod rerouting;
pub mod security;
pub mod session;
pub mod session_fault;
pub mod shared_limits;
pub mod signing;
pub mod slow;
pub mod transaction;
mod windows;

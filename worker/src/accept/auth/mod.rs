//! AUTH (RFC 4954): users, how their passwords are stored, and the mechanisms that they prove themselves by.
//!
//! [`exchange`] is one AUTH command without a socket. What it has heard becomes a [`users::Check`], which may take long (a password is
//! hashed) and is made on a thread of its own by [`attempts`], which also keeps those out who fail too often.

pub mod attempts;
pub mod exchange;
pub mod mechanism;
mod scram;
pub mod stored;
pub mod users;

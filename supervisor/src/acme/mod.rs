//! Certificates that an authority issues by itself (ACME, RFC 8555): obtained before listeners can show any, and again before they end.
//!
//! A certificate is a file in the data folder like one that the operator names, and comes into force as such a file does when it
//! changes. Nothing of it is asked for that the configuration does not name.

mod answers;
mod dns;
mod error;
pub mod files;
pub mod keep;
mod order;

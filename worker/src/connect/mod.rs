//! From a destination to an address that can be connected to, and how the connection is
//! protected.

pub mod mx;
pub mod tls;

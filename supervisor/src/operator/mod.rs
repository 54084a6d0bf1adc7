//! The operator's socket: [`server`] in the supervisor, [`client`] in every other command.

pub mod client;
pub mod configurations;
pub mod server;
pub mod suppress;
pub mod why;

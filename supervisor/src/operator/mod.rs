//! The operator's socket: [`server`] in the supervisor, [`client`] in every other command, which prints by [`output`].

pub mod client;
pub mod config;
pub mod configurations;
pub mod disabled;
pub mod inject;
pub mod listings;
pub mod message;
pub mod orders;
pub mod output;
pub mod reroute;
pub mod server;
pub mod standing_orders;
pub mod state;
pub mod suppress;
pub mod vmta_settings;
pub mod why;

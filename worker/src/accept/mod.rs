//! The SMTP server (RFC 5321). [`session`] is the protocol without sockets; [`listener`]
//! gives it bytes and time; [`places`], [`client_place`] and [`strangers`] share the connections out; [`source`] decides who may do what.

pub mod auth;
pub mod awaiting;
pub mod blackhole;
pub mod budget;
pub mod client_place;
pub mod listener;
pub mod own_name;
pub mod places;
pub mod proxied;
mod quick_ack;
pub mod receiving;
pub mod refusals;
pub mod sender_checks;
pub mod session;
pub mod source;
pub mod strangers;

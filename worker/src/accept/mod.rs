//! The SMTP server (RFC 5321). [`session`] is the protocol without sockets; [`listener`]
//! gives it bytes and time; [`places`] shares the connections out; [`source`] decides who may do what.

pub mod blackhole;
pub mod listener;
pub mod own_name;
pub mod places;
pub mod receiving;
pub mod refusals;
pub mod session;
pub mod source;

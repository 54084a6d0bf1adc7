//! The words of SMTP (RFC 5321) for both sides, without sockets and without a clock: commands and content that clients send, replies
//! that receivers give, content as it goes out, and the transaction in which it does.

pub mod command;
pub mod content;
pub mod dot_stuffing;
pub mod extension;
pub mod flight;
pub mod reply;
